"""Put a model folder among the bundled ones.

Run: python tools/bundle.py FOLDER [--onnx-only]
With --onnx-only the torch weights stay behind, which nothing but further training needs: half the size of a wheel.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from finegrain.denoise import BUNDLED, find_model
from finegrain.networks.card import ONNX, read_card, write_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--onnx-only", action="store_true")
    arguments = parser.parse_args()
    card = read_card(arguments.folder)
    if card.name not in BUNDLED:
        parser.error(f"expected a model that is called one of {', '.join(BUNDLED)}, got {card.name!r}; train it under that name")
    kept = {name: digest for name, digest in card.sha256.items() if name == ONNX or not arguments.onnx_only}
    folder = find_model(card.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in kept:
        shutil.copy(arguments.folder / name, folder / name)
    write_card(folder, card.model_copy(update={"sha256": kept}))
    read_card(folder)
    print(folder)


if __name__ == "__main__":
    main()
