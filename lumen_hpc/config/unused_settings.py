"""Words of a command line that nothing would read, and recipes that do not fit the data: each refused in one line.

A value from a recipe or profile is no mistake: both are written for more than one run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.errors import UserError


@dataclass(frozen=True)
class Unread:
    prefixes: tuple[str, ...]
    """Dotted keys, or sections with their final dot."""
    when: Callable[[Settings], bool]
    reason: str
    fix: str


def _phantoms(settings: Settings) -> bool:
    return settings.data.source == "phantom"


def _real_patients(settings: Settings) -> bool:
    """Whether nothing of phantoms is trained: their stand-in weights are not made."""
    return settings.train.base != "tiny" and settings.experts.model != "phantom"


def _no_mimic_iv(settings: Settings) -> bool:
    return not (settings.data.phantom.mimic_iv if _phantoms(settings) else settings.data.mimic_iv)


KINDS_THAT_READ = {
    "model": ("vllm", "transformers", "server"),
    "dtype": ("vllm", "transformers"),
    "max_model_len": ("vllm", "transformers"),
    "tensor_parallel": ("vllm",),
    "pipeline_parallel": ("vllm",),
    "gpu_memory": ("vllm",),
    "endpoint": ("server",),
    "timeout": ("server",),
}
"""Setting of a language engine → the kinds, of those that come with this package, that read it."""


def _of_engine(section: str, engine: Callable[[Settings], EngineSettings | None]) -> Iterator[Unread]:
    """A rule for each setting of a section's engine."""
    for name, kinds in KINDS_THAT_READ.items():
        others = {"grammar", "vllm", "transformers", "server"} - set(kinds)

        def when(settings: Settings, others: Collection[str] = frozenset(others)) -> bool:
            found = engine(settings)
            return found is not None and found.kind in others

        few = " or ".join(kinds)
        yield Unread((f"{section}.{name}",), when, f"{section}.kind is not {few}", f"add {section}.kind={kinds[0]}")


UNREAD = (
    Unread(
        ("data.mimic_cxr", "data.mimic_cxr_dicom", "data.diff_vqa", "data.mimic_iv"),
        _phantoms,
        "data=phantom generates its own radiographs",
        "add data=mimic recipe=lumen",
    ),
    Unread(
        ("data.phantom.",),
        lambda settings: not _phantoms(settings),
        "data=mimic reads no phantoms",
        "leave it out, or data=phantom recipe=demo",
    ),
    Unread(
        ("data.phantom.effect",),
        lambda settings: not settings.data.phantom.mimic_iv,
        "it belongs to the phantoms' MIMIC-IV tables",
        "add data.phantom.mimic_iv=true",
    ),
    *_of_engine("rewrite.engine", lambda settings: settings.rewrite.engine),
    *_of_engine("judge.engine", lambda settings: settings.judge.engine),
    *_of_engine("judge.second", lambda settings: settings.judge.second),
    Unread(
        ("rewrite.temperature", "rewrite.max_tokens"),
        lambda settings: settings.rewrite.engine.kind == "grammar",
        "rewrite.engine.kind=grammar loads no model",
        "add rewrite.engine.kind=vllm, or another",
    ),
    Unread(
        tuple(f"experts.{name}" for name in ("weights", "pathologies", "extra", "trust_unknown_weights")),
        lambda settings: settings.experts.model == "phantom",
        "experts.model=phantom is trained by the run itself",
        "add experts.model=xrv",
    ),
    Unread(
        ("experts.in_prompt", "experts.thresholds"),
        lambda settings: not settings.instruct.expert_text,
        "instruct.expert_text=false leaves the experts' words out",
        "add instruct.expert_text=true",
    ),
    Unread(("pretrain.",), _real_patients, "no stand-in weights are made for real patients", "leave it out"),
    Unread(
        ("outcomes.",),
        _no_mimic_iv,
        "there are no MIMIC-IV tables",
        "add data.mimic_iv=FOLDER, or data.phantom.mimic_iv=true for phantoms",
    ),
    Unread(
        ("prepare.max_bad",),
        lambda settings: settings.prepare.on_bad == "stop",
        "prepare.on_bad=stop ends at the first bad row",
        "add prepare.on_bad=skip",
    ),
    Unread(
        ("instruct.line",),
        lambda settings: not settings.instruct.findings_first,
        "instruct.findings_first=false writes no line of findings",
        "add instruct.findings_first=true",
    ),
    Unread(
        ("instruct.clinical_images",),
        lambda settings: not settings.instruct.clinical,
        "instruct.clinical has no lines",
        "add instruct.clinical=[patient,stay,labs], or some of them",
    ),
    Unread(
        ("instruct.labs",),
        lambda settings: "labs" not in settings.instruct.clinical,
        "instruct.clinical has no line of laboratory values",
        "add labs to instruct.clinical",
    ),
    Unread(
        ("predict.gpu_memory",),
        lambda settings: settings.predict.engine == "native",
        "predict.engine=native does without vLLM",
        "add predict.engine=vllm or auto",
    ),
    Unread(
        ("predict.controls",),
        lambda settings: "no_experts" in settings.predict.controls and not settings.instruct.expert_text,
        "no_experts leaves out words that instruct.expert_text=false never writes",
        "leave no_experts out, or add instruct.expert_text=true",
    ),
    Unread(
        ("evaluate.outcome_gates",),
        lambda settings: not settings.instruct.outcomes,
        "instruct.outcomes asks about none",
        "add instruct.outcomes=[icu_48h], or others",
    ),
    Unread(
        tuple(f"train.adapter.{name}" for name in ("rank", "alpha", "dropout", "targets", "base_bits")),
        lambda settings: settings.train.adapter.kind == "none",
        "train.adapter.kind=none trains no adapter",
        "add train.adapter.kind=lora",
    ),
    Unread(
        ("train.epochs",),
        lambda settings: settings.train.steps > 0,
        "train.steps decides how long the training is",
        "train.steps=0 as well, or train.steps alone",
    ),
    Unread(
        ("train.global_batch",),
        lambda settings: bool(settings.train.mixture),
        "train.mixture decides how many samples a step has",
        "train.mixture={}, or its own numbers",
    ),
    Unread(("serve.page_port",), lambda settings: not settings.serve.page, "no page is opened", "add page=true"),
)


