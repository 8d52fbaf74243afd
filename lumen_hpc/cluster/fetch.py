"""`stage=fetch`: brings every weight that a run's settings name into the profile's cache, from a node with internet.

Not a job: compute nodes are offline. Downloads resume. A model comes in the revision that `weights.REVISIONS` pins,
any other in the newest; that and each file's hash are recorded in `<cache>/fetched.json`, and later fetches and every
load require them. Without internet it prints what to copy where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lumen_hpc.cluster.manifest import now
from lumen_hpc.config.schema import Settings
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_json, write_json
from lumen_hpc.language.export_text_llama import original
from lumen_hpc.weights import NOTE, REVISIONS, locate, locate_experts, note, verify

LICENCES = {
    "meta-llama/": "needs its licence accepted on the model's page, and HF_TOKEN set",
    "Efficient-Large-Model/": "weights are for non-commercial use; read the model's page",
}
ANSWER_TIMEOUT_S = 10
"""Until the hub has to answer; a network that drops what it forbids would never say no."""


@dataclass(frozen=True)
class RequiredModel:
    key: str
    """The setting that names it."""
    name: str
    """Its name on the hub, or TorchXRayVision's name of the weights."""
    folder: Path
    """Where it belongs."""

    @property
    def licence(self) -> str:
        return next((text for prefix, text in LICENCES.items() if self.name.startswith(prefix)), "")

    @property
    def there(self) -> bool:
        return (self.folder / "config.json").is_file()


def required_models(settings: Settings, cache: Path) -> Iterator[RequiredModel]:
    """The hub models that these settings name and that are not folders of the user's own."""
    candidates = [("train.base", settings.train.base if settings.train.base != "tiny" else "")]
    candidates += [(f"{key}.model", engine.model) for key, engine in settings.engines().items() if engine.in_task]
    for key, name in candidates:
        if name and not Path(name).expanduser().is_dir():
            yield RequiredModel(key, original(name), locate(original(name), cache))


def fetch(settings: Settings, cache: Path, console: Console, dry_run: bool = False) -> int:
    """Fetches what is missing; 0 if all is there afterwards, 1 if something has to be brought by hand.

    `dry_run` prints what would be fetched, and where to; nothing is written or asked of a server. Raises UserError for
    a cache that cannot be written.
    """
    models = list(required_models(settings, cache))
    if not models and settings.experts.model != "xrv":
        console.print("these settings name no weights (the demo trains its own); the paper's are recipe=lumen's")
        return 0
    if dry_run:
        return _show(settings, cache, console)
    _require_packages(settings)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"profile.cache={cache}: cannot be written: {error.strerror}; choose another with profile.cache=FOLDER"
        ) from None
    notes = read_json(cache / NOTE, {})
    failed_models = [need for need in models if not _fetch_model(need, notes, cache, console)]
    if settings.experts.model == "xrv":
        failed_experts = _fetch_experts(settings, cache, console)
    else:
        failed_experts = []
    for need in failed_models:
        console.print(f"copy by hand: {need.name} (every file of it) to {need.folder}", soft_wrap=True)
    for line in failed_experts:
        console.print(f"copy by hand: {line}", soft_wrap=True)
    if not failed_models and not failed_experts:
        console.print("every weight that these settings name is in place")
    return 1 if failed_models or failed_experts else 0


def _require_packages(settings: Settings) -> None:
    """Raises UserError in a login node's environment, before anything is said of a network."""
    try:
        import huggingface_hub  # noqa: F401

        if settings.experts.model == "xrv":
            from lumen_hpc.experts import xrv_weights  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"stage=fetch needs the packages of the stages here ({error}); pip install '.[gpu]' in the checkout, or "
            "dry_run=true lists what to copy where"
        ) from None


def _show(settings: Settings, cache: Path, console: Console) -> int:
    for need in required_models(settings, cache):
        state = "is in" if need.there else "would be fetched to"
        console.print(
            f"{need.key}: {need.name} {state} {need.folder}" + f" ({need.licence})" * bool(need.licence), soft_wrap=True
        )
    if settings.experts.model == "xrv":
        folder = locate_experts(settings.experts.weights, cache)
        names = ", ".join((*settings.experts.pathologies, *settings.experts.extra))
        console.print(f"experts: what of {names} is not in {folder} would be fetched to it", soft_wrap=True)
    return 0


def _fetch_model(need: RequiredModel, notes: dict[str, dict], cache: Path, console: Console) -> bool:
    record = notes.get(need.name)
    if need.there and record:
        verify(need.folder, cache)
        console.print(f"{need.key}: {need.name} is in {need.folder} (revision {record['revision'][:12]})")
        if record["revision"] != (current_pin := REVISIONS.get(need.name, record["revision"])):
            console.print(
                f"   this version of lumen_hpc pins revision {current_pin}; to fetch that one, remove the folder and "
                f"its entry in {cache / NOTE}"
            )
        return True
    console.print(f"{need.key}: fetching {need.name}" + (f" ({need.licence})" if need.licence else ""))
    try:
        from huggingface_hub import HfApi, snapshot_download

        pinned_revision = record["revision"] if record else REVISIONS.get(need.name)
        # Asked once: without a network, a download of a pinned revision would try again for half a minute.
        info = HfApi().model_info(need.name, revision=pinned_revision, timeout=ANSWER_TIMEOUT_S)
        revision = pinned_revision or info.sha
        snapshot_download(need.name, revision=revision, local_dir=need.folder)
    except Exception as error:  # no network, no licence, no space: each has its own class in each release
        console.print(f"   not fetched: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        if need.there:
            console.print(f"   {need.folder} was copied by hand: its revision is unknown, its files are recorded now")
            notes[need.name] = {"revision": "unknown", **note(need.folder), "fetched": now()}
            write_json(cache / NOTE, notes)
        return need.there
    new_record = note(need.folder)
    hashes = new_record["files"]
    if record and record["files"] != hashes:
        changed = sorted(name for name in hashes if record["files"].get(name) != hashes[name])
        raise UserError(
            f"{need.folder}: {', '.join(changed[:5])} differ from what {cache / NOTE} recorded at the first fetch"
        )
    notes[need.name] = {"revision": revision, **new_record, "fetched": now()}
    write_json(cache / NOTE, notes)
    return True


def _fetch_experts(settings: Settings, cache: Path, console: Console) -> list[str]:
    """TorchXRayVision's weights; what could not be fetched, a line each."""
    from lumen_hpc.experts import xrv_weights

    folder = locate_experts(settings.experts.weights, cache)
    return xrv_weights.fetch(settings.experts, folder, console.print)
