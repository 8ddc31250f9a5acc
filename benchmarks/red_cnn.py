"""RED-CNN as published: ten layers of 5 × 5 filters, 96 channels, three shortcuts (Chen et al. 2017, IEEE TMI 36:2524)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class REDCNN(nn.Module):
    """Five convolutions and five transposed convolutions without padding; 1.849 M parameters. Shape: (b, 1, h, w) kept."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        widths = [1] + [channels] * 5
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 5) for a, b in pairwise(widths))
        widths = [channels] * 5 + [1]
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(a, b, 5) for a, b in pairwise(widths))

    def forward(self, image: Tensor) -> Tensor:
        features, kept = image, []
        for depth, layer in enumerate(self.encoder):
            if depth in (0, 2, 4):
                kept.append(features)
            features = torch.relu(layer(features))
        for depth, layer in enumerate(self.decoder):
            features = layer(features)
            if depth in (0, 2, 4):
                features = features + kept.pop()
            features = torch.relu(features)
        return features
