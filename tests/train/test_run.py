"""`finegrain train`, from a YAML file to a model folder that denoises."""

import hashlib
import json

import numpy as np
import pytest
import yaml

from finegrain.config import TrainingRun, load_config
from finegrain.denoise import load_denoiser
from finegrain.errors import ConfigError, DataError
from finegrain.networks.card import read_card
from finegrain.pairs.manifest import Pair, read_manifest
from finegrain.train.describe import data_sha256, public_config
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
    "network": {"family": "hybrid", "channels": [8, 24, 24], "blocks": [1, 1, 1], "heads": [2, 2]},
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
    assert card.metrics["rmse_hu"] > 0
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


def test_the_card_tells_what_the_network_was_trained_on(run):
    folder, _, _ = run
    card = read_card(folder)
    pairs = read_manifest(folder.parent / "pairs")
    trained_on, validation = ([pair for pair in pairs if pair.split == split] for split in ("train", "validation"))
    assert (card.training_pairs, card.training_patients) == (1, 1)
    assert card.data_sha256 == hashlib.sha256(trained_on[0].sha256.encode()).hexdigest()
    assert card.band_gains.data_sha256 == data_sha256(validation) != card.data_sha256
    assert card.kernels == ("B30f",)
    assert card.noise_hu[0] == card.noise_hu[1] == pytest.approx(trained_on[0].quality.noise_low_hu, rel=1)
    assert card.training_config["train"]["steps"] == 4
    assert card.training_config_hash == load_config(folder.parent / "config.yaml", TrainingRun).hash()
    assert {"torch", "numpy", "finegrain"} <= card.versions.keys()
    assert "B30f" in card.limits


def test_the_measures_of_the_card_are_those_of_the_best_step_and_gains_bring_energy_to_one(run):
    folder, _, _ = run
    card = read_card(folder)
    rows = [json.loads(line) for line in (folder.parent / "history.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["rmse_hu"])
    assert card.steps == best["step"]
    plain = {name: value for name, value in card.metrics.items() if "texture" not in name}
    assert plain == {name: pytest.approx(best[name], abs=2e-3) for name in plain}
    assert {"rmse_hu", "psnr_db[abdomen-40/400]", "hf_ratio", "hf_coherence"} == plain.keys()
    before, after = card.metrics["hf_ratio"], card.metrics["hf_ratio[texture 1]"]
    assert abs(np.log(after)) < 0.5 * abs(np.log(before))
    assert "psnr_db[abdomen-40/400,texture 1]" in card.metrics


def test_neither_order_nor_names_of_pairs_change_their_hash():
    one, two = (Pair(key=key, patient="a", pixel_mm=1, sha256=letter * 64) for key, letter in (("k", "1"), ("l", "2")))
    assert data_sha256([one, two]) == data_sha256([two.model_copy(update={"key": "m"}), one]) != data_sha256([one])


def test_no_path_and_no_name_of_a_patient_is_on_the_card(tmp_path):
    scan = {"kind": "scan", "path": "archive/Smith_John", "patient": "Smith-John", "kernels": ["/home/smith/mine.yaml"]}
    run = {**CONFIG, "pairs": {**CONFIG["pairs"], "sources": [*CONFIG["pairs"]["sources"], scan]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    whole = load_config(tmp_path / "run.yaml", TrainingRun).model_dump(mode="json")
    told = json.dumps(public_config(whole))
    assert "smith" not in told.lower()
    assert "mine.yaml" in told
    assert json.loads(told)["pairs"]["size"] == 192


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
