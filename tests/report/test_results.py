"""What the report says is what was answered: tables, tests, baselines, controls."""

from __future__ import annotations

import csv
import io
import runpy
import xml.etree.ElementTree
from dataclasses import replace

import numpy as np
import pytest

from lumen_hpc.config import resolve
from lumen_hpc.config.schema import Evaluate
from lumen_hpc.data.diff_vqa import parse_difference, render_difference
from lumen_hpc.errors import UserError
from lumen_hpc.metrics.change import Reader
from lumen_hpc.metrics.significance import Interval, wilcoxon
from lumen_hpc.report import cases, composed, figures, tables
from lumen_hpc.report.assemble import report
from lumen_hpc.report.case_figure import case_figure
from lumen_hpc.report.comparison import comparison
from lumen_hpc.report.controls import Control, controls
from lumen_hpc.report.controls import markdown as controls_markdown
from lumen_hpc.report.identity import Identity, identify
from tests.report import pretend

MIMIC = Identity(data="mimic", base="Efficient-Large-Model/NVILA-8B", judge="Llama-3.1-405B-Instruct-FP8")


def test_on_mimic_table_1_has_the_papers_rows_and_its_published_numbers(inputs):
    results = pretend.results_of(inputs, identity=MIMIC)
    first, second = tables.tables(results)
    assert [first.labels[model] for model, _ in first.rows] == ["NVILA-8B", "NVILA-8B-FT", "FT + rule", "LUMEN"]
    assert first.comparable and "| published |" in tables.markdown([first], [])
    published = {
        (model, cell.block, cell.measure): tables.published(cell) for model, cells in first.rows for cell in cells
    }
    assert published["lumen", "difference", "rouge_l"] == 0.656
    assert published["ft", "prediction", "bleu4"] == 0.019
    assert published["nvila", "prediction", "judge"] is None, "absolute judge scores do not compare"
    assert published["lumen", "difference", "change_f1"] is None
    assert published["ft+rule", "difference", "rouge_l"] is None
    assert all(tables.published(cell) is None for _, cells in second.rows for cell in cells)


def test_elsewhere_nothing_published_is_shown_and_no_model_has_a_name_that_is_not_its_own(inputs, written):
    first, second = tables.tables(pretend.results_of(inputs))
    assert list(first.labels.values()) == ["tiny NVILA", "tiny NVILA-FT", "FT + rule", "LUMEN (tiny NVILA)"]
    assert not first.comparable and not second.comparable
    for name in ("tables.md", "tables.csv", "tables.tex", "index.html", "figures/table-1.svg"):
        text = (written / name).read_text()
        assert "NVILA-8B-FT" not in text and "published |" not in text and "quad published" not in text, name
    with (written / "tables.csv").open(newline="") as stream:
        assert not any(row["published"] for row in csv.DictReader(stream))
    page = (written / "index.html").read_text()
    assert "Published: arXiv" not in page and "Hollow diamonds" not in page and 'class="paper"' not in page
    assert "The data are phantoms" in page and "Grammar rule (1–10)" in page and "Judge score" not in page


@pytest.mark.parametrize(("studies", "shown"), [(227_835, True), (150_000, True), (32, False)])
def test_published_numbers_stand_beside_most_of_mimic_cxr_alone(inputs, studies, shown):
    identity = replace(MIMIC, studies=studies)
    first, second = tables.tables(pretend.results_of(inputs, identity=identity))
    assert first.comparable == second.comparable == shown
    assert (
        "published" in tables.markdown([first], tables.notes(pretend.results_of(inputs, identity=identity)))
    ) == shown
    assert any(f"{studies:,} studies in MIMIC-CXR's layout" in line for line in identity.banner) != shown


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/models/NVILA-8B", "NVILA-8B-FT"),
        ("/cache/models--Efficient-Large-Model--NVILA-8B/snapshots/0a1b2c/", "NVILA-8B-FT"),
        ("/cache/models--A--NVILA-Lite-2B/snapshots/0a1b2c", "NVILA-Lite-2B-FT"),
        ("/data/snapshots/mine", "mine-FT"),
    ],
)
def test_a_model_in_the_hubs_cache_has_its_own_name(path, label):
    assert replace(MIMIC, base=path).label("ft") == label


