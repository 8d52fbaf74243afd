"""From a profile and a step to sbatch parameters: pure, so that a dry run and the golden files show the truth."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.profile import Profile, Resources
from lumen_hpc.cluster.stage import Step


def parameters(
    profile: Profile,
    step: Step,
    run: Path,
    code: Path,
    submission: str,
    dependency: str = "",
    exclude: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What submitit is told for one job or array of a step."""
    wanted: Resources = profile.resources[step.stage.resources]
    found: dict[str, Any] = {
        "job_name": f"{run.name}.{step.name}",
        "partition": wanted.partition or None,
        "qos": wanted.qos or None,
        "constraint": wanted.constraint or None,
        "account": wanted.account or profile.account or None,
        "time": wanted.time_min,
        "nodes": wanted.nodes,
        "ntasks_per_node": wanted.tasks_per_node,
        "cpus_per_task": wanted.cpus,
        "gpus_per_node": wanted.gpus or None,
        "mem": f"{wanted.mem_gb}GB" if wanted.mem_gb else None,
        "exclusive": wanted.exclusive or None,
        "exclude": ",".join(exclude) or None,
        "dependency": dependency or None,
        "array_parallelism": profile.throttle or 1_000_000,
        "signal_delay_s": profile.signal_before_s,
        "mail_user": profile.mail_user or None,
        "mail_type": profile.mail_type or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": _setup(profile, code, submission),
        "srun_args": _srun(profile),
        "additional_parameters": _additional(profile),
    }
    return {key: value for key, value in found.items() if value is not None or key == "wckey"}


def python(profile: Profile) -> str:
    """The command that starts Python in a job, inside the container if there is one."""
    container = profile.container
    if container.kind == "apptainer":
        binds = [word for mount in container.mounts for word in ("--bind", mount)]
        return shlex.join(["apptainer", "exec", "--nv", *binds, container.image, "python"])
    return "python" if container.kind == "pyxis" else shlex.quote(sys.executable)


def text(profile: Profile, folder: Path, tasks: int, **given: Any) -> str:
    """The sbatch script that submitit would hand in for these parameters."""
    from submitit.slurm import slurm as submitit_slurm

    command = f"{python(profile)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = {"map_count": tasks} if tasks > 1 else {}
    return submitit_slurm._make_sbatch_string(command=command, folder=folder, **given, **count)


def _setup(profile: Profile, code: Path, submission: str) -> list[str]:
    lines = [f"module load {name}" for name in profile.modules]
    variables = {**profile.environment, "LUMEN_SUBMISSION": submission, "PYTHONPATH": str(code)}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    if profile.scratch:
        lines.append(f"export LUMEN_SCRATCH={profile.scratch}")
    return lines + list(profile.setup)


def _srun(profile: Profile) -> list[str] | None:
    if profile.container.kind != "pyxis":
        return None
    mounts = [f"--container-mounts={','.join(profile.container.mounts)}"] if profile.container.mounts else []
    return [f"--container-image={profile.container.image}", *mounts]


def _additional(profile: Profile) -> dict[str, str] | None:
    extra = dict(profile.additional)
    if profile.kill_on_invalid_dep:
        extra["kill-on-invalid-dep"] = "yes"
    extra["requeue" if profile.requeue else "no-requeue"] = True  # type: ignore[assignment]
    return extra
