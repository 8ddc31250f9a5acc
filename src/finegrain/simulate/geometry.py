"""Where the rays run: the fan beam of a clinical scanner, and the parallel grid that it is rebinned to.

Every fan ray (β, γ) is a parallel ray: θ = β − γ, s = source_iso_mm · sin γ. Counts, bow-tie and tube current travel along
exactly; only the sampling density changes (`FanBeam.rays_per_cell`). Rebin-then-parallel is what scanners with weighted FBP do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import GeometryError


@dataclass(frozen=True, kw_only=True)
class FanBeam:
    """Third-generation arc detector. The defaults are those of a Siemens Sensation/Definition class scanner.

    Attributes:
        source_iso_mm: source to isocentre.
        source_detector_mm: source to detector.
        detector_pitch_mm: width of one detector element, on the detector arc.
        n_views: views per full turn.
    """

    source_iso_mm: float = 595.0
    source_detector_mm: float = 1085.6
    detector_pitch_mm: float = 1.2858
    n_views: int = 1152

    def __post_init__(self) -> None:
        if not 0 < self.source_iso_mm < self.source_detector_mm:
            raise GeometryError(
                f"the isocentre must lie between source and detector: expected 0 < source_iso_mm < source_detector_mm, "
                f"got {self.source_iso_mm} and {self.source_detector_mm} mm"
            )
        if self.detector_pitch_mm <= 0 or self.n_views < 1:
            raise GeometryError(
                f"detector pitch and number of views must be positive, got {self.detector_pitch_mm} mm and {self.n_views}"
            )

    @property
    def channel_angle_rad(self) -> float:
        """Fan angle of one detector element."""
        return self.detector_pitch_mm / self.source_detector_mm

    def fan_angle_rad(self, s_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """Fan angle γ of the ray at distance s from the isocentre.

        Raises: GeometryError for rays that no source position reaches.
        """
        if np.abs(s_mm).max() >= self.source_iso_mm:
            raise GeometryError(
                f"a ray {np.abs(s_mm).max():.0f} mm from the isocentre lies beyond the source at {self.source_iso_mm:.0f} mm; "
                "use a smaller image or a larger source distance"
            )
        return np.arcsin(np.asarray(s_mm, dtype=np.float64) / self.source_iso_mm)

    def rays_per_cell(self, s_mm: NDArray[np.floating], *, angle_step_rad: float, detector_mm: float) -> NDArray[np.floating]:
        """How many fan rays of one half turn fall into a parallel cell, dθ ds = source_iso_mm · cos γ · dβ dγ."""
        gamma = self.fan_angle_rad(s_mm)
        fan_cell = self.source_iso_mm * np.cos(gamma) * self.channel_angle_rad * (2 * np.pi / self.n_views)
        return angle_step_rad * detector_mm / fan_cell


@dataclass(frozen=True, kw_only=True)
class ParallelBeam:
    """Parallel rays over half a turn. The detector spacing is independent of any pixel size, as it is in a scanner.

    Sampling the detector at the pixel size, as image-processing libraries do, low-passes the noise of every but the softest
    kernel.

    Attributes:
        n_detector: detector cells; cell `n_detector // 2` looks through the isocentre.
        detector_mm: cell width at the isocentre.
        n_views: views over π. Below 400 streaks appear in a 512² image.
    """

    n_detector: int
    detector_mm: float = 0.3
    n_views: int = 576
    fan: FanBeam = field(default_factory=FanBeam)

    def __post_init__(self) -> None:
        if self.n_detector < 2 or self.n_views < 1 or not self.detector_mm > 0:
            raise GeometryError(
                f"expected at least 2 detector cells, 1 view and a positive spacing, "
                f"got {self.n_detector}, {self.n_views}, {self.detector_mm} mm"
            )
        self.fan.fan_angle_rad(self.detector_positions_mm)

    @classmethod
    def covering(cls, *, size: int, pixel_mm: float, detector_mm: float = 0.3, n_views: int = 576) -> ParallelBeam:
        """The beam that covers the circle inscribed in an image of `size` × `size` pixels."""
        if size < 2 or not (np.isfinite(pixel_mm) and pixel_mm > 0):
            raise GeometryError(f"expected an image of at least 2 pixels of positive size, got {size} pixels of {pixel_mm} mm")
        return cls(n_detector=2 * int(np.ceil(size * pixel_mm / detector_mm / 2)) + 1, detector_mm=detector_mm, n_views=n_views)

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        """View angles θ in [0, π). A ray is x cos θ + y sin θ = s, x along columns, y along rows. Shape: (view,)."""
        return np.arange(self.n_views) * np.pi / self.n_views

    @property
    def detector_positions_mm(self) -> NDArray[np.floating]:
        """Distance s of each cell's centre from the isocentre. Shape: (detector,)."""
        return (np.arange(self.n_detector) - self.n_detector // 2) * self.detector_mm

    @property
    def rays_per_cell(self) -> NDArray[np.floating]:
        """Fan rays of one half turn per cell. Shape: (detector,)."""
        return self.fan.rays_per_cell(self.detector_positions_mm, angle_step_rad=np.pi / self.n_views, detector_mm=self.detector_mm)
