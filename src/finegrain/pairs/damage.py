"""Good pairs, damaged in known ways: what the quality control finds of it, and what it finds where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from statsmodels.stats.proportion import proportion_confint

from finegrain.frequency import block_dct, inverse_block_dct
from finegrain.hu import AIR_HU
from finegrain.pairs.qc import BODY_HU, HIGHEST_HU, LOWEST_HU, Judge, Judged, QcLimits, Reason, Verdict, fingerprint, measure_pair

Image = NDArray[Any]


@dataclass(frozen=True)
class Specimen:
    """A pair to be damaged, and what is said of it.

    Attributes:
        low, normal: HU, shape (y, x).
        neighbour_low: the low dose of another slice of the same scan.
        pixel_mm, dose_fraction, noise, patient, source, kernel: as in `Judged`.
    """

    low: Image
    normal: Image
    neighbour_low: Image
    pixel_mm: float
    patient: str
    source: str | int
    kernel: str
    dose_fraction: float | None = None
    noise: Literal["inserted", "independent"] | None = None

    def stored(self) -> Specimen:
        """With images as a pair is stored: whole HU on the 12-bit scale."""
        low, normal = (np.clip(np.round(one), LOWEST_HU, HIGHEST_HU).astype(np.float32) for one in (self.low, self.normal))
        return replace(self, low=low, normal=normal)

    def measured(self) -> Judged:
        """The pair as the judge sees it."""
        return Judged(
            quality=measure_pair(self.low, self.normal, pixel_mm=self.pixel_mm, noise=self.noise),
            patient=self.patient,
            source=self.source,
            kernel=self.kernel,
            dose_fraction=self.dose_fraction,
            noise=self.noise,
            fingerprint=fingerprint(self.normal),
        )


@dataclass(frozen=True)
class Damage:
    """One way to spoil a pair.

    Attributes:
        what: in words.
        reasons: any of them is the right one.
        spoil: makes the spoiled pair; None if this pair cannot be spoiled so.
    """

    what: str
    reasons: frozenset[Reason]
    spoil: Callable[[Specimen, np.random.Generator], Specimen | None]


def _either(generator: np.random.Generator) -> float:
    return 1.0 if generator.random() < 0.5 else -1.0


def _shifted(pixels: float) -> Callable[[Specimen, np.random.Generator], Specimen]:
    def spoil(pair: Specimen, generator: np.random.Generator) -> Specimen:
        angle = generator.uniform(0, 2 * np.pi)
        shift = (pixels * np.sin(angle), pixels * np.cos(angle))
        return replace(pair, low=ndimage.shift(pair.low, shift, order=3, mode="nearest"))

    return spoil


def _rotated(pair: Specimen, generator: np.random.Generator) -> Specimen:
    return replace(pair, low=ndimage.rotate(pair.low, _either(generator), reshape=False, order=3, mode="nearest"))


def _slope(image: Image) -> Image:
    """A slope of 1.05 instead of 1, with the intercept −1024 that it belongs to."""
    return np.asarray((image + 1024) * np.float32(1.05) - 1024)


def _streaks(pair: Specimen, generator: np.random.Generator) -> Specimen:
    y, x = np.indices(pair.low.shape, dtype=np.float32)
    centre_y, centre_x = _point_in_body(pair, generator)
    y, x = y - centre_y, x - centre_x
    fade = np.exp(-np.hypot(y, x) * pair.pixel_mm / 120)
    low = pair.low.copy()
    for k in range(8):
        angle = generator.uniform(0, np.pi)
        distance = x * np.cos(angle) + y * np.sin(angle)
        low += (150 if k % 2 else -150) * fade * np.exp(-0.5 * (distance / 1.2) ** 2)
    return replace(pair, low=low)


def _ring(pair: Specimen, generator: np.random.Generator) -> Specimen:
    y, x = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in pair.low.shape)
    radius = np.hypot(y[:, None], x[None, :])
    body = radius[pair.normal > BODY_HU]
    at = generator.uniform(0.25, 0.6) * float(np.quantile(body, 0.95)) if body.size else 50.0
    return replace(pair, low=pair.low + _either(generator) * 40 * np.exp(-0.5 * ((radius - at) / 1.0) ** 2))


def _point_in_body(pair: Specimen, generator: np.random.Generator) -> tuple[int, int]:
    """A place where there is an edge: in a uniform liver nobody sees what moves."""
    smooth = ndimage.gaussian_filter(pair.normal, 2)
    strength = np.hypot(*np.gradient(smooth)) * (ndimage.uniform_filter(smooth, 9) > BODY_HU)
    y, x = np.nonzero(strength >= max(float(np.quantile(strength, 0.97)), 1e-6))
    if len(y) == 0:
        return pair.normal.shape[0] // 2, pair.normal.shape[1] // 2
    k = generator.integers(len(y))
    return int(y[k]), int(x[k])


def _moved(pair: Specimen, generator: np.random.Generator) -> Specimen:
    """2.5 px in the middle, fading out over 25 mm."""
    y, x = np.indices(pair.low.shape, dtype=np.float32)
    centre_y, centre_x = _point_in_body(pair, generator)
    bump = 2.5 * np.exp(-0.5 * ((y - centre_y) ** 2 + (x - centre_x) ** 2) * (pair.pixel_mm / 25) ** 2)
    angle = generator.uniform(0, 2 * np.pi)
    low = ndimage.map_coordinates(pair.low, [y + bump * np.sin(angle), x + bump * np.cos(angle)], order=3, mode="nearest")
    return replace(pair, low=low)


def _body_rows(pair: Specimen) -> tuple[int, int]:
    rows = np.flatnonzero(np.count_nonzero(pair.normal > BODY_HU, axis=1) > 20)
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, len(pair.normal))


def _rows_lost(pair: Specimen, generator: np.random.Generator) -> Specimen:
    top, bottom = _body_rows(pair)
    n = max(4, round(generator.uniform(0.1, 0.2) * (bottom - top)))
    low = pair.low.copy()
    start = int(generator.integers(top + n, bottom - 2 * n))
    low[start : start + n] = LOWEST_HU
    return replace(pair, low=low)


def _half_transferred(pair: Specimen, generator: np.random.Generator) -> Specimen:
    """Both images end in the middle of the body."""
    top, bottom = _body_rows(pair)
    end = round(top + generator.uniform(0.4, 0.7) * (bottom - top))
    low, normal = pair.low.copy(), pair.normal.copy()
    low[end:] = normal[end:] = LOWEST_HU
    return replace(pair, low=low, normal=normal)


def _field_cut(pair: Specimen, generator: np.random.Generator) -> Specimen:
    """Both images end at a circle that holds half of the body."""
    y, x = np.ogrid[: pair.low.shape[0], : pair.low.shape[1]]
    body = pair.normal > BODY_HU
    if not body.any():
        return pair
    rows, columns = np.nonzero(body)
    radius = np.hypot(y - rows.mean(), x - columns.mean())
    outside = radius > np.quantile(radius[body], 0.5)
    low, normal = (np.where(outside, np.float32(LOWEST_HU), one) for one in (pair.low, pair.normal))
    return replace(pair, low=low, normal=normal)


def _empty(pair: Specimen, generator: np.random.Generator) -> Specimen:
    """Air with its noise, and the shell of a couch 4 mm thick."""
    rows, columns = pair.low.shape
    y, x = np.ogrid[:rows, :columns]
    height = 0.7 * rows + 0.0006 * (x - columns / 2) ** 2
    couch = np.where(np.abs(y - height) * pair.pixel_mm < 2, np.float32(700), np.float32(0)) + np.float32(AIR_HU)
    return replace(
        pair,
        normal=couch + generator.normal(0, 5, couch.shape).astype(np.float32),
        low=couch + generator.normal(0, 10, couch.shape).astype(np.float32),
    )


def _compressed(image: Image) -> Image:
    """Its 8 × 8 block DCT in steps of 12 HU for the mean, 180 HU for the finest detail; sides that are no multiple are kept."""
    rows, columns = (n // 8 * 8 for n in image.shape)
    k = np.arange(8)
    step = 12.0 * (1 + k[:, None] + k[None, :])
    kept = image.copy()
    kept[:rows, :columns] = inverse_block_dct(np.round(block_dct(image) / step) * step)
    return kept


def _restated(factor: float) -> Callable[[Specimen, np.random.Generator], Specimen | None]:
    def spoil(pair: Specimen, generator: np.random.Generator) -> Specimen | None:
        if pair.dose_fraction is None or pair.dose_fraction * factor > 0.9:
            return None
        return replace(pair, dose_fraction=pair.dose_fraction * factor)

    return spoil


def _smoother(image: Image) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, 0.7))


def _sharpened(pair: Specimen, generator: np.random.Generator) -> Specimen:
    return replace(pair, low=pair.low + 0.8 * (pair.low - ndimage.gaussian_filter(pair.low, 1.0)))


def _exported_anew(pair: Specimen, generator: np.random.Generator) -> Specimen:
    """Another name; HU in steps of two; air below −1000 HU cut."""
    normal = np.maximum(np.round(pair.normal / 2) * 2, AIR_HU).astype(np.float32)
    return replace(pair, normal=normal, patient=f"{pair.patient}, again")


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        "shift 0.5 px": Damage("L moved by half a pixel", frozenset({"misaligned"}), _shifted(0.5)),
        "shift 2 px": Damage("L moved by two pixels", frozenset({"misaligned"}), _shifted(2.0)),
        "rotation 1°": Damage("L turned by one degree", frozenset({"misaligned"}), _rotated),
        "motion": Damage("L deformed by 2.5 px around an edge, over 25 mm", frozenset({"motion"}), _moved),
        "neighbouring slice": Damage(
            "L is that of the next slice", frozenset({"swapped", "motion"}), lambda pair, _: replace(pair, low=pair.neighbour_low)
        ),
        "flipped": Damage(
            "L mirrored left to right", frozenset({"swapped"}), lambda pair, _: replace(pair, low=pair.low[:, ::-1].copy())
        ),
        "slope, one": Damage("L with a slope of 1.05", frozenset({"HU"}), lambda pair, _: replace(pair, low=_slope(pair.low))),
        "slope, both": Damage(
            "both with a slope of 1.05",
            frozenset({"HU"}),
            lambda pair, _: replace(pair, low=_slope(pair.low), normal=_slope(pair.normal)),
        ),
        "+24 HU, both": Damage(
            "both 24 HU too high", frozenset({"HU"}), lambda pair, _: replace(pair, low=pair.low + 24, normal=pair.normal + 24)
        ),
        "+24 HU, one": Damage("L 24 HU too high", frozenset({"HU"}), lambda pair, _: replace(pair, low=pair.low + 24)),
        "−1024 HU, both": Damage(
            "both without their intercept, twice",
            frozenset({"HU", "empty"}),
            lambda pair, _: replace(pair, low=pair.low - 1024, normal=pair.normal - 1024),
        ),
        "+1024 HU, both": Damage(
            "stored values taken for HU",
            frozenset({"HU"}),
            lambda pair, _: replace(pair, low=pair.low + 1024, normal=pair.normal + 1024),
        ),
        "dose ÷ 2": Damage("half of the true dose stated", frozenset({"noise"}), _restated(0.5)),
        "dose × 2": Damage("twice the true dose stated", frozenset({"noise"}), _restated(2.0)),
        "dose ÷ 4": Damage("a quarter of the true dose stated", frozenset({"noise"}), _restated(0.25)),
        "other kernel, both": Damage(
            "both through a Gaussian of 0.7 px",
            frozenset({"spectrum"}),
            lambda pair, _: replace(pair, low=_smoother(pair.low), normal=_smoother(pair.normal)),
        ),
        "smoothed": Damage(
            "L through a Gaussian of 0.7 px", frozenset({"spectrum"}), lambda pair, _: replace(pair, low=_smoother(pair.low))
        ),
        "sharpened": Damage("L with 0.8 of what a Gaussian of 1 px takes away", frozenset({"spectrum"}), _sharpened),
        "streaks": Damage("eight lines of 150 HU through one point of L", frozenset({"streaks"}), _streaks),
        "ring": Damage("a ring of 40 HU around the middle of L", frozenset({"rings"}), _ring),
        "rows lost": Damage("10 to 20 % of the rows of L are gone", frozenset({"coverage"}), _rows_lost),
        "half transferred": Damage("both end in the middle of the body", frozenset({"coverage"}), _half_transferred),
        "field cut": Damage("both end at a circle that holds half of the body", frozenset({"coverage"}), _field_cut),
        "couch only": Damage("no body in either", frozenset({"empty"}), _empty),
        "compressed, one": Damage(
            "L as 8 × 8 DCT in coarse steps", frozenset({"compressed"}), lambda pair, _: replace(pair, low=_compressed(pair.low))
        ),
        "compressed, both": Damage(
            "both as 8 × 8 DCT in coarse steps",
            frozenset({"compressed"}),
            lambda pair, _: replace(pair, low=_compressed(pair.low), normal=_compressed(pair.normal)),
        ),
        "other patient": Damage("N exported anew under another patient", frozenset({"duplicate"}), _exported_anew),
    }
)
"""Every way in which the proof damages a pair."""


@dataclass(frozen=True)
class ProofRow:
    """What was found of one kind of damage, or of none ("good").

    Attributes:
        rejected, flagged, reasoned: how many of `n` were rejected; rejected or borderline; flagged for the right reason.
    """

    kind: str
    n: int
    rejected: int
    flagged: int
    reasoned: int

    def share(self, count: int) -> tuple[float, float, float]:
        """A count as a share, and its 95 % interval by Wilson."""
        if self.n == 0:
            return float("nan"), float("nan"), float("nan")
        low, high = proportion_confint(count, self.n, alpha=0.05, method="wilson")
        return count / self.n, float(low), float(high)


@dataclass(frozen=True)
class ProofTable:
    """The false alarms on good pairs, and what was found of each damage."""

    good: ProofRow
    damaged: tuple[ProofRow, ...]

    def as_text(self) -> str:
        """A table of shares in per cent with their 95 % intervals."""
        lines = [f"{'damage':20}{'n':>5}  {'rejected':>22}{'rejected or borderline':>26}{'right reason':>14}"]
        for row in (self.good, *(row for row in self.damaged if row.n)):
            cells = ["{:5.1f} % ({:5.1f}–{:5.1f})".format(*(100 * v for v in row.share(k))) for k in (row.rejected, row.flagged)]
            reasoned = "" if row is self.good else f"{100 * row.share(row.reasoned)[0]:.1f} %"
            lines.append(f"{row.kind:20}{row.n:5}  {cells[0]:>22}{cells[1]:>26}{reasoned:>14}")
        return "\n".join(lines)


def prove(
    pairs: Iterable[Specimen], limits: QcLimits | None = None, *, seed: int = 0, kinds: Collection[str] | None = None
) -> ProofTable:
    """Judge good pairs, then each of them damaged in every way, one at a time among the good ones.

    Args:
        pairs: good ones, all held in memory; a few hundred tell the rates to some per cent.
        kinds: of `DAMAGES`; every one if not given.
    """
    kept = [pair.stored() for pair in pairs]
    rows = [pair.measured() for pair in kept]
    judge = Judge.of(rows, limits or QcLimits())
    good = _count("good", [judge.verdict(row) for row in rows], frozenset())
    damaged = []
    for number, (kind, damage) in enumerate(DAMAGES.items()):
        if kinds is not None and kind not in kinds:
            continue
        verdicts = []
        for k, pair in enumerate(kept):
            spoiled = damage.spoil(pair, np.random.default_rng([seed, number, k]))
            if spoiled is not None:
                verdicts.append(judge.verdict(spoiled.stored().measured()))
        damaged.append(_count(kind, verdicts, damage.reasons))
    return ProofTable(good, tuple(damaged))


def _count(kind: str, verdicts: list[Verdict], reasons: frozenset[Reason]) -> ProofRow:
    return ProofRow(
        kind=kind,
        n=len(verdicts),
        rejected=sum(verdict.status == "reject" for verdict in verdicts),
        flagged=sum(verdict.status != "keep" for verdict in verdicts),
        reasoned=sum(any(one.reason in reasons for one in verdict.findings) for verdict in verdicts),
    )
