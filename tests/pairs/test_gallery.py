import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from finegrain.pairs.gallery import MEASURES, Entry, write_gallery
from finegrain.pairs.qc import CHECKS, Finding, Judged, PairQuality, Verdict

QUALITY = PairQuality(**{name: 0.0 for name in PairQuality.__dataclass_fields__})
KEEP = Verdict("keep", ())


def rejected(reason="misaligned", measure="shift_px", value=0.5, limit=0.25, status="reject"):
    return Verdict(status, (reason,), (Finding(reason, measure, value, limit, status),))


def entry(verdict=KEEP, *, name="pair", read=None, **changed):
    def images():
        if read is not None:
            read.append(name)
        return np.zeros((64, 80)), np.full((64, 80), np.nan)

    row = Judged(replace(QUALITY, **changed), patient="p1", source="scans", kernel="B30f", dose_fraction=0.25)
    return Entry(name, row, verdict, images)


def page(tmp_path, entries, **more):
    write_gallery(entries, tmp_path / "qc.html", **more)
    return (tmp_path / "qc.html").read_text(encoding="utf-8")


class _Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(tmp_path):
    html = page(tmp_path, [entry(), entry(rejected())], facts={"Seed": "0"})
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    for tag, attributes in parser.seen:
        assert tag not in {"script", "link", "iframe"}
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or "src" not in attributes
    assert "http" not in html


def test_counts_add_up(tmp_path):
    entries = [entry() for _ in range(7)] + [entry(rejected()) for _ in range(2)] + [entry(rejected(status="borderline"))]
    text = re.sub(r"<[^>]+>", "", page(tmp_path, entries))
    assert "7kept, 70.0 %" in text
    assert "2rejected, 20.0 %" in text
    assert "1borderline, 10.0 %" in text
    assert "10pairs" in text


def test_only_the_worst_are_read_and_the_rest_counted(tmp_path):
    read = []
    entries = (entry(rejected(value=0.3 + k / 100_000), name=f"pair {k}", read=read) for k in range(3000))
    html = page(tmp_path, entries, shown=4)
    assert sorted(read) == ["pair 2996", "pair 2997", "pair 2998", "pair 2999"]
    assert "3000 pairs with this reason, 4 shown" in html


def test_each_number_stands_against_its_limit(tmp_path):
    html = page(tmp_path, [entry(rejected(value=0.519)), entry(rejected("empty", "body_cm2", 3.2, 13.3))])
    assert "misaligned: shift 0.52 px (limit 0.25)" in html
    assert "empty: body 3 cm² (below 13)" in html


def test_names_are_escaped(tmp_path):
    html = page(tmp_path, [entry(rejected(), name="<b>&x")], title="<i>", facts={"<u>": "<s>"})
    for text in ("<b>&x", "<i>", "<u>", "<s>"):
        assert text not in html
    assert "&lt;b&gt;&amp;x" in html


def test_the_difference_is_shown_in_a_window_that_is_told(tmp_path):
    one = replace(entry(rejected()), images=lambda: (np.full((64, 64), 130.0), np.zeros((64, 64))))
    assert "difference, ±150 HU" in page(tmp_path, [one])


@pytest.mark.parametrize("value", [math.nan, -3000.0, 0.0, 1e9])
def test_any_number_has_its_place_in_a_histogram(tmp_path, value):
    quality = replace(QUALITY, **dict.fromkeys(("shift_y_px", "air_hu", "ring", "blocks"), value))
    one = replace(entry(), row=replace(entry().row, quality=quality))
    html = page(tmp_path, [one, entry()])
    assert html.count("<svg") == len(CHECKS)
    assert ("1 not told" in html) == math.isnan(value)
    for x, width in re.findall(r'<rect class="." x="([-\d.]+)" y="[-\d.]+" width="([\d.]+)"', html):
        assert -1 <= float(x) <= 300 and float(width) < 10


def test_no_pairs_make_a_page_too(tmp_path):
    assert "No pair gave a reason" in page(tmp_path, [])


def test_every_check_has_a_name():
    assert {name for name, _, _ in CHECKS} <= set(MEASURES)
