"""The sbatch scripts word for word, and submission against a recorded sbatch at the subprocess boundary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import jobs
from lumen_hpc.cluster import live, preflight, ready, refusals, sbatch, slurm, snapshot, submit
from lumen_hpc.cluster.stage import Stage, Step
from lumen_hpc.config.profile import Container
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from tests.cluster.offline.conftest import stage
from tests.cluster.offline.offline_graph import submit_chain

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[3]


def _scripts(stages: list[Stage], **profile: object) -> str:
    request = resolve(["stage=full", "profile=h100", "recipe=demo", "run=r", "runs=/lustre/runs", "predict.shards=4"])
    request.profile.max_array_size = 1000
    for key, value in profile.items():
        setattr(request.profile, key, value)
    run = submit.open_run(request)
    plans, upstream_job_ids = submit.make_plans(request, stages, run)
    text = "".join(
        f"=== {label}\n{script}" for label, script in submit.scripts(request, stages, run, plans, upstream_job_ids)
    )
    return text.replace(sys.executable, "PYTHON")


def _compare(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("LUMEN_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"if the change is meant: LUMEN_WRITE_GOLDEN=1 pytest, then read the diff of {path}"
    )


def test_the_scripts_of_a_chain(stages: list[Stage]):
    _compare(_scripts(stages), "h100.txt")


def test_the_scripts_of_a_site_with_everything_set(stages: list[Stage]):
    text = _scripts(
        stages[:1],
        account="chest",
        modules=["cuda/12.8"],
        setup=["ulimit -n 65536"],
        environment={"NCCL_DEBUG": "WARN", "PLACE": "a b"},
        container=Container(kind="apptainer", image="/images/lumen.sif", mounts=["/lustre:/lustre"]),
        scratch="/scratch/$USER",
        kill_on_invalid_dep=False,
        requeue=True,
        mail_user="me@site.edu",
        mail_type="END,FAIL",
        additional={"reservation": "night"},
    )
    _compare(text, "everything.txt")


def test_a_submission_is_what_the_dry_run_shows(fake: Path, request_here: Request, stages: list[Stage]):
    run = submit.open_run(request_here)
    plans, upstream_job_ids = submit.make_plans(request_here, stages, run)
    shown = dict(submit.scripts(request_here, stages, run, plans, upstream_job_ids))
    _, jobs = submit_chain(request_here, stages)
    ids = {label: job["id"] for label, job in zip(shown, jobs)}
    code = next((run.folder / "code").iterdir()).name
    for (label, text), number in zip(shown.items(), range(len(jobs))):
        for name, job in ids.items():
            text = text.replace(name, job)
        text = text.replace("<next>", "0001").replace(f"'{run.folder}/code/<hash>'", f"{run.folder}/code/{code}")
        submitted = (fake / f"script-{number}").read_text()
        assert _unquoted(submitted) == _unquoted(text), label


def _unquoted(text: str) -> str:
    return text.replace("'", "")


def test_a_submission_leaves_no_file_for_a_task(fake: Path, tmp_path: Path, stages: list[Stage]):
    words = ["stage=full", "profile=h100", "recipe=demo", "predict.shards=1000", "run=r", f"runs={tmp_path / 'runs'}"]
    request = resolve([*words, "profile.resources.gpu.tasks=1000", "profile.max_array_size=1001"])
    run, jobs = submit_chain(request, stages)
    assert sum(len(job["packs"]) for job in jobs) > 4000
    files = [path for path in run.folder.rglob("*") if path.is_file() and "code" not in path.parts]
    assert len(files) == len(jobs) + len(["plan.json", "config.yaml", "config.yaml of the run", "layout", "provenance"])


def test_what_went_in_before_a_refusal_is_cancelled(
    fake: Path, request_here: Request, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REFUSE_AT", "3")
    request_here.profile.additional["reservation"] = "night"
    with pytest.raises(UserError, match="invalid partition specified: nowhere") as caught:
        submit_chain(request_here, stages)
    assert "\n" not in str(caught.value) and "additional.reservation=night)" in str(caught.value)
    assert (fake / "cancelled").read_text().split() == ["1002", "1001", "1000"]
    assert list(live.submissions(request_here.folder)) == []


def test_a_second_submission_waits_for_the_first(fake: Path, request_here: Request, stages: list[Stage]):
    _, jobs = submit_chain(request_here, stages)
    lines = []
    for job in jobs:
        names = slurm.task_ids(job["id"], 1 if job.get("gate") else len(job["packs"]))
        lines += [f"{name}|PENDING|Dependency||N/A|{os.getuid()}|{job['name']}" for name in names]
    (fake / "queue").write_text("\n".join(lines))
    _, again = submit_chain(request_here, stages)
    assert again == [], "everything is queued already"
    ended = {job["id"] for job in jobs if job["step"].startswith("score")}
    (fake / "queue").write_text("\n".join(line for line in lines if line.split("|")[0].split("_")[0] not in ended))
    _, again = submit_chain(request_here, stages)
    assert {job["step"] for job in again} == {"score-a", "score-b"}
    gate = next(job["id"] for job in jobs if job["step"] == "answer-a" and job.get("gate"))
    first_score = next(job["id"] for job in again)
    script = (fake / f"script-{int(first_score) - 1000}").read_text()
    assert re.search(rf"#SBATCH --dependency='?afterok:[\d:]*\b{gate}\b", script)


def test_jobs_import_from_the_snapshot_only(fake: Path, request_here: Request, stages: list[Stage]):
    run, _ = submit_chain(request_here, stages)
    code = next((run.folder / "code").iterdir())
    assert {"lumen_hpc", "jobs", "launch.py"} <= {path.name for path in code.iterdir()}
    found = subprocess.run(
        [sys.executable, "-c", "import jobs, lumen_hpc; print(jobs.__file__); print(lumen_hpc.__file__)"],
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert all(line.startswith(str(code)) for line in found.stdout.splitlines())


def test_provenance_says_where_a_submission_came_from(fake: Path, request_here: Request, stages: list[Stage]):
    run, _ = submit_chain(request_here, stages)
    row = json.loads((run.folder / "provenance.json").read_text())[0]
    assert row["code"] == next((run.folder / "code").iterdir()).name
    assert {"submitted", "host", "python", "packages"} <= set(row)


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [("http://localhost:8000/v1", True), ("http://localhost.evil.org/v1", False), ("https://api.openai.com/v1", False)],
)
def test_restricted_data_meets_allowed_servers_only(tmp_path: Path, endpoint: str, allowed: bool):
    words = ["data=mimic", "judge.engine.kind=server", f"judge.engine.endpoint={endpoint}", f"runs={tmp_path}"]
    words.append("profile.data_use.endpoints=[http://localhost:8000/v1]")
    request = resolve(["stage=full", *words])
    bad = list(preflight.data_use(request.settings, request.profile, request.folder))
    assert (bad == []) == allowed
    phantoms = resolve(["stage=full", *words[1:]])
    assert list(preflight.data_use(phantoms.settings, phantoms.profile, phantoms.folder)) == []


def test_a_dry_run_writes_nothing_and_imports_nothing_heavy(tmp_path: Path):
    """On a login node: no torch, transformers or vllm, no Slurm, no folder left."""
    words = ["stage=full", "profile=h100", "dry_run=true", "scripts=true", f"runs={tmp_path / 'runs'}"]
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch; code = launch.main({words!r});"
        "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'numpy', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    environment = {**os.environ, "PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<train-lumen+>" in done.stdout and "#SBATCH --gpus-per-node=4" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["-P", "-I"])
def test_another_installed_copy_is_never_taken_for_the_checkout(tmp_path: Path, flag: str):
    (tmp_path / "lumen_hpc").mkdir()
    (tmp_path / "lumen_hpc" / "__init__.py").write_text("raise RuntimeError('another copy')\n")
    words = ["stage=full", "recipe=demo", "profile=local", "dry_run=true", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run(
        [sys.executable, flag, str(ROOT / "launch.py"), *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_the_profile_adds_comes_last():
    words = ["{mem: 5G, signal: USR1@9, overcommit: true, hint: nomultithread, cpus_per_gpu: '4'}"]
    profile = resolve(["stage=full", "profile=h100", f"profile.additional={words[0]}"]).profile
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0])
    flags = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"mem=5G", "signal=USR1@9", "overcommit", "hint=nomultithread", "cpus-per-gpu=4"} <= set(flags)
    assert len({flag.partition("=")[0] for flag in flags}) == len(flags)


def test_the_sites_bad_nodes_and_a_runs_own_are_both_left_out():
    profile = resolve(["stage=full", "profile=h100", "profile.additional={exclude: 'n[1-2]'}"]).profile
    for bad, expected in (((), "'n[1-2]'"), (("n7", "n9"), "'n[1-2],n7,n9'")):
        script = sbatch.text(
            profile, Step(stage("first")), sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0], "", bad
        )
        assert f"#SBATCH --exclude={expected}\n" in script and script.count("--exclude") == 1
    with pytest.raises(UserError, match="sbatch would read a file; list the nodes"):
        resolve(["stage=full", "profile=h100", "profile.additional={exclude: ./bad}"])


@pytest.mark.parametrize(
    ("array", "job"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1"}, "6_1")]
)
@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_a_container_that_asks_for_it_is_requeued_from_outside(
    fake: Path, tmp_path: Path, kind: str, array: dict[str, str], job: str
):
    """Python in the container has no scontrol; srun ends with another code, as when it kills slower processes."""
    profile = resolve(["stage=full", "profile=h100", "profile.requeue=true", "profile.environment={}"]).profile
    profile.container = Container(kind=kind, image="x.sif")
    logs = tmp_path / "a run" / "first" / "logs"
    logs.mkdir(parents=True)
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(tmp_path / "a run", Path("/c"), "0001"), [0])
    assert "USR2@" in script and "B:USR2@" not in script, "srun passes the signal on"
    (fake / "bin" / "srun").write_text("#!/bin/sh\nexit 137\n")
    (fake / "bin" / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$FAKE/scontrol"\n')
    environment = os.environ | {"SLURM_JOB_ID": "7", **array}
    for asked in (False, True):
        if asked:
            (logs / f"{job}.requeue").touch()
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 137, done.stderr
        assert (fake / "scontrol").exists() == asked
    assert (fake / "scontrol").read_text() == f"requeue {job}\n" and list(logs.iterdir()) == []


@pytest.mark.parametrize("profile", ["slurm", "h100", "jean_zay", "perlmutter", "local"])
def test_the_shipped_profiles_give_every_engine_its_processes(profile: str):
    request = resolve(["stage=full", f"profile={profile}"])
    assert list(preflight.processes(request.settings, request.profile)) == []


def test_a_judge_over_more_gpus_than_its_job_has_processes_is_refused_with_its_fix(tmp_path: Path):
    request = resolve(["stage=judge", "profile=h100", "judge.engine.tensor_parallel=4", f"runs={tmp_path}"])
    fault = r"this job has 8; fix: nodes x tasks_per_node of profile\.resources\.judge must be 4"
    with pytest.raises(UserError, match=fault):
        ready.refuse(preflight.processes(request.settings, request.profile, "judge"))
    assert list(preflight.processes(request.settings, request.profile, "train")) == []


@pytest.mark.parametrize("character", ["%", ":", "\\", "\n"])
def test_a_path_that_slurm_or_python_reads_as_something_else_is_refused(tmp_path: Path, character: str):
    """Of a log name with `%j` in a folder's name, Slurm makes another, and the job dies without a log."""
    request = resolve(["stage=full", "profile=h100", "recipe=demo", f"runs={tmp_path}/a{character}j"])
    with pytest.raises(UserError, match="in the path of a run"):
        refusals.require_valid(request, jobs.PIPELINE)


