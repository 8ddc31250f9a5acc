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

from finegrain.acquisition import ACQUISITION_NUMBERS
from finegrain.errors import ConfigError

Family = Literal["convolution", "attention", "hybrid"]

WINDOW = 8
"""Side of a query window in tokens."""
MARGIN = 2
"""How far the keys of a window reach beyond it, in tokens: windows overlap, so that no seam lies between them."""
COARSE_MARGIN = 2
"""The same for the coarse keys, in coarse tokens of two by two."""
INSIDE = 30.0
"""Added to the logit of every key inside the image: one outside then weighs 10⁻¹³ of it, and its value is zero besides."""
NOISE_CHANNELS = 4
"""Channels of the noise map."""
CONTROL_CHANNELS = NOISE_CHANNELS + ACQUISITION_NUMBERS
"""Channels of what controls attention: the noise as estimated, and what is known of dose and kernel."""


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

    def forward(self, features: Tensor, control: Tensor | None) -> Tensor:
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

    def forward(self, features: Tensor, control: Tensor) -> Tensor:
        features = features + self.attention(self.norm_attention(features), control)
        return features + self.mlp(self.norm_mlp(features))


class HybridBlock(nn.Module):
    """A convolution for the local beside attention for the global; what is known of the noise says how much of each.

    The convolution sees every pixel, so that attention need not: its tokens are four pixels a side at either scale, joined from the
    features with overlap (Token2Token) and put back with it. That makes it reach twice as far at a quarter of the cost. The gate,
    and the temperature in `WindowAttention`, are the *dynamic attention control* of the CTLformer line: where the noise is high,
    the block may average over more and trust the local filter less.

    Args:
        joined: features along a side of a token: 2 at half resolution, 1 at a quarter.
    """

    def __init__(self, channels: int, heads: int, *, joined: int) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels)
        self.split = soft_split(channels) if joined == 2 else None
        self.join = soft_join(channels) if joined == 2 else None
        self.attention = WindowAttention(channels, heads)
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(CONTROL_CHANNELS, channels, 1)
        spent = parameter_count(self)
        self.mlp = _token_mlp(channels, budget=parameter_count(ConvolutionBlock(channels)) - spent)

    def forward(self, features: Tensor, control: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(control))
        local = self.project(functional.gelu(self.local(features), approximate="tanh"))
        tokens = self.norm_attention(features)
        if self.split is not None and self.join is not None:
            distant = self.join(self.attention(self.split(tokens), functional.avg_pool2d(control, 2)))
        else:
            distant = self.attention(tokens, control)
        features = features + (1 - gate) * local + gate * distant
        return features + self.mlp(features)


