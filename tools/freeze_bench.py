"""Write the frozen list of a new version of finegrain-bench, once and for all.

Run: python tools/freeze_bench.py VERSION FOLDER --data-root DATA
FOLDER gets the sets. An existing list is not overwritten: a frozen version never changes.
"""

import argparse
from pathlib import Path

import finegrain.bench
from finegrain.bench.frozen import write_frozen
from finegrain.bench.run import build_bench


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("version")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    arguments = parser.parse_args()
    path = Path(finegrain.bench.__file__).parent / f"{arguments.version}.csv"
    if path.exists():
        raise SystemExit(f"{path} is frozen; make a new version instead")
    settings = {"data_root": arguments.data_root, "with_scans": True, "workers": 2}
    pairs = build_bench(arguments.version, arguments.folder, told=lambda name, done, total: print(name, done, total), **settings)
    write_frozen(path, pairs)


if __name__ == "__main__":
    main()
