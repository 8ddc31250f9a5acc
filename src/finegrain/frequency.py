"""Block DCT and its bands: one definition for the loss, the quality control and the metrics.

An n × n block holds the orthonormal DCT-II coefficients (u, v); coefficient (u, v) oscillates at
√(u² + v²) / (2 n pixel_mm) cycles/mm, so that Nyquist is u = n or v = n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import ConfigError

DCT_BLOCK = 8
"""Default side of a DCT block in pixels: ours, the paper gives none (it is JPEG's)."""


@cache
def dct_matrix(n: int = DCT_BLOCK) -> NDArray[np.float64]:
    """Orthonormal DCT-II basis, row = frequency: `B @ x` are the coefficients of x, `B.T @ c` is x again.

    Shape: (n, n). Source: Ahmed, Natarajan and Rao (1974), orthonormal scaling as `scipy.fft.dct(norm="ortho")`.
    """
    k, x = np.arange(n)[:, None], np.arange(n)[None, :]
    basis = np.sqrt(2 / n) * np.cos(np.pi * (x + 0.5) * k / n)
    basis[0] /= np.sqrt(2)
    basis.setflags(write=False)
    return basis


def to_blocks(image: NDArray, n: int = DCT_BLOCK, *, offset: tuple[int, int] = (0, 0)) -> NDArray:
    """The whole n × n blocks of an image on a grid that starts at `offset` (row, column); a rest at the edges is left out.

    Shape: image (..., y, x) → (..., block_y, block_x, n, n).
    """
    row, column = offset
    rows, columns = (image.shape[-2] - row) // n, (image.shape[-1] - column) // n
    if rows < 1 or columns < 1:
        raise ConfigError(f"image of {image.shape[-2]} × {image.shape[-1]} pixels holds no whole {n} × {n} block")
    cut = image[..., row : row + rows * n, column : column + columns * n]
    return cut.reshape(*image.shape[:-2], rows, n, columns, n).swapaxes(-3, -2)


def block_dct(image: NDArray, n: int = DCT_BLOCK, *, offset: tuple[int, int] = (0, 0)) -> NDArray[np.float64]:
    """Orthonormal block DCT-II of an image; energy is kept (Parseval).

    Shape: image (..., y, x) → coefficients (..., block_y, block_x, u, v).
    """
    basis = dct_matrix(n)
    return basis @ to_blocks(image, n, offset=offset) @ basis.T


def inverse_block_dct(coefficients: NDArray) -> NDArray[np.float64]:
    """The image of block DCT coefficients. Shape: (..., block_y, block_x, u, v) → (..., y, x)."""
    n = coefficients.shape[-1]
    basis = dct_matrix(n)
    blocks = basis.T @ coefficients @ basis
    *lead, rows, columns, _, _ = blocks.shape
    return blocks.swapaxes(-3, -2).reshape(*lead, rows * n, columns * n)


def nyquist_fraction(n: int = DCT_BLOCK) -> NDArray[np.float64]:
    """Radial frequency of each coefficient as a fraction of Nyquist (1 along an axis at u = n). Shape: (u, v)."""
    k = np.arange(n) / n
    return np.hypot(k[:, None], k[None, :])


def cycles_per_mm(n: int, pixel_mm: float) -> NDArray[np.float64]:
    """Radial frequency of each coefficient in cycles/mm. Shape: (u, v)."""
    return nyquist_fraction(n) / (2 * pixel_mm)


def ring_of(n: int = DCT_BLOCK) -> NDArray[np.int64]:
    """Which ring of like frequency each coefficient belongs to, one n-th of Nyquist wide. Shape: (u, v)."""
    return np.round(n * nyquist_fraction(n)).astype(np.int64)


@dataclass(frozen=True)
class Band:
    """A set of block-DCT frequencies [low, high]; the paper's Ω_h when it reaches upwards.

    The default, the frequencies above 0.4 Nyquist, is ours: the paper does not give Ω_h.

    >>> int(Band(low=0.4, high=1.5).mask(8).sum())
    51
    """

    low: float = 0.4
    high: float = 1.5
    unit: Literal["nyquist", "cycles_per_mm"] = "nyquist"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ConfigError(f"a frequency band needs 0 ≤ low < high, got [{self.low}, {self.high}] {self.unit}")

    def mask(self, n: int = DCT_BLOCK, *, pixel_mm: float | None = None) -> NDArray[np.bool_]:
        """Which coefficients belong to the band. Shape: (u, v). `pixel_mm` is needed for a band in cycles/mm.

        Raises: ConfigError if no coefficient does.
        """
        if self.unit == "cycles_per_mm":
            if pixel_mm is None:
                raise ConfigError("a band in cycles/mm needs the pixel size in mm, got none")
            frequency = cycles_per_mm(n, pixel_mm)
        else:
            frequency = nyquist_fraction(n)
        mask = (frequency >= self.low) & (frequency <= self.high)
        mask[0, 0] = False
        if not mask.any():
            raise ConfigError(f"no coefficient of an {n} × {n} block lies in [{self.low}, {self.high}] {self.unit}; widen the band")
        return mask
