"""A restricted run whose every stage fails once with a record in its exception: no text of it leaves the data files,
and a second user of the cluster sees none of the run. Its chain has outcomes and prognose; export and serve follow it,
and the server is asked about the text too."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime, time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import OpenAI, OpenAIError

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.data import phantom
from lumen_hpc.data.study_times import days, moments, study_times
from lumen_hpc.outcomes import phantom_tables
from lumen_hpc.serving.supervisor import read_address
from sandbox import neighbour
from sandbox.checkout import ROOT, make
from sandbox.slurm import Cluster
from tests.cluster.conftest import Site
from tests.cluster.test_full_run import RECIPE

MARKER = f"Zebrowski{uuid4().hex[:8]}"
"""As a patient's name would look, and in no other file of this machine."""
MODELS = ("nvila", "lumen", "lumen-outcomes")
STEPS = (
    "prepare", "pretrain", "outcomes", "experts", "rewrite", "instruct", "train-lumen", "train-lumen-outcomes",
    *(f"{stage}-{model}" for stage in ("predict", "judge") for model in MODELS), "prognose-lumen-outcomes", "evaluate",
)  # fmt: skip
ON_REQUEST = ("export-lumen", "serve")
DATA = (
    "shard-*.jsonl", "prepare/questions.jsonl", "prepare/rejected.jsonl", "prepare/left_out.jsonl", "instruct/*.jsonl",
)  # fmt: skip
"""Files that hold records by design. Their texts reach no other."""
ATTACK = '''

def _fails_once(work):
    """The stage, whose first attempt ends in an exception with a record's text, as a library's might."""
    import json
    from itertools import chain
    from pathlib import Path

    def attacked(task):
        control = Path(task.run.folder).with_name(f"control-{task.run.folder.name}")
        process = work(task)

        def rows(shard):
            mark = control / f"failed-{task.step.name}"
            for row in chain([{}] if task.step.name == "serve" else [], process(shard)):  # a server has no row
                if task.ranks.first and not mark.exists():
                    mark.touch()
                    marker = (control / "marker").read_text()
                    raise [KeyError, ValueError, RuntimeError, AssertionError][len(task.step.name) % 4](
                        f"{marker} {json.dumps(row)}"
                    ) from KeyError(marker)
                if row:
                    yield row

        return rows

    return attacked


work = _fails_once(work)
'''

STAND_IN = """

def require_fitting(*_):
    '''Phantoms stand in for MIMIC-CXR in this checkout, and so may the expert and the base of the demo.'''
"""


