"""Find and read a CT series.

Reading refuses whatever would give wrong HU: a missing rescale is an error here, not a slope of 1.

Messages name an instance by its number and UID, never by its path: scanners build file names from patient names.
"""

from __future__ import annotations

import logging
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from finegrain.errors import ScanError
from finegrain.scan.pixels import ALWAYS_LOSSY, LOSSY_UNLESS_DENIED, PIXEL_KEYWORDS, read_stored, rescale, to_hu
from finegrain.scan.privacy import PUBLIC_KEYWORDS, UNREADABLE, acquisition_facts, series_facts, shown
from finegrain.scan.volume import CTVolume

EQUIPMENT_MANUFACTURER = "finegrain"
IMPLEMENTATION_CLASS_UID = UID("2.25.101523925794156215159592183298027691336")
"""With the manufacturer: the marks that the writer leaves and the loop guard looks for."""
LARGEST_MATRIX = 4096
"""Rows or columns beyond which a header is taken for damaged; no CT scanner reconstructs more than 2048."""

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
    with tolerate_sloppy_headers():
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
        except OSError as error:
            reason = error.strerror or "read error"  # its full text holds the path, and a file name may hold a patient's
            raise ScanError(f"{name} cannot be read: {reason}; check its permissions and the disk") from None
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
    uid = header_text(dataset, "SOPInstanceUID")
    number = header_text(dataset, "InstanceNumber")
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
    sop_class = header_text(dataset, "SOPClassUID")
    modality = header_text(dataset, "Modality")
    if not sop_class:
        raise ScanError(f"{header.name} has no SOPClassUID: it is cut off or no image; export it again or take it away")
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
    uid = header_text(dataset, "SeriesInstanceUID")
    if not _is_uid(uid):
        raise ScanError(f"{header.name} has no valid SeriesInstanceUID; export the series again")
    orientation = header_numbers(dataset, "ImageOrientationPatient", 6)
    spacing = header_numbers(dataset, "PixelSpacing", 2)
    return (
        uid,
        _rounded(orientation, 3),
        header_text(dataset, "Rows"),
        header_text(dataset, "Columns"),
        _rounded(spacing, 5),
        header_text(dataset, "ConvolutionKernel"),
    )


def _rounded(values: tuple[float, ...] | None, digits: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(value, digits) + 0.0 for value in values)  # + 0.0: no negative zero


def _stack_in_words(stack: Sequence[_Header]) -> str:
    dataset = stack[0].dataset
    number, kernel = shown(header_text(dataset, "SeriesNumber")), shown(header_text(dataset, "ConvolutionKernel"))
    noun = "slice" if len(stack) == 1 else "slices"
    return f"series {number or '?'}, kernel {kernel or '?'}, {len(stack)} {noun}, {header_text(dataset, 'SeriesInstanceUID')}"


def _refuse_untreatable(header: _Header, *, allow_lossy: bool) -> None:
    """Stop at a header whose pixels cannot be turned into HU without guessing."""
    dataset, name = header.dataset, header.name
    frames = header_numbers(dataset, "NumberOfFrames", 1)
    if header_text(dataset, "SOPClassUID") != CTImageStorage or (frames is not None and frames[0] != 1):
        raise ScanError(f"{name} is a multi-frame (Enhanced) CT, expected one slice per file; convert it to CT Image Storage")
    if header.syntax == ExplicitVRBigEndian:
        # Retired in 2006. Its pixels could be read, but no tool can swap the bytes of private elements for the way back.
        raise ScanError(f"{name} is big-endian, expected little-endian DICOM; convert it, e.g. dcmconv +te")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
        if not _is_uid(header_text(dataset, keyword)):
            raise ScanError(f"{name} has no valid {keyword}; export the series again")
    _refuse_pixel_format(header)
    _refuse_geometry(header)
    _refuse_rescale(header)
    stated = header_text(dataset, "LossyImageCompression")
    lossy = stated == "01" or header.syntax in ALWAYS_LOSSY or (header.syntax in LOSSY_UNLESS_DENIED and stated != "00")
    if lossy and not allow_lossy:
        raise ScanError(
            f"{name} went through lossy compression, expected the scanner's own pixels; export it uncompressed,"
            " or allow it (allow_lossy, --allow-lossy) knowing that the noise is no longer the scanner's"
        )


def _refuse_pixel_format(header: _Header) -> None:
    dataset, name = header.dataset, header.name

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


def _refuse_geometry(header: _Header) -> None:
    dataset, name = header.dataset, header.name
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


