"""A run that exists: what a command changes is shown, and finished work is redone only with confirm=true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import launch
from jobs import PIPELINE
from lumen_hpc.cluster import changes, commands, graph, live, lock, manifest, submit
from lumen_hpc.cluster.plan import StepPlan
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import Resources
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError

CLIP = resolve(["stage=full", "profile=local", "recipe=demo"]).settings.train.clip


@pytest.fixture
def finished(tmp_path: Path) -> list[str]:
    """The words of a run of which every step is done, each in half an hour."""
    words = ["run=first", f"runs={tmp_path / 'runs'}"]
    request = resolve(["stage=full", *words, "train.steps=9"])
    for step in graph.steps(PIPELINE.stages, request.settings):
        count = step.stage.shards(request.settings)
        config = config_file.digest(request.settings, step.stage.settings)
        for shard in range(count):
            line = {"shard": shard, "of": count, "config": config, "seconds": 1800 / count, "gpu_seconds": 3600 / count}
            manifest.append(request.folder / step.name / manifest.NAME, line)
    config_file.save(request, request.folder / "config.yaml")
    return words


def test_the_same_settings_change_nothing(finished: list[str]) -> None:
    assert list(changes.of(resolve(["stage=full", *finished]), PIPELINE).lines()) == []


def test_a_new_value_is_shown_with_what_it_costs(finished: list[str]) -> None:
    request = resolve(["stage=train", *finished, "train.clip=2.0"])
    lines = list(changes.of(request, PIPELINE).lines())
    assert f"  train.clip: {CLIP} -> 2.0" in lines
    assert "finished steps that run again: train-ft, train-lumen" in lines
    (later,) = [line for line in lines if "out of date" in line]
    assert "predict-lumen" in later and "predict-nvila" not in later and "evaluate" in later
    assert lines[-1] == "finished work lost: 3.5 h, 7 GPU-hours"  # two trainings, predictions, judgements, evaluate


def test_what_had_not_finished_with_these_settings_is_no_loss(finished: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    (folder / "predict-lumen" / manifest.NAME).unlink()
    path = folder / "judge-lumen" / manifest.NAME
    path.write_text(re.sub(r'"config": ?"\w+"', '"config":"another"', path.read_text()))
    found = changes.of(resolve(["stage=full", *finished, "train.clip=2.0"]), PIPELINE)
    assert {"predict-lumen", "judge-lumen"} <= found.stale
    assert [item.step for item in found.redone] == ["train-ft", "train-lumen", "predict-ft", "judge-ft", "evaluate"]


def test_the_steps_of_a_training_that_stopped_are_work_too(finished: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first" / "train-lumen"
    (folder / manifest.NAME).unlink()
    rows = [{"step": step, "timing": {"seconds": 600.0, "gpus": 2, "steps": 9}} for step in range(1, 7)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "training.json").write_text(json.dumps({"train.clip": CLIP}))
    for change, lost, asks in (
        ("train.clip=2.0", True, True),
        ("train.workers=2", False, False),
        ("train.loss_limit=0", False, True),  # for train-ft, which has finished with another
    ):
        request = resolve(["stage=train-lumen", *finished, change])
        found = changes.of(request, PIPELINE)
        lost_hours = {item.step: item.hours for item in found.redone}
        assert lost_hours.get("train-lumen") == (1.0 if lost else None)
        assert ("unfinished steps that begin anew: train-lumen (step 6 of 9)" in found.lines()) == lost
        assert bool(list(changes.unconfirmed(request, found))) == asks
    rows += [{**rows[-1], "step": step} for step in range(7, 10)]  # finished, by a manifest of another hash
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = list(changes.of(resolve(["stage=train-lumen", *finished, "train.clip=2.0"]), PIPELINE).lines())
    assert "finished steps that run again: train-lumen" in lines and not any("unfinished" in line for line in lines)


def test_while_steps_of_the_earlier_settings_are_queued_nothing_is_submitted(finished: list[str]) -> None:
    """Their jobs would write shards of the one beside the others' of the other."""
    request = resolve(["stage=full", *finished, "train.clip=2.0"])
    found = changes.of(request, PIPELINE)
    plans = {
        step.name: StepPlan(step, 1, [], [], Resources()) for step in graph.steps(PIPELINE.stages, request.settings)
    }
    plans["predict-nvila"].live_shards = [0]  # which the change does not touch
    changes.require_no_conflict(request, found, list(plans.values()))
    plans["train-lumen"].live_shards = plans["evaluate"].live_shards = [0]
    with pytest.raises(UserError, match=r"evaluate, train-lumen queued or running .* cancel run=first"):
        changes.require_no_conflict(request, found, list(plans.values()))


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "none"), ("", "(empty)"), (0, "0"), ("x" * 60, "x" * 60), ("x" * 61, "x" * 59 + "…")]
)
def test_a_value_is_shown_in_a_line(value: object, shown: str) -> None:
    assert changes.shorten(value) == shown


