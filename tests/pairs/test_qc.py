import math
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from finegrain.errors import DataError
from finegrain.pairs.damage import DAMAGES, Specimen, prove
from finegrain.pairs.qc import CHECKS, Judge, Judged, Limit, Pictures, QcLimits, fingerprint, judge, measure_pair, same_picture
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import Exposure, scanner_settings
from finegrain.simulate.fbp import find_kernel
from finegrain.simulate.phantom import VirtualPatient

PIXEL_MM, SIZE = 1.15, 312


@cache
def pair(region="abdomen", *, dose=0.25, noise="shared", seed=1):
    """One slice of a virtual patient at two doses, and the low dose of the slice 5 mm above."""
    anatomy = VirtualPatient(seed=seed, region=region).slices(2, size=SIZE, pixel_mm=PIXEL_MM, slice_mm=5.0)
    exposure = Exposure(photons=8e5, **scanner_settings(5.0))
    scanner = Scanner(size=SIZE, pixel_mm=PIXEL_MM, kernel=find_kernel("B30f"), exposure=exposure)
    generator = np.random.default_rng(seed)
    here, beside = (scanner.scan_phantom(hu, dose_fraction=dose, generator=generator, noise=noise) for hu in anatomy.hu)
    says = "inserted" if noise == "shared" else "independent"
    name = f"virtual-{seed}"
    return Specimen(here.low_dose, here.normal_dose, beside.low_dose, PIXEL_MM, name, region, "B30f", dose, says).stored()


GOOD = [("abdomen", 1, "shared"), ("abdomen", 2, "independent"), ("thorax", 3, "independent")]


@cache
def goods():
    return [pair(region, seed=seed, noise=noise) for region, seed, noise in GOOD]


def measured(low, normal, noise="inserted", pixel_mm=PIXEL_MM):
    return measure_pair(low, normal, pixel_mm=pixel_mm, noise=noise)


def moved(image, shift):
    return ndimage.shift(image, shift, order=3, mode="nearest")


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -0.3), (-1.2, 0.8), (14.3, -22.6)])
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_a_shift_is_measured_to_a_twentieth_of_a_pixel(shift, noise):
    one = pair(noise=noise)
    found = measured(moved(one.low, shift), one.normal)
    assert (found.shift_y_px, found.shift_x_px) == pytest.approx(shift, abs=0.05)


def test_a_rotation_is_measured_and_no_shift_seen_in_it():
    one = pair()
    found = measured(ndimage.rotate(one.low, 0.4, reshape=False, order=3, mode="nearest"), one.normal)
    assert abs(found.rotation_deg) == pytest.approx(0.4, abs=0.05)
    assert abs(measured(one.low, one.normal).rotation_deg) < 0.01
    assert math.hypot(found.shift_y_px, found.shift_x_px) < 0.1


@pytest.mark.parametrize("dose", [0.5, 0.25])
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_the_noise_tells_the_dose(dose, noise):
    one = pair(dose=dose, noise=noise)
    found = one.measured().quality
    assert found.dose_fraction == pytest.approx(dose, rel=0.15)
    assert found.noise_low_hu / found.noise_normal_hu == pytest.approx(found.noise_ratio)


def test_the_dose_of_independent_scans_does_not_hang_on_the_anatomy():
    """A chest of little noise, where N holds more fine anatomy than noise."""
    one = pair("thorax", noise="independent", seed=3)
    assert one.measured().quality.dose_fraction == pytest.approx(0.25, rel=0.3)


def test_who_shares_the_noise_of_the_normal_dose_is_told():
    assert pair(noise="shared").measured().quality.kept > 0.9
    assert pair(noise="independent").measured().quality.kept < 0.7


def test_an_unknown_dose_gives_no_verdict_on_noise_but_its_number():
    one = pair()
    wrong = replace(one, dose_fraction=0.9)
    nobody = replace(one, dose_fraction=None)
    assert "noise" in judge([wrong.measured()])[0].reasons
    assert judge([nobody.measured()])[0].status == "keep"
    assert nobody.measured().quality.dose_fraction == pytest.approx(0.25, rel=0.2)


