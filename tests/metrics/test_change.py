"""Claims about change are read from the grammar and from free sentences, and counted as facts."""

from pathlib import Path

import pytest

from lumen_hpc.data.diff_vqa import Change, LevelChange, parse_difference, parse_findings, render_difference
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.language.sentences import sentence
from lumen_hpc.metrics.change import Claim, Reader, direction, facts, reader_name, scored_facts, tally

READER = Reader(["odd thing"])
CHANGES = [
    Change(),
    Change(new=("edema",)),
    Change(resolved=("pleural effusion", "nodule")),
    Change(new=("edema", "nodule", "consolidation"), resolved=("cardiomegaly",)),
    Change(
        levels=(LevelChange("edema", "mild", "severe"), LevelChange("pleural effusion", "small", "moderate to large"))
    ),
    Change(new=("nodule",), resolved=("edema",), levels=(LevelChange("pleural effusion", "large", "small"),)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_grammars_own_sentences_are_read_whole(change):
    assert READER.change(render_difference(change)) == change
    for kind in ("difference", "prediction"):
        claim = READER.change(sentence(kind, "what will change?", render_difference(change)))
        assert claim is not None and facts(claim) == facts(change)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("There is new edema in the main image.", {("new", "edema")}),
        ("The pleural effusion has resolved.", {("resolved", "pleural effusion")}),
        ("The edema and the nodule have resolved.", {("resolved", "edema"), ("resolved", "nodule")}),
        ("The main image shows additional findings of edema, nodule and opacities.",
         {("new", "edema"), ("new", "nodule"), ("new", "lung opacity")}),
        ("A nodule has appeared, while the edema is no longer seen.", {("new", "nodule"), ("resolved", "edema")}),
        ("Edema has resolved, and a nodule and consolidation are new.",
         {("resolved", "edema"), ("new", "nodule"), ("new", "consolidation")}),
        ("The level of edema is expected to change from mild to moderate to severe.",
         facts(parse_difference("the level of edema has changed from mild to moderate to severe."))),
        ("The pleural effusion increased from small to large.", {("level", "pleural effusion", "small", "large")}),
        ("The main image is missing the finding of cardiomegaly; new edema is present.",
         {("resolved", "cardiomegaly"), ("new", "edema")}),
        ("No change compared to the reference image.", set()),
        ("The edema remains unchanged.", set()),
        ("Nothing is expected to change.", set()),
        ("There is a new odd thing, and the effusions are gone.",
         {("new", "odd thing"), ("resolved", "pleural effusion")}),
        ("No new edema has appeared.", set()),
    ],
)  # fmt: skip
def test_free_sentences(text, expected):
    claim = READER.change(text)
    assert claim is not None
    assert facts(claim) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Interval resolution of the right pneumothorax.", Claim(resolved=("pneumothorax",))),
        ("Interval development of left lower lobe consolidation.", Claim(new=("consolidation",))),
        ("There is an increase in the size of the left effusion.", Claim(worse=("pleural effusion",))),
        ("The edema has markedly improved.", Claim(better=("edema",))),
        ("The main image shows more edema than the reference image.", Claim(worse=("edema",))),
        ("Edema is only seen in the main image.", Claim(new=("edema",))),
        ("The edema has not fully resolved.", None),
        ("Rather than growing from small to moderate, the effusion is gone.", None),
    ],
)
def test_a_change_is_read_as_a_report_words_it(text, expected):
    assert READER.change(text) == expected


@pytest.mark.parametrize("text", ["", "This image shows edema.", "I cannot answer that.", "PA view"])
def test_a_text_that_claims_nothing_about_change_is_not_read(text):
    assert READER.change(text) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("edema, pleural effusion", {"edema", "pleural effusion"}),
        ("This image shows edema without pleural effusion.", {"edema"}),
        ("No edema. There is a nodule.", {"nodule"}),
        ("There is no evidence of edema or nodule.", set()),
        ("There are effusions but no edema.", {"pleural effusion"}),
        ("no abnormality", set()),
        ("Nodular pattern", set()),
        ("There is new edema.", {"edema"}),
        ("Edema has increased.", {"edema"}),
        ("There is no edema. The lungs are clear.", set()),
        ("No edema is seen. The bones are intact.", set()),
        ("No edema. The lungs are well expanded.", set()),
        ("No edema is seen. It is a chest X-ray.", set()),
        ("The heart is normal in size. The lungs are clear.", set()),
        ("Normal heart size. No effusion.", set()),
        ("Heart: normal. Lungs: clear.", set()),
        ("Small effusion, heart normal.", {"pleural effusion"}),
        ("Heart size is stable.", set()),
        ("The heart size is at the upper limits of normal.", set()),
        ("Heart size is increased.", {"cardiomegaly"}),
        ("No cardiomegaly. The heart is in the left chest.", set()),
        ("No foo, effusion, or pneumothorax.", set()),
        ("There is no evidence for effusion.", set()),
        ("No signs of pneumonia, edema, or effusion, but mild atelectasis is seen.", {"atelectasis"}),
        ("Edema without an associated effusion or nodule.", {"edema"}),
        ("No opacity to suggest pneumonia or edema.", set()),
        ("The lungs show no abnormality such as edema or effusion.", set()),
        ("No abnormality is seen other than edema.", {"edema"}),
        ("Possible effusion or pneumonia.", set()),
        ("Possible effusion, but edema.", {"edema"}),
        ("An opacity is seen, which may reflect atelectasis or pneumonia.", {"lung opacity"}),
        ("The differential includes pneumonia and atelectasis.", set()),
        ("Edema rather than pneumonia.", {"edema"}),
        ("Edema w/o effusion", {"edema"}),
        ("Edema: +, effusion: -", {"edema"}),
        ("\u2713 edema\n\u2717 effusion", {"edema"}),
        ("The findings are not suggestive of edema.", set()),
        ("An effusion, which isn't thought to represent edema.", {"pleural effusion"}),
        ("The image does not clearly suggest edema.", set()),
        ("Evaluate for edema. Treated for pneumonia.", set()),
        ("A lateral view is recommended to exclude pneumonia.", set()),
        ("Edema is favored over pneumonia.", {"edema"}),
        ("INDICATION: history of edema, pneumonia. FINDINGS: No effusion. IMPRESSION: Nodule.", {"nodule"}),
        ("There is no edema. There is persistent pneumonia.", {"pneumonia"}),
        ("There is no edema. There is worsening pneumonia.", {"pneumonia"}),
        ("Edema: no Nodule: yes", {"nodule"}),
        ("Edema versus pneumonia.", set()),
        ("Edema is a consideration.", set()),
        ("Heart: mildly enlarged. Lungs: mild edema. Pleura: no effusion.", {"cardiomegaly", "edema"}),
    ],
)
def test_findings_are_affirmed_names(text, expected):
    assert READER.findings(text) == expected


