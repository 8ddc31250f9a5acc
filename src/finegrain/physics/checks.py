"""What is measured in a phantom scan, each with its unit, interval, method and source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from finegrain.errors import DataError
from finegrain.evaluate.observer import LG_WIDTH_PER_DIAMETER, channelised_hotelling, fourier_d_prime, laguerre_gauss
from finegrain.evaluate.spectra import (
    FEWEST_ROIS,
    noise_of_repeats,
    nps_interval,
    nps_shape_log_distance,
    nps_standard_error,
)
from finegrain.evaluate.transfer import REACH_MM, TTF, circular_edge_ttf
from finegrain.noise_power import NPS2D, RadialNPS, mean_nps, periodograms, radial_nps
from finegrain.physics.geometry import INTERIOR, ROD_CORE, Phantom, Rod, distance_mm
from finegrain.physics.places import Places, disc
from finegrain.physics.scans import PhantomScan, refuse_unequal_noise
from finegrain.physics.settings import Disc
from finegrain.report.words import number

SMALLEST_TTF_RADIUS_MM = 3.5
"""Radius of a rod below which its edge is too short for a TTF; ours."""

LEAST_TTF_CNR = 15.0
"""Total contrast-to-noise ratio below which no TTF is given, 25 being what it takes for a good one. Measured at 15: f50 scatters by
3 to 5 % (`evaluate.transfer`)."""

LEAST_CT_NUMBER_RADIUS_MM = 3.0
"""Radius of a rod below which blur reaches its middle and no CT number is given; ours."""

LARGEST_TASK_HU = 30.0
"""Contrast of a rod up to which a channelised Hotelling observer is asked: whatever is stronger is found by anybody. Ours."""

FEWEST_CHO_IMAGES = 10
"""Images below which d′ of that observer says nothing; ours: five channels need fourteen of both kinds at the least."""

MOST_ABSENT_PLACES = 6
"""Signal-free places at a rod's distance from the centre that each image gives; ours."""

WATER = "plain material"
"""What the body is made of, water or a plastic like it."""

PROFILE_STRIP_MM = 5.0
"""Width over which a profile is averaged; ours."""

LEAST_REACH_MM = 2.5
"""Free distance around a rod's edge below which it gets no TTF: plateaus are needed on either side. Ours."""

MOST_SQUARES = 2000
"""Squares of the NPS that are kept for its interval: more change nothing and fill the memory. Ours."""

LEAST_NOISE_HU = 1e-3
"""Noise below which there is none to speak of: a simulated truth, or the same image over and over. Ours."""

ROI_PER_DIAMETER = 3.0
"""Side of the observer's square over the rod's diameter; ours: Laguerre–Gauss channels have ended by then."""


@dataclass(frozen=True)
class Quantity:
    """How a check is shown and where its method comes from."""

    label: str
    unit: str
    decimals: int
    method: str
    source: str


QUANTITIES = {
    "ct_number": Quantity(
        "CT number",
        "HU",
        1,
        "mean of a disc: of the plain material a tenth of the body wide, of a rod its inner 60 %; interval over images",
        "quantity of IEC 61223-3-5 and of the ACR CT accreditation phantom; the discs are ours",
    ),
    "uniformity": Quantity(
        "Uniformity",
        "HU",
        1,
        "mean of a disc near the edge less that of the central one, four places; interval over images",
        "quantity of IEC 61223-3-5 and of the ACR CT accreditation phantom; the discs are ours",
    ),
    "noise": Quantity(
        "Noise",
        "HU",
        2,
        "standard deviation in the central 40 % of the body after the mean of all images was taken off; interval over images",
        "IEC 61223-3-5 (disc); taking the mean off is ours: it leaves rings and cupping out",
    ),
    "nps_mean_frequency": Quantity(
        "NPS mean frequency",
        "1/mm",
        4,
        "∫ f·NPS df / ∫ NPS df of the radial spectrum; interval by bootstrap of the squares",
        "AAPM Report 233 (2019); ICRU 87 for the spectrum",
    ),
    "nps_peak_frequency": Quantity(
        "NPS peak frequency",
        "1/mm",
        3,
        "top of the radial spectrum, by a parabola through three points; interval by bootstrap of the squares",
        "AAPM Report 233 (2019)",
    ),
    "ttf_f50": Quantity(
        "TTF f50",
        "1/mm",
        3,
        "where the transfer at the rod's circular edge first falls to 0.5; interval by bootstrap of the images",
        "AAPM Report 233 (2019); Richard et al. 2012, Med Phys 39:4115",
    ),
    "ttf_f10": Quantity(
        "TTF f10",
        "1/mm",
        3,
        "where the transfer at the rod's circular edge first falls to 0.1; interval by bootstrap of the images",
        "AAPM Report 233 (2019); Richard et al. 2012, Med Phys 39:4115",
    ),
    "d_prime_cho": Quantity(
        "d′ CHO",
        "",
        2,
        "channelised Hotelling observer, five Laguerre–Gauss channels on the rod and on places without it; unbiased, interval by "
        "the noncentral F",
        "Gallas and Barrett 2003; Wunderlich et al. 2015, IEEE TMI 34:453",
    ),
    "d_prime_npw": Quantity(
        "d′ NPW",
        "",
        2,
        "non-prewhitening observer, from NPS and the TTF of the rod of least contrast that has one, for a disc of stated size and "
        "contrast; a network is neither linear nor stationary: a guide beside d′ from images",
        "AAPM Report 233 (2019), detectability index",
    ),
    "nps_shape_distance": Quantity(
        "NPS shape distance",
        "",
        3,
        "mean |ln| of the ratio of the two radial spectra at equal area, 0.05 to 0.55 cycles/mm, against the scan before",
        "ours",
    ),
}
"""In the order of the page."""


