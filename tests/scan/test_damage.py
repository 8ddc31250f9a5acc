"""Damage that once gave other HU than another program sees, took all memory, or escaped as another error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from finegrain.errors import ScanError
from finegrain.scan.dicom import read_series

Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]
Write = Callable[..., list[Path]]


def packed(make_slice: Make, save_slice: Save, path: Path, syntax: str) -> bytes:
    """A compressed slice as bytes."""
    one = make_slice(1, np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16))
    one.compress(syntax, generate_instance_uid=False)
    return save_slice(one, path).read_bytes()


def encoded(keyword: str, vr: str, value: str) -> bytes:
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + struct.pack("<H", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [("RescaleIntercept", "-1024 ", "-1000 "), ("RescaleSlope", "1 ", "2 "), ("RescaleSlope", "1 ", "1 ")],
)
def test_an_element_that_is_there_twice_is_refused(
    tmp_path: Path, write_series: Write, keyword: str, first: str, second: str
) -> None:
    (path,) = write_series(tmp_path, n=1)
    whole, one = path.read_bytes(), encoded(keyword, "DS", first.strip() if len(first.strip()) % 2 == 0 else first)
    assert whole.count(one) == 1
    path.write_bytes(whole.replace(one, one + encoded(keyword, "DS", second.strip() if len(second.strip()) % 2 == 0 else second)))
    with pytest.raises(ScanError, match=f"holds {keyword} twice"):
        read_series(path)


def test_pixels_that_are_there_twice_are_refused(tmp_path: Path, write_series: Write) -> None:
    (path,) = write_series(tmp_path, n=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[whole.index(b"\xe0\x7f\x10\x00OW") :][:12] + bytes(2048))
    with pytest.raises(ScanError, match="holds PixelData twice"):
        read_series(path)


@pytest.mark.parametrize(
    ("syntax", "marker", "at"),
    [(JPEG2000Lossless, b"\xff\x4f\xff\x51", 8), (JPEGLSLossless, b"\xff\xf7", 5)],
)
def test_a_few_bytes_that_claim_a_huge_matrix_are_refused_before_decoding(
    tmp_path: Path, make_slice: Make, save_slice: Save, syntax: str, marker: bytes, at: int
) -> None:
    code = bytearray(packed(make_slice, save_slice, tmp_path / "a", syntax))
    struct.pack_into(">II" if syntax == JPEG2000Lossless else ">HH", code, code.index(marker) + at, 60000, 60000)
    (tmp_path / "a").write_bytes(code)
    with pytest.raises(ScanError, match=r"holds compressed pixels of \[60000, 60000, 1\], expected .* \[32, 32, 1\]"):
        read_series(tmp_path)


@pytest.mark.parametrize("false", [JPEGBaseline8Bit, JPEGLosslessSV1, HTJ2KLossless])
def test_pixels_of_another_jpeg_than_the_file_header_says_are_refused(
    tmp_path: Path, make_slice: Make, save_slice: Save, false: str
) -> None:
    packed(make_slice, save_slice, tmp_path / "a", JPEGLSLossless)
    dataset = pydicom.dcmread(tmp_path / "a")
    dataset.file_meta.TransferSyntaxUID = false
    save_slice(dataset, tmp_path / "a")
    with pytest.raises(ScanError, match="as its file header says"):
        read_series(tmp_path, allow_lossy=True)


@pytest.mark.parametrize("n_extra", [0, 40])
def test_run_lengths_that_overfill_the_matrix_are_refused(tmp_path: Path, make_slice: Make, save_slice: Save, n_extra: int) -> None:
    one = make_slice(1, np.full((32, 32), 0x0405, np.uint16))
    runs = [bytes([257 - 128, value]) * 8 for value in (4, 5)]  # 8 runs of 128 for each of the two bytes
    runs[0] += bytes([257 - n_extra, 9]) if n_extra else b""
    offsets = struct.pack("<16I", 2, 64, 64 + len(runs[0]), *[0] * 13)
    one.file_meta.TransferSyntaxUID = RLELossless
    one.PixelData = encapsulate([offsets + b"".join(runs)])
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    save_slice(one, tmp_path / "a")
    if n_extra:
        with pytest.raises(ScanError, match="non-conformant padding"):
            read_series(tmp_path)
    else:
        assert np.unique(read_series(tmp_path).hu).tolist() == [0x0405 - 1024]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_fragment_that_is_longer_than_the_file_is_refused(
    tmp_path: Path, make_slice: Make, save_slice: Save, syntax: str
) -> None:
    code = bytearray(packed(make_slice, save_slice, tmp_path / "a", syntax))
    code[code.rindex(b"\xfe\xff\x00\xe0") + 7] |= 0x80
    (tmp_path / "a").write_bytes(code)
    with pytest.raises(ScanError, match=r"not whole fragments|damaged"):
        read_series(tmp_path)


@pytest.mark.parametrize("vr", ["LO", "DS", "OB"])
def test_padding_that_is_no_number_is_refused_in_one_line(tmp_path: Path, write_series: Write, vr: str) -> None:
    (path,) = write_series(tmp_path, n=1, PixelPaddingValue=63536)
    whole = path.read_bytes()
    one = b"\x28\x00\x20\x01US\x02\x00" + struct.pack("<H", 63536)
    assert whole.count(one) == 1
    path.write_bytes(whole.replace(one, b"\x28\x00\x20\x01" + vr.encode() + one[6:]))
    with pytest.raises(ScanError):
        read_series(path)


def test_two_ways_from_stored_values_to_hu_are_refused(tmp_path: Path, make_slice: Make, save_slice: Save) -> None:
    one = make_slice(1, np.full((32, 32), 1024, np.uint16))
    one.ModalityLUTSequence = [Dataset()]
    save_slice(one, tmp_path / "a")
    with pytest.raises(ScanError, match="Modality LUT"):
        read_series(tmp_path)


def test_a_lie_about_the_length_of_a_private_element_is_refused(tmp_path: Path, write_series: Write) -> None:
    (path,) = write_series(tmp_path, n=1)
    whole = path.read_bytes()
    at = whole.index(b"\x20\x00\x0d\x00UI")
    for length in (0xFFFFFFFE, 0x7FFFFFFE, 1 << 20):
        path.write_bytes(whole[:at] + b"\x19\x00\x10\x10OB\0\0" + struct.pack("<I", length) + whole[at:])
        with pytest.raises(ScanError):
            read_series(path)


def test_sequences_ten_thousand_deep_are_refused(tmp_path: Path, write_series: Write) -> None:
    (path,) = write_series(tmp_path, n=1)
    whole = path.read_bytes()
    at = whole.index(b"\x20\x00\x0d\x00UI")
    down = b"\x18\x00\x01\xa0SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    up = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(whole[:at] + down * 10_000 + up * 10_000 + whole[at:])
    with pytest.raises(ScanError, match="damaged"):
        read_series(path)
