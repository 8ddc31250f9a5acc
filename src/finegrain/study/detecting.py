"""The detectability of inserted lesions under every method: how easily two observers find them, and what denoising changes in that.

A channelised Hotelling observer (CHO) undoes what correlations of the noise can be undone: it asks what information an image still
holds. The matched filter with an eye filter (NPWE) cannot: it is nearer to a reader, who is disturbed by noise at frequencies that
he sees well, whether or not they tell anything of the lesion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.errors import DataError
from finegrain.evaluate.lesion import Lesion, rois_at
from finegrain.evaluate.observer import (
    FEWEST_PATIENTS,
    Detectability,
    Jackknife,
    channelised_hotelling,
    detectability_gain,
    laguerre_gauss,
    non_prewhitening_eye,
)
from finegrain.evaluate.run import REFERENCE
from finegrain.evaluate.stats import holm
from finegrain.figures import INPUT
from finegrain.pairs.manifest import Pair
from finegrain.study.kept import keep_lesions, kept_lesions, lesions_stamp
from finegrain.study.lesions import lesion_rois, lesions_of, places_of, roi_sizes
from finegrain.study.methods import Method, TestSet, denoised_path, main_test

CHANNELS = 5
"""Laguerre–Gauss channels of the CHO, as wide as half the lesion."""

MEANS = ("d_prime", "low", "high", "auc")
"""What is averaged over seeds."""


def detectability(
    config: StudyConfig, methods: list[Method], facts: Mapping[Method, Mapping[str, Any]], main: TestSet, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """d′ of each lesion to each observer: method → one entry for both. Methods that cannot be judged are left out.

    The normal dose is one of them where the noise-free image is known, else it has no noise to find lesions in. `gain` is what
    d′ is above that in the low dose, patient by patient, None where that is not known. With several seeds, d′, its interval and
    its jackknife are means over them.
    """
    test = main_test(main)
    sizes = roi_sizes(config, test)
    stored = [INPUT, REFERENCE] if all(pair.has_truth for pair in test) else [INPUT]
    judged: dict[str, list[list[dict[str, Any] | None]]] = {}
    for name in stored:
        judged[name] = [_kept_or_judged(config, name, name, main, out, partial(_stored, name, config, main, sizes))]
    for method in methods:
        if config.has_lesions(method.seed):
            seen = _kept_or_judged(
                config, method.label, facts[method]["identity"], main, out, partial(_denoised, method, main, out)
            )
            judged.setdefault(method.arm.name, []).append(seen)
    means = {name: [_over_seeds(each) for each in zip(*seeds, strict=True)] for name, seeds in judged.items()}
    results: dict[str, list[dict[str, Any]]] = {}
    for name, entries in means.items():
        gains = [None] * len(entries) if name == INPUT else _gains(entries, means[INPUT])
        for entry, gain in zip(entries, gains, strict=True):
            if entry is not None:
                shown = {key: value for key, value in entry.items() if key != "jackknife"}
                results.setdefault(name, []).append(shown | {"gain": gain})
    return results


Look = Callable[[Pair], tuple[NDArray, list[NDArray[np.float64]]]]
"""A test slice → its image without lesions in HU, and the ROIs around the lesions of each size, inserted before denoising."""


def _stored(
    name: str, config: StudyConfig, main: TestSet, sizes: list[int], pair: Pair
) -> tuple[NDArray, list[NDArray[np.float64]]]:
    hu = pair.images(main.folder)[0 if name == INPUT else 1].astype(np.float32)
    return hu, lesion_rois(config, hu, pair, main.folder, sizes, lambda image: image)


def _denoised(method: Method, main: TestSet, out: Path, pair: Pair) -> tuple[NDArray, list[NDArray[np.float64]]]:
    with np.load(method.folder(out) / "lesions" / f"{pair.key}.npz", allow_pickle=False) as held:
        return np.load(denoised_path(method, out, main, pair), allow_pickle=False), [held[key] for key in held.files]


def _kept_or_judged(
    config: StudyConfig, label: str, identity: str, main: TestSet, out: Path, look: Look
) -> list[dict[str, Any] | None]:
    stamp = lesions_stamp(config, main_test(main), identity)
    if kept_lesions(out, label, stamp) is None:
        keep_lesions(out, label, stamp, _judged(config, main, look))
    return kept_lesions(out, label, stamp) or []


def _over_seeds(entries: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Means over the trainings under which a lesion could be judged."""
    each = [one for one in entries if one is not None]
    if not each:
        return None
    warnings = sorted({warning for one in each for warning in one["warnings"]})
    means = {key: float(np.mean([one[key] for one in each])) for key in MEANS}
    jackknife: dict[str, Any] = {}
    if all(one["jackknife"] for one in each):  # the same patients: places are the same for every training
        kept = [one["jackknife"] for one in each]
        influence = {patient: float(np.mean([one["influence"][patient] for one in kept])) for patient in kept[0]["influence"]}
        jackknife = kept[0] | {"value": float(np.mean([one["value"] for one in kept])), "influence": influence}
    return each[0] | means | {"jackknife": jackknife, "warnings": warnings, "n_trainings": len(each)}


