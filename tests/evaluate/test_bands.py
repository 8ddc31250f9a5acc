import numpy as np
import pytest
from torso import KNOBS, noise, thorax

from finegrain.errors import DataError
from finegrain.evaluate.bands import band_coherence, band_energy_ratio, consistency
from finegrain.evaluate.regions import texture_rois


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
