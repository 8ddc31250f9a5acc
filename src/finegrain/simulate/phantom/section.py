"""What every drawing step of one slice needs: the canvas, the patient, and fields computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finegrain.simulate.phantom.drawing import FAR_MM, Canvas, Ellipsoid, Window, common, ellipse_distance
from finegrain.simulate.phantom.person import TEXTURE_SD, Lesion, Person, cage_axes, cage_distance, diaphragm_mm
from finegrain.simulate.phantom.texture import FloatArray

LABELS: dict[str, int] = {
    "air": 0, "lung": 1, "fat": 2, "soft tissue": 3, "bone": 4, "liver": 5, "heart": 6, "vessel": 7, "lesion": 8,
    "airway": 9, "spleen": 10, "kidney": 11, "pancreas": 12, "bowel": 13, "bowel gas": 14, "fluid": 15, "marrow": 16,
    "grey matter": 17, "white matter": 18, "cerebrospinal fluid": 19, "eye": 20, "sinus": 21, "bladder": 22,
}  # fmt: skip
"""Label values. `bone` is cortex and cartilage calcification, `marrow` the trabecular inside; `soft tissue` holds
muscle, skin, discs and walls; `airway` is the air in trachea and bronchi; `fluid` is bile and the spinal canal; `sinus` is
the air in nose, sinuses and mastoid cells. A number never changes its meaning: new labels come at the end."""


@dataclass(frozen=True)
class Section:
    """One thin slice of one patient while it is drawn, in any region; all arrays (shape: y x)."""

    canvas: Canvas
    person: Person
    soft: FloatArray
    """Power-law texture, mean 0, variance 1, times the patient's texture strength."""
    smooth: FloatArray
    """Texture with wavelengths of 15–40 mm, variance 1: lobulation, walls, sheets."""

    @property
    def z(self) -> float:
        """Height in mm."""
        return self.canvas.z_mm

    def tissue(self, name: str) -> FloatArray:
        """HU of a tissue with its texture."""
        return np.float32(self.person.hu[name]) + np.float32(TEXTURE_SD.get(name, 5.0)) * self.soft

    def sheets(self, thickness_mm: float, *, offset_mm: float, window: Window | None = None) -> FloatArray:
        """Coverage by thin, curved, broken sheets (septa, strands, fascia): the zero set of a smooth field."""
        c, w = self.canvas, window or self.canvas.everywhere
        g = self.person.smooth.sample(c.u[w], c.v[w], c.z_mm, offset_mm=offset_mm)
        # The smooth field changes by about 0.2 per mm where it crosses zero.
        half = np.float32(0.2 * (thickness_mm + c.pixel_mm) / 2)
        strength = min(1.0, thickness_mm / (thickness_mm + c.pixel_mm) * 1.6)
        broken = np.clip(0.55 + 0.9 * self.smooth[w], 0, 1)
        return np.clip(1.3 - np.abs(g) / half, 0, 1) * broken * np.float32(strength)

    def ball(self, body: Ellipsoid, *, grow_mm: float = 0.0, wobble_mm: float = 0.5) -> tuple[Window, FloatArray] | None:
        """The window around an ellipsoid's section and the distance to it there, mm; None where the slice misses it."""
        c = self.canvas
        u0, v0, z0 = body.center_mm
        a, b, h = (axis + grow_mm for axis in body.semi_axes_mm)
        rest = 1 - ((self.z - z0) / h) ** 2
        if rest <= 1e-3:
            return None
        w = c.window(np.array([u0]), np.array([v0]), max(a, b) + 3 * wobble_mm + 1)
        if w is None:
            return None
        shrink = float(np.sqrt(rest))
        d = ellipse_distance(c.u[w], c.v[w], u0, v0, a * shrink, b * shrink, body.angle_rad)
        return w, d + np.float32(wobble_mm) * self.smooth[w]

    def fill(
        self, body: Ellipsoid, hu: FloatArray | float, label: str, *, room: FloatArray | None = None, wobble_mm: float = 0.5
    ) -> None:
        """Paint an ellipsoid, where there is room for it (coverage, shape: y x)."""
        if (found := self.ball(body, wobble_mm=wobble_mm)) is not None:
            w, d = found
            cover = self.canvas.coverage(d) if room is None else self.canvas.coverage(d) * room[w]
            self.canvas.paint(cover, hu[w] if isinstance(hu, np.ndarray) else hu, LABELS[label], w)

    def plate(self, points_mm: list[tuple[float, float]], radii_mm: list[float]) -> FloatArray:
        """Distance to a bent plate of changing half thickness, given by points (u, v) of its middle in this slice, mm."""
        c = self.canvas
        out = np.full_like(c.u, FAR_MM)
        for (u0, v0), (u1, v1), r0, r1 in zip(points_mm, points_mm[1:], radii_mm, radii_mm[1:], strict=False):
            du, dv = c.u - np.float32(u0), c.v - np.float32(v0)
            along = np.clip((du * (u1 - u0) + dv * (v1 - v0)) / np.float32((u1 - u0) ** 2 + (v1 - v0) ** 2), 0, 1)
            np.minimum(out, np.hypot(du - along * (u1 - u0), dv - along * (v1 - v0)) - (r0 + along * (r1 - r0)), out=out)
        return out

    def lesion(self, lesion: Lesion, room: FloatArray) -> None:
        """Paint a lesion with its own soft edge: its stated size is the one at half contrast.

        Its surface waves by a twentieth of its radius only, so that its volume stays the stated one.
        """
        if (found := self.ball(lesion.ball, wobble_mm=0.05 * min(lesion.ball.semi_axes_mm))) is not None:
            w, d = found
            ramp = np.clip(0.5 - d / np.float32(self.canvas.pixel_mm + lesion.edge_mm), 0, 1)
            self.canvas.paint(ramp * room[w], lesion.hu + 6 * self.soft[w], LABELS["lesion"], w)

    def bone(self, distance: FloatArray, cortex_mm: float, *, marrow_sd: float = 135.0, marrow_hu: float | None = None) -> None:
        """Paint a bone: cortex of some thickness around trabecular bone.

        The marrow's SD in HU of the default is that of vertebrae, measured as `TEXTURE_SD` was.
        """
        c = self.canvas
        rows, columns = np.nonzero(distance < c.pixel_mm)
        if not len(rows):
            return
        w = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        grain = self.person.bone.sample(c.u[w], c.v[w], self.z) * np.float32(self.person.texture)
        d = distance[w]
        c.paint(c.coverage(d), self.person.hu["cortical"] * (1 + 0.06 * grain), LABELS["bone"], w)
        # The inner edge of real cortex is spongy: let the grain move it.
        inner = d + np.float32(cortex_mm) + 0.35 * grain
        ramp = np.clip(0.5 - inner / np.float32(1.5 * c.pixel_mm), 0, 1)
        mean = self.person.hu["trabecular"] if marrow_hu is None else marrow_hu
        c.paint(ramp, np.maximum(mean + marrow_sd * grain, -40), LABELS["marrow"], w)


