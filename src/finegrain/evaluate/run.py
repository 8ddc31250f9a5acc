"""The main path of evaluation: one reference, several methods → metrics per slice → means per patient → mean ± SD over patients.

Every method is a set of images; none is known by its network. The keys of the metrics, stable:

    psnr_db[PROTOCOL], ssim[PROTOCOL]                          every pixel of the slice, or what the protocol's mask says
    psnr_db[PROTOCOL,fine_texture], ssim[PROTOCOL,fine_texture]
    vif[PROTOCOL]                                              visual information fidelity
    rmse_hu, mae_hu, rmse_hu[body]                             HU, without a window
    hu_bias[TISSUE]                                            HU, candidate − reference; lung, fat, soft, bone
    hf_ratio[ROI], hf_consistency[ROI], hf_coherence[ROI]      band energy E(candidate)/E(reference), min(r, 1/r), coherence
    hf_coherence_truth[ROI]                                    coherence with the noise-free image, if there is one
    band_ratio[ROI,LOW-HIGH/mm], band_coherence[…], band_coherence_truth[…]    the same, band by band in cycles/mm
    texture_error[PART], texture_index                         relative errors in fine texture and their mean

and of a patient, from the noise power in soft tissue pooled over its slices:

    nps_log_distance, nps_shape_log_distance                   mean |ln ratio| to the reference's spectrum; of equal areas
    nmr, cfr                                                   ratio of noise SD, and of peak frequency, to the reference's
    nps_mean_frequency, nps_peak_frequency                     cycles/mm

ROI is full (the body), fine_texture or uniform; PART is one of `texture.TEXTURE_PARTS`. A metric that cannot be computed, for
an empty roi, is NaN, is left out of means and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from finegrain.errors import DataError
from finegrain.evaluate import bands, fidelity, regions, texture
from finegrain.evaluate.spectra import (
    NPSCurve,
    central_frequency_ratio,
    noise_magnitude_ratio,
    nps_curve,
    nps_log_distance,
    nps_shape_log_distance,
    pooled_nps,
    uniform_patches,
)
from finegrain.files import json_safe
from finegrain.frequency import DCT_BLOCK, Band, cycles_per_mm
from finegrain.noise_power import RadialNPS
from finegrain.scan.volume import CTVolume

LOWEST_HU = -1024.0
"""Padding of −2048 counts as air: no method is to be judged by what it does outside the reconstruction."""

BAND_STEP_PER_MM = 0.1
"""Width of the bands of band_ratio and band_coherence in cycles/mm: a block of 8 pixels of 0.7 mm tells 0.09 apart."""

NPS_PATCH, NPS_COVERAGE = 32, 0.97
"""Side in pixels of the patches that noise is measured in, and how much of one must be soft tissue. Ours: smaller ones blur the
peak, and larger ones find no place."""

SMALLEST_VIF_SLICE = 41
"""Pixels below which its four scales do not fit and VIF is NaN."""

REFERENCE = "normal dose"
"""Name of the reference's own spectrum among those of the methods."""


class Row(TypedDict):
    """The metrics of one method on one slice of one patient."""

    patient: str
    slice: int
    method: str
    metrics: dict[str, float]


class SpectrumRow(TypedDict):
    """The noise power of one method, or of the reference, on one slice of one patient."""

    patient: str
    slice: int
    method: str
    curve: NPSCurve


