"""A torso with texture and noise that are known, for the measures that need a patient."""

import numpy as np
from scipy.ndimage import gaussian_filter

from finegrain.frequency import Band

KNOBS = {"band": Band(), "pixel_mm": 0.7}
Y, X = np.mgrid[:192, :192]
TEXTURED = (np.hypot(Y - 96, X - 60) < 22, np.hypot(Y - 96, X - 132) < 22)


def thorax(noise_hu=12.0, seed=3):
    """A disk of soft tissue with a textured lung and a smooth lake, on a table, under white noise slightly smoothed."""
    rng = np.random.default_rng(seed)
    hu = np.full(Y.shape, -1000.0)
    hu[np.hypot(Y - 96, X - 96) < 80] = 40
    grain = gaussian_filter(rng.normal(0, 1, Y.shape), 0.8)
    hu[TEXTURED[0]] = 40 + 60 * (grain / grain.std())[TEXTURED[0]]
    hu[TEXTURED[1]] = 0
    hu[184:187, 20:172] = 200
    noise = gaussian_filter(rng.normal(0, 1, Y.shape), 0.5)
    return hu + noise_hu * noise / noise.std()


def noise(shape, seed=9):
    return np.random.default_rng(seed).normal(0, 1, shape)
