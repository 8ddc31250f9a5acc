from dataclasses import replace

import numpy as np
import pytest
from noise_samples import ramp

from finegrain.errors import DataError
from finegrain.evaluate.lesion import STUDY_LESIONS, Lesion, gaussian_transfer, roi_size
from finegrain.evaluate.observer import (
    LG_WIDTH_PER_DIAMETER,
    Jackknife,
    auc_of,
    channelised_hotelling,
    detectability_gain,
    difference_of_gaussians,
    eye_filter,
    fourier_d_prime,
    gabor,
    laguerre_gauss,
    non_prewhitening,
    non_prewhitening_eye,
    task_spectrum,
)
from finegrain.noise_power import NPS2D, nps_2d

PIXEL_MM = 0.7
SIZE = 33
F = np.fft.fftfreq(SIZE, PIXEL_MM)
RADIAL = np.hypot(F[:, None], F[None, :])
WHITE = np.full((SIZE, SIZE), 20.0)
COLOURED = 120 * ramp(RADIAL) + 2
LESION = Lesion(diameter_mm=6.0, contrast_hu=-20.0)
CHANNELS = {
    "lg": laguerre_gauss(SIZE, pixel_mm=PIXEL_MM, width_mm=6.0 * LG_WIDTH_PER_DIAMETER),
    "ddog": difference_of_gaussians(SIZE, pixel_mm=PIXEL_MM, n_channels=6, first_sigma_per_mm=0.03),
    "gabor": gabor(SIZE, pixel_mm=PIXEL_MM, n_bands=2),
}


def noise(rng, n, amplitude):
    """Stationary noise whose amplitude spectrum, in HU per white unit, is given."""
    return np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, SIZE, SIZE))) * amplitude).real


def spectrum(amplitude):
    return NPS2D(
        power=np.fft.fftshift(amplitude**2) * PIXEL_MM**2,
        frequency_per_mm=np.fft.fftshift(F),
        variance=float((amplitude**2).mean()),
        n_rois=1,
    )


def signal(scale=1.0):
    return scale * LESION.image(SIZE, pixel_mm=PIXEL_MM)


def channel_covariance(channels, amplitude):
    seen = np.fft.ifft2(np.fft.fft2(channels, axes=(0, 1)) * amplitude[..., None], axes=(0, 1)).real
    seen = seen.reshape(-1, channels.shape[-1])
    return seen.T @ seen


def channelised_truth(channels, amplitude, s):
    delta = channels.reshape(-1, channels.shape[-1]).T @ s.ravel()
    return float(np.sqrt(delta @ np.linalg.solve(channel_covariance(channels, amplitude), delta)))


def channel_draws(rng, n, channels, amplitude):
    """Noise images that lie in the span of the channels and look to them like the noise: many draws for little time."""
    u = channels.reshape(-1, channels.shape[-1])
    v = rng.normal(size=(n, u.shape[1])) @ np.linalg.cholesky(channel_covariance(channels, amplitude)).T
    return (v @ np.linalg.pinv(u)).reshape(n, SIZE, SIZE)


# --- channels


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS.keys())
def test_a_shift_of_all_hu_is_no_signal_to_any_channel(channels):
    assert np.abs(channels.sum(axis=(0, 1))).max() < 1e-9
    assert np.linalg.norm(channels, axis=(0, 1)) == pytest.approx(1)


