"""Noise of a known spectrum, for the tests of the spectra and of what is made of them."""

import numpy as np

PIXEL_MM = 0.8
SIZE = 64


def white(n=200, sd=10.0, seed=0):
    return np.random.default_rng(seed).normal(0, sd, (n, SIZE, SIZE))


def filtered(rois, transfer):
    f = np.fft.fftfreq(SIZE, PIXEL_MM)
    return np.fft.ifft2(np.fft.fft2(rois) * transfer(np.hypot(f[:, None], f[None, :]))).real


def ramp(f):
    return np.sqrt(f) * np.exp(-((f / 0.35) ** 2))
