"""Noise follows dose, a real scan's own noise is not counted twice, and the same seed gives the same bits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from finegrain.errors import ConfigError, GeometryError
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import (
    Scanner,
    matching_exposure,
    needed_margin,
    photons_along_z,
    simulate_low_dose,
    soft_tissue_noise,
)
from finegrain.simulate.dose import (
    COUNT_FLOOR,
    Exposure,
    _element_taps,
    log_bias,
    measure,
    missing_noise,
    poisson_quantile,
    tube_current,
)
from finegrain.simulate.fbp import KERNELS, filtered_backprojection, hann_kernel
from finegrain.simulate.geometry import ParallelBeam
from finegrain.simulate.projector import Projector

SIZE, PIXEL_MM = 256, 1.4
AXIS = (np.arange(SIZE) - SIZE // 2) * PIXEL_MM
RADIUS = np.hypot(AXIS[:, None], AXIS[None, :])
WATER = np.where(RADIUS < 160, 0.0, -1000.0)
CENTRE = RADIUS < 40


def _scanner(**exposure):
    return Scanner(size=SIZE, pixel_mm=PIXEL_MM, kernel=KERNELS["B30f"], exposure=Exposure(**exposure))


def _noise_sd(scanner, dose_fraction, seed=0, n=3):
    """SD in HU at the centre of a water disc, over n realisations."""
    generator = np.random.default_rng(seed)
    sinogram = scanner.line_integrals(WATER)
    settings = {"dose_fraction": dose_fraction, "generator": generator}
    noise = [measure(sinogram, scanner.beam, scanner.exposure, **settings).line_integrals - sinogram for _ in range(n)]
    hu = filtered_backprojection(np.stack(noise), scanner.projector, kernel=scanner.kernel) * 1000 / 0.0192
    return np.sqrt(np.mean([image[CENTRE].var() for image in hu]))


@pytest.mark.parametrize("mean", [0.0, 0.3, 4.0, 49.0, 51.0, 300.0, 20_000.0])
def test_counts_have_the_distribution_of_poisson(mean):
    edges = np.linspace(-5.5, 5.5, 400_001)
    z = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    counts = poisson_quantile(np.full_like(z, mean), z)
    found, chances = counts.astype(int), np.diff(special.ndtr(edges))
    at_most = np.cumsum(np.bincount(found, weights=chances))
    exact = stats.poisson.cdf(np.arange(len(at_most)), mean)
    assert np.abs(at_most - exact).max() < 2e-4
    assert (chances * counts).sum() == pytest.approx(mean, rel=2e-4)
    assert (chances * (counts - mean) ** 2).sum() == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("simulated", [measure, missing_noise])
def test_line_integrals_that_another_processor_rounds_otherwise_have_the_same_noise(simulated):
    scanner = _scanner(photons=3e4)
    sinogram = scanner.line_integrals(WATER)
    drawn = []
    for rounded in (sinogram, sinogram * np.random.default_rng(1).uniform(1 - 1e-6, 1 + 1e-6, sinogram.shape)):
        found = simulated(rounded, scanner.beam, scanner.exposure, dose_fraction=0.1, generator=np.random.default_rng(0))
        drawn.append(found if simulated is missing_noise else found.line_integrals - sinogram)
    assert np.std(drawn[1] - drawn[0]) < 0.01 * np.std(drawn[0])


def test_noise_variance_follows_one_over_dose():
    scanner = _scanner(photons=1e6, electronic_noise=0.0)
    full = _noise_sd(scanner, 1.0)
    for dose_fraction in (0.5, 0.25, 0.1):
        assert _noise_sd(scanner, dose_fraction) * np.sqrt(dose_fraction) / full == pytest.approx(1, abs=0.03)


def test_electronic_noise_breaks_the_law_at_very_low_dose():
    full, low = (_noise_sd(_scanner(photons=5e5), dose) for dose in (1.0, 0.025))
    assert 1.1 < low * np.sqrt(0.025) / full < 1.5


def test_noise_does_not_depend_on_how_finely_the_detector_is_sampled():
    """More cells hold fewer photons each: the noise of the image must stay."""
    levels = []
    for detector_mm in (0.25, 0.6):
        scanner = _scanner()
        scanner.beam = ParallelBeam.covering(size=SIZE, pixel_mm=PIXEL_MM, detector_mm=detector_mm)
        scanner.projector = Projector(scanner.beam, size=SIZE, pixel_mm=PIXEL_MM)
        levels.append(_noise_sd(scanner, 1.0))
    assert levels[0] == pytest.approx(levels[1], rel=0.03)


def test_the_noise_of_a_water_disc_is_that_of_theory():
    """At the centre σ² = π² · (ray density)⁻¹ · e^{μD} / N0 · ∫ f² W² df, all rays through the centre being alike.

    Source: Kak and Slaney (1988), section 5.2; two opposite half turns share a parallel cell.
    """
    exposure = Exposure(photons=5e5, electronic_noise=0.0, bowtie="none", modulation=0.0)
    kernel = hann_kernel("Hann", cutoff_per_mm=0.65)
    scanner = Scanner(size=512, pixel_mm=0.7, kernel=kernel, exposure=exposure)
    axis = (np.arange(512) - 256) * 0.7
    radius = np.hypot(axis[:, None], axis[None, :])
    water = np.where(radius < 160, 0.0, -1000.0)
    scans = [scanner.scan_phantom(water, dose_fraction=0.25, generator=np.random.default_rng(seed)) for seed in range(8)]
    at_full, at_quarter = (
        np.sqrt(np.mean([(getattr(scan, dose) - scan.truth)[radius < 25].var() for scan in scans]))
        for dose in ("normal_dose", "low_dose")
    )
    fan = scanner.beam.fan
    cell = fan.source_iso_mm * fan.channel_angle_rad * 2 * np.pi / fan.n_views
    f = np.linspace(0, kernel.cutoff_per_mm, 2001)
    integral = 2 * np.trapezoid((f * kernel(f)) ** 2, f)
    theory = 1000 / 0.0192 * np.sqrt(np.pi * integral * cell * np.exp(0.0192 * 320) / (2 * exposure.photons))
    assert at_full == pytest.approx(theory, rel=0.05)
    assert at_quarter / at_full == pytest.approx(2, abs=0.08)


def test_inserting_the_missing_noise_gives_the_noise_of_a_direct_low_dose_scan():
    scanner = _scanner(photons=8e5)
    generator = np.random.default_rng(3)
    normal = [scanner.scan_phantom(WATER, dose_fraction=0.5, generator=generator) for _ in range(3)]
    inserted = [
        scan.normal_dose + scanner.missing_noise_hu(scan.normal_dose, dose_fraction=0.25, generator=generator) - scan.truth
        for scan in normal
    ]
    sd = np.sqrt(np.mean([image[CENTRE].var() for image in inserted]))
    assert sd == pytest.approx(_noise_sd(scanner, 0.25, seed=4), rel=0.03)


def test_drawing_poisson_counts_around_a_noisy_scan_would_fail_that_test():
    """The well-known mistake: the noise of the base is counted twice, +12 % at a quarter of the dose."""
    scanner = _scanner(photons=8e5)
    generator = np.random.default_rng(5)
    sinogram = scanner.line_integrals(WATER)
    twice = []
    for _ in range(3):
        full = measure(sinogram, scanner.beam, scanner.exposure, dose_fraction=1.0, generator=generator).line_integrals
        again = measure(full, scanner.beam, scanner.exposure, dose_fraction=0.25, generator=generator).line_integrals
        hu = filtered_backprojection(again - sinogram, scanner.projector, kernel=scanner.kernel) * 1000 / 0.0192
        twice.append(hu[CENTRE].var())
    assert np.sqrt(np.mean(twice)) / _noise_sd(scanner, 0.25, seed=6) == pytest.approx(1.12, abs=0.03)


def test_one_seed_gives_the_same_bits_and_any_slice_repeats_alone():
    volume = CTVolume.from_array(np.stack([WATER, WATER]), pixel_mm=PIXEL_MM, slice_mm=3.0)
    settings = {"dose_fraction": 0.25, "kernel": KERNELS["B30f"], "exposure": Exposure()}
    first = simulate_low_dose(volume, seed=1, **settings).hu
    np.testing.assert_array_equal(first, simulate_low_dose(volume, seed=1, **settings).hu)
    noise = first - volume.hu
    assert abs(np.corrcoef(noise[0][CENTRE], noise[1][CENTRE])[0, 1]) < 0.06
    other = simulate_low_dose(volume, seed=2, **settings).hu - volume.hu
    assert abs(np.corrcoef(noise[0][CENTRE], other[0][CENTRE])[0, 1]) < 0.06


def test_the_matching_exposure_is_found_from_the_noise_of_the_image():
    scanner = _scanner(photons=6e5)
    body = np.where(RADIUS < 160, 50.0, -1000.0)
    images = [scanner.scan_phantom(body, dose_fraction=0.5, generator=np.random.default_rng(seed)).normal_dose for seed in range(3)]
    volume = CTVolume.from_array(np.stack(images), pixel_mm=PIXEL_MM, slice_mm=3.0)
    assert matching_exposure(volume, kernel=KERNELS["B30f"]).photons == pytest.approx(6e5, rel=0.12)


def test_padding_is_not_touched_by_simulation():
    hu = np.where(RADIUS < 160, 50.0, -2000.0)
    volume = CTVolume.from_array(hu[None], pixel_mm=PIXEL_MM, slice_mm=3.0)
    volume.padding[0] = RADIUS >= 160
    low = simulate_low_dose(volume, dose_fraction=0.25, kernel=KERNELS["B30f"], exposure=Exposure(), seed=0)
    np.testing.assert_array_equal(low.hu[volume.padding], -2000)


@pytest.mark.parametrize("dose_fraction", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_doses_are_refused(dose_fraction):
    scanner = _scanner()
    with pytest.raises(ConfigError, match="dose_fraction must lie in"):
        scanner.scan_phantom(WATER, dose_fraction=dose_fraction, generator=np.random.default_rng(0))


def test_nan_and_images_without_soft_tissue_are_refused():
    with pytest.raises(GeometryError, match="NaN"):
        _scanner().line_integrals(np.full((SIZE, SIZE), np.nan))
    air = CTVolume.from_array(np.full((1, SIZE, SIZE), -1000.0), pixel_mm=PIXEL_MM, slice_mm=3.0)
    with pytest.raises(GeometryError, match="noise to measure"):
        matching_exposure(air, kernel=KERNELS["B30f"])
    assert np.isnan(soft_tissue_noise(air.hu[0], air.hu[0], pixel_mm=PIXEL_MM))
    with pytest.raises(ConfigError, match="photons"):
        Exposure(photons=0)


def test_a_body_in_the_corners_of_the_image_gets_its_noise_too():
    """A small field of view: what lies outside the inscribed circle must not be taken for air."""
    body = CTVolume.from_array(np.full((1, 128, 128), 40.0), pixel_mm=1.4, slice_mm=3.0)
    low = simulate_low_dose(body, dose_fraction=0.25, kernel=KERNELS["B30f"], exposure=Exposure(), seed=0)
    noise = low.hu[0] - body.hu[0]
    assert noise[:12, :12].std() > 0.3 * noise[58:70, 58:70].std()
    assert noise[-12:, -12:].std() > 0.3 * noise[58:70, 58:70].std()
    assert needed_margin(WATER) == 0


def test_a_margin_of_air_changes_nothing_for_a_body_that_needs_none():
    settings = {"size": SIZE, "pixel_mm": PIXEL_MM, "kernel": KERNELS["B30f"], "exposure": Exposure()}
    sinograms = [Scanner(**settings, margin=margin).line_integrals(WATER) for margin in (0, 40)]
    extra = (sinograms[1].shape[1] - sinograms[0].shape[1]) // 2
    np.testing.assert_allclose(sinograms[1][:, extra:-extra], sinograms[0], atol=2e-3)


def test_a_scan_without_noise_cannot_tell_its_dose():
    body = CTVolume.from_array(np.where(RADIUS < 160, 50.0, -1000.0)[None], pixel_mm=PIXEL_MM, slice_mm=3.0)
    flat = CTVolume.from_array(np.full((1, 64, 64), 50.0), pixel_mm=2.0, slice_mm=3.0)
    for volume in (body, flat):
        with pytest.raises(GeometryError, match="noise to measure"):
            matching_exposure(volume, kernel=KERNELS["B30f"])


SMALL = 128
SMALL_AXIS = (np.arange(SMALL) - SMALL // 2) * 2.8
SMALL_Y, SMALL_X = np.meshgrid(SMALL_AXIS, SMALL_AXIS, indexing="ij")
ELLIPSE = np.where(np.hypot(SMALL_X / 170, SMALL_Y / 105) < 1, 0.0, -1000.0)
"""An abdomen-like body of water."""
WATER_SMALL = np.where(np.hypot(SMALL_X, SMALL_Y) < 140, 0.0, -1000.0)


def _small_scanner(**exposure):
    return Scanner(size=SMALL, pixel_mm=2.8, kernel=KERNELS["hann-0.8"], exposure=Exposure(**exposure))


def _flat_counts(exposure, *, counts, detector_mm=0.3):
    """What is measured behind a slab that leaves `counts` photons on the rays in the middle, and the line integral there."""
    beam = ParallelBeam(n_detector=401, detector_mm=detector_mm, n_views=400)
    attenuation = np.log(exposure.photons * beam.rays_per_cell[200] / counts)
    sinogram = np.full((400, 401), attenuation, dtype=np.float32)
    measured = measure(sinogram, beam, exposure, dose_fraction=1.0, generator=np.random.default_rng(8))
    return measured, attenuation, beam


@pytest.mark.parametrize("electronic_sd", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("counts", [0.3, 2.0, 10.0, 60.0, 1000.0])
def test_the_bias_of_the_logarithm_is_that_of_monte_carlo(counts, electronic_sd):
    generator = np.random.default_rng(11)
    drawn = generator.poisson(counts, 400_000) + electronic_sd * generator.standard_normal(400_000)
    logarithm = np.log(np.maximum(drawn, COUNT_FLOOR) / counts)
    expected, error = -logarithm.mean(), logarithm.std() / np.sqrt(len(drawn))
    assert log_bias(np.array(counts), electronic_sd) == pytest.approx(expected, abs=4 * error + 0.01 * abs(expected))


def test_the_bias_has_no_step_where_its_table_ends():
    counts = np.array([299.0, 301.0])
    for electronic_sd in (0.0, 3.3):
        before, after = log_bias(counts, electronic_sd)
        assert before == pytest.approx(after, rel=0.03)


def test_starved_share_is_the_probability_of_counting_nothing():
    """At a mean of one photon and no read-out noise, e⁻¹ of the rays count zero."""
    exposure = Exposure(photons=1e5, electronic_noise=0.0, bowtie="none", modulation=0.0)
    measured, _, beam = _flat_counts(
        exposure, counts=1.0, detector_mm=0.3 / ParallelBeam(n_detector=401, n_views=400).rays_per_cell[200]
    )
    assert measured.starved_share == pytest.approx(float(np.exp(-beam.rays_per_cell / beam.rays_per_cell[200]).mean()), abs=0.01)
    plenty, _, _ = _flat_counts(exposure, counts=1000.0)
    assert plenty.starved_share == 0


def test_adaptive_averaging_makes_starved_rays_less_noisy_and_less_biased_and_leaves_others_alone():
    plain = Exposure(photons=1e5, electronic_noise=3.3, bowtie="none", modulation=0.0)
    adaptive = replace(plain, adaptive_below=20.0)
    results = {}
    for name, exposure in (("plain", plain), ("adaptive", adaptive)):
        measured, truth, _ = _flat_counts(exposure, counts=4.0)
        error = measured.line_integrals[:, 100:300] - truth
        results[name] = (error.std(), abs(error.mean()))
    assert results["adaptive"][0] < 0.7 * results["plain"][0]
    assert results["adaptive"][1] < 0.5 * results["plain"][1]
    fed = [_flat_counts(exposure, counts=2000.0)[0].line_integrals for exposure in (plain, adaptive)]
    # All that is left of the treatment is the bias of the logarithm, 1/(2c), of the c photons of a detector element.
    elements_per_cell = _flat_counts(plain, counts=2000.0)[2].rays_per_cell[200]
    np.testing.assert_allclose(fed[0] - fed[1], elements_per_cell / 4000, rtol=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 17, 35])
def test_the_running_mean_of_an_element_has_its_variance_whatever_the_cell(n):
    """Also where a whole number of cells makes an element, but for rounding."""
    for share in (np.nextafter(1 / n, 0), 1 / n, np.nextafter(1 / n, 1), 0.93 / n):
        taps = _element_taps(share)
        assert taps.sum() == pytest.approx(1, abs=1e-6)
        assert np.square(taps).sum() == pytest.approx(min(share, 1.0), rel=1e-5)
        assert taps.min() >= 0


def test_the_bias_of_few_counts_is_that_of_whole_detector_elements():
    """Cells of 0.3 mm are a part of an element: their logarithm must err as the element's does, not twice as much."""
    exposure = Exposure(photons=1e5, electronic_noise=0.0, bowtie="none", modulation=0.0)
    whole_mm = 0.3 / ParallelBeam(n_detector=401, n_views=400).rays_per_cell[200]
    elements, truth, _ = _flat_counts(exposure, counts=10.0, detector_mm=whole_mm)
    assert (elements.line_integrals - truth).mean() == pytest.approx(log_bias(np.array(10.0), 0.0), rel=0.05)
    fine, truth, _ = _flat_counts(exposure, counts=10.0 * 0.3 / whole_mm)
    assert (fine.line_integrals - truth).mean() == pytest.approx((elements.line_integrals - truth).mean(), rel=0.1)


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_crosstalk_lowers_variance_and_spectrum_by_the_factors_of_a_three_point_mean(share):
    """Of channels that give c to either side: variance (1 − 2c)² + 2c², power (1 − 2c + 2c cos 2πfa)², a the channel's width."""
    plain = Exposure(photons=1e6, electronic_noise=0.0, bowtie="none", modulation=0.0)
    channel_mm = 595.0 * 1.2858 / 1085.6
    noise = []
    for exposure in (plain, replace(plain, crosstalk=share)):
        measured, truth, _ = _flat_counts(exposure, counts=2000.0, detector_mm=channel_mm)
        noise.append((measured.line_integrals - truth)[:, 8:-9])
    assert noise[1].var() / noise[0].var() == pytest.approx((1 - 2 * share) ** 2 + 2 * share**2, rel=0.02)
    power = [(np.abs(np.fft.rfft(rows, axis=1)) ** 2).mean(axis=0) for rows in noise]
    frequency = np.fft.rfftfreq(noise[0].shape[1], channel_mm)
    expected = (1 - 2 * share + 2 * share * np.cos(2 * np.pi * frequency * channel_mm)) ** 2
    over_expected = np.convolve((power[1] / power[0] / expected)[1:-1], np.ones(21) / 21, mode="valid")
    assert np.abs(over_expected - 1).max() < 0.08


