"""A run's results as pandas frames: `run = lumen_hpc.open_run("runs/demo"); run.samples.groupby("model").mean(...)`.

Each frame is read when it is first asked for, and only from files whose digest the run's manifests record, so that what
is analysed is what the stages wrote. Columns are those of docs/data.md; every column and its meaning is in `COLUMNS`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd

from lumen_hpc.cluster import accounting, manifest, run_model
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config import config_file, run_record
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
from lumen_hpc.errors import UserError
from lumen_hpc.metrics.measures import MEASURES
from lumen_hpc.models import KINDS, REPEAT_MARK
from lumen_hpc.plain_text import visible
from lumen_hpc.report import costs

if TYPE_CHECKING:
    from lumen_hpc.serving.ask import TrainedModel

TOKEN_KINDS = (*KINDS, "verdict")
"""Kinds of tokens with a loss of their own; a verdict is the yes or no of an outcome's answer."""
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "studies": {
        "subject_id": ("BIGINT", "patient"),
        "study_id": ("BIGINT", "examination"),
        "dicom_id": ("VARCHAR", "the image that stands for the study"),
        "image": ("VARCHAR", "its file; a phantom's is in this run, wherever that lies now"),
        "view": ("VARCHAR", "PA or AP"),
        "taken_at": ("TIMESTAMP", "date and time of the study, shifted per patient"),
        "split": ("VARCHAR", "train, val or test"),
        "sex": ("VARCHAR", "F or M, of MIMIC-IV; missing without data.mimic_iv"),
        "age": ("BIGINT", "years at the time of the study, of MIMIC-IV; missing without data.mimic_iv"),
    },
    "questions": {
        "question_id": ("VARCHAR", "stable hash"),
        "subject_id": ("BIGINT", "patient"),
        "study_id": ("BIGINT", "main study"),
        "ref_study_id": ("BIGINT", "reference study; missing but for difference questions"),
        "type": ("VARCHAR", "one of the seven types"),
        "question": ("VARCHAR", "as the dataset asks it"),
        "short_answer": ("VARCHAR", "as the dataset answers it"),
        "closed": ("BOOLEAN", "whether the answer is yes or no"),
        "interval_days": ("BIGINT", "main minus reference [days]"),
        "split": ("VARCHAR", "train, val or test"),
    },
    "records": {
        "question_id": ("VARCHAR", "test question, prediction questions among them"),
        "type": ("VARCHAR", "one of the seven types, or prediction"),
        "question": ("VARCHAR", "as the model is asked"),
        "short_answer": ("VARCHAR", "as the dataset answers it; of a prediction: its difference pair's"),
        "long_answer": ("VARCHAR", "the reference sentence"),
        "closed": ("BOOLEAN", "whether the answer is yes or no"),
        "interval_days": ("BIGINT", "main minus reference [days]"),
        "subject_id": ("BIGINT", "patient"),
        "study_id": ("BIGINT", "main study"),
        "ref_study_id": ("BIGINT", "reference study"),
    },
    "rewrites": {
        "question_id": ("VARCHAR", "question"),
        "type": ("VARCHAR", "prediction, or missing for a rewritten answer"),
        "question": ("VARCHAR", "a prediction's question"),
        "long_answer": ("VARCHAR", "the sentence that a record teaches"),
        "source": ("VARCHAR", "llm or fallback"),
        "attempts": ("BIGINT", "tries of the language model"),
    },
    "answers": {
        "question_id": ("VARCHAR", "question"),
        "model": ("VARCHAR", "compared model"),
        "control": ("VARCHAR", "how its images were perturbed; missing for a plain answer"),
        "answer": ("VARCHAR", "what the model wrote"),
        "tokens": ("BIGINT", "tokens of the answer"),
        "seconds": ("DOUBLE", "its share of the batch's time [s]"),
    },
    "scores": {
        "question_id": ("VARCHAR", "question"),
        "model": ("VARCHAR", "compared model"),
        "judge": ("VARCHAR", "judge"),
        "score": ("BIGINT", "1 to 10"),
        "expected_score": ("DOUBLE", "mean of 1 to 10 under the judge's probabilities"),
        "canary": ("VARCHAR", "kind of canary; missing for an answer"),
        "passed": ("BOOLEAN", "whether a canary was scored right"),
    },
    "samples": {
        "question_id": ("VARCHAR", "test question"),
        "type": ("VARCHAR", "one of the seven types, or prediction"),
        "model": ("VARCHAR", "compared model, or a row that needs none"),
        **{name: ("DOUBLE", meaning) for name, meaning in MEASURES.items()},
        "judge": ("DOUBLE", "score of the first judge, 1 to 10"),
        "judge_expected": ("DOUBLE", "mean of 1 to 10 under its probabilities"),
    },
    "training": {
        "model": ("VARCHAR", "trained model; lumen@1 is of a further seed"),
        "step": ("BIGINT", "optimizer step, from 1"),
        "loss": ("DOUBLE", "what was minimised (train.loss)"),
        **{f"loss_{kind}": ("DOUBLE", f"a {kind} token's mean") for kind in TOKEN_KINDS},
        "lr": ("DOUBLE", "learning rate"),
        "grad_norm": ("DOUBLE", "gradient norm before clipping"),
        "samples": ("BIGINT", "samples so far"),
        "tokens": ("BIGINT", "tokens of this step"),
        "supervised": ("BIGINT", "tokens of this step that are learned"),
        "validation_loss": ("DOUBLE", "the same on held-out records; missing but at checkpoints"),
        **{f"validation_loss_{kind}": ("DOUBLE", f"a {kind} token's mean on them") for kind in TOKEN_KINDS},
        "timing.seconds": ("DOUBLE", "time of the step [s]"),
        "timing.data_wait": ("DOUBLE", "of it: waiting for data [s]"),
        "timing.checkpoint_stall": ("DOUBLE", "of it: waiting for the last checkpoint [s]"),
        "timing.tokens_per_s": ("DOUBLE", "tokens a second, of all GPUs"),
        "timing.micro_batches": ("BIGINT", "micro-batches of rank 0"),
        "timing.gpus": ("BIGINT", "processes"),
        "timing.steps": ("BIGINT", "steps of the whole training"),
        "timing.eta_s": ("DOUBLE", "estimated time to its end [s]"),
        "timing.time": ("DOUBLE", "when the step ended [Unix time]"),
        "timing.memory_gb": ("DOUBLE", "largest memory of rank 0's GPU so far [GB]; missing without one"),
        "timing.mfu": ("DOUBLE", "model FLOPs utilisation; missing where the GPU's peak is not known"),
        "timing.validation": ("DOUBLE", "time of the validation loss before this step [s]"),
        "timing.start_to_first_step": ("DOUBLE", "from the process's start, after each restart [s]"),
    },
    "costs": {
        "step": ("VARCHAR", "step, such as train-lumen"),
        "shards": ("BIGINT", "finished shards"),
        "began": ("DOUBLE", "when its first task began [Unix time]"),
        "wall_seconds": ("DOUBLE", "from the beginning of its first task to the end of its last [s]"),
        "cpu_hours": ("DOUBLE", "requested cores x time, of every attempt"),
        "gpu_hours": ("DOUBLE", "requested GPUs x time, of every attempt"),
        "joules": ("DOUBLE", "energy of the nodes by Slurm's accounting; missing where it was not measured"),
        "peak_bytes": ("BIGINT", "largest memory of any of its processes"),
        "gpu_peak_bytes": ("BIGINT", "largest GPU memory of a training's rank 0; missing without GPUs"),
        "attempts": ("BIGINT", "tasks started, whatever their end"),
        "interrupted": ("BIGINT", "attempts that were killed, interrupted or failed"),
        "wasted_seconds": ("DOUBLE", "time that left nothing, as of interrupted attempts and shards written again [s]"),
        "nodes": ("VARCHAR[]", "where its tasks ran"),
    },
}
COLUMNS["results"] = {
    **COLUMNS["samples"],
    **{name: column for name, column in COLUMNS["answers"].items() if name != "control"},
    "judged_by": ("VARCHAR", "first judge"),
    "score": COLUMNS["scores"]["score"],
    "expected_score": COLUMNS["scores"]["expected_score"],
    **{name: column for name, column in COLUMNS["records"].items() if name != "type"},
}
"""Frame → column → (type in duckdb, meaning). Each frame has these columns, whatever its run measured."""


