"""What each measure is called and what it tells, and numbers as readers write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: its name, unit, number of decimals, which way is better, its best value, and what it tells."""

    label: str
    unit: str
    decimals: int
    better: Literal["higher", "lower", "one", "zero", ""]
    ideal: str
    meaning: str


MEASURES = {
    "psnr_db": Measure("PSNR", "dB", 2, "higher", "", "How close every pixel is to the normal dose. Blur can raise it."),
    "psnr_gain_db": Measure("PSNR gain over the input", "dB", 2, "higher", "", "How much closer than the low-dose input."),
    "ssim": Measure("SSIM", "", 4, "higher", "1", "How alike local structure and contrast are."),
    "vif": Measure("VIF", "", 3, "higher", "1", "Visual information fidelity: how much of what an eye can take in is still there."),
    "rmse_hu": Measure("RMSE", "HU", 2, "lower", "0", "Root mean square error of a pixel, without a window."),
    "mae_hu": Measure("Mean absolute error", "HU", 2, "lower", "0", "Mean error of a pixel, without a window."),
    "hf_ratio": Measure(
        "HF energy ratio",
        "",
        3,
        "one",
        "1",
        "High-frequency energy against the normal dose. Below 1: smoothed. Above 1: noise left.",
    ),
    "hf_coherence": Measure(
        "HF coherence", "", 3, "higher", "1", "How much of that high-frequency detail agrees with the normal dose. Noise lowers it."
    ),
    "texture_index": Measure(
        "Texture index", "", 3, "lower", "0", "Mean relative error of seven texture statistics that a reader would feel."
    ),
    "hf_coherence_truth": Measure(
        "HF coherence with truth", "", 3, "higher", "1", "The same against the noise-free image, known in simulation only."
    ),
    "hf_consistency": Measure("HF consistency", "", 3, "higher", "1", "The energy ratio r or 1/r, whichever is smaller."),
    "texture_error": Measure("Texture error", "", 3, "lower", "0", "The relative errors whose mean is the texture index."),
    "nps_log_distance": Measure("NPS distance", "", 3, "lower", "0", "How far the noise spectrum is from the normal dose's."),
    "nps_shape_log_distance": Measure(
        "NPS shape distance",
        "",
        3,
        "lower",
        "0",
        "The same for spectra of equal area: what the noise looks like, not how much there is.",
    ),
    "nps_mean_frequency": Measure("Mean frequency of the noise", "cycles/mm", 3, "", "", "Coarser noise has a lower one."),
    "nps_peak_frequency": Measure("Peak frequency of the noise", "cycles/mm", 3, "", "", "Where the spectrum is highest."),
    "nmr": Measure("Noise magnitude ratio", "", 3, "", "1", "Noise SD in soft tissue, as a part of the normal dose's."),
    "cfr": Measure("Noise peak frequency ratio", "", 3, "one", "1", "Below 1, the noise has become blotchy."),
    "hu_bias": Measure("CT number shift", "HU", 2, "zero", "0", "Mean HU against the normal dose. It must stay near zero."),
}
"""Measures that a reader meets; one that is not listed is shown under its key."""

PLACES = {
    "full": "whole body",
    "body": "whole body",
    "fine_texture": "fine-texture regions",
    "uniform": "uniform regions",
    "soft": "soft tissue",
    "full-range": "−1024 to 3071 HU",
    "contrast": "GLCM contrast",
    "correlation": "GLCM correlation",
    "homogeneity": "GLCM homogeneity",
    "entropy": "GLCM entropy",
    "local_sd": "local standard deviation",
    "lbp": "local binary patterns",
    "nps_shape": "shape of the spectrum",
}

DETAILS = {
    "vif", "rmse_hu", "mae_hu", "hf_consistency", "hf_coherence_truth", "texture_error", "nps_shape_log_distance",
    "nps_mean_frequency", "nps_peak_frequency",
}  # fmt: skip
"""Measures for those who ask: they stand in a table of their own, below the first."""

TISSUE_MEASURES = {"hu_bias"}
"""Measures whose place is a tissue."""

BAND = r"([\d.]+)-([\d.]+)/mm"
"""How a band is named in a key: low and high edge in cycles/mm."""

WINDOW = r".*?-(-?[\d.]+)/([\d.]+)$"
"""How the name of a protocol ends that is a window: centre and width in HU."""

UNIFORM_NOTES = {
    "hf_ratio": "There is no texture here, only noise: a low value is noise removed.",
    "hf_coherence": "There is no texture here: agreement is with the normal dose's own noise.",
}

CAPTIONS = {
    "psnr_db": "Likeness to the normal-dose scan",
    "hf_ratio": "Fine texture",
    "hu_bias": "CT numbers",
    "nps_log_distance": "Noise power in soft tissue, against the normal dose's",
}


