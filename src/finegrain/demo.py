"""The demo: a real scan → its low-dose version → a denoised DICOM series → measures → a report, offline."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finegrain import __version__
from finegrain.denoise import load_denoiser
from finegrain.errors import ConfigError
from finegrain.evaluate.run import evaluate_volume
from finegrain.evaluate.spectra import radial_nps, uniform_patches
from finegrain.evaluate.texture import texture_rois
from finegrain.frequency import Band
from finegrain.report import DemoReport, SliceView, render_demo
from finegrain.sample import sample_folder
from finegrain.scan.dicom import Derivation, read_series, write_derived_series
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import iterate_low_dose, matching_exposure
from finegrain.simulate.dose import check_dose_fraction
from finegrain.simulate.fbp import find_kernel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

PROTOCOLS = ("abdomen-40/400", "chest--600/1500")
MARK = ".finegrain-demo"
"""A folder that holds this file was made by the demo and may be replaced by it."""


@dataclass(frozen=True)
class DemoOutcome:
    """What the command line prints."""

    title: str
    report: Path
    series: Path
    table: list[list[str]]
    next_commands: list[tuple[str, str]]


def run_demo(
    out: Path, *, dose_fraction: float = 0.25, seed: int = 0, json_file: Path | None = None, progress: Progress
) -> DemoOutcome:
    """Run the demo into the folder `out`: `low-dose/` and `denoised/` DICOM series, `report.html`, `results.json`."""
    check_dose_fraction(dose_fraction)
    _prepare(out)
    clock = _Clock()
    band = Band()
    with clock("read the scan"):
        volume = read_series(sample_folder())
        kernel = find_kernel(str(volume.acquisition["ConvolutionKernel"]))
    n = len(volume)
    with clock("simulate the low dose"):
        exposure = matching_exposure(volume, kernel=kernel)
        steps = iterate_low_dose(volume, dose_fraction=dose_fraction, kernel=kernel, exposure=exposure, seed=seed)
        # A scanner stores whole HU; the denoiser must see what it would see in a clinic.
        low_dose = volume.with_hu(np.round(np.stack(list(_counted(steps, "simulating the low dose", n, progress)))))
    denoiser = load_denoiser()
    with clock("denoise"):
        steps = denoiser.iterate(low_dose)
        denoised = low_dose.with_hu(np.stack(list(_counted(steps, "denoising", n, progress))))
    with clock("write DICOM"):
        progress("writing DICOM", 0, 2)
        settings = {
            "dose_fraction": dose_fraction,
            "kernel": kernel.name,
            "photons": round(exposure.photons),
            "seed": seed,
        }
        simulated = Derivation.of_simulation(settings, version=__version__)
        write_derived_series(low_dose, out / "low-dose", derivation=simulated)
        progress("writing DICOM", 1, 2)
        write_derived_series(denoised, out / "denoised", derivation=denoiser.derivation(strength=1.0))
    with clock("measure"):
        progress("measuring", 0, 1)
        measures = evaluate_volume(
            volume, {"low dose": low_dose, "denoised": denoised}, protocols=PROTOCOLS, band=band
        )
        spectra = {
            name: _nps(scan, volume, band)
            for name, scan in {"normal dose": volume, "low dose": low_dose, "denoised": denoised}.items()
        }
    next_commands = [
        (f"finegrain denoise YOUR-CT-FOLDER {out / 'mine'}", "denoise a DICOM series of your own"),
        (f"finegrain demo --dose-fraction 0.1 --out {out.parent / 'demo-10-percent'}", "see how far it goes: a tenth of the dose"),
        ("make study-smoke", "train four networks on equal terms and compare them, about ten minutes"),
    ]
    card = denoiser.card
    assert card is not None
    results = {
        "finegrain": __version__,
        "model": {"name": card.name, "version": card.version, "sha256": card.sha256},
        "simulation": settings,
        "reference": "normal dose",
        "band": {"low": band.low, "high": band.high, "unit": band.unit},
        "slices": n,
        "measures": measures,
        "noise_sd_hu": {name: spectrum.variance**0.5 for name, spectrum in spectra.items()},
        "nps": {
            name: {
                "frequency_per_mm": spectrum.frequency_per_mm.tolist(),
                "power_hu2_mm2": spectrum.power.tolist(),
                "mean_frequency_per_mm": spectrum.mean_frequency,
            }
            for name, spectrum in spectra.items()
        },
        "timings_s": clock.seconds,
    }
    with clock("write the report"):
        progress("writing the report", 0, 1)
        report = out / "report.html"
        render_demo(
            DemoReport(
                title=f"A chest CT at {dose_fraction:.0%} dose, denoised",
                what=f"{n} consecutive slices of a contrast-enhanced chest CT; the dose was reduced by simulation.",
                dose_fraction=dose_fraction,
                slices=[_view(i, volume, low_dose, denoised) for i in range(n)],
                measures=measures,
                nps={name: (spectrum.frequency_per_mm, spectrum.power) for name, spectrum in spectra.items()},
                noise_sd_hu=results["noise_sd_hu"],  # type: ignore[arg-type]
                timings_s=clock.seconds,
                facts=_facts(volume, settings),
                next_commands=next_commands,
                attribution=(sample_folder().parent / "ATTRIBUTION.md").read_text(encoding="utf-8"),
                model_card={key: str(value) for key, value in card.model_dump(mode="json").items()},
            ),
            report,
        )
    for path in (out / "results.json", *([json_file] if json_file else [])):
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return DemoOutcome("Against the normal dose", report, out / "denoised", _table(measures, results), next_commands)


def _prepare(out: Path) -> None:
    """An empty output folder; what an earlier demo left is removed, nothing else ever is."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"{out} exists and was not made by the demo; give another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


class _Clock:
    """Seconds spent in each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - started, 2)


def _counted(items: Iterator[NDArray], what: str, n: int, progress: Progress) -> Iterator[NDArray]:
    """The same items; progress is told of each."""
    progress(what, 0, n)
    for done, item in enumerate(items, start=1):
        progress(what, done, n)
        yield item
