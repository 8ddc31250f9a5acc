import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from finegrain.errors import ConfigError, DataError
from finegrain.evaluate.fidelity import (
    PROTOCOLS,
    Protocol,
    hu_bias,
    mae_hu,
    protocol_named,
    psnr,
    rmse_hu,
    ssim,
    ssim_map,
    vif,
)
from finegrain.evaluate.regions import body_mask
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series

ABDOMEN = PROTOCOLS["abdomen-40/400"]

MEANING = {
    "abdomen-40/400": (-160, 240, "HU", "gaussian"),
    "chest--600/1500": (-1350, 150, "HU", "gaussian"),
    "mediastinum-50/350": (-125, 225, "HU", "gaussian"),
    "brain-40/80": (0, 80, "HU", "gaussian"),
    "bone-300/1500": (-450, 1050, "HU", "gaussian"),
    "full-range": (-1024, 3071, "HU", "gaussian"),
    "abdomen-40/400-body": (-160, 240, "HU", "gaussian"),
    "full-range-circle": (-1024, 3071, "HU", "gaussian"),
    "red-cnn": (-160, 240, "HU", "zeros"),
    "red-cnn-norm-range": (-1024, 3072, "unit", "zeros"),
    "ldct-benchmark-chest": (-600 - 0.5 - 1499 / 2, -600 - 0.5 + 1499 / 2, "unit", "flat"),
    "ldct-benchmark-abdomen": (50 - 0.5 - 399 / 2, 50 - 0.5 + 399 / 2, "unit", "flat"),
    "ldct-benchmark-neuro": (40 - 0.5 - 79 / 2, 40 - 0.5 + 79 / 2, "unit", "flat"),
    "ldct-benchmark-validation": (-1024, 1900, "unit", "flat"),
    "own-range": (None, None, "HU", "gaussian"),
}
"""What each name means, written a second time: interval in HU, scale and window of SSIM; the benchmark's by DICOM's formula."""


@pytest.fixture
def pair():
    rng = np.random.default_rng(1)
    reference = rng.uniform(-1000, 1000, (64, 72))
    return reference, reference + rng.normal(0, 40, reference.shape)


@pytest.fixture(scope="module")
def chest():
    """A real slice, and the same with the grainy noise and the slight blur of a denoised low dose."""
    reference = read_series(sample_folder()).hu[3].astype(np.float64)
    noise = gaussian_filter(np.random.default_rng(2).normal(0, 120, reference.shape), 0.8)
    return reference, gaussian_filter(reference, 0.5) + noise


def interval(name, reference):
    low, high, unit, window = MEANING[name]
    return (reference.min(), reference.max(), unit, window) if low is None else (low, high, unit, window)


def counted(name, reference):
    if name == "abdomen-40/400-body":
        return body_mask(reference)
    if name == "full-range-circle":
        return np.array([[(y - 255.5) ** 2 + (x - 255.5) ** 2 <= 256**2 for x in range(512)] for y in range(512)])
    return np.ones(reference.shape, dtype=bool)


def plain_psnr(name, reference, candidate):
    low, high = interval(name, reference)[:2]
    roi = counted(name, reference)
    if name != "own-range":
        reference, candidate = (np.minimum(np.maximum(image, low), high) for image in (reference, candidate))
    squares = (reference - candidate)[roi] ** 2
    return 20 * np.log10(high - low) - 10 * np.log10(squares.sum() / len(squares))


