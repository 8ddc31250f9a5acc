"""Files that other programs made: read with the HU that an independent program sees, or refused with a reason."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless

from finegrain.errors import ScanError
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.pixels import DECODERS
from finegrain.scan.series import find_series

Make = Callable[..., Dataset]
Save = Callable[[Dataset, Path], Path]


def _bundled() -> list[Path]:
    """Every file that pydicom and pydicom-data bring along; nothing is downloaded."""
    folders = [Path(DATA_ROOT) / "test_files"]
    more = importlib.util.find_spec("data_store")
    if more is not None and more.origin is not None:
        folders.append(Path(more.origin).parent / "data")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_every_file_that_pydicom_brings_is_read_as_gdcm_reads_it_or_refused_with_a_reason() -> None:
    n_read, wrong = 0, []
    for path in _bundled():
        try:
            volume = read_series(path, allow_lossy=True)
        except ScanError as refused:
            if "\n" in str(refused) or len(str(refused)) < 20 or path.stem in str(refused):
                wrong.append((path.name, str(refused)))
            continue
        n_read += 1
        # GDCM decodes only what finegrain leaves to another decoder, so the two are independent.
        assert "gdcm" not in DECODERS.get(pydicom.dcmread(path, specific_tags=[]).file_meta.TransferSyntaxUID, ("",))[0]
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        if not np.array_equal(volume.hu, theirs):
            wrong.append((path.name, "HU differ"))
    assert wrong == []
    assert n_read >= 10


def test_a_tree_of_every_file_that_pydicom_brings_is_searched_without_stopping(tmp_path: Path) -> None:
    for path in _bundled():
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    series, left_out = find_series(tmp_path)
    assert sum(len(one) for one in series) >= 10
    assert not [line for line in left_out if "\n" in line or str(tmp_path) in line]


# --- one image in every encoding that DCMTK and pydicom can write


def _tool(*arguments: str | Path) -> None:
    if shutil.which(str(arguments[0])) is None:
        pytest.skip("DCMTK is not installed")
    subprocess.run([str(argument) for argument in arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def sample_stored() -> NDArray[np.uint16]:
    """Unsigned 12-bit stored values of a real slice."""
    return np.asarray(pydicom.dcmread(sample_folder() / "060.dcm").pixel_array)[200:296, 200:328]


BIT_EXACT = [
    "dcmcjpeg +e1",
    "dcmcjpeg +el +sv 1",
    "dcmcjpeg +el +sv 4",
    "dcmcjpeg +el +sv 7",
    "dcmcjpeg +e1 +fs 1",
    "dcmcjpeg +e1 -ot",
    "dcmcjpls +el",
    "dcmcjpls +el +fs 1",
    "dcmcrle",
    "dcmconv +ti",
    "dcmconv +te +e",
    "dcmconv +te -e",
    "dcmconv +te +g",
    "dcmconv +te +p 512 8",
]
REFUSED = {
    "dcmconv +tb": "big-endian",
    "dcmconv +td": "deflated",
    "dcmconv -F": "found none",
    "dcmcjpeg +eb": "BitsAllocated 8",
    "dcmcjpeg +ee +be": "BitsAllocated 8",
    "dcmcjpls +en +md 2": "lossy compression",
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("command", BIT_EXACT)
def test_every_lossless_encoding_is_read_bit_for_bit(
    tmp_path: Path, make_slice: Make, save_slice: Save, sample_stored: NDArray[np.uint16], command: str, signed: bool
) -> None:
    stored = (sample_stored.astype(np.int16) - 1024) if signed else sample_stored
    changes = {"BitsStored": 16, "RescaleIntercept": "0"} if signed else {}
    plain = save_slice(make_slice(1, stored, **changes), tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    _tool(*command.split(), plain, tmp_path / "packed" / "a")
    np.testing.assert_array_equal(read_series(tmp_path / "packed").hu[0], sample_stored.astype(np.float32) - 1024)


@pytest.mark.parametrize("command", REFUSED)
def test_other_encodings_are_refused_with_a_reason(
    tmp_path: Path, make_slice: Make, save_slice: Save, sample_stored: NDArray[np.uint16], command: str
) -> None:
    plain = save_slice(make_slice(1, sample_stored), tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    _tool(*command.split(), plain, tmp_path / "packed" / "a")
    with pytest.raises(ScanError, match=REFUSED[command]):
        read_series(tmp_path / "packed")


def test_near_lossless_jpeg_ls_decodes_as_dcmtk_decodes_it(
    tmp_path: Path, make_slice: Make, save_slice: Save, sample_stored: NDArray[np.uint16]
) -> None:
    plain = save_slice(make_slice(1, sample_stored), tmp_path / "plain")
    _tool("dcmcjpls", "+en", "+md", "2", plain, tmp_path / "near")
    _tool("dcmdjpls", tmp_path / "near", tmp_path / "back")
    back = pydicom.dcmread(tmp_path / "back").PixelData
    hu = read_series(tmp_path / "near", allow_lossy=True).hu[0]
    np.testing.assert_array_equal(hu, np.frombuffer(back, np.uint16).reshape(hu.shape).astype(np.float32) - 1024)
    assert 0 < np.abs(hu + 1024 - sample_stored).max() <= 2


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_2000_is_read_bit_for_bit(
    tmp_path: Path, make_slice: Make, save_slice: Save, sample_stored: NDArray[np.uint16], signed: bool
) -> None:
    stored = (sample_stored.astype(np.int16) - 1024) if signed else sample_stored
    one = make_slice(1, stored, **({"BitsStored": 16, "RescaleIntercept": "0"} if signed else {}))
    one.compress(JPEG2000Lossless, generate_instance_uid=False)
    save_slice(one, tmp_path / "a")
    np.testing.assert_array_equal(read_series(tmp_path).hu[0], sample_stored.astype(np.float32) - 1024)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a")))[0]
    np.testing.assert_array_equal(theirs, sample_stored.astype(np.float32) - 1024)


@pytest.mark.parametrize("command", ["dcmcjpeg +e1", "dcmcjpls +el", "dcmcrle"])
def test_a_false_transfer_syntax_is_refused_and_never_gives_other_hu(
    tmp_path: Path, make_slice: Make, save_slice: Save, sample_stored: NDArray[np.uint16], command: str
) -> None:
    plain = save_slice(make_slice(1, sample_stored), tmp_path / "plain")
    _tool(*command.split(), plain, tmp_path / "packed")
    for syntax in (*DECODERS, pydicom.uid.ExplicitVRLittleEndian, HTJ2KLossless):
        dataset = pydicom.dcmread(tmp_path / "packed")
        if syntax == dataset.file_meta.TransferSyntaxUID:
            continue
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].is_undefined_length = syntax != pydicom.uid.ExplicitVRLittleEndian
        (tmp_path / "false").write_bytes(b"")
        with (tmp_path / "false").open("wb") as file:
            pydicom.dcmwrite(file, dataset, enforce_file_format=False, implicit_vr=False, little_endian=True)
        try:
            hu = read_series(tmp_path / "false", allow_lossy=True).hu[0]
        except ScanError:
            continue
        np.testing.assert_array_equal(hu, sample_stored.astype(np.float32) - 1024, err_msg=syntax.name)
