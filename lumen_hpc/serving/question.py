"""Checks of a question from the page, `launch.py ask` or Python."""

from __future__ import annotations

import re

from lumen_hpc.errors import UserError

IMAGE_MARK = re.compile(r"<image>|<vila/\w+>")
"""Text that stands for a picture in a prompt."""
MAX_DAYS = 36_525
"""Most days between two images."""


def require_words(text: str) -> None:
    """Raises UserError for a question without a letter or a digit: blanks, signs, or invisible characters."""
    if not any(map(str.isalnum, text)):
        raise UserError('ask a question, such as "is there edema?": this one has no words')


def require_no_mark(*texts: str) -> None:
    """Raises UserError for a text with a picture's mark: the prompt would count it as a picture."""
    for text in texts:
        if mark := IMAGE_MARK.search(text):
            raise UserError(f"the text holds {mark[0]}, which stands for a picture in the prompt: leave it out")


def require_days(days: int | None) -> None:
    """Raises UserError for more than a century between two images."""
    if days is not None and abs(days) > MAX_DAYS:
        raise UserError(f"{days} days between the images: at most {MAX_DAYS}, a century, are taken")
