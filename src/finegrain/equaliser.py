"""The band equaliser: what a network took away, partly given back, frequency ring by ring, the way to a normal dose's energy.

A network that is trained with the squared error shrinks what it cannot tell from noise. Multiplying each ring of frequencies by a
gain that was found on validation slices brings the energy back, at the price of what the network had won in PSNR. Where there is
nothing but noise, though, a gain raises what the network happened to keep of it; the noise of the input itself is as right there,
and has the right spectrum. So a ring is made of both, in the shares that agree best with the normal dose.

How much a network has shrunk depends on how far the structure there stands above the noise: edges hardly, fine texture strongly.
So the shares depend on that, for each ring by itself, which makes them hold for smooth and for sharp kernels. And a normal dose
has noise of its own, as much of the input's as the dose tells; where the dose is known, the shares for it are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import ConfigError, DataError
from finegrain.frequency import DCT_BLOCK, block_dct, dct_matrix, nyquist_fraction, to_blocks
from finegrain.local_noise import LOWEST_HU, MEDIAN_OF_NORMAL, coefficients_of_blocks, covered_blocks, local_noise_hu

RINGS = DCT_BLOCK
"""Rings of a block's coefficients, each Nyquist / 8 wide; the last holds all from Nyquist up. The mean belongs to none."""

LARGEST_GAIN = 4.0

LEVELS = 3
"""Levels of signal to noise, without that of edges. When one set of levels served all rings, three brought the SD of
ln(energy ratio) in fine texture over 35 simulated slices of 12 virtual patients from 0.21 to 0.18; five brought no more."""
LEAST_STEP = 1.25
"""Least ratio of one level to the one below: chance alone makes neighbourhoods of white noise differ by a tenth."""
FEWEST_OF_DOSE = 4
"""Slices of one dose from which on it has gains of its own; a default, taken from nowhere."""

GRID_OFFSETS = ((0, 0), (4, 4), (0, 4), (4, 0))
"""Block grids (row, column) that energies are pooled over."""

ROUNDS = 4
"""Rings of different block grids overlap, and so do levels, so that one round leaves some percent of the energy to the next."""
TINY = 1e-6
"""Share of an energy that is next to nothing: it keeps two images that are one another's multiple apart in the least-squares fit,
and a slice without anything in a ring from counting there."""
OF_ALL = 1e-6
"""Share of all levels' energy that counts in each: one that nothing lies in gets the gains of all."""

SIGNAL_BLOCKS = 1.5
"""SD of the Gaussian, in blocks, over which energies of the signal are averaged; a default, taken from nowhere."""
AIR_HU = -900.0
"""Blocks whose mean is below say nothing of a slice's spectrum: air is clipped, and padding has none."""
EDGE_SIGMA_PIXELS = 3.0
EDGE_HU_PER_PIXEL = 25.0
EDGE_MARGIN_PIXELS = 5
"""Where borders of organs are and what is near them: there is energy enough, and it is not texture. As steep as the edges that
`evaluate.regions` leaves out of texture, at pixels of 0.7 mm."""

RingTable = tuple[tuple[float, ...], ...]
"""A number for each ring, lowest frequency first, and each level. Shape: (ring, level)."""


@dataclass(frozen=True)
class RingGains:
    """What a ring is made of at each level: amplitudes of the network's output, and of what the network was shown."""

    of_output: RingTable
    of_input: RingTable

    def __post_init__(self) -> None:
        for name, table, largest in (("of_output", self.of_output, LARGEST_GAIN), ("of_input", self.of_input, 1.0)):
            if not all(0 <= gain <= largest for of_ring in table for gain in of_ring):
                raise ConfigError(f"gains {name} of a band equaliser lie in [0, {largest}], got {table}")


