"""Several processes train as one does."""

import json
import signal
from typing import get_args

import pytest
import torch

from finegrain.config import LossConfig
from finegrain.errors import ConfigError
from finegrain.train.loss import DualDomainLoss
from finegrain.train.ranks import Ranks, joined_ranks
from finegrain.train.stopping import Stopped


def _losses(run):
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]


def test_two_processes_have_the_losses_of_one_and_go_on_from_its_checkpoint(store, tiny_fit, start, tmp_path):
    settings = {"steps": 8, "batch": 4, "validate_every": 4}
    tiny_fit(store, tmp_path / "one", **settings)
    with pytest.raises(Stopped):
        stop = lambda done, _: signal.raise_signal(signal.SIGTERM) if done == 3 else None  # noqa: E731
        tiny_fit(store, tmp_path / "two", **settings, progress=stop)
    _, said = (process := start(tmp_path / "two", processes=2, **settings)).communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Warning" not in said
    assert len(_losses(tmp_path / "two")) == 8
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-6)
    assert _losses(tmp_path / "two") != _losses(tmp_path / "one")  # else nothing was added up in another order: one process alone


@pytest.mark.parametrize("mode", get_args(LossConfig.model_fields["mode"].annotation))
def test_the_mean_of_the_losses_of_the_parts_is_that_of_the_batch(mode):
    targets = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    inputs, outputs = (targets + 0.01 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(k)) for k in (1, 2))

    def loss(rank, world):
        criterion = DualDomainLoss(LossConfig(weight=1.0, mode=mode), torch.Generator().manual_seed(0))
        part = Ranks(rank, world, torch.device("cpu")).part
        return criterion(outputs[part], targets[part], inputs[part]).item()

    assert (loss(0, 2) + loss(1, 2)) / 2 == pytest.approx(loss(0, 1), rel=1e-6)


def test_the_parts_of_a_batch_are_the_batch():
    batch = torch.arange(6.0)
    parts = [batch[Ranks(rank, 3, torch.device("cpu")).part] for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == batch.tolist()
    assert {len(part) for part in parts} == {2}


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ConfigError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        Ranks(0, 3, torch.device("cpu")).shared(4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match="PyTorch finds no GPU here"), joined_ranks("cuda"):
        pass
