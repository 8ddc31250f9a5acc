"""Read a scan of whatever kind it is: DICOM, NIfTI, NRRD, MetaImage."""

from __future__ import annotations

from pathlib import Path

from finegrain.scan.dicom import read_series
from finegrain.scan.series import VOLUME_READERS, kind_of
from finegrain.scan.volume import CTVolume


def read_scan(path: Path) -> CTVolume:
    """The scan in a DICOM folder or file, or in a .nii, .nii.gz, .nrrd, .mha or .mhd file.

    Raises: ScanError, in one line, if there is none or it cannot be read without guessing.
    """
    path = Path(path)
    if path.is_file() and (kind := kind_of(path)) != "dicom":
        return VOLUME_READERS[kind](path, str(path))
    return read_series(path)
