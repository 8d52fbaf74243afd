"""What the documents show can be typed: their imports resolve, and their files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(text: str) -> list[str]:
    """The fenced blocks of a document, indented ones too."""
    return re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_imports_in_examples_resolve(document):
    lines = [line.strip() for block in _blocks(document.read_text()) for line in block.splitlines()]
    for line in lines:
        if re.match(r"(from lumen_hpc\S* import|import lumen_hpc)\b", line):
            exec(line.split("#")[0], {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_there_is_something_to_check():
    assert sum(len(_blocks(document.read_text())) for document in DOCUMENTS) > 20
