"""A tiny training run as a program of its own, to be killed, told to stop, and started by torchrun.

Arguments: store, run folder, settings as JSON.
"""

import json
import sys
from pathlib import Path

from finegrain.config import LossConfig, NetworkConfig, TrainConfig
from finegrain.networks.skeleton import build_network
from finegrain.pairs.manifest import Pair
from finegrain.train.loop import fit

NETWORK = NetworkConfig(family="hybrid", channels=(8, 24, 24), blocks=(1, 1, 1), heads=(2, 2))
TRAIN = {
    "steps": 36,
    "batch": 2,
    "patch": 32,
    "warmup": 2,
    "validate_every": 10,
    "checkpoint_every": 7,
    "threads": 1,
    "device": "cpu",
}


def tiny_fit(store, run_folder, *, progress=None, **settings):
    """Train on the pairs of a store."""
    pairs = [Pair.model_validate(row) for row in json.loads((store / "pairs.json").read_text())]
    return fit(
        build_network(NETWORK, seed=0),
        pairs,
        store,
        train=TrainConfig(**{**TRAIN, **settings}),
        loss=LossConfig(weight=0.1),
        run_folder=run_folder,
        progress=progress,
    )


if __name__ == "__main__":
    tiny_fit(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"))
