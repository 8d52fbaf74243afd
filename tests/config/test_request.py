"""The words of a command line."""

from __future__ import annotations

import re

import pytest

from lumen_hpc.config.request import read_words
from lumen_hpc.errors import UserError


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        (["status", "dry_run=true"], "dry_run=true: status has no use for it; it takes run, runs, stage, watch, json"),
        (["logs", "json=true"], "json=true: logs has no use for it"),
        (["check", "watch=true"], "watch=true: check"),
        (["stage=full", "watch=true"], "watch=true: a submission"),
        (["cancel", "confirm=true"], "confirm=true: cancel"),
    ],
)
def test_an_option_that_a_verb_does_not_honour_is_refused(words: list[str], takes: str):
    with pytest.raises(UserError, match=re.escape(takes)):
        read_words(words)
