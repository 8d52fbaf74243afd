"""Answers as models write them: Markdown, JSON, notes, other signs, and refusals."""

from __future__ import annotations

import json
import random
import textwrap

import pytest

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.change import Reader, direction, facts
from lumen_hpc.metrics.closed import polarity
from sandbox.fact_cases import CASES

READER = Reader([])
LISTED = {"edema", "pneumonia", "atelectasis"}


def new(*names):
    return {("new", name) for name in names}


def resolved(*names):
    return {("resolved", name) for name in names}


BOTH = new("edema") | resolved("nodule")
MORE = new("edema", "pneumonia") | resolved("nodule")
WORSE = {("level", "edema", "mild", "severe")}
BETTER = {("level", "edema", "better")}


@pytest.mark.parametrize(
    ("text", "claimed"),
    [
        ("**New findings:** edema, pneumonia\n**Resolved:** nodule", MORE),
        ("**New findings:**\n- edema\n- pneumonia\n\n**Resolved:**\n- nodule", MORE),
        ("## New findings\n1. edema\n2. pneumonia\n## Resolved findings\n1. nodule", MORE),
        ("Additional findings: edema, pneumonia. Missing findings: nodule.", MORE),
        ("New: edema; pneumonia. Resolved: nodule", MORE),
        ("New: edema; pneumonia. Resolved: none.", new("edema", "pneumonia")),
        ("New: none. Resolved: none.", set()),
        ("| Finding | Change |\n|---|---|\n| Edema | New |\n| Nodule | Resolved |", BOTH),
        ('{"new": ["edema", "pneumonia"], "resolved": ["nodule"], "level_changes": []}', MORE),
        ('```json\n{"new": ["edema"], "resolved": []}\n```', new("edema")),
        ('{"edema": "new", "nodule": "resolved"}', BOTH),
        ('{"changes": [{"finding": "edema", "from": "mild", "to": "severe"}]}', WORSE),
        ("Edema \N{EM DASH} new. Nodule \N{EM DASH} resolved.", BOTH),
        ("Edema (new), nodule (resolved).", BOTH),
        ('[{"finding": "edema", "status": "new"}, {"finding": "nodule", "status": "resolved"}]', BOTH),
        ("New edema, resolved nodule, and worsening effusion.", BOTH | {("level", "pleural effusion", "worse")}),
        ("edema=new; nodule=resolved", BOTH),
        ("Edema [new], nodule [resolved]", BOTH),
        ("new_findings: [edema, pneumonia]\nresolved_findings: [nodule]", MORE),
        ("New findings - edema, pneumonia. Resolved - nodule", MORE),
        ("Edema (mild -> severe)", WORSE),
        ("The edema, which was mild, is now severe.", WORSE),
        ("Stable edema with new nodule", new("nodule")),
        ("The edema has partially resolved.", {("level", "edema", "better")}),
        ("The edema has almost resolved.", {("level", "edema", "better")}),
        ("Near-complete resolution of the edema.", {("level", "edema", "better")}),
        ("The edema has completely resolved.", resolved("edema")),
        ("The first image shows edema; the second image does not.", resolved("edema")),
        ("The second image shows edema and the first image does not show edema.", new("edema")),
        ("The edema appears slightly improved.", {("level", "edema", "better")}),
        ("The edema does not appear worse.", set()),
        ("Worse edema. New nodule.", new("nodule") | {("level", "edema", "worse")}),
        ("No change except for new edema.", new("edema")),
        ("Changes:\n- edema (new)\n- nodule (resolved)", BOTH),
        ("Edema \N{EN DASH} from mild to severe.", WORSE),
        ("Edema: mild \N{RIGHTWARDS ARROW} severe", WORSE),
        ("Edema: mild -> severe", WORSE),
        ("Edema mild=>severe", WORSE),
        ("mild -> severe edema", WORSE),
        ("Edema: mild -> severe, effusion: none -> small", WORSE | new("pleural effusion")),
        ("Edema: no -> yes\nNodule: present => absent", BOTH),
        ("+edema, -nodule", None),
        ("There is edema in the main image but none in the reference image.", new("edema")),
        ("There was a nodule before but none now.", resolved("nodule")),
        ("Resolution of the previously seen nodule. No new findings.", resolved("nodule")),
        ("New edema, nodule resolved.", BOTH),
        ("I see a new edema and the nodule is gone.", BOTH),
        ("Nodule resolved, new edema and pneumonia.", MORE),
        ("The main image shows worsening edema.", {("level", "edema", "worse")}),
        ("The main image shows a worsening edema and a new nodule.", new("nodule") | {("level", "edema", "worse")}),
        ("The main image demonstrates improving edema and new pneumonia.", new("pneumonia") | BETTER),
        ("The main image shows a larger nodule.", {("level", "nodule", "worse")}),
        ("There is improved edema and a smaller nodule.", BETTER | {("level", "nodule", "better")}),
        ("The edema is improving.", BETTER),
        ("The edema is slowly resolving.", BETTER),
        ("Resolving edema and new nodule.", new("nodule") | BETTER),
        ("The edema is almost gone.", BETTER),
        ("The edema has nearly completely resolved.", BETTER),
        ("Edema unchanged; pneumonia improved; nodule new.", new("nodule") | {("level", "pneumonia", "better")}),
        ("The main image shows resolution of the nodule with new development of edema.", BOTH),
        ("The main image shows improved edema, increased nodule.", BETTER | {("level", "nodule", "worse")}),
        (
            "There is worsening pneumonia, improved edema, resolved nodule.",
            resolved("nodule") | BETTER | {("level", "pneumonia", "worse")},
        ),
        ("There is less edema, more pneumonia.", BETTER | {("level", "pneumonia", "worse")}),
        ("There is more pneumonia and less edema.", BETTER | {("level", "pneumonia", "worse")}),
        ("Not the nodule alone but the pneumonia has resolved.", resolved("nodule", "pneumonia")),
        ("The edema does not appear to be new.", set()),
        ("1) New edema 2) Resolved nodule", BOTH),
        ("\N{BULLET} New edema \N{BULLET} Resolved nodule", BOTH),
        ("- New edema\\n- Resolved nodule", BOTH),
        ("<p>New edema.</p><br>Resolved nodule.", BOTH),
        ("NEW EDEMA. RESOLVED NODULE.", BOTH),
        ("THE LEVEL OF EDEMA HAS CHANGED FROM MILD TO SEVERE.", WORSE),
        ("The level of edema has changed from mild in the reference image to severe in the main image.", WORSE),
        ("There is new edema and\npneumonia in the main image.", new("edema", "pneumonia")),
        ("New edema\N{FULLWIDTH COMMA}pneumonia\N{IDEOGRAPHIC FULL STOP}", new("edema", "pneumonia")),
        ("<think>Maybe the edema is new?</think> Nothing has changed.", set()),
        ("<think>Perhaps there is new edema. Let me look", None),
        ("\\boxed{There is new edema.}", new("edema")),
        ("Compared with the reference image,  the main image shows no change.", set()),
        ("There is new edema, but I cannot determine its cause.", new("edema")),
        ("Although I cannot compare every part, there is new edema.", new("edema")),
        ("There is new edema; pneumonia cannot be excluded.", new("edema")),
        ("The main image has an additional finding of ede", None),
        ("The level of edema has changed from mild to", None),
        ("nothing has changed nothing has changed nothing has changed", set()),
    ],
)
def test_a_change_is_read_out_of_its_wrapping(text, claimed):
    change = READER.change(text)
    assert (None if change is None else facts(change)) == claimed


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "As an AI, I cannot interpret medical images.",
        "I cannot determine whether edema is new.", "It is not possible to tell whether anything has changed.",
        "It is unclear whether the edema has changed.", "Unable to compare.", "No reference image was provided.",
        "The image quality is too poor to say if there is a new edema.", "Cannot rule out new edema.",
        "Without the reference image, I can't say that nothing has changed.", "New edema cannot be excluded.",
        "I don't know if there's new edema.", "I'm not able to tell if the effusion has resolved.",
        "I can't tell if the edema has resolved or not.", "I am not sure if the nodule is new.",
        "Sorry, I am unable to say whether there is new edema.", "Whether the edema is new cannot be determined.",
        "It's impossible to say whether the edema is worse.", "I cannot say whether the edema has resolved.",
        "The presence of new edema cannot be determined.", "No change can be assessed.", "Is there new edema?",
        "Has the edema resolved?", "If the edema were new, it would be seen here.",
        "Please compare with prior images to determine if edema is new.", "I hesitate to say that the edema is new.",
        "My apologies, I can only see one image, so I cannot comment on new edema.",
        "It cannot be determined that nothing has changed.", "I have no way of knowing whether the edema is new.",
        "Es gibt ein neues \xd6dem.", "Nada ha cambiado.", "\u6ca1\u6709\u53d8\u5316\u3002", "Rien n'a chang\xe9.",
        "\u041d\u0435\u0442 \u0438\u0437\u043c\u0435\u043d\u0435\u043d\u0438\u0439.",
        "", " ", "?", "...", "N/A", "None", "null", "unknown", "edema", "yes", "no", "PA view", "42", "{}", "[]",
        '{"answer": null}', '{"new": [', "<image>", "<|im_end|>", "\N{GRINNING FACE}", "\N{EM DASH}",
    ],
)  # fmt: skip
def test_what_declines_asks_or_is_no_english_claims_nothing(text):
    assert READER.change(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Edema,pneumonia,atelectasis", "edema;pneumonia;atelectasis", "edema | pneumonia | atelectasis",
        "edema + pneumonia + atelectasis", "edema \N{EM DASH} pneumonia \N{EM DASH} atelectasis",
        "Edema. Pneumonia. Atelectasis.", "['edema', 'pneumonia', 'atelectasis']",
        "(a) edema (b) pneumonia (c) atelectasis",
        '["edema","pneumonia","atelectasis"]', "findings = edema, pneumonia, atelectasis",
        "EDEMA AND PNEUMONIA AND ATELECTASIS",
        "i. edema\nii. pneumonia\niii. atelectasis", "Edema\tPneumonia\tAtelectasis",
        "* Edema\n* Pneumonia\n* Atelectasis",
        "\N{EN DASH} Edema\n\N{EN DASH} Pneumonia\n\N{EN DASH} Atelectasis", "edema\\npneumonia\\natelectasis",
        "\N{CHECK MARK} Edema\n\N{CHECK MARK} Pneumonia\n\N{CHECK MARK} Atelectasis", 
        "Edema\n\nPneumonia\n\nAtelectasis",
        "Edema: present\nPneumonia: present\nNodule: absent\nAtelectasis: present",
        "Edema - yes\nPneumonia - yes\nNodule - no\nAtelectasis - yes", "edema, pneumonia, atelectasis, ede",
        "Edema: yes, Pneumonia: yes, Nodule: no, Atelectasis: yes",
        '{"edema": true, "pneumonia": true, "nodule": false, "atelectasis": true}',
        '{"findings": ["edema", "pneumonia", "atelectasis"]}',
        "| Edema | present |\n| Pneumonia | present |\n| Nodule | absent |\n| Atelectasis | present |",
        "Positive for edema, pneumonia, atelectasis. Negative for nodule.",
        "edema\N{IDEOGRAPHIC COMMA}pneumonia\N{IDEOGRAPHIC COMMA}atelectasis", "edema, pneumonia,\natelectasis",
    ],
)  # fmt: skip
def test_a_list_is_read_out_of_its_wrapping(text):
    assert READER.findings(text) == LISTED


