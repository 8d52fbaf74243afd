"""Scores any model's answers: `python -m lumen_hpc.metrics answers.jsonl references.jsonl`.

answers.jsonl:     {"question_id", "answer"[, "model"]}
references.jsonl:  {"question_id", "type", "question", "short_answer", "long_answer", "closed"}

A run's own files do too: `python -m lumen_hpc.metrics runs/demo/predict-* runs/demo/instruct/lumen-test.jsonl`.

One JSON object goes to stdout (values 0 to 1, null where a measure applies to nothing, a block per type under
`types`; with several models a block per model under `models`), a table and what did not fit to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

try:
    import numba  # noqa: F401
    import numpy as np
except ModuleNotFoundError as missing:  # a login node's environment
    print(
        f"error: {sys.executable} lacks a package that scores need ({missing}); pip install '.[metrics]' in a checkout",
        file=sys.stderr,
    )
    sys.exit(2)
import orjson

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.metrics.change import Reader
from lumen_hpc.metrics.join import Joined, join
from lumen_hpc.metrics.lexical import TOKENIZERS
from lumen_hpc.metrics.measures import MEASURES, Samples
from lumen_hpc.plain_text import visible

_TABLE_MEASURES = ("bleu4", "rouge_l", "recall", "accuracy", "change_f1", "finding_f1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lumen_hpc.metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("answers", nargs="+", help="JSON lines of answers, or a step's folder of shards")
    parser.add_argument("references", help="JSON lines of questions with their answers, or a run's test records")
    options = parser.parse_args(arguments)
    try:
        answers = chain.from_iterable(_rows(path, files(path)) for path in map(_path, options.answers))
        joined = join(references(_rows(references_path := _path(options.references), [references_path])), answers)
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; give the paths of answers and references", file=sys.stderr)
        return 2
    blocks = score(joined)
    for line in [*_table(blocks), *(f"note: {line}" for line in joined.problems.lines())]:
        print(visible(line), file=sys.stderr)
    single = len(blocks) == 1
    result = {"model": next(iter(blocks)), **next(iter(blocks.values()))} if single else {"models": blocks}
    result |= {"problems": joined.problems.as_dict(), "definitions": MEASURES | TOKENIZERS}
    return _print_scores(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())


def _print_scores(text: str) -> int:
    """Exit code 0, or 2 with a line where the scores could not be written: a full disk."""
    try:
        print(text, flush=True)
    except OSError as error:
        print(f"error: the scores cannot be written: {error.strerror}; free some space", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would be written at the end
        return 2
    return 0


def _path(word: str) -> Path:
    """A file or folder; `-` is standard input."""
    return Path("/dev/stdin" if word == "-" else word)


def _rows(path: Path, files_: Iterable[Path]) -> Iterator[dict]:
    """The rows of an argument's files. Raises UserError where they hold none, and for a folder without shards."""
    is_empty = True
    for file in files_:
        if file.is_dir():
            raise UserError(f"{file} is a folder; references come last, a file: of a run instruct/lumen-test.jsonl")
        for row in read_jsonl(file, pipe=True):
            is_empty = False
            yield row
    if is_empty:
        raise UserError(f"{path} is empty; it should hold one JSON object a line")


def references(rows: Iterable[dict]) -> Iterator[dict]:
    """Question rows; an instruction record's (`instruct/lumen-test.jsonl`) is its `meta`."""
    for row in rows:
        meta = row.get("meta")
        yield meta if isinstance(meta, dict) and "question_id" in meta else row


def files(path: Path) -> list[Path]:
    """A file itself, or the shards of a step's folder. Raises UserError for a folder without a whole set of them."""
    if not path.is_dir():
        return [path]
    shards = sorted(path.glob("shard-*-of-*.jsonl"))
    if not shards and (steps := sorted(path.glob("predict-*"))):
        raise UserError(f"{path} is a run's folder; name its answers: {' '.join(map(str, steps))}")
    counts = {shard.stem.rsplit("-", 1)[1] for shard in shards}
    if len(counts) != 1 or len(shards) != int(*counts):
        shard_names = ", ".join(shard.name for shard in shards) or "none"
        raise UserError(
            f"{path}: no whole set of shards ({shard_names}); finish the stage, or name the files themselves"
        )
    return shards


def score(joined: Joined) -> dict[str, dict]:
    """Each model's summary over all questions, with one per type under `types`."""
    reader = Reader.of(joined.questions)
    blocks = {}
    for model, answers in joined.answers.items():
        samples = Samples(joined.questions, answers, reader)
        types = {str(kind): samples.summary(samples.types == kind) for kind in np.unique(samples.types)}
        blocks[model] = samples.summary() | {"types": types}
    return blocks


def _table(blocks: dict[str, dict]) -> list[str]:
    lines = [f"{'model':<16}{'type':<14}{'n':>8}" + "".join(f"{name:>12}" for name in _TABLE_MEASURES)]
    for model, block in blocks.items():
        for kind, scores in [("all", block), *block["types"].items()]:
            cells = ("" if scores[name] is None else f"{scores[name]:.3f}" for name in _TABLE_MEASURES)
            lines.append(f"{model:<16}{kind:<14}{scores['n']:>8}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it as it ends any command
    sys.exit(main())
