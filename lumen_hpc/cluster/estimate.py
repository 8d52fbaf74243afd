"""GPU-hours before anything was measured: rough, marked as such, and replaced by the first measured shards.

The work and the loading before it are estimated separately, because every task loads for itself. Counts are stage
prepare's, or expected (question_counts.py); speeds are of one H100 80 GB, from published figures and our own CPU
decoding rates, and each stands beside its source.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from lumen_hpc.cluster import question_counts
from lumen_hpc.cluster.question_counts import Counts
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.data import probes
from lumen_hpc.errors import UserError
from lumen_hpc.models import MODELS, REPEAT_MARK, Workload, compared_model, training_number
from lumen_hpc.training import occupancy, sizing
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.speed import Progress

IMAGES_PER_SECOND = 500
"""Experts are bound by decoding: 63 JPEG/s a core (benchmarks/images.py) on 8 cores."""
OUTPUT_TOKENS_PER_SECOND = 10_000
"""Output tokens of an 8B to 11B model under vLLM with a cached prompt, batch full."""
PREFILL_TOKENS_PER_SECOND = 20_000
"""Prompt tokens of NVILA-8B: 2 x 8.1e9 operations each at 35 % of 989 TFLOP/s, rounded down."""
JUDGED_PER_GPU_HOUR = 3 * 18_993 / (8 * 0.32)
"""Llama-3.1-405B FP8 on 8 GPUs with a cached rubric: 19 minutes for three models' answers."""
LOAD_HOURS = {"small": 0.03, "large": 0.17}
"""Opening a model of 16 GB, and of 400 GB, from a parallel file system, by the clock."""

MIN_EFFICIENCY = 0.8
"""Share of its GPUs' time below which a training is warned about."""


def workload(settings: Settings, model: str, counts: Counts) -> Workload | None:
    """What a model's training reads with these settings; None where it is not trained.

    The registry has what it reads in the paper; what shows pairs follows the number of difference questions.
    """
    entry = compared_model(model)
    if entry.workload is None or counts.train is None:
        return entry.workload
    train, paper, paper_workload = counts.train, question_counts.TRAIN, entry.workload
    share, asks_predictions = train.difference / paper.difference, "prediction" in entry.trains_on
    other_samples = paper_workload.samples - paper.diagnostic - paper.difference * asks_predictions
    predictions = settings.rewrite.predictions_per_pair * train.difference * asks_predictions
    return replace(
        paper_workload,
        samples=max(1, train.diagnostic) + round(share * other_samples) + round(predictions),
        image_sets=max(1, train.images) + round(share * (paper_workload.image_sets - paper.images)),
        pairs=round(share * paper_workload.pairs),
    )


def experts(run: Run, model: str) -> float:
    """Every image once through every expert; nothing for the phantoms' small one."""
    if run.settings.experts.model == "phantom":
        return 0.0
    return question_counts.of(run).images / IMAGES_PER_SECOND / 3600


def rewrite(run: Run, model: str) -> float:
    """About 40 tokens a sentence, generated 1.2 times on average."""
    if run.settings.rewrite.engine.kind == "grammar":
        return 0.0
    return 1.2 * 40 * question_counts.of(run).questions / OUTPUT_TOKENS_PER_SECOND / 3600


def rewrite_load(settings: Settings) -> float:
    """The engine, where it runs in the task itself."""
    return _load_hours(settings.rewrite.engine)


def training(run: Run, model: str, *, measured_progress: Progress | None = None) -> sizing.TrainingPlan | None:
    """Memory, steps and hours of one model's training on the profile's GPUs; None for a tiny or unregistered model.

    Where the profile has the memory of a GPU, each `auto` counts as what the training will choose.
    `measured_progress`: the speed that it has measured itself, instead of an earlier training's.
    """
    train, resources = run.settings.train, run.profile.resources["train"]
    if train.base == "tiny" or model.partition(REPEAT_MARK)[0] not in MODELS:
        return None
    gpus, nodes = resources.gpus * resources.nodes or 1, resources.nodes
    model_workload, steps = workload(run.settings, model, question_counts.of(run)), _steps(run, model)
    sizes = _sizes(run)
    if memory := run.profile.gpu_memory_gb:
        known_steps = steps or occupancy.stated_steps(train, model_workload or Workload())
        divided_settings = replace(
            train, sequence_parallel=occupancy.choose_group_size(known_steps, train, gpus, sizes.heads, nodes=nodes)
        )
        fitting_settings = sizing.resolve(
            divided_settings, gpus, memory, nodes=nodes, sizes=sizes, workload=model_workload
        )
        train = replace(fitting_settings, sequence_parallel=train.sequence_parallel)  # the plan decides by its own GPUs
    return sizing.plan(
        train, gpus, nodes=nodes, sizes=sizes, workload=model_workload, progress=measured_progress, steps=steps
    )


def _sizes(run: Run) -> Sizes:
    """The base's, where its checkpoint is there to be read; else NVILA-8B's."""
    with suppress(UserError):  # whether it is there, and right, is asked by `ready`
        return Sizes.read(run.base_weights)
    return Sizes()


def _steps(run: Run, model: str) -> occupancy.Steps | None:
    """Steps of the record index, where a training of this model has made one."""
    return occupancy.recorded_steps(
        run.path("train", model) / "record_index.npz", run.settings.train, run.settings.seed
    )


