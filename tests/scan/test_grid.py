"""Files of one array: every voxel lies where SimpleITK, which wrote the file, says; what has no clear place is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from finegrain.errors import ScanError
from finegrain.scan.read import read_scan
from finegrain.scan.volume import CTVolume

SUFFIXES = [".nii.gz", ".nrrd", ".mha", ".mhd"]
ORDERS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""The 48 direction matrices whose axes run along the patient's."""


def image_of(direction: NDArray[np.float64], dtype: type = np.int16) -> SimpleITK.Image:
    values = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(dtype)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-31.0, 17.0, -402.5))
    image.SetDirection(np.asarray(direction, dtype=np.float64).ravel().tolist())
    return image


def turned(degrees: float, *, axis: int) -> NDArray[np.float64]:
    """A direction matrix turned about x, y or z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.roll(np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), axis, axis=0), axis, axis=1)
    return np.asarray(turn)


def lies_where_itk_says(volume: CTVolume, image: SimpleITK.Image) -> None:
    """Each pixel is found by SimpleITK at its physical position, with its value."""
    row, column = np.array(volume.orientation[:3]), np.array(volume.orientation[3:])
    assert volume.hu.size == image.GetNumberOfPixels()
    for z, y, x in np.ndindex(volume.hu.shape):
        place = volume.positions_mm[z] + x * volume.pixel_mm[1] * row + y * volume.pixel_mm[0] * column
        index = image.TransformPhysicalPointToIndex(place.tolist())
        assert image.TransformIndexToPhysicalPoint(index) == pytest.approx(place.tolist(), abs=1e-3)
        assert image[index] == volume.hu[z, y, x]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_order_and_direction_of_axes_becomes_axial_and_keeps_each_voxel_in_its_place(tmp_path: Path, suffix: str) -> None:
    for n, direction in enumerate(ORDERS):
        image = image_of(direction)
        SimpleITK.WriteImage(image, str(tmp_path / f"{n}{suffix}"))
        volume = read_scan(tmp_path / f"{n}{suffix}")
        assert volume.orientation == pytest.approx((1, 0, 0, 0, 1, 0))
        assert (np.diff(volume.positions_mm[:, 2]) > 0).all()
        lies_where_itk_says(volume, image)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_values_of_every_type_are_hu_as_they_are(tmp_path: Path, suffix: str, dtype: type) -> None:
    image = image_of(np.eye(3), dtype)
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(read_scan(tmp_path / f"a{suffix}").hu, SimpleITK.GetArrayFromImage(image))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_turned_by_more_than_half_a_degree_are_refused_in_every_format_alike(tmp_path: Path, suffix: str, axis: int) -> None:
    for degrees in (0.3, 7.0):
        image = image_of(turned(degrees, axis=axis))
        SimpleITK.WriteImage(image, str(tmp_path / f"{degrees}{suffix}"))
    lies_where_itk_says(read_scan(tmp_path / f"0.3{suffix}"), image_of(turned(0.3, axis=axis)))
    with pytest.raises(ScanError, match=r"is oblique: its axes are turned by 7\.0°"):
        read_scan(tmp_path / f"7.0{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_array_turned_about_two_axes_is_refused(tmp_path: Path, suffix: str) -> None:
    SimpleITK.WriteImage(image_of(turned(20.0, axis=0) @ turned(30.0, axis=2)), str(tmp_path / f"a{suffix}"))
    with pytest.raises(ScanError, match="is oblique"):
        read_scan(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_one_volume_of_numbers_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    holes = SimpleITK.GetArrayFromImage(image_of(np.eye(3), np.float32))
    holes[0, 0, :3] = np.nan
    colours = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    four = SimpleITK.JoinSeries([image_of(np.eye(3))] * 2)
    for name, image in (("holes", SimpleITK.GetImageFromArray(holes)), ("colours", colours), ("four", four)):
        SimpleITK.WriteImage(image, str(tmp_path / f"{name}{suffix}"))
        with pytest.raises(ScanError) as refused:
            read_scan(tmp_path / f"{name}{suffix}")
        assert "\n" not in str(refused.value)


HEADER = b"""ObjectType = Image
NDims = 3
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 6 5 4
ElementType = MET_SHORT
"""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no ElementDataFile"),
        (b"no image", "no ElementDataFile"),
        (HEADER, "no ElementDataFile"),
        (HEADER + b"ElementDataFile = LOCAL\n" + bytes(10), "damaged or cut off"),
        (HEADER + b"ElementDataFile = missing.raw\n", "is missing"),
        (HEADER + b"ElementDataFile = ../other.raw\n", "no single file beside it"),
        (HEADER + b"ElementDataFile = LIST\na.raw\n", "no single file beside it"),
        (HEADER + b"ElementToIntensityFunctionSlope = 2\nElementDataFile = LOCAL\n" + bytes(240), "ElementToIntensityFunction"),
        (
            HEADER.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 0") + b"ElementDataFile = LOCAL\n" + bytes(240),
            "above 0",
        ),
        (HEADER.replace(b"DimSize = 6 5 4", b"DimSize = 6 x 4") + b"ElementDataFile = LOCAL\n" + bytes(240), "damaged"),
        (HEADER.replace(b"6 5 4", b"99999 99999 99999") + b"ElementDataFile = LOCAL\n" + bytes(240), "damaged"),
    ],
)
def test_a_metaimage_that_is_none_is_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(ScanError, match=why) as refused:
        read_scan(tmp_path / "a.mha")
    assert "\n" not in str(refused.value)
