"""Answers beside their questions: matched pairs go on, the rest is named and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lumen_hpc.data.diff_vqa import TYPES, is_closed
from lumen_hpc.data.findings_line import strip
from lumen_hpc.errors import UserError
from lumen_hpc.language.clauses import CHANGING
from lumen_hpc.language.json_words import in_words
from lumen_hpc.language.markup import strip_control_tokens, strip_reasoning
from lumen_hpc.metrics.change import expected_change, expected_findings

_MOST_IDS_SHOWN = 5
UNNAMED = "model"
"""What answers without a model's name are called."""
KINDS = (*TYPES, "prediction", "outcome", "timeline")
"""Types of questions."""


class Problems:
    """Defects of the input by kind, each with its count and a few of the ids concerned."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, id: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        shown = self._ids.setdefault(kind, [])
        if len(shown) < _MOST_IDS_SHOWN:
            shown.append(id)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def as_dict(self) -> dict[str, dict]:
        return {kind: {"count": count, "ids": self._ids[kind]} for kind, count in self._counts.items()}

    def lines(self) -> list[str]:
        """One line a kind, for people."""
        return [
            f"{count} {kind}: {', '.join(self._ids[kind])}{', …' if count > _MOST_IDS_SHOWN else ''}"
            for kind, count in self._counts.items()
        ]


@dataclass(frozen=True)
class Joined:
    """Questions that every model answered, in their order, and each model's answers to them."""

    questions: list[dict]
    answers: dict[str, list[str]]
    problems: Problems = field(default_factory=Problems)


def join(
    questions: Iterable[dict],
    answers: Iterable[dict],
    *,
    models: Iterable[str] = (),
) -> Joined:
    """Joins `answers` ({question_id, answer[, model]}) to `questions` (rows with `short_answer` and `long_answer`).

    Only questions that all models answered are kept, so that all numbers are over the same questions; the
    others, answers to unknown questions, rows without an id, doubled ids, unknown types, answers that are not text
    and short answers outside the grammar are counted. `models` are those expected. Raises UserError if no row has an
    id, another field is missing, an expected model has no answer, or no question is left.
    """
    problems = Problems()
    by_id = _questions(questions, problems)
    if not by_id:
        raise UserError("the references hold no question")
    texts_by_model: dict[str, dict[str, str]] = {model: {} for model in models}
    lacks_answer_field, id, unknown_id = True, "", ""
    row: dict = {}
    for id, row in _with_ids(answers, "answer", problems):
        model = str(row.get("model") or "").strip() or UNNAMED
        if row.get("control"):
            problems.add("answers under a control (left out)", id)
        elif id not in by_id:
            problems.add("answers without a question", unknown_id := id)
        elif id in texts_by_model.setdefault(model, {}):
            several = ", of several models each row needs its `model`" if model == UNNAMED else ""
            problems.add(f"doubled answers of {model} (the first is kept{several})", id)
        else:
            texts_by_model[model][id] = answer_text(row, problems, model)
            lacks_answer_field = lacks_answer_field and "answer" not in row
    models_without_answers = [model for model, texts in texts_by_model.items() if not texts]
    if models_without_answers or not texts_by_model:
        ids = f" (answers have {unknown_id[:40]}, questions {next(iter(by_id))[:40]})" if unknown_id else ""
        models_text = ", ".join(models_without_answers) or "any model"
        raise UserError(f"no answers of {models_text} to these {len(by_id)} questions; "
                        f"are the files of one run, and is `question_id` the same in both{ids}?")  # fmt: skip
    if lacks_answer_field:
        raise UserError(
            f"the answer to {id} has no 'answer', nor has any; its fields are {', '.join(row)}; "
            f"{_hint(row, 'short_answer')}"
        )
    common_ids = [id for id in by_id if all(id in texts for texts in texts_by_model.values())]
    for model, texts in texts_by_model.items():
        for id in by_id:
            if id not in texts:
                problems.add(f"questions without an answer of {model} (left out for every model)", id)
    if not common_ids:
        unnamed = f" ({UNNAMED} is that of rows without one)" if UNNAMED in texts_by_model else ""
        raise UserError(
            f"no question was answered by all of {', '.join(texts_by_model)}{unnamed}; score them one at a time"
        )
    rows = [by_id[id] for id in common_ids]
    return Joined(rows, {model: [texts[id] for id in common_ids] for model, texts in texts_by_model.items()}, problems)


