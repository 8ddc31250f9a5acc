"""The command line: one sub-command per stage. Nothing but wiring; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finegrain import __version__
from finegrain.errors import ConfigError, DataError, FinegrainError, ModelError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from finegrain.acquisition import Acquisition
    from finegrain.scan.volume import CTVolume

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
    # Before NumPy is loaded. Its matrices here are small: with two threads the demo took 49 to 60 s on a busy machine, with one
    # 36 to 40 s; on an idle one as long either way, with a fifth less processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
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
            progress=_follow(bar, task),
        )
    _print_table(outcome.title, outcome.table)
    print(f"\nReport: {outcome.report}")
    print(f"Denoised DICOM series: {outcome.series}\n\nNext:")
    for command, purpose in outcome.next_commands:
        print(f"  {command}\n      {purpose}")


@app.command()
def simulate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="DICOM CT series (folder or file), .nii, .nii.gz or .nrrd; or phantom:NAME with a region (thorax, abdomen, head, "
            "pelvis, shoulder), water-MM, inserts, cct189, line-pairs, slab-female or slab-male.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder, or that of a run that was stopped.")],
    dose_fraction: Annotated[
        list[float] | None,
        typer.Option(help="Dose as a fraction of the normal one; repeat it for several doses; 0.25 if not given."),
    ] = None,
    mas: Annotated[
        list[float] | None,
        typer.Option(
            help="Instead: mAs that a scan is to be brought to (repeatable). For a phantom: mAs of the normal dose (200)."
        ),
    ] = None,
    photons: Annotated[
        float | None, typer.Option(help="Photons per ray at normal dose; if not given, matched to the noise of the scan.")
    ] = None,
    photons_from: Annotated[
        str, typer.Option(help="Scans: find the photons from the noise of the image, or from the mas in the header.")
    ] = "image",
    kernel: Annotated[str | None, typer.Option(help="Reconstruction kernel, by name or file; that of the scan's header.")] = None,
    scanner: Annotated[str, typer.Option(help="Fan geometry.")] = "siemens-definition",
    bowtie: Annotated[str | None, typer.Option(help="Bow-tie filter: definition, sensation or none (definition).")] = None,
    modulation: Annotated[float | None, typer.Option(help="Strength of the tube-current modulation along the angle (0.3).")] = None,
    modulation_z: Annotated[float | None, typer.Option(help="Phantoms: strength of the modulation along z (0).")] = None,
    electronic_noise: Annotated[
        float | None, typer.Option(help="SD of the read-out in photons; by slice thickness if not given.")
    ] = None,
    adaptive_below: Annotated[
        float | None, typer.Option(help="Photons per ray below which starved rays are averaged; 0 does nothing.")
    ] = None,
    crosstalk: Annotated[float | None, typer.Option(help="Share of a channel's signal that leaks into each neighbour (0).")] = None,
    noise: Annotated[
        str | None, typer.Option(help="Phantoms: independent scans, or low doses that share the normal dose's noise (independent).")
    ] = None,
    polychromatic: Annotated[int | None, typer.Option(metavar="KVP", help="Phantoms: a beam of that tube voltage.")] = None,
    patients: Annotated[int | None, typer.Option(help="Virtual patients (1).")] = None,
    first_patient: Annotated[int | None, typer.Option(help="Anatomy seed of the first virtual patient (0).")] = None,
    slices: Annotated[int | None, typer.Option(help="Slices of each virtual patient, or repeats of a test phantom (1).")] = None,
    slice_mm: Annotated[float | None, typer.Option(help="Slice thickness in mm; that of the scan, or 3 for a phantom.")] = None,
    size: Annotated[int | None, typer.Option(help="Rows and columns of a phantom image (512).")] = None,
    pixel_mm: Annotated[
        float | None, typer.Option(help="Pixel size of a phantom image; by the field of view that it needs.")
    ] = None,
    image_format: Annotated[
        str | None, typer.Option("--format", help="Phantoms: nifti, or dicom, which finegrain denoise takes (nifti).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where a folder holds several series.")] = None,
    allow_lossy: Annotated[bool, typer.Option("--allow-lossy", help="Take images that were compressed with loss.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, or cuda with the cuda extra.")] = "cpu",
) -> None:
    """Simulate low doses of a scan or a phantom: images, and a manifest with every parameter."""
    from finegrain.config import SimulateConfig, config_of
    from finegrain.simulate.run import MANIFEST, run_simulation

    settings = {
        "dose_fractions": dose_fraction or None,
        "mas": mas or None,
        "photons": photons,
        "photons_from": photons_from,
        "kernel": kernel,
        "scanner": scanner,
        "bowtie": bowtie,
        "modulation": modulation,
        "modulation_z": modulation_z,
        "electronic_noise": electronic_noise,
        "adaptive_below": adaptive_below,
        "crosstalk": crosstalk,
        "noise": noise,
        "polychromatic_kvp": polychromatic,
        "patients": patients,
        "first_patient": first_patient,
        "slices": slices,
        "slice_mm": slice_mm,
        "size": size,
        "pixel_mm": pixel_mm,
        "format": image_format,
        "seed": seed,
        "device": device,
    }
    with _progress() as bar:
        task = bar.add_task("starting", total=None)
        outcome = run_simulation(
            source,
            output,
            config_of(SimulateConfig, settings),
            series_uid=series,
            allow_lossy=allow_lossy,
            workers=workers,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None),
        )
    for note in outcome.notes:
        print(f"note: {note}")
    _print_table(outcome.title, outcome.table)
    print(f"{outcome.caption}\n\nImages: {output}\nManifest: {output / MANIFEST}")


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of a DICOM CT series (or one file).")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder for the denoised series.")],
    strength: Annotated[float, typer.Option(help="0 gives the input back, 1 takes out all noise that the network finds.")] = 1.0,
    texture: Annotated[
        float | None,
        typer.Option(
            help="0 gives what the network made, 1 gives its fine structure the energy of a normal dose; 1 if not given, where the "
            "model can."
        ),
    ] = None,
    dose_fraction: Annotated[
        float | None, typer.Option(help="Dose of the scan over the normal one, if known: how much noise a normal dose has.")
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Mean over eight turns and flips of each slice: eight times as slow, a little better."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="finegrain-s (if not given), finegrain-b (larger, three times as slow, hardly better) or a model folder."
        ),
    ] = None,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where a folder holds several series.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if not given.")] = None,
    allow_lossy: Annotated[bool, typer.Option("--allow-lossy", help="Treat images that were compressed with loss.")] = False,
) -> None:
    """Denoise a DICOM CT series into a new, derived series."""
    from finegrain.denoise import load_denoiser
    from finegrain.scan.derived import check_output_folder, write_derived_series
    from finegrain.scan.dicom import read_series

    denoiser = load_denoiser(model, threads=threads)
    denoiser = denoiser.thorough() if thorough else denoiser
    volume = read_series(source, series_uid=series, allow_lossy=allow_lossy)
    check_output_folder(output, volume)
    acquisition = _acquisition(volume, dose_fraction)
    texture = denoiser.default_texture if texture is None else texture
    settings: dict[str, Any] = {"strength": strength, "texture": texture, "acquisition": acquisition}
    derivation = denoiser.derivation(**settings)
    with _progress() as bar:
        task = bar.add_task("denoising", total=len(volume))
        denoised = denoiser.denoise(volume, **settings, progress=lambda n: bar.update(task, completed=n))
        task = bar.add_task("writing", total=len(volume))
        written = write_derived_series(denoised, output, derivation=derivation, progress=lambda n: bar.update(task, completed=n))
    left_out = (f"left out: {what}" for what in volume.source.skipped)
    for note in (*volume.source.notes, *left_out, *denoiser.notes(acquisition, texture=texture), *denoiser.unlike_training(volume)):
        print(f"note: {note}")
    print(f"{len(written)} slices denoised with {denoiser.name}, strength {strength:g}, texture {texture:g}: {output}")


def _acquisition(volume: CTVolume, dose_fraction: float | None) -> Acquisition:
    """What is known of a scan: the dose that the user tells, and the kernel if its header names one that is known."""
    from finegrain.acquisition import Acquisition
    from finegrain.simulate.fbp import kernel_of_header

    try:
        half_per_mm = kernel_of_header(str(volume.acquisition.get("ConvolutionKernel", ""))).half_per_mm
    except ConfigError:  # a kernel that nobody has measured: the network estimates
        half_per_mm = None
    return Acquisition(dose_fraction, half_per_mm, None if half_per_mm is None else volume.pixel_mm[0])


@app.command()
def model(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="finegrain-s (if not given), finegrain-b or a model folder.")
    ] = None,
) -> None:
    """Check a model folder: its files against their hashes, its card as a table, its ONNX file against its torch weights."""
    from finegrain.denoise import LARGEST_DIFFERENCE_HU, find_model, load_denoiser
    from finegrain.networks.card import WEIGHTS, card_rows

    folder = find_model(name)
    denoiser = load_denoiser(folder)
    card = denoiser.card
    assert card is not None
    _print_table(f"{card.name} v{card.version}", card_rows(card))
    print("the files are those that the card tells of")
    if WEIGHTS not in card.sha256:
        print("ONNX was not compared with torch: the folder holds no torch weights")
        return
    if missing := sorted(name for name in TRAINING_EXTRA if find_spec(name) is None):
        print(f"ONNX was not compared with torch: this needs {', '.join(missing)}; pip install 'finegrain[train]'")
        return
    from finegrain.denoise import onnx_torch_difference_hu
    from finegrain.sample import sample_folder
    from finegrain.scan.dicom import read_series

    volume = read_series(sample_folder())
    difference = onnx_torch_difference_hu(denoiser, folder, volume)
    if not difference <= LARGEST_DIFFERENCE_HU:
        raise ModelError(
            f"ONNX and torch differ by {difference:.3g} HU on the sample, expected at most {LARGEST_DIFFERENCE_HU} HU; export the "
            "model again"
        )
    print(f"ONNX and torch differ by at most {difference:.2g} HU on {len(volume)} slices of the sample")


@app.command()
def series(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder (searched with its sub-folders) or file.")],
) -> None:
    """List the CT series of a folder, by their headers alone, and what was left out and why."""
    from finegrain.scan.series import find_series

    found, left_out = find_series(path)
    rows = [["no.", "format", "slices", "matrix", "pixel mm", "every mm", "kernel", "scanner"]]
    for number, one in enumerate(found, start=1):
        pixel_mm = "×".join(f"{mm:.3f}" for mm in sorted(set(one.pixel_mm)))
        kernel, scanner = (str(one.acquisition.get(keyword, "")) for keyword in ("ConvolutionKernel", "Manufacturer"))
        rows.append(
            [str(number), one.kind, str(len(one)), "×".join(map(str, one.shape)), pixel_mm, f"{one.slice_mm:.2f}", kernel, scanner]
        )
    _print_table(f"{len(found)} CT series", rows)
    for number, one in enumerate(found, start=1):
        for line in (*([f"SeriesInstanceUID {one.series_uid}"] if one.series_uid else []), *one.notes):
            print(f"{number}: {line}")
    for line in left_out:
        print(f"left out: {line}")


@app.command()
def pairs(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="YAML of a pairs configuration (see configs/pairs-*.yaml), or the folder or CSV file of a collection of real "
            "pairs; with --dose-fraction, a folder of normal-dose scans.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store; what is there is not made again.")],
    layout: Annotated[str, typer.Option(help="Of a collection: mayo, tcia-ldct, lodopab, csv; auto looks.")] = "auto",
    dose_fraction: Annotated[
        list[float] | None,
        typer.Option(help="Simulate this dose of each scan (repeatable: one is drawn for each slice)."),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Reconstruction kernel of simulated noise, by name or file; that of each scan's header.")
    ] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share of the patients kept for the test (0.4).")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of the patients kept for validation (0.1).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split and of simulated noise (0).")] = None,
    data_root: DataRoot = Path("data"),
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Collections, scans and phantoms → a store of checked, balanced pairs of low and normal dose, split by patient."""
    from finegrain.pairs.build import NOTES, build_pairs, config_of_source
    from finegrain.pairs.manifest import MANIFEST, read_manifest
    from finegrain.pairs.summary import summary_tables

    settings = {"test_fraction": test_fraction, "validation_fraction": validation_fraction, "seed": seed}
    config = config_of_source(source, layout=layout, dose_fractions=dose_fraction or (), kernel=kernel, settings=settings)
    with _progress() as bar:
        task = bar.add_task("looking for scans", total=None)
        build_pairs(
            config,
            out,
            data_root=data_root,
            workers=workers,
            progress=lambda done, total: bar.update(task, description="building", completed=done, total=total),
        )
    for title, rows in summary_tables(read_manifest(out)):
        _print_table(title, rows)
    notes = (out / NOTES).read_text(encoding="utf-8").splitlines()
    for note in notes[:5]:
        print(f"note: {note}")
    if len(notes) > 5:
        print(f"note: {len(notes) - 5} more in {out / NOTES}")
    print(f"\nManifest: {out / MANIFEST}\nLook at what was rejected: finegrain qc {out}")


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder of the sets, a store each; what is there is not made again.")],
    version: Annotated[str, typer.Option("--of", help="Version of the benchmark.")] = "v1",
    data_root: DataRoot = Path("data"),
    scans: Annotated[bool, typer.Option(help="Without the real scans, the virtual patients alone need no download.")] = True,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Make finegrain-bench, frozen pairs to train and compare denoisers on, and prove that they are the ones."""
    from finegrain.bench.run import build_bench, check_bench

    with _progress() as bar:
        task = bar.add_task("looking for scans", total=None)
        built = build_bench(
            version,
            out,
            data_root=data_root,
            with_scans=scans,
            workers=workers,
            told=_follow(bar, task),
        )
    found = check_bench(version, built, with_scans=scans)
    if not found.holds:
        wrong = [
            f"{len(pairs)} {what} (first: {pairs[0]})"
            for what, pairs in (("other", found.other), ("missing", found.missing))
            if pairs
        ]
        raise DataError(
            f"expected the {len(built)} pairs of finegrain-bench {version}, got {' and '.join(wrong)}; no figure on them compares"
        )
    print(
        f"finegrain-bench {version}: {found.identical} pairs to the bit"
        + (f", {found.rounded} to rounding" if found.rounded else "")
    )
    print(f"\nSets: {', '.join(sorted({pair.set for pair in built}))}, below {out}")


@app.command()
def qc(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder that finegrain pairs has built.")],
    out: Annotated[Path | None, typer.Option(help="HTML page to write; STORE/qc.html if not given.")] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Damage good pairs of the store in known ways, and show how many are detected.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every stored pixel and compare it with the hash in the manifest.")
    ] = False,
) -> None:
    """What quality control rejected and why, as a gallery, and what is borderline."""
    from finegrain.pairs.inspect import proof_of_store, proof_rows, write_store_gallery
    from finegrain.pairs.manifest import read_manifest
    from finegrain.pairs.store import damaged_pairs
    from finegrain.pairs.summary import verdicts_table

    rows = read_manifest(store)
    if verify and (damaged := damaged_pairs(store, rows)):
        raise DataError(
            f"{len(damaged)} of {len(rows)} pairs are not what the manifest tells of, first {damaged[0]}; build them again"
        )
    page = write_store_gallery(store, rows, out or store / "qc.html")
    _print_table(*verdicts_table(rows))
    if prove:
        with _progress() as bar:
            bar.add_task("damaging good pairs", total=None)
            table = proof_of_store(store, rows, seed=seed)
        _print_table("detection of known damage", proof_rows(table))
    print(f"\nGallery: {page}")


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
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process comes here
        print(f"model: {folder}")


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="YAML of a study, see configs/study-smoke.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; what is done there is not done again.")],
    data_root: DataRoot = Path("data"),
    jobs: Annotated[
        int, typer.Option(help="Processes at a time; each network in training takes one, with the threads of its configuration.")
    ] = 2,
) -> None:
    """The paper's experiment: pairs → networks on equal terms → measures → statistics → figures → report."""
    from finegrain.config import StudyConfig, load_config
    from finegrain.study import run_study

    settings = load_config(config, StudyConfig)
    with _progress() as bar:
        all_of_it, part = bar.add_task("the whole study", total=1.0), bar.add_task("starting", total=None)
        outcome = run_study(
            settings,
            out,
            data_root=data_root,
            jobs=jobs,
            progress=_follow(bar, part),
            whole=lambda share: bar.update(all_of_it, completed=share),
        )
    _print_table(settings.title, outcome.table)
    print(f"\n{outcome.scale_note}\nReport: {outcome.report}\nNumbers: {outcome.results}")


