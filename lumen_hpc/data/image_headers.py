"""Headers of radiograph files: the size of the image, and every fault that shows without its pixels.

A file is refused, by name, wherever its pixels would be misread: an orientation that only a viewer applies, indices
of a palette in place of grey values, signed or shifted pixels, an absurd size.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lumen_hpc.errors import UserError

MOST_PIXELS = 1 << 26
"""67 megapixels, twice the largest detector; a corrupt header can ask for gigabytes."""

JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of baseline, extended and progressive frames."""
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Lossless, hierarchical and arithmetic ones."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a length."""
_FRAME_OF_JPEG_LS, _CODESTREAM = 0xF7, b"\xff\x4f\xff\x51"
_DICOM_PREAMBLE = 144
"""Bytes before a DICOM's meta information is counted: 128, the magic word, and the element with its length."""
_MOST_INFLATED = 2 * MOST_PIXELS + (1 << 24)
"""Bytes of the largest image and of the other elements."""
_EXIF, _ORIENTATION = b"Exif\0\0", 0x0112
_PNG_COLOURS = {0: "grey", 2: "colour", 4: "grey with transparency", 6: "colour with transparency"}
_PIXEL_DATA, _PIXEL_DATA_BIG_ENDIAN = b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")


_PHOTOMETRIC = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""The usual values that are refused; any other is not repeated, since a header may hold anything."""


class Size(NamedTuple):
    """Size of an image [px]."""

    width: int
    height: int


def jpeg_header(path: Path, stream: BinaryIO) -> Size:
    """The size of a JPEG. Raises UserError for one that is not 8 bits, is turned by EXIF, or has no frame."""
    stream.seek(2)
    while True:
        marker = stream.read(2)
        while marker == b"\xff\xff":  # fill bytes
            marker = marker[1:] + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            raise UserError(f"{path} is a corrupt JPEG: it has no frame header; fetch the file again")
        if marker[1] in _ALONE:
            continue
        length = int.from_bytes(stream.read(2), "big") - 2
        if marker[1] in _FRAMES:
            return _jpeg_frame(path, stream.read(6))
        if marker[1] in _OTHER_FRAMES:
            raise UserError(f"{path} is a JPEG of an unusual kind (SOF{marker[1] - 0xC0}); 8-bit JPEGs are read")
        if length < 0:
            raise UserError(f"{path} is a corrupt JPEG: a segment of length {length + 2}; fetch the file again")
        if marker[1] == 0xE1:
            _check_orientation(path, stream.read(length))
        else:
            stream.seek(length, 1)


def _jpeg_frame(path: Path, frame: bytes) -> Size:
    if len(frame) < 6:
        raise UserError(f"{path} is truncated within its header; fetch the file again")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8 or components not in (1, 3):
        raise UserError(f"{path} has {components} components of {bits} bits; a JPEG of 8 bits with 1 or 3 is read")
    return _checked_size(path, width, height)


def _check_orientation(path: Path, exif: bytes) -> None:
    """Raises UserError for pixels that are stored turned or mirrored: no decoder turns them, and sides would swap."""
    if not exif.startswith(_EXIF):
        return
    from PIL import Image

    found = Image.Exif()
    try:
        found.load(exif)
        orientation = found.get(_ORIENTATION, 1)
    except Exception:  # Pillow's own errors of every kind; a corrupt note is no orientation
        return
    if orientation in range(2, 9):
        raise UserError(
            f"{path} has EXIF orientation {orientation}: its pixels are stored turned or mirrored; store them upright"
        )


def png_header(path: Path, data: bytes) -> Size:
    """The size of a PNG, all of whose chunks are there and whole.

    Raises UserError for a truncated or corrupt file, a palette, a depth other than 8 bits, or an EXIF orientation.
    """
    names: list[bytes] = []
    at, size = len(PNG_START), Size(0, 0)
    while not names or names[-1] != b"IEND":
        if at + 12 > len(data):
            raise UserError(f"{path} is truncated: a PNG ends with IEND; fetch the file again")
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4 or not name.isalpha():
            state = "corrupt" if not name.isalpha() else "truncated"
            raise UserError(f"{path} is {state}: a chunk of {length} bytes is not a whole one; fetch the file again")
        if zlib.crc32(name + body) != int.from_bytes(check, "big"):
            raise UserError(f"{path} is corrupt: the checksum of its {name.decode()} is wrong; fetch the file again")
        if not names:
            size = _png_frame(path, name, body)
        if name == b"eXIf":
            _check_orientation(path, _EXIF + body)
        names.append(name)
        at += 12 + length
    if b"IDAT" not in names:
        raise UserError(f"{path} is a PNG without pixels (no IDAT)")
    return size


def _png_frame(path: Path, name: bytes, body: bytes) -> Size:
    if name != b"IHDR" or len(body) != 13:
        raise UserError(f"{path} is a corrupt PNG: it does not begin with IHDR; fetch the file again")
    width, height, bits, colour = struct.unpack(">IIBB", body[:10])
    if colour == 3:
        raise UserError(f"{path} is a PNG with a palette: its values are indices, not grey levels; store it as grey")
    if bits != 8 or colour not in _PNG_COLOURS:
        raise UserError(f"{path} is a PNG of {bits} bits; 8 bits are read, or a DICOM of any depth")
    return _checked_size(path, width, height)


def _checked_size(path: Path, width: int, height: int) -> Size:
    if not (width > 0 and height > 0):
        raise UserError(f"{path} has an empty image: {width} x {height} px")
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} px by its header, {width * height / 1e6:.0f} megapixels; "
            f"a radiograph has at most {MOST_PIXELS / 1e6:.0f}"
        )
    return Size(width, height)


def quieten_pydicom() -> None:
    """Keeps pydicom from warning and logging: it quotes headers, and a name in the wrong element would be in a log."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\.")


