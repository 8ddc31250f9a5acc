"""Where the rays run: the fan beam of a clinical scanner, and the parallel grid that it is rebinned to.

Every fan ray (β, γ) is a parallel ray: θ = β − γ, s = source_iso_mm · sin γ. Counts, bow-tie and tube current travel along
exactly; only the sampling density changes (`FanBeam.rays_per_cell`). Rebin-then-parallel is what scanners with weighted FBP do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import GeometryError

FULL_TURN_RAD = 2 * np.pi


@dataclass(frozen=True, kw_only=True)
class FanBeam:
    """One detector row of a third-generation scanner. The defaults are those of a Siemens Definition class scanner.

    The source stands at fan angle 0, gantry angle β; the scan starts at β = −fan_angle/2 and turns by `scan_rad`.

    Attributes:
        source_iso_mm: source to isocentre.
        source_detector_mm: source to detector.
        detector_pitch_mm: width of one detector element, on the detector.
        n_channels: detector elements in the row.
        n_views: views per full turn.
        detector: "arc" is equiangular, centred on the source, as clinical detectors are; "flat" is equidistant.
        channel_offset: shift of the row in elements. With a quarter, opposite rays interleave: twice the sampling in s.
        scan_rad: how far the gantry turns while it measures: 2π, or less for a short scan (`short_scan`).
        name: as the preset is called.
        origin: how these numbers are known.
    """

    source_iso_mm: float = 595.0
    source_detector_mm: float = 1085.6
    detector_pitch_mm: float = 1.2858
    n_channels: int = 736
    n_views: int = 1152
    detector: Literal["arc", "flat"] = "arc"
    channel_offset: float = 0.25
    scan_rad: float = FULL_TURN_RAD
    name: str = "siemens-definition"
    origin: str = "DICOM headers of a Definition AS+ (distances); LDCT-and-Projection-data, doi 10.7937/9NPB-2637 (detector)"

    def __post_init__(self) -> None:
        if not 0 < self.source_iso_mm < self.source_detector_mm < np.inf:
            raise GeometryError(
                f"the isocentre must lie between source and detector: expected 0 < source_iso_mm < source_detector_mm, "
                f"got {self.source_iso_mm} and {self.source_detector_mm} mm"
            )
        if not 0 < self.detector_pitch_mm < np.inf or self.n_views < 1 or self.n_channels < 2:
            raise GeometryError(
                f"expected a positive detector pitch, at least 1 view and 2 channels, "
                f"got {self.detector_pitch_mm} mm, {self.n_views} and {self.n_channels}"
            )
        if self.detector not in ("arc", "flat"):
            raise GeometryError(f'detector is "arc" or "flat", got "{self.detector}"')
        if not abs(self.channel_offset) < self.n_channels / 4:
            raise GeometryError(f"channel_offset of {self.channel_offset} elements moves the detector out of the beam")
        if np.abs(self.channel_angles_rad).max() >= np.pi / 2:
            raise GeometryError(
                f"the outermost channel stands at {np.degrees(np.abs(self.channel_angles_rad).max()):.0f}° from the central ray, "
                "expected less than 90°; use fewer channels, a smaller pitch or a larger distance"
            )
        shortest = np.pi + self.fan_angle_rad
        if not shortest * (1 - 1e-9) <= self.scan_rad <= FULL_TURN_RAD * (1 + 1e-9):
            raise GeometryError(
                f"scan_rad of {self.scan_rad:.4f} does not see every line once: expected π + fan angle = {shortest:.4f} to 2π"
            )

    @property
    def channel_angle_rad(self) -> float:
        """Fan angle of the central detector element."""
        return self.detector_pitch_mm / self.source_detector_mm

    @property
    def channel_angles_rad(self) -> NDArray[np.float64]:
        """Fan angle γ of each element's centre, rising. Shape: (channel,)."""
        place = np.arange(self.n_channels) - (self.n_channels - 1) / 2 - self.channel_offset
        angle = place * self.channel_angle_rad
        return np.asarray(angle if self.detector == "arc" else np.arctan(angle), dtype=np.float64)

    def channel_at(self, gamma_rad: NDArray[np.floating]) -> NDArray[np.float64]:
        """The (fractional) channel that looks along fan angle γ."""
        place = np.asarray(gamma_rad, dtype=np.float64)
        place = (place if self.detector == "arc" else np.tan(place)) / self.channel_angle_rad
        return place + (self.n_channels - 1) / 2 + self.channel_offset

    @property
    def fan_angle_rad(self) -> float:
        """Full opening angle of the smallest fan, alike on both sides of the central ray, that holds every channel."""
        return 2 * float(np.abs(self.channel_angles_rad[[0, -1]]).max())

    @property
    def field_of_view_mm(self) -> float:
        """Diameter of the circle that every view sees whole."""
        return 2 * self.source_iso_mm * float(np.sin(np.abs(self.channel_angles_rad[[0, -1]]).min()))

    @property
    def view_angles_rad(self) -> NDArray[np.float64]:
        """Gantry angle β of each view that is measured. Shape: (view,)."""
        step = FULL_TURN_RAD / self.n_views
        n = min(self.n_views, int(np.ceil(self.scan_rad / step)) + 1)
        return -self.fan_angle_rad / 2 + np.arange(n, dtype=np.float64) * step

    @property
    def is_full_turn(self) -> bool:
        """Whether each line is measured from both sides."""
        return len(self.view_angles_rad) == self.n_views

    def short_scan(self) -> FanBeam:
        """The same scanner turning by half a turn and the fan angle only: the least that sees every line."""
        return replace(self, scan_rad=np.pi + self.fan_angle_rad)

    def gamma_of(self, s_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """Fan angle γ of the ray at distance s from the isocentre.

        Raises: GeometryError for rays that no source position reaches.
        """
        if not np.abs(s_mm).max() < self.source_iso_mm:
            raise GeometryError(
                f"a ray {np.abs(s_mm).max():.0f} mm from the isocentre lies beyond the source at {self.source_iso_mm:.0f} mm; "
                "use a smaller image or a larger source distance"
            )
        return np.arcsin(np.asarray(s_mm, dtype=np.float64) / self.source_iso_mm)

    def rays_per_cell(self, s_mm: NDArray[np.floating], *, angle_step_rad: float, detector_mm: float) -> NDArray[np.floating]:
        """How many fan rays of one half turn fall into a parallel cell, dθ ds = source_iso_mm · cos γ · dβ dγ."""
        gamma = self.gamma_of(s_mm)
        channel = self.channel_angle_rad * (1.0 if self.detector == "arc" else np.cos(gamma) ** 2)
        return angle_step_rad * detector_mm / (self.source_iso_mm * np.cos(gamma) * channel * (FULL_TURN_RAD / self.n_views))

    def half_turn_shares(self, theta_rad: NDArray[np.floating], gamma_rad: NDArray[np.floating]) -> NDArray[np.float64]:
        """With what share each of the two measurements of a line enters its mean; they add up to 1.

        Line (θ, γ) is seen at β = θ + γ and, from the other side, at β = θ + π − γ. A full turn gives each a half. In a short scan
        most lines are seen once; where both are, the share runs smoothly from one to the other (as Parker 1982, Med Phys 9:254),
        so that no edge enters the filter.

        Shape: θ and γ broadcast to (...); result (2, ...).
        """
        theta, gamma = np.broadcast_arrays(np.asarray(theta_rad, dtype=np.float64), gamma_rad)
        if self.is_full_turn:
            return np.full((2, *theta.shape), 0.5)
        start = self.view_angles_rad[0]
        length = self.view_angles_rad[-1] - start
        ramp = max(length - np.pi, 1e-6)
        first, second = (
            np.sin(np.pi / 2 * np.clip(np.minimum(turned, length - turned) / ramp, 0, 1)) ** 2
            for turned in (np.mod(beta - start, FULL_TURN_RAD) for beta in (theta + gamma, theta + np.pi - gamma))
        )
        total = np.maximum(first + second, 1e-12)
        return np.stack([first / total, np.where(first + second > 0, second / total, 1.0)])


SCANNERS: dict[str, FanBeam] = {
    fan.name: fan
    for fan in (
        FanBeam(),
        FanBeam(
            name="siemens-sensation",
            source_iso_mm=570.0,
            source_detector_mm=1040.0,
            detector_pitch_mm=1.4083,
            n_channels=672,
            n_views=1160,
            origin="DICOM header of a Sensation 64 (distances); Zeng et al. 2015, IEEE Trans Nucl Sci 62:2226 (672 channels, 1160 "
            "views); pitch from the 500 mm field of view",
        ),
        FanBeam(
            name="ge-lightspeed",
            source_iso_mm=541.0,
            source_detector_mm=949.075,
            detector_pitch_mm=1.0239,
            n_channels=888,
            n_views=984,
            channel_offset=1.25,
            origin="Wang et al. 2006, IEEE Trans Med Imaging 25:1272",
        ),
        FanBeam(
            name="xcist-generic",
            source_iso_mm=550.0,
            source_detector_mm=950.0,
            detector_pitch_mm=1.0,
            n_channels=900,
            n_views=1000,
            channel_offset=-1.25,
            origin="example scanner of the XCIST simulator, Wu et al. 2022, Phys Med Biol 67:194002",
        ),
    )
}
"""Scanners by name; Philips CT has the distances of `siemens-sensation` in its headers, its detector is not published."""


def find_scanner(name: str) -> FanBeam:
    """The preset of that name.

    Raises: GeometryError naming those there are.
    """
    try:
        return SCANNERS[name]
    except KeyError:
        raise GeometryError(f"unknown scanner {name!r}; known are {', '.join(sorted(SCANNERS))}") from None


@dataclass(frozen=True, kw_only=True)
class ParallelBeam:
    """Parallel rays over half a turn. The detector spacing is independent of any pixel size, as it is in a scanner.

    Sampling the detector at the pixel size, as image-processing libraries do, low-passes the noise of every but the softest
    kernel.

    Attributes:
        n_detector: detector cells; cell `n_detector // 2` looks through the isocentre.
        detector_mm: cell width at the isocentre.
        n_views: views over π. Below 400 streaks appear in a 512² image.
        fan: the scanner whose rays are rebinned to this grid.
    """

    n_detector: int
    detector_mm: float = 0.3
    n_views: int = 576
    fan: FanBeam = field(default_factory=FanBeam)

    def __post_init__(self) -> None:
        if self.n_detector < 2 or self.n_views < 1 or not 0 < self.detector_mm < np.inf:
            raise GeometryError(
                f"expected at least 2 detector cells, 1 view and a positive spacing, "
                f"got {self.n_detector}, {self.n_views}, {self.detector_mm} mm"
            )
        self.fan.gamma_of(self.detector_positions_mm)

    @classmethod
    def covering(
        cls, *, size: int, pixel_mm: float, detector_mm: float = 0.3, n_views: int = 576, fan: FanBeam | None = None
    ) -> ParallelBeam:
        """The beam that covers the circle inscribed in an image of `size` × `size` pixels."""
        check_grid(size, pixel_mm)
        if not 0 < detector_mm < np.inf:
            raise GeometryError(f"expected detector cells of positive width, got {detector_mm} mm")
        n_detector = 2 * int(np.ceil(size * pixel_mm / detector_mm / 2)) + 1
        return cls(n_detector=n_detector, detector_mm=detector_mm, n_views=n_views, fan=fan or FanBeam())

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        """View angles θ in [0, π). A ray is x cos θ + y sin θ = s, x along columns, y along rows. Shape: (view,)."""
        return np.arange(self.n_views) * np.pi / self.n_views

    @property
    def detector_positions_mm(self) -> NDArray[np.floating]:
        """Distance s of each cell's centre from the isocentre. Shape: (detector,)."""
        return (np.arange(self.n_detector) - self.n_detector // 2) * self.detector_mm

    @property
    def gamma_rad(self) -> NDArray[np.floating]:
        """Fan angle γ of the rays of each cell. Shape: (detector,)."""
        return self.fan.gamma_of(self.detector_positions_mm)

    @property
    def rays_per_cell(self) -> NDArray[np.floating]:
        """Fan rays of one half turn per cell. Shape: (detector,)."""
        return self.fan.rays_per_cell(self.detector_positions_mm, angle_step_rad=np.pi / self.n_views, detector_mm=self.detector_mm)

    @property
    def half_turn_shares(self) -> NDArray[np.float64]:
        """`FanBeam.half_turn_shares` of each cell. Shape: (2, view, detector)."""
        return self.fan.half_turn_shares(self.angles_rad[:, None], self.gamma_rad[None, :])


def check_grid(size: int, pixel_mm: float) -> None:
    """Raises: GeometryError unless an image grid has at least 2 pixels of positive size."""
    if size < 2 or not (np.isfinite(pixel_mm) and pixel_mm > 0):
        raise GeometryError(f"expected an image of at least 2 pixels of positive size, got {size} pixels of {pixel_mm} mm")


def pixels_from_isocentre(size: int) -> NDArray[np.float64]:
    """Distance of each pixel's centre from the isocentre, the centre of pixel (size // 2, size // 2), in pixels. Shape: (y, x)."""
    axis = np.arange(size) - size // 2
    return np.hypot(axis[:, None], axis[None, :])
