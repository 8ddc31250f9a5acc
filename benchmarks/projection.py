"""Simulation against the alternatives: seconds, memory and error of one 512² slice, and how long 52,000 pairs take.

Run: python benchmarks/projection.py [--json FILE]
Peers, each used if it is there: pip install scikit-image torchskradon==0.1.4 astra-toolbox itk-rtk

1. Forward projection and filtered backprojection of one virtual thorax, 0.7 mm pixels, 576 views over π. Every library has one
   thread, one process of its own, and the detector that it takes by default; where there is none, ASTRA gets cells as wide as
   the pixels and itk-rtk the fan of a clinical scanner. Seconds are the best of several runs, per slice.
   Memory is the peak above what the process holds after its imports and a run on a 64² image. Two errors, on ellipses whose
   line integrals are known, keep anyone from buying speed with them: the rms difference of the projections, along the library's
   own rays, and the rms error in flat regions, more than 4 pixels from an edge, of the image reconstructed from exact
   projections. All use the same window, Hann with its zero at the Nyquist frequency of the pixels (itk-rtk: of its detector).
2. Slices per second of the whole simulation, with one process and with two. A pair is three reconstructions of a phantom
   (truth, full dose, quarter dose), or the noise that a real slice lacks. Reading and writing files is not included.
3. The same on a GPU, if there is one.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import argparse
import json
import math
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finegrain.errors import FinegrainError
from finegrain.files import json_safe, write_whole
from finegrain.hu import MU_WATER_PER_MM, hu_to_mu
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import KERNELS, filtered_backprojection, hann_kernel
from finegrain.simulate.geometry import FanBeam, ParallelBeam
from finegrain.simulate.phantom import Ellipse, EllipsePhantom, VirtualPatient, insert_phantom
from finegrain.simulate.projector import Projector

SIZE, PIXEL_MM, VIEWS, PAIRS = 512, 0.7, 576, 52_000
ANGLES_RAD = np.arange(VIEWS) * np.pi / VIEWS
HANN = hann_kernel("Hann at the pixels' Nyquist", cutoff_per_mm=0.5 / PIXEL_MM)
ELLIPSES = EllipsePhantom((Ellipse((0.0, 0.0), (160.0, 110.0), 0.2, 1000.0), *insert_phantom().ellipses[1:]))
"""A body of water with the seven rods of CTP404 in it."""

Array = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One library at one image size. Ray: x cos θ + y sin θ = s from pixel (n // 2, n // 2), x along columns, y along rows."""

    theta_rad: Array
    s_mm: Array
    """Both broadcast to (view, detector)."""
    forward: Callable[[Array], Array]
    """Attenuation in 1/mm (y, x) → line integrals (view, detector)."""
    fbp: Callable[[Array], Array]
    """And back."""
    at_once: int = 1
    """Slices, all alike, that one call computes."""


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    name: str
    requirement: str
    geometry: str
    build: Callable[[int], Method]
    gpu: bool = False

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        try:
            return metadata.version(self.requirement.split("==")[0])
        except metadata.PackageNotFoundError:
            return None


def finegrain(size: int, *, detector_mm: float = 0.3, at_once: int = 1, device: str = "cpu") -> Method:
    beam = ParallelBeam.covering(size=size, pixel_mm=PIXEL_MM, detector_mm=detector_mm, n_views=VIEWS)
    projector = Projector(beam, size=size, pixel_mm=PIXEL_MM, **on(device))
    return Method(
        theta_rad=beam.angles_rad[:, None],
        s_mm=beam.detector_positions_mm[None],
        forward=lambda mu: projector.forward(repeat(mu, at_once))[0],
        fbp=lambda sinogram: filtered_backprojection(repeat(sinogram, at_once), projector, kernel=HANN)[0],
        at_once=at_once,
    )


def finegrain_fan(size: int) -> Method:
    """Ray by ray as a scanner does it: to the fan, rebinned from it, reconstructed."""
    from finegrain.simulate.projector import FanProjector

    fan = FanBeam()
    projector = FanProjector(fan, size=size, pixel_mm=PIXEL_MM)
    gamma_rad = fan.channel_angles_rad[None]
    return Method(
        theta_rad=fan.view_angles_rad[:, None] - gamma_rad,
        s_mm=fan.source_iso_mm * np.sin(gamma_rad),
        forward=projector.forward,
        fbp=lambda sinogram: filtered_backprojection(projector.rebin(sinogram), projector.parallel, kernel=HANN),
    )


