"""The networks of others are what their papers say, and the trainer of finegrain trains them."""

import pytest
import torch

from finegrain.config import LossConfig, TrainConfig
from finegrain.hu import HURange
from finegrain.networks import peers
from finegrain.networks.blocks import parameter_count
from finegrain.networks.skeleton import count_macs
from finegrain.train.loop import fit

NARROW = {"RED-CNN": (8,), "ResNet": (16, 2), "CTformer": (8, 16)}


def _image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _settings(steps):
    return TrainConfig(
        steps=steps,
        batch=2,
        patch=64,
        warmup=0,
        learning_rate=1e-3,
        validate_every=steps,
        checkpoint_every=1,
        threads=1,
        device="cpu",
    )


def test_parameters_and_multiplications_are_those_that_are_published():
    networks = {name: factory() for name, factory in peers.PEERS.items()}
    assert parameter_count(networks["RED-CNN"]) == 1_848_865
    assert parameter_count(networks["ResNet"]) == 1_843_329
    dead = 64 + 64 * 1000 + 1000  # the token and the classifier of 1000 classes that the authors' program carries along
    assert parameter_count(networks["CTformer"]) + dead == 1_447_477
    assert count_macs(networks["RED-CNN"], size=512) / 1e9 == pytest.approx(458, abs=0.5)
    assert count_macs(networks["ResNet"], size=512) / 1e9 == pytest.approx(481, abs=0.5)