@pytest.mark.parametrize(
    "text",
    [
        "I cannot determine if there is edema.",
        "Is there edema?",
        "It is unclear whether there is edema.",
        "Kein \xd6dem",
    ],
)
def test_what_declines_names_no_finding(text):
    assert READER.findings(text) == set()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Yes**", "yes"), ("Answer: Yes", "yes"), ("The answer is no.", "no"), ("I'd say no", "no"), ("true", "yes"),
        ("False.", "no"), ('{"answer": "yes"}', "yes"), ('{"pleural effusion": true}', "yes"),
        ('{"pleural effusion": false}', "no"), ('{"answer": false,}', "no"), ("<answer>no</answer>", "no"),
        ("```\nyes\n```", "yes"),
        ("'No, there is none.'", "no"), ("Sure! Here is my answer:\n\nNo.", "no"), ("Pleural effusion: absent", "no"),
        ("Pleural effusion \N{EM DASH} present", "yes"), ("| pleural effusion | yes |", "yes"),
        ("Effusion yes, edema no.", "yes"), ("Edema yes, effusion no.", "no"), ("Negative for effusion.", "no"),
        ("<think>No edema. Hmm, no.</think>Yes, there is a pleural effusion.", "yes"),
        ("Yes or no?", None), ("Yes and no.", None), ("yes/no", None), ("Yes\n\nNo", None),
        ("I cannot determine whether there is a pleural effusion.", None), ("Is there a pleural effusion?", None),
        ("I am unable to say if there is no effusion.", None), ("A pleural effusion cannot be excluded.", None),
        ("It is unclear if there's a pleural effusion", None), ("", None), ("unknown", None), ("Nein", None),
        ("(A) Yes", "yes"), ("B. No", "no"), ("The correct option is (B) No.", "no"), ("My answer: yes", "yes"),
        ("The correct answer is Yes.", "yes"), ("Answer - no", "no"), ("I would answer yes", "yes"), ("```no```", "no"),
        ("$\\boxed{\\text{No}}$", "no"), ("\\textbf{Yes}", "yes"), ("Based on the image, yes.", "yes"),
        ("Is there evidence of pleural effusion in this image? Answer: no", "no"), ("Nope.", "no"), ("Yeah", "yes"),
        ("The costophrenic angles are sharp, with no edema. Final answer: Yes", "yes"), ("Y", "yes"), ("N.", "no"),
        ("Affirmative.", "yes"), ("Negative", "no"), ("Present.", "yes"), ("Absent", "no"), ("Positive", "yes"),
        ("- [x] Yes\n- [ ] No", "yes"), ("- [ ] Yes\n- [x] No", "no"), ("[x] Yes [ ] No", None),
        ('{"answer": "no", "explanation": "Yes, edema is there, but no effusion."}', "no"),
        ("The pleural effusion has resolved.", "no"), ("I have no idea", None), ("There is no pneumothorax.", None),
        ("\N{CROSS MARK} No pleural effusion", "no"), ("\N{CROSS MARK} Pleural effusion", "no"),
    ],
)  # fmt: skip
def test_a_closed_answer_is_read_out_of_its_wrapping(text, answer):
    assert polarity("presence", "is there evidence of pleural effusion in this image?", text) == answer


