"""Instruction records: their contents, their order, and the input they refuse."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import findings_line, instructions, leaks
from lumen_hpc.data.findings_line import strip
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.perturbations import perturb
from lumen_hpc.data.records import read_jsonl, write_jsonl
from lumen_hpc.errors import UserError

SPLITS = {1: "train", 2: "train", 3: "val", 4: "test", 5: "test"}


def study(patient, number):
    day = f"2150-01-{1 + 10 * number:02d}T08:00:00"
    return {
        "subject_id": patient, "study_id": 10 * patient + number, "dicom_id": f"d{patient}{number}",
        "image": f"images/{patient}-{number}.jpg", "view": "PA", "taken_at": day, "split": SPLITS[patient],
    }  # fmt: skip


def question(kind, patient, number, text, short, reference=None):
    return {
        "question_id": f"{kind}-{patient}-{number}", "subject_id": patient, "study_id": 10 * patient + number,
        "ref_study_id": None if reference is None else 10 * patient + reference, "type": kind, "question": text,
        "short_answer": short, "closed": short == "yes", "split": SPLITS[patient],
        "interval_days": None if reference is None else 10 * (number - reference),
    }  # fmt: skip


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Five patients of three studies, each with a presence question about the second and a difference."""
    folder = tmp_path / "prepare"
    monkeypatch.chdir(tmp_path)  # where the studies' relative image paths lead
    (tmp_path / "images").mkdir()
    for patient in SPLITS:
        for n in range(3):
            Image.effect_noise((16, 16), 40 + 3 * n + patient).save(f"images/{patient}-{n}.jpg")
    write_jsonl(folder / "studies.jsonl", [study(patient, n) for patient in SPLITS for n in range(3)])
    rows = []
    for patient in SPLITS:
        rows.append(question("presence", patient, 1, "is there edema?", "yes"))
        rows.append(question("difference", patient, 2, "what has changed?", "nothing has changed.", reference=1))
    write_jsonl(folder / "questions.jsonl", rows)
    entities = [
        {
            "study_id": str(10 * patient + n),
            "entity": {"edema": {"level": [level], "type": ["smooth"]}} if level else {},
        }
        for patient in SPLITS
        for n, level in enumerate(["", "severe", "mild"])
    ]
    (tmp_path / "all_diseases.json").write_text(json.dumps(entities))
    return folder


def test_only_a_study_that_is_known_to_be_earlier_is_a_prior():
    """A study of the same day without a clock time may be the later one, of which nothing is known yet."""
    times = ("2150-01-04", "2150-01-05", "2150-01-05", "2150-01-05T08:00:00", "2150-01-05T08:00:00.500000")
    studies = [{**study(1, number), "taken_at": taken} for number, taken in enumerate(times)]
    sources = instructions.Sources.join(studies, [])
    found = [[prior["study_id"] - 10 for prior in sources.priors(one, 4)] for one in studies]
    assert found == [[], [0], [0], [0], [0, 3]]


def drawn_study(rng: random.Random, study_id: int) -> dict:
    """One of two patients' studies, at times that collide; some without a clock time."""
    moment = datetime(2150, 1, 1) + timedelta(rng.choice([0, 1, 30]) * rng.randrange(4), rng.randrange(86_400))
    has_clock = rng.random() < 0.7
    return {
        "subject_id": study_id % 2, "study_id": study_id, "image": f"{study_id}.jpg", "moment": moment,
        "has_clock": has_clock, "taken_at": (moment if has_clock else moment.date()).isoformat(),
        "split": rng.choice(("train", "test")),
    }  # fmt: skip


def expected_priors(reference: dict, main: dict, studies: list[dict], count: int) -> list[dict]:
    """The nearest earlier studies of the same patient and split, written apart from the package's own code."""
    earlier = []
    for other in studies:
        same_day = other["moment"].date() == reference["moment"].date()
        both_clocks = other["has_clock"] and reference["has_clock"]
        known = other["moment"] < reference["moment"] and (both_clocks or not same_day)
        of_kind = all(other[key] == reference[key] for key in ("subject_id", "split"))
        if known and of_kind and other["study_id"] != main["study_id"]:
            earlier.append(other)
    earlier.sort(key=lambda other: (other["taken_at"], other["study_id"]))
    return earlier[len(earlier) - min(max(count, 0), len(earlier)) :]


