"""NIfTI in and out: the same HU at the same place of the patient, by SimpleITK's judgement; nothing is guessed."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from finegrain.errors import ScanError
from finegrain.scan import nifti
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import read_nifti, write_nifti
from finegrain.scan.read import read_scan
from finegrain.scan.volume import CTVolume

SIZE = (6, 5, 4)
ORDERS = ["".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)]
MM = {"R": 0.7, "L": 0.7, "A": 0.8, "P": 0.8, "S": 2.5, "I": 2.5}


def values(shape=SIZE, seed=0):
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def affine_of(order):
    """RAS affine of an array whose axes point along `order`, e.g. "LPS"."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(order):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[world, axis] = MM[code] * (1 if code in "RAS" else -1)
    affine[:3, 3] = (-31.0, 17.0, -402.5)
    return affine


def save(path, array, affine, *, qform=1, sform=1, units="mm", **header):
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    image.header.set_xyzt_units(units)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patch(path, **fields):
    """Change header fields in the file itself, past nibabel's own repairs."""
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(raw)
    return path


def points(volume, indices):
    """LPS positions of pixels (z, y, x) of a volume, as DICOM defines them (PS3.3 C.7.6.2.1.1)."""
    row, column = np.array(volume.orientation[:3]), np.array(volume.orientation[3:])
    return np.array(
        [volume.positions_mm[z] + x * volume.pixel_mm[1] * row + y * volume.pixel_mm[0] * column for z, y, x in indices]
    )


def same_values_at_the_same_places(volume, image):
    """Every pixel of a volume is found by SimpleITK at its physical position, with its value."""
    indices = list(np.ndindex(volume.hu.shape))
    assert len(indices) == image.GetNumberOfPixels()
    for index, place in zip(indices, points(volume, indices), strict=True):
        found = image.TransformPhysicalPointToIndex(place.tolist())
        assert image.TransformIndexToPhysicalPoint(found) == pytest.approx(place.tolist(), abs=1e-3)
        assert image[found] == pytest.approx(volume.hu[index])


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_axes_is_read_as_simpleitk_reads_it_and_becomes_axial(tmp_path, order):
    path = save(tmp_path / "scan.nii.gz", values(), affine_of(order))
    volume = read_nifti(path)
    assert volume.orientation == pytest.approx((1, 0, 0, 0, 1, 0))
    assert (np.diff(volume.positions_mm[:, 2]) > 0).all()
    assert (volume.slice_mm, *volume.pixel_mm) == pytest.approx((2.5, 0.8, 0.7), abs=1e-5)
    same_values_at_the_same_places(volume, sitk.ReadImage(str(path)))


@pytest.mark.parametrize("order", ["LPS", "RAS", "LAS", "PIR", "SAL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_writing_gives_the_files_own_array_back(tmp_path, order, suffix):
    path = save(tmp_path / f"in{suffix}", values(), affine_of(order), qform=1, sform=2)
    volume = read_nifti(path)
    out = nib.load(write_nifti(volume.with_hu(volume.hu + 1), tmp_path / "new" / f"out{suffix}"))
    assert out.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(out.dataobj), values() + 1)
    assert out.affine == pytest.approx(affine_of(order), abs=1e-5)
    assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (1, 2)


def test_hu_that_are_no_whole_numbers_are_written_as_float32(tmp_path):
    volume = CTVolume.from_array(values().transpose(2, 1, 0) + 0.25, pixel_mm=0.7, slice_mm=3.0)
    out = nib.load(write_nifti(volume, tmp_path / "out.nii"))
    assert out.get_data_dtype() == np.float32
    assert np.array_equal(read_nifti(tmp_path / "out.nii").hu, volume.hu)


def test_whole_numbers_beyond_int16_are_written_as_float32(tmp_path):
    volume = CTVolume.from_array(values().transpose(2, 1, 0) + 40000.0, pixel_mm=0.7, slice_mm=3.0)
    assert nib.load(write_nifti(volume, tmp_path / "out.nii")).get_data_dtype() == np.float32


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]])
def test_dicom_written_as_nifti_lies_where_simpleitk_reads_the_dicom(tmp_path, write_series, orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    stored = np.random.default_rng(1).integers(0, 4000, (4, 32, 32)).astype(np.uint16)
    for n, one in enumerate(stored):
        place = (np.array([-10.5, -20.25, 7.0]) + 1.5 * n * normal).tolist()
        write_series(
            tmp_path / "dicom" / str(n),
            stored=one[None],
            SOPInstanceUID=f"1.2.3.4.5.{n}",
            ImagePositionPatient=place,
            ImageOrientationPatient=orientation,
            PixelSpacing=[0.7, 0.7],
        )
    volume = read_series(tmp_path / "dicom")
    written = sitk.ReadImage(str(write_nifti(volume, tmp_path / "scan.nii.gz")))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in volume.source.files])
    theirs = reader.Execute()
    assert written.GetSize() == theirs.GetSize()
    assert written.GetSpacing() == pytest.approx(theirs.GetSpacing(), abs=1e-5)
    assert written.GetOrigin() == pytest.approx(theirs.GetOrigin(), abs=1e-4)
    assert written.GetDirection() == pytest.approx(theirs.GetDirection(), abs=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(theirs))
    same_values_at_the_same_places(read_nifti(tmp_path / "scan.nii.gz"), theirs)


