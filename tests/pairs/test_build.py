"""`finegrain pairs` and `finegrain qc` on a collection of real-looking DICOM: killed, damaged, and searched for names."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pydicom
import pytest
from ct_files import PLANTED
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from finegrain.pairs.manifest import MANIFEST, read_manifest
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import matching_exposure, simulate_low_dose
from finegrain.simulate.fbp import KERNELS

PATIENTS = ("SECRET-ID-4711", "SECRET-ID-4712", "SECRET-ID-4713", "SECRET-ID-4714")


def _run(*arguments, **settings):
    code = "import sys; from finegrain.cli import main; sys.argv[0] = 'finegrain'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, **settings
    )


def _write(template, path, hu, patient, series, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = template
    dataset.PatientID, dataset.PatientName = patient, PLANTED[0]
    dataset.SeriesDescription, dataset.StudyDescription = PLANTED[2], PLANTED[3]
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[patient])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, series])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[patient, series, str(number)])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.InstanceNumber, dataset.ImagePositionPatient = number, [0, 0, 3 * number]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PixelData = np.clip(np.round(hu + 1024), 0, 4095).astype("<u2").tobytes()
    dataset.save_as(path)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Two doses of four patients: two slices each of the scan that ships, and the same at a quarter of its dose."""
    root = tmp_path_factory.mktemp("data")
    volume = read_series(sample_folder())
    kernel = KERNELS["B40f"]
    exposure = matching_exposure(volume, kernel=kernel)
    low_dose = simulate_low_dose(volume, dose_fraction=0.25, kernel=kernel, exposure=exposure, seed=0).hu
    template = pydicom.dcmread(volume.source.files[0])
    if template.file_meta.TransferSyntaxUID.is_compressed:
        template.decompress()
    for k, patient in enumerate(PATIENTS):
        for number in range(2):
            for series, images in (("low", low_dose), ("normal", volume.hu)):
                path = root / "secretfolder" / series / f"secretfile{k}" / f"{9 - number}"
                _write(template, path, images[2 * k + number], patient, series, number)
    (root / "pairs.yaml").write_text(
        "sources: [{kind: collection, layout: folders, low_dose: secretfolder/low, normal_dose: secretfolder/normal, "
        "dose_fraction: 0.25, noise: inserted}]\ntest_fraction: 0.25\nvalidation_fraction: 0.25\n"
    )
    return root


