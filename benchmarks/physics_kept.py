"""Sections of the physics page whose numbers other benchmarks measured and kept as JSON: they need scans or hours."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from physics_page import Check, Plot, Section, Table, about, at_most, new_figure, number, reference_line

from finegrain.figures import BLUE, ORANGE

TISSUES = {"soft": "soft tissue", "lung": "lung", "fat": "fat", "bone": "bone"}
SCANS = "AAPM–Mayo Low Dose CT Grand Challenge, The Cancer Imaging Archive, doi 10.7937/9NPB-2637; they do not ship"


def kept(path: Path) -> Any:
    """What a benchmark wrote, or None."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def plus_minus(row: dict[str, Any], key: str, form: str = ".2f") -> str:
    """Mean ± SD over slices."""
    return f"{number(row[key], form)} ± {number(row[key + '_spread'], form)}" if key in row else "–"


def real_noise(path: Path) -> Section:
    """Simulated quarter-dose noise against quarter minus full dose."""
    command = "`python benchmarks/real_noise.py FOLDER --json docs/data/real-noise.json`"
    data = kept(path)
    if data is None:
        return Section("Against real scans", "Not measured.", command)
    rows = data["summaries"]
    kernels = [row for row in rows if " " not in row["what"]]
    checks: list[Check] = []
    for row in kernels:
        for tissue, name in TISSUES.items():
            checks.append(about(f"{row['what']}: SD simulated over real, {name}", row[f"sd_{tissue}"], 1, 0.05))
        checks.append(at_most(f"{row['what']}: NPS log distance, mean", row["nps_mean"], 0.1))
        checks.append(at_most(f"{row['what']}: NPS log distance, largest", row["nps_largest"], 0.15))
    absolute = Table(
        ("slices of", "number", *TISSUES.values(), "NPS distance", "largest"),
        [
            (
                row["what"],
                str(row["slices"]),
                *(plus_minus(row, f"sd_{tissue}") for tissue in TISSUES),
                number(row["nps_mean"]),
                number(row["nps_largest"]),
            )
            for row in rows
        ],
        "SD simulated over real, mean ± SD over slices, photons from the mAs of the header:",
    )
    others = Table(
        ("slices of", *list(TISSUES.values())[1:], "level from the image", "bias real, HU", "bias simulated, HU"),
        [
            (
                row["what"],
                *(plus_minus(row, f"matched_{tissue}") for tissue in list(TISSUES)[1:]),
                plus_minus(row, "image_level"),
                number(row["bias_real_hu"], ".1f"),
                number(row["bias_simulated_hu"], ".1f"),
            )
            for row in kernels
        ],
        "The same with the level matched in soft tissue; the level that the noise of the full-dose image alone gives, "
        "over the real "
        "one; mean of the noise in soft tissue:",
    )
    return Section(
        "Against real scans",
        f"The quarter dose of {sum(row['slices'] for row in kernels)} real full-dose slices is simulated from mAs, kVp and slice "
        "thickness in their headers and held against quarter minus full dose of the same slices.",
        f"{command}. {SCANS}. NPS distance: mean absolute log of the ratio at equal area, 0.05 to 0.55 cycles/mm.",
        checks=checks,
        tables=[absolute, others],
        plots=[_spectra(data, kernels), _ratios(data)],
        notes=[
            "Kernels, bow-tie, modulation, photons per mAs and the treatment of starved rays were fitted to these slices as a "
            "whole, a dozen numbers for all; nothing is fitted to a slice or a patient. The rows of single patients "
            "show what is left. "
            "The scanner is helical: its noise maps have a side that is noisier by a tenth or two, and it turns with z; this model "
            "has none. With the sharp kernel, lung is too noisy against soft tissue.",
            "`--pictures FOLDER` writes real and simulated noise of every slice side by side, dark bands of starved rays and all. "
            "They show pixels of the scans and are not part of this page.",
        ],
    )


def _spectra(data: dict[str, Any], kernels: list[dict[str, Any]]) -> Plot:
    figure, axes = new_figure(7.2, 2.8, columns=2, sharey=True)
    frequency = np.array(data["frequency_per_mm"])
    for place, row in zip(axes, kernels, strict=True):
        for one in data["slices"]:
            if one["kernel"] == row["what"]:
                place.plot(frequency, one["nps_real"], color=BLUE, linewidth=0.5, alpha=0.35)
                place.plot(frequency, one["nps_simulated"], color=ORANGE, linewidth=0.5, alpha=0.35)
        place.plot(frequency, row["nps_real"], color=BLUE, linewidth=2, label="real")
        place.plot(frequency, row["nps_simulated"], color=ORANGE, linewidth=2, linestyle=(0, (4, 2)), label="simulated")
        place.set(title=row["what"], xlabel="frequency  [cycles/mm]", ylim=(0, None))
    axes[0].set_ylabel("noise power, mean 1")
    axes[0].legend()
    return Plot("real-nps", figure, "Radial noise power of the missing noise, real and simulated: single slices thin, means thick.")


