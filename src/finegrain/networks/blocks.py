"""The three block families that the paper compares: convolution, attention, and both side by side (hybrid).

Every block keeps shape (b, c, h, w) and takes the noise map of `NoiseEstimator` beside the features; within a family set, blocks
of one width have the same number of parameters to within one hidden unit of the token MLP, so that a comparison compares ideas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from finegrain.errors import ConfigError

Family = Literal["convolution", "attention", "hybrid"]

WINDOW = 8
"""Side of a query window in tokens."""
MARGIN = 2
"""How far the keys of a window reach beyond it, in tokens: windows overlap, so that no seam lies between them."""
NOISE_CHANNELS = 4
"""Channels of the noise map."""


class NoiseEstimator(nn.Module):
    """How noisy the input is, and where: log energy of learned high-pass filters over a neighbourhood of 32 pixels.

    Local, so that it is the same for a whole slice and for a tile of it.

    Shape: (b, 1, h, w) → (b, NOISE_CHANNELS, h / stride, w / stride).
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, NOISE_CHANNELS, 3, padding=1, padding_mode="replicate", bias=False)

    def forward(self, image: Tensor, stride: int) -> Tensor:
        weight = self.filters.weight
        response = functional.conv2d(
            functional.pad(image, (1, 1, 1, 1), mode="replicate"), weight - weight.mean(dim=(2, 3), keepdim=True)
        )
        energy = functional.avg_pool2d(response.square(), stride)
        side = max(3, 32 // stride + 1)
        energy = functional.avg_pool2d(energy, side, stride=1, padding=side // 2, count_include_pad=False)
        return torch.log(energy + 1e-4)


class ConvolutionBlock(nn.Module):
    """Two 3 × 3 convolutions on a residual path: 18 c² + 2 c parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, noise: Tensor | None) -> Tensor:
        return features + self.second(functional.gelu(self.first(features), approximate="tanh"))


class AttentionBlock(nn.Module):
    """Overlapping-window attention, then a token MLP, each on a residual path; nothing but attention mixes pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels)
        self.attention = WindowAttention(channels, heads)
        self.norm_mlp = ChannelNorm(channels)
        spent = parameter_count(self)
        self.mlp = _token_mlp(channels, budget=parameter_count(ConvolutionBlock(channels)) - spent)

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        features = features + self.attention(self.norm_attention(features), noise)
        return features + self.mlp(self.norm_mlp(features))


class HybridBlock(nn.Module):
    """A convolution for the local beside attention for the global; the noise map says how much of each.

    That gate, and the temperature in `WindowAttention`, are the *dynamic attention control* of the CTLformer line: where the
    noise is high, the block may average over more and trust the local filter less.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels)
        self.attention = WindowAttention(channels, heads)
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(NOISE_CHANNELS, channels, 1)
        spent = parameter_count(self)
        self.mlp = _token_mlp(channels, budget=parameter_count(ConvolutionBlock(channels)) - spent)

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(noise))
        local = self.project(functional.gelu(self.local(features), approximate="tanh"))
        features = features + (1 - gate) * local + gate * self.attention(self.norm_attention(features), noise)
        return features + self.mlp(features)


class WindowAttention(nn.Module):
    """Each 8 × 8 window of queries attends to the 12 × 12 keys around it.

    Linear in the number of pixels and local, so that what is learned on patches holds on whole slices. The temperature of each
    head follows the local noise. Heights and widths must be multiples of WINDOW.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads = heads
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.temperature = nn.Conv2d(NOISE_CHANNELS, heads, 1)
        nn.init.zeros_(self.temperature.weight)
        nn.init.zeros_(self.temperature.bias)  # type: ignore[arg-type]
        reach = WINDOW + MARGIN
        self.position_bias = nn.Parameter(torch.zeros(heads, (2 * reach - 1) ** 2))
        query = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"), -1).reshape(-1, 2)
        side = torch.arange(-MARGIN, WINDOW + MARGIN)
        key = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
        offset = key[None] - query[:, None] + reach - 1
        self.register_buffer("offset", offset[..., 0] * (2 * reach - 1) + offset[..., 1], persistent=False)

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        b, c, h, w = features.shape
        d = c // self.heads
        query, key, value = self.query_key_value(features).chunk(3, dim=1)
        query = query * (torch.exp(self.temperature(noise)) / math.sqrt(d)).repeat_interleave(d, dim=1)
        inside = functional.pad(torch.ones_like(features[:1, :1]), (MARGIN,) * 4)
        outside = key_windows(inside).flatten(2) * 1e4 - 1e4

        queries = query_windows(query).reshape(-1, WINDOW * WINDOW, self.heads, d).transpose(1, 2)
        keys = key_windows(functional.pad(key, (MARGIN,) * 4)).unflatten(2, (self.heads, d))
        values = key_windows(functional.pad(value, (MARGIN,) * 4)).unflatten(2, (self.heads, d))
        n_keys = (WINDOW + 2 * MARGIN) ** 2
        keys = keys.reshape(-1, self.heads, d, n_keys)
        values = values.reshape(-1, self.heads, d, n_keys)
        logits = queries @ keys
        bias = self.position_bias[:, self.offset.reshape(-1)].reshape(self.heads, WINDOW * WINDOW, n_keys)  # type: ignore[operator]
        logits = logits.unflatten(0, (b, -1)) + bias + outside.reshape(1, -1, 1, 1, n_keys)
        mixed = torch.softmax(logits, dim=-1).flatten(0, 1) @ values.transpose(-2, -1)
        mixed = mixed.transpose(1, 2).reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
        return self.project(mixed.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        centred = features - features.mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6) * self.weight + self.bias


def make_block(family: Family, channels: int, heads: int) -> nn.Module:
    """A block of the family."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "convolution": lambda: ConvolutionBlock(channels),
        "attention": lambda: AttentionBlock(channels, heads),
        "hybrid": lambda: HybridBlock(channels, heads),
    }
    return makers[family]()


def query_windows(tokens: Tensor) -> Tensor:
    """Shape: (b, c, h, w) → (b · windows, WINDOW², c)."""
    b, c, h, w = tokens.shape
    tokens = tokens.reshape(b, c, h // WINDOW, WINDOW, w // WINDOW, WINDOW)
    return tokens.permute(0, 2, 4, 3, 5, 1).reshape(-1, WINDOW * WINDOW, c)


def key_windows(padded: Tensor) -> Tensor:
    """Overlapping windows of an already padded map, cut by slices alone so that it exports to any engine.

    Shape: (b, c, h + 2 MARGIN, w + 2 MARGIN) → (b, windows, c, (WINDOW + 2 MARGIN)²).
    """
    piece = 2 * MARGIN
    n = WINDOW // piece
    b, c, h, w = padded.shape
    pieces = padded.reshape(b, c, h // piece, piece, w // piece, piece)
    last = h // piece - n, w // piece - n
    rows = torch.stack([pieces[:, :, i : last[0] + i : n] for i in range(n + 1)], dim=3)
    both = torch.stack([rows[:, :, :, :, :, i : last[1] + i : n] for i in range(n + 1)], dim=6)
    # b c window_y part_y piece_y window_x part_x piece_x
    return both.permute(0, 2, 5, 1, 3, 4, 6, 7).flatten(1, 2).flatten(3).reshape(b, -1, c, (WINDOW + piece) ** 2)


def parameter_count(module: nn.Module) -> int:
    """Learned numbers in a module."""
    return sum(p.numel() for p in module.parameters())


def _token_mlp(channels: int, *, budget: int) -> nn.Module:
    """A two-layer MLP on each token, with as many hidden units as the parameter budget pays for.

    Raises: ConfigError if it pays for none.
    """
    hidden = round((budget - channels) / (2 * channels + 1))
    if hidden < 1:
        raise ConfigError(f"no parameters are left for the token MLP at {channels} channels; use more channels")
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(approximate="tanh"), nn.Conv2d(hidden, channels, 1))
