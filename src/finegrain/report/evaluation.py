"""What `finegrain evaluate` found → what its page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.evaluate.folders import INPUT, Evaluation, SliceImages
from finegrain.evaluate.power import plans_in_words
from finegrain.evaluate.run import REFERENCE
from finegrain.evaluate.stats import equivalence_with_each
from finegrain.figures import CropView, Method, find_crops
from finegrain.provenance import versions
from finegrain.report.contents import EvaluationReport, WorstCase, comparison_row, table_rows
from finegrain.report.words import number

CROP_SIDE = 72
"""Pixels along either side of a crop."""

FEW_PATIENTS = 20
"""With fewer patients than these, ours, an evaluation says what happened to them and little of others."""

PLANNED_DB = 0.2
"""Difference in PSNR for which the number of patients is estimated."""

EQUIVALENT_DB = 0.1
"""Difference in PSNR that is taken for none when two methods are called equivalent; ours."""


def evaluation_page(found: Evaluation) -> EvaluationReport:
    """What the page of an evaluation shows."""
    config = found.config
    n_slices = sum(one["n_measured"] for each in found.patients.values() for one in each)
    few = "This says what happened to these patients, and little of others. " if len(found.patients) < FEW_PATIENTS else ""
    return EvaluationReport(
        title=config.title,
        scale_note=f"{few}{n_slices:,} slices of {len(found.patients)} patient{'' if len(found.patients) == 1 else 's'}.",
        methods=[Method(name, "input" if name == INPUT else "candidate") for name in config.methods],
        table=table_rows(found.measures),
        proposed=config.proposed,
        comparisons=[
            comparison_row(metric, baseline, compared)
            for metric, each in found.comparisons.items()
            for baseline, compared in each.items()
        ],
        per_patient={
            metric: {method: found.values_of(method, metric) for method in config.methods} for metric in found.comparisons
        },
        crops=[crop for view in found.views for crop in _crops(view)],
        nps={name: (nps.frequency_per_mm, nps.power) for name, nps in found.nps.items()},
        worst=_worst(found),
        plan=_plan(found),
        qc=[("note", note) for note in found.notes],
        repeat=[("finegrain evaluate", "with the same images and options; the configuration below holds what they came to")],
        facts={
            "configuration hash": config.hash(),
            **{f"version of {name}": version for name, version in versions().items()},
        },
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def _crops(view: SliceImages) -> list[CropView]:
    """The places of a slice with the most fine structure."""
    return [
        CropView(
            f"{view.patient}, z = {number(view.z_mm, 1)} mm ({view.why}): {place.name}",
            view.pixel_mm,
            {name: place.of(hu) for name, hu in view.images.items()},
            (place.window.centre, place.window.width),
        )
        for place in find_crops(view.images[REFERENCE], pixel_mm=view.pixel_mm, side=CROP_SIDE)
    ]


def _worst(found: Evaluation) -> list[WorstCase]:
    """The slice on which each method scored lowest by the first protocol; of the proposed method with its images."""
    key = f"psnr_db[{found.config.protocols[0]}]"
    cases = []
    for method in sorted(found.config.methods, key=lambda name: name != found.config.proposed):
        known = [row for row in found.rows if row["method"] == method and math.isfinite(row["metrics"][key])]
        if not known:
            continue
        row = min(known, key=lambda row: row["metrics"][key])
        view = found.views[0] if method == found.config.proposed and found.views else None
        crop = None if view is None else worst_crop(view.images, REFERENCE, method, name=view.why, pixel_mm=view.pixel_mm)
        cases.append(WorstCase(row["patient"], f"z = {number(row['z_mm'], 1)} mm", method, key, row["metrics"][key], crop))
    return cases


def worst_crop(images: Mapping[str, NDArray], reference: str, method: str, *, name: str, pixel_mm: float) -> CropView:
    """The crop of a slice in which a method's mean square error is largest: reference, input if there is one, and the method."""
    shown = {one: images[one] for one in (reference, INPUT, method) if one in images}
    row, column = where_it_errs(images[reference], images[method])
    square = np.s_[row : row + CROP_SIDE, column : column + CROP_SIDE]
    return CropView(name, pixel_mm, {one: hu[square] for one, hu in shown.items()})


def where_it_errs(reference_hu: NDArray, image_hu: NDArray) -> tuple[int, int]:
    """Upper left corner of the crop with the largest mean square error within the slice. Shape: (y, x) both."""
    clipped: Sequence[NDArray] = [np.clip(hu, -1024, 1500) for hu in (reference_hu, image_hu)]
    error = ndimage.uniform_filter(np.square(clipped[1] - clipped[0]), CROP_SIDE)
    half = CROP_SIDE // 2
    inside = error[half : error.shape[0] - half, half : error.shape[1] - half]
    if not inside.size:
        return 0, 0
    row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(row), int(column)


def _plan(found: Evaluation) -> list[str]:
    """How many patients would show a difference in PSNR, and from whom the proposed method is shown not to differ."""
    key = f"psnr_db[{found.config.protocols[0]}]"
    pilots = found.comparisons.get(key, {})
    others = {name: found.values_of(name, key) for name in pilots}
    _, equivalent = equivalence_with_each(found.values_of(found.config.proposed, key), others, margin=EQUIVALENT_DB, unit=" dB")
    return plans_in_words(pilots, difference=PLANNED_DB, unit=" dB") + equivalent
