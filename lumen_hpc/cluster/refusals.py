"""What a submission is refused for, before anything is created: invalid settings, missing input, memory, the budget."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lumen_hpc import files
from lumen_hpc.cluster import estimate, graph, manifest, plan, preflight, ready, sbatch, slurm
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.ready import CheckResult
from lumen_hpc.cluster.stage import Pipeline, Run, Step
from lumen_hpc.config import run_record, unused_settings
from lumen_hpc.config.request import SHORTHANDS, Request
from lumen_hpc.errors import UserError
from lumen_hpc.models import MODELS, compared_model, models_trained_on


def steps_of(request: Request, pipeline: Pipeline) -> list[Step]:
    """The steps that a request is about: those of its stage, or of a full run."""
    return graph.select(
        graph.steps(pipeline.stages, request.settings, request.stage), pipeline.stages, request.stage or "full"
    )


def require_valid(request: Request, pipeline: Pipeline) -> None:
    """Raises UserError for invalid settings and recipes, before anything is created."""
    steps = steps_of(request, pipeline)
    unused_settings.require_fitting(request.settings, request.recipe, {step.stage.name for step in steps})
    unused_settings.require_used(request.settings, request.setting_keys)
    _require_server(request, steps)
    _require_scripts(request)
    unused_settings.require_site_used(request.profile, request.site_keys)
    _require_one_node(request)
    _require_kinds(request, steps)
    _require_gated(request, steps)
    _require_fit(request, steps)
    if request.profile.executor == "slurm":
        sbatch.require_path(request.folder)
    if request.verb != "check":  # `check` lists them itself
        ready.refuse(preflight.processes(request.settings, request.profile, request.stage))
        _require_begun(request, steps)


def _require_server(request: Request, steps: Sequence[Step]) -> None:
    """Raises UserError for a server's settings, or an export's, on a command that is about neither."""
    names = {key: name for name, key in SHORTHANDS.items()}
    for key in request.setting_keys:
        is_read = any(key == name or key.startswith(f"{name}.") for step in steps for name in step.stage.settings)
        if not key.startswith("serve.") or is_read:
            continue
        stage, hint = request.stage or "full", ""
        if key == "serve.model" and stage in ("train", "predict", "judge"):
            hint = f"; stage={stage}-{request.settings.serve.model} is one model's step"
        raise UserError(f"{names.get(key, key)}: stage={stage} has no use for it: it is for stage=serve{hint}")


def _require_scripts(request: Request) -> None:
    """Raises UserError where sbatch scripts are asked for and none would be shown."""
    if request.scripts and not request.dry_run:
        raise UserError("scripts=true shows the scripts of a dry run, and this would submit; add dry_run=true")
    if request.scripts and request.profile.executor == "local":
        name = request.profile.name
        raise UserError(f"scripts=true: profile {name} runs on this machine, without sbatch scripts; leave it out")


def _require_one_node(request: Request) -> None:
    """Raises UserError for jobs of several nodes where there is one."""
    for kind, resources in request.profile.resources.items():
        if resources.nodes > 1 and request.profile.executor == "local":
            raise UserError(
                f"profile.resources.{kind}.nodes={resources.nodes}: this machine is one node; use a Slurm profile"
            )


def _require_gated(request: Request, steps: Sequence[Step]) -> None:
    """Raises UserError for gates about what the run has not: its last step would stop, or hold it to nothing."""
    evaluate, models = request.settings.evaluate, request.settings.predict.models
    if not any(step.stage.name == "evaluate" for step in steps):
        return
    if evaluate.gates and (absent_models := [name for name in ("ft", "lumen") if name not in models]):
        raise UserError(
            f"predict.models=[{','.join(models)}]: evaluate.gates=true compares lumen with ft; add "
            f"{' and '.join(absent_models)}, or evaluate.gates=false"
        )
    if evaluate.outcome_gates and not (
        "icu_48h" in request.settings.instruct.outcomes and models_trained_on("outcome", models)
    ):
        raise UserError(
            "evaluate.outcome_gates=true is about icu_48h and a model that learns it; add icu_48h to instruct.outcomes "
            f"and {', '.join(models_trained_on('outcome', MODELS))} to predict.models, or evaluate.outcome_gates=false"
        )


def _require_kinds(request: Request, steps: Sequence[Step]) -> None:
    """Raises UserError for a mixture by which a training would stop, late as it comes, or learn nothing."""
    settings, mixture = request.settings, request.settings.train.mixture
    pairs = settings.prepare.difference_fraction > 0
    taught_kinds = {
        "difference": pairs,
        "prediction": pairs and settings.rewrite.predictions_per_pair > 0,
        "outcome": bool(settings.instruct.outcomes),
        "timeline": settings.instruct.timelines,
    }
    for step in steps if mixture else ():
        if step.stage.name != "train":
            continue
        learned_kinds = [kind for kind in compared_model(step.model).trains_on if taught_kinds.get(kind, True)]
        if missing_kinds := [kind for kind in learned_kinds if kind not in mixture]:
            raise UserError(
                f"train.mixture={mixture} has no number for the {missing_kinds[0]} questions that {step.model} learns; "
                f"add train.mixture.{missing_kinds[0]}=N (0: none of them is learned)"
            )
        if not any(mixture[kind] for kind in learned_kinds):
            raise UserError(
                f"train.mixture={mixture} leaves {step.model} nothing to learn; give {', '.join(learned_kinds)} a "
                f"number above 0, or leave {step.model} out of predict.models"
            )
        if not settings.train.steps:
            raise UserError("train.steps=0: a mixture has no end of its own; give train.steps=N, or train.mixture={}")


def _require_begun(request: Request, steps: Sequence[Step]) -> None:
    """Raises UserError for a stage that reads others, of a run that does not exist: a name with a typo."""
    selected_names = {step.name for step in steps}
    if not request.folder.exists():
        for step in steps:
            if missing_input := next((name for name in step.after if name not in selected_names), ""):
                raise UserError(
                    f"run={request.run}: there is no such run in {request.folder.parent}{profile_hint(request)}, and "
                    f"stage {step.name} reads its {missing_input}; {run_record.runs_hint(request.folder)}"
                )


def profile_hint(request: Request) -> str:
    """Words for a message about a missing run, where a forgotten profile may be why."""
    is_settled = request.profile_named or request.runs
    return "" if is_settled or not slurm.installed() else " (no profile is named: LUMEN_PROFILE)"


def of_settings(request: Request, pipeline: Pipeline) -> Iterator[CheckResult]:
    """The reason for which a submission would refuse these settings."""
    try:
        require_valid(request, pipeline)
    except UserError as error:
        message, _, fix = str(error).rpartition("; ")
        yield CheckResult("bad", message or str(error), fix if message else "")


def _require_fit(request: Request, steps: Sequence[Step]) -> None:
    models = [step.model for step in steps if step.stage.name == "train"]
    estimate.require_fit(Run(request.folder, request.settings, request.profile), models)


def unready(request: Request, plans: Sequence[StepPlan]) -> Iterator[CheckResult]:
    """What these plans' stages read from outside the run, and what this machine lacks of it."""
    yield from _check_moved_run(request, plans)
    yield from _check_records(request, plans)
    stages = {item.step.stage.name for item in plans if item.packs}
    yield from ready.required(request.settings, request.profile, stages)


