"""The stage's main path: a scan or a phantom → the same at lower doses on disk, one manifest row for each image.

Slices are spread over processes; what is done lies in OUT/.work until the end, so that a run that was stopped goes on. Each slice
at each dose has a random stream of its own: neither the number of processes, nor a stop, nor the other doses change a bit.
"""

from __future__ import annotations

import datetime
import glob
import hashlib
import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain import __version__
from finegrain.config import SimulateConfig, config_of, load_config
from finegrain.errors import ConfigError, DataError, GeometryError
from finegrain.parallel import in_processes
from finegrain.provenance import versions, write_provenance
from finegrain.scan.derived import Derivation, check_output_folder, in_ascii, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.headers import EQUIPMENT_MANUFACTURER
from finegrain.scan.new_series import write_new_series
from finegrain.scan.nifti import read_nifti, write_nifti
from finegrain.scan.privacy import shown
from finegrain.scan.read import read_scan
from finegrain.scan.series import kind_of
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import matching_exposure, photons_along_z, scanner_of, without_padding
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import ReconKernel, find_kernel, kernel_of_header
from finegrain.simulate.geometry import find_scanner
from finegrain.simulate.manifest import MANIFEST, SimulatedImage, image_sha256, read_manifest, write_manifest
from finegrain.simulate.one_slice import (
    SliceTask,
    dose_name,
    exposure_of,
    field_mm,
    heights_mm,
    load_facts,
    load_image,
    run_task,
    scanner_for,
    stream_seed,
)
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM

WORK = ".work"

DARKEST_HU = -200.0
"""A scan without any pixel below is not in HU, or shows no air around the body. Ours."""

LARGEST_TILT_DEG = 45.0
"""No gantry tilts its slices farther than this from the axial plane. Ours."""

LIMITS = {"photons": (1.0, 1e12), "electronic_noise": (0.0, 1e4), "adaptive_below": (0.0, 1e6), "slice_mm": (0.01, 100.0)}
"""What numbers a clinical scanner could have; far beyond, single precision overflows. Ours."""

FIELDS_MM = (20.0, 1000.0)
"""What a slice of a clinical scanner is wide. Ours."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are, and how many there are; 0 where that is not known."""

LONGEST_KERNEL = 16
"""Characters of ConvolutionKernel, as of any short string (PS3.5 6.2)."""

PHANTOM_MAS = 200.0
"""Normal dose of a phantom of which nothing is said."""

TABLE_CAPTION = (
    "noise SD: fine noise in the quieter squares of soft tissue, with what anatomy they hold, normal → low dose, median of the "
    "slices; starved: expected share of rays without count; shift: mean of what was added in the body; both of the worst slice"
)

COMPUTING = ("finegrain", "numpy", "scipy", "finufft")
"""Packages that bits depend on: a run goes on with the versions that it was begun with."""


@dataclass(frozen=True)
class SimulationOutcome:
    """What the command line prints."""

    notes: tuple[str, ...]
    title: str
    table: list[list[str]]
    caption: str


def run_simulation(
    source: str | Path,
    out: Path,
    config: SimulateConfig,
    *,
    series_uid: str | None = None,
    allow_lossy: bool = False,
    workers: int = 2,
    progress: Progress = lambda what, done, total: None,
) -> SimulationOutcome:
    """Simulate low doses of a scan or a phantom into the folder `out`; a run that was stopped goes on, a finished one is read.

    Args:
        source: a DICOM folder or file, a NIfTI or NRRD file, or `phantom:NAME`.
        out: new, empty, or the folder of an earlier run with the same parameters.
        config: what is wanted; what it leaves open, the scan or the phantom decides.
        series_uid: which SeriesInstanceUID to take when there are several.
        allow_lossy: take images that were once compressed with loss.
        workers: processes.

    Raises: FinegrainError, in one line; nothing is left behind by parameters or a scan that cannot be simulated.
    """
    out = Path(out)
    if workers < 1:
        raise ConfigError(f"expected at least one worker process, got {workers}")
    _refuse_foreign(out)
    case: _ScanCase | _PhantomCase
    if str(source).startswith("phantom:"):
        if series_uid or allow_lossy:
            raise ConfigError("--series and --allow-lossy are for scans; a phantom has no header")
        case = _PhantomCase.of(str(source).removeprefix("phantom:"), config)
    else:
        progress("reading", 0, 0)
        case = _ScanCase.of(Path(source), config, out, series_uid=series_uid, allow_lossy=allow_lossy, progress=progress)
    is_new = _claim(out, case.config)
    if (out / MANIFEST).is_file():
        shutil.rmtree(out / WORK, ignore_errors=True)
        return _outcome(read_manifest(out), case.notes, "already simulated")
    try:
        speed = _spread(case, out / WORK, workers, progress)
    except (ConfigError, GeometryError):
        if is_new:
            shutil.rmtree(out)
        raise
    images = case.write(out, progress)
    write_manifest(out, images)
    shutil.rmtree(out / WORK)
    return _outcome(images, case.notes, speed)


