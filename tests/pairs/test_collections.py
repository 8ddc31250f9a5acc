"""Collections of real scans at two doses: every layout finds its pairs by what the files say, never by the order of their names."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from ct_files import PLANTED, slice_hu, write_ct, write_volume
from numpy.typing import NDArray
from pydantic import TypeAdapter

from finegrain.config import CollectionSource, Source
from finegrain.errors import DataError
from finegrain.pairs.collections import PairedScan, find_pairs, find_scans, pseudonym
from finegrain.pairs.collections import lodopab as lodopab_layout

Z = [3.0 * k for k in range(6)]


def find(root: Path, **source: object) -> tuple[list[PairedScan], tuple[str, ...]]:
    return find_pairs(CollectionSource.model_validate(source), data_root=root)


def check_slices(pair: PairedScan, z_mm: list[float], *, noise: int = 25) -> None:
    """Both doses show the slices at these positions, low dose with its noise."""
    low, normal = pair.read(range(len(pair)))
    assert low.positions_mm[:, 2].tolist() == normal.positions_mm[:, 2].tolist() == z_mm
    np.testing.assert_array_equal(low.hu, [slice_hu(z, noise) for z in z_mm])
    np.testing.assert_array_equal(normal.hu, [slice_hu(z) for z in z_mm])


# --- slices and series --------------------------------------------------------------------------------------------------


def test_slices_are_partners_by_position_though_names_and_numbers_run_against_each_other(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z, names=[f"{k}.dcm" for k in range(6)], noise=25)
    write_ct(tmp_path / "normal", Z[::-1], names=[f"{k}.dcm" for k in range(6)])
    (pair,), notes = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    assert (len(pair), pair.notes, notes, pair.dose_fraction, pair.noise) == (6, (), (), None, None)
    check_slices(pair, Z)


def test_a_slice_without_partner_is_left_out_and_counted(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", [0, 3, 9, 12, 15], noise=25)
    write_ct(tmp_path / "normal", [3, 6, 9, 15])
    (pair,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    check_slices(pair, [3, 9, 15])
    assert "2 of 5 low-dose and 1 of 4 normal-dose slices have no partner" in pair.notes[0]


@pytest.mark.parametrize("numbers", [[4, 0, 3], [1, 2, 3], [0, 2, 4], [5], [2, 2], [0, 1, 4, 5]])
@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_any_of_the_pairs_are_read_in_the_order_asked_for(tmp_path: Path, numbers: list[int], kind: str) -> None:
    for dose, noise in (("low", 25), ("normal", 0)):
        if kind == "dicom":
            write_ct(tmp_path / dose, Z, noise=noise)
        else:
            write_volume(tmp_path / dose / "a.nii.gz", Z, noise=noise)
    (pair,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    low, normal = pickle.loads(pickle.dumps(pair)).read(numbers)
    np.testing.assert_array_equal(low.hu, [slice_hu(Z[n], 25) for n in numbers])
    np.testing.assert_array_equal(normal.hu, [slice_hu(Z[n]) for n in numbers])
    assert low.positions_mm[:, 2] == pytest.approx([Z[n] for n in numbers])


@pytest.mark.parametrize(
    "shift_mm, paired",
    [((0.05, 0, 0), True), ((0.09, 0, 0), False), ((0, -0.09, 0), False), ((0, 0, 0.2), True), ((0, 0, 0.4), False)],
)
def test_slices_a_tenth_of_a_pixel_or_of_their_distance_apart_are_no_partners(
    tmp_path: Path, shift_mm: tuple[float, float, float], paired: bool
) -> None:
    write_ct(tmp_path / "low", Z)
    for path, z in zip([tmp_path / "normal" / f"{k}" for k in range(6)], Z, strict=True):
        x_mm, y_mm, z_mm = shift_mm
        write_ct(
            path,
            [z + z_mm],
            ImagePositionPatient=[-10 + x_mm, -20 + y_mm, z + z_mm],
            SeriesInstanceUID="1.2.3.4.5.6.7",
            StudyInstanceUID="1.2.3.4.5.6",
        )
    if paired:
        (pair,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
        assert len(pair) == 6
        pair.read([0, 5])
    else:
        with pytest.raises(DataError, match="no slice lies in the place"):
            find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


def test_few_slices_far_apart_do_not_make_the_tolerance_larger(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", [0, 60, 120])
    write_ct(tmp_path / "normal", [3, 63, 123])
    with pytest.raises(DataError, match="no slice lies in the place"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


@pytest.mark.parametrize(
    "header, reason",
    [
        ({"kernel": "D45f"}, "kernel B30f at low dose, D45f at normal dose"),
        ({"SliceThickness": 1}, "slices of 3 mm at low dose, 1 mm at normal dose"),
        ({"PixelSpacing": [0.7, 0.71]}, "pixels of 0.7 × 0.7 mm at low dose, 0.7 × 0.71 mm"),
        ({"ImageOrientationPatient": [0.9999, 0.01414, 0, -0.01414, 0.9999, 0]}, "different orientations"),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, "different orientations"),
    ],
)
def test_series_that_differ_in_more_than_dose_are_no_pair(tmp_path: Path, header: dict, reason: str) -> None:
    write_ct(tmp_path / "low", Z)
    write_ct(tmp_path / "normal", Z, **header)
    with pytest.raises(DataError, match=reason):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


def test_one_folder_given_twice_is_no_pair(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z)
    with pytest.raises(DataError, match="both doses are the same images"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="low")


def test_the_fingerprint_knows_both_series_and_their_partners(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z, noise=25)
    write_ct(tmp_path / "normal", Z)
    (first,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    (again,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    assert first.fingerprint == again.fingerprint
    write_ct(tmp_path / "normal", [*Z, 18.0])
    (longer,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    assert len({first.fingerprint, longer.fingerprint}) == 2


# --- the challenge ------------------------------------------------------------------------------------------------------

CHALLENGE = {
    "dose, patient": "{dose}_3mm/{patient}",
    "as unpacked": "3mm {kernel}/{short}_3mm/{dose}_3mm{sharp}/{patient}/{dose}_3mm{sharp}",
    "patient first": "deep/er/{patient}/{kernel}/{dose}",
    "capitals": "{patient}/{DOSE}_3MM{sharp}",
}


@pytest.mark.parametrize("layout", ["auto", "mayo"])
@pytest.mark.parametrize("template", CHALLENGE.values(), ids=CHALLENGE.keys())
def test_the_challenge_is_paired_by_patient_and_kernel(tmp_path: Path, template: str, layout: str) -> None:
    for patient, first in (("L067", 0.0), ("L291", 300.0)):
        for kernel, sharp in (("B30f", ""), ("D45f", "_sharp")):
            for dose, short, noise in (("full", "FD", 0), ("quarter", "QD", 25)):
                place = template.format(patient=patient, kernel=kernel, dose=dose, DOSE=dose.upper(), short=short, sharp=sharp)
                names = [f"{patient}_{short}_{kernel}.CT.{k:04d}.IMA" for k in range(6)]
                z_mm = [first + z for z in (Z if dose == "full" else Z[::-1])]
                write_ct(tmp_path / place, z_mm, patient_id="Anonymous", kernel=kernel, noise=noise, names=names)
    pairs, notes = find(tmp_path, path=".", layout=layout)
    assert sorted((pair.patient, pair.kernel) for pair in pairs) == [(p, k) for p in ("L067", "L291") for k in ("B30f", "D45f")]
    assert {(pair.collection, pair.dose_fraction, pair.noise, pair.split) for pair in pairs} == {("mayo", 0.25, "inserted", None)}
    for pair in pairs:
        check_slices(pair, [z + (300 if pair.patient == "L291" else 0) for z in Z])
    assert notes == (("taken for the layout mayo",) if layout == "auto" else ())


def test_a_flat_challenge_folder_tells_patients_by_the_names_of_files(tmp_path: Path) -> None:
    for dose, short, noise in (("full", "FD", 0), ("quarter", "QD", 25)):
        for patient in ("L067", "L291"):
            names = [f"{patient}_{short}_3_1.CT.{k:04d}.IMA" for k in range(6)]
            uid = {"SeriesInstanceUID": f"1.2.3.{int(patient[1:])}.{len(dose)}"}
            write_ct(tmp_path / f"{dose}_3mm", Z, patient_id="Anonymous", names=names, noise=noise, **uid)
    pairs, _ = find(tmp_path, path=".", layout="mayo")
    assert [pair.patient for pair in pairs] == ["L067", "L291"]
    for pair in pairs:
        check_slices(pair, Z)


def test_a_kernel_that_only_one_dose_has_is_left_out_with_the_reason(tmp_path: Path) -> None:
    for place, kernel in (("full_3mm/L067", "B30f"), ("full_3mm_sharp/L067", "D45f"), ("quarter_3mm/L067", "B30f")):
        write_ct(tmp_path / place, Z, patient_id="Anonymous", kernel=kernel)
    pairs, notes = find(tmp_path, path=".", layout="mayo")
    assert [pair.kernel for pair in pairs] == ["B30f"]
    assert notes == ("patient L067: 6 slices, kernel D45f, at normal dose left out: no low dose in its place",)


# --- TCIA ---------------------------------------------------------------------------------------------------------------


def write_tcia(root: Path, template: str) -> None:
    for patient, first in (("C002", 0.0), ("L004", 300.0), ("N012", 600.0)):
        for dose, noise in (("Full", 0), ("Low", 25)):
            place = root / template.format(patient=patient, dose=dose, number=len(dose) * 11111)
            description = f"{dose} Dose Images" if patient != "L004" else f"{dose} dose images"
            write_ct(place, [first + z for z in Z], patient_id=patient, noise=noise, SeriesDescription=description)
    write_ct(
        root / template.format(patient="C099", dose="Full", number=1), Z, patient_id="C099", SeriesDescription="Full Dose Images"
    )


@pytest.mark.parametrize("layout", ["auto", "tcia-ldct"])
@pytest.mark.parametrize(
    "template", ["{patient}/12-23-2021-NA-NA-1/1.000000-{dose} Dose Images-{number}", "{patient}/1.2.3.4/1.2.3.4.{number}"]
)
def test_tcia_series_are_paired_and_their_dose_is_that_of_the_region(tmp_path: Path, template: str, layout: str) -> None:
    write_tcia(tmp_path, template)
    pairs, notes = find(tmp_path, path=".", layout=layout)
    assert [(pair.patient, pair.dose_fraction) for pair in pairs] == [("C002", 0.10), ("L004", 0.25), ("N012", 0.25)]
    assert {(pair.collection, pair.noise) for pair in pairs} == {("tcia-ldct", "inserted")}
    for pair, first in zip(pairs, (0, 300, 600), strict=True):
        check_slices(pair, [first + z for z in Z])
    assert "patient C099: 6 slices, kernel B30f, at normal dose left out: no low dose in its place" in notes


def test_a_tcia_patient_without_an_id_is_known_by_the_folder(tmp_path: Path) -> None:
    for dose in ("Full", "Low"):
        for patient in ("C002", "L004"):
            write_ct(tmp_path / f"{patient}/1.000000-{dose} Dose Images-1", Z, patient_id="ANON")
    pairs, _ = find(tmp_path, path=".")
    assert [(pair.patient, pair.dose_fraction) for pair in pairs] == [("C002", 0.10), ("L004", 0.25)]


def test_projections_are_left_out_by_folder_and_by_description(tmp_path: Path) -> None:
    write_tcia(tmp_path / "a", "{patient}/s/1.000000-{dose} Dose Images-{number}")
    folder = tmp_path / "a/C002/s/1.000000-Full dose projections-24362"
    write_ct(folder, Z, patient_id="C002", SeriesDescription="Full dose projections")
    pairs, notes = find(tmp_path, path="a", layout="tcia-ldct")
    assert len(pairs) == 3
    assert "1 folders of projection data left out" in notes
    write_tcia(tmp_path / "b", "{patient}/{number}")
    write_ct(tmp_path / "b/C002/9", Z, patient_id="C002", SeriesDescription="Low dose projections")
    pairs, notes = find(tmp_path, path="b", layout="tcia-ldct")
    assert [len(pair) for pair in pairs] == [6, 6, 6]
    assert "1 series left out that are not called full or low dose images" in notes


# --- LoDoPaB-CT ---------------------------------------------------------------------------------------------------------

DISCS = [(0, 0, 85, 20.0), (50, -30, 15, 18.0), (-60, 20, 20, -16.0), (-5, 60, 10, -8.0), (-118, -118, 6, 30.0)]
"""x, y, radius in mm and attenuation in 1/m: a body, bone, lung, fat, and something in the corner in front of the right side."""


def disc_image() -> NDArray[np.float32]:
    """The discs as LoDoPaB stores them, axis 0 along x, averaged over 5 × 5 points in each pixel. Shape: (362, 362)."""
    axis = (np.arange(362 * 5) + 0.5) * 260 / 362 / 5 - 130
    mu = np.zeros((len(axis), len(axis)), dtype=np.float32)
    for x, y, radius, value in DISCS:
        mu += value * ((axis[:, None] - x) ** 2 + (axis[None, :] - y) ** 2 < radius**2)
    return (mu.reshape(362, 5, 362, 5).mean((1, 3)) / 81.35858).astype(np.float32)


def disc_sinogram() -> NDArray[np.float32]:
    """Their line integrals by the chord through a circle. Shape: (1000, 513), in units of 81.35858 1/m times metres."""
    theta = (np.arange(1000)[:, None] + 0.5) * np.pi / 1000
    cell = 260 * np.sqrt(2) / 513
    sinogram = np.zeros((1000, 513))
    points = (np.arange(513 * 4) + 0.5) * cell / 4 - 130 * np.sqrt(2)  # a cell averages over its width
    for x, y, radius, value in DISCS:
        across = points[None, :] - (x * np.cos(theta) + y * np.sin(theta))
        chord = 2 * np.sqrt(np.maximum(radius**2 - across**2, 0))
        sinogram += value / 1000 * chord.reshape(1000, 513, 4).mean(-1)
    return (sinogram / 81.35858).astype(np.float32)


def write_lodopab(folder: Path, part: str, number: int, *, n: int = 3, filled_to: int | None = None, marks: bool = False) -> None:
    """Files of n slices; with marks the ground truth of row r is r / 100 everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    image, sinogram = disc_image(), disc_sinogram()
    truth = np.zeros((filled_to or n, 362, 362), np.float32)
    for row in range(n):
        truth[row] = row / 100 if marks else image
    with h5py.File(folder / f"ground_truth_{part}_{number:03d}.hdf5", "w") as file:
        file["data"] = truth
    with h5py.File(folder / f"observation_{part}_{number:03d}.hdf5", "w") as file:
        file["data"] = np.stack([sinogram] * n)


