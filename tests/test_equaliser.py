"""The band equaliser gives back what a known gain took, level by level, and leaves no trace of a grid or a border."""

import numpy as np
import pytest

from finegrain.equaliser import (
    LARGEST_GAIN,
    RINGS,
    BandEqualiser,
    CalibrationSlice,
    calibrate_equaliser,
    local_noise_hu,
    local_signal_to_noise,
    median_noise_hu,
    ring_energies,
)
from finegrain.errors import ConfigError, DataError
from finegrain.frequency import DCT_BLOCK, block_dct, inverse_block_dct, nyquist_fraction
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series

GAINS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.6)
ONE = (1.0,) * RINGS


def _noise(seed=0, shape=(160, 128)):
    return np.random.default_rng(seed).normal(40, 30, shape)


def _body(shape=(160, 128)):
    body = np.zeros(shape, dtype=bool)
    body[20:-20, 20:-20] = True
    return body


def _energies(image, body):
    return ring_energies(image, body, np.ones((1, *image.shape)))[0]


def _global(gains):
    return BandEqualiser((1.0,), (gains,))


def _apply(gains, image, strength=1.0):
    return _global(gains).apply(image, image, strength=strength)


def _slices(references, outputs):
    return [CalibrationSlice(r, o, r, _body(r.shape)) for r, o in zip(references, outputs, strict=True)]


def _gain_of_coefficient(gains):
    gain = np.append(gains, 1.0)[np.minimum(np.floor(nyquist_fraction() * RINGS).astype(int) - 1, RINGS - 1)]
    gain[0, 0] = 1
    return gain


def _rmse(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


# --- one level


def test_it_restores_a_reference_from_which_a_known_gain_per_ring_was_taken():
    references = [_noise(seed) for seed in range(3)]
    outputs = [_apply(GAINS, reference) for reference in references]
    equaliser = calibrate_equaliser(_slices(references, outputs), levels=1)
    np.testing.assert_allclose(np.array(equaliser.gains[0]) * GAINS, 1, atol=0.1)

    unseen = _noise(9)
    output = _apply(GAINS, unseen)
    restored = equaliser.apply(output, unseen, strength=1.0)
    assert _rmse(restored, unseen) < 0.15 * _rmse(output, unseen)
    np.testing.assert_allclose(_energies(restored, _body()) / _energies(unseen, _body()), 1, atol=0.03)


def test_it_restores_gains_that_were_taken_on_a_block_grid():
    references = [_noise(seed) for seed in range(3)]
    outputs = [inverse_block_dct(block_dct(reference) * _gain_of_coefficient(GAINS)) for reference in references]
    equaliser = calibrate_equaliser(_slices(references, outputs), levels=1)
    after = equaliser.apply(outputs[0], references[0], strength=1.0)
    assert _rmse(after, references[0]) < 0.35 * _rmse(
        outputs[0], references[0]
    )  # one grid's seams are beyond mending without a grid


def test_strength_zero_is_the_identity_and_strength_is_linear():
    image = _noise().astype(np.float32)
    np.testing.assert_array_equal(_apply(GAINS, image, strength=0.0), image)
    half, full = (_apply(GAINS, image, strength=strength) for strength in (0.5, 1.0))
    np.testing.assert_allclose(half, (image + full) / 2, atol=1e-3)
    np.testing.assert_allclose(_apply(ONE, image), image, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (61, 83), (8, 8), (1, 1), (3, 70)])
def test_a_flat_field_stays_flat_to_the_edge(shape):
    flat = np.full(shape, 40.0)
    equaliser = BandEqualiser((0.5, 2.0), (ONE, (LARGEST_GAIN,) * RINGS))
    np.testing.assert_allclose(equaliser.apply(flat, flat, strength=1.0), 40, atol=1e-3)
    np.testing.assert_allclose(_apply((LARGEST_GAIN,) * RINGS, flat), 40, atol=1e-3)


