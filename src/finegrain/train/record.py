"""What a run leaves in its folder while it goes: losses, validations, curves and the best weights."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finegrain.errors import ConfigError
from finegrain.files import json_safe, write_whole
from finegrain.networks.skeleton import ImageNetwork
from finegrain.train.checkpointing import Course, write_bytes_whole
from finegrain.train.validation import PSNR_NAME

LOSSES, HISTORY, BEST, CURVES, TENSORBOARD = "losses.jsonl", "history.jsonl", "best.safetensors", "curves.png", "tensorboard"

PANELS = {
    "loss (mean since the last validation)": ("loss",),
    "RMSE in HU": ("rmse_hu",),
    PSNR_NAME: (PSNR_NAME,),
    "above 0.4 Nyquist": ("hf_ratio", "hf_coherence"),
}


class RunRecord:
    """The files of a run. When it goes on, what was written after its checkpoint is taken back first."""

    def __init__(self, run_folder: Path, course: Course, *, tensorboard: bool) -> None:
        self.folder, self.course = run_folder, course
        self.board = _tensorboard(run_folder / TENSORBOARD, course.step) if tensorboard else None
        self.losses = (run_folder / LOSSES).open("ab")
        self.losses.truncate(min(course.losses_bytes, self.losses.seek(0, os.SEEK_END)))
        self.losses.seek(0, os.SEEK_END)
        self.write_history()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # every line was flushed; on a full disk the last one fails again, and the first error is told
            self.losses.close()
        if self.board:
            self.board.close()

    def add_step(self, row: dict[str, float]) -> None:
        """One line of `losses.jsonl`; every digit is there, so that equal lines are equal numbers."""
        self.losses.write((json.dumps(row) + "\n").encode())
        self.losses.flush()
        self._to_board("step", row)

    def add_validation(self, best: ImageNetwork) -> None:
        """The last row of the history, the curves, and the best weights if they are those of this step."""
        self.write_history()
        self._to_board("validation", self.course.history[-1])
        if self.course.best_step == self.course.step:
            weights = {name: value.contiguous().cpu() for name, value in best.state_dict().items()}
            write_bytes_whole(self.folder / BEST, safetensors.torch.save(weights))
        draw_curves(self.course.history, self.folder / CURVES)

    def settle(self) -> None:
        """Bring the losses to the disk before a checkpoint that counts on them."""
        self.losses.flush()
        os.fsync(self.losses.fileno())
        self.course.losses_bytes = self.losses.tell()

    def write_history(self) -> None:
        """`history.jsonl` as the run holds it."""
        write_whole(self.folder / HISTORY, "".join(json.dumps(json_safe(row)) + "\n" for row in self.course.history))

    def _to_board(self, group: str, row: dict[str, float]) -> None:
        if self.board:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(f"{group}/{name}", value, row["step"])


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """The validations of a run as a picture, one panel a measure."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [row["step"] for row in history]
    for axes, (title, names) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True):
        for name in names:
            axes.plot(steps, [row[name] for row in history], marker=".", label=name)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.supxlabel("step")
    figure.savefig(path, dpi=100)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("train.tensorboard needs a package: pip install tensorboard; or set it to false") from None
    return SummaryWriter(str(folder), purge_step=step + 1)
