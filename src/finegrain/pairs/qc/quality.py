"""What is measured of a pair: the columns of the manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairQuality:
    """What was measured of one pair; NaN where it cannot be told. L is the low dose, N the normal dose, D = L − N.

    Attributes:
        shift_y_px, shift_x_px: of L against N, towards higher rows and columns.
        rotation_deg: of L against N about the middle of the image.
        motion_px: largest shift of a 32 mm square of the body across its edges, beyond that of the whole and twice its
            standard error.
        swapped: 98th percentile of |D| in cells of 8 mm in the body, over the noise of D; what slope and intercept explain is
            taken away.
        edges: rms of D where N has edges, over that where it has none, or over that around the edges if larger.
        air_hu, fat_hu, soft_hu: where the tissues of N lie.
        bias_hu: median of D in soft tissue; bias_fat_hu in fat; bias_air_hu in air.
        slope: of L on N, 1 for a good pair.
        noise_low_hu, noise_normal_hu: SD above a quarter of Nyquist in flat soft tissue.
        noise_ratio: of the two.
        dose_fraction: the share of the normal dose that the noise of L tells.
        frequency_normal_per_mm, frequency_low_per_mm: mean frequency of the noise above 0.35 Nyquist; NaN where what N holds is
            rather anatomy.
        frequency_added_per_mm: that of D.
        kept: what of the noise of N is in L: about 1 if noise was inserted, about 0 if L is a scan of its own.
        sharpness: what of the fine anatomy of N is in L, as near to 1 as twice its standard error lets it be.
        anisotropy: power of D along one axis over that along the other, the larger over the smaller.
        streak: straight-line sums of D, in SDs of such sums: the largest in the second of twelve directions, or half of the first.
        ring: largest sum of D around the middle of the image, without the two eighths that add most, or half the whole sum, in
            SDs of such sums.
        blocks: fine detail off the 8 × 8 grid of a lossy compression over that on it, in L or N, whichever is worse.
        body_cm2: area of the body in N.
        cut_body: share of the body's outline that lies on the edge of what was reconstructed.
        cut_straight: the longest such cut along one row or column inside the image, as a share of the outline.
        uncovered: share of the body that only one of both images shows.
        flat_squares: how many squares the noise was measured in.
    """

    shift_y_px: float
    shift_x_px: float
    rotation_deg: float
    motion_px: float
    swapped: float
    edges: float
    air_hu: float
    fat_hu: float
    soft_hu: float
    bias_hu: float
    bias_fat_hu: float
    bias_air_hu: float
    slope: float
    noise_low_hu: float
    noise_normal_hu: float
    noise_ratio: float
    dose_fraction: float
    frequency_normal_per_mm: float
    frequency_low_per_mm: float
    frequency_added_per_mm: float
    kept: float
    sharpness: float
    anisotropy: float
    streak: float
    ring: float
    blocks: float
    body_cm2: float
    cut_body: float
    cut_straight: float
    uncovered: float
    flat_squares: int
