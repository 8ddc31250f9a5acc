"""The band equaliser gives back what a known gain took, level by level, and leaves no trace of a grid or a border."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from finegrain.equaliser import (
    LARGEST_GAIN,
    RINGS,
    BandEqualiser,
    CalibrationSlice,
    RingGains,
    calibrate_equaliser,
    local_signal_to_noise,
    ring_energies,
)
from finegrain.errors import ConfigError, DataError
from finegrain.frequency import DCT_BLOCK, block_dct, inverse_block_dct, nyquist_fraction
from finegrain.local_noise import local_noise_hu, median_noise_hu
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series

GAINS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.6)
ONE, NONE = (1.0,) * RINGS, (0.0,) * RINGS


def _noise(seed=0, shape=(160, 128)):
    return np.random.default_rng(seed).normal(40, 30, shape)


def _body(shape=(160, 128)):
    body = np.zeros(shape, dtype=bool)
    body[20:-20, 20:-20] = True
    return body


def _table(*of_levels):
    """Rings × levels from a row of rings for each level."""
    return tuple(zip(*of_levels, strict=True))


def _equaliser(levels, of_output, of_input=None, by_dose=()):
    """The same levels in every ring; gains as a row of rings for each level."""
    of_input = of_input or (NONE,) * len(of_output)
    return BandEqualiser(_table(*((level,) * RINGS for level in levels)), RingGains(_table(*of_output), _table(*of_input)), by_dose)


def _apply(gains, image, strength=1.0):
    return _equaliser((1.0,), (gains,)).apply(image, image, strength=strength)


def _slices(references, outputs):
    """With inputs that have nothing to do with what is wanted."""
    return [
        CalibrationSlice(_noise(100 + k, r.shape), o, r, _body(r.shape))
        for k, (r, o) in enumerate(zip(references, outputs, strict=True))
    ]


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
    np.testing.assert_allclose(np.array(equaliser.gains.of_output)[:, 0] * GAINS, 1, atol=0.1)
    assert np.max(equaliser.gains.of_input) < 0.05

    unseen = _noise(9)
    output = _apply(GAINS, unseen)
    restored = equaliser.apply(output, _noise(10), strength=1.0)
    assert _rmse(restored, unseen) < 0.15 * _rmse(output, unseen)
    np.testing.assert_allclose(ring_energies(restored, _body()) / ring_energies(unseen, _body()), 1, atol=0.03)


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
    flat, largest = np.full(shape, 40.0), (LARGEST_GAIN,) * RINGS
    equaliser = _equaliser((0.5, 2.0), (ONE, largest), (NONE, ONE))
    np.testing.assert_allclose(equaliser.apply(flat, flat, strength=1.0), 40, atol=1e-3)
    np.testing.assert_allclose(_apply(largest, flat), 40, atol=1e-3)


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
        gains = calibrate_equaliser(_slices([reference], [output]), levels=1).gains
        assert 0 <= np.min(gains.of_output) <= np.max(gains.of_output) <= LARGEST_GAIN
        assert 0 <= np.min(gains.of_input) <= np.max(gains.of_input) <= 1


# --- output and input


def test_where_a_network_keeps_nothing_of_the_noise_the_noise_of_the_input_is_given_back():
    """A flat field: the normal dose has half of the input's noise power, and the network has removed it all but for a trace."""

    def field(seed):
        generator = np.random.default_rng(seed)
        own, more = (generator.normal(0, 20, (256, 256)) for _ in range(2))
        trace = generator.normal(0, 2, (256, 256))
        return 40 + own + more, 40 + trace, 40 + own

    body = np.ones((256, 256), dtype=bool)
    slices = [CalibrationSlice(*field(seed), body) for seed in (0, 1)]
    gains = calibrate_equaliser(slices, levels=1).gains
    np.testing.assert_allclose(gains.of_input[1:], np.sqrt(0.5), rtol=0.05)  # the lowest ring loses some to the mean
    noisy, output, reference = field(2)
    equalised = calibrate_equaliser(slices, levels=1).apply(output, noisy, strength=1.0)
    assert equalised.std() == pytest.approx(reference.std(), rel=0.05)
    assert np.corrcoef(equalised.ravel(), reference.ravel())[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_a_ring_has_levels_of_its_own():
    """Smooth noise under white structure: in the low rings the structure hardly stands out, in the high ones it towers."""
    generator = np.random.default_rng(0)
    kept = generator.normal(0, 10, (256, 256))
    shown = kept + 5 * ndimage.gaussian_filter(generator.normal(0, 10, (256, 256)), 1.0)
    levels = np.median(local_signal_to_noise(kept, shown), axis=(1, 2))
    assert levels[-2] > 2 * levels[0]
    white = np.median(local_signal_to_noise(kept, generator.normal(0, 20, (256, 256))), axis=(1, 2))
    np.testing.assert_allclose(white, 0.5, rtol=0.15)


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
        return [
            ring_energies(equalised[half], body[half]).sum() / ring_energies(reference[half], body[half]).sum() for half in halves
        ]

    np.testing.assert_allclose(ratios(2), 1, atol=0.05)
    np.testing.assert_allclose(ratios(1), [0.25, 1], atol=0.1)


def test_strong_edges_have_a_level_of_their_own_and_what_is_not_missing_is_not_added():
    """A disc of 600 HU that the network keeps as it is, in fine texture that it has halved."""
    y, x = np.mgrid[:256, :256]
    disc = 600.0 * (np.hypot(y - 128, x - 128) < 60)
    near = np.abs(np.hypot(y - 128, x - 128) - 60) < 6
    body = np.ones(disc.shape, dtype=bool)

    def made(seed):
        generator = np.random.default_rng(seed)
        texture = generator.normal(0, 10, disc.shape)
        return CalibrationSlice(disc + texture + generator.normal(0, 20, disc.shape), disc + 0.5 * texture, disc + texture, body)

    equaliser = calibrate_equaliser([made(0), made(1)], levels=2)
    assert len(equaliser.levels[0]) == 3
    one = made(2)
    equalised = equaliser.apply(one.denoised, one.noisy, strength=1.0)
    away = np.s_[:56, :]
    assert ring_energies(equalised[away], body[away]).sum() == pytest.approx(
        ring_energies(one.reference[away], body[away]).sum(), rel=0.1
    )
    assert ring_energies(equalised, near).sum() == pytest.approx(ring_energies(one.reference, near).sum(), rel=0.1)


def test_levels_that_chance_alone_makes_differ_have_the_same_gains():
    reference = _noise(shape=(256, 256))
    gains = np.array(calibrate_equaliser(_slices([reference], [0.8 * reference]), levels=3).gains.of_output)
    np.testing.assert_allclose(gains[1:], 1.25, rtol=0.05)


def test_a_mirrored_image_is_equalised_as_the_mirror_image():
    _, output, noisy = _two_worlds(0)
    equaliser = _equaliser((0.3, 0.9), (ONE, (2.0,) * RINGS), ((0.2,) * RINGS, NONE))
    mirrored = equaliser.apply(output[::-1, ::-1], noisy[::-1, ::-1], strength=1.0)
    np.testing.assert_allclose(mirrored[::-1, ::-1], equaliser.apply(output, noisy, strength=1.0), atol=1e-2)


def test_levels_at_a_border_draw_no_seam():
    smooth = np.tile(np.linspace(0, 400, 128), (128, 1))
    noisy = smooth + np.where(np.arange(128) < 64, 1, 30)[None, :] * _noise(shape=(128, 128)) / 30
    equaliser = _equaliser((0.01, 1.0), (ONE, (2.0,) * RINGS))
    equalised = equaliser.apply(smooth, noisy, strength=1.0)[:, 16:-16]
    np.testing.assert_allclose(np.diff(equalised, axis=1), np.diff(smooth, axis=1)[:, 16:-16], atol=0.05)


# --- dose


def test_a_known_dose_gets_the_energy_of_its_own_normal_dose_and_doses_between_lie_between():
    """The same low dose can be a half or an eighth of the normal one, which then has much or little noise."""
    body = np.ones((192, 192), dtype=bool)

    def made(seed, dose):
        generator = np.random.default_rng(seed)
        own, more = generator.normal(0, 30, body.shape) * np.sqrt(dose), generator.normal(0, 30, body.shape) * np.sqrt(1 - dose)
        return CalibrationSlice(own + more, 0.3 * (own + more), own, body, dose)

    slices = [made(seed, dose) for seed in range(4) for dose in (0.5, 0.125)]
    equaliser = calibrate_equaliser(slices, levels=1)
    assert [dose for dose, _ in equaliser.by_dose] == [0.125, 0.5]
    unseen = made(9, 0.5)

    def sd(dose):
        return equaliser.apply(unseen.denoised, unseen.noisy, strength=1.0, dose_fraction=dose).std()

    for dose in (0.125, 0.5):
        assert sd(dose) == pytest.approx(30 * np.sqrt(dose), rel=0.05)
    assert sd(0.125) < sd(0.25) < sd(0.5)
    assert sd(0.125) < sd(None) < sd(0.5)
    assert sd(0.01) == sd(0.125)
    assert sd(1.0) == sd(0.5)


def test_a_dose_of_few_slices_has_no_gains_of_its_own():
    reference = _noise()
    several = [replace(one, dose_fraction=0.5) for one in _slices([reference] * 5, [0.8 * reference] * 5)]
    equaliser = calibrate_equaliser([*several, replace(several[0], dose_fraction=0.1)], levels=1)
    assert [dose for dose, _ in equaliser.by_dose] == [0.5]


def test_a_slice_without_noise_and_structure_does_not_decide_the_gains():
    references = [_noise(seed) for seed in range(3)]
    slices = _slices(references, [0.8 * reference for reference in references])
    flat = np.full(references[0].shape, 40.0)
    expected, found = (
        calibrate_equaliser(some, levels=1).gains for some in (slices, [*slices, replace(slices[0], reference=flat)])
    )
    np.testing.assert_allclose(found.of_output, expected.of_output, rtol=1e-6)


def test_for_a_dose_the_gains_are_those_of_the_network_that_was_told_it():
    reference = _noise()
    slices = [
        CalibrationSlice(_noise(seed), 0.8 * reference, reference, _body(), dose, 0.5 * reference)
        for seed, dose in enumerate([0.5] * 4 + [0.25] * 4)
    ]
    equaliser = calibrate_equaliser(slices, levels=1)
    np.testing.assert_allclose(equaliser.gains.of_output[1:], 1.25, rtol=0.03)
    for _, gains in equaliser.by_dose:
        np.testing.assert_allclose(gains.of_output[1:], 2, rtol=0.03)


def test_the_tables_hold_all_of_it():
    equaliser = _equaliser((0.5, 2.0), (ONE, GAINS), (NONE, GAINS), ((0.25, RingGains(_table(ONE, ONE), _table(NONE, NONE))),))
    assert BandEqualiser.from_tables(json.loads(json.dumps(equaliser.tables()))) == equaliser


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
    of_edges, of_noise = (local_signal_to_noise(kept, image).max(axis=(1, 2)) for kept in (with_edges, image))
    assert (of_edges > 5 * of_noise).all()


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
    ("levels", "of_output", "of_input", "word"),
    [
        ((), (), (), "8 rings"),
        ((1.0,), (ONE, ONE), (NONE,), "each ring and level"),
        ((1.0,), (ONE,), (NONE, NONE), "each ring and level"),
        ((1.0,), (ONE[1:],), (NONE,), "each ring and level"),
        ((0.0,), (ONE,), (NONE,), "rise from above 0"),
        ((2.0, 1.0), (ONE, ONE), (NONE, NONE), "rise"),
        ((float("nan"),), (ONE,), (NONE,), "rise"),
        ((1.0,), ((5.0, *ONE[1:]),), (NONE,), r"\[0, 4.0\]"),
        ((1.0,), ((float("nan"), *ONE[1:]),), (NONE,), r"\[0, 4.0\]"),
        ((1.0,), (ONE,), ((1.1, *ONE[1:]),), r"\[0, 1.0\]"),
    ],
)
def test_gains_that_cannot_be_are_refused(levels, of_output, of_input, word):
    with pytest.raises(ConfigError, match=word):
        _equaliser(levels, of_output, of_input)


@pytest.mark.parametrize("doses", [(0.5, 0.25), (0.0, 0.5), (0.5, 0.5)])
def test_doses_that_do_not_rise_are_refused(doses):
    gains = RingGains(_table(ONE), _table(NONE))
    with pytest.raises(ConfigError, match="doses"):
        _equaliser((1.0,), (ONE,), by_dose=tuple((dose, gains) for dose in doses))


def test_slices_without_a_body_are_refused():
    image = _noise()
    nobody = CalibrationSlice(image, image, image, np.zeros(image.shape, dtype=bool))
    for slices in ([], [nobody]):
        with pytest.raises(DataError, match="body"):
            calibrate_equaliser(slices)
