"""Physics page, what holds without noise: geometry, line integrals, water, contrasts, kernels, test phantoms."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from physics_page import COLOURS, Plot, Section, Table, at_least, at_most, new_figure, number, power_of_ten, reference_line, show
from physics_scans import Array, Bench, FanBench, profile, rms, water
from scipy import ndimage

from finegrain.figures import BLUE, INK, MUTED, ORANGE, DisplayWindow
from finegrain.hu import MU_WATER_PER_MM
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import KERNELS, ReconKernel, filtered_backprojection, reconstruct_hu
from finegrain.simulate.geometry import SCANNERS, FanBeam
from finegrain.simulate.phantom import (
    CCT189_INSERTS,
    CONTRAST_INSERTS,
    LINE_PAIRS_PER_CM,
    Ellipse,
    EllipsePhantom,
    cct189_phantom,
    insert_phantom,
    line_pair_centre,
    line_pair_phantom,
)
from finegrain.simulate.spectrum import Spectrum

RODS = EllipsePhantom((Ellipse((0.0, 0.0), (160.0, 110.0), 0.2, 1000.0), *insert_phantom().ellipses[1:]))
"""A body of water with the seven rods of the CTP404 module in it."""

TUBE_KVP = 120


# --- geometry --------------------------------------------------------------------------------------------------------------


def geometry() -> Section:
    """Presets, and what fan → parallel rebinning costs."""
    fans = {
        **SCANNERS,
        "siemens-definition, flat": FanBeam(detector="flat"),
        "siemens-definition, short scan": FanBeam().short_scan(),
    }
    found = {name: _rebinning(fan) for name, fan in fans.items()}
    forward, rebin, mean, spread = (max(abs(row[i]) for row in found.values()) for i in range(4))
    rows = [
        (name, *(number(value, form) for value, form in zip(row[:4], (".4f", ".4f", ".3f", ".2f"), strict=True)))
        for name, row in found.items()
    ]
    return Section(
        "Geometry",
        f"A fan ray (β, γ) is the parallel ray θ = β − γ, s = R sin γ; reading fan rays off the parallel grid and rebinning them "
        f"back changes line integrals by at most {number(max(forward, rebin), '.4f')} rms and water by at most "
        f"{number(mean, '.3f')} HU, for every scanner, detector shape and scan length.",
        "Kak and Slaney 1988, section 3.4.3 (rebinning); Parker 1982, Med Phys 9:254 (short-scan weights). Object: elliptical body "
        "with the rods of CTP404, kernel B30f; line integrals of ellipses after Kak and Slaney, section 3.1.",
        checks=[
            at_most("projected on the fan against analytic, rms, worst", forward, 0.006, form=".4f"),
            at_most("analytic fan rays rebinned against analytic parallel ones, rms, worst", rebin, 0.006, form=".4f"),
            at_most("water after rebinning, |mean|, worst", mean, 0.5, unit="HU"),
            at_most("water after rebinning, SD of the noise-free image, worst", spread, 1.0, unit="HU", form=".2f"),
        ],
        tables=[
            _presets(),
            Table(("scanner", "forward, rms", "rebinned, rms", "water, mean HU", "water, SD HU"), rows, "Rebinning error of each:"),
        ],
        plots=[_geometry_plot(found["siemens-definition"][4], found["siemens-definition, short scan"][4])],
    )


def _presets() -> Table:
    rows = [
        (
            name,
            f"{fan.source_iso_mm:g} / {fan.source_detector_mm:g}",
            f"{fan.n_channels} × {fan.detector_pitch_mm:g}",
            f"{fan.channel_offset:g}",
            f"{fan.n_views}",
            f"{fan.field_of_view_mm:.0f}",
            fan.origin,
        )
        for name, fan in SCANNERS.items()
    ]
    header = ("scanner", "source to axis / detector, mm", "channels × mm", "offset", "views", "field of view, mm", "source")
    return Table(header, rows, "Presets (`SCANNERS`):")


def _rebinning(fan: FanBeam) -> tuple[float, float, float, float, Array]:
    bench, native = Bench(fan=fan), FanBench(fan)
    exact = native.exact(RODS)
    mu = (RODS.image(bench.size, bench.pixel_mm) + 1000) * np.float32(MU_WATER_PER_MM / 1000)
    forward = native.projector.forward(mu) - exact
    parallel = native.projector.parallel
    beam = parallel.beam
    truth = RODS.line_integral(beam.detector_positions_mm[None], beam.angles_rad[:, None])
    rebinned = native.projector.rebin(exact)
    hu = reconstruct_hu(rebinned, parallel, kernel=KERNELS["B30f"])
    middle = hu[bench.radius() < 40]
    error = filtered_backprojection(rebinned - truth, parallel, kernel=KERNELS["B30f"]) * 1000 / MU_WATER_PER_MM
    return rms(forward), rms(rebinned - truth), float(middle.mean()), float(middle.std()), error


def _geometry_plot(full: Array, short: Array) -> Plot:
    figure, (left, right, *images) = new_figure(11.4, 3.3, columns=4, width_ratios=(1.0, 1.25, 1, 1))
    _draw_fan(left)
    _draw_sampling(right)
    window = DisplayWindow("", 0, 10)
    for axes, error, name in zip(images, (full, short), ("full turn", "short scan"), strict=True):
        show(axes, error, window, f"rebinning error, {name}\n±{window.width / 2:g} HU")
    return Plot(
        "geometry",
        figure,
        "Left: one view of the default fan. Second: where its rays lie on the parallel grid, both half turns (filled and open), "
        "and the "
        "grid cells. Right: what rebinning adds to the image of the body with rods.",
    )


def _draw_fan(axes: Axes) -> None:
    fan = FanBeam()
    gamma = fan.channel_angles_rad
    beta, radius = 0.35, fan.source_iso_mm
    source = radius * np.array([np.sin(beta), np.cos(beta)])
    for at in np.linspace(gamma[0], gamma[-1], 9):
        way = fan.source_detector_mm * np.array([np.sin(beta + np.pi + at), np.cos(beta + np.pi + at)])
        axes.plot(*np.stack([source, source + way]).T, color=MUTED, linewidth=0.7)
    arc = source[:, None] + fan.source_detector_mm * np.array([np.sin(beta + np.pi + gamma), np.cos(beta + np.pi + gamma)])
    axes.plot(*arc, color=INK, linewidth=2.4)
    turn = np.linspace(0, 2 * np.pi, 200)
    axes.plot(radius * np.sin(turn), radius * np.cos(turn), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.fill(160 * np.cos(turn), 110 * np.sin(turn), color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(*source, "o", color=ORANGE, markersize=6)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title("source, fan, detector", fontsize=9, fontweight="normal")


def _draw_sampling(axes: Axes) -> None:
    fan = FanBeam()
    step = 2 * np.pi / fan.n_views
    for index, (fill, side) in enumerate((("full", 1), ("none", -1))):
        gamma = fan.channel_angles_rad[None, 360:378]
        view = np.arange(-8, 9)[:, None] * step
        theta = np.degrees(view - side * gamma if side > 0 else view + gamma)
        s = side * fan.source_iso_mm * np.sin(gamma) + 0 * theta
        colour = (BLUE, ORANGE)[index]
        axes.plot(
            s.ravel(), theta.ravel(), "o", color=colour, markersize=3.2, fillstyle=fill, markeredgewidth=0.8, linestyle="none"
        )
    axes.set(xlim=(-2.1, 2.1), ylim=(-1.1, 1.1), xlabel="s  [mm]", ylabel="θ  [degrees]")
    axes.set_xticks(np.arange(-2.1, 2.2, 0.3), minor=True)
    axes.grid(True, which="minor", axis="x", linewidth=0.4)
    axes.set_title("rays near the isocentre", fontsize=9, fontweight="normal")


# --- line integrals --------------------------------------------------------------------------------------------------------


def line_integrals() -> Section:
    """The projector against analytic line integrals of ellipses."""
    bench = Bench()
    image = (RODS.image(bench.size, bench.pixel_mm) + 1000) * np.float32(MU_WATER_PER_MM / 1000)
    exact = RODS.line_integral(bench.beam.detector_positions_mm[None], bench.beam.angles_rad[:, None])
    error = bench.projector.forward(image) - exact
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=image.shape), generator.normal(size=exact.shape)
    projected, spread = bench.projector.forward(x).astype(float), bench.projector.adjoint(y).astype(float)
    mismatch = abs((projected * y).sum() - (x * spread).sum()) / (np.linalg.norm(projected) * np.linalg.norm(y))
    return Section(
        "Line integrals",
        f"The projector reproduces the analytic line integrals of ellipses to {number(rms(error), '.4f')} rms, where the largest "
        "is "
        f"{number(exact.max(), '.2f')}: {number(100 * rms(error) / exact.max(), '.2f')} %.",
        "Fourier slice theorem by a non-uniform FFT, Barnett et al. 2019, doi 10.1137/18M120885X; ellipses, Kak and Slaney 1988, "
        "section 3.1. The image is anti-aliased (16 × 16 points in each pixel on an edge); what is left is the pixels' width.",
        checks=[
            at_most("error of line integrals, rms", rms(error), 0.006, form=".4f"),
            at_most("error of line integrals, mean |d|", float(np.abs(error).mean()), 0.003, form=".4f"),
            at_most("their mean, |bias|", abs(float(error.mean())), 0.0002, form=".5f"),
            at_most("adjoint, relative mismatch of the dot products", mismatch, 1e-6, form=".1e"),
        ],
        plots=[_view_plot(bench, exact, error)],
    )


def _view_plot(bench: Bench, exact: Array, error: Array) -> Plot:
    view = 100
    figure, (left, right) = new_figure(9.0, 2.9, columns=2)
    left.plot(bench.beam.detector_positions_mm, exact[view], color=BLUE)
    left.set(xlabel="s  [mm]", ylabel="line integral", title="one view")
    right.plot(bench.beam.detector_positions_mm, 1000 * error[view], color=ORANGE, linewidth=0.9)
    right.set(xlabel="s  [mm]", ylabel="error  [10⁻³]", title="projected − analytic")
    angle = number(np.degrees(bench.beam.angles_rad[view]), ".1f")
    return Plot("line-integrals", figure, f"The view at θ = {angle}° of the body with seven rods, and the projector's error in it.")


# --- water and contrasts ---------------------------------------------------------------------------------------------------


DIAMETERS_MM = (200.0, 320.0, 400.0)


def water_and_contrast() -> Section:
    """Uniformity, beam hardening, CT numbers of inserts."""
    bench = Bench(pixel_mm=0.85)
    mono = {(d, k): _uniformity(bench, bench.exact(water(d)), d, KERNELS[k]) for d in DIAMETERS_MM for k in ("B30f", "D45f")}
    spectrum = Spectrum(TUBE_KVP)
    poly = {d: _uniformity(bench, _hardened(spectrum, bench.exact(water(d))), d, KERNELS["B30f"]) for d in DIAMETERS_MM}
    raw = {d: _uniformity(bench, _uncorrected(spectrum, bench.exact(water(d))), d, KERNELS["B30f"]) for d in DIAMETERS_MM}
    rods, band, aside = _bone_rods(bench, spectrum)
    contrasts = _contrasts()
    worst = max(abs(measured / insert.hu - 1) for insert, measured in contrasts)
    rows = [
        (
            f"{d / 10:g} cm",
            *(number(value, ".2f") for value in (*mono[d, "B30f"], *mono[d, "D45f"], *poly[d])),
            number(raw[d][1], ".1f"),
        )
        for d in DIAMETERS_MM
    ]
    every = [*mono.values(), *poly.values()]
    return Section(
        "Water and contrast",
        f"Water is {number(max(abs(m) for m, _ in every), '.2f')} HU or less from zero and cups by at most "
        f"{number(max(abs(c) for _, c in every), '.2f')} HU; without water correction a {TUBE_KVP} kVp beam would cup by "
        f"{number(raw[DIAMETERS_MM[-1]][1], '.0f')} HU in the largest disc. Contrasts are right within "
        f"{number(100 * worst, '.2f')} %.",
        "Water correction: the measured −ln is mapped so that water alone is linear, as scanners do (Herman 1979, Phys Med Biol "
        "24:81). "
        "Nominal contrasts: Catphan manual, CTP404. Cupping is the mean within 20 to 35 mm of the rim minus that within 20 mm "
        "of the centre; an insert is read within 3 mm of its middle, against water at the same radius between the inserts.",
        checks=[
            *(
                at_most(f"water, {d / 10:g} cm, |mean at the centre|, worst kernel", _worst(mono, d, 0), 1, unit="HU")
                for d in DIAMETERS_MM
            ),
            *(
                at_most(f"water, {d / 10:g} cm, |rim − centre|, worst kernel", _worst(mono, d, 1), 2, unit="HU")
                for d in DIAMETERS_MM
            ),
            at_most(
                f"{TUBE_KVP} kVp, corrected, |mean at the centre|, worst disc", max(abs(m) for m, _ in poly.values()), 1, unit="HU"
            ),
            at_most(f"{TUBE_KVP} kVp, corrected, |rim − centre|, worst disc", max(abs(c) for _, c in poly.values()), 2, unit="HU"),
            at_most("between two bone rods, against water beside them", band - aside, -5, unit="HU", form=".1f"),
            at_most("contrast of inserts, largest relative error", 100 * worst, 1, unit="%", form=".2f"),
        ],
        tables=[
            Table(
                (
                    "disc",
                    "B30f mean",
                    "B30f cupping",
                    "D45f mean",
                    "D45f cupping",
                    "corrected mean",
                    "corrected cupping",
                    "uncorrected cupping",
                ),
                rows,
                f"HU, noise-free; the last three with the {TUBE_KVP} kVp beam and B30f:",
            ),
            Table(
                ("nominal contrast, HU", "measured", "error, %"),
                [(number(i.hu, ".0f"), number(m, ".2f"), number(100 * (m / i.hu - 1), ".2f")) for i, m in contrasts],
                "Inserts, B30f:",
            ),
        ],
        plots=[_cupping_plot(bench, spectrum), _bone_plot(rods)],
    )


def _worst(found: dict[tuple[float, str], tuple[float, float]], diameter_mm: float, column: int) -> float:
    return max(abs(value[column]) for (d, _), value in found.items() if d == diameter_mm)


def _hardened(spectrum: Spectrum, sinogram: Array) -> Array:
    return spectrum.water_corrected(sinogram, np.zeros_like(sinogram))


def _uncorrected(spectrum: Spectrum, sinogram: Array) -> Array:
    """Hardened line integrals, scaled so that the thinnest water comes out right."""
    thin = np.full(1, 1e-2)
    return spectrum.measured(sinogram, np.zeros_like(sinogram)) * float(thin[0] / spectrum.measured(thin, np.zeros(1))[0])


def _uniformity(bench: Bench, sinogram: Array, diameter_mm: float, kernel: ReconKernel) -> tuple[float, float]:
    hu, radius = bench.image(sinogram, kernel), bench.radius()
    centre = hu[radius < 20].mean()
    rim = hu[(radius > diameter_mm / 2 - 35) & (radius < diameter_mm / 2 - 20)].mean()
    return float(centre), float(rim - centre)


def _bone_rods(bench: Bench, spectrum: Spectrum) -> tuple[list[Array], float, float]:
    """Mono- and polychromatic image of two bone rods in water, HU between them and beside them."""
    rods = EllipsePhantom(tuple(Ellipse((x, 0.0), (16.0, 16.0), 0.0, 1000.0) for x in (-60.0, 60.0)))
    disc, bone = bench.exact(water(240.0)), bench.exact(rods)
    # A rod of +1000 HU: its water is replaced by bone of twice the attenuation.
    poly = spectrum.water_corrected(disc - bone, 2 * bone)
    images = [bench.image(sinogram, KERNELS["B30f"]) for sinogram in (disc + bone, poly)]
    band, aside = (float(images[1][bench.radius(centre) < 12].mean()) for centre in ((0.0, 0.0), (0.0, 75.0)))
    return images, band, aside


def _contrasts() -> list[tuple]:
    bench = Bench(pixel_mm=0.45)
    hu = bench.image(bench.exact(insert_phantom()), KERNELS["B30f"])
    step = np.pi / len(CONTRAST_INSERTS)
    found = []
    for insert in CONTRAST_INSERTS:
        between = [
            (insert.radius_mm * float(np.cos(a)), insert.radius_mm * float(np.sin(a)))
            for a in (insert.angle_rad - step, insert.angle_rad + step)
        ]
        background = np.mean([hu[bench.radius(centre) < 6].mean() for centre in between])
        found.append((insert, float(hu[bench.radius(insert.center_mm) < 3].mean() - background)))
    return found


def _cupping_plot(bench: Bench, spectrum: Spectrum) -> Plot:
    figure, axes = new_figure(6.4, 3.1)
    edges = np.arange(0, 200, 2.0)
    exact = bench.exact(water(320.0))
    lines = {
        "monoenergetic": (exact, BLUE, "-"),
        f"{TUBE_KVP} kVp, water-corrected": (_hardened(spectrum, exact), ORANGE, (0, (5, 3))),
        f"{TUBE_KVP} kVp, uncorrected": (_uncorrected(spectrum, exact), MUTED, "-"),
    }
    for name, (sinogram, colour, line) in lines.items():
        values = profile(bench.image(sinogram, KERNELS["B30f"]), bench.radius(), edges)
        inside = edges[1:] < 156
        offset = values[0] if name.endswith("uncorrected") else 0
        axes.plot(edges[:-1][inside] + 1, values[inside] - offset, color=colour, linestyle=line, label=name)
    axes.set(xlabel="radius  [mm]", ylabel="CT number  [HU]", title="Water disc of 32 cm")
    axes.legend(loc="upper left")
    return Plot(
        "cupping", figure, "Radial profile of a noise-free 32 cm water disc; the uncorrected one is shifted to zero at the centre."
    )


def _bone_plot(images: list[Array]) -> Plot:
    window = DisplayWindow("", 0, 150)
    figure, panels = new_figure(8.6, 3.1, columns=3)
    middle = slice(100, 412)
    for axes, hu, name in zip(
        panels, (*images, images[1] - images[0]), ("monoenergetic", f"{TUBE_KVP} kVp", "difference"), strict=True
    ):
        show(axes, hu[middle, middle], window, name)
    return Plot(
        "bone-rods",
        figure,
        f"Two bone rods (32 mm, +1000 HU at the reference energy) in 24 cm of water, window ±{window.width / 2:g} HU: the dark "
        "band between "
        "them, and rods that are brighter than at the reference energy.",
    )


# --- kernels ---------------------------------------------------------------------------------------------------------------


def kernels() -> Section:
    """Measured transfer of each kernel, by a wire."""
    bench = Bench(size=512, pixel_mm=0.2)
    thin = wire(bench)
    measured = {name: _mtf(bench, thin, kernel) for name, kernel in KERNELS.items() if name != "ramp"}
    largest = max(float(np.abs(mtf - KERNELS[name](f))[f < 1].max()) for name, (f, mtf) in measured.items())
    rows, order = [], {}
    for name, (f, mtf) in measured.items():
        order[name] = _falls_to(f, mtf, 0.5)
        shape = [number(float(KERNELS[name](np.array([at]))[0]), ".3f") for at in TABLE_FREQUENCIES]
        rows.append((name, *shape, number(order[name], ".3f"), number(_falls_to(f, mtf, 0.1), ".3f"), KERNELS[name].origin))
    header = ("kernel", *(f"W({at:g})" for at in TABLE_FREQUENCIES), "MTF50", "MTF10", "source")
    return Section(
        "Kernels",
        f"A thin wire reconstructed with a kernel has that kernel's W(f) for its MTF, to {number(largest, '.4f')}; frequencies "
        "are in "
        "cycles per mm at the isocentre, whatever the pixel.",
        "A wire of Gaussian profile (its own transform divided out) 7 mm from the isocentre, analytic line integrals, 0.2 mm "
        "pixels. "
        "Focal spot and detector aperture are part of a measured W; `crosstalk` can add to them.",
        checks=[
            at_most("MTF of a wire against W(f), largest difference up to 1 cycle/mm", largest, 0.01, form=".4f"),
            at_least("MTF50: D45f over B40f", order["D45f"] / order["B40f"], 1.0, form=".2f"),
            at_least("MTF50: B40f over B30f", order["B40f"] / order["B30f"], 1.0, form=".2f"),
        ],
        tables=[Table(header, rows, "W at frequencies in cycles/mm; MTF50 and MTF10 as measured with the wire:")],
        plots=[_kernel_plot(measured)],
    )


TABLE_FREQUENCIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WIRE_MM, WIRE_SIGMA_MM = (5.1, -4.8), 0.25


def wire(bench: Bench) -> Array:
    """Line integrals of a Gaussian wire of unit area, in 1/mm."""
    theta = bench.beam.angles_rad[:, None]
    off = bench.beam.detector_positions_mm[None] - WIRE_MM[0] * np.cos(theta) - WIRE_MM[1] * np.sin(theta)
    return np.exp(-0.5 * (off / WIRE_SIGMA_MM) ** 2) / (WIRE_SIGMA_MM * np.sqrt(2 * np.pi))


def wire_mtf(bench: Bench, image: Array) -> tuple[Array, Array]:
    """Frequencies up to 1.2 cycles/mm and the MTF, from the image of `wire`: ring means of |FT| over the wire's own."""
    f = np.fft.fftfreq(bench.size, bench.pixel_mm)
    frequency = np.hypot(f[:, None], f[None, :])
    transfer = np.abs(np.fft.fft2(image)) * bench.pixel_mm**2 / np.exp(-2 * (np.pi * WIRE_SIGMA_MM * frequency) ** 2)
    edges = np.arange(0.005, 1.2, 0.01)
    return (edges[:-1] + edges[1:]) / 2, profile(transfer, frequency, edges)


