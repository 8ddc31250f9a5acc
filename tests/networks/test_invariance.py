"""No network makes a grid or a ring of its own, and what measures that would see one: `benchmarks/invariance.py` measures more."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from small_networks import FAMILIES, awake

from finegrain.denoise import Denoiser, load_denoiser, torch_engine
from finegrain.hu import HURange
from finegrain.networks.skeleton import STRIDE
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.fbp import find_kernel

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "invariance.py"
SD = 20.0
EXACT_HU = 0.01
"""What is the same but for rounding: single precision over 4095 HU."""


def _program():
    spec = importlib.util.spec_from_file_location("invariance", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["invariance"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


bench = _program()


def _denoiser(family):
    return Denoiser(torch_engine(awake(family)), hu_range=HURange(), stride=STRIDE)


def _white(n=24, size=128, seed=0):
    return np.random.default_rng(seed).normal(0, SD, (n, size, size))


def _of(engine):
    return Denoiser(engine, hu_range=HURange(), stride=STRIDE)


def _within(found, expected, errors=4):
    assert found.error > 0
    assert abs(found.value - expected) <= errors * found.error, f"{found} is not {expected}"


# --- what measures can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("kernel", [None, "B30f"])
def test_noise_alone_has_no_pattern_no_seam_and_no_spike(period, kernel):
    amplitude = bench.noise_amplitude(kernel and find_kernel(kernel), size=128)
    fields = np.stack(list(bench.noise_fields(amplitude, sd_hu=SD, n=24, seed=period)))
    assert fields.std() == pytest.approx(SD, rel=0.02)
    found = bench.pattern_energy(fields, period)
    _within(found, 0)
    assert 3 * found.error < 0.001 * SD**2, "too uncertain to judge a limit of 0.1 %"
    _within(bench.seam_step(fields, 16), 0)
    _within(bench.seam_energy(fields, 16), 0)
    _within(bench.spectrum_spikes(fields, period).energy, 0)


def test_noise_of_a_kernel_has_its_spectrum():
    kernel, size, pixel_mm = find_kernel("B30f"), 128, 0.7
    amplitude = bench.noise_amplitude(kernel, size=size, pixel_mm=pixel_mm)
    f = np.fft.fftfreq(size, pixel_mm)[1 : size // 4]  # where aliases reach nowhere: W ends at 0.775 cycles/mm
    np.testing.assert_allclose((amplitude[0, 1 : size // 4] / amplitude[0, 1]) ** 2, f / f[0] * (kernel(f) / kernel(f[:1])) ** 2)


@pytest.mark.parametrize("share", [0.01, 0.001])
def test_a_planted_checkerboard_is_found_with_its_energy(share):
    y, x = np.indices((128, 128))
    fields = _white() + np.sqrt(share) * SD * (-1.0) ** (y + x)
    for period in (2, 4, 8, 16, 32):
        found = bench.pattern_energy(fields, period)
        _within(found, share * SD**2)
        assert found.error < 0.1 * share * SD**2 or share < 0.01
    spikes = bench.spectrum_spikes(fields, 32)
    _within(spikes.energy, share * SD**2)
    assert spikes.frequency == (0.5, 0.5)
    assert spikes.strongest == pytest.approx(share * SD**2, rel=0.3)
    assert spikes.by_chance < 0.3 * spikes.strongest
    assert not bench.Column("", "", 0.1).keeps(bench.Estimate(100 * share, 0.01))


def test_a_pattern_of_eight_pixels_has_none_of_four():
    x = np.arange(128)
    fields = _white() + 2 * np.sqrt(2) * np.cos(2 * np.pi * x / 8)
    _within(bench.pattern_energy(fields, 4), 0)
    _within(bench.pattern_energy(fields, 8), 4)


def test_a_planted_seam_is_found_with_its_height_and_a_pattern_of_tokens_is_none():
    x = np.arange(128)
    planted = 3.0 * (x // 16 % 2)  # every other window brighter: up at 16, down at 32
    for fields in (_white() + planted, _white() + planted[:, None]):
        _within(bench.seam_step(fields, 32), -3)
        _within(bench.pattern_energy(fields, 32), 1.5**2)
    tokens = _white() + 3.0 * (x % 4 == 0)
    _within(bench.seam_step(tokens, 16), bench.seam_step(_white(), 16).value)
    _within(bench.pattern_energy(tokens, 4), 3.0**2 * 3 / 16)


def test_windows_that_stand_out_by_chance_are_found_though_they_leave_no_mean():
    generator = np.random.default_rng(1)
    windows = np.kron(generator.normal(0, 8, (24, 8, 8)), np.ones((16, 16)))
    fields = _white() + windows
    _within(bench.pattern_energy(fields, 16), 0)
    _within(bench.seam_energy(fields, 16), (8 / SD) ** 2)


def test_noise_that_is_stronger_at_some_places_is_found_with_its_spread():
    x = np.arange(128)
    variance = 1 + 0.2 * (-1.0) ** x
    assert bench.phase_spread(_white() * np.sqrt(variance), 4).value == pytest.approx(0.2, abs=0.01)
    assert bench.phase_spread(_white(), 4).value < 0.01


def test_a_planted_bias_and_a_planted_checkerboard_break_the_limit_of_a_flat_field():
    checks = np.indices((64, 64)).sum(axis=0) % 2

    def wrong(unit):
        return (
            unit + np.float32(0.3 / HURange().span) + np.tile(checks, (2, 2)).astype(np.float32) * np.float32(0.4 / HURange().span)
        )

    table = bench.flat_table(_of(wrong), margin=32)
    for values in table.rows.values():
        bias, largest, step, spread = (value.value for value in values)
        assert bias == pytest.approx(0.5, abs=0.01)
        assert largest == pytest.approx(0.7, abs=0.01)
        assert step == pytest.approx(0, abs=0.01)
        assert spread == pytest.approx(0.2, abs=0.01)
    assert len(table.broken()) == 2 * len(bench.FLAT_HU)
    assert bench.flat_table(_of(lambda unit: unit), margin=32).broken() == []


def test_a_limit_is_kept_only_if_the_error_leaves_no_doubt():
    column = bench.Column("share", "%", 0.1)
    assert column.keeps(bench.Estimate(0.06, 0.01))
    assert not column.keeps(bench.Estimate(0.06, 0.02))
    assert not column.keeps(bench.Estimate(-0.2))
    assert not column.keeps(bench.Estimate(float("nan")))
    table = bench.Table("x", "title", [column], {"good": [bench.Estimate(0.06, 0.01)], "bad": [bench.Estimate(0.2)]})
    assert table.broken() == ["x. bad: share"]
    assert "0.200!" in table.text() and "0.060 ± 0.010 " in table.text()


def test_the_reach_of_a_mean_over_neighbours_and_of_a_move_is_what_it_is():
    def mean_11(unit):
        return np.mean([np.roll(unit, shift, axis=2) for shift in range(-5, 6)], axis=0)

    assert bench.reach(_of(lambda unit: np.roll(unit, 7, axis=3)), longest=256) == 7
    assert bench.reach(_of(lambda unit: np.roll(unit, -9, axis=2)), longest=256) == 9
    assert bench.reach(_of(lambda unit: np.mean([np.roll(unit, shift, axis=3) for shift in range(71)], axis=0)), longest=256) == 70
    assert bench.reach(_of(lambda unit: unit + unit.mean()), longest=256) == 128
    assert bench.reach(_of(mean_11), longest=256) == 5


def test_tiles_that_see_their_own_borders_differ_from_the_slice_there_and_nowhere_else():
    hu = _white(1, 128)[0].astype(np.float32)

    def bordered(unit):
        """Each pixel's left neighbour; none at the border."""
        return np.pad(unit, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., :-1]

    whole = _of(bordered).denoise_slice(hu)
    np.testing.assert_allclose(bench.in_tiles(_of(bordered), hu, tile=64, margin=16), whole, atol=1e-3)
    assert np.abs(bench.in_tiles(_of(bordered), hu, tile=64, margin=0) - whole).max() > 100
    worst = bench.worst_by_distance(_of(bordered), hu, whole, tile=64, step=32)
    assert worst[0] > 100
    assert worst[1:].max() < 1e-3


