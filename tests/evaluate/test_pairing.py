from contextlib import contextmanager

import numpy as np
import pytest
from anatomy_files import SIDE, Z_MM, patient_hu, write_dicom, write_nifti
from ct_files import FIRST_MM, PIXEL_MM, PLANTED
from pydicom import dcmread

from finegrain.errors import DataError
from finegrain.evaluate.pairing import LEAST_LIKENESS, likeness, pair_methods, place
from finegrain.evaluate.trees import find_images
from finegrain.sample import sample_folder
from finegrain.scan.derived import Derivation, write_derived_series
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import read_nifti


@pytest.fixture
def images(tmp_path):
    def find(path, name="ours"):
        return find_images(path, name, scratch=tmp_path / "unpacked" / name)[0]

    return find


@contextmanager
def refused(match):
    """What is refused is told in one line that names no patient and no file of one."""
    with pytest.raises(DataError, match=match) as caught:
        yield
    told = str(caught.value)
    assert "\n" not in told
    assert not [word for word in (*PLANTED, ".dcm", ".nii", "alice", "bob") if word in told], told


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPI", "SLP", "PSR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_file_in_any_order_of_axes_lies_on_the_dicom_slice_by_slice(tmp_path, images, axes, suffix):
    hu = patient_hu(1)
    reference = images(write_dicom(tmp_path / "dicom", hu), "reference")
    other = images(write_nifti(tmp_path / f"a{suffix}", hu, axes=axes))
    (case,) = pair_methods(reference, {"ours": other}).cases
    assert case.slices == tuple(range(len(Z_MM)))
    for number in case.slices:
        assert (case.methods["ours"].slice_hu(number) == hu[number]).all()
        assert (case.reference.slice_hu(number) == hu[number]).all()
    assert case.heights_mm == pytest.approx(Z_MM)


def test_slices_unpacked_one_by_one_are_those_of_the_whole_volume(tmp_path, images):
    path = write_nifti(tmp_path / "a.nii.gz", patient_hu(1, 21) + 0.25, tuple(1.5 * k for k in range(21)), axes="RPI")
    (one,) = images(path)
    whole = read_nifti(path).hu
    assert (np.stack([one.slice_hu(k) for k in range(len(one))]) == whole).all()


def test_patients_on_one_grid_are_told_apart_by_what_they_show_and_not_by_file_names(tmp_path, images):
    for name, seed in (("alice", 1), ("bob", 2), ("carol", 3)):
        write_nifti(tmp_path / "reference" / f"{name}.nii.gz", patient_hu(seed))
    for name, seed in (("alice", 3), ("bob", 1), ("carol", 2)):
        write_nifti(tmp_path / "ours" / f"{name}.nii.gz", patient_hu(seed, noise=40))
    cases, notes = pair_methods(images(tmp_path / "reference", "reference"), {"ours": images(tmp_path / "ours")})
    for case, seed in zip(cases, (1, 2, 3), strict=True):
        assert (case.methods["ours"].slice_hu(4) == patient_hu(seed, noise=40)[4]).all()
    assert [case.patient for case in cases] == ["patient-1", "patient-2", "patient-3"]
    assert len(notes) == 1 and "3 series tell no patient" in notes[0]


def test_pixels_swapped_between_two_patients_are_found_out_against_their_headers(tmp_path, images):
    for name, seed in (("alice", 1), ("bob", 2)):
        write_dicom(tmp_path / "reference" / name, patient_hu(seed), patient_id=name)
        write_dicom(tmp_path / "ours" / name, patient_hu(3 - seed, noise=20), patient_id=name)
    with refused(r"shows something else .* were patients swapped\?"):
        pair_methods(images(tmp_path / "reference", "reference"), {"ours": images(tmp_path / "ours")})


TURNED = {
    "mirrored left to right": lambda hu: hu[:, :, ::-1],
    "upside down": lambda hu: hu[:, ::-1],
    "turned by 180°": lambda hu: hu[:, ::-1, ::-1],
    "in reverse order": lambda hu: hu[::-1],
    "one slice further up": lambda hu: np.roll(hu, 1, axis=0),
    "one slice further down": lambda hu: np.roll(hu, -1, axis=0),
}


