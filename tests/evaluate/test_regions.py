import numpy as np
import pytest
from torso import KNOBS, TEXTURED, X, Y, noise, thorax

from finegrain.evaluate.regions import body_mask, texture_rois, tissue_rois


@pytest.fixture(scope="module")
def slice_hu():
    return thorax()


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


def test_tissues_are_found_where_they_are_and_do_not_overlap():
    hu = np.full((128, 128), -1000.0)
    hu[10:118, 10:118] = -100
    hu[20:108, 20:108] = 40
    hu[30:60, 30:60] = -800
    hu[70:90, 70:90] = 500
    noisy = hu + np.random.default_rng(2).normal(0, 10, hu.shape)
    rois = tissue_rois(noisy)
    for tissue, value in {"lung": -800, "fat": -100, "soft": 40, "bone": 500}.items():
        assert rois[tissue].sum() > 100
        assert (hu[rois[tissue]] == value).all(), tissue
    assert sum(roi.astype(int) for roi in rois.values()).max() == 1
