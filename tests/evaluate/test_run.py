import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import PROTOCOLS, psnr
from finegrain.evaluate.run import (
    REFERENCE,
    Row,
    SpectrumRow,
    by_patient,
    evaluate_slice,
    evaluate_volume,
    narrow_bands,
    slice_spectra,
    spectra_by_patient,
    spectral_by_patient,
    summarise,
    volume_rows,
)
from finegrain.evaluate.spectra import nps_curve
from finegrain.frequency import Band, cycles_per_mm
from finegrain.scan.volume import CTVolume

KNOBS = {"protocols": ["abdomen-40/400", "full-range"], "band": Band()}


def truth_slice():
    y, x = np.mgrid[:160, :160]
    grain = gaussian_filter(np.random.default_rng(1).normal(0, 1, y.shape), 0.8)
    hu = np.where(np.hypot(y - 80, x - 80) < 70, 40.0, -1000.0)
    return hu + np.where(np.hypot(y - 80, x - 50) < 20, 250 * grain, 0)


def noisy(hu, sd, seed):
    return hu + np.random.default_rng(seed).normal(0, sd, hu.shape)


@pytest.fixture(scope="module")
def slices():
    truth = truth_slice()
    reference = noisy(truth, 10, 2)
    images = {"same": reference, "low dose": noisy(reference, 30, 3), "blurred": gaussian_filter(reference, 1.5)}
    return truth, reference, images


@pytest.fixture(scope="module")
def results(slices):
    truth, reference, images = slices
    return evaluate_slice(reference, images, pixel_mm=0.7, truth_hu=truth, **KNOBS)


def test_the_reference_against_itself_is_perfect(results):
    same = results["same"]
    assert same["psnr_db[abdomen-40/400]"] == float("inf")
    ones = [key for key in same if key.startswith(("ssim", "hf_ratio", "hf_consistency", "hf_coherence["))]
    assert len(ones) == 4 + 3 * 3
    assert [same[key] for key in ones] == pytest.approx([1] * len(ones))
    assert same["texture_index"] == same["rmse_hu"] == same["hu_bias[soft]"] == 0


def test_noise_and_blur_are_told_apart(results):
    low, blurred = results["low dose"], results["blurred"]
    for place in ("full", "fine_texture", "uniform"):
        assert low[f"hf_ratio[{place}]"] > 1 > blurred[f"hf_ratio[{place}]"]
        assert low[f"hf_coherence[{place}]"] < 1
    assert low["hf_ratio[uniform]"] > low["hf_ratio[fine_texture]"]
    assert low["texture_index"] > 0 and blurred["texture_index"] > 0


def test_coherence_with_the_truth_sees_texture_only_where_there_is_some(results):
    same = results["same"]
    assert same["hf_coherence_truth[fine_texture]"] > 0.9
    assert same["hf_coherence_truth[fine_texture]"] > results["low dose"]["hf_coherence_truth[fine_texture]"] > 0.5


def test_keys_are_the_same_for_every_method_and_truth_adds_its_coherence(slices, results):
    _, reference, images = slices
    without = evaluate_slice(reference, images, pixel_mm=0.7, **KNOBS)
    keys = set(without["same"])
    assert all(set(metrics) == keys for metrics in without.values())
    added = set(results["same"]) - keys
    assert {f"hf_coherence_truth[{p}]" for p in ("full", "fine_texture", "uniform")} <= added
    assert {key.partition("[")[0] for key in added} == {"hf_coherence_truth", "band_coherence_truth"}
    assert {"psnr_db[full-range]", "ssim[abdomen-40/400,fine_texture]", "hf_ratio[fine_texture]", "texture_index"} <= keys


def test_a_method_scores_the_same_whoever_it_is_compared_with(slices, results):
    truth, reference, images = slices
    alone = evaluate_slice(reference, {"blurred": images["blurred"]}, pixel_mm=0.7, truth_hu=truth, **KNOBS)["blurred"]
    assert alone == pytest.approx(results["blurred"], nan_ok=True)


def test_regions_depend_on_the_reference_only(slices, monkeypatch):
    from finegrain.evaluate import regions

    _, reference, images = slices
    seen = []
    find = regions.texture_rois
    monkeypatch.setattr(regions, "texture_rois", lambda hu, **knobs: seen.append(hu) or find(hu, **knobs))
    evaluate_slice(reference, images, pixel_mm=0.7, **KNOBS)
    assert len(seen) == 1 and (seen[0] == np.maximum(reference, -1024)).all()


def test_padding_is_air(slices):
    _, reference, _ = slices
    padded = np.where(np.indices(reference.shape)[0] < 5, -2048, np.maximum(reference, -1024))
    air = np.maximum(padded, -1024)
    assert evaluate_slice(padded, {"air": air}, pixel_mm=0.7, **KNOBS)["air"]["rmse_hu"] == 0


def test_an_empty_region_gives_nan_and_is_counted(slices, results):
    assert np.isnan(results["low dose"]["hu_bias[lung]"])
    rows = [Row(patient="a", slice=0, method="m", metrics=results["low dose"])]
    summary = summarise(rows)["m"]["hu_bias[lung]"]
    assert (summary.n_patients, summary.n_slices, summary.n_excluded) == (0, 0, 1)
    json.dumps(summary.to_dict(), allow_nan=False)