def test_lodopab_is_reconstructed_in_the_place_and_in_the_hu_of_its_ground_truth(tmp_path: Path) -> None:
    write_lodopab(tmp_path, "test", 0, n=1)
    (pair,), _ = find(tmp_path, path=".")
    low, normal = pair.read([0])
    assert low.hu.shape == normal.hu.shape == (1, 362, 362)
    mm = (np.arange(362) + 0.5) * 260 / 362 - 130
    for x, y, radius, value in DISCS:
        around = (mm[None, :] - x) ** 2 + (mm[:, None] - y) ** 2  # rows along y
        inside = around < (radius - 3) ** 2 if value < 30 else around < (radius - 2) ** 2
        for other_x, other_y, other_radius, _ in DISCS[1:]:
            if (other_x, other_y) != (x, y):
                inside &= (mm[None, :] - other_x) ** 2 + (mm[:, None] - other_y) ** 2 > (other_radius + 3) ** 2
        attenuation = value if value in (20.0, 30.0) else 20.0 + value
        hu = 1000 * (attenuation - 20) / 19.98
        assert normal.hu[0][inside].mean() == pytest.approx(hu, abs=0.1)
        assert low.hu[0][inside].mean() == pytest.approx(hu, abs=2)
        ring = around < (radius + 4) ** 2
        for image in (low.hu[0], normal.hu[0]):  # the middle of each disc lies where it was put
            weight = np.where(ring, image - image[ring].min(), 0) if radius < 11 and value > 0 else None
            if weight is not None:
                assert (weight.sum(0) @ mm / weight.sum(), weight.sum(1) @ mm / weight.sum()) == pytest.approx((x, y), abs=0.05)
    flat = np.abs(low.hu - normal.hu)[0][17:-17, 17:-17]
    assert np.median(flat) < 2
    spectrum = np.fft.fft2(low.hu[0]) * np.fft.fft2(normal.hu[0]).conj()
    shift = np.unravel_index(np.fft.ifft2(spectrum).real.argmax(), (362, 362))
    assert shift == (0, 0)