@pytest.mark.parametrize(
    ("kind", "question", "text", "answer"),
    [
        ("presence", "is the pleural effusion bilateral?", "The effusion is on the left only.", "no"),
        ("presence", "is the pleural effusion bilateral?", "There is an effusion on both sides.", "yes"),
        ("presence", "is the pleural effusion bilateral?", "There is a pleural effusion.", None),
        ("presence", "is the pleural effusion bilateral?", "Both sides.", "yes"),
        ("presence", "is the pleural effusion bilateral?", "Left side only", "no"),
        ("presence", "is there edema in the left lung?", "There is edema in the right lung.", "no"),
        ("presence", "is there edema in the left lung?", "There is edema in both lungs.", "yes"),
        ("presence", "is there edema in the left lung?", "There is edema.", "yes"),
        ("abnormality", "is there evidence of any abnormalities in this image?", "Normal chest radiograph.", "no"),
        ("abnormality", "is there evidence of any abnormalities in this image?", "Unremarkable.", "no"),
        ("abnormality", "is there evidence of any abnormalities in this image?", "Abnormal study", "yes"),
        ("abnormality", "is there evidence of any abnormalities in this image?", "No acute disease.", "no"),
    ],
)
def test_a_closed_answer_is_about_the_side_and_the_whole_that_was_asked(kind, question, text, answer):
    assert polarity(kind, question, text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "\\begin{itemize}\\item Edema \\item Pneumonia \\item Atelectasis\\end{itemize}",
        "\\textbf{Edema}, \\textit{pneumonia}, $\\text{atelectasis}$", "Edema \\\\ Pneumonia \\\\ Atelectasis",
    ],
)  # fmt: skip
def test_a_list_is_read_out_of_latex(text):
    assert READER.findings(text) == LISTED


