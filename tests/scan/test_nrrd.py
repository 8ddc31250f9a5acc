"""NRRD: where ITK says it lies, and one line for what is none."""

import numpy as np
import pytest
import SimpleITK

from finegrain.errors import ScanError
from finegrain.scan.nifti import write_nifti
from finegrain.scan.nrrd import read_nrrd

nrrd = pytest.importorskip("nrrd")


def _write(path, space="left-posterior-superior", steps=(0.7, 0.7, 3.0), origin=(-11.0, -22.0, 33.0), **changes):
    data = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    header = {"space": space, "space directions": np.diag(steps), "space origin": np.array(origin)} | changes
    nrrd.write(str(path), data, {key: value for key, value in header.items() if value is not None})
    return path


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
@pytest.mark.parametrize("steps", [(0.7, 0.7, 3.0), (-0.7, 0.7, 3.0), (0.7, -0.8, -3.0)])
def test_every_voxel_stays_where_itk_sees_it(tmp_path, space, steps):
    before = SimpleITK.ReadImage(str(_write(tmp_path / "a.nrrd", space, steps)))
    after = SimpleITK.ReadImage(str(write_nifti(read_nrrd(tmp_path / "a.nrrd"), tmp_path / "a.nii")))
    for index in [(0, 0, 0), (3, 0, 0), (1, 4, 2), (3, 4, 5)]:
        place = after.TransformPhysicalPointToIndex(before.TransformIndexToPhysicalPoint(index))
        assert after.GetPixel(*place) == before.GetPixel(*index)


def test_rows_and_columns_keep_their_own_spacing(tmp_path):
    volume = read_nrrd(_write(tmp_path / "a.nrrd", steps=(0.7, 0.9, 3.0)))
    assert volume.pixel_mm == (0.9, 0.7)
    assert volume.slice_mm == 3.0
    assert volume.positions_mm[:, 2].tolist() == [33.0, 36.0, 39.0, 42.0, 45.0, 48.0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": (0.7, 0.7, 0.0)}, "expected all above 0"),
        ({"space": "scanner-xyz"}, "expected left-posterior-superior"),
        ({"space": None, "space directions": None, "space origin": None}, "no volume"),
    ],
)
def test_what_has_no_place_in_the_patient_is_refused(tmp_path, changes, match):
    with pytest.raises(ScanError, match=match):
        read_nrrd(_write(tmp_path / "a.nrrd", **changes))


@pytest.mark.parametrize(
    "content", [b"", b"NRRD0004\ntype: float\n", b"hello\n", b"NRRD0004\ntype: foo\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n"]
)
def test_what_is_no_nrrd_is_one_line(tmp_path, content):
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    with pytest.raises(ScanError) as refused:
        read_nrrd(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_cut_off_file_is_one_line(tmp_path):
    path = _write(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScanError, match="cannot be read as NRRD"):
        read_nrrd(path)