def test_lodopab_patients_come_from_the_table_and_sides_from_the_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_lodopab(tmp_path / part, part, 0, n=3, filled_to=128, marks=True)
    (tmp_path / "train/patient_ids_rand_train.csv").write_text("17\n4\n17\n" + "0\n" * 200)
    pairs, notes = find(tmp_path, path=".", layout="lodopab", dose_fraction=0.05)
    by_name = {pair.patient: pair for pair in pairs}
    assert set(by_name) == {"lodopab-train-17", "lodopab-train-4", "lodopab-test-file-000"}
    assert [by_name[name].split for name in ("lodopab-train-17", "lodopab-test-file-000")] == ["train", "test"]
    assert (by_name["lodopab-train-4"].dose_fraction, by_name["lodopab-train-4"].noise) == (0.05, "inserted")
    _, normal = pickle.loads(pickle.dumps(by_name["lodopab-train-17"])).read([1, 0])
    expected = 1000 * (np.array([0.02, 0.0]) * 81.35858 - 20) / 19.98
    assert normal.hu[:, 0, 0] == pytest.approx(expected, abs=0.01)
    assert len(by_name["lodopab-test-file-000"]) == 3, "the ground truth is filled up with empty slices"
    assert any(note.startswith("test: patients are unknown") for note in notes)


