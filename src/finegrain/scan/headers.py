"""What the header of one DICOM file says: a CT slice, something to leave out, or a slice that must be refused and why.

Reading refuses whatever would give wrong HU: a missing rescale is an error here, not a slope of 1.

Messages name an instance by its number and UID, never by its path: scanners build file names from patient names.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
)

from finegrain.errors import ScanError
from finegrain.scan.elements import read_elements, transfer_syntax
from finegrain.scan.enhanced import ENHANCED_CLASSES, GROUPS, count_frames, frame_header, is_enhanced
from finegrain.scan.pixels import ALWAYS_LOSSY, LOSSY_UNLESS_DENIED, PIXEL_KEYWORDS, rescale
from finegrain.scan.privacy import PUBLIC_KEYWORDS, UNREADABLE, acquisition_facts, shown

EQUIPMENT_MANUFACTURER = "finegrain"
IMPLEMENTATION_CLASS_UID = UID("2.25.101523925794156215159592183298027691336")
"""With the manufacturer: the marks that the writer leaves and the loop guard looks for."""
LARGEST_MATRIX = 4096
"""Rows or columns beyond which a header is taken for damaged; no CT scanner reconstructs more than 2048."""

LARGEST_HU = 1e6
"""What a stored value of 16 bits may come to; metal on an extended scale reaches 65,535 HU. Ours, with room."""

CT_CLASSES = (CTImageStorage, *ENHANCED_CLASSES)
REFORMATS = {
    "MPR",
    "REFORMATTED",
    "MIP",
    "MINIP",
    "MAX_IP",
    "MIN_IP",
    "VOLREN",
    "PROJECTION IMAGE",
    "CSA MPR",
    "CSAPARALLEL",
}
"""Values of ImageType that mark an image resampled from the slices: its noise is no longer the scanner's."""
NOT_HU = {
    "MAT_SPECIFIC",
    "MAT_REMOVED",
    "MAT_FRACTIONAL",
    "MAT_MODIFIED",
    "MAT_VALUE_BASED",
    "EFF_ATOMIC_NUM",
    "ELECTRON_DENSITY",
}
"""Values of ImageType for multi-energy maps (PS3.3 C.8.2.1); virtual mono-energetic images (VMI) hold HU and pass."""

HEADER_KEYWORDS = (
    *PIXEL_KEYWORDS,
    *PUBLIC_KEYWORDS,
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "ModalityLUTSequence",
    "ContributingEquipmentSequence",
    *GROUPS,
)


