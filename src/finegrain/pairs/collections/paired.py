"""`PairedScan`: one series at two doses, slice beside slice; and how series and slices find their partners."""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Split
from finegrain.errors import DataError
from finegrain.pairs.collections.pseudonym import patient_label
from finegrain.scan.privacy import shown
from finegrain.scan.volume import CTVolume

LARGEST_SHIFT = 0.1
"""Two slices lie in one place if they are apart by less than this share of a pixel in their plane, and of the slice distance or
thickness along the normal. A default, taken from nowhere: ten times what rounding in a header does, far below what can be seen."""

Noise = Literal["inserted", "independent"]


class Series(Protocol):
    """What a series must tell to be paired; `scan.series.ScanSeries` does."""

    @property
    def positions_mm(self) -> NDArray[np.float64]: ...
    @property
    def orientation(self) -> tuple[float, ...]: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def pixel_mm(self) -> tuple[float, float]: ...
    @property
    def slice_mm(self) -> float: ...
    @property
    def acquisition(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, slices: slice = ...) -> CTVolume: ...


@dataclass(frozen=True)
class PairedScan:
    """One series at two doses, its slices matched by position.

    Attributes:
        collection: the layout it was found by.
        patient: a label that is safe to show and to store.
        low_dose, normal_dose: the two series.
        low_slices, normal_slices: equally many, rising: low_slices[i] lies where normal_slices[i] does.
        dose_fraction: of the low dose; None if unknown.
        noise: inserted if the low dose holds the noise of the normal dose and more, independent if the two are two scans; None if
            unknown.
        split: the side that the collection itself prescribes.
        notes: slices left out, gaps …; safe to show.
    """

    collection: str
    patient: str
    low_dose: Series
    normal_dose: Series
    low_slices: tuple[int, ...]
    normal_slices: tuple[int, ...]
    dose_fraction: float | None
    noise: Noise | None
    split: Split | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.low_slices)

    @property
    def kernel(self) -> str:
        """ConvolutionKernel of the normal dose; empty if unknown."""
        return kernel_of(self.normal_dose)

    @property
    def fingerprint(self) -> str:
        """Changes when either series or the pairing of their slices does."""
        parts = (self.low_dose.fingerprint, self.normal_dose.fingerprint, self.low_slices, self.normal_slices)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, numbers: Sequence[int]) -> tuple[CTVolume, CTVolume]:
        """Low and normal dose of some of the pairs, 0 to len − 1, in the order given.

        Raises: DataError if the files no longer lie in one place.
        """
        low = _read_slices(self.low_dose, [self.low_slices[i] for i in numbers])
        normal = _read_slices(self.normal_dose, [self.normal_slices[i] for i in numbers])
        apart = _grids_differ(low, low.hu.shape[1:], normal, normal.hu.shape[1:])
        if apart is None and not np.all(_in_place(low.positions_mm, normal.positions_mm, self.low_dose, self.normal_dose)):
            apart = "slices in different places"
        if apart is not None:
            raise DataError(
                f"patient {self.patient}: the two doses were paired in one place and now show {apart}; the files have"
                " changed, pair them again"
            )
        return low, normal


def kernel_of(series: Series) -> str:
    """ConvolutionKernel as one line of text; empty if unknown."""
    return shown(series.acquisition.get("ConvolutionKernel") or "")


def pair_all(
    lows: Sequence[tuple[str, Series]],
    normals: Sequence[tuple[str, Series]],
    *,
    collection: str,
    dose_fraction: Callable[[str], float | None],
    noise: Noise | None,
) -> tuple[list[PairedScan], list[str]]:
    """Series of many patients paired patient by patient, each given with its patient's label; "" is a patient who is unknown.

    Args:
        dose_fraction: of the low dose of a patient.
    """
    groups: dict[str, tuple[list[Series], list[Series]]] = {}
    for side, labelled in enumerate((lows, normals)):
        for label, series in labelled:
            groups.setdefault(label, ([], []))[side].append(series)
    pairs: list[PairedScan] = []
    left_out: list[str] = []
    for patient, (low, normal) in sorted(groups.items()):
        found, lines = pair_patient(
            low, normal, collection=collection, patient=patient, dose_fraction=dose_fraction(patient), noise=noise
        )
        pairs += found
        left_out += lines
    return pairs, left_out