WRAPPINGS = {
    "bold": "**{}**", "labelled": "Answer: {}", "an object": None, "a list": None, "a fence": "```\n{}\n```",
    "HTML": "<p>{}</p>", "tags": "<answer>{}</answer>", "a role": "assistant\n{}", "a control token": "{}<|im_end|>",
    "curly quotes": "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}", "quotes": "'{}'",
    "a heading": "### Findings\n\n{}", "politeness": "Sure! Here is the answer:\n\n{}", "a mark": "\ufeff{}",
    "reasoning": "<think>Is there new consolidation? Perhaps pneumonia has resolved.</think>\n{}",
    "capitals": None, "hard lines": None, "other blanks": None, "other stops": None, "hidden signs": None,
}  # fmt: skip
SPECIAL = {
    "an object": lambda text: json.dumps({"answer": text}),
    "a list": lambda text: json.dumps([text]),
    "capitals": str.upper,
    "hard lines": lambda text: "\n".join(textwrap.wrap(text, 30)),
    "other blanks": lambda text: text.replace(" ", "\N{NO-BREAK SPACE}"),
    "other stops": lambda text: text.replace(".", "\N{IDEOGRAPHIC FULL STOP}"),
    "hidden signs": lambda text: text.replace(" ", "\N{ZERO WIDTH SPACE} "),
}
SAMPLED = 50


