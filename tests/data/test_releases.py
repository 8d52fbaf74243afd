"""Medical-Diff-VQA as it is published: reversed pairs of 1.0.0, repeated pairs of 1.0.1."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from lumen_hpc.config.data_schema import Data, Prepare
from lumen_hpc.data.counts import UNKNOWN_RELEASE, release_lines
from lumen_hpc.data.diff_vqa import parse_difference
from lumen_hpc.data.prepare import prepare
from lumen_hpc.data.records import read_jsonl
from sandbox import lookalike
from tests.data.small_dataset import CHANGED, METADATA, QUESTIONS, Dataset

ALL = {"one_study_per_test_subject": False}
BOTH = "the main image has additional findings of edema, and nodule than the reference image. "
BOTH_TURNED = "the main image has additional findings of nodule and  Edema than the reference image."
AREA = "what has changed in the left lung area?"
EDEMA = "the main image has an additional finding of edema than the reference image. "


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """One patient's pairs alone."""
    dataset = Dataset(tmp_path)
    dataset.tables[QUESTIONS] = dataset.tables[QUESTIONS][:8]
    return dataset


def rows(folder: Path, name: str) -> list[dict]:
    return list(read_jsonl(folder / f"{name}.jsonl"))


def accounted(counts: dict) -> bool:
    return counts["read"] == counts["kept"] + sum(counts["left_out"].values()) + counts["rejected"]["questions"]


def test_a_repeat_with_equal_facts_is_one_question_and_counted(dataset):
    dataset.ask(50000012, 50000011, "difference", CHANGED, BOTH)
    dataset.ask(50000012, 50000011, "difference", CHANGED, BOTH_TURNED)
    dataset.ask(50000012, 50000011, "difference", CHANGED, BOTH)
    counts = dataset.write().run(**ALL)
    assert counts["left_out"] == {"repeat of a question": 2} and counts["kept"] == 8 and accounted(counts)
    assert counts["rejected"] == {"questions": 0, "rows_by_kind": {}}
    assert [row["short_answer"] for row in rows(dataset.out, "questions") if row["ref_study_id"]] == [BOTH]
    assert counts["release"]["repeated"] == 2
    assert "2 of 3 difference questions repeat" in release_lines(counts["release"])[0]


@pytest.mark.parametrize(("overlap", "left_out"), [("drop", 7), ("allow", 1)])
def test_of_a_question_in_two_splits_the_held_out_one_stays(dataset, overlap, left_out):
    dataset.ask(50000012, 50000011, "difference", CHANGED, EDEMA)
    dataset.tables[QUESTIONS].append([*dataset.tables[QUESTIONS][-1][:-1], "test"])
    counts = dataset.write().run(patient_overlap=overlap, **ALL)
    assert counts["splits"]["test"]["difference"]["ours"] == 1 and accounted(counts)
    assert counts["left_out"]["repeat of a question"] == 1
    assert not any(row["split"] == "train" for row in rows(dataset.out, "questions") if row["ref_study_id"])


def test_a_contradiction_is_a_bad_row(dataset):
    dataset.ask(50000012, 50000011, "difference", CHANGED, BOTH)
    dataset.ask(50000012, 50000011, "difference", CHANGED, EDEMA)
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert counts["rejected"]["rows_by_kind"] == {"contradictory answer": 1} and accounted(counts)
    assert rows(dataset.out, "rejected")[0]["row"] == 9


@pytest.mark.parametrize("first", [BOTH, EDEMA])
def test_of_two_answers_about_an_area_the_one_with_fewer_facts_is_its_own(dataset, first):
    dataset.ask(50000012, 50000011, "difference", AREA, first)
    dataset.ask(50000012, 50000011, "difference", AREA, EDEMA if first == BOTH else BOTH)
    counts = dataset.write().run(**ALL)
    assert counts["left_out"] == {"answer about the whole image to a question about an area": 1} and accounted(counts)
    assert [row["short_answer"] for row in rows(dataset.out, "questions") if row["ref_study_id"]] == [EDEMA]


