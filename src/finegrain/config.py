"""Every knob: one frozen model per stage, loaded from YAML; an unknown key is refused and the nearest one named."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from finegrain.errors import ConfigError
from finegrain.files import slug, write_whole
from finegrain.frequency import DCT_BLOCK, Band


class Config(BaseModel):
    """Base of all configurations: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def hash(self) -> str:
        """Twelve hex digits that change when any value does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


Split = Literal["train", "validation", "test"]


class SimulateConfig(Config):
    """One simulation. None stands for what the scan, or the phantom, decides; in an output folder nothing is left open.

    Neither a path nor a UID belongs here: folders are named after patients surprisingly often.
    """

    source: str = Field("scan", pattern=r"^(scan|phantom:[a-z0-9-]+)$", description="scan, or phantom:NAME.")
    source_hash: str | None = Field(None, description="Of the scan's pixels and geometry: which scan it was.")
    dose_fractions: tuple[float, ...] | None = Field(
        None, min_length=1, description="Each in (0, 1); 0.25 if nothing else is said."
    )
    mas: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="mAs. Of a scan: each a target, whose dose fraction follows from the mAs of the header. Of a phantom: one, the "
        "normal dose.",
    )
    photons: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Photons per ray at full dose. A scan's are matched to the noise in its soft tissue, a phantom's are those of "
        "200 mAs.",
    )
    photons_from: Literal["image", "mas"] = Field(
        "image",
        description="How a scan's photons are found: image, from the noise in its soft tissue; mas, from mAs, kVp and slice "
        "thickness in its header, by what a Siemens Definition AS+ needs.",
    )
    kernel: str | None = Field(None, description="Reconstruction kernel: that of the scan's header; B30f for a phantom.")
    kernel_frequency_per_mm: tuple[float, ...] | None = Field(
        None, description="Where the kernel is known, so that it can be had again."
    )
    kernel_transfer: tuple[float, ...] | None = Field(None, description="W at these frequencies.")
    scanner: str = Field("siemens-definition", description="Fan geometry.")
    bowtie: str | None = Field(None, description="Bow-tie filter; this and the next five as in `Exposure`.")
    modulation: float | None = Field(None, ge=0, le=1, description="Strength of the angular tube-current modulation.")
    modulation_z: float | None = Field(None, ge=0, le=2, description="Strength of the modulation along z; phantoms only.")
    electronic_noise: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="SD of the read-out in photons; by slice thickness."
    )
    adaptive_below: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Photons per ray below which neighbours are averaged; as scanners do."
    )
    crosstalk: float | None = Field(None, ge=0, lt=0.25, description="Share of a channel's signal that leaks into each neighbour.")
    noise: Literal["independent", "shared"] | None = Field(
        None,
        description="independent: each dose of a phantom is a scan of its own. shared: the low doses hold the noise of the normal "
        "dose and more, as those of a real scan always do.",
    )
    polychromatic_kvp: int | None = Field(None, description="A beam of that tube voltage with water correction; phantoms only.")
    patients: int | None = Field(None, ge=1, description="Number of virtual patients.")
    first_patient: int | None = Field(None, ge=0, description="Anatomy seed of the first; the next have the next seeds.")
    slices: int | None = Field(None, ge=1, description="Slices of each patient, or repeats of a test phantom.")
    slice_mm: float | None = Field(None, gt=0, allow_inf_nan=False, description="Slice thickness; for a scan that of the header.")
    size: int | None = Field(None, ge=2, le=4096, description="Rows and columns of the images.")
    pixel_mm: float | None = Field(None, gt=0, allow_inf_nan=False, description="Pixel size.")
    format: Literal["nifti", "dicom"] | None = Field(
        None, description="Of a phantom's images: nifti if nothing is said. A scan's are written in its own."
    )
    seed: int = Field(0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        doses = self.dose_fractions or ()
        if not all(0.001 <= dose < 1 for dose in doses):
            raise ValueError(f"each dose fraction must lie in [0.001, 1), got {', '.join(f'{dose:g}' for dose in doses)}")
        if len({f"{dose:g}" for dose in doses}) < len(doses):
            raise ValueError(f"two dose fractions are the same to six digits: {', '.join(f'{dose:g}' for dose in doses)}")
        if not all(0 < mas < float("inf") for mas in self.mas or ()):
            raise ValueError(f"mAs must be above 0, got {self.mas}")
        return self


HEADER_KERNEL = "header"
"""Stands for the reconstruction kernel that a scan's own header names."""


