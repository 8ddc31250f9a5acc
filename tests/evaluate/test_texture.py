import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix, graycoprops
from torso import KNOBS, noise, thorax

from finegrain.evaluate.regions import texture_rois
from finegrain.evaluate.texture import describe_texture, glcm, glcm_features, texture_index


@pytest.fixture(scope="module")
def slice_hu():
    return thorax()


def test_glcm_agrees_with_scikit_image_on_a_full_rectangle():
    hu = 60 * gaussian_filter(noise((40, 53)), 1) * 3
    roi = np.ones(hu.shape, dtype=bool)
    ours = glcm(hu, roi, low_hu=-100, high_hu=100, bin_hu=20)
    levels = np.clip(np.floor((hu + 100) / 20), 0, 9).astype(np.uint8)
    theirs = graycomatrix(levels, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels=10, symmetric=True, normed=True)
    # scikit-image's rows run down: its 45° is our 135°
    assert np.abs(ours[[0, 3, 2, 1]] - theirs[:, :, 0].transpose(2, 0, 1)).max() < 1e-12
    features = glcm_features(ours)
    for name in ("contrast", "correlation", "homogeneity"):
        assert features[name] == pytest.approx(graycoprops(theirs, name).mean()), name
    natural = -(theirs * np.log2(np.where(theirs > 0, theirs, 1))).sum(axis=(0, 1)).mean()
    assert features["entropy"] == pytest.approx(natural)


def test_glcm_of_a_roi_counts_only_pairs_with_both_ends_inside():
    hu = np.array([[5.0, 15.0, 25.0], [35.0, 35.0, 35.0]])
    roi = np.array([[True, True, False], [False, False, False]])
    matrices = glcm(hu, roi, low_hu=0, high_hu=40, bin_hu=10)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 0.5
    assert (matrices[0] == expected).all()
    assert not matrices[1:].any()


def test_glcm_of_a_masked_rectangle_is_that_of_the_rectangle_cut_out():
    hu = 80 * noise((50, 50))
    roi = np.zeros(hu.shape, dtype=bool)
    roi[7:31, 12:44] = True
    bins = {"low_hu": -200, "high_hu": 200, "bin_hu": 20}
    assert glcm(hu, roi, **bins) == pytest.approx(glcm(hu[7:31, 12:44], np.ones((24, 32), dtype=bool), **bins))


def test_texture_index_is_zero_for_the_reference_and_grows_with_blur_and_with_noise(slice_hu):
    roi = texture_rois(slice_hu, **KNOBS).fine_texture
    reference = describe_texture(slice_hu, roi, pixel_mm=0.7)

    def index(hu):
        return texture_index(reference, describe_texture(hu, roi, pixel_mm=0.7))["index"]

    assert index(slice_hu) == 0
    assert index(slice_hu + 25) < 1e-3  # an offset is bias, not texture
    assert 0 < index(gaussian_filter(slice_hu, 0.5)) < index(gaussian_filter(slice_hu, 1.0)) < index(gaussian_filter(slice_hu, 2.0))
    grain = noise(slice_hu.shape)
    assert 0 < index(slice_hu + 20 * grain) < index(slice_hu + 60 * grain)


def test_texture_index_without_a_roi_is_nan(slice_hu):
    nothing = describe_texture(slice_hu, np.zeros(slice_hu.shape, dtype=bool), pixel_mm=0.7)
    assert all(np.isnan(value) for value in texture_index(nothing, nothing).values())
