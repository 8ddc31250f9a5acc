"""docs/models.md: the bundled models, each with its card and what was measured of it, so that no figure in it is typed by hand.

Run: python tools/models.py [--out docs/models.md]
Figures on real pairs are those that `benchmarks/real_pairs.py` wrote to docs/data/real-pairs*.json, a file for each model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import PSNR, REAL_COLUMNS, number, signed, table

from finegrain.denoise import BUNDLED, find_model
from finegrain.files import write_whole
from finegrain.networks.card import ModelCard, card_rows, read_card
from finegrain.networks.skeleton import build_network, count_macs

SHOWN = {key: column for key, column in REAL_COLUMNS.items() if key != PSNR}


def document(cards: Sequence[ModelCard], real: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    parts = [
        "# The bundled models",
        "This page is generated: `python tools/models.py`. `finegrain denoise IN OUT --model NAME` "
        "takes one of these by its name, and finegrain-s where none is given; `finegrain model NAME` prints the card. For research "
        "on noise in CT: no medical device, not for diagnosis.",
    ]
    for card in cards:
        parts += [f"## {card.name} v{card.version}", *card_part(card), *real_part(card, real)]
    parts += [
        *differences([one for card in cards for one in real if one["model"] == f"{card.name} v{card.version}"]),
        "## What else is known of them",
        "- [What finegrain-s does to phantoms](phantom-checks.md): CT numbers, noise, NPS, TTF, and weak inserts, which are hardly "
        "easier to find after denoising than before. finegrain-b was not tried there.\n"
        "- [What strength and texture do](dicom.md), and the note that a scan unlike the training gets.\n"
        "- [Speed](benchmarks.md), and whether they draw a grid of their own (finegrain-b was not tried in noise).\n"
        "- [Networks of the same kind on finegrain-bench v1](results.md), trained on its pairs alone: fidelity, texture and "
        "lesions beside networks of others and filters. The weights that ship are trained on other pairs; finegrain-s stands there "
        "on real pairs only, finegrain-b not at all.\n"
        "- [The data that they were trained on](training.md#the-data), licences and where each can be had.",
    ]
    return "\n\n".join(parts) + "\n"


def differences(real: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each other model that was measured on the same slices lies above the first, in PSNR."""
    if len(real) < 2:
        return []
    first, *others = real
    parts = ["## The larger against the smaller"]
    for other in others:
        gains = [
            f"{signed(images[name][PSNR] - first['kernels'][kernel][name][PSNR], 2)} dB with {kernel}, {name}"
            for kernel, images in other["kernels"].items()
            for name in images
            if name.startswith("texture ")
        ]
        patients = {patient for images in other["kernels"].values() for patient in images["patients"]}
        parts.append(
            f"{other['model']} less {first['model']} on these slices: {'; '.join(gains)}. One training of each on {len(patients)} "
            "patients: no test was made of it. Told the dose, part of a difference is how much noise each gives back: see the "
            "energy ratio."
        )
    return parts


def card_part(card: ModelCard) -> list[str]:
    """The card, how the model was made, and how large it is."""
    macs = count_macs(build_network(card.network, seed=0), size=512) / 1e9
    made = f"`finegrain train configs/train-{card.name}.yaml`, after the pairs that [training.md](training.md) tells of"
    rows = [["made by", made], ["multiplications", f"{macs:.1f} · 10⁹ for a slice of 512²"], *card_rows(card)[2:]]
    return [table(("card", ""), rows)]


def real_part(card: ModelCard, real: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it does on real pairs, if that was measured."""
    found = [one for one in real if one["model"] == f"{card.name} v{card.version}"]
    rows = [
        (
            kernel,
            name,
            f"{number(values[PSNR], 2)} ({signed(values[PSNR] - images['quarter dose'][PSNR], 2)})",
            signed(images["least_gain_db"][name], 2),
            *(number(values[key], digits) for key, (_, digits) in SHOWN.items()),
        )
        for one in found
        for kernel, images in one["kernels"].items()
        for name, values in images.items()
        if name == "quarter dose" or name.startswith("texture ")
    ]
    if not rows:
        return ["Not measured on real pairs."]
    counts = ", ".join(f"{images['slices']} slices with {kernel}" for one in found for kernel, images in one["kernels"].items())
    return [
        f"On real pairs of the AAPM–Mayo challenge, quarter against full dose: {counts} "
        "(`benchmarks/real_pairs.py FOLDER --model NAME`). No pixel of theirs was trained on; the simulator's kernels and scanner "
        "constants were fitted to them.",
        table(("kernel", "image", "PSNR [dB] (gain)", "least gain", *(label for label, _ in SHOWN.values())), rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    arguments = parser.parse_args()
    cards = [read_card(find_model(name)) for name in BUNDLED]
    real = [json.loads(path.read_text()) for path in sorted(Path("docs/data").glob("real-pairs*.json"))]
    write_whole(arguments.out, document(cards, real))
    print(f"{arguments.out}: {len(cards)} models")


if __name__ == "__main__":
    main()
