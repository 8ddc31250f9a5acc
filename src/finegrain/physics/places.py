"""Where the checks look in a phantom: which slices, the discs near its edge, the squares of the noise power spectrum.

Found once, on the scan before, and used for every scan after it, so that no method can move the ground on which it is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import DataError
from finegrain.evaluate.spectra import FEWEST_ROIS, uniform_patches
from finegrain.physics.geometry import (
    WATER_LIKE_MM,
    Body,
    Phantom,
    Rod,
    Section,
    distance_mm,
    find_body,
    find_rods,
    find_sections,
    rod_at,
)
from finegrain.physics.scans import FEWEST_IMAGES, PhantomScan
from finegrain.physics.settings import BodyPlace, PhantomSettings, RodPlace

NOISE_DISC = 0.4
"""Diameter of the central disc in which noise is measured over that of the body, as in IEC 61223-3-5."""

ROI_SHARE, ROI_FROM_EDGE_MM = 0.1, 10.0
"""Diameter of the five discs of the uniformity check over that of the body, and the distance of the outer four from its edge. Ours,
near to what acceptance protocols use."""

NPS_SIDES = (64, 48, 32, 24)
"""Sides of the squares for the NPS in pixels; the first that fits eight times into the plain material, else the last. Ours."""

NOISE_MAP_MM = 8.0
"""Blur of the map of the noise: wide enough that three images tell it to a few percent, narrow beside the body. Ours."""

NPS_REACH = 0.8
"""Share of the body's radius from within which squares are taken: nearer to the edge noise is another. Ours."""


def find_phantom(scan: PhantomScan, settings: PhantomSettings) -> Phantom:
    """The body, the uniform section and that of the rods in a scan; what the settings tell is not looked for.

    The uniform section is the longest without rods, else that of the rods, whose plain part is used.

    Raises: DataError if there is no phantom, too few slices, or slices that do not exist.
    """
    over_repeats = scan.hu.mean(axis=0)
    sections = find_sections(over_repeats, pixel_mm=scan.pixel_mm)
    told = [_told_slices(t, scan) for t in (settings.uniform_slices, settings.rod_slices)]
    first = next((one for one in (*told, *sections) if one is not None), None)
    if first is None:
        raise DataError(f"no phantom found in the {scan.name} scan: no slice holds a body; give the slices of a phantom")
    if settings.body is None:
        body = find_body(over_repeats[first].mean(axis=0), pixel_mm=scan.pixel_mm)
    else:
        body = _told_body(settings.body, scan)
    found = [_section(scan, over_repeats, one, body, settings) for one in dict.fromkeys(_as_pair(s) for s in sections)]
    uniform = _section(scan, over_repeats, _as_pair(told[0]), body, settings, with_rods=False) if told[0] else None
    rods = _section(scan, over_repeats, _as_pair(told[1]), body, settings) if told[1] else None
    rods = rods or max((one for one in found if one.rods), key=lambda one: (len(one.rods), one.n_slices), default=None)
    uniform = uniform or next((one for one in found if not one.rods), None) or rods
    assert uniform is not None
    for section in {id(s): s for s in (uniform, rods) if s is not None}.values():
        if (n := section.n_slices * scan.n_repeats) < FEWEST_IMAGES:
            raise DataError(
                f"the {scan.name} scan has {n} images of a module, expected {FEWEST_IMAGES} or more; add slices or repeats"
            )
    return Phantom(body, uniform, rods)


def _as_pair(section: slice) -> tuple[int, int]:
    return int(section.start), int(section.stop)


def _told_body(told: BodyPlace, scan: PhantomScan) -> Body:
    reach = told.diameter_mm / 2 / scan.pixel_mm
    rows, columns = scan.hu.shape[2:]
    if min(told.row, told.column) < reach or told.row > rows - 1 - reach or told.column > columns - 1 - reach:
        raise DataError(
            f"the body of {told.diameter_mm:g} mm at row {told.row:g}, column {told.column:g} sticks out of the image of "
            f"{rows} × {columns} pixels of {scan.pixel_mm:.4g} mm; mend its place in the settings"
        )
    return Body(told.row, told.column, told.diameter_mm / 2)


def _told_slices(told: tuple[int, int] | None, scan: PhantomScan) -> slice | None:
    if told is None:
        return None
    if told[1] > scan.hu.shape[1]:
        raise DataError(
            f"slices {told[0]} to {told[1]} were asked for, the {scan.name} scan has {scan.hu.shape[1]}; mend the settings"
        )
    return slice(told[0] - 1, told[1])


