"""`compare`: settings that differ, tables side by side, intervals where both runs answered the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import launch
from lumen_hpc.cluster import manifest
from lumen_hpc.config import config_file
from lumen_hpc.config.resolve import resolve
from lumen_hpc.files import sha256


def run(runs: Path, name: str, right: int, prefix: str = "q", **words: object) -> None:
    """A finished run of one model: 40 difference questions of 40 patients, of which it answers `right` correctly."""
    given = [f"{key}={value}" for key, value in words.items()]
    request = resolve(["stage=full", f"run={name}", f"runs={runs}", "predict.models=[lumen]", *given])
    folder = request.folder
    for step in ("instruct", "predict-lumen", "report"):
        (folder / step).mkdir(parents=True)
    config_file.save(request, folder / "config.yaml")
    records, answers = [], []
    for number in range(40):
        meta = {
            "question_id": f"{prefix}{number}", "subject_id": number, "type": "difference", "closed": False,
            "question": "what has changed?", "short_answer": "the pleural effusion has worsened.",
            "long_answer": "The pleural effusion has worsened.", "interval_days": 3,
        }  # fmt: skip
        records.append({"id": meta["question_id"], "images": [], "conversations": [], "meta": meta})
        text = "The pleural effusion has worsened." if number < right else "Nothing has changed."
        answers.append({"question_id": meta["question_id"], "model": "lumen", "answer": text})
    write = lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    write(folder / "instruct" / "lumen-test.jsonl", records)
    write(folder / "predict-lumen" / "shard-00000-of-00001.jsonl", answers)
    (folder / "report" / "tables.csv").write_text(
        "table,block,measure,model,n,value,low,high\n"
        f"table 1,difference,rouge_l,lumen,40,{right / 40},,\n"
        "table 1,difference,rouge_l,majority,40,0.1,,\n"
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run(tmp_path, "a", 12)
    run(tmp_path, "b", 30, **{"train.clip": 2.5})
    run(tmp_path, "c", 13, prefix="other")
    return tmp_path


def test_settings_tables_and_differences_stand_side_by_side(runs: Path, capsys: pytest.CaptureFixture) -> None:
    usual = str(resolve(["stage=full"]).settings.train.clip)
    assert launch.main(["compare", f"runs=a,{runs / 'b'}", f"profile.runs={runs}"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("train.clip")] == [
        ["train.clip", usual, "2.5"]
    ]
    assert "b and a: 40 questions in common, of 40 and 40" in out
    (row,) = [line for line in out.splitlines() if line.startswith("rouge l")]
    gap = float(row.split("+")[1].split()[0])
    low, high = (float(bound) for bound in row.split("[")[1].split("]")[0].split(","))
    assert "0.300" in row and "0.750" in row and row.rstrip().endswith("*")
    assert 0 < low < gap < high and "majority" not in out


def test_runs_that_share_no_question_have_no_interval(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch.main(["compare", "runs=a,c", f"profile.runs={runs}"]) == 0
    out = capsys.readouterr().out
    assert "c and a: 0 questions in common" in out and "without any" in out
    (row,) = [line for line in out.splitlines() if line.startswith("rouge l")]
    assert "[" not in row and "in brackets" not in out


def test_runs_without_a_model_in_common_are_told_what_scores_both(runs: Path, capsys: pytest.CaptureFixture) -> None:
    run(runs, "f", 20, **{"predict.models": "[ft]"})
    (runs / "f" / "predict-lumen").rename(runs / "f" / "predict-ft")
    assert launch.main(["compare", "runs=a,f", f"profile.runs={runs}"]) == 0
    out = capsys.readouterr().out
    assert "no model in common: lumen of a, ft of f; python -m lumen_hpc.metrics a/predict-* f/predict-*" in out
    assert "questions in common" not in out


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        ({"data.phantom.patients": 900}, 40),
        ({"data.phantom.studies": 3}, 0),
        ({"data.phantom.size": 96}, 0),
        ({"seed": 1}, 0),
    ],
)
def test_phantoms_of_other_settings_share_ids_and_no_question(
    runs: Path, capsys: pytest.CaptureFixture, words: dict, shared: int
) -> None:
    run(runs, "e", 20, **words)
    assert launch.main(["compare", "runs=a,e", f"profile.runs={runs}"]) == 0
    assert f"e and a: {shared} questions in common" in capsys.readouterr().out


@pytest.mark.parametrize(("judges", "interval"), [(("x", "y"), True), (("y", "x"), False)])
def test_the_judge_of_an_interval_is_that_of_the_values(
    runs: Path, capsys: pytest.CaptureFixture, judges: tuple[str, str], interval: bool
) -> None:
    for name, order, factor in (("a", ("x", "y"), 1), ("b", judges, 2)):
        scores = [
            {
                "question_id": f"q{number}",
                "model": "lumen",
                "judge": judge,
                "score": 1 + factor * number % 5,
                "expected_score": 2.0,
            }
            for judge in order
            for number in range(40)
        ]
        (runs / name / "judge-lumen").mkdir()
        shard = runs / name / "judge-lumen" / "shard-00000-of-00001.jsonl"
        shard.write_text("".join(json.dumps(row) + "\n" for row in scores))
        table = runs / name / "report" / "tables.csv"
        table.write_text(table.read_text() + "table 1,difference,judge,lumen,40,3,,\n")
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judge")]
    assert ("[" in row) == interval


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a", "two runs or more"),
        ("a,z", "there is no run"),
        ("a,d", "run d has no report yet"),
        ("b,b", "run b is named twice"),
        ("b,{runs}/b/", "run b is named twice"),
        ("{runs}/a,{runs}/d", "run d has no report yet: python launch.py stage=full run=d runs="),
        ("a,old", "old: written by another version of lumen_hpc (layout 1"),
    ],
)
def test_what_cannot_be_compared_is_named(runs: Path, capsys: pytest.CaptureFixture, names: str, message: str) -> None:
    run(runs, "d", 1)
    (runs / "d" / "report" / "tables.csv").unlink()
    run(runs, "old", 1)
    (runs / "old" / "layout").write_text("1\n")
    assert launch.main(["compare", f"runs={names.format(runs=runs)}", f"profile.runs={runs}"]) == 2
    assert message in capsys.readouterr().err


def test_the_runs_beside_a_missing_path_are_listed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch.main(["compare", f"runs={runs}/a,{runs}/z", f"profile.runs={tmp_path}/elsewhere"]) == 2
    assert f"the runs in {runs} are a, b, c" in capsys.readouterr().err


def test_answers_that_are_not_those_of_the_manifest_are_not_compared(runs: Path, capsys: pytest.CaptureFixture) -> None:
    folder = runs / "b" / "predict-lumen"
    path = folder / "shard-00000-of-00001.jsonl"
    line = {"shard": 0, "of": 1, "sha256": sha256(path), "bytes": path.stat().st_size, "mtime_ns": 0, "files": []}
    manifest.append(folder / manifest.NAME, line)
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 0
    path.write_text(path.read_text().replace("worsened", "improved"))
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 2
    assert "shard 0 is not the file that its manifest records" in capsys.readouterr().err


def test_runs_of_one_name_in_two_folders_are_told_apart(runs: Path, capsys: pytest.CaptureFixture) -> None:
    run(runs / "more", "a", 20)
    assert launch.main(["compare", f"runs=a,{runs}/more/a", f"profile.runs={runs}"]) == 0
    assert f"{runs}/more/a and {runs}/a: 40 questions in common" in capsys.readouterr().out


def test_tables_that_are_not_of_the_present_settings_are_doubted(runs: Path, capsys: pytest.CaptureFixture) -> None:
    """A run whose settings were changed keeps its tables until its stage evaluate has run again."""
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 0
    doubts = [line for line in capsys.readouterr().err.splitlines() if "its tables are not those of its" in line]
    assert [line.split(":")[1] for line in doubts] == [" a", " b"], "neither has a finished stage evaluate"


def test_a_table_that_was_edited_is_not_compared(runs: Path, capsys: pytest.CaptureFixture) -> None:
    table, folder = runs / "b" / "report" / "tables.csv", runs / "b" / "evaluate"
    folder.mkdir()
    shard = folder / "shard-00000-of-00001.jsonl"
    shard.write_text("{}\n")
    beside = {"file": "../report/tables.csv", "sha256": sha256(table), "bytes": table.stat().st_size, "mtime_ns": 0}
    line = {"shard": 0, "of": 1, "sha256": sha256(shard), "bytes": 3, "mtime_ns": 0, "files": [beside]}
    manifest.append(folder / manifest.NAME, {**line, "config": "", "inputs": ""})
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 0
    table.write_text(table.read_text().replace("0.75", "0.95"))
    assert launch.main(["compare", "runs=a,b", f"profile.runs={runs}"]) == 2
    assert "evaluate: shard 0 is not the file that its manifest records" in capsys.readouterr().err