@pytest.mark.parametrize("way", TURNED)
def test_an_array_that_was_turned_without_its_header_is_found_out(tmp_path, images, way):
    """Organs like those of a long scan, of which slices far apart and mirrored ones are still alike."""
    reference = images(write_dicom(tmp_path / "a", patient_hu(1)), "reference")
    turned = np.ascontiguousarray(TURNED[way](patient_hu(1, noise=40)))
    with refused(f"ours fits reference if it is taken {way}"):
        pair_methods(reference, {"ours": images(write_nifti(tmp_path / "b.nii", turned))})


def test_noise_alone_never_looks_like_another_order(tmp_path, images):
    y, x = np.mgrid[:SIDE, :SIDE]
    water = np.where(np.hypot(y - SIDE / 2, x - SIDE / 2) < 40, 0, -1000)
    first, second = (np.round(water + np.random.default_rng(k).normal(0, 90, (10, SIDE, SIDE))).astype(np.int16) for k in (1, 2))
    ours = images(write_nifti(tmp_path / "b.nii", second))
    assert len(pair_methods(images(write_dicom(tmp_path / "a", first), "reference"), {"ours": ours}).cases) == 1


def test_images_of_another_patient_alone_are_refused(tmp_path, images):
    reference = images(write_nifti(tmp_path / "a.nii", patient_hu(1)), "reference")
    with refused("ours shows something else than reference .* give the same patient"):
        pair_methods(reference, {"ours": images(write_nifti(tmp_path / "b.nii", patient_hu(2)))})


def test_likeness_sees_anatomy_through_noise_that_hides_it_pixel_by_pixel(tmp_path, images):
    (reference,) = images(write_nifti(tmp_path / "a.nii", patient_hu(1)), "reference")
    (noisy,) = images(write_nifti(tmp_path / "b.nii", patient_hu(1, noise=100)))
    (other,) = images(write_nifti(tmp_path / "c.nii", patient_hu(2)), "other")
    assert likeness(reference, place(reference, noisy)) > 0.9
    assert likeness(reference, place(reference, other)) < LEAST_LIKENESS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hu": patient_hu(1)[:, :70, :70]}, r"70 × 70 pixels, expected 96 × 96"),
        ({"pixel_mm": 0.75}, r"pixels of 0.75 × 0.75 mm, expected 0.7 × 0.7 mm"),
        ({"z_mm": [z + 100 for z in Z_MM]}, r"slices at z = 100.00 … 127.00 mm, expected z = 0.00 … 27.00 mm"),
        ({"z_mm": [z + 1.5 for z in Z_MM]}, r"slices at z = 1.50 … 28.50 mm"),
    ],
)
def test_another_grid_is_refused_with_its_numbers(tmp_path, images, change, told):
    reference = images(write_dicom(tmp_path / "dicom", patient_hu(1)), "reference")
    other = images(write_nifti(tmp_path / "a.nii.gz", **({"hu": patient_hu(1)} | change)))
    with refused(told + r".*; add it, or leave it out with --allow-partial"):
        pair_methods(reference, {"ours": other})


def test_a_shift_and_a_turn_in_the_plane_are_refused_with_their_numbers(tmp_path, images):
    (reference,) = images(write_dicom(tmp_path / "a", patient_hu(1)), "reference")
    shifted = write_dicom(tmp_path / "b", patient_hu(1))
    turned = write_dicom(
        tmp_path / "c", patient_hu(1), ImageOrientationPatient=[np.cos(0.05), np.sin(0.05), 0, -np.sin(0.05), np.cos(0.05), 0]
    )
    for k, path in enumerate(sorted(shifted.iterdir())):
        dataset = dcmread(path)
        dataset.ImagePositionPatient = [FIRST_MM[0] + 0.35, FIRST_MM[1], Z_MM[k]]
        dataset.save_as(path)
    assert place(reference, images(shifted)[0]) == "images shifted by 0.35 mm in their plane"
    assert place(reference, images(turned)[0]) == "slices turned by 2.9° against the reference"


