"""From a profile and a step to an sbatch script: pure, so a dry run and the golden files show what is submitted."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Step
from lumen_hpc.config.profile import Profile, Resources, further_options
from lumen_hpc.errors import UserError

GATE_MINUTES = 10
REQUEUE = """\
code=$?
job="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
[ ! -e {logs}/"$job".requeue ] || {{ rm {logs}/"$job".requeue; scontrol requeue "$job"; }}
exit "$code"
"""
UNFIT_CHARACTERS = re.compile(r"[%\\:\x00-\x1f\x7f]")
"""What a run's path may not hold: patterns of Slurm's log names, its escape, what parts PYTHONPATH, control codes."""
EMPTY_ENTRY_REMOVAL = (
    "while [[ $PYTHONPATH: == *::* ]]; do PYTHONPATH=${PYTHONPATH//::/:} PYTHONPATH=${PYTHONPATH%:}; done"
)
"""A module's `PYTHONPATH=$PYTHONPATH:/x` leaves one: Python takes it for the working directory, before its library."""
SETUP_GUARD = """\
lumen_end() { echo "lumen: a line of the setup $2 (exit $1): $lumen_line"; lumen_line=; exit 1; }
lumen_require() { [ "$1" -eq 0 ] || lumen_end "$1" failed; }
trap 'lumen_code=$?; [ "${#BASH_SOURCE[@]}" -gt 1 ] || lumen_require "$lumen_code"' ERR
trap 'lumen_code=$?; [ -z "$lumen_line" ] || lumen_end "$lumen_code" "ended the job"' EXIT
lumen_silent='^exec +[^0-9<>{]|^set( -[a-zA-Z]+)* -[a-zA-Z]*(n|o noexec)|^shopt .*noexec'
trap '[[ ! $BASH_COMMAND =~ $lumen_silent ]] || lumen_end 0 "would end the job"' DEBUG"""
"""Ends a job at the first command of a setup line that fails, and at a line that does; not within what it sources.

A line that exits would end the job as a success without work, and its gate too, which would let others start. After an
`exec` of a program and a `set -n` no trap is run, so these two are refused before.
"""
END_OF_SETUP = "trap - ERR DEBUG; set +eu; lumen_line="
"""After the setup, whose lines may have set options of the shell."""
MODULE_LOADER = """\
type module >/dev/null 2>&1 || for file in "${MODULESHOME:-/none}/init/bash" "${LMOD_PKG:-/none}/init/bash" \\
    /etc/profile.d/{lmod,z00_lmod,z01_lmod,modules}.sh; do [ ! -r "$file" ] || { . "$file" || :; break; }; done
lumen_load() {
    local log code; log=$(mktemp 2>/dev/null) || log=/dev/null
    module load $1 2>"$log"; code=$?
    cat "$log" >&2; ! grep -q ':ERROR:[0-9]' "$log" || code=1
    [ "$log" = /dev/null ] || rm -f "$log"; return "$code"
}"""
"""`module load` in a shell that has no `module` yet (the user's is no bash), and of versions that fail with exit 0."""


@dataclass(frozen=True)
class JobFolders:
    """Where a job finds what was submitted."""

    run: Path
    """The run's folder."""
    code: Path
    """The snapshot of the code."""
    submission: str
    """The name of the submission's folder in the run."""

    def logs(self, step: Step) -> Path:
        """The folder of a step's logs."""
        return self.run / step.name / "logs"


def text(
    profile: Profile,
    step: Step,
    folders: JobFolders,
    packs: Sequence[int],
    dependency: str = "",
    exclude: tuple[str, ...] = (),
) -> str:
    """The sbatch script of one job of a step, or of an array if there are several packs (task.py)."""
    resources = profile.resources[step.stage.resources]
    srun = needs_srun(profile, resources)
    flags: dict[str, Any] = {
        "gpus-per-node": resources.gpus,
        "exclusive": resources.exclusive,
        "signal": f"{'' if srun else 'B:'}USR2@{profile.signal_before_s}",  # without srun, the script is the work
        "requeue" if profile.requeue else "no-requeue": True,
    }
    name = "%j"
    if len(packs) > 1:
        flags["array"] = f"0-{len(packs) - 1}%{min(len(packs), profile.throttle or len(packs))}"
        name = "%A_%a"
    flags = _with_additional_options(
        profile, resources, flags | _common_options(profile, resources, job_name(folders.run, step), dependency)
    )
    site_exclusion = flags.get("exclude")
    flags["exclude"] = ",".join([*([site_exclusion] if isinstance(site_exclusion, str) else []), *exclude])
    command = ["lumen_hpc.cluster.task", str(folders.run), folders.submission, step.name, str(packs[0])]
    logs = folders.logs(step)
    script = _script(profile, resources, flags, _preamble(profile, resources, folders), command, logs / name)
    return script + (REQUEUE.format(logs=shlex.quote(str(logs))) if _requeued_outside(profile) else "")


