"""Which header facts may leave a scan: a whitelist, so that whatever nobody thought of stays inside.

No keyword here names a patient, a date, a place, a person, a device's serial number or a UID, and none is free text
that a person types at the console (protocol name, series description and comments hold names surprisingly often).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

PUBLIC_KEYWORDS = (
    "Modality",
    "ImageType",
    "Manufacturer",
    "ManufacturerModelName",
    "BodyPartExamined",
    "PatientPosition",
    "ScanOptions",
    "AcquisitionType",
    "ConvolutionKernel",
    "FilterType",
    "KVP",
    "XRayTubeCurrent",
    "Exposure",
    "ExposureTime",
    "ExposureModulationType",
    "CTDIvol",
    "RevolutionTime",
    "SpiralPitchFactor",
    "SingleCollimationWidth",
    "TotalCollimationWidth",
    "FocalSpots",
    "GantryDetectorTilt",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ReconstructionDiameter",
    "DataCollectionDiameter",
    "DistanceSourceToDetector",
    "DistanceSourceToPatient",
    "ReconstructionAlgorithm",
    "RescaleType",
)
"""The DICOM keywords that may appear in `CTVolume.acquisition`, manifests, reports and logs."""

UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    BytesLengthException,
)
"""What a damaged file makes pydicom and its decoders raise; MemoryError by a length that nothing can have."""

NUMBER_VRS = ("DS", "IS", "FD", "FL")
LONGEST_TEXT = 64
"""Characters kept of a text: what a short DICOM text may have; longer ones break the standard and are not trusted."""


def acquisition_facts(dataset: Dataset) -> dict[str, Any]:
    """The whitelisted facts of one header as plain numbers, texts and lists, ready for JSON; absent ones are left out.

    Texts of several values are joined by a backslash, as in the file. A value that cannot be read is left out.
    """
    facts = {}
    for keyword in PUBLIC_KEYWORDS:
        try:
            value = _plain(dataset.get(keyword))
        except UNREADABLE:  # a malformed fact is no fact
            continue
        # pydicom hands over a malformed number as text, and a text in a number's place may be anything.
        if isinstance(value, str) and dictionary_VR(keyword) in NUMBER_VRS:
            continue
        if value not in (None, "", []):
            facts[keyword] = value
    return facts


def series_facts(per_slice: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of a series: what all its slices agree on; a number that varies (tube current …) by its median."""
    facts = {}
    for keyword in PUBLIC_KEYWORDS:
        values = [slice_facts[keyword] for slice_facts in per_slice if keyword in slice_facts]
        if len(values) < len(per_slice) or not values:
            continue
        if all(value == values[0] for value in values):
            facts[keyword] = values[0]
        elif all(isinstance(value, (int, float)) for value in values):
            facts[keyword] = float(np.median(values))
    return facts


def shown(value: Any) -> str:
    """A header value made safe for one line of a message: printable, on one line, short."""
    text = "\\".join(map(str, value)) if isinstance(value, (MultiValue, list, tuple)) else str(value)
    text = "".join(character for character in text if character.isprintable()).strip()
    return text if len(text) <= 32 else text[:31] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, (MultiValue, list, tuple)):
        items = [_plain(item) for item in value]
        return "\\".join(map(str, items))[:LONGEST_TEXT] if any(isinstance(item, str) for item in items) else items
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, str):
        return str(value).strip()[:LONGEST_TEXT]
    if isinstance(value, int):
        return int(value)
    return float(value) if np.isfinite(float(value)) else None
