"""Noise power spectra: their integral is the variance, white is flat, coloured is what it was coloured with."""

import numpy as np
import pytest
from noise_samples import PIXEL_MM, SIZE, filtered, ramp, white

from finegrain.errors import DataError
from finegrain.noise_power import mean_nps, nps_2d, periodograms, radial_nps


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


def test_a_taper_keeps_the_level_and_stops_leakage():
    line = np.hanning(SIZE + 1)[:-1]
    taper = np.outer(line, line)
    whole = radial_nps(mean_nps(periodograms(white(100), pixel_mm=PIXEL_MM, taper=taper), pixel_mm=PIXEL_MM))
    assert whole.power.mean() == pytest.approx(100 * PIXEL_MM**2, rel=0.02)
    f = np.fft.fftfreq(4 * SIZE, PIXEL_MM)
    radius = np.hypot(f[:, None], f[None, :])
    wide = np.random.default_rng(1).normal(0, 10, (30, 4 * SIZE, 4 * SIZE))
    soft = np.fft.ifft2(np.fft.fft2(wide) * np.exp(-((radius / 0.15) ** 2))).real[:, 32 : 32 + SIZE, 32 : 32 + SIZE]
    cut, tapered = (radial_nps(mean_nps(periodograms(soft, pixel_mm=PIXEL_MM, taper=t), pixel_mm=PIXEL_MM)) for t in (None, taper))
    assert tapered.power[-1] < 1e-4 * cut.power[-1]


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(DataError, match="square"):
        nps_2d(np.zeros((0, 8, 8)), pixel_mm=1.0)
    with pytest.raises(DataError, match="square"):
        nps_2d(np.zeros((3, 8, 9)), pixel_mm=1.0)
    with pytest.raises(DataError, match="square"):
        nps_2d(np.zeros((3, 1, 1)), pixel_mm=1.0)
    for pixel_mm in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(DataError, match=f"pixel size, got {pixel_mm} mm"):
            nps_2d(white(2), pixel_mm=pixel_mm)
    with pytest.raises(DataError, match="1 pixels of the ROIs are NaN"):
        nps_2d(np.where(np.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) == 5, np.nan, 0.0), pixel_mm=1.0)
