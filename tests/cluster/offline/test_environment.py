"""What of the submitting shell must not reach a job, and what a job's own shell makes of its setup lines."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from lumen_hpc.cluster import environment, ready, sbatch
from lumen_hpc.cluster.stage import Step
from lumen_hpc.config.profile import Container, Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from tests.cluster.offline.conftest import stage

LEAKS = [
    "SBATCH_QOS", "SBATCH_GRES", "SBATCH_MEM_PER_CPU", "SBATCH_WCKEY", "SLURM_EXPORT_ENV", "SLURM_HINT",
    "SLURM_CPU_BIND", "SLURMD_NODENAME", "PMI_RANK", "PMI2_FD", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK",
    "PRTE_LAUNCHED", "MPI_LOCALRANKID", "HYDI_CONTROL_FD", "MV2_COMM_WORLD_LOCAL_RANK", "PALS_RANKID",
    "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK", "CUDA_VISIBLE_DEVICES", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "SHELLOPTS", "POSIXLY_CORRECT", "BASH_FUNC_exec%%", "BASH_FUNC_export%%",
]  # fmt: skip


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(environment._remove_variables()):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", LEAKS)
def test_it_does_not_reach_a_job_and_the_command_says_so(
    nothing_else: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    environment.drop(report=True)
    assert name not in os.environ
    assert capsys.readouterr().err == f"lumen: ignored, because the profile decides: {name}\n"


@pytest.mark.parametrize(
    "name", ["BASH_FUNC_module%%", "BASH_ENV", "NCCL_DEBUG", "HF_TOKEN", "LD_LIBRARY_PATH", "SLURM_CONF", "RANKING"]
)
def test_what_a_job_needs_or_the_user_means_is_left(
    nothing_else: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    environment.drop(report=True)
    assert os.environ[name] == "1" and capsys.readouterr().err == ""


def test_of_an_allocation_the_job_is_named_and_not_its_hundred_variables(
    nothing_else: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "SBATCH_QOS", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "7")
    environment.drop(report=True)
    assert capsys.readouterr().err.splitlines() == [
        "lumen: ignored, because the profile decides: SBATCH_QOS",
        "lumen: started within job 7: its variables are not passed to the new jobs",
    ]


@pytest.mark.parametrize(("clusters", "refused"), [("a,b", True), ("all", True), ("small", False), ("", False)])
def test_several_clusters_at_once_number_their_jobs_alike_and_are_refused(
    nothing_else: None, monkeypatch: pytest.MonkeyPatch, clusters: str, refused: bool
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", clusters)
    with (
        pytest.raises(UserError, match=f"={clusters}: the jobs of a run are on one cluster")
        if refused
        else nullcontext()
    ):
        environment.drop()
    assert os.environ["SLURM_CLUSTERS"] == clusters


def started(tmp_path: Path, variables: dict[str, str] | None = None, **profile: list[str]) -> tuple[bool, str]:
    """Whether a job of this profile comes to its work, and what it prints; it is run by bash as on a node."""
    script = sbatch.text(
        _profile(**profile), Step(stage("first")), sbatch.JobFolders(tmp_path, Path("/c"), "0001"), [0]
    )
    file = tmp_path / "script.sh"
    file.write_text(re.sub(r"(?m)^exec .*", "echo begun $A $B; true", script))
    known = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", **(variables or {})}
    done = subprocess.run(["bash", str(file)], env=known, capture_output=True, text=True)
    assert ("begun" in done.stdout) == (done.returncode == 0), "else its gate would open, and others would start"
    return "begun" in done.stdout, done.stdout + done.stderr


def _profile(**changed: object) -> Profile:
    return replace(resolve(["stage=full", "profile=h100"]).profile, **changed)


@pytest.mark.parametrize(
    "line",
    [
        "false; export A=1",
        "export A=1\nls /no/such/place\nexport B=2",
        "if true; then false; export A=1; fi",
        "set -e\nfalse",
        "source TOP/fails.sh",
        "no-such-command | cat; set -o pipefail; no-such-command | cat",
        "set -u; echo $NO_SUCH_VARIABLE",
        "exit 0",
        "source TOP/exits.sh",
    ],
)
def test_the_first_command_of_a_setup_line_that_fails_or_exits_ends_the_job_and_the_line_is_named(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "fails.sh").write_text("export A=1\nfalse\n")
    (tmp_path / "exits.sh").write_text("export A=1\nexit\n")
    line = line.replace("TOP", str(tmp_path))
    came, output = started(tmp_path, setup=[line])
    assert not came and output.count("lumen: a line of the setup ") == 1, output
    assert f"profile.setup: {'; '.join(line.splitlines())}\n" in output


@pytest.mark.parametrize(
    "line",
    [
        "false || export A=1",
        "if ! false; then export A=1; fi",
        "set -euo pipefail; export A=1",
        "source TOP/harmless.sh",
        "shopt -s nullglob; export A=1",
        "trap 'rm -f x' EXIT; export A=1",
        "IFS=0; export A=1",
    ],
)
def test_what_is_allowed_to_fail_ends_nothing(tmp_path: Path, line: str) -> None:
    """As in a script of the site that looks for something."""
    (tmp_path / "harmless.sh").write_text("grep -q x /dev/null\nfalse\nexport A=1\n")
    line = line.replace("TOP", str(tmp_path))
    came, output = started(tmp_path, setup=[line])
    assert came and "begun 1" in output, output


def test_a_setup_that_changes_the_shell_still_lets_a_container_be_requeued(tmp_path: Path) -> None:
    logs = tmp_path / "first" / "logs"
    logs.mkdir(parents=True)
    (logs / "7.requeue").touch()
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": "exit 137", "scontrol": f"echo $@ > {tmp_path}/asked"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    profile = _profile(requeue=True, setup=["set -eu"], container=Container(kind="pyxis", image="x.sif"))
    file = tmp_path / "script.sh"
    file.write_text(sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(tmp_path, Path("/c"), "0001"), [0]))
    known = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash", str(file)], env=known).returncode == 137
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


MODULES = {
    "3": "echo \"ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for '$2'\" >&2; return 0",
    "5": "echo 'Loading cuda' >&2; export A=1",
    "lmod": "echo 'Lmod has detected the following error: unknown module' >&2; return 1",
}


@pytest.mark.parametrize(("version", "loaded"), [("3", False), ("5", True), ("lmod", False)])
@pytest.mark.parametrize("place", ["exported", "MODULESHOME"])
def test_a_module_that_is_not_loaded_ends_the_job_whatever_its_version_returns(
    tmp_path: Path, version: str, loaded: bool, place: str
) -> None:
    """`place`: of a user whose shell is fish or csh, bash finds no `module` but in the site's file."""
    function = f"module() {{ {MODULES[version]}; }}"
    if place == "exported":
        variables = {"BASH_FUNC_module%%": function.removeprefix("module")}
    else:
        (tmp_path / "init").mkdir()
        (tmp_path / "init" / "bash").write_text(f"false\n{function}\nfalse\n")
        variables = {"MODULESHOME": str(tmp_path)}
    came, output = started(tmp_path, variables, modules=["cuda/12.8"])
    assert came == loaded, output
    assert ("profile.modules: module load cuda/12.8" in output) != loaded
    assert MODULES[version].split("'")[1][:8] in output or version == "3", "what it printed is in the log"


@pytest.mark.parametrize(
    "line", ["export A=1 \\", 'echo "a', "if true", "cat <<EOF", "for x in 1; do echo", "echo $(", "}", "export A=(1"]
)
def test_a_setup_line_that_is_no_whole_command_is_refused_at_launch(line: str) -> None:
    (result,) = ready.setup(_profile(setup=["ulimit -n 65536", line]))
    assert result.level == "bad" and repr(line) in result.message and result.message[-1] not in ": "


def test_whole_commands_are_taken() -> None:
    lines = ["if true; then\n  export A=1\nfi", "echo a\\\\", "cat <<EOF\nx\nEOF", "# why", ""]
    assert list(ready.setup(_profile(setup=lines))) == []
