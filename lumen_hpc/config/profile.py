"""Site profiles: what a cluster calls its partitions, and what it allows.

A profile is a YAML file in `cluster_profiles/`; `extends: OTHER` starts from another one. Every key is a field
of `Profile`, and `profile.KEY=VALUE` on the command line overrides it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config.fields import choice, in_range, list_of
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import drop_emptied, leaves, read_yaml, require_fits, suggestion
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
    """Nodes per job."""
    gpus: int = 0
    """GPUs per node; of one type with constraint, or with additional: {gres: 'gpu:TYPE:N'}."""
    tasks_per_node: int = in_range(1, 1)
    """Processes per node: one per GPU for training, 1 otherwise."""
    cpus: int = in_range(4, 1)
    """CPU cores per process."""
    mem_gb: int = 0
    """Memory per node [GB]; 0 leaves it to Slurm's default."""
    time_min: int = in_range(60, 1)
    """Time limit of a job [min]."""
    tasks: int = in_range(8, 1)
    """Most tasks per array; shards are packed into them."""
    successors: int = 1
    """Successors queued for each job, which continue after a time limit, a preemption or a crash."""
    exclusive: bool = False
    """Take whole nodes."""
    additional: dict[str, str] = field(default_factory=dict)
    """Further sbatch options of these jobs alone, `name: value`, over the profile's."""


@dataclass(kw_only=True)
class Container:
    kind: str = choice("none", "none", "apptainer", "singularity", "pyxis")
    """How jobs enter a container: `apptainer exec`, `singularity exec`, or a plugin of srun."""
    image: str = ""
    """Image file (.sif, .sqsh)."""
    mounts: list[str] = list_of()
    """Bind mounts, `host:inside`."""
    options: list[str] = list_of("--nv")
    """Options of apptainer's or singularity's exec: `--nv` for NVIDIA's driver, `--rocm` for AMD's."""


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


def _default_resources() -> dict[str, Resources]:
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
    resources: dict[str, Resources] = field(default_factory=_default_resources)
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
    """Node-local folder for temporary files and compile caches, such as /local/$SLURM_JOB_ID; empty means TMPDIR."""
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
    """Crashes of one pack, and deaths of its nodes, after which its successors give up."""
    preemptions: int = 20
    """Preemptions and time limits of one pack after which its successors give up."""
    stuck_after_s: int = in_range(1800, 1)
    """A task that finishes no row for this long ends itself [s]."""
    gpu_memory_gb: float = 80
    """Memory of one GPU [GB]; a training that cannot fit is refused with settings that would. 0 asks nothing."""
    gpu_hours_limit: float = 0
    """Submission is refused when the plan, of a sweep all plans, costs more GPU-hours; 0 sets no limit."""
    mail_user: str = ""
    """Address for Slurm's mail."""
    mail_type: str = ""
    """When Slurm sends mail, such as END,FAIL; never if empty."""
    additional: dict[str, str] = field(default_factory=dict)
    """Further sbatch options of every job, `name: value`."""
    data_use: DataUse = field(default_factory=DataUse)
    """Where restricted data may be and which servers may see it."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Settings whose default is different at this site, such as `{judge: {engine: {tensor_parallel: 4}}}`."""


class _ProfileFile(Profile):
    """The types of a profile's file, which tell its texts from numbers."""

    defaults: Settings  # type: ignore[assignment]


def further_options(profile: Profile, resources: Resources) -> dict[str, str]:
    """What `additional` says for these jobs, by the names of sbatch's long options."""
    options = [*profile.additional.items(), *resources.additional.items()]
    return {option_name(name): value for name, value in options}


def option_name(name: str) -> str:
    """sbatch's long option of a key: `--mem_per_gpu` is mem-per-gpu."""
    return name.lstrip("-").replace("_", "-")


def minutes(limit: str) -> int:
    """Slurm's D-HH, D-HH:MM, D-HH:MM:SS, HH:MM:SS, MM:SS or MM as minutes; `infinite` and the like as a year."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not match:
        return 525_600
    days, first, second = (int(part or 0) for part in match.groups()[:3])
    return days * 1440 + (first * 60 + second if match[1] or match[4] else first)


def slurm_keys(values: DictConfig) -> list[str]:
    """Dotted keys of a profile's YAML that name an account, a partition or a qos."""
    values_dict: Any = OmegaConf.to_container(values)
    slurm_words = ("account", "partition", "qos")
    return [key for key, value in leaves(values_dict) if value and key.rpartition(".")[2] in slurm_words]


def names() -> list[str]:
    """The profiles that can be named."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str, origin: str = "", _chain: tuple[Path, ...] = ()) -> DictConfig:
    """The YAML of profile `name` merged over those it extends; UserError, beginning with `origin`, if there is none."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if _chain:
        path = Path(os.path.normpath(_chain[-1].parent / path))  # a relative path starts at the file that names it
    if not path.is_file():
        raise UserError(
            f"{origin or f'profile={name}'}: there is no {path}; the profiles here are {', '.join(names())}"
            f"{suggestion(path.stem, names())}"
        )
    if path in _chain:
        circle = " -> ".join(map(str, (*_chain, path)))
        raise UserError(f"{path}: profiles extend one another in a circle: {circle}")
    own_values = read_yaml(path, _ProfileFile)
    if own_values.get("name"):
        raise UserError(f"{path}: name: {own_values.name}: a profile has the name of its file; leave it out")
    parent = own_values.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent}: takes the name of one profile, or a path")
    if not parent:
        values: Any = own_values
    else:
        parent_values = read(parent, f"{path}: extends: {parent}", (*_chain, path))
        try:
            values = OmegaConf.merge(drop_emptied(Profile, parent_values, own_values), own_values)
        except (OmegaConfBaseException, TypeError):  # a list where a mapping is, or the other way round
            require_fits(Profile, own_values, f"profile {path}")
            raise
    assert isinstance(values, DictConfig)
    values.name = name
    return values


def on_nodes_only(path: Path, profile: Profile) -> bool:
    """Whether the profile declares that only the nodes see this path."""
    return any(path.absolute().is_relative_to(Path(top).expanduser()) for top in profile.node_paths)
