"""Whole simulations: bits that repeat, stops that are gone on from, output that other software opens, nothing of the patient."""

import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from finegrain.cli import main
from finegrain.config import SimulateConfig, config_of, load_config
from finegrain.errors import ConfigError, DataError, FinegrainError, GeometryError, ScanError
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import write_nifti
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import Scanner, slice_generator, without_padding
from finegrain.simulate.dose import COUNT_FLOOR, PHOTONS_PER_MAS_MM, Exposure, starved_share
from finegrain.simulate.fbp import find_kernel
from finegrain.simulate.geometry import find_scanner
from finegrain.simulate.kernel_fit import save_kernel
from finegrain.simulate.manifest import SimulatedImage, image_sha256, read_manifest, write_manifest
from finegrain.simulate.one_slice import SliceTask, load_facts, stream_seed
from finegrain.simulate.phantom import water_disc
from finegrain.simulate.run import run_simulation

SIZE, PIXEL_MM = 96, 2.5
PLANTED = ("PLANTEDNAME", "PLANTED-ID-4711", "19310131", "1.2.3.4.5")


def _config(**values):
    return config_of(SimulateConfig, {"photons": 1e6, **values})


def _water(seed=0, n=3):
    noise = np.random.default_rng(seed).normal(0, 15, (n, SIZE, SIZE))
    return water_disc(200.0, SIZE, PIXEL_MM)[None] + noise


def _write_dicom(folder, hu, **changes):
    """A CT series as a scanner writes it; `changes` are DICOM keywords, None takes an element out."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(np.round(hu).astype(np.int16), start=1):
        dataset = Dataset()
        values = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"1.2.3.4.5.{number}", "SeriesInstanceUID": "1.2.3.4.5",
            "StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.9", "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientName": f"{PLANTED[0]}^SECRET", "PatientID": PLANTED[1],
            "PatientBirthDate": PLANTED[2], "SeriesDescription": "Abdomen 3.0", "SeriesNumber": 2, "InstanceNumber": number,
            "ConvolutionKernel": "B30f", "KVP": 120, "Exposure": 200, "XRayTubeCurrent": 100 * number, "SliceThickness": 3,
            "ImagePositionPatient": [-120, -120, 3.0 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [PIXEL_MM, PIXEL_MM], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
            "Rows": pixels.shape[0], "Columns": pixels.shape[1], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "PixelRepresentation": 1, "RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "HU",
        } | changes  # fmt: skip
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"{PLANTED[0]}-{number}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return _write_dicom(tmp_path_factory.mktemp("in") / PLANTED[0], _water())


@pytest.fixture(scope="module")
def simulated(scan, tmp_path_factory):
    """The output folder of a simulation of `scan` at two doses, and its outcome."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    return out, run_simulation(scan, out, _config(photons=None, dose_fractions=(0.25, 0.1), crosstalk=0.02), workers=2)


def test_each_image_repeats_from_its_row_in_the_manifest(scan, simulated):
    volume, config = read_series(scan), load_config(simulated[0] / "config.yaml", SimulateConfig)
    rows = read_manifest(simulated[0])
    assert [(row.dose_fraction, row.slice_index) for row in rows] == [(dose, i) for dose in (0.25, 0.1) for i in range(3)]
    for row in rows:
        scanner = Scanner(
            size=row.size, pixel_mm=row.pixel_mm, kernel=find_kernel(row.kernel), exposure=row.exposure, margin=row.margin,
            fan=find_scanner(row.scanner),
        )  # fmt: skip
        assert (scanner.beam.n_views, scanner.beam.detector_mm) == (row.beam_views, row.beam_detector_mm)
        hu = without_padding(volume, row.slice_index)
        generator = slice_generator(row.stream_seed, row.slice_index, row.dose_fraction)
        low = np.rint(hu + scanner.missing_noise_hu(hu, dose_fraction=row.dose_fraction, generator=generator))
        assert image_sha256(low) == row.sha256
    assert config.kernel_transfer == find_kernel("B30f").transfer


