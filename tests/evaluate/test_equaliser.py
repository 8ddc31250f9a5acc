"""The band equaliser gives back what a known gain took, does nothing at strength zero, and leaves no trace of a grid."""

import numpy as np
import pytest

from finegrain.evaluate.equaliser import LARGEST_GAIN, RINGS, BandEqualiser, calibrate_equaliser, ring_energies
from finegrain.frequency import DCT_BLOCK, block_dct, inverse_block_dct, nyquist_fraction

GAINS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.6)


def _noise(seed=0, shape=(160, 128)):
    return np.random.default_rng(seed).normal(40, 30, shape)


def _body(shape=(160, 128)):
    body = np.zeros(shape, dtype=bool)
    body[20:-20, 20:-20] = True
    return body


def test_it_restores_a_reference_from_which_a_known_gain_per_ring_was_taken():
    references = [_noise(seed) for seed in range(3)]
    outputs = [BandEqualiser(GAINS).apply(reference, strength=1.0) for reference in references]
    equaliser = calibrate_equaliser([(r, o, _body()) for r, o in zip(references, outputs, strict=True)])
    np.testing.assert_allclose(np.array(equaliser.gains) * GAINS, 1, atol=0.1)

    unseen = _noise(9)
    output = BandEqualiser(GAINS).apply(unseen, strength=1.0)
    restored = equaliser.apply(output, strength=1.0)
    assert np.sqrt(np.mean((restored - unseen) ** 2)) < 0.15 * np.sqrt(np.mean((output - unseen) ** 2))
    np.testing.assert_allclose(ring_energies(restored, _body()) / ring_energies(unseen, _body()), 1, atol=0.03)


def test_it_restores_gains_that_were_taken_on_a_block_grid():
    gain = np.append(GAINS, 1.0)[np.minimum(np.floor(nyquist_fraction() * RINGS).astype(int) - 1, RINGS - 1)]
    gain[0, 0] = 1
    references = [_noise(seed) for seed in range(3)]
    outputs = [inverse_block_dct(block_dct(reference) * gain) for reference in references]
    equaliser = calibrate_equaliser([(r, o, _body()) for r, o in zip(references, outputs, strict=True)])
    before, after = (
        np.sqrt(np.mean((image - references[0]) ** 2)) for image in (outputs[0], equaliser.apply(outputs[0], strength=1.0))
    )
    assert after < 0.35 * before  # one grid's seams are beyond what a gain without a grid can mend


def test_strength_zero_is_the_identity_and_strength_is_linear():
    equaliser, image = BandEqualiser(GAINS), _noise()
    np.testing.assert_array_equal(equaliser.apply(image, strength=0.0), image)
    half, full = (equaliser.apply(image, strength=strength) for strength in (0.5, 1.0))
    np.testing.assert_allclose(half, (image + full) / 2, atol=1e-9)
    np.testing.assert_allclose(BandEqualiser((1.0,) * RINGS).apply(image, strength=1.0), image, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 64), (61, 83), (8, 8)])
def test_a_flat_field_stays_flat_to_the_edge(shape):
    flat = np.full(shape, 40.0)
    np.testing.assert_allclose(BandEqualiser((LARGEST_GAIN,) * RINGS).apply(flat, strength=1.0), 40, atol=1e-9)


def test_an_even_slope_stays_even_where_one_block_grid_would_draw_seams():
    slope = np.tile(np.arange(96.0), (96, 1))
    inner = BandEqualiser((LARGEST_GAIN,) * RINGS).apply(slope, strength=1.0)[16:-16, 16:-16]
    np.testing.assert_allclose(np.diff(inner, axis=1), 1, atol=1e-9)


def test_it_is_the_mean_over_all_block_grids():
    image = _noise(shape=(40, 40))
    gain = np.append(GAINS, 1.0)[np.minimum(np.floor(nyquist_fraction() * RINGS).astype(int) - 1, RINGS - 1)]
    gain[0, 0] = 1
    total, n_grids = np.zeros((24, 24)), DCT_BLOCK**2
    for row in range(DCT_BLOCK):
        for column in range(DCT_BLOCK):
            changed = inverse_block_dct(block_dct(image, offset=(row, column)) * gain)
            total += changed[8 - row : 32 - row, 8 - column : 32 - column] / n_grids
    np.testing.assert_allclose(BandEqualiser(GAINS).apply(image, strength=1.0)[8:32, 8:32], total, atol=1e-9)


def test_gains_are_limited_even_where_the_output_holds_nothing():
    reference, body = _noise(), _body()
    assert calibrate_equaliser([(reference, reference * 1e-3, body)]).gains == (LARGEST_GAIN,) * RINGS
    assert calibrate_equaliser([(reference, np.full(reference.shape, 7.0), body)]).gains == (LARGEST_GAIN,) * RINGS
