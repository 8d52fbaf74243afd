"""Private folders on a node that many users share."""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, user_name


def private_scratch(purpose: str) -> Path:
    """A new node-local folder of mode 0700 that is removed when this process ends.

    It lies in LUMEN_SCRATCH (`profile.scratch`), else in the system's temporary folder. Its name cannot be guessed, so
    nobody can create it beforehand. Leftovers of this user's killed processes on this node are removed too. Raises
    UserError if the scratch folder is missing, or another user could replace what lies in it.
    """
    top = Path(os.environ.get("LUMEN_SCRATCH") or tempfile.gettempdir())
    if not top.is_dir():
        raise UserError(f"{top} is not a folder; correct profile.scratch, or TMPDIR")
    if top.stat().st_mode & stat.S_IWOTH and not top.stat().st_mode & stat.S_ISVTX:
        raise UserError(f"any user may replace folders in {top}; its sticky bit is missing (chmod +t)")
    if top.stat().st_uid not in (os.getuid(), 0) and top.resolve().parent.stat().st_mode & stat.S_IWOTH:
        raise UserError(
            f"{top} is {user_name(top.stat().st_uid)}'s, created where any user may; correct profile.scratch"
        )
    name = f"lumen-{purpose}-{socket.gethostname()}-"
    for leftover in top.glob(f"{glob.escape(name)}*"):
        process = leftover.name.removeprefix(name).partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists() and leftover.lstat().st_uid == os.getuid():
            shutil.rmtree(leftover, ignore_errors=True)
    folder, owner = Path(tempfile.mkdtemp(prefix=f"{name}{os.getpid()}-", dir=top)), os.getpid()
    if reason := foreign(folder):
        raise UserError(f"{folder} is not private: {reason}")
    atexit.register(_remove, folder, owner)
    return folder


def compile_caches(scratch: Path) -> Path:
    """Where compiled code, which is run again, may lie: `scratch` if it is this user's alone, else a private folder."""
    status = scratch.stat()
    own = status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH
    return scratch if own else private_scratch("compile")


def use_private_cache() -> None:
    """Put compiled code where nobody else can: in `profile.scratch`, which the worker has named, or a new folder."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = private_scratch("compile")
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)
