"""Pages of results: self-contained, faithful to the numbers, honest in words, the same each time."""

import base64
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import ARMS, HOSTILE, Page, demo_report, evaluation_report, ramp_crop, study_report

from finegrain.errors import DataError
from finegrain.evaluate.run import Row, summarise
from finegrain.evaluate.stats import compare_with_each
from finegrain.figures import Detection
from finegrain.report import (
    EvaluationReport,
    Method,
    StudyReport,
    StudyRow,
    comparison_row,
    render_demo,
    render_evaluation,
    render_study,
    results_verdict,
    table_rows,
)
from finegrain.report.viewer import hu_data, places_of
from finegrain.report.words import bands_in, table_of


@pytest.mark.parametrize("which", ["demo_path", "study_path", "evaluation_path"])
def test_page_fetches_nothing(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    page = Page(path)
    assert page.addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert {"link", "iframe", "object", "embed"}.isdisjoint(page.tags)
    html = path.read_text(encoding="utf-8")
    assert "@import" not in html
    assert all(address.startswith("#") for address in re.findall(r"url\(['\"]?([^)'\"]*)", html))


@pytest.mark.parametrize("which", ["demo_path", "study_path", "evaluation_path"])
def test_identifiers_are_unique_in_the_page(which: str, request: pytest.FixtureRequest) -> None:
    found = re.findall(r'\bid="([^"]*)"', request.getfixturevalue(which).read_text(encoding="utf-8"))
    assert len(found) == len(set(found))


def test_rendering_is_deterministic(demo_path: Path, study_path: Path, tmp_path: Path) -> None:
    render_demo(demo_report(), tmp_path / "demo.html")
    render_study(study_report(), tmp_path / "study.html")
    assert (tmp_path / "demo.html").read_bytes() == demo_path.read_bytes()
    assert (tmp_path / "study.html").read_bytes() == study_path.read_bytes()


def test_study_table_shows_the_numbers_given(study_path: Path) -> None:
    html = study_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="psnr_db[abdomen-40/400]"') :].split("</tr>")[0]
    assert re.findall(r"\d\d\.\d\d", row) == ["24.31", "29.87", "30.21"]
    assert "<b>30.21</b>" in row and "± 0.12" in row and "higher is better; n = 4" in row
    text = Page(study_path).text
    assert "+0.34" in text and "−0.04 to +0.71" in text and "0.071" in text
    assert not re.search(r"\b(nan|None)\b", text)


def test_best_energy_ratio_is_the_one_nearest_to_one(study_path: Path) -> None:
    html = study_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="hf_ratio[fine_texture]"') :].split("</tr>")[0]
    assert "<b>1.104</b>" in row and "<b>0.662</b>" not in row


def test_few_patients_get_no_star(study_path: Path) -> None:
    assert "With 4 patients a two-sided Wilcoxon test cannot fall below p = 0.125" in Page(study_path).text


def test_six_patients_against_three_baselines_get_no_star(tmp_path: Path) -> None:
    report, path = study_report(), tmp_path / "report.html"
    note = "With 6 patients a two-sided Wilcoxon test cannot fall below p = 0.031, 0.094 after Holm over 3 baselines"
    for n, n_baselines, noted in ((6, 3, True), (7, 3, False), (6, 1, False)):
        rows = [{**report.comparisons[0], "n": n, "baseline": f"network {k}"} for k in range(n_baselines)]
        render_study(replace(report, comparisons=rows), path)
        assert (note in Page(path).text) == noted
        assert ("cannot fall below" in Page(path).text) == noted


def test_hostile_arm_names_stay_text(tmp_path: Path) -> None:
    report, path = study_report(), tmp_path / "report.html"
    table = [replace(row, values={HOSTILE if arm == ARMS[1] else arm: v for arm, v in row.values.items()}) for row in report.table]
    render_study(replace(report, table=table, arms=[{**report.arms[0], "name": HOSTILE}, report.arms[1]], claims=()), path)
    page = Page(path)
    assert page.tags.count("script") == 1 and all(not address.startswith("http") for address in page.addresses)


def test_a_failed_rendering_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(KeyError):
        render_study(replace(study_report(), claims=[{"claim": "incomplete"}]), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_study_verdict_gives_the_interval() -> None:
    text = " ".join(results_verdict(study_report()))
    assert "+5.90 dB against the low-dose input" in text and "+0.34 dB [−0.04, 0.71] against “convolution only”" in text
    assert "110 % of the normal dose's high-frequency energy, at a coherence of 0.731" in text


def test_of_candidates_the_verdict_speaks_of_methods_and_of_no_interval_that_is_unknown() -> None:
    report = study_report()
    methods = [
        Method("low dose", "input"),
        Method("hybrid, dual-domain loss", "candidate"),
        Method("convolution only", "candidate"),
    ]
    unknown = {"interval": (math.nan, math.nan, "t")}
    evaluated = replace(report, methods=methods, comparisons=[{**report.comparisons[0], **unknown}])
    text = " ".join(results_verdict(evaluated))
    assert "+0.34 dB against “convolution only” (means alone)" in text and "n/a" not in text
    assert "(the other method: 0.742)" in text and "(the other network: 0.742)" in " ".join(results_verdict(report))


def test_study_without_results_still_renders(tmp_path: Path) -> None:
    bare = StudyReport(title="Empty", scale_note="", arms=[], proposed="none", table=[])
    render_study(bare, tmp_path / "report.html")
    assert "Empty" in Page(tmp_path / "report.html").text


def test_unequal_numbers_of_patients_stand_in_the_cells(tmp_path: Path) -> None:
    report = study_report()
    row = replace(report.table[0], values={**report.table[0].values, ARMS[1]: (29.87, 0.123, 3)})
    render_study(replace(report, table=[row]), tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert "± 0.12, n = 3" in text and "± 0.12, n = 4" in text


def test_a_page_shows_what_it_was_given_and_no_empty_part(evaluation_path: Path, study_path: Path) -> None:
    parts = {
        "Worst cases first": "patient 3",
        "Can a lesion be found?": "1.75 to 2.75",
        "By tissue": "CT number",
        "By region": "thorax",
        "Quality control": "96 of 100",
        "How to repeat this": "finegrain evaluate --a-command",
        "Noise and texture over frequency": "Dotted: coherence with the noise-free image",
    }
    evaluation, study = Page(evaluation_path).text, Page(study_path).text
    for heading, content in parts.items():
        assert heading in evaluation and content in evaluation.partition(heading)[2], heading
        assert heading not in study or heading == "By tissue", heading
    assert "0.2 dB would need 9 patients." in evaluation
    for heading in ("The paper's claims", "The networks", "Paired comparisons", "the paper"):
        assert heading not in evaluation


def test_keys_decide_the_table() -> None:
    assert table_of("hf_ratio[fine_texture]") == table_of("psnr_db[chest--600/1500]") == table_of("texture_index") == "results"
    assert table_of("psnr_db[full-range]") == table_of("hf_coherence[full]") == "results"
    assert table_of("hf_ratio[uniform]") == table_of("ssim[abdomen-40/400,abdomen]") == "regions"
    assert table_of("hu_bias[bone]") == "tissues"
    assert table_of("band_ratio[uniform,0.1-0.2/mm]") == "bands"
    assert table_of("rmse_hu[body]") == table_of("psnr_db[abdomen-40/400,fine_texture]") == "details"


def test_no_method_is_best_in_a_uniform_region(evaluation_path: Path) -> None:
    html = evaluation_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="hf_ratio[uniform]"') :].split("</tr>")[0]
    assert "0.200" in row and "<td" in row and not re.search(r"<td[^>]*><b>", row)


def test_stars_stand_only_where_both_tests_allow(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    baseline = generator.normal(30, 1, 12)
    better = compare_with_each(baseline + 0.3 + generator.normal(0, 0.05, 12), {"convolution only": baseline})["convolution only"]
    few = compare_with_each(baseline[:4] + 0.3, {"convolution only": baseline[:4]})["convolution only"]
    unlike = replace(better, t_p=0.2)
    key = "psnr_db[abdomen-40/400]"
    for found, starred in ((better, True), (few, False), (unlike, False)):
        path = tmp_path / "report.html"
        render_study(replace(study_report(), comparisons=[comparison_row(key, "convolution only", found)]), path)
        text = Page(path).text
        assert ("∗" in text) == starred
        assert f"{found.t_low:+.2f}".replace("-", "−") in text or np.isnan(found.t_low)
        assert text.count(f"({found.interval()[2]})") == 1


def test_a_page_and_the_claims_read_the_same_interval(tmp_path: Path) -> None:
    """The bootstrap's from 20 patients on, Student's below."""
    generator = np.random.default_rng(2)
    for n, kind in ((19, "t"), (20, "BCa")):
        baseline = generator.normal(30, 1, n)
        found = compare_with_each(baseline + generator.exponential(0.3, n), {"convolution only": baseline})["convolution only"]
        low, high, _ = found.interval()
        row = comparison_row("psnr_db[abdomen-40/400]", "convolution only", found)
        render_study(replace(study_report(), comparisons=[row]), tmp_path / "report.html")
        text = Page(tmp_path / "report.html").text
        assert f"{low:+.2f} to {high:+.2f} ({kind})" in text and f"[{low:.2f}, {high:.2f}]" in text


def test_warnings_of_the_statistics_are_printed(tmp_path: Path) -> None:
    report, path = study_report(), tmp_path / "report.html"
    render_study(replace(report, comparisons=[{**report.comparisons[0], "warnings": ["one patient lies far out"]}]), path)
    assert "One patient lies far out (PSNR, window 40/400 HU [dB] against convolution only)." in Page(path).text


def test_without_a_proposed_method_the_leaders_are_named() -> None:
    text = " ".join(results_verdict(evaluation_report()))
    assert "On 6 patients, “a filter” has the highest mean PSNR, 30.50 dB (window 40/400 HU; input: 25.00 dB)" in text
    assert "“a filter” has the highest coherence of fine detail, 0.770, at 70 %" in text


def test_a_table_is_made_from_what_was_measured() -> None:
    rows = [
        Row(patient=str(k), slice=0, method="a", metrics={"psnr_db[full-range]": 30.0 + k, "hu_bias[lung]": 1.0}) for k in (0, 2)
    ]
    psnr, bias = table_rows(summarise(rows))
    assert psnr.label == "PSNR, −1024 to 3071 HU [dB]" and psnr.better == "higher" and bias.better == "zero"
    assert psnr.values["a"] == (31.0, pytest.approx(2**0.5), 2)


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="name of its own, got twice: a"):
        replace(evaluation_report(), methods=[Method("a", "arm"), Method("a", "free")])
    with pytest.raises(DataError, match="proposed method 'b' is none of a"):
        replace(evaluation_report(), methods=[Method("a", "arm")], proposed="b")
    with pytest.raises(DataError, match="name it in `proposed`"):
        replace(evaluation_report(), comparisons=study_report().comparisons)


def test_a_table_of_numbers_alone_makes_a_page(tmp_path: Path) -> None:
    nothing = {"low dose": (float("nan"), float("nan"), 0), "a": (float("nan"), float("nan"), 0)}
    table = [replace(row, values=nothing) for row in study_report().table]
    bands = {"a": [(0.0, 0.5, float("nan"), float("nan"), None)]}
    lesions = {"CHO": {"a": [Detection("lesion", math.nan, 0.0, 1.0)]}}
    bare = EvaluationReport(title="Bare", table=table, bands=bands, detectability=lesions)
    render_evaluation(bare, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert "Bare" in text and "n/a" in text and not re.search(r"\b(nan|None)\b", text)


def test_pixels_travel_as_whole_hu() -> None:
    hu = np.array([[-1024.0, 40.4, 3071.0], [np.nan, 1e9, -0.6]])
    sent = np.frombuffer(base64.b64decode(hu_data(hu)), dtype="<i2").reshape(2, 3)
    assert sent.tolist() == [[-1024, 40, 3071], [-1024, 32767, -1]]


def test_a_page_stays_light_however_many_crops_it_is_given(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 300, (128, 128))
    crop = replace(ramp_crop(), images={f"image {k}": noise + k for k in range(6)})
    render_evaluation(replace(evaluation_report(), crops=[crop] * 30), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 8e6
    assert f"{30 - len(places_of([crop] * 30))} more places left out" in Page(tmp_path / "report.html").text


def test_a_network_that_is_no_network_of_ours_needs_no_loss(tmp_path: Path) -> None:
    report = study_report()
    render_study(replace(report, arms=[*report.arms, {"name": "BM3D"}]), tmp_path / "report.html")
    assert "BM3D – – n/a" in Page(tmp_path / "report.html").text


def test_bands_of_the_table_become_a_plot_and_no_rows(tmp_path: Path) -> None:
    report = study_report()
    keys = [f"band_{what}[fine_texture,{band}/mm]" for what in ("ratio", "coherence") for band in ("0.0-0.1", "0.1-0.2")]
    rows = [StudyRow(key, key, "one", {arm: (0.5, 0.1, 4) for arm in ARMS}) for key in keys]
    render_study(replace(report, table=[*report.table, *rows]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Energy in each band" in html and "band_ratio[" not in html
    assert bands_in({key: 0.5 for key in keys}) == [(0.0, 0.1, 0.5, 0.5, None), (0.1, 0.2, 0.5, 0.5, None)]