def test_modulated_current_has_mean_one_and_follows_the_long_axis():
    scanner = _small_scanner()
    current = tube_current(scanner.line_integrals(ELLIPSE), scanner.beam, strength=0.5)
    assert current.mean() == pytest.approx(1)
    # θ = 90°: rays along x, through the long axis.
    assert np.argmax(current) == pytest.approx(scanner.beam.n_views / 2, abs=12)
    flat = tube_current(scanner.line_integrals(ELLIPSE), scanner.beam, strength=0.0)
    np.testing.assert_allclose(flat, 1)


def test_modulation_lowers_the_noise_in_the_middle_of_an_ellipse_and_does_nothing_to_a_disc():
    def noise_sd(hu, modulation):
        scanner = _small_scanner(photons=5e5, electronic_noise=0.0, bowtie="none", modulation=modulation)
        scans = [scanner.scan_phantom(hu, dose_fraction=0.5, generator=np.random.default_rng(seed)) for seed in range(2)]
        noise = np.stack([image - scan.truth for scan in scans for image in (scan.normal_dose, scan.low_dose / np.sqrt(2))])
        return noise[:, np.hypot(SMALL_X, SMALL_Y) < 60].std()

    disc = np.where(np.hypot(SMALL_X, SMALL_Y) < 120, 0.0, -1000.0)
    assert noise_sd(ELLIPSE, 0.5) < 0.97 * noise_sd(ELLIPSE, 0.0)
    assert noise_sd(disc, 0.5) == pytest.approx(noise_sd(disc, 0.0), rel=0.01)


