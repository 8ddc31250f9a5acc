"""One 512² slice through the bundled network, alone and with its equaliser, and through RED-CNN: ONNX Runtime, same threads.

Run: python benchmarks/inference.py [THREADS]
RED-CNN has its published architecture and random weights: its speed does not depend on them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from finegrain.denoise import bundled_model, load_denoiser, onnx_engine
from finegrain.networks.blocks import parameter_count
from finegrain.networks.checkpoint import load_network
from finegrain.networks.peers import REDCNN
from finegrain.networks.skeleton import count_macs


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    unit = np.random.default_rng(0).random((1, 1, 512, 512), dtype=np.float32)
    network, peer = load_network(bundled_model()), REDCNN().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "red-cnn.onnx"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(peer, (torch.zeros(1, 1, 512, 512),), path, dynamo=True, verbose=False)
        engines = {
            "finegrain-s": onnx_engine(bundled_model() / "model.onnx", threads=threads),
            "RED-CNN": onnx_engine(path, threads=threads),
        }
        denoiser = load_denoiser(threads=threads)
        hu = denoiser.hu_range.to_hu(unit[0, 0])
        engines["finegrain-s, texture 1"] = lambda _: denoiser.denoise_slice(hu, texture=1)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(3):  # in turns, so that a busy machine is unfair to both alike
            for name, engine in engines.items():
                time.sleep(0.5)  # until the other engine's threads have stopped spinning
                engine(unit)
                for _ in range(3):
                    started = time.perf_counter()
                    engine(unit)
                    times[name].append(time.perf_counter() - started)
    networks = {"finegrain-s": network, "RED-CNN": peer}
    print(f"{f'one 512² slice, {threads} threads':28}{'parameters':>12}{'GMAC':>8}{'seconds':>10}")
    for name in engines:
        one = networks[name.partition(",")[0]]
        print(f"{name:28}{parameter_count(one):12,}{count_macs(one, size=512) / 1e9:8.1f}{min(times[name]):10.3f}")
    ours, theirs = min(times["finegrain-s"]), min(times["RED-CNN"])
    print(f"finegrain-s is {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
