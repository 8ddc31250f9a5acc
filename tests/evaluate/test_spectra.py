import numpy as np
import pytest

from finegrain.errors import DataError
from finegrain.evaluate.spectra import (
    central_frequency_ratio,
    noise_magnitude_ratio,
    nps_2d,
    nps_log_distance,
    nps_shape_log_distance,
    radial_nps,
    uniform_patches,
)

PIXEL_MM = 0.8
SIZE = 64


def white(n=200, sd=10.0, seed=0):
    return np.random.default_rng(seed).normal(0, sd, (n, SIZE, SIZE))


def filtered(rois, transfer):
    f = np.fft.fftfreq(SIZE, PIXEL_MM)
    return np.fft.ifft2(np.fft.fft2(rois) * transfer(np.hypot(f[:, None], f[None, :]))).real


def ramp(f):
    return np.sqrt(f) * np.exp(-((f / 0.35) ** 2))


@pytest.mark.parametrize("detrend", ["mean", "linear", "quadratic"])
def test_nps_integrates_to_the_variance(detrend):
    rois = white(20) + 100
    nps = nps_2d(rois, pixel_mm=PIXEL_MM, detrend=detrend)
    step = nps.frequency_per_mm[1] - nps.frequency_per_mm[0]
    assert nps.power.sum() * step**2 == pytest.approx(nps.variance, rel=1e-10)
    assert nps.variance == pytest.approx(100, rel=0.02)


def test_nps_of_white_noise_is_flat_at_variance_times_pixel_area():
    radial = radial_nps(nps_2d(white(), pixel_mm=PIXEL_MM))
    assert radial.power == pytest.approx(100 * PIXEL_MM**2, rel=0.1)
    assert radial.power.mean() == pytest.approx(100 * PIXEL_MM**2, rel=0.01)
    assert radial.variance == pytest.approx(100, rel=0.01)
    assert radial.frequency_per_mm[-1] <= 0.5 / PIXEL_MM * 1.02


def test_nps_of_coloured_noise_is_the_known_one():
    radial = radial_nps(nps_2d(filtered(white(400), ramp), pixel_mm=PIXEL_MM))
    f = radial.frequency_per_mm
    known = 100 * PIXEL_MM**2 * ramp(f) ** 2
    solid = known > 0.05 * known.max()
    assert radial.power[solid] == pytest.approx(known[solid], rel=0.1)
    assert radial.peak_frequency == pytest.approx(0.35 / 2, abs=0.02)  # d/df [f exp(−2 f²/c²)] = 0 at f = c/2
    assert radial.mean_frequency == pytest.approx((f * known).sum() / known.sum(), rel=0.02)


def test_a_trend_does_not_count_as_noise_once_removed():
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    sloped = white(30) + 200 * y
    curved = white(30) + 200 * y * x
    assert nps_2d(sloped, pixel_mm=PIXEL_MM, detrend="linear").variance == pytest.approx(100, rel=0.02)
    assert nps_2d(curved, pixel_mm=PIXEL_MM, detrend="quadratic").variance == pytest.approx(100, rel=0.02)
    assert nps_2d(sloped, pixel_mm=PIXEL_MM, detrend="mean").variance > 1000


def test_log_distance_of_a_gain_is_its_logarithm_and_its_shape_distance_zero():
    rois = filtered(white(50), ramp)
    a, b = (radial_nps(nps_2d(g * rois, pixel_mm=PIXEL_MM)) for g in (1, 2))
    assert nps_log_distance(a, a) == 0
    assert nps_log_distance(a, b) == pytest.approx(np.log(4))
    assert nps_log_distance(b, a) == pytest.approx(np.log(4))
    assert nps_shape_log_distance(a, b) == pytest.approx(0, abs=1e-9)
    assert noise_magnitude_ratio(b, a) == pytest.approx(2)
    assert central_frequency_ratio(b, a) == pytest.approx(1)


def test_blur_lowers_the_central_frequency_and_shows_as_shape_distance():
    sharp = radial_nps(nps_2d(filtered(white(100), ramp), pixel_mm=PIXEL_MM))
    soft = radial_nps(nps_2d(filtered(white(100), lambda f: ramp(f) * np.exp(-((f / 0.2) ** 2))), pixel_mm=PIXEL_MM))
    assert central_frequency_ratio(soft, sharp) < 0.75
    assert soft.mean_frequency < sharp.mean_frequency
    assert nps_shape_log_distance(sharp, soft) > 0.5


def test_spectra_of_other_roi_sizes_compare():
    big, small = white(50), white(50)[:, :32, :32]
    a, b = (radial_nps(nps_2d(rois, pixel_mm=PIXEL_MM)) for rois in (big, small))
    assert nps_log_distance(a, b) < 0.1


def test_patches_lie_in_the_mask_and_do_not_overlap():
    hu = np.arange(100 * 120, dtype=float).reshape(100, 120)  # every pixel its own value
    mask = np.zeros(hu.shape, dtype=bool)
    mask[10:75, 20:110] = True
    patches = uniform_patches(hu, mask, 16)
    assert len(patches) >= 0.6 * mask.sum() // 256
    assert len(np.unique(patches)) == patches.size
    assert np.isin(patches, hu[mask]).mean() >= 0.95
    assert uniform_patches(hu, np.zeros_like(mask), 16).shape == (0, 16, 16)


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(DataError, match="square"):
        nps_2d(np.zeros((0, 8, 8)), pixel_mm=1.0)
    with pytest.raises(DataError, match="square"):
        nps_2d(np.zeros((3, 8, 9)), pixel_mm=1.0)
    radial = radial_nps(nps_2d(white(2), pixel_mm=PIXEL_MM))
    with pytest.raises(DataError, match="share no frequency"):
        nps_log_distance(radial, radial, low=5, high=6)
