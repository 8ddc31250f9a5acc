"""The lesions that a study puts into its test slices: which, where, and what the slices look like around them.

Every method is asked about the same lesions at the same places, and sees them before it denoises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finegrain.config import StudyConfig
from finegrain.evaluate.lesion import Lesion, Place, gaussian_transfer, insert, lesion_places, roi_size, rois_at
from finegrain.pairs.dataset import half_per_mm_of
from finegrain.pairs.manifest import Pair

LESION_SEED = 0
"""Of the places of inserted lesions: the same for every method and every run."""


def lesions_of(config: StudyConfig) -> list[Lesion]:
    """The lesions that are inserted into test slices."""
    if config.lesions is None:
        return []
    both = zip(config.lesions.diameters_mm, config.lesions.contrasts_hu, strict=True)
    return [Lesion(diameter_mm=diameter, contrast_hu=contrast) for diameter, contrast in both]


def places_of(config: StudyConfig, lesion: Lesion, pair: Pair, folder: Path) -> tuple[Place, ...]:
    """Where a lesion goes in a test slice, found on the reference alone: the same for every method."""
    assert config.lesions is not None
    return _places(lesion.diameter_mm, config.lesions.per_slice, pair, folder)


@cache  # a search takes a third of a second, and every method asks for the same
def _places(diameter_mm: float, n: int, pair: Pair, folder: Path) -> tuple[Place, ...]:
    reference = pair.images(folder)[1].astype(np.float32)
    return lesion_places(reference, pixel_mm=pair.pixel_mm, diameter_mm=diameter_mm, n=n, seed=LESION_SEED)


def with_lesions(hu: NDArray[np.float32], lesion: Lesion, places: tuple[Place, ...], pair: Pair) -> NDArray[np.float32]:
    """A slice with the lesion at each place, as sharp as the slice's reconstruction kernel would show it. Shape: (y, x)."""
    half = half_per_mm_of(pair.kernel)
    mtf = None if half is None else gaussian_transfer(half)
    for place in places:
        hu = insert(hu, lesion, place, pixel_mm=pair.pixel_mm, mtf=mtf)
    return hu.astype(np.float32)


def roi_sizes(config: StudyConfig, test: Sequence[Pair]) -> list[int]:
    """Pixels along either side of the ROI of each lesion: one size for slices of unlike pixels, which fits the largest."""
    return [min(roi_size(lesion.diameter_mm, pair.pixel_mm) for pair in test) for lesion in lesions_of(config)]


def lesion_rois(
    config: StudyConfig, hu: NDArray[np.float32], pair: Pair, folder: Path, sizes: list[int], denoise: Callable[[NDArray], NDArray]
) -> list[NDArray[np.float64]]:
    """ROIs around each lesion, one array for each size of lesion, of a slice into which they were inserted before denoising."""
    found = []
    for lesion, size in zip(lesions_of(config), sizes, strict=True):
        places = places_of(config, lesion, pair, folder)
        image = denoise(with_lesions(hu, lesion, places, pair)) if places else hu
        found.append(rois_at(image, places, size=size))
    return found
