"""Series found on disk by headers alone: which slices belong together, what is left out, and parts that are parts of the whole."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom.uid import EnhancedCTImageStorage, SecondaryCaptureImageStorage

from finegrain.errors import ScanError
from finegrain.sample import sample_folder
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import write_nifti
from finegrain.scan.read import read_scan
from finegrain.scan.series import SeriesSource, find_series
from finegrain.scan.volume import CTVolume

Write = Callable[..., list[Path]]
WATER = np.full((32, 32), 1024, np.uint16)


def same(ours: CTVolume, theirs: CTVolume) -> None:
    """Every fact of two volumes is equal, their sources aside."""
    np.testing.assert_array_equal(ours.hu, theirs.hu)
    np.testing.assert_array_equal(ours.padding, theirs.padding)
    np.testing.assert_array_equal(ours.positions_mm, theirs.positions_mm)
    assert (ours.pixel_mm, ours.slice_mm, ours.orientation) == (theirs.pixel_mm, theirs.slice_mm, theirs.orientation)
    assert ours.acquisition == theirs.acquisition
    assert (ours.tube_current_ma is None) == (theirs.tube_current_ma is None)
    if ours.tube_current_ma is not None and theirs.tube_current_ma is not None:
        np.testing.assert_array_equal(ours.tube_current_ma, theirs.tube_current_ma)


@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(None, None, 3), slice(-1, None)])
def test_a_part_is_the_part_of_the_whole_after_a_trip_through_pickle(sample: CTVolume, part: slice) -> None:
    (series,), left_out = find_series(sample_folder())
    assert left_out == []
    volume = pickle.loads(pickle.dumps(series)).read(part)
    same(volume, sample.part(part))
    assert isinstance(volume.source, SeriesSource) == (part == slice(None))


def test_a_part_decodes_only_its_own_files(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path, n=4)
    (series,), _ = find_series(tmp_path)
    for path in (series.files[0], series.files[3]):
        path.unlink()
    assert series.read(slice(1, 3)).positions_mm[:, 2].tolist() == [3.0, 4.5]
    with pytest.raises(ScanError, match="No such file"):
        series.read()


def test_slices_that_do_not_exist_are_refused(sample: CTVolume) -> None:
    (series,), _ = find_series(sample_folder())
    for part in (slice(8, 9), slice(None, None, -1)):
        with pytest.raises(ScanError, match="expected slices of 0 to 8"):
            series.read(part)


def test_a_tree_is_split_by_series_kernel_and_matrix_not_by_folder(tmp_path: Path, write_series: Write) -> None:
    files = write_series(tmp_path / "a", n=4)
    files[0].rename(tmp_path / "elsewhere")
    write_series(tmp_path / "b", n=2, ConvolutionKernel="D45f")
    write_series(tmp_path / "c", n=2, SeriesInstanceUID="1.2.3.4.6", XRayTubeCurrent=None)
    write_series(tmp_path / "d", stored=np.zeros((2, 16, 16), np.uint16))
    series, left_out = find_series(tmp_path)
    assert left_out == []
    assert sorted((len(one), one.acquisition["ConvolutionKernel"], one.shape, one.series_uid) for one in series) == [
        (2, "B30f", (16, 16), "1.2.3.4.5"),
        (2, "B30f", (32, 32), "1.2.3.4.6"),
        (2, "D45f", (32, 32), "1.2.3.4.5"),
        (4, "B30f", (32, 32), "1.2.3.4.5"),
    ]
    whole = next(one for one in series if len(one) == 4)
    assert whole.positions_mm[:, 2].tolist() == [1.5, 3.0, 4.5, 6.0]
    assert whole.tube_current_ma is not None
    assert whole.tube_current_ma.tolist() == [110.0, 120.0, 130.0, 140.0]
    assert [one.tube_current_ma for one in series if one.series_uid == "1.2.3.4.6"] == [None]


def test_one_bad_series_stops_no_good_one_and_its_reason_is_told(
    tmp_path: Path, write_series: Write, write_identity, planted: tuple[str, ...], capsys: pytest.CaptureFixture, caplog
) -> None:
    def bad(name: str, **changes: object) -> None:
        write_series(
            tmp_path / f"PLANTEDNAME_{name}", n=2, **({"SeriesInstanceUID": f"1.2.9.{len(name)}.{ord(name[0])}"} | changes)
        )

    write_series(tmp_path / "good", PatientID="PLANTED-ID-4711")
    write_identity(tmp_path / "good", tmp_path / "PLANTEDNAME_own")
    bad("no-slope", RescaleSlope=None)
    bad("frames", SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=2)
    bad("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    bad("capture", SOPClassUID=SecondaryCaptureImageStorage)
    bad("ids-a", PatientID="PLANTED-ID-1")
    write_series(tmp_path / "b", n=1, PatientID="PLANTED-ID-2", SeriesInstanceUID="1.2.9.5.105")[0].rename(
        tmp_path / "PLANTEDNAME_ids-a" / "b"
    )
    bad("no-series", SeriesInstanceUID="")
    bad("double-a")
    write_series(tmp_path / "c", stored=WATER[None], SeriesInstanceUID="1.2.9.8.100")[0].rename(
        tmp_path / "PLANTEDNAME_double-a" / "c"
    )
    (tmp_path / "PLANTEDNAME.txt").write_text("no image")
    (tmp_path / "PLANTEDNAME.nii").write_text("no image")
    whole = (tmp_path / "good" / "001.dcm").read_bytes()
    (tmp_path / "PLANTEDNAME_cut.dcm").write_bytes(whole[:400])

    series, left_out = find_series(tmp_path)

    assert [one.patient_id for one in series] == ["PLANTED-ID-4711"]
    reasons = (
        "already denoised",
        "RescaleSlope",
        "multi-frame",
        "2 × localizer",
        "2 × Secondary Capture",
        "expected one patient, found 2",
        "no valid SeriesInstanceUID",
        "conflicting duplicates",
        "1 × no DICOM",
        "cannot be read as NIfTI",
        "modality unknown",
    )
    for reason in reasons:
        assert [line for line in left_out if reason in line], reason
    shown = "\n".join([*left_out, repr(series), caplog.text, *capsys.readouterr()])
    assert not [secret for secret in (*planted, "PLANTED-ID", str(tmp_path)) if secret in shown]


def test_doubled_slices_count_once(tmp_path: Path, write_series: Write) -> None:
    files = write_series(tmp_path)
    shutil.copy(files[1], tmp_path / "copy.dcm")
    (series,), _ = find_series(tmp_path)
    assert (len(series), series.notes) == (3, ("1 doubled slices left out",))


@pytest.mark.parametrize("change", [{"stored": np.stack([WATER] * 3)}, {"PatientID": "PLANTED-ID-4712"}])
def test_scans_that_share_their_uids_are_told_apart_by_their_folders(tmp_path: Path, write_series: Write, change: dict) -> None:
    write_series(tmp_path / "full")
    write_series(tmp_path / "low", **change)
    series, left_out = find_series(tmp_path)
    assert left_out == []
    assert [(len(one), one.files[0].parent.name) for one in series] == [(3, "full"), (3, "low")]
    same(series[1].read(), read_series(tmp_path / "low"))


def test_pixels_are_judged_when_they_are_read(tmp_path: Path, write_series: Write) -> None:
    files = write_series(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    (series,), left_out = find_series(tmp_path)
    assert left_out == []
    assert len(series.read(slice(0, 1))) == 1
    with pytest.raises(ScanError, match="truncated or damaged"):
        series.read()


@pytest.mark.parametrize(
    "change", [{"RescaleIntercept": "-1000"}, {"SOPInstanceUID": "1.2.3.4.5.99"}, {"stored": np.zeros((1, 16, 16), np.uint16)}]
)
def test_a_file_that_changed_since_it_was_found_is_refused(tmp_path: Path, write_series: Write, change: dict) -> None:
    write_series(tmp_path, n=1)
    (series,), _ = find_series(tmp_path)
    write_series(tmp_path, **({"n": 1} | change))
    with pytest.raises(ScanError, match="changed since it was found"):
        series.read()


def test_the_fingerprint_changes_with_the_series_and_not_with_its_place(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (find_series(tmp_path / name)[0][0].fingerprint for name in "ab")
    assert first == second
    (tmp_path / "b" / "002.dcm").unlink()
    assert find_series(tmp_path / "b")[0][0].fingerprint != first


def test_lossy_series_are_found_and_read_only_when_allowed(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path, LossyImageCompression="01")
    (series,), _ = find_series(tmp_path)
    assert series.lossy
    with pytest.raises(ScanError, match="lossy compression"):
        series.read()
    assert len(series.read(allow_lossy=True)) == 3


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_files_of_one_volume_are_series_that_read_as_read_scan_reads_them(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    volume = CTVolume.from_array(values, pixel_mm=0.7, slice_mm=2.0)
    path = write_nifti(volume, tmp_path / "scan.nii.gz")
    if not suffix.startswith(".nii"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "x" / f"SECRET{suffix}").replace("/x/", "/"))
        path.unlink()
    elif suffix == ".nii":
        nib.save(nib.load(path), tmp_path / "SECRET.nii")
        path.unlink()
    (series,), _ = find_series(tmp_path)
    whole = read_scan(series.files[0])
    assert (len(series), series.shape) == (6, (5, 4))
    np.testing.assert_array_equal(series.positions_mm, whole.positions_mm)
    same(series.read(), whole)
    same(series.read(slice(1, 3)), whole.part(slice(1, 3)))
    assert "SECRET" not in repr(series)
    series.files[0].write_bytes(b"")
    with pytest.raises(ScanError) as refused:
        series.read()
    assert "SECRET" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_a_whole_series_that_was_found_can_be_written_back(tmp_path: Path, write_series: Write, denoised: Derivation) -> None:
    write_series(tmp_path / "in")
    (series,), _ = find_series(tmp_path / "in")
    assert len(write_derived_series(series.read(), tmp_path / "out", derivation=denoised)) == 3


def test_an_empty_folder_holds_no_series_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert find_series(tmp_path) == ([], [])
    with pytest.raises(ScanError, match="found nothing"):
        find_series(tmp_path / "nowhere")


def test_a_slice_takes_less_than_600_bytes(tmp_path: Path, write_series: Write) -> None:
    sizes = []
    for n in (3, 33):
        write_series(tmp_path / str(n), n=n)
        (series,), _ = find_series(tmp_path / str(n))
        sizes.append(len(pickle.dumps(series)))
    assert (sizes[1] - sizes[0]) / 30 < 600


@pytest.mark.parametrize(("suffix", "library"), [(".nrrd", "nrrd"), (".mha", "SimpleITK")])
def test_a_missing_library_is_told_with_the_extra_that_holds_it(tmp_path: Path, suffix: str, library: str) -> None:
    (tmp_path / f"a{suffix}").write_text("ElementDataFile = LOCAL\n")
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from finegrain.scan.series import find_series\nfrom pathlib import Path\n"
        f"print(find_series(Path({str(tmp_path)!r}))[1][0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "pip install 'finegrain[collections]'" in ran.stdout
