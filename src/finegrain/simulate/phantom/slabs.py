"""Chest slabs of the XCIST toolkit: anatomy of an adult woman and man whose truth is known at 0.25 mm.

Unlike the virtual patients they are one section each, without texture inside an organ, drawn from the XCAT anatomy by other
people: a second opinion on whatever was developed on our own phantoms. Marrow is drawn as muscle, trachea and bronchi are
filled with lung. Source and licence: `chest_slabs/ATTRIBUTION.md`.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError, GeometryError
from finegrain.hu import AIR_HU
from finegrain.simulate.phantom.anatomy import PhantomVolume
from finegrain.simulate.phantom.section import LABELS

WATER_CM2_PER_G = 0.1929
"""Mass attenuation of water at 70 keV (XCOM)."""


@dataclass(frozen=True)
class Material:
    """What a tissue does to X-rays of 70 keV, and what it is called here."""

    density_g_cm3: float
    cm2_per_g: float
    """Mass attenuation coefficient at 70 keV."""
    label: str
    """A name in `LABELS`."""

    @property
    def hu(self) -> float:
        """CT number at 70 keV, the effective energy that the whole package assumes."""
        return 1000 * (self.density_g_cm3 * self.cm2_per_g / WATER_CM2_PER_G - 1)


MATERIALS: dict[str, Material] = {
    "ncat_water": Material(1.00, 0.1929, "fluid"),
    "ncat_muscle": Material(1.05, 0.1916, "soft tissue"),
    "ncat_lung": Material(0.26, 0.1920, "lung"),
    "ncat_dry_spine": Material(1.42, 0.2292, "bone"),
    "ncat_dry_rib": Material(1.92, 0.2570, "bone"),
    "ncat_adipose": Material(0.92, 0.1878, "fat"),
    "ncat_blood": Material(1.06, 0.1921, "vessel"),
    "ncat_heart": Material(1.05, 0.1917, "heart"),
    "ncat_cartilage": Material(1.10, 0.1935, "soft tissue"),
}
"""Materials of the slabs. Densities: the XCIST material files of these names (those of the NCAT distribution). Mass
attenuation: elemental XCOM coefficients (NIST Standard Reference Database 126) at 70 keV times the mass fractions of the
material files; for the two bones those of ICRU 44 (cortical) and ICRU 46 (vertebral column), because the material files
list phosphorus as sulphur, one atomic number too high, which would make a rib 40 HU denser. At 60 and 80 keV the same sums
give NIST's own table of ICRU-44 tissues to 0.0005 cm²/g. CT numbers: muscle 43, lung −741, spine 688, rib 1559, fat −104,
blood 56, heart 44, cartilage 103 HU."""


@dataclass(frozen=True)
class MaterialMap:
    """Where one material is, in a box cut to its size.

    Attributes:
        name: as XCIST names the material.
        filled: shape (y, x), rows from front to back, columns from the patient's right to left.
        first_mm: centre of element (0, 0) from the isocentre, (y, x).
        step_mm: size of the elements.
    """

    name: str
    filled: NDArray[np.bool_]
    first_mm: tuple[float, float]
    step_mm: float

    def coverage(self, size: int, pixel_mm: float) -> NDArray[np.float64]:
        """Share of each pixel that the material fills, by area, exactly; the isocentre is pixel n // 2. Shape: (y, x)."""
        rows, columns = (
            _overlap(n, first, self.step_mm, size=size, pixel_mm=pixel_mm)
            for n, first in zip(self.filled.shape, self.first_mm, strict=True)
        )
        return rows @ self.filled.astype(np.float64) @ columns.T


