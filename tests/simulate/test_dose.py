"""Noise follows dose, a real scan's own noise is not counted twice, and the same seed gives the same bits."""

import numpy as np
import pytest

from finegrain.errors import ConfigError, GeometryError
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner, matching_exposure, needed_margin, simulate_low_dose, soft_tissue_noise
from finegrain.simulate.dose import Exposure, noisy_sinogram
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
    noise = [
        noisy_sinogram(sinogram, scanner.beam, scanner.exposure, dose_fraction=dose_fraction, generator=generator) - sinogram
        for _ in range(n)
    ]
    hu = filtered_backprojection(np.stack(noise), scanner.projector, kernel=scanner.kernel) * 1000 / 0.0192
    return np.sqrt(np.mean([image[CENTRE].var() for image in hu]))


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
    exposure = Exposure(photons=5e5, electronic_noise=0.0, bowtie=False)
    kernel = hann_kernel("Hann", cutoff_per_mm=0.65)
    scanner = Scanner(size=512, pixel_mm=0.7, kernel=kernel, exposure=exposure)
    axis = (np.arange(512) - 256) * 0.7
    radius = np.hypot(axis[:, None], axis[None, :])
    water = np.where(radius < 160, 0.0, -1000.0)
    scans = [scanner.scan_phantom(water, dose_fraction=0.25, generator=np.random.default_rng(seed)) for seed in range(3)]
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
        full = noisy_sinogram(sinogram, scanner.beam, scanner.exposure, dose_fraction=1.0, generator=generator)
        again = noisy_sinogram(full, scanner.beam, scanner.exposure, dose_fraction=0.25, generator=generator)
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
