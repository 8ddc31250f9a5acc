"""Equal terms: one skeleton, matched parameters, none of them dead; whole slices as tiles; ONNX as torch."""

import json

import numpy as np
import pytest
import torch

from finegrain.config import NetworkConfig
from finegrain.denoise import Denoiser, load_denoiser, onnx_engine, torch_engine
from finegrain.errors import ModelError
from finegrain.hu import HURange
from finegrain.networks.blocks import (
    MARGIN,
    NOISE_CHANNELS,
    WINDOW,
    WindowAttention,
    key_windows,
    parameter_count,
    query_windows,
)
from finegrain.networks.card import ModelCard
from finegrain.networks.checkpoint import load_network, save_model
from finegrain.networks.skeleton import STRIDE, build_network, count_macs

FAMILIES = ("convolution", "attention", "hybrid")
SMALL = NetworkConfig(channels=(8, 16, 16), blocks=(1, 1, 1), heads=(2, 2))


def _awake(family, seed=0, config=SMALL):
    """A network whose last layer and temperatures are not zero, as after some training."""
    network = build_network(config.model_copy(update={"family": family}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(network.head[-1].weight, std=0.05, generator=generator)
    for name, parameter in network.named_parameters():
        if "temperature.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def _image(rows, columns, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(40, 30, size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("config", [SMALL, NetworkConfig()])
def test_the_families_have_the_same_number_of_parameters_within_two_percent(config):
    counts = [parameter_count(build_network(config.model_copy(update={"family": f}), seed=0)) for f in FAMILIES]
    assert max(counts) <= 1.02 * min(counts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_size_fits_a_cpu(family):
    network = build_network(NetworkConfig(family=family), seed=0)
    assert parameter_count(network) <= 150_000
    assert count_macs(network, size=512) <= 12e9


def test_macs_of_the_convolution_family_are_those_of_pencil_and_paper():
    network = build_network(SMALL.model_copy(update={"family": "convolution"}), seed=0)
    pixels, half, quarter = 64 * 64, 32 * 32, 16 * 16
    expected = pixels * (9 * 8 + 9 * 8 * 8 + 9 * 8)  # stem, head
    expected += half * (4 * 8 * 16 + 2 * 2 * 9 * 16 * 16 + 4 * 16 * 8)  # down, two blocks, up
    expected += quarter * (4 * 16 * 16 + 2 * 9 * 16 * 16 + 4 * 16 * 16)
    assert count_macs(network, size=64) == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_receives_gradient(family):
    network = _awake(family)
    image = torch.from_numpy(HURange().to_unit(_image(64, 64)))[None, None]
    network(image).square().sum().backward()
    dead = [name for name, parameter in network.named_parameters() if parameter.grad is None or parameter.grad.abs().max() == 0]
    assert dead == []


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_network_changes_nothing(family):
    image = torch.rand(1, 1, 64, 96)
    assert torch.equal(build_network(SMALL.model_copy(update={"family": family}), seed=3)(image), image)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_in_tiles_equals_the_whole_slice_away_from_borders(family):
    network = torch_engine(_awake(family))
    unit = HURange().to_unit(_image(256, 256))[None, None]
    whole = network(unit)[0, 0, 96:160, 96:160]
    tile = network(unit[..., STRIDE:-STRIDE, STRIDE:-STRIDE])[0, 0, 64:128, 64:128]
    assert np.abs(whole - tile).max() * HURange().span < 0.1


def test_key_windows_are_the_queries_with_a_margin():
    image = torch.arange(16 * 24 * 3, dtype=torch.float32).reshape(1, 16, 24, 3)
    padded = torch.nn.functional.pad(image, (0, 0, *(MARGIN,) * 4))
    side = WINDOW + 2 * MARGIN
    windows = key_windows(padded).reshape(2, 3, side, side, 3)
    for row in range(2):
        for column in range(3):
            expected = padded[0, row * WINDOW : row * WINDOW + side, column * WINDOW : column * WINDOW + side]
            assert torch.equal(windows[row, column], expected)
    inner = windows[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(6, WINDOW * WINDOW, 3)
    assert torch.equal(query_windows(image), inner)


def test_attention_is_the_softmax_over_the_keys_that_lie_inside_the_image():
    rows, columns, channels, heads = 2 * WINDOW, 3 * WINDOW, 6, 2
    torch.manual_seed(0)
    attention = WindowAttention(channels, heads)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features, noise = torch.randn(1, channels, rows, columns), torch.randn(1, NOISE_CHANNELS, rows, columns)
    query, key, value = attention.query_key_value(features)[0].unflatten(0, (3, heads, channels // heads))
    heat = torch.exp(attention.temperature(noise))[0] / (channels // heads) ** 0.5
    bias = attention.position_bias.reshape(heads, *(2 * (2 * (WINDOW + MARGIN) - 1,)))
    mixed = torch.zeros(heads, channels // heads, rows, columns)
    for y in range(rows):
        for x in range(columns):
            top, left = y // WINDOW * WINDOW - MARGIN, x // WINDOW * WINDOW - MARGIN
            inside = [
                (row, column)
                for row in range(max(top, 0), min(top + WINDOW + 2 * MARGIN, rows))
                for column in range(max(left, 0), min(left + WINDOW + 2 * MARGIN, columns))
            ]
            r, c = torch.tensor(inside).T
            for head in range(heads):
                logits = heat[head, y, x] * (query[head, :, y, x] @ key[head][:, r, c])
                reach = WINDOW + MARGIN - 1
                weights = torch.softmax(logits + bias[head, r - y + reach, c - x + reach], dim=0)
                mixed[head, :, y, x] = value[head][:, r, c] @ weights
    expected = attention.project(mixed.reshape(1, channels, rows, columns))
    torch.testing.assert_close(attention(features, noise), expected, atol=1e-4, rtol=1e-4)


def _card(network):
    return ModelCard(
        name="test",
        version="0",
        network=network.config,
        parameters=parameter_count(network),
        hu_range=(-1024, 3071),
        stride=STRIDE,
        training_data="none",
        dose_fractions=(0.25,),
        kernels=("B30f",),
        pixel_mm=(0.7, 0.7),
        intended_use="tests",
        training_config="",
        steps=0,
        sha256={},
    )


def test_a_model_folder_gives_the_same_network_to_torch_and_to_onnx(tmp_path):
    network = _awake("hybrid")
    save_model(network, tmp_path / "model", _card(network))
    hu = _image(130, 67)
    expected = Denoiser(torch_engine(network), hu_range=HURange(), stride=STRIDE).denoise_slice(hu)
    again = Denoiser(torch_engine(load_network(tmp_path / "model")), hu_range=HURange(), stride=STRIDE).denoise_slice(hu)
    np.testing.assert_array_equal(again, expected)
    by_onnx = load_denoiser(tmp_path / "model", threads=1).denoise_slice(hu)
    assert np.abs(by_onnx - expected).max() <= 0.05
    assert np.abs(expected - hu).max() > 1

    card = tmp_path / "model" / "model.json"
    text = card.read_text()
    (tmp_path / "model" / "model.onnx").write_bytes(b"not the model")
    with pytest.raises(ModelError, match="altered"):
        load_denoiser(tmp_path / "model")
    card.write_text(json.dumps({**json.loads(text), "sha256": {"../model.onnx": "0", "model.onnx": "0"}}))
    with pytest.raises(ModelError, match="plain name"):
        load_denoiser(tmp_path / "model")
    card.write_text(text.replace('"stride"', '"strode"'))
    with pytest.raises(ModelError, match="stride"):
        load_denoiser(tmp_path / "model")
    (tmp_path / "broken.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="ONNX Runtime"):
        onnx_engine(tmp_path / "broken.onnx")
