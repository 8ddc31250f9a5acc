"""Laws of the projector and of filtered backprojection, and their agreement with scikit-image and with analytic ellipses."""

import sys
import types

import finufft
import numpy as np
import pytest
import scipy.fft
from skimage.transform import iradon, radon

from finegrain.errors import ConfigError, GeometryError
from finegrain.simulate.fbp import KERNELS, ReconKernel, filtered_backprojection, reconstruct_hu, resample_and_rekernel
from finegrain.simulate.geometry import FanBeam, ParallelBeam
from finegrain.simulate.projector import Projector

SIZE, PIXEL_MM = 256, 1.4
MU = 0.0192


def _projector(size=SIZE, pixel_mm=PIXEL_MM, **beam):
    return Projector(ParallelBeam.covering(size=size, pixel_mm=pixel_mm, **beam), size=size, pixel_mm=pixel_mm)


def _disc_integrals(beam, radius_mm, centre_mm=(0.0, 0.0), mu=MU):
    s, theta = beam.detector_positions_mm[None], beam.angles_rad[:, None]
    distance = s - centre_mm[0] * np.cos(theta) - centre_mm[1] * np.sin(theta)
    return 2 * mu * np.sqrt(np.maximum(radius_mm**2 - distance**2, 0))


def _radius(size=SIZE, pixel_mm=PIXEL_MM, centre_mm=(0.0, 0.0)):
    axis = (np.arange(size) - size // 2) * pixel_mm
    return np.hypot(axis[:, None] - centre_mm[1], axis[None, :] - centre_mm[0])


def _disc(radius_mm, centre_mm, size=512, pixel_mm=0.7, oversampling=4):
    axis = ((np.arange(size * oversampling) + 0.5) / oversampling - 0.5 - size // 2) * pixel_mm
    inside = np.hypot(axis[:, None] - centre_mm[1], axis[None, :] - centre_mm[0]) < radius_mm
    return inside.reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))


@pytest.mark.parametrize(("size", "detector_mm", "n_views"), [(64, 0.7, 60), (97, 0.33, 31)])
def test_adjoint_is_the_transpose_of_forward(size, detector_mm, n_views):
    projector = _projector(size, 1.0, detector_mm=detector_mm, n_views=n_views)
    generator = np.random.default_rng(0)
    image = generator.normal(size=(size, size))
    sinogram = generator.normal(size=(n_views, projector.beam.n_detector))
    projected, spread = projector.forward(image).astype(float), projector.adjoint(sinogram).astype(float)
    scale = np.linalg.norm(projected) * np.linalg.norm(sinogram)
    assert abs((projected * sinogram).sum() - (image * spread).sum()) < 1e-6 * scale


def test_line_integrals_of_a_disc_are_its_chords():
    projector = _projector(512, 0.7)
    centre = (42.0, -28.0)
    error = projector.forward(MU * _disc(90, centre)) - _disc_integrals(projector.beam, 90, centre)
    assert np.sqrt((error**2).mean()) < 0.006
    assert np.abs(error).mean() < 0.003


def test_projection_is_linear_and_batches_agree_with_single_images():
    projector = _projector(64, 2.0, n_views=40)
    a, b = np.random.default_rng(1).normal(size=(2, 64, 64))
    both = projector.forward(np.stack([a, b]))
    np.testing.assert_allclose(both[0], projector.forward(a), atol=1e-4)
    np.testing.assert_allclose(projector.forward(2 * a - b), 2 * both[0] - both[1], atol=1e-3)


def test_projector_agrees_with_scikit_image_on_its_own_grid():
    """Smooth object and equal spacings, where both must give the same; scikit-image turns the other way round."""
    radius = _radius(128, 1.0, (8.0, -11.0))
    image = np.where(radius < 50, np.exp(-((radius / 14) ** 2)), 0)
    projector = _projector(128, 1.0, detector_mm=1.0, n_views=90)
    ours = projector.forward(image)
    theirs = radon(image, theta=-np.degrees(projector.beam.angles_rad), circle=True).T
    middle = projector.beam.n_detector // 2
    ours = ours[:, middle - 64 : middle + 64]
    assert np.abs(ours - theirs).max() < 0.004 * theirs.max()


