"""docs/results.md from the files of a study on finegrain-bench v1, so that no figure in it is typed by hand.

Run: python tools/results.py STUDY [--real docs/data/real-pairs.json] [--gap docs/data/domain-gap.json] [--out docs/results.md]
STUDY is the folder of `finegrain study configs/study-bench-v1.yaml`; the JSON files are what `--json` of `benchmarks/real_pairs.py`
and `benchmarks/domain_gap.py` wrote. The study's training curves are drawn into docs/images/results-curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from finegrain.errors import DataError
from finegrain.evaluate.stats import compare_paired, relative_improvement
from finegrain.files import write_whole

PSNR, SSIM = "psnr_db[abdomen-40/400]", "ssim[abdomen-40/400]"
RATIO, COHERENCE, TRUTH = (f"{name}[fine_texture]" for name in ("hf_ratio", "hf_coherence", "hf_coherence_truth"))
COLUMNS = {
    PSNR: ("PSNR [dB], abdomen-40/400", 2),
    "psnr_db[chest--600/1500]": ("PSNR [dB], chest−600/1500", 2),
    SSIM: ("SSIM, abdomen-40/400", 4),
    RATIO: ("HF energy ratio, fine texture", 3),
    COHERENCE: ("coherence, fine texture", 4),
    TRUTH: ("coherence with truth, fine texture", 4),
    "texture_index": ("texture index", 3),
    "nps_log_distance": ("NPS log-distance", 3),
}
REAL_COLUMNS = {
    PSNR: COLUMNS[PSNR],
    SSIM: COLUMNS[SSIM],
    "hf_ratio[full]": ("HF energy ratio", 2),
    "hf_coherence[full]": ("coherence", 3),
    "texture_index": ("texture index", 3),
    "hu_bias[soft]": ("HU bias, soft tissue", 2),
}
TISSUES = {"soft": 1.0, "fat": 1.0, "lung": 5.0, "bone": 5.0}
"""HU by which the mean CT number of a tissue may be off."""
LEVEL = 0.05
PAPER_GAIN_DB, PAPER_TEXTURE_GAIN = 0.7, 0.14
FULL_ENERGY, MOST_COST_DB, MOST_GAP_DB = (0.97, 1.03), 0.05, 0.3
"""What was aimed at; see the table of goals."""

BM3D = "bm3d, oracle σ"
"""Of the real pairs."""
CONVOLUTION, ATTENTION, SPATIAL = "convolution only", "attention only", "hybrid, spatial loss"
PEER, LARGE = "RED-CNN", "size b, dual-domain loss, geometric mean"
WHY = {
    "PSNR": "All have the same parameters, multiplications, batches and steps; the hybrid sees farther than convolution and "
    "mixes pixels that attention does not, which is worth less than claimed. The frequency term adds little: a squared error asks "
    "for the conditional mean, an absolute one on coefficients for the median, and the two hardly differ.",
    "SSIM": "It goes with PSNR here; the paper claims no size.",
    "High-frequency energy": "An L1 term on coefficients shrinks what cannot be told from noise at least as much as MSE does: it "
    "asks for coefficients, not for energy. What differs by a hundredth between architectures is not the loss.",
    "Texture": "These statistics err with the energy that is missing, and both losses miss alike; the equaliser mends them without "
    "training.",
}
"""What explains the verdict on a claim, by how the claim begins."""


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """With a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def difference(results: Mapping[str, Any], key: str, name: str, digits: int) -> str:
    """The proposed network less another, with interval, p, and the interval that knows of the seeds."""
    found = results["comparisons"][key][name]
    low, high, _ = found["interval"]
    text = f"{number(found['mean'], digits, signed=True)} [{number(low, digits, signed=True)}, {number(high, digits, signed=True)}]"
    if found["holm_p"] is not None and math.isfinite(found["holm_p"]):
        text += f", p = {found['holm_p']:.2g}"
    seeds = results["over_seeds"].get(key, {}).get(name)
    if seeds:
        text += (
            f"; over seeds [{number(seeds['both_low'], digits, signed=True)}, {number(seeds['both_high'], digits, signed=True)}]"
        )
    return text