def test_neither_workers_nor_other_doses_nor_the_file_format_change_a_bit(scan, simulated, tmp_path):
    path = write_nifti(read_series(scan), tmp_path / "scan.nii.gz")
    first = read_manifest(simulated[0])
    photons = np.median([row.photons for row in first])
    again = _config(photons=float(photons), dose_fractions=(0.1,), crosstalk=0.02, kernel="B30f", slice_mm=3.0)
    run_simulation(path, tmp_path / "out", again, workers=1)
    middle = [row for row in read_manifest(tmp_path / "out") if row.slice_index == 1]  # there the tube current is the median
    assert [row.sha256 for row in middle] == [row.sha256 for row in first if (row.slice_index, row.dose_fraction) == (1, 0.1)]


def test_the_noise_grows_as_the_dose_falls_and_photons_follow_the_tube_current(simulated):
    out, outcome = simulated
    rows = [row for row in read_manifest(out) if row.dose_fraction == 0.25]
    assert np.allclose([row.photons / rows[1].photons for row in rows], [0.5, 1.0, 1.5])
    middle = rows[1]
    assert middle.noise_sd_hu / middle.normal_noise_sd_hu == pytest.approx(2.0, rel=0.15)
    assert [row[:2] for row in outcome.table[1:]] == [["0.25", "3"], ["0.1", "3"]]
    assert middle.starvation_bias_hu == 0 and abs(middle.added_mean_hu) < 1


def test_the_derived_series_opens_elsewhere_and_says_that_it_is_simulated(scan, simulated):
    descriptions = {}
    for dose in ("0.25", "0.1"):
        files = sorted((simulated[0] / f"dose-{dose}").glob("*.dcm"))
        header, before = pydicom.dcmread(files[0]), pydicom.dcmread(next(iter(sorted(scan.glob("*.dcm")))))
        assert header.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert (header.Exposure, header.XRayTubeCurrent, header.PatientName) == (200, 100, before.PatientName)
        descriptions[header.SeriesInstanceUID] = (header.SeriesDescription, header.SeriesNumber)
        image = SimpleITK.ReadImage([str(file) for file in files])
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), read_series(files[0].parent).hu)
        assert image.GetSpacing() == (PIXEL_MM, PIXEL_MM, 3.0)
    assert len(descriptions) == 2
    assert sorted(text for text, _ in descriptions.values())[0].startswith("Abdomen 3.0 [LOW-DOSE SIM 10%")
    assert sorted(number for _, number in descriptions.values()) == [8012, 8027]


@pytest.fixture(scope="module")
def phantom_series(tmp_path_factory):
    """A phantom as DICOM, and the same as NIfTI: normal dose of 80 mAs, a tenth of it."""
    folder = tmp_path_factory.mktemp("phantom")
    values = {"mas": (80.0,), "dose_fractions": (0.1,), "slices": 3, "size": SIZE, "pixel_mm": PIXEL_MM}
    for name in ("nifti", "dicom"):
        run_simulation("phantom:water-200", folder / name, config_of(SimulateConfig, {**values, "format": name}), workers=1)
    return folder


def test_a_phantom_as_dicom_opens_elsewhere_with_the_hu_and_the_places_of_its_nifti(phantom_series):
    for name in ("truth", "normal", "dose-0.1"):
        hu = SimpleITK.ReadImage(str(phantom_series / "nifti" / "water-200" / f"{name}.nii.gz"))
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(phantom_series / "dicom" / "water-200" / name))
        series = SimpleITK.ReadImage(files)
        difference = SimpleITK.GetArrayFromImage(series) - SimpleITK.GetArrayFromImage(hu)
        assert np.abs(difference).max() <= (0.5 if name == "truth" else 0.0)  # the truth alone is not in whole HU
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(series, what)() == pytest.approx(getattr(hu, what)()), what


def test_the_headers_of_a_phantom_tell_its_dose_and_one_study_and_no_patient(phantom_series):
    headers = {
        name: [pydicom.dcmread(file) for file in sorted((phantom_series / "dicom" / "water-200" / name).glob("*.dcm"))]
        for name in ("truth", "normal", "dose-0.1")
    }
    each = [header for of_series in headers.values() for header in of_series]
    assert len({header.SOPInstanceUID for header in each}) == 9
    assert [len({header[uid].value for header in each}) for uid in ("SeriesInstanceUID", "StudyInstanceUID")] == [3, 1]
    assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in each)
    assert {(str(header.PatientName), header.PatientBirthDate, header.PatientSex) for header in each} == {
        ("PHANTOM^WATER-200", "", "")
    }
    assert {(header.KVP, header.ConvolutionKernel, header.Manufacturer, header.ImageType[0]) for header in each} == {
        (120, "B30f", "finegrain", "DERIVED")
    }
    mas = {name: {(h.get("Exposure"), h.get("ExposureInuAs")) for h in of_series} for name, of_series in headers.items()}
    assert mas == {"truth": {(None, None)}, "normal": {(80, 80_000)}, "dose-0.1": {(8, 8_000)}}


