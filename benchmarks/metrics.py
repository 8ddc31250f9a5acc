"""PSNR, SSIM and VIF of 512² slices per second: finegrain beside scikit-image, torchmetrics, piq and pyiqa, and their values.

Run: python benchmarks/metrics.py [THREADS]
Every library gets the same float64 slices, waves with noise; each time includes the clipping to [−160, 240] HU. torchmetrics,
piq and pyiqa are used where they can be imported. Not every difference is an error: the SSIM of torchmetrics counts the border,
mirrored; piq wants values from 0 up, and SSIM depends on the offset; of pyiqa, which wants colours, only PSNR is like for like.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from finegrain.evaluate.fidelity import protocol_named, psnr, ssim, vif

PROTOCOL = protocol_named("abdomen-40/400")
PEERS = ("scikit-image", "torchmetrics", "piq", "pyiqa")
Score = Callable[[], float]


def _pair() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[:512, :512]
    reference = 40 + 150 * np.sin(x / 9) * np.cos(y / 14) + 20 * np.sin(x / 2 + y / 3)
    return reference, reference + np.random.default_rng(0).normal(0, 30, reference.shape)


def _scores(peer: str, reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> dict[str, Score]:
    """A peer's scores of the pair, clipping and all; empty where it is not installed."""
    low, width = PROTOCOL.low_hu, PROTOCOL.width_hu

    def clipped() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return PROTOCOL.clip(reference), PROTOCOL.clip(candidate)

    def tensors(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = clipped()
        return torch.from_numpy(b - offset)[None, None], torch.from_numpy(a - offset)[None, None]

    if peer == "scikit-image":
        wang = {"data_range": width, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        return {
            "PSNR": lambda: float(peak_signal_noise_ratio(*clipped(), data_range=width)),
            "SSIM": lambda: float(structural_similarity(*clipped(), **wang)),
        }
    try:
        library = importlib.import_module("torchmetrics.functional.image" if peer == "torchmetrics" else peer)
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit its torch raises the latter
        print(f"{peer}: not installed ({type(error).__name__})")
        return {}
    if peer == "torchmetrics":
        return {
            "PSNR": lambda: float(library.peak_signal_noise_ratio(*tensors(), data_range=width)),
            "SSIM": lambda: float(library.structural_similarity_index_measure(*tensors(), data_range=width)),
            "VIF": lambda: float(library.visual_information_fidelity(*tensors())),
        }
    if peer == "piq":
        noise = 2 * (255 / width) ** 2  # it scales to 255 before its VIF: the same noise in HU²
        return {
            "PSNR": lambda: float(library.psnr(*tensors(low), data_range=width)),
            "SSIM": lambda: float(library.ssim(*tensors(low), data_range=width, downsample=False)),
            "VIF": lambda: float(library.vif_p(*tensors(low), sigma_n_sq=noise, data_range=width)),
        }
    metric = library.create_metric("psnr", device="cpu")
    return {"PSNR": lambda: float(metric(*((x / width).expand(-1, 3, -1, -1) for x in tensors(low))))}


def _fastest(scores: dict[str, Score]) -> dict[str, float]:
    """Least seconds of each library, taken in turns, so that a busy machine is unfair to all alike."""
    times: dict[str, list[float]] = {name: [] for name in scores}
    for score in scores.values():
        score()
    for _ in range(3):
        for name, score in scores.items():
            for _ in range(3):
                started = time.perf_counter()
                score()
                times[name].append(time.perf_counter() - started)
    return {name: min(seconds) for name, seconds in times.items()}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    pair = _pair()
    ours: dict[str, Score] = {
        "PSNR": lambda: psnr(*pair, protocol=PROTOCOL),
        "SSIM": lambda: ssim(*pair, protocol=PROTOCOL),
        "VIF": lambda: vif(*pair, protocol=PROTOCOL),
    }
    peers = {peer: _scores(peer, *pair) for peer in PEERS}
    title = f"{PROTOCOL.name}, {torch.get_num_threads()} threads"
    print(f"{title:30}{'value':>12}{'per second':>12}{'finegrain is':>20}{'difference':>12}")
    for metric, our_score in ours.items():
        scores = {"finegrain": our_score, **{peer: found[metric] for peer, found in peers.items() if metric in found}}
        seconds = _fastest(scores)
        for name, score in scores.items():
            line = f"{metric:6}{name:24}{score():12.6f}{1 / seconds[name]:12.1f}"
            if name != "finegrain":
                ratio = f"{seconds[name] / seconds['finegrain']:.2f} × as fast"
                line += f"{ratio:>20}{score() - our_score():12.1e}"
            print(line)


if __name__ == "__main__":
    main()
