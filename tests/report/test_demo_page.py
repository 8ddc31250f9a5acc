"""The demo page: faithful to the numbers, honest in words, deaf to hostile strings."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import HOSTILE, PIXEL_MM, Page, demo_report, slice_view

from finegrain.errors import DataError
from finegrain.report import SliceView, demo_headline, demo_verdict, plain_paragraphs, render_demo


def test_demo_table_shows_the_numbers_given(demo_path: Path) -> None:
    html = demo_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="psnr_db[abdomen-40/400]"') :].split("</tr>")[0]
    assert re.findall(r'<td class="n">([^<]*)</td>', row) == ["24.31", "30.13", "+5.81"]
    assert "window 40/400 HU" in row and ">better<" in row
    row = html[html.index('data-measure="hf_coherence[fine_texture]"') :].split("</tr>")[0]
    assert re.findall(r'<td class="n">([^<]*)</td>', row) == ["0.611", "0.743", "+0.131"]


def test_missing_value_is_shown_with_its_reason(demo_path: Path) -> None:
    html = demo_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="hu_bias[bone]"') :].split("</tr>")[0]
    assert ">n/a</abbr>" in row and "too few pixels of “bone”" in row
    assert not re.search(r"\bnan\b", Page(demo_path).text, flags=re.IGNORECASE)


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    render_demo(demo_report(), plain)
    report = replace(
        demo_report(),
        title=HOSTILE,
        what=HOSTILE,
        slices=[slice_view(HOSTILE)],
        facts={HOSTILE: HOSTILE},
        next_commands=[(HOSTILE, HOSTILE)],
        attribution=HOSTILE,
        model_card={HOSTILE: HOSTILE},
        timings_s={HOSTILE: 1.0},
        nps={HOSTILE: (np.array([0.1, 0.2]), np.array([1.0, 2.0]))},
    )
    render_demo(report, hostile)
    assert Page(hostile).tags.count("script") == Page(plain).tags.count("script") == 1
    assert Page(hostile).tags.count("img") == Page(plain).tags.count("img")
    assert "$\\frac{1}{0}$" in Page(hostile).text


def test_verdict_says_what_was_lost() -> None:
    text = " ".join(demo_verdict(demo_report()))
    assert "gains 5.8 dB, from 24.3 to 30.1 (window 40/400 HU)" in text
    assert "71 % of the normal dose's high-frequency energy (low dose: 191 %): texture was smoothed" in text
    assert "from 0.61 to 0.74: more of the fine detail" in text
    assert "noise falls from 41 to 9 HU" in demo_headline(demo_report())


def test_verdict_does_not_praise_a_denoiser_that_harms() -> None:
    report = demo_report()
    measures = {"low dose": report.measures["denoised"], "denoised": report.measures["low dose"]}
    worse = replace(report, measures=measures, noise_sd_hu={"low dose": 20.0, "denoised": 25.0})
    text = " ".join(demo_verdict(worse))
    assert (
        "did not lower it" in text and "loses 5.8 dB" in text and "noise was left in" in text and "true structure was lost" in text
    )
    assert "agrees less" in demo_headline(worse)


def test_slices_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        SliceView("z = 0 mm", PIXEL_MM, np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 9)))


def test_markdown_marks_are_removed() -> None:
    assert plain_paragraphs(demo_report().attribution) == ["Source", "A scan, https://doi.org/10.7937/x."]