def test_a_wrong_slope_and_intercept_are_found_and_told():
    one = pair()
    sloped = measured((one.low + 1024) * 1.05 - 1024, one.normal)
    assert 1.03 < sloped.slope < 1.055
    assert sloped.bias_hu == pytest.approx(0.05 * (1024 + sloped.soft_hu), abs=3)
    higher = measured(one.low + 24, one.normal)
    assert (higher.bias_hu, higher.bias_fat_hu, higher.bias_air_hu) == pytest.approx((24, 24, 24), abs=2)
    assert measured(one.low + 24, one.normal + 24).fat_hu == pytest.approx(measured(one.low, one.normal).fat_hu + 24, abs=2)


def test_peaks_lie_where_the_tissues_are():
    found = pair().measured().quality
    assert found.fat_hu == pytest.approx(-100, abs=8)
    assert found.air_hu == pytest.approx(-1000, abs=10)
    assert 30 < found.soft_hu < 120


def test_the_area_of_the_body_does_not_depend_on_the_pixels():
    one = pair()
    half = (
        one.normal.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3)),
        one.low.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3)),
    )
    fine, coarse = one.measured().quality, measured(half[1], half[0], pixel_mm=2 * PIXEL_MM)
    assert coarse.body_cm2 == pytest.approx(fine.body_cm2, rel=0.03)
    assert coarse.fat_hu == pytest.approx(fine.fat_hu, abs=4)
    wide = np.pad(one.low, 64, constant_values=-1000), np.pad(one.normal, 64, constant_values=-1000)
    padded = measured(*wide)
    for name in ("body_cm2", "soft_hu", "bias_hu", "edges", "swapped"):
        assert getattr(padded, name) == pytest.approx(getattr(fine, name), rel=0.05, abs=0.3), name


def test_padding_is_no_air_and_its_value_does_not_matter():
    one = pair()
    y, x = np.indices(one.normal.shape)
    outside = np.hypot(y - (SIZE - 1) / 2, x - (SIZE - 1) / 2) > 0.48 * SIZE
    found = [
        measure_pair(np.where(outside, value, one.low), np.where(outside, value, one.normal), pixel_mm=PIXEL_MM, padding=outside)
        for value in (-2000.0, -1024.0, 0.0, np.nan)
    ]
    for other in found[1:]:
        assert asdict(other) == pytest.approx(asdict(found[0]), nan_ok=True)
    assert found[0].air_hu == pytest.approx(one.measured().quality.air_hu, abs=1)


@pytest.mark.parametrize("value", [0.0, -1000.0, -3000.0, 40.0, np.nan, np.inf])
@pytest.mark.parametrize("size", [(64, 64), (100, 140), (512, 512)])
def test_a_constant_image_is_measured_without_a_warning_and_rejected(value, size):
    image = np.full(size, value, dtype=np.float32)
    verdict = judge([Judged(measured(image, image), "p", "s", "k", 0.25, "inserted", fingerprint(image))])[0]
    assert verdict.status == "reject"


def test_identical_images_are_measured_without_a_warning():
    one = pair()
    found = measured(one.normal, one.normal)
    assert (found.shift_y_px, found.bias_hu, found.swapped) == pytest.approx((0, 0, 0), abs=1e-6)
    assert judge([Judged(found, "p", "s", "k", 0.25, "inserted")])[0].reasons == ("noise",)


@pytest.mark.parametrize("shapes", [((64, 64), (64, 65)), ((64,), (64,)), ((32, 80), (32, 80))])
def test_what_is_no_pair_is_refused_in_one_line(shapes):
    with pytest.raises(DataError, match="pair needs two images"):
        measured(*(np.zeros(shape) for shape in shapes))


def test_good_pairs_are_kept():
    rows = [*(one.measured() for one in goods()), pair("head", noise="independent").measured()]
    for row, verdict in zip(rows, judge(rows), strict=True):
        assert verdict.status == "keep", (row.source, verdict)


NO_SINGLE = {"other kernel, both", "dose ÷ 2"}
"""Kinds that a single pair cannot tell, or not always: see the documentation."""


@pytest.mark.parametrize("kind", sorted(set(DAMAGES) - NO_SINGLE))
def test_each_damage_is_found_for_its_reason(kind):
    table = prove(goods(), seed=1, kinds=[kind])
    row = table.damaged[0]
    assert (table.good.flagged, table.good.n) == (0, 3)
    assert row.flagged == row.reasoned == row.n >= 2, table.as_text()