def test_a_prone_series_is_turned_onto_its_nifti_file(tmp_path, images):
    hu = patient_hu(1)
    folder = write_dicom(tmp_path / "dicom", hu[:, ::-1, ::-1], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    far = [first + PIXEL_MM * (SIDE - 1) for first in FIRST_MM]
    for path, z in zip(sorted(folder.iterdir()), Z_MM, strict=True):
        dataset = dcmread(path)
        dataset.ImagePositionPatient = [*far, z]
        dataset.save_as(path)
    cases, notes = pair_methods(images(folder, "reference"), {"ours": images(write_nifti(tmp_path / "a.nii", hu))})
    assert (cases[0].methods["ours"].slice_hu(3) == hu[3, ::-1, ::-1]).all()
    assert "ours: mirrored, as its geometry says, to lie on reference" in notes


def test_slices_without_counterpart_are_named_and_too_many_are_refused(tmp_path, images):
    hu, z_mm = patient_hu(1, 20), tuple(3.0 * k for k in range(20))
    reference = images(write_dicom(tmp_path / "a", hu, z_mm), "reference")
    keep = [k for k in range(20) if k not in (0, 7)]
    most = images(write_dicom(tmp_path / "b", hu[keep], [z_mm[k] for k in keep]))
    cases, notes = pair_methods(reference, {"ours": most})
    assert cases[0].slices == tuple(keep)
    assert notes == [
        "ours shows 18 of the 20 slices of reference, none at z = 0.00, 21.00 mm; these are not measured for any method"
    ]
    few = images(write_dicom(tmp_path / "c", hu[:5], z_mm[:5]), "few")
    with refused(r"few shows 5 of the 20 slices .* expected 90% or more; .*--allow-partial"):
        pair_methods(reference, {"ours": most, "few": few})
    (case,) = pair_methods(reference, {"ours": most, "few": few}, allow_partial=True).cases
    assert case.slices == (1, 2, 3, 4)


def test_a_missing_patient_is_refused_or_left_out_and_told(tmp_path, images):
    for name, seed in (("alice", 1), ("bob", 2)):
        write_dicom(tmp_path / "reference" / name, patient_hu(seed), patient_id=name)
    reference = images(tmp_path / "reference", "reference")
    ours = images(write_dicom(tmp_path / "ours", patient_hu(1, noise=20), patient_id="alice"))
    with refused(r"ours: expected images in the place of reference, series 2 of 2 .* found one that fits another"):
        pair_methods(reference, {"ours": ours})
    cases, notes = pair_methods(reference, {"ours": ours}, allow_partial=True)
    assert len(cases) == 1 and any("series 2 of 2" in note and "left out" in note for note in notes)


def test_of_two_kernels_in_one_place_the_same_is_taken(tmp_path, images):
    hu = patient_hu(1)
    for kernel in ("B30f", "D45f"):
        write_dicom(tmp_path / "reference" / kernel, hu, kernel=kernel)
        write_dicom(tmp_path / "ours" / kernel, hu + (1 if kernel == "D45f" else 0), kernel=kernel)
    reference = images(tmp_path / "reference", "reference")
    cases, notes = pair_methods(reference, {"ours": images(tmp_path / "ours")})
    assert [int((case.methods["ours"].slice_hu(0) - case.reference.slice_hu(0)).max()) for case in cases] == [0, 1]
    assert {case.patient for case in cases} == {"patient-1"} and [case.series for case in cases] == [1, 2]
    assert notes == []
    (sharp,) = pair_methods(
        images(tmp_path / "reference" / "B30f", "reference"), {"ours": images(tmp_path / "ours" / "D45f")}
    ).cases
    assert len(sharp.slices) == len(Z_MM)


def test_two_series_that_nothing_tells_apart_are_refused(tmp_path, images):
    reference = images(write_dicom(tmp_path / "a", patient_hu(1)), "reference")
    for name in ("one", "two"):
        write_nifti(tmp_path / "ours" / f"{name}.nii", patient_hu(1, noise=len(name)))
    with refused("ours: 2 series fit reference equally well"):
        pair_methods(reference, {"ours": images(tmp_path / "ours")})


@pytest.mark.parametrize(
    ("scale", "told"),
    [(lambda hu: hu + 1024, r"about 1 × those of the reference \+1.02e\+03"), (lambda hu: (hu + 1024) / 4095, "about 0.000244 ×")],
)
def test_values_that_are_no_hu_are_refused(tmp_path, images, scale, told):
    reference = images(write_dicom(tmp_path / "a", patient_hu(1)), "reference")
    ours = images(write_nifti(tmp_path / "b.nii", scale(patient_hu(1).astype(np.float32))))
    with refused("ours holds no HU: its values are " + told):
        pair_methods(reference, {"ours": ours})


def test_constant_images_are_refused(tmp_path, images):
    reference = images(write_dicom(tmp_path / "a", patient_hu(1)), "reference")
    ours = images(write_nifti(tmp_path / "b.nii", np.zeros((10, SIDE, SIDE), np.int16)))
    with refused("ours is constant, 0 HU everywhere"):
        pair_methods(reference, {"ours": ours})
    hu = patient_hu(1)
    hu[4] = -1000
    with refused("ours has a constant slice"):
        pair_methods(reference, {"ours": images(write_nifti(tmp_path / "c.nii", hu))})


@pytest.mark.parametrize("axes", ["LPS", "SLP"])
def test_nan_in_a_volume_is_refused_and_counted(tmp_path, images, axes):
    hu = patient_hu(1).astype(np.float32)
    hu[3, 5:7, 8] = np.nan
    hu[9, 0, 0] = np.inf
    with refused(f"ours.* holds 3 of {10 * SIDE**2} voxels that are NaN or infinite"):
        images(write_nifti(tmp_path / "b.nii.gz", hu, axes=axes))


def test_a_folder_without_images_or_that_is_not_there_is_refused(tmp_path, images):
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "secretfile.txt").write_text("no image")
    with refused("ours: expected CT images"):
        images(tmp_path / "alice")
    with refused("ours: expected a folder or file with CT images, found nothing"):
        images(tmp_path / "bob")