def test_a_mixture_without_a_kind_that_is_asked_for_costs_no_queue_turn(tmp_path: Path):
    words = [
        "stage=full",
        "profile=h100",
        "recipe=demo",
        f"runs={tmp_path}",
        "predict.models=[lumen-outcomes]",
        "evaluate.gates=false",
    ]
    words += ["instruct.outcomes=[icu_48h]", "data.phantom.mimic_iv=true"]
    with pytest.raises(UserError, match=r"add train\.mixture\.outcome=N"):
        refusals.require_valid(resolve(words), jobs.PIPELINE)
    refusals.require_valid(resolve([*words, "train.mixture.outcome=4"]), jobs.PIPELINE)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["train.mixture.diagnostic=0"],
            "leaves ft nothing to learn; give diagnostic a number above 0, or leave ft out",
        ),
        (["train.mixture={}", "train.mixture.difference=3"], r"no number for the diagnostic questions that ft learns"),
        (["train.steps=0"], r"a mixture has no end of its own; give train\.steps=N, or train\.mixture=\{\}"),
        (["train.steps=0", "train.mixture={}"], ""),
        (["train.mixture.diagnostic=0", "predict.models=[lumen]", "evaluate.gates=false"], ""),
    ],
)
def test_a_training_that_would_stop_or_learn_nothing_costs_no_queue_turn(tmp_path: Path, words: list[str], fault: str):
    request = resolve(["stage=full", "profile=h100", "recipe=demo", f"runs={tmp_path}", *words])
    with pytest.raises(UserError, match=fault) if fault else nullcontext():
        refusals.require_valid(request, jobs.PIPELINE)


