"""Per-sample scores apply where they should, and what does not fit together is named and counted."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lumen_hpc.data.phantom_states import FINDINGS
from lumen_hpc.errors import UserError
from lumen_hpc.metrics import change
from lumen_hpc.metrics.__main__ import main, references, score
from lumen_hpc.metrics.join import join
from lumen_hpc.metrics.measures import MEASURES, Samples

NEW_EDEMA = "the main image has an additional finding of edema than the reference image. "


def question(id, type, short, long="A sentence.", **more):
    closed = short in ("yes", "no")
    return {
        "question_id": id,
        "type": type,
        "question": "?",
        "short_answer": short,
        "long_answer": long,
        "closed": closed,
    } | more


QUESTIONS = [
    question("d1", "difference", NEW_EDEMA, "The main image has new edema."),
    question("d2", "difference", "nothing has changed.", "Nothing has changed."),
    question("c1", "presence", "yes", "There is edema."),
    question("c2", "presence", "no", "There is no edema."),
    question("a1", "abnormality", "edema, nodule", "Edema and a nodule are seen."),
    question("v1", "view", "PA view", "This is a PA view."),
]


def test_each_measure_applies_to_its_questions_alone():
    samples = Samples(QUESTIONS, [row["long_answer"] for row in QUESTIONS])
    applies = {name: samples.columns[name].applies().tolist() for name in MEASURES}
    assert applies["recall"] == [True, True, False, False, True, True]
    assert applies["accuracy"] == [False, False, True, True, False, False]
    assert applies["change_f1_macro"] == [True, True, False, False, False, False]
    assert applies["finding_f1_macro"] == [False, False, False, False, True, False]
    assert all(applies["bleu4"])


def test_right_answers_score_one_and_wrong_ones_zero():
    right = Samples(QUESTIONS, [row["long_answer"] for row in QUESTIONS]).summary()
    for name in ("rouge_l", "exact", "accuracy_polarity", "change_f1", "change_f1_macro", "direction", "finding_f1"):
        assert right[name] == 1, name
    wrong = Samples(QUESTIONS, ["nothing has changed.", NEW_EDEMA, "no", "yes", "nothing", "lateral"]).summary()
    for name in ("exact", "accuracy", "accuracy_polarity", "change_f1", "change_f1_macro", "direction", "finding_f1"):
        assert wrong[name] == 0, name


def test_an_answer_that_cannot_be_read_earns_nothing_even_where_nothing_changed():
    samples = Samples(QUESTIONS[:2], ["banana", "banana"])
    assert samples.summary()["change_read"] == 0
    assert samples.columns["change_f1_macro"].part.tolist() == [0, 0]


def test_a_claim_of_worsening_is_wrong_where_nothing_changed():
    summary = Samples(QUESTIONS[1:2], ["The edema has worsened."]).summary()
    assert (summary["change_f1"], summary["change_f1_macro"], summary["change_precision"]) == (0, 0, 0)


NORMAL = question("n", "abnormality", "no abnormality", "This image shows no abnormality.")


@pytest.mark.parametrize(
    "answer, earned",
    [
        ("This image shows no abnormality.", 1), ("Normal.", 1), ("No edema or nodule is seen.", 1),
        ("The lungs are clear and the heart is normal in size.", 1),
        ("", 0), ("banana", 0), ("I cannot tell.", 0), ("There is new edema.", 0), ("edema", 0),
    ],
)  # fmt: skip
def test_where_there_is_no_abnormality_an_answer_must_say_so(answer, earned):
    samples = Samples([NORMAL], [answer])
    assert samples.summary()["finding_f1_macro"] == samples.summary()["finding_f1"] == earned
    assert (samples.finding_lists[0][0] is None) == (answer in ("", "banana", "I cannot tell."))


def test_each_kind_of_fact_counts_in_its_own_f1_and_in_the_whole():
    """One of two right in each kind; a level counts with both its ends."""
    edema, gone = NEW_EDEMA, "the main image is missing the finding of nodule than the reference image. "
    level = "the level of pleural effusion has changed from mild to severe."
    halves = [edema, gone, level.replace("severe", "moderate"), "nothing has changed.", "nothing has changed.", level]
    rows = [question(str(k), "difference", text) for k, text in enumerate([edema, gone, level] * 2)]
    found = Samples(rows, halves).summary()
    assert found["change_new_f1"] == found["change_resolved_f1"] == pytest.approx(2 / 3)
    assert found["change_level_f1"] == 1 / 2
    assert (found["change_precision"], found["change_recall"], found["change_f1"]) == (3 / 4, 3 / 6, 6 / 10)


def test_micro_f1_counts_facts_over_all_answers():
    rows = [question(str(k), "difference", NEW_EDEMA) for k in range(3)]
    answers = [NEW_EDEMA, "nothing has changed.", "There is new edema and a new nodule."]
    summary = Samples([*rows, question("n", "abnormality", "nodule")], [*answers, "nodule"]).summary()
    assert summary["change_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert summary["change_precision"] == pytest.approx(2 / 3)
    assert summary["change_recall"] == pytest.approx(2 / 3)
    assert summary["change_resolved_f1"] is None


@pytest.mark.parametrize("answer, expected", [("nothing has changed.", 1), ("banana", 0)])
def test_where_nothing_changed_at_all_the_answers_are_judged_one_by_one(answer, expected):
    assert Samples(QUESTIONS[1:2], [answer]).summary()["change_f1"] == expected


def test_half_a_measure_is_refused(monkeypatch):
    monkeypatch.setitem(MEASURES, "length", "words of the answer")
    with pytest.raises(NotImplementedError, match=r"length: a row of MEASURES or a column is missing in "):
        Samples([], [])


def test_a_question_without_long_answer_has_no_long_score():
    samples = Samples([question("1", "view", "PA view", long=None)], ["PA view"])
    assert samples.summary()["rouge_l"] is None
    assert samples.summary()["rouge_l_short"] == 1


def answered(*ids, model=None):
    return [{"question_id": id, "answer": "yes"} | ({"model": model} if model else {}) for id in ids]


def test_models_are_compared_on_the_same_questions_only():
    joined = join(QUESTIONS, [*answered("c1", "c2", "v1", model="a"), *answered("c2", "v1", "d1", model="b")])
    assert [row["question_id"] for row in joined.questions] == ["c2", "v1"]
    found = joined.problems.as_dict()
    assert found["questions without an answer of a (left out for every model)"] == {
        "count": 3,
        "ids": ["d1", "d2", "a1"],
    }
    assert found["questions without an answer of b (left out for every model)"]["count"] == 3


def test_bad_input_is_named_and_counted():
    rows = [
        *QUESTIONS,
        QUESTIONS[0],
        question("x", "difference", "it got worse"),
        question("y", "view", "AP", closed=True),
        question("z", "level", "mild", long=""),
    ]
    answers = [*answered(*(row["question_id"] for row in rows)), *answered("stranger")]
    rows.insert(2, question(None, "view", "AP view"))
    answers[1:1] = [{"answer": "yes"}, *answered("")]
    joined = join(rows, answers)
    counts = {kind: about["count"] for kind, about in joined.problems.as_dict().items()}
    assert counts == {
        "doubled questions (the first is kept)": 1,
        "difference answers outside the grammar (no change or finding F1)": 1,
        "closed questions whose short answer is not yes or no (counted as open)": 1,
        "questions without a long answer (no long BLEU-4 and ROUGE-L)": 1,
        "doubled answers of model (the first is kept, of several models each row needs its `model`)": 1,
        "answers without a question": 1,
        "references without a question_id (left out)": 1,
        "answers without a question_id (left out)": 2,
    }
    assert joined.problems.as_dict()["answers without a question_id (left out)"]["ids"] == ["row 2", "row 3"]
    assert any("stranger" in line for line in joined.problems.lines())


def test_a_type_in_capitals_is_read_and_one_that_is_none_is_named():
    rows = [{**row, "type": f" {row['type'].title()}"} for row in QUESTIONS]
    answers = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in rows]
    read, plain = join(rows, answers), join(QUESTIONS, answers)
    assert read.questions == plain.questions and not read.problems
    (line,) = join([question("x", "differences", "nothing has changed.")], answered("x")).problems.lines()
    assert line.startswith("1 questions of another type than abnormality,") and line.endswith(": x")


def test_an_answer_that_is_no_text_is_read_as_its_items_and_named():
    rows = [question("a", "abnormality", "edema, nodule"), question("b", "view", "PA view"), question("c", "type", "x")]
    given = (["edema", "nodule"], {"view": "PA"}, 3)
    joined = join(rows, [{"question_id": row["question_id"], "answer": text} for row, text in zip(rows, given)])
    assert joined.answers["model"] == ["edema, nodule", "view: PA", "3"]
    (line,) = joined.problems.lines()
    assert line == "3 answers of model that are not text (a list is read as its items): a, b, c"


@pytest.mark.parametrize(
    ("answer", "read", "kind"),
    [
        (None, "", "null (scored as no answer)"), ("", "", "empty (scored as no answer)"), (" \n\u3000", "", "empty"),
        ([], "", "not text"), ([None], "", "not text"), (["edema", "nodule"], "edema, nodule", "not text"),
        ([["edema"], ["nodule"]], "edema, nodule", "not text"), (True, "yes", "not text"), (1.5, "1.5", "not text"),
        ([{"type": "text", "text": "Edema is seen."}], "Edema is seen.", "not text"),
        ({"answer": "edema", "explanation": "no nodule"}, "edema", "not text"),
        ({"findings": ["edema", "nodule"]}, "findings: edema, nodule", "not text"),
        ({"choices": [{"message": {"role": "assistant", "content": "edema"}}]}, "edema", "not text"),
        ("<think>A nodule? No.</think>\nEdema is seen.", "Edema is seen.", "reasoning in tags"),
        ("<think>Perhaps a nod", "", "reasoning in tags"),
        ("A nodule? Yes.\n</think>\n\nEdema is seen.", "Edema is seen.", "reasoning in tags"),
        ("<thinking effort='low'>A nodule.</thinking>Edema is seen.", "Edema is seen.", "reasoning in tags"),
        ("<seed:think>A nodule.</seed:think>Edema is seen.", "Edema is seen.", "reasoning in tags"),
        ("[THINK]A nodule.[/THINK]Edema is seen.", "Edema is seen.", "reasoning in tags"),
        ("\u25c1think\u25b7A nodule.\u25c1/think\u25b7Edema is seen.", "Edema is seen.", "reasoning in tags"),
        ("<unused94>thought\nA nodule.<unused95>Edema is seen.", "Edema is seen.", "reasoning in tags"),
        (
            "<|channel|>analysis<|message|>A nodule.<|end|><|start|>assistant<|channel|>final<|message|>Edema is seen.",
            "Edema is seen.",
            "reasoning in tags",
        ),
        ("analysisA nodule? Yes.assistantfinalEdema is seen.", "Edema is seen.", "reasoning in tags"),
        ("analysisPerhaps a nod", "", "reasoning in tags"),
        ("Edema is seen.<|im_end|>", "Edema is seen.", "control tokens"),
        ("<s> Edema is seen.</s><pad><pad>", "Edema is seen.", "control tokens"),
    ],
)  # fmt: skip
def test_an_answer_is_what_it_says_and_counted_where_it_is_no_plain_text(answer, read, kind):
    joined = join([question("a", "abnormality", "edema")], [{"question_id": "a", "answer": answer}])
    assert joined.answers["model"] == [read]
    (line,) = joined.problems.lines()
    assert line.startswith("1 answers of model ") and kind in line and line.endswith(": a")
    score(joined)


def test_an_answer_without_its_field_among_others_is_none_and_counted():
    joined = join(QUESTIONS, [*answered("c1"), {"question_id": "c2"}])
    assert joined.answers["model"][1] == "" and "null" in joined.problems.lines()[-2] + joined.problems.lines()[-1]


@pytest.mark.parametrize("name", [None, "", " "])
def test_a_model_without_a_name_is_called_model(name):
    assert list(join(QUESTIONS, [{**row, "model": name} for row in answered("c1", "c2")]).answers) == ["model"]


LISTED = {"short_answer": ["edema", "nodule"]}


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"closed": None}, None), ({"closed": "False"}, None), ({"closed": "OPEN"}, None), ({"closed": 0}, None),
        ({"question": None}, None), (LISTED, "whose short_answer is a list"),
        ({"long_answer": ["edema", "nodule"]}, "whose long_answer is a list"),
        ({"long_answer": None}, "without a long answer"), ({"short_answer": "nan"}, "outside the grammar"),
        ({"short_answer": "['edema', 'nodule']"}, "outside the grammar"), ({"meta": None}, None), ({"meta": "x"}, None),
        ({"meta": {"source": "x"}}, None), ({"question_id": "a "}, None),
    ],
)  # fmt: skip
def test_a_reference_that_others_wrote_is_read_or_counted(fields, right):
    row = question("a", "abnormality", "edema, nodule") | fields
    joined = join(references([row]), [{"question_id": "a", "answer": "Edema and a nodule."}])
    (block,) = score(joined).values()
    assert block["finding_f1"] == (None if right and "grammar" in right else 1)
    assert [right in line for line in joined.problems.lines()] == [True] * bool(right)


@pytest.mark.parametrize("name", ["short_answer", "long_answer", "question", "type"])
@pytest.mark.parametrize("value", [3, True, {"a": 1}, [1], []])
def test_a_reference_that_is_no_text_is_refused_by_name(name, value):
    row = question("a", "abnormality", "edema, nodule") | {name: value}
    with pytest.raises(UserError, match=f"question a: its {name} is of type {type(value).__name__}, not text"):
        join([row], answered("a"))


@pytest.mark.parametrize(
    "references, answers, models, message",
    [
        (QUESTIONS, answered("c1"), ("lumen",), "no answers of lumen"),
        (QUESTIONS, [], (), "no answers of any model"),
        ([], answered("c1"), (), "the references hold no question"),
        (QUESTIONS, [*answered("c1", model="a"), *answered("c2", model="b")], (), "answered by all of a, b"),
        ([{"question_id": "1", "type": "view"}], [], (), "question 1 has no 'short_answer'"),
        (
            [{"question_id": "1", "type": "view", "short_answer": None}],
            [],
            (),
            "question 1: its 'short_answer' is null",
        ),
        ([{"question_id": "1", "short_answer": "yes"}], [], (), "question 1 has no 'type'; .* rename them as docs"),
        (
            QUESTIONS,
            [{"id": "c1", "answer": "yes"}],
            (),
            "no answer has a 'question_id'; fields of the last are id, answer; rename them as docs",
        ),
        ([{"type": "view"}], answered("c1"), (), "no reference has a 'question_id'"),
        (QUESTIONS, [{"question_id": "c1"}], (), "the answer to c1 has no 'answer'"),
        (QUESTIONS, QUESTIONS, (), "the answer to v1 has no 'answer', .* name the files of answers first"),
        (answered("c1"), QUESTIONS, (), "question c1 has no 'type'; .* name the files of answers first"),
        (QUESTIONS, answered("7"), (), r"is `question_id` the same in both \(answers have 7, questions d1\)\?"),
        (QUESTIONS, [*answered("c1"), *answered("c2", model="a")], (), r"by all of model, a \(model is that of rows"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(references, answers, models, message):
    with pytest.raises(UserError, match=message):
        join(references, answers, models=models)


@pytest.fixture
def files(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_the_command_prints_one_json_object_and_a_table(files, capsys):
    answers = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in QUESTIONS]
    assert main([files("answers.jsonl", answers), files("references.jsonl", QUESTIONS)]) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert scores["n"] == len(QUESTIONS)
    assert scores["rouge_l"] == scores["change_f1"] == scores["accuracy_polarity"] == 1
    assert set(scores["types"]) == {"difference", "presence", "abnormality", "view"}
    assert scores["types"]["presence"]["n"] == 2
    assert "method1" in scores["definitions"]["bleu4"]
    values = [
        v for block in [scores, *scores["types"].values()] for k, v in block.items() if k in MEASURES and v is not None
    ]
    assert values and all(0 <= value <= 1 for value in values)
    assert "difference" in err


def test_a_reference_is_read_once_however_many_models_answer(monkeypatch):
    calls = []
    fault = change.answer_fault
    monkeypatch.setattr(change, "answer_fault", lambda *reference: calls.append(reference) or fault(*reference))
    change._parse_reference.cache_clear()
    score(join(QUESTIONS, [row for model in "abc" for row in answered("d1", "d2", "a1", model=model)]))
    assert sorted(short for _, _, short in calls) == ["edema, nodule", "nothing has changed.", NEW_EDEMA]


def test_several_models_have_a_block_each(files, capsys):
    answers = [row for model in ("a", "b") for row in answered("c1", "c2", model=model)]
    main([files("answers.jsonl", answers), files("references.jsonl", QUESTIONS)])
    out, err = capsys.readouterr()
    assert set(json.loads(out)["models"]) == {"a", "b"}
    assert "4 questions without an answer of a" in err


def test_a_findings_line_is_not_scored(files, capsys):
    line = " ".join(f"{name} no no same" for name in FINDINGS[:-1]) + " edema no mild new ; "
    answers = [{"question_id": "d1", "answer": line + QUESTIONS[0]["long_answer"]}]
    main([files("answers.jsonl", answers), files("references.jsonl", QUESTIONS[:1])])
    assert json.loads(capsys.readouterr().out)["rouge_l"] == 1


def test_a_semicolon_alone_takes_nothing_off(files, capsys):
    answers = [{"question_id": "d1", "answer": "the edema is new; the main image has new edema."}]
    main([files("answers.jsonl", answers), files("references.jsonl", QUESTIONS[:1])])
    assert json.loads(capsys.readouterr().out)["rouge_l"] < 1


def test_ids_that_pandas_wrote_as_floats_are_whole_numbers():
    rows = [row | {"question_id": number} for number, row in enumerate(QUESTIONS)]
    joined = join(rows, [{"question_id": float(row["question_id"]), "answer": row["long_answer"]} for row in rows])
    assert len(joined.questions) == len(QUESTIONS) and not joined.problems


@pytest.mark.parametrize("short", ["Yes.", " yes ", "YES!"])
def test_a_yes_with_its_sign_is_a_closed_reference(short):
    row = question("a", "presence", short) | {"closed": False}
    joined = join([row], [{"question_id": "a", "answer": "yes"}])
    (block,) = score(joined).values()
    assert block["accuracy"] == block["accuracy_strict"] == 1 and not joined.problems


@pytest.mark.parametrize("short", ["1", "present", "there is edema"])
def test_a_presence_question_without_yes_or_no_is_named(short):
    (line,) = join([question("a", "presence", short)], answered("a")).problems.lines()
    assert line.startswith("1 closed questions whose short answer is not yes or no")


@pytest.mark.parametrize("packed", ["answers.jsonl", "references.jsonl"])
def test_gzip_streams_are_read_and_a_broken_one_is_named(files, tmp_path, capsys, packed):
    answers = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in QUESTIONS]
    paths = {name: files(name, rows) for name, rows in (("answers.jsonl", answers), ("references.jsonl", QUESTIONS))}
    plain = gzip.compress(Path(paths[packed]).read_bytes())
    paths[packed] += ".gz"
    Path(paths[packed]).write_bytes(plain)
    assert main([*paths.values()]) == 0
    assert json.loads(capsys.readouterr().out)["rouge_l"] == 1
    Path(paths[packed]).write_bytes(plain[:-9])
    assert main([*paths.values()]) == 2
    assert f"{packed}.gz: a gzip stream that is corrupt or cut off" in capsys.readouterr().err


ROW = b'{"question_id": "c1", "answer": "yes"}\n'
OTHER_FILES = {
    "csv": (b"question_id,answer\nc1,yes\n", "is it csv?"),
    "a list": (b"[" + ROW.strip() + b"]", r"line 1: a list .* `jq -c '.\[\]'"),
    "a list over lines": (b"[\n  {\n", r"line 1: not JSON .* `jq -c '.\[\]'"),
    "an object over lines": (ROW.replace(b"{", b"{\n"), "line 1: not JSON .*`jq -c . FILE`"),
    "a cut line": (ROW + ROW[:-9], "line 2: not JSON .* write the file again"),
    "Python's notation": (ROW.replace(b'"', b"'"), "line 1: .* json.dumps"),
    "commas": (ROW.replace(b"}", b"},"), "line 1: .* no comma follows an object"),
    "half a character": (ROW.replace(b"yes", b"\\ud83d"), "line 1: .* U.FFFD"),
    "NaN": (ROW.replace(b'"yes"', b"NaN"), "line 1: .* write null"),
    "UTF-16": (ROW.decode().encode("utf-16"), "line 1: .* UTF-16 text, not JSON lines; save it as UTF-8"),
    "Latin-1": (ROW.replace(b"yes", b"caf\xe9"), "line 1: .* save it as UTF-8"),
    "a zip archive": (b"PK\3\4" + ROW, "a zip archive or a workbook, not JSON lines; unpack it, or save it as JSON"),
    "a Parquet file": (b"PAR1" + ROW, "a Parquet file, not JSON lines; save it as JSON lines"),
    "nothing": (b"\n\n", "answers is empty; it should hold one JSON object a line"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_a_file_of_another_kind_is_named_with_what_would_do(files, tmp_path, capsys, what):
    content, message = OTHER_FILES[what]
    (tmp_path / "answers").write_bytes(content)
    assert main([str(tmp_path / "answers"), files("references.jsonl", QUESTIONS)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_is_no_step_says_what_to_name(files, tmp_path, capsys):
    asked = files("references.jsonl", QUESTIONS)
    (tmp_path / "run" / "predict-lumen").mkdir(parents=True)
    assert main([str(tmp_path / "run"), asked]) == 2
    assert re.search("is a run's folder; name its answers: .*run/predict-lumen", capsys.readouterr().err)
    assert main([asked, str(tmp_path / "run")]) == 2
    assert (
        "run is a folder; references come last, a file: of a run instruct/lumen-test.jsonl" in capsys.readouterr().err
    )


def command(words, **streams):
    return subprocess.run(
        [sys.executable, "-m", "lumen_hpc.metrics", *words], stderr=subprocess.PIPE, text=True, check=False, **streams
    )


def test_scores_that_cannot_be_written_are_a_line_and_a_closed_pipe_is_none(files):
    answers = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in QUESTIONS]
    words = [files("answers.jsonl", answers), files("references.jsonl", QUESTIONS)]
    with open("/dev/full", "w") as full:
        done = command(words, stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the scores cannot be written: No space left on device")
    end, start = os.pipe()
    os.close(end)
    assert "Error" not in command(words, stdout=start).stderr
    os.close(start)


def test_an_environment_without_numpy_is_told_which_extra_it_lacks(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')")
    done = command(["a", "b"], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "(No module named 'numpy'); pip install '.[metrics]' in a checkout" in done.stderr


def test_a_dash_is_standard_input(files):
    answers = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in QUESTIONS]
    with open(files("answers.jsonl", answers)) as stream:
        done = command(["-", files("references.jsonl", QUESTIONS)], stdin=stream, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["rouge_l"] == 1


def test_errors_are_one_line_and_exit_2(files, capsys):
    broken = files("broken.jsonl", [])
    assert main([broken, files("references.jsonl", QUESTIONS)]) == 2
    assert main(["missing.jsonl", broken]) == 2
    for line in capsys.readouterr().err.strip().splitlines():
        assert line.startswith("error: ")


def test_values_are_per_sample_and_nan_elsewhere():
    values = Samples(QUESTIONS, ["yes"] * len(QUESTIONS)).columns["accuracy"].values()
    assert np.isnan(values[[0, 1, 4, 5]]).all()
    assert values[[2, 3]].tolist() == [1, 0]


def test_a_runs_own_folders_and_test_records_are_scored(files, tmp_path, capsys):
    records = [{"id": row["question_id"], "images": ["x.jpg"], "meta": row} for row in QUESTIONS]
    given = [{"question_id": row["question_id"], "answer": row["long_answer"]} for row in QUESTIONS]
    folders = []
    for model in ("ft", "lumen"):
        folders.append(tmp_path / f"predict-{model}")
        folders[-1].mkdir()
        rows = [row | {"model": model} for row in given]
        for shard in range(2):
            files(f"predict-{model}/shard-0000{shard}-of-00002.jsonl", rows[shard::2])
        files(f"predict-{model}/manifest.jsonl", [{"shard": 0}])
    words = [*map(str, folders), files("lumen-test.jsonl", records)]
    assert main(words) == 0
    blocks = json.loads(capsys.readouterr().out)["models"]
    assert {name: block["n"] for name, block in blocks.items()} == dict.fromkeys(("ft", "lumen"), len(QUESTIONS))
    assert blocks["lumen"]["rouge_l"] == 1
    (folders[0] / "shard-00001-of-00002.jsonl").unlink()
    assert main(words) == 2
    assert "predict-ft: no whole set of shards (shard-00000-of-00002.jsonl)" in capsys.readouterr().err