def test_scale_and_intercept_are_applied(tmp_path):
    path = save(tmp_path / "scan.nii", np.full(SIZE, 1064, np.int16), affine_of("LPS"))
    patch(path, scl_slope=0.5, scl_inter=-500)
    assert np.unique(read_nifti(path).hu) == pytest.approx([32.0])


def test_a_small_tilt_keeps_its_exact_directions(tmp_path):
    turn = np.radians(0.3)
    affine = affine_of("LPS")
    affine[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ affine[:3, :3]
    path = save(tmp_path / "scan.nii", values(), affine)
    volume = read_nifti(path)
    assert volume.orientation[1] == pytest.approx(np.sin(turn), abs=1e-5)
    same_values_at_the_same_places(volume, sitk.ReadImage(str(path)))


def test_a_single_axial_slice_is_a_volume_of_one_and_comes_back_so(tmp_path):
    path = save(tmp_path / "slice.nii", values((6, 5)), affine_of("LAS"))
    volume = read_nifti(path)
    assert volume.hu.shape == (1, 5, 6)
    assert np.array_equal(volume.hu[0], values((6, 5)).T[::-1])
    assert nib.load(write_nifti(volume, tmp_path / "out.nii")).shape == (6, 5)


def test_a_fourth_axis_of_one_is_no_obstacle(tmp_path):
    path = save(tmp_path / "scan.nii", values((*SIZE, 1)), affine_of("RAS"))
    volume = read_nifti(path)
    assert volume.hu.shape == SIZE[::-1]
    assert np.array_equal(np.asarray(nib.load(write_nifti(volume, tmp_path / "out.nii")).dataobj), values((*SIZE, 1)))


def rotated(degrees):
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = affine_of("LPS")
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def tilted(degrees):
    affine = affine_of("LPS")
    affine[1, 2] = affine[2, 2] * np.tan(np.radians(degrees))
    return affine


def test_what_cannot_be_read_without_guessing_is_refused_in_one_line(tmp_path):
    def case(name, array=None, affine=None, *, fields=None, **more):
        path = save(
            tmp_path / f"{name}.nii", values() if array is None else array, affine_of("LPS") if affine is None else affine, **more
        )
        return patch(path, **fields) if fields else path

    holes = values().astype(np.float32)
    holes[0, 0, :3] = np.nan
    shear = case("shear", affine=tilted(12.0), qform=0)
    cases = {
        "4d": (case("4d", values((*SIZE, 2))), r"6 × 5 × 4 × 2, expected one volume"),
        "nan": (case("nan", holes), r"3 of 120 voxels that are NaN"),
        "micron": (case("micron", units="micron"), r"in micron .*expected mm"),
        "metre": (case("metre", units="meter"), r"in metre .*expected mm"),
        "nowhere": (case("nowhere", qform=0, sform=0), r"neither a qform nor an sform"),
        "sizeless": (
            case("sizeless", fields={"pixdim": [1, 0.7, 0, 2.5, 0, 0, 0, 0]}),
            r"0\.7 × 0 × 2\.5 mm, expected all above 0",
        ),
        "torn": (
            case("torn", fields={"pixdim": [1, 0.7, 0.8, 5.0, 0, 0, 0, 0]}),
            r"0\.7 × 0\.8 × 5 mm by pixdim, 0\.7 × 0\.8 × 2\.5",
        ),
        "moved": (case("moved", fields={"qoffset_x": 0.0}), r"qform and sform place a corner 31\.0 mm apart"),
        "oblique": (case("oblique", affine=rotated(7.0)), r"turned by 7\.0°"),
        "gantry": (shear, r"sheared: its axes are 78\.0° apart"),
        "colour": (case("colour", np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), r"expected one number per voxel"),
        "coronal": (case("coronal", values((6, 5)), affine_of("LSP")), r"single slice that is not axial"),
    }
    for name, (path, message) in cases.items():
        with pytest.raises(ScanError, match=message) as caught:
            read_nifti(path)
        assert "\n" not in str(caught.value), name


def test_files_that_are_no_nifti_or_cut_off_are_refused(tmp_path):
    with pytest.raises(ScanError, match="found nothing"):
        read_nifti(tmp_path / "none.nii")
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(ScanError, match="cannot be read as NIfTI"):
        read_nifti(tmp_path / "text.nii")
    whole = save(tmp_path / "scan.nii", values((40, 40, 20)), affine_of("LPS"))
    (tmp_path / "cut.nii").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ScanError, match="damaged or cut off"):
        read_nifti(tmp_path / "cut.nii")
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(whole.read_bytes())[:20000])
    with pytest.raises(ScanError, match="damaged or cut off"):
        read_nifti(tmp_path / "cut.nii.gz")
    (tmp_path / "short.nii.gz").write_bytes(gzip.compress(whole.read_bytes())[:100])
    with pytest.raises(ScanError, match=r"cannot be read as NIfTI|damaged"):
        read_nifti(tmp_path / "short.nii.gz")


