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

LEAST_GAIN_DB, LEAST_TEXTURE_GAIN = 0.7, 0.08
"""Of the ranges that the paper claims, 0.7 to 1.1 dB and 8 to 14 %, the lower ends."""


def comparators(config: StudyConfig) -> list[str]:
    """The networks of ours that the proposed one is compared with in the paper's manner: one family for Holm."""
    return [arm.name for arm in config.own_arms if arm.name != config.proposed]


def judge_claims(
    config: StudyConfig, found: Found, comparisons: Mapping[str, Mapping[str, PairedComparison]]
) -> list[dict[str, str]]:
    """Each claim of the paper: claim, found, verdict and why. `comparisons`: metric → comparator → proposed − comparator."""
    psnr, ssim = (f"{name}[{config.protocols[0]}]" for name in ("psnr_db", "ssim"))
    others = [arm for arm in config.own_arms if arm.name != config.proposed]
    single = [arm.name for arm in others if arm.family != "hybrid"]
    spatial = [arm.name for arm in others if arm.loss.weight == 0]
    claims = [
        judge(f"PSNR is 0.7 to 1.1 dB higher than {name}", comparisons[psnr][name], least=LEAST_GAIN_DB, unit=" dB")
        for name in single
    ]
    claims += [judge(f"SSIM is higher than {name}", comparisons[ssim][name], least=0.0, unit="") for name in single]
    claims += [
        judge(
            f"High-frequency energy is closer to the normal dose than {name}",
            comparisons["hf_consistency[fine_texture]"][name],
            least=0.0,
            unit=" in consistency min(r, 1/r), fine texture",
        )
        for name in spatial
    ]
    return claims + [_texture_claim(config.proposed, name, found, comparisons["texture_index"][name]) for name in single]


def _texture_claim(proposed: str, name: str, found: Found, compared: PairedComparison) -> dict[str, str]:
    """Texture is 8 to 14 % better: of the mean index, with an interval over patients."""
    ours, theirs = found[proposed]["texture_index"], found[name]["texture_index"]
    patients = sorted(set(ours) & set(theirs))
    known = [theirs[patient] for patient in patients if math.isfinite(theirs[patient])]
    least = LEAST_TEXTURE_GAIN * sum(known) / len(known) if known else math.nan
    claim = judge(
        f"Texture measures are 8 to 14 % better than {name}", compared, least=least, unit=" in the texture index", sign=-1
    )
    try:
        gain = relative_improvement([ours[patient] for patient in patients], [theirs[patient] for patient in patients]).in_words()
    except DataError:  # an index of 0: nothing to be a part of
        return claim
    return claim | {"found": f"{gain}; {claim['found']}"}


def in_words(compared: PairedComparison, *, unit: str) -> str:
    """The mean difference and its interval."""
    low, high, name = compared.interval()
    return f"{compared.mean:+.3f}{unit}, 95 % interval ({name}) [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def judge(claim: str, compared: PairedComparison, *, least: float, unit: str, sign: int = 1) -> dict[str, str]:
    """One claim against one comparison. `sign` −1 where a lower value is the better one; `least` is the gain that is claimed.

    "cannot be said": too few patients to tell, or a difference that is not significant and may yet be as large as claimed.
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
    return {"claim": claim, "found": in_words(compared, unit=unit), "verdict": verdict, "why": compared.verdict()}


def plain(comparisons: Mapping[str, Mapping[str, PairedComparison]]) -> dict[str, dict[str, Any]]:
    """Comparisons fit for JSON."""
    return {key: {name: compared.to_dict() for name, compared in each.items()} for key, each in comparisons.items()}