def _section(
    scan: PhantomScan,
    over_repeats: NDArray[np.floating],
    pair: tuple[int, int],
    body: Body,
    settings: PhantomSettings,
    *,
    with_rods: bool = True,
) -> Section:
    slices = slice(*pair)
    mean = over_repeats[slices].mean(axis=0)
    images = scan.images(slices)
    variance = images.var(axis=0, ddof=1) / len(images) if len(images) > 1 else np.zeros_like(mean)
    noise = np.sqrt(ndimage.gaussian_filter(variance, NOISE_MAP_MM / scan.pixel_mm))
    rods, plain = find_rods(mean, noise_hu=noise, body=body, pixel_mm=scan.pixel_mm)
    if not with_rods:
        rods = ()
    elif settings.rods is not None:
        rods = tuple(_told_rod(mean, place, body, scan.pixel_mm) for place in settings.rods)
        for rod in rods:
            plain &= distance_mm(mean.shape, rod.row, rod.column, scan.pixel_mm) > rod.radius_mm + WATER_LIKE_MM
    return Section(slices, rods, plain)


def _told_rod(mean: NDArray[np.floating], place: RodPlace, body: Body, pixel_mm: float) -> Rod:
    row, column = body.row + place.y_mm / pixel_mm, body.column + place.x_mm / pixel_mm
    if place.diameter_mm < 2 * pixel_mm:
        raise DataError(
            f"{place.name} is {place.diameter_mm:g} mm wide, expected two pixels of {pixel_mm:.4g} mm or more; leave it out, or "
            "reconstruct a smaller field of view"
        )
    if np.hypot(place.x_mm, place.y_mm) + place.diameter_mm / 2 > body.radius_mm:
        raise DataError(f"{place.name} would stick out of the body of {2 * body.radius_mm:.0f} mm; mend its place in the settings")
    rod = rod_at(mean, name=place.name, row=row, column=column, diameter_mm=place.diameter_mm, body=body, pixel_mm=pixel_mm)
    return replace(rod, expected_hu=place.expected_hu)


@dataclass(frozen=True)
class Spot:
    """A disc in which something was measured, in pixels; what the overlay draws."""

    name: str
    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class Places:
    """Where everything is measured, the same for all scans.

    Attributes:
        spots: "centre", and four near the edge by the clock. noise_disc: of the noise.
        squares: first row and column of each square of the NPS, side pixels wide.
    """

    spots: tuple[Spot, ...]
    noise_disc: Spot
    squares: tuple[tuple[int, int], ...]
    side: int


def find_places(phantom: Phantom, *, pixel_mm: float) -> Places:
    """The discs and squares of the uniform section.

    The outer discs are turned by an hour or two of the clock where they would touch a rod, and left out where that does not help.
    """
    body, plain = phantom.body, phantom.uniform.plain
    radius = ROI_SHARE * body.radius_mm / pixel_mm
    out = (body.radius_mm - max(ROI_FROM_EDGE_MM, 0.09 * body.radius_mm)) / pixel_mm - radius
    turns = [[_at_clock(hour + turn, out, radius, body) for hour in (12, 3, 6, 9)] for turn in (0, 1, 2)]
    free = [[spot for spot in spots if _is_plain(spot, plain)] for spots in turns]
    outer = max(free, key=len)  # the first of equals: the usual four, if they are free
    centre = Spot("centre", body.row, body.column, radius)
    side, squares = _squares(plain, body, pixel_mm)
    return Places(
        spots=(*([centre] if _is_plain(centre, plain) else []), *outer),
        noise_disc=Spot("noise", body.row, body.column, NOISE_DISC * body.radius_mm / pixel_mm),
        squares=squares,
        side=side,
    )


def _at_clock(hour: int, out: float, radius: float, body: Body) -> Spot:
    angle = hour * np.pi / 6
    name = f"{(hour - 1) % 12 + 1} o'clock"
    return Spot(name, body.row - out * float(np.cos(angle)), body.column + out * float(np.sin(angle)), radius)


def disc(spot: Spot, shape: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels of a spot. Shape: (y, x)."""
    return distance_mm(shape, spot.row, spot.column, 1.0) <= spot.radius


def _is_plain(spot: Spot, plain: NDArray[np.bool_]) -> bool:
    return bool(plain[disc(spot, plain.shape)].mean() > 0.98)


def _squares(plain: NDArray[np.bool_], body: Body, pixel_mm: float) -> tuple[int, tuple[tuple[int, int], ...]]:
    mask = plain & (distance_mm(plain.shape, body.row, body.column, pixel_mm) < NPS_REACH * body.radius_mm)
    rows, columns = np.arange(len(plain))[:, None] + 0 * plain, np.arange(plain.shape[1])[None, :] + 0 * plain
    for side in NPS_SIDES:
        first_rows, first_columns = (uniform_patches(index, mask, side, min_coverage=1.0)[:, 0, 0] for index in (rows, columns))
        if len(first_rows) >= FEWEST_ROIS:
            break
    return side, tuple((int(r), int(c)) for r, c in zip(first_rows, first_columns, strict=True))
