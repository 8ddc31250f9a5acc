"""Make the sets of a frozen version, and prove that they are the ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import yaml

from finegrain.bench.frozen import Comparison, FrozenPair, compare, freeze, read_frozen
from finegrain.config import PairsConfig, ScanSource, config_of
from finegrain.errors import ConfigError, DataError
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import read_manifest

VERSIONS = ("v1",)

Told = Callable[[str, int, int], None]
"""Called with the set that is being built, how many of its tasks are done and how many there are."""


def bench_sets(version: str, *, with_scans: bool = True) -> dict[str, PairsConfig]:
    """The pairs configurations of a version, by the name of the set; without scans, the virtual patients alone.

    Raises: ConfigError for a version that does not exist.
    """
    if version not in VERSIONS:
        raise ConfigError(f"expected a version of finegrain-bench, {' or '.join(VERSIONS)}, got {version!r}")
    raw = yaml.safe_load(_packaged(f"{version}.yaml").read_text(encoding="utf-8"))
    sets = {}
    for name, values in raw.items():
        sources = [source for source in values["sources"] if with_scans or source["kind"] == "phantom"]
        if sources:
            sets[name] = config_of(PairsConfig, values | {"sources": sources})
    return sets


def frozen_pairs(version: str, *, with_scans: bool = True) -> list[FrozenPair]:
    """What each pair of a version must come out as."""
    return [pair for pair in read_frozen(_packaged(f"{version}.csv")) if with_scans or pair.collection == "phantom"]


def _packaged(name: str) -> Path:
    return Path(str(files("finegrain.bench"))) / name


def build_bench(version: str, out: Path, *, data_root: Path, with_scans: bool, workers: int, told: Told) -> list[FrozenPair]:
    """Build every set of a version in `out`, one store each; what is there is not made again. Gives what came out.

    Raises: FinegrainError as `build_pairs` does; DataError, before anything is made, for scans that are not there.
    """
    sets = bench_sets(version, with_scans=with_scans)
    wanted = {source.path for config in sets.values() for source in config.sources if isinstance(source, ScanSource)}
    if missing := sorted(path for path in wanted if not (data_root / path).exists()):
        raise DataError(
            f"expected the scans of finegrain-bench {version} below {data_root}, {', '.join(missing)} not found; docs/bench.md "
            "says where to get them, and --no-scans makes the virtual patients alone"
        )
    built = []
    for name, config in sets.items():
        build_pairs(config, out / name, data_root=data_root, workers=workers, progress=partial(told, name))
        built += freeze(name, read_manifest(out / name), out / name)
    return built


def check_bench(version: str, built: list[FrozenPair], *, with_scans: bool) -> Comparison:
    """How a build compares with the frozen version."""
    return compare(built, frozen_pairs(version, with_scans=with_scans))