def _ratios(data: dict[str, Any]) -> Plot:
    figure, axes = new_figure(7.2, 2.6)
    patients = sorted({one["patient"] for one in data["slices"]})
    kernels = sorted({one["kernel"] for one in data["slices"]})
    for index, tissue in enumerate(TISSUES):
        for k, kernel in enumerate(kernels):
            for p, marker in zip(patients, ("o", "s", "^", "D"), strict=False):
                found = [
                    one["sd_ratio"][tissue]
                    for one in data["slices"]
                    if one["kernel"] == kernel and one["patient"] == p and tissue in one["sd_ratio"]
                ]
                where = index + (k - 0.5) * 0.36 + 0.08 * (patients.index(p) - 1)
                label = f"{kernel}, {p}" if index == 0 and found else None
                axes.plot([where] * len(found), found, marker, color=(BLUE, ORANGE)[k], markersize=4, alpha=0.6, label=label)
    reference_line(axes, 1.0)
    axes.axhspan(0.95, 1.05, color=BLUE, alpha=0.07, linewidth=0)
    axes.set_xticks(range(len(TISSUES)), TISSUES.values())
    axes.set_ylabel("SD simulated / real")
    axes.legend(ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return Plot("real-sd", figure, "SD of simulated over real noise in every slice; the band is ±5 %, which the means are held to.")


def domain_gap(path: Path) -> Section:
    """What training on simulated instead of real pairs costs."""
    command = "`python benchmarks/domain_gap.py FOLDER --work WORK --steps 1500 --json docs/data/domain-gap.json`"
    data = kept(path)
    if data is None:
        return Section("Training on simulated instead of real pairs", "Not measured.", command)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in data["slices"]:
        for name in ("all", row["kernel"], f"{row['kernel']} {row['patient']}"):
            groups[name].append(row)
    gaps = {name: np.array([row["real"] - row["simulated"] for row in rows]) for name, rows in groups.items()}
    table = [
        (
            name,
            str(len(rows)),
            *(number(float(np.mean([row[key] for row in rows])), ".2f") for key in ("input", "real", "simulated")),
            f"{number(gaps[name].mean(), '.2f')} ± {number(gaps[name].std(), '.2f')}",
        )
        for name, rows in sorted(groups.items())
    ]
    heading = ("tested on", "slices", "input, dB", "trained on real pairs", "on simulated pairs", "gap, dB")
    return Section(
        "Training on simulated instead of real pairs",
        "Two networks that differ only in where their quarter dose comes from, real or simulated from the real full "
        "dose of the same "
        f"slices, differ by {number(abs(gaps['all'].mean()), '.2f')} dB on the real pairs of patients that neither has seen.",
        f"{command}. {SCANS}. PSNR, window −160 to 240 HU, whole slice, against the full dose; {data['steps']} steps of "
        "eight patches, "
        "mean squared error, leave one patient out; gap is real minus simulated.",
        checks=[
            at_most("gap in the mean over slices", abs(float(gaps["all"].mean())), 0.3, unit="dB"),
            at_most("largest gap of a slice", float(max(np.abs(gaps["all"]))), 0.3, unit="dB"),
        ],
        tables=[Table(heading, table)],
        notes=["One training per arm and patient; the simulator was fitted to these scanners (section above)."],
    )


def speed(path: Path) -> Section:
    """Projection, reconstruction and making of pairs, against other libraries."""
    command = "`python benchmarks/projection.py --json docs/data/projection.json`"
    data = kept(path)
    if data is None:
        return Section("Speed and memory", "Not measured.", command)
    libraries = Table(
        (
            "library",
            "rays at the isocentre",
            "forward, s",
            "FBP, s",
            "times as slow",
            "memory, MB",
            "rms projection",
            "flat RMSE, HU",
        ),
        [
            (
                row["library"],
                row["rays"],
                number(row["forward_s"]),
                number(row["fbp_s"]),
                number(row["times_as_slow"], ".1f"),
                number(row["memory_mb"], ".0f"),
                number(row["projection_rms"], ".4f"),
                number(row["flat_rms_hu"], ".2f"),
            )
            for row in data["libraries"]
        ],
        "One 512² slice, one thread each; memory is the peak above the imports:",
    )
    hours = next(key for key in data["pairs"][0] if key.startswith("hours"))
    pairs = Table(
        ("what", "device", "processes", "slices/s", hours.replace("_", " ")),
        [
            (row["what"], row["device"], str(row["processes"]), number(row["slices_per_s"], ".2f"), number(row[hours], ".1f"))
            for row in data["pairs"]
        ],
        "Making pairs, without reading and writing files:",
    )
    gpu = data["gpu"] or "none"
    return Section(
        "Speed and memory",
        f"Measured on {data['cores']} cores of {data['processor']}; GPU: {gpu}.",
        f"{command}; what is fair and what is not in this comparison stands in benchmarks.md.",
        tables=[libraries, pairs],
    )