def plain_ssim(name, reference, candidate):
    low, high, unit, window = interval(name, reference)
    a, b, width = reference, candidate, high - low
    if name != "own-range":
        a, b = np.clip(a, low, high), np.clip(b, low, high)
    if unit == "unit":
        a, b, width = (a - low) / width, (b - low) / width, 1
    if window == "flat":
        return structural_similarity(a, b, data_range=width)
    if window == "zeros":
        x = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
        kernel = np.outer(x, x) / x.sum() ** 2
        ma, mb, aa, bb, ab = (convolve2d(image, kernel, mode="same") for image in (a, b, a * a, b * b, a * b))
        top = (2 * ma * mb + (0.01 * width) ** 2) * (2 * (ab - ma * mb) + (0.03 * width) ** 2)
        bottom = (ma**2 + mb**2 + (0.01 * width) ** 2) * (aa - ma**2 + bb - mb**2 + (0.03 * width) ** 2)
        return (top / bottom).mean()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    full = structural_similarity(a, b, data_range=width, **settings)[1]
    return full[5:-5, 5:-5][counted(name, reference)[5:-5, 5:-5]].mean()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_is_its_own_formula(chest, protocol):
    assert psnr(*chest, protocol=protocol) == pytest.approx(plain_psnr(protocol.name, *chest), abs=1e-6)
    assert ssim(*chest, protocol=protocol) == pytest.approx(plain_ssim(protocol.name, *chest), abs=1e-6)


def test_one_pair_scores_differently_under_each_protocol(chest):
    psnrs = {name: psnr(*chest, protocol=protocol) for name, protocol in PROTOCOLS.items()}
    ssims = {name: ssim(*chest, protocol=protocol) for name, protocol in PROTOCOLS.items()}
    assert max(psnrs.values()) - min(psnrs.values()) > 20
    assert psnrs.pop("red-cnn") == psnrs["abdomen-40/400"]  # one interval, one mask: they differ in SSIM alone
    assert min(np.diff(sorted(psnrs.values()))) > 0.002
    assert min(np.diff(sorted(ssims.values()))) > 1e-5
    assert set(ssims) == set(MEANING)


def test_psnr_and_ssim_agree_with_scikit_image_up_to_the_border(chest, pair):
    for images in (chest, pair):  # the chest has nothing but air at its border
        a, b = (np.clip(image, -160, 240) for image in images)
        assert psnr(*images, protocol=ABDOMEN) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=400), abs=1e-6)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        mean, full = structural_similarity(a, b, data_range=400, **settings)
        our_mean, our_full = ssim_map(*images, protocol=ABDOMEN)
        assert our_mean == pytest.approx(mean, abs=1e-9)
        np.testing.assert_allclose(our_full, full, atol=1e-9)


def test_ssim_of_an_oblong_slice_is_that_of_its_transpose(pair):
    assert ssim(*pair, protocol=ABDOMEN) == pytest.approx(ssim(*(image.T for image in pair), protocol=ABDOMEN), abs=1e-12)


def test_psnr_counts_only_the_roi_and_is_infinite_for_equal_images(pair):
    reference, candidate = pair
    roi = np.zeros(reference.shape, dtype=bool)
    roi[:10] = True
    patched = np.where(roi, reference, candidate)
    assert psnr(reference, patched, protocol=ABDOMEN, roi=roi) == float("inf")
    expected = psnr(reference[10:], candidate[10:], protocol=ABDOMEN)
    assert psnr(reference, patched, protocol=ABDOMEN, roi=~roi) == pytest.approx(expected)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_an_image_against_itself_is_perfect(chest, protocol):
    same = chest[0], chest[0].copy()
    assert psnr(*same, protocol=protocol) == float("inf")
    assert ssim(*same, protocol=protocol) == pytest.approx(1, abs=1e-12)
    assert rmse_hu(*same, protocol=protocol) == mae_hu(*same, protocol=protocol) == 0
    assert vif(*same, protocol=protocol) == pytest.approx(1 if protocol.mask == "all" else np.nan, abs=1e-9, nan_ok=True)


