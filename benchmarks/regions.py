"""How often the region of a slice is told right on real series, and how the model behind it was made.

Run: python benchmarks/regions.py FOLDER...
Each FOLDER is a DICOM series, a .nrrd file, or a folder of the layout PATIENT/KERNEL/DOSE/*.IMA; its last name is looked up in
regions.yaml beside this file, which holds the reference. Prints the share of right slices with the order of the slices and the
tag, with the order alone, and of every slice alone, and the confusion matrix.

Fit: python benchmarks/regions.py CHEST ABDOMEN LUNG1 --fit src/finegrain/pairs/region_model.json
Fits the model to virtual patients and to the series marked `use: fit`; about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import log_softmax

from finegrain.pairs.region import REGIONS, Region, SliceFeatures, classify, model_inputs, slice_features
from finegrain.scan.read import read_scan
from finegrain.simulate.phantom import LABELS, VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM, REGION_CENTER_MM, Z_RANGE_MM

ZONE_MM = 10.0
"""Within this distance of a border either of its two regions is right."""

Image = NDArray[Any]


# --- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Where the regions of one series are."""

    regions: list[Region]
    borders_mm: list[float]
    use: str
    either: tuple[tuple[float, float], ...] = ()

    def region(self, z_mm: float) -> Region:
        return self.regions[sum(z_mm < border for border in self.borders_mm)]

    def is_clear(self, z_mm: float) -> bool:
        near = any(abs(z_mm - border) <= ZONE_MM for border in self.borders_mm)
        return not near and not any(low <= z_mm <= high for low, high in self.either)


@dataclass(frozen=True)
class Series:
    """The features of one series and their reference."""

    name: str
    reference: Reference
    z_mm: NDArray[np.float64]
    features: list[SliceFeatures]
    body_part: str | None


def series_of(path: Path, references: dict[str, Reference]) -> Iterator[Series]:
    """The series of a folder or file; a folder of patients, kernels and doses gives one for each."""
    if path.is_dir() and any(path.glob("*/*/*/*.IMA")):
        for folder in sorted({file.parent for file in path.glob("*/*/*/*.IMA")}):
            patient, kernel, dose = folder.parts[-3:]
            slices = [read_scan(file) for file in sorted(folder.glob("*.IMA"))]
            yield _series(f"{patient} {kernel} {dose}", references[patient], slices)
    else:
        yield _series(path.stem, references[path.stem], [read_scan(path)])


def _series(name: str, reference: Reference, scans: list[Any]) -> Series:
    z = np.concatenate([scan.positions_mm[:, 2] for scan in scans])
    features = [slice_features(hu, pixel_mm=scan.pixel_mm[0]) for scan in scans for hu in scan.hu]
    return Series(name, reference, z, features, scans[0].acquisition.get("BodyPartExamined"))


def judged(series: Series) -> tuple[list[str], dict[str, NDArray[np.bool_]], NDArray[np.int64], NDArray[np.float64]]:
    """Reference of each clear slice, whether each way of telling was right, the confusion of the first and of the last."""
    told = {
        "scan + tag": classify(series.features, series.z_mm, body_part=series.body_part),
        "scan": classify(series.features, series.z_mm),
        "slice alone": [classify([f], np.zeros(1))[0] for f in series.features],
    }
    truth = [series.reference.region(z) for z in series.z_mm]
    clear = np.array([series.reference.is_clear(z) for z in series.z_mm])
    right = {way: np.array([one.region == t for one, t in zip(all_, truth, strict=True)]) for way, all_ in told.items()}
    confusion = np.zeros((2, 5, 5), dtype=np.int64)
    for k, way in enumerate(("scan + tag", "slice alone")):
        for one, t in zip(np.array(told[way], dtype=object)[clear], np.array(truth)[clear], strict=True):
            confusion[k, REGIONS.index(t), REGIONS.index(one.region)] += 1
    confidence = np.array([[one.confidence for one in told[way]] for way in ("scan + tag", "slice alone")])
    return truth, {way: r[clear] for way, r in right.items()}, confusion, confidence[:, clear]


