"""Index of all training records, built before training reads any: lengths, kinds, image groups, faults.

The sample order, the layout over GPUs and the loss's denominators all follow from it, so the ranks need not
exchange them. It is built once, each rank taking its share, and stored with the training's results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.data.records import write_jsonl
from lumen_hpc.distributed import Ranks, gather_json
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic

IMAGE = "<image>"
"""What stands for an image in the first turn."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """Token counts of one record; with a `fault` the counts are meaningless."""

    prefix: int = 0
    """Tokens up to the question, which questions about the same images can share."""
    suffix: int = 0
    """Tokens of the question and the answer."""
    supervised: int = 0
    """Tokens of the answer that the loss counts."""
    fault: str = ""


@dataclass(frozen=True)
class RecordIndex:
    """The usable records, by sample id (0 to n − 1)."""

    rows: np.ndarray
    """[n] int64: the record's row in its file."""
    ids: np.ndarray
    """[n] str."""
    kinds: np.ndarray
    """[n] str: diagnostic, difference or prediction."""
    groups: np.ndarray
    """[n] int64: equal where the images, and the text up to the last of them, are."""
    prefix: np.ndarray
    """[n] int64: tokens that can be shared, those that cannot, and those of the answer that the loss counts."""
    suffix: np.ndarray
    supervised: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def kind(record: dict[str, Any]) -> str:
    """diagnostic (one image, six question types), difference or prediction."""
    return {"difference": "difference", "prediction": "prediction"}.get(record["meta"]["type"], "diagnostic")


def fault(record: dict[str, Any]) -> str:
    """A record's fault, whatever the model: a field of another type, an empty turn, a missing image; empty if none."""
    meta, images, turns = record.get("meta"), record.get("images"), record.get("conversations")
    if not isinstance(meta, dict) or not isinstance(meta.get("type"), str):
        return "it has no meta.type"
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        return "its images are not a list of paths"
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "its conversations are not a list of turns"
    if len(turns) < 2 or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        return "it is not a human turn with an answer"
    for number, turn in enumerate(turns):
        name = "answer" if number % 2 else "question"
        if not isinstance(turn.get("value"), str):
            return f"its {name} is not text (turn {number + 1})"
        if not turn["value"].replace(IMAGE, "").strip():
            return f"its {name} is empty (turn {number + 1})"
        if number and IMAGE in turn["value"]:
            return f"{IMAGE} is in turn {number + 1}; the first turn alone shows images"
    if missing := [image for image in images if not Path(image).is_file()]:
        return f"image {missing[0]} is missing"
    return ""


