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
INSIDE = 30.0
"""Added to the logit of every key inside the image: one outside then weighs 10⁻¹³ of it, and its value is zero besides."""
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
        for shape in ((side, 1), (1, side)):  # a box is separable, and so is the count of its pixels inside the image
            padding = shape[0] // 2, shape[1] // 2
            energy = functional.avg_pool2d(energy, shape, stride=1, padding=padding, count_include_pad=False)
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
        self.offset: Tensor
        self.register_buffer("offset", offset[..., 0] * (2 * reach - 1) + offset[..., 1], persistent=False)

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        # Channels last inside: windows are then cut in whole rows of channels, which is what an engine can copy fast.
        b, c, h, w = features.shape
        d = c // self.heads
        tokens = features.permute(0, 2, 3, 1)
        weight, offset = self.query_key_value.weight.flatten(1), self.query_key_value.bias
        assert offset is not None
        query = functional.linear(tokens, weight[:c], offset[:c]).unflatten(-1, (self.heads, d))
        temperature = torch.exp(self.temperature(noise)).permute(0, 2, 3, 1).unsqueeze(-1)
        # One more channel of each head: INSIDE in the query, 1 in the keys, but 0 in those that padding adds outside the image.
        query = functional.pad(query * (temperature / math.sqrt(d)), (0, 1), value=INSIDE)
        queries = query_windows(query.flatten(3)).unflatten(-1, (self.heads, d + 1)).transpose(1, 2)

        key_weight = functional.pad(weight[c : 2 * c].unflatten(0, (self.heads, d)), (0, 0, 0, 1)).flatten(0, 1)
        key_offset = functional.pad(offset[c : 2 * c].unflatten(0, (self.heads, d)), (0, 1), value=1.0).flatten()
        key_value = functional.linear(tokens, torch.cat([key_weight, weight[2 * c :]]), torch.cat([key_offset, offset[2 * c :]]))
        windows = key_windows(functional.pad(key_value, (0, 0, *(MARGIN,) * 4)))
        keys, values = windows.split([self.heads * (d + 1), c], dim=-1)
        keys = keys.unflatten(-1, (self.heads, d + 1)).transpose(1, 2).transpose(-2, -1)
        values = values.unflatten(-1, (self.heads, d)).transpose(1, 2)

        n_keys = (WINDOW + 2 * MARGIN) ** 2
        bias = self.position_bias[:, self.offset.reshape(-1)].reshape(self.heads, WINDOW * WINDOW, n_keys)
        mixed = torch.softmax(queries @ keys + bias, dim=-1) @ values
        mixed = mixed.transpose(1, 2).reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
        mixed = mixed.transpose(2, 3).reshape(b, h, w, c)
        mixed = functional.linear(mixed, self.project.weight.flatten(1), self.project.bias)
        return mixed.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        tokens = features.permute(0, 2, 3, 1)
        normed = functional.layer_norm(tokens, (channels,), self.weight.flatten(), self.bias.flatten(), eps=1e-6)
        return normed.permute(0, 3, 1, 2)


def make_block(family: Family, channels: int, heads: int) -> nn.Module:
    """A block of the family."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "convolution": lambda: ConvolutionBlock(channels),
        "attention": lambda: AttentionBlock(channels, heads),
        "hybrid": lambda: HybridBlock(channels, heads),
    }
    return makers[family]()


def query_windows(tokens: Tensor) -> Tensor:
    """Shape: (b, h, w, c) → (b · windows, WINDOW², c)."""
    b, h, w, c = tokens.shape
    tokens = tokens.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return tokens.transpose(2, 3).reshape(-1, WINDOW * WINDOW, c)


def key_windows(padded: Tensor) -> Tensor:
    """Overlapping windows of an already padded map, cut by slices alone so that it exports to any engine.

    Shape: (b, h + 2 MARGIN, w + 2 MARGIN, c) → (b · windows, (WINDOW + 2 MARGIN)², c).
    """
    piece = 2 * MARGIN
    n = WINDOW // piece
    b, h, w, c = padded.shape
    pieces = padded.reshape(b, h // piece, piece, w // piece, piece * c)
    last = h // piece - n, w // piece - n
    rows = torch.cat([pieces[:, i : last[0] + i : n] for i in range(n + 1)], dim=2)
    both = torch.cat([rows[:, :, :, i : last[1] + i : n] for i in range(n + 1)], dim=4)
    # b, window_y, y in window, window_x, x in window and channel
    return both.transpose(2, 3).reshape(-1, (WINDOW + piece) ** 2, c)


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
