"""Checks what a run reads from outside: datasets, weights, images of containers, and sizes that fit.

`check` shows all of it; a submission refuses what its own steps need, before anything is created. Paths under
`profile.node_paths` are on the nodes alone and are not looked at.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.cluster import question_counts
from lumen_hpc.config.data_schema import Data
from lumen_hpc.config.profile import Profile, on_nodes_only
from lumen_hpc.config.schema import Settings
from lumen_hpc.data.csv_files import CsvFile
from lumen_hpc.data.table_files import COLUMNS, DIFF_VQA, ENTITIES, MIMIC_CXR, find, holding_folder, require_visible
from lumen_hpc.errors import UserError
from lumen_hpc.language.export_text_llama import original
from lumen_hpc.models import Workload
from lumen_hpc.outcomes.mimic_iv import OPTIONAL, TABLES
from lumen_hpc.weights import locate, locate_experts

TEXT_TOKENS = 200
"""Room for the texts of a record beside its images."""


@dataclass(frozen=True)
class CheckResult:
    level: str
    """ok, warn or bad."""
    message: str
    fix: str = ""


def refuse(results: Iterable[CheckResult]) -> None:
    """Raises UserError for the first of these results that is bad."""
    for result in results:
        if result.level == "bad":
            raise UserError(f"{result.message}; fix: {result.fix}")


def required(settings: Settings, profile: Profile, stages: Collection[str]) -> Iterator[CheckResult]:
    """What these stages read from outside the run."""
    yield from data(settings, profile, stages)
    if "instruct" in stages:
        yield from entities(settings, profile)
    yield from models(settings, profile, stages)
    if stages and profile.executor == "slurm":
        yield from containers(profile)
        yield from setup(profile)
    yield from sizes(settings, stages)


def unset_variables(profile: Profile, runs: str = "", only: str = "") -> Iterator[CheckResult]:
    """Variables of the profile's folders that are not set in this shell.

    `runs`: the folder of runs that counts; `only`: the key of the folders to look at, all if empty.
    """
    folders = [("profile.runs", runs or profile.runs), ("profile.cache", profile.cache)]
    folders += [("profile.node_paths", path) for path in profile.node_paths]
    folders += [("profile.data_use.folders", path) for path in profile.data_use.folders]
    for key, folder in folders:
        if only not in ("", key):
            continue
        other = "give runs=FOLDER" if key == "profile.runs" else f"give {key}=FOLDER"
        if names := re.findall(r"\$\{?(\w+)", folder):
            yield CheckResult(
                "bad", f"{key}={folder}: ${names[0]} is not set in this shell", f"export {names[0]}=…, or {other}"
            )
        elif found := re.search(r"\$\(.*|`.*|\$\{.*", folder):
            yield CheckResult("bad", f"{key}={folder}: {found[0]}: variables alone are read here", other)


def data(settings: Settings, profile: Profile, stages: Collection[str] | None = None) -> Iterator[CheckResult]:
    """The dataset's folders and their tables; of these stages alone if given: outcomes reads MIMIC-IV, prepare all."""
    data_settings = settings.data
    reads_images = stages is None or "prepare" in stages
    if not reads_images and "outcomes" not in (stages or ()):
        return
    if data_settings.source == "phantom":
        yield CheckResult("ok", f"data: {data_settings.phantom.patients} phantom patients, written by stage prepare")
        return
    datasets: list[tuple[str, str, tuple[str, ...]]] = []
    if reads_images:
        datasets.append(("data.mimic_cxr", data_settings.mimic_cxr, MIMIC_CXR))
        datasets.append(("data.diff_vqa", data_settings.diff_vqa, DIFF_VQA))
    if data_settings.mimic_iv:
        datasets.append(
            ("data.mimic_iv", data_settings.mimic_iv, tuple(table for table in TABLES if table not in OPTIONAL))
        )
    for key, name, tables in datasets:
        folder = Path(name).expanduser()
        if name and on_nodes_only(folder, profile):
            yield CheckResult("ok", f"{key}={folder}: on the nodes (profile.node_paths)")
            continue
        try:
            missing = _missing_tables(key, folder, tables) if name else []
            for table in OPTIONAL if key == "data.mimic_iv" else ():
                require_visible(key, folder / Path(table).parent)
            if tables == MIMIC_CXR and data_settings.prefer == "jpg" and not _holds_files(key, folder):
                missing.append("files")
        except UserError as error:
            yield _unusable(error)
            continue
        if not name or not folder.is_dir():
            fix = f"{key}=FOLDER holding {', '.join(f'{table}.csv*' for table in tables)}"
            if "$" in name:
                fix = "give the whole path: of a profile's file, its own folders alone may name variables"
            elif name:
                fix = holding_folder(key, folder, tables[0]) or fix
            yield CheckResult("bad", f"{key}={name or '(empty)'} is not a folder", fix)
            continue
        if missing:
            fix = holding_folder(key, folder, tables[0]) or _suggest_dataset(key, folder, datasets)
            yield CheckResult("bad", f"{key}={folder} lacks {', '.join(missing)}", fix)
        else:
            yield CheckResult("ok", f"{key}={folder}")
    if reads_images:
        yield from _dicoms(data_settings, profile)