@pytest.fixture(scope="module")
def built(collection, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    done = _run("pairs", collection / "pairs.yaml", "--data-root", collection, "--out", store)
    assert done.returncode == 0, done.stderr
    return store, done


def test_every_slice_is_paired_kept_and_on_the_side_of_its_patient(built):
    store, done = built
    pairs = read_manifest(store)
    assert len(pairs) == 8
    assert all(pair.is_usable for pair in pairs), [pair.reasons for pair in pairs]
    assert sum(pair.verdict == "keep" for pair in pairs) >= 5, [pair.reasons for pair in pairs]
    assert len({pair.patient for pair in pairs}) == 4
    assert len({(pair.patient, pair.split) for pair in pairs}) == 4
    assert {pair.region for pair in pairs} <= {"thorax", "abdomen"}, "the sample shows the dome of the diaphragm"
    for pair in pairs:
        low, normal = pair.images(store).astype(float)
        assert pair.quality.noise_ratio == pytest.approx(2, rel=0.25)
        assert abs(np.mean(low - normal)) < 3
    assert "usable pairs" in done.stdout and "balance of training" in done.stdout


def test_no_planted_name_is_in_any_output(built, tmp_path):
    store, done = built
    page = _run("qc", store, "--out", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr
    outputs = {"stdout": done.stdout + done.stderr + page.stdout + page.stderr, "page": (tmp_path / "page.html").read_text()}
    outputs |= {str(path): path.read_bytes().decode("latin-1") for path in store.rglob("*") if path.is_file()}
    assert len(outputs) > 10
    for planted in (*PLANTED, *PATIENTS, "4711"):
        for name, text in outputs.items():
            assert planted.lower() not in text.lower(), (planted, name)
            assert planted.lower() not in name.lower().removeprefix(str(store).lower())


def _count_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bytes(built, collection, tmp_path):
    whole, _ = built
    broken = tmp_path / "broken"
    code = "import sys; from finegrain.cli import main; main()"
    arguments = ["pairs", str(collection / "pairs.yaml"), "--data-root", str(collection), "--out", str(broken)]
    killed = 0
    for further in (1, 3, 5, 7):  # files of the store, so that the run is stopped in its middle on a machine of any speed
        before = _count_files(broken)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and _count_files(broken) < before + further:
            time.sleep(0.005)
        if process.poll() is None:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed, "no run was stopped before its end"
    done = _run(*arguments)
    assert done.returncode == 0, done.stderr
    for path in sorted(whole.rglob("*")):
        if path.is_file() and path.name != ".lock":
            assert (broken / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert {path.relative_to(broken) for path in broken.rglob("*")} == {path.relative_to(whole) for path in whole.rglob("*")}


def test_a_damaged_file_takes_out_its_own_slice_and_nothing_else(collection, tmp_path):
    copy = tmp_path / "data"
    subprocess.run(["cp", "-r", str(collection), str(copy)], check=True)
    victim = sorted((copy / "secretfolder" / "low").rglob("secretfile0/*"))[0]
    victim.write_bytes(victim.read_bytes()[:-200_000])
    done = _run("pairs", copy / "pairs.yaml", "--data-root", copy, "--out", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert len(read_manifest(tmp_path / "store")) == 7
    notes = (tmp_path / "store" / "notes.txt").read_text()
    assert "truncated or damaged" in notes
    shutil.copy(collection / victim.relative_to(copy), victim)
    done = _run("pairs", copy / "pairs.yaml", "--data-root", copy, "--out", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert len(read_manifest(tmp_path / "store")) == 8, "a repaired file is taken"
    assert not any(planted.lower() in notes.lower() for planted in (*PLANTED, *PATIENTS))


def test_folders_of_scans_are_simulated_without_a_configuration(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(sample_folder().rglob("*.dcm"))[:2]:
        shutil.copy(path, scans)
    done = _run(
        "pairs", scans, "--out", tmp_path / "store", "--dose-fraction", "0.25", "--test-fraction", "0",
        "--validation-fraction", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pairs = read_manifest(tmp_path / "store")
    assert {(pair.kernel, pair.dose_fraction, pair.collection) for pair in pairs} == {("B40f", 0.25, "scan")}
    scan = read_series(scans)
    for pair in pairs:
        kept = ~scan.padding[pair.slice_index]
        normal = np.clip(np.round(scan.hu[pair.slice_index]), -1024, 3071)
        np.testing.assert_array_equal(pair.images(tmp_path / "store")[1][kept], normal[kept])
    assert pairs[0].pixel_mm == pytest.approx(read_series(sample_folder()).pixel_mm[0], rel=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "--out", "store"], "found nothing at nowhere"),
        ([".", "--out", "store", "--dose-fraction", "0.25", "--layout", "mayo"], "give one of them"),
        ([".", "--out", "store", "--layout", "mayonnaise"], "layout"),
        ([".", "--out", "store", "--workers", "0"], "at least one worker"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(arguments, message, tmp_path):
    done = _run("pairs", *arguments, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "store" / MANIFEST).exists()


def test_the_gallery_of_no_store_is_one_line(tmp_path):
    done = _run("qc", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "build the pairs first" in done.stderr


def test_a_shard_that_was_cut_off_is_made_again_and_altered_pixels_are_found(built, collection, tmp_path):
    whole, _ = built
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    shards = sorted((store / "shards").iterdir())
    shards[0].write_bytes(shards[0].read_bytes()[:100_000])
    done = _run("pairs", collection / "pairs.yaml", "--data-root", collection, "--out", store)
    assert done.returncode == 0, done.stderr
    assert shards[0].read_bytes() == (whole / "shards" / shards[0].name).read_bytes()
    altered = bytearray(shards[1].read_bytes())
    altered[-5000] ^= 255
    shards[1].write_bytes(altered)
    done = _run("qc", store, "--verify")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "1 of 8 pairs are not what the manifest tells of" in done.stderr


def test_files_that_are_not_a_store_are_neither_touched_nor_mixed_with_one(collection, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".notes.tmp").write_text("mine")
    done = _run("pairs", collection / "pairs.yaml", "--data-root", collection, "--out", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", ".notes.tmp"]
