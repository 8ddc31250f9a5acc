"""The command line: one sub-command per stage. Nothing but wiring; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finegrain import __version__
from finegrain.errors import FinegrainError

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(
    name="finegrain",
    help="Take the noise out of low-dose CT, keep the texture, and prove both. Research use only: not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TRAINING_EXTRA = {"torch", "onnx", "onnxscript", "safetensors"}
"""What `train` and `study` need beyond the core install."""

DataRoot = Annotated[Path, typer.Option(envvar="FINEGRAIN_DATA", help="Folder that relative paths of a configuration start at.")]


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except FinegrainError as error:
        sys.exit(_say(str(error)))
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_EXTRA:
            raise
        sys.exit(_say(f"this command needs {error.name}; install the training extra: pip install 'finegrain[train]'"))


def _say(message: str) -> int:
    """One line on stderr; gives the exit code for what the user can mend."""
    print(f"finegrain: {message}", file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="New or earlier demo folder; what the demo wrote there before is replaced.")] = Path(
        "finegrain-demo"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    dose_fraction: Annotated[float, typer.Option(help="Dose to simulate, as a fraction of the scan's own.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of the simulated noise.")] = 0,
) -> None:
    """Real scan → quarter dose → denoised DICOM series → report, offline, in under a minute."""
    from finegrain.demo import run_demo

    with _progress() as bar:
        task = bar.add_task("starting", total=None)
        outcome = run_demo(
            out,
            dose_fraction=dose_fraction,
            seed=seed,
            json_file=json_file,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    _print_table(outcome.title, outcome.table)
    print(f"\nReport: {outcome.report}")
    print(f"Denoised DICOM series: {outcome.series}\n\nNext:")
    for command, purpose in outcome.next_commands:
        print(f"  {command}\n      {purpose}")


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of a DICOM CT series (or one file).")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder for the denoised series.")],
    strength: Annotated[float, typer.Option(help="0 gives the input back, 1 takes out all noise that the network finds.")] = 1.0,
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled weights if not given.")] = None,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where a folder holds several series.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if not given.")] = None,
    allow_lossy: Annotated[bool, typer.Option("--allow-lossy", help="Treat images that were compressed with loss.")] = False,
) -> None:
    """Denoise a DICOM CT series into a new, derived series."""
    from finegrain.denoise import load_denoiser
    from finegrain.scan.derived import check_output_folder, write_derived_series
    from finegrain.scan.dicom import read_series

    denoiser = load_denoiser(model, threads=threads)
    volume = read_series(source, series_uid=series, allow_lossy=allow_lossy)
    check_output_folder(output, volume)
    derivation = denoiser.derivation(strength=strength)
    with _progress() as bar:
        task = bar.add_task("denoising", total=len(volume))
        denoised = denoiser.denoise(volume, strength=strength, progress=lambda n: bar.update(task, completed=n))
        task = bar.add_task("writing", total=len(volume))
        written = write_derived_series(denoised, output, derivation=derivation, progress=lambda n: bar.update(task, completed=n))
    for note in (*volume.source.notes, *(f"left out: {what}" for what in volume.source.skipped)):
        print(f"note: {note}")
    print(f"{len(written)} slices denoised with {denoiser.name}, strength {strength:g}: {output}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML of a training run, see configs/train-*.yaml.")],
    out: Annotated[Path, typer.Option(help="Run folder; a run that was stopped goes on from its last checkpoint.")],
    data_root: DataRoot = Path("data"),
    workers: Annotated[int, typer.Option(help="Processes that simulate pairs.")] = 2,
) -> None:
    """Simulate pairs, train a network on them, and export it as a model folder."""
    from finegrain.train.run import run_training

    with _progress() as bar:
        pairs, steps = bar.add_task("pairs", total=None), bar.add_task("training", total=None)
        folder = run_training(
            config,
            out,
            data_root=data_root,
            workers=workers,
            pairs_progress=lambda done, total: bar.update(pairs, completed=done, total=total),
            train_progress=lambda done, total, text: bar.update(steps, completed=done, total=total, description=f"training {text}"),
        )
    print(f"model: {folder}")


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="YAML of a study, see configs/study-smoke.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; what is done there is not done again.")],
    data_root: DataRoot = Path("data"),
    workers: Annotated[int, typer.Option(help="Processes that simulate and evaluate.")] = 2,
) -> None:
    """The paper's experiment: pairs → networks on equal terms → measures → statistics → figures → report."""
    from finegrain.config import StudyConfig, load_config
    from finegrain.study import run_study

    settings = load_config(config, StudyConfig)
    with _progress() as bar:
        task = bar.add_task("starting", total=None)
        outcome = run_study(
            settings,
            out,
            data_root=data_root,
            workers=workers,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    _print_table(settings.title, outcome.table)
    print(f"\n{outcome.scale_note}\nReport: {outcome.report}\nNumbers: {outcome.results}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar with time left on a terminal; nothing when the output is piped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield bar


def _print_table(title: str, rows: list[list[str]]) -> None:
    """Print rows as a table; the first is the heading."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, rows[0]), title=escape(title), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console().print(table)
