"""A pretended run: phantom patients, their questions, and models that answer right with a known probability."""

from __future__ import annotations

import numpy as np

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.config.schema import Evaluate
from lumen_hpc.data import phantom, phantom_questions
from lumen_hpc.data.probes import CONTROL, probes
from lumen_hpc.language.sentences import sentence
from lumen_hpc.report import composed
from lumen_hpc.report.assemble import Inputs
from lumen_hpc.report.costs import StepLogs
from lumen_hpc.report.results import Results, questions

LEVELLED = ("pleural effusion", "edema")
_LOGS = StepLogs(
    manifest=[{"shard": 0, "of": 1, "seconds": 12.5, "pack": 0, "attempt": 1}],
    attempts=[
        {"pack": 0, "attempt": 1, "event": "began", "node": "n1", "time": 100.0, "cpus": 8, "gpus": 4, "job": "7"},
        {"pack": 0, "attempt": 1, "event": "done", "node": "n1", "time": 145.0, "peak_mb": 300, "job": "7"},
    ],
)
SETTINGS = Evaluate(bootstrap=100, permutations=2000)
SKILL = {"nvila": 0.15, "ft": 0.7, "lumen": 0.9}


def inputs(patients: int = 40, seed: int = 0, skill: dict[str, float] = SKILL, **more) -> Inputs:
    """The inputs of a report; `more` replaces fields."""
    rng = np.random.default_rng(seed)
    records, pictures, study_rows, findings = [], {}, [], {}
    for studies in phantom.patients(seed, Phantom(patients=patients, dicom_every=0, test_fraction=1.0)):
        records += _records(studies, rng)
        for study in studies:
            pictures[str(study.study_id)] = study.pixels
            study_rows.append(
                {
                    "study_id": str(study.study_id),
                    "view": "AP" if study.portable else "PA",
                    "image": str(study.study_id),
                    "taken_at": "2150-08-10T23:55:25",
                }
            )
            findings[str(study.study_id)] = _findings(study.states)
    answers = {model: list(_answers(records, model, p, findings, rng)) for model, p in skill.items()}
    return Inputs(**{
        "records": records, "answers": answers, "studies": study_rows, "findings": findings,
        "scores": {model: list(_scores(records, rows, rng)) for model, rows in answers.items()},
        "rewrites": [_rewrite(record, rng) for record in records],
        "training": {m: [{"step": k, "loss": 4 * 0.99**k + 0.3} for k in range(1, 300)] for m in ("ft", "lumen")},
        "steps": {f"predict-{model}": _LOGS for model in skill},
        "image": pictures.get,
        "training_meta": [record["meta"] for record in records],
        "experts": {study: {"pathologies": {name: 0.9 for name in named}} for study, named in findings.items()},
        "settings": {"train.learning_rate": "0.001"},
        "run": {"name": "pretended", "seed": str(seed)},
    } | more)  # fmt: skip


def results_of(inputs: Inputs, settings: Evaluate = SETTINGS, **more) -> Results:
    """Results with the row `FT + rule`; `more`: fields of Results."""
    answers = [row for rows in inputs.answers.values() for row in rows if not row.get("control")]
    scores = [row for rows in inputs.scores.values() for row in rows if not row.get("canary")]
    results = Results(questions(inputs.records), answers, scores, settings, 0, models=list(inputs.answers), **more)
    results.add_model("ft+rule", composed.answers(inputs.answers["ft"], results.reader))
    return results


def truth(patients: int, seed: int = 0) -> list[dict]:
    """Rows of truth.jsonl of the same phantoms."""
    settings = Phantom(patients=patients, dicom_every=0, test_fraction=1.0)
    return [phantom._truth(study) for studies in phantom.patients(seed, settings) for study in studies]


def _records(studies, rng):
    before, after = studies[:2]
    question_fields = [
        ("diagnostic", *each) for each in phantom_questions.diagnostic(after.states, after.portable, rng)
    ]
    change = phantom_questions.difference(before.states, after.states)
    question_fields += [("pair", *change), ("future", "prediction", "what will change?", change.short_answer)]
    for k, (kind, type, question, short) in enumerate(question_fields):
        long = sentence(type, question, short)
        images = {"pair": [before, after], "future": [before], "diagnostic": [after]}[kind]
        tokens = {"pair": "reference image: <image>\nmain image, 3 days later: <image>", "future": "<image>"}
        id = f"{after.study_id}-{k}"
        yield {
            "id": id,
            "images": [str(study.study_id) for study in images],
            "conversations": [
                {"from": "human", "value": f"{tokens.get(kind, '<image>')}\n{question}"},
                {"from": "gpt", "value": long},
            ],
            "meta": {
                "question_id": id, "type": type, "question": question, "closed": short in ("yes", "no"),
                "short_answer": short, "long_answer": long,
                "interval_days": None if kind == "diagnostic" else after.day - before.day,
                "subject_id": before.subject_id, "study_id": str(after.study_id), "ref_study_id": str(before.study_id),
            },
        }  # fmt: skip


def _answers(records, model, right, findings, rng):
    by_type: dict[str, list[str]] = {}
    for record in records:
        by_type.setdefault(record["meta"]["type"], []).append(record["meta"]["long_answer"])
    for record in records:
        meta = record["meta"]
        blind = model == "ft" and meta["type"] in ("difference", "prediction")
        others = by_type[meta["type"]]
        text = meta["long_answer"] if rng.random() < right else others[rng.integers(len(others))]
        text = "This image shows edema." if blind else text
        yield {"question_id": meta["question_id"], "model": model, "answer": text, "tokens": 9, "seconds": 0.1}
        if model == "ft" and meta["type"] == "difference":
            for probe in probes(record, LEVELLED):
                yield {"question_id": probe["id"], "model": model, "control": CONTROL, "answer": _seen(probe, findings)}
        if model == "lumen" and meta["type"] == "difference":
            yield {
                "question_id": meta["question_id"],
                "model": model,
                "control": "same",
                "answer": "nothing has changed.",
            }


def _seen(probe, findings):
    """What is really in the probe's image."""
    image_findings = findings[probe["images"][0]]
    kind, _, name = probe["id"].split("/", 2)[2].partition("/")
    if kind == "abnormality":
        return f"This image shows {' and '.join(image_findings) or 'no abnormality'}."
    return f"The level of the {name} is {image_findings.get(name, {}).get('level', 'small')}."


def _scores(records, answers, rng):
    expected = {record["meta"]["question_id"]: record["meta"]["long_answer"] for record in records}
    for row in answers:
        if not row.get("control"):
            score = 10 if row["answer"] == expected[row["question_id"]] else int(rng.integers(1, 5))
            judged = {"question_id": row["question_id"], "model": row["model"], "judge": "pretended"}
            yield judged | {"score": score, "expected_score": score - 0.2}
    canary = {"question_id": "x", "model": "lumen", "judge": "pretended", "score": 1}
    for kind in ("opposite", "identity"):
        yield from (canary | {"canary": kind, "passed": bool(rng.random() < 0.9)} for _ in range(20))


def _rewrite(record, rng):
    accepted = bool(rng.random() < 0.9)
    outcome = {"source": "llm", "rejected": []} if accepted else {"source": "fallback", "rejected": ["side differs"]}
    return {"question_id": record["id"], "attempts": 1 + int(rng.integers(3)), "long_answer": "…"} | outcome


def _findings(states):
    return {name: {"level": s.level} if s.level else {} for name, s in states.items() if s.present}
