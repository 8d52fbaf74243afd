"""The command as a process: another folder, a poor terminal, strangers in the environment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from lumen_hpc.cluster import command_errors, commands, sweep
from lumen_hpc.cluster.environment import EXACT_NAMES
from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]


def _launch(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    strangers = {"LUMEN_PROFILE", "HOME", *EXACT_NAMES}  # a test that trained in this process leaves its ranks behind
    known = {key: value for key, value in os.environ.items() if key not in strangers}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words],
        cwd=folder, env=known | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_help_is_printed_where_the_terminal_knows_ascii_alone(tmp_path):
    done = _launch(tmp_path, "--help", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "data.mimic_cxr" in done.stdout and "python launch.py ask" in done.stdout


def test_a_python_without_docstrings_is_started_again_with_them(tmp_path):
    done = _launch(tmp_path, "status", "--help", PYTHONOPTIMIZE="2")
    assert done.returncode == 0 and done.stdout.startswith("LUMEN on a cluster: `python launch.py"), done.stderr
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lumen_hpc.nvila"
    words = [sys.executable, "-OO", "-c", code, str(ROOT)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr.endswith("which transformers reads: start Python without\n"), done.stderr


def test_a_package_of_the_same_name_in_the_users_folder_is_not_taken(tmp_path):
    (tmp_path / "lumen_hpc").mkdir()
    (tmp_path / "lumen_hpc" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    done = _launch(tmp_path, "stage=full", "dry_run=true", PYTHONPATH=str(tmp_path), SBATCH_PARTITION="nowhere")
    assert done.returncode == 0, done.stderr
    assert f"run {tmp_path}/runs/demo" in done.stdout


@pytest.mark.parametrize("file", ["omegaconf/__init__.py", "rich/__init__.py", "yaml.py"])
def test_a_file_that_stands_before_a_package_by_pythonpath_is_named(tmp_path, file):
    """rich is imported late; omegaconf asks for what this yaml lacks, which is no ImportError."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("x = 1\n")
    done = _launch(tmp_path, "stage=prepare", "dry_run=true", PYTHONPATH=f"/nowhere:{tmp_path}")
    assert done.returncode == 2
    line = f"{tmp_path / file}, which PYTHONPATH puts before the environment's packages, is not what this command needs"
    assert line in done.stderr, done.stderr
    assert done.stderr.endswith("; unset PYTHONPATH, or rename the file or its folder\n")


def test_where_there_is_no_run_yet_it_says_how_to_make_one(tmp_path):
    done = _launch(tmp_path, "status")
    assert done.returncode == 2
    assert done.stderr.endswith("make demo, or stage=full run=NAME, makes a first one\n")


def test_a_run_is_found_without_the_profile_where_its_place_is_given(tmp_path):
    done = _launch(tmp_path, "status", "run=first", LUMEN_PROFILE="jean_zay", SCRATCH="")
    assert done.stderr.startswith("lumen: run=first: there is no /lumen/runs/first/config.yaml"), done.stderr
    done = _launch(tmp_path, "status", "run=first", "profile.runs=$NO_SUCH/runs")
    assert done.stderr.startswith("lumen: profile.runs=$NO_SUCH/runs: $NO_SUCH is not set in this shell; fix: export")
    done = _launch(tmp_path, "status", "run=first", LUMEN_PROFILE="nowhere")
    assert done.stderr.endswith("; status does without a profile where run=NAME and runs=FOLDER are given\n")
    done = _launch(tmp_path, "status", "run=first", f"runs={tmp_path}", LUMEN_PROFILE="nowhere")
    assert f"there is no {tmp_path}/first/config.yaml" in done.stderr


