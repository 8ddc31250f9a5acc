import numpy as np
import pytest
from scipy import ndimage, special

from finegrain.errors import DataError
from finegrain.evaluate.lesion import (
    STUDY_LESIONS,
    Lesion,
    Place,
    gaussian_transfer,
    insert,
    lesion_places,
    measured_transfer,
    roi_size,
    rois_at,
)
from finegrain.sample import sample_folder
from finegrain.scan.read import read_scan
from finegrain.simulate.phantom import water_disc

PIXEL_MM = 0.7
OFFSETS = [(0.0, 0.0), (0.5, 0.0), (-0.31, 0.47), (0.125, -0.06)]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("mtf", [None, gaussian_transfer(0.35)])
def test_the_integral_is_the_analytic_one_at_any_sub_pixel_offset(exponent, offset, mtf):
    lesion = Lesion(diameter_mm=4.0, contrast_hu=-20.0, exponent=exponent)
    image = lesion.image(41, pixel_mm=PIXEL_MM, offset=offset, mtf=mtf)
    analytic = -20.0 * np.pi * 2.0**2 / (exponent + 1)
    assert image.sum() * PIXEL_MM**2 == pytest.approx(analytic, rel=0.001)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("mtf", [None, gaussian_transfer(0.35)])
def test_the_centre_of_mass_lies_where_it_was_asked_for(offset, mtf):
    image = Lesion(diameter_mm=5.0, contrast_hu=30.0).image(41, pixel_mm=PIXEL_MM, offset=offset, mtf=mtf)
    assert ndimage.center_of_mass(image) == pytest.approx((20 + offset[0], 20 + offset[1]), abs=0.01)


def test_without_blur_a_pixel_holds_the_mean_of_the_profile_over_its_area():
    lesion = Lesion(diameter_mm=6.0, contrast_hu=-20.0)
    image = lesion.image(21, pixel_mm=PIXEL_MM)
    half = PIXEL_MM / 2  # mean of 1 − r²/R² over the central pixel: 1 − 2·(half²/3)/R²
    assert image[10, 10] == pytest.approx(-20 * (1 - 2 * half**2 / 3 / 9), rel=1e-3)
    assert image[10, 10 + 5] == 0  # its inner edge lies at 3.15 mm


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_blurred_lesion_has_the_analytic_spectrum_times_the_mtf(exponent):
    lesion, mtf, size = Lesion(diameter_mm=6.0, contrast_hu=-20.0, exponent=exponent), gaussian_transfer(0.3), 64
    offset = (0.3, -0.2)
    found = np.fft.fft2(np.fft.ifftshift(lesion.image(size, pixel_mm=PIXEL_MM, offset=offset, mtf=mtf))) * PIXEL_MM**2
    f = np.fft.fftfreq(size, PIXEL_MM)
    radial = np.hypot(f[:, None], f[None, :])
    u = 2 * np.pi * 3.0 * np.maximum(radial, 1e-9)
    bessel = 2 ** (exponent + 1) * special.gamma(exponent + 2) * special.jv(exponent + 1, u) / u ** (exponent + 1)
    shift = np.exp(-2j * np.pi * PIXEL_MM * (f[:, None] * offset[0] + f[None, :] * offset[1]))
    expected = lesion.integral_hu_mm2 * bessel * mtf(radial) * shift
    assert np.abs(found - expected).max() < 0.005 * abs(lesion.integral_hu_mm2)


def test_a_measured_mtf_blurs_as_the_curve_it_was_read_from():
    f = np.linspace(0, 2, 400)
    curve = gaussian_transfer(0.3)
    lesion = STUDY_LESIONS[1]
    a, b = (lesion.image(53, pixel_mm=PIXEL_MM, mtf=m) for m in (curve, measured_transfer(f, curve(f))))
    assert np.abs(a - b).max() < 1e-3 * np.abs(a).max()
    assert measured_transfer([0.1, 0.5], [0.9, 0.2])(np.array([0.0, 0.3, 0.6])) == pytest.approx([1.0, 0.55, 0.0])


def test_insertion_adds_the_lesion_there_and_nothing_elsewhere_and_leaves_the_original_alone():
    hu = np.random.default_rng(0).normal(50, 10, (100, 120)).astype(np.float32)
    before, lesion = hu.copy(), Lesion(diameter_mm=8.0, contrast_hu=-30.0)
    for place in (Place(40.3, 60.8), Place(1.2, 118.9), Place(99.0, 0.0)):
        out = insert(hu, lesion, place, pixel_mm=PIXEL_MM)
        y, x = np.indices(hu.shape)
        distance = np.hypot(y - place.row, x - place.column) * PIXEL_MM
        assert (out[distance > 5] == hu[distance > 5]).all()
        inner = distance < 3.4
        assert (out - hu)[inner] == pytest.approx(lesion.profile(distance[inner]), abs=0.7)
        assert out.dtype == np.float32
    assert (hu == before).all()
    with pytest.raises(DataError, match="lies outside"):
        insert(hu, lesion, Place(100.0, 3.0), pixel_mm=PIXEL_MM)


