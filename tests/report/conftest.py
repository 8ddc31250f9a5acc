"""One page of each kind, written once."""

from pathlib import Path

import numpy as np
import pytest
from report_pages import HOSTILE, demo_report, evaluation_report, study_report

from finegrain.physics.run import run_physics
from finegrain.physics.settings import PhysicsSettings
from finegrain.report import render_demo, render_evaluation, render_study
from finegrain.scan.nifti import write_nifti
from finegrain.scan.volume import CTVolume
from finegrain.simulate.phantom.standard import Insert, insert_phantom


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


@pytest.fixture(scope="session")
def physics_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of phantom checks, a scan before and after."""
    folder = tmp_path_factory.mktemp("physics")
    body = insert_phantom((Insert(14.0, -90.0, 40.0, 0.3),), diameter_mm=140.0).image(176, 0.9)
    images = body + np.random.default_rng(0).normal(0, 6, (4, *body.shape))
    scan = write_nifti(CTVolume.from_array(images, pixel_mm=0.9, slice_mm=3.0), folder / "scan.nii.gz")
    return run_physics(scan, {HOSTILE[:24]: scan}, folder / "out", settings=PhysicsSettings()).page
