"""The dual-domain loss against SciPy, its gradient against finite differences, and what it does and does not punish."""

import itertools
import math

import numpy as np
import pytest
import scipy.fft
import torch

from finegrain.config import LossConfig, config_of
from finegrain.errors import ConfigError
from finegrain.frequency import to_blocks
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import matching_exposure, scanner_of, without_padding
from finegrain.simulate.fbp import KERNELS
from finegrain.train.loss import GEOMETRIC_SCALE, UNIT, DualDomainLoss, target_noise_share

GATED = {"smooth_gate": 1.6}
KERNEL = {"band_unit": "kernel", "band": (0.4, 1.0)}
VARIANTS = [
    {"mode": mode, "pool_blocks": 2, **more}
    for mode in ("coefficient", "energy", "adaptive")
    for more in ({}, GATED, KERNEL, GATED | KERNEL)
]


def _name(change):
    return " ".join(map(str, change.values())) if isinstance(change, dict) else None


def _images(seed=0, size=48, dtype=torch.float32):
    """Output, target and input: texture in the left half, smooth in the right, noise in all, of a smooth kernel."""
    generator = torch.Generator().manual_seed(seed)

    def noise(sd):
        white = torch.randn(2, 1, size, size, generator=generator, dtype=torch.float64)
        return sd * (white + white.roll(1, 2) + white.roll(1, 3) + white.roll((1, 1), (2, 3))) / 2

    texture = noise(0.04) * (torch.arange(size) < size // 2)
    target = 0.3 + texture + noise(0.005)
    inputs = target + noise(0.009)
    output = target + noise(0.004)
    return output.to(dtype), target.to(dtype), inputs.to(dtype)


# --- the same by another way: loops, SciPy, nothing of the loss but its constants --------------------------------------------


def _scipy_blocks(image, offset, n):
    row, column = offset
    places = [range(start, length - n + 1, n) for start, length in zip((row, column), image.shape, strict=True)]
    return np.array([[scipy.fft.dctn(image[y : y + n, x : x + n], norm="ortho") for x in places[1]] for y in places[0]])


def _scipy_pool(values, side):
    rows, columns = values.shape[:2]
    starts = itertools.product(range(rows - side + 1), range(columns - side + 1))
    flat = [values[y : y + side, x : x + side].mean(axis=(0, 1)) for y, x in starts]
    return np.reshape(flat, (rows - side + 1, columns - side + 1, *values.shape[2:]))


def _scipy_rings(energy, frequency, chosen, n):
    out = energy.copy()
    for ring in range(2 * n):
        inside = chosen & (np.round(n * frequency) == ring)
        if inside.any():
            out[..., inside] = energy[..., inside].mean(axis=-1, keepdims=True)
    return out


def _scipy_term(output, target, inputs, config, offset):
    """One image, in units of 100 HU."""
    n, side = config.dct_block, config.pool_blocks
    u, v = np.indices((n, n))
    frequency = np.sqrt(u**2 + v**2) / n
    low, high = config.band
    chosen = (frequency > 0) & ((config.band_unit == "kernel") | ((frequency >= low) & (frequency <= high)))
    theirs, difference = _scipy_blocks(target, offset, n), _scipy_blocks(output - target, offset, n)
    noise = _scipy_rings(_scipy_blocks(inputs - target, offset, n) ** 2, frequency, chosen, n)
    members = chosen
    if config.band_unit == "kernel":
        mean = noise.mean(axis=(0, 1))
        reach = frequency[chosen & (mean >= 0.01 * mean[chosen].max())].max()
        members = chosen & (frequency >= low * reach) & (frequency <= high * reach)
    by_place = config.mode == "adaptive" or config.smooth_gate
    if config.mode == "energy":
        ours, theirs_energy = (_scipy_pool(_scipy_blocks(image, offset, n) ** 2, side) for image in (output, target))
        error = np.abs(np.log((ours + 1e-4) / (theirs_energy + 1e-4)))
    else:
        error = _scipy_pool(np.abs(difference), side) if by_place else np.abs(difference)
    if by_place:
        noise, energy = _scipy_pool(noise, side), _scipy_pool(_scipy_rings(theirs**2, frequency, chosen, n), side)
        own = noise * np.quantile((energy[..., chosen] / noise[..., chosen]), 0.25)
        if config.mode == "adaptive":
            signal = np.maximum(energy - own, 0)
            error = error * signal / (signal + noise + 1e-4)
        if config.smooth_gate:
            inside = energy[..., members].sum(axis=-1) > config.smooth_gate * own[..., members].sum(axis=-1)
            assert 0 < inside.mean() < 1  # else the reference would say nothing about the gate
            error = error * inside[..., None, None]
    return error[..., members].mean()


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
@pytest.mark.parametrize(("block", "offset"), [(8, (3, 5)), (4, (0, 1))])
def test_each_mode_equals_scipy(change, block, offset):
    config = LossConfig(weight=1.0, dct_block=block, **change)
    output, target, inputs = (UNIT * image for image in _images())
    both = zip(*(image[:, 0].double().numpy() for image in (output, target, inputs)), strict=True)
    expected = [_scipy_term(*one, config=config, offset=offset) for one in both]
    ours = DualDomainLoss(config).frequency_term(output, target, offset, inputs)
    assert ours.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_gradient_equals_finite_differences(change):
    output, target, inputs = (UNIT * image[:1, :, 16:32, 16:32] for image in _images(dtype=torch.float64))
    loss = DualDomainLoss(LossConfig(weight=0.3, dct_block=4, **change)).double()
    assert loss.frequency_term(output, target, (0, 0), inputs).mean() > 0
    output.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda image: loss.frequency_term(image, target, (0, 0), inputs), output, atol=1e-5)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_bfloat16_images_under_autocast_cost_what_they_cost_in_float64(change):
    images = [image.bfloat16() for image in _images()]
    config = LossConfig(weight=1.0, **change)
    with torch.autocast("cpu", torch.bfloat16):
        ours = DualDomainLoss(config, torch.Generator().manual_seed(0))(*images)
    output, target, inputs = (UNIT * image.double() for image in images)
    loss = DualDomainLoss(config, torch.Generator().manual_seed(0)).double()
    term = loss.frequency_term(output, target, loss._offset(), inputs)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(((output - target).square().mean() + term.mean()).item(), rel=1e-5)