def _dicoms(data_settings: Data, profile: Profile) -> Iterator[CheckResult]:
    """The tree of DICOMs, where it is named or preferred."""
    key, folder = "data.mimic_cxr_dicom", Path(data_settings.mimic_cxr_dicom).expanduser()
    fix = f"{key}=FOLDER, which holds files/ with the DICOMs"
    if not data_settings.mimic_cxr_dicom:
        if data_settings.prefer == "dicom":
            yield CheckResult("bad", f"data.prefer=dicom without {key}", fix)
    elif not on_nodes_only(folder, profile):
        try:
            if not _holds_files(key, folder):
                yield CheckResult("bad", f"{key}={folder} lacks files", fix)
        except UserError as error:
            yield _unusable(error)


def _unusable(error: UserError) -> CheckResult:
    message, _, fix = str(error).rpartition("; ")
    return CheckResult("bad", message, fix)


def _holds_files(key: str, folder: Path) -> bool:
    """Whether a tree of images has its files/; UserError for one that this user may not list."""
    require_visible(key, folder / "files")
    return (folder / "files").is_dir()


def _missing_tables(key: str, folder: Path, tables: Sequence[str]) -> list[str]:
    """The tables that a folder lacks; UserError for one that is there twice, or that this user may not read.

    And for one that is none (a web page, a workbook), or whose header lacks a column: prepare would find it in its job.
    """
    missing = []
    for table in tables:
        if path := find(folder, table):
            if not os.access(path, os.R_OK, effective_ids=True):
                raise _not_readable(key, path)
            CsvFile(path, (COLUMNS | TABLES)[table]).read_header()
        else:
            require_visible(key, folder / Path(table).parent)
            missing.append(f"{table}.csv*")
    return missing


def _not_readable(key: str, path: Path) -> UserError:
    return UserError(f"{key}: {path}: Permission denied; get access to it")