def test_photons_are_proportional_to_mas_and_slice_and_grow_with_the_voltage():
    one = Exposure.from_mas(100, slice_mm=1.0)
    assert Exposure.from_mas(200, slice_mm=3.0).photons == pytest.approx(6 * one.photons)
    assert Exposure.from_mas(100, slice_mm=1.0, kvp=100).photons == pytest.approx(one.photons / 2, rel=0.01)
    # Twelve rows of 0.6 mm are read out, each with its own noise.
    assert Exposure.from_mas(100, slice_mm=7.2).electronic_noise == pytest.approx(3.3 * np.sqrt(12))
    assert Exposure.from_mas(100, slice_mm=0.3).electronic_noise == pytest.approx(3.3)
    assert Exposure.from_mas(100, slice_mm=1.0, electronic_noise=1.0, modulation=0.0).electronic_noise == 1.0
    with pytest.raises(ConfigError, match="got 0 mAs"):
        Exposure.from_mas(0, slice_mm=1.0)


def test_shared_noise_correlates_as_the_root_of_the_dose_and_independent_noise_not_at_all():
    scanner = _scanner(electronic_noise=0.0)
    for noise, expected in (("shared", 0.5), ("independent", 0.0)):
        scan = scanner.scan_phantom(WATER, dose_fraction=0.25, generator=np.random.default_rng(12), noise=noise)
        normal, low = ((image - scan.truth)[RADIUS < 120] for image in (scan.normal_dose, scan.low_dose))
        assert np.corrcoef(normal, low)[0, 1] == pytest.approx(expected, abs=0.03)
        assert low.std() / normal.std() == pytest.approx(2, abs=0.06)


