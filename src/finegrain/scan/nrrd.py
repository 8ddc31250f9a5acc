"""Read an NRRD volume in HU (needs pynrrd, part of the extras `collections` and `train`)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ScanError
from finegrain.scan.grid import Grid, axial_grid, finite, reason
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


def read_nrrd(path: Path, name: str | None = None) -> CTVolume:
    """A CT volume of an NRRD file whose values are HU, made axial as by `read_nifti`.

    A file that names no space is taken to be in that of DICOM (LPS).

    Args:
        name: what to call the file in messages; its path if not given.

    Raises: ScanError if the file cannot be read, holds no three axes, is sheared or oblique, or in a space that is not the
        patient's.
    """
    path = Path(path)
    name = name or str(path)
    nrrd = _pynrrd(name)
    try:
        data, header = nrrd.read(str(path))
    except _errors(nrrd) as error:
        raise ScanError(f"{name} cannot be read as NRRD: {reason(error, path)}; copy it again") from None
    return _grid(name, header).volume(finite(name, data))


def nrrd_grid(path: Path, name: str) -> Grid:
    """Where the voxels of an NRRD file lie, by its header alone; refused as by `read_nrrd`."""
    nrrd = _pynrrd(name)
    try:
        header = nrrd.read_header(str(path))
    except _errors(nrrd) as error:
        raise ScanError(f"{name} cannot be read as NRRD: {reason(error, path)}; copy it again") from None
    return _grid(name, header)


def _pynrrd(name: str) -> Any:
    try:
        import nrrd
    except ImportError:
        raise ScanError(f"reading {name} needs pynrrd; install it with: pip install 'finegrain[collections]'") from None
    return nrrd


def _errors(nrrd: Any) -> tuple[type[Exception], ...]:
    """What a damaged file makes pynrrd raise: it stumbles over an empty file or header in more ways than its own error."""
    return (OSError, EOFError, StopIteration, ValueError, LookupError, TypeError, MemoryError, zlib.error, nrrd.NRRDError)


def _grid(name: str, header: dict[str, Any]) -> Grid:
    if np.ravel(header.get("sizes", ())).shape != (3,) or (axes := _directions(header)).shape != (3, 3):
        raise ScanError(f"{name} is no volume: expected 3 axes with space directions, each with three numbers; give a CT volume")
    if str(header.get("type")) == "block":
        raise ScanError(f"{name} holds values of type block, expected one number per voxel in HU")
    space = str(header.get("space", "lps")).lower()
    if space not in _TO_LPS:
        raise ScanError(f"{name} is in the space {space[:32]!r}, expected left-posterior-superior; convert it")
    first = np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64)
    if first.shape != (3,):
        raise ScanError(f"{name} has the space origin {first.tolist()}, expected three numbers; repair the header")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes.T, first  # a space direction is a row: the step of one axis of the array
    return axial_grid(name, tuple(int(n) for n in header["sizes"]), np.diag([*_TO_LPS[space], 1.0]) @ affine)


def _directions(header: dict[str, Any]) -> NDArray[np.float64]:
    """The space directions, empty where there are none that are numbers. Shape: (axis, 3)."""
    try:
        return np.asarray(header.get("space directions"), dtype=np.float64)
    except (TypeError, ValueError):
        return np.zeros((0, 3))
