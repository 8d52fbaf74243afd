"""Index of all training records, built before training reads any: lengths, kinds, image groups, faults.

The sample order, the layout over GPUs and the loss's denominators all follow from it, so the ranks need not
exchange them. It is built once, in blocks that the ranks share and that a stopped job leaves to its successor, and
stored with the training's results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import traceback
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.config.schema import KINDS
from lumen_hpc.data.diff_vqa import DIAGNOSTIC
from lumen_hpc.data.instructions import kind
from lumen_hpc.data.perturbations import IMAGE
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.distributed import Ranks, broadcast_json, on_any_rank, raised_together
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic
from lumen_hpc.nvila import Preprocessor
from lumen_hpc.training.fitting import Fitted, fit
from lumen_hpc.training.lengths import Measure, Record, measure, opening
from lumen_hpc.watchdog import Beat, unwatched

BLOCK = 4096
"""Records that are measured, and saved, at a time."""
TYPES = (*DIAGNOSTIC, *KINDS)
"""What `meta.type` may be."""
FILE = "record_index.npz"
PARTS = "record_index"
"""Folder of the blocks of an unfinished index."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
"""Characters that no text has: controls but tab and line ends, and what stands for a byte that was lost."""
_MISSING = frozenset({"nan", "nat", "null", "undefined", "<na>", "n/a", "#n/a", "#ref!", "#value!", "[object object]"})
"""How programs write that there is no text."""

log = logging.getLogger(__name__)


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
    images_left_out: np.ndarray
    """[n] int64: how many of the record's oldest images are not shown (`fitting.fit`)."""

    def __len__(self) -> int:
        return len(self.rows)


def fault(record: Record) -> str:
    """A record's fault, whatever the model: a field of another type, an empty turn, a missing image; empty if none."""
    meta, images, turns = record.get("meta"), record.get("images"), record.get("conversations")
    if not _id(record):
        return "it has no id"
    if not isinstance(meta, dict) or not isinstance(meta.get("type"), str):
        return "it has no meta.type"
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        return "its images are not a list of paths"
    if wrong := _wrong_notes(meta, len(images)):
        return wrong
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "its conversations are not a list of turns"
    if len(turns) < 2 or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        return "it is not a human turn with an answer"
    for number, turn in enumerate(turns):
        name = "answer" if number % 2 else "question"
        if not isinstance(turn.get("value"), str):
            return f"its {name} is not text (turn {number + 1})"
        if _CONTROLS.search(turn["value"]):
            return f"its {name} has control characters or lost ones (turn {number + 1})"
        if not any(map(str.isalnum, turn["value"].replace(IMAGE, ""))):  # signs that no one sees are no text
            return f"its {name} is empty (turn {number + 1})"
        if turn["value"].replace(IMAGE, "").strip(" .\n").lower() in _MISSING:
            return f"its {name} is a missing value (turn {number + 1})"
        if number and IMAGE in turn["value"]:
            return f"{IMAGE} is in turn {number + 1}; the first turn alone shows images"
    if missing := [image for image in images if not _is_file(image)]:
        return f"image {missing[0]} is missing"
    return ""


def _wrong_notes(meta: dict[str, Any], images: int) -> str:
    """What is wrong with the notes that the index reads; empty if nothing is."""
    if meta["type"] not in TYPES:
        return f"its meta.type is none of {', '.join(TYPES)}"
    sizes = meta.get("sizes") or []
    if not isinstance(sizes, list) or (sizes and len(sizes) != images) or not all(map(_is_size, sizes)):
        return "its meta.sizes are not a [width, height] in pixels for each image"
    if not _whole(meta.get("needed_images", 0), 0):
        return "its meta.needed_images is not a whole number"
    return ""


def _is_size(size: Any) -> bool:
    sides = size if isinstance(size, list) and len(size) == 2 else [] if size else [1]  # null: read from the file
    return bool(sides) and all(_whole(side, 1) for side in sides)


def _whole(value: Any, least: int) -> bool:
    """True for a whole number from `least`; json's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _id(record: Record) -> str:
    """A record's id as text; empty if it has none."""
    name = record.get("id")
    return str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""


@lru_cache(maxsize=1 << 18)
def _is_file(path: str) -> bool:
    """Asked once an image, since several questions show it."""
    try:
        return Path(path).is_file()
    except OSError:  # a name of thousands of characters
        return False


