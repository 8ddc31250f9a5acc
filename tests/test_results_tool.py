"""The verdicts of docs/results.md, on studies whose numbers are known."""

import sys
from pathlib import Path

import pytest

from finegrain.evaluate.stats import compare_with_each

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import goals as tool

import results as page

OURS, PATIENTS = "hybrid, dual-domain loss", [f"p{k}" for k in range(12)]
EQUALISED, TOLD = tool.equalised_of(OURS)


def made(**shifts):
    """Results of a study: each measure of each method lies `shifts[measure][method]` beside what is the same for all."""
    names = ["low dose", tool.CONVOLUTION, tool.ATTENTION, tool.SPATIAL, OURS, EQUALISED, TOLD]
    plain = {tool.PSNR: 30.0, tool.RATIO: 0.75, tool.COHERENCE: 0.8, tool.TRUTH: 0.7, "texture_index": 0.1, "nps_log_distance": 0.6}
    wobble = [0.001 * ((7 * k) % 5 - 2) for k in range(len(PATIENTS))]
    per_patient = {
        name: {
            key: {
                patient: value + shifts.get(key, {}).get(name, 0.0) + (1 + 0.5 * (name == OURS)) * wobble[k]
                for k, patient in enumerate(PATIENTS)
            }
            for key, value in plain.items()
        }
        for name in names
    }

    def mean_of(values):
        mean = sum(values) / len(values)
        sd = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        return mean, sd, len(values)

    measures = {
        name: {
            key: dict(zip(("mean", "sd", "n_patients"), mean_of(list(each.values())), strict=True)) for key, each in keys.items()
        }
        for name, keys in per_patient.items()
    }
    comparisons = {}
    for key in plain:
        found = compare_with_each(
            list(per_patient[OURS][key].values()),
            {name: list(per_patient[name][key].values()) for name in names if name != OURS},
        )
        comparisons[key] = {
            name: one.to_dict() | {"interval": [one.interval_low, one.interval_high, "BCa"]} for name, one in found.items()
        }
    return {
        "proposed": OURS,
        "per_patient": per_patient,
        "measures": measures,
        "comparisons": comparisons,
        "over_seeds": {},
        "equivalence": {},
        "methods": [{"name": name, "macs_per_512": 1e9} for name in names],
        "doses": {
            "25%": {name: {key: mean_of(list(each.values())) for key, each in keys.items()} for name, keys in per_patient.items()}
        },
        "detectability": {},
        "generalisation": [],
    }


def test_a_method_whose_lesions_were_not_looked_at_is_named():
    one = {"observer": "CHO", "lesion": "6 mm, −20 HU", "d_prime": 2.0, "gain": None, "n_trainings": 1}
    results = made() | {"detectability": {"low dose": [one], OURS: [one]}}
    results["methods"] = [{"name": OURS}, {"name": "ResNet"}]
    words = page.lesion_section(results)[1]
    assert "Not looked at yet: ResNet." in words
    results["detectability"]["ResNet"] = [one]
    assert "Not looked at" not in page.lesion_section(results)[1]


def verdicts(results):
    return {goal.what: goal.verdict for goal in tool.goals(results)}


def test_a_gain_as_large_as_claimed_is_reached_and_a_smaller_one_is_missed_for_certain():
    found = verdicts(made(**{tool.PSNR: {OURS: 0.9, tool.SPATIAL: 0.5}}))
    assert found["PSNR [dB] against convolution only"] == "reached"
    assert found["PSNR [dB] against hybrid, spatial loss"] == "reached"
    found = verdicts(made(**{tool.PSNR: {OURS: 0.4, tool.SPATIAL: 0.4}}))
    assert found["PSNR [dB] against convolution only"] == "**missed**"
    assert found["PSNR [dB] against hybrid, spatial loss"].endswith("not certain")  # equal but for what patients scatter


def test_the_energy_verdict_rounds_nothing():
    for ratio, verdict in (
        (0.9699, "**missed**, not certain"),
        (1.0, "reached"),
        (1.2, "**missed**"),
        (0.9705, "reached, not certain"),
    ):
        results = made(**{tool.RATIO: {TOLD: ratio - 0.75}})
        assert verdicts(results)[f"HF energy ratio, fine texture, {TOLD}"] == verdict
    results["doses"] = {}
    assert verdicts(results)[f"HF energy ratio, fine texture, {TOLD}"].startswith("**missed**")


def test_texture_noise_and_coherence_are_judged_against_the_right_comparator():
    results = made(
        texture_index={OURS: -0.03, EQUALISED: -0.05, TOLD: -0.01},
        nps_log_distance={EQUALISED: -0.4, TOLD: -0.2},
        **{tool.TRUTH: {OURS: 0.02, EQUALISED: 0.01}},
    )
    found = verdicts(results)
    assert found["texture index against attention only"] == "reached"
    assert found[f"texture index, {EQUALISED}, against convolution only"] == "reached"
    assert found[f"texture index, {TOLD}, against convolution only"] == "**missed**"
    assert found[f"NPS log-distance, {EQUALISED}, over that of hybrid, spatial loss"] == "reached"
    assert found[f"NPS log-distance, {TOLD}, over that of hybrid, spatial loss"] == "**missed**"
    assert found[f"coherence with truth, {OURS}"] == "reached"
    assert verdicts(made(**{tool.TRUTH: {TOLD: 0.01}}))[f"coherence with truth, {OURS}"] == "**missed**"


