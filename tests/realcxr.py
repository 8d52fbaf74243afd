"""Real, published radiographs that lie beside a checkout: they may be used in tests, and never shipped in one."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "realcxr"
TABLE = ROOT / "medical-diff-vqa" / "mimic_pair_questions.csv"
needed = pytest.mark.skipif(
    not ROOT.exists(),
    reason="the real radiographs (../shared/realcxr) are not beside this checkout",
)