def cost_above_floor(results: Mapping[str, Any], alone: str, equalised: str) -> tuple[float, float]:
    """What full energy costs in the band above the floor 10·log10(2 / (1 + R)), in dB: mean and SD over patients.

    Error energy over reference energy is r + 1 − 2 R √r for an energy ratio r and a coherence R.
    """
    excess = []
    for patient, coherence in results["per_patient"][alone][COHERENCE].items():
        errors = []
        for name in (alone, equalised):
            ratio, agreement = (results["per_patient"][name][key][patient] for key in (RATIO, COHERENCE))
            errors.append(ratio + 1 - 2 * agreement * math.sqrt(ratio))
        excess.append(10 * math.log10(errors[1] / errors[0]) - 10 * math.log10(2 / (1 + coherence)))
    known = np.array([value for value in excess if math.isfinite(value)])
    return float(known.mean()), float(known.std(ddof=1))


def texture_gain(results: Mapping[str, Any], name: str) -> tuple[str, float]:
    """By how much of itself the texture index of the proposed network is better than another's: in words, and as a share."""
    ours, theirs = (results["per_patient"][one]["texture_index"] for one in (results["proposed"], name))
    patients = sorted(ours.keys() & theirs.keys())
    try:
        gain = relative_improvement([ours[patient] for patient in patients], [theirs[patient] for patient in patients])
    except DataError:  # an index of 0: nothing to be a part of
        return f"–; difference {difference(results, 'texture_index', name, 4)}", math.nan
    return f"{gain.in_words()}; difference {difference(results, 'texture_index', name, 4)}", gain.value


def is_certain(results: Mapping[str, Any], key: str, name: str) -> bool:
    """Whether the proposed network differs from another significantly, after Holm."""
    p = results["comparisons"][key][name]["holm_p"]
    return p is not None and math.isfinite(p) and p < LEVEL


class Goal(NamedTuple):
    """A line of the table of goals: what was aimed at, what came out, and whether that reaches it; None if it cannot be told."""

    what: str
    goal: str
    measured: str
    reached: bool | None

    def cells(self) -> tuple[str, str, str, str]:
        """With the verdict in words."""
        return (
            self.what,
            self.goal,
            self.measured,
            {True: "reached", False: "**missed**", None: "no difference shown"}[self.reached],
        )


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """What was aimed at, and what came out of the network that `proposed` names."""
    return [
        *_fidelity_goals(results),
        *_texture_goals(results),
        *_lesion_goals(results),
        *_bias_goals(results),
        *_use_goals(results),
    ]


def _fidelity_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    mean = results["comparisons"][PSNR]
    for name in (CONVOLUTION, ATTENTION):
        reached = mean[name]["mean"] >= PAPER_GAIN_DB and is_certain(results, PSNR, name)
        yield Goal(f"PSNR [dB] against {name}", "+0.7 to +1.1 dB (paper)", difference(results, PSNR, name, 3), reached)
    reached = mean[SPATIAL]["mean"] > 0 and is_certain(results, PSNR, SPATIAL)
    yield Goal(f"PSNR [dB] against {SPATIAL}", "higher", difference(results, PSNR, SPATIAL, 3), reached)
    if PEER in results["measures"]:
        macs = {one["name"]: one.get("macs_per_512") for one in results["methods"]}
        share = macs[PEER] / macs[results["proposed"]]
        tested = results["equivalence"][PEER]
        text = f"{difference(results, PSNR, PEER, 3)} at 1/{share:.0f} of its MACs; 90 % interval from "
        text += f"{number(tested['interval_low'], 3, signed=True)} dB"
        goal = f"no worse by {tested['margin']:g} dB at ≤ 1/30 of its MACs"
        yield Goal(f"PSNR [dB] against {PEER}", goal, text, tested["interval_low"] > -tested["margin"] and share >= 30)


def large_goals(results: Mapping[str, Any]) -> list[str]:
    """The same of the network of size b against the peer: neither is compared with all others."""
    if not {PEER, LARGE} <= results["measures"].keys():
        return []
    ours, theirs = (results["per_patient"][name][PSNR] for name in (LARGE, PEER))
    found = compare_paired(*([values[patient] for patient in sorted(ours)] for values in (ours, theirs)))
    macs = {one["name"]: one.get("macs_per_512") for one in results["methods"]}
    low, high = (number(value, 3, signed=True) for value in (found.interval_low, found.interval_high))
    text = f"{number(found.mean, 3, signed=True)} [{low}, {high}], p = {found.wilcoxon_p:.2g}, at 1/{macs[PEER] / macs[LARGE]:.0f} "
    goal = Goal(f"PSNR [dB] against {PEER}", "better", f"{text}of its MACs", found.mean > 0 and found.wilcoxon_p < LEVEL)
    return [f"**{LARGE}**, which is larger than the others of ours:", goal_table([goal])]


