"""Break DICOM files in many ways and see what the reader makes of them: no crash, no hang, one line, and never a wrong HU.

    python benchmarks/fuzz_dicom.py [--n 5000] [--seed 0] [FOLDER]

Seeds are the CT that ships, the CT files that pydicom brings, what DCMTK makes of them in other encodings, a multi-frame file,
and up to 20 files of FOLDER. Each mutant is read in a child process that has little memory and ten seconds; a child that dies
is recorded and replaced. What finegrain accepts is judged by a program that shares no code with its reader: DCMTK, or GDCM for
JPEG 2000 and several frames. A pixel is right if its HU is what the judge's stored value, BitsStored, PixelRepresentation and
rescale give. What the judge cannot read is counted apart, and so is, among that, what has the HU of its seed: damage far from
the pixels, over which DCMTK stumbles.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from finegrain.errors import ScanError
from finegrain.sample import sample_folder
from finegrain.scan.dicom import read_series
from finegrain.scan.headers import tolerate_sloppy_headers

SECONDS_PER_FILE = 10
MEMORY_BYTES = 3 << 30
"""Address space of a child: the reader and its libraries take about 1.2 GB of it, most never touched."""
BATCH = 100
LONG_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
SYNTAXES = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.5",
    "1.2.3",
    "",
]
NUMBERS = [0, 1, 2, 7, 8, 11, 12, 13, 15, 16, 17, 31, 32, 127, 128, 255, 256, 511, 512, 513, 4096, 32767, 32768, 63536, 65535]
TEXTS = [
    "",
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "-1024",
    "-1000",
    "1e3",
    "1e308",
    "1e999",
    "nan",
    "inf",
    "-0",
    "1\\2",
    "0x10",
    "1,5",
    " 1 ",
    "US",
    "HU",
]
MATTERS = [
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "RescaleType", "SOPClassUID", "Modality",
    "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "LossyImageCompression", "SeriesInstanceUID",
]  # fmt: skip
"""What decides on HU and geometry; half of the mutations that change one element take one of these."""


# --- seeds


@dataclass(frozen=True)
class Element:
    """One element of a file: where its tag, its value and the next element begin."""

    tag: int
    vr: str
    start: int
    value: int
    end: int

    @property
    def length_at(self) -> tuple[int, str]:
        """Where the length stands, and its format."""
        if self.value - self.start == 12:
            return self.start + 8, "<I"
        return (self.start + 4, "<I") if self.vr == "" else (self.start + 6, "<H")


@dataclass(frozen=True)
class Seed:
    """A sound file and its elements."""

    name: str
    data: bytes
    elements: tuple[Element, ...]
    hu: NDArray[np.float32]

    def of(self, keyword: str) -> Element | None:
        """An element by its keyword."""
        return next((one for one in self.elements if pydicom.datadict.keyword_for_tag(one.tag) == keyword), None)


def seeds(folder: Path | None, work: Path) -> list[Seed]:
    """Every seed that can be made here."""
    files = [sample_folder() / "060.dcm", sample_folder() / "067.dcm"]
    bundled = [Path(DATA_ROOT) / "test_files"]
    more = importlib.util.find_spec("data_store")
    if more is not None and more.origin is not None:
        bundled.append(Path(more.origin).parent / "data")
    names = ("CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KR.dcm", "693_UNCR.dcm", "explicit_VR-UN.dcm", "17106", "2062")
    files += [path for root in bundled for name in names for path in sorted(root.rglob(name))[:1]]
    if folder is not None:
        files += sorted(path for path in folder.rglob("*") if path.is_file())[:20]
    small = _cropped(sample_folder() / "060.dcm", work / "small.dcm")
    signed = _signed(small, work / "signed.dcm")
    files += [small, signed, _jpeg2000(small, work / "j2k.dcm"), _multi_frame(small, work / "frames.dcm")]
    for plain in (small, signed):
        for command in (
            "dcmcjpeg +e1",
            "dcmcjpeg +el +sv 4",
            "dcmcjpls +el",
            "dcmcjpls +el +fs 1",
            "dcmcrle",
            "dcmconv +ti",
            "dcmconv +te +e",
        ):
            out = work / f"{plain.stem} {command}.dcm"
            subprocess.run([*command.split(), plain, out], check=True, capture_output=True)
            files.append(out)
    return [seed for path in files if (seed := _seed(path)) is not None]


def _cropped(source: Path, out: Path) -> Path:
    dataset = pydicom.dcmread(source)
    pixels = dataset.pixel_array[200:264, 200:280]
    dataset.PixelData, dataset.Rows, dataset.Columns = pixels.astype("<u2").tobytes(), *pixels.shape
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OW", False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(out, implicit_vr=False, little_endian=True)
    return out


def _signed(source: Path, out: Path) -> Path:
    dataset = pydicom.dcmread(source)
    pixels = dataset.pixel_array.astype(np.int16) - 1024
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 1, 16, 15, "0"
    dataset.PixelData = pixels.tobytes()
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.save_as(out)
    return out


def _jpeg2000(source: Path, out: Path) -> Path:
    dataset = pydicom.dcmread(source)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(out)
    return out


def _multi_frame(source: Path, out: Path) -> Path:
    """A small Enhanced CT of two frames."""

    def item(**values: Any) -> Dataset:
        one = Dataset()
        for keyword, value in values.items():
            setattr(one, keyword, value)
        return one

    dataset = pydicom.dcmread(source)
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=list(dataset.PixelSpacing), SliceThickness=3)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
    )
    frames = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3 * n])]) for n in (1, 0)]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
    dataset.save_as(out)
    return out


def _seed(path: Path) -> Seed | None:
    """A file that finegrain reads, taken apart; None for any other."""
    try:
        hu = read_series(path, allow_lossy=True).hu
    except ScanError:
        return None
    data = path.read_bytes()
    dataset = pydicom.dcmread(path)
    implicit = dataset.original_encoding[0]
    places = []
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        vr = "" if implicit else str(raw.VR)
        value = raw.value_tell if hasattr(raw, "value_tell") else raw.file_tell
        places.append((value - (12 if vr in LONG_VRS else 8), int(tag), vr, int(value)))
    places.sort()
    ends = [place[0] for place in places[1:]] + [len(data)]
    elements = tuple(Element(tag, vr, start, value, end) for (start, tag, vr, value), end in zip(places, ends, strict=True))
    return Seed(path.name, data, elements, hu)


# --- mutations: bytes in, bytes out

Mutation = Callable[[Seed, np.random.Generator], bytes]


def _one_of(seed: Seed, rng: np.random.Generator) -> Element:
    if rng.random() < 0.5:
        known = [one for keyword in MATTERS if (one := seed.of(keyword)) is not None]
        return known[rng.integers(len(known))]
    return seed.elements[rng.integers(len(seed.elements))]


def _with_value(seed: Seed, element: Element, value: bytes) -> bytes:
    """An element's bytes with another value and the length to match."""
    value += b"\0" * (len(value) % 2)
    head = bytearray(seed.data[element.start : element.value])
    at, form = element.length_at
    struct.pack_into(form, head, at - element.start, min(len(value), 65534 if form == "<H" else 1 << 31))
    return bytes(head) + value


