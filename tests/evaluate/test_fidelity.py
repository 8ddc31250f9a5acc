import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import (
    PROTOCOLS,
    hu_bias,
    mae_hu,
    protocol_named,
    psnr,
    rmse_hu,
    ssim,
)

ABDOMEN = PROTOCOLS["abdomen-40/400"]


@pytest.fixture
def pair():
    rng = np.random.default_rng(1)
    reference = rng.uniform(-1000, 1000, (64, 72))
    return reference, reference + rng.normal(0, 40, reference.shape)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_psnr_and_ssim_agree_with_scikit_image(pair, protocol):
    a, b = (np.clip(image, protocol.low_hu, protocol.high_hu) for image in pair)
    width = protocol.high_hu - protocol.low_hu
    assert psnr(*pair, protocol=protocol) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=width), abs=1e-4)
    expected = structural_similarity(a, b, data_range=width, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert ssim(*pair, protocol=protocol) == pytest.approx(expected, abs=1e-4)


def test_one_pair_scores_differently_under_each_protocol_as_its_formula_says(pair):
    intervals = {"abdomen-40/400": (-160, 240), "chest--600/1500": (-1350, 150), "full-range": (-1024, 3071)}
    intervals["mediastinum-50/350"] = (-125, 225)
    scores = {}
    for name, (low, high) in intervals.items():
        squares = [(min(max(a, low), high) - min(max(b, low), high)) ** 2 for a, b in zip(*(p.flat for p in pair), strict=True)]
        expected = 20 * np.log10(high - low) - 10 * np.log10(sum(squares) / len(squares))
        scores[name] = psnr(*pair, protocol=PROTOCOLS[name])
        assert scores[name] == pytest.approx(expected, abs=1e-6)
    values = sorted(scores.values())
    assert min(np.diff(values)) > 0.1
    assert set(scores) == set(PROTOCOLS)


def test_psnr_counts_only_the_roi_and_is_infinite_for_equal_images(pair):
    reference, candidate = pair
    roi = np.zeros(reference.shape, dtype=bool)
    roi[:10] = True
    patched = np.where(roi, reference, candidate)
    assert psnr(reference, patched, protocol=ABDOMEN, roi=roi) == float("inf")
    expected = psnr(reference[10:], candidate[10:], protocol=ABDOMEN)
    assert psnr(reference, patched, protocol=ABDOMEN, roi=~roi) == pytest.approx(expected)


def test_ssim_in_a_roi_does_not_see_damage_elsewhere(pair):
    reference, candidate = pair
    roi = np.zeros(reference.shape, dtype=bool)
    roi[:20] = True
    damaged = np.where(np.arange(64)[:, None] < 40, reference, 10 * candidate[::-1])
    assert ssim(reference, damaged, protocol=ABDOMEN, roi=roi) == pytest.approx(1)
    assert ssim(reference, damaged, protocol=ABDOMEN) < 0.95


def test_errors_in_hu_have_known_answers(pair):
    reference = pair[0]
    assert hu_bias(reference, reference + 7) == pytest.approx(7)
    assert hu_bias(reference, reference - 7) == pytest.approx(-7)
    checkered = reference + np.where(np.indices(reference.shape).sum(axis=0) % 2, 3, -4)
    assert rmse_hu(reference, checkered) == pytest.approx(np.sqrt(12.5))
    assert mae_hu(reference, checkered) == pytest.approx(3.5)


def test_empty_roi_gives_nan(pair):
    nowhere = np.zeros(pair[0].shape, dtype=bool)
    values = [f(*pair, nowhere) for f in (rmse_hu, mae_hu, hu_bias)]
    values += [f(*pair, protocol=ABDOMEN, roi=nowhere) for f in (psnr, ssim)]
    assert np.isnan(values).all()


def test_what_does_not_fit_is_refused(pair):
    with pytest.raises(DataError, match="must agree"):
        psnr(pair[0], pair[1][:10], protocol=ABDOMEN)
    with pytest.raises(DataError, match="does not fit"):
        rmse_hu(*pair, np.ones((3, 3), dtype=bool))
    with pytest.raises(ConfigError, match="abdomen-40/400"):
        protocol_named("abdomen")