def test_what_lies_outside_the_mask_of_a_protocol_does_not_count(chest):
    reference, candidate = chest
    circle = counted("full-range-circle", reference)
    damaged = np.where(circle, candidate, 3000.0)
    protocol = PROTOCOLS["full-range-circle"]
    assert psnr(reference, damaged, protocol=protocol) == psnr(reference, candidate, protocol=protocol)
    assert psnr(reference, damaged, protocol=PROTOCOLS["full-range"]) < psnr(reference, candidate, protocol=protocol) - 10
    upper = np.indices(reference.shape)[0] < 256
    assert psnr(reference, candidate, protocol=protocol, roi=upper & circle) == psnr(
        reference, candidate, protocol=protocol, roi=upper
    )


def test_ssim_in_a_roi_does_not_see_damage_elsewhere(pair):
    reference, candidate = pair
    roi = np.zeros(reference.shape, dtype=bool)
    roi[:20] = True
    damaged = np.where(np.arange(64)[:, None] < 40, reference, 10 * candidate[::-1])
    assert ssim(reference, damaged, protocol=ABDOMEN, roi=roi) == pytest.approx(1)
    assert ssim(reference, damaged, protocol=ABDOMEN) < 0.95


def waves():
    y, x = np.mgrid[:64, :80]
    reference = 100 * np.sin(x / 3) * np.cos(y / 4) + 20 * np.sin(1.9 * x + 2.3 * y)
    return reference, 0.8 * reference + 15 * np.sin(2.7 * x - 1.3 * y)


def test_vif_is_that_of_another_library():
    """Numbers of torchmetrics 1.9.0 in float64, visual_information_fidelity(preds=candidate, target=reference), and exchanged."""
    assert vif(*waves(), protocol=PROTOCOLS["full-range"]) == pytest.approx(0.465117782, abs=1e-7)
    for region in ("chest", "abdomen", "neuro", "validation"):
        ours = vif(*waves(), protocol=PROTOCOLS[f"ldct-benchmark-{region}"])
        assert ours == pytest.approx(0.505333750, abs=1e-7)