@dataclass(frozen=True)
class Check:
    """One measured number.

    Attributes:
        quantity: key of `QUANTITIES`. place: where, e.g. "water", "12 o'clock", "rod 3".
        value: in the unit of the quantity.
        low, high: 95 % interval; NaN where none is known.
        n: how many images, squares or pairs it rests on.
        warnings: what a reader must know.
    """

    quantity: str
    place: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Quantity and place, unlike any other's."""
        return f"{self.quantity}[{self.place}]"


@dataclass(frozen=True)
class Spectrum:
    """The noise power of a scan: two-dimensional, radial, with the standard error of each ring, and the squares it is from."""

    whole: NPS2D
    radial: RadialNPS
    standard_error: NDArray[np.float64]
    side: int


@dataclass(frozen=True)
class Measured:
    """All that one scan gave.

    Attributes:
        checks: in the order of the page.
        ttf: by the name of the rod.
        profiles: "horizontal" and "vertical" → HU of the mean image through the body's centre, at `profile_mm`.
        mean_hu, single_hu: mean of the images of the uniform section, and one of them; rods_hu: mean of the rods' section.
    """

    scan: PhantomScan
    checks: tuple[Check, ...]
    nps: Spectrum | None
    ttf: dict[str, TTF]
    profile_mm: NDArray[np.float64]
    profiles: dict[str, NDArray[np.float64]]
    mean_hu: NDArray[np.float64] = field(repr=False)
    single_hu: NDArray[np.float64] = field(repr=False)
    rods_hu: NDArray[np.float64] | None = field(repr=False)
    notes: tuple[str, ...] = ()

    def check(self, key: str) -> Check | None:
        """The check of a key, if it was measured."""
        return next((one for one in self.checks if one.key == key), None)


def measure(
    scans: Sequence[PhantomScan], phantom: Phantom, *, places: Places, tasks: Sequence[Disc], seed: int = 0
) -> list[Measured]:
    """All checks of all scans at the same places; the first is what the others are compared with.

    Args:
        tasks: discs for d′ from TTF and NPS; the rod whose TTF is taken is the same for all scans.
        seed: of the bootstraps.

    Raises: DataError if the repeats of a scan have unlike noise.
    """
    found = [_measure(scan, phantom, places, seed) for scan in scans]
    rods = phantom.rods.rods if phantom.rods else ()
    shared = [rod for rod in rods if all(rod.name in one.ttf for one in found)]
    task_rod = min(shared, key=lambda rod: abs(rod.contrast_hu), default=None)
    finished = []
    for one in found:
        more = [] if task_rod is None else list(_npw(one, task_rod, tasks))
        if one is not found[0] and one.nps and (before := found[0].nps):
            more.append(Check("nps_shape_distance", "plain material", nps_shape_log_distance(one.nps.radial, before.radial)))
        order = list(QUANTITIES)
        finished.append(replace(one, checks=tuple(sorted((*one.checks, *more), key=lambda c: order.index(c.quantity)))))
    return finished


