"""What `Denoiser` promises whatever its network does, and two things that the shipped weights promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from finegrain.acquisition import Acquisition
from finegrain.denoise import Denoiser, Engine, load_denoiser
from finegrain.equaliser import RINGS, BandEqualiser, RingGains
from finegrain.errors import ConfigError, ModelError
from finegrain.hu import HURange
from finegrain.networks.card import ModelCard
from finegrain.sample import sample_folder
from finegrain.scan.derived import write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import matching_exposure, simulate_low_dose
from finegrain.simulate.fbp import find_kernel

Image = NDArray[np.float32]

RANGE = HURange()
STRIDE = 32
ONE_HU = np.float32(1 / RANGE.span)


def identity(unit: Image) -> Image:
    return unit


def darken(unit: Image) -> Image:
    """Ten HU less, everywhere."""
    return unit - 10 * ONE_HU


def mean_3x3(unit: Image) -> Image:
    """The mean of each pixel and its eight neighbours; beyond the edge, the edge goes on."""
    _, _, rows, columns = unit.shape
    wider = np.pad(unit, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return sum(wider[:, :, y : y + rows, x : x + columns] for y in range(3) for x in range(3)) / np.float32(9)


def denoiser_of(engine: Engine) -> Denoiser:
    return Denoiser(engine, hu_range=RANGE, stride=STRIDE)


def recording(engine: Engine) -> tuple[Engine, list[Image]]:
    """The same engine, and a list of what it is shown."""
    shown: list[Image] = []

    def run(unit: Image) -> Image:
        shown.append(unit.copy())
        return engine(unit)

    return run, shown


def noise_hu(*shape: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(40, 25, shape).astype(np.float32)


def volume_of(hu: Image) -> CTVolume:
    return CTVolume.from_array(hu, pixel_mm=0.7, slice_mm=3)


def rmse(a: Image, b: Image) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


# --- strength


def test_strength_0_gives_the_input_back_bit_for_bit() -> None:
    volume = volume_of(noise_hu(2, 40, 50))
    np.testing.assert_array_equal(denoiser_of(mean_3x3).denoise(volume, strength=0).hu, volume.hu)


def test_strength_one_half_is_the_mean_of_input_and_full_effect() -> None:
    volume, denoiser = volume_of(noise_hu(2, 40, 50)), denoiser_of(mean_3x3)
    half, full = (denoiser.denoise(volume, strength=strength).hu for strength in (0.5, 1))
    assert rmse(full, volume.hu) > 10
    np.testing.assert_allclose(half, (volume.hu + full) / 2, atol=1e-3)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    denoiser = load_denoiser()
    with pytest.raises(ConfigError, match="strength must lie in"):
        denoiser.denoise(volume_of(noise_hu(1, 8, 8)), strength=strength)
    with pytest.raises(ConfigError, match="strength must lie in"):
        denoiser.derivation(strength=strength)


# --- turns


def right_neighbour(unit: Image) -> Image:
    """Each pixel's right neighbour: an answer that depends on how the slice lies."""
    return np.roll(unit, -1, axis=-1)


def test_a_thorough_denoiser_answers_alike_however_the_slice_lies() -> None:
    hu = noise_hu(64, 96)
    plain, thorough = denoiser_of(right_neighbour), denoiser_of(right_neighbour).thorough()
    for turned in (np.rot90(hu), hu[:, ::-1]):
        back = np.rot90 if turned.shape != hu.shape else None
        expected = back(thorough.denoise_slice(hu)) if back else thorough.denoise_slice(hu)[:, ::-1]
        np.testing.assert_allclose(thorough.denoise_slice(turned), expected, atol=1e-2)
    assert rmse(plain.denoise_slice(hu[:, ::-1]), plain.denoise_slice(hu)[:, ::-1]) > 10


def test_a_thorough_denoiser_gives_the_mean_over_all_turns_and_flips() -> None:
    hu = noise_hu(64, 96)
    four = sum(np.roll(hu, shift, axis=axis) for shift in (-1, 1) for axis in (0, 1)) / np.float32(4)
    np.testing.assert_allclose(denoiser_of(right_neighbour).thorough().denoise_slice(hu), four, atol=1e-2)