def test_backprojection_agrees_with_scikit_image_on_a_smooth_object():
    radius = _radius(128, 1.0)
    image = np.where(radius < 50, np.exp(-((radius / 14) ** 2)), 0)
    projector = _projector(128, 1.0, detector_mm=1.0, n_views=180)
    ours = filtered_backprojection(projector.forward(image), projector, kernel=KERNELS["ramp"])
    sinogram = radon(image, theta=np.degrees(projector.beam.angles_rad), circle=True)
    theirs = iradon(sinogram, theta=np.degrees(projector.beam.angles_rad), circle=True, interpolation="cubic")
    inside = radius < 50
    assert np.abs(ours - theirs)[inside].max() < 0.01
    assert np.abs(ours - image)[inside].max() < 0.002


@pytest.mark.parametrize("kernel", ["B30f", "B40f", "D45f", "hann-0.8"])
@pytest.mark.parametrize("diameter_mm", [200, 320])
def test_water_reconstructs_to_zero_hu_without_cupping(kernel, diameter_mm):
    projector = _projector()
    hu = reconstruct_hu(_disc_integrals(projector.beam, diameter_mm / 2), projector, kernel=KERNELS[kernel])
    radius = _radius()
    centre, rim = hu[radius < 20].mean(), hu[(radius > diameter_mm / 2 - 35) & (radius < diameter_mm / 2 - 15)].mean()
    assert abs(centre) < 1
    assert abs(rim - centre) < 2
    assert abs(hu[(radius > diameter_mm / 2 + 8) & (radius < 175)].mean() + 1000) < 2


def test_an_insert_keeps_its_contrast():
    projector = _projector()
    sinogram = _disc_integrals(projector.beam, 140) + _disc_integrals(projector.beam, 20, (50, 30), mu=0.1 * MU)
    hu = reconstruct_hu(sinogram, projector, kernel=KERNELS["B30f"])
    assert hu[_radius(centre_mm=(50, 30)) < 14].mean() == pytest.approx(100, abs=1)


def test_kernels_are_ordered_from_smooth_to_sharp():
    at = np.array([0.45])
    assert KERNELS["B30f"](at) < KERNELS["B40f"](at) < KERNELS["D45f"](at) < KERNELS["ramp"](at)
    assert all(kernel(np.array([0.0]))[0] == 1 for kernel in KERNELS.values())


def test_rekernelling_to_the_own_kernel_changes_nothing_but_the_grid():
    image = 100 * np.exp(-((_radius(128, 1.0) / 12) ** 2))
    same, pixel_mm = resample_and_rekernel(image, pixel_mm=1.0, new_pixel_mm=1.0, own=KERNELS["B30f"], target=KERNELS["B30f"])
    assert pixel_mm == 1.0
    np.testing.assert_allclose(same, image, atol=1e-3)
    finer, pixel_mm = resample_and_rekernel(image, pixel_mm=1.0, new_pixel_mm=0.5)
    assert (finer.shape, pixel_mm) == ((256, 256), 0.5)
    np.testing.assert_allclose(finer[::2, ::2], image, atol=1e-3)


def test_noise_made_with_a_sharp_kernel_takes_the_spectrum_of_a_soft_one():
    projector = _projector(256, 0.4)
    noise = np.random.default_rng(2).normal(size=(2, projector.beam.n_views, projector.beam.n_detector))
    sharp, _ = filtered_backprojection(noise, projector, kernel=KERNELS["D45f"])
    soft, _ = filtered_backprojection(noise, projector, kernel=KERNELS["B30f"])
    turned, _ = resample_and_rekernel(
        sharp, pixel_mm=0.4, new_pixel_mm=0.4, own=KERNELS["D45f"], target=KERNELS["B30f"], largest_gain=10
    )
    middle = slice(64, 192), slice(64, 192)
    assert np.corrcoef(turned[middle].ravel(), soft[middle].ravel())[0, 1] > 0.99
    assert turned[middle].std() == pytest.approx(soft[middle].std(), rel=0.03)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ParallelBeam.covering(size=512, pixel_mm=0), "positive size"),
        (lambda: ParallelBeam.covering(size=512, pixel_mm=float("nan")), "positive size"),
        (lambda: ParallelBeam.covering(size=512, pixel_mm=3.0), "beyond the source"),
        (lambda: FanBeam(source_iso_mm=1200), "isocentre"),
        (lambda: Projector(ParallelBeam(n_detector=10), size=64, pixel_mm=1.0), "detector covers"),
        (lambda: _projector(64, 1.0).forward(np.zeros((2, 32, 64))), r"64 × 64 pixels, got shape \(2, 32, 64\)"),
        (lambda: resample_and_rekernel(np.zeros((8, 8)), pixel_mm=1.0, new_pixel_mm=0.0), "8 mm .* pixels of 0.0 mm"),
        (lambda: resample_and_rekernel(np.zeros((8, 8)), pixel_mm=1.0, new_pixel_mm=3.0), "8 mm .* pixels of 3.0 mm"),
        (lambda: resample_and_rekernel(np.zeros((8, 8)), pixel_mm=1.0, new_pixel_mm=np.nan), "pixels of nan mm"),
        (lambda: resample_and_rekernel(np.zeros((8, 8)), pixel_mm=0.0, new_pixel_mm=1.0), "8 pixels of 0.0 mm"),
        (lambda: filtered_backprojection(np.zeros((3, 4)), _projector(64, 1.0), kernel=KERNELS["ramp"]), "sinogram of"),
    ],
)
def test_impossible_geometry_is_refused_with_the_number(make, word):
    with pytest.raises(GeometryError, match=word):
        make()