class PhantomSource(Config):
    """Virtual patients: procedural anatomy with exact truth."""

    kind: Literal["phantom"] = "phantom"
    region: Literal["thorax", "abdomen", "head", "pelvis", "shoulder"] = "thorax"
    patients: int = Field(4, ge=1, description="Number of virtual patients.")
    first_seed: int = Field(0, ge=0, description="Anatomy seed of the first; the next have the next seeds.")
    slices: int = Field(2, ge=1, description="Slices of each patient.")
    slice_mm: float = Field(12.0, gt=0, description="Distance between these slices in mm.")
    noise: Literal["independent", "inserted"] = Field(
        "independent",
        description="independent: the two doses are two scans. inserted: the low dose is the normal-dose image plus the missing "
        "noise, as in data sets made by noise insertion.",
    )
    split: Split | None = Field(None, description="Put these patients here instead of drawing.")


class ScanSource(Config):
    """Real normal-dose scans: DICOM, NIfTI, NRRD or MetaImage; only the missing noise is added."""

    kind: Literal["scan"] = "scan"
    path: str = Field(description="Folder or file; relative paths start at the data root.")
    patient: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of this patient in the split, for a path that holds one series: scans of one patient share it. Without, "
        "every series below the path is taken, and patients get pseudonyms.",
    )
    every: int = Field(1, ge=1, description="Take each n-th slice.")
    repeats: int = Field(1, ge=1, description="How often each slice is simulated, each time drawn anew.")
    own_kernel: str | None = Field(
        None,
        description="Kernel the scan was reconstructed with. When given, the scan is filtered to the simulated kernel first, so "
        "that its own noise has the spectrum of the noise that is added; else it is taken as it is.",
    )
    kernels: tuple[str, ...] = Field(
        (),
        description="Kernels for this scan, instead of those of all; none sharper than its own, which cannot be made from it. "
        "header stands for the one that its header names.",
    )
    split: Split | None = Field(None, description="Put this patient here instead of drawing.")


