"""Images of requests: decoded as in training, from the request itself or from allowed folders, never from the network.

vLLM's own reader turns 16-bit radiographs into clipped 8-bit ones and fetches addresses; with
`VLLM_MEDIA_CONNECTOR=lumen` this one takes its place.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import secrets
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from lumen_hpc.data.dicom_headers import silence_pydicom
from lumen_hpc.data.image_headers import JPEG_START, PNG_START, check_jpeg, check_png_rows, png_header
from lumen_hpc.data.images import grey_levels, is_dicom
from lumen_hpc.errors import UserError
from lumen_hpc.files import open_regular
from lumen_hpc.nvila.preprocess import open_picture
from lumen_hpc.serving.image_files import MAX_IMAGE_BYTES, in_memory

CONNECTOR = "lumen"
FOLDERS = "LUMEN_SERVE_IMAGES"
"""The environment variable that lists the folders from which images may be given by path, as JSON."""
_PATIENT_KEY = secrets.token_bytes(16)


def decode_picture(data: bytes, where: str = "the image") -> Image.Image:
    """The bytes of a JPG, PNG or DICOM as training sees them: mode L, or RGB where there is colour.

    Raises UserError for what is none of these, is cut short, has more than 8 bits outside a DICOM, or is stored turned
    (EXIF): prepare refuses the same files.
    """
    if is_dicom(data):
        with in_memory(data) as name:
            try:
                return Image.fromarray(grey_levels(name))
            except UserError as error:
                raise UserError(str(error).replace(name, where)) from None
    path = Path(where)
    if data.startswith(JPEG_START):
        check_jpeg(path, data)
    elif data.startswith(PNG_START):
        png_header(path, data)
        check_png_rows(path, data)
    else:
        raise UserError(f"{where} cannot be read: give a whole JPG, PNG or DICOM file")
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG"])  # Pillow's other readers start programs (EPS)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{where} cannot be read: give a whole JPG, PNG or DICOM file") from None
    try:
        return open_picture(image)
    except UserError as error:
        raise UserError(str(error).replace("image 0", where)) from None


def acquisition_day(data: bytes) -> str | None:
    """The day on which a readable image was taken, by its DICOM header or Exif block; None if neither has it."""
    try:
        return date.fromisoformat(_dicom_day(data) if is_dicom(data) else _exif_day(data)).isoformat()
    except Exception:  # pydicom and Pillow raise errors of every kind on corrupt notes, and quote them
        return None


def patient(data: bytes) -> str:
    """Whose image it is by its DICOM header: equal for two files with one PatientID; empty where there is none.

    A hash that only this process can make, since the number itself must reach neither a message nor a browser.
    """
    try:
        number = str(_dicom_header(data).get("PatientID") or "").strip() if is_dicom(data) else ""
    except Exception:  # as above
        return ""
    return hashlib.blake2b(number.encode(), key=_PATIENT_KEY, digest_size=8).hexdigest() if number else ""


def _dicom_day(data: bytes) -> str:
    header = _dicom_header(data)
    return str(header.get("AcquisitionDate") or header.get("StudyDate") or "")


def _dicom_header(data: bytes) -> Any:
    import pydicom

    silence_pydicom()
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def _exif_day(data: bytes) -> str:
    exif = Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]).getexif()
    return str(exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132) or "")[:10].replace(":", "")


def read_image_url(url: str, folders: list[Path]) -> bytes:
    """The bytes behind an image URL of OpenAI's schema: `data:…;base64,…`, or `file://` inside one of `folders`.

    Raises UserError for anything else; paths are compared with their links resolved.
    """
    if url[:5].lower() == "data:":
        header, _, body = url.partition(",")
        if not header.lower().endswith(";base64"):
            raise UserError("an image in the request must be a base64 data URL: data:image/png;base64,…")
        if len(body) <= 2 * MAX_IMAGE_BYTES:
            body = body.replace("\r", "").replace("\n", "")  # `base64 FILE` breaks its lines
        if len(body) > MAX_IMAGE_BYTES * 4 // 3:
            raise UserError(f"the image is larger than {MAX_IMAGE_BYTES >> 20} MiB")
        try:
            return base64.b64decode(body, validate=True)
        except ValueError:  # binascii's, or letters beyond ASCII
            raise UserError("the image's base64 is broken; encode the file's bytes again") from None
    try:
        parts = urlsplit(url)
    except ValueError:  # `file://[x`
        raise UserError("the address of an image is none; images come as base64 data URLs or file:// paths") from None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise UserError("images come as base64 data URLs or file:// paths; this server fetches no addresses")
    try:
        path = Path(unquote(parts.path)).resolve()
    except (ValueError, RuntimeError, OSError):  # a NUL byte; links in a circle; a name too long
        raise UserError("the file:// path of an image is no path") from None
    _require_inside(path, folders)
    try:
        with open_regular(path) as file:
            # Where the open file lies, not where its name led a moment ago: a link could have come between.
            _require_inside(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")), folders)
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{path} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return data


def _require_inside(path: Path, folders: list[Path]) -> None:
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        allowed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"{path} lies outside the folders of serve.images ({allowed})")


def allowed_folders() -> list[Path]:
    return [Path(name) for name in json.loads(os.environ.get(FOLDERS) or "[]")]


def register() -> None:
    """Give vLLM this reader under the name `lumen`."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

    class ImageConnector(MediaConnector):
        """vLLM's interface; ValueErrors become its answers 400."""

        def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            try:
                return decode_picture(read_image_url(url, allowed_folders()))
            except UserError as error:
                raise ValueError(str(error)) from None

        async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            return await asyncio.get_running_loop().run_in_executor(None, self.load_from_url, url, media_io)

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(ImageConnector)