def _mtf(bench: Bench, sinogram: Array, kernel: ReconKernel) -> tuple[Array, Array]:
    return wire_mtf(bench, filtered_backprojection(sinogram, bench.projector, kernel=kernel))


def _falls_to(frequency: Array, mtf: Array, level: float) -> float:
    below = np.nonzero(mtf < level)[0]
    if not len(below):
        return float("nan")
    first = below[0]
    return float(np.interp(-level, -mtf[first - 1 : first + 1], frequency[first - 1 : first + 1]))


def _kernel_plot(measured: dict[str, tuple[Array, Array]]) -> Plot:
    figure, axes = new_figure(6.4, 3.3)
    for colour, (name, (f, mtf)) in zip(COLOURS, measured.items(), strict=False):
        fine = np.linspace(0, 1.2, 400)
        axes.plot(fine, KERNELS[name](fine), color=colour, label=name)
        axes.plot(f[::4], mtf[::4], "o", color=colour, markersize=3)
    for level in (0.5, 0.1):
        reference_line(axes, level)
    axes.set(xlabel="spatial frequency  [cycles/mm]", ylabel="W,  MTF", xlim=(0, 1.2), ylim=(0, 1.03), title="Kernels")
    axes.legend(loc="upper right")
    return Plot("kernels", figure, "W(f) of each kernel (lines) and the MTF of a wire reconstructed with it (dots).")


