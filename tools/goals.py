"""What was aimed at, what came out, and whether that reaches it: the table of goals of docs/results.md.

A verdict is what the estimate says; "not certain" where its interval, or the two tests of a comparison, do not bear it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finegrain.errors import DataError
from finegrain.evaluate.stats import ALPHA, RelativeImprovement, compare_paired, relative_improvement
from finegrain.study.images import equalised_name, told_the_dose

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
"""Measures of the table of every method: heading, and digits after the point."""
REAL_COLUMNS = {
    PSNR: COLUMNS[PSNR],
    SSIM: COLUMNS[SSIM],
    "hf_ratio[full]": ("HF energy ratio", 2),
    "hf_coherence[full]": ("coherence", 3),
    "texture_index": ("texture index", 3),
    "hu_bias[soft]": ("HU bias, soft tissue", 2),
}
"""The same of the table of real pairs."""
TISSUES = {"soft": 1.0, "fat": 1.0, "lung": 5.0, "bone": 5.0}
"""HU by which the mean CT number of a tissue may be off."""
PAPER_GAIN_DB, PAPER_TEXTURE_GAIN = 0.7, 0.14
FULL_ENERGY, MOST_COST_DB, MOST_GAP_DB, OVER_BM3D_DB, PEER_SHARE = (0.97, 1.03), 0.05, 0.3, 0.8, 30
"""What was aimed at; see the table of goals."""

BM3D = "bm3d, oracle σ"
"""Of the real pairs."""
CONVOLUTION, ATTENTION, SPATIAL = "convolution only", "attention only", "hybrid, spatial loss"
PEER, LARGE = "RED-CNN", "size b, dual-domain loss, geometric mean"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int) -> str:
    """With a true minus; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """The same with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def difference(results: Mapping[str, Any], key: str, name: str, digits: int) -> str:
    """The proposed network less another, with interval, p, and the interval that knows of the seeds."""
    found = results["comparisons"][key][name]
    low, high, _ = found["interval"]
    text = f"{signed(found['mean'], digits)} [{signed(low, digits)}, {signed(high, digits)}]"
    if found["holm_p"] is not None and math.isfinite(found["holm_p"]):
        text += f", p = {found['holm_p']:.2g}"
    seeds = results["over_seeds"].get(key, {}).get(name)
    if seeds:
        text += f"; over seeds [{signed(seeds['both_low'], digits)}, {signed(seeds['both_high'], digits)}]"
    return text


def costs_above_floor(results: Mapping[str, Any], alone: str, equalised: str) -> NDArray[np.float64]:
    """What full energy costs in the band above the floor 10·log10(2 / (1 + R)), in dB, patient by patient.

    Error energy over reference energy is r + 1 − 2 R √r for an energy ratio r and a coherence R.
    """
    excess = []
    for patient, coherence in results["per_patient"][alone][COHERENCE].items():
        errors = []
        for name in (alone, equalised):
            ratio, agreement = (results["per_patient"][name][key][patient] for key in (RATIO, COHERENCE))
            errors.append(ratio + 1 - 2 * agreement * math.sqrt(ratio))
        excess.append(10 * math.log10(errors[1] / errors[0]) - 10 * math.log10(2 / (1 + coherence)))
    known = np.array(excess)
    return known[np.isfinite(known)]


def t_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean over patients."""
    reach = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    return mean - reach, mean + reach


class Goal(NamedTuple):
    """A line of the table of goals: what was aimed at, what came out, and whether that reaches it."""

    what: str
    goal: str
    measured: str
    verdict: str

    @classmethod
    def judged(cls, what: str, goal: str, measured: str, *, reached: bool, certain: bool = True) -> Goal:
        """`reached` is what the estimate says, `certain` whether patients of another draw would hardly say otherwise."""
        return cls(what, goal, measured, ("reached" if reached else "**missed**") + ("" if certain else ", not certain"))

    @classmethod
    def at_most(cls, what: str, goal: str, measured: str, *, value: float, interval: tuple[float, float], most: float) -> Goal:
        """Reached where the value is at most `most`; certain where its interval does not hold it."""
        low, high = interval
        return cls.judged(what, goal, measured, reached=value <= most, certain=high <= most or low > most)


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """What was aimed at, and what came out of the network that `proposed` names."""
    parts = (_fidelity_goals, _texture_goals, _energy_goals, _coherence_goals, _lesion_goals, _bias_goals, _use_goals)
    return [goal for part in parts for goal in part(results)]


