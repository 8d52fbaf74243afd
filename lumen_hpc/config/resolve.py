"""From a command line to a `Request`: settings and profile, merged, checked and with absolute paths.

`resolve(arguments)` merges dataclass defaults < recipe < profile's `defaults:` < command line, in OmegaConf's
struct mode, so that a typo fails with the valid keys that are like it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config import profile as profiles
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import RENAMED, Settings
from lumen_hpc.config.validate import check, read_yaml, require_fits, similar
from lumen_hpc.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
VERBS = ("check", "status", "cancel", "logs")
RESOURCE_KINDS = tuple(Profile().resources)
SHORTHANDS = {
    "data": "data.source",
    "profile": "profile.name",
    "model": "serve.model",
    "weights": "serve.weights",
    "page": "serve.page",
}


@dataclass(kw_only=True)
class Request:
    """What one command line asks for."""

    verb: str = "submit"
    """check, status, cancel, logs, or submit when no verb is given."""
    stage: str = ""
    """A stage's name, or `full`."""
    run: str = ""
    """Name of the run; its folder is `<runs>/<run>`."""
    runs: str = ""
    """Folder of runs; the profile's if empty."""
    recipe: str = ""
    """File in lumen_hpc/recipes (without .yaml) or a path; the profile's own if empty."""
    config: str = ""
    """A resolved config.yaml to repeat, instead of a recipe."""
    dry_run: bool = False
    """Print the plan and submit nothing."""
    watch: bool = False
    """status: print again every few seconds until the run ends."""
    json: bool = False
    """status, check: one JSON object on stdout, for scripts."""
    settings: Settings = field(default_factory=Settings)
    profile: Profile = field(default_factory=Profile)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs or self.profile.runs).expanduser().absolute() / self.run


OPTIONS = {i.name: i.type for i in dataclasses.fields(Request) if i.name not in ("settings", "profile", "verb")}


def resolve(arguments: list[str]) -> Request:
    """Reads a command line.

    Raises UserError for an unknown word, key or profile, or a value of the wrong type or outside its choices.
    """
    words = [argument for argument in arguments if "=" not in argument]
    if unknown := [word for word in words if word not in VERBS]:
        hint = similar(unknown[0], VERBS)
        raise UserError(f"'{unknown[0]}' is neither a verb ({', '.join(VERBS)}) nor KEY=VALUE{hint}")
    if len(words) > 1:
        raise UserError(f"'{' '.join(words)}': one verb at a time ({', '.join(VERBS)})")
    options, dotlist = _split([argument for argument in arguments if "=" in argument])
    request = Request(verb=words[0] if words else "submit", **options)

    saved = _saved(request)
    given = _given(dotlist, "profile.name")
    name = given or os.environ.get("LUMEN_PROFILE") or "local"
    if saved is not None and not given:
        name, profile_yaml = request.config, saved.profile
    else:
        profile_yaml = profiles.read(name, f"{'profile' if given else 'LUMEN_PROFILE'}={name}")
    request.recipe = request.recipe or str(profile_yaml.get("recipe", Profile().recipe))

    if saved is not None:
        sources = [(request.config, saved.settings)]
    else:
        sources = [
            (f"recipe {request.recipe}", _recipe(request.recipe)),
            (f"profile {name}, `defaults:`", profile_yaml.get("defaults")),
        ]
    request.settings = merged(Settings, [*sources, ("command line", _dots(dotlist, of_profile=False))])
    site = [(f"profile {name}", profile_yaml), ("command line", _dots(dotlist, of_profile=True))]
    request.profile = merged(Profile, site)
    for name in ("runs", "cache"):
        setattr(request.profile, name, os.path.expandvars(os.path.expanduser(getattr(request.profile, name))))
    _make_absolute(request.settings)
    check(request.settings)
    check(request.profile, "profile.")
    profiles.require_no_secret(request.profile)
    for kind in request.profile.resources:
        if kind not in RESOURCE_KINDS:
            raise UserError(f"profile.resources.{kind}: stages ask for {', '.join(RESOURCE_KINDS)} only")
    request.run = request.run or Path(request.recipe).stem
    if not re.fullmatch(r"\w[\w.-]*", request.run, re.ASCII):
        raise UserError(
            f"run={request.run}: a run's name is one folder's, of letters, digits, `.`, `_` and `-`; "
            "choose another root with runs=FOLDER"
        )
    return request