@pytest.mark.parametrize("seed", range(40))
def test_a_record_shows_the_earlier_images_of_patient_and_split_in_order_of_time(seed: int):
    rng = random.Random(seed)
    studies = [drawn_study(rng, study_id) for study_id in rng.sample(range(100, 999), 14)]
    settings = Instruct(max_images=rng.randint(1, 5))
    for main in studies:
        reference = rng.choice([other for other in studies if other is not main])
        question = {
            "question_id": "q", "subject_id": 1, "study_id": main["study_id"], "ref_study_id": reference["study_id"],
            "type": "difference", "question": "?", "short_answer": "nothing has changed.", "closed": False,
            "interval_days": (main["moment"].date() - reference["moment"].date()).days, "split": "test",
        }  # fmt: skip
        prediction = {"question_id": "p", "source_question_id": "q", "type": "prediction", "question": "?"}
        rewrites = [{"question_id": "q", "long_answer": "Same."}, {**prediction, "long_answer": "Same."}]
        sources = instructions.Sources.join(studies, rewrites)
        priors = expected_priors(reference, main, studies, settings.max_images - 2)
        shown = [[*priors, reference, main], [*priors, reference]]
        records = [record for _, record in instructions.records([question], sources, settings)]
        assert [record["images"] for record in records] == [[each["image"] for each in images] for images in shown]


def test_sizes_are_noted_where_every_image_has_one():
    sized = [{**study(1, number), "size": [8, 8 + number]} for number in range(2)]
    assert instructions.image_sizes(sized) == {"sizes": [[8, 8], [8, 9]]}
    assert instructions.image_sizes([sized[0], {**sized[1], "size": None}]) == {}


@pytest.mark.parametrize("max_images", [3, 4])
def test_the_main_image_of_a_reversed_pair_is_not_an_earlier_one_too(max_images: int):
    studies = [{**study(1, number), "taken_at": f"2150-01-0{number + 1}"} for number in range(3)]
    question = {
        "question_id": "q", "subject_id": 1, "study_id": studies[1]["study_id"], "ref_study_id": studies[2]["study_id"],
        "type": "difference", "question": "?", "short_answer": "nothing has changed.", "closed": False,
        "interval_days": -1, "split": "test",
    }  # fmt: skip
    sources = instructions.Sources.join(studies, [{"question_id": "q", "long_answer": "Nothing has changed."}])
    ((_, record),) = instructions.records([question], sources, Instruct(max_images=max_images))
    assert record["images"] == [studies[at]["image"] for at in (0, 2, 1)]


def rewrites():
    for patient in SPLITS:
        yield {"question_id": f"presence-{patient}-1", "long_answer": "There is edema."}
        yield {"question_id": f"difference-{patient}-2", "long_answer": "Nothing has changed."}
        yield {
            "question_id": f"prediction-{patient}", "source_question_id": f"difference-{patient}-2",
            "type": "prediction", "question": "what will change in 10 days?", "long_answer": "No change is expected.",
        }  # fmt: skip


def expert(patient, number):
    """(study_id, the experts' sentence about it)."""
    return str(10 * patient + number), f"words about {patient}-{number}."


def write(prepared, **changes):
    """The written files: name → rows."""
    return write_all(prepared, **changes)[0]


def write_all(prepared, **changes):
    """The written files, and the ids of the records that were left out."""
    folder = prepared.parent / "instruct"
    settings = changes.pop("settings", Instruct())
    sentences = dict(expert(patient, n) for patient in SPLITS for n in range(3)) if settings.expert_text else {}
    arguments = {"rewrites": rewrites(), "texts": ImageTexts(sentences), "settings": settings, **changes}
    paths, left_out = instructions.write(folder, prepared=prepared, diff_vqa=prepared.parent, **arguments)
    return {path.stem: list(read_jsonl(path)) for path in paths}, left_out


def prompt_of(record):
    return record["conversations"][0]["value"]


