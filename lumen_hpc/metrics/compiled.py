"""The counting of ngrams.py, compiled once for each version of it.

numba keeps machine code beside a file and knows it by the file's path and time, and each run has its own copy of the
code. So a copy that is named by its content is compiled, in this user's cache; where that cannot be written, or others
could write it, the module itself is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from lumen_hpc.files import atomic, foreign, replaceable

CACHE = Path("~/.cache/lumen_hpc/compiled")
MACHINE_CODE_BYTES = 2 << 20
"""Bytes that the machine code takes at most."""


@cache
def counting() -> ModuleType:
    """The module ngrams, of whose functions the machine code is kept."""
    source = Path(__file__).with_name("ngrams.py")
    try:
        file = _cached_copy(source)
    except (OSError, RuntimeError):  # a full or read-only disk; a user without a home
        file = source
    name = f"{__package__}.ngrams"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cached_copy(source: Path) -> Path:
    """The copy in the cache, with room beside it; OSError where there is no place for it."""
    content = source.read_bytes()
    folder = CACHE.expanduser() / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = folder / source.name
    if not copy.exists():
        with atomic(copy) as out:
            out.write(content)
    if any(map(foreign, (folder, copy))) or replaceable(copy) or copy.read_bytes() != content:
        raise OSError(f"{folder}: others could write what is run from there")
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(MACHINE_CODE_BYTES))
    return copy
