"""Find the CT series on a disk by their headers alone, and read whole series or parts of them.

One bad series does not stop a thousand good ones: what cannot be read without guessing is left out, with its reason. Patients
are found to be the same by `ScanSeries.patient_id`, which is never shown.
"""

from __future__ import annotations

import filecmp
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from finegrain.errors import ScanError
from finegrain.scan.enhanced import frame_header
from finegrain.scan.grid import Grid
from finegrain.scan.headers import LeftOut, SliceHeader, StackKey, files_below, header_text, read_headers, tolerate_sloppy_headers
from finegrain.scan.metaimage import SUFFIXES as METAIMAGE_SUFFIXES
from finegrain.scan.metaimage import metaimage_files, metaimage_grid, read_metaimage
from finegrain.scan.nifti import is_nifti, nifti_grid, read_nifti
from finegrain.scan.nrrd import nrrd_grid, read_nrrd
from finegrain.scan.pixels import open_slice, read_frame, read_stored, rescale, to_hu
from finegrain.scan.privacy import UNREADABLE, series_facts, shown
from finegrain.scan.volume import CTVolume

Kind = Literal["dicom", "nifti", "nrrd", "metaimage"]
SAME_PLACE_MM = 1e-3
"""Slices closer than this along their normal lie at one position; positions come with two or three decimals. Ours."""

_GRIDS: dict[Kind, Callable[[Path, str], Grid]] = {"nifti": nifti_grid, "nrrd": nrrd_grid, "metaimage": metaimage_grid}
VOLUME_READERS: dict[Kind, Callable[[Path, str], CTVolume]] = {"nifti": read_nifti, "nrrd": read_nrrd, "metaimage": read_metaimage}


@dataclass(frozen=True)
class SourceSlice:
    """One file of a series, and what proves later that it is still the same."""

    path: Path
    sop_instance_uid: str
    stored_crc32: int


