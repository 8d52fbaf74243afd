"""The dependency chain of a submission, as data: which arrays are submitted, and what each waits for.

Pure, so that a dry run shows exactly what a submission does. A condition names other arrays by label, or jobs of
earlier submissions by id.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.config.profile import Profile


@dataclass(frozen=True)
class Array:
    plan: StepPlan
    packs: tuple[int, ...]
    link: int
    """0 for the job itself, then its successors in turn."""
    label: str
    conditions: tuple[tuple[str, str], ...]
    """(afterok | afterany | aftercorr, label or job id)."""

    def dependency(self, ids: dict[str, str]) -> str:
        """sbatch's --dependency, with labels replaced by the ids they got."""
        kinds: dict[str, list[str]] = {}
        for kind, name in self.conditions:
            kinds.setdefault(kind, []).append(ids.get(name, name))
        return ",".join(f"{kind}:{':'.join(names)}" for kind, names in kinds.items())


def arrays(plans: list[StepPlan], profile: Profile, limit: int, upstream_job_ids: dict[str, list[str]]) -> list[Array]:
    """Every array of a submission, each after those it waits for.

    `limit` is the longest array; `upstream_job_ids` the last job ids of steps that earlier submissions still run.
    A step's successors wait for it by afterany and for the steps it reads by afterok, so that what was
    cancelled because its input failed is not started again by its own successor. Where shards correspond, a
    pack starts when the pack it reads has succeeded (aftercorr), which needs a site that removes jobs whose
    dependency cannot be met: otherwise it would block its own successor for ever.
    """
    found: list[Array] = []
    last: dict[str, list[str]] = {step: list(ids) for step, ids in upstream_job_ids.items()}
    chunked: dict[str, int] = {}
    for item in plans:
        name = item.step.name
        chunks = [range(start, min(start + limit, len(item.packs))) for start in range(0, len(item.packs), limit)]
        upstream = next((other for other in plans if other.step.name == item.step.shardwise_after), None)
        pipelined = upstream is not None and len(upstream.packs) == len(item.packs) and profile.kill_on_invalid_dep
        ends = []
        for number, packs in enumerate(chunks):
            previous = ""
            for link in range(1 if profile.requeue else 1 + item.resources.successors):
                conditions = []
                for other in item.step.after:
                    if link == 0 and pipelined and other == item.step.shardwise_after and len(packs) > 1:
                        conditions.append(("aftercorr", _label(other, number, chunked[other], 0)))
                    else:
                        conditions += [("afterok", end) for end in last.get(other, [])]
                if previous:
                    conditions.append(("afterany", previous))
                previous = _label(name, number, len(chunks), link)
                found.append(Array(item, tuple(packs), link, previous, tuple(conditions)))
            ends.append(previous)
        chunked[name] = len(chunks)
        last[name] = last.get(name, []) + ends
    return found


def _label(step: str, chunk: int, chunks: int, link: int) -> str:
    part = f".{chunk}" if chunks > 1 else ""
    return f"<{step}{part}{'+' * link}>"
