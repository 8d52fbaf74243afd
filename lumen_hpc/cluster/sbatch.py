"""From a profile and a step to sbatch parameters: pure, so a dry run and the golden files show what is submitted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Step
from lumen_hpc.config.profile import Profile, Resources


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
    resources: Resources = profile.resources[step.stage.resources]
    found: dict[str, Any] = {
        "job_name": f"{run.name}.{step.name}",
        "partition": resources.partition or None,
        "qos": resources.qos or None,
        "constraint": resources.constraint or None,
        "account": resources.account or profile.account or None,
        "time": resources.time_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus or None,
        "mem": f"{resources.mem_gb}GB" if resources.mem_gb else None,
        "exclusive": resources.exclusive or None,
        "exclude": ",".join(exclude) or None,
        "dependency": dependency or None,
        "array_parallelism": profile.throttle or 1_000_000,
        "use_srun": needs_srun(profile, step),
        "signal_delay_s": profile.signal_before_s,
        "mail_user": profile.mail_user or None,
        "mail_type": profile.mail_type or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": _setup(profile, code, submission),
        "srun_args": _srun(profile, resources) if needs_srun(profile, step) else None,
        "additional_parameters": _additional(profile, needs_srun(profile, step)),
    }
    return {key: value for key, value in found.items() if value is not None or key == "wckey"}


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


def needs_srun(profile: Profile, step: Step) -> bool:
    """True for jobs of several processes, and for pyxis, which is a plugin of srun.

    A job of one process replaces the batch script instead (`exec`): it starts sooner, gets its signals itself, and
    does not fail with its step while slurmctld restarts ("Invalid generic resource", seen on 22.05).
    """
    resources = profile.resources[step.stage.resources]
    return resources.nodes * resources.tasks_per_node > 1 or profile.container.kind == "pyxis"


def python(profile: Profile, step: Step) -> str:
    """The command that starts Python in a job of the step, inside the container if there is one."""
    container = profile.container
    if container.kind == "apptainer":
        binds = [word for mount in container.mounts for word in ("--bind", mount)]
        start = shlex.join(["apptainer", "exec", "--nv", *binds, container.image, "python"])
    else:
        start = "python" if container.kind == "pyxis" else shlex.quote(sys.executable)
    return start if needs_srun(profile, step) else f"exec {start}"


def text(profile: Profile, step: Step, folder: Path, tasks: int, **given: Any) -> str:
    """The sbatch script that submitit would submit for these parameters."""
    from submitit.slurm import slurm as submitit_slurm

    command = f"{python(profile, step)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count: dict[str, Any] = {"map_count": tasks} if tasks > 1 else {}
    return submitit_slurm._make_sbatch_string(command=command, folder=folder, **given, **count)


def _setup(profile: Profile, code: Path, submission: str) -> list[str]:
    lines = [f"module load {name}" for name in profile.modules]
    variables = {**profile.environment, "LUMEN_SUBMISSION": submission, "PYTHONPATH": str(code)}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    if profile.scratch:
        lines.append(f"export LUMEN_SCRATCH={profile.scratch}")
    return lines + list(profile.setup)


def _srun(profile: Profile, resources: Resources) -> list[str]:
    # Since Slurm 22.05 srun no longer takes --cpus-per-task over from sbatch: left out, each process gets one core.
    words = [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"]
    if profile.container.kind == "pyxis":
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
    return extra | profile.additional