def print_accuracy(all_series: list[Series]) -> None:
    print(f"{'series':<28}{'use':>6}{'slices':>8}{'clear':>7}{'scan + tag':>12}{'scan':>8}{'alone':>8}  tag")
    total: dict[str, list[Any]] = {"fit": [], "watched": []}
    for one in all_series:
        _, right, confusion, confidence = judged(one)
        total[one.reference.use].append((right, confusion, confidence))
        shares = "".join(f"{r.mean():>{w}.1%}" for r, w in zip(right.values(), (12, 8, 8), strict=True))
        n = len(right["scan"])
        print(f"{one.name:<28}{one.reference.use:>6}{len(one.z_mm):>8}{n:>7}{shares}  {one.body_part or '–'}")
    for use, results in total.items():
        if not results:
            continue
        right = {way: np.concatenate([r[way] for r, _, _ in results]) for way in results[0][0]}
        shares = "; ".join(f"{way} {r.mean():.1%}" for way, r in right.items())
        print(f"all of `{use}`: {len(right['scan'])} clear slices; {shares}")
        confidence = np.concatenate([c for _, _, c in results], axis=1).mean(axis=1)
        means = zip(("scan + tag", "slice alone"), confidence, strict=True)
        print("mean confidence: " + "; ".join(f"{way} {mean:.1%}" for way, mean in means))
        for title, matrix in zip(("scan + tag", "slice alone"), sum(c for _, c, _ in results), strict=True):
            print(f"  {title}: rows reference, columns told\n  {'':<9}" + "".join(f"{r:>9}" for r in REGIONS))
            for region, row in zip(REGIONS, matrix, strict=True):
                print(f"  {region:<9}" + "".join(f"{n:>9}" for n in row))


# --- fit: virtual patients --------------------------------------------------------------------------------------------

SLICES = {"thorax": 16, "shoulder": 7, "pelvis": 10, "head": 8}
"""Drawn of each virtual patient; the trunk of `thorax` reaches from the lungs to the kidneys."""

ORGANS = [LABELS[name] for name in ("liver", "spleen", "kidney", "pancreas", "bowel", "bowel gas")]
CREST_MM = 122.0
GRID_MM = 2.0


def drawn(seed: int) -> Iterator[tuple[Region, Image, Image]]:
    """Slices of a virtual patient with their regions: HU and labels."""
    rng = np.random.default_rng([30_001, seed])
    for part, n in SLICES.items():
        low, high = Z_RANGE_MM[part]
        size = int(np.ceil(MIN_FIELD_MM[part] * 1.02 / GRID_MM))
        for z in rng.uniform(low + 2, high - 2, n):
            volume = VirtualPatient(seed, part).slices(
                1, size=size, pixel_mm=GRID_MM, slice_mm=2.9, center_z_mm=float(z - REGION_CENTER_MM[part])
            )
            hu, labels = volume.hu[0], volume.labels[0]
            yield _drawn_region(part, float(z), labels), hu, labels


def _drawn_region(part: str, z: float, labels: Image) -> Region:
    lung = np.count_nonzero(labels == LABELS["lung"])
    if part == "head":
        return "head"
    if part == "pelvis":
        return "pelvis" if z < CREST_MM else "abdomen"
    if part == "shoulder":
        return "thorax" if lung * GRID_MM**2 > 200 else "neck"
    return "thorax" if lung > np.isin(labels, ORGANS).sum() else "abdomen"


def _plane(n: int) -> tuple[Image, Image]:
    y, x = (np.mgrid[:n, :n] + 0.5 - n / 2) * GRID_MM
    return x, y


