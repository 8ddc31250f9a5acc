"""The networks of others that finegrain trains beside its own, held against what is published of them.

Run: python benchmarks/peers.py [--against-ldctbench]
Prints parameters and GMAC, beside what is published. With --against-ldctbench, weights go over to the RED-CNN and the ResNet of the
package ldct-benchmark (pip install --no-deps ldct-benchmark), and the largest difference between the outputs is printed.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import torch
from torch import Tensor

from finegrain.hu import HURange
from finegrain.networks.peers import BENCHMARK_MEAN_HU, BENCHMARK_SD_HU, PEERS, REDCNN, TILE, ResNet
from finegrain.networks.skeleton import count_macs

PUBLISHED: dict[str, tuple[float, float | None]] = {"RED-CNN": (1.849, 458), "ResNet": (1.843, 481), "CTformer": (1.447, None)}
"""Parameters in millions, and GMAC for a 512² slice, as their authors or ldct-benchmark give them."""


# --- the judge: ldct-benchmark, MIT


def red_cnn_difference(image: Tensor) -> float:
    """Largest difference from the RED-CNN of ldct-benchmark, which leaves out the last ReLU."""
    theirs: Any = importlib.import_module("ldctbench.methods.redcnn.network").Model(None).eval()
    ours = REDCNN().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    return float((ours(image) - torch.relu(theirs(image))).abs().max())


def resnet_difference(image: Tensor) -> float:
    """Largest difference from the ResNet of ldct-benchmark, once its batch statistics are no longer those of the start."""
    theirs: Any = importlib.import_module("ldctbench.methods.resnet.network").Model(None)
    ours = ResNet().eval()
    theirs_scaled = (image * 4095 - (BENCHMARK_MEAN_HU + 1024)) / BENCHMARK_SD_HU
    for _ in range(3):
        theirs(theirs_scaled)
    theirs.eval()
    ours.first.load_state_dict(theirs.in_conv.state_dict())
    ours.last.load_state_dict(theirs.out_conv.state_dict())
    for block, their_block in zip(ours.blocks, theirs.blocks, strict=True):
        block.load_state_dict(their_block.layers.state_dict())
    their_unit = (theirs(theirs_scaled) * BENCHMARK_SD_HU + BENCHMARK_MEAN_HU + 1024) / 4095
    return float((ours(image) - their_unit).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-ldctbench", action="store_true")
    if parser.parse_args().against_ldctbench:
        image = torch.rand(2, 1, 96, 80, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for name, difference in (("RED-CNN", red_cnn_difference), ("ResNet", resnet_difference)):
                largest = difference(image)
                print(f"{name:10} differs by at most {largest:.1e} of the unit range, {largest * HURange().span:.1e} HU")
        return
    print(f"{'':10}{'parameters':>12}{'published':>12}{'GMAC, 512²':>12}{'published':>12}{'GMAC, 64²':>12}")
    for name, factory in PEERS.items():
        network = factory()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        slice_gmac, patch_gmac = (count_macs(network, size=size) / 1e9 for size in (512, TILE))
        million, gmac = PUBLISHED[name]
        print(
            f"{name:10}{parameters:12,}{f'{million} M':>12}{slice_gmac:12.1f}{'-' if gmac is None else gmac:>12}{patch_gmac:12.2f}"
        )


if __name__ == "__main__":
    main()
