"""The simulator's missing noise against the real one, quarter − full, of the same slices.

Run: python benchmarks/real_noise.py FOLDER
FOLDER is laid out as for real_pairs.py: PATIENT/KERNEL/{full,quarter}/*, KERNEL one that finegrain knows (B30f, D45f). For each
slice the photons are found from the noise of the full-dose image alone (`matching_exposure`), and the quarter-dose noise is
simulated. Printed: SD in HU simulated/real in soft tissue and lung, and the distance of the two radial noise power spectra at equal
area, mean |ln| over 0.05 to 0.55 cycles/mm, from the sixteen 64 × 64 squares in the middle.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from real_pairs import read

from finegrain.errors import GeometryError
from finegrain.evaluate.fidelity import tissue_rois
from finegrain.evaluate.spectra import nps_2d, nps_shape_log_distance, radial_nps
from finegrain.frequency import to_blocks
from finegrain.scan.volume import CTVolume
from finegrain.simulate.acquire import matching_exposure, simulate_low_dose
from finegrain.simulate.fbp import find_kernel


def middle(noise: NDArray) -> NDArray:
    """The middle 256 × 256 pixels as sixteen squares. Shape: (y, x) → (16, 64, 64)."""
    row, column = (length // 2 for length in noise.shape)
    return to_blocks(noise[row - 128 : row + 128, column - 128 : column + 128], 64).reshape(-1, 64, 64)


def main() -> None:
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for path in sorted(Path(sys.argv[1]).glob("*/*/full/*")):
        patient, kernel = path.parents[2].name, find_kernel(path.parents[1].name)
        (full, pixel_mm), (quarter, _) = read(path), read(path.parents[1] / "quarter" / path.name)
        volume = CTVolume.from_array(full[None], pixel_mm=pixel_mm, slice_mm=3.0)
        try:
            exposure = matching_exposure(volume, kernel=kernel)
        except GeometryError as error:
            print(f"{patient} {kernel.name} {path.stem}: left out, {error}")
            continue
        low = simulate_low_dose(volume, dose_fraction=0.25, kernel=kernel, exposure=exposure, seed=1)
        real, simulated = quarter - full, low.hu[0] - full
        spectra = [radial_nps(nps_2d(middle(noise), pixel_mm=pixel_mm)) for noise in (real, simulated)]
        rois = tissue_rois(full)
        ratios = [float(simulated[rois[t]].std() / real[rois[t]].std()) if rois[t].any() else np.nan for t in ("soft", "lung")]
        found[kernel.name].append((nps_shape_log_distance(*spectra), *ratios))
        print(f"{patient} {kernel.name} {path.stem}: NPS distance {found[kernel.name][-1][0]:.3f}, ", end="")
        print(f"SD simulated/real: soft tissue {ratios[0]:.2f}, lung {ratios[1]:.2f}, photons per ray {exposure.photons:.2e}")
    for name, rows in found.items():
        distance, soft, lung = np.array(rows).T
        both = [f"{t} {np.nanmean(values):.2f} ± {np.nanstd(values):.2f}" for t, values in (("soft", soft), ("lung", lung))]
        print(f"{name}, {len(rows)} slices: NPS distance mean {distance.mean():.3f}, largest {distance.max():.3f}; ", end="")
        print(f"SD simulated/real: {', '.join(both)}")


if __name__ == "__main__":
    main()