def test_what_the_shell_says_about_python_and_threads_does_not_reach_a_job(tmp_path: Path):
    resources = resolve(["stage=full", "profile=h100"]).profile
    step = Step(stage("first"))
    script = sbatch.text(resources, step, sbatch.JobFolders(tmp_path, tmp_path / "code", "0001"), [0])
    setup = script[script.index("\nunset") : script.index("\nexec ")]
    asked = "import os, sys, warnings; print(sys.flags.utf8_mode, sys.flags.optimize, sys.warnoptions, os.environ)"
    inherited = {
        "PYTHONHOME": "/nowhere", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONUTF8": "0",
        "OMP_NUM_THREADS": "1", "LUMEN_SCRATCH": "/nowhere", "LC_ALL": "C",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", f"{setup}\n{sys.executable} -c '{asked}'"],
        env={"PATH": os.environ["PATH"], **inherited}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("1 0 [] "), done.stderr
    assert f"'OMP_NUM_THREADS': '{resources.resources['gpu'].cpus}'" in done.stdout
    assert "nowhere" not in done.stdout


def run_setup(tmp_path: Path, **changed: object) -> subprocess.CompletedProcess[str]:
    """What the script of a job prints that sees this of a profile; its own command prints the scratch folder."""
    profile = replace(resolve(["stage=full", "profile=h100"]).profile, **changed)
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(tmp_path, tmp_path / "code", "0001"), [0])
    command = script.splitlines()[-1]
    script = script.replace(command, 'echo "the work, in $LUMEN_SCRATCH"')
    env = {"PATH": os.environ["PATH"], "MY_DISK": "/local/a b"}
    return subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize(
    "line",
    ["exec true", "[ -n x ] && exec /bin/true", "true; exec -a other true", "set -n", "set -e -un", "set -o noexec"],
)
def test_a_setup_line_that_would_end_the_job_as_a_success_is_named(tmp_path: Path, line: str):
    """Bash runs no EXIT trap after these: job and gate would succeed without work."""
    done = run_setup(tmp_path, setup=["true", line])
    assert done.returncode == 1, done.stdout
    assert done.stdout == f"lumen: a line of the setup would end the job (exit 0): profile.setup: {line}\n"