def test_what_nifti_cannot_hold_is_not_written(tmp_path):
    volume = CTVolume.from_array(values().transpose(2, 1, 0), pixel_mm=0.7, slice_mm=3.0)
    with pytest.raises(ScanError, match=r"ends in \.nii or \.nii\.gz, got out\.hdr"):
        write_nifti(volume, tmp_path / "out.hdr")
    gap = volume.positions_mm.copy()
    gap[2:, 2] += 3.0
    with pytest.raises(ScanError, match=r"from 3\.00 to 6\.00 mm"):
        write_nifti(moved(volume, gap), tmp_path / "out.nii")
    tilt = volume.positions_mm.copy()
    tilt[:, 1] = np.tan(np.radians(15)) * tilt[:, 2]
    with pytest.raises(ScanError, match=r"gantry tilt of 15\.0°"):
        write_nifti(moved(volume, tilt), tmp_path / "out.nii")
    bad = volume.hu.copy()
    bad[0, 0, 0] = np.inf
    with pytest.raises(ScanError, match="1 of 120 HU"):
        write_nifti(volume.with_hu(bad), tmp_path / "out.nii")
    assert not list(tmp_path.iterdir())


def moved(volume, positions):
    return CTVolume(volume.hu, volume.pixel_mm, volume.slice_mm, positions, volume.orientation, volume.padding)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    volume = CTVolume.from_array(values().transpose(2, 1, 0), pixel_mm=0.7, slice_mm=3.0)
    write_nifti(volume, tmp_path / "out.nii.gz")
    before = (tmp_path / "out.nii.gz").read_bytes()

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(ScanError, match="No space left"):
        write_nifti(volume.with_hu(volume.hu + 5), tmp_path / "out.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii.gz"]
    assert (tmp_path / "out.nii.gz").read_bytes() == before


def test_a_part_of_a_nifti_scan_is_written_with_its_own_geometry(tmp_path):
    volume = read_nifti(save(tmp_path / "scan.nii", values(), affine_of("RAS")))
    part = CTVolume(
        volume.hu[1:3], volume.pixel_mm, volume.slice_mm, volume.positions_mm[1:3], volume.orientation, volume.padding[1:3],
        source=volume.source,
    )  # fmt: skip
    same_values_at_the_same_places(part, sitk.ReadImage(str(write_nifti(part, tmp_path / "part.nii"))))


@pytest.mark.parametrize("name", ["scan.nii", "scan.NII.GZ", "scan.nrrd"])
def test_read_scan_knows_a_file_by_its_name(tmp_path, name):
    volume = CTVolume.from_array(values().transpose(2, 1, 0), pixel_mm=0.7, slice_mm=3.0)
    if name.endswith(".nrrd"):
        image = sitk.GetImageFromArray(volume.hu)
        image.SetSpacing((0.7, 0.7, 3.0))
        sitk.WriteImage(image, str(tmp_path / name))
    else:
        write_nifti(volume, tmp_path / name)
    assert np.array_equal(read_scan(tmp_path / name).hu, volume.hu)


def test_read_scan_reads_a_dicom_folder(tmp_path, write_series):
    write_series(tmp_path / "series")
    assert len(read_scan(tmp_path / "series")) == 3
    with pytest.raises(ScanError, match="found nothing"):
        read_scan(tmp_path / "nothing.nii")


def test_the_file_names_nobody(tmp_path, write_series, planted):
    write_series(tmp_path / "series")
    path = write_nifti(read_series(tmp_path / "series"), tmp_path / "scan.nii")
    raw = path.read_bytes()
    assert not any(name.encode() in raw for name in planted)
    assert nifti.is_nifti(path)
