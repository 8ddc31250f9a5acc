import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from finegrain.errors import ConfigError
from finegrain.frequency import Band, block_dct, cycles_per_mm, dct_matrix, inverse_block_dct, ring_of, to_blocks

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_block_dct_equals_scipy(n):
    image = RNG.normal(size=(3 * n, 5 * n))
    ours = block_dct(image, n)
    for row in range(3):
        for column in range(5):
            block = image[row * n : (row + 1) * n, column * n : (column + 1) * n]
            np.testing.assert_allclose(ours[row, column], scipy.fft.dctn(block, norm="ortho"), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_energy_is_kept_and_the_inverse_gives_the_image_back(rows, columns, seed):
    image = np.random.default_rng(seed).normal(size=(8 * rows, 8 * columns))
    coefficients = block_dct(image)
    np.testing.assert_allclose((coefficients**2).sum(), (image**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(inverse_block_dct(coefficients), image, atol=1e-12)


def test_an_offset_moves_the_grid():
    image = RNG.normal(size=(40, 40))
    np.testing.assert_array_equal(to_blocks(image, 8, offset=(3, 5))[1, 2], image[11:19, 21:29])


def test_the_basis_is_orthonormal_and_cannot_be_changed():
    basis = dct_matrix(8)
    np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        basis[0, 0] = 2


def test_a_cosine_lands_on_the_coefficient_of_its_frequency():
    x = np.arange(8) + 0.5
    image = np.tile(np.cos(np.pi * 3 * x / 8), (8, 1))
    peak = np.unravel_index(np.abs(block_dct(image)[0, 0]).argmax(), (8, 8))
    assert peak == (0, 3)
    assert cycles_per_mm(8, 0.7)[peak] == pytest.approx(3 / (2 * 8 * 0.7))


def test_a_ring_holds_what_lies_within_half_a_step_of_it():
    ring = ring_of(8)
    assert ring[0, 0] == 0
    np.testing.assert_array_equal(ring[0], np.arange(8))
    assert ring[3, 4] == 5  # exactly
    assert ring[7, 7] == 10  # 9.9
    np.testing.assert_array_equal(ring, ring.T)


def test_a_band_is_the_same_in_either_unit():
    pixel_mm = 0.8
    nyquist = 1 / (2 * pixel_mm)
    by_mm = Band(0.4 * nyquist, 1.5 * nyquist, "cycles_per_mm").mask(8, pixel_mm=pixel_mm)
    np.testing.assert_array_equal(by_mm, Band(0.4, 1.5).mask(8))


def test_a_band_never_holds_the_mean():
    assert not Band(0.0, 2.0).mask(8)[0, 0]
    assert Band(0.0, 2.0).mask(8).sum() == 63


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Band(0.5, 0.4), "low < high"),
        (lambda: Band(5.0, 6.0).mask(8), "widen"),
        (lambda: Band(0.1, 0.4, "cycles_per_mm").mask(8), "pixel size"),
        (lambda: to_blocks(np.zeros((5, 20))), "no whole 8 × 8 block"),
    ],
)
def test_impossible_bands_and_blocks_are_refused(make, word):
    with pytest.raises(ConfigError, match=word):
        make()
