"""Site profiles: what a cluster calls its partitions, and what it allows.

A profile is a YAML file in `cluster_profiles/`; `extends: OTHER` starts from another one. Every key is a field
of `Profile`, and `profile.KEY=VALUE` on the command line overrides it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config.fields import choice, in_range, list_of
from lumen_hpc.config.validate import leaves, read_yaml, require_fits, similar
from lumen_hpc.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "cluster_profiles"


@dataclass(kw_only=True)
class Resources:
    partition: str = ""
    """Partition; empty leaves it to Slurm's default."""
    account: str = ""
    """Account of these jobs, where a site charges CPUs and GPUs separately; the profile's if empty."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Required node features."""
    nodes: int = in_range(1, 1)
    """Nodes a job."""
    gpus: int = 0
    """GPUs a node; of one type with constraint, or with additional: {gres: 'gpu:TYPE:N'}."""
    tasks_per_node: int = in_range(1, 1)
    """Processes a node: one a GPU for training, 1 otherwise."""
    cpus: int = in_range(4, 1)
    """CPU cores a process."""
    mem_gb: int = 0
    """Memory a node [GB]; 0 leaves it to Slurm's default."""
    time_min: int = in_range(60, 1)
    """Time limit of a job [min]."""
    tasks: int = in_range(8, 1)
    """Most tasks an array is packed into."""
    successors: int = 1
    """Successors queued for each job, which continue after a time limit, a preemption or a crash."""
    exclusive: bool = False
    """Take whole nodes."""


@dataclass(kw_only=True)
class Container:
    kind: str = choice("none", "none", "apptainer", "pyxis")
    """How jobs enter a container."""
    image: str = ""
    """Image file (.sif, .sqsh)."""
    mounts: list[str] = list_of()
    """Bind mounts, `host:inside`."""


@dataclass(kw_only=True)
class DataUse:
    restricted: bool = True
    """Treat `data.source=mimic` as credentialed: private run folders, gated endpoints, no record text in logs."""
    endpoints: list[str] = list_of()
    """URL prefixes, each with its port, of language model servers that may see restricted data; empty allows none."""
    listen: str = choice("loopback", "loopback", "node")
    """Where a server of stage=serve listens: on its node's loopback (reached by ssh to the node), or on the node's own
    address inside the cluster. Never on all interfaces; its key is asked for in both."""
    folders: list[str] = list_of()
    """Folders under which restricted data and runs may lie; empty allows any."""


def _kinds() -> dict[str, Resources]:
    return {
        "cpu": Resources(successors=1, tasks=1),
        "gpu": Resources(gpus=1),
        "judge": Resources(gpus=1),
        "train": Resources(gpus=1, successors=4, tasks=1),
    }


@dataclass(kw_only=True)
class Profile:
    name: str = "local"
    """File in cluster_profiles/ (without .yaml) or a path; `profile=NAME` for short."""
    about: str = ""
    """What site this is, and whether it was tried there."""
    executor: str = choice("local", "local", "slurm")
    """Where jobs run: submitit's local executor, or Slurm."""
    recipe: str = "demo"
    """Recipe of runs that name none."""
    runs: str = "runs"
    """Folder of runs, on a file system that every node sees."""
    cache: str = "~/.cache/lumen_hpc"
    """Folder of pre-staged weights, on a file system that every node sees."""
    account: str = ""
    """Account that is charged."""
    resources: dict[str, Resources] = field(default_factory=_kinds)
    """What each kind of stage asks for: cpu, gpu, judge, train."""
    modules: list[str] = list_of()
    """`module load` lines of every job."""
    setup: list[str] = list_of()
    """Shell lines run before the work in every job."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every job."""
    container: Container = field(default_factory=Container)
    """Container that jobs run in."""
    node_paths: list[str] = list_of()
    """Folders that the nodes see and this machine does not: what lies in them is not looked for at submission."""
    scratch: str = ""
    """Node-local folder for temporary files and compile caches, e.g. /local/$SLURM_JOB_ID; empty means TMPDIR."""
    kill_on_invalid_dep: bool = True
    """Pass --kill-on-invalid-dep=yes; some sites forbid it."""
    requeue: bool = False
    """Let Slurm requeue interrupted jobs (about 120 s each) instead of the queued successors."""
    max_array_size: int = 0
    """Largest array (0 asks the live cluster)."""
    throttle: int = 0
    """Most tasks of one array that run at once; 0 sets no limit."""
    signal_before_s: int = in_range(120, 1)
    """How long before the time limit the work is asked to save and stop [s]."""
    crashes: int = 2
    """Crashes of one pack after which its successors give up."""
    preemptions: int = 20
    """Preemptions and node failures of one pack after which its successors give up."""
    stuck_after_s: int = in_range(1800, 1)
    """A task that finishes no row for this long ends itself [s]."""
    gpu_memory_gb: float = 80
    """Memory of one GPU [GB]; a training that cannot fit is refused with settings that would. 0 asks nothing."""
    gpu_hours_limit: float = 0
    """Submission is refused when the plan costs more GPU-hours; 0 sets no limit."""
    mail_user: str = ""
    """Address for Slurm's mail."""
    mail_type: str = ""
    """When Slurm sends mail, e.g. END,FAIL; never if empty."""
    additional: dict[str, str] = field(default_factory=dict)
    """Further sbatch options, `name: value`."""
    data_use: DataUse = field(default_factory=DataUse)
    """Where restricted data may be and which servers may see it."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Settings whose default is different at this site, e.g. `{judge: {engine: {tensor_parallel: 4}}}`."""