def test_what_was_left_out_is_told_without_names(tmp_path):
    write_dicom(tmp_path / "in" / "a", patient_hu(1))
    write_dicom(tmp_path / "in" / "b", patient_hu(2), RescaleSlope=None)
    (one,), notes = find_images(tmp_path / "in", "ours", scratch=tmp_path / "unpacked")
    assert len(notes) == 1 and "RescaleSlope" in notes[0] and not any(word in notes[0] for word in PLANTED)
    assert "SECRET" not in repr(one) and str(tmp_path) not in repr(one)


def test_what_finegrain_denoised_is_judged_though_it_is_never_denoised_again(tmp_path, images):
    volume = read_series(sample_folder())
    derivation = Derivation(kind="denoised", model="m", model_version="1", model_sha256="0" * 64)
    write_derived_series(volume, tmp_path / "denoised", derivation=derivation)
    (case,) = pair_methods(images(sample_folder(), "reference"), {"ours": images(tmp_path / "denoised")}).cases
    assert len(case.slices) == len(volume)


def test_series_of_one_patient_stay_one_patient_whoever_tells_it(tmp_path, images):
    for n, study in ((1, "1.2.3.1"), (2, "1.2.3.2"), (3, "1.2.3.3")):
        header = {"patient_id": "Anonymous", "StudyInstanceUID": study}
        write_dicom(tmp_path / "reference" / f"person-{n // 2}" / str(n), patient_hu(n), **header)
        who = {"patient_id": "SECRET-9" if n < 3 else "SECRET-8", "StudyInstanceUID": study}
        write_dicom(tmp_path / "ours" / str(n), patient_hu(n, noise=20), **who)
    reference, ours = images(tmp_path / "reference", "reference"), images(tmp_path / "ours")
    cases, notes = pair_methods(reference, {"ours": ours})
    assert [case.patient for case in cases] == ["patient-1", "patient-1", "patient-2"] and notes == []
    alone, notes = pair_methods(reference, {"same": reference})
    assert [case.patient for case in alone] == ["patient-1", "patient-2", "patient-3"]
    assert "3 series tell no patient" in notes[0]
    by_folder, _ = pair_methods(reference, {"same": reference}, patients_by="folder")
    assert [case.patient for case in by_folder] == ["patient-1", "patient-2", "patient-2"]