@dataclass(frozen=True)
class BandEqualiser:
    """Gains on the rings of the block DCT, averaged over all 64 block grids, so that no grid shows.

    Between two levels of signal to noise the gains go smoothly from one to the other, beyond the last they stay. With one level
    they are the same everywhere. Between two doses they go linearly in the logarithm of the dose, beyond the last they stay.

    Attributes:
        levels: local signal to noise that each column of the gains is for, as `local_signal_to_noise` tells it, rising.
        gains: where the dose is not known.
        by_dose: dose over the normal one → gains, rising; may be empty.
    """

    levels: RingTable
    gains: RingGains
    by_dose: tuple[tuple[float, RingGains], ...] = ()

    def __post_init__(self) -> None:
        n_levels = {len(of_ring) for of_ring in self.levels}
        every = (self.gains, *(gains for _, gains in self.by_dose))
        tables = [table for gains in every for table in (gains.of_output, gains.of_input)]
        if len(self.levels) != RINGS or len(n_levels) != 1 or 0 in n_levels:
            raise ConfigError(f"a band equaliser needs levels for {RINGS} rings, as many for each; got {self.levels}")
        if any([len(of_ring) for of_ring in table] != [len(of_ring) for of_ring in self.levels] for table in tables):
            raise ConfigError(f"a band equaliser needs a gain for each ring and level, {RINGS} × {n_levels}; got {tables}")
        if not all(0 < low < high for of_ring in self.levels for low, high in pairwise((*of_ring, math.inf))):
            raise ConfigError(f"levels of a band equaliser rise from above 0, got {self.levels}")
        if not all(0 < low < high for low, high in pairwise((*(dose for dose, _ in self.by_dose), math.inf))):
            raise ConfigError(f"doses of a band equaliser rise from above 0, got {[dose for dose, _ in self.by_dose]}")

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> BandEqualiser:
        """The equaliser of `tables()`, with lists as JSON has them. Raises: ConfigError if it cannot be."""
        known = [(one["dose_fraction"], RingGains(_table(one["of_output"]), _table(one["of_input"]))) for one in tables["gains"]]
        if not known or [dose is None for dose, _ in known] != [True] + [False] * (len(known) - 1):
            raise ConfigError(
                "the first gains of a band equaliser, and no other, have dose_fraction null: for a dose that is not known"
            )
        return cls(_table(tables["levels"]), known[0][1], tuple(known[1:]))

    def tables(self, digits: int | None = None) -> dict[str, Any]:
        """All numbers of it, fit for JSON: `levels`, and `gains` with a `dose_fraction`, the first for a dose that is not known."""

        def rounded(table: RingTable) -> RingTable:
            return table if digits is None else tuple(tuple(round(value, digits) for value in of_ring) for of_ring in table)

        every = ((None, self.gains), *self.by_dose)
        gains = [
            {"dose_fraction": dose, "of_output": rounded(one.of_output), "of_input": rounded(one.of_input)} for dose, one in every
        ]
        return {"levels": rounded(self.levels), "gains": gains}

    def gains_at(self, dose_fraction: float | None) -> RingGains:
        """The gains for a dose over the normal one; None if it is not known."""
        if dose_fraction is None or not self.by_dose:
            return self.gains
        doses = np.log([dose for dose, _ in self.by_dose])
        shares = [np.interp(math.log(dose_fraction), doses, of_dose) for of_dose in np.eye(len(doses))]

        def mean(tables: list[RingTable]) -> RingTable:
            return _table(np.tensordot(shares, np.array(tables), axes=1))

        every = [gains for _, gains in self.by_dose]
        return RingGains(mean([one.of_output for one in every]), mean([one.of_input for one in every]))

    def apply(
        self,
        denoised: NDArray[np.floating],
        noisy: NDArray[np.floating],
        *,
        strength: float,
        dose_fraction: float | None = None,
    ) -> NDArray[np.float32]:
        """The denoised image with `strength` times the change that the gains make: 0 gives it back, 1 the full gains.

        Args:
            denoised: what a network made of `noisy`, HU.
            noisy: what the network was shown, HU.
            dose_fraction: of `noisy`, over the normal dose; None if it is not known.

        Shape: (y, x) each.
        """
        denoised, noisy = (np.asarray(image, dtype=np.float32) for image in (denoised, noisy))
        gains, places = self.gains_at(dose_fraction), np.log(local_signal_to_noise(denoised, noisy))
        change = np.zeros_like(denoised)
        for image, table in ((denoised, np.array(gains.of_output) - 1), (noisy, np.array(gains.of_input))):
            spectrum, transfers = _spectrum(image)
            for ring in range(RINGS):
                if table[ring].any():
                    part = _inner(scipy.fft.irfft2(spectrum * transfers[ring], _padded_shape(image.shape)), image.shape)
                    change += _at_pixels(np.interp(places[ring], np.log(self.levels[ring]), table[ring]), image.shape) * part
        return np.asarray(denoised + np.float32(strength) * change)


def _table(values: Sequence[Sequence[float]] | NDArray) -> RingTable:
    return tuple(tuple(float(value) for value in of_ring) for of_ring in values)


