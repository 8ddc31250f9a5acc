"""The command line as a user meets it: help without torch, one line and exit code 2 for what a user can mend."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ct_files import write_ct

from finegrain import __version__
from finegrain.sample import sample_folder

CONFIG = Path(__file__).parents[1] / "configs" / "study-smoke.yaml"


def _run(*arguments, check=False):
    return subprocess.run(
        [sys.executable, "-c", "from finegrain.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom finegrain.cli import main\nsys.argv = ['finegrain', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'scipy', 'numpy', 'onnxruntime', 'matplotlib', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    commands = "demo simulate series pairs bench qc denoise model train evaluate study physics measure-kernel"
    for command in commands.split():
        assert re.search(rf"^\W*{command}\s", done.stdout, re.MULTILINE), command


def test_version_is_printed():
    assert _run("--version", check=True).stdout.strip() == __version__


def test_training_without_torch_says_what_to_install(tmp_path):
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"sys.argv = ['finegrain', 'study', {str(CONFIG)!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "from finegrain.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'finegrain[train]'" in done.stderr


def test_denoising_the_sample_writes_as_many_slices(tmp_path):
    done = _run("denoise", sample_folder(), tmp_path / "out", "--strength", "0", check=True)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 8
    assert "8 slices" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["denoise", "{tmp}/nothing", "{tmp}/out"], "nothing"),
        (["denoise", "{tmp}", "{tmp}/../out-of-empty"], "expected DICOM files"),
        (["denoise", "{sample}", "{tmp}/out", "--strength", "1.5"], "strength must lie in"),
        (["denoise", "{sample}", "{tmp}/out", "--model", "{tmp}"], "model.json"),
        (["denoise", "{sample}", "{sample}"], "output folder"),
        (["bench", "--out", "{tmp}/bench", "--of", "v0"], "version of finegrain-bench"),
        (["bench", "--out", "{tmp}/bench", "--data-root", "{tmp}"], "abdomen-toshiba-tcga-ov"),
        (["demo", "--out", "{tmp}/full"], "not made by the demo"),
        (["demo", "--out", "{tmp}/new", "--dose-fraction", "0"], "dose_fraction"),
        (["study", "{tmp}/no.yaml", "--out", "{tmp}/out"], "cannot read the configuration"),
        (["study", "{tmp}/full/bad.yaml", "--out", "{tmp}/out"], "nearest known key is 'sources'"),
        (["train", "{tmp}/full/bad.yaml", "--out", "{tmp}/out"], "bad.yaml"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(tmp_path, arguments, word):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "bad.yaml").write_text("pairs:\n  sourcse: []\n  sources: [{kind: phantom}]\n")
    filled = [argument.format(tmp=tmp_path, sample=sample_folder()) for argument in arguments]
    done = _run(*filled)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_series_of_a_folder_are_listed_with_what_was_left_out(tmp_path):
    write_ct(tmp_path / "a", [0, 3, 6], kernel="B30f")
    write_ct(tmp_path / "b", [0, 3], kernel="D45f", RescaleSlope=None)
    (tmp_path / "readme.txt").write_text("no image")
    done = _run("series", tmp_path)
    assert done.returncode == 0
    assert "1 CT series" in done.stdout and "B30f" in done.stdout and "SeriesInstanceUID 1.2.826." in done.stdout
    assert "RescaleSlope" in done.stdout and "no DICOM" in done.stdout
