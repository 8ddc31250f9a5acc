"""The dual-domain loss against SciPy, its gradient against finite differences, and what it does and does not punish."""

import numpy as np
import pytest
import scipy.fft
import torch

from finegrain.config import LossConfig
from finegrain.frequency import Band
from finegrain.train.loss import UNIT, DualDomainLoss


def _images(seed=0, size=48):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 1, size, size, generator=generator)
    return target + 0.02 * torch.randn(target.shape, generator=generator), target


def test_coefficient_term_equals_the_mean_over_the_band_by_scipy():
    output, target = _images()
    loss = DualDomainLoss(LossConfig(weight=1.0))
    row, column = 3, 5
    difference = (output - target).numpy()[:, 0, row : row + 40, column : column + 40]
    band = Band(0.4, 1.5).mask(8)
    coefficients = [
        scipy.fft.dctn(image[y : y + 8, x : x + 8], norm="ortho")[band]
        for image in difference
        for y in range(0, 40, 8)
        for x in range(0, 40, 8)
    ]
    assert loss.frequency_term(output, target, (row, column)).item() == pytest.approx(np.abs(coefficients).mean(), rel=1e-5)


@pytest.mark.parametrize("mode", ["coefficient", "energy"])
def test_gradient_equals_finite_differences(mode):
    output, target = (image[:1, :, :16, :16].double() for image in _images())
    loss = DualDomainLoss(LossConfig(weight=0.3, mode=mode)).double()
    output.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda image: loss.frequency_term(image, target, (0, 0)), output, atol=1e-5)


def test_weight_zero_is_the_mean_squared_error_and_nothing_else():
    output, target = _images()
    loss = DualDomainLoss(LossConfig(weight=0.0))(output, target)
    assert loss.item() == pytest.approx(((output - target) * UNIT).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["coefficient", "energy"])
def test_equal_images_cost_nothing(mode):
    _, target = _images()
    assert DualDomainLoss(LossConfig(weight=1.0, mode=mode))(target, target).item() == 0


def test_a_change_of_the_mean_is_invisible_to_the_band():
    _, target = _images()
    loss = DualDomainLoss(LossConfig(weight=1.0))
    assert loss.frequency_term(target + 0.5, target, (0, 0)).item() < 1e-5


def test_energy_mode_asks_for_energy_and_coefficient_mode_for_coefficients():
    """Other noise of equal energy: right for one mode, wrong for the other."""
    generator = torch.Generator().manual_seed(1)
    target, other = torch.randn(2, 4, 1, 128, 128, generator=generator)
    energy = DualDomainLoss(LossConfig(weight=1.0, mode="energy"))
    coefficient = DualDomainLoss(LossConfig(weight=1.0, mode="coefficient"))
    blurred = 0.5 * target
    assert energy.frequency_term(other, target, (0, 0)) < energy.frequency_term(blurred, target, (0, 0))
    assert coefficient.frequency_term(other, target, (0, 0)) > coefficient.frequency_term(blurred, target, (0, 0))


def test_the_grid_moves_from_call_to_call_and_repeats_with_the_generator():
    output, target = _images()
    values = [
        [loss(output, target).item() for _ in range(4)]
        for loss in (DualDomainLoss(LossConfig(weight=1.0), torch.Generator().manual_seed(5)) for _ in range(2))
    ]
    assert values[0] == values[1]
    assert len(set(values[0])) > 1