def require_read(settings: Settings, keys: Iterable[str]) -> None:
    """Raises UserError for the first of these command line keys that nothing reads under these settings."""
    for key in keys:
        for rule in UNREAD:
            if rule.when(settings) and any(key == p or (p.endswith(".") and key.startswith(p)) for p in rule.prefixes):
                raise UserError(f"{key}: nothing would read it, because {rule.reason}; {rule.fix}")


OF_SLURM = {
    *("account", "modules", "setup", "container", "kill_on_invalid_dep", "requeue"),
    *("signal_before_s", "mail_user", "mail_type", "additional"),
    *("partition", "account", "qos", "constraint", "mem_gb", "time_min", "exclusive"),
}
"""Keys of a profile, and of its `resources`, by their last names, that jobs of Slurm alone read."""


def require_site_read(profile: Profile, keys: Iterable[str]) -> None:
    """Raises UserError for the first of these profile keys that nothing reads on this machine.

    The profile was forgotten, or its file does not say what it extends.
    """
    for key in keys if profile.executor == "local" else ():
        if set(key.split(".")[::2] if key.startswith("resources.") else key.split(".")[:1]) & OF_SLURM:
            raise UserError(
                f"profile.{key}: nothing would read it, because profile {profile.name} runs on this machine, without "
                "Slurm; name your site's with profile=NAME or LUMEN_PROFILE (its file begins with `extends: slurm`)"
            )


def require_fitting(settings: Settings, recipe: str, stages: Collection[str]) -> None:
    """Raises UserError where these stages would do on other data what only phantoms allow."""
    if _phantoms(settings):
        return
    for stage, wrong, key, why in (
        ("experts", settings.experts.model == "phantom", "experts.model=phantom", "this expert knows phantoms alone"),
        ("train", settings.train.base == "tiny", "train.base=tiny", "this model knows phantoms alone"),
        ("evaluate", settings.evaluate.gates, "evaluate.gates=true", "they are numbers that phantoms reach"),
        ("evaluate", settings.evaluate.outcome_gates, "evaluate.outcome_gates=true", "phantoms alone reach them"),
    ):
        if wrong and stage in stages:
            raise UserError(
                f"recipe={recipe} does not fit data=mimic: {key}, and {why}; take recipe=lumen or recipe=lora, "
                f"or give another {key.split('=')[0]}"
            )
