"""Put a trained model among the bundled ones.

Run: python tools/bundle.py FOLDER [--onnx-only]
FOLDER is what `finegrain train` made of a configuration that bears a bundled model's name. ONNX and torch are compared first. With
--onnx-only the torch weights stay behind, which `finegrain denoise` does not need and which take nearly half of the room.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finegrain.denoise import BUNDLED, LARGEST_DIFFERENCE_HU, find_model, load_denoiser, onnx_torch_difference_hu
from finegrain.errors import FinegrainError, ModelError
from finegrain.networks.card import ONNX, read_card, write_card
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series


def bundle(source: Path, *, onnx_only: bool, package: Path | None = None) -> Path:
    """The folder that the model was copied to; a model that lay there is gone only when the new one is in its place.

    Args:
        package: the folder of the bundled models; that of the installed package if None.

    Raises: ModelError for a model of another name, that folder itself, or files that do not agree, and as `read_card`.
    """
    card = read_card(source)
    if card.name not in BUNDLED:
        raise ModelError(f"expected a model called one of {', '.join(BUNDLED)}, got {card.name!r}; train it under that name")
    folder = (find_model().parent if package is None else package) / card.name
    if folder.resolve() == source.resolve():
        raise ModelError(f"{source} is the bundled model itself; give the folder that finegrain train made")
    differ = onnx_torch_difference_hu(load_denoiser(source), source, read_series(sample_folder()))
    if not differ <= LARGEST_DIFFERENCE_HU:
        raise ModelError(f"ONNX and torch differ by {differ:.3g} HU, expected at most {LARGEST_DIFFERENCE_HU} HU; export it again")
    kept = {name: digest for name, digest in card.sha256.items() if name == ONNX or not onnx_only}
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "model"
        new.mkdir()
        for name in kept:
            shutil.copy(source / name, new / name)
        write_card(new, card.model_copy(update={"sha256": kept}))
        read_card(new)
        with _moved_aside(folder):
            new.rename(folder)
    return folder


@contextmanager
def _moved_aside(folder: Path) -> Iterator[None]:
    """Give a folder's place to what is put there meanwhile, and delete it; if that fails, it comes back."""
    aside = folder.with_name(f".{folder.name}-before")
    if folder.exists():
        folder.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            aside.rename(folder)
        raise
    if aside.exists():
        shutil.rmtree(aside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--onnx-only", action="store_true")
    arguments = parser.parse_args()
    try:
        print(bundle(arguments.folder, onnx_only=arguments.onnx_only))
    except FinegrainError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
