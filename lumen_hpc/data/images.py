"""Radiographs from their files: one decode for every use.

JPGs (MIMIC-CXR-JPG) and DICOMs (MIMIC-CXR: uncompressed, RLE, JPEG-lossless, JPEG 2000; either photometric) decode
to the raw integers and the largest value of their format, bones bright. `xrv_input` turns these into the input of
TorchXRayVision's models, `grey_levels` reads an 8-bit image.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lumen_hpc.data.dicom_headers import check_length, dicom_header, header_warning, open_dicom, single_frame
from lumen_hpc.data.image_headers import (
    JPEG_START,
    PNG_START,
    Size,
    check_jpeg,
    check_png_rows,
    jpeg_header,
    png_header,
)
from lumen_hpc.data.resize import xrv_resize
from lumen_hpc.errors import UserError, unreadable
from lumen_hpc.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 1 << 29
"""Largest file of an image, four times the largest uncompressed radiograph."""
_JPEG_END, _SEQUENCE_END = b"\xff\xd9", b"\xfe\xff\xdd\xe0"
_GREY_TOLERANCE = 32
"""Grey levels by which the channels of a grey image may differ after a lossy encoder rounded its colours."""
_SAMPLED_ROWS = 64
"""Rows of an image that stand for all: of an uncompressed DICOM, `check` reads no others."""


class Radiograph(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray
    """uint8 or uint16 [H, W], bones bright."""
    maximum: int
    """Largest value the format can hold: 255, or 2**BitsStored - 1."""


class Inspection(NamedTuple):
    """What `check` says about a file that `decode` can read."""

    size: Size
    warning: str = ""
    """What is odd about it, the gravest oddity; empty if nothing is."""
    digest: int = 0
    """64 bits, equal for pictures with the same pixels; 0 for a blank one, and if they were not read."""


BLANK = "every pixel has the same value: nothing is shown"
FAINT = "BitsStored far above the highest value, so the image decodes dark"
COLOURED = "the image has colours, which no radiograph has: NVILA sees them, experts the red channel alone"
SEVERAL = "the file holds several pictures, of which the first is read"
TRANSPARENT = "pixels are transparent, and are read as if they were not"
OVERLAY = "bits above BitsStored are set (an overlay) and masked"


def decode(path: str | Path) -> Radiograph:
    """The raw pixels of a JPG, PNG or DICOM file; the content decides which it is.

    MONOCHROME1 is inverted to bones bright; no window, no rescale (as TorchXRayVision reads DICOMs). A colour image
    gives its first channel; bits of a DICOM above BitsStored are no pixel values and are masked, as pydicom does.
    Raises UserError naming a file that is missing, truncated, corrupt, without pixels, or whose pixels would be
    misread (see image_headers, dicom_headers).
    """
    path = Path(path)
    if is_dicom(_head(path)):
        return _decode_dicom(path)
    data = _read(path)
    if data.startswith(JPEG_START):
        check_jpeg(path, data)
        return Radiograph(_decode_jpeg(path, data), 255)
    if data.startswith(PNG_START):
        png_header(path, data)
        check_png_rows(path, data)
        return Radiograph(_decode_png(path, data), 255)
    raise _unknown_kind(path, data)


def xrv_input(image: Radiograph, size: int) -> np.ndarray:
    """TorchXRayVision's input of `size` px (224 or 320): float32 [1, size, size] in -1024..1024."""
    return xrv_resize(image.pixels, image.maximum, size)


def grey_levels(path: str | Path) -> np.ndarray:
    """An image as a vision model sees it: uint8 [H, W], a JPG as it is, a DICOM's range scaled to 0..255.

    MIMIC-CXR-JPG also equalises histograms, so its JPGs have more contrast than this.
    """
    image = decode(path)
    if image.maximum == 255 and image.pixels.dtype == np.uint8:
        return image.pixels
    return (image.pixels.astype(np.float32) * np.float32(255 / image.maximum)).round().astype(np.uint8)


