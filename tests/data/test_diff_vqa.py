"""The dataset's language: rendering and parsing are inverse, and text outside the grammar is refused."""

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumen_hpc.data.diff_vqa import (
    CLOSED_TEMPLATES,
    LEVELS,
    TEMPLATES,
    Change,
    GrammarError,
    LevelChange,
    Question,
    is_closed,
    parse_difference,
    parse_findings,
    parse_question,
    render_difference,
    render_findings,
    severity,
)
from tests.realcxr import TABLE, needed

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault

# The vocabulary is open: besides the dataset's names, any words will do that are not the grammar's own.
KNOWN = ("lung opacity", "pleural effusion", "enlargement of the cardiac silhouette", "tortuosity of the aorta")
words = st.text("abcdefghijklmnopqrstuvwxyzé-'", min_size=1, max_size=9).filter(
    lambda word: word not in ("and", "to", "in", "is", "the", "than", "evidence", "has", "bilateral")
)
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)
findings = st.sampled_from(KNOWN) | phrases
names = st.lists(findings, max_size=5, unique=True).map(tuple)
level_words = st.sampled_from([level for level in LEVELS if " to " not in level]) | words
all_levels = st.sampled_from(sorted(LEVELS)) | words
locations = st.sampled_from(["left lower lung", "right upper lobe", "bilateral basilar area"]) | phrases


@st.composite
def changes(draw):
    levels = st.builds(LevelChange, findings, level_words, all_levels)
    return Change(draw(names), draw(names), tuple(draw(st.lists(levels, max_size=3, unique=True))))


@calm
@given(changes())
def test_a_difference_is_read_as_it_was_rendered(change):
    assert parse_difference(render_difference(change)) == change


@calm
@given(names)
def test_findings_are_read_as_they_were_rendered(listed):
    assert parse_findings(render_findings(listed)) == listed
    assert parse_findings(render_findings(listed * 2)) == listed, "a finding named twice is one"


def written(question):
    return question.template.format(finding=question.finding, location=question.location)


@pytest.mark.parametrize(("type", "template"), [(t, template) for t in TEMPLATES for template in TEMPLATES[t]])
@calm
@given(finding=findings, location=locations)
def test_every_question_template_is_read_as_it_was_rendered(type, template, finding, location):
    question = Question(
        type,
        template,
        finding if "{finding}" in template else None,
        location if "{location}" in template else None,
    )
    assert parse_question(type, written(question)) == question


@needed
def test_every_real_question_and_answer_form_survives_the_round_trip():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    differences = [row["answer"] for row in rows if row["question_type"] == "difference"]
    assert (len(rows), len(differences)) == (314, 19)
    for answer in differences:
        assert render_difference(parse_difference(answer)) == answer
    for row in rows:
        question = parse_question(row["question_type"], row["question"])
        assert question and written(question) == row["question"]
        assert is_closed(row["answer"]) == (question.template in CLOSED_TEMPLATES)
        if question.template == "what abnormalities are seen in this image?":
            assert render_findings(parse_findings(row["answer"])) == row["answer"]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("nothing has changed. ", Change()),
        ("the main image has additional findings of a, b than the reference image. ", Change(new=("a", "b"))),
        ("the main image has additional findings of a, and b than the reference image.", Change(new=("a", "b"))),
        ("the main image has additional findings of a, b and c than the reference image.", Change(new=("a", "b", "c"))),
        ("the main image is missing the findings of a and b than the reference image. ", Change(resolved=("a", "b"))),
        (
            "the level of a b has changed from small to moderate to large. "
            "the main image has an additional finding of tortuosity of the aorta  than the reference image. ",
            Change(new=("tortuosity of the aorta",), levels=(LevelChange("a b", "small", "moderate to large"),)),
        ),
    ],
)
def test_the_forms_that_the_dataset_uses_are_read(text, change):
    assert parse_difference(text) == change


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("opacity, and pneumonia edema, hernia, and pneumonia", ("opacity", "pneumonia", "edema", "hernia")),
        ("and Pneumonia edema, and pneumonia", ("pneumonia", "edema")),
        ("and pneumonia and pneumonia", ("pneumonia",)),
        ("aorta , and pneumonia edema, and pneumonia", ("aorta", "pneumonia", "edema")),
        ("pneumonia edema, and pneumonia", ("pneumonia edema", "pneumonia")),
    ],
)
def test_names_that_the_generator_fused_are_read_apart(listed, names):
    for form in ("the main image has additional findings of {}", "the main image is missing the findings of {}"):
        change = parse_difference(f"{form} than the reference image. ".format(listed))
        assert change.new + change.resolved == names


@calm
@given(changes())
def test_capitals_change_nothing(change):
    read = parse_difference(render_difference(change).upper())
    assert tuple(map(str.lower, map(str, (read.new, read.resolved, read.levels)))) == tuple(
        map(str.lower, map(str, (change.new, change.resolved, change.levels)))
    )


@pytest.mark.parametrize(
    ("levels", "before", "after"),
    [
        ("moderate to severe to mild", "moderate to severe", "mild"),
        ("mild to moderate to moderate to severe", "mild to moderate", "moderate to severe"),
        ("small acute to moderate to large", "small acute", "moderate to large"),
        # Two readings are possible and both got worse; the first split is the rule.
        ("mild to moderate to severe", "mild", "moderate to severe"),
    ],
)
def test_compound_levels_are_split_where_both_sides_are_known(levels, before, after):
    assert parse_difference(f"the level of edema has changed from {levels}.").levels == (
        LevelChange("edema", before, after),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "the heart is larger.",
        "nothing has changed. the main image has an additional finding of edema than the reference image. ",
        "the main image has an additional finding of edema. ",
        "the main image has an additional finding of  than the reference image. ",
        "the main image has additional findings of edema, , nodule than the reference image. ",
        "the level of edema has changed. ",
        "the level of edema has changed from mild to moderate",
        "the main image has an additional finding of edema than the reference image. and so on",
    ],
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(GrammarError) as refused:
        parse_difference(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a, b", "a and b", "a.", "", " a", "a  b"])
def test_a_name_outside_the_grammar_is_refused(name):
    with pytest.raises(GrammarError, match="cannot stand in an answer"):
        render_difference(Change(new=(name,)))


def test_only_a_whole_yes_or_no_is_closed():
    assert [text for text in ("yes", "no", "nothing", "no abnormality", "nodule", "yes, mild") if is_closed(text)] == [
        "yes",
        "no",
    ]


def test_levels_are_ordered_by_severity():
    by_rank: dict[float, set[str]] = {}
    for level in LEVELS:
        if rank := severity(level):
            by_rank.setdefault(rank, set()).add(level)
    assert [by_rank[rank] for rank in sorted(by_rank)] == [
        {"minimal", "minimally", "subtle", "minor", "trace"},
        {"mild", "mildly", "small"},
        {"mild to moderate", "small to moderate"},
        {"moderate", "moderately"},
        {"moderate to large", "moderate to severe"},
        {"large", "severe", "severely", "massive"},
    ]
    assert severity("acute") is None and severity("acute small") == severity("small")
    assert severity("mild severe") == severity("moderate"), "the mean of several"
    assert LevelChange("edema", "severe", "mild").direction == -1
    assert LevelChange("edema", "mild", "mild to moderate").direction == 1
    assert LevelChange("edema", "acute", "severe").direction == 0


def test_reversing_a_change_twice_restores_it():
    change = Change(("a",), ("b",), (LevelChange("c", "mild", "severe"),))
    assert change.reversed() == Change(("b",), ("a",), (LevelChange("c", "severe", "mild"),))
    assert change.reversed().reversed() == change
