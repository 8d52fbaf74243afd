"""Files of another kind where a table or JSON lines are expected: their kind by their first bytes, and the fix."""

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
"""First bytes of a file that is no text of records → its kind, and the fix; {} is the form to save it in."""
_TAR = slice(257, 262)
"""Position of a tar archive's mark."""
HEAD = _TAR.stop
"""Bytes that show the kind."""


def other_kind(head: bytes, form: str) -> str:
    """The kind of a file that is not of this form, and the fix; empty if its first bytes are no other kind's.

    `head`: its first bytes, unpacked if the file is gzipped. `form`: the expected one, for the message.
    """
    if head[_TAR] == b"ustar":
        return f"a tar archive, not {form}; unpack it"
    for prefix, (kind, fix) in _KINDS.items():
        if head.lstrip().startswith(prefix):
            return f"{kind}, not {form}; {fix.format(form.split(' or ')[0])}"
    return ""
