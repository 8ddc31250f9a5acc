"""What a study keeps of each method: its measures on each test slice and the detectability of lesions, and what they hold for.

A slice's file holds the measures of every method that was ever measured on it. Each method's carry a stamp of all that they depend
on, so a method that is added to a study, or changed, costs the others nothing: not even their denoised slices are needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from finegrain.config import StudyConfig
from finegrain.files import json_safe, slug, write_whole
from finegrain.networks.card import file_sha256
from finegrain.pairs.manifest import Pair
from finegrain.provenance import versions

PROGRAM = (
    "acquisition.py",
    "denoise.py",
    "equaliser.py",
    "frequency.py",
    "hu.py",
    "noise_power.py",
    "networks/*.py",
    *(f"evaluate/{name}.py" for name in ("bands", "fidelity", "lesion", "observer", "regions", "run", "spectra", "texture")),
    "study/classical.py",
    "study/measuring.py",
    "study/methods.py",
)
"""What denoises and measures, of this package: when it changes, slices are done again. Statistics and pages are not part of it."""

BLENDS = (0.1, 0.2, 0.3, 0.5)
"""Shares of the input added back to the spatial-only network's output: a free way to high-frequency energy."""

EQUALISERS = (0.5, 1.0)
"""Strengths of the band equaliser on the same output: another free way."""

DIGITS = 9
"""Significant digits of a kept number: more than any table shows, half of what a float would take."""


def stamp_of(*parts: Any) -> str:
    """Hex digits of all that a stored result depends on: these parts, the program that denoises and measures, its packages."""
    return hashlib.sha256(json.dumps([_program(), versions(), *parts]).encode()).hexdigest()


@cache
def _program() -> list[str]:
    package = Path(__file__).parent.parent
    return [file_sha256(path) for name in PROGRAM for path in sorted(package.glob(name))]


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; nothing if there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def slice_stamp(config: StudyConfig, pair: Pair, facts: Mapping[str, Any]) -> str:
    """What the measures of a method on a slice hold for.

    Args:
        facts: `identity` of the method, and its `equaliser` if it has one; empty for the low dose itself.
    """
    method = (facts.get("identity"), facts.get("equaliser"))
    return stamp_of(config.protocols, config.band, (BLENDS, EQUALISERS), pair.sha256, pair.pixel_mm, method)


def _slice_path(out: Path, key: str) -> Path:
    return out / "measured" / f"{key}.json"


def keep_slice(out: Path, key: str, measured: Mapping[str, tuple[str, list[dict[str, Any]]]]) -> None:
    """Add the measures of some methods to those of a slice.

    Args:
        key: of the slice in its test set.
        measured: label of a method → stamp, rows.
    """
    held = read_json(_slice_path(out, key))
    held |= {label: {"stamp": stamp, "rows": rows} for label, (stamp, rows) in measured.items()}
    write_whole(_slice_path(out, key), _lines(held))


def kept_of_slice(out: Path, key: str, stamps: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Label of a method → its rows, of those whose measures are kept under the given stamp."""
    held = read_json(_slice_path(out, key))
    return {label: held[label]["rows"] for label, stamp in stamps.items() if held.get(label, {}).get("stamp") == stamp}


def lesions_stamp(config: StudyConfig, test: Sequence[Pair], identity: str | None) -> str:
    """What the detectability of lesions under a method holds for; `identity` is None for the low dose itself."""
    assert config.lesions is not None
    return stamp_of(config.lesions.model_dump(exclude={"seeds"}), [pair.sha256 for pair in test], identity)


def _lesions_path(out: Path, label: str) -> Path:
    return out / "detected" / f"{slug(label)}.json"


def keep_lesions(out: Path, label: str, stamp: str, judged: list[dict[str, Any] | None]) -> None:
    """Keep what the observer found under a method, one entry for each lesion; None where it could not judge."""
    write_whole(_lesions_path(out, label), _lines({"stamp": stamp, "lesions": judged}))


def kept_lesions(out: Path, label: str, stamp: str) -> list[dict[str, Any] | None] | None:
    """What `keep_lesions` kept under this stamp; None if nothing was."""
    held = read_json(_lesions_path(out, label))
    return held["lesions"] if held.get("stamp") == stamp else None


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