def test_lodopab_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("ground_truth", "observation"):
        (tmp_path / f"{kind}_train_000.hdf5").touch()
    with pytest.raises(DataError, match=r"train_000\.hdf5 cannot be read as HDF5"):
        find(tmp_path, path=".")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"finegrain\[collections\]"):
        find(tmp_path, path=".")


def test_lodopab_files_of_another_shape_or_too_few_patients_are_refused(tmp_path: Path) -> None:
    write_lodopab(tmp_path, "train", 1, n=2)
    (tmp_path / "patient_ids_rand_train.csv").write_text("1\n" * 129)
    with pytest.raises(DataError, match="each of 130 slices, got 129"):
        find(tmp_path, path=".")
    (tmp_path / "patient_ids_rand_train.csv").unlink()
    with h5py.File(tmp_path / "observation_train_001.hdf5", "w") as file:
        file["data"] = np.zeros((2, 100, 513), np.float32)
    (pair,), _ = find(tmp_path, path=".")
    with pytest.raises(DataError, match=r"shape \(2, 100, 513\), expected \(slices, 1000, 513\)"):
        pair.read([0])


def test_noise_of_one_ray_comes_out_as_the_window_lets_it(tmp_path: Path) -> None:
    """White noise in the sinogram has in the image the variance that the ramp and the window leave of it."""
    sd = 0.01
    sinogram = np.random.default_rng(0).normal(0, sd, (1000, 513)) / 81.35858 / 1000 * 1000
    image = lodopab_layout.reconstruct(sinogram.astype(np.float32))[100:262, 100:262]
    cell_m, nyquist = 260 * np.sqrt(2) / 513 / 1000, 513 / (2 * 0.26 * np.sqrt(2))
    f = np.linspace(0, nyquist, 20001)
    transfer = f * (0.5 + 0.5 * np.cos(np.pi * f / nyquist))
    variance = 2 * np.trapezoid(transfer**2, f) * cell_m * sd**2 * np.pi**2 / 1000
    assert np.std(image) == pytest.approx(1000 / 19.98 * np.sqrt(variance), rel=0.03)