def test_a_ring_of_noise_and_of_bias_around_metal_is_found_with_its_size_and_place():
    place = np.arange(96)
    away = np.maximum(0, np.maximum(44 - place, place - 51))
    distance = np.maximum(away[:, None], away[None, :])
    level = HURange().to_unit(np.full((96, 96), 40.0))

    def ringed(unit):
        """Half as noisy everywhere, 1.3 times at 9 px, 2 HU brighter at 20 px."""
        factor = np.where(distance == 9, 1.3, 0.5) * (distance > 0)
        return (level + factor * (unit - level) + 2 / HURange().span * (distance == 20)).astype(np.float32)

    found = bench.insert_fields(_of(ringed), "white", blur=0.0, n=12, size=96)
    assert (found.distance == distance).all()
    assert np.sqrt(found.given.var(axis=0, ddof=1).mean()) == pytest.approx(20, rel=0.02)
    assert found.ratio(found.ring(4, 8)).value == pytest.approx(0.5, abs=1e-4)
    assert found.ratio(found.ring(4, 9)).error > 0
    ratio, at = found.noisiest()
    assert (ratio.value, at) == (pytest.approx(1.3, abs=1e-4), 9)
    assert not bench.Column("", "", 1.0).keeps(ratio)
    _within(found.bias(found.ring(20, 20)), 2)
    _within(found.bias(found.ring(12, 19)), 0)


