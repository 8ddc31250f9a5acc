"""Which images of two methods show the same slice of the same patient: by whom the headers name, by place, by what they show.

The names of files and folders say nothing here. Headers go first, where both sides tell a patient or a study; then the place
of the slices on one grid; and what the images show is the last judge, between patients on one grid as well as over the rest:
images that were swapped are found out, whatever their headers say.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.evaluate.trees import Images
from finegrain.pairs.collections.paired import LARGEST_SHIFT, kernel_of

LEAST_SHARE = 0.9
"""Part of a reference series that a method must show: a vendor may leave out a slice at either end. A default of ours."""

LEAST_LIKENESS = 0.8
"""Correlation of coarse images, in soft tissue, below which two slices show different things. Measured on 32 slices of the Mayo
pairs: full against quarter dose of one slice at least 0.998; slices of different patients at most 0.757."""

DISORDER = 0.8
"""Part of the difference between coarse images that must go away if slices are taken in another order, or mirrored, to say that
they are so. Of a scan with 60 HU of added noise, one slice off, 0.53 and less is left (three whole series); else less. Ours."""

LEAST_LEAD = 0.1
"""By how much the best series must be more alike than the next for the images alone to decide; see LEAST_LIKENESS."""

FEATURELESS_HU = 20.0
"""SD of the coarse image below which a slice shows nothing to tell it by, as the inside of a water phantom. A default of ours."""

HU_SLOPES, HU_OFFSET = (0.8, 1.25), 100.0
"""Slope and offset at 0 HU of a method against the reference beyond which it holds no HU, but [0, 1] or HU + 1024; ours."""

COARSE_SIDE, COARSEST_BLOCK = 64, 4
"""Side of the coarse image, and of the smallest square averaged for one of its pixels: noise averages out, organs stay. Ours."""

SOFT_WINDOW_HU = (-200.0, 300.0)
"""HU between which coarse images are compared: beyond, air and body alone would make any two patients alike. Ours."""

PatientsBy = Literal["header", "folder"]

MOST_NAMED = 6
"""Positions named in a message; more are counted."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A series laid on the slices of a reference series.

    Attributes:
        images: the series.
        partners: for each slice of the reference the number of the slice in its place, −1 where there is none.
        flips: whether rows and columns run the other way than in the reference.
    """

    images: Images
    partners: tuple[int, ...]
    flips: tuple[bool, bool] = (False, False)

    def slice_hu(self, number: int) -> NDArray[np.float32]:
        """What it shows in the place of a slice of the reference, turned as that. Shape: (y, x)."""
        hu = self.images.slice_hu(self.partners[number])
        return np.flip(hu, tuple(axis for axis, flip in enumerate(self.flips) if flip))

    @property
    def n_placed(self) -> int:
        """Slices of the reference that it shows."""
        return sum(partner >= 0 for partner in self.partners)


@dataclass(frozen=True, eq=False)
class Case:
    """A reference series and what every method shows in its place.

    Attributes:
        patient: patient-1, patient-2 …, in the order of the reference's paths.
        series: its number among those of the patient, from 1.
        reference: the series itself.
        methods: by name, the input first if there is one.
        truth: the noise-free images of a simulation.
        slices: the slices of the reference that every method shows; what is measured.
    """

    patient: str
    series: int
    reference: Images
    methods: Mapping[str, Placed]
    truth: Placed | None
    slices: tuple[int, ...]

    @property
    def heights_mm(self) -> NDArray[np.float64]:
        """Position of each slice of the reference along its normal in mm."""
        return heights_mm(self.reference)


class Cases(NamedTuple):
    """What was paired, and lines for the reader on what was not."""

    cases: list[Case]
    notes: list[str]


def heights_mm(images: Images) -> NDArray[np.float64]:
    """Position of each slice along the normal of its plane in mm; z for an axial series."""
    return np.asarray(images.series.positions_mm @ _axes(images)[2])


def pair_methods(
    reference: Sequence[Images],
    methods: Mapping[str, Sequence[Images]],
    *,
    truth: Sequence[Images] = (),
    allow_partial: bool = False,
    patients_by: PatientsBy = "header",
) -> Cases:
    """Every reference series with its partner among the series of each method, slice by slice.

    Args:
        methods: series of each method, by its name.
        truth: noise-free images, if there are any.
        allow_partial: leave out reference series that a method does not have, or has in part.
        patients_by: what makes series those of one patient: headers, or the sub-folder of the reference that they lie in.

    Raises: DataError, in one line, if a series has no partner, or several, or one that shows something else.
    """
    notes: list[str] = []
    others = {**methods, **({"truth": truth} if truth else {})}
    partners: dict[str, dict[int, Placed]] = {}
    for name, images in others.items():
        partners[name], lines = _partners(name, reference, images, allow_partial=allow_partial)
        notes += lines
    kept: list[tuple[Images, dict[str, Placed], tuple[int, ...]]] = []
    for k, one in enumerate(reference):
        placed = {name: of_method[k] for name, of_method in partners.items() if k in of_method}
        if len(placed) < len(others):
            continue
        lines, slices = _common_slices(one, placed, allow_partial=allow_partial)
        notes += lines
        if slices:
            kept.append((one, placed, slices))
    if not kept:
        raise DataError("no slice of the reference is shown by all methods; give images of the same patients and slices")
    if patients_by == "folder":
        if not all(one.folder for one, _, _ in kept):
            raise DataError(
                "patients by folder: expected every reference series in a sub-folder of its patient, some lie beside them"
            )
        labels = _labels([one.folder for one, _, _ in kept])
    else:
        labels, lines = _patients([[one, *(other.images for other in placed.values())] for one, placed, _ in kept])
        notes += lines
    counts: dict[str, int] = {}
    cases = []
    for label, (one, placed, slices) in zip(labels, kept, strict=True):
        counts[label] = counts.get(label, 0) + 1
        of_truth = placed.pop("truth") if truth else None
        cases.append(Case(label, counts[label], one, placed, of_truth, slices))
    return Cases(cases, notes)


# --- place ---------------------------------------------------------------------------------------------------------------


def place(reference: Images, other: Images) -> Placed | str:
    """A series on the grid of a reference; why it does not fit, in words with numbers, if no slice lies in the place of one."""
    if reference.series.shape != other.series.shape:
        return f"{_times(other.series.shape)} pixels, expected {_times(reference.series.shape)}"
    expected_mm, came_mm = (np.array(one.series.pixel_mm) for one in (reference, other))
    side = np.array(reference.series.shape)
    tolerance_mm = LARGEST_SHIFT * float(min(*expected_mm, *came_mm))
    if np.abs((expected_mm - came_mm) * side).max() > tolerance_mm:
        return f"pixels of {_times(came_mm)} mm, expected {_times(expected_mm)} mm"
    row, column, normal = _axes(reference)
    other_row, other_column, _ = _axes(other)
    flip_columns, flip_rows = bool(row @ other_row < 0), bool(column @ other_column < 0)
    first_mm = other.series.positions_mm.copy()
    if flip_columns:
        first_mm += (side[1] - 1) * came_mm[1] * other_row
        other_row = -other_row
    if flip_rows:
        first_mm += (side[0] - 1) * came_mm[0] * other_column
        other_column = -other_column
    turned = max(float(np.linalg.norm(row - other_row)), float(np.linalg.norm(column - other_column)))
    if turned * float((side * expected_mm).max()) > tolerance_mm:
        return f"slices turned by {np.degrees(2 * np.arcsin(min(turned / 2, 1))):.2g}° against the reference"
    expected, came = reference.series.positions_mm, first_mm
    rise = (came @ normal)[None] - (expected @ normal)[:, None]
    nearest = np.abs(rise).argmin(axis=1)
    rise = np.take_along_axis(rise, nearest[:, None], axis=1)[:, 0]
    level = np.abs(rise) <= LARGEST_SHIFT * min(_thickness_mm(reference), _thickness_mm(other))
    if not level.any():
        return f"slices at {_range(came @ normal)}, expected {_range(expected @ normal)}"
    aside = np.linalg.norm(came[nearest] - expected - rise[:, None] * normal, axis=1)
    fits = level & (aside <= tolerance_mm)
    if not fits.any():
        return f"images shifted by {np.median(aside[level]):.3g} mm in their plane"
    return Placed(other, tuple(np.where(fits, nearest, -1).tolist()), (flip_rows, flip_columns))


def _axes(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Directions of rows, columns and normal."""
    row, column = np.array(images.series.orientation, dtype=np.float64).reshape(2, 3)
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _thickness_mm(images: Images) -> float:
    """Distance or thickness of the slices, whichever is smaller: of a few slices out of many the distance says nothing."""
    return min(images.series.slice_mm, float(images.series.acquisition.get("SliceThickness") or np.inf))


