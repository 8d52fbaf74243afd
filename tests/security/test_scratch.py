"""Attacks of another user of the node through temporary folders: guessed names, planted folders, symbolic links."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lumen_hpc.cluster import worker
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign
from lumen_hpc.language.vllm_engine import prepare_process
from lumen_hpc.scratch import private_scratch

ROOT = Path(__file__).parents[2]
PREPARE = """
import os
from lumen_hpc.language.vllm_engine import prepare_process
prepare_process()
print(os.environ["VLLM_CACHE_ROOT"], os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LUMEN_SCRATCH", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_is_private_and_its_name_cannot_be_guessed(scratch):
    first, second = private_scratch("vllm"), private_scratch("vllm")
    assert first != second and first.parent == second.parent == scratch
    assert stat.S_IMODE(first.stat().st_mode) == 0o700 and first.stat().st_uid == os.getuid()


def test_vllms_caches_lie_in_a_private_folder_of_the_profiles_scratch_and_are_removed(scratch):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TORCHINDUCTOR"))}
    process = subprocess.run([sys.executable, "-c", PREPARE], cwd=ROOT, env=inherited, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    cache, inductor = map(Path, process.stdout.split()[-2:])
    assert cache.parent == scratch and inductor.parent == cache
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["world-writable", "link", "stranger"])
def test_a_cache_folder_that_another_user_could_fill_is_refused(tmp_path, monkeypatch, kind):
    cache = tmp_path / "cache"
    cache.mkdir()
    if kind == "world-writable":
        cache.chmod(0o777)
    elif kind == "link":
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    elif os.getuid() == 0:
        os.chown(cache, 12345, -1)
    else:
        pytest.skip("only root can give a folder away")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    with pytest.raises(UserError, match="give a folder of your own"):
        prepare_process()


def test_a_scratch_folder_without_its_sticky_bit_is_refused(scratch):
    scratch.chmod(0o777)
    with pytest.raises(UserError, match="sticky bit"):
        private_scratch("vllm")
    scratch.chmod(0o1777)
    assert private_scratch("vllm").is_dir()


CACHES = ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.parametrize("whose", ["mine", "everybody's"])
def test_compiled_code_never_lies_where_a_neighbour_could_have_put_it(scratch, monkeypatch, whose):
    """profile.scratch=/scratch, and a neighbour has put code into /scratch/torchinductor_cache_dir."""
    for name in (*CACHES, "TMPDIR"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", None)
    scratch.chmod(0o700 if whose == "mine" else 0o1777)
    worker._use_scratch("/scratch")
    (parent,) = {Path(os.environ[name]).parent for name in CACHES}
    assert (parent == scratch) == (whose == "mine")
    assert parent.is_relative_to(scratch) and stat.S_IMODE(parent.stat().st_mode) == 0o700


def test_an_attention_kernel_that_is_compiled_alone_lies_there_too(scratch, monkeypatch):
    """`train.attention=flex` without compiled layers, and `nvila.load(attention="flex")`."""
    from lumen_hpc.nvila.block_mask import block_mask_plan
    from lumen_hpc.nvila.spans import Span

    for name in CACHES:
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    block_mask_plan([Span(0, 0, 4)], 1, 4, torch.device("meta"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        folder = Path(os.environ[name]).parent
        assert folder.is_relative_to(scratch) and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_scratch_folder_that_a_stranger_created_first_is_refused(scratch, monkeypatch):
    """Numbers of jobs can be guessed, and so can /local/$SLURM_JOB_ID."""
    scratch.chmod(0o1777)
    (scratch / "4711").mkdir()
    os.chown(scratch / "4711", 12345, -1)
    monkeypatch.setenv("LUMEN_SCRATCH", str(scratch / "4711"))
    with pytest.raises(UserError, match=r"4711 is user 12345's, created where any user may"):
        private_scratch("vllm")
    scratch.chmod(0o755)  # a project's folder, which the site's administrators created
    assert private_scratch("vllm").is_dir()


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_is_not(scratch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    dead, live = (scratch / f"lumen-vllm-{host}-{process}-x" for process in (ended.pid, os.getpid()))
    other_node = scratch / f"lumen-vllm-{host}x-{ended.pid}-x"
    for folder in (dead, live, other_node):
        folder.mkdir()
    private_scratch("vllm")
    assert not dead.exists() and live.exists() and other_node.exists()


def test_foreign_names_what_another_user_could_have_written(tmp_path):
    own = tmp_path / "own"
    own.write_text("")
    assert foreign(own) == ""
    own.chmod(0o666)
    assert "mode 0666" in foreign(own)