def test_a_setup_line_that_fails_is_named_with_its_exit_code(tmp_path: Path):
    done = run_setup(tmp_path, setup=["true", "(exit 7); echo not reached", "true"])
    assert (done.returncode, done.stdout) == (
        1, "lumen: a line of the setup failed (exit 7): profile.setup: (exit 7); echo not reached\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "exec 2> log", "exec 3>&1", "exec > >(cat)", "(exec false) || true", "x=$(exec echo 1)",
        "echo 'exec true' > log", "set -euo pipefail", "set -- -n noexec", "trap 'echo > log' EXIT",
    ],
)  # fmt: skip
def test_a_setup_line_that_ends_nothing_is_run(tmp_path: Path, line: str):
    done = run_setup(tmp_path, setup=[line])
    assert (done.returncode, done.stdout) == (0, "the work, in \n"), done.stderr


@pytest.mark.parametrize(
    ("scratch", "expected"),
    [
        ("/my disk/x;y", "/my disk/x;y"),
        ("$MY_DISK/${NONE}x", "/local/a b/x"),
        ("${NONE:-/tmp}/$MY_DISK", "/tmp//local/a b"),
    ],
)
def test_scratch_is_the_whole_folder_with_the_nodes_variables(tmp_path: Path, scratch: str, expected: str):
    assert run_setup(tmp_path, scratch=scratch).stdout == f"the work, in {expected}\n"


