"""Every setting of a run: one dataclass per section, a docstring under each field; data settings are in data_schema.py.

`python launch.py --help` prints them; `lumen_hpc/config/resolve.py` says how a value gets here
(dataclass default < recipe < profile's `defaults:` < command line). A field's constructor (fields.py) says what
it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lumen_hpc.config.data_schema import Data, Outcomes, Prepare, Pretrain
from lumen_hpc.config.fields import choice, in_range, list_of, positive, runtime_choice, runtime_only, subset_of
from lumen_hpc.errors import UserError
from lumen_hpc.models import KINDS, MODELS
from lumen_hpc.registry import ENGINES, EXPERTS

PARTS = ("vision_tower", "projector", "llm")
OUTCOMES = {
    "in_hospital_death": "death before the discharge from the stay of the study",
    "death_30d": "death within 30 days of the study",
    "death_365d": "death within 365 days of the study",
    "icu_24h": "admission to intensive care within 24 hours, of a patient who is not there",
    "icu_48h": "admission to intensive care within 48 hours, of a patient who is not there",
    "ventilation_24h": "invasive ventilation within 24 hours, of a patient who is not ventilated",
    "ventilation_48h": "invasive ventilation within 48 hours, of a patient who is not ventilated",
    "discharge_72h": "discharge alive within 72 hours",
}
"""Outcomes that are yes or no, and their meaning; docs/outcomes.md has their rules."""
ANALYTES = (
    "creatinine", "urea nitrogen", "sodium", "potassium", "bicarbonate", "lactate", "pH", "pCO2", "hemoglobin",
    "white cells", "platelets", "INR", "bilirubin", "albumin", "troponin T", "NT-proBNP",
)  # fmt: skip
"""Names of the laboratory panel (lumen_hpc/outcomes/panel.py)."""
PAPER_MODELS = tuple(name for name, model in MODELS.items() if "outcome" not in model.trains_on)
CONTROLS = ("swapped", "same", "other_patient", "no_image", "no_experts", "composed")


@dataclass(kw_only=True)
class Experts:
    shards: int = in_range(4, 1, 100_000)
    """Shards of the studies."""
    model: str = choice("xrv", *EXPERTS)
    """TorchXRayVision's models, or the small expert that stage `pretrain` trains on phantoms."""
    pathologies: list[str] = list_of("densenet121-res224-all")
    """TorchXRayVision weights to average; heads that a model was not trained for are masked."""
    extra: list[str] = subset_of(("age", "race", "view"), "age", "race", "view")
    """Further experts to run."""
    in_prompt: list[str] = subset_of(("pathologies", "age", "race", "view"), "pathologies", "age", "race", "view")
    """Which experts the instruction text mentions; leave `race` out to keep it from the model."""
    weights: str = ""
    """Folder of pre-staged weights; empty means `<cache>/torchxrayvision`."""
    trust_unknown_weights: bool = False
    """Load a weights file (a pickle: it can run code) whose hash was not recorded when it was fetched."""
    thresholds: list[float] = list_of(0.25, 0.5, 0.75)
    """Calibrated probabilities at which `no`, `maybe no`, `maybe yes`, `yes` meet (section 2.3)."""
    batch_size: int = runtime_only(64, low=1)
    """Images per forward pass."""
    workers: int = runtime_only(4)
    """Decoding processes per task."""

    def __post_init__(self) -> None:
        if len(self.thresholds) != 3 or not 0 <= self.thresholds[0] < self.thresholds[1] < self.thresholds[2] <= 1:
            raise UserError(
                f"experts.thresholds={self.thresholds}: takes three rising probabilities, as in [0.25, 0.5, 0.75]"
            )


