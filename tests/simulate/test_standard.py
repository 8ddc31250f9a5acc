"""Bars and line pairs: their images, their line integrals and their areas are one and the same thing."""

import numpy as np
import pytest

from finegrain.errors import GeometryError
from finegrain.simulate.fbp import KERNELS, reconstruct_hu
from finegrain.simulate.geometry import ParallelBeam
from finegrain.simulate.phantom.standard import (
    BARS_PER_PATTERN,
    CONTRAST_INSERTS,
    LINE_PAIRS_PER_CM,
    EllipsePhantom,
    Rectangle,
    insert_phantom,
    line_pair_centre,
    line_pair_phantom,
)
from finegrain.simulate.projector import Projector

BAR = Rectangle((9.0, -14.0), (6.0, 31.0), 0.4, 2.5)
SQUARE = Rectangle((0.0, 0.0), (10.0, 10.0), 0.0, 1.0)


@pytest.mark.parametrize(
    ("s_mm", "theta_rad", "chord_mm"),
    [
        (0.0, 0.0, 10.0),
        (4.99, 0.0, 10.0),
        (5.01, 0.0, 0.0),
        (-4.99, np.pi / 2, 10.0),
        (0.0, np.pi / 4, 10 * np.sqrt(2)),
        (5.0, np.pi / 4, 10 * np.sqrt(2) - 10),
        (7.08, np.pi / 4, 0.0),
    ],
)
def test_chords_of_a_square_are_those_of_school_geometry(s_mm, theta_rad, chord_mm):
    assert SQUARE.line_integral(s_mm, theta_rad) == pytest.approx(chord_mm, abs=1e-9)


@pytest.mark.parametrize("theta_rad", [0.0, 0.1, 0.4, 1.3, np.pi / 2, 0.4 + np.pi / 2, 3.0])
def test_the_integral_over_all_rays_of_a_view_is_area_times_value(theta_rad):
    s = np.linspace(-60, 60, 240_001)
    integral = BAR.line_integral(s, theta_rad).sum() * (s[1] - s[0])
    assert integral == pytest.approx(BAR.area_mm2 * BAR.value, rel=1e-4)


def test_a_line_is_the_same_from_both_sides():
    s, theta = np.linspace(-40, 40, 81)[:, None], np.linspace(0, np.pi, 37)[None, :]
    np.testing.assert_allclose(BAR.line_integral(s, theta), BAR.line_integral(-s, theta + np.pi), atol=1e-9)


def test_coverage_holds_the_area_and_is_exact_along_the_axes():
    assert BAR.coverage(128, 0.7).sum() * 0.49 == pytest.approx(BAR.area_mm2, rel=2e-3)
    upright = Rectangle((0.25, 0.0), (2.0, 3.0), 0.0, 1.0).coverage(16, 1.0)
    np.testing.assert_allclose(upright[8, 6:11], [0.0, 0.25, 1.0, 0.75, 0.0], atol=1e-6)
    np.testing.assert_allclose(upright[6:11, 8], [0.0, 1.0, 1.0, 1.0, 0.0], atol=1e-6)


def test_the_image_of_a_bar_agrees_with_its_line_integrals():
    beam = ParallelBeam.covering(size=256, pixel_mm=0.5, n_views=90)
    projector = Projector(beam, size=256, pixel_mm=0.5)
    error = projector.forward(BAR.image(256, 0.5)) - BAR.line_integral(beam.detector_positions_mm[None], beam.angles_rad[:, None])
    # In parts of the longest chord; views along the bar's sides jump, which no grid follows.
    assert np.sqrt((error**2).mean()) < 0.006 * 2.5 * 31
    assert np.median(np.abs(error.mean(axis=1))) < 1e-3


def test_line_pairs_have_the_area_of_their_bars_and_lie_where_they_are_said_to():
    phantom = line_pair_phantom(contrast_hu=500)
    assert len(phantom.bars) == len(LINE_PAIRS_PER_CM) * BARS_PER_PATTERN
    image = phantom.image(512, 0.35) - EllipsePhantom(phantom.ellipses).image(512, 0.35)
    assert image.sum() * 0.35**2 == pytest.approx(500 * sum(bar.area_mm2 for bar in phantom.bars), rel=2e-3)
    for index in range(len(LINE_PAIRS_PER_CM)):
        x, y, _ = line_pair_centre(index)
        assert image[256 + round(y / 0.35), 256 + round(x / 0.35)] > 250


def test_a_sharp_kernel_shows_line_pairs_that_a_soft_one_does_not():
    phantom, size, pixel_mm = line_pair_phantom(), 512, 0.35
    beam = ParallelBeam.covering(size=size, pixel_mm=pixel_mm)
    projector = Projector(beam, size=size, pixel_mm=pixel_mm)
    sinogram = phantom.line_integral(beam.detector_positions_mm[None], beam.angles_rad[:, None])
    x, y, _ = line_pair_centre(5)
    assert LINE_PAIRS_PER_CM[5] == 8
    row, column = 256 + round(y / pixel_mm), 256 + round(x / pixel_mm)
    swing = {}
    for name in ("B30f", "D45f"):
        pattern = reconstruct_hu(sinogram, projector, kernel=KERNELS[name])[row - 5 : row + 6, column - 5 : column + 6]
        swing[name] = float(pattern.max() - pattern.min())
    # Of a square wave of 1000 HU the fundamental swings by 4/π · 1000, and W(f) is what the kernel lets through of it.
    expected = {name: 4000 / np.pi * float(KERNELS[name](np.array([0.8]))[0]) for name in swing}
    assert swing["B30f"] < 100
    assert swing["D45f"] == pytest.approx(expected["D45f"], rel=0.1)


def test_line_pairs_outside_the_body_and_flat_bars_are_refused():
    with pytest.raises(GeometryError, match="line pairs reach 70 mm"):
        line_pair_phantom(diameter_mm=130)
    with pytest.raises(GeometryError, match="sides must be above 0"):
        Rectangle((0.0, 0.0), (1.0, 0.0), 0.0, 1.0)


def test_every_contrast_insert_keeps_its_contrast_within_one_per_cent():
    """Read within 3 mm of the middle of the 12 mm rods, half way to the edge, where the kernel no longer mixes in water."""
    phantom, size, pixel_mm = insert_phantom(), 256, 0.85
    beam = ParallelBeam.covering(size=size, pixel_mm=pixel_mm)
    projector = Projector(beam, size=size, pixel_mm=pixel_mm)
    sinogram = phantom.line_integral(beam.detector_positions_mm[None], beam.angles_rad[:, None])
    hu = reconstruct_hu(sinogram, projector, kernel=KERNELS["B40f"])
    axis = (np.arange(size) - size // 2) * pixel_mm
    for insert in CONTRAST_INSERTS:
        x, y = insert.center_mm
        core = np.hypot(axis[None, :] - x, axis[:, None] - y) < 3
        assert hu[core].mean() == pytest.approx(insert.hu, rel=0.01, abs=0.3)