def is_significant(found: Mapping[str, Any]) -> bool:
    """Both tests of a comparison, as everywhere: Wilcoxon after Holm and paired t."""
    return all(found[key] is not None and found[key] < ALPHA for key in ("holm_p", "t_p"))


def _fidelity_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    for name in (CONVOLUTION, ATTENTION):
        found = results["comparisons"][PSNR][name]
        (low, high, _), what = found["interval"], f"PSNR [dB] against {name}"
        least = PAPER_GAIN_DB
        certain = (low >= least and is_significant(found)) or high < least
        text = difference(results, PSNR, name, 3)
        yield Goal.judged(what, "+0.7 to +1.1 dB (paper)", text, reached=found["mean"] >= least, certain=certain)
    found = results["comparisons"][PSNR][SPATIAL]
    text = difference(results, PSNR, SPATIAL, 3)
    yield Goal.judged(f"PSNR [dB] against {SPATIAL}", "higher", text, reached=found["mean"] > 0, certain=is_significant(found))
    if PEER in results["measures"]:
        share, tested = macs_over(results, PEER, results["proposed"]), results["equivalence"][PEER]
        low, high, margin = tested["interval_low"], tested["interval_high"], tested["margin"]
        text = f"{difference(results, PSNR, PEER, 3)}; 90 % interval {signed(low, 3)} to {signed(high, 3)} dB; "
        text += f"1/{share:.0f} of its MACs; {trainings(results, results['proposed'])} against {trainings(results, PEER)}"
        goal = f"no worse by {margin:g} dB at ≤ 1/30 of its MACs"
        reached = tested["mean"] > -margin and share >= PEER_SHARE
        yield Goal.judged(f"PSNR [dB] against {PEER}", goal, text, reached=reached, certain=low > -margin or high <= -margin)


def macs_over(results: Mapping[str, Any], one: str, other: str) -> float:
    """Multiplications of a method over those of another."""
    macs = {each["name"]: each.get("macs_per_512") for each in results["methods"]}
    return macs[one] / macs[other]


def trainings(results: Mapping[str, Any], name: str) -> str:
    """How often a network was trained."""
    n = sum(one["name"] == name for one in results["methods"])
    return "one training" if n == 1 else f"{n} trainings"


def large_goals(results: Mapping[str, Any]) -> list[str]:
    """The same of the network of size b against the peer: neither is compared with all others."""
    if not {PEER, LARGE} <= results["measures"].keys():
        return []
    ours, theirs = (results["per_patient"][name][PSNR] for name in (LARGE, PEER))
    found = compare_paired(*([values[patient] for patient in sorted(ours)] for values in (ours, theirs)))
    low, high = (signed(value, 3) for value in (found.interval_low, found.interval_high))
    text = f"{signed(found.mean, 3)} [{low}, {high}], p = {found.wilcoxon_p:.2g} (of this comparison alone); "
    text += f"1/{macs_over(results, PEER, LARGE):.0f} of its MACs; {trainings(results, LARGE)} against {trainings(results, PEER)}"
    goal = Goal.judged(f"PSNR [dB] against {PEER}", "better", text, reached=found.mean > 0, certain=found.is_significant())
    return [f"**{LARGE}**, which is larger than the others of ours:", goal_table([goal])]


def improvement(results: Mapping[str, Any], key: str, name: str, other: str) -> RelativeImprovement:
    """By what part a measure of a method is lower than another's, over the patients that both have.

    Raises: DataError if one of them is not positive.
    """
    ours, theirs = (results["per_patient"][each][key] for each in (name, other))
    patients = sorted(ours.keys() & theirs.keys())
    return relative_improvement([ours[patient] for patient in patients], [theirs[patient] for patient in patients])


def _texture_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    """Of the network alone, as the paper claims it, and of what is read: with its equaliser, against networks without one."""
    proposed = results["proposed"]
    for name, least in {CONVOLUTION: PAPER_TEXTURE_GAIN, ATTENTION: PAPER_TEXTURE_GAIN, SPATIAL: 0.0}.items():
        absolute = f"difference {difference(results, 'texture_index', name, 4)}"
        yield _texture_goal(results, f"texture index against {name}", (proposed, name), least=least, absolute=absolute)
    for equalised in equalised_of(proposed):
        for name in (CONVOLUTION, ATTENTION):
            what = f"texture index, {equalised}, against {name}"
            yield _texture_goal(results, what, (equalised, name), least=PAPER_TEXTURE_GAIN)