def _replaced(seed: Seed, element: Element, new: bytes) -> bytes:
    return seed.data[: element.start] + new + seed.data[element.end :]


def delete(seed: Seed, rng: np.random.Generator) -> bytes:
    """An element is missing."""
    return _replaced(seed, _one_of(seed, rng), b"")


def double(seed: Seed, rng: np.random.Generator) -> bytes:
    """An element is there twice, the second time changed or not."""
    element = _one_of(seed, rng)
    second = bytearray(seed.data[element.start : element.end])
    if rng.random() < 0.7 and element.end > element.value:
        second = bytearray(_with_value(seed, element, _new_value(seed, element, rng)))
    return _replaced(seed, element, seed.data[element.start : element.end] + bytes(second))


def move(seed: Seed, rng: np.random.Generator) -> bytes:
    """An element stands at another place, against the order of tags."""
    element, before = _one_of(seed, rng), _one_of(seed, rng)
    body = seed.data[element.start : element.end]
    if before.start <= element.start:
        return seed.data[: before.start] + body + seed.data[before.start : element.start] + seed.data[element.end :]
    return seed.data[: element.start] + seed.data[element.end : before.start] + body + seed.data[before.start :]


def resize(seed: Seed, rng: np.random.Generator) -> bytes:
    """A value is longer or shorter, and its length says so."""
    element = _one_of(seed, rng)
    value = seed.data[element.value : element.end]
    if rng.random() < 0.5:
        return _replaced(seed, element, _with_value(seed, element, value[: rng.integers(len(value) + 1)]))
    return _replaced(seed, element, _with_value(seed, element, value + bytes(rng.integers(0, 256, rng.integers(1, 40), np.uint8))))


