"""Read a scan of whatever kind it is: DICOM, NIfTI, NRRD."""

from __future__ import annotations

from pathlib import Path

from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import is_nifti, read_nifti
from finegrain.scan.nrrd import read_nrrd
from finegrain.scan.volume import CTVolume


def read_scan(path: Path) -> CTVolume:
    """The scan in a DICOM folder or file, a .nii or .nii.gz file, or a .nrrd file.

    Raises: ScanError, in one line, if there is none or it cannot be read without guessing.
    """
    path = Path(path)
    if path.is_file() and is_nifti(path):
        return read_nifti(path)
    if path.is_file() and path.suffix.lower() == ".nrrd":
        return read_nrrd(path)
    return read_series(path)
