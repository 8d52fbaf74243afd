"""Images as other people's tools write them: `check` and `decode` agree, and what is read is what was stored."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lumen_hpc.data import dicom_headers, images
from lumen_hpc.errors import UserError
from lumen_hpc.serving import media
from tests.data.test_images import dicom, jpeg, radiograph

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")
uid = pydicom.uid
every_look = pytest.mark.parametrize("look", [images.check, images.check_header, images.decode])
every_read = pytest.mark.parametrize("look", [images.check, images.decode])
read_or_served = pytest.mark.parametrize(
    "look", [images.check, images.decode, lambda path: media.decode_picture(path.read_bytes(), str(path))]
)


def grey(bits=12, shape=(60, 50)):
    return radiograph(shape, np.uint8 if bits == 8 else np.uint16, 2**bits - 1)


def refused(look, path, message):
    with pytest.raises(UserError, match=message) as caught:
        look(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


NATIVE = ("ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian")
STREAMS = {
    "JPEGLossless": lambda pixels, bits: imagecodecs.ljpeg_encode(pixels, bitspersample=bits),
    "JPEGLosslessSV1": lambda pixels, bits: imagecodecs.ljpeg_encode(pixels, bitspersample=bits),
    "JPEGLSLossless": lambda pixels, bits: imagecodecs.jpegls_encode(pixels),
    "JPEG2000Lossless": lambda pixels, bits: imagecodecs.jpeg2k_encode(
        pixels, codecformat="j2k", reversible=True, bitspersample=bits
    ),
    "JPEGBaseline8Bit": lambda pixels, bits: jpeg(pixels),
    "JPEGExtended12Bit": lambda pixels, bits: imagecodecs.jpeg_encode(pixels, level=100, bitspersample=bits),
}
LOSSLESS = (*NATIVE, "RLELossless", "JPEGLossless", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless")


def stored_as(path, name, pixels, bits, **fields):
    """A DICOM of this transfer syntax."""
    syntax = getattr(uid, name)
    if name in NATIVE:
        return dicom(path, pixels, bits=bits, syntax=syntax, **fields)
    return dicom(
        path, pixels, bits=bits, compress=(syntax, STREAMS[name](pixels, bits)) if name in STREAMS else syntax, **fields
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_transfer_syntax_and_depth_gives_what_was_stored(tmp_path, syntax, bits, photometric):
    pixels = grey(bits)
    path = stored_as(tmp_path / "image.dcm", syntax, pixels, bits, photometric=photometric)
    image = images.decode(path)
    assert image.pixels.dtype in (np.dtype("uint8"), np.dtype("uint16")) and image.maximum == 2**bits - 1
    assert np.array_equal(image.pixels, image.maximum - pixels if photometric == "MONOCHROME1" else pixels)
    assert images.check(path)[:2] == images.check_header(path)[:2] == ((50, 60), "")


def lossless_jpeg(pixels, bits, predictor=1, shift=0, restart=0):
    """A lossless JPEG by the standard's annex H: its values without `shift` bits, restarting after `restart` rows."""
    codes, parts, stored = [], [], pixels.astype(int) >> shift
    for row, column in np.ndindex(stored.shape):
        first = row == 0 or (restart and row % restart == 0)
        if first and column == 0:
            if row:
                parts.append("".join(codes))
                codes = []
            guess = 1 << (bits - shift - 1)
        elif first or column == 0:
            guess = stored[row, column - 1] if column else stored[row - 1, column]
        else:
            left, above, corner = stored[row, column - 1], stored[row - 1, column], stored[row - 1, column - 1]
            guess = {1: left, 4: left + above - corner, 7: (left + above) >> 1}[predictor]
        difference = (int(stored[row, column] - guess) + 32767) % 65536 - 32767
        size = abs(difference).bit_length()
        codes.append(f"{size:05b}")  # a table whose codes are the sizes themselves
        if 0 < size < 16:
            codes.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    scan = b""
    for number, part in enumerate([*parts, "".join(codes)]):
        part += "1" * (-len(part) % 8)
        packed = bytes(int(part[at : at + 8], 2) for at in range(0, len(part), 8)).replace(b"\xff", b"\xff\0")
        scan += bytes([0xFF, 0xD0 + (number - 1) % 8]) * (number > 0) + packed
    segments = {
        0xC3: struct.pack(">BHHB3B", bits, *stored.shape, 1, 1, 0x11, 0),
        0xC4: bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]),
        0xDD: struct.pack(">H", restart * stored.shape[1]),
        0xDA: bytes([1, 1, 0, predictor, 0, shift]),
    }
    head = b"".join(
        struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body
        for kind, body in segments.items()
        if kind != 0xDD or restart
    )
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    ("predictor", "shift", "restart"), [(1, 0, 0), (4, 0, 0), (7, 0, 0), (1, 0, 1), (7, 0, 9), (1, 2, 0), (4, 3, 20)]
)
def test_a_lossless_jpeg_of_any_form_gives_what_was_stored(tmp_path, bits, predictor, shift, restart):
    pixels = grey(bits) >> shift << shift
    frame = lossless_jpeg(pixels, bits, predictor, shift, restart)
    path = dicom(tmp_path / "image.dcm", pixels, bits=bits, compress=(uid.JPEGLossless, frame))
    assert np.array_equal(images.decode(path).pixels, pixels)


