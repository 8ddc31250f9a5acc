"""Read a MetaImage volume (.mha, .mhd) in HU (needs SimpleITK, part of the extra `collections`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finegrain.errors import ScanError
from finegrain.scan.grid import Grid, axial_grid, finite
from finegrain.scan.volume import CTVolume

SUFFIXES = (".mha", ".mhd")
LONGEST_HEADER = 65536
"""Bytes in which the text header of a MetaImage must end; a real one has under a thousand. Ours."""


def read_metaimage(path: Path, name: str | None = None) -> CTVolume:
    """A CT volume of a MetaImage file whose values are HU, made axial as by `read_nifti`.

    Args:
        name: what to call the file in messages; its path if not given.

    Raises: ScanError if the file cannot be read, holds no three axes, or is sheared or oblique.
    """
    path = Path(path)
    name = name or str(path)
    reader = _reader(path, name)
    grid = _grid(name, reader)
    import SimpleITK

    try:
        values = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError:  # its many lines hold the path
        raise ScanError(f"{name} is damaged or cut off; copy it again") from None
    return grid.volume(finite(name, values.transpose(2, 1, 0)))


def metaimage_grid(path: Path, name: str) -> Grid:
    """Where the voxels of a MetaImage file lie, by its header alone; refused as by `read_metaimage`."""
    return _grid(name, _reader(path, name))


def metaimage_files(path: Path, name: str) -> list[Path]:
    """The file and, where its values lie in another, that one."""
    values = _header(path, name).get("elementdatafile", "")
    if values.upper() == "LOCAL":
        return [path]
    if not values or values.upper().startswith("LIST") or "%" in values or Path(values).name != values:
        raise ScanError(f"{name} names no single file beside it that holds its values (ElementDataFile); write one .mha file")
    if not path.with_name(values).is_file():
        raise ScanError(f"the file beside {name} that holds its values (ElementDataFile) is missing; copy both")
    return [path, path.with_name(values)]


def _header(path: Path, name: str) -> dict[str, str]:
    """The text header: values by key in small letters."""
    try:
        with path.open("rb") as file:
            lines = file.read(LONGEST_HEADER).decode("latin-1").splitlines()
    except OSError as error:
        raise ScanError(f"{name} cannot be read: {error.strerror or 'read error'}; check its permissions and the disk") from None
    fields: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if "elementdatafile" in fields:  # by definition the last
            return fields
    raise ScanError(f"{name} cannot be read as MetaImage: its header has no ElementDataFile; copy it again")


def _reader(path: Path, name: str) -> Any:
    """SimpleITK's reader, the header read."""
    if not path.is_file():
        raise ScanError(f"expected a MetaImage file, found nothing at {name}")
    try:
        import SimpleITK
    except ImportError:
        raise ScanError(f"reading {name} needs SimpleITK; install it with: pip install 'finegrain[collections]'") from None
    metaimage_files(path, name)
    fields = _header(path, name)
    # ITK gives the stored values and leaves these aside; a file that uses them means other values.
    slope, offset = (fields.get(f"elementtointensityfunction{what}", usual) for what, usual in (("slope", "1"), ("offset", "0")))
    try:
        scaled = (float(slope), float(offset)) != (1.0, 0.0)
    except ValueError:
        scaled = True
    if scaled:
        raise ScanError(f"{name} has an ElementToIntensityFunction ({slope}, {offset}), expected HU as they are; apply it first")
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError(f"{name} cannot be read as MetaImage: its header is damaged; copy it again") from None
    return reader


def _grid(name: str, reader: Any) -> Grid:
    shape, n = reader.GetSize(), reader.GetDimension()
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(f"{name} has {reader.GetNumberOfComponents()} values per voxel, expected one number in HU")
    affine = np.eye(4)
    if n == 3:
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
    return axial_grid(name, shape, affine)