def test_a_series_that_links_two_patients_makes_them_one(tmp_path, images):
    for n, told, also in (
        (1, "1.2.3.1", "1.2.3.1"),
        (2, "1.2.3.2", "1.2.3.2"),
        (3, "1.2.3.1", "1.2.3.2"),
        (4, "1.2.3.4", "1.2.3.4"),
    ):
        z_mm = [100 * n + z for z in Z_MM]
        write_dicom(tmp_path / "reference" / str(n), patient_hu(n), z_mm, patient_id="", StudyInstanceUID=told)
        write_dicom(tmp_path / "ours" / str(n), patient_hu(n), z_mm, patient_id="", StudyInstanceUID=also)
    cases, _ = pair_methods(images(tmp_path / "reference", "reference"), {"ours": images(tmp_path / "ours")})
    assert [(case.patient, case.series) for case in cases] == [
        ("patient-1", 1),
        ("patient-1", 2),
        ("patient-1", 3),
        ("patient-2", 1),
    ]


@pytest.mark.parametrize("whose", [("VENDOR", "VENDOR"), ("SECRET-2", "SECRET-1")])
def test_a_methods_headers_do_not_make_those_one_whom_the_reference_tells_apart(tmp_path, images, whose):
    for n in (1, 2):  # slices apart, so that place alone pairs them
        z_mm = [100 * n + z for z in Z_MM]
        write_dicom(tmp_path / "reference" / str(n), patient_hu(n), z_mm, patient_id=f"SECRET-{n}", StudyInstanceUID="1.2.3.9")
        write_dicom(
            tmp_path / "ours" / str(n), patient_hu(n, noise=20), z_mm, patient_id=whose[n - 1], StudyInstanceUID=f"1.2.3.{n}"
        )
    cases, _ = pair_methods(images(tmp_path / "reference", "reference"), {"ours": images(tmp_path / "ours")})
    assert [case.patient for case in cases] == ["patient-1", "patient-2"]


@pytest.mark.parametrize("kernel", ["B30f", "D45f"])
def test_a_series_that_fits_two_of_the_reference_is_refused(tmp_path, images, kernel):
    for name, noise in (("1", 0), ("2", 5)):
        write_dicom(tmp_path / "reference" / name, patient_hu(1, noise=noise), kernel="B30f" if noise else kernel)
    ours = images(write_nifti(tmp_path / "ours.nii", patient_hu(1, noise=20)))
    with refused("ours fits reference, series 1 of 2 and reference, series 2 of 2 equally well"):
        pair_methods(images(tmp_path / "reference", "reference"), {"ours": ours})


@pytest.mark.parametrize("mark", [-2000, 32767])
def test_padding_below_or_above_the_ct_scale_is_air(tmp_path, images, mark):
    hu = patient_hu(1)
    hu[:, :5, :5] = mark
    (one,) = images(write_dicom(tmp_path / "a", hu, PixelPaddingValue=mark))
    shown = one.slice_hu(3)
    assert shown[:5, :5].max() <= -1024 and (shown[5:] == hu[3, 5:]).all()


def test_a_slice_whose_pixels_are_cut_off_is_told_by_its_method_without_uid(tmp_path, images):
    folder = write_dicom(tmp_path / "a", patient_hu(1))
    (one,) = images(folder)
    cut = sorted(folder.iterdir())[4]
    cut.write_bytes(cut.read_bytes()[:-5000])
    with refused(r"^ours: instance 5 is truncated"):
        one.slice_hu(4)
