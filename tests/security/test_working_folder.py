"""Attacks through the folder that a command is started in, where another user has put files of well-known names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumen_hpc.cluster import sbatch
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.errors import UserError
from lumen_hpc.weights import locate

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")


@pytest.mark.parametrize("line", ["$PYTHONPATH:/sw/x", "/sw/x:$PYTHONPATH", "/sw/x::/sw/y", ":::/sw/x:::"])
def test_a_job_imports_nothing_from_where_it_was_submitted(tmp_path, line):
    """A module that appends to an empty PYTHONPATH leaves an empty entry: the working directory, before `json`."""
    (tmp_path / "json.py").write_text("raise SystemExit('a neighbour's json')\n")
    profile = Profile(setup=[f"export PYTHONPATH={line}"])
    folders = sbatch.JobFolders(tmp_path / "run", tmp_path / "code", "0001")
    preamble = sbatch._preamble(profile, profile.resources["cpu"], folders)
    program = f"{sys.executable} -c 'import json, sys; print(sys.path)'"

    def job(lines: list[str]) -> subprocess.CompletedProcess[str]:
        script = "\n".join([*lines, program])
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)

    process = job(preamble)
    assert process.returncode == 0, process.stderr
    assert (
        f"'{tmp_path}/code'" in process.stdout and "'/sw/x'" in process.stdout and f"'{tmp_path}'" not in process.stdout
    )
    unguarded = job([part for part in preamble if part != sbatch.EMPTY_ENTRY_REMOVAL])
    assert "a neighbour's json" in unguarded.stderr, "the attack must work without the guard"


NAME = "Efficient-Large-Model/NVILA-8B"


@only_root
def test_a_strangers_folder_of_a_hub_models_name_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = ["stage=full", "recipe=lumen", f"runs={tmp_path}/runs"]
    assert resolve(words).settings.train.base == str(tmp_path / NAME), "a folder of one's own is meant"
    os.chown(tmp_path / NAME, 12345, -1)
    with pytest.raises(UserError, match=rf"{NAME} names a folder of user 12345 in the working directory"):
        resolve(words)
    assert resolve([*words, f"train.base=./{NAME}"]).settings.train.base == str(tmp_path / NAME)


def test_a_folder_that_appears_where_a_job_starts_is_not_taken_for_the_hubs_model(tmp_path, monkeypatch):
    """The command line has made every folder absolute that was there; a later one is nobody's choice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert locate(NAME, tmp_path / "cache") == tmp_path / "cache" / "NVILA-8B"
    assert locate(str(tmp_path / NAME), tmp_path / "cache") == tmp_path / NAME
    assert locate("~/models/x", tmp_path / "cache") == Path("~/models/x").expanduser()
