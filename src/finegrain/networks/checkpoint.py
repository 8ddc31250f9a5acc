"""Weights → a model folder: safetensors for torch, ONNX for inference, and the card."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from finegrain.acquisition import ACQUISITION_NUMBERS
from finegrain.errors import ModelError
from finegrain.hu import HURange
from finegrain.networks.blocks import parameter_count
from finegrain.networks.card import ACQUISITION, IMAGE, ONNX, WEIGHTS, ModelCard, file_sha256, read_card, write_card
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork


def save_model(network: DenoisingNetwork, folder: Path, card: ModelCard) -> ModelCard:
    """Write a model folder, whole or not at all; `card.sha256` is filled in."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "model"
        new.mkdir()
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}  # trained ones are channels-last
        (new / WEIGHTS).write_bytes(safetensors.torch.save(weights))  # its own writer keeps the file from other users
        export_onnx(network, new / ONNX)
        card = card.model_copy(update={"sha256": {name: file_sha256(new / name) for name in (WEIGHTS, ONNX)}})
        write_card(new, card)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)
    return card


def load_network(folder: Path) -> DenoisingNetwork:
    """The network of a model folder, in evaluation mode; runs no code from the folder.

    Raises: ModelError if a file is missing, altered or not understood, or if the weights are not those of the card's network.
    """
    return network_of(read_card(folder), folder)


def network_of(card: ModelCard, folder: Path) -> DenoisingNetwork:
    """The network of a model folder whose card was read, and its files checked, by `read_card`.

    Raises: ModelError as `load_network`.
    """
    path = folder / WEIGHTS
    if WEIGHTS not in card.sha256:
        raise ModelError(f"{folder} gives no sha256 of {WEIGHTS}; only ONNX Runtime can run this model")
    if (found := _parameters(card)) != card.parameters:
        raise ModelError(
            f"{folder}: the card tells of {card.parameters:,} parameters, this finegrain builds {found:,} for its network; "
            "use the finegrain that made the model, or export the model again"
        )
    if (size := path.stat().st_size) < 4 * found:
        raise ModelError(f"{path} has {size:,} bytes, too few for the {found:,} parameters of the card; export the model again")
    with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced at once
        network = DenoisingNetwork(card.network, HURange(*card.hu_range))
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        wanted = {name: (list(value.shape), "F32") for name, value in network.state_dict().items()}
        for name in sorted(held.keys() | wanted.keys()):
            if held.get(name) != wanted.get(name):
                expects, got = _told(wanted.get(name)), _told(held.get(name))
                raise ModelError(f"{path}: expected {expects} for {name[:80]!r}, got {got}; export the model again")
        weights = safetensors.torch.load_file(path)
    except SafetensorError:
        raise ModelError(f"{path} is no safetensors file; a pickle or torch file is never loaded: export the model again") from None
    network.load_state_dict(weights)
    return network.eval()


def _parameters(card: ModelCard) -> int:
    """Parameters of the card's network, counted without memory for them: a card may tell of any number of channels."""
    try:
        with torch.device("meta"):
            return parameter_count(DenoisingNetwork(card.network))
    except (RuntimeError, TypeError) as error:  # sizes that torch cannot count either
        raise ModelError(f"the card's network cannot be built: {str(error).splitlines()[0]}; export the model again") from None


def _told(tensor: tuple[list[int], str] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[1]} numbers of shape {tuple(tensor[0])}"


def export_onnx(network: DenoisingNetwork, path: Path) -> None:
    """Write the network as one ONNX file, for one slice of any size that is a multiple of STRIDE.

    The acquisition is an input where the network listens to it.
    """
    network.eval()
    sizes = {axis: STRIDE * torch.export.Dim(f"n_{axis}", min=1, max=128) for axis in (2, 3)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(1, 1, 2 * STRIDE, 3 * STRIDE), torch.zeros(1, ACQUISITION_NUMBERS)),
            dynamo=True,
            input_names=[IMAGE, ACQUISITION],
            dynamic_shapes={"image": sizes, "acquisition": None},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    used = {name for node in model.graph.node for name in node.input}
    for given in [given for given in model.graph.input if given.name not in used]:
        model.graph.input.remove(given)  # or a network would seem to be told what it does not listen to
    # Source paths and stack traces of the machine that exported: three times the size of the weights, and nobody's business.
    for part in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
