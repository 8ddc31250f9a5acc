"""One row for each simulated image: where it is, and every value that made it, so that it can be made again bit for bit."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.files import write_whole
from finegrain.simulate.dose import Exposure

MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class SimulatedImage:
    """One row of the manifest: an image and every value that made it. Nothing here names a patient.

    Attributes:
        image: low dose, normal dose or truth (noise-free); a scan has low doses alone.
        source_kind: dicom, nifti, nrrd or phantom.
        source: the phantom and its seed, or scan- and a hash of the scan's CT numbers.
        slice_index, z_mm: which slice, from the feet, and the z of its position.
        file: below the output folder; a NIfTI file holds all slices of one dose.
        dose_fraction: 1 for the normal dose; None for the truth.
        photons: per ray at full dose, of a scan's slice by its tube current. slice_photons: after `modulation_z`, too.
        kernel, kernel_sha256: its name, and a hash of its frequencies and transfer, which `config.yaml` holds.
        electronic_noise … adaptive_below: the `Exposure`. scanner: the fan. beam_views, beam_detector_mm: the parallel grid.
        size, pixel_mm, slice_mm, margin: the image grid, and the air laid around it.
        noise: shared or independent, as in `SimulateConfig`.
        seed, stream_seed: of the run; and of `slice_generator`, which it gives together with the source, so that two scans
            simulated with one seed do not get the same noise.
        smallest_count: expected photons in the most attenuated ray. starved_share: expected share of the body's rays that count
            nothing.
        starvation_bias_hu: expected mean error in the body by the logarithm of few counts, without any averaging of starved rays.
        added_mean_hu, added_noise_sd_hu: mean over the body, and SD over soft tissue, of what was added: to a scan the missing
            noise, to a phantom all its noise.
        normal_noise_sd_hu, noise_sd_hu: `soft_tissue_noise` of the normal dose and of this image, of a phantom without its truth;
            nan where there is too little tissue.
        sha256: `image_sha256` of the CT numbers that the file gives back.
    """

    finegrain: str
    source_kind: str
    source: str
    image: str
    slice_index: int
    z_mm: float
    file: str
    dose_fraction: float | None
    photons: float
    slice_photons: float
    kernel: str
    kernel_sha256: str
    electronic_noise: float
    bowtie: str
    modulation: float
    modulation_z: float
    crosstalk: float
    adaptive_below: float
    scanner: str
    beam_views: int
    beam_detector_mm: float
    size: int
    pixel_mm: float
    slice_mm: float
    margin: int
    polychromatic_kvp: int | None
    noise: str
    seed: int
    stream_seed: int
    device: str
    smallest_count: float | None
    starved_share: float | None
    starvation_bias_hu: float | None
    added_mean_hu: float | None
    added_noise_sd_hu: float | None
    normal_noise_sd_hu: float | None
    noise_sd_hu: float | None
    sha256: str

    @property
    def exposure(self) -> Exposure:
        """The exposure of this slice at full dose."""
        return Exposure(**{field.name: getattr(self, field.name) for field in fields(Exposure)})


def image_sha256(hu: NDArray[np.floating]) -> str:
    """The hash of an image's CT numbers: float32, little-endian, row by row, zeros without a sign."""
    return hashlib.sha256(np.ascontiguousarray(np.add(hu, 0.0, dtype=np.float32), dtype="<f4").tobytes()).hexdigest()


def write_manifest(out: Path, images: list[SimulatedImage]) -> None:
    """Write the manifest of a finished simulation, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SimulatedImage)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(image) for image in images)
    write_whole(out / MANIFEST, text.getvalue())


def read_manifest(out: Path) -> list[SimulatedImage]:
    """The images of a finished simulation, in the order of the manifest.

    Raises: DataError if there is no manifest, it is damaged, or it names a file that is gone.
    """
    try:
        rows = list(csv.DictReader((Path(out) / MANIFEST).read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{out} holds no {MANIFEST}; run finegrain simulate to its end") from None
    try:
        images = [
            SimulatedImage(**{field.name: _value(row[field.name], str(field.type)) for field in fields(SimulatedImage)})
            for row in rows
        ]
    except (KeyError, ValueError):
        images = []
    if not images:
        raise DataError(f"{Path(out) / MANIFEST} is damaged, or of another version; simulate again in a new folder")
    for file in {image.file for image in images}:
        if not (Path(out) / file).is_file():
            raise DataError(f"{out} has lost {file}, which its manifest names; simulate again in a new folder")
    return images


def _value(text: str, kind: str) -> Any:
    """A cell of the manifest as the type that its field is annotated with."""
    if not text:
        return None
    return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
