"""Write a derived series beside its source.

Writing starts from the source files, changes what a derived image must change and leaves everything else as it was, byte for
byte. Messages name an instance by its UID, never by its path.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from finegrain import __version__
from finegrain.errors import ScanError
from finegrain.scan.headers import (
    EQUIPMENT_MANUFACTURER,
    IMPLEMENTATION_CLASS_UID,
    header_numbers,
    header_text,
    header_values,
    tolerate_sloppy_headers,
)
from finegrain.scan.pixels import ALWAYS_LOSSY, LOSSY_UNLESS_DENIED, read_stored, to_stored
from finegrain.scan.privacy import UNREADABLE
from finegrain.scan.series import MultiFrameSource, SeriesSource, SourceSlice
from finegrain.scan.volume import CTVolume

logger = logging.getLogger(__name__)

UID_NAMESPACE = uuid.UUID("54c873c6-3d31-40dd-ab5f-e32574cdf020")


@dataclass(frozen=True)
class Derivation:
    """What was done to a series: it fixes the new UIDs and is told in every derived header.

    Attributes:
        kind: what the new pixels are.
        model: name of the network, or of the simulation.
        model_version: its version.
        model_sha256: hash of its weights; of the settings for a simulation.
        parameters: every setting that changes pixels (strength, HU range …), as JSON values.
        series_label: what the series list of a viewer shows in brackets; empty for "AI-DN <model> v<version>".
        series_number_offset: added to SeriesNumber.
        image_type_value_2: SECONDARY keeps other software from taking the result for the scanner's own images; some
            routers pass on PRIMARY only.
    """

    kind: Literal["denoised", "simulated-low-dose", "simulated-phantom"]
    model: str
    model_version: str
    model_sha256: str
    parameters: dict[str, Any] = field(default_factory=dict)
    series_label: str = ""
    series_number_offset: int = 9000
    image_type_value_2: Literal["SECONDARY", "PRIMARY"] = "SECONDARY"

    @property
    def label(self) -> str:
        """`series_label` in ASCII, which every character set contains."""
        prefix = "AI-DN" if self.kind == "denoised" else "LOW-DOSE SIM"
        return in_ascii(self.series_label or f"{prefix} {self.model} v{self.model_version}")

    def uid_for(self, source_uid: str) -> UID:
        """The UID of what is derived from `source_uid`; the same model and settings give the same, so a retry adds nothing."""
        settings = json.dumps(self.parameters, sort_keys=True, default=str)
        major = __version__.split(".")[0]
        name = "|".join((source_uid, self.kind, self.model, self.model_version, self.model_sha256, settings, major))
        return UID(f"2.25.{uuid.uuid5(UID_NAMESPACE, name).int}")

    @property
    def model_uid(self) -> UID:
        """The DeviceUID of the processing equipment: the weights."""
        return UID(f"2.25.{uuid.uuid5(UID_NAMESPACE, 'model|' + self.model_sha256).int}")

    def in_words(self) -> str:
        """One ASCII line for DerivationDescription."""
        settings = "".join(f", {name}={value}" for name, value in sorted(self.parameters.items()))
        return in_ascii(
            f"{self.kind} by finegrain {__version__}, model {self.model} {self.model_version}"
            f" (sha256 {self.model_sha256[:12]}){settings}. Not for primary diagnosis unless locally validated."
        )


def write_derived_series(
    volume: CTVolume,
    out_dir: Path,
    *,
    derivation: Derivation,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write HU as a new series of the same study and frame of reference; give the files in slice order.

    Every file starts from its source file. The series is written beside `out_dir` under a temporary name and appears
    there complete, or not at all.

    Args:
        volume: as `read_series` gave it, with other HU (`CTVolume.with_hu`).
        out_dir: must not exist, or be empty; never inside the source's folder.
        derivation: what was done; the same derivation gives the same UIDs.
        progress: called with the number of slices written so far.

    Raises: ScanError for a volume without source, HU that are not finite, or a folder that cannot be written.
    """
    source, out_dir = volume.source, Path(out_dir)
    check_output_folder(out_dir, volume)
    if not isinstance(source, SeriesSource):
        raise ScanError("expected a volume read from a DICOM series, got one without source files; write NIfTI instead")
    if len(source.slices) != len(volume):
        raise ScanError(f"volume has {len(volume)} slices, its source {len(source.slices)}; write the whole series")
    _refuse_values_that_are_no_hu(volume)

    names = [file_name(i) for i in range(len(volume))]
    now = datetime.datetime.now().astimezone()
    with whole_folder(out_dir) as partial, tolerate_sloppy_headers():
        for i, (one, name) in enumerate(zip(source.slices, names, strict=True)):
            _write_derived(one, volume.hu[i], derivation, now, partial / name)
            if progress is not None:
                progress(i + 1)
    return [out_dir / name for name in names]