def require_path(run: Path) -> None:
    """Raises UserError for a run's folder that a script cannot name: its jobs would die without a log."""
    if match := UNFIT_CHARACTERS.search(str(run)):
        raise UserError(
            f"{str(run)!r}: {match[0]!r} in the path of a run is read by Slurm or Python as something else; "
            "choose another with runs=FOLDER"
        )


def job_name(run: Path, step: Step) -> str:
    """What squeue calls a step's jobs."""
    return f"{run.name}.{step.name}"


def gate_text(profile: Profile, step: Step, folders: JobFolders, dependency: str) -> str:
    """The sbatch script of a step's gate (gate.py): one process on the cpu resources, for a second or two."""
    cpu = profile.resources["cpu"]
    resources = replace(
        cpu, nodes=1, tasks_per_node=1, cpus=1, mem_gb=min(cpu.mem_gb, 1), time_min=min(cpu.time_min, GATE_MINUTES)
    )
    flags = _with_additional_options(
        profile, resources, _common_options(profile, resources, f"{job_name(folders.run, step)}.gate", dependency)
    )
    flags |= {"requeue": True, "no-requeue": False, "signal": ""}
    run = folders.run
    command = ["lumen_hpc.cluster.gate", str(run), str(run / "submissions" / folders.submission)]
    preamble = _preamble(profile, resources, folders)
    return _script(profile, resources, flags, preamble, command, folders.logs(step) / "%j")


def _common_options(profile: Profile, resources: Resources, name: str, dependency: str) -> dict[str, Any]:
    """What every job asks for."""
    return {
        "job-name": name,
        "partition": resources.partition,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "account": resources.account or profile.account,
        "time": resources.time_min,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.tasks_per_node,
        "cpus-per-task": resources.cpus,
        "mem": f"{resources.mem_gb}GB" if resources.mem_gb else "",
        "dependency": dependency,
        "mail-user": profile.mail_user,
        "mail-type": profile.mail_type,
        "open-mode": "append",
        "kill-on-invalid-dep": "yes" if profile.kill_on_invalid_dep else "",
    }


