"""What training on simulated instead of real pairs costs: the same network, the same slices, leave one patient out.

Run: python benchmarks/domain_gap.py FOLDER --work WORK [--steps N] [--threads N] [--json FILE]
FOLDER is laid out as for real_pairs.py. For each patient two networks of the size of finegrain-s are trained on the other patients,
from the same start and in the same order: one on the real quarter-dose images, one on quarter dose simulated from the real
full-dose images (photons from the header's mAs). Both are tested on the real pairs of the patient left out. WORK keeps
pairs, checkpoints and weights; a run that was stopped goes on. The simulator's kernels and detector settings were fitted to these
scanners, so this asks whether the noise is right, not whether an unknown scanner would be met.
PSNR protocol: window [−160, 240] HU, data range 400 HU, whole slice, against the full dose.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from real_pairs import PROTOCOL, read

from finegrain.config import LossConfig, NetworkConfig, TrainConfig
from finegrain.evaluate.fidelity import PROTOCOLS, psnr
from finegrain.files import write_whole
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork, build_network
from finegrain.pairs.manifest import Pair
from finegrain.pairs.store import Made, put_task
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import scanner_of
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import find_kernel
from finegrain.train.loop import fit

ARMS = ("real", "simulated")


def make_pairs(folder: Path, work: Path) -> dict[str, list[Pair]]:
    """Every slice as a real and as a simulated pair, stored in WORK. Gives {arm: pairs}."""
    pairs: dict[str, list[Pair]] = {arm: [] for arm in ARMS}
    for index, path in enumerate(sorted(folder.glob("*/*/full/*"))):
        patient, kernel = path.parents[2].name, path.parents[1].name
        (full, pixel_mm), (quarter, _) = read(path), read(path.parents[1] / "quarter" / path.name)
        photons, simulated = simulate(path, full, pixel_mm, seed=index)
        for arm, low in (("real", quarter), ("simulated", simulated)):
            key = f"{patient}-{kernel}-{index:02d}"
            images = np.clip(np.round([low, full]), -1024, 3071).astype(np.int16)
            pair = Pair(
                key=key, patient=patient, slice_index=index, pixel_mm=pixel_mm, kernel=kernel, dose_fraction=0.25, photons=photons
            )
            pairs[arm] += put_task(work / arm, key, [images], Made([pair])).pairs
    return pairs


def simulate(path: Path, full: NDArray[np.float32], pixel_mm: float, *, seed: int) -> tuple[float, NDArray[np.float32]]:
    """Photons per ray, and the quarter-dose slice that the simulator makes of a full-dose one."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    exposure = Exposure.from_mas(float(header.Exposure), slice_mm=float(header.SliceThickness), kvp=float(header.KVP))
    volume = CTVolume.from_array(full[None], pixel_mm=pixel_mm, slice_mm=float(header.SliceThickness))
    scanner = scanner_of(volume, kernel=find_kernel(path.parents[1].name), exposure=exposure)
    return exposure.photons, full + scanner.missing_noise_hu(full, dose_fraction=0.25, generator=np.random.default_rng(seed))


def train(pairs: list[Pair], arm: str, left_out: str, work: Path, settings: TrainConfig) -> DenoisingNetwork:
    """The network of one arm that has not seen one patient; the averaged weights of the last step."""
    used = [pair for pair in pairs if pair.patient != left_out]
    # `fit` wants validation pairs; with one validation, at the end, they decide nothing.
    watched = [pair.model_copy(update={"split": "validation"}) for pair in used[:1]]
    network = build_network(NetworkConfig(), seed=settings.seed)
    run = work / f"{arm}-without-{left_out}-{settings.steps}"
    return fit(network, [*used, *watched], work / arm, train=settings, loss=LossConfig(), run_folder=run).network


@torch.no_grad()
def denoise(network: DenoisingNetwork, hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """A whole slice in HU through a network."""
    rows, columns = hu.shape
    padded = np.pad(hu, ((0, -rows % STRIDE), (0, -columns % STRIDE)), mode="edge")
    unit = torch.from_numpy(network.hu_range.to_unit(padded)[None, None])
    out = network.eval()(unit)[0, 0, :rows, :columns].numpy()
    return (out * network.hu_range.span + network.hu_range.low).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pairs = make_pairs(arguments.folder, arguments.work)
    steps = arguments.steps
    settings = TrainConfig(
        steps=steps, batch=8, patch=64, learning_rate=0.002, warmup=100, ema=0.995, validate_every=steps, threads=arguments.threads
    )
    rows = []
    for left_out in sorted({pair.patient for pair in pairs["real"]}):
        networks = {arm: train(pairs[arm], arm, left_out, arguments.work, settings) for arm in ARMS}
        for pair in pairs["real"]:
            if pair.patient != left_out:
                continue
            low, full = pair.images(arguments.work / "real").astype(np.float32)
            row = {"patient": pair.patient, "kernel": pair.kernel, "input": psnr(full, low, protocol=PROTOCOLS[PROTOCOL])}
            outputs = {arm: denoise(networks[arm], low) for arm in ARMS}
            rows.append({**row, **{arm: psnr(full, outputs[arm], protocol=PROTOCOLS[PROTOCOL]) for arm in ARMS}})
        print(f"{left_out} left out: done", flush=True)
    groups = defaultdict(list)
    for row in rows:
        for name in (row["kernel"], f"{row['kernel']} {row['patient']}", "all"):
            groups[name].append(row)
    for name, group in sorted(groups.items()):
        means = {key: float(np.mean([row[key] for row in group])) for key in ("input", *ARMS)}
        gaps = [row["real"] - row["simulated"] for row in group]
        print(
            f"{name:12} {len(group):3} slices: input {means['input']:.2f} dB, trained on real pairs {means['real']:.2f}, ", end=""
        )
        print(f"on simulated pairs {means['simulated']:.2f}, gap {np.mean(gaps):+.2f} ± {np.std(gaps):.2f} dB")
    if arguments.json:
        write_whole(arguments.json, json.dumps({"steps": steps, "slices": rows}, indent=1))


if __name__ == "__main__":
    main()
