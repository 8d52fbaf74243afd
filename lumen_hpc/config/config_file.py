"""A run's `config.yaml`: written at submission, read on the node, and hashed by what determines results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lumen_hpc.config.merge import merge
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import Request
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import check, read_yaml
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, write_text

DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where PyYAML was built with it: ten times faster."""


def digest(settings: Settings, keys: tuple[str, ...]) -> str:
    """A short hash of the values under `keys` (dotted) that determine results; `runtime_only` fields are left out."""
    determining_values = {}
    for key in keys:
        value: Any = settings
        for part in key.split("."):
            value = None if value is None else getattr(value, part)
        determining_values[key] = _without_runtime_fields(value)
    return hashlib.sha256(json.dumps(determining_values, sort_keys=True).encode()).hexdigest()[:16]


def _without_runtime_fields(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value) if not item.metadata.get("runtime_only")]
        return {name: _without_runtime_fields(getattr(value, name)) for name in names}
    return value


def as_dict(settings: Settings) -> dict[str, Any]:
    """The settings as config.yaml holds them."""
    return dataclasses.asdict(settings)


def save(request: Request, path: Path, *, sync_name: bool = True) -> None:
    """Writes the resolved settings and profile so that `config=PATH` repeats them; `sync_name` as in `files.atomic`."""
    content = {
        "stage": request.stage,
        "recipe": request.recipe,
        "given": request.given,
        "profile": dataclasses.asdict(request.profile),
        "settings": as_dict(request.settings),
    }
    text = yaml.dump(content, Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    write_text(path, text, private=True, sync_name=sync_name)


def load(path: Path) -> tuple[Settings, Profile]:
    """Settings and profile of what `save` wrote, on the node."""
    loaded = load_request(path, path.parent)
    return loaded.settings, loaded.profile


def require_complete(origin: str, values: DictConfig) -> None:
    """Raises UserError, beginning with `origin`, for YAML that is not a whole config.yaml of a run."""
    if missing_keys := [key for key in ("stage", "recipe", "profile", "settings") if key not in values]:
        raise UserError(f"{origin}: not a config.yaml of a run (it lacks {', '.join(missing_keys)})")


def load_request(path: Path, folder: Path) -> Request:
    """The request that `save` wrote to `path`, as a job of run `folder` repeats it."""
    values = read_yaml(path, resolved=True)
    require_complete(str(path), values)
    settings = merge(Settings, [(str(path), values.settings)])
    if foreign(path):  # a billion shards or trainings would be counted; a run of one's own was checked at submission
        check(settings)
    return Request(
        stage=str(values.stage),
        run=folder.name,
        runs=str(folder.parent),
        recipe=str(values.recipe),
        given=dict(OmegaConf.to_container(values.get("given") or OmegaConf.create())),
        settings=settings,
        profile=merge(Profile, [(str(path), values.profile)]),
    )
