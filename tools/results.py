"""docs/results.md from the files of a study on finegrain-bench v1, so that no figure in it is typed by hand.

Run: python tools/results.py STUDY [--real docs/data/real-pairs.json] [--out docs/results.md]
STUDY is the folder of `finegrain study configs/study-bench-v1.yaml`; JSON is what `benchmarks/real_pairs.py --json` wrote. The
study's training curves are drawn into docs/images/results-curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from finegrain.errors import DataError
from finegrain.evaluate.stats import relative_improvement
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
BM3D = "bm3d, oracle σ"
"""Of the real pairs."""
CONVOLUTION, ATTENTION, SPATIAL = "convolution only", "attention only", "hybrid, spatial loss"
PEER = "RED-CNN"
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


def texture_gain(results: Mapping[str, Any], name: str) -> str:
    """By how much of itself the texture index of the proposed network is better than another's, and whether that is significant."""
    ours, theirs = (results["per_patient"][one]["texture_index"] for one in (results["proposed"], name))
    patients = sorted(ours.keys() & theirs.keys())
    try:
        gain = relative_improvement([ours[patient] for patient in patients], [theirs[patient] for patient in patients]).in_words()
    except DataError:  # an index of 0: nothing to be a part of
        gain = "–"
    return f"{gain}; difference {difference(results, 'texture_index', name, 4)}"


def goals(results: Mapping[str, Any], real: Mapping[str, Any] | None) -> str:
    """What was aimed at, and what came out of the network that `proposed` names."""
    proposed, measures = results["proposed"], results["measures"]
    equalised, told = f"{proposed}, equalised", f"{proposed}, equalised, dose told"
    mean = {name: {key: one["mean"] for key, one in each.items()} for name, each in measures.items()}
    rows: list[tuple[str, str, str]] = []
    for name in (CONVOLUTION, ATTENTION, SPATIAL):
        rows.append((f"PSNR [dB] against {name}", "+0.7 to +1.1 dB (paper)", difference(results, PSNR, name, 3)))
    for name in (CONVOLUTION, ATTENTION, SPATIAL):
        rows.append((f"texture index against {name}", "≥ 14 % better", texture_gain(results, name)))
    doses = results["doses"]
    for name in (proposed, equalised, told):
        of_dose = ", ".join(
            f"{number(each[name][RATIO][0], 3)} at {dose}" for dose, each in doses.items() if RATIO in each.get(name, {})
        )
        rows.append((f"HF energy ratio, fine texture, {name}", "0.97 to 1.03", of_dose))
    for name in (equalised, told):
        excess, sd = cost_above_floor(results, proposed, name)
        text = f"{number(excess, 3, signed=True)} ± {sd:.3f} dB"
        rows.append((f"cost of full energy in the band above 10·log10(2/(1+R)), {name}", "≤ 0.05 dB", text))
    ours = mean[proposed][TRUTH]
    above = {name: each[TRUTH] for name, each in mean.items() if TRUTH in each and name != proposed and each[TRUTH] >= ours}
    leader = ", ".join(f"{name} ({number(value, 4)})" for name, value in above.items()) or "none"
    rows.append((f"coherence with truth, {proposed}", "above every comparator", f"{number(ours, 4)}; at or above it: {leader}"))
    distance = {name: mean[name]["nps_log_distance"] for name in (equalised, told, SPATIAL)}
    for name in (equalised, told):
        share = f"{distance[name] / distance[SPATIAL]:.2f} ({number(distance[name], 3)} / {number(distance[SPATIAL], 3)})"
        rows.append((f"NPS log-distance, {name}, over spatial-only", "≤ 0.5", share))
    before = {one["lesion"]: one for one in results["detectability"].get("low dose", [])}
    for one in results["detectability"].get(proposed, []):
        given = before[one["lesion"]]
        rows.append(
            (
                f"d′, {one['lesion']}",
                "not below the input",
                f"{number(one['d_prime'], 2)} [{number(one['low'], 2)}, {number(one['high'], 2)}], input "
                f"{number(given['d_prime'], 2)} [{number(given['low'], 2)}, {number(given['high'], 2)}]",
            )
        )
    for tissue, allowed in TISSUES.items():
        key = f"hu_bias[{tissue}]"
        if key in mean[proposed]:
            low_dose = number(mean["low dose"][key], 2, signed=True)
            text = (
                f"{number(mean[proposed][key], 2, signed=True)} ± {number(measures[proposed][key]['sd'], 2)} HU (input {low_dose})"
            )
            rows.append((f"HU bias, {tissue}", f"≤ {allowed:g} HU", text))
    if PEER in mean:
        macs = {one["name"]: one.get("macs_per_512") for one in results["methods"]}
        tested = results["equivalence"].get(PEER)
        text = difference(results, PSNR, PEER, 3) + f" at 1/{macs[PEER] / macs[proposed]:.0f} of its MACs"
        if tested:
            text += f"; TOST p = {tested['p']:.2g}" if "p" in tested else ""
        rows.append((f"PSNR [dB] against {PEER} on the same pairs", "no worse by 0.1 dB at ≤ 1/30 of its MACs", text))
    for one in results["generalisation"]:
        if one["factor"] == "other pairs":
            least = one["least_gain_db"][proposed]
            gain = number(one["gain_db"][proposed], 2, signed=True)
            text = f"{gain} dB; least {number(least, 2, signed=True)} dB, {one['slices']} slices"
            rows.append((f"gain over the input, {one['value']}", "never worse", text))
    for kernel, found in (real or {}).get("kernels", {}).items():
        for name in (name for name in found if name.startswith("texture ")):
            over = f"{number(found[name][PSNR] - found['quarter dose'][PSNR], 2, signed=True)} dB over the input, least "
            over += f"{number(found['least_gain_db'][name], 2, signed=True)} dB"
            if BM3D in found:
                over += f"; {number(found[name][PSNR] - found[BM3D][PSNR], 2, signed=True)} dB over BM3D with oracle σ"
            rows.append((f"real pairs, {kernel}, finegrain-s, {name}", "≥ +0.8 dB over BM3D (B30f), none below the input", over))
    return table(("what", "goal", "measured"), rows)


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


def document(results: Mapping[str, Any], provenance: Mapping[str, Any], real: Mapping[str, Any] | None) -> str:
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
        goals(results, real),
        *contender_goals(results),
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
        "## Seen and unseen conditions: gain in PSNR over the input [dB]",
        table(("factor", "condition", "trained on", "patients", "input [dB]", *shown_of(results)), unseen),
        *real_section(real),
        "## Training",
        table(("network", "best step, by seed", "minutes, mean"), training),
        "![RMSE on the validation pairs](images/results-curves.png)",
    ]
    return "\n\n".join(parts) + "\n"


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
    return [f"The contender beyond the paper, **{turned['proposed']}**:", goals(turned, None)]


def shown_of(results: Mapping[str, Any]) -> list[str]:
    """Methods of the table of conditions: the trained and the tuned ones."""
    return list(dict.fromkeys(one["name"] for one in results["methods"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    results = json.loads((arguments.study / "results.json").read_text())
    provenance = json.loads((arguments.study / "provenance.json").read_text())
    real = json.loads(arguments.real.read_text()) if arguments.real else None
    (arguments.out.parent / "images").mkdir(parents=True, exist_ok=True)
    draw_curves(results, arguments.out.parent / "images" / "results-curves.png")
    write_whole(arguments.out, document(results, provenance, real))
    print(f"{arguments.out}: {len(results['measures'])} methods, {results['splits']['test']['slices']} test slices")


if __name__ == "__main__":
    main()
