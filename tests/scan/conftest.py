"""Small synthetic CT series, written the way a scanner writes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from finegrain.sample import sample_folder
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume

SIDE = 32
PLANTED_NAME, PLANTED_ID, PLANTED_BIRTH_DATE = "PLANTEDNAME^SECRET", "PLANTED-ID-4711", "19310131"

WriteSeries = Callable[..., list[Path]]


def ct_slice(number: int, stored: NDArray[Any], **changes: Any) -> Dataset:
    """One valid CT instance of 32 × 32 pixels; `changes` are DICOM keywords, None takes an element out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "SPIRAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.4.5.{number}",
        "StudyDate": "20200102",
        "SeriesDate": "20200102",
        "AcquisitionDate": "20200102",
        "ContentDate": "20200102",
        "StudyTime": "101112",
        "SeriesTime": "101112",
        "AcquisitionTime": "101112",
        "ContentTime": "101112",
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": "TestScanner",
        "ManufacturerModelName": "T1000",
        "ReferringPhysicianName": "",
        "SeriesDescription": "Thorax 1.0",
        "PatientName": PLANTED_NAME,
        "PatientID": PLANTED_ID,
        "PatientBirthDate": PLANTED_BIRTH_DATE,
        "PatientSex": "O",
        "BodyPartExamined": "CHEST",
        "SliceThickness": 1,
        "KVP": 120,
        "XRayTubeCurrent": 100 + 10 * number,
        "ConvolutionKernel": "B30f",
        "PatientPosition": "HFS",
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.5",
        "StudyID": "",
        "SeriesNumber": 2,
        "AcquisitionNumber": 1,
        "InstanceNumber": number,
        "ImagePositionPatient": [-10, -20, 1.5 * number],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "FrameOfReferenceUID": "1.2.3.4.9",
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.7, 0.7],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": int(changes.get("BitsStored") or 12) - 1,
        "PixelRepresentation": int(stored.dtype == np.int16),
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": stored.tobytes(),
    } | changes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR|The value length")  # some tests want one
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    if dataset.get("PixelData") is not None:
        dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write as DICOM in the transfer syntax that the dataset names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def noise_slices(n: int, *, seed: int = 0) -> NDArray[np.uint16]:
    """Unsigned 12-bit slices of noise around water. Shape: (n, 32, 32)."""
    return np.random.default_rng(seed).integers(900, 1200, (n, SIDE, SIDE)).astype(np.uint16)


@pytest.fixture
def make_slice() -> Callable[..., Dataset]:
    """`ct_slice`, to be changed further before saving."""
    return ct_slice


@pytest.fixture
def save_slice() -> Callable[[Dataset, Path], Path]:
    return save


@pytest.fixture
def write_series() -> WriteSeries:
    """Write a series of noise (or of `stored`) into a folder, with the given DICOM keywords changed."""

    def write(folder: Path, *, n: int = 3, stored: NDArray[Any] | None = None, **changes: Any) -> list[Path]:
        slices = noise_slices(n) if stored is None else stored
        return [save(ct_slice(i + 1, one, **changes), folder / f"{len(slices) - i:03d}.dcm") for i, one in enumerate(slices)]

    return write


@pytest.fixture
def planted() -> tuple[str, ...]:
    """What names the patient in every synthetic header and must never be told."""
    return ("PLANTEDNAME", "SECRET", PLANTED_ID, PLANTED_BIRTH_DATE)


@pytest.fixture(scope="session")
def denoised() -> Derivation:
    """A derivation by denoising."""
    return Derivation(
        kind="denoised", model="finegrain-s", model_version="0.1", model_sha256="ab" * 32, parameters={"strength": 0.8}
    )


@pytest.fixture
def write_identity(denoised: Derivation) -> Callable[[Path, Path], tuple[CTVolume, list[Path]]]:
    """Read a series and write it as a derived one with the same HU."""

    def write(folder: Path, out: Path) -> tuple[CTVolume, list[Path]]:
        volume = read_series(folder)
        return volume, write_derived_series(volume, out, derivation=denoised)

    return write


@pytest.fixture(scope="session")
def sample() -> CTVolume:
    """The scan that ships with the package."""
    return read_series(sample_folder())
