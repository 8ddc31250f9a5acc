"""One slice being drawn: signed distances in mm, soft edges, and a painter who keeps the labels.

A shape is an array of signed distances (negative inside). Its coverage falls from 1 to 0 over one pixel, centred on the
edge: that is what area-averaging of a finer drawing gives, at a quarter of its cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finegrain.simulate.phantom.texture import FloatArray, Waves
from finegrain.simulate.phantom.trees import Tubes

Window = tuple[slice, slice]
FAR_MM = np.float32(1e3)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid in body coordinates, mm; `angle_rad` turns it about z from x towards y."""

    center_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    angle_rad: float = 0.0


@dataclass(frozen=True)
class Frame:
    """How one patient's body coordinates lie in the scanner: stretched, shifted and smoothly warped."""

    stretch_x: float
    stretch_y: float
    shift_mm: tuple[float, float]
    warp_x: Waves
    warp_y: Waves

    def to_scanner(
        self, u_mm: NDArray[np.float64], v_mm: NDArray[np.float64], z_mm: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scanner positions of body positions; four fixed-point steps, enough for 0.1 mm at this smoothness."""
        x, y = u_mm * self.stretch_x, v_mm * self.stretch_y
        for _ in range(4):
            x, y = (
                (u_mm - self.warp_x.at(x, y, z_mm)) * self.stretch_x + self.shift_mm[0],
                (v_mm - self.warp_y.at(x, y, z_mm)) * self.stretch_y + self.shift_mm[1],
            )
        return x, y


class Canvas:
    """A slice at one z: body coordinates of every pixel, and the HU and labels painted so far."""

    def __init__(self, frame: Frame, *, size: int, pixel_mm: float, z_mm: float, slab_mm: float) -> None:
        self.frame, self.size, self.pixel_mm, self.z_mm, self.slab_mm = frame, size, pixel_mm, z_mm, slab_mm
        self.axis_mm = (np.arange(size) - size // 2) * pixel_mm
        x = self.axis_mm - frame.shift_mm[0]
        y = self.axis_mm - frame.shift_mm[1]
        warp_x = frame.warp_x.on_grid(self.axis_mm, self.axis_mm, z_mm)
        warp_y = frame.warp_y.on_grid(self.axis_mm, self.axis_mm, z_mm)
        self.u: FloatArray = warp_x + (x / frame.stretch_x).astype(np.float32)[None, :]
        self.v: FloatArray = warp_y + (y / frame.stretch_y).astype(np.float32)[:, None]
        self.hu = np.full((size, size), -1000.0, dtype=np.float32)
        self.labels = np.zeros((size, size), dtype=np.uint8)
        self.everywhere: Window = (slice(0, size), slice(0, size))

    def coverage(self, distance_mm: FloatArray) -> FloatArray:
        """Share of each pixel that lies inside."""
        return np.clip(0.5 - distance_mm / np.float32(self.pixel_mm), 0, 1)

    def paint(self, coverage: FloatArray, hu: FloatArray | float, label: int, window: Window | None = None) -> None:
        """Lay a tissue over what is there; the label changes where it covers at least half."""
        w = window or self.everywhere
        here = self.hu[w]
        here += coverage * (np.asarray(hu, dtype=np.float32) - here)
        self.labels[w][coverage >= 0.5] = label

    def window(self, u_mm: NDArray[np.float64], v_mm: NDArray[np.float64], reach_mm: float) -> Window | None:
        """The pixels within a distance of any of the body points; None when all lie outside the field of view."""
        x, y = self.frame.to_scanner(u_mm, v_mm, self.z_mm)
        reach = reach_mm * max(self.frame.stretch_x, self.frame.stretch_y, 1.0) + 1.5 + self.pixel_mm
        half = self.size // 2
        left = max(int((x.min() - reach) / self.pixel_mm + half), 0)
        right = min(int((x.max() + reach) / self.pixel_mm + half) + 2, self.size)
        top = max(int((y.min() - reach) / self.pixel_mm + half), 0)
        bottom = min(int((y.max() + reach) / self.pixel_mm + half) + 2, self.size)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    def ellipse(self, u_mm: float, v_mm: float, a_mm: float, b_mm: float, angle_rad: float = 0.0) -> FloatArray:
        """Distance to an ellipse in this slice, right to first order at the edge (shape: y x)."""
        return ellipse_distance(self.u, self.v, u_mm, v_mm, a_mm, b_mm, angle_rad)

    def ellipsoid(self, body: Ellipsoid, grow_mm: float = 0.0) -> FloatArray:
        """Distance, within this slice, to the section of an ellipsoid grown by some mm; FAR where it is not cut."""
        a, b, c = (axis + grow_mm for axis in body.semi_axes_mm)
        rest = 1 - ((self.z_mm - body.center_mm[2]) / c) ** 2
        if rest <= 1e-3:
            return np.full((self.size, self.size), FAR_MM)
        shrink = float(np.sqrt(rest))
        return self.ellipse(body.center_mm[0], body.center_mm[1], a * shrink, b * shrink, body.angle_rad)

    def tube_distance(self, tubes: Tubes) -> FloatArray | None:
        """Distance to the nearest of the tubes (FAR beyond 6 mm from each); None when the slice cuts none of them."""
        near = tubes.near(self.z_mm, 6.0)
        if not len(near.start_mm):
            return None
        out = np.full((self.size, self.size), FAR_MM)
        for w, distance, _ in self._each_tube(near, reach_mm=6.0, slab_mm=0.0):
            np.minimum(out[w], distance, out=out[w])
        return out

    def thin_tube_coverage(self, tubes: Tubes) -> FloatArray:
        """Share of each pixel and slab filled by thin tubes, down to vessels narrower than both."""
        out = np.zeros((self.size, self.size), dtype=np.float32)
        for w, distance, radius in self._each_tube(tubes.near(self.z_mm, self.slab_mm), 1.0, self.slab_mm):
            # The edge ramp of a tube narrower than a pixel would hold too much; the two factors restore its volume.
            fill = min(1.0, 2 * radius / self.pixel_mm) * min(1.0, (0.5 * np.pi * radius) / self.slab_mm)
            np.maximum(out[w], self.coverage(distance) * np.float32(fill), out=out[w])
        return out

    def _each_tube(self, tubes: Tubes, reach_mm: float, slab_mm: float) -> list[tuple[Window, FloatArray, float]]:
        """Window, distance and mean radius of each segment; the slab's half-thickness is taken off along z."""
        x0, y0 = self.frame.to_scanner(tubes.start_mm[:, 0], tubes.start_mm[:, 1], self.z_mm)
        x1, y1 = self.frame.to_scanner(tubes.end_mm[:, 0], tubes.end_mm[:, 1], self.z_mm)
        radius = np.maximum(tubes.start_radius_mm, tubes.end_radius_mm)
        # Only the part of the axis within reach of the slice matters: clip it, so that windows stay small.
        z0, dz = tubes.start_mm[:, 2], tubes.end_mm[:, 2] - tubes.start_mm[:, 2]
        reach = radius + reach_mm + slab_mm
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.stack([(self.z_mm - reach - z0) / dz, (self.z_mm + reach - z0) / dz])
        flat = np.abs(dz) < 1e-6
        low = np.where(flat, 0.0, np.clip(t.min(axis=0), 0, 1))
        high = np.where(flat, 1.0, np.clip(t.max(axis=0), 0, 1))
        xs = np.stack([x0 + (x1 - x0) * low, x0 + (x1 - x0) * high])
        ys = np.stack([y0 + (y1 - y0) * low, y0 + (y1 - y0) * high])
        margin = reach + self.pixel_mm + 1.0
        half, n = self.size // 2, self.size
        left = np.clip((xs.min(axis=0) - margin) / self.pixel_mm + half, 0, n).astype(int)
        right = np.clip((xs.max(axis=0) + margin) / self.pixel_mm + half + 2, 0, n).astype(int)
        top = np.clip((ys.min(axis=0) - margin) / self.pixel_mm + half, 0, n).astype(int)
        bottom = np.clip((ys.max(axis=0) + margin) / self.pixel_mm + half + 2, 0, n).astype(int)
        found: list[tuple[Window, FloatArray, float]] = []
        for i in np.flatnonzero((left < right) & (top < bottom)):
            w = (slice(top[i], bottom[i]), slice(left[i], right[i]))
            a, axis = tubes.start_mm[i], tubes.end_mm[i] - tubes.start_mm[i]
            du, dv, dw = self.u[w] - np.float32(a[0]), self.v[w] - np.float32(a[1]), self.z_mm - a[2]
            ax, ay, az = (float(c) for c in axis)
            along = np.clip((du * ax + dv * ay + dw * az) / (ax * ax + ay * ay + az * az + 1e-9), 0, 1)
            off_z = np.maximum(np.abs(dw - along * az) - slab_mm / 2, 0)
            r0, r1 = float(tubes.start_radius_mm[i]), float(tubes.end_radius_mm[i])
            distance = np.sqrt((du - along * ax) ** 2 + (dv - along * ay) ** 2 + off_z**2) - (r0 + along * (r1 - r0))
            found.append((w, distance, (r0 + r1) / 2))
        return found


def ellipse_distance(
    u: FloatArray, v: FloatArray, u_mm: float, v_mm: float, a_mm: float, b_mm: float, angle_rad: float = 0.0
) -> FloatArray:
    """Signed distance to an ellipse, right to first order at its edge: (f − 1) / |∇f| with f the scaled radius."""
    cos, sin = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    du, dv = u - np.float32(u_mm), v - np.float32(v_mm)
    p, q = (cos * du + sin * dv) / np.float32(a_mm), (cos * dv - sin * du) / np.float32(b_mm)
    f = np.sqrt(p * p + q * q)
    steep = np.sqrt((p / np.float32(a_mm)) ** 2 + (q / np.float32(b_mm)) ** 2)
    return (f - 1) * f / np.maximum(steep, np.float32(1e-6))


def superellipse_distance(
    u: FloatArray, v: FloatArray, a_mm: FloatArray | float, b_mm: FloatArray | float, power: float
) -> FloatArray:
    """Signed distance to a superellipse |u/a|^n + |v/b|^n = 1 around the origin, right to first order at its edge."""
    a, b, less = np.float32(a_mm), np.float32(b_mm), np.float32(power - 1)
    p, q = np.abs(u) / a, np.abs(v) / b
    p1, q1 = p**less, q**less
    f = np.maximum(p1 * p + q1 * q, np.float32(1e-9)) ** np.float32(1 / power)
    steep = np.sqrt((p1 / a) ** 2 + (q1 / b) ** 2) / np.maximum(f, np.float32(1e-4)) ** less
    return (f - 1) / np.maximum(steep, np.float32(1e-6))


def blend(*distances: FloatArray, radius_mm: float) -> FloatArray:
    """Union of shapes with rounded inner corners (polynomial smooth minimum of Quilez)."""
    out = distances[0]
    for other in distances[1:]:
        h = np.maximum(np.float32(radius_mm) - np.abs(out - other), 0) / np.float32(radius_mm)
        out = np.minimum(out, other) - h * h * np.float32(radius_mm / 4)
    return out


def common(*distances: FloatArray) -> FloatArray:
    """Intersection of shapes."""
    out = distances[0]
    for other in distances[1:]:
        out = np.maximum(out, other)
    return out
