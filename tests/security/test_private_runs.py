"""Attacks on a run's files: secrets written down, files that others can read, markup that runs."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import launch
from lumen_hpc.cluster import commands, snapshot, submit
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config import config_file
from lumen_hpc.config.profile import DataUse, Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Evaluate, Settings
from lumen_hpc.errors import UserError
from lumen_hpc.report import assemble
from tests.report import pretend

CHROMIUM = shutil.which("chromium")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"),
        ("LUMEN_API_KEY", "x"),
        ("WANDB_API_KEY", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("db_password", "x"),
        ("HARMLESS", "hf_abcdefgh"),
        ("PROXY", "http://me:hunter2@proxy.example:3128"),
    ],
)
def test_a_secret_in_the_profiles_environment_is_refused_and_not_repeated(name, value):
    with pytest.raises(UserError, match=f"profile.environment.{name} looks like a secret") as caught:
        resolve(["stage=full", f"profile.environment={{{name}: '{value}'}}"])
    assert "hunter2" not in str(caught.value) and "hf_abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("setup", "['export HF_TOKEN=hunter2']"),
        ("setup", "['module load x', 'MY_PASSWORD=\"hunter2\" ./login']"),
        ("setup", "['./login hf_hunter2hunter2']"),
        ("modules", "['http://me:hunter2@mirror.example/m']"),
        ("additional", "{comment: 'ghp_hunter2hunter2'}"),
        ("additional", "{export: 'ALL,WANDB_API_KEY=hunter2'}"),
        ("resources.train.additional", "{export: 'ALL,db_password=hunter2'}"),
        ("container.options", "[--nv, --env, 'WANDB_API_KEY=hunter2']"),
        ("container.image", "docker://me:hunter2@registry.example/i"),
        ("defaults", "{judge: {engine: {endpoint: 'http://me:hunter2@n1:8000/v1'}}}"),
    ],
)
def test_a_secret_elsewhere_in_the_profile_is_refused_and_not_repeated(key, value):
    with pytest.raises(UserError, match=rf"profile\.{key}[\w.]* looks like a secret") as caught:
        resolve(["stage=full", f"profile.{key}={value}"])
    assert "hunter2" not in str(caught.value)


def test_a_setup_that_reads_a_secret_where_it_lies_is_accepted():
    resolve(["stage=full", "profile.setup=['export HF_TOKEN=$(cat ~/.token)', 'export X=\"$HF_TOKEN\"', 'set KEY']"])
    resolve(
        ["stage=full", "profile.additional={export: 'ALL,HF_TOKEN'}", "profile.container.options=['--env=HF_TOKEN']"]
    )
    resolve(["stage=full", "profile.container.options=[--env, 'HF_TOKEN=$HF_TOKEN']"])


@pytest.mark.parametrize("place", ["recipe", "profile", "command line"])
def test_a_setting_cannot_bring_a_secret_of_the_environment_into_the_runs_files(tmp_path, monkeypatch, place):
    monkeypatch.setenv("LUMEN_API_KEY", "hunter2")
    (tmp_path / "recipe.yaml").write_text("train: {base: 'x-${oc.env:LUMEN_API_KEY}'}\n")
    (tmp_path / "profile.yaml").write_text("about: '${oc.env:LUMEN_API_KEY}'\n")
    words = {
        "recipe": f"recipe={tmp_path}/recipe.yaml",
        "profile": f"profile={tmp_path}/profile.yaml",
        "command line": "train.base=${oc.env:LUMEN_API_KEY}",
    }
    with pytest.raises(UserError, match=r"interpolation type oc\.env") as caught:
        resolve(["stage=full", words[place]])
    assert "hunter2" not in str(caught.value)


def test_ordinary_variables_are_accepted():
    words = ["TOKENIZERS_PARALLELISM: 'false'", "KEYBOARD: us", "HF_HOME: /data", "PROXY: 'http://proxy.example:3128'"]
    for word in words:
        resolve(["stage=full", f"profile.environment={{{word}}}"])


def test_a_runs_config_is_private(tmp_path):
    request = resolve(["stage=full", f"runs={tmp_path}"])
    config_file.save(request, tmp_path / "config.yaml")
    assert stat.S_IMODE((tmp_path / "config.yaml").stat().st_mode) == 0o600


@pytest.fixture
def umask():
    import os

    before = os.umask(0o022)
    yield
    os.umask(before)


def restricted(folder: Path, **data_use) -> Run:
    settings = Settings()
    settings.data.source = "mimic"
    return Run(folder, settings, Profile(data_use=DataUse(**data_use)))


@pytest.mark.usefixtures("umask")
def test_everything_that_a_restricted_run_writes_is_private(tmp_path):
    run = restricted(tmp_path / "run")
    assert run.restricted
    submit.prepare_folder(run)
    (run.folder / "later").write_text("a record")
    (run.folder / "folder").mkdir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [run.folder, *run.folder.iterdir()]}
    assert modes == {"run": 0o700, "layout": 0o600, "later": 0o600, "folder": 0o700}


@pytest.mark.parametrize("is_restricted", [True, False])
def test_a_process_of_a_restricted_run_that_crashes_leaves_no_core_file(tmp_path, is_restricted):
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        submit.prepare_folder(restricted(tmp_path / "run", restricted=is_restricted))
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0 if is_restricted else limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
        os.umask(0o022)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("by", ["owner", "mode"])
def test_nothing_is_submitted_from_a_folder_that_another_user_controls(tmp_path, by):
    """In a shared profile.runs a stranger creates `lumen` first, and would exchange code/ after the snapshot."""
    run = restricted(tmp_path / "lumen", restricted=False)
    run.folder.mkdir()
    if by == "owner":
        os.chown(run.folder, 12345, -1)
    else:
        run.folder.chmod(0o777)
    with pytest.raises(UserError, match=r"lumen: lumen (belongs to user 12345|may be written by any user).*run=NAME"):
        submit.prepare_folder(run)
    assert list(run.folder.iterdir()) == []


def test_a_folder_of_runs_that_any_user_may_write_is_named_before_a_submission(tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o777)
    runs.chmod(0o777)
    words = [f"runs={runs}", "recipe=smoke", "profile=h100"]
    for command in (["stage=full", "dry_run=true"], ["check"]):
        launch.main([*command, *words])
        out = " ".join(capsys.readouterr().out.split())
        assert f"any user may rename what lies in {runs} (mode 0777, no sticky bit)" in out
    with pytest.raises(UserError, match=r"any user may rename what lies in .*runs=FOLDER"):
        submit.prepare_folder(submit.open_run(resolve(["stage=full", *words])))
    assert list(runs.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_run_is_refused_in_the_dry_run_too_and_its_model_can_be_served(tmp_path, capsys):
    words = [f"runs={tmp_path}", "run=theirs", "recipe=smoke", "profile=local"]
    request = resolve(["stage=full", *words])
    final = request.folder / "train-lumen" / "final"
    final.mkdir(parents=True)
    config_file.save(request, request.folder / "config.yaml")
    os.chown(request.folder, 12345, -1)
    for command in (["stage=full", "dry_run=true"], ["stage=serve", "dry_run=true"], ["check"]):
        launch.main([*command, *words])
        out = " ".join(capsys.readouterr().out.split())
        assert "theirs belongs to user 12345, not to root; others could change what your jobs run there" in out
        assert f"choose another run=NAME; stage=serve and stage=export take its model with weights={final}" in out


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o775, False), (0o703, True)])
@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_submitted_from_a_folder_that_any_user_may_rename(tmp_path, mode, refused, depth):
    """A stranger puts a run of his own in its place before the jobs start, whoever owns the run."""
    shared = tmp_path / "shared"
    run = restricted(shared / "/".join(["runs"] * (depth - 1)) / "lumen")
    shared.mkdir()
    shared.chmod(mode)
    if not refused:
        return submit.prepare_folder(run)
    on_slurm = Run(run.folder, Settings(), Profile(executor="slurm"))
    for each in (run, on_slurm):
        with pytest.raises(UserError, match=r"any user may rename what lies in \S+/shared .*choose another with runs="):
            submit.prepare_folder(each)
        assert list(shared.iterdir()) == []
    submit.prepare_folder(Run(run.folder, Settings(), Profile()))  # a machine of one's own, no patient's data


@pytest.mark.usefixtures("umask")
def test_a_run_without_restricted_data_keeps_the_users_umask(tmp_path):
    run = restricted(tmp_path / "run", restricted=False)
    assert not run.restricted
    submit.prepare_folder(run)
    assert stat.S_IMODE((run.folder / "layout").stat().st_mode) == 0o644


@pytest.mark.usefixtures("umask")
def test_under_no_umask_at_all_a_run_is_not_writable_for_everyone(tmp_path):
    os.umask(0)
    run = restricted(tmp_path / "run", restricted=False)
    submit.prepare_folder(run)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (run.folder, run.folder / "layout")] == [0o775, 0o664]


@pytest.mark.usefixtures("umask")
def test_a_verb_on_a_restricted_run_writes_private_files_too(tmp_path):
    words = [f"runs={tmp_path}", "run=mine", "data=mimic", "recipe=lumen", "data.mimic_cxr=/a", "data.diff_vqa=/b"]
    submitted = resolve(["stage=full", *words])
    config_file.save(submitted, tmp_path / "mine" / "config.yaml")
    assert commands.existing_run(resolve(["cancel", *words[:2]])).restricted
    (tmp_path / "plan.json").write_text("{}")  # as cancel writes it anew
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o600


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with code, and with what nobody means to copy."""
    source = tmp_path / "checkout"
    (source / "lumen_hpc" / ".cache").mkdir(parents=True)
    (source / "jobs").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.py").write_text("SECRET = 1")
    for name in ("lumen_hpc/a.py", "lumen_hpc/b.yaml", "jobs/c.py", "launch.py"):
        (source / name).write_text("")
    for name in ("lumen_hpc/.env", "lumen_hpc/.cache/d.py", "lumen_hpc/id_rsa", "lumen_hpc/patients.csv"):
        (source / name).write_text("secret")
    (source / "lumen_hpc" / "link.py").symlink_to(tmp_path / "outside" / "secret.py")
    (source / "lumen_hpc" / "folder").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(snapshot, "SOURCE", source)
    return source


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


