"""Attacks by the owner of a run that another user looks at: links, pipes, endless files, forged jobs, terminals."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import launch
import lumen_hpc
from lumen_hpc import analysis
from lumen_hpc.cluster import compare, live, lock, logs, manifest, slurm, status
from lumen_hpc.cluster.shards import Shard, write_shard
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import read_yaml
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic, last_lines
from lumen_hpc.report.run_comparison import Differences, RunResults
from lumen_hpc.serving import supervisor

STRANGER = 12345
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run as submission writes it, with nothing done yet."""
    request = resolve(["stage=full", f"runs={tmp_path}", "run=theirs", "recipe=demo"])
    config_file.save(request, tmp_path / "theirs" / "config.yaml")
    (tmp_path / "theirs" / "layout").write_text("2\n")
    return tmp_path / "theirs"


def shell(run: Path, verb: str, *words: str) -> int:
    return launch.main([verb, f"run={run.name}", f"runs={run.parent}", *words])


# --------------------------------------------------------------------------------------------- what looking would write


@pytest.fixture
def copied(tmp_path) -> Path:
    """A step's folder whose shard has another time than its line: it is hashed, and that is noted in verified.jsonl."""
    folder = tmp_path / "theirs" / "prepare"
    folder.mkdir(parents=True, exist_ok=True)
    written = write_shard(folder, Shard(0, 1), iter([{"a": 1}]))
    row = {"shard": 0, "of": 1, "sha256": written.sha256, "bytes": written.bytes, "mtime_ns": 1, "files": []}
    manifest.append(folder / manifest.NAME, row)
    return folder


@pytest.mark.parametrize("owner", ["own", pytest.param("stranger", marks=only_root)])
def test_looking_at_a_run_writes_nothing_where_its_owners_link_leads(copied, tmp_path, owner):
    """`verified.jsonl -> ~/.bashrc`, and a file called `$(…)` among those that the manifest records."""
    target = tmp_path / "bashrc"
    target.write_text("alias ll='ls -l'\n")
    (copied / manifest.VERIFIED).symlink_to(target)
    if owner == "stranger":
        os.chown(copied, STRANGER, -1)
    (line,) = manifest.latest(copied).values()
    assert manifest.is_verified(copied, line), "the shard itself is sound"
    assert target.read_text() == "alias ll='ls -l'\n"


@only_root
def test_looking_at_a_strangers_run_writes_nothing_at_all(copied):
    os.chown(copied, STRANGER, -1)
    (line,) = manifest.latest(copied).values()
    assert manifest.is_verified(copied, line) and not (copied / manifest.VERIFIED).exists()


def test_in_a_run_of_ones_own_it_is_noted(copied):
    (line,) = manifest.latest(copied).values()
    assert manifest.is_verified(copied, line) and manifest.read(copied / manifest.VERIFIED)


@pytest.mark.parametrize("private", [False, True])
def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path, private):
    (tmp_path / "target").write_text("kept")
    (tmp_path / f"plan.json.{os.getpid()}.tmp").symlink_to(tmp_path / "target")
    with atomic(tmp_path / "plan.json", private=private) as stream:
        stream.write(b"{}")
    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / "plan.json").read_text() == "{}" and not (tmp_path / "plan.json").is_symlink()


# ----------------------------------------------------------------------------------------- what looking would never end