def file_name(index: int) -> str:
    """What the file of a slice is called.

    >>> file_name(0)
    'IM0001.dcm'
    """
    return f"IM{index + 1:04d}.dcm"


@contextmanager
def whole_folder(out_dir: Path) -> Iterator[Path]:
    """A folder to write a series to that takes the name `out_dir` in the end; if anything fails, nothing of it is left.

    Raises: ScanError if it cannot be written.
    """
    partial = out_dir.parent / f".{out_dir.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        if out_dir.is_dir():
            out_dir.rmdir()  # refuses unless it is empty
        os.rename(partial, out_dir)
    except OSError as error:
        raise ScanError(f"cannot write the series: {error.strerror}; nothing was left behind") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_derived(one: SourceSlice, hu: NDArray[np.float32], derivation: Derivation, now: datetime.datetime, path: Path) -> None:
    try:
        dataset = _derived(one, hu, derivation, now)
        dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    except OSError:
        raise
    except UNREADABLE:  # the reason is left out: pydicom quotes the value, which may be a name
        raise ScanError(
            f"source instance {one.sop_instance_uid} holds a damaged header element and cannot be written; export it again"
        ) from None


def _refuse_values_that_are_no_hu(volume: CTVolume) -> None:
    for i, (hu, padding) in enumerate(zip(volume.hu, volume.padding, strict=True)):
        bad = int(np.sum(~np.isfinite(hu) & ~padding))
        if bad:
            raise ScanError(f"slice {i + 1} has {bad} pixels that are NaN or infinite, expected HU; nothing is written")


def check_output_folder(out_dir: Path, volume: CTVolume) -> None:
    """Whether a derived series of this volume could be written there; asked before the work, and again when writing.

    Raises: ScanError if the folder lies in the input folder, is a file, or is not empty, or for a multi-frame CT.
    """
    source = volume.source
    if isinstance(source, MultiFrameSource):
        raise ScanError(
            "the scan is a multi-frame (Enhanced) CT, which is read but not written back; convert it to CT Image Storage, or"
            " write NIfTI"
        )
    resolved = out_dir.resolve()
    if isinstance(source, SeriesSource) and source.folder is not None and resolved.is_relative_to(source.folder.resolve()):
        raise ScanError("the output folder lies in the input folder, expected another one: a later run would read both")
    if out_dir.exists() and not out_dir.is_dir():
        raise ScanError(f"{out_dir} is a file, expected a new folder")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise ScanError(f"{out_dir} is not empty, expected a new or empty folder: nothing is overwritten")


def _derived(one: SourceSlice, hu: NDArray[np.float32], derivation: Derivation, now: datetime.datetime) -> Dataset:
    """The derived instance of one source file."""
    name = f"source instance {one.sop_instance_uid}"
    try:
        dataset = pydicom.dcmread(one.path)
    except (InvalidDicomError, *UNREADABLE):
        raise ScanError(f"{name} can no longer be read; leave the source in place until the series is written") from None
    source, padding = read_stored(one.path, name, dataset)
    if header_text(dataset, "SOPInstanceUID") != one.sop_instance_uid or zlib.crc32(source.tobytes()) != one.stored_crc32:
        raise ScanError(f"{name} changed since it was read; read the series again")
    stored = to_stored(hu, source, padding, dataset)

    _make_explicit(dataset)
    _drop_what_no_longer_holds(dataset)
    _put_pixels(dataset, stored)
    _put_identity(dataset, derivation, now)
    _put_derivation(dataset, one, derivation, now)
    put_file_meta(dataset)
    return dataset


def _make_explicit(dataset: Dataset) -> None:
    """Name the VR of each element of an implicit dataset without decoding it, so that texts keep their bytes."""
    if dataset.original_encoding != (True, True):
        return
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if not isinstance(raw, RawDataElement):
            continue
        if tag.is_private and not tag.is_private_creator:
            dataset[tag] = DataElement(tag, "UN", raw.value or b"")
            continue
        if tag.is_private:
            vr = "LO"
        else:
            try:
                vr = dictionary_VR(tag)
            except KeyError:
                vr = "UN"
        if vr == "SQ" or " or " in vr or vr == "NONE":
            dataset[tag]
        else:
            dataset[tag] = raw._replace(VR=vr, is_implicit_VR=False)
    correct_ambiguous_vr(dataset, True)
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def _drop_what_no_longer_holds(dataset: Dataset) -> None:
    """Take out what speaks of the source's pixels: signatures, thumbnails, tables of its compressed frames."""
    signed = [keyword for keyword in ("DigitalSignaturesSequence", "MACParametersSequence") if keyword in dataset]
    if signed:
        logger.info("digital signature dropped: it signs the source's pixels")
    for keyword in (
        *signed,
        "IconImageSequence",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "SmallestPixelValueInSeries",
        "LargestPixelValueInSeries",
        "DataSetTrailingPadding",
    ):
        if keyword in dataset:
            del dataset[keyword]


