"""Headers of DICOMs: the image's description, every fault that shows without its pixels, and oddities.

A file is refused, by name, wherever its pixels would be misread: signed or shifted pixels, several frames, pixels of
another length than the header's.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lumen_hpc.data.image_headers import FRAMES, JPEG_START, MAX_PIXELS, OTHER_FRAMES, Size, valid_size
from lumen_hpc.errors import UserError

_FRAME_OF_JPEG_LS, _CODESTREAM = 0xF7, b"\xff\x4f\xff\x51"
_CONTAINER = b"\0\0\0\x0cjP  "
"""How a JP2 file begins, which some put around the codestream."""
_DICOM_PREAMBLE = 144
"""Bytes before a DICOM's meta information is counted: 128, the magic word, and the element with its length."""
_MAX_INFLATED_BYTES = 2 * MAX_PIXELS + (1 << 24)
"""Bytes of the largest image and of the other elements."""
_RLE = "1.2.840.10008.1.2.5"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LAST_GROUPS = (*range(0x7FE0, 0x8000), 0xFFFA, 0xFFFC)
"""Groups of the elements that may follow the pixels: private ones, signatures, padding."""
_PIXEL_DATA, _PIXEL_DATA_BIG_ENDIAN = b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"
_SYNTAXES = frozenset(
    "1.2.840.10008.1.2" + end
    for end in (
        "", ".1", ".1.99", ".2",  # little-endian, deflated, big-endian
        ".4.50", ".4.51", ".4.57", ".4.70",  # JPEG: baseline, extended, lossless
        ".4.80", ".4.81", ".4.90", ".4.91", ".4.201", ".4.202", ".4.203", ".5",  # JPEG-LS, JPEG 2000, HTJ2K, RLE
    )
)  # fmt: skip
"""Transfer syntaxes that are read."""
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")


_PHOTOMETRIC = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""The usual values that are refused; a message repeats no other value, since a header may hold anything."""


def silence_pydicom() -> None:
    """Keeps pydicom from warning and logging: it quotes headers, so a misplaced name would get into a log."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\.")


def open_dicom(path: Path, file: BinaryIO | None = None, **options: Any) -> Any:
    """pydicom's dataset of a file; UserError for one that is not a DICOM, is corrupt, or would inflate without end."""
    import pydicom

    silence_pydicom()
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
        while pending and size <= _MAX_INFLATED_BYTES:
            size += len(inflate.decompress(pending, 1 << 24))
            pending = inflate.unconsumed_tail or file.read(1 << 20)
    if size > _MAX_INFLATED_BYTES:
        raise UserError(f"{path} inflates to more than {_MAX_INFLATED_BYTES >> 20} MiB; an image has at most so much")


TURNED = "PatientOrientation says that the image is stored mirrored, upside down or turned; it is read as stored"
INVERTED = "RescaleSlope or PresentationLUTShape says that the image is stored inverted; it is read as stored"


OTHER_MODALITY = "Modality says that this is no radiograph; it is read as one"
_RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "IO", "PX", "OT", ""})
"""Modalities of projections; OT is any other, as converters write it."""
STRETCHED = "PixelAspectRatio or the spacing of its pixels says that they are not square; they are read as square"


def header_warning(dataset: Any) -> str:
    """A warning for an image that its header calls mirrored, upside down, inverted or stretched; else empty."""
    try:
        row, column = dataset.get("PatientOrientation") or ("", "")
    except Exception:  # pydicom's own errors of every kind; a corrupt note is no orientation
        row, column = "", ""
    if str(row).startswith(("R", "H", "F")) or str(column).startswith(("H", "L", "R", "A", "P")):
        return TURNED
    try:
        is_falling = float(dataset.get("RescaleSlope") or 1) < 0 or _has_falling_table(dataset)
        shape = str(dataset.get("PresentationLUTShape") or "")
    except Exception:  # as above
        is_falling, shape = False, ""
    inverting_shape = "IDENTITY" if dataset.PhotometricInterpretation == "MONOCHROME1" else "INVERSE"
    if is_falling or shape == inverting_shape:
        return INVERTED
    if str(dataset.get("Modality") or "").upper() not in _RADIOGRAPHS:
        return OTHER_MODALITY
    try:
        return STRETCHED if any(map(_is_not_square, map(dataset.get, _SPACINGS))) else ""
    except Exception:  # as above
        return ""