def test_a_thorough_series_says_so_and_gets_other_uids() -> None:
    plain = load_denoiser()
    assert plain.thorough().derivation(strength=1).parameters["turns"] == 8
    assert "turns" not in plain.derivation(strength=1).parameters


# --- sizes


@pytest.mark.parametrize(("rows", "columns"), [(250, 333), (250, 352), (20, 40), (5, 7), (1, 1)])
def test_any_size_is_denoised_as_the_same_part_of_an_aligned_one(rows: int, columns: int) -> None:
    engine, shown = recording(mean_3x3)
    whole = noise_hu(-(-rows // STRIDE) * STRIDE, -(-columns // STRIDE) * STRIDE)
    expected = denoiser_of(mean_3x3).denoise_slice(whole)

    result = denoiser_of(engine).denoise_slice(whole[:rows, :columns])

    assert result.shape == (rows, columns)
    assert shown[0].shape == (1, 1, *whole.shape)
    # The last row and column see the fill instead of the neighbours that were cut off.
    np.testing.assert_array_equal(result[:-1, :-1], expected[: rows - 1, : columns - 1])


@pytest.mark.parametrize(("rows", "columns"), [(250, 333), (20, 40), (5, 7), (1, 1)])
def test_the_fill_of_odd_sizes_makes_no_edge(rows: int, columns: int) -> None:
    flat = np.full((rows, columns), 40, np.float32)
    np.testing.assert_allclose(denoiser_of(mean_3x3).denoise_slice(flat), flat, atol=1e-2)


# --- texture

RAISING = (1.0, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.0)


def gains_of(*of_rings: float, of_input: float = 0.0) -> RingGains:
    """Nothing at the first level, these at the second."""
    return RingGains(tuple((1.0, gain) for gain in of_rings), ((0.0, of_input),) * RINGS)


GAINS = BandEqualiser(((0.1, 0.2),) * RINGS, gains_of(*RAISING))
BY_DOSE = BandEqualiser(GAINS.levels, GAINS.gains, ((0.25, gains_of(*RAISING)), (0.5, gains_of(*RAISING, of_input=0.5))))


def textured(engine: Engine) -> Denoiser:
    return Denoiser(engine, hu_range=RANGE, stride=STRIDE, equaliser=GAINS)


def test_texture_0_is_the_network_alone_bit_for_bit() -> None:
    hu = noise_hu(40, 50)
    np.testing.assert_array_equal(textured(mean_3x3).denoise_slice(hu, texture=0), denoiser_of(mean_3x3).denoise_slice(hu))


def test_texture_is_the_equaliser_on_what_the_network_made_and_strength_comes_last() -> None:
    hu, denoiser = noise_hu(64, 96), textured(mean_3x3)
    made = denoiser.denoise_slice(hu)
    equalised = GAINS.apply(made, hu, strength=0.5)
    assert rmse(equalised, made) > 0.05
    np.testing.assert_allclose(denoiser.denoise_slice(hu, texture=0.5), equalised, atol=0.01)
    half = denoiser.denoise_slice(hu, texture=0.5, strength=0.5)
    np.testing.assert_allclose(half, (hu + equalised) / 2, atol=0.01)
    volume = volume_of(hu[None])
    np.testing.assert_array_equal(denoiser.denoise(volume, texture=0.5, strength=0.5).hu[0], half)
    np.testing.assert_array_equal(denoiser.denoise(volume, texture=0.5, strength=0).hu, volume.hu)


def test_the_equaliser_is_told_the_dose_whether_or_not_the_network_is() -> None:
    hu = noise_hu(64, 96)
    for takes_acquisition in (False, True):
        denoiser = Denoiser(
            lambda unit, *told: mean_3x3(unit),
            hu_range=RANGE,
            stride=STRIDE,
            equaliser=BY_DOSE,
            takes_acquisition=takes_acquisition,
        )
        made = denoiser.denoise_slice(hu)
        for dose in (None, 0.25, 0.3, 0.5):
            expected = BY_DOSE.apply(made, hu, strength=1.0, dose_fraction=dose)
            found = denoiser.denoise_slice(hu, texture=1, acquisition=Acquisition(dose_fraction=dose))
            np.testing.assert_allclose(found, expected, atol=0.01)
        assert denoiser.notes(Acquisition(dose_fraction=0.25), texture=1) == []


def test_texture_is_1_by_default_where_there_are_gains() -> None:
    assert (textured(identity).default_texture, denoiser_of(identity).default_texture) == (1, 0)


def test_metal_beyond_the_range_of_the_network_does_not_ring() -> None:
    hu = np.full((64, 64), 40, np.float32)
    hu[20:40, 20:40] = 3071
    more = hu.copy()
    more[20:40, 20:40] = 30_000
    change, change_of_more = (textured(identity).denoise_slice(image, texture=1) - image for image in (hu, more))
    np.testing.assert_allclose(change_of_more, change, atol=0.05)


def test_texture_without_gains_and_texture_outside_0_to_1_are_refused() -> None:
    volume = volume_of(noise_hu(1, 8, 8))
    with pytest.raises(ModelError, match="no band gains"):
        denoiser_of(identity).denoise(volume, texture=0.1)
    for texture in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="texture must lie in"):
            textured(identity).denoise(volume, texture=texture)


# --- acquisition


def test_only_a_network_that_takes_the_acquisition_is_told_it() -> None:
    told: list[object] = []

    def listening(unit: Image, acquisition: Image) -> Image:
        told.append(acquisition.copy())
        return unit

    acquisition = Acquisition(dose_fraction=0.25)
    denoiser = Denoiser(listening, hu_range=RANGE, stride=STRIDE, takes_acquisition=True)
    for known in (acquisition, None):
        denoiser.denoise(volume_of(noise_hu(1, 8, 8)), acquisition=known)
    np.testing.assert_array_equal(told[0], [[1, -2, 0, 0]])
    np.testing.assert_array_equal(told[1], np.zeros((1, 4)))
    denoiser_of(identity).denoise(volume_of(noise_hu(1, 8, 8)), acquisition=acquisition)  # would fail if it were told


@pytest.fixture(scope="module")
def card() -> ModelCard:
    """The bundled card, as of a network that was trained on 10 to 50 % dose."""
    bundled = load_denoiser().card
    assert bundled is not None
    return bundled.model_copy(update={"dose_fractions": (0.25, 0.1, 0.5)})


@pytest.mark.parametrize(("given", "told"), [(0.05, 0.1), (0.1, 0.1), (0.3, 0.3), (0.5, 0.5), (1.0, 0.5)])
def test_a_dose_outside_the_training_is_told_as_the_nearest_and_noted(card: ModelCard, given: float, told: float) -> None:
    heard: list[Image] = []

    def listening(unit: Image, acquisition: Image) -> Image:
        heard.append(acquisition.copy())
        return unit

    denoiser = Denoiser(listening, hu_range=RANGE, stride=STRIDE, card=card, takes_acquisition=True)
    acquisition = Acquisition(given, kernel_half_per_mm=0.4, pixel_mm=0.7)
    denoiser.denoise(volume_of(noise_hu(1, 8, 8)), acquisition=acquisition)
    np.testing.assert_allclose(heard[0], [[1, np.log2(told), 1, 0.56]], rtol=1e-6)
    notes = denoiser.notes(acquisition)
    if told == given:
        assert notes == []
    else:
        (note,) = notes
        assert f"dose fractions of 0.1 to 0.5; {given:g} was told to it as {told:g}" in note
    assert denoiser.derivation(strength=1, acquisition=acquisition).parameters["dose_fraction"] == told


def test_a_dose_that_is_not_listened_to_is_noted_and_no_dose_is_not(card: ModelCard) -> None:
    deaf = Denoiser(identity, hu_range=RANGE, stride=STRIDE, card=card)
    assert "does not listen to the dose" in deaf.notes(Acquisition(dose_fraction=0.05))[0]
    listening = Denoiser(identity, hu_range=RANGE, stride=STRIDE, card=card, takes_acquisition=True)
    for denoiser in (deaf, listening):
        assert denoiser.notes(None) == denoiser.notes(Acquisition(kernel_half_per_mm=0.4, pixel_mm=0.7)) == []


@pytest.mark.parametrize("value", [-0.4, 0.0, float("nan"), float("inf")])
def test_a_kernel_frequency_and_a_pixel_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="kernel's frequency"):
        Acquisition(kernel_half_per_mm=value, pixel_mm=0.7)
    with pytest.raises(ConfigError, match="pixel size"):
        Acquisition(kernel_half_per_mm=0.4, pixel_mm=value)