def _refuse_rescale(header: _Header) -> None:
    dataset, name = header.dataset, header.name
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if header_numbers(dataset, keyword, 1) is None:
            came = shown(header_text(dataset, keyword)) or "none"
            raise ScanError(f"{name} needs a finite {keyword} to give HU, got {came}; export the original series")
    if rescale(dataset)[0] == 0:
        raise ScanError(f"{name} has RescaleSlope 0, expected another number: every HU would be the same; export it again")
    image_type = header_values(dataset, "ImageType")
    maps = NOT_HU.intersection(image_type)
    if maps:
        raise ScanError(f"{name} is a material map (ImageType {maps.pop()}), expected HU; give the CT images")
    kind = header_text(dataset, "RescaleType").upper()
    # PS3.3 C.8.2.1: the rescaled values of an ORIGINAL image are HU, so "US" (unspecified) can mean nothing else there.
    if kind not in ("", "HU") and not (kind == "US" and image_type[:1] == ("ORIGINAL",)):
        raise ScanError(f"{name} has RescaleType {shown(kind)}, expected HU; give the CT images in HU")


def _refuse_own_output(header: _Header) -> None:
    """Loop guard: nothing is denoised twice. Low dose that finegrain simulated is a legitimate input."""
    kinds = [
        header_text(item, "ContributionDescription")
        for item in header.dataset.get("ContributingEquipmentSequence") or []
        if header_text(item, "Manufacturer") == EQUIPMENT_MANUFACTURER
    ]
    only_simulated = bool(kinds) and all(kind.startswith("simulated-low-dose") for kind in kinds)
    written_by_us = header.dataset.file_meta.get("ImplementationClassUID") == IMPLEMENTATION_CLASS_UID
    if (kinds or written_by_us) and not only_simulated:
        raise ScanError(f"{header.name} was already denoised by finegrain, expected the scanner's images; give the source")


def _refuse_mixed_patients(stack: Sequence[_Header]) -> None:
    for keyword, thing in (("PatientID", "patient"), ("StudyInstanceUID", "study")):
        n = len({header_text(header.dataset, keyword) for header in stack})
        if n > 1:
            raise ScanError(f"expected one {thing}, found {n} in one series; separate the files by {thing}")


def _volume(stack: Sequence[_Header], *, folder: Path | None, skipped: tuple[str, ...], n_not_dicom: int) -> CTVolume:
    orientation = np.array(stack[0].dataset.ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    height = {header.path: float(np.array(header.dataset.ImagePositionPatient, float) @ normal) for header in stack}
    ordered = sorted(stack, key=lambda header: (height[header.path], header.name, header.path))

    first = ordered[0].dataset
    shape = (len(ordered), int(first.Rows), int(first.Columns))
    hu, padding = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    kept: list[_Header] = []
    slices: list[SourceSlice] = []
    for header in ordered:
        uid = header_text(header.dataset, "SOPInstanceUID")
        stored, mask = read_stored(header.path, header.name)
        one = SourceSlice(header.path, uid, zlib.crc32(stored.tobytes()))
        if _is_repeated(header, one, kept, slices, height):
            continue
        hu[len(kept)], padding[len(kept)] = to_hu(stored, *rescale(header.dataset)), mask
        kept.append(header)
        slices.append(one)

    n = len(kept)
    positions = np.array([header.dataset.ImagePositionPatient for header in kept], float)
    slice_mm, notes = _gaps(positions, normal, header_numbers(first, "SliceThickness", 1))
    if n < len(ordered):
        notes.append(f"{len(ordered) - n} doubled slices left out")
    if any(header_text(header.dataset, "RescaleType").upper() == "US" for header in kept):
        notes.append("RescaleType US taken for HU, as for any ORIGINAL image")
    row_mm, column_mm = map(float, first.PixelSpacing)
    return CTVolume(
        hu=hu[:n],
        pixel_mm=(row_mm, column_mm),
        slice_mm=slice_mm,
        positions_mm=positions,
        orientation=tuple(orientation.tolist()),
        padding=padding[:n],
        acquisition=series_facts([acquisition_facts(header.dataset) for header in kept]),
        tube_current_ma=_tube_current([header.dataset for header in kept]),
        source=SeriesSource(
            slices=tuple(slices),
            series_uid=header_text(first, "SeriesInstanceUID"),
            folder=folder,
            skipped=skipped,
            n_not_dicom=n_not_dicom,
            notes=tuple(notes),
        ),
    )


def _tube_current(datasets: Sequence[Dataset]) -> NDArray[np.float64] | None:
    """XRayTubeCurrent of each slice in mA; None unless every header has a positive one. Shape: (z,)."""
    current = [header_numbers(dataset, "XRayTubeCurrent", 1) for dataset in datasets]
    if any(value is None or not 0 < value[0] < 1e5 for value in current):
        return None
    return np.array([value[0] for value in current if value])


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
        and rescale(kept[i].dataset) == rescale(header.dataset)
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
    positions: NDArray[np.float64], normal: NDArray[np.float64], thickness: tuple[float, ...] | None
) -> tuple[float, list[str]]:
    """Slice distance in mm (median), and what is uneven. Slices are treated one by one, so nothing here is an error."""
    if len(positions) == 1:
        if thickness is not None and thickness[0] > 0:
            return thickness[0], []
        return 1.0, ["single slice without SliceThickness: 1 mm assumed"]
    notes = []
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


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9.]{3,64}", text) is not None
