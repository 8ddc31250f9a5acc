"""Pairs are split by patient, repeat bit for bit, and are never half-written."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finegrain.config import PairsConfig, PhantomSource, ScanSource
from finegrain.errors import ConfigError, DataError, GeometryError
from finegrain.hu import HURange
from finegrain.pairs.build import Unit, _sides, build_pairs, find_units, ready_pairs
from finegrain.pairs.dataset import PatchSampler, _body_share, mix_dose
from finegrain.pairs.manifest import MANIFEST, SCHEMA, Pair, check_split, read_manifest, split_patients, write_manifest
from finegrain.pairs.store import Made, locked, put_task
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import write_nifti
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM


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
    assert len(_sides(config, find_units(config, Path())[0])) == 6


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    config = PairsConfig(
        sources=(
            PhantomSource(region="thorax", patients=3, slices=1, first_seed=9),
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
    assert {pair.patient for pair in pairs} == {"virtual-0009", "virtual-0010", "virtual-0011", "sample"}
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
    before = (folder / MANIFEST).read_bytes()
    read_back = ready_pairs(config, folder, data_root=Path("/nowhere"))  # the sources are not even looked for
    assert [(pair.key, pair.split, pair.sha256) for pair in read_back] == [(pair.key, pair.split, pair.sha256) for pair in pairs]
    build_pairs(config, folder, data_root=folder)
    assert (folder / MANIFEST).read_bytes() == before
    with pytest.raises(DataError, match="another configuration"):
        build_pairs(config.model_copy(update={"seed": 1}), folder, data_root=folder)


def test_a_scan_whose_pixels_are_not_square_is_refused_at_once_with_their_size(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 2), dtype=np.int16), np.diag([0.7, 0.9, 3.0, 1.0])), tmp_path / "a.nii")
    config = PairsConfig(
        sources=(ScanSource(path="a.nii", patient="a", split="test"), PhantomSource(split="train", patients=8, slices=1)),
        size=192,
        pixel_mm=(1.9, 1.9),
    )
    with pytest.raises(GeometryError, match=r"got 0\.9 × 0\.7 mm"):
        build_pairs(config, tmp_path / "pairs", data_root=tmp_path, workers=1)
    assert len(list((tmp_path / "pairs" / "tasks").iterdir())) < 6, "the other tasks are not waited for"


def test_a_manifest_with_a_patient_on_two_sides_is_refused(built, tmp_path):
    _, _, pairs = built
    other = {"key": "other", "sha256": "x", "normal_sha256": "y", "split": "test" if pairs[0].split != "test" else "train"}
    wrong = [pairs[0], pairs[0].model_copy(update=other)]
    write_manifest(tmp_path, wrong)
    with pytest.raises(DataError, match="belongs to one"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="sha256"):
        check_split([pairs[0], wrong[1].model_copy(update={"patient": "another", "sha256": pairs[0].sha256})])
    with pytest.raises(DataError, match="normal_sha256"):
        check_split([pairs[0], wrong[1].model_copy(update={"patient": "another", "normal_sha256": pairs[0].normal_sha256})])
    check_split([pairs[0], wrong[1].model_copy(update={"verdict": "reject"})])


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
            assert ours.equal(theirs)
        assert first.batch_at(step).inputs.shape == first.batch_at(step).targets.shape == (6, 1, 32, 32)
        for whole, part in zip(first.batch_at(step), first.batch_at(step, slice(1, None, 3)), strict=True):
            assert part.equal(whole[1::3]), "part of a batch is cut as it is cut with the rest"
    assert not first.batch_at(0)[0].equal(first.batch_at(1)[0])
    targets = np.concatenate([first.batch_at(step)[1].numpy() for step in range(20)])
    assert (HURange().to_hu(targets) > -500).mean() > 0.4
    with pytest.raises(DataError, match="smaller than a patch"):
        PatchSampler(pairs, folder, seed=3, **{**settings, "patch": 512})


def test_manifest_rows_say_how_each_pair_was_made(built):
    _, folder, _ = built
    with (folder / MANIFEST).open() as file:
        row = next(csv.DictReader(file))
    assert {"patient", "split", "kernel", "dose_fraction", "photons", "pixel_mm", "seed", "sha256", "qc_shift_x_px"} <= set(row)
    schema = json.loads((folder / SCHEMA).read_text())
    assert set(schema["properties"]) == set(row)
    assert all("description" in one for name, one in schema["properties"].items() if not name.startswith("qc_"))


def test_a_split_that_was_asked_for_is_kept_and_a_contradiction_refused():
    scan = {"kind": "scan", "path": "x", "patient": "A"}
    others = [{"kind": "phantom", "patients": 3}]

    def sides(*scans):
        config = PairsConfig(sources=[*scans, *others])
        units = [Unit(source, k, "A", "scan", source.split, None, (0,)) for k, source in enumerate(config.sources[: len(scans)])]
        return _sides(config, [*units, *find_units(PairsConfig(sources=others), Path())[0]])

    for order in ([scan, {**scan, "split": "test"}], [{**scan, "split": "test"}, scan]):
        assert sides(*order)["A"] == "test"
    with pytest.raises(DataError, match="choose one"):
        sides({**scan, "split": "train"}, {**scan, "split": "test"})


# --- a store that grows ---------------------------------------------------------------------------------------------------


def _phantoms(patients, **changes):
    source = PhantomSource(region="thorax", patients=patients, slices=1)
    return PairsConfig(
        sources=(source,), size=64, pixel_mm=(6.0, 6.0), test_fraction=0.3, validation_fraction=0.2, qc="report", **changes
    )


def _tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_store_grows_by_what_is_new_and_nobody_changes_sides(tmp_path):
    few = build_pairs(_phantoms(4), tmp_path, data_root=tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    more = build_pairs(_phantoms(7), tmp_path, data_root=tmp_path)
    assert (len(few), len(more)) == (4, 7)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert before.items() <= after.items()
    sides = {pair.patient: pair.split for pair in more}
    assert {pair.patient: pair.split for pair in few}.items() <= sides.items()
    assert sorted(sides.values()).count("test") == 2
    with pytest.raises(DataError, match="added, not changed or taken away"):
        build_pairs(_phantoms(4), tmp_path, data_root=tmp_path)


def test_a_build_that_was_cut_off_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build_pairs(_phantoms(3), whole, data_root=tmp_path)
    build_pairs(_phantoms(3), broken, data_root=tmp_path)
    (broken / MANIFEST).unlink()
    tasks = sorted((broken / "tasks").iterdir())
    tasks[0].unlink()  # its shard is there, but nothing says that it is whole
    (broken / "shards" / f"{tasks[1].stem}.npy").rename(broken / "shards" / f".{tasks[1].stem}.npy.tmp")
    tasks[1].unlink()
    build_pairs(_phantoms(3), broken, data_root=tmp_path)
    assert _tree(broken) == _tree(whole)


def test_two_builders_do_not_share_a_store(tmp_path):
    with locked(tmp_path), pytest.raises(DataError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_images_of_different_sizes_find_their_places(tmp_path):
    images = [np.full((2, size, size), size, dtype=np.int16) for size in (8, 9, 8)]
    pairs = [Pair(key=f"k{k}", patient="p", pixel_mm=1.0) for k in range(3)]
    made = put_task(tmp_path, "p-0", images, Made(pairs))
    for pair, stored in zip(made.pairs, images, strict=True):
        np.testing.assert_array_equal(pair.images(tmp_path), stored)


def test_a_manifest_that_was_edited_badly_is_said_to_be_damaged(built, tmp_path):
    write_manifest(tmp_path, built[2])
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace("train", "trian"))
    with pytest.raises(DataError, match=r"damaged or of another version \(split"):
        read_manifest(tmp_path)


def test_rows_survive_the_way_to_disk_and_back(built, tmp_path):
    write_manifest(tmp_path, read_manifest(built[1]))
    assert (tmp_path / MANIFEST).read_bytes() == (built[1] / MANIFEST).read_bytes()


# --- patches --------------------------------------------------------------------------------------------------------------


def _store(folder, doses, *, sigma=10.0):
    """Pairs of flat bodies, one patient each, with inserted white noise."""
    generator = np.random.default_rng(0)
    pairs = []
    for k, dose in enumerate(doses):
        normal = generator.normal(0, sigma, (64, 64))
        low = normal + generator.normal(0, sigma * np.sqrt(1 / dose - 1), normal.shape)
        images = np.round(np.stack([low, normal])).astype(np.int16)
        pair = Pair(key=f"k{k}", patient=f"p{k}", pixel_mm=0.7, dose_fraction=dose, noise="inserted", rows=64, columns=64)
        pairs += put_task(folder, f"p{k}-0", [images], Made([pair])).pairs
    return pairs


def test_each_batch_holds_every_dose_in_its_share(tmp_path):
    pairs = _store(tmp_path, [0.1] * 12 + [0.25] * 3 + [0.5])
    sampler = PatchSampler(pairs, tmp_path, patch=16, batch=12, hu_range=HURange(), seed=0)
    counts = np.array([[sum(p.dose_fraction == d for p in sampler.pairs_at(step)) for d in (0.1, 0.25, 0.5)] for step in range(40)])
    assert (counts.sum(axis=1) == 12).all()
    assert np.ptp(counts, axis=0).max() <= 1, "systematic sampling is exact to one patch"
    assert counts.mean(axis=0).max() - counts.mean(axis=0).min() < 6


def test_workers_change_no_batch(tmp_path):
    sampler = PatchSampler(_store(tmp_path, [0.25] * 4), tmp_path, patch=16, batch=4, hu_range=HURange(), seed=0)
    steps = range(3, 9)
    loaded = torch.utils.data.DataLoader(sampler, sampler=steps, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for step, batch in zip(steps, loaded, strict=True):
        assert all(ours.equal(theirs) for ours, theirs in zip(batch, sampler.batch_at(step), strict=True))


def test_a_network_is_told_the_dose_and_the_kernel_of_half_the_patches(tmp_path):
    pairs = [
        pair.model_copy(update={"kernel": kernel}) for pair, kernel in zip(_store(tmp_path, [0.25] * 2), ("B30f", "?"), strict=True)
    ]
    sampler = PatchSampler(pairs, tmp_path, patch=16, batch=8, hu_range=HURange(), seed=0)
    told = torch.cat([sampler.batch_at(step).acquisition for step in range(40)]).numpy()
    kernels = np.array([pair.kernel for step in range(40) for pair in sampler.pairs_at(step)])
    assert 0.4 < told[:, 0].mean() < 0.6
    assert 0.4 < told[kernels == "B30f", 2].mean() < 0.6
    assert not told[kernels == "?", 2:].any(), "a kernel that is not known is not told"
    assert set(told[:, 1]) == {0, -2}
    np.testing.assert_allclose(told[told[:, 2] == 1, 3], 2 * 0.7 * 0.375, atol=0.005)  # half of B30f passes at 0.375 cycles/mm


def test_a_mixed_dose_has_the_noise_of_that_dose(tmp_path):
    low, normal = _store(tmp_path, [0.1], sigma=100.0)[0].images(tmp_path).astype(np.float32)
    for dose in (0.1, 0.25, 0.5):
        mixed = mix_dose(np.stack([low, normal]), 0.1, dose)
        assert np.std(mixed[0]) == pytest.approx(100 / np.sqrt(dose), rel=0.04)
        np.testing.assert_array_equal(mixed[1], normal)
    np.testing.assert_allclose(mix_dose(np.stack([low, normal]), 0.1, 0.1)[0], low, rtol=1e-5)


def test_doses_are_mixed_between_that_of_the_pair_and_the_highest_asked_for(tmp_path):
    pairs = _store(tmp_path, [0.1], sigma=100.0)
    told = {"patch": 64, "batch": 8, "hu_range": HURange(), "seed": 1}
    plain, mixed = PatchSampler(pairs, tmp_path, **told), PatchSampler(pairs, tmp_path, doses=(0.05, 0.6), **told)

    def noise(sampler):
        inputs, targets, _ = sampler.batch_at(0)
        return (inputs - targets).std(dim=(1, 2, 3)).numpy()

    share = noise(mixed) / noise(plain).mean()
    assert (share <= 1.001).all() and (share > 0.95 * np.sqrt((1 / 0.6 - 1) / 9)).all() and np.ptp(share) > 0.2
    with pytest.raises(ConfigError, match="rising pair"):
        PatchSampler(pairs, tmp_path, doses=(0.5, 0.2), **told)


def test_more_shards_than_are_mapped_give_the_same_patches(tmp_path, monkeypatch):
    pairs = _store(tmp_path, [0.25] * 6)
    told = {"patch": 16, "batch": 6, "hu_range": HURange(), "seed": 2}
    expected = PatchSampler(pairs, tmp_path, **told).batch_at(0)[0]
    monkeypatch.setattr("finegrain.pairs.dataset.MAPPED_SHARDS", 2)
    sampler = PatchSampler(pairs, tmp_path, **told)
    assert sampler.batch_at(0)[0].equal(expected)
    assert len(sampler._mapped) == 2


def test_a_picture_under_two_patients_stays_with_the_one_who_came_first(tmp_path, sample_nifti):
    """Else a source that is added in front would take from training what was trained on, and put it into the test."""
    old = ScanSource(path=sample_nifti.name, patient="old", split="train")
    new = ScanSource(path=sample_nifti.name, patient="new", split="test", repeats=2)
    settings = {"pixel_mm": (0.0, 0.0), "kernels": ("B40f",), "qc": "report"}
    build_pairs(PairsConfig(sources=(old,), **settings), tmp_path / "store", data_root=sample_nifti.parent, workers=1)
    grown = PairsConfig(sources=(new, old), **settings)
    usable = build_pairs(grown, tmp_path / "store", data_root=sample_nifti.parent, workers=1)
    assert {(pair.patient, pair.split, pair.source) for pair in usable} == {("old", "train", 1)}
    assert {pair.reasons for pair in read_manifest(tmp_path / "store") if pair.patient == "new"} == {"duplicate"}


@pytest.fixture(scope="module")
def sample_nifti(tmp_path_factory):
    """One slice of the scan that ships."""
    path = tmp_path_factory.mktemp("scans") / "one.nii.gz"
    write_nifti(read_series(sample_folder()).part(slice(3, 4)), path)
    return path


def test_lung_is_body_and_the_air_around_is_not():
    generator = np.random.default_rng(0)
    lung, air = (generator.normal(mean, 60, (64, 64)).astype(np.int16) for mean in (-860, -1000))
    assert _body_share(lung) > 0.95
    assert _body_share(np.maximum(air, -1024)) < 0.25


def test_a_virtual_patient_wider_than_the_others_gets_a_larger_image(tmp_path):
    wide = PhantomSource(region="thorax", first_seed=10406, patients=1, slices=4, slice_mm=24, split="train")
    config = PairsConfig(sources=(wide,), size=64, pixel_mm=(5.7, 5.7), test_fraction=0, validation_fraction=0, qc="report")
    pairs = build_pairs(config, tmp_path / "store", data_root=tmp_path, workers=1)
    assert pairs[0].columns * pairs[0].pixel_mm > MIN_FIELD_MM["thorax"] + 10