def _put_pixels(dataset: Dataset, stored: NDArray[Any]) -> None:
    if dataset.file_meta.TransferSyntaxUID in ALWAYS_LOSSY | LOSSY_UNLESS_DENIED and "LossyImageCompression" not in dataset:
        dataset.LossyImageCompression = "01"  # the syntax said so until now; the new one would hide it
    for keyword, value in (("SmallestImagePixelValue", stored.min()), ("LargestImagePixelValue", stored.max())):
        if keyword in dataset:
            dataset.add_new(keyword, "SS" if dataset.PixelRepresentation else "US", int(value))
    dataset.add_new("PixelData", "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())


def _put_identity(dataset: Dataset, derivation: Derivation, now: datetime.datetime) -> None:
    """New instance, new series, made now; study, frame of reference and geometry stay."""
    series_uid = derivation.uid_for(header_text(dataset, "SeriesInstanceUID"))
    number = header_numbers(dataset, "SeriesNumber", 1)
    dataset.SOPInstanceUID = derivation.uid_for(header_text(dataset, "SOPInstanceUID"))
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesNumber = int(number[0] if number is not None else 0) + derivation.series_number_offset
    dataset.SeriesDescription = _series_description(dataset, derivation.label)
    image_type = header_values(dataset, "ImageType")
    dataset.ImageType = ["DERIVED", derivation.image_type_value_2, *(image_type[2:] or ("AXIAL",))]
    local = now.astimezone(_timezone(dataset) or now.tzinfo)
    for what in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{what}Date", local.strftime("%Y%m%d"))
        setattr(dataset, f"{what}Time", local.strftime("%H%M%S.%f"))


def _series_description(dataset: Dataset, label: str) -> str:
    """`source [label]` in the 64 characters that LO allows; the source's text gives way."""
    label = f"[{label[:62]}]"
    source = "".join(c for c in " ".join(header_values(dataset, "SeriesDescription", upper=False)) if c.isprintable() and c != "�")
    return f"{source[: 63 - len(label)].rstrip()} {label}".strip() if len(label) < 63 else label


def _timezone(dataset: Dataset) -> datetime.timezone | None:
    """The zone in which a dataset's times are meant, if it names one."""
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", header_text(dataset, "TimezoneOffsetFromUTC"))
    if match is None:
        return None
    offset = datetime.timedelta(hours=int(match[2]), minutes=int(match[3]))
    return datetime.timezone(-offset if match[1] == "-" else offset) if offset < datetime.timedelta(days=1) else None


def _put_derivation(dataset: Dataset, one: SourceSlice, derivation: Derivation, now: datetime.datetime) -> None:
    """Say from what the image was made, by what and how."""
    words = derivation.in_words()
    earlier = header_text(dataset, "DerivationDescription")
    dataset.DerivationDescription = (f"{words} Source: {earlier}" if earlier else words)[:1024]
    # CID 7203 has no code for noise reduction or insertion; these are the nearest it has.
    code = ("113087", "Smoothing") if derivation.kind == "denoised" else ("113042", "Pixel by pixel addition")
    dataset.DerivationCodeSequence = [*(dataset.get("DerivationCodeSequence") or []), _code(*code)]

    source = Dataset()
    source.ReferencedSOPClassUID = CTImageStorage
    source.ReferencedSOPInstanceUID = one.sop_instance_uid
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    dataset.SourceImageSequence = [source]

    dataset.ContributingEquipmentSequence = [
        *(dataset.get("ContributingEquipmentSequence") or []),
        equipment_item(derivation, now),
    ]


def equipment_item(derivation: Derivation, now: datetime.datetime) -> Dataset:
    """What finegrain adds to ContributingEquipmentSequence; the loop guard looks for it."""
    equipment = Dataset()
    equipment.Manufacturer = EQUIPMENT_MANUFACTURER
    equipment.ManufacturerModelName = in_ascii(derivation.model)[:64]
    equipment.DeviceUID = derivation.model_uid
    equipment.SoftwareVersions = [
        f"finegrain {__version__}"[:64],
        in_ascii(f"{derivation.model} {derivation.model_version}")[:64],
    ]
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S.%f%z")
    equipment.ContributionDescription = derivation.in_words()[:1024]
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    return equipment


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def put_file_meta(dataset: Dataset) -> None:
    """A fresh file header: the source's names the software that wrote it, and its preamble may hold a program."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = f"FINEGRAIN_{__version__}"[:16]
    dataset.file_meta = meta
    dataset.preamble = bytes(128)


def in_ascii(text: str) -> str:
    """A text in the characters that every character set contains, as one value."""
    return text.encode("ascii", "replace").decode().replace("\\", "/")
