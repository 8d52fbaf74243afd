"""Radiographs from their files: one decode for every use.

JPGs (MIMIC-CXR-JPG) and DICOMs (MIMIC-CXR: uncompressed, RLE, JPEG-lossless, JPEG 2000; either photometric) decode
to the raw integers and the largest value of their format, bones bright. `xrv_input` turns these into the input of
TorchXRayVision's models, `film` into an 8-bit image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lumen_hpc.data.resize import xrv_resize
from lumen_hpc.errors import UserError

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PIXEL_DATA, _PIXEL_DATA_BIG_ENDIAN = b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_HEADER = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
_TAIL = 64
"""Bytes at the end of a file in which its end marker must be; some writers pad after it."""


class Radiograph(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray
    """uint8 or uint16 [H, W] (int16 from a signed DICOM), bones bright."""
    maximum: int
    """Largest value the format can hold: 255, or 2**BitsStored - 1."""


def decode(path: str | Path) -> Radiograph:
    """The raw pixels of a JPG, PNG or DICOM file; the content decides which it is.

    MONOCHROME1 is inverted to bones bright; no window, no rescale (as TorchXRayVision reads DICOMs). A colour image
    gives its first channel. Raises UserError naming a file that is missing, truncated, without pixels or of a
    photometric interpretation that is not a radiograph's.
    """
    path = Path(path)
    if _is_dicom(_head(path, 132)):
        return _decode_dicom(path)
    data = _read(path)
    if data.startswith(_JPEG_START):
        return Radiograph(_decode_jpeg(path, data), 255)
    return Radiograph(_decode_other(path, data), 255)


def xrv_input(image: Radiograph, size: int) -> np.ndarray:
    """TorchXRayVision's input of `size` px (224 or 320): float32 [1, size, size] in -1024..1024."""
    return xrv_resize(image.pixels, image.maximum, size)


def film(path: str | Path) -> np.ndarray:
    """The film as a vision model sees it: uint8 [H, W], a JPG as it is, a DICOM's range scaled to 0..255.

    MIMIC-CXR-JPG also equalises histograms, so its JPGs have more contrast than this.
    """
    image = decode(path)
    if image.maximum == 255 and image.pixels.dtype == np.uint8:
        return image.pixels
    return (image.pixels.astype(np.float32) * np.float32(255 / image.maximum)).round().astype(np.uint8)


def check(path: str | Path) -> None:
    """Checks a file without decoding it: raises UserError if it is missing, truncated or no radiograph.

    Reads a JPG's first and last bytes, and a DICOM's header and length: 0.1 to 1 ms.
    """
    path = Path(path)
    head = _head(path, 132)
    if _is_dicom(head):
        _check_dicom(path)
    elif head.startswith(_JPEG_START):
        if _JPEG_END not in _tail(path):
            raise UserError(f"{path} is truncated: a JPEG ends with FFD9; fetch the file again")
    elif not head.startswith(b"\x89PNG"):
        raise UserError(f"{path} is neither JPEG, PNG nor DICOM (it begins with {head[:8].hex() or 'nothing'})")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as reason:
        raise _unreadable(path, reason) from None


def _head(path: Path, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError as reason:
        raise _unreadable(path, reason) from None


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - _TAIL, 0))
        return file.read()


def _unreadable(path: Path, reason: OSError) -> UserError:
    return UserError(f"image {path} cannot be read: {reason.strerror or reason}")


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def _decode_jpeg(path: Path, data: bytes) -> np.ndarray:
    import simplejpeg

    if _JPEG_END not in data[-_TAIL:]:
        raise UserError(f"{path} is truncated: a JPEG ends with FFD9; fetch the file again")
    try:
        _, _, colour, _ = simplejpeg.decode_jpeg_header(data)
        if colour == "Gray":
            return simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
        return np.ascontiguousarray(simplejpeg.decode_jpeg(data, colorspace="RGB")[:, :, 0])
    except ValueError as reason:
        raise UserError(f"{path} is a corrupt JPEG: {reason}") from None


