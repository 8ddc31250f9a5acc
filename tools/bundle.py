"""Put a trained model among the bundled ones.

Run: python tools/bundle.py FOLDER [--onnx-only]
FOLDER is what `finegrain train` made of a configuration that bears a bundled model's name. ONNX and torch are compared first. With
--onnx-only the torch weights stay behind, which `finegrain denoise` does not need and which take nearly half of the room.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from finegrain.denoise import BUNDLED, LARGEST_DIFFERENCE_HU, find_model, load_denoiser, onnx_torch_difference_hu
from finegrain.networks.card import ONNX, read_card, write_card
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series


def bundle(source: Path, *, onnx_only: bool) -> Path:
    """The folder in the package that the model was copied to, whole or not at all.

    Raises: ValueError for a model of another name, that folder itself, or files that do not agree; ModelError as `read_card`.
    """
    card = read_card(source)
    if card.name not in BUNDLED:
        raise ValueError(f"expected a model called one of {', '.join(BUNDLED)}, got {card.name!r}; train it under that name")
    folder = find_model(card.name)
    if folder.resolve() == source.resolve():
        raise ValueError(f"{source} is the bundled model itself; give the folder that finegrain train made")
    differ = onnx_torch_difference_hu(load_denoiser(source), source, read_series(sample_folder()))
    if not differ <= LARGEST_DIFFERENCE_HU:
        raise ValueError(f"ONNX and torch differ by {differ:.3g} HU, expected at most {LARGEST_DIFFERENCE_HU} HU; export it again")
    kept = {name: digest for name, digest in card.sha256.items() if name == ONNX or not onnx_only}
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "model"
        new.mkdir()
        for name in kept:
            shutil.copy(source / name, new / name)
        write_card(new, card.model_copy(update={"sha256": kept}))
        read_card(new)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--onnx-only", action="store_true")
    arguments = parser.parse_args()
    try:
        print(bundle(arguments.folder, onnx_only=arguments.onnx_only))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
