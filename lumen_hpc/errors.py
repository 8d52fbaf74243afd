"""The one error class that speaks to users, and how a Ctrl-C reaches what runs."""

from __future__ import annotations

import errno
import signal

FAILED_MOUNT = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO)
"""Errors of a file system that does not answer: its files are not missing."""
FAILED_MOUNT_FIX = "its file system does not answer: have it mounted again, or try another node"


class UserError(ValueError):
    """Something the user gave is wrong: the message names the bad value, where it came from and what would do.

    `launch.py` prints the message alone and exits with 2; anything else is a defect and keeps its traceback.
    """

    advice = ""
    """What would do about every error of this class; printed after the message of one that ends a command."""


class FailedMount(UserError):
    """A file is not missing or broken: its file system did not answer, and may do so again."""


def unreadable(place: str, error: OSError) -> UserError:
    """The error of a file that cannot be read; EIO may be of the file alone, such as a bad sector."""
    message = f"{place} cannot be read: {error.strerror or error}"
    if error.errno not in FAILED_MOUNT or error.errno == errno.EIO:
        return UserError(message)
    return FailedMount(f"{message}; {FAILED_MOUNT_FIX}")


def raise_interrupts() -> None:
    """Has Ctrl-C raise KeyboardInterrupt again, where launch.py lets it end the process while modules load."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
