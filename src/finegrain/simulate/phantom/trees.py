"""Tubes in space: branching vessels after Murray's law, and polylines for the named vessels, airways and bowel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Positions in mm (shape: n 3), order x y z."""


@dataclass(frozen=True)
class Tubes:
    """Straight round segments in space; the radius changes linearly from start to end."""

    start_mm: Points
    end_mm: Points
    start_radius_mm: NDArray[np.float64]
    end_radius_mm: NDArray[np.float64]

    def near(self, z_mm: float, reach_mm: float) -> Tubes:
        """Those segments that a slab of half-thickness `reach_mm` about z may cut."""
        radius = np.maximum(self.start_radius_mm, self.end_radius_mm) + reach_mm
        low = np.minimum(self.start_mm[:, 2], self.end_mm[:, 2]) - radius
        high = np.maximum(self.start_mm[:, 2], self.end_mm[:, 2]) + radius
        keep = (low <= z_mm) & (z_mm <= high)
        return Tubes(self.start_mm[keep], self.end_mm[keep], self.start_radius_mm[keep], self.end_radius_mm[keep])


def join(*parts: Tubes) -> Tubes:
    """All segments of several sets in one."""
    return Tubes(
        np.concatenate([p.start_mm for p in parts]),
        np.concatenate([p.end_mm for p in parts]),
        np.concatenate([p.start_radius_mm for p in parts]),
        np.concatenate([p.end_radius_mm for p in parts]),
    )


def polyline(points_mm: Points | list[tuple[float, float, float]], radius_mm: float | list[float]) -> Tubes:
    """A smooth tube through points; the radius is one number or one per point.

    The path is a Catmull–Rom spline cut into four straight pieces per span: no kinks show at CT resolution.
    """
    p = np.asarray(points_mm, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radius_mm, dtype=np.float64), (len(p),))
    rows = np.column_stack([p, r])
    ends = np.vstack([2 * rows[0] - rows[1], rows, 2 * rows[-1] - rows[-2]])
    t = np.linspace(0, 1, 4, endpoint=False)[:, None]
    path = []
    for a, b, c, d in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True):
        path.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    spline = np.vstack([*path, rows[-1:]])
    spline[:, 3] = np.maximum(spline[:, 3], 0.1)
    return Tubes(spline[:-1, :3], spline[1:, :3], spline[:-1, 3], spline[1:, 3])


def murray_tree(
    rng: np.random.Generator,
    *,
    roots_mm: Points,
    directions: Points,
    radii_mm: NDArray[np.float64],
    inside: Callable[[Points], NDArray[np.bool_]],
    stop_radius_mm: float,
    length_in_radii: tuple[float, float] = (7.0, 13.0),
) -> Tubes:
    """Branching vessels: each branch feeds two, r³ = r₁³ + r₂³ (Murray 1926), and ends at the organ's wall.

    Args:
        roots_mm, directions, radii_mm: where each tree enters, its unit direction, its radius.
        inside: tells for each of n points whether a branch may end there.
        stop_radius_mm: thinner branches are not grown.
        length_in_radii: a branch is so many radii long (lung casts: about 6–10, the range here is chosen by eye).
    """
    p, d, r = roots_mm.astype(np.float64), directions.astype(np.float64), radii_mm.astype(np.float64)
    parts: list[Tubes] = []
    while len(p):
        length = r * rng.uniform(*length_in_radii, len(p))
        end = p + d * length[:, None]
        keep = inside(end)
        # A thick branch that would leave the organ turns aside once, so that trunks do not end at the wall as stumps.
        turned = p + (d * 0.5 + rng.normal(0, 0.45, d.shape)) * length[:, None]
        end = np.where(keep[:, None], end, turned)
        keep |= inside(turned) & (r > 1.0)
        p, end, r = p[keep], end[keep], r[keep]
        if not len(p):
            break
        d = (end - p) / np.linalg.norm(end - p, axis=1, keepdims=True)
        bend = rng.normal(0, 0.05, p.shape) * np.linalg.norm(end - p, axis=1, keepdims=True)
        middle = (p + end) / 2 + bend
        parts += [Tubes(p, middle, r, 0.97 * r), Tubes(middle, end, 0.97 * r, 0.94 * r)]
        share = rng.uniform(0.3, 0.7, len(p))
        angle = rng.uniform(0.35, 1.0, len(p))
        side = np.cross(d, rng.standard_normal(d.shape))
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        first = np.cos(angle * (1 - share))[:, None] * d + np.sin(angle * (1 - share))[:, None] * side
        second = np.cos(angle * share)[:, None] * d - np.sin(angle * share)[:, None] * side
        p, d = np.concatenate([end, end]), np.concatenate([first, second])
        r = np.concatenate([r * np.cbrt(share), r * np.cbrt(1 - share)])
        grow = r >= stop_radius_mm
        p, d, r = p[grow], d[grow], r[grow]
    if not parts:
        empty = np.zeros((0, 3))
        return Tubes(empty, empty, np.zeros(0), np.zeros(0))
    return join(*parts)
