"""What a model folder says of the run that it comes from: the data, the measures, and the band gains, which are found here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain import __version__
from finegrain.acquisition import Acquisition
from finegrain.config import TrainingRun
from finegrain.equaliser import CalibrationSlice, calibrate_equaliser
from finegrain.errors import DataError
from finegrain.files import json_safe
from finegrain.hu import HURange
from finegrain.local_noise import median_noise_hu
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import FORMAT, BandGains, ModelCard
from finegrain.networks.engine import Engine, torch_engine
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork
from finegrain.pairs.dataset import half_per_mm_of
from finegrain.pairs.manifest import Pair
from finegrain.pairs.qc.view import View
from finegrain.provenance import versions
from finegrain.spread import spread
from finegrain.train.loop import FitResult
from finegrain.train.validation import MOST_SLICES, PSNR_NAME, compared, validation_set

CALIBRATION_SLICES = 64
"""Most validation slices that the band equaliser is calibrated on; a default, taken from nowhere."""
NOISE_SLICES = 64
"""Most training slices whose noise is measured for the card; a default, taken from nowhere."""

NAMING = {"path", "low_dose", "normal_dose", "patient", "store"}
"""Keys of a configuration that may name people: folders are called after patients surprisingly often."""


def card_of_run(config: TrainingRun, result: FitResult[DenoisingNetwork], pairs: Sequence[Pair], store: Path) -> ModelCard:
    """What the model folder says of itself; the band equaliser is calibrated here, on the validation pairs."""
    network, validation = result.network, [pair for pair in pairs if pair.split == "validation"]
    engine = torch_engine(network)
    gains = calibrated_gains(engine, validation, store, network.hu_range)
    return ModelCard(
        name=config.name,
        version=__version__,
        network=config.network,
        parameters=parameter_count(network),
        hu_range=(network.hu_range.low, network.hu_range.high),
        stride=STRIDE,
        steps=result.best_step,
        versions=versions(),
        band_gains=gains,
        metrics=card_metrics(engine, gains, validation, store, network.hu_range),
        sha256={},
        **facts_of_training(config, [pair for pair in pairs if pair.split == "train"], store),
    )


def facts_of_training(config: TrainingRun, trained_on: Sequence[Pair], store: Path) -> dict[str, Any]:
    """The fields of the card that do not depend on the network that came out."""
    doses = tuple(sorted({pair.dose_fraction for pair in trained_on if pair.dose_fraction is not None}))
    kernels = tuple(sorted({_without_folder(pair.kernel) for pair in trained_on if pair.kernel}))
    pixel_mm = _range(pair.pixel_mm for pair in trained_on)
    assert pixel_mm is not None
    return {
        "format": FORMAT,
        "training_data": config.training_data,
        "training_pairs": len(trained_on),
        "training_patients": len({pair.patient for pair in trained_on}),
        "data_sha256": data_sha256(trained_on),
        "dose_fractions": doses,
        "kernels": kernels,
        "pixel_mm": pixel_mm,
        "slice_mm": _range(pair.slice_mm for pair in trained_on),
        "photons": _range(pair.photons for pair in trained_on),
        "noise_hu": noise_of_inputs_hu(trained_on, store),
        "training_config": public_config(config.model_dump(mode="json")),
        "training_config_hash": config.hash(),
        "licence": config.licence,
        "intended_use": config.intended_use,
        "limits": _limits(doses, kernels, pixel_mm),
    }


def data_sha256(pairs: Iterable[Pair]) -> str:
    """One hash of what pairs hold, whatever their order and names: of the sha256 of each one's pixels, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(pair.sha256 for pair in pairs)).encode()).hexdigest()


def calibrated_gains(engine: Engine, validation: Sequence[Pair], store: Path, hu_range: HURange) -> BandGains | None:
    """The band equaliser of a network, on validation pairs spread over those there are; None if none of them shows a body."""
    chosen = spread(validation, CALIBRATION_SLICES)
    slices = []
    for pair in chosen:
        noisy, reference = _cropped(pair.images(store)[:2])
        unit = hu_range.to_unit(noisy)
        output, told = (
            hu_range.to_hu(engine(unit[None, None], one.numbers()[None])[0, 0])
            for one in (Acquisition(), Acquisition(dose_fraction=pair.dose_fraction))
        )
        body = _body(noisy, reference, pair)
        slices.append(CalibrationSlice(hu_range.to_hu(unit), output, reference, body, pair.dose_fraction, told))
    try:
        equaliser = calibrate_equaliser(slices)
    except DataError:
        return None
    return BandGains(
        **equaliser.tables(digits=4),
        pairs=len(chosen),
        patients=len({pair.patient for pair in chosen}),
        data_sha256=data_sha256(chosen),
    )


