"""The region of a slice: known anatomy, what must not matter, and the order of the body."""

import time
from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.pairs.region import REGIONS, SliceFeatures, classify, region_of_tag, slice_features
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.phantom import VirtualPatient

SEED = 1001  # not among those that the model was fitted to
PLACES = {"head": ("head", 10.0), "thorax": ("thorax", 0.0), "abdomen": ("abdomen", -40.0), "pelvis": ("pelvis", 0.0)}


@pytest.fixture(scope="module")
def patient() -> dict[str, NDArray[np.float32]]:
    """One slice of a virtual patient in four regions, on 1.5 mm."""
    return {
        region: VirtualPatient(SEED, part).slices(1, size=340, pixel_mm=1.5, center_z_mm=z).hu[0]  # type: ignore[arg-type]
        for region, (part, z) in PLACES.items()
    }


def ellipse(n: int, pixel_mm: float, *, u: float = 0, v: float = 0, a: float, b: float) -> NDArray[np.bool_]:
    y, x = (np.mgrid[:n, :n] + 0.5 - n / 2) * pixel_mm
    return ((x - u) / a) ** 2 + ((y - v) / b) ** 2 < 1


def plain_chest(n: int = 512, pixel_mm: float = 0.8) -> NDArray[np.float64]:
    """A body of 320 × 200 mm with two lungs of 90 × 130 mm and a vertebra of 40 × 30 mm."""
    hu = np.where(ellipse(n, pixel_mm, a=160, b=100), 40.0, -1000.0)
    for side in (-1, 1):
        hu[ellipse(n, pixel_mm, u=70 * side, a=45, b=65)] = -850
    hu[ellipse(n, pixel_mm, v=60, a=20, b=15)] = 600
    return hu


def alone(hu: NDArray, pixel_mm: float) -> str:
    return classify([slice_features(hu, pixel_mm=pixel_mm)], np.zeros(1))[0].region


def test_areas_of_a_plain_chest_are_measured() -> None:
    found = slice_features(plain_chest(), pixel_mm=0.8)
    assert found.radius_mm == pytest.approx(np.sqrt(160 * 100), rel=0.02)
    assert found.aspect == pytest.approx(1.6, rel=0.03)
    assert found.lung == pytest.approx(2 * 45 * 65 / (160 * 100), rel=0.06)
    assert found.lung_less == pytest.approx(found.lung / 2, rel=0.03)
    assert found.spine_cm2 == pytest.approx(np.pi * 2 * 1.5, rel=0.1)
    assert found.spine_off_middle == pytest.approx(0.6, abs=0.05)
    assert (found.hip_cm2, found.big_cm2, found.cut) == (0, 0, 0)


def test_gas_of_the_gut_is_no_lung() -> None:
    hu = np.where(ellipse(512, 0.8, a=160, b=100), 40.0, -1000.0)
    hu[ellipse(512, 0.8, u=30, v=-50, a=40, b=25)] = -1000
    found = slice_features(hu, pixel_mm=0.8)
    assert found.lung < 0.005
    assert found.gas == pytest.approx(40 * 25 / (160 * 100), rel=0.1)


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_the_matrix_does_not_matter(size: int) -> None:
    found = slice_features(plain_chest(size, 410 / size), pixel_mm=410 / size)
    assert astuple(found)[:4] == pytest.approx(astuple(slice_features(plain_chest(), pixel_mm=0.8))[:4], rel=0.08)


@pytest.mark.parametrize("filler", [-2000, -2048, -1024, 0])
def test_what_the_scanner_fills_the_corners_with_does_not_matter(filler: int) -> None:
    chest = plain_chest()
    filled = np.where(ellipse(512, 0.8, a=204, b=204), chest, filler)
    assert astuple(slice_features(filled, pixel_mm=0.8)) == pytest.approx(astuple(slice_features(chest, pixel_mm=0.8)), rel=0.02)


def test_a_table_is_no_body() -> None:
    chest = plain_chest()
    y, x = (np.mgrid[:512, :512] + 0.5 - 256) * 0.8
    table = np.abs(np.hypot(x, y + 200) - 302.5) < 3  # a sheet of 6 mm that touches the back, and foam
    inside = np.hypot(x, y + 200) > 305.5
    on_table = np.where(table, 100, np.where(inside & (np.hypot(x, y + 200) < 330), -925, chest))
    found = slice_features(on_table, pixel_mm=0.8)
    assert astuple(found)[:4] == pytest.approx(astuple(slice_features(chest, pixel_mm=0.8))[:4], rel=0.04)  # two cells


def test_a_lung_that_the_field_of_view_cuts_is_lung() -> None:
    cut = plain_chest()[130:380, 130:380]
    body = ellipse(512, 0.8, a=160, b=100)[130:380, 130:380]
    found = slice_features(cut, pixel_mm=0.8)
    assert found.lung == pytest.approx(np.count_nonzero(cut == -850) / np.count_nonzero(body), rel=0.06)
    assert found.cut > 0.5


def test_each_region_of_a_patient_is_told_from_one_slice(patient: dict[str, NDArray]) -> None:
    assert {region: alone(hu, 1.5) for region, hu in patient.items()} == {region: region for region in PLACES}


def test_noise_and_the_patients_position_do_not_matter(patient: dict[str, NDArray]) -> None:
    rng = np.random.default_rng(0)
    for region, hu in patient.items():
        noisy = np.clip(hu + 120 * rng.standard_normal(hu.shape), -1024, 3071)
        assert [alone(image, 1.5) for image in (noisy, hu[:, ::-1], hu[::-1], np.rot90(hu, 2))] == [region] * 4


