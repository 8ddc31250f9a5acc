"""Where the phantom is: its round body, the rods in it, and which slices are uniform. Found on mean images, to a part of a pixel.

Rows and columns are in pixels from the centre of the first pixel; a rod's place in the phantom is polar, its angle counted
from the right (columns) towards below (rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.special import erf

from finegrain.errors import DataError
from finegrain.evaluate.regions import body_mask
from finegrain.hu import AIR_HU

N_RAYS = 360
"""Rays along which the outline is looked for: one a degree."""

OUTLINE_REACH_MM = 5.0
"""How far from the rough outline the exact one is looked for; ours."""

ON_CIRCLE_MM = 1.5
"""A ray that ends farther than this from the fitted circle does not end on the phantom; a table touches some rays. Ours."""

SHARE_ON_CIRCLE = 0.7
"""Share of rays that must end on the circle: a table may hide a quarter. Ours; measured on a
plastic head, slices of three heights: 0.3."""

SMALLEST_BODY_MM = 60.0
"""Diameter below which a round thing is no body; CT phantoms are 100 mm and more. Ours."""

BODY_HU_RANGE = (-250.0, 300.0)
"""Median HU of a phantom that is water or a plastic; ours: polyethylene is about −95, PMMA 120."""

INTERIOR = 0.92
"""Share of the body's radius inside which rods are looked for: nearer to the edge kernels overshoot. Ours."""

ROD_DIAMETERS_MM = tuple(2.5 * 1.35**i for i in range(9))
"""Scales at which rods are looked for, 2.5 to 28 mm: the Catphan's smallest to the ACR phantom's largest."""

ROD_Z = 6.0
"""Response over its scatter in the body from which something is looked at; noise gives 4.5 in 10,000 places. Ours."""

LEAST_ROD_HU = 1.5
"""Fitted contrast below which a rod is not believed: reconstruction alone leaves such rings. Ours."""

LARGEST_MISFIT = 0.1
"""Share of a fitted disc's energy that may be left beside noise. Measured: rods of seven contrasts, B30f to a bare ramp, leave
0.05 or less, bars of a line pattern, whole, 0.3 and more."""

LEAST_NOISE_HU = 0.02
"""Noise of a mean image that is never gone below: of a simulated truth every trace of the reconstruction would stand out. Ours."""

NOISE_ROOM = 1.25
"""What noise may leave beside a disc, over what it leaves on average: its neighbours are correlated. Ours."""

LARGEST_IN_VIEW, LEAST_IN_VIEW = 0.65, 0.9
"""Radius of a disc over that of the neighbourhood it is fitted in, and share of the neighbourhood that must be free of what was
found before: else the rest of a bar would pass for a disc. Measured: rods have 0.3 to 0.6, and 0.97 or more. Ours."""

AT_ONCE = 0.3
"""Share of the strongest response down to which candidates are taken before the strong ones are masked: what rises between two
rods of 1000 HU must not hide one of 30. Ours."""

MOST_PASSES = 12
"""Searches before giving up: 0.3¹² spans all CT numbers many times over."""

WATER_LIKE_MM = 3.0
"""Distance kept from rods and other structure wherever the plain material is measured; ours: three times a soft kernel's blur."""

FEWEST_SECTION_SLICES = 3
"""Slices below which a stretch between two modules of a phantom is passed over; ours: partial volume takes one or two."""

CHANGED_AREA = 0.008
"""Share of the body that changes where one module ends: one rod of 18 mm in 200 mm; ramps of thin wires change less. Ours."""

CHANGED_HU = 15.0
"""Least change that counts, in HU of a smoothed slice; ours: so low-contrast modules are not told from uniform ones."""


@dataclass(frozen=True)
class Body:
    """The phantom's round outline; rms_mm is the scatter of the outline about the circle."""

    row: float
    column: float
    radius_mm: float
    rms_mm: float = 0.0


@dataclass(frozen=True)
class Rod:
    """A cylinder in the body, seen end on.

    Attributes:
        name: "rod 1" …, by rising CT number, or the user's.
        row, column: centre in pixels. radius_mm: of the rod.
        contrast_hu: fitted, rod less surroundings. hu: mean in its inner part; NaN until it is measured.
        place_mm, angle_deg: distance from the body's centre, and direction.
        expected_hu: range that its CT number should lie in, if the user told one.
    """

    name: str
    row: float
    column: float
    radius_mm: float
    contrast_hu: float
    hu: float
    place_mm: float
    angle_deg: float
    expected_hu: tuple[float, float] | None = None


