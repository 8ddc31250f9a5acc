"""Which part of the body a slice shows: head, neck, thorax, abdomen or pelvis, told from the image and, weakly, from tags.

The definition of the five regions, the method and its accuracy on real series are in `docs/regions.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import log_softmax, logsumexp

from finegrain.errors import DataError
from finegrain.hu import AIR_HU

Region = Literal["head", "neck", "thorax", "abdomen", "pelvis"]

REGIONS: tuple[Region, ...] = ("head", "neck", "thorax", "abdomen", "pelvis")
"""From the top of the body to its bottom."""

CELL_MM = 3.0
"""Anatomy is read on cells of about this size: mean of tens of pixels, so that noise and kernels hardly matter; ribs and the
walls of the airway are just seen."""

TISSUE_HU = -350.0
"""What is above is tissue; between fat (−110) and the densest lung, and above clothes and foam."""

PADDING_HU = -1100.0
"""What is below was never reconstructed: no tissue is thinner than air, less some noise."""

LUNG_HU = (-965.0, -400.0)
"""Lung (−900 … −700, emphysema −950) as against gas of gut and airways (−1000)."""

OPEN_LUNG_HU = (-900.0, -550.0)
"""Median of gas that the edge of the image cuts and that is lung all the same; room air is about −1000, −970 where noise is
clipped at −1024, and the foam of a table −925."""

BONE_HU = (180.0, 400.0)
"""Bone is what is above the first and hangs together with something above the second: spongy bone does, kidneys and vessels
bright with contrast medium mostly do not."""

FAR_RADII = (0.3, 0.92)
"""Distances from the middle, in radii of the circle as large as the body, that part spine, hip and ribs."""


TAG_PARTS: dict[Region, tuple[str, ...]] = {
    "head": ("HEAD", "BRAIN", "SKULL", "CRANI", "SINUS", "ORBIT", "FACE", "FACIAL", "MAXILLA", "KOPF", "SCHAEDEL"),
    "neck": ("NECK", "CSPINE", "CERVICAL", "THYROID", "LARYNX", "PHARYNX", "CAROTID", "HALS"),
    "thorax": ("CHEST", "THORA", "LUNG", "HEART", "CARDI", "TSPINE", "BREAST", "MEDIAST", "CORONARY"),
    "abdomen": ("ABD", "LIVER", "KIDNEY", "RENAL", "PANCREAS", "SPLEEN", "STOMACH", "COLON", "LSPINE", "LUMBAR", "BOWEL"),
    "pelvis": ("PELVI", "BLADDER", "PROSTAT", "UTER", "OVAR", "CERVIX", "RECTUM", "SACR", "COLON", "BECKEN"),
}
"""Parts of words by which scanners name a body part; compounds such as CHESTABDPELVIS name several. From the standard's list of
body parts (DICOM PS3.16, Annex L), and a few in German."""

TAG_WORDS: dict[str, Region] = {"EAR": "head", "JAW": "head", "IAC": "head", "RIB": "thorax", "RIBS": "thorax", "HIP": "pelvis"}
"""Short words that count as a whole only: there is an EAR in every HEART."""

TAG_LOG_ODDS = 0.3
"""What a tag adds to the log probability of the regions that it names, in each independent slice. Weak, for a tag names a scan and
not its slices: at 0.7 tags made one slice of a series of the fit wrong and one of a watched series. One more tag there is half
wrong: OVARY on a scan of which two thirds show the abdomen."""

REGION_MM = 250.0
"""Mean height of a region, for the probability of a border between two slices."""

BORDER_MM = 15.0
"""Neighbouring slices look alike and err alike: as many images as there are such steps count as independent."""

DISORDER_COST = 12.0
"""Log probability that one region follows another against the order of the body, e.g. where two scans were mixed."""

REVERSED_COST = 6.0
"""Log probability that z runs from head to feet."""


@dataclass(frozen=True)
class SliceFeatures:
    """Anatomy of one slice in numbers; what has no unit is a share of the body's area.

    Single bones are given in cm²: fat around them makes no bone smaller.

    Attributes:
        radius_mm: of the circle as large as the body, lungs included; 0 where there is no body.
        aspect: width over depth.
        lung: share of the body that is lung.
        lung_less: the smaller of the left and right half's share.
        gas: other gas: gut, airways, sinuses.
        bone: share of bone, contrast medium and metal.
        ring: share of directions in which bone lies beyond half the radius: 1 in a skull, some ribs in a chest.
        hip_cm2: bone of the side that has less of it, between spine and ribs.
        hip_more_cm2: that of the other side.
        big_cm2: largest single bone away from the middle, on the side where it is smaller.
        big_more_cm2: that of the other side.
        outer_cm2: bone farther out than hips: ribs, arms, shoulder blades.
        pieces: bones away from the middle, twelve at most: many ribs, two hips.
        spine_cm2: bone in the middle.
        spine_off_middle: how far the bone of the middle lies from half depth, 0 in the middle, 1 at the skin.
        airway_cm2: a round gas near the middle of the slice, small as a windpipe.
        fat: share of fat.
        cut: share of the image's frame that is tissue: the field of view cuts the body.
    """

    radius_mm: float
    aspect: float
    lung: float
    lung_less: float
    gas: float
    bone: float
    ring: float
    hip_cm2: float
    hip_more_cm2: float
    big_cm2: float
    big_more_cm2: float
    outer_cm2: float
    pieces: float
    spine_cm2: float
    spine_off_middle: float
    airway_cm2: float
    fat: float
    cut: float


@dataclass(frozen=True)
class SliceRegion:
    """The region of one slice, and how sure it is.

    Attributes:
        region: the most likely one, along the whole scan.
        confidence: its probability under the model, 0 … 1.
    """

    region: Region
    confidence: float


def classify(features: Sequence[SliceFeatures], z_mm: NDArray, *, body_part: str | None = None) -> list[SliceRegion]:
    """The regions of the slices of one scan: what each image shows, the order of the body, and a hint from the tag.

    A hidden Markov chain along z: head above neck above thorax above abdomen above pelvis. z of LPS grows towards the head however
    the patient lay; the other direction is tried too, for geometry that was lost on the way, and taken where it fits far better.

    Args:
        features: of each slice, in any order.
        z_mm: position of each slice along the body, mm, shape (slice,); gaps may be of any size.
        body_part: BodyPartExamined or the like; it is often wrong, so that it weighs little.

    Returns: one region for each slice, in the order given.

    Raises: DataError if there are not as many finite positions as slices.
    """
    z = np.asarray(z_mm, dtype=np.float64)
    if z.shape != (len(features),) or not np.isfinite(z).all():
        raise DataError(f"expected {len(features)} finite positions, one for each slice, got shape {z.shape}; pass z of each slice")
    if not features:
        return []
    prior = _tag_prior(body_part)
    seen = np.array([_log_probabilities(f) for f in features])
    order = np.argsort(-z, kind="stable")
    gaps = -np.diff(z[order])
    evidence = (seen[order] + prior) * _independence(gaps)[:, None]
    down, up = _along(evidence, gaps), _along(evidence[::-1], gaps[::-1])
    path, log_marginal = down[1:] if down[0] > up[0] - REVERSED_COST else (up[1][::-1], up[2][::-1])
    result: list[SliceRegion | None] = [None] * len(features)
    for place, region, row in zip(order, path, log_marginal, strict=True):
        result[place] = SliceRegion(REGIONS[region], float(np.exp(row[region])))
    return [one for one in result if one is not None]


def region_of_tag(body_part: str) -> frozenset[Region]:
    """The regions that a BodyPartExamined or a description of a study names; empty where it names none.

    >>> sorted(region_of_tag("CHESTABDPELVIS")), sorted(region_of_tag("EXTREMITY"))
    (['abdomen', 'pelvis', 'thorax'], [])
    """
    text = body_part.upper()
    whole = {TAG_WORDS[word] for word in re.findall("[A-Z]+", text) if word in TAG_WORDS}
    return frozenset(region for region, parts in TAG_PARTS.items() if region in whole or any(part in text for part in parts))


def slice_features(hu: NDArray, *, pixel_mm: float) -> SliceFeatures:
    """The anatomy of one axial slice in numbers that noise, kernel, table and pixel size hardly change.

    Args:
        hu: CT numbers in HU, shape (y, x), in any orientation of the image.
        pixel_mm: size of a pixel, mm.

    Raises: DataError if it is no image or the pixel has no size.
    """
    if hu.ndim != 2 or min(hu.shape) < 8 or not pixel_mm > 0:
        raise DataError(
            f"expected a slice (y, x) of at least 8 × 8 pixels above 0 mm, got {hu.shape} at {pixel_mm} mm; pass one slice"
        )
    cells, outside, cell_mm = _cells(hu, pixel_mm)
    return _measured(cells, outside, cell_mm)


def _cells(hu: NDArray, pixel_mm: float) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """The slice on cells of about 3 mm, where it was not reconstructed, and the size of a cell in mm."""
    n = max(1, round(CELL_MM / pixel_mm))
    rows, columns = hu.shape[0] // n * n, hu.shape[1] // n * n
    part = np.asarray(hu[:rows, :columns], dtype=np.float32)
    corners = {float(part[y, x]) for y in (0, -1) for x in (0, -1)}
    filler = corners.pop() if len(corners) == 1 else AIR_HU
    blank = part < PADDING_HU
    if filler > TISSUE_HU:  # some scanners fill what they did not reconstruct with 0 HU
        blank |= part == filler
    clean = np.where(blank, np.float32(AIR_HU), np.clip(part, -1024, 1500))
    clean = np.nan_to_num(clean, copy=False, nan=AIR_HU)
    blocks = (rows // n, n, columns // n, n)
    outside = blank.reshape(blocks).mean(axis=(1, 3)) > 0.5 if blank.any() else np.zeros(blocks[::2], dtype=bool)
    return clean.reshape(blocks).mean(axis=(1, 3)), outside, n * pixel_mm


def _body(cells: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tissue of the patient, without the sheets of table and head rest; what is enclosed is not filled."""
    tissue = cells > TISSUE_HU
    solid = ndimage.binary_opening(tissue) | (cells > BONE_HU[1])  # no sheet, but a skull
    labels, n = ndimage.label(solid, structure=np.ones((3, 3)))
    if n == 0:
        return tissue
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    bony = np.isin(np.arange(n + 1), labels[cells > BONE_HU[1]])
    kept = sizes >= np.where(bony, 0.03, 0.2) * sizes.max()  # two thighs are two parts; a thin skull may be in pieces
    body: NDArray[np.bool_] = ndimage.binary_dilation(kept[labels] & solid, iterations=2, mask=tissue)
    return body | (ndimage.binary_closing(np.pad(body, 3), iterations=2)[3:-3, 3:-3] & (cells > -900))


