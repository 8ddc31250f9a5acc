"""What a study keeps: the measures of each image of a test slice, the detectability of lesions, and what either holds for.

A slice's file holds the measures of every image that was ever measured on it. Each image's carry a stamp of all that they depend
on, so a method that is added to a study costs the others nothing: not even their denoised slices are needed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from finegrain.config import StudyConfig
from finegrain.files import json_safe, slug, write_whole
from finegrain.networks.card import file_sha256
from finegrain.pairs.dataset import half_per_mm_of
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions
from finegrain.study.images import Recipe

DENOISING = (
    "acquisition.py",
    "denoise.py",
    "hu.py",
    "local_noise.py",
    *(f"networks/{name}.py" for name in ("blocks", "engine", "peers", "skeleton")),
    "study/classical.py",
    "study/methods.py",
)
"""What denoises, of this package: when it changes, slices are denoised and measured again; statistics and pages are not in it."""

MIXING = ("equaliser.py", "frequency.py", "local_noise.py", "study/images.py")
"""What makes blends and equalised images of a denoised slice."""

MEASURING = (
    "frequency.py",
    "noise_power.py",
    *(f"evaluate/{name}.py" for name in ("bands", "fidelity", "regions", "run", "spectra", "texture")),
    "study/measuring.py",
)
"""What measures images."""

INSERTING = ("frequency.py", "evaluate/bands.py", "evaluate/lesion.py", "evaluate/regions.py", "study/lesions.py")
"""What puts lesions into slices, and finds the places."""

JUDGING = ("evaluate/observer.py", "study/detecting.py")
"""What looks for the lesions."""


def _hashes(names: Sequence[str]) -> list[str]:
    return [file_sha256(Path(__file__).parent.parent / name) for name in names]


SHA256 = {names: _hashes(names) for names in (DENOISING, MIXING, MEASURING, INSERTING, JUDGING)}
"""Taken when the program is loaded: what a file is changed to while a study runs does not decide its numbers."""

DIGITS = 9
"""Significant digits of a kept number: more than any table shows, half of what a float would take."""


def stamp_of(program: Sequence[tuple[str, ...]], *parts: Any) -> str:
    """Hex digits of all that a stored result depends on: these parts, this much of the program, and its packages."""
    return hashlib.sha256(json.dumps([[SHA256[names] for names in program], _versions(), *parts]).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return versions()


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; nothing if there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def image_stamp(config: StudyConfig, pair: Pair, identity: str | None, recipe: Recipe) -> str:
    """What the measures of an image of a test slice hold for; `identity` of its method is None for the low dose itself."""
    program = (MEASURING,) if recipe == Recipe() else (MEASURING, MIXING)
    return stamp_of(program, config.protocols, config.band, pair.sha256, pair.pixel_mm, identity, asdict(recipe))


def _slice_path(out: Path, key: str) -> Path:
    return out / "measured" / f"{key}.json"


def keep_slice(out: Path, key: str, measured: Mapping[str, dict[str, Any]]) -> None:
    """Add the measures of some images to those of a slice.

    Args:
        key: of the slice in its test set.
        measured: label of an image → its stamp, metrics and noise power.
    """
    write_whole(_slice_path(out, key), _lines({**read_json(_slice_path(out, key)), **measured}))


def kept_of_slice(out: Path, key: str, stamps: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Label of an image → what was kept of it, for those that are kept under the given stamp."""
    held = read_json(_slice_path(out, key))
    found = {label: held[label] for label, stamp in stamps.items() if held.get(label, {}).get("stamp") == stamp}
    return {
        label: {**row, "metrics": _numbers(row["metrics"]), "nps": None if row["nps"] is None else _numbers(row["nps"])}
        for label, row in found.items()
    }


def rois_stamp(config: StudyConfig, test: Sequence[Pair], identity: str) -> str:
    """What the ROIs around lesions under a method hold for; `identity` is the method's, or the name of an image as stored."""
    assert config.lesions is not None
    pairs = [(pair.sha256, pair.pixel_mm, half_per_mm_of(pair.kernel), pair.patient) for pair in test]
    return stamp_of((DENOISING, INSERTING), config.lesions.model_dump(exclude={"seeds"}), pairs, identity)


def lesions_stamp(config: StudyConfig, test: Sequence[Pair], identity: str) -> str:
    """What the detectability of lesions under a method holds for; `identity` as for `rois_stamp`."""
    return stamp_of((JUDGING,), rois_stamp(config, test, identity))


def _lesions_path(out: Path, label: str) -> Path:
    return out / "detected" / f"{slug(label)}.json"


def keep_lesions(out: Path, label: str, stamp: str, judged: list[dict[str, Any] | None]) -> None:
    """Keep what the observers found under a method, one entry for each of them and each lesion; None where one could not judge."""
    write_whole(_lesions_path(out, label), _lines({"stamp": stamp, "lesions": judged}))


def kept_lesions(out: Path, label: str, stamp: str) -> list[dict[str, Any] | None] | None:
    """What `keep_lesions` kept under this stamp; None if nothing was."""
    held = read_json(_lesions_path(out, label))
    return [None if one is None else _numbers(one) for one in held["lesions"]] if held.get("stamp") == stamp else None


def _lines(held: Mapping[str, Any]) -> str:
    """JSON with a line for each entry, which version control can tell apart."""
    lines = (f"{json.dumps(key)}: {json.dumps(_short(json_safe(value)))}" for key, value in held.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(value: Any) -> Any:
    """The same with fewer digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def _numbers(held: Any) -> Any:
    """What was kept, with NaN where JSON has none."""
    if held is None:
        return math.nan
    if isinstance(held, Mapping):
        return {key: _numbers(value) for key, value in held.items()}
    return [_numbers(each) for each in held] if isinstance(held, list) else held
