"""Outcome questions: many wordings, variants that withhold information, and nothing told but what was known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from lumen_hpc.config.schema import ANALYTES, OUTCOMES, Instruct
from lumen_hpc.data.instructions import Sources
from lumen_hpc.errors import UserError
from lumen_hpc.models import MODELS
from lumen_hpc.outcomes import questions
from lumen_hpc.outcomes.panel import PANEL

SETTINGS = Instruct(max_images=3, clinical=["patient", "labs"], outcomes=["icu_48h", "death_30d"])


def test_the_settings_offer_every_analyte() -> None:
    assert tuple(analyte.name for analyte in PANEL) == ANALYTES


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_is_asked_in_at_least_ten_ways_with_its_horizon(outcome: str) -> None:
    asked = questions.wordings(outcome)
    assert len(set(asked)) >= 10 and all(text.endswith("?") and "{" not in text for text in asked)
    horizon = outcome.rpartition("_")[2]
    said = {"24h": "within 24 hours", "48h": "within 48 hours", "72h": "within 72 hours", "30d": "within 30 days",
            "365d": "within one year"}  # fmt: skip
    if horizon in said:
        assert all(said[horizon] in text for text in asked)


def test_an_outcome_without_wordings_names_the_file_that_lacks_them() -> None:
    with pytest.raises(UserError, match=r"readmission_30d: .* 'readmission' in lumen_hpc/outcomes/questions\.py"):
        questions.wordings("readmission_30d")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_answers_open_with_yes_or_no_and_differ_between_outcomes(outcome: str) -> None:
    assert questions.sentence(outcome, True).startswith("Yes, ")
    assert questions.sentence(outcome, False).startswith("No, ")
    assert len({questions.sentence(name, True) for name in OUTCOMES}) == len(OUTCOMES)


def made(tmp_path: Path, patients: int = 12, settings: Instruct = SETTINGS) -> list[tuple[str, dict[str, Any]]]:
    """The records of patients with three studies each: every third is of the train, val and test split."""
    studies, states, outcomes = [], [], []
    for patient in range(patients):
        for place in range(3):
            ids = {"subject_id": patient, "study_id": 100 + patient * 10 + place,
                   "split": ("train", "val", "test")[patient % 3]}  # fmt: skip
            studies.append({**ids, "image": f"{ids['study_id']}.jpg", "taken_at": f"2150-01-{10 + place}T08:00:00"})
            value = {"value": 1.5 + place, "unit": "mg/dL", "low": None, "high": None, "level": None, "hours": 2.0,
                     "change": None}  # fmt: skip
            states.append({**ids, "state": {
                "age": 50 + patient, "sex": "F", "place": "hospital", "hours": {"hospital": 4.0},
                "labs": {"creatinine": value},
            }})  # fmt: skip
            known = {"value": patient % 2 == 0} if place else {"unknown": "no reason"}
            outcomes.append({**ids, "outcomes": {"icu_48h": known, "death_30d": {"value": False}}})
    path = tmp_path / "states.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in states))
    experts = {str(row["study_id"]): f"Experts on {row['study_id']}." for row in studies}
    sources = Sources.join(studies, [], texts=questions.texts(path, experts, settings))
    return list(questions.records(outcomes, sources, settings, seed=0))


def of(found: list[tuple[str, dict[str, Any]]], study: int, outcome: str = "icu_48h") -> dict[str, dict[str, Any]]:
    """Variant → record of one test study."""
    return {
        record["meta"]["variant"]: record
        for split, record in found
        if split == "test" and record["meta"]["study_id"] == study and record["meta"]["outcome"] == outcome
    }


def test_a_record_shows_the_study_its_priors_and_the_state_at_each(tmp_path: Path) -> None:
    record = of(made(tmp_path), 122)["all"]
    assert record["images"] == ["120.jpg", "121.jpg", "122.jpg"]
    asked = record["conversations"][0]["value"].split("\n")
    assert asked[:-1] == [
        "earlier image, 2 days before: <image>", "Experts on 120.", "Patient: 52 years old, female.",
        "Laboratory values: creatinine 1.5 mg/dL (2 hours ago).",
        "earlier image, 1 day before: <image>", "Experts on 121.", "Patient: 52 years old, female.",
        "Laboratory values: creatinine 2.5 mg/dL (2 hours ago).",
        "current image: <image>", "Experts on 122.", "Patient: 52 years old, female.",
        "Laboratory values: creatinine 3.5 mg/dL (2 hours ago).",
    ]  # fmt: skip
    assert asked[-1] in questions.wordings("icu_48h")
    assert record["conversations"][1]["value"] == "Yes, intensive care is expected within 48 hours."


def test_the_last_image_alone_can_have_lines_of_its_state(tmp_path: Path) -> None:
    last = replace(SETTINGS, clinical_images="last", labs=["lactate"])
    asked = of(made(tmp_path, settings=last), 122)["all"]["conversations"][0]["value"].split("\n")
    assert asked[:-1] == [
        "earlier image, 2 days before: <image>", "Experts on 120.", "earlier image, 1 day before: <image>",
        "Experts on 121.", "current image: <image>", "Experts on 122.", "Patient: 52 years old, female.",
        "Laboratory values: none known.",
    ]  # fmt: skip


def test_the_outcomes_of_a_study_share_their_images(tmp_path: Path) -> None:
    shown: dict[int, set[str]] = {}
    for split, record in made(tmp_path, 60):
        if split == "train":
            shown.setdefault(record["meta"]["study_id"], set()).add(record["meta"]["variant"])
    assert len(set().union(*shown.values())) > 1 and all(len(variants) == 1 for variants in shown.values())


def test_an_unknown_outcome_is_not_asked(tmp_path: Path) -> None:
    assert of(made(tmp_path), 120) == {} and of(made(tmp_path), 122)


def test_of_a_val_or_test_patient_the_study_that_is_judged_is_asked_about(tmp_path: Path) -> None:
    asked: dict[str, set[int]] = {}
    for _, record in made(tmp_path):
        split = ("train", "val", "test")[(record["meta"]["study_id"] - 100) // 10 % 3]
        asked.setdefault(split, set()).add(record["meta"]["study_id"] % 10)
    assert asked == {"train": {0, 1, 2}, "val": {2}, "test": {2}}


def test_a_val_study_has_one_record_and_is_asked_about_as_a_test_study_with_everything(tmp_path: Path) -> None:
    found = [(split, record["meta"]) for split, record in made(tmp_path) if record["meta"]["subject_id"] == 1]
    asked = [(split, meta["outcome"]) for split, meta in found]
    assert sorted(asked) == [(split, outcome) for split in ("test", "val") for outcome in ("death_30d", "icu_48h")]
    assert {meta["variant"] for split, meta in found if split == "test"} == {"all"}


def test_no_record_shows_more_images_than_the_setting(tmp_path: Path) -> None:
    found = [record for _, record in made(tmp_path, 60, replace(SETTINGS, max_images=2))]
    for variants in ({questions.SHUFFLED}, questions.VARIANTS.keys()):
        shown = {len(record["images"]) for record in found if record["meta"]["variant"] in variants}
        assert shown == {1, 2}


def test_a_record_says_yes_or_no_as_its_outcome_does_in_one_of_many_wordings(tmp_path: Path) -> None:
    found = [record for _, record in made(tmp_path, 60) if record["meta"]["outcome"] == "icu_48h"]
    for record in found:
        answer = "yes" if record["meta"]["subject_id"] % 2 == 0 else "no"
        assert record["meta"]["short_answer"] == answer == record["meta"]["long_answer"].split(",")[0].lower()
    assert {record["meta"]["question"] for record in found} == set(questions.wordings("icu_48h"))


def test_each_variant_withholds_what_it_says(tmp_path: Path) -> None:
    found = of(made(tmp_path), 122)
    assert set(found) == {*questions.VARIANTS, questions.SHUFFLED}
    assert "creatinine" not in str(found["no laboratory values"]["conversations"])
    assert found["one image"]["images"] == ["122.jpg"] and found["two images"]["images"] == ["121.jpg", "122.jpg"]
    assert len({record["id"] for record in found.values()}) == len(found)


def test_a_line_is_written_only_where_the_findings_of_every_image_are_noted() -> None:
    sources = Sources.join([], [], findings={"1": {"edema": {}}, "2": {}})
    assert questions._findings_line(sources, [{"study_id": 1}, {"study_id": 2}])[0]
    assert questions._findings_line(sources, [{"study_id": 1}, {"study_id": 3}]) == ("", ())


def test_shuffled_images_are_another_test_patient_s_and_so_are_the_experts(tmp_path: Path) -> None:
    found = of(made(tmp_path), 122)[questions.SHUFFLED]
    strangers = {int(image.removesuffix(".jpg")) for image in found["images"]}
    assert all((study - 100) // 10 % 3 == 2 and (study - 100) // 10 != 2 for study in strangers)
    text = found["conversations"][0]["value"]
    assert "Experts on 122." not in text and f"Experts on {max(strangers)}." in text
    assert "creatinine 3.5" in text, "the laboratory values stay"


def test_the_findings_line_of_shuffled_images_is_theirs() -> None:
    taken = "2150-01-10T08:00:00"
    studies = [
        {"subject_id": n, "study_id": n, "split": "test", "image": f"{n}.jpg", "taken_at": taken} for n in (1, 2)
    ]
    sources = Sources.join(studies, [], findings={"1": {"edema": {}}, "2": {}}, line=("edema",))
    rows = [{**study, "outcomes": {"icu_48h": {"value": True}}} for study in studies]
    settings = Instruct(outcomes=["icu_48h"])
    found = of(list(questions.records(rows, sources, settings, seed=0)), 1)
    lines = {variant: record["conversations"][1]["value"].split(" ; ")[0] for variant, record in found.items()}
    assert (lines["all"], lines[questions.SHUFFLED]) == ("edema yes same", "edema no same")


def test_every_test_study_has_images_of_another_patient() -> None:
    rows = [{"study_id": 10 * patient + k, "subject_id": patient, "split": "test"} for patient in range(3)
            for k in range(9)]  # fmt: skip
    for seed in range(10):
        strangers = questions._strangers(rows, seed)
        assert strangers.keys() == {row["study_id"] for row in rows}
        assert all(study // 10 != other // 10 for study, other in strangers.items())
    assert questions._strangers(rows[:9], 0) == {}, "there is no other patient"


def test_records_do_not_hang_on_the_order_of_rows_or_on_other_patients(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    few = {record["id"]: record for split, record in made(tmp_path, 12) if split != "test"}
    more = {record["id"]: record for split, record in made(tmp_path / "more", 18) if split != "test"}
    assert few.items() <= more.items()


def test_training_records_are_of_every_variant(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    train = [record for split, record in made(tmp_path / "many", 120) if split == "train"]
    counted = {name: sum(r["meta"]["variant"] == name for r in train) / len(train) for name in questions.VARIANTS}
    assert counted == pytest.approx(questions.SHARES, abs=0.12)


def test_the_files_hold_lumen_s_records_and_the_outcome_s(tmp_path: Path) -> None:
    for split in ("train", "val"):
        row = {"id": f"d-{split}", "meta": {"type": "difference"}}
        (tmp_path / f"lumen-{split}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    written = questions.write(tmp_path, made(tmp_path))
    assert [path.name for path in written] == [
        "lumen-outcomes-train.jsonl", "lumen-outcomes-val.jsonl", "outcomes-test.jsonl",
    ]  # fmt: skip
    train = [orjson.loads(line) for line in written[0].read_bytes().splitlines()]
    assert train[0]["id"] == "d-train" and {row["meta"]["type"] for row in train[1:]} == {"outcome"}
    test = [orjson.loads(line)["meta"] for line in written[2].read_bytes().splitlines()]
    splits = {meta["subject_id"] % 3 for meta in test}
    assert splits == {1, 2}, "val is asked too, to recalibrate on"


def test_a_model_of_outcomes_alone_has_no_other_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(MODELS["lumen-outcomes"], name="alone", trains_on=("outcome", "prediction"))
    monkeypatch.setitem(MODELS, "alone", alone)
    rows = [{"id": name, "meta": {"type": name}} for name in ("difference", "prediction", "presence")]
    for split in ("train", "val"):
        (tmp_path / f"lumen-{split}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    questions.write(tmp_path, made(tmp_path))
    lines = (tmp_path / "alone-train.jsonl").read_bytes().splitlines()
    assert {orjson.loads(line)["meta"]["type"] for line in lines} == {"prediction", "outcome"}
