"""Makes the import of transformers cheaper; import this module before it. With transformers imported, it does nothing.

transformers reads the 1,600 files of its models twice at import, for the package and for `transformers.models`, and
executes its own package a second time, for its processors. Here the second read returns the first one's result, and the
processors get the imported package. Its generation and detection code imports scikit-learn and SciPy, and with them
pandas, for functions that nothing here uses: both appear as not installed.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from lumen_hpc.errors import UserError

NAME = "transformers.utils.import_utils"
"""The module of transformers that reads its files and detects other packages."""


def _adapt(module: ModuleType) -> None:
    """Patches the expected functions of the module; another release of transformers without them stays unchanged."""
    read = getattr(module, "create_import_structure_from_path", None)
    if read is not None:
        structures: dict[str, Any] = {}

        def read_once(path: Any) -> Any:
            folder = os.path.dirname(path) if os.path.isfile(path) else os.fspath(path)
            if folder not in structures:
                structures[folder] = read(folder)
            return structures[folder]

        module.create_import_structure_from_path = read_once  # type: ignore[attr-defined]
    direct_import = getattr(module, "direct_transformers_import", None)
    if direct_import is not None:

        def package(path: Any, file: str = "__init__.py") -> ModuleType:
            loaded = sys.modules.get("transformers")
            is_same = loaded is not None and os.path.dirname(loaded.__file__ or "") == os.fspath(path).rstrip(os.sep)
            return loaded if loaded is not None and is_same else direct_import(path, file)

        module.direct_transformers_import = package  # type: ignore[attr-defined]
    for name in ("is_sklearn_available", "is_scipy_available"):
        if hasattr(module, name):
            setattr(module, name, lambda: False)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != NAME:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Adapting(spec.loader)
        return spec


class _Adapting(Loader):
    """Loads a module as its own loader does, then adapts it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _adapt(module)


if sys.flags.optimize > 1:
    raise UserError("PYTHONOPTIMIZE=2 and -OO take docstrings away, which transformers reads: start Python without")
if NAME not in sys.modules:
    sys.meta_path.insert(0, _Finder())
