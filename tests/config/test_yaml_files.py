"""YAML is read as settings are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.config.yaml_files import parse, read_yaml
from lumen_hpc.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("1.", 1.0),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("'12'", "12"),
        ("[a, 1e1]", ["a", 10.0]),
        ("export X=${HOME}", "export X=${HOME}"),
    ],
)
def test_plain_words_have_the_type_they_look_like(text: str, value: object) -> None:
    found = parse(text)
    assert (found, type(found)) == (value, type(value))


def test_a_key_that_comes_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"site\.yaml, line 3: .* key a comes twice"):
        read_yaml(path)


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path) == {}
