"""The one error class that speaks to users, and how a Ctrl-C reaches what runs."""

from __future__ import annotations

import errno
import signal

FAILED_MOUNT = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO)
"""Errors of a file system that does not answer: its files are not missing."""


class UserError(ValueError):
    """Something the user gave is wrong: the message names the bad value, where it came from and what would do.

    `launch.py` prints the message alone and exits with 2; anything else is a defect and keeps its traceback.
    """

    advice = ""
    """What would do about every error of this class; printed after the message of one that ends a command."""


def raise_interrupts() -> None:
    """Has Ctrl-C raise KeyboardInterrupt again, where launch.py lets it end the process while modules load."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