def _bone(cells: NDArray[np.float32]) -> NDArray[np.bool_]:
    labels, n = ndimage.label(cells > BONE_HU[0])
    dense = np.isin(np.arange(n + 1), labels[cells > BONE_HU[1]])
    dense[0] = False
    return dense[labels]


def _gas(cells: NDArray[np.float32], body: NDArray[np.bool_], outside: NDArray[np.bool_], cell_mm: float) -> NDArray[np.bool_]:
    """Gas inside the body, also where the edge of the image cuts a lung."""
    gas = ndimage.binary_fill_holes(body) & (cells < TISSUE_HU)
    labels, n = ndimage.label((cells < TISSUE_HU) & ~outside & ~gas)
    if n:
        numbers = np.flatnonzero(np.bincount(labels.ravel(), minlength=n + 1)[1:] * cell_mm**2 > 500) + 1
        medians = ndimage.median(cells, labels, numbers) if len(numbers) else []
        lungs = [number for number, hu in zip(numbers, medians, strict=True) if OPEN_LUNG_HU[0] < hu < OPEN_LUNG_HU[1]]
        gas |= np.isin(labels, lungs)
    return gas


def _measured(cells: NDArray[np.float32], outside: NDArray[np.bool_], cell_mm: float) -> SliceFeatures:
    body = _body(cells)
    gas = _gas(cells, body, outside, cell_mm)
    inside = body | gas
    area = int(inside.sum())
    if area * cell_mm**2 < 1000:  # nothing, or a finger
        return SliceFeatures(*([0.0] * 18))
    radius = np.sqrt(area / np.pi)
    across, along = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    width, depth = across[-1] - across[0] + 1, along[-1] - along[0] + 1
    columns = np.arange(cells.shape[1])
    middle = float((inside.sum(axis=0) * columns).sum() / area)
    du = (columns - middle)[None, :] / radius
    dv = (np.arange(cells.shape[0])[:, None] - (along[0] + along[-1]) / 2) / (depth / 2)

    lung = ndimage.binary_opening(gas & (cells > LUNG_HU[0]) & (cells < LUNG_HU[1]))
    other = gas & ~ndimage.binary_dilation(lung)
    bone = inside & _bone(cells)
    left, right = du < 0, du > 0
    far = np.abs(du) > FAR_RADII[0]
    outer = np.abs(du) > FAR_RADII[1]

    def share(mask: NDArray) -> float:
        return float(mask.sum()) / area

    cm2 = cell_mm**2 / 100
    hips = [cm2 * np.count_nonzero(bone & far & ~outer & side) for side in (left, right)]
    lungs = [share(lung & side) for side in (left, right)]
    biggest = [cm2 * _largest(bone & far & side) for side in (left, right)]
    spine = bone & ~far
    frame = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    return SliceFeatures(
        radius_mm=float(radius * cell_mm),
        aspect=float(width / depth),
        lung=sum(lungs),
        lung_less=min(lungs),
        gas=share(other),
        bone=share(bone),
        ring=_ring(bone, du, dv * (depth / 2) / radius),
        hip_cm2=float(min(hips)),
        hip_more_cm2=float(max(hips)),
        big_cm2=float(min(biggest)),
        big_more_cm2=float(max(biggest)),
        outer_cm2=float(cm2 * np.count_nonzero(bone & outer)),
        pieces=float(_pieces(bone & far, least=0.3 / cm2)),
        spine_cm2=float(cm2 * np.count_nonzero(spine)),
        spine_off_middle=abs(float((spine * dv).sum()) / max(int(spine.sum()), 1)),
        airway_cm2=cm2 * _windpipe(other, du, dv, cell_mm),
        fat=share(body & (cells > -160) & (cells < -40)),
        cut=float(frame.mean()),
    )


