"""Phantoms: the official layout, the known future, and ceilings that hold."""

from __future__ import annotations

import csv
import filecmp
import gzip
import re
import runpy
from datetime import datetime

import numpy as np
import orjson
import pytest

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.data import findings_line, images, phantom, phantom_ceilings, phantom_images
from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.diff_vqa import TYPES, parse_difference, parse_question
from lumen_hpc.errors import UserError

SETTINGS = Phantom(patients=60, dicom_every=5, studies=3)
LINE_ENTRY = re.compile(
    rf"({'|'.join(ps.FINDINGS)}) ([a-z]+(?: to [a-z]+)?)(?: (striped|smooth|none))? ([a-z]+(?: to [a-z]+)?) "
    rf"({'|'.join(findings_line.OUTCOMES)})(?: |$)"
)
"""A finding of a line: its state on the reference image, its texture there, its state on the main one, its outcome."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom.write(tmp_path_factory.mktemp("phantom"), SETTINGS, seed=4)


def rows(path):
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.DictReader(text.splitlines()))


def metadata(folder):
    return rows(folder / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz")


def image_path(folder, row, tree="mimic-cxr-jpg", suffix="jpg"):
    patient = f"p{row['subject_id']}"
    return folder / tree / "files" / patient[:3] / patient / f"s{row['study_id']}" / f"{row['dicom_id']}.{suffix}"


def test_every_study_of_the_csv_files_has_its_image_at_the_official_place(folder):
    listed = metadata(folder)
    assert len(listed) == SETTINGS.patients * SETTINGS.studies
    for row in listed:
        assert images.decode(image_path(folder, row)).pixels.shape == (int(row["Rows"]), int(row["Columns"]))


def test_ids_are_distinct_and_study_ids_carry_no_order(folder):
    studies = rows(folder / "medical-diff-vqa" / "mimic_all.csv")
    assert len({row["study_id"] for row in studies}) == len({row["dicom_id"] for row in studies}) == len(studies)
    by_patient = {}
    for row in studies:
        by_patient.setdefault(row["subject_id"], []).append((int(row["study_order"]), int(row["study_id"])))
    rising = [sorted(taken) == sorted(taken, key=lambda pair: pair[1]) for taken in by_patient.values()]
    assert not all(rising)


def test_dates_give_the_true_intervals_and_times_lose_their_leading_zeros(folder):
    dates = {row["study_id"]: datetime.strptime(row["StudyDate"], "%Y%m%d") for row in metadata(folder)}
    truth = [orjson.loads(line) for line in (folder / "truth.jsonl").read_bytes().splitlines()]
    for before, after in zip(truth, truth[1:]):  # noqa: RUF007
        if before["subject_id"] == after["subject_id"]:
            days = (dates[str(after["study_id"])] - dates[str(before["study_id"])]).days
            assert days == after["day"] - before["day"] > 0
    assert any(len(row["StudyTime"].split(".")[0]) < 6 for row in metadata(folder))


def test_questions_are_the_official_templates_of_all_seven_types(folder):
    asked = rows(folder / "medical-diff-vqa" / "mimic_pair_questions.csv")
    assert {row["question_type"] for row in asked} == set(TYPES)
    assert all(parse_question(row["question_type"], row["question"]) for row in asked)
    assert all(bool(row["ref_id"]) == (row["question_type"] == "difference") for row in asked)


def test_difference_answers_say_what_the_truth_says(folder):
    truth = {row["study_id"]: row for row in map(orjson.loads, (folder / "truth.jsonl").read_bytes().splitlines())}
    asked = [row for row in rows(folder / "medical-diff-vqa" / "mimic_pair_questions.csv") if row["ref_id"]]
    assert len(asked) == SETTINGS.patients * (SETTINGS.studies - 1)
    for row in asked:
        before, after = (truth[int(row[key])]["findings"] for key in ("ref_id", "study_id"))
        answer = parse_difference(row["answer"])
        assert set(answer.new) == set(after) - set(before)
        assert set(answer.resolved) == set(before) - set(after)
        levels = {(level.finding, level.before, level.after) for level in answer.levels}
        both = set(before) & set(after)
        assert levels == {
            (f, before[f]["level"], after[f]["level"])
            for f in both if before[f].get("level") != after[f].get("level")
        }  # fmt: skip


def test_patients_stay_in_one_split_of_the_asked_size(folder):
    split_of = {}
    for row in rows(folder / "medical-diff-vqa" / "mimic_pair_questions.csv"):
        assert split_of.setdefault(row["subject_id"], row["split"]) == row["split"]
    sizes = {split: list(split_of.values()).count(split) for split in ("train", "val", "test")}
    assert sizes == {"train": 47, "val": 4, "test": 9}


def test_files_repeat_bit_for_bit_and_another_seed_differs(tmp_path):
    small = Phantom(patients=6, dicom_every=2)
    one, two = (phantom.write(tmp_path / name, small, seed=1) for name in ("one", "two"))
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(names) > 12
    assert filecmp.cmpfiles(one, two, names, shallow=False)[0] == names
    assert names != [p.relative_to(tmp_path / "three") for p in
                     sorted(phantom.write(tmp_path / "three", small, seed=2).rglob("*")) if p.is_file()]  # fmt: skip


def test_writing_again_keeps_the_folder_but_other_settings_are_refused(folder):
    before = (folder / "truth.jsonl").stat().st_mtime_ns
    phantom.write(folder, SETTINGS, seed=4)
    assert (folder / "truth.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings or another seed"):
        phantom.write(folder, SETTINGS, seed=5)


def test_replacing_leaves_the_new_phantoms_alone(tmp_path):
    large, small = Phantom(patients=6, dicom_every=2), Phantom(patients=3, dicom_every=0)
    phantom.write(tmp_path / "one", large, seed=1)
    phantom.write(tmp_path / "one", small, seed=2, replace=True)
    fresh = phantom.write(tmp_path / "two", small, seed=2)
    files = [
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path / "one", fresh)
    ]
    assert files[0] == files[1]


def test_a_dicom_shows_its_jpg(folder):
    listed = [row for row in metadata(folder) if image_path(folder, row, "mimic-cxr", "dcm").exists()]
    assert len(listed) == SETTINGS.patients * SETTINGS.studies // SETTINGS.dicom_every
    inverted = set()
    for row in listed:
        dicom, jpg = (images.decode(image_path(folder, row, *kind)) for kind in (("mimic-cxr", "dcm"), ()))
        assert dicom.maximum == 4095
        difference = dicom.pixels / 4095 - jpg.pixels / 255
        assert abs(difference).mean() < 0.02
        inverted.add(int(row["study_id"]) % 2)
    assert inverted == {0, 1}


@pytest.mark.parametrize("size", [64, 65, 200, 600])
def test_any_size_shows_the_same_anatomy(size):
    rng = np.random.default_rng(0)
    states = {f: ps.states(f)[1] for f in ps.FINDINGS}
    anatomy = phantom_images.draw_anatomy(rng)
    still = phantom_images.Exposure(0, 0, 0, 1, 1, 1, 0, False)
    small = phantom_images.render(states, anatomy, still, 64, rng).astype(float)
    large = phantom_images.render(states, anatomy, still, size, rng)
    assert large.shape == (size, size)
    thumbnail = images.xrv_input(images.Radiograph(large, 255), 64)[0] / 1024 * 127.5 + 127.5
    inner = (slice(8, 56), slice(8, 56))
    assert np.corrcoef(small[inner].ravel(), thumbnail[inner].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("bad", [Phantom(size=63), Phantom(size=2545), Phantom(studies=1), Phantom(patients=0)])
def test_settings_that_make_no_sense_are_refused(tmp_path, bad):
    with pytest.raises(UserError, match=r"data\.phantom"):
        phantom.write(tmp_path, bad, seed=0)


@pytest.mark.parametrize("finding", ps.FINDINGS)
@pytest.mark.parametrize("days", list(ps.DAYS))
def test_transition_tables_are_probabilities(finding, days):
    table = ps.transition(finding, days)
    assert np.allclose(table.sum(axis=1), 1)
    assert (table >= 0).all()
    assert ps.initial(finding).sum() == pytest.approx(1)


def test_texture_and_interval_decide_the_future():
    every = ps.states("edema")
    striped, smooth = (every.index(ps.State(True, "", "moderate", cue)) for cue in ps.TEXTURES)

    def chance(row, days, **fields):
        columns = [k for k, s in enumerate(every) if all(getattr(s, key) == v for key, v in fields.items())]
        return ps.transition("edema", days)[row, columns].sum()

    assert chance(striped, "short", level="severe") == pytest.approx(0.92)
    assert chance(smooth, "short", level="mild") == pytest.approx(0.92)
    assert chance(smooth, "long", present=False) == pytest.approx(0.92)
    assert chance(smooth, "day", level="moderate") == pytest.approx(1)


def test_ceilings_rise_with_knowledge_and_leave_room_for_the_cue(tmp_path):
    found = phantom_ceilings.ceilings(phantom.write(tmp_path, Phantom(patients=400), seed=0))
    assert found["constant"] < 0.3
    assert found["main image only"] < 0.5
    full = found["reference, days and cue"]
    assert full > 0.66
    assert full - found["reference and days, without the cue"] > 0.12
    assert full - found["reference and cue, without the days"] > 0.12
    assert 0.2 < found["nothing has changed"] < 0.35


def test_an_oracle_that_knows_everything_it_needs_is_always_right():
    before = {f: ps.ABSENT for f in ps.FINDINGS}
    pair = (before, dict(before), 1, 0)
    assert all(p == 0 for p in phantom_ceilings.belief(pair, "reference, days and cue").values())


def test_the_best_threshold_is_the_best_of_all():
    truth = [{("new", "a")}, set(), {("new", "b")}]
    beliefs = [{("new", "a"): 0.9}, {("new", "a"): 0.6}, {("new", "b"): 0.5, ("new", "a"): 0.1}]
    chosen = phantom_ceilings.best_threshold(truth, beliefs)

    def score(threshold):
        return phantom_ceilings.micro_f1(truth, [{i for i, p in b.items() if p >= threshold} for b in beliefs])

    assert score(chosen) == max(map(score, (0.05, 0.3, 0.5, 0.55, 0.7, 0.95)))


def test_findings_lines_are_read_back_and_stripped(folder):
    findings = findings_line.read_findings(folder / "medical-diff-vqa")
    looks = findings_line.read_looks(folder / "medical-diff-vqa")
    truth = [orjson.loads(line) for line in (folder / "truth.jsonl").read_bytes().splitlines()]
    for first, second in zip(truth, truth[1:]):  # noqa: RUF007
        if first["subject_id"] != second["subject_id"]:
            continue
        before, after = findings[str(first["study_id"])], findings[str(second["study_id"])]
        seen = [
            findings_line.StudyState(findings[str(row["study_id"])], looks[str(row["study_id"])])
            for row in (first, second)
        ]
        for line, cue in (
            (findings_line.difference_line(*seen), False),
            (findings_line.prediction_line(*seen), True),
        ):
            answer = findings_line.join(line, "The level of edema has changed.")
            assert findings_line.strip(answer) == "The level of edema has changed."
            entries = LINE_ENTRY.findall(line)
            assert [name for name, *_ in entries] == list(ps.FINDINGS)
            for name, state_before, texture, state_after, outcome in entries:
                known = before.get(name)
                if name in ps.LOOKS:
                    assert {state_before, state_after} <= set(ps.LOOKS[name])
                else:
                    assert state_before == ("no" if known is None else known.get("level", "yes"))
                    assert (state_after == "no") == (name not in after)
                assert bool(texture) == cue
                assert (outcome == "new") == (known is None and name in after)


@pytest.mark.parametrize("answer", ["nothing has changed.", "there is edema; it is severe.", "", "a ; b"])
def test_an_answer_without_a_line_is_left_alone(answer):
    assert findings_line.strip(answer) == answer


def test_missing_entities_are_named(tmp_path):
    with pytest.raises(UserError, match=r"all_diseases\.json"):
        findings_line.read_findings(tmp_path)


def test_a_finding_that_no_image_would_show_is_refused(monkeypatch):
    monkeypatch.setattr(ps, "FINDINGS", (*ps.FINDINGS, "pneumothorax"))
    with pytest.raises(NotImplementedError, match=r"pneumothorax: .* not drawn in .*phantom_images\.py"):
        runpy.run_path(phantom_images.__file__)