@pytest.mark.parametrize("answers", sorted({*permutations([BOTH, EDEMA, EDEMA]), *permutations([BOTH, BOTH, EDEMA])}))
def test_of_more_answers_about_an_area_one_is_kept_in_any_order(dataset, answers):
    """Two would share an id, which stops a training."""
    for answer in answers:
        dataset.ask(50000012, 50000011, "difference", AREA, answer)
    counts = dataset.write().run(**ALL)
    assert [row["short_answer"] for row in rows(dataset.out, "questions") if row["ref_study_id"]] == [EDEMA]
    assert sum(counts["left_out"].values()) == 2 and accounted(counts)


@pytest.mark.parametrize(("finding", "outcome"), [("effusion", "left_out"), ("edema", "rejected")])
def test_two_findings_of_one_area_are_both_true(dataset, finding, outcome):
    for name, after in (("edema", "severe"), (finding, "mild")):
        dataset.ask(50000012, 50000011, "difference", AREA, f"the level of {name} has changed from small to {after}. ")
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert [row["short_answer"][13:18] for row in rows(dataset.out, "questions") if row["ref_study_id"]] == ["edema"]
    assert counts["left_out"] == ({"another finding of the same area": 1} if outcome == "left_out" else {})
    assert counts["rejected"]["questions"] == (outcome == "rejected") and accounted(counts)


def test_the_ref_id_of_other_questions_is_ignored(dataset):
    for row, reference in zip(dataset.tables[QUESTIONS][1:], (50000012, "50000011.0", "nan", 50000012, "?", 1, "")):
        row[2] = reference
    counts = dataset.write().run(**ALL)
    assert counts["kept"] == 7 and {row["ref_study_id"] for row in rows(dataset.out, "questions")} == {None}


def test_reversed_pairs_are_reported_and_kept(dataset):
    dataset.ask(50000011, 50000012, "difference", CHANGED, EDEMA)
    counts = dataset.write().run(**ALL)
    assert counts["release"] == {
        "recognised": "1.0.0", "difference": 1, "reversed": 1, "reversed_share": 1.0, "reordered": 0, "repeated": 0,
    }  # fmt: skip
    first, second = release_lines(counts["release"])
    assert first.startswith("Medical-Diff-VQA 1.0.0: in 1 of 1 difference questions (100.0%)") and "1.0.1" in first
    assert "prepare.reversed_pairs=reorder" in second
    pair = rows(dataset.out, "questions")[-1]
    assert (pair["study_id"], pair["ref_study_id"], pair["interval_days"]) == (50000011, 50000012, -59)


def test_reversed_pairs_are_exchanged_with_their_facts(dataset):
    answer = (
        "the main image has an additional finding of edema than the reference image. "
        "the main image is missing the findings of nodule, and pneumonia than the reference image. "
        "the level of effusion has changed from small to moderate. "
    )
    dataset.ask(50000011, 50000012, "difference", CHANGED, answer)
    dataset.ask(50000012, 50000011, "difference", AREA, EDEMA)
    counts = dataset.write().run(reversed_pairs="reorder", **ALL)
    exchanged, ordered = rows(dataset.out, "questions")[-2:]
    assert (exchanged["study_id"], exchanged["ref_study_id"], exchanged["interval_days"]) == (50000012, 50000011, 59)
    change = parse_difference(exchanged["short_answer"])
    assert (change.new, change.resolved) == (("nodule", "pneumonia"), ("edema",))
    assert [(level.before, level.after) for level in change.levels] == [("moderate", "small")]
    assert ordered["short_answer"] == EDEMA and counts["intervals"]["negative"] == 0
    assert counts["release"]["reordered"] == 1
    assert "exchanged 1 of them" in release_lines(counts["release"])[1]


def test_a_reversed_pair_whose_answer_cannot_be_written_for_the_other_order_is_a_bad_row(dataset):
    answer = "the level of edema, mild has changed from small to large. "  # a comma separates names elsewhere
    dataset.ask(50000011, 50000012, "difference", CHANGED, answer)
    counts = dataset.write().run(reversed_pairs="reorder", on_bad="skip", max_bad=0.5, **ALL)
    assert counts["rejected"]["rows_by_kind"] == {"answer outside the grammar": 1} and accounted(counts)


