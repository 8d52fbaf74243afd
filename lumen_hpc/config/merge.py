"""Values of several sources as one checked object: OmegaConf's struct mode, with the current names of settings."""

from __future__ import annotations

import pickle
import sys
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config.profile import Profile
from lumen_hpc.config.request import OPTIONS, SHORTHANDS
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import drop_emptied, keys, leaves, require_fits
from lumen_hpc.errors import UserError

OmegaConf.clear_resolver("oc.env")  # `${oc.env:LUMEN_API_KEY}` in a recipe would write the key into the run's files

RENAMED = {"experts.told": "experts.in_prompt", "experts.words": "experts.thresholds", "predict.compiled": ""}
"""Old name of a setting → its current one, or nothing where the setting was removed. For one version the old name is
accepted with a warning, so that a run which has it goes on."""


def merge(kind: type, sources: list[tuple[str, Any]]) -> Any:
    """An object of `kind` from (name, values) pairs, later ones over earlier; UserError names a wrong value's source.

    OmegaConf takes them all at once and copies nothing, since copies cost milliseconds; only the search for an error
    goes through them one by one.
    """
    named_values = [
        (name, _with_current_names(name, values) if kind is Settings else values) for name, values in sources if values
    ]
    for position, (_, later) in enumerate(named_values):
        named_values[:position] = [
            (name, drop_emptied(kind, values, later)) for name, values in named_values[:position]
        ]
    try:
        schema = pickle.loads(_pickled_schema(kind))
        return OmegaConf.to_object(OmegaConf.unsafe_merge(schema, *(values for _, values in named_values)))
    except (OmegaConfBaseException, TypeError, OverflowError) as error:
        for name, values in named_values:
            on_command_line = name == "command line"
            prefix = "profile." if on_command_line and kind is Profile else ""
            other_words = _other_words(values) if on_command_line and kind is Settings else ()
            require_fits(kind, values, name, prefix, other_words)
        hint = "; ${…} is another key of the same settings, and in capitals a variable of the shell"
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"{getattr(error, 'full_key', '')}: {first_line}{hint * ('nterpolation' in first_line)}"
        ) from None


@cache
def _pickled_schema(kind: type) -> bytes:
    """The schema of `kind`, into which sections go without a copy; to load it costs a thirtieth of to make it."""
    return pickle.dumps(OmegaConf.structured(kind, flags={"no_deepcopy_set_nodes": True}))


def _other_words(values: DictConfig) -> list[str]:
    """What a command line takes beside settings: options, and the profile's keys, by the kinds that `values` name."""
    key = next((key for key, _ in leaves(OmegaConf.to_container(values)) if key.startswith("resources.")), "")
    return [*OPTIONS, *SHORTHANDS, *(f"profile.{name}" for name in keys(Profile, key))]


def _with_current_names(source: str, values: DictConfig) -> DictConfig:
    """The same values under their current names, without removed settings; stderr names what changed."""
    renamed = {key: new for key, new in RENAMED.items() if OmegaConf.select(values, key) is not None}
    if not renamed:
        return values
    values = values.copy()
    for key, new in renamed.items():
        if new:
            OmegaConf.update(values, new, OmegaConf.select(values, key))
        note = f"called {new} now; the next version drops the old name" if new else "removed and has no effect"
        print(f"lumen: {source}: {key} is {note}", file=sys.stderr)
        section, _, name = key.rpartition(".")
        OmegaConf.select(values, section).pop(name)
    return values