def _texture_goal(results: Mapping[str, Any], what: str, pair: tuple[str, str], *, least: float, absolute: str = "") -> Goal:
    goal = f"≥ {100 * least:.0f} % better" if least else "better"
    try:
        gain = improvement(results, "texture_index", *pair)
    except DataError:  # an index of 0: nothing to be a part of
        return Goal(what, goal, absolute or "–", "–")
    certain = gain.interval_low >= least or gain.interval_high < least
    text = f"{gain.in_words()}; {absolute}" if absolute else gain.in_words()
    return Goal.judged(what, goal, text, reached=gain.value >= least, certain=certain)


def _energy_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    proposed = results["proposed"]
    least, most = FULL_ENERGY
    for name in (proposed, *equalised_of(proposed)):
        found = {dose: each[name][RATIO] for dose, each in results["doses"].items() if RATIO in each.get(name, {})}
        text = ", ".join(f"{number(mean, 3)} at {dose}" for dose, (mean, _, _) in found.items())
        intervals = [t_interval(*one) for one in found.values()]
        inside = all(least <= low and high <= most for low, high in intervals)
        outside = any(high < least or low > most for low, high in intervals)
        reached = bool(found) and all(least <= mean <= most for mean, _, _ in found.values())
        goal = f"{least:g} to {most:g}"
        yield Goal.judged(f"HF energy ratio, fine texture, {name}", goal, text, reached=reached, certain=inside or outside)
    for name in equalised_of(proposed):
        excess = costs_above_floor(results, proposed, name)
        mean, sd = float(excess.mean()), float(excess.std(ddof=1))
        interval = t_interval(mean, sd, len(excess))
        text = f"{signed(mean, 3)} dB [{signed(interval[0], 3)}, {signed(interval[1], 3)}]"
        text += f" at an energy ratio of {number(results['measures'][name][RATIO]['mean'], 3)}"
        what = f"cost of full energy in the band above 10·log10(2/(1+R)), {name}"
        yield Goal.at_most(what, f"≤ {MOST_COST_DB:g} dB", text, value=mean, interval=interval, most=MOST_COST_DB)
    for name in equalised_of(proposed):
        gain = improvement(results, "nps_log_distance", name, SPATIAL)
        share, interval = 1 - gain.value, (1 - gain.interval_high, 1 - gain.interval_low)
        text = f"{number(share, 2)} [{number(interval[0], 2)}, {number(interval[1], 2)}]"
        what = f"NPS log-distance, {name}, over that of {SPATIAL}"
        yield Goal.at_most(what, "≤ 0.5", text, value=share, interval=interval, most=0.5)


def equalised_of(name: str) -> tuple[str, str]:
    """What a network is called with its equaliser, and with one that is told the dose."""
    equalised = equalised_name(name)
    return equalised, told_the_dose(equalised)


def _coherence_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    """Above every other method, blend and equaliser, but for our own of another size."""
    proposed = results["proposed"]
    mean = {name: each[TRUTH]["mean"] for name, each in results["measures"].items() if TRUTH in each and name != LARGE}
    ours = mean.pop(proposed)
    best = max(mean, key=lambda name: mean[name])
    text = f"{number(ours, 4)}; best other: {best}, {number(mean[best], 4)}"
    certain = best in results["comparisons"][TRUTH] and is_significant(results["comparisons"][TRUTH][best])
    what = f"coherence with truth, {proposed}" + (" (size b is not asked)" if LARGE in results["measures"] else "")
    yield Goal.judged(what, "above every comparator", text, reached=ours > mean[best], certain=certain)


def _lesion_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    before = {(one["observer"], one["lesion"]): one for one in results["detectability"].get("low dose", [])}
    above: dict[str, list[str]] = {}
    for one in results["detectability"].get(results["proposed"], []):
        observer, lesion, gain = one["observer"], one["lesion"], one["gain"]
        text = f"{number(one['d_prime'], 2)}, input {number(before[observer, lesion]['d_prime'], 2)}"
        what, goal = f"d′ to the {observer}, {lesion}", "not below the input's"
        larger = above.setdefault(observer, [])
        if gain is None:
            yield Goal(what, goal, text, "–")
            continue
        text += f": {signed(gain['gain'], 2)} [{signed(gain['low'], 2)}, {signed(gain['high'], 2)}]"
        certain = gain["holm_p"] < ALPHA
        yield Goal.judged(what, goal, f"{text}, p = {gain['holm_p']:.2g}", reached=gain["gain"] >= 0, certain=certain)
        if certain and gain["gain"] > 0:
            larger.append(lesion)
    for observer, lesions in above.items():
        what, text = f"d′ to the {observer} above the input's", "; ".join(lesions) or "none"
        yield Goal.judged(what, "for one size or more", text, reached=bool(lesions))


