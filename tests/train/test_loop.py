"""Training learns, resumes to the bit, and stops at a NaN with the batch kept."""

import json

import numpy as np
import pytest
import torch

from finegrain.config import LossConfig, NetworkConfig, TrainConfig
from finegrain.errors import DataError
from finegrain.hu import HURange
from finegrain.networks.skeleton import build_network
from finegrain.pairs.dataset import PatchSampler
from finegrain.train.loop import batches_ahead, fit, schedule

NETWORK = NetworkConfig(family="hybrid", channels=(8, 24, 24), blocks=(1, 1, 1), heads=(2, 2))
TRAIN = TrainConfig(steps=12, batch=2, patch=32, warmup=2, validate_every=4, threads=1, learning_rate=2e-3)


def _fit(pairs, folder, run, *, steps=12, progress=None, **loss):
    return fit(
        build_network(NETWORK, seed=0),
        pairs,
        folder,
        train=TRAIN.model_copy(update={"steps": steps}),
        loss=LossConfig(**loss),
        run_folder=run,
        progress=progress,
    )


def test_a_few_steps_already_take_noise_out(pairs, tmp_path):
    result = _fit(pairs, tmp_path, tmp_path / "run", steps=60)
    errors = [row["rmse_hu"] for row in result.history]
    assert min(errors) < 30 < 40  # the input errs by 40 HU
    assert result.best_step == result.history[int(np.argmin(errors))]["step"]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(pairs, tmp_path):
    whole = _fit(pairs, tmp_path, tmp_path / "whole", weight=0.1)

    class Stopped(Exception):
        pass

    def stop(step, _):
        if step == 7:
            raise Stopped

    with pytest.raises(Stopped):
        _fit(pairs, tmp_path, tmp_path / "broken", weight=0.1, progress=stop)
    resumed = _fit(pairs, tmp_path, tmp_path / "broken", weight=0.1)
    for ours, theirs in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_a_finished_run_is_not_trained_again(pairs, tmp_path):
    first = _fit(pairs, tmp_path, tmp_path / "run")
    steps = []
    again = _fit(pairs, tmp_path, tmp_path / "run", progress=lambda step, _: steps.append(step))
    assert steps == []
    assert again.history == first.history
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])["step"] == 12


@pytest.mark.parametrize(
    "change",
    [
        {"loss": {"weight": 0.1}},
        {"steps": 24},
        {"doses": (0.1, 0.5)},
        {"network": NETWORK.model_copy(update={"blocks": (1, 1, 2)})},
        {"other_pixels": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_of_another_configuration_is_refused_and_left_as_it_is(pairs, tmp_path, change):
    _fit(pairs, tmp_path, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    if change.get("other_pixels"):
        pairs = [pairs[0].model_copy(update={"sha256": "0"}), *pairs[1:]]
    with pytest.raises(DataError, match="training of another configuration; give another folder with --out or remove"):
        fit(
            build_network(change.get("network", NETWORK), seed=0),
            pairs,
            tmp_path,
            train=TRAIN.model_copy(update={key: change[key] for key in ("steps", "doses") if key in change}),
            loss=LossConfig(**change.get("loss", {})),
            run_folder=tmp_path / "run",
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_other_test_pairs_do_not_hinder_a_run_from_going_on(pairs, tmp_path):
    first = _fit(pairs, tmp_path, tmp_path / "run")
    again = _fit(
        [*pairs, pairs[0].model_copy(update={"key": "another", "split": "test", "sha256": "0"})], tmp_path, tmp_path / "run"
    )
    assert again.history == first.history


def test_a_nan_stops_the_run_and_keeps_its_batch(pairs, tmp_path):
    network = build_network(NETWORK, seed=0)
    with torch.no_grad():
        network.head[-1].bias.fill_(float("nan"))
    with pytest.raises(DataError, match="step 1"):
        fit(network, pairs, tmp_path, train=TRAIN, loss=LossConfig(), run_folder=tmp_path / "run")
    held = torch.load(tmp_path / "run" / "nan-batch.pt", weights_only=True)
    assert held["inputs"].shape == (2, 1, 32, 32)
    assert set(held["pairs"]) <= {"pair0", "pair1"}
    again = build_network(NETWORK, seed=1)
    again.load_state_dict(held["network"])
    assert not torch.isfinite(again(held["inputs"])).any()


def test_a_gradient_that_overflows_stops_the_run_before_it_reaches_the_weights(pairs, tmp_path):
    network = build_network(NETWORK, seed=0)
    network.head[-1].bias.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=r"step 1 has a loss of 0\.\d+ and a gradient of norm (inf|nan)"):
        fit(network, pairs, tmp_path, train=TRAIN, loss=LossConfig(), run_folder=tmp_path / "run")
    held = torch.load(tmp_path / "run" / "nan-batch.pt", weights_only=True)["network"]
    assert all(torch.equal(held[name], value) for name, value in before.items())


def test_batches_that_are_cut_ahead_are_those_of_their_steps(pairs, tmp_path):
    sampler = PatchSampler(pairs, tmp_path, patch=32, batch=4, hu_range=HURange(), seed=0)
    steps, part = range(3, 8), slice(1, None, 2)
    batches = list(batches_ahead(sampler, steps, part))
    assert len(batches) == len(steps)
    for step, batch in zip(steps, batches, strict=True):
        assert all(ours.equal(theirs) for ours, theirs in zip(batch, sampler.batch_at(step, part), strict=True))


def test_what_goes_wrong_ahead_is_told_at_its_step(pairs, tmp_path):
    sampler = PatchSampler(pairs, tmp_path, patch=32, batch=4, hu_range=HURange(), seed=0)
    batches = batches_ahead(sampler, range(9), slice(None))
    next(batches)
    sampler.batch_at = None
    with pytest.raises(TypeError):
        list(batches)


def test_training_needs_pairs_on_both_sides(pairs, tmp_path):
    with pytest.raises(DataError, match="no training pairs"):
        _fit(pairs[2:], tmp_path, tmp_path / "run")
    with pytest.raises(DataError, match="no validation pairs"):
        _fit(pairs[:2], tmp_path, tmp_path / "run")


def test_the_schedule_warms_up_and_decays():
    factors = [schedule(step, TRAIN.model_copy(update={"steps": 100, "warmup": 10})) for step in range(100)]
    assert factors[9] == 1
    assert np.all(np.diff(factors[:10]) > 0)
    assert np.all(np.diff(factors[10:]) < 0)
    assert factors[-1] < 0.02
