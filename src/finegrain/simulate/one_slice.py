"""One slice, simulated by one worker: the slice of a scan gets the noise that it lacks, that of a phantom is drawn and scanned."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.config import SimulateConfig
from finegrain.errors import ConfigError, DataError
from finegrain.simulate.acquire import (
    BODY_HU,
    Scanner,
    SoftTissueSquares,
    needed_margin,
    slice_generator,
    soft_tissue,
    soft_tissue_squares,
)
from finegrain.simulate.dose import BODY_LINE_INTEGRAL, Exposure, measure, missing_noise, starvation_bias, starved_share
from finegrain.simulate.fbp import ReconKernel, reconstruct_hu
from finegrain.simulate.geometry import find_scanner
from finegrain.simulate.phantom import VirtualPatient, cct189_phantom, insert_phantom, line_pair_phantom
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM
from finegrain.simulate.phantom.slabs import chest_slab
from finegrain.simulate.spectrum import Spectrum

FEW_COUNTS = 20.0
"""Photons of a ray from which on the logarithm is good: no starvation bias is computed above."""

TEST_PHANTOM_MM = {"inserts": 200.0, "cct189": 200.0, "line-pairs": 160.0, "slab-female": 350.0, "slab-male": 350.0}
"""Field of view in mm that each test phantom needs, besides water-MM, a disc of so many mm."""

PHANTOMS = (*MIN_FIELD_MM, "water-MM", *TEST_PHANTOM_MM)


@dataclass(frozen=True)
class SliceTask:
    """One slice for one worker.

    Attributes:
        config: with nothing open.
        name: the source, as the manifest names it.
        index: which slice of it.
        anatomy: CT numbers of a scan's slice, shape (y, x), or the seed of the phantom that is to be drawn.
        photons: per ray of this slice at full dose.
        margin: pixels of air that a scan's slices need around them.
    """

    config: SimulateConfig
    name: str
    index: int
    anatomy: NDArray[np.float32] | int
    photons: float
    margin: int = 0

    @property
    def file(self) -> str:
        """Its result in the work folder."""
        return f"{self.name}-{self.index:05d}.npz"


def dose_name(dose_fraction: float) -> str:
    """What the folder or file of a dose is called.

    >>> dose_name(0.25)
    'dose-0.25'
    """
    return f"dose-{dose_fraction:g}"


def stream_seed(seed: int, source: str) -> int:
    """The seed of one source's random streams, below 2⁴⁸: with the run's seed alone, all patients would get the same noise."""
    return int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:6], "big")


def run_task(task: SliceTask, work: Path) -> None:
    """Simulate one slice and keep it in the work folder, whole or not at all."""
    images, facts = _scan_phantom(task) if isinstance(task.anatomy, int) else _insert_noise(task)
    path = work / task.file
    temporary = path.with_name(f".{task.file}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **{"facts": np.array(json.dumps(facts)), **images})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {work}: {error.strerror}; run again to go on, finished slices are kept") from None


def load_image(work: Path, task: SliceTask, name: str) -> NDArray:
    """An image of a finished slice: dose-…, and of a phantom truth, normal and labels. Shape: (y, x)."""
    return _load(work / task.file, name)


def load_facts(work: Path, task: SliceTask) -> dict[str, dict[str, Any]]:
    """What the manifest says of each image of a finished slice, by the image's name."""
    facts: dict[str, dict[str, Any]] = json.loads(str(_load(work / task.file, "facts")))
    return facts


def _load(path: Path, name: str) -> NDArray:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return np.asarray(kept[name])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"the finished slice {path} is damaged; delete this file and run again") from None


def exposure_of(config: SimulateConfig) -> Exposure:
    """The full-dose exposure of a configuration with nothing open."""
    return Exposure(**{field.name: getattr(config, field.name) for field in fields(Exposure)})


@lru_cache(maxsize=2)
def scanner_for(config: SimulateConfig, margin: int) -> Scanner:
    """The scanner of a configuration with nothing open."""
    kernel = ReconKernel(
        str(config.kernel), config.kernel_frequency_per_mm or (), config.kernel_transfer or (), "from the configuration"
    )
    return Scanner(
        size=int(config.size or 0),
        pixel_mm=float(config.pixel_mm or 0),
        kernel=kernel,
        exposure=exposure_of(config),
        margin=margin,
        fan=find_scanner(config.scanner),
        spectrum=None if config.polychromatic_kvp is None else Spectrum(config.polychromatic_kvp),
        device=config.device,
    )


