"""What travels with the weights: a card that a reader, and the program, can trust. No torch here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from finegrain.config import NetworkConfig
from finegrain.equaliser import BandEqualiser, RingTable
from finegrain.errors import ConfigError, ModelError
from finegrain.files import json_safe, write_whole

CARD, ONNX, WEIGHTS = "model.json", "model.onnx", "model.safetensors"

IMAGE, ACQUISITION = "image", "acquisition"
"""Inputs of the ONNX file; the second only where the network listens to it."""

FORMAT = 1
"""Of the model folder; changes when an older program would misread it."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Range = tuple[Number, Number]
DoseFraction = Annotated[float, Field(gt=0, le=1)]
LARGEST_STRIDE = 1024
"""What a card may ask slices to be padded to a multiple of; a default, taken from nowhere, that keeps the padding small."""


class DoseGains(BaseModel):
    """The gains of the band equaliser for one dose, or for a dose that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dose_fraction: DoseFraction | None = Field(description="Over the normal dose; null for a dose that is not known.")
    of_output: RingTable = Field(description="Amplitudes of the network's output, for each ring and level.")
    of_input: RingTable = Field(description="Amplitudes of what the network was shown, for each ring and level.")


class BandGains(BaseModel):
    """The band equaliser that was calibrated for this network, see `finegrain.equaliser`, and on what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: RingTable = Field(description="Local signal to noise that the gains are for, for each frequency ring.")
    gains: tuple[DoseGains, ...] = Field(description="The first for a dose that is not known, then by rising dose.")
    pairs: int = Field(ge=1, description="Validation slices that they were calibrated on.")
    patients: int = Field(ge=1)
    data_sha256: Sha256 = Field(description="Of these pairs, as that of the training pairs.")

    @property
    def equaliser(self) -> BandEqualiser:
        """What applies them."""
        return BandEqualiser.from_tables(self.model_dump())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            _ = self.equaliser
        except ConfigError as error:
            raise ValueError(str(error)) from None  # so that it is reported with the field's place
        return self


