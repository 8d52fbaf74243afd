"""Whether a run shows that its model compares images, or whether separate readings plus a rule do as well."""

from __future__ import annotations

from dataclasses import dataclass

from lumen_hpc.metrics.significance import Interval
from lumen_hpc.report.identity import COMPOSED
from lumen_hpc.report.results import Results


@dataclass(frozen=True)
class Comparison:
    """The principal model's change F1 on difference questions minus that of separate readings plus the rule.

    The readings are those of any model, the principal one among them, that come closest to it.
    """

    gap: Interval
    label: str
    readings: str
    """The row of these readings."""
    ceiling: float | None = None
    """Change F1 of the best two separate readings and a rule on these pairs, where it is known: of phantoms."""

    @property
    def shown(self) -> bool:
        """True where the model does better than two separate readings."""
        return self.gap.low is not None and self.gap.low > 0

    def __str__(self) -> str:
        bounds = "" if self.gap.low is None else f" [{self.gap.low:+.3f}, {self.gap.high:+.3f}]"
        verdict = (
            "it compares the images better than two separate readings do"
            if self.shown
            else "this run does not show that it compares the images: two separate readings and a rule do as well"
        )
        quantity = f"{self.label} minus {self.readings}, change F1 on difference questions"
        ceiling = (
            f" No reader of one image at a time and no rule reach more than {self.ceiling:.3f} on these pairs."
            if self.ceiling is not None
            else ""
        )
        return f"{quantity}: {self.gap.value:+.3f}{bounds}; {verdict}.{ceiling}"


def comparison(results: Results, ceiling: float | None = None) -> Comparison | None:
    """None where the run asked the principal model no single-image probes (`predict.controls=[composed]`)."""
    model = results.principal
    if model + COMPOSED not in results.samples:
        return None
    gaps = []
    for readings in results.samples:
        gap = (
            results.cell("difference", "change_f1", readings, tested=True).difference
            if readings.endswith(COMPOSED)
            else None
        )
        if gap is not None and gap.value is not None:
            low, high = (None, None) if gap.low is None or gap.high is None else (-gap.high, -gap.low)
            gaps.append((low if low is not None else -gap.value, readings, Interval(-gap.value, low, high)))
    if not gaps:
        return None
    _, readings, closest = min(gaps)  # better than separate readings is better than the best of them
    return Comparison(closest, results.label(model), results.label(readings), ceiling)
