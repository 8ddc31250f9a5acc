"""The pages: self-contained, faithful to the numbers, honest in words, deaf to hostile strings, the same each time."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finegrain.errors import DataError
from finegrain.figures import (
    SOFT_WINDOW,
    bar_figure,
    body_box,
    crop_figure,
    find_crops,
    front_figure,
    resized,
    save_png,
    svg_text,
)
from finegrain.report import (
    CropView,
    DemoReport,
    SliceView,
    StudyReport,
    StudyRow,
    demo_headline,
    demo_verdict,
    plain_paragraphs,
    render_demo,
    render_study,
    study_verdict,
)

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{0}$ \'"><img src=http://evil.example/x.png>'
PIXEL_MM = 1.5
ARMS = ("low dose", "convolution only", "hybrid, dual-domain loss")


def thorax(noise_hu: float, seed: int) -> np.ndarray:
    """A body with a lung full of small vessels, a spine, and noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:160, :160] - 80.0
    hu = np.where((x / 72) ** 2 + (y / 58) ** 2 < 1, 50.0, -1000.0)
    lung = ((x + 34) / 26) ** 2 + (y / 36) ** 2 < 1
    vessels = np.random.default_rng(0).random((40, 40)) > 0.85
    hu[lung] = np.where(np.kron(vessels, np.ones((4, 4))), -100, -850)[lung]
    hu[(x / 9) ** 2 + ((y - 36) / 9) ** 2 < 1] = 600
    return hu + generator.normal(0, noise_hu, hu.shape)


def slice_view(name: str = "z = −83.5 mm") -> SliceView:
    return SliceView(name, PIXEL_MM, thorax(5, 1), thorax(40, 2), thorax(3, 3))


def demo_report() -> DemoReport:
    frequency = np.linspace(0.02, 0.5, 20)
    low = {"psnr_db[abdomen-40/400]": 24.314, "hf_ratio[fine_texture]": 1.912, "hf_coherence[fine_texture]": 0.6114}
    denoised = {"psnr_db[abdomen-40/400]": 30.127, "hf_ratio[fine_texture]": 0.713, "hf_coherence[fine_texture]": 0.7425}
    return DemoReport(
        title="A chest CT at 25 % dose",
        what="One slice.",
        dose_fraction=0.25,
        slices=[slice_view()],
        measures={"low dose": {**low, "hu_bias[bone]": float("nan")}, "denoised": {**denoised, "hu_bias[bone]": float("nan")}},
        nps={name: (frequency, scale * frequency) for name, scale in (("normal dose", 9), ("low dose", 36), ("denoised", 2))},
        noise_sd_hu={"normal dose": 20.4, "low dose": 41.2, "denoised": 9.3},
        timings_s={"denoise": 1.234},
        facts={"seed": "0"},
        next_commands=[("finegrain denoise IN OUT", "denoise a scan of your own")],
        attribution="# Source\n\nA scan, <https://doi.org/10.7937/x>.",
        model_card={"name": "finegrain-s"},
    )


