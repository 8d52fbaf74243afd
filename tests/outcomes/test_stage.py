"""Stage outcomes as its user sees it: in the chain where there is MIMIC-IV, and restricted as all else."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import PIPELINE
from lumen_hpc.cluster import graph, preflight, ready
from lumen_hpc.config import resolve
from lumen_hpc.errors import UserError
from lumen_hpc.outcomes import mimic_iv
from lumen_hpc.outcomes.write import write
from tests.outcomes import small_mimic_iv as small
from tests.rights import without_roots_rights


def names(*words: str) -> list[str]:
    return [step.name for step in graph.steps(PIPELINE.stages, resolve.resolve(["stage=full", *words]).settings)]


def test_the_stage_is_part_of_a_run_that_has_mimic_iv(tmp_path: Path) -> None:
    assert "outcomes" not in names() and "outcomes" not in names("data=mimic")
    assert "outcomes" in names("data.phantom.mimic_iv=true")
    assert "outcomes" in names("data=mimic", f"data.mimic_iv={tmp_path}")


def test_a_changed_table_makes_the_stage_stale(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables())
    settings = resolve.resolve(["stage=full", "data=mimic", f"data.mimic_iv={folder}"]).settings
    (stage,) = [stage for stage in PIPELINE.stages if stage.name == "outcomes"]
    assert sorted(stage.external(settings)) == sorted(str(path) for path in folder.rglob("*.csv.gz"))


@pytest.mark.parametrize(("place", "allowed"), [("inside/iv", True), ("elsewhere", False)])
def test_mimic_iv_is_read_only_from_folders_for_restricted_data(tmp_path: Path, place: str, allowed: bool) -> None:
    words = [f"data.mimic_iv={tmp_path / place}", f"profile.data_use.folders=[{tmp_path / 'inside'}]"]
    request = resolve.resolve(["stage=full", "data=mimic", f"runs={tmp_path / 'inside'}", *words])
    bad = list(preflight.data_use(request.settings, request.profile, request.folder))
    assert (bad == []) == allowed


def test_check_names_the_table_that_is_not_there(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), without="icu/icustays")
    request = resolve.resolve(["stage=full", "data=mimic", f"data.mimic_iv={folder}"])
    found = [result.message for result in ready.data(request.settings, request.profile)]
    (message,) = [text for text in found if text.startswith("data.mimic_iv")]
    assert message.endswith("lacks icu/icustays.csv*")


def test_an_optional_table_that_this_user_may_not_read_is_not_taken_for_none(tmp_path: Path) -> None:
    """MIMIC-IV-ED is a release of its own, whose folder a site may open to fewer people."""
    folder = small.write(tmp_path / "iv", small.tables())
    request = resolve.resolve(["stage=full", "data=mimic", f"data.mimic_iv={folder}"])
    (folder / "ed").chmod(0)
    try:
        with without_roots_rights():
            found = [result.message for result in ready.data(request.settings, request.profile)]
            with pytest.raises(UserError, match="ed: Permission denied; get access to it"):
                mimic_iv.files(folder)
    finally:
        (folder / "ed").chmod(0o755)
    assert f"data.mimic_iv: {folder}/ed: Permission denied" in found


def test_tables_of_other_patients_are_refused(tmp_path: Path) -> None:
    """Else every outcome would be unknown, and models would be trained and asked for nothing."""
    made = small.tables()
    made.rows["hosp/patients"] = [row for row in made.rows["hosp/patients"] if row["subject_id"] >= 19_000_000]
    folder = small.write(tmp_path / "iv", made)
    with pytest.raises(UserError, match=f"none of the run's {len(small.SUBJECTS)} patients"):
        write(tmp_path / "out", small.studies(tmp_path / "studies.jsonl"), folder)
