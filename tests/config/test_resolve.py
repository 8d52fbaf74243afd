"""From a command line to settings and profile: which source wins, and how a wrong word is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lumen_hpc.config import config_file, run_record
from lumen_hpc.config import profile as profiles
from lumen_hpc.config.resolve import RECIPES, resolve
from lumen_hpc.errors import UserError


def test_without_a_profile_it_is_the_demo_here():
    request = resolve(["stage=full"])
    assert (request.profile.name, request.recipe, request.profile.executor) == ("local", "demo", "local")
    assert request.settings.data.source == "phantom"


def test_the_command_line_wins_over_profile_recipe_and_default(tmp_path: Path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: slurm\ndefaults: {train: {clip: 2.0, weight_decay: 0.5}}\n")
    recipe = tmp_path / "short.yaml"
    recipe.write_text("train: {clip: 1.0, global_batch: 8}\n")
    request = resolve(["stage=train", f"profile={profile}", f"recipe={recipe}", "train.weight_decay=0.1"])
    train = request.settings.train
    assert (train.weight_decay, train.clip, train.global_batch, train.epochs) == (0.1, 2.0, 8, 1.0)


def test_the_command_line_leaves_the_profiles_own_defaults_as_they_were(tmp_path: Path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: slurm\ndefaults: {train: {mixture: {diagnostic: 1}, tune: [llm]}}\n")
    words = ["train.mixture.difference=2", "train.tune=[projector]"]
    request = resolve(["stage=train", f"profile={profile}", *words])
    assert request.settings.train.mixture == {"diagnostic": 1, "difference": 2}
    assert request.profile.defaults["train"] == {"mixture": {"diagnostic": 1}, "tune": ["llm"]}


def test_a_profile_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUMEN_PROFILE", "h100")
    assert resolve(["stage=full"]).profile.resources["train"].gpus == 4


@pytest.mark.parametrize("name", profiles.names())
@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_profile_that_is_shipped_resolves_with_every_recipe(name: str, recipe: str):
    assert resolve(["stage=full", f"profile={name}", f"recipe={recipe}"]).profile.name == name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.learning_rte=1"], ["command line", "train.learning_rte", "train.learning_rate"]),
        (["phantom.size=64"], ["phantom.size", "did you mean data.phantom.size"]),
        (["stgae=train"], ["stgae", "did you mean stage"]),
        (["profile.resources.gpu.nods=2"], ["command line", "profile.resources.gpu.nodes"]),
        (["train=5"], ["train=5", "those of base, learning_rate"]),
        (["train.zero=x"], ["train.zero=x", "auto"]),
        (["evaluate.bootstrap=x"], ["command line", "evaluate.bootstrap=x", "a whole number"]),
        (["train.learning_rate=nan"], ["train.learning_rate=nan", "finite"]),
        (["train.base="], ["train.base is empty", "tiny"]),
        (["train.weight_decay=inf"], ["train.weight_decay=inf", "finite"]),
        (["train.betas=[1]"], ["train.betas=[1.0]", "[0.9, 0.999]"]),
        (["predict.models=[]"], ["predict.models=[]", "at least one", "nvila, ft, lumen"]),
        (["predict.models=[ft,ft]"], ["predict.models=['ft', 'ft']", "each once"]),
        (["predict.models=[ft,ftt]"], ["'ftt'", "nvila, ft, lumen", "did you mean ft?"]),
        (["experts.thresholds=[0.2,0.1]"], ["experts.thresholds=[0.2, 0.1]", "rising"]),
        (["data.phantom.size=3"], ["data.phantom.size=3", "from 64 to 2544"]),
        (["evaluate.confidence=95"], ["evaluate.confidence=95", "from 0 to 1"]),
        (["profile.resources.gpu.nodes=0"], ["profile.resources.gpu.nodes=0", "at least 1"]),
        (["=5"], ["'=5' is not KEY=VALUE"]),
        (["status", "check"], ["'status check'", "one verb at a time"]),
        (["train.zero=7"], ["train.zero=7", "1, 2, 3, auto"]),
        (["train.zero=0"], ["train.zero=0", "1, 2, 3, auto"]),
        (["data=mimik"], ["data.source=mimik", "did you mean mimic?"]),
        (["train.global_batch=-1"], ["train.global_batch=-1", "from 1 to 8192"]),
        (["profile=nowhere"], ["nowhere", "h100"]),
        (["profile.acount=x"], ["acount", "account"]),
        (["profile.resources.gpus.gpus=1"], ["resources.gpus", "gpu"]),
        (["recipe=nothing"], ["nothing", "demo", "lumen"]),
        (["statsu"], ["statsu", "did you mean status?"]),
        (["--status"], ["'--status'", "did you mean status?"]),
        (["full"], ["'full'", "did you mean stage=full?"]),
        (["train"], ["'train'", "did you mean stage=train?"]),
        (["predict-lumen"], ["did you mean stage=predict-lumen?"]),
        (["fetch"], ["did you mean stage=fetch?"]),
        (["stop"], ["did you mean cancel?"]),
        (["resume"], ["a run goes on with stage=full run=NAME"]),
        (["status", "--halp"], ["did you mean --help?"]),
        (["STAGE=full"], ["did you mean stage?"]),
        (["stage", "full"], ["'stage'", "write stage=full, without spaces"]),
        (["--dry-run"], ["'--dry-run'", "write dry_run=true"]),
        (["stage=full", "recipe=", "smoke"], ["'smoke'", "did you mean recipe=smoke?"]),
        (["dry_run=perhaps"], ["dry_run=perhaps", "true or false"]),
        (["config=absent.yaml"], ["absent.yaml"]),
        (["train.weight_decay=-1"], ["train.weight_decay=-1", "negative"]),
        (["run=a/b"], ["run=a/b", "runs=FOLDER", "run=b runs=a"]),
        (["run=runs/demo/"], ["runs=FOLDER, as in run=demo runs=runs"]),
        (["submit"], ["'submit'", "without a verb it submits"]),
        (["stage:full"], ["'stage:full'", "write stage=full, without spaces"]),
        (["train.steps"], ["'train.steps'", "write train.steps=VALUE"]),
        (["what has changed?", "ask"], ["a question stands behind its verb"]),
        (["run="], ["run= is empty (a variable that is not set?)", "leave it out"]),
        (["profile="], ["profile= is empty"]),
        (["recipe=Demo"], ["recipe=Demo", "did you mean demo?"]),
        (["recipe=smoke.yml"], ["smoke.yml", "did you mean smoke?"]),
        (["profile=H100"], ["profile=H100", "did you mean h100?"]),
        (["data=MIMIC"], ["data.source=MIMIC", "did you mean mimic?"]),
        (["predict.models=lumen"], ["predict.models=lumen: takes a list", "so predict.models=[lumen]"]),
        (["train.mixture={diagnostic:24}"], ["takes a mapping with spaces behind its colons: {diagnostic: 24}"]),
        (["profile.resource.gpu.gpus=1"], ["did you mean profile.resources.gpu.gpus?"]),
        (["trian.steps=1"], ["did you mean train.steps?"]),
        (["status", "first"], ["'first'", "did you mean run=first?"]),
        (["compare", "first", "other"], ["did you mean runs=first,other?"]),
        (["compare", "a", "b"], ["did you mean runs=a,b?"]),
        (["ask", "what has changed?", "--days", "30"], ["'--days'", "write days=VALUE"]),
        (["predict.models=[[ft],[lumen]]"], ["predict.models=[['ft'], ['lumen']]: takes a list, each text"]),
        (["predict.models=[{ft: 1}]"], ["command line: predict.models=", "takes a list, each text"]),
        (["profile.environment={A: [1]}"], ["profile.environment.A=[1]: takes one value"]),
        (["profile.environment={A-B: x}"], ["profile.environment.A-B=x: a variable's name has letters"]),
        (["profile.recipe=smoke"], ["on a command line write recipe=smoke"]),
        (["profile.defaults.train.steps=3"], ["on a command line write train.steps=3"]),
        (["profile.resources.gpu.mem_gb=32G"], ["mem_gb=32G: takes a whole number (memory per node [GB];"]),
        (["instruct.findings_first=t"], ["takes true or false (a parseable line"]),
        (["profile.resources.gpu.gpus=x"], ["takes a whole number (GPUs per node;"]),
        (["profile.resources.gpu.time_min=1-00:00:00"], ["takes a whole number (time limit of a job [min])"]),
        (["run=my run"], ["run=my run", "letters, digits"]),
        (["train.compiled=1"], ["train.compiled=1: takes one of true, false, auto (compile"]),
        (["train.node_shards=maybe"], ["takes one of true, false, auto"]),
        (["train.betas=(0.9,0.99)"], ["(AdamW's moment decays), so train.betas=[0.9,0.99]"]),
        (["--steps=4"], ["unknown setting '--steps'; did you mean train.steps?"]),
        ([f"rewrite.engine.gpu_memory={'9' * 400}"], ["command line: rewrite.engine.gpu_memory=999", "takes a number"]),
        (["seed=-1"], ["from 0 to 2147483648"]),
        (["train.mixture.difference.x=3"], ["command line: train.mixture.difference.x=3: takes a whole number"]),
        (["train.zero='3'"], ["train.zero='3': takes one of 1, 2, 3, auto; a number, so without quotes"]),
        (["account=chest"], ["unknown setting 'account'; did you mean profile.account"]),
        (["resources.gpu.partition=a"], ["did you mean profile.resources.gpu.partition?"]),
        (["partition=a"], ["did you mean profile.resources.KIND.partition?"]),
        (["bogus=a"], ["unknown setting 'bogus'; python launch.py --help lists every setting"]),
        (["judge.second=false"], ["or null, for none"]),
        (["profile.runs="], ["profile.runs is empty (a variable that is not set?)"]),
        (["profile.cache="], ["profile.cache is empty"]),
    ],
)
def test_a_wrong_word_is_named_with_what_to_write(words: list[str], expected: list[str]):
    with pytest.raises(UserError) as caught:
        resolve(["stage=full", *words])
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.yaml")))
def test_a_wrong_word_is_blamed_whatever_the_recipe_sets(recipe: str):
    for words, expected in (("train.learning_rte=1", "train.learning_rate"), ("evaluate.bootstrap=x", "whole number")):
        with pytest.raises(UserError, match=f"^command line: .*{expected}"):
            resolve(["stage=full", f"recipe={recipe}", words])


def test_a_smoke_run_takes_the_sites_partitions_and_little_of_them(tmp_path: Path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "extends: h100\naccount: us\nresources: {gpu: {gpus: 0}}\ndefaults: {judge: {engine: {kind: server}}}\n"
    )
    words = ["stage=full", f"profile={profile}"]
    request = resolve([*words, "recipe=smoke"])
    resources = request.profile.resources
    assert {kind: (r.partition, r.nodes, r.gpus, r.tasks_per_node) for kind, r in resources.items()} == {
        "cpu": ("cpu", 1, 0, 1), "gpu": ("h100", 1, 0, 1), "judge": ("h100", 1, 1, 1), "train": ("h100", 1, 1, 1),
    }  # fmt: skip
    assert max(r.time_min for r in resources.values()) == 30 and not resources["train"].exclusive
    assert request.settings.judge.engine.kind == "grammar" and request.profile.account == "us"
    wider = resolve([*words, "recipe=smoke", "profile.resources.train.gpus=2"])
    assert wider.profile.resources["train"].gpus == 2
    assert resolve(words).profile.resources["train"].gpus == 4, "other recipes take what the profile has"


def test_a_recipe_names_what_its_site_section_takes(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("site: {at_most: {gpu: 1}}\n")
    with pytest.raises(
        UserError, match=r"site: 'gpu' is no key of it; it takes defaults, and at_most with some of nodes"
    ):
        resolve(["stage=full", f"recipe={recipe}"])


def test_a_profile_that_extends_itself_is_refused(tmp_path: Path):
    profile = tmp_path / "round.yaml"
    profile.write_text(f"extends: {profile}\n")
    with pytest.raises(UserError, match="circle"):
        resolve([f"profile={profile}"])
    profile.write_text(f"extends: ../{tmp_path.name}/round.yaml\n")
    with pytest.raises(UserError, match="circle"):
        resolve([f"profile={profile}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: mine\n", ["site.yaml: name: mine", "leave it out"]),
        ("extends: [slurm]\n", ["extends: ['slurm']", "one profile"]),
        ("extends: nowhere\n", ["site.yaml: extends: nowhere", "h100"]),
        ("extends: site.yaml\n", ["site.yaml", "circle"]),
        ("a: b: c\n", ["site.yaml, line 1", "not readable as YAML"]),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, ["site.yaml", "not readable as YAML"]),
        ("- a\n", ["site.yaml", "holds no `key: value` lines, but a List"]),
        (
            "extends: slurm\nresources: {gpu: {gpus: many}}\n",
            ["resources.gpu.gpus=many", "a whole number"],
        ),
        ("extends: slurm\naccunt: x\n", ["site.yaml", "'accunt'", "did you mean account"]),
        ("extends: slurm\npartition: gpu\n", ["'partition'", "did you mean resources.KIND.partition?"]),
        ("extends: slurm\nenvironment: [A=1]\n", ["site.yaml: environment=['A=1']: takes a mapping"]),
        ("extends: slurm\ndefaults: [a]\n", ["site.yaml: defaults=['a']: takes a mapping"]),
        ("extends: slurm\nruns: /scratch/${acount}\n", ["runs: ", "'acount' not found", "a variable of the shell"]),
        (
            "extends: slurm\nresources:\n\tgpu: {gpus: 1}\n",
            ["site.yaml, line 3", "a tab: YAML is indented with spaces"],
        ),
        ("extends: slurm\nresources: {gpu: {gpus:1}}\n", ["site.yaml", "a space belongs behind the colon", "gpus: 1"]),
        ("extends: slurm\naccount:chest\n", ["site.yaml, line 3", "':', with a space behind it"]),
        ("extends: slurm\nresources.gpu.gpus: 1\n", ["in a file: resources: {gpu: {gpus: …}}"]),
        ("extends: slurm\ndefaults: {train.steps: 1}\n", ["`defaults:`", "in a file: train: {steps: …}"]),
        ("extends: slurm\nmail_type: [END]\n", ["mail_type=['END']: takes text (when Slurm sends mail"]),
        ("extends: slurm\nresources: {gpu: {gpus: a100}}\n", ["a whole number (GPUs per node; of one type with"]),
        ("extends: slurm\ncontainer: {image: /x.sif}\n", ["profile.container.image=/x.sif: no job would enter it"]),
        ("extends: slurm\ncontainer: {mounts: ['/a:/b']}\n", ["profile.container.mounts=", "add the kind"]),
    ],
)
def test_a_bad_profile_is_named_by_file_and_key(tmp_path: Path, text: str, expected: list[str]):
    profile = tmp_path / "site.yaml"
    profile.write_text(text)
    with pytest.raises(UserError) as caught:
        resolve(["stage=full", f"profile={profile}"])
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variable_of_the_shell_is_no_reference_to_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch/us")
    for name in ("SLURM_TMPDIR", "account"):
        escaped = resolve(["stage=full", f"profile.scratch=\\${{{name}}}/x"]).profile
        assert escaped.scratch == f"${{{name}}}/x", "a backslash keeps any letters from being a reference"
    lines = ["export X=${SLURM_TMPDIR}/x", "echo ${FOO:-a} ${#BAR} $(date)"]
    (tmp_path / "site.yaml").write_text(
        "extends: slurm\naccount: chest\nruns: ${SCRATCH}/${account}/runs\nscratch: /local/${SLURM_JOB_ID}\n"
        f"setup: {json.dumps(lines)}\n"
    )
    words = ["profile.environment={A: '${HOME}/a'}", "profile.cache=${SCRATCH}/cache", "profile.mail_user=${account}"]
    request = resolve(["stage=full", f"profile={tmp_path}/site.yaml", *words])
    assert (request.profile.cache, request.profile.mail_user) == ("/scratch/us/cache", "chest")
    config_file.save(request, tmp_path / "config.yaml")
    for profile in (request.profile, config_file.load(tmp_path / "config.yaml")[1]):
        assert (profile.runs, profile.scratch) == ("/scratch/us/chest/runs", "/local/${SLURM_JOB_ID}")
        assert (profile.setup, profile.environment["A"]) == (lines, "${HOME}/a")


def test_a_profile_in_another_encoding_is_one_line(tmp_path: Path):
    (tmp_path / "site.yaml").write_bytes("extends: slurm\nabout: München\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"site.yaml: byte 24 is no UTF-8: save the file in UTF-8$"):
        resolve(["stage=full", f"profile={tmp_path}/site.yaml"])


def test_an_image_may_lie_idle_where_the_profile_says_so(tmp_path: Path):
    (tmp_path / "site.yaml").write_text("extends: slurm\ncontainer: {kind: none, image: /x.sif}\n")
    assert resolve(["stage=full", f"profile={tmp_path}/site.yaml"]).profile.container.kind == "none"
    (tmp_path / "site.yaml").write_text("extends: slurm\ncontainer: {image: /x.sif}\n")
    words = ["stage=full", f"profile={tmp_path}/site.yaml"]
    assert resolve([*words, "profile.container.kind=none"]).profile.container.kind == "none"
    assert resolve([*words, "profile.container.kind=pyxis"]).profile.container.kind == "pyxis"


def test_a_smoke_run_shows_typos_in_the_defaults_that_it_does_not_take(tmp_path: Path):
    (tmp_path / "site.yaml").write_text("extends: slurm\ndefaults: {trainn: {steps: 4}}\n")
    with pytest.raises(UserError, match=r"`defaults:`: unknown setting 'trainn.steps'; did you mean train.steps"):
        resolve(["check", "recipe=smoke", f"profile={tmp_path}/site.yaml"])


AS_WRITTEN = {
    "OMP_PROC_BIND": "true", "PYTHON": "3.10", "NCCL": "off", "LEVEL": "1e3", "HEX": "0x1F", "DAY": "2020-01-01",
    "NO": "1",
}  # fmt: skip


@pytest.mark.parametrize("place", ["file", "command line"])
def test_a_text_stays_as_it_was_written(tmp_path: Path, place: str):
    """YAML reads true, 3.10 and no as True, 3.1 and False: a job's variables, modules and account would be others."""
    environment = "{" + ", ".join(f"{name}: {value}" for name, value in AS_WRITTEN.items()) + "}"
    lines = {
        "account": "no",
        "modules": "[3.10, yes]",
        "environment": environment,
        "additional": "{hint: no, nice: 1.0}",
        "defaults": "{train: {base: 1.10}}",
    }
    if place == "file":
        text = "extends: slurm\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())
        (tmp_path / "site.yaml").write_text(text)
        words = [f"profile={tmp_path}/site.yaml"]
    else:
        words = ["profile=slurm", "train.base=1.10"]
        words += [f"profile.{key}={value}" for key, value in lines.items() if key != "defaults"]
    request = resolve(["stage=full", *words])
    profile = request.profile
    assert request.settings.train.base == "1.10"
    assert {name: profile.environment[name] for name in AS_WRITTEN} == AS_WRITTEN
    assert (profile.account, profile.modules) == ("no", ["3.10", "yes"])
    assert profile.additional == {"hint": "no", "nice": "1.0"}