def chest_slab(sex: Literal["female", "male"], *, size: int = 512, pixel_mm: float = 0.7) -> PhantomVolume:
    """One chest slab, averaged by area onto a pixel grid whose isocentre is the pixel with index n // 2.

    A pixel that several materials share has the mean of their CT numbers, as mixed attenuation has, and the label of what
    fills most of it. With the default grid the body fits the image but not the circle in it that is projected: give the
    `Scanner` the margin of `needed_margin`.

    Shape: hu and labels (1, y, x); front of the body up, its left side on the right.
    Raises: GeometryError if the image would cut the body.

    >>> slab = chest_slab("female", size=128, pixel_mm=2.9)
    >>> slab.hu.shape, float(slab.hu[0, 0, 0])
    ((1, 128, 128), -1000.0)
    """
    if sex not in ("female", "male"):
        raise GeometryError(f'there is a slab of a "female" and of a "male", got {sex!r}')
    if size < 2 or not (np.isfinite(pixel_mm) and pixel_mm > 0):
        raise GeometryError(f"expected an image of at least 2 pixels of positive size, got {size} pixels of {pixel_mm} mm")
    maps, slab_mm = read_maps(Path(str(files("finegrain.simulate.phantom"))) / "chest_slabs" / f"adult-{sex}.zip")
    # Pixel n // 2 is the centre, so on an even grid the far edge is half a pixel nearer than the near one.
    reach, held = max(_reach_mm(one) for one in maps), ((size - 1) // 2 + 0.5) * pixel_mm
    if reach > held:
        raise GeometryError(
            f"{size} pixels of {pixel_mm} mm reach {held:.1f} mm from the isocentre and cut the body, which reaches {reach:.1f} mm;"
            f" take at least {2 * (int(np.ceil(reach / pixel_mm - 0.5)) + 1)} pixels"
        )
    hu = np.full((size, size), AIR_HU)
    share = np.zeros((len(LABELS), size, size), dtype=np.float32)
    for one in maps:
        material = MATERIALS[one.name]
        covered = one.coverage(size, pixel_mm)
        hu += (material.hu - AIR_HU) * covered
        share[LABELS[material.label]] += covered.astype(np.float32)
    share[LABELS["air"]] = 1 - share.sum(axis=0)
    # Sums of shares leave a pixel of air at −1000 only to rounding.
    hu[share[LABELS["air"]] == 1] = AIR_HU
    labels = share.argmax(axis=0).astype(np.uint8)
    return PhantomVolume(hu.astype(np.float32)[None], labels[None], pixel_mm, slab_mm)


def read_maps(path: Path) -> tuple[list[MaterialMap], float]:
    """The material maps of a zipped XCIST phantom of one slice, and its thickness in mm.

    The offsets are the isocentre's index in each box, counted from 1; along y they count from the last row, for the axis of
    XCIST points up. Only so do the nine maps fill the body without gap or overlap.

    Raises: DataError for a material that `MATERIALS` does not know, or a map of another size than it states.
    """
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        header = json.loads(archive.read(next(name for name in members.values() if name.endswith(".json"))))
        unknown = sorted(set(header["mat_name"]) - set(MATERIALS))
        if unknown:
            raise DataError(f"{path.name} holds the material {unknown[0]}, known are {', '.join(MATERIALS)}; add its attenuation")
        maps = [
            _map(header, i, archive.read(members[header["volumefractionmap_filename"][i]])) for i in range(header["n_materials"])
        ]
    return maps, float(header["z_size"][0])


def _map(header: dict[str, Any], i: int, raw: bytes) -> MaterialMap:
    name, rows, columns, step = (header[key][i] for key in ("mat_name", "rows", "cols", "x_size"))
    if len(raw) != rows * columns or header["slices"][i] != 1 or header["y_size"][i] != step:
        raise DataError(
            f"map of {name}: expected one slice of {rows} × {columns} square elements, got {len(raw)} bytes,"
            f" {header['slices'][i]} slices of {step} × {header['y_size'][i]} mm; use the original archive"
        )
    first = (header["y_offset"][i] - rows) * step, (1 - header["x_offset"][i]) * step
    return MaterialMap(name, np.frombuffer(raw, np.int8).reshape(rows, columns) > 0, first, float(step))


def _overlap(n: int, first_mm: float, step_mm: float, *, size: int, pixel_mm: float) -> NDArray[np.float64]:
    """Share of each pixel (row) that each element of a map (column) covers along one axis."""
    pixel = (np.arange(size)[:, None] - size // 2) * pixel_mm
    element = first_mm + np.arange(n)[None, :] * step_mm
    upper = np.minimum(pixel + pixel_mm / 2, element + step_mm / 2)
    lower = np.maximum(pixel - pixel_mm / 2, element - step_mm / 2)
    return np.maximum(upper - lower, 0) / pixel_mm


def _reach_mm(one: MaterialMap) -> float:
    """Distance of the farthest edge of a map from the isocentre, along either axis."""
    return max(
        max(-first, first + (n - 1) * one.step_mm) + one.step_mm / 2
        for n, first in zip(one.filled.shape, one.first_mm, strict=True)
    )