RECORDS = [
    "layout", ".submitting", "submissions/0001/plan.json", "prepare/manifest.jsonl", "prepare/failures.jsonl",
    "prepare/attempts.jsonl", "train-lumen/training.json", "train-lumen/metrics.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("verb", ["status", "logs"])
def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(run, name, verb, capsys):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("metrics.jsonl"):
        (run / name).with_name("training.json").write_text("{}")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    code = shell(run, verb)
    error = capsys.readouterr().err
    assert code == (2 if error else code) and (not error or f"{run / name}: a pipe, a device or a folder" in error)


@pytest.mark.parametrize("name", ["layout", "prepare/manifest.jsonl"])
def test_open_run_does_not_wait_for_a_pipe(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(UserError, match="a pipe, a device or a folder"):
        lumen_hpc.open_run(run).studies  # noqa: B018


def test_open_run_leaves_no_record_where_a_notebook_is_started():
    """DuckDB's own default is `.tmp` in the working directory, with the modes of the user's umask."""
    (settings,) = analysis._database().sql("SELECT current_setting('temp_directory')").fetchall()
    assert settings == ("",)
    assert analysis._database().sql("SELECT current_setting('autoload_known_extensions')").fetchall() == [(False,)]


@only_root
def test_a_shard_with_a_tebibyte_of_holes_is_not_read(copied, monkeypatch):
    """It has another time than its line says, and would be hashed for hours by everybody who looks."""
    (line,) = manifest.latest(copied).values()
    sparse(copied / Shard(0, 1).file)
    os.chown(copied, STRANGER, -1)
    assert not manifest.is_verified(copied, line | {"bytes": 1 << 40})


def test_the_temporary_file_of_a_new_one_is_not_somebody_elses(tmp_path):
    """Who can write the folder creates it first, open for himself: what is written would be his to read."""
    file = tmp_path / f"tables.csv.{os.getpid()}.tmp"
    file.write_text("")
    file.chmod(0o666)
    with file.open("rb") as theirs, atomic(tmp_path / "tables.csv", private=True) as out:
        out.write(b"a record")
        out.flush()
        assert os.fstat(theirs.fileno()).st_ino != os.fstat(out.fileno()).st_ino
        assert theirs.read() == b""
    assert (tmp_path / "tables.csv").stat().st_mode & 0o777 == 0o600


def test_a_temporary_file_that_comes_back_is_not_written(tmp_path, monkeypatch):
    """Between removing it and creating a new one, the attacker is faster."""
    file = tmp_path / f"a.json.{os.getpid()}.tmp"
    unlink = Path.unlink

    def again(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path == file:
            file.write_text("theirs")

    monkeypatch.setattr(Path, "unlink", again)
    with pytest.raises(FileExistsError), atomic(tmp_path / "a.json") as out:
        out.write(b"a record")
    assert not (tmp_path / "a.json").exists()


def test_the_lock_of_a_run_is_no_link_to_another_file(tmp_path):
    (tmp_path / "mine").write_text("text")
    (tmp_path / lock.LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises((UserError, OSError)):
        with lock.held(tmp_path):
            pass
    assert (tmp_path / "mine").read_text() == "text"


def test_a_shard_that_is_a_pipe_is_not_the_one_that_was_written(copied):
    (line,) = manifest.latest(copied).values()
    shard = copied / Shard(0, 1).file
    shard.unlink()
    os.mkfifo(shard)
    status = shard.stat()
    assert not manifest.is_verified(copied, line | {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns})


def sparse(path: Path) -> None:
    """A file of a tebibyte that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


def test_of_an_endless_log_only_the_end_is_read(run, capsys):
    log = run / "prepare" / "logs" / "1_0_log.out"
    sparse(log)
    with log.open("ab") as stream:
        stream.write(b"\nthe end\n")
    assert last_lines(log, 1) == ["the end"]
    assert shell(run, "logs") == 0
    printed = capsys.readouterr().out
    assert "the end" in printed and len(printed) < 10_000


@only_root
@pytest.mark.parametrize("verb", ["status", "logs"])
@pytest.mark.parametrize("key", ["experts.shards", "predict.shards", "rewrite.shards", "train.seeds"])
def test_a_run_of_a_billion_parts_is_one_line(run, key, verb, capsys):
    path = run / "config.yaml"
    whole = read_yaml(path)
    section, name = key.split(".")
    whole.settings[section][name] = 1_000_000_000
    path.write_text(OmegaConf.to_yaml(whole))
    for each in (run, path):
        os.chown(each, STRANGER, -1)
    assert shell(run, verb) == 2
    assert f"{section}.{name}=1000000000: must be from 1 to" in capsys.readouterr().err


def test_the_last_lines_are_those_of_the_file(tmp_path):
    for text in ("", "a", "a\n", "a\nb", "a\n\nb\n", "\n"):
        (tmp_path / "log").write_text(text)
        assert last_lines(tmp_path / "log", 2) == text.splitlines()[-2:]
    (tmp_path / "log").write_text("x" * 300_000 + "\nlast\n")
    assert last_lines(tmp_path / "log", 5) == ["last"]


@pytest.mark.parametrize("name", ["prepare/manifest.jsonl", "submissions/0001/plan.json", "layout"])
def test_an_endless_record_is_one_line(run, name, capsys):
    sparse(run / name)
    assert shell(run, "status") == 2
    assert f"{run / name}: 1099.5 GB, more than any record of a run has" in capsys.readouterr().err


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    "text", [BOMB, "[" * 100_000, "- " * 100_000, "? " * 100_000, "{a: " * 100_000, "a: &a {b: *a}\n"],
    ids=["references", "lists", "items", "keys", "mappings", "itself"],
)  # fmt: skip
def test_a_config_that_would_unfold_without_end_is_one_line(run, text):
    (run / "config.yaml").write_text(f"{text}\n")
    with pytest.raises(UserError, match=r"config\.yaml: not a config\.yaml of a run"):
        run_record.read(run)
    with pytest.raises(UserError, match=r"config\.yaml.*: not readable as YAML") as caught:
        read_yaml(run / "config.yaml")
    assert len(str(caught.value)) < 1000


def test_a_config_names_no_class_to_construct(run, tmp_path):
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path}/ran]\n")
    for read in (run_record.read, lambda folder: read_yaml(folder / "config.yaml")):
        with pytest.raises(UserError):
            read(run)
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------------------- what looking would act on


@only_root
def test_a_forged_plan_does_not_cancel_the_jobs_of_who_reads_it(run, monkeypatch, capsys):
    """Numbers and names of a user's jobs are in squeue, for all to see."""
    text = (run / "config.yaml").read_text().replace("executor: local", "executor: slurm")
    (run / "config.yaml").write_text(text)
    job = {"step": "prepare", "id": "4711", "name": "mine.prepare", "packs": [0], "link": 0}
    plan = {"code": "", "user": os.getuid(), "cluster": "", "packs": {"prepare": [[0]]}, "jobs": [job]}
    (run / "submissions" / "0001").mkdir(parents=True)
    (run / "submissions" / "0001" / "plan.json").write_text(json.dumps(plan))
    mine = slurm.Job("4711", "RUNNING", "None", user=str(os.getuid()), name="mine.prepare")
    cancelled: list[str] = []
    monkeypatch.setattr(slurm, "installed", lambda: True)
    monkeypatch.setattr(slurm, "cluster", lambda: "")
    monkeypatch.setattr(slurm, "queue", lambda *_: {"4711": mine})
    monkeypatch.setattr(slurm, "cancel", lambda ids: cancelled.extend(ids) or [])
    monkeypatch.setattr(live, "unrecorded_ids", lambda *_: [])
    os.chown(run, STRANGER, -1)
    assert shell(run, "cancel") == 2
    assert f"user {STRANGER}'s, who alone can cancel them" in capsys.readouterr().err and cancelled == []
    os.chown(run, os.getuid(), -1)
    assert shell(run, "cancel") == 0 and cancelled == ["4711"], "the attack must work without the guard"


@only_root
def test_a_strangers_server_is_neither_called_nor_shown(run, monkeypatch):
    """Its host, its page and its ssh line would be whatever the file says."""
    address = {"host": "127.0.0.1", "port": 1, "key": "k", "node": "-oProxyCommand=sh", "login": "x"}
    monkeypatch.setattr(socket, "gethostname", lambda: address["node"])
    (run / "serve").mkdir()
    (run / "serve" / supervisor.ADDRESS_FILE).write_text(json.dumps(address))
    called: list[tuple] = []
    monkeypatch.setattr(supervisor, "is_listening", lambda *place: called.append(place) or True)
    opened = Run(run, Settings(), Profile())
    assert status.server(opened) and called, "the attack must work without the guard"
    os.chown(run / "serve" / supervisor.ADDRESS_FILE, STRANGER, -1)
    called.clear()
    assert status.server(opened) == [] and called == []


# ------------------------------------------------------------------------------------------ what looking would display

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b2J red [/x]"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def printed(capsys) -> Callable[[], str]:
    def read() -> str:
        text = capsys.readouterr().out
        assert "red [/x]" in text and not CONTROL.search(text)
        return text

    return read


def test_compare_shows_settings_and_names_without_terminal_codes(tmp_path, monkeypatch, printed):
    from lumen_hpc.cluster import commands

    one, other = Settings(), Settings()
    other.data.diff_vqa = ATTACK
    folders = [tmp_path / "run", tmp_path / ATTACK.replace("/", "")]
    runs = [Run(folder, settings, Profile()) for folder, settings in zip(folders, (one, other), strict=True)]
    place = (f"block {ATTACK}", f"measure {ATTACK}", "lumen")
    results = [RunResults(one.data.source, {}, [], [], tmp_path, ["lumen"]) for _ in runs]
    console = commands._console()
    console.print(compare._settings(runs))
    console.print(compare._table(place[0], [place], results, [{place: 1.0}, {place: 2.0}], [Differences(0)]))
    text = printed()
    assert "data.diff_vqa" in text and text.count("red") >= 3


def test_the_name_of_a_log_is_shown_without_terminal_codes(run, printed):
    name = ATTACK.replace("/", "") + ".out"
    (run / "prepare" / "logs").mkdir(parents=True)
    (run / "prepare" / "logs" / name).write_text("red [/x]\n")
    assert shell(run, "logs") == 0
    printed()


def test_a_line_of_a_log_has_an_end(tmp_path):
    (tmp_path / "x.out").write_text("a" * 200_000 + "\n")
    assert [len(line) for line in logs.tail(tmp_path / "x.out")] == [logs.MAX_LINE_LENGTH]
