"""Stored values and HU, there and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from finegrain.errors import ScanError
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.pixels import read_stored
from finegrain.scan.volume import CTVolume

Write = Callable[..., list[Path]]
WriteIdentity = Callable[[Path, Path], tuple[CTVolume, list[Path]]]
Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]


def stored_of(path: Path) -> np.ndarray:
    return pydicom.dcmread(path).pixel_array


@pytest.mark.parametrize(
    ("signed", "rescale", "bits", "padding"),
    itertools.product(
        (False, True),
        (("1", "-1024"), ("1", "0"), ("0.5", "-1000"), ("2", "-2048"), ("0.4884004884", "-1000")),
        (12, 16),
        (None, "low"),
    ),
)
def test_identity_round_trip_is_bit_equal(
    tmp_path: Path,
    write_series: Write,
    signed: bool,
    rescale: tuple[str, str],
    bits: int,
    padding: str | None,
    write_identity: WriteIdentity,
) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    dtype = np.int16 if signed else np.uint16
    stored = np.random.default_rng(bits).integers(low, high, (2, 32, 32), endpoint=True).astype(dtype)
    stored[:, 5, :2] = low, high
    changes: dict[str, Any] = {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1], "BitsStored": bits}
    if padding:
        stored[:, :3] = low
        changes["PixelPaddingValue"] = low
    write_series(tmp_path / "in", stored=stored, **changes)

    volume, files = write_identity(tmp_path / "in", tmp_path / "out")

    expected = (stored * float(rescale[0]) + float(rescale[1])).astype(np.float32)
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.padding[:, :3].all() == bool(padding)
    for path, one in zip(files, stored, strict=True):
        np.testing.assert_array_equal(stored_of(path), one)


def test_changed_hu_are_rounded_and_clipped_to_bits_stored(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    write_series(tmp_path / "in", n=1, RescaleSlope="2", RescaleIntercept="-2048")
    volume = read_series(tmp_path / "in")
    hu = volume.hu.copy()
    hu[0, 0, :4] = 40.9, 41.1, -5000, 1e6
    (path,) = write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=denoised)
    assert stored_of(path)[0, :4].tolist() == [1044, 1045, 0, 4095]


def test_padding_survives_and_nothing_turns_into_padding(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    stored = np.full((1, 32, 32), 1000, np.uint16)
    stored[0, :4] = 0
    write_series(tmp_path / "in", stored=stored, PixelPaddingValue=0)
    volume = read_series(tmp_path / "in")
    hu = np.full(volume.hu.shape, -4000, np.float32)
    (path,) = write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=denoised)
    assert np.unique(stored_of(path)[:4]).tolist() == [0]
    assert np.unique(stored_of(path)[4:]).tolist() == [1]


def test_padding_range_and_padding_beyond_bits_stored_are_padding(
    tmp_path: Path, write_series: Write, write_identity: WriteIdentity
) -> None:
    stored = np.full((1, 32, 32), 1000, np.uint16)
    stored[0, 0, :3] = 63536, 63537, 63538  # -2000 … in a header that says 12 bits unsigned
    write_series(tmp_path / "in", stored=stored, PixelPaddingValue=63536, PixelPaddingRangeLimit=63538)
    volume, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert volume.padding.sum() == 3
    np.testing.assert_array_equal(stored_of(path)[0, :3] & 0xFFFF, stored[0, 0, :3] & 0x0FFF)  # pydicom masks to 12 bits
    assert pydicom.dcmread(path).PixelData == stored.tobytes()


def test_undeclared_fill_of_the_corners_is_padding(tmp_path: Path, write_series: Write) -> None:
    stored = np.full((1, 32, 32), -2000, np.int16)
    stored[0, 4:28, 4:28] = 40
    write_series(tmp_path / "in", stored=stored, RescaleIntercept="0")
    volume = read_series(tmp_path / "in")
    np.testing.assert_array_equal(volume.padding, stored == -2000)


def test_sign_is_put_back_where_high_bits_are_zero(tmp_path: Path, write_series: Write) -> None:
    stored = np.arange(-512, 512, dtype=np.int16).reshape(1, 32, 32)
    write_series(tmp_path / "in", stored=stored & 0x0FFF, RescaleIntercept="0")
    np.testing.assert_array_equal(read_series(tmp_path / "in").hu, stored)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, JPEG2000Lossless])
def test_losslessly_compressed_slices_read_as_uncompressed_ones(
    tmp_path: Path, write_series: Write, make_slice: Make, save_slice: Save, syntax: str
) -> None:
    write_series(tmp_path / "plain", n=1)
    plain = pydicom.dcmread(tmp_path / "plain" / "001.dcm")
    if syntax == JPEG2000Lossless:
        image = SimpleITK.ReadImage(tmp_path / "plain" / "001.dcm")  # GDCM: an encoder of J2K that is here anyway
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        (tmp_path / "packed").mkdir()
        writer.SetFileName(tmp_path / "packed" / "a.dcm")
        for key in image.GetMetaDataKeys():
            if key.startswith("0028") or key in ("0020|0032", "0020|0037"):
                image.EraseMetaData(key)
        writer.Execute(image)
        packed = pydicom.dcmread(tmp_path / "packed" / "a.dcm")
        if packed.file_meta.TransferSyntaxUID != JPEG2000Lossless or "RescaleSlope" not in packed:
            pytest.skip("this SimpleITK writes no JPEG 2000 CT")
        packed.ImagePositionPatient, packed.ImageOrientationPatient = plain.ImagePositionPatient, [1, 0, 0, 0, 1, 0]
        save_slice(packed, tmp_path / "packed" / "a.dcm")
    else:
        plain.compress(syntax, generate_instance_uid=False)
        save_slice(plain, tmp_path / "packed" / "a")
    np.testing.assert_array_equal(read_series(tmp_path / "packed").hu, read_series(tmp_path / "plain").hu)


def test_a_file_that_vanishes_is_reported_without_its_path(tmp_path):
    with pytest.raises(ScanError, match="No such file") as caught:
        read_stored(tmp_path / "NAME^SECRET.dcm", "instance 1")
    assert "SECRET" not in str(caught.value)
