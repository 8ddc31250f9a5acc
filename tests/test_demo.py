"""The whole way, as a user walks it: sample scan → quarter dose → denoised DICOM → numbers → report."""

import json
import re

import numpy as np
import pydicom
import pytest

from finegrain.demo import MARK, PROTOCOLS, _prepare, run_demo
from finegrain.errors import ConfigError
from finegrain.evaluate.fidelity import PROTOCOLS as KNOWN
from finegrain.evaluate.fidelity import psnr
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    seen = []
    outcome = run_demo(folder / "out", json_file=folder / "numbers.json", progress=lambda *step: seen.append(step))
    return folder, outcome, json.loads((folder / "numbers.json").read_text()), seen


def test_the_numbers_are_complete(demo):
    _, _, numbers, _ = demo
    assert {"finegrain", "model", "simulation", "reference", "band", "measures", "noise_sd_hu", "nps", "timings_s"} <= set(numbers)
    for method in ("low dose", "denoised"):
        for protocol in PROTOCOLS:
            assert np.isfinite(numbers["measures"][method][f"psnr_db[{protocol}]"])
            assert 0 < numbers["measures"][method][f"ssim[{protocol}]"] <= 1
        for measure in ("hf_ratio", "hf_coherence"):
            for place in ("full", "fine_texture", "uniform"):
                assert np.isfinite(numbers["measures"][method][f"{measure}[{place}]"])
    for name in ("normal dose", "low dose", "denoised"):
        assert len(numbers["nps"][name]["frequency_per_mm"]) == len(numbers["nps"][name]["power_hu2_mm2"]) > 5
    assert {"simulate the low dose", "denoise", "write DICOM", "measure"} <= set(numbers["timings_s"])


def test_the_low_dose_has_the_noise_of_a_quarter_and_denoising_helps(demo):
    _, _, numbers, _ = demo
    noise, measures = numbers["noise_sd_hu"], numbers["measures"]
    assert noise["low dose"] / noise["normal dose"] == pytest.approx(2, rel=0.15)
    assert measures["denoised"][f"psnr_db[{PROTOCOLS[0]}]"] > measures["low dose"][f"psnr_db[{PROTOCOLS[0]}]"] + 2
    assert measures["denoised"]["hf_coherence[fine_texture]"] > measures["low dose"]["hf_coherence[fine_texture]"]
    assert abs(measures["denoised"]["hu_bias[soft]"]) < 1


def test_the_numbers_are_those_of_the_written_dicom_files(demo):
    folder, outcome, numbers, _ = demo
    reference = read_series(sample_folder())
    for name, written in (("low dose", folder / "out" / "low-dose"), ("denoised", outcome.series)):
        series = read_series(written, allow_own_output=True)
        np.testing.assert_array_equal(series.positions_mm, reference.positions_mm)
        protocol = KNOWN[PROTOCOLS[0]]
        values = [psnr(ours, theirs, protocol=protocol) for ours, theirs in zip(reference.hu, series.hu, strict=True)]
        assert np.mean(values) == pytest.approx(numbers["measures"][name][f"psnr_db[{PROTOCOLS[0]}]"], abs=0.02)


def test_the_denoised_series_is_a_derived_series_of_its_own(demo):
    _, outcome, _, _ = demo
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in sample_folder().glob("*.dcm")}
    for path in outcome.series.glob("*.dcm"):
        derived = pydicom.dcmread(path)
        assert derived.ImageType[0] == "DERIVED"
        assert derived.SOPInstanceUID not in sources
        assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID in sources
        assert "finegrain" in derived.DerivationDescription


def test_the_report_needs_no_network_and_holds_the_numbers(demo):
    _, outcome, numbers, _ = demo
    page = outcome.report.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert f"{numbers['measures']['denoised'][f'psnr_db[{PROTOCOLS[0]}]']:.2f}" in page
    assert "CC BY 3.0" in page
    assert "not a medical device" in page


def test_progress_reaches_its_end_in_every_step(demo):
    _, _, _, seen = demo
    assert ("denoising", 8, 8) in seen
    assert ("simulating the low dose", 8, 8) in seen


def test_only_the_demo_s_own_folder_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by the demo"):
        run_demo(tmp_path / "mine", progress=lambda *step: None)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "mine" / MARK).exists()
    with pytest.raises(ConfigError, match="is a file"):
        run_demo(tmp_path / "mine" / "thesis.txt", progress=lambda *step: None)


def test_what_a_user_laid_beside_an_earlier_demo_stays(demo):
    folder, outcome, _, _ = demo
    (folder / "out" / "mine").mkdir()
    (folder / "out" / "mine" / "1.dcm").write_text("a patient's scan")
    _prepare(folder / "out")
    assert (folder / "out" / "mine" / "1.dcm").is_file()
    assert not outcome.report.exists()


def test_full_dose_leaves_nothing_to_show(tmp_path):
    with pytest.raises(ConfigError, match="below 1"):
        run_demo(tmp_path / "out", dose_fraction=1.0, progress=lambda *step: None)
    assert not (tmp_path / "out").exists()