@dataclass(frozen=True)
class Section:
    """Slices that show the same module of the phantom.

    Attributes:
        slices: of the scan.
        rods: those found. plain: where the plain material is, away from rods, other structure and the edge; shape (y, x).
    """

    slices: slice
    rods: tuple[Rod, ...]
    plain: NDArray[np.bool_]

    @property
    def n_slices(self) -> int:
        """How many."""
        return int(self.slices.stop - self.slices.start)


@dataclass(frozen=True)
class Phantom:
    """A phantom as found: its body, the section where the plain material is measured, and that of the rods, if there are any."""

    body: Body
    uniform: Section
    rods: Section | None


def distance_mm(shape: Sequence[int], row: float, column: float, pixel_mm: float) -> NDArray[np.float64]:
    """Distance of each pixel from a place. Shape: (y, x)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(y - row, x - column) * pixel_mm)


# --- body ------------------------------------------------------------------------------------------------------------------


def find_body(mean_hu: NDArray[np.floating], *, pixel_mm: float) -> Body:
    """The circle through the half-way points of the edge along 360 rays, those that a table touches left out.

    Raises: DataError if there is nothing round of a phantom's size and HU, or it is cut by the image.
    """
    labels, n = ndimage.label(body_mask(mean_hu))
    if not n:
        raise DataError("no phantom found: nothing in the image is denser than air; give the slices of a phantom")
    mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        raise DataError("the phantom is cut by the border of the image; reconstruct a wider field of view")
    if 2 * (radius_mm := float(np.sqrt(mask.sum() / np.pi)) * pixel_mm) < SMALLEST_BODY_MM:
        raise DataError(
            f"no phantom found: the largest body is {2 * radius_mm:.0f} mm wide, expected {SMALLEST_BODY_MM:.0f} or more"
        )
    row, column = ndimage.center_of_mass(mask)
    outline = _outline(np.asarray(mean_hu, dtype=np.float64), mask, (row, column), pixel_mm)
    fit = least_squares(
        lambda p: (np.hypot(outline[:, 0] - p[0], outline[:, 1] - p[1]) - p[2]) * pixel_mm,
        [row, column, radius_mm / pixel_mm],
        loss="soft_l1",
        f_scale=0.2,
    )
    body = Body(float(fit.x[0]), float(fit.x[1]), float(fit.x[2]) * pixel_mm)
    off = np.abs(np.hypot(outline[:, 0] - body.row, outline[:, 1] - body.column) * pixel_mm - body.radius_mm)
    on = off < ON_CIRCLE_MM
    if on.sum() < SHARE_ON_CIRCLE * N_RAYS:
        raise DataError(
            f"no round phantom found: {N_RAYS - int(on.sum())} of {N_RAYS} points of the outline are {ON_CIRCLE_MM} mm or more "
            f"off the best circle, {2 * body.radius_mm:.0f} mm; these checks are for cylinders seen end on, not for heads or bodies"
        )
    inner = mean_hu[distance_mm(mean_hu.shape, body.row, body.column, pixel_mm) < 0.9 * body.radius_mm]
    if not BODY_HU_RANGE[0] <= (median := float(np.median(inner))) <= BODY_HU_RANGE[1]:
        raise DataError(f"no phantom found: the round body has {median:.0f} HU, expected water or a plastic like it")
    return replace(body, rms_mm=float(np.sqrt(np.mean(off[on] ** 2))))


def _outline(hu: NDArray[np.float64], mask: NDArray[np.bool_], centre: tuple[float, float], pixel_mm: float) -> NDArray[np.float64]:
    """Where each ray from the centre last falls through half of its own edge. Shape: (ray, (row, column)); NaN-free."""
    angle = np.arange(N_RAYS) * 2 * np.pi / N_RAYS
    r = np.arange(0, np.hypot(*hu.shape), 0.25)
    rows, columns = centre[0] + np.outer(np.sin(angle), r), centre[1] + np.outer(np.cos(angle), r)
    inside = ndimage.map_coordinates(mask.astype(np.float32), [rows, columns], order=1) > 0.5
    rough = r[inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)]
    step = 0.1
    around = np.arange(-OUTLINE_REACH_MM, OUTLINE_REACH_MM, step * pixel_mm) / pixel_mm
    along = rough[:, None] + around
    profile = ndimage.map_coordinates(
        hu, [centre[0] + np.sin(angle)[:, None] * along, centre[1] + np.cos(angle)[:, None] * along], order=1, mode="nearest"
    )
    ends = max(len(around) // 5, 1)
    level = (np.median(profile[:, :ends], axis=1) + max(AIR_HU, float(np.median(profile[:, -ends:])))) / 2
    above = profile > level[:, None]
    # The last fall within reach: overshoot and noise inside do not matter.
    falls = above[:, :-1] & ~above[:, 1:]
    last = falls.shape[1] - 1 - np.argmax(falls[:, ::-1], axis=1)
    index = np.arange(N_RAYS)
    high, low = profile[index, last], profile[index, last + 1]
    part = np.where(high > low, (high - level) / np.where(high > low, high - low, 1), 0.5)
    radius = np.where(falls.any(axis=1), along[index, last] + part * step, rough)
    return np.stack([centre[0] + np.sin(angle) * radius, centre[1] + np.cos(angle) * radius], axis=1)


# --- rods ------------------------------------------------------------------------------------------------------------------


def find_rods(
    mean_hu: NDArray[np.floating], *, noise_hu: float | NDArray[np.floating], body: Body, pixel_mm: float
) -> tuple[tuple[Rod, ...], NDArray[np.bool_]]:
    """The cylinders in a mean image, by rising CT number, and where the plain material is, away from all structure.

    A difference of Gaussians of each size finds candidates, the strongest of a neighbourhood first; a disc with a
    Gaussian edge is fitted to each, and what the disc does not explain must be noise. Strong ones are masked and the search goes on
    for weaker ones.

    Args:
        noise_hu: standard deviation of each pixel of the mean image: noise of CT is stronger in the middle, and what stands out
            there need not at the edge.

    Shape: mean_hu (y, x), noise_hu (y, x) or one number → rods, plain (y, x).
    """
    r = distance_mm(mean_hu.shape, body.row, body.column, pixel_mm)
    interior = r < INTERIOR * body.radius_mm
    flat = np.where(interior, mean_hu - _background(np.asarray(mean_hu, np.float64), body, interior, pixel_mm), 0.0)
    noise = np.broadcast_to(np.maximum(noise_hu, LEAST_NOISE_HU), flat.shape)
    open_ = interior.copy()
    found: list[_Disc] = []
    for _ in range(MOST_PASSES):
        candidates = list(_candidates(flat / noise * open_, open_, pixel_mm, body))
        if not candidates:
            break
        for row, column, diameter_mm in candidates:
            disc = _fit_disc(flat, open_, (row, column), diameter_mm, noise_hu=noise, pixel_mm=pixel_mm)
            reach = diameter_mm / 2
            if disc is not None:
                found.append(disc)
                row, column, reach = disc.row, disc.column, disc.radius_mm
            open_ &= distance_mm(mean_hu.shape, row, column, pixel_mm) > reach + WATER_LIKE_MM
    discs = [one for one in found if _is_separate(one, found, pixel_mm)]
    rods = [_rod(one, mean_hu, body, pixel_mm) for one in discs]
    rods.sort(key=lambda rod: (rod.hu, rod.radius_mm))
    named = tuple(replace(rod, name=f"rod {n}") for n, rod in enumerate(rods, start=1))
    return named, open_


@dataclass(frozen=True)
class _Disc:
    row: float
    column: float
    radius_mm: float
    contrast_hu: float


def _background(hu: NDArray[np.float64], body: Body, interior: NDArray[np.bool_], pixel_mm: float) -> NDArray[np.float64]:
    """The plain material with its cupping and tilt: a plane and r², r⁴, fitted with what stands out left out."""
    y, x = (np.arange(n) - c for n, c in zip(hu.shape, (body.row, body.column), strict=True))
    v, u = np.meshgrid(y * pixel_mm / body.radius_mm, x * pixel_mm / body.radius_mm, indexing="ij")
    r2 = u**2 + v**2
    terms = np.stack([np.ones_like(u), u, v, r2, r2**2], axis=-1)
    basis, values = terms[interior], hu[interior]
    keep = np.abs(values - np.median(values)) < 3 * 1.4826 * max(_mad(values), 5.0)
    coefficients = np.zeros(terms.shape[-1])
    for _ in range(5):
        coefficients[:] = np.linalg.lstsq(basis[keep], values[keep], rcond=None)[0]
        left = values - basis @ coefficients
        keep = np.abs(left) < 3 * max(1.4826 * _mad(left[keep]), 0.05)
    return np.asarray(terms @ coefficients)


def _mad(values: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def _candidates(
    flat: NDArray[np.float64], open_: NDArray[np.bool_], pixel_mm: float, body: Body
) -> Iterator[tuple[float, float, float]]:
    """Places and diameters that stand out of the noise, the strongest first, none within reach of a stronger one."""
    if not open_.any():
        return
    peaks: list[tuple[float, int, int, float]] = []
    for diameter_mm in ROD_DIAMETERS_MM:
        if diameter_mm > body.radius_mm / 2 or diameter_mm < 2.5 * pixel_mm:
            continue
        sigma = 0.3 * diameter_mm / pixel_mm
        response = np.abs(ndimage.gaussian_filter(flat, sigma) - ndimage.gaussian_filter(flat, 1.6 * sigma))
        z = np.where(open_, response / max(1.4826 * float(np.median(response[open_])), 1e-6), 0.0)
        tops = (z == ndimage.maximum_filter(z, size=max(3, round(sigma) | 1))) & (z > ROD_Z)
        # What is strong fills its own size best: there its response is the largest.
        peaks += [(float(response[y, x]), int(y), int(x), diameter_mm) for y, x in np.argwhere(tops)]
    peaks.sort(reverse=True)
    taken: list[tuple[int, int, float]] = []
    for response_hu, y, x, diameter_mm in peaks:
        if response_hu < AT_ONCE * peaks[0][0]:
            return
        if all(np.hypot(y - v, x - u) * pixel_mm > 1.2 * other + 0.6 * diameter_mm for v, u, other in taken):
            taken.append((y, x, diameter_mm))
            yield float(y), float(x), diameter_mm


def _fit_disc(
    flat: NDArray[np.float64],
    open_: NDArray[np.bool_],
    centre: tuple[float, float],
    diameter_mm: float,
    *,
    noise_hu: NDArray[np.floating],
    pixel_mm: float,
) -> _Disc | None:
    """The disc with a Gaussian edge that explains a neighbourhood, or None if it does not."""
    reach = 0.85 * diameter_mm + 2 * pixel_mm
    near = open_ & (distance_mm(flat.shape, *centre, pixel_mm) < reach)
    rows, columns = np.nonzero(near)
    hu = flat[near]
    if len(hu) < max(12, LEAST_IN_VIEW * np.pi * (reach / pixel_mm) ** 2):
        return None

    def design(p: NDArray[np.float64]) -> NDArray[np.float64]:
        r = np.hypot(rows - p[0], columns - p[1]) * pixel_mm
        return np.stack([(1 - erf((r - p[2]) / (np.sqrt(2) * p[3]))) / 2, np.ones(len(r))], axis=1)

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        # Both levels enter linearly: solved for at each step, which leaves four numbers to search.
        basis = design(p)
        return np.asarray(basis @ np.linalg.lstsq(basis, hu, rcond=None)[0] - hu)

    room = 0.4 * diameter_mm / pixel_mm + 1
    lower = [centre[0] - room, centre[1] - room, 0.25 * diameter_mm, 0.2 * pixel_mm]
    upper = [centre[0] + room, centre[1] + room, 0.9 * diameter_mm, 0.35 * diameter_mm]
    blur_mm = min(max(0.8 * pixel_mm, 0.05 * diameter_mm), 0.3 * diameter_mm)
    starts = [[*centre, factor * diameter_mm, blur_mm] for factor in (0.4, 0.6)]
    fits = [least_squares(residual, start, bounds=(lower, upper), x_scale=[1, 1, pixel_mm, pixel_mm]) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    basis = design(best.x)
    contrast = float(np.linalg.lstsq(basis, hu, rcond=None)[0][0])
    energy = float(np.sum((contrast * (basis[:, 0] - basis[:, 0].mean())) ** 2))
    misfit = max(2 * float(best.cost) - NOISE_ROOM * float(np.sum(noise_hu[near] ** 2)), 0.0)
    if abs(contrast) < LEAST_ROD_HU or misfit > LARGEST_MISFIT * energy or best.x[2] > LARGEST_IN_VIEW * reach:
        return None
    return _Disc(float(best.x[0]), float(best.x[1]), float(best.x[2]), contrast)


def _is_separate(disc: _Disc, others: Sequence[_Disc], pixel_mm: float) -> bool:
    """Whether it is the strongest of all that overlap it."""
    return not any(
        np.hypot(disc.row - other.row, disc.column - other.column) * pixel_mm < disc.radius_mm + other.radius_mm
        and abs(other.contrast_hu) > abs(disc.contrast_hu)
        for other in others
    )


def _rod(disc: _Disc, mean_hu: NDArray[np.floating], body: Body, pixel_mm: float) -> Rod:
    dy, dx = disc.row - body.row, disc.column - body.column
    inner = distance_mm(mean_hu.shape, disc.row, disc.column, pixel_mm) < max(ROD_CORE * disc.radius_mm, pixel_mm)
    return Rod(
        name="",
        row=disc.row,
        column=disc.column,
        radius_mm=disc.radius_mm,
        contrast_hu=disc.contrast_hu,
        hu=float(mean_hu[inner].mean()),
        place_mm=float(np.hypot(dy, dx) * pixel_mm),
        angle_deg=round(float(np.degrees(np.arctan2(dy, dx))), 3) % 360,
    )


ROD_CORE = 0.6
"""Share of a rod's radius in which its CT number is measured: blur reaches the rest. Ours."""


