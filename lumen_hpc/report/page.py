"""The page: one self-contained HTML file, rendered from `page.html`, `page.css` and `page.js` beside this file."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from lumen_hpc.report import costs, figures, findings, tables
from lumen_hpc.report.baselines import BASELINES
from lumen_hpc.report.budgets import Budget
from lumen_hpc.report.cases import Cases
from lumen_hpc.report.controls import CONTROLS, Control, by_measure
from lumen_hpc.report.controls import MEASURES as CONTROL_MEASURES
from lumen_hpc.report.costs import Cost
from lumen_hpc.report.criteria import Criterion
from lumen_hpc.report.findings import Confusion, Detection
from lumen_hpc.report.identity import Identity
from lumen_hpc.report.language_checks import Acceptance, Share
from lumen_hpc.report.seeds import Spread
from lumen_hpc.report.slices import Slice
from lumen_hpc.report.tables import MEASURES, Table

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the page shows; an empty part says on the page why it is empty."""

    identity: Identity
    labels: Mapping[str, str]
    """Model → its name."""
    self_check: str
    """How far nltk and rouge-score agree with the run's own scores."""
    comparison: str
    """Whether the principal model does better than its own readings plus a rule; empty if that was not asked."""
    exposure: str
    """What the experts have seen of the test images before; empty if unknown."""
    budgets: Sequence[Budget]
    """What each trained model has learned from."""
    tables: Sequence[Table]
    notes: Sequence[str]
    figures: Mapping[str, str]
    """Name → SVG."""
    gates: Sequence[Criterion]
    ceilings: Mapping[str, float | None]
    """Oracle → its change F1 on the prediction questions (phantoms only)."""
    controls: Sequence[Control]
    slices: Sequence[Slice]
    seeds: Sequence[Spread]
    """The spread between several trainings of a model; empty where each was trained once."""
    canaries: Sequence[Share]
    unfit: Sequence[str]
    """A line for every judge that failed them."""
    agreement: Mapping
    """Of two judges (`language.judge.agreement`); empty where there was one."""
    acceptance: Acceptance | None
    costs: Sequence[Cost]
    accounted: bool
    """True if Slurm's accounting of the jobs was available."""
    counts: Mapping
    detections: Sequence[Detection]
    confusions: Sequence[Confusion]
    small: int
    """Numbers on fewer questions carry a warning."""
    cases: Cases
    problems: Sequence[str]
    settings: Mapping[str, str]
    """Those that differ from their defaults."""
    run: Mapping[str, str]
    restricted: bool
    """True where images and texts were left out on purpose."""


def draw_figures(
    result_tables: Sequence[Table], slices: Sequence[Slice], controls: Sequence[Control], canaries: Sequence[Share],
    acceptance: Acceptance | None, training: Mapping[str, Sequence[dict]],
) -> dict[str, str]:  # fmt: skip
    """Every figure that the run has data for, by name."""
    models = result_tables[0].labels
    svgs = {
        **{table.name.replace(" ", "-"): figures.headline(table, models) for table in result_tables},
        "interval-difference": figures.by_interval(slices, "difference", models),
        "interval-prediction": figures.by_interval(slices, "prediction", models),
        "controls": figures.control_panels(controls, models),
        "training": figures.training(training, models),
        "canaries": figures.shares("Judge canaries: share passed", canaries),
        "rewriting": figures.shares(
            "Rewrites: share that passed the fact check", acceptance.accepted if acceptance else ()
        ),
    }
    return {name: svg for name, svg in svgs.items() if svg}


