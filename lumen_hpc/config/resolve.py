"""From a command line to a whole `Request`: settings and profile, merged, checked and with absolute paths.

`resolve(arguments)` merges dataclass defaults < recipe < profile's `defaults:` < what earlier command lines gave the
same run < command line, in OmegaConf's struct mode, so that a typo fails with the valid keys that are like it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumen_hpc.config import profile as profiles
from lumen_hpc.config import run_record
from lumen_hpc.config.config_file import require_complete
from lumen_hpc.config.merge import RENAMED, merged
from lumen_hpc.config.profile import Profile, Resources
from lumen_hpc.config.profile_checks import require_no_secret, require_usable
from lumen_hpc.config.request import READS, Request, read_words, value_of
from lumen_hpc.config.run_record import RunRecord
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import (
    OTHER_BASE,
    SHELL_VARIABLE,
    TEXTS,
    as_written,
    check,
    leaves,
    of_shell,
    read_yaml,
    require_fits,
    similar,
    type_at,
)
from lumen_hpc.errors import UserError
from lumen_hpc.files import user_name

RECIPES = Path(__file__).parents[1] / "recipes"
RESOURCE_KINDS = tuple(Profile().resources)
DEFAULT_RECIPE, DEFAULT_RUNS = Profile().recipe, Profile().runs


def resolve(arguments: list[str]) -> Request:
    """Reads a command line.

    A run that exists goes on with its own recipe, profile and settings; what is given anew comes on top.
    Raises UserError for an unknown word, key or profile, or a value of the wrong type or outside its choices.
    """
    request, words = read_words(arguments)
    own, of_site = _dots(words, of_profile=False), _dots(words, of_profile=True)
    whole = _config(request)
    name, profile_yaml, chosen = _profile(request, words, whole)
    known = _known(request, of_site, profile_yaml)
    goes_on = known if whole is None else None
    if goes_on and not chosen and goes_on.profile != name:
        name, profile_yaml = goes_on.profile, profiles.read(goes_on.profile, f"{goes_on.file}: its profile")
    request.profile_named = chosen or goes_on is not None
    named_recipe = request.recipe
    request.recipe = request.recipe or (goes_on.recipe if goes_on else _text(profile_yaml, "recipe") or DEFAULT_RECIPE)
    given = _given_before(goes_on) if goes_on else {}

    limits: list[tuple[str, Any]] = []
    if whole is not None:
        sources = [(request.config, whole.settings)]
    elif goes_on and not named_recipe and not _recipe_file(goes_on.recipe).is_file():
        sources = [(str(goes_on.file), OmegaConf.create(goes_on.settings))]
    else:
        sources, limits = _base(request.recipe, name, profile_yaml)
    earlier = str(known.file) if known else ""
    emptied = {key for key, _, value in (word.partition("=") for word in words) if value == "{}"}
    kept_whole = {key for key, value in given.items() if isinstance(value, dict)}  # emptied by an earlier command
    sources += _over_emptied(earlier, kept_whole, run_record.nested(given))
    sources += _over_emptied("command line", [key for key in emptied if not key.startswith("profile.")], own)
    request.settings = merged(Settings, sources)
    of_words = _over_emptied("command line", [key[8:] for key in emptied if key.startswith("profile.")], of_site)
    request.profile = merged(Profile, [(f"profile {name}", profile_yaml), *limits, *of_words])
    _expand(request.profile)
    _make_absolute(request.settings)
    check(request.settings)
    check(request.profile, "profile.")
    require_no_secret(request.profile)
    _require_of_command(of_site)  # which repeats its value
    require_usable(request.profile, profile_yaml, of_site)
    for kind in request.profile.resources:
        if kind not in RESOURCE_KINDS:
            raise UserError(f"profile.resources.{kind}: stages ask for {', '.join(RESOURCE_KINDS)} only")
    if whole is not None:
        given = _beyond_base(request.recipe, request.profile.name, whole.settings)
    request.given = given | _values(request.settings, own, kept_whole | emptied)
    request.anew = tuple(key for key, _ in _leaves(own))
    request.of_site = (*profiles.slurm_keys(profile_yaml), *(key for key, _ in _leaves(of_site)))
    request.recorded = known.settings if known else None
    return request


def _over_emptied(source: str, keys: Iterable[str], values: DictConfig) -> list[tuple[str, Any]]:
    """Sources that first empty the mappings of these keys and then have `values`, which may be parts of them."""
    return [(source, run_record.nested({key: {} for key in keys})), (source, values)]


def _require_of_command(of_site: DictConfig) -> None:
    """Raises UserError for what a command line says of a profile's file, where it has words of its own."""
    for key, value in _leaves(of_site):
        first, _, rest = key.partition(".")
        if first in ("recipe", "defaults"):
            own = f"{rest or 'KEY'}={value if rest else 'VALUE'}" if first == "defaults" else f"recipe={value}"
            raise UserError(f"profile.{key}={value}: that is for a profile's file; on a command line write {own}")