# --- folders ------------------------------------------------------------------------------------------------------------


def test_folders_pair_several_patients_kernels_and_series(tmp_path: Path) -> None:
    for patient, first in (("11", 0.0), ("12", 0.0), ("13", 300.0)):
        for dose, noise in (("low", 25), ("normal", 0)):
            for kernel in ("B30f", "D45f"):
                write_ct(
                    tmp_path / dose / f"{noise}{patient}{kernel}",
                    [first + z for z in Z],
                    patient_id=patient,
                    kernel=kernel,
                    noise=noise,
                )
    pairs, notes = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal", dose_fraction=0.1, noise="independent")
    assert sorted((pair.patient, pair.kernel) for pair in pairs) == sorted(
        (pseudonym(patient), kernel) for patient in ("11", "12", "13") for kernel in ("B30f", "D45f")
    )
    assert {(pair.dose_fraction, pair.noise) for pair in pairs} == {(0.1, "independent")}
    assert notes == ()
    for pair in pairs:
        check_slices(pair, [(300 if pair.patient == pseudonym("13") else 0) + z for z in Z])


def test_of_two_series_in_one_place_none_is_guessed(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z, patient_id="11")
    for phase in ("arterial", "venous"):
        write_ct(tmp_path / "normal" / phase, Z, patient_id="11")
    with pytest.raises(DataError, match="2 series at normal dose lie in its place"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


@pytest.mark.parametrize("patient", ["11", "ANON"])
def test_of_two_low_dose_series_in_the_place_of_one_normal_dose_none_is_guessed(tmp_path: Path, patient: str) -> None:
    write_ct(tmp_path / "normal", Z, patient_id=patient)
    for phase in ("arterial", "venous"):
        write_ct(tmp_path / "low" / phase, Z, patient_id=patient)
    with pytest.raises(DataError, match="2 series at low dose lie in this place"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_are_paired_by_their_path_in_the_tree(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "deep/b", "c"):
        write_volume(tmp_path / f"low/{name}{suffix}", Z, noise=25 + len(name))
        write_volume(tmp_path / f"normal/{name}.nii.gz", Z, noise=len(name) + ord(name[-1]) - 97)
    pairs, notes = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    assert len({pair.patient for pair in pairs}) == 3
    noise = sorted((pair.read([0])[0].hu.max(), pair.read([0])[1].hu.max()) for pair in pairs)
    assert noise == [(26, 1), (26, 3), (31, 7)]
    assert any("give a CSV with the column patient" in note for note in notes)


def test_a_volume_and_a_dicom_series_on_one_grid_are_a_pair(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z, noise=25)
    write_volume(tmp_path / "other name.nii", Z)
    (pair,), _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="other name.nii")
    check_slices(pair, Z)
    assert pair.patient == pseudonym(PLANTED[1])


def test_volumes_of_unknown_patients_on_one_grid_are_not_paired_across_names(tmp_path: Path) -> None:
    for dose in ("low", "normal"):
        for k in range(2):
            write_volume(tmp_path / dose / f"{dose}-{k}.nii", Z, noise=k + len(dose))
    with pytest.raises(DataError, match="2 series at normal dose lie in its place"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


def test_anonymised_series_in_different_places_find_each_other(tmp_path: Path) -> None:
    for k in range(2):
        write_ct(tmp_path / f"low/x{k}", [z + 300 * k for z in Z], patient_id="ANON", noise=25)
        write_ct(tmp_path / f"normal/y{1 - k}", [z + 300 * k for z in Z], patient_id="ANON")
    pairs, _ = find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")
    assert len({pair.patient for pair in pairs}) == 2
    for pair in pairs:
        check_slices(pair, [z + pair.normal_dose.positions_mm[0, 2] for z in Z])


def test_series_that_lost_their_noise_to_compression_are_left_out(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z, LossyImageCompression="01")
    write_ct(tmp_path / "normal", Z)
    with pytest.raises(DataError, match=r"low_dose: expected CT series, found none .*lossy"):
        find(tmp_path, layout="folders", low_dose="low", normal_dose="normal")


# --- CSV ----------------------------------------------------------------------------------------------------------------


def test_each_line_of_a_table_is_a_pair_with_its_own_facts(tmp_path: Path) -> None:
    for kernel in ("B30f", "D45f"):
        write_ct(tmp_path / "scans/low" / kernel, Z, kernel=kernel, noise=25)
        write_ct(tmp_path / "scans/full" / kernel, Z, kernel=kernel)
    write_volume(tmp_path / "scans/v-low.nii", Z, noise=25)
    write_volume(tmp_path / "scans/v.nii", Z)
    (tmp_path / "scans/table.csv").write_text(
        "\ufeffNormal_Dose, low_dose,patient,dose_fraction,noise,split,kernel\n"
        "full,low,one,0.1,inserted,test,D45f\n"
        "\n"
        "v.nii,v-low.nii,,,,,\n",
        encoding="utf-8",
    )
    pairs, _ = find(tmp_path, path="scans/table.csv", dose_fraction=0.5)
    facts = [(pair.collection, pair.patient, pair.kernel, pair.dose_fraction, pair.noise, pair.split) for pair in pairs]
    assert facts[0] == ("csv", "one", "D45f", 0.1, "inserted", "test")
    assert facts[1][2:] == ("", 0.5, None, None)
    for pair in pairs:
        check_slices(pair, Z)
    scans, _ = find_scans(tmp_path / "scans/table.csv")
    assert [label for label, _ in scans][-1] == pairs[1].patient


@pytest.mark.parametrize(
    "text, message",
    [
        ("low_dose,normaldose\nlow,normal", "column 2 of the table is unknown, the nearest is 'normal_dose'"),
        ("low_dose,patient\nlow,a", "needs the columns low_dose and normal_dose"),
        ("low_dose,normal_dose,low_dose\nlow,normal,low", "a column twice"),
        ("low_dose,normal_dose\nlow,secretfolder", "line 2 of the table: normal_dose: .*found nothing"),
        ("low_dose,normal_dose\nlow,", "line 2 of the table: normal_dose is empty"),
        ("low_dose,normal_dose\nlow,normal,SECRETNAME", "line 2 of the table has 3 fields, expected 2"),
        ("low_dose,normal_dose,patient\nlow,normal,SECRETNAME/..", "line 2 of the table: patient must be of letters"),
        ("low_dose,normal_dose,dose_fraction\nlow,normal,SECRETNAME", "line 2 .* dose_fraction must be a number between 0 and 1"),
        ("low_dose,normal_dose,dose_fraction\nlow,normal,25", "line 2 .* dose_fraction must be a number between 0 and 1"),
        ("low_dose,normal_dose,noise\nlow,normal,SECRETNAME", "line 2 .* noise must be inserted, independent or empty"),
        ("low_dose,normal_dose,split\nlow,normal,SECRETNAME", "line 2 .* split must be train, validation, test or empty"),
        ("low_dose,normal_dose,kernel\nlow,normal,SECRETNAME", "line 2 .* no series of low_dose has its kernel"),
        ("", "needs the columns"),
    ],
)
def test_a_wrong_table_is_told_by_line_and_column_and_not_quoted(tmp_path: Path, text: str, message: str) -> None:
    write_ct(tmp_path / "low", Z)
    write_ct(tmp_path / "normal", Z)
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        find(tmp_path, path="table.csv")
    assert not tells(str(error.value))


def test_a_line_that_stands_twice_counts_once(tmp_path: Path) -> None:
    write_ct(tmp_path / "low", Z)
    write_ct(tmp_path / "normal", Z)
    (tmp_path / "table.csv").write_text("low_dose,normal_dose\nlow,normal\nlow,normal\n")
    pairs, notes = find(tmp_path, path="table.csv")
    assert len(pairs) == 1
    assert "1 pairs of series are there twice and count once" in notes


# --- looking, labels, privacy -------------------------------------------------------------------------------------------


def tells(text: str) -> list[str]:
    return [secret for secret in PLANTED if secret.lower() in text.lower()]


def test_every_configuration_in_the_guide_is_valid_and_every_layout_is_in_it() -> None:
    guide = (Path(__file__).parents[2] / "docs/data-sets.md").read_text(encoding="utf-8")
    blocks = [source for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) for source in yaml.safe_load(text)]
    sources = [TypeAdapter[object](Source).validate_python(block) for block in blocks]
    layouts = {source.layout for source in sources if isinstance(source, CollectionSource)}
    assert layouts == {"mayo", "tcia-ldct", "lodopab", "folders", "auto"}


def test_what_looks_like_no_collection_is_refused_with_the_layouts_there_are(tmp_path: Path) -> None:
    write_ct(tmp_path / "secretfolder", Z)
    with pytest.raises(DataError, match=r"none of the layouts mayo, tcia-ldct, lodopab, csv; give layout: folders") as error:
        find(tmp_path, path="secretfolder")
    assert not tells(str(error.value))
    with pytest.raises(DataError, match="found none; paths start at the data root") as error:
        find(tmp_path, path="secretfile")
    assert not tells(str(error.value))


def test_only_the_normal_dose_of_a_collection_is_there_to_simulate_from(tmp_path: Path) -> None:
    for dose, noise in (("full", 0), ("quarter", 25)):
        write_ct(tmp_path / f"mayo/{dose}_3mm/L067", Z, patient_id="Anonymous", noise=noise)
    write_tcia(tmp_path / "tcia", "{patient}/{number}")
    write_lodopab(tmp_path / "lodopab", "validation", 0, n=1)
    for name, labels in (
        ("mayo", ["L067"]),
        ("tcia", ["C002", "C099", "L004", "N012"]),
        ("lodopab", ["lodopab-validation-file-000"]),
    ):
        scans, notes = find_scans(tmp_path / name)
        assert sorted(label for label, _ in scans) == labels
        assert "only its normal dose is used" in notes[0]
        for _, series in scans:
            if name != "lodopab":
                hu = series.read(slice(0, 1)).hu[0]
                assert hu.min() == hu.max(), "low dose has the noise"


def test_any_other_tree_gives_all_its_series_with_one_label_for_each_patient(tmp_path: Path) -> None:
    for place, patient in (("a", "77"), ("b", "77"), ("c", "78")):
        write_ct(tmp_path / place, Z, patient_id=patient)
    write_volume(tmp_path / "d.nii.gz", Z)
    scans, notes = find_scans(tmp_path)
    labels = sorted(label for label, _ in scans)
    fingerprint = next(series.fingerprint for _, series in scans if series.fingerprint[:10] in "".join(labels))
    assert labels == sorted([pseudonym("77"), pseudonym("77"), pseudonym("78"), f"s-{fingerprint[:10]}"])
    assert notes == ()
    with pytest.raises(DataError, match="found nothing"):
        find_scans(tmp_path / "nothing")


def test_a_pseudonym_is_a_keyed_hash_but_for_public_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINEGRAIN_PSEUDONYM_KEY", raising=False)
    assert [pseudonym(text) for text in ("L067", "C002", "N123 ")] == ["L067", "C002", "N123"]
    expected = hmac.new(b"finegrain", b"4711", hashlib.sha256).hexdigest()[:10]
    assert pseudonym("4711") == pseudonym(" 4711") == f"p-{expected}"
    monkeypatch.setenv("FINEGRAIN_PSEUDONYM_KEY", "our secret")
    assert pseudonym("4711") != f"p-{expected}"
    for text in ("L0671", "X067", "l067", "L067\n1"):
        assert pseudonym(text).startswith("p-")


def _mayo(root: Path) -> dict[str, object]:
    for dose in ("full", "quarter"):
        write_ct(root / f"secretfolder/{dose}_3mm", Z, names=[f"secretfile{k}.IMA" for k in range(6)])
    return {"path": "secretfolder"}


def _tcia(root: Path) -> dict[str, object]:
    for dose in ("Full", "Low"):
        write_ct(root / f"secretfolder/{dose} dose images secretstudy", Z, names=[f"secretfile{k}" for k in range(6)])
    return {"path": "secretfolder", "layout": "tcia-ldct"}


def _folders(root: Path) -> dict[str, object]:
    for dose in ("low", "normal"):
        write_ct(root / f"secretfolder/{dose}", Z, names=[f"secretfile{k}" for k in range(6)])
        write_volume(root / f"secretfolder/{dose}/secretfile.nii", Z, noise=len(dose))
    return {"layout": "folders", "low_dose": "secretfolder/low", "normal_dose": "secretfolder/normal"}


def _csv(root: Path) -> dict[str, object]:
    _folders(root)
    (root / "secretfolder/secretfile.csv").write_text("low_dose,normal_dose\nlow,normal\n")
    return {"path": "secretfolder/secretfile.csv"}


def _lodopab(root: Path) -> dict[str, object]:
    write_lodopab(root / "secretfolder", "train", 0, n=1)
    return {"path": "secretfolder"}


@pytest.mark.parametrize("write", [_mayo, _tcia, _folders, _csv, _lodopab])
def test_no_name_leaves_a_collection(
    tmp_path: Path, write: Callable[[Path], dict[str, object]], capfd: pytest.CaptureFixture
) -> None:
    source = write(tmp_path)
    # Beside good files: text, a screenshot's class, a slice without rescale, a damaged volume, and slices without partner.
    side = tmp_path / "secretfolder" / {"_mayo": "full_3mm", "_tcia": "Full dose images secretstudy"}.get(write.__name__, "normal")
    write_ct(side / "bad", Z, patient_id=PLANTED[1] + "x", RescaleSlope=None, SeriesDescription=f"Full dose images {PLANTED[2]}")
    write_ct(side / "more", [100, 103], patient_id=PLANTED[1] + "y", SeriesDescription=f"Full dose images {PLANTED[2]}")
    write_ct(side / "other", Z, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    (side / "secretfile.txt").write_text(PLANTED[0])
    (side / "secretfile2.nii.gz").write_bytes(b"SECRETNAME")
    pairs, notes = find(tmp_path, **source)
    assert len(notes) >= 2 or write is _lodopab
    for pair in pairs:
        pair.read([0])
        assert not tells(" ".join([pair.patient, pair.kernel, *pair.notes, repr(pair)]))
    assert not tells(" ".join(notes)), notes
    assert not re.search(r"\d+(\.\d+){3}", " ".join(notes)), "a UID leads back to the patient"
    _, lines = find_scans(tmp_path / "secretfolder")
    assert not tells(" ".join(lines))
    for file in pairs[0].normal_dose.files if write is not _lodopab else sorted((tmp_path / "secretfolder").glob("*.hdf5")):
        file.write_bytes(b"nothing")
    with pytest.raises(Exception) as error:
        pairs[0].read([0])
    assert not tells(str(error.value)), str(error.value)
    assert not tells("".join(capfd.readouterr()))
