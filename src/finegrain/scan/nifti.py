"""Read and write NIfTI volumes in HU: the one place where RAS, the axes of NIfTI, meets LPS, the axes of DICOM."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ScanError
from finegrain.scan.grid import LARGEST_TILT_DEG, Grid, axial_grid, finite, in_words, reason
from finegrain.scan.volume import CTVolume

SUFFIXES = (".nii", ".nii.gz")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_TRANSFORM = "has neither a qform nor an sform, so where its voxels lie and which way is left are unknown"


@dataclass(frozen=True)
class NiftiSource:
    """Where a volume came from: what `write_nifti` needs to give the array back in its own order.

    Attributes:
        shape: of the array in the file, trailing axes of length 1 included.
        affine: its voxel indices → mm, RAS, shape (4, 4).
        canonical_affine: the same for the reordered array (x, y, z) that the volume holds.
        qform_code, sform_code: what the file says its axes refer to.
        skipped, notes: as for a DICOM series; empty.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    canonical_affine: NDArray[np.float64]
    qform_code: int
    sform_code: int
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, name: str | None = None) -> CTVolume:
    """A CT volume of a NIfTI file whose values, scaled as the header says, are HU.

    Whatever order and direction the array's axes have (RAS, LAS, sagittal slices …), the volume is axial: slices from feet
    to head, rows from front to back, columns from the patient's right to left. A single slice (two axes) is a volume of one.

    Args:
        name: what to call the file in messages; its path if not given.

    Raises: ScanError, in one line, for what cannot be read without guessing: more than three axes, values that are not
        finite, sizes that are missing or contradict each other, units other than mm, oblique or sheared axes.
    """
    path = Path(path)
    name = name or str(path)
    image, header = _open(path, name)
    grid = _grid(name, image, header)
    return grid.volume(
        _values(path, name, image).reshape(grid.shape),
        NiftiSource(
            shape=image.shape,
            affine=_RAS_TO_LPS @ grid.affine,
            canonical_affine=_RAS_TO_LPS @ grid.canonical,
            qform_code=int(header["qform_code"]),
            sform_code=int(header["sform_code"]),
        ),
    )


def nifti_grid(path: Path, name: str) -> Grid:
    """Where the voxels of a NIfTI file lie, by its header alone; refused as by `read_nifti`."""
    return _grid(name, *_open(path, name))


def _grid(name: str, image: Any, header: Any) -> Grid:
    _refuse_units(name, header)
    shape = image.shape
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise ScanError(f"{name} holds an array of {in_words(shape)}, expected one volume of 3 axes; split the file")
    grid = axial_grid(name, (*shape[:3], *(1,) * (3 - len(shape))), _RAS_TO_LPS @ _affine(name, image, header))
    if len(shape) == 2 and grid.size[2] != 1:
        raise ScanError(f"{name} is a single slice that is not axial, expected an axial slice or a volume; give the whole scan")
    return grid


def write_nifti(volume: CTVolume, path: Path) -> Path:
    """Write a volume as .nii or .nii.gz, whole or not at all; int16 if its HU are whole numbers, else float32.

    A volume that came from a NIfTI file keeps that file's order of axes and its transforms; any other is written as it lies in
    memory, (x, y, z), with the geometry of its DICOM slices. No patient data is written.

    Raises: ScanError for HU that are not finite, slices that are not evenly spaced along their normal (NIfTI has one distance
        and no gantry tilt), another suffix, or a folder that cannot be written.
    """
    import nibabel as nib

    path = Path(path)
    if not is_nifti(path):
        raise ScanError(f"expected a name that ends in {' or '.join(SUFFIXES)}, got {path.name}")
    bad = int(np.count_nonzero(~np.isfinite(volume.hu)))
    if bad:
        raise ScanError(f"{bad} of {volume.hu.size} HU are NaN or infinite, expected finite values; nothing was written")
    affine = _affine_of(volume)
    values: NDArray[Any] = volume.hu.transpose(2, 1, 0)
    codes = (1, 1)
    if _fits_source(volume, affine):
        source = volume.source
        back = nib.orientations.ornt_transform(_canonical(), nib.orientations.io_orientation(source.affine))
        values = nib.orientations.apply_orientation(values, back).reshape(source.shape)
        affine, codes = source.affine, (source.qform_code, source.sform_code)
    if np.array_equal(values, np.rint(values)) and values.min() >= -32768 and values.max() <= 32767:
        values = values.astype(np.int16)
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units("mm")
    # The suffix stays at the end: nibabel chooses the compression by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, temporary)
        temporary.replace(path)
    except OSError as error:
        raise ScanError(f"{path} cannot be written: {error.strerror or error}; check the folder and the disk") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _open(path: Path, name: str) -> tuple[Any, Any]:
    """The image without its values, and the header as it is in the file, before nibabel mends it."""
    import nibabel as nib

    if not path.is_file():
        raise ScanError(f"expected a NIfTI file, found nothing at {name}")
    try:
        # nibabel sets a missing pixel size to 1 mm; the raw header still knows.
        nib.imageglobals.logger.disabled, was_disabled = True, nib.imageglobals.logger.disabled
        try:
            image = nib.load(path)
        finally:
            nib.imageglobals.logger.disabled = was_disabled
        if not isinstance(image, nib.Nifti1Image):
            raise ScanError(f"{name} is no single-file NIfTI but {type(image).__name__}; convert it to .nii or .nii.gz")
        with nib.openers.ImageOpener(str(path)) as file:
            header = type(image.header).from_fileobj(file, check=False)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
    ) as error:
        raise ScanError(f"{name} cannot be read as NIfTI: {reason(error, path)}; copy it again") from None
    kind = header.get_data_dtype().kind
    if kind not in "iuf":
        raise ScanError(f"{name} holds values of type {header.get_data_dtype()}, expected one number per voxel in HU")
    return image, header


