from pathlib import Path

import pytest

from finegrain.config import (
    LossConfig,
    NetworkConfig,
    PairsConfig,
    StudyConfig,
    TrainConfig,
    TrainingRun,
    load_config,
    save_config,
)
from finegrain.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = {"train": TrainingRun, "study": StudyConfig, "pairs": PairsConfig}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_survives_a_round_trip(path, tmp_path):
    kind = KINDS[path.name.split("-")[0]]
    config = load_config(path, kind)
    save_config(config, tmp_path / "again.yaml")
    again = load_config(tmp_path / "again.yaml", kind)
    assert again == config
    assert again.hash() == config.hash()


def test_the_hash_changes_with_any_value():
    assert LossConfig().hash() != LossConfig(weight=0.1).hash()


def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("pairs: {sources: [{kind: phantom}], dose_fraction: [0.25]}")
    with pytest.raises(ConfigError, match=r"'pairs\.dose_fraction'; the nearest known key is 'dose_fractions'"):
        load_config(path, StudyConfig)


PHANTOM = {"sources": [{"kind": "phantom"}]}
BLOCKS_OF_32 = {"name": "a", "family": "hybrid", "loss": {"weight": 0.1, "dct_block": 32}}


def _study(**changes):
    return StudyConfig.model_validate({"pairs": PHANTOM, **changes})


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PairsConfig(sources=()), "at least 1"),
        (lambda: PairsConfig(sources=({"kind": "phantom"},), dose_fractions=(1.0,)), "dose_fractions"),
        (lambda: PairsConfig(sources=({"kind": "phantom"},), test_fraction=0.7, validation_fraction=0.3), "no patient"),
        (lambda: NetworkConfig(channels=(8, 15, 32)), "do not divide"),
        (lambda: NetworkConfig(heads=(0, 3)), "at least 1"),
        (lambda: NetworkConfig(channels=(0, 32, 48)), "at least 1"),
        (lambda: LossConfig(band=(1.3, 1.5)), "no coefficient"),
        (lambda: TrainConfig(doses=(0.5, 0.2)), "lowest and a highest"),
        (lambda: LossConfig(band=(0.6, 0.4)), "low < high"),
        (lambda: _study(band=(1.3, 1.5)), "no coefficient"),
        (lambda: _study(protocols=()), "at least 1"),
        (lambda: _study(proposed="another"), "none of"),
        (lambda: _study(arms=({"name": "A", "family": "hybrid"}, {"name": "a!", "family": "hybrid"}), proposed="A"), "file name"),
        (lambda: _study(arms=({"name": "·", "family": "hybrid"},), proposed="·"), "no file name"),
        (lambda: _study(train={"patch": 32}, arms=(BLOCKS_OF_32,), proposed="a"), "no whole block"),
        (lambda: TrainingRun(name="a", pairs=PHANTOM, train={"patch": 32}, loss=BLOCKS_OF_32["loss"]), "no whole block"),
    ],
)
def test_impossible_combinations_are_refused_when_made(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_a_band_without_coefficients_is_one_line_that_names_the_place(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("pairs: {sources: [{kind: phantom}]}\narms: [{name: a, family: hybrid, loss: {band: [1.3, 1.5]}}]\nproposed: a")
    with pytest.raises(ConfigError, match=r"study\.yaml: arms\.0\.network\.loss: .*no coefficient") as caught:
        load_config(path, StudyConfig)
    assert len(str(caught.value).splitlines()) == 1
