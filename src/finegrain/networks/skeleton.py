"""One macro-skeleton for all networks: same scales, same depth, same stem and head; only the blocks differ."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from finegrain.acquisition import ACQUISITION_NUMBERS
from finegrain.config import Config, NetworkConfig
from finegrain.hu import HURange
from finegrain.networks.blocks import NoiseEstimator, make_block

STRIDE = 32
"""Heights and widths are filled up to a multiple of this: four pixels a token at the coarse scale, eight tokens a window."""

FEATURE_HU = 100.0
"""HU that make one unit inside the network: noise and soft-tissue contrast then come as numbers near one."""


MEAN_SIDE = 9
"""Side in pixels of the neighbourhood whose mean the second input channel is relative to; a default, taken from nowhere."""
LEAST_NOISE = 1e-3
"""Added to the noise that the second input channel is divided by, in units of FEATURE_HU: a tenth of an HU."""
SCALE_SIDE = 9
"""Side in pixels of the two boxes, one after the other, that `noise_scale` averages over; a default, taken from nowhere."""
ROUGHEST = 1.0
"""What is rougher than this, in units of FEATURE_HU, is an edge and counts as this. Without it, and with one box, metal inserts
in noise had a square ring around them, noisier than the input."""
MOST_RELATIVE = 8.0
"""What differs more from the local mean, in units of the noise there, is an edge and counts as this."""


class ImageNetwork(nn.Module):
    """What can be trained: called with an image in unit range and with what is known of the scan, gives the image denoised.

    Attributes:
        config: what the network was built from; its hash tells one network from another.
        hu_range: HU that the network sees as [0, 1].

    Shape: image (b, 1, h, w) of any size, kept; acquisition (b, 4), as `Acquisition.numbers`.
    """

    config: Config
    hu_range: HURange


class DenoisingNetwork(ImageNetwork):
    """Unit range in, unit range out: the input plus a residual.

    Full-resolution stem and head; blocks at half and at quarter resolution, joined by skips. The tokens of the blocks are cut from
    the full resolution with overlap, the soft split of Token2Token attention, and put back with it. All families alike see the
    image a second time relative to its local noise, and give their residual in units of it: one network then serves all doses.

    `acquisition` is what is known of the scan, as `Acquisition.numbers`; None or zeros if nothing is. The convolution family has no
    use for it.

    Shape: (b, 1, h, w) → (b, 1, h, w); acquisition (b, 4).
    """

    def __init__(self, config: NetworkConfig, hu_range: HURange | None = None) -> None:
        super().__init__()
        self.config: NetworkConfig = config
        self.hu_range = hu_range or HURange()
        full, half, quarter = config.channels
        first, middle, last = config.blocks
        # Only attention is steered by the noise; a filter bank that nothing reads would be dead parameters.
        self.noise = None if config.family == "convolution" else NoiseEstimator()
        self.stem = nn.Conv2d(2, full, 3, padding=1)
        self.to_half = nn.Conv2d(full, half, 4, stride=2, padding=1)
        self.encoder = nn.ModuleList(make_block(config.family, half, config.heads[0], joined=2) for _ in range(first))
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.middle = nn.ModuleList(make_block(config.family, quarter, config.heads[1], joined=1) for _ in range(middle))
        self.from_quarter = nn.ConvTranspose2d(quarter, half, 2, stride=2)
        self.decoder = nn.ModuleList(make_block(config.family, half, config.heads[0], joined=2) for _ in range(last))
        self.from_half = nn.ConvTranspose2d(half, full, 4, stride=2, padding=1)
        self.head = nn.Sequential(
            nn.GELU(approximate="tanh"),
            nn.Conv2d(full, full, 3, padding=1),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(full, 1, 3, padding=1),
        )
        # Start as the identity: an untrained network changes nothing.
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, acquisition: Tensor | None = None) -> Tensor:
        rows, columns = image.shape[-2:]
        if rows % STRIDE or columns % STRIDE:
            filled = functional.pad(image, (0, -columns % STRIDE, 0, -rows % STRIDE), mode="replicate")
            return self(filled, acquisition)[..., :rows, :columns]
        scale = self.hu_range.span / FEATURE_HU
        scaled = (image + self.hu_range.low / self.hu_range.span) * scale
        half_control, quarter_control = self._control(scaled, acquisition)
        noise = noise_scale(scaled)
        relative = ((scaled - local_mean(scaled)) / (noise + LEAST_NOISE)).clamp(-MOST_RELATIVE, MOST_RELATIVE)
        fine = self.stem(torch.cat([scaled, relative], dim=1))
        half = self.to_half(functional.gelu(fine, approximate="tanh"))
        for block in self.encoder:
            half = block(half, half_control)
        quarter = self.to_quarter(half)
        for block in self.middle:
            quarter = block(quarter, quarter_control)
        half = half + self.from_quarter(quarter)
        for block in self.decoder:
            half = block(half, half_control)
        return image + self.head(fine + self.from_half(half)) * noise / scale

    def _control(self, scaled: Tensor, acquisition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What steers attention at half and at quarter resolution: the noise estimated there, and what is known of the scan."""
        if self.noise is None:
            return None, None
        if acquisition is None:
            acquisition = scaled.new_zeros(scaled.shape[0], ACQUISITION_NUMBERS)
        half, quarter = (
            torch.cat([noise, acquisition[:, :, None, None].expand(-1, -1, *noise.shape[-2:])], dim=1)
            for noise in (self.noise(scaled, 2), self.noise(scaled, 4))
        )
        return half, quarter


def local_mean(image: Tensor) -> Tensor:
    """Mean over MEAN_SIDE² pixels around each. Shape: (b, 1, h, w), kept."""
    return functional.avg_pool2d(functional.pad(image, (MEAN_SIDE // 2,) * 4, mode="replicate"), MEAN_SIDE, stride=1)


def noise_scale(image: Tensor) -> Tensor:
    """Local RMS of what changes from pixel to pixel: the unit of the residual, so that a flat image comes back as it was.

    Shape: (b, 1, h, w), kept.
    """
    rough = image - functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    energy = rough.clamp(-ROUGHEST, ROUGHEST).square()
    for shape in ((SCALE_SIDE, 1), (1, SCALE_SIDE)) * 2:
        padding = shape[0] // 2, shape[1] // 2
        energy = functional.avg_pool2d(energy, shape, stride=1, padding=padding, count_include_pad=False)
    return torch.sqrt(energy + 1e-12)


def build_network(config: NetworkConfig, *, seed: int) -> DenoisingNetwork:
    """A freshly initialised network; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenoisingNetwork(config)


def count_macs(network: ImageNetwork, *, size: int) -> int:
    """Multiply-accumulates for one size × size slice: convolutions and matrix products, the elementwise rest left out."""
    shadow = deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.zeros(1, 1, size, size, device="meta"))
    return counter.get_total_flops() // 2
