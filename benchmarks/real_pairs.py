"""What the bundled network does on real pairs of low and normal dose that it has never seen.

Run: python benchmarks/real_pairs.py FOLDER [--peers]
FOLDER is laid out as PATIENT/KERNEL/{full,quarter}/*.IMA, one slice a file, the same name on both sides, as the images of the
AAPM–Mayo Low Dose CT Grand Challenge can be (The Cancer Imaging Archive, doi 10.7937/9NPB-2637). With --peers, non-local means of
scikit-image is run beside it, told the true noise level.
PSNR protocol: window [−160, 240] HU, data range 400 HU, whole slice, against the full dose, which is itself noisy.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means

from finegrain.denoise import load_denoiser
from finegrain.evaluate.run import evaluate_slice
from finegrain.frequency import Band

PROTOCOL = "abdomen-40/400"
KEYS = (f"psnr_db[{PROTOCOL}]", f"ssim[{PROTOCOL}]", "hf_ratio[full]", "hf_coherence[full]", "texture_index", "hu_bias[soft]")


def read(path: Path) -> tuple[NDArray[np.float32], float]:
    """HU of a slice and its pixel size in mm."""
    image = pydicom.dcmread(path)
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    return hu.astype(np.float32), float(image.PixelSpacing[0])


def non_local_means(hu: NDArray[np.float32], sigma_hu: float) -> NDArray[np.float32]:
    """Non-local means on the soft-tissue window, with the noise level of an oracle."""
    clipped = np.clip(hu, -160, 240)
    smooth = denoise_nl_means(clipped, patch_size=5, patch_distance=7, h=0.8 * sigma_hu, sigma=sigma_hu, fast_mode=True)
    return np.where((hu > -160) & (hu < 240), smooth, hu).astype(np.float32)


def main() -> None:
    root, with_peers = Path(sys.argv[1]), "--peers" in sys.argv
    denoiser = load_denoiser()
    print(f"{denoiser.name}; PSNR and SSIM in window [−160, 240] HU; HF ratio and coherence above 0.4 Nyquist, body")
    rows: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.glob("*/*/full/*")):
        (full, pixel_mm), (quarter, _) = read(path), read(path.parents[1] / "quarter" / path.name)
        images = {"quarter dose": quarter, "denoised": denoiser.denoise_slice(quarter)}
        if with_peers:
            images["non-local means"] = non_local_means(quarter, float(np.std((quarter - full)[np.abs(full) < 200])) * 2 / 3**0.5)
        measured = evaluate_slice(full, images, pixel_mm=pixel_mm, protocols=(PROTOCOL,), band=Band())
        for name, values in measured.items():
            rows[path.parents[1].name][name].append(values)
    for kernel, methods in rows.items():
        print(f"\n{kernel}, {len(methods['denoised'])} slices" + "".join(f"{key:>26}" for key in KEYS))
        for name, values in methods.items():
            print(f"{name:24}" + "".join(f"{np.nanmean([value[key] for value in values]):26.3f}" for key in KEYS))
        gains = np.array(
            [out[KEYS[0]] - given[KEYS[0]] for out, given in zip(methods["denoised"], methods["quarter dose"], strict=True)]
        )
        print(f"gain in PSNR: mean {gains.mean():.2f} dB, worst slice {gains.min():.2f} dB, best {gains.max():.2f} dB")


if __name__ == "__main__":
    main()
