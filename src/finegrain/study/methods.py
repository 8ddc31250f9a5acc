"""One method of a study: an arm, with a seed if it is trained; made, and every test slice denoised with it.

All that belongs to a method lies in one folder of the study: its training, `method.json` with what it is, `denoised/` with the test
slices in HU, `lesions/` with the places where lesions were inserted before denoising. Both hold only what was yet to be measured or
shown when it was denoised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import Arm, ClassicalArm, LossConfig, PeerArm, StudyArm, StudyConfig
from finegrain.denoise import Denoiser, torch_engine
from finegrain.equaliser import CalibrationSlice, calibrate_equaliser
from finegrain.evaluate.fidelity import protocol_named
from finegrain.evaluate.regions import body_mask
from finegrain.files import json_safe, slug, whole_file, write_whole
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import file_sha256
from finegrain.networks.peers import build_peer
from finegrain.networks.skeleton import STRIDE, ImageNetwork, build_network, count_macs
from finegrain.pairs.manifest import Pair
from finegrain.spread import spread
from finegrain.study.classical import denoise_classically, tune, version_of
from finegrain.study.images import image_label, recipes_of, spatial_arm
from finegrain.study.kept import (
    DENOISING,
    MEASURING,
    MIXING,
    image_stamp,
    kept_lesions,
    kept_of_slice,
    lesions_stamp,
    read_json,
    rois_stamp,
    stamp_of,
)
from finegrain.study.lesions import lesion_rois, roi_sizes
from finegrain.train.loop import CHECKPOINT, check_run_folder, fit

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""

Denoise = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A slice in HU → the same denoised. Shape: (y, x)."""

MOST_TUNING_SLICES = 12
"""Validation slices on which a classical method is tuned: one strength needs no more; a default, taken from nowhere."""


@dataclass(frozen=True)
class Method:
    """An arm, and the seed that it is trained with; None for one that is not trained."""

    arm: StudyArm
    seed: int | None

    @property
    def label(self) -> str:
        """For progress and messages."""
        return image_label(self.arm.name, self.seed)

    def folder(self, out: Path) -> Path:
        """Where all that belongs to the method lies."""
        return out / "methods" / slug(self.arm.name) / ("fixed" if self.seed is None else f"seed-{self.seed}")


@dataclass(frozen=True)
class TestSet:
    """Pairs whose test patients are denoised and measured: those of the study, or others, for generalisation."""

    __test__ = False  # not for pytest

    name: str
    folder: Path
    pairs: tuple[Pair, ...]

    def key(self, pair: Pair) -> str:
        """File name of a pair's results, unlike those of any other set."""
        return f"{slug(self.name)}-{pair.key}" if self.name else pair.key


def all_methods(config: StudyConfig) -> list[Method]:
    """Every method of a study, in the order of its arms: each network once with each of its seeds."""
    return [Method(arm, seed) for arm in config.all_arms for seed in config.seeds_of(arm)]


def untrained(config: StudyConfig, method: Method) -> ImageNetwork:
    """The network of a method before its training. Raises: ConfigError if it cannot be built."""
    assert method.seed is not None
    if isinstance(method.arm, PeerArm):
        return build_peer(method.arm.peer, *method.arm.widths, seed=method.seed)
    assert isinstance(method.arm, Arm)
    skeleton = method.arm.network or config.network
    return build_network(skeleton.model_copy(update={"family": method.arm.family}), seed=method.seed)


def _settings(config: StudyConfig, method: Method) -> dict[str, Any]:
    """How a method is trained: `train` and `loss`, as `fit` takes them."""
    assert not isinstance(method.arm, ClassicalArm)
    changes: dict[str, Any] = {"seed": method.seed}
    if method.arm.learning_rate is not None:
        changes["learning_rate"] = method.arm.learning_rate
    loss = method.arm.loss if isinstance(method.arm, Arm) else LossConfig()
    return {"train": config.train.model_copy(update=changes), "loss": loss}


def check_method(config: StudyConfig, method: Method, pairs: list[Pair], out: Path) -> None:
    """Whether a method can be made in the study's folder. Raises: DataError if another was trained there."""
    if method.seed is not None:
        network = untrained(config, method).config
        check_run_folder(method.folder(out), pairs, network=network, **_settings(config, method))


def make_method(
    config: StudyConfig, method: Method, main: TestSet, others: tuple[TestSet, ...], out: Path, progress: Progress
) -> None:
    """Train or tune a method, and denoise with it every test slice, with lesions and without, that is yet to be measured."""
    folder = method.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    denoise, facts = _made(config, method, main, folder, progress)
    identity, test = facts["identity"], main_test(main)
    looks = config.has_lesions(method.seed)
    judged = not looks or kept_lesions(out, method.label, lesions_stamp(config, test, identity)) is not None
    todo = []
    for one in (main, *others):
        for pair in main_test(one):
            stamps = image_stamps(config, method, facts, pair)
            if (one is main and not judged) or len(kept_of_slice(out, one.key(pair), stamps)) < len(stamps):
                todo.append((one, pair))
    times = _denoise_all(method, denoise, identity, todo, folder, progress)
    if not judged:
        _denoise_lesions(config, method, denoise, identity, main, folder, progress)
    held = read_json(folder / "method.json")
    seconds = held.get("seconds_per_slice") if held.get("identity") == identity else None
    if seconds is None and all(pair.key in times for pair in test):
        seconds = round(float(np.median([times[pair.key][1] for pair in test])), 3)
    facts |= {"name": method.arm.name, "seed": method.seed, "seconds_per_slice": seconds}
    write_whole(folder / "method.json", json.dumps(json_safe(facts), indent=1, ensure_ascii=False) + "\n")