class WindowAttention(nn.Module):
    """Each 8 × 8 window of queries attends to tokens of two scales at once: the 12 × 12 around it, and coarser ones beyond.

    The coarse tokens are a soft split as in Token2Token attention, one for every 2 × 2, joined from 4 × 4 with overlap. Eight by
    eight of them show a window 16 × 16 of its own tokens. One softmax over both lets the scales compete for each query. The cost is
    linear in the number of pixels and the reach is finite, so that what is learned on patches holds on whole slices. The
    temperature of each head follows the local noise. Heights and widths must be multiples of WINDOW.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads = heads
        self.query = nn.Conv2d(channels, channels, 1)
        # A bias of the keys would move all logits of a query alike, one of the values is that of the projection: dead numbers both.
        self.key_value = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        self.temperature = nn.Conv2d(CONTROL_CHANNELS, heads, 1)
        nn.init.zeros_(self.temperature.weight)
        nn.init.zeros_(self.temperature.bias)  # type: ignore[arg-type]
        self.soft_split = soft_split(channels)
        self.position_bias = PositionBias(range(-MARGIN, WINDOW + MARGIN), heads)
        self.coarse_position_bias = PositionBias(range(-2 * COARSE_MARGIN, WINDOW + 2 * COARSE_MARGIN, 2), heads)

    def forward(self, features: Tensor, control: Tensor) -> Tensor:
        # Channels last inside: windows are then cut in whole rows of channels, which is what an engine can copy fast.
        b, c, h, w = features.shape
        d = c // self.heads
        tokens = features.permute(0, 2, 3, 1)
        coarse_tokens = self.soft_split(features).permute(0, 2, 3, 1)
        query = functional.linear(tokens, self.query.weight.flatten(1), self.query.bias).unflatten(-1, (self.heads, d))
        temperature = torch.exp(self.temperature(control)).permute(0, 2, 3, 1).unsqueeze(-1)
        # One more channel of each head: INSIDE in the query, 1 in the keys, but 0 in those that padding adds outside the image.
        query = functional.pad(query * (temperature / math.sqrt(d)), (0, 1), value=INSIDE)
        queries = query_windows(query.flatten(3)).unflatten(-1, (self.heads, d + 1)).transpose(1, 2)

        weight = self.key_value.weight.flatten(1)
        weight = torch.cat([functional.pad(weight[:c].unflatten(0, (self.heads, d)), (0, 0, 0, 1)).flatten(0, 1), weight[c:]])
        inside = functional.pad(weight.new_zeros(self.heads, d), (0, 1), value=1.0).flatten()
        offset = functional.pad(inside, (0, c))
        windows = torch.cat(
            [
                key_windows(functional.linear(scale, weight, offset), window=window, margin=margin)
                for scale, window, margin in ((tokens, WINDOW, MARGIN), (coarse_tokens, WINDOW // 2, COARSE_MARGIN))
            ],
            dim=1,
        )
        keys, values = windows.split([self.heads * (d + 1), c], dim=-1)
        keys = keys.unflatten(-1, (self.heads, d + 1)).transpose(1, 2).transpose(-2, -1)
        values = values.unflatten(-1, (self.heads, d)).transpose(1, 2)

        bias = torch.cat([self.position_bias(), self.coarse_position_bias()], dim=-1)
        mixed = torch.softmax(queries @ keys + bias, dim=-1) @ values
        mixed = mixed.transpose(1, 2).reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
        mixed = mixed.transpose(2, 3).reshape(b, h, w, c)
        mixed = functional.linear(mixed, self.project.weight.flatten(1), self.project.bias)
        return mixed.permute(0, 3, 1, 2)


class PositionBias(nn.Module):
    """What the logit of a key gains by where it lies from the query: a learned number for each row and each column between them.

    Args:
        places: row numbers, and column numbers, of the keys; the queries are at 0 … WINDOW − 1.
        heads: each learns its own.
    """

    def __init__(self, places: range, heads: int) -> None:
        super().__init__()
        least = places[0] - (WINDOW - 1)
        self.bias = nn.Parameter(torch.zeros(2, heads, places[-1] - least + 1))
        self.between: Tensor
        between = torch.tensor([[place - query - least for place in places] for query in range(WINDOW)])
        self.register_buffer("between", between, persistent=False)

    def forward(self) -> Tensor:
        """Shape: (heads, query, key)."""
        rows, columns = self.bias[..., self.between]  # (heads, query row, key row) each
        both = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        return both.flatten(3, 4).flatten(1, 2)


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


def make_block(family: Family, channels: int, heads: int, *, joined: int) -> nn.Module:
    """A block of the family. `joined` as for `HybridBlock`; the others have no use for it."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "convolution": lambda: ConvolutionBlock(channels),
        "attention": lambda: AttentionBlock(channels, heads),
        "hybrid": lambda: HybridBlock(channels, heads, joined=joined),
    }
    return makers[family]()


def soft_split(channels: int) -> nn.Conv2d:
    """A token for every 2 × 2, joined from the 4 × 4 around them channel by channel; at first their mean."""
    split = nn.Conv2d(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
    nn.init.constant_(split.weight, 1 / 16)
    return split


def soft_join(channels: int) -> nn.ConvTranspose2d:
    """The way back from `soft_split`; at first linear interpolation between tokens."""
    join = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
    tent = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    with torch.no_grad():
        join.weight.copy_(torch.outer(tent, tent).expand_as(join.weight))
    return join


def query_windows(tokens: Tensor) -> Tensor:
    """Shape: (b, h, w, c) → (b · windows, WINDOW², c)."""
    b, h, w, c = tokens.shape
    tokens = tokens.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return tokens.transpose(2, 3).reshape(-1, WINDOW * WINDOW, c)


def key_windows(tokens: Tensor, *, window: int, margin: int) -> Tensor:
    """Overlapping windows of a map that is zero outside, cut by slices alone so that it exports to any engine.

    Shape: (b, h, w, c) → (b · windows, (window + 2 margin)², c).
    """
    b, h, w, c = tokens.shape
    piece = math.gcd(window, 2 * margin)
    step, n = window // piece, (window + 2 * margin) // piece
    padded = functional.pad(tokens, (0, 0, *(margin,) * 4))
    pieces = padded.reshape(b, (h + 2 * margin) // piece, piece, (w + 2 * margin) // piece, piece * c)
    down, across = (length // window * step for length in (h, w))
    rows = torch.cat([pieces[:, i : i + down : step] for i in range(n)], dim=2)
    both = torch.cat([rows[:, :, :, i : i + across : step] for i in range(n)], dim=4)
    # b, window_y, y in window, window_x, x in window and channel
    return both.transpose(2, 3).reshape(-1, (window + 2 * margin) ** 2, c)


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
