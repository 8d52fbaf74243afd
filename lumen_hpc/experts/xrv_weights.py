"""TorchXRayVision's weights: fetched on the login node, verified on a compute node by their recorded hash.

The files are pickles and TorchScript, which can run code when loaded, so a file is loaded only if its hash is the one
in `fetched.json` beside it, or with `experts.trust_unknown_weights=true`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lumen_hpc.torchvision_compat  # noqa: F401  (torchxrayvision imports torchvision)
from lumen_hpc.config.schema import Experts
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, read_json, sha256, write_json

NOTE = "fetched.json"
EXTRA = ("age", "race", "view")


def url(name: str) -> str:
    """The address of an expert's weights; raises UserError for a name that TorchXRayVision does not know."""
    import torchxrayvision

    if name in EXTRA:
        return _extra_url(name)
    known = torchxrayvision.models.model_urls
    if name not in known:
        valid = ", ".join(sorted(key for key in known if "-" in key))
        raise UserError(
            f"experts: no TorchXRayVision weights are called '{name}'; they are {valid}, {', '.join(EXTRA)}"
        )
    return known[name]["weights_url"]


def named(settings: Experts) -> list[str]:
    """The weights that these settings load."""
    return [*settings.pathologies, *settings.extra]


def path(name: str, folder: Path, trust: bool) -> Path:
    """The file of an expert's weights, verified; raises UserError, with a fix, where it is missing or unknown."""
    file = folder / url(name).rsplit("/", 1)[-1]
    if not file.is_file():
        raise UserError(
            f"experts: the weights of '{name}' are not at {file}; run `python launch.py stage=fetch` where there is "
            f"internet, or copy {url(name)} there"
        )
    recorded = read_json(folder / NOTE, {}).get(file.name)
    if recorded is None and not trust:
        raise UserError(
            f"experts: {file} is a pickle (it can run code) and has no recorded hash; "
            "fetch it with stage=fetch, or set experts.trust_unknown_weights=true if you know its origin"
        )
    if recorded is not None and recorded != sha256(file):
        raise UserError(f"experts: {file} is not the file that was fetched: {NOTE} beside it records another hash")
    return file


def require_own(folder: Path) -> None:
    """Raises UserError for a folder that another user could have written: the hashes in it would be as much theirs."""
    for path in (folder, *folder.glob("*")):
        if reason := foreign(path.resolve()):
            raise UserError(
                f"experts.weights={folder}: {reason}, and pickles can run code; copy the folder, or set "
                "experts.trust_unknown_weights=true if you know its origin"
            )


def fetch(settings: Experts, folder: Path, say: Callable[[str], None]) -> list[str]:
    """Downloads the missing files and records hashes; returns a line for each file to be copied by hand."""
    import torchxrayvision

    folder.mkdir(parents=True, exist_ok=True)
    by_hand = []
    for name in named(settings):
        file = folder / url(name).rsplit("/", 1)[-1]
        notes = read_json(folder / NOTE, {})
        if not file.is_file():
            say(f"experts: fetching {name}")
            try:
                torchxrayvision.utils.download(url(name), str(file))
            except Exception as error:  # the library passes on every kind of network error
                say(f"   not fetched: {type(error).__name__}")
                by_hand.append(f"{url(name)} to {file}")
                continue
        elif file.name not in notes and not settings.trust_unknown_weights:
            say(f"experts: {file} was copied by hand; experts.trust_unknown_weights=true accepts it")
            continue
        if file.name not in notes:
            write_json(folder / NOTE, {**notes, file.name: sha256(file)})
    return by_hand


def _extra_url(name: str) -> str:
    """The address in the installed package: it is in the model's constructor, not in a table."""
    import inspect
    import re

    import torchxrayvision.baseline_models as baseline

    kind = {"age": baseline.riken.AgeModel, "race": baseline.emory_hiti.RaceModel, "view": baseline.xinario.ViewModel}
    found = re.search(r"https://\S+\.pt", inspect.getsource(kind[name].__init__))
    assert found, f"torchxrayvision no longer names the weights of {name} in its constructor"
    return found.group(0)
