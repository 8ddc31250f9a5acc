"""Phantom checks on phantoms whose answers are known: white noise, a known blur, known cupping, rods at known places."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from ct_files import PLANTED, write_ct
from pydicom import dcmread
from scipy import ndimage, optimize
from typer.testing import CliRunner

from finegrain.cli import app, main
from finegrain.config import load_config
from finegrain.errors import ConfigError, DataError, ScanError
from finegrain.physics.checks import measure
from finegrain.physics.compare import FORMAT, Verdict, allowed_text
from finegrain.physics.geometry import distance_mm, find_body, find_rods, find_sections
from finegrain.physics.places import find_phantom, find_places
from finegrain.physics.run import PAGE, RESULTS, TABLE, named_folders, run_physics
from finegrain.physics.scans import phantom_scan, read_phantom
from finegrain.physics.settings import TASKS, Disc, PhantomSettings, PhysicsSettings, RodPlace, Tolerance
from finegrain.scan.nifti import write_nifti
from finegrain.scan.volume import CTVolume
from finegrain.simulate.phantom.standard import Ellipse, EllipsePhantom, Insert, cct189_phantom, insert_phantom, line_pair_phantom

SIZE, PIXEL_MM, BODY_MM = 176, 0.9, 140.0
RODS = (Insert(14.0, -90.0, 40.0, 0.3), Insert(12.0, 120.0, 42.0, 2.6))


def _images(rods=RODS, *, sigma=6.0, n=6, blur_mm=0.8, seed=0, size=SIZE, pixel_mm=PIXEL_MM, phantom=None):
    """Repeats of a phantom with white noise, blurred before the noise comes."""
    clean = (phantom or insert_phantom(rods, diameter_mm=BODY_MM)).image(size, pixel_mm).astype(np.float64)
    clean = ndimage.gaussian_filter(clean, blur_mm / pixel_mm) if blur_mm else clean
    return clean + np.random.default_rng(seed).normal(0, sigma, (n, size, size))


def _volume(images, **facts):
    return CTVolume.from_array(images, pixel_mm=PIXEL_MM, slice_mm=3.0, acquisition=facts)


def _measured(images, settings=None, tasks=TASKS, **facts):
    scan = phantom_scan([_volume(images, **facts)], "scan")
    phantom = find_phantom(scan, settings or PhantomSettings())
    places = find_places(phantom, pixel_mm=PIXEL_MM)
    return measure([scan], phantom, places=places, tasks=tasks)[0], phantom


def _written(path, images):
    return write_nifti(_volume(images), path)


def _run(before, after, out, **more):
    run_physics(before, after, out, settings=more.pop("settings", PhysicsSettings()), **more)
    return json.loads((out / RESULTS).read_text())


def _failed(results):
    return {(v["scan"], v["key"].partition("[")[0]) for v in results["verdicts"] if not v["passed"]}


# --- known answers ------------------------------------------------------------------------------------------------------------


def test_white_noise_of_10_hu_is_measured_as_10_and_its_spectrum_is_flat():
    found, _ = _measured(_images((), sigma=10.0, n=8))
    noise = found.check("noise[centre]")
    assert noise.value == pytest.approx(10.0, rel=0.01)
    assert noise.low < 10.0 < noise.high
    assert found.nps.whole.variance == pytest.approx(100.0, rel=0.03)
    level = 100 * PIXEL_MM**2  # a flat spectrum that integrates to the variance
    assert found.nps.radial.power[2:] == pytest.approx(np.full(len(found.nps.radial.power) - 2, level), rel=0.12)
    mean = found.check("nps_mean_frequency[plain material]")
    # Of a flat curve, the middle of what it holds.
    middle = found.nps.radial.frequency_per_mm.mean()
    assert mean.low - 0.003 < middle < mean.high + 0.003


def test_a_known_blur_gives_its_own_ttf():
    blur_mm = 1.1
    found, phantom = _measured(_images(blur_mm=blur_mm, sigma=2.0, n=8))
    assert len(phantom.rods.rods) == 2

    def transfer(f):
        angle = np.linspace(0, np.pi / 2, 91)
        drawn = (np.sinc(f * PIXEL_MM * np.cos(angle)) * np.sinc(f * PIXEL_MM * np.sin(angle))).mean()  # pixels drawn as averages
        return np.exp(-2 * (np.pi * blur_mm * f) ** 2) * drawn

    for level, name in ((0.5, "ttf_f50"), (0.1, "ttf_f10")):
        truth = optimize.brentq(lambda f, level=level: transfer(f) - level, 0.01, 1.0)
        for rod in ("rod 1", "rod 2"):
            assert found.check(f"{name}[{rod}]").value == pytest.approx(truth, rel=0.03)


def test_cupping_of_known_depth_is_the_uniformity():
    images = _images((), sigma=3.0, n=4)
    middle = SIZE // 2
    r = distance_mm((SIZE, SIZE), middle, middle, PIXEL_MM)
    depth = 8.0
    images = images + np.where(r < BODY_MM / 2, depth * ((r / (BODY_MM / 2)) ** 2), 0)
    found, _ = _measured(images)
    out, spot = BODY_MM / 2 - 10 - 0.05 * BODY_MM, 0.05 * BODY_MM
    truth = depth * out**2 / (BODY_MM / 2) ** 2  # both discs average r² about their own centre: what that adds is the same
    edges = [check for check in found.checks if check.quantity == "uniformity"]
    assert [edge.place for edge in edges] == ["12 o'clock", "3 o'clock", "6 o'clock", "9 o'clock"]
    assert [edge.value for edge in edges] == pytest.approx([truth] * 4, abs=0.5)
    centre = found.check("ct_number[plain material]")
    assert centre.value == pytest.approx(depth * (spot / (BODY_MM / 2)) ** 2 / 2, abs=0.4)


def test_a_tilt_to_the_right_shows_at_3_and_at_9_o_clock():
    images = _images((), sigma=2.0, n=4)
    columns = np.arange(SIZE) - SIZE // 2
    images = np.where(images > -500, images + 0.1 * columns * PIXEL_MM, images)
    found, _ = _measured(images)
    edges = {check.place: check.value for check in found.checks if check.quantity == "uniformity"}
    out = BODY_MM / 2 - 10 - 0.05 * BODY_MM
    assert edges == pytest.approx({"12 o'clock": 0, "3 o'clock": 0.1 * out, "6 o'clock": 0, "9 o'clock": -0.1 * out}, abs=0.4)


@pytest.mark.parametrize("turn_rad", [0.0, 0.37, 1.0, 2.2, 4.5])
def test_rods_are_found_to_a_fifth_of_a_pixel_at_any_angle(turn_rad):
    off_x, off_y = 3.3, -4.6
    body = Ellipse((off_x, off_y), (70.0, 70.0), 0.0, 1000.0)
    truth = [(contrast, d, 45 * np.cos(turn_rad + a) + off_x, 45 * np.sin(turn_rad + a) + off_y) for contrast, d, a in (
        (-1000, 10, 0), (-100, 12, 1.5), (40, 12, 3.0), (900, 9, 4.6))]  # fmt: skip
    rods = [Ellipse((x, y), (d / 2, d / 2), 0.0, contrast) for contrast, d, x, y in truth]
    mean = _images(phantom=EllipsePhantom((body, *rods)), sigma=3.0, n=1)[0]
    found_body = find_body(mean, pixel_mm=PIXEL_MM)
    middle = SIZE // 2
    assert np.hypot(found_body.row - middle - off_y / PIXEL_MM, found_body.column - middle - off_x / PIXEL_MM) < 0.1
    assert found_body.radius_mm == pytest.approx(70.0, abs=0.1)
    found, plain = find_rods(mean, noise_hu=3.0, body=found_body, pixel_mm=PIXEL_MM)
    assert [rod.name for rod in found] == ["rod 1", "rod 2", "rod 3", "rod 4"]
    for rod, (contrast, diameter_mm, x, y) in zip(found, truth, strict=True):
        assert np.hypot(rod.row - middle - y / PIXEL_MM, rod.column - middle - x / PIXEL_MM) < 0.2
        assert rod.hu == pytest.approx(contrast, abs=max(3.0, 0.02 * abs(contrast)))
        assert 2 * rod.radius_mm == pytest.approx(diameter_mm, abs=0.4)
        assert not plain[round(rod.row), round(rod.column)]


def test_the_weak_rods_of_the_cct189_body_are_found_and_a_plain_body_has_none():
    noise = np.random.default_rng(1).normal(0, 0.8, (256, 256))
    body_and_rods = ndimage.gaussian_filter(cct189_phantom().image(256, 0.85), 0.7) + noise
    body = find_body(body_and_rods, pixel_mm=0.85)
    rods, _ = find_rods(body_and_rods, noise_hu=0.8, body=body, pixel_mm=0.85)
    assert [round(2 * rod.radius_mm) for rod in rods] == [10, 7, 5, 3]
    plain = ndimage.gaussian_filter(insert_phantom(()).image(256, 0.85), 0.7) + noise
    assert find_rods(plain, noise_hu=0.8, body=body, pixel_mm=0.85)[0] == ()


def test_line_patterns_are_no_rods():
    mean = ndimage.gaussian_filter(line_pair_phantom().image(320, 0.6), 0.8) + np.random.default_rng(0).normal(0, 3, (320, 320))
    body = find_body(mean, pixel_mm=0.6)
    rods, plain = find_rods(mean, noise_hu=3.0, body=body, pixel_mm=0.6)
    assert rods == ()
    assert plain[160, 160] and not plain[160, 160 + round(55 / 0.6)]


def test_the_uniform_module_and_that_of_the_rods_are_told_apart_along_z():
    with_rods = _images(((Insert(25.0, -90.0, 42.0, 0.3)), Insert(25.0, 120.0, 42.0, 2.6)), n=5)
    stack = np.concatenate([with_rods, 0.5 * with_rods[:1] + 0.5 * _images((), n=1), _images((), n=7, seed=3)])
    assert find_sections(stack, pixel_mm=PIXEL_MM) == [slice(6, 13), slice(0, 5)]
    found, phantom = _measured(stack)
    assert (phantom.uniform.slices, phantom.rods.slices) == (slice(6, 13), slice(0, 5))
    assert found.check("noise[centre]").n == 7 and found.check("ct_number[rod 1]").n == 5


def test_half_the_noise_is_twice_the_d_prime_of_both_observers():
    rods = (Insert(8.0, 15.0, 38.0, 0.4), Insert(14.0, 200.0, 40.0, 2.5))
    loud, _ = _measured(_images(rods, sigma=12.0, n=16, seed=1), tasks=(Disc(diameter_mm=6, contrast_hu=9),))
    quiet, _ = _measured(_images(rods, sigma=6.0, n=16, seed=2), tasks=(Disc(diameter_mm=6, contrast_hu=9),))
    npw = [one.check("d_prime_npw[6 mm, 9 HU]").value for one in (loud, quiet)]
    assert npw[1] / npw[0] == pytest.approx(2.0, rel=0.05)
    # In white noise the matched filter is the best: the root of the signal's energy over the noise.
    signal = ndimage.gaussian_filter(Ellipse((0, 0), (3, 3), 0.0, 9.0).image(64, PIXEL_MM), 0.8 / PIXEL_MM)
    assert npw[1] == pytest.approx(np.sqrt(np.sum(signal**2)) / 6.0, rel=0.05)
    cho = [one.check("d_prime_cho[rod 1]") for one in (loud, quiet)]
    assert cho[0].low < cho[0].value < cho[0].high
    assert cho[1].low < 2 * cho[0].high and 2 * cho[0].low < cho[1].high  # the intervals meet
    assert cho[1].low > cho[0].high  # and tell the two apart


# --- before and after ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return _written(tmp_path_factory.mktemp("scan") / "before.nii.gz", _images())


@pytest.fixture(scope="module")
def twice(before, tmp_path_factory):
    out = tmp_path_factory.mktemp("same")
    return out, _run(before, {"after": before}, out)


def test_the_same_scan_before_and_after_differs_by_nothing_and_passes(twice):
    _, results = twice
    assert results["passed"] and results["verdicts"]
    first, second = ({(c["quantity"], c["place"]): c["value"] for c in scan["checks"]} for scan in results["scans"])
    assert second.pop(("nps_shape_distance", "plain material")) == 0
    assert first == second
    judged = {v["key"].partition("[")[0] for v in results["verdicts"] if v["against"] == "before"}
    assert judged == {"ct_number", "uniformity", "noise", "nps_mean_frequency", "ttf_f50", "ttf_f10", "d_prime_npw"}


def test_a_blurred_scan_fails_its_ttf_and_its_texture_but_not_its_ct_numbers(before, tmp_path):
    blurred = ndimage.gaussian_filter(_images(), (0, 0.8, 0.8))
    results = _run(before, {"soft": _written(tmp_path / "soft.nii.gz", blurred)}, tmp_path / "out")
    failed = _failed(results)
    assert {("soft", "ttf_f50"), ("soft", "ttf_f10"), ("soft", "nps_mean_frequency")} <= failed
    assert not failed & {("soft", "ct_number"), ("soft", "noise"), ("soft", "uniformity")}


def test_a_shift_of_5_hu_fails_the_ct_numbers_alone(before, tmp_path):
    results = _run(before, {"after": _written(tmp_path / "after.nii.gz", _images() + 5.0)}, tmp_path / "out")
    assert _failed(results) == {("after", "ct_number")}
    assert sum(not v["passed"] for v in results["verdicts"]) == 3  # the plain material and two rods


def test_an_acceptance_run_accepts_itself_and_not_a_noisier_scanner(before, twice, tmp_path):
    out, _ = twice
    same = _run(before, {}, tmp_path / "same", baseline=out / RESULTS)
    assert same["passed"] and {v["against"] for v in same["verdicts"]} == {"limit", "baseline"}
    noisier = _written(tmp_path / "noisier.nii.gz", _images(sigma=8.0, seed=5))
    assert ("phantom", "noise") in _failed(_run(noisier, {}, tmp_path / "noisier", baseline=out / RESULTS))


def test_an_acceptance_run_of_another_phantom_is_refused(twice, tmp_path):
    other = _written(tmp_path / "other.nii.gz", _images((RODS[0], Insert(12.0, 500.0, 42.0, 2.6))))
    with pytest.raises(DataError, match=r"rod 2 is \d+ HU .* in the baseline 1\d\d HU .*not the same phantom"):
        _run(other, {}, tmp_path / "out", baseline=twice[0] / RESULTS)
    plain = _written(tmp_path / "plain.nii.gz", _images(()))
    with pytest.raises(DataError, match="the baseline's phantom has 2 rods, this one 0"):
        _run(plain, {}, tmp_path / "out", baseline=twice[0] / RESULTS)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "something else"}', json.dumps({"format": FORMAT, "scans": []})])
def test_a_baseline_that_is_none_is_refused_in_one_line(before, tmp_path, text):
    path = tmp_path / "physics.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        _run(before, {}, tmp_path / "out", baseline=path)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_run_does_not_overwrite_its_own_baseline(before, twice):
    with pytest.raises(ConfigError, match="would be overwritten"):
        _run(before, {}, twice[0], baseline=twice[0] / RESULTS)


def test_a_baseline_that_lost_a_part_is_told_or_used_as_far_as_it_goes(before, twice, tmp_path):
    whole = json.loads((twice[0] / RESULTS).read_text())

    def run_against(change):
        data = json.loads(json.dumps(whole))
        change(data)
        (tmp_path / "physics.json").write_text(json.dumps(data))
        return _run(before, {}, tmp_path / "out", baseline=tmp_path / "physics.json")

    for change in (
        lambda data: data.update(scans=[]),
        lambda data: data["scans"][0].pop("checks"),
        lambda data: data["phantom"]["rods"][0].update(diameter_mm=0),
        lambda data: data["phantom"].update(rods=None),
    ):
        with pytest.raises(DataError, match="is damaged: a scan, a check or a rod is not whole"):
            run_against(change)
    unknown = {"quantity": "of_a_later_version", "place": "x", "value": 1, "low": None, "high": None, "n": 1, "warnings": []}
    found = run_against(
        lambda data: (data["scans"][0]["checks"].append(unknown), data["scans"][0]["facts"].update(Exposure="much"))
    )
    assert found["passed"] and {v["against"] for v in found["verdicts"]} == {"limit", "baseline"}


def test_d_primes_by_the_ttf_of_two_rods_are_not_compared(before, twice, tmp_path):
    text = (twice[0] / RESULTS).read_text()
    rod = re.search(r"TTF of rod (\d)", text)[1]
    (tmp_path / "physics.json").write_text(text.replace(f"TTF of rod {rod}", "TTF of rod 9"))
    found = _run(before, {}, tmp_path / "out", baseline=tmp_path / "physics.json")
    assert "d_prime_npw" not in {v["key"].partition("[")[0] for v in found["verdicts"]}
    assert sum("d_prime_npw" in note and "could not be compared with the baseline" in note for note in found["notes"]) == len(TASKS)


def test_values_alone_are_no_pass(before, tmp_path):
    results = _run(before, {}, tmp_path / "out", settings=PhysicsSettings(limits={"water_hu": None, "uniformity_hu": None}))
    assert results["passed"] is None and results["summary"].startswith("Nothing was compared")
    assert 'class="outcome"' not in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def test_of_several_scans_the_summary_names_the_one_that_fails(before, tmp_path):
    shifted = _written(tmp_path / "shifted.nii.gz", _images() + 5.0)
    results = _run(before, {"same": before, "shifted": shifted}, tmp_path / "out")
    assert "comparisons fail, in shifted: CT number (3)" in results["summary"]


def test_a_value_that_fails_never_looks_like_the_limit_it_misses():
    verdict = Verdict("after", "ttf_f50[rod 3]", "before", 0.294, 0.2649, 0.3531, False, False, "ours")
    assert allowed_text(verdict, 3, 0.2646) == "0.2649 to 0.3531, not 0.2646"
    assert allowed_text(verdict, 3, 0.25) == "0.265 to 0.353"


def test_the_page_tells_where_a_tolerance_of_the_user_comes_from(before, tmp_path):
    noise = Tolerance(rise_percent=0, source="local <protocol> 12")
    _run(before, {"after": before}, tmp_path / "out", settings=PhysicsSettings(after={"noise": noise}))
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "changes of Noise: local &lt;protocol&gt; 12" in page and "limits of CT number, Uniformity: ACR" in page


def test_the_csv_holds_every_verdict_of_the_json(twice):
    out, results = twice
    rows = list(csv.DictReader((out / TABLE).read_text(encoding="utf-8").splitlines()))
    judged = [row for row in rows if row["against"]]
    assert len(judged) == len(results["verdicts"])
    assert {(row["scan"], f"{row['check']}[{row['place']}]") for row in judged} == {
        (v["scan"], v["key"]) for v in results["verdicts"]
    }
    assert all(row["unit"] == "HU" for row in rows if row["check"] == "noise")


def test_the_page_shows_every_check_and_loads_nothing(twice):
    out, results = twice
    page = (out / PAGE).read_text(encoding="utf-8")
    assert results["summary"] in page
    for name in ("CT number", "Uniformity", "Noise", "NPS mean frequency", "TTF f50", "d′ NPW", "rod 2", "9 o&#39;clock"):
        assert name in page, name
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "http://" not in page.replace("http://www.w3.org", "")


# --- the user's word ----------------------------------------------------------------------------------------------------------


def test_a_rod_too_weak_to_be_found_is_measured_where_the_user_says(tmp_path):
    images = _images((Insert(8.0, 2.0, 30.0, 0.9),), sigma=10.0, n=12)
    assert _measured(images)[1].rods is None
    rods = (RodPlace(name="weak", x_mm=18.65, y_mm=23.50, diameter_mm=8.0, expected_hu=(1.0, 3.0)),)
    found, phantom = _measured(images, PhantomSettings(rods=rods))
    weak = found.check("ct_number[weak]")
    assert weak.value == pytest.approx(2.0, abs=1.0) and weak.low < 2.0 < weak.high
    d_prime = found.check("d_prime_cho[weak]")
    assert d_prime.low < 2.0 * np.sqrt(np.pi * 4.0**2 / PIXEL_MM**2) / 10.0 < d_prime.high  # of the matched filter, without blur
    assert phantom.rods.rods[0].expected_hu == (1.0, 3.0)


def test_settings_are_read_from_yaml_and_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("after: {noise: {fall_percent: 60, rise: 1.0}}\nlimits: {water_hu: [80, 130]}\n")
    settings = load_config(path, PhysicsSettings)
    assert settings.after.noise.limits(10.0) == pytest.approx((4.0, 11.0)) and settings.limits.water_hu == (80, 130)
    path.write_text("after: {nois: {rise: 1.0}}\n")
    with pytest.raises(ConfigError, match="the nearest known key is 'noise'"):
        load_config(path, PhysicsSettings)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("limits: {water_hu: [7, -7]}", "water_hu must rise"),
        ("phantom: {body: {row: .nan, column: 5, diameter_mm: 140}}", "finite number"),
        ("phantom: {rods: [{name: a, x_mm: .inf, y_mm: 0, diameter_mm: 10}]}", "finite number"),
        ("tasks: [{diameter_mm: 5, contrast_hu: 10}, {diameter_mm: 5, contrast_hu: 10}]", "two tasks are the same"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, text, match):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(tmp_path / "settings.yaml", PhysicsSettings)


@pytest.mark.parametrize(
    ("phantom", "match"),
    [
        ({"body": {"row": 500, "column": 88, "diameter_mm": 140}}, "row 500, column 88 sticks out of the image of 176 × 176"),
        ({"body": {"row": 88, "column": 88, "diameter_mm": 900}}, "900 mm .* sticks out of the image"),
        ({"rods": [{"name": "thread", "x_mm": 0, "y_mm": 0, "diameter_mm": 1.1}]}, "thread is 1.1 mm wide, expected two pixels"),
        ({"rods": [{"name": "outside", "x_mm": 90, "y_mm": 0, "diameter_mm": 10}]}, "outside would stick out of the body"),
    ],
)
def test_places_where_nothing_can_be_are_refused(before, tmp_path, phantom, match):
    with pytest.raises(DataError, match=match):
        _run(before, {}, tmp_path / "out", settings=PhysicsSettings(phantom=phantom))


def test_a_body_by_the_users_word_is_not_looked_for_in_the_scan_after(tmp_path):
    oval = EllipsePhantom((Ellipse((0, 0), (62, 72), 0.2, 1000.0),))
    images = _images(phantom=oval)
    for name in ("before", "after"):
        _written(tmp_path / f"{name}.nii.gz", images)
    body = {"row": SIZE // 2, "column": SIZE // 2, "diameter_mm": 116.0}
    results = _run(
        tmp_path / "before.nii.gz",
        {"after": tmp_path / "after.nii.gz"},
        tmp_path / "out",
        settings=PhysicsSettings(phantom={"body": body}),
    )
    assert results["passed"] and {scan["name"] for scan in results["scans"]} == {"before", "after"}


def test_of_an_absolute_and_a_relative_tolerance_the_wider_counts():
    assert Tolerance(fall=3, fall_percent=1, rise_percent=10).limits(-1000.0) == (-1010.0, -900.0)
    assert Tolerance().limits(5.0) == (-np.inf, np.inf)


def test_folders_after_have_names():
    assert {name: str(path) for name, path in named_folders(["a=x/y", "z"]).items()} == {"a": "x/y", "after": "z"}
    with pytest.raises(ConfigError, match="two scans are called a"):
        named_folders(["a=x", "a=y"])
    with pytest.raises(ConfigError, match="expected NAME=DIR"):
        named_folders(["=x"])


# --- what cannot be measured --------------------------------------------------------------------------------------------------


def test_what_is_no_phantom_is_refused():
    head = EllipsePhantom((Ellipse((0, 0), (65, 78), 0.2, 1040.0),)).image(SIZE, PIXEL_MM)
    with pytest.raises(DataError, match=r"no round phantom found: \d+ of 360 points .* not for heads"):
        find_body(head, pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="nothing in the image is denser than air"):
        find_body(np.full((SIZE, SIZE), -1000.0), pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="39 mm wide, expected 60"):
        find_body(insert_phantom((), diameter_mm=40).image(SIZE, PIXEL_MM), pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="cut by the border"):
        find_body(insert_phantom((), diameter_mm=200).image(SIZE, PIXEL_MM), pixel_mm=PIXEL_MM)
    with pytest.raises(DataError, match="has 1000 HU, expected water"):
        find_body(2 * insert_phantom((), diameter_mm=120).image(SIZE, PIXEL_MM) + 1000, pixel_mm=PIXEL_MM)


def test_a_table_under_the_phantom_does_not_move_its_circle():
    image = insert_phantom((), diameter_mm=BODY_MM).image(SIZE, PIXEL_MM)
    rows, columns = np.indices(image.shape)
    top = SIZE // 2 + round(BODY_MM / 2 / PIXEL_MM) - 2
    image[(rows >= top) & (rows < top + 8) & (abs(columns - SIZE // 2) < 60)] = 0
    body = find_body(ndimage.gaussian_filter(image, 0.8), pixel_mm=PIXEL_MM)
    assert np.hypot(body.row - SIZE // 2, body.column - SIZE // 2) < 0.2
    assert body.radius_mm == pytest.approx(BODY_MM / 2, abs=0.2)


def test_repeats_that_are_none_are_refused():
    images = _images((), n=3)
    volume = _volume(images, ConvolutionKernel="B30f")
    with pytest.raises(DataError, match="mixes ConvolutionKernel B30f and B70f"):
        phantom_scan([volume, _volume(images, ConvolutionKernel="B70f")], "scan")
    with pytest.raises(DataError, match=r"mixes series of 3×176×176 and 2×176×176"):
        phantom_scan([volume, _volume(images[:2])], "scan")
    with pytest.raises(DataError, match=r"mixes 0\.9 mm pixels every 3 mm and 0\.8 mm"):
        phantom_scan([volume, CTVolume.from_array(images, pixel_mm=0.8, slice_mm=3.0)], "scan")
    with pytest.raises(DataError, match="expected 3 images or more"):
        phantom_scan([_volume(images[:2])], "scan")
    with pytest.raises(DataError, match="1 pixels of the scan scan are NaN"):
        phantom_scan([_volume(np.where(np.arange(images.size).reshape(images.shape) == 7, np.nan, images))], "scan")
    mixed = phantom_scan([volume, _volume(_images((), n=3, sigma=12.0, seed=9))], "scan")
    phantom = find_phantom(mixed, PhantomSettings())
    with pytest.raises(DataError, match=r"noise from [56]\.\d to 1[12]\.\d HU"):
        measure([mixed], phantom, places=find_places(phantom, pixel_mm=PIXEL_MM), tasks=())


def test_another_geometry_after_is_refused(before, tmp_path):
    with pytest.raises(DataError, match=r"has 4×176×176 voxels .* give the same slices"):
        _run(before, {"after": _written(tmp_path / "few.nii.gz", _images(n=4))}, tmp_path / "out")
    moved = np.roll(_images(), 3, axis=2)
    with pytest.raises(DataError, match=r"2\.7 mm away from that of the before scan"):
        _run(before, {"after": _written(tmp_path / "moved.nii.gz", moved)}, tmp_path / "out")
    with pytest.raises(ScanError, match="the after scan is not there"):
        _run(before, {"after": tmp_path / "nowhere"}, tmp_path / "out")


# --- DICOM and the command line -----------------------------------------------------------------------------------------------


def _dicom(folder, images, **header):
    """A series of these images, with everything in its header that names a patient."""
    for path, image in zip(write_ct(folder, 3.0 * np.arange(len(images)), **header), images, strict=True):
        dataset = dcmread(path)
        dataset.Rows, dataset.Columns = image.shape
        dataset.PixelSpacing = [PIXEL_MM, PIXEL_MM]
        dataset.PixelData = np.round(image).astype(np.int16).tobytes()
        dataset.save_as(path)


def test_series_of_one_folder_are_repeats_and_nothing_of_the_patient_is_told(tmp_path):
    images = _images(())
    _dicom(tmp_path / PLANTED[4] / "a", images[:3], Exposure=120)
    _dicom(tmp_path / PLANTED[4] / "b", images[3:], Exposure=120)
    scan = read_phantom(tmp_path / PLANTED[4], "scan")
    assert (scan.n_repeats, scan.hu.shape[1], scan.facts["KVP"]) == (2, 3, 120)
    _run(tmp_path / PLANTED[4], {}, tmp_path / "out")
    for name in (PAGE, RESULTS, TABLE, "config.yaml", "provenance.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert not [word for word in PLANTED if word.lower() in text.lower()], name
    assert "mAs" in (tmp_path / "out" / PAGE).read_text()


def test_mixed_kernels_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    for kernel in ("B30f", "B70f"):
        _dicom(tmp_path / "scan" / kernel, _images((), n=3), kernel=kernel)
    monkeypatch.setattr(sys, "argv", ["finegrain", "physics", str(tmp_path / "scan"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = capsys.readouterr().err.strip()
    assert "mixes ConvolutionKernel" in told and "\n" not in told
    assert not (tmp_path / "out").exists()


def test_the_exit_code_tells_pass_from_fail(before, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("limits: {water_hu: [50, 60]}\nphantom: {rods: []}\n")
    passed = CliRunner().invoke(app, ["physics", str(before), "--out", str(tmp_path / "a")])
    assert passed.exit_code == 0 and "comparisons pass" in passed.stdout
    failed = CliRunner().invoke(app, ["physics", str(before), "--out", str(tmp_path / "b"), "--settings", str(settings)])
    assert failed.exit_code == 1 and "1 of 5 comparisons fails: CT number" in failed.stdout
