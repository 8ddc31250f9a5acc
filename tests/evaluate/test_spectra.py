"""Spectra compared: known gains and filters give known distances and ratios; sums pool; intervals cover."""

import numpy as np
import pytest
from noise_samples import PIXEL_MM, SIZE, filtered, ramp, white

from finegrain.errors import DataError
from finegrain.evaluate.spectra import (
    central_frequency_ratio,
    mean_frequency_ratio,
    noise_magnitude_ratio,
    noise_of_difference,
    noise_of_repeats,
    nps_interval,
    nps_log_distance,
    nps_log_distance_floor,
    nps_pair_interval,
    nps_shape_log_distance,
    nps_standard_error,
    on_common_frequencies,
    uniform_patches,
)
from finegrain.noise_power import mean_nps, nps_2d, periodograms, radial_nps, ring_powers


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


def test_spectra_without_a_frequency_in_common_are_refused():
    radial = radial_nps(nps_2d(white(2), pixel_mm=PIXEL_MM))
    with pytest.raises(DataError, match="share no frequency"):
        nps_log_distance(radial, radial, low=5, high=6)


def repeats_of_an_object(n=40, tiles=3):
    """Scans of one uneven object with stationary coloured noise of known spectrum; ROIs cut by `tiles_of`."""
    rng = np.random.default_rng(7)
    side = tiles * SIZE
    f = np.fft.fftfreq(side, PIXEL_MM)
    colour = ramp(np.hypot(f[:, None], f[None, :]))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(0, 10, (n, side, side))) * colour).real
    y, x = np.mgrid[:side, :side] / side
    return noise + 80 * (y - 0.5) ** 2 + 50 * x * y, noise


def tiles_of(images):
    n, side, _ = images.shape
    k = side // SIZE
    return images.reshape(n, k, SIZE, k, SIZE).swapaxes(2, 3).reshape(-1, SIZE, SIZE)


def test_repeats_differences_and_detrended_single_images_agree_on_the_spectrum():
    scans, noise = repeats_of_an_object()
    direct = radial_nps(nps_2d(tiles_of(noise), pixel_mm=PIXEL_MM))
    of_repeats = radial_nps(nps_2d(tiles_of(noise_of_repeats(scans)), pixel_mm=PIXEL_MM))
    of_pairs = radial_nps(nps_2d(tiles_of(noise_of_difference(scans[::2], scans[1::2])), pixel_mm=PIXEL_MM))
    of_singles = radial_nps(nps_2d(tiles_of(scans), pixel_mm=PIXEL_MM, detrend="quadratic"))
    for other in (of_repeats, of_pairs):
        assert nps_log_distance(direct, other) < 0.05
        assert other.variance == pytest.approx(direct.variance, rel=0.02)
        assert other.mean_frequency == pytest.approx(direct.mean_frequency, rel=0.01)
    beyond_the_lowest = slice(2, 30)
    assert of_singles.power[beyond_the_lowest] == pytest.approx(direct.power[beyond_the_lowest], rel=0.05)
    assert of_singles.power[0] < 0.8 * direct.power[0]  # what detrending costs


def test_the_noise_of_repeats_is_scaled_for_the_noise_in_their_mean():
    for n in (2, 3, 10):
        noise = noise_of_repeats(np.random.default_rng(n).normal(500, 10, (n, 300, 300)))
        assert noise.var() == pytest.approx(100, rel=0.02)
    with pytest.raises(DataError, match="two or more"):
        noise_of_repeats(np.zeros((1, 8, 8)))
    with pytest.raises(DataError, match="two scans"):
        noise_of_difference(np.zeros((8, 8)), np.zeros((8, 9)))


def test_a_linear_filter_multiplies_the_spectrum_by_its_square_and_sets_both_ratios():
    def halving(f):
        return np.exp(-((f / 0.3) ** 2))

    sharp = radial_nps(nps_2d(filtered(white(300), ramp), pixel_mm=PIXEL_MM))
    soft = radial_nps(nps_2d(filtered(white(300), lambda f: ramp(f) * halving(f)), pixel_mm=PIXEL_MM))
    f = sharp.frequency_per_mm
    assert soft.power / sharp.power == pytest.approx(halving(f) ** 2, rel=0.1)
    # ramp² halving² = f exp(−2 f² (1/0.35² + 1/0.3²)): the integral over the plane and the peak are those of a narrower ramp
    width = 1 / np.sqrt(1 / 0.35**2 + 1 / 0.3**2)
    assert central_frequency_ratio(soft, sharp) == pytest.approx(width / 0.35, rel=0.1)
    assert mean_frequency_ratio(soft, sharp) == pytest.approx(width / 0.35, rel=0.05)
    assert noise_magnitude_ratio(soft, sharp) == pytest.approx((width / 0.35) ** 1.5, rel=0.03)


