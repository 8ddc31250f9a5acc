"""Read a CT series; write a derived series beside it.

Reading refuses whatever would give wrong HU: a missing rescale is an error here, not a slope of 1. Writing starts from
the source files, changes what a derived image must change and leaves everything else as it was, byte for byte.

Messages name an instance by its number and UID, never by its path: scanners build file names from patient names.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import shutil
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from finegrain.errors import ScanError
from finegrain.scan.privacy import PUBLIC_KEYWORDS, UNREADABLE, acquisition_facts, series_facts, shown
from finegrain.scan.volume import CTVolume

logger = logging.getLogger(__name__)

VERSION = version("finegrain")

EQUIPMENT_MANUFACTURER = "finegrain"
IMPLEMENTATION_CLASS_UID = UID("2.25.101523925794156215159592183298027691336")
UID_NAMESPACE = uuid.UUID("54c873c6-3d31-40dd-ab5f-e32574cdf020")
LARGEST_MATRIX = 4096
"""Rows or columns beyond which a header is taken for damaged; no CT scanner reconstructs more than 2048."""
LOWEST_HU = -1024.0
"""The bottom of the CT scale: what lies below is no attenuation but a mark."""

CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
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

DECODERS = {
    RLELossless: ("pydicom",),
    JPEGBaseline8Bit: ("gdcm",),
    JPEGExtended12Bit: ("gdcm",),
    JPEGLossless: ("gdcm",),
    JPEGLosslessSV1: ("gdcm",),
    JPEGLSLossless: ("pyjpegls", "gdcm"),
    JPEGLSNearLossless: ("pyjpegls", "gdcm"),
    JPEG2000Lossless: ("pylibjpeg", "gdcm"),
    JPEG2000: ("pylibjpeg", "gdcm"),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
    HTJ2K: ("pylibjpeg",),
}
"""The decoder of each compressed transfer syntax, best first; fixed, so that two machines decode alike."""
ALWAYS_LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless}
LOSSY_UNLESS_DENIED = {JPEG2000, HTJ2K}
"""Syntaxes that hold reversible or irreversible wavelets; taken for lossy unless LossyImageCompression says 00."""

PIXEL_KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
)
HEADER_KEYWORDS = (
    *PIXEL_KEYWORDS,
    *PUBLIC_KEYWORDS,
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "ContributingEquipmentSequence",
)
PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True)
class SourceSlice:
    """One file of a series, and what proves later that it is still the same."""

    path: Path
    sop_instance_uid: str
    stored_crc32: int


@dataclass(frozen=True)
class SeriesSource:
    """Where a volume came from: what `write_derived_series` needs, without a second copy of the pixels.

    Attributes:
        slices: the files, in slice order.
        series_uid: their SeriesInstanceUID.
        folder: the folder that was read; None for a single file.
        skipped: what lay beside the series and was left out, with the reason; safe to show.
        n_not_dicom: files that are no DICOM at all.
        notes: what a reader of the result should know (uneven gaps, doubled slices …); safe to show.
    """

    slices: tuple[SourceSlice, ...]
    series_uid: str
    folder: Path | None = None
    skipped: tuple[str, ...] = ()
    n_not_dicom: int = 0
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in slice order."""
        return tuple(one.path for one in self.slices)


@dataclass(frozen=True)
class Derivation:
    """What was done to a series: it fixes the new UIDs and is told in every derived header.

    Attributes:
        kind: what the new pixels are.
        model: name of the network, or of the simulation.
        model_version: its version.
        model_sha256: hash of its weights; of the settings for a simulation.
        parameters: every setting that changes pixels (strength, HU range …), as JSON values.
        series_label: what the series list of a viewer shows in brackets; empty for "AI-DN <model> v<version>".
        series_number_offset: added to SeriesNumber.
        image_type_value_2: SECONDARY keeps other software from taking the result for the scanner's own images; some
            routers pass on PRIMARY only.
    """

    kind: Literal["denoised", "simulated-low-dose"]
    model: str
    model_version: str
    model_sha256: str
    parameters: dict[str, Any] = field(default_factory=dict)
    series_label: str = ""
    series_number_offset: int = 9000
    image_type_value_2: Literal["SECONDARY", "PRIMARY"] = "SECONDARY"

    @property
    def label(self) -> str:
        """`series_label` in ASCII, which every character set contains."""
        prefix = "AI-DN" if self.kind == "denoised" else "LOW-DOSE SIM"
        return _ascii(self.series_label or f"{prefix} {self.model} v{self.model_version}")

    def uid_for(self, source_uid: str) -> UID:
        """The UID of what is derived from `source_uid`; the same model and settings give the same, so a retry adds nothing."""
        settings = json.dumps(self.parameters, sort_keys=True, default=str)
        major = VERSION.split(".")[0]
        name = "|".join((source_uid, self.kind, self.model, self.model_version, self.model_sha256, settings, major))
        return UID(f"2.25.{uuid.uuid5(UID_NAMESPACE, name).int}")

    @property
    def model_uid(self) -> UID:
        """The DeviceUID of the processing equipment: the weights."""
        return UID(f"2.25.{uuid.uuid5(UID_NAMESPACE, 'model|' + self.model_sha256).int}")

    def in_words(self) -> str:
        """One ASCII line for DerivationDescription."""
        settings = "".join(f", {name}={value}" for name, value in sorted(self.parameters.items()))
        return _ascii(
            f"{self.kind} by finegrain {VERSION}, model {self.model} {self.model_version}"
            f" (sha256 {self.model_sha256[:12]}){settings}. Not for primary diagnosis unless locally validated."
        )


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """A parsed header of ours and the file it came from; `name` is safe to show."""

    path: Path
    dataset: Dataset
    name: str
    syntax: UID


