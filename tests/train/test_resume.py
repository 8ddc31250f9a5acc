"""A run that is killed, told to stop or out of disk goes on as if nothing had happened: every loss to its last bit."""

import json
import random
import resource
import signal
import threading
import time

import numpy as np
import pytest
import torch

from finegrain.errors import DataError
from finegrain.train.stopping import Stopped

STEPS = 36


def _lines(run):
    path = run / "losses.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _wait_for(run, lines, process):
    while _lines(run) < lines:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def _weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["parts"]


def _assert_same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            _assert_same(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def test_killed_at_a_random_moment_and_stopped_by_a_signal_a_run_has_the_losses_of_one_that_was_left_alone(
    store, tiny_fit, start, tmp_path
):
    tiny_fit(store, tmp_path / "whole")
    chance = random.Random()  # not seeded: every moment must do
    run = tmp_path / "broken"
    for ending, latest in ((signal.SIGKILL, STEPS // 3), (signal.SIGTERM, STEPS // 2)):
        process = start(run)
        _wait_for(run, chance.randint(min(_lines(run) + 1, latest), latest), process)
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
        if ending == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + signal.SIGTERM
            assert said.count("\n") == 1
            assert f"SIGTERM: saved step {_lines(run)} " in said
    tiny_fit(store, run)
    assert (run / "losses.jsonl").read_bytes() == (tmp_path / "whole" / "losses.jsonl").read_bytes()
    assert _lines(run) == STEPS
    _assert_same(_weights(run), _weights(tmp_path / "whole"))
    ours, theirs = (
        [
            {key: value for key, value in json.loads(line).items() if "seconds" not in key}
            for line in (folder / "history.jsonl").read_text().splitlines()
        ]
        for folder in (run, tmp_path / "whole")
    )
    assert ours == theirs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_at_hand_and_leaves_with_its_own_code(store, tiny_fit, tmp_path, capsys, number):
    run = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        tiny_fit(store, run, progress=_signal_at(3, number), checkpoint_every=1000)
    assert stopped.value.code == 128 + number
    assert capsys.readouterr().err.count("\n") == 1
    assert torch.load(run / "checkpoint.pt", weights_only=True)["course"]["step"] == _lines(run) == 4
    assert signal.getsignal(number) is before


def _signal_at(step, number):
    return lambda done, _: signal.raise_signal(number) if done == step else None


def test_a_run_in_another_thread_leaves_signals_alone(store, tiny_fit, tmp_path):
    thread = threading.Thread(target=tiny_fit, args=(store, tmp_path / "run"), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert _lines(tmp_path / "run") == 2


@pytest.mark.parametrize(("fills", "step"), [("losses.jsonl", 9), ("checkpoint.pt", 10)])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(store, tiny_fit, tmp_path, fills, step):
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        tiny_fit(store, run, progress=_signal_at(7, signal.SIGTERM))
    good = (run / "checkpoint.pt").read_bytes()
    words = rf"at step {step}: File too large; its checkpoint of step 8 is whole: make room"
    room = {"losses.jsonl": (run / "losses.jsonl").stat().st_size + 20, "checkpoint.pt": len(good) // 2}[fills]
    with _no_file_longer_than(room), pytest.raises(DataError, match=words) as full:
        tiny_fit(store, run)
    assert "\n" not in str(full.value)
    assert (run / "checkpoint.pt").read_bytes() == good
    assert not list(run.glob(".*tmp"))
    tiny_fit(store, run)
    tiny_fit(store, tmp_path / "whole")
    assert (run / "losses.jsonl").read_bytes() == (tmp_path / "whole" / "losses.jsonl").read_bytes()


class _no_file_longer_than:
    """To a program, a file that may not grow is a disk that is full."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_checkpoint_is_due_by_steps_or_by_time(store, tiny_fit, tmp_path):
    def saved(name, **settings):
        steps = []

        def look(step, _):
            path = tmp_path / name / "checkpoint.pt"
            steps.append(path.is_file() and torch.load(path, weights_only=True)["course"]["step"] == step)

        tiny_fit(store, tmp_path / name, progress=look, steps=7, validate_every=5, **settings)
        return [step for step, is_saved in enumerate(steps, start=1) if is_saved]

    assert saved("steps", checkpoint_every=3) == [3, 5, 6, 7]
    assert saved("time", checkpoint_every=1000, checkpoint_minutes=1e-9) == [1, 2, 3, 4, 5, 6, 7]


def test_a_finished_run_keeps_the_weights_that_did_best_and_gives_them_again(store, tiny_fit, tmp_path):
    run = tmp_path / "run"
    steps_to_go = []
    with pytest.raises(Stopped):
        tiny_fit(store, run, progress=_signal_at(STEPS // 2, signal.SIGTERM))
    on_the_way = (run / "checkpoint.pt").stat().st_size
    first = tiny_fit(store, run)
    assert list(_weights(run)) == ["best"]
    assert (run / "checkpoint.pt").stat().st_size < on_the_way / 3
    # The checkpoint alone is enough: all else may be lost.
    for path in run.iterdir():
        if path.name != "checkpoint.pt":
            path.unlink()
    again = tiny_fit(store, run, progress=lambda step, _: steps_to_go.append(step))
    assert steps_to_go == []
    assert (again.history, again.best_step) == (first.history, first.best_step)
    _assert_same(dict(again.network.state_dict()), dict(first.network.state_dict()))


def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(store, tiny_fit, tmp_path):
    run = tmp_path / "run"
    tiny_fit(store, run, steps=2)
    whole = (run / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (run / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged; remove it"):
            tiny_fit(store, run, steps=2)


def test_a_run_may_go_on_with_other_threads_and_checkpoints_but_not_with_another_learning_rate(store, tiny_fit, tmp_path):
    tiny_fit(store, tmp_path / "run", steps=2)
    tiny_fit(store, tmp_path / "run", steps=2, checkpoint_every=1, checkpoint_minutes=1)
    with pytest.raises(DataError, match="another configuration"):
        tiny_fit(store, tmp_path / "run", steps=2, learning_rate=1e-3)


def test_training_leaves_the_global_random_states_alone_so_that_none_is_missing_in_a_checkpoint(store, tiny_fit, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    tiny_fit(store, tmp_path / "run", steps=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
