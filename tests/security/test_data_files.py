"""Attacks by the author of a dataset's files: archives and images that fill a memory, never end, or quote a patient."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumen_hpc.data.image_headers import png_header
from lumen_hpc.data.images import check, check_header, decode
from lumen_hpc.data.tables import CsvTable
from lumen_hpc.errors import UserError
from lumen_hpc.serving import image_files, media
from tests.security.test_serving_attacks import _chunk, _dicom, png

pytestmark = pytest.mark.usefixtures("patience")


# ------------------------------------------------------------------------------------------------------------- tables


def rows(path: Path, columns: tuple[str, ...] = ("a",)) -> int:
    def bad(*_: object) -> None:
        pass

    return sum(len(block.rows) for block in CsvTable(path, columns, bad).blocks())


def packed(content: bytes, times: int) -> bytes:
    """gzip of a text many times over, as one stream of members."""
    return gzip.compress(content) * times


@pytest.mark.parametrize("where", ["header", "row", "quoted", "uncompressed"])
def test_a_line_without_end_does_not_fill_the_memory(tmp_path, where):
    """100 kB of gzip hold 100 MB of one line; a hundredth of a disk holds all of a memory."""
    start = {"header": b"a", "row": b"a\n", "quoted": b'a\n"', "uncompressed": b"a\n"}[where]
    path = tmp_path / ("bomb.csv" if where == "uncompressed" else "bomb.csv.gz")
    if where == "uncompressed":
        with path.open("wb") as file:
            file.write(start)
            file.truncate(1 << 38)
    else:
        path.write_bytes(gzip.compress(start) + packed(b"x" * (1 << 20), 100))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a line of more than 256 KiB"):
            rows(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_long_lines_that_end_are_rows(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"".join(b"x" * 60_000 + b",y\n" for _ in range(40))))
    assert rows(tmp_path / "a.csv.gz") == 40


def test_empty_members_of_gzip_are_nothing(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a\n1\n") + packed(b"", 20_000) + gzip.compress(b"2\n"))
    assert rows(tmp_path / "a.csv.gz") == 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_table_that_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "mimic.csv.gz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"mimic\.csv\.gz: (a pipe|cannot be read)"):
        rows(path)


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("read", [decode, check, check_header, image_files.image_bytes])
def test_an_image_that_is_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(UserError, match=r"image\.jpg: a pipe"):
        read(*(("image",) if read is image_files.image_bytes else ()), tmp_path / "image.jpg")


def scans(count: int, side: int = 256) -> bytes:
    """A progressive JPEG whose last scan is repeated: each one is a pass over the whole image."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path):
    """4,096 x 4,096 px in 100 kB take most of a minute, in every epoch; the largest image in 10 MB, seven hours."""
    (tmp_path / "image.jpg").write_bytes(scans(5000))
    for read in (decode, check, lambda path: media.decode_picture(path.read_bytes())):
        with pytest.raises(UserError, match=r"a JPEG of 50\d\d scans; an image has at most 100"):
            read(tmp_path / "image.jpg")
    (tmp_path / "image.jpg").write_bytes(scans(1))
    assert decode(tmp_path / "image.jpg").pixels.shape == (256, 256)
    assert media.decode_picture(scans(1)).size == (256, 256)


@pytest.mark.parametrize(("name", "count", "what"), [(b"teSt", 100_001, "chunks"), (b"zTXt", 101, "notes")])
def test_a_png_of_chunks_without_end_is_refused_early(name, count, what):
    """A file of 128 MiB has room for eleven million, or for notes that unpack to 140 GB: minutes of one image."""
    body = b"x\0\0" + zlib.compress(bytes(100)) if name == b"zTXt" else b""
    chunk = _chunk(name, body)
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    data = image.getvalue()
    with pytest.raises(UserError, match=f"more than [0-9]+ {what}"):
        png_header(Path("image.png"), data[:33] + chunk * count + data[33:])
    assert png_header(Path("image.png"), data[:33] + chunk * 50 + data[33:]) == (8, 8)


def test_a_text_chunk_of_a_png_does_not_unpack_without_end():
    """zTXt and iTXt are zlib streams of their own."""
    import zlib

    whole = png(np.zeros((8, 8), np.uint8))
    bomb = zlib.compress(bytes(200 << 20), 9)
    for chunk in (
        _chunk(b"zTXt", b"Comment\0\0" + bomb),
        _chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        _chunk(b"iCCP", b"name\0\0" + bomb),
    ):
        data = whole[:33] + chunk + whole[33:]
        tracemalloc.start()
        try:
            media.decode_picture(data)
            media.acquisition_day(data)
        except UserError:
            pass
        finally:
            assert tracemalloc.get_traced_memory()[1] < 40 << 20
            tracemalloc.stop()


def test_a_png_of_two_sizes_is_refused(tmp_path):
    """The first one is looked at, and Pillow decodes by the last: 170 megapixels in 200 kB."""
    whole = png(np.zeros((8, 8), np.uint8))
    second = _chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0))
    (tmp_path / "image.png").write_bytes(whole[:33] + second + whole[33:])
    for read in (decode, check, check_header, lambda path: media.decode_picture(path.read_bytes())):
        with pytest.raises(UserError, match="a second IHDR"):
            read(tmp_path / "image.png")


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM"])
def test_an_image_with_a_tebibyte_of_holes_is_not_read(tmp_path, start):
    with (tmp_path / "image.jpg").open("wb") as file:
        file.write(start)
        file.truncate(1 << 40)
    for read in (decode, check, check_header):
        with pytest.raises(UserError, match=r"has 1048576 MiB; the file of a radiograph has at most 512"):
            read(tmp_path / "image.jpg")
    with pytest.raises(UserError, match=r"larger than 128 MiB"):
        image_files.image_bytes("image", tmp_path / "image.jpg")


def test_a_date_of_any_bytes_is_no_date():
    """EXIF and DICOM dates are read for the page: the library's error would quote the header in the server's log."""
    seeds = random.Random(0)
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    exif = image.getexif()
    exif[0x0132] = "2150:08:10 23:55:25"
    exif.get_ifd(0x8769)[0x9003] = "2150:08:10 23:55:25"
    for kind in ("JPEG", "PNG"):
        out = io.BytesIO()
        image.save(out, kind, exif=exif)
        data = out.getvalue()
        assert media.acquisition_day(data) == "2150-08-10"
        place = data.index(b"Exif\0\0") if kind == "JPEG" else data.index(b"eXIf")
        for _ in range(300):
            broken = bytearray(data)
            for _ in range(seeds.randrange(1, 12)):
                broken[place + seeds.randrange(6, 140) % (len(data) - place)] = seeds.randrange(256)
            media.acquisition_day(bytes(broken))


@pytest.mark.parametrize(
    "value", ["21500810", "MARKER^NAME", "x" * 5000, "\x1b]0;x\x07", "2150\\2151", "99999999", "", "=cmd()", "../../x"]
)
def test_a_date_of_a_dicom_is_one_or_nothing(value):
    import pydicom

    dataset, out = _dicom()
    for tag in (0x00080020, 0x00080022):
        dataset.add(pydicom.DataElement(tag, "LO", value))
    dataset.save_as(out)
    assert media.acquisition_day(out.getvalue()) == ("2150-08-10" if value == "21500810" else None)