def image_stamps(config: StudyConfig, method: Method, facts: Mapping[str, Any], pair: Pair) -> dict[str, str]:
    """Label of each image of a method on a test slice → what its measures hold for."""
    return {
        image_label(name, method.seed): image_stamp(config, pair, facts["identity"], recipe)
        for name, recipe in recipes_of(config, method.arm.name, facts.get("equaliser"), pair.dose_fraction).items()
    }


def show_method(config: StudyConfig, method: Method, main: TestSet, shown: Collection[Pair], out: Path, progress: Progress) -> None:
    """Denoise the slices that the page shows, if they are not at hand: those that were measured earlier need not be."""
    folder = method.folder(out)
    times = _times_of(folder, read_json(folder / "method.json")["identity"])
    if all(_is_at_hand(times, main, pair, folder) for pair in shown):
        return
    denoise, facts = _made(config, method, main, folder, progress)
    _denoise_all(method, denoise, facts["identity"], [(main, pair) for pair in shown], folder, progress)


def _made(config: StudyConfig, method: Method, main: TestSet, folder: Path, progress: Progress) -> tuple[Denoise, dict[str, Any]]:
    """A method, trained or tuned if it is not yet, and what is known of it; `identity` changes with all that decides its images."""
    if isinstance(method.arm, ClassicalArm):
        denoise, facts, identity = _tuned(config, method.arm, main, folder, progress)
    else:
        denoise, facts, identity = _trained(config, method, main, folder, progress)
    return denoise, {"identity": identity} | facts


def _trained(
    config: StudyConfig, method: Method, main: TestSet, folder: Path, progress: Progress
) -> tuple[Denoise, dict[str, Any], str]:
    settings = _settings(config, method)
    result = fit(
        untrained(config, method),
        list(main.pairs),
        main.folder,
        run_folder=folder,
        progress=lambda step, _: progress(f"training {method.label}", step, config.train.steps),
        **settings,
    )
    denoiser = Denoiser(torch_engine(result.network), hu_range=result.network.hu_range, stride=STRIDE)
    identity = stamp_of((DENOISING,), file_sha256(folder / CHECKPOINT))
    loss: LossConfig = settings["loss"]
    band = f"{loss.band[0]:g} to {loss.band[1]:g}"
    facts = {
        "kind": method.arm.kind,
        "family": method.arm.family if isinstance(method.arm, Arm) else "peer",
        "loss": ("MSE" if loss.weight == 0 else f"MSE + {loss.weight:g} · {loss.mode} term on Ω_h {band}")
        + (", geometric mean over patches" if loss.average == "geometric" else ""),
        "parameters": parameter_count(result.network),
        "macs_per_512": count_macs(result.network, size=512),
        "best_step": result.best_step,
        "train_seconds": result.seconds,
        "history": result.history,
    }
    if method.arm.name in (spatial_arm(config), *config.leads):
        facts["equaliser"] = _equaliser(method, denoiser.denoise_slice, identity, main, folder, progress)
    return denoiser.denoise_slice, facts, identity


def _equaliser(method: Method, denoise: Denoise, identity: str, main: TestSet, folder: Path, progress: Progress) -> dict[str, Any]:
    """The band equaliser of a network, calibrated on the validation pairs: its `tables`."""
    validation = [pair for pair in main.pairs if pair.split == "validation"]
    stamp = stamp_of((MIXING, MEASURING), identity, [(pair.sha256, pair.dose_fraction) for pair in validation])
    held = read_json(folder / "equaliser.json")
    if held.get("stamp") != stamp:
        slices = []
        for done, pair in enumerate(validation, start=1):
            low_dose, reference = pair.images(main.folder)[:2].astype(np.float32)
            slices.append(CalibrationSlice(low_dose, denoise(low_dose), reference, body_mask(reference), pair.dose_fraction))
            progress(f"calibrating the equaliser of {method.label}", done, len(validation))
        held = {"stamp": stamp, **calibrate_equaliser(slices).tables()}
        write_whole(folder / "equaliser.json", json.dumps(held, indent=1) + "\n")
    return {"levels": held["levels"], "gains": held["gains"]}


