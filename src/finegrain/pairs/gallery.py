"""Judged pairs → one self-contained HTML page: what was kept, what was not and why, each with its number and its images.

A hundred thousand pairs pass through; only the pictures of those that are shown are read.
"""

from __future__ import annotations

import base64
import heapq
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from finegrain.files import write_whole
from finegrain.pairs.qc import BODY_HU, CHECKS, Finding, Judged, Limit, QcLimits, Verdict

SHOWN = 6
"""So many pairs are shown for each reason: enough to see what it looks like."""
THUMB_PX = 240
SOFT_WINDOW = (40.0, 400.0)
"""Centre and width in HU in which L and N are shown."""

MEASURES: Mapping[str, tuple[str, str, int]] = {
    "body_cm2": ("Body", "cm²", 0),
    "shift_px": ("Shift", "px", 2),
    "rotation_deg": ("Rotation", "°", 2),
    "motion_px": ("Local shift", "px", 2),
    "edges": ("Difference at edges", "×", 2),
    "swapped": ("Coarse difference", "× noise", 2),
    "air_hu": ("Air above −1000 HU", "HU", 1),
    "bias_air_hu": ("Bias in air", "HU", 1),
    "fat_hu": ("Fat from −100 HU", "HU", 1),
    "soft_hu": ("Soft tissue from 60 HU", "HU", 1),
    "bias_hu": ("Bias in tissue", "HU", 1),
    "slope": ("Slope from 1", "", 3),
    "noise": ("Dose from the stated one", "", 2),
    "spectrum": ("Spectrum of the noise", "×", 2),
    "sharpness": ("Sharpness from 1", "", 3),
    "group": ("Spectrum from its group", "SD", 1),
    "streak": ("Straight lines", "SD", 1),
    "ring": ("Circles", "SD", 1),
    "blocks": ("8 × 8 blocks", "×", 2),
    "cut_body": ("Outline cut", "", 2),
    "cut_straight": ("Outline cut straight", "", 2),
    "uncovered": ("Body in one image only", "", 3),
    "fingerprint": ("Same picture", "", 0),
}
"""Name, unit and digits of every number with a limit."""


@dataclass(frozen=True)
class Entry:
    """A judged pair, and how to get its images if it is to be shown.

    Attributes:
        name: what the page calls it: a key of the manifest, never a file's path.
        images: gives L and N in HU, shape (y, x).
    """

    name: str
    row: Judged
    verdict: Verdict
    images: Callable[[], tuple[NDArray, NDArray]]


