"""Figures: places found where the structure is, windows, and plots that a colour-blind reader can read in light and dark."""

import itertools
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import ARMS, PIXEL_MM, evaluation_report, study_report, thorax
from skimage.color import deltaE_ciede2000, rgb2lab

from finegrain.figures import (
    CSS_COLOURS,
    MUTED,
    PAPER,
    RULE,
    SOFT_WINDOW,
    CropView,
    Method,
    StudyRow,
    band_coherence_figure,
    bar_figure,
    bar_panel,
    body_box,
    crop_figure,
    find_crops,
    front_figure,
    method_looks,
    resized,
    save_png,
    svg_text,
)


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


def with_free(report_table: list[StudyRow]) -> tuple[list[StudyRow], list[Method]]:
    """The study's table with a blend and an equaliser of two strengths each, and its methods."""
    free = {f"{kind} {share}": (26 + share, 0.1, 4) for kind in ("blend", "equaliser") for share in (0.5, 1)}
    methods = [Method(ARMS[0], "input"), *(Method(arm, "arm") for arm in ARMS[1:])]
    methods += [Method(name, "free", start=ARMS[1]) for name in free]
    return [replace(row, values={**row.values, **free}) for row in report_table], methods


@pytest.mark.parametrize("against", ["hf_ratio", "hf_coherence"])
def test_blends_and_equaliser_are_two_curves_from_their_network(against) -> None:
    table, methods = with_free(list(study_report().table))
    axes = front_figure(table, against=against, methods=methods, proposed=ARMS[2]).axes[0]
    curves = {str(line.get_label()): line for line in axes.lines if "no training" in str(line.get_label())}
    assert list(curves) == ["blend, no training", "equaliser, no training"]
    network = next(row for row in table if row.key.startswith(against)).values[ARMS[1]][0]
    assert all(len(line.get_xdata()) == 3 and line.get_xdata()[0] == network for line in curves.values())
    assert len({line.get_marker() for line in axes.lines if line.get_markerfacecolor() == "none"}) == 2


def test_a_method_looks_alike_everywhere() -> None:
    table, methods = with_free(list(study_report().table))
    looks = method_looks(methods, ARMS[2])
    arms = [looks[arm] for arm in ARMS[1:]]
    assert len({look.colour for look in arms}) == len({look.marker for look in arms}) == 2
    assert looks["blend 0.5"] == looks["blend 1"] != looks["equaliser 1"]
    axes = bar_panel(table[0], methods=methods, proposed=ARMS[2]).axes[0]
    colours = {patch.get_facecolor()[:3] for patch in axes.patches}
    assert colours == {tuple(int(look.colour[k : k + 2], 16) / 255 for k in (1, 3, 5)) for look in arms}


def test_a_star_stands_where_it_is_asked_for() -> None:
    table, methods = with_free(list(study_report().table))
    marked = bar_panel(table[0], methods=methods, proposed=ARMS[2], marks={(table[0].key, ARMS[1]), ("another", ARMS[2])})
    assert [text.xy[1] for text in marked.axes[0].texts if text.get_text() == "∗"] == [0]


def test_a_very_long_name_does_not_squeeze_the_plot() -> None:
    table, methods = with_free(list(study_report().table))
    name = "a network with a name that goes on, and on, and says every parameter that it was trained with, and who trained it"
    row = replace(table[0], values={**table[0].values, name: (29.0, 0.2, 4)})
    panel = bar_panel(row, methods=[*methods, Method(name, "arm")], proposed=ARMS[2])
    svg_text(panel, "long")
    assert panel.axes[0].get_position().width > 0.4


def test_coherence_with_the_truth_is_drawn_where_it_is_known() -> None:
    bands = evaluation_report().bands
    lines = band_coherence_figure(bands, looks={}).axes[0].lines
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert [np.isfinite(line.get_ydata()).tolist() for line in dotted] == [[True, False]] * 2
    assert [line.get_ydata().tolist() for line in lines if line.get_linestyle() == "-"] == [[0.9, 0.5]] * 2


VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Linear sRGB as the colour-blind see it: Machado, Oliveira and Fernandes 2009, severity 1."""


def series_colours(scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """The colours of methods and the ground behind them, as the page's style gives them."""
    style = files("finegrain.templates").joinpath("base.html.j2").read_text(encoding="utf-8")
    block = re.findall(r":root {(.*?)}", style, flags=re.DOTALL)[("light", "dark").index(scheme)]
    found = dict(re.findall(r"(--\w+): (#\w{6})", block))
    names = [variable for colour, variable in CSS_COLOURS.items() if colour not in (RULE, PAPER)]
    rgb = np.array([[int(found[name][k : k + 2], 16) / 255 for k in (1, 3, 5)] for name in [*names, "--ground"]])
    return rgb[:-1], rgb[-1]


def linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_the_colour_blind_can_tell_the_methods_apart(scheme: str, vision: str) -> None:
    seen = (linear(series_colours(scheme)[0]) @ np.transpose(VISIONS[vision])).clip(0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    assert min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2)) > 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_method_stands_out_from_the_ground(scheme: str) -> None:
    colours, ground = (linear(rgb) @ [0.2126, 0.7152, 0.0722] + 0.05 for rgb in series_colours(scheme))
    assert (np.maximum(colours, ground) / np.minimum(colours, ground)).min() > 3


def test_the_colours_of_figures_are_those_of_a_light_page() -> None:
    named = {colour for colour in CSS_COLOURS if colour not in (RULE, PAPER)}
    light = {"#" + "".join(f"{round(255 * value):02x}" for value in rgb) for rgb in series_colours("light")[0]}
    assert named == light and MUTED in light


def test_svg_takes_its_colours_from_the_page() -> None:
    table, methods = with_free(list(study_report().table))
    svg = svg_text(front_figure(table, against="hf_coherence", methods=methods, proposed=ARMS[2]), "front")
    assert svg.startswith("<svg") and "var(--blue, #0072b2)" in svg and "<metadata>" not in svg


def test_figures_are_saved_as_png(tmp_path: Path) -> None:
    report = study_report()
    figures = {
        "bars": bar_figure(report.table, per_patient=report.per_patient, proposed=report.proposed, arms=ARMS[1:]),
        "crops": crop_figure(report.crops),
    }
    for name, figure in figures.items():
        save_png(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300


def test_crops_of_many_methods_go_on_below_with_the_reference_again_and_errors_in_one_window() -> None:
    hu = np.zeros((16, 16))
    noise = np.where(np.indices(hu.shape).sum(axis=0) % 2, 20.0, -20.0)  # ±20 HU: errors are shown from −60 to 60 HU
    crop = CropView("lung", 0.7, {"normal dose": hu, "low dose": noise, **{f"method {n}": hu + 10 * n for n in range(4)}})
    axes = crop_figure([crop], most_columns=4).axes
    titles = [one.get_title("left") for one in axes if one.get_title("left")]
    assert titles == ["normal dose", "low dose", "method 0", "method 1", "normal dose", "method 2", "method 3"]
    errors = [np.asarray(one.images[0].get_array()) for one in axes if one.images and not one.get_title("left")]
    assert [np.median(error) for error in errors[1:]] == pytest.approx([255 * (60 + 10 * n) / 120 for n in range(4)], abs=1)
