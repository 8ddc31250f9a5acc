"""LoDoPaB-CT: chest slices of LIDC-IDRI and the sinograms of a scan of them with few photons, in HDF5.

The ground truth is the normal dose; the low dose is reconstructed from the sinogram here. What was projected is the ground truth
with the noise that it had, so the low dose holds that noise and more: noise "inserted". How many photons the ground truth was
worth is not known, hence no dose fraction.

Source: Leuschner et al. 2021, Sci Data 8:109, doi 10.1038/s41597-021-00893-z; the units and the geometry are those of the authors'
scripts (github.com/jleuschn/lodopab_tech_ref, github.com/jleuschn/dival).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.pairs.collections.paired import Noise, PairedScan
from finegrain.pairs.collections.pseudonym import SAFE_LABEL
from finegrain.scan.volume import CTVolume
from finegrain.simulate.fbp import filtered_backprojection, hann_kernel
from finegrain.simulate.geometry import ParallelBeam
from finegrain.simulate.projector import Projector

MU_WATER_PER_M, MU_AIR_PER_M = 20.0, 0.02
"""What 0 and −1000 HU stand for (Leuschner et al. 2021, and MU_WATER, MU_AIR of dival)."""
MU_MAX_PER_M = 3071 * (MU_WATER_PER_M - MU_AIR_PER_M) / 1000 + MU_WATER_PER_M
"""Attenuation at 3071 HU, 81.35858 1/m: the unit of images and sinograms."""

SIZE, FIELD_MM = 362, 260.0
"""Pixels and width of the square images."""
PIXEL_MM = FIELD_MM / SIZE

N_VIEWS, N_DETECTOR = 1000, 513
DETECTOR_MM = FIELD_MM * 2**0.5 / N_DETECTOR
"""The detector spans the diagonal of the field, as `parallel_beam_geometry` of ODL lays it."""

PER_FILE = 128
"""Slices in each file but the last of a part."""

SLICE_MM = 1.0
"""Distance given to the slices; the collection does not tell it, and their order is random."""

_AIR_CELLS = 4
"""Cells of air added at either end of the detector: the grid of `Projector` is a circle around the square, with some margin."""
_WHOLE = 514
"""Pixels of the square whose inscribed circle holds every pixel of the image; even, as the image is."""

RECON_KERNEL = hann_kernel("LoDoPaB Hann", cutoff_per_mm=0.5 / DETECTOR_MM)
"""A Hann window up to the Nyquist frequency of the detector. Ours: the ground truth comes from kernels of many scanners, none of
which the collection tells."""

_FILE = re.compile(r"(ground_truth|observation)_(train|validation|test)_(\d{3})\.hdf5")


@dataclass(frozen=True)
class LodopabSeries:
    """The slices of one patient at one dose, read when asked for.

    Attributes:
        files: ground truth or observation of a part, by their number.
        rows: of each slice, (number of its file, row in it).
        acquisition, positions_mm …: as in `scan.series.ScanSeries`.
    """

    files: dict[int, Path] = field(repr=False)
    rows: tuple[tuple[int, int], ...] = field(repr=False)
    fingerprint: str
    notes: tuple[str, ...] = ()
    patient_id: str = ""
    orientation: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    shape: ClassVar[tuple[int, int]] = (SIZE, SIZE)
    pixel_mm: ClassVar[tuple[float, float]] = (PIXEL_MM, PIXEL_MM)
    slice_mm: ClassVar[float] = SLICE_MM

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def acquisition(self) -> dict[str, Any]:
        """Nothing: the collection tells neither scanner nor kernel."""
        return {}

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """The slices one behind the other, for want of their true places. Shape: (z, 3)."""
        corner = -(SIZE - 1) / 2 * PIXEL_MM
        positions = np.full((len(self), 3), corner)
        positions[:, 2] = np.arange(len(self)) * SLICE_MM
        return positions

    def read(self, slices: slice = slice(None)) -> CTVolume:
        """The slices in HU; float32, so that nothing is rounded.

        Raises: DataError if a file cannot be read or holds another shape.
        """
        hu = np.stack([self._hu(*row) for row in self.rows[slices]])
        return CTVolume(
            hu=hu,
            pixel_mm=self.pixel_mm,
            slice_mm=SLICE_MM,
            positions_mm=self.positions_mm[slices],
            orientation=self.orientation,
            padding=np.zeros(hu.shape, dtype=bool),
        )

    def _hu(self, file: int, row: int) -> NDArray[np.float32]:
        """One slice. Axis 0 of the stored images is x, the columns of a scan; axis 1 is y, its rows from front to back."""
        return to_hu(_read_row(self.files[file], row, (SIZE, SIZE)).T)


@dataclass(frozen=True)
class LodopabObservations(LodopabSeries):
    """`LodopabSeries` of the low dose: reconstructed from sinograms."""

    def _hu(self, file: int, row: int) -> NDArray[np.float32]:
        return reconstruct(_read_row(self.files[file], row, (N_VIEWS, N_DETECTOR)))


def lodopab_pairs(folder: Path, *, dose_fraction: float | None, noise: Noise | None) -> tuple[list[PairedScan], list[str]]:
    """A pair of series for each patient of each part in a folder of LoDoPaB-CT files.

    Patients are told apart by patient_ids_rand_PART.csv; without it each file stands for a patient.

    Raises: DataError if h5py is missing, a file has no partner or cannot be read, or the patients do not fit the slices.
    """
    pairs: list[PairedScan] = []
    notes: list[str] = []
    for part in get_args(Split):
        files = {kind: _files(folder, kind, part) for kind in ("ground_truth", "observation")}
        both = sorted(files["ground_truth"].keys() & files["observation"].keys())
        alone = len(files["ground_truth"].keys() ^ files["observation"].keys())
        if alone:
            notes.append(f"{part}: {alone} files left out, ground truth or observation is missing")
        rows = [(number, row) for number in both for row in range(_n_rows(files, number))]
        for patient, own in _by_patient(folder, part, rows, notes).items():
            series = [
                kind(
                    files=files[name],
                    rows=tuple(own),
                    fingerprint=_fingerprint(files[name], own),
                    notes=("the collection tells neither place nor order of the slices: 1 mm assumed",),
                )
                for kind, name in ((LodopabObservations, "observation"), (LodopabSeries, "ground_truth"))
            ]
            numbers = tuple(range(len(own)))
            pairs.append(
                PairedScan(
                    collection="lodopab",
                    patient=patient,
                    low_dose=series[0],
                    normal_dose=series[1],
                    low_slices=numbers,
                    normal_slices=numbers,
                    dose_fraction=dose_fraction,
                    noise=noise or "inserted",
                    split=part,
                    notes=series[1].notes,
                )
            )
    return pairs, notes


def lodopab_normals(folder: Path) -> tuple[list[tuple[str, LodopabSeries]], list[str]]:
    """The ground truth of each patient, with the patient's label."""
    pairs, notes = lodopab_pairs(folder, dose_fraction=None, noise=None)
    return [(pair.patient, pair.normal_dose) for pair in pairs], notes  # type: ignore[misc]


