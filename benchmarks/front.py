"""Which ideas push the front of PSNR against high-frequency energy and coherence, and which do not: the runs of docs/lab.

Run: python benchmarks/front.py STORE --work WORK [--arms NAME …] [--seeds 0 1] [--steps 2000] [--json FILE] [--figure FILE]
STORE is what `finegrain pairs configs/pairs-lab.yaml` builds. Every arm is trained by `fit` with the same steps, batches and
seeds; a run that is in WORK already is not done again, one that was stopped goes on. An arm that is taught by another learns from
what that made of the training slices, mixed with their normal dose. Beside each network stand the two free
competitors that start from it: the blend (a share of the input added back) and the band equaliser, calibrated on validation pairs.
Energy and coherence are those above 0.4 Nyquist in fine texture; means over patients, then over seeds. Intervals are of the paired
differences to the first arm given, over patients (bootstrap, 95 %), seeds averaged before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

import finegrain.equaliser
from finegrain.acquisition import Acquisition
from finegrain.config import LossConfig, NetworkConfig, TrainConfig
from finegrain.denoise import Denoiser, torch_engine
from finegrain.equaliser import CalibrationSlice, calibrate_equaliser
from finegrain.evaluate.bands import band_sums
from finegrain.evaluate.fidelity import protocol_named, psnr
from finegrain.evaluate.regions import body_mask, texture_rois
from finegrain.evaluate.stats import compare_paired
from finegrain.files import json_safe, slug, write_whole
from finegrain.frequency import Band
from finegrain.networks.card import file_sha256
from finegrain.networks.skeleton import STRIDE, build_network
from finegrain.pairs.manifest import Pair, read_manifest
from finegrain.simulate.fbp import find_kernel
from finegrain.study.methods import save_array
from finegrain.train.loop import fit

PROTOCOL, BAND = protocol_named("abdomen-40/400"), Band()
BLENDS, TEXTURES = (0.1, 0.2, 0.3, 0.5), (0.5, 1.0)
MEASURES = ("psnr_db", "energy ratio", "coherence", "coherence with truth")


@dataclass(frozen=True)
class Idea:
    """One arm: a family, a loss, and what of the training differs."""

    family: str = "hybrid"
    size: str = "s"
    loss: LossConfig = LossConfig()
    patch: int = 64
    batch: int = 8
    ema: float = 0.998
    times: int = 1
    """Of the steps of the others."""
    doses: tuple[float, float] | None = None
    """Between which every patch gets a dose of its own."""
    kernels: tuple[str, ...] = ()
    """The training pairs with these alone."""
    trained_as: str = ""
    """The arm whose network is taken, where only its use differs."""
    turned: bool = False
    """Whether the answer is the mean over the eight turns and flips of the slice."""
    told: bool = False
    """Whether the network is told dose and kernel."""
    teacher: str = ""
    """The arm whose answers are mixed into the normal dose that it is trained to give."""
    taught: float = 0.0
    """The share of those answers."""


GEOMETRIC = LossConfig(average="geometric")

IDEAS = {
    "hybrid": Idea(),
    "convolution": Idea("convolution"),
    "attention": Idea("attention"),
    "hybrid, told": Idea(trained_as="hybrid", told=True),
    "hybrid, eight turns": Idea(trained_as="hybrid", turned=True),
    "coefficient 0.05": Idea(loss=LossConfig(weight=0.05)),
    "coefficient 0.3": Idea(loss=LossConfig(weight=0.3)),
    "adaptive 0.05": Idea(loss=LossConfig(weight=0.05, mode="adaptive")),
    "energy 0.05, gated": Idea(loss=LossConfig(weight=0.05, mode="energy", smooth_gate=1.6)),
    "geometric": Idea(loss=GEOMETRIC),
    "geometric, no averaging": Idea(loss=GEOMETRIC, ema=0.0),
    "geometric, four times the steps": Idea(loss=GEOMETRIC, times=4),
    "geometric, doses mixed": Idea(loss=GEOMETRIC, doses=(0.1, 0.9)),
    "geometric, doses mixed to a half": Idea(loss=GEOMETRIC, doses=(0.1, 0.5)),
    "geometric, one kernel": Idea(loss=GEOMETRIC, kernels=("B30f",)),
    "size b": Idea(size="b", loss=GEOMETRIC),
    "taught by b, half": Idea(loss=GEOMETRIC, teacher="size b", taught=0.5),
    "taught by b": Idea(loss=GEOMETRIC, teacher="size b", taught=1.0),
    "band of the kernel": Idea(loss=LossConfig(weight=0.05, band=(0.4, 1.0), band_unit="kernel")),
    "patches of 128": Idea(patch=128, batch=2),
}


def trained(name: str, seed: int, pairs: list[Pair], store: Path, work: Path, *, steps: int) -> Denoiser:
    """The network of an arm, the averaged weights that did best on the validation pairs."""
    idea = IDEAS[name]
    if idea.teacher:
        pairs, store = with_answers(name, seed, pairs, store, work, steps=steps), work
    if idea.kernels:
        pairs = [pair for pair in pairs if pair.split != "train" or pair.kernel in idea.kernels]
    settings = TrainConfig(
        steps=idea.times * steps,
        batch=idea.batch,
        patch=idea.patch,
        doses=idea.doses,
        learning_rate=0.002,
        warmup=100,
        ema=idea.ema,
        validate_every=1000,
        threads=torch.get_num_threads(),
        seed=seed,
    )
    network = build_network(NetworkConfig(size=idea.size, family=idea.family), seed=seed)  # type: ignore[call-arg, arg-type]
    best = fit(network, pairs, store, train=settings, loss=idea.loss, run_folder=run_of(name, seed, work, steps=steps)).network
    return Denoiser(torch_engine(best), hu_range=best.hu_range, stride=STRIDE, takes_acquisition=True)


def run_of(name: str, seed: int, work: Path, *, steps: int) -> Path:
    """Where the training of an arm lies."""
    return work / f"{slug(IDEAS[name].trained_as or name)}-{steps}-{seed}"


def with_answers(name: str, seed: int, pairs: list[Pair], store: Path, work: Path, *, steps: int) -> list[Pair]:
    """The pairs that an arm which is taught is trained on, written below WORK; those for validation are as they were."""
    idea = IDEAS[name]
    teacher = trained(idea.teacher, seed, pairs, store, work, steps=steps)
    answers, mixed = (run_of(each, seed, work, steps=steps) / "slices" for each in (idea.teacher, name))
    answers.mkdir(exist_ok=True)
    mixed.mkdir(parents=True, exist_ok=True)
    found = []
    for pair in (pair for pair in pairs if pair.split != "test"):
        low_dose, target = pair.images(store)[:2].astype(np.float32)
        if pair.split == "train":
            answer = answers / f"{pair.sha256}.npy"
            if not answer.is_file():
                save_array(answer, teacher.denoise_slice(low_dose))
            target = idea.taught * np.load(answer) + (1 - idea.taught) * target
        images = np.rint([[low_dose, target]]).astype(np.int16)
        path = mixed / f"{pair.sha256}.npy"
        save_array(path, images)
        changed = {"shard": str(path.relative_to(work)), "index": 0, "has_truth": False}
        found.append(pair.model_copy(update=changed | {"sha256": hashlib.sha256(images.tobytes()).hexdigest()}))
    return found


def denoise(denoiser: Denoiser, hu: NDArray[np.float32], idea: Idea, pair: Pair) -> NDArray[np.float32]:
    """A slice through the network, in the way of the arm."""
    told = Acquisition(pair.dose_fraction, find_kernel(pair.kernel).half_per_mm, pair.pixel_mm) if idea.told else None
    return (denoiser.thorough() if idea.turned else denoiser).denoise_slice(hu, acquisition=told)


def measured(
    denoiser: Denoiser, idea: Idea, pairs: list[Pair], store: Path
) -> Iterator[tuple[str, str, tuple[float, float, float, float]]]:
    """(patient, image, measures) for every test slice: the network alone, blended with the input, and equalised."""
    slices = []
    for pair in (pair for pair in pairs if pair.split == "validation"):
        noisy, reference = pair.images(store)[:2].astype(np.float32)
        slices.append(
            CalibrationSlice(noisy, denoise(denoiser, noisy, idea, pair), reference, body_mask(reference), pair.dose_fraction)
        )
    equaliser = calibrate_equaliser(slices)
    for pair in (pair for pair in pairs if pair.split == "test"):
        noisy, reference, truth = pair.images(store).astype(np.float32)
        fine = texture_rois(reference, pixel_mm=pair.pixel_mm, band=BAND).fine_texture
        out = denoise(denoiser, noisy, idea, pair)
        shown = {"alone": out}
        shown |= {f"blend {share:g}": share * noisy + (1 - share) * out for share in BLENDS}
        shown |= {
            f"texture {strength:g}": equaliser.apply(
                out, noisy, strength=strength, dose_fraction=pair.dose_fraction if idea.told else None
            )
            for strength in TEXTURES
        }
        shown |= {"input": noisy}
        sums, in_band = band_sums([reference, truth, *shown.values()], [fine], n_references=2), BAND.mask(pixel_mm=pair.pixel_mm)
        for k, (name, image) in enumerate(shown.items(), start=2):
            texture = sums.ratio(k, 0, in_band), sums.coherence(k, 0, in_band), sums.coherence(k, 0, in_band, reference=1)
            yield pair.patient, name, (psnr(reference, image, protocol=PROTOCOL), *texture)


def rows_of(name: str, seed: int, pairs: list[Pair], store: Path, work: Path, *, steps: int) -> dict[str, dict[str, list[float]]]:
    """{image: {patient: mean measures}} of one arm and seed; kept in WORK for the weights that they belong to."""
    idea = IDEAS[name]
    denoiser = trained(name, seed, pairs, store, work, steps=steps)
    kept = work / f"{slug(name)}-{steps}-{seed}.json"
    best = run_of(name, seed, work, steps=steps) / "best.safetensors"
    weights = [file_sha256(best), file_sha256(Path(finegrain.equaliser.__file__))]
    held = json.loads(kept.read_text()) if kept.is_file() else {}
    if held.get("weights") != weights:
        found: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
        for patient, image, values in measured(denoiser, idea, pairs, store):
            found[image][patient].append(values)
        rows = {image: {who: np.nanmean(all_of, axis=0).tolist() for who, all_of in of.items()} for image, of in found.items()}
        held = {"weights": weights, "rows": rows}
        write_whole(kept, json.dumps(held))
    return held["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=IDEAS, default=list(IDEAS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = [pair for pair in read_manifest(arguments.store) if pair.is_usable]
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in arguments.arms:
        of_seeds = [rows_of(name, seed, pairs, arguments.store, arguments.work, steps=arguments.steps) for seed in arguments.seeds]
        table[name] = {
            image: {who: np.mean([rows[image][who] for rows in of_seeds], axis=0).tolist() for who in patients}
            for image, patients in of_seeds[0].items()
        }
    print_table(table, seeds=len(arguments.seeds), steps=arguments.steps)
    if arguments.json:
        kept = {"steps": arguments.steps, "seeds": arguments.seeds, "measures": MEASURES, "patients": table}
        write_whole(arguments.json, json.dumps(json_safe(kept), indent=1) + "\n")
    if arguments.figure:
        draw(table, arguments.figure)


def print_table(table: dict[str, dict[str, dict[str, list[float]]]], *, seeds: int, steps: int) -> None:
    """Means over patients, and the paired difference of each arm to the first."""
    base = next(iter(table))
    print(f"{steps} steps, {seeds} seeds, {len(table[base]['alone'])} patients; differences to {base!r} with 95 % intervals")
    print(
        f"{'':34}{'PSNR dB':>9}{'energy':>8}{'coherence':>11}{'with truth':>12}   PSNR difference, coherence-with-truth difference"
    )
    for name, images in table.items():
        for image, patients in images.items():
            if image == "input" and name != base:
                continue
            means = np.nanmean(list(patients.values()), axis=0)
            line = f"{name + ' | ' + image:34}{means[0]:9.2f}{means[1]:8.3f}{means[2]:11.4f}{means[3]:12.4f}"
            if image == "alone" and name != base:
                line += "  "
                for measure in (0, 3):
                    ours, theirs = ([of["alone"][who][measure] for who in patients] for of in (images, table[base]))
                    compared = compare_paired(ours, theirs)
                    line += f"  {compared.mean:+.4f} ({compared.interval_low:+.4f} … {compared.interval_high:+.4f})"
            print(line)


def draw(table: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """PSNR and coherence with the truth against energy: each network, with its blend (dotted) and its equaliser (dashed)."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for number, (name, images) in enumerate(table.items()):
        mean = {image: np.nanmean(list(patients.values()), axis=0) for image, patients in images.items()}
        blends, textures = (
            ["alone", *[f"{kind} {s:g}" for s in strengths]] for kind, strengths in (("blend", BLENDS), ("texture", TEXTURES))
        )
        for axis, measure in zip(axes, (0, 3), strict=True):
            for keys, style in ((blends, ":"), (textures, "--")):
                axis.plot(*np.array([(mean[key][1], mean[key][measure]) for key in keys]).T, style, color=f"C{number}", linewidth=1)
            axis.plot(mean["alone"][1], mean["alone"][measure], "o", color=f"C{number}", label=name)
    for axis, label in zip(axes, (f"PSNR [dB], {PROTOCOL.name}", "coherence with the noise-free truth"), strict=True):
        axis.set(xlabel="energy above 0.4 Nyquist in fine texture, over that of the normal dose", ylabel=label)
        axis.axvline(1, color="0.8", linewidth=1)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle("Dots: the network; dashed: band equaliser at 0.5 and 1; dotted: 10 to 50 % of the input blended back")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
