"""What a profile may not hold: secrets, sbatch options that a submission sets itself, time limits too short to work."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from omegaconf import DictConfig

from lumen_hpc.config.profile import Profile, further_options, minutes, option_name
from lumen_hpc.config.validate import leaves
from lumen_hpc.errors import UserError

_SECRET_WORDS = {"TOKEN", "KEY", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)\w{4}|://[^/@\s]+:[^/@\s]+@")
_ASSIGNMENT = re.compile(r"\b(\w+)=[\"']?[^\"'$`\s]")
"""A shell variable that gets a literal value; `$(cat file)` is none."""


def require_no_secret(profile: Profile) -> None:
    """Raises UserError for a text of the profile that looks like a secret, without its value.

    It would be written into config.yaml, and most of them into the batch scripts of every job.
    """
    for key, value in leaves(dataclasses.asdict(profile)):
        for text in map(str, value if isinstance(value, list) else [value]):
            names = [*_ASSIGNMENT.findall(text), key.rpartition(".")[2]]
            if key.startswith("defaults."):  # names of our own settings, such as train.token_budget
                names = []
            if any(_SECRET_WORDS & set(name.upper().split("_")) for name in names) or _SECRET_VALUE.search(text):
                raise UserError(
                    f"profile.{key} looks like a secret, and the profile's values are written into the run's files; "
                    "leave it out and export it in the shell that submits: Slurm passes it on to the jobs"
                )


RESERVED_OPTIONS = {
    "array": "profile.resources.KIND.tasks and profile.throttle",
    "clusters": "SLURM_CLUSTERS in the shell",
    "dependency": "stage=NAME, which submits that stage alone",
    "error": "the log of a task has both",
    "job-name": "run=NAME",
    "kill-on-invalid-dep": "profile.kill_on_invalid_dep",
    "no-requeue": "profile.requeue",
    "output": "profile.runs",
    "parsable": "status … json=true",
    "quiet": "2>/dev/null",
    "requeue": "profile.requeue",
    "test-only": "dry_run=true",
    "wait": "status … watch=true",
    "wrap": "profile.setup",
}
"""sbatch options by which a submission chains, finds and numbers its jobs → what to use instead."""


def require_usable(profile: Profile, *sources: DictConfig) -> None:
    """Raises UserError, with key and value, where no job could be submitted or would run as the author means.

    `sources`: the YAML and the command line that the profile was made of.
    """
    _check_folders(profile)
    _check_options(profile)
    _check_variables(profile)
    _check_container(profile, sources)
    _check_lines(profile)
    _check_time(profile)


def _check_folders(profile: Profile) -> None:
    """Refuses an empty folder of runs or weights, which would be the working directory, and a command in `scratch`."""
    if found := re.search(r"\$\(.*|`.*", profile.scratch):
        raise UserError(
            f"profile.scratch={profile.scratch}: {found[0]}: the node reads variables alone; name one of them"
        )
    for key in ("runs", "cache"):
        if not getattr(profile, key):
            raise UserError(
                f"profile.{key} is empty (a variable that is not set?): takes a folder; leave it out for the default"
            )


def _check_options(profile: Profile) -> None:
    """Refuses an option of `additional` by which a submission would lose track of its jobs.

    sbatch takes the beginning of an option for the whole, so `depend` is refused as well.
    """
    options_of = {"profile": profile.additional}
    options_of |= {f"profile.resources.{kind}": resources.additional for kind, resources in profile.resources.items()}
    for place, name, value in ((place, *item) for place, options in options_of.items() for item in options.items()):
        key, option = f"{place}.additional.{name}", option_name(name)
        if not re.fullmatch(r"[A-Za-z][\w-]+", option):
            raise UserError(f"{key}={value}: give the option's long name, such as hint or reservation")
        if reserved := next((long_name for long_name in RESERVED_OPTIONS if long_name.startswith(option)), ""):
            raise UserError(
                f"{key}={value}: a submission sets --{reserved} itself; leave it out ({RESERVED_OPTIONS[reserved]})"
            )
        if option == "exclude" and "/" in value:
            raise UserError(
                f"{key}={value}: sbatch would read a file; list the nodes here, since those on which a run's shards "
                "fail are added"
            )


def _check_variables(profile: Profile) -> None:
    """Refuses an environment variable that a job's shell cannot set."""
    for name, value in profile.environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UserError(
                f"profile.environment.{name}={value}: a variable's name has letters, digits and _, and no digit first"
            )


def _check_container(profile: Profile, sources: Sequence[DictConfig]) -> None:
    """Refuses an image or mounts without the container's kind: no job would enter it."""
    container = profile.container
    has_kind = any("kind" in (source.get("container") or {}) for source in sources)
    if container.kind == "none" and not has_kind and (container.image or container.mounts):
        key = "image" if container.image else "mounts"
        raise UserError(
            f"profile.container.{key}={getattr(container, key)}: no job would enter it; add the kind, apptainer, "
            "singularity or pyxis (or none, to do without it for now)"
        )


def _check_lines(profile: Profile) -> None:
    """Refuses a line break in what becomes an option of sbatch: the rest would be run as a command."""
    for key, value in leaves(dataclasses.asdict(profile)):
        if key.partition(".")[0] not in ("about", "setup", "environment", "defaults"):
            for text in map(str, value if isinstance(value, list) else [value]):
                if re.search(r"[\x00-\x1f\x7f]", text):
                    raise UserError(f"profile.{key}={text!r}: takes one line without control characters")


def _check_time(profile: Profile) -> None:
    """Refuses a time limit so short that the signal to stop comes as the work begins; `additional` may set both."""
    for kind, resources in profile.resources.items():
        options = further_options(profile, resources)
        if profile.executor != "slurm" or "signal" in options:
            continue
        limit, given = resources.time_min, f"profile.resources.{kind}.time_min={resources.time_min}"
        if "time" in options:
            limit, given = minutes(options["time"]), f"additional.time={options['time']} for {kind} jobs"
        if limit * 60 <= profile.signal_before_s:
            raise UserError(
                f"{given}: work is asked to stop {profile.signal_before_s} s before the end "
                "(profile.signal_before_s), which leaves it no time"
            )