def _insert_noise(task: SliceTask) -> tuple[dict[str, NDArray], dict[str, dict[str, Any]]]:
    """The low doses of a real slice, in whole HU as a scanner stores them, and what is to be said of each."""
    hu, doses = np.asarray(task.anatomy), task.config.dose_fractions or ()
    scanner = scanner_for(task.config, task.margin)
    rays = _Rays.of(scanner, hu, scanner.exposure.at_photons(task.photons))
    noises = np.stack([_draw_noise(missing_noise, rays, task, dose) for dose in doses])
    low_doses = [np.rint(hu + added) for added in scanner.added_hu(noises)]
    tissue = _Tissue(hu, scanner.projector.pixel_mm)
    normal_sd = tissue.squares.noise(hu)
    images, facts = {}, {}
    for dose, low in zip(doses, low_doses, strict=True):
        images[dose_name(dose)] = low
        noise = {"normal_noise_sd_hu": normal_sd, "noise_sd_hu": tissue.squares.noise(low), **tissue.statistics(low - hu)}
        facts[dose_name(dose)] = {"image": "low dose", **rays.facts(dose), **noise}
    return images, facts


def _scan_phantom(task: SliceTask) -> tuple[dict[str, NDArray], dict[str, dict[str, Any]]]:
    """Truth, normal dose, low doses and labels of a phantom slice, and what is to be said of each."""
    hu, labels = _draw(task)
    scanner = scanner_for(task.config, needed_margin(hu))
    scanner.check_inside(hu)
    rays = _Rays.of(scanner, hu, scanner.exposure)
    doses = (1.0, *(task.config.dose_fractions or ()))
    measured = [_draw_noise(measure, rays, task, 1.0).line_integrals]
    for dose in doses[1:]:
        if task.config.noise == "shared":
            measured.append(measured[0] + _draw_noise(missing_noise, rays, task, dose))
        else:
            measured.append(_draw_noise(measure, rays, task, dose).line_integrals)
    truth, *noisy = reconstruct_hu(np.stack([rays.sinogram, *measured]), scanner.projector, kernel=scanner.kernel)
    truth = scanner.without_margin(truth)
    tissue = _Tissue(truth, scanner.projector.pixel_mm)
    images: dict[str, NDArray] = {"truth": truth}
    facts = {"truth": {"image": "truth", **rays.facts(None)}}
    for dose, image in zip(doses, noisy, strict=True):
        name = "normal" if dose == 1 else dose_name(dose)
        images[name] = np.rint(scanner.without_margin(image))
        # The truth is known: without it, fine texture would count as noise.
        sd = {
            "noise_sd_hu": tissue.squares.noise(images[name] - truth),
            "normal_noise_sd_hu": tissue.squares.noise(images["normal"] - truth),
        }
        kind = "normal dose" if dose == 1 else "low dose"
        facts[name] = {"image": kind, **rays.facts(dose), **sd, **tissue.statistics(images[name] - truth)}
    if labels is not None:
        images["labels"], facts["labels"] = labels, {}
    return images, facts


def _draw_noise(draw: Callable[..., Any], rays: _Rays, task: SliceTask, dose: float) -> Any:
    """`measure` or `missing_noise` at one dose, from the random stream of this slice and dose."""
    generator = slice_generator(stream_seed(task.config.seed, task.name), task.index, dose)
    return draw(rays.sinogram, rays.scanner.beam, rays.exposure, dose_fraction=dose, generator=generator)


