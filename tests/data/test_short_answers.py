"""Gold answers: what each type of question takes, and what is no answer at all."""

import csv

import pytest

from lumen_hpc.data.diff_vqa import TEMPLATES
from lumen_hpc.data.short_answers import answer_fault, facts, is_question
from tests.realcxr import TABLE, needed

QUESTION = {
    "abnormality": "what abnormalities are seen in this image?",
    "presence": "is there edema?",
    "view": "which view is this image taken?",
    "location": "where is the edema?",
    "level": "what level is the edema?",
    "type": "what type is the edema?",
    "difference": "what has changed compared to the reference image?",
    "prediction": "what will change in 10 days?",
}
NO_ANSWER = (
    "nan", "NaN", "None", "null", "[]", "['edema', 'pneumonia']", '["edema"]', "'edema'", "{}", "N/A", "<NA>", "42",
    "3.5", "-", "?", "True", "edema\0", "ede\x1bma", "edema, nan", "edema,, nodule", "<b>edema</b>", "unknown",
    "Missing", "edema of the", "edema and", "and edema", "mild to", "nan.", "N/A.", "(null)", "None,", "#NAME?",
    "#REF!", "=edema", "ede\N{REPLACEMENT CHARACTER}ma", "edema &amp; nodule", "edema; nodule", "edema & nodule",
    "edema?", "where is the edema?", "* edema", "\N{BULLET} edema", "left ___ lung", "left_lung", "not specified",
    "no answer", "I do not know", "sorry, I cannot tell", "unable to determine", "cannot be determined", "see report",
    "xxx", "the lxxx", "%s", "y", "maybe", "yes/no", "edema. nodule", "[PAD]", "\\N", "edema\\npneumonia",
    "{{finding}}", "unspecified", "error", "left\N{NO-BREAK SPACE}side", "left\N{ZERO WIDTH SPACE}side",
    # A word about the record, or about another row
    "ditto", "same", "same as above", "as above", "all of the above", "none of the above", "pending", "redacted",
    "deleted", "removed", "placeholder", "unavailable", "unanswered", "skipped", "string", "answer", "none seen",
    "nan nan", "na na", "edema nan", "yes no", "y/n", "edema etc", "edema ...", "edema\N{HORIZONTAL ELLIPSIS}",
    # Signs around a name
    "edema (", "edema)", "(edema", "edema :", "edema -", "-edema", "edema/", "a) edema", "IMPRESSION: edema",
    "A: edema", "http://a.b/c", "/data/edema", "\N{LEFT DOUBLE QUOTATION MARK}edema\N{RIGHT DOUBLE QUOTATION MARK}",
    # Another word than the one asked for
    "sorry", "1e9", "class 3", "label", "level 2", "type", "location", "nowhere", "here", "edema not seen",
    "edema is never seen", "edema than the reference image of nodule", "to moderate", "or edema",
    "edema since 2180-01-01", "edema of 1.5.2180", "edema \N{FACE WITHOUT MOUTH}", "\N{HEAVY CHECK MARK} edema",
    # Other characters than those that it shows
    "pleural%20effusion", "effusi\u00c3\u00b3n", "patient\u00e2\u20ac\u2122s line", "\N{LATIN SMALL LIGATURE FI}brosis",
    "\uff45\uff44\uff45\uff4d\uff41", "e\N{COMBINING ACUTE ACCENT}dema", "edema\N{TRADE MARK SIGN}",
)  # fmt: skip


@pytest.mark.parametrize("type", QUESTION)
@pytest.mark.parametrize("answer", NO_ANSWER)
def test_what_is_no_answer_is_refused_in_every_type(type, answer):
    assert answer_fault(type, QUESTION[type], answer)


@pytest.mark.parametrize(
    ("type", "answer"),
    [
        ("abnormality", "edema. nodule"), ("abnormality", "None."), ("location", "no."), ("level", "yes."),
        ("level", "absent"), ("level", "resolved"), ("level", "nothing"), ("location", "nothing"), ("type", "normal"),
        ("abnormality", "yes"), ("presence", "edema"), ("view", "yes"), ("location", "no"), ("level", "yes"),
        ("type", "Yes"), ("difference", "yes"), ("prediction", "the heart will grow."),
        ("difference", "the level of edema has changed from nan to mild. "),
        ("difference", "the level of edema has changed from mild to 3. "),
        ("difference", "the level of edema has changed from absent to mild. "),
        ("difference", "the level of edema has changed from mild to resolved. "),
        ("difference", "the level of edema has changed from no edema to mild. "),
        ("difference", "the level of enlargement of has changed from mild to severe. "),
        ("difference", "the main image has additional findings of edema, nodule and than the reference image. "),
        ("difference", "the main image has an additional finding of nan than the reference image. "),
        ("prediction", "the main image is missing the findings of edema, None than the reference image. "),
    ],
)  # fmt: skip
def test_an_answer_of_another_type_is_refused(type, answer):
    assert answer_fault(type, QUESTION[type], answer)


@pytest.mark.parametrize("question", ["is this PA view?", "Is this  PA view? "])
def test_a_closed_question_is_known_with_other_capitals_and_spaces(question):
    assert "yes or no" in str(answer_fault("view", question, "PA view"))
    assert answer_fault("view", question, "no") is None