def swap_vr(seed: Seed, rng: np.random.Generator) -> bytes:
    """An element names another value representation."""
    element = _one_of(seed, rng)
    vrs = ["US", "SS", "DS", "IS", "LO", "CS", "UN", "OB", "OW", "SQ", "UI", "FD", "UL", "PN", "ZZ", "??"]
    out = bytearray(seed.data)
    out[element.start + 4 : element.start + 6] = vrs[rng.integers(len(vrs))].encode()
    return bytes(out)


def lie_about_length(seed: Seed, rng: np.random.Generator) -> bytes:
    """A length is not that of the value."""
    element = _one_of(seed, rng)
    at, form = element.length_at
    old = struct.unpack_from(form, seed.data, at)[0]
    lies = [0, 1, 2, old + 1, old + 2, max(old - 2, 0), 65535, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, int(rng.integers(1 << 32))]
    out = bytearray(seed.data)
    struct.pack_into(form, out, at, lies[rng.integers(len(lies))] & (0xFFFF if form == "<H" else 0xFFFFFFFF))
    return bytes(out)


def cut(seed: Seed, rng: np.random.Generator) -> bytes:
    """The file ends early."""
    element = _one_of(seed, rng)
    places = [
        element.start,
        element.value,
        element.end,
        int(rng.integers(len(seed.data))),
        len(seed.data) - int(rng.integers(1, 200)),
    ]
    return seed.data[: places[rng.integers(len(places))]]


def flip_header_bits(seed: Seed, rng: np.random.Generator) -> bytes:
    """One to eight bits ahead of the pixels are wrong."""
    pixels = seed.of("PixelData")
    return _flipped(seed.data, 0 if rng.random() < 0.2 else 132, pixels.value if pixels else len(seed.data), rng)


def flip_pixel_bits(seed: Seed, rng: np.random.Generator) -> bytes:
    """One to eight bits of the pixels are wrong."""
    pixels = seed.of("PixelData")
    return _flipped(seed.data, pixels.value if pixels else 0, len(seed.data), rng)