def pair_patient(
    lows: Sequence[Series],
    normals: Sequence[Series],
    *,
    collection: str,
    patient: str,
    dose_fraction: float | None,
    noise: Noise | None,
    split: Split | None = None,
) -> tuple[list[PairedScan], list[str]]:
    """Each low-dose series of a patient with the normal-dose series in its place, and a line on each that has none.

    Of several at normal dose the one with most slices in common is taken; of several at low dose none, for they may be phases of
    which only one has its partner. Where the patient is unknown, "", none is taken of several at either dose: they may be of
    different people. Each normal-dose series then counts as a patient of its own.
    """
    left_out: list[str] = []
    chosen: list[tuple[Series, int, tuple[int, ...], tuple[int, ...]]] = []
    for low in lows:
        matched = [match_slices(low, normal) for normal in normals]
        fits = [k for k, (_, _, reason) in enumerate(matched) if reason is None]
        most = max((len(matched[k][0]) for k in fits), default=0)
        best = [k for k in fits if len(matched[k][0]) == most or not patient]
        if len({normals[k].fingerprint for k in best}) == 1:
            chosen.append((low, best[0], *matched[best[0]][:2]))
            continue
        reasons = dict.fromkeys(reason for _, _, reason in matched if reason is not None)
        why = f"{len(best)} series at normal dose lie in its place" if best else "; ".join(reasons) or "no normal dose"
        left_out.append(_left_out(patient, low, "low", why))
    claims: dict[int, set[str]] = {}
    for low, k, _, _ in chosen:
        claims.setdefault(k, set()).add(low.fingerprint)
    pairs: list[PairedScan] = []
    for low, k, low_slices, normal_slices in chosen:
        if len(claims[k]) > 1:
            left_out.append(_left_out(patient, low, "low", f"{len(claims[k])} series at low dose lie in this place"))
            continue
        pairs.append(
            PairedScan(
                collection=collection,
                patient=patient or patient_label("", normals[k].fingerprint),
                low_dose=low,
                normal_dose=normals[k],
                low_slices=low_slices,
                normal_slices=normal_slices,
                dose_fraction=dose_fraction,
                noise=noise,
                split=split,
                notes=_notes(low, normals[k], len(low_slices)),
            )
        )
    unused = [normal for k, normal in enumerate(normals) if k not in claims]
    return pairs, left_out + [_left_out(patient, normal, "normal", "no low dose in its place") for normal in unused]


def _left_out(patient: str, series: Series, dose: str, why: str) -> str:
    kernel = kernel_of(series)
    what = f"{len(series)} slices{f', kernel {kernel},' if kernel else ''} at {dose} dose"
    return f"{f'patient {patient}' if patient else 'patient unknown'}: {what} left out: {why}"


