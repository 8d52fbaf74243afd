"""Settings of a command line that nothing would read, and recipes that do not fit the data: each is refused.

A value from a recipe or profile is accepted: both serve more than one run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.errors import UserError


@dataclass(frozen=True)
class Rule:
    prefixes: tuple[str, ...]
    """Dotted keys, or sections with their final dot."""
    when: Callable[[Settings], bool]
    reason: str
    fix: str


def _uses_phantoms(settings: Settings) -> bool:
    return settings.data.source == "phantom"


def _trains_no_phantom_model(settings: Settings) -> bool:
    """Whether nothing of phantoms is trained: their stand-in weights are not made."""
    return settings.train.base != "tiny" and settings.experts.model != "phantom"


def _no_mimic_iv(settings: Settings) -> bool:
    return not (settings.data.phantom.mimic_iv if _uses_phantoms(settings) else settings.data.mimic_iv)


ENGINE_KINDS = {
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


def _engine_rules(section: str, engine: Callable[[Settings], EngineSettings | None]) -> Iterator[Rule]:
    """A rule for each setting of a section's engine."""
    for name, kinds in ENGINE_KINDS.items():
        other_kinds = {"grammar", "vllm", "transformers", "server"} - set(kinds)

        def when(settings: Settings, other_kinds: Collection[str] = frozenset(other_kinds)) -> bool:
            engine_settings = engine(settings)
            return engine_settings is not None and engine_settings.kind in other_kinds

        kind_names = " or ".join(kinds)
        yield Rule(
            (f"{section}.{name}",), when, f"{section}.kind is not {kind_names}", f"add {section}.kind={kinds[0]}"
        )


RULES = (
    Rule(
        ("data.mimic_cxr", "data.mimic_cxr_dicom", "data.diff_vqa", "data.mimic_iv"),
        _uses_phantoms,
        "data=phantom generates its own radiographs",
        "add data=mimic recipe=lumen",
    ),
    Rule(
        ("data.phantom.",),
        lambda settings: not _uses_phantoms(settings),
        "data=mimic reads no phantoms",
        "leave it out, or data=phantom recipe=demo",
    ),
    Rule(
        ("data.phantom.effect",),
        lambda settings: not settings.data.phantom.mimic_iv,
        "only the phantoms' MIMIC-IV tables use it",
        "add data.phantom.mimic_iv=true",
    ),
    *_engine_rules("rewrite.engine", lambda settings: settings.rewrite.engine),
    *_engine_rules("judge.engine", lambda settings: settings.judge.engine),
    *_engine_rules("judge.second", lambda settings: settings.judge.second),
    Rule(
        ("rewrite.temperature", "rewrite.max_tokens"),
        lambda settings: settings.rewrite.engine.kind == "grammar",
        "rewrite.engine.kind=grammar loads no model",
        "add rewrite.engine.kind=vllm, or another",
    ),
    Rule(
        tuple(f"experts.{name}" for name in ("weights", "pathologies", "extra", "trust_unknown_weights")),
        lambda settings: settings.experts.model == "phantom",
        "experts.model=phantom is trained by the run itself",
        "add experts.model=xrv",
    ),
    Rule(
        ("experts.in_prompt", "experts.thresholds"),
        lambda settings: not settings.instruct.expert_text,
        "instruct.expert_text=false leaves the experts' words out",
        "add instruct.expert_text=true",
    ),
    Rule(("pretrain.",), _trains_no_phantom_model, "no stand-in weights are made for real patients", "leave it out"),
    Rule(
        ("outcomes.",),
        _no_mimic_iv,
        "there are no MIMIC-IV tables",
        "add data.mimic_iv=FOLDER, or data.phantom.mimic_iv=true for phantoms",
    ),
    Rule(
        ("prepare.max_bad",),
        lambda settings: settings.prepare.on_bad == "stop",
        "prepare.on_bad=stop ends at the first bad row",
        "add prepare.on_bad=skip",
    ),
    Rule(
        ("instruct.line",),
        lambda settings: not settings.instruct.findings_first,
        "instruct.findings_first=false writes no line of findings",
        "add instruct.findings_first=true",
    ),
    Rule(
        ("instruct.clinical_images",),
        lambda settings: not settings.instruct.clinical,
        "instruct.clinical has no lines",
        "add instruct.clinical=[patient,stay,labs], or some of them",
    ),
    Rule(
        ("instruct.labs",),
        lambda settings: "labs" not in settings.instruct.clinical,
        "instruct.clinical has no line of laboratory values",
        "add labs to instruct.clinical",
    ),
    Rule(
        ("predict.gpu_memory",),
        lambda settings: settings.predict.engine == "native",
        "predict.engine=native does without vLLM",
        "add predict.engine=vllm or auto",
    ),
    Rule(
        ("predict.controls",),
        lambda settings: "no_experts" in settings.predict.controls and not settings.instruct.expert_text,
        "no_experts leaves out words that instruct.expert_text=false never writes",
        "leave no_experts out, or add instruct.expert_text=true",
    ),
    Rule(
        ("evaluate.outcome_gates",),
        lambda settings: not settings.instruct.outcomes,
        "instruct.outcomes asks about none",
        "add instruct.outcomes=[icu_48h], or others",
    ),
    Rule(
        tuple(f"train.adapter.{name}" for name in ("rank", "alpha", "dropout", "targets", "base_bits")),
        lambda settings: settings.train.adapter.kind == "none",
        "train.adapter.kind=none trains no adapter",
        "add train.adapter.kind=lora",
    ),
    Rule(
        ("train.epochs",),
        lambda settings: settings.train.steps > 0,
        "train.steps decides how long the training is",
        "train.steps=0 as well, or train.steps alone",
    ),
    Rule(
        ("train.global_batch",),
        lambda settings: bool(settings.train.mixture),
        "train.mixture decides the number of samples per step",
        "train.mixture={}, or its own numbers",
    ),
    Rule(("serve.page_port",), lambda settings: not settings.serve.page, "no page is opened", "add page=true"),
)


