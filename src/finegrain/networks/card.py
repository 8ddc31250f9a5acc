"""What travels with the weights: a card that a reader, and the program, can trust. No torch here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finegrain.config import NetworkConfig
from finegrain.errors import ModelError

CARD, ONNX, WEIGHTS = "model.json", "model.onnx", "model.safetensors"


class ModelCard(BaseModel):
    """The card `model.json` of a model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    network: NetworkConfig
    parameters: int
    hu_range: tuple[float, float] = Field(description="HU that the network sees as 0 and 1.")
    stride: int = Field(description="Heights and widths are padded to a multiple of this.")
    training_data: str
    dose_fractions: tuple[float, ...]
    kernels: tuple[str, ...]
    pixel_mm: tuple[float, float]
    intended_use: str
    licence: str = "Apache-2.0"
    training_config: str = Field(description="Hash of the training configuration.")
    steps: int
    metrics: dict[str, float] = Field(default_factory=dict, description="On the validation pairs.")
    sha256: dict[str, str] = Field(description="Of every other file of the folder.")


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, its files checked against their hashes.

    Raises: ModelError naming the file that is missing, altered or not understood.
    """
    path = folder / CARD
    try:
        card = ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"{folder} is no model folder: it holds no {CARD}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if ONNX not in card.sha256:
        raise ModelError(f"{path} gives no sha256 of {ONNX}; export the model again")
    for name, expected in card.sha256.items():
        if Path(name).name != name:
            raise ModelError(f"{path} names the file {name!r}; expected a plain name inside the folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}; copy the whole model folder")
        if (found := file_sha256(folder / name)) != expected:
            raise ModelError(f"{folder / name} was altered: expected sha256 {expected[:12]}…, got {found[:12]}…")
    return card


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card of a model folder."""
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
