"""`finegrain train`, from a YAML file to a model folder that denoises."""

import numpy as np
import pytest
import yaml

from finegrain.denoise import load_denoiser
from finegrain.errors import ConfigError, DataError
from finegrain.networks.card import read_card
from finegrain.train.run import run_training

CONFIG = {
    "name": "tiny",
    "pairs": {
        "sources": [{"kind": "phantom", "region": "thorax", "patients": 2, "slices": 1}],
        "size": 192,
        "pixel_mm": [1.9, 1.9],
        "test_fraction": 0,
        "validation_fraction": 0.5,
        "qc": "report",
    },
    "network": {"family": "hybrid", "channels": [8, 16, 16], "blocks": [1, 1, 1], "heads": [2, 2]},
    "train": {"steps": 4, "batch": 2, "patch": 32, "validate_every": 2, "warmup": 1, "threads": 1},
}


def _train(config_file, out, steps=None):
    return run_training(
        config_file,
        out,
        data_root=config_file.parent,
        workers=1,
        pairs_progress=lambda done, total: None,
        train_progress=lambda done, total, text: None if steps is None else steps.append(done),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    steps = []

    def train():
        return _train(folder / "tiny.yaml", folder / "out", steps)

    return train(), train, steps


def test_the_model_folder_denoises_and_says_where_it_comes_from(run):
    folder, _, steps = run
    assert steps == [1, 2, 3, 4]
    card = read_card(folder)
    assert card.name == "tiny"
    assert card.parameters > 1000
    assert card.metrics["validation_rmse_hu"] > 0
    assert set(card.sha256) == {"model.onnx", "model.safetensors"}
    assert np.isfinite(load_denoiser(folder).denoise_slice(np.zeros((64, 64)))).all()
    for name in (
        "config.yaml",
        "provenance.json",
        "losses.jsonl",
        "history.jsonl",
        "curves.png",
        "best.safetensors",
        "checkpoint.pt",
    ):
        assert (folder.parent / name).is_file()


def test_the_exported_file_holds_no_path_of_the_machine_that_made_it(run):
    folder, _, _ = run
    onnx = (folder / "model.onnx").read_bytes()
    assert b".py" not in onnx
    assert b"site-packages" not in onnx


def test_the_same_command_again_trains_nothing_and_exports_the_same_weights(run):
    folder, train, steps = run
    before = read_card(folder).sha256["model.safetensors"]
    trained = len(steps)
    assert train() == folder
    assert len(steps) == trained
    assert read_card(folder).sha256["model.safetensors"] == before


@pytest.mark.parametrize(
    ("part", "change", "word"),
    [("loss", {"weight": 0.3}, "training of another"), ("pairs", {**CONFIG["pairs"], "seed": 5}, "pairs of another")],
)
def test_a_changed_configuration_is_refused_and_the_old_one_stays_written(run, tmp_path, part, change, word):
    folder, _, _ = run
    out = folder.parent
    before = {name: (out / name).read_bytes() for name in ("config.yaml", "provenance.json", "history.jsonl", "checkpoint.pt")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, part: change}))
    with pytest.raises(DataError, match=word):
        _train(tmp_path / "tiny.yaml", out)
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_network_that_cannot_be_built_is_refused_before_the_simulation(tmp_path):
    network = {"family": "hybrid", "channels": [8, 8, 8], "heads": [2, 2]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "network": network}))
    with pytest.raises(ConfigError, match="token MLP"):
        _train(tmp_path / "tiny.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()
