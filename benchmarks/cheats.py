"""Seven answerers, six of them cheats, scored by a run's own report: which gate catches each, which row shows it.

    python benchmarks/cheats.py runs/demo                # a finished phantom run; about two minutes
    python benchmarks/cheats.py runs/demo --judge        # with the run's judge too, if that is the grammar's rule

Each cheat (sandbox/cheats.py) takes the place of the run's principal model and answers its test questions, controls and
single-image probes; the other models' answers stay. `caught by` names the gates that it fails and the model does not.
`shown by` names what on the page tells it from a model that learned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report import baselines, ceilings, composed, gates
from lumen_hpc.report.comparison import comparison
from lumen_hpc.report.controls import controls
from lumen_hpc.report.results import COMPOSED, Results, questions
from sandbox.cheats import CHEATS, World, rows

COLUMNS = (("difference", "change_f1"), ("difference", "rouge_l"), ("prediction", "change_f1"), ("prediction", "bleu4"),
           ("prediction", "rouge_l"), ("prediction", "judge"), ("diagnostic", "recall"), ("diagnostic", "precision"),
           ("diagnostic", "accuracy"), ("diagnostic", "accuracy_polarity"), ("diagnostic", "finding_f1"))  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """One answerer under the report's own eyes."""

    name: str
    values: dict[tuple[str, str], float | None]
    failed: tuple[str, ...]
    """Gates that it fails."""
    shown: tuple[str, ...]
    """What the page says that tells it from a model that learned."""


def score(
    inputs: Any, settings: Evaluate, seed: int, name: str, answers: Sequence[dict], scores: Sequence[dict]
) -> Scored:
    """The report's numbers, gates and statements with `answers` in the place of the principal model's."""
    everyone = {**inputs.answers, "lumen": answers}
    results = Results(
        questions(inputs.records),
        (row | {"model": model} for model, each in everyone.items() for row in each if not row.get("control")),
        scores,
        settings,
        seed,
        models=list(everyone),
        identity=inputs.identity,
    )
    for model, each in everyone.items():
        if texts := composed.answers(each, results.reader):
            results.add_model(model + COMPOSED, texts)
    rule = results.cell("difference", "change_f1", "lumen" + COMPOSED).value
    learned = baselines.answers(results.questions, inputs.learned, inputs.findings, inputs.pathologies)
    for model, texts in learned.items():
        results.add_model(model, texts)
    oracles = ceilings.oracles(results, Path(inputs.truth))
    checks = gates.phantom_gates(results, controls(results, everyone, inputs.findings), oracles)
    values = {column: results.cell(*column, "lumen").value for column in COLUMNS}
    failed = tuple(gate.name for gate in checks if not gate.passed)
    return Scored(name, values, failed, tuple(_statements(results, values, rule)))


def _statements(results: Results, values: dict, rule: float | None) -> list[str]:
    """What the page says of the principal model that a reader holds against it."""
    found = []
    compared = comparison(results)
    if compared and not compared.shown:
        own = values["difference", "change_f1"]
        found.append(f"row LUMEN + rule: change F1 {rule:.3f} by separate readings, the model {own:.3f}")
    for name in ("persistence", "question", "prior", "experts+rule"):
        if name not in results.samples:
            continue
        for block in ("difference", "prediction"):
            cell = results.cell(block, "change_f1", name, tested=True)
            if cell.difference and cell.difference.high is not None and cell.difference.high >= 0:
                found.append(f"row {results.label(name)}: no worse at {block} change F1 ({cell.value:.3f})")
    recall, precision = values["diagnostic", "recall"], values["diagnostic", "precision"]
    if recall and precision is not None and precision < 0.5:
        found.append(f"column Precision: {precision:.3f} beside recall {recall:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished phantom run")
    parser.add_argument("--judge", action="store_true", help="score every cheat's answers by the grammar's rule too")
    chosen = parser.parse_args()
    inputs, settings, seed = run_inputs(chosen.run)
    world = World.of(inputs)
    scored = []
    for cheat in CHEATS:
        answers = list(rows(cheat, world))
        scores = judged(inputs, answers) if chosen.judge else ()
        scored.append(score(inputs, settings, seed, cheat.name, answers, scores))
        print(line(scored[-1], scored[0]), flush=True)


def run_inputs(folder: Path) -> tuple[Any, Evaluate, int]:
    """The report's inputs of a finished run, read once, with its evaluation settings and seed."""
    from jobs import evaluate
    from lumen_hpc.cluster.stage import Run, Step, Task
    from lumen_hpc.config import saved

    settings, profile = saved.load(folder / "config.yaml")
    inputs = evaluate.inputs(Task(Run(folder.resolve(), settings, profile), Step(evaluate.STAGE, "")))
    answers = {model: list(each) for model, each in inputs.answers.items()}
    return replace(inputs, answers=answers, learned=list(inputs.learned), scores={}), settings.evaluate, settings.seed


def judged(inputs: Any, answers: Sequence[dict]) -> list[dict]:
    """The grammar rule's scores of the answers."""
    from lumen_hpc.config.schema import EngineSettings, Judge
    from lumen_hpc.language.engine import open_engine
    from lumen_hpc.language.judge import score as judge

    meta = {record["meta"]["question_id"]: record["meta"] for record in inputs.records}
    items = [
        {"question_id": row["question_id"], "model": "lumen", "type": (m := meta[row["question_id"]])["type"],
         "question": m["question"], "short_answer": m["short_answer"], "reference": m["long_answer"],
         "answer": row["answer"]}
        for row in answers if not row.get("control") and row["question_id"] in meta
    ]  # fmt: skip
    return list(judge(items, open_engine(EngineSettings()), Judge(canaries=0), 0))


def line(one: Scored, model: Scored) -> str:
    """An answerer as lines of text."""
    cells = "  ".join(f"{block[:4]}.{measure} {value:.3f}" if value is not None else f"{block[:4]}.{measure} –"
                      for (block, measure), value in one.values.items())  # fmt: skip
    caught = [gate for gate in one.failed if gate not in model.failed]
    return "\n".join([
        f"{one.name}", f"    {cells}", f"    caught by {len(caught)} gates: {'; '.join(caught) or 'none'}",
        f"    shown by: {'; '.join(one.shown) or 'nothing'}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
