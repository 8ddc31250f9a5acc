"""Read the phantom scans of a folder: several series of one geometry are repeats of one scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError, ScanError
from finegrain.scan.headers import SliceHeader, StackKey, files_below, read_headers, tolerate_sloppy_headers
from finegrain.scan.privacy import shown
from finegrain.scan.series import VOLUME_READERS, kind_of, series_of_stack
from finegrain.scan.volume import CTVolume

FEWEST_IMAGES = 3
"""Images (slices × repeats) below which noise cannot be told from the phantom; a default, taken from nowhere."""

SAME_PLACE_MM = 1.0
"""Repeats whose slices lie farther apart than this show another part of the phantom; a default, taken from nowhere."""

MOST_NOISE_RATIO = 1.5
"""Noise of the noisiest over that of the quietest repeat beyond which they are no repeats: a dose halved gives 1.41, and repeats
of one protocol, measured on simulated phantoms, stay within 1.1. Ours."""

SAME_FACTS = ("ConvolutionKernel", "KVP", "SliceThickness", "Manufacturer", "ManufacturerModelName")
"""What the headers of repeats must agree on, where they tell it."""


@dataclass(frozen=True)
class PhantomScan:
    """One or more scans of a phantom that did not move.

    Attributes:
        name: what pages and tables call it.
        hu: HU, shape (repeat, z, y, x).
        pixel_mm: pixel size in mm.
        slice_mm: distance between slices in mm. thickness_mm: of a slice.
        facts: acquisition facts that are safe to show, keyed by DICOM keyword.
        notes: what a reader must know, in plain words.
    """

    name: str
    hu: NDArray[np.float32] = field(repr=False)
    pixel_mm: float
    slice_mm: float
    thickness_mm: float
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def n_repeats(self) -> int:
        """How many scans."""
        return len(self.hu)

    def images(self, slices: slice) -> NDArray[np.float32]:
        """These slices of all repeats, one image after the other. Shape: (image, y, x)."""
        return self.hu[:, slices].reshape(-1, *self.hu.shape[2:])


def read_phantom(path: Path, name: str) -> PhantomScan:
    """The phantom scan in a folder (with its sub-folders) or file: DICOM series, NIfTI, NRRD or MetaImage; each a repeat.

    What finegrain denoised or simulated is taken too: it is there to be judged.

    Raises: ScanError or DataError, in one line: nothing readable, NaN, mixed kernels or grids, too few slices.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"the {name} scan is not there; give a folder of CT series, or a file")
    with tolerate_sloppy_headers():
        volumes, notes = _volumes(path)
    if not volumes:
        raise ScanError(f"expected CT series in the folder of the {name} scan, found none; check the folder")
    return phantom_scan(volumes, name, notes=notes)


def phantom_scan(volumes: Sequence[CTVolume], name: str, *, notes: Sequence[str] = ()) -> PhantomScan:
    """Repeats as one phantom scan. Raises: DataError as `read_phantom`."""
    first = volumes[0]
    _refuse_other_grids(volumes, name)
    if not first.has_square_pixels:
        raise DataError(f"the {name} scan has pixels of {first.pixel_mm[0]} × {first.pixel_mm[1]} mm, expected square ones")
    if bad := sum(int(np.count_nonzero(~np.isfinite(one.hu))) for one in volumes):
        raise DataError(f"{bad} pixels of the {name} scan are NaN or infinite, expected HU; export it again")
    if (n := len(volumes) * len(first)) < FEWEST_IMAGES:
        raise DataError(
            f"the {name} scan has {len(first)} slices × {len(volumes)} repeats, expected {FEWEST_IMAGES} images or more: noise "
            f"cannot be told from the phantom in {n}; add slices or repeats"
        )
    found = list(notes)
    if first.thickness_mm > 1.05 * first.slice_mm and len(first) > 1:
        found.append(
            f"slices of {first.thickness_mm:g} mm every {first.slice_mm:g} mm overlap: neighbours share noise, intervals are too "
            "narrow"
        )
    return PhantomScan(
        name=name,
        hu=np.stack([one.hu for one in volumes]),
        pixel_mm=float(first.pixel_mm[0]),
        slice_mm=first.slice_mm,
        thickness_mm=first.thickness_mm,
        facts=first.acquisition,
        notes=tuple(dict.fromkeys(found)),
    )


def _volumes(path: Path) -> tuple[list[CTVolume], list[str]]:
    """All scans below a folder, and notes about them that are safe to show."""
    stacks: dict[StackKey, list[SliceHeader]] = {}
    volumes: list[CTVolume] = []
    n_other = 0
    for file, safe_name in files_below(path):
        if (kind := kind_of(file)) != "dicom":
            volumes.append(VOLUME_READERS[kind](file, safe_name))
            continue
        headers = read_headers(file, safe_name)
        n_other += headers is None
        for header in headers or ():
            if isinstance(header, SliceHeader):
                stacks.setdefault(header.key, []).append(header)
    for stack in stacks.values():
        volumes += _repeats_of(stack)
    notes = [f"{n_other} files that are no images were left out"] if n_other else []
    return volumes, notes + [note for one in volumes for note in getattr(one.source, "notes", ())]


def _repeats_of(stack: Sequence[SliceHeader]) -> list[CTVolume]:
    """The volume of one stack; one of each folder where several scans go by the same UIDs."""
    try:
        return [series_of_stack(stack).read()]
    except ScanError:
        folders: dict[Path, list[SliceHeader]] = {}
        for header in stack:
            folders.setdefault(header.path.parent, []).append(header)
        if len(folders) == 1:
            raise
    return [series_of_stack(part).read() for part in folders.values()]


def _refuse_other_grids(volumes: Sequence[CTVolume], name: str) -> None:
    first = volumes[0]
    advice = "put what is no repeat of it into a folder of its own"
    for other in volumes[1:]:
        for fact in SAME_FACTS:
            ours, theirs = first.acquisition.get(fact), other.acquisition.get(fact)
            if ours is not None and theirs is not None and ours != theirs:
                raise DataError(f"the {name} scan mixes {fact} {shown(ours)} and {shown(theirs)}, expected repeats; {advice}")
        if first.hu.shape != other.hu.shape:
            shapes = " and ".join("×".join(map(str, one.hu.shape)) for one in (first, other))
            raise DataError(f"the {name} scan mixes series of {shapes} (slices, rows, columns), expected repeats; {advice}")
        if not np.allclose(first.pixel_mm, other.pixel_mm, rtol=1e-4) or not np.isclose(first.slice_mm, other.slice_mm, rtol=1e-3):
            grids = " and ".join(f"{one.pixel_mm[0]:.4g} mm pixels every {one.slice_mm:.4g} mm" for one in (first, other))
            raise DataError(f"the {name} scan mixes {grids}, expected repeats; {advice}")
        if (off := float(np.abs(first.positions_mm - other.positions_mm).max())) > SAME_PLACE_MM:
            raise DataError(f"series of the {name} scan lie {off:.1f} mm apart, expected repeats at one place; {advice}")


def refuse_unequal_noise(noise_hu: Sequence[float], name: str) -> None:
    """Raises: DataError if the noise of the repeats differs so much that they are not repeats, e.g. of several doses."""
    if len(noise_hu) > 1 and max(noise_hu) > MOST_NOISE_RATIO * min(noise_hu):
        raise DataError(
            f"the repeats of the {name} scan have noise from {min(noise_hu):.1f} to {max(noise_hu):.1f} HU: they are not of one "
            "dose or method; put each into a folder of its own"
        )
