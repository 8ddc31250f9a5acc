"""A model folder: what was saved comes back, ONNX computes what torch does, nothing in it runs, and what is wrong is refused."""

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from small_networks import FAMILIES, awake

from finegrain.acquisition import Acquisition
from finegrain.cli import main
from finegrain.config import NetworkConfig
from finegrain.denoise import (
    BUNDLED,
    LARGEST_DIFFERENCE_HU,
    Denoiser,
    find_model,
    load_denoiser,
    onnx_engine,
    onnx_torch_difference_hu,
    torch_engine,
)
from finegrain.errors import ModelError
from finegrain.hu import HURange
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import FORMAT, BandGains, DoseGains, ModelCard, card_rows, read_card, write_card
from finegrain.networks.checkpoint import load_network, save_model
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork, build_network
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume

TOLD = Acquisition(dose_fraction=0.1, kernel_half_per_mm=0.3, pixel_mm=0.7)


def _gains(levels, *, of_output, dose_fraction=None):
    """Band gains as they stand on a card."""
    each = {"dose_fraction": dose_fraction, "of_output": of_output, "of_input": [[0] * len(row) for row in of_output]}
    return {"levels": levels, "gains": [each], "pairs": 1, "patients": 1, "data_sha256": "0" * 64}


def _card(network, **changes):
    fields = {
        "format": FORMAT,
        "name": "test",
        "version": "0",
        "network": network.config,
        "parameters": parameter_count(network),
        "hu_range": (-1024, 3071),
        "stride": STRIDE,
        "band_gains": None,
        "training_data": "none",
        "training_pairs": 1,
        "training_patients": 1,
        "data_sha256": "0" * 64,
        "dose_fractions": (0.1, 0.25),
        "kernels": ("B30f",),
        "pixel_mm": (0.7, 0.7),
        "slice_mm": None,
        "photons": None,
        "noise_hu": (10, 20),
        "training_config": {},
        "training_config_hash": "",
        "steps": 0,
        "versions": {},
        "metrics": {"rmse_hu": 1.0},
        "licence": "Apache-2.0",
        "intended_use": "tests",
        "limits": "all",
        "sha256": {},
    }
    return ModelCard(**(fields | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network of each family, and the folder that it was saved to."""
    root = tmp_path_factory.mktemp("models")
    networks = {family: awake(family) for family in FAMILIES}
    for family, network in networks.items():
        save_model(network, root / family, _card(network))
    return networks, root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the hybrid's model folder, to be damaged."""
    return Path(shutil.copytree(saved[1] / "hybrid", tmp_path / "model"))


@pytest.fixture(scope="module")
def slice_hu():
    return read_series(sample_folder()).hu[3]


def _change_card(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _replace(folder, name, content):
    """Put other content there, and its hash on the card, as someone who means harm would."""
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    _change_card(folder, sha256=json.loads((folder / "model.json").read_text())["sha256"] | {name: digest})


# --- what comes back


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_computes_what_torch_does_to_0_05_hu_on_a_real_slice(saved, slice_hu, family):
    networks, root = saved
    by_onnx = load_denoiser(root / family, threads=1)
    listens = family != "convolution"
    assert by_onnx.takes_acquisition == listens
    by_torch = Denoiser(torch_engine(networks[family]), hu_range=HURange(), stride=STRIDE, takes_acquisition=True)
    for told in (None, TOLD):
        expected = by_torch.denoise_slice(slice_hu, acquisition=told)
        assert np.abs(by_onnx.denoise_slice(slice_hu, acquisition=told) - expected).max() <= LARGEST_DIFFERENCE_HU
        assert np.abs(expected - slice_hu).max() > 10
    heard = by_onnx.denoise_slice(slice_hu, acquisition=TOLD) - by_onnx.denoise_slice(slice_hu)
    assert (np.abs(heard).max() > 0.1) == listens
    odd = slice_hu[100:230, 200:267]
    assert np.abs(by_onnx.denoise_slice(odd) - by_torch.denoise_slice(odd)).max() <= LARGEST_DIFFERENCE_HU


def test_the_weights_come_back_bit_for_bit_and_leave_chance_alone(saved):
    networks, root = saved
    before = torch.random.get_rng_state()
    again = load_network(root / "hybrid")
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in networks["hybrid"].state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert not again.training


def test_the_network_has_the_hu_range_of_its_card(folder):
    _change_card(folder, hu_range=[-1000, 2000])
    assert load_network(folder).hu_range == HURange(-1000, 2000)


def test_a_card_comes_back_as_it_was_written_and_every_fact_is_in_the_table(saved, tmp_path):
    table = ((1.0, 1.5),) * 8
    each = tuple(DoseGains(dose_fraction=dose, of_output=table, of_input=((0, 0.25),) * 8) for dose in (None, 0.25, 0.5))
    gains = BandGains(levels=((0.5, 2),) * 8, gains=each, pairs=2, patients=1, data_sha256="1" * 64)
    card = _card(saved[0]["hybrid"], band_gains=gains, metrics={"psnr": None, "hf_ratio": 0.875}, noise_hu=None)
    write_card(tmp_path, card.model_copy(update={"sha256": {"model.onnx": hashlib.sha256(b"").hexdigest()}}))
    (tmp_path / "model.onnx").touch()
    assert read_card(tmp_path).band_gains == gains
    table = dict(card_rows(read_card(tmp_path))[1:])
    assert table["validation hf_ratio"] == "0.875"
    assert table["validation psnr"] == table["noise of the input [HU]"] == "not known"
    assert "up to 1.50" in table["band gains"]


def test_other_files_in_the_folder_change_nothing(folder):
    (folder / "README.md").write_text("mine")
    (folder / "optimiser.pt").write_bytes(pickle.dumps("mine"))
    load_denoiser(folder)
    load_network(folder)


def test_saving_again_replaces_the_folder_whole(saved, folder):
    (folder / "left over").touch()
    network = awake("convolution")
    save_model(network, folder, _card(network, name="second"))
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx", "model.safetensors"]
    assert load_denoiser(folder).name == "second v0"
    assert list(folder.parent.iterdir()) == [folder]


# --- what is refused: the card


@pytest.mark.parametrize("name", ModelCard.model_fields)
def test_a_missing_field_is_refused_in_one_line_that_names_it(folder, name):
    path = folder / "model.json"
    fields = json.loads(path.read_text())
    del fields[name]
    path.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=rf"'{name}'") as refused:
        load_denoiser(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": 2}, "expected the field 'format' to be 1, got 2"),
        ({"format": "1"}, "format"),
        ({"format": True}, "expected the field 'format' to be 1, got True"),
        ({"smile": True}, "'smile' is not known"),
        ({"hu_range": [1, 1]}, "hu_range must be a rising pair"),
        ({"stride": 0}, "stride"),
        ({"stride": 10**7}, "stride"),
        ({"dose_fractions": [0.25, 0]}, "dose_fractions"),
        ({"sha256": {}}, "no sha256 of model.onnx"),
        ({"sha256": {"model.onnx": "0" * 63}}, "sha256.model.onnx"),
        ({"sha256": {"model.onnx": "0" * 64}}, "altered"),
        ({"sha256": {"../model.onnx": "0" * 64, "model.onnx": "0" * 64}}, "plain name"),
        ({"band_gains": _gains([[1]] * 8, of_output=[[9]] * 8)}, "gains"),
        ({"band_gains": _gains([[1]] * 8, of_output=[[1]] * 7)}, "each ring and level"),
        ({"band_gains": _gains([[2, 1]] * 8, of_output=[[1, 1]] * 8)}, "rise"),
        ({"band_gains": _gains([[1]] * 8, of_output=[[1]] * 8, dose_fraction=0.5)}, "dose_fraction null"),
        (
            {"band_gains": _gains([[1]] * 8, of_output=[[1]] * 8) | {"gains": _gains([], of_output=[[1]] * 8)["gains"] * 2}},
            "no other",
        ),
    ],
)
def test_a_card_that_cannot_be_true_is_refused_in_one_line(folder, changes, word):
    _change_card(folder, **changes)
    with pytest.raises(ModelError, match=word) as refused:
        load_denoiser(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"format": NaN}', b"\xff\xfe", pickle.dumps({"format": 1})])
def test_a_card_that_is_no_json_is_refused_in_one_line(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json") as refused:
        load_denoiser(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.json", "model.onnx", "model.safetensors"])
def test_a_missing_file_and_an_altered_one_are_refused_by_name(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=name):
        load_denoiser(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_denoiser(folder)


# --- what is refused: the other files, with the right hash on the card


class _Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_a_pickle_in_the_place_of_a_file_is_refused_and_never_run(folder, tmp_path, name, how):
    trace = tmp_path / "it ran"
    if how == "pickle":
        content = pickle.dumps(_Planted(trace))
        pickle.loads(content)
    else:
        torch.save({"weight": _Planted(trace)}, tmp_path / "planted")
        content = (tmp_path / "planted").read_bytes()
        torch.load(tmp_path / "planted", weights_only=False)
    assert trace.exists()  # it would
    trace.unlink()
    _replace(folder, name, content)
    with pytest.raises(ModelError, match=name) as refused:
        load_denoiser(folder)
        load_network(folder)
    assert "\n" not in str(refused.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tensors: tensors.pop("stem.bias") * 0, "got nothing"),
        (lambda tensors: tensors.update({"smile": torch.zeros(1)}), "expected nothing for 'smile'"),
        (lambda tensors: tensors.update({"stem.bias": torch.zeros(9)}), r"got F32 numbers of shape \(9,\)"),
        (lambda tensors: tensors.update({"stem.bias": torch.zeros(8, dtype=torch.float16)}), "got F16 numbers"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused_in_one_line(folder, change, word):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    _replace(folder, "model.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match=word) as refused:
        load_network(folder)
    assert "\n" not in str(refused.value)


def test_a_number_of_parameters_that_is_not_the_networks_is_refused(folder):
    _change_card(folder, parameters=read_card(folder).parameters + 1)
    with pytest.raises(ModelError, match="parameters"):
        load_network(folder)


@pytest.mark.parametrize(
    ("channels", "parameters", "word"),
    [
        (200_000, 134_789, "this finegrain builds"),  # 2.5 TB, if it were built to be counted
        (200_000, None, "too few for"),
        (2**40, 134_789, "cannot be built"),
        (10**20, 134_789, "cannot be built"),
    ],
)
def test_a_network_too_large_for_its_file_is_refused_before_it_is_built(folder, channels, parameters, word):
    network = {"family": "convolution", "channels": [channels] * 3, "blocks": [0, 0, 0], "heads": [1, 1]}
    if parameters is None:
        with torch.device("meta"):
            parameters = parameter_count(DenoisingNetwork(NetworkConfig(**network)))
    _change_card(folder, network=network, parameters=parameters)
    with pytest.raises(ModelError, match=word) as refused:
        load_network(folder)
    assert "\n" not in str(refused.value)


def _keep_outside(model):
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location="numbers.bin")
    tensor.ClearField("raw_data")


def _use_foreign_operator(model):
    model.opset_import.append(onnx.helper.make_opsetid("com.evil", 1))
    model.graph.node[0].domain = "com.evil"


def _hide_foreign_operator(model):
    inner = onnx.helper.make_graph([onnx.helper.make_node("Run", [], ["y"], domain="com.evil")], "inner", [], [])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", inner))


def _drop_graph(model):
    model.ClearField("graph")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_keep_outside, "numbers in another file"),
        (_use_foreign_operator, "operators of the domain 'com.evil'"),
        (_hide_foreign_operator, "operators of the domain 'com.evil'"),
        (_drop_graph, "no graph"),
    ],
)
def test_an_onnx_file_that_reaches_beyond_itself_is_refused(folder, change, word):
    model = onnx.load(folder / "model.onnx")
    change(model)
    _replace(folder, "model.onnx", model.SerializeToString())
    with pytest.raises(ModelError, match=word) as refused:
        load_denoiser(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        (b"\x0a\x02\xff\xfe", "'\ufffd\ufffd'"),  # no UTF-8
        (b"\x08\x80\x80\x80\x80\x80\x20", "'no text'"),  # the number 2⁴⁰, so many bytes if it were taken for a length
        (b"\x0a\x04\x1b[2J", r"'\\x1b\[2J'"),
    ],
)
def test_an_onnx_domain_that_is_no_text_is_refused_in_one_line(folder, field, shown):
    crafted = (folder / "model.onnx").read_bytes() + b"\x42" + bytes([len(field)]) + field  # 8 of a model: its operator sets
    _replace(folder, "model.onnx", crafted)
    with pytest.raises(ModelError, match=f"operators of the domain {shown}") as refused:
        load_denoiser(folder)
    assert "\n" not in str(refused.value)


def test_a_size_that_onnx_cannot_compute_is_refused_in_one_line(folder, capfd):
    _change_card(folder, stride=1)
    with pytest.raises(ModelError, match=r"model\.onnx cannot compute 50 × 50 pixels") as refused:
        load_denoiser(folder).denoise_slice(np.zeros((50, 50), np.float32))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""  # ONNX Runtime would tell it too


def test_what_onnx_runtime_cannot_load_is_refused(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="ONNX Runtime"):
        onnx_engine(tmp_path / "broken.onnx")


# --- finegrain model


def _run_model(monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["finegrain", "model", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_found_by_its_name_and_computes_as_its_card_says(name, slice_hu):
    denoiser = load_denoiser(name, threads=1)
    assert denoiser.card is not None
    assert denoiser.card.name == name
    network = build_network(denoiser.card.network, seed=0)
    assert parameter_count(network) == denoiser.card.parameters
    tensors = {tensor.name: list(tensor.dims) for tensor in onnx.load(find_model(name) / "model.onnx").graph.initializer}
    shapes = {each: list(values.shape) for each, values in network.named_parameters() if each in tensors}
    assert len(shapes) > 50
    assert shapes == {each: tensors[each] for each in shapes}
    assert np.abs(denoiser.denoise_slice(slice_hu) - slice_hu).max() > 10


def test_the_torch_weights_of_the_smaller_bundled_model_are_those_of_its_onnx(slice_hu):
    one = CTVolume.from_array(slice_hu[None], pixel_mm=0.7, slice_mm=3)
    assert onnx_torch_difference_hu(load_denoiser(threads=1), find_model(), one) <= LARGEST_DIFFERENCE_HU


def test_a_name_is_a_bundled_model_whatever_lies_in_the_current_folder(tmp_path, monkeypatch):
    bundled = find_model("finegrain-s")
    assert find_model() == bundled
    assert bundled.is_absolute()
    monkeypatch.chdir(tmp_path)
    for path in ("./finegrain-s", "finegrain-s/", Path("finegrain-s")):
        with pytest.raises(ModelError, match="there is no folder finegrain-s; give the bundled model's name as a string"):
            find_model(path)
    (tmp_path / "finegrain-s").mkdir()
    assert find_model("finegrain-s") == bundled
    for path in ("./finegrain-s", "finegrain-s/", Path("finegrain-s")):
        assert find_model(path) == Path("finegrain-s")
    for path in ("../finegrain-s", ".", tmp_path):
        assert find_model(path) == Path(path)


def test_a_name_that_is_neither_ends_in_one_line_that_tells_the_names():
    with pytest.raises(ModelError, match=r"one of finegrain-s, finegrain-b, got finegrain-xl"):
        load_denoiser("finegrain-xl")
    with pytest.raises(ModelError, match="expected a model folder") as raised:
        load_denoiser("long\n" * 300)
    assert "\n" not in str(raised.value)


def test_the_command_compares_onnx_with_torch_on_the_sample_and_hashes_each_file_once(saved, monkeypatch, capsys):
    hashed, digest = [], hashlib.file_digest

    def counting(file, algorithm):
        hashed.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    assert _run_model(monkeypatch, saved[1] / "convolution") in (None, 0)
    assert sorted(hashed) == ["model.onnx", "model.safetensors"]
    said = capsys.readouterr().out
    assert "test v0" in said
    assert "on 8 slices of the sample" in said


def test_a_folder_without_torch_weights_is_checked_as_far_as_it_can_be(saved, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(saved[1] / "convolution", tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    card = json.loads((folder / "model.json").read_text())
    del card["sha256"]["model.safetensors"]
    (folder / "model.json").write_text(json.dumps(card))
    assert _run_model(monkeypatch, folder) in (None, 0)
    assert "holds no torch weights" in capsys.readouterr().out


def test_weights_that_onnx_does_not_compute_with_end_the_command_in_one_line(saved, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(saved[1] / "convolution", tmp_path / "model"))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head.3.bias"] += 0.1
    _replace(folder, "model.safetensors", safetensors.torch.save(tensors))
    one = read_series(sample_folder()).part(slice(0, 1))
    assert onnx_torch_difference_hu(load_denoiser(folder), folder, one) > 1
    assert _run_model(monkeypatch, folder) == 2
    errors = capsys.readouterr().err
    assert "ONNX and torch differ" in errors
    assert errors.count("\n") == 1


def test_a_folder_that_is_no_model_ends_the_command_in_one_line(tmp_path, monkeypatch, capsys):
    assert _run_model(monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