def _with_ids(rows: Iterable[dict], what: str, problems: Problems) -> Iterator[tuple[str, dict]]:
    """(question_id, row) of the rows that have one; the others are counted, and refused where all are such."""
    row_count, row_without_id = 0, None
    for number, row in enumerate(rows, 1):
        if row.get("question_id") in (None, ""):
            problems.add(f"{what}s without a question_id (left out)", f"row {number}")
            row_without_id = row
        else:
            row_count += 1
            yield _id(row["question_id"]), row
    if row_without_id is not None and not row_count:
        fields = ", ".join(row_without_id) or "none"
        other = {"answer": "short_answer", "reference": "answer"}[what]
        raise UserError(
            f"no {what} has a 'question_id'; fields of the last are {fields}; {_hint(row_without_id, other)}"
        )


def _id(value: Any) -> str:
    """An id as text; pandas writes a column of whole numbers with one missing as 7.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _hint(row: dict, other: str) -> str:
    """What would do about a row without its fields: files in the other order (a field `other`), or other names."""
    if other in row:
        return "name the files of answers first and that of references last"
    return "rename them as docs/evaluation.md has them"


def _questions(rows: Iterable[dict], problems: Problems) -> dict[str, dict]:
    """The questions by id, each with `closed`."""
    questions: dict[str, dict] = {}
    for id, row in _with_ids(rows, "reference", problems):
        if id in questions:
            problems.add("doubled questions (the first is kept)", id)
            continue
        texts = {name: _text(row, name, id, problems) for name in ("type", "short_answer", "question", "long_answer")}
        if missing_fields := [name for name in ("type", "short_answer") if row.get(name) is None]:
            name = missing_fields[0]
            if name in row:
                raise UserError(f"question {id}: its {name!r} is null; give it a text")
            raise UserError(f"question {id} has no {name!r}; its fields are {', '.join(row)}; {_hint(row, 'answer')}")
        if is_closed(bare := texts["short_answer"].strip(" .!")):
            texts["short_answer"] = bare
        short, kind = texts["short_answer"], texts["type"].strip().lower()
        noted_closed = row.get("closed")
        closed = kind == "presence" or (noted_closed if isinstance(noted_closed, bool) else is_closed(short))
        if closed and not is_closed(short):
            problems.add("closed questions whose short answer is not yes or no (counted as open)", id)
            closed = False
        if not texts["long_answer"]:
            problems.add("questions without a long answer (no long BLEU-4 and ROUGE-L)", id)
        if kind not in KINDS:
            problems.add(f"questions of another type than {', '.join(KINDS)} (no change or finding F1)", id)
        fields = {**texts, "closed": closed, "type": kind}
        if not _readable(fields):
            problems.add(f"{kind} answers outside the grammar (no change or finding F1)", id)
        questions[id] = row if fields.items() <= row.items() else {**row, **fields}
    return questions


def _readable(row: dict) -> bool:
    if row["type"] in CHANGING:
        return expected_change(row) is not None
    return row["type"] != "abnormality" or row["closed"] or expected_findings(row) is not None


def answer_text(row: Mapping[str, Any], problems: Problems | None = None, model: str = UNNAMED) -> str:
    """What is scored of an answer row: a value of JSON in words, nothing for null, and no reasoning, control token or
    findings line. `problems` counts all but the lines.
    """
    problems = Problems() if problems is None else problems
    answer, id = row.get("answer"), _id(row["question_id"])
    if answer is None:
        problems.add(f"answers of {model} that are null (scored as no answer)", id)
        return ""
    if not isinstance(answer, str):
        problems.add(f"answers of {model} that are not text (a list is read as its items)", id)
        return strip(in_words(answer))
    if not answer.strip():
        problems.add(f"answers of {model} that are empty (scored as no answer)", id)
        return ""
    if (visible := strip_reasoning(answer)) != answer:
        problems.add(f"answers of {model} with reasoning in tags (left out)", id)
    if (text := strip_control_tokens(visible)) != visible:
        problems.add(f"answers of {model} with control tokens (left out)", id)
    return strip(text)


def _text(row: dict, name: str, id: str, problems: Problems) -> str:
    """A text of a reference, empty where it is null; a list of texts is read as its items, and counted."""
    value = row.get(name)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        problems.add(f"references whose {name} is a list (read as its items)", id)
        return ", ".join(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"question {id}: its {name} is of type {type(value).__name__}, not text; write it as text")
    return value or ""