def on(device: str) -> dict[str, Any]:
    """The keyword that puts finegrain on a GPU, where it has one."""
    return {} if device == "cpu" else {"device": device}


def repeat(array: Array, times: int) -> Array:
    """The same array some times over. Shape: (...) → (times, ...)."""
    return np.repeat(array[None], times, axis=0)


def scikit_image(size: int) -> Method:
    from skimage.transform import iradon, radon

    degrees = np.degrees(ANGLES_RAD)
    return Method(
        theta_rad=-ANGLES_RAD[:, None],
        s_mm=(np.arange(size) - size // 2)[None] * PIXEL_MM,
        forward=lambda mu: radon(mu, theta=degrees, circle=True).T * PIXEL_MM,
        fbp=lambda sinogram: iradon(sinogram.T / PIXEL_MM, theta=degrees, circle=True, filter_name="hann"),
    )


def torchskradon(size: int, *, at_once: int = 1, device: str = "cpu") -> Method:
    import torch
    from torchskradon.functional import skiradon, skradon

    torch.set_num_threads(1)
    degrees = torch.rad2deg(torch.from_numpy(ANGLES_RAD)).to(device)

    def batch(array: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).expand(at_once, 1, -1, -1).contiguous().to(device)

    return Method(
        theta_rad=-ANGLES_RAD[:, None],
        s_mm=(np.arange(size) - size // 2)[None] * PIXEL_MM,
        forward=lambda mu: skradon(batch(mu), degrees, circle=True).cpu().numpy()[0, 0].T * PIXEL_MM,
        fbp=lambda sinogram: skiradon(batch(sinogram.T / PIXEL_MM), degrees, filter_name="hann").cpu().numpy()[0, 0],
        at_once=at_once,
    )


def astra(size: int, *, kind: str) -> Method:
    import astra as toolbox

    rays, grid = toolbox.create_proj_geom("parallel", 1.0, size, ANGLES_RAD), toolbox.create_vol_geom(size, size)
    projector = toolbox.create_projector(kind, rays, grid)

    def run(name: str, image: int, sinogram: int, **options: object) -> None:
        job = toolbox.algorithm.create(
            {"type": name, "ProjectorId": projector, "ProjectionDataId": sinogram, **options}
            | {"VolumeDataId" if name == "FP" else "ReconstructionDataId": image}
        )
        toolbox.algorithm.run(job)
        toolbox.algorithm.delete(job)

    def forward(mu: Array) -> Array:
        image, sinogram = toolbox.data2d.create("-vol", grid, mu * PIXEL_MM), toolbox.data2d.create("-sino", rays)
        run("FP", image, sinogram)
        out = toolbox.data2d.get(sinogram)
        toolbox.data2d.delete([image, sinogram])
        return out

    def fbp(projections: Array) -> Array:
        image, sinogram = toolbox.data2d.create("-vol", grid), toolbox.data2d.create("-sino", rays, projections / PIXEL_MM)
        run("FBP", image, sinogram, option={"FilterType": "hann"})
        out = toolbox.data2d.get(image)
        toolbox.data2d.delete([image, sinogram])
        return out

    # Its axis runs between the pixels, half a pixel before (n // 2, n // 2).
    theta = -ANGLES_RAD[:, None]
    cells = np.arange(size) - (size - 1) / 2
    s_mm = (cells - (np.cos(theta) + np.sin(theta)) / 2) * PIXEL_MM
    return Method(theta_rad=theta, s_mm=s_mm, forward=forward, fbp=fbp)


def itk_rtk(size: int) -> Method:
    """A flat fan of the default `FanBeam`, as wide as the image; a full turn, without which its FDK needs weights.

    It computes in three dimensions. Projection takes one detector row through three slices, backprojection two rows into one
    slice: with fewer it gives zeros.
    """
    import itk
    from itk import RTK

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    fan, kind = FanBeam(), itk.Image[itk.F, 3]
    geometry = RTK.ThreeDCircularProjectionGeometry.New()
    turn_rad = np.arange(2 * VIEWS) * np.pi / VIEWS
    for angle in np.degrees(turn_rad):
        geometry.AddProjection(fan.source_iso_mm, fan.source_detector_mm, angle)
    edge_rad = math.asin(size * PIXEL_MM / 2 / fan.source_iso_mm)
    half = math.ceil(fan.source_detector_mm * math.tan(edge_rad) / fan.detector_pitch_mm)
    cells = np.arange(-half, half + 1)

    def volume(array: Array, spacing_mm: float) -> Any:
        """Centred in x at cell n // 2, in y between the outermost; z is that of the image, or the view."""
        image = itk.image_view_from_array(np.ascontiguousarray(array, dtype=np.float32))
        _, rows, columns = array.shape
        image.SetSpacing([spacing_mm] * 3)
        image.SetOrigin([-(columns // 2) * spacing_mm, -(rows - 1) / 2 * spacing_mm, -(size // 2) * PIXEL_MM])
        return image

    def run(task: Any, onto: Any, source: Any, row: int) -> Array:
        task.SetGeometry(geometry)
        task.SetInput(0, onto)
        task.SetInput(1, source)
        task.Update()
        return np.array(itk.array_view_from_image(task.GetOutput()))[:, row]

    def forward(mu: Array) -> Array:
        detector = volume(np.zeros((len(turn_rad), 1, len(cells))), fan.detector_pitch_mm)
        image = volume(np.stack([mu] * 3, axis=1), PIXEL_MM)
        return run(RTK.JosephForwardProjectionImageFilter[kind, kind].New(), detector, image, 0)

    def fbp(sinogram: Array) -> Array:
        image, detector = np.zeros((size, 1, size)), np.stack([sinogram] * 2, axis=1)
        task = RTK.FDKConeBeamReconstructionFilter[kind].New()
        task.GetRampFilter().SetHannCutFrequency(1.0)
        return run(task, volume(image, PIXEL_MM), volume(detector, fan.detector_pitch_mm), 0)

    fan_rad = np.arctan(cells * fan.detector_pitch_mm / fan.source_detector_mm)[None]
    return Method(theta_rad=fan_rad - turn_rad[:, None], s_mm=fan.source_iso_mm * np.sin(fan_rad), forward=forward, fbp=fbp)


FINEGRAIN = Peer("finegrain", "finegrain", "parallel, 0.3 mm", finegrain)
ASTRA, SKRADON = "astra-toolbox", "torchskradon==0.1.4"
CPU_PEERS = (
    FINEGRAIN,
    Peer("finegrain, coarse detector", "finegrain", "parallel, 0.7 mm", partial(finegrain, detector_mm=PIXEL_MM)),
    Peer("finegrain, fan", "finegrain", "fan, 0.70 mm, 1152 over 2π", finegrain_fan),
    Peer("scikit-image", "scikit-image", "parallel, 0.7 mm", scikit_image),
    Peer("torchskradon", SKRADON, "parallel, 0.7 mm", torchskradon),
    Peer("ASTRA, linear", ASTRA, "parallel, 0.7 mm", partial(astra, kind="linear")),
    Peer("ASTRA, strip", ASTRA, "parallel, 0.7 mm", partial(astra, kind="strip")),
    Peer("itk-rtk, Joseph and FDK", "itk-rtk", "fan, 0.70 mm, 1152 over 2π", itk_rtk),
)
GPU_PEERS = (
    Peer("finegrain, GPU, 16 at once", "finegrain", "parallel, 0.3 mm", partial(finegrain, at_once=16, device="cuda"), True),
    Peer("torchskradon, GPU, 16 at once", SKRADON, "parallel, 0.7 mm", partial(torchskradon, at_once=16, device="cuda"), True),
)


def measure(peer: Peer, hu: Array) -> dict[str, float]:
    """Seconds, memory and error of one peer; runs in a process of its own."""
    small = peer.build(64)
    small.fbp(small.forward(np.zeros((64, 64), dtype=np.float32)))  # what is imported or compiled late is there after this
    mu = hu_to_mu(hu)
    before = resident_mb("VmRSS", reset_peak=True)
    method = peer.build(SIZE)
    sinogram = method.forward(mu)
    seconds = {
        "forward_s": best(lambda: method.forward(mu)) / method.at_once,
        "fbp_s": best(lambda: method.fbp(sinogram)) / method.at_once,
    }
    memory = {"memory_mb": math.nan if peer.gpu else resident_mb("VmHWM") - before}
    return seconds | memory | errors(method)


def best(run: Callable[[], object]) -> float:
    """Shortest wall time in seconds of at least three runs, and of as many as fit into two seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 2:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def errors(method: Method) -> dict[str, float]:
    """Against the known line integrals: rms of projections, dimensionless, and of their reconstruction, in HU."""
    hu = ELLIPSES.image(SIZE, PIXEL_MM)
    exact = ELLIPSES.line_integral(method.s_mm, method.theta_rad).astype(np.float32)
    flat = (ndimage.maximum_filter(hu, 9) == ndimage.minimum_filter(hu, 9)) & (hu > -500)
    image_error = method.fbp(exact)[flat] / MU_WATER_PER_MM - (1 + hu[flat] / 1000)
    return {"projection_rms": rms(method.forward(hu_to_mu(hu)) - exact), "flat_rms_hu": 1000 * rms(image_error)}


def rms(error: Array) -> float:
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))


def resident_mb(field: str, *, reset_peak: bool = False) -> float:
    """VmRSS, what this process holds now, or VmHWM, the most it held since the last reset; NaN where there is no /proc."""
    try:
        if reset_peak:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def compare(peers: tuple[Peer, ...], hu: Array, rows: list[dict[str, Any]]) -> None:
    """Print a row for each peer that is there and add it to `rows`; ratios are to the first of these."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "slice.npy", hu)
        for peer in peers:
            name = f"{peer.name:30} {peer.version or '':11} {peer.geometry:26}"
            if peer.version is None:
                print(f"{name} not installed: pip install {peer.requirement}", flush=True)
                continue
            command = [sys.executable, __file__, "--measure", peer.name, str(Path(folder) / "slice.npy")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} failed: {(done.stderr.splitlines() or ['no message'])[-1]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            unit = rows[0] if rows else found
            print(f"{name} {figures(found, unit)}", flush=True)
            row = {
                "library": f"{peer.name} {peer.version}",
                "rays": peer.geometry,
                **found,
                "times_as_slow": seconds(found) / seconds(unit),
            }
            rows.append(row)


def seconds(found: dict[str, Any]) -> float:
    """Forward and back together."""
    return found["forward_s"] + found["fbp_s"]


def figures(found: dict[str, Any], unit: dict[str, Any]) -> str:
    both, unit_both = seconds(found), seconds(unit)
    return (
        f"{found['forward_s']:9.4f}{found['fbp_s']:9.4f}{both:9.4f}{both / unit_both:8.2f}{found['memory_mb']:8.0f}"
        f"{found['memory_mb'] / unit['memory_mb']:8.2f}{found['projection_rms']:11.5f}{found['flat_rms_hu']:10.2f}"
    )


def gpu_name() -> str | None:
    """None if PyTorch is not there or sees none."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


@dataclass(frozen=True)
class Job:
    """One slice through the simulation, again and again."""

    name: str
    hu: Array
    method: str
    margin: int
    device: str

    def rate(self, barrier: Any, results: Any, seconds: float = 10.0) -> None:
        """Put the slices per second into `results`; all processes start together."""
        simulate = getattr(scanner(self.device, margin=self.margin), self.method)
        run = partial(simulate, self.hu, dose_fraction=0.25, generator=np.random.default_rng(os.getpid()))
        run()
        barrier.wait(timeout=300)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            run()
            done += 1
        results.put(done / (time.perf_counter() - started))

    def slices_per_s(self, n_processes: int) -> float:
        """Of so many processes together."""
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(n_processes), context.Queue()
        workers = [context.Process(target=self.rate, args=(barrier, results), daemon=True) for _ in range(n_processes)]
        for worker in workers:
            worker.start()
        total = sum(results.get(timeout=300) for _ in workers)
        for worker in workers:
            worker.join()
        return total


def scanner(device: str, *, margin: int = 0) -> Scanner:
    kernel, exposure = KERNELS["B30f"], Exposure()
    return Scanner(size=SIZE, pixel_mm=PIXEL_MM, kernel=kernel, exposure=exposure, margin=margin, **on(device))


def jobs(hu: Array, device: str) -> tuple[Job, ...]:
    """A real slice does not ship: the full-dose image of the virtual patient, with its noise, stands in for it."""
    real = scanner(device).scan_phantom(hu, dose_fraction=0.25, generator=np.random.default_rng(0)).normal_dose
    corner = math.ceil(SIZE * (math.sqrt(2) - 1) / 2) + 1
    return (
        Job("phantom: truth, full, quarter dose", hu, "scan_phantom", 0, device),
        Job("real slice: its missing noise", real, "missing_noise_hu", 0, device),
        Job(f"the same, body reaching the corners ({SIZE + 2 * corner}²)", real, "missing_noise_hu", corner, device),
    )


def throughput(hu: Array, *, device: str = "cpu") -> list[dict[str, Any]]:
    """Print and give how fast pairs are made."""
    rows = []
    counts = (1, 2) if device == "cpu" else (1,)
    heads = "".join(f"{f'{n} process' + 'es' * (n > 1):>13}{'hours':>8}" for n in counts)
    print(f"\n{f'slices per second, hours for {PAIRS:,} pairs, {device}':52}{heads}")
    for job in jobs(hu, device):
        rates = [job.slices_per_s(n) for n in counts]
        print(f"{job.name:52}" + "".join(f"{rate:13.2f}{PAIRS / rate / 3600:8.1f}" for rate in rates), flush=True)
        for n, rate in zip(counts, rates, strict=True):
            rows.append(
                {
                    "what": job.name,
                    "device": device,
                    "processes": n,
                    "slices_per_s": rate,
                    f"hours_for_{PAIRS}_pairs": PAIRS / rate / 3600,
                }
            )
    return rows


def draw(n_slices: int) -> tuple[Array, float]:
    """The middle slice of a virtual thorax, and the seconds that each of so many took."""
    started = time.perf_counter()
    hu = VirtualPatient(seed=1, region="thorax").slices(n_slices, size=SIZE, pixel_mm=PIXEL_MM).hu
    return hu[n_slices // 2], (time.perf_counter() - started) / n_slices


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(json_file: Path | None = None) -> None:
    libraries: list[dict[str, Any]] = []
    hu, drawing_s = draw(5)
    hu = np.where(Projector(ParallelBeam.covering(size=SIZE, pixel_mm=PIXEL_MM), size=SIZE, pixel_mm=PIXEL_MM).circle, hu, -1000)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(f"one {SIZE}² slice of {PIXEL_MM} mm, {VIEWS} views over π, one thread: seconds, peak MB above the imports, errors;")
    print("ratios to the first row: above 1 is slower, or takes more memory")
    heads = f"{'forward':>9}{'FBP':>9}{'both':>9}{'ratio':>8}{'MB':>8}{'ratio':>8}{'rms proj.':>11}{'flat HU':>10}"
    print(f"{'':30} {'':11} {'rays at the isocentre':26} {heads}")
    compare(CPU_PEERS, hu, libraries)
    pairs = throughput(hu)
    print(f"drawing the virtual patient, not included, {drawing_s:.2f} s per slice of 5, one process")
    gpu = gpu_name()
    print(f"\nGPU: {gpu or 'none here'}")
    if gpu:
        compare(GPU_PEERS, hu, libraries)
        try:
            pairs += throughput(hu, device="cuda")
        except FinegrainError as error:
            print(error)
    if json_file:
        machine = {"processor": processor(), "cores": os.cpu_count(), "gpu": gpu}
        write_whole(json_file, json.dumps(json_safe({**machine, "libraries": libraries, "pairs": pairs}), indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Simulation against the alternatives.")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "SLICE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        wanted, path = arguments.measure
        chosen = next(peer for peer in (*CPU_PEERS, *GPU_PEERS) if peer.name == wanted)
        print("\n" + json.dumps(measure(chosen, np.load(path))))
    else:
        main(arguments.json)