@dataclass(frozen=True)
class SeriesSource:
    """Where a volume came from: what `write_derived_series` needs, without a second copy of the pixels.

    Attributes:
        slices: the files, in slice order.
        series_uid: their SeriesInstanceUID.
        folder: the folder that was read; None for a single file.
        skipped: what lay beside the series and was left out, with the reason; safe to show.
        n_not_dicom: files that are no DICOM at all.
        notes: what a reader of the result should know (uneven gaps, doubled slices …); safe to show.
    """

    slices: tuple[SourceSlice, ...]
    series_uid: str
    folder: Path | None = None
    skipped: tuple[str, ...] = ()
    n_not_dicom: int = 0
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in slice order."""
        return tuple(one.path for one in self.slices)


@dataclass(frozen=True)
class MultiFrameSource:
    """Where a volume of a multi-frame (Enhanced) CT came from; it is read, but not written back.

    Attributes: as of `SeriesSource`.
    """

    series_uid: str
    folder: Path | None = None
    skipped: tuple[str, ...] = ()
    n_not_dicom: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ScanSeries:
    """A CT series found on disk: what its headers say, its slices in order; pixels are read when asked for.

    Attributes:
        files: of DICOM, one for each slice, in slice order (the same again for frames of one file); else the one file.
        positions_mm: ImagePositionPatient of each slice in mm (LPS), ascending along the slice normal, shape (z, 3).
        orientation: ImageOrientationPatient, six direction cosines.
        shape: rows, columns.
        pixel_mm: spacing of rows and columns in mm, (y, x).
        slice_mm: distance between neighbouring slices in mm (median); the slice thickness for a single slice.
        acquisition: as `CTVolume.acquisition`; safe to show.
        patient_id, study_uid, description: PatientID, StudyInstanceUID and SeriesDescription, to match series by. Private:
            never shown, logged or stored; empty for a format that has none.
        series_uid: SeriesInstanceUID; empty for a format that has none.
        fingerprint: sha256 in hex that changes when the series does: of the SOPInstanceUIDs and file sizes of DICOM, else of
            the file.
        notes: what a reader of the result should know (uneven gaps, doubled slices …); safe to show.
        lossy: whether an image of it was once compressed with loss.
        tube_current_ma: as `CTVolume.tube_current_ma`.
        names: what messages call each file; safe to show.
        instance_uids, frames, rescales: SOPInstanceUID, frame of a multi-frame file (from 0, else None) and (slope, intercept) of
            each slice of DICOM.
    """

    kind: Kind
    files: tuple[Path, ...] = field(repr=False)
    positions_mm: NDArray[np.float64] = field(repr=False)
    orientation: tuple[float, ...]
    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    slice_mm: float
    acquisition: dict[str, Any]
    patient_id: str = field(repr=False)
    description: str = field(repr=False)
    series_uid: str = field(repr=False)
    fingerprint: str
    notes: tuple[str, ...]
    study_uid: str = field(default="", repr=False)
    lossy: bool = False
    tube_current_ma: NDArray[np.float64] | None = field(default=None, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    instance_uids: tuple[str, ...] = field(default=(), repr=False)
    frames: tuple[int | None, ...] = field(default=(), repr=False)
    rescales: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.positions_mm)

    def read(self, slices: slice = slice(None), *, allow_lossy: bool = False) -> CTVolume:
        """Some of the slices, or all, in HU; of DICOM only their files are decoded.

        Only the whole series has a source and can be written back.

        Args:
            allow_lossy: take images that were once compressed with loss.

        Raises: ScanError for pixels that cannot be decoded, slices that do not exist, or files that are no longer what was
            found.
        """
        chosen = range(len(self))[slices]
        if len(chosen) == 0 or chosen.step < 1:
            raise ScanError(f"expected slices of 0 to {len(self)} in ascending order, got {slices}")
        if self.kind == "dicom":
            return self._read_dicom(chosen, allow_lossy=allow_lossy)
        volume = VOLUME_READERS[self.kind](self.files[0], self.names[0])
        if volume.hu.shape != (len(self), *self.shape):
            raise ScanError(f"{self.names[0]} changed since it was found; search again")
        return volume if len(chosen) == len(self) else volume.part(slices)

    def _read_dicom(self, chosen: range, *, allow_lossy: bool) -> CTVolume:
        if self.lossy and not allow_lossy:
            raise ScanError(
                f"{self.names[0]} went through lossy compression, expected the scanner's own pixels; export it uncompressed,"
                " or allow it (allow_lossy, --allow-lossy) knowing that the noise is no longer the scanner's"
            )
        hu = np.empty((len(chosen), *self.shape), np.float32)
        padding = np.empty(hu.shape, np.bool_)
        slices: list[SourceSlice] = []
        with tolerate_sloppy_headers():
            for i, n in enumerate(chosen):
                if i == 0 or self.files[n] != self.files[chosen[i - 1]]:
                    dataset = open_slice(self.files[n], self.names[n])
                stored, padding[i] = self._stored(n, dataset)
                hu[i] = to_hu(stored, *self.rescales[n])
                slices.append(SourceSlice(self.files[n], self.instance_uids[n], zlib.crc32(stored.tobytes())))
        part = slice(chosen.start, chosen.stop, chosen.step)
        source: SeriesSource | MultiFrameSource | None = None
        if len(chosen) == len(self):
            of_one_slice = set(self.frames) == {None}
            source = (
                SeriesSource(tuple(slices), self.series_uid, notes=self.notes)
                if of_one_slice
                else MultiFrameSource(self.series_uid, notes=self.notes)
            )
        return CTVolume(
            hu=hu,
            pixel_mm=self.pixel_mm,
            slice_mm=self.slice_mm,
            positions_mm=self.positions_mm[part],
            orientation=self.orientation,
            padding=padding,
            acquisition=dict(self.acquisition),
            tube_current_ma=None if self.tube_current_ma is None else self.tube_current_ma[part],
            source=source,
        )

    def _stored(self, n: int, dataset: Dataset) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Stored values and padding of slice n, if its file is still what was found."""
        name, frame = self.names[n], self.frames[n]
        changed = ScanError(f"{name} changed since it was found; search again")
        try:
            header = dataset if frame is None else frame_header(dataset, frame)
            found = (header_text(dataset, "SOPInstanceUID"), (int(header.Rows), int(header.Columns)), rescale(header))
        except UNREADABLE:
            raise changed from None
        if found != (self.instance_uids[n], self.shape, self.rescales[n]):
            raise changed
        return read_stored(self.files[n], name, dataset) if frame is None else read_frame(dataset, name, frame)


