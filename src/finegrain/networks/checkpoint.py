"""Weights → a model folder: safetensors for torch, ONNX for inference, and the card."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import safetensors.torch
import torch

from finegrain.networks.card import ONNX, WEIGHTS, ModelCard, file_sha256, read_card, write_card
from finegrain.networks.skeleton import STRIDE, DenoisingNetwork


def save_model(network: DenoisingNetwork, folder: Path, card: ModelCard) -> ModelCard:
    """Write a model folder, whole or not at all; `card.sha256` is filled in."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "model"
        new.mkdir()
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}  # trained ones are channels-last
        safetensors.torch.save_file(weights, new / WEIGHTS)
        export_onnx(network, new / ONNX)
        card = card.model_copy(update={"sha256": {name: file_sha256(new / name) for name in (WEIGHTS, ONNX)}})
        write_card(new, card)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)
    return card


def load_network(folder: Path) -> DenoisingNetwork:
    """The network of a model folder, in evaluation mode; runs no code from the folder."""
    card = read_card(folder)
    network = DenoisingNetwork(card.network)
    network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return network.eval()


def export_onnx(network: DenoisingNetwork, path: Path) -> None:
    """Write the network as one ONNX file for batches of one slice of any size that is a multiple of STRIDE."""
    network.eval()
    sizes = {axis: STRIDE * torch.export.Dim(f"n_{axis}", min=1, max=128) for axis in (2, 3)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(1, 1, 2 * STRIDE, 3 * STRIDE),),
            dynamo=True,
            dynamic_shapes={"image": sizes},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
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