def test_a_prediction_shown_the_image_it_asks_about_is_refused_by_pixels(prepared):
    patient = next(patient for patient, split in SPLITS.items() if split == "test")
    records = write(prepared)["lumen-test"]
    assert [leaks.META_KEY in r["meta"] for r in records] == [r["meta"]["type"] == "prediction" for r in records]
    prediction = next(r for r in records if r["meta"]["type"] == "prediction")
    leaks.refuse(prediction)
    assert leaks.pixel_digest(np.zeros((2, 8), np.uint8)) != leaks.pixel_digest(np.zeros((4, 4), np.uint8))
    Image.open(f"images/{patient}-2.jpg").save("images/another-name.png")
    with pytest.raises(UserError, match=r"shows the image that it asks about: images/another-name.png"):
        leaks.refuse({**prediction, "images": ["images/another-name.png"]})
    with pytest.raises(UserError, match="its answer would be read off, not predicted"):
        leaks.withhold(prediction, prediction["images"][-1])


def test_a_test_prediction_whose_reference_is_a_copy_of_the_main_image_is_left_out(prepared):
    patient = next(patient for patient, split in SPLITS.items() if split == "test")
    before, _ = write_all(prepared)
    Image.open(f"images/{patient}-2.jpg").save(f"images/{patient}-1.png")
    Path(f"images/{patient}-1.png").rename(f"images/{patient}-1.jpg")
    after, left_out = write_all(prepared)
    copied = f"prediction-{patient}"
    assert left_out == [copied]
    assert after.pop("lumen-test") == [row for row in before.pop("lumen-test") if row["id"] != copied]
    assert after == before


def test_ft_has_the_diagnostic_records_and_the_test_records_are_one_file(prepared):
    files = write(prepared)
    kinds = {name: [row["meta"]["type"] for row in rows] for name, rows in files.items()}
    assert kinds["ft-train"] == ["presence"] * 2 and kinds["ft-val"] == ["presence"]
    assert kinds["lumen-train"] == ["presence", "difference", "prediction"] * 2
    assert kinds["lumen-val"] == ["presence", "difference", "prediction"]
    assert kinds["lumen-test"] == ["presence", "difference", "prediction"] * 2


def test_images_stand_reference_first_with_their_distance_and_their_experts(prepared):
    presence, difference, prediction = write(prepared)["lumen-val"]
    assert prompt_of(presence) == "<image>\nwords about 3-1.\nis there edema?"
    assert difference["images"] == ["images/3-1.jpg", "images/3-2.jpg"]
    assert prompt_of(difference) == (
        "reference image: <image>\nwords about 3-1.\nmain image, 10 days later: <image>\nwords about 3-2.\n"
        "what has changed?"
    )
    assert prompt_of(prediction) == "<image>\nwords about 3-1.\nwhat will change in 10 days?"
    assert prediction["meta"] | {"long_answer": ""} == difference["meta"] | {
        "question_id": "prediction-3", "type": "prediction", "question": "what will change in 10 days?",
        "long_answer": "", "closed": False,
    }  # fmt: skip


def test_sizes_are_kept_with_their_images_and_not_with_others(prepared):
    rows = list(read_jsonl(prepared / "studies.jsonl"))
    write_jsonl(prepared / "studies.jsonl", ({**row, "size": [row["study_id"], 9]} for row in rows))
    records = write(prepared)["lumen-test"]
    presence, difference, prediction = (record["meta"]["sizes"] for record in records[:3])
    assert (presence, difference, prediction) == ([[41, 9]], [[41, 9], [42, 9]], [[41, 9]])
    assert "sizes" not in perturb("other_patient", records, 1)["meta"]


def test_a_prediction_never_sees_the_image_it_asks_about(prepared):
    for most in (2, 3, 5):
        for record in write(prepared, settings=Instruct(max_images=most))["lumen-test"]:
            if record["meta"]["type"] == "prediction":
                patient = record["meta"]["subject_id"]
                assert f"images/{patient}-2.jpg" not in record["images"]
                assert f"words about {patient}-2" not in prompt_of(record)