def find_series(path: Path, *, allow_own_output: bool = False) -> tuple[list[ScanSeries], list[str]]:
    """All CT series below a folder (or the one in a file), and one safe line on each thing that was left out and why.

    Files of one SeriesInstanceUID that differ in orientation, matrix, pixel spacing or kernel are series of their own, and so
    is each .nii, .nii.gz, .nrrd, .mha and .mhd file. Where several scans go by the same UIDs, each folder is a series.

    Args:
        allow_own_output: take what finegrain denoised, to judge it; never to denoise it again.

    Raises: ScanError if there is nothing at the path.
    """
    stacks: dict[StackKey, list[SliceHeader]] = {}
    series: list[ScanSeries] = []
    skipped, left_out = Counter[tuple[str, str]](), []
    n_not_dicom = 0
    with tolerate_sloppy_headers():
        for file, name in files_below(Path(path)):
            try:
                kind = kind_of(file)
                if kind != "dicom":
                    series.append(_series_of_file(kind, file, name))
                    continue
                headers = read_headers(file, name)
            except ScanError as error:
                left_out.append(str(error))
                continue
            if headers is None:
                n_not_dicom += 1
            for header in headers or ():
                if isinstance(header, LeftOut):
                    skipped[header.series, header.reason] += 1
                else:
                    stacks.setdefault(header.key, []).append(header)
        for stack in stacks.values():
            found, refused = _series_of_stacks(stack, allow_own_output=allow_own_output)
            series += found
            left_out += refused
    left_out += [f"{words}: {count} × {why}" for (words, why), count in skipped.items()]
    if n_not_dicom:
        left_out.append(f"{n_not_dicom} × no DICOM, NIfTI, NRRD or MetaImage file")
    return series, left_out


def _series_of_stacks(stack: Sequence[SliceHeader], *, allow_own_output: bool) -> tuple[list[ScanSeries], list[str]]:
    """The series of one stack: one, or one for each folder where several scans go by the same UIDs.

    A tool that inserts noise often copies the headers whole, so that both doses have the same UIDs and only the folders differ.
    """
    try:
        if not allow_own_output:
            refuse_own_output(stack)
        return [series_of_stack(stack)], []
    except ScanError as error:
        folders: dict[Path, list[SliceHeader]] = {}
        for header in stack:
            folders.setdefault(header.path.parent, []).append(header)
        if not isinstance(error, _SeveralScansError) or len(folders) == 1:
            return [], [f"{stack_in_words(stack)}: {error}"]
    parts = [_series_of_stacks(part, allow_own_output=allow_own_output) for part in folders.values()]
    return [one for found, _ in parts for one in found], [line for _, refused in parts for line in refused]


class _SeveralScansError(ScanError):
    """Slices of more than one scan go by the same UIDs."""


def kind_of(path: Path) -> Kind:
    """The format of a file by its name; whatever is not known by its name may be DICOM."""
    if is_nifti(path):
        return "nifti"
    if path.suffix.lower() == ".nrrd":
        return "nrrd"
    return "metaimage" if path.suffix.lower() in METAIMAGE_SUFFIXES else "dicom"


def _series_of_file(kind: Kind, path: Path, name: str) -> ScanSeries:
    """The series in a file that holds a whole volume."""
    grid = _GRIDS[kind](path, name)
    digest = hashlib.sha256()
    for one in metaimage_files(path, name) if kind == "metaimage" else [path]:
        try:
            with one.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ScanError(f"{name} cannot be read: {error.strerror or 'read error'}; check it and its disk") from None
    x_mm, y_mm, z_mm = grid.size_mm
    return ScanSeries(
        kind=kind,
        files=(path,),
        positions_mm=grid.positions_mm,
        orientation=grid.orientation,
        shape=(grid.size[1], grid.size[0]),
        pixel_mm=(y_mm, x_mm),
        slice_mm=z_mm,
        acquisition={},
        patient_id="",
        description="",
        series_uid="",
        fingerprint=digest.hexdigest(),
        notes=(),
        names=(name,),
    )


