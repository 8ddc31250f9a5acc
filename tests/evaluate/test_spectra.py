import numpy as np
import pytest
from noise_samples import PIXEL_MM, filtered, ramp, white

from finegrain.errors import DataError
from finegrain.evaluate.spectra import (
    central_frequency_ratio,
    noise_magnitude_ratio,
    nps_log_distance,
    nps_shape_log_distance,
    uniform_patches,
)
from finegrain.noise_power import nps_2d, radial_nps


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
