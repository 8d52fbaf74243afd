"""Indexes all training records before a training: lengths, kinds, image groups, faults.

The sample order, the layout over GPUs and the loss's denominators all follow from the index, so the ranks need not
exchange them. It is built once and stored with the training's results. The ranks share its blocks, and a successor
reuses those of a stopped job.
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

from lumen_hpc.data.diff_vqa import DIAGNOSTIC
from lumen_hpc.data.instructions import kind
from lumen_hpc.data.perturbations import IMAGE
from lumen_hpc.data.records import write_jsonl
from lumen_hpc.distributed import Ranks, broadcast_json, on_any_rank, raise_on_all_ranks
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic
from lumen_hpc.models import KINDS
from lumen_hpc.nvila import Preprocessor
from lumen_hpc.training.fitting import FittedRecord, fit
from lumen_hpc.training.lengths import Measure, Record, measure, opening
from lumen_hpc.watchdog import Beat, unwatched

BLOCK = 4096
"""Records per block."""
TYPES = (*DIAGNOSTIC, *KINDS)
"""Values that `meta.type` may have."""
FILE = "record_index.npz"
PARTS = "record_index"
"""Folder of the blocks of an unfinished index."""
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
"""Characters that no text has: controls but tab and line ends, and the replacement character of a lost byte."""
_MISSING_VALUES = frozenset(
    {"nan", "nat", "null", "undefined", "<na>", "n/a", "#n/a", "#ref!", "#value!", "[object object]"}
)
"""How programs write a missing text."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordIndex:
    """The usable records by sample id, 0 to n − 1."""

    rows: np.ndarray
    """[n] int64: the record's row in its file."""
    ids: np.ndarray
    """[n] str."""
    kinds: np.ndarray
    """[n] str: diagnostic, difference or prediction."""
    groups: np.ndarray
    """[n] int64: equal for records with the same images and the same text up to the last of them."""
    prefix: np.ndarray
    """[n] int64, as are the next two: tokens that can be shared, tokens that cannot, and supervised tokens."""
    suffix: np.ndarray
    supervised: np.ndarray
    images_left_out: np.ndarray
    """[n] int64: how many of the record's oldest images are not shown (`fitting.fit`)."""

    def __len__(self) -> int:
        return len(self.rows)


def fault(record: Record) -> str:
    """A record's fault, whatever the model: a field of another type, an empty turn, a missing image; empty if none."""
    meta, images, turns = record.get("meta"), record.get("images"), record.get("conversations")
    if not _id_text(record):
        return "it has no id"
    if not isinstance(meta, dict) or not isinstance(meta.get("type"), str):
        return "it has no meta.type"
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        return "its images are not a list of paths"
    if meta_fault := _meta_fault(meta, len(images)):
        return meta_fault
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "its conversations are not a list of turns"
    if len(turns) < 2 or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        return "it is not a human turn with an answer"
    for number, turn in enumerate(turns):
        turn_name = "answer" if number % 2 else "question"
        if not isinstance(turn.get("value"), str):
            return f"its {turn_name} is not text (turn {number + 1})"
        if _CONTROL_CHARACTERS.search(turn["value"]):
            return f"its {turn_name} has control characters or lost ones (turn {number + 1})"
        if not any(map(str.isalnum, turn["value"].replace(IMAGE, ""))):  # invisible characters are no text
            return f"its {turn_name} is empty (turn {number + 1})"
        if turn["value"].replace(IMAGE, "").strip(" .\n").lower() in _MISSING_VALUES:
            return f"its {turn_name} is a missing value (turn {number + 1})"
        if number and IMAGE in turn["value"]:
            return f"{IMAGE} is in turn {number + 1}; the first turn alone shows images"
    if missing_images := [image for image in images if not _is_file(image)]:
        return f"image {missing_images[0]} is missing"
    return ""


def _meta_fault(meta: dict[str, Any], images: int) -> str:
    """The fault of the `meta` that the index reads; empty if it has none."""
    if meta["type"] not in TYPES:
        return f"its meta.type is none of {', '.join(TYPES)}"
    sizes = meta.get("sizes") or []
    if not isinstance(sizes, list) or (sizes and len(sizes) != images) or not all(map(_is_size, sizes)):
        return "its meta.sizes are not a [width, height] in pixels for each image"
    if not _is_whole_number(meta.get("needed_images", 0), 0):
        return "its meta.needed_images is not a whole number"
    return ""


def _is_size(size: Any) -> bool:
    if not size:  # null: it is read from the file
        return True
    return isinstance(size, list) and len(size) == 2 and all(_is_whole_number(side, 1) for side in size)


def _is_whole_number(value: Any, least: int) -> bool:
    """True for a whole number from `least`; json's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _id_text(record: Record) -> str:
    """A record's id as text; empty if it has none."""
    name = record.get("id")
    return str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""


