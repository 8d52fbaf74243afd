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

EFFICIENT = 0.8
"""Share of its GPUs' time below which a training is warned about."""


def workload(settings: Settings, model: str, counts: Counts) -> Workload | None:
    """What a model's training reads with these settings; None where it is not trained.

    The registry has what it reads in the paper; what shows pairs follows the number of difference questions.
    """
    entry = compared_model(model)
    if entry.workload is None or counts.train is None:
        return entry.workload
    train, paper, read = counts.train, question_counts.TRAIN, entry.workload
    share, predicted = train.difference / paper.difference, "prediction" in entry.trains_on
    others = read.samples - paper.diagnostic - paper.difference * predicted
    ahead = settings.rewrite.predictions_per_pair * train.difference * predicted
    return replace(
        read,
        samples=max(1, train.diagnostic) + round(share * others) + round(ahead),
        image_sets=max(1, train.images) + round(share * (read.image_sets - paper.images)),
        pairs=round(share * read.pairs),
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


def training(run: Run, model: str, *, own: Progress | None = None) -> sizing.TrainingPlan | None:
    """Memory, steps and hours of one model's training on the profile's GPUs; None for a tiny or unregistered model.

    Where the profile has the memory of a GPU, each `auto` counts as what the training will choose. `own`: what it has
    measured itself.
    """
    train, resources = run.settings.train, run.profile.resources["train"]
    if train.base == "tiny" or model.partition(REPEAT_MARK)[0] not in MODELS:
        return None
    gpus, nodes = resources.gpus * resources.nodes or 1, resources.nodes
    read, steps = workload(run.settings, model, question_counts.of(run)), _steps(run, model)
    sizes = _sizes(run)
    if memory := run.profile.gpu_memory_gb:
        known = steps or occupancy.stated_steps(train, read or Workload())
        divided = replace(
            train, sequence_parallel=occupancy.choose_group_size(known, train, gpus, sizes.heads, nodes=nodes)
        )
        fitting = sizing.resolve(divided, gpus, memory, nodes=nodes, sizes=sizes, workload=read)
        train = replace(fitting, sequence_parallel=train.sequence_parallel)  # the plan decides by its own GPUs
    return sizing.plan(train, gpus, nodes=nodes, sizes=sizes, workload=read, progress=own, steps=steps)


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
    found = training(run, model)
    if found is None or found.occupancy.efficiency >= EFFICIENT:
        return ""
    train, used, read = run.settings.train, found.occupancy, workload(run.settings, model, question_counts.of(run))
    steps = _steps(run, model)
    tried = [
        (f"{count} GPUs take {{}}", train, count, steps) for k in range(1, 8) if (count := found.gpus >> k)
    ], [
        (f"train.global_batch={batch} takes {{}}, but is another training", replace(train, global_batch=batch),
         found.gpus, None)
        for k in range(1, 6) if not train.mixture and (batch := train.global_batch << k)
    ]  # fmt: skip
    nodes = run.profile.resources["train"].nodes
    divided = [
        (f"train.sequence_parallel={n} takes {{}}", replace(train, sequence_parallel=n), found.gpus, steps)
        for n in occupancy.GROUP_SIZES if n > used.sequence_parallel and found.gpus % (n * nodes) == 0
    ]  # fmt: skip
    fixes = []
    for alternatives in (divided, *tried):
        for text, changed, gpus, known in alternatives:
            plan = sizing.plan(changed, gpus, sizes=_sizes(run), workload=read, steps=known)
            last = alternatives is divided and text == divided[-1][0]  # it may help most, and yet not enough
            if plan.occupancy.efficiency >= (1.1 * used.efficiency if last else EFFICIENT):
                fixes.append(text.format(f"{plan.hours:.1f} h and {plan.gpu_hours:.0f} GPU-hours"))
                break
    share = used.tokens / found.gpus
    longest = used.longest_sample / used.sequence_parallel
    on = f" on each of {used.sequence_parallel} that compute together" if used.sequence_parallel > 1 else ""
    alone = f", and the longest sample alone has {longest:,.0f}{on}" if longest > share else ""
    return (
        f"warning: {found.gpus} GPUs use {used.efficiency:.0%} of their {found.gpu_hours:.0f} GPU-hours: the "
        f"{used.samples:.0f} samples of a step are {used.sequences:.0f} sequences, {share:,.0f} tokens a GPU{alone}"
        + (f". fix: {'; '.join(fixes)}" if fixes else "")
    )


def require_fit(run: Run, models: list[str]) -> None:
    """Raises UserError, with settings that would do, if a training cannot fit its GPUs."""
    resources, memory = run.profile.resources["train"], run.profile.gpu_memory_gb
    gpus, train = resources.gpus * resources.nodes, run.settings.train
    if gpus and memory and train.base != "tiny":
        sizes, counts = _sizes(run), question_counts.expected(run.settings)
        for model in models:
            read = workload(run.settings, model, counts)
            sizing.check_fit(train, gpus, memory, nodes=resources.nodes, sizes=sizes, workload=read)


def train(run: Run, model: str) -> float:
    """By the arithmetic of lumen_hpc/training/sizing.py at the MFU measured on a GPU."""
    found = training(run, model)
    return found.gpu_hours if found else 0.0


def predict(run: Run, model: str) -> float:
    """Each question's images and 40 tokens of answer, with its controls; nothing for the demo's tiny model.

    A further training (`lumen@1`) is asked under `composed` alone.
    """
    if run.settings.train.base == "tiny":
        return 0.0
    known = question_counts.of(run)
    images, answers = known.test_questions + known.test_pairs, known.test_questions
    for control in run.settings.predict.controls:
        if training_number(model) and control != probes.CONTROL:
            continue
        more = _ASKED.get(control, Asked(2, 1))
        images += more.images * (known.test_pairs + known.test_questions * more.of_every)
        answers += more.answers * (known.test_questions if more.of_every else known.test_pairs)
    prompts = images * Workload.image_tokens / PREFILL_TOKENS_PER_SECOND
    return (prompts + answers * 40 / OUTPUT_TOKENS_PER_SECOND) / 3600


@dataclass(frozen=True)
class Asked:
    """What a control asks again."""

    images: int
    answers: int
    of_every: bool = False
    """Of every question, and its own images; else of each pair."""


_ASKED = {
    "no_image": Asked(0, 1, of_every=True),
    "no_experts": Asked(1, 1, of_every=True),
    probes.CONTROL: Asked(2, 2 * (1 + probes.MAX_LEVELS)),
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
    large = engine.tensor_parallel * engine.pipeline_parallel > 1
    return LOAD_HOURS["large" if large else "small"] * engine.in_task
