"""All pairs of a build → keep, borderline or reject, and why; sees no image."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from finegrain.config import Config
from finegrain.hu import AIR_HU
from finegrain.pairs.qc.pictures import Pictures
from finegrain.pairs.qc.quality import PairQuality

Status = Literal["keep", "borderline", "reject"]
Reason = Literal[
    "empty", "coverage", "HU", "misaligned", "motion", "swapped", "noise", "spectrum", "streaks", "rings", "compressed", "duplicate"
]


class Limit(Config):
    """From where on a measure is borderline, and from where on the pair is rejected; the larger the worse."""

    borderline: float = Field(gt=0)
    reject: float = Field(gt=0)

    @model_validator(mode="after")
    def _rising(self) -> Limit:
        if self.borderline > self.reject:
            raise ValueError(f"a limit needs borderline ≤ reject, got {self.borderline} and {self.reject}")
        return self


def _limit(borderline: float, reject: float, description: str) -> Limit:
    found: Limit = Field(Limit(borderline=borderline, reject=reject), description=description)
    return found


class QcLimits(Config):
    """Limits of every check, set between good pairs and damaged ones on the tuning part of `benchmarks/qc.py`.

    What a description says of good pairs was measured on the 64 to 103 pairs of that part: real ones of quarter dose, simulated
    ones of a chest at 10 to 50 %, virtual patients. Of what it says nothing, the number is a default, taken from nowhere.
    """

    body_cm2: float = Field(
        30.0, ge=0, description="Area of the body in cm²: smaller ones are borderline, below a third of it there is none."
    )
    shift_px: Limit = _limit(0.1, 0.25, "Length of the shift. Good pairs 0.01 at most; a half pixel measures 0.5.")
    rotation_deg: Limit = _limit(0.1, 0.25, "Rotation. Good pairs 0.003 at most; one degree measures 0.6 and more.")
    motion_px: Limit = _limit(0.3, 0.5, "Local shift beyond its error. Good pairs 0.1 at most; 2.5 px locally mostly 0.5 and more.")
    edges: Limit = _limit(1.4, 1.7, "Difference at edges over that elsewhere. Good pairs 1.1 at most; a half pixel 2.5 and more.")
    swapped: Limit = _limit(3.0, 4.5, "Coarse difference over noise. Good pairs 1.1 at most; the next slice mostly 4 and more.")
    air_hu: Limit = _limit(9.0, 13.0, "Air of the normal dose above −1000 HU; below, it ends at −1024. Good pairs 8 at most.")
    bias_air_hu: Limit = _limit(25.0, 40.0, "Shift of air between the doses; noise that ends at −1024 HU makes 19.")
    fat_hu: Limit = _limit(11.0, 15.0, "Distance of fat from −100 HU. Good pairs 5.3 at most.")
    soft_hu: Limit = _limit(110.0, 140.0, "Distance of soft tissue from 60 HU; contrast agent makes 65.")
    bias_hu: Limit = _limit(6.0, 12.0, "Shift of soft tissue or fat between the doses. Good pairs 1.8 at most.")
    slope: Limit = _limit(
        0.04, 0.06, "Distance of the slope of one dose on the other from 1. Good pairs 0.016 at most; few photons in hips 0.05."
    )
    noise: Limit = _limit(
        0.22,
        0.3,
        "Distance of measured from stated dose in powers of the stated one, or of a quarter; beside the usual one of its group if "
        "that is nearer. Good pairs 0.26 at most, 0.16 beside their group; twice the dose or half of it 0.5 at a quarter, 0.3 at a "
        "tenth.",
    )
    spectrum: Limit = _limit(1.3, 1.5, "Factor between the mean frequencies of the noise of both. Good pairs 1.26 at most.")
    sharpness: Limit = _limit(
        0.05, 0.1, "Distance of the sharpness from 1, beyond its error. Good pairs 0.022 at most; another kernel 0.1 and more."
    )
    group: Limit = _limit(4.0, 6.0, "Mean frequency of the added noise from the median of its source and kernel, in robust SDs.")
    streak: Limit = _limit(
        5.8,
        6.3,
        "Straight lines in the difference, in two directions. Good pairs 5.6 at most; of 150 HU mostly 6.4 and more.",
    )
    ring: Limit = _limit(3.0, 4.2, "Circles in the difference. Good pairs 2.6 at most; rings of 40 HU mostly 5 and more.")
    blocks: Limit = _limit(1.13, 1.2, "Fine detail off JPEG's grid over that on it. Good pairs 1.06 at most; coded ones 1.22.")
    cut_body: Limit = _limit(0.22, 0.3, "Share of the outline that is cut. Good pairs 0.2 at most: arms.")
    cut_straight: Limit = _limit(0.03, 0.06, "Share of the outline cut along one row or column. Good pairs 0.001 at most.")
    uncovered: Limit = _limit(0.01, 0.03, "Share of the body that only one image shows. Good pairs 0.")


@dataclass(frozen=True)
class Judged:
    """A pair as the judge sees it.

    Attributes:
        quality: what `measure_pair` gave.
        patient, source, kernel: as the manifest says; pairs of one source and kernel are compared with each other.
        dose_fraction: the stated one; None if nobody knows.
        noise: whether L holds the noise of N; None if nobody knows.
        fingerprint: of N.
    """

    quality: PairQuality
    patient: str
    source: str | int
    kernel: str
    dose_fraction: float | None = None
    noise: Literal["inserted", "independent"] | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Finding:
    """A number beyond its limit."""

    reason: Reason
    measure: str
    value: float
    limit: float
    status: Literal["borderline", "reject"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a pair, why, and by which numbers.

    Attributes:
        reasons: why it is what it is, without those that another one brings with it (`BRINGS`).
        findings: every number beyond a limit.
    """

    status: Status
    reasons: tuple[Reason, ...]
    findings: tuple[Finding, ...] = ()


