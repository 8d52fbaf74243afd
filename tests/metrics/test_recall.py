"""Token recall has LLaVA-Med's habits, each with the example that shows it."""

import pytest

from lumen_hpc.metrics.recall import clipped_recall, recall, words


def test_repetition_inflates_the_published_recall_but_not_the_clipped_one():
    answer, reference = "effusion effusion effusion", "effusion edema"
    assert recall(answer, reference) == 0.75
    assert clipped_recall(answer, reference) == 0.5


@pytest.mark.parametrize(
    "answer, reference", [("", "edema"), ("edema", ""), ("", ""), ("the", "a"), ("edema", "nodule")]
)
def test_an_empty_side_or_nothing_shared_is_zero(answer, reference):
    assert recall(answer, reference) == 0
    assert clipped_recall(answer, reference) == 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Left-sided effusion", "left sided effusion"),  # a mark between letters becomes a space
        ("left-sided - effusion", "leftsided effusion"),  # beside a space anywhere, it is dropped everywhere
        ("edema -like a-b", "edema like ab"),  # on either side
        ("3,5 cm (left)", "35 cm left"),  # a comma between digits drops every mark
        ("3,5cm a/b", "35cm ab"),
        ("edema, nodule", "edema nodule"),
        ("edema,nodule", "edema nodule"),
        ("3.5 cm. small.", "3.5 cm small"),  # a period stays before a digit only
        ("none of the two", "0 of 2"),  # numbers are digits, articles go
        ("ten One ZERO", "10 1 0"),
        ("it isnt; couldnt've", "it isn't couldn't've"),
        ("somebody'd", "somebodyd"),  # the one form that loses its apostrophe
        ("an the a", ""),
        ("don't\tstop\nhere", "don't stop here"),
    ],
)
def test_words_are_normalised_as_published(text, expected):
    assert words(text) == expected.split()


def test_two_passes_remove_64_periods_and_leave_the_rest():
    assert words("x. " * 70)[62:66] == ["x", "x", "x.", "x."]


def test_recall_of_a_longer_answer():
    # Shared: small (twice in the answer), effusion; missed: left.
    assert recall("a small, small effusion", "small left effusion") == 3 / 4
    assert clipped_recall("a small, small effusion", "small left effusion") == 2 / 3