def study_report() -> StudyReport:
    def row(key: str, label: str, better: str, means: tuple[float, float, float]) -> StudyRow:
        return StudyRow(key, label, better, {arm: (mean, 0.123, 4) for arm, mean in zip(ARMS, means, strict=True)})  # type: ignore[arg-type]

    table = [
        row("psnr_db[abdomen-40/400]", "PSNR, window 40/400 HU, dB", "higher", (24.31, 29.87, 30.21)),
        row("ssim[abdomen-40/400]", "SSIM, window 40/400 HU", "higher", (0.6012, 0.8423, 0.8399)),
        row("hf_ratio[fine_texture]", "HF energy ratio, fine texture", "one", (1.912, 0.662, 1.104)),
        row("hf_coherence[fine_texture]", "HF coherence, fine texture", "higher", (0.611, 0.742, 0.731)),
        row("hu_bias[lung]", "CT number shift, lung, HU", "lower", (0.01, float("nan"), 0.02)),
    ]
    crop = slice_view().normal_dose[48:80, 30:62]
    comparison = {"metric": "psnr_db[abdomen-40/400]", "baseline": "convolution only", "n": 4, "mean_difference": 0.337}
    tests = {"ci_low": -0.04, "ci_high": 0.71, "p_t": 0.0712, "p_wilcoxon": 0.125, "p_holm": None, "effect_size": 1.31}
    sizes = {"parameters": 448_000, "macs_per_512": 2.1e10, "seconds_per_slice": 0.21, "best_step": 400, "train_seconds": 98.0}
    return StudyReport(
        title="A study",
        scale_note="Four patients.",
        arms=[{"name": arm, "family": "hybrid", "loss": "mean squared error", **sizes} for arm in ARMS[1:]],
        proposed=ARMS[2],
        table=table,
        comparisons=[{**comparison, **tests, "verdict": "not testable"}],
        curves={arm: [(100, 14.0), (200, 12.5)] for arm in ARMS[1:]},
        crops=[CropView("lung", PIXEL_MM, {"normal dose": crop, "low dose": crop + 9, **dict.fromkeys(ARMS[1:], crop - 3)})],
        per_patient={row.key: {arm: [row.values[arm][0]] * 4 for arm in ARMS} for row in table},
        facts={"seed": "0"},
        config_yaml="title: <A study>",
        claims=[{"claim": "PSNR rises", "found": "+0.3 dB", "verdict": "cannot be said", "why": "four patients"}],
    )


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.addresses += [value or "" for name, value in attrs if name in fetching]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "report.html"
    render_demo(demo_report(), path)
    return path


@pytest.fixture(scope="module")
def study_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "report.html"
    render_study(study_report(), path)
    return path


@pytest.mark.parametrize("which", ["demo_path", "study_path"])
def test_page_fetches_nothing(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    page = Page(path)
    assert page.addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert {"link", "iframe", "object", "embed"}.isdisjoint(page.tags)
    html = path.read_text(encoding="utf-8")
    assert "@import" not in html
    assert all(address.startswith("#") for address in re.findall(r"url\(['\"]?([^)'\"]*)", html))


@pytest.mark.parametrize("which", ["demo_path", "study_path"])
def test_identifiers_are_unique_in_the_page(which: str, request: pytest.FixtureRequest) -> None:
    found = re.findall(r'\bid="([^"]*)"', request.getfixturevalue(which).read_text(encoding="utf-8"))
    assert len(found) == len(set(found))


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


def test_study_table_shows_the_numbers_given(study_path: Path) -> None:
    html = study_path.read_text(encoding="utf-8")
    row = html[html.index('data-measure="psnr_db[abdomen-40/400]"') :].split("</tr>")[0]
    assert re.findall(r"\d\d\.\d\d", row) == ["24.31", "29.87", "30.21"]
    assert "<b>30.21</b>" in row and "± 0.12, n = 4" in row
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


def test_blends_and_equaliser_are_two_curves() -> None:
    free = {f"{kind} {share}": (26 + share, 0.1, 4) for kind in ("blend", "equaliser") for share in (0.5, 1)}
    table = [replace(row, values={**row.values, **free}) for row in study_report().table]
    axes = front_figure(table, proposed=ARMS[2], arms=ARMS[1:]).axes[0]
    curves = {str(line.get_label()): line for line in axes.lines if "no training" in str(line.get_label())}
    assert list(curves) == ["blend, no training", "equaliser, no training"]
    assert all(len(line.get_xdata()) == 2 for line in curves.values())
    assert len({line.get_linestyle() for line in curves.values()}) == 2


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


def test_hostile_arm_names_stay_text(tmp_path: Path) -> None:
    report, path = study_report(), tmp_path / "report.html"
    table = [replace(row, values={HOSTILE if arm == ARMS[1] else arm: v for arm, v in row.values.items()}) for row in report.table]
    render_study(replace(report, table=table, arms=[{**report.arms[0], "name": HOSTILE}, report.arms[1]], claims=()), path)
    page = Page(path)
    assert page.tags.count("script") == 1 and all(not address.startswith("http") for address in page.addresses)


def test_rendering_is_deterministic(demo_path: Path, study_path: Path, tmp_path: Path) -> None:
    render_demo(demo_report(), tmp_path / "demo.html")
    render_study(study_report(), tmp_path / "study.html")
    assert (tmp_path / "demo.html").read_bytes() == demo_path.read_bytes()
    assert (tmp_path / "study.html").read_bytes() == study_path.read_bytes()


def test_a_failed_rendering_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(KeyError):
        render_study(replace(study_report(), claims=[{"claim": "incomplete"}]), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


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


def test_study_verdict_gives_the_interval() -> None:
    text = " ".join(study_verdict(study_report()))
    assert "+5.90 dB against the low-dose input" in text and "+0.34 dB [−0.04, 0.71] against “convolution only”" in text
    assert "110 % of the normal dose's high-frequency energy, at a coherence of 0.731" in text


def test_slices_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        SliceView("z = 0 mm", PIXEL_MM, np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 9)))


