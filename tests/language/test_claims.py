"""Which claims the lenient reading takes from an answer: what is said, denied, and where; and what claims nothing."""

from __future__ import annotations

import pytest

from lumen_hpc.language.words import vocabulary
from lumen_hpc.metrics.change import Reader, facts
from lumen_hpc.metrics.closed import polarity


@pytest.mark.parametrize(
    "text, answer",
    [
        ("No pneumothorax, but there is a pleural effusion.", "yes"),
        ("No doubt there is a pleural effusion.", "yes"),
        ("There is no question that there is a pleural effusion.", "yes"),
        ("Edema: no. Pleural effusion: yes.", "yes"),
        ("Pleural effusion: no. Edema: yes.", "no"),
        ("There is no pneumothorax. There is an effusion.", "yes"),
        ("No, there is no edema. However, there is a pleural effusion.", "yes"),
        ("No, there is no edema, but there is a pleural effusion.", "yes"),
        ("Yes, there is edema. There is no effusion.", "no"),
        ("No, there is no edema.", "no"),
        ("No, the effusion has not been seen.", "no"),
        ("A pleural effusion is likely.", "yes"),
        ("The findings are suggestive of an effusion.", "yes"),
        ("Yes, there may be an effusion.", "yes"),
        ("There is an effusion, possibly small.", "yes"),
        ("There may be an effusion.", None),
        ("There could be an effusion, but there is no edema.", None),
        ("A small effusion is possible.", None),
        ("Possible effusion.", None),
        ("An effusion is suspected.", None),
        ("There is a residual pleural effusion.", "yes"),
        ("The effusion is unchanged.", "yes"),
        ("Neither edema nor effusion.", "no"),
        ("I don't think there is an effusion.", "no"),
        ("There is edema.", None),
        ("I can't tell.", None),
        ("Pleural effusion is ruled out.", "no"),
        ("Pleural effusion is not ruled out.", None),
        ("Blunting of the costophrenic angle, no definite effusion.", "no"),
        ("It's a yes.", "yes"),
        ("The findings are not consistent with an effusion.", "no"),
        ("Nothing suggests an effusion.", "no"),
        ("The findings are inconsistent with an effusion.", "no"),
        ("The image argues against an effusion.", "no"),
        ("There is no evidence against an effusion.", None),
        ("There is little evidence of an effusion.", None),
        ("An effusion is improbable.", None),
        ("An effusion is barely visible.", None),
        ("There is no evidence of it.", "no"),
        ("There isn't.", "no"),
        ("There is evidence.", "yes"),
        ("The image shows edema. So my answer is no.", "no"),
        ("Evaluate for pleural effusion.", None),
        ("History: pleural effusion. Findings: edema.", None),
        ("There does not appear to be any pleural effusion.", "no"),
        ("There doesn't seem to be a pleural effusion.", "no"),
        ("It does not appear that there is an effusion.", "no"),
        ("The image doesn't appear to show an effusion.", "no"),
        ("A pleural effusion appears to be absent.", "no"),
        ("There appears to be an effusion.", "yes"),
        ("The effusion does not appear to be large.", None),
        ("An effusion is a collection of fluid.", None),
        ("Without treatment the effusion will worsen.", None),
        ("This is not an effusion but atelectasis.", "no"),
        ("The answer is no because there is no sign of an effusion.", "no"),
        ("The effusion is an old one.", "yes"),
        ("Effusion -", "no"),
        ("Effusion -, edema +", "no"),
        ("Effusion - present", "yes"),
    ],
)
def test_a_closed_question_is_answered_by_what_is_said_of_its_subject(text, answer):
    assert polarity("presence", "is there evidence of pleural effusion in this image?", text) == answer


@pytest.mark.parametrize(
    "question, text, answer",
    [
        ("is there pneumothorax in the left lung?", "A right pneumothorax is present, but no left pneumothorax.", "no"),
        (
            "is there pneumothorax in the right lung?",
            "A right pneumothorax is present, but no left pneumothorax.",
            "yes",
        ),
        ("is the pneumothorax bilateral?", "There is a right pneumothorax and no left pneumothorax.", "no"),
        (
            "is there edema in the right lower lobe?",
            "There is no edema in the right lower lobe; it is in the left lower lobe.",
            "no",
        ),
        ("is there edema in the left lung?", "There is no edema in the left lung.", "no"),
    ],
)
def test_a_finding_is_not_where_it_is_denied(question, text, answer):
    assert polarity("presence", question, text) == answer