# --- what is simulated ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ScanCase:
    """A real scan; `config` has nothing open."""

    config: SimulateConfig
    volume: CTVolume
    kind: str
    margin: int

    @classmethod
    def of(
        cls, path: Path, config: SimulateConfig, out: Path, *, series_uid: str | None, allow_lossy: bool, progress: Progress
    ) -> _ScanCase:
        """Read the scan and settle what the configuration leaves open."""
        _refuse_options(
            config,
            ("patients", "first_patient", "slices", "size", "pixel_mm", "polychromatic_kvp", "modulation_z", "format"),
            "phantoms",
        )
        if config.noise == "independent":
            raise ConfigError("--noise independent is for phantoms: the low dose of a real scan always holds the scan's own noise")
        volume, kind = _read(path, series_uid=series_uid, allow_lossy=allow_lossy)
        if kind == "dicom":
            check_output_folder(out / WORK / "any", volume)
        _refuse_no_scan(volume)
        _refuse_absurd(config)  # noise is matched with what is given
        config, margin = _settle_scan(config, volume, progress)
        _refuse_absurd(config)
        scanner_for(config, margin)  # a device or geometry that cannot be is told before anything is written
        return cls(config, volume, kind, margin)

    @property
    def name(self) -> str:
        """The source in the manifest."""
        return f"scan-{self.config.source_hash}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the result should know."""
        source, config = self.volume.source, self.config
        notes = [] if source is None else [*source.notes, *(f"left out: {what}" for what in source.skipped)]
        by_mas = photons_of_header(self.volume, config.slice_mm or self.volume.thickness_mm)
        if by_mas and config.photons and not 0.8 < config.photons / by_mas < 1.25:
            notes.append(
                f"{config.photons:.3g} photons per ray, where mAs and kVp of the header would give {by_mas:.3g} on a Definition "
                f"AS+: noise differs by {100 * abs(math.sqrt(by_mas / config.photons) - 1):.0f} %; --photons-from mas takes these"
            )
        return tuple(notes)

    def __len__(self) -> int:
        return len(self.volume)

    def tasks(self) -> Iterator[SliceTask]:
        """One task for each slice; pixels are copied when the task is taken."""
        photons = photons_along_z(self.volume, exposure_of(self.config))
        for index in range(len(self)):
            yield replace(self._task(index), anatomy=without_padding(self.volume, index), photons=float(photons[index]))

    def _task(self, index: int) -> SliceTask:
        return SliceTask(self.config, self.name, index, anatomy=0, photons=0.0, margin=self.margin)

    def write(self, out: Path, progress: Progress) -> list[SimulatedImage]:
        """Write a series or a file for each dose; what is there already was written whole."""
        images = []
        doses = self.config.dose_fractions or ()
        for done, dose in enumerate(doses):
            progress("writing", done, len(doses))
            name = dose_name(dose)
            stored, files = self._write_dose(out, name, dose)
            for index, (hu, file) in enumerate(zip(stored.hu, files, strict=True)):
                facts = load_facts(out / WORK, self._task(index))[name]
                z_mm = float(self.volume.positions_mm[index, 2])
                place = {"source_kind": self.kind, "slice_index": index, "z_mm": z_mm, "file": file.relative_to(out).as_posix()}
                images.append(_row(self.config, self.name, {**facts, **place}, hu))
        return images

    def _write_dose(self, out: Path, name: str, dose: float) -> tuple[CTVolume, list[Path]]:
        path = out / (name if self.kind == "dicom" else f"{name}.nii.gz")
        if not path.exists():
            hu = [load_image(out / WORK, self._task(index), name) for index in range(len(self))]
            low = self.volume.with_hu(np.stack(hu))
            if self.kind == "dicom":
                write_derived_series(low, path, derivation=_derivation(self.config, dose))
            else:
                write_nifti(low, path)
        return _stored(path, len(self))


