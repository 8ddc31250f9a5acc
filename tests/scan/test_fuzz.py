"""A hundred broken files, in seconds; `python benchmarks/fuzz_dicom.py` breaks thousands."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz_dicom.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    if shutil.which("dcmdump") is None or not FUZZ.exists():
        pytest.skip("DCMTK or the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("fuzz_dicom", FUZZ)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_dicom"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_broken_files_are_refused_in_one_line_or_read_as_an_independent_program_reads_them(fuzz: ModuleType) -> None:
    results = fuzz.fuzz(104, 7, None)
    assert [one for one in results if one.failed] == []
    assert sum(one.verdict == "right" for one in results) > 25
    assert sum(one.outcome == "refused" for one in results) > 25


def test_the_judge_sees_one_wrong_pixel_and_a_shifted_rescale(fuzz: ModuleType, tmp_path: Path, write_series) -> None:
    (path,) = write_series(tmp_path, n=1)
    hu = fuzz.read_series(path).hu
    padding = np.zeros(hu.shape, bool)
    assert fuzz.judged(path, hu, padding, tmp_path) == "right"
    assert fuzz.judged(path, hu + 24, padding, tmp_path).startswith("wrong: 1024 pixels")
    hu[0, 3, 4] += 1
    assert fuzz.judged(path, hu, padding, tmp_path).startswith("wrong: 1 pixels")
    assert fuzz.judged(path, hu, ~padding, tmp_path).startswith("wrong: 1 pixels")


def test_a_child_that_dies_or_hangs_is_recorded_and_the_rest_is_read(
    fuzz: ModuleType, tmp_path: Path, write_series, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, path in enumerate(write_series(tmp_path / "series")):
        shutil.copy(path, tmp_path / f"{i}.dcm")
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys, time; sys.path.insert(0, os.environ['FUZZ'])\n"
        "import fuzz_dicom; from pathlib import Path\n"
        "fuzz_dicom.SECONDS_PER_FILE = 1\n"
        "real = fuzz_dicom.read_series\n"
        "def read(path, **more):\n"
        "    if path.stem == '0': os.abort()\n"
        "    if path.stem == '1': time.sleep(60)\n"
        "    return real(path, **more)\n"
        "fuzz_dicom.read_series = read; fuzz_dicom.read_all(Path(sys.argv[2]))\n"
    )
    monkeypatch.setenv("FUZZ", str(FUZZ.parent))
    monkeypatch.setattr(fuzz, "__file__", str(script))
    found = fuzz.outcomes(tmp_path)
    assert {name: said["outcome"] for name, said in found.items()} == {"0": "crash", "1": "hang", "2": "accepted"}
