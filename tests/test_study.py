"""The paper's experiment at its very smallest: really trained, really measured, and honest about how small it is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from finegrain.config import (
    Arm,
    ClassicalArm,
    NetworkConfig,
    PairsConfig,
    PairsInput,
    PhantomSource,
    StudyConfig,
    TrainConfig,
    config_of,
)
from finegrain.equaliser import BandEqualiser, CalibrationSlice, calibrate_equaliser
from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import protocol_named
from finegrain.evaluate.regions import body_mask
from finegrain.evaluate.stats import PairedComparison, compare_paired, compare_with_each, holm
from finegrain.figures import find_crops
from finegrain.pairs.manifest import read_manifest
from finegrain.report.evaluation import CROP_SIDE
from finegrain.study import run_study
from finegrain.study.claims import judge, judge_claims
from finegrain.study.classical import tune
from finegrain.study.detecting import _gains, _over_seeds
from finegrain.study.kept import read_json
from finegrain.study.methods import all_methods, main_test
from finegrain.study.page import study_crops
from finegrain.study.results import scale_note
from finegrain.study.run import test_sets as sets_of_study  # pytest would take its own name for a test


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
        network=NetworkConfig(channels=(8, 24, 24), blocks=(1, 1, 1), heads=(2, 2)),
        train=TrainConfig(steps=6, batch=2, patch=32, warmup=2, validate_every=3, threads=1),
    )
    seen = []
    outcome = run_study(config, folder, data_root=folder, jobs=2, progress=lambda *step: seen.append(step))
    return config, folder, outcome, json.loads(outcome.results.read_text()), seen


def test_every_arm_was_trained_and_measured_on_the_same_patients(study):
    config, _, _, results, _ = study
    names = [arm.name for arm in config.arms]
    assert [method["name"] for method in results["methods"]] == names
    test = set(results["splits"]["test"]["patients"])
    assert not test & set(results["splits"]["train"]["patients"])
    for name in ["low dose", *names]:
        assert set(results["per_patient"][name]["psnr_db[abdomen-40/400]"]) == test
        assert results["measures"][name]["psnr_db[abdomen-40/400]"]["n_patients"] == len(test)
    counts = [method["parameters"] for method in results["methods"]]
    assert 0 < max(counts) <= 1.02 * min(counts)


def test_the_free_competitors_are_measured_beside_the_networks(study):
    config, _, _, results, _ = study
    free = ["blend 0.1", "blend 0.2", "blend 0.3", "blend 0.5", "equaliser 0.5", "equaliser 1", f"{config.proposed}, equalised"]
    free += ["equaliser 1, dose told", f"{config.proposed}, equalised, dose told"]
    assert set(free) <= set(results["measures"])
    keys = results["measures"]["hybrid, spatial loss"].keys()
    assert all(results["measures"][name].keys() == keys for name in free)


def test_the_band_equaliser_is_that_of_the_spatial_hybrid_on_the_validation_slices(study):
    _, folder, _, results, _ = study
    pair = next(pair for pair in read_manifest(folder / "pairs") if pair.split == "validation")
    low_dose, reference = pair.images(folder / "pairs")[:2].astype(np.float64)
    # Six steps change so little that the gains are almost those that the input would need.
    expected = calibrate_equaliser([CalibrationSlice(low_dose, low_dose, reference, body_mask(reference), pair.dose_fraction)])
    spatial = next(method for method in results["methods"] if method["name"] == "hybrid, spatial loss")
    found = BandEqualiser.from_tables(spatial["equaliser"])
    of_expected, of_found = (one.apply(low_dose, low_dose, strength=1.0) - low_dose for one in (expected, found))
    assert np.corrcoef(of_found.ravel(), of_expected.ravel())[0, 1] > 0.95
    assert np.std(of_expected) > 1
    names = ("hybrid, spatial loss", "equaliser 0.5", "equaliser 1")
    plain, half, full = (results["measures"][name]["hf_ratio[full]"]["mean"] for name in names)
    assert plain != half != full
    assert half == pytest.approx((plain + full) / 2, abs=0.1 * abs(full - plain))


def test_two_patients_are_never_enough_for_a_claim(study):
    _, _, _, results, _ = study
    assert results["claims"]
    assert {claim["verdict"] for claim in results["claims"]} == {"cannot be said"}


def test_report_and_figures_are_there_and_say_how_small_it_was(study):
    _, folder, outcome, results, _ = study
    page = outcome.report.read_text(encoding="utf-8")
    assert "2 training slices of 2 patients" in page
    assert results["scale_note"].startswith("This study is small: it shows that the experiment runs")
    for name in ("figure-1-measures.png", "figure-2-crops.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (folder / "provenance.json").is_file()


def test_the_crops_are_of_the_noisiest_slice_of_each_region_under_every_method_and_its_equaliser(study):
    config, folder, _, _, _ = study
    made, *_ = sets_of_study(config, folder, data_root=folder, jobs=1, progress=lambda *_: None)
    main = replace(made, pairs=made.pairs[::-1])
    methods = all_methods(config)
    facts = {method: read_json(method.folder(folder) / "method.json") for method in methods}
    crops = study_crops(config, methods, facts, main, folder)
    noise = {pair: float(np.std(np.diff(pair.images(main.folder)[:2].astype(np.float64), axis=0))) for pair in main_test(main)}
    noisiest = max(noise, key=lambda pair: noise[pair])
    assert noisiest != main_test(main)[0]  # or the first of each region would pass too
    expected = find_crops(noisiest.images(main.folder)[1].astype(np.float32), pixel_mm=noisiest.pixel_mm, side=CROP_SIDE)
    what = f"thorax, {noisiest.dose_fraction:.0%} dose, {noisiest.kernel}"
    assert [crop.name for crop in crops] == [f"{what}: {place.name}" for place in expected]
    for crop, place in zip(crops, expected, strict=True):
        assert np.array_equal(crop.images["low dose"], place.of(noisiest.images(main.folder)[0].astype(np.float32)))
        arms = [arm.name for arm in config.arms]
        assert {*arms, f"{config.proposed}, equalised", f"{config.proposed}, equalised, dose told"} <= crop.images.keys()


def test_a_second_run_trains_nothing_and_finds_the_same(study):
    config, folder, _, results, _ = study
    seen = []
    again = run_study(config, folder, data_root=folder, jobs=1, progress=lambda *step: seen.append(step))
    assert seen == []
    repeated = json.loads(again.results.read_text())
    assert repeated["per_patient"] == results["per_patient"]
    assert repeated["comparisons"] == results["comparisons"]
    assert repeated["methods"] == results["methods"]


def _run_again(config, folder):
    seen = []
    run_study(config, folder, data_root=folder, jobs=1, progress=lambda *step: seen.append(step))
    return {(what, done) for what, done, _ in seen}


def test_other_protocols_are_measured_anew_on_the_same_denoised_slices(study, tmp_path):
    config, folder, _, _, _ = study
    shutil.copytree(folder, tmp_path / "copy")
    fewer = config.model_copy(update={"protocols": config.protocols[:1]})
    assert _run_again(fewer, tmp_path / "copy") == {("measuring", 1), ("measuring", 2)}


def test_a_slice_that_is_missing_is_done_again_alone(study, tmp_path):
    config, folder, _, results, _ = study
    shutil.copytree(folder, tmp_path / "copy")
    key = next(pair.key for pair in read_manifest(folder / "pairs") if pair.split == "test")
    (tmp_path / "copy" / "methods" / "attention-only" / "seed-0" / "denoised" / f"{key}.npy").unlink()
    (tmp_path / "copy" / "measured" / f"{key}.json").unlink()
    assert len(_run_again(config, tmp_path / "copy")) == 2
    assert json.loads((tmp_path / "copy" / "results.json").read_text())["per_patient"] == results["per_patient"]


def test_a_method_that_is_added_is_measured_alone_without_the_images_of_the_others(study, tmp_path):
    config, folder, _, results, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("denoised", "lesions"))
    added = ClassicalArm(kind="classical", name="TV", method="tv", strengths=(1.0,))
    before = {path.name: path.read_text().splitlines()[:-1] for path in (copy / "measured").iterdir()}
    _run_again(config.model_copy(update={"arms": (*config.arms, added)}), copy)
    kept = {path.name: path.read_text().splitlines() for path in (copy / "measured").iterdir()}
    for name, lines in before.items():
        assert kept[name][: len(lines) - 1] == lines[:-1]  # the last of them has a comma now
        assert len(kept[name]) == len(lines) + 2
    made = json.loads((copy / "results.json").read_text())
    assert made["per_patient"].items() >= results["per_patient"].items()
    assert made["detectability"].items() >= results["detectability"].items()
    assert set(made["per_patient"]) - set(results["per_patient"]) == {"TV"}
    shown = {path.stem for path in (copy / "methods" / "tv" / "fixed" / "denoised").iterdir()}
    assert {path.stem for path in (copy / "methods" / "attention-only" / "seed-0" / "denoised").iterdir()} <= shown


def test_measures_do_not_outlive_the_weights_that_they_are_of(study, tmp_path):
    config, folder, _, _, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = (folder / "methods" / "attention-only" / "seed-0" / "checkpoint.pt").read_bytes() + b"0"
    (copy / "methods" / "attention-only" / "seed-0" / "checkpoint.pt").write_bytes(other)
    done = _run_again(config, copy)
    assert {what for what, _ in done} == {
        "denoising with attention only, seed 0",
        "lesions with attention only, seed 0",
        "measuring",
    }


def test_what_blends_are_made_of_decides_whether_they_are_kept(study, tmp_path):
    """Another network takes the place of the spatial one: the blends of the first must not pass for its own."""
    config, folder, _, results, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = Arm(name="hybrid, geometric", family="hybrid", loss={"average": "geometric"})
    changed = config.model_copy(update={"arms": (other, *config.arms), "contender": "hybrid, spatial loss"})
    _run_again(changed, copy)
    made = json.loads((copy / "results.json").read_text())
    assert made["per_patient"]["hybrid, spatial loss"] == results["per_patient"]["hybrid, spatial loss"]
    assert made["per_patient"]["blend 0.5"] != results["per_patient"]["blend 0.5"]
    assert "hybrid, spatial loss, equalised" in made["per_patient"]
    assert made["per_patient"]["hybrid, spatial loss, equalised"] == results["per_patient"]["equaliser 1"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train": {"steps": 7}}, "convolution-only/seed-0 holds the training of another configuration"),
        ({"network": {"blocks": (1, 1, 2)}}, "holds the training of another configuration"),
        ({"pairs": {"seed": 1}}, "pairs of another configuration"),
    ],
)
def test_another_configuration_is_refused_and_changes_nothing(study, changes, word):
    config, folder, _, _, _ = study
    other = config.model_copy(update={part: getattr(config, part).model_copy(update=values) for part, values in changes.items()})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".yaml", ".json", ".pt", ".jsonl")}
    with pytest.raises(DataError, match=word) as caught:
        _run_again(other, folder)
    assert "remove" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_changed_loss_of_the_last_arm_is_refused_before_anything_is_written(study):
    config, folder, _, _, _ = study
    last = config.arms[-1].model_copy(update={"loss": config.arms[-1].loss.model_copy(update={"weight": 0.5})})
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(DataError, match="hybrid-dual-domain-loss/seed-0 holds the training"):
        _run_again(config.model_copy(update={"arms": (*config.arms[:-1], last)}), folder)
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"protocols": ("abdomen",)}, "no protocol 'abdomen'"),
        ({"network": {"channels": (8, 8, 8), "heads": (2, 2)}}, "no parameters are left for the token MLP"),
        ({"pairs": {"sources": [{"kind": "phantom"}], "kernels": ("B31f",)}}, "unknown reconstruction kernel 'B31f'"),
        ({"pairs": {"sources": [{"kind": "scan", "path": "a", "patient": "a", "own_kernel": "FC14"}]}}, "kernel 'FC14'"),
        ({"arms": ({"name": "blend 0.1", "family": "hybrid"},), "proposed": "blend 0.1"}, "means another image"),
        ({"arms": ({"name": "low dose", "family": "hybrid"},), "proposed": "low dose"}, "means another image"),
        (
            {
                "arms": ({"name": "ours", "family": "hybrid"}, {"kind": "classical", "name": "Ours, seed 0", "method": "tv"}),
                "proposed": "ours",
            },
            "'Ours, seed 0' and 'ours, seed 0' would share a file",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_pair(changes, word, tmp_path):
    config = StudyConfig.model_validate({"pairs": {"sources": [{"kind": "phantom"}]}, **changes})
    with pytest.raises(ConfigError, match=word):
        run_study(config, tmp_path / "out", data_root=tmp_path, jobs=1, progress=lambda *step: None)
    assert not (tmp_path / "out").exists()


def _comparison(differences):
    return compare_paired(np.array(differences), np.zeros(len(differences)))


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.9, "reproduced"), (0.3, "not reproduced"), (-0.5, "opposite"), (0.0, "not reproduced")]
)
def test_a_claim_is_settled_by_size_sign_and_significance(shift, verdict):
    spread = np.array([-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.001])
    comparison: PairedComparison = _comparison(shift + spread)
    assert judge("PSNR is 0.7 to 1.1 dB higher", comparison, least=0.7, unit=" dB")["verdict"] == verdict


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("least", "verdict"), [(0.7, "cannot be said"), (2.0, "not reproduced"), (0.0, "not reproduced")])
def test_a_gain_that_may_yet_be_as_large_as_claimed_cannot_be_said(least, verdict, sign):
    comparison = _comparison(sign * np.array([-1.2, 1.9, -0.6, 1.4, 0.9, -0.8, 1.6, -0.3]))
    assert not comparison.is_significant() and comparison.can_reach()
    assert judge("a claim", comparison, least=least, unit="", sign=sign)["verdict"] == verdict


@pytest.mark.parametrize(
    ("shift", "ends", "verdict", "of_method"),
    [
        (1.0, (0.2, 2.0), "reproduced", True),
        (1.0, (-0.1, 2.0), "reproduced", False),
        (1.0, (None, None), "reproduced", False),
        (-1.0, (-2.0, -0.2), "opposite", True),
        (-1.0, (-2.0, 0.1), "opposite", False),
        (0.3, (0.1, 0.5), "not reproduced", True),
        (0.3, (-0.5, 0.9), "not reproduced", False),
        (0.3, (None, None), "not reproduced", False),
    ],
)
def test_a_verdict_that_other_seeds_may_turn_round_is_of_these_trainings(shift, ends, verdict, of_method):
    spread = np.array([-0.1, -0.05, 0.0, 0.05, 0.1, 0.15, -0.2, -0.15])
    for sign in (1, -1):
        low, high = ends if ends[0] is None else sorted(sign * end for end in ends)
        seeds = {"both_low": low, "both_high": high, "n_seeds": 3}
        claim = judge("a claim", _comparison(sign * (shift + spread)), least=0.7, unit=" dB", digits=2, sign=sign, seeds=seeds)
        assert claim["verdict"] == verdict
        assert claim["reach"] == ("" if of_method else "in these trainings")
        assert ("over patients and 3 seeds" in claim["found"]) == (low is not None)


def test_a_proposed_arm_of_any_family_has_claims_against_the_others_alone():
    arms = (Arm(name="filters", family="convolution"), Arm(name="tokens", family="attention"))
    config = StudyConfig(pairs=PairsConfig(sources=(PhantomSource(),)), arms=arms, proposed="tokens")
    keys = ("psnr_db[abdomen-40/400]", "ssim[abdomen-40/400]", "hf_consistency[fine_texture]", "texture_index")
    patients = [f"p{number}" for number in range(8)]
    found = {arm.name: {key: dict.fromkeys(patients, 0.5) for key in keys} for arm in arms}
    comparisons = {key: compare_with_each([0.5] * 8, {"filters": [0.4] * 8}) for key in keys}
    seeds = {"both_low": 0.05, "both_high": 0.15, "n_seeds": 3}
    claims = judge_claims(config, found, comparisons, {"psnr_db[abdomen-40/400]": {"filters": seeds}})
    assert len(claims) == 4
    assert ["over patients and 3 seeds" in claim["found"] for claim in claims] == [True, False, False, False]
    assert all(claim["claim"].endswith("filters") for claim in claims)


def test_a_study_is_called_small_only_if_it_is(study):
    config, folder, _, _, _ = study
    pair = read_manifest(folder / "pairs")[0]

    def pairs(split, patients, slices):
        return [_copy(pair, split, f"{split}{k % patients}") for k in range(slices)]

    def _copy(pair, split, patient):
        return pair.model_copy(update={"split": split, "patient": patient})

    large = scale_note(config, pairs("train", 100, 5000) + pairs("validation", 4, 40) + pairs("test", 20, 400))
    assert "small" not in large
    assert large.startswith("5,000 training slices of 100 patients, 40 validation slices of 4, 400 test slices of 20")
    assert scale_note(config, pairs("train", 100, 5000) + pairs("test", 19, 400)).startswith("This study is small")
    assert scale_note(config, pairs("train", 100, 4999) + pairs("test", 20, 400)).startswith("Its networks saw few slices")


@pytest.fixture(scope="module")
def wide_study(tmp_path_factory):
    """Two seeds, a network of others, two filters, a sweep, lesions and other pairs, as small as can be."""
    folder = tmp_path_factory.mktemp("wide")
    phantoms = {"size": 192, "pixel_mm": [1.9, 1.9], "photons": [1e6, 1e6], "qc": "report"}
    config = StudyConfig.model_validate(
        {
            "pairs": phantoms
            | {
                "sources": [{"kind": "phantom", "region": "abdomen", "patients": 6, "slices": 1}],
                "test_fraction": 0.5,
                "validation_fraction": 0.17,
            },
            "network": {"channels": [8, 24, 24], "blocks": [1, 0, 1], "heads": [2, 2]},
            "train": {"steps": 4, "batch": 2, "patch": 64, "warmup": 1, "validate_every": 4, "threads": 1},
            "arms": [
                {"name": "filters", "family": "convolution"},
                {"name": "plain", "family": "hybrid"},
                {"name": "ours", "family": "hybrid", "loss": {"weight": 0.05}},
                {
                    "name": "wider",
                    "family": "hybrid",
                    "network": {"channels": [8, 32, 24], "blocks": [1, 0, 1], "heads": [2, 2]},
                    "seeds": 1,
                    "learning_rate": 1e-4,
                },
                {"kind": "peer", "name": "RED-CNN", "peer": "RED-CNN", "widths": [4], "seeds": 1},
                {"kind": "classical", "name": "NLM", "method": "nlm", "strengths": [0.5, 1.0]},
                {"kind": "classical", "name": "TV", "method": "tv", "strengths": [0.1, 1.0]},
            ],
            "proposed": "ours",
            "contender": "filters",
            "seeds": [3, 4],
            "sweeps": [{"arm": "ours", "weights": [0.5]}],
            "lesions": {"diameters_mm": [4, 8], "contrasts_hu": [-900, -300], "per_slice": 6, "seeds": 1},
            "generalisation": {
                "unseen dose": {
                    "pairs": phantoms
                    | {
                        "sources": [
                            {"kind": "phantom", "region": "abdomen", "patients": 2, "slices": 1, "first_seed": 50, "split": "test"}
                        ],
                        "dose_fractions": [0.1],
                    }
                }
            },
        }
    )
    outcome = run_study(config, folder, data_root=folder, jobs=2, progress=lambda *step: None)
    return config, folder, json.loads(outcome.results.read_text()), outcome.report.read_text(encoding="utf-8")


def test_every_network_is_trained_with_every_seed_and_its_patients_are_means_over_them(wide_study):
    _, _, results, _ = wide_study
    made = {(method["name"], method["seed"]) for method in results["methods"]}
    networks = {"filters", "plain", "ours", "ours, λ 0.5"}
    assert made == {(name, seed) for name in networks for seed in (3, 4)} | {
        ("wider", 3),
        ("RED-CNN", 3),
        ("NLM", None),
        ("TV", None),
    }
    key = "psnr_db[abdomen-40/400]"
    ours = results["measures"]["ours"][key]
    assert len(set(ours["seed_means"])) == 2
    assert ours["mean"] == pytest.approx(np.mean(ours["seed_means"]))
    assert len(set(results["measures"]["low dose"][key]["seed_means"])) == 1
    assert results["over_seeds"][key]["filters"]["n_seeds"] == 2
    assert results["measures"]["RED-CNN"][key]["seed_means"] == [pytest.approx(results["measures"]["RED-CNN"][key]["mean"])]


def test_a_network_of_another_size_stands_beside_the_comparison_on_equal_terms(wide_study):
    config, folder, results, _ = wide_study
    about = {one["name"]: one for one in results["methods"]}
    assert about["wider"]["parameters"] > about["plain"]["parameters"] == about["ours"]["parameters"]
    assert "wider" in results["measures"] and not any("wider" in claim["claim"] for claim in results["claims"])
    assert all(set(each) == {"filters", "plain"} for each in results["over_seeds"].values())
    assert [arm.name for arm in config.own_arms] == ["filters", "plain", "ours"]
    for name, peak in (("wider", 1e-4), ("plain", config.train.learning_rate)):
        lines = (folder / "methods" / name / "seed-3" / "losses.jsonl").read_text().splitlines()
        assert max(json.loads(line)["lr"] for line in lines) == pytest.approx(peak)
    with pytest.raises(ConfigError, match=r"proposed arm 'wider' is none of .* on equal terms"):
        config_of(StudyConfig, config.model_dump() | {"proposed": "wider"})
    filters, plain, *others = config.arms
    on_all_seeds = config.model_copy(update={"arms": (filters.model_copy(update={"seeds": 2}), plain, *others)})
    assert on_all_seeds.own_arms[0].name == "filters"
    faster = config.model_copy(update={"arms": (filters.model_copy(update={"learning_rate": 0.1}), plain, *others)})
    assert [arm.name for arm in faster.own_arms] == ["plain", "ours"]
    with pytest.raises(ConfigError, match="family hybrid and its network of attention"):
        config_of(Arm, {"name": "a", "family": "hybrid", "network": {"size": "b", "family": "attention"}})
    assert config_of(Arm, {"name": "a", "family": "convolution", "network": {"size": "b"}}).network.family == "convolution"


def test_the_contender_is_compared_as_the_proposed_network_is(wide_study):
    _, _, results, page = wide_study
    contender, key = results["contender"], "psnr_db[abdomen-40/400]"
    assert contender["families"]["paper"] == ["plain", "ours"]
    assert "filters, equalised" in results["measures"]
    forth, back = contender["comparisons"][key]["ours"], results["comparisons"][key]["filters"]
    assert forth["mean"] == pytest.approx(-back["mean"])
    assert forth["n_comparisons"] == len(contender["families"]["paper"])
    assert contender["over_seeds"][key]["ours"]["n_seeds"] == 2
    assert set(contender["equivalence"]) == {"plain", "ours", "wider", "RED-CNN", "NLM", "TV"}
    apart = results["measures"]["filters"][key]["mean"] - results["measures"]["RED-CNN"][key]["mean"]
    assert contender["comparisons"][key]["RED-CNN"]["mean"] == pytest.approx(apart)
    assert "“filters” against “ours” in PSNR" in page


def test_holm_counts_the_papers_comparators_apart_from_all_others(wide_study):
    _, _, results, _ = wide_study
    assert results["families"]["paper"] == ["filters", "plain"]
    assert {"RED-CNN", "NLM", "TV", "ours, λ 0.5", "blend 0.1", "ours, equalised"} <= set(results["families"]["others"])
    compared = results["comparisons"]["psnr_db[abdomen-40/400]"]
    assert compared["filters"]["n_comparisons"] == 2
    assert compared["NLM"]["n_comparisons"] == len(results["families"]["others"])


def test_a_filter_takes_the_strength_that_is_best_on_the_validation_slices(wide_study):
    _, _, results, _ = wide_study
    for name in ("NLM", "TV"):
        method = next(method for method in results["methods"] if method["name"] == name)
        assert method["strength"] == max(method["tuning"], key=lambda one: one[1])[0]
        assert method["tuning_slices"] == 1


def test_other_pairs_stand_in_the_matrix_beside_what_was_trained(wide_study):
    _, _, results, _ = wide_study
    row = next(row for row in results["generalisation"] if row["factor"] == "other pairs")
    assert (row["value"], row["trained"], row["patients"]) == ("unseen dose", False, 2)
    assert set(row["gain_db"]) == set(results["measures"]) - {"low dose"}
    assert row["input_psnr_db"] < results["measures"]["low dose"]["psnr_db[abdomen-40/400]"]["mean"]


def test_strong_lesions_are_detected_under_every_method(wide_study):
    config, folder, results, _ = wide_study
    detected = results["detectability"]
    looked = {path.stem for path in (folder / "detected").iterdir()}
    assert "ours-seed-3" in looked and "ours-seed-4" not in looked
    assert set(detected) == {"low dose", "normal dose", *(arm.name for arm in config.all_arms)}
    for name, each in detected.items():
        assert [one["observer"] for one in each] == ["CHO", "NPWE"] * 2
        assert all(one["low"] <= one["d_prime"] <= one["high"] and one["d_prime"] > 1 for one in each)
        assert all((one["gain"] is None) == (name == "low dose") for one in each)
    better = [one["gain"] for one in detected["normal dose"] if one["observer"] == "CHO"]
    assert all(gain["low"] < gain["gain"] < gain["high"] and gain["p"] <= gain["holm_p"] and gain["gain"] > 0 for gain in better)


def test_another_observer_costs_no_images(study, tmp_path, monkeypatch):
    config, folder, _, results, _ = study
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "detected").iterdir():
        path.write_text(path.read_text().replace('"d_prime": ', '"d_prime": 9'))
    assert _run_again(config, copy) == set()
    assert json.loads((copy / "results.json").read_text())["detectability"] != results["detectability"]
    for path in (copy / "detected").iterdir():
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held | {"stamp": "of another observer"}))
    assert _run_again(config, copy) == set()  # nothing is trained, denoised or measured
    assert json.loads((copy / "results.json").read_text())["detectability"] == results["detectability"]


def test_gains_of_several_trainings_are_of_their_means_and_holm_counts_what_could_be_judged():
    def entry(value, *influence, squared=True):
        held = {"value": value, "squared": squared, "influence": dict(zip("abc", influence, strict=True))} if influence else {}
        return {"d_prime": max(value, 0) ** 0.5, "low": 0.0, "high": 9.0, "auc": 0.5, "warnings": [], "jackknife": held}

    low_dose = _over_seeds([entry(4.0, 0.0, 0.1, -0.1)])
    seeds = [entry(9.0, 0.2, -0.1, -0.1), None, entry(-1.0, -0.2, 0.1, 0.1)]  # under the last nothing is found
    after = _over_seeds(seeds)
    assert (after["n_trainings"], after["d_prime"]) == (2, 1.5)
    assert after["jackknife"] == {"value": 4.0, "squared": True, "influence": pytest.approx({"a": 0.0, "b": 0.0, "c": 0.0})}
    gain, nothing, unknown = _gains([after, None, _over_seeds([entry(1.0)])], [low_dose] * 3)
    assert (nothing, unknown) == (None, None)
    assert gain["gain"] == 0 and gain["holm_p"] == gain["p"]
    assert _over_seeds([None, None]) is None
    two = _gains([after, _over_seeds([entry(25.0, 0.0, 0.1, -0.1)])], [low_dose] * 2)
    assert [one["holm_p"] for one in two] == holm([one["p"] for one in two])


def test_patients_that_the_networks_are_trained_on_are_no_test_of_generalisation(wide_study):
    config, folder, _, _ = wide_study
    everyone = (PhantomSource(region="abdomen", patients=6, slices=1, split="test"),)
    shared = config.pairs.model_copy(update={"sources": everyone, "size": 64, "pixel_mm": (5.7, 5.7)})
    other = config.model_copy(update={"generalisation": {"same": PairsInput(pairs=shared)}})
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(DataError, match="patients that the networks are trained on"):
        run_study(other, folder, data_root=folder, jobs=1, progress=lambda *step: None)
    assert (folder / "config.yaml").read_bytes() == before


def test_a_strength_at_the_end_of_its_range_is_sought_beyond_it():
    y, x = np.ogrid[-48:48, -48:48]
    clean = np.where(y**2 + x**2 < 40**2, 40.0, -1000.0)
    noisy = clean + np.random.default_rng(0).normal(0, 20, clean.shape)
    protocol = protocol_named("abdomen-40/400")
    for given in ((0.1, 0.2), (8.0, 12.0)):
        arm = ClassicalArm(kind="classical", name="TV", method="tv", strengths=given)
        found = tune(arm, [(noisy, clean)], protocol=protocol)
        best = max(found, key=lambda one: found[one])
        assert min(found) < best < max(found), found
    alone = ClassicalArm(kind="classical", name="TV", method="tv", strengths=(0.1,))
    assert list(tune(alone, [(noisy, clean)], protocol=protocol)) == [0.1]
