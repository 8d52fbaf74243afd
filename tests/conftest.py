"""No test here sees the user's own choice of a profile."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_profile_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUMEN_PROFILE", raising=False)
