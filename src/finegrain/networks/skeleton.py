"""One macro-skeleton for all networks: same scales, same depth, same stem and head; only the blocks differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from finegrain.config import NetworkConfig
from finegrain.hu import HURange
from finegrain.networks.blocks import NoiseEstimator, make_block

STRIDE = 32
"""Heights and widths must be multiples of this: four pixels a token at the coarse scale, eight tokens a window."""

FEATURE_HU = 100.0
"""HU that make one unit inside the network: noise and soft-tissue contrast then come as numbers near one."""


class DenoisingNetwork(nn.Module):
    """Unit range in, unit range out: the input plus a residual.

    Full-resolution stem and head; blocks at half and at quarter resolution, joined by skips. The 2 × 2 embedding between scales
    is the soft split of Token2Token attention, and the same for all families.

    Shape: (b, 1, h, w) → (b, 1, h, w), h and w multiples of STRIDE.
    """

    def __init__(self, config: NetworkConfig, hu_range: HURange | None = None) -> None:
        super().__init__()
        self.config, self.hu_range = config, hu_range or HURange()
        full, half, quarter = config.channels
        first, middle, last = config.blocks
        # Only attention is steered by the noise; a filter bank that nothing reads would be dead parameters.
        self.noise = None if config.family == "convolution" else NoiseEstimator()
        self.stem = nn.Conv2d(1, full, 3, padding=1)
        self.to_half = nn.Conv2d(full, half, 2, stride=2)
        self.encoder = nn.ModuleList(make_block(config.family, half, config.heads[0]) for _ in range(first))
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.middle = nn.ModuleList(make_block(config.family, quarter, config.heads[1]) for _ in range(middle))
        self.from_quarter = nn.ConvTranspose2d(quarter, half, 2, stride=2)
        self.decoder = nn.ModuleList(make_block(config.family, half, config.heads[0]) for _ in range(last))
        self.from_half = nn.ConvTranspose2d(half, full, 2, stride=2)
        self.head = nn.Sequential(
            nn.GELU(approximate="tanh"),
            nn.Conv2d(full, full, 3, padding=1),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(full, 1, 3, padding=1),
        )
        # Start as the identity: an untrained network changes nothing.
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        scale = self.hu_range.span / FEATURE_HU
        scaled = (image + self.hu_range.low / self.hu_range.span) * scale
        noise_half, noise_quarter = (None, None) if self.noise is None else (self.noise(scaled, 2), self.noise(scaled, 4))
        fine = self.stem(scaled)
        half = self.to_half(functional.gelu(fine, approximate="tanh"))
        for block in self.encoder:
            half = block(half, noise_half)
        quarter = self.to_quarter(half)
        for block in self.middle:
            quarter = block(quarter, noise_quarter)
        half = half + self.from_quarter(quarter)
        for block in self.decoder:
            half = block(half, noise_half)
        return image + self.head(fine + self.from_half(half)) / scale


def build_network(config: NetworkConfig, *, seed: int) -> DenoisingNetwork:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenoisingNetwork(config)


def count_macs(network: DenoisingNetwork, *, size: int) -> int:
    """Multiply-accumulates for one size × size slice: convolutions and matrix products, the elementwise rest left out."""
    shadow = DenoisingNetwork(network.config, network.hu_range).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.zeros(1, 1, size, size, device="meta"))
    return counter.get_total_flops() // 2