def rod_at(
    mean_hu: NDArray[np.floating], *, name: str, row: float, column: float, diameter_mm: float, body: Body, pixel_mm: float
) -> Rod:
    """The rod that a user says is there: its centre and radius fitted where a disc fits, else taken as told."""
    hu = np.asarray(mean_hu, dtype=np.float64)
    everywhere = np.ones(hu.shape, dtype=bool)
    disc = _fit_disc(hu, everywhere, (row, column), diameter_mm, noise_hu=np.full(hu.shape, np.inf), pixel_mm=pixel_mm)
    if disc is None or abs(disc.radius_mm / diameter_mm - 0.5) > 0.15:
        r = distance_mm(hu.shape, row, column, pixel_mm) - diameter_mm / 2
        around = (r > WATER_LIKE_MM / 2) & (r < 2 * WATER_LIKE_MM)
        disc = _Disc(row, column, diameter_mm / 2, float(hu[r < 0].mean() - hu[around].mean()))
    return replace(_rod(disc, mean_hu, body, pixel_mm), name=name)


# --- modules along z -------------------------------------------------------------------------------------------------------


def find_sections(stack_hu: NDArray[np.floating], *, pixel_mm: float) -> list[slice]:
    """Stretches of slices that show the same thing, the longest first; slices without a body and transitions are left out.

    Shape: stack_hu (z, y, x), the mean over the repeats.
    """
    smooth_pixels = 2.0 / pixel_mm
    every = max(1, round(smooth_pixels))
    smooth = np.stack([ndimage.gaussian_filter(np.asarray(one, np.float32), smooth_pixels)[::every, ::every] for one in stack_hu])
    solid = (smooth > -400).sum(axis=(1, 2))
    has_body = solid > 0.9 * np.quantile(solid, 0.9)
    inside = ndimage.binary_erosion((smooth[has_body] > -400).mean(axis=0) > 0.5, iterations=2)
    inside = ndimage.binary_fill_holes(inside) if inside.any() else np.ones_like(inside)
    starts = [0]
    for z in range(1, len(smooth)):
        change = np.abs(smooth[z] - smooth[z - 1])[inside]
        limit = max(CHANGED_HU, 6 * 1.4826 * float(np.median(change)))
        if has_body[z] != has_body[z - 1] or (change > limit).mean() > CHANGED_AREA:
            starts.append(z)
    runs = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(smooth)], strict=True) if has_body[a]]
    runs.sort(key=lambda run: run.start - run.stop)
    long_enough = [run for run in runs if run.stop - run.start >= FEWEST_SECTION_SLICES]
    return long_enough or runs[:1]