def test_markdown_marks_are_removed() -> None:
    assert plain_paragraphs(demo_report().attribution) == ["Source", "A scan, https://doi.org/10.7937/x."]


def test_crops_are_found_where_the_structure_is() -> None:
    crops = {place.name: place for place in find_crops(thorax(0, 0), pixel_mm=PIXEL_MM, side=24)}
    assert set(crops) >= {"lung vessels", "bone"}
    lung, bone = crops["lung vessels"], crops["bone"]
    assert np.median(lung.of(thorax(0, 0))) < -500
    assert bone.of(thorax(0, 0)).max() == 600
    assert find_crops(np.full((64, 64), -1000.0), pixel_mm=PIXEL_MM) == []


def test_crop_place_does_not_depend_on_the_noise_level() -> None:
    quiet, noisy = (find_crops(thorax(noise, 5), pixel_mm=PIXEL_MM, side=24)[0] for noise in (0, 15))
    assert abs(quiet.row - noisy.row) <= 4 and abs(quiet.column - noisy.column) <= 4


def test_body_box_holds_the_body() -> None:
    rows, columns = body_box([thorax(0, 0)], margin=2)
    inside = np.zeros((160, 160), dtype=bool)
    inside[rows, columns] = True
    assert inside[thorax(0, 0) > -900].all() and not inside.all()


def test_window_maps_its_ends_to_black_and_white() -> None:
    assert SOFT_WINDOW.to_gray(np.array([-2000.0, -160, 40, 240, 3000, np.nan])).tolist() == [0, 0, 128, 255, 255, 0]


def test_resizing_keeps_the_mean() -> None:
    hu = thorax(10, 0)[40:72, 40:72]
    large = resized(hu, 4)
    assert large.shape == (128, 128)
    assert abs(large.mean() - hu.mean()) < 0.01 * hu.std()


def test_svg_takes_its_colours_from_the_page() -> None:
    report = study_report()
    svg = svg_text(front_figure(report.table, proposed=report.proposed), "front")
    assert svg.startswith("<svg") and "var(--ink, #1a1d21)" in svg and "<metadata>" not in svg
    assert "hybrid, dual-domain loss:  0.731" in svg


def test_figures_are_saved_as_png(tmp_path: Path) -> None:
    report = study_report()
    figures = {
        "bars": bar_figure(report.table, per_patient=report.per_patient, proposed=report.proposed),
        "crops": crop_figure(report.crops),
    }
    for name, figure in figures.items():
        save_png(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300


def test_study_without_results_still_renders(tmp_path: Path) -> None:
    bare = StudyReport(title="Empty", scale_note="", arms=[], proposed="none", table=[])
    render_study(bare, tmp_path / "report.html")
    assert "Empty" in Page(tmp_path / "report.html").text