def evaluate_slice(
    reference_hu: NDArray,
    images: Mapping[str, NDArray],
    *,
    pixel_mm: float,
    protocols: Sequence[str],
    band: Band,
    truth_hu: NDArray | None = None,
) -> dict[str, dict[str, float]]:
    """Every metric of every method on one slice; the keys are those of the module's first lines.

    Args:
        reference_hu: the normal-dose slice in HU, which alone decides where texture is.
        images: slice of each method in HU, by the method's name; the low-dose input belongs among them.
        pixel_mm: pixel size in mm.
        protocols: names from `fidelity.PROTOCOLS`; there is no default.
        band: the frequencies Ω_h of every hf_ metric.
        truth_hu: the noise-free slice of a simulation, in HU; adds hf_coherence_truth.

    Shape: all images (y, x).
    Raises: ConfigError for an unknown protocol; DataError if shapes differ or an image holds NaN or infinity.
    """
    chosen = [fidelity.protocol_named(name) for name in protocols]
    reference = _clean("reference", reference_hu, np.shape(reference_hu))
    candidates = {method: _clean(method, image, reference.shape) for method, image in images.items()}
    references = [reference] if truth_hu is None else [reference, _clean("truth", truth_hu, reference.shape)]
    rois = regions.texture_rois(reference, pixel_mm=pixel_mm, band=band)
    tissues = regions.tissue_rois(reference)
    places = {"full": rois.body, "fine_texture": rois.fine_texture, "uniform": rois.uniform}
    sums = bands.band_sums([*references, *candidates.values()], list(places.values()), n_references=len(references))
    reference_look = texture.describe_texture(reference, rois.fine_texture, pixel_mm=pixel_mm)
    results = {}
    for k, (method, candidate) in enumerate(candidates.items(), start=len(references)):
        look = texture.describe_texture(candidate, rois.fine_texture, pixel_mm=pixel_mm)
        results[method] = {
            **_fidelity_metrics(reference, candidate, chosen, rois, tissues),
            **_band_metrics(sums, k, list(places), band=band, pixel_mm=pixel_mm, with_truth=truth_hu is not None),
            **_texture_metrics(texture.texture_index(reference_look, look)),
        }
    return results