def _texture_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    proposed = results["proposed"]
    equalised, told = f"{proposed}, equalised", f"{proposed}, equalised, dose told"
    mean = {name: {key: one["mean"] for key, one in each.items()} for name, each in results["measures"].items()}
    for name in (CONVOLUTION, ATTENTION):
        text, gain = texture_gain(results, name)
        yield Goal(f"texture index against {name}", "≥ 14 % better", text, gain >= PAPER_TEXTURE_GAIN)
    for name in (proposed, equalised, told):
        found = {dose: each[name][RATIO][0] for dose, each in results["doses"].items() if RATIO in each.get(name, {})}
        text = ", ".join(f"{number(value, 3)} at {dose}" for dose, value in found.items())
        reached = all(FULL_ENERGY[0] <= round(value, 2) <= FULL_ENERGY[1] for value in found.values())
        yield Goal(f"HF energy ratio, fine texture, {name}", "0.97 to 1.03", text, reached)
    for name in (equalised, told):
        excess, sd = cost_above_floor(results, proposed, name)
        text = f"{number(excess, 3, signed=True)} ± {sd:.3f} dB"
        what = f"cost of full energy in the band above 10·log10(2/(1+R)), {name}"
        yield Goal(what, "≤ 0.05 dB", text, excess <= MOST_COST_DB)
    ours = mean[proposed][TRUTH]
    above = {name: each[TRUTH] for name, each in mean.items() if TRUTH in each and name != proposed and each[TRUTH] >= ours}
    leader = ", ".join(f"{name} ({number(value, 4)})" for name, value in above.items()) or "none"
    text = f"{number(ours, 4)}; at or above it: {leader}"
    yield Goal(f"coherence with truth, {proposed}", "above every comparator", text, not above)
    for name in (equalised, told):
        one, other = mean[name]["nps_log_distance"], mean[SPATIAL]["nps_log_distance"]
        text = f"{one / other:.2f} ({number(one, 3)} / {number(other, 3)})"
        yield Goal(f"NPS log-distance, {name}, over spatial-only", "≤ 0.5", text, one / other <= 0.5)


def _lesion_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    before = {(one["lesion"], one["observer"]): one for one in results["detectability"].get("low dose", [])}
    for one in results["detectability"].get(results["proposed"], []):
        given, gain = before[one["lesion"], one["observer"]], one["gain"]
        if gain is not None:
            interval = f"[{number(gain['low'], 2, signed=True)}, {number(gain['high'], 2, signed=True)}]"
            values = f"{number(one['d_prime'], 2)}, input {number(given['d_prime'], 2)}"
            text = f"{values}: {number(gain['gain'], 2, signed=True)} {interval}"
            reached = True if gain["low"] > 0 else False if gain["high"] < 0 else None
            goal = "not below the input, above it for one size"
            yield Goal(f"d′ to the observer {one['observer']}, {one['lesion']}", goal, text, reached)


def _bias_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    measures, proposed = results["measures"], results["proposed"]
    for tissue, allowed in TISSUES.items():
        key = f"hu_bias[{tissue}]"
        if key in measures[proposed]:
            bias, sd, before = measures[proposed][key]["mean"], measures[proposed][key]["sd"], measures["low dose"][key]["mean"]
            text = f"{number(bias, 2, signed=True)} ± {number(sd, 2)} HU (input {number(before, 2, signed=True)})"
            yield Goal(f"HU bias, {tissue}", f"≤ {allowed:g} HU", text, abs(bias) <= allowed)


def _use_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    for one in results["generalisation"]:
        if one["factor"] == "other pairs":
            gain, least = (one[key][results["proposed"]] for key in ("gain_db", "least_gain_db"))
            text = f"{number(gain, 2, signed=True)} dB; least {number(least, 2, signed=True)} dB, {one['slices']} slices"
            yield Goal(f"gain over the input, {one['value']}", "never worse", text, least >= 0)


def real_goals(real: Mapping[str, Any] | None, gap: Mapping[str, Any] | None) -> Iterable[Goal]:
    """The same of what ships, on real pairs."""
    for kernel, found in (real or {}).get("kernels", {}).items():
        for name in (name for name in found if name.startswith("texture ")):
            least = found["least_gain_db"][name]
            text = f"{number(found[name][PSNR] - found['quarter dose'][PSNR], 2, signed=True)} dB over the input, least "
            text += f"{number(least, 2, signed=True)} dB"
            goal, reached = "no slice below the input", least >= 0
            if BM3D in found:
                over = found[name][PSNR] - found[BM3D][PSNR]
                text += f"; {number(over, 2, signed=True)} dB over BM3D with oracle σ"
                if kernel == "B30f":
                    goal, reached = f"≥ +0.8 dB over BM3D with oracle σ, {goal}", reached and over >= 0.8
            yield Goal(f"PSNR on real pairs, {kernel}, {real['model']}, {name}", goal, text, reached)  # type: ignore[index]
    if gap is not None:
        lost = np.array([one["real"] - one["simulated"] for one in gap["slices"]])
        patients = len({one["patient"] for one in gap["slices"]})
        text = f"{number(lost.mean(), 3, signed=True)} ± {lost.std(ddof=1):.3f} dB over {len(lost)} slices of {patients} patients"
        what = "domain gap: PSNR of a network trained on real pairs less that of the same trained on simulated ones"
        yield Goal(what, "≤ 0.3 dB", text, bool(lost.mean() <= MOST_GAP_DB))