@pytest.mark.parametrize("syntax", ["JPEGLosslessSV1", "JPEGLSLossless", "JPEGBaseline8Bit", "JPEGExtended12Bit"])
def test_no_jpeg_needs_a_package_that_developers_alone_install(tmp_path, monkeypatch, syntax):
    bits = 8 if "8Bit" in syntax else 12
    path = stored_as(tmp_path / "image.dcm", syntax, grey(bits), bits)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: pytest.fail("pydicom decoded it")))
    assert (
        np.abs(images.decode(path).pixels.astype(int) - grey(bits)).max() <= ("Lossless" not in syntax) * 2**bits / 10
    )


COMPRESSED = (*LOSSLESS[3:], "JPEGBaseline8Bit")


@pytest.mark.parametrize(
    ("syntax", "filled"),
    [(syntax, False) for syntax in (*NATIVE[:3], *COMPRESSED)] + [(syntax, True) for syntax in COMPRESSED],
)
@pytest.mark.parametrize("kept", [0.6, 0.9])
@every_read
def test_a_file_that_breaks_off_is_refused_in_every_transfer_syntax(tmp_path, look, syntax, filled, kept):
    bits = 8 if "8Bit" in syntax else 12
    path = stored_as(tmp_path / "image.dcm", syntax, grey(bits, (200, 180)), bits)
    data = path.read_bytes()
    start = data[: int(len(data) * kept)]
    path.write_bytes(start + bytes(len(data) - len(start)) * filled)
    refused(look, path, "truncated|corrupt|cannot be|not those of its header|without pixels")


