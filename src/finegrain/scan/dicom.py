"""Read the one CT series in a folder. What its headers must say is in `headers`, its slices and pixels in `series`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finegrain.errors import ScanError
from finegrain.scan.headers import LeftOut, SliceHeader, StackKey, files_below, read_headers, tolerate_sloppy_headers
from finegrain.scan.series import SeriesSource, SourceSlice, refuse_own_output, series_of_stack, stack_in_words
from finegrain.scan.volume import CTVolume

__all__ = ["SeriesSource", "SourceSlice", "read_series"]


def read_series(
    folder_or_file: Path,
    *,
    series_uid: str | None = None,
    allow_lossy: bool = False,
    allow_own_output: bool = False,
) -> CTVolume:
    """The one CT series in a folder (or file) as a volume in HU, its slices in order along their normal.

    Args:
        folder_or_file: searched with its sub-folders; files are known by content, not by extension.
        series_uid: which SeriesInstanceUID to take when there are several.
        allow_lossy: take images that were once compressed with loss.
        allow_own_output: take what finegrain denoised, e.g. to judge it; refused by default, so that nothing is
            denoised twice. Low dose that finegrain simulated is always taken.

    Raises: ScanError, in one line, for whatever cannot be read without guessing.
    """
    folder_or_file = Path(folder_or_file)
    with tolerate_sloppy_headers():
        per_file = [read_headers(path, name) for path, name in files_below(folder_or_file)]
        n_not_dicom = per_file.count(None)
        headers = [header for of_file in per_file for header in of_file or ()]
        skipped = [header for header in headers if isinstance(header, LeftOut)]
        ct = [header for header in headers if isinstance(header, SliceHeader)]
        if not ct:
            _refuse_none(skipped, n_not_dicom)
        stack = _the_one_stack(ct, series_uid)
        series = series_of_stack(stack)
        if not allow_own_output:
            refuse_own_output(stack)
    volume = series.read(allow_lossy=allow_lossy)
    source = replace(
        volume.source,
        folder=folder_or_file if folder_or_file.is_dir() else None,
        skipped=tuple(f"{one.name}: {one.reason}" for one in skipped),
        n_not_dicom=n_not_dicom,
    )
    return replace(volume, source=source)


def _refuse_none(skipped: Sequence[LeftOut], n_not_dicom: int) -> None:
    if not skipped:
        raise ScanError(f"expected DICOM files of a CT series, found none among {n_not_dicom} file(s); check the folder")
    came = ", ".join(f"{count} × {reason}" for reason, count in Counter(one.reason for one in skipped).most_common())
    raise ScanError(f"expected CT slices, got {came}; give a folder with a CT series")


def _the_one_stack(slices: Sequence[SliceHeader], series_uid: str | None) -> list[SliceHeader]:
    """The slices of one series that share orientation, matrix, spacing and kernel."""
    stacks: dict[StackKey, list[SliceHeader]] = {}
    for header in slices:
        stacks.setdefault(header.key, []).append(header)
    found = "; ".join(stack_in_words(stack) for stack in stacks.values())
    if series_uid is not None:
        stacks = {key: stack for key, stack in stacks.items() if key.series_uid == series_uid}
        if not stacks:
            raise ScanError(f"expected a CT series with the given series_uid, found {found}; check --series")
    if len(stacks) == 1:
        return next(iter(stacks.values()))
    n_series = len({key.series_uid for key in stacks})
    if n_series > 1:
        raise ScanError(f"expected one CT series, found {n_series}: {found}; choose one with series_uid (--series UID)")
    raise ScanError(
        f"expected slices of one orientation, matrix, spacing and kernel, found {len(stacks)} mixed in one series:"
        f" {found}; put each into its own folder"
    )