KNOWN = {
    "RED-CNN": (0.2, [0.69868, 1.15299, 0.187152, 1.178592, 0.83373]),
    "ResNet": (0.5, [0.431063, 0.791408, -0.21542, 0.638202, 0.402331]),
    "CTformer": (0.1, [0.392086, 0.965307, 1.020911, 1.007663, 0.57073]),
}
"""Size of the weights, and five pixels of what other programs compute with them in float64: ldct-benchmark 0.0.15, whose RED-CNN
wants a last ReLU, and the authors' CTformer (github.com/wdayang/CTformer), its dropout off."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_peer_computes_what_the_programs_of_others_compute(name):
    size, known = KNOWN[name]
    network = peers.build_peer(name, *NARROW[name], seed=0).eval()
    with torch.no_grad():
        for k, (key, weights) in enumerate(network.state_dict().items()):
            waves = (torch.arange(weights.numel()) * (1 + k / 7)).cos().view_as(weights)
            if key.endswith("running_var"):
                weights.copy_(10 + waves)
            else:
                weights.copy_(waves * (0.5 if key.endswith("directions") else size))
        image = (torch.arange(64 * 64) * 0.37).sin().view(1, 1, 64, 64) / 2 + 0.5
        output = network(image)[0, 0]
    assert [output[place].item() for place in ((0, 0), (5, 40), (31, 33), (62, 62), (63, 10))] == pytest.approx(known, abs=2e-5)


def test_random_features_of_long_vectors_neither_overflow_nor_vanish():
    """A training at a high rate makes vectors long; the quotient stays that of the definition."""
    stage = peers.LinearAttentionStage(49, 576)
    generator = torch.Generator().manual_seed(0)
    query, key = 20 * torch.randn(2, 1, 9, 576, generator=generator) / 24 + 8 * stage.directions[0] / stage.directions[0].norm()
    value = torch.randn(1, 9, 576, generator=generator)
    directions = stage.directions.double()
    phi_query, phi_key = (
        torch.exp(torch.einsum("bnc,fc->bnf", each.double(), directions) - each.double().square().sum(2, keepdim=True) / 2)
        for each in (query, key)
    )
    weight = torch.einsum("bnf,bmf->bnm", phi_query, phi_key)
    expected = torch.einsum("bnm,bmc->bnc", weight / weight.sum(2, keepdim=True), value.double())
    torch.testing.assert_close(stage.attend(query, key, value).double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NARROW)
def test_gradients_reach_every_parameter(name):
    network = peers.build_peer(name, *NARROW[name], seed=0).eval()  # in training a batch norm takes away what a bias before it adds
    network(_image(1, 1, 64, 64)).square().sum().backward()
    assert [key for key, value in network.named_parameters() if not value.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", NARROW)
def test_what_is_known_of_the_scan_changes_nothing(name):
    network = peers.build_peer(name, *NARROW[name], seed=0).eval()
    image = _image(2, 1, 64, 64)
    assert torch.equal(network(image, torch.ones(2, 4)), network(image))
    assert network.hu_range == HURange()


@pytest.mark.parametrize("name", NARROW)
def test_the_seed_alone_decides_the_first_weights(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (peers.build_peer(name, *NARROW[name], seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "reach"), [("RED-CNN", 40), ("ResNet", 9)])
def test_a_convolutional_peer_gives_a_crop_what_it_gives_the_whole(name, reach):
    network = peers.build_peer(name, *NARROW[name], seed=0).eval()
    image = _image(1, 1, 123, 134)
    with torch.no_grad():
        whole, crop = network(image), network(image[..., 3:106, 7:112])
    inside = slice(reach, -reach)
    torch.testing.assert_close(crop[..., inside, inside], whole[..., 3:106, 7:112][..., inside, inside], rtol=0, atol=1e-5)
    assert (whole - image).std() > 1e-3


@pytest.fixture
def ctformer():
    return peers.build_peer("CTformer", *NARROW["CTformer"], seed=0).eval()


def test_ctformer_gives_a_crop_what_it_gives_the_whole_one_tile_inside(ctformer):
    image = _image(2, 1, 150, 193)
    with torch.no_grad():
        whole, crop = ctformer(image), ctformer(image[..., 32:140, 64:180])
    torch.testing.assert_close(crop[..., 32:64, 32:96], whole[..., 64:96, 96:160], rtol=0, atol=1e-5)
    assert (whole - image).std() > 1e-3


def test_no_patch_border_lies_within_16_pixels_of_what_ctformer_keeps(ctformer):
    # The last pixel of one tile and the first of the next: a seam would be between them. Splits of 7 pixels in steps of 2 do not
    # reach the last row and column of a patch.
    for place, seen in ((63, range(16, 79)), (64, range(48, 111))):
        image = _image(1, 1, 128, 128).requires_grad_()
        ctformer(image)[0, 0, place, place].backward()
        for axis in (0, 1):
            touched = image.grad[0, 0].ne(0).any(dim=axis).nonzero().flatten()
            assert touched.tolist() == list(seen)


def test_ctformer_denoises_each_image_of_a_batch_as_if_it_were_alone(ctformer):
    images = _image(3, 1, 70, 96)
    with torch.no_grad():
        alone = torch.cat([ctformer(image[None]) for image in images])
        torch.testing.assert_close(ctformer(images), alone, rtol=0, atol=1e-5)


def test_ctformer_sees_a_training_patch_whole(ctformer):
    image = _image(1, 1, 64, 64).requires_grad_()
    ctformer(image)[0, 0, 0, 0].backward()
    assert image.grad[..., :63, :63].ne(0).all()


def test_linear_attention_is_attention_with_weights_that_sum_to_one():
    stage = peers.LinearAttentionStage(6, 8)
    query, key, value = (_image(2, 30, 8, seed=seed) for seed in range(3))
    with torch.no_grad():
        weights = stage.exponents(query).exp() @ stage.exponents(key).exp().transpose(1, 2)
        dense = weights / weights.sum(2, keepdim=True) @ value
        torch.testing.assert_close(stage.attend(query, key, value), dense)
    assert weights.min() > 0


def test_random_features_of_opposite_vectors_have_exactly_the_product_they_stand_for():
    stage, vectors = peers.LinearAttentionStage(6, 8), _image(1, 5, 8)
    products = (stage.exponents(vectors) + stage.exponents(-vectors)).exp().mean(-1)
    torch.testing.assert_close(products, torch.exp(-vectors.square().sum(-1)))


@pytest.mark.parametrize("name", NARROW)
def test_the_trainer_trains_a_peer_and_goes_on_to_the_same_bits(pairs, store, tmp_path, name):
    settings = _settings(steps=3)

    class Stopped(Exception):
        pass

    def stop(step, _):
        if step == 2:
            raise Stopped

    def run(folder, progress=None):
        network = peers.build_peer(name, *NARROW[name], seed=0)
        return fit(network, pairs, store, train=settings, loss=LossConfig(), run_folder=tmp_path / folder, progress=progress)

    start = peers.build_peer(name, *NARROW[name], seed=0).state_dict()
    whole = run("whole").network.state_dict()
    with pytest.raises(Stopped):
        run("broken", stop)
    resumed = run("broken").network.state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not any(torch.equal(whole[key], start[key]) for key, _ in peers.PEERS[name](*NARROW[name]).named_parameters())


def test_the_network_that_is_kept_has_the_batch_statistics_of_the_training(pairs, store, tmp_path):
    network = peers.build_peer("ResNet", *NARROW["ResNet"], seed=0)
    kept = fit(network, pairs, store, train=_settings(steps=2), loss=LossConfig(), run_folder=tmp_path / "run").network
    for name, value in network.named_buffers():
        assert torch.equal(dict(kept.named_buffers())[name], value.cpu())