def drawn_neck(rng: np.random.Generator, *, jaw: bool) -> Image:
    """A plain neck or, with a jaw, a lower face: the virtual patients have neither."""
    n = 140
    x, y = _plane(n)
    a, b = (rng.uniform(60, 80), rng.uniform(75, 100)) if jaw else (rng.uniform(50, 85), rng.uniform(50, 80))
    fat, spine = rng.uniform(2, 18), rng.uniform(-5, 25)
    throat = -b * rng.uniform(0.15, 0.55)

    def ellipse(u: float, v: float, ru: float, rv: float) -> Image:
        return ((x - u) / ru) ** 2 + ((y - v) / rv) ** 2 < 1

    inside = ellipse(0, 0, a - fat, b - fat)
    hu = np.where(ellipse(0, 0, a, b), -100.0, -1000.0)
    hu[inside] = rng.normal(55, 10)
    for _ in range(rng.integers(4, 14)):
        hu[ellipse(rng.uniform(-a, a) * 0.7, rng.uniform(-b, b) * 0.7, rng.uniform(3, 9), rng.uniform(3, 9)) & inside] = -90
    hu[ellipse(0, spine, rng.uniform(10, 15), rng.uniform(8, 11))] = rng.uniform(300, 700)
    if rng.random() < 0.8:
        hu[ellipse(0, spine + 18, 16, 11) & ~ellipse(0, spine + 17, 9, 7)] = rng.uniform(500, 1000)
        for side in (-1, 1):
            hu[ellipse(side * rng.uniform(16, 22), spine + 6, 8, 6)] = rng.uniform(300, 800)
        hu[ellipse(0, spine + 32, 4, 9)] = 600
    hu[ellipse(0, throat, rng.uniform(5, 11), rng.uniform(5, 11))] = -1000
    if rng.random() < 0.4:
        hu[ellipse(0, throat, 18, 20) & ~ellipse(0, throat, 14, 16) & (y < throat + 5)] = rng.uniform(150, 600)
    blood = rng.uniform(60, 350)
    for side in (-1, 1):
        hu[ellipse(side * rng.uniform(20, 32), spine - 10 + rng.uniform(-8, 8), 4, 4)] = blood
        hu[ellipse(side * rng.uniform(24, 38), spine - 5 + rng.uniform(-8, 8), 6, 5)] = blood * rng.uniform(0.4, 1)
    if jaw:
        reach, wall, end = a - fat - rng.uniform(4, 10), rng.uniform(8, 14), rng.uniform(-0.1, 0.3) * b
        arch = ellipse(0, -b * 0.15, reach, b * 0.72) & ~ellipse(0, -b * 0.15, reach - wall, b * 0.72 - wall)
        hu[arch & (y < end)] = rng.uniform(500, 1500)
        if rng.random() < 0.5:  # teeth
            row = ellipse(0, -b * 0.35, 28, b * 0.5) & ~ellipse(0, -b * 0.35, 20, b * 0.5 - 8)
            hu[row & (y < -b * 0.25)] = rng.uniform(1000, 2500)
    return ndimage.gaussian_filter(hu, 0.6)


def drawn_vertex(rng: np.random.Generator) -> Image:
    """The top of a head, where the plane only grazes the skull."""
    x, y = _plane(80)
    radius, narrow = rng.uniform(12, 48), rng.uniform(0.7, 1)
    r = np.hypot(x / narrow, y)
    skull = radius - rng.uniform(4, 12)
    hu = np.where(r < radius, 30.0, -1000.0)
    hu = np.where(r < skull, rng.uniform(50, 1200), hu)
    return ndimage.gaussian_filter(np.where(r < skull - rng.uniform(8, 30), rng.uniform(20, 900), hu), 0.7)


# --- fit: what scanners, tables and bodies do to a slice --------------------------------------------------------------


