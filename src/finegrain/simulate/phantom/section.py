"""What every drawing step of one slice needs: the canvas, the patient, and fields computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finegrain.simulate.phantom.drawing import Canvas
from finegrain.simulate.phantom.person import Person, cage_axes, cage_distance, diaphragm_mm
from finegrain.simulate.phantom.texture import FloatArray

LABELS: dict[str, int] = {
    "air": 0, "lung": 1, "fat": 2, "soft tissue": 3, "bone": 4, "liver": 5, "heart": 6, "vessel": 7, "lesion": 8,
    "airway": 9, "spleen": 10, "kidney": 11, "pancreas": 12, "bowel": 13, "bowel gas": 14, "fluid": 15, "marrow": 16,
}  # fmt: skip
"""Label values. `bone` is cortex and cartilage calcification, `marrow` the trabecular inside; `soft tissue` holds
muscle, skin, discs and walls; `airway` is the air in trachea and bronchi; `fluid` is bile and the spinal canal."""


@dataclass(frozen=True)
class Section:
    """One thin slice of one patient while it is drawn; all arrays (shape: y x)."""

    canvas: Canvas
    person: Person
    soft: FloatArray
    """Power-law texture, mean 0, variance 1, times the patient's texture strength."""
    smooth: FloatArray
    """Texture with wavelengths of 15–40 mm, variance 1: lobulation, walls, sheets."""
    cage: FloatArray
    """Distance to the inner wall of chest and belly, mm."""
    chest: FloatArray
    """Distance to the space above the diaphragm, mm: negative in the chest."""

    @property
    def z(self) -> float:
        """Height in mm."""
        return self.canvas.z_mm

    def tissue(self, name: str, sd: float) -> FloatArray:
        """HU of a tissue with texture of standard deviation `sd` HU."""
        return np.float32(self.person.hu[name]) + np.float32(sd) * self.soft

    def sheets(self, thickness_mm: float, *, offset_mm: float) -> FloatArray:
        """Coverage by thin, curved, broken sheets (septa, strands, fascia): the zero set of a smooth field."""
        c = self.canvas
        g = self.person.smooth.sample(c.u, c.v, c.z_mm, offset_mm=offset_mm)
        # The smooth field changes by about 0.2 per mm where it crosses zero.
        half = np.float32(0.2 * (thickness_mm + c.pixel_mm) / 2)
        strength = min(1.0, thickness_mm / (thickness_mm + c.pixel_mm) * 1.6)
        broken = np.clip(0.55 + 0.9 * self.smooth, 0, 1)
        return np.clip(1.3 - np.abs(g) / half, 0, 1) * broken * np.float32(strength)


def cut(canvas: Canvas, person: Person) -> Section:
    """Prepare the fields of a slice."""
    u, v, z = canvas.u, canvas.v, canvas.z_mm
    height = diaphragm_mm(u, v)
    slope = np.hypot(*np.gradient(height, canvas.pixel_mm)).astype(np.float32)
    return Section(
        canvas=canvas,
        person=person,
        soft=person.soft.sample(u, v, z) * np.float32(person.texture),
        smooth=person.smooth.sample(u, v, z),
        cage=cage_distance(u, v, z).astype(np.float32),
        chest=((height - np.float32(z)) / np.maximum(slope, 0.25)).astype(np.float32),
    )


def cage_half(z_mm: float) -> tuple[float, float]:
    """Half width and half depth of the inner wall at z, mm."""
    a, b = cage_axes(z_mm)
    return float(a), float(b)
