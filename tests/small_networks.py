"""Networks of each family, small, and as awake as after some training."""

import torch

from finegrain.config import NetworkConfig
from finegrain.networks.skeleton import build_network

FAMILIES = ("convolution", "attention", "hybrid")
SMALL = NetworkConfig(channels=(8, 24, 24), blocks=(1, 1, 1), heads=(2, 2))


def awake(family, seed=0, config=SMALL):
    """A network in which nothing is zero any more: untrained, it would give its input back."""
    network = build_network(config.model_copy(update={"family": family}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()