def test_a_roi_is_centred_on_the_place():
    size = roi_size(6.0, PIXEL_MM)
    assert size % 2 == 1
    assert size * PIXEL_MM >= 24
    hu = insert(np.zeros((90, 90)), Lesion(diameter_mm=6.0, contrast_hu=40.0), Place(44.7, 40.4), pixel_mm=PIXEL_MM)
    roi = rois_at(hu, [Place(44.7, 40.4)], size=size)[0]
    assert ndimage.center_of_mass(roi) == pytest.approx((size // 2 - 0.3, size // 2 + 0.4), abs=0.01)
    with pytest.raises(DataError, match="leaves a slice"):
        rois_at(hu, [Place(5.0, 40.0)], size=size)


@pytest.fixture(scope="module")
def body():
    """Soft tissue of 50 HU with fat and lung beside it, noise of 15 HU, pixels of 1 mm."""
    hu = water_disc(300.0, 330, 1.0) + 50.0
    y, x = np.indices(hu.shape) - 165
    hu[(hu > 0) & (x > 60)] = -100
    hu[np.hypot(x + 20, y + 75) < 45] = -850
    return hu + ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 60, hu.shape), 1.0)


@pytest.mark.parametrize("diameter_mm", [3.0, 6.0, 12.0])
def test_places_lie_in_soft_tissue_away_from_edges_and_never_overlap(body, diameter_mm):
    places = lesion_places(body, pixel_mm=1.0, diameter_mm=diameter_mm, n=40, seed=3)
    assert len(places) >= 8
    y, x = np.indices(body.shape) - 165
    soft = (np.hypot(y, x) < 150) & (x <= 60) & (np.hypot(x + 20, y + 75) >= 45)
    depth = ndimage.distance_transform_edt(soft)
    half = roi_size(diameter_mm, 1.0) // 2
    for i, a in enumerate(places):
        assert depth[a.pixel] > diameter_mm / 2 + 2
        assert max(map(abs, a.offset)) <= 0.5
        for b in places[i + 1 :]:
            gap = np.maximum(np.abs([a.row - b.row, a.column - b.column]) - half, 0)
            assert np.hypot(*gap) > diameter_mm / 2  # a lesion never reaches into another's ROI


def test_places_closer_together_are_more_and_still_do_not_overlap(body):
    far = lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=500)
    near = lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=500, min_spacing_mm=7.0)
    assert len(near) > 2 * len(far)
    points = np.array([[p.row, p.column] for p in near])
    apart = np.hypot(*(points[:, None] - points[None, :]).transpose(2, 0, 1)) + 100 * np.eye(len(points))
    assert apart.min() >= 7.0
    with pytest.raises(DataError, match="overlap"):
        lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=5, min_spacing_mm=5.0)


def test_places_depend_on_reference_and_seed_alone(body):
    first = lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=12, seed=5)
    assert first == lesion_places(body.copy(), pixel_mm=1.0, diameter_mm=6.0, n=12, seed=5)
    assert first != lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=12, seed=6)
    assert first[:5] == lesion_places(body, pixel_mm=1.0, diameter_mm=6.0, n=5, seed=5)
    offsets = np.array([p.offset for p in lesion_places(body, pixel_mm=1.0, diameter_mm=3.0, n=60)])
    assert offsets.std() > 0.2


def test_no_soft_tissue_gives_no_place():
    assert lesion_places(np.full((128, 128), -1000.0), pixel_mm=1.0, diameter_mm=6.0, n=3) == ()


def test_a_real_chest_offers_places_in_soft_tissue_only():
    volume = read_scan(sample_folder())
    hu, pixel_mm = np.asarray(volume.hu[4], dtype=np.float64), volume.pixel_mm[0]
    places = lesion_places(hu, pixel_mm=pixel_mm, diameter_mm=6.0, n=10)
    assert len(places) >= 3
    smooth = ndimage.uniform_filter(hu, 7)
    assert all(-20 < smooth[p.pixel] < 150 for p in places)


@pytest.mark.parametrize("wrong", [{"diameter_mm": 0.0}, {"contrast_hu": np.nan}, {"exponent": -1.0}])
def test_impossible_lesions_are_refused(wrong):
    with pytest.raises(DataError):
        Lesion(**{"diameter_mm": 5.0, "contrast_hu": -10.0, **wrong})


def test_a_lesion_larger_than_its_image_is_refused():
    with pytest.raises(DataError, match="does not fit"):
        Lesion(diameter_mm=20.0, contrast_hu=-10.0).image(21, pixel_mm=PIXEL_MM)
