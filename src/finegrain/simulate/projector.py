"""Forward projection, its exact adjoint, and backprojection, by the projection-slice theorem.

The Fourier transform of a projection is a line through the Fourier transform of the image. A non-uniform FFT (FINUFFT;
Barnett, Magland and af Klinteberg 2019, doi 10.1137/18M120885X) evaluates that line to five digits, so that the detector may be
sampled as finely as one likes whatever the pixel size, and nothing is interpolated linearly on the way. A slice costs a tenth
of a ray-driven projector (`benchmarks/projection.py`). On a GPU the same lines run with CuPy and cuFINUFFT (Shih et al. 2021,
doi 10.1109/IPDPSW52791.2021.00105), which mirror NumPy, SciPy and FINUFFT call by call.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import ConfigError, GeometryError
from finegrain.simulate.geometry import FanBeam, ParallelBeam, check_grid, pixels_from_isocentre

TOLERANCE = 1e-6


class Projector:
    """Line integrals of images through a parallel beam.

    An image is a sum of square pixels of constant value; the isocentre is the centre of pixel (size // 2, size // 2), as in
    scikit-image. What lies outside the inscribed circle of the image is taken for empty. Arrays are NumPy's on either device.

    Args:
        beam: the rays.
        size: rows and columns of the square image.
        pixel_mm: pixel size.
        device: "cpu", or "cuda" with the packages of the `cuda` extra.
    """

    def __init__(self, beam: ParallelBeam, *, size: int, pixel_mm: float, device: Literal["cpu", "cuda"] = "cpu") -> None:
        check_grid(size, pixel_mm)
        if beam.n_detector * beam.detector_mm < size * pixel_mm * (1 - 1e-6):
            raise GeometryError(
                f"the detector covers {beam.n_detector * beam.detector_mm:.1f} mm, the image {size * pixel_mm:.1f} mm; "
                "add detector cells or use ParallelBeam.covering"
            )
        self.beam, self.size, self.pixel_mm = beam, size, pixel_mm
        self._engine = _Engine(device)

    @cached_property
    def circle(self) -> NDArray[np.bool_]:
        """Pixels whose centre lies in the inscribed circle. Shape: (y, x)."""
        return pixels_from_isocentre(self.size) <= (self.size - 1) / 2

    def forward(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """Line integrals of an image: of attenuation in 1/mm they are dimensionless.

        Shape: image (..., y, x) → sinogram (..., view, detector).
        """
        if image.shape[-2:] != (self.size, self.size):
            raise GeometryError(f"expected images of {self.size} × {self.size} pixels, got shape {image.shape}")
        engine, lead = self._engine, image.shape[:-2]
        stack = engine.put(np.where(self.circle, image, 0).reshape(-1, self.size, self.size), np.complex64)
        aperture, shift, _ = self._line_weights(self._n_fft, self._n_fft // 2 + 1)
        spectrum = self._plan(2, len(stack), self._n_fft, self._n_fft // 2 + 1).execute(stack)
        spectrum = spectrum.reshape(len(stack), self.beam.n_views, -1) * (aperture * np.float32(self.pixel_mm**2))
        sinogram = engine.fft.irfft(spectrum * shift, n=self._n_fft, axis=-1)[..., : self.beam.n_detector]
        sinogram *= 1 / self.beam.detector_mm
        return engine.get(sinogram).reshape(*lead, self.beam.n_views, self.beam.n_detector).astype(np.float32, copy=False)

    def adjoint(self, sinogram: NDArray[np.floating]) -> NDArray[np.float32]:
        """The transpose of `forward`, to the tolerance of the NUFFT. Shape: (..., view, detector) → (..., y, x)."""
        engine, lead = self._engine, sinogram.shape[:-2]
        stack = engine.put(sinogram.reshape(-1, self.beam.n_views, self.beam.n_detector), np.float32)
        aperture, shift, multiplicity = self._line_weights(self._n_fft, self._n_fft // 2 + 1)
        spectrum = engine.fft.rfft(stack, n=self._n_fft, axis=-1) * multiplicity / self._n_fft
        spectrum = spectrum * (aperture * np.float32(self.pixel_mm**2 / self.beam.detector_mm)) * shift.conj()
        return self._sum_lines(spectrum, self._n_fft).reshape(*lead, self.size, self.size)

    def backproject(self, spectrum: NDArray[np.complexfloating], n_fft: int) -> NDArray[np.float32]:
        """∫₀^π q(x cos θ + y sin θ, θ) dθ of filtered projections, given as their rfft over n_fft detector cells.

        Evaluated at pixel centres by trigonometric interpolation, so that no interpolation blurs the noise; zero outside the
        inscribed circle.

        Shape: (..., view, frequency) → (..., y, x). Frequencies above the last one given are zero.
        """
        lead = spectrum.shape[:-2]
        return self._backproject(self._engine.put(spectrum, np.complex64), n_fft).reshape(*lead, self.size, self.size)

    def filter_and_backproject(
        self, sinogram: NDArray[np.floating], response: NDArray[np.floating], n_fft: int
    ) -> NDArray[np.float32]:
        """`backproject` of a sinogram whose rfft over n_fft cells has been multiplied by a frequency response.

        Shape: sinogram (..., view, detector), response (frequency,) → (..., y, x).
        """
        engine, lead = self._engine, sinogram.shape[:-2]
        spectrum = engine.fft.rfft(engine.put(sinogram, np.float32), n=n_fft, axis=-1)[..., : len(response)]
        return self._backproject(spectrum * engine.put(response, np.float32), n_fft).reshape(*lead, self.size, self.size)

    def _backproject(self, spectrum: Any, n_fft: int) -> NDArray[np.float32]:
        stack = spectrum.reshape(-1, *spectrum.shape[-2:])
        _, shift, multiplicity = self._line_weights(n_fft, stack.shape[-1])
        return self._sum_lines(stack * (multiplicity * shift.conj() * np.float32(np.pi / self.beam.n_views / n_fft)), n_fft)

    @cached_property
    def _n_fft(self) -> int:
        return scipy.fft.next_fast_len(self.beam.n_detector, real=True)

    def _line_weights(self, n_fft: int, n_frequency: int) -> tuple[Any, Any, Any]:
        """Aperture, shift and multiplicity of `_FourierLines`, on the device."""
        lines = _FourierLines(self.beam, self.pixel_mm, n_fft, n_frequency)
        put = self._engine.put
        return put(lines.aperture, np.float32), put(lines.shift, np.complex64), put(lines.multiplicity, np.float32)

    def _plan(self, kind: int, n_images: int, n_fft: int, n_frequency: int) -> Any:
        points = _FourierLines(self.beam, self.pixel_mm, n_fft, n_frequency).points
        return self._engine.plan(kind, self.size, n_images, points)

    def _sum_lines(self, spectrum: Any, n_fft: int) -> NDArray[np.float32]:
        plan = self._plan(1, len(spectrum), n_fft, spectrum.shape[-1])
        flat = self._engine.put(spectrum.reshape(len(spectrum), -1), np.complex64)
        image = self._engine.get(plan.execute(flat).real).reshape(-1, self.size, self.size)
        return np.where(self.circle, image, 0).astype(np.float32, copy=False)


class FanProjector:
    """Line integrals as a fan-beam scanner samples them, and their way back to the parallel grid.

    Fan rays are read off a finely sampled parallel sinogram by cubic splines, and rebinned to parallel ones the same way; a
    linear rebin would lose a fifth of the noise. Together with `fbp.filtered_backprojection` on `parallel` this is the chain
    of a rebinning scanner, ray by ray; `Scanner` takes the shortcut that noise is drawn on the parallel grid.

    Args:
        fan: the scanner.
        size: rows and columns of the square image; the field of view must hold it.
        pixel_mm: pixel size.
        device: as for `Projector`.
    """

    def __init__(self, fan: FanBeam, *, size: int, pixel_mm: float, device: Literal["cpu", "cuda"] = "cpu") -> None:
        check_grid(size, pixel_mm)
        if (size - 1) * pixel_mm > fan.field_of_view_mm:
            raise GeometryError(
                f"an image of {size} × {pixel_mm:g} = {size * pixel_mm:.0f} mm does not fit the {fan.field_of_view_mm:.0f} mm "
                f"field of view of {fan.name}; take a smaller image or a larger fan"
            )
        self.fan = fan
        beam = ParallelBeam.covering(size=size, pixel_mm=pixel_mm, n_views=fan.n_views // 2, fan=fan)
        self.parallel = Projector(beam, size=size, pixel_mm=pixel_mm, device=device)

    def forward(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """Shape: image (y, x) → sinogram (view, channel), views at `fan.view_angles_rad`."""
        beam = self.parallel.beam
        gamma = self.fan.channel_angles_rad[None, :]
        theta = self.fan.view_angles_rad[:, None] - gamma
        half_turns = np.floor(theta / np.pi)
        s = self.fan.source_iso_mm * np.sin(gamma) * np.where(half_turns % 2 == 0, 1, -1)
        rows = (theta - half_turns * np.pi) / (np.pi / beam.n_views)
        sinogram = self.parallel.forward(image)
        # The next half turn is the first one, mirrored; some views of it let the spline run on.
        edge = 8
        mirrored = sinogram[:, ::-1]
        whole = np.concatenate([mirrored[-edge:], sinogram, mirrored[:edge]])
        cells = s / beam.detector_mm + beam.n_detector // 2
        return ndimage.map_coordinates(whole, [rows + edge, cells], order=3, output=np.float32)

    def rebin(self, sinogram: NDArray[np.floating]) -> NDArray[np.float32]:
        """Fan → parallel: the mean of what each line's two sides measured, weighted by `FanBeam.half_turn_shares`.

        Shape: (view, channel) → (view, detector) of `parallel.beam`.
        """
        fan, beam = self.fan, self.parallel.beam
        if sinogram.shape != (len(fan.view_angles_rad), fan.n_channels):
            raise GeometryError(
                f"expected a sinogram of {len(fan.view_angles_rad)} views × {fan.n_channels} channels, got {sinogram.shape}"
            )
        step, start = 2 * np.pi / fan.n_views, fan.view_angles_rad[0]
        edge = 8
        whole = np.pad(sinogram, ((edge, edge), (0, 0)), mode="wrap") if fan.is_full_turn else sinogram
        shift = edge if fan.is_full_turn else 0
        coefficients = ndimage.spline_filter(np.asarray(whole, dtype=np.float32), order=3, output=np.float32)
        theta, gamma = beam.angles_rad[:, None], beam.gamma_rad[None, :]
        total = np.zeros((beam.n_views, beam.n_detector), dtype=np.float32)
        for share, beta, side in zip(
            fan.half_turn_shares(theta, gamma), (theta + gamma, theta + np.pi - gamma), (gamma, -gamma), strict=True
        ):
            rows = np.mod(beta - start, 2 * np.pi) / step + shift
            channels = np.broadcast_to(fan.channel_at(side), rows.shape)
            read = ndimage.map_coordinates(coefficients, [rows, channels], order=3, prefilter=False, mode="nearest")
            total += share.astype(np.float32) * read
        return total


class _Engine:
    """Arrays, FFT and non-uniform FFT of one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            import finufft

            self.arrays: Any = np
            self.fft, self._plan_class = scipy.fft, finufft.Plan
            # One thread: sums are then taken in one order, and the same input gives the same bits. Work is spread over processes.
            self._settings: dict[str, Any] = {"nthreads": 1}
        elif device == "cuda":
            try:
                import cufinufft
                import cupy
                import cupyx.scipy.fft
            except ImportError as error:
                raise ConfigError(
                    f"device cuda needs {error.name}; install the extra: pip install 'finegrain[cuda]', or take device cpu"
                ) from None
            self.arrays, self.fft, self._plan_class = cupy, cupyx.scipy.fft, cufinufft.Plan
            self._settings = {}
        else:
            raise ConfigError(f'device is "cpu" or "cuda", got "{device}"')

    def put(self, array: Any, dtype: Any) -> Any:
        """A contiguous array of that type on the device."""
        return self.arrays.ascontiguousarray(self.arrays.asarray(array, dtype=dtype))

    def get(self, array: Any) -> NDArray:
        """The array as NumPy's."""
        return np.asarray(array) if self.device == "cpu" else self.arrays.asnumpy(array)

    def plan(self, kind: int, size: int, n_images: int, points: tuple[NDArray, NDArray]) -> Any:
        """A non-uniform FFT between images and points: kind 2 evaluates, kind 1 sums."""
        plan = self._plan_class(
            kind, (size, size), n_images, eps=TOLERANCE, isign=-1 if kind == 2 else 1, dtype="complex64", **self._settings
        )
        plan.setpts(*(self.put(axis, np.float32) for axis in points))
        return plan


class _FourierLines:
    """The points of the image's Fourier plane where the spectra of the projections live."""

    def __init__(self, beam: ParallelBeam, pixel_mm: float, n_fft: int, n_frequency: int) -> None:
        self.beam, self.pixel_mm, self.n_fft = beam, pixel_mm, n_fft
        self.frequency_per_mm = np.arange(n_frequency) / (n_fft * beam.detector_mm)

    @property
    def points(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Angular frequency per pixel along rows (y) and columns (x), views after one another."""
        radius = 2 * np.pi * self.pixel_mm * self.frequency_per_mm
        y = np.sin(self.beam.angles_rad)[:, None] * radius
        x = np.cos(self.beam.angles_rad)[:, None] * radius
        return y.ravel().astype(np.float32), x.ravel().astype(np.float32)

    @property
    def aperture(self) -> NDArray[np.float32]:
        """Fourier transform of a square pixel, of unit area. Shape: (view, frequency)."""
        f = self.frequency_per_mm * self.pixel_mm
        theta = self.beam.angles_rad[:, None]
        return (np.sinc(np.cos(theta) * f) * np.sinc(np.sin(theta) * f)).astype(np.float32)

    @property
    def shift(self) -> NDArray[np.complex64]:
        """Moves the isocentre from the first detector cell to cell n_detector // 2. Shape: (frequency,)."""
        k = np.arange(len(self.frequency_per_mm))
        return np.exp(-2j * np.pi * k * (self.beam.n_detector // 2) / self.n_fft).astype(np.complex64)

    @property
    def multiplicity(self) -> NDArray[np.float32]:
        """How often a coefficient of a real signal's rfft occurs in its full DFT. Shape: (frequency,)."""
        twice = np.full(len(self.frequency_per_mm), 2, dtype=np.float32)
        twice[0] = 1
        if self.n_fft % 2 == 0 and len(twice) == self.n_fft // 2 + 1:
            twice[-1] = 1
        return twice
