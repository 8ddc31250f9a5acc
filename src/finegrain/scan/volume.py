"""`CTVolume`: a scan in HU, with its geometry and what is needed to write it back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import GeometryError


@dataclass(frozen=True)
class CTVolume:
    """A CT scan: one slice per z, in order along the slice normal.

    Attributes:
        hu: CT numbers in HU, float32, shape (z, y, x).
        pixel_mm: spacing of rows and columns in mm, (y, x).
        slice_mm: distance between neighbouring slices in mm (median); the slice thickness for a single slice.
        positions_mm: ImagePositionPatient of each slice in mm (LPS), shape (z, 3).
        orientation: ImageOrientationPatient, six direction cosines.
        padding: true where the pixel is PixelPaddingValue, outside the reconstruction; shape (z, y, x).
        acquisition: kernel, kVp … : acquisition facts that are safe to show (see `privacy`), keyed by DICOM keyword.
        tube_current_ma: XRayTubeCurrent of each slice in mA, shape (z,), where every header tells it; else None.
        source: what the writer needs to give the series back; None for a volume that came from no file.
    """

    hu: NDArray[np.float32]
    pixel_mm: tuple[float, float]
    slice_mm: float
    positions_mm: NDArray[np.float64]
    orientation: tuple[float, ...]
    padding: NDArray[np.bool_]
    acquisition: dict[str, Any] = field(default_factory=dict)
    tube_current_ma: NDArray[np.float64] | None = None
    source: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.hu.ndim != 3:
            raise GeometryError(f"a volume needs axes z y x, got shape {self.hu.shape}")
        if self.padding.shape != self.hu.shape:
            raise GeometryError(f"padding mask of shape {self.padding.shape} does not fit HU of {self.hu.shape}")
        if self.positions_mm.shape != (len(self.hu), 3):
            raise GeometryError(f"{len(self.hu)} slices need positions of shape ({len(self.hu)}, 3), got {self.positions_mm.shape}")
        if self.tube_current_ma is not None and self.tube_current_ma.shape != (len(self.hu),):
            raise GeometryError(f"{len(self.hu)} slices need as many tube currents, got {self.tube_current_ma.shape}")
        if not (min(self.pixel_mm) > 0 and np.isfinite(self.pixel_mm).all()):
            raise GeometryError(f"pixel spacing must be positive, got {self.pixel_mm} mm")

    @classmethod
    def from_array(cls, hu: NDArray, *, pixel_mm: float, slice_mm: float, acquisition: dict[str, Any] | None = None) -> CTVolume:
        """An axial volume of an array (z, y, x) in HU, its first pixel at the origin."""
        positions = np.zeros((len(hu), 3))
        positions[:, 2] = np.arange(len(hu)) * slice_mm
        return cls(
            hu=np.asarray(hu, dtype=np.float32),
            pixel_mm=(pixel_mm, pixel_mm),
            slice_mm=slice_mm,
            positions_mm=positions,
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            padding=np.zeros(np.shape(hu), dtype=bool),
            acquisition=dict(acquisition or {}),
        )

    @property
    def has_square_pixels(self) -> bool:
        """Whether rows and columns are spaced alike, to a thousandth."""
        return bool(np.isclose(*self.pixel_mm, rtol=1e-3))

    @property
    def thickness_mm(self) -> float:
        """SliceThickness of the header; the distance of the slices where it tells none. Overlapping slices are thicker."""
        return float(self.acquisition.get("SliceThickness") or self.slice_mm)

    def with_hu(self, hu: NDArray) -> CTVolume:
        """The same scan with other CT numbers, e.g. after simulation or denoising; padding keeps its values."""
        if hu.shape != self.hu.shape:
            raise GeometryError(f"expected HU of shape {self.hu.shape}, got {hu.shape}")
        kept = np.array(hu, dtype=np.float32)
        np.copyto(kept, self.hu, where=self.padding)
        return replace(self, hu=kept)

    def part(self, slices: slice) -> CTVolume:
        """Some of the slices as a scan of their own; it cannot be written back, for its source is the whole."""
        return replace(
            self,
            hu=self.hu[slices],
            padding=self.padding[slices],
            positions_mm=self.positions_mm[slices],
            tube_current_ma=None if self.tube_current_ma is None else self.tube_current_ma[slices],
            source=None,
        )

    def __len__(self) -> int:
        return len(self.hu)