@app.command()
def physics(
    before: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a phantom scan (or one file); several series in it are repeats.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for physics.html, physics.json and physics.csv.")],
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="The same scan after a method (repeatable); called 'after' without a name."),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="physics.json of an acceptance run to compare with.")] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML with places, limits and tolerances (docs/phantom-checks.md).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap intervals.")] = 0,
) -> None:
    """Phantom scans before and after a denoiser → NPS, TTF, d′, CT numbers, uniformity, as a page to file; exit code 1: a fail."""
    from finegrain.config import load_config
    from finegrain.physics.run import named_folders, run_physics
    from finegrain.physics.settings import PhysicsSettings

    chosen = PhysicsSettings() if settings is None else load_config(settings, PhysicsSettings)
    with _progress() as bar:
        task = bar.add_task("reading", total=None)
        outcome = run_physics(
            before,
            named_folders(after or []),
            out,
            settings=chosen,
            baseline=baseline,
            seed=seed,
            progress=lambda what: bar.update(task, description=what),
        )
    for note in outcome.notes:
        print(f"note: {note}")
    _print_table(outcome.title, outcome.table)
    print(f"{outcome.summary}\n\nPage: {outcome.page}")
    if outcome.failed:
        raise typer.Exit(1)


@app.command(name="measure-kernel")
def measure_kernel(
    scan: Annotated[Path, typer.Argument(metavar="A", help="DICOM folder, NIfTI or NRRD file.")],
    second: Annotated[Path | None, typer.Argument(metavar="[B]", help="The same slices once more; without, a single scan.")] = None,
    out: Annotated[Path, typer.Option(help="YAML file of the kernel; give its path wherever a kernel is named.")] = Path(
        "kernel.yaml"
    ),
    mode: Annotated[
        str | None,
        typer.Option(help="paired: two doses of one acquisition; repeated: two acquisitions; single: one scan, less exact."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the kernel; as in the header if not given.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the kernel to this PNG file.")] = None,
) -> None:
    """Measure a scanner's reconstruction kernel from the noise of its images, for the simulator to use."""
    from finegrain.scan.read import read_scan
    from finegrain.simulate.kernel_fit import as_figure_data, kernel_of_scans, measured_table, save_kernel

    a, b = read_scan(scan), None if second is None else read_scan(second)
    measured = kernel_of_scans(a, b, name=name or str(a.acquisition.get("ConvolutionKernel") or out.stem), mode=mode)
    if plot is not None:
        from finegrain.figures import kernel_figure, save_png

        try:
            save_png(kernel_figure(**as_figure_data(measured)), plot)
        except OSError as error:
            raise ConfigError(f"plot {plot} cannot be written: {error.strerror}; check the folder") from None
    save_kernel(measured.kernel, out)
    _print_table(measured.kernel.name, measured_table(measured))
    print(f"{measured.kernel.origin}\nkernel: {out}")


@app.command()
def evaluate(
    reference: Annotated[
        Path, typer.Option(help="Normal-dose images: a DICOM folder or file, .nii, .nii.gz, .nrrd, or a folder of many of them.")
    ],
    candidate: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="A method and its images (repeatable); the first is the proposed one.")
    ],
    out: Annotated[Path, typer.Option(help="New folder, or that of an earlier evaluation, whose files are replaced.")],
    input_path: Annotated[
        Path | None, typer.Option("--input", help="The low-dose images, measured as a method of their own.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Noise-free images of a simulation.")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="PSNR and SSIM protocol (repeatable); abdomen-40/400, chest--600/1500 and full-range if not given."),
    ] = None,
    band: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Band of the high-frequency measures (0.4 1.5).")
    ] = None,
    band_unit: Annotated[str, typer.Option(help="Of the band: nyquist (fractions of it) or cycles_per_mm.")] = "nyquist",
    proposed: Annotated[str, typer.Option(help="Which candidate is compared with the others; the first if not given.")] = "",
    baseline_name: Annotated[
        list[str] | None, typer.Option(help="Compare with this one (repeatable), e.g. 'low dose'; with all if not given.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the report.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    patients_by: Annotated[
        str,
        typer.Option(help="Whose a series is: header (patient or study), or folder: a sub-folder of the reference is a patient."),
    ] = "header",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out series and slices that a method does not show, however many.")
    ] = False,
    allow_lossy: Annotated[bool, typer.Option("--allow-lossy", help="Take images that were compressed with loss.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Measure anybody's denoised images against the normal dose: tables, tests per patient, report."""
    from finegrain.config import config_of
    from finegrain.evaluate.folders import (
        PATIENTS,
        REPORT,
        RESULTS,
        SLICES,
        EvaluateConfig,
        Sources,
        check_folder,
        compared_metrics,
        evaluate_folders,
        write_results,
    )

    named = [(name.strip(), path) for name, _, path in (text.partition("=") for text in candidate)]
    if not all(name and path for name, path in named):
        raise ConfigError(f"--candidate takes NAME=PATH, got {', '.join(candidate)}")
    said = {
        "title": title,
        "candidates": tuple(name for name, _ in named),
        "proposed": proposed,
        "baselines": tuple(baseline_name or ()),
        "has_input": input_path is not None,
        "has_truth": truth is not None,
        "protocols": tuple(protocol) if protocol else None,
        "band": band,
        "band_unit": band_unit,
        "patients_by": patients_by,
        "allow_partial": allow_partial,
        "allow_lossy": allow_lossy,
    }
    config = config_of(EvaluateConfig, {name: value for name, value in said.items() if value is not None})
    sources = Sources(reference, {name: Path(path).expanduser() for name, path in named}, input_path, truth)
    check_folder(out, json_file=json_file)
    with _progress() as bar:
        task = bar.add_task("starting", total=None)
        found = evaluate_folders(
            config,
            sources,
            scratch=out,
            jobs=jobs,
            progress=_follow(bar, task),
        )
    from finegrain.report import label_of, render_evaluation
    from finegrain.report.evaluation import evaluation_page
    from finegrain.report.words import measure_of, number

    write_results(found, out, json_file=json_file)
    render_evaluation(evaluation_page(found), out / REPORT)
    shown = [
        key
        for key in (*compared_metrics(config), "hf_ratio[fine_texture]", "hu_bias[soft]")
        if key in next(iter(found.measures.values()))
    ]
    rows = [["mean over patients", *config.methods]]
    for key in shown:
        decimals = measure_of(key)[0].decimals
        rows.append([label_of(key), *(number(found.measures[method][key].mean, decimals) for method in config.methods)])
    n_slices = sum(one["n_measured"] for each in found.patients.values() for one in each)
    _print_table(f"{n_slices} slices, {len(found.patients)} patient(s), against the normal dose", rows)
    if not protocol:
        print(f"protocols by default: {', '.join(config.protocols)}")
    for baseline in config.baselines:
        compared = found.comparisons[compared_metrics(config)[0]][baseline]
        print(f"{config.proposed} against {baseline}, {label_of(compared_metrics(config)[0])}: {compared.verdict()}")
    for note in found.notes:
        print(f"note: {note}")
    print(f"\nReport: {out / REPORT}\nNumbers: {out / RESULTS}, {out / SLICES}, {out / PATIENTS}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar with time left on a terminal; nothing when the output is piped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield bar


def _follow(bar: Progress, task: TaskID) -> Callable[[str, int, int], None]:
    """What shows on a bar's line what is being done, how much of it is finished, and how much there is."""
    return lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


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