def test_tallies_count_each_fact_once():
    given = facts(Change(new=("edema", "nodule"), levels=(LevelChange("edema", "mild", "severe"),)))
    expected = facts(Change(new=("Edema",), resolved=("nodule",), levels=(LevelChange("edema", "mild", "moderate"),)))
    counted = tally(given, expected)
    assert counted == (1, 2, 2)
    assert counted.f1 == pytest.approx(2 / 6)
    assert tally(set(), set()).f1 == 1


@pytest.mark.parametrize(
    "truth, expected",
    [
        (Change(), (0, 1, 0)),
        (Change(levels=(LevelChange("edema", "mild", "severe"),)), (0, 0, 1)),
        (Change(levels=(LevelChange("edema", "severe", "mild"),)), (0, 1, 1)),
        (Change(levels=(LevelChange("edema", "acute", "increasing"),)), (0, 0, 1)),
        (Change(new=("edema",)), (0, 0, 1)),
        (Change(resolved=("edema",)), (0, 1, 1)),
    ],
)
def test_a_change_without_levels_is_no_hit_and_is_wrong_where_it_is_not_true(truth, expected):
    claim = READER.change("The edema has worsened.")
    assert claim
    assert tally(scored_facts(claim, truth), facts(truth)) == expected


@pytest.mark.parametrize(
    "change, expected",
    [
        (Change(), "same"),
        (Change(new=("edema",)), "worse"),
        (Change(resolved=("edema",)), "better"),
        (Change(new=("edema",), resolved=("nodule",)), "mixed"),
        (Change(levels=(LevelChange("edema", "severe", "mild"),)), "better"),
        (Change(levels=(LevelChange("edema", "acute", "increasing"),)), None),
        (Claim(worse=("edema",)), "worse"),
        (Claim(better=("edema",)), "better"),
        (Claim(worse=("edema",), better=("nodule",)), "mixed"),
        (Claim(new=("edema",), better=("nodule",)), "mixed"),
    ],
)
def test_direction(change, expected):
    assert direction(change) == expected


CASES = list(read_jsonl(Path(__file__).parents[1] / "language" / "fact_cases.jsonl"))


@pytest.mark.parametrize("kind", ["difference", "prediction"])
def test_faithful_wordings_of_a_change_are_read_as_that_change(kind):
    faithful = [case for case in CASES if case["type"] == kind and case["faithful"]]
    reader = Reader.of(case | {"closed": False} for case in faithful)
    misread = [
        case["long_answer"]
        for case in faithful
        if facts(reader.change(case["long_answer"], kind) or Change()) != facts(parse_difference(case["short_answer"]))
    ]
    assert len(faithful) > 40
    assert len(misread) <= 0.03 * len(faithful), misread


def test_every_faithful_wording_of_a_list_is_read_as_its_findings():
    listed = [case for case in CASES if case["type"] == "abnormality" and case["faithful"]]
    listed = [case for case in listed if case["short_answer"] not in ("yes", "no")]
    misread = [
        case["long_answer"]
        for case in listed
        if READER.findings(case["long_answer"]) != {reader_name(name) for name in parse_findings(case["short_answer"])}
    ]
    assert len(listed) > 30 and misread == []


def test_names_are_those_of_the_reader():
    assert facts(Change(new=("Effusions",), levels=(LevelChange("edema", "mildly", "moderate to severe"),))) == {
        ("new", "pleural effusion"),
        ("level", "edema", "mild", "moderate to severe"),
    }


def test_a_reader_learns_its_names_from_references():
    rows = [
        {"type": "abnormality", "closed": False, "short_answer": "strange thing, edema"},
        {"type": "difference", "closed": False, "short_answer": render_difference(Change(new=("rare thing",)))},
        {"type": "difference", "closed": False, "short_answer": "outside the grammar"},
    ]
    assert Reader.of(rows).findings("a strange thing and a rare thing") == {"strange thing", "rare thing"}
    assert parse_difference(rows[1]["short_answer"]).new == ("rare thing",)