def test_the_snapshot_takes_code_and_neither_links_nor_hidden_files(checkout):
    assert snapshot.files() == ["jobs/c.py", "launch.py", "lumen_hpc/a.py", "lumen_hpc/b.yaml"]


def test_the_snapshot_of_a_work_tree_takes_tracked_code_as_it_is_now(checkout, tmp_path, capsys):
    git(checkout, "init")
    (checkout / ".gitignore").write_text("ignored.py\n")
    (checkout / "lumen_hpc" / "deleted.py").write_text("")
    git(checkout, "add", "--all", "--force")
    git(checkout, "commit", "-m", "all")
    (checkout / "lumen_hpc" / "deleted.py").unlink()
    (checkout / "lumen_hpc" / "a.py").write_text("CHANGED = 1")
    (checkout / "lumen_hpc" / "patients.py").write_text("NAMES = ['Zebrowski']")
    (checkout / "lumen_hpc" / "ignored.py").write_text("PASSWORD = 1")
    (checkout / "jobs" / "staged.py").write_text("")
    git(checkout, "add", "jobs/staged.py")
    code = snapshot.take(tmp_path / "run")
    names = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert names == {"jobs/c.py", "jobs/staged.py", "launch.py", "lumen_hpc/a.py", "lumen_hpc/b.yaml"}
    assert (code / "lumen_hpc" / "a.py").read_text() == "CHANGED = 1"
    assert "left out of what jobs run: lumen_hpc/patients.py;" in capsys.readouterr().err