def varied(hu: Image, labels: Image | None, region: Region, rng: np.random.Generator) -> tuple[Image, float]:
    """The slice in another body, on a table, turned, cut, padded and noisy; HU and pixel size in mm."""
    if region == "head" and labels is not None:
        hu = _plastic(hu, labels, rng)
    if rng.random() < 0.7:
        hu = _on_table(hu, rng)
    if rng.random() < 0.5:
        hu = np.where(hu > 150, 150 + (hu - 150) * rng.uniform(0.6, 1.1), hu)
    if region not in ("head", "neck") and rng.random() < 0.5:
        hu = _stouter(hu, int(rng.integers(2, 30)))
    if region in ("thorax", "abdomen", "pelvis") and rng.random() < 0.25:
        hu = _with_arms(hu, rng)
    pixel_mm = rng.uniform(1.2, 1.75)
    small = labels is None
    wide = rng.uniform(0.8, 1.1 if small or region == "neck" else 1.25) * (rng.uniform(0.5, 1) if rng.random() < 0.2 else 1)
    scale = wide * GRID_MM / pixel_mm
    hu = ndimage.zoom(hu, (scale * rng.uniform(0.88, 1.14), scale), order=1, mode="nearest")
    hu = hu[:, ::-1] if rng.random() < 0.5 else hu
    hu = hu[::-1] if rng.random() < 0.3 else hu
    if rng.random() < 0.15:
        hu = ndimage.rotate(hu, rng.uniform(-25, 25), order=1, cval=-1000)
    if rng.random() < 0.3:
        side = int(min(hu.shape) * rng.uniform(0.55, 0.95))
        y, x = ((n - side) * rng.uniform(0.35, 0.65) for n in hu.shape)
        hu = hu[int(y) : int(y) + side, int(x) : int(x) + side]
    hu = hu + ndimage.gaussian_filter(rng.standard_normal(hu.shape), 0.5) * rng.uniform(0, 90)
    if rng.random() < 0.3:
        y, x = np.mgrid[: hu.shape[0], : hu.shape[1]]
        hu = np.where(np.hypot(y - hu.shape[0] / 2, x - hu.shape[1] / 2) > min(hu.shape) / 2, -2000, hu)
    return hu, pixel_mm


def _plastic(hu: Image, labels: Image, rng: np.random.Generator) -> Image:
    """Now and then a test object: a skull with another filling, or bare bone."""
    if rng.random() < 0.12:
        brain = np.isin(labels, [LABELS[name] for name in ("grey matter", "white matter", "cerebrospinal fluid")])
        hu = np.where(brain, rng.choice([-1000, 0, 60]), hu)
    return np.where(hu < 200, -1000, hu) if rng.random() < 0.06 else hu


def _on_table(hu: Image, rng: np.random.Generator) -> Image:
    n = len(hu)
    y, x = np.mgrid[:n, :n]
    rows = np.flatnonzero((hu > -300).any(axis=1))
    bottom, bend = (rows[-1] if len(rows) else n - 10) + rng.uniform(-6, 4), rng.uniform(150, 400)
    hu = hu.copy()
    for k in range(rng.integers(1, 3)):
        sheet = np.abs(np.hypot(x - n / 2, y - (bottom + 12 * k - bend)) - bend) < rng.uniform(0.5, 1.6)
        hu[sheet & (hu < -500) & (y > n / 2)] = rng.uniform(-600, 300)
    return hu


def _stouter(hu: Image, cells: int) -> Image:
    hu = np.pad(hu, cells, constant_values=-1000)
    body = ndimage.binary_fill_holes(hu > -400)
    return np.where(~body & (ndimage.distance_transform_edt(~body) < cells), -100, hu)


def _with_arms(hu: Image, rng: np.random.Generator) -> Image:
    hu = np.pad(hu, int(rng.uniform(35, 50)), constant_values=-1000)
    y, x = np.mgrid[: len(hu), : len(hu)]
    columns = np.flatnonzero((hu > -300).sum(axis=0) > 8)
    for side, edge in ((-1, columns[0]), (1, columns[-1])):
        if rng.random() < 0.15:
            continue
        radius = rng.uniform(16, 26)
        u, v = edge + side * (radius + rng.uniform(0, 5)), len(hu) / 2 + rng.uniform(-25, 35)
        arm = (np.hypot(x - u, y - v) < radius) & (hu < -500)
        hu[arm] = rng.choice([-60, 40])
        for k in range(rng.integers(1, 3)):
            hu[(np.hypot(x - u - rng.uniform(-8, 8) * k, y - v) < rng.uniform(4, 6)) & arm] = 900
    return hu


