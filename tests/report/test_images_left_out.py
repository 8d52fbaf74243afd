"""The report names the test questions that are shown without their oldest images."""

from __future__ import annotations

from lumen_hpc.report.images_left_out import note


def test_questions_are_counted_once_for_all_models_and_controls_are_not() -> None:
    rows = [
        {"question_id": "a", "images_left_out": 2},
        {"question_id": "b", "images_left_out": 1},
        {"question_id": "c"},
    ]
    control = {"question_id": "d", "images_left_out": 4, "control": "same"}
    assert note(iter([*rows, *rows, control]), total=3) == [
        "Images left out: 2 of 3 test questions are too long for `train.max_tokens` and are shown without their oldest "
        "images, 3 in all."
    ]


def test_where_all_images_are_shown_nothing_is_said() -> None:
    assert note([{"question_id": "a"}], total=1) == note([], total=0) == []