class CollectionSource(Config):
    """Real scans at two doses, paired by a collection's own layout; their slices are matched by position."""

    kind: Literal["collection"] = "collection"
    path: str = Field(
        "",
        description="Folder of the collection, or its CSV file; relative paths start at the data root. Not for the layout folders.",
    )
    layout: Literal["auto", "mayo", "tcia-ldct", "lodopab", "folders", "csv"] = Field(
        "auto", description="How the collection is laid out; auto looks at it. See docs/data-sets.md."
    )
    low_dose: str | None = Field(None, description="Layout folders: folder or file of the low dose.")
    normal_dose: str | None = Field(None, description="Layout folders: folder or file of the normal dose.")
    dose_fraction: float | None = Field(
        None, gt=0, lt=1, description="Dose of the low-dose images; by the collection's own rule if it has one."
    )
    noise: Literal["independent", "inserted"] | None = Field(
        None,
        description="independent: the two doses are two scans. inserted: the low dose holds the noise of the normal dose and more. "
        "By the collection's own rule if it has one.",
    )
    every: int = Field(1, ge=1, description="Take each n-th slice.")
    split: Split | None = Field(None, description="Put these patients here instead of drawing.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        folders = self.low_dose is not None and self.normal_dose is not None
        if (self.layout == "folders") != folders or (self.low_dose is None) != (self.normal_dose is None):
            raise ValueError("the layout folders needs low_dose and normal_dose, which no other layout takes")
        if bool(self.path) == folders:
            raise ValueError("give a path, or for the layout folders low_dose and normal_dose instead")
        return self


Source = Annotated[PhantomSource | ScanSource | CollectionSource, Field(discriminator="kind")]


class PairsConfig(Config):
    """Which pairs of low and normal dose are made."""

    sources: tuple[Source, ...] = Field(min_length=1)
    dose_fractions: tuple[float, ...] = Field((0.25,), min_length=1, description="One is drawn for each slice; in (0, 1).")
    kernels: tuple[str, ...] = Field(("B30f",), min_length=1, description="Reconstruction kernel, drawn for each slice.")
    photons: tuple[float, float] = Field((4e5, 2e6), description="Photons per ray of a phantom scan, drawn log-uniformly.")
    size: int = Field(512, ge=64, description="Rows and columns of a phantom image.")
    pixel_mm: tuple[float, float] = Field(
        (0.7, 0.7),
        description="Pixel size in mm, drawn uniformly; a real scan is resampled to it, and keeps its own with (0, 0).",
    )
    test_fraction: float = Field(0.4, ge=0, lt=1, description="Share of the patients kept for the test.")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the patients kept for validation.")
    qc: Literal["reject", "report"] = Field(
        "reject",
        description="Whether pairs that quality control rejects are left out, or measured only and kept; a picture that stands "
        "under two patients is always left out.",
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not all(0 < dose < 1 for dose in self.dose_fractions):
            raise ValueError(f"dose_fractions must lie in (0, 1), got {self.dose_fractions}")
        if not 0 < self.photons[0] <= self.photons[1]:
            raise ValueError(f"photons must be a rising pair of positive numbers, got {self.photons}")
        if self.pixel_mm != (0, 0) and not 0.1 <= self.pixel_mm[0] <= self.pixel_mm[1]:
            raise ValueError(f"pixel_mm must be a rising pair from 0.1 mm up, or (0, 0), got {self.pixel_mm}")
        if self.pixel_mm == (0, 0) and any(source.kind == "phantom" for source in self.sources):
            raise ValueError("pixel_mm (0, 0) keeps the pixels of a scan, but a phantom has none of its own; give its pixel size")
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction + validation_fraction leave no patient to train on")
        return self

    def named_kernels(self) -> set[str]:
        """Every reconstruction kernel that is named here."""
        scans = [source for source in self.sources if isinstance(source, ScanSource)]
        own = {kernel for scan in scans for kernel in (*scan.kernels, scan.own_kernel) if kernel}
        return {*self.kernels, *own} - {HEADER_KERNEL}


def _check_band(band: tuple[float, float], dct_block: int) -> None:
    """Raises: ValueError if no coefficient lies in the band."""
    try:
        Band(*band).mask(dct_block)
    except ConfigError as error:
        raise ValueError(str(error)) from None  # so that it is reported with the field's place


def _check_block_fits(loss: LossConfig, train: TrainConfig) -> None:
    """Raises: ValueError if a patch may hold no whole block, wherever its grid starts."""
    if loss.weight > 0 and train.patch < 2 * loss.dct_block - 1:
        raise ValueError(f"a patch of {train.patch} pixels may hold no whole block of {loss.dct_block}; use larger patches")


NETWORK_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "s": {"channels": (16, 32, 48), "blocks": (2, 1, 2), "heads": (2, 3)},
    "b": {"channels": (24, 64, 128), "blocks": (3, 2, 3), "heads": (4, 8)},
}
"""s for a CPU: at most 150,000 parameters and 12 GMAC for a 512² slice. b for a GPU: about 1.2 million and at most 60 GMAC."""


class NetworkConfig(Config):
    """A network: one skeleton, three block families. `size: s` or `size: b` stands for the numbers of `NETWORK_SIZES`."""

    family: Literal["convolution", "attention", "hybrid"] = "hybrid"
    channels: tuple[int, int, int] = Field((16, 32, 48), description="Channels at full, half and quarter resolution.")
    blocks: tuple[int, int, int] = Field((2, 1, 2), description="Blocks of the encoder, at the coarse scale, of the decoder.")
    heads: tuple[int, int] = Field((2, 3), description="Attention heads at half and quarter resolution.")

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "size" not in values:
            return values
        size, rest = values["size"], {name: value for name, value in values.items() if name != "size"}
        if size not in NETWORK_SIZES:
            raise ValueError(f"unknown size {size!r}; known are {', '.join(NETWORK_SIZES)}")
        if both := sorted(NETWORK_SIZES[size].keys() & rest):
            raise ValueError(f"size {size} says {' and '.join(both)} already; give one or the other")
        return NETWORK_SIZES[size] | rest

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if min(*self.channels, *self.heads) < 1 or min(self.blocks) < 0:
            raise ValueError(
                f"channels and heads must be at least 1 and blocks not below 0, got {self.channels}, {self.heads} and {self.blocks}"
            )
        for channels, heads in zip(self.channels[1:], self.heads, strict=True):
            if channels % heads:
                raise ValueError(f"{channels} channels do not divide into {heads} heads")
        return self


class LossConfig(Config):
    """The dual-domain loss: mean squared error plus λ times a constraint on the high DCT band."""

    weight: float = Field(0.0, ge=0, allow_inf_nan=False, description="λ. Zero is the spatial-only baseline.")
    mode: Literal["coefficient", "energy", "adaptive"] = Field(
        "coefficient",
        description="coefficient: mean |difference| over Ω_h, as in the paper. energy: |log energy ratio| per band. adaptive: "
        "coefficient, each weighted by the share that the input can tell, S / (S + N) per band and place.",
    )
    average: Literal["arithmetic", "geometric"] = Field(
        "arithmetic",
        description="Over the patches of a batch. arithmetic: as in the paper; noisy patches count most. geometric: the mean of "
        "logarithms, so that every dose and kernel counts alike, as it does in a mean of PSNR in dB.",
    )
    dct_block: int = Field(8, ge=2, le=64, description="Side of a DCT block in pixels.")
    band: tuple[float, float] = Field((0.4, 1.5), description="Ω_h in band_unit, [low, high].")
    band_unit: Literal["nyquist", "cycles_per_mm", "kernel"] = Field(
        "nyquist",
        description="nyquist: fractions of it. cycles_per_mm: for patches of pixel_mm. kernel: fractions of the highest frequency "
        "that the reconstruction kernel of each patch lets through, read from the noise of its pair; the band must hold 1.",
    )
    pixel_mm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Pixel size that a band in cycles_per_mm is meant for."
    )
    pool_blocks: int = Field(
        4, ge=1, description="Side of the neighbourhood, in blocks, over which energies are averaged, where they are."
    )
    smooth_gate: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Places where the target's energy in Ω_h is below this many times its own noise count for nothing; 0 counts "
        "all, 1.6 keeps edges and what evaluation calls fine texture.",
    )

    @property
    def depends_on_place(self) -> bool:
        """Whether some places of an image count more than others."""
        return self.mode == "adaptive" or self.smooth_gate > 0

    @property
    def needs_inputs(self) -> bool:
        """Whether the loss must be given the network's input, from which it reads the noise."""
        return self.weight > 0 and (self.depends_on_place or self.band_unit == "kernel")

    def coefficients(self) -> NDArray[np.bool_]:
        """Which DCT coefficients may belong to Ω_h: all that oscillate where only the noise of a pair can tell. Shape: (u, v)."""
        if self.band_unit == "kernel":
            return Band(0, 2).mask(self.dct_block)
        return Band(*self.band, unit=self.band_unit).mask(self.dct_block, pixel_mm=self.pixel_mm)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.band_unit == "cycles_per_mm") != (self.pixel_mm is not None):
            raise ValueError(f"pixel_mm goes with band_unit cycles_per_mm and no other, got {self.band_unit} and {self.pixel_mm}")
        if self.band_unit == "kernel" and not 0 <= self.band[0] < 1 <= self.band[1]:
            raise ValueError(f"a band in fractions of the kernel's reach needs 0 ≤ low < 1 ≤ high, got {list(self.band)}")
        try:
            self.coefficients()
        except ConfigError as error:
            raise ValueError(str(error)) from None  # so that it is reported with the field's place
        return self


