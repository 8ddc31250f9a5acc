"""The paper's experiment at its very smallest: really trained, really measured, and honest about how small it is."""

import json

import numpy as np
import pytest

from finegrain.config import NetworkConfig, PairsConfig, PhantomSource, StudyConfig, TrainConfig
from finegrain.evaluate.stats import PairedComparison
from finegrain.study import _claim, run_study, slug


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = StudyConfig(
        title="A very small study",
        pairs=PairsConfig(
            sources=(PhantomSource(region="thorax", patients=5, slices=1),),
            size=192,
            pixel_mm=(1.9, 1.9),
            test_fraction=0.4,
            validation_fraction=0.2,
        ),
        network=NetworkConfig(channels=(8, 16, 16), blocks=(1, 1, 1), heads=(2, 2)),
        train=TrainConfig(steps=6, batch=2, patch=32, warmup=2, validate_every=3, threads=1),
    )
    seen = []
    outcome = run_study(config, folder, data_root=folder, workers=2, progress=lambda *step: seen.append(step))
    return config, folder, outcome, json.loads(outcome.results.read_text()), seen


def test_every_arm_was_trained_and_measured_on_the_same_patients(study):
    config, _, _, results, _ = study
    names = [arm.name for arm in config.arms]
    assert [arm["name"] for arm in results["arms"]] == names
    test = set(results["splits"]["test"]["patients"])
    assert not test & set(results["splits"]["train"]["patients"])
    for name in ["low dose", *names]:
        assert set(results["per_patient"][name]["psnr_db[abdomen-40/400]"]) == test
        assert results["measures"][name]["psnr_db[abdomen-40/400]"]["n_patients"] == len(test)
    counts = [arm["parameters"] for arm in results["arms"]]
    assert 0 < max(counts) <= 1.02 * min(counts)


def test_the_free_competitors_are_measured_beside_the_networks(study):
    _, _, _, results, _ = study
    assert {"blend 0.1", "blend 0.2", "blend 0.3", "blend 0.5"} <= set(results["measures"])


def test_two_patients_are_never_enough_for_a_claim(study):
    _, _, _, results, _ = study
    assert results["claims"]
    assert {claim["verdict"] for claim in results["claims"]} == {"cannot be said"}


def test_report_and_figures_are_there_and_say_how_small_it_was(study):
    _, folder, outcome, results, _ = study
    page = outcome.report.read_text(encoding="utf-8")
    assert "2 training slices of 2 patients" in page
    assert results["scale_note"].startswith("This study is small")
    for name in ("figure-1-measures.png", "figure-2-crops.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (folder / "provenance.json").is_file()


def test_a_second_run_trains_nothing_and_finds_the_same(study):
    config, folder, _, results, _ = study
    seen = []
    again = run_study(config, folder, data_root=folder, workers=1, progress=lambda *step: seen.append(step))
    assert not any(step[0].startswith(("training", "simulating")) for step in seen)
    repeated = json.loads(again.results.read_text())
    assert repeated["per_patient"] == results["per_patient"]
    assert repeated["comparisons"] == results["comparisons"]


def _comparison(differences):
    from finegrain.evaluate.stats import compare_paired

    return compare_paired(np.array(differences), np.zeros(len(differences)))


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.9, "reproduced"), (0.3, "not reproduced"), (-0.5, "opposite"), (0.0, "not reproduced")]
)
def test_a_claim_is_settled_by_size_sign_and_significance(shift, verdict):
    spread = np.array([-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.001])
    comparison: PairedComparison = _comparison(shift + spread)
    assert _claim("PSNR is 0.7 to 1.1 dB higher", comparison, least=0.7, unit=" dB")["verdict"] == verdict


def test_slugs_are_file_names():
    assert slug("hybrid, dual-domain loss") == "hybrid-dual-domain-loss"
