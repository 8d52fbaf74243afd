"""The report's figures as SVG that follows the page's light or dark colours, and stands alone as a file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from lumen_hpc.report.baselines import BASELINES
from lumen_hpc.report.controls import CONTROLS, Control, by_measure
from lumen_hpc.report.controls import MEASURES as CONTROL_MEASURES
from lumen_hpc.report.language_checks import Share
from lumen_hpc.report.results import Cell
from lumen_hpc.report.slices import Slice
from lumen_hpc.report.tables import Table, published

# Drawn in these colours, which the page replaces by its own: hex as matplotlib writes it → CSS variable.
INK, FAINT = "#1b2733", "#c3ccd4"
SERIES = ("#0b6e99", "#b3541e", "#5b4a9c", "#3c7a3f", "#8a3b62", "#6b6b14")
_VARIABLES = {INK: "--ink", FAINT: "--line"} | {color: f"--series-{k}" for k, color in enumerate(SERIES)}
_MARKERS = "osD^vP"
_UNIT = ("bleu4", "rouge_l", "change_f1", "recall", "precision", "accuracy", "accuracy_polarity", "finding_f1")


VALIDATION = "validation_loss"
"""Key of the loss on validation records in a row of metrics.jsonl, where a step has one."""


def headline(table: Table, models: Mapping[str, str]) -> str | None:
    """Every 0-to-1 measure of a table as a panel: a dot and its interval per model, published values hollow.

    Here and below `models` are all of the report's with their labels: a model has the same colour in every figure.
    """
    columns = [k for k, (_, measure) in enumerate(table.columns) if measure in _UNIT]
    columns = [k for k in columns if any(cells[k].value is not None for _, cells in table.rows)]
    if not columns:
        return None
    rows = list(reversed(table.rows))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for panel, k in zip(panels, columns, strict=True):
            block, measure = table.columns[k]
            for y, (model, cells) in enumerate(rows):
                _dot(panel, cells[k], y, _color(model, models), table.comparable)
            panel.set_title(f"{block}\n{table.titles[measure]}", fontsize=9)
            panel.set_xlim(-0.03, 1.03)
            panel.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        panels[0].set_yticks(range(len(rows)), [models[model] for model, _ in rows])
        panels[0].set_ylim(-0.6, len(rows) - 0.4)

    description = "; ".join(
        f"{models[model]} {block} {table.titles[measure]} {cells[k].value:.2f}"
        for model, cells in table.rows
        for k, (block, measure) in enumerate(table.columns)
        if k in columns and cells[k].value is not None
    )
    size = (1.7 + 1.35 * len(columns), 1.0 + 0.36 * len(rows))
    return svg(f"{table.title}: values with intervals", description, size, draw)


def by_interval(slices: Sequence[Slice], block: str, models: Mapping[str, str]) -> str | None:
    """Change F1 over the interval between the images, a line per model."""
    groups = [group for group in slices if group.by == "interval (days)" and group.block == block]
    if len(groups) < 2:
        return None

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        run_models = [model for model in models if model not in BASELINES]
        for k, model in enumerate(run_models):
            points = [(x, cell) for x, group in enumerate(groups) for cell in group.cells
                      if (cell.model, cell.measure) == (model, "change_f1")]  # fmt: skip
            if points:
                positions = [x + 0.07 * (k - len(run_models) / 2) for x, _ in points]
                _line(panel, positions, [cell for _, cell in points], k, _color(model, models), models[model])
        ticks = [f"{group.group}\nn = {max(cell.n for cell in group.cells)}" for group in groups]
        panel.set_xticks(range(len(groups)), ticks)
        panel.set_xlabel("days between the images")
        panel.set_ylabel("change F1")
        panel.set_ylim(-0.03, 1.03)
        _legend(panel)

    description = "; ".join(
        f"{models[cell.model]} at {group.group} days {cell.value:.2f}"
        for group in groups
        for cell in group.cells
        if cell.measure == "change_f1"
    )
    return svg(f"Change F1 on {block} questions by interval", description, (6.4, 3.2), draw)


def training(curves: Mapping[str, Sequence[dict]], models: Mapping[str, str]) -> str | None:
    """The training loss of each model over its steps, with a running mean; logarithmic, since losses span decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    curves = {model: rows for model, rows in curves.items() if rows}
    if not curves:
        return None

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        validated, validation_style = False, {"markerfacecolor": "none", "linewidth": 0.8}
        for model, rows in curves.items():
            steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
            steps, losses = steps[:: max(1, len(steps) // 800)], losses[:: max(1, len(losses) // 800)]
            color = _color(model, models)
            panel.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
            panel.plot(steps, _smooth(losses), color=color, linewidth=1.8, label=models[model])
            validation_points = [(row["step"], row[VALIDATION]) for row in rows if row.get(VALIDATION) is not None]
            if validation_points:
                validated = True
                panel.plot(*zip(*validation_points, strict=True), "D--", color=color, **validation_style)
        if validated:
            panel.plot([], [], "D--", color=INK, label="on validation records", **validation_style)
        panel.set_xlabel("optimizer step")
        panel.set_ylabel("training loss")
        panel.set_yscale("log")
        decades = log10(panel.get_ylim()[1] / panel.get_ylim()[0])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        _legend(panel)

    description = "; ".join(
        f"{models[m]}: {len(r)} steps, from {r[0]['loss']:.2f} to {r[-1]['loss']:.2f}" for m, r in curves.items()
    )
    return svg("Training loss", description, (6.4, 3.0), draw)


def shares(title: str, values: Sequence[Share]) -> str | None:
    """Shares of n with their intervals, one per line."""
    if not values:
        return None
    rows = list(reversed(values))

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for y, share in enumerate(rows):
            low, high = share.bounds
            panel.plot([low, high], [y, y], color=SERIES[0], linewidth=2, solid_capstyle="round")
            panel.plot([share.value], [y], "o", color=SERIES[0])
        panel.set_yticks(range(len(rows)), [f"{share.name} · {share.group} (n = {share.n})" for share in rows])
        panel.set_xlim(-0.03, 1.03)
        panel.set_ylim(-0.6, len(rows) - 0.4)

    description = "; ".join(f"{share.name} {share.group} {share.value:.2f} of {share.n}" for share in values)
    return svg(title, description, (6.4, 0.7 + 0.3 * len(rows)), draw)


def control_panels(controls: Sequence[Control], models: Mapping[str, str]) -> str | None:
    """Each model's answers under the controls: a panel per control and measure, a row per model."""
    panels = by_measure(controls)
    if not panels:
        return None
    rows = [model for model in reversed(list(models)) if any(control.model == model for control in controls)]

    def draw(figure: Any) -> None:
        columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (name, measure, by_model) in zip(columns, panels, strict=True):
            for y, model in enumerate(rows):
                value, low, high = by_model.get(model, (None, None, None))
                color = _color(model, models)
                if low is not None:
                    panel.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="round")
                if value is not None:
                    panel.plot([value], [y], "o", color=color, markersize=6)
            panel.set_title("\n".join((*_TITLES[name], *_TITLES[measure])), fontsize=9)
            panel.set_xlim(-0.03, 1.03)
            panel.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        columns[0].set_yticks(range(len(rows)), [models[model] for model in rows])
        columns[0].set_ylim(-0.6, len(rows) - 0.4)

    description = "; ".join(
        f"{models[model]}, {CONTROLS[name]}, {CONTROL_MEASURES[measure]} {interval.value:.2f}"
        for name, measure, by_model in panels
        for model, interval in by_model.items()
    )
    return svg("Controls", description, (1.7 + 1.6 * len(panels), 1.4 + 0.36 * len(rows)), draw)


# Two short lines for each control, two for each measure: what a panel has room for.
_TITLES = {
    "swapped": ("images", "swapped"),
    "same": ("the same", "image twice"),
    "other_patient": ("another's", "reference"),
    "no_image": ("no", "image"),
    "shown": ("F1: what was", "shown (high)"),
    "original": ("F1: original", "pair (low)"),
    "nothing": ("answers: nothing", "has changed"),
}


def _dot(panel: Any, cell: Cell, y: int, color: str, comparable: bool) -> None:
    if cell.value is None:
        return
    if cell.low is not None:
        panel.plot([cell.low, cell.high], [y, y], color=color, linewidth=2, solid_capstyle="round")
    panel.plot([cell.value], [y], "o", color=color, markersize=6)
    if comparable and (published_value := published(cell)) is not None:
        panel.plot([published_value], [y], "D", markeredgecolor=color, markerfacecolor="none", markersize=6)


def _line(panel: Any, at: list[float], cells: list[Cell], k: int, color: str, name: str) -> None:
    for x, cell in zip(at, cells, strict=True):
        if cell.low is not None:
            panel.plot([x, x], [cell.low, cell.high], color=color, linewidth=1.4)
    panel.plot(
        at,
        [cell.value for cell in cells],
        f"{_MARKERS[k % len(_MARKERS)]}-",
        color=color,
        markersize=5,
        linewidth=1.4,
        label=name,
    )


def _color(model: str, models: Mapping[str, str]) -> str:
    """A colour for each model that was run, counted from the principal, which is last; baselines are in ink."""
    if model in BASELINES:
        return INK
    run_models = [name for name in reversed(list(models)) if name not in BASELINES]
    return SERIES[run_models.index(model) % len(SERIES)]


def _smooth(values: Sequence[float]) -> list[float]:
    mean, smooth = values[0], []
    for value in values:
        mean += 0.06 * (value - mean)
        smooth.append(mean)
    return smooth


def _legend(panel: Any) -> None:
    """Above the panel, where it covers nothing, in as many columns as the figure is wide."""
    longest = max((len(name) for name in panel.get_legend_handles_labels()[1]), default=0)
    columns = max(1, min(3, 80 // (longest + 8)))  # of letters, at 9 points and 6.4 inches
    panel.legend(
        frameon=False, labelcolor=INK, fontsize=9, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2,
    )  # fmt: skip


def svg(title: str, description: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """A figure drawn by `draw` as one <svg> with title and description, its colours as CSS variables."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
        "axes.titlecolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
        "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0, "xtick.major.size": 0,
        "text.parse_math": False,  # a name with $ is no formula
    }  # fmt: skip
    stream = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _apply_theme(stream.getvalue(), title, description)


def _apply_theme(svg: str, title: str, description: str) -> str:
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several figures share a page: their ids must differ.
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    head = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    svg = re.sub(r"<title>.*?</title>", "", svg, count=1, flags=re.DOTALL)
    attributes = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    return re.sub(r"<svg([^>]*)>", rf"<svg\1 {attributes}>{head}", svg, count=1).strip() + "\n"