def _largest(mask: NDArray[np.bool_]) -> int:
    """Cells of the largest piece."""
    labels, n = ndimage.label(mask)
    return int(np.bincount(labels.ravel())[1:].max()) if n else 0


def _pieces(mask: NDArray[np.bool_], *, least: float) -> int:
    """Pieces of at least so many cells, twelve at most."""
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    return min(int((np.bincount(labels.ravel(), minlength=n + 1)[1:] >= least).sum()), 12)


def _ring(bone: NDArray[np.bool_], du: NDArray, dv: NDArray) -> float:
    """Share of 36 directions from the middle in which bone lies beyond half the radius."""
    rows, columns = np.nonzero(bone)
    u, v = du[0, columns], dv[rows, 0]
    u, v = u[u**2 + v**2 > 0.25], v[u**2 + v**2 > 0.25]
    return len(np.unique(np.floor(np.arctan2(v, u) * (18 / np.pi)).clip(-18, 17))) / 36


def _windpipe(gas: NDArray[np.bool_], du: NDArray, dv: NDArray, cell_mm: float) -> int:
    """Cells of the largest gas that is as small and as central as a windpipe or a throat."""
    labels, _ = ndimage.label(gas)
    best = 0
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[place] == number
        size = int(mask.sum())
        u, v = float((du[:, place[1]] * mask).sum()) / size, float((dv[place[0]] * mask).sum()) / size
        if 60 < size * cell_mm**2 < 1200 and abs(u) < 0.3 and abs(v) < 0.6:
            best = max(best, size)
    return best