def test_speed_alone_loses_nothing(finished: list[str]) -> None:
    request = resolve(["stage=full", *finished, "train.workers=2"])
    found = changes.of(request, PIPELINE)
    assert list(found.lines())[-1] == "no finished work is lost"
    assert list(changes.unconfirmed(request, found)) == []


def test_a_step_that_reads_more_than_before_runs_again(finished: list[str]) -> None:
    """Trainings of further seeds lose nothing but the report, which is about them too."""
    lines = list(changes.of(resolve(["stage=full", *finished, "seeds=2"]), PIPELINE).lines())
    assert "finished steps that run again: evaluate" in lines and "finished work lost: 30 min, 1 GPU-hours" in lines


def test_without_confirm_nothing_is_done(finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert launch.main(["stage=full", *finished, "seed=3"]) == 2
    printed = capsys.readouterr()
    assert "  seed: 0 -> 3" in printed.out and "add confirm=true" in printed.err
    assert sorted(tmp_path.rglob("*")) == before
    request = resolve(["stage=full", *finished, "seed=3", "confirm=true"])
    assert list(changes.unconfirmed(request, changes.of(request, PIPELINE))) == []


def test_a_dry_run_says_that_it_would_have_to_be_confirmed(
    finished: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.submission, "make_plans", lambda *_: ([], {}))  # no file of the run's is whole
    assert launch.main(["stage=full", *finished, "seed=3", "dry_run=true"]) == 0
    refused = capsys.readouterr().out.partition("a submission would be refused: ")[2]
    assert refused.startswith("run=first: these settings redo finished work (")
    assert "; fix: add confirm=true to do so" in refused
    assert launch.main(["stage=full", *finished, "seed=3", "dry_run=true", "confirm=true"]) == 0
    assert "redo finished work" not in capsys.readouterr().out


def test_an_update_of_the_suite_redoes_no_finished_work_unasked(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that hashes other settings than the one that trained: hours of work would be done again in silence."""
    monkeypatch.setattr(commands.submission, "make_plans", lambda *_: ([], {}))
    folder = tmp_path / "runs" / "first"
    submitted_by(folder, {"train-ft": "0" * 16, "train-lumen": "0" * 16})
    words = ["stage=full", *finished]
    assert list(changes.of(resolve(words), PIPELINE).redone) == []  # no shard has that hash
    for step in ("train-ft", "train-lumen"):
        path = folder / step / manifest.NAME
        path.write_text(re.sub(r'"config": ?"\w+"', f'"config":"{"0" * 16}"', path.read_text()))
    found = changes.of(resolve(words), PIPELINE)
    assert [item.step for item in found.redone][:2] == ["train-ft", "train-lumen"]
    assert next(found.lines()).endswith("by an update of lumen_hpc, or an earlier change, finished work counts no more")
    assert launch.main(words) == 2
    refused = capsys.readouterr().err
    assert "this version redoes finished work (3.5 h, 7 GPU-hours)" in refused and "one that did it" in refused
    assert launch.main([*words, "confirm=true", "dry_run=true"]) == 0
    assert "redoes finished work" not in capsys.readouterr().out
    assert list(changes.of(resolve(["stage=rewrite", *finished]), PIPELINE).lines()) == []
    request = resolve(words)
    steps = graph.steps(PIPELINE.stages, request.settings)
    submitted_by(folder, {s.name: config_file.digest(request.settings, s.stage.settings) for s in steps}, "0002")
    assert list(changes.of(request, PIPELINE).lines()) == []  # once confirmed and submitted


def test_an_update_that_has_a_step_read_others_redoes_no_finished_work_unasked(
    finished: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = resolve(["stage=full", *finished])
    reads = {step.name: list(step.after) for step in graph.steps(PIPELINE.stages, request.settings)}
    submitted_by(tmp_path / "runs" / "first", {}, reads=reads)
    assert list(changes.of(request, PIPELINE).lines()) == []
    fewer = {**reads, "train-lumen": ["pretrain"]}
    submitted_by(tmp_path / "runs" / "first", {}, "0002", reads=fewer)
    found = changes.of(request, PIPELINE)
    assert [item.step for item in found.redone] == ["train-lumen", "predict-lumen", "judge-lumen", "evaluate"]
    (refusal,) = changes.unconfirmed(request, found)
    assert "this version redoes finished work" in refusal.message


def test_a_submission_records_by_which_hash_its_steps_count(tmp_path: Path) -> None:
    request = resolve(["stage=full", "run=first", f"runs={tmp_path}"])
    run = submit.open_run(request)
    run.folder.mkdir(parents=True)
    plans, _ = submit.make_plans(request, PIPELINE.stages, run)
    submission = submit.create(request, run, plans, tmp_path)
    [record] = live.submissions(run.folder)
    assert record["folder"] == submission.folder and set(record["digests"]) == {item.step.name for item in plans}
    train = next(item.step.stage for item in plans if item.step.name == "train-lumen")
    assert record["reads"]["train-lumen"] == ["pretrain", "instruct"]
    assert record["digests"]["train-lumen"] == config_file.digest(request.settings, train.settings)


def submitted_by(
    folder: Path, digests: dict[str, str], number: str = "0001", reads: dict[str, list[str]] | None = None
) -> None:
    """Writes a submission's plan.json with the hashes of its steps, and what they read."""
    path = folder / "submissions" / number / "plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"jobs": [], "digests": digests, "reads": reads or {}}))


def test_a_server_takes_its_run_as_it_is(finished: list[str], capsys: pytest.CaptureFixture) -> None:
    assert launch.main(["stage=serve", *finished, "train.clip=2.0"]) == 2
    assert f"train.clip: stage=serve takes run first as it is (train.clip={CLIP})" in capsys.readouterr().err


def test_a_server_of_a_run_whose_recipe_was_edited_takes_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {clip: 1.0}\n")
    words = ["run=first", f"runs={tmp_path / 'runs'}"]
    request = resolve(["stage=full", *words, f"recipe={recipe}"])
    request.folder.mkdir(parents=True)
    config_file.save(request, request.folder / "config.yaml")
    recipe.write_text("train: {clip: 3.0}\n")
    assert launch.main(["stage=serve", *words]) == 2
    assert "no trained lumen yet" in capsys.readouterr().err


def test_the_first_line_tells_what_runs_where(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["stage=full", f"runs={tmp_path}", "dry_run=true"]
    assert launch.main(words) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"local profile: would run on this machine, 14 steps, phantoms, run {tmp_path}/demo"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.mimic_cxr=/data"], "data.mimic_cxr: nothing would read it, because data=phantom generates its own"),
        (["data=mimic"], "recipe=demo does not fit data=mimic: experts.model=phantom"),
        (["data=mimic", "recipe=lumen", "data.phantom.size=64"], "data.phantom.size: nothing would read it"),
        (["rewrite.engine.model=/llama"], "rewrite.engine.model: nothing would read it"),
        (
            ["judge.engine.kind=vllm", "judge.engine.model=/m", "judge.engine.endpoint=http://node:1/v1"],
            "judge.engine.endpoint: nothing would read it, because judge.engine.kind is not server; add "
            "judge.engine.kind=server",
        ),
        (
            ["judge.second.kind=transformers", "judge.second.gpu_memory=0.5"],
            "judge.second.gpu_memory: nothing would read it, because judge.second.kind is not vllm",
        ),
        (["rewrite.temperature=0.1"], "rewrite.temperature: nothing would read it"),
        (["experts.weights=/x"], "experts.weights: nothing would read it, because experts.model=phantom"),
        (["experts.in_prompt=[age]"], "experts.in_prompt: nothing would read it, because instruct.expert_text=false"),
        (["data=mimic", "recipe=lumen", "pretrain.patients=9"], "pretrain.patients: nothing would read it"),
        (["outcomes.threads=4"], "outcomes.threads: nothing would read it, because there are no MIMIC-IV tables"),
        (["prepare.max_bad=0.2"], "prepare.max_bad: nothing would read it, because prepare.on_bad=stop"),
        (["recipe=lumen", "instruct.line=[edema]"], "instruct.line: nothing would read it"),
        (
            ["data.phantom.mimic_iv=true", "instruct.clinical=[stay]", "instruct.labs=[sodium]"],
            "instruct.labs: nothing would read it",
        ),
        (["instruct.clinical_images=last"], "instruct.clinical_images: nothing would read it"),
        (["predict.engine=native", "predict.gpu_memory=0.5"], "predict.gpu_memory: nothing would read it"),
        (["evaluate.outcome_gates=true"], "evaluate.outcome_gates: nothing would read it"),
        (["page=true"], "page: stage=full has no use for it: it is for stage=serve"),
        (["serve.port=8000"], "serve.port: stage=full has no use for it"),
        (
            ["predict.models=[nvila,lumen]"],
            "evaluate.gates=true compares lumen with ft; add ft, or evaluate.gates=false",
        ),
        (
            ["recipe=demo-outcomes", "predict.models=[lumen]"],
            "evaluate.outcome_gates=true is about icu_48h and a model that learns it; add",
        ),
        (
            ["recipe=demo-outcomes", "instruct.outcomes=[icu_24h]"],
            "and lumen-outcomes to predict.models, or evaluate.outcome_gates=false",
        ),
        (["predict.controls=[same,no_experts]"], "predict.controls: nothing would read it, because no_experts leaves"),
        (["profile.resources.train.nodes=2", "dry_run=true"], "train.nodes=2: this machine is one node"),
        (["scripts=true"], "scripts=true shows the scripts of a dry run, and this would submit; add dry_run=true"),
        (["scripts=true", "dry_run=true"], "profile local runs on this machine, without sbatch scripts"),
        (["train.epochs=2"], "train.epochs: nothing would read it, because train.steps"),
        (["train.adapter.base_bits=4"], "train.adapter.base_bits: nothing would read it, because train.adapter.kind"),
        (["profile.account=chest"], "profile.account: nothing would read it, because profile local runs on this"),
        (["profile.resources.train.partition=a100"], "profile.resources.train.partition: nothing would read it"),
        (["profile.modules=[cuda]"], "name your site's with profile=NAME or LUMEN_PROFILE"),
        (["profile.container.kind=apptainer"], "profile.container.kind: nothing would read it"),
    ],
)
def test_what_nothing_reads_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    assert launch.main(["stage=full", f"runs={tmp_path / 'runs'}", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_named_for_a_training_is_said_to_be_a_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch.main(["stage=train", "model=ft", f"runs={tmp_path}"]) == 2
    message = "model: stage=train has no use for it: it is for stage=serve; stage=train-ft is one model's step"
    assert message in capsys.readouterr().err


def test_a_site_that_extends_nothing_does_not_run_here(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("account: chest\nresources: {gpu: {partition: gpu}}\n")
    assert launch.main(["stage=full", f"profile={site}", f"runs={tmp_path / 'runs'}"]) == 2
    assert "profile.account: nothing would read it" in capsys.readouterr().err
    site.write_text("resources: {cpu: {cpus: 4}}\nruns: mine\n")
    assert launch.main(["stage=full", f"profile={site}", f"runs={tmp_path / 'runs'}", "dry_run=true"]) == 0


def test_a_forgotten_profile_on_a_login_node_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.slurm, "installed", lambda: True)
    words = [f"runs={tmp_path}", "run=new"]
    doubt = "no profile is named (profile=NAME or LUMEN_PROFILE), so nothing goes to this machine's Slurm"
    assert launch.main(["stage=full", *words, "dry_run=true"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == doubt
    assert launch.main(["stage=full", *words, "dry_run=true", "profile=local"]) == 0
    assert doubt not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for given, said in (([], True), (words[:1], False)):
        assert launch.main(["status", "run=new", *given]) == 2
        assert ("config.yaml (no profile is named: LUMEN_PROFILE); " in capsys.readouterr().err) == said


def test_a_name_like_another_runs_is_said_to_be_new(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"runs={tmp_path}", "dry_run=true"]
    first = resolve(["stage=full", "run=first", words[0]])
    first.folder.mkdir()
    config_file.save(first, first.folder / "config.yaml")
    for name, new in (("First", True), ("fir-st", True), ("first", False), ("second", False)):
        assert launch.main(["stage=full", f"run={name}", *words]) == 0
        said = f"{name} is a new run; first is another, which exists" in capsys.readouterr().out.splitlines()
        assert said == new, name


def test_a_sweep_is_one_submission_a_value(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["stage=full", "run=try", f"runs={tmp_path}", "dry_run=true"]
    assert launch.main([*words, "train.learning_rate=[1e-5,2e-5]"]) == 0
    out = capsys.readouterr().out
    names = ["try-learning_rate-1e-5", "try-learning_rate-2e-5"]
    assert out.startswith(f"a sweep of 2 runs: {', '.join(names)}\n")
    assert [out.count(f"run {tmp_path / name}\n") for name in names] == [1, 1]
    assert f"python launch.py compare runs={','.join(names)}" in out
    assert launch.main([*words, "train.learning_rate=[1e-5,-1]"]) == 2, "none is submitted where one is refused"
    assert "a sweep of" not in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_a_sweep_costs_what_its_runs_do_together(tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["stage=full", "run=try", f"runs={tmp_path / 'runs'}", "profile=h100", "profile.account=a", "recipe=lumen"]
    words += ["data=phantom"]  # whose size is known before stage prepare
    assert launch.main([*words, "dry_run=true"]) == 0
    (one,) = re.findall(r"GPU-hours: (\S+);", capsys.readouterr().out)
    limited = [*words, f"profile.gpu_hours_limit={float(one) * 1.5}", "seed=[0,1]"]
    assert launch.main([*limited, "dry_run=true"]) == 0
    (both,) = re.findall(r"GPU-hours of all of them: (\S+)", capsys.readouterr().out)
    assert float(both) == pytest.approx(2 * float(one), abs=0.2)
    assert launch.main(limited) == 2
    assert f"the 2 runs of this sweep together would cost about {both} GPU-hours" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not list(fake.glob("script*"))


def test_a_dry_run_says_what_the_budget_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["stage=full", "run=r", f"runs={tmp_path}", "profile=h100", "recipe=lumen", "data=phantom", "dry_run=true"]
    for limit, refused in ((1, True), (100_000, False)):
        assert launch.main([*words, f"profile.gpu_hours_limit={limit}"]) == 0
        out = capsys.readouterr().out
        assert ("a submission would be refused: this submission would cost about" in out) == refused


def test_while_a_run_goes_on_here_another_command_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Else a stage whose input is being written at this moment would be called missing."""
    request = resolve(["stage=full", "recipe=smoke", f"runs={tmp_path}"])
    request.folder.mkdir()
    config_file.save(request, request.folder / "config.yaml")
    with lock.held(request.folder):
        assert launch.main(["stage=train", "run=smoke", f"runs={tmp_path}"]) == 2
    assert "works on this run" in capsys.readouterr().err