@dataclass(frozen=True)
class _Rays:
    """A slice as the rays see it."""

    scanner: Scanner
    exposure: Exposure
    hu: NDArray[np.float32]
    sinogram: NDArray[np.float32]
    body_counts: NDArray[np.float32]
    """Expected full-dose photons in each ray through the body, of both half turns. Shape: (cell,)."""

    @classmethod
    def of(cls, scanner: Scanner, hu: NDArray[np.float32], exposure: Exposure) -> _Rays:
        """Project a slice, once for all doses."""
        sinogram = scanner.line_integrals(hu)
        body = sinogram > BODY_LINE_INTEGRAL
        transmission = np.exp(-sinogram[body])
        counts = [(air / scanner.beam.rays_per_cell)[body] * transmission for air in exposure.air_counts(sinogram, scanner.beam)]
        return cls(scanner, exposure, hu, sinogram, np.concatenate(counts))

    def facts(self, dose: float | None) -> dict[str, Any]:
        """What the manifest says of the rays of one image; None is the truth, which has no counts."""
        beam = self.scanner.beam
        facts = {
            "dose_fraction": dose,
            "photons": self.exposure.photons,
            "slice_photons": self.exposure.photons_of_slice(self.sinogram, beam),
            "beam_views": beam.n_views,
            "beam_detector_mm": beam.detector_mm,
            "margin": self.scanner.margin,
        }
        if dose is None or self.body_counts.size == 0:
            return facts
        counts = np.float32(dose) * self.body_counts
        smallest, readout = float(counts.min()), self.exposure.electronic_noise
        bias = self._starvation_bias(dose) if smallest < FEW_COUNTS else 0.0
        return facts | {
            "smallest_count": smallest,
            "starved_share": starved_share(counts, readout),
            "starvation_bias_hu": bias,
        }

    def _starvation_bias(self, dose: float) -> float:
        """Mean over the body, HU."""
        body = self.hu > BODY_HU
        error = self.scanner.added_hu(starvation_bias(self.sinogram, self.scanner.beam, self.exposure, dose_fraction=dose))
        return float(error[body].mean(dtype=np.float64)) if body.any() else 0.0


@dataclass(frozen=True)
class _Tissue:
    """Where noise is told: in the body, and in its soft tissue."""

    hu: NDArray[np.float32]
    pixel_mm: float

    @cached_property
    def soft(self) -> NDArray[np.bool_]:
        """Soft tissue, as for `soft_tissue_noise`. Shape: (y, x)."""
        return soft_tissue(self.hu, pixel_mm=self.pixel_mm)

    @cached_property
    def squares(self) -> SoftTissueSquares:
        """Where the noise of all images of this slice is told."""
        return soft_tissue_squares(self.hu, pixel_mm=self.pixel_mm)

    def statistics(self, added: NDArray[np.float32]) -> dict[str, float | None]:
        """Mean over the body and SD over soft tissue of what was added, HU."""
        body = self.hu > BODY_HU
        return {
            "added_mean_hu": float(added[body].mean(dtype=np.float64)) if body.any() else None,
            "added_noise_sd_hu": float(added[self.soft].std(dtype=np.float64)) if self.soft.any() else None,
        }


def _draw(task: SliceTask) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """CT numbers and labels of a phantom slice. Shape: (y, x) each."""
    config, phantom = task.config, task.config.source.removeprefix("phantom:")
    size, pixel_mm = int(config.size or 0), float(config.pixel_mm or 0)
    if phantom in MIN_FIELD_MM:
        assert isinstance(task.anatomy, int)
        patient = VirtualPatient(seed=task.anatomy, region=phantom)  # type: ignore[arg-type]
        z_mm = float(heights_mm(config)[task.index])
        volume = patient.slices(1, size=size, pixel_mm=pixel_mm, slice_mm=float(config.slice_mm or 0), center_z_mm=z_mm)
        return volume.hu[0], volume.labels[0]
    if phantom.startswith("slab-"):
        sex: Literal["female", "male"] = "female" if phantom == "slab-female" else "male"
        slab = chest_slab(sex, size=size, pixel_mm=pixel_mm)
        return slab.hu[0], slab.labels[0]
    if phantom.startswith("water-"):
        return insert_phantom((), diameter_mm=field_mm(phantom)).image(size, pixel_mm), None
    make = {"inserts": insert_phantom, "cct189": cct189_phantom, "line-pairs": line_pair_phantom}[phantom]
    return make().image(size, pixel_mm), None


def field_mm(phantom: str) -> float:
    """Field of view that a phantom needs. Raises: ConfigError naming the phantoms."""
    if water := re.fullmatch(r"water-([1-9]\d{1,2})", phantom):
        return float(water[1])
    known: dict[str, float] = {**{str(region): mm for region, mm in MIN_FIELD_MM.items()}, **TEST_PHANTOM_MM}
    if phantom not in known:
        raise ConfigError(f"unknown phantom {phantom[:32]!r}; known are {', '.join(PHANTOMS)}")
    return known[phantom]


def heights_mm(config: SimulateConfig) -> NDArray[np.float64]:
    """z of each phantom slice around the middle of the region. Shape: (z,)."""
    n = config.slices or 1
    return np.asarray((np.arange(n) - (n - 1) / 2) * float(config.slice_mm or 0), dtype=np.float64)