def is_lodopab(folder: Path) -> bool:
    """Whether a folder holds files that are named like those of LoDoPaB-CT."""
    return folder.is_dir() and any(_FILE.fullmatch(path.name) for path in folder.rglob("*.hdf5"))


def to_hu(mu: NDArray[np.floating]) -> NDArray[np.float32]:
    """CT numbers of attenuation in units of MU_MAX_PER_M: 0 HU is water, −1000 HU is air at 0.02/m."""
    return np.asarray(1000 * (mu * MU_MAX_PER_M - MU_WATER_PER_M) / (MU_WATER_PER_M - MU_AIR_PER_M), dtype=np.float32)


def reconstruct(observation: NDArray[np.floating]) -> NDArray[np.float32]:
    """The slice of a sinogram in HU by filtered backprojection, in the place of the ground truth.

    Shape: (view, detector) → (y, x).
    """
    projector = _projector()
    beam = projector.beam
    # The middle of the image lies between pixels, the isocentre of `Projector` on one: half a pixel down and right.
    shift_mm = PIXEL_MM / 2 * (np.cos(beam.angles_rad) + np.sin(beam.angles_rad))
    # Line integrals are in units of MU_MAX times metres.
    sinogram = np.pad(np.asarray(observation, dtype=np.float64), ((0, 0), (_AIR_CELLS, _AIR_CELLS)), mode="edge")
    frequency = scipy.fft.rfftfreq(2 * beam.n_detector, beam.detector_mm)
    spectrum = scipy.fft.rfft(sinogram, n=2 * beam.n_detector, axis=-1) * np.exp(2j * np.pi * shift_mm[:, None] * frequency)
    moved = scipy.fft.irfft(spectrum, n=2 * beam.n_detector, axis=-1)[:, : beam.n_detector]
    mu = filtered_backprojection(moved * 1000, projector, kernel=RECON_KERNEL)  # per mm of integrals in mm
    start = (_WHOLE - SIZE) // 2
    return to_hu(mu[start : start + SIZE, start : start + SIZE])


