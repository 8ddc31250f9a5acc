"""The simulator's missing noise against the real one, quarter − full, of the same slices.

Run: python benchmarks/real_noise.py FOLDER [--json FILE] [--pictures FOLDER]
FOLDER is laid out as for real_pairs.py: PATIENT/KERNEL/{full,quarter}/*, KERNEL one that finegrain knows (B30f, D45f). The photons
of a slice are found in two ways, neither of which sees the quarter-dose image: from the mAs, kVp and slice thickness of its header
with one constant for the scanner (`Exposure.from_mas`), and from the noise of its full-dose image (`matching_exposure`). Printed
for each slice and, per kernel and patient, in the mean: SD simulated over real in four tissues with the photons of the header, and
with the level matched in soft tissue, the level that the image alone gives, and the distance of the two radial noise power
spectra at equal area, mean |ln| over 0.05 to 0.55 cycles/mm, from the sixteen 64 × 64 squares in the middle. --json keeps the
numbers, --pictures writes real and simulated noise side by side (they show the pixels of the scans: keep them to yourself).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.figure import Figure
from numpy.typing import NDArray
from real_pairs import read

from finegrain.errors import GeometryError
from finegrain.evaluate.regions import tissue_rois
from finegrain.evaluate.spectra import nps_shape_log_distance
from finegrain.files import json_safe, write_whole
from finegrain.frequency import to_blocks
from finegrain.noise_power import RadialNPS, nps_2d, radial_nps
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import matching_exposure, scanner_of
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import find_kernel

TISSUES = ("soft", "lung", "fat", "bone")
REALISATIONS = 2
DOSE_FRACTION = 0.25
SPECTRUM_AT_PER_MM = np.arange(0.03, 0.601, 0.03)


@dataclass(frozen=True)
class Slice:
    """What was found on one slice; ratios are simulated over real."""

    patient: str
    kernel: str
    name: str
    mas: float
    sd_real_hu: float
    sd_ratio: dict[str, float]
    """Per tissue, photons from the header."""
    image_level: float
    """SD in soft tissue if the photons are found from the full-dose image alone, over the real SD."""
    nps_distance: float
    bias_real_hu: float
    bias_simulated_hu: float
    nps_real: list[float]
    """Noise power at `SPECTRUM_AT_PER_MM`, of unit area."""
    nps_simulated: list[float]


def middle(noise: NDArray) -> NDArray:
    """The middle 256 × 256 pixels as sixteen squares. Shape: (y, x) → (16, 64, 64)."""
    row, column = (length // 2 for length in noise.shape)
    return to_blocks(noise[row - 128 : row + 128, column - 128 : column + 128], 64).reshape(-1, 64, 64)


def spectrum(noise: NDArray, pixel_mm: float) -> RadialNPS:
    """Radial noise power spectrum of the middle of a noise image."""
    return radial_nps(nps_2d(middle(noise), pixel_mm=pixel_mm))


def compare(path: Path, pictures: Path | None) -> Slice:
    """Simulate one slice's missing noise and hold it against quarter − full."""
    patient, kernel = path.parents[2].name, find_kernel(path.parents[1].name)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    (full, pixel_mm), (quarter, _) = read(path), read(path.parents[1] / "quarter" / path.name)
    real = quarter - full
    slice_mm = float(header.SliceThickness)
    exposure = Exposure.from_mas(float(header.Exposure), slice_mm=slice_mm, kvp=float(header.KVP))
    volume = CTVolume.from_array(full[None], pixel_mm=pixel_mm, slice_mm=slice_mm)
    scanner = scanner_of(volume, kernel=kernel, exposure=exposure)
    simulated = np.stack(
        [
            scanner.missing_noise_hu(full, dose_fraction=DOSE_FRACTION, generator=np.random.default_rng(seed))
            for seed in range(REALISATIONS)
        ]
    )
    ratio = {t: sd_ratio(simulated, real, roi) for t, roi in tissue_rois(full).items() if np.count_nonzero(roi) > 500}
    try:
        blind = matching_exposure(volume, kernel=kernel).photons
        image_level = ratio["soft"] * float(np.sqrt(exposure.photons / blind))
    except GeometryError:
        image_level = float("nan")
    nps_real, nps_simulated = spectrum(real, pixel_mm), [spectrum(one, pixel_mm) for one in simulated]
    distances = [nps_shape_log_distance(nps_real, one) for one in nps_simulated]
    if pictures:
        side_by_side(real, simulated[0], pictures / f"{patient}-{kernel.name}-{path.stem}.png")
    soft = tissue_rois(full)["soft"]
    return Slice(
        patient=patient,
        kernel=kernel.name,
        name=path.stem,
        mas=float(header.Exposure),
        sd_real_hu=float(real[soft].std()),
        sd_ratio=ratio,
        image_level=image_level,
        nps_distance=float(np.mean(distances)),
        bias_real_hu=float(real[soft].mean()),
        bias_simulated_hu=float(simulated[:, soft].mean()),
        nps_real=shape(nps_real),
        nps_simulated=np.mean([shape(one) for one in nps_simulated], axis=0).round(5).tolist(),
    )


