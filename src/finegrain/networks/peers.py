"""Networks of others, written from their papers, that the trainer trains as it trains ours: comparators for a study."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from finegrain.config import Config
from finegrain.hu import HURange
from finegrain.networks.skeleton import ImageNetwork


class PeerConfig(Config):
    """A network of others, and how wide it is."""

    name: Literal["red-cnn", "resnet", "ctformer"]
    widths: tuple[int, ...]


class Peer(ImageNetwork):
    """What the trainer trains, as its authors made it. Shape: (b, 1, h, w) → (b, 1, h, w), both in unit range."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.config, self.hu_range = config, HURange()

    def forward(self, image: Tensor, acquisition: Tensor | None = None) -> Tensor:
        """The denoised image; what is known of the scan, (b, 4), is ignored, for the papers know nothing of it."""
        return self.denoise(image)

    def denoise(self, image: Tensor) -> Tensor:
        """The denoised image."""
        raise NotImplementedError


class REDCNN(Peer):
    """Five convolutions and five transposed convolutions of 5 × 5 without padding, three shortcuts; any size above 20 pixels.

    It sees the unit range as it comes, which suits its last ReLU: nothing is darker than −1024 HU. Filters start as PyTorch starts
    them.

    Source: Chen et al. 2017, IEEE Trans Med Imaging 36:2524.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__(PeerConfig(name="red-cnn", widths=(channels,)))
        widths = [1] + [channels] * 5
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 5) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(a, b, 5) for a, b in pairwise(reversed(widths)))

    def denoise(self, image: Tensor) -> Tensor:
        features, kept = image, []
        for depth, layer in enumerate(self.encoder):
            if depth % 2 == 0:
                kept.append(features)
            features = torch.relu(layer(features))
        for depth, layer in enumerate(self.decoder):
            features = layer(features)
            if depth % 2 == 0:
                features = features + kept.pop()
            features = torch.relu(features)
        return features


BENCHMARK_MEAN_HU, BENCHMARK_SD_HU = 481.454 - 1024, 502.185
"""Of the training slices of ldct-benchmark, by which it scales what its networks see (its info.yml, in HU + 1024)."""


class ResNet(Peer):
    """Noise taken from the image by residual blocks with batch normalisation; any size. No pooling: each block sees every pixel.

    Scaled inside to mean 0 and SD 1 as in the benchmark.

    Source: the method `resnet` of ldct-benchmark (Eulig et al. 2024, Med Phys 51:8776).
    """

    def __init__(self, channels: int = 128, blocks: int = 10) -> None:
        super().__init__(PeerConfig(name="resnet", widths=(channels, blocks)))
        self.first = nn.Conv2d(1, channels, 9, padding=4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, groups=8),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(channels, 1, 3, padding=1)

    def denoise(self, image: Tensor) -> Tensor:
        scale = self.hu_range.span / BENCHMARK_SD_HU
        features = self.first((image - (BENCHMARK_MEAN_HU - self.hu_range.low) / self.hu_range.span) * scale)
        for block in self.blocks:
            features = features + block(features)
        return image - self.last(features) / scale


TILE, KEPT = 64, 32
"""Side of the patches that CTformer sees, and of the middle that is kept of each where they overlap, in pixels."""
MARGIN = (TILE - KEPT) // 2
TILES_AT_ONCE = 64
"""Patches of a whole slice that go through CTformer together: more would only take memory."""
SHIFT = 2
"""Tokens by which CTformer shifts its maps, cyclically."""
HEADS = 8


class CTformer(Peer):
    """Noise taken from the image by attention alone: soft splits of a 64² patch into 29², 25² and 23² tokens, and back.

    Patches of 64² are seen whole, but for the last row and column, which no split reaches. Any other size goes in overlapping
    patches, of which the middle 32² is kept; around the image is air. All as the authors' program does it: linear attention by
    random features in the four stages, one block of full attention in between, cyclic shifts by two tokens between stages, a
    dilated second split, fixed sine positions, unit range. Left out are 65,064 parameters that the program carries and nothing
    reads (a classifier and its token: with them it is the 1.447 M that is published), and its dropout of 10 %, so that training
    resumes to the same bits.

    Source: Wang et al. 2023, Phys Med Biol 68:065012. Yuan et al. 2021, ICCV (Token2Token).
    """

    def __init__(self, token: int = 64, embedding: int = 64) -> None:
        super().__init__(PeerConfig(name="ctformer", widths=(token, embedding)))
        self.splits = [{"kernel_size": 7, "stride": 2}, {"kernel_size": 3, "dilation": 2}, {"kernel_size": 3}]
        self.sides = [TILE, 29, 25, 23]
        self.encoder = nn.ModuleList([LinearAttentionStage(49, token), LinearAttentionStage(9 * token, token)])
        self.embed = nn.Linear(9 * token, embedding)
        self.position: Tensor
        self.register_buffer("position", sine_positions(self.sides[3] ** 2, embedding), persistent=False)
        self.block = AttentionBlock(embedding)
        self.norm = nn.LayerNorm(embedding)
        self.unembed = nn.Linear(embedding, 9 * token)
        self.decoder = nn.ModuleList([LinearAttentionStage(token, 9 * token), LinearAttentionStage(token, 49)])
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def denoise(self, image: Tensor) -> Tensor:
        if image.shape[2:] == (TILE, TILE):
            return image - self.noise(image)
        b, _, h, w = image.shape
        rows, columns = -(-h // KEPT), -(-w // KEPT)
        around = (MARGIN, MARGIN + columns * KEPT - w, MARGIN, MARGIN + rows * KEPT - h)
        tiles = functional.pad(image, around).unfold(2, TILE, KEPT).unfold(3, TILE, KEPT).reshape(-1, 1, TILE, TILE)
        middle = slice(MARGIN, MARGIN + KEPT)
        noise = torch.cat([self.noise(some)[:, 0, middle, middle] for some in tiles.split(TILES_AT_ONCE)])
        noise = noise.reshape(b, rows, columns, KEPT, KEPT).transpose(2, 3).reshape(b, 1, rows * KEPT, columns * KEPT)
        return image - noise[:, :, :h, :w]

    def noise(self, patch: Tensor) -> Tensor:
        """What is to be taken from patches of 64². Shape: (b, 1, 64, 64) kept."""
        tokens, kept = functional.unfold(patch, **self.splits[0]).transpose(1, 2), []
        for depth, stage in enumerate(self.encoder, start=1):
            tokens = stage(tokens)
            kept.append(tokens)
            side = self.sides[depth]
            features = tokens.transpose(1, 2).unflatten(2, (side, side)).roll((SHIFT, SHIFT), (2, 3))
            tokens = functional.unfold(features, **self.splits[depth]).transpose(1, 2)
        tokens = self.unembed(self.norm(self.block(self.embed(tokens) + self.position)))
        for depth, stage in zip((2, 1), self.decoder, strict=True):
            side = self.sides[depth]
            features = functional.fold(tokens.transpose(1, 2), (side, side), **self.splits[depth])
            features = features.roll((-SHIFT, -SHIFT), (2, 3))
            tokens = stage(features.flatten(2).transpose(1, 2) + kept.pop())
        return functional.fold(tokens.transpose(1, 2), (TILE, TILE), **self.splits[0])


class LinearAttentionStage(nn.Module):
    """Attention over all tokens at linear cost, by positive random features, then a token MLP.

    Shape: (b, n, before) → (b, n, after).
    Source: Choromanski et al. 2021, ICLR (Performer), lemma 1; the place of the shortcut as in Token2Token.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(before)
        self.key_query_value = nn.Linear(before, 3 * after)
        self.project = nn.Linear(after, after)
        self.norm_mlp = nn.LayerNorm(after)
        self.mlp = nn.Sequential(nn.Linear(after, after), nn.GELU(), nn.Linear(after, after))
        n = after // 2
        self.directions: Tensor
        self.register_buffer("directions", nn.init.orthogonal_(torch.empty(n, after)) * math.sqrt(n))

    def forward(self, tokens: Tensor) -> Tensor:
        key, query, value = self.key_query_value(self.norm(tokens)).chunk(3, dim=-1)
        with torch.autocast("cuda" if tokens.is_cuda else "cpu", enabled=False):  # an exponential of squares does not bear bfloat16
            mixed = self.attend(query.float(), key.float(), value.float())
        tokens = value + self.project(mixed)
        return tokens + self.mlp(self.norm_mlp(tokens))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Σ φ(q)·φ(k) v / Σ φ(q)·φ(k). Shape: (b, n, after) kept.

        Each query's largest exponent and the largest of all keys are taken off, which the quotient does not feel: exponentials
        of long vectors overflow or vanish, as they do in Token2Token's program.
        """
        of_query, of_key = self.exponents(query), self.exponents(key)
        query = torch.exp(of_query - of_query.amax(2, keepdim=True))
        key = torch.exp(of_key - of_key.amax((1, 2), keepdim=True))
        return query @ (key.transpose(1, 2) @ value) / (query @ key.sum(1).unsqueeze(2) + 1e-8)

    def exponents(self, vectors: Tensor) -> Tensor:
        """log φ, up to a constant; inner products of φ stand for exp(q · k). Shape: (b, n, after) → (b, n, after / 2).

        Not on average: that would want directions of length √after, and Token2Token's program gives them √(after / 2).
        """
        return vectors @ self.directions.T - vectors.square().sum(-1, keepdim=True) / 2


class AttentionBlock(nn.Module):
    """A transformer block of eight heads, normed before each half. Shape: (b, n, c) kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.norm(tokens)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm_mlp(tokens))


def sine_positions(n: int, channels: int) -> Tensor:
    """Sines and cosines of the place in the sequence, in turns, with wavelengths from 2π to 20,000π. Shape: (n, channels)."""
    frequencies = 10000.0 ** (-2 * (torch.arange(channels) // 2) / channels)
    angles = torch.arange(n)[:, None] * frequencies
    return torch.where(torch.arange(channels) % 2 == 0, angles.sin(), angles.cos())


PEERS: dict[str, Callable[..., Peer]] = {"RED-CNN": REDCNN, "ResNet": ResNet, "CTformer": CTformer}
"""By the name they are known by; without arguments as wide as published."""


def build_peer(name: str, *widths: int, seed: int) -> Peer:
    """A freshly initialised network of PEERS; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PEERS[name](*widths)