def read_series(
    folder_or_file: Path,
    *,
    series_uid: str | None = None,
    allow_lossy: bool = False,
    allow_own_output: bool = False,
) -> CTVolume:
    """The one CT series in a folder (or file) as a volume in HU, its slices in order along their normal.

    Args:
        folder_or_file: searched with its sub-folders; files are known by content, not by extension.
        series_uid: which SeriesInstanceUID to take when there are several.
        allow_lossy: take images that were once compressed with loss.
        allow_own_output: take what finegrain denoised, e.g. to judge it; refused by default, so that nothing is
            denoised twice. Low dose that finegrain simulated is always taken.

    Raises: ScanError, in one line, for whatever cannot be read without guessing.
    """
    folder_or_file = Path(folder_or_file)
    with _tolerate_sloppy_headers():
        headers, n_not_dicom = _headers(_candidates(folder_or_file))
        ct, skipped = _slices_and_skipped(headers, n_not_dicom)
        stack = _the_one_stack(ct, series_uid)
        for header in stack:
            _refuse_untreatable(header, allow_lossy=allow_lossy)
            if not allow_own_output:
                _refuse_own_output(header)
        _refuse_mixed_patients(stack)
        return _volume(
            stack,
            folder=folder_or_file if folder_or_file.is_dir() else None,
            skipped=skipped,
            n_not_dicom=n_not_dicom,
        )


@contextmanager
def _tolerate_sloppy_headers() -> Iterator[None]:
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


def _candidates(folder_or_file: Path) -> list[Path]:
    if folder_or_file.is_file():
        return [folder_or_file]
    if not folder_or_file.is_dir():
        raise ScanError(f"expected a folder or file of a CT series, found nothing at {folder_or_file}")
    # Hidden files are no images: macOS leaves "._name" beside a copied file, a killed run a ".partial" folder.
    return sorted(
        path
        for path in folder_or_file.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder_or_file).parts)
    )


def _headers(paths: Sequence[Path]) -> tuple[list[_Header], int]:
    """The headers of the DICOM files, and how many files are something else."""
    headers, n_not_dicom = [], 0
    for n, path in enumerate(paths, start=1):
        name = f"file {n} of {len(paths)} (in order of name)"
        try:
            meta = read_file_meta_info(path)
            syntax = UID(str(meta.get("TransferSyntaxUID", "")))
            # A deflated file of 400 kB can unpack to gigabytes before any check is possible; no scanner sends one.
            if syntax == DeflatedExplicitVRLittleEndian:
                raise ScanError(f"{name} is deflated, expected plain or image-compressed DICOM; export it uncompressed")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_KEYWORDS))
        except InvalidDicomError:
            n_not_dicom += 1
            continue
        except PermissionError as error:
            raise ScanError(f"{name} may not be read: {error.strerror}; check its permissions") from None
        except UNREADABLE:
            if _has_dicom_mark(path):
                raise ScanError(f"{name} is DICOM but damaged, its header cannot be parsed; export it again") from None
            n_not_dicom += 1
            continue
        sop_class = meta.get("MediaStorageSOPClassUID")
        if "SOPClassUID" not in dataset and sop_class:
            dataset.SOPClassUID = sop_class
        headers.append(_Header(path, dataset, _name(dataset, default=name), syntax))
    return headers, n_not_dicom


def _has_dicom_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _name(dataset: Dataset, *, default: str) -> str:
    uid = _text(dataset, "SOPInstanceUID")
    number = _text(dataset, "InstanceNumber")
    if not _is_uid(uid):
        return default
    return f"instance {number} ({uid})" if re.fullmatch(r"\d{1,9}", number) else f"instance {uid}"


