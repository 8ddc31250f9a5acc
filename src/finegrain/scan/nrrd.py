"""Read an NRRD volume in HU (needs pynrrd, part of the `train` extra)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finegrain.errors import ScanError
from finegrain.scan.volume import CTVolume


def read_nrrd(path: Path) -> CTVolume:
    """An axial CT volume of an NRRD file whose values are HU; slices from feet to head.

    Raises: ScanError if the file is not there, not three-dimensional, or not axial.
    """
    try:
        import nrrd
    except ImportError:
        raise ScanError(f"reading {path.name} needs pynrrd; install it with: pip install 'finegrain[train]'") from None
    try:
        data, header = nrrd.read(str(path))
    except (OSError, nrrd.NRRDError) as error:
        raise ScanError(f"{path} cannot be read as NRRD: {str(error).splitlines()[0]}") from None
    directions = np.asarray(header.get("space directions"), dtype=float)
    if data.ndim != 3 or directions.shape != (3, 3):
        raise ScanError(f"{path} is no volume: expected 3 axes with space directions, got an array of {data.shape}")
    spacing = np.abs(np.diag(directions))
    if not np.allclose(directions, np.diag(np.diag(directions)), atol=1e-3) or (spacing == 0).any():
        raise ScanError(f"{path} is not axial: expected space directions along the axes, got {directions.tolist()}")
    hu = np.asarray(data, dtype=np.float32).transpose(2, 1, 0)
    if directions[2, 2] < 0:
        hu = hu[::-1]
    volume = CTVolume.from_array(np.ascontiguousarray(hu), pixel_mm=float(spacing[0]), slice_mm=float(spacing[2]))
    return volume
