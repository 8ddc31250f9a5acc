"""A small real CT that ships with the package; see ATTRIBUTION.md for its source and licence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def sample_folder() -> Path:
    """The folder of the sample: eight consecutive 3 mm slices of a chest CT, DICOM, JPEG-LS lossless."""
    return Path(str(files("finegrain.sample"))) / "chest"
