"""What ends a command early, as its user sees it: one line instead of a traceback, and an exit code.

Everything else is a defect and keeps its traceback. launch.py imports this first, so it takes nothing that an old
Python or an empty environment lacks.
"""

from __future__ import annotations

import errno
import os
import sys

from lumen_hpc.errors import FAILED_MOUNT, FAILED_MOUNT_FIX, UserError
from lumen_hpc.plain_text import visible

OLDEST = (3, 11)
"""The oldest Python that the suite runs on."""
OWN = ("lumen_hpc", "jobs")
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
CLOSED = (errno.EACCES, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
FIXES = {
    **dict.fromkeys(PATH_ERRORS, "give another path"),
    **dict.fromkeys(FULL, "free some space or choose runs=FOLDER"),
    **dict.fromkeys(FAILED_MOUNT, FAILED_MOUNT_FIX),
    **dict.fromkeys(CLOSED, "choose another folder, by runs=FOLDER, or for weights profile.cache=FOLDER"),
    errno.EFBIG: "ulimit -f unlimited (ulimit -f limits files here)",
}
"""What to do about errors of a disk, by number; any other is a defect."""


class Workplace:
    """Where a command works, once that is known: messages name it."""

    folder = ""
    writes = False
    """Whether the command changes that folder."""


def exit_code(error: BaseException, workplace: Workplace) -> int:
    """Prints what ended a command and returns its exit code; raises a defect again. Call it from an `except`."""
    if isinstance(error, UserError):
        message = str(error) + (f"; {error.advice}" if error.advice else "")
    elif isinstance(error, KeyboardInterrupt):
        message = "interrupted" + "; finished shards are kept; the same command continues" * workplace.writes
    elif isinstance(error, (ImportError, AttributeError)) and (file := _foreign_module(error)):
        message = (
            f"{file}, which PYTHONPATH puts before the environment's packages, is not what this command needs "
            f"({error}); unset PYTHONPATH, or rename the file or its folder"
        )
    elif isinstance(error, ImportError) and not _is_own(error):
        message = _missing_package(error)
    elif isinstance(error, FileExistsError) and error.filename and not os.path.isdir(error.filename):
        message = _no_folder(str(error.filename))
    elif isinstance(error, OSError) and error.errno in FIXES and (error.filename or workplace.folder):
        message = _disk(error, workplace)
    elif isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of a path with ~
        message = (
            "a folder begins with ~, and this user has no home folder here, or with ~NAME, and nobody has that name; "
            "set HOME, or give whole paths (profile.cache=FOLDER)"
        )
    else:
        raise
    print(f"lumen: {visible(message)}", file=sys.stderr)
    return 130 if isinstance(error, KeyboardInterrupt) else 2


def lost_output(error: OSError) -> int:
    """The exit code of a command whose output has no reader any more, such as head, or no space; raises a defect."""
    if error.errno not in (errno.EPIPE, *FULL):
        raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
    if error.errno != errno.EPIPE:
        print(f"lumen: the output cannot be written: {error.strerror}", file=sys.stderr)
    return 1


def _is_own(error: ImportError) -> bool:
    """Whether a module of the project itself is missing, on a Python that could import it."""
    return (error.name or "").split(".")[0] in OWN and sys.version_info >= OLDEST


def _foreign_module(error: ImportError | AttributeError) -> str:
    """The file of PYTHONPATH that was imported in the place of the package that an error is about; "" if none was."""
    name = error.name if isinstance(error, ImportError) else getattr(getattr(error, "obj", None), "__name__", None)
    package = str(name).split(".")[0]
    file = "" if package in OWN else getattr(sys.modules.get(package), "__file__", None) or ""
    folders = [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return file if any(file.startswith(os.path.join(folder, "")) for folder in folders) else ""


def _missing_package(error: ImportError) -> str:
    old = f", and it is Python {sys.version.split()[0]}, not 3.11 or newer" * (sys.version_info < OLDEST)
    return (
        f"{sys.executable} lacks a package that this command needs ({error}){old}; activate the environment that was "
        "made for it, or `make setup` makes one for CPUs: then .venv/bin/python launch.py …"
    )


def _no_folder(path: str) -> str:
    target = f"a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else "no folder"
    return f"{path} is {target}, where a folder belongs: restore it, or move it away"


def _disk(error: OSError, workplace: Workplace) -> str:
    place = workplace.folder or "the run's folder"
    if error.filename and error.errno in (*PATH_ERRORS, *CLOSED, *FAILED_MOUNT):
        place = str(error.filename)[:200]
    elif not error.filename and not workplace.writes:
        place = f"the output, or {place}"
    return f"{place}: {error.strerror}; {FIXES[error.errno or 0]}"
