"""The submission of a sweep: a run for each combination of the lists on a command line (config/sweep.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lumen_hpc.cluster import commands, graph, plan, ready, refusals, slurm
from lumen_hpc.cluster import submit as submission
from lumen_hpc.cluster.stage import Pipeline
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError


def submit(points: list[tuple[str, list[str]]], pipeline: Pipeline) -> int:
    """Submits a run for each point (its name and its command line); the worst exit code.

    All or none of them where the settings of one are refused, or the budget is not enough for all.
    """
    names = [name for name, _ in points]
    requests = [resolve(words) for _, words in points]
    for request in requests:
        refusals.require_valid(request, pipeline)
    print(f"a sweep of {len(points)} run{'s' * (len(points) > 1)}: {', '.join(names)}")
    first = requests[0]
    chained = first.stage not in ("", "fetch") and not graph.on_request(pipeline.stages, first.stage)
    if first.profile.executor == "slurm" and chained:
        with slurm.prefetch():
            runs = [(one_request, submission.open_run(one_request)) for one_request in requests]
            plans = [
                item
                for one_request, run in runs
                for item in submission.make_plans(one_request, pipeline.stages, run)[0]
            ]
        print(f"GPU-hours of all of them: {plan.total_gpu_hours(plans):.1f}")
        if not first.dry_run:
            ready.refuse(refusals.over_budget(first, plans, len(requests)))
    codes: list[int] = []
    for request in requests:
        with _name_run_in_errors(request.run, names, len(codes)):
            codes.append(commands.submit(request, pipeline))
    elsewhere = submission.open_run(first).runs_argument
    place = f" profile.runs={elsewhere}" if elsewhere else ""
    if len(points) > 1:
        print(f"when they are done: python launch.py compare runs={','.join(names)}{place}")
    return max(codes)


@contextmanager
def _name_run_in_errors(run: str, names: list[str], done: int) -> Iterator[None]:
    """Says which run was refused or interrupted, and what became of the others."""
    others = [f"{', '.join(names[:done])}: submitted or finished before, and not withdrawn"] * (done > 0)
    others += [f"{', '.join(names[done + 1 :])}: not begun"] * (done + 1 < len(names))
    words = f" (of this sweep {'; '.join(others)})" if others else ""
    try:
        yield
    except UserError as error:
        raise type(error)(f"run {run}: {error}{words}") from None
    except KeyboardInterrupt:
        print(f"lumen: interrupted at run {run}{words}", file=sys.stderr)
        raise