@pytest.mark.parametrize(
    ("type", "answer"),
    [
        ("abnormality", "edema, lung opacity and t12 compression fracture"), ("abnormality", "no abnormality"),
        ("abnormality", "none"), ("abnormality", "edema, nodule."), ("presence", "Yes"), ("view", "AP view"),
        ("location", "in the left lower lobe"), ("location", "left side"), ("location", "right upper lobe, left base"),
        ("level", "mild to moderate"),
        ("level", "small acute"), ("type", "ground-glass"), ("type", "patchy (new)"),
        ("difference", "nothing has changed."),
        ("prediction", "the level of edema has changed from mild to moderate to severe. "),
        ("difference", "the main image has additional findings of a 5'-line, and edema than the reference image. "),
        ("location", "3 o'clock position (left)"), ("abnormality", "\u0153d\u00e8me"), ("level", "same level"),
        ("type", "air-fluid"), ("location", "above the left hilum"), ("type", "removed line"),
    ],
)  # fmt: skip
def test_an_answer_of_its_type_is_taken(type, answer):
    assert answer_fault(type, QUESTION[type], answer) is None


@pytest.mark.parametrize(
    "text",
    [
        "nan", "???", "test", "is there nan in this image?", "is there edema in the nan?", "what level is the null?",
        "where is the none?", "is there {finding}?", "is there xxx?", "is there edema in the lxxx?", "is there ?",
        "is there evidence of  in this image?", "where is the  located?", "what has changed in the  area?",
        "is the  bilateral?", "what level is the ?", "<image> is there edema?", "is there edema?<|im_end|>",
        "is there pleural%20effusion?", "is there ___ in this image?", "is there effusi\u00c3\u00b3n?",
        "is there evidence of None in this image?", "what type is the None?", "is there %s?", "Unnamed: 4",
        "is there \N{LATIN SMALL LIGATURE FI}brosis?", "is there edema?\\n", "is there\x0bedema?",
    ],
)  # fmt: skip
def test_a_question_with_a_blank_or_other_characters_is_none(text):
    assert not is_question(text)


@pytest.mark.parametrize("template", [template for templates in TEMPLATES.values() for template in templates])
@pytest.mark.parametrize(("finding", "location"), [("edema", "left lung"), ("mass (new)", "bilateral bases")])
def test_every_question_of_the_dataset_is_one(template, finding, location):
    assert is_question(template.replace("{finding}", finding).replace("{location}", location))


NEW = "the main image has an additional finding of {} than the reference image. "
MISSING = "the main image is missing the findings of {} than the reference image. "
LEVEL = "the level of {} has changed from {} to {}. "


@pytest.mark.parametrize("type", ["difference", "prediction"])
@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (LEVEL.format("edema", "mild", "mild"), "itself"),
        (LEVEL.format("edema", "mild", " Mild"), "itself"),
        (LEVEL.format("edema", "moderate to severe", "moderate to severe"), "itself"),
        (LEVEL.format("nodule", "small", "large") + LEVEL.format("edema", "acute", "acute"), "itself"),
        (NEW.format("edema") + MISSING.format("edema"), "both new and resolved"),
        (MISSING.format("nodule, and Edema") + NEW.format("edema"), "both new and resolved"),
        (NEW.format("edema") + LEVEL.format("edema", "mild", "severe"), "on both images"),
        (LEVEL.format("edema", "mild", "severe") + MISSING.format("nodule and edema"), "on both images"),
    ],
)
def test_an_answer_that_no_two_images_can_have_is_refused(type, answer, how):
    kind, reason = answer_fault(type, QUESTION[type], answer)
    assert kind == "self-contradicting answer" and how in reason and "edema" not in reason


@pytest.mark.parametrize(
    "answer",
    [
        NEW.format("edema") + MISSING.format("nodule"),
        LEVEL.format("effusion", "small", "large") + LEVEL.format("effusion", "moderate", "small"),  # two sides
        LEVEL.format("edema", "mild acute", "acute mild"), LEVEL.format("edema", "mild", "mild to moderate"),
        LEVEL.format("edema", "mild", "mildly") + NEW.format("edema of the neck"),
    ],
)  # fmt: skip
def test_an_answer_that_the_dataset_can_write_is_none_of_these(answer):
    assert answer_fault("difference", QUESTION["difference"], answer) is None


@pytest.mark.parametrize("name", ["no abnormality", "No edema", "nothing", "without effusion", "edema, no nodule"])
def test_the_absence_of_a_finding_is_no_finding(name):
    for answer in (NEW.format(name), MISSING.format(name), LEVEL.format(name.split(", ")[-1], "mild", "severe")):
        assert answer_fault("difference", QUESTION["difference"], answer)
    assert answer_fault("abnormality", QUESTION["abnormality"], f"edema, {name}")


@needed
def test_every_real_answer_is_taken():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    refused = [row for row in rows if answer_fault(row["question_type"], row["question"], row["answer"])]
    assert len(rows) == 314 and refused == []


def test_facts_are_equal_in_any_order_of_findings_and_clauses():
    one = (
        "the main image has additional findings of edema, and nodule than the reference image. "
        "the level of pneumonia has changed from mild to severe. "
    )
    two = (
        "the level of pneumonia has changed from mild to severe. "
        "the main image has additional findings of  Nodule and edema than the reference image."
    )
    other = two.replace("mild", "moderate")
    assert facts("difference", one) == facts("difference", two) != facts("difference", other)
    assert facts("difference", "nothing has changed.") < facts("difference", one)
    assert facts("abnormality", "edema, nodule") == facts("abnormality", "nodule and edema")
    assert facts("location", "left base, right apex") == facts("location", "Right apex , left base.")
    assert facts("abnormality", "edema, nodule.") == facts("abnormality", "nodule, edema")
    assert facts("presence", "yes") == facts("presence", " Yes ") != facts("presence", "no")