def _at_pixels(of_blocks: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """From the middles of blocks to pixels, linear in between. Shape: (block_y, block_x) → (y, x)."""
    rows, columns = (_between_blocks(length) for length in shape)
    return np.asarray(rows @ of_blocks.astype(np.float32) @ columns.T)


def _spectrum(image: NDArray[np.float32]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Spectrum of a padded image, and what to multiply it with for each ring. Like the DCT, the edge sees its own mirror image."""
    shape = _padded_shape(image.shape)
    return scipy.fft.rfft2(np.pad(image, DCT_BLOCK - 1, mode="symmetric"), shape), _transfers(shape)


def _padded_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(scipy.fft.next_fast_len(length + 2 * (DCT_BLOCK - 1), real=True) for length in shape)


def _inner(padded: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    reach = DCT_BLOCK - 1
    return padded[tuple(slice(reach, reach + length) for length in shape)]


@lru_cache(maxsize=4)
def _transfers(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Block DCT, one ring of it and inverse, averaged over all grids, are a convolution; these are its spectra.

    On one grid, pixels p and q of a block are joined by Σ B[u, p] B[v, q] over the coefficients (u, v) of the ring; which places of
    a block they take goes through all grids, and that leaves the autocorrelation of each basis vector, whose spectrum is real.
    Shape: (ring, y, x / 2 + 1).
    """
    correlation = np.stack([np.correlate(vector, vector, mode="full") for vector in dct_matrix(DCT_BLOCK)])
    lag = np.arange(1 - DCT_BLOCK, DCT_BLOCK)
    rows, columns = (
        correlation @ np.cos(2 * np.pi * np.outer(lag, frequency))
        for frequency in (scipy.fft.fftfreq(shape[0]), scipy.fft.rfftfreq(shape[1]))
    )
    of_ring = [(_ring_of_coefficient() == ring).astype(np.float64) for ring in range(RINGS)]
    return np.stack([rows.T @ members @ columns / DCT_BLOCK**2 for members in of_ring]).astype(np.float32)


def local_signal_to_noise(denoised: NDArray[np.floating], noisy: NDArray[np.floating]) -> NDArray[np.float64]:
    """What the network has kept around each block, ring by ring, over the noise that it was shown there.

    The noise of a ring is the local noise times the median, over the slice's blocks that are not air, of what the ring has over it.
    Shape: (y, x) each → (ring, block_y, block_x).
    """
    kept, shown = (coefficients_of_blocks(image) for image in (denoised, noisy))
    local = local_noise_hu(noisy)
    solid = kept[..., 0] / DCT_BLOCK > AIR_HU
    solid = solid if solid.any() else np.ones_like(solid)
    found = []
    for ring in range(RINGS):
        members = (_ring_of_coefficient() == ring).ravel()
        noise = np.median(np.abs(shown[..., members]), axis=-1) / MEDIAN_OF_NORMAL
        profile = float(np.median(noise[solid] / local[solid]))
        energy = ndimage.gaussian_filter((kept[..., members] ** 2).mean(axis=-1), SIGNAL_BLOCKS, mode="nearest")
        found.append(np.maximum(np.sqrt(energy), LOWEST_HU) / np.maximum(local * profile, LOWEST_HU))
    return np.stack(found)


def _between_blocks(length: int) -> NDArray[np.float32]:
    """Matrix from values at the middles of blocks to pixels, linear in between, so that no block shows. Shape: (pixel, block)."""
    n_blocks = -(-length // DCT_BLOCK)
    middles = DCT_BLOCK * np.arange(n_blocks) + (DCT_BLOCK - 1) / 2
    return np.stack([np.interp(np.arange(length), middles, of_block) for of_block in np.eye(n_blocks)], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class CalibrationSlice:
    """A validation slice, in HU. Shape: (y, x) each.

    Attributes:
        noisy: what the network saw.
        denoised: what it made of it.
        reference: what it should have made.
        body: where energies count.
        dose_fraction: dose of `noisy` over that of `reference`; None if it is not known.
        told: what the network made of it being told the dose; None if it listens to none.
    """

    noisy: NDArray[np.floating]
    denoised: NDArray[np.floating]
    reference: NDArray[np.floating]
    body: NDArray[np.bool_]
    dose_fraction: float | None = None
    told: NDArray[np.floating] | None = None


def calibrate_equaliser(slices: Sequence[CalibrationSlice], *, levels: int = LEVELS) -> BandEqualiser:
    """The equaliser that gives outputs the energy of their references, ring by ring and level by level.

    Output and input are mixed as least squares wants them, which agrees best with the reference, and the mixture is raised to the
    reference's energy. The reference's noise is part of that: the output is to look as the normal dose does. Energies are pooled
    over blocks that the body covers by half; every slice counts alike in every ring. Levels are set so that each has as much of the
    body away from strong edges, which get a level of their own: they hold most of the energy, and hardly any of it is missing.
    Doses that at least four slices have get gains of their own.

    Args:
        levels: of signal to noise, without that of strong edges.

    Raises: DataError if no slice shows a body.
    """
    chosen = _levels(slices, levels)
    doses = sorted({one.dose_fraction for one in slices if one.dose_fraction is not None})
    of_dose = {dose: [one for one in slices if one.dose_fraction == dose] for dose in doses}
    known = {dose: some for dose, some in of_dose.items() if len(some) >= FEWEST_OF_DOSE}
    by_dose = [
        (dose, _gains([one if one.told is None else replace(one, denoised=one.told) for one in some], chosen, levels))
        for dose, some in known.items()
    ]
    return BandEqualiser(_table(chosen), _gains(slices, chosen, levels), tuple(by_dose))


def _levels(slices: Sequence[CalibrationSlice], n_calm: int) -> NDArray[np.float64]:
    """Levels of signal to noise in each ring: of the calm body, and one of edges if there are any. Shape: (ring, level)."""
    calm, steep = [np.empty((RINGS, 0))], [np.empty((RINGS, 0))]
    for one in slices:
        place = local_signal_to_noise(one.denoised, one.noisy)
        for found, where in zip((calm, steep), _calm_and_edges(one), strict=True):
            found.append(place[:, covered_blocks(where)])
    inside, edges = np.concatenate(calm, axis=1), np.concatenate(steep, axis=1)
    if not inside.shape[1]:
        raise DataError("no validation slice shows a body; gains need some to be found on")
    chosen = np.quantile(inside, (np.arange(n_calm) + 0.5) / n_calm, axis=1).T
    if edges.shape[1]:
        chosen = np.column_stack([chosen, np.median(edges, axis=1)])
    for level in range(1, chosen.shape[1]):
        chosen[:, level] = np.maximum(chosen[:, level], LEAST_STEP * chosen[:, level - 1])
    return chosen


def _gains(slices: Sequence[CalibrationSlice], levels: NDArray[np.float64], n_calm: int) -> RingGains:
    """Gains of one set for all slices."""
    regions = [_calm_and_edges(one) for one in slices]
    shares = [_shares(local_signal_to_noise(one.denoised, one.noisy), levels) for one in slices]

    def sums(k: int, *images: NDArray) -> NDArray[np.float64]:
        """`_moments` of a slice: of edges alone in their level, of all else in the others."""
        calm, edges = regions[k]
        found = _moments(images, calm, shares[k])
        found[:, n_calm:] = _moments(images, edges, shares[k])[:, n_calm:]
        return found

    moments = np.stack([sums(k, one.denoised, one.noisy, one.reference) for k, one in enumerate(slices)])
    energies = moments[..., 2, 2]
    weights = np.concatenate([_alike(energies[:, :, :n_calm]), _alike(energies[:, :, n_calm:])], axis=-1)  # (slice, ring, level)
    pooled = _with_others(np.einsum("srl,srlij->rlij", weights, moments))
    output, shown = _mixture(pooled)
    for _ in range(ROUNDS):
        mixed = BandEqualiser(_table(levels), RingGains(_table(output), _table(shown)))
        images = [mixed.apply(one.denoised, one.noisy, strength=1.0) for one in slices]
        found = np.einsum("srl,srl->rl", weights, np.stack([sums(k, image)[..., 0, 0] for k, image in enumerate(images)]))
        output, shown = _limited(output, shown, _amplitude(pooled[..., 2, 2], _with_others(found)))
    return RingGains(_table(output), _table(shown))


def _alike(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that make slices count alike in every ring, whatever their energy; 0 for those that hold next to none.

    Shape: (slice, ring, level) → the same.
    """
    of_slice = energies.sum(axis=2, keepdims=True)
    holds = of_slice > max(TINY * of_slice.max(initial=0), TINY)
    return np.broadcast_to(np.where(holds, 1 / np.where(holds, of_slice, 1), 0), energies.shape)


def _amplitude(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """What brings one energy to another; 1 where either is nothing."""
    known = (wanted > 0) & (found > 0)
    return np.sqrt(np.where(known, wanted, 1) / np.where(known, found, 1))


def _with_others(of_levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums for each ring and level, with a little of those of all levels. Shape: (ring, level, ...)."""
    return of_levels + OF_ALL * of_levels.sum(axis=1, keepdims=True)


def _mixture(moments: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Amplitudes of output and input, at the energy of the reference, that agree best with it.

    Shape: moments (ring, level, 3, 3) of output, input and reference → (ring, level) each.
    """
    among, with_reference, wanted = moments[..., :2, :2], moments[..., :2, 2], moments[..., 2, 2]
    scale = np.trace(among, axis1=-2, axis2=-1)
    fitted = np.linalg.solve(among + (TINY * scale + 1e-12)[..., None, None] * np.eye(2), with_reference[..., None])[..., 0]
    alone = with_reference / np.maximum(np.stack([among[..., 0, 0], among[..., 1, 1]], axis=-1), 1e-12)
    fitted = np.where(fitted[..., 1:] < 0, np.stack([alone[..., 0], np.zeros_like(scale)], axis=-1), fitted)
    fitted = np.where(fitted[..., :1] < 0, np.stack([np.zeros_like(scale), alone[..., 1]], axis=-1), fitted)
    fitted = np.where((fitted <= 0).all(axis=-1, keepdims=True), np.array([1.0, 0.0]), fitted)
    energy = np.einsum("...i,...ij,...j->...", fitted, among, fitted)
    return _limited(fitted[..., 0], fitted[..., 1], _amplitude(wanted, energy))


def _limited(
    output: NDArray[np.float64], shown: NDArray[np.float64], factor: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both amplitudes times a factor, within the limits of `RingGains`."""
    return np.clip(output * factor, 0, LARGEST_GAIN), np.clip(shown * factor, 0, 1)


def _shares(places: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each level places take, in each ring; sum 1.

    Shape: places (ring, block_y, block_x), levels (ring, level) → (ring, level, block_y, block_x).
    """
    steps = np.eye(levels.shape[1])
    return np.stack(
        [
            np.stack([np.interp(np.log(place), np.log(of_ring), of_level) for of_level in steps])
            for place, of_ring in zip(places, levels, strict=True)
        ]
    )


def _moments(images: Sequence[NDArray], region: NDArray[np.bool_], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of the block-DCT coefficients of images with one another, summed over rings, levels and the blocks of four grids.

    Args:
        region: blocks that it covers by half count.
        shares: how much each place counts for each level of each ring.

    Shape: images, region (y, x), shares (ring, level, block_y, block_x) → (ring, level, image, image).
    """
    ring_of = _ring_of_coefficient().ravel()
    total = np.zeros((*shares.shape[:2], len(images), len(images)))
    rows, columns = (_between_blocks(length) for length in region.shape)
    for offset in GRID_OFFSETS:
        inside = to_blocks(region, offset=offset).mean(axis=(-2, -1)) >= 0.5
        values = [block_dct(np.asarray(image, dtype=np.float64), offset=offset)[inside] for image in images]
        coefficients = np.stack(values).reshape(len(images), -1, DCT_BLOCK**2)
        down, across = (_means(matrix, first) for matrix, first in zip((rows, columns), offset, strict=True))
        for ring in range(len(shares)):
            of_ring = coefficients[..., ring_of == ring]
            products = np.einsum("inc,jnc->ijn", of_ring, of_ring)
            counts = (down @ shares[ring] @ across.T)[:, inside]
            total[ring] += np.einsum("ln,ijn->lij", counts, products)
    return total


def _means(pixels: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    """Means over the whole blocks of a grid that starts at `first`. Shape: (pixel, column) → (block, column)."""
    n_blocks = (len(pixels) - first) // DCT_BLOCK
    return np.asarray(pixels[first : first + n_blocks * DCT_BLOCK].reshape(n_blocks, DCT_BLOCK, -1).mean(axis=1))


def _calm_and_edges(one: CalibrationSlice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The body away from strong edges, and the body near them; all of it is calm where nothing would be. Shape: (y, x) each."""
    steep = ndimage.gaussian_gradient_magnitude(np.asarray(one.reference, dtype=np.float64), EDGE_SIGMA_PIXELS) > EDGE_HU_PER_PIXEL
    near = ndimage.distance_transform_edt(~steep) <= EDGE_MARGIN_PIXELS if steep.any() else steep
    near = near if covered_blocks(one.body & ~near).any() else np.zeros_like(near)
    return one.body & ~near, one.body & near


def ring_energies(image: NDArray, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Squared block-DCT coefficients of each ring, summed over the blocks of four grids that the body covers by half.

    Shape: (y, x) each → (ring,).
    """
    everywhere = np.ones((RINGS, 1, *(-(-length // DCT_BLOCK) for length in body.shape)))
    return _moments((image,), body, everywhere)[:, 0, 0, 0]


def _ring_of_coefficient() -> NDArray[np.intp]:
    """Number of the ring that each coefficient lies in; RINGS for the mean. Shape: (u, v)."""
    ring = np.minimum(np.floor(nyquist_fraction(DCT_BLOCK) * RINGS).astype(np.intp) - 1, RINGS - 1)
    ring[0, 0] = RINGS
    return ring