@pytest.mark.parametrize("syntax", [name for name in STREAMS if name != "JPEG2000Lossless"])
@pytest.mark.parametrize("tail", [b"", bytes(300)])
@every_read
def test_a_frame_that_breaks_off_in_a_whole_file_is_refused(tmp_path, look, syntax, tail):
    bits = 8 if "8Bit" in syntax else 12
    pixels = grey(bits, (200, 180))
    frame = STREAMS[syntax](pixels, bits)[:-300] + tail
    path = dicom(tmp_path / "image.dcm", pixels, bits=bits, compress=(getattr(uid, syntax), frame))
    refused(look, path, "is truncated: its compressed pixels have no end")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"PixelData": grey().tobytes() * 2}, "has 12000 bytes of pixels where its header says 6000"),
        ({"PixelData": grey().tobytes() + b"\1" * 100}, "has 6100 bytes of pixels where its header says 6000"),
        ({"Rows": 50}, "has 6000 bytes of pixels where its header says 5000"),
        ({"PixelData": grey().tobytes()[:4000], "DataSetTrailingPadding": b"\1" * 9000}, "has 4000 of 6000 bytes"),
        ({"BitsAllocated": 12}, "BitsAllocated 12"),
        ({"BitsAllocated": 32}, "BitsAllocated 32"),
        ({"PhotometricInterpretation": "monochrome2"}, "PhotometricInterpretation .none that is known"),
        ({"PhotometricInterpretation": ["MONOCHROME2", "MONOCHROME1"]}, "PhotometricInterpretation"),
        ({"Rows": [60, 60]}, "corrupt DICOM"),
    ],
)
@every_look
@pytest.mark.filterwarnings("ignore")
def test_uncompressed_pixels_that_are_not_what_the_header_says_are_refused(tmp_path, look, odd, message):
    refused(look, dicom(tmp_path / "image.dcm", grey(), **odd), message)


@pytest.mark.parametrize("syntax", NATIVE)
@every_look
def test_a_dicom_without_pixels_is_refused(tmp_path, look, syntax):
    path = stored_as(tmp_path / "image.dcm", syntax, grey(), 12, PixelData=None)
    refused(look, path, "is a DICOM without pixels")


@pytest.mark.parametrize("padding", [0, 2, 60])
@pytest.mark.parametrize("fields", [{}, {"NumberOfFrames": "0"}, {"SamplesPerPixel": None}, {"PlanarConfiguration": 1}])
def test_padding_after_the_pixels_and_empty_counts_are_no_fault(tmp_path, padding, fields):
    path = dicom(tmp_path / "image.dcm", grey(), PixelData=grey().tobytes() + bytes(padding), **fields)
    assert np.array_equal(images.decode(path).pixels, grey()) and images.check(path)[:2] == ((50, 60), "")


@every_look
def test_compressed_pixels_that_are_called_uncompressed_are_refused(tmp_path, look):
    path = stored_as(tmp_path / "image.dcm", "JPEG2000Lossless", grey(), 12)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.1\0\0\0"))
    refused(look, path, "calls its pixels uncompressed")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.4.94"])
@every_look
def test_a_transfer_syntax_that_is_not_read_is_named(tmp_path, look, syntax):
    path = dicom(tmp_path / "image.dcm", grey(), compress=(uid.UID(syntax), bytes(1000)))
    refused(look, path, f"transfer syntax that is not read: {uid.UID(syntax).name[:20]}")


def test_a_codestream_in_its_container_is_read_and_its_mark_elsewhere_is_none(tmp_path):
    stream = imagecodecs.jpeg2k_encode(grey(), codecformat="jp2", reversible=True, bitspersample=12)
    path = dicom(tmp_path / "image.dcm", grey(), compress=(uid.JPEG2000Lossless, stream))
    assert np.array_equal(images.decode(path).pixels, grey())
    marked = np.tile(np.frombuffer(b"\xff\x4f\xff\x51\x03", np.uint8), 600).reshape(60, 50)
    path = dicom(tmp_path / "image.dcm", marked, bits=8, compress=uid.RLELossless)
    assert np.array_equal(images.decode(path).pixels, marked)


@every_read
def test_two_frames_in_a_image_of_one_are_refused(tmp_path, look):
    path = stored_as(tmp_path / "image.dcm", "JPEGLosslessSV1", grey(), 12)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([STREAMS["JPEGLosslessSV1"](grey(), 12)] * 2)
    dataset.save_as(path)
    refused(look, path, "holds 2 frames")


