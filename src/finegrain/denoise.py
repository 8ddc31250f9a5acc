"""Model folder + volume → denoised volume. ONNX Runtime by default; nothing of training is imported."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.acquisition import ACQUISITION_NUMBERS, Acquisition
from finegrain.equaliser import BandEqualiser
from finegrain.errors import ConfigError, ModelError
from finegrain.hu import AIR_HU, HURange
from finegrain.local_noise import median_noise_hu
from finegrain.networks.card import ACQUISITION, ONNX, ModelCard, read_card
from finegrain.networks.engine import Engine, torch_engine
from finegrain.networks.onnx_file import check_onnx
from finegrain.scan.derived import Derivation
from finegrain.scan.privacy import shown
from finegrain.scan.volume import CTVolume
from finegrain.spread import spread

BUNDLED = ("finegrain-s", "finegrain-b")
"""Names of the models that ship with the package: the default, and a larger one."""

BEYOND = 1.15
"""Factor by which a scan may lie outside the range of a training before it is called unlike it; ours."""

BODY_HU = -500.0
"""A smoothed slice above this is body, or what is closed in by it; what lies in the noise of air is none."""

NOISE_SLICES = 7
"""Slices, evenly over a volume, whose noise is looked at; ours."""

LARGEST_DIFFERENCE_HU = 0.05
"""By which ONNX Runtime and torch may differ on one model; a scanner stores whole HU."""


class Denoiser:
    """An engine with what it must know of HU and sizes.

    The engine's answer is used as a change of the input, so that CT numbers outside the network's range (metal) survive. There are
    three steps, always in this order: the network; `texture`, the band equaliser on what the network made; `strength`, the share of
    the whole change that is added to the input.

    Args:
        engine: see `onnx_engine` and `torch_engine`.
        hu_range: HU that the network sees as [0, 1].
        stride: heights and widths are padded to a multiple of this.
        card: the model's card, if it came from a folder.
        equaliser: the band equaliser of this network, if it was calibrated.
        takes_acquisition: whether the engine wants the acquisition as a second argument.
        turns: over how many turns and flips the engine averages; see `thorough`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        hu_range: HURange,
        stride: int,
        card: ModelCard | None = None,
        equaliser: BandEqualiser | None = None,
        takes_acquisition: bool = False,
        turns: int = 1,
    ) -> None:
        self.engine, self.hu_range, self.stride, self.card = engine, hu_range, stride, card
        self.equaliser, self.takes_acquisition, self.turns = equaliser, takes_acquisition, turns

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.card.name} v{self.card.version}" if self.card else "an unnamed network"

    @property
    def default_texture(self) -> float:
        """What the command line takes for `texture`: 1 where gains were calibrated, so that texture has a normal dose's energy."""
        return 0.0 if self.equaliser is None else 1.0

    def thorough(self) -> Denoiser:
        """The same denoiser, eight times as slow: the mean of what it makes of a slice in all its turns and flips.

        What a network errs by depends on how the slice lies, and part of it cancels in the mean.
        """
        turned = copy(self)
        turned.engine, turned.turns = eight_turns(self.engine), 8
        return turned

    def told(self, acquisition: Acquisition | None, *, texture: float = 0.0) -> Acquisition:
        """What of a scan is told: a dose beyond those of the training as the nearest of them, or the network would extrapolate.

        A network that does not listen is told nothing, and an equaliser that is used and has gains by dose the dose.
        """
        if acquisition is None:
            return Acquisition()
        if not self.takes_acquisition:
            by_dose = texture > 0 and self.equaliser is not None and bool(self.equaliser.by_dose)
            acquisition = Acquisition(dose_fraction=acquisition.dose_fraction if by_dose else None)
        dose, trained = acquisition.dose_fraction, self.card.dose_fractions if self.card else ()
        if dose is None or not trained:
            return acquisition
        return replace(acquisition, dose_fraction=min(max(dose, min(trained)), max(trained)))

    def notes(self, acquisition: Acquisition | None, *, texture: float = 0.0) -> list[str]:
        """What a user should know of what network and equaliser are told, a line each."""
        given = acquisition.dose_fraction if acquisition else None
        if given is None:
            return []
        told = self.told(acquisition, texture=texture).dose_fraction
        if told is None:
            return [f"{self.name} does not listen to the dose; the dose fraction changed nothing"]
        if told == given or self.card is None:
            return []
        low, high = min(self.card.dose_fractions), max(self.card.dose_fractions)
        return [f"{self.name} was trained on dose fractions of {low:g} to {high:g}; {given:g} was told to it as {told:g}"]

    def unlike_training(self, volume: CTVolume) -> list[str]:
        """Where a volume lies beyond what the network was trained on, a line each: pixels, noise, kernel.

        Nothing is refused: a network may well do beyond its training, but nobody has shown it there.
        """
        if self.card is None:
            return []
        found = [("pixels", max(volume.pixel_mm), self.card.pixel_mm, "mm")]
        noise = _noise_of_volume_hu(volume)
        if noise is not None and self.card.noise_hu is not None:
            found.append(("noise above 0.4 Nyquist", noise, self.card.noise_hu, "HU"))
        lines = [
            f"{what} of {value:.3g} {unit}, trained on {low:.3g} to {high:.3g} {unit}"
            for what, value, (low, high), unit in found
            if not low / BEYOND <= value <= high * BEYOND
        ]
        kernel = str(volume.acquisition.get("ConvolutionKernel", "")).split("\\")[0]
        if kernel and self.card.kernels and kernel not in self.card.kernels:
            lines.append(f"kernel {shown(kernel)}, trained on {', '.join(self.card.kernels)}")
        return [f"unlike the training of {self.name}: {line}; compare the result with the input" for line in lines]

    def derivation(self, *, strength: float, texture: float = 0.0, acquisition: Acquisition | None = None) -> Derivation:
        """How a series that this denoiser made is to be described in DICOM."""
        self._check(strength, texture)
        if self.card is None:
            raise ModelError("a network without a model card cannot sign a DICOM series; export it as a model folder first")
        # 1 and 1.0 are one setting and must give one UID.
        parameters: dict[str, Any] = {
            "strength": float(strength),
            "texture": float(texture),
            "hu_range": list(self.card.hu_range),
        }
        if self.turns > 1:
            parameters["turns"] = self.turns
        if texture > 0 and self.equaliser is not None:  # the gains stand in the card, which the hash of the weights does not guard
            gains = json.dumps(self.equaliser.tables())
            parameters["band_gains"] = hashlib.sha256(gains.encode()).hexdigest()[:12]
        told = self.told(acquisition, texture=texture)
        known = {"dose_fraction": told.dose_fraction, "kernel_half_per_mm": told.kernel_half_per_mm}
        parameters |= {name: float(value) for name, value in known.items() if value is not None}
        return Derivation(
            kind="denoised",
            model=self.card.name,
            model_version=self.card.version,
            model_sha256=self.card.sha256[ONNX],
            parameters=parameters,
            series_label=f"AI-DN {self.name}",
        )

    def denoise_slice(
        self,
        hu: NDArray[np.floating],
        *,
        strength: float = 1.0,
        texture: float = 0.0,
        acquisition: Acquisition | None = None,
    ) -> NDArray[np.float32]:
        """A slice in HU, shape (y, x), with `strength` times the noise that the network finds taken away.

        Args:
            strength: 0 gives the input, 1 the full effect.
            texture: 0 gives what the network made, 1 the high-frequency energy of a normal dose; the command line takes
                `default_texture`.
            acquisition: what is known of the scan; see `told` for what of it the network is told.

        Raises: ModelError if the network's answer is not finite, or for `texture` where no gains were calibrated.
        """
        self._check(strength, texture)
        unit = self.hu_range.to_unit(hu)
        rows, columns = unit.shape
        below, right = -rows % self.stride, -columns % self.stride
        mode: Any = "reflect" if min(rows, columns) > max(below, right) else "edge"
        padded = np.pad(unit, ((0, below), (0, right)), mode=mode)[None, None]
        told = self.told(acquisition, texture=texture)
        answer = self.engine(padded, *((told.numbers()[None],) if self.takes_acquisition else ()))
        if answer.shape != padded.shape:
            raise ModelError(
                f"the network was shown {padded.shape} and answered {answer.shape}, expected the same; check the model"
            )
        change = (answer[0, 0, :rows, :columns] - unit) * np.float32(self.hu_range.span)
        if not np.isfinite(change).all():
            raise ModelError("the network gave NaN or infinite values; nothing was written: check the input's HU and the model")
        if texture > 0 and self.equaliser is not None:
            shown = self.hu_range.to_hu(unit)  # without metal beyond the range, whose edges would ring
            change = self.equaliser.apply(shown + change, shown, strength=texture, dose_fraction=told.dose_fraction) - shown
        return (hu + np.float32(strength) * change).astype(np.float32)

    def iterate(
        self, volume: CTVolume, *, strength: float = 1.0, texture: float = 0.0, acquisition: Acquisition | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The denoised slices of a volume, one after another; the settings are those of `denoise_slice`.

        Padding is shown to the network as air and comes back as it was.
        """
        self._check(strength, texture)
        for hu, padding in zip(volume.hu, volume.padding, strict=True):
            if strength == 0:
                yield hu
            else:
                shown = np.where(padding, np.float32(AIR_HU), hu)
                denoised = self.denoise_slice(shown, strength=strength, texture=texture, acquisition=acquisition)
                yield np.where(padding, hu, denoised)

    def denoise(
        self,
        volume: CTVolume,
        *,
        strength: float = 1.0,
        texture: float = 0.0,
        acquisition: Acquisition | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> CTVolume:
        """The denoised volume: `iterate`, collected. `progress` is called with the number of finished slices."""
        denoised = np.empty_like(volume.hu)  # filled in place: a whole-body scan is a gigabyte, and must not be held many times
        slices = self.iterate(volume, strength=strength, texture=texture, acquisition=acquisition)
        for index, hu in enumerate(slices):
            denoised[index] = hu
            if progress is not None:
                progress(index + 1)
        return replace(volume, hu=denoised)

    def _check(self, strength: float, texture: float) -> None:
        """Raises: ConfigError unless both lie in [0, 1]; ModelError for texture without gains."""
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength must lie in [0, 1], 0 for the input and 1 for the full effect; got {strength}")
        if not 0 <= texture <= 1:
            raise ConfigError(f"texture must lie in [0, 1], 0 for the network alone and 1 for full energy; got {texture}")
        if texture > 0 and self.equaliser is None:
            raise ModelError(f"{self.name} has no band gains, so texture must be 0, got {texture}; train it again to have them")


def _noise_of_volume_hu(volume: CTVolume) -> float | None:
    """Median over slices of the noise in the body, as in a card; None if there is no body."""
    levels = []
    for k in spread(range(len(volume)), NOISE_SLICES):
        hu = np.where(volume.padding[k], np.float32(AIR_HU), volume.hu[k])
        body = ndimage.binary_fill_holes(ndimage.gaussian_filter(hu, 2.0) > BODY_HU)
        levels.append(median_noise_hu(hu, body))
    known = [level for level in levels if level is not None]
    return float(np.median(known)) if known else None


def load_denoiser(model: Path | str | None = None, *, threads: int | None = None) -> Denoiser:
    """The denoiser of a model folder, or of a bundled model by its name; of `finegrain-s` if none is given.

    Raises: ModelError if a file is missing, altered or not understood, or if no bundled model has the name.
    """
    folder = find_model(model)
    card = read_card(folder)
    check_onnx(folder / ONNX)
    session = _session(folder / ONNX, threads)
    return Denoiser(
        _engine_of(session, folder / ONNX),
        hu_range=HURange(*card.hu_range),
        stride=card.stride,
        card=card,
        equaliser=card.band_gains.equaliser if card.band_gains else None,
        takes_acquisition=ACQUISITION in {given.name for given in session.get_inputs()},
    )


def eight_turns(engine: Engine) -> Engine:
    """An engine that gives the mean over the four quarter turns of a slice and of its mirror image."""

    def run(unit: NDArray[np.float32], *told: NDArray[np.float32]) -> NDArray[np.float32]:
        total = np.zeros_like(unit)
        for turn in range(4):
            turned = np.rot90(unit, turn, axes=(-2, -1))
            total += np.rot90(engine(turned, *told), -turn, axes=(-2, -1))
            total += np.rot90(engine(turned[..., ::-1], *told)[..., ::-1], -turn, axes=(-2, -1))
        return total / np.float32(8)

    return run


def find_model(model: Path | str | None = None) -> Path:
    """Folder of a model: of a bundled one where its name is given as a string, of `finegrain-s` if nothing is, else what is given.

    A folder that is called like a bundled model is meant by a path: `Path("finegrain-s")`, or `"./finegrain-s"`.

    Raises: ModelError if a plain name is neither that of a bundled model nor that of a folder.
    """
    given = BUNDLED[0] if model is None else model
    if given in BUNDLED:
        return Path(str(files("finegrain"))) / "weights" / given
    folder = Path(given)
    if len(folder.parts) == 1 and not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        if folder.name in BUNDLED:
            raise ModelError(f"there is no folder {folder.name}; give the bundled model's name as a string, without a path")
        raise ModelError(f"expected a model folder or one of {', '.join(BUNDLED)}, got {shown(str(given))}; check path or name")
    return folder


def onnx_engine(path: Path, *, threads: int | None = None) -> Engine:
    """An engine on ONNX Runtime, CPU. A network that listens to the acquisition is told nothing of it unless it is given."""
    return _engine_of(_session(path, threads), path)


def _session(path: Path, threads: int | None) -> Any:
    """Raises: ModelError if ONNX Runtime cannot load the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    # Threads that spin while they wait for one another gain 7 % on an idle machine and lose 25 % on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised, and told in one line
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for every way a file can be wrong
        raise ModelError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _engine_of(session: Any, path: Path) -> Engine:
    names = [given.name for given in session.get_inputs()]
    images = [name for name in names if name != ACQUISITION]
    if len(images) != 1:
        raise ModelError(f"{path} takes the inputs {', '.join(names)}; expected an image, and {ACQUISITION} or nothing more")

    def run(unit: NDArray[np.float32], acquisition: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        fed = {images[0]: np.ascontiguousarray(unit)}
        if ACQUISITION in names:
            fed[ACQUISITION] = np.zeros((1, ACQUISITION_NUMBERS), np.float32) if acquisition is None else acquisition
        try:
            return session.run(None, fed)[0]
        except Exception as error:  # as in `_session`
            rows, columns = unit.shape[-2:]
            raise ModelError(f"{path} cannot compute {rows} × {columns} pixels by ONNX Runtime: {_first_line(error)}") from None

    return run


def onnx_torch_difference_hu(by_onnx: Denoiser, folder: Path, volume: CTVolume) -> float:
    """The largest difference in HU between what a folder's denoiser and its torch weights make of a volume; needs torch.

    A network that listens to the acquisition is compared with a told one.
    """
    from finegrain.networks.checkpoint import network_of

    assert by_onnx.card is not None
    by_torch = Denoiser(
        torch_engine(network_of(by_onnx.card, folder)),
        card=by_onnx.card,
        hu_range=by_onnx.hu_range,
        stride=by_onnx.stride,
        takes_acquisition=by_onnx.takes_acquisition,
    )
    told = Acquisition(dose_fraction=0.25, kernel_half_per_mm=0.4, pixel_mm=volume.pixel_mm[0])
    differences = (
        float(np.abs(by_onnx.denoise_slice(hu, acquisition=told) - by_torch.denoise_slice(hu, acquisition=told)).max())
        for hu in volume.hu
    )
    return max(differences)