def _measure(scan: PhantomScan, phantom: Phantom, places: Places, seed: int) -> Measured:
    images = scan.images(phantom.uniform.slices)
    checks, notes = list(_ct_numbers(images, places)), []
    noise = _noise(images, phantom, places)
    refuse_unequal_noise(_noise_of_each_repeat(scan, phantom, places), scan.name)
    checks.append(_noise_check(noise))
    nps = None
    if noise.max() < LEAST_NOISE_HU:
        notes.append("the images hold no noise: no NPS and no d′")
    elif len(places.squares) == 0:
        notes.append("no square of plain material is large enough for an NPS")
    else:
        nps, found = _nps(images, places, scan.pixel_mm, seed)
        checks += found
    ttf: dict[str, TTF] = {}
    rods_hu = None
    if phantom.rods is not None:
        rod_images = scan.images(phantom.rods.slices)
        rods_hu = rod_images.mean(axis=0, dtype=np.float64)
        for rod in phantom.rods.rods:
            checks += _rod_checks(rod_images, rod, phantom, scan.pixel_mm, ttf, notes, seed)
    mean = images.mean(axis=0, dtype=np.float64)
    across, profiles = _profiles(mean, phantom, scan.pixel_mm)
    return Measured(
        scan=scan,
        checks=tuple(checks),
        nps=nps,
        ttf=ttf,
        profile_mm=across,
        profiles=profiles,
        mean_hu=mean,
        single_hu=np.asarray(images[len(images) // 2], dtype=np.float64),
        rods_hu=rods_hu,
        notes=(*scan.notes, *notes),
    )


def _mean_check(quantity: str, place: str, values: NDArray[np.float64], warnings: tuple[str, ...] = ()) -> Check:
    """The mean of one value per image, with its t interval."""
    n = len(values)
    reach = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    mean = float(values.mean())
    return Check(quantity, place, mean, mean - reach, mean + reach, n, warnings)


def _ct_numbers(images: NDArray[np.float32], places: Places) -> Iterator[Check]:
    means = {spot.name: images[:, disc(spot, images.shape[1:])].mean(axis=1, dtype=np.float64) for spot in places.spots}
    if "centre" in means:
        yield _mean_check("ct_number", WATER, means["centre"])
        for name, values in means.items():
            if name != "centre":
                yield _mean_check("uniformity", name, values - means["centre"])


def _noise(images: NDArray[np.float32], phantom: Phantom, places: Places) -> NDArray[np.float64]:
    """The noise of each image by itself, HU. Shape: (image,)."""
    where = disc(places.noise_disc, images.shape[1:]) & phantom.uniform.plain
    return noise_of_repeats(images[:, where]).std(axis=1)


def _noise_of_each_repeat(scan: PhantomScan, phantom: Phantom, places: Places) -> list[float]:
    """Each by itself, so that a noisy one does not lend its noise to another; empty if a repeat has a single slice."""
    if phantom.uniform.n_slices < 2:
        return []
    repeats = (one[phantom.uniform.slices] for one in scan.hu)
    return [float(np.sqrt(np.mean(_noise(images, phantom, places) ** 2))) for images in repeats]


def _noise_check(noise: NDArray[np.float64]) -> Check:
    n = len(noise)
    value = float(np.sqrt(np.mean(noise**2)))
    reach = float(stats.t.ppf(0.975, n - 1) * noise.std(ddof=1) / np.sqrt(n))
    return Check("noise", "centre", value, max(value - reach, 0.0), value + reach, n)


def _nps(images: NDArray[np.float32], places: Places, pixel_mm: float, seed: int) -> tuple[Spectrum, list[Check]]:
    side = places.side
    # Evenly thinned, if there are very many: what one image adds to a thousand is nothing.
    every = max(1, round(len(images) * len(places.squares) / MOST_SQUARES))
    cut = [noise_of_repeats(images[:, r : r + side, c : c + side])[::every] for r, c in places.squares]
    power = periodograms(np.concatenate(cut), pixel_mm=pixel_mm)
    whole = mean_nps(power, pixel_mm=pixel_mm)
    radial = radial_nps(whole)
    checks = []
    for quantity, value in (("nps_mean_frequency", radial.mean_frequency), ("nps_peak_frequency", radial.peak_frequency)):
        check = Check(quantity, "plain material", value, n=len(power))
        if len(power) >= FEWEST_ROIS:
            attribute = quantity.removeprefix("nps_")
            rng = np.random.default_rng(seed)
            interval = nps_interval(power, attrgetter(attribute), pixel_mm=pixel_mm, rng=rng)
            check = replace(check, low=interval.low, high=interval.high)
        checks.append(check)
    return Spectrum(whole, radial, nps_standard_error(power), side), checks


def _rod_checks(
    images: NDArray[np.float32], rod: Rod, phantom: Phantom, pixel_mm: float, ttf: dict[str, TTF], notes: list[str], seed: int
) -> Iterator[Check]:
    """CT number, TTF and d′ of one rod, each where the rod is fit for it; its TTF is put into `ttf`."""
    assert phantom.rods is not None
    others = [other for other in phantom.rods.rods if other is not rod]
    if rod.radius_mm >= LEAST_CT_NUMBER_RADIUS_MM:
        core = distance_mm(images.shape[1:], rod.row, rod.column, pixel_mm) < ROD_CORE * rod.radius_mm
        yield _mean_check("ct_number", rod.name, images[:, core].mean(axis=1, dtype=np.float64))
    if rod.radius_mm >= SMALLEST_TTF_RADIUS_MM:
        yield from _ttf(images, rod, phantom, others, pixel_mm, ttf, notes, seed)
    if abs(rod.contrast_hu) <= LARGEST_TASK_HU and len(images) >= FEWEST_CHO_IMAGES:
        yield from _cho(images, rod, phantom, others, pixel_mm, notes)


def _ttf(
    images: NDArray[np.float32],
    rod: Rod,
    phantom: Phantom,
    others: Sequence[Rod],
    pixel_mm: float,
    ttf: dict[str, TTF],
    notes: list[str],
    seed: int,
) -> Iterator[Check]:
    between = [np.hypot(rod.row - o.row, rod.column - o.column) * pixel_mm - rod.radius_mm - o.radius_mm for o in others]
    free_mm = min([*between, INTERIOR * phantom.body.radius_mm - rod.place_mm - rod.radius_mm])
    if free_mm < LEAST_REACH_MM:
        notes.append(f"{rod.name} has {free_mm:.1f} mm around it, expected {LEAST_REACH_MM}: no TTF")
        return
    around = np.abs(distance_mm(images.shape[1:], rod.row, rod.column, pixel_mm) - rod.radius_mm) < LEAST_REACH_MM
    noise = float(noise_of_repeats(images[:, around]).std())
    if abs(rod.contrast_hu) * np.sqrt(len(images)) < LEAST_TTF_CNR * noise:  # there is no edge to be found in such noise
        notes.append(_too_noisy(rod, abs(rod.contrast_hu) * np.sqrt(len(images)) / noise))
        return
    try:
        found = circular_edge_ttf(
            images,
            centre=(rod.row, rod.column),
            radius_mm=rod.radius_mm,
            pixel_mm=pixel_mm,
            reach_mm=min(REACH_MM, free_mm),
            seed=seed,
        )
    except DataError as error:
        notes.append(f"{rod.name}: no TTF; {error}")
        return
    if found.total_cnr < LEAST_TTF_CNR:
        notes.append(_too_noisy(rod, found.total_cnr))
        return
    ttf[rod.name] = found
    for level in ("f50", "f10"):
        value = getattr(found, f"{level}_per_mm")
        if np.isfinite(value):
            ends = [getattr(found.interval, f"{level}_{end}_per_mm", float("nan")) for end in ("low", "high")]
            yield Check(f"ttf_{level}", rod.name, value, ends[0], ends[1], found.n_images, found.warnings)


def _too_noisy(rod: Rod, total_cnr: float) -> str:
    return f"{rod.name}: contrast-to-noise × √images is {total_cnr:.1f}, expected {LEAST_TTF_CNR:g} or more: no TTF"


def _cho(
    images: NDArray[np.float32], rod: Rod, phantom: Phantom, others: Sequence[Rod], pixel_mm: float, notes: list[str]
) -> Iterator[Check]:
    """d′ on the rod against places at the same distance from the centre; an observer that finds too few of these is not asked."""
    assert phantom.rods is not None
    half = max(round(ROI_PER_DIAMETER * rod.radius_mm / pixel_mm), 6)
    body = phantom.body

    def roi(angle_deg: float) -> tuple[slice, slice]:
        angle = np.radians(angle_deg)
        row, column = (round(c + rod.place_mm / pixel_mm * t) for c, t in ((body.row, np.sin(angle)), (body.column, np.cos(angle))))
        return slice(row - half, row + half), slice(column - half, column + half)

    def is_clear(square: tuple[slice, slice]) -> bool:
        return bool(phantom.rods is not None and phantom.rods.plain[square].mean() > 0.99)

    step = np.degrees(2 * half * pixel_mm / max(rod.place_mm, half * pixel_mm))
    clear = [square for k in range(1, int(360 / step)) if is_clear(square := roi(rod.angle_deg + k * step))]
    near = [o for o in others if np.hypot(rod.row - o.row, rod.column - o.column) * pixel_mm < 1.5 * half * pixel_mm + o.radius_mm]
    if near or not clear or (rod.place_mm + 1.5 * half * pixel_mm) > INTERIOR * body.radius_mm:
        notes.append(f"{rod.name}: no free squares beside it; no d′ from images")
        return
    chosen = clear[:: max(1, len(clear) // MOST_ABSENT_PLACES)][:MOST_ABSENT_PLACES]
    channels = laguerre_gauss(2 * half, pixel_mm=pixel_mm, width_mm=2 * rod.radius_mm * LG_WIDTH_PER_DIAMETER)
    absent = np.concatenate([images[:, *square] for square in chosen])
    try:
        found = channelised_hotelling(images[:, *roi(rod.angle_deg)], absent, channels=channels, ensembles="independent")
    except DataError as error:
        notes.append(f"{rod.name}: no d′ from images; {error}")
        return
    yield Check("d_prime_cho", rod.name, found.d_prime, found.low, found.high, found.n_present, found.warnings)


def _npw(measured: Measured, rod: Rod, tasks: Sequence[Disc]) -> Iterator[Check]:
    """d′ of the discs from the rod's TTF and the scan's NPS."""
    if measured.nps is None:
        return
    nps, ttf = measured.nps.whole, measured.ttf[rod.name]
    f = np.hypot(nps.frequency_per_mm[:, None], nps.frequency_per_mm[None, :])
    for task in tasks:
        u = np.pi * task.diameter_mm * f
        # The spectrum of a disc, C π r² · 2 J₁(2πrf)/(2πrf).
        spectrum = (
            task.contrast_hu * np.pi * task.diameter_mm**2 / 4 * np.where(u > 0, 2 * special.j1(u) / np.where(u > 0, u, 1), 1.0)
        )
        value = fourier_d_prime(
            spectrum,
            nps=nps,
            ttf=lambda g: np.maximum(np.interp(g, ttf.frequency_per_mm, ttf.ttf, right=0.0), 0.0),
            observer="NPW",
        )
        place = f"{task.diameter_mm:g} mm, {task.contrast_hu:g} HU"
        yield Check("d_prime_npw", place, value, n=nps.n_rois, warnings=(f"TTF of {rod.name}",))


def _profiles(
    mean: NDArray[np.float64], phantom: Phantom, pixel_mm: float
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """HU through the body's centre, averaged over a strip, along rows and columns, at distances from the centre in mm."""
    reach = min(phantom.body.radius_mm * 1.05, pixel_mm * (min(mean.shape) // 2 - 1))
    across = np.arange(-reach, reach, pixel_mm)
    half = max(1, round(PROFILE_STRIP_MM / 2 / pixel_mm))
    row, column = round(phantom.body.row), round(phantom.body.column)
    horizontal = mean[row - half : row + half + 1].mean(axis=0)
    vertical = mean[:, column - half : column + half + 1].mean(axis=1)
    index = across / pixel_mm
    return across, {
        "horizontal": np.interp(phantom.body.column + index, np.arange(mean.shape[1]), horizontal),
        "vertical": np.interp(phantom.body.row + index, np.arange(mean.shape[0]), vertical),
    }


def all_keys(measured: Sequence[Measured]) -> list[str]:
    """The keys of all checks, in the order of the page."""
    order = list(QUANTITIES)
    keys = dict.fromkeys(check.key for one in measured for check in one.checks)
    return sorted(keys, key=lambda key: order.index(key.partition("[")[0]))


def value_text(check: Check) -> str:
    """A value with half its interval: "10.02 ± 0.04"."""
    decimals = QUANTITIES[check.quantity].decimals
    reach = (check.high - check.low) / 2
    return number(check.value, decimals) + (f" ± {number(reach, decimals)}" if np.isfinite(reach) else "")