@dataclass
class _Tally:
    """What is kept of the entries as they pass."""

    shown: int
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    groups: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    worst: dict[tuple[str, str], list[tuple[float, int, Entry]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry) -> None:
        status = entry.verdict.status
        self.statuses[status] += 1
        self.groups[str(entry.row.source), entry.row.kernel][status] += 1
        for name, _, value_of in CHECKS:
            self.values[name].append(value_of(entry.row))
        for reason in entry.verdict.reasons:
            self.reasons[reason][status] += 1
        if entry.verdict.reasons:
            of_reasons = [one for one in entry.verdict.findings if one.status == status and one.reason in entry.verdict.reasons]
            first = max(of_reasons, key=_excess)
            heap = self.worst[status, first.reason]
            item = (_excess(first), -sum(self.statuses.values()), entry)  # of equals the first, and never compare entries
            (heapq.heappush if len(heap) < self.shown else heapq.heappushpop)(heap, item)


def _excess(finding: Finding) -> float:
    """How far beyond its limit a number is, as a factor."""
    if finding.measure == "body_cm2":
        return finding.limit / max(finding.value, 0.01)
    return finding.value / finding.limit


def write_gallery(
    entries: Iterable[Entry],
    out: Path,
    *,
    limits: QcLimits | None = None,
    title: str = "Quality control of pairs",
    facts: Mapping[str, str] | None = None,
    shown: int = SHOWN,
) -> None:
    """Write the page.

    Args:
        entries: in any number; they are gone through once.
        facts: where the pairs come from: configuration, version, command; shown as they are.
        shown: so many pairs for each reason, those farthest beyond their limit.
    """
    tally = _Tally(shown)
    for entry in entries:
        tally.add(entry)
    limits = limits or QcLimits()
    environment = Environment(
        loader=PackageLoader("finegrain", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("gallery.html.j2").render(
        title=title,
        facts=facts or {},
        n=sum(tally.statuses.values()),
        statuses=tally.statuses,
        reasons=sorted(tally.reasons.items(), key=lambda item: -item[1]["reject"] * 1_000_000 - item[1]["borderline"]),
        groups=sorted(tally.groups.items()),
        plots=[_plot(name, reason, tally.values[name], getattr(limits, name)) for name, reason, _ in CHECKS],
        parts=[(words, _part(tally, status)) for status, words in (("reject", "Rejected"), ("borderline", "Borderline"))],
        shown=shown,
        window=f"{SOFT_WINDOW[0] - SOFT_WINDOW[1] / 2:.0f} to {SOFT_WINDOW[0] + SOFT_WINDOW[1] / 2:.0f} HU".replace("-", "−"),
    )
    write_whole(out, page)


@dataclass(frozen=True)
class _Card:
    name: str
    facts: str
    findings: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]
    """Caption and data URI."""


def _part(tally: _Tally, status: str) -> list[tuple[str, int, list[_Card]]]:
    """The reasons of one status: how many pairs have each as their worst, and the cards of some."""
    found = []
    for (its, reason), heap in tally.worst.items():
        if its == status:
            cards = [_card(entry) for _, _, entry in sorted(heap, key=lambda item: item[:2], reverse=True)]
            found.append((reason, tally.reasons[reason][status], cards))
    return sorted(found, key=lambda part: -part[1])


def _card(entry: Entry) -> _Card:
    low, normal = _cropped(*(np.asarray(image, dtype=np.float32) for image in entry.images()))
    difference = low - normal
    finite = difference[np.isfinite(difference)]
    spread = float(np.quantile(np.abs(finite), 0.98)) if finite.size else 0.0
    half = 50.0 * math.ceil(max(spread, 1.0) / 50)
    row = entry.row
    dose = "dose unknown" if row.dose_fraction is None else f"{100 * row.dose_fraction:.3g} % dose"
    return _Card(
        name=entry.name,
        facts=f"{row.patient} · {row.kernel} · {dose}",
        findings=tuple(_in_words(one) for one in entry.verdict.findings),
        pictures=(
            ("low dose", _thumb(low, *SOFT_WINDOW)),
            ("normal dose", _thumb(normal, *SOFT_WINDOW)),
            (f"difference, ±{half:.0f} HU", _thumb(difference, 0.0, 2 * half)),
        ),
    )


def _cropped(low: NDArray[np.float32], normal: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both without the air around what either shows."""
    body = (normal > BODY_HU) | (low > BODY_HU)
    box = []
    for axis, n in enumerate(body.shape):
        at = np.flatnonzero(np.count_nonzero(body, axis=1 - axis) > 0.02 * n)
        box.append(slice(max(0, int(at[0]) - 8), int(at[-1]) + 9) if len(at) else slice(None))
    return low[box[0], box[1]], normal[box[0], box[1]]


def _in_words(finding: Finding) -> str:
    if finding.measure == "fingerprint":
        return "duplicate: the same picture stands under another patient"
    name, unit, digits = MEASURES[finding.measure]
    value, limit = (f"{number:.{digits}f}".replace("-", "−") for number in (finding.value, finding.limit))
    side = "below" if finding.measure == "body_cm2" else "limit"
    return f"{finding.reason}: {name[0].lower() + name[1:]} {value} {unit}".rstrip() + f" ({side} {limit})"


def _thumb(image: NDArray[np.float32], centre: float, width: float) -> str:
    """A JPEG of an image in a window as a data URI."""
    grey = np.clip((np.nan_to_num(image, nan=-1e6) - centre) / width + 0.5, 0, 1)
    picture = Image.fromarray(np.round(255 * grey).astype(np.uint8))
    if max(picture.size) > THUMB_PX:
        picture.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class _Plot:
    title: str
    reason: str
    what: str
    told: str
    svg: Markup


PLOT_W, PLOT_H, BINS = 300, 56, 60


def _axis(told: NDArray[np.float64], limit: Limit) -> tuple[float, float]:
    """Where a histogram begins and ends: both limits in it, the good pairs not squeezed into a corner."""
    lowest = float(told.min()) if told.size else 0.0
    near = min(max(lowest, -limit.reject), 0.9 * limit.borderline)
    bottom = 0.9 * near if near > 0.5 * limit.borderline else min(near, 0.0)
    return bottom, limit.reject + 0.5 * (limit.reject - bottom)


def _plot(name: str, reason: str, values: Sequence[float], limit: Limit) -> _Plot:
    """A histogram with its limits; bars grow with the square root, so that a single pair is seen beside thousands."""
    label, unit, digits = MEASURES[name]
    every = np.asarray(values, dtype=np.float64)
    told = every[np.isfinite(every)]
    bottom, top = _axis(told, limit)
    counts, edges = np.histogram(np.clip(told, bottom, top * 0.9999), bins=BINS, range=(bottom, top))

    def x(value: float) -> float:
        return (value - bottom) / (top - bottom) * PLOT_W

    tallest = math.sqrt(max(int(counts.max()), 1)) if told.size else 1.0
    bars = []
    for count, left in zip(counts, edges[:-1], strict=True):
        if count:
            height = max(2.0, math.sqrt(count) / tallest * PLOT_H)
            middle = left + (edges[1] - edges[0]) / 2
            kind = "r" if middle > limit.reject else "b" if middle > limit.borderline else "k"
            bars.append(f'<rect class="{kind}" x="{x(left):.1f}" y="{PLOT_H - height:.1f}" width="4.2" height="{height:.1f}"/>')
    lines = "".join(
        f'<line class="{kind}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="-4" y2="{PLOT_H}"/>'
        f'<text x="{x(value):.1f}" y="{PLOT_H + 12}" text-anchor="{anchor}">{value:g}</text>'
        for kind, value, anchor in (("b", limit.borderline, "end"), ("r", limit.reject, "start"))
    )
    svg = (
        f'<svg viewBox="-6 -6 {PLOT_W + 12} {PLOT_H + 22}" role="img" aria-label="Histogram: {label}">{"".join(bars)}'
        f'<line class="axis" x1="0" x2="{PLOT_W}" y1="{PLOT_H}" y2="{PLOT_H}"/>{lines}</svg>'
    )
    beyond = int(np.count_nonzero(told > top))
    facts = [f"median {np.median(told):.{digits}f}".replace("-", "−") if told.size else "not told"]
    facts += [f"{beyond} off the scale"] if beyond else []
    facts += [f"{every.size - told.size} not told"] if 0 < every.size - told.size < every.size else []
    what = QcLimits.model_fields[name].description or ""
    return _Plot(f"{label}, {unit}" if unit else label, reason, what, "; ".join(facts), Markup(svg))  # numbers and our own words
