import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from anatomy_files import SIDE, Z_MM, patient_hu, write_dicom, write_nifti
from ct_files import PIXEL_MM, PLANTED

from finegrain.config import config_of
from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.folders import (
    MARK,
    UNPACKED,
    EvaluateConfig,
    Sources,
    check_folder,
    compared_metrics,
    evaluate_folders,
    write_results,
)
from finegrain.evaluate.run import evaluate_slice
from finegrain.frequency import Band

PSNR = "psnr_db[abdomen-40/400]"


def evaluated(tmp_path, sources, **settings):
    names = tuple(sources.candidates)
    said = {"candidates": names, "protocols": ("abdomen-40/400",), "has_input": sources.input is not None, **settings}
    return evaluate_folders(config_of(EvaluateConfig, said), sources, scratch=tmp_path / "scratch")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Two patients, of ten and of four slices: reference and input as DICOM, two methods as DICOM and as NIfTI."""
    root = tmp_path_factory.mktemp("secretfolder")
    for seed, n, name in ((1, 10, "alice"), (2, 4, "bob")):
        hu, z_mm = patient_hu(seed, n), Z_MM[:n]
        write_dicom(root / "reference" / name, hu, z_mm, patient_id=f"SECRET-ID-{seed}")
        write_dicom(root / "input" / f"x{9 - seed}", patient_hu(seed, n, noise=60), z_mm, patient_id=f"SECRET-ID-{seed}")
        write_dicom(root / "ours" / name, patient_hu(seed, n, noise=20 * seed), z_mm, patient_id=f"SECRET-ID-{seed}")
        write_nifti(root / "theirs" / f"{'alice' if seed == 2 else 'bob'}.nii.gz", patient_hu(seed, n, noise=30), z_mm, axes="RPI")
    return root


@pytest.fixture(scope="module")
def found(trees, tmp_path_factory):
    sources = Sources(
        trees / "reference", {"ours": trees / "ours", "theirs": trees / "theirs"}, trees / "input", truth=trees / "reference"
    )
    return evaluated(tmp_path_factory.mktemp("found"), sources, has_truth=True)


def test_every_slice_has_the_metrics_of_its_own_images(found):
    assert [(row["patient"], row["slice"], row["method"]) for row in found.rows] == [
        (patient, k, method)
        for patient, n in (("patient-1", 10), ("patient-2", 4))
        for k in range(n)
        for method in ("low dose", "ours", "theirs")
    ]
    for seed, n, place in ((1, 10, 3 * 7), (2, 4, 30 + 3 * 2)):
        k = found.rows[place]["slice"]
        images = {"low dose": patient_hu(seed, n, noise=60)[k], "ours": patient_hu(seed, n, noise=20 * seed)[k]}
        images["theirs"] = patient_hu(seed, n, noise=30)[k]
        reference = patient_hu(seed, n)[k]
        expected = evaluate_slice(
            reference, images, pixel_mm=PIXEL_MM, protocols=["abdomen-40/400"], band=Band(), truth_hu=reference
        )
        for row in found.rows[place : place + 3]:
            assert row["metrics"] == pytest.approx(expected[row["method"]], nan_ok=True)
            assert row["z_mm"] == pytest.approx(Z_MM[k])


def test_the_patient_is_the_unit_however_many_slices_he_has(found):
    for method in ("low dose", "ours", "theirs"):
        of_patient = [
            np.mean([row["metrics"][PSNR] for row in found.rows if row["method"] == method and row["patient"] == f"patient-{n}"])
            for n in (1, 2)
        ]
        assert found.measures[method][PSNR].mean == pytest.approx(np.mean(of_patient))
        assert found.values_of(method, PSNR) == pytest.approx(of_patient)
        assert found.measures[method][PSNR].n_patients == 2


def test_the_first_candidate_is_compared_with_every_other_method(found):
    assert list(found.comparisons) == [key for key in compared_metrics(found.config) if key in found.measures["ours"]]
    assert {PSNR, "hf_coherence_truth[fine_texture]", "nps_log_distance"} <= set(found.comparisons)
    for baseline in ("low dose", "theirs"):
        compared = found.comparisons[PSNR][baseline]
        expected = np.mean(np.subtract(found.values_of("ours", PSNR), found.values_of(baseline, PSNR)))
        assert compared.mean == pytest.approx(expected) and compared.n == 2 and compared.n_comparisons == 2
    assert found.comparisons[PSNR]["low dose"].mean > 0


def test_noise_power_is_pooled_over_the_slices_of_a_patient(found):
    assert found.measures["low dose"]["nmr"].mean > found.measures["theirs"]["nmr"].mean > 1
    assert set(found.nps) == {"normal dose", "low dose", "ours", "theirs"}
    summary = found.measures["ours"]["nmr"]
    assert summary.n_patients == 2 and summary.n_slices + summary.n_excluded == 14


def test_slices_to_look_at_are_the_worst_the_median_and_the_best(found):
    ranked = sorted((row["metrics"][PSNR], row["patient"], row["slice"]) for row in found.rows if row["method"] == "ours")
    assert [(view.patient, view.slice) for view in found.views] == [ranked[k][1:] for k in (0, 6, 13)]
    assert all(list(view.images) == ["normal dose", "low dose", "ours", "theirs"] for view in found.views)


def test_identical_images_have_ratio_and_coherence_one_and_an_infinite_psnr_that_json_can_hold(trees, tmp_path):
    found = evaluated(tmp_path, Sources(trees / "reference", {"same": trees / "reference", "ours": trees / "ours"}))
    same = found.measures["same"]
    ones = [key for key in same if key.startswith(("ssim", "hf_ratio", "hf_coherence", "hf_consistency", "band_coherence[full"))]
    assert len(ones) > 10
    assert [same[key].mean for key in ones if same[key].n_slices] == pytest.approx([1] * len([k for k in ones if same[k].n_slices]))
    assert (
        same[PSNR].mean == math.inf
        and found.n_infinite["same"][PSNR] == 14
        and found.per_patient["same"][PSNR]["patient-2"] == math.inf
    )
    assert same["rmse_hu"].mean == same["texture_index"].mean == 0
    assert any("same: identical to the reference" in note and "14 slices" in note for note in found.notes)
    assert "infinite" in found.comparisons[PSNR]["ours"].warnings[0]
    write_results(found, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert stored["measures"]["same"][PSNR]["mean"] == "inf" and float(stored["rows"][0]["metrics"][PSNR]) == math.inf
    assert stored["measures"]["same"][PSNR]["n_infinite"] == 14 and stored["measures"]["ours"][PSNR]["n_infinite"] == 0
    with (tmp_path / "out" / "slices.csv").open() as file:
        assert {row[PSNR] for row in csv.DictReader(file) if row["method"] == "same"} == {"inf"}


def test_a_constant_slice_amid_others_is_refused_with_its_place(trees, tmp_path):
    hu = patient_hu(1, noise=20)
    hu[0] = 0
    sources = Sources(trees / "reference" / "alice", {"ours": write_nifti(tmp_path / "a.nii", hu)})
    with pytest.raises(DataError, match=r"ours: the slice of patient-1 at z = 0.00 mm is constant, 0 HU everywhere"):
        evaluated(tmp_path, sources)
    assert not (tmp_path / "scratch").exists()


def test_pixels_that_are_not_square_and_images_that_are_too_small_are_refused(tmp_path):
    hu = patient_hu(1)
    oblong = write_dicom(tmp_path / "oblong", hu, PixelSpacing=[0.7, 0.8])
    with pytest.raises(DataError, match=r"pixels of 0.7 × 0.8 mm, expected square"):
        evaluated(tmp_path, Sources(oblong, {"ours": oblong}))
    small = write_nifti(tmp_path / "small.nii", hu[:, 30:42, 30:42])
    with pytest.raises(DataError, match="12 × 12 pixels, expected 16"):
        evaluated(tmp_path, Sources(small, {"ours": small}))


def test_a_folder_of_something_else_is_refused_and_an_earlier_evaluation_replaced(found, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    check_folder(other)
    (other / UNPACKED).mkdir()
    check_folder(other)
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other things than an evaluation"):
        check_folder(other)
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(other / "mine.txt")
    (other / MARK).touch()
    (other / "report.html").write_text("of other numbers")
    check_folder(other)
    write_results(found, other)
    assert (other / "mine.txt").read_text() == "mine" and not (other / "report.html").exists()
    assert {"results.json", "slices.csv", "patients.csv", "config.yaml", "provenance.json"} <= {one.name for one in other.iterdir()}


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_folder(tmp_path / "file" / "out")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_folder(tmp_path / "out", json_file=tmp_path / "file" / "a.json")
    with pytest.raises(ConfigError, match="give a file with --json"):
        check_folder(tmp_path / "out", json_file=tmp_path)
    check_folder(tmp_path / "new" / "out", json_file=tmp_path / "another" / "a.json")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_slices_in_which_the_protocol_counts_no_pixel_are_not_shown(tmp_path):
    hu = patient_hu(1, 3)
    hu[0] = np.random.default_rng(0).normal(-1000, 5, hu[0].shape)
    reference = write_dicom(tmp_path / "a", hu, Z_MM[:3])
    ours = write_dicom(tmp_path / "b", hu + np.int16(3) * (np.arange(SIDE) % 2 == 0).astype(np.int16), Z_MM[:3])
    found = evaluated(tmp_path, Sources(reference, {"ours": ours}), protocols=("abdomen-40/400-body",))
    assert math.isnan(found.rows[0]["metrics"]["psnr_db[abdomen-40/400-body]"])
    assert {view.slice for view in found.views} == {1, 2}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"candidates": ("a", "a")}, "a name of its own"),
        ({"candidates": ("low dose",)}, "means other images"),
        ({"proposed": "b"}, "'b' is none of a"),
        ({"baselines": ("low dose",)}, "'low dose' is none of a"),
        ({"baselines": ("a",)}, "compared with itself"),
        ({"protocols": ("lung",)}, "no protocol 'lung'"),
        ({"band": (0.9, 0.4)}, "0 ≤ low < high"),
        ({"band_unit": "hertz"}, "band_unit"),
        ({"patients_by": "name"}, "patients_by"),
        ({"candidates": ("a\nb",)}, "can be printed"),
        ({"candidates": ("a\udcff",)}, "can be printed"),
        ({"title": "\x1b[31m"}, "can be printed"),
    ],
)
def test_an_impossible_configuration_is_refused(said, told):
    with pytest.raises(ConfigError, match=told):
        config_of(EvaluateConfig, {"candidates": ("a",), **said})


def test_a_configuration_stores_what_was_left_open():
    config = config_of(EvaluateConfig, {"candidates": ("a", "b"), "has_input": True})
    assert config.proposed == "a" and config.baselines == ("low dose", "b") and len(config.protocols) == 3
    assert config_of(EvaluateConfig, config.model_dump()) == config
    assert config_of(EvaluateConfig, {"candidates": ("a", "b"), "proposed": "b"}).baselines == ("a",)
    twice = config_of(EvaluateConfig, {"candidates": ("a", "b"), "baselines": ("b", "b"), "protocols": ("red-cnn", "red-cnn")})
    assert twice.baselines == ("b",) and twice.protocols == ("red-cnn",)


def _run(*arguments):
    code = "from finegrain.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command_line_writes_tables_and_a_page_that_name_nobody(trees, found, tmp_path):
    out = tmp_path / "out"
    done = _run(
        *("evaluate", "--reference", trees / "reference", "--input", trees / "input", "--truth", trees / "reference"),
        *("--candidate", f"ours={trees / 'ours'}", "--candidate", f"theirs={trees / 'theirs'}", "--out", out),
        *("--protocol", "abdomen-40/400", "--json", tmp_path / "again.json", "--jobs", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "14 slices, 2 patient(s)" in done.stdout and "PSNR" in done.stdout and "not testable: 2 patients" in done.stdout
    stored = json.loads((out / "results.json").read_text())
    assert (tmp_path / "again.json").read_text() == (out / "results.json").read_text()
    write_results(found, tmp_path / "in-one-process")
    assert (
        (tmp_path / "in-one-process" / "slices.csv").read_text().count("\n") == (out / "slices.csv").read_text().count("\n") == 43
    )
    for row, again in zip(found.rows, stored["rows"], strict=True):  # to rounding: threads of a process add in another order
        finite = {key: value for key, value in row["metrics"].items() if math.isfinite(value)}
        assert {key: again["metrics"][key] for key in finite} == pytest.approx(finite)
    with (out / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], row["method"], row["slices"]) for row in rows[:2]] == [
        ("patient-1", "low dose", "10"),
        ("patient-1", "ours", "10"),
    ]
    assert float(rows[1][PSNR]) == pytest.approx(stored["per_patient"]["ours"][PSNR]["patient-1"])
    assert "<html" in (out / "report.html").read_text()
    assert not (out / UNPACKED).exists()
    for path in [*Path(out).iterdir(), None]:
        text = done.stdout if path is None else path.read_text()
        assert not [word for word in (*PLANTED, "SECRET-ID", "alice", "bob") if word in text], path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--candidate", "ours"], "--candidate takes NAME=PATH"),
        (["--candidate", "ours=nowhere"], "ours: expected a folder or file with CT images"),
        (["--candidate", "ours={reference}", "--protocol", "lung"], "no protocol 'lung'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_leaves_no_folder(trees, tmp_path, arguments, told):
    filled = [argument.format(reference=trees / "reference") for argument in arguments]
    done = _run("evaluate", "--reference", trees / "reference", "--out", tmp_path / "out", *filled)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_no_more_than_a_few_slices_are_held_at_a_time(tmp_path):
    """The peak of a series of 120 slices lies above that of 30 by less than two of its slices: nothing grows with it but rows."""
    import tracemalloc

    from finegrain.evaluate.trees import find_images

    path = {}
    for n in (30, 120):
        path[n] = write_nifti(tmp_path / f"{n}.nii", np.tile(patient_hu(1), (n // 10, 3, 3)), tuple(3.0 * k for k in range(n)))
    peak = {}
    for n in (30, 30, 120):
        tracemalloc.start()
        (one,), _ = find_images(path[n], "ours", scratch=tmp_path / f"unpacked-{n}")
        for k in range(n):
            one.slice_hu(k)
        peak[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[120] - peak[30] < 2 * 4 * (3 * SIDE) ** 2
