"""From a run's files to its page on outcomes: the right rows, the oracles beside them, and TRIPOD+AI's items."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lumen_hpc.config import resolve
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.outcomes import evaluation
from lumen_hpc.outcomes.features import _prior_studies, cohort, last_studies
from lumen_hpc.outcomes.questions import SHUFFLED
from lumen_hpc.report import outcomes_page
from tests.outcomes.test_phantom_tables import run

ORACLE = "three images and laboratory values"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    run(folder, 900)
    return folder


def answers(folder: Path, oracles: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """A model that knows what the oracle knows, and chance where its images are shuffled."""
    rng, rows = np.random.default_rng(0), []
    for study, p in oracles[ORACLE].items():
        name = f"outcome/icu_48h/{study}"
        rows.append({"question_id": name, "yes": p})
        rows.append({"question_id": f"{name}/{SHUFFLED}", "yes": float(rng.random())})
    rows.append({"question_id": "outcome/icu_48h/0", "yes": None})
    return rows


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    oracles = evaluation.oracles(folder / "truth.jsonl", folder / "out", 1.0)
    return evaluation.evaluate(
        folder / "out", folder / "studies.jsonl", (), {"lumen-outcomes": answers(folder, oracles)},
        ["icu_48h", "death_365d"], resamples=100, seed=0, oracles=oracles,
    )  # fmt: skip


def test_rivals_and_variants_are_rows_of_one_table(found: dict[str, Any]) -> None:
    rows = found["icu_48h"]["rows"]
    assert list(rows) == [
        "prevalence", "age and sex", "laboratory values, regression", "laboratory values, boosting", "lumen-outcomes",
        f"lumen-outcomes, {SHUFFLED}",
    ]  # fmt: skip
    assert rows["lumen-outcomes"]["auroc"].value > rows["laboratory values, regression"]["auroc"].value + 0.05
    assert abs(rows[f"lumen-outcomes, {SHUFFLED}"]["auroc"].value - 0.5) < 0.12
    assert found["icu_48h"]["differences"]["lumen-outcomes"]["auroc"].low > 0


def test_the_oracle_has_the_same_auroc_as_a_model_that_knows_as_much(found: dict[str, Any]) -> None:
    assert found["icu_48h"]["oracles"][ORACLE] == found["icu_48h"]["rows"]["lumen-outcomes"]["auroc"].value


def test_an_outcome_that_no_model_was_asked_about_has_its_rivals(found: dict[str, Any]) -> None:
    table = found["death_365d"]
    assert not any(row["model"] for row in table["rows"].values())
    low, high = table["survival"]["concordance, bounds"]
    assert 0.5 < table["survival"]["concordance"] <= 1 and low < table["survival"]["concordance"] < high
    low, _, high = (curve["alive"][-1] for curve in table["survival"]["curves"])
    assert low > high


def test_each_patient_counts_once_with_the_last_study(folder: Path, found: dict[str, Any]) -> None:
    rows = [row for row in read_jsonl(folder / "out" / "outcomes.jsonl") if "value" in row["outcomes"]["icu_48h"]]
    patients = {row["subject_id"] for row in rows if row["split"] == "test"}
    assert found["icu_48h"]["patients"] + found["icu_48h"]["unanswered"] == len(patients)


@pytest.mark.parametrize("order", [1, -1])
def test_the_last_study_is_so_by_time_whatever_the_order_of_rows(order: int) -> None:
    taken = {5: "2150-01-09", 3: "2150-01-10", 4: "2150-01-10T08:00:00", 9: "2150-01-02T08:00:00"}
    rows = [{"study_id": study, "subject_id": 1} for study in taken][::order]
    assert last_studies(rows, taken) == {4}


def test_experts_of_a_study_that_is_not_known_to_be_earlier_are_no_rivals(tmp_path: Path) -> None:
    taken = {5: "2150-01-09T08:00:00", 3: "2150-01-10", 4: "2150-01-10T08:00:00", 2: "2150-01-10T09:00:00"}
    path = tmp_path / "studies.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"study_id": study, "subject_id": 1}) + b"\n" for study in taken))
    assert _prior_studies(path, taken) == {5: [0, 0], 3: [5, 0], 4: [5, 0], 2: [4, 5]}


def test_the_page_shows_every_row_and_fills_tripod_s_items(folder: Path, found: dict[str, Any]) -> None:
    words = ["stage=full", "recipe=demo-outcomes", "instruct.outcomes=[icu_48h,death_365d]"]
    settings = resolve.resolve(words).settings
    counts = orjson.loads((folder / "out" / "counts.json").read_bytes())
    notes = ["2 images left out"]
    page, numbers = outcomes_page.write(folder / "report", found, counts, settings, {"name": "a <run>"}, notes=notes)
    text = page.read_text()
    assert "<p>2 images left out</p>" in text and "a &lt;run&gt;" in text and "<script" not in text
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src-elem &#39;sha256-{digest}" in text and 'content="default-src &#39;none&#39;' in text
    for name, table in found.items():
        assert f'id="{name}"' in text
        assert all(f">{row}</th>" in text for row in table["rows"])
    assert text.count("<svg") == 5, "two figures an outcome, and survival"
    assert "<li>lumen-outcomes minus laboratory values, regression: 0." in text
    items = outcomes_page.tripod(found, counts, settings)
    assert all(topic and said for _, topic, said in items) and len({item for item, _, _ in items}) == len(items)
    assert "overlapping admissions" in dict((item, said) for item, _, said in items)["7"]
    assert orjson.loads(numbers.read_bytes())["icu_48h"]["patients"] == found["icu_48h"]["patients"]


def test_an_outcome_without_events_is_named_on_the_page(folder: Path, tmp_path: Path) -> None:
    settings = resolve.resolve(["stage=full", "recipe=demo-outcomes"]).settings
    counts = orjson.loads((folder / "out" / "counts.json").read_bytes())
    table = {"icu_48h": {"patients": 3, "events": 0, "unanswered": 0, "train": 1, "val": 1, "unjudged": "too few"}}
    page, _ = outcomes_page.write(tmp_path, table, counts, settings, {"name": "few"})
    assert "Not judged: too few." in page.read_text()


@pytest.mark.parametrize(("patients", "bounds"), [("ababcdcdefef", (0.0, 1.0)), ("aabbccddeeff", (None, None))])
def test_timeline_answers_are_scored_by_their_reading_and_resampled_by_patient(
    patients: str, bounds: tuple[float | None, float | None]
) -> None:
    metas = [
        {"question_id": f"t{k}", "type": "timeline", "kind": "since when", "variant": "all", "short_answer": short}
        | {"subject_id": patients[k]}
        for k, short in enumerate(("9 days before", "9 days before", "taken now", "30 days before") * 3)
    ]
    said = ("Edema has been seen since the image 9 days before.", "since 30 days before", "the current image", "yes")
    rows = [{"question_id": f"t{k}", "answer": answer} for k, answer in enumerate(said * 3)]
    records = [{"meta": meta} for meta in (*metas, {"type": "outcome"})]
    (score,) = evaluation.timeline_scores(records, {"lumen-outcomes": rows}, resamples=500, seed=0)
    assert score["n"] == 12 and score["right"].value == 0.5 and score["constant"] == 0.5
    assert (score["right"].low, score["right"].high) == bounds


def test_oracles_are_judged_on_the_patients_that_the_rows_are_judged_on(folder: Path) -> None:
    oracles = evaluation.oracles(folder / "truth.jsonl", folder / "out", 1.0)
    some = [row for k, row in enumerate(answers(folder, oracles)) if k % 5]
    (table,) = evaluation.evaluate(
        folder / "out", folder / "studies.jsonl", (), {"lumen-outcomes": some}, ["icu_48h"], resamples=20, seed=0,
        oracles=oracles,
    ).values()  # fmt: skip
    assert table["unanswered"]
    assert table["oracles"][ORACLE] == table["rows"]["lumen-outcomes"]["auroc"].value


def test_the_previous_study_is_the_patients_own_and_its_distance_a_subgroup(
    folder: Path, found: dict[str, Any]
) -> None:
    by_patient: dict[int, list[str]] = {}
    for row in read_jsonl(folder / "studies.jsonl"):
        by_patient.setdefault(row["subject_id"], []).append(row["taken_at"])
    samples = cohort(folder / "out", folder / "studies.jsonl", "icu_48h")
    taken = {int(row["study_id"]): row["taken_at"] for row in read_jsonl(folder / "studies.jsonl")}
    expected = []
    for study, patient in zip(samples.study_id, samples.patient):
        earlier = [np.datetime64(other) for other in by_patient[patient] if other < taken[study]]
        days = (np.datetime64(taken[study]) - max(earlier)) / np.timedelta64(1, "D") if earlier else None
        expected.append("none" if days is None else ["up to 3 days", "3 to 30 days", "over 30 days"][
            int(days > 3) + int(days > 30)
        ])  # fmt: skip
    assert samples.subgroups["previous study"] == expected and len(set(expected)) > 1
    parts = found["icu_48h"]["subgroups"]["lumen-outcomes"]["previous study"]["parts"]
    assert set(parts) <= set(expected) and all(part["patients"] >= 20 for part in parts.values())
    order = ["up to 3 days", "3 to 30 days", "over 30 days", "none"]
    assert list(parts) == [band for band in order if band in parts] and len(parts) > 1