# --- test phantoms ---------------------------------------------------------------------------------------------------------


def phantoms() -> Section:
    """Pictures and numbers of the standard phantoms."""
    pairs = _line_pairs()
    lines_sharp = float(np.max(np.abs([m - w for m, w in pairs["D45f"]])))
    lines_soft = float(np.max(np.abs([m - w for m, w in pairs["B30f"]])))
    rods = _low_contrast()
    worst = max(abs(measured - insert.hu) for insert, measured in rods if insert.diameter_mm >= 5)
    per_frequency = [
        (f"{per_cm}", *(number(value, ".3f") for name in ("B30f", "D45f") for value in pairs[name][index]))
        for index, per_cm in enumerate(LINE_PAIRS_PER_CM)
    ]
    return Section(
        "Test phantoms",
        "Water, contrast, line-pair and low-contrast phantoms have exact line integrals, and their images show what the kernel "
        "lets "
        f"through: the modulation of line pairs is W(f) to {number(max(lines_sharp, lines_soft), '.3f')}.",
        "Modulation: fundamental of the two middle periods over 2/π of the contrast (the fundamental of a square wave), bars of "
        "15 mm, "
        "five to a pattern, read over their middle third. Low contrast: MITA CCT189 rods.",
        checks=[
            at_most("line pairs, D45f, modulation against W(f), largest difference", lines_sharp, 0.05),
            at_most("line pairs, B30f, modulation against W(f), largest difference", lines_soft, 0.05),
            at_most("CCT189 rods of 5 mm and more, B30f, largest error", worst, 0.3, unit="HU", form=".2f"),
        ],
        tables=[
            Table(
                ("line pairs per cm", "B30f measured", "B30f W", "D45f measured", "D45f W"),
                per_frequency,
                "Modulation of line pairs:",
            ),
            Table(
                ("CCT189 rod, mm", "nominal, HU", "measured, HU"),
                [(f"{i.diameter_mm:g}", f"{i.hu:g}", number(m, ".2f")) for i, m in rods],
                "Read in the middle (within a quarter of the diameter), B30f; the smallest is blurred by the kernel:",
            ),
        ],
        plots=[_phantom_plot()],
    )


