"""Results + figures → one self-contained HTML page: no network, no script that it needs, numbers before adjectives.

`render_demo` shows one scan, `render_evaluation` any methods against a reference, `render_study` a study. What the pages say in
words is made here from the numbers, so that a page cannot praise what its table does not show.
"""

from finegrain.figures import CropView, Method, StudyRow
from finegrain.report.contents import EvaluationReport, StudyReport, WorstCase, comparison_row, table_rows
from finegrain.report.demo import DemoReport, SliceView, demo_headline, demo_verdict, plain_paragraphs, render_demo
from finegrain.report.results import render_evaluation, render_study
from finegrain.report.verdicts import results_verdict
from finegrain.report.words import label_of

__all__ = [
    "CropView", "DemoReport", "EvaluationReport", "Method", "SliceView", "StudyReport", "StudyRow", "WorstCase", "comparison_row",
    "demo_headline", "demo_verdict", "label_of", "plain_paragraphs", "render_demo", "render_evaluation", "render_study",
    "results_verdict", "table_rows",
]  # fmt: skip