def test_a_profiles_folders_are_read_as_the_shell_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch/us")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lumen.sif").touch()
    (tmp_path / "site.yaml").write_text(
        "extends: slurm\nnode_paths: [$SCRATCH/nodes]\ndata_use: {folders: ['${SCRATCH}/data', ~/data]}\n"
        "container: {kind: apptainer, image: lumen.sif, mounts: ['~/a:/a', '$SCRATCH:/b']}\n"
    )
    profile = resolve(["stage=full", f"profile={tmp_path}/site.yaml"]).profile
    assert profile.node_paths == ["/scratch/us/nodes"]
    assert profile.data_use.folders == ["/scratch/us/data", f"{tmp_path}/data"]
    assert profile.container.image == f"{tmp_path}/lumen.sif"
    assert profile.container.mounts == [f"{tmp_path}/a:/a", "$SCRATCH:/b"], "which the node reads"


PATHS = (
    "data.mimic_cxr", "data.mimic_cxr_dicom", "data.diff_vqa", "data.mimic_iv", "experts.weights", "serve.weights",
    "train.base", "rewrite.engine.model", "judge.engine.model", "judge.second.model",
)  # fmt: skip


def test_a_relative_path_starts_where_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Jobs start elsewhere."""
    monkeypatch.chdir(tmp_path)
    request = resolve(["stage=full", "recipe=lumen", "serve.images=[x]", *(f"{key}=./x" for key in PATHS)])
    assert {key: run_record.value_at(request.settings, key, None) for key in PATHS} == dict.fromkeys(
        PATHS, str(tmp_path / "x")
    )
    assert request.settings.serve.images == [str(tmp_path / "x")]


def test_seeds_is_short_for_the_trainings_of_each_model():
    assert resolve(["seeds=3"]).settings.train.seeds == 3


ODD = """\
account: 0123
additional: {time: 1:00:00, begin: 16:00, wckey: 2026_11}
resources: {cpu: {partition: 007, additional: {time: 2:00:00}}}
"""


@pytest.mark.parametrize("place", ["file", "command line"])
def test_a_text_that_looks_like_a_number_of_another_base_stays_as_it_was_written(tmp_path: Path, place: str):
    """YAML 1.1 reads the account as 83, an hour as 3600 (minutes, for sbatch), and 16:00 as 960."""
    if place == "file":
        (tmp_path / "site.yaml").write_text(ODD)
        profile = resolve(["stage=full", f"profile={tmp_path / 'site.yaml'}"]).profile
    else:
        words = [f"profile.{line.replace(': ', '=', 1)}" for line in ODD.splitlines()]
        profile = resolve(["stage=full", "profile=local", *words]).profile
    assert (profile.account, profile.resources["cpu"].partition) == ("0123", "007")
    assert profile.additional == {"time": "1:00:00", "begin": "16:00", "wckey": "2026_11"}
    assert profile.resources["cpu"].additional == {"time": "2:00:00"}
    assert resolve(["train.learning_rate=1e-3", "seed=1_000"]).settings.seed == 1000
    with pytest.raises(UserError, match=r"seed=1:00: takes a whole number"):
        resolve(["seed=1:00"])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("seed=99999999999999999999", "must be from 0 to"),
        ("train.global_batch=1000000", "must be from 1 to 8192; the default is 128"),
        ("train.global_batch=0", "must be from 1 to 8192"),
        ("train.epochs=0", "must be at least 0.001; the default is 1"),
        ("train.learning_rate=0", "must be above 0 and at most 1; the default is 1.5e-05"),
        ("train.learning_rate=-1e-5", "must be above 0 and at most 1"),
        ("train.learning_rate=nan", "must be a finite number; the default is 1.5e-05"),
        ("train.learning_rate=15", "must be above 0 and at most 1"),
        ("train.adapter.alpha=0", "must be above 0; the default is 128"),
        ("train.adapter.dropout=1", "must be from 0 to 0.99"),
        ("rewrite.temperature=3", "must be from 0 to 2"),
        ("rewrite.predictions_per_pair=101", "must be from 0 to 100"),
        ("rewrite.engine.timeout=0", "must be at least 1; the default is 600"),
        ("pretrain.expert_steps=0", "must be at least 1"),
        (f"pretrain.expert_steps={'9' * 400}", "must be a finite number"),
    ],
)
def test_numbers_that_no_training_can_take_are_refused(words: str, fault: str):
    with pytest.raises(
        UserError, match=f"^(command line: )?{re.escape(words.partition('=')[0])}=.*: {re.escape(fault)}"
    ):
        resolve([words])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=???", "command line: seed=??? is no value"),
        ("profile.account=???", "command line: profile.account=??? is no value"),
        ("train[base]=x", "a key has dots and no brackets"),
    ],
)
def test_what_omegaconf_would_read_otherwise_is_refused(word, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(["stage=prepare", word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: ???", "seed=??? is no value"),
        *(
            (text, "site: takes")
            for text in (
                "site: 5",
                "site: [a]",
                "site: {defaults: 'false'}",
                "site: {at_most: 5}",
                "site: {at_most: {gpus: x}}",
            )
        ),
        ("site: {at_most: {account: 5}}", "site: 'account' is no key of it"),
    ],
)
def test_a_recipe_of_another_form_is_a_line(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(["stage=prepare", f"recipe={tmp_path}/own.yaml"])