def _check_records(request: Request, plans: Sequence[StepPlan]) -> Iterator[CheckResult]:
    """A model that models.py has named since stage instruct ran: no records were written for it."""
    folder = request.folder / "instruct"
    if any(item.step.stage.name == "instruct" and (item.packs or item.live_shards) for item in plans):
        return
    written_files = {row["file"] for line in manifest.latest(folder).values() for row in line.get("files", ())}
    for item in plans if written_files else ():
        name = compared_model(item.step.model).name if item.step.model else ""
        if item.step.stage.name == "train" and item.packs and f"{name}-train.jsonl" not in written_files:
            yield CheckResult(
                "bad",
                f"{folder} has no records for {name}, which lumen_hpc/models.py did not name when they were written",
                f"give it a run of its own, run=NEW predict.models=[{name}]; python -m lumen_hpc.metrics scores the "
                "answers of both runs on the same questions",
            )


def _check_moved_run(request: Request, plans: Sequence[StepPlan]) -> Iterator[CheckResult]:
    """A run of phantoms that lies elsewhere than when its records were written: they name its images where it was."""
    path = request.folder / "prepare" / "studies.jsonl"
    if request.settings.data.source != "phantom" or not path.is_file():
        return
    if not any(item.packs for item in plans) or any(item.step.stage.name == "prepare" and item.packs for item in plans):
        return
    try:
        image = next((str(json.loads(line)["image"]) for line in files.lines(path)), "")
    except (ValueError, KeyError, TypeError):  # whoever reads the file says what is wrong with it
        return
    former_folder = image.partition("/prepare/phantom/")[0]
    if former_folder != str(request.folder) and not Path(image).is_file():
        yield CheckResult(
            "bad",
            f"run {request.run} was at {former_folder} when its records were written, and they name its images there",
            "move it back, or leave a link there: "
            f"ln -s {shlex.quote(str(request.folder))} {shlex.quote(former_folder)}",
        )


def unfit_steps(request: Request, plans: Sequence[StepPlan]) -> Iterator[CheckResult]:
    """What the plans' jobs ask of the cluster and it can never give."""
    steps = {item.step.stage.resources: item.step.name for item in plans[::-1] if item.packs}
    for kind, result in preflight.unfit_resources(request.profile, steps):
        message = f"step {steps[kind]} cannot run on this cluster: {result.message}"
        yield CheckResult(result.level, message, result.fix)
    with suppress(UserError):  # a dry run works where no cluster answers
        yield from preflight.oversized_arrays(request.profile, max((len(item.packs) for item in plans), default=0))


def over_budget(request: Request, plans: Sequence[StepPlan], runs: int = 1) -> Iterator[CheckResult]:
    """More GPU-hours of the plans, of so many runs, than `profile.gpu_hours_limit`."""
    limit, total = request.profile.gpu_hours_limit, plan.total_gpu_hours(plans)
    if limit and total > limit:
        what = "this submission" if runs == 1 else f"the {runs} runs of this sweep together"
        yield CheckResult(
            "bad",
            f"{what} would cost about {total:.1f} GPU-hours, profile.gpu_hours_limit is {limit:g}",
            "dry_run=true shows what costs how much",
        )


def of_plans(request: Request, plans: Sequence[StepPlan]) -> list[CheckResult]:
    """What would stop the submission of these plans."""
    results = [
        *ready.unset_variables(request.profile, request.runs),
        *preflight.foreign_run(Run(request.folder, request.settings, request.profile)),
        *preflight.unwritable_folder(request.folder),
        *unready(request, plans),
        *preflight.data_use(request.settings, request.profile, request.folder),
    ]
    if request.profile.executor == "slurm":
        results += [*over_budget(request, plans), *unfit_steps(request, plans)]
    return [result for result in dict.fromkeys(results) if result.level == "bad"]
