"""Texture of virtual patients against that of real scans: radial 2-D power spectra of lung, liver, muscle, fat and bone.

Run: python benchmarks/phantom_texture.py CHEST_FOLDER ABDOMEN_FOLDER
CHEST_FOLDER is a Siemens B40f series of the chest and ABDOMEN_FOLDER a Toshiba FC13 series of the abdomen, both after contrast,
portal phase, slices of 3 mm. Virtual patients of that phase are drawn on the scan's own grid and scanned with the same kernel;
each slice's exposure is chosen so that the noise in its soft tissue is the scan's (the scan's own exposure, from
`matching_exposure`, would not do: the patients differ in girth). One piece of code picks squares of each tissue in both, by HU
and place, never by the labels. Printed for each tissue and scan:

total     mean |ln(virtual / real)| of the spectra as scanned, noise and all;
anatomy   the same for the spectrum that adjacent slices share, in which noise all but cancels (its small correlation between
          slices is found where there is nothing but noise, and taken off), where it is more than a tenth of the total; with
          the SD in HU and the exponent β of power ∝ f^−β, real first.

The frequencies are those at which the squares resolve and the anatomy stands out from the noise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import Scanner, soft_tissue_noise
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import KERNELS
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM, Region

PATIENTS = 4
HEIGHTS_MM: dict[Region, tuple[float, ...]] = {"thorax": (-30.0, 30.0), "abdomen": (50.0, 15.0)}
NOISE_ONLY = (0.36, 0.46)
"""Cycles/mm at which soft tissue shows nothing but noise."""

N_BINS = 20
BIN_EDGES = np.linspace(0.0, 0.5, N_BINS + 1)
CENTERS = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
PADDED = 64
"""Pixels to which a square is padded with zeros before its transform, so that no bin is empty."""


@dataclass(frozen=True)
class Tissue:
    """How squares of a tissue are found, in both kinds of image, and where its spectrum is compared."""

    hu: tuple[float, float]
    """Range of the image smoothed by 2 mm."""
    side_mm: float
    band: tuple[float, float]
    """Cycles/mm."""


TISSUES = {
    "fat": Tissue((-135, -80), 18.0, (0.06, 0.25)),
    "lung": Tissue((-960, -720), 24.0, (0.05, 0.45)),
    "liver": Tissue((65, 150), 24.0, (0.05, 0.25)),
    "muscle": Tissue((25, 95), 14.0, (0.08, 0.25)),
    "bone": Tissue((80, 420), 12.0, (0.09, 0.35)),
}


@dataclass
class Spectra:
    """Sums over squares: power of each slice and of what it shares with the next one (shape: bin)."""

    total: list[NDArray] = field(default_factory=list)
    shared: list[NDArray] = field(default_factory=list)

    def mean(self, linked: float) -> tuple[NDArray, NDArray]:
        """Total power and noise-free power, HU² mm² (shape: bin), when slices share a part `linked` of their noise."""
        total, shared = np.mean(self.total, axis=0), np.mean(self.shared, axis=0)
        return total, (shared - linked * total) / (1 - linked)

    def linked(self) -> float:
        """The part of the noise that adjacent slices share, where there is nothing but noise."""
        noise = (NOISE_ONLY[0] < CENTERS) & (NOISE_ONLY[1] > CENTERS)
        return float(np.clip(np.sum(self.shared, axis=0)[noise].sum() / np.sum(self.total, axis=0)[noise].sum(), 0, 0.6))


def squares(mask: NDArray[np.bool_], side: int) -> Iterator[tuple[slice, slice]]:
    """Squares that lie all but wholly in a mask, overlapping by two thirds."""
    inside = ndimage.uniform_filter(mask.astype(np.float32), side)
    step = max(1, side // 3)
    for y in range(side // 2, mask.shape[0] - side // 2, step):
        for x in range(side // 2, mask.shape[1] - side // 2, step):
            if inside[y, x] > 0.97:
                yield slice(y - side // 2, y - side // 2 + side), slice(x - side // 2, x - side // 2 + side)


def masks(hu: NDArray, pixel_mm: float) -> dict[str, NDArray[np.bool_]]:
    """Where each tissue may be sampled in a slice (shape: y x)."""
    smooth = ndimage.gaussian_filter(hu, 2.0 / pixel_mm)
    body = ndimage.binary_fill_holes(ndimage.binary_opening(smooth > -300, iterations=4))
    n, biggest = ndimage.label(body)[0], 0
    if n.max():
        biggest = 1 + int(np.argmax(np.bincount(n.ravel())[1:]))
    body = n == biggest if biggest else body
    out = {name: body & (smooth > tissue.hu[0]) & (smooth < tissue.hu[1]) for name, tissue in TISSUES.items()}
    columns = np.flatnonzero(body.any(axis=0))
    rows = np.flatnonzero(body.any(axis=1))
    if not len(rows):
        return out
    middle = (columns[0] + columns[-1]) / 2
    y, x = np.mgrid[: hu.shape[0], : hu.shape[1]]
    # Bone: what lies inside a ring of cortex near the midline at the back, well within it.
    hard = ndimage.binary_closing(smooth > 190, iterations=2)
    spine = ndimage.binary_fill_holes(hard & body) & (np.abs(x - middle) * pixel_mm < 30)
    spine &= y > rows[0] + 0.5 * (rows[-1] - rows[0])
    out["bone"] = ndimage.binary_erosion(spine, iterations=round(2.0 / pixel_mm)) & (smooth < 420)
    depth = (rows[-1] - y) * pixel_mm
    center = np.argwhere(spine).mean(axis=0)[0] if spine.any() else rows[-1]
    out["muscle"] &= (
        (y > center) & (np.abs(x - middle) * pixel_mm < 75) & (depth > 6) & ~ndimage.binary_dilation(hard, iterations=2)
    )
    # The liver is the largest piece of its HU on the image's left half.
    pieces, count = ndimage.label(ndimage.binary_opening(out["liver"] & (x < middle), iterations=6))
    sizes = np.bincount(pieces.ravel())[1:] if count else np.zeros(1)
    big = sizes.max() * pixel_mm**2 > 4000
    out["liver"] = (pieces == 1 + int(np.argmax(sizes))) if big else np.zeros_like(body)
    return out


def power(first: NDArray, second: NDArray, pixel_mm: float) -> NDArray:
    """Radial cross power of two detrended squares, HU² mm² (shape: y x in, bin out)."""
    side = first.shape[0]
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    axis = np.linspace(-1, 1, side)
    plane = np.stack([np.ones((side, side)), *np.meshgrid(axis, axis)]).reshape(3, -1)
    spectra = []
    for patch in (first, second):
        flat = patch.ravel() - plane.T @ np.linalg.lstsq(plane.T, patch.ravel(), rcond=None)[0]
        spectra.append(np.fft.fft2(window * flat.reshape(side, side), s=(PADDED, PADDED)))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(PADDED, pixel_mm), np.fft.fftfreq(PADDED, pixel_mm)))
    cross = (spectra[0] * spectra[1].conj()).real * pixel_mm**2 / np.sum(window**2)
    bins = np.digitize(f.ravel(), BIN_EDGES) - 1
    keep = (bins >= 0) & (bins < N_BINS)
    count = np.bincount(bins[keep], minlength=N_BINS)
    return np.bincount(bins[keep], cross.ravel()[keep], minlength=N_BINS) / np.maximum(count, 1)


def measure(here: NDArray, above: NDArray, pixel_mm: float, found: dict[str, Spectra]) -> None:
    """Add the squares of two adjacent slices (shape: y x)."""
    both = [masks(hu, pixel_mm) for hu in (here, above)]
    for name, tissue in TISSUES.items():
        places = list(squares(both[0][name] & both[1][name], round(tissue.side_mm / pixel_mm)))
        for w in places[:: max(1, len(places) // 60)]:
            found[name].total.append(power(here[w], here[w], pixel_mm))
            found[name].shared.append(power(here[w], above[w], pixel_mm))


def real(folder: Path) -> tuple[dict[str, Spectra], float, float]:
    """Spectra of a scan, its pixel size, and the noise in its soft tissue (median over slices)."""
    volume = read_series(folder)
    found = {name: Spectra() for name in TISSUES}
    hu = np.where(volume.padding, np.float32(-1000), volume.hu)
    for index in range(0, len(hu) - 1, 5):
        measure(hu[index], hu[index + 1], volume.pixel_mm[0], found)
    noise = [soft_tissue_noise(image, image, pixel_mm=volume.pixel_mm[0]) for image in hu[::12]]
    return found, volume.pixel_mm[0], float(np.nanmedian(noise))


def scanned(drawn: NDArray, pixel_mm: float, kernel: str, noise_hu: float, seed: int) -> list[NDArray]:
    """Adjacent slices (shape: z y x) as a scanner with this noise in soft tissue would give them."""
    generator = np.random.default_rng(seed)
    probe = Scanner(size=drawn.shape[-1], pixel_mm=pixel_mm, kernel=KERNELS[kernel], exposure=Exposure(photons=5e5))
    # The noise that a half-dose scan lacks has just the variance of the full-dose scan's.
    noise = probe.missing_noise_hu(drawn[0], dose_fraction=0.5, generator=generator)
    ratio = soft_tissue_noise(noise, drawn[0], pixel_mm=pixel_mm) / noise_hu
    exposure = Exposure(photons=float(np.clip(5e5 * ratio**2, 1e4, 1e8)))
    scanner = Scanner(size=drawn.shape[-1], pixel_mm=pixel_mm, kernel=KERNELS[kernel], exposure=exposure)
    return [scanner.scan_phantom(hu, dose_fraction=0.5, generator=generator).normal_dose for hu in drawn]


def virtual(pixel_mm: float, kernel: str, noise_hu: float) -> dict[str, Spectra]:
    """Spectra of virtual patients in the portal phase."""
    found = {name: Spectra() for name in TISSUES}
    size = 2 * int(np.ceil(MIN_FIELD_MM["thorax"] / pixel_mm / 2 + 1))
    seeds = [seed for seed in range(60) if VirtualPatient(seed, "thorax").phase == "portal"][:PATIENTS]
    for seed in seeds:
        for region, heights in HEIGHTS_MM.items():
            for z in heights:
                patient = VirtualPatient(seed, region)
                drawn = patient.slices(2, size=size, pixel_mm=pixel_mm, slice_mm=3.0, center_z_mm=z)
                here, above = scanned(drawn.hu, pixel_mm, kernel, noise_hu, seed)
                measure(here, above, pixel_mm, found)
    return found


def describe(spectra: Spectra, linked: float, band: NDArray[np.bool_]) -> tuple[NDArray, NDArray, float, float]:
    """Total and noise-free spectrum in the band, SD in HU of the latter, its exponent."""
    total, anatomy = (row[band] for row in spectra.mean(linked))
    f = CENTERS[band]
    sd = np.sqrt(np.sum(np.maximum(anatomy, 0) * 2 * np.pi * f) * (BIN_EDGES[1] - BIN_EDGES[0]))
    good = anatomy > 0
    beta = -np.polyfit(np.log(f[good]), np.log(anatomy[good]), 1)[0] if good.sum() > 2 else np.nan
    return total, anatomy, float(sd), float(beta)


def log_distance(virtual_power: NDArray, real_power: NDArray) -> float:
    """Mean |ln ratio|; NaN where there is nothing to compare."""
    return float(np.abs(np.log(virtual_power / real_power)).mean()) if len(real_power) else float("nan")


def main() -> None:
    for title, folder, kernel in (("chest", sys.argv[1], "B40f"), ("abdomen", sys.argv[2], "FC13")):
        scan, pixel_mm, noise_hu = real(Path(folder))
        drawn = virtual(pixel_mm, kernel, noise_hu)
        links = [spectra["fat"].linked() for spectra in (scan, drawn)]
        print(
            f"{title}: noise {noise_hu:.1f} HU (high-pass), shared by adjacent slices: real {links[0]:.2f}, virtual {links[1]:.2f}"
        )
        for name, tissue in TISSUES.items():
            counts = [len(spectra[name].total) for spectra in (scan, drawn)]
            if min(counts) < 12:
                print(f"{title} {name}: too few squares, {counts[0]} real and {counts[1]} virtual")
                continue
            band = (tissue.band[0] <= CENTERS) & (tissue.band[1] >= CENTERS)
            rows = [describe(spectra[name], link, band) for spectra, link in zip((scan, drawn), links, strict=True)]
            (t0, a0, sd0, beta0), (t1, a1, sd1, beta1) = rows
            both = (a0 > 0.1 * t0) & (a1 > 0)
            print(
                f"{title} {name}: {tissue.band[0]:.2f}-{tissue.band[1]:.2f} cycles/mm, {counts[0]} and {counts[1]} squares; "
                f"total {log_distance(t1, t0):.2f}; anatomy {log_distance(a1[both], a0[both]):.2f}, "
                f"SD {sd0:.1f} and {sd1:.1f} HU, beta {beta0:.2f} and {beta1:.2f}"
            )
            if "-v" in sys.argv:
                for label, row in (
                    ("f", CENTERS[band] * 1e3),
                    ("total real", t0),
                    ("virtual", t1),
                    ("shared real", a0),
                    ("virtual", a1),
                ):
                    print(f"{label:>14}", *(f"{x:7.0f}" for x in row))


if __name__ == "__main__":
    main()
