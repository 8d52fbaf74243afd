"""Nothing but the image tells: names, ids, dates, sizes and JPEG settings are unrelated to findings and the future."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.data import phantom
from lumen_hpc.data import phantom_states as ps

SETTINGS = Phantom(patients=900)


@pytest.fixture(scope="module")
def pairs():
    """(reference study, main study) of 900 patients."""
    return [phantom.patient(3, number, SETTINGS) for number in range(SETTINGS.patients)]


def names(study) -> list[float]:
    """Everything of a study that a cheat could read without opening its image, as numbers."""
    digits = [int(d, 16) for d in study.dicom_id.replace("-", "")]
    digits += [int(d) for d in f"{study.study_id}{study.subject_id}"]
    at = study.taken_at
    order = [study.study_id, study.subject_id, at.year, at.month, at.day, at.weekday(), at.hour, at.minute, at.second]
    return [*digits, *(d % 2 for d in digits), *order]


def targets(before, after) -> list[float]:
    """The findings of a study, their textures, and what becomes of them."""
    states = [before.states[finding] for finding in ps.FINDINGS]
    values = [float(state.present) for state in states] + [float(state.texture == "striped") for state in states]
    return values + [float(before.states[f].present != after.states[f].present) for f in ps.FINDINGS]


def strongest(x: np.ndarray, y: np.ndarray) -> float:
    """The greatest absolute correlation of any feature with any target."""
    x, y = ((v - v.mean(0)) / (v.std(0) + 1e-12) for v in (x, y))
    return float(np.abs(x.T @ y).max() / len(x))


@pytest.mark.parametrize("shown", ["its own", "the next"])
def test_no_name_id_or_date_is_related_to_a_finding_its_texture_or_its_future(pairs, shown):
    """A classifier on one of these features is at chance: no correlation beyond those of shuffled studies."""
    x = np.array([names(pair[shown == "the next"]) for pair in pairs], float)
    y = np.array([targets(*pair[:2]) for pair in pairs])
    rng = np.random.default_rng(0)
    by_chance = [strongest(x, y[rng.permutation(len(y))]) for _ in range(200)]
    assert strongest(x, y) <= np.quantile(by_chance, 0.99)
    leaky = np.column_stack([x, y[:, 0] + rng.normal(0, 2, len(y))])
    assert strongest(leaky, y) > max(by_chance), "the test itself must see a weak leak"


def test_every_file_has_the_same_size_and_jpeg_settings(tmp_path):
    folder = phantom.write(tmp_path, Phantom(patients=30, dicom_every=0), seed=3)
    seen = set()
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            tables = tuple(tuple(table) for table in image.quantization.values())
            seen.add((image.size, image.mode, tables, tuple(sorted(k for k in image.info if k != "icc_profile"))))
    assert len(seen) == 1
