"""A second, ordinary user of this machine, who tries to see and to disturb what the first one does. It takes root."""

from __future__ import annotations

import fcntl
import os
import pwd
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "lumen-neighbour"
USERS = Path("/run/lumen-neighbour")
"""Locked by each program that uses the account; holds a word if one of them created it."""
CREATE_TIMEOUT_S = 30.0
REQUIRED_PATHS = tuple(dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix)))
"""What the user has to read in order to run this Python."""


@contextmanager
def account() -> Iterator[None]:
    """The user exists within the block; the last program that uses it removes it, if one of them created it."""
    with USERS.open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        if _create():
            users.write("created")
            users.flush()
        try:
            yield
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if USERS.read_text():
                    subprocess.run(["userdel", NAME], capture_output=True)
                    users.truncate(0)


def _create() -> bool:
    """Creates the user, waiting while another program holds /etc/passwd; False if it exists."""
    deadline = time.monotonic() + CREATE_TIMEOUT_S
    while NAME not in (entry.pw_name for entry in pwd.getpwall()):
        words = ["useradd", "--no-create-home", "--user-group", NAME]
        useradd = subprocess.run(words, capture_output=True, text=True)
        if useradd.returncode == 0:
            return True
        if time.monotonic() > deadline:
            raise RuntimeError(f"useradd {NAME}: {useradd.stderr.strip()}")
        time.sleep(0.5)
    return False


def run(*command: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command as the user, who may read the interpreter of this process wherever it lies."""
    with tempfile.TemporaryDirectory() as scratch:
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _enter(Path(scratch)), "sh"]
        variables = {**environment, "USER": NAME, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [*enter, *command], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
        )


def _enter(aside: Path) -> str:
    """Shell lines that become the user, with closed folders replaced by open ones that hold what is needed."""
    paths_by_closed_folder: dict[Path, list[str]] = {}
    for name in REQUIRED_PATHS:
        if closed_folder := next(
            (path for path in reversed(Path(name).parents) if not path.stat().st_mode & stat.S_IXOTH), None
        ):
            paths_by_closed_folder.setdefault(closed_folder, []).append(name)
    lines = ["set -e"]
    places = {name: aside / str(number) for number, name in enumerate(REQUIRED_PATHS)}
    for closed_folder, names in paths_by_closed_folder.items():
        lines += [f"mkdir {places[name]}; mount --bind {shlex.quote(name)} {places[name]}" for name in names]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed_folder))}")
        lines += [f"mkdir -p {shlex.quote(name)}; mount --bind {places[name]} {shlex.quote(name)}" for name in names]
    return "\n".join([*lines, f'exec setpriv --reuid={NAME} --regid={NAME} --init-groups -- "$@"'])
