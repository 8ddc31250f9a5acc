"""The dual-domain loss: mean squared error plus λ times a constraint on the high band of the block DCT.

With the paper's `coefficient` mode the sum over Ω_h becomes a mean, so that λ does not depend on image size. It does not by
itself keep high-frequency energy: an unpredictable coefficient is drawn to its median, which is zero. `energy` compares energies.
`adaptive` asks for a coefficient as far as the input can tell it. What noise there is, place by place and frequency by frequency,
is read from input minus target, which holds noise alone: no anatomy, and the reconstruction kernel's own spectrum.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from finegrain.config import LossConfig
from finegrain.errors import ConfigError
from finegrain.frequency import dct_matrix, nyquist_fraction, ring_of

UNIT = 4095 / 100
"""Losses are computed on units of 100 HU, so that λ weighs terms of like size."""

ENERGY_FLOOR = 1e-4
"""In (100 HU)² per coefficient: energies far below (1 HU)² are neither compared nor taken for signal or noise."""

GEOMETRIC_FLOOR = 1e-3
"""In (100 HU)²: a patch that errs by less than 3 HU is not pressed further."""

GEOMETRIC_SCALE = 0.1
"""Makes a geometric average change about as fast as an arithmetic one, which clipping of gradients is set for; ours."""

TARGET_NOISE_QUANTILE = 0.25
"""Where target energy over noise energy is least, a target holds noise alone; ours, that of the regions of `finegrain.evaluate`."""

KERNEL_PASSES = 0.01
"""A reconstruction kernel reaches as far as noise energy is above this share of its peak; ours."""


class DualDomainLoss(nn.Module):
    """MSE + λ · frequency term, of images in unit range; always computed in float32 or better.

    Args:
        config: λ, mode, block, band, and how patches are averaged.
        generator: draws the offset of the block grid at each call, so that no grid is favoured.

    Shape: output, target and inputs (b, 1, h, w) → scalar.
    """

    def __init__(self, config: LossConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.generator = config, generator
        n = config.dct_block
        chosen = config.coefficients()
        ring = ring_of(n)[chosen]
        alike = ring[:, None] == ring[None, :]
        self.basis: Tensor
        self.frequency: Tensor
        self.ring_mean: Tensor
        for name, values in (
            ("basis", np.kron(dct_matrix(n), dct_matrix(n))[chosen.ravel()].T),
            ("frequency", nyquist_fraction(n)[chosen]),
            ("ring_mean", alike / alike.sum(axis=0)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, output: Tensor, target: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The loss. `inputs`, what the network was given, is needed where `LossConfig.needs_inputs` says so."""
        with torch.autocast(output.device.type, enabled=False):
            dtype = torch.promote_types(output.dtype, self.basis.dtype)
            output, target = output.to(dtype) * UNIT, target.to(dtype) * UNIT
            error = (output - target).square().mean(dim=(1, 2, 3))
            if self.config.weight > 0:
                scaled = None if inputs is None else inputs.to(dtype) * UNIT
                error = error + self.config.weight * self.frequency_term(output, target, self._offset(), scaled)
            if self.config.average == "arithmetic":
                return error.mean()
            return GEOMETRIC_SCALE * (error + GEOMETRIC_FLOOR).log().mean()

    def frequency_term(self, output: Tensor, target: Tensor, offset: tuple[int, int], inputs: Tensor | None = None) -> Tensor:
        """The constraint on Ω_h, on one block grid, of images in units of 100 HU. Shape: (b, 1, h, w) each → (b,)."""
        weights = self.weights(target, inputs, offset) if self.config.needs_inputs else None
        if self.config.mode == "energy":
            ours, theirs = (self.pooled(self.coefficients(image, offset).square()) for image in (output, target))
            error = ((ours + ENERGY_FLOOR) / (theirs + ENERGY_FLOOR)).log().abs()
        else:
            # The transform is linear: one of the difference serves for both images.
            error = self.coefficients(output - target, offset).abs()
            if self.config.depends_on_place:
                error = self.pooled(error)
        return (error if weights is None else weights * error).mean(dim=(1, 2, 3))

    def coefficients(self, image: Tensor, offset: tuple[int, int]) -> Tensor:
        """Block DCT, as `finegrain.frequency.block_dct`, of the band. Shape: (b, 1, h, w) → (b, block_y, block_x, coefficient)."""
        n = self.config.dct_block
        b = len(image)
        rows, columns = (image.shape[2] - offset[0]) // n, (image.shape[3] - offset[1]) // n
        cut = image[:, 0, offset[0] : offset[0] + rows * n, offset[1] : offset[1] + columns * n]
        return cut.reshape(b, rows, n, columns, n).transpose(2, 3).reshape(b, rows, columns, n * n) @ self.basis

    def ring_energy(self, image: Tensor, offset: tuple[int, int]) -> Tensor:
        """Energy of each coefficient, averaged over those of like frequency. Shape: as `coefficients`."""
        return self.coefficients(image, offset).square() @ self.ring_mean

    @torch.no_grad()
    def weights(self, target: Tensor, inputs: Tensor | None, offset: tuple[int, int]) -> Tensor:
        """How much each coefficient counts at each place, 0 to 1 but for a band that follows the kernel, whose mean is 1.

        The noise N in a neighbourhood and ring of frequencies is the energy of input minus target. The target's own noise has the
        same spectrum and the same course over the image, so it is N times one number, which depends on the dose: the lower quartile
        of target energy over N within the image, for somewhere, if only at the highest frequencies, a target holds noise alone.
        The rest of the target's energy is the signal S. `adaptive` weighs by S / (S + N), the share of a coefficient that the
        input can tell; what it cannot tell would be drawn to zero. The gate asks whether the target's energy over the band stands
        above its own noise, as in the fine-texture regions of `finegrain.evaluate`; air does not, nor what lies outside the
        reconstruction circle. Weights are not made to sum to one: a patch without texture is to count for little.

        Shape: (b, 1, h, w) → (b, place_y, place_x, coefficient), places and coefficients 1 where they make no difference.
        Raises: ConfigError without `inputs`.
        """
        if inputs is None:
            raise ConfigError(
                "this loss reads the noise from input minus target, got no input; give it the input as third argument"
            )
        noise = self.ring_energy(inputs - target, offset)
        members = self._within_kernel(noise) if self.config.band_unit == "kernel" else torch.ones_like(noise[:, :1, :1])
        if not self.config.depends_on_place:
            return members
        noise, energy = self.pooled(noise), self.pooled(self.ring_energy(target, offset))
        own_noise = noise * target_noise_share(energy, noise)
        weights = members
        if self.config.mode == "adaptive":
            signal = (energy - own_noise).clamp(min=0)
            weights = weights * signal / (signal + noise + ENERGY_FLOOR)
        if self.config.smooth_gate > 0:
            excess = energy - self.config.smooth_gate * own_noise
            weights = weights * ((members * excess).sum(dim=-1, keepdim=True) > ENERGY_FLOOR)
        return weights

    def _within_kernel(self, noise: Tensor) -> Tensor:
        """Ω_h of each image as fractions of how far its kernel reaches. Shape: (b, block_y, block_x, k) → (b, 1, 1, k), mean 1."""
        energy = noise.mean(dim=(1, 2), keepdim=True)
        passes = energy >= KERNEL_PASSES * energy.amax(dim=-1, keepdim=True)
        along = self.frequency / (self.frequency * passes).amax(dim=-1, keepdim=True)
        low, high = self.config.band
        members = ((along >= low) & (along <= high)).to(noise.dtype)
        return members / members.mean(dim=-1, keepdim=True)

    def pooled(self, values: Tensor) -> Tensor:
        """Means over neighbourhoods of `pool_blocks`². Shape: (b, block_y, block_x, k) → (b, place_y, place_x, k)."""
        side = min(self.config.pool_blocks, *values.shape[1:3])
        return nn.functional.avg_pool2d(values.permute(0, 3, 1, 2), side, stride=1).permute(0, 2, 3, 1)

    def _offset(self) -> tuple[int, int]:
        row, column = torch.randint(self.config.dct_block, (2,), generator=self.generator).tolist()
        return row, column


def target_noise_share(energy: Tensor, noise: Tensor) -> Tensor:
    """The target's own noise over that of input minus target, of each image; dose / (1 − dose) where the noise was inserted.

    Args:
        energy: of the target, by place and coefficient.
        noise: likewise, of input minus target.

    Shape: (b, place_y, place_x, k) → (b, 1, 1, 1).
    """
    ratio = torch.where(noise > ENERGY_FLOOR, energy / noise, torch.nan).flatten(1)
    return ratio.nanquantile(TARGET_NOISE_QUANTILE, dim=1).nan_to_num()[:, None, None, None]
