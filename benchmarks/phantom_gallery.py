"""Virtual patients beside real scans, in the windows that a radiologist would choose.

Run: python benchmarks/phantom_gallery.py CHEST_FOLDER ABDOMEN_FOLDER --out docs/images/virtual-patients.jpg
The first two columns of the upper rows are slices of the two real series (see phantom_texture.py for which); all others are
virtual patients scanned with the kernel of the real scan beside them, at 200 mAs and a tube current that follows their size (heads:
400 mAs, 5 mm).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from finegrain.figures import DisplayWindow
from finegrain.scan.dicom import read_series
from finegrain.simulate.acquire import Scanner
from finegrain.simulate.dose import Exposure
from finegrain.simulate.fbp import KERNELS
from finegrain.simulate.phantom import VirtualPatient
from finegrain.simulate.phantom.anatomy import MIN_FIELD_MM, Region

SIDE = 330
LUNG, SOFT, BONE, BRAIN = (
    DisplayWindow(name, c, w) for name, c, w in (("lung", -600, 1500), ("soft", 40, 400), ("bone", 400, 1800), ("brain", 35, 80))
)


@dataclass(frozen=True)
class Tile:
    """One image of the gallery."""

    hu: NDArray[np.floating]
    pixel_mm: float
    window: DisplayWindow
    title: str

    def image(self, field_mm: float) -> Image.Image:
        """The middle of the slice, `field_mm` wide."""
        half = min(round(field_mm / self.pixel_mm / 2), self.hu.shape[0] // 2)
        row, column = self.hu.shape[0] // 2, self.hu.shape[1] // 2
        gray = self.window.to_gray(self.hu[row - half : row + half, column - half : column + half])
        image = Image.fromarray(np.asarray(gray, dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        ImageDraw.Draw(image).text((6, 4), self.title, fill=255)
        return image


def patient(region: Region, seed: int, z_mm: float, *, kernel: str, window: DisplayWindow) -> Tile:
    """A virtual patient as the scanner shows it."""
    pixel_mm = 0.05 * np.ceil(1.04 * MIN_FIELD_MM[region] / 512 / 0.05)
    drawn = VirtualPatient(seed=seed, region=region).slices(1, pixel_mm=pixel_mm, center_z_mm=z_mm)
    # Heads are scanned with a fixed, higher current: brain needs a narrower window.
    exposure = Exposure.from_mas(400, slice_mm=5.0) if region == "head" else Exposure.from_mas(200, slice_mm=3.0, modulation_z=1.0)
    scanner = Scanner(size=512, pixel_mm=pixel_mm, kernel=KERNELS[kernel], exposure=exposure)
    scan = scanner.scan_phantom(drawn.hu[0], dose_fraction=0.5, generator=np.random.default_rng(seed))
    return Tile(scan.normal_dose, pixel_mm, window, f"virtual, {region} {seed}")


def real(folder: Path, indices: tuple[int, ...], window: DisplayWindow) -> list[Tile]:
    """Slices of a real series."""
    volume = read_series(folder)
    hu = np.where(volume.padding, np.float32(-1000), volume.hu)
    return [Tile(hu[index], volume.pixel_mm[0], window, "real") for index in indices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chest", type=Path)
    parser.add_argument("abdomen", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    thorax = [("thorax", seed, z) for seed, z in ((1, 12), (12, -10), (3, 15))]
    abdomen = [("abdomen", seed, z) for seed, z in ((2, 35), (9, -10), (5, 20))]
    rows: list[tuple[float, list[Tile]]] = [
        (380, [*real(arguments.chest, (60, 40), LUNG), *(patient(*who, kernel="B40f", window=LUNG) for who in thorax)]),
        (380, [*real(arguments.chest, (60, 40), SOFT), *(patient(*who, kernel="B40f", window=SOFT) for who in thorax)]),
        (400, [*real(arguments.abdomen, (122, 140), SOFT), *(patient(*who, kernel="FC13", window=SOFT) for who in abdomen)]),
        (
            430,
            [
                patient("pelvis", 3, -30, kernel="B30f", window=SOFT),
                patient("pelvis", 6, 50, kernel="B30f", window=BONE),
                patient("shoulder", 2, -5, kernel="B30f", window=SOFT),
                patient("head", 2, 15, kernel="B30f", window=BRAIN),
                patient("head", 4, -35, kernel="B40f", window=BONE),
            ],
        ),
    ]
    page = Image.new("L", (SIDE * 5, SIDE * len(rows)))
    for y, (field_mm, tiles) in enumerate(rows):
        for x, tile in enumerate(tiles):
            width = {"head": 230.0, "shoulder": 500.0}.get(tile.title.split()[1] if " " in tile.title else "", field_mm)
            page.paste(tile.image(width), (x * SIDE, y * SIDE))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(arguments.out, quality=82)


if __name__ == "__main__":
    main()