def build(
    records: Sequence[Record],
    preprocessor: Preprocessor,
    ranks: Ranks,
    *,
    max_tokens: int,
    on_bad: str,
    folder: Path,
    version: str,
    should_stop: Callable[[], bool] = lambda: False,
    beat: Beat = unwatched,
) -> RecordIndex | None:
    """Measures every record, the ranks sharing the work; a UserError names the first bad one, or they are left out.

    `version` names everything that their lengths depend on (records, tokenizer).
    With `on_bad="skip"` the bad ones are listed in `folder/rejected.jsonl` with their reasons. Those that lose their
    oldest images, so that they fit into `max_tokens`, are listed in `folder/images_left_out.jsonl`.
    Returns None if a rank was asked to stop; the next call goes on from the blocks that were measured.
    """
    file = folder / FILE
    version = hashlib.sha256(f"{version} {max_tokens} {on_bad} fitted".encode()).hexdigest()
    # The others look the file up once it is there: some file systems remember for a while that it was not.
    if broadcast_json(ranks.first and _kept(file, version) is not None):
        return _kept(file, version)
    stopped = False
    with raised_together():
        for block in range(ranks.rank, -(-len(records) // BLOCK), ranks.world_size):
            if stopped := should_stop():
                break
            beat(f"indexes records from {block * BLOCK + 1}")
            if _read(_part(folder, block), version) is None:
                rows = range(block * BLOCK, min(len(records), (block + 1) * BLOCK))
                _write(_part(folder, block), version, _measured(records, rows, preprocessor, max_tokens))
    if on_any_rank(stopped):
        return None
    with raised_together():
        if ranks.first:
            _join(folder, file, version, len(records), on_bad)
    found = _kept(file, version)
    if found is None:
        raise UserError(f"{file} cannot be read back: is the folder shared between the nodes?")
    return found


def numbered(names: np.ndarray) -> np.ndarray:
    """int [n], equal where the names are, counted in the order in which they first appear.

    The sample order depends on these numbers; they must not depend on the images' location, as sorted names would.
    """
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _measured(
    records: Sequence[Record], rows: Sequence[int], preprocessor: Preprocessor, max_tokens: int
) -> dict[str, np.ndarray]:
    """Columns of one block, a row a record; `faults` is empty for a good one.

    Raises UserError for a line that is no record, and naming the record at which `measure` itself fails.
    """
    block, row = [], rows[0]
    try:
        for row in rows:
            block.append(records[row])
        faults = [fault(record) for record in block]
        sound = [record for record, wrong in zip(block, faults) if not wrong]
        fitting = partial(fit, measure=partial(measure, preprocessor=preprocessor), max_tokens=max_tokens)
        good = iter(_each(sound, fitting, [row for row, wrong in zip(rows, faults) if not wrong]))
        found = [
            Fitted(record, Measure(fault=wrong), 0) if wrong else next(good) for record, wrong in zip(block, faults)
        ]
    except UserError:
        raise
    except Exception as error:
        raise _unforeseen(row, error) from None
    faults = [_unfit(one.measure, max_tokens) for one in found]
    ids = [_id(record) for record in block]
    begins = [id if wrong else opening(one.record) for id, one, wrong in zip(ids, found, faults)]
    return {
        "rows": np.array(rows, dtype=np.int64),
        "ids": np.array(ids),
        "kinds": np.array(["" if wrong else kind(record) for record, wrong in zip(block, faults)]),
        "groups": np.array([int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) for text in begins], np.uint64),
        **{
            name: np.array([getattr(one.measure, name) for one in found], np.int64)
            for name in ("prefix", "suffix", "supervised")
        },
        "images_left_out": np.array([one.left_out for one in found], np.int64),
        "faults": np.array(faults),
    }


def _each(
    records: Sequence[Record], fitting: Callable[[Sequence[Record]], list[Fitted]], rows: Sequence[int]
) -> list[Fitted]:
    """Some records, fitted; where that fails, one by one, to name the record that it fails at."""
    try:
        return fitting(records)
    except Exception:
        for row, record in zip(rows, records):
            try:
                fitting([record])
            except Exception as error:
                raise _unforeseen(row, error) from None
        raise


def _unforeseen(row: int, error: Exception) -> UserError:
    """What the user sees of an error in this project's code; the log says where it was raised."""
    places = "".join(traceback.format_tb(error.__traceback__))  # not its message: it may hold the record's text
    log.error("record %d cannot be measured:\n%s", row + 1, places)
    return UserError(f"record {row + 1}: {type(error).__name__}")


def _unfit(counted: Measure, max_tokens: int) -> str:
    """A measured record's fault; empty if none."""
    if counted.fault:
        return counted.fault
    if counted.total > max_tokens:
        return f"it has {counted.total} tokens, more than train.max_tokens={max_tokens}"
    return "" if counted.supervised else "its answer has no token"


def _join(folder: Path, file: Path, version: str, total: int, on_bad: str) -> None:
    """Rank 0: the blocks become the index; bad records stop the training or are listed."""
    if not total:
        raise UserError("there is no record to train on")
    parts = [_part(folder, block) for block in range(-(-total // BLOCK))]
    read = [_read(part, version) for part in parts]
    if missing := next((part for part, columns in zip(parts, read) if columns is None), None):
        raise UserError(f"{missing}, which another rank wrote, cannot be read: is the folder shared between the nodes?")
    columns = {name: np.concatenate([part[name] for part in read if part]) for name in read[0] or {}}
    _judge(columns, on_bad, folder)
    good = columns.pop("faults") == ""
    columns = {name: column[good] for name, column in columns.items()}
    _write(file, version, {**columns, "groups": numbered(columns["groups"])})
    for part in parts:
        part.unlink()
    with suppress(OSError):  # another index's blocks, of other records, may lie there
        (folder / PARTS).rmdir()


def _judge(columns: dict[str, np.ndarray], on_bad: str, folder: Path) -> None:
    """Refuses doubled ids, and bad records unless they are to be left out; those are listed."""
    ids, faults = columns["ids"], columns["faults"]
    named = np.flatnonzero(ids != "")
    _, first = np.unique(ids[named], return_index=True)
    if len(first) < len(named):
        again = int(np.setdiff1d(named, named[first])[0])
        raise UserError(f"record {again + 1} has the id {ids[again]} of an earlier one: ids must differ")
    bad = np.flatnonzero(faults != "").tolist()
    if bad and on_bad == "stop":
        first_bad = f"record {bad[0] + 1}" + (f" ({ids[bad[0]]})" if ids[bad[0]] else "")
        raise UserError(
            f"{len(bad)} of {len(ids)} records are bad; the first is {first_bad}: {faults[bad[0]]}. "
            "fix: repair them, or leave them out with train.on_bad=skip"
        )
    if len(bad) == len(ids):
        raise UserError(f"none of the {len(ids)} records can be trained on; the first: {faults[0]}")
    if bad:
        log.warning("%d of %d records are left out; %s says why", len(bad), len(ids), folder / "rejected.jsonl")
    rejected = ({"id": str(ids[row]), "row": row, "reason": str(faults[row])} for row in bad)
    write_jsonl(folder / "rejected.jsonl", rejected)
    _list_fewer_images(columns, folder)


def _list_fewer_images(columns: dict[str, np.ndarray], folder: Path) -> None:
    """Lists the good records that lost their oldest images, each with their number; the log has the sum."""
    counts = np.where(columns["faults"] == "", columns["images_left_out"], 0)
    fewer = np.flatnonzero(counts).tolist()
    file = folder / "images_left_out.jsonl"
    if fewer:
        log.warning(
            "%d of %d records are too long for train.max_tokens and lose their oldest images, %d in all; %s lists them",
            len(fewer), len(counts), counts.sum(), file,
        )  # fmt: skip
    write_jsonl(file, ({"id": str(columns["ids"][row]), "row": row, "images": int(counts[row])} for row in fewer))


def _part(folder: Path, block: int) -> Path:
    return folder / PARTS / f"{block:06d}.npz"


def _write(file: Path, version: str, columns: dict[str, np.ndarray]) -> None:
    with atomic(file) as stream:
        np.savez(stream, allow_pickle=False, version=np.array(version), **columns)


def _read(file: Path, version: str) -> dict[str, np.ndarray] | None:
    """Columns of the same records by the same model; None where there are none."""
    try:
        with np.load(file) as kept:
            if str(kept["version"]) != version:
                return None
            return {name: kept[name] for name in kept.files if name != "version"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _kept(file: Path, version: str) -> RecordIndex | None:
    """An earlier index of the same records by the same model."""
    columns = _read(file, version) or {}
    names = {field.name for field in fields(RecordIndex)}
    return RecordIndex(**columns) if columns.keys() == names else None


def describe(found: RecordIndex) -> str:
    """The index in one line: samples, kinds, tokens."""
    kinds, counts = np.unique(found.kinds, return_counts=True)
    kinds_line = ", ".join(f"{count} {name}" for name, count in zip(kinds, counts))
    tokens = int((found.prefix + found.suffix).sum())
    return json.dumps(
        {"samples": len(found), "kinds": kinds_line, "tokens": tokens, "images": len(np.unique(found.groups))}
    )
