"""Images: one decode for all uses, TorchXRayVision's input exactly, and bad files named."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import lumen_hpc.torchvision_compat  # noqa: F401  (before torchxrayvision imports torchvision)
from lumen_hpc.data import dicom_headers, images
from lumen_hpc.data.images import Radiograph
from lumen_hpc.errors import UserError
from tests.realcxr import ROOT, needed

xrv = pytest.importorskip("torchxrayvision")
pydicom = pytest.importorskip("pydicom")


def package_recipe(pixels, maximum, size):
    """TorchXRayVision's own way from pixels to a model's input."""
    image = xrv.utils.normalize(pixels, maximum)[None]
    return xrv.datasets.XRayResizer(size)(xrv.datasets.XRayCenterCrop()(image))


def radiograph(shape, kind, maximum, seed=0):
    """Smooth shapes and noise, from 0 to the maximum."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0 : shape[0], 0 : shape[1]]
    waves = np.sin(down / 17) * np.cos(across / 11) + rng.normal(0, 0.3, shape)
    scaled = (waves - waves.min()) / (waves.max() - waves.min())
    return (scaled * maximum).astype(kind)


@pytest.mark.parametrize("size", [224, 320])
@pytest.mark.parametrize("shape", [(500, 400), (401, 777), (64, 64), (100, 64), (320, 320), (224, 225), (1200, 1300)])
@pytest.mark.parametrize(("kind", "maximum"), [(np.uint8, 255), (np.uint16, 4095)])
def test_input_equals_the_packages_own_recipe(shape, size, kind, maximum):
    pixels = radiograph(shape, kind, maximum)
    ours = images.xrv_input(Radiograph(pixels, maximum), size)
    theirs = package_recipe(pixels, maximum, size)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (1, size, size)
    assert np.abs(ours - theirs).max() <= 0.1


@pytest.mark.parametrize(("low", "high"), [(180, 181), (3, 4), (77, 77), (127, 127), (128, 128)])
def test_images_without_dark_or_without_bright_are_clipped_alike(low, high):
    """At the edges, which average with what is outside, even where the middle of the range is not a value."""
    pixels = np.random.default_rng(0).integers(low, high + 1, (1000, 900)).astype(np.uint8)
    ours = images.xrv_input(Radiograph(pixels, 255), 224)
    assert np.abs(ours - package_recipe(pixels, 255, 224)).max() <= 0.1


def test_a_jpg_is_decoded_as_pillow_decodes_it(tmp_path):
    Image.fromarray(radiograph((301, 203), np.uint8, 255)).save(tmp_path / "image.jpg", quality=95)
    image = images.decode(tmp_path / "image.jpg")
    assert image.maximum == 255
    assert np.array_equal(image.pixels, np.asarray(Image.open(tmp_path / "image.jpg")))


def test_a_colour_jpg_gives_the_channel_the_package_takes(tmp_path):
    colours = np.stack([radiograph((64, 80), np.uint8, 255, seed) for seed in range(3)], axis=-1)
    Image.fromarray(colours).save(tmp_path / "image.jpg", quality=95)
    theirs = xrv.utils.load_image(str(tmp_path / "image.jpg"))
    ours = images.decode(tmp_path / "image.jpg").pixels
    assert np.abs(xrv.utils.normalize(ours, 255) - theirs[0]).max() == 0