@lru_cache(maxsize=1 << 18)
def _is_file(path: str) -> bool:
    """Cached, since several questions show the same image."""
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

    `version` identifies everything that their lengths depend on (records, tokenizer). With `on_bad="skip"`,
    `folder/rejected.jsonl` lists the bad ones with their reasons. `folder/images_left_out.jsonl` lists those that lose
    their oldest images to fit into `max_tokens`. Returns None if a rank was asked to stop; the next call continues from
    the blocks that are there.
    """
    file = folder / FILE
    version = hashlib.sha256(f"{version} {max_tokens} {on_bad} fitted".encode()).hexdigest()
    # The other ranks look for the file only once it exists: some file systems cache that it did not.
    if broadcast_json(ranks.first and _read_index(file, version) is not None):
        return _read_index(file, version)
    stopped = False
    with raise_on_all_ranks():
        for block in range(ranks.rank, -(-len(records) // BLOCK), ranks.world_size):
            if stopped := should_stop():
                break
            beat(f"indexes records from {block * BLOCK + 1}")
            if _read_columns(_block_file(folder, block), version) is None:
                rows = range(block * BLOCK, min(len(records), (block + 1) * BLOCK))
                _write_columns(
                    _block_file(folder, block), version, _measure_block(records, rows, preprocessor, max_tokens)
                )
    if on_any_rank(stopped):
        return None
    with raise_on_all_ranks():
        if ranks.first:
            _join(folder, file, version, len(records), on_bad)
    index = _read_index(file, version)
    if index is None:
        raise UserError(f"{file} cannot be read back: is the folder shared between the nodes?")
    return index


def number_groups(names: np.ndarray) -> np.ndarray:
    """int [n], equal for equal names, numbered in the order of their first appearance.

    The sample order depends on these numbers, so they must not depend on the images' paths, as a sorted order would.
    """
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _measure_block(
    records: Sequence[Record], rows: Sequence[int], preprocessor: Preprocessor, max_tokens: int
) -> dict[str, np.ndarray]:
    """Columns of one block, one row per record; `faults` is empty for a good one.

    Raises UserError for a line that is no record, and for a record at which `measure` itself fails.
    """
    block, row = [], rows[0]
    try:
        for row in rows:
            block.append(records[row])
        faults = [fault(record) for record in block]
        good_records = [record for record, fault_text in zip(block, faults) if not fault_text]
        fit_block = partial(fit, measure=partial(measure, preprocessor=preprocessor), max_tokens=max_tokens)
        fitted_records = iter(
            _fit_records(good_records, fit_block, [row for row, fault_text in zip(rows, faults) if not fault_text])
        )
        results = [
            FittedRecord(record, Measure(fault=fault_text), 0) if fault_text else next(fitted_records)
            for record, fault_text in zip(block, faults)
        ]
    except UserError:
        raise
    except Exception as error:
        raise _unforeseen_error(row, error) from None
    faults = [_length_fault(result.measure, max_tokens) for result in results]
    ids = [_id_text(record) for record in block]
    openings = [id if fault_text else opening(result.record) for id, result, fault_text in zip(ids, results, faults)]
    return {
        "rows": np.array(rows, dtype=np.int64),
        "ids": np.array(ids),
        "kinds": np.array(["" if fault_text else kind(record) for record, fault_text in zip(block, faults)]),
        "groups": np.array([int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) for text in openings], np.uint64),
        **{
            name: np.array([getattr(result.measure, name) for result in results], np.int64)
            for name in ("prefix", "suffix", "supervised")
        },
        "images_left_out": np.array([result.images_left_out for result in results], np.int64),
        "faults": np.array(faults),
    }


def _fit_records(
    records: Sequence[Record], fit_block: Callable[[Sequence[Record]], list[FittedRecord]], rows: Sequence[int]
) -> list[FittedRecord]:
    """The fitted records of a block; if that fails, fits them one by one to name the record at which it fails."""
    try:
        return fit_block(records)
    except Exception:
        for row, record in zip(rows, records):
            try:
                fit_block([record])
            except Exception as error:
                raise _unforeseen_error(row, error) from None
        raise


def _unforeseen_error(row: int, error: Exception) -> UserError:
    """What the user is shown of an error in this project's code; the log has its traceback."""
    stack = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may hold text of the record
    log.error("record %d cannot be measured:\n%s", row + 1, stack)
    return UserError(f"record {row + 1}: {type(error).__name__}")


def _length_fault(counts: Measure, max_tokens: int) -> str:
    """The fault of a measured record; empty if it has none."""
    if counts.fault:
        return counts.fault
    if counts.total > max_tokens:
        return f"it has {counts.total} tokens, more than train.max_tokens={max_tokens}"
    return "" if counts.supervised else "its answer has no token"