@dataclass(kw_only=True)
class EngineSettings:
    kind: str = choice("grammar", *ENGINES)
    """What generates: vLLM in process, transformers, an OpenAI-compatible server, or the grammar's fixed sentences."""
    model: str = ""
    """Folder or hub name of the language model."""
    endpoint: str = runtime_only("")
    """With `kind=server`: the base URL; its key is read from LUMEN_API_KEY."""
    dtype: str = choice("bfloat16", "bfloat16", "float16", "float32", "auto")
    """Weights' number format."""
    max_model_len: int = in_range(4096, 1)
    """Longest prompt plus answer [tokens]."""
    tensor_parallel: int = runtime_only(1, low=1)
    """GPUs that share each layer of a vLLM model; the job has a process for each (profile.resources)."""
    pipeline_parallel: int = runtime_only(1, low=1)
    """Pipeline stages; times `tensor_parallel` the processes of the job, on however many nodes."""
    timeout: float = runtime_only(600.0, low=1)
    """Seconds before a request to a server is given up; it is tried five times."""
    gpu_memory: float = runtime_only(0.9, low=0.01, high=1)
    """Share of GPU memory vLLM may take."""

    @property
    def in_task(self) -> bool:
        """Whether a task holds the model itself: a server's GPUs are not the run's, the grammar needs none."""
        return self.kind in ("vllm", "transformers")


@dataclass(kw_only=True)
class Rewrite:
    shards: int = in_range(4, 1, 100_000)
    """Shards of the questions."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    variants: int = in_range(1, 1)
    """Different sentences asked for each distinct (question, answer)."""
    attempts: int = in_range(3, 1)
    """Tries with new seeds before the grammar's own sentence is taken."""
    temperature: float = in_range(0.7, 0, 2)
    """Sampling temperature of the first and later tries."""
    max_tokens: int = in_range(128, 1)
    """Longest sentence [tokens]."""
    predictions_per_pair: int = in_range(1, 0, 100)
    """Prediction questions drawn from the hundred for each difference pair (section 2.4)."""
    verify: str = choice("rules", "rules", "rules+llm")
    """What a sentence must pass: the fact check's rules, or also the rewriter's own yes or no; it loosens no rule."""


@dataclass(kw_only=True)
class Instruct:
    findings_first: bool = False
    """A parseable line of each finding's state before the sentence, stripped before scoring (not in the paper)."""
    line: list[str] = field(default_factory=list)
    """Findings of that line; empty: the phantoms' five, or the most frequent of the dataset."""
    expert_text: bool = True
    """Join the experts' words to the instruction (section 2.3)."""
    max_images: int = in_range(2, 2)
    """Most images per record: priors first, oldest first, main last. Records longer than `train.max_tokens` lose the
    oldest."""
    clinical: list[str] = subset_of((), "patient", "stay", "labs")
    """Lines of the state at an image's time that follow the experts' words: age and sex, where and how long, laboratory
    values. Needs stage outcomes."""
    clinical_images: str = choice("every", "every", "last")
    """The images with these lines: every one, or only the last one of a prompt."""
    labs: list[str] = subset_of((), *ANALYTES)
    """Analytes of the line of laboratory values; empty: the whole panel."""
    outcomes: list[str] = subset_of((), *OUTCOMES)
    """Outcomes that are asked about, in records for models that train on them. Needs stage outcomes."""
    timelines: bool = False
    """Ask those models about three and more visits too: since when, getting worse, at its worst."""


@dataclass(kw_only=True)
class Adapter:
    kind: str = choice("none", "none", "lora")
    """`none`: the parts of `train.tune` learn whole; `lora`: low-rank updates of their linear layers learn."""
    rank: int = in_range(64, 1)
    """Rank of an update."""
    alpha: float = positive(128.0)
    """An update counts alpha / rank times."""
    dropout: float = in_range(0.05, 0, 0.99)
    """Dropout before an update."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers with an update (q_proj, fc1, …); empty: all."""
    base_bits: int = choice(16, 16, 8, 4)
    """Bits of the frozen weights under the updates: 8 or 4 through bitsandbytes (ZeRO stage 1 or 2), 16 as loaded."""