@dataclass(frozen=True)
class _PhantomCase:
    """Phantoms; `config` has nothing open."""

    config: SimulateConfig
    phantom: str
    seeds: tuple[int, ...]

    notes = ()

    @classmethod
    def of(cls, phantom: str, config: SimulateConfig) -> _PhantomCase:
        """Settle what the configuration leaves open."""
        config = _settle_phantom(phantom, config)
        _refuse_absurd(config)
        scanner_for(config, 0)
        first, n = config.first_patient or 0, config.patients or 1
        return cls(config, phantom, tuple(range(first, first + n)))

    def __len__(self) -> int:
        return len(self.seeds) * self._n_slices

    @property
    def _n_slices(self) -> int:
        return self.config.slices or 1

    def tasks(self) -> Iterator[SliceTask]:
        """One task for each slice of each patient."""
        for seed in self.seeds:
            for index in range(self._n_slices):
                yield self._task(seed, index)

    def _task(self, seed: int, index: int) -> SliceTask:
        return SliceTask(self.config, self._name(seed), index, seed, float(self.config.photons or 0))

    def _name(self, seed: int) -> str:
        return f"{self.phantom}-{seed:04d}" if self.phantom in MIN_FIELD_MM else self.phantom

    def write(self, out: Path, progress: Progress) -> list[SimulatedImage]:
        """Write a folder for each patient: truth, normal dose, low doses, labels."""
        images = []
        z_mm = heights_mm(self.config)
        for done, seed in enumerate(self.seeds):
            progress("writing", done, len(self.seeds))
            tasks = [self._task(seed, index) for index in range(self._n_slices)]
            facts = [load_facts(out / WORK, task) for task in tasks]
            for number, name in enumerate(facts[0], start=1):
                is_series = self.config.format == "dicom" and name != "labels"
                path = out / self._name(seed) / (name if is_series else f"{name}.nii.gz")
                if not path.exists():
                    volume = self._volume(np.stack([load_image(out / WORK, task, name) for task in tasks]))
                    if is_series:
                        self._write_series(volume, path, number, [of_slice[name] for of_slice in facts])
                    else:
                        write_nifti(volume, path)
                if name == "labels":
                    continue
                stored, files = _stored(path, self._n_slices)
                for index, (hu, file) in enumerate(zip(stored.hu, files, strict=True)):
                    place: dict[str, Any] = {"source_kind": "phantom", "file": file.relative_to(out).as_posix()}
                    place |= {"slice_index": index, "z_mm": float(z_mm[index])}
                    images.append(_row(self.config, self._name(seed), {**facts[index][name], **place}, hu))
        return images

    def _write_series(self, volume: CTVolume, path: Path, number: int, facts: list[dict[str, Any]]) -> None:
        """Write an image as the DICOM series of that number in the study of its phantom; its mAs are those of its dose."""
        config, name, dose = self.config, path.parent.name, facts[0]["dose_fraction"]
        kvp = config.polychromatic_kvp or 120
        photons_of_1_mas = Exposure.from_mas(1.0, slice_mm=float(config.slice_mm or 0), kvp=kvp).photons
        study = _derivation(config, None)
        # All series of a study have its date, also those that are written after a stop.
        begun = datetime.datetime.fromtimestamp((path.parent.parent / "config.yaml").stat().st_mtime).astimezone()
        header = {
            "StudyInstanceUID": study.uid_for(name),
            "FrameOfReferenceUID": study.uid_for(f"{name} frame"),
            "StudyDate": begun.strftime("%Y%m%d"),
            "StudyTime": begun.strftime("%H%M%S"),
            "PatientName": f"PHANTOM^{name.upper()}",
            "PatientID": f"PHANTOM-{name.upper()}",
            "QualityControlImage": "YES",
            "SeriesNumber": number,
            "SeriesDescription": f"{name}, {'noise-free truth' if dose is None else f'dose {dose:g}'}, simulated",
            "Manufacturer": EQUIPMENT_MANUFACTURER,
            "ManufacturerModelName": "simulated phantom",
            "SoftwareVersions": __version__,
            "KVP": kvp,
            "ConvolutionKernel": in_ascii(str(config.kernel))[:LONGEST_KERNEL],
        }
        mas = [] if dose is None else [dose * of_slice["slice_photons"] / photons_of_1_mas for of_slice in facts]
        each = [{"Exposure": round(one), "ExposureInuAs": round(1000 * one)} for one in mas]
        write_new_series(volume, path, derivation=_derivation(config, dose), header=header, of_each_slice=each)

    def _volume(self, values: NDArray) -> CTVolume:
        """An axial volume with the isocentre at the origin."""
        pixel_mm, slice_mm, size = float(self.config.pixel_mm or 0), float(self.config.slice_mm or 0), values.shape[-1]
        volume = CTVolume.from_array(values, pixel_mm=pixel_mm, slice_mm=slice_mm)
        corner = -(size // 2) * pixel_mm
        heights = heights_mm(self.config)
        return replace(volume, positions_mm=np.stack([np.full_like(heights, corner)] * 2 + [heights], axis=1))


def _stored(path: Path, n_slices: int) -> tuple[CTVolume, list[Path]]:
    """What was written, read back, and the file of each slice."""
    if not path.is_dir():
        return read_nifti(path), [path] * n_slices
    stored, files = read_series(path, allow_lossy=True), sorted(path.glob("*.dcm"))
    if not len(stored) == len(files) == n_slices:
        raise DataError(
            f"{path} holds {len(files)} files of which {len(stored)} are its slices, expected {n_slices}:"
            " it was changed; delete it and run again"
        )
    return stored, files


def _read(path: Path, *, series_uid: str | None, allow_lossy: bool) -> tuple[CTVolume, str]:
    """The scan, and its format."""
    kind = kind_of(path)
    if kind == "dicom" or not path.is_file():
        return read_series(path, series_uid=series_uid, allow_lossy=allow_lossy), "dicom"
    if series_uid or allow_lossy:
        raise ConfigError(f"--series and --allow-lossy are for DICOM, got a {kind.upper()} file")
    return read_scan(path), kind


def _refuse_options(config: SimulateConfig, names: tuple[str, ...], whose: str) -> None:
    for name in names:
        if getattr(config, name) is not None:
            option = {"polychromatic_kvp": "polychromatic"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{option} is for {whose}, got it with another source; leave it out")


def _refuse_no_scan(volume: CTVolume) -> None:
    """Raises: GeometryError for values that are no HU, and for slices that no fan of rays lies in."""
    if bad := int(np.count_nonzero(~np.isfinite(volume.hu) & ~volume.padding)):
        raise GeometryError(f"{bad} pixels of the scan are NaN or infinite, expected HU; fill them with air, −1000")
    if (darkest := float(volume.hu.min())) > DARKEST_HU:
        raise GeometryError(
            f"the darkest pixel of the scan is {darkest:.4g}, expected HU with air of about −1000 around the body;"
            " convert the values to HU, or give slices that are not cropped"
        )
    across = np.cross(volume.orientation[:3], volume.orientation[3:])
    if abs(across[2]) < math.cos(math.radians(LARGEST_TILT_DEG)):
        raise GeometryError(
            "the slices are coronal, sagittal or steeply oblique, expected axial ones: rays lie in these; give those"
        )
    field = tuple(n * mm for n, mm in zip(volume.hu.shape[1:], volume.pixel_mm, strict=True))
    if not (min(field) >= FIELDS_MM[0] and max(field) <= FIELDS_MM[1]):
        raise GeometryError(
            f"the slices are {field[0]:.4g} × {field[1]:.4g} mm, expected {FIELDS_MM[0]:g} to {FIELDS_MM[1]:g} mm;"
            " check the pixel size and its unit"
        )


def _kernel_of(name: str | None, volume: CTVolume) -> ReconKernel:
    """The kernel that was asked for, or that of the header."""
    if name is not None:
        return find_kernel(name)
    return kernel_of_header(str(volume.acquisition.get("ConvolutionKernel", "")))


def _doses_of_scan(config: SimulateConfig, volume: CTVolume) -> tuple[float, ...]:
    if config.mas is None:
        return config.dose_fractions or (0.25,)
    if config.dose_fractions:
        raise ConfigError("--mas and --dose-fraction both give the dose; choose one")
    own = _header_number(volume, "Exposure")
    if own is None:
        raise ConfigError("the scan's header has no Exposure (mAs), so --mas has nothing to compare with; use --dose-fraction")
    if max(config.mas) >= own:
        raise ConfigError(f"the scan was made with {own:g} mAs, expected a target below it, got {max(config.mas):g} mAs")
    return tuple(mas / own for mas in config.mas)


def _header_number(volume: CTVolume, keyword: str) -> float | None:
    """A positive number of the header, the median of its slices; None if it tells none."""
    value = volume.acquisition.get(keyword)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def photons_of_header(volume: CTVolume, slice_mm: float) -> float | None:
    """Photons per ray by mAs and kVp of the header (`Exposure.from_mas`); None if it does not tell both."""
    mas, kvp = _header_number(volume, "Exposure"), _header_number(volume, "KVP")
    return None if mas is None or kvp is None else Exposure.from_mas(mas, slice_mm=slice_mm, kvp=kvp).photons


def _settle_scan(config: SimulateConfig, volume: CTVolume, progress: Progress) -> tuple[SimulateConfig, int]:
    """The configuration with nothing open, and the margin of air that the scan needs."""
    kernel, fan, doses = _kernel_of(config.kernel, volume), find_scanner(config.scanner), _doses_of_scan(config, volume)
    slice_mm = config.slice_mm or volume.thickness_mm
    exposure = Exposure(**{**scanner_settings(slice_mm), **_given(config)})
    scanner = scanner_of(volume, kernel=kernel, exposure=exposure, fan=fan)
    if config.photons is None and config.photons_from == "mas":
        photons = photons_of_header(volume, slice_mm)
        if photons is None:
            raise ConfigError("the scan's header has no Exposure (mAs) or no KVP; use --photons, or --photons-from image")
    elif config.photons is None:
        progress("matching the exposure", 0, 0)
        photons = matching_exposure(volume, kernel=kernel, exposure=exposure, fan=fan).photons
    else:
        photons = None
    if photons is not None:
        # Four digits: it is known to some per cent, and the last bit of another machine must not make another run of it.
        exposure = exposure.at_photons(float(f"{photons:.4g}"))
    settled = {
        **_settled(kernel, exposure),
        "source": "scan",
        "source_hash": image_sha256(volume.hu)[:16],
        "dose_fractions": doses,
        "noise": "shared",
        "slice_mm": slice_mm,
        "size": volume.hu.shape[-1],
        "pixel_mm": float(volume.pixel_mm[0]),
    }
    return config_of(SimulateConfig, {**config.model_dump(), **settled}), scanner.margin


def _settle_phantom(phantom: str, config: SimulateConfig) -> SimulateConfig:
    """The configuration with nothing open."""
    needed, is_patient = field_mm(phantom), phantom in MIN_FIELD_MM
    if not is_patient:
        _refuse_options(config, ("patients", "first_patient"), "virtual patients")
    if config.mas and len(config.mas) > 1:
        raise ConfigError(f"the mAs of a phantom are its normal dose: expected one, got {len(config.mas)}; use --dose-fraction")
    if config.mas and config.photons:
        raise ConfigError("--mas and --photons both give the normal dose of a phantom; choose one")
    size, slice_mm = config.size or 512, config.slice_mm or 3.0
    # The smallest step of 0.05 mm that holds the body; a test phantom is not made finer than a clinical image.
    fitting_mm = max(math.ceil(20 * 1.02 * needed / size - 1e-9) / 20, 0.0 if is_patient else 0.7)
    pixel_mm = config.pixel_mm or fitting_mm
    if size * pixel_mm < needed:
        raise GeometryError(
            f"{size} pixels of {pixel_mm:g} mm = {size * pixel_mm:.0f} mm cut the body, which needs a field of {needed:.0f} mm;"
            " take a larger --size or --pixel-mm"
        )
    mas = config.mas[0] if config.mas else PHANTOM_MAS
    exposure = Exposure.from_mas(mas, slice_mm=slice_mm, kvp=config.polychromatic_kvp or 120)
    settled = {
        **_settled(find_kernel(config.kernel or "B30f"), Exposure(**{**exposure.parameters(), **_given(config)})),
        "source": f"phantom:{phantom}",
        "dose_fractions": config.dose_fractions or (0.25,),
        "noise": config.noise or "independent",
        "format": config.format or "nifti",
        "slices": config.slices or 1,
        "slice_mm": slice_mm,
        "size": size,
        "pixel_mm": pixel_mm,
    }
    if is_patient:
        settled |= {"patients": config.patients or 1, "first_patient": config.first_patient or 0}
    return config_of(SimulateConfig, {**config.model_dump(), **settled})


def _given(config: SimulateConfig) -> dict[str, Any]:
    """The values of an exposure that a configuration gives."""
    values = {field.name: getattr(config, field.name) for field in fields(Exposure)}
    return {name: value for name, value in values.items() if value is not None}


def _refuse_absurd(config: SimulateConfig) -> None:
    """Raises: ConfigError for a number that no scanner has, among those that are given."""
    for name, (low, high) in LIMITS.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{name} of {value:g}, expected {low:g} to {high:g}; correct the parameters")


def _settled(kernel: ReconKernel, exposure: Exposure) -> dict[str, Any]:
    """Kernel and exposure, as a configuration holds them."""
    return {
        **exposure.parameters(),
        "kernel": kernel.name,
        "kernel_frequency_per_mm": tuple(map(float, kernel.frequency_per_mm)),
        "kernel_transfer": tuple(map(float, kernel.transfer)),
    }


# --- the workers ---------------------------------------------------------------------------------------------------------


def _spread(case: _ScanCase | _PhantomCase, work: Path, workers: int, progress: Progress) -> str:
    """Simulate the slices that are not in the work folder yet; gives the speed in words."""
    work.mkdir(exist_ok=True)
    total, begun = len(case), time.monotonic()
    waiting = (task for task in case.tasks() if not (work / task.file).is_file())
    done = at_start = sum(1 for path in work.glob("*.npz"))
    progress("simulating", done, total)
    for _ in in_processes(partial(run_task, work=work), waiting, workers=workers):
        done += 1
        progress("simulating", done, total)
    if done == at_start:
        return "no slice was left to simulate"
    each = (time.monotonic() - begun) / (done - at_start)
    return f"{each:.2f} s per slice with {workers} worker{'s' if workers > 1 else ''}"


# --- the output folder ---------------------------------------------------------------------------------------------------


def _refuse_foreign(out: Path) -> None:
    """Raises: DataError for a folder with other things in it."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected a new folder")
    if out.is_dir() and any(out.iterdir()) and not _is_simulation(out):
        raise DataError(f"{out} is not empty and was not made by finegrain simulate; give a new folder: nothing is overwritten")


def _is_simulation(out: Path) -> bool:
    try:
        load_config(out / "config.yaml", SimulateConfig)
    except ConfigError:
        return False
    return (out / "provenance.json").is_file()


def _claim(out: Path, config: SimulateConfig) -> bool:
    """Make the output folder, whole or not at all, or go on in that of the same run. Gives whether it is new."""
    if out.is_dir() and any(out.iterdir()):
        _refuse_another_run(out, config)
        for leftover in out.glob("**/.*"):  # of a killed run; what has its right name is whole
            if leftover.name != WORK and leftover.exists():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return False
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        try:
            write_provenance(partial, config)
            if out.is_dir():
                out.rmdir()
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {out}: {error.strerror}") from None
    return True


def _refuse_another_run(out: Path, config: SimulateConfig) -> None:
    """Raises: DataError naming the first parameter that differs, or the package whose version does."""
    before, now = load_config(out / "config.yaml", SimulateConfig).model_dump(), config.model_dump()
    for name, value in now.items():
        if before[name] != value:
            raise DataError(
                f"{out} holds a simulation with other parameters: {name} was {shown(before[name])}, now {shown(value)};"
                " give another folder"
            )
    try:
        old, new = dict(json.loads((out / "provenance.json").read_text(encoding="utf-8"))["versions"]), versions()
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f"{out / 'provenance.json'} is damaged; start in another folder") from None
    for name in COMPUTING:
        if old.get(name) != new.get(name) and not (out / MANIFEST).is_file():
            raise DataError(f"{out} was begun with {name} {old.get(name)}, now it is {new.get(name)}; start in another folder")


def _derivation(config: SimulateConfig, dose: float | None) -> Derivation:
    """What the headers of a simulated series say; a dose of None is that of all doses together, or of the truth."""
    settings = config.model_dump(mode="json", exclude={"dose_fractions", "mas", "format"}, exclude_none=True)
    told = ("kernel", "photons", "electronic_noise", "bowtie", "modulation", "crosstalk", "adaptive_below", "scanner", "seed")
    return Derivation(
        kind="simulated-low-dose" if config.source == "scan" else "simulated-phantom",
        model="finegrain-simulate",
        model_version=__version__,
        model_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        parameters={"dose_fraction": dose, **{name: settings[name] for name in told}},
        series_label="" if dose is None else f"LOW-DOSE SIM {100 * dose:.3g}% finegrain {__version__}",
        series_number_offset=8000 + round(100 * (dose or 0)),
    )


def _row(config: SimulateConfig, source: str, facts: dict[str, Any], hu: NDArray[np.float32]) -> SimulatedImage:
    """A row of the manifest; `hu` as read back from the file."""
    names = {field.name for field in fields(SimulatedImage)}
    values = dict.fromkeys(names) | {name: value for name, value in config.model_dump().items() if name in names}
    kernel = json.dumps([config.kernel, config.kernel_frequency_per_mm, config.kernel_transfer])
    made = {
        "finegrain": __version__,
        "source": source,
        "stream_seed": stream_seed(config.seed, source),
        "kernel_sha256": hashlib.sha256(kernel.encode()).hexdigest()[:16],
        "sha256": image_sha256(hu),
    }
    return SimulatedImage(**{**values, **facts, **made})


def _outcome(images: list[SimulatedImage], notes: tuple[str, ...], speed: str) -> SimulationOutcome:
    table = [["dose", "images", "noise SD, HU", "ratio", "√(1/dose)", "starved", "shift, HU"]]
    for dose in sorted(
        {image.dose_fraction for image in images if image.image == "low dose" and image.dose_fraction}, reverse=True
    ):
        these = [image for image in images if image.dose_fraction == dose]
        full, low = _median(these, "normal_noise_sd_hu"), _median(these, "noise_sd_hu")
        starved = max(image.starved_share or 0.0 for image in these)
        shift = max((image.added_mean_hu or 0.0 for image in these), key=abs)
        row = [f"{dose:g}", str(len(these)), f"{full:.1f} → {low:.1f}", f"{low / full:.2f}", f"{math.sqrt(1 / dose):.2f}"]
        table.append([*row, f"{100 * starved:.2g} %" if starved > 1e-6 else "none", f"{shift:.1f}"])
    first, n_slices = images[0], len({(image.source, image.slice_index) for image in images})
    photons = _median(images, "slice_photons")
    title = f"{n_slices} slice{'s' if n_slices > 1 else ''}, kernel {first.kernel}, {photons:.3g} photons per ray; {speed}"
    return SimulationOutcome(notes, title, table, TABLE_CAPTION)


def _median(images: list[SimulatedImage], name: str) -> float:
    """NaN where no image tells."""
    values = [getattr(image, name) for image in images]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.median(known)) if known else math.nan
