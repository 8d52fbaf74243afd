"""YAML as settings are written in it: by libyaml where PyYAML was built with it, which is ten times faster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lumen_hpc.errors import UserError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$
    |[-+]?\.inf$|\.nan$""",
    re.VERBOSE | re.IGNORECASE,
)


class Loader(_BASE):
    """YAML 1.1 with 1e-5 as a number and dates as text; a key that comes twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name} comes twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if tag.rpartition(":")[2] not in ("float", "timestamp")]
    for first, kinds in _BASE.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse(text: str | bytes) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, Loader=Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's mapping; UserError of one line if it has none."""
    try:
        found = parse(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{where}: not readable as YAML: {error.problem}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no `key: value` lines, but a {type(found).__name__}")
    return found
