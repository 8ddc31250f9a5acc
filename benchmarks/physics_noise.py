"""Physics page, noise: its size, spectrum and place, few photons, noise insertion, tube current, crosstalk."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from physics_page import (
    COLOURS,
    Check,
    Plot,
    Section,
    Table,
    about,
    at_least,
    at_most,
    new_figure,
    number,
    plain_log_ticks,
    power_of_ten,
    reference_line,
    show,
)
from physics_scans import HU_PER_MU, Array, Bench, FanBench, body, profile, sd, water
from physics_signal import wire, wire_mtf

from finegrain.evaluate.spectra import nps_log_distance
from finegrain.figures import BLUE, INK, MUTED, ORANGE, DisplayWindow
from finegrain.noise_power import NPS2D, RadialNPS, nps_2d, radial_nps
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import COUNT_FLOOR, STARVED_PHOTONS, Exposure, log_bias, measure, missing_noise, tube_current
from finegrain.simulate.fbp import KERNELS, ReconKernel, filtered_backprojection
from finegrain.simulate.geometry import FanBeam
from finegrain.simulate.phantom import Ellipse, EllipsePhantom, water_disc
from finegrain.simulate.projector import Projector

B30F = KERNELS["B30f"]
PLAIN = Exposure(photons=5e5, electronic_noise=0.0, bowtie="none", modulation=0.0)
"""Counted photons and nothing else: what textbook formulas hold for."""

DISC_MM, CENTRE_MM = 320.0, 40.0
"""The usual object, and how far from its middle its centre reaches."""

DOSES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
ELECTRONIC = 3.3
CELL_COUNTS_OF_THE_LAW = 40.0
"""Photons per detector cell above which the logarithm is linear enough for the 1/dose law to hold to 3 %."""


# --- noise -----------------------------------------------------------------------------------------------------------------


def dose_law(repeats: int) -> Section:
    """Noise against dose and against theory."""
    bench = Bench()
    disc = bench.exact(water(DISC_MM))
    centre = bench.radius() < CENTRE_MM
    ratio, levels = {}, {}
    for electronic in (0.0, ELECTRONIC):
        exposure = replace(PLAIN, electronic_noise=electronic)
        levels[electronic] = [sd(bench.noise(disc, exposure, B30F, dose=dose, n=repeats, seed=1), centre) for dose in DOSES]
        ratio[electronic] = np.array(levels[electronic]) * np.sqrt(DOSES) / levels[electronic][0]
    on_axis = PLAIN.photons * float(np.exp(-disc.max()))
    cell = on_axis * float(bench.beam.rays_per_cell[bench.beam.n_detector // 2])
    ruled = [i for i, dose in enumerate(DOSES) if dose * cell >= CELL_COUNTS_OF_THE_LAW]
    deviation = float(np.abs(ratio[0.0][ruled] - 1).max())
    theory = {name: _theory_ratio(KERNELS[name], repeats) for name in ("B30f", "B40f", "hann-0.8")}
    expected = _delta_method(np.array(DOSES), on_axis)
    at_quarter, at_tenth, at_fortieth = (DOSES.index(dose) for dose in (0.25, 0.1, 0.025))
    rows = [
        (
            f"{dose:g}",
            f"{dose * on_axis:.0f}",
            *(number(value, form) for s in levels for value, form in ((levels[s][i], ".1f"), (ratio[s][i], ".3f"))),
            number(expected[i]),
        )
        for i, dose in enumerate(DOSES)
    ]
    return Section(
        "Noise and dose",
        f"Where photons alone make the noise, its variance is inverse to the dose within {number(100 * deviation, '.1f')} % "
        "(SD); read-out "
        f"noise of {ELECTRONIC:g} photons bends the law at low dose; the level at the centre is that of theory.",
        "σ² = (1000/μ_w)² · π · a · e^{μD} / (2 N₀) · ∫ f² W² df, with a = R Δγ Δβ the density of rays (Kak and Slaney 1988, "
        "section 5.2; two opposite half turns). With read-out noise σₑ the variance of −ln is (1 + σₑ²/N)/N, "
        f"the last column. {DISC_MM / 10:g} cm of water, {power_of_ten(PLAIN.photons)} photons per ray, no bow-tie, B30f, SD "
        "within "
        f"{CENTRE_MM:g} mm of the centre.",
        checks=[
            at_most("σₑ = 0: |R − 1|, R(d) = sd(d)·√d / sd(1), where counts suffice", deviation, 0.03),
            about(f"σₑ = {ELECTRONIC:g}: R at dose {DOSES[at_quarter]:g}", float(ratio[ELECTRONIC][at_quarter]), 1.0, 0.03),
            about(f"σₑ = {ELECTRONIC:g}: R at dose {DOSES[at_tenth]:g}", float(ratio[ELECTRONIC][at_tenth]), 1.04, 0.03),
            about(f"σₑ = {ELECTRONIC:g}: R at dose {DOSES[at_fortieth]:g}", float(ratio[ELECTRONIC][at_fortieth]), 1.23, 0.06),
            *(
                about(f"centre of {DISC_MM / 10:g} cm of water, {name}: measured / theory", value, 1.0, 0.05)
                for name, value in theory.items()
            ),
        ],
        tables=[
            Table(
                ("dose", "photons behind the disc", "SD, σₑ = 0", "R", f"SD, σₑ = {ELECTRONIC:g}", "R", "R, delta method"),
                rows,
                "SD in HU:",
            )
        ],
        plots=[_dose_plot(levels, on_axis)],
        notes=[
            f"The 1/dose law is required where a detector cell counts {CELL_COUNTS_OF_THE_LAW:g} photons or more; below, the "
            "logarithm "
            "itself is not linear any more (see *Few photons*)."
        ],
    )


def _theory_ratio(kernel: ReconKernel, repeats: int) -> float:
    """SD at the centre of 32 cm of water over that of theory, on pixels fine enough for the kernel."""
    bench = Bench(size=2 * NPS_SIDE, pixel_mm=NPS_PIXEL_MM, field_mm=DISC_MM + 10)
    disc = bench.exact(water(DISC_MM))
    measured = sd(bench.noise(disc, PLAIN, kernel, n=repeats, seed=2), bench.radius() < 25)
    fan = bench.beam.fan
    cell = fan.source_iso_mm * fan.channel_angle_rad * 2 * np.pi / fan.n_views
    f = np.linspace(0, kernel.cutoff_per_mm, 2001)
    integral = 2 * np.trapezoid((f * kernel(f)) ** 2, f)
    return measured / (HU_PER_MU * float(np.sqrt(np.pi * integral * cell * np.exp(disc.max()) / (2 * PLAIN.photons))))


def _delta_method(dose: Array, counts: float) -> Array:
    return np.sqrt((1 + ELECTRONIC**2 / (dose * counts)) / (1 + ELECTRONIC**2 / counts))


def _dose_plot(levels: dict[float, list[float]], on_axis: float) -> Plot:
    figure, axes = new_figure(6.0, 3.6)
    fine = np.geomspace(DOSES[-1], 1, 100)
    first = levels[0.0][0]
    axes.loglog(fine, first / np.sqrt(fine), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="∝ 1/√dose")
    bent = levels[ELECTRONIC][0] * _delta_method(fine, on_axis) / np.sqrt(fine)
    axes.loglog(fine, bent, color=ORANGE, linewidth=1, label=f"σₑ = {ELECTRONIC:g}, delta method")
    axes.loglog(DOSES, levels[0.0], "o", color=BLUE, label="σₑ = 0, measured")
    axes.loglog(DOSES, levels[ELECTRONIC], "s", color=ORANGE, label=f"σₑ = {ELECTRONIC:g}, measured")
    plain_log_ticks(axes, x=DOSES, y=(20, 50, 100, 200))
    axes.set(xlabel="dose", ylabel="SD at the centre  [HU]", title="Noise against dose")
    axes.legend()
    return Plot("dose", figure, f"SD at the centre of a {DISC_MM / 10:g} cm water disc against dose.")


NPS_SIDE, NPS_PIXEL_MM, RIM_MM = 128, 0.4, (125.0, 150.0)


def spectra(repeats: int) -> Section:
    """NPS of each kernel, and where in the image the noise is."""
    found = {name: _spectrum(KERNELS[name], repeats) for name in KERNELS if name != "ramp"}
    theory = {name: _expected_mean_frequency(KERNELS[name]) for name in found}
    ratios = {name: radial.mean_frequency / theory[name] for name, (radial, _, _) in found.items()}
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
    area = max((two / direct for _, two, direct in found.values()), key=lambda ratio: abs(ratio - 1))
    low = {name: radial.power[0] / radial.power.max() for name, (radial, _, _) in found.items()}
    edges, profiles = _radial_profiles(repeats)
    rows = [
        (
            name,
            number(r.mean_frequency),
            number(theory[name]),
            number(r.peak_frequency),
            number(np.sqrt(direct), ".1f"),
            number(two / direct, ".4f"),
        )
        for name, (r, two, direct) in found.items()
    ]
    rim = {name: values[-1] / values[0] for name, values in profiles.items()}
    order = ["FC13", "B30f", "B40f", "D45f"]
    rising = min(found[b][0].mean_frequency / found[a][0].mean_frequency for a, b in pairwise(order))
    return Section(
        "Noise power and where the noise is",
        f"The radial noise power is f · W(f)², its mean frequency within {number(100 * abs(ratios[worst] - 1), '.1f')} % of "
        "theory for every "
        "kernel; it integrates to the variance; the bow-tie evens the noise out between centre and rim.",
        f"NPS: ICRU 87 (2012), mean over squares of {NPS_SIDE * NPS_PIXEL_MM:.0f} mm in the middle of a {DISC_MM / 10:g} cm disc, "
        f"{NPS_PIXEL_MM:g} mm pixels. Theory: Riederer, Pelc and Chesler 1978, Phys Med Biol 23:446: NPS ∝ f W². Bow-tie: see "
        "`BOWTIES`.",
        checks=[
            about("mean frequency, measured / theory, worst kernel", ratios[worst], 1.0, 0.03),
            about("integral of the NPS over the variance of the pixels, worst kernel", area, 1.0, 0.01, form=".4f"),
            at_most("power in the lowest ring over the peak, worst kernel", max(low.values()), 0.35),
            at_least("mean frequencies rise FC13, B30f, B40f, D45f: smallest step", rising, 1.0, form=".2f"),
            about("rim over centre, SD, no bow-tie", rim["none"], 0.655, 0.05),
            at_least("rim over centre, bow-tie over none", rim["definition"] / rim["none"], 1.05, form=".2f"),
        ],
        tables=[
            Table(("kernel", "mean f, cycles/mm", "theory", "peak f", "SD, HU", "∫NPS / variance"), rows),
            Table(
                ("bow-tie", "SD at the centre, HU", f"rim (r {RIM_MM[0]:g}–{RIM_MM[1]:g} mm) over centre"),
                [(name, number(values[0], ".1f"), number(rim[name])) for name, values in profiles.items()],
                f"{DISC_MM / 10:g} cm of water, same photons on the central ray, B30f:",
            ),
        ],
        plots=[_spectrum_plot({name: radial for name, (radial, _, _) in found.items()}, edges, profiles)],
    )


def _spectrum(kernel: ReconKernel, repeats: int) -> tuple[RadialNPS, float, float]:
    """Radial NPS, the integral of the NPS, and the variance of the same pixels about the mean of each square."""
    bench = Bench(size=2 * NPS_SIDE, pixel_mm=NPS_PIXEL_MM, field_mm=DISC_MM + 10)
    squares = bench.squares(
        bench.noise(bench.exact(water(DISC_MM)), PLAIN, kernel, n=2 * repeats, seed=3), NPS_SIDE, within_mm=NPS_SIDE * NPS_PIXEL_MM
    )
    power = nps_2d(squares, pixel_mm=bench.pixel_mm)
    step = power.frequency_per_mm[1] - power.frequency_per_mm[0]
    return radial_nps(power), float(power.power.sum() * step**2), float(squares.var(axis=(1, 2)).mean())


def _expected_mean_frequency(kernel: ReconKernel) -> float:
    """∫ f · NPS df / ∫ NPS df of the radial curve NPS = f W²."""
    f = np.linspace(0, kernel.cutoff_per_mm, 2001)
    power = f * kernel(f) ** 2
    return float((f * power).sum() / power.sum())


def _radial_profiles(repeats: int) -> tuple[Array, dict[str, Array]]:
    bench = Bench()
    disc = bench.exact(water(DISC_MM))
    edges = np.arange(0, 160, 12.5)
    edges = edges[edges <= 150]
    found = {}
    for name in ("none", "sensation", "definition"):
        noise = bench.noise(disc, replace(PLAIN, bowtie=name), B30F, n=repeats, seed=4)
        values = np.sqrt(profile((noise.astype(np.float64) ** 2).mean(axis=0), bench.radius(), edges))
        found[name] = np.concatenate([[np.sqrt((noise[:, bench.radius() < 30] ** 2).mean())], values])
        outer = (bench.radius() > RIM_MM[0]) & (bench.radius() < RIM_MM[1])
        found[name] = np.concatenate([found[name], [np.sqrt((noise[:, outer] ** 2).mean())]])
    return edges, found


def _spectrum_plot(radial: dict[str, RadialNPS], edges: Array, profiles: dict[str, Array]) -> Plot:
    figure, (left, right) = new_figure(10.2, 3.5, columns=2)
    for colour, (name, nps) in zip(COLOURS, radial.items(), strict=False):
        area = np.trapezoid(nps.power, nps.frequency_per_mm)
        left.plot(nps.frequency_per_mm, nps.power / area, "o", color=colour, markersize=2.6, label=name)
        f = np.linspace(0, 1.2, 400)
        theory = f * KERNELS[name](f) ** 2
        left.plot(f, theory / np.trapezoid(theory, f), color=colour, linewidth=1)
    left.set(xlabel="spatial frequency  [cycles/mm]", ylabel="share per cycle/mm  [mm]", xlim=(0, 1.2), title="Noise power")
    left.set_ylim(bottom=0)
    left.legend(markerscale=2)
    for colour, line, (name, values) in zip((MUTED, ORANGE, BLUE), ("-", (0, (5, 2)), "-"), profiles.items(), strict=True):
        right.plot((edges[:-1] + edges[1:]) / 2, values[1:-1], color=colour, linestyle=line, label=f"bow-tie: {name}")
    right.set(xlabel="radius  [mm]", ylabel="SD  [HU]", title="Place")
    right.set_ylim(bottom=0)
    right.legend(loc="lower left")
    return Plot(
        "nps",
        figure,
        "Left: radial noise power of each kernel, measured (dots) and f · W² (lines), equal areas. Right: SD by radius.",
    )


# --- native fan against the parallel shortcut ------------------------------------------------------------------------------

PLACES_MM = (0.0, 60.0, 130.0)
NATIVE_DOSES = (1.0, 0.1, 0.02)


def native_fan(repeats: int) -> Section:
    """The chain ray by ray against the shortcut that draws noise on the parallel grid."""
    exposure = Exposure(photons=5e5, electronic_noise=ELECTRONIC, bowtie="definition", modulation=0.0)
    ratios = {
        name: _native_ratios(fan, exposure, repeats)
        for name, fan in (("full turn", FanBeam()), ("short scan", FanBeam().short_scan()))
    }
    pairs = _native_spectra(exposure, repeats)
    distance = nps_log_distance(*pairs["B30f"])
    transfer = _against_spline(*pairs["D45f"])
    bias = _native_bias(exposure, repeats)
    rows = [(name, *(number(value) for value in values)) for name, values in ratios.items()]
    places = [f"r = {place:g} mm" for place in PLACES_MM]
    return Section(
        "Ray by ray against the parallel shortcut",
        "Drawing photons for every ray of the native fan, then rebinning, gives the noise that the simulator gets by drawing on "
        "the "
        f"parallel grid directly: SD within {number(100 * max(abs(v - 1) for row in ratios.values() for v in row), '.1f')} %.",
        "The fan chain is written out in benchmarks/physics_scans.py (`FanBench`): analytic fan line integrals, Poisson and "
        "read-out noise "
        "of each ray, logarithm, `FanProjector.rebin`, FBP. "
        f"{DISC_MM / 10:g} cm of water, bow-tie, fixed current, {power_of_ten(exposure.photons)} photons per ray on the central "
        "one.",
        checks=[
            *(
                about(f"SD, fan / shortcut, {name}, {place}", value, 1.0, 0.05)
                for name, values in ratios.items()
                for place, value in zip(places, values, strict=True)
            ),
            at_most("distance of the two spectra, mean |ln|, B30f", distance, 0.1),
            about("D45f spectrum, fan / shortcut over |H|², mean over 0.05 to 0.65 cycles/mm", transfer, 1.0, 0.05),
            *(
                about(f"mean error at the centre, fan − shortcut, dose {dose:g}", fan - short, 0.0, 1.0, unit="HU", form=".2f")
                for dose, (fan, short) in bias.items()
            ),
        ],
        tables=[
            Table(("scan", *places), rows, "SD, fan / shortcut, B30f:"),
            Table(
                ("dose", "fan, HU", "shortcut, HU"),
                [(f"{dose:g}", number(fan, ".2f"), number(short, ".2f")) for dose, (fan, short) in bias.items()],
                "Mean error at the centre (bias of the logarithm):",
            ),
        ],
        plots=[_native_plot(pairs)],
        notes=[
            "What is missing in the fan chain is what rebinning interpolates away: the transfer H of a cubic spline at the "
            "channels' "
            "spacing, and, away from the centre, between views. Kernels measured as √(NPS(f)/f) on real images hold this loss "
            "already; the "
            "shortcut then has it once, the fan chain with such a kernel twice.",
            "The bias differs because the shortcut takes the logarithm of a cell, which holds "
            f"{number(float(_rays_of_a_cell()), '.2f')} detector elements: few counts are fewer still there.",
        ],
    )


def _native_ratios(fan: FanBeam, exposure: Exposure, repeats: int) -> list[float]:
    bench, native = Bench(fan=fan), FanBench(fan)
    here = bench.noise(bench.exact(water(DISC_MM)), exposure, B30F, n=repeats, seed=5)
    there = native.noise(native.exact(water(DISC_MM)), exposure, B30F, n=repeats, seed=6)
    radius = bench.radius()
    masks = [radius < 25 if place == 0 else np.abs(radius - place) < 12 for place in PLACES_MM]
    return [sd(there, mask) / sd(here, mask) for mask in masks]


def _rays_of_a_cell() -> float:
    beam = Bench().beam
    return float(beam.rays_per_cell[beam.n_detector // 2])


def spline_transfer(frequency_per_mm: Array, spacing_mm: float) -> Array:
    """Transfer of interpolation by a cubic spline. Source: Unser 1999, IEEE Signal Process Mag 16:22."""
    f = frequency_per_mm * spacing_mm
    return np.sinc(f) ** 4 * 3 / (2 + np.cos(2 * np.pi * f))


def _against_spline(fan: RadialNPS, short: RadialNPS) -> float:
    f = fan.frequency_per_mm
    here = (f > 0.05) & (f < 0.65)
    expected = spline_transfer(f, _channel_mm()) ** 2
    return float((fan.power[here] / short.power[here] / expected[here]).mean())


def _channel_mm() -> float:
    fan = FanBeam()
    return fan.source_iso_mm * fan.channel_angle_rad


def _native_spectra(exposure: Exposure, repeats: int) -> dict[str, tuple[RadialNPS, RadialNPS]]:
    bench, native = Bench(), FanBench(FanBeam())
    chains = (
        (list(native.errors(native.exact(water(DISC_MM)), exposure, n=2 * repeats, seed=7)), native.projector.parallel.beam),
        (list(bench.errors(bench.exact(water(DISC_MM)), exposure, n=2 * repeats, seed=8)), bench.beam),
    )
    fine, found = Bench(size=2 * NPS_SIDE, pixel_mm=NPS_PIXEL_MM), {}
    for name in ("B30f", "B40f", "D45f"):
        spectra = []
        for errors, beam in chains:
            projector = Projector(beam, size=fine.size, pixel_mm=fine.pixel_mm)
            images = filtered_backprojection(np.stack(errors), projector, kernel=KERNELS[name]) * HU_PER_MU
            spectra.append(
                radial_nps(nps_2d(fine.squares(images, NPS_SIDE, within_mm=NPS_SIDE * NPS_PIXEL_MM), pixel_mm=fine.pixel_mm))
            )
        found[name] = (spectra[0], spectra[1])
    return found


def _native_bias(exposure: Exposure, repeats: int) -> dict[float, tuple[float, float]]:
    bench, native = Bench(), FanBench(FanBeam())
    centre = bench.radius() < CENTRE_MM
    found = {}
    for dose in NATIVE_DOSES:
        fan = native.noise(native.exact(water(DISC_MM)), exposure, B30F, dose=dose, n=repeats, seed=9)
        here = bench.noise(bench.exact(water(DISC_MM)), exposure, B30F, dose=dose, n=repeats, seed=10)
        found[dose] = float(fan[:, centre].mean()), float(here[:, centre].mean())
    return found


def _native_plot(found: dict[str, tuple[RadialNPS, RadialNPS]]) -> Plot:
    figure, (left, right) = new_figure(10.2, 3.5, columns=2)
    for colour, (name, (fan, short)) in zip(COLOURS, found.items(), strict=False):
        left.plot(short.frequency_per_mm, short.power, color=colour, linewidth=1.2, label=f"{name}, shortcut")
        left.plot(fan.frequency_per_mm, fan.power, "o", color=colour, markersize=3, label=f"{name}, fan")
    left.set(
        xlabel="spatial frequency  [cycles/mm]",
        ylabel="noise power  [HU² mm²]",
        xlim=(0, 1.2),
        title="Ray by ray, and the shortcut",
    )
    left.set_ylim(bottom=0)
    left.legend()
    fan, short = found["D45f"]
    f = np.linspace(0, 1.2, 400)
    right.plot(
        f, spline_transfer(f, _channel_mm()) ** 2, color=INK, linewidth=1.2, label="|H|², cubic spline at the channels' spacing"
    )
    right.plot(fan.frequency_per_mm, fan.power / short.power, "o", color=COLOURS[2], markersize=3, label="fan / shortcut, D45f")
    right.set(
        xlabel="spatial frequency  [cycles/mm]",
        ylabel="ratio of powers",
        xlim=(0, 1.0),
        ylim=(0, 1.3),
        title="What rebinning takes",
    )
    right.legend()
    caption = (
        f"Left: noise power at the centre of {DISC_MM / 10:g} cm of water, photons drawn on the native fan and rebinned (dots), "
        "and on the "
        "parallel grid (lines). Right: their ratio, and the transfer of the spline that rebins."
    )
    return Plot("native-fan", figure, caption)


# --- few photons -----------------------------------------------------------------------------------------------------------

SHOULDER = body(
    424.0,
    210.0,
    *(Ellipse((x, 8.0), (27.0, 27.0), 0.0, 750.0) for x in (-160.0, 160.0)),
    *(Ellipse((x, 8.0), (21.0, 21.0), 0.0, -550.0) for x in (-160.0, 160.0)),
    hu=40.0,
)
"""Soft tissue with two humeral heads: a cortex of 6 mm, trabecular bone within."""

PELVIS = body(
    370.0,
    235.0,
    *(Ellipse((x, 4.0), (25.0, 25.0), 0.0, 700.0) for x in (-88.0, 88.0)),
    *(Ellipse((x, 4.0), (20.0, 20.0), 0.0, -450.0) for x in (-88.0, 88.0)),
    *(Ellipse((x, 16.0), (17.0, 23.0), 0.0, 350.0) for x in (-138.0, 138.0)),
    Ellipse((0.0, 72.0), (14.0, 8.0), 0.0, 400.0),
    hu=40.0,
)
"""Soft tissue with femoral heads, trochanters and coccyx."""

BIAS_DOSES = (1.0, 0.25, 0.1, 0.05, 0.025)
STREAK_DOSES = (1.0, 0.25, 0.1)
ADAPTIVE_BELOW = STARVED_PHOTONS
STREAK_BAND_PER_MM, STREAK_SECTOR_DEG = (0.08, 0.5), 20.0
BIG_DISC_MM = 400.0


def few_photons(repeats: int) -> Section:
    """The logarithm of few counts, starved rays and their streaks."""
    curve, bias = _bias_curve(), _disc_bias(repeats)
    shoulder = {dose: _streak_share(SHOULDER, dose, repeats) for dose in STREAK_DOSES}
    pelvis = {dose: _streak_share(PELVIS, dose, repeats) for dose in STREAK_DOSES}
    low = STREAK_DOSES[-1]
    bodies = (("shoulder", SHOULDER), ("pelvis", PELVIS))
    calmed = {name: _streak_share(phantom, low, repeats, adaptive_below=ADAPTIVE_BELOW) for name, phantom in bodies}
    return Section(
        "Few photons",
        "The logarithm of few counts is biased as `log_bias` says; starved rays make streaks along the long axis of a shoulder "
        f"({number(shoulder[1.0][0], '.0f')} times the power of the other direction at full dose, "
        f"{number(shoulder[low][0], '.0f')} at "
        f"{low:g}); adaptive averaging takes them back.",
        "Starvation and adaptive filtering: Hsieh 1998, Med Phys 25:2139. `log_bias` sums over Poisson counts with the read-out by "
        f"quadrature; a count below {COUNT_FLOOR:g} is set to it. Bodies are ellipses, {_size(SHOULDER)} mm with humeral heads and "
        f"{_size(PELVIS)} mm with femoral heads, trochanters and coccyx; fixed tube current, "
        f"{power_of_ten(_streak_exposure(0).photons)} "
        f"photons per ray, B30f. Directional power: NPS in the middle, {STREAK_BAND_PER_MM[0]:g} to {STREAK_BAND_PER_MM[1]:g} "
        "cycles/mm, "
        f"within {STREAK_SECTOR_DEG:g}° of the direction across the streaks over that along them.",
        checks=[
            *_bias_checks(curve, bias),
            at_least("shoulder, power across over along the streaks, full dose", shoulder[1.0][0], 20, form=".0f"),
            at_least(f"the same, dose {low:g} over full dose", shoulder[low][0] / shoulder[1.0][0], 1.0, form=".2f"),
            at_most(
                f"shoulder, dose {low:g}, SD with adaptive averaging over without", calmed["shoulder"][1] / shoulder[low][1], 0.9
            ),
            at_most("the same, directional power", calmed["shoulder"][0] / shoulder[low][0], 1.0),
            at_most(f"pelvis, dose {low:g}, SD with adaptive averaging over without", calmed["pelvis"][1] / pelvis[low][1], 1.0),
        ],
        tables=[_bias_table(bias), _streak_table(shoulder, pelvis, calmed)],
        plots=[_bias_plot(curve, bias), *(_streak_plot(name, phantom) for name, phantom in bodies)],
    )


def _bias_checks(curve: list[tuple[float, ...]], bias: dict[float, tuple[float, ...]]) -> list[Check]:
    beyond = max(abs(measured - expected) - 4 * error for _, _, expected, measured, error in curve)
    off = max(abs(measured / predicted - 1) for predicted, measured, _, _ in bias.values() if predicted > 2)
    lowest = BIAS_DOSES[-1]
    disc = f"{BIG_DISC_MM / 10:g} cm disc"
    return [
        at_most("log_bias against Monte Carlo, largest |difference| beyond 4 standard errors", max(beyond, 0.0), 0.01),
        at_most(f"{disc}: bias at the centre against `starvation_bias_hu`, relative, where it passes 2 HU", off, 0.1),
        about(f"{disc}, dose {lowest:g}: bias on the native fan over the simulator's", bias[lowest][2] / bias[lowest][1], 1.0, 0.2),
    ]


def _bias_table(bias: dict[float, tuple[float, ...]]) -> Table:
    rows = [
        (f"{dose:g}", number(predicted, ".2f"), number(measured, ".2f"), number(fan, ".2f"), number(100 * starved, ".3f"))
        for dose, (predicted, measured, fan, starved) in bias.items()
    ]
    header = ("dose", "`starvation_bias_hu`", "measured", "native fan", "starved rays, %")
    return Table(header, rows, f"{BIG_DISC_MM / 10:g} cm of water, bias at the centre in HU:")


def _streak_table(
    shoulder: dict[float, tuple[float, float]], pelvis: dict[float, tuple[float, float]], calmed: dict[str, tuple[float, float]]
) -> Table:
    pairs = [(f"{dose:g}", shoulder[dose], pelvis[dose]) for dose in STREAK_DOSES]
    pairs.append((f"{STREAK_DOSES[-1]:g}, adaptive", calmed["shoulder"], calmed["pelvis"]))
    rows = [(words, *(number(value, ".1f") for value in (*left, *right))) for words, left, right in pairs]
    header = ("dose", "shoulder, power ratio", "shoulder, SD HU", "pelvis, power ratio", "pelvis, SD HU")
    return Table(header, rows, "Streaks, and SD in the middle:")


def _bias_curve() -> list[tuple[float, float, float, float, float]]:
    """(read-out SD, counts, log_bias, Monte Carlo, its standard error)."""
    generator, found, n = np.random.default_rng(20), [], 200_000
    for electronic in (0.0, ELECTRONIC):
        for counts in np.geomspace(0.3, 300, 16):
            drawn = generator.poisson(counts, n) + electronic * generator.standard_normal(n)
            value = -np.log(np.maximum(drawn, COUNT_FLOOR) / counts)
            expected = float(log_bias(np.array(counts), electronic))
            found.append((electronic, float(counts), expected, float(value.mean()), float(value.std() / np.sqrt(n))))
    return found


def _disc_bias(repeats: int) -> dict[float, tuple[float, float, float, float]]:
    """Per dose: bias predicted, measured, measured on the native fan, share of starved rays."""
    exposure = Exposure(photons=1e6, electronic_noise=ELECTRONIC, bowtie="none", modulation=0.0)
    bench, native = Bench(pixel_mm=0.85), FanBench(FanBeam(), pixel_mm=0.85)
    scanner = Scanner(size=bench.size, pixel_mm=bench.pixel_mm, kernel=B30F, exposure=exposure)
    hu, disc, rays = (
        water_disc(BIG_DISC_MM, bench.size, bench.pixel_mm),
        bench.exact(water(BIG_DISC_MM)),
        native.exact(water(BIG_DISC_MM)),
    )
    centre, found = bench.radius() < 60, {}
    for dose in BIAS_DOSES:
        predicted = scanner.starvation_bias_hu(hu, dose_fraction=dose)[centre].mean()
        here = bench.noise(disc, exposure, B30F, dose=dose, n=repeats, seed=21)
        there = native.noise(rays, exposure, B30F, dose=dose, n=repeats, seed=22)
        starved = measure(disc, bench.beam, exposure, dose_fraction=dose, generator=np.random.default_rng(23)).starved_share
        found[dose] = float(predicted), float(here[:, centre].mean()), float(there[:, centre].mean()), starved
    return found


def _streak_exposure(adaptive_below: float) -> Exposure:
    return Exposure(photons=1e6, electronic_noise=ELECTRONIC, modulation=0.0, adaptive_below=adaptive_below)


def _streak_share(phantom: EllipsePhantom, dose: float, repeats: int, *, adaptive_below: float = 0.0) -> tuple[float, float]:
    """Noise power across over along the long axis, and the SD, both in the middle."""
    bench = Bench(pixel_mm=0.9)
    noise = bench.noise(bench.exact(phantom), _streak_exposure(adaptive_below), B30F, dose=dose, n=repeats, seed=24)
    squares = bench.squares(noise, 42, within_mm=38.0)
    nps = nps_2d(squares, pixel_mm=bench.pixel_mm)
    return _anisotropy(nps), float(np.sqrt(nps.variance))


def _anisotropy(nps: NPS2D) -> float:
    """Power across a horizontal long axis over that along it."""
    f_y, f_x = np.meshgrid(nps.frequency_per_mm, nps.frequency_per_mm, indexing="ij")
    low, high = STREAK_BAND_PER_MM
    band = (np.hypot(f_x, f_y) > low) & (np.hypot(f_x, f_y) < high)
    from_y = np.degrees(np.arctan2(np.abs(f_x), np.abs(f_y)))
    across, along = (nps.power[band & sector].mean() for sector in (from_y < STREAK_SECTOR_DEG, from_y > 90 - STREAK_SECTOR_DEG))
    return float(across / along)


def _size(phantom: EllipsePhantom) -> str:
    return " × ".join(f"{2 * axis:g}" for axis in phantom.ellipses[0].semi_axes_mm)


def _bias_plot(curve: list[tuple[float, float, float, float, float]], bias: dict[float, tuple[float, float, float, float]]) -> Plot:
    figure, (left, right) = new_figure(10.2, 3.4, columns=2)
    fine = np.geomspace(0.3, 300, 200)
    for electronic, colour in ((0.0, BLUE), (ELECTRONIC, ORANGE)):
        left.semilogx(fine, log_bias(fine, electronic), color=colour, label=f"log_bias, σₑ = {electronic:g}")
        points = [(counts, measured) for sigma, counts, _, measured, _ in curve if sigma == electronic]
        left.semilogx(*zip(*points, strict=True), "o", color=colour, markersize=4, label="Monte Carlo")
    left.set(xlabel="mean count", ylabel="bias of −ln", title="The logarithm of few counts")
    left.legend()
    doses = list(bias)
    for index, (name, look) in enumerate((("starvation_bias_hu", "-"), ("measured", "o"), ("native fan", "s"))):
        values = [max(bias[dose][index], 0.02) for dose in doses]
        right.loglog(doses, values, look, color=(INK, BLUE, ORANGE)[index], label=name, markersize=5)
    plain_log_ticks(right, x=doses, y=(0.3, 1, 3, 10, 30, 100))
    plain_log_ticks(left, x=(0.3, 1, 3, 10, 30, 100, 300))
    right.set(xlabel="dose", ylabel="bias  [HU]", title=f"Centre of {BIG_DISC_MM / 10:g} cm of water")
    right.legend()
    return Plot(
        "bias",
        figure,
        "Left: mean error of a line integral against the mean count. Right: what it does to the centre of a large disc.",
    )


def _streak_plot(name: str, phantom: EllipsePhantom) -> Plot:
    bench, window = Bench(pixel_mm=0.9), DisplayWindow("", 40, 500)
    sinogram = bench.exact(phantom)
    clean = bench.image(sinogram, B30F)
    figure, panels = new_figure(11.0, 2.35, columns=3)
    rows, columns = slice(118, 394), slice(8, 504)
    for axes, (dose, adaptive) in zip(panels, ((1.0, 0.0), (0.1, 0.0), (0.1, ADAPTIVE_BELOW)), strict=True):
        noise = bench.noise(sinogram, _streak_exposure(adaptive), B30F, dose=dose, seed=25)[0]
        words = f"dose {dose:g}" + (f", averaged below {adaptive:g} photons" if adaptive else "")
        show(axes, (clean + noise)[rows, columns], window, words)
    return Plot(name, figure, f"{name.capitalize()}-like body, window {window.centre:g} / {window.width:g} HU.")


# --- noise insertion -------------------------------------------------------------------------------------------------------


def insertion(repeats: int) -> Section:
    """Missing noise added to a full-dose scan against a direct scan at a quarter."""
    dose, exposure = 0.25, Exposure(photons=8e5)
    found = {
        name: _inserted(phantom, dose, exposure, repeats)
        for name, phantom in (("water disc", water(DISC_MM)), ("elliptical body", body(330, 230)))
    }
    (right, twice, distance, _, _), (right_body, _, distance_body, _, _) = found.values()
    rows = [(name, number(r), number(t), number(d), number(s)) for name, (r, t, d, s, _) in found.items()]
    return Section(
        "Noise insertion",
        f"A full-dose scan with its missing noise added is a direct scan at {dose:g}: SD within "
        f"{number(100 * abs(right - 1), '.1f')} %; drawing "
        f"Poisson counts around the noisy scan would give {number(100 * (twice - 1), '.0f')} % too much.",
        "Form of Yu et al. 2012, J Comput Assist Tomogr 36:477, derived for the mean of two opposite rays (`dose.missing_noise`). "
        "The wrong way counts the noise of the base twice: var = (1/a + 1) of the full dose's instead of 1/a.",
        checks=[
            about("water: SD inserted / direct", right, 1.0, 0.03),
            about("elliptical body: SD inserted / direct", right_body, 1.0, 0.03),
            at_most("water: NPS inserted against direct, mean |ln| over 0.05 to 0.55 cycles/mm", distance, 0.1),
            at_most("elliptical body: the same", distance_body, 0.1),
            about("the wrong way: SD re-Poisson / direct", twice, float(np.sqrt(1 + dose)), 0.03),
        ],
        tables=[
            Table(
                ("object", "inserted / direct", "re-Poisson / direct", "NPS distance, inserted", "re-Poisson"),
                rows,
                "SD within 100 mm of the centre:",
            )
        ],
        plots=[_insertion_plot(found["water disc"][4])],
    )


def _inserted(phantom: EllipsePhantom, dose: float, exposure: Exposure, repeats: int) -> tuple:
    bench, generator = Bench(), np.random.default_rng(30)
    sinogram = bench.exact(phantom)
    settings = {"dose_fraction": dose, "generator": generator}
    errors: dict[str, list[Array]] = {"direct": [], "inserted": [], "re-Poisson": []}
    for _ in range(2 * repeats):
        full = measure(sinogram, bench.beam, exposure, dose_fraction=1.0, generator=generator).line_integrals
        # The exposure of the direct scan follows the noise-free body, that of an insertion the noisy one, as with a real scan.
        errors["inserted"].append(full + missing_noise(full, bench.beam, exposure, **settings) - sinogram)
        errors["re-Poisson"].append(measure(full, bench.beam, exposure, **settings).line_integrals - sinogram)
        errors["direct"].append(measure(sinogram, bench.beam, exposure, **settings).line_integrals - sinogram)
    images = {name: np.stack([bench.difference(error, B30F) for error in several]) for name, several in errors.items()}
    inside = bench.radius() < 100
    level = {name: sd(several, inside) for name, several in images.items()}
    spectra = {
        name: radial_nps(nps_2d(bench.squares(several, 64, within_mm=90), pixel_mm=bench.pixel_mm))
        for name, several in images.items()
    }
    distances = [nps_log_distance(spectra["direct"], spectra[name]) for name in ("inserted", "re-Poisson")]
    ratios = [level[name] / level["direct"] for name in ("inserted", "re-Poisson")]
    return (*ratios, *distances, spectra)


def _insertion_plot(found: dict[str, RadialNPS]) -> Plot:
    figure, axes = new_figure(6.0, 3.3)
    for (name, nps), colour, line in zip(found.items(), (INK, BLUE, ORANGE), ("-", (0, (4, 2)), "-"), strict=True):
        axes.plot(nps.frequency_per_mm, nps.power, color=colour, linestyle=line, label=name)
    axes.set(
        xlabel="spatial frequency  [cycles/mm]",
        ylabel="noise power  [HU² mm²]",
        title="A quarter of the dose, three ways",
        xlim=(0, 0.7),
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    caption = (
        "NPS in the middle of the water disc: a direct scan at a quarter, full dose with the missing noise, and full dose with "
        "Poisson counts drawn around it."
    )
    return Plot("insertion", figure, caption)


# --- tube current ----------------------------------------------------------------------------------------------------------

STRENGTHS = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)


def modulation(repeats: int) -> Section:
    """Tube-current modulation along the angle at equal mean photons."""
    bench, phantom = Bench(), body(330.0, 220.0, hu=40.0)
    sinogram = bench.exact(phantom)
    measured = {strength: _modulated(bench, sinogram, strength, repeats) for strength in STRENGTHS}
    fixed = measured[0.0][0]
    gain = {strength: values[0] / fixed for strength, values in measured.items()}
    expected = {strength: _modulation_theory(bench, sinogram, strength) for strength in STRENGTHS}
    disc = bench.exact(water(240.0))
    round_ = _modulated(bench, disc, 0.5, repeats)[0] / _modulated(bench, disc, 0.0, repeats)[0]
    best = min(gain, key=gain.__getitem__)
    off = max(abs(gain[s] / expected[s] - 1) for s in STRENGTHS)
    rows = [
        (
            f"{s:g}",
            number(measured[s][2], ".2f"),
            number(measured[s][0], ".1f"),
            number(gain[s]),
            number(expected[s]),
            number(measured[s][1], ".2f"),
        )
        for s in STRENGTHS
    ]
    header = ("strength", "current, largest / least", "SD, HU", "relative", "theory", "anisotropy of the NPS")
    return Section(
        "Tube-current modulation along the angle",
        f"At the same mean photons, an abdomen-like ellipse has {number(100 * (1 - gain[best]), '.0f')} % less noise at its "
        "centre with a strength of "
        f"{best:g}, and its noise is less directional; a round object is not changed.",
        "Gies et al. 1999, Med Phys 26:2235: the least noise at the centre for the dose is had with the current ∝ "
        "√(attenuation), strength 0.5. "
        "Theory: σ² ∝ mean(e^{p}/m) with m = e^{αp} / mean(e^{αp}), p the line integral through the centre. "
        f"Ellipse of {_size(phantom)} mm, SD within 25 mm of the centre, σₑ = 0, no bow-tie, B30f.",
        checks=[
            about("strength of the least noise", best, 0.5, 0.2, form=".2f"),
            at_most("SD at the centre over that of theory, both relative to a fixed current, largest error", off, 0.03),
            at_most("anisotropy of the noise, strength 0.5 over fixed current", measured[0.5][1] / measured[0.0][1], 0.8),
            about("mean of the relative current", measured[0.5][3], 1.0, 1e-6, form=".6f"),
            about("round object: SD with strength 0.5 over fixed current", round_, 1.0, 0.01),
        ],
        tables=[Table(header, rows, "Anisotropy: power across over along the long axis, as in *Few photons*:")],
        plots=[_modulation_plot(bench, sinogram, gain)],
    )


def _modulated(bench: Bench, sinogram: Array, strength: float, repeats: int) -> tuple[float, float, float, float]:
    """SD at the centre, anisotropy of the noise there, range of the current, its mean."""
    exposure = replace(PLAIN, modulation=strength)
    noise = bench.noise(sinogram, exposure, B30F, n=2 * repeats, seed=40)
    nps = nps_2d(bench.squares(noise, 48, within_mm=34), pixel_mm=bench.pixel_mm)
    current = tube_current(sinogram, bench.beam, strength=strength)
    return sd(noise, bench.radius() < 25), _anisotropy(nps), float(current.max() / current.min()), float(current.mean())


def _modulation_theory(bench: Bench, sinogram: Array, strength: float) -> float:
    """SD at the centre relative to a fixed current, by the line integrals through the centre."""
    through = sinogram[:, bench.beam.n_detector // 2].astype(np.float64)
    current = np.exp(strength * through) / np.exp(strength * through).mean()
    return float(np.sqrt((np.exp(through) / current).mean() / np.exp(through).mean()))


def _modulation_plot(bench: Bench, sinogram: Array, gain: dict[float, float]) -> Plot:
    figure, (left, right) = new_figure(9.6, 3.2, columns=2)
    fine = np.linspace(0, 1, 60)
    left.plot(fine, [_modulation_theory(bench, sinogram, s) for s in fine], color=MUTED, linewidth=1.2, label="theory")
    left.plot(list(gain), list(gain.values()), "o", color=BLUE, label="measured")
    reference_line(left, 1.0)
    left.set(xlabel="strength", ylabel="SD, relative to fixed current", title="Centre of an ellipse, same mean photons")
    left.legend()
    for strength, colour in ((0.3, BLUE), (0.5, ORANGE)):
        current = tube_current(sinogram, bench.beam, strength=strength)
        right.plot(np.degrees(bench.beam.angles_rad), current, color=colour, label=f"strength {strength:g}")
    right.set(xlabel="view angle θ  [degrees]", ylabel="relative tube current", title="Current", xlim=(0, 180))
    right.set_ylim(bottom=0)
    right.set_xticks([0, 45, 90, 135, 180])
    right.legend()
    caption = (
        "Left: noise at the centre of the ellipse by strength. Right: the current that makes it; rays along the long axis are "
        "those "
        "at 90°."
    )
    return Plot("modulation", figure, caption)


# --- crosstalk -------------------------------------------------------------------------------------------------------------

SHARES = (0.02, 0.05)


def crosstalk(repeats: int) -> Section:
    """What leaks into neighbouring channels does to noise and resolution."""
    kernel = KERNELS["D45f"]
    powers = {share: _crosstalk_spectrum(share, kernel, repeats) for share in (0.0, *SHARES)}
    lines = {share: _crosstalk_mtf(share, kernel) for share in (0.0, *SHARES)}
    checks, rows = [], []
    for share in SHARES:
        f = powers[share].frequency_per_mm
        here = (f > 0.05) & (f < 1.0)
        noise = powers[share].power[here] / powers[0.0].power[here] / leak_transfer(f[here], share) ** 2
        g = lines[share][0]
        usable = (g < 1.0) & (lines[0.0][1] > 0.1)
        signal = (lines[share][1] / lines[0.0][1])[usable] / leak_transfer(g[usable], share)
        checks += [
            about(f"NPS with over without, over T², mean, c = {share:g}", float(noise.mean()), 1.0, 0.02),
            at_most(f"MTF with over without, over T, largest error, c = {share:g}", float(np.abs(signal - 1).max()), 0.01),
        ]
        halves = [number(float(np.interp(-0.5, -line[1], line[0]))) for line in (lines[0.0], lines[share])]
        rows.append(
            (
                f"{share:g}",
                *halves,
                number(np.sqrt(powers[share].variance / powers[0.0].variance)),
                number((1 - 2 * share) ** 2 + 2 * share**2),
            )
        )
    return Section(
        "Crosstalk",
        "Signal that leaks into neighbouring channels multiplies the MTF by T(f) = 1 − 2c + 2c cos 2πfa, and the noise power by "
        "T²; a = "
        f"{number(_channel_mm(), '.3f')} mm is the channel at the isocentre.",
        "A three-point convolution of independent counts: variance (1 − 2c)² + 2c². Read-out noise comes after the leak and is not "
        "correlated. Default is none: measured kernels hold it already. D45f, 0.4 mm pixels; MTF with a wire.",
        checks=checks,
        tables=[Table(("c", "MTF50 without, cycles/mm", "with", "SD, with / without", "variance factor of white noise"), rows)],
        plots=[_crosstalk_plot(powers, lines)],
    )


def leak_transfer(frequency_per_mm: Array, share: float) -> Array:
    """Transfer of the leak into either neighbour."""
    return 1 - 2 * share + 2 * share * np.cos(2 * np.pi * frequency_per_mm * _channel_mm())


def _crosstalk_spectrum(share: float, kernel: ReconKernel, repeats: int) -> RadialNPS:
    bench = Bench(size=2 * NPS_SIDE, pixel_mm=NPS_PIXEL_MM, field_mm=DISC_MM + 10)
    noise = bench.noise(bench.exact(water(DISC_MM)), replace(PLAIN, crosstalk=share), kernel, n=2 * repeats, seed=50)
    return radial_nps(nps_2d(bench.squares(noise, NPS_SIDE, within_mm=NPS_SIDE * NPS_PIXEL_MM), pixel_mm=bench.pixel_mm))


def _crosstalk_mtf(share: float, kernel: ReconKernel) -> tuple[Array, Array]:
    """MTF of a faint wire, measured with so many photons that there is no noise."""
    bench, faint = Bench(size=512, pixel_mm=0.2), 0.02
    exposure = Exposure(photons=1e16, electronic_noise=0.0, bowtie="none", modulation=0.0, crosstalk=share)
    sinogram = faint * wire(bench)
    measured = measure(sinogram, bench.beam, exposure, dose_fraction=1.0, generator=np.random.default_rng(51)).line_integrals
    return wire_mtf(bench, bench.difference(measured, kernel) / faint / HU_PER_MU)


def _crosstalk_plot(powers: dict[float, RadialNPS], lines: dict[float, tuple[Array, Array]]) -> Plot:
    figure, (left, right) = new_figure(9.6, 3.2, columns=2)
    fine = np.linspace(0, 1.1, 200)
    for share, colour in zip(SHARES, (BLUE, ORANGE), strict=True):
        f, without = powers[0.0].frequency_per_mm, powers[0.0].power
        left.plot(f, powers[share].power / without, "o", color=colour, markersize=3, label=f"c = {share:g}")
        left.plot(fine, leak_transfer(fine, share) ** 2, color=colour, linewidth=1)
        g, mtf = lines[share]
        right.plot(g[::4], (mtf / lines[0.0][1])[::4], "o", color=colour, markersize=3, label=f"c = {share:g}")
        right.plot(fine, leak_transfer(fine, share), color=colour, linewidth=1)
    left.set(ylabel="noise power, relative", title="Noise")
    right.set(ylabel="MTF, relative", title="Resolution")
    for axes in (left, right):
        axes.set(xlabel="spatial frequency  [cycles/mm]", xlim=(0, 1.05), ylim=(0.55, 1.05))
        axes.legend(loc="lower left")
    return Plot(
        "crosstalk",
        figure,
        "Noise power (left) and MTF (right) with crosstalk over those without: measured (dots), T² and T (lines).",
    )
