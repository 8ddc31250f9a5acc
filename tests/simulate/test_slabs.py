"""The chest slabs lie where they should, keep their areas, and say what every pixel is."""

import io
import json
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from finegrain.errors import DataError, GeometryError
from finegrain.simulate.phantom.section import LABELS
from finegrain.simulate.phantom.slabs import MATERIALS, chest_slab, read_maps

FOLDER = Path(str(files("finegrain.simulate.phantom"))) / "chest_slabs"
SEXES = ("female", "male")


@pytest.fixture(scope="module", params=SEXES)
def maps(request):
    return read_maps(FOLDER / f"adult-{request.param}.zip")[0]


@pytest.fixture(scope="module", params=SEXES)
def slab(request):
    return chest_slab(request.param)


def center(weight, axis_y, axis_x):
    return (weight.sum(axis=1) @ axis_y) / weight.sum(), (weight.sum(axis=0) @ axis_x) / weight.sum()


@pytest.mark.parametrize(("size", "pixel_mm"), [(512, 0.7), (501, 0.73), (512, 0.85)])
def test_area_and_centre_of_every_material_are_kept(maps, size, pixel_mm):
    axis = (np.arange(size) - size // 2) * pixel_mm
    for one in maps:
        covered = one.coverage(size, pixel_mm)
        assert covered.sum() * pixel_mm**2 == pytest.approx(one.filled.sum() * one.step_mm**2, rel=1e-3)
        y, x = (first + np.arange(n) * one.step_mm for n, first in zip(one.filled.shape, one.first_mm, strict=True))
        assert center(covered, axis, axis) == pytest.approx(center(one.filled, y, x), abs=0.05)


def test_the_materials_share_the_body_without_gap_or_overlap(maps):
    total = sum(one.coverage(1024, 0.4) for one in maps)
    assert total.max() <= 1 + 1e-9
    body = total > 1 - 1e-9
    assert np.array_equal(ndimage.binary_fill_holes(body), body)


def test_air_lies_outside_and_every_pixel_has_a_label(slab):
    hu, labels = slab.hu[0], slab.labels[0]
    assert slab.hu.shape == slab.labels.shape == (1, 512, 512)
    known = {LABELS[name] for name in ("air", "lung", "fat", "soft tissue", "bone", "vessel", "heart", "fluid")}
    assert set(np.unique(labels)) == known
    assert (hu[[0, 0, -1, -1], [0, -1, 0, -1]] == -1000).all()
    assert (labels[hu == -1000] == LABELS["air"]).all()
    assert hu.min() >= -1000 and hu.max() <= MATERIALS["ncat_dry_rib"].hu + 0.01


def test_a_pixel_inside_one_material_has_its_ct_number(slab):
    hu, labels = slab.hu[0], slab.labels[0]
    assert np.median(hu[labels == LABELS["lung"]]) == pytest.approx(MATERIALS["ncat_lung"].hu, abs=0.01)
    assert np.median(hu[labels == LABELS["fat"]]) == pytest.approx(MATERIALS["ncat_adipose"].hu, abs=0.01)


def test_the_body_lies_on_its_back_and_its_heart_on_the_left(slab):
    y, x = np.indices((512, 512)) - 256
    heart, canal = slab.labels[0] == LABELS["heart"], slab.labels[0] == LABELS["fluid"]
    assert y[canal].mean() * 0.7 > 50  # the spinal canal at the back, which is down
    assert y[heart].mean() < y[canal].mean()
    assert x[heart].mean() > x[canal].mean()  # the patient's left is on the right of the image


def test_ct_numbers_are_those_of_the_tissues_at_70_kev():
    expected = {"water": 0, "muscle": 43, "lung": -741, "adipose": -104, "blood": 56, "heart": 44, "cartilage": 103}
    for name, hu in expected.items():
        assert MATERIALS[f"ncat_{name}"].hu == pytest.approx(hu, abs=1)
    assert MATERIALS["ncat_dry_rib"].hu == pytest.approx(1558, abs=2)
    assert all(material.label in LABELS for material in MATERIALS.values())


@pytest.mark.parametrize("sex", SEXES)
def test_a_field_of_view_that_cuts_the_body_is_refused_and_the_one_advised_is_not(sex):
    with pytest.raises(GeometryError, match=r"cut the body.*take at least (\d+) pixels") as caught:
        chest_slab(sex, size=300, pixel_mm=0.7)
    advised = int(str(caught.value).split("at least ")[1].split()[0])
    chest_slab(sex, size=advised, pixel_mm=0.7)


def test_impossible_requests_are_refused():
    with pytest.raises(GeometryError, match="female"):
        chest_slab("child")
    with pytest.raises(GeometryError, match="positive size"):
        chest_slab("male", pixel_mm=0.0)


def changed_archive(path, change):
    """The female slab with its header changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(FOLDER / "adult-female.zip") as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json"):
                header = json.loads(content)
                change(header)
                content = json.dumps(header).encode()
            new.writestr(name, content)
    path.write_bytes(buffer.getvalue())
    return path


def test_an_unknown_material_is_refused(tmp_path):
    def change(header):
        header["mat_name"][3] = "ncat_kryptonite"

    with pytest.raises(DataError, match="ncat_kryptonite"):
        read_maps(changed_archive(tmp_path / "slab.zip", change))


def test_a_map_of_another_size_than_it_states_is_refused(tmp_path):
    def change(header):
        header["rows"][3] += 1

    with pytest.raises(DataError, match="expected one slice of 222 × 168"):
        read_maps(changed_archive(tmp_path / "slab.zip", change))


def test_the_archives_ship_with_their_licence():
    assert {path.name for path in FOLDER.iterdir()} >= {"adult-female.zip", "adult-male.zip", "LICENSE", "ATTRIBUTION.md"}
