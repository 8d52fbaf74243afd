"""A small graph of stages that need nothing, for what can be tested without a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lumen_hpc.cluster import slurm
from lumen_hpc.cluster.stage import Run, Stage
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings


def stage(name: str, **more: object) -> Stage:
    given = {"paper": "", "about": "", "resources": "gpu", "settings": ("seed", "predict.shards"), **more}
    return Stage(name=name, **given)  # type: ignore[arg-type]


@pytest.fixture
def stages() -> list[Stage]:
    four = {"shards": lambda settings: settings.predict.shards, "models": lambda settings: ["a", "b"]}
    return [
        stage("first", resources="cpu"),
        stage("answer", after=("first",), volatile=("seconds",), **four),
        stage("score", after=("first", "answer-{model}"), shardwise_after="answer-{model}", **four),
        stage("last", resources="cpu", after=("answer-*", "score-*")),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", Settings(), Profile())


SBATCH = """\
#!/bin/sh
# Stands in for sbatch: keeps each script, numbers jobs; refuses job $REFUSE_AT, accepts $LOST_AT without a word, dies
# at $KILLED_AT, and at $INTERRUPT_AT its caller meets ^C before the answer.
n=$(ls "$FAKE" | grep -c '^script' || true)
[ "$n" = "${LOST_AT:-none}" ] && {
    echo "$((1000 + n))|PENDING|Priority||N/A|$(id -u)|r.answer-a" > "$FAKE/queue"
    touch "$FAKE/script-$n"
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1; }
[ "$n" = "${KILLED_AT:-none}" ] && kill -KILL $$
[ "$n" = "${REFUSE_AT:-none}" ] && { echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1; }
cp "$1" "$FAKE/script-$n"
[ "$n" = "${INTERRUPT_AT:-none}" ] && { kill -INT "$PPID"; sleep 0.5; }
echo "Submitted batch job $((1000 + n))"
"""


SCANCEL = """\
#!/bin/sh
[ -n "$NO_SCANCEL" ] && { echo "scancel: error: Kill job error on job id $1: Access/permission denied" >&2; exit 1; }
echo "$@" >> "$FAKE/cancelled"
"""

SCONTROL = """\
#!/bin/sh
echo "ClusterName = ${CLUSTER:-here}"
echo "MaxArraySize = ${ARRAY:-1001}"
echo "AccountingStorageEnforce = associations,limits,qos"
cat "$FAKE/job-$3" 2>/dev/null || true
"""


SINFO = """\
#!/bin/sh
echo "h100*|3|96|gpu:h100:4|1-00:00:00|1000000|${STATE:-up}|${COUNTS:-0/3/0/3}"
echo "cpu|3|96|(null)|1-00:00:00|1000000|up|0/3/0/3"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose sbatch, scancel, squeue and srun come before the real ones in PATH, and record their calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "sbatch": SBATCH,
        "scancel": SCANCEL,
        "squeue": '#!/bin/sh\necho "$@" >> "$FAKE/asked"\n[ ! -e "$FAKE/queue" ] || sed -e "\\$a\\\\" "$FAKE/queue"\n',
        "scontrol": SCONTROL,
        "srun": "#!/bin/sh\n",
        "sinfo": SINFO,
        "sacctmgr": '#!/bin/sh\n[ -n "$ACCOUNTS" ] || exit 1; [ "$ACCOUNTS" = none ] || echo "$ACCOUNTS|normal"\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    slurm.settings.cache_clear()
    slurm.one_cluster.cache_clear()
    return tmp_path


@pytest.fixture
def request_here(tmp_path: Path) -> Request:
    words = ["stage=full", "profile=h100", "recipe=demo", "predict.shards=4", "run=r", f"runs={tmp_path / 'runs'}"]
    return resolve([*words, "profile.max_array_size=1000"])
