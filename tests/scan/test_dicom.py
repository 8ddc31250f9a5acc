"""Finding and reading a CT series."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

from finegrain.errors import ScanError
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import SeriesSource, read_series
from finegrain.scan.privacy import PUBLIC_KEYWORDS
from finegrain.scan.volume import CTVolume

Write = Callable[..., list[Path]]
WriteIdentity = Callable[[Path, Path], tuple[CTVolume, list[Path]]]
Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]

# --- which files, in which order


def test_slices_are_sorted_by_position_not_by_name(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path)  # names run against the positions
    volume = read_series(tmp_path)
    assert volume.positions_mm[:, 2].tolist() == [1.5, 3.0, 4.5]
    assert volume.slice_mm == 1.5
    assert volume.pixel_mm == (0.7, 0.7)


def test_sagittal_slices_are_sorted_along_their_normal(
    tmp_path: Path, write_series: Write, make_slice: Make, save_slice: Save
) -> None:
    for i, x in enumerate((7.0, 3.0, 5.0)):
        one = make_slice(i + 1, np.full((32, 32), i, np.uint16))
        one.ImageOrientationPatient, one.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [x, 0, 0]
        save_slice(one, tmp_path / str(i))
    volume = read_series(tmp_path)
    assert volume.hu[:, 0, 0].tolist() == [-1024, -1022, -1023]  # the normal points to -x
    assert volume.slice_mm == 2.0


def test_files_are_known_by_content_and_others_are_left_out(
    tmp_path: Path, write_series: Write, make_slice: Make, save_slice: Save
) -> None:
    files = write_series(tmp_path)
    files[0].rename(tmp_path / "no_extension")
    (tmp_path / "notes.dcm").write_text("no DICOM at all")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "._001.dcm").write_bytes(b"left by a file manager")
    localizer = make_slice(9, np.zeros((32, 32), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save_slice(localizer, tmp_path / "scout")
    save_slice(make_slice(10, np.zeros((32, 32), np.uint16), SOPClassUID=SecondaryCaptureImageStorage), tmp_path / "sc")
    volume = read_series(tmp_path)
    assert len(volume) == 3
    assert volume.source.n_not_dicom == 2
    assert sorted(line.split(": ")[1] for line in volume.source.skipped) == [
        "Secondary Capture Image Storage, modality CT",
        "localizer",
    ]


def test_one_of_several_series_is_read_by_its_uid(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", n=2, SeriesInstanceUID="1.2.3.4.6", ConvolutionKernel="D45f")
    with pytest.raises(ScanError, match=r"found 2: series 2, kernel B30f, 3 slices, 1\.2\.3\.4\.5; .*D45f, 2 .*--series"):
        read_series(tmp_path)
    assert len(read_series(tmp_path, series_uid="1.2.3.4.6")) == 2
    with pytest.raises(ScanError, match="series_uid, found series 2"):
        read_series(tmp_path, series_uid="9.9")


def test_identical_duplicates_count_once(tmp_path: Path, write_series: Write) -> None:
    files = write_series(tmp_path)
    shutil.copy(files[1], tmp_path / "copy.dcm")
    volume = read_series(tmp_path)
    assert len(volume) == 3
    assert volume.source.notes == ("1 doubled slices left out",)


def test_uneven_gaps_are_noted_not_refused(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path, n=5)[2].unlink()
    volume = read_series(tmp_path)
    assert len(volume) == 4
    assert "uneven gaps: 1 of 3 differ from 1.50 mm" in volume.source.notes[0]


def test_a_single_file_is_a_volume_of_one_slice(tmp_path: Path, write_series: Write) -> None:
    volume = read_series(write_series(tmp_path)[0])
    assert len(volume) == 1
    assert volume.slice_mm == 1.0


def test_facts_are_whitelisted_and_varying_numbers_are_medians(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path)
    facts = read_series(tmp_path).acquisition
    assert set(facts) <= set(PUBLIC_KEYWORDS)
    assert facts["ConvolutionKernel"] == "B30f"
    assert facts["XRayTubeCurrent"] == 120.0
    assert not [
        word
        for word in PUBLIC_KEYWORDS
        if re.search("UID|Name$|Date|Time$|Institution|Serial", word)
        and word not in ("ManufacturerModelName", "ExposureTime", "RevolutionTime")
    ]


def test_the_sample_is_eight_whole_slices(sample: CTVolume) -> None:
    assert sample.hu.shape == (8, 512, 512)
    assert sample.slice_mm == 3.0
    assert isinstance(sample.source, SeriesSource)
    assert sample.source.notes == sample.source.skipped == ()
    assert sample.acquisition["ConvolutionKernel"] == "B40f"


# --- refusals

WATER = np.full((32, 32), 1024, np.uint16)
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "not CT": ({"SOPClassUID": MRImageStorage, "Modality": "MR"}, "expected CT slices, got .* modality MR"),
    "only localizers": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "reformat": ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "reformat"),
    "burned-in text": ({"BurnedInAnnotation": "YES"}, "burned-in"),
    "no slope": ({"RescaleSlope": None}, "RescaleSlope"),
    "no intercept": ({"RescaleIntercept": None}, "RescaleIntercept"),
    "huge slope": ({"RescaleSlope": "1e308"}, "beyond any HU"),
    "huge intercept": ({"RescaleIntercept": "-3e38"}, "beyond any HU"),
    "zero slope": ({"RescaleSlope": "0"}, "RescaleSlope 0"),
    "nan intercept": ({"RescaleIntercept": "nan"}, "RescaleIntercept"),
    "not HU": ({"RescaleType": "Z_EFF"}, "RescaleType Z_EFF, expected HU"),
    "unspecified and derived": ({"RescaleType": "US", "ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, "RescaleType US"),
    "material map": ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "ELECTRON_DENSITY"]}, "material map"),
    "enhanced": ({"SOPClassUID": EnhancedCTImageStorage}, "multi-frame"),
    "several frames": ({"NumberOfFrames": 2, "PixelData": WATER.tobytes() * 2}, "multi-frame"),
    "colour": ({"SamplesPerPixel": 3}, "SamplesPerPixel 3, expected 1"),
    "lossy": ({"LossyImageCompression": "01"}, "lossy.*allow_lossy"),
    "no pixels": ({"PixelData": None}, "no pixel data"),
    "too few pixels": ({"PixelData": WATER.tobytes()[:700]}, "truncated"),
    "no position": ({"ImagePositionPatient": None}, "ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "ImageOrientationPatient"),
    "skewed orientation": ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "ImageOrientationPatient"),
    "no spacing": ({"PixelSpacing": None}, "PixelSpacing"),
    "8 bits": ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "BitsAllocated 8"),
    "shifted bits": ({"HighBit": 15}, "HighBit"),
    "dirty high bits": ({"PixelData": (WATER | 0x8000).tobytes()}, "beyond BitsStored 12"),
    "big-endian": ({}, "big-endian"),
    "huge matrix": ({"Rows": 65535}, "65535"),
    "no series": ({"SeriesInstanceUID": None}, "SeriesInstanceUID"),
    "no instance": ({"SOPInstanceUID": ""}, "SOPInstanceUID"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_gives_no_hu_is_refused_in_one_line_without_naming_the_patient(
    tmp_path: Path, make_slice: Make, planted: tuple[str, ...], case: str
) -> None:
    changes, word = REFUSALS[case]
    one = make_slice(1, WATER, **changes)
    one.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.ImplementationClassUID = "1.2.3"
    little_endian = case != "big-endian"
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    path = tmp_path / "PLANTEDNAME_SECRET.CT.IMA"  # scanners do build file names so
    with path.open("wb") as file:
        pydicom.dcmwrite(file, one, enforce_file_format=True, implicit_vr=False, little_endian=little_endian)
    with pytest.raises(ScanError, match=word) as error:
        read_series(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert not [secret for secret in planted if secret in message]


def test_a_truncated_file_is_refused(tmp_path: Path, write_series: Write) -> None:
    whole = write_series(tmp_path)[0].read_bytes()
    for share in (0.25, 0.4, 0.6, 0.99):
        (tmp_path / "001.dcm").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ScanError):
            read_series(tmp_path)


def test_conflicting_duplicates_are_refused(tmp_path: Path, write_series: Write, make_slice: Make, save_slice: Save) -> None:
    write_series(tmp_path)
    one = make_slice(2, WATER)
    save_slice(one, tmp_path / "same_uid.dcm")
    with pytest.raises(ScanError, match="conflicting duplicates: one SOPInstanceUID"):
        read_series(tmp_path)
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5.77"
    save_slice(one, tmp_path / "same_uid.dcm")
    with pytest.raises(ScanError, match="conflicting duplicates: one position"):
        read_series(tmp_path)


def test_mixed_stacks_and_mixed_patients_in_one_series_are_refused(
    tmp_path: Path, write_series: Write, make_slice: Make, save_slice: Save, planted: tuple[str, ...]
) -> None:
    write_series(tmp_path)
    save_slice(make_slice(9, WATER, ConvolutionKernel="B70f"), tmp_path / "other")
    with pytest.raises(ScanError, match="mixed in one series"):
        read_series(tmp_path)
    save_slice(make_slice(9, WATER, PatientID="PLANTED-ID-4712"), tmp_path / "other")
    with pytest.raises(ScanError, match="expected one patient, found 2") as error:
        read_series(tmp_path)
    assert "PLANTED" not in str(error.value)


def test_a_sloppy_patient_header_is_neither_fatal_nor_logged(
    tmp_path: Path, write_series: Write, planted: tuple[str, ...], caplog: pytest.LogCaptureFixture, write_identity: WriteIdentity
) -> None:
    write_series(
        tmp_path / "in",
        PatientBirthDate="PLANTEDNAME",
        PatientAge="SECRET",
        KVP="120",
        InstanceNumber=None,
        SoftwareVersions="PLANTEDNAME" * 8,
    )
    for path in (tmp_path / "in").iterdir():  # pydicom itself would not write a voltage that is a word
        path.write_bytes(path.read_bytes().replace(b"DS\x04\x00120 ", b"DS\x04\x00SECR"))
    caplog.clear()
    with caplog.at_level("DEBUG"):
        volume, files = write_identity(tmp_path / "in", tmp_path / "out")
    assert "KVP" not in volume.acquisition
    assert len(files) == 3
    assert not [secret for secret in planted if secret in caplog.text]


def test_own_output_is_refused_unless_asked_for(tmp_path: Path, write_series: Write, write_identity: WriteIdentity) -> None:
    write_series(tmp_path / "in")
    write_identity(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ScanError, match="already denoised by finegrain"):
        read_series(tmp_path / "out")
    assert len(read_series(tmp_path / "out", allow_own_output=True)) == 3


def test_the_loop_guard_survives_a_pacs_that_rewrites_the_file_header(
    tmp_path: Path, write_series: Write, save_slice: Save, write_identity: WriteIdentity
) -> None:
    write_series(tmp_path / "in", n=1)
    _, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.ImplementationClassUID = "1.2.276.0.7230010.3.0.3.6.7"
    save_slice(dataset, path)
    with pytest.raises(ScanError, match="already denoised by finegrain"):
        read_series(path)


def test_simulated_low_dose_may_be_denoised(tmp_path: Path, write_series: Write, write_identity: WriteIdentity) -> None:
    write_series(tmp_path / "in")
    simulated = Derivation(kind="simulated-low-dose", model="fan-beam", model_version="1", model_sha256="cd" * 32)
    write_derived_series(read_series(tmp_path / "in"), tmp_path / "low", derivation=simulated)
    _, files = write_identity(tmp_path / "low", tmp_path / "out")
    kinds = [item.ContributionDescription.split()[0] for item in pydicom.dcmread(files[0]).ContributingEquipmentSequence]
    assert kinds == ["simulated-low-dose", "denoised"]
    with pytest.raises(ScanError, match="already denoised"):
        read_series(tmp_path / "out")


def test_lossy_images_are_read_when_allowed_and_stay_marked(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    write_series(tmp_path / "in", LossyImageCompression="01")
    volume = read_series(tmp_path / "in", allow_lossy=True)
    files = write_derived_series(volume, tmp_path / "out", derivation=denoised)
    assert pydicom.dcmread(files[0]).LossyImageCompression == "01"