def _line_pairs() -> dict[str, list[tuple[float, float]]]:
    """Modulation measured and W, per kernel and frequency."""
    bench = Bench(size=512, pixel_mm=0.34)
    sinogram = bench.exact(line_pair_phantom())
    found = {}
    for name in ("B30f", "D45f"):
        hu = bench.image(sinogram, KERNELS[name])
        found[name] = [
            (_modulation(bench, hu, index), float(KERNELS[name](np.array([per_cm / 10]))[0]))
            for index, per_cm in enumerate(LINE_PAIRS_PER_CM)
        ]
    return found


def _modulation(bench: Bench, hu: Array, index: int) -> float:
    x, y, angle = line_pair_centre(index)
    per_mm = LINE_PAIRS_PER_CM[index] / 10
    across = np.linspace(-1, 1, 401)[:-1] / per_mm
    along = np.linspace(-2.5, 2.5, 11)
    at_x = x + along[:, None] * np.cos(angle) - across[None, :] * np.sin(angle)
    at_y = y + along[:, None] * np.sin(angle) + across[None, :] * np.cos(angle)
    values = ndimage.map_coordinates(
        hu, [at_y / bench.pixel_mm + bench.size // 2, at_x / bench.pixel_mm + bench.size // 2], order=5
    )
    amplitude = 2 * np.abs((values.mean(axis=0) * np.exp(-2j * np.pi * per_mm * across)).mean())
    return float(amplitude / (1000 * 2 / np.pi))


def _low_contrast() -> list[tuple]:
    bench = Bench(size=512, pixel_mm=0.45)
    hu = bench.image(bench.exact(cct189_phantom()), KERNELS["B30f"])
    background = float(hu[bench.radius() < 20].mean())
    return [(i, float(hu[bench.radius(i.center_mm) < i.diameter_mm / 4].mean()) - background) for i in CCT189_INSERTS]


def _phantom_plot() -> Plot:
    figure, panels = new_figure(10.8, 5.9, columns=4, rows=2)
    exposure = Exposure(photons=1e6, modulation=0.0)
    kinds = (
        ("water disc, 20 cm", 200, water(200), "B30f", DisplayWindow("", 0, 100)),
        ("contrast inserts", 200, insert_phantom(), "B30f", DisplayWindow("", 0, 800)),
        ("line pairs, D45f", 160, line_pair_phantom(), "D45f", DisplayWindow("", 450, 1100)),
        ("CCT189", 200, cct189_phantom(), "B30f", DisplayWindow("", 3, 40)),
    )
    for column, (name, diameter_mm, phantom, kernel, window) in enumerate(kinds):
        bench = Bench(pixel_mm=1.06 * diameter_mm / 512)
        sinogram = bench.exact(phantom)
        clean = bench.image(sinogram, KERNELS[kernel])
        noisy = clean + bench.noise(sinogram, exposure, KERNELS[kernel], seed=column)[0]
        words = f"{number(window.centre, 'g')} / {number(window.width, 'g')} HU"
        show(panels[0][column], clean, window, f"{name}\n{words}")
        show(panels[1][column], noisy, window, "")
    photons = power_of_ten(exposure.photons)
    caption = f"The test phantoms without noise (above) and with {photons} photons per ray (below); window centre / width."
    return Plot("phantoms", figure, caption)
