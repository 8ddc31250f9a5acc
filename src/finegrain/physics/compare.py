"""Pass or fail: each check against its own limits, against the scan before, against an earlier acceptance run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finegrain.errors import DataError
from finegrain.physics.checks import QUANTITIES, WATER, Check, Measured
from finegrain.physics.geometry import Rod
from finegrain.physics.settings import Limits, Tolerances
from finegrain.report.words import number
from finegrain.scan.privacy import shown

Against = Literal["limit", "before", "baseline"]

FORMAT = "finegrain-physics 1"
"""What the first line of a results file says; the number changes when an old file can no longer be compared."""

SAME_CONDITIONS = ("ConvolutionKernel", "KVP")
"""Header facts without which a scan cannot be compared with an acceptance run, where both tell them."""

SAME_MAS = 0.05
"""Share by which mAs may differ from the acceptance run before a note says so; ours: noise then differs by 2.5 %."""

SAME_ROD_HU, SAME_ROD_SHARE = 20.0, 0.25
"""How far a rod's CT number and size may lie from those of the acceptance run and still be the same rod; ours."""


@dataclass(frozen=True)
class Verdict:
    """Whether one check of one scan is within what is allowed.

    Attributes:
        scan, key: of the check. against: what it was held to. reference: the value there; NaN for a limit.
        low, high: what is allowed, in the unit of the check; infinite where a side is open.
        passed: whether the value lies within.
        certain: whether its interval does too, or lies wholly outside; None where no interval is known.
        source: where the tolerance comes from.
    """

    scan: str
    key: str
    against: Against
    reference: float
    low: float
    high: float
    passed: bool
    certain: bool | None
    source: str


@dataclass(frozen=True)
class Earlier:
    """One scan of an acceptance run, as read from its results: conditions, rods by name, and checks by key."""

    name: str
    pixel_mm: float
    thickness_mm: float
    facts: Mapping[str, Any]
    rods: Mapping[str, tuple[float, float]]
    checks: Mapping[str, Check]


def limit_verdicts(measured: Measured, limits: Limits, rods: Sequence[Rod]) -> Iterator[Verdict]:
    """Each check that has a limit of its own: CT number of the plain material and of rods with an expected range, uniformity."""
    expected = {rod.name: rod.expected_hu for rod in rods if rod.expected_hu}
    for check in measured.checks:
        if check.quantity == "ct_number" and check.place == WATER and limits.water_hu:
            yield _verdict(measured, check, "limit", math.nan, limits.water_hu, 0.0, limits.source)
        elif check.quantity == "ct_number" and check.place in expected:
            yield _verdict(measured, check, "limit", math.nan, expected[check.place], 0.0, "the settings")
        elif check.quantity == "uniformity" and limits.uniformity_hu:
            yield _verdict(measured, check, "limit", math.nan, (-limits.uniformity_hu, limits.uniformity_hu), 0.0, limits.source)


def change_verdicts(
    measured: Measured, reference: Mapping[str, Check], tolerances: Tolerances, against: Against
) -> Iterator[Verdict]:
    """Each check that the reference has too and that has a tolerance.

    The uncertainty is that of both, taken as independent: of the same scan before and after it is less.
    """
    for check in measured.checks:
        other = reference.get(check.key)
        tolerance = getattr(tolerances, check.quantity)
        if other is None or not math.isfinite(other.value) or not _of_one_rod(check, other):
            continue
        allowed = tolerance.limits(other.value)
        if allowed != (-math.inf, math.inf):
            yield _verdict(measured, check, against, other.value, allowed, _half_width(other), tolerance.source)


def incomparable(measured: Measured, reference: Mapping[str, Check], tolerances: Tolerances) -> list[str]:
    """Keys that the reference has and a tolerance is for, but that could not be measured in this scan."""
    here = {check.key for check in measured.checks if check.key not in reference or _of_one_rod(check, reference[check.key])}
    judged = [key for key, c in reference.items() if getattr(tolerances, c.quantity).limits(c.value) != (-math.inf, math.inf)]
    return [key for key in judged if key not in here]


def _of_one_rod(check: Check, other: Check) -> bool:
    """Whether d′ NPW, whose warning names the rod that gave the TTF, is by the same rod in both; of other checks always."""
    return check.quantity != "d_prime_npw" or check.warnings == other.warnings


def _half_width(check: Check) -> float:
    return (check.high - check.low) / 2


def _verdict(
    measured: Measured,
    check: Check,
    against: Against,
    reference: float,
    allowed: tuple[float, float],
    reference_half_width: float,
    source: str,
) -> Verdict:
    low, high = allowed
    reach = math.hypot(_half_width(check), reference_half_width)
    passed = low <= check.value <= high
    certain: bool | None = None
    if math.isfinite(reach):
        least, most = check.value - reach, check.value + reach
        certain = (low <= least and most <= high) if passed else (most < low or least > high)
    return Verdict(measured.scan.name, check.key, against, reference, low, high, passed, certain, source)


def summary_of(verdicts: Sequence[Verdict]) -> str:
    """One sentence: how many fail, and which checks of which scan."""
    if not verdicts:
        return "Nothing was compared: these are values alone."
    failed = [verdict for verdict in verdicts if not verdict.passed]
    unsure = sum(verdict.certain is False for verdict in verdicts)
    close = f"; {unsure} {'is' if unsure == 1 else 'are'} within the uncertainty of a limit" if unsure else ""
    if not failed:
        return f"All {len(verdicts)} comparisons pass{close}."
    several = len({verdict.scan for verdict in verdicts}) > 1
    parts = []
    for scan in dict.fromkeys(verdict.scan for verdict in failed):
        names = Counter(QUANTITIES[verdict.key.partition("[")[0]].label for verdict in failed if verdict.scan == scan)
        which = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in names.items())
        parts.append(f"in {scan}: {which}" if several else f": {which}")
    fail = "fails" if len(failed) == 1 else "fail"
    return f"{len(failed)} of {len(verdicts)} comparisons {fail}{', ' if several else ''}{'; '.join(parts)}{close}."