# --- what the images show ------------------------------------------------------------------------------------------------


def likeness(reference: Images, placed: Placed) -> float:
    """Correlation of coarse soft tissue over a few common slices: near 1 for one anatomy at any dose and kernel.

    NaN where the reference shows nothing to tell it by; 0 if only the other shows nothing.
    """
    ours, theirs = (np.clip(coarse, *SOFT_WINDOW_HU) for coarse in _coarse_pair(reference, placed))
    if ours.std() < FEATURELESS_HU:
        return float("nan")
    return float(np.corrcoef(ours, theirs)[0, 1]) if theirs.std() > 0 else 0.0


def _coarse_pair(reference: Images, placed: Placed) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    some = _some_common(placed)
    ours = np.concatenate([_coarse(reference, number, (False, False)) for number in some])
    theirs = np.concatenate([_coarse(placed.images, placed.partners[number], placed.flips) for number in some])
    return ours, theirs


def _some_common(placed: Placed) -> list[int]:
    """The slices of the reference, of those that both show, by which images are judged."""
    common = [number for number, partner in enumerate(placed.partners) if partner >= 0]
    return sorted({common[round(share * (len(common) - 1))] for share in (0.25, 0.5, 0.75)})


@lru_cache(maxsize=1024)
def _coarse(images: Images, number: int, flips: tuple[bool, bool]) -> NDArray[np.float64]:
    """A slice averaged over blocks, its padding taken for air, as a vector."""
    hu = np.flip(images.slice_hu(number), tuple(axis for axis, flip in enumerate(flips) if flip))
    block = [min(max(side // COARSE_SIDE, COARSEST_BLOCK), side) for side in hu.shape]
    rows, columns = (side // size for side, size in zip(hu.shape, block, strict=True))
    cut = np.maximum(hu[: rows * block[0], : columns * block[1]], -1024.0)
    return np.asarray(cut.reshape(rows, block[0], columns, block[1]).mean(axis=(1, 3), dtype=np.float64).ravel())


def _refuse_other_images(name: str, reference: Images, placed: Placed, others: Sequence[Images]) -> None:
    """DataError if the images in the place of the reference are constant, no HU, or show something else."""
    ours, theirs = _coarse_pair(reference, placed)
    for one, coarse in ((reference, ours), (placed.images, theirs)):
        if np.ptp(coarse) == 0:
            raise DataError(f"{one.name} is constant, {coarse[0]:g} HU everywhere, expected CT images; check how it was made")
        slices = coarse.reshape(len(_some_common(placed)), -1)
        if not np.ptp(slices, axis=1).all():
            raise DataError(f"{one.name} has a constant slice, expected a CT image; take it away, and go on with --allow-partial")
    slope, offset = np.polyfit(ours, theirs, 1)
    outside = not HU_SLOPES[0] <= slope <= HU_SLOPES[1] or abs(offset) > HU_OFFSET
    if outside and np.corrcoef(ours, theirs)[0, 1] > LEAST_LIKENESS:
        raise DataError(
            f"{placed.images.name} holds no HU: its values are about {slope:.3g} × those of the reference {offset:+.3g}; "
            "convert it to HU"
        )
    _refuse_disorder(reference, placed)
    alike = likeness(reference, placed)
    if alike >= LEAST_LIKENESS or np.isnan(alike):
        return
    better = [
        other.name for other in others if isinstance(laid := place(reference, other), Placed) and likeness(reference, laid) >= 0.9
    ]
    swapped = f"; {better[0]} fits it: were patients swapped" if better else "; give the same patient and slices, not mirrored"
    raise DataError(
        f"{placed.images.name} shows something else than {reference.name} in its place (correlation {alike:.2f}, expected above "
        f"{LEAST_LIKENESS}){swapped}{'?' if better else ''}"
    )


def _refuse_disorder(reference: Images, placed: Placed) -> None:
    """DataError if the images fit much better mirrored, or in another order, than where the geometry of their file puts them.

    That is what a tool leaves behind that turns an array and not its header. Noise is alike in any order, so it raises no alarm.
    """
    some = _some_common(placed)
    common = [number for number, partner in enumerate(placed.partners) if partner >= 0]
    reverse = dict(zip(common, reversed(common), strict=True))
    ours = np.concatenate([_coarse(reference, number, (False, False)) for number in some])

    def theirs(partners: Sequence[int], rows: bool = False, columns: bool = False) -> NDArray[np.float64]:
        flips = placed.flips[0] ^ rows, placed.flips[1] ^ columns
        return np.concatenate([_coarse(placed.images, partner, flips) for partner in partners])

    here = [placed.partners[number] for number in some]
    ways = {
        "mirrored left to right": theirs(here, columns=True),
        "upside down": theirs(here, rows=True),
        "turned by 180°": theirs(here, rows=True, columns=True),
        "in reverse order": theirs([placed.partners[reverse[number]] for number in some]),
    }
    for step, way in ((1, "one slice further up"), (-1, "one slice further down")):
        if all(0 <= partner + step < len(placed.images) for partner in here):
            ways[way] = theirs([partner + step for partner in here])
    ours, nominal, *others = (np.clip(coarse, *SOFT_WINDOW_HU) for coarse in (ours, theirs(here), *ways.values()))
    apart = [float(np.sqrt(np.mean((ours - coarse) ** 2))) for coarse in (nominal, *others)]
    best = int(np.argmin(apart[1:]))
    if apart[best + 1] >= DISORDER * apart[0] or min(ours.std(), others[best].std()) == 0:
        return
    if np.corrcoef(ours, others[best])[0, 1] >= LEAST_LIKENESS:
        raise DataError(
            f"{placed.images.name} fits {reference.name} if it is taken {list(ways)[best]} (coarse images {apart[best + 1]:.3g} "
            f"HU apart, {apart[0]:.3g} as its geometry has it): array and header disagree; export it again"
        )


# --- partners ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    """One way to pair: number of the reference series, of the method's series, how they lie, and how good that is."""

    reference: int
    other: int
    placed: Placed = field(repr=False)
    rank: tuple[bool, int, bool]
    alike: float


def _partners(
    name: str, reference: Sequence[Images], others: Sequence[Images], *, allow_partial: bool
) -> tuple[dict[int, Placed], list[str]]:
    """For each reference series, by its number, its partner among the series of one method."""
    fits, why_not = _fits(reference, others)
    chosen: dict[int, Placed] = {}
    notes: list[str] = []
    used: dict[int, str] = {}
    for k, one in enumerate(reference):
        own = [fit for fit in fits if fit.reference == k and _is_best(fit, [rival for rival in fits if rival.other == fit.other])]
        best = _best(own)
        if len(best) > 1:
            kernels = " and ".join(kernel_of(fit.placed.images.series) or "unknown" for fit in best[:2])
            raise DataError(
                f"{name}: {len(best)} series fit {one.name} equally well (kernels {kernels}), expected one; give a folder with "
                "that one alone"
            )
        if not best:
            taken = any(fit.reference == k for fit in fits)
            reasons = ["one that fits another reference series better", *why_not[k]] if taken else why_not[k]
            why = _no_partner(name, one, reasons)
            if not allow_partial:
                raise DataError(f"{why}; add it, or leave it out with --allow-partial")
            notes.append(f"{why}; left out")
            continue
        fit = best[0]
        if fit.other in used:
            raise DataError(
                f"{fit.placed.images.name} fits {used[fit.other]} and {one.name} equally well, expected one; give a reference "
                "folder with that one alone"
            )
        _refuse_other_images(name, one, fit.placed, [other for other in others if other is not fit.placed.images])
        chosen[k] = fit.placed
        used[fit.other] = one.name
        notes += _remarks(one, fit.placed)
    unused = len(others) - len(used)
    if unused:
        notes.append(f"{name}: {unused} of {len(others)} series lie in the place of no reference series and are not used")
    return chosen, notes


def _fits(reference: Sequence[Images], others: Sequence[Images]) -> tuple[list[_Fit], list[list[str]]]:
    """Every pair of series that lie in one place, and for each reference series why others do not."""
    fits: list[_Fit] = []
    why_not: list[list[str]] = []
    for k, one in enumerate(reference):
        reasons: list[str] = []
        for m, other in enumerate(others):
            placed = place(one, other)
            if isinstance(placed, str):
                reasons.append(placed)
                continue
            rank = (bool(one.identities & other.identities), placed.n_placed, kernel_of(one.series) == kernel_of(other.series))
            fits.append(_Fit(k, m, placed, rank, likeness(one, placed)))
        why_not.append(reasons)
    return fits, why_not


def _best(fits: Sequence[_Fit]) -> list[_Fit]:
    """Those that nothing tells apart: of the highest rank, and none clearly more alike than the others."""
    if not fits:
        return []
    top = [fit for fit in fits if fit.rank == max(one.rank for one in fits)]
    most = max((fit.alike for fit in top if not np.isnan(fit.alike)), default=np.nan)
    return [fit for fit in top if np.isnan(fit.alike) or fit.alike > most - LEAST_LEAD]


def _is_best(fit: _Fit, rivals: Sequence[_Fit]) -> bool:
    """Whether a series of a method, which can be the partner of several reference series, is rather that of this one."""
    return fit in _best(rivals)


def _no_partner(name: str, reference: Images, reasons: Sequence[str]) -> str:
    series = reference.series
    expected = (
        f"{name}: expected images in the place of {reference.name} ({len(series)} slices of {_times(series.shape)} pixels of "
        f"{_times(series.pixel_mm)} mm at {_range(heights_mm(reference))})"
    )
    unique = list(dict.fromkeys(reasons))
    if not unique:
        return f"{expected}, found none"
    more = f" ({len(unique) - 1} more do not fit either)" if len(unique) > 1 else ""
    return f"{expected}, found {unique[0]}{more}"


def _remarks(reference: Images, placed: Placed) -> list[str]:
    """What a reader should know of two series that were paired."""
    other, notes = placed.images, []
    kernels = kernel_of(reference.series), kernel_of(other.series)
    if all(kernels) and kernels[0] != kernels[1]:
        notes.append(f"{other.name}: kernel {kernels[1]}, that of {reference.name} is {kernels[0]}; differences hold both")
    told = [{kind for kind, _ in images.identities} for images in (reference, other)]
    if "patient" in told[0] & told[1] and not reference.identities & other.identities:
        notes.append(f"{other.name}: its headers name another patient than those of {reference.name}; paired by place and content")
    if any(placed.flips):
        notes.append(f"{other.name}: mirrored, as its geometry says, to lie on {reference.name}")
    return notes


def _common_slices(reference: Images, placed: Mapping[str, Placed], *, allow_partial: bool) -> tuple[list[str], tuple[int, ...]]:
    """The slices of a reference series that every method shows, and a line on each method that lacks some."""
    notes, heights = [], heights_mm(reference)
    common = np.ones(len(reference), dtype=bool)
    for name, of_method in placed.items():
        there = np.array(of_method.partners) >= 0
        if not there.all():
            lacks = f"{name} shows {there.sum()} of the {len(there)} slices of {reference.name}, none at {_named(heights[~there])}"
            if there.mean() < LEAST_SHARE and not allow_partial:
                raise DataError(f"{lacks}; expected {LEAST_SHARE:.0%} or more; complete it, or go on with --allow-partial")
            notes.append(f"{lacks}; these are not measured for any method")
        if (spare := len(of_method.images) - int(there.sum())) > 0:
            notes.append(f"{of_method.images.name}: {spare} of its slices lie in the place of none of {reference.name}")
        common &= there
    return notes, tuple(np.flatnonzero(common).tolist())


def _patients(rows: Sequence[Sequence[Images]]) -> tuple[list[str], list[str]]:
    """A label for each reference series, given with its partners: the same for those whom any header names the same patient.

    What a method's headers, or the study, say of two patients whom the reference itself tells apart says nothing.
    """
    named = [[identity for identity in row[0].identities if identity[0] == "patient"] for row in rows]
    claimed: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for row, own in zip(rows, named, strict=True):
        for identity in frozenset().union(*(images.identities for images in row)):
            claimed.setdefault(identity, set()).update(own)
    owner: dict[tuple[str, str], int] = {}
    number_of: list[int] = []
    for row, own in zip(rows, named, strict=True):
        told = own + [identity for images in row for identity in images.identities if len(claimed[identity]) < 2]
        known = sorted({owner[identity] for identity in told if identity in owner})
        number = known[0] if known else max(number_of, default=0) + 1
        for merged in known[1:]:
            number_of = [number if one == merged else one for one in number_of]
            owner = {identity: number if one == merged else one for identity, one in owner.items()}
        owner.update(dict.fromkeys(told, number))
        number_of.append(number)
    unknown = sum(not any(kind == "patient" for images in row for kind, _ in images.identities) for row in rows)
    notes = []
    if unknown > 1:
        notes.append(
            f"{unknown} series tell no patient: those of one study count as one patient, every other as one of its own; where two "
            "are of one person the tests claim too much (--patients-by folder takes a sub-folder of the reference for a patient)"
        )
    return _labels(number_of), notes


def _labels(keys: Sequence[Hashable]) -> list[str]:
    """patient-1, patient-2 … in the order in which different keys come."""
    order = {key: place for place, key in enumerate(dict.fromkeys(keys), start=1)}
    return [f"patient-{order[key]}" for key in keys]


# --- words ---------------------------------------------------------------------------------------------------------------


def _times(sizes: Sequence[float] | NDArray) -> str:
    return " × ".join(f"{size:.5g}" for size in sizes)


def _range(heights: NDArray[np.float64]) -> str:
    return f"z = {heights.min():.2f} … {heights.max():.2f} mm" if len(heights) > 1 else f"z = {heights[0]:.2f} mm"


def _named(heights: NDArray[np.float64]) -> str:
    shown = ", ".join(f"{height:.2f}" for height in heights[:MOST_NAMED])
    return f"z = {shown}{f' … ({len(heights)} in all)' if len(heights) > MOST_NAMED else ''} mm"
