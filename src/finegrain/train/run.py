"""One training run from a YAML file: pairs → network → model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finegrain.config import TrainingRun, load_config
from finegrain.networks.checkpoint import save_model
from finegrain.networks.skeleton import build_network
from finegrain.pairs.build import pairs_of_run
from finegrain.provenance import write_provenance
from finegrain.train.describe import card_of_run
from finegrain.train.loop import check_run_folder, fit
from finegrain.train.ranks import joined_ranks


def run_training(
    config_file: Path,
    out: Path,
    *,
    data_root: Path,
    workers: int,
    pairs_progress: Callable[[int, int], None],
    train_progress: Callable[[int, int, str], None],
) -> Path:
    """Do a training run in `out`; gives the model folder `out/<name>`. A run that was stopped goes on; torchrun may start it.

    Raises: FinegrainError, and leaves the folder as it is, if it holds a run of another configuration.
    """
    config = load_config(config_file, TrainingRun)
    network = build_network(config.network, seed=config.train.seed)  # first: what cannot be built fails before the simulation
    with joined_ranks(config.train.device) as ranks:
        if not ranks.is_first:
            ranks.wait()  # until the first process has made the pairs, which are then found
        pairs, store = pairs_of_run(config, out, data_root=data_root, workers=workers, progress=pairs_progress)
        if ranks.is_first:
            ranks.wait()
        check_run_folder(out, pairs, network=config.network, train=config.train, loss=config.loss)
        if ranks.is_first:
            write_provenance(out, config)
        result = fit(
            network,
            pairs,
            store,
            train=config.train,
            loss=config.loss,
            run_folder=out,
            progress=lambda step, row: train_progress(
                step, config.train.steps, f"(validation RMSE {row['rmse_hu']:.2f} HU)" if row else ""
            ),
        )
        folder = out / config.name
        card = card_of_run(config, result, pairs, store)  # by every process alike
        if ranks.is_first:
            save_model(result.network, folder, card)
    return folder