def test_more_images_are_earlier_ones_of_the_same_patient(prepared):
    _, difference, prediction = write(prepared, settings=Instruct(max_images=3, expert_text=False))["lumen-val"]
    assert prompt_of(difference) == (
        "earlier image, 10 days before: <image>\nreference image: <image>\nmain image, 10 days later: <image>\n"
        "what has changed?"
    )
    assert difference["images"] == [f"images/3-{n}.jpg" for n in range(3)]
    assert prediction["images"] == [f"images/3-{n}.jpg" for n in range(2)]
    assert prompt_of(prediction).startswith("earlier image, 10 days before: <image>\nreference image: <image>\n")


def test_findings_come_first_and_are_stripped_again(prepared):
    files = write(prepared, settings=Instruct(findings_first=True))
    presence, difference, prediction = files["lumen-val"]
    answers = [record["conversations"][1]["value"] for record in (presence, difference, prediction)]
    assert answers[0] == "There is edema."
    assert "edema severe mild better ; Nothing has changed." in answers[1]
    assert "edema severe smooth mild better ; No change is expected." in answers[2]
    assert [strip(text) for text in answers] == [r["meta"]["long_answer"] for r in (presence, difference, prediction)]


def test_a_pair_of_which_one_study_has_no_findings_noted_has_no_line(prepared):
    file = prepared.parent / "all_diseases.json"
    main = write(prepared, settings=Instruct(findings_first=True))["lumen-val"][1]["meta"]["study_id"]
    file.write_text(json.dumps([row for row in json.loads(file.read_text()) if str(row["study_id"]) != str(main)]))
    for record in write(prepared, settings=Instruct(findings_first=True))["lumen-val"][1:]:
        assert record["conversations"][1]["value"] == record["meta"]["long_answer"]
        assert "line" not in record["meta"]


def test_the_findings_of_the_line_can_be_chosen(prepared):
    difference = write(prepared, settings=Instruct(findings_first=True, line=["edema"]))["lumen-val"][1]
    assert difference["conversations"][1]["value"] == "edema severe mild better ; Nothing has changed."
    assert difference["meta"]["line"] == ["edema"]
    folder = prepared.parent / "instruct"
    assert findings_line.read_line(folder / "lumen-train.jsonl") == ("edema",)
    assert findings_line.read_line(folder / "ft-train.jsonl") == ()
    with pytest.raises(UserError, match=r"instruct.line=\['edma'\]: no study has 'edma'; there are .*edema"):
        write(prepared, settings=Instruct(findings_first=True, line=["edma"]))


def test_a_plain_llava_reader_reads_them(prepared):
    for rows in write(prepared).values():
        for record in rows:
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"]
            assert sum(turn["value"].count("<image>") for turn in turns) == len(record["images"])
            assert all(isinstance(turn["value"], str) and turn["value"].strip() for turn in turns)
            assert isinstance(record["id"], str) and all(Path(image).suffix == ".jpg" for image in record["images"])


def test_distances_are_readable():
    expected = {None: "at an unknown distance in time", 0: "on the same day", 1: "1 day later", -1: "1 day before",
             30: "30 days later"}  # fmt: skip
    assert {days: instructions.distance(days) for days in expected} == expected


def test_missing_inputs_are_named_and_nothing_is_written(prepared):
    with pytest.raises(UserError, match=r"presence-1-1 has no long answer.*stage=rewrite"):
        write(prepared, rewrites=[])
    with pytest.raises(UserError, match="study 10 has no expert prediction"):
        write(prepared, texts=ImageTexts())
    rows = list(read_jsonl(prepared / "studies.jsonl"))
    write_jsonl(prepared / "studies.jsonl", rows[1:4] + rows[5:])
    with pytest.raises(UserError, match="presence-2-1 is about study 21"):
        write(prepared)
    assert not list((prepared.parent / "instruct").iterdir())


