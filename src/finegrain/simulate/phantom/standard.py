"""Physical test phantoms of ellipses and bars: anti-aliased images and the line integrals that a projector must reproduce.

Positions in mm from the isocentre, which is the pixel with index n // 2 on both axes; x to the right (columns), y in
the direction of growing rows. A ray is s = x cos θ + y sin θ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finegrain.errors import GeometryError
from finegrain.hu import AIR_HU, MU_WATER_PER_MM
from finegrain.simulate.phantom.texture import FloatArray


@dataclass(frozen=True)
class Ellipse:
    """A uniform ellipse whose value is added to what it lies on.

    >>> float(Ellipse(center_mm=(0, 0), semi_axes_mm=(10, 10), angle_rad=0, value=2.0).line_integral(0.0, 0.0))
    40.0
    """

    center_mm: tuple[float, float]
    semi_axes_mm: tuple[float, float]
    angle_rad: float
    """Turn of the first semi-axis from x towards y."""
    value: float
    """In the unit of the image: HU, or 1/mm."""

    def __post_init__(self) -> None:
        if min(self.semi_axes_mm) <= 0:
            raise GeometryError(f"semi-axes must be above 0 mm, got {self.semi_axes_mm}")

    @property
    def area_mm2(self) -> float:
        """Area in mm²."""
        return float(np.pi * self.semi_axes_mm[0] * self.semi_axes_mm[1])

    def coverage(self, size: int, pixel_mm: float) -> FloatArray:
        """Share of each pixel inside, from 16 × 16 points in the pixels on the edge (shape: y x)."""
        axis = (np.arange(size) - size // 2) * pixel_mm
        x, y = np.meshgrid(axis, axis)
        # A pixel whose centre is within 0.75 pixel of the edge may be cut (half diagonal: 0.707).
        grow = 0.75 * pixel_mm
        inner = self._radius2(x, y, -grow) < 1
        edge = (self._radius2(x, y, grow) < 1) & ~inner
        out = inner.astype(np.float32)
        step = ((np.arange(16) + 0.5) / 16 - 0.5) * pixel_mm
        fine_x, fine_y = (g.ravel() for g in np.meshgrid(step, step))
        points = self._radius2(x[edge][:, None] + fine_x, y[edge][:, None] + fine_y, 0.0)
        out[edge] = (points < 1).mean(axis=1)
        return out

    def image(self, size: int, pixel_mm: float) -> FloatArray:
        """The ellipse on zero background, in its value's unit (shape: y x)."""
        return np.float32(self.value) * self.coverage(size, pixel_mm)

    def line_integral(self, s_mm: ArrayLike, theta_rad: ArrayLike) -> NDArray[np.float64]:
        """Value times chord in mm along the ray x cos θ + y sin θ = s; the arguments broadcast.

        Source: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, section 3.1, eq. 5–8.
        """
        s, theta = np.asarray(s_mm, dtype=np.float64), np.asarray(theta_rad, dtype=np.float64)
        a, b = self.semi_axes_mm
        turn = theta - self.angle_rad
        half_width2 = (a * np.cos(turn)) ** 2 + (b * np.sin(turn)) ** 2
        off = s - self.center_mm[0] * np.cos(theta) - self.center_mm[1] * np.sin(theta)
        return 2 * self.value * a * b / half_width2 * np.sqrt(np.maximum(half_width2 - off**2, 0))

    def _radius2(self, x: NDArray[np.float64], y: NDArray[np.float64], grow_mm: float) -> NDArray[np.float64]:
        """Squared scaled radius, 1 on the edge of the ellipse grown by some mm."""
        a, b = (max(axis + grow_mm, 1e-9) for axis in self.semi_axes_mm)
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        dx, dy = x - self.center_mm[0], y - self.center_mm[1]
        return ((cos * dx + sin * dy) / a) ** 2 + ((cos * dy - sin * dx) / b) ** 2