def test_the_cost_of_full_energy_is_counted_from_its_floor():
    """From the least error, r = R², to r = 1 at the same coherence costs 10·log10(2(1 − R) / (1 − R²)), which is the floor."""
    results = made(**{tool.RATIO: {OURS: 0.8**2 - 0.75, TOLD: 0.25, EQUALISED: 0.75}})
    costs = tool.costs_above_floor(results, OURS, TOLD)
    assert costs.mean() == pytest.approx(0.0, abs=0.02)
    found = verdicts(results)
    assert found[f"cost of full energy in the band above 10·log10(2/(1+R)), {TOLD}"] == "reached"
    assert found[f"cost of full energy in the band above 10·log10(2/(1+R)), {EQUALISED}"] == "**missed**"


def test_a_lesion_counts_as_found_more_easily_only_after_holm():
    def seen(gain, p):
        return {
            "observer": "CHO",
            "lesion": "6 mm",
            "d_prime": 2.0 + gain,
            "gain": {"gain": gain, "low": 0, "high": 1, "holm_p": p},
        }

    results = made()
    results["detectability"] = {"low dose": [{"observer": "CHO", "lesion": "6 mm", "d_prime": 2.0}], OURS: [seen(0.5, 0.2)]}
    assert verdicts(results)["d′ to the CHO, 6 mm"] == "reached, not certain"
    assert verdicts(results)["d′ to the CHO above the input's"] == "**missed**"
    results["detectability"][OURS] = [seen(0.5, 0.01)]
    assert verdicts(results)["d′ to the CHO above the input's"] == "reached"
    results["detectability"][OURS] = [seen(-0.5, 0.01)]
    assert verdicts(results)["d′ to the CHO, 6 mm"] == "**missed**"
    results["detectability"][OURS] = [seen(0.5, 0.01) | {"gain": None}]
    assert verdicts(results)["d′ to the CHO, 6 mm"] == "–"


def test_a_network_no_worse_than_the_peer_needs_few_multiplications_too():
    results = made(**{tool.PSNR: {tool.CONVOLUTION: -0.05}})
    for part in ("per_patient", "measures"):
        results[part][tool.PEER] = results[part][tool.CONVOLUTION]
    results["comparisons"][tool.PSNR][tool.PEER] = results["comparisons"][tool.PSNR][tool.CONVOLUTION]
    results["equivalence"][tool.PEER] = {"mean": 0.05, "margin": 0.1, "interval_low": 0.03, "interval_high": 0.07}
    results["methods"].append({"name": tool.PEER, "macs_per_512": 60e9})
    assert verdicts(results)["PSNR [dB] against RED-CNN"] == "reached"
    results["methods"][-1]["macs_per_512"] = 20e9
    assert verdicts(results)["PSNR [dB] against RED-CNN"] == "**missed**"
    results["methods"][-1]["macs_per_512"] = 60e9
    results["equivalence"][tool.PEER] = {"mean": -0.05, "margin": 0.1, "interval_low": -0.12, "interval_high": 0.02}
    assert verdicts(results)["PSNR [dB] against RED-CNN"] == "reached, not certain"


def test_what_was_not_measured_on_real_pairs_is_not_said_to_be_reached():
    def images(**psnr):
        found = {name: {tool.PSNR: value} for name, value in psnr.items()}
        return found | {"slices": 14, "least_gain_db": {name: value - 26 for name, value in psnr.items()}}

    real = {"model": "m", "kernels": {"B30f": images(**{"quarter dose": 26.0, "texture 0": 31.0})}}
    rows = {goal.what: goal.verdict for goal in tool.real_goals(real)}
    assert rows == {"PSNR on real pairs, B30f, m, texture 0": "reached", "the same, B30f, above bm3d, oracle σ": "not measured"}
    sides = {"alike": (0.0, 0.0), "unlike": (-0.3, 0.3), "not kept": ()}
    for bm3d, of, verdict in (
        (30.0, "alike", "reached"),
        (30.0, "unlike", "reached, not certain"),
        (29.8, "unlike", "reached"),
        (29.8, "not kept", "reached, not certain"),
        (30.3, "alike", "**missed**"),
        (30.3, "unlike", "**missed**, not certain"),
    ):
        found = images(**{"quarter dose": 26.0, "texture 0": 31.0, tool.BM3D: bm3d})
        found["patients"] = {name: {"texture 0": 31.0 + more, tool.BM3D: bm3d} for name, more in zip("ab", sides[of], strict=False)}
        real["kernels"]["B30f"] = found
        rows = {goal.what: goal.verdict for goal in tool.real_goals(real)}
        assert rows["PSNR on real pairs, B30f, texture 0, above bm3d, oracle σ"] == verdict


def test_the_domain_gap_is_one_of_patients_not_of_slices():
    slices = [{"patient": "a", "real": 25.0, "simulated": 25.0}] * 30 + [{"patient": "b", "real": 26.0, "simulated": 25.0}]
    goal = tool.gap_goal({"slices": slices})
    assert goal.measured.startswith(
        "+0.500 dB, mean over patients; patients' means from +0.000 to +1.000 dB, 2 patients, 31 slices"
    )
    assert goal.verdict == "**missed**, not certain"


def test_size_b_is_better_than_the_peer_for_certain_only_where_the_tests_say_so():
    results = made(**{tool.PSNR: {OURS: 0.5}})
    assert tool.large_goals(results) == []
    for name, like in ((tool.LARGE, OURS), (tool.PEER, tool.ATTENTION)):
        for part in ("per_patient", "measures"):
            results[part][name] = results[part][like]
        results["methods"].append({"name": name, "macs_per_512": 1e9})
    assert tool.large_goals(results)[1].endswith("| reached |")
    results["per_patient"][tool.PEER] = results["per_patient"][tool.LARGE]
    assert tool.large_goals(results)[1].endswith("| **missed**, not certain |")