def test_controls_change_images_and_their_sentences_and_nothing_else(prepared):
    records = write(prepared)["lumen-test"]
    difference = records[1]
    swapped = perturb("swapped", records, 1)
    assert swapped["images"] == difference["images"][::-1]
    assert prompt_of(swapped) == (
        "reference image: <image>\nwords about 4-2.\nmain image, 10 days later: <image>\nwords about 4-1.\n"
        "what has changed?"
    )
    assert (swapped["meta"]["ref_study_id"], swapped["meta"]["study_id"]) == (42, 41)
    same = perturb("same", records, 1)
    assert same["images"] == ["images/4-1.jpg"] * 2 and prompt_of(same).count("words about 4-1.") == 2
    other = perturb("other_patient", records, 1)
    assert other["images"] == ["images/5-1.jpg", "images/4-2.jpg"]
    assert (other["meta"]["ref_study_id"], other["meta"]["study_id"]) == (51, 42)
    blind = perturb("no_image", records, 0)
    assert blind["images"] == [] and prompt_of(blind) == "is there edema?"
    for control in ("swapped", "same", "other_patient"):
        assert perturb(control, records, 0) is None and perturb(control, records, 2) is None
    assert "control" not in difference["meta"] and swapped["conversations"][1] == difference["conversations"][1]


def test_the_other_reference_is_that_of_the_next_other_patient_in_a_circle(prepared):
    records = write(prepared)["lumen-test"]
    first, second = records[1], records[4]
    assert first["meta"]["subject_id"] != second["meta"]["subject_id"]
    for questions, index, reference in (
        ([first, first, second], 0, "images/5-1.jpg"),
        ([first, second, second], 2, "images/4-1.jpg"),
        ([second, first, first], 1, "images/5-1.jpg"),
    ):
        assert perturb("other_patient", questions, index)["images"][0] == reference
    assert perturb("other_patient", [first, first], 0) is None


def test_controls_leave_images_before_the_pair_as_they_are(prepared):
    records = write(prepared, settings=Instruct(max_images=3))["lumen-val"]
    before, reference, main = records[1]["images"]
    opening = prompt_of(records[1]).partition("reference image")[0]
    for control, images in (("swapped", [before, main, reference]), ("same", [before, reference, reference])):
        asked = perturb(control, records, 1)
        assert asked["images"] == images and prompt_of(asked).partition("reference image")[0] == opening != ""


LINE = (
    "pleural effusion small no resolved consolidation yes smooth no resolved cardiomegaly no yes new nodule no no same "
    "edema no no same"
)


@pytest.mark.parametrize("answer, stripped", [
    (f"{LINE} ; Edema is new.", "Edema is new."),
    (LINE.replace("small no", "large small small") + " ; Edema is new.", "Edema is new."),  # a word too many
    ("the pleural effusion is worse; the edema is new", None),
    ("edema no no same ; Edema is new.", None),  # one finding of five
    (f"{LINE} and so on; Edema is new.", None),
    ("follow-up: consolidation is new; edema is worse", None),
])  # fmt: skip
def test_only_the_line_that_a_model_was_trained_to_write_is_stripped(answer, stripped):
    assert strip(answer) == (stripped or answer)


def test_a_line_of_other_findings_is_known_by_their_names():
    line = "air-space opacity mild severe worse pleural effusion no small new"
    assert strip(f"{line} ; x", ("air-space opacity", "pleural effusion")) == "x"
    assert strip(f"{line} ; x") == f"{line} ; x"


def test_a_dataset_has_its_own_findings_line_and_only_that_is_taken_off(prepared):
    """The five findings of the phantoms are not those of MIMIC: its line has its own, the most frequent first."""
    studies = [row["study_id"] for row in read_jsonl(prepared / "studies.jsonl")]
    entities = [
        {"study_id": str(study), "entity": {"lung opacity": {}} | ({"fracture": {}} if study % 10 else {})}
        for study in studies
    ]
    (prepared.parent / "all_diseases.json").write_text(json.dumps(entities))
    difference = write(prepared, settings=Instruct(findings_first=True))["lumen-train"][1]
    assert difference["meta"]["line"] == ["lung opacity", "fracture"]
    text = difference["conversations"][1]["value"]
    assert text == "lung opacity yes yes same fracture yes yes same ; Nothing has changed."
    assert findings_line.strip(text, difference["meta"]["line"]) == "Nothing has changed."
    assert findings_line.strip(text) == text
    assert findings_line.names({"1": {"edema": {}, "nodule": {}}}) == findings_line.FINDINGS


def test_only_models_that_are_trained_and_on_no_outcomes_have_files_here():
    assert set(instructions.files()) == {
        f"{model}-{split}.jsonl" for model in ("ft", "lumen") for split in ("train", "val")
    }