def test_the_error_of_a_ratio_of_noise_is_how_far_it_scatters():
    generator = np.random.default_rng(1000)  # none of the seeds of the fields

    def noisier(unit):
        """Noise as strong added to that of the input."""
        return (unit + generator.normal(0, bench.INSERT_NOISE_HU / HURange().span, unit.shape)).astype(np.float32)

    repeated = [bench.insert_fields(_of(noisier), "white", blur=0.8, n=12, size=96, seed=seed) for seed in range(80)]
    ratios = [found.ratio(found.ring(20, 20)) for found in repeated]
    assert np.mean([ratio.value for ratio in ratios]) == pytest.approx(np.sqrt(2), rel=0.01)
    scatter = np.std([ratio.value for ratio in ratios], ddof=1)
    assert np.mean([ratio.error for ratio in ratios]) == pytest.approx(scatter, rel=0.3)


def test_a_grid_of_four_pixels_is_seen_by_odd_moves_and_not_by_moves_of_the_stride():
    hu = np.zeros((64, 64), np.float32)

    def gridded(unit):
        return unit + (np.arange(unit.shape[3]) % 4 == 0).astype(np.float32) * np.float32(5 / HURange().span)

    still = bench.shifted(_of(gridded), hu, rows=0, columns=0)
    np.testing.assert_allclose(bench.shifted(_of(gridded), hu, rows=0, columns=32), still, atol=1e-3)
    np.testing.assert_allclose(bench.shifted(_of(gridded), hu, rows=3, columns=0), still, atol=1e-3)
    assert np.abs(bench.shifted(_of(gridded), hu, rows=0, columns=1) - still).max() == pytest.approx(5, abs=0.01)


# --- the networks keep them --------------------------------------------------------------------------------------------


def _sample(side):
    """The middle of a slice of the sample."""
    hu = read_series(sample_folder()).part(slice(4, 5)).hu[0]
    first = (hu.shape[0] - side) // 2
    return hu[first : first + side, first : first + side]