def _suggest_dataset(key: str, folder: Path, datasets: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    """What would do for a folder without this dataset's tables: it may be another dataset's."""
    for other, _, tables in datasets:
        if other != key and all(find(folder, table) for table in tables):
            return f"this folder holds the tables of {other}; give each its own"
    return "download the dataset's tables from PhysioNet"


def entities(settings: Settings, profile: Profile) -> Iterator[CheckResult]:
    """The dataset's list of findings, where the findings line or timelines need it: instruct comes after GPU stages."""
    path = Path(settings.data.diff_vqa).expanduser() / ENTITIES
    readers = [key for key in ("findings_first", "timelines") if getattr(settings.instruct, key)]
    if settings.data.source != "mimic" or not readers or on_nodes_only(path, profile):
        return
    try:
        if os.access(path, os.R_OK, effective_ids=True) or not os.path.isdir(path.parent):
            return
        require_visible("data.diff_vqa", path.parent)
        if path.is_file():
            raise _not_readable("data.diff_vqa", path)
    except UserError as error:
        yield _unusable(error)
        return
    keys = ", ".join(f"instruct.{key}=false" for key in readers)
    yield CheckResult("bad", f"data.diff_vqa={path.parent} lacks {path.name}", f"download it, or set {keys}")


def models(settings: Settings, profile: Profile, stages: Collection[str] | None = None) -> Iterator[CheckResult]:
    """Weights that these stages load; all that the settings name if None."""

    def loads(*names: str) -> bool:
        return stages is None or bool(set(names) & set(stages))

    if settings.train.base != "tiny" and loads("train", "predict"):
        yield _weights("train.base", settings.train.base, profile)
    folder = locate_experts(settings.experts.weights, profile.cache)
    if settings.experts.model == "xrv" and loads("experts") and not on_nodes_only(folder, profile):
        yield from _experts(settings, folder)
    for key, engine in settings.engines().items():
        if engine.in_task and loads(key.split(".")[0]):
            yield _weights(f"{key}.model", engine.model, profile)
        elif engine.kind == "server" and not engine.endpoint and loads(key.split(".")[0]):
            yield CheckResult("bad", f"{key}.kind=server without {key}.endpoint", f"{key}.endpoint=http://HOST:PORT/v1")


def _experts(settings: Settings, folder: Path) -> Iterator[CheckResult]:
    """By the number of files alone: only TorchXRayVision knows their names, and it imports torch."""
    names = [*settings.experts.pathologies, *settings.experts.extra]
    files = [file for file in folder.iterdir() if file.suffix != ".json"] if folder.is_dir() else []
    if len(files) < len(names):
        number = f"{len(files)} of the {len(names)} files of {', '.join(names)}" if files else "no weights"
        fix = "python launch.py stage=fetch, on a node with internet"
        yield CheckResult("bad", f"experts.weights: {number} in {folder}", fix)


def _weights(key: str, name: str, profile: Profile) -> CheckResult:
    if not name:
        return CheckResult("bad", f"{key} is empty", f"{key}=FOLDER, or a name that stage=fetch stages")
    candidates = [locate(one, profile.cache) for one in dict.fromkeys((name, original(name)))]
    for folder in candidates:
        if on_nodes_only(folder, profile):
            return CheckResult("ok", f"{key}: {folder}, on the nodes (profile.node_paths)")
        if (folder / "config.json").is_file():
            return CheckResult("ok", f"{key}: {folder}")
    if Path(name).expanduser().is_dir():
        return CheckResult("bad", f"{key}={name}: no checkpoint: it has no config.json", "give a checkpoint's folder")
    return CheckResult(
        "bad", f"{key}={name}: neither a folder nor staged as {candidates[-1]}", "python launch.py stage=fetch says how"
    )


def containers(profile: Profile) -> Iterator[CheckResult]:
    """The image, where it is a file, and the mounts' outer sides."""
    container = profile.container
    if container.kind == "none":
        return
    key = "profile.container.image"
    if not container.image:
        yield CheckResult("bad", f"{key} is empty", f"{key}=FILE")
    elif container.image.startswith(("/", ".")) or (container.kind != "pyxis" and "://" not in container.image):
        image = Path(container.image)
        if "$" not in container.image and not on_nodes_only(image, profile) and not image.exists():
            yield CheckResult(
                "bad", f"{key}={image}: not there", "its path, or profile.node_paths if nodes alone see it"
            )
    for mount in container.mounts:
        outer = Path(mount.split(":")[0])
        if "$" not in mount and not on_nodes_only(outer, profile) and not outer.exists():
            yield CheckResult("bad", f"profile.container.mounts: {outer}: not there", "its path, or profile.node_paths")


def packages(settings: Settings, profile: Profile) -> Iterator[CheckResult]:
    """What this Python, which the jobs run where they have no container, lacks; modules or setup lines may bring it."""
    names = ["torch", "transformers", "deepspeed"]
    names += ["vllm"] * any(engine.kind == "vllm" for engine in settings.engines().values())
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing and profile.container.kind == "none":
        yield CheckResult(
            "warn",
            f"{sys.executable}, which the jobs run, lacks {', '.join(missing)}",
            "pip install '.[gpu]' in the checkout, unless profile.modules or profile.setup bring them",
        )


def setup(profile: Profile) -> Iterator[CheckResult]:
    """Setup lines that are no whole command: what one leaves open would swallow the lines after it."""
    for line in profile.setup:
        if (len(line) - len(line.rstrip("\\"))) % 2:
            problem = "ends with a backslash"
        else:
            try:
                result = subprocess.run(
                    ["bash", "-n"], input=f"{line}\n", capture_output=True, text=True, errors="replace"
                )
            except FileNotFoundError:  # no bash here, but on the nodes
                return
            problem = re.sub(r"bash: line \d+: ", "", result.stderr.strip().partition("\n")[0])
        if problem:
            yield CheckResult("bad", f"profile.setup: {line!r}: {problem}", "one whole command an entry")


def sizes(settings: Settings, stages: Collection[str] | None = None) -> Iterator[CheckResult]:
    """Values that do not fit one another, refused here rather than after a model was loaded."""
    counts = question_counts.expected(settings)
    for stage, shards, rows, name in (
        ("experts", settings.experts.shards, counts.images, "images"),
        ("rewrite", settings.rewrite.shards, counts.questions, "questions"),
        ("predict", settings.predict.shards, counts.test_questions, "test questions"),
    ):
        if (stages is None or stage in stages) and shards > max(1, rows):
            fix = f"{stage}.shards={rows} or less" if rows else "more patients, or a larger test split"
            yield CheckResult("bad", f"{stage}.shards={shards}: there are about {rows} {name}", fix)
    train = settings.train
    is_known_base = train.base.rsplit("/", 1)[-1].startswith("NVILA-8B")  # another model's images may take fewer tokens
    if (stages is None or "train" in stages) and is_known_base and train.on_bad == "stop":
        max_images = settings.instruct.max_images
        required_images = 3 if settings.instruct.timelines else 2  # too long a record leaves out the others
        for level, images, end in (
            ("bad", min(max_images, required_images), ""),
            ("warn", max_images, ": records that are longer lose their oldest images"),
        ):
            tokens = images * Workload.image_tokens
            if tokens + TEXT_TOKENS > train.max_tokens:
                yield CheckResult(
                    level,
                    f"instruct.max_images={max_images}: up to {tokens} tokens of {images} images a record, "
                    f"train.max_tokens={train.max_tokens}{end}",
                    f"train.max_tokens={tokens + TEXT_TOKENS} or more, fewer images, or train.on_bad=skip",
                )
                break
