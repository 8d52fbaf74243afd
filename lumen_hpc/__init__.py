"""LUMEN on a cluster. From Python: `run = lumen_hpc.open_run("runs/demo")` gives a run's results as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lumen_hpc.analysis import open_run as open_run


def __getattr__(name: str) -> object:
    """Imports `open_run` when it is first asked for: a login node has no pandas."""
    if name == "open_run":
        try:
            from lumen_hpc.analysis import open_run
        except ModuleNotFoundError as missing:
            extra = "reading a run takes the extra `stages`: pip install '.[stages]' in a checkout"
            raise ModuleNotFoundError(f"{missing}; {extra}", name=missing.name) from missing
        return open_run
    raise AttributeError(f"module 'lumen_hpc' has no attribute '{name}'")
