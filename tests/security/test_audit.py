"""The audit of the lock says what it did not look at, and refuses a licence that nobody has decided on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from sandbox.checkout import ROOT


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
SOUND = {"name": "orjson", "version": "3.13.0", "vulns": []}
VULNERABLE = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]}


@pytest.mark.parametrize(
    ("packages", "count", "text"),
    [
        ([SKIPPED, SKIPPED], 0, "not checked, pip-audit's database knows none"),
        ([SKIPPED, SOUND], 0, "0 of the 1 packages that pip-audit's database knows; 1 are not in it"),
        ([SOUND, VULNERABLE], 1, "pillow 1.0: CVE-1, CVE-2"),
    ],
)
def test_packages_that_were_not_audited_are_not_called_sound(audit, capsys, packages, count, text):
    assert audit.report(packages) == count
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("text", ["GPL-3.0-only", "Other/Proprietary License", "GNU Affero General Public License v3"])
def test_a_licence_that_binds_or_is_no_open_one_needs_a_decision(audit, tmp_path: Path, monkeypatch, text):
    monkeypatch.setattr(audit, "vulnerabilities", lambda lock: 0)
    monkeypatch.setattr(audit, "licence", lambda name: text)
    (tmp_path / "lock").write_text(f"orjson=={audit.metadata.version('orjson')}\n")
    assert audit.main(tmp_path / "lock") == 1
    monkeypatch.setattr(audit, "licence", lambda name: "MIT")
    assert audit.main(tmp_path / "lock") == 0


def test_a_copyleft_licence_without_a_decision_is_a_fault(audit, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "vulnerabilities", lambda lock: 0)
    lock = tmp_path / "lock"
    version = audit.metadata.version("pylibjpeg-libjpeg")
    lock.write_text(f"pylibjpeg-libjpeg=={version}\n")
    assert audit.main(lock) == 0
    assert "GPL-3.0: tests alone use it" in capsys.readouterr().out
    monkeypatch.setattr(audit, "DECIDED", {})
    assert audit.main(lock) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007", "GPL, by its text"),
        ("                 Apache License\n      Version 2.0, January 2004", "Apache-2.0, by its text"),
        ("Permission is hereby granted, free of charge, to any\nperson", "MIT, by its text"),
        ("You may look at it.", "unknown"),
    ],
)
def test_a_package_that_names_its_licence_in_a_file_alone_is_read(audit, tmp_path, monkeypatch, text, found):
    folder = tmp_path / "hidden-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: hidden\nVersion: 1.0\n")
    (folder / "LICENSE").write_text(text)
    (folder / "RECORD").write_text("hidden-1.0.dist-info/LICENSE,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert audit.licence("hidden") == found
    monkeypatch.setattr(audit, "vulnerabilities", lambda lock: 0)
    (tmp_path / "lock").write_text("hidden==1.0\n")
    assert audit.main(tmp_path / "lock") == (0 if found[:2] in ("MI", "Ap") else 1)


def test_no_stage_needs_the_decoder_under_the_gpl():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [
        name for name, packages in extras.items() if any(word.startswith("pylibjpeg-libjpeg") for word in packages)
    ] == ["test"]