def _decode_other(path: Path, data: bytes) -> np.ndarray:
    """Anything else that Pillow reads as 8 bits (PNG)."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is neither JPEG, PNG nor DICOM (it begins with {data[:8].hex() or 'nothing'})"
        ) from None
    except OSError as reason:
        raise UserError(f"{path} is corrupt: {reason}") from None
    if pixels.dtype != np.uint8:
        raise UserError(f"{path} has pixels of type {pixels.dtype}; 8 bits are read, or a DICOM of any depth")
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, 0])


def _open_dicom(path: Path, file: BinaryIO | None = None, **options: Any) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(file or path, **options)
        dataset.file_meta.TransferSyntaxUID  # noqa: B018  (without it nothing can be read)
        return dataset
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError) as reason:
        raise UserError(f"{path} is a corrupt DICOM: {reason}") from None


def _check_header(path: Path, dataset) -> None:
    missing = [name for name in _HEADER if dataset.get(name) in (None, "")]
    if missing:
        raise UserError(f"{path} is a DICOM without image: it lacks {', '.join(missing)}")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(
            f"{path} has PhotometricInterpretation {dataset.PhotometricInterpretation}; "
            "a radiograph is MONOCHROME1 or MONOCHROME2"
        )
    if (samples := dataset.get("SamplesPerPixel") or 1) != 1:
        raise UserError(f"{path} holds {samples} values a pixel; a radiograph has one")
    if not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise UserError(
            f"{path} has BitsStored {dataset.BitsStored} of BitsAllocated {dataset.BitsAllocated}: a corrupt header"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"{path} holds {frames} frames; a radiograph is one")


def _check_dicom(path: Path) -> None:
    dataset, start = _dicom_header(path)
    if start is None:
        return  # deflated: where its pixels begin is known only after inflating all of it
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if _SEQUENCE_END not in _tail(path):
            raise UserError(f"{path} is truncated: its compressed pixels have no end; fetch the file again")
    else:
        _check_length(path, dataset, path.stat().st_size - start)


def _dicom_header(path: Path) -> tuple[Any, int | None]:
    """A DICOM without its pixels, and the offset at which their bytes begin (None in a deflated file)."""
    with path.open("rb") as file:
        dataset = _open_dicom(path, file, stop_before_pixels=True)
        _check_header(path, dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_deflated:
            return dataset, None
        # pydicom leaves the file where the pixels' element begins; its tag, type and length come before its value.
        start = file.tell()
        if file.read(4) != (_PIXEL_DATA if syntax.is_little_endian else _PIXEL_DATA_BIG_ENDIAN):
            raise UserError(f"{path} is a DICOM without pixels (no PixelData)")
    return dataset, start + (8 if syntax.is_implicit_VR else 12)


def _check_length(path: Path, dataset, available: int) -> None:
    expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if available < expected:
        raise UserError(f"{path} is truncated: it has {available} of {expected} bytes of pixels; fetch the file again")


def _decode_dicom(path: Path) -> Radiograph:
    dataset, start = _dicom_header(path)
    maximum = 2**dataset.BitsStored - 1
    pixels = _stored(path, dataset, start)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = maximum - pixels
    if pixels.max() > maximum:
        raise UserError(f"{path} holds the value {pixels.max()}, more than its BitsStored={dataset.BitsStored} allow")
    return Radiograph(pixels, maximum)


def _stored(path: Path, header: Any, start: int | None) -> np.ndarray:
    """The stored values [Rows, Columns]; native pixels mapped from the file, JPEG-lossless by the fastest decoder."""
    from pydicom import uid

    syntax = header.file_meta.TransferSyntaxUID
    native = syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
    if start is not None and native and header.BitsAllocated in (8, 16):
        _check_length(path, header, path.stat().st_size - start)
        kind: np.dtype = np.dtype(f"<{'i' if header.PixelRepresentation else 'u'}{header.BitsAllocated // 8}")
        return np.memmap(str(path), kind, "r", start, (header.Rows, header.Columns)).view(np.ndarray)
    dataset = _open_dicom(path)
    if "PixelData" not in dataset:
        raise UserError(f"{path} is a DICOM without pixels (no PixelData)")
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1) and not dataset.PixelRepresentation:
        import imagecodecs
        from pydicom.encaps import get_frame

        try:
            pixels = imagecodecs.ljpeg_decode(get_frame(dataset.PixelData, 0, number_of_frames=1))
            if pixels.shape == (dataset.Rows, dataset.Columns):
                return pixels
        except (imagecodecs.LjpegError, ValueError):
            pass  # an unusual stream: pydicom's slower decoder gives the same values or the reason
    try:
        return dataset.pixel_array
    except Exception as reason:  # each of pydicom's plugins has errors of its own
        raise UserError(f"{path}: its pixels ({syntax.name}) cannot be decoded: {reason}") from None
