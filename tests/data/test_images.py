"""Images: one decode for all uses, TorchXRayVision's input exactly, and bad files named."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

import lumen_hpc.torchvision_compat  # noqa: F401  (before torchxrayvision imports torchvision)
from lumen_hpc.data import images
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
    assert np.abs(ours - theirs).max() <= 1e-3 * 2048


@pytest.mark.parametrize(("low", "high"), [(180, 250), (3, 60), (77, 77)])
def test_films_without_dark_or_without_bright_are_clipped_alike(low, high):
    pixels = np.random.default_rng(0).integers(low, high + 1, (300, 280)).astype(np.uint8)
    ours = images.xrv_input(Radiograph(pixels, 255), 224)
    assert np.abs(ours - package_recipe(pixels, 255, 224)).max() <= 1e-3 * 2048


def test_a_jpg_is_decoded_as_pillow_decodes_it(tmp_path):
    Image.fromarray(radiograph((301, 203), np.uint8, 255)).save(tmp_path / "film.jpg", quality=95)
    image = images.decode(tmp_path / "film.jpg")
    assert image.maximum == 255
    assert np.array_equal(image.pixels, np.asarray(Image.open(tmp_path / "film.jpg")))


def test_a_colour_jpg_gives_the_channel_the_package_takes(tmp_path):
    colours = np.stack([radiograph((64, 80), np.uint8, 255, seed) for seed in range(3)], axis=-1)
    Image.fromarray(colours).save(tmp_path / "film.jpg", quality=95)
    theirs = xrv.utils.load_image(str(tmp_path / "film.jpg"))
    ours = images.decode(tmp_path / "film.jpg").pixels
    assert np.abs(xrv.utils.normalize(ours, 255) - theirs[0]).max() == 0


def dicom(path, pixels, *, bits=12, photometric="MONOCHROME2", compress=None, **fields):
    """Writes a DICOM; `compress` is a transfer syntax, or (syntax, encoded frame)."""
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
    dataset.PixelData = pixels.tobytes()
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
    path = dicom(tmp_path / "film.dcm", pixels, photometric=photometric, compress=compress)
    image = images.decode(path)
    assert image.maximum == 4095
    assert np.array_equal(image.pixels, 4095 - pixels if photometric == "MONOCHROME1" else pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = xrv.utils.read_xray_dcm(path)
    assert np.abs(xrv.utils.normalize(image.pixels, image.maximum) - theirs).max() < 1e-3
    images.check(path)


def test_eight_bit_dicoms_are_read(tmp_path):
    pixels = radiograph((50, 71), np.uint8, 255)
    image = images.decode(dicom(tmp_path / "film.dcm", pixels, bits=8))
    assert image.maximum == 255
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm"])
def test_the_real_chest_film_of_pydicoms_data_reads_as_the_package_reads_it(name):
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


def test_a_film_from_a_dicom_spreads_its_range_and_a_jpg_stays_as_it_is(tmp_path):
    pixels = radiograph((120, 90), np.uint16, 4095)
    film = images.film(dicom(tmp_path / "film.dcm", pixels, photometric="MONOCHROME1"))
    assert film.dtype == np.uint8
    assert np.abs(film - (4095 - pixels.astype(float)) * 255 / 4095).max() <= 0.5
    Image.fromarray(film).save(tmp_path / "film.jpg")
    assert np.array_equal(images.film(tmp_path / "film.jpg"), images.decode(tmp_path / "film.jpg").pixels)


@pytest.mark.parametrize("look", [images.check, images.decode])
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
        self.refused(look, tmp_path / "empty.jpg", "neither JPEG, PNG nor DICOM")

    def test_neither_kind(self, tmp_path, look):
        (tmp_path / "page.jpg").write_bytes(b"<html>" * 100)
        self.refused(look, tmp_path / "page.jpg", "neither JPEG, PNG nor DICOM")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_jpg(self, tmp_path, look, kept):
        path = tmp_path / "film.jpg"
        Image.fromarray(radiograph((200, 200), np.uint8, 255)).save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        self.refused(look, path, "truncated")

    @pytest.mark.parametrize("kept", [0.5, 0.999])
    def test_truncated_dicom(self, tmp_path, look, kept):
        path = dicom(tmp_path / "film.dcm", radiograph((200, 200), np.uint16, 4095))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        self.refused(look, path, "truncated|corrupt")

    def test_truncated_compressed_dicom(self, tmp_path, look):
        path = dicom(tmp_path / "film.dcm", radiograph((200, 200), np.uint16, 4095), compress=pydicom.uid.RLELossless)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(look, path, "truncated|corrupt|cannot be decoded")

    def test_dicom_without_pixels(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint16, 4095)
        self.refused(look, dicom(tmp_path / "film.dcm", pixels, PixelData=None), "without pixels")

    def test_dicom_without_image_header(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint16, 4095)
        self.refused(look, dicom(tmp_path / "film.dcm", pixels, Rows=None), "lacks Rows")

    def test_dicom_with_an_empty_header_field(self, tmp_path, look):
        path = dicom(tmp_path / "film.dcm", radiograph((20, 20), np.uint16, 4095))
        dataset = pydicom.dcmread(path)
        dataset.BitsStored = None
        dataset.save_as(path)
        self.refused(look, path, "lacks BitsStored")

    @pytest.mark.parametrize("bits", [0, 17, 99])
    def test_impossible_bits_stored(self, tmp_path, look, bits):
        path = dicom(tmp_path / "film.dcm", radiograph((20, 20), np.uint16, 4095), BitsStored=bits)
        self.refused(look, path, f"BitsStored {bits} of BitsAllocated 16")

    def test_several_samples_a_pixel(self, tmp_path, look):
        path = dicom(tmp_path / "film.dcm", radiograph((20, 60), np.uint8, 255), bits=8, SamplesPerPixel=3, Columns=20)
        self.refused(look, path, "3 values a pixel")

    def test_colour_dicom(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint8, 255)
        path = dicom(tmp_path / "film.dcm", pixels, bits=8, photometric="PALETTE COLOR")
        self.refused(look, path, "PALETTE COLOR")

    def test_several_frames(self, tmp_path, look):
        pixels = radiograph((20, 20), np.uint16, 4095)
        self.refused(look, dicom(tmp_path / "film.dcm", pixels, NumberOfFrames="2"), "2 frames")


def test_values_beyond_the_bits_stored_are_refused_as_the_package_refuses_them(tmp_path):
    path = dicom(tmp_path / "film.dcm", radiograph((20, 20), np.uint16, 4095), bits=10)
    with pytest.raises(UserError, match="BitsStored=10"):
        images.decode(path)