class StackKey(NamedTuple):
    """What the slices of one stack share."""

    series_uid: str
    orientation: tuple[float, ...] | None
    rows: str
    columns: str
    spacing: tuple[float, ...] | None
    kernel: str


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What is kept of the header of one CT slice; small, so that a tree of many thousand files fits in memory.

    Attributes:
        name: number and UID of the instance; safe to show.
        frame: which frame of a multi-frame file it is, from 0; None for a file of one slice.
        refusal: why its pixels cannot be turned into HU without guessing, in one line; the fields below it then mean nothing.
        facts: `acquisition_facts` as values in the order of PUBLIC_KEYWORDS, None for an absent one.
    """

    path: Path
    name: str
    key: StackKey
    series_number: str
    frame: int | None = None
    refusal: str = ""
    instance_uid: str = ""
    study_uid: str = ""
    patient_id: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    position_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: tuple[float, ...] = ()
    pixel_mm: tuple[float, float] = (0.0, 0.0)
    shape: tuple[int, int] = (0, 0)
    rescale: tuple[float, float] = (1.0, 0.0)
    tube_current_ma: float | None = None
    lossy: bool = False
    own_output: bool = False
    n_bytes: int = 0
    facts: tuple[Any, ...] = ()

    def acquisition(self) -> dict[str, Any]:
        """`facts` by keyword."""
        return {keyword: value for keyword, value in zip(PUBLIC_KEYWORDS, self.facts, strict=True) if value is not None}


class LeftOut(NamedTuple):
    """A DICOM file that is no slice of a CT series; everything here is safe to show."""

    name: str
    series: str
    reason: str


@contextmanager
def tolerate_sloppy_headers() -> Iterator[None]:
    """Silence pydicom's remarks on values that break a VR's rules: scanners write them; what matters is checked here."""
    pydicom_log = logging.getLogger("pydicom")
    was_disabled = pydicom_log.disabled
    pydicom_log.disabled = True  # it quotes the values it complains of, and one may be a name
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom(\.|$)")
            yield
    finally:
        pydicom_log.disabled = was_disabled


def files_below(folder_or_file: Path) -> list[tuple[Path, str]]:
    """The files that may be images, in order of name, and a name for each that is safe to show."""
    if folder_or_file.is_file():
        paths = [folder_or_file]
    elif folder_or_file.is_dir():
        paths = []
        for folder, folders, names in os.walk(folder_or_file):
            # Hidden files are no images: macOS leaves "._name" beside a copied file, a killed run a ".partial" folder.
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths += [path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()]
        paths.sort()
    else:
        raise ScanError(f"expected a folder or file of a CT series, found nothing at {folder_or_file}")
    return [(path, f"file {n} of {len(paths)} (in order of name)") for n, path in enumerate(paths, start=1)]


def read_headers(path: Path, name: str) -> list[SliceHeader | LeftOut] | None:
    """What a file holds by its header: a CT slice (or the frames of a multi-frame CT), DICOM to leave out, or None for no DICOM.

    Args:
        name: what to call the file in messages as long as its instance is unknown.

    Raises: ScanError for DICOM that is damaged, cannot be opened, or belongs to no series.
    """
    dataset = read_elements(path, name, HEADER_KEYWORDS)
    if dataset is None:
        return None
    try:
        if "SOPClassUID" not in dataset and (sop_class := dataset.file_meta.get("MediaStorageSOPClassUID")):
            dataset.SOPClassUID = sop_class
        name = _name(dataset, default=name)
        if not is_enhanced(dataset) or not (n_frames := count_frames(dataset)):
            return [_header(dataset, path, name)]
        return [_header(frame_header(dataset, frame), path, f"frame {frame + 1} of {name}", frame) for frame in range(n_frames)]
    except UNREADABLE:
        raise ScanError(f"{name} is DICOM but damaged, its header cannot be parsed; export it again") from None


def _header(dataset: Dataset, path: Path, name: str, frame: int | None = None) -> SliceHeader | LeftOut:
    """The header of a CT slice, or why it is none."""
    reason = _reason_to_skip(dataset, name)
    if reason:
        return LeftOut(name, _series_in_words(dataset), reason)
    key, syntax = _stack_key(dataset, name), transfer_syntax(dataset)
    number = sys.intern(shown(header_text(dataset, "SeriesNumber")))
    try:
        _refuse_frames(dataset, name, frame)
        _refuse_untreatable(dataset, name, syntax)
    except ScanError as error:
        return SliceHeader(path, name, key, number, frame, refusal=str(error))
    current = header_numbers(dataset, "XRayTubeCurrent", 1)
    facts = acquisition_facts(dataset)
    stated = header_text(dataset, "LossyImageCompression")
    x, y, z = _numbers(dataset, "ImagePositionPatient", 3)
    row_mm, column_mm = _numbers(dataset, "PixelSpacing", 2)
    return SliceHeader(
        path,
        name,
        key,
        number,
        frame,
        instance_uid=header_text(dataset, "SOPInstanceUID"),
        study_uid=sys.intern(header_text(dataset, "StudyInstanceUID")),
        patient_id=sys.intern(header_text(dataset, "PatientID")),
        description=sys.intern(header_text(dataset, "SeriesDescription")),
        position_mm=(x, y, z),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_mm=(row_mm, column_mm),
        shape=(int(dataset.Rows), int(dataset.Columns)),
        rescale=rescale(dataset),
        tube_current_ma=current[0] if current is not None and 0 < current[0] < 1e5 else None,
        lossy=stated == "01" or syntax in ALWAYS_LOSSY or (syntax in LOSSY_UNLESS_DENIED and stated != "00"),
        own_output=_is_own_output(dataset),
        n_bytes=path.stat().st_size,
        facts=tuple(sys.intern(value) if isinstance(value := facts.get(word), str) else value for word in PUBLIC_KEYWORDS),
    )


def _name(dataset: Dataset, *, default: str) -> str:
    uid = header_text(dataset, "SOPInstanceUID")
    number = header_text(dataset, "InstanceNumber")
    if not _is_uid(uid):
        return default
    return f"instance {number} ({uid})" if re.fullmatch(r"\d{1,9}", number) else f"instance {uid}"


def _reason_to_skip(dataset: Dataset, name: str) -> str:
    """Why a DICOM file is no slice of a CT series; empty if it is one."""
    sop_class = header_text(dataset, "SOPClassUID")
    modality = header_text(dataset, "Modality")
    if not sop_class:
        raise ScanError(f"{name} has no SOPClassUID: it is cut off or no image; export it again or take it away")
    if sop_class not in CT_CLASSES:
        kind = shown(UID(sop_class).name) if _is_uid(sop_class) else "unknown object"
        return f"{kind}, modality {shown(modality)}" if modality else kind
    if modality != "CT":
        return f"CT Image Storage of modality {shown(modality) or 'unknown'}"
    image_type = header_values(dataset, "ImageType")
    if "LOCALIZER" in image_type:
        return "localizer"
    if REFORMATS.intersection(image_type[2:]):
        return "reformat (MPR, MIP …), resampled from the slices"
    if header_text(dataset, "BurnedInAnnotation").upper() == "YES":
        return "burned-in annotation"
    return ""


def _series_in_words(dataset: Dataset) -> str:
    uid = header_text(dataset, "SeriesInstanceUID")
    return f"series {shown(header_text(dataset, 'SeriesNumber')) or '?'} ({uid})" if _is_uid(uid) else "no series"


def _stack_key(dataset: Dataset, name: str) -> StackKey:
    uid = header_text(dataset, "SeriesInstanceUID")
    if not _is_uid(uid):
        raise ScanError(f"{name} has no valid SeriesInstanceUID; export the series again")
    return StackKey(
        sys.intern(uid),
        _rounded(header_numbers(dataset, "ImageOrientationPatient", 6), 3),
        sys.intern(header_text(dataset, "Rows")),
        sys.intern(header_text(dataset, "Columns")),
        _rounded(header_numbers(dataset, "PixelSpacing", 2), 5),
        sys.intern(header_text(dataset, "ConvolutionKernel")),
    )


def _rounded(values: tuple[float, ...] | None, digits: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(value, digits) + 0.0 for value in values)  # + 0.0: no negative zero


def _refuse_frames(dataset: Dataset, name: str, frame: int | None) -> None:
    """Stop at a file of several frames that are not described one by one."""
    if is_enhanced(dataset) and frame is None:
        raise ScanError(
            f"{name} is a multi-frame (Enhanced) CT whose NumberOfFrames is not the number of frames that it describes"
            " (PerFrameFunctionalGroupsSequence); export it again"
        )
    if header_text(dataset, "NumberOfFrames") and header_numbers(dataset, "NumberOfFrames", 1) != (1.0,):
        raise ScanError(f"{name} is multi-frame CT Image Storage, expected one slice per file (NumberOfFrames 1); export it again")


def _refuse_untreatable(dataset: Dataset, name: str, syntax: UID) -> None:
    """Stop at a header whose pixels cannot be turned into HU without guessing."""
    if syntax == ExplicitVRBigEndian:
        # Retired in 2006. Its pixels could be read, but no tool can swap the bytes of private elements for the way back.
        raise ScanError(f"{name} is big-endian, expected little-endian DICOM; convert it, e.g. dcmconv +te")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
        if not _is_uid(header_text(dataset, keyword)):
            raise ScanError(f"{name} has no valid {keyword}; export the series again")
    _refuse_pixel_format(dataset, name)
    _refuse_geometry(dataset, name)
    _refuse_rescale(dataset, name)


def _refuse_pixel_format(dataset: Dataset, name: str) -> None:
    def integer(keyword: str) -> int:
        value = header_numbers(dataset, keyword, 1)
        if value is None or value[0] != int(value[0]):
            raise ScanError(f"{name} has no valid {keyword}, which every CT image needs; export the series again")
        return int(value[0])

    samples = integer("SamplesPerPixel")
    if samples != 1:
        raise ScanError(f"{name} has SamplesPerPixel {samples}, expected 1: colours are not HU; leave it out")
    if not header_text(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
        raise ScanError(f"{name} has no MONOCHROME PhotometricInterpretation: its pixels are not in HU; leave it out")
    rows, columns = integer("Rows"), integer("Columns")
    if not (1 <= rows <= LARGEST_MATRIX and 1 <= columns <= LARGEST_MATRIX):
        raise ScanError(f"{name} claims {rows} × {columns} pixels, expected 1 to {LARGEST_MATRIX}; export it again")
    allocated, stored, high = integer("BitsAllocated"), integer("BitsStored"), integer("HighBit")
    if allocated != 16 or not 1 <= stored <= 16 or high != stored - 1:
        raise ScanError(
            f"{name} has BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}; a CT image has 16 allocated"
            " and HighBit = BitsStored − 1; export it again"
        )
    if integer("PixelRepresentation") not in (0, 1):
        raise ScanError(f"{name} has a PixelRepresentation that is neither 0 nor 1; export it again")
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if not isinstance(dataset.get(keyword) or 0, int | bytes):
            raise ScanError(f"{name} has a {keyword} that is not one whole number: what is image is unclear; export it again")


def _refuse_geometry(dataset: Dataset, name: str) -> None:
    if header_numbers(dataset, "ImagePositionPatient", 3) is None:
        raise ScanError(f"{name} has no valid ImagePositionPatient: slices cannot be put in order; export the series again")
    orientation = header_numbers(dataset, "ImageOrientationPatient", 6)
    if orientation is None or not _is_orthonormal(np.array(orientation)):
        raise ScanError(f"{name} has no valid ImageOrientationPatient, expected two directions at a right angle")
    spacing = header_numbers(dataset, "PixelSpacing", 2)
    if spacing is None or min(spacing) <= 0:
        raise ScanError(f"{name} has no positive PixelSpacing, which texture and tile sizes need; export the series again")


def _is_orthonormal(orientation: NDArray[np.float64]) -> bool:
    row, column = orientation[:3], orientation[3:]
    errors = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    return bool(np.max(np.abs(errors)) < 0.01)  # DS has few digits; 0.01 is half a degree


def _refuse_rescale(dataset: Dataset, name: str) -> None:
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if header_numbers(dataset, keyword, 1) is None:
            came = shown(header_text(dataset, keyword)) or "none"
            raise ScanError(f"{name} needs a finite {keyword} to give HU, got {came}; export the original series")
    if "ModalityLUTSequence" in dataset:
        raise ScanError(f"{name} has a Modality LUT beside its rescale, expected one way from stored values to HU; export it again")
    slope, intercept = rescale(dataset)
    if slope == 0:
        raise ScanError(f"{name} has RescaleSlope 0, expected another number: every HU would be the same; export it again")
    if abs(slope) * 65535 + abs(intercept) > LARGEST_HU:
        raise ScanError(f"{name} has RescaleSlope {slope:g} and RescaleIntercept {intercept:g}, beyond any HU; export it again")
    image_type = header_values(dataset, "ImageType")
    maps = NOT_HU.intersection(image_type)
    if maps:
        raise ScanError(f"{name} is a material map (ImageType {maps.pop()}), expected HU; give the CT images")
    kind = header_text(dataset, "RescaleType").upper()
    # PS3.3 C.8.2.1: the rescaled values of an ORIGINAL image are HU, so "US" (unspecified) can mean nothing else there.
    if kind not in ("", "HU") and not (kind == "US" and image_type[:1] == ("ORIGINAL",)):
        raise ScanError(f"{name} has RescaleType {shown(kind)}, expected HU; give the CT images in HU")


def _is_own_output(dataset: Dataset) -> bool:
    """Whether finegrain denoised it. What finegrain simulated is a legitimate input."""
    kinds = [
        header_text(item, "ContributionDescription")
        for item in dataset.get("ContributingEquipmentSequence") or []
        if header_text(item, "Manufacturer") == EQUIPMENT_MANUFACTURER
    ]
    only_simulated = bool(kinds) and all(kind.startswith("simulated-") for kind in kinds)
    written_by_us = dataset.file_meta.get("ImplementationClassUID") == IMPLEMENTATION_CLASS_UID
    return (bool(kinds) or written_by_us) and not only_simulated


# --- header values: absent, empty and unreadable are alike ------------------------------------------------------------


def header_values(dataset: Dataset, keyword: str, *, upper: bool = True) -> tuple[str, ...]:
    """The values of a text element; empty if it is absent or cannot be read."""
    try:
        value = dataset.get(keyword)
    except UNREADABLE:
        return ()
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    return tuple(str(text).strip().upper() if upper else str(text).strip() for text in texts)


def header_text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as text; empty if it is absent or cannot be read."""
    return "\\".join(header_values(dataset, keyword, upper=False))


def header_numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The finite numbers of an element; None if it is absent, holds another count, or anything else."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, bytes | str):
            return None
        numbers = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    except UNREADABLE:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """The same for an element that is known to be sound."""
    return header_numbers(dataset, keyword, count) or ()


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9.]{3,64}", text) is not None
