"""A model, the best reader there can be, and cheats, scored by a run's own report: which gate or row shows each.

    python benchmarks/cheats.py runs/demo                # a finished phantom run; about two minutes
    python benchmarks/cheats.py runs/demo --judge        # with the run's judge too, if that is the grammar's rule
    python benchmarks/cheats.py runs/demo --ideal        # with the best reader in the place of the models

Each cheat (sandbox/cheats.py) takes the place of the run's principal model and answers its test questions, controls and
single-image probes; the other models' answers stay. `caught by` names the gates that it fails and the model does not.
`shown by` names what on the page tells it from a model that learned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.errors import UserError
from sandbox.cheat_scores import COLUMNS, Scored, score
from sandbox.cheats import CHEATS, World, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished phantom run")
    parser.add_argument("--judge", action="store_true", help="score every cheat's answers by the grammar's rule too")
    parser.add_argument("--ideal", action="store_true", help="the best reader in the place of the run's models")
    options = parser.parse_args()
    if not (options.run / "config.yaml").is_file():
        parser.error(f"{options.run} is no run: it has no config.yaml; `make demo` makes runs/demo")
    try:
        inputs, settings, seed = run_inputs(options.run, ideal=options.ideal)
    except UserError as error:
        parser.error(str(error))
    world = World.of(inputs)
    scores_of: list[Scored] = []
    head = ("answerer", "difference F1 / ROUGE-L", "prediction F1 / BLEU-4 / ROUGE-L / judge",
            "recall / precision / accuracy / polarity / finding F1", "gates passed", "caught by",
            "shown by")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for cheat in CHEATS:
        answers = list(rows(cheat, world))
        scores = judge_scores(inputs, answers) if options.judge else ()
        learned = (
            [*inputs.training_meta, *(r["meta"] for r in inputs.records)] if cheat.learns_test else inputs.training_meta
        )
        scores_of.append(score(replace(inputs, training_meta=learned), settings, seed, cheat.name, answers, scores))
        print(line(scores_of[-1], scores_of[0]), flush=True)


def run_inputs(folder: Path, *, ideal: bool = False) -> tuple[Any, Evaluate, int]:
    """The report's inputs of a finished run, read once, with its evaluation settings and seed.

    With `ideal`, the best reader there can be (sandbox/cheats.py) answers as `lumen` and `ft`.
    """
    from jobs import evaluate
    from lumen_hpc.cluster.stage import Run, Step, Task
    from lumen_hpc.config import config_file

    settings, profile = config_file.load(folder / "config.yaml")
    inputs = evaluate.inputs(Task(Run(folder.resolve(), settings, profile), Step(evaluate.STAGE, "")))
    if not inputs.truth:
        raise UserError(f"{folder} has no phantoms: of other data nobody knows what the images show")
    # Streams, each read by every answerer.
    inputs = replace(inputs, records=list(inputs.records), training_meta=list(inputs.training_meta))
    answers = {} if ideal else {model: list(rows_of_model) for model, rows_of_model in inputs.answers.items()}
    if ideal:
        reader = next(cheat for cheat in CHEATS if cheat.name == "ideal reader")
        ideal_answers = list(rows(reader, World.of(replace(inputs, answers={"lumen": []}, training_meta=[]))))
        answers = {model: [row | {"model": model} for row in ideal_answers] for model in ("ft", "lumen")}
    return replace(inputs, answers=answers, scores={}), settings.evaluate, settings.seed


def judge_scores(inputs: Any, answers: Sequence[dict]) -> list[dict]:
    """The grammar rule's scores of the answers."""
    from lumen_hpc.config.schema import EngineSettings, Judge
    from lumen_hpc.language.engine import open_engine
    from lumen_hpc.language.judge import score as judge

    meta = {record["meta"]["question_id"]: record["meta"] for record in inputs.records}
    items = [
        {"question_id": row["question_id"], "model": "lumen", "type": (m := meta[row["question_id"]])["type"],
         "question": m["question"], "short_answer": m["short_answer"], "long_answer": m["long_answer"],
         "answer": row["answer"]}
        for row in answers if not row.get("control") and row["question_id"] in meta
    ]  # fmt: skip
    return list(judge(items, open_engine(EngineSettings()), Judge(canaries=0), 0))


def line(scored: Scored, model: Scored) -> str:
    """An answerer as a row of a Markdown table."""

    def cells(*columns: tuple[str, str]) -> str:
        return " / ".join("–" if scored.values[c] is None else f"{scored.values[c]:.3f}" for c in columns)

    new_failures = [gate for gate in scored.failed if gate not in model.failed]
    gate_names = "; ".join(new_failures[:2]) + (f"; and {len(new_failures) - 2} more" if len(new_failures) > 2 else "")
    parts = (scored.name, cells(*COLUMNS[:2]), cells(*COLUMNS[2:6]), cells(*COLUMNS[6:]),
             f"{scored.gates - len(scored.failed)} of {scored.gates}", gate_names or "none",
             "; ".join(scored.shown) or "nothing")  # fmt: skip
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    main()
