"""How many patients a claim needs, and what a given number of them can show. The exact power of the paired t tests.

The verdict of `stats` asks the Wilcoxon test too. Where n patients can never satisfy it the power here is zero, and beyond
that it costs little: for normal differences and a power of 0.8 one to three patients more than `patients_needed` says, at
effects from 0.4 to 2 SD (measured over 20,000 samples each).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import integrate, optimize, special, stats

from finegrain.errors import DataError
from finegrain.evaluate.stats import ALPHA, PairedComparison, fewest_patients
from finegrain.files import json_safe

POWER = 0.8
"""Chance to show a difference that is there; the custom in clinical studies."""

MOST_PATIENTS = 1_000_000
"""Beyond this many patients a plan is refused; a default, taken from nowhere."""


def power_of(n: int, *, difference: float, sd: float, alpha: float = ALPHA, n_comparisons: int = 1) -> float:
    """The chance that n patients show a true mean difference in a two-sided paired t test.

    Several comparators share alpha as in Holm's first and hardest step. Zero where n can never be significant in a Wilcoxon test.

    Args:
        difference, sd: the true mean and SD of the paired differences, in the metric's unit.
    """
    _check(sd=sd, alpha=alpha, n_comparisons=n_comparisons)
    return (
        0.0
        if n < fewest_patients(alpha=alpha, n_comparisons=n_comparisons)
        else _t_power(n, difference / sd, alpha / n_comparisons)
    )


def patients_needed(*, difference: float, sd: float, power: float = POWER, alpha: float = ALPHA, n_comparisons: int = 1) -> int:
    """The fewest patients with whom a true mean difference is shown with this power.

    >>> patients_needed(difference=0.2, sd=0.3), patients_needed(difference=0.2, sd=0.3, n_comparisons=3)
    (20, 27)
    """
    _check(sd=sd, alpha=alpha, n_comparisons=n_comparisons, power=power)
    floor = fewest_patients(alpha=alpha, n_comparisons=n_comparisons)
    return _fewest(lambda n: _t_power(n, difference / sd, alpha / n_comparisons), power, floor)


def smallest_detectable(n: int, *, sd: float, power: float = POWER, alpha: float = ALPHA, n_comparisons: int = 1) -> float:
    """The smallest true mean difference that n patients show with this power; infinite where they can show none."""
    _check(sd=sd, alpha=alpha, n_comparisons=n_comparisons, power=power)
    if n < fewest_patients(alpha=alpha, n_comparisons=n_comparisons):
        return math.inf
    most = 1.0
    while _t_power(n, most, alpha / n_comparisons) < power:
        most *= 2
    return sd * float(optimize.brentq(lambda dz: _t_power(n, dz, alpha / n_comparisons) - power, 0.0, most))


def power_of_equivalence(n: int, *, margin: float, sd: float, difference: float = 0.0, alpha: float = ALPHA) -> float:
    """The chance that n patients show equivalence within ±margin by TOST when the true mean difference is `difference`."""
    _check(sd=sd, alpha=alpha)
    if not margin > 0:
        raise DataError(f"an equivalence margin must be positive, got {margin}")
    return _tost_power(n - 1, margin / sd * math.sqrt(n), difference / sd * math.sqrt(n), alpha) if n > 1 else 0.0


def patients_needed_for_equivalence(
    *, margin: float, sd: float, difference: float = 0.0, power: float = POWER, alpha: float = ALPHA
) -> int:
    """The fewest patients with whom equivalence within ±margin is shown with this power.

    Raises: DataError if the true difference does not lie within the margin, for then no number is enough.
    """
    _check(sd=sd, alpha=alpha, power=power)
    if not abs(difference) < margin:
        raise DataError(f"no number of patients shows equivalence within ±{margin:g} if the true difference is {difference:g}")
    return _fewest(lambda n: power_of_equivalence(n, margin=margin, sd=sd, difference=difference, alpha=alpha), power, 2)


@dataclass(frozen=True)
class PatientPlan:
    """How many patients a difference needs, from the spread that a pilot has measured.

    Attributes:
        difference: what shall be shown, in the metric's unit. sd: of the pilot's paired differences.
        n_pilot, n_comparisons: of the pilot; the comparators are those of the study that is planned.
        needed: patients if the pilot's SD is the true one.
        needed_low, needed_high: if it is the lower or upper end of its 95 % interval (chi square): what a small pilot leaves open.
        smallest_detectable: the difference that as many patients as in the pilot show with this power.
    """

    difference: float
    sd: float
    power: float
    n_pilot: int
    n_comparisons: int
    needed: int
    needed_low: int
    needed_high: int
    smallest_detectable: float

    def in_words(self, unit: str = "") -> str:
        """One sentence that a reader may quote. Args: unit, as it follows a number: " dB"."""
        among = f" against {self.n_comparisons} comparators" if self.n_comparisons > 1 else ""
        own = (
            "can show no difference at all"
            if math.isinf(self.smallest_detectable)
            else f"show {self.smallest_detectable:.2g}{unit} and more"
        )
        return (
            f"{self.needed:,} patients show a difference of {self.difference:g}{unit}{among} with a power of {self.power:.0%}, "
            f"if the SD of {self.sd:.2g}{unit} in {self.n_pilot} patients is the true one ({self.needed_low:,} to "
            f"{self.needed_high:,} over its 95 % interval); {self.n_pilot} patients {own}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields and the words, fit for JSON: what is not finite becomes None."""
        return {**json_safe(asdict(self)), "in_words": self.in_words()}