def test_a_cell_is_the_mean_of_its_questions_with_its_n_and_test(results):
    cell = results.cell("difference", "rouge_l", "nvila", tested=True)
    where = results.where("difference")
    ours = results.column("rouge_l", "nvila").values()[where]
    theirs = results.column("rouge_l", "lumen").values()[where]
    assert cell.n == where.sum() == 40
    assert cell.value == pytest.approx(ours.mean())
    assert cell.low < cell.value < cell.high
    assert cell.test == wilcoxon(ours, theirs)
    assert cell.difference.value == pytest.approx(ours.mean() - theirs.mean())


def test_holm_runs_over_both_tables(results):
    found = tables.tables(results)
    cells = [cell for table in found for _, cells in table.rows for cell in cells if cell.test]
    assert len({cell.block for cell in cells}) == 3
    smallest = min(cells, key=lambda cell: cell.p)
    assert smallest.p_holm == pytest.approx(min(1, smallest.p * len(cells)))
    assert all(cell.p_holm >= cell.p for cell in cells)


@pytest.mark.parametrize(
    ("p", "p_holm", "expected"),
    [(0.0001, 0.0005, "*"), (0.0005, 0.01, "(*)"), (0.0005, 0.001, "(*)"), (0.001, 0.001, ""), (0.2, 1.0, "")],
)
def test_stars(results, p, p_holm, expected):
    cell = results.cell("difference", "rouge_l", "nvila", tested=True)
    assert tables.star(replace(cell, p=p, p_holm=p_holm), 0.001) == expected
    for holds_0 in (Interval(0.02, -0.001, 0.04), Interval(0.02, 0.0, 0.04), Interval(-0.02, -0.04, 0.0)):
        assert tables.star(replace(cell, p=p, p_holm=p_holm, difference=holds_0), 0.001) == ""


def test_too_few_permutations_for_a_star_are_said(results):
    found = tables.tables(results)
    tests = sum(cell.p is not None for table in found for _, cells in table.rows for cell in cells)
    fewest = 1000 * tests  # tests / (1 + fewest) is below 0.001
    assert tables.permutation_notes(found, Evaluate(permutations=fewest)) == []
    for permutations, start in ((fewest - 1, "No difference can have `*`: "), (999, "No difference can have `*` or ")):
        (note,) = tables.permutation_notes(found, Evaluate(permutations=permutations))
        assert note.startswith(start)
        assert f"{tests} tests" in note and f"`evaluate.permutations={fewest}`" in note
    assert tables.permutation_notes([], Evaluate(permutations=1)) == []


def test_each_cell_has_the_p_of_its_own_difference(results):
    measures = ("rouge_l", "finding_f1", "accuracy")
    cells = [results.cell("diagnostic", measure, "ft", tested=True) for measure in measures]
    apart = [results.add_tests([cell])[0].p for cell in cells]
    assert len(set(apart)) == 3 and [cell.p for cell in results.add_tests(cells)] == apart


def test_the_files_say_the_same(results, written):
    found = tables.tables(results)
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(found))))
    spot = next(r for r in rows if (r["table"], r["block"], r["measure"], r["model"]) ==
                ("table 1", "difference", "rouge_l", "lumen"))  # fmt: skip
    value = f"{float(spot['value']):.3f}"
    assert "| LUMEN (tiny NVILA) | 40 | " in (markdown := tables.markdown(found, ["a note"]))
    assert value in markdown and "- a note" in markdown
    assert value in (latex := tables.latex(found)) and latex.count(r"\begin{tabular}") == 2
    assert (written / "tables.csv").read_text().startswith("table,block,measure,model,n,value,low,high,published")
    with_p = [row for row in rows if row["wilcoxon_p"]]
    assert with_p and all(row["p"] and row["minus_principal_low"] for row in with_p)
    assert all(0 <= int(row["wilcoxon_untied"]) <= int(row["wilcoxon_n"]) for row in with_p)  # never a p without n


def test_a_note_of_the_markdown_holds_no_tag():
    notes = ["Judge <img src=x> is unfit; `a<b>` needs p < 0.05"]
    assert tables.markdown([], notes).endswith("- Judge &lt;img src=x> is unfit; `a<b>` needs p &lt; 0.05\n")


def test_figure_1_shows_one_case_with_four_questions_and_every_models_own_answers(inputs, results, written):
    svg = case_figure(results, inputs.image)
    assert svg == (written / "figures" / "figure-1.svg").read_text()
    root = xml.etree.ElementTree.fromstring(svg)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [t for t in texts if t in ("Open question", "Closed question", "Difference", "Prediction")] == [
        "Open question", "Closed question", "Difference", "Prediction"]  # fmt: skip
    for who in ("Reference answer", "tiny NVILA", "tiny NVILA-FT", "LUMEN (tiny NVILA)"):
        assert texts.count(who) == 4
    assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 2
    assert case_figure(results, lambda path: None) is None


