"""How many images and questions a run has, for estimates: as its stage prepare counted them, or as expected before.

Before, they are the paper's (section 2.1), or follow from the phantoms' settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config import config_file
from lumen_hpc.config.schema import Settings
from lumen_hpc.files import read_json

PREPARED_BY = ("seed", "data", "prepare")
"""Settings of stage prepare: with others, what it counted is no longer what a run will have."""
PAPER_FRACTION = 0.33
"""`prepare.difference_fraction` that keeps about as many difference questions as the paper has."""


@dataclass(frozen=True)
class Split:
    images: int
    diagnostic: int
    difference: float


TRAIN, TEST = Split(129_231, 428_995, 43_381), Split(4_190, 13_688, 1_369)
"""The paper's."""


@dataclass(frozen=True)
class Counts:
    images: int
    questions: int
    test_questions: int
    test_pairs: int
    """Test questions that show two images."""
    source: str
    """Whose they are, for people."""
    train: Split | None = None
    """None for phantoms that are not counted: their trainings are priced as the paper's."""


def of(run: Run) -> Counts:
    """What stage prepare counted with these settings; what is expected where it has not."""
    return _prepared_counts(run) or expected(run.settings)


def expected(settings: Settings) -> Counts:
    """Sizes of the data: the paper's, or what the phantom settings make."""
    if settings.data.source == "mimic":
        share, per_pair = (
            settings.prepare.difference_fraction / PAPER_FRACTION,
            1 + settings.rewrite.predictions_per_pair,
        )
        pair_questions = round(per_pair * share * (TRAIN.difference + TEST.difference))
        test, pairs = TEST.diagnostic + round(per_pair * share * TEST.difference), round(share * TEST.difference)
        questions = TRAIN.diagnostic + TEST.diagnostic + pair_questions
        train = Split(TRAIN.images, TRAIN.diagnostic, share * TRAIN.difference)
        return Counts(TRAIN.images + TEST.images, questions, test, pairs, "the paper's counts", train)
    phantom = settings.data.phantom
    images = phantom.patients * phantom.studies
    pairs = round(phantom.patients * (phantom.studies - 1) * phantom.test_fraction)
    return Counts(images, 12 * images, int(12 * images * phantom.test_fraction), pairs, "the phantoms' settings")


def _prepared_counts(run: Run) -> Counts | None:
    folder = run.path("prepare")
    line = manifest.latest(folder).get(0)
    if line is None or line["config"] != config_file.digest(run.settings, PREPARED_BY):
        return None
    try:
        counts = read_json(folder / "counts.json", {})
        splits = {name: {key: one["ours"] for key, one in split.items()} for name, split in counts["splits"].items()}
        sizes = {key: Split(one["images"], one["diagnostic"], one["difference"]) for key, one in splits.items()}
        train, test, per_pair = sizes["train"], sizes["test"], run.settings.rewrite.predictions_per_pair
        questions = counts["kept"] + per_pair * sum(split.difference for split in sizes.values())
        test_questions = test.diagnostic + (1 + per_pair) * test.difference
        images, pairs = counts["studies"]["asked_about"], int(test.difference)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # corrupt, which the stage's next reader reports
        return None
    return Counts(images, int(questions), int(test_questions), pairs, "the counts of stage prepare", train)
