"""Probes ask about one image at a time, and the control without experts removes their sentences alone."""

from lumen_hpc.data.perturbations import perturb
from lumen_hpc.data.probes import findings_with_levels, probes


def test_probes_ask_each_image_alone_with_its_experts_sentence():
    record = {
        "id": "q", "images": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "reference image: <image>\nexperts: edema yes\n"
                                       "main image, 3 days later: <image>\nexperts: edema no\nwhat has changed?"},
            {"from": "gpt", "value": "…"},
        ],
        "meta": {"question_id": "q", "type": "difference", "question": "what has changed?", "ref_study_id": "1",
                 "study_id": "2"},
    }  # fmt: skip
    rows = list(probes(record, ["edema"]))
    assert [row["id"] for row in rows] == [
        "q/reference/abnormality", "q/reference/level/edema", "q/main/abnormality", "q/main/level/edema",
    ]  # fmt: skip
    assert [row["images"] for row in rows] == [["a.png"], ["a.png"], ["b.png"], ["b.png"]]
    assert rows[3]["conversations"][0]["value"] == "<image>\nexperts: edema no\nwhat level is the edema?"
    assert rows[0]["meta"]["study_id"] == "1"
    assert list(probes({**record, "meta": {**record["meta"], "type": "prediction"}}, ["edema"])) == []


def test_levelled_findings_are_those_whose_level_is_asked_the_most_frequent_first():
    def record(type, question):
        return {"meta": {"type": type, "question": question}}

    asked = [record("level", f"what level is the {name}?") for name in ("edema", "effusion", "effusion")]
    assert findings_with_levels([*asked, record("presence", "is there nodule?")]) == ("effusion", "edema")


def test_without_experts_the_question_keeps_its_images_and_loses_their_sentences():
    human = "reference image: <image>\nexperts: edema yes\nmain image: <image>\nexperts: edema no\nwhat has changed?"
    record = {
        "id": "q",
        "images": ["a.png", "b.png"],
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": "…"}],
        "meta": {"question_id": "q", "type": "difference", "question": "what has changed?", "ref_study_id": "1",
                 "study_id": "2"},
    }  # fmt: skip
    bare = perturb("no_experts", [record], 0)
    assert bare["conversations"][0]["value"] == "reference image: <image>\nmain image: <image>\nwhat has changed?"
    assert bare["images"] == record["images"] and bare["meta"]["control"] == "no_experts"
    assert bare["meta"]["study_id"] == "2"
    assert perturb("no_experts", [bare], 0) is None  # nothing to remove
