"""Headers of JPEGs and PNGs: the size of the image, and every fault that shows without its pixels.

A file is refused, by name, wherever its pixels would be misread: an orientation that only a viewer applies, indices
of a palette in place of grey values, scans that are lost, an absurd size.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lumen_hpc.errors import UserError

MAX_PIXELS = 1 << 26
"""67 megapixels, twice the largest detector; a corrupt header can ask for gigabytes."""

JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100
"""Scans of a JPEG: encoders write 1 to 20; a thumbnail in its header has scans of its own."""
MAX_CHUNKS, MAX_NOTES = 100_000, 100
"""Chunks of a PNG, of which encoders write one for every 8 KiB or more; texts and EXIF among them, each unpacked."""
FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of baseline, extended and progressive frames."""
OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Lossless, hierarchical and arithmetic ones."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers that no length follows."""
_START_OF_SCAN = b"\xff\xda"
ORIENTATION = 0x0112
"""EXIF's tag."""
_EXIF = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"[\w.-]+:Orientation\s*(?:=\s*[\"']|>)\s*([2-8])")
_PROFILE = b"raw profile type "
"""Keyword of a note that ImageMagick copies into a PNG as hexadecimal text; exif, xmp or APP1, which may be either."""
_MAX_NOTE_BYTES = 1 << 20
"""Bytes that are read of a text chunk of a PNG."""
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Of grey, of colour, and of both with transparency."""
_ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""(first row, step, first column, step) of the passes of an interlaced PNG."""


class Size(NamedTuple):
    """Size of an image [px]."""

    width: int
    height: int


def jpeg_header(path: Path, stream: BinaryIO) -> Size:
    """The size of a JPEG; reads all of its notes up to its pixels.

    Raises UserError for one that is not 8 bits, is turned by EXIF or XMP, or has no frame.
    """
    stream.seek(2)
    size: Size | None = None
    while True:
        marker = stream.read(2)
        while marker == b"\xff\xff":  # fill bytes
            marker = marker[1:] + stream.read(1)
        if size and marker == _START_OF_SCAN:
            return size
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            if size:
                raise UserError(f"{path} is truncated: no pixels follow its header; fetch the file again")
            raise UserError(f"{path} is a corrupt JPEG: it has no frame header; fetch the file again")
        if marker[1] in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(stream.read(2), "big") - 2
        if marker[1] in FRAMES and length >= 6:
            size = _jpeg_frame(path, stream.read(6))
            length -= 6
        if marker[1] in OTHER_FRAMES:
            raise UserError(f"{path} is a JPEG of an unusual kind (SOF{marker[1] - 0xC0}); 8-bit JPEGs are read")
        if length < 0:
            raise UserError(f"{path} is a corrupt JPEG: a segment of length {length + 2}; fetch the file again")
        if marker[1] == 0xE1:
            _check_orientation(path, stream.read(length))
        else:
            stream.seek(length, 1)


def check_jpeg(path: Path, data: bytes) -> None:
    """As `jpeg_header`, and raises UserError for a JPEG of more scans than an encoder writes, or that has lost some.

    Each scan costs a pass over the whole image. An empty one has 16 bytes and takes 2.5 ms at 2048 x 2048 px: a
    progressive file of 10 MB could take hours.
    """
    stream = io.BytesIO(data)
    jpeg_header(path, stream)
    # Before its own scans there may be those of a thumbnail, and notes of any bytes.
    start = stream.tell() - len(_START_OF_SCAN)
    if (scans := data.count(_START_OF_SCAN, start)) > MAX_SCANS:
        raise UserError(f"{path} is a JPEG of {scans} scans; an image has at most {MAX_SCANS}")
    if b"\xff\xc2" in data[:start]:
        _check_refined(path, data[start:].partition(b"\xff\xd9")[0])


def _check_refined(path: Path, data: bytes) -> None:
    """Raises UserError for a progressive JPEG whose last scans are missing: it decodes, but blurred.

    `data`: its scans. Each refines a band of coefficients of some components; at the end, each must be there to its
    last bit.
    """
    start = 0
    components: set[int] = set()
    complete: set[tuple[int, int]] = set()
    while start >= 0:
        count = data[start + 4] if start + 4 < len(data) else 0
        band_start = start + 5 + 2 * count
        component_ids, band = data[start + 5 : band_start : 2], data[band_start : band_start + 3]
        if len(band) < 3:
            break
        first, last, precision = band
        components.update(component_ids)
        if not precision & 15:
            complete.update((name, coefficient) for name in component_ids for coefficient in range(first, last + 1))
        start = data.find(_START_OF_SCAN, start + 2)
    if not components or len(complete) < 64 * len(components):
        raise UserError(f"{path} is truncated: scans of the progressive JPEG are lost; fetch the file again")


def _jpeg_frame(path: Path, frame: bytes) -> Size:
    if len(frame) < 6:
        raise UserError(f"{path} is truncated within its header; fetch the file again")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8 or components not in (1, 3):
        raise UserError(f"{path} has {components} components of {bits} bits; a JPEG of 8 bits with 1 or 3 is read")
    return valid_size(path, width, height)


def _check_orientation(path: Path, note: bytes) -> None:
    """Raises UserError for pixels that are stored turned or mirrored: no decoder turns them, and sides would swap.

    `note`: EXIF, XMP, or any other.
    """
    kind, orientation = "XMP", 1
    if note.startswith(_EXIF):
        kind, orientation = "EXIF", _exif_orientation(note)
    elif match := _XMP_ORIENTATION.search(note):
        orientation = int(match[1])
    if orientation in range(2, 9):
        raise UserError(
            f"{path} has {kind} orientation {orientation}: its pixels are stored turned or mirrored; store them upright"
        )


