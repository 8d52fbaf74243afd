"""The dependency chain of a submission, as data: which jobs are submitted, and what each waits for.

Pure, so that a dry run shows exactly what a submission does. A condition names other jobs by label, or jobs of
earlier submissions by id.

A link is an array that does a step's work: the first one, and its successors. A successor waits until every earlier
link has failed (afternotok), so that after a success it can never start, whoever may cancel jobs. A gate is a small
job that starts as soon as one link has succeeded (an OR of afterok); dependants wait for gates alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.cluster.stage import Step
from lumen_hpc.config.profile import Profile

Conditions = tuple[tuple[str, str], ...]
"""(afterok | afternotok | aftercorr | afterany, label or job id)."""


@dataclass(frozen=True)
class _Queued:
    """What a link and a gate share: a job for some packs of a step, and what it waits for."""

    plan: StepPlan
    packs: tuple[int, ...]
    label: str
    conditions: Conditions

    @property
    def step(self) -> Step:
        return self.plan.step


@dataclass(frozen=True)
class Link(_Queued):
    """A step's array, or one of its successors; all of its conditions must hold."""

    number: int
    """0 for the job itself, then its successors in turn."""

    def dependency(self, ids: Mapping[str, str]) -> str:
        """sbatch's --dependency, with labels replaced by the ids they got."""
        kinds: dict[str, list[str]] = {}
        for kind, name in self.conditions:
            kinds.setdefault(kind, []).append(ids.get(name, name))
        return ",".join(f"{kind}:{':'.join(names)}" for kind, names in kinds.items())


@dataclass(frozen=True)
class Gate(_Queued):
    """What a step's readers wait for; one of its conditions must hold."""

    def dependency(self, ids: Mapping[str, str]) -> str:
        """sbatch's --dependency, with labels replaced by the ids they got; `?` is Slurm's OR."""
        return "?".join(f"{kind}:{ids.get(name, name)}" for kind, name in self.conditions)


def jobs(
    plans: list[StepPlan], profile: Profile, limit: int, upstream_job_ids: dict[str, list[str]], read: Collection[str]
) -> list[Link | Gate]:
    """Every job of a submission, each after those it waits for.

    `limit` is the longest array; `upstream_job_ids` the jobs of earlier submissions that a step's readers wait for;
    `read` the steps that others read. A step has a gate for each of its arrays if it has successors, and somebody
    waits for it or the site keeps successors that cannot start.
    Every link waits for the steps it reads too, so that what was cancelled because its input failed is not started
    again by its own successor. Where shards correspond, a pack starts when the pack it reads has succeeded
    (aftercorr), which needs a site that removes jobs whose dependency cannot be met: otherwise it would block its
    own successor forever.
    """
    all_jobs: list[Link | Gate] = []
    end_labels: dict[str, list[str]] = {step: list(ids) for step, ids in upstream_job_ids.items()}
    part_counts: dict[str, int] = {}
    for item in plans:
        step = item.step
        parts = [range(start, min(start + limit, len(item.packs))) for start in range(0, len(item.packs), limit)]
        upstream = next((other for other in plans if other.step.name == step.shardwise_after), None)
        pipelined = upstream is not None and len(upstream.packs) == len(item.packs) and profile.kill_on_invalid_dep
        inputs = [(other, ("afterok", label)) for other in step.after for label in end_labels.get(other, [])]
        for number, packs in enumerate(parts):
            links: list[Link] = []
            for link in range(_link_count(profile, item, upstream if pipelined and len(packs) > 1 else None)):
                if link == 0 and pipelined and len(packs) > 1:
                    corresponding = _label(step.shardwise_after, number, part_counts[step.shardwise_after])
                    conditions = [("aftercorr", corresponding)]
                    conditions += [condition for other, condition in inputs if other != step.shardwise_after]
                else:
                    conditions = [condition for _, condition in inputs]
                conditions += [("afternotok", earlier.label) for earlier in links]
                label = _label(step.name, number, len(parts), "+" * link)
                links.append(Link(item, tuple(packs), label, tuple(conditions), number=link))
            all_jobs += links
            end_label = links[-1].label
            if len(links) > 1 and (step.name in read or not profile.kill_on_invalid_dep):
                end_label = _label(step.name, number, len(parts), " gate")
                # A task that needs no successor cancels its own: the last link may end without one that succeeds.
                end_kinds = ["afterok"] * (len(links) - 1) + ["afterany"]
                options = tuple((kind, one.label) for kind, one in zip(end_kinds, links, strict=True))
                all_jobs.append(Gate(item, tuple(packs), end_label, options))
            end_labels.setdefault(step.name, []).append(end_label)
        part_counts[step.name] = len(parts)
    return all_jobs


def _link_count(profile: Profile, item: StepPlan, corresponding: StepPlan | None) -> int:
    """How many links a step has: its job and its successors.

    A job that starts pack by pack after another step's is lost where that one needed a successor, and its own first
    successor does its work: that is one more, so that a mishap upstream takes no protection from it.
    """
    if profile.requeue:
        return 1
    successors = item.resources.successors
    return 1 + successors + (successors > 0 and corresponding is not None and corresponding.resources.successors > 0)


def _label(step: str, part: int, parts: int, kind: str = "") -> str:
    suffix = f".{part}" if parts > 1 else ""
    return f"<{step}{suffix}{kind}>"


def unreachable(records: Iterable[Mapping[str, Any]], failed_ids: Collection[str]) -> list[str]:
    """Ids of the recorded jobs that can never start once `failed_ids` have failed, directly or through others.

    `records` are the `jobs` of plan.json in the order of submission, those that have not started.
    """
    lost_ids = set(failed_ids)
    unreachable_ids = []
    for record in records:
        after = record.get("after", [])
        if record.get("gate"):
            is_dead = bool(after) and all(id_ in lost_ids for _, id_ in after)
        else:
            is_dead = any(kind in ("afterok", "aftercorr") and id_ in lost_ids for kind, id_ in after)
        if is_dead and record["id"] not in lost_ids:
            lost_ids.add(record["id"])
            unreachable_ids.append(record["id"])
    return unreachable_ids
