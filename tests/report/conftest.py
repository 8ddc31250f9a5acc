"""One page of each kind, written once."""

from pathlib import Path

import pytest
from report_pages import demo_report, evaluation_report, study_report

from finegrain.report import render_demo, render_evaluation, render_study


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "report.html"
    render_demo(demo_report(), path)
    return path


@pytest.fixture(scope="session")
def study_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "report.html"
    render_study(study_report(), path)
    return path


@pytest.fixture(scope="session")
def evaluation_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "report.html"
    render_evaluation(evaluation_report(), path)
    return path