def _profile(request: Request, words: list[str], whole: DictConfig | None) -> tuple[str, DictConfig, bool]:
    """The profile's name and YAML, and whether the command or the environment chose it.

    A verb that goes by a run's own settings needs none to find a run whose whole place is given.
    """
    by_run = request.verb in READS and request.verb != "ask"  # which reads the cache of weights
    if by_run and request.run and request.runs:
        return "local", OmegaConf.create(), False
    named, environment = value_of(words, "profile.name"), os.environ.get("LUMEN_PROFILE", "")
    if whole is not None and not named:
        return request.config, whole.profile, True
    name = named or environment or "local"
    origin = f"{'profile' if named else 'LUMEN_PROFILE'}={name}"
    if name.endswith((".yaml", ".yml")):
        name = os.path.abspath(os.path.expanduser(name))
    try:
        return name, profiles.read(name, origin), bool(named or environment)
    except UserError as error:
        more = f"; {request.verb} does without a profile where run=NAME and runs=FOLDER are given" * by_run
        raise UserError(f"{error}{more}") from None


def _known(request: Request, of_site: DictConfig, profile_yaml: DictConfig) -> RunRecord | None:
    """What the run's folder remembers, for a command that goes on with it; settles the run's name and folder."""
    request.run = request.run or Path(request.recipe or _text(profile_yaml, "recipe") or DEFAULT_RECIPE).stem
    if not re.fullmatch(r"\w[\w.-]*", request.run, re.ASCII):
        path = Path(request.run)
        place = f", as in run={path.name} runs={path.parent}" if "/" in request.run and path.name else ""
        raise UserError(
            f"run={request.run}: a run's name is one folder's, of letters, digits, `.`, `_` and `-`; "
            f"choose another root with runs=FOLDER{place}"
        )
    runs = request.runs or _text(of_site, "runs") or _text(profile_yaml, "runs") or DEFAULT_RUNS
    folder = Path(os.path.expandvars(os.path.expanduser(runs))).absolute() / request.run
    known = run_record.read(folder) if request.verb in ("submit", "check") else None
    if known:
        request.runs = str(folder.parent)
    return known


def _text(values: DictConfig, key: str) -> str:
    """A text of a profile; one that refers to another key, which may have its default, as the whole profile has it."""
    try:
        return str(values.get(key) or "")
    except OmegaConfBaseException:
        return str(getattr(merged(Profile, [("profile", values)]), key))


def _given_before(known: RunRecord) -> dict[str, Any]:
    """What command lines gave the run; of a version that kept no such list, all that its recipe does not say."""
    return _beyond_base(known.recipe, known.profile, known.settings) if known.given is None else known.given


def _beyond_base(recipe: str, profile: str, settings: Any) -> dict[str, Any]:
    """The values in which whole settings differ from what a recipe and a profile make today."""
    try:
        base = merged(Settings, _base(recipe, profile, profiles.read(profile))[0])
    except UserError:  # a recipe or profile that is not here: everything is kept
        base = Settings()
    usual = dict(leaves(dataclasses.asdict(base)))
    return {key: value for key, value in leaves(_plain(settings)) if key not in usual or usual[key] != value}