def _factor(one: float, other: float) -> float:
    """The larger over the smaller; NaN unless both are above 0."""
    return max(one / other, other / one) if one > 0 and other > 0 else math.nan


def _dose_error(row: Judged) -> float:
    """ln(measured / stated dose) over ln(1 / stated dose), or over ln 4 where more than a quarter is stated.

    That is how far the power a in noise² ~ dose^−a is from 1: what read-out noise and the filters against it change grows with
    the dose that was saved.
    """
    stated, measured = row.dose_fraction, row.quality.dose_fraction
    if stated is None or math.isnan(measured):
        return math.nan
    return math.log(min(max(measured, 1e-3), 10) / stated) / math.log(max(1 / stated, 4))


CHECKS: tuple[tuple[str, Reason, Callable[[Judged], float]], ...] = (
    ("shift_px", "misaligned", lambda row: math.hypot(row.quality.shift_y_px, row.quality.shift_x_px)),
    ("rotation_deg", "misaligned", lambda row: abs(row.quality.rotation_deg)),
    ("motion_px", "motion", lambda row: row.quality.motion_px),
    ("edges", "motion", lambda row: row.quality.edges),
    ("swapped", "swapped", lambda row: row.quality.swapped),
    ("air_hu", "HU", lambda row: row.quality.air_hu - AIR_HU),
    ("bias_air_hu", "HU", lambda row: abs(row.quality.bias_air_hu)),
    ("fat_hu", "HU", lambda row: abs(row.quality.fat_hu + 100)),
    ("soft_hu", "HU", lambda row: abs(row.quality.soft_hu - 60)),
    ("bias_hu", "HU", lambda row: float(np.fmax(abs(row.quality.bias_hu), abs(row.quality.bias_fat_hu)))),
    ("slope", "HU", lambda row: abs(row.quality.slope - 1)),
    ("noise", "noise", lambda row: abs(_dose_error(row))),
    ("spectrum", "spectrum", lambda row: _factor(row.quality.frequency_added_per_mm, row.quality.frequency_normal_per_mm)),
    ("sharpness", "spectrum", lambda row: abs(row.quality.sharpness - 1)),
    ("streak", "streaks", lambda row: row.quality.streak),
    ("ring", "rings", lambda row: row.quality.ring),
    ("blocks", "compressed", lambda row: row.quality.blocks),
    ("cut_body", "coverage", lambda row: row.quality.cut_body),
    ("cut_straight", "coverage", lambda row: row.quality.cut_straight),
    ("uncovered", "coverage", lambda row: row.quality.uncovered),
)
"""Every check of one pair by itself: the limit's name, the reason it gives, and the number; NaN passes.

Of `noise`, a group may forgive some (`Judge.usual_dose_error`).
"""


GROUP = 5
"""So many pairs of one source and kernel (and stated dose, for the noise) tell what is usual in it. A default, from nowhere."""

FORGIVEN = 0.8
"""Share of the borderline of `noise` that is forgiven if all pairs of a group are off by as much: good scans are by 0.16 at most,
a whole one of 10 % that says 20 % by 0.2 and more."""


def _group(row: Judged) -> tuple[str, str]:
    return str(row.source), row.kernel


def _dose_group(row: Judged) -> tuple[str, str, float]:
    return str(row.source), row.kernel, -1.0 if row.dose_fraction is None else round(row.dose_fraction, 3)