@pytest.mark.parametrize("syntax", ["JPEGBaseline8Bit", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless", "RLE"])
@every_read
def test_two_frames_without_a_table_of_them_are_refused(tmp_path, look, syntax):
    bits = 8 if "8Bit" in syntax else 12
    name = "RLELossless" if syntax == "RLE" else syntax
    path = stored_as(tmp_path / "image.dcm", name, grey(bits), bits)
    dataset = pydicom.dcmread(path)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame] * 2, has_bot=False)
    dataset.save_as(path)
    refused(look, path, "holds 2 frames")


@pytest.mark.parametrize("syntax", ["DeflatedExplicitVRLittleEndian", "ExplicitVRBigEndian", "RLELossless"])
@every_read
def test_more_rows_than_the_header_says_are_refused(tmp_path, look, syntax):
    path = stored_as(tmp_path / "image.dcm", syntax, grey(), 12)
    dataset = pydicom.dcmread(path)
    dataset.Rows = 50
    dataset.save_as(path)
    refused(look, path, "where its header says")


@pytest.mark.parametrize("table", [False, True])
def test_a_frame_in_several_fragments_is_one(tmp_path, table):
    path = stored_as(tmp_path / "image.dcm", "JPEGLosslessSV1", grey(), 12)
    dataset, frame = pydicom.dcmread(path), STREAMS["JPEGLosslessSV1"](grey(), 12)
    dataset.PixelData = pydicom.encaps.encapsulate([frame], fragments_per_frame=3, has_bot=table)
    dataset.save_as(path)
    assert np.array_equal(images.decode(path).pixels, grey()) and images.check(path)[:2] == ((50, 60), "")


@every_read
def test_signed_values_and_colours_in_the_stream_of_a_grey_image_are_refused(tmp_path, look):
    signed = STREAMS["JPEG2000Lossless"]((grey().astype(int) - 2048).astype(np.int16), 12)
    path = dicom(tmp_path / "image.dcm", grey(), compress=(uid.JPEG2000Lossless, signed))
    refused(look, path, "signed pixels in its JPEG 2000 stream")
    colours = jpeg(np.stack([grey(8)] * 3, -1))
    path = dicom(tmp_path / "image.dcm", grey(8), bits=8, compress=(uid.JPEGBaseline8Bit, colours))
    refused(look, path, "3 values a pixel")


@every_read
def test_lossy_values_far_beyond_the_range_of_the_header_are_refused(tmp_path, look):
    stream = imagecodecs.jpeg2k_encode(grey(16), level=60, codecformat="j2k")
    path = dicom(tmp_path / "image.dcm", grey(), compress=(uid.JPEG2000, stream))
    refused(look, path, "need more than its BitsStored 12")


def test_a_lossy_value_beyond_white_is_white(tmp_path):
    pixels = np.full((60, 50), 4095, np.uint16)
    pixels[:30] = grey(12, (30, 50))
    stream = imagecodecs.jpegls_encode(pixels, level=3)
    assert imagecodecs.jpegls_decode(stream).max() > 4095
    path = dicom(tmp_path / "image.dcm", pixels, compress=(uid.JPEGLSNearLossless, stream))
    assert np.abs(images.decode(path).pixels.astype(int) - pixels).max() <= 3
    assert images.check(path).warning == ""


