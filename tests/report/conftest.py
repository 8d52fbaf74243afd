"""A pretended run's report, written once for all tests of this folder."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report.assemble import report
from tests.report import pretend


@pytest.fixture(scope="session")
def inputs():
    return pretend.inputs(patients=40)


@pytest.fixture(scope="module")
def results(inputs):
    """Of the same run; tests of a file may share what they compute."""
    return pretend.results_of(inputs)


@pytest.fixture(scope="session")
def written(inputs, tmp_path_factory):
    """The folder of a finished report."""
    folder = tmp_path_factory.mktemp("report")
    report(inputs, Evaluate(bootstrap=100, permutations=2000, cases=120), 0, folder)
    return folder
