"""The paper's claims, one by one, each with what this study found and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finegrain.config import StudyConfig
from finegrain.errors import DataError
from finegrain.evaluate.stats import PairedComparison, relative_improvement

Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method → metric → patient → value."""

OverSeeds = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Metric → comparator → `SeededComparison.to_dict`; nothing for a single seed."""

LEAST_GAIN_DB, LEAST_TEXTURE_GAIN = 0.7, 0.08
"""Of the ranges that the paper claims, 0.7 to 1.1 dB and 8 to 14 %, the lower ends."""


def comparators(config: StudyConfig) -> list[str]:
    """The networks of ours that the proposed one is compared with in the paper's manner: one family for Holm."""
    return [arm.name for arm in config.own_arms if arm.name != config.proposed]


def judge_claims(
    config: StudyConfig, found: Found, comparisons: Mapping[str, Mapping[str, PairedComparison]], over_seeds: OverSeeds
) -> list[dict[str, str]]:
    """Each claim of the paper: claim, found, verdict and why.

    `comparisons`: metric → comparator → proposed − comparator; `over_seeds` the same with the luck of the trainings, if known.
    """
    psnr, ssim = (f"{name}[{config.protocols[0]}]" for name in ("psnr_db", "ssim"))
    others = [arm for arm in config.own_arms if arm.name != config.proposed]
    single = [arm.name for arm in others if arm.family != "hybrid"]
    spatial = [arm.name for arm in others if arm.loss.weight == 0]

    def judged(claim: str, key: str, name: str, *, least: float, unit: str, sign: int = 1, digits: int = 3) -> dict[str, str]:
        seeds = over_seeds.get(key, {}).get(name)
        return judge(f"{claim} {name}", comparisons[key][name], least=least, unit=unit, sign=sign, digits=digits, seeds=seeds)

    energy = "hf_consistency[fine_texture]", " in consistency min(r, 1/r), fine texture"
    claims = [judged("PSNR is 0.7 to 1.1 dB higher than", psnr, name, least=LEAST_GAIN_DB, unit=" dB") for name in single]
    claims += [judged("SSIM is higher than", ssim, name, least=0.0, unit="", digits=4) for name in single]
    claims += [
        judged("High-frequency energy is closer to the normal dose than", energy[0], name, least=0.0, unit=energy[1])
        for name in spatial
    ]
    for name in single:
        least, gain = _texture_gain(found[config.proposed]["texture_index"], found[name]["texture_index"])
        claim = judged(
            "Texture measures are 8 to 14 % better than", "texture_index", name, least=least, unit=" in the texture index", sign=-1
        )
        claims.append(claim | {"found": f"{gain}{claim['found']}"})
    return claims


def _texture_gain(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, str]:
    """What 8 % of the other's mean texture index is, and the gain in words."""
    patients = sorted(set(ours) & set(theirs))
    known = [theirs[patient] for patient in patients if math.isfinite(theirs[patient])]
    least = LEAST_TEXTURE_GAIN * sum(known) / len(known) if known else math.nan
    try:
        gain = relative_improvement([ours[patient] for patient in patients], [theirs[patient] for patient in patients]).in_words()
    except DataError:  # an index of 0: nothing to be a part of
        return least, ""
    return least, f"{gain}; "


def in_words(compared: PairedComparison, *, unit: str, digits: int = 3) -> str:
    """The mean difference and its interval."""
    low, high, name = compared.interval()
    return f"{_signed(compared.mean, digits)}{unit}, 95 % interval ({name}) {_bracket(low, high, digits)}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _bracket(low: float, high: float, digits: int) -> str:
    return f"[{_signed(low, digits)}, {_signed(high, digits)}]"


def judge(
    claim: str,
    compared: PairedComparison,
    *,
    least: float,
    unit: str,
    sign: int = 1,
    digits: int = 3,
    seeds: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """One claim against one comparison. `sign` −1 where a lower value is the better one; `least` is the gain that is claimed.

    "cannot be said": too few patients to tell, or a difference that is not significant and may yet be as large as claimed. `seeds`,
    a `SeededComparison.to_dict`, has the interval over patients and seeds; where there is none, or where it holds another verdict,
    "reach" tells that this one is of these trainings, not of the method.
    """
    low, high, _ = compared.interval()
    gain = sign * compared.mean
    largest = max(sign * low, sign * high)
    if not compared.can_reach():
        verdict = "cannot be said"
    elif not compared.is_significant():
        verdict = "cannot be said" if 0 < least <= largest else "not reproduced"
    elif gain < 0:
        verdict = "opposite"
    else:
        verdict = "reproduced" if gain >= least else "not reproduced"
    text, of_method = in_words(compared, unit=unit, digits=digits), verdict == "cannot be said"
    if seeds is not None and seeds["both_low"] is not None:
        low, high = sorted(sign * seeds[end] for end in ("both_low", "both_high"))
        text += f"; over patients and {seeds['n_seeds']} seeds {_bracket(seeds['both_low'], seeds['both_high'], digits)}"
        of_method |= {"reproduced": low > 0, "opposite": high < 0}.get(verdict, high < least or high <= 0)
    reach = "" if of_method else "in these trainings"
    return {"claim": claim, "found": text, "verdict": verdict, "reach": reach, "why": compared.verdict()}


def plain(comparisons: Mapping[str, Mapping[str, PairedComparison]]) -> dict[str, dict[str, Any]]:
    """Comparisons fit for JSON."""
    return {key: {name: compared.to_dict() for name, compared in each.items()} for key, each in comparisons.items()}