def open_dicom(path: Path, file: BinaryIO | None = None, **options: Any) -> Any:
    """pydicom's dataset of a file; UserError for one that is not a DICOM, is corrupt, or would inflate without end."""
    import pydicom

    quieten_pydicom()
    try:
        _check_deflated(path)
        dataset = pydicom.dcmread(file or path, **options)
        dataset.file_meta.TransferSyntaxUID  # noqa: B018  (without it nothing can be read)
        return dataset
    except UserError:
        raise
    except Exception as reason:  # pydicom raises nearly every kind of error on corrupt bytes, and quotes them
        raise UserError(f"{path} is a corrupt DICOM ({type(reason).__name__}); fetch the file again") from None


def _check_deflated(path: Path) -> None:
    """Raises UserError for a deflated file that inflates to more than any image needs: pydicom inflates it whole."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if not meta.TransferSyntaxUID.is_deflated:
        return
    with path.open("rb") as file:
        file.seek(_DICOM_PREAMBLE + meta.FileMetaInformationGroupLength)
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        pending = file.read(1 << 20)
        while pending and size <= _MOST_INFLATED:
            size += len(inflate.decompress(pending, 1 << 24))
            pending = inflate.unconsumed_tail or file.read(1 << 20)
    if size > _MOST_INFLATED:
        raise UserError(f"{path} inflates to more than {_MOST_INFLATED >> 20} MiB; an image has at most so much")


TURNED = "PatientOrientation says that the image is stored mirrored or upside down; it is read as stored"
INVERTED = "RescaleSlope or PresentationLUTShape says that the image is stored inverted; it is read as stored"


def stored_otherwise(dataset: Any) -> str:
    """A warning for an image that its header calls mirrored, upside down or inverted; empty for any other."""
    try:
        row, column = dataset.get("PatientOrientation") or ("", "")
    except Exception:  # pydicom's own errors of every kind; a corrupt note is no orientation
        row, column = "", ""
    if str(row).startswith("R") or str(column).startswith("H"):
        return TURNED
    try:
        falls = float(dataset.get("RescaleSlope") or 1) < 0
        shape = str(dataset.get("PresentationLUTShape") or "")
    except Exception:  # as above
        return ""
    other = "IDENTITY" if dataset.PhotometricInterpretation == "MONOCHROME1" else "INVERSE"
    return INVERTED if falls or shape == other else ""


def frame_size(frame: bytes) -> Size | None:
    """The size of the picture in an encapsulated frame: JPEG, JPEG-LS or JPEG 2000; None for another coding."""
    if frame.startswith(_CODESTREAM) and len(frame) >= 24:
        width, height, left, top = struct.unpack(">4I", frame[8:24])
        return Size(width - left, height - top)
    at = 2
    while frame.startswith(JPEG_START) and at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _FRAMES | _OTHER_FRAMES | {_FRAME_OF_JPEG_LS}:
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return Size(width, height)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def dicom_header(path: Path) -> tuple[Any, int | None]:
    """A DICOM without its pixels, and the offset at which their bytes begin (None in a deflated file).

    Raises UserError for a header whose pixels could not be read, or would be misread.
    """
    with path.open("rb") as file:
        dataset = open_dicom(path, file, stop_before_pixels=True)
        try:
            _check_dicom_header(path, dataset)
        except UserError:
            raise
        except Exception as reason:  # values that are not of their type
            raise UserError(f"{path} is a corrupt DICOM ({type(reason).__name__}); fetch the file again") from None
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_deflated:
            return dataset, None
        # pydicom leaves the file where the pixels' element begins; its tag, type and length come before its value.
        start = file.tell()
        if file.read(4) != (_PIXEL_DATA if syntax.is_little_endian else _PIXEL_DATA_BIG_ENDIAN):
            raise UserError(f"{path} is a DICOM without pixels (no PixelData)")
    return dataset, start + (8 if syntax.is_implicit_VR else 12)


def _check_dicom_header(path: Path, dataset: Any) -> None:
    missing = [name for name in _REQUIRED if dataset.get(name) in (None, "")]
    if missing:
        raise UserError(f"{path} is a DICOM without image: it lacks {', '.join(missing)}")
    if (photometric := dataset.PhotometricInterpretation) not in ("MONOCHROME1", "MONOCHROME2"):
        shown = photometric if photometric in _PHOTOMETRIC else "(none that is known)"
        raise UserError(f"{path} has PhotometricInterpretation {shown}; a radiograph is MONOCHROME1 or MONOCHROME2")
    if (samples := int(dataset.get("SamplesPerPixel") or 1)) != 1:
        raise UserError(f"{path} holds {samples} values a pixel; a radiograph has one")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise UserError(f"{path} holds {frames} frames; a radiograph is one")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if not 1 <= stored <= allocated:
        raise UserError(f"{path} has BitsStored {stored} of BitsAllocated {allocated}: a corrupt header")
    if allocated not in (8, 16):
        raise UserError(f"{path} has BitsAllocated {allocated}; 8 and 16 are read")
    if (kind := int(dataset.PixelRepresentation)) != 0:
        raise UserError(f"{path} has signed pixels (PixelRepresentation {kind}); a radiograph's are unsigned")
    if (high := dataset.get("HighBit")) not in (None, "") and int(high) != stored - 1:
        raise UserError(f"{path} has HighBit {high} with BitsStored {stored}; {stored - 1} is read")
    _checked_size(path, int(dataset.Columns), int(dataset.Rows))
