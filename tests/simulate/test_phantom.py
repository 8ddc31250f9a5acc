"""Virtual patients are exact, individual and plausible in HU; test phantoms agree with their own line integrals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from finegrain.errors import GeometryError
from finegrain.hu import MU_WATER_PER_MM
from finegrain.simulate.phantom import (
    CCT189_INSERTS,
    LABELS,
    Ellipse,
    PhantomVolume,
    VirtualPatient,
    cct189_phantom,
    insert_phantom,
    water_disc,
)
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM
from finegrain.simulate.phantom.head import head
from finegrain.simulate.phantom.pelvis import PROMONTORY_MM, pelvis
from finegrain.simulate.phantom.person import HU_BY_PHASE, person
from finegrain.simulate.phantom.texture import power_law_tile

SEEDS = (1, 4, 6)
NEW_REGIONS = ("head", "pelvis", "shoulder")


def draw(seed: int, region: str, n: int = 1, **more: float) -> PhantomVolume:
    pixel_mm = 1.02 * MIN_FIELD_MM[region] / 192 if region in NEW_REGIONS else 1.9  # type: ignore[index]
    return VirtualPatient(seed, region).slices(n, size=192, pixel_mm=pixel_mm, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def volumes() -> dict[tuple[int, str], PhantomVolume]:
    return {(seed, region): draw(seed, region) for seed in SEEDS for region in ("thorax", "abdomen", *NEW_REGIONS)}


def core_mean(volume: PhantomVolume, name: str) -> float:
    """Mean HU of a label without its edge pixels, which hold a mixture; NaN where nothing is left."""
    inside = ndimage.binary_erosion(volume.labels[0] == LABELS[name], iterations=2)
    return float(volume.hu[0][inside].mean()) if inside.sum() >= 6 else float("nan")


def test_the_same_seed_gives_the_same_patient() -> None:
    first, again = draw(3, "thorax"), draw(3, "thorax")
    assert np.array_equal(first.hu, again.hu) and np.array_equal(first.labels, again.labels)


def test_another_seed_gives_another_patient(volumes: dict[tuple[int, str], PhantomVolume]) -> None:
    for region in ("thorax", "abdomen", *NEW_REGIONS):
        a, b = volumes[1, region], volumes[4, region]
        assert np.mean(a.labels != b.labels) > 0.1


def test_a_place_does_not_depend_on_how_many_slices_are_drawn() -> None:
    three, one = draw(2, "thorax", 3), draw(2, "thorax", 1)
    assert np.array_equal(three.hu[1], one.hu[0])


def test_neighbouring_slices_resemble_each_other_more_than_distant_ones() -> None:
    volume = draw(1, "abdomen", 7, slice_mm=3.0)
    body = volume.labels[0] > 0

    def correlation(i: int, j: int) -> float:
        return float(np.corrcoef(np.clip(volume.hu[[i, j]][:, body], -200, 300))[0, 1])

    near, far = correlation(2, 3), correlation(0, 6)
    assert 0.85 < near < 0.999
    assert near > far


def test_texture_is_smooth_along_z() -> None:
    volume = draw(1, "abdomen", 3, slice_mm=1.0)
    liver = ndimage.binary_erosion((volume.labels == LABELS["liver"]).all(axis=0), iterations=3)
    assert 0.4 < np.corrcoef(volume.hu[0][liver], volume.hu[1][liver])[0, 1] < 0.999


def test_organs_have_the_hu_of_the_literature(volumes: dict[tuple[int, str], PhantomVolume]) -> None:
    intervals = {
        "lung": (-910.0, -750.0),
        "fat": (-125.0, -75.0),
        "soft tissue": (20.0, 90.0),
        "liver": (15.0, 130.0),
        "spleen": (35.0, 145.0),
        "kidney": (20.0, 220.0),
        "heart": (30.0, 330.0),
        "bowel gas": (-1000.0, -850.0),
        "airway": (-1000.0, -850.0),
    }
    seen: set[str] = set()
    for volume in volumes.values():
        for name, (low, high) in intervals.items():
            mean = core_mean(volume, name)
            if not np.isnan(mean):
                seen.add(name)
                assert low < mean < high, (name, mean)
    assert {"lung", "fat", "soft tissue", "liver", "kidney", "heart"} <= seen


def test_organs_follow_the_contrast_phase() -> None:
    for seed in SEEDS:
        patient = VirtualPatient(seed, "abdomen")
        volume = draw(seed, "abdomen")
        expected = HU_BY_PHASE[patient.phase]
        kidney, liver = core_mean(volume, "kidney"), core_mean(volume, "liver")
        assert min(expected["cortex"], expected["medulla"]) - 20 < kidney < expected["cortex"] + 20
        assert expected["liver"] - 50 < liver < expected["liver"] + 15  # a fatty liver is up to 35 HU darker


@pytest.mark.parametrize("beta", [1.8, 2.4])
def test_a_section_of_a_tile_has_the_stated_spectral_slope(beta: float) -> None:
    tile = power_law_tile(np.random.default_rng(0), beta=beta, finest_mm=1.0, coarsest_mm=60, n=96, pitch_mm=1.0)
    power = np.mean([np.abs(np.fft.fft2(section)) ** 2 for section in tile.values], axis=0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    band = (f > 0.04) & (f < 0.15)
    slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
    # The roll-off at the finest wavelength steepens the upper end a little.
    assert -beta - 0.45 < slope < -beta + 0.35


def test_liver_texture_falls_as_the_power_law_of_soft_tissue() -> None:
    volume = VirtualPatient(1, "abdomen").slices(1, size=384, pixel_mm=0.95, center_z_mm=25.0)
    liver = ndimage.binary_erosion(volume.labels[0] == LABELS["liver"], iterations=2)
    n = 40
    full = ndimage.uniform_filter(liver.astype(float), n)
    spectra = []
    window = np.outer(np.hanning(n), np.hanning(n))
    for y, x in np.argwhere(full > 0.97)[::50]:
        patch = volume.hu[0][y - n // 2 : y + n // 2, x - n // 2 : x + n // 2]
        spectra.append(np.abs(np.fft.fft2(window * (patch - patch.mean()))) ** 2)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(n, 0.95), np.fft.fftfreq(n, 0.95)))
    band = (f > 0.06) & (f < 0.25)
    slope = np.polyfit(np.log(f[band]), np.log(np.mean(spectra, axis=0)[band]), 1)[0]
    # 2-D power ∝ f^−2.4, steeper through slice averaging, vessels and the tile's own roll-off.
    assert -4.2 < slope < -1.8, slope


def test_labels_cover_every_pixel_and_agree_with_the_image(volumes: dict[tuple[int, str], PhantomVolume]) -> None:
    for volume in volumes.values():
        assert set(np.unique(volume.labels)) <= set(LABELS.values())
        outside = volume.labels == LABELS["air"]
        assert np.all(volume.hu[ndimage.binary_erosion(outside, iterations=3)] == -1000)
        assert volume.hu.dtype == np.float32 and np.isfinite(volume.hu).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_body_lies_inside_the_field_of_view(seed: int) -> None:
    places = {"thorax": (-65.0, 85.0), "head": (-55.0, 0.0), "pelvis": (-70.0, 90.0), "shoulder": (-30.0, 0.0)}
    for region, heights in places.items():
        for z in heights:
            pixel_mm = 1.015 * MIN_FIELD_MM[region] / 96  # type: ignore[index]
            patient = VirtualPatient(seed, region)  # type: ignore[arg-type]
            body = patient.slices(1, size=96, pixel_mm=pixel_mm, slice_mm=1.0, center_z_mm=z).labels[0] > 0
            assert body.any()
            assert not (body[0].any() or body[-1].any() or body[:, 0].any() or body[:, -1].any()), (region, z)


@pytest.mark.parametrize("region", MIN_FIELD_MM)
def test_a_field_that_cuts_the_body_is_refused(region: str) -> None:
    patient = VirtualPatient(0, region)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="cuts the body"):
        patient.slices(1, size=128, pixel_mm=0.99 * MIN_FIELD_MM[region] / 128)  # type: ignore[index]
    with pytest.raises(GeometryError, match="the anatomy spans"):
        patient.slices(200, size=128, pixel_mm=4.0)


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(GeometryError, match="thorax, abdomen, head"):
        VirtualPatient(0, "foot")  # type: ignore[arg-type]


def test_label_numbers_do_not_change() -> None:
    names = "air lung fat,soft tissue,bone liver heart vessel lesion airway spleen kidney pancreas bowel,bowel gas,fluid marrow"
    old = [name for part in names.split(",") for name in ([part] if part in ("soft tissue", "bowel gas") else part.split())]
    assert [LABELS[name] for name in old] == list(range(17))
    assert len(set(LABELS.values())) == len(LABELS)


def test_the_same_seed_is_the_same_person_in_every_region() -> None:
    for seed in SEEDS:
        assert len({VirtualPatient(seed, region).phase for region in MIN_FIELD_MM}) == 1
        assert pelvis(seed).person.fat == head(seed).person.fat == person(seed).fat


def test_no_two_hearts_are_alike() -> None:
    hearts = [draw(seed, "thorax", center_z_mm=-35.0).labels[0] == LABELS["heart"] for seed in SEEDS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        overlap = 2 * np.sum(hearts[i] & hearts[j]) / (hearts[i].sum() + hearts[j].sum())
        assert 0.4 < overlap < 0.93


@pytest.mark.parametrize("region", NEW_REGIONS)
def test_neighbouring_slices_of_each_region_resemble_each_other(region: str) -> None:
    volume = draw(2, region, 3, slice_mm=1.9)
    body = volume.labels[0] > 0
    near, far = (np.corrcoef(np.clip(volume.hu[[0, j]][:, body], -200, 300))[0, 1] for j in (1, 2))
    assert 0.8 < near < 0.9995
    assert near > far


@pytest.mark.parametrize("seed", SEEDS)
def test_the_skull_is_a_closed_ring_around_the_brain(seed: int) -> None:
    volume = draw(seed, "head", 2, slice_mm=16.0)
    for labels in volume.labels:
        bone = np.isin(labels, [LABELS["bone"], LABELS["marrow"]])
        inside = ndimage.binary_fill_holes(bone) & ~bone
        brain = np.isin(labels, [LABELS["grey matter"], LABELS["white matter"], LABELS["cerebrospinal fluid"]])
        assert brain.sum() > 2000 and inside[brain].all()


def test_the_brain_is_grey_outside_and_white_inside_and_wet() -> None:
    intervals = {"grey matter": (33, 46), "white matter": (22, 37), "cerebrospinal fluid": (-2, 22), "eye": (0, 45)}
    for seed in SEEDS[:2]:
        for z in (0.0, -40.0):
            volume = draw(seed, "head", slice_mm=1.0, center_z_mm=z)
            medians = {name: np.median(volume.hu[volume.labels == LABELS[name]]) for name in intervals if name != "eye" or z < 0}
            assert all(intervals[name][0] < value < intervals[name][1] for name, value in medians.items()), medians
            assert medians["grey matter"] > medians["white matter"] + 3 > medians["cerebrospinal fluid"] + 10


@pytest.mark.parametrize(("region", "name"), [("head", "grey matter"), ("head", "bone"), ("pelvis", "bone")])
def test_left_and_right_are_alike_but_not_equal(volumes: dict[tuple[int, str], PhantomVolume], region: str, name: str) -> None:
    for seed in SEEDS:
        part = ndimage.binary_dilation(volumes[seed, region].labels[0] == LABELS[name], iterations=2)
        columns = np.flatnonzero(part.any(axis=0))
        cut = part[:, columns[0] : columns[-1] + 1]
        overlap = 2 * np.sum(cut & cut[:, ::-1]) / (2 * cut.sum())
        assert 0.5 < overlap < 0.995, (seed, overlap)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_the_bladder_lies_in_front_of_the_rectum_and_below_the_promontory(seed: int) -> None:
    volume = VirtualPatient(seed, "pelvis").slices(6, size=110, pixel_mm=3.8, slice_mm=25.0, center_z_mm=10.0)
    z, y, _ = np.nonzero(volume.labels == LABELS["bladder"])
    assert len(z) > 30
    heights = 40.0 + (np.arange(6) - 2.5) * 25.0
    assert heights[z].max() < PROMONTORY_MM - 30
    level = volume.labels[round(float(np.median(z)))]
    gut = np.argwhere(np.isin(level, [LABELS["bowel"], LABELS["bowel gas"]]))
    behind = gut[np.abs(gut[:, 1] - 55) < 10]
    assert behind[:, 0].mean() > y.mean() + 3


@pytest.mark.parametrize("seed", SEEDS)
def test_the_thigh_bones_heads_are_two_balls_in_the_hips(seed: int) -> None:
    volume = draw(seed, "pelvis", slice_mm=1.0, center_z_mm=-30.0)
    who = pelvis(seed).person
    pixel_mm = volume.pixel_mm
    for side in (-1.0, 1.0):
        x, y = (float(p[0]) for p in who.frame.to_scanner(np.array([side * 88.0]), np.array([0.0]), 0.0))
        row, column = round(y / pixel_mm) + 96, round(x / pixel_mm) + 96
        ball = volume.labels[0][row - 4 : row + 5, column - 4 : column + 5]
        assert np.isin(ball, [LABELS["bone"], LABELS["marrow"], LABELS["lesion"]]).all()


def test_shoulders_attenuate_far_more_from_side_to_side() -> None:
    for seed in SEEDS:
        mu = (draw(seed, "shoulder").hu[0] + 1000) / 1000
        assert mu.sum(axis=1).max() > 2.2 * np.median(mu.sum(axis=0)[mu.sum(axis=0) > 20])


def test_a_lesion_has_its_stated_volume_and_contrast() -> None:
    tested = 0
    for seed in range(12):
        patient, frame = VirtualPatient(seed, "head"), head(seed).person.frame
        for lesion in patient.lesions:
            u, v, z = lesion.ball.center_mm
            a, b, h = lesion.ball.semi_axes_mm
            others = [o.ball for o in patient.lesions if o is not lesion]
            near = [
                o for o in others if np.linalg.norm(np.subtract(o.center_mm, lesion.ball.center_mm)) < 12 + a + max(o.semi_axes_mm)
            ]
            if tested == 2 or near or a < 4.5 or np.hypot(u / 45, v / 62) > 1 or z > 74:
                continue
            n = 2 * int(h + 3)
            volume = patient.slices(n, size=236, pixel_mm=1.0, slice_mm=1.0, center_z_mm=z - 42.0)
            x, y = (float(p[0]) for p in frame.to_scanner(np.array([u]), np.array([v]), z))
            pieces = ndimage.label(volume.labels == LABELS["lesion"])[0]
            inside = pieces == pieces[n // 2, round(y) + 118, round(x) + 118]
            # The patient's warp stretches the slice around the lesion by the determinant of its derivative.
            du, dv = (np.ravel(frame.to_scanner(*np.array([[u + p], [v + q]]), z)) - (x, y) for p, q in ((1, 0), (0, 1)))
            stretch = du[0] * dv[1] - du[1] * dv[0]
            assert inside.sum() == pytest.approx(4 / 3 * np.pi * a * b * h * stretch, rel=0.12)
            core = ndimage.binary_erosion(inside, iterations=2)
            assert volume.hu[core].mean() == pytest.approx(lesion.hu, abs=4)
            tested += 1
    assert tested == 2


def test_the_chord_of_a_disc_is_known() -> None:
    disc = Ellipse((12.0, -5.0), (30.0, 30.0), 0.4, 0.5)
    theta = np.linspace(0, np.pi, 7)
    through_center = 12 * np.cos(theta) - 5 * np.sin(theta)
    assert np.allclose(disc.line_integral(through_center, theta), 0.5 * 60)
    assert np.allclose(disc.line_integral(through_center + 18, theta), 0.5 * 2 * 24)  # 18, 24, 30: a right triangle
    assert np.all(disc.line_integral(through_center + 30.1, theta) == 0)


def test_a_ray_along_y_measures_the_axis_along_y() -> None:
    # θ = 0: s = x, the ray runs along y and meets the second semi-axis.
    ellipse = Ellipse((0.0, 0.0), (40.0, 25.0), 0.0, 1.0)
    assert np.isclose(ellipse.line_integral(0.0, 0.0), 50)
    assert np.isclose(ellipse.line_integral(0.0, np.pi / 2), 80)


def test_the_integral_over_all_rays_is_area_times_value() -> None:
    ellipse = Ellipse((10.0, 20.0), (35.0, 12.0), 0.7, 3.0)
    s = np.linspace(-80, 80, 16001)
    for theta in (0.0, 0.6, 2.2):
        total = np.trapezoid(ellipse.line_integral(s, theta), s)
        assert np.isclose(total, 3.0 * ellipse.area_mm2, rtol=1e-4)


def test_the_image_of_an_ellipse_agrees_with_its_line_integrals() -> None:
    ellipse = Ellipse((7.0, -11.0), (30.0, 14.0), 0.5, 2.0)
    image, pixel_mm, size = ellipse.image(200, 0.6), 0.6, 200
    # A column of pixels holds the mean of the rays that cross its width.
    across = ((np.arange(64) + 0.5) / 64 - 0.5) * pixel_mm
    s = (np.arange(size) - size // 2)[:, None] * pixel_mm + across
    assert np.isclose(image.sum() * pixel_mm**2, 2.0 * ellipse.area_mm2, rtol=1e-3)
    assert np.allclose(image.sum(axis=0) * pixel_mm, ellipse.line_integral(s, 0.0).mean(axis=1), atol=0.1)
    assert np.allclose(image.sum(axis=1) * pixel_mm, ellipse.line_integral(s, np.pi / 2).mean(axis=1), atol=0.1)


def test_cct189_contrasts_are_exact() -> None:
    image = cct189_phantom().image(512, 0.5)
    assert [(i.diameter_mm, i.hu) for i in CCT189_INSERTS] == [(3, 14), (5, 7), (7, 5), (10, 3)]
    for insert in CCT189_INSERTS:
        x, y = (round(c / 0.5) + 256 for c in insert.center_mm)
        assert image[y, x] == pytest.approx(insert.hu, abs=1e-4)
        assert np.hypot(*insert.center_mm) == pytest.approx(40.0)
    assert image[256, 256] == 0 and image[0, 0] == -1000


def test_a_water_disc_holds_its_area_and_attenuates_as_water() -> None:
    disc = water_disc(100.0, 256, 0.7)
    assert np.isclose((disc + 1000).sum() * 0.49, 1000 * np.pi * 50**2, rtol=1e-3)
    body = insert_phantom((), diameter_mm=100.0)
    assert np.isclose(body.line_integral(0.0, 1.0), 100 * MU_WATER_PER_MM)


def test_inserts_outside_the_body_are_refused() -> None:
    with pytest.raises(GeometryError, match="insert reaches"):
        insert_phantom(diameter_mm=100.0)