def plant(folder: Path) -> None:
    """Texts of the official tables that no stage needs, and every twentieth question, get the marker."""
    metadata = folder / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz"
    with gzip.open(metadata, "rt", newline="") as file:
        rows = list(csv.reader(file))
    texts = [rows[0].index(name) for name in ("PerformedProcedureStepDescription", "ProcedureCodeSequence_CodeMeaning",
                                              "PatientOrientationCodeSequence_CodeMeaning")]  # fmt: skip
    views = [rows[0].index(name) for name in ("ViewPosition", "ViewCodeSequence_CodeMeaning")]
    for number, row in enumerate(rows[1:]):
        for column in texts + (views if number % 20 == 3 else []):
            row[column] = MARKER
    with gzip.open(metadata, "wt", newline="") as file:
        csv.writer(file).writerows(rows)
    questions = folder / "medical-diff-vqa" / "mimic_pair_questions.csv"
    with questions.open(newline="") as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows[1:]):
        if number % 20 == 7:
            row[4 + number // 20 % 2] += f" {MARKER}"
    with questions.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def study_time(row: dict[str, str]) -> datetime:
    taken = moments(days([row["StudyDate"]]), study_times([row["StudyTime"]]))[0]
    return taken if isinstance(taken, datetime) else datetime.combine(taken, time())


def write_mimic_iv(data: Path) -> Path:
    """MIMIC-IV's tables of these phantoms, with the marker in texts that stage outcomes does not read and in values."""
    with gzip.open(data / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz", "rt", newline="") as file:
        taken = {int(row["study_id"]): study_time(row) for row in csv.DictReader(file)}
    folder = phantom_tables.write_tables(data / "mimiciv", data / "truth.jsonl", taken, 0)
    for table, column, every in (("hosp/admissions", "admission_location", 1), ("hosp/labevents", "comments", 1),
                                 ("hosp/admissions", "race", 3),
                                 ("hosp/labevents", "value", 50), ("icu/icustays", "first_careunit", 1)):  # fmt: skip
        with gzip.open(folder / f"{table}.csv.gz", "rt", newline="") as file:
            rows = list(csv.reader(file))
        place = rows[0].index(column)
        for number, row in enumerate(rows[1:]):
            if number % every == 0 and len(row) == len(rows[0]):
                row[place] = MARKER
        with gzip.open(folder / f"{table}.csv.gz", "wt", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def site(can_run_slurm: None) -> Iterator[Site]:
    """A cluster and runs in folders that every user may enter, and the project's own stages, which fail once each."""
    with neighbour.account(), tempfile.TemporaryDirectory(prefix="lumen-restricted-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "runs").mkdir(mode=0o755)
        shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder / "jobs").glob("[a-z]*.py"):
            path.write_text(path.read_text() + ATTACK)
        cluster = Cluster(folder / "slurm", accounting=False).up()
        try:
            checkout = make(folder / "checkout", jobs=folder / "jobs")
            module = checkout / "lumen_hpc" / "config" / "unused_settings.py"
            module.write_text(module.read_text() + STAND_IN)
            os.utime(checkout / "launch.py")  # the second user looks at what is newer
            yield Site(checkout, cluster, folder / "runs")
        finally:
            cluster.down()


@pytest.fixture(scope="module")
def attacked(site: Site) -> Path:
    """The run's folder, once every stage has failed and its successor has done the work."""
    data = site.runs.parent / "data"
    data.mkdir(mode=0o700)
    phantom.write(data, Phantom(patients=40, test_fraction=0.2), 0)
    plant(data)
    control = site.runs / "control-restricted"
    control.mkdir(mode=0o700)
    (control / "marker").write_text(MARKER)
    words = [
        "recipe=demo", "data=mimic", *(word for word in RECIPE if "phantom" not in word), "prepare.on_bad=skip",
        f"data.mimic_cxr={data / 'mimic-cxr-jpg'}", f"data.diff_vqa={data / 'medical-diff-vqa'}", "prepare.max_bad=0.2",
        f"data.mimic_iv={write_mimic_iv(data)}", "instruct.outcomes=[icu_48h]",
        "instruct.clinical=[patient,stay]", "train.mixture.outcome=4",
        f"predict.models=[{','.join(MODELS)}]",
        "profile.environment={OMP_NUM_THREADS: '1', HF_HUB_OFFLINE: '1'}", "train.steps=8", "train.checkpoint_every=4",
        *(f"profile.resources.{kind}.successors=2" for kind in ("cpu", "gpu", "judge", "train")),
        "profile.resources.gpu.tasks=1", "profile.resources.judge.tasks=1", "profile.resources.train.nodes=1",
        "profile.resources.train.gpus=2",
    ]  # fmt: skip
    site.submit("restricted", *words)
    site.wait_until_left("restricted", 1000)
    return site.runs / "restricted"


@pytest.fixture(scope="module")
def served(site: Site, attacked: Path) -> Path:
    """The run's folder, once its model was exported, and served and asked about the marker, each after a failure."""
    site.submit("restricted", "serve.model=lumen", "profile.resources.cpu.successors=2", stage="export")
    if find_spec("vllm"):
        site.submit("restricted", "serve.model=lumen", "serve.max_model_len=512", "serve.successor=true",
                    "profile.resources.gpu.mem_gb=16", "profile.resources.gpu.successors=2", stage="serve")  # fmt: skip
        site.wait(lambda: read_address(attacked / "serve") is not None, 400, "the server's address")
        ask_about_the_marker(attacked / "serve")
    site.wait(lambda: "done" in site.run("restricted").events("export-lumen"), 300, "the end of the export")
    site.launch("cancel", "run=restricted")
    site.wait_until_left("restricted")
    return attacked


def ask_about_the_marker(folder: Path) -> None:
    """One question that the server answers, and two that it refuses."""
    address = read_address(folder)
    assert address is not None
    client = OpenAI(base_url=address.url, api_key=address.key, max_retries=0)

    def ask(role: Any, text: str) -> Any:
        messages: Any = [{"role": role, "content": text}]
        return client.chat.completions.create(model="lumen", messages=messages, max_tokens=4)

    assert ask("user", f"Is {MARKER} normal?").choices
    for role, text in (("user", MARKER * 999), (MARKER, MARKER)):
        with pytest.raises(OpenAIError):
            ask(role, text)


@pytest.mark.timeout(3600)
def test_every_stage_has_failed_and_gone_on(site: Site, attacked: Path) -> None:
    failed = {path.parent.name for path in attacked.glob("*/failures.jsonl")}
    assert failed == set(STEPS), site.launch("status", "run=restricted", code=1)
    for step in STEPS:
        (row, *_) = map(json.loads, (attacked / step / "failures.jsonl").read_text().splitlines())
        assert "the message is left out: the data are restricted" in row["error"], step
    status = json.loads(site.launch("status", "run=restricted", "json=true"))
    assert {step["state"] for step in status["steps"]} == {"done"}, status


def test_export_and_server_have_failed_and_gone_on(served: Path) -> None:
    for step in ON_REQUEST if find_spec("vllm") else ON_REQUEST[:1]:
        (row,) = map(json.loads, (served / step / "failures.jsonl").read_text().splitlines())
        assert "the message is left out: the data are restricted" in row["error"], step
    assert (served / "export-lumen" / "restricted-lumen" / "README.md").is_file()


def test_no_text_of_a_record_is_in_any_log_json_script_or_page(site: Site, attacked: Path, served: Path) -> None:
    searched = [path for path in attacked.rglob("*") if path.is_file() and not any(map(path.match, DATA))]
    kinds = {path.suffix for path in searched} | {path.name.split(".")[0] for path in searched}
    assert {".out", ".sh", ".yaml", ".json", "failures", "attempts", "metrics", "events", "plan"} <= kinds, kinds
    leaks = [str(path.relative_to(attacked)) for path in searched if MARKER.encode() in path.read_bytes()]
    assert leaks == []
    assert list((attacked / "serve" / "logs").glob("server-*.log")) or not find_spec("vllm")
    of_slurm = [path for path in site.cluster.folder.rglob("*") if path.is_file()]
    assert any(path.name == "slurmctld.log" for path in of_slurm)
    assert [str(path) for path in of_slurm if MARKER.encode() in path.read_bytes()] == []
    for words in (["status"], ["status", "json=true"], ["logs"]):
        assert MARKER not in site.launch(*words, "run=restricted")
    rejected = (attacked / "prepare" / "rejected.jsonl").read_text()
    assert MARKER in rejected, "the attack must work: its texts were read"


def test_a_second_user_can_read_nothing_of_it_anywhere(site: Site, attacked: Path) -> None:
    def seen() -> list[str]:
        recent = f"-type f -newer {site.checkout / 'launch.py'} -size -20M -readable -print0"
        program = f"find {site.runs.parent} /tmp /dev/shm {recent} 2>/dev/null | xargs -0 -r grep -lF -- {MARKER}"
        done = neighbour.run("sh", "-c", program, folder=Path("/"), environment=dict(os.environ))
        return done.stdout.split()

    assert seen() == []
    with tempfile.NamedTemporaryFile("w", dir="/dev/shm") as planted:
        planted.write(MARKER)
        planted.flush()
        os.chmod(planted.name, 0o644)
        assert seen() == [planted.name], "the search must find what can be read"
    inside = neighbour.run("find", str(attacked), folder=Path("/"), environment=dict(os.environ)).stdout.split()
    assert inside == [str(attacked)], "another user lists the run"
    modes = subprocess.run(
        ["find", attacked, "-perm", "/077", "-not", "-type", "l"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert modes == [], "files of the run that its folder alone protects"