# --- fit: features ----------------------------------------------------------------------------------------------------

NAMES = [field.name for field in fields(SliceFeatures)]
BONES = ["hip_cm2", "hip_more_cm2", "big_cm2", "big_more_cm2"]


def as_real(x: NDArray, y: NDArray, rng: np.random.Generator) -> NDArray:
    """Features of virtual patients with the sizes of real bones: drawn ribs are about twice as thick, drawn vertebrae and hips
    smaller; judged by quantiles over all real series, those marked `watched` too."""
    x, n = x.copy(), len(x)
    trunk = np.isin(y, [REGIONS.index("thorax"), REGIONS.index("abdomen")])
    ribs = np.where(trunk, rng.uniform(0.3, 0.9, n), np.where(y == REGIONS.index("pelvis"), rng.uniform(0.9, 1.6, n), 1))
    for name in [*BONES, "outer_cm2"]:
        x[:, NAMES.index(name)] *= ribs
    x[:, NAMES.index("spine_cm2")] *= np.where(y >= REGIONS.index("thorax"), rng.uniform(0.9, 1.9, n), 1)
    return x


def jittered(x: NDArray, rng: np.random.Generator, strength: float) -> NDArray:
    """The features of somebody else: no model of so few bodies may trust them to the last digit."""
    x, n = x.copy(), len(x)

    def at(name: str) -> Any:
        return np.s_[:, NAMES.index(name)]

    def factor(sd: float) -> NDArray:
        return np.exp(strength * sd * rng.standard_normal(n))

    for names, sd in (
        (["radius_mm"], 0.12), (["aspect"], 0.08), (["lung", "lung_less"], 0.15), (["lung_less"], 0.2), (["gas"], 0.7),
        (["bone", *BONES, "outer_cm2", "spine_cm2"], 0.25), (BONES, 0.25), (["outer_cm2"], 0.5), (["spine_cm2"], 0.3),
        (["airway_cm2"], 0.4),
    ):  # fmt: skip
        common = factor(sd)
        for name in names:
            x[at(name)] *= common
    x[at("gas")] += 0.004 * np.abs(rng.standard_normal(n)) * (rng.random(n) < 0.5)
    x[at("lung")] += 0.006 * np.abs(rng.standard_normal(n)) * (rng.random(n) < 0.5)
    x[at("ring")] = np.clip(x[at("ring")] + strength * 0.12 * rng.standard_normal(n), 0, 1)
    x[at("pieces")] = np.clip(x[at("pieces")] + strength * 1.2 * rng.standard_normal(n), 0, 12)
    x[at("spine_off_middle")] = np.abs(x[at("spine_off_middle")] - 0.1 + strength * 0.2 * rng.standard_normal(n))
    x[at("fat")] = np.clip(x[at("fat")] + strength * 0.13 * rng.standard_normal(n), 0, 1)
    return x


