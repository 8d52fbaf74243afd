"""Figure 1 of the paper's kind: one case, its two images, and what each model answers in four turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import numpy as np

from lumen_hpc.report.cases import jpeg_uri
from lumen_hpc.report.identity import COMPOSED
from lumen_hpc.report.results import Results

WIDTH, IMAGE, MARGIN = 1000, 190, 20
LINE = 18  # px from one line of text to the next
CHARACTERS = 78  # of an answer's line at 13 px, beside the label
_INK, _SOFT, _RULE, _ACCENT = ("var(--ink, #1b2733)", "var(--soft, #54626f)", "var(--line, #c3ccd4)",
                               "var(--accent, #0b5f85)")  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question of the case with its answers."""

    title: str
    question: str
    answers: tuple[tuple[str, str], ...]
    """(who, answer); the reference first."""


def case_figure(results: Results, image: Callable[[str], np.ndarray | None]) -> str | None:
    """The figure as SVG; None where no patient has all four turns, or an image cannot be shown.

    The case is the first patient, in the order of the questions, whose images differ; nobody chose it by the answers.
    """
    positions = _first_case(results)
    if positions is None:
        return None
    pair = results.questions[positions["difference"]]["images"][-2:]
    pixels = [image(path) for path in pair]
    if any(grey is None for grey in pixels):
        return None
    models = [model for model in results.run_models() if not model.endswith(COMPOSED)]
    turns = [_turn(results, title, i, models) for title, i in positions.items()]
    return _svg(
        [jpeg_uri(grey) for grey in pixels if grey is not None], turns, results.questions[positions["difference"]]
    )


def _first_case(results: Results) -> dict[str, int] | None:
    """Title → position of the four questions of the first suitable patient."""
    for difference_position in np.flatnonzero(results.where("difference")):
        pair = results.questions[difference_position]
        if not results.truth(int(difference_position)) or len(pair.get("images", ())) < 2:
            continue
        positions: dict[str, int] = {}
        for i, row in enumerate(results.questions):
            if row.get("study_id") != pair.get("study_id"):
                continue
            if row["type"] == "prediction" and row.get("ref_study_id") == pair.get("ref_study_id"):
                positions.setdefault("prediction", i)
            elif row["type"] == "abnormality" and not row["closed"]:
                positions.setdefault("open question", i)
            elif row["type"] == "presence":
                positions.setdefault("closed question", i)
        positions["difference"] = int(difference_position)
        titles = ("open question", "closed question", "difference", "prediction")
        if all(title in positions for title in titles):
            return {title: positions[title] for title in titles}
    return None


def _turn(results: Results, title: str, i: int, models: Sequence[str]) -> Turn:
    row = results.questions[i]
    answers = [("Reference answer", row.get("long_answer") or row["short_answer"])]
    answers += [(results.label(model), results.joined.answers[model][i]) for model in models]
    return Turn(title, row["question"], tuple(answers))


def _svg(images: Sequence[str], turns: Sequence[Turn], pair: dict) -> str:
    x, y = MARGIN + IMAGE + 30, MARGIN + 12
    parts: list[str] = []
    for turn in turns:
        parts.append(_text(x, y, turn.title.capitalize(), _ACCENT, 12, "600"))
        for line in wrap(turn.question, CHARACTERS + 20):
            y += LINE
            parts.append(_text(x, y, line, _INK, 14, "600"))
        for who, answer in turn.answers:
            for k, line in enumerate(wrap(answer, CHARACTERS) or ["(no answer)"]):
                y += LINE
                if k == 0:
                    parts.append(_text(x, y, who, _SOFT, 12))
                parts.append(_text(x + 160, y, line, _INK, 13))
        y += LINE
        parts.append(f'<line x1="{x}" x2="{WIDTH - MARGIN}" y1="{y - 6}" y2="{y - 6}" stroke="{_RULE}"/>')
        y += LINE
    days = pair.get("interval_days")
    captions = ("Reference image", "Main image" if days is None else f"Main image, {days} days later")
    for k, (image, name) in enumerate(zip(images, captions, strict=True)):
        top = MARGIN + k * (IMAGE + 40)
        parts.append(f'<image x="{MARGIN}" y="{top}" width="{IMAGE}" height="{IMAGE}" href="{image}"/>')
        parts.append(_text(MARGIN, top + IMAGE + 16, name, _SOFT, 12))
    height = max(y, MARGIN + 2 * (IMAGE + 40))
    description = "; ".join(
        f"{turn.title}: " + ", ".join(f"{who}: {text}" for who, text in turn.answers) for turn in turns
    )
    title = "One case: two images, four questions, and each model's answers"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="case-title" aria-describedby="case-desc" font-family="system-ui, sans-serif">'
        f'<title id="case-title">{title}</title><desc id="case-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>\n"
    )


def _text(x: int, y: int, text: str, fill: str, size: int, weight: str = "400") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