@pytest.fixture(scope="module", params=FAMILIES)
def reaching(request):
    """A small network, and how far it reaches."""
    denoiser = _denoiser(request.param)
    return denoiser, bench.reach(denoiser, longest=512)


@pytest.fixture(scope="module")
def bundled():
    return load_denoiser(threads=1)


def test_a_slice_in_tiles_is_the_slice_whole_where_the_tile_holds_all_that_the_network_reaches(reaching):
    denoiser, reach = reaching
    margin = -(-reach // 16) * 16
    tile = 2 * margin + STRIDE
    hu = _sample(tile + STRIDE)
    whole = denoiser.denoise_slice(hu)
    assert np.abs(whole - hu).max() > 1
    assert np.abs(bench.in_tiles(denoiser, hu, tile=tile, margin=margin) - whole).max() <= EXACT_HU
    # And the reach is not merely large: a tile that holds less of it makes a difference.
    assert bench.worst_by_distance(denoiser, hu, whole, tile=tile, step=STRIDE)[: reach // 4].max() > bench.LIMIT_HU


def test_a_slice_moved_by_the_stride_is_the_same_slice_moved_where_the_network_reaches_no_border(reaching):
    denoiser, reach = reaching
    _moves_along(denoiser, border=reach, limit=EXACT_HU)


def test_the_bundled_network_in_tiles_is_the_slice_whole_128_px_from_their_borders(bundled):
    hu = _sample(512)
    worst = bench.worst_by_distance(bundled, hu, bundled.denoise_slice(hu), tile=320, step=192)
    assert worst[: bench.BORDER].max() > bench.LIMIT_HU
    assert worst[bench.BORDER :].max() <= bench.LIMIT_HU


def test_a_slice_moved_by_the_stride_is_the_same_slice_moved_128_px_from_its_borders(bundled):
    _moves_along(bundled, border=bench.BORDER, limit=bench.LIMIT_HU)


def _moves_along(denoiser, *, border, limit):
    hu = _sample(-(-(2 * border + STRIDE) // STRIDE) * STRIDE)
    still, moved = (bench.shifted(denoiser, hu, rows=rows, columns=columns) for rows, columns in ((0, 0), (STRIDE, STRIDE)))
    inner = np.s_[border:-border, border:-border]
    assert np.abs(still - hu)[inner].max() > 1
    assert np.abs(moved - still)[inner].max() <= limit


@pytest.mark.parametrize("name", ["bundled", *FAMILIES])
def test_a_flat_field_without_noise_comes_out_flat(name, bundled):
    denoiser = bundled if name == "bundled" else _denoiser(name)
    worst = max(np.abs(bench.flat_deviation(denoiser, level, margin=64)).max() for level in (-1000, -100, 40, 1000))
    assert worst <= bench.LIMIT_HU


@pytest.mark.parametrize("kernel", ["white", "B30f"])
def test_nothing_around_metal_is_noisier_than_it_was(kernel, bundled):
    found = bench.insert_fields(bundled, kernel, blur=0.0, n=16, size=128)
    ratio, at = found.noisiest()
    assert ratio.value + bench.ERRORS * ratio.error <= 1, f"{ratio} at {at} px"
    assert found.ratio(found.ring(20, 40)).value < 0.7


def test_the_bundled_network_draws_no_pattern_and_no_seam_into_noise(bundled):
    fields, energy = bench.denoised_noise(
        bundled, bench.noise_amplitude(find_kernel("D45f"), size=384), sd_hu=SD, n=6, margin=128, seed=1
    )
    assert fields.var() < 0.5 * energy
    for period in (2, 4, 8, 16, 32):
        found = bench.pattern_energy(fields, period)
        assert found.value + bench.ERRORS * found.error <= 0.01 * bench.LIMIT_PATTERN * energy
    for every in (16, 32):
        _within(bench.seam_step(fields, every), 0)
