"""A store with two training pairs and one for validation, and a tiny run on it, here or as a program."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finegrain.pairs.manifest import Pair
from finegrain.pairs.store import Made, put_task

PROGRAM = Path(__file__).with_name("tiny_run.py")


@pytest.fixture
def pairs(tmp_path):
    generator = np.random.default_rng(0)
    made = []
    for number, split in enumerate(["train", "train", "validation"]):
        clean = 40 + 60 * np.sign(np.sin(np.arange(96) / 7 + number))[None, :] * np.ones((96, 1))
        images = np.round(np.stack([clean + generator.normal(0, 40, clean.shape), clean])).astype(np.int16)
        key = f"pair{number}"
        pair = Pair(key=key, patient=f"p{number}", split=split, pixel_mm=0.7, kernel="B30f", dose_fraction=0.25)
        made += put_task(tmp_path, key, [images], Made([pair])).pairs
    return made


@pytest.fixture
def store(pairs, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([pair.model_dump(mode="json") for pair in pairs]))
    return tmp_path


@pytest.fixture
def tiny_fit():
    spec = importlib.util.spec_from_file_location("tiny_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_fit


@pytest.fixture
def start(store):
    """Start the tiny run as a program: `start(run_folder, processes=2, steps=6)`; what a test leaves running is killed."""
    started = []

    def start(run_folder, *, processes=None, **settings):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [
            sys.executable,
            *(torchrun if processes else []),
            str(PROGRAM),
            str(store),
            str(run_folder),
            json.dumps(settings),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