def _middle(values: list[float]) -> tuple[float, float]:
    """Median and robust SD; the latter no smaller than 3 % of the former, which is what anatomy changes."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(np.array(values) - middle))), 0.03 * middle)


@dataclass(frozen=True)
class Judge:
    """Limits, and what is known of all pairs of a build: what is usual in each group, and which pictures there are."""

    limits: QcLimits
    pictures: Pictures
    usual: Mapping[tuple[str, str], tuple[float, float]]
    """Median and spread of the mean frequency of D in each (source, kernel)."""
    usual_dose_error: Mapping[tuple[str, str, float], float]
    """Median of what the noise tells beside the stated dose in each (source, kernel, stated dose), where it is no more than
    `FORGIVEN`: read-out noise and filters shift it in all pairs of a scanner. More is a wrong dose, and not forgiven."""

    @classmethod
    def of(cls, rows: Sequence[Judged], limits: QcLimits) -> Judge:
        """The judge of these pairs."""
        pictures = Pictures()
        for row in rows:
            pictures.add(row.patient, row.fingerprint)
        frequencies, errors = defaultdict(list), defaultdict(list)
        for row in rows:
            if math.isfinite(row.quality.frequency_added_per_mm):
                frequencies[_group(row)].append(row.quality.frequency_added_per_mm)
            if not math.isnan(error := _dose_error(row)):
                errors[_dose_group(row)].append(error)
        usual = {group: _middle(values) for group, values in frequencies.items() if len(values) >= GROUP}
        middles = {group: float(np.median(values)) for group, values in errors.items() if len(values) >= GROUP}
        most = FORGIVEN * limits.noise.borderline
        forgiven = {group: middle for group, middle in middles.items() if abs(middle) <= most}
        return cls(limits, pictures, usual, forgiven)

    def verdict(self, row: Judged) -> Verdict:
        """What becomes of a pair; one of the build, or another one among them."""
        findings = list(_findings(row, self.limits, self.usual_dose_error.get(_dose_group(row), 0.0)))
        if _group(row) in self.usual:
            middle, spread = self.usual[_group(row)]
            findings += _beyond("group", "spectrum", abs(row.quality.frequency_added_per_mm - middle) / spread, self.limits)
        if self.pictures.stands_under_other(row.patient, row.fingerprint):
            findings.append(Finding("duplicate", "fingerprint", 1.0, 1.0, "reject"))
        worst: Status = "keep"
        if findings:
            worst = "reject" if any(one.status == "reject" for one in findings) else "borderline"
        reasons = dict.fromkeys(one.reason for one in findings if one.status == worst)
        hidden = {what for reason in reasons for what in BRINGS.get(reason, ())}
        return Verdict(worst, tuple(one for one in reasons if one not in hidden), tuple(findings))


BRINGS: Mapping[Reason, frozenset[Reason]] = MappingProxyType(
    {
        "coverage": frozenset({"HU", "misaligned", "motion", "swapped", "noise", "spectrum", "streaks", "rings", "compressed"}),
        "swapped": frozenset({"HU", "misaligned", "motion", "noise", "spectrum", "streaks", "rings"}),
        "misaligned": frozenset({"motion", "noise", "spectrum", "streaks", "rings"}),
        "motion": frozenset({"noise", "spectrum", "streaks", "rings"}),
        "spectrum": frozenset({"noise", "streaks", "rings"}),
        "streaks": frozenset({"rings"}),
    }
)
"""What a fault brings with it is no reason of its own: a shifted pair has edges in its difference, and so streaks and rings."""


def judge(rows: Sequence[Judged], limits: QcLimits | None = None) -> list[Verdict]:
    """One verdict for each pair, in their order.

    A picture that stands under several patients is kept for the first of them.
    """
    its = Judge.of(rows, limits or QcLimits())
    return [its.verdict(row) for row in rows]


STORED_VALUES_HU = -50.0
"""Where the darkest tenth is brighter than this, stored values were taken for HU: air would be −1024 + 1024 = 0 HU."""


def _findings(row: Judged, limits: QcLimits, usual_dose_error: float) -> Iterator[Finding]:
    area = row.quality.body_cm2
    if not area >= limits.body_cm2:
        empty = not area >= limits.body_cm2 / 3
        limit = limits.body_cm2 / 3 if empty else limits.body_cm2
        yield Finding("empty", "body_cm2", area, limit, "reject" if empty else "borderline")
        if empty:
            return  # there is nothing that the other numbers could be about
    if row.quality.air_hu > STORED_VALUES_HU:
        yield from _beyond("air_hu", "HU", row.quality.air_hu - AIR_HU, limits)
        return  # what was taken for body is air
    for name, reason, value_of in CHECKS:
        value = value_of(row)
        if name == "noise":  # right by the stated dose, or as usual
            value = min(value, abs(_dose_error(row) - usual_dose_error))
        yield from _beyond(name, reason, value, limits)


def _beyond(name: str, reason: Reason, value: float, limits: QcLimits) -> Iterator[Finding]:
    limit: Limit = getattr(limits, name)
    if value > limit.reject:
        yield Finding(reason, name, value, limit.reject, "reject")
    elif value > limit.borderline:
        yield Finding(reason, name, value, limit.borderline, "borderline")
