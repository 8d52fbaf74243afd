"""`launch.py check`: profile and settings against the live cluster and the disks, before anything is submitted.

Each result names what was checked, the value found and the fix. Nothing is changed or submitted.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lumen_hpc import files
from lumen_hpc.cluster import import_cost, partitions, ready, slurm
from lumen_hpc.cluster.partitions import Partition
from lumen_hpc.cluster.ready import CheckResult
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.profile import Profile, Resources, further_options
from lumen_hpc.config.schema import Settings
from lumen_hpc.errors import UserError
from lumen_hpc.files import user_name
from lumen_hpc.language.endpoints import check_endpoint
from lumen_hpc.language.engine import misfit
from lumen_hpc.progress import spell_count

ROOM_GB = {"phantom": 5, "mimic": 300}
"""Free space that a run needs: checkpoints of an 8B training are 113 GB each, two are kept."""


def check_all(run: Run, stages: Collection[str] | None = None) -> Iterator[CheckResult]:
    """Everything that can be known before submission, in the order of the chain; of these stages alone if given."""
    runs = run.folder.parent
    # Otherwise given as runs=FOLDER; a text is shown as it is written.
    is_profile_default = runs == Path(run.profile.runs).absolute()
    unset = list(ready.unset_variables(run.profile, "" if is_profile_default else str(runs)))
    yield from unset
    yield from ready.data(run.settings, run.profile, stages)
    if stages is None or "instruct" in stages:
        yield from ready.entities(run.settings, run.profile)
    yield from data_use(run.settings, run.profile, run.folder)
    if not unset:
        yield from foreign_run(run)
        yield from _check_folder(run.folder, ROOM_GB[run.settings.data.source])
    yield from ready.models(run.settings, run.profile, stages)
    yield from ready.containers(run.profile)
    yield from ready.packages(run.settings, run.profile)
    yield from ready.setup(run.profile)
    yield from import_cost.check(run.profile)
    yield from ready.sizes(run.settings, stages)
    for name in ("full",) if stages is None else sorted(stages):
        yield from processes(run.settings, run.profile, name)
    if run.profile.executor == "slurm":
        yield from check_cluster(run.profile)
    else:
        yield CheckResult("ok", "profile runs on this machine, without Slurm")


def data_use(settings: Settings, profile: Profile, folder: Path) -> Iterator[CheckResult]:
    """Servers' addresses, and the gate for restricted data: which servers may see it and where it may lie. Submission
    refuses on `bad`."""
    rules = profile.data_use
    restricted = settings.data.source == "mimic" and rules.restricted
    for key, engine in settings.engines().items():
        if engine.kind == "server" and (engine.endpoint or restricted):
            try:
                check_endpoint(engine.endpoint, rules.endpoints if restricted else None)
            except UserError as error:
                fix = "use an engine on the node, or a server that may see the data" if restricted else "correct it"
                yield CheckResult("bad", f"{key}: {error}", fix)
    if not restricted:
        return
    allowed_folders = [Path(allowed_folder).expanduser().resolve() for allowed_folder in rules.folders]
    for folder_path in _restricted_places(settings, folder) if allowed_folders else ():
        target = folder_path.resolve()
        if not any(target.is_relative_to(allowed_folder) for allowed_folder in allowed_folders):
            yield CheckResult(
                "bad",
                f"{folder_path}{f' leads to {target}, which' * (target != folder_path)} lies outside the "
                "folders where restricted data may be",
                f"choose one under {', '.join(rules.folders)} (profile.data_use.folders)",
            )


def _restricted_places(settings: Settings, folder: Path) -> Iterator[Path]:
    """The run's folder, every data folder, and what lies two levels below it: any of them may be a link elsewhere."""
    data = settings.data
    yield folder.expanduser().absolute()
    for name in (data.mimic_cxr, data.mimic_cxr_dicom, data.diff_vqa, data.mimic_iv):
        if name:
            top = Path(name).expanduser().absolute()
            yield top
            with suppress(PermissionError):  # no job of this user's can read there either
                for pattern in ("*", "*/*"):
                    yield from sorted(place for place in top.glob(pattern) if os.path.islink(place))


def processes(settings: Settings, profile: Profile, stage: str = "full") -> Iterator[CheckResult]:
    """Whether the language stages' jobs have as many processes as their engines need. Submission refuses on `bad`."""
    for key, engine in settings.engines(stage.split("-")[0]).items():
        kind = "gpu" if key == "rewrite.engine" else "judge"
        resources = profile.resources[kind]
        if problem := misfit(engine, resources.nodes * resources.tasks_per_node, f"profile.resources.{kind}"):
            message, fix = problem
            yield CheckResult("bad", f"{key}: {message}", fix)