def test_the_snapshot_holds_a_package_beside_the_suite_that_the_registry_names(checkout, monkeypatch):
    monkeypatch.setitem(snapshot.EXPERTS, "own", "my_package.expert:Expert")
    (checkout / "my_package").mkdir()
    (checkout / "my_package" / "expert.py").write_text("")
    (checkout / "notes.py").write_text("")
    assert snapshot.files() == ["jobs/c.py", "launch.py", "lumen_hpc/a.py", "lumen_hpc/b.yaml", "my_package/expert.py"]


@pytest.mark.parametrize("name", ["lumen_hpc/mine.py", "my_package/__init__.py"])
def test_an_untracked_module_that_jobs_would_miss_is_refused(checkout, monkeypatch, name):
    monkeypatch.setitem(snapshot.EXPERTS, "own", "my_package:Expert")
    monkeypatch.setitem(sys.modules, "lumen_hpc.mine", sys)
    git(checkout, "init")
    git(checkout, "add", "--all")
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("")
    with pytest.raises(UserError, match=f"git add {name}$"):
        snapshot.files()


def test_a_snapshot_that_lost_files_or_was_edited_is_completed(checkout, tmp_path):
    """Scratch file systems remove what nobody reads; and what runs under a hash is the code of that hash."""
    code = snapshot.take(tmp_path / "run")
    before = {path: path.read_bytes() for path in code.rglob("*") if path.is_file()}
    shutil.rmtree(code / "lumen_hpc")
    (code / "jobs" / "c.py").write_text("EDITED = 1")
    (code / "jobs" / "__pycache__").mkdir()
    (code / "jobs" / "__pycache__" / "c.cpython-311.pyc").write_bytes(b"cut off by a full disk: no job could start")
    assert snapshot.take(tmp_path / "run") == code
    assert {path: path.read_bytes() for path in code.rglob("*") if path.is_file()} == before


