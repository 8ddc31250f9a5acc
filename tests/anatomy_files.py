"""Invented patients of a few small slices, each told from the others by what it shows, as DICOM series and NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ct_files import FIRST_MM, PIXEL_MM, write_ct
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom import dcmread
from scipy.ndimage import gaussian_filter

SIDE = 96
Z_MM = tuple(3.0 * k for k in range(10))


def patient_hu(seed: int, n: int = len(Z_MM), *, noise: float = 0.0) -> NDArray[np.int16]:
    """A body with organs that no other seed has on the one side, fine texture and calm tissue on the other.

    Args:
        noise: SD in HU, drawn anew for each level.
    """
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    body = np.hypot((y - SIDE / 2) * 1.1, x - SIDE / 2) < 0.47 * SIDE
    organs = gaussian_filter(generator.normal(0, 1, (n + 8, SIDE, SIDE)), (3, 4, 4))[4 : n + 4] * (x < 0.3 * SIDE)
    texture = gaussian_filter(generator.normal(0, 1, organs.shape), (0, 0.8, 0.8)) * ((x > 0.3 * SIDE) & (y < 0.3 * SIDE))
    grain = np.random.default_rng([seed, int(10 * noise)]).normal(0, 1, organs.shape)
    tissue = 40 + 160 * organs / organs.std() + 200 * texture + 8 * generator.normal(0, 1, organs.shape)
    return np.round(np.where(body, tissue, -1000.0) + noise * grain).astype(np.int16)


def write_dicom(folder: Path, hu: NDArray[np.int16], z_mm: Sequence[float] = Z_MM, **header: Any) -> Path:
    """A DICOM series of these slices; `header` as for `write_ct`."""
    rows, columns = hu.shape[1:]
    paths = write_ct(folder, z_mm, names=[f"{k:03d}.dcm" for k in range(len(z_mm))], Rows=rows, Columns=columns, **header)
    for path, of_slice in zip(paths, hu, strict=True):
        dataset = dcmread(path)
        dataset.PixelData = of_slice.tobytes()
        dataset.save_as(path)
    return folder


def write_nifti(
    path: Path, hu: NDArray[Any], z_mm: Sequence[float] = Z_MM, *, pixel_mm: float = PIXEL_MM, axes: str = "LPS"
) -> Path:
    """A NIfTI file of these slices on the grid of `write_dicom`, its axes in any order and direction."""
    affine = np.diag([-pixel_mm, -pixel_mm, z_mm[1] - z_mm[0], 1.0])
    affine[:3, 3] = -FIRST_MM[0], -FIRST_MM[1], z_mm[0]
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), affine)
    image = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axes)))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path