def test_a_command_in_scratch_is_refused():
    with pytest.raises(UserError, match=r"profile\.scratch=\$\(mktemp -d\): \$\(mktemp -d\): the node reads variables"):
        resolve(["stage=full", "profile=h100", "profile.scratch=$(mktemp -d)"])


def test_packages_in_the_users_home_do_not_shadow_a_containers():
    profile = resolve(["stage=full", "profile=h100"]).profile
    container = Container(kind="pyxis", image="/images/lumen.sqsh")
    script = sbatch.text(
        replace(profile, container=container),
        Step(stage("first")),
        sbatch.JobFolders(Path("/r"), Path("/c"), "0001"),
        [0],
    )
    assert "export PYTHONNOUSERSITE=1" in script
    passed = re.search(r"--container-env=(\S+)", script)
    assert passed and {"PYTHONNOUSERSITE", "PYTHONUTF8", "OMP_NUM_THREADS"} <= set(passed[1].split(","))


def test_a_site_with_singularity_and_gpus_of_amd(tmp_path: Path):
    (tmp_path / "site.yaml").write_text(
        "extends: h100\ncontainer: {kind: singularity, image: /i.sif, mounts: ['/a:/a'], options: [--rocm, '$MORE']}\n"
    )
    profile = resolve(["stage=full", f"profile={tmp_path / 'site.yaml'}"]).profile
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0])
    assert 'exec singularity exec --rocm "$MORE" --bind /a:/a /i.sif python -u -m lumen_hpc' in script


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_the_node_reads_variables_of_containers_and_environment_and_nothing_else(kind: str, tmp_path: Path):
    """`$(…)`, quotes and backslashes are text; `$NAME` and `${NAME}` are what the node says."""
    profile = resolve(["stage=full", "profile=h100"]).profile
    profile.container = Container(kind=kind, image="$IMAGES/x.sif", mounts=['${SCRATCH}/a b:/y$(touch no)"`'])
    profile.environment = {"HF_HOME": "$SCRATCH/hf", "COST": "5$", "ODD": "$(touch no) $SCRATCH \\"}
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0])
    (tmp_path / "bin").mkdir()
    for name in ("srun", "apptainer"):
        (tmp_path / "bin" / name).write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$HF_HOME" "$COST" "$ODD"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = {"PATH": path, "SCRATCH": "/s c", "IMAGES": "/i"}
    done = subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
    before = {"apptainer": "", "pyxis": "--container-mounts="}[kind]
    lines = done.stdout.splitlines()
    assert f'{before}/s c/a b:/y$(touch no)"`' in lines, done
    assert any(line.endswith("/i/x.sif") for line in lines)
    assert lines[-3:] == ["/s c/hf", "5$", "$(touch no) /s c \\"]
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "expected", "absent"),
    [
        ("{mem-per-gpu: 80G}", {"mem-per-gpu=80G", "gpus-per-node=1"}, {"mem"}),
        ("{--mem_per_cpu: 4G}", {"mem-per-cpu=4G"}, {"mem"}),
        ("{gres: 'gpu:h100:1'}", {"gres=gpu:h100:1"}, {"gpus-per-node"}),
        ("{gres: craynetwork:0}", {"gres=craynetwork:0", "gpus-per-node=1"}, set()),
        ("{gpus_per_node: 'h100:1'}", {"gpus-per-node=h100:1"}, set()),
        ("{mem: false, overcommit: yes, contiguous: ''}", {"overcommit", "contiguous"}, {"mem"}),
        ("{exclusive: user}", {"exclusive=user"}, set()),
        ("{comment: 'it''s #1: a \"b\"'}", {"comment='it'\"'\"'s #1: a \"b\"'"}, set()),
        ("{nice: 0, time: '1-00:00:00'}", {"nice=0", "time=1-00:00:00"}, set()),
        ("{time: 1:00:00, begin: 16:00, wckey: 0123}", {"time=1:00:00", "begin=16:00", "wckey=0123"}, set()),
    ],
)
def test_further_options_in_every_spelling(words: str, expected: set[str], absent: set[str]):
    profile = resolve(["stage=full", "profile=h100", f"profile.additional={words}"]).profile
    script = sbatch.text(profile, Step(stage("first")), sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0])
    flags = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert expected <= flags and not absent & {flag.partition("=")[0] for flag in flags}, flags