@dataclass(frozen=True)
class _Network:
    """One small network: hidden = tanh(x · inner + inner_bias), log odds = hidden · outer + outer_bias."""

    inner: NDArray[np.float64]
    inner_bias: NDArray[np.float64]
    outer: NDArray[np.float64]
    outer_bias: NDArray[np.float64]


@lru_cache(maxsize=1)
def _model() -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[_Network, ...]]:
    """Mean and SD of the inputs, and the networks whose probabilities are averaged; made by `benchmarks/regions.py --fit`."""
    stored = json.loads((files("finegrain.pairs") / "region_model.json").read_text(encoding="utf-8"))
    networks = tuple(_Network(**{name: np.array(values) for name, values in one.items()}) for one in stored["networks"])
    return np.array(stored["mean"]), np.array(stored["sd"]), networks


HALF_WAY = {
    "lung": 0.05, "lung_less": 0.02, "gas": 0.01, "bone": 0.05, "hip_cm2": 4.0, "hip_more_cm2": 6.0, "big_cm2": 3.0,
    "big_more_cm2": 4.0, "outer_cm2": 3.0, "pieces": 4.0, "spine_cm2": 12.0, "airway_cm2": 2.0, "fat": 0.3,
}  # fmt: skip
"""Where each area counts half: more than a lot of bone is still a lot of bone, in whatever patient."""