def _tuned(
    config: StudyConfig, arm: ClassicalArm, main: TestSet, folder: Path, progress: Progress
) -> tuple[Denoise, dict[str, Any], str]:
    chosen = spread([pair for pair in main.pairs if pair.split == "validation"], MOST_TUNING_SLICES)
    judged_on = [pair.sha256 for pair in chosen]
    stamp = stamp_of((DENOISING, MEASURING), arm.model_dump(), config.protocols[0], judged_on, version_of(arm))
    held = read_json(folder / "tuning.json")
    if held.get("stamp") != stamp:
        progress(f"tuning {arm.name}", 0, 1)
        found = tune(arm, _low_and_normal(chosen, main.folder), protocol=protocol_named(config.protocols[0]))
        held = {"stamp": stamp, "psnr_db": [[strength, value] for strength, value in found.items()]}
        write_whole(folder / "tuning.json", json.dumps(held, indent=1) + "\n")
        progress(f"tuning {arm.name}", 1, 1)
    strength = max(held["psnr_db"], key=lambda one: one[1])[0]
    facts = {"kind": arm.kind, "method": arm.method, "strength": strength, "tuning": held["psnr_db"], "tuning_slices": len(chosen)}
    return lambda hu: denoise_classically(arm, hu, strength=strength), facts, stamp_of((DENOISING,), stamp, strength)


def _low_and_normal(pairs: list[Pair], folder: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    for pair in pairs:
        low_dose, normal = pair.images(folder)[:2].astype(np.float32)
        yield low_dose, normal


def _denoise_all(
    method: Method,
    denoise: Denoise,
    identity: str,
    todo: list[tuple[TestSet, Pair]],
    folder: Path,
    progress: Progress,
) -> dict[str, list[Any]]:
    """Denoise those of the slices that are not at hand; gives pixels and seconds of each that ever was denoised."""
    target = folder / "denoised"
    times = _times_of(folder, identity)
    _write_times(folder, identity, times)  # first: an image that is there without its line would pass for an earlier method's
    for done, (one, pair) in enumerate(todo, start=1):
        if _is_at_hand(times, one, pair, folder):
            continue
        key = one.key(pair)
        target.mkdir(exist_ok=True)
        started = time.perf_counter()
        denoised = denoise(pair.images(one.folder)[0].astype(np.float32))
        times[key] = [pair.sha256, round(time.perf_counter() - started, 4)]
        save_array(target / f"{key}.npy", denoised)
        _write_times(folder, identity, times)
        progress(f"denoising with {method.label}", done, len(todo))
    return times


def _times_of(folder: Path, identity: str) -> dict[str, list[Any]]:
    """Which pixels the denoised image of each slice belongs to, and its seconds, of a method of this identity."""
    held = read_json(folder / "times.json")
    return held["times"] if held.get("identity") == identity else {}


def _write_times(folder: Path, identity: str, times: Mapping[str, list[Any]]) -> None:
    write_whole(folder / "times.json", json.dumps({"identity": identity, "times": times}) + "\n")


def _is_at_hand(times: Mapping[str, list[Any]], one: TestSet, pair: Pair, folder: Path) -> bool:
    key = one.key(pair)
    return times.get(key, [""])[0] == pair.sha256 and (folder / "denoised" / f"{key}.npy").is_file()


def main_test(one: TestSet) -> list[Pair]:
    """The test pairs of a set."""
    return [pair for pair in one.pairs if pair.split == "test"]


def denoised_path(method: Method, out: Path, one: TestSet, pair: Pair) -> Path:
    """Where a test slice lies after denoising, HU, float32."""
    return method.folder(out) / "denoised" / f"{one.key(pair)}.npy"


def _denoise_lesions(
    config: StudyConfig, method: Method, denoise: Denoise, identity: str, main: TestSet, folder: Path, progress: Progress
) -> None:
    """Each test slice once more for each lesion size, inserted before denoising: a network is not linear."""
    target = folder / "lesions"
    target.mkdir(exist_ok=True)
    test = main_test(main)
    sizes, stamp = roi_sizes(config, test), rois_stamp(config, test, identity)
    held = read_json(target / "done.json")
    done: dict[str, str] = held["slices"] if held.get("stamp") == stamp else {}
    write_whole(target / "done.json", json.dumps({"stamp": stamp, "slices": done}))  # first, as in `_denoise_all`
    for number, pair in enumerate(test, start=1):
        if done.get(pair.key) == pair.sha256 and (target / f"{pair.key}.npz").is_file():
            continue
        low_dose = pair.images(main.folder)[0].astype(np.float32)
        rois = lesion_rois(config, low_dose, pair, main.folder, sizes, denoise)
        with whole_file(target / f"{pair.key}.npz") as file:
            np.savez(file, *rois)
        done[pair.key] = pair.sha256
        write_whole(target / "done.json", json.dumps({"stamp": stamp, "slices": done}))
        progress(f"lesions with {method.label}", number, len(test))


def save_array(path: Path, array: NDArray) -> None:
    """Write an array that `np.load` reads, whole or not at all."""
    with whole_file(path) as file:
        np.save(file, array, allow_pickle=False)