def test_channels_sit_on_the_middle_pixel():
    for channels in (CHANNELS["lg"], CHANNELS["ddog"]):
        assert np.abs(channels - channels[::-1, ::-1]).max() < 1e-9
        assert np.abs(channels - channels.transpose(1, 0, 2)).max() < 1e-9
        middle = np.abs(channels[SIZE // 2, SIZE // 2])
        assert (middle >= np.abs(channels).max(axis=(0, 1)) - 1e-12).all()


def test_laguerre_gauss_channels_are_orthogonal_where_the_roi_holds_them():
    channels = laguerre_gauss(129, pixel_mm=0.25, width_mm=2.5).reshape(-1, 5)
    gram = channels.T @ channels
    assert np.abs(gram - np.eye(5)).max() < 0.03  # the taken-off mean costs a little


def test_difference_of_gaussians_peak_where_abbey_and_barrett_have_them():
    pixel_mm, size = 0.7, 257
    channels = difference_of_gaussians(size, pixel_mm=pixel_mm)
    assert channels.shape[-1] == 10
    f = np.fft.fftfreq(size, pixel_mm)[: size // 2]
    for j in (4, 6, 8):
        profile = np.abs(np.fft.fft2(channels[..., j]))[0, : size // 2]
        sigma = 0.005 * 1.4**j / pixel_mm
        # d/df (exp(−f²/2q²σ²) − exp(−f²/2σ²)) = 0 at f² = 2σ² ln(q²)/(1 − 1/q²)
        expected = sigma * np.sqrt(2 * np.log(1.67**2) / (1 - 1 / 1.67**2))
        assert f[np.argmax(profile)] == pytest.approx(expected, abs=f[1])


def test_gabor_channels_peak_in_the_middle_of_their_octave_and_along_their_direction():
    size = 129
    channels = gabor(size, pixel_mm=0.7, highest_per_mm=0.4, n_bands=2, n_orientations=2)
    assert channels.shape == (size, size, 4)
    f = np.fft.fftfreq(size, 0.7)
    for k, (fy, fx) in enumerate([(0, 0.3), (0.3, 0), (0, 0.15), (0.15, 0)]):
        peak = np.unravel_index(np.argmax(np.abs(np.fft.fft2(channels[..., k]))), (size, size))
        assert (abs(f[peak[0]]), abs(f[peak[1]])) == pytest.approx((fy, fx), abs=0.02)


# --- Hotelling


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("amplitude", [WHITE, COLOURED], ids=["white", "coloured"])
def test_many_images_give_the_analytic_channelised_d_prime(name, amplitude):
    rng, s = np.random.default_rng(1), signal()
    truth = channelised_truth(CHANNELS[name], amplitude, s)
    found = channelised_hotelling(
        noise(rng, 1500, amplitude) + s, noise(rng, 1500, amplitude), channels=CHANNELS[name], ensembles="independent"
    )
    assert found.d_prime == pytest.approx(truth, rel=0.06)
    assert found.low < truth < found.high
    assert (found.n_present, found.n_absent, found.warnings) == (1500, 1500, ())
    assert found.auc == pytest.approx(auc_of(found.d_prime))
    assert auc_of(found.low) == found.auc_low < found.auc < found.auc_high == auc_of(found.high)


def test_a_channel_that_is_the_signal_makes_the_ideal_observer_of_white_noise():
    s = signal() - signal().mean()
    channels = (s / np.linalg.norm(s))[..., None]
    assert channelised_truth(channels, WHITE, s) == pytest.approx(np.linalg.norm(s) / 20)
    rng = np.random.default_rng(2)
    found = channelised_hotelling(noise(rng, 1000, WHITE) + s, noise(rng, 1000, WHITE), channels=channels, ensembles="independent")
    assert found.d_prime == pytest.approx(np.linalg.norm(s) / 20, rel=0.1)


@pytest.mark.parametrize("ensembles", ["independent", "paired"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_d_prime_squared_of_few_images_is_unbiased_and_its_interval_covers_the_truth(ensembles, scale):
    rng, channels, n, draws = np.random.default_rng(3), CHANNELS["lg"], 12, 400
    s = signal(2 * scale / channelised_truth(channels, COLOURED, signal()))
    truth, found = 4.0 * scale**2, []
    for _ in range(draws):
        absent, present = channel_draws(rng, n, channels, COLOURED), channel_draws(rng, n, channels, COLOURED)
        if ensembles == "paired":  # correlated by 0.9, as after a network
            present = np.sqrt(0.1) * present + np.sqrt(0.9) * (shared := channel_draws(rng, n, channels, COLOURED))
            absent = np.sqrt(0.1) * absent + np.sqrt(0.9) * shared
        found.append(channelised_hotelling(present + s, absent, channels=channels, ensembles=ensembles))
    squared = np.array([d.d_prime_squared for d in found])
    assert abs(squared.mean() - truth) < 4 * squared.std() / np.sqrt(draws) + 0.03
    coverage = np.mean([d.low**2 <= truth + 1e-9 and truth <= d.high**2 for d in found])
    assert 0.92 <= coverage <= (1.0 if scale == 0 else 0.98)
    if scale == 0:
        assert np.mean([d.low == 0 for d in found]) > 0.9


def test_the_plain_estimate_would_be_far_off_where_the_corrected_one_is_not():
    rng, channels, n = np.random.default_rng(4), CHANNELS["lg"], 12
    u = channels.reshape(-1, 5)
    plain = []
    for _ in range(200):
        v1, v0 = (channel_draws(rng, n, channels, COLOURED).reshape(n, -1) @ u for _ in range(2))
        delta = v1.mean(axis=0) - v0.mean(axis=0)
        plain.append(delta @ np.linalg.solve((np.cov(v1.T) + np.cov(v0.T)) / 2, delta))
    assert np.mean(plain) > 0.8  # the truth is 0; the test above finds 0 within 0.1


def test_paired_images_know_the_lesion_better_than_independent_ones():
    rng, s = np.random.default_rng(5), signal()
    channels = CHANNELS["lg"]
    s = s / channelised_truth(channels, COLOURED, s)
    absent = noise(rng, 40, COLOURED)
    paired = channelised_hotelling(absent + s, absent, channels=channels, ensembles="paired")
    independent = channelised_hotelling(noise(rng, 40, COLOURED) + s, absent, channels=channels, ensembles="independent")
    assert paired.low < 1 < paired.high
    assert paired.high - paired.low < 0.7 * (independent.high - independent.low)


def test_patients_that_differ_widen_the_interval_and_it_still_covers_the_truth():
    rng, channels = np.random.default_rng(6), CHANNELS["lg"]
    s = signal(2 / channelised_truth(channels, COLOURED, signal()))
    patients = np.repeat(list("abcdefgh"), 10)
    covered, wider, draws = 0, 0, 100
    for _ in range(draws):
        absent = channel_draws(rng, 80, channels, COLOURED)
        strength = np.repeat(rng.normal(1, 0.2, 8), 10)[:, None, None]  # a variance of 0.16 of the score along the lesion
        present = absent + strength * s
        by_patient = channelised_hotelling(present, absent, channels=channels, ensembles="paired", patients=list(patients))
        by_image = channelised_hotelling(present, absent, channels=channels, ensembles="paired")
        assert by_patient.interval == "jackknife over 8 patients"
        truth = np.sqrt(4 / (1 + 0.16 / 2))
        covered += by_patient.low <= truth <= by_patient.high
        wider += by_patient.high - by_patient.low > by_image.high - by_image.low
    assert covered >= 0.87 * draws
    assert wider > 0.9 * draws


@pytest.mark.parametrize("observe", ["CHO", "NPW", "NPW, own template"])
def test_a_gain_in_the_same_patients_is_known_better_than_two_d_primes_and_its_interval_covers_the_truth(observe):
    """Noise of 0.8 of the amplitude and a little of its own in the same images: d′ rises by a quarter, less that little."""
    rng, channels = np.random.default_rng(31), CHANNELS["lg"]
    s = signal(3 / channelised_truth(channels, WHITE, signal()))
    s -= s.mean()
    n, patients, draws = 12, np.repeat(list("abcdefghijkl"), 8), 100

    def seen(present, absent):
        if observe == "CHO":
            return channelised_hotelling(present, absent, channels=channels, ensembles="paired", patients=list(patients))
        template = s if observe == "NPW" else None
        return non_prewhitening(present, absent, expected_signal=template, ensembles="paired", patients=list(patients))

    def truth(amplitude):
        if observe == "CHO":
            return channelised_truth(channels, np.full_like(WHITE, amplitude), s)
        return np.linalg.norm(s) / amplitude

    covered, narrower = 0, 0
    for _ in range(draws):
        absent = rng.normal(0, 20, (len(patients), SIZE, SIZE))
        softer = 0.8 * absent + rng.normal(0, 2, absent.shape)
        before, after = seen(absent + s, absent), seen(softer + s, softer)
        found = detectability_gain(after.jackknife, before.jackknife)
        assert found.n_patients == n
        covered += found.low <= truth(np.hypot(16, 2)) - truth(20) <= found.high
        narrower += found.high - found.low < 0.6 * (after.high - after.low)
    assert 0.88 <= covered / draws <= 0.99
    assert narrower > 0.9 * draws


def test_what_only_scales_an_image_gains_nothing_and_noise_added_to_it_loses():
    rng, channels = np.random.default_rng(32), CHANNELS["lg"]
    absent, patients = noise(rng, 90, COLOURED), list(np.repeat(np.arange(9), 10))
    present = absent + signal()

    def seen(with_lesion, without):
        return channelised_hotelling(with_lesion, without, channels=channels, ensembles="paired", patients=patients)

    before = seen(present, absent)
    assert sum(before.jackknife.influence) == pytest.approx(0, abs=1e-9)
    assert before.jackknife.d_prime == before.d_prime
    spread = np.std(before.jackknife.influence, ddof=1) / 3
    assert 2 * 2.306004 * spread == pytest.approx(before.high**2 - before.low**2)  # t of 8 degrees of freedom
    none = detectability_gain(seen(3 * present, 3 * absent).jackknife, before.jackknife)
    assert (none.gain, none.low, none.high) == pytest.approx((0, 0, 0), abs=1e-9)
    more = 2 * noise(rng, 90, COLOURED)
    worse = seen(present + more, absent + more)
    lost = detectability_gain(worse.jackknife, before.jackknife)
    assert lost.gain == pytest.approx(worse.d_prime - before.d_prime)
    assert lost.high < 0 and lost.p < 0.05
    wiped_out = seen(absent + 1e-3 * (present - absent), absent)  # may come out below zero, and is told all the same
    assert detectability_gain(wiped_out.jackknife, before.jackknife).high < 0


def test_what_cannot_be_compared_is_refused():
    one = Jackknife(value=4.0, influence=(0.5, -0.25, -0.25), squared=True)
    for other, what in (
        (replace(one, influence=(0.5, -0.5)), "influences of the same 3 or more patients, got those of 3 and 2"),
        (replace(one, squared=False), "compare an observer with itself"),
        (replace(one, value=np.nan), "expected finite"),
    ):
        with pytest.raises(DataError, match=what):
            detectability_gain(one, other)
    nothing = replace(one, value=-0.1)
    with pytest.raises(DataError, match="no difference to state"):
        detectability_gain(nothing, nothing)
    assert detectability_gain(nothing, one).gain == pytest.approx(-4.1 / 2)


def test_no_difference_at_all_gives_zero_and_an_auc_of_one_half():
    absent = noise(np.random.default_rng(7), 30, COLOURED)
    found = channelised_hotelling(absent, absent.copy(), channels=CHANNELS["lg"], ensembles="paired")
    assert (found.d_prime, found.low, found.auc, found.auc_low) == (0, 0, 0.5, 0.5)


def test_gain_offset_and_mixed_channels_change_nothing():
    rng, channels = np.random.default_rng(8), CHANNELS["lg"]
    absent, present = noise(rng, 60, COLOURED), noise(rng, 60, COLOURED) + signal()
    plain = channelised_hotelling(present, absent, channels=channels, ensembles="independent")
    mixed = channels @ rng.normal(size=(5, 5))
    other = channelised_hotelling(3 * present + 50, 3 * absent + 50, channels=mixed, ensembles="independent")
    for name in ("d_prime", "low", "high"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-4)


@pytest.mark.parametrize("lesion", STUDY_LESIONS, ids=lambda lesion: f"{lesion.diameter_mm:g} mm")
def test_the_roi_of_each_study_lesion_holds_all_default_channels_apart(lesion):
    size = roi_size(lesion.diameter_mm, PIXEL_MM)
    images = np.random.default_rng(19).normal(0, 20, (2, 60, size, size))
    for channels in (
        difference_of_gaussians(size, pixel_mm=PIXEL_MM),
        gabor(size, pixel_mm=PIXEL_MM),
        laguerre_gauss(size, pixel_mm=PIXEL_MM, width_mm=lesion.diameter_mm * LG_WIDTH_PER_DIAMETER),
    ):
        s = lesion.image(size, pixel_mm=PIXEL_MM)
        found = channelised_hotelling(images[0] + s, images[1], channels=channels, ensembles="independent")
        ideal = np.linalg.norm(s - s.mean()) / 20
        assert found.low <= ideal * 1.05
        assert found.high >= 0.8 * ideal


def test_internal_noise_lowers_d_prime_as_it_adds_to_the_variance():
    rng = np.random.default_rng(9)
    absent, present = noise(rng, 60, COLOURED), noise(rng, 60, COLOURED) + signal()
    plain, noisy = (
        channelised_hotelling(present, absent, channels=CHANNELS["lg"], ensembles="independent", internal_noise=k) for k in (0, 1)
    )
    assert noisy.d_prime == pytest.approx(plain.d_prime / np.sqrt(2))
    assert noisy.high == pytest.approx(plain.high / np.sqrt(2))


def test_too_few_images_are_refused_and_few_earn_a_warning():
    images = noise(np.random.default_rng(10), 20, WHITE)
    settings = {"channels": CHANNELS["lg"]}
    with pytest.raises(DataError, match="5 channels need at least 10 pairs, got 9"):
        channelised_hotelling(images[:9], images[:9], ensembles="paired", **settings)
    with pytest.raises(DataError, match="images of both kinds, got 10"):
        channelised_hotelling(images[:5], images[5:10], ensembles="independent", **settings)
    assert "few images" in channelised_hotelling(images[:10], images[10:], ensembles="independent", **settings).warnings[0]
    with pytest.raises(DataError, match="leaving one patient out"):
        channelised_hotelling(images[:12], images[:12] + 0, ensembles="paired", patients=list("aaaabbbbcccc"), **settings)


def test_what_does_not_fit_is_refused_in_one_line():
    images = noise(np.random.default_rng(11), 40, WHITE)
    lg = CHANNELS["lg"]
    broken = images.copy()
    broken[3, 4, 5] = np.nan
    for wrong, message in (
        ({"present": images[:, :20]}, "of one size"),
        ({"present": broken}, "NaN"),
        ({"present": images[:20]}, "as many images"),
        ({"patients": ["a"] * 40}, "3 or more, got 1"),
        ({"patients": ["a", "b", "c"]}, "one label per pair"),
        ({"channels": lg[:20, :20]}, "expected channels"),
        ({"channels": np.concatenate([lg, lg[..., :1]], axis=-1)}, "repeat each other"),
        ({"internal_noise": -1.0}, "internal noise"),
        ({"present": np.ones((40, SIZE, SIZE)), "absent": np.ones((40, SIZE, SIZE))}, "see no noise"),
    ):
        given = {"present": images, "absent": images, "channels": lg, **wrong}
        with pytest.raises(DataError, match=message) as error:
            channelised_hotelling(given.pop("present"), given.pop("absent"), ensembles="paired", **given)
        assert "\n" not in str(error.value)


# --- matched filters and Fourier


@pytest.mark.parametrize("observer", ["PW", "NPW"])
def test_white_noise_gives_the_norm_of_the_signal_over_sigma(observer):
    task = task_spectrum(signal(), pixel_mm=PIXEL_MM)
    assert fourier_d_prime(task, nps=spectrum(WHITE), observer=observer) == pytest.approx(np.linalg.norm(signal()) / 20)


def test_the_matched_filter_never_beats_prewhitening():
    rng, task = np.random.default_rng(12), task_spectrum(signal(), pixel_mm=PIXEL_MM)
    for _ in range(50):
        nps = spectrum(np.exp(rng.normal(size=(SIZE, SIZE))))
        ideal, plain, eye = (fourier_d_prime(task, nps=nps, observer=o) for o in ("PW", "NPW", "NPWE"))
        assert plain <= ideal
        assert eye <= ideal


def test_prewhitening_is_blind_to_an_invertible_filter_and_the_matched_filter_is_not():
    task, ttf = task_spectrum(signal(), pixel_mm=PIXEL_MM), gaussian_transfer(0.25)

    def gained(f):
        return 3 * ttf(f)

    filtered = spectrum(COLOURED * gained(RADIAL))
    before, after = (
        fourier_d_prime(task, nps=n, ttf=t, observer="PW") for n, t in ((spectrum(COLOURED), None), (filtered, gained))
    )
    assert after == pytest.approx(before)
    before, after = (
        fourier_d_prime(task, nps=n, ttf=t, observer="NPW") for n, t in ((spectrum(COLOURED), None), (filtered, gained))
    )
    assert abs(after / before - 1) > 0.02


def test_prewhitening_equals_the_hotelling_observer_of_all_pixels():
    size = 8
    f = np.fft.fftfreq(size, PIXEL_MM)
    amplitude = 5 * ramp(np.hypot(f[:, None], f[None, :])) + 1
    kernel = np.fft.ifft2(amplitude**2).real  # covariance of circulant noise
    places = np.stack(np.divmod(np.arange(size**2), size))
    covariance = kernel[tuple((places[:, :, None] - places[:, None, :]) % size)]
    s = Lesion(diameter_mm=3.0, contrast_hu=5.0).image(size, pixel_mm=PIXEL_MM)
    expected = np.sqrt(s.ravel() @ np.linalg.solve(covariance, s.ravel()))
    nps = NPS2D(np.fft.fftshift(amplitude**2) * PIXEL_MM**2, np.fft.fftshift(f), 1.0, 1)
    assert fourier_d_prime(task_spectrum(s, pixel_mm=PIXEL_MM), nps=nps, observer="PW") == pytest.approx(expected)


def test_a_ttf_does_to_the_task_what_blur_does_to_the_lesion():
    mtf, disc = gaussian_transfer(0.3), Lesion(diameter_mm=6.0, contrast_hu=-20.0)
    blurred = task_spectrum(disc.image(SIZE, pixel_mm=PIXEL_MM, mtf=mtf), pixel_mm=PIXEL_MM)
    sharp = task_spectrum(disc.image(SIZE, pixel_mm=PIXEL_MM), pixel_mm=PIXEL_MM)
    for observer in ("PW", "NPW", "NPWE"):
        with_ttf = fourier_d_prime(sharp, nps=spectrum(COLOURED), ttf=mtf, observer=observer)
        assert with_ttf == pytest.approx(fourier_d_prime(blurred, nps=spectrum(COLOURED), observer=observer), rel=0.02)


@pytest.mark.parametrize(("ensembles", "expected"), [("independent", True), ("paired", True), ("paired", False)])
def test_the_matched_filter_of_images_agrees_with_that_of_the_spectrum(ensembles, expected):
    rng = np.random.default_rng(13)
    s = signal(0.7) - signal(0.7).mean()
    task = task_spectrum(s, pixel_mm=PIXEL_MM)
    absent = noise(rng, 800, COLOURED)
    present = s + (absent if ensembles == "paired" else noise(rng, 800, COLOURED))
    known = s if expected else None
    for observer, found in (
        ("NPW", non_prewhitening(present, absent, ensembles=ensembles, expected_signal=known)),
        ("NPWE", non_prewhitening_eye(present, absent, pixel_mm=PIXEL_MM, ensembles=ensembles, expected_signal=known)),
    ):
        truth = fourier_d_prime(task, nps=spectrum(COLOURED), observer=observer)
        assert found.observer == observer
        assert found.d_prime == pytest.approx(truth, rel=0.08)
        assert found.low < truth < found.high


def test_a_template_learnt_from_independent_images_loses_what_theory_says():
    rng, n, s = np.random.default_rng(18), 60, signal() - signal().mean()
    power = COLOURED**2
    gain = float((s**2).sum())
    filtered = float((np.abs(np.fft.fft2(s)) ** 2 * power).mean())
    expected = gain / np.sqrt(filtered + 2 / n * (power**2).sum())  # wᵀKw of w = s + noise of covariance 2K/n
    found = [
        non_prewhitening(noise(rng, n, COLOURED) + s, noise(rng, n, COLOURED), ensembles="independent").d_prime for _ in range(20)
    ]
    assert np.mean(found) == pytest.approx(expected, rel=0.06)
    assert expected < 0.8 * gain / np.sqrt(filtered)


def test_the_measured_spectrum_serves_as_well_as_the_true_one():
    s = signal() - signal().mean()
    task = task_spectrum(s, pixel_mm=PIXEL_MM)
    measured = nps_2d(noise(np.random.default_rng(14), 2000, COLOURED), pixel_mm=PIXEL_MM)
    for observer in ("PW", "NPW", "NPWE"):
        truth = fourier_d_prime(task, nps=spectrum(COLOURED), observer=observer)
        assert fourier_d_prime(task, nps=measured, observer=observer) == pytest.approx(truth, rel=0.03)


def test_a_template_that_has_seen_its_image_would_find_lesions_where_there_are_none():
    rng, held_out, resubstituted = np.random.default_rng(15), [], []
    for _ in range(60):
        present, absent = noise(rng, 15, WHITE), noise(rng, 15, WHITE)
        held_out.append(non_prewhitening(present, absent, ensembles="independent"))
        template = present.mean(axis=0) - absent.mean(axis=0)
        resubstituted.append(non_prewhitening(present, absent, ensembles="independent", expected_signal=template).d_prime)
    assert np.mean(resubstituted) > 3
    assert abs(np.mean([d.d_prime for d in held_out])) < 0.2
    assert np.mean([d.low <= 0 <= d.high for d in held_out]) > 0.85
    assert all("more noise than signal" in d.warnings[0] for d in held_out[:5])


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_the_interval_of_the_matched_filter_covers_the_truth(strength):
    rng, s = np.random.default_rng(16), signal() - signal().mean()
    s *= strength * 20 / np.linalg.norm(s)
    covered = 0
    for _ in range(200):
        found = non_prewhitening(noise(rng, 15, WHITE) + s, noise(rng, 15, WHITE), ensembles="independent", expected_signal=s)
        covered += found.low <= strength <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_the_matched_filter_over_patients_leaves_the_patient_out():
    rng, s = np.random.default_rng(17), signal(0.5)
    absent = noise(rng, 40, COLOURED)
    found = non_prewhitening(absent + s, absent, ensembles="paired", patients=list(np.repeat([1, 2, 3, 4], 10)))
    assert found.interval == "jackknife over patients"
    assert found.low < found.d_prime < found.high
    assert "4 patients only" in found.warnings[0]


def test_the_eye_is_most_sensitive_at_four_cycles_per_degree():
    f = np.linspace(0, 2, 20001)
    at_500_mm = 4 / (500 * np.pi / 180)
    assert f[np.argmax(eye_filter(f))] == pytest.approx(at_500_mm, abs=1e-3)
    assert f[np.argmax(eye_filter(f, magnification=2.0))] == pytest.approx(2 * at_500_mm, abs=1e-3)
    assert eye_filter(f).max() == pytest.approx(1)


def test_noise_that_leaves_a_frequency_out_makes_no_finite_ideal_observer():
    amplitude = COLOURED.copy()
    amplitude[3, 4] = 0
    task = task_spectrum(signal(), pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="infinite"):
        fourier_d_prime(task, nps=spectrum(amplitude), observer="PW")
    with pytest.raises(DataError, match="does not fit"):
        fourier_d_prime(task[:5, :5], nps=spectrum(COLOURED), observer="NPW")


def test_images_without_noise_are_refused_by_the_matched_filter():
    with pytest.raises(DataError, match="no noise"):
        non_prewhitening(np.zeros((5, SIZE, SIZE)) + signal(), np.zeros((5, SIZE, SIZE)), ensembles="paired")


def test_pixels_of_two_sizes_are_judged_as_one_size_is():
    """A lesion in coloured noise of one spectrum per mm, seen at 0.6 and 1.2 mm: each alone and both together give the same d′."""
    generator = np.random.default_rng(5)
    size, width = 33, 1.5 * np.sqrt(2 * np.pi)  # the first channel is the lesion, but for its mean over the ROI

    def ensemble(pixel_mm, n):
        axis = (np.arange(size) - size // 2) * pixel_mm
        signal = 12 * np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
        noise = generator.normal(0, 20 / pixel_mm, (n, size, size))  # white: 400 HU² mm² at every pixel size
        channels = pixel_mm * laguerre_gauss(size, pixel_mm=pixel_mm, width_mm=width, n_channels=3)
        return noise + signal, noise, np.broadcast_to(channels, (n, *channels.shape))

    parts = [ensemble(0.6, 400), ensemble(1.2, 400)]
    alone = [channelised_hotelling(*part[:2], channels=part[2], ensembles="paired").d_prime for part in parts]
    together = channelised_hotelling(*(np.concatenate(each) for each in list(zip(*parts, strict=True))[:2]),
                                     channels=np.concatenate([part[2] for part in parts]), ensembles="paired")  # fmt: skip
    assert alone == pytest.approx([together.d_prime] * 2, rel=0.1)
    exact = 12 * np.sqrt(np.pi) * 1.5 / 20  # of the ideal observer in white noise
    assert together.d_prime == pytest.approx(exact, rel=0.08)
    one_size = channelised_hotelling(parts[0][0], parts[0][1], channels=parts[0][2][0], ensembles="paired")
    assert one_size.d_prime == pytest.approx(alone[0], rel=1e-9)
    with pytest.raises(DataError, match="expected channels of shape"):
        channelised_hotelling(parts[0][0], parts[0][1], channels=parts[0][2][:5], ensembles="paired")


def test_the_eye_sees_a_lesion_on_pixels_of_two_sizes_as_on_one():
    """Noise of one spectrum per mm seen at 0.6 and 0.9 mm; each alone and both together give the same d′."""
    generator = np.random.default_rng(8)
    size, n = 65, 150

    def ensemble(pixel_mm):
        axis = (np.arange(size) - size // 2) * pixel_mm
        lesion = 25 * np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 2.0**2))
        f = np.fft.fftfreq(size, pixel_mm)
        soft = np.exp(-((np.hypot(f[:, None], f[None]) / 0.4) ** 2))
        white = generator.normal(0, 40 / pixel_mm, (n, size, size))
        noise = np.fft.ifft2(np.fft.fft2(white) * soft).real
        return noise + lesion, noise, [pixel_mm] * n

    parts = [ensemble(0.6), ensemble(0.9)]
    alone = [non_prewhitening_eye(*part[:2], pixel_mm=part[2][0], ensembles="paired").d_prime for part in parts]
    present, absent, pixels = (np.concatenate(each) for each in zip(*parts, strict=True))
    together = non_prewhitening_eye(present, absent, pixel_mm=list(pixels), ensembles="paired")
    assert alone == pytest.approx([together.d_prime] * 2, rel=0.07)
    mixed_up = non_prewhitening_eye(present, absent, pixel_mm=0.6, ensembles="paired")  # a template that fits neither
    assert mixed_up.d_prime != pytest.approx(together.d_prime, rel=0.02)
    of_one = non_prewhitening_eye(*parts[0][:2], pixel_mm=parts[0][2], ensembles="paired")
    assert of_one.d_prime == pytest.approx(alone[0], rel=1e-12)
    with pytest.raises(DataError, match="one size for each of 150 pairs"):
        non_prewhitening_eye(*parts[0][:2], pixel_mm=[0.6, 0.9], ensembles="paired")