@pytest.fixture
def programs(checkout, tmp_path) -> Path:
    """A work tree whose configuration starts a program on every look; the file that it creates."""
    git(checkout, "init")
    git(checkout, "add", "--all")
    git(checkout, "commit", "-m", "all")
    (checkout / "lumen_hpc" / "a.py").write_text("CHANGED = 1")
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "program").chmod(0o755)
    git(checkout, "config", "core.fsmonitor", f"{tmp_path}/program")
    git(checkout, "config", "diff.external", f"{tmp_path}/program")
    git(checkout, "config", "diff.shown.textconv", f"{tmp_path}/program")
    for name in ("a", "a=b.clean"):
        git(checkout, "config", f"filter.{name}.clean", f"{tmp_path}/program; cat")
        git(checkout, "config", f"filter.{name}.required", "true")
    git(checkout, "config", "filter.long.process", f"{tmp_path}/program")
    (checkout / ".git" / "info" / "attributes").write_text(
        "*.py diff=shown filter=a\n*.yaml filter=a=b.clean\nlaunch.py filter=long\n"
    )
    for name in ("lumen_hpc/b.yaml", "launch.py"):
        os.utime(checkout / name, (1, 1))  # git looks at what has another time
    (tmp_path / "ran").unlink(missing_ok=True)
    return tmp_path / "ran"


def test_a_checkouts_own_configuration_starts_no_program(checkout, programs):
    assert "lumen_hpc/a.py" in snapshot.files()
    assert snapshot.provenance(checkout)["git_diff_sha256"]
    assert not programs.exists()
    subprocess.run(["git", "-C", checkout, "diff", "HEAD"], capture_output=True)
    assert programs.exists(), "the attack must work without the guard"


def test_a_filter_of_the_checkouts_configuration_is_not_started(checkout, programs):
    for key in ("core.fsmonitor", "diff.external", "diff.shown.textconv"):
        git(checkout, "config", "--unset", key)
    assert snapshot.provenance(checkout)["git_diff_sha256"]
    assert not programs.exists()
    subprocess.run(["git", "-C", checkout, "diff", "HEAD"], capture_output=True)
    assert programs.exists(), "the attack must work without the guard"


def test_a_submodules_configuration_starts_no_program(checkout, tmp_path):
    """A submodule has settings of its own, which those of the outer command do not reach."""
    inner = checkout / "lumen_hpc" / "inner"
    inner.mkdir()
    (inner / "x.py").write_text("")
    for folder in (inner, checkout):
        git(folder, "init")
        git(folder, "add", "--all")
        git(folder, "commit", "-m", "all")
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "program").chmod(0o755)
    git(inner, "config", "core.fsmonitor", f"{tmp_path}/program")
    (inner / "x.py").write_text("changed")
    (tmp_path / "ran").unlink(missing_ok=True)
    snapshot.provenance(checkout)
    assert not (tmp_path / "ran").exists()
    git(checkout, "diff", "HEAD")
    assert (tmp_path / "ran").exists(), "the attack must work without the guard"


def test_a_rebase_that_starts_the_command_does_not_change_which_checkout_is_meant(checkout, tmp_path, monkeypatch):
    """`git rebase -x` and hooks name their own work tree in GIT_DIR and GIT_INDEX_FILE."""
    for folder in (checkout, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        git(folder, "init")
    git(checkout, "add", "--all")
    expected = snapshot.files()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert snapshot.files() == expected != []
    assert snapshot._git_files(snapshot.ROOTS)[0], "git was asked"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a checkout away")
def test_a_checkout_of_another_user_has_its_commit_in_the_provenance(checkout):
    """A site's engineer installs one for all."""
    git(checkout, "init")
    git(checkout, "add", "--all")
    git(checkout, "commit", "-m", "all")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, -1)
    assert snapshot.provenance(checkout)["git_commit"]
    assert snapshot._git_files(snapshot.ROOTS)[0]