def test_figures_are_whole_svg_with_a_title_and_a_description(written):
    files = sorted((written / "figures").glob("*.svg"))
    assert {file.stem for file in files} >= {"table-1", "table-2", "training", "canaries", "rewriting", "controls"}
    for file in files:
        root = xml.etree.ElementTree.fromstring(file.read_text())
        parts = {child.tag.rpartition("}")[2]: child.text for child in root}
        assert parts["title"] and parts["desc"], file
        assert "var(--ink" in file.read_text()


def test_the_report_is_the_same_twice(inputs, written, tmp_path):
    report(inputs, Evaluate(bootstrap=100, permutations=2000, cases=120), 0, tmp_path)
    for file in written.rglob("*.*"):
        assert (tmp_path / file.relative_to(written)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("kept", "names", "missing"), [
    (("difference", "prediction"), ["table 1"], ["diagnostic"]),
    (("presence", "view"), ["table 2"], ["difference", "prediction"]),
    (("prediction",), ["table 1"], ["difference", "diagnostic"]),
])  # fmt: skip
def test_a_test_set_without_a_kind_of_question_has_a_report_that_says_so(inputs, tmp_path, kept, names, missing):
    records = [record for record in inputs.records if record["meta"]["type"] in kept]
    ids = {record["meta"]["question_id"] for record in records}
    rows = {
        name: {
            model: [row for row in rows if row["question_id"] in ids] for model, rows in getattr(inputs, name).items()
        }
        for name in ("answers", "scores")
    }
    report(replace(inputs, records=records, **rows), Evaluate(bootstrap=20, permutations=50), 0, tmp_path)
    with (tmp_path / "tables.csv").open() as stream:
        assert {row["table"] for row in csv.DictReader(stream)} == set(names)
    text = (tmp_path / "tables.md").read_text()
    assert [f"- The test set has no {block} question." in text for block in missing] == [True] * len(missing)
    assert "The test set has no" in (tmp_path / "index.html").read_text()


def test_a_missing_model_is_refused_and_a_missing_answer_counted(inputs):
    cut = pretend.inputs(patients=4)
    cut.answers["lumen"] = []
    with pytest.raises(UserError, match="no answers of lumen"):
        pretend.results_of(cut)
    cut = pretend.inputs(patients=4)
    question_id = cut.answers["nvila"].pop(0)["question_id"]
    rest = pretend.results_of(cut)
    assert question_id not in {row["question_id"] for row in rest.questions}
    assert any("questions without an answer of nvila" in line and question_id in line for line in rest.problems.lines())


def test_a_judge_that_skipped_a_question_lowers_n_for_every_model_and_is_counted():
    cut = pretend.inputs(patients=6)
    skipped = next(row for row in cut.scores["ft"] if not row.get("canary"))
    cut.scores["ft"].remove(skipped)
    rest = pretend.results_of(cut)
    whole = {model: rest.column("judge", model).whole.sum() for model in cut.answers}
    assert set(whole.values()) == {len(rest.questions) - 1}
    assert any("not judged for every model" in line for line in rest.problems.lines())


def test_a_model_that_another_judge_scored_has_no_score_and_is_named():
    one = pretend.inputs(patients=6)
    one.scores["ft"] = [row | {"judge": "another"} for row in one.scores["ft"]]
    results = pretend.results_of(one)
    assert not results.column("judge", "ft").whole.any() and results.column("judge", "lumen").whole.all()
    (line,) = (line for line in results.problems.lines() if "another judge than pretended" in line)
    assert line.startswith(f"{len(results.questions)} scores of ft by ")


def test_a_model_is_not_compared_where_the_principal_one_was_not_judged():
    one = pretend.inputs(patients=6)
    del one.scores["lumen"]
    cell = pretend.results_of(one).cell("difference", "judge", "ft", tested=True)
    assert cell.value is not None and (cell.difference, cell.test) == (None, None)


def test_a_second_judge_does_not_mix_into_the_first():
    both = pretend.inputs(patients=6)
    first = pretend.results_of(both).column("judge", "lumen").part.tolist()
    for rows in both.scores.values():
        rows += [row | {"judge": "another", "score": 1} for row in rows if not row.get("canary")]
    assert pretend.results_of(both).column("judge", "lumen").part.tolist() == first