def grey_levels(falling, entries=4096, bits=16):
    """A table of grey levels, flat at both ends, as in VOILUTSequence; 65,536 entries are written as 0."""
    lowest, highest, kind = (0x00FF, 0x1100, np.uint16) if bits == 16 else (0, 255, np.uint8)
    values = np.linspace(lowest - 1000, highest + 1000, entries).clip(lowest, highest).astype(kind)
    table = pydicom.Dataset()
    table.LUTDescriptor = [entries % (1 << 16), 0, bits]
    table.add_new("LUTData", "OW", (values[::-1] if falling else values).tobytes())
    return pydicom.Sequence([table])


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"VOILUTSequence": grey_levels(False)}, ""),
        ({"VOILUTSequence": grey_levels(True)}, dicom_headers.INVERTED),
        ({"VOILUTSequence": grey_levels(False, 1 << 16)}, ""),
        ({"VOILUTSequence": grey_levels(True, 1 << 16)}, dicom_headers.INVERTED),
        ({"ModalityLUTSequence": grey_levels(False, 256, 8)}, ""),
        ({"ModalityLUTSequence": grey_levels(True, 256, 8)}, dicom_headers.INVERTED),
        ({"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 100, "WindowWidth": 50}, ""),
        ({"PixelPaddingValue": 0}, ""),
        ({"PixelAspectRatio": [1, 1], "ImagerPixelSpacing": [0.143, 0.1431]}, ""),
        ({"PixelAspectRatio": [2, 1]}, dicom_headers.STRETCHED),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, dicom_headers.STRETCHED),
        ({"PixelSpacing": ""}, ""),
    ],
)
@pytest.mark.parametrize("look", [images.check, images.check_header])
def test_what_a_viewer_would_do_to_the_pixels_changes_none_and_is_told_where_it_matters(
    tmp_path, look, fields, warning
):
    path = dicom(tmp_path / "image.dcm", grey(), **fields)
    assert look(path)[:2] == ((50, 60), warning)
    assert np.array_equal(images.decode(path).pixels, grey())


@pytest.mark.parametrize("value", [0, 2000])
@pytest.mark.parametrize("ending", ["dcm", "jpg", "png"])
def test_a_image_of_one_grey_level_is_a_warning(tmp_path, ending, value):
    path = tmp_path / f"image.{ending}"
    if ending == "dcm":
        dicom(path, np.full((300, 200), value, np.uint16))
    else:
        Image.new("L", (200, 300), value % 256).save(path)
    black = images.FAINT if ending == "dcm" and not value else images.BLANK
    assert images.check(path)[:2] == ((200, 300), black)
    assert (images.decode(path).pixels == images.decode(path).pixels[0, 0]).all()


AFTER_THE_PIXELS = {
    "a copy in text mode": lambda data: data.replace(b"\n", b"\r\n"),
    "another file": lambda data: data + bytes(128) + b"DICM" + bytes(40),
    "text": lambda data: data + b"\r\n250 transfer complete",
}


@pytest.mark.parametrize("how", AFTER_THE_PIXELS)
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"])
@every_look
def test_what_is_no_part_of_a_dicom_after_its_pixels_is_refused(tmp_path, look, syntax, how):
    pixels = grey()
    pixels[3, :20] = 0x0A0A & 4095
    path = stored_as(tmp_path / "image.dcm", syntax, pixels, 12)
    whole = path.read_bytes()
    head = whole.index(pixels.astype(">u2" if "Big" in syntax else "<u2").tobytes()[:400])
    path.write_bytes(whole[:head] + AFTER_THE_PIXELS[how](whole[head:]))
    refused(look, path, "what follows its pixels is no part of a DICOM")


TRAILING_PADDING = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 4) + bytes(4)


@pytest.mark.parametrize("more", [b"", bytes(2), bytes(512), TRAILING_PADDING])
def test_padding_after_the_pixels_is_a_part_of_a_dicom(tmp_path, more):
    path = stored_as(tmp_path / "image.dcm", "ExplicitVRLittleEndian", grey(), 12)
    path.write_bytes(path.read_bytes() + more)
    assert np.array_equal(images.decode(path).pixels, grey())


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLosslessSV1", "JPEGLSLossless"])
@every_read
def test_a_stream_of_more_bits_than_the_header_says_is_refused(tmp_path, look, syntax):
    path = dicom(tmp_path / "image.dcm", grey(), compress=(getattr(uid, syntax), STREAMS[syntax](grey(16), 16)))
    refused(look, path, "its compressed pixels need more than its BitsStored 12")