def test_what_is_denied_before_but_is_not_found():
    assert Reader([]).findings("The abnormality is not an effusion but atelectasis.") == {"atelectasis"}


def test_an_enlarged_silhouette_answers_for_the_heart_with_a_level_too():
    question = "is there evidence of cardiomegaly in this image?"
    assert polarity("presence", question, "The cardiac silhouette appears mildly enlarged.") == "yes"


@pytest.mark.parametrize(
    "text",
    [
        "Pneumonia refers to an infection of the lung.",
        "Pneumonia is characterized by consolidation.",
        "Pneumonia is often caused by bacteria.",
        "Pneumonia is a condition in which the lungs are inflamed.",
        "A pneumonia is usually seen as an opacity.",
    ],
)
def test_general_knowledge_claims_nothing(text):
    question = "is there evidence of pneumonia in this image?"
    assert polarity("presence", question, text) is None
    assert Reader([]).findings(text) == set()
    assert polarity("presence", question, f"{text} The image shows pneumonia.") == "yes"
    assert polarity("presence", question, f"{text} There is no pneumonia.") == "no"


def test_a_definition_claims_nothing():
    question = "is there evidence of pneumonia in this image?"
    assert polarity("presence", question, "Pneumonia is a lung infection.") is None
    assert polarity("presence", question, "Pneumonia is a lung infection. The image shows no signs of it.") == "no"
    assert polarity("presence", question, "Pneumonia is a lung infection. The image shows signs of pneumonia.") == "yes"


@pytest.mark.parametrize(
    "text, claimed",
    [
        ('{"new": [], "resolved": []}', set()),
        ('{"added": [], "missing": ["edema"]}', {("resolved", "edema")}),
        ("Changes: none", set()),
        ("Change: no.", set()),
        ("Nothing new.", set()),
        ("Reference: edema. Main: no edema.", {("resolved", "edema")}),
        ("**Reference image:** no edema\n**Main image:** edema", {("new", "edema")}),
        ("Reference: mild edema\nMain: severe edema", {("level", "edema", "mild", "severe")}),
    ],
)
def test_an_answer_in_short_notes_claims_its_change(text, claimed):
    change = Reader([]).change(text)
    assert change is not None and facts(change) == claimed


@pytest.mark.parametrize(
    "text, claimed",
    [
        ("The reference image shows less edema.", {("level", "edema", "worse")}),
        ("The edema is milder in the reference image than in the main image.", {("level", "edema", "worse")}),
        ("Edema has slightly progressed.", {("level", "edema", "worse")}),
        ("The level of edema has changed from mild to none.", {("resolved", "edema")}),
        ("NC", set()),
    ],
)
def test_a_change_is_read_from_either_image_and_in_any_degree(text, claimed):
    change = Reader([]).change(text)
    assert change is not None and facts(change) == claimed


def test_every_piece_of_the_notes_stands_in_a_pattern():
    table = vocabulary()
    patterns = [*table["notes"], *table["pieces"].values()]
    assert [name for name in table["pieces"] if not any(f"{{{name}}}" in pattern for pattern in patterns)] == []


def test_nothing_new_but_a_finding_is_no_claim_that_nothing_has_changed():
    assert Reader([]).change("Nothing new but edema.") is None


@pytest.mark.parametrize(
    "text, claimed",
    [
        ("Reference: edema is present. Main: edema and pneumothorax are present.", {("new", "pneumothorax")}),
        (
            "The reference image shows edema and pneumonia. The main image shows edema and pneumothorax.",
            {("new", "pneumothorax"), ("resolved", "pneumonia")},
        ),
        ("The reference image shows edema. The main image shows edema.", set()),
    ],
)
def test_lists_of_the_findings_of_both_images_claim_what_differs(text, claimed):
    change = Reader([]).change(text)
    assert change is not None and facts(change) == claimed