def test_a_working_folder_that_was_removed_is_a_line(tmp_path):
    words = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} {ROOT}/launch.py stage=full dry_run=true"
    done = subprocess.run(["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (
        done.stderr == "lumen: the working directory cannot be read (No such file or directory): start from another\n"
    )


@pytest.mark.parametrize("end", ["| true", ">&-"])
def test_whoever_reads_no_further_gets_no_traceback(tmp_path, end):
    words = f"{sys.executable} {ROOT}/launch.py check recipe=smoke {end}"
    done = subprocess.run(["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "line"),
    [("--help", "lumen: the output cannot"), ("stage=prepare dry_run=true", "lumen: the output, or /")],
)
def test_output_onto_a_full_disk_is_a_line_that_names_the_output(tmp_path, words, line):
    command = f"{sys.executable} {launch.__file__} {words} > /dev/full"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(line)


def test_a_limit_on_the_size_of_files_is_a_line(tmp_path):
    words = f"ulimit -f 1; {sys.executable} {ROOT}/launch.py stage=prepare recipe=smoke run=r"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "ulimit -f" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "r").exists()


def test_a_verb_shows_its_own_options_alone(tmp_path):
    done = _launch(tmp_path, "status", "--help")
    assert done.returncode == 0, done.stderr
    assert "watch" in done.stdout and "data.mimic_cxr" not in done.stdout and "python launch.py --help" in done.stdout


def test_a_stage_of_a_run_that_does_not_exist_names_the_runs_that_do(tmp_path):
    (tmp_path / "runs" / "lumen-v1").mkdir(parents=True)
    (tmp_path / "runs" / "lumen-v1" / "config.yaml").write_text("{}")
    done = _launch(tmp_path, "stage=train", "run=lumen-v2")
    assert done.returncode == 2
    assert "run=lumen-v2: there is no such run" in done.stderr and "the runs here are lumen-v1" in done.stderr
    assert not (tmp_path / "runs" / "lumen-v2").exists()


def test_a_profile_of_slurm_where_no_cluster_is_asks_whether_this_is_a_login_node(tmp_path):
    for name in ("sbatch", "scontrol", "squeue"):
        command = tmp_path / name
        command.write_text("#!/bin/sh\necho fatal: Could not establish a configuration source >&2; exit 1\n")
        command.chmod(0o755)
    done = _launch(tmp_path, "stage=full", "recipe=smoke", "profile=slurm", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "is this a login node?" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("word", ["recipe=", "profile=", "config=", "recipe=lumen data.diff_vqa="])
def test_a_path_that_no_file_system_takes_is_a_line(tmp_path, word):
    words = f"stage=full run=r {word}/{'x' * 300}".split()
    done = _launch(tmp_path, *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("x: File name too long; give another path")


@pytest.mark.parametrize("name", ["code", "prepare"])
def test_a_folder_of_the_run_that_is_a_link_to_nowhere_is_named(tmp_path, name):
    """Such as a step's folder that was moved to a scratch disk, which was emptied since."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).symlink_to("/no/such/scratch")
    done = _launch(tmp_path, "stage=prepare", "run=r", f"runs={tmp_path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"lumen: {tmp_path}/r/{name} is a link to /no/such/scratch, which is not there, where a folder belongs: "
        "restore it, or move it away"
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_mount_that_has_failed_is_a_line_with_its_path(capsys, number):
    error = OSError(number, os.strerror(number), "/mnt/lab/cache")
    assert command_errors.exit_code(error, command_errors.Workplace()) == 2
    line = f"lumen: /mnt/lab/cache: {os.strerror(number)}; its file system does not answer: have it mounted again"
    assert capsys.readouterr().err.startswith(line)


HEAVY = {"torch", "transformers", "numpy", "pandas", "scipy", "PIL", "deepspeed", "submitit"}


@pytest.mark.parametrize(
    "words", [["status"], ["status", "json=true"], ["logs"], ["check"], ["cancel"], ["stage=full", "dry_run=true"]]
)
def test_a_login_node_loads_nothing_heavy(tmp_path, words):
    """A torch that is imported costs seconds, and fails where a shell strips docstrings (PYTHONOPTIMIZE=2)."""
    request = resolve(["stage=full", "recipe=smoke", "run=first", f"runs={tmp_path}"])
    request.folder.mkdir()
    config_file.save(request, request.folder / "config.yaml")
    words = [*words, "run=first", f"runs={tmp_path}"]
    code = f"import launch, sys; launch.main({words}); print({HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={key: value for key, value in os.environ.items() if key != "LUMEN_PROFILE"},
    )  # fmt: skip
    assert done.stdout.endswith("set()\n"), done.stdout[-300:] + done.stderr[-2000:]


def test_a_ctrl_c_while_modules_load_leaves_no_traceback(tmp_path):
    (tmp_path / "omegaconf.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(9)\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in the background
    try:
        done = _launch(tmp_path, "stage=full", "dry_run=true", PYTHONPATH=str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("where", "verb", "words", "said"),
    [
        (commands, "status", ["status"], "lumen: interrupted\n"),
        (commands, "submit", ["stage=full", "dry_run=true"], "lumen: interrupted\n"),
        (commands, "submit", ["stage=full"], "lumen: interrupted; finished shards are kept; the same command"),
        (
            sweep,
            "submit",
            ["stage=full", "seed=[1,2]"],
            "lumen: interrupted; finished shards are kept; the same command",
        ),
    ],
)
def test_an_interrupted_command_says_what_is_kept_where_it_made_something(
    tmp_path, capsys, monkeypatch, where, verb, words, said
):
    def interrupted(*_):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "what is begun is withdrawn"
        raise KeyboardInterrupt

    monkeypatch.setattr(where, verb, interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as while modules load
    try:
        assert launch.main([*words, f"runs={tmp_path}"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith(said)


def test_a_folder_that_this_user_may_not_read_is_named(monkeypatch, capsys, tmp_path):
    """A home that is closed, where the cache of weights is by default: the run's folder has nothing to do with it."""
    closed = PermissionError(errno.EACCES, "Permission denied", "/home/me/.cache/lumen_hpc/x")
    monkeypatch.setattr(commands, "submit", lambda *_: (_ for _ in ()).throw(closed))
    assert launch.main(["stage=full", "dry_run=true", f"runs={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("lumen: /home/me/.cache/lumen_hpc/x: Permission denied; choose another folder")
    assert "profile.cache=FOLDER" in message and "space" not in message