@pytest.mark.parametrize(("modality", "warning"), [
    ("CR", ""), ("DX", ""), ("", ""), ("CT", dicom_headers.OTHER_MODALITY), ("PR", dicom_headers.OTHER_MODALITY),
    ("US", dicom_headers.OTHER_MODALITY), ("MG", dicom_headers.OTHER_MODALITY),
])  # fmt: skip
@pytest.mark.parametrize("look", [images.check, images.check_header])
def test_a_file_of_another_modality_is_a_warning(tmp_path, look, modality, warning):
    assert look(dicom(tmp_path / "image.dcm", grey(), Modality=modality)).warning == warning


# JPEG and PNG -------------------------------------------------------------------------------------------------------

XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation%b/></x:xmpmeta>"


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def exif(byte_order, kind, orientation):
    """An EXIF note with its orientation as SHORT (3) or LONG (4), in either byte order."""
    sign = "<" if byte_order == b"II" else ">"
    value = struct.pack(f"{sign}H2x" if kind == 3 else f"{sign}I", orientation)
    return b"Exif\0\0" + byte_order + struct.pack(f"{sign}HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value + bytes(4)


TURNED_JPEG = {
    "XMP": lambda data: data[:2] + segment(0xE1, XMP % b'="6"') + data[2:],
    "XMP, an element": lambda data: data[:2] + segment(0xE1, XMP % b">6<") + data[2:],
    "EXIF after the frame": lambda data: data.replace(b"\xff\xda", segment(0xE1, exif(b"II", 3, 6)) + b"\xff\xda", 1),
    "a second EXIF": lambda data: (
        data[:2] + segment(0xE1, exif(b"II", 3, 1)) + segment(0xE1, exif(b"II", 3, 8)) + data[2:]
    ),
    "big-endian EXIF": lambda data: data[:2] + segment(0xE1, exif(b"MM", 3, 6)) + data[2:],
    "a long in EXIF": lambda data: data[:2] + segment(0xE1, exif(b"II", 4, 6)) + data[2:],
}


def exif_of(kind, value):
    """An EXIF note whose orientation is written as BYTE (1), ASCII (2) or RATIONAL (5), as few programs do."""
    entry = struct.pack("<HHI", 0x0112, kind, 2 if kind == 2 else 1)
    more = struct.pack("<II", value, 1) if kind == 5 else b""
    inline = struct.pack("<I", 26) if kind == 5 else (b"%d" % value if kind == 2 else bytes([value])).ljust(4, b"\0")
    return b"Exif\0\0II" + struct.pack("<HIH", 42, 8, 1) + entry + inline + bytes(4) + more


TURNED_JPEG |= {
    "a byte in EXIF": lambda data: data[:2] + segment(0xE1, exif_of(1, 6)) + data[2:],
    "text in EXIF": lambda data: data[:2] + segment(0xE1, exif_of(2, 6)) + data[2:],
    "a fraction in EXIF": lambda data: data[:2] + segment(0xE1, exif_of(5, 6)) + data[2:],
    "XMP with another prefix": lambda data: (
        data[:2] + segment(0xE1, (XMP % b'="6"').replace(b"tiff:", b"ns1:")) + data[2:]
    ),
}


@pytest.mark.parametrize("how", TURNED_JPEG)
@every_look
def test_a_jpeg_that_any_note_turns_is_refused(tmp_path, look, how):
    path = tmp_path / "image.jpg"
    path.write_bytes(TURNED_JPEG[how](jpeg(grey(8))))
    refused(look, path, "orientation [68]: its pixels are stored turned or mirrored")


@pytest.mark.parametrize(
    "note", [exif(b"II", 3, 0), exif(b"II", 3, 1), exif(b"MM", 3, 9), XMP % b'="1"', b"Exif\0\0??"]
)
def test_a_note_that_turns_nothing_is_no_fault(tmp_path, note):
    path, data = tmp_path / "image.jpg", jpeg(grey(8))
    path.write_bytes(data[:2] + segment(0xE1, note) + data[2:])
    assert images.check(path)[:2] == images.check_header(path)[:2] == ((50, 60), "")


def text_chunks(how):
    """Text of a PNG that turns it, as Photoshop and ImageMagick write it."""
    info, note = PngImagePlugin.PngInfo(), XMP % b'="6"' if how.endswith("xmp") else exif(b"II", 3, 6)
    if how.startswith("profile"):
        lines = "\n".join(note.hex()[at : at + 72] for at in range(0, len(note.hex()), 72))
        kind = how.split()[1]
        info.add_text(f"Raw profile type {kind}", f"\n{kind}\n{len(note):8}\n{lines}\n", zip=kind != "APP1")
    else:
        info.add_itxt("XML:com.adobe.xmp", (XMP.split(b"\0")[1] % b'="6"').decode(), zip=how == "packed XMP")
    return info


@pytest.mark.parametrize("how", ["profile exif", "profile APP1", "profile xmp", "XMP", "packed XMP"])
@every_look
def test_a_png_that_any_note_turns_is_refused(tmp_path, look, how):
    Image.fromarray(grey(8)).save(tmp_path / "image.png", pnginfo=text_chunks(how))
    refused(look, tmp_path / "image.png", "orientation 6: its pixels are stored turned or mirrored")


@pytest.mark.parametrize("scans", [1, -2])
@read_or_served
def test_a_progressive_jpeg_without_its_last_scans_is_refused(tmp_path, look, scans):
    data = jpeg(grey(8, (300, 280)), progressive=True)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    path = tmp_path / "image.jpg"
    path.write_bytes(data[: starts[scans]] + b"\xff\xd9")
    refused(look, path, "scans of the progressive JPEG are lost")
    thumbnail = segment(0xE1, b"Exif\0\0" + jpeg(grey(8), progressive=True))
    path.write_bytes(data[:2] + thumbnail + data[2 : starts[scans]] + b"\xff\xd9" + data)
    refused(look, path, "scans of the progressive JPEG are lost")
    path.write_bytes(data)
    look(path)


@pytest.mark.parametrize("progressive", [False, True])
@read_or_served
def test_markers_within_a_note_are_no_scans(tmp_path, look, progressive):
    data = jpeg(grey(8), progressive=progressive)
    note = segment(0xE2, b"ICC_PROFILE\0\1\1\xff\xc2" + b"\xff\xda\0\x08" * 200)
    (tmp_path / "image.jpg").write_bytes(data[:2] + note + data[2:])
    look(tmp_path / "image.jpg")


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(pixels, rows, interlaced=0):
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def interlaced(pixels):
    """The rows of the seven passes of an interlaced PNG, unfiltered."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = [pixels[row::down, column::across] for row, down, column, across in passes]
    return b"".join(b"\0" + row.tobytes() for part in parts if part.shape[1] for row in part)


@pytest.mark.parametrize("shape", [(60, 50), (3, 1), (1, 1), (9, 2)])
def test_an_interlaced_png_is_read(tmp_path, shape):
    pixels, path = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape), tmp_path / "image.png"
    path.write_bytes(png_of(pixels, interlaced(pixels), 1))
    assert np.array_equal(images.decode(path).pixels, pixels)


@pytest.mark.parametrize("lost", [1, 51, 1530])
@pytest.mark.parametrize("woven", [False, True])
@read_or_served
def test_a_png_with_fewer_rows_than_its_header_says_is_refused(tmp_path, look, lost, woven):
    rows = interlaced(grey(8)) if woven else b"".join(b"\0" + row.tobytes() for row in grey(8))
    (tmp_path / "image.png").write_bytes(png_of(grey(8), rows[:-lost], int(woven)))
    refused(look, tmp_path / "image.png", f"is truncated: it has {len(rows) - lost} of {len(rows)} bytes of pixels")


@pytest.mark.parametrize("woven", [False, True])
@read_or_served
def test_a_png_with_more_rows_than_its_header_says_is_refused(tmp_path, look, woven):
    rows = interlaced(grey(8)) if woven else b"".join(b"\0" + row.tobytes() for row in grey(8))
    (tmp_path / "image.png").write_bytes(png_of(grey(8), rows + rows[:51], int(woven)))
    refused(look, tmp_path / "image.png", "has more pixels than its header says")


@every_look
def test_a_png_of_several_pictures_is_refused(tmp_path, look):
    one, other = Image.fromarray(grey(8)), Image.fromarray(255 - grey(8))
    one.save(tmp_path / "image.png", save_all=True, append_images=[other])
    refused(look, tmp_path / "image.png", "holds 2 pictures")


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_a_png_of_several_channels_gives_its_first(tmp_path, mode):
    Image.fromarray(grey(8)).convert(mode).save(tmp_path / "image.png")
    assert np.array_equal(images.decode(tmp_path / "image.png").pixels, grey(8))
    assert images.check(tmp_path / "image.png")[:2] == ((50, 60), "")


def _of_channels(path, kind, channels):
    Image.merge("RGB", [Image.fromarray(channel) for channel in channels]).save(path, kind)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_colours_is_a_warning_and_one_of_greys_is_none(tmp_path, kind):
    pixels = grey(8)
    coloured = _of_channels(tmp_path / "a.jpg", kind, [pixels, pixels[::-1], pixels])
    assert images.check(coloured).warning == images.COLOURED
    assert images.check(_of_channels(tmp_path / "b.jpg", kind, [pixels] * 3)).warning == ""


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("transparent", [True, False])
def test_transparent_pixels_are_a_warning(tmp_path, mode, transparent):
    image = Image.fromarray(grey(8)).convert(mode)
    image.putalpha(0 if transparent else 255)
    image.save(tmp_path / "image.png")
    assert images.check(tmp_path / "image.png").warning == (images.TRANSPARENT if transparent else "")


def test_a_jpeg_of_several_pictures_is_a_warning(tmp_path):
    first, second = (Image.fromarray(grey(8)[::step]) for step in (1, 2))
    first.save(tmp_path / "image.jpg", "MPO", save_all=True, append_images=[second])
    assert images.check(tmp_path / "image.jpg")[:2] == ((50, 60), images.SEVERAL)
    assert images.decode(tmp_path / "image.jpg").pixels.shape == (60, 50)


@pytest.mark.parametrize("kind", ["12 bits", "lossless", "JPEG-LS", "JPEG 2000", "WEBP", "height 0", "bytes before"])
@every_look
def test_a_jpg_that_is_another_kind_is_refused(tmp_path, look, kind):
    pixels, webp = grey(8), io.BytesIO()
    Image.fromarray(pixels).save(webp, "WEBP")
    data = {
        "12 bits": lambda: imagecodecs.jpeg_encode(grey(12), level=95, bitspersample=12),
        "lossless": lambda: imagecodecs.ljpeg_encode(pixels, bitspersample=8),
        "JPEG-LS": lambda: imagecodecs.jpegls_encode(pixels),
        "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"),
        "WEBP": webp.getvalue,
        "height 0": lambda: jpeg(pixels).replace(struct.pack(">BHH", 8, 60, 50), struct.pack(">BHH", 8, 0, 50)),
        "bytes before": lambda: b"\n" + jpeg(pixels),
    }[kind]()
    (tmp_path / "image.jpg").write_bytes(data)
    refused(look, tmp_path / "image.jpg", "12 bits|unusual kind|no frame header|neither JPEG, PNG|empty image")


def test_a_jpeg_that_breaks_off_anywhere_in_its_header_is_refused(tmp_path):
    path = tmp_path / "image.jpg"
    Image.linear_gradient("L").save(path)
    data = path.read_bytes()
    for kept in range(2, data.index(b"\xff\xda")):
        path.write_bytes(data[:kept])
        for look in (images.check, images.check_header):
            with pytest.raises(UserError):
                look(path)
