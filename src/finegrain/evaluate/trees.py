"""The images of one method wherever they lie: the series below a folder or in a file, and their slices one at a time.

DICOM is read file by file. A volume in one file is unpacked once, so that no more than a slice of it is held afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError, ScanError
from finegrain.hu import HURange
from finegrain.pairs.collections.found import without_uids
from finegrain.pairs.collections.pseudonym import is_placeholder
from finegrain.scan.grid import reason
from finegrain.scan.nifti import nifti_grid
from finegrain.scan.series import ScanSeries, find_series

SLAB = 8
"""Slices of a volume that are unpacked at a time; a default, taken from nowhere."""


@dataclass(frozen=True, eq=False)
class Images:
    """One series of a method, its slices read one at a time.

    Attributes:
        series: where its slices lie.
        name: what messages call it; safe to show.
        folder: the sub-folder of the tree, right below its root, that it lies in; private, empty for a file in the root.
        unpacked: where the slices of a volume in one file were written one after the other, float32; None for DICOM.
        allow_lossy: take images that were once compressed with loss.
    """

    series: ScanSeries = field(repr=False)
    name: str
    folder: str = field(default="", repr=False)
    unpacked: Path | None = field(default=None, repr=False)
    allow_lossy: bool = False

    def __len__(self) -> int:
        return len(self.series)

    @property
    def identities(self) -> frozenset[tuple[str, str]]:
        """Whose images the headers say they are: patient and study, if told. Private."""
        told = {("study", self.series.study_uid)} if self.series.study_uid else set()
        return frozenset(told if is_placeholder(self.series.patient_id) else told | {("patient", self.series.patient_id.strip())})

    def slice_hu(self, number: int) -> NDArray[np.float32]:
        """One slice in HU, padding above the CT scale as air. Shape: (y, x). Raises: DataError if it cannot be read."""
        if self.unpacked is None:
            try:
                volume = self.series.read(slice(number, number + 1), allow_lossy=self.allow_lossy)
            except ScanError as error:
                raise DataError(f"{self.name}: {without_uids(str(error))}") from None
            # A mark above the scale would be taken for metal; one below it counts as air anyway, one within may be tissue too.
            return np.where(volume.padding[0] & (volume.hu[0] > HURange().high), np.float32(HURange().low), volume.hu[0])
        size = int(np.prod(self.series.shape))
        # Not mapped into memory: pages of a mapped file count as held until the system takes them back.
        values = np.fromfile(self.unpacked, np.float32, size, offset=4 * size * number)
        return values.reshape(self.series.shape)


def find_images(path: Path, name: str, *, scratch: Path, allow_lossy: bool = False) -> tuple[list[Images], list[str]]:
    """All CT series below a folder or in a file, what finegrain itself denoised among them, and a line on what was left out.

    Args:
        name: of the method, for messages; the path may name a patient.
        scratch: folder to unpack volumes into.

    Raises: DataError if there are none, or a volume holds NaN.
    """
    if not path.exists():
        raise DataError(f"{name}: expected a folder or file with CT images, found nothing at its path; check it")
    found, left_out = find_series(path, allow_own_output=True)
    left_out = [without_uids(line) for line in left_out]
    if not found:
        why = left_out[0] if left_out else "check its path"
        raise DataError(f"{name}: expected CT images (DICOM, NIfTI, NRRD, MetaImage), found none; {why}")
    images: list[Images] = []
    for number, one in enumerate(sorted(found, key=lambda series: series.files[0]), start=1):
        label = name if len(found) == 1 else f"{name}, series {number} of {len(found)}"
        inner = one.files[0].relative_to(path).parts if path.is_dir() else ()
        folder = inner[0] if len(inner) > 1 else ""
        unpacked = None if one.kind == "dicom" else _unpacked(one, label, scratch / f"{number}.f32")
        images.append(Images(one, label, folder, unpacked, allow_lossy))
    return images, [f"{name}: left out: {line}" for line in left_out]


def _unpacked(series: ScanSeries, name: str, target: Path) -> Path:
    """Write the slices of a volume in one file where they can be read one at a time."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if series.kind == "nifti":
            _unpack_nifti(series, name, target)
        else:
            series.read().hu.tofile(target)
    except ScanError as error:
        raise DataError(str(error).replace(series.names[0], name, 1)) from None
    except OSError as error:
        raise DataError(f"{name} cannot be unpacked: {error.strerror or 'write error'}; check the output folder's disk") from None
    return target


def _unpack_nifti(series: ScanSeries, name: str, target: Path) -> None:
    """Write the slices of a NIfTI file as `read_nifti` would give them, a slab at a time where they lie in slices in the file."""
    import nibabel as nib

    grid = nifti_grid(series.files[0], name)
    turn = nib.orientations.io_orientation(grid.affine)
    if turn[2, 0] != 2:  # slices lie across the file: a slab would read all of it each time
        series.read().hu.tofile(target)
        return
    n, upside_down = len(series), turn[2, 1] < 0
    # Kept open: a compressed file would else be unpacked from its start for each slab.
    values = nib.Nifti1Image.from_filename(series.files[0], keep_file_open=True).dataobj
    bad = 0
    with target.open("wb") as file:
        for start in range(0, n, SLAB):
            stop = min(start + SLAB, n)
            try:
                slab = np.asarray(values[..., start:stop] if len(values.shape) > 2 else values, dtype=np.float32)
            except (OSError, EOFError, ValueError) as error:
                raise ScanError(f"{name} is damaged or cut off: {reason(error, series.files[0])}; copy it again") from None
            turned = nib.orientations.apply_orientation(slab.reshape(*grid.shape[:2], -1), turn)
            bad += int(np.count_nonzero(~np.isfinite(turned)))
            file.seek(4 * turned[..., 0].size * (n - stop if upside_down else start))
            np.ascontiguousarray(turned.transpose(2, 1, 0)).tofile(file)
    if bad:
        size = n * int(np.prod(series.shape))
        raise DataError(f"{name} holds {bad} of {size} voxels that are NaN or infinite, expected HU; fill them with air (−1024)")
