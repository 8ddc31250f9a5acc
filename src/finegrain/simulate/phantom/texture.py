"""Random fields in three dimensions: power-law textures of tissues and the smooth warp that makes shapes individual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

FloatArray = NDArray[np.floating]
"""Images and fields; float32 wherever they are large."""


@dataclass(frozen=True)
class TextureTile:
    """A periodic cube of Gaussian texture, mean 0 and variance 1, that is read along tilted planes.

    The tilt hides the period: the same place of the cube comes back in another section, not in the next period of the
    image. A position always gives the same value, whatever the grid or the number of slices that is drawn.
    """

    values: FloatArray
    """Texture at the lattice points (shape: n n n), dimensionless."""
    pitch_mm: float
    rotation: NDArray[np.float64]
    """Rotation (3 3) from body to tile coordinates."""

    def sample(self, x_mm: FloatArray, y_mm: FloatArray, z_mm: float, *, offset_mm: float = 0.0) -> FloatArray:
        """Texture at the points (x, y, z), shape of `x_mm`; another `offset_mm` gives another, independent texture."""
        z = z_mm + offset_mm
        r = (self.rotation / self.pitch_mm).astype(np.float32)
        index = np.empty((3, *x_mm.shape), dtype=np.float32)
        for axis in range(3):
            index[axis] = r[axis, 0] * x_mm + r[axis, 1] * y_mm + r[axis, 2] * np.float32(z)
        return ndimage.map_coordinates(self.values, index, order=1, mode="grid-wrap", output=np.float32)


def power_law_tile(
    rng: np.random.Generator,
    *,
    beta: float,
    finest_mm: float,
    coarsest_mm: float,
    n: int = 128,
    pitch_mm: float = 0.8,
) -> TextureTile:
    """A tile whose 2-D sections have a power spectrum ∝ f^−beta between two wavelengths.

    Args:
        beta: exponent of 2-D power in a slice. The cube itself has beta + 1, for a section through an isotropic
            power-law field loses one (Chen et al. 2012, PMC3298563: breast slices 1.75–1.83, projections 3.2–3.3).
        finest_mm: wavelength at which a Gaussian roll-off has halved the amplitude.
        coarsest_mm: below 1/coarsest the spectrum is flat.
        n: lattice points per side; pitch_mm: their distance. Period n × pitch_mm; both chosen by eye and memory.
    """
    f = [fft.fftfreq(n, pitch_mm), fft.fftfreq(n, pitch_mm), fft.rfftfreq(n, pitch_mm)]
    radius = np.sqrt(f[0][:, None, None] ** 2 + f[1][None, :, None] ** 2 + f[2][None, None, :] ** 2).astype(np.float32)
    amplitude = np.maximum(radius, 1 / coarsest_mm) ** (-(beta + 1) / 2) * 0.5 ** ((radius * finest_mm) ** 2)
    amplitude[0, 0, 0] = 0.0
    white = rng.standard_normal((n, n, n), dtype=np.float32)
    values = fft.irfftn(fft.rfftn(white) * amplitude, s=(n, n, n)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    return TextureTile((values / values.std()).astype(np.float32), pitch_mm, rotation)


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, cheap on a grid because each wave separates in x and y."""

    wave_vector: NDArray[np.float64]
    """Angular wave vectors in 1/mm (shape: n 3)."""
    phase_rad: NDArray[np.float64]
    amplitude: NDArray[np.float64]

    @classmethod
    def draw(
        cls, rng: np.random.Generator, *, rms: float, shortest_mm: float = 90.0, longest_mm: float = 400.0, n: int = 14
    ) -> Waves:
        """Random waves whose sum has the given root mean square; longer waves are stronger (amplitude ∝ λ^1.25,
        chosen by eye)."""
        length = np.exp(rng.uniform(np.log(shortest_mm), np.log(longest_mm), n))
        direction = rng.standard_normal((n, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        amplitude = length**1.25
        amplitude *= rms * np.sqrt(2 / np.sum(amplitude**2))
        return cls(2 * np.pi / length[:, None] * direction, rng.uniform(0, 2 * np.pi, n), amplitude)

    def on_grid(self, x_mm: NDArray[np.floating], y_mm: NDArray[np.floating], z_mm: float) -> FloatArray:
        """The field at z on the grid of two axes (shape: y x)."""
        k = self.wave_vector
        along_x = np.outer(x_mm, k[:, 0])
        along_y = np.outer(y_mm, k[:, 1]) + (k[:, 2] * z_mm + self.phase_rad)
        # cos(a + b) = cos a cos b − sin a sin b: one small matrix product.
        columns = np.hstack([np.cos(along_x), -np.sin(along_x)]).astype(np.float32) * np.tile(self.amplitude, 2).astype(np.float32)
        rows = np.hstack([np.cos(along_y), np.sin(along_y)]).astype(np.float32)
        return rows @ columns.T

    def at(self, x_mm: NDArray[np.floating], y_mm: NDArray[np.floating], z_mm: NDArray[np.floating] | float) -> NDArray[np.float64]:
        """The field at scattered points."""
        k = self.wave_vector
        angle = (
            np.multiply.outer(x_mm, k[:, 0]) + np.multiply.outer(y_mm, k[:, 1]) + np.multiply.outer(z_mm, k[:, 2]) + self.phase_rad
        )
        return np.cos(angle) @ self.amplitude