@dataclass(frozen=True)
class Rectangle:
    """A uniform rectangle whose value is added to what it lies on: a bar of a line pattern.

    >>> float(Rectangle(center_mm=(0, 0), sides_mm=(4, 20), angle_rad=0, value=2.0).line_integral(0.0, 0.0))
    40.0
    """

    center_mm: tuple[float, float]
    sides_mm: tuple[float, float]
    angle_rad: float
    """Turn of the first side from x towards y."""
    value: float
    """In the unit of the image: HU, or 1/mm."""

    def __post_init__(self) -> None:
        if min(self.sides_mm) <= 0:
            raise GeometryError(f"sides must be above 0 mm, got {self.sides_mm}")

    @property
    def area_mm2(self) -> float:
        """Area in mm²."""
        return self.sides_mm[0] * self.sides_mm[1]

    def coverage(self, size: int, pixel_mm: float) -> FloatArray:
        """Share of each pixel inside, from 32 × 32 points in the pixels near it (shape: y x)."""
        axis = (np.arange(size) - size // 2) * pixel_mm
        reach = (np.hypot(*self.sides_mm) / 2 + pixel_mm) ** 2
        near = (axis[None, :] - self.center_mm[0]) ** 2 + (axis[:, None] - self.center_mm[1]) ** 2 < reach
        rows, columns = np.nonzero(near)
        step = ((np.arange(32) + 0.5) / 32 - 0.5) * pixel_mm
        fine_x, fine_y = (g.ravel() for g in np.meshgrid(step, step))
        dx = axis[columns][:, None] + fine_x - self.center_mm[0]
        dy = axis[rows][:, None] + fine_y - self.center_mm[1]
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        across, along = np.abs(cos * dx + sin * dy), np.abs(cos * dy - sin * dx)
        out = np.zeros((size, size), dtype=np.float32)
        out[rows, columns] = ((across < self.sides_mm[0] / 2) & (along < self.sides_mm[1] / 2)).mean(axis=1)
        return out

    def image(self, size: int, pixel_mm: float) -> FloatArray:
        """The rectangle on zero background, in its value's unit (shape: y x)."""
        return np.float32(self.value) * self.coverage(size, pixel_mm)

    def line_integral(self, s_mm: ArrayLike, theta_rad: ArrayLike) -> NDArray[np.float64]:
        """Value times chord in mm along the ray x cos θ + y sin θ = s; the arguments broadcast.

        The projection of a rectangle is a trapezium: its flat top is the longest chord, its flanks fall with the product of the
        direction's cosines.
        """
        s, theta = np.asarray(s_mm, dtype=np.float64), np.asarray(theta_rad, dtype=np.float64)
        # Below 1e-12 the flanks are steeper than any sampling sees; the floor keeps the division defined.
        cos, sin = (np.maximum(np.abs(part), 1e-12) for part in (np.cos(theta - self.angle_rad), np.sin(theta - self.angle_rad)))
        a, b = self.sides_mm
        off = np.abs(s - self.center_mm[0] * np.cos(theta) - self.center_mm[1] * np.sin(theta))
        flank = ((a * cos + b * sin) / 2 - off) / (cos * sin)
        return self.value * np.clip(flank, 0, np.minimum(a / sin, b / cos))


@dataclass(frozen=True)
class EllipsePhantom:
    """Ellipses, and bars on them, in air; each value is the HU that it adds, so water in air is +1000."""

    ellipses: tuple[Ellipse, ...]
    bars: tuple[Rectangle, ...] = ()

    @property
    def shapes(self) -> tuple[Ellipse | Rectangle, ...]:
        """All that it is made of."""
        return (*self.ellipses, *self.bars)

    def image(self, size: int, pixel_mm: float) -> FloatArray:
        """CT numbers in HU (shape: y x)."""
        out = np.full((size, size), AIR_HU, dtype=np.float32)
        for shape in self.shapes:
            out += shape.image(size, pixel_mm)
        return out

    def line_integral(
        self, s_mm: ArrayLike, theta_rad: ArrayLike, *, mu_water_per_mm: float = MU_WATER_PER_MM
    ) -> NDArray[np.float64]:
        """Attenuation along rays, dimensionless: the exact sinogram of `image` for air without attenuation."""
        total = sum(shape.line_integral(s_mm, theta_rad) for shape in self.shapes)
        return np.asarray(total) * (mu_water_per_mm / 1000)


@dataclass(frozen=True)
class Insert:
    """A disc in a water body."""

    diameter_mm: float
    hu: float
    """CT number of the insert, which in water is also its contrast."""
    radius_mm: float
    """Distance of its centre from the isocentre."""
    angle_rad: float
    """Direction of its centre, from x towards y."""

    @property
    def center_mm(self) -> tuple[float, float]:
        """Centre (x, y)."""
        return self.radius_mm * float(np.cos(self.angle_rad)), self.radius_mm * float(np.sin(self.angle_rad))


CONTRAST_INSERTS = tuple(
    Insert(12.0, hu, 58.4, i * 2 * np.pi / 7) for i, hu in enumerate((-1000.0, -200.0, -100.0, -35.0, 120.0, 340.0, 990.0))
)
"""Air, PMP, LDPE, polystyrene, acrylic, Delrin and Teflon rods, nominal HU, size and radius as in the CTP404 module of
the Catphan manual; evenly spaced, in this order, which is ours."""

CCT189_INSERTS = tuple(
    Insert(diameter, hu, 40.0, (2 * i + 1) * np.pi / 4)
    for i, (diameter, hu) in enumerate(((3.0, 14.0), (5.0, 7.0), (7.0, 5.0), (10.0, 3.0)))
)
"""Low-contrast rods of the MITA CCT189 body, 3 mm / 14 HU to 10 mm / 3 HU; the directions are ours."""


def insert_phantom(inserts: Sequence[Insert] = CONTRAST_INSERTS, *, diameter_mm: float = 200.0) -> EllipsePhantom:
    """A round water body with inserts.

    Raises:
        GeometryError: an insert sticks out of the body.
    """
    for insert in inserts:
        reach = insert.radius_mm + insert.diameter_mm / 2
        if reach > diameter_mm / 2:
            raise GeometryError(f"insert reaches {reach:.1f} mm from the centre of a {diameter_mm:.0f} mm body")
    body = Ellipse((0.0, 0.0), (diameter_mm / 2, diameter_mm / 2), 0.0, -AIR_HU)
    rods = (Ellipse(i.center_mm, (i.diameter_mm / 2, i.diameter_mm / 2), 0.0, i.hu) for i in inserts)
    return EllipsePhantom((body, *rods))


def cct189_phantom() -> EllipsePhantom:
    """The low-contrast body for observer studies: 200 mm water with the four CCT189 rods at 40 mm."""
    return insert_phantom(CCT189_INSERTS)


LINE_PAIRS_PER_CM = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
"""Frequencies of `line_pair_phantom`: from what every kernel shows to what hardly any does; the ACR phantom has 4 to 12."""

LINE_PAIR_RING_MM = 55.0
"""Distance of the patterns' centres from the isocentre."""

LINE_PAIR_BAR_MM = 15.0
"""Length of a bar, as the side of a pattern of the ACR phantom."""

BARS_PER_PATTERN = 5


def line_pair_centre(index: int) -> tuple[float, float, float]:
    """Centre (x, y) in mm of pattern `index` of `line_pair_phantom`, and the direction from the isocentre to it in rad."""
    angle = 2 * np.pi * index / len(LINE_PAIRS_PER_CM)
    return LINE_PAIR_RING_MM * float(np.cos(angle)), LINE_PAIR_RING_MM * float(np.sin(angle)), angle


def line_pair_phantom(*, contrast_hu: float = 1000.0, diameter_mm: float = 160.0) -> EllipsePhantom:
    """A round water body with a ring of bar patterns, 3 to 12 line pairs per cm, their bars pointing to the isocentre.

    Layout as in the high-resolution module of the Catphan; frequencies and bar length as in the ACR phantom. A line pair is a bar
    and a gap of the same width.

    Raises:
        GeometryError: the patterns stick out of the body.
    """
    if diameter_mm / 2 < LINE_PAIR_RING_MM + LINE_PAIR_BAR_MM:
        raise GeometryError(
            f"the line pairs reach {LINE_PAIR_RING_MM + LINE_PAIR_BAR_MM:.0f} mm from the centre of a {diameter_mm:.0f} mm body; "
            f"expected a diameter of {2 * (LINE_PAIR_RING_MM + LINE_PAIR_BAR_MM):.0f} mm or more"
        )
    body = Ellipse((0.0, 0.0), (diameter_mm / 2, diameter_mm / 2), 0.0, -AIR_HU)
    bars = []
    for index, per_cm in enumerate(LINE_PAIRS_PER_CM):
        x, y, angle = line_pair_centre(index)
        for place in np.arange(BARS_PER_PATTERN) - (BARS_PER_PATTERN - 1) / 2:
            off = float(place) * 10 / per_cm
            centre = x - off * float(np.sin(angle)), y + off * float(np.cos(angle))
            bars.append(Rectangle(centre, (LINE_PAIR_BAR_MM, 5 / per_cm), angle, contrast_hu))
    return EllipsePhantom((body,), tuple(bars))


def water_disc(diameter_mm: float, size: int, pixel_mm: float) -> FloatArray:
    """CT numbers of a water disc in air, HU (shape: y x).

    >>> disc = water_disc(100.0, 128, 1.0)
    >>> float(disc[64, 64]), float(disc[0, 0])
    (0.0, -1000.0)
    """
    return insert_phantom((), diameter_mm=diameter_mm).image(size, pixel_mm)