def _refuse_units(name: str, header: Any) -> None:
    # Code 0, unknown, is what many converters write, and the NIfTI reader of ITK takes it for mm as well.
    unit = {0: "mm", 1: "metre", 2: "mm", 3: "micron"}.get(int(header["xyzt_units"]) & 7, "an unknown code")
    if unit != "mm":
        raise ScanError(f"{name} has its sizes in {unit} (xyzt_units), expected mm; convert sizes and unit to mm")


def _affine(name: str, image: Any, header: Any) -> NDArray[np.float64]:
    """Voxel indices → mm in RAS, shape (4, 4); refused if missing, without size, or if the header contradicts itself."""
    n = min(len(image.shape), 3)
    pixdim = np.abs(np.asarray(header["pixdim"], dtype=np.float64)[1:4])
    if not (np.isfinite(pixdim[:n]).all() and (pixdim[:n] > 0).all()):
        raise ScanError(f"{name} has voxel sizes (pixdim) of {in_words(pixdim[:n])} mm, expected all above 0; repair the header")
    qform, sform = header["qform_code"] > 0, header["sform_code"] > 0
    if not (qform or sform):
        raise ScanError(f"{name} {_NO_TRANSFORM}; export it again with its orientation")
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if n == 2 and not (np.isfinite(size[2]) and size[2] > 0):  # one slice: nothing depends on its thickness
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / (size[0] * size[1])
        size[2] = 1.0
    if not np.isfinite(affine).all() or (size == 0).any():
        raise ScanError(f"{name} has an affine with voxel sizes of {in_words(size)} mm, expected all above 0; repair the header")
    if not np.allclose(size[:n], pixdim[:n], rtol=0.01):
        raise ScanError(
            f"{name} contradicts itself: voxel sizes are {in_words(pixdim[:n])} mm by pixdim,"
            f" {in_words(size[:n])} mm by its affine; repair the header"
        )
    if qform and sform:
        _refuse_two_places(name, image, affine)
    return affine


def _refuse_two_places(name: str, image: Any, affine: NDArray[np.float64]) -> None:
    """Programs differ in which of two transforms they believe, so the two must agree."""
    shape = (*image.shape[:3], *(1,) * (3 - len(image.shape)))
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    apart = np.linalg.norm((corners @ (image.header.get_qform() - affine).T)[:, :3], axis=1).max()
    if apart > 0.5:
        raise ScanError(
            f"{name} contradicts itself: its qform and sform place a corner {apart:.1f} mm apart, expected less than 0.5 mm;"
            " remove the one that is not the scanner's"
        )


def _values(path: Path, name: str, image: Any) -> NDArray[np.float32]:
    try:
        return finite(name, image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ScanError(f"{name} is damaged or cut off: {reason(error, path)}; copy it again") from None


def _canonical() -> NDArray[np.float64]:
    """Array axes x, y, z of a volume as nibabel says it: columns to the left, rows to the back, slices to the head."""
    import nibabel as nib

    return np.asarray(nib.orientations.axcodes2ornt(("L", "P", "S")))


def _affine_of(volume: CTVolume) -> NDArray[np.float64]:
    """Indices (x, y, z) of a volume → mm in RAS, shape (4, 4)."""
    row, column = np.array(volume.orientation[:3]), np.array(volume.orientation[3:])
    normal = np.cross(row, column)
    step = normal * volume.slice_mm
    if len(volume) > 1:
        steps = np.diff(volume.positions_mm, axis=0)
        step = (volume.positions_mm[-1] - volume.positions_mm[0]) / (len(volume) - 1)
        off = np.abs(steps - step).max()
        if off > max(0.01, 0.02 * volume.slice_mm):
            along = steps @ normal
            raise ScanError(
                f"slice distances run from {along.min():.2f} to {along.max():.2f} mm, expected one distance: NIfTI has no other;"
                " write DICOM, or give a series without gaps"
            )
        cosine = np.clip(step @ normal / max(float(np.linalg.norm(step)), 1e-9), -1, 1)
        tilt = float(np.degrees(np.arccos(abs(cosine))))
        if tilt > LARGEST_TILT_DEG:
            raise ScanError(
                f"slices are shifted by a gantry tilt of {tilt:.1f}°, expected at most {LARGEST_TILT_DEG}°: most readers of NIfTI"
                " would take them for upright; write DICOM"
            )
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * volume.pixel_mm[1], column * volume.pixel_mm[0], step
    lps[:3, 3] = volume.positions_mm[0]
    return _RAS_TO_LPS @ lps


def _fits_source(volume: CTVolume, affine: NDArray[np.float64]) -> bool:
    """Whether the volume is still the whole of the NIfTI file that it came from."""
    source = volume.source
    return (
        isinstance(source, NiftiSource)
        and int(np.prod(source.shape)) == volume.hu.size
        and np.allclose(affine, source.canonical_affine, atol=1e-4)
    )
