"""Stored values ↔ HU: decoding, the bits that count, padding.

Whatever would give wrong HU is refused; the same functions serve the way in and the way back, so that they cannot differ.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from finegrain.errors import ScanError
from finegrain.scan.elements import read_elements
from finegrain.scan.enhanced import GROUPS, frame_header
from finegrain.scan.privacy import UNREADABLE, shown

LOWEST_HU = -1024.0
"""The bottom of the CT scale: what lies below is no attenuation but a mark."""

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

JPEG_PROCESSES = {
    JPEGBaseline8Bit: (0xFFC0,),
    JPEGExtended12Bit: (0xFFC0, 0xFFC1),
    JPEGLossless: (0xFFC3,),
    JPEGLosslessSV1: (0xFFC3,),
    JPEGLSLossless: (0xFFF7,),
    JPEGLSNearLossless: (0xFFF7,),
}
"""The marker (ISO 10918-1 B.1, ISO 14495-1 C.1) that begins the frame of each kind of JPEG."""
_START_OF_FRAME = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
JPEG_2000 = {JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K}
JPEG_2000_CODE = (0xFF4F, 0xFF51)
"""The two markers with which a JPEG 2000 begins (ISO 15444-1 A.4.1, A.5.1)."""
LONGEST_JP2_HEADER = 4096
"""Bytes in which they must come: DICOM allows no JP2 header before them, but some files have one of 100 or so. Ours."""

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


def open_slice(path: Path, name: str) -> Dataset:
    """The elements of one file that its stored values need, and its SOPInstanceUID.

    Raises: ScanError if the file cannot be read or has no pixels.
    """
    dataset = read_elements(path, name, (*PIXEL_KEYWORDS, *GROUPS, "SOPClassUID", "SOPInstanceUID", "PixelData"))
    if dataset is None or "PixelData" not in dataset:
        raise ScanError(f"{name} has no pixel data: the file is truncated; export it again")
    return dataset


def read_stored(path: Path, name: str, dataset: Dataset | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values (uint16 or int16) of a file of one slice, and where they are padding. Shape: (y, x) each.

    Raises: ScanError for pixels that are missing, cut off, cannot be decoded, or use bits above BitsStored.
    """
    dataset = open_slice(path, name) if dataset is None else dataset
    return _judged(_decoded(dataset, name), dataset, name)


def read_frame(dataset: Dataset, name: str, frame: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The same of one frame, from 0, of a multi-frame file that `open_slice` opened."""
    return _judged(_decoded(dataset, name, frame), frame_header(dataset, frame), name)


def _decoded(dataset: Dataset, name: str, frame: int | None = None) -> NDArray[Any]:
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            _refuse_broken_fragments(dataset.PixelData, name)
        if syntax in JPEG_PROCESSES or syntax in JPEG_2000:
            _refuse_false_code(dataset, name, frame or 0)
        with warnings.catch_warnings():
            # Runs that do not fill their rows exactly: pydicom would guess, and other programs guess otherwise.
            warnings.filterwarnings("error", message="The decoded RLE segment", category=UserWarning)
            # Unused high bits are judged below; pydicom would quietly cut them off, and wrap metal to air.
            return pixel_array(dataset, index=frame, raw=True, decoding_plugin=_plugin(syntax, name), correct_unused_bits=False)
    except (UserWarning, *UNREADABLE) as error:
        raise _damaged(name, error) from None


def _refuse_broken_fragments(pixels: bytes, name: str) -> None:
    """Stop where compressed pixels are not whole items one after another (PS3.5 A.4); decoders take what there is of them."""
    at = 0
    while at + 8 <= len(pixels) and pixels[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(pixels[at + 4 : at + 8], "little")
    if at != len(pixels) and pixels[at : at + 4] != b"\xfe\xff\xdd\xe0":
        raise ScanError(f"{name} is truncated or damaged: its compressed pixels are not whole fragments; export it again")


def _refuse_false_code(dataset: Dataset, name: str, frame: int) -> None:
    """Stop before decoding where the header and the compressed pixels contradict each other.

    Programs differ in which they believe, and a few bytes that claim a matrix of 60,000² make a decoder take all memory.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    code = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    process, *shape = _jpeg_2000_frame(code) if syntax in JPEG_2000 else _jpeg_frame(code)
    if process not in (JPEG_2000_CODE if syntax in JPEG_2000 else JPEG_PROCESSES[syntax]):
        raise ScanError(f"{name} is no {shown(syntax.name)}, as its file header says (found marker {process:04X}); export it again")
    expected = [int(dataset.Rows), int(dataset.Columns), 1]
    if shape != expected:
        raise ScanError(
            f"{name} holds compressed pixels of {shape}, expected rows, columns and samples {expected}; export it again"
        )


def _jpeg_frame(code: bytes) -> tuple[int, int, int, int]:
    """Marker, rows, columns and components of the first frame of a JPEG or JPEG-LS; zeros if there is none."""
    at = 2
    while code[at : at + 1] == b"\xff" and len(code) >= at + 10:
        marker, length = struct.unpack_from(">HH", code, at)
        if marker in _START_OF_FRAME:
            return (marker, *struct.unpack_from(">HHB", code, at + 5))
        at += 2 + length
    return 0, 0, 0, 0


def _jpeg_2000_frame(code: bytes) -> tuple[int, int, int, int]:
    """The same of a JPEG 2000, whose first marker segment has it (ISO 15444-1 A.5.1); a JP2 header may lie before it."""
    at = code.find(struct.pack(">HH", *JPEG_2000_CODE), 0, LONGEST_JP2_HEADER)
    if at < 0 or len(code) < at + 42:
        return 0, 0, 0, 0
    right, bottom, left, top = struct.unpack_from(">4I", code, at + 8)
    return JPEG_2000_CODE[0], bottom - top, right - left, struct.unpack_from(">H", code, at + 40)[0]


def _judged(raw: NDArray[Any], dataset: Dataset, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
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


def _damaged(name: str, error: Exception) -> ScanError:
    # The text of an OSError holds the path, and a file name may hold a patient's.
    text = error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
    return ScanError(
        f"{name} is truncated or damaged, its pixels cannot be decoded: {' '.join(text.split())[:200]}; export it again"
    )


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
        slope, intercept = rescale(dataset)
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


def to_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """HU of stored values, computed in float64."""
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def to_stored(hu: NDArray[np.float32], source: NDArray[Any], padding: NDArray[np.bool_], dataset: Dataset) -> NDArray[Any]:
    """Stored values of HU: padding and unchanged pixels keep the source's value, the others are rounded and clipped."""
    slope, intercept = rescale(dataset)
    low, high = _stored_range(dataset)
    stored = np.clip(np.rint((hu.astype(np.float64) - intercept) / slope), low, high)
    ends = _padding_range(dataset, source)
    if ends is not None:  # a treated pixel must not turn into padding, e.g. air clipped to a stored 0
        beside = ends[1] + 1 if ends[1] < high else ends[0] - 1
        stored[(stored >= ends[0]) & (stored <= ends[1])] = beside
    keep = padding | (hu == to_hu(source, slope, intercept))
    return np.where(keep, source, stored).astype(source.dtype)


def rescale(dataset: Dataset) -> tuple[float, float]:
    """Slope and intercept of a header whose rescale is known to be sound."""
    return float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
