"""The physics of the simulator, measured, as a page for a medical physicist: requirements, tables, plots, sources.

Run: python benchmarks/physics.py --out docs/physics.md [--quick] [--real FOLDER]
Plots go to images/physics-*.png beside the page. The parts: physics_signal.py measures what holds without noise,
physics_noise.py the noise, physics_scans.py scans analytic phantoms, physics_page.py writes tables, figures and Markdown. --quick
draws fewer noise realisations. --real holds the simulator's noise against real scans (real_noise.py says how FOLDER is laid out)
and keeps the numbers in data/real-noise.json beside the page; without it, what stands there is printed, as what domain_gap.py and
projection.py left in data/domain-gap.json and data/projection.json is (physics_kept.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import physics_kept
import physics_noise
import physics_signal
from physics_page import Section, markdown, save, styled

import finegrain
from finegrain.files import write_whole

REPEATS, QUICK_REPEATS = 6, 2


def sections(repeats: int, data: Path, real: Path | None) -> Iterator[Callable[[], Section]]:
    """What makes each section of the page, in order."""
    yield physics_signal.geometry
    yield physics_signal.line_integrals
    yield physics_signal.water_and_contrast
    for noise in (
        physics_noise.dose_law,
        physics_noise.spectra,
        physics_noise.native_fan,
        physics_noise.few_photons,
        physics_noise.insertion,
        physics_noise.modulation,
        physics_noise.crosstalk,
    ):
        yield partial(noise, repeats)
    yield physics_signal.kernels
    yield physics_signal.phantoms
    if real:
        measure_real_noise(real, data / "real-noise.json")
    yield partial(physics_kept.real_noise, data / "real-noise.json")
    yield partial(physics_kept.domain_gap, data / "domain-gap.json")
    yield partial(physics_kept.speed, data / "projection.json")


def measure_real_noise(folder: Path, path: Path) -> None:
    """Hold the simulator against real scans, and keep the numbers."""
    script = Path(__file__).with_name("real_noise.py")
    subprocess.run([sys.executable, str(script), str(folder), "--json", str(path)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/physics.md"), help="the page; its plots go to images/ beside it")
    parser.add_argument("--quick", action="store_true", help="fewer noise realisations: requirements may fail by chance")
    parser.add_argument("--real", type=Path, help="folder of real pairs, as for real_noise.py")
    arguments = parser.parse_args()
    images, made = arguments.out.parent / "images", []
    for make in sections(QUICK_REPEATS if arguments.quick else REPEATS, arguments.out.parent / "data", arguments.real):
        started = time.process_time()
        with styled():
            section = make()
        sizes = [f"{save(plot, images) // 1000} kB" for plot in section.plots]
        made.append(section)
        missed = [check.what for check in section.checks if not check.met]
        print(f"{section.title}: {time.process_time() - started:.0f} s CPU, plots {', '.join(sizes) or 'none'}", flush=True)
        for what in missed:
            print(f"  not met: {what}")
    command = "python benchmarks/physics.py --out docs/physics.md" + (" --quick" if arguments.quick else "")
    write_whole(arguments.out, markdown(made, command=command, version=finegrain.__version__, images="images"))


if __name__ == "__main__":
    main()