def _slices_and_skipped(headers: Sequence[_Header], n_not_dicom: int) -> tuple[list[_Header], tuple[str, ...]]:
    """CT slices, and one line on each other DICOM file."""
    slices, skipped, reasons = [], [], Counter[str]()
    for header in headers:
        reason = _reason_to_skip(header)
        if reason is None:
            slices.append(header)
        else:
            skipped.append(f"{header.name}: {reason}")
            reasons[reason] += 1
    if slices:
        return slices, tuple(skipped)
    if not headers:
        raise ScanError(f"expected DICOM files of a CT series, found none among {n_not_dicom} file(s); check the folder")
    came = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    raise ScanError(f"expected CT slices, got {came}; give a folder with a CT series")


def _reason_to_skip(header: _Header) -> str | None:
    dataset = header.dataset
    sop_class = _text(dataset, "SOPClassUID")
    modality = _text(dataset, "Modality")
    if not sop_class:
        raise ScanError(f"{header.name} has no SOPClassUID: it is cut off or no image; export it again or take it away")
    if sop_class not in CT_CLASSES:
        kind = shown(UID(sop_class).name) if _is_uid(sop_class) else "unknown object"
        return f"{kind}, modality {shown(modality)}" if modality else kind
    if modality != "CT":
        return f"CT Image Storage of modality {shown(modality) or 'unknown'}"
    image_type = _values(dataset, "ImageType")
    if "LOCALIZER" in image_type:
        return "localizer"
    if REFORMATS.intersection(image_type[2:]):
        return "reformat (MPR, MIP …), resampled from the slices"
    if _text(dataset, "BurnedInAnnotation").upper() == "YES":
        return "burned-in annotation"
    return None


def _the_one_stack(slices: Sequence[_Header], series_uid: str | None) -> list[_Header]:
    """The slices of one series that share orientation, matrix, spacing and kernel."""
    stacks: dict[tuple[Any, ...], list[_Header]] = {}
    for header in slices:
        stacks.setdefault(_stack_key(header), []).append(header)
    found = "; ".join(_stack_in_words(stack) for stack in stacks.values())
    if series_uid is not None:
        stacks = {key: stack for key, stack in stacks.items() if key[0] == series_uid}
        if not stacks:
            raise ScanError(f"expected a CT series with the given series_uid, found {found}; check --series")
    if len(stacks) == 1:
        return next(iter(stacks.values()))
    n_series = len({key[0] for key in stacks})
    if n_series > 1:
        raise ScanError(f"expected one CT series, found {n_series}: {found}; choose one with series_uid (--series UID)")
    raise ScanError(
        f"expected slices of one orientation, matrix, spacing and kernel, found {len(stacks)} mixed in one series:"
        f" {found}; put each into its own folder"
    )


def _stack_key(header: _Header) -> tuple[Any, ...]:
    dataset = header.dataset
    uid = _text(dataset, "SeriesInstanceUID")
    if not _is_uid(uid):
        raise ScanError(f"{header.name} has no valid SeriesInstanceUID; export the series again")
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    return (
        uid,
        _rounded(orientation, 3),
        _text(dataset, "Rows"),
        _text(dataset, "Columns"),
        _rounded(spacing, 5),
        _text(dataset, "ConvolutionKernel"),
    )


def _rounded(values: tuple[float, ...] | None, digits: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(value, digits) + 0.0 for value in values)  # + 0.0: no negative zero


def _stack_in_words(stack: Sequence[_Header]) -> str:
    dataset = stack[0].dataset
    number, kernel = shown(_text(dataset, "SeriesNumber")), shown(_text(dataset, "ConvolutionKernel"))
    noun = "slice" if len(stack) == 1 else "slices"
    return f"series {number or '?'}, kernel {kernel or '?'}, {len(stack)} {noun}, {_text(dataset, 'SeriesInstanceUID')}"


def _refuse_untreatable(header: _Header, *, allow_lossy: bool) -> None:
    """Stop at a header whose pixels cannot be turned into HU without guessing."""
    dataset, name = header.dataset, header.name
    frames = _numbers(dataset, "NumberOfFrames", 1)
    if _text(dataset, "SOPClassUID") != CTImageStorage or (frames is not None and frames[0] != 1):
        raise ScanError(f"{name} is a multi-frame (Enhanced) CT, expected one slice per file; convert it to CT Image Storage")
    if header.syntax == ExplicitVRBigEndian:
        # Retired in 2006. Its pixels could be read, but no tool can swap the bytes of private elements for the way back.
        raise ScanError(f"{name} is big-endian, expected little-endian DICOM; convert it, e.g. dcmconv +te")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
        if not _is_uid(_text(dataset, keyword)):
            raise ScanError(f"{name} has no valid {keyword}; export the series again")
    _refuse_pixel_format(header)
    _refuse_geometry(header)
    _refuse_rescale(header)
    stated = _text(dataset, "LossyImageCompression")
    lossy = stated == "01" or header.syntax in ALWAYS_LOSSY or (header.syntax in LOSSY_UNLESS_DENIED and stated != "00")
    if lossy and not allow_lossy:
        raise ScanError(
            f"{name} went through lossy compression, expected the scanner's own pixels; export it uncompressed,"
            " or allow it (allow_lossy, --allow-lossy) knowing that the noise is no longer the scanner's"
        )


