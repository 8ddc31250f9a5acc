"""A kernel is measured back from the noise that it made, by theory, through the simulator, and from files."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from finegrain.cli import app, main
from finegrain.errors import ConfigError, DataError, ScanError
from finegrain.scan.nifti import write_nifti
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import ReconKernel, find_kernel, hann_kernel
from finegrain.simulate.kernel_fit import (
    NoiseImages,
    fit_kernel,
    kernel_of_scans,
    load_kernel,
    measure_kernel,
    noise_of_two,
    save_kernel,
)
from finegrain.simulate.phantom import water_disc

PIXEL_MM = 0.7
SHARP = hann_kernel("sharp", cutoff_per_mm=1.5)
BONE = ReconKernel("bone", (0.0, 0.1774, 0.3548, 0.5321, 0.7095, 0.9), (1.0, 1.0485, 1.17, 1.2202, 0.9201, 0.0), "XCIST")


def ramp_noise(kernel, n, *, size=256, pixel_mm=PIXEL_MM, sd=20.0, seed=0):
    """Noise of power f·W(f)², sampled on a pixel grid without regard to its Nyquist, as a scanner does it. Shape: (n, y, x)."""
    fine = 3 * size
    f = np.fft.fftfreq(fine, pixel_mm / 3)
    radius = np.hypot(f[:, None], f[None, :])
    transfer = np.sqrt(radius) * kernel(radius)
    generator = np.random.default_rng(seed)
    white = (generator.standard_normal((fine, fine)) for _ in range(n))
    images = np.stack([np.fft.ifft2(np.fft.fft2(one) * transfer).real[::3, ::3] for one in white])
    return images * (sd / images.std())


def ratio(measured, kernel, low=0.1, high=0.6):
    """Measured over true W at the frequencies in an interval."""
    f = np.arange(low, high + 1e-9, 0.02)
    return measured.kernel(f) / kernel(f)


def scan_of(noise, seed=None):
    """A volume of soft tissue with noise, slices 2 mm apart."""
    return CTVolume.from_array(40 + noise, pixel_mm=PIXEL_MM, slice_mm=2.0)


@pytest.mark.parametrize("name", ["hann-0.8", "B40f"])
def test_two_simulated_scans_of_water_give_the_kernel_back_within_3_percent(name):
    kernel, size = find_kernel(name), 384
    hu = water_disc(220.0, size, PIXEL_MM)
    scanner = Scanner(size=size, pixel_mm=PIXEL_MM, kernel=kernel, exposure=Exposure(photons=3e5))
    generator = np.random.default_rng(3)
    scans = [scanner.scan_phantom(hu, dose_fraction=1.0, generator=generator) for _ in range(12)]
    first, second = (
        CTVolume.from_array(np.stack(images), pixel_mm=PIXEL_MM, slice_mm=2.0)
        for images in ([s.normal_dose for s in scans], [s.low_dose for s in scans])
    )
    measured = kernel_of_scans(first, second, name=name, mode="repeated")
    assert measured.n_roi > 300
    assert ratio(measured, kernel) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kernel", [hann_kernel("soft", cutoff_per_mm=0.8), SHARP, BONE], ids=lambda kernel: kernel.name)
def test_ramp_noise_gives_the_kernel_back_also_where_it_rises_above_1(kernel):
    measured = measure_kernel(ramp_noise(kernel, 14), pixel_mm=PIXEL_MM, name="x", origin="theory")
    assert ratio(measured, kernel) == pytest.approx(1, abs=0.04)
    assert (max(measured.kernel.transfer) > 1.15) == (kernel is BONE)


def test_what_the_pixel_grid_folds_back_is_not_taken_for_the_kernel():
    nyquist = 0.5 / PIXEL_MM
    noise = ramp_noise(SHARP, 14)
    measured = measure_kernel(noise, pixel_mm=PIXEL_MM, name="x", origin="theory")
    assert measured.measured_to_per_mm > nyquist
    assert ratio(measured, SHARP, 0.85 * nyquist, 0.95 * nyquist) == pytest.approx(1, abs=0.05)
    f, power = measured.nps.frequency_per_mm, measured.nps.power
    naive = np.sqrt(power / f) / SHARP(f)
    assert naive[-2] / naive[8] > 1.15  # the plain formula reads 15 % too much there


def test_the_standard_errors_are_those_of_repeated_measurements():
    kernel = hann_kernel("soft", cutoff_per_mm=0.8)
    many = [measure_kernel(ramp_noise(kernel, 2, seed=seed), pixel_mm=PIXEL_MM, name="x", origin="theory") for seed in range(12)]
    n = min(one.n_measured for one in many) + 1
    scatter = np.std([one.kernel.transfer[1:n] for one in many], axis=0)
    stated = np.mean([one.standard_error[1:n] for one in many], axis=0)
    assert 0.6 < np.median(scatter / stated) < 1.6
    assert many[0].standard_error[0] == 0


def test_beyond_the_last_measured_point_w_falls_monotone_to_zero_and_has_no_error():
    measured = measure_kernel(ramp_noise(SHARP, 4), pixel_mm=PIXEL_MM, name="x", origin="theory")
    n = measured.n_measured + 1
    tail = np.array(measured.kernel.transfer[n - 1 :])
    assert len(tail) > 1 and (np.diff(tail) < 0).all() and tail[-1] == 0
    assert np.isnan(measured.standard_error[n:]).all() and np.isfinite(measured.standard_error[:n]).all()
    assert f"above {measured.measured_to_per_mm:.2f} cycles/mm extrapolated" in measured.kernel.origin


def test_a_plain_hann_falls_to_its_half_and_tenth_where_it_must():
    measured = measure_kernel(ramp_noise(hann_kernel("soft", cutoff_per_mm=0.8), 14), pixel_mm=PIXEL_MM, name="x", origin="theory")
    assert measured.w50_per_mm == pytest.approx(0.4, abs=0.01)
    assert measured.w10_per_mm == pytest.approx(0.8 * np.arccos(-0.8) / np.pi, abs=0.01)


def test_the_rounding_of_hu_does_not_lift_the_end_of_a_soft_kernel():
    kernel = hann_kernel("soft", cutoff_per_mm=0.6)
    noise = ramp_noise(kernel, 24, sd=1.5)
    a, b = scan_of(np.rint(noise[::2])), scan_of(np.rint(noise[1::2]))
    f = np.arange(0.45, 0.56, 0.02)
    corrected = fit_kernel(noise_of_two(a, b), name="x").kernel(f)
    plain = fit_kernel(replace(noise_of_two(a, b), white_hu2=0.0), name="x").kernel(f)
    assert corrected == pytest.approx(kernel(f), abs=0.015)
    assert np.abs(plain - kernel(f)).max() > 2 * np.abs(corrected - kernel(f)).max()


def test_air_lung_and_bone_are_left_out():
    noise = ramp_noise(SHARP, 4)
    anatomy = np.zeros((2, 256, 256))
    anatomy[:, :, :40], anatomy[:, :40, :], anatomy[:, 200:, :] = -1000, -850, 900
    usable = noise_of_two(scan_of(anatomy + noise[:2]), scan_of(anatomy + noise[2:])).usable
    assert not usable[:, :, :36].any() and not usable[:, :36, :].any() and not usable[:, 205:, :].any()
    assert usable[:, 60:180, 60:].all()


def test_too_little_body_is_refused_with_what_was_found():
    air = CTVolume.from_array(np.full((2, 256, 256), -1000.0), pixel_mm=PIXEL_MM, slice_mm=2.0)
    with pytest.raises(DataError, match=r"only 0 squares of 22 mm .* in 2 slices, expected at least 8"):
        kernel_of_scans(air, air, name="x")


def test_two_equal_scans_hold_no_noise_to_measure():
    scan = scan_of(np.rint(ramp_noise(SHARP, 2)))
    with pytest.raises(DataError, match="no noise"):
        kernel_of_scans(scan, scan, name="x")


def test_slices_are_matched_by_place_whatever_their_order():
    noise = ramp_noise(SHARP, 6)
    a, b = scan_of(noise[:3]), scan_of(noise[3:])
    turned = replace(b, hu=b.hu[::-1], positions_mm=b.positions_mm[::-1])
    assert np.array_equal(noise_of_two(a, turned).images, noise_of_two(a, b).images)


def test_scans_of_other_slices_or_grids_are_refused_with_numbers():
    noise = ramp_noise(SHARP, 3)
    a = scan_of(noise)
    with pytest.raises(ScanError, match=r"2 of 3 and 2 lie at the same place, the farthest is 2\.00 mm"):
        noise_of_two(a, scan_of(noise[:2]))
    with pytest.raises(ScanError, match=r"0 of 3 and 3 .* 0\.70 mm"):
        noise_of_two(a, replace(a, positions_mm=a.positions_mm + np.array([0, 0, 0.7])))
    with pytest.raises(ScanError, match=r"256 × 256 pixels of 0\.7 mm and 256 × 256 pixels of 0\.8 mm"):
        noise_of_two(a, replace(a, pixel_mm=(0.8, 0.8)))
    with pytest.raises(ScanError, match="oriented differently"):
        noise_of_two(a, replace(a, orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)))
    with pytest.raises(ScanError, match=r"square pixels, got 0\.7 × 0\.9"):
        noise_of_two(*(replace(a, pixel_mm=(0.7, 0.9)),) * 2)


def test_the_number_of_scans_fits_the_mode():
    scan = scan_of(ramp_noise(SHARP, 1))
    with pytest.raises(ConfigError, match="'paired' needs two scans, got 1"):
        kernel_of_scans(scan, name="x", mode="paired")
    with pytest.raises(ConfigError, match="'single' needs one scan, got 2"):
        kernel_of_scans(scan, scan, name="x", mode="single")
    with pytest.raises(ConfigError, match="known are paired, repeated, single"):
        kernel_of_scans(scan, name="x", mode="triple")


def test_two_scans_of_different_kernels_are_refused():
    noise = ramp_noise(SHARP, 2)
    soft, sharp = (replace(scan_of(noise[n : n + 1]), acquisition={"ConvolutionKernel": k}) for n, k in enumerate(("UB", "YA")))
    with pytest.raises(ScanError, match="have the kernels UB and YA, expected one"):
        kernel_of_scans(soft, sharp, name="x")


def test_a_single_scan_is_trusted_only_above_its_anatomy_and_says_so():
    kernel = hann_kernel("sharp", cutoff_per_mm=1.0)
    y, x = np.mgrid[:256, :256] * PIXEL_MM
    anatomy = 25 * np.sin(2 * np.pi * 0.03 * x) * np.cos(2 * np.pi * 0.02 * y)
    measured = kernel_of_scans(scan_of(ramp_noise(kernel, 12) + anatomy), name="x")
    assert measured.kernel.frequency_per_mm[1] > 0.2
    assert "single scan" in measured.kernel.origin and "below 0.2" in measured.kernel.origin
    assert ratio(measured, kernel, 0.3, 0.6) == pytest.approx(1, abs=0.15)


def test_small_bodies_are_measured_with_small_rois():
    noise = ramp_noise(SHARP, 8)
    usable = np.zeros(noise.shape, dtype=bool)
    usable[:, 90:140, 90:140] = True
    measured = fit_kernel(NoiseImages(noise, usable, PIXEL_MM), name="x")
    assert measured.roi_size == 32 and "32 × 32 pixels" in measured.kernel.origin


def test_a_saved_kernel_is_read_back_the_same_and_found_by_its_path(tmp_path):
    for kernel in (SHARP, find_kernel("B30f")):
        save_kernel(kernel, tmp_path / "kernel.yaml")
        assert load_kernel(tmp_path / "kernel.yaml") == kernel
        assert find_kernel(str(tmp_path / "kernel.yaml")) == kernel


def test_what_is_no_kernel_file_is_refused_in_one_line(tmp_path):
    good = "name: x\norigin: y\nfrequency_per_mm: [0, 1]\ntransfer: [1, 0]\n"
    cases = {
        "keys": ("name: x\n", "should hold name, origin, frequency_per_mm, transfer, got name"),
        "more": (good + "cutoff: 3\n", "cutoff"),
        "list": ("- 1\n", "got list"),
        "words": (good.replace("[1, 0]", "[1, zero]"), "expected lists of finite numbers"),
        "nan": (good.replace("[1, 0]", "[1, .nan]"), "expected lists of finite numbers"),
        "scale": (good.replace("[1, 0]", "[2, 0]"), r"W\(0\) must be 1"),
        "syntax": ("name: [", "is no YAML"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as caught:
            find_kernel(str(tmp_path / f"{name}.yaml"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        find_kernel(str(tmp_path / "none.yml"))
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        save_kernel(SHARP, tmp_path / "kernel.txt")


def test_the_command_measures_saves_and_draws(tmp_path):
    noise = ramp_noise(SHARP, 4)
    for name, images in (("a", noise[:2]), ("b", noise[2:])):
        write_nifti(scan_of(np.rint(images)), tmp_path / f"{name}.nii.gz")
    out, plot = tmp_path / "kernel.yaml", tmp_path / "kernel.png"
    scans = [str(tmp_path / f"{name}.nii.gz") for name in "ab"]
    done = CliRunner().invoke(app, ["measure-kernel", *scans, "--out", str(out), "--plot", str(plot), "--name", "mine"])
    assert done.exit_code == 0, done.output
    assert "NPS, mean" in done.output and str(out) in done.output.replace("\n", "")
    assert find_kernel(str(out)).name == "mine"
    assert plot.stat().st_size > 10_000


def test_a_plot_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    write_nifti(scan_of(np.rint(ramp_noise(SHARP, 2))), tmp_path / "a.nii.gz")
    out, plot = tmp_path / "kernel.yaml", tmp_path / "none" / "kernel.png"
    monkeypatch.setattr(
        sys, "argv", ["finegrain", "measure-kernel", str(tmp_path / "a.nii.gz"), "--out", str(out), "--plot", str(plot)]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "cannot be written" in said and len(said.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
