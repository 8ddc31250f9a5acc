"""docs/results.md from the files of a study on finegrain-bench v1, so that no figure in it is typed by hand.

Run: python tools/results.py STUDY [--real docs/data/real-pairs.json --gap docs/data/domain-gap.json] [--bench BENCH]
STUDY is the folder of `finegrain study configs/study-bench-v1.yaml`; the JSON files are what `--json` of `benchmarks/real_pairs.py`
and `benchmarks/domain_gap.py` wrote. The study's training curves are drawn into docs/images/results-curves.png, and with BENCH, the
folder of its pairs, test slices as some of its methods denoised them into docs/images/results-crops.jpg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from goals import (
    COHERENCE,
    COLUMNS,
    CONVOLUTION,
    PSNR,
    RATIO,
    REAL_COLUMNS,
    SPATIAL,
    SSIM,
    TRUTH,
    difference,
    gap_goal,
    goal_table,
    goals,
    large_goals,
    number,
    real_goals,
    signed,
    table,
)

from finegrain.config import ClassicalArm, PeerArm, StudyConfig, load_config
from finegrain.evaluate.run import REFERENCE
from finegrain.figures import INPUT, crop_figure
from finegrain.files import write_whole
from finegrain.study.images import equalised_name, told_the_dose
from finegrain.study.kept import read_json
from finegrain.study.methods import all_methods
from finegrain.study.page import study_crops
from finegrain.study.run import test_sets

PAPER = "Schneide, Weber and Müller 2026", "https://doi.org/10.20944/preprints202602.0922.v1"
CROPS = (
    "*Places with fine structure in the noisiest test slice of each region; first training of each network, and the best "
    "network and filter of others. Below each image what it is less the normal dose, which has noise of its own. Virtual patients.*"
)
WHY = {
    "PSNR": "All have the same parameters, multiplications, batches and steps; the hybrid sees farther than convolution and "
    "mixes pixels that attention does not, which is worth less than claimed. The frequency term adds little: a squared error asks "
    "for the conditional mean, an absolute one on coefficients for the median, and the two hardly differ.",
    "SSIM": "It goes with PSNR here; the paper claims no size.",
    "High-frequency energy": "An L1 term on coefficients shrinks what cannot be told from noise at least as much as MSE does: it "
    "asks for coefficients, not for energy. What differs between architectures is not the loss.",
    "Texture": "These statistics err with the energy that is missing, and both losses miss alike; the equaliser mends them without "
    "training.",
}
"""What explains the verdict on a claim, by how the claim begins."""


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
    figure, axis = plt.subplots(figsize=(11, 4.5), layout="constrained")
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
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_crops(study: Path, results: Mapping[str, Any], bench: Path, path: Path) -> None:
    """The noisiest test slice of each region under the proposed network, the best of others', the best filter, and some of ours."""
    config = load_config(study / "config.yaml", StudyConfig)
    main = test_sets(config, study, data_root=bench, jobs=1, progress=lambda *_: None)[0]
    told = told_the_dose(equalised_name(config.proposed))
    peers, filters = ([arm.name for arm in config.all_arms if isinstance(arm, kind)] for kind in (PeerArm, ClassicalArm))
    others = best_of(results, peers), best_of(results, filters)
    shown = (REFERENCE, INPUT, *others, CONVOLUTION, SPATIAL, config.proposed, told)
    methods = [method for method in all_methods(config) if method.arm.name in shown]
    facts = {method: read_json(method.folder(study) / "method.json") for method in methods}
    crops = [
        replace(crop, images={name: crop.images[name] for name in shown if name in crop.images})
        for crop in study_crops(config, methods, facts, main, study)
    ]
    crop_figure(crops).savefig(path, dpi=110, pil_kwargs={"quality": 88})


def best_of(results: Mapping[str, Any], names: Iterable[str]) -> str:
    """The one with the highest mean PSNR."""
    return max(names, key=lambda name: float(results["measures"][name][PSNR]["mean"]))