def template(name: str, **filters: Callable) -> Template:
    """A page's template in this folder, with its filters; values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(name)


def render(content: Content) -> str:
    """The page as HTML: self-contained, no request leaves it."""
    page = template(
        "page.html",
        label=lambda model: content.labels.get(model, model),
        number=_number,
        duration=_duration,
        bytes=_bytes,
        energy=_energy,
        code=_code,
    )
    css, js = (_HERE / "page.css").read_text(), (_HERE / "page.js").read_text() + (_HERE / "viewer.js").read_text()
    return page.render(
        **vars(content),
        css=css,
        js=js,
        policy=policy(css, js),
        data=_script_json(_browser_data(content)),
        lead=_lead(content),
        tiles=_tiles(content),
        contents=[item for item in _SECTIONS.items() if item[0] != "gates" or content.gates or content.ceilings],
        grouped=[(key, list(group)) for key, group in groupby(content.slices, lambda each: (each.by, each.block))],
        predictors=[
            (cell.model, cell.value)
            for _, cells in content.tables[0].rows
            for cell in cells
            if (cell.block, cell.measure) == ("prediction", "change_f1") and cell.value is not None
        ],
        splits=_splits(content.counts),
        wall=costs.wall_seconds(content.costs),
        energy=costs.energy(content.costs),
        measures=content.tables[0].titles,
        published=tables.published,
        star=tables.star,
        baselines=BASELINES,
        few=_small_cells(content),
        ways=findings.WAYS,
        directions=(*findings.DIRECTIONS, findings.NOT_READ),
        control_titles=CONTROLS,
        control_rows=by_measure(content.controls),
        asked_under=_question_counts(content.controls),
        control_measures=CONTROL_MEASURES,
    )  # fmt: skip


def policy(css: str, js: str) -> str:
    """The page's Content-Security-Policy: its own script and style by their hashes, inline images, and no network.

    Text of a record that became markup after all could neither run nor send anything. The figures style their elements
    by attributes, which cannot be hashed.
    """
    script, style = (b64encode(sha256(text.encode()).digest()).decode() for text in (js, css))
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src-elem 'sha256-{style}'; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


_SECTIONS = {
    "results": "Results", "gates": "Gates and ceilings", "controls": "Image-reliance controls",
    "findings": "Findings", "slices": "Slices",
    "training": "Training", "language": "Language model", "costs": "Cost", "cases": "Cases", "run": "This run",
}  # fmt: skip
_TILES = (
    ("difference", "change_f1"),
    ("prediction", "change_f1"),
    ("difference", "rouge_l"),
    ("prediction", "rouge_l"),
    ("diagnostic", "accuracy_polarity"),
    ("diagnostic", "finding_f1"),
)


def _lead(content: Content) -> str:
    largest_n = max((cell.n for table in content.tables for _, cells in table.rows for cell in cells), default=0)
    models = ", ".join(content.labels[model] for model, _ in content.tables[0].rows if model not in BASELINES)
    return f"{models}: {content.cases.total} test questions, up to {largest_n} per number."


def _tiles(content: Content) -> list[dict]:
    """The principal model's headline numbers, and how many of the demo's gates passed."""
    tiles = []
    for cell in (cell for table in content.tables for cell in table.rows[-1][1]):
        if (cell.block, cell.measure) in _TILES and cell.value is not None:
            bounds = "" if cell.low is None else f"{cell.low:.2f}–{cell.high:.2f}"
            name = f"{cell.block} · {MEASURES[cell.measure]}"
            tiles.append({"name": name, "value": f"{cell.value:.3f}", "bounds": bounds, "kind": ""})
    if content.gates:
        passed = sum(gate.passed for gate in content.gates)
        kind = "good" if passed == len(content.gates) else "bad"
        tiles.append({"name": "gates passed", "value": f"{passed} of {len(content.gates)}", "bounds": "", "kind": kind})
    return tiles


def _small_cells(content: Content) -> int:
    """Numbers of the tables that stand on fewer questions than `evaluate.small`."""
    cells = [cell for table in content.tables for _, cells in table.rows for cell in cells]
    return sum(cell.value is not None and cell.n < content.small for cell in cells)


def _question_counts(controls: Sequence[Control]) -> dict[str, dict[tuple[str, str], int]]:
    """Model → (control, measure) → the questions that it stands on."""
    counts: dict[str, dict[tuple[str, str], int]] = {}
    for control in controls:
        counts.setdefault(control.model, {}).update({(control.name, m): n for m, n in control.n.items()})
    return counts


def _splits(counts: Mapping) -> list[tuple[str, str, object, object]]:
    """prepare's counts of each split beside the paper's."""
    return [
        (split, name, _format_count(value["ours"]), _format_count(value["paper"]))
        for split, counts_by_name in counts.get("splits", {}).items()
        for name, value in counts_by_name.items()
    ]


def _format_count(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


_CASE_MEASURES = {
    "judge": "judge",
    "change_f1_macro": "change F1",
    "finding_f1_macro": "finding F1",
    "accuracy_polarity": "yes/no right",
    "recall_clipped": "recall",
}


def _browser_data(content: Content) -> dict:
    """What page.js reads; the last model is the one whose outcomes are shown first."""
    return {
        "rows": content.cases.rows,
        "images": content.cases.images,
        "models": [[model, content.labels[model]] for model, _ in content.tables[0].rows if model not in BASELINES],
        "measures": dict(content.tables[0].titles) | _CASE_MEASURES,
    }


def _script_json(data: object) -> str:
    """JSON that cannot end its <script> element early."""
    return orjson.dumps(data).decode().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _code(text: str) -> Markup:
    """A note's `words` as <code>."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _energy(joules: float | None) -> str:
    return "–" if joules is None else f"{joules / 3.6e6:.3f} kWh"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
