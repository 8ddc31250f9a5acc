"""What is bundled is the model that was trained, and its page says what its card and its measurements say."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch

from finegrain.denoise import BUNDLED, find_model, load_denoiser
from finegrain.errors import ModelError
from finegrain.networks.card import file_sha256, read_card, write_card

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import bundle as tool
import models

ROOT = Path(__file__).parent.parent


@pytest.fixture
def trained(tmp_path):
    """A copy of finegrain-s as if it had just been trained."""
    return Path(shutil.copytree(find_model(), tmp_path / "runs" / "finegrain-s"))


@pytest.fixture
def package(tmp_path):
    """An empty folder of bundled models."""
    (tmp_path / "package").mkdir()
    return tmp_path / "package"


@pytest.mark.parametrize("onnx_only", [True, False])
def test_a_bundled_model_is_the_trained_one(trained, package, onnx_only):
    for _ in range(2):  # the second takes the place of the first
        folder = tool.bundle(trained, onnx_only=onnx_only, package=package)
        assert {path.name for path in folder.iterdir()} - {"model.safetensors"} == {"model.json", "model.onnx"}
        assert (folder / "model.safetensors").exists() != onnx_only
        assert load_denoiser(folder).name == load_denoiser(trained).name
    assert [path.name for path in package.iterdir()] == ["finegrain-s"]


def test_a_model_that_cannot_be_replaced_stays(trained, package, monkeypatch):
    folder = tool.bundle(trained, onnx_only=False, package=package)
    before = {path.name: file_sha256(path) for path in folder.iterdir()}
    rename = Path.rename

    def fails_for_the_new(path, target):
        if path.name == "model":
            raise OSError("no more room")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(OSError, match="no more room"):
        tool.bundle(trained, onnx_only=True, package=package)
    assert [path.name for path in package.iterdir()] == ["finegrain-s"]
    assert {path.name: file_sha256(path) for path in folder.iterdir()} == before


def test_nothing_is_bundled_that_was_not_trained_under_the_name(trained, package):
    write_card(trained, read_card(trained).model_copy(update={"name": "mine"}))
    with pytest.raises(ModelError, match="got 'mine'"):
        tool.bundle(trained, onnx_only=True, package=package)


def test_a_model_is_not_bundled_onto_itself(trained):
    with pytest.raises(ModelError, match="is the bundled model itself"):
        tool.bundle(trained, onnx_only=True, package=trained.parent)
    read_card(trained)


def test_weights_that_onnx_does_not_compute_with_are_not_left_behind_unseen(trained, package):
    tensors = safetensors.torch.load_file(trained / "model.safetensors")
    tensors["head.3.bias"] += 0.1
    safetensors.torch.save_file(tensors, trained / "model.safetensors")
    card = json.loads((trained / "model.json").read_text())
    card["sha256"]["model.safetensors"] = file_sha256(trained / "model.safetensors")
    (trained / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="ONNX and torch differ"):
        tool.bundle(trained, onnx_only=True, package=package)


def test_what_is_no_model_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bundle.py", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert refused.value.code == 2
    assert "holds no model.json" in capsys.readouterr().err


def test_the_page_of_models_is_that_of_the_models_that_ship():
    real = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/data").glob("real-pairs*.json"))]
    page = models.document([read_card(find_model(name)) for name in BUNDLED], real)
    assert page == (ROOT / "docs/models.md").read_text(), "docs/models.md is stale: python tools/models.py"


def test_the_page_shows_the_real_pairs_of_the_model_and_no_other():
    card = read_card(find_model())
    values = {"psnr_db[abdomen-40/400]": 30.0, **dict.fromkeys(models.SHOWN, 0.5)}
    images = {"quarter dose": values | {"psnr_db[abdomen-40/400]": 26.0}, "texture 0": values, "bm3d, oracle σ": values}
    real = {"kernels": {"B30f": images | {"slices": 14, "least_gain_db": {"quarter dose": 0.0, "texture 0": 3.25}, "patients": {}}}}
    page = models.document([card], [real | {"model": "finegrain-s v0.1.0"}, real | {"model": "another v1"}])
    assert page.count("| B30f | texture 0 | 30.00 (+4.00) | +3.25 |") == 1
    assert "bm3d" not in page
    assert "147,203 parameters" in page
    assert "Not measured on real pairs." in models.document([card], [real | {"model": "another v1"}])