def test_the_composed_baseline_compares_single_images(inputs, results):
    truth = [render_difference(results.truth(i)) for i in np.flatnonzero(results.where("difference"))]
    claims = [text for text in results.joined.answers["ft+rule"] if text]
    # The pretended FT sees single images right, so its comparison is the truth.
    assert [facts_of(a) for a in claims] == [facts_of(a) for a in truth]
    assert results.cell("difference", "change_f1", "ft+rule").value == 1
    assert results.cell("prediction", "change_f1", "ft+rule").value is None


def test_a_model_compares_images_only_where_it_beats_every_models_readings(inputs):
    results = pretend.results_of(inputs)
    results.add_model("lumen+rule", dict.fromkeys(composed.answers(inputs.answers["ft"], results.reader), "edema"))
    result = comparison(results)
    # LUMEN's own readings tell nothing; those of FT are the truth, which LUMEN reaches nine times in ten.
    assert results.cell("difference", "change_f1", "lumen+rule").value == 0
    assert (result.readings, result.shown) == ("FT + rule", False)
    assert "LUMEN (tiny NVILA) minus FT + rule" in str(result) and "does not show that it compares" in str(result)


def test_what_departs_from_the_paper_is_listed_and_shared_patients_come_before_any_number():
    counts = {"patients_in_two_splits": 7}
    given = resolve.resolve(["stage=full", "recipe=lora", "data=mimic", "train.steps=50"]).settings
    assert identify(given, counts).patients_in_two_splits == 0
    lines = " ".join(identify(given).deviations)
    assert "low-rank updates of rank 64" in lines and "50 steps, not one epoch" in lines
    given = replace(given, prepare=replace(given.prepare, patient_overlap="allow", one_study_per_test_subject=False))
    found = identify(given, counts)
    assert any("7 patients have questions in more than one split" in line for line in found.banner)
    lines = " ".join(found.deviations)
    assert "in more than one split" in lines and "every study of a test patient" in lines
    assert not identify(replace(given, train=replace(given.train, steps=0)), {}).patients_in_two_splits


def facts_of(text):
    change = parse_difference(text)
    return set(change.new), set(change.resolved), set(change.levels)


def test_a_pair_with_one_image_unasked_is_not_composed():
    rows = [{"question_id": "q/main/abnormality", "control": "composed", "answer": "edema"}]
    assert composed.answers(rows, Reader(["edema"])) == {}


@pytest.mark.parametrize("before, after", [("banana", "edema"), ("edema", ""), ("I cannot tell.", "banana")])
def test_a_pair_with_an_image_that_was_not_read_says_nothing(before, after):
    states = {"reference": before, "main": after}
    rows = [{"question_id": f"q/{side}/abnormality", "control": "composed", "answer": a} for side, a in states.items()]
    assert composed.answers(rows, Reader(["edema"])) == {"q": ""}


def test_controls_know_what_was_shown(inputs, results):
    rows = [row for row in inputs.records if row["meta"]["type"] == "difference"]
    studies = [row["meta"] for row in rows]
    index = {q["question_id"]: i for i, q in enumerate(results.questions)}
    answers = []
    for k, meta in enumerate(studies):
        truth = results.truth(index[meta["question_id"]])
        other = studies[(k + 1) % len(studies)]["ref_study_id"]
        levels = {s: {f: a.get("level", "") for f, a in inputs.findings[s].items()} for s in (other, meta["study_id"])}
        crossed = composed.difference(levels[other], levels[meta["study_id"]])
        asked = {"question_id": meta["question_id"], "ref_study_id": other, "study_id": meta["study_id"]}
        answers += [
            asked | {"control": "swapped", "answer": render_difference(truth.reversed())},
            asked | {"control": "same", "answer": "Nothing has changed."},
            asked | {"control": "other_patient", "answer": render_difference(crossed)},
        ]
    found = {control.name: control.values for control in controls(results, {"lumen": answers}, inputs.findings)}
    assert found["swapped"]["shown"] == 1 and found["swapped"]["original"] < 0.2
    assert found["same"]["nothing"] == 1
    assert found["other_patient"]["shown"] == 1 and found["other_patient"]["original"] < 0.6
    later_findings = {meta["study_id"]: inputs.findings[meta["study_id"]] for meta in studies}  # of no reference study
    later_findings |= {studies[k]["ref_study_id"]: inputs.findings[studies[k]["ref_study_id"]] for k in range(7)}
    cut = next(each for each in controls(results, {"lumen": answers}, later_findings) if each.name == "other_patient")
    assert cut.n == {"shown": 7, "original": len(studies)}, "n is that of the value beside it"


