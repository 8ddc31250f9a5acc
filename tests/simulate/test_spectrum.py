"""Beam hardening: water is corrected, bone is not, and the tables are those of the literature."""

import numpy as np
import pytest

from finegrain.errors import ConfigError
from finegrain.hu import MU_WATER_PER_MM
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import KERNELS, reconstruct_hu
from finegrain.simulate.spectrum import (
    ENERGY_KEV,
    FLUENCE,
    MU_BONE_PER_CM,
    MU_WATER_PER_CM,
    Spectrum,
    split_materials,
)

PATHS = np.linspace(0, 12, 49)
NOTHING = np.zeros_like(PATHS)


@pytest.mark.parametrize("kvp", sorted(FLUENCE))
def test_water_is_linear_after_its_correction(kvp):
    np.testing.assert_allclose(Spectrum(kvp).water_corrected(PATHS, NOTHING), PATHS, atol=1e-3)


@pytest.mark.parametrize("kvp", sorted(FLUENCE))
def test_uncorrected_water_hardens(kvp):
    """The more water, the less one more millimetre of it attenuates."""
    step = np.diff(Spectrum(kvp).measured(PATHS, NOTHING))
    assert (np.diff(step) < 0).all() and step[-1] > 0


@pytest.mark.parametrize("kvp", sorted(FLUENCE))
def test_bone_hardens_more_than_water(kvp):
    beam = Spectrum(kvp)
    short, long = (beam.water_corrected(np.full(2, 2.0), np.array([0.0, bone]))[1] - 2.0 for bone in (0.05, 2.0))
    # Above its line integral at the reference energy where it is thin (soft photons feel it), and ever less where it is thick.
    assert long / 2.0 < short / 0.05


def test_a_higher_voltage_penetrates_better_and_shows_less_bone():
    volts = sorted(FLUENCE)
    thin = np.full(1, 1e-3)
    water = [float(Spectrum(kvp).measured(PATHS[-1:], NOTHING[-1:])[0]) for kvp in volts]
    bone = [float(Spectrum(kvp).water_corrected(np.full(1, 3.0), thin * 100)[0]) - 3.0 for kvp in volts]
    assert water == sorted(water, reverse=True)
    assert bone == sorted(bone, reverse=True)
    assert [_mean_kev(kvp) for kvp in volts] == sorted(_mean_kev(kvp) for kvp in volts)


def _mean_kev(kvp):
    return float((np.array(FLUENCE[kvp]) * ENERGY_KEV).sum() / sum(FLUENCE[kvp]))


def test_spectra_are_shares_and_end_at_the_tube_voltage():
    for kvp, fluence in FLUENCE.items():
        assert sum(fluence) == pytest.approx(1, abs=2e-3)
        assert ENERGY_KEV[np.nonzero(fluence)[0][-1]] == pytest.approx(kvp, abs=3)
        assert Spectrum(kvp).signal.sum() == pytest.approx(1)


NIST_KEV = np.array([15, 20, 30, 40, 50, 60, 80, 100, 150.0])
NIST_ALUMINIUM = np.array([7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378])
"""μ/ρ in cm²/g."""
NIST_AIR = np.array([1.334, 0.5389, 0.1537, 0.06833, 0.04098, 0.03041, 0.02407, 0.02325, 0.02496])
"""μ_en/ρ in cm²/g; both of Hubbell and Seltzer 1995 (NISTIR 5632)."""


@pytest.mark.parametrize(("kvp", "layer_mm"), [(80, 5.8), (100, 7.1), (120, 8.1), (140, 9.0)])
def test_the_half_value_layers_are_those_stated(kvp, layer_mm):
    """Air kerma behind that much aluminium is a half, by attenuation data that are not the module's."""
    aluminium, air = (np.exp(np.interp(np.log(ENERGY_KEV), np.log(NIST_KEV), np.log(row))) for row in (NIST_ALUMINIUM, NIST_AIR))
    kerma = np.array(FLUENCE[kvp]) * ENERGY_KEV * air
    behind = kerma * np.exp(-aluminium * 2.699 * layer_mm / 10)
    assert behind.sum() / kerma.sum() == pytest.approx(0.5, abs=0.012)


@pytest.mark.parametrize(
    ("kev", "water_per_cm", "bone_per_cm"),
    [(30, 0.3756, 2.555), (50, 0.2269, 0.8142), (60, 0.2059, 0.6044), (80, 0.1837, 0.4280), (100, 0.1707, 0.3562)],
)
def test_attenuation_is_that_of_nist(kev, water_per_cm, bone_per_cm):
    """μ/ρ of Hubbell and Seltzer 1995 (NISTIR 5632) times 1.00 and 1.92 g/cm³ (ICRU 44 cortical bone)."""
    at = int(np.argmin(np.abs(ENERGY_KEV - kev)))
    assert MU_WATER_PER_CM[at] == pytest.approx(water_per_cm, rel=0.015)
    assert MU_BONE_PER_CM[at] == pytest.approx(bone_per_cm, rel=0.015)


def test_materials_add_up_to_the_image():
    hu = np.array([-1000.0, -100.0, 0.0, 60.0, 250.0, 400.0, 1500.0])
    water, bone = split_materials(hu)
    np.testing.assert_allclose(water + bone, MU_WATER_PER_MM * (1 + hu / 1000), atol=1e-7)
    assert (bone[:4] == 0).all() and (water[5:] == 0).all()


def test_two_bone_rods_leave_a_dark_band_between_them_and_water_alone_none():
    size, pixel_mm = 192, 1.6
    axis = (np.arange(size) - size // 2) * pixel_mm
    y, x = np.meshgrid(axis, axis, indexing="ij")
    water = np.where(np.hypot(x, y) < 110, 0.0, -1000.0).astype(np.float32)
    rods = np.where((np.hypot(x - 55, y) < 16) | (np.hypot(x + 55, y) < 16), np.float32(1000.0), water)
    images = {}
    for name, hu in (("water", water), ("rods", rods)):
        scanner = Scanner(
            size=size, pixel_mm=pixel_mm, kernel=KERNELS["B30f"], exposure=Exposure(modulation=0.0), spectrum=Spectrum(120)
        )
        images[name] = reconstruct_hu(scanner.line_integrals(hu), scanner.projector, kernel=scanner.kernel)
    between, aside = np.hypot(x, y) < 15, np.hypot(x, y - 70) < 15
    assert abs(images["water"][between].mean()) < 1
    assert images["rods"][between].mean() < -10
    assert images["rods"][between].mean() < images["rods"][aside].mean() - 10


def test_an_unknown_voltage_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no spectrum of 90 kVp; known are 80, 100, 120, 140"):
        Spectrum(90)