def _flipped(data: bytes, low: int, high: int, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for at in rng.integers(low, max(high, low + 1), rng.integers(1, 9)):
        out[min(int(at), len(out) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def swap_syntax(seed: Seed, rng: np.random.Generator) -> bytes:
    """The file header names another transfer syntax."""
    old = re.search(rb"\x02\x00\x10\x00UI(..)", seed.data, re.DOTALL)
    assert old is not None
    length = struct.unpack("<H", old[1])[0]
    new = SYNTAXES[rng.integers(len(SYNTAXES))].encode()
    new += b"\0" * (len(new) % 2)
    group_length = struct.unpack_from("<I", seed.data, 140)[0] + len(new) - length
    out = seed.data[: old.end() - 2] + struct.pack("<H", len(new)) + new + seed.data[old.end() + length :]
    return out[:140] + struct.pack("<I", max(group_length, 0)) + out[144:]


def change(seed: Seed, rng: np.random.Generator) -> bytes:
    """A value that decides on HU or geometry is another one."""
    known = [one for keyword in MATTERS if (one := seed.of(keyword)) is not None]
    element = known[rng.integers(len(known))]
    return _replaced(seed, element, _with_value(seed, element, _new_value(seed, element, rng)))


def _new_value(seed: Seed, element: Element, rng: np.random.Generator) -> bytes:
    vr = element.vr or pydicom.datadict.dictionary_VR(element.tag) if not element.tag >> 16 & 1 else "UN"
    if vr.startswith(("US", "SS")):
        return struct.pack("<H", NUMBERS[rng.integers(len(NUMBERS))])
    if vr in ("DS", "IS", "CS", "LO", "UI", "SH"):
        old = seed.data[element.value : element.end].rstrip(b" \0")
        choices = [TEXTS[rng.integers(len(TEXTS))].encode(), old[:-1], old + b"1", old + b"\\" + old, b"-" + old]
        return choices[rng.integers(len(choices))]
    return bytes(rng.integers(0, 256, 2 * rng.integers(0, 6), np.uint8))


def insert(seed: Seed, rng: np.random.Generator) -> bytes:
    """An element that means something for pixels is added, at its place."""
    number = NUMBERS[rng.integers(len(NUMBERS))]
    text = TEXTS[rng.integers(len(TEXTS))]
    choices: list[tuple[int, str, bytes]] = [
        (0x00280008, "IS", text.encode()),
        (0x00280120, "US", struct.pack("<H", number)),
        (0x00280121, "US", struct.pack("<H", number)),
        (0x00281054, "LO", text.encode()),
        (0x00281055, "LO", text.encode()),
        (0x00283000, "SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
        (0x60003000, "OW", bytes(16)),
        (0x7FE00008, "OF", bytes(64)),
        (0x00282110, "CS", b"01"),
        (0x00280006, "US", struct.pack("<H", number)),
        (0x00280034, "IS", text.encode()),
        (0x00080008, "CS", text.encode()),
    ]
    tag, vr, value = choices[rng.integers(len(choices))]
    value += b" " * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if seed.elements[0].vr == "":
        head += struct.pack("<I", len(value))
    elif vr in LONG_VRS:
        head += vr.encode() + struct.pack("<HI", 0, len(value))
    else:
        head += vr.encode() + struct.pack("<H", len(value))
    at = next((one.start for one in seed.elements if one.tag >= tag), len(seed.data))
    return seed.data[:at] + head + value + seed.data[at:]


def garbage_pixels(seed: Seed, rng: np.random.Generator) -> bytes:
    """A stretch of the pixels is noise."""
    pixels = seed.of("PixelData")
    low = pixels.value if pixels else 0
    at = int(rng.integers(low, len(seed.data)))
    n = int(rng.integers(1, max(2, min(len(seed.data) - at, 2000))))
    return seed.data[:at] + bytes(rng.integers(0, 256, n, np.uint8)) + seed.data[at + n :]


MUTATIONS: tuple[Mutation, ...] = (
    delete, double, move, resize, swap_vr, lie_about_length, cut, flip_header_bits, flip_pixel_bits, swap_syntax, change, insert,
    garbage_pixels,
)  # fmt: skip


def mutants(pool: Sequence[Seed], n: int, seed: int) -> Iterator[tuple[str, Seed, bytes]]:
    """Kind, seed file and bytes of n mutants."""
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        source, mutation = pool[int(rng.integers(len(pool)))], MUTATIONS[i % len(MUTATIONS)]
        yield mutation.__name__, source, mutation(source, rng)


# --- the child: what finegrain makes of a file


def read_all(folder: Path) -> None:
    """Read each file of a folder and say what came of it, one JSON line before and one after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in sorted(folder.glob("*.dcm"), key=lambda path: int(path.stem)):
        if path.with_suffix(".done").exists():
            continue
        path.with_suffix(".done").touch()
        signal.alarm(SECONDS_PER_FILE)  # its default action ends the process, even inside a decoder
        print(json.dumps({"file": path.stem, "began": True}), flush=True)
        try:
            volume = read_series(path, allow_lossy=True)
        except ScanError as error:
            ok = "\n" not in str(error) and len(str(error)) < 1000
            outcome = {"outcome": "refused" if ok else "bad message", "text": str(error)}
        except BaseException as error:
            outcome = {"outcome": "other exception", "text": f"{type(error).__name__}: {error}"[:300]}
        else:
            np.savez(path.with_suffix(".npz"), hu=volume.hu, padding=volume.padding)
            outcome = {"outcome": "accepted", "text": ""}
        signal.alarm(0)
        print(json.dumps({"file": path.stem, **outcome}), flush=True)


def outcomes(folder: Path) -> dict[str, dict[str, str]]:
    """What a child, or as many as it takes, made of every file of a folder."""
    found: dict[str, dict[str, str]] = {}
    n_files = len(list(folder.glob("*.dcm")))
    while len(found) < n_files:
        before = len(found)
        child = subprocess.run(
            ["nice", sys.executable, __file__, "--child", str(folder)],
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_FILE * n_files + 60,
        )
        began = ""
        for line in child.stdout.splitlines():
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("began"):
                began = said["file"]
            elif said:
                found[said["file"]] = said
        if began and began not in found:
            what = "hang" if child.returncode == -signal.SIGALRM else "crash"
            found[began] = {"outcome": what, "text": f"exit {child.returncode} {child.stderr[-300:]}"}
        if len(found) == before:
            raise RuntimeError(f"the child reads nothing: {child.stderr[-1000:]}")
    return found


# --- the judge


def judged(path: Path, hu: NDArray[np.float32], padding: NDArray[np.bool_], work: Path) -> str:
    """Whether an independent program sees the same HU: "right", "wrong: why", or "unjudged: why"."""
    if not np.isfinite(hu).all():
        return f"wrong: {np.count_nonzero(~np.isfinite(hu))} HU are NaN or infinite"
    if len(hu) > 1:
        return _judged_by_gdcm(path, hu, padding)
    try:
        return _judged_by_dcmtk(path, hu, padding, work)
    except (KeyError, ValueError, IndexError, subprocess.SubprocessError) as error:
        verdict = _judged_by_gdcm(path, hu, padding)
        return f"{verdict}, DCMTK: {type(error).__name__}" if verdict.startswith("unjudged") else verdict


def _judged_by_dcmtk(path: Path, hu: NDArray[np.float32], padding: NDArray[np.bool_], work: Path) -> str:
    plain = _uncompressed(path, _dumped(path, "0002,0010").get("0002,0010", ""), work)
    facts = _dumped(plain, "0028,0010", "0028,0011", "0028,0101", "0028,0103", "0028,1052", "0028,1053")
    rows, columns, bits, signed = (int(facts[f"0028,{tag}"]) for tag in ("0010", "0011", "0101", "0103"))
    slope, intercept = float(facts["0028,1053"].strip("[]")), float(facts["0028,1052"].strip("[]"))
    raw = work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    _run("dcmdump", "-q", "+W", raw, plain)
    (pixels,) = raw.glob("*.raw")
    words = np.frombuffer(pixels.read_bytes()[: rows * columns * 2], "<u2")
    if hu.shape != (1, rows, columns):
        return f"wrong: shape {hu.shape}, judge {rows} × {columns}"
    return _compared(words.reshape(hu.shape), hu, padding, bits=bits, signed=bool(signed), slope=slope, intercept=intercept)


def _compared(
    words: NDArray[np.uint16],
    hu: NDArray[np.float32],
    padding: NDArray[np.bool_],
    *,
    bits: int,
    signed: bool,
    slope: float,
    intercept: float,
) -> str:
    stored = (words & ((1 << bits) - 1)).astype(np.int64)
    if signed:
        stored -= (stored >> (bits - 1)) << bits
    theirs = (stored * slope + intercept).astype(np.float32)
    # Padding may lie beyond BitsStored; then the whole word counts.
    whole = [(word * slope + intercept).astype(np.float32) for word in (words.astype(float), words.view(np.int16).astype(float))]
    bad = (hu != theirs) & ~(padding & ((hu == whole[0]) | (hu == whole[1])))
    return f"wrong: {int(bad.sum())} pixels, e.g. {hu[bad][0]} where the judge has {theirs[bad][0]}" if bad.any() else "right"


def _judged_by_gdcm(path: Path, hu: NDArray[np.float32], padding: NDArray[np.bool_]) -> str:
    code = (
        "import sys, SimpleITK, numpy as np; SimpleITK.ProcessObject_SetGlobalWarningDisplay(False);"
        "r = SimpleITK.ImageFileReader(); r.SetImageIO('GDCMImageIO'); r.SetFileName(sys.argv[1]);"
        "np.save(sys.argv[2], SimpleITK.GetArrayFromImage(r.Execute()))"
    )
    try:
        subprocess.run([sys.executable, "-c", code, path, path.with_suffix(".npy")], check=True, capture_output=True, timeout=30)
    except subprocess.SubprocessError:
        return "unjudged: GDCM reads it not"
    theirs = np.load(path.with_suffix(".npy"))
    if theirs.shape != hu.shape:
        return f"wrong: shape {hu.shape}, judge {theirs.shape}"
    # Frames lie in any order in the file, and GDCM keeps that order.
    order = [int(np.argmin([np.count_nonzero(np.abs(one - frame) > 1e-3) for frame in theirs])) for one in hu]
    theirs = theirs[order]
    bad = ~padding & (np.abs(hu - theirs) > 1e-3)
    return f"wrong: {int(bad.sum())} pixels, e.g. {hu[bad][0]} where GDCM has {theirs[bad][0]}" if bad.any() else "right"


def _uncompressed(path: Path, syntax: str, work: Path) -> Path:
    tools = {"RLE": "dcmdrle", "JPEGLS": "dcmdjpls", "JPEG": "dcmdjpeg"}
    if "JPEG2000" in syntax or "High" in syntax:
        raise ValueError("DCMTK has no JPEG 2000")
    tool = next((tools[word] for word in tools if word in syntax), None)
    if tool is None:
        return path
    plain = work / "plain.dcm"
    plain.unlink(missing_ok=True)
    _run(tool, "-q", path, plain)
    return plain


def _dumped(path: Path, *tags: str) -> dict[str, str]:
    """Values that DCMTK prints for the top-level elements."""
    wanted = [word for tag in tags for word in ("+P", tag)]
    text = _run("dcmdump", "-q", "+p", "+L", *wanted, path)
    lines = re.findall(r"^\(([0-9a-f]{4},[0-9a-f]{4})\) \S\S (.*?)\s+#", text, re.MULTILINE)
    return {tag: value for tag, value in reversed(lines)}


def _run(*arguments: str | Path) -> str:
    ran = subprocess.run([str(one) for one in arguments], check=True, capture_output=True, timeout=30)
    return ran.stdout.decode("latin-1")


# --- the run


@dataclass(frozen=True)
class Result:
    """What came of one mutant."""

    number: int
    kind: str
    seed: str
    outcome: str
    verdict: str
    text: str

    @property
    def failed(self) -> bool:
        """Whether the reader did what it must never do."""
        return self.outcome not in ("accepted", "refused") or self.verdict.startswith("wrong")


def fuzz(n: int, seed: int, folder: Path | None, keep: Path | None = None) -> list[Result]:
    """Make, read and judge n mutants; what failed or could not be judged is kept in a folder, if one is given."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with tolerate_sloppy_headers():
            pool = seeds(folder, work)
            made = list(mutants(pool, n, seed))
        for first in range(0, n, BATCH):
            batch = work / "batch"
            batch.mkdir()
            for i, (_, _, data) in enumerate(made[first : first + BATCH], start=first):
                (batch / f"{i}.dcm").write_bytes(data)
            for name, said in outcomes(batch).items():
                path, verdict = batch / f"{name}.dcm", ""
                kind, source, _ = made[int(name)]
                if said["outcome"] == "accepted":
                    with np.load(path.with_suffix(".npz")) as pixels:
                        hu, padding = pixels["hu"], pixels["padding"]
                    verdict = judged(path, hu, padding, work)
                    if verdict.startswith("unjudged") and np.array_equal(hu, source.hu):
                        verdict = verdict.replace("unjudged", "as its seed")
                results.append(Result(int(name), kind, source.name, said["outcome"], verdict, said["text"]))
                if keep is not None and (results[-1].failed or verdict.startswith("unjudged")):
                    keep.mkdir(exist_ok=True)
                    shutil.copy(path, keep)
            shutil.rmtree(batch)
    return results


def table(results: Sequence[Result]) -> str:
    """Counts by kind of mutation."""
    columns = ("refused", "right", "as its seed", "unjudged", "wrong", "other exception", "bad message", "crash", "hang")
    lines = [f"{'mutation':<18}{'n':>6}" + "".join(f"{column:>17}" for column in columns)]
    for kind in (*(mutation.__name__ for mutation in MUTATIONS), "all"):
        ours = [one for one in results if kind in (one.kind, "all")]
        counts = Counter((one.verdict.split(":")[0] or one.outcome) for one in ours)
        lines.append(f"{kind:<18}{len(ours):>6}" + "".join(f"{counts[column]:>17}" for column in columns))
    return "\n".join(lines)


def main() -> None:
    """Fuzz and print the table; exit 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="more seeds: DICOM files that stay where they are")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for mutants that failed or could not be judged")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        read_all(arguments.child)
        return
    began = time.perf_counter()
    results = fuzz(arguments.n, arguments.seed, arguments.folder, arguments.keep)
    print(table(results))
    for one in results:
        if one.failed:
            print(f"FAILED {one.number} {one.kind} of {one.seed}: {one.outcome} {one.verdict} {one.text[:200]}")
    for why, count in Counter(f"{one.kind}: {one.verdict}" for one in results if one.verdict.startswith("unjudged")).most_common(
        15
    ):
        print(f"{count} × {why}")
    n_failed = sum(one.failed for one in results)
    print(f"{len(results)} mutants in {time.perf_counter() - began:.0f} s, {n_failed} failed")
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
