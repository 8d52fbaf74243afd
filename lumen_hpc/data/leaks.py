"""Run-time check that a prediction is made without the image it asks about, by pixels and not by name.

`instruct` notes the digest of the withheld image in each prediction test record (`meta.withheld_pixels`), which no
model reads, and leaves out a record of whose images one is a copy of it; `predict` compares the digest with every image
that it is about to show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.data.images import grey_levels
from lumen_hpc.errors import UserError

META_KEY = "withheld_pixels"


def pixel_digest(pixels: np.ndarray) -> str:
    """A hash of an image's grey levels, uint8 [H, W], and its shape; the same whatever the file's name or format."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def digest_of(path: str) -> str:
    """The pixel digest of an image file. Raises UserError for a file that cannot be decoded."""
    real_path = Path(path).resolve()
    try:
        modified_ns = real_path.stat().st_mtime_ns
    except OSError:
        modified_ns = 0  # decoding names the fault
    return _digest_of(real_path, modified_ns)


@lru_cache(maxsize=4096)
def _digest_of(path: Path, modified_ns: int) -> str:
    """`modified_ns` makes a file that was replaced another one."""
    return pixel_digest(grey_levels(path))


def withhold(record: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A prediction record that carries the digest of the image at `path`, which it asks about and must not show.

    Raises UserError if it shows that file.
    """
    sealed_record = {**record, "meta": {**record["meta"], META_KEY: digest_of(path)}}
    if path in record["images"]:
        refuse(sealed_record)
    return sealed_record


def shown_copy(record: Mapping[str, Any]) -> str | None:
    """The image of a record that has the pixels of the one that it asks about, under whatever name; else None."""
    withheld_digest = record["meta"].get(META_KEY)
    return next((path for path in record["images"] if withheld_digest and digest_of(path) == withheld_digest), None)


def refuse(record: Mapping[str, Any]) -> None:
    """Raises UserError if a record shows the image it asks about; others pass."""
    if (path := shown_copy(record)) is not None:
        raise UserError(
            f"record {record['id']} shows the image that it asks about: {path} has the pixels of study "
            f"{record['meta']['study_id']}; its answer would be read off, not predicted"
        )
