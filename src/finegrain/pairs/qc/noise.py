"""Noise of L and N: levels, spectra, the dose they tell; and whether L is as sharp as N."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.frequency import dct_matrix, nyquist_fraction, to_blocks
from finegrain.pairs.qc.view import SQUARES, FloatImage, View


def measure_noise(view: View, noise: Literal["inserted", "independent"] | None) -> dict[str, float]:
    """Levels, spectra and the dose they tell, in squares of soft tissue, by the block DCT."""
    side = 16 if view.pixel_mm < 1.2 else 8
    nothing = dict.fromkeys(NOISE_MEASURES, math.nan) | {"flat_squares": 0}
    normal, low = to_blocks(view.normal, side), to_blocks(view.low, side)
    inside = to_blocks(view.body & view.valid, side).all(axis=(-2, -1))
    middle = normal.mean(axis=(-2, -1))
    inside &= (middle > -150) & (middle < 200)
    if np.count_nonzero(inside) < SQUARES:
        return nothing
    basis = dct_matrix(side).astype(np.float32)
    of_normal, of_low = (basis @ one[inside] @ basis.T for one in (normal, low))
    of_difference = of_low - of_normal
    at = nyquist_fraction(side)
    fine = at >= FINE
    rounding = np.count_nonzero(fine) / 12  # whole HU: 1/12 HU² in each coefficient

    def level(coefficients: FloatImage) -> NDArray[np.float64]:
        return np.maximum(np.square(coefficients[:, fine]).sum(axis=-1, dtype=np.float64) - rounding, 1e-3) / side**2

    of_each = {"normal": level(of_normal), "low": level(of_low), "difference": level(of_difference)}
    structure = (np.square(of_normal[:, at < 0.25]).sum(axis=-1) - np.square(of_normal[:, 0, 0])) / of_each["difference"]
    by_structure = np.argsort(structure)
    flat = by_structure[: max(SQUARES, len(structure) // 7)]
    power = {name: float(np.median(one[flat])) for name, one in of_each.items()}
    if min(power["normal"], power["low"]) < 0.01:
        return nothing | {"flat_squares": len(flat)}
    kept = float((of_low[flat][:, fine] * of_normal[flat][:, fine]).sum() / np.square(of_normal[flat][:, fine]).sum())
    spectrum = {
        name: np.square(one[flat]).mean(axis=0) for name, one in (("normal", of_normal), ("low", of_low), ("added", of_difference))
    }
    if noise == "independent" or (noise is None and kept < KEPT_ANATOMY):
        some = by_structure[: max(SQUARES, len(structure) // 2)]
        dose = _dose_of_two_scans(of_normal[some], of_low[some], at >= FINE_OF_TWO)
        anatomy = kept > KEPT_ANATOMY
    else:
        wide = at >= 0.2
        anatomy = _mean_frequency(spectrum["added"], at, wide) / _mean_frequency(spectrum["normal"], at, wide) > ANATOMY
        anatomy |= noise is None and kept < KEPT_NOISE
        dose = math.nan if anatomy else float(np.median(of_each["normal"][flat] / of_each["low"][flat]))
    seen = at >= 0.35
    k = np.arange(side)
    one_way, other_way = (float(spectrum["added"][part & seen].mean()) for part in (k[:, None] > 2 * k, 2 * k[:, None] < k))
    frequency = {name: _mean_frequency(one, at, seen) / (2 * view.pixel_mm) for name, one in spectrum.items()}
    if anatomy:
        frequency["normal"] = frequency["low"] = math.nan
    return {
        "noise_normal_hu": math.sqrt(power["normal"]),
        "noise_low_hu": math.sqrt(power["low"]),
        "noise_ratio": math.sqrt(power["low"] / power["normal"]),
        "dose_fraction": dose,
        "frequency_normal_per_mm": frequency["normal"],
        "frequency_low_per_mm": frequency["low"],
        "frequency_added_per_mm": frequency["added"],
        "kept": kept,
        "anisotropy": max(one_way, other_way) / max(min(one_way, other_way), 1e-6),
        "flat_squares": len(flat),
    }


def _dose_of_two_scans(normal: FloatImage, low: FloatImage, fine: NDArray[np.bool_]) -> float:
    """The dose that two independent scans tell, as both hold the anatomy, which cancels twice; NaN where chance tells as much."""
    of_normal, of_low, of_both = (np.square(one[:, fine]).sum(axis=-1, dtype=np.float64) for one in (normal, low, low - normal))
    gained = (of_low - of_normal) / np.maximum(of_both, 1e-3)
    middle = min(max(float(np.median(gained)), -0.999), 0.999)
    error = 1.86 * float(np.median(np.abs(gained - middle))) / math.sqrt(len(gained))  # 1.48, and 1.25 for a median
    told = 2 * error / (1 - middle**2) < DOUBT
    return (1 - middle) / (1 + middle) if told else math.nan


FINE_OF_TWO = 0.4
"""The same of two scans, whose anatomy is left in L + N: of 0.25 and 0.4, all squares, the flattest half and a third, this and the
half came nearest the dose of 36 virtual pairs (6 % rms of ln 1/dose, 16 % at most, where all from 0.25 on gave 11 and 45 %)."""
DOUBT = 0.4
"""Standard error of ln(dose) from where on none is told: half the dose is 0.69."""
FINE = 0.25
"""Noise is measured above this share of Nyquist: anatomy has little power there."""
ANATOMY = 1.35
"""Mean frequency of the noise of D over that of N from where on what N holds is rather anatomy, and its dose cannot be told:
1.31 at most in the real scans here, 1.4 to 1.7 in virtual chests of little noise."""
KEPT_ANATOMY = 0.3
"""Share of N that an independent L repeats from where on it is rather anatomy: noise repeats by chance alone."""
KEPT_NOISE = 0.7
"""Share of N that L repeats if the noise was inserted: 0.72 at least in real pairs. In between nobody knows."""
NOISE_MEASURES = (
    "noise_normal_hu", "noise_low_hu", "noise_ratio", "dose_fraction", "frequency_normal_per_mm", "frequency_low_per_mm",
    "frequency_added_per_mm", "kept", "anisotropy",
)  # fmt: skip


def _mean_frequency(power: FloatImage, at: NDArray[np.float64], seen: NDArray[np.bool_]) -> float:
    """Mean frequency of a spectrum as a share of Nyquist. Shape: (u, v) each."""
    total = float(power[seen].sum())
    return float((power[seen] * at[seen]).sum()) / total if total > 0 else math.nan


def measure_sharpness(view: View) -> dict[str, float]:
    """What of the anatomy's detail in N is in L: the regression of L on N in squares with strong edges, by the block DCT.

    As near to 1 as its error lets it be.
    """
    side = 16 if view.pixel_mm < 1.2 else 8
    basis = dct_matrix(side).astype(np.float32)
    near = to_blocks(view.body, side).any(axis=(-2, -1)) & to_blocks(view.valid, side).all(axis=(-2, -1))
    if np.count_nonzero(near) < SQUARES:
        return {"sharpness": math.nan}
    normal, low = (basis @ np.minimum(to_blocks(one, side)[near], 500) @ basis.T for one in (view.normal, view.low))
    at = nyquist_fraction(side)
    detail = (at >= 0.3) & (at < 0.7)
    normal, low = normal[:, detail], low[:, detail]
    energy = np.square(normal).sum(axis=-1)
    edges = np.argsort(energy)[-max(SQUARES, len(energy) // 7) :]
    own, added = energy[edges], (normal[edges] * (low - normal)[edges]).sum(axis=-1)
    if not own.sum() > 0:
        return {"sharpness": math.nan}
    distance = float(added.sum() / own.sum())
    error = float(np.linalg.norm(added - distance * own) / own.sum())
    return {"sharpness": 1 + math.copysign(max(abs(distance) - SURE * error, 0.0), distance)}


SURE = 2.0
"""Standard errors of the sharpness that may be chance."""
