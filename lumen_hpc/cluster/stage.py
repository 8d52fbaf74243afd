"""What a stage is: the contract between `jobs/` and the machinery that runs it.

A file of `jobs/` holds `STAGE = Stage(...)` and `work(task)`. `work` is called once per task (it loads the model) and
returns a function from `Shard` to that shard's rows; the machinery writes, checks and skips shards.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.shards import Shard as Shard  # jobs take the whole contract from here
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
from lumen_hpc.distributed import Ranks as Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.files import lines, sha256
from lumen_hpc.models import compared_model
from lumen_hpc.training.speed import Progress
from lumen_hpc.watchdog import Beat, unwatched
from lumen_hpc.weights import locate


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    """Its file in jobs/ and its folder in a run."""
    paper: str
    """The section of the paper that it carries out; empty where the paper has none."""
    about: str
    """What it does, in a few words, for plans and status."""
    resources: str
    """cpu, gpu, judge or train: which of the profile's resources it asks for."""
    settings: tuple[str, ...]
    """Dotted keys of the settings that decide its rows."""
    after: tuple[str, ...] = ()
    """Steps it reads: a stage's name, `STAGE-{model}` for the same model's, `STAGE-*` for every model's."""
    shardwise_after: str = ""
    """A step of `after` of which shard k needs only shard k."""
    shards: Callable[[Settings], int] = lambda settings: 1
    """How many shards."""
    models: Callable[[Settings], list[str]] | None = None
    """Models it runs once for; None for a stage that is the same for all models."""
    enabled: Callable[[Settings], bool] = lambda settings: True
    """False where a full run has no use for it."""
    needs: str = ""
    """The settings that give it work, for whoever names it without them."""
    on_request: bool = False
    """It runs only when it is named, on a run that exists: no part of a full run."""
    require: Callable[[Run], None] = lambda run: None
    """Raises UserError where the run cannot have it; called before submission."""
    successors: Callable[[Settings], bool] = lambda settings: True
    """False where no job goes on after one that was stopped."""
    external: Callable[[Settings], list[str]] = lambda settings: []
    """Files outside the run whose change makes the stage's shards stale."""
    volatile: tuple[str, ...] = ()
    """Fields of its rows that differ from try to try (timings); later stages' `inputs` do not see them."""
    gpu_hours: Callable[[Run, str], float] | None = None
    """GPU-hours of the whole step's shards, for a model, expected before anything was measured."""
    progress: Callable[[Settings, Path], Progress | None] = lambda settings, folder: None
    """How far and how fast a shard under way is, by what the step's folder holds; None where that says nothing."""
    load_hours: Callable[[Settings], float] = lambda settings: 0.0
    """Hours by the clock that a task holds its GPUs before its first shard."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of a suite in order, and the function by which a job runs one pack of one of them."""

    stages: tuple[Stage, ...]
    run_pack: Callable[[str, str, str, int], str]
    """(run folder, submission folder, step, pack): what a local run starts; Slurm starts task.py."""

    def __post_init__(self) -> None:
        """Raises UserError for a stage that would not wait for what it reads, or names a setting that is none."""
        earlier_names: set[str] = set()
        settings, kinds = Settings(), Profile().resources
        for stage in self.stages:
            for key in stage.settings:
                if not _is_setting(settings, key):
                    raise UserError(f"jobs/{stage.name}.py: settings={stage.settings!r}: there is no setting {key}")
            if stage.resources not in kinds:
                raise UserError(f"jobs/{stage.name}.py: resources={stage.resources!r}: takes one of {', '.join(kinds)}")
            for name in (pattern.removesuffix("-{model}").removesuffix("-*") for pattern in stage.after):
                if name not in earlier_names:
                    raise UserError(f"jobs/{stage.name}.py reads {name}, no stage before it in jobs/__init__.py")
            earlier_names.add(stage.name)


def _is_setting(section: Any, key: str) -> bool:
    """Whether a section of the settings has a dotted key, as far as its defaults tell."""
    for part in key.split("."):
        if section is not None and not hasattr(section, part):
            return False
        section = getattr(section, part, None)
    return True


@dataclass(frozen=True)
class Step:
    """A stage, for one model where it has models: the node of the graph, and a folder of the run."""

    stage: Stage
    model: str = ""
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.stage.name}-{self.model}" if self.model else self.stage.name

    @property
    def shardwise_after(self) -> str:
        return self.stage.shardwise_after.format(model=self.model)


class Interrupted(Exception):
    """A stage stopped at a boundary because it was asked to; what it saved is enough to go on from."""