_SPACINGS = ("PixelAspectRatio", "ImagerPixelSpacing", "PixelSpacing")


def _is_not_square(spacing: Any) -> bool:
    """True for two sides of a pixel that differ by more than 2 %."""
    down, across = map(float, spacing or (1, 1))
    return not 1 / 1.02 <= down / across <= 1.02


def _has_falling_table(dataset: Any) -> bool:
    """True if a table of grey levels falls from its first value to its last."""
    order: Literal["little", "big"] = "little" if dataset.file_meta.TransferSyntaxUID.is_little_endian else "big"
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        for table in dataset.get(name) or ():
            first, last = _first_and_last(table, order)
            if first > last:
                return True
    return False


def _first_and_last(table: Any, order: Literal["little", "big"]) -> tuple[int, int]:
    """First and last value of a table: numbers, or (OW) the bytes of numbers."""
    data = table.LUTData
    if not isinstance(data, bytes):
        return data[0], data[-1]
    entry_count = int(table.LUTDescriptor[0]) or 1 << 16
    entry_bytes = 2 if len(data) >= 2 * entry_count else 1
    last_offset = (entry_count - 1) * entry_bytes
    ends = data[:entry_bytes], data[last_offset : last_offset + entry_bytes]
    return int.from_bytes(ends[0], order), int.from_bytes(ends[1], order)


def single_frame(path: Path, dataset: Any, shape: tuple[int, int]) -> bytes:
    """The encapsulated frame of an image [Rows, Columns].

    Raises UserError for several frames, a frame that is cut off, and a picture of another size, by which a decoder
    would allocate, or of signed values.
    """
    from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets

    try:
        frames = len(parse_basic_offsets(dataset.PixelData)) or sum(map(_begins, generate_fragments(dataset.PixelData)))
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    except Exception as reason:  # items cut off or out of order
        raise UserError(f"{path}: its pixels cannot be read: {str(reason).splitlines()[0]}") from None
    if frames > 1:
        raise UserError(f"{path} holds {frames} frames; a radiograph is one")
    size = _frame_size(path, frame)
    if size and size != Size(shape[1], shape[0]):
        raise UserError(f"{path}: its pixels are {size.width} x {size.height} px, not those of its header")
    if dataset.file_meta.TransferSyntaxUID == _RLE:
        _check_rle(path, frame, shape)
    if frame.startswith(JPEG_START) and not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise UserError(f"{path} is truncated: its compressed pixels have no end; fetch the file again")
    return frame


def _begins(fragment: bytes) -> bool:
    """True for the beginning of a frame, where no table says which fragments are of one: a stream's own, or RLE's."""
    segments, first = struct.unpack("<II", fragment[:8].ljust(8, b"\0"))
    return fragment.startswith((JPEG_START, _CODESTREAM, _CONTAINER)) or (segments in (1, 2) and first == 64)


def _check_rle(path: Path, frame: bytes, shape: tuple[int, int]) -> None:
    """Raises UserError for a frame of RLE with more rows than the header says, of which decoders take the first."""
    import imagecodecs

    count, first, second = struct.unpack("<3I", frame[:12].ljust(12, b"\0"))
    with suppress(imagecodecs.PackbitsError):
        pixel_count = len(imagecodecs.packbits_decode(frame[first : second if count > 1 else None]))
        if pixel_count >= (expected := shape[0] * shape[1]) + max(shape[1], 2):
            raise UserError(f"{path} has {pixel_count} pixels where its header says {expected}: a corrupt header")


