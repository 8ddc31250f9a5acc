"""Make the shipped sample: eight consecutive slices of a public chest CT, recompressed without loss.

    python tools/make_sample.py FOLDER_OF_THE_SOURCE_SERIES

Only the encoding of the pixels changes (JPEG-LS lossless); each slice is decoded again and compared. The source and its
licence are in `src/finegrain/sample/ATTRIBUTION.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEGLSLossless

SERIES_UID = "1.3.6.1.4.1.14519.5.2.1.7085.2626.176520109931701354483419993926"
FIRST_INSTANCE, LAST_INSTANCE = 60, 67  # heart, dome of the liver, lung bases with fine vessels, ribs and spine
SAMPLE = Path(__file__).parents[1] / "src" / "finegrain" / "sample" / "chest"


def main(source: Path) -> None:
    """Write the sample from the series in `source`."""
    SAMPLE.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        if dataset.SeriesInstanceUID == SERIES_UID and FIRST_INSTANCE <= dataset.InstanceNumber <= LAST_INSTANCE:
            target = SAMPLE / f"{dataset.InstanceNumber:03d}.dcm"
            pixels = dataset.pixel_array.copy()
            dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
            dataset.save_as(target, enforce_file_format=True)
            assert np.array_equal(pydicom.dcmread(target).pixel_array, pixels), path
            print(target.name, target.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
