"""Laws of the fan beam: where its rays run, with what weight each enters, and that rebinning them loses nothing."""

from dataclasses import replace

import numpy as np
import pytest

from finegrain.errors import GeometryError
from finegrain.hu import MU_WATER_PER_MM
from finegrain.simulate.fbp import KERNELS, reconstruct_hu
from finegrain.simulate.geometry import SCANNERS, FanBeam, ParallelBeam, find_scanner
from finegrain.simulate.phantom.standard import Ellipse, EllipsePhantom
from finegrain.simulate.projector import FanProjector

SIZE, PIXEL_MM = 256, 1.2
PHANTOM = EllipsePhantom(
    (
        Ellipse((0.0, 0.0), (130.0, 95.0), 0.3, 1000.0),
        Ellipse((40.0, -30.0), (14.0, 9.0), 1.0, 120.0),
        Ellipse((-55.0, 20.0), (20.0, 20.0), 0, -90.0),
    )
)
PHANTOM_MU_512 = (PHANTOM.image(512, 0.6) + 1000) * np.float32(MU_WATER_PER_MM / 1000)
FANS = {
    "arc": FanBeam(),
    "flat": FanBeam(detector="flat"),
    "centred": FanBeam(channel_offset=0.0),
    "short": FanBeam().short_scan(),
    "short flat": FanBeam(detector="flat").short_scan(),
}


def _fan_sinogram(fan):
    """Exact line integrals along the rays of a fan, from where source and detector stand. Shape: (view, channel)."""
    gamma = fan.channel_angles_rad[None, :]
    return PHANTOM.line_integral(fan.source_iso_mm * np.sin(gamma), fan.view_angles_rad[:, None] - gamma)


@pytest.mark.parametrize("fan", [*SCANNERS.values(), *FANS.values()], ids=lambda fan: f"{fan.name}-{fan.detector}")
def test_channel_at_inverts_the_channel_angles(fan):
    np.testing.assert_allclose(fan.channel_at(fan.channel_angles_rad), np.arange(fan.n_channels), atol=1e-9)
    assert (np.diff(fan.channel_angles_rad) > 0).all()


def test_a_quarter_offset_interleaves_opposite_rays():
    """Opposite rays have opposite γ: with an offset of a quarter, those of one side fall half way between those of the other."""
    here = FanBeam(channel_offset=0.25).channel_angles_rad
    between = FanBeam().channel_at(-here[300:400])
    np.testing.assert_allclose(between - np.floor(between), 0.5, atol=1e-9)
    centred = FanBeam(channel_offset=0.0)
    np.testing.assert_allclose(np.sort(-centred.channel_angles_rad), centred.channel_angles_rad, atol=1e-12)


def test_a_flat_detector_has_equal_steps_on_the_detector_and_an_arc_equal_angles():
    flat, arc = FANS["flat"], FANS["arc"]
    assert np.ptp(np.diff(np.tan(flat.channel_angles_rad))) < 1e-12
    assert np.ptp(np.diff(arc.channel_angles_rad)) < 1e-12
    assert flat.channel_angle_rad == arc.channel_angle_rad == pytest.approx(1.2858 / 1085.6)


@pytest.mark.parametrize(("name", "field_mm"), [("siemens-definition", 500), ("siemens-sensation", 500), ("ge-lightspeed", 500)])
def test_scanners_have_the_field_of_view_of_their_data_sheets(name, field_mm):
    assert find_scanner(name).field_of_view_mm == pytest.approx(field_mm, rel=0.015)


def test_the_field_of_view_is_what_the_shorter_side_of_the_fan_reaches():
    fan = FanBeam(channel_offset=10.25)
    outermost = fan.source_iso_mm * np.sin(fan.channel_angles_rad[[0, -1]])
    assert fan.field_of_view_mm == pytest.approx(2 * np.abs(outermost).min())
    assert fan.fan_angle_rad == pytest.approx(2 * np.abs(fan.channel_angles_rad).max())


@pytest.mark.parametrize("fan", [*SCANNERS.values(), FANS["flat"]], ids=[*SCANNERS, "flat"])
def test_rays_per_cell_count_every_ray_of_half_a_turn_once(fan):
    """Summed over the cells of the field of view and the views of π, they are the fan's rays there."""
    beam = ParallelBeam(n_detector=1201, detector_mm=0.3, n_views=576, fan=fan)
    gamma = fan.gamma_of(np.array([-600.5 * 0.3, 600.5 * 0.3]))
    channels = np.diff(fan.channel_at(gamma))[0]
    assert beam.rays_per_cell.sum() * beam.n_views == pytest.approx(channels * fan.n_views / 2, rel=1e-4)


@pytest.mark.parametrize("missing", [0.2, 0.7, 1.0])
def test_a_turn_that_lacks_less_than_a_view_is_a_full_one(missing):
    """Else the first view would be measured again as the last, and the shares of a short scan taken: noisier by a fifth."""
    fan = FanBeam(scan_rad=2 * np.pi * (1 - missing / 1152))
    assert len(fan.view_angles_rad) == 1152
    assert fan.is_full_turn


def test_half_turn_shares_of_a_full_turn_are_halves():
    theta, gamma = np.linspace(0, np.pi, 13)[:, None], np.linspace(-0.4, 0.4, 9)[None, :]
    np.testing.assert_array_equal(FanBeam().half_turn_shares(theta, gamma), np.full((2, 13, 9), 0.5))


