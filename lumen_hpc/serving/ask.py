"""One question to a model about one or two radiographs, in the form of its training.

From Python: `lumen_hpc.open_run("runs/demo").model("lumen").ask(question, image=…, reference=…, days=…)`;
at the terminal: `python launch.py ask run=demo model=lumen image=… reference=… days=… "QUESTION"`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.data.findings_line import strip
from lumen_hpc.data.instructions import prompt
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.generate import stop_ids
from lumen_hpc.plain_text import visible
from lumen_hpc.serving.image_files import ImageFile, image_files
from lumen_hpc.serving.media import acquisition_day, decode_picture
from lumen_hpc.serving.question import require_days, require_no_mark, require_words


@dataclass(frozen=True)
class Reply:
    """A model's answer to one question; as text it is the answer alone, as a terminal may show it."""

    answer: str
    findings: str
    """The findings line that the model wrote before its answer, where it was trained to; else empty."""
    prompt: str
    """The human turn as the model read it; `<image>` stands where a picture stood."""
    cut: bool
    """Whether the answer was cut at predict.max_new_tokens: its rest may say something else."""

    def __str__(self) -> str:
        return visible(self.answer)


@dataclass(frozen=True)
class Question:
    """A question with its images, read and decoded."""

    text: str
    files: dict[str, bytes]
    """`reference`, if there is one, and `image`, in this order."""
    pictures: list[Image.Image]
    days: int | None


def read_question(text: str, files: dict[str, ImageFile], days: int | None = None) -> Question:
    """What `TrainedModel.ask` is given, before any model is needed.

    Raises UserError for a question that is empty or holds `<image>`, and for a file that is no radiograph.
    """
    require_words(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the question holds half a character: type it again, in UTF-8") from None
    require_no_mark(text)
    try:
        days = None if days is None else operator.index(days)  # numpy's and pandas' numbers too
    except TypeError:
        raise UserError(f"days={days!r}: takes a whole number of days") from None
    require_days(days)
    pictures = [decode_picture(file.data, where=file.where) for file in files.values()]
    contents = {name: file.data for name, file in files.items()}
    if "reference" in files and days is None:
        days = _days_between(**contents)
    return Question(text.strip(), contents, pictures, days)


class TrainedModel:
    """A model that answers questions about image files."""

    def __init__(
        self, model: nvila.NVILA, *, experts: Callable[[bytes], str] | None = None, max_new_tokens: int = 256
    ) -> None:
        """`experts`: from an image file's bytes to the words that follow the picture; None where none were trained."""
        self.nvila = model
        self._experts, self._max_new_tokens = experts, max_new_tokens

    def ask(
        self, question: str, *, image: str | Path, reference: str | Path | None = None, days: int | None = None
    ) -> Reply:
        """The greedy answer to a question about `image`, or about what changed in it since `reference`.

        Files are JPG, PNG or DICOM, decoded as in training. `days` are those from the reference to the image; without
        them the dates in the files count, and where these have none the prompt calls the distance unknown. Raises
        UserError as `image_files` and `read_question` do.
        """
        return self.answer(read_question(question, image_files(image, reference, days), days))

    def answer(self, question: Question) -> Reply:
        """The greedy answer to a question that was read."""
        studies = [{"study_id": name} for name in question.files]
        kind = "difference" if "reference" in question.files else "diagnostic"
        row = {"type": kind, "interval_days": question.days, "question": question.text}
        expert_words = {name: self._experts(data) for name, data in question.files.items()} if self._experts else {}
        text = prompt(studies, row, expert_words)
        record = {"images": question.pictures, "conversations": [{"from": "human", "value": text}]}
        inputs = self.nvila.preprocess([record], generation=True, inline=True)
        [answer] = self.nvila.generate(inputs, max_new_tokens=self._max_new_tokens)
        reply_text = strip(answer.text, self.nvila.config.prompt_form.line)
        cut = answer.ids[-1] not in stop_ids(self.nvila)
        return Reply(reply_text, answer.text[: len(answer.text) - len(reply_text)].rstrip(" ;"), text, cut)


def _days_between(reference: bytes, image: bytes) -> int | None:
    """Days between the dates in the files; None where one has none."""
    dates = [acquisition_day(data) for data in (reference, image)]
    if not all(dates):
        return None
    reference_day, image_day = (date.fromisoformat(str(day)) for day in dates)
    return (image_day - reference_day).days
