"""What a bundled network does on real pairs of low and normal dose that it has never seen.

Run: python benchmarks/real_pairs.py FOLDER [--peers] [--model NAME-OR-FOLDER] [--json FILE]
FOLDER is laid out as PATIENT/KERNEL/{full,quarter}/*.IMA, one slice a file, the same name on both sides, as the images of the
AAPM–Mayo Low Dose CT Grand Challenge can be (The Cancer Imaging Archive, doi 10.7937/9NPB-2637). With --peers, non-local means and
BM3D are run beside it, each with an oracle: of several noise levels, the one with the best PSNR against the full dose, slice by
slice, which no real denoiser can know. BM3D needs the package bm3d (free for non-commercial use) and takes a minute a slice.
PSNR protocol: window [−160, 240] HU, data range 400 HU, whole slice, against the full dose, which is itself noisy.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from finegrain.acquisition import Acquisition
from finegrain.denoise import load_denoiser
from finegrain.evaluate.fidelity import protocol_named, psnr
from finegrain.evaluate.run import evaluate_slice
from finegrain.files import write_whole
from finegrain.frequency import Band
from finegrain.study.classical import METHODS

PROTOCOL = "abdomen-40/400"
KEYS = (f"psnr_db[{PROTOCOL}]", f"ssim[{PROTOCOL}]", "hf_ratio[full]", "hf_coherence[full]", "texture_index", "hu_bias[soft]")
NETWORK = "texture 0"
"""The network alone; `finegrain denoise` takes texture 1 by default."""


def read(path: Path) -> tuple[NDArray[np.float32], float]:
    """HU of a slice and its pixel size in mm."""
    image = pydicom.dcmread(path)
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    return hu.astype(np.float32), float(image.PixelSpacing[0])


ORACLE_FACTORS = (1.0, 1.4, 2.0, 2.8)
"""Noise levels that the oracle chooses from, over the SD of quarter − full in soft tissue. CT noise is correlated, so that a method
that takes it for white wants to be told more than there is."""


def with_oracle(method: str, quarter: NDArray[np.float32], full: NDArray[np.float32]) -> NDArray[np.float32]:
    """The slice denoised with the noise level that is best for it, on the soft-tissue window that it is judged in."""
    noise = float(np.std((quarter - full)[np.abs(full) < 200]))
    clipped = np.clip(quarter, -160, 240).astype(np.float64)
    found = [quarter + (METHODS[method](clipped, noise * factor) - clipped) for factor in ORACLE_FACTORS]
    best = max(found, key=lambda hu: psnr(full, hu, protocol=protocol_named(PROTOCOL)))
    return np.asarray(best, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    root, with_peers = arguments.folder, arguments.peers
    denoiser = load_denoiser(arguments.model)
    print(f"{denoiser.name}; PSNR and SSIM in window [−160, 240] HU; HF ratio and coherence above 0.4 Nyquist, body")
    rows: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    patients: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.glob("*/*/full/*")):
        (full, pixel_mm), (quarter, _) = read(path), read(path.parents[1] / "quarter" / path.name)
        images = {"quarter dose": quarter, NETWORK: denoiser.denoise_slice(quarter)}
        if denoiser.equaliser is not None:
            told = Acquisition(dose_fraction=0.25)
            images["texture 1"] = denoiser.denoise_slice(quarter, texture=1)
            images["texture 1, dose told"] = denoiser.denoise_slice(quarter, texture=1, acquisition=told)
        if with_peers:
            images |= {f"{name}, oracle σ": with_oracle(name, quarter, full) for name in ("nlm", "bm3d")}
        measured = evaluate_slice(full, images, pixel_mm=pixel_mm, protocols=(PROTOCOL,), band=Band())
        for name, values in measured.items():
            rows[path.parents[1].name][name].append(values)
        patients[path.parents[1].name].append(path.parents[2].name)
    kept: dict[str, dict[str, Any]] = {}
    for kernel, methods in rows.items():
        print(f"\n{kernel}, {len(methods[NETWORK])} slices" + "".join(f"{key:>26}" for key in KEYS))
        means = {
            name: {key: float(np.nanmean([value[key] for value in values])) for key in KEYS} for name, values in methods.items()
        }
        for name, mean in means.items():
            print(f"{name:24}" + "".join(f"{mean[key]:26.3f}" for key in KEYS))
        kept[kernel] = {**means, "slices": len(methods[NETWORK]), "least_gain_db": {}, "patients": {}}
        for patient in dict.fromkeys(patients[kernel]):
            mine = [k for k, who in enumerate(patients[kernel]) if who == patient]
            of_patient = {name: float(np.mean([values[k][KEYS[0]] for k in mine])) for name, values in methods.items()}
            kept[kernel]["patients"][patient] = of_patient
            print(f"PSNR, {patient}, {len(mine)} slices: " + ", ".join(f"{name} {db:.2f}" for name, db in of_patient.items()))
        for name in methods:
            gains = np.array(
                [out[KEYS[0]] - given[KEYS[0]] for out, given in zip(methods[name], methods["quarter dose"], strict=True)]
            )
            kept[kernel]["least_gain_db"][name] = float(gains.min())
            print(f"gain in PSNR, {name}: mean {gains.mean():.2f} dB, worst slice {gains.min():.2f} dB, best {gains.max():.2f} dB")
    if arguments.json:
        write_whole(arguments.json, json.dumps({"model": denoiser.name, "kernels": kept}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