def require_used(settings: Settings, keys: Iterable[str]) -> None:
    """Raises UserError for the first of these command line keys that nothing reads under these settings."""
    for key in keys:
        if rule := unused(settings, key):
            raise UserError(f"{key}: nothing would read it, because {rule.reason}; {rule.fix}")


def unused(settings: Settings, key: str) -> Rule | None:
    """Why nothing reads this setting's key under these settings; None where something does."""
    for rule in RULES:
        if rule.when(settings) and any(key == p or (p.endswith(".") and key.startswith(p)) for p in rule.prefixes):
            return rule
    return None


SLURM_KEYS = {
    *("account", "modules", "setup", "container", "kill_on_invalid_dep", "requeue"),
    *("signal_before_s", "mail_user", "mail_type", "additional"),
    *("partition", "account", "qos", "constraint", "mem_gb", "time_min", "exclusive"),
}
"""Keys of a profile, and of its `resources`, by their last names, that jobs of Slurm alone read."""


def require_site_used(profile: Profile, keys: Iterable[str]) -> None:
    """Raises UserError for the first of these profile keys that nothing reads on this machine.

    The profile was forgotten, or its file does not say what it extends.
    """
    for key in keys if profile.executor == "local" else ():
        if set(key.split(".")[::2] if key.startswith("resources.") else key.split(".")[:1]) & SLURM_KEYS:
            raise UserError(
                f"profile.{key}: nothing would read it, because profile {profile.name} runs on this machine, without "
                "Slurm; name your site's with profile=NAME or LUMEN_PROFILE (its file begins with `extends: slurm`)"
            )


def require_fitting(settings: Settings, recipe: str, stages: Collection[str]) -> None:
    """Raises UserError where these stages would do on other data what only phantoms allow."""
    if _uses_phantoms(settings):
        return
    for stage, phantom_only, key, why in (
        ("experts", settings.experts.model == "phantom", "experts.model=phantom", "this expert knows phantoms alone"),
        ("train", settings.train.base == "tiny", "train.base=tiny", "this model knows phantoms alone"),
        ("evaluate", settings.evaluate.gates, "evaluate.gates=true", "they are numbers that phantoms reach"),
        ("evaluate", settings.evaluate.outcome_gates, "evaluate.outcome_gates=true", "phantoms alone reach them"),
    ):
        if phantom_only and stage in stages:
            raise UserError(
                f"recipe={recipe} does not fit data=mimic: {key}, and {why}; take recipe=lumen or recipe=lora, or "
                f"data=phantom, or give another {key.split('=')[0]}"
            )