def series_of_stack(stack: Sequence[SliceHeader]) -> ScanSeries:
    """The series of slices that share orientation, matrix, spacing and kernel, put in order along their normal.

    Raises: ScanError for a slice whose HU would be a guess, mixed patients or studies, or different images of one slice.
    """
    for header in stack:
        if header.refusal:
            raise ScanError(header.refusal)
    for thing, values in (("patient", [one.patient_id for one in stack]), ("study", [one.study_uid for one in stack])):
        if len(set(values)) > 1:
            raise _SeveralScansError(f"expected one {thing}, found {len(set(values))} in one series; separate the files by {thing}")
    first = stack[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = [float(np.array(header.position_mm) @ normal) for header in stack]
    ordered = sorted(zip(heights, stack, strict=True), key=lambda pair: (pair[0], pair[1].name, pair[1].path))
    kept = _without_doubles(ordered)
    positions = np.array([header.position_mm for header in kept])
    facts = series_facts([header.acquisition() for header in kept])
    slice_mm, notes = _gaps(positions, normal, facts.get("SliceThickness"))
    if len(kept) < len(ordered):
        notes.append(f"{len(ordered) - len(kept)} doubled slices left out")
    if any(header.acquisition().get("RescaleType", "").upper() == "US" for header in kept):
        notes.append("RescaleType US taken for HU, as for any ORIGINAL image")
    current = [header.tube_current_ma for header in kept]
    identity = "\n".join(f"{header.instance_uid} {header.n_bytes}" for header in kept)
    return ScanSeries(
        kind="dicom",
        files=tuple(header.path for header in kept),
        positions_mm=positions,
        orientation=first.orientation,
        shape=first.shape,
        pixel_mm=first.pixel_mm,
        slice_mm=slice_mm,
        acquisition=facts,
        patient_id=first.patient_id,
        description=first.description,
        series_uid=first.key.series_uid,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        notes=tuple(notes),
        study_uid=first.study_uid,
        lossy=any(header.lossy for header in kept),
        tube_current_ma=None if None in current else np.array(current, dtype=np.float64),
        names=tuple(header.name for header in kept),
        instance_uids=tuple(header.instance_uid for header in kept),
        frames=tuple(header.frame for header in kept),
        rescales=tuple(header.rescale for header in kept),
    )


def refuse_own_output(stack: Sequence[SliceHeader]) -> None:
    """Loop guard: ScanError if finegrain denoised a slice, so that nothing is denoised twice."""
    for header in stack:
        if header.own_output:
            raise ScanError(f"{header.name} was already denoised by finegrain, expected the scanner's images; give the source")


def stack_in_words(stack: Sequence[SliceHeader]) -> str:
    """Which slices, in a few words that are safe to show."""
    first, noun = stack[0], "slice" if len(stack) == 1 else "slices"
    kernel = shown(first.key.kernel) or "?"
    return f"series {first.series_number or '?'}, kernel {kernel}, {len(stack)} {noun}, {first.key.series_uid}"


def _without_doubles(ordered: Sequence[tuple[float, SliceHeader]]) -> list[SliceHeader]:
    """Each slice, given with its height in mm, once; ScanError if it is there again with other pixels or at another place."""
    kept: list[tuple[float, SliceHeader]] = []
    by_uid: dict[tuple[str, int | None], tuple[float, SliceHeader]] = {}
    for height, header in ordered:
        same_uid = by_uid.get((header.instance_uid, header.frame))
        there = same_uid or (kept[-1] if kept and abs(height - kept[-1][0]) < SAME_PLACE_MM else None)
        if there is None:
            kept.append((height, header))
            by_uid[header.instance_uid, header.frame] = kept[-1]
        elif abs(height - there[0]) >= SAME_PLACE_MM or not _same_image(header, there[1]):
            what = "one SOPInstanceUID" if same_uid else f"one position ({height:.2f} mm)"
            raise _SeveralScansError(
                f"{there[1].name} and {header.name} are conflicting duplicates: {what}, different images; keep the right one"
                " (several phases or echoes of a scan belong in separate series)"
            )
    return [header for _, header in kept]


def _same_image(one: SliceHeader, other: SliceHeader) -> bool:
    if one.frame == other.frame and one.n_bytes == other.n_bytes and filecmp.cmp(one.path, other.path, shallow=False):
        return True
    stored, again = (
        read_stored(header.path, header.name)[0]
        if header.frame is None
        else read_frame(open_slice(header.path, header.name), header.name, header.frame)[0]
        for header in (one, other)
    )
    return one.rescale == other.rescale and np.array_equal(stored, again)


def _gaps(positions: NDArray[np.float64], normal: NDArray[np.float64], thickness: float | None) -> tuple[float, list[str]]:
    """Slice distance in mm (median), and what is uneven. Slices are treated one by one, so nothing here is an error."""
    if len(positions) == 1:
        if thickness is not None and thickness > 0:
            return thickness, []
        return 1.0, ["single slice without SliceThickness: 1 mm assumed"]
    notes = []
    steps = np.diff(positions, axis=0)
    along = steps @ normal
    slice_mm = float(np.median(along))
    uneven = np.abs(along - slice_mm) > max(0.01, 0.02 * slice_mm)
    if uneven.any():
        notes.append(
            f"uneven gaps: {int(uneven.sum())} of {len(along)} differ from {slice_mm:.2f} mm"
            f" ({along.min():.2f} to {along.max():.2f} mm)"
        )
    if np.max(np.linalg.norm(steps - along[:, None] * normal, axis=1)) > 0.1:
        notes.append("slices are shifted against each other (gantry tilt)")
    return slice_mm, notes