@dataclass(kw_only=True)
class Train:
    base: str = "Efficient-Large-Model/NVILA-8B"
    """Folder of the pretrained NVILA, a hub name that `fetch` has staged, or `tiny` (what `pretrain` makes)."""
    learning_rate: float = positive(1.5e-5, 1)
    """Peak learning rate (section 2.5)."""
    epochs: float = in_range(1.0, 0.001)
    """Passes over the records."""
    global_batch: int = in_range(128, 1, 8192)
    """Samples per optimizer step, whatever the number of GPUs (section 2.5)."""
    warmup: float = in_range(0.03, 0, 1)
    """Share of the steps that warm the learning rate up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    betas: list[float] = list_of(0.9, 0.999)
    """AdamW's moment decays."""
    clip: float = 5.0
    """Largest gradient norm; 0: no limit."""
    precision: str = choice("bf16", "bf16", "fp32")
    """Number format of the forward and backward passes."""
    zero: int | str = choice(3, 1, 2, 3, "auto")
    """DeepSpeed ZeRO stage; `auto`: the lowest that fits the GPUs' memory, kept for the whole training. There is no 0:
    DeepSpeed then counts a step of AdamW too many in bf16, and keeps no gradient norm in fp32."""
    max_tokens: int = in_range(8192, 1)
    """Longest sample [tokens]; a longer one loses its oldest priors, and is bad input if it is longer without them."""
    token_budget: int = runtime_only(16384, low=1)
    """Tokens packed into one micro-batch."""
    shared_prefix: bool = True
    """Questions about the same images share the image tokens of one sequence."""
    questions_per_image: int = 0
    """Most questions about the same images that follow one another in the sample order; 0: all of them."""
    loss: str = choice("tokens", "tokens", "kinds")
    """Mean over the global batch's tokens (the paper), or the sum of each kind's token mean; the yes or no of an
    outcome's answer is then a kind of its own."""
    mixture: dict[str, int] = field(default_factory=dict, metadata={"choices": KINDS})
    """Samples per step of each kind (diagnostic, difference, prediction); empty: `global_batch` as they come."""
    seeds: int = runtime_only(1, low=1, high=1000)
    """Trainings of each model, each with a seed of its own; the tables show the spread between them. `seeds=3` for
    short."""
    steps: int = 0
    """Optimizer steps; 0: as many as `epochs` asks for. A mixture needs a number."""
    loss_limit: float = 10.0
    """A loss this many times the median of the last 100 steps stops the training; 0: only a loss that is no number.
    With another limit the training goes on from its last checkpoint."""
    tune: list[str] = subset_of(PARTS, *PARTS, least=1)
    """Parts that learn; the others stay frozen."""
    adapter: Adapter = field(default_factory=Adapter)
    """Learn low-rank adapters instead of whole weights."""
    on_bad: str = choice("stop", "stop", "skip")
    """A bad record (missing image, empty answer, too long) stops the stage, or is named, counted and left out."""
    node_shards: bool | str = runtime_choice("auto", True, False, "auto")
    """Under ZeRO-3 on several nodes, keep the weights once more inside each node (DeepSpeed's hierarchical
    partitioning), so that the backward pass gathers them without the network; `auto`: where the GPUs' memory allows."""
    checkpointing: str = runtime_choice("auto", "full", "selective", "none", "auto")
    """Activations recomputed in the backward pass: all, all but matrix products and attention, none; `auto`: the
    fewest that fit the GPUs' memory."""
    attention: str = runtime_choice("auto", "auto", "flash", "flex", "sdpa", "eager")
    """Attention kernel; `auto`: flex (one compiled call a layer) with compiled layers, else flash-attention where its
    version 2, 3 or 4 works on the GPU, else sdpa."""
    compiled: bool | str = runtime_choice("auto", True, False, "auto")
    """Compile the transformer layers (the language model's with train.attention=flex alone); `auto`: on a GPU where
    compiled attention is tried at the start and equals the plain one."""
    sequence_parallel: int | str = runtime_choice("auto", 1, 2, 4, "auto")
    """GPUs of a node that compute each micro-batch together, tiles and positions divided; `auto`: the fewest with
    which a step's layout keeps GPUs busy for .85 of the time; 1 where each has two sequences a step, and on CPUs."""
    checkpoint_every: int = runtime_only(200, low=1)
    """Steps between checkpoints."""
    validate: int = runtime_only(256)
    """Held-out records whose loss is measured at each checkpoint; 0: none."""
    keep_checkpoints: int = runtime_only(2, low=1)
    """Complete checkpoints kept."""
    workers: int = runtime_only(4, low=1)
    """Threads per rank that decode images ahead."""
    cache_images_gb: float = runtime_only(0.0)
    """Memory per rank for decoded images [GiB], and on CPUs as much for a frozen vision tower's features of them; worth
    it where they are small, as the demo's."""
    stuck_after: int = runtime_only(600, low=1)
    """Seconds without a step after which a training job ends itself; `profile.stuck_after_s` if that is fewer."""

    def __post_init__(self) -> None:
        if not self.base:
            raise UserError("train.base is empty: takes a folder, a name that stage=fetch has staged, or tiny")
        if self.quantised and self.zero not in (1, 2, "auto"):
            raise UserError(
                f"train.zero={self.zero} does not take train.adapter.base_bits={self.adapter.base_bits}: "
                "use train.zero=1, 2 or auto"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"train.betas={self.betas}: takes two numbers from 0 to below 1, as in [0.9, 0.999]")

    @property
    def quantised(self) -> bool:
        """Whether adapters are trained over a base of 8 or 4 bits."""
        return self.adapter.kind != "none" and self.adapter.base_bits < 16

    @property
    def ranks_a_micro_batch(self) -> int:
        """Ranks that compute a micro-batch together; 1 while an `auto` is undecided."""
        return 1 if self.sequence_parallel == "auto" else int(self.sequence_parallel)


