"""The learning rate of one network of a study, chosen on its validation pairs alone: the runs of docs/lab/004.

Run: python benchmarks/rates.py STUDY.yaml ARM --data-root DATA --work WORK --rates 0.0001 0.0004 0.001 [--steps 600]
DATA holds the study's pairs, or the store that it names. Each rate is a short training of the arm's first seed, in a folder of its
own in WORK, where one that was stopped goes on; prints the trainer's measures on the validation pairs after the last step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finegrain.config import Arm, ClassicalArm, LossConfig, StudyConfig, load_config
from finegrain.files import slug
from finegrain.study.methods import all_methods, untrained
from finegrain.study.run import test_sets
from finegrain.train.loop import fit

COLUMNS = {"rmse_hu": "RMSE, HU", "psnr_db[abdomen-40/400]": "PSNR abdomen-40/400, dB", "hf_coherence": "coherence"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path)
    parser.add_argument("arm")
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    config = load_config(given.study, StudyConfig)
    trained = {method.arm.name: method for method in reversed(all_methods(config)) if not isinstance(method.arm, ClassicalArm)}
    if given.arm not in trained:
        parser.error(f"expected one of {'; '.join(reversed(trained))}, got {given.arm!r}")
    method = trained[given.arm]
    loss = method.arm.loss if isinstance(method.arm, Arm) else LossConfig()
    pairs = test_sets(config, given.work, data_root=given.data_root, jobs=1, progress=lambda *_: None)[0]
    print(f"{method.label}, {given.steps} steps\n{'peak rate':>12}" + "".join(f"{name:>26}" for name in COLUMNS.values()))
    for rate in given.rates:
        short = {"steps": given.steps, "warmup": given.steps // 6, "ema": 0.995, "validate_every": given.steps}
        train = config.train.model_copy(update={"seed": method.seed, "learning_rate": rate, **short})
        folder = given.work / f"{slug(given.arm)}-{rate:g}-{given.steps}"
        result = fit(untrained(config, method), list(pairs.pairs), pairs.folder, train=train, loss=loss, run_folder=folder)
        print(f"{rate:12g}" + "".join(f"{result.history[-1][key]:26.3f}" for key in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