def test_options_about_gpus_are_for_jobs_that_have_some():
    words = "{gres: 'gpu:h100:4', gpu-bind: closest, mem_per_gpu: 9G, reservation: night}"
    profile = resolve(["stage=full", "profile=h100", f"profile.additional={words}"]).profile
    for step in (Step(stage("first", resources="cpu")), Step(stage("answer"))):
        texts = [sbatch.text(profile, step, sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), [0])]
        texts += [sbatch.gate_text(profile, step, sbatch.JobFolders(Path("/r"), Path("/c"), "0001"), "afterok:1")]
        for script, has_gpus in zip(texts, (step.stage.resources == "gpu", False), strict=True):
            assert "--reservation=night" in script
            assert [name in script for name in ("--gres=", "--gpu-bind=", "--mem-per-gpu=")] == [has_gpus] * 3


@pytest.mark.parametrize(
    "word", ["{depend: x}", "{--output: x}", "{arr: x}", "{error: x}", "{requeue: true}", "{quiet: ''}"]
)
def test_no_spelling_of_an_option_that_is_the_submissions_own_is_taken(word: str):
    for place in ("profile", "profile.resources.gpu"):
        with pytest.raises(UserError, match=rf"{place}\.additional.*: a submission sets --[\w-]+ itself; leave it out"):
            resolve(["stage=full", "profile=h100", f"{place}.additional={word}"])


@pytest.mark.parametrize("word", ["{J: x}", "{-d: x}", "{--: x}", "{'a b': x}"])
def test_the_short_name_of_an_option_is_refused(word: str):
    with pytest.raises(UserError, match="give the option's long name"):
        resolve(["stage=full", "profile=h100", f"profile.additional={word}"])


@pytest.mark.parametrize("key", ["account", "additional.comment", "resources.gpu.partition", "mail_user", "modules"])
def test_a_line_break_in_an_option_is_refused_and_never_run(key: str):
    text = '"a\\nrm -rf x"'
    with pytest.raises(UserError, match=rf"profile\.{key}=.*takes one line"):
        resolve(["stage=full", "profile=h100", f"profile.{key}={f'[{text}]' if key == 'modules' else text}"])


@pytest.mark.parametrize("key", ["dependency", "job_name", "array", "output", "test-only"])
def test_options_by_which_a_submission_finds_its_jobs_are_its_own(key: str):
    with pytest.raises(UserError, match=rf"profile.additional.{key}=x: a submission sets --{key.replace('_', '-')}"):
        resolve(["stage=full", "profile=h100", f"profile.additional.{key}=x"])


def test_a_time_limit_that_ends_as_the_work_begins_is_refused():
    words = ["stage=full", "profile=h100", "profile.resources.gpu.time_min=2"]
    with pytest.raises(UserError, match=r"gpu\.time_min=2: work is asked to stop 120 s before the end"):
        resolve(words)
    resolve([*words, "profile.signal_before_s=60"])


@pytest.mark.parametrize("key", ["additional", "resources.gpu.additional"])
def test_a_further_option_that_ends_as_the_work_begins_is_refused(key: str):
    words = ["stage=full", "profile=h100"]
    with pytest.raises(UserError, match=r"additional\.time=0-00:01:30 for \w+ jobs: work is asked to stop 120 s"):
        resolve([*words, f"profile.{key}={{time: '0-00:01:30'}}"])
    resolve([*words, f"profile.{key}={{time: 1, signal: 'B:USR2@30'}}"])
    resolve([*words, f"profile.{key}={{time: '5'}}", "profile.resources.gpu.time_min=1"])


def test_provenance_knows_a_package_however_it_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from source by an older pip, a package has egg-info: what trains must not be missing in the record."""
    for name in ("torch-2.13.0+cpu.dist-info", "rouge_score-0.1.2-py3.11.egg-info", "deepspeed-0.19.8-py3.11.egg-info"):
        (tmp_path / name).mkdir()
    (tmp_path / "nltk.egg-info").mkdir()  # a checkout's, which has no version in its name
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = snapshot.provenance(tmp_path)["packages"]
    assert found == {"torch": "2.13.0+cpu", "deepspeed": "0.19.8", "rouge-score": "0.1.2"}
