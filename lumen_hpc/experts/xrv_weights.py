"""TorchXRayVision's weights: fetched on the login node, verified on a compute node by their recorded hash.

The files are pickles and TorchScript, which can run code when loaded. One whose hash is published here must have it,
and any other the hash in `fetched.json` beside it, unless `experts.trust_unknown_weights=true`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lumen_hpc.torchvision_compat  # noqa: F401  (torchxrayvision imports torchvision)
from lumen_hpc.config.schema import Experts
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign, read_json, sha256, write_json

HASHES_FILE = "fetched.json"
EXTRA = ("age", "race", "view")
PUBLISHED = {
    f"{data}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt": digest
    for data, digest in (
        (
            "nih-pc-chex-mimic_ch-google-openi-kaggle",
            "56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899",
        ),
        ("chex", "1a914ae802170187a4852e594708206c12468eeeefd66aa4e8e26141649d61a4"),
        ("mimic_ch", "23b13a04459684ffa41247d068207a7657b4e1b4dec2b02431f5026bd75b1189"),
        ("pc", "a9148ef62ae4e7a31a9bed8cef22811f39681cd61e4390398936efc6280af521"),
    )
}
"""File → SHA-256 of the release's files, where others have published it: the release itself lists none."""


def url(name: str) -> str:
    """The address of an expert's weights; raises UserError for a name that TorchXRayVision does not know."""
    import torchxrayvision

    if name in EXTRA:
        return _extra_url(name)
    models = torchxrayvision.models.model_urls
    if name not in models:
        valid_names = ", ".join(sorted(key for key in models if "-" in key))
        raise UserError(
            f"experts: no TorchXRayVision weights are called '{name}'; they are {valid_names}, {', '.join(EXTRA)}"
        )
    return models[name]["weights_url"]


def weight_names(settings: Experts) -> list[str]:
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
    recorded_digest, published_digest = read_json(folder / HASHES_FILE, {}).get(file.name), PUBLISHED.get(file.name)
    if recorded_digest is None and published_digest is None and not trust:
        raise UserError(
            f"experts: {file} is a pickle (it can run code) and has no recorded hash; "
            "fetch it with stage=fetch, or set experts.trust_unknown_weights=true if you know its origin"
        )
    if recorded_digest is not None and recorded_digest != sha256(file):
        raise UserError(
            f"experts: {file} is not the file that was fetched: {HASHES_FILE} beside it records another hash"
        )
    if published_digest is not None and not trust and published_digest != sha256(file):
        raise UserError(
            f"experts: {file} is not the published file, whose SHA-256 is {published_digest}; remove it and fetch it "
            "again with stage=fetch, or set experts.trust_unknown_weights=true if you know its origin"
        )
    return file


def require_own(folder: Path) -> None:
    """Raises UserError for a folder that another user could have written: the hashes in it would be theirs as well."""
    for path in (folder, *folder.glob("*")):
        if reason := foreign(path.resolve()):
            raise UserError(
                f"experts.weights={folder}: {reason}, and pickles can run code; copy the folder, or set "
                "experts.trust_unknown_weights=true if you know its origin"
            )


def fetch(settings: Experts, folder: Path, report: Callable[[str], None]) -> list[str]:
    """Downloads the missing files and records hashes; returns a line for each file to be copied by hand."""
    import torchxrayvision

    folder.mkdir(parents=True, exist_ok=True)
    manual_copies, trust = [], settings.trust_unknown_weights
    for name in weight_names(settings):
        file = folder / url(name).rsplit("/", 1)[-1]
        hashes = read_json(folder / HASHES_FILE, {})
        if not file.is_file():
            report(f"experts: fetching {name}")
            try:
                torchxrayvision.utils.download(url(name), str(file))
            except Exception as error:  # the library passes on every kind of network error
                report(f"   not fetched: {type(error).__name__}")
                manual_copies.append(f"{url(name)} to {file}")
                continue
        elif file.name not in hashes and file.name not in PUBLISHED and not trust:
            report(f"experts: {file} was copied by hand; experts.trust_unknown_weights=true accepts it")
            continue
        if file.name not in hashes:
            digest = sha256(file)
            if digest != PUBLISHED.get(file.name, digest) and not trust:
                file.rename(file.with_name(f"{file.name}.unknown"))
                report(f"   {file.name} has another SHA-256 than the published file: it is now {file.name}.unknown")
                manual_copies.append(f"{url(name)} to {file}")
                continue
            write_json(folder / HASHES_FILE, {**hashes, file.name: digest})
    return manual_copies


def _extra_url(name: str) -> str:
    """The address in the installed package: it is in the model's constructor, not in a table."""
    import inspect
    import re

    import torchxrayvision.baseline_models as baseline

    model_class = {
        "age": baseline.riken.AgeModel,
        "race": baseline.emory_hiti.RaceModel,
        "view": baseline.xinario.ViewModel,
    }
    match = re.search(r"https://\S+\.pt", inspect.getsource(model_class[name].__init__))
    assert match, f"torchxrayvision no longer names the weights of {name} in its constructor"
    return match.group(0)
