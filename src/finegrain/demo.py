"""The demo: a real scan → its low-dose version → a denoised DICOM series → measures → a report, offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain import __version__
from finegrain.acquisition import Acquisition
from finegrain.denoise import load_denoiser
from finegrain.errors import ConfigError
from finegrain.evaluate.run import REFERENCE, evaluate_volume, spectra_by_patient, spectral_measures, volume_spectra
from finegrain.files import json_safe, write_whole
from finegrain.frequency import Band
from finegrain.networks.card import ONNX, ModelCard
from finegrain.provenance import versions
from finegrain.report import DemoReport, SliceView, render_demo
from finegrain.sample import sample_folder
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import iterate_low_dose, matching_exposure
from finegrain.simulate.dose import check_dose_fraction
from finegrain.simulate.fbp import find_kernel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

PROTOCOLS = ("abdomen-40/400", "chest--600/1500")
TABLE = {
    **{f"psnr_db[{name}]": 2 for name in PROTOCOLS},
    **{f"ssim[{name}]": 4 for name in PROTOCOLS},
    "hf_ratio[fine_texture]": 3,
    "hf_coherence[fine_texture]": 3,
    "texture_index": 3,
    "hu_bias[soft]": 2,
}
"""Measures of the command line's table, with their decimals."""
LOW_DOSE, DENOISED, REPORT, RESULTS = "low-dose", "denoised", "report.html", "results.json"
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
    if dose_fraction == 1:
        raise ConfigError("dose_fraction 1 is the scan itself, and there is nothing to take out; give one below 1, e.g. 0.25")
    _prepare(out)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
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
        acquisition = Acquisition(dose_fraction, kernel.half_per_mm, low_dose.pixel_mm[0])
        chosen: dict[str, Any] = {"texture": denoiser.default_texture, "acquisition": acquisition}
        denoised = denoiser.denoise(low_dose, **chosen, progress=lambda done: progress("denoising", done, n))
    with clock("write DICOM"):
        progress("writing DICOM", 0, 2)
        settings = {
            "dose_fraction": dose_fraction,
            "kernel": kernel.name,
            "photons": round(exposure.photons),
            "seed": seed,
        }
        simulated = Derivation(
            kind="simulated-low-dose",
            model="finegrain-simulate",
            model_version=__version__,
            model_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            parameters=settings,
        )
        write_derived_series(low_dose, out / LOW_DOSE, derivation=simulated)
        progress("writing DICOM", 1, 2)
        write_derived_series(denoised, out / DENOISED, derivation=denoiser.derivation(strength=1.0, **chosen))
    with clock("measure"):
        progress("measuring", 0, 1)
        measures = evaluate_volume(volume, {"low dose": low_dose, "denoised": denoised}, protocols=PROTOCOLS, band=band)
        by_name = spectra_by_patient(volume_spectra(volume, {"low dose": low_dose, "denoised": denoised}, patient="one"))
        spectra = {name: patients["one"] for name, patients in by_name.items()}
        for name, values in measures.items():
            values |= spectral_measures(spectra[name], spectra[REFERENCE])
    program = _program()
    next_commands = [
        (f"{program} denoise YOUR-CT-FOLDER DENOISED-FOLDER", "denoise a DICOM series of your own"),
        (
            f"{program} demo --dose-fraction 0.1 --out {out.parent / f'{out.name}-10-percent'}",
            "see how far it goes: a tenth of the dose",
        ),
        ("make study-smoke", "in a checkout: train four networks on equal terms and compare them, about five minutes"),
    ]
    card = denoiser.card
    assert card is not None
    results: dict[str, Any] = {
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
        report = out / REPORT
        render_demo(
            DemoReport(
                title=f"A chest CT at {dose_fraction:.0%} dose, denoised",
                what=f"{n} consecutive slices of a contrast-enhanced chest CT; the dose was reduced by simulation.",
                dose_fraction=dose_fraction,
                slices=[_view(i, volume, low_dose, denoised) for i in range(n)],
                measures=measures,
                nps={name: (spectrum.frequency_per_mm, spectrum.power) for name, spectrum in spectra.items()},
                noise_sd_hu=results["noise_sd_hu"],
                timings_s=clock.seconds,
                facts=_facts(volume, settings),
                next_commands=next_commands,
                attribution=(sample_folder().parent / "ATTRIBUTION.md").read_text(encoding="utf-8"),
                model_card=_model_card(card),
            ),
            report,
        )
    for path in (out / RESULTS, *([json_file] if json_file else [])):
        write_whole(path, json.dumps(json_safe(results), indent=1) + "\n")
    return DemoOutcome("Against the normal dose", report, out / DENOISED, _table(measures, results["noise_sd_hu"]), next_commands)


def _prepare(out: Path) -> None:
    """A folder to write to: new, empty, or an earlier demo's, of which the demo's own parts are removed and nothing else."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"{out} exists and was not made by the demo; give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for name in (LOW_DOSE, DENOISED):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (REPORT, RESULTS):
        (out / name).unlink(missing_ok=True)


def _program() -> str:
    """What to type for `finegrain` here: its path, unless it is on the search path."""
    if shutil.which("finegrain"):
        return "finegrain"
    program = Path(sys.argv[0])
    if program.name != "finegrain":
        return "finegrain"
    return os.path.relpath(program) if program.is_absolute() else str(program)


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


def _view(index: int, normal_dose: CTVolume, low_dose: CTVolume, denoised: CTVolume) -> SliceView:
    return SliceView(
        name=f"z = {normal_dose.positions_mm[index, 2]:.1f} mm",
        pixel_mm=normal_dose.pixel_mm[0],
        normal_dose=normal_dose.hu[index],
        low_dose=low_dose.hu[index],
        denoised=denoised.hu[index],
    )


def _facts(volume: CTVolume, settings: dict[str, Any]) -> dict[str, str]:
    told = {
        "scanner": ("Manufacturer", "ManufacturerModelName"),
        "kernel of the scan": ("ConvolutionKernel",),
        "tube voltage [kV]": ("KVP",),
        "exposure [mAs]": ("Exposure",),
        "slice thickness [mm]": ("SliceThickness",),
    }
    facts = {
        name: " ".join(str(volume.acquisition[keyword]) for keyword in keywords if keyword in volume.acquisition)
        for name, keywords in told.items()
    }
    facts["pixel [mm]"] = f"{volume.pixel_mm[0]:.3f}"
    facts |= {f"simulated {name.replace('_', ' ')}": str(value) for name, value in settings.items()}
    return facts | {f"version of {name}": version for name, version in versions().items()}


def _model_card(card: ModelCard) -> dict[str, str]:
    return {
        "model": f"{card.name} v{card.version}, {card.parameters:,} parameters",
        "trained on": card.training_data,
        "doses": ", ".join(f"{dose:.0%}" for dose in card.dose_fractions),
        "kernels": ", ".join(card.kernels),
        "intended use": card.intended_use,
        "sha256": card.sha256[ONNX],
    }


def _table(measures: dict[str, dict[str, float]], noise_sd_hu: dict[str, float]) -> list[list[str]]:
    """The table of the command line."""
    table = [["measure", *measures]]
    for key, decimals in TABLE.items():
        table.append([key, *(f"{values[key]:.{decimals}f}" for values in measures.values())])
    table.append(["noise SD, soft tissue [HU]", *(f"{noise_sd_hu[name]:.1f}" for name in measures)])
    return table
