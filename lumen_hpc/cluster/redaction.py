"""Error messages as they may be logged: without a record's text where the data are restricted."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from lumen_hpc.errors import UserError


def describe(error: BaseException, restricted: bool) -> tuple[str, str]:
    """An error's message and its traceback, as they may be logged."""
    if not restricted or _is_free_of_records(error):
        return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
    is_user_error = isinstance(error, UserError)
    message = (
        f"{type(error).__name__}: {error if is_user_error else 'the message is left out: the data are restricted'}"
    )
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
    return message, "".join(["Traceback (most recent call last):\n", *frames, message, "\n"])


_MACHINE_ERRORS = {"OutOfMemoryError", "AcceleratorError", "DistBackendError", "DistNetworkError", "DistStoreError"}


def _is_free_of_records(error: BaseException) -> bool:
    """True for errors of files, memory, devices and the network, and for this project's own of two kinds."""
    if error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        return False  # its traceback would show the other error too
    if getattr(error, "__notes__", ()):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).resolve().parents[1]
    is_own_code = not frames or Path(frames[-1].filename).is_relative_to(package)  # the watchdog's was never raised
    return (
        isinstance(error, MemoryError | ImportError)
        or (isinstance(error, OSError) and _is_system_error(error))
        or type(error).__name__ in _MACHINE_ERRORS
        or (type(error) in (RuntimeError, TimeoutError) and is_own_code)
    )


def _is_system_error(error: OSError) -> bool:
    """True for an error with a number and a file's name; a library's own may quote what it read.

    A name that is too long is no file's, but a text that was taken for one.
    """
    return isinstance(error.errno, int) and error.errno != errno.ENAMETOOLONG and len(error.args) >= 2