def measure_of(key: str) -> tuple[Measure, str]:
    """A measure and the place or protocol in words, of a key such as `psnr_db[abdomen-40/400]`.

    >>> measure_of("psnr_db[abdomen-40/400]")[1]
    'window 40/400 HU'
    """
    name, _, place = key.partition("[")
    place = place.removesuffix("]")
    measure = MEASURES.get(name, Measure(name.replace("_", " "), "", 3, "", "", ""))
    return measure, ", ".join(_place_words(part) for part in place.split(",")) if place else ""


def _place_words(place: str) -> str:
    window = re.fullmatch(WINDOW, place)
    if window:
        return f"window {minus(window[1])}/{window[2]} HU"
    if band := re.fullmatch(BAND, place):
        return f"{band[1]} to {band[2]} cycles/mm"
    return PLACES.get(place, place.replace("_", " "))


def table_of(key: str) -> Literal["results", "tissues", "regions", "details", "bands"]:
    """The table of a page of results in which a measure stands, by its key; what is measured band by band is a plot.

    >>> table_of("psnr_db[abdomen-40/400,thorax]"), table_of("hu_bias[lung]")
    ('regions', 'tissues')
    """
    name, _, place = key.removesuffix("]").partition("[")
    last = place.rpartition(",")[2]
    if name.startswith("band_"):
        return "bands"
    if name in TISSUE_MEASURES:
        return "tissues"
    if name in DETAILS or (name in ("psnr_db", "ssim") and last == "fine_texture"):
        return "details"
    is_protocol = bool(re.search(WINDOW, last)) or last == "full-range"
    return "results" if not place or is_protocol or last in ("full", "body", "fine_texture") else "regions"


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """A number for readers: fixed decimals, a true minus sign, "n/a" for what is not known.

    >>> number(-1.234, 1), number(float("nan")), number(0.5, 1, sign=True)
    ('−1.2', 'n/a', '+0.5')
    """
    if value is None or math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = round(float(value), decimals) + 0.0
    return minus(f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}")


def percent(fraction: float) -> str:
    """A fraction as a percentage: 0.25 → "25 %"."""
    if math.isnan(fraction):
        return "n/a"
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def p_value(value: float | None) -> str:
    """A p-value for readers."""
    if value is None or math.isnan(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """A duration for readers: "0.18 s", "12.3 s", "4 min 10 s"."""
    if value is None or math.isnan(value):
        return "n/a"
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {int(value % 60)} s"


def scaled(value: float | None) -> str:
    """A large count for readers: "448 k", "1.85 M", "12.3 G"."""
    if value is None or math.isnan(value):
        return "n/a"
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def minus(text: str) -> str:
    return text.replace("-", "−")


def missing_because(key: str) -> str:
    """Why a measure has no value."""
    measure, place = measure_of(key)
    where = place.rpartition(", ")[2]
    if where and not where.startswith("window"):
        return f"{measure.label} is not defined here: too few pixels of “{where}” in these slices"
    return f"{measure.label} is not defined for these images"


def first_known(values: Mapping[str, float], name: str, *places: str) -> str | None:
    """The key of a measure at the first of these places, else anywhere, with a finite value."""
    keys = [f"{name}[{place}]" for place in places] + [key for key in values if key.partition("[")[0] == name]
    return next((key for key in keys if math.isfinite(values.get(key, math.nan))), None)


def is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def label_of(key: str) -> str:
    """A measure's name with its place and unit.

    >>> label_of("psnr_db[abdomen-40/400]")
    'PSNR, window 40/400 HU [dB]'
    """
    measure, place = measure_of(key)
    return measure.label + (f", {place}" if place else "") + (f" [{measure.unit}]" if measure.unit else "")


def bands_in(measures: Mapping[str, float], place: str = "fine_texture") -> list[tuple[float, float, float, float, float | None]]:
    """The bands of one method, from low to high, out of `band_ratio[…]`, `band_coherence[…]` and `band_coherence_truth[…]`.

    Each is: low and high edge in cycles/mm, energy ratio, coherence, and coherence with the noise-free image if it is there.

    >>> bands_in({"band_ratio[full,0.1-0.2/mm]": 0.9, "band_coherence[full,0.1-0.2/mm]": 0.8}, "full")
    [(0.1, 0.2, 0.9, 0.8, None)]
    """
    found = {}
    for key, ratio in measures.items():
        if match := re.fullmatch(rf"band_ratio\[({re.escape(place)},{BAND})\]", key):
            coherence = measures.get(f"band_coherence[{match[1]}]", math.nan)
            found[float(match[2])] = (float(match[3]), ratio, coherence, measures.get(f"band_coherence_truth[{match[1]}]"))
    return [(low, *found[low]) for low in sorted(found)]
