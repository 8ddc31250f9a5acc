"""The measures of validation are those of the evaluation; a run's files tell them, and the curves show them."""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from finegrain.config import NetworkConfig
from finegrain.errors import ConfigError
from finegrain.evaluate.bands import band_coherence, band_energy_ratio
from finegrain.evaluate.fidelity import protocol_named, psnr
from finegrain.hu import HURange
from finegrain.networks.skeleton import build_network
from finegrain.train.record import BEST, CURVES, HISTORY, LOSSES, draw_curves
from finegrain.train.validation import BAND, PSNR_NAME, validate, validation_set


def _identity():
    """An untrained network, which changes nothing."""
    return build_network(NetworkConfig(family="convolution", channels=(8, 8, 12)), seed=0)


def test_the_measures_are_those_of_the_evaluation_on_the_same_crop():
    generator = np.random.default_rng(0)
    low, normal = (generator.normal(40, sigma, (64, 96)) + np.cos(np.arange(96) / 2) * 30 for sigma in (60, 20))
    crop = tuple(torch.from_numpy(HURange().to_unit(image))[None, None] for image in (low, normal))
    measures = validate(_identity(), [crop])
    whole = np.ones(normal.shape, dtype=bool)
    protocol = protocol_named(PSNR_NAME.removeprefix("psnr_db[").removesuffix("]"))
    assert measures[PSNR_NAME] == pytest.approx(psnr(normal, low, protocol=protocol), abs=1e-4)
    ratio, coherence = (f(normal, low, band=BAND, pixel_mm=1, roi=whole) for f in (band_energy_ratio, band_coherence))
    assert measures["hf_ratio"] == pytest.approx(ratio, rel=0.03)
    assert measures["hf_coherence"] == pytest.approx(coherence, abs=0.01)


def test_equal_images_have_no_error_all_the_energy_and_full_coherence():
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    measures = validate(_identity(), [(image, image.clone())])
    assert measures["rmse_hu"] == pytest.approx(0, abs=1e-3)
    assert measures["hf_ratio"] == pytest.approx(1)
    assert measures["hf_coherence"] == pytest.approx(1)


def test_the_validation_slices_are_the_same_each_time(pairs, tmp_path):
    first, second = (validation_set([pairs[2]], tmp_path, HURange()) for _ in range(2))
    assert torch.equal(first[0][0], second[0][0])
    assert first[0][0].shape == (1, 1, 96, 96)


def test_a_run_folder_tells_every_step_every_validation_and_has_the_best_weights_as_a_file(store, tiny_fit, tmp_path):
    result = tiny_fit(store, tmp_path / "run", steps=6, validate_every=2)
    losses = [json.loads(line) for line in (tmp_path / "run" / LOSSES).read_text().splitlines()]
    history = [json.loads(line) for line in (tmp_path / "run" / HISTORY).read_text().splitlines()]
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert history == result.history
    assert [row["loss"] for row in history] == pytest.approx([(losses[k]["loss"] + losses[k + 1]["loss"]) / 2 for k in (0, 2, 4)])
    assert history[-1]["seconds_left"] == 0
    assert set(history[0]) >= {"rmse_hu", PSNR_NAME, "hf_ratio", "hf_coherence", "lr"}
    weights = safetensors.torch.load_file(tmp_path / "run" / BEST)
    for name, value in result.network.state_dict().items():
        assert torch.equal(weights[name], value)
    with Image.open(tmp_path / "run" / CURVES) as picture:
        assert picture.size == (900, 600)


def test_the_curves_show_every_measure(tmp_path):
    names = ["loss", "rmse_hu", PSNR_NAME, "hf_ratio", "hf_coherence"]
    history = [{"step": step, **dict.fromkeys(names, 1.0 + step)} for step in (1, 2)]
    pictures = {}
    for changed in ["", *names]:
        draw_curves([history[0], {**history[1], changed: 9.0}], tmp_path / "curves.png")
        pictures[changed] = (tmp_path / "curves.png").read_bytes()
    assert len(set(pictures.values())) == 6


def test_bfloat16_trains_to_nearly_the_same_loss_but_not_the_same(store, tiny_fit, tmp_path):
    losses = {}
    for bf16 in (False, True):
        tiny_fit(store, tmp_path / str(bf16), steps=3, bf16=bf16)
        losses[bf16] = [json.loads(line)["loss"] for line in (tmp_path / str(bf16) / LOSSES).read_text().splitlines()]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    assert losses[True] != losses[False]


def test_tensorboard_that_is_not_installed_is_one_line(store, tiny_fit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        tiny_fit(store, tmp_path / "run", steps=2, tensorboard=True)