def _bias_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    measures, proposed = results["measures"], results["proposed"]
    for tissue, allowed in TISSUES.items():
        key = f"hu_bias[{tissue}]"
        if key in measures[proposed]:
            bias, sd, n = (measures[proposed][key][what] for what in ("mean", "sd", "n_patients"))
            low, high = t_interval(bias, sd, n)
            text = f"{signed(bias, 2)} HU [{signed(low, 2)}, {signed(high, 2)}] (input "
            text += f"{signed(measures['low dose'][key]['mean'], 2)})"
            certain = (-allowed <= low and high <= allowed) or high < -allowed or low > allowed
            what, goal = f"HU bias, {tissue}", f"≤ {allowed:g} HU"
            yield Goal.judged(what, goal, text, reached=abs(bias) <= allowed, certain=certain)


def _use_goals(results: Mapping[str, Any]) -> Iterable[Goal]:
    for one in results["generalisation"]:
        if one["factor"] == "other pairs":
            gain, least = (one[key][results["proposed"]] for key in ("gain_db", "least_gain_db"))
            text = f"{signed(gain, 2)} dB; least {signed(least, 2)} dB, {one['slices']} slices"
            yield Goal.judged(f"gain over the input, {one['value']}", "never worse", text, reached=least >= 0)


def real_goals(real: Mapping[str, Any]) -> Iterable[Goal]:
    """The same of what ships, on real pairs."""
    for kernel, found in real["kernels"].items():
        for name in (name for name in found if name.startswith("texture ")):
            what, least = f"PSNR on real pairs, {kernel}, {real['model']}, {name}", found["least_gain_db"][name]
            text = f"{signed(found[name][PSNR] - found['quarter dose'][PSNR], 2)} dB, least "
            text += f"{signed(least, 2)} dB, {found['slices']} slices"
            yield Goal.judged(what, "no slice below the input", text, reached=least >= 0)
        if BM3D not in found:
            yield Goal(
                f"the same, {kernel}, above {BM3D}", f"≥ +{OVER_BM3D_DB:g} dB" if kernel == "B30f" else "–", "–", "not measured"
            )
            continue
        patients = found.get("patients", {}).values()
        for name in (name for name in found if name.startswith("texture ")):
            over, each = found[name][PSNR] - found[BM3D][PSNR], np.array([one[name] - one[BM3D] for one in patients])
            what, text = f"PSNR on real pairs, {kernel}, {name}, above {BM3D}", f"{signed(over, 2)} dB"
            text += f"; {range_of(each, 2)}" if len(each) else ""
            if kernel == "B30f":  # of slices, as it was asked; patients are so few that all of them must say the same
                certain = bool(len(each) and np.all((each >= OVER_BM3D_DB) == (over >= OVER_BM3D_DB)))
                yield Goal.judged(what, f"≥ +{OVER_BM3D_DB:g} dB", text, reached=over >= OVER_BM3D_DB, certain=certain)
            else:
                yield Goal(what, "–", text, "–")


def range_of(of_patients: NDArray[np.float64], digits: int) -> str:
    """Least and most of so few patients that an interval says little."""
    least, most = signed(of_patients.min(), digits), signed(of_patients.max(), digits)
    return f"patients' means from {least} to {most} dB, {len(of_patients)} patients"


def gap_goal(gap: Mapping[str, Any]) -> Goal:
    """What training on simulated instead of real pairs costs, patient by patient."""
    lost: dict[str, list[float]] = {}
    for one in gap["slices"]:
        lost.setdefault(one["patient"], []).append(one["real"] - one["simulated"])
    of_patients = np.array([np.mean(each) for each in lost.values()])
    text = f"{signed(of_patients.mean(), 3)} dB, mean over patients; {range_of(of_patients, 3)}, {len(gap['slices'])} slices"
    interval = t_interval(float(of_patients.mean()), float(of_patients.std(ddof=1)), len(of_patients))
    what = "PSNR trained on real pairs less that trained on simulated ones"
    goal = f"≤ {MOST_GAP_DB:g} dB"
    return Goal.at_most(what, goal, text, value=float(of_patients.mean()), interval=interval, most=MOST_GAP_DB)


def goal_table(rows: Iterable[Goal]) -> str:
    """Goals, and whether they were reached."""
    return table(("what", "goal", "measured", ""), rows)