def shape(nps: RadialNPS) -> list[float]:
    """A radial spectrum at `SPECTRUM_AT_PER_MM`, its mean there 1."""
    power = np.interp(SPECTRUM_AT_PER_MM, nps.frequency_per_mm, nps.power)
    return (power / power.mean()).round(5).tolist()


def sd_ratio(simulated: NDArray, real: NDArray, roi: NDArray[np.bool_]) -> float:
    """SD of simulated over that of real noise in a roi; the simulated variances of the realisations are averaged."""
    return float(np.sqrt(np.mean([one[roi].var() for one in simulated])) / real[roi].std())


def side_by_side(real: NDArray, simulated: NDArray, path: Path) -> None:
    """Real and simulated noise in one grey scale."""
    figure = Figure(figsize=(12, 6.3), layout="constrained")
    limit = 3 * float(real.std())
    for place, (title, image) in enumerate((("real: quarter − full", real), ("simulated", simulated)), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.imshow(image, cmap="gray", vmin=-limit, vmax=limit)
        axes.set_title(f"{title}, ±{limit:.0f} HU")
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def summary(rows: list[Slice], label: str) -> dict[str, object]:
    """Means over slices, with the largest NPS distance."""
    out: dict[str, object] = {"what": label, "slices": len(rows)}
    for tissue in TISSUES:
        found = np.array([row.sd_ratio[tissue] for row in rows if tissue in row.sd_ratio])
        matched = np.array([row.sd_ratio[tissue] / row.sd_ratio["soft"] for row in rows if tissue in row.sd_ratio])
        if len(found):
            out[f"sd_{tissue}"], out[f"sd_{tissue}_spread"] = float(found.mean()), float(found.std())
            out[f"matched_{tissue}"], out[f"matched_{tissue}_spread"] = float(matched.mean()), float(matched.std())
    levels = np.array([row.image_level for row in rows])
    out["image_level"], out["image_level_spread"] = float(np.nanmean(levels)), float(np.nanstd(levels))
    for name in ("nps_real", "nps_simulated"):
        out[name] = np.mean([getattr(row, name) for row in rows], axis=0).round(4).tolist()
    distance = np.array([row.nps_distance for row in rows])
    out["nps_mean"], out["nps_largest"] = float(distance.mean()), float(distance.max())
    out["bias_real_hu"] = float(np.mean([row.bias_real_hu for row in rows]))
    out["bias_simulated_hu"] = float(np.mean([row.bias_simulated_hu for row in rows]))
    return out


def describe(row: dict[str, object]) -> str:
    """A summary as text."""
    tissues = [t for t in TISSUES if f"sd_{t}" in row]
    header = ", ".join(f"{t} {row[f'sd_{t}']:.2f} ± {row[f'sd_{t}_spread']:.2f}" for t in tissues)
    matched = ", ".join(f"{t} {row[f'matched_{t}']:.2f} ± {row[f'matched_{t}_spread']:.2f}" for t in tissues if t != "soft")
    return (
        f"{row['what']}, {row['slices']} slices: NPS distance mean {row['nps_mean']:.3f}, largest {row['nps_largest']:.3f}\n"
        f"    SD simulated/real, photons from mAs: {header}\n    the same, level matched in soft tissue: {matched}\n"
        f"    level found from the full-dose image alone: {row['image_level']:.2f} ± {row['image_level_spread']:.2f}; "
        f"bias in soft tissue: real {row['bias_real_hu']:.1f}, simulated {row['bias_simulated_hu']:.1f} HU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    rows = []
    for path in sorted(arguments.folder.glob("*/*/full/*")):
        rows.append(compare(path, arguments.pictures))
        one = rows[-1]
        ratios = ", ".join(f"{tissue} {value:.2f}" for tissue, value in one.sd_ratio.items())
        print(f"{one.patient} {one.kernel} {one.name}: NPS distance {one.nps_distance:.3f}, SD simulated/real: {ratios}")
    groups = {kernel: [row for row in rows if row.kernel == kernel] for kernel in sorted({row.kernel for row in rows})}
    for kernel in list(groups):
        for patient in sorted({row.patient for row in groups[kernel]}):
            groups[f"{kernel} {patient}"] = [row for row in groups[kernel] if row.patient == patient]
    summaries = [summary(group, label) for label, group in sorted(groups.items())]
    print()
    for row in summaries:
        print(describe(row))
    if arguments.json:
        found = {"frequency_per_mm": SPECTRUM_AT_PER_MM.round(3).tolist(), "summaries": summaries}
        write_whole(arguments.json, json.dumps(json_safe({**found, "slices": [asdict(row) for row in rows]}), indent=1) + "\n")


if __name__ == "__main__":
    main()