def _base(recipe: str, profile: str, profile_yaml: DictConfig) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The sources of settings below a command line, without a run, and what the recipe lays over the profile."""
    own, site = _recipe(recipe)
    defaults = profile_yaml.get("defaults")
    if defaults and not site.get("defaults", True):  # a typo shows all the same: a smoke run comes first
        require_fits(Settings, defaults, f"profile {profile}, `defaults:`")
        defaults = None
    settings = [(f"recipe {recipe}", own), (f"profile {profile}, `defaults:`", defaults)]
    most, limits = site.get("at_most", {}), {}
    if most:
        for kind, resources in merged(Profile, [(f"profile {profile}", profile_yaml)]).resources.items():
            limits[kind] = {name: min(getattr(resources, name), value) for name, value in most.items()}
    over = [(f"recipe {recipe}, `at_most:`", OmegaConf.create({"resources": limits}))] if limits else []
    return settings, over


def _plain(values: Any) -> dict[str, Any]:
    return OmegaConf.to_container(values) if isinstance(values, DictConfig) else values  # type: ignore[return-value]


def _leaves(values: DictConfig) -> list[tuple[str, Any]]:
    return list(leaves(_plain(values)))


def _values(settings: Settings, own: DictConfig, whole: Collection[str]) -> dict[str, Any]:
    """The keys of a command line with their final values: paths are absolute there. A server's are not kept.

    Of a mapping in `whole`, which was emptied, all of it is kept for a key in it.
    """
    found = {}
    for key, value in _leaves(own):
        key = RENAMED.get(key, key)
        above = key.rpartition(".")[0]
        key = above if above in whole else key
        if key and not key.startswith("serve."):
            found[key] = run_record.value_at(settings, key, value)
    return found


def _expand(profile: Profile) -> None:
    """Reads `~` and variables of this shell in the profile's folders; what only nodes expand stays as it is."""

    def expanded(path: str) -> str:
        return os.path.expandvars(os.path.expanduser(path))

    profile.runs, profile.cache = expanded(profile.runs), expanded(profile.cache)
    profile.node_paths = [expanded(path) for path in profile.node_paths]
    profile.data_use.folders = [expanded(path) for path in profile.data_use.folders]
    container = profile.container
    container.mounts = [os.path.expanduser(mount) for mount in container.mounts]
    container.image = os.path.expanduser(container.image)
    if container.kind in ("apptainer", "singularity") and os.path.exists(container.image):
        container.image = os.path.abspath(container.image)  # jobs start in the folder of whoever submits


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
        if holder is settings.train and given == "tiny":
            continue  # what stage pretrain makes, and no folder of that name where the command starts
        if given.startswith((".", "~")) or os.path.isdir(given):
            found = os.path.abspath(os.path.expanduser(given))
            if given[0] not in "./~" and (owner := os.lstat(found).st_uid) not in (os.getuid(), 0):
                raise UserError(
                    f"{given} names a folder of {user_name(owner)} in the working directory, {found}; give its whole "
                    "path if that is what you mean, or start from another folder for the hub's model"
                )
            setattr(holder, name, found)
    if not all(settings.serve.images):  # the working directory, as a path
        raise UserError(
            "serve.images has an empty folder (a variable that is not set?): give its path, or leave it out"
        )
    settings.serve.images = [os.path.abspath(os.path.expanduser(folder)) for folder in settings.serve.images]


def _dots(dotlist: list[str], of_profile: bool) -> DictConfig:
    """The settings of the command line, or its profile keys without their prefix; KEY= is the empty text."""
    found = OmegaConf.create()
    for pair in dotlist:
        if pair.startswith("profile.") != of_profile or pair.startswith("profile.name="):
            continue
        try:
            found.merge_with_dotlist([pair.removeprefix("profile.") + ('""' if pair.endswith("=") else "")])
            key, _, text = pair.removeprefix("profile.").partition("=")
            kind = type_at(Profile if of_profile else Settings, key)
            if OTHER_BASE.search(text) or kind is not None:
                value = OmegaConf.select(found, key, throw_on_resolution_failure=False)  # ${NAME} is read later
                value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                if value is not None:
                    OmegaConf.update(found, key, as_written(value, yaml.load(text, TEXTS), kind), merge=False)
        except Exception as error:  # whatever YAML or OmegaConf make of it
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"command line: {pair}: not readable as YAML: {problem}") from None
    return of_shell(found) if any(map(SHELL_VARIABLE.search, dotlist)) else found


def _config(request: Request) -> DictConfig | None:
    if not request.config:
        return None
    path = Path(request.config).expanduser()
    if not path.is_file():
        raise UserError(f"config={request.config}: there is no such file; runs keep theirs as runs/<run>/config.yaml")
    whole = read_yaml(path)
    require_complete(f"config={request.config}", whole)
    if request.recipe:
        raise UserError(f"recipe={request.recipe}: config={request.config} holds every setting; give one of the two")
    if not request.run:
        here = path.parent.name
        raise UserError(
            f"config={request.config}: say under which name: run=NEW repeats these settings as a new run; "
            f"run={here} without config= goes on with run {here} itself"
        )
    request.stage = request.stage or str(whole.stage)
    request.recipe = str(whole.recipe)
    return whole


def _recipe(name: str) -> tuple[DictConfig, DictConfig]:
    """A recipe's settings, and its `site:`, which says what it takes of the profile."""
    path = _recipe_file(name)
    if not path.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise UserError(
            f"recipe={name}: there is no {path}; the recipes here are {', '.join(known)}{similar(path.stem, known)}"
        )
    own = read_yaml(path, Settings)
    site = own.pop("site", None) or OmegaConf.create()
    known = [item.name for item in dataclasses.fields(Resources)]
    if wrong := [*(set(site) - {"defaults", "at_most"}), *(set(site.get("at_most", {})) - set(known))]:
        raise UserError(f"{path}: site: '{wrong[0]}' is none of defaults, and at_most with some of {', '.join(known)}")
    return own, site


def _recipe_file(name: str) -> Path:
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