@pytest.fixture(scope="module")
def cases():
    faithful = [case for case in read_jsonl(CASES) if case["faithful"]][:3000]  # the same sample whatever is added
    random.Random(3).shuffle(faithful)
    closed = [case for case in faithful if case["short_answer"] in ("yes", "no")]
    listed = [case for case in faithful if case["type"] == "abnormality"]
    changes = [case for case in faithful if case["type"] == "difference"]
    return changes[:SAMPLED], [c for c in listed if c["short_answer"] not in ("yes", "no")][:SAMPLED], closed[:SAMPLED]


@pytest.mark.parametrize("how", WRAPPINGS)
def test_a_wrapping_changes_nothing_of_what_is_read(cases, how):
    def wrapped(text):
        return SPECIAL[how](text) if how in SPECIAL else WRAPPINGS[how].format(text)

    def change(text):
        read = READER.change(text)
        return None if read is None else (facts(read), direction(read))

    changes, listed, closed = cases
    differing = [
        *(c["long_answer"] for c in changes if change(wrapped(c["long_answer"])) != change(c["long_answer"])),
        *(
            c["long_answer"]
            for c in listed
            if READER.findings(wrapped(c["long_answer"])) != READER.findings(c["long_answer"])
        ),
        *(
            c["long_answer"]
            for c in closed
            if polarity(c["type"], c["question"], wrapped(c["long_answer"]))
            != polarity(c["type"], c["question"], c["long_answer"])
        ),
    ]
    assert len(differing) <= 0.02 * (len(changes) + len(listed) + len(closed)), differing


