"""The elements of a DICOM file that count, read without the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from finegrain.errors import ScanError
from finegrain.scan.privacy import UNREADABLE

_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
"""Float, double and integer pixel data: where a header ends."""


def read_elements(path: Path, name: str, keywords: Sequence[str]) -> Dataset | None:
    """The named elements of a file, up to its pixels unless they are among them; None for a file that is no DICOM.

    Args:
        name: what to call the file in messages.

    Raises: ScanError for a file that cannot be opened, is damaged or deflated, or says twice what is to be said once: one
        program believes the first, another the last.
    """
    wanted = {tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    last = _PIXELS - wanted
    seen: set[int] = set()

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if tag in seen and tag in wanted:
            raise ScanError(f"{name} holds {keyword_for_tag(tag)} twice, expected every element once; export it again")
        seen.add(tag)
        return tag in last

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            # A deflated file of 400 kB can unpack to gigabytes before any check is possible; no scanner sends one.
            if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise ScanError(f"{name} is deflated, expected plain or image-compressed DICOM; export it uncompressed")
            file.seek(0)
            return read_partial(file, stop_when=stop, specific_tags=[*wanted])
    except OSError as error:
        reason = error.strerror or "read error"  # its full text holds the path, and a file name may hold a patient's
        raise ScanError(f"{name} cannot be read: {reason}; check its permissions and the disk") from None
    except (InvalidDicomError, *UNREADABLE):
        raise ScanError(f"{name} is DICOM but damaged, its elements cannot be parsed; export it again") from None


def transfer_syntax(dataset: Dataset) -> UID:
    """How a file's elements and pixels are encoded; empty if it does not say."""
    return UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