def survey(
    records: Sequence[dict[str, Any]],
    measure: Callable[[dict[str, Any]], Measure],
    ranks: Ranks,
    *,
    opening: Callable[[dict[str, Any]], str],
    max_tokens: int,
    on_bad: str,
    folder: Path,
    version: str,
) -> RecordIndex:
    """Measures every record, the ranks sharing the work; a UserError names the first bad one, or they are left out.

    `measure` counts a record's tokens; `opening` is equal for records that can share their images;
    `version` names everything that the counts depend on (records, tokenizer).
    With `on_bad="skip"` the bad ones are listed in `folder/rejected.jsonl` with their reasons.
    """
    file = folder / "survey.npz"
    version = hashlib.sha256(f"{version} {max_tokens} {on_bad}".encode()).hexdigest()
    kept = _kept(file, version)
    if all(gather_json(kept is not None)):
        assert kept is not None
        return kept
    share = range(len(records) * ranks.rank // ranks.world_size, len(records) * (ranks.rank + 1) // ranks.world_size)
    mine, broken, row = [], "", share.start
    try:
        for row in share:
            mine.append(_entry(row, records[row], measure, opening, max_tokens))
    except Exception as error:  # sent to the others, which would otherwise wait for this rank, and see it disconnect
        broken = str(error) if isinstance(error, UserError) else f"record {row + 1}: {type(error).__name__}"
        if not isinstance(error, UserError):
            places = "".join(traceback.format_tb(error.__traceback__))  # not its message: it may hold the record's text
            log.error("rank %d cannot measure record %d:\n%s", ranks.rank, row + 1, places)
    parts = gather_json((mine, broken))
    if broken := next((message for _, message in parts if message), ""):
        raise UserError(broken)
    entries = [entry for part, _ in parts for entry in part]
    good = _judge(entries, len(records), on_bad, folder, ranks)
    rows, ids, kinds, openings, *tokens = (np.array(column) for column in zip(*(entry[:7] for entry in good)))
    found = RecordIndex(rows, ids, kinds, numbered(openings), *tokens)
    if ranks.first:
        with atomic(file) as stream:
            np.savez(stream, version=version, **vars(found))
    return found


def numbered(names: np.ndarray) -> np.ndarray:
    """int [n], equal where the names are, counted in the order in which they first appear.

    The sample order depends on these numbers; they must not depend on the images' location, as sorted names would.
    """
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _entry(
    row: int,
    record: dict[str, Any],
    measure: Callable[[dict[str, Any]], Measure],
    opening: Callable[[dict[str, Any]], str],
    max_tokens: int,
) -> tuple:
    """(row, id, kind, opening, prefix, suffix, supervised, fault). Raises UserError for a line that is no record."""
    name = record.get("id")
    if not isinstance(name, str | int) or name == "":
        raise UserError(f"record {row + 1} has no id: it is not an instruction record (docs/data.md)")
    wrong = fault(record)
    counted = Measure(fault=wrong) if wrong else measure(record)
    wrong = counted.fault
    total = counted.prefix + counted.suffix
    if not wrong and total > max_tokens:
        wrong = f"it has {total} tokens, more than train.max_tokens={max_tokens}"
    if not wrong and not counted.supervised:
        wrong = "its answer has no token"
    begins = hashlib.sha256((str(name) if wrong else opening(record)).encode()).hexdigest()[:16]
    group = "" if wrong else kind(record)
    return row, str(name), group, begins, counted.prefix, counted.suffix, counted.supervised, wrong


def _judge(entries: list[tuple], total: int, on_bad: str, folder: Path, ranks: Ranks) -> list[tuple]:
    """The good entries; bad ones stop the training or are listed."""
    bad = [entry for entry in entries if entry[7]]
    ids: set[str] = set()
    for entry in entries:
        if entry[1] in ids:
            raise UserError(f"record {entry[0] + 1} has the id {entry[1]} of an earlier one: ids must differ")
        ids.add(entry[1])
    if bad and on_bad == "stop":
        row, name, *_, reason = bad[0]
        raise UserError(
            f"{len(bad)} of {total} records are bad; the first is record {row + 1} ({name}): {reason}. "
            "fix: repair them, or leave them out with train.on_bad=skip"
        )
    if not entries:
        raise UserError("there is no record to train on")
    if len(bad) == total:
        raise UserError(f"none of the {total} records can be trained on; the first: {bad[0][7]}")
    if ranks.first:
        if bad:
            log.warning("%d of %d records are left out; %s says why", len(bad), total, folder / "rejected.jsonl")
        write_jsonl(folder / "rejected.jsonl", ({"id": entry[1], "row": entry[0], "reason": entry[7]} for entry in bad))
    return [entry for entry in entries if not entry[7]]


def _kept(file: Path, version: str) -> RecordIndex | None:
    """An earlier survey of the same records by the same model."""
    try:
        with np.load(file) as kept:
            if str(kept["version"]) != version:
                return None
            return RecordIndex(**{field.name: kept[field.name] for field in fields(RecordIndex)})
    except (OSError, ValueError, KeyError):
        return None


def describe(found: RecordIndex) -> str:
    """The index in one line: samples, kinds, tokens."""
    kinds, counts = np.unique(found.kinds, return_counts=True)
    kinds_line = ", ".join(f"{count} {name}" for name, count in zip(kinds, counts))
    tokens = int((found.prefix + found.suffix).sum())
    return json.dumps(
        {"samples": len(found), "kinds": kinds_line, "tokens": tokens, "images": len(np.unique(found.groups))}
    )