_SECRET_WORDS = {"TOKEN", "KEY", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)\w{4}|://[^/@\s]+:[^/@\s]+@")
_ASSIGNED = re.compile(r"\b(\w+)=[\"']?[^\"'$`\s]")
"""A shell variable that gets a literal value; `$(cat file)` is none."""


def require_no_secret(profile: Profile) -> None:
    """Raises UserError for a text of the profile that looks like a secret, without its value.

    It would be written into config.yaml, and most of them into the batch scripts of every job.
    """
    for key, value in leaves(dataclasses.asdict(profile)):
        for text in map(str, value if isinstance(value, list) else [value]):
            names = _ASSIGNED.findall(text) if key == "setup" else [key.rpartition(".")[2]]
            if key.startswith("defaults."):  # names of our own settings, such as train.token_budget
                names = []
            if any(_SECRET_WORDS & set(name.upper().split("_")) for name in names) or _SECRET_VALUE.search(text):
                raise UserError(
                    f"profile.{key} looks like a secret, and the profile's values are written into the run's files; "
                    "leave it out and export it in the shell that submits: Slurm passes it on to the jobs"
                )


OWN_OPTIONS = {
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
"""sbatch options by which the jobs of a run are chained, found again and numbered; what says the same instead."""


def further_options(profile: Profile) -> dict[str, str]:
    """What `additional` says, by the names of sbatch's long options."""
    return {_option(name): value for name, value in profile.additional.items()}


def _option(name: str) -> str:
    """sbatch's long option of a key: `--mem_per_gpu` is mem-per-gpu."""
    return name.lstrip("-").replace("_", "-")


def require_own_options(profile: Profile) -> None:
    """Raises UserError for an option of `additional` by which a submission would lose track of its jobs.

    sbatch takes the beginning of an option for the whole, so `depend` is refused as well.
    """
    for name, value in profile.additional.items():
        option = _option(name)
        if not re.fullmatch(r"[A-Za-z][\w-]+", option):
            raise UserError(
                f"profile.additional.{name}={value}: give the option's long name, such as hint or reservation"
            )
        if own := next((own for own in OWN_OPTIONS if own.startswith(option)), ""):
            raise UserError(
                f"profile.additional.{name}={value}: a submission sets --{own} itself; leave it out "
                f"({OWN_OPTIONS[own]})"
            )
        if option == "exclude" and "/" in value:
            raise UserError(
                f"profile.additional.{name}={value}: sbatch would read a file; list the nodes here, since those on "
                "which a run's shards fail are added"
            )


def require_variables(profile: Profile) -> None:
    """Raises UserError for an environment variable that a job's shell cannot set."""
    for name, value in profile.environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UserError(
                f"profile.environment.{name}={value}: a variable's name has letters, digits and _, and no digit first"
            )


def require_container(profile: Profile, *sources: DictConfig) -> None:
    """Raises UserError for an image or mounts without a word on how jobs enter the container: none would."""
    container = profile.container
    named = any("kind" in (source.get("container") or {}) for source in sources)
    if container.kind == "none" and not named and (container.image or container.mounts):
        key = "image" if container.image else "mounts"
        raise UserError(
            f"profile.container.{key}={getattr(container, key)}: no job would enter it; add the kind, apptainer or "
            "pyxis (or none, to do without it for now)"
        )


def require_one_line(profile: Profile) -> None:
    """Raises UserError for a line break in what becomes an option of sbatch: the rest would be run as a command."""
    for key, value in leaves(dataclasses.asdict(profile)):
        if key.partition(".")[0] not in ("about", "setup", "environment", "defaults"):
            for text in map(str, value if isinstance(value, list) else [value]):
                if re.search(r"[\x00-\x1f\x7f]", text):
                    raise UserError(f"profile.{key}={text!r}: takes one line without control characters")


def require_time_to_work(profile: Profile) -> None:
    """Raises UserError for a time limit so short that the signal to stop comes as the work begins."""
    for kind, resources in profile.resources.items():
        if resources.time_min * 60 <= profile.signal_before_s and profile.executor == "slurm":
            raise UserError(
                f"profile.resources.{kind}.time_min={resources.time_min}: work is asked to stop "
                f"{profile.signal_before_s} s before the end (profile.signal_before_s), which leaves it no time"
            )


def slurm_keys(values: DictConfig) -> list[str]:
    """Dotted keys of a profile's YAML that name an account, a partition or a qos."""
    plain: Any = OmegaConf.to_container(values)
    named = ("account", "partition", "qos")
    return [key for key, value in leaves(plain) if value and key.rpartition(".")[2] in named]


def names() -> list[str]:
    """The profiles that can be named."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str, origin: str = "", _seen: tuple[Path, ...] = ()) -> DictConfig:
    """The YAML of profile `name` merged over those it extends; UserError, beginning with `origin`, if there is none."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if _seen:
        path = _seen[-1].parent / path  # a relative path starts at the file that names it
    if not path.is_file():
        raise UserError(
            f"{origin or f'profile={name}'}: there is no {path}; the profiles here are {', '.join(names())}"
            f"{similar(path.stem, names())}"
        )
    if path in _seen:
        circle = " -> ".join(map(str, (*_seen, path)))
        raise UserError(f"{path}: profiles extend one another in a circle: {circle}")
    own = read_yaml(path, Profile)
    parent = own.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent}: takes the name of one profile, or a path")
    if not parent:
        merged: Any = own
    else:
        above = read(parent, f"{path}: extends: {parent}", (*_seen, path))
        try:
            merged = OmegaConf.merge(above, own)
        except (OmegaConfBaseException, TypeError):  # a list where a mapping is, or the other way round
            require_fits(Profile, own, f"profile {path}")
            raise
    assert isinstance(merged, DictConfig)
    merged.name = name
    return merged
