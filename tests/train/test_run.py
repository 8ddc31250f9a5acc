"""`finegrain train`, from a YAML file to a model folder that denoises."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from finegrain.acquisition import Acquisition
from finegrain.config import TrainingRun, config_of, load_config
from finegrain.denoise import load_denoiser
from finegrain.errors import ConfigError, DataError
from finegrain.networks.card import read_card
from finegrain.networks.skeleton import build_network
from finegrain.pairs.build import build_pairs
from finegrain.pairs.manifest import Pair, read_manifest
from finegrain.simulate.fbp import find_kernel
from finegrain.simulate.kernel_fit import save_kernel
from finegrain.train.describe import card_of_run, data_sha256, public_config
from finegrain.train.loop import FitResult
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
    plain = {name: value for name, value in card.metrics.items() if "texture" not in name and "told" not in name}
    assert plain == {name: pytest.approx(best[name], abs=2e-3) for name in plain}
    assert {"rmse_hu", "psnr_db[abdomen-40/400]", "hf_ratio", "hf_coherence"} == plain.keys()
    before, after = card.metrics["hf_ratio"], card.metrics["hf_ratio[texture 1]"]
    assert abs(np.log(after)) < 0.5 * abs(np.log(before))
    assert "psnr_db[abdomen-40/400,texture 1]" in card.metrics


def test_the_psnr_of_a_told_network_is_what_telling_it_the_truth_gives(run):
    folder, _, _ = run
    card, store = read_card(folder), folder.parent / "pairs"
    pair = next(pair for pair in read_manifest(store) if pair.split == "validation")
    assert pair.kernel == "B30f"
    half_per_mm = find_kernel("B30f").half_per_mm
    noisy, normal = pair.images(store)[:2].astype(np.float32)
    denoiser = load_denoiser(folder, threads=1)
    for key, dose in (("kernel told", None), ("dose and kernel told", pair.dose_fraction)):
        output = denoiser.denoise_slice(noisy, acquisition=Acquisition(dose, half_per_mm, pair.pixel_mm))
        error = np.mean((np.clip(output, -160, 240) - np.clip(normal, -160, 240)) ** 2, dtype=np.float64)
        assert card.metrics[f"psnr_db[abdomen-40/400,{key}]"] == pytest.approx(10 * np.log10(400**2 / error), abs=2e-3)


def test_the_licence_is_the_one_that_the_run_states(run, tmp_path):
    folder, _, _ = run
    assert read_card(folder).licence == "not stated"
    shipped = load_config(Path(__file__).parents[2] / "configs" / "train-finegrain-s.yaml", TrainingRun)
    assert shipped.licence == "Apache-2.0"
    with pytest.raises(ConfigError, match="licence"):
        config_of(TrainingRun, {**CONFIG, "licence": ""})


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
    assert public_config(r"C:\Smith_John\mine.yaml") == "mine.yaml"
    assert "mine.yaml" in told
    assert json.loads(told)["pairs"]["size"] == 192


def test_a_kernel_in_a_file_puts_no_part_of_its_path_on_the_card(tmp_path):
    folder = tmp_path / "Smith_John"
    folder.mkdir()
    save_kernel(replace(find_kernel("B40f"), name="lab"), folder / "mine.yaml")
    config = TrainingRun.model_validate({**CONFIG, "pairs": {**CONFIG["pairs"], "kernels": [str(folder / "mine.yaml")]}})
    store = folder / "store"
    pairs = build_pairs(config.pairs, store, data_root=folder, workers=1)
    result = FitResult(build_network(config.network, seed=0), history=[], best_step=0, seconds=0)

    card = card_of_run(config, result, pairs, store)

    told = card.model_dump_json().lower()
    assert "mine.yaml" in told
    assert card.kernels == ("lab",)
    assert not [part for part in folder.parts[1:] if part.lower() in told]
    manifest = " ".join(pair.model_dump_json() for pair in read_manifest(store)).lower()
    assert "smith" not in manifest


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
