"""What `--texture` buys and costs: finegrain-s on virtual patients that it has not seen, beside the two free competitors.

Run: python benchmarks/equaliser.py STORE   (60 pairs are simulated into STORE unless they are there; some five minutes, one core)
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from finegrain.acquisition import Acquisition
from finegrain.config import PairsConfig, PhantomSource
from finegrain.denoise import load_denoiser
from finegrain.equaliser import CalibrationSlice, calibrate_equaliser
from finegrain.evaluate.bands import band_sums
from finegrain.evaluate.fidelity import protocol_named, psnr
from finegrain.evaluate.regions import body_mask, texture_rois
from finegrain.frequency import Band
from finegrain.pairs.build import ready_pairs

CONFIG = PairsConfig(
    sources=(
        PhantomSource(region="thorax", first_seed=3000, patients=3, slices=4, slice_mm=20, noise="inserted", split="validation"),
        PhantomSource(region="abdomen", first_seed=4000, patients=3, slices=4, slice_mm=20, noise="inserted", split="validation"),
        PhantomSource(region="thorax", first_seed=5000, patients=6, slices=3, slice_mm=20, noise="inserted", split="test"),
        PhantomSource(region="abdomen", first_seed=6000, patients=6, slices=3, slice_mm=20, noise="inserted", split="test"),
    ),
    dose_fractions=(0.25, 0.1, 0.5),
    kernels=("B30f", "B40f", "D45f"),
    pixel_mm=(0.72, 0.95),
    test_fraction=0,
    validation_fraction=0,
    seed=1,
)
COLUMNS = ("psnr_db", "energy ratio", "coherence", "with truth")


def main() -> None:
    store, band, protocol = Path(sys.argv[1]), Band(), protocol_named("abdomen-40/400")
    pairs = ready_pairs(CONFIG, store, data_root=Path(), workers=1)
    denoiser = load_denoiser(threads=1)
    images = {pair.key: pair.images(store).astype(np.float32) for pair in pairs}
    denoised = {key: denoiser.denoise_slice(stack[0]) for key, stack in images.items()}
    slices = [
        CalibrationSlice(
            images[pair.key][0], denoised[pair.key], images[pair.key][1], body_mask(images[pair.key][1]), pair.dose_fraction
        )
        for pair in pairs
        if pair.split == "validation"
    ]
    calibrated = calibrate_equaliser(slices)
    rows: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for pair in (pair for pair in pairs if pair.split == "test"):
        (noisy, reference, truth), network = images[pair.key], denoised[pair.key]
        fine = texture_rois(reference, pixel_mm=pair.pixel_mm, band=band).fine_texture
        shown = {
            "low dose": noisy,
            **{f"texture {texture:g}": denoiser.denoise_slice(noisy, texture=texture) for texture in (0, 0.5, 1)},
            **{
                f"texture {texture:g}, dose told": denoiser.denoise_slice(
                    noisy, texture=texture, acquisition=Acquisition(pair.dose_fraction)
                )
                for texture in (0, 1)
            },
            "calibrated here": calibrated.apply(network, noisy, strength=1),
            "calibrated here, dose told": calibrated.apply(network, noisy, strength=1, dose_fraction=pair.dose_fraction),
            **{f"blend {share:g}": share * noisy + (1 - share) * network for share in (0.2, 0.3)},
        }
        sums, in_band = band_sums([reference, truth, *shown.values()], [fine], n_references=2), band.mask(pixel_mm=pair.pixel_mm)
        for k, (name, image) in enumerate(shown.items(), start=2):
            measures = psnr(reference, image, protocol=protocol), sums.ratio(k, 0, in_band), sums.coherence(k, 0, in_band)
            for group in ("all", f"dose {pair.dose_fraction:g}", f"kernel {pair.kernel}"):
                rows[group][name].append((*measures, sums.coherence(k, 0, in_band, reference=1)))
    print(f"{'':28}" + "".join(f"{column:>14}" for column in (*COLUMNS, "spread")))
    for group in sorted(rows):
        print(f"{group}, {len(rows[group]['low dose'])} slices")
        for name, values in rows[group].items():
            table = np.array(values)
            spread = np.nanstd(np.log(table[:, 1]))
            print(f"  {name:26}" + "".join(f"{value:14.3f}" for value in (*np.nanmean(table, axis=0), spread)))


if __name__ == "__main__":
    main()
