import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from torso import KNOBS, noise, thorax

from finegrain.errors import DataError
from finegrain.evaluate.bands import band_coherence, band_energy_ratio, band_sums, consistency, local_band_energy
from finegrain.evaluate.regions import texture_rois
from finegrain.frequency import Band, block_dct

SHIFTS = ((0, 0), (1, 0), (0, 3), (2, 5), (4, 4), (3, 7), (5, 1), (6, 6))


@pytest.fixture(scope="module")
def slice_hu():
    return thorax()


def test_scaling_the_band_by_g_gives_ratio_g_squared_and_full_coherence():
    image, everywhere = noise((96, 96)), np.ones((96, 96), dtype=bool)
    for g in (0.5, 1.0, 1.7):
        assert band_energy_ratio(image, g * image + 30, everywhere, **KNOBS) == pytest.approx(g**2)
        assert band_coherence(image, g * image + 30, everywhere, **KNOBS) == pytest.approx(1)
    assert band_coherence(image, -image, everywhere, **KNOBS) == pytest.approx(-1)


def test_added_noise_raises_energy_and_lowers_coherence(slice_hu):
    noisy = slice_hu + 30 * noise(slice_hu.shape)
    rois = texture_rois(slice_hu, **KNOBS)
    for roi in (rois.body, rois.fine_texture, rois.uniform):
        assert band_energy_ratio(slice_hu, noisy, roi, **KNOBS) > 1.2
        assert band_coherence(slice_hu, noisy, roi, **KNOBS) < 0.95


def test_coherence_with_independent_noise_is_what_the_variances_say():
    a, b, everywhere = noise((256, 256), 1), noise((256, 256), 2), np.ones((256, 256), dtype=bool)
    assert band_coherence(a, a + b, everywhere, **KNOBS) == pytest.approx(1 / np.sqrt(2), abs=0.01)
    assert band_coherence(a, b, everywhere, **KNOBS) == pytest.approx(0, abs=0.01)
    assert band_energy_ratio(a, a + b, everywhere, **KNOBS) == pytest.approx(2, rel=0.02)


def test_band_metrics_do_not_see_what_lies_outside_the_roi(slice_hu):
    roi = np.zeros(slice_hu.shape, dtype=bool)
    roi[64:128, 64:128] = True
    changed = slice_hu.copy()
    changed[:56] = changed[136:] = 500 * noise((56, 192))
    assert band_energy_ratio(slice_hu, changed, roi, **KNOBS) == pytest.approx(1)


def test_consistency_judges_gain_and_loss_alike():
    assert consistency(4.0) == consistency(0.25) == 0.25
    assert consistency(0.0) == 0
    assert np.isnan(consistency(float("nan")))


def test_roi_of_another_shape_is_refused(slice_hu):
    with pytest.raises(DataError, match="does not fit"):
        band_coherence(slice_hu, slice_hu, np.ones((8, 8), dtype=bool), **KNOBS)


def test_band_measures_do_not_depend_on_where_the_image_lies_on_the_block_grid(slice_hu):
    rng = np.random.default_rng(4)
    low_dose, denoised = slice_hu + rng.normal(0, 30, slice_hu.shape), gaussian_filter(slice_hu, 0.7)
    fine = texture_rois(slice_hu, **KNOBS).fine_texture
    for candidate in (low_dose, denoised):
        found = [
            [measure(*(image[r : r + 180, c : c + 180] for image in (slice_hu, candidate, fine)), **KNOBS) for r, c in SHIFTS]
            for measure in (band_energy_ratio, band_coherence)
        ]
        assert (np.ptp(found, axis=1) / np.mean(found, axis=1)).max() < 0.005


def test_fine_texture_follows_a_shift_of_the_image(slice_hu):
    regions = [texture_rois(slice_hu[r : r + 180, c : c + 180], **KNOBS).fine_texture for r, c in SHIFTS]
    back = [region[8 - r : 172 - r, 8 - c : 172 - c] for region, (r, c) in zip(regions, SHIFTS, strict=True)]
    assert all((one ^ back[0]).sum() < 0.02 * back[0].sum() for one in back)


def test_sums_on_every_grid_are_those_of_the_block_dct():
    images = [noise((21, 19), k) for k in range(3)]
    roi = np.ones((21, 19), dtype=bool)
    sums = band_sums(images, [roi], n_references=2)
    grids = [[block_dct(image, offset=(r, c)) for r in range(8) for c in range(8)] for image in images]
    for i in range(3):
        expected = sum((grid**2).sum(axis=(0, 1)) for grid in grids[i])
        np.testing.assert_allclose(sums.energy[i, 0].ravel()[1:], expected.ravel()[1:], rtol=1e-4)
        for r in range(2):
            expected = sum((a * b).sum(axis=(0, 1)) for a, b in zip(grids[i], grids[r], strict=True))
            np.testing.assert_allclose(sums.product[r, i, 0].ravel()[1:], expected.ravel()[1:], rtol=1e-3, atol=0.05)
    assert sums.n_blocks[0] == 14 * 12


def test_local_energy_is_the_mean_over_the_blocks_that_hold_the_pixel():
    image = noise((20, 24))
    found = local_band_energy(image, pixel_mm=1, band=Band())
    of_block = {
        (r, c): (block_dct(image[r : r + 8, c : c + 8])[..., Band().mask()] ** 2).sum() / 64 for r in range(13) for c in range(17)
    }
    for y, x in ((0, 0), (9, 11), (19, 3)):
        holding = [energy for (r, c), energy in of_block.items() if r <= y < r + 8 and c <= x < c + 8]
        assert found[y, x] == pytest.approx(np.mean(holding), rel=1e-4)


def test_a_region_of_two_far_apart_places_counts_both():
    hu = np.random.default_rng(0).normal(0, 20, (256, 64))
    both = np.zeros(hu.shape, dtype=bool)
    both[:24, :24] = both[-24:, -24:] = True  # 208 rows without a block between them
    sums = band_sums([hu], [both, np.zeros_like(both)])
    parts = [np.zeros_like(both), np.zeros_like(both)]
    parts[0][:24, :24] = parts[1][-24:, -24:] = True
    each = band_sums([hu], parts)
    np.testing.assert_allclose(sums.energy[0, 0], each.energy[0].sum(axis=0), rtol=1e-6)
    assert sums.n_blocks.tolist() == [each.n_blocks.sum(), 0]