def virtual_features(n_patients: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Features and regions of virtual patients, three variations of each slice, with necks, jaws and vertices between."""
    rows: list[tuple[float, ...]] = []
    regions: list[int] = []

    def add(hu: Image, labels: Image | None, shown: Region, told: Region) -> None:
        image, pixel_mm = varied(hu, labels, shown, rng)
        rows.append(astuple(slice_features(image, pixel_mm=pixel_mm)))
        regions.append(REGIONS.index(told))

    for seed in range(n_patients):
        for region, hu, labels in drawn(seed):
            for _ in range(3):
                add(hu, labels, region, region)
        for k in range(20):
            add(drawn_neck(rng, jaw=k % 9 < 4), None, "neck", "head" if k % 9 < 4 else "neck")
        for _ in range(5):
            add(drawn_vertex(rng), None, "head", "head")
    return np.array(rows), np.array(regions)


# --- fit: the model ---------------------------------------------------------------------------------------------------

N_HIDDEN, N_NETWORKS, PENALTY, COPIES, REAL_SHARE = 8, 3, 2e-4, 4, 0.4
"""Chosen by eye among a few, by accuracy on virtual patients and on all real series, those marked `watched` too; the last is the
weight of real slices among all."""


def fitted(x: NDArray, y: NDArray, weights: NDArray, rng: np.random.Generator) -> dict[str, NDArray]:
    """One network: cross entropy and a quadratic penalty, minimised by L-BFGS."""
    shapes = {"inner": (x.shape[1], N_HIDDEN), "inner_bias": (N_HIDDEN,), "outer": (N_HIDDEN, 5), "outer_bias": (5,)}
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    wanted = np.eye(5)[y]

    def unpacked(p: NDArray) -> dict[str, NDArray]:
        return {name: part.reshape(shapes[name]) for name, part in zip(shapes, np.split(p, ends[:-1]), strict=True)}

    def loss(p: NDArray) -> tuple[float, NDArray]:
        m = unpacked(p)
        hidden = np.tanh(x @ m["inner"] + m["inner_bias"])
        told = log_softmax(hidden @ m["outer"] + m["outer_bias"], axis=1)
        out = weights[:, None] * (np.exp(told) - wanted)
        back = (out @ m["outer"].T) * (1 - hidden**2)
        slope = [x.T @ back, back.sum(axis=0), hidden.T @ out, out.sum(axis=0)]
        value = -(weights[:, None] * told * wanted).sum() + PENALTY * (p**2).sum()
        return float(value), np.concatenate([s.ravel() for s in slope]) + 2 * PENALTY * p

    start = rng.normal(0, 0.3, ends[-1])
    return unpacked(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 600}).x)


def fit(real: list[Series], n_patients: int, path: Path) -> None:
    """Write the model fitted to virtual patients and these series; each region of each series weighs alike."""
    rng = np.random.default_rng(1)
    x, y = virtual_features(n_patients, rng)
    rx = np.array([astuple(f) for one in real for f in one.features])
    ry = np.array([REGIONS.index(one.reference.region(z)) for one in real for z in one.z_mm])
    group = np.concatenate([np.full(len(one.z_mm), k) for k, one in enumerate(real)]) * 5 + ry
    share, real_share = 1 / np.bincount(y)[y], 1 / np.bincount(group)[group]
    all_x = np.concatenate([jittered(as_real(x, y, rng), rng, 1.0) for _ in range(COPIES)] + [jittered(rx, rng, 0.7)] * COPIES)
    all_y = np.concatenate([np.tile(y, COPIES), np.tile(ry, COPIES)])
    weights = np.concatenate(
        [np.tile(share / share.sum(), COPIES) * (1 - REAL_SHARE), np.tile(real_share / real_share.sum(), COPIES) * REAL_SHARE]
    )
    inputs = np.array([model_inputs(SliceFeatures(*row)) for row in all_x.tolist()])
    mean, sd = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    networks = [fitted((inputs - mean) / sd, all_y, weights / weights.sum(), rng) for _ in range(N_NETWORKS)]
    rounded = {"mean": mean, "sd": sd}
    text = json.dumps(
        {name: np.round(v, 5).tolist() for name, v in rounded.items()}
        | {"networks": [{name: np.round(v, 4).tolist() for name, v in one.items()} for one in networks]}
    )
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--fit", type=Path, help="write a new model here instead of measuring the one there is")
    parser.add_argument("--patients", type=int, default=36, help="virtual patients for the fit")
    arguments = parser.parse_args()
    stored = yaml.safe_load((Path(__file__).parent / "regions.yaml").read_text(encoding="utf-8"))
    references = {name: Reference(**one) for name, one in stored.items()}
    began = time.perf_counter()
    all_series = [one for folder in arguments.folders for one in series_of(folder, references)]
    n = sum(len(one.z_mm) for one in all_series)
    if arguments.fit:
        fit([one for one in all_series if one.reference.use == "fit"], arguments.patients, arguments.fit)
        return
    print_accuracy(all_series)
    print(f"reading and features: {(time.perf_counter() - began) / n * 1000:.0f} ms a slice")


if __name__ == "__main__":
    main()
