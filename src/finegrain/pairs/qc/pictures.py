"""Which pictures are the same, however they were exported: a fingerprint, and a way to find it among a hundred thousand."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.hu import AIR_HU
from finegrain.pairs.qc.view import HIGHEST_HU, cell_means

BITS = 256
BAND_BITS = 16
"""Bits of a band: with 28 of 256 bits different, one of the sixteen bands is left whole in 96 of 100 pictures."""
SAME_BITS = 28
"""Pictures whose fingerprints differ in so many bits or fewer are one: exported anew they differ in 23 at most and 2 mostly,
others in 35 at least and 125 mostly (measured by `benchmarks/qc.py`'s pairs, HU rounded to 2)."""


def fingerprint(normal_dose: NDArray) -> str:
    """64 hex digits of a slice: nearly the same digits for the same picture exported anew, half of them other for another one.

    Each bit tells which of two neighbouring squares is brighter, a 64th of the image wide and in its middle three quarters: so
    small ones hold the noise of the scan, in which two neighbouring slices differ as much as two patients. See `same_picture`.

    Shape: (y, x) in HU. Raises: DataError if a side is shorter than 64 pixels.
    """
    if normal_dose.ndim != 2 or min(normal_dose.shape) < 64:
        raise DataError(f"a fingerprint needs an image (y, x) of 64 pixels or more, got {normal_dose.shape}")
    image = np.nan_to_num(np.clip(np.asarray(normal_dose, dtype=np.float32), AIR_HU, HIGHEST_HU), nan=AIR_HU)
    side = max(1, min(image.shape) // 64)
    cells = cell_means(image, side)
    top, left = ((n - 48) // 2 for n in cells.shape)
    middle = cells[top : top + 48, left : left + 48]
    bits = (middle[1::3, 1::3] > middle[1::3, 0::3]).ravel()[_bit_order()]
    return np.packbits(bits).tobytes().hex()


@cache
def _bit_order() -> NDArray[np.int64]:
    """Neighbouring bits come from places far apart, so that no band lies in air alone."""
    return np.random.default_rng(0).permutation(BITS)


def same_picture(one: str, other: str) -> bool:
    """Whether two fingerprints are of one picture."""
    return (int(one, 16) ^ int(other, 16)).bit_count() <= SAME_BITS


class Pictures:
    """The pictures of a build, by fingerprint, so that one among a hundred thousand is found at once."""

    def __init__(self) -> None:
        self._by_band: dict[tuple[int, int], dict[tuple[str, str], int]] = defaultdict(dict)
        self._n = 0

    def add(self, patient: str, its_fingerprint: str) -> None:
        """Put in a picture; the order matters, see `stands_under_other`."""
        for key in _bands(its_fingerprint):
            self._by_band[key].setdefault((patient, its_fingerprint), self._n)
        self._n += 1

    def stands_under_other(self, patient: str, its_fingerprint: str) -> bool:
        """Whether another patient has this picture, and had it before this one."""
        candidates: dict[tuple[str, str], int] = {}
        for key in _bands(its_fingerprint):
            candidates |= self._by_band.get(key, {})
        same = {pair: n for pair, n in candidates.items() if same_picture(pair[1], its_fingerprint)}
        own = min((n for (other, _), n in same.items() if other == patient), default=self._n)
        return any(other != patient and n < own for (other, _), n in same.items())


def _bands(its_fingerprint: str) -> list[tuple[int, int]]:
    """The sixteen bands of a fingerprint: pictures that are the same agree in one of them at least."""
    if not its_fingerprint:
        return []
    value = int(its_fingerprint, 16)
    bands = [(band, value >> (band * BAND_BITS) & 0xFFFF) for band in range(BITS // BAND_BITS)]
    return [band for band in bands if band[1] not in (0, 0xFFFF)]  # which is what empty pictures have in common
