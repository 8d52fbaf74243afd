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
PATIENCE_S = 30.0
NEEDED = tuple(dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix)))
"""What the user has to read in order to run this Python."""


@contextmanager
def present() -> Iterator[None]:
    """The user exists; the last of the programs that use it at once removes it, if one of them created it."""
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
    deadline = time.monotonic() + PATIENCE_S
    while NAME not in (entry.pw_name for entry in pwd.getpwall()):
        words = ["useradd", "--no-create-home", "--user-group", NAME]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return True
        if time.monotonic() > deadline:
            raise RuntimeError(f"useradd {NAME}: {done.stderr.strip()}")
        time.sleep(0.5)
    return False


def run(*command: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command as the user, who may read the interpreter of this process wherever it lies."""
    with tempfile.TemporaryDirectory() as aside:
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _enter(Path(aside)), "sh"]
        given = {**environment, "USER": NAME, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([*enter, *command], cwd=folder, env=given, capture_output=True, text=True, timeout=300)


def _enter(aside: Path) -> str:
    """Shell lines that become the user, with closed folders replaced by open ones that hold what is needed."""
    hidden: dict[Path, list[str]] = {}
    for name in NEEDED:
        if closed := next(
            (path for path in reversed(Path(name).parents) if not path.stat().st_mode & stat.S_IXOTH), None
        ):
            hidden.setdefault(closed, []).append(name)
    lines = ["set -e"]
    places = {name: aside / str(number) for number, name in enumerate(NEEDED)}
    for closed, names in hidden.items():
        lines += [f"mkdir {places[name]}; mount --bind {shlex.quote(name)} {places[name]}" for name in names]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}")
        lines += [f"mkdir -p {shlex.quote(name)}; mount --bind {places[name]} {shlex.quote(name)}" for name in names]
    return "\n".join([*lines, f'exec setpriv --reuid={NAME} --regid={NAME} --init-groups -- "$@"'])