def plan_patients(pilot: PairedComparison, *, difference: float, power: float = POWER, alpha: float = ALPHA) -> PatientPlan:
    """How many patients would show `difference`, from the spread between the patients of a comparison already made.

    Only the pilot's spread is used, never its mean: power at the difference found repeats its p-value and says nothing new.

    Raises: DataError if the pilot has no spread, or if more than a million patients would be needed.
    """
    if not pilot.sd > 0:
        raise DataError(f"a plan needs a spread between at least two patients, got an SD of {pilot.sd:g} from {pilot.n}")
    degrees = pilot.n - 1
    low, high = (pilot.sd * math.sqrt(degrees / stats.chi2.ppf(probability, degrees)) for probability in (0.975, 0.025))

    def needed(sd: float) -> int:
        return patients_needed(difference=difference, sd=sd, power=power, alpha=alpha, n_comparisons=pilot.n_comparisons)

    return PatientPlan(
        difference=difference,
        sd=pilot.sd,
        power=power,
        n_pilot=pilot.n,
        n_comparisons=pilot.n_comparisons,
        needed=needed(pilot.sd),
        needed_low=needed(low),
        needed_high=needed(high),
        smallest_detectable=smallest_detectable(pilot.n, sd=pilot.sd, power=power, alpha=alpha, n_comparisons=pilot.n_comparisons),
    )


def _check(*, sd: float, alpha: float, n_comparisons: int = 1, power: float = POWER) -> None:
    if not (0 < sd < math.inf and 0 < alpha < 1 and n_comparisons >= 1 and alpha < power < 1):
        raise DataError(
            "expected an SD above 0, 0 < alpha < power < 1 and at least one comparison, got "
            f"SD {sd:g}, alpha {alpha:g}, power {power:g}, {n_comparisons} comparisons"
        )


def _t_power(n: int, dz: float, alpha: float) -> float:
    limit, shift = float(stats.t.isf(alpha / 2, n - 1)), dz * math.sqrt(n)
    return 1 - _over_the_spread(lambda s: special.ndtr(limit * s - shift) - special.ndtr(-limit * s - shift), n - 1)


def _tost_power(degrees: int, margin: float, difference: float, alpha: float) -> float:
    """Margin and difference in standard errors. Source: Phillips (1990), J Pharmacokinet Biopharm 18:137."""
    limit = float(stats.t.isf(alpha, degrees))

    def chance(s: float) -> float:
        return max(0.0, special.ndtr(margin - limit * s - difference) - special.ndtr(limit * s - margin - difference))

    return _over_the_spread(chance, degrees, kink=margin / limit)


def _over_the_spread(chance: Callable[[float], float], degrees: int, kink: float = math.inf) -> float:
    """The mean of a chance over the law of s = sample SD / true SD; the library's noncentral t has gaps far from its centre."""
    width = 12 / math.sqrt(2 * degrees)
    ends = sorted({max(0.0, 1 - width), 1.0, 1 + width})
    inner = sorted({one for one in (*ends, kink) if ends[0] <= one <= ends[-1]})
    root = math.sqrt(degrees)

    def weighted(s: float) -> float:
        return chance(s) * float(stats.chi.pdf(s * root, degrees)) * root

    pieces = [integrate.quad(weighted, low, high, limit=200)[0] for low, high in pairwise(inner)]
    return float(np.clip(sum(pieces), 0.0, 1.0))


def _fewest(power_at: Callable[[int], float], power: float, least: int) -> int:
    """The smallest n from `least` on with this power, which rises with n: doubled until enough, then halved in between."""
    too_few, enough = least - 1, least
    while power_at(enough) < power:
        too_few, enough = enough, 2 * enough
        if enough > MOST_PATIENTS:
            raise DataError(f"more than {MOST_PATIENTS:,} patients would be needed; expected a larger difference or a smaller SD")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if power_at(middle) >= power else (middle, enough)
    return enough


def plans_in_words(pilots: Mapping[str, PairedComparison], *, difference: float, unit: str) -> list[str]:
    """A sentence for each comparator: how many patients would show a difference; none where the pilot cannot tell."""
    sentences = []
    for name, pilot in pilots.items():
        try:
            plan = plan_patients(pilot, difference=difference)
        except DataError:  # no spread to plan with, or more patients than anybody has
            continue
        sentences.append(f"Against {name}: {plan.in_words(unit)}")
    return sentences