def _join(folder: Path, file: Path, version: str, total: int, on_bad: str) -> None:
    """Rank 0: joins the blocks to the index; bad records stop the training or are listed."""
    if not total:
        raise UserError(f"{folder}: there is no record to train on; stage=instruct wrote none of this model's kinds")
    block_files = [_block_file(folder, block) for block in range(-(-total // BLOCK))]
    blocks = [_read_columns(block_file, version) for block_file in block_files]
    if missing_file := next((block_file for block_file, block in zip(block_files, blocks) if block is None), None):
        raise UserError(
            f"{missing_file}, which another rank wrote, cannot be read: is the folder shared between the nodes?"
        )
    columns = {name: np.concatenate([block[name] for block in blocks if block]) for name in blocks[0] or {}}
    _reject_bad_records(columns, on_bad, folder)
    is_good = columns.pop("faults") == ""
    columns = {name: column[is_good] for name, column in columns.items()}
    _write_columns(file, version, {**columns, "groups": number_groups(columns["groups"])})
    for block_file in block_files:
        block_file.unlink()
    with suppress(OSError):  # it may hold blocks of another index
        (folder / PARTS).rmdir()


def _reject_bad_records(columns: dict[str, np.ndarray], on_bad: str, folder: Path) -> None:
    """Refuses repeated ids, and bad records unless they are to be left out, which lists them."""
    ids, faults = columns["ids"], columns["faults"]
    rows_with_id = np.flatnonzero(ids != "")
    _, first_rows = np.unique(ids[rows_with_id], return_index=True)
    if len(first_rows) < len(rows_with_id):
        repeated_row = int(np.setdiff1d(rows_with_id, rows_with_id[first_rows])[0])
        raise UserError(f"record {repeated_row + 1} has the id {ids[repeated_row]} of an earlier one: ids must differ")
    bad_rows = np.flatnonzero(faults != "").tolist()
    if bad_rows and on_bad == "stop":
        first_bad = f"record {bad_rows[0] + 1}" + (f" ({ids[bad_rows[0]]})" if ids[bad_rows[0]] else "")
        raise UserError(
            f"{len(bad_rows)} of {len(ids)} records are bad; the first is {first_bad}: {faults[bad_rows[0]]}. "
            "fix: repair them, or leave them out with train.on_bad=skip"
        )
    if len(bad_rows) == len(ids):
        raise UserError(f"none of the {len(ids)} records can be trained on; the first: {faults[0]}")
    if bad_rows:
        log.warning("%d of %d records are left out; %s says why", len(bad_rows), len(ids), folder / "rejected.jsonl")
    rejections = ({"id": str(ids[row]), "row": row, "reason": str(faults[row])} for row in bad_rows)
    write_jsonl(folder / "rejected.jsonl", rejections)
    _list_fewer_images(columns, folder)


def _list_fewer_images(columns: dict[str, np.ndarray], folder: Path) -> None:
    """Lists the good records that lost their oldest images, and how many; logs the sum."""
    counts = np.where(columns["faults"] == "", columns["images_left_out"], 0)
    rows = np.flatnonzero(counts).tolist()
    file = folder / "images_left_out.jsonl"
    if rows:
        log.warning(
            "%d of %d records are too long for train.max_tokens and lose their oldest images, %d in all; %s lists them",
            len(rows), len(counts), counts.sum(), file,
        )  # fmt: skip
    write_jsonl(file, ({"id": str(columns["ids"][row]), "row": row, "images": int(counts[row])} for row in rows))


def _block_file(folder: Path, block: int) -> Path:
    return folder / PARTS / f"{block:06d}.npz"


def _write_columns(file: Path, version: str, columns: dict[str, np.ndarray]) -> None:
    with atomic(file) as stream:
        np.savez(stream, allow_pickle=False, version=np.array(version), **columns)


def _read_columns(file: Path, version: str) -> dict[str, np.ndarray] | None:
    """The columns in a file of this version; None if there are none."""
    try:
        with np.load(file) as archive:
            if str(archive["version"]) != version:
                return None
            return {name: archive[name] for name in archive.files if name != "version"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_index(file: Path, version: str) -> RecordIndex | None:
    """The index in a file of this version; None if there is none."""
    columns = _read_columns(file, version) or {}
    names = {field.name for field in fields(RecordIndex)}
    return RecordIndex(**columns) if columns.keys() == names else None


def describe(index: RecordIndex) -> str:
    """One line about the index: samples, kinds, tokens, images."""
    kinds, counts = np.unique(index.kinds, return_counts=True)
    kinds_line = ", ".join(f"{count} {name}" for name, count in zip(kinds, counts))
    tokens = int((index.prefix + index.suffix).sum())
    return json.dumps(
        {"samples": len(index), "kinds": kinds_line, "tokens": tokens, "images": len(np.unique(index.groups))}
    )
