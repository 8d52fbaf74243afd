"""The image files of a question, unchanged: read without torch, so that a wrong path fails at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.errors import UserError
from lumen_hpc.files import open_regular

MAX_IMAGE_BYTES = 128 * 2**20
"""Largest image file."""


@dataclass(frozen=True)
class ImageFile:
    where: str
    """The name under which it was given, and its path: image=PATH."""
    data: bytes


def image_files(
    image: str | Path, reference: str | Path | None = None, days: int | None = None
) -> dict[str, ImageFile]:
    """The files of `reference`, if there is one, and of `image`, in this order.

    Raises UserError for a file that cannot be read, and for `days` without a reference.
    """
    if days is not None and reference is None:
        raise UserError(
            f"days={days}: they are counted from an earlier image; give it as reference=FILE. A question about what "
            "will be says its days itself, such as: what will have changed after 30 days?"
        )
    paths = {"image": image} if reference is None else {"reference": reference, "image": image}
    return {name: ImageFile(f"{name}={path}", image_bytes(name, path)) for name, path in paths.items()}


def image_bytes(name: str, path: str | Path) -> bytes:
    """An image file's bytes; raises UserError, with the option's name, if it cannot be read."""
    if not isinstance(path, str | os.PathLike):  # an opened image or an array has lost how its file was encoded
        raise UserError(f"{name}: takes the path of a JPG, PNG or DICOM file, not a {type(path).__name__}")
    if re.match(r"[a-z]{2,}:", str(path), re.I) and not os.path.exists(path):
        raise UserError(f"{name}={path}: an address; no address is read: give a JPG, PNG or DICOM file of this machine")
    try:
        with open_regular(Path(path).expanduser()) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        hint = ", one alone: the earlier one is reference=FILE" if "," in str(path) else ""
        raise UserError(f"{name}={path}: {error.strerror}; give a JPG, PNG or DICOM file{hint}") from None
    except UserError as error:  # a folder, a device, a pipe
        raise UserError(f"{name}={error}; give a JPG, PNG or DICOM file") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{name}={path}: larger than {MAX_IMAGE_BYTES >> 20} MiB; give a JPG, PNG or DICOM file")
    return data


@contextmanager
def in_memory(data: bytes) -> Iterator[str]:
    """A path of this process at which file readers find `data`: a patient's image stays off every disk."""
    with open(os.memfd_create("image"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
