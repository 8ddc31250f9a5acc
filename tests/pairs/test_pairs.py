"""Pairs are split by patient, repeat bit for bit, and are never half-written."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finegrain.config import PairsConfig, PhantomSource, ScanSource
from finegrain.errors import DataError, GeometryError
from finegrain.hu import HURange
from finegrain.pairs.build import _sides, build_pairs
from finegrain.pairs.dataset import PatchSampler
from finegrain.pairs.manifest import MANIFEST, check_split, read_manifest, split_patients, write_manifest
from finegrain.sample import sample_folder


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(0, 1000))
def test_no_patient_is_in_two_splits_and_none_is_lost(n, seed):
    patients = [f"p{k}" for k in range(n)]
    sides = split_patients(patients, test_fraction=0.3, validation_fraction=0.1, generator=np.random.default_rng(seed))
    assert sorted(sides) == sorted(patients)
    assert set(sides.values()) == {"train", "validation", "test"}


def test_too_few_patients_are_refused():
    with pytest.raises(DataError, match="add patients"):
        split_patients(["a", "b"], test_fraction=0.4, validation_fraction=0.4, generator=np.random.default_rng(0))


def test_a_virtual_person_seen_in_two_regions_stands_on_one_side():
    config = PairsConfig(
        sources=(PhantomSource(region="thorax", patients=6), PhantomSource(region="abdomen", patients=6)), test_fraction=0.5
    )
    assert len(_sides(config)) == 6


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    config = PairsConfig(
        sources=(
            PhantomSource(region="thorax", patients=3, slices=1, first_seed=7),
            ScanSource(path=str(sample_folder()), patient="sample", every=4, own_kernel="B40f", split="test"),
        ),
        size=192,
        pixel_mm=(1.9, 1.9),
        test_fraction=0.34,
        validation_fraction=0.33,
    )
    return config, folder, build_pairs(config, folder, data_root=folder, workers=2)


def test_a_build_holds_every_slice_with_its_truth_where_there_is_one(built):
    _, folder, pairs = built
    assert [pair.patient for pair in pairs if pair.patient == "sample"] == ["sample", "sample"]
    assert {pair.patient for pair in pairs} == {"virtual-0007", "virtual-0008", "virtual-0009", "sample"}
    for pair in pairs:
        images = pair.images(folder)
        assert len(images) == (3 if pair.has_truth else 2)
        body = np.asarray(images[1]) > -200
        noise = images[0].astype(float) - images[1]
        assert 5 < noise[body].std() < 200


def test_a_build_of_the_same_configuration_gives_the_same_bytes(built, tmp_path):
    config, _, pairs = built
    again = build_pairs(config, tmp_path, data_root=tmp_path, workers=1)
    assert [pair.sha256 for pair in again] == [pair.sha256 for pair in pairs]


def test_a_finished_build_is_read_back_and_another_configuration_refused(built):
    config, folder, pairs = built
    assert build_pairs(config, folder, data_root=folder) == pairs
    with pytest.raises(DataError, match="another configuration"):
        build_pairs(config.model_copy(update={"seed": 1}), folder, data_root=folder)


def test_a_scan_whose_pixels_are_not_square_is_refused_at_once_with_their_size(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 2), dtype=np.int16), np.diag([0.7, 0.9, 3.0, 1.0])), tmp_path / "a.nii")
    config = PairsConfig(
        sources=(ScanSource(path="a.nii", patient="a", split="test"), PhantomSource(split="train", patients=8, slices=1)),
        size=192,
        pixel_mm=(1.9, 1.9),
    )
    with pytest.raises(GeometryError, match=r"got 0\.9 × 0\.7 mm in a\.nii"):
        build_pairs(config, tmp_path / "pairs", data_root=tmp_path, workers=1)
    assert len(list((tmp_path / "pairs").glob(".*.rows"))) < 4, "the other tasks are not waited for"


def test_a_manifest_with_a_patient_on_two_sides_is_refused(built, tmp_path):
    _, _, pairs = built
    wrong = [pairs[0], replace(pairs[0], key="other", sha256="x", split="test" if pairs[0].split != "test" else "train")]
    write_manifest(tmp_path, wrong)
    with pytest.raises(DataError, match="belongs to one"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="sha256"):
        check_split([pairs[0], replace(wrong[1], patient="another", sha256=pairs[0].sha256)])


def test_missing_manifest_and_missing_pixels_are_said(built, tmp_path):
    with pytest.raises(DataError, match="build the pairs first"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="build the pairs again"):
        built[2][0].images(tmp_path)


def test_patches_are_the_same_for_one_seed_and_step_and_lie_in_the_body(built):
    _, folder, pairs = built
    settings = {"patch": 32, "batch": 6, "hu_range": HURange()}
    first, second = (PatchSampler(pairs, folder, seed=3, **settings) for _ in range(2))
    for step in (0, 5):
        for ours, theirs in zip(first.batch_at(step), second.batch_at(step), strict=True):
            assert ours.shape == (6, 1, 32, 32)
            assert ours.equal(theirs)
    assert not first.batch_at(0)[0].equal(first.batch_at(1)[0])
    targets = np.concatenate([first.batch_at(step)[1].numpy() for step in range(20)])
    assert (HURange().to_hu(targets) > -500).mean() > 0.4
    with pytest.raises(DataError, match="smaller than a patch"):
        PatchSampler(pairs, folder, seed=3, **{**settings, "patch": 512})


def test_manifest_rows_say_how_each_pair_was_made(built):
    _, folder, _ = built
    row = json.loads((folder / MANIFEST).read_text().splitlines()[0])
    assert {"patient", "split", "kernel", "dose_fraction", "photons", "pixel_mm", "seed", "sha256"} <= set(row)


def test_a_split_that_was_asked_for_is_kept_and_a_contradiction_refused():
    scan = {"kind": "scan", "path": "x", "patient": "A"}
    others = [{"kind": "phantom", "patients": 3}]
    for order in ([scan, {**scan, "split": "test"}], [{**scan, "split": "test"}, scan]):
        assert _sides(PairsConfig(sources=[*order, *others]))["A"] == "test"
    with pytest.raises(DataError, match="choose one"):
        _sides(PairsConfig(sources=[{**scan, "split": "train"}, {**scan, "split": "test"}, *others]))
