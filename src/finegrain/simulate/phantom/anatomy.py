"""Virtual patients: procedural anatomy of five regions with exact truth; the same seed gives the same patient.

Everything is defined in three dimensions and cut by thin sections, which are averaged over the slice thickness. They
stand in for anatomy when a pipeline is trained or tested; they are parametric, hold no real patient's variety, and
prove nothing clinical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import GeometryError
from finegrain.simulate.phantom.abdomen import draw_abdomen, draw_abdominal_vessels
from finegrain.simulate.phantom.body import (
    draw_back_muscles,
    draw_ribs,
    draw_scapulae,
    draw_spine,
    draw_sternum,
    draw_wall,
)
from finegrain.simulate.phantom.drawing import Canvas, Frame
from finegrain.simulate.phantom.head import Z_RANGE_MM as HEAD_Z_MM
from finegrain.simulate.phantom.head import draw_head, head
from finegrain.simulate.phantom.pelvis import Z_RANGE_MM as PELVIS_Z_MM
from finegrain.simulate.phantom.pelvis import draw_pelvis, pelvis
from finegrain.simulate.phantom.person import Z_RANGE_MM as TRUNK_Z_MM
from finegrain.simulate.phantom.person import Lesion, person
from finegrain.simulate.phantom.section import LABELS, Trunk, cut, cut_trunk
from finegrain.simulate.phantom.shoulder import Z_RANGE_MM as SHOULDER_Z_MM
from finegrain.simulate.phantom.shoulder import draw_shoulders, shoulders
from finegrain.simulate.phantom.thorax import draw_airways, draw_lungs, draw_mediastinum

Region = Literal["thorax", "abdomen", "head", "pelvis", "shoulder"]

REGION_CENTER_MM: dict[Region, float] = {"thorax": 60.0, "abdomen": -85.0, "head": 42.0, "pelvis": 30.0, "shoulder": 0.0}
"""Height of the middle slice: hilum of the lung; pancreas and kidneys; ventricles of the brain; roof
of the hip joints; humeral heads."""

Z_RANGE_MM: dict[Region, tuple[float, float]] = {
    "thorax": TRUNK_Z_MM, "abdomen": TRUNK_Z_MM, "head": HEAD_Z_MM, "pelvis": PELVIS_Z_MM,
    "shoulder": SHOULDER_Z_MM,
}  # fmt: skip
"""Lowest and highest z that is modelled; trunk and each other region have coordinates of their own."""

MIN_FIELD_MM: dict[Region, float] = {"thorax": 358.0, "abdomen": 358.0, "head": 230.0, "pelvis": 400.0, "shoulder": 480.0}
"""The field of view that nearly every patient needs in each region; a body that is cut by the field cannot be projected."""


@dataclass(frozen=True)
class PhantomVolume:
    """A drawn volume and its truth."""

    hu: NDArray[np.float32]
    """CT numbers without noise, HU (shape: z y x); z grows towards the head."""
    labels: NDArray[np.uint8]
    """What fills each pixel in the middle plane of its slice: values of `LABELS` (shape: z y x)."""
    pixel_mm: float
    slice_mm: float


@dataclass(frozen=True)
class VirtualPatient:
    """One virtual person, seen in one region. The same seed is the same person in every region: split data by seed.

    >>> volume = VirtualPatient(seed=1, region="thorax").slices(1, size=96, pixel_mm=4.0)
    >>> volume.hu.shape, float(volume.hu[0, 0, 0])
    ((1, 96, 96), -1000.0)
    """

    seed: int
    region: Region

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise GeometryError(f"a patient's seed is 0 or more, got {self.seed}")
        if self.region not in REGION_CENTER_MM:
            raise GeometryError(f'region is one of {", ".join(REGION_CENTER_MM)}, got "{self.region}"')

    @property
    def phase(self) -> str:
        """Contrast phase: native, arterial or portal."""
        return person(self.seed).phase

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Lesions of known size (semi-axes) and HU, in body coordinates: the patient's warp moves and stretches them a little."""
        return _lesions(self.region, self.seed)

    def slices(
        self, n: int, *, size: int = 512, pixel_mm: float = 0.7, slice_mm: float = 3.0, center_z_mm: float = 0.0
    ) -> PhantomVolume:
        """Adjacent slices around the middle of the region; a place looks the same whatever n is.

        Args:
            n: number of slices.
            size: pixels per side; pixel_mm: their size. The field of view must hold the patient: `MIN_FIELD_MM`.
            slice_mm: thickness and distance of slices; each is the mean of thin sections about 1.5 mm apart.
            center_z_mm: height of the middle slice above the region's own middle.

        Raises:
            GeometryError: the field of view or the modelled height is too small.
        """
        if n < 1 or slice_mm <= 0 or pixel_mm <= 0:
            raise GeometryError(f"expected n ≥ 1 and sizes above 0, got n = {n}, {pixel_mm} mm, {slice_mm} mm")
        needed = MIN_FIELD_MM[self.region]
        if size * pixel_mm < needed:
            raise GeometryError(
                f"field of view of {size} × {pixel_mm} mm = {size * pixel_mm:.0f} mm cuts the body; take at least {needed:.0f} mm"
            )
        middle = REGION_CENTER_MM[self.region] + center_z_mm
        heights = middle + (np.arange(n) - (n - 1) / 2) * slice_mm
        low, high = heights[0] - slice_mm / 2, heights[-1] + slice_mm / 2
        lowest, highest = Z_RANGE_MM[self.region]
        if low < lowest or high > highest:
            raise GeometryError(
                f"slices from z = {low:.0f} to {high:.0f} mm, but the anatomy spans {lowest:.0f} to {highest:.0f} mm; "
                "take fewer or thinner slices, or another centre"
            )
        drawn = [self._slice(float(z), size, pixel_mm, slice_mm) for z in heights]
        return PhantomVolume(np.stack([hu for hu, _ in drawn]), np.stack([la for _, la in drawn]), pixel_mm, slice_mm)

    def _slice(self, z_mm: float, size: int, pixel_mm: float, slice_mm: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Mean HU of the sections of one slice, and the labels of the middle one."""
        n_sections = 1 if slice_mm < 2 else 3 if slice_mm < 6 else 5
        heights = z_mm + ((np.arange(n_sections) + 0.5) / n_sections - 0.5) * slice_mm
        sections = [self._section(float(z), size, pixel_mm, slice_mm / n_sections) for z in heights]
        hu = np.stack([section.hu for section in sections]).mean(axis=0).astype(np.float32)
        return hu, sections[n_sections // 2].labels

    def _section(self, z_mm: float, size: int, pixel_mm: float, slab_mm: float) -> Canvas:
        frame, draw = _plan(self.region, self.seed)
        canvas = Canvas(frame, size=size, pixel_mm=pixel_mm, z_mm=z_mm, slab_mm=slab_mm)
        draw(canvas)
        return canvas


def _plan(region: Region, seed: int) -> tuple[Frame, Callable[[Canvas], None]]:
    """The frame of one patient's region, and what draws it."""
    if region == "head":
        skull = head(seed)
        return skull.person.frame, lambda canvas: draw_head(cut(canvas, skull.person), skull)
    if region == "pelvis":
        hips = pelvis(seed)
        return hips.person.frame, lambda canvas: draw_pelvis(cut(canvas, hips.person), hips)
    if region == "shoulder":
        top = shoulders(seed)
        return top.frame, lambda canvas: draw_shoulders(cut(canvas, top))
    who = person(seed)
    return who.frame, lambda canvas: draw_trunk(cut_trunk(canvas, who))


def _lesions(region: Region, seed: int) -> tuple[Lesion, ...]:
    """All lesions in a region's drawing, in its body coordinates."""
    if region == "head":
        return head(seed).person.lesions
    if region == "pelvis":
        return pelvis(seed).person.lesions
    return shoulders(seed).lesions if region == "shoulder" else person(seed).lesions


def draw_trunk(s: Trunk) -> None:
    """One slice of chest or belly, painted from the wall inwards and from soft to hard."""
    skin = draw_wall(s)
    draw_lungs(s)
    draw_back_muscles(s)
    draw_abdomen(s)
    draw_mediastinum(s)
    draw_abdominal_vessels(s)
    draw_airways(s)
    draw_ribs(s)
    draw_sternum(s)
    draw_scapulae(s)
    draw_spine(s, skin)


__all__ = ["LABELS", "MIN_FIELD_MM", "PhantomVolume", "Region", "VirtualPatient"]
