"""Words of a command line that nothing would read, and recipes that do not fit the data: each refused in one line.

A value from a recipe or profile is no mistake: both are written for more than one run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
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


ENGINE = ("model", "endpoint", "dtype", "max_model_len", "tensor_parallel", "pipeline_parallel", "gpu_memory")
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
    Unread(
        tuple(f"rewrite.engine.{name}" for name in ENGINE),
        lambda settings: settings.rewrite.engine.kind == "grammar",
        "rewrite.engine.kind=grammar loads no model",
        "add rewrite.engine.kind=vllm, or another",
    ),
    Unread(
        tuple(f"judge.engine.{name}" for name in ENGINE),
        lambda settings: settings.judge.engine.kind == "grammar",
        "judge.engine.kind=grammar loads no model",
        "add judge.engine.kind=vllm, or another",
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