def _refuse_pixel_format(header: _Header) -> None:
    dataset, name = header.dataset, header.name

    def integer(keyword: str) -> int:
        value = _numbers(dataset, keyword, 1)
        if value is None or value[0] != int(value[0]):
            raise ScanError(f"{name} has no valid {keyword}, which every CT image needs; export the series again")
        return int(value[0])

    samples = integer("SamplesPerPixel")
    if samples != 1:
        raise ScanError(f"{name} has SamplesPerPixel {samples}, expected 1: colours are not HU; leave it out")
    if not _text(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
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


def _refuse_geometry(header: _Header) -> None:
    dataset, name = header.dataset, header.name
    if _numbers(dataset, "ImagePositionPatient", 3) is None:
        raise ScanError(f"{name} has no valid ImagePositionPatient: slices cannot be put in order; export the series again")
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if orientation is None or not _is_orthonormal(np.array(orientation)):
        raise ScanError(f"{name} has no valid ImageOrientationPatient, expected two directions at a right angle")
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if spacing is None or min(spacing) <= 0:
        raise ScanError(f"{name} has no positive PixelSpacing, which texture and tile sizes need; export the series again")


def _is_orthonormal(orientation: NDArray[np.float64]) -> bool:
    row, column = orientation[:3], orientation[3:]
    errors = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    return bool(np.max(np.abs(errors)) < 0.01)  # DS has few digits; 0.01 is half a degree


def _refuse_rescale(header: _Header) -> None:
    dataset, name = header.dataset, header.name
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if _numbers(dataset, keyword, 1) is None:
            came = shown(_text(dataset, keyword)) or "none"
            raise ScanError(f"{name} needs a finite {keyword} to give HU, got {came}; export the original series")
    if _rescale(dataset)[0] == 0:
        raise ScanError(f"{name} has RescaleSlope 0, expected another number: every HU would be the same; export it again")
    image_type = _values(dataset, "ImageType")
    maps = NOT_HU.intersection(image_type)
    if maps:
        raise ScanError(f"{name} is a material map (ImageType {maps.pop()}), expected HU; give the CT images")
    kind = _text(dataset, "RescaleType").upper()
    # PS3.3 C.8.2.1: the rescaled values of an ORIGINAL image are HU, so "US" (unspecified) can mean nothing else there.
    if kind not in ("", "HU") and not (kind == "US" and image_type[:1] == ("ORIGINAL",)):
        raise ScanError(f"{name} has RescaleType {shown(kind)}, expected HU; give the CT images in HU")


def _refuse_own_output(header: _Header) -> None:
    """Loop guard: nothing is denoised twice. Low dose that finegrain simulated is a legitimate input."""
    kinds = [
        _text(item, "ContributionDescription")
        for item in header.dataset.get("ContributingEquipmentSequence") or []
        if _text(item, "Manufacturer") == EQUIPMENT_MANUFACTURER
    ]
    only_simulated = bool(kinds) and all(kind.startswith("simulated-low-dose") for kind in kinds)
    written_by_us = header.dataset.file_meta.get("ImplementationClassUID") == IMPLEMENTATION_CLASS_UID
    if (kinds or written_by_us) and not only_simulated:
        raise ScanError(f"{header.name} was already denoised by finegrain, expected the scanner's images; give the source")


def _refuse_mixed_patients(stack: Sequence[_Header]) -> None:
    for keyword, thing in (("PatientID", "patient"), ("StudyInstanceUID", "study")):
        n = len({_text(header.dataset, keyword) for header in stack})
        if n > 1:
            raise ScanError(f"expected one {thing}, found {n} in one series; separate the files by {thing}")


def _volume(stack: Sequence[_Header], *, folder: Path | None, skipped: tuple[str, ...], n_not_dicom: int) -> CTVolume:
    orientation = _required(stack[0].dataset, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    height = {header.path: float(np.dot(_required(header.dataset, "ImagePositionPatient", 3), normal)) for header in stack}
    ordered = sorted(stack, key=lambda header: (height[header.path], header.name, header.path))

    first = ordered[0].dataset
    shape = (len(ordered), int(first.Rows), int(first.Columns))
    hu, padding = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    kept: list[_Header] = []
    slices: list[SourceSlice] = []
    for header in ordered:
        uid = _text(header.dataset, "SOPInstanceUID")
        stored, mask = _stored_pixels(header.path, header.name)
        one = SourceSlice(header.path, uid, zlib.crc32(stored.tobytes()))
        if _is_repeated(header, one, kept, slices, height):
            continue
        hu[len(kept)], padding[len(kept)] = _to_hu(stored, *_rescale(header.dataset)), mask
        kept.append(header)
        slices.append(one)

    n = len(kept)
    positions = np.array([_required(header.dataset, "ImagePositionPatient", 3) for header in kept])
    slice_mm, notes = _gaps(positions, np.asarray(orientation), _numbers(first, "SliceThickness", 1))
    if n < len(ordered):
        notes.append(f"{len(ordered) - n} doubled slices left out")
    if any(_text(header.dataset, "RescaleType").upper() == "US" for header in kept):
        notes.append("RescaleType US taken for HU, as for any ORIGINAL image")
    row_mm, column_mm = _required(first, "PixelSpacing", 2)
    return CTVolume(
        hu=hu[:n],
        pixel_mm=(row_mm, column_mm),
        slice_mm=slice_mm,
        positions_mm=positions,
        orientation=tuple(orientation),
        padding=padding[:n],
        acquisition=series_facts([acquisition_facts(header.dataset) for header in kept]),
        source=SeriesSource(
            slices=tuple(slices),
            series_uid=_text(first, "SeriesInstanceUID"),
            folder=folder,
            skipped=skipped,
            n_not_dicom=n_not_dicom,
            notes=tuple(notes),
        ),
    )


def _is_repeated(
    header: _Header,
    one: SourceSlice,
    kept: Sequence[_Header],
    slices: Sequence[SourceSlice],
    height: dict[Path, float],
) -> bool:
    """Whether this slice is there already; ScanError if it is there with other pixels or at another place."""
    same_uid = [i for i, other in enumerate(slices) if other.sop_instance_uid == one.sop_instance_uid]
    same_place = kept and abs(height[header.path] - height[kept[-1].path]) < 1e-3
    if not (same_uid or same_place):
        return False
    i = same_uid[0] if same_uid else len(kept) - 1
    identical = (
        slices[i].stored_crc32 == one.stored_crc32
        and _rescale(kept[i].dataset) == _rescale(header.dataset)
        and abs(height[header.path] - height[kept[i].path]) < 1e-3
    )
    if not identical:
        what = "one SOPInstanceUID" if same_uid else f"one position ({height[header.path]:.2f} mm)"
        raise ScanError(
            f"{kept[i].name} and {header.name} are conflicting duplicates: {what}, different images; keep the right one"
            " (several phases or echoes of a scan belong in separate series)"
        )
    return True


def _gaps(
    positions: NDArray[np.float64], orientation: NDArray[np.float64], thickness: tuple[float, ...] | None
) -> tuple[float, list[str]]:
    """Slice distance in mm (median), and what is uneven. Slices are treated one by one, so nothing here is an error."""
    if len(positions) == 1:
        if thickness is not None and thickness[0] > 0:
            return thickness[0], []
        return 1.0, ["single slice without SliceThickness: 1 mm assumed"]
    notes = []
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.diff(positions, axis=0)
    along = steps @ normal
    slice_mm = float(np.median(along))
    uneven = np.abs(along - slice_mm) > max(0.01, 0.02 * slice_mm)
    if uneven.any():
        notes.append(
            f"uneven gaps: {int(uneven.sum())} of {len(along)} differ from {slice_mm:.2f} mm"
            f" ({along.min():.2f} to {along.max():.2f} mm)"
        )
    if np.max(np.linalg.norm(steps - along[:, None] * normal, axis=1)) > 0.1:
        notes.append("slices are shifted against each other (gantry tilt)")
    return slice_mm, notes


# --- pixels ----------------------------------------------------------------------------------------------------------


def _stored_pixels(path: Path, name: str, dataset: Dataset | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values (uint16 or int16) of one file, and where they are padding. Shape: (y, x) each.

    Raises: ScanError for pixels that are missing, cut off, cannot be decoded, or use bits above BitsStored.
    """
    try:
        if dataset is None:
            dataset = pydicom.dcmread(path, specific_tags=[*PIXEL_KEYWORDS, "PixelData"])
        if PIXEL_DATA not in dataset:
            raise ScanError(f"{name} has no pixel data: the file is truncated; export it again")
        syntax = dataset.file_meta.TransferSyntaxUID
        # Unused high bits are judged below; pydicom would quietly cut them off, and wrap metal to air.
        raw = pixel_array(dataset, raw=True, decoding_plugin=_plugin(syntax, name), correct_unused_bits=False)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ScanError(f"{name} is truncated or damaged, its pixels cannot be decoded: {reason}; export it again") from None
    if raw.shape != (dataset.Rows, dataset.Columns) or raw.dtype.itemsize != 2:
        raise ScanError(f"{name} decodes to {raw.shape} of {raw.dtype}, expected {dataset.Rows} × {dataset.Columns} of 16 bit")
    stored = np.ascontiguousarray(raw, dtype=np.int16 if dataset.PixelRepresentation else np.uint16)
    bits = int(dataset.BitsStored)
    if dataset.PixelRepresentation and bits < 16 and stored.view(np.uint16).max() < 1 << bits:
        # The standard lets the unused bits of a negative number be anything; zeros need the sign put back.
        stored = (stored << (16 - bits)) >> (16 - bits)
    padding = _padding(stored, dataset)
    low, high = _stored_range(dataset)
    beyond = ((stored < low) | (stored > high)) & ~padding
    if beyond.any():
        worst = int(stored[beyond].max())
        raise ScanError(
            f"{name} has {int(beyond.sum())} pixels beyond BitsStored {bits} ({low} … {high}), e.g. {worst}: overlay bits"
            " or a wrong header, so HU would be a guess; export it again"
        )
    return stored, padding


def _plugin(syntax: UID, name: str) -> str:
    """Which decoder to use for a transfer syntax; empty for one without compression."""
    if not syntax.is_compressed:
        return ""
    wanted = DECODERS.get(syntax, ())
    available = get_decoder(syntax).available_plugins if wanted else ()
    for plugin in wanted:
        if plugin in available:
            return plugin
    raise ScanError(f"{name} is compressed as {shown(syntax.name)}, for which no decoder is here; export it uncompressed")


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)


def _padding_range(dataset: Dataset, stored: NDArray[Any]) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean padding; None if nothing does.

    Some scanners fill the corners with a value such as -2000 HU and do not declare it. A value that all four corners share
    and that lies below every real CT number is taken for padding, too.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(keyword)
        if isinstance(value, bytes):
            value = int.from_bytes(value[:2], "little") if len(value) >= 2 else None
        if value in (None, ""):
            break  # a limit without a value means nothing
        word = int(value) % 65536  # many headers give a signed value as US, or the other way round
        ends.append(word)
    if not ends:
        corners = {int(value) for value in stored[:: max(1, len(stored) - 1), :: max(1, stored.shape[1] - 1)].flat}
        slope, intercept = _rescale(dataset)
        undeclared = corners.pop()
        return (undeclared, undeclared) if not corners and undeclared * slope + intercept < LOWEST_HU else None
    if dataset.PixelRepresentation:
        high, bits = _stored_range(dataset)[1], int(dataset.BitsStored)
        ends = [word - 65536 if word >= 32768 else word for word in ends]
        ends = [word - (1 << bits) if high < word < 1 << bits else word for word in ends]
    return min(ends), max(ends)


def _padding(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_]:
    ends = _padding_range(dataset, stored)
    if ends is None:
        return np.zeros(stored.shape, np.bool_)
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def _to_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _to_stored(hu: NDArray[np.float32], source: NDArray[Any], padding: NDArray[np.bool_], dataset: Dataset) -> NDArray[Any]:
    """Stored values of HU: padding and unchanged pixels keep the source's value, the others are rounded and clipped."""
    slope, intercept = _rescale(dataset)
    low, high = _stored_range(dataset)
    stored = np.clip(np.rint((hu.astype(np.float64) - intercept) / slope), low, high)
    ends = _padding_range(dataset, source)
    if ends is not None:  # a treated pixel must not turn into padding, e.g. air clipped to a stored 0
        beside = ends[1] + 1 if ends[1] < high else ends[0] - 1
        stored[(stored >= ends[0]) & (stored <= ends[1])] = beside
    keep = padding | (hu == _to_hu(source, slope, intercept))
    return np.where(keep, source, stored).astype(source.dtype)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_derived_series(
    volume: CTVolume,
    out_dir: Path,
    *,
    derivation: Derivation,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write HU as a new series of the same study and frame of reference; give the files in slice order.

    Every file starts from its source file. The series is written beside `out_dir` under a temporary name and appears
    there complete, or not at all.

    Args:
        volume: as `read_series` gave it, with other HU (`CTVolume.with_hu`).
        out_dir: must not exist, or be empty; never inside the source's folder.
        derivation: what was done; the same derivation gives the same UIDs.
        progress: called with the number of slices written so far.

    Raises: ScanError for a volume without source, HU that are not finite, or a folder that cannot be written.
    """
    source, out_dir = volume.source, Path(out_dir)
    if not isinstance(source, SeriesSource):
        raise ScanError("expected a volume read from a DICOM series, got one without source files; write NIfTI instead")
    if len(source.slices) != len(volume):
        raise ScanError(f"volume has {len(volume)} slices, its source {len(source.slices)}; write the whole series")
    _refuse_values_that_are_no_hu(volume)
    check_output_folder(out_dir, volume)

    names = [f"IM{n:04d}.dcm" for n in range(1, len(volume) + 1)]
    partial = out_dir.parent / f".{out_dir.name}.{uuid.uuid4().hex[:8]}.partial"
    now = datetime.datetime.now().astimezone()
    try:
        partial.mkdir(parents=True)
        with _tolerate_sloppy_headers():
            for i, (one, name) in enumerate(zip(source.slices, names, strict=True)):
                _write_derived(one, volume.hu[i], derivation, now, partial / name)
                if progress is not None:
                    progress(i + 1)
        if out_dir.is_dir():
            out_dir.rmdir()  # empty: checked above, and rmdir refuses otherwise
        os.rename(partial, out_dir)
    except OSError as error:
        raise ScanError(f"cannot write the derived series: {error.strerror}; nothing was left behind") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [out_dir / name for name in names]


def _write_derived(one: SourceSlice, hu: NDArray[np.float32], derivation: Derivation, now: datetime.datetime, path: Path) -> None:
    try:
        dataset = _derived(one, hu, derivation, now)
        dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    except OSError:
        raise
    except UNREADABLE:  # the reason is left out: pydicom quotes the value, which may be a name
        raise ScanError(
            f"source instance {one.sop_instance_uid} holds a damaged header element and cannot be written; export it again"
        ) from None


def _refuse_values_that_are_no_hu(volume: CTVolume) -> None:
    for i, (hu, padding) in enumerate(zip(volume.hu, volume.padding, strict=True)):
        bad = int(np.sum(~np.isfinite(hu) & ~padding))
        if bad:
            raise ScanError(f"slice {i + 1} has {bad} pixels that are NaN or infinite, expected HU; nothing is written")


def check_output_folder(out_dir: Path, volume: CTVolume) -> None:
    """Whether a derived series of this volume could be written there; asked before the work, and again when writing.

    Raises: ScanError if the folder lies in the input folder, is a file, or is not empty.
    """
    source = volume.source
    resolved = out_dir.resolve()
    if isinstance(source, SeriesSource) and source.folder is not None and resolved.is_relative_to(source.folder.resolve()):
        raise ScanError("the output folder lies in the input folder, expected another one: a later run would read both")
    if out_dir.exists() and not out_dir.is_dir():
        raise ScanError(f"{out_dir} is a file, expected a new folder")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise ScanError(f"{out_dir} is not empty, expected a new or empty folder: nothing is overwritten")


def _derived(one: SourceSlice, hu: NDArray[np.float32], derivation: Derivation, now: datetime.datetime) -> Dataset:
    """The derived instance of one source file."""
    name = f"source instance {one.sop_instance_uid}"
    try:
        dataset = pydicom.dcmread(one.path)
    except (InvalidDicomError, *UNREADABLE):
        raise ScanError(f"{name} can no longer be read; leave the source in place until the series is written") from None
    source, padding = _stored_pixels(one.path, name, dataset)
    if _text(dataset, "SOPInstanceUID") != one.sop_instance_uid or zlib.crc32(source.tobytes()) != one.stored_crc32:
        raise ScanError(f"{name} changed since it was read; read the series again")
    stored = _to_stored(hu, source, padding, dataset)

    _make_explicit(dataset)
    _drop_what_no_longer_holds(dataset)
    _put_pixels(dataset, stored)
    _put_identity(dataset, derivation, now)
    _put_derivation(dataset, one, derivation, now)
    _put_file_meta(dataset)
    return dataset


def _make_explicit(dataset: Dataset) -> None:
    """Name the VR of each element of an implicit dataset without decoding it, so that texts keep their bytes."""
    if dataset.original_encoding != (True, True):
        return
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if not isinstance(raw, RawDataElement):
            continue
        if tag.is_private and not tag.is_private_creator:
            dataset[tag] = DataElement(tag, "UN", raw.value or b"")
            continue
        if tag.is_private:
            vr = "LO"
        else:
            try:
                vr = dictionary_VR(tag)
            except KeyError:
                vr = "UN"
        if vr == "SQ" or " or " in vr or vr == "NONE":
            dataset[tag]
        else:
            dataset[tag] = raw._replace(VR=vr, is_implicit_VR=False)
    correct_ambiguous_vr(dataset, True)
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def _drop_what_no_longer_holds(dataset: Dataset) -> None:
    """Take out what speaks of the source's pixels: signatures, thumbnails, tables of its compressed frames."""
    signed = [keyword for keyword in ("DigitalSignaturesSequence", "MACParametersSequence") if keyword in dataset]
    if signed:
        logger.info("digital signature dropped: it signs the source's pixels")
    for keyword in (
        *signed,
        "IconImageSequence",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "SmallestPixelValueInSeries",
        "LargestPixelValueInSeries",
        "DataSetTrailingPadding",
    ):
        if keyword in dataset:
            del dataset[keyword]


def _put_pixels(dataset: Dataset, stored: NDArray[Any]) -> None:
    if dataset.file_meta.TransferSyntaxUID in ALWAYS_LOSSY | LOSSY_UNLESS_DENIED and "LossyImageCompression" not in dataset:
        dataset.LossyImageCompression = "01"  # the syntax said so until now; the new one would hide it
    for keyword, value in (("SmallestImagePixelValue", stored.min()), ("LargestImagePixelValue", stored.max())):
        if keyword in dataset:
            dataset.add_new(keyword, "SS" if dataset.PixelRepresentation else "US", int(value))
    dataset.add_new(PIXEL_DATA, "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())


def _put_identity(dataset: Dataset, derivation: Derivation, now: datetime.datetime) -> None:
    """New instance, new series, made now; study, frame of reference and geometry stay."""
    series_uid = derivation.uid_for(_text(dataset, "SeriesInstanceUID"))
    number = _numbers(dataset, "SeriesNumber", 1)
    dataset.SOPInstanceUID = derivation.uid_for(_text(dataset, "SOPInstanceUID"))
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesNumber = int(number[0] if number is not None else 0) + derivation.series_number_offset
    dataset.SeriesDescription = _series_description(dataset, derivation.label)
    image_type = _values(dataset, "ImageType")
    dataset.ImageType = ["DERIVED", derivation.image_type_value_2, *(image_type[2:] or ("AXIAL",))]
    local = now.astimezone(_timezone(dataset) or now.tzinfo)
    for what in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{what}Date", local.strftime("%Y%m%d"))
        setattr(dataset, f"{what}Time", local.strftime("%H%M%S.%f"))


def _series_description(dataset: Dataset, label: str) -> str:
    """`source [label]` in the 64 characters that LO allows; the source's text gives way."""
    label = f"[{label[:62]}]"
    source = "".join(c for c in " ".join(_values(dataset, "SeriesDescription", upper=False)) if c.isprintable() and c != "�")
    return f"{source[: 63 - len(label)].rstrip()} {label}".strip() if len(label) < 63 else label


def _timezone(dataset: Dataset) -> datetime.timezone | None:
    """The zone in which a dataset's times are meant, if it names one."""
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", _text(dataset, "TimezoneOffsetFromUTC"))
    if match is None:
        return None
    offset = datetime.timedelta(hours=int(match[2]), minutes=int(match[3]))
    return datetime.timezone(-offset if match[1] == "-" else offset) if offset < datetime.timedelta(days=1) else None


def _put_derivation(dataset: Dataset, one: SourceSlice, derivation: Derivation, now: datetime.datetime) -> None:
    """Say from what the image was made, by what and how."""
    words = derivation.in_words()
    earlier = _text(dataset, "DerivationDescription")
    dataset.DerivationDescription = (f"{words} Source: {earlier}" if earlier else words)[:1024]
    # CID 7203 has no code for noise reduction or insertion; these are the nearest it has.
    code = ("113087", "Smoothing") if derivation.kind == "denoised" else ("113042", "Pixel by pixel addition")
    dataset.DerivationCodeSequence = [*(dataset.get("DerivationCodeSequence") or []), _code(*code)]

    source = Dataset()
    source.ReferencedSOPClassUID = CTImageStorage
    source.ReferencedSOPInstanceUID = one.sop_instance_uid
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    dataset.SourceImageSequence = [source]

    equipment = Dataset()
    equipment.Manufacturer = EQUIPMENT_MANUFACTURER
    equipment.ManufacturerModelName = _ascii(derivation.model)[:64]
    equipment.DeviceUID = derivation.model_uid
    equipment.SoftwareVersions = [
        f"finegrain {VERSION}"[:64],
        _ascii(f"{derivation.model} {derivation.model_version}")[:64],
    ]
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S.%f%z")
    equipment.ContributionDescription = words[:1024]
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    dataset.ContributingEquipmentSequence = [*(dataset.get("ContributingEquipmentSequence") or []), equipment]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _put_file_meta(dataset: Dataset) -> None:
    """A fresh file header: the source's names the software that wrote it, and its preamble may hold a program."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = f"FINEGRAIN_{VERSION}"[:16]
    dataset.file_meta = meta
    dataset.preamble = bytes(128)


# --- header values ---------------------------------------------------------------------------------------------------


def _values(dataset: Dataset, keyword: str, *, upper: bool = True) -> tuple[str, ...]:
    """The values of a text element; empty if it is absent or cannot be read."""
    try:
        value = dataset.get(keyword)
    except UNREADABLE:
        return ()
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    return tuple(str(text).strip().upper() if upper else str(text).strip() for text in texts)


def _text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as text; empty if it is absent or cannot be read."""
    return "\\".join(_values(dataset, keyword, upper=False))


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The finite numbers of an element; None if it is absent, holds another count, or anything else."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, bytes | str):
            return None
        numbers = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    except UNREADABLE:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _required(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """`_numbers` of an element that was checked before."""
    numbers = _numbers(dataset, keyword, count)
    assert numbers is not None, keyword
    return numbers


def _rescale(dataset: Dataset) -> tuple[float, float]:
    return _required(dataset, "RescaleSlope", 1)[0], _required(dataset, "RescaleIntercept", 1)[0]


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9.]{3,64}", text) is not None


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\\", "/")
