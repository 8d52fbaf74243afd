"""The compiled counting: once for each version of its code, whatever copy of the code a run has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumen_hpc.metrics import compiled

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from lumen_hpc.metrics.compiled import counting
from lumen_hpc.metrics.lexical import lexical
lexical(["no edema"], ["no edema."])
print(counting().__file__, sum(counting().count_pairs.stats.cache_hits.values()))
"""


def test_a_second_copy_of_the_code_compiles_nothing(tmp_path: Path) -> None:
    hits = []
    for name in ("one", "two"):
        shutil.copytree(ROOT / "lumen_hpc", tmp_path / name / "lumen_hpc", ignore=shutil.ignore_patterns("__pycache__"))
        environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / name)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        file, count = done.stdout.split()
        assert Path(file).is_relative_to(tmp_path / ".cache" / "lumen_hpc" / "compiled")
        hits.append(int(count))
    assert hits == [0, 1]


def _full(**_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", ["no folder", "full", "anybody's", "another text"])
def test_without_a_cache_of_its_own_the_module_itself_counts(tmp_path: Path, monkeypatch, fault: str) -> None:
    monkeypatch.setattr(compiled, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "lumen_hpc.metrics.ngrams", None)  # put back afterwards
    used = Path(str(compiled.counting.__wrapped__().__file__))
    assert used.is_relative_to(tmp_path)
    if fault == "no folder":
        monkeypatch.setattr(compiled, "CACHE", used / "cache")
    elif fault == "full":
        monkeypatch.setattr(compiled, "tempfile", SimpleNamespace(TemporaryFile=_full))
    elif fault == "anybody's":
        used.parent.chmod(0o777)
    else:
        used.write_text("raise SystemExit")
    assert compiled.counting.__wrapped__().__file__ == str(ROOT / "lumen_hpc" / "metrics" / "ngrams.py")