def test_half_transferred_noise_of_another_dose_is_found_at_half_dose():
    one = pair(dose=0.5)
    assert judge([replace(one, dose_fraction=0.25).measured()])[0].reasons == ("noise",)


def test_another_kernel_is_found_among_pairs_of_its_group():
    base = pair().measured()
    rows = [
        replace(base, quality=replace(base.quality, frequency_normal_per_mm=math.nan, frequency_added_per_mm=f))
        for f in (0.30, 0.31, 0.30, 0.29, 0.31, 0.20)
    ]
    assert [verdict.status for verdict in judge(rows)] == ["keep"] * 5 + ["reject"]
    assert "spectrum" in judge(rows)[-1].reasons
    assert judge(rows[-4:])[-1].status == "keep", "four pairs are no group"


def _rows_that_tell(doses, *, stated):
    base = replace(pair().measured(), dose_fraction=stated)
    return [replace(base, quality=replace(base.quality, dose_fraction=dose)) for dose in doses]


def test_what_shifts_the_noise_of_all_pairs_of_a_scanner_is_forgiven():
    doses = [0.13, 0.14, 0.14, 0.14, 0.15, 0.19]  # of a stated tenth: filters against few photons
    assert {verdict.status for verdict in judge(_rows_that_tell(doses, stated=0.1))} == {"keep"}
    assert judge(_rows_that_tell(doses[-1:], stated=0.1))[0].reasons == ("noise",), "alone it is not"
    assert judge(_rows_that_tell([*doses, 0.3], stated=0.1))[-1].reasons == ("noise",), "nor is the dose of another"


@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_a_collection_whose_dose_is_wrong_throughout_is_not_forgiven(factor):
    doses = [0.24, 0.25, 0.25, 0.25, 0.26, 0.25]
    assert {verdict.status for verdict in judge(_rows_that_tell(doses, stated=0.25 * factor))} == {"reject"}


def test_a_pair_as_stated_is_kept_among_others_that_are_not():
    rows = _rows_that_tell([0.14, 0.14, 0.14, 0.14, 0.14, 0.1, 0.08], stated=0.1)
    assert {verdict.status for verdict in judge(rows)} == {"keep"}


def _with_lines(one, angles, amplitude=60.0):
    """Lines through points of the middle of the body, one for each direction."""
    y, x = (axis - (SIZE - 1) / 2 for axis in np.indices((SIZE, SIZE)))
    offsets = np.random.default_rng(0).uniform(-40, 40, len(angles))
    lines = sum(
        np.exp(-0.5 * ((x * np.cos(angle) + y * np.sin(angle) - offset) / 1.2) ** 2)
        for angle, offset in zip(angles, offsets, strict=True)
    )
    return measured(one.low + amplitude * lines, one.normal)


def test_lines_of_one_direction_are_few_photons_and_those_all_around_are_streaks():
    one = pair(noise="independent", seed=2)
    limit = QcLimits().streak.reject
    assert _with_lines(one, np.radians([88.0])).streak < limit
    assert _with_lines(one, np.linspace(0, np.pi, 8, endpoint=False)).streak > limit


def test_two_arcs_that_face_each_other_are_no_ring():
    one = pair()
    y, x = (axis - (SIZE - 1) / 2 for axis in np.indices((SIZE, SIZE)))
    circle = 30 * np.exp(-0.5 * ((np.hypot(y, x) - 50) / 1.0) ** 2)
    limits = QcLimits().ring
    assert measured(one.low + circle, one.normal).ring > limits.reject
    assert measured(one.low + circle * (np.abs(y) < np.tan(np.pi / 8) * np.abs(x)), one.normal).ring < limits.borderline


def test_noise_alone_makes_a_pair_neither_sharper_nor_softer():
    one = pair()
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(0, 120, one.normal.shape)
        assert measured(one.normal + noise, one.normal).sharpness == pytest.approx(1, abs=0.015)