def foreign_run(run: Run) -> Iterator[CheckResult]:
    """A run's folder in which another user could change what the jobs of this one run, or which one could exchange."""
    folder = run.folder
    is_shared = run.restricted or run.profile.executor == "slurm"  # else the machine may be a container of its own
    if is_shared and (reason := files.replaceable(folder)):
        yield CheckResult("bad", f"{folder}: {reason}, and put another run there", "choose another with runs=FOLDER")
    if folder.is_dir() and (reason := files.foreign(folder.resolve())):
        fix = "choose another run=NAME"
        if weights := next(folder.glob("train-*/final"), None):
            fix += f"; stage=serve and stage=export take its model with weights={shlex.quote(str(weights))}"
        yield CheckResult("bad", f"{folder}: {reason}; others could change what your jobs run there", fix)


def unwritable_folder(folder: Path) -> Iterator[CheckResult]:
    """A run's folder that this user could not write, or not create."""
    top = _existing_ancestor(folder)
    if not os.access(top, os.W_OK | os.X_OK):
        yield CheckResult(
            "bad", f"run folder {folder}: {top} is not writable for you", "choose another with runs=FOLDER"
        )


def _existing_ancestor(folder: Path) -> Path:
    """The folder, or the first above it that there is."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _check_folder(folder: Path, room_gb: float) -> Iterator[CheckResult]:
    if problems := list(unwritable_folder(folder)):
        yield from problems
        return
    ancestor = _existing_ancestor(folder)
    try:
        has_locks = _has_locks(ancestor)
    except OSError as error:
        yield CheckResult(
            "bad",
            f"run folder {folder}: {ancestor} cannot be written: {error.strerror}",
            "make room or ask its administrators, or choose another with runs=FOLDER",
        )
        return
    free = shutil.disk_usage(ancestor).free / 1e9
    if free < room_gb:
        yield CheckResult(
            "warn",
            f"run folder {folder}: {free:.0f} GB free, a run needs about {room_gb:.0f}",
            "free some, or runs=FOLDER",
        )
    else:
        yield CheckResult("ok", f"run folder {folder}: writable, {free:.0f} GB free")
    if not has_locks:
        yield CheckResult(
            "warn",
            f"{ancestor}: file locks do nothing here",
            "concurrent tasks may lose manifest lines and redo shards",
        )


def _has_locks(folder: Path) -> bool:
    """True if a second holder is refused a lock that the first has."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lumen-lock-") as first, open(first.name, "rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def check_cluster(profile: Profile) -> Iterator[CheckResult]:
    """Partitions, limits, accounts and qos of the profile against the live cluster; `why_refused` asks it too."""
    try:
        found_partitions = partitions.query()
    except UserError as error:
        yield CheckResult("bad", str(error), error.advice or "run this on a login node of the cluster")
        return
    yield CheckResult("ok", f"Slurm {slurm.setting('SLURM_VERSION', '?')}, cluster {slurm.setting('ClusterName', '?')}")
    for kind, resources in profile.resources.items():
        for result in _resources(kind, resources, found_partitions):
            if result.level == "bad" and not _says_all(profile, resources):
                message = f"{result.message} (the site's own choice, or profile.additional, may differ)"
                result = replace(result, level="warn", message=message)
            yield result
    yield from oversized_arrays(profile, tasks=profile.max_array_size)
    yield from _accounting(profile, "associations" in slurm.setting("AccountingStorageEnforce", ""))


def oversized_arrays(profile: Profile, tasks: int) -> Iterator[CheckResult]:
    """Whether the profile would submit this many tasks as one array, and the cluster takes no such array."""
    if profile.max_array_size and min(profile.max_array_size, tasks) > (largest := slurm.largest_array()):
        yield CheckResult(
            "bad", f"profile.max_array_size={profile.max_array_size}: this cluster allows {largest}", "leave it at 0"
        )


def why_refused(profile: Profile) -> str:
    """What in the profile does not fit the cluster, after Slurm refused a job; empty where nothing is found."""
    try:
        partitions.query()
    except UserError:
        return ""
    results = [result for result in check_cluster(profile) if result.level == "bad"]
    return "; ".join(f"{result.message} (fix: {result.fix})" for result in results)


REPLACED_OPTIONS = {"partition", "time", "nodes", "mem", "cpus-per-task", "ntasks-per-node", "gpus-per-node"}
"""Options of `additional` that replace what `profile.resources` says."""


def _says_all(profile: Profile, resources: Resources) -> bool:
    """Whether jobs get what these resources say. Without a partition, a site may choose by account, qos or features."""
    return bool(resources.partition) and not REPLACED_OPTIONS & further_options(profile, resources).keys()


def unfit_resources(profile: Profile, kinds: Collection[str]) -> Iterator[tuple[str, CheckResult]]:
    """Kind by kind, requests that the cluster can never satisfy; nothing where it does not answer.

    Slurm accepts some of them, and their jobs wait forever.
    """
    certain_kinds = [kind for kind in sorted(kinds) if _says_all(profile, profile.resources[kind])]
    if not certain_kinds:
        return
    try:
        found_partitions = partitions.query()
    except UserError:
        return
    for kind in certain_kinds:
        results = _resources(kind, profile.resources[kind], found_partitions)
        yield from ((kind, result) for result in results if result.level == "bad")


def _resources(kind: str, resources: Resources, found_partitions: list[Partition]) -> Iterator[CheckResult]:
    key = f"profile.resources.{kind}"
    partition_names = {name for name in resources.partition.split(",") if name}
    matching = [
        item for item in found_partitions if item.name in partition_names or (not partition_names and item.default)
    ]
    if not matching or partition_names - {item.name for item in matching}:
        names = ", ".join(sorted({item.name for item in found_partitions}))
        yield CheckResult(
            "bad", f"{key}.partition={resources.partition or '(default)'}: not on this cluster", f"one of {names}"
        )
        return
    nodes, gpus = sum(item.nodes for item in matching), max(item.gpus for item in matching)
    name = resources.partition or matching[0].name
    if not nodes:  # a cloud's come when jobs ask for them
        yield CheckResult("warn", f"{key}: partition {name} shows no nodes now: what they have is not known", "sinfo")
        return
    bad = list(_excess_requests(key, resources, matching))
    yield from bad or [
        CheckResult("ok", f"{kind}: partition {name}, {spell_count(nodes, 'node')} with {spell_count(gpus, 'GPU')}")
    ]
    yield from _closed_partition(key, name, matching)


def _excess_requests(key: str, resources: Resources, matching: list[Partition]) -> Iterator[CheckResult]:
    """Requests beyond the partition's nodes, or beyond its limits for a job, unless a qos may allow more time."""
    gpus, nodes = max(item.gpus for item in matching), sum(item.nodes for item in matching)
    cpus, limit = max(item.cpus for item in matching), max(item.minutes for item in matching)
    memory = max(item.memory_mb for item in matching)
    for is_excess, request, fix in (
        (resources.gpus > gpus, f"{key}.gpus={resources.gpus}", f"its nodes have {spell_count(gpus, 'GPU')}"),
        (resources.nodes > nodes, f"{key}.nodes={resources.nodes}", f"it has {spell_count(nodes, 'node')}"),
        (
            resources.cpus * resources.tasks_per_node > cpus,
            f"{key}.cpus={resources.cpus} x {resources.tasks_per_node}",
            f"{cpus} cores a node",
        ),
        (resources.mem_gb * 1024 > memory, f"{key}.mem_gb={resources.mem_gb}", f"{memory // 1024} GB a node"),
        (
            resources.time_min > limit and not resources.qos,
            f"{key}.time_min={resources.time_min}",
            f"its limit is {limit} min",
        ),
    ):
        if is_excess:
            yield CheckResult("bad", f"{request} in partition {resources.partition or matching[0].name}", fix)


def _closed_partition(key: str, name: str, matching: list[Partition]) -> Iterator[CheckResult]:
    """A partition whose jobs do not start now, or that takes none."""
    states = {item.state for item in matching}
    if not states & {"up"}:
        state = {"inact": "INACTIVE"}.get(matching[0].state, matching[0].state.upper())
        if states & {"down"}:
            yield CheckResult("warn", f"{key}: partition {name} is {state}: jobs queue and wait", "another partition")
        else:
            yield CheckResult("bad", f"{key}: partition {name} is {state}: it takes no new jobs", "another partition")
    nodes, unavailable = sum(item.nodes for item in matching), sum(item.unavailable_nodes for item in matching)
    if nodes and unavailable == nodes:
        yield CheckResult("warn", f"{key}: all {nodes} nodes of partition {name} are down, drained or reserved", "wait")


def _accounting(profile: Profile, associations_enforced: bool = False) -> Iterator[CheckResult]:
    """`associations_enforced`: the cluster runs nothing of users without an association."""
    user = user_name(os.getuid(), "")
    qos_names = {resources.qos for resources in profile.resources.values() if resources.qos}
    if not user:
        yield CheckResult(
            "warn", f"user {os.getuid()} has no name on this machine: account and qos were not checked", "getent passwd"
        )
        return
    try:
        lines = slurm.ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=Account,QOS")
    except UserError:
        yield CheckResult(
            "warn", "no accounting answers: account and qos were not checked", "status works from the queue alone"
        )
        return
    accounts = {line.split("|")[0] for line in lines.splitlines() if "|" in line}
    qos = {name for line in lines.splitlines() if "|" in line for name in line.split("|")[1].split(",")}
    if not accounts and associations_enforced:
        yield CheckResult(
            "bad", f"user {user} has no account on this cluster", "ask its administrators for an association"
        )
        return
    account_names = {resources.account or profile.account for resources in profile.resources.values()} - {""}
    for name in sorted(account_names - accounts):
        yield CheckResult("bad", f"account {name}: not yours", f"one of {', '.join(sorted(accounts)) or '(none)'}")
    for name in sorted(qos_names - qos):
        yield CheckResult("bad", f"qos {name}: not yours", f"one of {', '.join(sorted(qos)) or '(none)'}")