def _gains(after: Sequence[dict[str, Any] | None], before: Sequence[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """d′ of each lesion to each observer less that in the low dose, with its interval; `holm_p` is over all of one method's."""
    found = [_gain(*both) for both in zip(after, before, strict=True)]
    corrected = iter(holm([one["p"] for one in found if one is not None]))
    return [None if one is None else one | {"holm_p": next(corrected)} for one in found]


def _gain(after: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if after is None or before is None or not (after["jackknife"] and before["jackknife"]):
        return None
    try:
        return asdict(detectability_gain(_jackknife(after), _jackknife(before)))
    except DataError:  # nothing of the lesion is left, after and before
        return None


def _jackknife(entry: Mapping[str, Any]) -> Jackknife:
    held = entry["jackknife"]
    return Jackknife(value=held["value"], influence=tuple(held["influence"].values()), squared=held["squared"])


def _judged(config: StudyConfig, main: TestSet, look: Look) -> list[dict[str, Any] | None]:
    """d′ of each lesion to each observer in the images of one method; None where too few lesions found room.

    From what is inserted, noise and what denoising made of both is left: ROIs minus the noise-free image where there is one, else
    minus the normal dose, whose own noise then counts too. Each slice is seen at its own pixel size.
    """
    test = main_test(main)
    lesions, sizes = lesions_of(config), roi_sizes(config, test)
    found: list[tuple[list[NDArray], list[NDArray], list[Pair]]] = [([], [], []) for _ in sizes]
    for pair in test:
        stored = pair.images(main.folder).astype(np.float32)
        anatomy = stored[2] if pair.has_truth else stored[1]
        plain, present = look(pair)
        for (with_lesion, without, shown), lesion, size, rois in zip(found, lesions, sizes, present, strict=True):
            places = places_of(config, lesion, pair, main.folder)
            background = rois_at(anatomy, places, size=size)
            with_lesion.append(rois - background)
            without.append(rois_at(plain, places, size=size) - background)
            shown.extend([pair] * len(places))
    judged: list[dict[str, Any] | None] = []
    for (with_lesion, without, shown), lesion, size in zip(found, lesions, sizes, strict=True):
        for name, observe in {"CHO": _hotelling, "NPWE": _eye}.items():
            patients = list(dict.fromkeys(pair.patient for pair in shown))
            try:
                one = observe(np.concatenate(with_lesion), np.concatenate(without), shown, lesion, size)
            except DataError:  # too few lesions found room: no number is better than one that means nothing
                judged.append(None)
                continue
            judged.append(
                {
                    "lesion": f"{lesion.diameter_mm:g} mm, {lesion.contrast_hu:+g} HU".replace("-", "−"),
                    "observer": name,
                    **{key: getattr(one, key) for key in MEANS},
                    "n_lesions": one.n_present,
                    "warnings": list(one.warnings),
                    "jackknife": _named_jackknife(one.jackknife, patients),
                }
            )
    return judged


def _named_jackknife(jackknife: Jackknife | None, patients: Sequence[str]) -> dict[str, Any]:
    """What is kept of it; nothing where there were too few patients for one."""
    if jackknife is None:
        return {}
    influence = dict(zip(patients, jackknife.influence, strict=True))
    return {"value": jackknife.value, "squared": jackknife.squared, "influence": influence}


def _named(shown: Sequence[Pair]) -> list[str] | None:
    """The patient of each ROI; None if there are too few to tell how far they differ."""
    patients = [pair.patient for pair in shown]
    return patients if len(set(patients)) >= FEWEST_PATIENTS else None


def _hotelling(present: NDArray, absent: NDArray, shown: Sequence[Pair], lesion: Lesion, size: int) -> Detectability:
    channels = _channels(shown, lesion, size)
    return channelised_hotelling(present, absent, channels=channels, ensembles="paired", patients=_named(shown))


def _eye(present: NDArray, absent: NDArray, shown: Sequence[Pair], lesion: Lesion, size: int) -> Detectability:
    pixels = [pair.pixel_mm for pair in shown]
    return non_prewhitening_eye(present, absent, pixel_mm=pixels, ensembles="paired", patients=_named(shown))


def _channels(shown: Sequence[Pair], lesion: Lesion, size: int) -> NDArray[np.float64]:
    """The channels of each ROI, in units that make responses alike at any pixel size. Shape: (n, y, x, channel)."""
    of_pixel = {
        pixel_mm: pixel_mm * laguerre_gauss(size, pixel_mm=pixel_mm, width_mm=lesion.diameter_mm / 2, n_channels=CHANNELS)
        for pixel_mm in {pair.pixel_mm for pair in shown}
    }
    return np.stack([of_pixel[pair.pixel_mm] for pair in shown]) if shown else np.empty((0, size, size, CHANNELS))
