"""Files of other kinds in the place of a table or of JSON lines: what they are by their first bytes, and what to do."""

from __future__ import annotations

import codecs

from lumen_hpc.files import GZIP

_KINDS = {
    GZIP: ("packed twice", "unpack it once"),
    b"PK\x03\x04": ("a zip archive or a workbook", "unpack it, or save it as {}"),
    b"\xfd7zXZ": ("an xz archive", "unpack it"),
    b"BZh": ("a bzip2 archive", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "unpack it"),
    b"PAR1": ("a Parquet file", "save it as {}"),
    b"ARROW1": ("an Arrow file", "save it as {}"),
    b"SQLite format 3": ("a database", "save its table as {}"),
    b"\xd0\xcf\x11\xe0": ("a workbook", "save it as {}"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("an LZ4 archive", "unpack it"),
    b"-----BEGIN PGP": ("encrypted", "decrypt it"),
    codecs.BOM_UTF16_LE: ("UTF-16 text", "save it as UTF-8"),
    codecs.BOM_UTF16_BE: ("UTF-16 text", "save it as UTF-8"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself"),
    b"<": ("a web page", "download it again, signed in to PhysioNet"),
}
"""How a file begins that is no text of records → what it is, and what to do; {} is the form to save it in."""
_TAR = slice(257, 262)
"""Where a tar archive has its mark."""
HEAD = _TAR.stop
"""Bytes that tell the kind."""


def other_kind(head: bytes, form: str) -> str:
    """What a file is that is not of this form, and what to do; empty if its first bytes are no known other kind's.

    `form`: the one that it should have, for the message; the first bytes are those after a gzip stream is unpacked.
    """
    if head[_TAR] == b"ustar":
        return f"a tar archive, not {form}; unpack it"
    for prefix, (kind, fix) in _KINDS.items():
        if head.lstrip().startswith(prefix):
            return f"{kind}, not {form}; {fix.format(form.split(' or ')[0])}"
    return ""