def test_vif_falls_with_noise_and_blur_rises_with_contrast_and_knows_no_offset(chest):
    reference = np.clip(chest[0][100:300, 100:300], -1000, 1000)
    noise = np.random.default_rng(3).normal(0, 1, reference.shape)
    wide = PROTOCOLS["full-range"]
    scores = [vif(reference, reference + sd * noise, protocol=wide) for sd in (0, 10, 40, 160)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.2
    assert vif(reference, gaussian_filter(reference, 1.0), protocol=wide) < 0.5
    assert vif(reference, 1.02 * reference, protocol=wide) > 1
    shifted = vif(reference + 20, reference + 20 + 40 * noise, protocol=wide)
    assert shifted == pytest.approx(scores[2], abs=1e-3)  # but for the few pixels that the interval clips


def test_vif_of_a_constant_reference_is_unknown_and_of_a_constant_candidate_nothing(pair):
    flat = np.full(pair[0].shape, 40.0)
    assert np.isnan(vif(flat, pair[1], protocol=ABDOMEN)) and np.isnan(vif(flat, flat, protocol=ABDOMEN))
    assert vif(pair[0], flat, protocol=ABDOMEN) == pytest.approx(0, abs=1e-12)


def test_constant_images_have_the_scores_of_the_definition():
    flat, brighter = np.full((32, 32), 40.0), np.full((32, 32), 60.0)
    assert psnr(flat, brighter, protocol=ABDOMEN) == pytest.approx(20 * np.log10(400 / 20))
    assert ssim(flat, brighter, protocol=ABDOMEN) == pytest.approx((2 * 40 * 60 + 16) / (40**2 + 60**2 + 16))
    assert np.isnan(psnr(flat, brighter, protocol=PROTOCOLS["own-range"]))
    assert np.isnan(ssim(flat, brighter, protocol=PROTOCOLS["own-range"]))


def test_errors_in_hu_have_known_answers(pair):
    reference = pair[0]
    assert hu_bias(reference, reference + 7) == pytest.approx(7)
    assert hu_bias(reference, reference - 7) == pytest.approx(-7)
    checkered = reference + np.where(np.indices(reference.shape).sum(axis=0) % 2, 3, -4)
    assert rmse_hu(reference, checkered) == pytest.approx(np.sqrt(12.5))
    assert mae_hu(reference, checkered) == pytest.approx(3.5)


def test_errors_in_hu_under_a_protocol_are_clipped_and_go_with_its_psnr(pair):
    wide = PROTOCOLS["ldct-benchmark-validation"]
    assert psnr(*pair, protocol=wide) == pytest.approx(20 * np.log10(2924 / rmse_hu(*pair, protocol=wide)))
    above, far_above = np.full((4, 4), 300.0), np.full((4, 4), 900.0)
    assert mae_hu(above, far_above, protocol=ABDOMEN) == 0 and mae_hu(above, far_above) == 600


def test_where_there_is_nothing_to_measure_the_answer_is_nan(pair):
    nowhere = np.zeros(pair[0].shape, dtype=bool)
    values = [f(*pair, nowhere) for f in (rmse_hu, mae_hu, hu_bias)]
    values += [f(*pair, protocol=ABDOMEN, roi=nowhere) for f in (psnr, ssim)]
    air = np.full((64, 72), -1000.0)
    values += [f(air, air + 5, protocol=PROTOCOLS["abdomen-40/400-body"]) for f in (psnr, ssim)]
    assert np.isnan(values).all()


@pytest.mark.parametrize("measure", [psnr, ssim, vif])
def test_an_image_with_nan_or_infinity_is_refused_and_named(pair, measure):
    reference, candidate = pair
    broken = candidate.copy()
    broken[3, 4], broken[5, 6] = np.nan, np.inf
    with pytest.raises(DataError, match="candidate holds 2 pixels"):
        measure(reference, broken, protocol=ABDOMEN)
    with pytest.raises(DataError, match="reference holds 2 pixels"):
        measure(broken, candidate, protocol=ABDOMEN)


@pytest.mark.parametrize("measure", [psnr, ssim, vif])
def test_images_of_two_shapes_are_refused(pair, measure):
    with pytest.raises(DataError, match="must agree"):
        measure(pair[0], pair[1][:50], protocol=ABDOMEN)


def test_what_does_not_fit_is_refused(pair):
    with pytest.raises(DataError, match="does not fit"):
        rmse_hu(*pair, np.ones((3, 3), dtype=bool))
    with pytest.raises(DataError, match="boolean"):
        rmse_hu(*pair, np.ones(pair[0].shape, dtype=int))
    with pytest.raises(DataError, match="at least 11 × 11"):
        ssim(pair[0][:8], pair[1][:8], protocol=ABDOMEN)
    with pytest.raises(DataError, match="at least 41 × 41"):
        vif(pair[0][:40], pair[1][:40], protocol=ABDOMEN)
    with pytest.raises(DataError, match="one slice"):
        psnr(np.zeros((2, 64, 64)), np.zeros((2, 64, 64)), protocol=PROTOCOLS["full-range-circle"])


def test_a_protocol_is_known_by_its_name_and_others_are_refused():
    assert protocol_named("abdomen-40/400") is ABDOMEN
    with pytest.raises(ConfigError, match="abdomen-40/400"):
        protocol_named("abdomen")


def test_a_protocol_without_a_finite_interval_is_refused():
    with pytest.raises(ConfigError, match="low < high"):
        Protocol("reversed", 240, -160, "")
    with pytest.raises(ConfigError, match="no finite interval"):
        Protocol("endless", -np.inf, np.inf, "")


def test_every_protocol_says_who_uses_it_and_the_unsound_ones_say_why_not():
    assert all(protocol.source and protocol.description for protocol in PROTOCOLS.values())
    assert {name for name, protocol in PROTOCOLS.items() if protocol.caution} == {"own-range", "red-cnn-norm-range"}