@dataclass(kw_only=True)
class Predict:
    shards: int = in_range(4, 1, 100_000)
    """Shards of the test questions, the same for every model."""
    models: list[str] = subset_of(PAPER_MODELS, *MODELS, least=1)
    """Models that answer; `nvila` is the base without fine-tuning."""
    max_new_tokens: int = in_range(256, 1)
    """Longest answer [tokens]."""
    controls: list[str] = subset_of((), *CONTROLS)
    """Extra answers that test whether the model looks: swapped, same, other_patient, no_image, no_experts;
    `composed` asks about each image of a pair alone, for the baseline FT + rule."""
    engine: str = runtime_choice("auto", "auto", "native", "vllm")
    """What generates the answers: this package's own code (`native`, the reference) or `vllm`; `auto`: vLLM
    on a GPU where a trial at the start equals native. Equal answers in float32; in bfloat16 near ties may fall
    otherwise."""
    batch_tokens: int = runtime_only(32768, low=1)
    """Prompt tokens generated from at a time."""
    gpu_memory: float = runtime_only(0.9, low=0.01, high=1)
    """Share of GPU memory vLLM may take."""


@dataclass(kw_only=True)
class Serve:
    model: str = choice("lumen", *MODELS)
    """Which of the run's models is served, or exported; `model=NAME` for short."""
    weights: str = ""
    """A checkpoint's folder to serve instead of a run's model; `weights=FOLDER` for short."""
    port: int = in_range(0, 0, 65535)
    """Port of the server; 0 takes a free one."""
    page: bool = False
    """Open the page beside the server; `page=true` for short."""
    page_port: int = in_range(0, 0, 65535)
    """Port of the page; 0 takes a free one."""
    images: list[str] = list_of()
    """Folders from which requests may give images by path (file://…); without any, images come in the request."""
    max_images: int = in_range(4, 1)
    """Most images per request."""
    max_model_len: int = in_range(8192, 1)
    """Longest prompt and answer [tokens]."""
    tensor_parallel: int = in_range(1, 1)
    """GPUs that share each layer of the language model; profile.resources.gpu.gpus must be as many."""
    gpu_memory: float = in_range(0.9, 0.01, 1)
    """Share of GPU memory vLLM may take."""
    cpu_offload_gb: float = in_range(0.0, 0)
    """Weights that vLLM keeps in main memory instead, for each GPU [GiB]; slower, for a model that does not fit."""
    successor: bool = False
    """Hand over to the queued successor jobs at the time limit; without it the server ends there."""


