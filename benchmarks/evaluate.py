"""Memory and time of `finegrain evaluate` on a long series, beside scikit-image on volumes that are read whole.

Run: python benchmarks/evaluate.py [--slices 300] [--jobs 2]
Writes the sample scan over and over as one long DICOM series with fresh noise, and a smoothed copy of it as .nii.gz, into a
temporary folder. Then runs the command, and beside it, in a process of its own, what most scripts do: pydicom and nibabel read both
volumes whole, scikit-image gives PSNR and SSIM of each slice. Prints wall time and the peak of the proportional memory (PSS) of all
processes together, sampled five times a second. Linux only. The peer computes two measures, finegrain about 130.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.nifti import write_nifti

PROTOCOL, LOW_HU, HIGH_HU = "abdomen-40/400", -160, 240


def write_scans(folder: Path, n_slices: int) -> tuple[Path, Path]:
    """A DICOM series of `n_slices`, and a smoothed copy of it as NIfTI."""
    series, copy = folder / "series", folder / "smoothed.nii.gz"
    series.mkdir()
    sources = sorted(sample_folder().glob("*.dcm"))
    rng, uid = np.random.default_rng(0), generate_uid()
    for number in range(n_slices):
        dataset = pydicom.dcmread(sources[number % len(sources)])
        pixels = dataset.pixel_array
        stored = np.clip(pixels + rng.normal(0, 5, pixels.shape).round(), 0, 4095).astype(pixels.dtype)
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, 3.0 * number]
        dataset.SliceLocation = 3.0 * number
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.InstanceNumber = uid, generate_uid(), number + 1
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].is_undefined_length = False
        dataset.save_as(series / f"{number:04d}.dcm")
    volume = read_series(series)
    smoothed = np.stack([gaussian_filter(hu, 0.6) for hu in volume.hu])
    write_nifti(replace(volume, hu=smoothed), copy)
    return series, copy


def peer(series: Path, copy: Path) -> None:
    """PSNR and SSIM of two volumes that are read whole."""
    datasets = sorted((pydicom.dcmread(path) for path in series.iterdir()), key=lambda one: float(one.ImagePositionPatient[2]))
    reference = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in datasets])
    candidate = nibabel.load(copy).get_fdata().transpose(2, 1, 0)
    measured = []
    for a, b in zip(np.clip(reference, LOW_HU, HIGH_HU), np.clip(candidate, LOW_HU, HIGH_HU), strict=True):
        measured.append(
            (peak_signal_noise_ratio(a, b, data_range=400), structural_similarity(a, b, data_range=400, gaussian_weights=True))
        )
    print("PSNR {:.3f} dB, SSIM {:.4f}".format(*np.mean(measured, axis=0)))


def all_below(pid: int) -> list[int]:
    """A process and all that it started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:  # it ended
            continue
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def memory_mib(pid: int) -> float:
    """Proportional memory of a process in MiB; 0 if it ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command and all its processes. Raises: SystemExit if it fails."""
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, sum(memory_mib(pid) for pid in all_below(process.pid)))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - started, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--peer", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        peer(*given.peer)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        series, copy = write_scans(folder, given.slices)
        run = "from finegrain.cli import main; main()"
        options = [
            "evaluate",
            "--reference",
            series,
            "--candidate",
            f"smoothed={copy}",
            "--protocol",
            PROTOCOL,
            "--out",
            folder / "out",
        ]
        ours = watched([sys.executable, "-c", run, *map(str, options), "--jobs", str(given.jobs)])
        theirs = watched([sys.executable, __file__, "--peer", str(series), str(copy)])
    print(f"\n{given.slices} slices{'':14}{'seconds':>10}{'MiB':>10}")
    for name, (seconds, mib) in (("finegrain evaluate", ours), ("read whole, 2 measures", theirs)):
        print(f"{name:24}{seconds:10.1f}{mib:10.0f}")
    print(f"finegrain takes {ours[1] / theirs[1]:.2f} of the memory and {ours[0] / theirs[0]:.1f} times as long")


if __name__ == "__main__":
    main()