class TrainConfig(Config):
    """How a network is trained."""

    steps: int = Field(1000, ge=1)
    batch: int = Field(8, ge=1, description="Patches per step.")
    patch: int = Field(64, ge=32, multiple_of=32, description="Side of a training patch in pixels.")
    doses: tuple[float, float] | None = Field(
        None,
        description="Lowest and highest dose fraction between which each patch of a pair with inserted noise gets one of its own, "
        "never below that of the pair; without it the doses are those of the pairs.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Peak of the warm-up and cosine schedule.")
    warmup: int = Field(50, ge=0, description="Steps of linear warm-up.")
    ema: float = Field(0.995, ge=0, lt=1, description="Decay of the averaged weights, which are those that are kept.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    validate_every: int = Field(250, ge=1, description="Steps between validations.")
    checkpoint_every: int = Field(250, ge=1, description="Steps between checkpoints; a validation makes one too.")
    checkpoint_minutes: float = Field(10, gt=0, description="Minutes after which a checkpoint is due in any case.")
    threads: int = Field(2, ge=1, description="CPU threads.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the network is trained; auto takes a GPU if there is one."
    )
    bf16: bool = Field(False, description="The network computes in bfloat16 where that is safe; weights and loss stay float32.")
    compile: bool = Field(False, description="Compile the network with torch.compile: slow to start, faster on a GPU.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events; needs the package tensorboard.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _rising_doses(self) -> Self:
        if self.doses is not None and not 0 < self.doses[0] <= self.doses[1] < 1:
            raise ValueError(f"doses must be a lowest and a highest dose fraction in (0, 1), got {list(self.doses)}")
        return self


class PairsInput(Config):
    """Where a run takes its pairs from: it makes them, or reads a store."""

    pairs: PairsConfig | None = Field(None, description="The pairs that the run makes for itself.")
    store: str | None = Field(
        None, description="Instead: a store that finegrain pairs has built; relative paths start at the data root."
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.pairs is None) == (self.store is None):
            raise ValueError("give either pairs or a store")
        return self


class TrainingRun(PairsInput):
    """One network, trained once: the input of `finegrain train`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    intended_use: str = "Research on noise in CT. Not a medical device; not for diagnosis."
    training_data: str = Field("", description="What the weights may be said to come from: scans, licences, citations.")
    licence: str = Field("not stated", min_length=1, description="Of the weights that the run makes.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_block_fits(self.loss, self.train)
        return self


class TrainedArm(Config):
    """What a study trains on the same batches as everything else."""

    name: str
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; the study's if not given.")
    seeds: int | None = Field(
        None, ge=1, description="Trained with the first so many of the study's seeds, if it is too costly for all."
    )


class Arm(TrainedArm):
    """One network of ours in a study: a family and a loss on the study's skeleton."""

    kind: Literal["network"] = "network"
    family: Literal["convolution", "attention", "hybrid"]
    loss: LossConfig = LossConfig()
    network: NetworkConfig | None = Field(
        None,
        description="A skeleton of its own, e.g. {size: b}, in which the family of the arm goes. Such an arm is not on equal terms "
        "with the others and stands outside the paper's comparisons, beside networks of others and filters.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_family(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("network"), dict):
            return values
        family = values["network"].get("family", values.get("family"))
        if family != values.get("family"):
            raise ValueError(f"the arm is of the family {values.get('family')} and its network of {family}; say it once")
        return values | {"network": values["network"] | {"family": family}}


class PeerArm(TrainedArm):
    """A network of others, trained with the mean squared error."""

    kind: Literal["peer"] = "peer"
    peer: Literal["RED-CNN", "ResNet", "CTformer"]
    widths: tuple[int, ...] = Field((), description="Its widths; as published if not given.")


class ClassicalArm(Config):
    """A denoiser that is not trained; its one strength is the one with the best PSNR on the validation pairs."""

    kind: Literal["classical"] = "classical"
    name: str
    method: Literal["bm3d", "nlm", "tv"] = Field(
        description="bm3d: block matching, needs the package bm3d (free for non-commercial use). nlm: non-local means. tv: total "
        "variation (Chambolle)."
    )
    strengths: tuple[float, ...] = Field(
        (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0),
        min_length=1,
        description="Tried on the validation pairs, in units of the noise that is estimated from each slice; beyond the first "
        "and the last too, if that is the best. One alone is taken as it is.",
    )


class Sweep(Config):
    """Copies of one network arm, each with another weight λ or another Ω_h."""

    arm: str = Field(description="Name of the arm that is varied.")
    weights: tuple[float, ...] = Field((), description="Values of λ.")
    bands: tuple[tuple[float, float], ...] = Field((), description="Values of Ω_h, in the arm's band_unit.")


StudyArm = Annotated[
    Annotated[Arm, Tag("network")] | Annotated[PeerArm, Tag("peer")] | Annotated[ClassicalArm, Tag("classical")],
    Discriminator(lambda arm: arm.get("kind", "network") if isinstance(arm, dict) else getattr(arm, "kind", None)),
]

PAPER_ARMS = (
    Arm(name="convolution only", family="convolution"),
    Arm(name="attention only", family="attention"),
    Arm(name="hybrid, spatial loss", family="hybrid"),
    Arm(name="hybrid, dual-domain loss", family="hybrid", loss=LossConfig(weight=0.05)),
)


class LesionConfig(Config):
    """Lesions that a study inserts into its test slices, to measure whether they can still be detected."""

    diameters_mm: tuple[float, ...] = Field((3.0, 6.0, 12.0), min_length=1, description="Of the lesions.")
    contrasts_hu: tuple[float, ...] = Field((-40.0, -20.0, -8.0), min_length=1, description="At the centre of each; ours.")
    per_slice: int = Field(6, ge=1, description="Lesions of each diameter in a test slice, as far as its soft tissue has room.")
    seeds: int | None = Field(
        None,
        ge=1,
        description="Looked for under the networks of the first so many seeds, if all would cost too much: every diameter takes "
        "as long as the test slices themselves.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(self.diameters_mm) != len(self.contrasts_hu):
            raise ValueError(f"each diameter needs a contrast, got {len(self.diameters_mm)} and {len(self.contrasts_hu)}")
        if min(self.diameters_mm) <= 0 or 0 in self.contrasts_hu:
            raise ValueError("diameters must be positive and contrasts other than 0")
        return self


class StudyConfig(PairsInput):
    """The paper's experiment: pairs → networks → evaluation → statistics → report."""

    title: str = "Low-dose CT denoising study"
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    arms: tuple[StudyArm, ...] = PAPER_ARMS
    proposed: str = Field("hybrid, dual-domain loss", description="The network that is compared with every other arm.")
    contender: str | None = Field(
        None, description="Another network arm, beyond the paper, that is compared with every other arm in the same way."
    )
    seeds: tuple[int, ...] = Field(
        (), description="Each network is trained once with each; the seed of train alone if none is given. A claim needs three."
    )
    sweeps: tuple[Sweep, ...] = ()
    protocols: tuple[str, ...] = Field(
        ("abdomen-40/400", "chest--600/1500"), min_length=1, description="PSNR and SSIM protocols; the claims are about the first."
    )
    band: tuple[float, float] = Field((0.4, 1.5), description="Ω_h of the measures, fractions of Nyquist.")
    lesions: LesionConfig | None = Field(LesionConfig(), description="Lesions for detectability d′; null leaves it out.")
    generalisation: dict[str, PairsInput] = Field(
        {}, description="Other pairs, by name, whose test patients are denoised and measured too: unseen doses, kernels, scanners."
    )

    @property
    def all_arms(self) -> tuple[StudyArm, ...]:
        """The arms and those that sweeps make of them."""
        return self.arms + tuple(arm for sweep in self.sweeps for arm in self._swept(sweep))

    def _swept(self, sweep: Sweep) -> Iterator[Arm]:
        arm = next((arm for arm in self.arms if arm.name == sweep.arm and isinstance(arm, Arm)), None)
        if arm is None:
            raise ValueError(f"a sweep varies {sweep.arm!r}, which is no network arm of this study")
        changes: list[tuple[str, dict[str, Any]]] = [(f"λ {weight:g}", {"weight": weight}) for weight in sweep.weights]
        changes += [(f"Ω_h {low:g} to {high:g}", {"band": (low, high)}) for low, high in sweep.bands]
        for name, change in changes:
            loss = LossConfig.model_validate(arm.loss.model_dump() | change)
            yield arm.model_copy(update={"name": f"{arm.name}, {name}", "loss": loss})

    @property
    def own_arms(self) -> tuple[Arm, ...]:
        """The networks of ours on equal terms: on the study's skeleton, at its learning rate, trained with each of its seeds."""
        return tuple(arm for arm in self.arms if isinstance(arm, Arm) and self._is_on_equal_terms(arm))

    def _is_on_equal_terms(self, arm: Arm) -> bool:
        return arm.network is None and arm.learning_rate is None and self.seeds_of(arm) == self.all_seeds

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that each network is trained with."""
        return self.seeds or (self.train.seed,)

    def seeds_of(self, arm: StudyArm) -> tuple[int | None, ...]:
        """The seeds that an arm is trained with; None alone for one that is not trained."""
        return (None,) if isinstance(arm, ClassicalArm) else self.all_seeds[: arm.seeds]

    def has_lesions(self, seed: int | None) -> bool:
        """Whether lesions are looked for under what is trained with this seed; None for what is not trained."""
        return self.lesions is not None and (seed is None or seed in self.all_seeds[: self.lesions.seeds])

    @property
    def leads(self) -> tuple[str, ...]:
        """The networks that are compared with every other arm: the proposed one, and the contender if there is one."""
        return (self.proposed,) if self.contender is None else (self.proposed, self.contender)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        arms = self.all_arms
        names = [arm.name for arm in arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms share a name: {names}")
        for name in names:
            if not slug(name):
                raise ValueError(f"the arm name {name!r} gives no file name; it needs a letter a-z or a digit")
        if len({slug(name) for name in names}) < len(names):
            raise ValueError(f"two arms share a file name, which keeps letters a-z and digits alone: {names}")
        networks = [arm for arm in arms if isinstance(arm, Arm)]
        on_equal_terms = [arm.name for arm in self.own_arms]
        for what, name in zip(("proposed", "contender"), self.leads, strict=False):
            if name not in on_equal_terms:
                raise ValueError(f"{what} arm {name!r} is none of {on_equal_terms}, the networks on equal terms")
        if self.contender == self.proposed:
            raise ValueError(f"the contender {self.contender!r} is the proposed arm itself; name another, or none")
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise ValueError(f"two seeds are the same: {list(self.all_seeds)}")
        if len({slug(name) for name in self.generalisation}) < len(self.generalisation) or not all(map(slug, self.generalisation)):
            raise ValueError(f"the names under generalisation must give different file names, got {list(self.generalisation)}")
        _check_band(self.band, DCT_BLOCK)
        for arm in networks:
            _check_block_fits(arm.loss, self.train)
        return self


ConfigType = TypeVar("ConfigType", bound=Config)


def load_config(path: Path, kind: type[ConfigType]) -> ConfigType:
    """A configuration from a YAML file.

    Raises: ConfigError in one line that names the field; for an unknown key, also the nearest known one.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_error(error, kind)}") from None


def config_of(kind: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """A configuration of values, e.g. those of a command line.

    Raises: ConfigError in one line that names the field.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_error(error, kind).removeprefix("the file: ")) from None


def save_config(config: Config, path: Path) -> None:
    """Write a configuration as YAML that `load_config` gives back."""
    write_whole(path, yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True))


def _first_error(error: ValidationError, kind: type[BaseModel]) -> str:
    first: dict[str, Any] = error.errors()[0]  # type: ignore[assignment]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        known = [name for name in _field_names(kind) if name != first["loc"][-1]]  # known elsewhere, but not here
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {place!r}; the nearest known key is {nearest[0]!r}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


def _field_names(kind: type[BaseModel]) -> list[str]:
    names: set[str] = set()
    waiting: list[Any] = [kind]
    while waiting:
        model = waiting.pop()
        for argument in getattr(model, "__args__", ()):
            waiting.append(argument)
        if isinstance(model, type) and issubclass(model, BaseModel):
            names.update(model.model_fields)
            waiting.extend(field.annotation for field in model.model_fields.values())
    return sorted(names)