@pytest.mark.parametrize("answer", ["The edema has worsened.", "I cannot tell.", ""])
def test_a_model_that_sees_it_worsen_or_says_nothing_does_not_say_that_nothing_has_changed(inputs, results, answer):
    rows = [record["meta"] for record in inputs.records if record["meta"]["type"] == "difference"]
    answers = [{"question_id": row["question_id"], "control": "same", "answer": answer,
                "ref_study_id": row["ref_study_id"], "study_id": row["ref_study_id"]} for row in rows]  # fmt: skip
    (control,) = controls(results, {"lumen": answers}, inputs.findings)
    assert control.values["nothing"] == 0


def test_controls_as_a_table_have_a_row_a_measure_and_a_column_a_model():
    shown, original = Interval(0.7, 0.6, 0.8), Interval(0.1, None, None)
    found = [
        Control("same", "lumen", {"nothing": 40}, {"nothing": Interval(0.9, 0.85, 1.0)}),
        Control("swapped", "lumen", {"original": 40, "shown": 40}, {"original": original, "shown": shown}),
        Control("same", "ft", {"nothing": 40}, {"nothing": Interval(0.5, None, None)}),
    ]
    assert controls_markdown(found).splitlines() == [
        "| control | measure | lumen | ft |",
        "| --- | --- | --- | --- |",
        "| reference and main image swapped | change F1 against what was shown | 0.700 [0.600, 0.800] | – |",
        "| reference and main image swapped | change F1 against the original pair | 0.100 | – |",
        "| the same image twice | answers that nothing has changed | 0.900 [0.850, 1.000] | 0.500 |",
    ]
    assert controls_markdown([]) == ""


def test_a_model_has_one_colour_in_every_figure(results):
    """Whatever else a figure shows: table 2 has no composed row, and the training curves not every model."""
    first, second = tables.tables(results)
    models = first.labels
    control = Control("same", "lumen", {"nothing": 40}, {"nothing": Interval(0.9, 0.8, 1.0)})
    curve = {"lumen": [{"step": 1, "loss": 20.0}, {"step": 2, "loss": 0.1}]}
    drawn = [
        figures.headline(second, models),
        figures.control_panels([control], models),
        figures.training(curve, models),
    ]
    assert all("--series-0" in svg for svg in drawn)
    assert not any(f"--series-{k}" in svg for svg in drawn[1:] for k in range(1, 6))


def test_a_handful_of_patients_is_said_first(results):
    assert not any("Only" in note for note in tables.notes(results))
    few = pretend.results_of(pretend.inputs(patients=5))
    assert tables.notes(few)[0].startswith("Only 5 patients")


def test_cases_are_drawn_evenly_and_within_the_budget(results, monkeypatch, inputs):
    found = cases.cases(results, inputs.image, Evaluate(cases=30), 0)
    types = [row["type"] for row in found.rows]
    assert len(found.rows) == 30 and len(set(types)) == 8
    assert max(map(types.count, types)) - min(map(types.count, types)) <= 1
    monkeypatch.setattr(cases, "BUDGET", 1)
    assert len(cases.cases(results, inputs.image, Evaluate(cases=30, images=True), 0).images) == 1


def test_a_pair_that_was_not_composed_is_counted_and_its_row_stands_on_fewer():
    cut = pretend.inputs(patients=5)
    control_row = next(row for row in cut.answers["ft"] if row.get("control"))
    question = control_row["question_id"].partition("/")[0]
    cut.answers["ft"].remove(control_row)
    rest = pretend.results_of(cut)
    assert rest.cell("difference", "rouge_l", "ft+rule").n == 4
    assert any("without an answer of ft+rule" in line and question in line for line in rest.problems.lines())


def test_an_interval_is_a_plain_triple():
    assert Control("same", "lumen", {"nothing": 3}, {"nothing": Interval(1.0, None, None)}).values == {"nothing": 1.0}


def test_a_table_with_a_measure_that_nobody_defined_is_refused(monkeypatch):
    monkeypatch.delitem(tables.DEFINITIONS, "finding_f1")
    with pytest.raises(NotImplementedError, match=r"finding_f1: in a table, without a heading here or in measures\.py"):
        runpy.run_path(tables.__file__)
