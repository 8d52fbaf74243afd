"""Wrong words are refused at launch: exit code 2, one line, and nothing is created."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import launch
from lumen_hpc.cluster import engines, preflight, ready, refusals
from lumen_hpc.cluster.stage import Run, Stage, Step, Task
from lumen_hpc.config import config_file
from lumen_hpc.config.data_schema import Prepare
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import EngineSettings, Settings
from lumen_hpc.data.prepare import prepare
from lumen_hpc.data.table_files import ENTITIES
from lumen_hpc.errors import UserError
from tests.data.small_dataset import METADATA, MIMIC_ALL, QUESTIONS, Dataset
from tests.rights import without_roots_rights

MIMIC = ["data=mimic", "data.mimic_cxr=/no/such/folder", "data.diff_vqa=/no/such/folder"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stage=prepare", *MIMIC], "data.mimic_cxr=/no/such/folder is not a folder"),
        (["stage=full", "train.base=org/absent"], "train.base=org/absent: neither a folder nor staged"),
        (["stage=full", "train.base=/no/such/model"], "train.base=/no/such/model"),
        (["stage=full", "experts.model=xrv", "experts.weights=/no/such"], "no weights in /no/such"),
        (["stage=full", "rewrite.engine.kind=vllm"], "rewrite.engine.model is empty"),
        (["stage=full", "judge.second.kind=transformers", "judge.second.model=a/b"], "judge.second.model=a/b"),
        (["stage=full", "judge.engine.kind=server"], "judge.engine.kind=server without judge.engine.endpoint"),
        (
            ["stage=full", *(f"judge.engine.{it}" for it in ("kind=server", "model=m", "endpoint=localhost:8000/v1"))],
            "judge.engine: endpoint 'localhost:8000/v1' is no URL; it looks like http://node:8000/v1; fix: correct it",
        ),
        (["stage=outcomes"], "stage=outcomes: these settings have no use for it; it needs data.mimic_iv=FOLDER"),
        (["stage=full", "train.workers=0"], "train.workers=0: must be at least 1"),
        (["stage=full", "train.token_budget=99"], "train.token_budget=99 does not hold a sample of train.max_tokens="),
        (["stage=full", "data.phantom.patients=2", "predict.shards=50"], "predict.shards=50: there are about"),
        (
            ["stage=full", "data.phantom.test_fraction=0"],
            "0 test questions; fix: more patients, or a larger test split",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_it_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], expected: str
) -> None:
    place = [f"runs={tmp_path / 'runs'}", "run=r", f"profile.cache={tmp_path / 'cache'}"]
    assert launch.main(["profile=local", "recipe=demo", *words, *place]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_some_of_the_experts_weights_are_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("densenet.pt", "age.pt", "fetched.json"):
        (tmp_path / name).write_text("{}")
    words = ["profile=local", "recipe=demo", "stage=full", "experts.model=xrv", f"experts.weights={tmp_path}"]
    place = [f"runs={tmp_path / 'runs'}", "run=r"]
    assert launch.main([*words, *place]) == 2
    assert f"2 of the 4 files of densenet121-res224-all, age, race, view in {tmp_path}" in capsys.readouterr().err
    assert launch.main([*words, *place, "experts.extra=[view]", "dry_run=true"]) == 0
    assert "experts.weights" not in capsys.readouterr().out


def test_a_variable_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("SCRATCH", raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["profile=local", "recipe=demo", "run=r", "profile.runs=$SCRATCH/runs"]
    assert launch.main(["stage=full", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "profile.runs=$SCRATCH/runs: $SCRATCH is not set in this shell" in line
    assert launch.main(["check", *words]) == 2
    assert f"{'bad':5}profile.runs=$SCRATCH/runs: $SCRATCH is not set" in capsys.readouterr().out
    assert launch.main(["stage=full", *words, "dry_run=true"]) == 0
    assert "a submission would be refused: profile.runs=$SCRATCH/runs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_that_nothing_could_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode))
    words = ["profile=local", "recipe=demo", f"runs={tmp_path / 'runs'}", "run=r"]
    assert launch.main(["stage=full", *words, "dry_run=true"]) == 0
    refused = (
        f"run folder {tmp_path / 'runs/r'}: {tmp_path} is not writable for you; fix: choose another with runs=FOLDER"
    )
    assert f"a submission would be refused: {refused}" in capsys.readouterr().out
    assert launch.main(["check", *words]) == 2
    assert "is not writable for you" in capsys.readouterr().out


def test_check_names_the_folder_that_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".lumen-lock-x"))

    monkeypatch.setattr(preflight.tempfile, "NamedTemporaryFile", refuse)
    assert launch.main(["check", "profile=local", "recipe=demo", f"runs={tmp_path}", "run=r"]) == 2
    assert f"run folder {tmp_path / 'r'}: {tmp_path} cannot be written: Read-only file sys" in capsys.readouterr().out


def test_check_of_one_stage_looks_at_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["check", "profile=local", "recipe=demo", f"runs={tmp_path}", "run=r", *MIMIC, "train.base=/no/such/model"]
    assert launch.main([*words, "stage=instruct"]) == 0
    out = capsys.readouterr().out
    assert "data.mimic_cxr" not in out and "train.base" not in out
    assert launch.main([*words, "stage=prepare"]) == 2
    assert "bad  data.mimic_cxr=/no/such/folder is not a folder" in capsys.readouterr().out
    assert launch.main(words) == 2
    out = capsys.readouterr().out
    assert "bad  recipe=demo does not fit data=mimic: experts.model=phantom" in out and "train.base" in out


def test_a_table_that_is_there_packed_and_unpacked_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = Dataset(tmp_path / "data").write()
    (data.folder / f"{MIMIC_ALL}.gz").write_bytes(b"")
    words = [
        f"data.mimic_cxr={data.data.mimic_cxr}",
        f"data.diff_vqa={data.data.diff_vqa}",
        f"runs={tmp_path / 'runs'}",
    ]
    assert launch.main(["stage=prepare", "profile=local", "data=mimic", *words, "run=r"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "mimic_all.csv and mimic_all.csv.gz, which may differ; keep one of them" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("closed", "mode", "messages"),
    [
        ("mimic-cxr-jpg/files", 0, ["data.mimic_cxr: {0}: Permission denied"]),
        (METADATA, 0, ["data.mimic_cxr: {0}: Permission denied"]),
        ("mimic-cxr-jpg", 0o100, ["data.mimic_cxr: {0}: Permission denied"]),
        ("mimic-cxr-jpg", 0o400, ["data.mimic_cxr: {0}/mimic-cxr-2.0.0-metadata.csv: Permission denied"]),
        ("medical-diff-vqa", 0, ["data.diff_vqa: {0}: Permission denied"]),
        (f"medical-diff-vqa/{ENTITIES}", 0, ["data.diff_vqa: {0}: Permission denied"]),
        ("", 0, ["data.mimic_cxr: {0}/mimic-cxr-jpg: Permission denied",
                 "data.diff_vqa: {0}/medical-diff-vqa: Permission denied"]),
    ],
)  # fmt: skip
def test_what_this_user_may_not_read_is_called_that_and_not_missing(
    tmp_path: Path, closed: str, mode: int, messages: list[str]
) -> None:
    """A site opens these folders to a group; a message that sends its newest member to download them is wrong."""
    data = Dataset(tmp_path / "site").write().data
    place = tmp_path / "site" / closed
    (Path(data.diff_vqa) / ENTITIES).write_text("[]")
    request = resolve(["stage=full", "data=mimic", "recipe=lumen", "instruct.findings_first=true",
                       f"data.mimic_cxr={data.mimic_cxr}", f"data.diff_vqa={data.diff_vqa}",
                       f"profile.data_use.folders=[{tmp_path}]"])  # fmt: skip
    place.chmod(mode)
    try:
        with without_roots_rights():
            results = [
                *ready.data(request.settings, request.profile),
                *ready.entities(request.settings, request.profile),
            ]
            assert [*preflight.data_use(request.settings, request.profile, tmp_path)] == []
            if not closed.endswith(ENTITIES):  # which prepare does not read
                with pytest.raises(UserError, match="Permission denied"):
                    prepare(data, Prepare(), 0, tmp_path / "out")
    finally:
        place.chmod(0o755)
    bad_results = [result for result in results if result.level == "bad"]
    assert [*dict.fromkeys(result.message for result in bad_results)] == [text.format(place) for text in messages]
    assert all(result.fix.startswith("get access to it") for result in bad_results)


@pytest.mark.parametrize(
    ("table", "content", "message", "fix"),
    [
        (METADATA, b"<!DOCTYPE html><title>Sign in</title>", "is a web page", "download it again, signed in"),
        (QUESTIONS, b"", "is empty", "fetch it again"),
        (QUESTIONS, b"study_id;subject_id\n1;2\n", "row 0 (line 1): missing column study_id", "is it UTF-8 text with"),
        (MIMIC_ALL, b"\x1f\x8b\x08 cut off", "after line 0: the file is corrupt", "fetch it again"),
    ],
)
def test_a_table_that_prepare_could_not_read_is_found_before_its_job(
    tmp_path: Path, table: str, content: bytes, message: str, fix: str
) -> None:
    data = Dataset(tmp_path).write().data
    (tmp_path / table).write_bytes(content)
    request = resolve(
        ["stage=prepare", "data=mimic", f"data.mimic_cxr={data.mimic_cxr}", f"data.diff_vqa={data.diff_vqa}"]
    )
    (result,) = [result for result in ready.data(request.settings, request.profile) if result.level == "bad"]
    assert result.message.startswith(f"{tmp_path / table} {message}") and result.fix.startswith(fix)


@pytest.mark.parametrize("place", ["mimic-cxr-jpg", MIMIC_ALL])
def test_a_mount_that_has_failed_is_named_and_nothing_on_it_is_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, place: str
) -> None:
    """pathlib raises what stat does: only a file that is not there is none."""
    data = Dataset(tmp_path).write().data
    failed, stat = str(tmp_path / place), os.stat

    def answer(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(failed):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))
        return stat(path, **options)

    words = ["check", "profile=local", "stage=prepare", "data=mimic", f"runs={tmp_path / 'runs'}", "run=r"]
    monkeypatch.setattr(os, "stat", answer)
    assert launch.main([*words, f"data.mimic_cxr={data.mimic_cxr}", f"data.diff_vqa={data.diff_vqa}"]) == 2
    output = capsys.readouterr().out
    assert f"{failed}: Transport endpoint is not connected\n     fix: have it mounted again" in output
    assert "lacks" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.prefer=dicom"], "data.prefer=dicom without data.mimic_cxr_dicom"),
        (["data.mimic_cxr_dicom={0}/nowhere"], "data.mimic_cxr_dicom={0}/nowhere lacks files"),
        (["data.mimic_cxr_dicom={0}/mimic-cxr-jpg"], ""),
    ],
)
def test_a_tree_of_dicoms_is_looked_for_too(tmp_path: Path, words: list[str], message: str) -> None:
    data = Dataset(tmp_path).write().data
    words = [word.format(tmp_path) for word in words] + [f"data.mimic_cxr={data.mimic_cxr}", "data=mimic"]
    request = resolve(["stage=full", "recipe=lumen", f"data.diff_vqa={data.diff_vqa}", *words])
    given = [result for result in ready.data(request.settings, request.profile) if result.level == "bad"]
    assert [result.message for result in given] == ([message.format(tmp_path)] if message else [])


def test_a_findings_line_without_the_datasets_findings_is_refused_before_any_gpu_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = Dataset(tmp_path / "data").write().data
    words = [f"data.mimic_cxr={data.mimic_cxr}", f"data.diff_vqa={data.diff_vqa}", "data=mimic", "train.base=tiny"]
    words += ["check", "profile=local", "recipe=lumen", "stage=instruct", f"runs={tmp_path / 'runs'}", "run=r"]
    launch.main([*words, "instruct.findings_first=true"])
    assert f"{data.diff_vqa} lacks all_diseases.json" in capsys.readouterr().out
    launch.main([*words, "instruct.findings_first=false"])
    assert "all_diseases.json" not in capsys.readouterr().out


def test_the_folder_above_a_release_is_refused_with_the_one_below(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = Dataset(tmp_path / "files").write().data
    for name in (data.mimic_cxr, data.diff_vqa):
        Path(name).rename(tmp_path / "release")
        Path(name).mkdir()
        (tmp_path / "release").rename(Path(name) / "1.0.1")
    words = ["stage=prepare", "profile=local", "data=mimic", f"runs={tmp_path / 'runs'}", "run=r"]
    for mimic_cxr, wrong in ((data.mimic_cxr, "mimic_cxr"), (f"{data.mimic_cxr}/1.0.1", "diff_vqa")):
        assert launch.main([*words, f"data.mimic_cxr={mimic_cxr}", f"data.diff_vqa={data.diff_vqa}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"; fix: data.{wrong}={getattr(data, wrong)}/1.0.1" in line


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("mimic-cxr-jpg/files", "mimic-cxr-jpg"),
        ("mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-jpg"),
        (".", "mimic-cxr-jpg"),
    ],
)
def test_a_folder_or_file_within_a_release_is_refused_with_the_release(tmp_path: Path, given: str, right: str) -> None:
    data = Dataset(tmp_path).write().data
    words = ["stage=prepare", "data=mimic", f"data.mimic_cxr={tmp_path / given}", f"data.diff_vqa={data.diff_vqa}"]
    request = resolve(words)
    (result,) = [result for result in ready.data(request.settings, request.profile) if result.level == "bad"]
    assert result.fix == f"data.mimic_cxr={tmp_path / right}"


@pytest.mark.parametrize("given", ["", "physionet.org", "physionet.org/files", "physionet.org/files/mimic-cxr-jpg"])
def test_a_folder_above_a_mirror_of_physionet_is_refused_with_the_release(tmp_path: Path, given: str) -> None:
    """As `wget -r` writes it."""
    files = tmp_path / "physionet.org/files"
    data, release = Dataset(files).write().data, tmp_path / "physionet.org/files/mimic-cxr-jpg/2.1.0"
    Path(data.mimic_cxr).rename(files / "release")
    release.parent.mkdir()
    (files / "release").rename(release)
    words = ["stage=prepare", "data=mimic", f"data.mimic_cxr={tmp_path / given}", f"data.diff_vqa={data.diff_vqa}"]
    request = resolve(words)
    (result,) = [result for result in ready.data(request.settings, request.profile) if result.level == "bad"]
    assert result.fix == f"data.mimic_cxr={release}"


def test_a_variable_in_the_folder_of_a_dataset_is_not_read_and_said_to_be(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("extends: slurm\ndefaults: {data: {source: mimic, mimic_cxr: $WORK/cxr, diff_vqa: $WORK/vqa}}\n")
    request = resolve(["stage=prepare", f"profile={site}"])
    results = [result for result in ready.data(request.settings, request.profile) if result.level == "bad"]
    assert len(results) == 2 and all(result.fix.startswith("give the whole path") for result in results)


def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path: Path) -> None:
    request = resolve(["stage=full", f"train.base={tmp_path}"])
    (result,) = [item for item in ready.models(request.settings, request.profile, {"train"}) if item.level == "bad"]
    assert result.message == f"train.base={tmp_path}: no checkpoint: it has no config.json"


def test_two_folders_that_are_exchanged_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = Dataset(tmp_path / "files").write().data
    words = ["stage=prepare", "profile=local", "data=mimic", f"runs={tmp_path / 'runs'}", "run=r"]
    assert launch.main([*words, f"data.mimic_cxr={data.diff_vqa}", f"data.diff_vqa={data.mimic_cxr}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("fix: this folder holds the tables of data.diff_vqa; give each its own")


def test_python_without_the_packages_says_which_command_sets_them_up() -> None:
    root = Path(launch.__file__).parent
    for words in ([], ["stage=full"]):
        done = subprocess.run([sys.executable, "-S", "launch.py", *words], cwd=root, capture_output=True, text=True)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 2 and "`make setup` makes one for CPUs" in line and not done.stdout


@pytest.mark.parametrize("command", ["check", "stage=fetch"])
def test_an_environment_without_the_stages_packages_is_named_before_any_job_or_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, command: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    words = [command, "profile=local", "recipe=lumen", "run=r", f"runs={tmp_path}", f"profile.cache={tmp_path / 'c'}"]
    assert launch.main(words) == 2
    shown = capsys.readouterr()
    if command == "check":
        assert f"warn {sys.executable}, which the jobs run, lacks vllm\n     fix: pip install '.[gpu]'" in shown.out
    else:
        assert "needs the packages of the stages here (" in shown.err and "pip install '.[gpu]'" in shown.err
        assert "not fetched" not in shown.out and not (tmp_path / "c").exists()


def test_images_that_cannot_fit_a_sample_are_refused() -> None:
    request = resolve(["stage=full", "train.base=org/NVILA-8B", "instruct.max_images=3"])
    bad = [result.message for result in ready.sizes(request.settings, {"train"}) if result.level == "bad"]
    assert bad == ["instruct.max_images=3: up to 6146 tokens of 2 images a record, train.max_tokens=1024"]
    assert list(ready.sizes(request.settings, {"predict"})) == []


def test_images_that_are_left_out_of_long_records_are_a_warning() -> None:
    words = ["stage=full", "train.base=org/NVILA-8B", "instruct.max_images=3", "train.max_tokens=8192"]
    [result] = ready.sizes(resolve(words).settings, {"train"})
    assert (result.level, result.message) == (
        "warn",
        "instruct.max_images=3: up to 9219 tokens of 3 images a record, train.max_tokens=8192: "
        "records that are longer lose their oldest images",
    )


def test_what_only_the_nodes_see_is_declared_and_not_looked_for() -> None:
    words = ["stage=full", *MIMIC, "train.base=/no/such/model", "rewrite.engine.kind=vllm",
             "rewrite.engine.model=/no/such/llama-text"]  # fmt: skip
    request = resolve([*words, "profile.node_paths=[/no/such]"])
    results = ready.required(request.settings, request.profile, {"prepare", "train", "rewrite"})
    assert {result.level for result in results} == {"ok"}


def test_outcomes_alone_asks_for_its_own_tables_and_for_no_images(tmp_path: Path) -> None:
    """They were looked for with prepare, which has finished: the job was the first to miss one."""
    settings = resolve(["stage=outcomes", *MIMIC, f"data.mimic_iv={tmp_path}"]).settings
    (result,) = ready.required(settings, Profile(), {"outcomes"})
    assert result.level == "bad" and re.match(rf"data.mimic_iv={tmp_path} lacks .*hosp/labevents", result.message)
    assert list(ready.required(settings, Profile(), {"evaluate"})) == []


def test_a_container_image_is_looked_for(tmp_path: Path) -> None:
    words = ["stage=full", "profile=h100", "recipe=demo", "profile.container.kind=apptainer"]
    image = tmp_path / "lumen.sif"
    request = resolve([*words, f"profile.container.image={image}", "profile.container.mounts=['/no/such:/x']"])
    bad = [result.message for result in ready.containers(request.profile) if result.level == "bad"]
    assert [str(image) in bad[0], "/no/such" in bad[1]] == [True, True]
    image.touch()
    assert len(list(ready.containers(request.profile))) == 1


def test_an_image_without_a_folder_is_looked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["stage=full", "profile=h100", "recipe=demo", "profile.container.kind=apptainer"]
    for image, found in (("absent.sif", 1), ("docker://site/lumen", 0), ("$IMAGES/lumen.sif", 0)):
        assert len(list(ready.containers(resolve([*words, f"profile.container.image={image}"]).profile))) == found


@pytest.mark.parametrize("folder", ["$(pwd)/x", "/x/`pwd`", "$NO_SUCH_NAME/x"])
def test_what_a_folder_of_the_profile_leaves_unread_is_refused(folder: str) -> None:
    for key in ("runs", "cache"):
        profile = resolve(["stage=full", "profile=h100", f"profile.{key}={folder}"]).profile
        assert [result.level for result in ready.unset_variables(profile)] == ["bad"]
    for key in ("node_paths", "data_use.folders"):
        profile = resolve(["stage=full", "profile=h100", f"profile.{key}=['{folder}']"]).profile
        assert [f"profile.{key}={folder}" in result.message for result in ready.unset_variables(profile)] == [True]


def test_steps_that_do_not_load_a_model_do_not_ask_for_it() -> None:
    request = resolve(["stage=full", "train.base=org/absent", "recipe=demo"])
    assert [result for result in ready.models(request.settings, request.profile, {"instruct"})] == []


def test_a_model_given_as_a_relative_folder_is_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["train.base=base", "rewrite.engine.model=./llama", "judge.engine.model=org/name"]
    settings = resolve(["stage=full", *words]).settings
    assert settings.train.base == str(tmp_path / "base")
    assert settings.rewrite.engine.model == str(tmp_path / "llama")
    assert settings.judge.engine.model == "org/name", "a name on the hub"


def test_the_tiny_model_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(["stage=full", "recipe=demo"]).settings.train.base == "tiny"
    assert resolve(["stage=full", "train.base=./tiny"]).settings.train.base == str(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("words", "stale"),
    [
        (["experts.in_prompt=[pathologies]", "experts.thresholds=[.1,.2,.3]"], {"instruct", "pretrain"}),
        (["rewrite.engine.endpoint=http://localhost:1/v1", "judge.engine.endpoint=http://localhost:1/v1"], set()),
        (["judge.second.model=a/b"], {"judge", "export_text_llama"}),
        (["experts.batch_size=1", "experts.trust_unknown_weights=true"], set()),
        (["experts.extra=[age]"], {"experts"}),
    ],
)
def test_only_what_changes_a_stages_output_makes_its_shards_stale(words: list[str], stale: set[str]) -> None:
    from jobs import PIPELINE

    before, after = resolve(["stage=full"]).settings, resolve(["stage=full", *words]).settings
    keys = {stage.name: stage.settings for stage in PIPELINE.stages}
    assert {
        name for name, read in keys.items() if config_file.digest(before, read) != config_file.digest(after, read)
    } == stale


@pytest.mark.parametrize(("second", "shares"), [("vllm", (0.45, 0.45)), ("transformers", (0.9, 0.9))])
def test_two_judges_in_one_process_share_the_gpus_memory(
    run: Run, stages: list[Stage], monkeypatch: pytest.MonkeyPatch, second: str, shares: tuple[float, float]
) -> None:
    settings = Settings()
    settings.judge.engine = EngineSettings(kind="vllm", model="a")
    settings.judge.second = EngineSettings(kind=second, model="b")
    monkeypatch.setattr(engines, "open_for", lambda task, engine: engine.gpu_memory)
    task = Task(Run(run.folder, settings, run.profile), Step(stages[0]))
    assert engines.open_judges(task) == pytest.approx(shares)


def test_a_model_that_was_added_after_the_records_were_written_is_refused(tmp_path: Path) -> None:
    """Its training would fail on a node, and stage instruct, which knows no models, is already done."""
    request = resolve(["stage=full", "recipe=demo", "profile=local", f"runs={tmp_path}", "run=now"])

    def plans(*steps: str) -> list:
        names = [step.partition("-")[::2] for step in steps]
        return [
            SimpleNamespace(packs=[[0]], live_shards=[], step=Step(SimpleNamespace(name=stage), model))
            for stage, model in names
        ]

    line = {"shard": 0, "of": 1, "files": [{"file": "lumen-train.jsonl"}]}
    (request.folder / "instruct").mkdir(parents=True)
    refused = [*refusals._check_records(request, plans("train-ft"))]
    assert not refused  # nothing is written yet
    (request.folder / "instruct" / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert not [*refusals._check_records(request, plans("train-lumen", "train-lumen@1", "predict-ft"))]
    assert not [*refusals._check_records(request, plans("instruct", "train-ft"))]
    (refused,) = refusals._check_records(request, plans("train-ft"))
    assert "no records for ft" in refused.message and "predict.models=[ft]" in refused.fix


def test_a_moved_run_of_phantoms_is_refused_with_what_would_do(tmp_path: Path) -> None:
    """Its records name images where it was: predict would fail there, and a report would silently show none."""
    request = resolve(["stage=full", "recipe=demo", "profile=local", f"runs={tmp_path}", "run=now"])
    image = tmp_path / "before" / "prepare" / "phantom" / "files" / "a.jpg"
    (request.folder / "prepare").mkdir(parents=True)
    (request.folder / "prepare" / "studies.jsonl").write_text(json.dumps({"image": str(image)}) + "\n")
    plans = {
        name: SimpleNamespace(packs=[[0]], step=SimpleNamespace(stage=SimpleNamespace(name=name, resources="cpu")))
        for name in ("prepare", "predict")
    }
    with pytest.raises(UserError, match=rf"was at {tmp_path}/before when .*; fix: move it back, or .*: ln -s \S+/now "):
        ready.refuse(refusals.unready(request, [plans["predict"]]))
    assert any("run now was at" in result.message for result in refusals.of_plans(request, [plans["predict"]]))
    ready.refuse(refusals.unready(request, [plans["prepare"], plans["predict"]]))  # which writes the records again
    (tmp_path / "before").symlink_to(request.folder)
    image.parent.mkdir(parents=True)
    image.touch()
    ready.refuse(refusals.unready(request, [plans["predict"]]))
