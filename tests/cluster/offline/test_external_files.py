from __future__ import annotations

import os
from pathlib import Path

import pytest

from lumen_hpc.cluster import external_files, plan
from lumen_hpc.cluster.stage import Run, Step
from lumen_hpc.errors import UserError
from tests.cluster.offline.conftest import stage


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(b"id\n12\n")
    return path


@pytest.fixture
def step(table: Path) -> Step:
    return Step(stage("prepare", resources="cpu", external=lambda settings: [str(table)]))


def touch(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def inputs(run: Run, step: Step) -> list[str | None]:
    return plan.inputs(run, step, [])


def read(run: Run, step: Step) -> list[str | None]:
    """As a task does: the hash that its line records, and the note of what it has read."""
    statuses, hashes = external_files.statuses(run, step), inputs(run, step)
    external_files.note(run.folder / step.name, statuses)
    return hashes


def test_the_same_bytes_with_another_time_are_the_same_input(run: Run, step: Step, table: Path, monkeypatch) -> None:
    touch(table, 1_000)
    before = read(run, step)
    for seconds in (2_000, 3_000, 1_000):
        touch(table, seconds)
        assert inputs(run, step) == before
    monkeypatch.setattr(external_files, "sha256", None)
    touch(table, 2_000)
    assert inputs(run, step) == before, "it is hashed once per time"


def test_other_bytes_of_the_same_size_are_another_input(run: Run, step: Step, table: Path) -> None:
    before = read(run, step)
    table.write_bytes(b"id\n13\n")
    touch(table, 2_000)
    changed = inputs(run, step)
    assert changed != before and read(run, step) == changed == inputs(run, step)
    table.write_bytes(b"id\n12\n")
    touch(table, 3_000)
    assert inputs(run, step) == before


def test_a_file_that_changes_while_it_is_read_is_another_input(run: Run, step: Step, table: Path) -> None:
    statuses, before = external_files.statuses(run, step), inputs(run, step)
    table.write_bytes(b"id\n13\n")
    touch(table, 2_000)
    external_files.note(run.folder / step.name, statuses)
    assert inputs(run, step) != before
    assert not (run.folder / step.name / external_files.NAME).exists()


def test_only_a_file_that_was_read_with_this_size_is_hashed(run: Run, step: Step, table: Path, monkeypatch) -> None:
    monkeypatch.setattr(external_files, "sha256", None)
    before = inputs(run, step)
    touch(table, 2_000)
    assert inputs(run, step) != before
    monkeypatch.undo()
    read(run, step)
    monkeypatch.setattr(external_files, "sha256", None)
    table.write_bytes(b"id\n12\n13\n")
    assert inputs(run, step) != before


def test_another_users_run_has_nobody_read_a_file_for_hours(run: Run, step: Step, table: Path, monkeypatch) -> None:
    touch(table, 1_000)
    before = read(run, step)
    monkeypatch.setattr(external_files, "foreign", lambda folder: "it belongs to another")
    monkeypatch.setattr(external_files, "sha256", None)
    assert inputs(run, step) == before
    touch(table, 2_000)
    assert inputs(run, step) != before


def test_a_file_that_is_not_there_is_named(run: Run, step: Step, table: Path) -> None:
    table.unlink()
    with pytest.raises(UserError, match=f"stage prepare reads {table}, which is not there; put it back"):
        inputs(run, step)