def test_summary_weighs_patients_and_not_slices():
    values = {"a": [1.0, 2.0, 3.0, float("inf")], "b": [10.0]}
    rows = [Row(patient=p, slice=i, method="m", metrics={"x": v}) for p, vs in values.items() for i, v in enumerate(vs)]
    summary = summarise(rows)["m"]["x"]
    assert summary.mean == pytest.approx(6)
    assert summary.sd == pytest.approx(np.std([2, 10], ddof=1))
    assert (summary.n_patients, summary.n_slices, summary.n_excluded) == (2, 4, 1)
    assert by_patient(rows)["m"]["x"] == {"a": 2.0, "b": 10.0}


def test_a_volume_scores_the_mean_of_its_slices(slices):
    _, reference, images = slices
    pair = np.stack([reference, reference[::-1]])
    other = np.stack([images["low dose"], images["blurred"][::-1]])
    knobs = {"pixel_mm": 0.7, "slice_mm": 3.0}
    volumes = CTVolume.from_array(pair, **knobs), {"m": CTVolume.from_array(other, **knobs)}
    key = "psnr_db[full-range]"
    expected = np.mean([psnr(a, b, protocol=PROTOCOLS["full-range"]) for a, b in zip(pair, other, strict=True)])
    assert evaluate_volume(*volumes, **KNOBS)["m"][key] == pytest.approx(expected, abs=1e-3)
    assert [row["slice"] for row in volume_rows(*volumes, patient="p", **KNOBS)] == [0, 1]


def test_what_cannot_be_judged_is_refused(slices):
    _, reference, _ = slices
    with pytest.raises(ConfigError, match="no protocol"):
        evaluate_slice(reference, {}, pixel_mm=0.7, protocols=["lung"], band=Band())
    with pytest.raises(DataError, match="m of shape"):
        evaluate_slice(reference, {"m": reference[:9]}, pixel_mm=0.7, **KNOBS)
    broken = reference.copy()
    broken[3, 4] = np.nan
    with pytest.raises(DataError, match="1 pixels that are NaN"):
        evaluate_slice(reference, {"m": broken}, pixel_mm=0.7, **KNOBS)


def test_narrow_bands_share_out_every_frequency_up_to_nyquist_once():
    masks = narrow_bands(0.7)
    assert next(iter(masks)) == "0.0-0.1/mm" and list(masks)[-1] == "0.7-0.8/mm"
    total = np.sum(list(masks.values()), axis=0)
    assert total.max() == 1 and not total[0, 0]
    assert (total == 1)[cycles_per_mm(8, 0.7) < 0.714].sum() == total[cycles_per_mm(8, 0.7) < 0.714].size - 1


def test_bands_tell_a_blur_frequency_by_frequency(slices):
    _, reference, _ = slices
    sigma_mm = 0.5
    blurred = gaussian_filter(reference, sigma_mm / 0.7, mode="nearest")
    metrics = evaluate_slice(reference, {"blurred": blurred}, pixel_mm=0.7, **KNOBS)["blurred"]
    ratios = [metrics[f"band_ratio[uniform,{name}]"] for name in narrow_bands(0.7)]
    assert (np.diff(ratios) < 0).all()
    # |H|² of the blur at the middle of a band; a block of 8 pixels tells frequencies apart no better than this.
    np.testing.assert_allclose(ratios[3:5], [np.exp(-((2 * np.pi * sigma_mm * f) ** 2)) for f in (0.35, 0.45)], atol=0.1)


def test_noise_power_of_a_patient_is_pooled_over_slices_of_unlike_pixels():
    rng = np.random.default_rng(5)
    rows = []
    for number, (pixel_mm, n) in enumerate([(0.7, 40), (0.8, 160)]):
        noise = rng.normal(0, 10, (n, 32, 32))
        for method, image in ((REFERENCE, noise), ("half", noise / 2)):
            rows.append(SpectrumRow(patient="a", slice=number, method=method, curve=nps_curve(image, pixel_mm=pixel_mm)))
    found = {metric: values["a"] for metric, values in spectral_by_patient(rows)["half"].items()}
    assert found["nmr"] == pytest.approx(0.5)
    assert found["nps_log_distance"] == pytest.approx(np.log(4))
    assert found["nps_shape_log_distance"] == pytest.approx(0, abs=1e-9)
    white = spectra_by_patient(rows)[REFERENCE]["a"]
    expected = 100 * (40 * 0.7**2 + 160 * 0.8**2) / 200  # variance times pixel area
    np.testing.assert_allclose(white.power[5:].mean(), expected, rtol=0.02)


def test_noise_power_is_measured_where_the_reference_is_soft_tissue():
    reference = np.full((160, 160), -1000.0)
    reference[20:140, 20:140] = 40
    candidate = reference + np.random.default_rng(6).normal(0, 20, reference.shape)
    curves = slice_spectra(reference, {"noisy": candidate}, pixel_mm=0.7)
    assert curves["noisy"].variance == pytest.approx(400, rel=0.1)
    assert slice_spectra(np.full((64, 64), -1000.0), {"noisy": candidate[:64, :64]}, pixel_mm=0.7) == {}