def test_where_git_does_not_answer_all_code_is_taken(checkout, monkeypatch):
    git(checkout, "init")
    monkeypatch.setenv("PATH", "/nowhere")
    assert snapshot.files() == ["jobs/c.py", "launch.py", "lumen_hpc/a.py", "lumen_hpc/b.yaml"]


def test_the_snapshot_of_this_checkout_holds_all_its_code():
    names = set(snapshot.files())
    tops = [snapshot.SOURCE / name for name in ("lumen_hpc", "jobs")]
    modules = {str(path.relative_to(snapshot.SOURCE)) for top in tops for path in top.rglob("*.py")}
    assert names >= modules
    assert names >= {"launch.py", "lumen_hpc/report/page.html", "lumen_hpc/report/page.css", "lumen_hpc/report/page.js"}
    assert {Path(name).suffix for name in names} <= snapshot.SUFFIXES


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    assemble.report(pretend.inputs(patients=6), Evaluate(bootstrap=20, permutations=20), 0, folder)
    return (folder / "index.html").read_text()


def test_the_pages_policy_allows_its_own_parts_alone(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    for tag, directive in (("script", "script-src"), ("style", "style-src-elem")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "http" not in policy and "connect-src" not in policy
    assert "script-src 'unsafe" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_the_page_of_a_restricted_run_has_no_images_unless_switched_on(tmp_path):
    from jobs import evaluate

    lines = []

    def report(given, settings, seed, folder):
        lines.append((settings.images, given.identity.shows_patients))
        (folder / "index.html").write_text("page")
        return [folder / "index.html"], []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lumen_hpc.report.assemble.report", report)
        patch.setattr(evaluate, "inputs", lambda task: pretend.inputs(patients=1))
        from lumen_hpc.cluster.stage import Shard, Step, Task

        for images in (None, True, False):
            for is_restricted in (True, False):
                run = restricted(tmp_path / f"{images}-{is_restricted}", restricted=is_restricted)
                run = replace(run, settings=replace(run.settings, evaluate=Evaluate(images=images)))
                (run.folder / "report").mkdir(parents=True)
                (run.folder / "evaluate").mkdir()
                list(evaluate.work(Task(run=run, step=Step(evaluate.STAGE)))(Shard(0, 1)))
                mode = stat.S_IMODE((run.folder / "report" / "index.html").stat().st_mode)
                assert mode == 0o600 if is_restricted else mode != 0o600
    assert lines == [(False, False), (True, False), (True, True), (True, False), (False, False), (False, False)]


def test_a_page_that_shows_patients_says_so():
    from lumen_hpc.report.identity import Identity

    assert any("credentialed" in line for line in Identity(data="mimic", shows_patients=True).banner)
    assert not any("credentialed" in line for line in Identity(data="mimic").banner)


@pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on the PATH")
def test_markup_that_reaches_the_page_neither_runs_nor_sends(tmp_path, page):
    playwright = pytest.importorskip("playwright.sync_api")
    attack = (
        "<script>document.title = 'attacked'</script><img src=x onerror=\"document.title = 'attacked'\">"
        '<img src="http://127.0.0.1:9/leak"><form action="http://127.0.0.1:9/"></form>'
    )
    attacked = page.replace("<main", f"{attack}<main", 1)
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", attacked)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for text, is_defended in ((attacked, True), (without, False)):
            (tmp_path / "index.html").write_text(text)
            opened, sent = browser.new_page(), []
            opened.on("requestfailed", lambda request, sent=sent: sent.append((request.url, request.failure)))
            with opened.expect_event("requestfailed", lambda request: "/leak" in request.url, timeout=60_000):
                opened.goto((tmp_path / "index.html").as_uri())
            if not is_defended:  # by the image that is not there, a moment later
                opened.wait_for_function("document.title === 'attacked'", timeout=60_000)
            assert ("attacked" not in opened.title()) == is_defended
            leaks = [failure for url, failure in sent if "/leak" in url]
            assert all("csp" in str(failure).lower() for failure in leaks) == is_defended
            assert opened.locator("#count").inner_text()  # the page's own script ran
        browser.close()