def model_inputs(features: SliceFeatures) -> list[float]:
    """The features as the networks take them: sizes as logarithms, areas as x / (x + half way), all bounded."""
    inputs = []
    for name, x in zip(features.__dataclass_fields__, astuple(features), strict=True):
        if name == "radius_mm":
            size = float(np.log(np.clip(x, 15, 300) / 100))
            inputs += [size, size**2]
        elif name == "aspect":
            inputs.append(float(np.log(np.clip(x, 0.4, 3))))
        elif name in HALF_WAY:
            inputs.append(x / (x + HALF_WAY[name]))
        else:
            inputs.append(x)
        if name in ("lung", "bone"):
            inputs.append(float(np.sqrt(x)))
    return inputs


def _log_probabilities(features: SliceFeatures) -> NDArray[np.float64]:
    """Of the five regions, from one image alone; all alike where there is no body."""
    if features.radius_mm == 0:
        return np.full(len(REGIONS), -np.log(len(REGIONS)))
    mean, sd, networks = _model()
    x = (np.array(model_inputs(features)) - mean) / sd
    odds = [np.tanh(x @ n.inner + n.inner_bias) @ n.outer + n.outer_bias for n in networks]
    log_mean: NDArray[np.float64] = logsumexp(log_softmax(odds, axis=1), axis=0) - np.log(len(networks))
    # Nothing is impossible: a body that the model never saw must not outweigh a whole scan.
    return np.logaddexp(log_mean, np.log(FLOOR)) - np.log1p(FLOOR * len(REGIONS))


FLOOR = 0.005
"""Least probability of any region in one image; about the share of errors far from borders."""


def _tag_prior(body_part: str | None) -> NDArray[np.float64]:
    named = region_of_tag(body_part or "")
    return np.array([TAG_LOG_ODDS * (region in named) for region in REGIONS])


def _independence(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of each slice's evidence: mean distance to its neighbours over `BORDER_MM`, at most 1."""
    if len(gaps) == 0:
        return np.ones(1)
    wide = np.minimum(gaps, BORDER_MM)
    return np.clip((np.append(wide, BORDER_MM) + np.insert(wide, 0, BORDER_MM)) / (2 * BORDER_MM), 0.05, 1)


def _along(evidence: NDArray[np.float64], gaps: NDArray[np.float64]) -> tuple[float, NDArray[np.int64], NDArray[np.float64]]:
    """Best order from head to pelvis: log likelihood of all orders, best path, log marginals (shape: slice region)."""
    n, k = evidence.shape
    steps = [_step(gap) for gap in gaps]
    best, back = evidence[0], np.zeros((n, k), dtype=np.int64)
    forward, backward = np.empty((n, k)), np.zeros((n, k))
    forward[0] = evidence[0]
    for i, step in enumerate(steps, start=1):
        ways = best[:, None] + step
        back[i] = ways.argmax(axis=0)
        best = ways.max(axis=0) + evidence[i]
        forward[i] = logsumexp(forward[i - 1][:, None] + step, axis=0) + evidence[i]
    for i in range(n - 2, -1, -1):
        backward[i] = logsumexp(steps[i] + evidence[i + 1] + backward[i + 1], axis=1)
    path = np.empty(n, dtype=np.int64)
    path[-1] = best.argmax()
    for i in range(n - 1, 0, -1):
        path[i - 1] = back[i, path[i]]
    return float(logsumexp(forward[-1])), path, log_softmax(forward + backward, axis=1)


def _step(gap_mm: float) -> NDArray[np.float64]:
    """Log probability of each region (column) a gap below each (row): borders come as a Poisson process."""
    expected = gap_mm / REGION_MM + 1e-4
    k = len(REGIONS)
    down = np.arange(k)[None, :] - np.arange(k)[:, None]
    log_factorial = np.array([0.0, 0.0, np.log(2), np.log(6), np.log(24)])
    forward = down * np.log(expected) - log_factorial[np.clip(down, 0, None)]
    return log_softmax(np.where(down >= 0, forward, -DISORDER_COST), axis=1)