def test_a_pair_of_one_day_keeps_its_order(dataset):
    for row in dataset.tables[METADATA][1:3]:
        row[7] = "21500101"
    dataset.ask(50000012, 50000011, "difference", CHANGED, EDEMA)
    counts = dataset.write().run(reversed_pairs="reorder", **ALL)
    pair = rows(dataset.out, "questions")[-1]
    assert (pair["study_id"], pair["interval_days"], pair["short_answer"]) == (50000012, 0, EDEMA)
    assert counts["release"]["reordered"] == 0


def test_a_pair_in_both_orders_becomes_one_question_when_reordered(dataset):
    dataset.ask(50000012, 50000011, "difference", CHANGED, BOTH)
    dataset.ask(50000011, 50000012, "difference", CHANGED, BOTH.replace("has additional", "is missing the"))
    assert dataset.write().run(**ALL)["kept"] == 9
    counts = dataset.run(reversed_pairs="reorder", **ALL)
    assert counts["left_out"] == {"repeat of a question": 1} and accounted(counts)


def test_ordered_pairs_without_repeats_print_nothing(dataset):
    dataset.ask(50000012, 50000011, "difference", CHANGED, EDEMA)
    counts = dataset.write().run(**ALL)
    assert counts["release"]["recognised"] == "1.0.1" and release_lines(counts["release"]) == []


@pytest.mark.parametrize("again", ["{} ", " {}", "{}\t", "what  has changed compared to the reference image?"])
def test_a_question_with_other_spaces_is_the_same_question(dataset, again):
    dataset.ask(50000012, 50000011, "difference", CHANGED, EDEMA)
    dataset.ask(50000012, 50000011, "difference", again.format(CHANGED), EDEMA)
    assert dataset.write().run(**ALL)["left_out"] == {"repeat of a question": 1}
    dataset.tables[QUESTIONS][-1][5] = BOTH
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert counts["rejected"]["rows_by_kind"] == {"contradictory answer": 1}


def test_a_file_that_holds_rows_of_both_releases_is_recognised(tmp_path):
    both = [lookalike.write(tmp_path / release, 6000, release=release) for release in ("1.0.0", "1.0.1")]
    first, second = (folder / QUESTIONS for folder in both)
    first.write_text(first.read_text() + second.read_text().split("\n", 1)[1])
    data = Data(source="mimic", mimic_cxr=f"{both[0]}/mimic-cxr-jpg", diff_vqa=f"{both[0]}/medical-diff-vqa")
    counts = prepare(data, Prepare(images="trust", on_bad="skip", max_bad=0.5), 0, tmp_path / "out")
    assert counts["release"]["recognised"] == UNKNOWN_RELEASE and accounted(counts)
    assert (
        "fits none (48.5% in 1.0.0, 0.0% in 1.0.1): does the file hold rows of both?"
        in release_lines(counts["release"])[0]
    )


@pytest.fixture(scope="module", params=["1.0.0", "1.0.1"])
def published(request, tmp_path_factory) -> tuple[str, Data]:
    folder = lookalike.write(tmp_path_factory.mktemp("published"), 8000, release=request.param)
    return request.param, Data(
        source="mimic", mimic_cxr=f"{folder}/mimic-cxr-jpg", diff_vqa=f"{folder}/medical-diff-vqa"
    )


@pytest.mark.parametrize("reversed_pairs", ["keep", "reorder"])
def test_each_release_is_prepared_with_default_settings_and_adds_up(published, tmp_path, reversed_pairs):
    release, data = published
    counts = prepare(data, Prepare(images="trust", reversed_pairs=reversed_pairs), 0, tmp_path)
    assert counts["read"] == 8000 and accounted(counts) and counts["rejected"]["rows_by_kind"] == {}
    assert counts["kept"] == len(rows(tmp_path, "questions"))
    assert sum(counts["left_out"].values()) == len(rows(tmp_path, "left_out"))
    found = counts["release"]
    assert found["recognised"] == release
    assert (0.4 < found["reversed_share"] < 0.55) == (release == "1.0.0")
    assert (found["repeated"] > 0.07 * found["difference"]) == (release == "1.0.1" or reversed_pairs == "reorder")
    assert (counts["intervals"]["negative"] > 0) == (release == "1.0.0" and reversed_pairs == "keep")
    agreement = counts["studies"]["mimic_all"]
    assert agreement["another_date"] == agreement["no_date"] == 0