def _with_additional_options(profile: Profile, resources: Resources, flags: dict[str, Any]) -> dict[str, Any]:
    """Lays what `additional` says over the flags; what is about GPUs, in jobs that have some."""
    # As in `overcommit: true`.
    without_value = dict.fromkeys(("", "true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
    for option, value in further_options(profile, resources).items():
        of_gpus = "gpu" in (value if option == "gres" else option)
        if of_gpus and not resources.gpus:
            continue
        if option in ("mem-per-cpu", "mem-per-gpu"):
            flags.pop("mem", None)  # sbatch takes one of the three
        if option == "gres" and of_gpus:
            flags.pop("gpus-per-node", None)
        flags[option] = without_value.get(value.lower(), value)
    return flags


def requested_resources(profile: Profile, step: Step) -> str:
    """What a step requests of the site by name, with its key: for messages about a refusal."""
    kind = step.stage.resources
    resources = profile.resources[kind]
    requested_names = {
        f"profile.resources.{kind}.partition": resources.partition,
        f"profile.resources.{kind}.qos": resources.qos,
        f"profile.resources.{kind}.constraint": resources.constraint,
        "profile.account": resources.account or profile.account,
        "additional.reservation": further_options(profile, resources).get("reservation"),
    }
    return ", ".join(f"{key}={value}" for key, value in requested_names.items() if value) or f"profile {profile.name}"


def needs_srun(profile: Profile, resources: Resources) -> bool:
    """True for jobs of several processes, and for pyxis, which is a plugin of srun.

    A job of one process replaces the batch script instead (`exec`): it starts sooner, gets its signals itself, and
    does not fail with its step while slurmctld restarts ("Invalid generic resource", seen on 22.05). In a container
    that is to be requeued the script stays, because scontrol is outside.
    """
    several_processes = resources.nodes * resources.tasks_per_node > 1
    return several_processes or profile.container.kind == "pyxis" or _requeued_outside(profile)


def _requeued_outside(profile: Profile) -> bool:
    """Whether the batch script queues its job again, at the request of a worker whose container has no scontrol."""
    return profile.requeue and profile.container.kind != "none"


def python(profile: Profile, resources: Resources) -> str:
    """The command that starts Python in a job of these resources, inside the container if there is one."""
    container = profile.container
    if container.kind in ("apptainer", "singularity"):
        options = [_quote_for_node(option) for option in container.options]
        options += [f"--bind {_quote_for_node(mount)}" for mount in container.mounts]
        command = " ".join([container.kind, "exec", *options, _quote_for_node(container.image), "python"])
    else:
        command = "python" if container.kind == "pyxis" else shlex.quote(sys.executable)
    return command if needs_srun(profile, resources) else f"exec {command}"


def _script(
    profile: Profile, resources: Resources, flags: dict[str, Any], preamble: list[str], command: list[str], log: Path
) -> str:
    """An sbatch script; `command` is a module and its arguments, `log` the beginning of its logs' paths."""
    flags = flags | {"output": f"{log}_0_log.out"}
    start = f"{python(profile, resources)} -u -m {shlex.join(command)}"
    if needs_srun(profile, resources):
        start = f"{_srun(profile, resources, f'{log}_%t_log.out')} {start}"
    header = [_flag(key, value) for key, value in sorted(flags.items()) if value not in ("", 0, False)]
    return "\n".join(["#!/bin/bash", *header, "", *preamble, "", start, ""])


def _flag(key: str, value: Any) -> str:
    return f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"


def _preamble(profile: Profile, resources: Resources, folders: JobFolders) -> list[str]:
    """The lines before the command: environment, modules, the profile's own setup, and where the code lies."""
    # What the shell of the submission says about Python and threads is no concern of the jobs.
    lines = ["unset ${!PYTHON@} LUMEN_SCRATCH", "export PYTHONPATH= PYTHONSAFEPATH=1 PYTHONUTF8=1 SLURM_EXPORT_ENV=ALL"]
    if profile.container.kind != "none":  # whose packages those in the user's home would shadow
        lines.append("export PYTHONNOUSERSITE=1")
    if profile.modules or profile.setup:
        lines.append(SETUP_GUARD)
    if profile.modules:
        lines.append(MODULE_LOADER)
    for name in profile.modules:
        lines += _guarded_lines(f"lumen_load {shlex.quote(name)}", f"profile.modules: module load {name}")
    variables = {"OMP_NUM_THREADS": str(resources.cpus), **profile.environment, "LUMEN_SUBMISSION": folders.submission}
    lines += [f"export {key}={_quote_for_node(value)}" for key, value in variables.items()]
    if profile.scratch:
        lines.append(f"export LUMEN_SCRATCH={_quote_for_node(profile.scratch)}")
    for line in profile.setup:
        lines += _guarded_lines(line, f"profile.setup: {'; '.join(line.splitlines())}")
    if profile.modules or profile.setup:
        lines.append(END_OF_SETUP)
    # Last, so that nothing comes before the submitted code; without PYTHONSAFEPATH the working directory would.
    lines.append(f"export PYTHONPATH={shlex.quote(str(folders.code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return [*lines, EMPTY_ENTRY_REMOVAL] if profile.modules or profile.setup else lines


def _guarded_lines(line: str, name: str) -> list[str]:
    return [f"lumen_line={shlex.quote(name)}", line, 'lumen_require "$?"']


def _quote_for_node(text: str) -> str:
    """A text of the profile as a word of the script, in which the node's shell reads variables and nothing else."""
    if not re.search(r"\$\{?[A-Za-z_]", text):
        return shlex.quote(text)
    return '"' + re.sub(r'["`\\]|\$(?!\{?[A-Za-z_])', r"\\\g<0>", text) + '"'


def _srun(profile: Profile, resources: Resources, log: str) -> str:
    # Since Slurm 22.05 srun no longer takes --cpus-per-task over from sbatch: left out, each process gets one core.
    words = ["srun", "--unbuffered", "--output", log, f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"]
    if profile.container.kind == "pyxis":
        container_variables = [
            "PYTHONPATH",
            "PYTHONSAFEPATH",
            "PYTHONUTF8",
            "PYTHONNOUSERSITE",
            "OMP_NUM_THREADS",
            "LUMEN_SUBMISSION",
        ]
        container_variables += [name for name in profile.environment if name not in container_variables]
        container_variables += ["LUMEN_SCRATCH"] if profile.scratch else []
        words.append(f"--container-env={','.join(container_variables)}")  # else the image's own values win
        container_options = f" --container-image={_quote_for_node(profile.container.image)}"
        if profile.container.mounts:
            container_options += f" --container-mounts={_quote_for_node(','.join(profile.container.mounts))}"
        return shlex.join(words) + container_options
    return shlex.join(words)