def allowed_text(verdict: Verdict, decimals: int, value: float) -> str:
    """What is allowed, in words: "9.50 to 10.50", "at least 0.312", "at most 10.50".

    Where a value that fails would look like the limit that it misses, both are told in full: "0.2649 to 0.3530, not 0.2646".
    """
    missed = verdict.low if value < verdict.low else verdict.high
    if not verdict.passed and number(value, decimals) == number(missed, decimals):
        finer = next(n for n in range(decimals, 16) if number(value, n) != number(missed, n) or n == 15)
        return f"{_span(verdict, finer)}, not {number(value, finer)}"
    return _span(verdict, decimals)


def _span(verdict: Verdict, decimals: int) -> str:
    low, high = (number(value, decimals) for value in (verdict.low, verdict.high))
    if math.isinf(verdict.low):
        return f"at most {high}"
    return f"at least {low}" if math.isinf(verdict.high) else f"{low} to {high}"


# --- acceptance run ----------------------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> list[Earlier]:
    """The scans of an earlier run's physics.json. Raises: DataError if it is not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the baseline {path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is not JSON; give the physics.json of an earlier run") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path} is no result of finegrain physics of this format; give the physics.json of an earlier run")
    try:
        rods = {rod["name"]: (float(rod["hu"]), float(rod["diameter_mm"])) for rod in data["phantom"]["rods"]}
        scans = [_earlier(one, rods) for one in data["scans"]]
    except (KeyError, TypeError, ValueError):
        scans = []
    if not scans or not all(diameter_mm > 0 for _, diameter_mm in rods.values()):
        raise DataError(f"{path} is damaged: a scan, a check or a rod is not whole; make the acceptance run again")
    return scans


def _earlier(scan: Mapping[str, Any], rods: Mapping[str, tuple[float, float]]) -> Earlier:
    checks = []
    for c in scan["checks"]:
        value, low, high = (math.nan if c[key] is None else float(c[key]) for key in ("value", "low", "high"))
        if c["quantity"] in QUANTITIES:  # a later version may measure more
            checks.append(Check(c["quantity"], str(c["place"]), value, low, high, int(c["n"]), tuple(c["warnings"])))
    return Earlier(
        name=str(scan["name"]),
        pixel_mm=float(scan["pixel_mm"]),
        thickness_mm=float(scan["thickness_mm"]),
        facts=dict(scan["facts"]),
        rods=rods,
        checks={check.key: check for check in checks},
    )


def matching_baseline(name: str, baseline: Sequence[Earlier], *, is_first: bool) -> Earlier | None:
    """The scan of the acceptance run to compare with: that of the same name; for the first scan, its first."""
    return next((one for one in baseline if one.name == name), baseline[0] if is_first and baseline else None)


def refuse_other_conditions(measured: Measured, earlier: Earlier, rods: Sequence[Rod]) -> list[str]:
    """Notes on what differs a little. Raises: DataError if pixels, slices, kernel, tube voltage or rods are not the same."""
    scan = measured.scan
    for what, now, then in (("pixels", scan.pixel_mm, earlier.pixel_mm), ("slices", scan.thickness_mm, earlier.thickness_mm)):
        if not math.isclose(now, then, rel_tol=1e-2):
            raise DataError(f"the baseline has {what} of {then:.4g} mm, this scan {now:.4g} mm; scan as then")
    for fact in SAME_CONDITIONS:
        now_fact, then_fact = scan.facts.get(fact), earlier.facts.get(fact)
        if now_fact is not None and then_fact is not None and now_fact != then_fact:
            raise DataError(
                f"the baseline has {fact} {shown(then_fact)}, this scan {shown(now_fact)}; scan and reconstruct as then"
            )
    found = {rod.name: (rod.hu, 2 * rod.radius_mm) for rod in rods}
    if sorted(found) != sorted(earlier.rods):
        raise DataError(
            f"the baseline's phantom has {len(earlier.rods)} rods, this one {len(found)}, or they are named otherwise; scan "
            "the same phantom, or name its rods in the settings of both runs"
        )
    for name, (hu, diameter_mm) in found.items():
        then_hu, then_mm = earlier.rods[name]
        if abs(hu - then_hu) > SAME_ROD_HU + SAME_ROD_SHARE * abs(then_hu) or abs(diameter_mm / then_mm - 1) > SAME_ROD_SHARE:
            raise DataError(
                f"{name} is {hu:.0f} HU and {diameter_mm:.1f} mm wide, in the baseline {then_hu:.0f} HU and {then_mm:.1f} mm: not "
                "the same phantom; name the rods in the settings of both runs"
            )
    mas_now, mas_then = (facts.get("Exposure") for facts in (scan.facts, earlier.facts))
    if (
        isinstance(mas_now, int | float)
        and isinstance(mas_then, int | float)
        and mas_then > 0
        and abs(mas_now / mas_then - 1) > SAME_MAS
    ):
        return [f"the {scan.name} scan was made with {mas_now:g} mAs, the baseline with {mas_then:g}: their noise cannot be equal"]
    return []