def test_the_powers_of_the_rings_average_to_the_radial_spectrum():
    power = periodograms(white(9), pixel_mm=PIXEL_MM)
    assert ring_powers(power).mean(axis=0) == pytest.approx(radial_nps(mean_nps(power, pixel_mm=PIXEL_MM)).power)


def test_the_standard_error_is_the_scatter_of_repeated_measurements():
    spectra = [radial_nps(nps_2d(filtered(white(20, seed=s), ramp), pixel_mm=PIXEL_MM)).power for s in range(60)]
    errors = [nps_standard_error(periodograms(filtered(white(20, seed=s), ramp), pixel_mm=PIXEL_MM)) for s in range(20)]
    ratio = np.mean(errors, axis=0) / np.std(spectra, axis=0)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert np.isnan(nps_standard_error(periodograms(white(1), pixel_mm=PIXEL_MM))).all()


def test_the_intervals_cover_the_known_values():
    f = np.fft.fftfreq(SIZE, PIXEL_MM)
    truth = radial_nps(mean_nps(100 * PIXEL_MM**2 * ramp(np.hypot(f[:, None], f))[None] ** 2, pixel_mm=PIXEL_MM))
    means, distances = 0, 0
    for seed in range(40):
        a = periodograms(filtered(white(40, seed=seed), ramp), pixel_mm=PIXEL_MM)
        b = periodograms(1.3 * filtered(white(40, seed=seed + 100), ramp), pixel_mm=PIXEL_MM)
        rng = np.random.default_rng(seed)
        mean = nps_interval(a, lambda nps: nps.mean_frequency, pixel_mm=PIXEL_MM, rng=rng, n_resamples=100)
        pair = nps_pair_interval(a, b, nps_log_distance, pixel_mm=PIXEL_MM, draw="apart", rng=rng, n_resamples=100)
        means += mean.low <= truth.mean_frequency <= mean.high
        distances += pair.low <= 2 * np.log(1.3) <= pair.high
    assert means >= 33
    assert distances >= 33


def test_rois_drawn_together_see_a_gain_without_any_scatter():
    power = periodograms(white(12), pixel_mm=PIXEL_MM)
    rng = np.random.default_rng(0)
    same = nps_pair_interval(power, 4 * power, nps_log_distance, pixel_mm=PIXEL_MM, draw="together", rng=rng, n_resamples=50)
    apart = nps_pair_interval(power, 4 * power, nps_log_distance, pixel_mm=PIXEL_MM, draw="apart", rng=rng, n_resamples=50)
    assert (same.low, same.value, same.high) == pytest.approx((np.log(4),) * 3)
    assert apart.high - apart.low > 0.01
    with pytest.raises(DataError, match="in pairs"):
        nps_pair_interval(power, power[:9], nps_log_distance, pixel_mm=PIXEL_MM, draw="together", rng=rng)
    with pytest.raises(DataError, match="8 or more"):
        nps_interval(power[:7], lambda nps: nps.mean_frequency, pixel_mm=PIXEL_MM, rng=rng)


def test_two_equal_spectra_are_as_far_apart_as_the_floor_says():
    pairs = [[periodograms(white(30, seed=2 * s + i), pixel_mm=PIXEL_MM) for i in range(2)] for s in range(8)]
    distances = [nps_log_distance(*(radial_nps(mean_nps(p, pixel_mm=PIXEL_MM)) for p in pair)) for pair in pairs]
    floors = [nps_log_distance_floor(*pair, pixel_mm=PIXEL_MM) for pair in pairs]
    assert np.mean(distances) == pytest.approx(np.mean(floors), rel=0.2)
    with pytest.raises(DataError, match="one size"):
        nps_log_distance_floor(pairs[0][0], pairs[0][1][:, :32, :32], pixel_mm=PIXEL_MM)


def test_spectra_of_other_pixels_meet_on_one_axis():
    rng = np.random.default_rng(3)
    spectra = [radial_nps(nps_2d(rng.normal(0, 8 / p, (80, n, n)), pixel_mm=p)) for p, n in ((0.5, 64), (0.8, 48), (0.97, 64))]
    frequency, power = on_common_frequencies(spectra)
    assert power.shape == (3, len(frequency))
    assert frequency[0] >= max(s.frequency_per_mm[0] for s in spectra)
    assert frequency[-1] <= min(s.frequency_per_mm[-1] for s in spectra)
    assert np.diff(frequency) == pytest.approx(0.01)
    assert power.mean(axis=1) == pytest.approx(64, rel=0.03)  # white: σ² pixel² = 8² whatever the pixel
    with pytest.raises(DataError, match="share no"):
        on_common_frequencies(spectra, step_per_mm=3)
