"""Where a model's weights lie, by one rule for all stages."""

from __future__ import annotations

from pathlib import Path


def locate(name: str, cache: str | Path) -> Path:
    """A model's folder: the user's own where `name` is a folder or an absolute path, else `<cache>/<last part>`.

    `name` is a setting such as `train.base` or `rewrite.engine.model`: a path, or a hub name that stage=fetch has
    staged in the profile's cache. The folder need not exist.
    """
    given = Path(name).expanduser()
    if given.is_absolute() or given.is_dir():
        return given
    return Path(cache).expanduser() / name.rsplit("/", 1)[-1]


def locate_experts(folder: str, cache: str | Path) -> Path:
    """TorchXRayVision's weights: the folder of `experts.weights`, or `<cache>/torchxrayvision` where that is empty."""
    return Path(folder or Path(cache) / "torchxrayvision").expanduser()