def card_metrics(
    engine: Engine, gains: BandGains | None, validation: Sequence[Pair], store: Path, hu_range: HURange
) -> dict[str, float | None]:
    """The measures that training goes by, of the network and of the network with the equaliser at full strength, dose told or not.

    The PSNR also of a network that is told the kernel, and dose and kernel, where they are known.
    """
    chosen = spread(validation, MOST_SLICES)
    crops = [(inputs.numpy(), targets.numpy()) for inputs, targets in validation_set(chosen, store, hu_range)]

    def outputs(told: Sequence[Acquisition]) -> list[NDArray[np.float32]]:
        made = (engine(noisy, one.numbers()[None]) for (noisy, _), one in zip(crops, told, strict=True))
        return [hu_range.to_hu(unit[0, 0]) for unit in made]

    inputs, targets = ([hu_range.to_hu(crop[kind][0, 0]) for crop in crops] for kind in (0, 1))
    plain, known = outputs([Acquisition()] * len(crops)), [_known(pair) for pair in chosen]
    measures = compared(zip(plain, targets, strict=True))
    if gains is not None:
        doses = [Acquisition(dose_fraction=one.dose_fraction) for one in known]
        for what, images, told in (
            ("texture 1", plain, [Acquisition()] * len(crops)),
            *((("texture 1,dose told", outputs(doses), doses),) if any(one != Acquisition() for one in doses) else ()),
        ):
            equalised = [
                gains.equaliser.apply(output, noisy, strength=1.0, dose_fraction=one.dose_fraction)
                for output, noisy, one in zip(images, inputs, told, strict=True)
            ]
            measures |= {_with(what, name): value for name, value in compared(zip(equalised, targets, strict=True)).items()}
    for what, told in {
        "kernel told": [replace(one, dose_fraction=None) for one in known],
        "dose and kernel told": known,
    }.items():
        if any(one != Acquisition() for one in told):
            measures[_with(what, PSNR_NAME)] = compared(zip(outputs(told), targets, strict=True))[PSNR_NAME]
    rounded: dict[str, float | None] = json_safe({name: round(value, 4) for name, value in measures.items()})
    return rounded


def _known(pair: Pair) -> Acquisition:
    """All that a network can be told of a pair, as the sampler tells it."""
    half_per_mm = half_per_mm_of(pair.kernel)
    return Acquisition(pair.dose_fraction, half_per_mm, None if half_per_mm is None else pair.pixel_mm)


def _with(what: str, name: str) -> str:
    """The key of a measure of images that were made in another way: the protocol stays where it is."""
    return f"{name.removesuffix(']')},{what}]" if name.endswith("]") else f"{name}[{what}]"


def noise_of_inputs_hu(pairs: Sequence[Pair], store: Path) -> tuple[float, float] | None:
    """Least and most noise of low-dose images in the body; None if none of them shows a body."""
    found = []
    for pair in spread(pairs, NOISE_SLICES):
        noisy, reference = _cropped(pair.images(store)[:2])
        level = median_noise_hu(noisy, _body(noisy, reference, pair))
        found.append(None if level is None else round(level, 2))
    return _range(found)


def _body(noisy: NDArray[np.float32], reference: NDArray[np.float32], pair: Pair) -> NDArray[np.bool_]:
    return View.make(noisy, reference, pixel_mm=pair.pixel_mm, padding=None).body


def _cropped(images: NDArray[np.int16]) -> NDArray[np.float32]:
    """Images of whole strides: a rest at the lower and right edge is left out. Shape: (image, y, x)."""
    rows, columns = (length // STRIDE * STRIDE for length in images.shape[-2:])
    return images[:, :rows, :columns].astype(np.float32)


def _range(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def public_config(value: Any) -> Any:
    """A configuration as it may travel: without the keys of `NAMING`, and of a kernel's file the name alone."""
    if isinstance(value, dict):
        return {key: public_config(item) for key, item in value.items() if key not in NAMING}
    if isinstance(value, list):
        return [public_config(item) for item in value]
    return _without_folder(value) if isinstance(value, str) else value


def _without_folder(name: str) -> str:
    """A kernel's name; of a kernel's file the name alone, whichever way its path is written.

    >>> _without_folder("C:\\\\Smith_John\\\\mine.yaml"), _without_folder("B30f")
    ('mine.yaml', 'B30f')
    """
    return PureWindowsPath(name).name if name.lower().endswith((".yaml", ".yml")) else name


def _limits(doses: Sequence[float], kernels: Sequence[str], pixel_mm: tuple[float, float]) -> str:
    """What the card warns of, from what the network was trained on."""
    kinds = f"doses of {min(doses):.0%} to {max(doses):.0%} of the normal one" if doses else "doses that the data do not tell"
    return (
        f"Trained on {kinds}, on the kernels {', '.join(kernels) or 'that the data do not tell'} and on pixels of "
        f"{pixel_mm[0]:.2f} to {pixel_mm[1]:.2f} mm; elsewhere it was not tried. What noise hides is not brought back: structure "
        "as faint as the noise may be smoothed away, and texture above 0 raises what is left of noise and gives some of it back."
    )
