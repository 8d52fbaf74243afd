"""Commands of one user on one run at once, and commands that are killed at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

from tests.cluster.conftest import SHARDS, Site, submitted

ON_HOLD = "profile.additional={hold: 'true'}"
"""No job starts: the queue alone is at stake."""


def start(site: Site, run: str) -> subprocess.Popen[str]:
    words = ["stage=full", "profile=test", f"runs={site.runs}", f"experts.shards={SHARDS}", f"run={run}", ON_HOLD]
    return subprocess.Popen(
        [sys.executable, "launch.py", *words], cwd=site.checkout, env=site.cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def assert_once(site: Site, run: str) -> None:
    """Every shard is in the queue once, in a job that the run knows."""
    jobs = {job["id"]: job for job in submitted(site.run(run))}
    queued = {id_.split("_")[0] for id_, *_ in site.jobs(run)}
    assert queued == set(jobs)
    steps = Counter((job["step"], job["link"]) for job in jobs.values() if not job.get("gate"))
    assert set(steps.values()) == {1} and {step for step, _ in steps} == {"numbers", "squares", "checks", "total"}


def test_of_two_submissions_at_once_exactly_one_submits(site: Site) -> None:
    for number in range(4):
        run = f"at-once-{number}"
        both = [start(site, run), start(site, run)]
        results = [(*process.communicate(timeout=300), process.returncode) for process in both]
        said = Counter("submitted" if "follow it:" in out else "not" for out, _, _ in results)
        assert said == {"submitted": 1, "not": 1}, results
        ((out, err, code),) = [result for result in results if "follow it:" not in result[0]]
        if code:
            assert code == 2 and len(err.splitlines()) == 1 and "another command (process" in err, err
        else:
            assert "nothing to submit" in out, out
        assert_once(site, run)
        site.launch("cancel", f"run={run}")


def test_a_submission_killed_at_any_moment_blocks_and_doubles_nothing(site: Site) -> None:
    draw = random.Random(5)
    for number in range(8):
        run = f"killed-at-{number}"
        process = start(site, run)
        if number % 2:  # once the folder is there: most of what can go wrong follows
            site.wait((site.runs / run).is_dir, 60, f"the folder of {run}")
            time.sleep(draw.uniform(0, 0.4))
        else:
            time.sleep(draw.uniform(0.1, 1.2))
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]))
        process.communicate()
        if list((site.runs / run).glob("submissions/*/plan.json")):
            json.loads(site.launch("status", f"run={run}", "json=true"))
        site.submit(run, ON_HOLD)
        assert_once(site, run)
        site.launch("cancel", f"run={run}")
        site.wait(lambda: not site.jobs(run), 60, f"the jobs of {run} to go")  # noqa: B023
