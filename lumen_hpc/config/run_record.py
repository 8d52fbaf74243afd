"""What a run's folder records of the command lines that made it: recipe, profile, and every setting that they gave.

`profile.` keys are not among them: they say how one submission runs, not what the run is.
A run goes on with its own settings. They are merged again from its recipe, its profile's `defaults:` and those values,
so that an edited recipe or profile shows as a difference from the settings that `config.yaml` records.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import REFERENCE, escape_shell_variables, require_shallow
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_bytes, user_name

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: ten times faster than OmegaConf's."""


@dataclass(frozen=True)
class RunRecord:
    file: Path
    """The run's config.yaml, or that of its last submission."""
    stage: str
    recipe: str
    profile: str
    """Its name, or its path."""
    settings: dict[str, Any]
    """Every setting, resolved."""
    given: dict[str, Any] | None
    """What command lines gave, by dotted key; None where an older version wrote the file."""


def settings_file(folder: Path) -> Path | None:
    """The file with the settings of the run in `folder`; None where there is no run.

    That is its config.yaml, or where this is missing, as after a first submission that was killed, the last
    submission's: its jobs are in the queue, and its finished work is there, all the same.
    """
    candidates = [*sorted(folder.glob("submissions/*/config.yaml")), folder / "config.yaml"]
    return next((path for path in reversed(candidates) if path.is_file()), None)


def read(folder: Path) -> RunRecord | None:
    """What the run in `folder` records; None where there is no run, UserError for a file that is none of a run's."""
    require_open(folder)
    path = settings_file(folder)
    if path is None:
        return None
    try:
        config = yaml.load(_without_references(read_bytes(path)), Loader=LOADER)
        return RunRecord(
            path,
            str(config["stage"]),
            str(config["recipe"]),
            str(config["profile"]["name"]),
            config["settings"],
            config.get("given"),
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, ValueError):
        raise UserError(f"{path}: not a config.yaml of a run; restore it, or choose another run=NAME") from None


def _without_references(text: bytes) -> bytes:
    """The text of a config.yaml, if it is of the kind that this package writes; ValueError for any other.

    It has no references, which a message would unfold without end.
    """
    if b"*" in require_shallow(text) and any(
        isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=LOADER)
    ):
        raise ValueError("a reference")
    return text


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder, in alphabetical order."""
    return sorted(path.parent.name for path in folder.glob("*/config.yaml"))


def runs_hint(folder: Path) -> str:
    """A hint: the runs beside a missing one, or how to make a first one or look elsewhere."""
    if names := runs_in(folder.parent):
        return f"the runs here are {', '.join(names)}; stage=full makes a new one"
    return "runs=FOLDER looks elsewhere; make demo, or stage=full run=NAME, makes a first one"


def require_open(folder: Path) -> None:
    """Raises UserError where this user may not read the run, with the owner's name, or nobody can."""
    for path in (folder, folder / "config.yaml", folder / "submissions"):
        try:
            status = path.stat()
            closed = not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
        except FileNotFoundError:
            continue
        except PermissionError:  # some folder above the run
            path = next(parent for parent in path.parents if os.access(parent.parent, os.X_OK))
            status, closed = path.stat(), True
        except OSError as error:  # a file among its parents, a name too long, links in a circle
            raise UserError(f"{path}: {error.strerror}; choose another run=NAME or runs=FOLDER") from None
        if closed:
            raise UserError(
                f"{path}: belongs to {user_name(status.st_uid)}, and you may not read it: only its owner can see, "
                "continue or cancel the run; choose another run=NAME or runs=FOLDER"
            )


def nest(given: dict[str, Any]) -> DictConfig:
    """The given settings as a configuration to merge: they hold no references, whatever dollar they have."""
    values = OmegaConf.create()
    for key, value in given.items():
        OmegaConf.update(values, key, value, force_add=True)
    return escape_shell_variables(values, REFERENCE)


def value_at(settings: Settings | dict[str, Any], key: str, default: Any) -> Any:
    """The value of a dotted key; `default` where the settings have none there."""
    value: Any = settings
    for part in key.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif dataclasses.is_dataclass(value) and hasattr(value, part):
            value = getattr(value, part)
        else:
            return default
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def differences(
    before: dict[str, Any], after: dict[str, Any], kind: type = Settings, prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of settings that differ.

    A server's settings belong to no run; a key that only one version of this package knows makes no difference.
    """
    if before == after:
        return []
    rows: list[tuple[str, Any, Any]] = []
    for name, kind_of_field in typing.get_type_hints(kind).items():
        if name not in before or name not in after or prefix + name == "serve":
            continue
        old, new = before[name], after[name]
        section = typing.get_args(kind_of_field)[0] if isinstance(kind_of_field, types.UnionType) else kind_of_field
        if dataclasses.is_dataclass(section) and old is not None and new is not None:
            rows += differences(old, new, section, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif old != new:
            rows.append((prefix + name, old, new))
    return rows
