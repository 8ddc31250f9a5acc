import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix, graycoprops

from finegrain.errors import DataError
from finegrain.evaluate.texture import (
    band_coherence,
    band_energy_ratio,
    body_mask,
    consistency,
    describe_texture,
    glcm,
    glcm_features,
    texture_index,
    texture_rois,
)
from finegrain.frequency import Band

KNOBS = {"band": Band(), "pixel_mm": 0.7}
Y, X = np.mgrid[:192, :192]
TEXTURED = (np.hypot(Y - 96, X - 60) < 22, np.hypot(Y - 96, X - 132) < 22)


def thorax(noise_hu=12.0, seed=3):
    """A disk of soft tissue with a textured lung and a smooth lake, on a table, under white noise slightly smoothed."""
    rng = np.random.default_rng(seed)
    hu = np.full(Y.shape, -1000.0)
    hu[np.hypot(Y - 96, X - 96) < 80] = 40
    grain = gaussian_filter(rng.normal(0, 1, Y.shape), 0.8)
    hu[TEXTURED[0]] = 40 + 60 * (grain / grain.std())[TEXTURED[0]]
    hu[TEXTURED[1]] = 0
    hu[184:187, 20:172] = 200
    noise = gaussian_filter(rng.normal(0, 1, Y.shape), 0.5)
    return hu + noise_hu * noise / noise.std()


@pytest.fixture(scope="module")
def slice_hu():
    return thorax()


def noise(shape, seed=9):
    return np.random.default_rng(seed).normal(0, 1, shape)


def test_body_holds_the_patient_and_its_lungs_but_not_the_table(slice_hu):
    disk = np.hypot(Y - 96, X - 96) < 80
    air_inside = np.where(np.hypot(Y - 110, X - 96) < 12, -900, slice_hu)
    for hu in (slice_hu, air_inside):
        body = body_mask(hu)
        assert (body & disk).sum() / disk.sum() > 0.99
        assert not body[183:].any()
    assert not body_mask(np.full((64, 64), -1000.0)).any()


def test_fine_texture_and_uniform_are_found_where_they_were_made(slice_hu):
    rois = texture_rois(slice_hu, **KNOBS)
    assert rois.fine_texture[TEXTURED[0]].mean() > 0.8
    near = np.hypot(Y - 96, X - 60) < 32
    assert rois.fine_texture[near].sum() / rois.fine_texture.sum() > 0.9
    assert not rois.uniform[np.hypot(Y - 96, X - 60) < 18].any()
    assert rois.uniform[np.hypot(Y - 96, X - 96) < 75].mean() > 0.5
    assert not (rois.fine_texture & rois.uniform).any()
    assert not ((rois.fine_texture | rois.uniform) & ~rois.body).any()


def test_a_strong_edge_is_no_texture(slice_hu):
    hu = np.where(np.hypot(Y - 140, X - 96) < 14, 1200, slice_hu)
    rois = texture_rois(hu, **KNOBS)
    at_edge = np.abs(np.hypot(Y - 140, X - 96) - 14) < 3
    assert not rois.fine_texture[at_edge].any()


def test_noise_alone_is_uniform_whatever_its_level():
    for level in (5.0, 40.0):
        rois = texture_rois(40 + level * noise(Y.shape), **KNOBS)
        assert rois.fine_texture.mean() < 0.01
        assert rois.uniform.mean() > 0.9


def test_noise_that_grows_across_the_slice_is_not_taken_for_texture():
    rois = texture_rois(40 + 10 * np.exp(X / 192) * noise(Y.shape), **KNOBS)
    assert rois.fine_texture.mean() < 0.02


def test_regions_are_the_same_each_time(slice_hu):
    first, again = texture_rois(slice_hu, **KNOBS), texture_rois(slice_hu.copy(), **KNOBS)
    assert (first.fine_texture == again.fine_texture).all() and (first.uniform == again.uniform).all()


def test_a_slice_without_a_body_has_no_regions():
    rois = texture_rois(np.full((64, 64), -1000.0), **KNOBS)
    assert not (rois.fine_texture.any() or rois.uniform.any() or rois.body.any())
    assert np.isnan(band_energy_ratio(rois.body * 1.0 - 1000, rois.body * 1.0, **KNOBS))


def test_scaling_the_band_by_g_gives_ratio_g_squared_and_full_coherence():
    image = noise((96, 96))
    for g in (0.5, 1.0, 1.7):
        assert band_energy_ratio(image, g * image + 30, **KNOBS) == pytest.approx(g**2)
        assert band_coherence(image, g * image + 30, **KNOBS) == pytest.approx(1)
    assert band_coherence(image, -image, **KNOBS) == pytest.approx(-1)


def test_added_noise_raises_energy_and_lowers_coherence(slice_hu):
    noisy = slice_hu + 30 * noise(slice_hu.shape)
    rois = texture_rois(slice_hu, **KNOBS)
    for roi in (None, rois.fine_texture, rois.uniform):
        assert band_energy_ratio(slice_hu, noisy, roi=roi, **KNOBS) > 1.2
        assert band_coherence(slice_hu, noisy, roi=roi, **KNOBS) < 0.95


def test_coherence_with_independent_noise_is_what_the_variances_say():
    a, b = noise((256, 256), 1), noise((256, 256), 2)
    assert band_coherence(a, a + b, **KNOBS) == pytest.approx(1 / np.sqrt(2), abs=0.01)
    assert band_coherence(a, b, **KNOBS) == pytest.approx(0, abs=0.01)
    assert band_energy_ratio(a, a + b, **KNOBS) == pytest.approx(2, rel=0.02)


def test_band_metrics_do_not_see_what_lies_outside_the_roi(slice_hu):
    roi = np.zeros(slice_hu.shape, dtype=bool)
    roi[64:128, 64:128] = True
    changed = slice_hu.copy()
    changed[:56] = changed[136:] = 500 * noise((56, 192))
    assert band_energy_ratio(slice_hu, changed, roi=roi, **KNOBS) == pytest.approx(1)


def test_consistency_judges_gain_and_loss_alike():
    assert consistency(4.0) == consistency(0.25) == 0.25
    assert consistency(0.0) == 0
    assert np.isnan(consistency(float("nan")))


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


def test_roi_of_another_shape_is_refused(slice_hu):
    with pytest.raises(DataError, match="does not fit"):
        band_coherence(slice_hu, slice_hu, roi=np.ones((8, 8), dtype=bool), **KNOBS)