def test_several_doses_in_one_call_share_truth_and_full_dose():
    scanner = _small_scanner()
    many = scanner.scan_phantom(ELLIPSE, dose_fraction=(0.5, 0.25, 0.1), generator=np.random.default_rng(13))
    one = scanner.scan_phantom(ELLIPSE, dose_fraction=0.5, generator=np.random.default_rng(13))
    assert many.low_doses.shape == (3, SMALL, SMALL)
    assert len(many.starved_shares) == 4
    np.testing.assert_array_equal(many.truth, one.truth)
    np.testing.assert_array_equal(many.normal_dose, one.normal_dose)
    np.testing.assert_array_equal(many.low_dose, one.low_dose)
    inside = np.hypot(SMALL_X, SMALL_Y) < 80
    spread = [(low - many.truth)[inside].std() for low in many.low_doses]
    assert spread == sorted(spread)


def test_photons_follow_the_tube_current_of_the_headers_about_its_median():
    volume = CTVolume.from_array(np.zeros((3, 8, 8)), pixel_mm=1.0, slice_mm=1.0)
    np.testing.assert_array_equal(photons_along_z(volume, Exposure(photons=7e5)), [7e5] * 3)
    told = replace(volume, tube_current_ma=np.array([100.0, 200.0, 400.0]))
    np.testing.assert_allclose(photons_along_z(told, Exposure(photons=7e5)), [3.5e5, 7e5, 14e5])