@pytest.mark.parametrize(
    ("text", "claimed"),
    [
        ("Interval resolution of pneumothorax, persistent effusion.", resolved("pneumothorax")),
        ("Resolution of edema, stable effusion.", resolved("edema")),
        ("Interval improvement in edema, otherwise unchanged.", BETTER),
        ("New edema, otherwise unchanged.", new("edema")),
        ("Resolution of edema; the chest is otherwise stable.", resolved("edema")),
        ("No significant interval change in edema.", set()),
        ("There is no change in the edema.", set()),
        ("The edema is neither new nor worse.", set()),
        ("The edema is neither larger nor smaller.", set()),
        ("I don't think the edema has changed.", set()),
        ("Edema slightly better.", BETTER),
        ("The edema is probably a little better.", BETTER),
        ("Edema minimally improved.", BETTER),
        ("Edema was mild, now severe.", WORSE),
        ("Edema mild previously, now severe.", WORSE),
        ("There is a new 2 cm left pneumothorax.", new("pneumothorax")),
        ("A new 5 mm nodule is seen.", new("nodule")),
        ("New approximately 1.5 x 2 cm nodule.", new("nodule")),
        ("The nodule has resolved with adjacent atelectasis.", resolved("nodule")),
        ("The edema with adjacent atelectasis has improved.", BETTER),
        ("Improving edema with overlying atelectasis and pneumonia.", BETTER),
        ("New edema with adjacent pneumonia.", new("edema", "pneumonia")),
        ("Improving edema with new pneumonia.", BETTER | new("pneumonia")),
        ("New edema and pneumonia have resolved.", resolved("edema", "pneumonia")),
        ("New edema and pneumonia has resolved.", new("edema") | resolved("pneumonia")),
    ],
)  # fmt: skip
def test_change_in_the_words_of_reports(text, claimed):
    change = READER.change(text)
    assert change is not None and facts(change) == claimed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Opacities, edema vs. infection.", {"lung opacity"}),
        ("Right basilar opacity, atelectasis versus pneumonia.", {"lung opacity"}),
        ("Rt. effusion, lt. pneumothorax.", {"pleural effusion", "pneumothorax"}),
        ("Interval resolution of pneumothorax, persistent effusion.", {"pleural effusion"}),
        ("Absent edema, present effusion.", {"pleural effusion"}),
        ("Effusion present, edema absent.", {"pleural effusion"}),
        ("Effusion seen, edema not seen.", {"pleural effusion"}),
        ("(+) effusion, (-) edema", {"pleural effusion"}),
        ("+effusion, -edema", {"pleural effusion"}),
        ("+ effusion\n- edema", {"pleural effusion"}),
        ("+ effusion\n+ edema", {"pleural effusion", "edema"}),
        ("- seen:\n+ effusion\n+ edema", {"pleural effusion", "edema"}),
        ("There is a left but no right pleural effusion.", {"pleural effusion"}),
        ("Right- but no left-sided effusion.", {"pleural effusion"}),
        ("This is not edema but pneumonia.", {"pneumonia"}),
        ("Resolution of effusion with adjacent atelectasis.", {"atelectasis"}),
    ],
)  # fmt: skip
def test_findings_in_the_words_of_reports(text, named):
    assert READER.findings(text) == named


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("This is not edema.", "no"),
        ("It's not edema.", "no"),
        ("This isn't edema.", "no"),
        ("Not edema.", "no"),
        ("Pneumonia, not edema.", "no"),
        ("It is pneumonia rather than edema.", "no"),
        ("Edema rather than pneumonia.", "yes"),
        ("It is not the edema that is new.", None),
        ("This is not a new edema.", None),
        ("Absent edema.", "no"),
        ("I do not believe that edema is present.", "no"),
        ("We don't think there is any edema.", "no"),
        ("Mild.", "yes"),
        ("Only a trace.", "yes"),
    ],
)
def test_a_finding_is_denied_or_affirmed_in_few_words(text, answer):
    assert polarity("presence", "is there edema?", text) == answer