def dicom(path, pixels, *, bits=12, photometric="MONOCHROME2", compress=None, syntax=None, **fields):
    """Writes a DICOM; `compress` is a transfer syntax, or (syntax, encoded frame); `syntax` an uncompressed one."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape
    allocated = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelData = (pixels.byteswap() if syntax == pydicom.uid.ExplicitVRBigEndian else pixels).tobytes()
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in fields.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if isinstance(compress, tuple):
        dataset.PixelData = pydicom.encaps.encapsulate([compress[1]])
        dataset.file_meta.TransferSyntaxUID = compress[0]
    elif compress:
        dataset.compress(compress)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encoded(pixels, codec):
    imagecodecs = pytest.importorskip("imagecodecs")
    if codec == "lossless":
        return pydicom.uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(pixels, bitspersample=12)
    return pydicom.uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(
        pixels, codecformat="j2k", reversible=True, bitspersample=12
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("codec", [None, "rle", "lossless", "2000"])
def test_every_compression_and_photometric_gives_the_packages_values(tmp_path, codec, photometric):
    pixels = radiograph((150, 130), np.uint16, 4095)
    compress = pydicom.uid.RLELossless if codec == "rle" else encoded(pixels, codec) if codec else None
    path = dicom(tmp_path / "image.dcm", pixels, photometric=photometric, compress=compress)
    image = images.decode(path)
    assert image.maximum == 4095
    assert np.array_equal(image.pixels, 4095 - pixels if photometric == "MONOCHROME1" else pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = xrv.utils.read_xray_dcm(path)
    assert np.abs(xrv.utils.normalize(image.pixels, image.maximum) - theirs).max() < 1e-3
    images.check(path)


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm"])
def test_the_real_chest_image_of_pydicoms_data_reads_as_the_package_reads_it(name):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("package pydicom-data is not installed")
    image = images.decode(path)
    assert (image.pixels.shape, image.maximum) == ((1955, 1841), 2**15 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = xrv.utils.read_xray_dcm(path)
    assert np.abs(xrv.utils.normalize(image.pixels, image.maximum) - theirs).max() < 1e-3
    images.check(path)


@needed
def test_real_radiographs_as_jpg_and_dicom_show_the_same(tmp_path):
    found = sorted((ROOT / "mimic-cxr").rglob("*.dcm"))
    assert found
    for path in found[:4]:
        jpg = ROOT / "mimic-cxr-jpg" / path.relative_to(ROOT / "mimic-cxr").with_suffix(".jpg")
        one, two = (images.xrv_input(images.decode(p), 224) for p in (path, jpg))
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9
        images.check(path)
        images.check(jpg)


def test_an_image_from_a_dicom_spreads_its_range_and_a_jpg_stays_as_it_is(tmp_path):
    pixels = radiograph((120, 90), np.uint16, 4095)
    grey = images.grey_levels(dicom(tmp_path / "image.dcm", pixels, photometric="MONOCHROME1"))
    assert grey.dtype == np.uint8
    assert np.abs(grey - (4095 - pixels.astype(float)) * 255 / 4095).max() <= 0.5
    Image.fromarray(grey).save(tmp_path / "image.jpg")
    assert np.array_equal(images.grey_levels(tmp_path / "image.jpg"), images.decode(tmp_path / "image.jpg").pixels)


@pytest.mark.parametrize("look", [images.check, images.check_header, images.decode])
class TestBadFiles:
    def refused(self, look, path, message):
        with pytest.raises(UserError, match=message) as caught:
            look(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path, look):
        self.refused(look, tmp_path / "no.jpg", "cannot be read")

    def test_empty(self, tmp_path, look):
        (tmp_path / "empty.jpg").touch()
        self.refused(look, tmp_path / "empty.jpg", "is empty; fetch the file again")

    def test_neither_kind(self, tmp_path, look):
        (tmp_path / "page.jpg").write_bytes(b"<html>" * 100)
        self.refused(look, tmp_path / "page.jpg", "neither JPEG, PNG nor DICOM")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_jpg(self, tmp_path, look, kept):
        path = tmp_path / "image.jpg"
        Image.fromarray(radiograph((200, 200), np.uint8, 255)).save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        self.refused(look, path, "truncated")

    @pytest.mark.parametrize("kept", [0.5, 0.999])
    def test_truncated_dicom(self, tmp_path, look, kept):
        path = dicom(tmp_path / "image.dcm", radiograph((200, 200), np.uint16, 4095))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        self.refused(look, path, "truncated|corrupt")

    def test_truncated_compressed_dicom(self, tmp_path, look):
        path = dicom(tmp_path / "image.dcm", radiograph((200, 200), np.uint16, 4095), compress=pydicom.uid.RLELossless)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(look, path, "truncated|corrupt|cannot be decoded")

    def test_dicom_with_an_empty_header_field(self, tmp_path, look):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095))
        dataset = pydicom.dcmread(path)
        dataset.BitsStored = None
        dataset.save_as(path)
        self.refused(look, path, "lacks BitsStored")

    @pytest.mark.parametrize("bits", [0, 17, 99])
    def test_impossible_bits_stored(self, tmp_path, look, bits):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095), BitsStored=bits)
        self.refused(look, path, f"BitsStored {bits} of BitsAllocated 16")

    def test_several_samples_a_pixel(self, tmp_path, look):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 60), np.uint8, 255), bits=8, SamplesPerPixel=3, Columns=20)
        self.refused(look, path, "3 values a pixel")

    def test_colour_dicom(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint8, 255)
        path = dicom(tmp_path / "image.dcm", pixels, bits=8, photometric="PALETTE COLOR")
        self.refused(look, path, "PALETTE COLOR")

    def test_several_frames(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint16, 4095)
        self.refused(look, dicom(tmp_path / "image.dcm", pixels, NumberOfFrames="2"), "2 frames")

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_signed_pixels(self, tmp_path, look, photometric):
        pixels = radiograph((20, 20), np.int16, 2000)
        path = dicom(tmp_path / "image.dcm", pixels, photometric=photometric, PixelRepresentation=1)
        self.refused(look, path, "signed pixels")

    @pytest.mark.parametrize("name", ["Rows", "PixelRepresentation", "BitsStored", "PhotometricInterpretation"])
    def test_a_missing_header_field(self, tmp_path, look, name):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095), **{name: None})
        self.refused(look, path, f"lacks {name}")

    @pytest.mark.parametrize("name", ["Rows", "Columns"])
    def test_an_empty_image(self, tmp_path, look, name):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095), **{name: 0})
        self.refused(look, path, "empty image")

    def test_values_in_the_upper_bits(self, tmp_path, look):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095) << 4, HighBit=15)
        self.refused(look, path, "HighBit 15 with BitsStored 12")

    def test_an_absurd_size(self, tmp_path, look):
        path = dicom(tmp_path / "image.dcm", radiograph((20, 20), np.uint16, 4095), Rows=20000, Columns=20000)
        self.refused(look, path, "400 megapixels")

    def test_an_absurd_png(self, tmp_path, look):
        path = png(tmp_path / "image.png", frame(20000, 20000, 8, 0), zlib.compress(bytes(1000)))
        self.refused(look, path, "400 megapixels")

    def test_an_absurd_jpeg(self, tmp_path, look):
        path = tmp_path / "image.jpg"
        data = jpeg(radiograph((40, 40), np.uint8, 255))
        path.write_bytes(data.replace(struct.pack(">BHH", 8, 40, 40), struct.pack(">BHH", 8, 20000, 20000)))
        self.refused(look, path, "400 megapixels")

    @pytest.mark.parametrize("mode", ["I;16", "1", "P"])
    def test_a_png_that_is_not_8_bit_grey(self, tmp_path, look, mode):
        pixels = radiograph((40, 40), np.uint8, 255)
        image = Image.fromarray(pixels.astype(np.uint16) if mode == "I;16" else pixels)
        image.convert(mode).save(tmp_path / "image.png")
        self.refused(look, tmp_path / "image.png", "palette" if mode == "P" else "bits; 8 bits are read")

    @pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
    @pytest.mark.parametrize("filled", [False, True])
    def test_a_cut_png(self, tmp_path, look, kept, filled):
        path = tmp_path / "image.png"
        Image.fromarray(radiograph((600, 500), np.uint8, 255)).save(path)
        self.refused(look, cut(path, kept, filled), "truncated|corrupt")

    @pytest.mark.parametrize("at", [20, 60, 3000])
    def test_a_flipped_bit_in_a_png(self, tmp_path, look, at):
        path = tmp_path / "image.png"
        Image.fromarray(radiograph((200, 200), np.uint8, 255)).save(path)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        self.refused(look, path, "checksum of its I(HDR|DAT) is wrong")

    @pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
    @pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
    @pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
    def test_a_jpeg_whose_tail_is_zero(self, tmp_path, look, options, kept, end):
        path = tmp_path / "image.jpg"
        path.write_bytes(jpeg(radiograph((600, 500), np.uint8, 255), **options))
        cut(path, kept, filled=True)
        path.write_bytes(path.read_bytes()[: -len(end) or None] + end)
        self.refused(look, path, "truncated|corrupt")

    @pytest.mark.parametrize("orientation", range(2, 9))
    @pytest.mark.parametrize("ending", ["jpg", "png"])
    def test_an_image_that_exif_turns(self, tmp_path, look, orientation, ending):
        path = tmp_path / f"image.{ending}"
        Image.fromarray(radiograph((40, 40), np.uint8, 255)).save(path, exif=turned(orientation))
        self.refused(look, path, f"EXIF orientation {orientation}")

    def test_a_jpeg_of_four_components(self, tmp_path, look):
        Image.new("CMYK", (40, 40)).save(tmp_path / "image.jpg")
        self.refused(look, tmp_path / "image.jpg", "4 components")

    def test_a_tiff(self, tmp_path, look):
        Image.fromarray(radiograph((40, 40), np.uint8, 255)).save(tmp_path / "image.tif")
        self.refused(look, tmp_path / "image.tif", "neither JPEG, PNG nor DICOM")


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def cut(path, kept, filled):
    """Cuts a file, or fills the rest of it with zeros, as a broken download leaves it."""
    data = path.read_bytes()
    start = data[: int(len(data) * kept)]
    path.write_bytes(start + bytes(len(data) - len(start)) if filled else start)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def frame(width, height, bits, colour):
    return struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def png(path, header, pixels):
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return path


@pytest.mark.parametrize("look", [images.check, images.decode])
def test_faults_that_only_decoding_shows_are_found_without_being_asked_for(tmp_path, look):
    closed_again = tmp_path / "image.jpg"
    closed_again.write_bytes(jpeg(radiograph((600, 500), np.uint8, 255))[:60_000] + b"\xff\xd9")
    no_stream = png(tmp_path / "image.png", frame(8, 8, 8, 0), b"no zlib stream")
    for path, message in ((closed_again, "is truncated"), (no_stream, "is a corrupt PNG")):
        images.check_header(path)
        with pytest.raises(UserError, match=f"{path.name} {message}"):
            look(path)


@pytest.mark.parametrize("after", [bytes(200), b"\xff\xd8" * 100, b"text" * 50])
@pytest.mark.parametrize("look", [images.check, images.check_header])
def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path, look, after):
    pixels = radiograph((100, 90), np.uint8, 255)
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(pixels) + after)
    assert look(path).size == (90, 100)
    assert np.abs(images.decode(path).pixels.astype(int) - pixels).max() < 20


def test_an_upright_exif_is_no_fault(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(radiograph((40, 50), np.uint8, 255)).save(path, exif=turned(1))
    assert images.check(path)[:2] == images.check_header(path)[:2] == ((50, 40), "")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("codec", [None, "rle"])
def test_overlays_in_unused_bits_are_masked_as_pydicom_masks_them(tmp_path, codec, photometric):
    pixels = radiograph((60, 50), np.uint16, 4095)
    marked = pixels.copy()
    marked[20:30, 5:40] |= 0b1010 << 12  # a box of text, as overlays are
    compress = pydicom.uid.RLELossless if codec else None
    path = dicom(tmp_path / "image.dcm", marked, photometric=photometric, compress=compress)
    assert np.array_equal(images.decode(path).pixels, 4095 - pixels if photometric == "MONOCHROME1" else pixels)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, pixels)
    assert images.check(path).warning == ("" if codec else images.OVERLAY)  # pydicom's decoders mask by themselves


@pytest.mark.parametrize(("maximum", "warning"), [(4095, images.FAINT), (16000, images.FAINT), (30000, "")])
def test_a_range_far_above_the_values_is_a_warning(tmp_path, maximum, warning):
    path = dicom(tmp_path / "image.dcm", radiograph((500, 400), np.uint16, maximum), bits=16)
    assert images.check(path)[:2] == ((400, 500), warning)


@pytest.mark.parametrize("look", [images.check, images.check_header])
@pytest.mark.parametrize(
    ("orientation", "warning"),
    [
        (["L", "F"], ""), (["A", "F"], ""), (["P", "FR"], ""), (["LF", "FR"], ""), ("", ""), ("L", ""),
        (["R", "F"], dicom_headers.TURNED), (["L", "H"], dicom_headers.TURNED), (["RH", "FR"], dicom_headers.TURNED),
        (["F", "L"], dicom_headers.TURNED), (["H", "R"], dicom_headers.TURNED), (["L", "P"], dicom_headers.TURNED),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_dicom_that_calls_itself_mirrored_is_a_warning(tmp_path, look, orientation, warning):
    pixels = radiograph((60, 50), np.uint16, 4095)
    path = dicom(tmp_path / "image.dcm", pixels, PatientOrientation=orientation)
    assert look(path)[:2] == ((50, 60), warning)
    assert np.array_equal(images.decode(path).pixels, pixels)


@pytest.mark.parametrize("look", [images.check, images.check_header])
@pytest.mark.parametrize(
    ("photometric", "fields", "inverted"),
    [
        ("MONOCHROME2", {"RescaleSlope": 1, "PresentationLUTShape": "IDENTITY"}, False),
        ("MONOCHROME1", {"RescaleSlope": 1, "PresentationLUTShape": "INVERSE"}, False),
        ("MONOCHROME2", {"RescaleSlope": -1}, True),
        ("MONOCHROME2", {"PresentationLUTShape": "INVERSE"}, True),
        ("MONOCHROME1", {"PresentationLUTShape": "IDENTITY"}, True),
    ],
)
def test_a_dicom_whose_header_inverts_it_once_more_is_a_warning(tmp_path, look, photometric, fields, inverted):
    pixels = radiograph((60, 50), np.uint16, 4095)
    path = dicom(tmp_path / "image.dcm", pixels, photometric=photometric, **fields)
    assert look(path).warning == (dicom_headers.INVERTED if inverted else "")
    assert np.array_equal(images.decode(path).pixels, pixels if photometric == "MONOCHROME2" else 4095 - pixels)


def test_what_check_passes_decode_reads_whatever_was_done_to_the_file(tmp_path):
    rng = np.random.default_rng(0)
    pixels = radiograph((120, 100), np.uint8, 255)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    stored = radiograph((60, 50), np.uint16, 4095)
    files = {
        "image.jpg": jpeg(pixels),
        "image.png": (tmp_path / "image.png").read_bytes(),
        "image.dcm": dicom(tmp_path / "image.dcm", stored).read_bytes(),
        "rle.dcm": dicom(tmp_path / "rle.dcm", stored, compress=pydicom.uid.RLELossless).read_bytes(),
    }
    refused = 0
    for name, whole in files.items():
        path = tmp_path / name
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                data[at] = rng.integers(256)
            path.write_bytes(data[: rng.integers(len(data) // 2, len(data) + 1)] if rng.random() < 0.3 else data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    size = images.check(path).size
                except UserError as fault:
                    refused += 1
                    assert str(path) in str(fault)
                    with pytest.raises(UserError):
                        images.decode(path)
                else:
                    assert images.decode(path).pixels.shape == (size.height, size.width)
    assert refused > 60


def test_the_digest_of_a_picture_is_the_same_in_every_process(tmp_path):
    path = tmp_path / "a.png"
    Image.linear_gradient("L").save(path)
    assert images.check(path).digest == -8901089493934318498