@pytest.mark.parametrize(
    "f_w",
    [
        ((0.0, 0.5, 0.4), (1.0, 0.5, 0.0)),
        ((0.0, 0.5), (0.9, 0.0)),
        ((0.1, 0.5), (1.0, 0.0)),
        ((0.0, 0.5), (1.0, np.nan)),
        ((0.0, np.inf), (1.0, 0.0)),
    ],
)
def test_a_kernel_that_would_change_hu_is_refused(f_w):
    with pytest.raises(ConfigError, match="kernel broken"):
        ReconKernel("broken", *f_w, origin="test")


def test_the_gpu_makes_the_calls_that_the_cpu_makes(monkeypatch):
    """CuPy and cuFINUFFT mirror NumPy and FINUFFT; with these in their place, the lines that run on a GPU give the same numbers."""
    cupy = types.ModuleType("cupy")
    cupy.ascontiguousarray, cupy.asarray, cupy.asnumpy = np.ascontiguousarray, np.asarray, np.asarray
    cufinufft = types.ModuleType("cufinufft")
    cufinufft.Plan = lambda *arguments, **settings: finufft.Plan(*arguments, nthreads=1, **settings)
    cupyx = types.ModuleType("cupyx")
    cupyx.scipy = types.ModuleType("cupyx.scipy")
    cupyx.scipy.fft = scipy.fft
    fakes = {"cupy": cupy, "cufinufft": cufinufft, "cupyx": cupyx, "cupyx.scipy": cupyx.scipy, "cupyx.scipy.fft": scipy.fft}
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    beam = ParallelBeam.covering(size=64, pixel_mm=3.0, n_views=90)
    image = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
    cpu, gpu = (Projector(beam, size=64, pixel_mm=3.0, device=device) for device in ("cpu", "cuda"))
    sinogram = cpu.forward(image)
    np.testing.assert_array_equal(gpu.forward(image), sinogram)
    np.testing.assert_array_equal(gpu.adjoint(sinogram), cpu.adjoint(sinogram))
    again = [filtered_backprojection(sinogram, projector, kernel=KERNELS["B30f"]) for projector in (cpu, gpu)]
    np.testing.assert_array_equal(*again)


def test_a_gpu_and_the_cpu_give_the_same_images():
    cupy = pytest.importorskip("cupy", reason="needs a GPU and the cuda extra")
    pytest.importorskip("cufinufft", reason="needs a GPU and the cuda extra")
    if not cupy.cuda.is_available():
        pytest.skip("needs a GPU")
    beam = ParallelBeam.covering(size=256, pixel_mm=1.0)
    image = np.random.default_rng(0).random((2, 256, 256), dtype=np.float32)
    cpu, gpu = (Projector(beam, size=256, pixel_mm=1.0, device=device) for device in ("cpu", "cuda"))
    sinogram = cpu.forward(image)
    np.testing.assert_allclose(gpu.forward(image), sinogram, rtol=1e-4, atol=1e-3 * sinogram.max())
    ours, theirs = (filtered_backprojection(sinogram, p, kernel=KERNELS["B30f"]) for p in (cpu, gpu))
    np.testing.assert_allclose(theirs, ours, atol=1e-3 * ours.max())


def test_a_device_that_is_not_there_is_refused():
    beam = ParallelBeam.covering(size=16, pixel_mm=1.0)
    with pytest.raises(ConfigError, match='"cpu" or "cuda", got "tpu"'):
        Projector(beam, size=16, pixel_mm=1.0, device="tpu")
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"finegrain\[cuda\]"):
            Projector(beam, size=16, pixel_mm=1.0, device="cuda")
