"""What a question may hold, whoever asks it: the page, `launch.py ask`, or Python."""

from __future__ import annotations

import re

from lumen_hpc.errors import UserError

MARK = re.compile(r"<image>|<vila/\w+>")
"""What stands for a picture in a prompt."""
MOST_DAYS = 36_525
"""Between two images."""


def require_words(text: str) -> None:
    """Raises UserError for a question without a letter or a digit: blanks, signs, or what no screen shows."""
    if not any(map(str.isalnum, text)):
        raise UserError('ask a question, such as "what has changed?": this one has no words')


def require_no_mark(*texts: str) -> None:
    """Raises UserError for a text that holds what stands for a picture in a prompt: it would count as one."""
    for text in texts:
        if found := MARK.search(text):
            raise UserError(f"the text holds {found[0]}, which stands for a picture in the prompt: leave it out")


def require_days(days: int | None) -> None:
    """Raises UserError for more days between two images than a life has."""
    if days is not None and abs(days) > MOST_DAYS:
        raise UserError(f"{days} days between the images: at most {MOST_DAYS}, a century, are taken")
