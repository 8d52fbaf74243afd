"""From a profile and a step to sbatch parameters: pure, so a dry run and the golden files show what is submitted."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Step
from lumen_hpc.config.profile import Profile, Resources

GATE_MINUTES = 10
REQUIRE = """\
lumen_require() { [ "$1" -eq 0 ] || { echo "lumen: a line of the setup failed (exit $1): $2"; exit 1; }; }"""


def parameters(
    profile: Profile,
    step: Step,
    run: Path,
    code: Path,
    submission: str,
    dependency: str = "",
    exclude: tuple[str, ...] = (),
) -> dict[str, Any]:
    """submitit's parameters for one job or array of a step."""
    resources = profile.resources[step.stage.resources]
    srun = needs_srun(profile, resources)
    found = _site(profile, resources, job_name(run, step), dependency, srun)
    found |= {
        "gpus_per_node": resources.gpus or None,
        "exclusive": resources.exclusive or None,
        "exclude": ",".join(exclude) or None,
        "array_parallelism": profile.throttle or 1_000_000,
        "signal_delay_s": profile.signal_before_s,
        "setup": _setup(profile, code, submission),
        "additional_parameters": _additional(profile, srun),
    }
    return {key: value for key, value in found.items() if value is not None or key == "wckey"}


def job_name(run: Path, step: Step) -> str:
    """What squeue calls a step's jobs."""
    return f"{run.name}.{step.name}"


def gate_text(profile: Profile, step: Step, run: Path, code: Path, submission: str, dependency: str) -> str:
    """The sbatch script of a step's gate (gate.py): one process on the cpu resources, for a second or two."""
    cpu = profile.resources["cpu"]
    resources = replace(
        cpu, nodes=1, tasks_per_node=1, cpus=1, mem_gb=min(cpu.mem_gb, 1), time_min=min(cpu.time_min, GATE_MINUTES)
    )
    srun = needs_srun(profile, resources)
    given = _site(profile, resources, f"{job_name(run, step)}.gate", dependency, srun)
    additional = {
        key: value for key, value in _additional(profile, srun).items() if key not in ("no-requeue", "signal")
    }
    given |= {"setup": _setup(profile, code, submission), "additional_parameters": additional | {"requeue": True}}
    given = {key: value for key, value in given.items() if value is not None or key == "wckey"}
    arguments = shlex.join([str(run), str(run / "submissions" / submission)])
    command = f"{python(profile, resources)} -u -m lumen_hpc.cluster.gate {arguments}"
    return _script(command, run / step.name / "logs", given)


def _site(profile: Profile, resources: Resources, name: str, dependency: str, srun: bool) -> dict[str, Any]:
    """What every job has."""
    return {
        "job_name": name,
        "partition": resources.partition or None,
        "qos": resources.qos or None,
        "constraint": resources.constraint or None,
        "account": resources.account or profile.account or None,
        "time": resources.time_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "mem": f"{resources.mem_gb}GB" if resources.mem_gb else None,
        "dependency": dependency or None,
        "use_srun": srun,
        "mail_user": profile.mail_user or None,
        "mail_type": profile.mail_type or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "srun_args": _srun(profile, resources) if srun else None,
    }


def request(profile: Profile, step: Step) -> str:
    """What a step requests of the site by name, with its key: for messages about a refusal."""
    kind = step.stage.resources
    resources = profile.resources[kind]
    named = {
        f"profile.resources.{kind}.partition": resources.partition,
        f"profile.resources.{kind}.qos": resources.qos,
        f"profile.resources.{kind}.constraint": resources.constraint,
        "profile.account": resources.account or profile.account,
    }
    return ", ".join(f"{key}={value}" for key, value in named.items() if value) or f"profile {profile.name}"


def needs_srun(profile: Profile, resources: Resources) -> bool:
    """True for jobs of several processes, and for pyxis, which is a plugin of srun.

    A job of one process replaces the batch script instead (`exec`): it starts sooner, gets its signals itself, and
    does not fail with its step while slurmctld restarts ("Invalid generic resource", seen on 22.05).
    """
    return resources.nodes * resources.tasks_per_node > 1 or profile.container.kind == "pyxis"


def python(profile: Profile, resources: Resources) -> str:
    """The command that starts Python in a job of these resources, inside the container if there is one."""
    container = profile.container
    if container.kind == "apptainer":
        binds = [word for mount in container.mounts for word in ("--bind", mount)]
        start = shlex.join(["apptainer", "exec", "--nv", *binds, container.image, "python"])
    else:
        start = "python" if container.kind == "pyxis" else shlex.quote(sys.executable)
    return start if needs_srun(profile, resources) else f"exec {start}"


def text(profile: Profile, step: Step, folder: Path, tasks: int, **given: Any) -> str:
    """The sbatch script that submitit would submit for these parameters."""
    start = python(profile, profile.resources[step.stage.resources])
    command = f"{start} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _script(command, folder, given | ({"map_count": tasks} if tasks > 1 else {}))


def _script(command: str, folder: Path, given: dict[str, Any]) -> str:
    from submitit.slurm import slurm as submitit_slurm

    return submitit_slurm._make_sbatch_string(command=command, folder=folder, **given)


def _setup(profile: Profile, code: Path, submission: str) -> list[str]:
    lines = ["export PYTHONPATH= PYTHONSAFEPATH=1 SLURM_EXPORT_ENV=ALL"]
    if profile.modules or profile.setup:
        lines.append(REQUIRE)
    for name in profile.modules:
        lines += _required(f"module load {name}", "profile.modules")
    variables = {**profile.environment, "LUMEN_SUBMISSION": submission}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    if profile.scratch:
        lines.append(f"export LUMEN_SCRATCH={profile.scratch}")
    for line in profile.setup:
        lines += _required(line, "profile.setup")
    # Last, so that nothing comes before the submitted code; without PYTHONSAFEPATH the working directory would.
    return [*lines, f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _required(line: str, key: str) -> list[str]:
    return [line, f"lumen_require $? {shlex.quote(f'{key}: {line}')}"]


def _srun(profile: Profile, resources: Resources) -> list[str]:
    # Since Slurm 22.05 srun no longer takes --cpus-per-task over from sbatch: left out, each process gets one core.
    words = [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"]
    if profile.container.kind == "pyxis":
        passed = ["PYTHONPATH", "PYTHONSAFEPATH", "SUBMITIT_EXECUTOR", "LUMEN_SUBMISSION", *profile.environment]
        passed += ["LUMEN_SCRATCH"] if profile.scratch else []
        words.append(f"--container-env={','.join(passed)}")  # else the image's own values win
        words.append(f"--container-image={profile.container.image}")
        if profile.container.mounts:
            words.append(f"--container-mounts={','.join(profile.container.mounts)}")
    return words


def _additional(profile: Profile, srun: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {"requeue" if profile.requeue else "no-requeue": True}
    if profile.kill_on_invalid_dep:
        extra["kill-on-invalid-dep"] = "yes"
    if not srun:  # the batch script is the work itself
        extra["signal"] = f"B:USR2@{profile.signal_before_s}"
    flags = {"", "true"}  # as in `overcommit: true`
    return extra | {key: True if value.lower() in flags else value for key, value in profile.additional.items()}
