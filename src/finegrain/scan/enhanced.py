"""Frames of a multi-frame (Enhanced) CT as if each had a header of its own.

Such a file keeps what holds for all frames in one sequence of "functional groups" and what differs in another (PS3.3 A.38,
C.7.6.16). Flattened, a frame is judged by the same rules as a slice that came in a file of its own.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

ENHANCED_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = (
    "CTImageFrameTypeSequence",
    "CTAcquisitionTypeSequence",
    "CTAcquisitionDetailsSequence",
    "CTTableDynamicsSequence",
    "CTGeometrySequence",
    "CTReconstructionSequence",
    "CTExposureSequence",
    "CTXRayDetailsSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
"""The groups whose elements mean for a frame what they mean in the header of a CT slice."""
_OTHER_NAMES = {
    "FrameType": "ImageType",
    "XRayTubeCurrentInmA": "XRayTubeCurrent",
    "ExposureTimeInms": "ExposureTime",
    "ExposureInmAs": "Exposure",
}
"""Elements of a frame → those of a slice that say the same in the same unit."""


def is_enhanced(dataset: Dataset) -> bool:
    """Whether a header is that of a multi-frame CT."""
    return dataset.get("SOPClassUID") in ENHANCED_CLASSES


def count_frames(dataset: Dataset) -> int:
    """How many frames a header describes; 0 if it contradicts itself."""
    per_frame = dataset.get(GROUPS[1]) or []
    return len(per_frame) if dataset.get("NumberOfFrames") == len(per_frame) else 0


def frame_header(dataset: Dataset, frame: int) -> Dataset:
    """What the header says of one frame, with the elements of a CT slice; what is said for it alone goes first.

    Args:
        frame: its number from 0.
    """
    flat = Dataset()
    flat.file_meta = dataset.file_meta
    for element in dataset:
        if element.keyword not in (*GROUPS, "NumberOfFrames", "PixelData"):
            flat.add(element)
    shared = (dataset.get(GROUPS[0]) or [])[:1]
    for group in (*shared, dataset[GROUPS[1]].value[frame]):
        for macro in _MACROS:
            items = group.get(macro) or []
            for element in items[0] if len(items) == 1 else ():
                keyword = _OTHER_NAMES.get(element.keyword, element.keyword)
                if keyword and element.VR != "SQ":
                    setattr(flat, keyword, element.value)
    return flat