def test_a_fault_hides_what_it_brings_with_it():
    one = pair()
    verdict = judge([replace(one, low=moved(one.low, (0.7, 0.0))).measured()])[0]
    assert verdict.reasons == ("misaligned",)
    assert {finding.reason for finding in verdict.findings} > {"misaligned"}


def test_stored_values_taken_for_hu_are_rejected_for_that_alone():
    one = pair()
    assert judge([replace(one, low=one.low + 1024, normal=one.normal + 1024).measured()])[0].reasons == ("HU",)


def exported_anew(image):
    return {
        "rounded to 2 HU": np.round(image / 2) * 2,
        "floored to 1 HU": np.floor(image),
        "air cut": np.maximum(image, -1000),
        "padding": np.where(image <= -1000, -2000, image),
        "12 bits": np.clip(np.round(image), -1024, 3071).astype(np.int16),
        "float noise": image + np.random.default_rng(0).normal(0, 0.05, image.shape),
    }


@pytest.mark.parametrize("region", ["abdomen", "head"])
def test_a_picture_exported_anew_has_the_same_fingerprint_within_a_few_bits(region):
    image = pair(region).normal
    for name, other in exported_anew(image).items():
        assert same_picture(fingerprint(image), fingerprint(other)), name


@pytest.mark.parametrize("region", ["abdomen", "head"])
def test_neighbouring_slices_and_other_noise_are_other_pictures(region):
    one = pair(region)
    assert not same_picture(fingerprint(one.normal), fingerprint(one.neighbour_low))
    again = pair(region, noise="independent")
    assert not same_picture(fingerprint(again.normal), fingerprint(again.low))


def test_a_picture_too_small_for_a_fingerprint_is_refused():
    with pytest.raises(DataError, match="64 pixels"):
        fingerprint(np.zeros((48, 200)))


def test_a_fingerprint_is_64_hex_digits():
    assert len(bytes.fromhex(fingerprint(pair().normal))) == 32


def test_a_picture_is_kept_for_the_first_patient_and_repeats_of_one_patient_are_none():
    row = pair().measured()
    mark = fingerprint(np.round(pair().normal / 2) * 2)
    rows = [row, row, replace(row, patient="other", fingerprint=mark), replace(row, patient="other", fingerprint=mark), row]
    assert [verdict.reasons for verdict in judge(rows)] == [(), (), ("duplicate",), ("duplicate",), ()]


def test_no_picture_is_no_duplicate_of_another():
    row = replace(pair().measured(), fingerprint="")
    assert [verdict.status for verdict in judge([row, replace(row, patient="other")])] == ["keep", "keep"]


def test_pictures_are_found_as_comparing_all_with_all_finds_them():
    generator = np.random.default_rng(0)
    values = [int.from_bytes(generator.bytes(32)) for _ in range(40)]
    near = [value ^ sum(1 << int(bit) for bit in generator.choice(256, 12, replace=False)) for value in values[:20]]
    pictures = Pictures()
    for k, value in enumerate(values):
        pictures.add(f"p{k}", f"{value:064x}")
    assert [pictures.stands_under_other("q", f"{value:064x}") for value in near] == [True] * 20
    assert not any(pictures.stands_under_other(f"p{k}", f"{value:064x}") for k, value in enumerate(values))


def test_every_check_has_limits_and_a_word_for_them():
    for name, _, _ in CHECKS:
        assert isinstance(getattr(QcLimits(), name), Limit)
        assert QcLimits.model_fields[name].description
    with pytest.raises(ValueError, match="borderline ≤ reject"):
        Limit(borderline=2, reject=1)


def test_a_tighter_limit_rejects_what_a_wider_one_keeps():
    row = pair().measured()
    strict = QcLimits(edges=Limit(borderline=0.01, reject=0.02))
    assert judge([row])[0].status == "keep"
    verdict = Judge.of([row], strict).verdict(row)
    assert (verdict.status, verdict.findings[0].measure, verdict.findings[0].limit) == ("reject", "edges", 0.02)


def test_wilson_intervals_hold_the_share():
    row = prove(goods()[:1], kinds=["couch only"]).damaged[0]
    share, low, high = row.share(row.rejected)
    assert (share, high) == (1.0, 1.0)
    assert low == pytest.approx(1 / (1 + 1.96**2), abs=1e-3)