def hollow(s: Section, d: FloatArray, *, wall_mm: float, content: FloatArray | float, gas_below_v: float) -> None:
    """Paint gut: wall, content and, where the lumen lies in front of a level, gas, which rises in a supine patient."""
    c = s.canvas
    c.paint(c.coverage(d), s.tissue("bowel wall"), LABELS["bowel"])
    lumen = d + np.float32(wall_mm)
    c.paint(c.coverage(lumen), content + 6 * s.soft, LABELS["bowel"])
    level = np.broadcast_to((c.axis_mm - gas_below_v).astype(np.float32)[:, None], d.shape)
    c.paint(c.coverage(common(lumen, level)), s.person.hu["gas"], LABELS["bowel gas"])


@dataclass(frozen=True)
class Trunk(Section):
    """A section of chest or belly, with the two surfaces everything there is hung on."""

    cage: FloatArray
    """Distance to the inner wall of chest and belly, mm."""
    chest: FloatArray
    """Distance to the space above the diaphragm, mm: negative in the chest."""


def cut(canvas: Canvas, person: Person) -> Section:
    """Prepare the fields of a slice of head, shoulders or pelvis."""
    u, v, z = canvas.u, canvas.v, canvas.z_mm
    return Section(
        canvas=canvas,
        person=person,
        soft=person.soft.sample(u, v, z) * np.float32(person.texture),
        smooth=person.smooth.sample(u, v, z),
    )


def cut_trunk(canvas: Canvas, person: Person) -> Trunk:
    """Prepare the fields of a slice of chest or belly."""
    u, v, z = canvas.u, canvas.v, canvas.z_mm
    height = diaphragm_mm(u, v)
    slope = np.hypot(*np.gradient(height, canvas.pixel_mm)).astype(np.float32)
    fields = cut(canvas, person)
    return Trunk(
        canvas=canvas,
        person=person,
        soft=fields.soft,
        smooth=fields.smooth,
        cage=cage_distance(u, v, z).astype(np.float32),
        chest=((height - np.float32(z)) / np.maximum(slope, 0.25)).astype(np.float32),
    )


def cage_half(z_mm: float) -> tuple[float, float]:
    """Half width and half depth of the inner wall at z, mm."""
    a, b = cage_axes(z_mm)
    return float(a), float(b)