@dataclass(kw_only=True)
class Judge:
    engine: EngineSettings = field(default_factory=EngineSettings)
    second: EngineSettings | None = None
    """A second judge of another family; agreement is reported. A vLLM model takes the first one's GPUs."""
    canaries: int = 10
    """Canaries of each kind mixed into every judge shard."""

    @property
    def placed_second(self) -> EngineSettings | None:
        """The second judge as it runs: a vLLM model takes the processes of the first, since each runs both."""
        first, second = self.engine, self.second
        if second is None or not first.kind == second.kind == "vllm":
            return second
        if second.tensor_parallel * second.pipeline_parallel > 1:
            return second
        return replace(second, tensor_parallel=first.tensor_parallel, pipeline_parallel=first.pipeline_parallel)


@dataclass(kw_only=True)
class Evaluate:
    bootstrap: int = in_range(2000, 1, 1_000_000)
    """Resamples of patients for intervals."""
    permutations: int = in_range(200_000, 1, 100_000_000)
    """Permutations of patients for each test; the smallest p is their inverse, and Holm multiplies it by the tests."""
    baselines: bool = True
    """Rows that need no model: majority, question only, persistence, reference findings, experts + rule."""
    self_check: int = in_range(1000, 0)
    """Pairs of the run that nltk and rouge-score also score; a difference above 1e-9 fails the stage. 0: none."""
    alpha: float = in_range(0.001, 0, 1)
    """Significance level of the stars (the paper's)."""
    confidence: float = in_range(0.95, 0, 1)
    """Width of the intervals."""
    small: int = 30
    """Slices with fewer samples carry a warning."""
    images: bool | None = None
    """Show images, texts and findings of cases in the page; null: unless the data are restricted."""
    cases: int = 500
    """Cases in the page's browser."""
    outcome_gates: bool = False
    """Hold a phantom run's outcomes to a model that learned: above laboratory values, near its oracle, calibrated."""
    gates: bool = False
    """Hold a phantom run to the numbers of a model that learned; a run of full length fails without them."""


@dataclass(kw_only=True)
class Settings:
    seed: int = in_range(0, 0, 2**31)
    """Seed of every draw in the run."""
    data: Data = field(default_factory=Data)
    prepare: Prepare = field(default_factory=Prepare)
    pretrain: Pretrain = field(default_factory=Pretrain)
    outcomes: Outcomes = field(default_factory=Outcomes)
    experts: Experts = field(default_factory=Experts)
    rewrite: Rewrite = field(default_factory=Rewrite)
    instruct: Instruct = field(default_factory=Instruct)
    train: Train = field(default_factory=Train)
    predict: Predict = field(default_factory=Predict)
    serve: Serve = field(default_factory=Serve)
    judge: Judge = field(default_factory=Judge)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def __post_init__(self) -> None:
        outcome_models = [name for name in self.predict.models if name in MODELS and name not in PAPER_MODELS]
        if outcome_models and not self.instruct.outcomes:
            raise UserError(
                f"predict.models names {outcome_models[0]}, which needs instruct.outcomes=[icu_48h] or others"
            )
        if self.instruct.timelines and not (outcome_models and self.instruct.max_images > 2):
            raise UserError(
                "instruct.timelines needs instruct.max_images=3 or more, and lumen-outcomes among predict.models"
            )
        tables = self.data.phantom.mimic_iv if self.data.source == "phantom" else self.data.mimic_iv
        if (self.instruct.outcomes or self.instruct.clinical) and not tables:
            raise UserError(
                "instruct.outcomes and instruct.clinical need MIMIC-IV: data.mimic_iv=FOLDER, or "
                "data.phantom.mimic_iv=true for phantoms"
            )

    def engines(self, stage: str = "full") -> dict[str, EngineSettings]:
        """The language engines that these settings name, by key; only those of `stage` unless it is `full`."""
        engines_by_key = {
            "rewrite.engine": self.rewrite.engine,
            "judge.engine": self.judge.engine,
            "judge.second": self.judge.placed_second,
        }
        return {
            key: engine for key, engine in engines_by_key.items() if engine and stage in ("full", key.split(".")[0])
        }