def idle_warning(run: Run, model: str) -> str:
    """A warning, with settings that help, where much of the GPUs' time would not compute; empty where it does."""
    training_plan = training(run, model)
    if training_plan is None or training_plan.occupancy.efficiency >= MIN_EFFICIENCY:
        return ""
    train, usage, model_workload = (
        run.settings.train,
        training_plan.occupancy,
        workload(run.settings, model, question_counts.of(run)),
    )
    steps = _steps(run, model)
    tried = [
        (f"{count} GPU{'s take' if count > 1 else ' takes'} {{}}", train, count, steps)
        for k in range(1, 8) if (count := training_plan.gpus >> k)
    ], [
        (f"train.global_batch={batch} takes {{}}, but is another training", replace(train, global_batch=batch),
         training_plan.gpus, None)
        for k in range(1, 6) if not train.mixture and (batch := train.global_batch << k)
    ]  # fmt: skip
    nodes = run.profile.resources["train"].nodes
    divided = [
        (f"train.sequence_parallel={n} takes {{}}", replace(train, sequence_parallel=n), training_plan.gpus, steps)
        for n in occupancy.GROUP_SIZES if n > usage.sequence_parallel and training_plan.gpus % (n * nodes) == 0
    ]  # fmt: skip
    fixes = []
    for alternatives in (divided, *tried):
        for text, changed_settings, gpus, alternative_steps in alternatives:
            plan = sizing.plan(
                changed_settings, gpus, sizes=_sizes(run), workload=model_workload, steps=alternative_steps
            )
            is_last = alternatives is divided and text == divided[-1][0]  # it may help most, and yet not enough
            if plan.occupancy.efficiency >= (1.1 * usage.efficiency if is_last else MIN_EFFICIENCY):
                fixes.append(text.format(f"{plan.hours:.1f} h and {plan.gpu_hours:.0f} GPU-hours"))
                break
    share = usage.tokens / training_plan.gpus
    longest = usage.longest_sample / usage.sequence_parallel
    per_gpu = f" on each of {usage.sequence_parallel} that compute together" if usage.sequence_parallel > 1 else ""
    longest_note = f", and the longest sample alone has {longest:,.0f}{per_gpu}" if longest > share else ""
    return (
        f"warning: {training_plan.gpus} GPUs use {usage.efficiency:.0%} of their {training_plan.gpu_hours:.0f} "
        f"GPU-hours: the {usage.samples:.0f} samples of a step are {usage.sequences:.0f} sequences, {share:,.0f} "
        f"tokens a GPU{longest_note}" + (f". fix: {'; '.join(fixes)}" if fixes else "")
    )


def require_fit(run: Run, models: list[str]) -> None:
    """Raises UserError, with settings that would do, if a training cannot fit its GPUs."""
    resources, memory = run.profile.resources["train"], run.profile.gpu_memory_gb
    gpus, train = resources.gpus * resources.nodes, run.settings.train
    if models:
        sizing.check_batch(train, 1)  # what no number of GPUs changes
    if gpus and memory and train.base != "tiny":
        sizes, counts = _sizes(run), question_counts.expected(run.settings)
        for model in models:
            model_workload = workload(run.settings, model, counts)
            sizing.check_fit(train, gpus, memory, nodes=resources.nodes, sizes=sizes, workload=model_workload)


def train(run: Run, model: str) -> float:
    """By the arithmetic of lumen_hpc/training/sizing.py at the MFU measured on a GPU."""
    plan = training(run, model)
    return plan.gpu_hours if plan else 0.0


def predict(run: Run, model: str) -> float:
    """Each question's images and 40 tokens of answer, with its controls; nothing for the demo's tiny model.

    A further training (`lumen@1`) is asked under `composed` alone.
    """
    if run.settings.train.base == "tiny":
        return 0.0
    counts = question_counts.of(run)
    images, answers = counts.test_questions + counts.test_pairs, counts.test_questions
    for control in run.settings.predict.controls:
        if training_number(model) and control != probes.CONTROL:
            continue
        cost = _CONTROL_COSTS.get(control, ControlCost(2, 1))
        images += cost.images * (counts.test_pairs + counts.test_questions * cost.of_every)
        answers += cost.answers * (counts.test_questions if cost.of_every else counts.test_pairs)
    prompts = images * Workload.image_tokens / PREFILL_TOKENS_PER_SECOND
    return (prompts + answers * 40 / OUTPUT_TOKENS_PER_SECOND) / 3600


@dataclass(frozen=True)
class ControlCost:
    """What a control asks again."""

    images: int
    answers: int
    of_every: bool = False
    """Of every question, and its own images; else of each pair."""


_CONTROL_COSTS = {
    "no_image": ControlCost(0, 1, of_every=True),
    "no_experts": ControlCost(1, 1, of_every=True),
    probes.CONTROL: ControlCost(2, 2 * (1 + probes.MAX_LEVELS)),
}
"""By control; any other shows each pair once. A composed pair's many questions share their two images."""


def experts_load(settings: Settings) -> float:
    """The experts' weights."""
    return LOAD_HOURS["small"] * (settings.experts.model != "phantom")


def predict_load(settings: Settings) -> float:
    """An NVILA-8B: one model that a GPU holds."""
    return LOAD_HOURS["small"] * (settings.train.base != "tiny")


def judge(run: Run, model: str) -> float:
    """Every answer once for each judge."""
    judges = sum(engine.in_task for engine in run.settings.engines("judge").values())
    return judges * question_counts.of(run).test_questions / JUDGED_PER_GPU_HOUR


def judge_load(settings: Settings) -> float:
    """Each judge, one after the other."""
    return sum(map(_load_hours, settings.engines("judge").values()))


def _load_hours(engine: EngineSettings) -> float:
    is_large = engine.tensor_parallel * engine.pipeline_parallel > 1
    return LOAD_HOURS["large" if is_large else "small"] * engine.in_task