def test_half_turn_shares_of_a_short_scan_add_up_to_one_and_are_zero_where_nothing_was_measured():
    fan = FanBeam().short_scan()
    theta, gamma = np.meshgrid(np.linspace(0, np.pi, 361), np.linspace(-0.43, 0.43, 173), indexing="ij")
    shares = fan.half_turn_shares(theta, gamma)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-9)
    assert shares.min() >= 0
    start, end = fan.view_angles_rad[[0, -1]]
    for share, beta in zip(shares, (theta + gamma, theta + np.pi - gamma), strict=True):
        turned = np.mod(beta - start, 2 * np.pi)
        assert (share[turned > end - start + 1e-9] == 0).all()
    assert (shares.max(axis=0) < 0.999).any(), "lines that are seen twice share"


def test_short_scan_shares_have_no_step():
    """A step of the weight along the detector would be filtered into a streak."""
    fan = FanBeam().short_scan()
    gamma = np.linspace(-0.42, 0.42, 2001)
    for theta in np.linspace(0.01, np.pi - 0.01, 40):
        assert np.abs(np.diff(fan.half_turn_shares(np.array(theta), gamma)[0])).max() < 0.1


def test_a_short_scan_turns_by_half_a_turn_and_the_fan():
    fan, short = FanBeam(), FanBeam().short_scan()
    assert short.scan_rad == pytest.approx(np.pi + fan.fan_angle_rad)
    assert fan.is_full_turn and not short.is_full_turn
    assert len(fan.view_angles_rad) == 1152
    assert 0 <= np.ptp(short.view_angles_rad) - short.scan_rad < 2 * np.pi / fan.n_views


@pytest.mark.parametrize("fan", FANS.values(), ids=FANS)
def test_fan_line_integrals_are_those_of_ellipses(fan):
    projector = FanProjector(fan, size=512, pixel_mm=0.6)
    error = projector.forward(PHANTOM_MU_512) - _fan_sinogram(fan)
    assert np.sqrt((error**2).mean()) < 0.006
    assert abs(error.mean()) < 2e-4


@pytest.mark.parametrize("fan", FANS.values(), ids=FANS)
def test_rebinned_fan_rays_are_the_parallel_ones(fan):
    projector = FanProjector(fan, size=SIZE, pixel_mm=PIXEL_MM)
    beam = projector.parallel.beam
    exact = PHANTOM.line_integral(beam.detector_positions_mm[None], beam.angles_rad[:, None])
    error = projector.rebin(_fan_sinogram(fan)) - exact
    assert np.sqrt((error**2).mean()) < 0.006


def _reconstructed(fan):
    projector = FanProjector(fan, size=SIZE, pixel_mm=PIXEL_MM)
    return reconstruct_hu(projector.rebin(_fan_sinogram(fan)), projector.parallel, kernel=KERNELS["B30f"])


def test_a_short_scan_of_noise_free_rays_gives_the_image_of_a_full_turn():
    axis = (np.arange(SIZE) - SIZE // 2) * PIXEL_MM
    inside = np.hypot(axis[:, None], axis[None, :]) < 85
    full, short = (_reconstructed(FANS[name]) for name in ("arc", "short"))
    assert np.sqrt(((full - short)[inside] ** 2).mean()) < 0.5
    water = (np.hypot(axis[:, None] - 30, axis[None, :]) < 20) & inside
    assert full[water].mean() == pytest.approx(0, abs=0.5)
    assert short[water].mean() == pytest.approx(0, abs=0.5)


def test_a_shifted_object_is_rebinned_to_where_it_stands():
    """A rebin with the wrong sign of γ or of the offset would move or blur it."""
    axis = (np.arange(SIZE) - SIZE // 2) * PIXEL_MM
    hu = _reconstructed(FANS["arc"])
    assert hu[np.hypot(axis[:, None] - 20, axis[None, :] + 55) < 12].mean() == pytest.approx(-90, abs=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FanBeam(source_iso_mm=-1.0), "got -1.0 and 1085.6"),
        (lambda: FanBeam(source_detector_mm=np.inf), "got 595.0 and inf mm"),
        (lambda: FanBeam(detector_pitch_mm=np.inf), "got inf mm"),
        (lambda: FanBeam().gamma_of(np.array([0.0, np.nan])), "nan mm from the isocentre"),
        (lambda: ParallelBeam(n_detector=9, detector_mm=np.inf), "9, 576, inf mm"),
        (lambda: ParallelBeam.covering(size=64, pixel_mm=1.0, detector_mm=0.0), "got 0.0 mm"),
        (lambda: ParallelBeam.covering(size=64, pixel_mm=1.0, detector_mm=np.nan), "got nan mm"),
        (lambda: FanBeam(n_channels=1), "got 1.2858 mm, 1152 and 1"),
        (lambda: FanBeam(detector="round"), 'got "round"'),
        (lambda: FanBeam(channel_offset=400.0), "channel_offset of 400.0"),
        (lambda: FanBeam(detector_pitch_mm=8.0), "expected less than 90°"),
        (lambda: FanBeam(scan_rad=3.0), "scan_rad of 3.0000 does not see every line once"),
        (lambda: FanBeam(scan_rad=7.0), "scan_rad of 7.0000"),
        (lambda: replace(FanBeam(), n_channels=5000), "expected less than 90°"),
        (lambda: find_scanner("siemens"), "known are ge-lightspeed, siemens-definition"),
        (lambda: FanProjector(FanBeam(), size=512, pixel_mm=1.2), "614 mm does not fit the 50. mm field of view"),
        (
            lambda: FanProjector(FanBeam(), size=64, pixel_mm=1.0).rebin(np.zeros((3, 4))),
            r"1152 views × 736 channels, got \(3, 4\)",
        ),
    ],
)
def test_impossible_fans_are_refused_with_the_number(make, words):
    with pytest.raises(GeometryError, match=words):
        make()