class ModelCard(BaseModel):
    """The card `model.json` of a model folder. Nothing has a default: a field that is missing is refused, null says not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(description="Version of this format.")
    name: str = Field(min_length=1)
    version: str
    network: NetworkConfig
    parameters: int = Field(ge=1, description="Numbers that training found.")
    hu_range: Range = Field(description="HU that the network sees as 0 and 1.")
    stride: int = Field(ge=1, le=LARGEST_STRIDE, description="Heights and widths are padded to a multiple of this.")
    band_gains: BandGains | None = Field(description="Of the band equaliser; null if none were calibrated.")
    training_data: str = Field(description="What the weights may be said to come from: scans, licences, citations.")
    training_pairs: int = Field(ge=1, description="Slices that it was trained on.")
    training_patients: int = Field(ge=1)
    data_sha256: Sha256 = Field(description="Of the sha256 of every training pair's pixels, sorted, one a line.")
    dose_fractions: tuple[DoseFraction, ...] = Field(description="Of the low doses that it was trained on.")
    kernels: tuple[str, ...]
    pixel_mm: Range = Field(description="Smallest and largest pixel of the training pairs.")
    slice_mm: Range | None = Field(description="Thinnest and thickest slice.")
    photons: Range | None = Field(description="Fewest and most photons per ray at normal dose, where it is simulated.")
    noise_hu: Range | None = Field(
        description="Least and most noise of the inputs above 0.4 Nyquist: median over the body of `local_noise.local_noise_hu`."
    )
    training_config: dict[str, Any] = Field(description="The resolved configuration, without paths and names of patients.")
    training_config_hash: str = Field(description="Of the whole configuration.")
    steps: int = Field(ge=0)
    versions: dict[str, str] = Field(description="Of the packages that it was trained with.")
    metrics: dict[str, Number | None] = Field(description="On the validation pairs.")
    licence: str = Field(min_length=1)
    intended_use: str = Field(min_length=1)
    limits: str = Field(min_length=1, description="Where it was not tried, or fails.")
    sha256: dict[str, Sha256] = Field(description="Of every other file of the folder.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("hu_range", "pixel_mm", "slice_mm", "photons", "noise_hu"):
            interval = getattr(self, name)
            if interval is not None and not (interval[0] < interval[1] if name == "hu_range" else 0 <= interval[0] <= interval[1]):
                raise ValueError(f"{name} must be a rising pair, got {list(interval)}")
        return self


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, its files checked against their hashes.

    Raises: ModelError naming the file that is missing, altered or not understood.
    """
    path = folder / CARD
    try:
        values = from_json(path.read_bytes(), allow_inf_nan=False)
    except OSError:
        raise ModelError(f"{folder} is no model folder: it holds no {CARD}") from None
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); copy the whole model folder, or export the model again") from None
    found = values.get("format", "none") if isinstance(values, dict) else "none"
    if type(found) is not int or found != FORMAT:  # True is 1 too
        raise ModelError(
            f"{path}: expected the field 'format' to be {FORMAT}, got {str(found)[:32]}; "
            "update finegrain if the model is newer, export the model again if it is older"
        )
    try:
        card = ModelCard.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{path}: {_first_error(error)}") from None
    if ONNX not in card.sha256:
        raise ModelError(f"{path} gives no sha256 of {ONNX}; export the model again")
    for name, expected in card.sha256.items():
        if Path(name).name != name:
            raise ModelError(f"{path} names the file {name!r}; expected a plain name inside the folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}; copy the whole model folder")
        if (actual := file_sha256(folder / name)) != expected:
            raise ModelError(f"{folder / name} was altered: expected sha256 {expected[:12]}…, got {actual[:12]}…")
    return card


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the card"
    if first["type"] == "missing":
        return f"the field {place!r} is missing; export the model again"
    if first["type"] == "extra_forbidden":
        return f"the field {place!r} is not known; update finegrain, or export the model again"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card of a model folder, whole or not at all."""
    text = json.dumps(json_safe(card.model_dump(mode="json")), indent=1, ensure_ascii=False)
    write_whole(folder / CARD, text + "\n")


def card_rows(card: ModelCard) -> list[list[str]]:
    """The card as a table for people; the first row is the heading."""
    gains = "none; texture must be 0"
    if card.band_gains is not None:
        found = card.band_gains
        doses = ", ".join(f"{one.dose_fraction:.0%} dose" for one in found.gains if one.dose_fraction is not None)
        largest = max(gain for one in found.gains for of_ring in one.of_output for gain in of_ring)
        levels = f"{len(found.levels[0])} levels of signal to noise with that of edges"
        gains = f"up to {largest:.2f}, {levels}, {doses or 'one set for all doses'}; "
        gains += f"{found.pairs} validation slices, {found.patients} patients"
    facts = {
        "model": f"{card.name} v{card.version}",
        "network": f"{card.network.family}, {card.parameters:,} parameters",
        "HU range": _interval(card.hu_range),
        "trained on": card.training_data or "not told",
        "pairs": f"{card.training_pairs:,} slices of {card.training_patients} patients, sha256 {card.data_sha256[:12]}…",
        "doses": ", ".join(f"{dose:.0%}" for dose in card.dose_fractions) or "not known",
        "kernels": ", ".join(card.kernels) or "not known",
        "pixel [mm]": _interval(card.pixel_mm),
        "slice [mm]": _interval(card.slice_mm),
        "photons per ray": _interval(card.photons),
        "noise of the input [HU]": _interval(card.noise_hu),
        "training": f"{card.steps:,} steps, configuration {card.training_config_hash}",
        **{f"validation {name}": "not known" if value is None else f"{value:.4g}" for name, value in card.metrics.items()},
        "band gains": gains,
        "licence": card.licence,
        "intended use": card.intended_use,
        "limits": card.limits,
        **{f"sha256 of {name}": f"{value[:16]}…" for name, value in card.sha256.items()},
    }
    return [["card", f"format {card.format}"], *([name, value] for name, value in facts.items())]


def _interval(values: tuple[float, float] | None) -> str:
    if values is None:
        return "not known"
    return f"{values[0]:.5g}" if values[0] == values[1] else f"{values[0]:.5g} to {values[1]:.5g}"


def file_sha256(path: Path) -> str:
    """Sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