def check(path: str | Path) -> Inspection:
    """Reads as much of a file as is needed to know that `decode` can read it; raises `decode`'s UserError if it cannot.

    A JPEG or PNG, and a compressed DICOM, are decoded (16 ms for 2544 x 3056 px): their faults do not show otherwise.
    An uncompressed DICOM is judged by its header, its length and some rows (1 to 5 ms).
    """
    path = Path(path)
    if not is_dicom(_head(path)):
        pixels = decode(path).pixels
        warning = BLANK if _is_blank(pixels) else _picture_warning(path)
        return Inspection(Size(*pixels.shape[::-1]), warning, _digest(pixels))
    header, start = dicom_header(path)
    size = Size(int(header.Columns), int(header.Rows))
    pixels = _stored_pixels(path, header, start)
    if warning := header_warning(header):
        return Inspection(size, warning, _digest(pixels))
    memory_mapped = start is not None and _is_native(header)
    sampled_rows = pixels[:: max(size.height // _SAMPLED_ROWS, 1)] if memory_mapped else pixels
    warning = _pixel_warning(sampled_rows, header.BitsStored)
    return Inspection(size, _pixel_warning(pixels, header.BitsStored) if warning else "", _digest(pixels))


def check_header(path: str | Path) -> Inspection:
    """Reads a file's header, and its length or end, without its pixels (0.1 to 1 ms); raises UserError as `check`."""
    path = Path(path)
    head = _head(path)
    if is_dicom(head):
        header, start = dicom_header(path)
        if not (start is not None and _is_native(header)) and _SEQUENCE_END not in _tail(path):
            decode(path)  # deflated, cut off, or with something after the pixels: decoding shows which
        return Inspection(Size(int(header.Columns), int(header.Rows)), header_warning(header))
    if head.startswith(PNG_START):
        return Inspection(png_header(path, _read(path)))
    if not head.startswith(JPEG_START):
        raise _unknown_kind(path, head)
    with open(path, "rb") as file:
        size = jpeg_header(path, file)
    before_end, end_marker, _ = _tail(path).rpartition(_JPEG_END)
    if not end_marker or not any(before_end[-16:]):
        decode(path)  # cut off, filled with zeros, or with something after the end: decoding shows which
    return Inspection(size)


def _is_blank(pixels: np.ndarray) -> bool:
    sampled_rows = pixels[:: max(len(pixels) // _SAMPLED_ROWS, 1)]
    return bool(sampled_rows.min() == sampled_rows.max()) and bool(pixels.min() == pixels.max())


def _digest(pixels: np.ndarray) -> int:
    """A hash of some rows, since noise makes two radiographs differ in every row; 0 if these are blank."""
    sampled_rows = pixels[:: max(len(pixels) // _SAMPLED_ROWS, 1)]
    if sampled_rows.min() == sampled_rows.max():
        return 0
    digest = hashlib.blake2b(repr(pixels.shape).encode() + sampled_rows.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _picture_warning(path: Path) -> str:
    """A warning for a JPEG or PNG of which `decode` reads a part: one picture, one channel, not its transparency."""
    from PIL import Image

    with Image.open(path, formats=["JPEG", "PNG"]) as image:
        if getattr(image, "n_frames", 1) > 1:  # an MPO, an animated PNG
            return SEVERAL
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            return TRANSPARENT
        return COLOURED if has_colours(image) else ""


def has_colours(picture: Image.Image) -> bool:
    """Whether a picture of 8 bits has colours: a chart, a photograph of a screen."""
    if picture.mode in ("L", "LA"):
        return False
    red, *other_channels = np.asarray(picture.convert("RGB"), np.int16).transpose(2, 0, 1)
    return any(bool(np.abs(red - channel).max() > _GREY_TOLERANCE) for channel in other_channels)


def _pixel_warning(pixels: np.ndarray, bits: int) -> str:
    """A warning for values that leave most of their range unused, that use bits above it, or that are all one."""
    highest = int(pixels.max())
    if highest >= 1 << bits:
        return OVERLAY
    if bits > 8 and highest < 1 << (bits - 2):
        return FAINT
    return BLANK if _is_blank(pixels) else ""


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise unreadable(f"image {path}", error) from None


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:  # it would be read whole
                limit = MAX_FILE_BYTES >> 20
                raise UserError(f"{path} has {size >> 20} MiB; the file of a radiograph has at most {limit}")
            return file.read(132)
    except OSError as error:
        raise unreadable(f"image {path}", error) from None


def _tail(path: Path) -> bytes:
    """The end of a file, in which its closing marker should be."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - 64, 0))
        return file.read()


def _unknown_kind(path: Path, data: bytes) -> UserError:
    if not data:
        return UserError(f"{path} is empty; fetch the file again")
    return UserError(f"{path} is neither JPEG, PNG nor DICOM (it begins with {data[:8].hex()})")


def holds_dicom(path: str | Path) -> bool:
    """True for a file that is a DICOM by its content, whatever its name; UserError for one that cannot be read."""
    return is_dicom(_head(Path(path)))


def is_dicom(data: bytes) -> bool:
    """True for a file that begins as a DICOM; `data` holds at least its first 132 bytes."""
    return data[128:132] == b"DICM"


def _decode_jpeg(path: Path, data: bytes) -> np.ndarray:
    import simplejpeg

    try:
        _, _, colour, _ = simplejpeg.decode_jpeg_header(data)
        if colour == "Gray":
            return simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
        return np.ascontiguousarray(simplejpeg.decode_jpeg(data, colorspace="RGB")[:, :, 0])
    except ValueError as reason:
        if "premature end" in str(reason).lower():
            raise UserError(f"{path} is truncated ({reason}); fetch the file again") from None
        raise UserError(f"{path} is a corrupt JPEG ({reason}); fetch the file again") from None


def _decode_png(path: Path, data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except Exception as reason:  # zlib, struct and Pillow errors of every kind
        raise UserError(f"{path} is a corrupt PNG ({reason}); fetch the file again") from None
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, 0])


def _decode_dicom(path: Path) -> Radiograph:
    header, start = dicom_header(path)
    maximum = 2**header.BitsStored - 1
    pixels = _stored_pixels(path, header, start)
    if pixels.max() > maximum:
        pixels = pixels & pixels.dtype.type(maximum)
    if header.PhotometricInterpretation == "MONOCHROME1":
        pixels = maximum - pixels
    return Radiograph(pixels, maximum)


def _is_native(header: Any) -> bool:
    """True for uncompressed little-endian pixels, which can be mapped from the file."""
    from pydicom import uid

    return header.file_meta.TransferSyntaxUID in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


def _stored_pixels(path: Path, header: Any, start: int | None) -> np.ndarray:
    """The stored values [Rows, Columns], those of a lossy stream within the range of the header.

    Native pixels are mapped from the file; compressed ones are decoded by the fastest decoder, else by pydicom.
    """
    from pydicom import uid

    shape = (int(header.Rows), int(header.Columns))
    if start is not None and _is_native(header):
        dtype: np.dtype = np.dtype(f"<u{header.BitsAllocated // 8}")
        return np.memmap(str(path), dtype, "r", start, shape).view(np.ndarray)
    dataset = open_dicom(path)
    if "PixelData" not in dataset:
        raise UserError(f"{path} is a DICOM without pixels (no PixelData)")
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:  # deflated: its length shows only here
        check_length(path, header, len(dataset.PixelData), len(dataset.PixelData))
    pixels = _decode_frame(path, syntax, single_frame(path, dataset, shape), shape) if syntax.is_encapsulated else None
    if pixels is None:
        try:
            pixels = dataset.pixel_array
        except Exception as reason:  # each of pydicom's plugins has errors of its own, some of several lines
            cause = str(reason).split("\n")[0]
            raise UserError(f"{path}: its pixels ({syntax.name}) cannot be decoded: {cause}") from None
    if pixels.shape != shape or pixels.dtype.kind != "u":
        raise UserError(
            f"{path}: its pixels ({syntax.name}) are {pixels.dtype} {pixels.shape}, not those of its header"
        )
    value_limit = 1 << header.BitsStored
    lossy_syntaxes = (uid.JPEG2000, uid.JPEGLSNearLossless, uid.JPEGExtended12Bit, uid.HTJ2K)
    if syntax in lossy_syntaxes and pixels.max() < value_limit * 1.1:
        pixels = np.minimum(pixels, value_limit - 1)  # a value rounded beyond white is white, not black
    elif syntax.is_encapsulated and syntax != uid.RLELossless and pixels.max() >= value_limit:
        raise UserError(f"{path}: its compressed pixels need more than its BitsStored {header.BitsStored}")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _decode_frame(path: Path, syntax: Any, frame: bytes, shape: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a JPEG of this transfer syntax; None for what these decoders cannot take."""
    import imagecodecs
    from pydicom import uid

    if syntax == uid.JPEGBaseline8Bit and frame.startswith(JPEG_START):
        return _decode_jpeg(path, frame)
    # Not imagecodecs' ljpeg and jpegsof3: they pass over restart intervals and point transforms.
    decoders: dict[str, Callable[[bytes], Any]] = {
        uid.JPEGLossless: imagecodecs.jpeg8_decode,
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_decode,
        uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
        uid.JPEGLSLossless: imagecodecs.jpegls_decode,
        uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    }
    with suppress(KeyError, imagecodecs.Jpeg8Error, imagecodecs.JpeglsError, ValueError):
        pixels = decoders[syntax](frame)
        if pixels.shape == shape and pixels.dtype.kind == "u":
            return pixels
    return None
