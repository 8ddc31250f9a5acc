"""Multi-frame (Enhanced) CT: every frame at its own place with its own rescale, judged by planted values and by SimpleITK."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, RLELossless

from finegrain.errors import ScanError
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import write_nifti
from finegrain.scan.series import find_series

Make = Callable[..., Dataset]
ORDER = (2, 0, 3, 1)
"""The place along z of each frame in the file: not in order."""


def item(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def group(**macros: Dataset) -> Dataset:
    return item(**{name: [macro] for name, macro in macros.items()})


def write_enhanced(
    make_slice: Make, path: Path, *, per_frame_rescale: bool = False, change: Callable[[Dataset], None] = lambda _: None
) -> np.ndarray:
    """Write four frames out of order; give their HU in slice order."""
    stored = np.random.default_rng(0).integers(0, 4096, (4, 32, 32)).astype(np.uint16)
    dataset = make_slice(1, stored[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"):
        delattr(dataset, keyword)
    del dataset.RescaleIntercept, dataset.ConvolutionKernel, dataset.KVP, dataset.XRayTubeCurrent
    dataset.SOPClassUID, dataset.NumberOfFrames, dataset.PixelData = EnhancedCTImageStorage, 4, stored.tobytes()
    slopes = [1.0, 2.0, 0.5, 1.0] if per_frame_rescale else [1.0] * 4
    rescales = [item(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU") for slope in slopes]
    shared = group(
        PixelMeasuresSequence=item(PixelSpacing=[0.6, 0.7], SliceThickness=2),
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        CTReconstructionSequence=item(ConvolutionKernel="B30f"),
        CTXRayDetailsSequence=item(KVP=120.0),
        CTImageFrameTypeSequence=item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        PixelValueTransformationSequence=item(RescaleSlope=7, RescaleIntercept=7, RescaleType="HU")
        if per_frame_rescale
        else rescales[0],
    )
    frames = []
    for n, z in enumerate(ORDER):
        frame = group(
            PlanePositionSequence=item(ImagePositionPatient=[-10, -20, 1.5 * z]),
            CTExposureSequence=item(XRayTubeCurrentInmA=100.0 + z),
        )
        if per_frame_rescale:
            frame.PixelValueTransformationSequence = [rescales[n]]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    hu = stored * np.array(slopes)[:, None, None] - 1024
    return hu[np.argsort(ORDER)].astype(np.float32)


@pytest.mark.parametrize("per_frame_rescale", [False, True])
def test_frames_are_put_in_order_with_their_own_place_and_rescale(
    tmp_path: Path, make_slice: Make, per_frame_rescale: bool
) -> None:
    hu = write_enhanced(make_slice, tmp_path / "a", per_frame_rescale=per_frame_rescale)
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.positions_mm.tolist() == [[-10, -20, 1.5 * z] for z in range(4)]
    assert (volume.pixel_mm, volume.slice_mm, volume.thickness_mm) == ((0.6, 0.7), 1.5, 2.0)
    assert volume.tube_current_ma is not None
    assert volume.tube_current_ma.tolist() == [100, 101, 102, 103]
    assert (volume.acquisition["ConvolutionKernel"], volume.acquisition["KVP"]) == ("B30f", 120.0)
    (series,), _ = find_series(tmp_path)
    np.testing.assert_array_equal(series.read(slice(1, 3)).hu, hu[1:3])


def test_simpleitk_sees_the_same_frames(tmp_path: Path, make_slice: Make) -> None:
    write_enhanced(make_slice, tmp_path / "a")
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a")))  # in the order of the file
    np.testing.assert_array_equal(read_series(tmp_path).hu, theirs[np.argsort(ORDER)])


def test_compressed_frames_and_legacy_converted_files_are_read_alike(tmp_path: Path, make_slice: Make) -> None:
    hu = write_enhanced(make_slice, tmp_path / "plain" / "a")
    dataset = pydicom.dcmread(tmp_path / "plain" / "a")
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = LegacyConvertedEnhancedCTImageStorage
    dataset.save_as(tmp_path / "packed")
    np.testing.assert_array_equal(read_series(tmp_path / "packed").hu, hu)


def test_a_series_in_two_files_is_one_series(tmp_path: Path, make_slice: Make) -> None:
    def half(first: int) -> Callable[[Dataset], None]:
        def change(dataset: Dataset) -> None:
            frames, size = dataset.PerFrameFunctionalGroupsSequence, len(dataset.PixelData) // 4
            dataset.PerFrameFunctionalGroupsSequence = frames[first : first + 2]
            dataset.PixelData = dataset.PixelData[first * size : (first + 2) * size]
            dataset.NumberOfFrames, dataset.SOPInstanceUID = 2, f"1.2.3.{first + 1}"

        return change

    hu = write_enhanced(make_slice, tmp_path / "a", change=half(0))
    write_enhanced(make_slice, tmp_path / "b", change=half(2))
    np.testing.assert_array_equal(read_series(tmp_path).hu, hu)


def test_it_is_read_but_not_written_back_as_dicom(tmp_path: Path, make_slice: Make, denoised: Derivation) -> None:
    write_enhanced(make_slice, tmp_path / "in" / "a")
    volume = read_series(tmp_path / "in")
    with pytest.raises(ScanError, match=r"multi-frame .* not written back"):
        write_derived_series(volume, tmp_path / "out", derivation=denoised)
    assert volume.source.notes == volume.source.skipped == ()
    assert write_nifti(volume, tmp_path / "out.nii").exists()


def _no_rescale(dataset: Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence


def _no_position_of_one(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def _same_place(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[2] = copy.deepcopy(dataset.PerFrameFunctionalGroupsSequence[1])


def _two_orientations(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[0].PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])]


def _perfusion(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "US"
    dataset.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_no_rescale, "needs a finite RescaleSlope"),
        (_no_position_of_one, r"frame 3 of instance 1 .* ImagePositionPatient"),
        (_same_place, "frame 2 .* and frame 3 .* conflicting duplicates: one position"),
        (_two_orientations, "mixed in one series"),
        (_perfusion, "RescaleType US, expected HU"),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 3), "NumberOfFrames is not the number"),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 1_000_000_000), "NumberOfFrames is not the number"),
        (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:-10]), "truncated or damaged"),
        (lambda dataset: delattr(dataset, "PerFrameFunctionalGroupsSequence"), "NumberOfFrames is not the number"),
    ],
)
def test_what_would_be_a_guess_is_refused(
    tmp_path: Path, make_slice: Make, change: Callable[[Dataset], None], why: str, planted: tuple[str, ...]
) -> None:
    write_enhanced(make_slice, tmp_path / "a", change=change)
    with pytest.raises(ScanError, match=why) as refused:
        read_series(tmp_path)
    assert not [secret for secret in planted if secret in str(refused.value)]


def test_a_perfusion_map_of_the_standards_own_sample_is_no_hu() -> None:
    path = get_testdata_file("eCT_Supplemental.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    with pytest.raises(ScanError, match="RescaleType US, expected HU"):
        read_series(Path(path))