def _make_absolute(settings: Settings) -> None:
    """Jobs start in another folder than the command, so paths are resolved here."""
    for section, name in (
        ("data", "mimic_cxr"),
        ("data", "mimic_cxr_dicom"),
        ("data", "diff_vqa"),
        ("data", "mimic_iv"),
        ("experts", "weights"),
        ("serve", "weights"),
    ):
        given = getattr(getattr(settings, section), name)
        if given:
            setattr(getattr(settings, section), name, os.path.abspath(os.path.expanduser(given)))
    for holder, name in ((settings.train, "base"), *((engine, "model") for engine in settings.engines().values())):
        given = getattr(holder, name)  # a folder, or a hub name, which may look like a relative path
        if given.startswith((".", "~")) or os.path.isdir(given):
            setattr(holder, name, os.path.abspath(os.path.expanduser(given)))
    settings.serve.images = [os.path.abspath(os.path.expanduser(folder)) for folder in settings.serve.images]


def _split(pairs: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Options of the command itself, and settings as a dotlist."""
    options: dict[str, Any] = {}
    dotlist = []
    for pair in pairs:
        key, value = pair.split("=", 1)
        if not key.strip("."):
            raise UserError(f"'{pair}' is not KEY=VALUE")
        if key in OPTIONS:
            options[key] = _boolean(key, value) if OPTIONS[key] == "bool" else value
        else:
            dotlist.append(f"{SHORTHANDS.get(key, key)}={value}")
    return options, dotlist


def _boolean(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"{key}={value}: takes true or false")
    return value.lower() == "true"


def _given(dotlist: list[str], key: str) -> str:
    return next((pair.split("=", 1)[1] for pair in reversed(dotlist) if pair.startswith(key + "=")), "")


def _dots(dotlist: list[str], of_profile: bool) -> DictConfig:
    """The settings of the command line, or its profile keys without their prefix; KEY= is the empty text."""
    found = OmegaConf.create()
    for pair in dotlist:
        if pair.startswith("profile.") != of_profile or pair.startswith("profile.name="):
            continue
        try:
            found.merge_with_dotlist([pair.removeprefix("profile.") + ('""' if pair.endswith("=") else "")])
        except Exception as error:  # whatever YAML or OmegaConf make of it
            raise UserError(f"command line: {pair}: not readable: {str(error).splitlines()[0]}") from None
    return found


def _saved(request: Request) -> DictConfig | None:
    if not request.config:
        return None
    path = Path(request.config).expanduser()
    if not path.is_file():
        raise UserError(f"config={request.config}: there is no such file; runs keep theirs as runs/<run>/config.yaml")
    whole = read_yaml(path)
    if absent := [key for key in ("stage", "recipe", "profile", "settings") if key not in whole]:
        raise UserError(f"config={request.config}: not a config.yaml of a run (it lacks {', '.join(absent)})")
    if request.recipe:
        raise UserError(f"recipe={request.recipe}: config={request.config} holds every setting; give one of the two")
    request.stage = request.stage or str(whole.stage)
    request.recipe = request.recipe or str(whole.recipe)
    return whole


def _recipe(name: str) -> Any:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise UserError(f"recipe={name}: there is no {path}; the recipes here are {', '.join(known)}")
    return read_yaml(path)


def merged(kind: type, sources: list[tuple[str, Any]]) -> Any:
    """An object of `kind` from (name, values) pairs, later ones over earlier; UserError names a wrong value's source.

    OmegaConf takes them all at once and copies nothing, since copies cost milliseconds; only the search for an error
    goes through them one by one.
    """
    given = [
        (name, _with_new_names(name, values) if kind is Settings else values) for name, values in sources if values
    ]
    try:
        return OmegaConf.to_object(OmegaConf.unsafe_merge(OmegaConf.structured(kind), *(values for _, values in given)))
    except (OmegaConfBaseException, TypeError) as error:
        for name, values in given:
            here = name == "command line"
            prefix = "profile." if here and kind is Profile else ""
            require_fits(kind, values, name, prefix, (*OPTIONS, *SHORTHANDS) if here and not prefix else ())
        raise UserError(f"{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from None


def _with_new_names(source: str, values: DictConfig) -> DictConfig:
    """The same values under today's names, where a setting was renamed; a rename is reported on stderr."""
    old = {key: new for key, new in RENAMED.items() if OmegaConf.select(values, key) is not None}
    if not old:
        return values
    values = values.copy()
    for key, new in old.items():
        print(f"lumen: {source}: {key} is called {new} now; the old name goes with the next version", file=sys.stderr)
        OmegaConf.update(values, new, OmegaConf.select(values, key))
        section, _, name = key.rpartition(".")
        OmegaConf.select(values, section).pop(name)
    return values