def test_the_shipped_slices_cross_from_abdomen_to_thorax_once() -> None:
    chest = read_series(sample_folder())  # 21 mm, from mostly liver to mostly lung and heart; its series took part in the fit
    features = [slice_features(hu, pixel_mm=chest.pixel_mm[0]) for hu in chest.hu]
    told = [classify([one], np.zeros(1))[0].region for one in features]
    borders = [i for i in range(1, len(told)) if told[i] != told[i - 1]]
    assert (told[0], told[-1], len(borders)) == ("abdomen", "thorax", 1)
    # As one scan, so short a slab is one region or the two in the order of the body.
    together = [one.region for one in classify(features, chest.positions_mm[:, 2])]
    assert together == sorted(together)
    assert set(together) <= {"abdomen", "thorax"}


@pytest.fixture(scope="module")
def scan(patient: dict[str, NDArray]) -> tuple[list[SliceFeatures], NDArray, list[str]]:
    """Head to pelvis, 15 slices of each 10 mm apart, from the top down."""
    features = [slice_features(hu, pixel_mm=1.5) for hu in patient.values()]
    regions = [region for region in PLACES for _ in range(15)]
    return [f for f in features for _ in range(15)], -10.0 * np.arange(60), regions


def test_slices_may_come_in_any_order_and_keep_it(scan: tuple) -> None:
    features, z, regions = scan
    order = np.random.default_rng(3).permutation(60)
    told = classify([features[i] for i in order], z[order])
    assert [one.region for one in told] == [regions[i] for i in order]


def test_neighbours_overrule_one_odd_slice(scan: tuple, patient: dict[str, NDArray]) -> None:
    features, z, regions = scan
    odd = list(features)
    odd[35] = slice_features(patient["head"], pixel_mm=1.5)
    told = [one.region for one in classify(odd, z)]
    assert told == regions


def test_z_that_runs_the_wrong_way_is_found_out(scan: tuple) -> None:
    features, z, regions = scan
    assert [one.region for one in classify(features, -z)] == regions
    few = classify(features[::15], np.array([0.0, 300, 600, 900]))  # too few to pay for three steps against the order
    assert [one.region for one in few] == regions[::15]


def test_an_empty_slice_takes_the_region_of_its_neighbours(scan: tuple) -> None:
    features, z, _ = scan
    empty = slice_features(np.full((128, 128), -1000), pixel_mm=3.0)
    assert empty.radius_mm == 0
    told = classify([*features[:5], empty, *features[6:]], z)
    assert told[5].region == "head"
    assert classify([empty], np.zeros(1))[0].confidence == pytest.approx(1 / len(REGIONS))


def test_sparse_slices_are_told_too(scan: tuple) -> None:
    features, _, regions = scan
    told = classify(features[::15], np.array([0.0, -300, -600, -900]))
    assert [one.region for one in told] == regions[::15]


def test_a_tag_decides_where_the_image_is_silent_and_not_where_it_speaks(patient: dict[str, NDArray]) -> None:
    empty = slice_features(np.full((128, 128), -1000), pixel_mm=3.0)
    assert classify([empty], np.zeros(1), body_part="PELVIS")[0].region == "pelvis"
    chest = slice_features(patient["thorax"], pixel_mm=1.5)
    assert classify([chest], np.zeros(1), body_part="BRAIN")[0].region == "thorax"


def test_confidences_are_probabilities_and_fall_at_a_border(scan: tuple) -> None:
    features, z, _ = scan
    confidence = np.array([one.confidence for one in classify(features, z)])
    assert ((confidence > 0.2) & (confidence <= 1)).all()
    assert confidence[[22, 37, 52]].min() >= confidence.min()


@pytest.mark.parametrize(
    ("tag", "regions"),
    [
        ("CHESTABDPELVIS", {"thorax", "abdomen", "pelvis"}), ("HEADNECK", {"head", "neck"}), ("chest", {"thorax"}),
        ("HEART", {"thorax"}), ("EAR", {"head"}), ("OVARY", {"pelvis"}), ("", set()), ("EXTREMITY", set()),
        ("CERVICAL SPINE", {"neck"}), ("CT ABDOMEN W/O", {"abdomen"}),
    ],
)  # fmt: skip
def test_tags_name_regions(tag: str, regions: set[str]) -> None:
    assert region_of_tag(tag) == regions


def test_a_slice_of_512_pixels_takes_milliseconds() -> None:
    chest = plain_chest() + np.random.default_rng(0).normal(0, 60, (512, 512))
    took = []
    for _ in range(5):
        began = time.process_time()
        slice_features(chest, pixel_mm=0.8)
        took.append(time.process_time() - began)
    assert min(took) < 0.05  # about 0.012 s


def test_no_slices_have_no_regions() -> None:
    assert classify([], np.zeros(0)) == []


def test_what_is_no_slice_or_no_scan_is_refused_in_one_line(patient: dict[str, NDArray]) -> None:
    chest = slice_features(patient["thorax"], pixel_mm=1.5)
    refused = [
        lambda: slice_features(np.zeros((3, 64, 64)), pixel_mm=1.0),
        lambda: slice_features(np.zeros((64, 64)), pixel_mm=0.0),
        lambda: classify([chest], np.zeros(2)),
        lambda: classify([chest], np.array([np.nan])),
    ]
    for call in refused:
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)
