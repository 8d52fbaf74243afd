"""The report's page on outcomes: rivals and models in one table an outcome, figures, subgroups, and TRIPOD+AI's items.

Writes outcomes.html and outcomes.json beside index.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.config.schema import Settings
from lumen_hpc.files import atomic
from lumen_hpc.outcomes.outcomes import OUTCOMES
from lumen_hpc.plain_text import visible
from lumen_hpc.report import figures
from lumen_hpc.report.page import policy, template
from lumen_hpc.report.tripod import Tables, number, tripod

_HERE = Path(__file__).parent


def write(
    folder: Path, outcomes: Tables, counts: Mapping[str, Any], settings: Settings, run: Mapping[str, str],
    timelines: Sequence[Mapping[str, Any]] = (), notes: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Writes the page and its numbers into the report's folder; returns both files.

    `outcomes`: what `outcomes.evaluation.evaluate` found; `counts`: counts.json of stage outcomes; `settings`: the
    run's; `run`: its name and so on; `timelines`: what `outcomes.evaluation.timeline_scores` found; `notes`: sentences
    that go before all numbers.
    """
    css = (_HERE / "page.css").read_text()
    page = template("outcomes.html", number=number).render(
        css=css,
        policy=policy(css, js=""),
        run=run,
        confidence=round(100 * settings.evaluate.confidence),
        resamples=settings.evaluate.bootstrap,
        notes=notes,
        outcomes={name: {**_EMPTY_PARTS, **table} for name, table in outcomes.items()},
        meanings=OUTCOMES,
        timelines=timelines,
        figures={name: _figures(name, table) for name, table in outcomes.items()},
        tripod=tripod(outcomes, counts, settings),
    )
    files = {
        "outcomes.html": visible(page).encode(),
        "outcomes.json": orjson.dumps({**outcomes, "timelines": timelines}, default=list, option=orjson.OPT_INDENT_2),
    }
    for name, text in files.items():
        with atomic(folder / name) as out:
            out.write(text)
    return [folder / name for name in files]


_EMPTY_PARTS = {"unjudged": "", "differences": {}, "pairs": [], "oracles": {}, "survival": {}}


def _figures(name: str, table: Mapping[str, Any]) -> dict[str, str]:
    """Caption → SVG: calibration and decision curves of the models (or of the strongest rival), survival."""
    if "rows" not in table:
        return {}
    labels = [label for label, row in table["rows"].items() if row["model"] and "," not in label] + [table["strongest"]]
    svgs = {
        "Calibration: observed against predicted risk in tenths of the patients, Wilson intervals": figures.svg(
            f"{name} calibration", f"calibration of {', '.join(labels)}", (4.6, 4.2), _calibration(table, labels)
        ),
        "Decision curve: net benefit of acting above a threshold": figures.svg(
            f"{name} decision", f"net benefit of {', '.join(labels)}", (5.2, 3.6), _decision(table, labels)
        ),
    }
    if survival := table.get("survival"):
        svgs["Kaplan-Meier curves of the thirds of risk"] = figures.svg(
            f"{name} survival", "survival of low, middle and high risk", (5.2, 3.6), _survival(survival)
        )
    return svgs


def _calibration(table: Mapping[str, Any], labels: list[str]) -> Any:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=figures.FAINT)
        for label, color in zip(labels, figures.SERIES):
            bins = table["rows"][label]["calibration"]
            x, y = [bin_["predicted"] for bin_ in bins], [bin_["observed"] for bin_ in bins]
            error_bars = [
                [bin_["observed"] - bin_["low"] for bin_ in bins],
                [bin_["high"] - bin_["observed"] for bin_ in bins],
            ]
            axes.errorbar(x, y, error_bars, color=color, marker="o", markersize=4, linewidth=1, label=label)
        axes.set_xlabel("predicted risk")
        axes.set_ylabel("observed risk")
        axes.legend(frameon=False, fontsize=8)

    return draw


def _decision(table: Mapping[str, Any], labels: list[str]) -> Any:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for label, color in zip(labels, figures.SERIES):
            points = table["rows"][label]["decision"]
            axes.plot([p["threshold"] for p in points], [p["model"] for p in points], color=color, label=label)
        axes.plot([p["threshold"] for p in points], [p["all"] for p in points], color=figures.INK, linewidth=0.8,
                  linestyle="--", label="everyone")  # fmt: skip
        axes.axhline(0, color=figures.INK, linewidth=0.8)
        axes.set_ylim(bottom=-0.1)
        axes.set_xlabel("threshold")
        axes.set_ylabel("net benefit")
        axes.legend(frameon=False, fontsize=8)

    return draw


def _survival(survival: Mapping[str, Any]) -> Any:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for curve, color, label in zip(survival["curves"], figures.SERIES, ("low", "middle", "high")):
            axes.step([0, *curve["days"]], [1, *curve["alive"]], where="post", color=color, label=f"{label} risk")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("days after the study")
        axes.set_ylabel("alive")
        axes.legend(frameon=False, fontsize=8)

    return draw
