"""What an ONNX file may hold to be loaded: one file, with standard operators. No torch, no onnx package: protobuf alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from finegrain.errors import ModelError

STANDARD_DOMAINS = {b"", b"ai.onnx"}
"""Operator sets that ONNX itself defines and that compute; another one may be a plugin's."""
DEEPEST = 20
"""Graphs within graphs; a default, taken from nowhere."""

# Field numbers of onnx.proto (ONNX 1.x; they never change): what leads from a model to its tensors, and what is looked for there.
_LEADS_ON = {
    "model": {7: "graph", 8: "operators", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "operators", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "operators": {},
    "tensor": {},
}
_DOMAIN = {"operators": 1, "node": 7}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_onnx(path: Path) -> None:
    """Raises: ModelError for an ONNX file that takes numbers from another file or operators from elsewhere, or that is none."""
    try:
        parts = list(_parts("model", path.read_bytes(), depth=0))
    except DecodeError:
        raise ModelError(f"{path} is no ONNX file; copy the whole model folder, or export the model again") from None
    if not any(kind == "graph" for kind, _ in parts):
        raise ModelError(f"{path} is no ONNX file: it holds no graph; copy the whole model folder, or export the model again")
    for kind, fields in parts:
        for number, value in fields:
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                raise ModelError(f"{path} keeps numbers in another file, which no hash guards; export it as one file")
            if number == _DOMAIN.get(kind) and not (isinstance(value, bytes) and value in STANDARD_DOMAINS):
                domain = value[:40].decode(errors="replace") if isinstance(value, bytes) else "no text"
                raise ModelError(f"{path} needs operators of the domain {domain!r}; expected those of ONNX alone")


def _parts(kind: str, message: bytes, *, depth: int) -> Iterator[tuple[str, list[tuple[int, int | bytes]]]]:
    """A message and all within it that matter, each with its kind and its fields by number."""
    if depth > 3 * DEEPEST:  # node, attribute, graph
        raise ModelError(f"the ONNX file holds graphs within graphs, more than {DEEPEST} deep; export the model again")
    empty = Empty()
    empty.ParseFromString(message)
    fields = [(field.field_number, field.data) for field in UnknownFieldSet(empty)]
    yield kind, fields
    for number, value in fields:
        if number in _LEADS_ON[kind] and isinstance(value, bytes):
            yield from _parts(_LEADS_ON[kind][number], value, depth=depth + 1)