def goal_table(rows: Iterable[Goal]) -> str:
    """Goals, and whether they were reached."""
    return table(("what", "goal", "measured", ""), (row.cells() for row in rows))


def method_rows(results: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    """One line for each method."""
    facts: dict[str, Mapping[str, Any]] = {}
    for one in results["methods"]:
        facts.setdefault(one["name"], one)
    for name, measures in results["measures"].items():
        about = facts.get(name, {})
        size = f"{about['parameters']:,}" if "parameters" in about else "–"
        cost = f"{about['macs_per_512'] / 1e9:.2f}" if "macs_per_512" in about else "–"
        cells = []
        for key, (_, digits) in COLUMNS.items():
            found = measures.get(key, {})
            cells.append(f"{number(found.get('mean'), digits)} ± {number(found.get('sd'), digits)}" if found else "–")
        yield (name, size, cost, *cells)


def draw_curves(results: Mapping[str, Any], path: Path) -> None:
    """Validation RMSE against steps: each method one colour, each seed one line."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    names = list(dict.fromkeys(one["name"] for one in results["methods"] if one.get("history")))
    for one in results["methods"]:
        if one.get("history"):
            number_of = names.index(one["name"])
            label = one["name"] if one["seed"] == results["seeds"][0] else None
            rows = one["history"]
            axis.plot(
                [r["step"] for r in rows], [r["rmse_hu"] for r in rows], ".-", color=f"C{number_of}", label=label, linewidth=1
            )
    axis.set(xlabel="steps", ylabel="RMSE on the validation pairs [HU]")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def document(
    results: Mapping[str, Any], provenance: Mapping[str, Any], real: Mapping[str, Any] | None, gap: Mapping[str, Any] | None
) -> str:
    """The page."""
    compared = {PSNR: 3, SSIM: 4, RATIO: 3, COHERENCE: 4, TRUTH: 4, "texture_index": 4, "nps_log_distance": 3}
    names = list(results["comparisons"][PSNR])
    minutes: dict[str, list[float]] = {}
    for one in results["methods"]:
        if one.get("train_seconds"):
            minutes.setdefault(one["name"], []).append(one["train_seconds"] / 60)
    training = [
        (name, ", ".join(str(one["best_step"]) for one in results["methods"] if one["name"] == name), f"{np.mean(each):.0f}")
        for name, each in minutes.items()
    ]
    unseen = [
        (
            one["factor"],
            str(one["value"]),
            "yes" if one["trained"] else "no",
            str(one["patients"]),
            number(one["input_psnr_db"], 2),
            *(number(one["gain_db"].get(name), 2, signed=True) for name in shown_of(results)),
        )
        for one in results["generalisation"]
    ]
    parts = [
        "# Results",
        "This page is generated: `python tools/results.py STUDY`. Nothing in it was typed by hand.",
        f"**{results['title']}.** {results['scale_note']} Configuration {provenance['config_hash']}; how to repeat it: "
        "[bench.md](bench.md), [study.md](study.md).",
        "## What was aimed at, and what came out",
        f"The paper's network, **{results['proposed']}**:",
        goal_table(goals(results)),
        *contender_goals(results),
        *large_goals(results),
        *real_goals_part(real, gap),
        "CHO: channelised Hotelling observer; NPWE: matched filter with eye filter; d′ against the input's in the same patients "
        "([what each asks](study.md#detectability)). "
        "Differences are the proposed network less the other, mean over patients, with 95 % interval over patients (BCa), p of "
        "Wilcoxon's test after Holm, and the interval over patients and seeds.",
        "## The paper's claims",
        table(
            ("claim", "verdict", "found", "why"),
            [
                (
                    one["claim"],
                    f"**{one['verdict']}**",
                    one["found"],
                    next(why for key, why in WHY.items() if one["claim"].startswith(key)),
                )
                for one in results["claims"]
            ],
        ),
        "## Every method",
        table(("method", "parameters", "GMAC per 512²", *(label for label, _ in COLUMNS.values())), method_rows(results)),
        "Mean ± SD over test patients, each the mean over slices and seeds.",
        f"## The proposed network against each other: {results['proposed']}",
        table(
            ("against", *(COLUMNS[key][0] for key in compared)),
            [(name, *(difference(results, key, name, digits) for key, digits in compared.items())) for name in names],
        ),
        *(f"- {line}" for line in results["plan"]),
        *lesion_section(results),
        "## Seen and unseen conditions: gain in PSNR over the input [dB]",
        table(("factor", "condition", "trained on", "patients", "input [dB]", *shown_of(results)), unseen),
        *real_section(real),
        "## Training",
        table(("network", "best step, by seed", "minutes, mean"), training),
        "![RMSE on the validation pairs](images/results-curves.png)",
    ]
    return "\n\n".join(parts) + "\n"


def lesion_section(results: Mapping[str, Any]) -> list[str]:
    """d′ of every lesion to every observer, under every method."""
    if not results["detectability"]:
        return []
    asked = list(dict.fromkeys((one["observer"], one["lesion"]) for one in results["detectability"]["low dose"]))
    rows = []
    for name, each in results["detectability"].items():
        found = {(one["observer"], one["lesion"]): one for one in each}
        cells = []
        for what in asked:
            text, gain = (number(found[what]["d_prime"], 2), found[what]["gain"]) if what in found else ("–", None)
            if gain is not None:
                low, high = (number(gain[end], 2, signed=True) for end in ("low", "high"))
                text += f"<br>{number(gain['gain'], 2, signed=True)} [{low}, {high}]"
            cells.append(text)
        rows.append((name, *cells))
    return [
        "## Can a lesion be found?",
        "d′ of lesions inserted into the low dose, and below it what it is above the low dose's in the same patients, with 95 % "
        "interval (jackknife over patients). The CHO undoes what correlations of noise can be undone and asks what information is "
        "left. The NPWE cannot, as readers hardly can: noise that the eye sees hides lesions, smoothing helps. A gain "
        "there alone proves no better image; a loss to the CHO is information lost.",
        table(("method", *(f"{observer}, {lesion}" for observer, lesion in asked)), rows),
    ]


def real_section(real: Mapping[str, Any] | None) -> list[str]:
    """The table of real pairs, kernel by kernel."""
    if real is None:
        return []
    rows = [
        (kernel, name, *(number(values[key], digits) for key, (_, digits) in REAL_COLUMNS.items()))
        for kernel, found in real["kernels"].items()
        for name, values in found.items()
        if isinstance(values, dict) and PSNR in values
    ]
    return [
        "## Real pairs that nothing was trained on",
        f"{real['model']} on quarter-dose slices of the AAPM–Mayo challenge against their full dose, which is noisy itself "
        "(`benchmarks/real_pairs.py`); means over slices. Energy, coherence: above 0.4 Nyquist, whole body.",
        table(("kernel", "image", *(label for label, _ in REAL_COLUMNS.values())), rows),
    ]


def contender_goals(results: Mapping[str, Any]) -> list[str]:
    """The same table for the contender, if there is one."""
    if not results.get("contender"):
        return []
    turned = dict(results) | results["contender"]
    return [f"The contender beyond the paper, **{turned['proposed']}**:", goal_table(goals(turned))]


def real_goals_part(real: Mapping[str, Any] | None, gap: Mapping[str, Any] | None) -> list[str]:
    """The table of what ships, if anything of it was measured."""
    rows = list(real_goals(real, gap))
    return ["What ships, on real pairs of low and normal dose that nothing was trained on:", goal_table(rows)] if rows else []


def shown_of(results: Mapping[str, Any]) -> list[str]:
    """Methods of the table of conditions: the trained and the tuned ones."""
    return list(dict.fromkeys(one["name"] for one in results["methods"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--gap", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    results = json.loads((arguments.study / "results.json").read_text())
    provenance = json.loads((arguments.study / "provenance.json").read_text())
    real, gap = (json.loads(path.read_text()) if path else None for path in (arguments.real, arguments.gap))
    (arguments.out.parent / "images").mkdir(parents=True, exist_ok=True)
    draw_curves(results, arguments.out.parent / "images" / "results-curves.png")
    write_whole(arguments.out, document(results, provenance, real, gap))
    print(f"{arguments.out}: {len(results['measures'])} methods, {results['splits']['test']['slices']} test slices")


if __name__ == "__main__":
    main()
