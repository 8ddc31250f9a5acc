"""Read an NRRD volume in HU (needs pynrrd, part of the `train` extra)."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ScanError
from finegrain.scan.volume import CTVolume

_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""What turns the axes of an NRRD space into those of DICOM."""


def read_nrrd(path: Path) -> CTVolume:
    """An axial CT volume of an NRRD file whose values are HU, in place: slices from feet to head, patient's right to the left.

    A file that names no space is taken to be in that of DICOM (LPS).

    Raises: ScanError if the file cannot be read, is not three-dimensional, not axial, or in a space that is not the patient's.
    """
    try:
        import nrrd
    except ImportError:
        raise ScanError(f"reading {path.name} needs pynrrd; install it with: pip install 'finegrain[train]'") from None
    try:
        data, header = nrrd.read(str(path))
    except (OSError, EOFError, StopIteration, ValueError, LookupError, zlib.error, nrrd.NRRDError) as error:
        # pynrrd stumbles over an empty file or header in more ways than its own error.
        raise ScanError(f"{path} cannot be read as NRRD: {(str(error).splitlines() or ['cut off'])[0]}; copy it again") from None
    axes = _directions(header)
    if data.ndim != 3 or axes.shape != (3, 3):
        raise ScanError(f"{path} is no volume: expected 3 axes with space directions, got an array of {data.shape}")
    if data.dtype.kind not in "iuf":
        raise ScanError(f"{path} holds values of type {data.dtype}, expected one number per voxel in HU")
    space = str(header.get("space", "lps")).lower()
    if space not in _TO_LPS:
        raise ScanError(f"{path} is in the space {space[:32]!r}, expected left-posterior-superior; convert it")
    steps = np.diag(axes) * _TO_LPS[space]
    spacing = np.abs(steps)
    if not np.allclose(axes, np.diag(np.diag(axes)), atol=1e-3) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ScanError(f"{path} is not axial: expected space directions along the axes, got {axes.tolist()}")
    first = np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64) * _TO_LPS[space]
    if first.shape != (3,) or not np.isfinite(first).all():
        raise ScanError(f"{path} has the space origin {first.tolist()}, expected three numbers; repair the header")
    backwards = steps < 0
    data = np.flip(data, axis=tuple(np.flatnonzero(backwards).tolist()))
    first = first + np.where(backwards, (np.array(data.shape) - 1) * steps, 0.0)
    hu = np.ascontiguousarray(np.asarray(data, dtype=np.float32).transpose(2, 1, 0))
    return CTVolume(
        hu=hu,
        pixel_mm=(float(spacing[1]), float(spacing[0])),
        slice_mm=float(spacing[2]),
        positions_mm=first + np.arange(len(hu))[:, None] * [0.0, 0.0, spacing[2]],
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        padding=np.zeros(hu.shape, dtype=bool),
    )


def _directions(header: dict) -> NDArray[np.float64]:
    """The space directions, empty where there are none that are numbers. Shape: (axis, 3)."""
    try:
        return np.asarray(header.get("space directions"), dtype=np.float64)
    except (TypeError, ValueError):
        return np.zeros((0, 3))
