"""Forward projection and filtered backprojection of one 512² slice: finegrain against scikit-image, one core each.

Run: python benchmarks/projection.py
Both take 576 views over π of the same slice with 0.7 mm pixels. finegrain samples its detector at 0.3 mm (1,197 cells),
scikit-image at the pixel size (512 cells), as each does by default. Times are the best of several runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable

import numpy as np
from skimage.transform import iradon, radon

from finegrain.simulate.fbp import KERNELS, filtered_backprojection
from finegrain.simulate.geometry import ParallelBeam
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.projector import Projector

SIZE, PIXEL_MM, VIEWS = 512, 0.7, 576


def best(run: Callable[[], object], repeats: int) -> float:
    """Shortest of several wall times in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    hu = VirtualPatient(seed=1, region="thorax").slices(1, size=SIZE, pixel_mm=PIXEL_MM).hu[0]
    mu = 0.0192 * (1 + np.maximum(hu, -1000) / 1000)
    projector = Projector(ParallelBeam.covering(size=SIZE, pixel_mm=PIXEL_MM, n_views=VIEWS), size=SIZE, pixel_mm=PIXEL_MM)
    mu = np.where(projector.circle, mu, 0)
    degrees = np.degrees(projector.beam.angles_rad)
    ours, theirs = projector.forward(mu), radon(mu, theta=degrees, circle=True)
    rows = [
        (
            "forward projection",
            best(lambda: projector.forward(mu), 5),
            best(lambda: radon(mu, theta=degrees, circle=True), 2),
        ),
        (
            "filtered backprojection",
            best(lambda: filtered_backprojection(ours, projector, kernel=KERNELS["ramp"]), 5),
            best(lambda: iradon(theirs, theta=degrees, circle=True, filter_name="ramp"), 2),
        ),
    ]
    rows.append(("both", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    print(f"{'one 512² slice, 576 views, seconds':36}{'finegrain':>12}{'scikit-image':>14}{'ratio':>8}")
    for name, mine, peer in rows:
        print(f"{name:36}{mine:12.3f}{peer:14.3f}{peer / mine:8.1f}")
    inside = np.hypot(*np.mgrid[-256:256, -256:256]) < 240
    again = filtered_backprojection(ours, projector, kernel=KERNELS["ramp"])
    peer_again = iradon(theirs, theta=degrees, circle=True, filter_name="ramp")
    for name, image in (("finegrain", again), ("scikit-image", peer_again)):
        error = 1000 * (image - mu)[inside] / 0.0192
        print(f"round trip, rms error inside the body circle, {name}: {np.sqrt((error**2).mean()):.1f} HU")


if __name__ == "__main__":
    main()