def document(
    results: Mapping[str, Any],
    provenance: Mapping[str, Any],
    real: Mapping[str, Any] | None,
    gap: Mapping[str, Any] | None,
    *,
    crops: str | None,
) -> str:
    """The page; `crops` is where the picture of slices lies, if there is one."""
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
            *(signed(one["gain_db"].get(name), 2) for name in shown_of(results)),
        )
        for one in results["generalisation"]
    ]
    parts = [
        "# Results",
        "This page is generated: `python tools/results.py STUDY --real docs/data/real-pairs.json --gap docs/data/domain-gap.json "
        f"--bench BENCH`. No figure in its tables was typed by hand. The paper is [{PAPER[0]}]({PAPER[1]}).",
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
        "A verdict is what the estimate says, and not certain where its interval or the tests do not bear it out; rows that ask "
        "for no slice, or never, tell of the slices that were measured, and no test stands behind them. "
        "Differences are the proposed network less the other, mean over patients, with 95 % interval over patients (BCa), p of "
        "Wilcoxon's test after Holm, and the interval over patients and seeds.",
        "## The paper's claims",
        table(
            ("claim", "verdict", "found", "why"),
            [
                (
                    one["claim"],
                    f"**{one['verdict']}** {one['reach']}".strip(),
                    one["found"],
                    next(why for key, why in WHY.items() if one["claim"].startswith(key)),
                )
                for one in results["claims"]
            ],
        ),
        *([] if crops is None else [f"![Test slices under some of the methods, and each less the normal dose]({crops})", CROPS]),
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
        "All saw the same number of patches. For networks of others that is far fewer than they were published with: how they "
        "stand after a long training is another question, which this page does not answer. The learning rates of RED-CNN and "
        "CTformer were chosen in short trainings on validation pairs, ResNet's was not "
        "([lab note 004](lab/004-rates-of-others.md)).",
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
                low, high = (signed(gain[end], 2) for end in ("low", "high"))
                text += f"<br>{signed(gain['gain'], 2)} [{low}, {high}]"
            cells.append(text)
        rows.append((name, *cells))
    looked = {one["n_trainings"] for each in results["detectability"].values() for one in each}
    of_trainings = "Of each network the first training was looked at." if looked == {1} else "Means over the trainings."
    if missing := [name for name in shown_of(results) if name not in results["detectability"]]:
        of_trainings += f" Not looked at yet: {', '.join(missing)}."
    return [
        "## Can a lesion be found?",
        "d′ of lesions inserted into the low dose, and below it what it is above the low dose's in the same patients, with 95 % "
        "interval (jackknife over patients). The CHO undoes what correlations of noise its channels show it and asks what "
        "information is left. The NPWE cannot, as readers hardly can: noise that the eye sees hides lesions, smoothing helps. A "
        f"gain there alone proves no better image. {of_trainings}",
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
        "(`benchmarks/real_pairs.py`); means over slices. No pixel of theirs was trained on, but the simulator's kernels and "
        "scanner constants were [fitted to them](physics.md). Energy, coherence: above 0.4 Nyquist, whole body.",
        table(("kernel", "image", *(label for label, _ in REAL_COLUMNS.values())), rows),
    ]


def contender_goals(results: Mapping[str, Any]) -> list[str]:
    """The same table for the contender, if there is one."""
    if not results.get("contender"):
        return []
    turned = dict(results) | results["contender"]
    return [f"The contender beyond the paper, **{turned['proposed']}**:", goal_table(goals(turned))]


def real_goals_part(real: Mapping[str, Any] | None, gap: Mapping[str, Any] | None) -> list[str]:
    """The tables of what was found on real pairs."""
    parts = []
    if real is not None:
        parts += [
            "What ships, on real pairs of low and normal dose that it was not trained on (the simulator was fitted to them):",
            goal_table(real_goals(real)),
        ]
    if gap is not None:
        parts += [
            "The domain gap: the same network trained on real pairs, and on pairs simulated from their normal dose, and tested on "
            "the patient left out (of the training, not of those that the simulator was fitted to):",
            goal_table([gap_goal(gap)]),
        ]
    return parts


def shown_of(results: Mapping[str, Any]) -> list[str]:
    """Methods of the table of conditions: the trained and the tuned ones."""
    return list(dict.fromkeys(one["name"] for one in results["methods"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--gap", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    results = json.loads((arguments.study / "results.json").read_text())
    provenance = json.loads((arguments.study / "provenance.json").read_text())
    real, gap = (json.loads(path.read_text()) if path else None for path in (arguments.real, arguments.gap))
    (arguments.out.parent / "images").mkdir(parents=True, exist_ok=True)
    draw_curves(results, arguments.out.parent / "images" / "results-curves.png")
    crops = None if arguments.bench is None else "images/results-crops.jpg"
    if crops is not None:
        draw_crops(arguments.study, results, arguments.bench, arguments.out.parent / crops)
    write_whole(arguments.out, document(results, provenance, real, gap, crops=crops))
    print(f"{arguments.out}: {len(results['measures'])} methods, {results['splits']['test']['slices']} test slices")


if __name__ == "__main__":
    main()