def test_bfloat16_output_costs_as_much_as_the_float32_one_but_for_its_rounding():
    output, target, inputs = _images()
    config = LossConfig(weight=0.3, mode="adaptive")
    exact, rounded = (
        DualDomainLoss(config, torch.Generator().manual_seed(0))(image, target, inputs).item()
        for image in (output, output.bfloat16())
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


# --- what it punishes --------------------------------------------------------------------------------------------------------


def test_weight_zero_is_the_mean_squared_error_and_nothing_else():
    output, target, _ = _images()
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    loss = DualDomainLoss(LossConfig(weight=0.0, mode="adaptive", **GATED), generator)(output, target)
    assert loss.item() == pytest.approx((output * UNIT - target * UNIT).square().mean().item(), rel=1e-6)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_equal_images_cost_nothing(change):
    _, target, inputs = _images()
    assert DualDomainLoss(LossConfig(weight=1.0, **change))(target, target, inputs).item() == 0


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_a_change_of_the_mean_is_invisible_to_the_band(change):
    output, target, inputs = (UNIT * image for image in _images())
    loss = DualDomainLoss(LossConfig(weight=1.0, **change))
    value = loss.frequency_term(output, target, (0, 0), inputs)
    assert loss.frequency_term(target + 20, target, (0, 0), inputs).mean().item() < 1e-3 * value.mean().item()
    everywhere = (image + 20 for image in (output, target, inputs))
    output, target, inputs = everywhere
    assert loss.frequency_term(output, target, (0, 0), inputs).mean().item() == pytest.approx(value.mean().item(), rel=1e-3)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_a_turned_or_mirrored_image_costs_the_same_on_the_turned_grid(change):
    images = _images()
    loss = DualDomainLoss(LossConfig(weight=1.0, **change))

    def term(move):
        output, target, inputs = (UNIT * move(image) for image in images)
        return loss.frequency_term(output, target, (0, 0), inputs).mean().item()  # 48 pixels: a whole number of blocks

    straight = term(lambda image: image)
    assert term(lambda image: image.rot90(1, (2, 3))) == pytest.approx(straight, rel=1e-4)
    assert term(lambda image: image.flip(3)) == pytest.approx(straight, rel=1e-4)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_an_offset_of_the_grid_is_a_shift_of_the_images(change):
    output, target, inputs = (UNIT * image for image in _images())
    loss = DualDomainLoss(LossConfig(weight=1.0, **change))
    shifted = loss.frequency_term(output[:, :, 3:, 5:], target[:, :, 3:, 5:], (0, 0), inputs[:, :, 3:, 5:])
    assert loss.frequency_term(output, target, (3, 5), inputs).tolist() == pytest.approx(shifted.tolist(), rel=1e-6)
    assert loss.frequency_term(output, target, (0, 0), inputs).mean().item() != pytest.approx(shifted.mean().item(), rel=1e-3)


@pytest.mark.parametrize("change", VARIANTS, ids=_name)
def test_no_gradient_reaches_target_and_input(change):
    output, target, inputs = (image.requires_grad_(True) for image in _images())
    loss = DualDomainLoss(LossConfig(weight=1.0, **change))
    loss.frequency_term(output, target.detach(), (0, 0), inputs).mean().backward()
    assert output.grad.abs().sum() > 0
    assert inputs.grad is None


def test_energy_mode_asks_for_energy_and_coefficient_mode_for_coefficients():
    """Other noise of equal energy: right for one mode, wrong for the other."""
    generator = torch.Generator().manual_seed(1)
    target, other = torch.randn(2, 4, 1, 128, 128, generator=generator)
    energy = DualDomainLoss(LossConfig(weight=1.0, mode="energy"))
    coefficient = DualDomainLoss(LossConfig(weight=1.0, mode="coefficient"))
    blurred = 0.5 * target
    assert energy.frequency_term(other, target, (0, 0)).mean() < energy.frequency_term(blurred, target, (0, 0)).mean()
    assert coefficient.frequency_term(other, target, (0, 0)).mean() > coefficient.frequency_term(blurred, target, (0, 0)).mean()


def test_the_grid_moves_from_call_to_call_and_repeats_with_the_generator():
    output, target, _ = _images()
    values = [
        [loss(output, target).item() for _ in range(4)]
        for loss in (DualDomainLoss(LossConfig(weight=1.0), torch.Generator().manual_seed(5)) for _ in range(2))
    ]
    assert values[0] == values[1]
    assert len(set(values[0])) > 1


def test_a_restored_generator_goes_on_with_the_same_grids_in_every_mode():
    images = _images()
    for change in VARIANTS:
        generator = torch.Generator().manual_seed(5)
        loss = DualDomainLoss(LossConfig(weight=1.0, **change), generator)
        loss(*images)
        state = generator.get_state()
        after = loss(*images).item()
        generator.set_state(state)
        assert loss(*images).item() == after


# --- adaptive, gate, band ----------------------------------------------------------------------------------------------------


def _textured(size=64, *, dose_fraction=0.25, sd=15.0, seed=0, texture=60.0):
    """Target and input in units of 100 HU, white noise of known dose; texture in the left half only."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 8, 1, size, size, generator=generator) / 100
    target = texture * noise[0] * (torch.arange(size) < size // 2) + sd * noise[1]
    return target, target + sd * (1 / dose_fraction - 1) ** 0.5 * noise[2]


def test_adaptive_weights_are_the_share_of_signal_that_the_input_can_tell():
    """Signal of 60 HU in noise of 15 HU, of which three times as much energy is missing at quarter dose: 3600 / (3600 + 675)."""
    target, inputs = _textured()
    weights = DualDomainLoss(LossConfig(weight=1.0, mode="adaptive", pool_blocks=2)).weights(target, inputs, (0, 0))
    assert weights[:, :, :3].mean().item() == pytest.approx(3600 / (3600 + 675), abs=0.03)
    assert weights[:, :, 4:].mean().item() < 0.1
    assert weights.min() >= 0
    assert weights.max() <= 1


@pytest.fixture(scope="module")
def chest():
    """A slice of the sample, and the scanner that simulates its missing noise."""
    scan = read_series(sample_folder())
    kernel = KERNELS["B40f"]
    return without_padding(scan, 4), scanner_of(scan, kernel=kernel, exposure=matching_exposure(scan, kernel=kernel))


def test_the_noise_of_a_real_target_is_known_from_the_pair_at_any_dose(chest):
    """The median over its patches, in the mean of eight draws, errs by less than a tenth, at a quarter of the dose by an eighth.

    Texture and edges would only make it larger; at a quarter it comes out 11 % too small.
    """
    normal, scanner = chest
    loss = DualDomainLoss(LossConfig(weight=1.0, mode="adaptive"))
    for dose_fraction, within in ((0.1, 0.1), (0.25, 0.125), (0.5, 0.1)):
        shares = []
        for seed in range(8):
            noise = scanner.missing_noise_hu(normal, dose_fraction=dose_fraction, generator=np.random.default_rng(seed))
            target, difference = (
                torch.from_numpy(to_blocks(hu, 64).reshape(-1, 1, 64, 64).astype(np.float32) / 100) for hu in (normal, noise)
            )
            patches = (target > -5).float().mean(dim=(1, 2, 3)) > 0.25
            energy, missing = (loss.pooled(loss.ring_energy(image[patches], (0, 0))) for image in (target, difference))
            shares.append(target_noise_share(energy, missing).median().item())
        assert np.mean(shares) == pytest.approx(dose_fraction / (1 - dose_fraction), rel=within)


@pytest.mark.parametrize("dose_fraction", [0.1, 0.25, 0.5])
def test_a_smooth_target_is_found_at_any_dose_without_being_told_the_dose(dose_fraction):
    target, inputs = _textured(dose_fraction=dose_fraction)
    weights = DualDomainLoss(LossConfig(weight=1.0, pool_blocks=2, **GATED)).weights(target, inputs, (0, 0))
    assert weights[:, :, :3].min() == 1
    assert weights[:, :, 4:].mean().item() < 0.02


def test_the_gate_leaves_out_what_lies_outside_the_reconstruction_circle():
    target, inputs = _textured()
    target[..., 32:], inputs[..., 32:] = 0, 0
    weights = DualDomainLoss(LossConfig(weight=1.0, pool_blocks=2, **GATED)).weights(target, inputs, (0, 0))
    assert weights[:, :, 4:].max() == 0
    adaptive = DualDomainLoss(LossConfig(weight=1.0, pool_blocks=2, mode="adaptive")).weights(target, inputs, (0, 0))
    assert adaptive[:, :, 4:].max() == 0


def test_rounding_outside_the_reconstruction_circle_is_not_taken_for_the_noise_of_the_scan():
    """A target of zero there over a difference of a tenth of an HU would make the least of all ratios."""
    target, inputs = _textured(texture=0.0)
    target[..., 32:] = 0
    inputs[..., 32:] = 0.001 * torch.randn(inputs[..., 32:].shape, generator=torch.Generator().manual_seed(0))
    weights = DualDomainLoss(LossConfig(weight=1.0, **GATED)).weights(target, inputs, (0, 0))
    assert weights.mean() < 0.02


def test_a_patch_without_texture_counts_for_little_and_texture_without_noise_for_all():
    smooth = DualDomainLoss(LossConfig(weight=1.0, mode="adaptive"))
    assert smooth.weights(*_textured(texture=0.0), (0, 0)).mean() < 0.1
    target, _ = _textured()
    assert smooth.weights(target, target.clone(), (0, 0))[:, :, :3].mean() > 0.99


@pytest.mark.parametrize("mode", ["coefficient", "energy", "adaptive"])
def test_a_gate_never_adds_to_the_loss(mode):
    output, target, inputs = (UNIT * image for image in _images())
    losses = [DualDomainLoss(LossConfig(weight=1.0, mode=mode, pool_blocks=2, smooth_gate=gate)) for gate in (1e-9, 1.6, 1e9)]
    whole, gated, shut = (loss.frequency_term(output, target, (0, 0), inputs).mean() for loss in losses)
    assert whole > gated > shut == 0


def test_a_band_in_cycles_per_mm_is_that_in_fractions_of_nyquist_for_its_pixel_size():
    output, target, _ = _images()
    values = [
        DualDomainLoss(LossConfig(weight=1.0, **band)).frequency_term(output, target, (0, 0)).mean().item()
        for band in (
            {"band": (0.4, 1.0)},
            {"band": (0.25, 0.625), "band_unit": "cycles_per_mm", "pixel_mm": 0.8},
            {"band": (0.25, 0.625), "band_unit": "cycles_per_mm", "pixel_mm": 0.4},
        )
    ]
    assert values[0] == values[1] != values[2]


def test_a_band_in_fractions_of_the_kernel_follows_each_image_of_a_batch():
    """Noise up to half of Nyquist in the first image, up to all of it in the second."""
    generator = np.random.default_rng(0)
    spectrum = np.fft.fft2(generator.normal(size=(2, 128, 128)))
    frequency = 2 * np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    low_passed = np.fft.ifft2(spectrum * np.exp(-((frequency / [[[0.35]], [[0.7]]]) ** 4))).real
    noise = torch.tensor(low_passed[:, None], dtype=torch.float32)
    loss = DualDomainLoss(LossConfig(weight=1.0, band_unit="kernel", band=(0.5, 1.0)))
    weights = loss.weights(torch.zeros_like(noise), noise, (0, 0))[:, 0, 0]
    ends = [(loss.frequency[one > 0].min().item(), loss.frequency[one > 0].max().item()) for one in weights]
    assert ends[0] == pytest.approx((0.25, 0.5), abs=0.13)
    assert ends[1] == pytest.approx((0.5, 1.0), abs=0.13)
    np.testing.assert_allclose(weights.mean(dim=1), 1, rtol=1e-6)


@pytest.mark.parametrize("change", [{"mode": "adaptive"}, GATED, KERNEL], ids=_name)
def test_a_loss_that_reads_the_noise_is_refused_without_the_input(change):
    output, target, _ = _images()
    with pytest.raises(ConfigError, match="no input"):
        DualDomainLoss(LossConfig(weight=1.0, **change))(output, target)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mode": "wavelet"}, "mode: .*'coefficient', 'energy' or 'adaptive'"),
        ({"band_unit": "per_inch"}, "band_unit: .*'nyquist', 'cycles_per_mm' or 'kernel'"),
        ({"band_unit": "cycles_per_mm"}, "pixel_mm goes with"),
        ({"pixel_mm": 0.7}, "pixel_mm goes with"),
        ({"band_unit": "cycles_per_mm", "pixel_mm": 0.7, "band": (3, 4)}, r"no coefficient .* cycles_per_mm"),
        ({"band_unit": "cycles_per_mm", "pixel_mm": 0.0}, "pixel_mm: .*greater than 0"),
        ({"band_unit": "kernel", "band": (0.4, 0.9)}, "kernel's reach"),
        ({"smooth_gate": -1}, "smooth_gate: .*greater than or equal to 0"),
        ({"smooth_gate": float("nan")}, "smooth_gate: "),
        ({"smooth_gates": 1}, "nearest known key is 'smooth_gate'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(change, word):
    with pytest.raises(ConfigError, match=word) as caught:
        config_of(LossConfig, change)
    assert "\n" not in str(caught.value)


def test_a_geometric_average_presses_every_patch_alike():
    """Its gradient is that of each patch's error over the error: the noise of a patch does not decide how much it counts."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((2, 1, 32, 32), generator=generator)
    noise = torch.randn((2, 1, 32, 32), generator=generator) * torch.tensor([0.01, 0.1])[:, None, None, None]
    output = (target + noise).requires_grad_()
    for weight in (0.0, 0.05):
        loss = DualDomainLoss(LossConfig(weight=weight, average="geometric"), torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(loss(output, target), output)
        of_patch = (gradient * noise).sum(dim=(1, 2, 3))
        assert of_patch[0].item() == pytest.approx(of_patch[1].item(), rel=0.02 if weight == 0 else 0.2)
    scaled = DualDomainLoss(LossConfig(average="geometric"))
    quiet, loud = (scaled(target + k * noise, target).item() for k in (1, 10))
    assert loud - quiet == pytest.approx(GEOMETRIC_SCALE * math.log(100), rel=0.02)
    assert DualDomainLoss(LossConfig())(output, target).item() == pytest.approx(((output - target) * UNIT).square().mean().item())