def _exif_orientation(note: bytes) -> int:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(note)
        orientation = exif.get(ORIENTATION, 1)
        # Some write the number as a byte or as text.
        return orientation[0] if isinstance(orientation, bytes) else int(orientation)
    except Exception:  # Pillow's own errors of every kind; a corrupt note is no orientation
        return 1


def _png_note(chunk_name: bytes, body: bytes) -> bytes:
    """EXIF or XMP out of a chunk of a PNG: of its own kind, or as text, as ImageMagick and Photoshop write it."""
    if chunk_name == b"eXIf":
        return _EXIF + body
    keyword, _, text = body.partition(b"\0")
    compressed = chunk_name == b"zTXt" or (chunk_name == b"iTXt" and text[:1] == b"\1")
    if chunk_name == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]
    elif chunk_name == b"zTXt":
        text = text[1:]
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MAX_NOTE_BYTES)
        except zlib.error:
            return b""
    if not keyword.lower().startswith(_PROFILE):
        return text
    try:
        return bytes.fromhex("".join(text.decode("ascii", "replace").split("\n")[3:]))
    except ValueError:
        return b""


def png_header(path: Path, data: bytes) -> Size:
    """The size of a PNG; checks that all of its chunks are complete.

    Raises UserError for a truncated or corrupt file, a palette, a depth other than 8 bits, several pictures, or an
    orientation by EXIF or XMP.
    """
    size, has_pixels, notes = Size(0, 0), False, 0
    for number, (name, body) in enumerate(_chunks(path, data)):
        if not number:
            size = _png_frame(path, name, body)
        elif name == b"IHDR":  # Pillow takes the last one, of any size
            raise UserError(f"{path} is a corrupt PNG: it has a second IHDR; fetch the file again")
        if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            notes += 1
            if notes > MAX_NOTES:
                raise UserError(f"{path} has more than {MAX_NOTES} notes, as no encoder writes: store it again")
            _check_orientation(path, _png_note(name, body))
        if name == b"acTL" and int.from_bytes(body[:4], "big") > 1:
            raise UserError(f"{path} holds {int.from_bytes(body[:4], 'big')} pictures; a radiograph is one")
        has_pixels |= name == b"IDAT"
    if not has_pixels:
        raise UserError(f"{path} is a PNG without pixels (no IDAT)")
    return size


def check_png_rows(path: Path, data: bytes) -> None:
    """Raises UserError for a PNG with fewer rows than its header says, which decoders fill with black, or with more.

    Of more, decoders take a part for the whole image.
    """
    chunks = list(_chunks(path, data))
    width, height, _, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    channels = _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 1, 0, 1),)
    sizes = ((len(range(row, height, down)), len(range(column, width, across))) for row, down, column, across in passes)
    expected = sum(rows * (1 + columns * channels) for rows, columns in sizes if columns)
    inflate, byte_count = zlib.decompressobj(), 0
    try:
        for _, body in (chunk for chunk in chunks if chunk[0] == b"IDAT"):
            while body and byte_count <= expected:
                byte_count += len(inflate.decompress(body, 1 << 20))
                body = inflate.unconsumed_tail
    except zlib.error as reason:
        raise UserError(f"{path} is a corrupt PNG ({reason}); fetch the file again") from None
    if byte_count < expected:
        raise UserError(f"{path} is truncated: it has {byte_count} of {expected} bytes of pixels; fetch the file again")
    if byte_count > expected:
        raise UserError(f"{path} has more pixels than its header says ({expected} bytes): a corrupt header")


def _chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG up to its end, by name; UserError for one that is not whole."""
    start, name, count = len(PNG_START), b"", 0
    while name != b"IEND":
        count += 1
        if count > MAX_CHUNKS:
            raise UserError(f"{path} has more than {MAX_CHUNKS} chunks, as no encoder writes: store it again")
        if start + 12 > len(data):
            raise UserError(f"{path} is truncated: a PNG ends with IEND; fetch the file again")
        length, name = struct.unpack(">I4s", data[start : start + 8])
        body, checksum = data[start + 8 : start + 8 + length], data[start + 8 + length : start + 12 + length]
        if len(checksum) < 4 or not name.isalpha():
            state = "corrupt" if not name.isalpha() else "truncated"
            raise UserError(f"{path} is {state}: a chunk of {length} bytes is not a whole one; fetch the file again")
        if zlib.crc32(name + body) != int.from_bytes(checksum, "big"):
            raise UserError(f"{path} is corrupt: the checksum of its {name.decode()} is wrong; fetch the file again")
        yield name, body
        start += 12 + length


def _png_frame(path: Path, name: bytes, body: bytes) -> Size:
    if name != b"IHDR" or len(body) != 13:
        raise UserError(f"{path} is a corrupt PNG: it does not begin with IHDR; fetch the file again")
    width, height, bits, colour = struct.unpack(">IIBB", body[:10])
    if colour == 3:
        raise UserError(f"{path} is a PNG with a palette: its values are indices, not grey levels; store it as grey")
    if bits != 8 or colour not in _PNG_CHANNELS:
        raise UserError(f"{path} is a PNG of {bits} bits; 8 bits are read, or a DICOM of any depth")
    return valid_size(path, width, height)


def valid_size(path: Path, width: int, height: int) -> Size:
    """The size [px]. Raises UserError for an empty image, and for more pixels than any radiograph has."""
    if not (width > 0 and height > 0):
        raise UserError(f"{path} has an empty image: {width} x {height} px")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path} has {width} x {height} px by its header, {width * height / 1e6:.0f} megapixels; "
            f"a radiograph has at most {MAX_PIXELS / 1e6:.0f}"
        )
    return Size(width, height)
