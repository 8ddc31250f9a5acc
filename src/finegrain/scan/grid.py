"""Where the voxels of an array lie in the patient, and the array as an axial volume: one place for every file of one array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ScanError
from finegrain.scan.volume import CTVolume

LARGEST_TILT_DEG = 0.5
"""Axes within this of the patient's count as axial and keep their exact directions. Ours."""


@dataclass(frozen=True)
class Grid:
    """The grid of an array in its file's own order of axes, known to run along the patient's axes.

    Attributes:
        shape: of the array, three axes.
        affine: its voxel indices → mm, LPS, shape (4, 4).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def canonical(self) -> NDArray[np.float64]:
        """The affine of the array turned to (x, y, z): columns to the left, rows to the back, slices to the head."""
        import nibabel as nib

        return np.asarray(self.affine @ nib.orientations.inv_ornt_aff(self._turn(), self.shape))

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = (self.shape[int(np.flatnonzero(self._turn()[:, 0] == axis)[0])] for axis in range(3))
        return x, y, z

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Voxel sizes along x, y, z in mm."""
        x, y, z = np.linalg.norm(self.canonical[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """Centre of the first pixel of each slice, from feet to head. Shape: (z, 3)."""
        return np.asarray(np.arange(self.size[2])[:, None] * self.canonical[:3, 2] + self.canonical[:3, 3])

    @property
    def orientation(self) -> tuple[float, ...]:
        """Directions of rows and columns as in ImageOrientationPatient."""
        return tuple((self.canonical[:3, :2] / self.size_mm[:2]).T.ravel().tolist())

    def volume(self, values: NDArray[Any], source: Any = None) -> CTVolume:
        """The array, its values in HU, as an axial volume."""
        import nibabel as nib

        x_mm, y_mm, z_mm = self.size_mm
        turned = nib.orientations.apply_orientation(values, self._turn())
        hu = np.ascontiguousarray(np.asarray(turned, dtype=np.float32).transpose(2, 1, 0))
        return CTVolume(
            hu=hu,
            pixel_mm=(y_mm, x_mm),
            slice_mm=z_mm,
            positions_mm=self.positions_mm,
            orientation=self.orientation,
            padding=np.zeros(hu.shape, dtype=bool),
            source=source,
        )

    def _turn(self) -> NDArray[np.float64]:
        import nibabel as nib

        return np.asarray(nib.orientations.io_orientation(self.affine))


def axial_grid(name: str, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Grid:
    """The grid of an array of three axes.

    Args:
        name: what to call the file in a message.
        affine: voxel indices → mm, LPS, shape (4, 4).

    Raises: ScanError for another number of axes, sizes that are not positive, sheared or oblique axes.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ScanError(f"{name} holds an array of {in_words(shape)}, expected one volume of 3 axes; split the file")
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (size <= 0).any():
        raise ScanError(f"{name} has voxel sizes of {in_words(size)} mm, expected all above 0 at a known place; repair the header")
    axes = affine[:3, :3] / size
    shear = np.degrees(np.arcsin(min(1.0, max(abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2))))))
    if shear > LARGEST_TILT_DEG:
        raise ScanError(
            f"{name} is sheared: its axes are {90 - shear:.1f}° apart (gantry tilt), expected 90°; resample it or give the DICOM"
        )
    tilt = np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), -1, 1))).max()
    if tilt > LARGEST_TILT_DEG:
        raise ScanError(
            f"{name} is oblique: its axes are turned by {tilt:.1f}° from the patient's, expected at most {LARGEST_TILT_DEG}°;"
            " resample it to axial slices"
        )
    x, y, z = shape
    return Grid((int(x), int(y), int(z)), affine)


def finite(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """The values as float32; ScanError if one is NaN or infinite."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ScanError(f"{name} holds {bad} of {values.size} voxels that are NaN or infinite, expected HU; fill them with air")
    return np.asarray(values, dtype=np.float32)


def reason(error: Exception, path: Path) -> str:
    """What a library says is wrong with a file, on one short line and without its path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.replace(str(path), "the file").strip().splitlines() or ["cut off"]
    return lines[0][:200]


def in_words(sizes: Any) -> str:
    """Sizes as "512 × 512 × 0.7"."""
    return " × ".join(f"{size:.4g}" for size in sizes)