def _clean(name: str, hu: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if hu.ndim != 2 or hu.shape != shape:
        raise DataError(f"expected {name} of shape (y, x) = {shape}, got {hu.shape}")
    if not np.isfinite(hu).all():
        raise DataError(f"{name} holds {int((~np.isfinite(hu)).sum())} pixels that are NaN or infinite")
    return np.maximum(np.asarray(hu, dtype=np.float64), LOWEST_HU)


def _fidelity_metrics(
    reference: NDArray,
    candidate: NDArray,
    protocols: Iterable[fidelity.Protocol],
    rois: regions.TextureROIs,
    tissues: Mapping[str, NDArray[np.bool_]],
) -> dict[str, float]:
    metrics = {}
    for protocol in protocols:
        mean_ssim, ssim_map = fidelity.ssim_map(reference, candidate, protocol=protocol)
        in_texture = ssim_map[rois.fine_texture]
        metrics[f"psnr_db[{protocol.name}]"] = fidelity.psnr(reference, candidate, protocol=protocol)
        metrics[f"ssim[{protocol.name}]"] = mean_ssim
        large = min(reference.shape) >= SMALLEST_VIF_SLICE
        metrics[f"vif[{protocol.name}]"] = fidelity.vif(reference, candidate, protocol=protocol) if large else float("nan")
        metrics[f"psnr_db[{protocol.name},fine_texture]"] = fidelity.psnr(
            reference, candidate, protocol=protocol, roi=rois.fine_texture
        )
        metrics[f"ssim[{protocol.name},fine_texture]"] = float(in_texture.mean()) if in_texture.size else float("nan")
    metrics["rmse_hu"] = fidelity.rmse_hu(reference, candidate)
    metrics["mae_hu"] = fidelity.mae_hu(reference, candidate)
    metrics["rmse_hu[body]"] = fidelity.rmse_hu(reference, candidate, rois.body)
    for tissue, roi in tissues.items():
        metrics[f"hu_bias[{tissue}]"] = fidelity.hu_bias(reference, candidate, roi)
    return metrics


def _band_metrics(
    sums: bands.BandSums, image: int, places: Sequence[str], *, band: Band, pixel_mm: float, with_truth: bool
) -> dict[str, float]:
    in_band = band.mask(DCT_BLOCK, pixel_mm=pixel_mm)
    metrics = {}
    for roi, place in enumerate(places):
        ratio = sums.ratio(image, roi, in_band)
        metrics[f"hf_ratio[{place}]"] = ratio
        metrics[f"hf_consistency[{place}]"] = bands.consistency(ratio)
        metrics[f"hf_coherence[{place}]"] = sums.coherence(image, roi, in_band)
        if with_truth:
            metrics[f"hf_coherence_truth[{place}]"] = sums.coherence(image, roi, in_band, reference=1)
        for name, one in narrow_bands(pixel_mm).items():
            metrics[f"band_ratio[{place},{name}]"] = sums.ratio(image, roi, one)
            metrics[f"band_coherence[{place},{name}]"] = sums.coherence(image, roi, one)
            if with_truth:
                metrics[f"band_coherence_truth[{place},{name}]"] = sums.coherence(image, roi, one, reference=1)
    return metrics


def narrow_bands(pixel_mm: float) -> dict[str, NDArray[np.bool_]]:
    """The DCT coefficients of each band of 0.1 cycles/mm up to Nyquist, by name ("0.3-0.4/mm"). Shape: (u, v) each."""
    frequency = cycles_per_mm(DCT_BLOCK, pixel_mm)
    found = {}
    for k in range(int(0.5 / pixel_mm / BAND_STEP_PER_MM) + 1):
        low, high = k * BAND_STEP_PER_MM, (k + 1) * BAND_STEP_PER_MM
        mask = (frequency >= low) & (frequency < high)
        mask[0, 0] = False
        if mask.any():
            found[f"{low:.1f}-{high:.1f}/mm"] = mask
    return found


def _texture_metrics(index: Mapping[str, float]) -> dict[str, float]:
    parts = {f"texture_error[{part}]": index[part] for part in texture.TEXTURE_PARTS}
    return {**parts, "texture_index": index["index"]}


def slice_spectra(reference_hu: NDArray, images: Mapping[str, NDArray], *, pixel_mm: float) -> dict[str, NPSCurve]:
    """Noise power of the reference and of each method in the reference's soft tissue; empty if that holds no patch.

    Soft tissue alone: in the lung, vessels drown the noise. All of it, not its uniform regions: those are chosen for their low
    energy in the reference, which would make the reference look less noisy than it is.

    Shape: all images (y, x).
    """
    soft = regions.tissue_rois(reference_hu)["soft"]
    found = {}
    for name, image in {REFERENCE: reference_hu, **images}.items():
        patches = uniform_patches(image, soft, NPS_PATCH, min_coverage=NPS_COVERAGE)
        if len(patches):
            found[name] = nps_curve(patches, pixel_mm=pixel_mm)
    return found


def volume_spectra(reference: CTVolume, images: Mapping[str, CTVolume], *, patient: str) -> list[SpectrumRow]:
    """`slice_spectra` on every slice of a volume, as rows for `spectra_by_patient`."""
    pixel_mm = _square_pixel_mm(reference)
    return [
        SpectrumRow(patient=patient, slice=z, method=method, curve=curve)
        for z in range(len(reference))
        for method, curve in slice_spectra(
            reference.hu[z], {name: volume.hu[z] for name, volume in images.items()}, pixel_mm=pixel_mm
        ).items()
    ]


def spectral_measures(nps: RadialNPS, reference: RadialNPS) -> dict[str, float]:
    """How the noise power of an image stands to the reference's; the keys are those of the module's first lines."""
    return {
        "nps_log_distance": nps_log_distance(nps, reference),
        "nps_shape_log_distance": nps_shape_log_distance(nps, reference),
        "nmr": noise_magnitude_ratio(nps, reference),
        "cfr": central_frequency_ratio(nps, reference),
        "nps_mean_frequency": nps.mean_frequency,
        "nps_peak_frequency": nps.peak_frequency,
    }


def spectra_by_patient(spectra: Iterable[SpectrumRow]) -> dict[str, dict[str, RadialNPS]]:
    """Noise power pooled over the slices of each patient: method → patient → spectrum. The reference's is under `REFERENCE`."""
    collected: dict[str, dict[str, list[NPSCurve]]] = {}
    for row in spectra:
        collected.setdefault(row["method"], {}).setdefault(row["patient"], []).append(row["curve"])
    return {method: {patient: pooled_nps(curves) for patient, curves in patients.items()} for method, patients in collected.items()}


def spectral_by_patient(spectra: Iterable[SpectrumRow]) -> dict[str, dict[str, dict[str, float]]]:
    """The measures of noise power, as `by_patient` gives the others: method → metric → patient → value."""
    pooled = spectra_by_patient(spectra)
    references = pooled.pop(REFERENCE, {})
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, patients in pooled.items():
        for patient, nps in patients.items():
            for metric, value in spectral_measures(nps, references[patient]).items():
                found.setdefault(method, {}).setdefault(metric, {})[patient] = value
    return found


def volume_rows(
    reference: CTVolume,
    images: Mapping[str, CTVolume],
    *,
    patient: str,
    protocols: Sequence[str],
    band: Band,
    truth: CTVolume | None = None,
) -> list[Row]:
    """`evaluate_slice` on every slice of a volume, as rows for `summarise`. Raises: DataError if the scans do not fit."""
    pixel_mm = _square_pixel_mm(reference)
    for name, volume in {**images, **({"truth": truth} if truth is not None else {})}.items():
        if volume.hu.shape != reference.hu.shape:
            raise DataError(f"{name} of shape {volume.hu.shape} does not fit the reference of {reference.hu.shape}")
    rows = []
    for z in range(len(reference)):
        metrics = evaluate_slice(
            reference.hu[z],
            {name: volume.hu[z] for name, volume in images.items()},
            pixel_mm=pixel_mm,
            protocols=protocols,
            band=band,
            truth_hu=None if truth is None else truth.hu[z],
        )
        rows += [Row(patient=patient, slice=z, method=method, metrics=values) for method, values in metrics.items()]
    return rows


def _square_pixel_mm(volume: CTVolume) -> float:
    y_mm, x_mm = volume.pixel_mm
    if not np.isclose(y_mm, x_mm, rtol=1e-3):
        raise DataError(f"texture needs square pixels, got {y_mm} × {x_mm} mm; resample the scan")
    return float(y_mm)


def evaluate_volume(
    reference: CTVolume,
    images: Mapping[str, CTVolume],
    *,
    protocols: Sequence[str],
    band: Band,
    truth: CTVolume | None = None,
) -> dict[str, dict[str, float]]:
    """Every metric of every method on one scan: the mean over slices where it can be computed, NaN where on none."""
    rows = volume_rows(reference, images, patient="one", protocols=protocols, band=band, truth=truth)
    return {method: {metric: values["one"] for metric, values in metrics.items()} for method, metrics in by_patient(rows).items()}


def by_patient(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over the slices of each patient: method → metric → patient → value; slices where it is not finite are left out.

    What `stats.compare_paired` needs, once both methods are put in one order of patients.
    """
    collected = _collected(rows)
    return {
        method: {
            metric: {patient: _finite_mean(values) for patient, values in patients.items()} for metric, patients in metrics.items()
        }
        for method, metrics in collected.items()
    }


def _collected(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    collected: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for metric, value in row["metrics"].items():
            patients = collected.setdefault(row["method"], {}).setdefault(metric, {})
            patients.setdefault(row["patient"], []).append(value)
    return collected


def _finite_mean(values: Iterable[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


@dataclass(frozen=True)
class Summary:
    """One metric of one method over patients.

    Attributes:
        mean, sd: over patients, each patient the mean of its slices; NaN where there are too few (sd needs two).
        n_patients: patients with at least one slice where the metric is finite.
        n_slices: slices that entered.
        n_excluded: slices left out because the metric was NaN or infinite.
    """

    mean: float
    sd: float
    n_patients: int
    n_slices: int
    n_excluded: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, fit for JSON: NaN becomes None."""
        fields: dict[str, Any] = json_safe(asdict(self))
        return fields


def summarise(rows: Iterable[Row]) -> dict[str, dict[str, Summary]]:
    """Mean ± SD over patients, never over slices: method → metric → `Summary`."""
    return {
        method: {metric: _summary(patients) for metric, patients in metrics.items()} for method, metrics in _collected(rows).items()
    }


def _summary(patients: Mapping[str, Sequence[float]]) -> Summary:
    per_patient = np.array([_finite_mean(values) for values in patients.values()])
    known = per_patient[np.isfinite(per_patient)]
    n_all = sum(len(values) for values in patients.values())
    n_slices = sum(bool(np.isfinite(value)) for values in patients.values() for value in values)
    return Summary(
        mean=float(known.mean()) if len(known) else float("nan"),
        sd=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        n_patients=len(known),
        n_slices=n_slices,
        n_excluded=n_all - n_slices,
    )
