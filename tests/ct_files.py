"""CT files for tests: DICOM slices as scanners and archives write them, and volumes of other formats on the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SIDE = 16
FIRST_MM = (-10.0, -20.0)
PIXEL_MM = 0.7

PLANTED = ("SECRETNAME", "SECRET-ID-4711", "secretseries", "secretstudy", "secretfolder", "secretfile")
"""What names a patient somewhere in the files of a test and must never be told."""


def write_ct(
    folder: Path,
    z_mm: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    noise: int = 0,
    patient_id: str = PLANTED[1],
    kernel: str = "B30f",
    **header: Any,
) -> list[Path]:
    """A CT series of one slice at each position, its HU ten times that position plus `noise` in a checkerboard.

    Args:
        names: of the files; by default shuffled, so that their order says nothing.
        header: DICOM keywords to set besides; None takes one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[str(folder), kernel, patient_id])
    shuffled = np.random.default_rng(len(z_mm)).permutation(len(z_mm))
    names = names or [f"{n:04d}.IMA" for n in shuffled]
    return [
        _write_slice(folder / name, z, uid, number, noise, patient_id, kernel, header)
        for number, (name, z) in enumerate(zip(names, z_mm, strict=True), start=1)
    ]


def slice_hu(z_mm: float, noise: int = 0) -> NDArray[np.int16]:
    """What `write_ct` shows at a position. Shape: (16, 16)."""
    checker = np.indices((SIDE, SIDE)).sum(0) % 2 * 2 - 1
    return (round(10 * z_mm) + noise * checker).astype(np.int16)


def write_volume(path: Path, z_mm: Sequence[float], *, noise: int = 0) -> Path:
    """The slices of `write_ct` as NIfTI, NRRD or MetaImage, by the suffix."""
    hu = np.stack([slice_hu(z, noise) for z in z_mm])
    step = z_mm[1] - z_mm[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name:
        affine = np.diag([-PIXEL_MM, -PIXEL_MM, step, 1.0])
        affine[:3, 3] = -FIRST_MM[0], -FIRST_MM[1], z_mm[0]
        image = nib.Nifti1Image(hu.transpose(2, 1, 0), affine)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        return path
    import SimpleITK

    volume = SimpleITK.GetImageFromArray(hu)
    volume.SetSpacing((PIXEL_MM, PIXEL_MM, step))
    volume.SetOrigin((*FIRST_MM, z_mm[0]))
    SimpleITK.WriteImage(volume, str(path))
    return path


def _write_slice(
    path: Path, z_mm: float, series_uid: str, number: int, noise: int, patient_id: str, kernel: str, header: dict[str, Any]
) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(entropy_srcs=[series_uid, str(number), str(path)]),
        "StudyInstanceUID": generate_uid(entropy_srcs=[series_uid, "study"]),
        "SeriesInstanceUID": series_uid,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": PLANTED[0],
        "PatientID": patient_id,
        "SeriesDescription": PLANTED[2],
        "StudyDescription": PLANTED[3],
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "ConvolutionKernel": kernel,
        "KVP": 120,
        "SliceThickness": 3,
        "ImagePositionPatient": [*FIRST_MM, z_mm],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [PIXEL_MM, PIXEL_MM],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": SIDE,
        "Columns": SIDE,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
    } | header
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", slice_hu(z_mm, noise).tobytes())
    dataset.save_as(path, enforce_file_format=True)
    return path
