"""Write a volume that came from no scanner as a DICOM series of its own; what came from one goes through `derived`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from finegrain.scan.derived import Derivation, equipment_item, file_name, put_file_meta, whole_folder
from finegrain.scan.volume import CTVolume

NOBODY = (
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Laterality",
)
"""What every CT image must have (PS3.3 A.3.3) and may leave empty."""

WHOLE_HU = np.iinfo(np.int16)
"""What is stored: whole HU, as scanners do."""


def write_new_series(
    volume: CTVolume,
    out_dir: Path,
    *,
    derivation: Derivation,
    header: Mapping[str, Any],
    of_each_slice: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Write HU, rounded to whole ones, as CT Image Storage; give the files in slice order.

    The series is written under a temporary name and appears complete, or not at all. Study, frame of reference and whatever names
    the object stand in `header`; the other UIDs follow from the study's and the derivation, so that the same images have the same.

    Args:
        out_dir: must not exist, or be empty.
        derivation: how the volume was made.
        header: DICOM keyword → value. Needed: StudyInstanceUID, FrameOfReferenceUID, PatientName, PatientID, SeriesNumber.
        of_each_slice: the same for what differs from slice to slice; empty if nothing does.

    Raises: ScanError if the folder cannot be written.
    """
    now = datetime.datetime.now().astimezone()
    with whole_folder(out_dir) as partial:
        for index in range(len(volume)):
            dataset = _dataset(volume, index, derivation, header, now)
            for keyword, value in (of_each_slice[index] if of_each_slice else {}).items():
                setattr(dataset, keyword, value)
            dataset.save_as(partial / file_name(index), enforce_file_format=True)
    return [out_dir / file_name(index) for index in range(len(volume))]


def _dataset(volume: CTVolume, index: int, derivation: Derivation, header: Mapping[str, Any], now: datetime.datetime) -> Dataset:
    dataset = Dataset()
    study_uid = str(header["StudyInstanceUID"])
    told = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": derivation.uid_for(f"{study_uid}.{index}"),
        "SeriesInstanceUID": derivation.uid_for(study_uid),
        "StudyID": "1",
        "Modality": "CT",
        "PatientPosition": "HFS",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "DerivationDescription": derivation.in_words()[:1024],
        "ContributingEquipmentSequence": [equipment_item(derivation, now)],
        "AcquisitionNumber": 1,
        "InstanceNumber": index + 1,
        "InstanceCreationDate": now.strftime("%Y%m%d"),
        "InstanceCreationTime": now.strftime("%H%M%S.%f"),
        "PositionReferenceIndicator": "",
        "SliceThickness": _decimal(volume.thickness_mm),
        "ImagePositionPatient": [_decimal(mm) for mm in volume.positions_mm[index]],
        "ImageOrientationPatient": [_decimal(cosine) for cosine in volume.orientation],
        "PixelSpacing": [_decimal(mm) for mm in volume.pixel_mm],
        "BurnedInAnnotation": "NO",
        **dict.fromkeys(NOBODY, ""),
        **header,
    }
    for keyword, value in told.items():
        setattr(dataset, keyword, value)
    _put_whole_hu(dataset, volume.hu[index])
    put_file_meta(dataset)
    return dataset


def _put_whole_hu(dataset: Dataset, hu: NDArray[np.float32]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    stored = np.clip(np.rint(hu), WHOLE_HU.min, WHOLE_HU.max).astype("<i2")
    dataset.add_new("PixelData", "OW", stored.tobytes())


def _decimal(value: float) -> DSfloat:
    """A number in the 16 characters that a decimal string may have."""
    return DSfloat(float(value), auto_format=True)
