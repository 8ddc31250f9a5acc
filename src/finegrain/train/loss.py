"""The dual-domain loss: mean squared error plus λ times a constraint on the high band of the block DCT.

With the paper's `coefficient` mode the sum over Ω_h becomes a mean, so that λ does not depend on image size. It does not by
itself keep high-frequency energy: an unpredictable coefficient is drawn to its median, which is zero. `energy` compares energies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finegrain.config import LossConfig
from finegrain.frequency import Band, dct_matrix

UNIT = 4095 / 100
"""Losses are computed on units of 100 HU, so that λ weighs terms of like size."""

ENERGY_FLOOR = 1e-4
"""Added to both energies, in (100 HU)² per coefficient: energies far below (1 HU)² are not compared."""


class DualDomainLoss(nn.Module):
    """MSE + λ · frequency term, of images in unit range.

    Args:
        config: λ, mode, block and band.
        generator: draws the offset of the block grid at each call, so that no grid is favoured.

    Shape: output and target (b, 1, h, w) → scalar.
    """

    def __init__(self, config: LossConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.generator = config, generator
        n = config.dct_block
        self.basis: Tensor
        self.band: Tensor
        self.register_buffer("basis", torch.tensor(dct_matrix(n), dtype=torch.float32))
        self.register_buffer("band", torch.from_numpy(Band(*config.band).mask(n)))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        output, target = output * UNIT, target * UNIT
        spatial = (output - target).square().mean()
        if self.config.weight == 0:
            return spatial
        return spatial + self.config.weight * self.frequency_term(output, target, self._offset())

    def frequency_term(self, output: Tensor, target: Tensor, offset: tuple[int, int]) -> Tensor:
        """The constraint on Ω_h, on one block grid."""
        if self.config.mode == "coefficient":
            # The transform is linear: one of the difference serves for both images.
            return self.coefficients(output - target, offset)[..., self.band].abs().mean()
        ours, theirs = (self._pooled_energy(image, offset) for image in (output, target))
        return ((ours + ENERGY_FLOOR) / (theirs + ENERGY_FLOOR)).log().abs().mean()

    def coefficients(self, image: Tensor, offset: tuple[int, int]) -> Tensor:
        """Block DCT, as `finegrain.frequency.block_dct`. Shape: (b, 1, h, w) → (b, block_y, block_x, u, v)."""
        n = self.config.dct_block
        b = len(image)
        rows, columns = (image.shape[2] - offset[0]) // n, (image.shape[3] - offset[1]) // n
        cut = image[:, 0, offset[0] : offset[0] + rows * n, offset[1] : offset[1] + columns * n]
        return self.basis @ cut.reshape(b, rows, n, columns, n).transpose(2, 3) @ self.basis.T

    def _pooled_energy(self, image: Tensor, offset: tuple[int, int]) -> Tensor:
        energy = self.coefficients(image, offset).square()[..., self.band].permute(0, 3, 1, 2)
        side = min(self.config.pool_blocks, *energy.shape[-2:])
        return nn.functional.avg_pool2d(energy, side, stride=1)

    def _offset(self) -> tuple[int, int]:
        row, column = torch.randint(self.config.dct_block, (2,), generator=self.generator).tolist()
        return row, column