def open_run(folder: str | Path) -> OpenRun:
    """A run's results. Raises UserError where `folder` is no run, or of another layout.

    `folder` is the run's folder, such as `runs/demo`; nothing is read yet but its settings.
    """
    from lumen_hpc.cluster.submit import require_layout

    folder = Path(folder).expanduser().absolute()
    if folder.is_file():
        raise UserError(f"{folder} is no run, but a file; give the folder of a run, such as runs/demo")
    run_record.require_open(folder)
    if not folder.exists():
        raise UserError(f"there is no {folder}; {run_record.runs_hint(folder)}")
    path = run_record.settings_file(folder)
    if path is None:
        if run_folder := next((parent for parent in folder.parents if (parent / "config.yaml").is_file()), None):
            raise UserError(f"{folder} is a part of a run; give the run's folder, {run_folder}")
        runs = run_record.runs_in(folder)
        suggestion = (
            f"one of the runs in it, such as {folder.name}/{runs[0]}"
            if runs
            else "the folder of a run, such as runs/demo"
        )
        raise UserError(f"{folder} is no run: it has no config.yaml; give {suggestion}")
    require_layout(folder)
    return OpenRun(Run(folder, *config_file.load(path)))


class OpenRun:
    """The frames of one run. A frame of a stage that has not finished raises UserError, naming the stage."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return visible(f"<run {self.folder.name}: {', '.join(self.models)} on {self.settings.data.source}>")

    @property
    def folder(self) -> Path:
        return self._run.folder

    @property
    def settings(self) -> Settings:
        return self._run.settings

    @property
    def profile(self) -> Profile:
        return self._run.profile

    @property
    def models(self) -> list[str]:
        """Compared models, in the order of the settings."""
        return list(self.settings.predict.models)

    @cached_property
    def studies(self) -> pd.DataFrame:
        """A row per study."""
        frame = self._frame("studies", [self._artefact("prepare", "studies.jsonl")])
        if self.settings.data.source == "phantom":
            phantom_folder = f"{self._run.path('prepare')}/phantom/"  # the run may have been moved or copied since
            frame["image"] = frame["image"].str.replace(r"^.*/prepare/phantom/", lambda _: phantom_folder, regex=True)
        return frame

    @cached_property
    def questions(self) -> pd.DataFrame:
        """A row per question of the dataset, all splits; prediction questions are among `rewrites`."""
        return self._frame("questions", [self._artefact("prepare", "questions.jsonl")])

    @cached_property
    def records(self) -> pd.DataFrame:
        """A row per test record: what every model was asked, and the reference."""
        path = self._artefact("instruct", "lumen-test.jsonl")
        fields = ", ".join(f"{column} {kind}" for column, (kind, _) in COLUMNS["records"].items())
        rows = _database().read_json(
            glob.escape(str(path)), format="newline_delimited", columns={"meta": f"STRUCT({fields})"}
        )
        return rows.select("unnest(meta)").df()

    @cached_property
    def rewrites(self) -> pd.DataFrame:
        """A row per long answer, and a row per prediction question."""
        return self._frame("rewrites", self._shards("rewrite"))

    @cached_property
    def answers(self) -> pd.DataFrame:
        """A row an answer of a model, controls among them."""
        return self._frame("answers", [file for model in self.models for file in self._shards("predict", model)])

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row per score of a judge, canaries among them."""
        return self._frame("scores", [file for model in self.models for file in self._shards("judge", model)])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """A row per test question and model, a column per measure (docs/evaluation.md); missing where none applies."""
        return self._frame("samples", [self._artefact("evaluate", "../report/samples.jsonl")])

    @cached_property
    def results(self) -> pd.DataFrame:
        """`samples` beside their questions, answers and judge's scores: what most analyses start from.

        Raises UserError where one of these was written again since stage evaluate scored it.
        """
        self._require_scored()
        answers = self.answers[self.answers["control"].isna()].drop(columns=["control"])
        scores = self.scores[self.scores["canary"].isna()].drop(columns=["canary", "passed"])
        frame = self.samples.merge(answers, on=["question_id", "model"], how="left", validate="one_to_one")
        first_judge = scores.drop_duplicates(["question_id", "model"]).rename(columns={"judge": "judged_by"})
        frame = frame.merge(first_judge, on=["question_id", "model"], how="left", validate="one_to_one")
        records = self.records.drop(columns=["type"])
        return frame.merge(records, on="question_id", how="left", validate="many_to_one")[list(COLUMNS["results"])]

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row an optimizer step of each training, of further seeds (`lumen@1`) and of those under way too."""
        frames = []
        for model in self.models:
            for folder in (self._run.path("train", model), *sorted(self.folder.glob(f"train-{model}{REPEAT_MARK}*"))):
                if rows := manifest.read(folder / "metrics.jsonl"):
                    frames.append(pd.json_normalize(rows).assign(model=folder.name.removeprefix("train-")))
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        return frame.reindex(columns=list(COLUMNS["training"]))

    @cached_property
    def costs(self) -> pd.DataFrame:
        """A row per step: shards, wall time [s], CPU- and GPU-hours, attempts, wasted seconds (report/costs.py)."""
        logs = {
            path.parent.name: costs.StepLogs.open(path.parent, manifest.read)
            for path in sorted(self.folder.glob(f"*/{manifest.NAME}"))
        }
        jobs = costs.job_ids(logs)
        rows = costs.costs(logs, accounting.usage(jobs) if jobs else None)
        return pd.DataFrame(rows).reindex(columns=list(COLUMNS["costs"]))

    def model(self, name: str) -> TrainedModel:
        """A compared model, loaded on this machine; `.ask(question, image=…)` answers about image files.

        Raises UserError for a model that this run has not trained.
        """
        return run_model.open_model(self._run, name)

    def _require_scored(self) -> None:
        """Raises UserError where the report's scores are of other questions, answers or judgements than today's."""
        scored_at = max((line["finished"] for line in manifest.latest(self._run.path("evaluate")).values()), default="")
        models = [self._run.path(stage, model) for stage in ("predict", "judge") for model in self.models]
        for folder in (self._run.path("instruct"), *models):
            scored_content: dict[int, str] = {}
            for line in manifest.read(folder / manifest.NAME):
                if line["finished"] <= scored_at:
                    scored_content[line["shard"]] = line["content"]
                else:  # of nodes whose clocks differ, what was scored may look later
                    scored_content.setdefault(line["shard"], line["content"])
            if scored_content != {shard: line["content"] for shard, line in manifest.latest(folder).items()}:
                raise UserError(
                    f"{folder} was written again after stage evaluate scored it: its rows have no scores yet; "
                    f"python launch.py stage=full {self._run.arguments}"
                )

    def _shards(self, stage: str, model: str = "") -> list[Path]:
        """A finished step's shards, verified."""
        folder = self._run.path(stage, model)
        lines = manifest.latest(folder)
        count = manifest.finished_count(folder)
        current = {index: line for index, line in lines.items() if line["of"] == count}
        if not count or len(current) < count:
            raise UserError(f"{folder}: {len(current)} of {count or '?'} shards are done; run stage={stage} first")
        files = []
        for index in sorted(current):
            manifest.require_verified(folder, current[index])
            files.append(folder / f"shard-{index:05d}-of-{count:05d}.jsonl")
        return files

    def _artefact(self, stage: str, name: str) -> Path:
        """A file beside a finished step's shard, verified."""
        folder = self._run.path(stage)
        for line in manifest.latest(folder).values():
            for row in line["files"]:
                if row["file"] == name:
                    if not manifest.matches(folder / name, row, folder):
                        raise UserError(
                            f"{(folder / name).resolve()}: not the file that stage {stage} wrote; run it again"
                        )
                    return folder / name
        raise UserError(f"{folder}: stage {stage} has not finished; run stage={stage} first")

    @staticmethod
    def _frame(name: str, files: list[Path]) -> pd.DataFrame:
        return _read(files, {column: kind for column, (kind, _) in COLUMNS[name].items()})


def _read(files: Iterable[Path], columns: Mapping[str, str]) -> pd.DataFrame:
    """The rows of JSONL files, with these columns and types."""
    paths: Any = [glob.escape(str(file)) for file in files]  # else `run[12]` would read its neighbour `run1`
    return _database().read_json(paths, format="newline_delimited", columns=dict(columns)).df()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """A database of its own, which spills no record into the working directory and loads no extension."""
    settings = {"temp_directory": "", "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    return duckdb.connect(config=settings)
