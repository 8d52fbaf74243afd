from __future__ import annotations

import multiprocessing
import os
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest

from lumen_hpc.cluster import graph, manifest, plan
from lumen_hpc.cluster.shards import write_shard
from lumen_hpc.cluster.stage import Run, Shard, Stage
from lumen_hpc.errors import UserError
from tests.cluster.offline.offline_graph import finish


def _append_many(path: Path, who: int) -> None:
    for number in range(200):
        manifest.append(path, {"who": who, "number": number})


def test_concurrent_writers_lose_no_line(tmp_path: Path):
    path = tmp_path / "manifest.jsonl"
    writers = [multiprocessing.Process(target=_append_many, args=(path, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = manifest.read(path)
    assert sorted((row["who"], row["number"]) for row in rows) == [(w, n) for w in range(4) for n in range(200)]


def test_a_torn_line_costs_only_its_own_shard(tmp_path: Path):
    path = tmp_path / "manifest.jsonl"
    manifest.append(path, {"shard": 0})
    with path.open("ab") as stream:
        stream.write(b'{"shard": 1, "ro')
    manifest.append(path, {"shard": 2})
    assert [row["shard"] for row in manifest.read(path)] == [0, 2]


def test_a_line_for_which_there_is_no_room_is_not_there_in_part(tmp_path: Path):
    path = tmp_path / "manifest.jsonl"
    manifest.append(path, {"shard": 0})
    size, (soft, hard) = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))  # the kernel writes what fits, as on a full disk
    try:
        with pytest.raises(OSError, match="No space left"):
            manifest.append(path, {"shard": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    manifest.append(path, {"shard": 2})
    assert path.read_text().count("\n") == 2


@pytest.fixture
def answered(run: Run, stages: list[Stage]) -> list:
    steps = graph.steps(stages, run.settings)
    for step in steps:
        finish(run, step, steps)
    return steps


def _missing(run: Run, steps: list, name: str) -> list[int]:
    return plan.missing_shards(run, next(step for step in steps if step.name == name), steps)


def test_finished_means_nothing_is_missing(run: Run, answered: list):
    assert all(plan.missing_shards(run, step, answered) == [] for step in answered)


def _flip_a_byte(path: Path) -> None:
    content, written = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(written, written + 10_000_000))  # a file system's clock may stand still for so long


@pytest.mark.parametrize("harm", [Path.unlink, _flip_a_byte, lambda path: path.write_bytes(b"")])
def test_a_harmed_shard_is_missing_and_no_other(run: Run, answered: list, harm):
    harm(run.folder / "answer-a" / Shard(2, 4).file)
    assert _missing(run, answered, "answer-a") == [2]
    assert _missing(run, answered, "answer-b") == []


def test_a_file_that_was_only_touched_is_still_done(run: Run, answered: list):
    os.utime(run.folder / "answer-a" / Shard(2, 4).file)
    assert _missing(run, answered, "answer-a") == []


def test_a_copied_run_is_hashed_once_and_a_later_corruption_is_still_seen(
    run: Run, answered: list, monkeypatch: pytest.MonkeyPatch
):
    hashed: list[str] = []
    whole = manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or whole(path))
    shards = sorted((run.folder / "answer-a").glob("shard-*"))
    for shard in shards:
        os.utime(shard, (1, 1))
    assert _missing(run, answered, "answer-a") == []
    assert hashed == [shard.name for shard in shards]
    manifest._verified_cache.clear()  # as in another command
    assert _missing(run, answered, "answer-a") == []
    assert len(hashed) == len(shards), "hashed a second time"
    content = shards[2].read_bytes()
    shards[2].write_bytes(content.replace(b"2", b"7"))
    os.utime(shards[3], (2, 2))
    assert _missing(run, answered, "answer-a") == [2]
    assert hashed[len(shards) :] == [shards[2].name, shards[3].name]


def test_a_copied_artefact_is_noted_in_the_folder_of_its_step(run: Run, answered: list):
    folder = run.folder / "answer-a"
    artefact = folder / "final" / "weights"
    artefact.parent.mkdir()
    artefact.write_text("weights")
    row = {"file": "final/weights", "bytes": 7, "sha256": manifest.sha256(artefact), "mtime_ns": 1}
    manifest.append(folder / manifest.NAME, manifest.latest(folder)[1] | {"files": [row]})
    assert _missing(run, answered, "answer-a") == []
    (note,) = manifest.read(folder / manifest.VERIFIED)
    assert note["file"] == "final/weights" and not (folder / "final" / manifest.VERIFIED).exists()


@pytest.mark.parametrize(("wrong", "named"), [("", ""), ("final/weights", "final/weights"), ("shard", "shard")])
def test_who_reads_a_shard_is_told_of_the_first_file_that_is_not_its_lines(
    run: Run, answered: list, wrong: str, named: str
):
    folder, shard = run.folder / "answer-a", Shard(1, 4).file
    artefact = folder / "final" / "weights"
    artefact.parent.mkdir()
    artefact.write_text("weights")
    row = {"file": "final/weights", "bytes": 7, "sha256": manifest.sha256(artefact), "mtime_ns": 1}
    line = manifest.latest(folder)[1] | {"files": [row]}
    if wrong:
        harmed = folder / shard if wrong == "shard" else folder / wrong
        _flip_a_byte(harmed)
    assert manifest.first_mismatch(folder, line) == (shard if named == "shard" else named)
    assert manifest.is_verified(folder, line) is not bool(wrong)
    with (
        pytest.raises(UserError, match="shard 1 is not the file that its manifest records") if wrong else nullcontext()
    ):
        manifest.require_verified(folder, line)


def test_a_changed_setting_makes_only_its_stages_stale(run: Run, answered: list):
    run.settings.train.learning_rate *= 2
    assert all(plan.missing_shards(run, step, answered) == [] for step in answered)
    run.settings.seed += 1
    assert _missing(run, answered, "answer-a") == [0, 1, 2, 3]


def test_a_corresponding_shard_goes_stale_alone(run: Run, answered: list):
    step = next(step for step in answered if step.name == "answer-a")
    folder = run.folder / step.name
    written = write_shard(folder, Shard(1, 4), [{"row": "another"}], step.stage.volatile)
    line = {**manifest.latest(folder)[1], "content": written.content, "sha256": written.sha256}
    manifest.append(folder / manifest.NAME, {**line, "bytes": written.bytes, "mtime_ns": written.mtime_ns})
    assert _missing(run, answered, "answer-a") == []
    assert _missing(run, answered, "score-a") == [1]
    assert _missing(run, answered, "score-b") == []


def test_other_timings_alone_make_nothing_stale(run: Run, answered: list):
    step = next(step for step in answered if step.name == "answer-a")
    finish(run, step, answered, [1], seconds=9.0)
    assert _missing(run, answered, "score-a") == []
