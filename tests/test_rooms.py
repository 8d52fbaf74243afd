"""The order of the house: imports run downwards, and names and words are those of the glossary."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
        "environment",
        "watchdog",
        "weights",
        "models",
        "muon",
        "proportions",
        "recently_used",
        "registry",
        "replicas",
        "schedule",
        "plain_text",
        "progress",
        "scratch",
        "torchvision_compat",
        "transformers_compat",
    ),
    ("files",),
    ("errors",),
)
"""From the top down. A room may import rooms of lower floors, and itself."""
TOPS = ("lumen_hpc", "jobs", "sandbox", "benchmarks", "tests", "docs")


def _files() -> Iterator[tuple[Path, str]]:
    """(file, room) of the project's code."""
    for path in [*(ROOT / "lumen_hpc").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), ROOT / "launch.py"]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[1] if parts[0] == "lumen_hpc" else parts[0]


def _texts() -> Iterator[Path]:
    """Every text of the project but the glossary and the sentences of radiologists, which may have any word."""
    endings = {".py", ".md", ".yaml", ".html", ".js", ".css", ".sh"}
    ours = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *(path for top in TOPS for path in (ROOT / top).rglob("*"))]
    for path in ours:
        of_radiologists = path.is_relative_to(ROOT / "tests" / "language") or path.name == "vocabulary.yaml"
        if path.suffix in endings and not of_radiologists and path.name not in ("CONTRIBUTING.md", "test_rooms.py"):
            yield path


def _module(dotted: str) -> Path | None:
    """The file of a module of the project; None if there is none."""
    path = ROOT.joinpath(*dotted.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Modules of the project that a file imports, wherever in it; `from package import module` is that module."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            source = ".".join([*here, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" if _module(f"{source}.{alias.name}") else source for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in ("lumen_hpc", "jobs", "launch"))


@cache
def _top_level_names(path: Path) -> set[str]:
    """Names that a module defines or imports when it is imported; inside `if` and `try` too, not inside functions."""
    names: set[str] = set()
    statements: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while statements:
        node = statements.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            statements += ast.iter_child_nodes(node)
    return names


def _rooms(path: Path) -> set[str]:
    """Rooms that a file imports."""
    dotted = [name.split(".") for name in _imports(path)]
    return {parts[1] if parts[0] == "lumen_hpc" else parts[0] for parts in dotted if parts != ["lumen_hpc"]}


def test_imports_run_downwards():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = defaultdict(set)
    for path, room in _files():
        if room == "__init__":
            continue
        assert room in floor, f"{path.relative_to(ROOT)}: room {room} has no floor; add it to FLOORS"
        for other in _rooms(path):
            if other != room and floor[other] <= floor[room]:
                upwards[room, other].add(str(path.relative_to(ROOT)))
    assert not upwards, f"imports that run up: {dict(upwards)}"


def test_every_module_that_is_imported_exists():
    for path, _ in _files():
        for name in _imports(path):
            assert _module(name), f"{path.relative_to(ROOT)} imports {name}"


def test_every_name_that_is_imported_exists():
    """`from lumen_hpc.x import name` in code, tests and benchmarks, read without importing anything.

    `from jobs import x` is left out: tests and benchmarks install small stages of their own as `jobs/`.
    """
    missing = []
    for top in ("lumen_hpc", "jobs", "sandbox", "benchmarks", "tests"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ImportFrom) or node.level or node.module == "jobs":
                    continue
                if source := _module(node.module):
                    names = {alias.name for alias in node.names} - _top_level_names(source)
                    unknown = [name for name in names if not _module(f"{node.module}.{name}")]
                    missing += [f"{path.relative_to(ROOT)}: {node.module} has no {name}" for name in unknown]
    assert not missing, "\n".join(missing)


def test_no_files_import_each_other_in_a_circle():
    order = TopologicalSorter(
        {path: [_module(name) for name in _imports(path)] for path, _ in _files() if path.stem != "__init__"}
    )
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(str(path.relative_to(ROOT)) for path in error.args[1])}")


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager", "misc"])
def test_no_module_is_called(word: str):
    assert not [path for path, _ in _files() if path.stem == word]


@pytest.mark.parametrize("word", ["film", "vouch", "mend", "cure", "tamper", "wanted", "survey"])
def test_no_file_has_a_word_that_the_glossary_replaces(word: str):
    pattern = re.compile(rf"(?<![a-z]){word}", re.IGNORECASE)
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not lines, "\n".join(["the glossary in CONTRIBUTING.md has other words for these:", *lines])


def test_nothing_is_named_said_or_told_but_what_a_language_says():
    """A message, a claim or a reading is meant; the language package reads what a sentence said."""
    for path, room in _files():
        if room != "language":
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not names & {"said", "told"}, path.relative_to(ROOT)


def test_jobs_do_not_import_each_other():
    for path, room in _files():
        if room == "jobs" and path.stem != "__init__":
            assert "jobs" not in _rooms(path), path.relative_to(ROOT)


def test_tests_and_benchmarks_do_not_import_each_other():
    for top, other in (("tests", "benchmarks"), ("benchmarks", "tests")):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert node.module.split(".")[0] != other, f"{path.relative_to(ROOT)} imports {node.module}"