def test_starvation_bias_is_the_mean_error_of_scans_with_few_photons():
    scanner = _small_scanner(photons=2e4, modulation=0.0)
    generator = np.random.default_rng(14)
    sinogram = scanner.line_integrals(WATER_SMALL)
    errors = [
        measure(sinogram, scanner.beam, scanner.exposure, dose_fraction=0.1, generator=generator).line_integrals - sinogram
        for _ in range(12)
    ]
    mean = filtered_backprojection(np.mean(errors, axis=0), scanner.projector, kernel=scanner.kernel) * 1000 / 0.0192
    predicted = scanner.starvation_bias_hu(WATER_SMALL, dose_fraction=0.1)
    centre = np.hypot(SMALL_X, SMALL_Y) < 50
    assert predicted[centre].mean() > 10
    assert mean[centre].mean() == pytest.approx(predicted[centre].mean(), rel=0.15)


def test_modulation_along_z_keeps_the_noise_of_thick_and_thin_slices_alike():
    sd = {}
    for strength in (0.0, 1.0):
        for radius in (120, 160):
            body = np.where(radius > RADIUS, 0.0, -1000.0)
            scanner = _scanner(electronic_noise=0.0, bowtie="none", modulation=0.0, modulation_z=strength)
            noise = [scanner.noise_hu(body, generator=np.random.default_rng(seed)) for seed in range(2)]
            sd[strength, radius] = np.sqrt(np.mean([image[CENTRE].var() for image in noise]))
    assert sd[0.0, 160] / sd[0.0, 120] == pytest.approx(np.exp(0.0192 * 80 / 2), rel=0.08)
    assert sd[1.0, 160] / sd[1.0, 120] == pytest.approx(1, abs=0.08)
    # At 32 cm both carry the same photons.
    assert sd[1.0, 160] / sd[0.0, 160] == pytest.approx(1, abs=0.05)