def test_an_even_slope_stays_even_where_one_block_grid_would_draw_seams():
    slope = np.tile(np.arange(96.0), (96, 1))
    inner = _apply((LARGEST_GAIN,) * RINGS, slope)[16:-16, 16:-16]
    np.testing.assert_allclose(np.diff(inner, axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("shape", [(40, 40), (40, 47)])
def test_it_is_the_mean_over_all_block_grids(shape):
    image = _noise(shape=shape)
    total, n_grids = np.zeros((24, 24)), DCT_BLOCK**2
    for row in range(DCT_BLOCK):
        for column in range(DCT_BLOCK):
            changed = inverse_block_dct(block_dct(image, offset=(row, column)) * _gain_of_coefficient(GAINS))
            total += changed[8 - row : 32 - row, 8 - column : 32 - column] / n_grids
    np.testing.assert_allclose(_apply(GAINS, image)[8:32, 8:32], total, atol=1e-3)


def test_the_edge_sees_its_own_mirror_image():
    image = _noise(shape=(24, 32))
    mirrored = np.pad(image, 16, mode="symmetric")
    np.testing.assert_allclose(_apply(GAINS, image), _apply(GAINS, mirrored)[16:-16, 16:-16], atol=1e-3)


def test_gains_are_limited_even_where_the_output_holds_nothing():
    reference = _noise()
    for output in (reference * 1e-3, np.full(reference.shape, 7.0)):
        assert calibrate_equaliser(_slices([reference], [output]), levels=1).gains == ((LARGEST_GAIN,) * RINGS,)


# --- several levels


def _two_worlds(seed):
    """Left fine texture alone, right texture that stands above the noise; a network has shrunk the left to a half."""
    generator = np.random.default_rng(seed)
    shape = (256, 512)
    left = np.arange(shape[1])[None, :] < 256
    reference = np.where(left, 10, 60) * generator.normal(size=shape)
    output = np.where(left, 0.5, 1.0) * reference
    return reference, output, reference + 20 * generator.normal(size=shape)


def test_each_level_gets_the_gain_that_it_needs_where_one_for_all_gives_neither():
    calibrated = [_two_worlds(seed) for seed in (0, 1)]
    body = np.ones(calibrated[0][0].shape, dtype=bool)
    slices = [CalibrationSlice(noisy, output, reference, body) for reference, output, noisy in calibrated]
    reference, output, noisy = _two_worlds(7)
    halves = np.s_[:, 48:208], np.s_[:, 304:464]

    def ratios(levels):
        equalised = calibrate_equaliser(slices, levels=levels).apply(output, noisy, strength=1.0)
        return [_energies(equalised[half], body[half]).sum() / _energies(reference[half], body[half]).sum() for half in halves]

    np.testing.assert_allclose(ratios(2), 1, atol=0.05)
    np.testing.assert_allclose(ratios(1), [0.25, 1], atol=0.1)


def test_levels_that_hardly_differ_become_one():
    reference = _noise(shape=(256, 256))
    equaliser = calibrate_equaliser(_slices([reference], [0.8 * reference]), levels=3)
    assert len(equaliser.levels) == 1
    np.testing.assert_allclose(equaliser.gains[0], 1.25, rtol=0.05)


def test_shares_of_the_levels_add_up_to_one_and_change_smoothly():
    _, output, noisy = _two_worlds(0)
    shares = BandEqualiser((0.3, 1.0, 3.0), (ONE, ONE, ONE)).shares(output, noisy)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert shares[0, :, :200].mean() > 0.9
    assert shares[1, :, -200:].mean() > 0.9
    assert (
        max(np.abs(np.diff(shares, axis=axis)).max() for axis in (1, 2)) < 0.1
    )  # from one level to the next in ten pixels or more


def test_a_mirrored_image_is_equalised_as_the_mirror_image():
    _, output, noisy = _two_worlds(0)
    equaliser = BandEqualiser((0.3, 0.9), (ONE, (2.0,) * RINGS))
    mirrored = equaliser.apply(output[::-1, ::-1], noisy[::-1, ::-1], strength=1.0)
    np.testing.assert_allclose(mirrored[::-1, ::-1], equaliser.apply(output, noisy, strength=1.0), atol=1e-2)


def test_levels_at_a_border_draw_no_seam():
    smooth = np.tile(np.linspace(0, 400, 128), (128, 1))
    noisy = smooth + np.where(np.arange(128) < 64, 1, 30)[None, :] * _noise(shape=(128, 128)) / 30
    equaliser = BandEqualiser((0.01, 1.0), (ONE, (2.0,) * RINGS))
    equalised = equaliser.apply(smooth, noisy, strength=1.0)[:, 16:-16]
    np.testing.assert_allclose(np.diff(equalised, axis=1), np.diff(smooth, axis=1)[:, 16:-16], atol=0.05)


# --- noise


@pytest.mark.parametrize("sd_hu", [2.0, 30.0])
def test_white_noise_is_measured_to_a_tenth_where_blocks_are_whole(sd_hu):
    noise = np.random.default_rng(0).normal(40, sd_hu, (256, 203))
    found = local_noise_hu(noise)
    np.testing.assert_allclose(found[:, :-2], sd_hu, rtol=0.1)
    np.testing.assert_allclose(found[:, -2:], sd_hu, rtol=0.25)  # the cut block is half a mirror image
    assert median_noise_hu(noise, np.ones(noise.shape, dtype=bool)) == pytest.approx(sd_hu, rel=0.05)
    assert median_noise_hu(noise, np.zeros(noise.shape, dtype=bool)) is None


def test_an_edge_of_1000_hu_is_not_taken_for_noise():
    image = np.random.default_rng(0).normal(0, 10, (256, 256))
    y, x = np.mgrid[:256, :256]
    with_edges = image + 1000 * (np.hypot(y - 120, x - 130) < 70) + 500 * (x > 220)
    assert np.abs(local_noise_hu(with_edges) / local_noise_hu(image) - 1).max() < 0.25
    assert local_signal_to_noise(with_edges, image).max() > 5 * local_signal_to_noise(image, image).max()


def test_lines_through_every_block_are_not_taken_for_noise():
    image = np.random.default_rng(0).normal(0, 10, (128, 128))
    lines = 300 * (np.arange(128) % 16 < 11)[:, None]
    assert np.abs(local_noise_hu(image + lines) / local_noise_hu(image) - 1).max() < 0.25


def test_noise_that_is_added_to_a_real_slice_is_what_is_measured_more():
    hu = read_series(sample_folder()).hu[3]
    noisy = hu + np.random.default_rng(0).normal(0, 40, hu.shape)
    body = np.zeros(hu.shape, dtype=bool)
    body[150:350, 150:350] = True
    before, after = (median_noise_hu(image, body) for image in (hu, noisy))
    assert np.sqrt(after**2 - before**2) == pytest.approx(40, rel=0.1)


def test_an_image_without_noise_has_a_level():
    assert np.isfinite(local_signal_to_noise(np.zeros((16, 16)), np.zeros((16, 16)))).all()


# --- what is refused


@pytest.mark.parametrize(
    ("levels", "gains", "word"),
    [
        ((), (), "levels"),
        ((1.0,), (ONE, ONE), "levels"),
        ((1.0,), (ONE[1:],), "8 gains"),
        ((0.0,), (ONE,), "rise from above 0"),
        ((2.0, 1.0), (ONE, ONE), "rise"),
        ((float("nan"),), (ONE,), "rise"),
        ((1.0,), ((5.0, *ONE[1:]),), r"\[0.5, 4.0\]"),
        ((1.0,), ((float("nan"), *ONE[1:]),), r"\[0.5, 4.0\]"),
    ],
)
def test_gains_that_cannot_be_are_refused(levels, gains, word):
    with pytest.raises(ConfigError, match=word):
        BandEqualiser(levels, gains)


def test_slices_without_a_body_are_refused():
    image = _noise()
    nobody = CalibrationSlice(image, image, image, np.zeros(image.shape, dtype=bool))
    for slices in ([], [nobody]):
        with pytest.raises(DataError, match="body"):
            calibrate_equaliser(slices)
