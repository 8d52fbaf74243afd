"""The stage graph of a run: which steps there are, in what order, and what each waits for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from lumen_hpc.cluster.stage import Stage, Step
from lumen_hpc.config.schema import Settings
from lumen_hpc.errors import UserError


def steps(stages: Sequence[Stage], settings: Settings, name: str = "") -> list[Step]:
    """Every step of a full run, each after those it waits for; and of a stage on request if `name` is its own."""
    enabled_stages = [
        stage for stage in stages if stage.enabled(settings) and (not stage.on_request or _means(stage, name))
    ]
    nodes = [Step(stage, model) for stage in enabled_stages for model in _models(stage, settings)]
    all_steps: list[Step] = []
    for node in nodes:
        after = []
        for pattern in node.stage.after:
            name = pattern.format(model=node.model) if "{" in pattern else pattern
            stem = name.removesuffix("-*")
            after += [
                step.name for step in all_steps if step.name == name or (stem != name and step.stage.name == stem)
            ]
        all_steps.append(Step(node.stage, node.model, tuple(after)))
    return all_steps


def read_steps(stages: Sequence[Stage], settings: Settings) -> set[str]:
    """Names of the steps that another step of the run reads."""
    return {name for step in steps(stages, settings) for name in step.after}


def select(graph: list[Step], stages: Sequence[Stage], name: str) -> list[Step]:
    """The steps that `stage=NAME` means: `full`, a stage (every model of it), or one step such as train-lumen.

    Raises UserError for a name that is neither.
    """
    if name == "full":
        return graph
    selected_steps = [step for step in graph if name in (step.stage.name, step.name)]
    if selected_steps:
        return selected_steps
    for stage in stages:
        if stage.name == name:
            fix = f"it needs {stage.needs}" if stage.needs else f"see its file, jobs/{name}.py"
            raise UserError(f"stage={name}: these settings have no use for it; {fix}")
    if name == "fetch":
        raise UserError("stage=fetch is no part of a run; python launch.py stage=fetch alone brings its weights")
    valid = ["full", "fetch", *dict.fromkeys([stage.name for stage in stages] + [step.name for step in graph])]
    close_names = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close_names[0]}? " if close_names else ""
    if "," in name:
        hint = "one at a time, or full for all that is missing; "
    raise UserError(f"stage={name or '(none)'}: no such stage; {hint}takes one of {', '.join(valid)}")


def on_request(stages: Sequence[Stage], name: str) -> Stage | None:
    """The stage on request that `name` means, if it means one."""
    return next((stage for stage in stages if stage.on_request and _means(stage, name)), None)


def _means(stage: Stage, name: str) -> bool:
    """Whether `name` is a stage's, or one of its steps'."""
    return name == stage.name or name.startswith(f"{stage.name}-")


def _models(stage: Stage, settings: Settings) -> list[str]:
    return stage.models(settings) if stage.models else [""]