def _frame_size(path: Path, frame: bytes) -> Size | None:
    """The size of the picture in an encapsulated frame: JPEG, JPEG-LS or JPEG 2000; None for another coding."""
    start = frame.find(_CODESTREAM) if frame.startswith((_CODESTREAM, _CONTAINER)) else -1
    if 0 <= start <= len(frame) - 43:
        width, height, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        if frame[start + 42] & 0x80:
            raise UserError(f"{path} has signed pixels in its JPEG 2000 stream; a radiograph's are unsigned")
        return Size(width - left, height - top)
    position = 2
    while frame.startswith(JPEG_START) and position + 10 <= len(frame) and frame[position] == 0xFF:
        if frame[position + 1] in FRAMES | OTHER_FRAMES | {_FRAME_OF_JPEG_LS}:
            height, width, components = struct.unpack(">HHB", frame[position + 5 : position + 10])
            if components != 1:
                raise UserError(f"{path} holds {components} values a pixel; a radiograph has one")
            return Size(width, height)
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
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
        if syntax not in _SYNTAXES:
            is_known = syntax.name != str(syntax) and not syntax.is_private
            syntax_name = syntax.name if is_known else "(none that is known)"
            raise UserError(f"{path} has pixels of a transfer syntax that is not read: {syntax_name}")
        if syntax.is_deflated:
            return dataset, None
        # pydicom leaves the file where the pixels' element begins; its tag, type and length come before its value.
        start = file.tell()
        if file.read(4) != (_PIXEL_DATA if syntax.is_little_endian else _PIXEL_DATA_BIG_ENDIAN):
            raise UserError(f"{path} is a DICOM without pixels (no PixelData)")
        element_header = file.read(4 if syntax.is_implicit_VR else 8)
        if not syntax.is_encapsulated:
            length = int.from_bytes(element_header[-4:], "little" if syntax.is_little_endian else "big")
            check_length(path, dataset, length, os.fstat(file.fileno()).st_size - file.tell())
            _check_rest(path, file, length, "little" if syntax.is_little_endian else "big")
    return dataset, start + 4 + len(element_header)


def check_length(path: Path, dataset: Any, length: int, remaining: int) -> None:
    """Raises UserError for uncompressed pixels that are not as long as the header says; a row of padding is no fault.

    What follows short ones would be read as pixels, and of long ones a part would be taken for the whole image.
    `length`: of the pixels by their own element; `remaining`: bytes of the file that follow.
    """
    row = int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    expected = int(dataset.Rows) * row
    if length == _UNDEFINED_LENGTH:
        raise UserError(f"{path} calls its pixels uncompressed, but they are not: a corrupt header")
    if (available := min(length, remaining)) < expected:
        raise UserError(f"{path} is truncated: it has {available} of {expected} bytes of pixels; fetch the file again")
    if length >= expected + max(row, 2):
        raise UserError(f"{path} has {length} bytes of pixels where its header says {expected}: a corrupt header")


def _check_rest(path: Path, file: BinaryIO, length: int, order: Literal["little", "big"]) -> None:
    """Raises UserError if what follows the pixels is no element of a DICOM: bytes were put in, and moved the pixels.

    A copy in text mode does that: each LF becomes CR and LF.
    """
    file.seek(length, 1)
    following = file.read(1 << 16)
    if any(following) and int.from_bytes(following[:2], order) not in _LAST_GROUPS:
        raise UserError(f"{path}: what follows its pixels is no part of a DICOM; fetch the file again, in binary mode")


def _check_dicom_header(path: Path, dataset: Any) -> None:
    missing = [name for name in _REQUIRED if dataset.get(name) in (None, "")]
    if missing:
        raise UserError(f"{path} is a DICOM without image: it lacks {', '.join(missing)}")
    if (photometric := dataset.PhotometricInterpretation) not in ("MONOCHROME1", "MONOCHROME2"):
        printable = photometric if photometric in _PHOTOMETRIC else "(none that is known)"
        raise UserError(f"{path} has PhotometricInterpretation {printable}; a radiograph is MONOCHROME1 or MONOCHROME2")
    if (samples := int(dataset.get("SamplesPerPixel") or 1)) != 1:
        raise UserError(f"{path} holds {samples} values a pixel; a radiograph has one")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise UserError(f"{path} holds {frames} frames; a radiograph is one")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if not 1 <= stored <= allocated:
        raise UserError(f"{path} has BitsStored {stored} of BitsAllocated {allocated}: a corrupt header")
    if allocated not in (8, 16):
        raise UserError(f"{path} has BitsAllocated {allocated}; 8 and 16 are read")
    if (representation := int(dataset.PixelRepresentation)) != 0:
        raise UserError(f"{path} has signed pixels (PixelRepresentation {representation}); a radiograph's are unsigned")
    if (high_bit := dataset.get("HighBit")) not in (None, "") and int(high_bit) != stored - 1:
        raise UserError(f"{path} has HighBit {high_bit} with BitsStored {stored}; {stored - 1} is read")
    valid_size(path, int(dataset.Columns), int(dataset.Rows))
