"""One 512² slice through the bundled networks, alone and with their equalisers, and through RED-CNN: ONNX Runtime, same threads.

Run: python benchmarks/inference.py [THREADS]
RED-CNN has its published architecture and random weights: its speed does not depend on them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finegrain.denoise import BUNDLED, Denoiser, load_denoiser, onnx_engine
from finegrain.networks.blocks import parameter_count
from finegrain.networks.peers import REDCNN
from finegrain.networks.skeleton import ImageNetwork, build_network, count_macs


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    unit = np.random.default_rng(0).random((1, 1, 512, 512), dtype=np.float32)
    peer = REDCNN().eval()
    networks: dict[str, ImageNetwork] = {"RED-CNN": peer}
    engines: dict[str, Callable[[NDArray[np.float32]], object]] = {}
    for name in BUNDLED:
        denoiser = load_denoiser(name, threads=threads)
        assert denoiser.card is not None
        networks[name] = build_network(denoiser.card.network, seed=0)
        engines[name] = denoiser.engine
        engines[f"{name}, texture 1"] = partial(equalised, denoiser, denoiser.hu_range.to_hu(unit[0, 0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "red-cnn.onnx"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(peer, (torch.zeros(1, 1, 512, 512),), path, dynamo=True, verbose=False)
        engines["RED-CNN"] = onnx_engine(path, threads=threads)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(3):  # in turns, so that a busy machine is unfair to both alike
            for name, engine in engines.items():
                time.sleep(0.5)  # until the other engine's threads have stopped spinning
                engine(unit)
                for _ in range(3):
                    started = time.perf_counter()
                    engine(unit)
                    times[name].append(time.perf_counter() - started)
    print(f"{f'one 512² slice, {threads} threads':28}{'parameters':>12}{'GMAC':>8}{'seconds':>10}")
    for name in engines:
        one = networks[name.partition(",")[0]]
        print(f"{name:28}{parameter_count(one):12,}{count_macs(one, size=512) / 1e9:8.1f}{min(times[name]):10.3f}")
    for name in BUNDLED:
        print(f"{name} is {min(times['RED-CNN']) / min(times[name]):.1f} times as fast as RED-CNN")


def equalised(denoiser: Denoiser, hu: NDArray[np.float32], _: object) -> NDArray[np.float32]:
    """`denoise_slice` in the shape of an engine, so that it is timed like one."""
    return denoiser.denoise_slice(hu, texture=1)


if __name__ == "__main__":
    main()
