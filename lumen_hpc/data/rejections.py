"""Rejected rows: each is recorded with its file, row and reason, and their share is held to a limit."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import orjson

from lumen_hpc.data.tables import Place
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic


class Rejections:
    """Collects bad rows in `rejected.jsonl` and decides whether the stage continues.

    Rows of the file: `{"file", "row", "line", "kind", "reason"}` and the caller's own fields (ids, the offending
    value). Reasons may reach a log, so they carry ids and never the text of a record.
    """

    def __init__(self, path: Path, on_bad: str, max_bad: float):
        self.path = path
        self.on_bad = on_bad
        self.max_bad = max_bad
        self.kinds: Counter[str] = Counter()
        self.questions = 0
        self.first = ""
        self._output = atomic(path)

    def __enter__(self) -> Rejections:
        self._file = self._output.__enter__()
        return self

    def __exit__(self, *_) -> None:
        # The list is kept even if the stage fails: the user repairs the input with it.
        self._output.__exit__(None, None, None)

    def __call__(self, place: Place, kind: str, reason: str, **details) -> None:
        """Records one bad row."""
        self.kinds[kind] += 1
        self.first = self.first or f"{place}: {reason}"
        row = {**place._asdict(), "kind": kind, "reason": reason, **details}
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def question(self, place: Place, kind: str, reason: str, **details) -> None:
        """Records one bad row that loses a question."""
        self.questions += 1
        self(place, kind, reason, **details)

    def verdict(self, questions_read: int) -> None:
        """Raises UserError if there are bad rows and `on_bad=stop`, or if too many questions are lost."""
        total = self.kinds.total()
        if not total:
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        message = f"{self.first} ({total} bad row{'s' * (total > 1)} in all: {kinds}; every one is in {self.path}"
        share = self.questions / max(questions_read, 1)
        too_many = share > self.max_bad
        if self.on_bad == "skip":
            if not too_many:
                return
            message += (
                f"; {self.questions} of {questions_read} questions are lost, {share:.2%}, and "
                f"prepare.max_bad={self.max_bad} allows {self.max_bad:.2%}"
            )
        fix = "repair them"
        if share < 1:  # a download of some patients alone needs a higher limit
            limit = f" prepare.max_bad={math.ceil(share * 100) / 100}" if too_many else ""
            fix += f", or leave them out with prepare.on_bad=skip{limit}"
        raise UserError(f"{message}; {fix})")
