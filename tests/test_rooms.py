"""The order of the house: imports run downwards, and no module has a name that says nothing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("launch",),
    ("jobs",),
    ("analysis",),
    ("cluster",),
    ("report",),
    ("serving", "outcomes"),
    ("metrics", "training"),
    ("language",),
    ("experts",),
    ("data",),
    ("nvila",),
    ("config",),
    (
        "distributed",
        "watchdog",
        "weights",
        "models",
        "proportions",
        "registry",
        "plain_text",
        "scratch",
        "torchvision_compat",
        "transformers_compat",
    ),
    ("files", "errors"),
)
"""From the top down. A room may import rooms of lower floors, and itself."""


def _files() -> Iterator[tuple[Path, str]]:
    """(file, room) of the project's code."""
    for path in [*(ROOT / "lumen_hpc").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), ROOT / "launch.py"]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[1] if parts[0] == "lumen_hpc" else parts[0]


def _imports(path: Path) -> Iterator[str]:
    """Rooms that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            is_top = node.module == "lumen_hpc"
            names = [f"lumen_hpc.{alias.name}" for alias in node.names] if is_top else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "lumen_hpc" and rest:
                yield rest.split(".")[0]
            elif first in ("jobs", "launch"):
                yield first


def test_imports_run_downwards():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = defaultdict(set)
    for path, room in _files():
        if room == "__init__":
            continue
        assert room in floor, f"{path.relative_to(ROOT)}: room {room} has no floor; add it to FLOORS"
        for other in _imports(path):
            if other != room and floor[other] <= floor[room]:
                upwards[room, other].add(str(path.relative_to(ROOT)))
    assert not upwards, f"imports that run up: {dict(upwards)}"


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager", "misc"])
def test_no_module_is_called(word: str):
    assert not [path for path, _ in _files() if path.stem == word]


def test_jobs_do_not_import_each_other():
    for path, room in _files():
        if room == "jobs" and path.stem != "__init__":
            assert "jobs" not in set(_imports(path)), path.relative_to(ROOT)


def test_tests_and_benchmarks_do_not_import_each_other():
    for top, other in (("tests", "benchmarks"), ("benchmarks", "tests")):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert node.module.split(".")[0] != other, f"{path.relative_to(ROOT)} imports {node.module}"