def match_slices(low: Series, normal: Series) -> tuple[tuple[int, ...], tuple[int, ...], str | None]:
    """Which slices of two series lie in one place, and why none do: kernel, thickness, matrix, pixels, orientation or place.

    Shape: equally many numbers of low and of normal slices, rising; empty with a reason.
    """
    reason = _unlike(low, normal) or _grids_differ(low, low.shape, normal, normal.shape)
    if reason is not None:
        return (), (), reason
    along = _normal_of(low)
    low_mm, normal_mm = low.positions_mm @ along, normal.positions_mm @ along
    right = np.clip(np.searchsorted(normal_mm, low_mm), 1, max(len(normal_mm) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(normal_mm) - 1)
    nearest = np.where(np.abs(normal_mm[left] - low_mm) <= np.abs(normal_mm[right] - low_mm), left, right)
    good = _in_place(low.positions_mm, normal.positions_mm[nearest], low, normal)
    partners, first = np.unique(nearest[good], return_index=True)
    own = np.flatnonzero(good)[first]
    if not len(own):
        return (), (), "no slice lies in the place of one of the normal dose"
    return tuple(own.tolist()), tuple(partners.tolist()), None


def _same_files(one: Series, other: Series) -> bool:
    """Whether the first files of two series are the same: tools that add noise often copy headers whole, UIDs too."""
    first, second = (tuple(getattr(series, "files", ())) for series in (one, other))
    return not (first and second) or filecmp.cmp(first[0], second[0], shallow=False)


def _unlike(low: Series, normal: Series) -> str | None:
    if low.fingerprint == normal.fingerprint and _same_files(low, normal):
        return "both doses are the same images"
    kernels = kernel_of(low), kernel_of(normal)
    if all(kernels) and kernels[0] != kernels[1]:
        return f"kernel {kernels[0]} at low dose, {kernels[1]} at normal dose"
    stated = [series.acquisition.get("SliceThickness") for series in (low, normal)]
    low_mm, normal_mm = stated if all(stated) else (low.slice_mm, normal.slice_mm)
    if not np.isclose(low_mm, normal_mm, rtol=0.01):  # type: ignore[arg-type]
        return f"slices of {low_mm:g} mm at low dose, {normal_mm:g} mm at normal dose"
    return None


def _grids_differ(low: Any, low_shape: tuple[int, ...], normal: Any, normal_shape: tuple[int, ...]) -> str | None:
    """Why the pixels of two slices with the same first pixel would not lie on each other; None if they do."""
    if tuple(low_shape) != tuple(normal_shape):
        return f"{low_shape[0]} × {low_shape[1]} pixels at low dose, {normal_shape[0]} × {normal_shape[1]} at normal dose"
    size_mm = [np.array(low_shape) * one.pixel_mm for one in (low, normal)]
    largest_mm = LARGEST_SHIFT * min(*low.pixel_mm, *normal.pixel_mm)
    if np.abs(size_mm[0] - size_mm[1]).max() > largest_mm:
        return f"pixels of {_sizes(low.pixel_mm)} mm at low dose, {_sizes(normal.pixel_mm)} mm at normal dose"
    turned = np.linalg.norm((np.array(low.orientation) - np.array(normal.orientation)).reshape(2, 3), axis=1)
    if turned.max() * size_mm[0].max() > largest_mm:
        return "different orientations"
    return None


def _in_place(low_mm: NDArray[np.float64], normal_mm: NDArray[np.float64], low: Series, normal: Series) -> NDArray[np.bool_]:
    """Which positions of shape (z, 3) agree with those beside them."""
    along = _normal_of(low)
    apart = normal_mm - low_mm
    height = apart @ along
    in_plane = np.linalg.norm(apart - height[:, None] * along, axis=1)
    good = np.abs(height) <= LARGEST_SHIFT * min(_thickness_mm(low), _thickness_mm(normal))
    return np.asarray(good & (in_plane <= LARGEST_SHIFT * min(*low.pixel_mm, *normal.pixel_mm)))


def _thickness_mm(series: Series) -> float:
    """Distance or thickness of the slices, whichever is smaller: of a few slices out of many the distance says nothing."""
    return min(series.slice_mm, float(series.acquisition.get("SliceThickness") or np.inf))


def _normal_of(series: Series) -> NDArray[np.float64]:
    normal = np.cross(series.orientation[:3], series.orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def _notes(low: Series, normal: Series, n_pairs: int) -> tuple[str, ...]:
    notes = []
    if n_pairs < len(low) or n_pairs < len(normal):
        notes.append(
            f"{len(low) - n_pairs} of {len(low)} low-dose and {len(normal) - n_pairs} of {len(normal)} normal-dose slices"
            " have no partner in their place"
        )
    notes += [f"{name}: {note}" for name, series in (("low dose", low), ("normal dose", normal)) for note in series.notes]
    return tuple(notes)


def _sizes(pixel_mm: tuple[float, float]) -> str:
    return " × ".join(f"{size:.4g}" for size in pixel_mm)


def _read_slices(series: Series, numbers: Sequence[int]) -> CTVolume:
    """Some slices in the order given, read in as few pieces as they come in evenly spaced runs."""
    return _join([series.read(run) for run in _runs(numbers)])


def _runs(numbers: Sequence[int]) -> list[slice]:
    """The numbers as slices of rising, evenly spaced ones, each as long as possible.

    >>> _runs([4, 5, 6, 20, 10])
    [slice(4, 7, 1), slice(20, 21, 1), slice(10, 11, 1)]
    >>> _runs([0, 3, 6])
    [slice(0, 7, 3)]
    """
    runs: list[slice] = []
    i = 0
    while i < len(numbers):
        step = max(numbers[i + 1] - numbers[i], 1) if i + 1 < len(numbers) else 1
        j = i
        while j + 1 < len(numbers) and numbers[j + 1] - numbers[j] == step:
            j += 1
        runs.append(slice(numbers[i], numbers[j] + 1, step))
        i = j + 1
    return runs


def _join(parts: Sequence[CTVolume]) -> CTVolume:
    """Several pieces of one series as a volume; it cannot be written back, for its source is the whole."""
    first = parts[0]
    if len(parts) == 1:
        return first
    currents = [part.tube_current_ma for part in parts]
    return replace(
        first,
        hu=np.concatenate([part.hu for part in parts]),
        padding=np.concatenate([part.padding for part in parts]),
        positions_mm=np.concatenate([part.positions_mm for part in parts]),
        slice_mm=float(np.median([part.slice_mm for part in parts])),
        tube_current_ma=None if any(one is None for one in currents) else np.concatenate(currents),  # type: ignore[arg-type]
        source=None,
    )
