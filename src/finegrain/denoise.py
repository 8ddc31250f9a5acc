"""Model folder + volume → denoised volume. ONNX Runtime by default; nothing of training is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError, ModelError
from finegrain.hu import AIR_HU, HURange
from finegrain.networks.card import ONNX, ModelCard, read_card
from finegrain.scan.derived import Derivation
from finegrain.scan.volume import CTVolume

Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""One padded slice in unit range → the same denoised. Shape: (1, 1, h, w), h and w multiples of the network's stride."""

BUNDLED = "finegrain-s"
"""Name of the model that ships with the package."""


class Denoiser:
    """An engine with what it must know of HU and sizes.

    The engine's answer is used as a change of the input, so that CT numbers outside the network's range (metal) survive.

    Args:
        engine: see `onnx_engine` and `torch_engine`.
        hu_range: HU that the network sees as [0, 1].
        stride: heights and widths are padded to a multiple of this.
        card: the model's card, if it came from a folder.
    """

    def __init__(self, engine: Engine, *, hu_range: HURange, stride: int, card: ModelCard | None = None) -> None:
        self.engine, self.hu_range, self.stride, self.card = engine, hu_range, stride, card

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.card.name} v{self.card.version}" if self.card else "an unnamed network"

    def derivation(self, *, strength: float) -> Derivation:
        """How a series that this denoiser made is to be described in DICOM."""
        check_strength(strength)
        if self.card is None:
            raise ModelError("a network without a model card cannot sign a DICOM series; export it as a model folder first")
        return Derivation(
            kind="denoised",
            model=self.card.name,
            model_version=self.card.version,
            model_sha256=self.card.sha256[ONNX],
            parameters={
                "strength": float(strength),  # 1 and 1.0 are one setting and must give one UID
                "hu_range": list(self.card.hu_range),
            },
            series_label=f"AI-DN {self.name}",
        )

    def denoise_slice(self, hu: NDArray[np.floating], *, strength: float = 1.0) -> NDArray[np.float32]:
        """A slice in HU, shape (y, x), with `strength` times the noise that the network finds taken away.

        Raises: ModelError if the network's answer is not finite.
        """
        check_strength(strength)
        unit = self.hu_range.to_unit(hu)
        rows, columns = unit.shape
        below, right = -rows % self.stride, -columns % self.stride
        mode: Any = "reflect" if min(rows, columns) > max(below, right) else "edge"
        padded = np.pad(unit, ((0, below), (0, right)), mode=mode)
        change = (self.engine(padded[None, None])[0, 0, :rows, :columns] - unit) * np.float32(self.hu_range.span)
        if not np.isfinite(change).all():
            raise ModelError("the network gave NaN or infinite values; nothing was written: check the input's HU and the model")
        return (hu + np.float32(strength) * change).astype(np.float32)

    def iterate(self, volume: CTVolume, *, strength: float = 1.0) -> Iterator[NDArray[np.float32]]:
        """The denoised slices of a volume, one after another. `strength` 0 gives the input, 1 the full effect.

        Padding is shown to the network as air and comes back as it was.
        """
        check_strength(strength)
        for hu, padding in zip(volume.hu, volume.padding, strict=True):
            if strength == 0:
                yield hu
            else:
                shown = np.where(padding, np.float32(AIR_HU), hu)
                yield np.where(padding, hu, self.denoise_slice(shown, strength=strength))

    def denoise(self, volume: CTVolume, *, strength: float = 1.0, progress: Callable[[int], None] | None = None) -> CTVolume:
        """The denoised volume: `iterate`, collected. `progress` is called with the number of finished slices."""
        denoised = np.empty_like(volume.hu)  # filled in place: a whole-body scan is a gigabyte, and must not be held many times
        for index, hu in enumerate(self.iterate(volume, strength=strength)):
            denoised[index] = hu
            if progress is not None:
                progress(index + 1)
        return replace(volume, hu=denoised)


def check_strength(strength: float) -> None:
    """Raises: ConfigError unless 0 ≤ strength ≤ 1."""
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength must lie in [0, 1], 0 for the input and 1 for the full effect; got {strength}")


def load_denoiser(folder: Path | None = None, *, threads: int | None = None) -> Denoiser:
    """The denoiser of a model folder; of the bundled weights if none is given.

    Raises: ModelError if a file is missing, altered or not understood.
    """
    folder = folder or bundled_model()
    card = read_card(folder)
    engine = onnx_engine(folder / ONNX, threads=threads)
    return Denoiser(engine, hu_range=HURange(*card.hu_range), stride=card.stride, card=card)


def bundled_model() -> Path:
    """Folder of the weights that ship with the package."""
    return Path(str(files("finegrain"))) / "weights" / BUNDLED


def onnx_engine(path: Path, *, threads: int | None = None) -> Engine:
    """An engine on ONNX Runtime, CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for every way a file can be wrong
        raise ModelError(f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}") from None
    (name,) = (given.name for given in session.get_inputs())

    def run(unit: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run(None, {name: np.ascontiguousarray(unit)})[0]

    return run


def torch_engine(network: Any) -> Engine:
    """An engine on a torch network, for the networks of a study."""
    import torch

    network.eval()

    def run(unit: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(unit))).numpy()

    return run
