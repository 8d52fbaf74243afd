"""The model card of an exported run: its data, recipe and results, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from lumen_hpc.config.schema import Settings
from lumen_hpc.config.unused_settings import unused
from lumen_hpc.models import MODELS
from lumen_hpc.nvila.config import NVILAConfig

DUTIES = {
    "mimic": (
        "Trained on MIMIC-CXR and Medical-Diff-VQA, credentialed data of PhysioNet (data use agreement v1.5.0). "
        "Weights can repeat what they were trained on: share them with holders of the same credential only, never "
        "try to identify a person, and keep them off services that the agreement does not allow."
    ),
    "phantom": "Trained on generated phantoms: no patient's data is in these weights, and no medicine either.",
}
ORIGIN = {"mimic": "One hospital's data", "phantom": "Generated images"}
RECIPE = (
    "learning_rate", "epochs", "steps", "global_batch", "mixture", "loss", "tune", "precision", "zero", "max_tokens",
    "warmup", "weight_decay", "betas", "clip",
    "adapter.kind", "adapter.rank", "adapter.alpha", "adapter.dropout", "adapter.targets", "adapter.base_bits",
)  # fmt: skip
"""Settings of `train` that decide the weights; the card leaves out those that this training does not read."""


def model_card(
    model: str,
    settings: Settings,
    config: NVILAConfig,
    *,
    counts: Mapping[str, Any],
    tables: str,
    controls: str,
    provenance: Mapping[str, Any],
) -> str:
    """Markdown with the hub's front matter.

    `counts`: prepare's counts.json; `tables`, `controls`: Markdown of the report, empty where the run has none;
    `provenance`: the last submission's. Numbers come from the run alone: what it lacks is called missing.
    """
    base = settings.train.base if not settings.train.base.startswith(("/", "~")) else "a local NVILA"
    label = MODELS[model].label
    parts = [
        _front_matter(base, settings),
        f"# {label}, trained by lumen_hpc",
        "**Not for clinical use.** A research model: no regulator has seen it, its answers can be wrong, and a fluent "
        "sentence is no evidence. Do not use it to diagnose, to triage or to advise anybody.",
        "## What it does\n\nAnswers questions about one chest radiograph, about what has changed between an earlier "
        "and a later one, and about what may change (LUMEN, arXiv 2602.21142). Images come first, the earlier before "
        "the later; answers are greedy.",
        f"## Data\n\n{_data(model, settings, counts)}\n\n{DUTIES[settings.data.source]}",
        f"## Recipe\n\n{_recipe(base, settings)}",
        f"## Results\n\n{_lower_headings(tables) or 'This run was not evaluated.'}",
        "## Controls\n\nThe same questions with the images swapped, repeated or taken from somebody else: a model "
        f"that looks must answer otherwise.\n\n{controls or 'This run asked no controls.'}",
        f"## Limits\n\n{ORIGIN[settings.data.source]}, one family of questions, answers in its own wording; no image "
        "outside frontal chest radiographs. Rare findings, children and other devices are untested. A judge's score is "
        "a language model's opinion.",
        f"## Licence\n\nThe weights follow their base, {base}: NVILA's weights are CC BY-NC 4.0 (no commercial use), "
        "its language model Qwen2.5 Apache 2.0. The code that trained them is Apache 2.0.",
        f"## Use\n\n{_use(config)}",
        f"## Provenance\n\n{_provenance(provenance)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str, settings: Settings) -> str:
    lines = ["license: cc-by-nc-4.0", "pipeline_tag: image-text-to-text", "library_name: transformers"]
    if "/" in base:
        lines.append(f"base_model: {base}")
    lines += [
        "tags:",
        "- nvila",
        "- radiology",
        "- chest-x-ray",
        *(["- phantom"] * (settings.data.source == "phantom")),
    ]
    return "\n".join(["---", *lines, "---"])


def _data(model: str, settings: Settings, counts: Mapping[str, Any]) -> str:
    source = {"mimic": "MIMIC-CXR with Medical-Diff-VQA", "phantom": "phantom radiographs"}[settings.data.source]
    kinds = ", ".join(MODELS[model].trains_on)
    has_counts = {"kept", "read"} <= set(counts)
    sentence = "{kept} questions kept of {read} read".format_map(counts) if has_counts else "The run has no counts."
    return f"{source}, questions of kind {kinds}. {sentence}"


def _recipe(base: str, settings: Settings) -> str:
    rows = [f"| base | {base} |", f"| seed | {settings.seed} |"]
    names = [name for name in RECIPE if not unused(settings, f"train.{name}")]
    rows += [f"| train.{name} | {attrgetter(name)(settings.train)} |" for name in names]
    rows.append(f"| instruct.expert_text | {settings.instruct.expert_text} |")
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _lower_headings(markdown: str) -> str:
    """The report's headings one level down."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in markdown.splitlines())


def _use(config: NVILAConfig) -> str:
    lines = ["vLLM with the plugin of lumen_hpc installed: `vllm serve FOLDER`, all families, any number of images."]
    if config.aspect == "dynamic_s2" and config.scales == (448, 896, 1344):
        lines.append("SGLang's `NVILAForConditionalGeneration` reads the same folder.")
    elif config.aspect == "dynamic":
        lines.append("SGLang's `NVILALiteForConditionalGeneration` reads the same names.")
    else:
        lines.append("Its sizes are not NVILA-8B's, which SGLang's code fixes: SGLang does not read this folder.")
    lines.append("`lumen_hpc.nvila.load(FOLDER)` reads it back byte for byte.")
    return "\n".join(f"- {line}" for line in lines)


def _provenance(row: Mapping[str, Any]) -> str:
    facts = {key: row[key] for key in ("submitted", "git_commit", "code", "python") if row.get(key)}
    facts |= row.get("packages", {})
    return "\n".join(f"- {key}: {value}" for key, value in facts.items()) or "Unknown."