# --- values


def test_padding_is_shown_as_air_and_comes_back_as_it_was() -> None:
    hu = noise_hu(2, 40, 50)
    padding = np.zeros(hu.shape, bool)
    padding[:, :5] = padding[1, 20, 20] = True
    hu[padding] = -2000
    engine, shown = recording(darken)

    result = denoiser_of(engine).denoise(replace(volume_of(hu), padding=padding))

    np.testing.assert_array_equal(result.hu[padding], hu[padding])
    np.testing.assert_allclose(result.hu[~padding], hu[~padding] - 10, atol=1e-2)
    for unit, mask in zip(shown, padding, strict=True):
        assert set(RANGE.to_hu(unit[0, 0, :40, :50][mask]).tolist()) == {-1000.0}


def test_metal_above_the_range_of_the_network_survives() -> None:
    hu = noise_hu(1, 40, 50)
    hu[0, 10:14, 10:14] = 8000
    np.testing.assert_array_equal(denoiser_of(identity).denoise(volume_of(hu)).hu, hu)
    np.testing.assert_allclose(denoiser_of(darken).denoise(volume_of(hu)).hu, hu - 10, atol=1e-2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_refused(wrong: float) -> None:
    def broken(unit: Image) -> Image:
        answer = unit.copy()
        answer[0, 0, 3, 4] = wrong
        return answer

    with pytest.raises(ModelError, match="NaN or infinite"):
        denoiser_of(broken).denoise(volume_of(noise_hu(1, 40, 50)))


# --- DICOM


def test_a_network_without_a_card_cannot_sign_a_series() -> None:
    with pytest.raises(ModelError, match="model card"):
        denoiser_of(identity).derivation(strength=1)


def test_every_setting_that_changes_pixels_changes_the_uids_and_no_other_does() -> None:
    card = load_denoiser().card
    other = BandEqualiser(GAINS.levels, gains_of(*(1.0,) * RINGS))

    def uid(equaliser: BandEqualiser = GAINS, *, takes_acquisition: bool = True, **settings: Any) -> str:
        denoiser = Denoiser(
            identity,
            hu_range=RANGE,
            stride=STRIDE,
            card=card,
            equaliser=equaliser,
            takes_acquisition=takes_acquisition,
        )
        return denoiser.derivation(**({"strength": 1.0} | settings)).uid_for("1.2.3")

    told = Acquisition(dose_fraction=0.25)
    different = [
        uid(),
        uid(strength=0.5),
        uid(texture=0.5),
        uid(texture=1.0),
        uid(other, texture=1.0),
        uid(acquisition=told),
        uid(acquisition=Acquisition(dose_fraction=0.5)),
        uid(acquisition=Acquisition(kernel_half_per_mm=0.4, pixel_mm=0.7)),
    ]
    assert len(set(different)) == len(different)
    assert uid(BY_DOSE, takes_acquisition=False, acquisition=told) == uid()
    assert uid(BY_DOSE, takes_acquisition=False, acquisition=told, texture=1) != uid(BY_DOSE, texture=1)
    assert uid() == uid(other) == uid(texture=0) == uid(acquisition=Acquisition()) == uid(takes_acquisition=False, acquisition=told)


def test_a_series_that_a_network_leaves_alone_keeps_its_stored_pixels(tmp_path: Path) -> None:
    card = load_denoiser().card
    assert card is not None
    denoiser = Denoiser(identity, hu_range=HURange(*card.hu_range), stride=card.stride, card=card)
    volume = read_series(sample_folder())

    files = write_derived_series(denoiser.denoise(volume), tmp_path / "out", derivation=denoiser.derivation(strength=1))

    for source, derived in zip(volume.source.files, files, strict=True):
        before, after = pydicom.dcmread(source), pydicom.dcmread(derived)
        assert before.pixel_array.dtype == after.pixel_array.dtype
        np.testing.assert_array_equal(before.pixel_array, after.pixel_array)
        assert f"AI-DN {card.name} v{card.version}" in after.SeriesDescription


# --- the shipped weights


@pytest.fixture(scope="module")
def bundled() -> Denoiser:
    return load_denoiser(threads=1)


def test_the_bundled_network_draws_no_pattern_into_a_flat_field(bundled: Denoiser) -> None:
    middle = bundled.denoise_slice(np.full((256, 256), 40, np.float32))[32:-32, 32:-32]
    assert middle.std() < 0.8  # a thousandth of the energy of 25 HU of noise
    assert abs(middle.mean() - 40) < 1


def test_texture_brings_the_fine_structure_of_the_bundled_network_back(bundled: Denoiser, middle_of_the_sample: CTVolume) -> None:
    hu = middle_of_the_sample.hu[0]
    plain, full = (bundled.denoise_slice(hu, texture=texture) for texture in (0, 1))
    rough = [np.median(np.abs(image[1:] - image[:-1])[hu[1:] > -200]) for image in (plain, full)]
    assert rough[1] > 1.1 * rough[0]
    assert abs((full - plain).mean()) < 0.1


@pytest.fixture
def middle_of_the_sample() -> CTVolume:
    return read_series(sample_folder()).part(slice(4, 5))


def test_the_bundled_network_brings_a_quarter_dose_scan_closer_to_the_original(
    bundled: Denoiser, middle_of_the_sample: CTVolume
) -> None:
    original, kernel = middle_of_the_sample, find_kernel("B40f")
    exposure = matching_exposure(original, kernel=kernel)
    low_dose = simulate_low_dose(original, dose_fraction=0.25, kernel=kernel, exposure=exposure, seed=0)
    denoised = bundled.denoise(low_dose)
    assert rmse(denoised.hu, original.hu) < rmse(low_dose.hu, original.hu)


@pytest.mark.parametrize(
    ("pixel_mm", "noise", "kernel", "says"),
    [
        (0.8, 20.0, "", []),
        (0.8, 20.0, "B30f\\2", []),
        (0.8 / 1.5, 20.0, "", ["pixels of 0.533 mm, trained on 0.75 to 0.95 mm"]),
        (0.8, 90.0, "", ["noise above 0.4 Nyquist of 9", "trained on 5 to 60 HU"]),
        (0.8, 1.0, "Qr59", ["noise above 0.4 Nyquist of 1", "kernel Qr59, trained on B30f, D45f"]),
    ],
)
def test_a_scan_beyond_the_training_is_said_to_be(
    card: ModelCard, pixel_mm: float, noise: float, kernel: str, says: list[str]
) -> None:
    card = card.model_copy(update={"pixel_mm": (0.75, 0.95), "noise_hu": (5.0, 60.0), "kernels": ("B30f", "D45f")})
    denoiser = Denoiser(identity, hu_range=RANGE, stride=STRIDE, card=card)
    y, x = np.ogrid[-64:64, -64:64]
    hu = np.where(y**2 + x**2 < 50**2, 40.0, -1000.0) + np.random.default_rng(0).normal(0, noise, (9, 128, 128))
    volume = CTVolume.from_array(hu, pixel_mm=pixel_mm, slice_mm=3, acquisition={"ConvolutionKernel": kernel})
    lines = " | ".join(denoiser.unlike_training(volume))
    assert bool(lines) == bool(says)
    assert all(each in lines for each in says), lines


def test_without_a_body_or_a_card_nothing_is_said_of_noise(card: ModelCard) -> None:
    empty = CTVolume.from_array(np.full((2, 64, 64), -1000.0), pixel_mm=0.8, slice_mm=3)
    assert Denoiser(identity, hu_range=RANGE, stride=STRIDE, card=card).unlike_training(empty) == []
    assert Denoiser(identity, hu_range=RANGE, stride=STRIDE).unlike_training(empty) == []
