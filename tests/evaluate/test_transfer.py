"""The circular-edge TTF: discs whose transfer is known give it back, at any place, radius, contrast and with noise."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter
from scipy.special import j0, j1

from finegrain.errors import DataError
from finegrain.evaluate.transfer import circular_edge_ttf

PIXEL_MM = 0.7


def gaussian(sigma_mm):
    return lambda f: np.exp(-2 * (np.pi * f * sigma_mm) ** 2)


def cosine(f):
    return np.where(f < 0.9, np.cos(np.pi * f / 1.8) ** 2, 0)


def sharp(f):
    return np.where(f < 1, (1 + 1.2 * (f / 0.35) ** 2 * np.exp(-((f / 0.35) ** 2))) * np.cos(np.pi * f / 2) ** 2, 0)


def blurred_disc(transfer, radius_mm, *, offset=(0.31, -0.17), contrast_hu=100.0):
    """A disc through an isotropic transfer, by its Hankel integral, at the centres of the pixels; and where its centre is."""
    size = int(2 * (radius_mm + 7) / PIXEL_MM) + 9
    centre = (size / 2 + offset[0], size / 2 + offset[1])
    step = 0.002
    f = (np.arange(1250) + 0.5) * step
    r = np.arange(0, size * PIXEL_MM, 0.05)
    profile = j0(2 * np.pi * np.outer(r, f)) @ (2 * np.pi * step * radius_mm * j1(2 * np.pi * f * radius_mm) * transfer(f))
    y, x = np.mgrid[:size, :size]
    return contrast_hu * CubicSpline(r, profile)(np.hypot(y - centre[0], x - centre[1]) * PIXEL_MM), centre


def measured(images, centre, radius_mm, **more):
    about = (centre[0] + 2, centre[1] - 1.5)
    return circular_edge_ttf(images, centre=about, radius_mm=radius_mm, pixel_mm=PIXEL_MM, **more)


def up_to_f10(ttf, transfer):
    known = transfer(ttf.frequency_per_mm)
    end = np.flatnonzero(known < 0.1)[0]
    return ttf.ttf[:end] - known[:end]


@pytest.mark.parametrize("radius_mm", [4, 6, 12])
@pytest.mark.parametrize("transfer", [gaussian(0.4), gaussian(0.6), cosine])
def test_a_known_transfer_is_measured_within_a_third_of_a_percent_at_any_radius(transfer, radius_mm):
    disc, centre = blurred_disc(transfer, radius_mm)
    ttf = measured(disc[None], centre, radius_mm)
    assert np.abs(up_to_f10(ttf, transfer)).max() < 0.0033
    assert transfer(ttf.f50_per_mm) == pytest.approx(0.5, abs=0.005)
    assert transfer(ttf.f10_per_mm) == pytest.approx(0.1, abs=0.005)
    assert ttf.contrast_hu == pytest.approx(100, rel=0.005)
    assert ttf.ttf[0] == pytest.approx(1)
    assert not ttf.warnings
    assert ttf.interval is None


def test_a_sharpening_transfer_keeps_its_hump_above_one():
    disc, centre = blurred_disc(sharp, 8)
    ttf = measured(disc[None], centre, 8)
    assert ttf.ttf.max() == pytest.approx(sharp(ttf.frequency_per_mm).max(), abs=0.01)
    assert ttf.ttf.max() > 1.15
    assert np.abs(up_to_f10(ttf, sharp)).max() < 0.01


@pytest.mark.parametrize("contrast_hu", [-1000, -35, 35, 900])
def test_without_noise_contrast_and_its_sign_do_not_matter_to_the_transfer(contrast_hu):
    disc, centre = blurred_disc(gaussian(0.6), 6, contrast_hu=contrast_hu)
    ttf = measured(disc[None], centre, 6)
    assert ttf.contrast_hu == pytest.approx(contrast_hu, rel=0.005)
    assert np.abs(up_to_f10(ttf, gaussian(0.6))).max() < 0.005


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.5, 0.25), (-0.4, 0.13)])
def test_the_centre_is_found_to_a_twentieth_of_a_pixel_in_noise(offset):
    disc, centre = blurred_disc(cosine, 6, offset=offset)
    images = disc + np.random.default_rng(1).normal(0, 20, (20, *disc.shape))  # total CNR 22
    ttf = measured(images, centre, 6)
    assert np.hypot(ttf.centre[0] - centre[0], ttf.centre[1] - centre[1]) < 0.05
    assert ttf.radius_mm == pytest.approx(6, abs=0.05)


def test_many_noisy_images_give_the_transfer_and_an_interval_that_covers_it():
    disc, centre = blurred_disc(gaussian(0.6), 8)
    ttf = measured(disc + np.random.default_rng(2).normal(0, 10, (60, *disc.shape)), centre, 8)
    assert ttf.noise_hu == pytest.approx(10, rel=0.05)
    assert ttf.total_cnr == pytest.approx(100 / 10 * np.sqrt(60), rel=0.05)
    assert np.abs(up_to_f10(ttf, gaussian(0.6))).max() < 0.02
    known = gaussian(0.6)(ttf.frequency_per_mm)
    inside = (ttf.interval.low <= known) & (known <= ttf.interval.high)
    assert inside[1:58].mean() > 0.8
    assert ttf.interval.f50_low_per_mm < ttf.f50_per_mm < ttf.interval.f50_high_per_mm
    assert ttf.interval.f50_high_per_mm - ttf.interval.f50_low_per_mm < 0.05 * ttf.f50_per_mm
    assert not ttf.warnings


def test_noise_alone_leaves_no_transfer_on_average():
    disc, centre = blurred_disc(gaussian(0.8), 6)
    rng = np.random.default_rng(3)
    tails = [measured(disc[None] + rng.normal(0, 4, (1, *disc.shape)), centre, 6).ttf[80:] for _ in range(30)]
    assert np.mean(tails) == pytest.approx(0, abs=0.2 * np.std(tails))  # a magnitude would be 0.8 SD off


def test_a_linear_filter_multiplies_the_transfer_by_its_own():
    disc, centre = blurred_disc(cosine, 8)
    before = measured(disc[None], centre, 8)
    after = measured(gaussian_filter(disc, 0.7 / PIXEL_MM, truncate=6)[None], centre, 8)
    strong = before.ttf > 0.1
    known = gaussian(0.7)(before.frequency_per_mm[strong])
    assert after.ttf[strong] / before.ttf[strong] == pytest.approx(known, abs=0.02)


def test_pixels_that_are_averages_are_corrected_for_it():
    # 8 × 8 points to a pixel, of a disc that a small Gaussian blurs
    fine = 8
    size, radius_mm, sigma_mm = 61, 8, 0.3
    y, x = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - 0.5
    r = np.hypot(y - 30.2, x - 29.9) * PIXEL_MM
    disc = gaussian_filter(np.clip((radius_mm - r) / (PIXEL_MM / fine) + 0.5, 0, 1), sigma_mm / PIXEL_MM * fine)
    averaged = 100 * disc.reshape(size, fine, size, fine).mean(axis=(1, 3))
    with_pixels, without = (measured(averaged[None], (30, 30), radius_mm, pixels=p) for p in ("samples", "averages"))
    low = with_pixels.frequency_per_mm < 0.7
    known = gaussian(sigma_mm)(with_pixels.frequency_per_mm[low])
    assert without.ttf[low] == pytest.approx(known, abs=0.01)
    assert np.abs(with_pixels.ttf[low] - known).max() > 0.1


def test_too_much_noise_and_too_small_an_insert_are_told():
    disc, centre = blurred_disc(gaussian(0.6), 6)
    noisy = measured(disc[None] + np.random.default_rng(4).normal(0, 8, (1, *disc.shape)), centre, 6)
    assert any("total CNR" in warning for warning in noisy.warnings)
    disc, centre = blurred_disc(gaussian(0.9), 3)
    assert any("too wide" in warning for warning in measured(disc[None], centre, 3).warnings)


def test_what_has_no_edge_is_refused():
    disc, centre = blurred_disc(gaussian(0.6), 6)
    with pytest.raises(DataError, match="no circle"):
        measured(np.random.default_rng(5).normal(0, 10, (1, *disc.shape)), centre, 6)
    with pytest.raises(DataError, match="around its centre"):
        measured(disc[None], (8, 8), 6)
    with pytest.raises(DataError, match="shape"):
        circular_edge_ttf(disc, centre=centre, radius_mm=6, pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="five pixels"):
        measured(disc[None], centre, 1)
    with pytest.raises(DataError, match="NaN"):
        measured(np.full((1, *disc.shape), np.nan), centre, 6)