@dataclass(frozen=True)
class Run:
    """A run's folder as jobs see it."""

    folder: Path
    settings: Settings
    profile: Profile
    verified_lines: dict[str, set[tuple[int, str, int]]] | None = field(default=None, compare=False)
    """Lines of manifests, by step, whose files a command that looks again and again has verified; else None."""

    @property
    def restricted(self) -> bool:
        """True where the run's data are credentialed: private files, gated servers, no record text in messages."""
        return self.settings.data.source == "mimic" and self.profile.data_use.restricted

    @property
    def runs_argument(self) -> str:
        """Quoted for a shell, the folder of runs that this run is in, if a bare command here would look in another."""
        named = os.environ.get("LUMEN_PROFILE") or "local"
        if named.endswith((".yaml", ".yml")):
            named = os.path.abspath(os.path.expanduser(named))
        usual = os.path.abspath(os.path.expandvars(os.path.expanduser(self.profile.runs)))
        found = named == self.profile.name and usual == str(self.folder.parent)
        return "" if found else shlex.quote(str(self.folder.parent))

    @property
    def arguments(self) -> str:
        """How a command in this shell names the run: `run=NAME`, and `runs=FOLDER` where it would look elsewhere."""
        return f"run={self.folder.name}" + f" runs={self.runs_argument}" * bool(self.runs_argument)

    def keep_private(self) -> None:
        """With restricted data, what this process and those it starts write is the owner's alone, and no core file.

        A crash would leave the memory, records included, in whatever folder it happened in. Slurm passes both limits
        on to the jobs.
        """
        if self.restricted:
            os.umask(0o077)
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def path(self, stage: str, model: str = "") -> Path:
        """The folder of a step."""
        return self.folder / (f"{stage}-{model}" if model else stage)

    @property
    def page(self) -> Path:
        """The report's page, once stage evaluate has written it."""
        return self.folder / "report" / "index.html"

    @property
    def base_weights(self) -> Path:
        """Folder of the pretrained NVILA: `pretrain`'s, a user's, or one staged by `fetch`."""
        base = self.settings.train.base
        return self.path("pretrain") / "nvila" if base == "tiny" else locate(base, self.profile.cache)

    def weights(self, model: str) -> Path:
        """Folder of a compared model's weights: its training's final ones, or the base of one that is not trained."""
        return self.path("train", model) / "final" if compared_model(model).trained else self.base_weights

    @property
    def diff_vqa(self) -> Path:
        """Medical-Diff-VQA's folder: the user's, or the one that prepare generated."""
        data = self.settings.data
        return Path(data.diff_vqa) if data.source == "mimic" else self.path("prepare") / "phantom" / "medical-diff-vqa"

    def rows(self, stage: str, model: str = "", shard: Shard | None = None) -> Iterator[dict[str, Any]]:
        """Rows of a finished step in shard order, or of one shard; UserError if a shard is not there."""
        folder = self.path(stage, model)
        paths = [folder / shard.file] if shard else sorted(folder.glob("shard-*-of-*.jsonl"))
        counts = {path.stem.rsplit("-", 1)[1] for path in paths}
        if len(counts) > 1:
            count = manifest.finished_count(folder)
            paths = [path for path in paths if path.stem.endswith(f"-{count:05d}")]
        if not paths or (not shard and len(paths) != int(paths[0].stem.rsplit("-", 1)[1])):
            raise UserError(f"{folder}: stage {folder.name} has not finished; run it first: stage={stage}")
        for path in paths:
            for line in lines(path):
                yield _row(line)


def _row(line: bytes) -> dict[str, Any]:
    """A row of a shard; NaN and infinities, which JSON lacks and Python writes, are read too."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)


@dataclass
class Task:
    """What `work(task)` gets."""

    run: Run
    step: Step
    ranks: Ranks = field(default_factory=Ranks)
    should_stop: Callable[[], bool] = lambda: False
    """True once the time limit is near or the job is being preempted: save and return."""
    beat: Beat = unwatched
    """Call it when something was achieved that is not a row (a training step): it feeds the watchdog."""

    expected: int = 0
    """Rows that the shard under way will have, where a stage knows it: for the progress bar in its log."""

    @property
    def settings(self) -> Settings:
        return self.run.settings

    @property
    def model(self) -> str:
        return self.step.model

    @property
    def folder(self) -> Path:
        """The step's own folder."""
        return self.run.folder / self.step.name

    def artefact(self, path: Path) -> dict[str, Any]:
        """A row that records a file written beside the shards: its name, size and sha256."""
        name = os.path.relpath(path, self.folder)
        return {"file": name, "bytes": path.stat().st_size, "sha256": sha256(path)}
