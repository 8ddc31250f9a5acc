"""Virtual patients: procedural chest and abdomen with exact truth; the same seed gives the same patient.

Everything is defined in three dimensions and cut by thin sections, which are averaged over the slice thickness. They
stand in for anatomy when a pipeline is trained or tested; they are parametric, hold no real patient's variety, and
prove nothing clinical.
"""

from __future__ import annotations

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
from finegrain.simulate.phantom.drawing import Canvas
from finegrain.simulate.phantom.person import Z_RANGE_MM, person
from finegrain.simulate.phantom.section import LABELS, cut
from finegrain.simulate.phantom.thorax import draw_airways, draw_lungs, draw_mediastinum

REGION_CENTER_MM = {"thorax": 60.0, "abdomen": -85.0}
"""Height of the middle slice: hilum of the lung; pancreas and kidneys."""

MIN_FIELD_MM = 350.0
"""The largest patient needs this field of view; a body cut by the field cannot be projected."""


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
    """One virtual person, seen in one region. The same seed is the same person in both regions: split data by seed.

    >>> volume = VirtualPatient(seed=1, region="thorax").slices(1, size=96, pixel_mm=4.0)
    >>> volume.hu.shape, float(volume.hu[0, 0, 0])
    ((1, 96, 96), -1000.0)
    """

    seed: int
    region: Literal["thorax", "abdomen"]

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise GeometryError(f"a patient's seed is 0 or more, got {self.seed}")
        if self.region not in REGION_CENTER_MM:
            raise GeometryError(f'region is "thorax" or "abdomen", got "{self.region}"')

    @property
    def phase(self) -> str:
        """Contrast phase: native, arterial or portal."""
        return person(self.seed).phase

    def slices(
        self, n: int, *, size: int = 512, pixel_mm: float = 0.7, slice_mm: float = 3.0, center_z_mm: float = 0.0
    ) -> PhantomVolume:
        """Adjacent slices around the middle of the region; a place looks the same whatever n is.

        Args:
            n: number of slices.
            size: pixels per side; pixel_mm: their size. The field of view must hold the patient, 350 mm.
            slice_mm: thickness and distance of slices; each is the mean of thin sections about 1.5 mm apart.
            center_z_mm: height of the middle slice above the region's own middle.

        Raises:
            GeometryError: the field of view or the modelled height is too small.
        """
        if n < 1 or slice_mm <= 0 or pixel_mm <= 0:
            raise GeometryError(f"expected n ≥ 1 and sizes above 0, got n = {n}, {pixel_mm} mm, {slice_mm} mm")
        if size * pixel_mm < MIN_FIELD_MM:
            raise GeometryError(
                f"field of view of {size} × {pixel_mm} mm = {size * pixel_mm:.0f} mm cuts the body; "
                f"take at least {MIN_FIELD_MM:.0f} mm"
            )
        middle = REGION_CENTER_MM[self.region] + center_z_mm
        heights = middle + (np.arange(n) - (n - 1) / 2) * slice_mm
        low, high = heights[0] - slice_mm / 2, heights[-1] + slice_mm / 2
        if low < Z_RANGE_MM[0] or high > Z_RANGE_MM[1]:
            raise GeometryError(
                f"slices from z = {low:.0f} to {high:.0f} mm, but the anatomy spans {Z_RANGE_MM[0]:.0f} to "
                f"{Z_RANGE_MM[1]:.0f} mm; take fewer or thinner slices, or another centre"
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
        who = person(self.seed)
        canvas = Canvas(who.frame, size=size, pixel_mm=pixel_mm, z_mm=z_mm, slab_mm=slab_mm)
        s = cut(canvas, who)
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
        return canvas


__all__ = ["LABELS", "PhantomVolume", "VirtualPatient"]
