"""Equal terms: one skeleton, matched parameters, none of them dead; whole slices as tiles."""

import numpy as np
import pytest
import torch
from small_networks import FAMILIES, SMALL, awake

from finegrain.acquisition import Acquisition
from finegrain.config import NetworkConfig
from finegrain.denoise import torch_engine
from finegrain.hu import HURange
from finegrain.networks.blocks import (
    COARSE_MARGIN,
    CONTROL_CHANNELS,
    MARGIN,
    WINDOW,
    WindowAttention,
    key_windows,
    parameter_count,
    query_windows,
)
from finegrain.networks.skeleton import STRIDE, build_network, count_macs


def _image(rows, columns, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(40, 30, size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("config", [SMALL, NetworkConfig(size="s"), NetworkConfig(size="b")])
def test_the_families_have_the_same_number_of_parameters_within_two_percent(config):
    counts = [parameter_count(build_network(config.model_copy(update={"family": f}), seed=0)) for f in FAMILIES]
    assert max(counts) <= 1.02 * min(counts)


@pytest.mark.parametrize(("size", "least", "most", "macs"), [("s", 0, 150_000, 12e9), ("b", 1.1e6, 1.25e6, 60e9)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_are_what_they_are_said_to_be(family, size, least, most, macs):
    network = build_network(NetworkConfig(size=size, family=family), seed=0)
    assert least <= parameter_count(network) <= most
    assert count_macs(network, size=512) <= macs


def test_the_default_is_the_small_size_and_a_size_is_said_once():
    assert NetworkConfig() == NetworkConfig(size="s")
    assert NetworkConfig.model_validate(NetworkConfig(size="b").model_dump()) == NetworkConfig(size="b")
    with pytest.raises(ValueError, match="size s says channels already"):
        NetworkConfig(size="s", channels=(8, 16, 16))
    with pytest.raises(ValueError, match="unknown size 'x'; known are s, b"):
        NetworkConfig(size="x")


def test_macs_of_the_convolution_family_are_those_of_pencil_and_paper():
    network = build_network(SMALL.model_copy(update={"family": "convolution"}), seed=0)
    pixels, half, quarter = 64 * 64, 32 * 32, 16 * 16
    expected = pixels * (9 * 2 * 8 + 9 * 8 * 8 + 9 * 8)  # stem, head
    expected += half * (16 * 8 * 24 + 2 * 2 * 9 * 24 * 24 + 16 * 24 * 8)  # down, two blocks, up
    expected += quarter * (4 * 24 * 24 + 2 * 9 * 24 * 24 + 4 * 24 * 24)
    assert count_macs(network, size=64) == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_that_is_learned_receives_gradient(family):
    network = awake(family).double()
    image = torch.from_numpy(HURange().to_unit(_image(64, 64)))[None, None].double()
    network(image, torch.tensor([[1.0, -2.0, 1.0, 0.5]]).double()).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    # What cancels, as the bias of keys in a softmax does, leaves rounding errors.
    least = 1e-13 * max(gradient.abs().max() for gradient in gradients.values())
    assert {name: n for name, gradient in gradients.items() if (n := int((gradient.abs() <= least).sum()))} == {}


@pytest.mark.parametrize("family", ["attention", "hybrid"])
def test_what_is_known_of_the_scan_changes_the_answer(family):
    network = awake(family)
    image = torch.from_numpy(HURange().to_unit(_image(64, 64)))[None, None]
    answers = [network(image, torch.from_numpy(told.numbers()[None])) for told in (Acquisition(), Acquisition(0.25))]
    assert torch.equal(answers[0], network(image))
    assert not torch.equal(answers[0], answers[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_of_any_size_is_the_same_part_of_a_larger_one(family):
    network = awake(family)
    image = torch.from_numpy(HURange().to_unit(_image(130, 67)))[None, None]
    filled = torch.nn.functional.pad(image, (0, 29, 0, 30), mode="replicate")
    assert torch.equal(network(image), network(filled)[..., :130, :67])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_network_changes_nothing(family):
    image = torch.rand(1, 1, 64, 96)
    assert torch.equal(build_network(SMALL.model_copy(update={"family": family}), seed=3)(image), image)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_in_tiles_equals_the_whole_slice_away_from_borders(family):
    network, far = torch_engine(awake(family)), 160  # what the three blocks of SMALL reach is less: 133 pixels for the hybrid
    unit = HURange().to_unit(_image(64, 2 * far + 3 * STRIDE))[None, None]
    for image, axis in ((unit, 3), (unit.swapaxes(2, 3), 2)):
        whole, tile = network(image), network(image.take(range(STRIDE, image.shape[axis] - STRIDE), axis))
        difference = np.abs(whole.take(range(STRIDE, whole.shape[axis] - STRIDE), axis) - tile) * HURange().span
        assert difference.max() > 0.1
        assert difference.take(range(far, far + STRIDE), axis).max() < 0.01


@pytest.mark.parametrize(("window", "margin"), [(WINDOW, MARGIN), (WINDOW // 2, COARSE_MARGIN), (4, 4)])
def test_key_windows_are_windows_with_a_margin(window, margin):
    image = torch.arange(16 * 24 * 3, dtype=torch.float32).reshape(1, 16, 24, 3)
    padded = torch.nn.functional.pad(image, (0, 0, *(margin,) * 4))
    side = window + 2 * margin
    windows = key_windows(image, window=window, margin=margin).reshape(16 // window, 24 // window, side, side, 3)
    for row in range(16 // window):
        for column in range(24 // window):
            expected = padded[0, row * window : row * window + side, column * window : column * window + side]
            assert torch.equal(windows[row, column], expected)


def test_query_windows_are_the_key_windows_without_their_margin():
    image = torch.arange(16 * 24 * 3, dtype=torch.float32).reshape(1, 16, 24, 3)
    side = WINDOW + 2 * MARGIN
    windows = key_windows(image, window=WINDOW, margin=MARGIN).reshape(6, side, side, 3)
    assert torch.equal(query_windows(image), windows[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(6, WINDOW * WINDOW, 3))


def _inside(first, length, size):
    return [place for place in range(first, first + length) if 0 <= place < size]


def test_attention_is_one_softmax_over_the_fine_and_the_coarse_keys_that_lie_inside_the_image():
    rows, columns, channels, heads = 2 * WINDOW, 3 * WINDOW, 6, 2
    torch.manual_seed(0)
    attention = WindowAttention(channels, heads)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features, control = torch.randn(1, channels, rows, columns), torch.randn(1, CONTROL_CHANNELS, rows, columns)
    split = (2, heads, channels // heads)
    query = attention.query(features)[0].unflatten(0, split[1:])
    key, value = attention.key_value(features)[0].unflatten(0, split)
    coarse_key, coarse_value = attention.key_value(attention.soft_split(features))[0].unflatten(0, split)
    heat = torch.exp(attention.temperature(control))[0] / (channels // heads) ** 0.5
    bias, coarse_bias = attention.position_bias.bias, attention.coarse_position_bias.bias
    mixed = torch.zeros(heads, channels // heads, rows, columns)
    for y in range(rows):
        for x in range(columns):
            top, left = y // WINDOW * WINDOW, x // WINDOW * WINDOW
            side, coarse_side = WINDOW + 2 * MARGIN, WINDOW // 2 + 2 * COARSE_MARGIN
            near = [(r, c) for r in _inside(top - MARGIN, side, rows) for c in _inside(left - MARGIN, side, columns)]
            far = [
                (r, c)
                for r in _inside(top // 2 - COARSE_MARGIN, coarse_side, rows // 2)
                for c in _inside(left // 2 - COARSE_MARGIN, coarse_side, columns // 2)
            ]
            (r, c), (far_r, far_c) = torch.tensor(near).T, torch.tensor(far).T
            reach, coarse_reach = MARGIN + WINDOW - 1, 2 * COARSE_MARGIN + WINDOW - 1
            for head in range(heads):
                keys = torch.cat([key[head][:, r, c], coarse_key[head][:, far_r, far_c]], dim=1)
                values = torch.cat([value[head][:, r, c], coarse_value[head][:, far_r, far_c]], dim=1)
                place = bias[0, head, r - y + reach] + bias[1, head, c - x + reach]
                coarse_place = (
                    coarse_bias[0, head, 2 * far_r - y + coarse_reach] + coarse_bias[1, head, 2 * far_c - x + coarse_reach]
                )
                logits = heat[head, y, x] * (query[head, :, y, x] @ keys) + torch.cat([place, coarse_place])
                mixed[head, :, y, x] = values @ torch.softmax(logits, dim=0)
    expected = attention.project(mixed.reshape(1, channels, rows, columns))
    torch.testing.assert_close(attention(features, control), expected, atol=1e-4, rtol=1e-4)