def test_the_manifest_of_a_phantom_does_not_depend_on_the_format(phantom_series):
    as_nifti, as_dicom = (read_manifest(phantom_series / name) for name in ("nifti", "dicom"))
    noisy = [[row.sha256 for row in rows if row.image != "truth"] for rows in (as_nifti, as_dicom)]
    assert noisy[0] == noisy[1] and len(set(noisy[0])) == 6
    assert [row.file for row in as_dicom][:2] == ["water-200/truth/IM0001.dcm", "water-200/truth/IM0002.dcm"]
    other = config_of(SimulateConfig, {"mas": (80.0,), "dose_fractions": (0.1,), "slices": 3, "size": SIZE, "pixel_mm": PIXEL_MM})
    with pytest.raises(DataError, match="other parameters: format was dicom, now nifti"):
        run_simulation("phantom:water-200", phantom_series / "dicom", other)


def test_a_simulated_phantom_is_denoised_and_its_result_is_not_denoised_again(phantom_series, tmp_path, monkeypatch, capsys):
    for source, out, code in ((phantom_series / "dicom" / "water-200" / "dose-0.1", "once", 0), (tmp_path / "once", "twice", 2)):
        monkeypatch.setattr(sys, "argv", ["finegrain", "denoise", str(source), str(tmp_path / out)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == code, capsys.readouterr().err
    assert "already denoised by finegrain" in capsys.readouterr().err
    denoised = pydicom.dcmread(tmp_path / "once" / "IM0001.dcm")
    assert [item.ContributionDescription.split()[0] for item in denoised.ContributingEquipmentSequence] == [
        "simulated-phantom",
        "denoised",
    ]


def test_a_kernel_of_any_name_makes_a_header(tmp_path):
    kernel = replace(find_kernel("B30f"), name="weich\\für Ärzte, sehr lang")
    save_kernel(kernel, tmp_path / "kernel.yaml")
    values = {"size": SIZE, "pixel_mm": PIXEL_MM, "format": "dicom", "kernel": str(tmp_path / "kernel.yaml")}
    run_simulation("phantom:water-200", tmp_path / "out", config_of(SimulateConfig, values), workers=1)
    assert pydicom.dcmread(tmp_path / "out" / "water-200" / "normal" / "IM0001.dcm").ConvolutionKernel == "weich/f?r ?rzte,"


def test_labels_stay_nifti_where_images_are_dicom(tmp_path):
    run_simulation("phantom:head", tmp_path / "out", config_of(SimulateConfig, {"size": 96, "format": "dicom"}), workers=1)
    assert sorted(path.name for path in (tmp_path / "out" / "head-0000").iterdir()) == [
        "dose-0.25",
        "labels.nii.gz",
        "normal",
        "truth",
    ]


def test_nothing_of_the_patient_is_in_texts_and_names(scan, simulated, caplog, capsys):
    out, outcome = simulated
    texts = [path.read_text() for path in (out / "manifest.csv", out / "config.yaml", out / "provenance.json")]
    names = " ".join(str(path.relative_to(out)) for path in out.rglob("*"))
    said = [caplog.text, *capsys.readouterr(), str(outcome)]
    with pytest.raises(FinegrainError) as refused:
        run_simulation(scan, out, _config(seed=5))
    for planted in (*PLANTED, scan.parent.name):
        assert not any(planted in text for text in (*texts, names, *said, str(refused.value).replace(str(out), "")))


def test_a_finished_run_is_told_again_and_another_one_is_refused(scan, simulated):
    out, outcome = simulated
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    config = _config(photons=None, dose_fractions=(0.25, 0.1), crosstalk=0.02)
    assert run_simulation(scan, out, config).table == outcome.table
    with pytest.raises(DataError, match=r"other parameters: seed was 0, now 1"):
        run_simulation(scan, out, config.model_copy(update={"seed": 1}))
    with pytest.raises(DataError, match="other parameters: source"):
        run_simulation("phantom:water-200", out, config)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert not any(path.name.startswith(".") for path in out.rglob("*"))


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    arguments = ["phantom:water-200", "--slices", "6", "--size", "96", "--pixel-mm", "2.5"]
    code = "import sys; from finegrain.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "simulate", *arguments, str(tmp_path / "killed"), "--workers", "1"])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/.work/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert list(tmp_path.glob("killed/.work/*.npz")) and not (tmp_path / "killed" / "manifest.csv").exists()
    (tmp_path / "killed" / ".dose-0.25.00000000.partial").mkdir()
    config = config_of(SimulateConfig, {"slices": 6, "size": 96, "pixel_mm": 2.5})
    for name in ("killed", "whole"):
        run_simulation("phantom:water-200", tmp_path / name, config, workers=2)
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes(), path.name
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize(("noise", "correlation"), [("independent", 0.0), ("shared", 0.5)])
def test_a_virtual_patient_comes_with_truth_doses_and_labels(tmp_path, noise, correlation):
    config = config_of(SimulateConfig, {"size": 128, "patients": 2, "first_patient": 7, "noise": noise, "mas": (100.0,)})
    run_simulation("phantom:thorax", tmp_path / "out", config)
    folders = [tmp_path / "out" / f"thorax-{seed:04d}" for seed in (7, 8)]
    noises = {}
    for folder in folders:
        truth, normal, low, labels = (
            nib.load(folder / f"{name}.nii.gz").get_fdata() for name in ("truth", "normal", "dose-0.25", "labels")
        )
        body = truth > -300
        assert np.corrcoef((normal - truth)[body], (low - truth)[body])[0, 1] == pytest.approx(correlation, abs=0.08)
        assert set(np.unique(labels)) > {0.0, 1.0, 4.0} and labels.shape == truth.shape
        noises[folder.name] = (normal - truth)[30:90, 40:80]
    assert abs(np.corrcoef(*(values.ravel() for values in noises.values()))[0, 1]) < 0.08  # two patients, two streams
    rows = read_manifest(tmp_path / "out")
    assert {(row.source, row.image) for row in rows} == {
        (folder.name, image) for folder in folders for image in ("truth", "normal dose", "low dose")
    }
    assert rows[0].photons == pytest.approx(PHOTONS_PER_MAS_MM * 100 * 3.0)


def test_target_mas_give_the_dose_by_the_header(scan, tmp_path):
    run_simulation(scan, tmp_path / "out", _config(mas=(50.0,)))
    assert (tmp_path / "out" / "dose-0.25").is_dir()
    for changes, mas, match in (({}, 200.0, "200 mAs"), ({"Exposure": None}, 50.0, "no Exposure")):
        path = _write_dicom(tmp_path / f"scan-{mas}", _water(), **changes)
        with pytest.raises(ConfigError, match=match):
            run_simulation(path, tmp_path / "refused", _config(mas=(mas,)))
    assert not (tmp_path / "refused").exists()


def test_photons_can_come_from_the_mas_of_the_header(scan, tmp_path):
    """200 mAs in the header; the noise of the image asks for another number, and the reader is told when both differ."""
    outcome = run_simulation(scan, tmp_path / "out", _config(photons=None, photons_from="mas"))
    rows = read_manifest(tmp_path / "out")
    volume = read_series(scan)
    expected = Exposure.from_mas(200.0, slice_mm=volume.thickness_mm, kvp=float(volume.acquisition["KVP"])).photons
    assert np.median([row.photons for row in rows]) == pytest.approx(expected, rel=1e-3)
    assert not any("photons per ray" in note for note in outcome.notes)
    told = run_simulation(scan, tmp_path / "other", _config(photons=2 * expected))
    assert any("--photons-from mas" in note for note in told.notes)
    path = _write_dicom(tmp_path / "untold", _water(), Exposure=None)
    with pytest.raises(ConfigError, match="no Exposure"):
        run_simulation(path, tmp_path / "refused", _config(photons=None, photons_from="mas"))
    assert not (tmp_path / "refused").exists()


def test_every_parameter_of_an_exposure_is_kept():
    names = {field.name for field in fields(Exposure)}
    assert names <= set(SimulateConfig.model_fields) and names <= {field.name for field in fields(SimulatedImage)}


def test_two_scans_of_one_seed_do_not_share_their_noise():
    assert stream_seed(0, "scan-a") != stream_seed(0, "scan-b") != stream_seed(1, "scan-b")


def test_the_starved_share_is_that_of_drawn_counts():
    generator = np.random.default_rng(0)
    for electronic in (0.0, 4.0):
        counts = np.geomspace(0.05, 1000, 200_000)
        drawn = generator.poisson(counts) + electronic * generator.standard_normal(counts.shape)
        assert starved_share(counts, electronic) == pytest.approx(np.mean(drawn <= COUNT_FLOOR), abs=2e-3)


def test_a_manifest_gives_back_what_was_written(simulated, tmp_path):
    rows = [replace(row, dose_fraction=None, polychromatic_kvp=120) for row in read_manifest(simulated[0])]
    write_manifest(tmp_path, rows)
    with pytest.raises(DataError, match=r"has lost dose-"):
        read_manifest(tmp_path)
    for row in rows:
        (tmp_path / row.file).parent.mkdir(exist_ok=True)
        (tmp_path / row.file).touch()
    assert read_manifest(tmp_path) == rows
    assert isinstance(rows[0], SimulatedImage)


def _without_pixel_size(folder):
    return _write_dicom(folder, _water(), PixelSpacing=None)


def _oblong(folder):
    return _write_dicom(folder, _water()[:, :64])


def _unknown_kernel(folder):
    return _write_dicom(folder, _water(), ConvolutionKernel="Xy99")


def _not_a_number(folder):
    folder.mkdir()
    hu = _water().astype(np.float32)
    hu[0, 5, 5] = np.nan
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing((PIXEL_MM, PIXEL_MM, 3.0))
    SimpleITK.WriteImage(image, str(folder / "scan.nrrd"))
    return folder / "scan.nrrd"


def _coronal(folder):
    return _write_dicom(folder, _water(n=1), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def _attenuation(folder):
    return _nifti(folder, 0.019 * (1 + _water() / 1000))


def _metres(folder):
    return _nifti(folder, _water(), pixel_mm=PIXEL_MM / 1000)


def _nifti(folder, values, pixel_mm=PIXEL_MM):
    return write_nifti(CTVolume.from_array(values, pixel_mm=pixel_mm, slice_mm=3.0), folder / "scan.nii.gz")


@pytest.mark.parametrize(
    ("make", "values", "error", "match"),
    [
        (_without_pixel_size, {}, ScanError, "PixelSpacing"),
        (_oblong, {}, GeometryError, "square images"),
        (_unknown_kernel, {}, ConfigError, "'Xy99' is not known; .*B30f.*measure-kernel"),
        (_not_a_number, {"kernel": "B30f"}, ScanError, "1 of .* voxels that are NaN"),
        (_coronal, {}, GeometryError, "expected axial"),
        (_attenuation, {"kernel": "B30f"}, GeometryError, "darkest pixel .* expected HU"),
        (_metres, {"kernel": "B30f"}, GeometryError, "0.24 × 0.24 mm, expected 20 to 1000 mm"),
    ],
)
def test_a_scan_that_cannot_be_simulated_leaves_nothing(tmp_path, make, values, error, match):
    path = make(tmp_path / "in")
    with pytest.raises(error, match=match):
        run_simulation(path, tmp_path / "out", _config(**values))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["phantom:water-200", "{out}", "--dose-fraction", "1.5"], "each dose fraction must lie in [0.001, 1)"),
        (["phantom:water-200", "{out}", "--dose-fraction", "nan"], "each dose fraction must lie in [0.001, 1)"),
        (["phantom:water-200", "{out}", "--dose-fraction", "0.1", "--dose-fraction", "0.1"], "the same to six digits"),
        (["phantom:nose", "{out}"], "unknown phantom 'nose'; known are thorax"),
        (["phantom:water-200", "{out}", "--kernel", "nothing"], "kernel"),
        (["phantom:water-200", "{out}", "--scanner", "toaster"], "unknown scanner 'toaster'"),
        (["phantom:water-200", "{out}", "--bowtie", "red"], "unknown bow-tie"),
        (["phantom:water-200", "{out}", "--noise", "loud"], "noise"),
        (["phantom:water-200", "{out}", "--polychromatic", "90"], "no spectrum of 90 kVp"),
        (["phantom:water-200", "{out}", "--patients", "2"], "--patients is for virtual patients"),
        (["phantom:water-200", "{out}", "--pixel-mm", "3"], "beyond the source"),
        (["phantom:water-200", "{out}", "--photons", "1e300"], "photons of 1e+300, expected 1 to 1e+12"),
        (["phantom:water-200", "{out}", "--mas", "1e-30"], "photons of"),
        (["phantom:water-200", "{out}", "--electronic-noise", "1e30"], "electronic_noise of 1e+30, expected 0 to 10000"),
        (["phantom:water-200", "{out}", "--workers", "0"], "at least one worker"),
        (["phantom:water-400", "{out}", "--size", "96", "--pixel-mm", "2.5"], "cut the body"),
        (["phantom:thorax", "{out}", "--size", "128", "--pixel-mm", "1"], "cut the body"),
        (["phantom:thorax", "{out}", "--size", "128", "--slices", "500"], "the anatomy spans"),
        (["{tmp}/nothing", "{out}"], "nothing"),
        (["{tmp}", "{out}", "--size", "96"], "--size is for phantoms"),
        (["{tmp}", "{out}", "--format", "dicom"], "--format is for phantoms"),
        (["phantom:water-200", "{out}", "--format", "png"], "'nifti' or 'dicom'"),
        (["{tmp}", "{out}", "--noise", "independent"], "always holds the scan's own noise"),
        (["phantom:water-200", "{tmp}/full"], "not made by finegrain simulate"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, word):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.yaml").write_text("title: another stage's\n")
    filled = [argument.format(tmp=tmp_path, out=tmp_path / "out") for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["finegrain", "simulate", *filled])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert word in said and len(said.strip().splitlines()) == 1, said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "full"]


def test_the_output_never_lies_in_the_input(scan):
    with pytest.raises(ScanError, match="lies in the input folder"):
        run_simulation(scan, scan / "out", _config())
    assert not (scan / "out").exists()


def test_a_nifti_keeps_its_geometry(tmp_path):
    volume = CTVolume.from_array(np.round(_water(n=2)), pixel_mm=PIXEL_MM, slice_mm=3.0)
    volume = replace(volume, positions_mm=volume.positions_mm + np.array([-120, -90, 40]))
    before = nib.load(write_nifti(volume, tmp_path / "scan.nii.gz"))
    run_simulation(tmp_path / "scan.nii.gz", tmp_path / "out", _config(kernel="B30f"), workers=1)
    after = nib.load(tmp_path / "out" / "dose-0.25.nii.gz")
    assert np.array_equal(before.affine, after.affine) and before.shape == after.shape
    assert 5 < (after.get_fdata() - before.get_fdata())[30:60, 30:60].std() < 100


def _emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda out: (out / "manifest.csv").write_text("x\n"), "manifest.csv is damaged"),
        (lambda out: (out / "provenance.json").write_text("{"), "provenance.json is damaged"),
        (lambda out: [(out / "manifest.csv").unlink(), _emptied(out / "dose-0.25" / "IM0002.dcm")], "delete it and run again"),
    ],
)
def test_a_finished_run_that_was_damaged_is_told_in_one_line(scan, tmp_path, damage, match):
    run_simulation(scan, tmp_path / "out", _config(), workers=1)
    damage(tmp_path / "out")
    with pytest.raises(DataError, match=match) as told:
        run_simulation(scan, tmp_path / "out", _config(), workers=1)
    assert len(str(told.value).splitlines()) == 1


def test_a_finished_slice_that_was_damaged_is_told_in_one_line(tmp_path):
    task = SliceTask(_config(), "scan-0", 0, anatomy=0, photons=1.0)
    (tmp_path / task.file).write_bytes(b"PK cut off")
    with pytest.raises(DataError, match="delete this file and run again"):
        load_facts(tmp_path, task)
