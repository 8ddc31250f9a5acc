"""The frozen benchmark is what it was, and a build that differs is told apart from one that was rounded otherwise."""

import numpy as np
import pytest

from finegrain.bench.frozen import compare, freeze, read_frozen, signature_hu, write_frozen
from finegrain.bench.run import VERSIONS, bench_sets, frozen_pairs
from finegrain.config import PhantomSource
from finegrain.errors import ConfigError, DataError
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import read_manifest


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One virtual patient of the benchmark's test, built today, and the rows that were frozen for it."""
    name, config = "unseen-dose", bench_sets("v1", with_scans=False)["unseen-dose"]
    source = next(source for source in config.sources if isinstance(source, PhantomSource))
    store = tmp_path_factory.mktemp("bench") / name
    one = config.model_copy(update={"sources": (source.model_copy(update={"patients": 1}),)})
    build_pairs(one, store, data_root=store, workers=1)
    pairs = freeze(name, read_manifest(store), store)
    patient = pairs[0].patient
    return pairs, [pair for pair in frozen_pairs("v1") if (pair.set, pair.patient) == (name, patient)]


def test_a_patient_that_is_built_today_is_the_one_that_was_frozen(built):
    pairs, frozen = built
    found = compare(pairs, frozen)
    assert found.holds and found.identical + found.rounded == len(frozen) == 2


def test_the_frozen_list_is_what_the_issue_of_a_version_promises():
    pairs = frozen_pairs("v1")
    usable = [pair for pair in pairs if pair.verdict != "reject"]
    virtual = {(pair.patient, pair.split) for pair in usable if pair.collection == "phantom"}
    assert len(virtual) >= 40 and sum(split == "test" for _, split in virtual) >= 20
    assert {pair.dose_fraction for pair in usable} == {0.1, 0.25, 0.5}
    assert {"B30f", "D45f"} <= {pair.kernel for pair in usable if pair.set == "main"}
    sides = {}
    for pair in pairs:
        assert sides.setdefault(pair.patient, pair.split) == pair.split, "a patient stands on two sides"
    assert len({pair.sha256 for pair in pairs}) == len(pairs)
    assert {pair.set for pair in pairs} == set(bench_sets("v1"))


def test_other_noise_is_another_pair_and_other_rounding_is_not(built):
    pairs, frozen = built
    first, *rest = pairs
    rounded = first.model_copy(update={"sha256": "0" * 64, "low_hu": first.low_hu + 0.1})
    found = compare([rounded, *rest], frozen)
    assert found.holds and found.rounded >= 1
    for change in ({"low_hu": first.low_hu + 5}, {"truth_hu": None}, {"split": "train"}, {"dose_fraction": 0.5}):
        found = compare([first.model_copy(update=change), *rest], frozen)
        assert not found.holds and len(found.other) == 1, change
    assert len(compare(rest, frozen).missing) == 1


def test_a_signature_moves_by_the_rms_difference_and_hardly_by_rounding():
    generator = np.random.default_rng(0)
    image = generator.normal(0, 300, (512, 512)).round().astype(np.int16)
    moved = [signature_hu(image + generator.normal(0, 20, image.shape).round().astype(np.int16)) for _ in range(40)]
    assert np.std(moved) == pytest.approx(20, rel=0.4)
    flipped = image + (generator.random(image.shape) < 0.01)
    assert abs(signature_hu(flipped) - signature_hu(image)) < 0.5


def test_a_frozen_list_comes_back_as_it_was_written(tmp_path, built):
    pairs, _ = built
    write_frozen(tmp_path / "v9.csv", pairs)
    assert read_frozen(tmp_path / "v9.csv") == sorted(pairs, key=lambda pair: pair.place)
    (tmp_path / "v9.csv").write_text("set,patient\nmain,x\n")
    with pytest.raises(DataError, match=r"v9\.csv is no frozen list"):
        read_frozen(tmp_path / "v9.csv")


def test_a_version_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"v1.*got 'v0'"):
        bench_sets("v0")
    assert VERSIONS[0] == "v1"