@dataclass(frozen=True, kw_only=True)
class _LodopabBeam(ParallelBeam):
    """Views in the middle of their share of the half turn, as ODL places them; `ParallelBeam` starts at 0."""

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        return super().angles_rad + np.pi / self.n_views / 2


@lru_cache(maxsize=1)
def _projector() -> Projector:
    beam = _LodopabBeam(n_detector=N_DETECTOR + 2 * _AIR_CELLS, detector_mm=DETECTOR_MM, n_views=N_VIEWS)
    return Projector(beam, size=_WHOLE, pixel_mm=PIXEL_MM)


def _files(folder: Path, kind: str, part: str) -> dict[int, Path]:
    found = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.rglob("*.hdf5")))
    return {int(match[3]): path for path, match in found if match and match[1] == kind and match[2] == part}


def _by_patient(folder: Path, part: str, rows: Sequence[tuple[int, int]], notes: list[str]) -> dict[str, list[tuple[int, int]]]:
    """The slices of each patient of a part, under labels that no other part uses."""
    table = next(iter(sorted(folder.rglob(f"patient_ids_rand_{part}.csv"))), None)
    patients: dict[str, list[tuple[int, int]]] = {}
    if not rows:
        return patients
    if table is None:
        notes.append(
            f"{part}: patients are unknown without patient_ids_rand_{part}.csv; each file stands for one, though patients are mixed"
            " in a file: the split holds, statistics by patient do not"
        )
        for file, row in rows:
            patients.setdefault(f"lodopab-{part}-file-{file:03d}", []).append((file, row))
        return patients
    ids = table.read_text(encoding="utf-8").split()
    needed = max(file * PER_FILE + row for file, row in rows) + 1
    if len(ids) < needed or not all(SAFE_LABEL.fullmatch(one) for one in ids):
        raise DataError(
            f"{table.name} needs one number of a patient for each of {needed} slices, got {len(ids)} lines; download it again"
        )
    for file, row in rows:
        patients.setdefault(f"lodopab-{part}-{ids[file * PER_FILE + row]}", []).append((file, row))
    return patients


def _n_rows(files: dict[str, dict[int, Path]], number: int) -> int:
    """Slices that both files hold; the last ground truth of a part may be filled up with empty ones."""
    return min(_shape(files[kind][number])[0] for kind in files)


def _shape(path: Path) -> tuple[int, ...]:
    with _open(path) as file:
        return tuple(_data(file, path).shape)


def _read_row(path: Path, row: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    with _open(path) as file:
        data = _data(file, path)
        if data.shape[1:] != shape or not 0 <= row < len(data):
            raise DataError(
                f"{path.name} holds data of shape {data.shape}, expected (slices, {shape[0]}, {shape[1]}) and a slice {row};"
                " download it again"
            )
        try:
            values = np.asarray(data[row], dtype=np.float32)
        except OSError:
            raise DataError(f"{path.name} is damaged or cut off; download it again") from None
    if not np.isfinite(values).all():
        raise DataError(f"{path.name} holds values that are NaN or infinite in slice {row}; download it again")
    return values


def _data(file: Any, path: Path) -> Any:
    if "data" not in file or getattr(file["data"], "ndim", 0) != 3:
        raise DataError(f"{path.name} holds no data set called data with three axes; download it again")
    return file["data"]


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError("reading LoDoPaB-CT needs h5py; install it with: pip install 'finegrain[collections]'") from None
    try:
        return h5py.File(path, "r")
    except OSError:
        raise DataError(f"{path.name} cannot be read as HDF5; download it again") from None


def _fingerprint(files: dict[int, Path], rows: Sequence[tuple[int, int]]) -> str:
    """Of names, sizes and rows: the files of a public collection do not change, and hashing 100 GB would take an hour."""
    sizes = {number: (files[number].name, files[number].stat().st_size) for number, _ in rows}
    return hashlib.sha256(repr((sorted(sizes.items()), list(rows))).encode()).hexdigest()
