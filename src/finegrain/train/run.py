"""One training run from a YAML file: pairs → network → model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finegrain import __version__
from finegrain.config import TrainingRun, load_config
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import ModelCard
from finegrain.networks.checkpoint import save_model
from finegrain.networks.skeleton import STRIDE, build_network
from finegrain.pairs.build import pairs_of_run
from finegrain.pairs.manifest import Pair
from finegrain.provenance import write_provenance
from finegrain.train.loop import FitResult, check_run_folder, fit
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
        if ranks.is_first:
            save_model(result.network, folder, _card(config, result, [pair for pair in pairs if pair.split == "train"]))
    return folder


def _card(config: TrainingRun, result: FitResult, trained_on: list[Pair]) -> ModelCard:
    """What the model folder says of itself."""
    best = next(row for row in result.history if row["step"] == result.best_step)
    return ModelCard(
        name=config.name,
        version=__version__,
        network=config.network,
        parameters=parameter_count(result.network),
        hu_range=(result.network.hu_range.low, result.network.hu_range.high),
        stride=STRIDE,
        training_data=config.training_data,
        dose_fractions=tuple(sorted({pair.dose_fraction for pair in trained_on if pair.dose_fraction})),
        kernels=tuple(sorted({pair.kernel for pair in trained_on if pair.kernel})),
        pixel_mm=(min(pair.pixel_mm for pair in trained_on), max(pair.pixel_mm for pair in trained_on)),
        intended_use=config.intended_use,
        training_config=config.hash(),
        steps=result.best_step,
        metrics={"validation_rmse_hu": round(best["rmse_hu"], 3)},
        sha256={},
    )
