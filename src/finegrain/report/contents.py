"""What a page of results holds: `EvaluationReport` for any methods on any scans, `StudyReport` for a study with its networks.

Both are shown by one template, and what is not given leaves no trace on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finegrain.errors import DataError
from finegrain.figures import BandValue, CropView, Detection, Method, Spectrum, StudyRow, methods_in
from finegrain.report.words import MEASURES, label_of

if TYPE_CHECKING:
    from finegrain.evaluate.run import Summary
    from finegrain.evaluate.stats import PairedComparison


@dataclass(frozen=True)
class WorstCase:
    """One slice on which a method did badly.

    Attributes:
        patient, slice: labels that identify nobody, e.g. "patient 3" and "z = −83.5 mm".
        method: whose image it is.
        key: of the measure by which it was chosen, e.g. `psnr_db[abdomen-40/400]`.
        value: of that measure on this slice.
        crop: where on the slice, with the reference, the input and the method's image; None shows the numbers alone.
    """

    patient: str
    slice: str
    method: str
    key: str
    value: float
    crop: CropView | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All that a page of methods against a reference shows. Only title, methods and table are needed.

    Attributes:
        title: of the page.
        methods: in the order of display. Without them: "low dose" is the input, all else in the table is a candidate.
        table: one row per measure; see `table_rows`. The key decides in which table a row stands: results, tissues
            (`hu_bias[lung]`), regions (`psnr_db[abdomen-40/400,thorax]`, `hf_ratio[uniform]`) or details.
        proposed: the method that is compared with every other, if there is one.
        scale_note: how large this was and what it cannot show, in a few sentences.
        seeds_note: how many trainings stand behind each network, and how far they lie apart.
        comparisons: one mapping per measure and baseline (proposed − baseline), as `comparison_row` gives it: metric, baseline, n,
            mean_difference, interval (low, high and its kind), p_t, p_wilcoxon, p_holm, effect_size, verdict, and, if known,
            p_permutation, hedges_gz, n_comparisons (of Holm's family; all of the measure if not given) and warnings (sentences).
            Those against free competitors are folded away.
        per_patient: measure key → method → one value per patient, NaN where there is none.
        crops: the same places in the images of all methods, the reference first.
        nps: name → spectrum, that of "normal dose" among them.
        bands: method → one value per frequency band, from low to high; out of the table's `band_…` rows if not given.
        worst: slices on which methods did worst, the worst first.
        detectability: observer → method → d′ of each lesion.
        plan: sentences, e.g. how many patients would show 0.2 dB.
        qc: (what was checked or counted, what came out).
        repeat: (command, what it does): how to make these results again.
        facts: data, versions, hashes.
        config_yaml: the resolved configuration.
    """

    title: str
    methods: Sequence[Method] = ()
    table: Sequence[StudyRow]
    proposed: str = ""
    scale_note: str = ""
    seeds_note: str = ""
    comparisons: Sequence[Mapping[str, Any]] = ()
    per_patient: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    crops: Sequence[CropView] = ()
    nps: Mapping[str, Spectrum] = field(default_factory=dict)
    bands: Mapping[str, Sequence[BandValue]] = field(default_factory=dict)
    worst: Sequence[WorstCase] = ()
    detectability: Mapping[str, Mapping[str, Sequence[Detection]]] = field(default_factory=dict)
    plan: Sequence[str] = ()
    qc: Sequence[tuple[str, str]] = ()
    repeat: Sequence[tuple[str, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    config_yaml: str = ""

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"each method needs a name of its own, got twice: {', '.join(doubled)}")
        if names and self.proposed and self.proposed not in names:
            raise DataError(f"the proposed method {self.proposed!r} is none of {', '.join(names)}")
        if self.comparisons and not self.proposed:
            raise DataError("comparisons are of one method with each other; name it in `proposed`")

    def shown_methods(self) -> Sequence[Method]:
        """The methods, or those of the table where none are given."""
        return self.methods or methods_in(self.table)


@dataclass(frozen=True, kw_only=True)
class StudyReport(EvaluationReport):
    """All that a study page shows: what an evaluation shows, and its networks, their training and the paper's claims.

    Without methods: "low dose" is the input, the networks are the arms, all else in the table is a free competitor.

    Attributes:
        arms: one mapping per network: name, family, loss (in words), parameters, macs_per_512, seconds_per_slice, best_step,
            train_seconds.
        generalisation: one mapping per condition: factor (dose, kernel, scanner or other pairs), value, trained (whether the
            training saw it), patients, slices, input_psnr_db, gain_db (method → dB over the input) and coherence (method → value).
        curves: network → [(step, validation rmse_hu), …].
        claims: one mapping per claim of the paper: claim, found (with its intervals), verdict ("reproduced", "not
            reproduced", "opposite" or "cannot be said"), reach ("in these trainings" where it is not of the method), why.
    """

    arms: Sequence[Mapping[str, Any]] = ()
    generalisation: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    claims: Sequence[Mapping[str, str]] = ()

    def shown_methods(self) -> Sequence[Method]:
        """The methods, or those of the table where none are given: the networks are arms."""
        return self.methods or methods_in(self.table, arms=[str(arm["name"]) for arm in self.arms])


def table_rows(measures: Mapping[str, Mapping[str, Summary]]) -> list[StudyRow]:
    """The rows of a page's table, from `evaluate.run.summarise`: method → measure key → `Summary`."""
    keys = dict.fromkeys(key for of_method in measures.values() for key in of_method)
    return [
        StudyRow(
            key,
            label_of(key),
            MEASURES[name].better if (name := key.partition("[")[0]) in MEASURES else "",
            {
                method: (of_method[key].mean, of_method[key].sd, of_method[key].n_patients)
                for method, of_method in measures.items()
                if key in of_method
            },
        )
        for key in keys
    ]


def comparison_row(metric: str, baseline: str, found: PairedComparison) -> dict[str, Any]:
    """A comparison as a page shows it."""
    return {
        "metric": metric,
        "baseline": baseline,
        "n": found.n,
        "mean_difference": found.mean,
        "interval": found.interval(),
        "p_t": found.t_p,
        "p_wilcoxon": found.wilcoxon_p,
        "p_permutation": found.permutation_p,
        "p_holm": found.holm_p,
        "effect_size": found.cohen_dz,
        "hedges_gz": found.hedges_gz,
        "n_comparisons": found.n_comparisons,
        "verdict": found.verdict(),
        "warnings": found.warnings,
    }
