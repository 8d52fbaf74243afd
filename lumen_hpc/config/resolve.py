"""From a command line to a whole `Request`: settings and profile, merged, checked and with absolute paths.

`resolve(arguments)` merges dataclass defaults < recipe < profile's `defaults:` < what earlier command lines gave the
same run < command line, in OmegaConf's struct mode, so that a typo fails with similar valid keys.
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
from lumen_hpc.config.merge import RENAMED, merge
from lumen_hpc.config.profile import Profile, Resources
from lumen_hpc.config.profile_checks import require_no_secret, require_usable
from lumen_hpc.config.request import VERB_SETTINGS, Request, last_value, read_words
from lumen_hpc.config.run_record import RunRecord
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import (
    OTHER_BASE_NUMBER,
    SHELL_VARIABLE,
    TEXT_LOADER,
    check,
    escape_shell_variables,
    leaves,
    read_yaml,
    require_fits,
    require_values,
    restore_texts,
    suggestion,
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
    command_settings, command_profile = _parse_dotlist(words, of_profile=False), _parse_dotlist(words, of_profile=True)
    config = _read_config(request)
    name, profile_yaml, profile_chosen = _select_profile(request, words, config)
    record = _find_record(request, command_profile, profile_yaml)
    continued = record if config is None else None
    if continued and not profile_chosen and continued.profile != name:
        name, profile_yaml = continued.profile, profiles.read(continued.profile, f"{continued.file}: its profile")
    request.profile_named = profile_chosen or continued is not None
    requested_recipe = request.recipe
    request.recipe = request.recipe or (
        continued.recipe if continued else _profile_text(profile_yaml, "recipe") or DEFAULT_RECIPE
    )
    given_values = _earlier_values(continued) if continued else {}

    limits: list[tuple[str, Any]] = []
    if config is not None:
        sources = [(request.config, config.settings)]
    elif continued and not requested_recipe and not _recipe_file(continued.recipe).is_file():
        sources = [(str(continued.file), OmegaConf.create(continued.settings))]
    else:
        sources, limits = _base_sources(request.recipe, name, profile_yaml)
    record_file = str(record.file) if record else ""
    emptied_keys = {key for key, _, value in (word.partition("=") for word in words) if value == "{}"}
    # Emptied by an earlier command.
    whole_mappings = {key for key, value in given_values.items() if isinstance(value, dict)}
    sources += _emptying_sources(record_file, whole_mappings, run_record.nest(given_values))
    sources += _emptying_sources(
        "command line", [key for key in emptied_keys if not key.startswith("profile.")], command_settings
    )
    request.settings = merge(Settings, sources)
    profile_words = _emptying_sources(
        "command line", [key[8:] for key in emptied_keys if key.startswith("profile.")], command_profile
    )
    request.profile = merge(Profile, [(f"profile {name}", profile_yaml), *limits, *profile_words])
    _expand(request.profile)
    _make_absolute(request.settings)
    check(request.settings)
    check(request.profile, "profile.")
    require_no_secret(request.profile)
    _require_profile_words(command_profile)  # which repeats its value
    require_usable(request.profile, profile_yaml, command_profile)
    for kind in request.profile.resources:
        if kind not in RESOURCE_KINDS:
            raise UserError(f"profile.resources.{kind}: stages ask for {', '.join(RESOURCE_KINDS)} only")
    if config is not None:
        given_values = _differences_from_base(request.recipe, request.profile.name, config.settings)
    request.given = given_values | _final_values(request.settings, command_settings, whole_mappings | emptied_keys)
    request.setting_keys = tuple(key for key, _ in _leaves(command_settings))
    request.site_keys = (*profiles.slurm_keys(profile_yaml), *(key for key, _ in _leaves(command_profile)))
    request.recorded_settings = record.settings if record else None
    return request


def _emptying_sources(source: str, keys: Iterable[str], values: DictConfig) -> list[tuple[str, Any]]:
    """Sources that first empty the mappings of these keys and then have `values`, which may be parts of them."""
    return [(source, run_record.nest({key: {} for key in keys})), (source, values)]


def _require_profile_words(command_profile: DictConfig) -> None:
    """Raises UserError for keys of a profile's file that a command line spells without `profile.`."""
    for key, value in _leaves(command_profile):
        first, _, rest = key.partition(".")
        if first in ("recipe", "defaults"):
            spelling = f"{rest or 'KEY'}={value if rest else 'VALUE'}" if first == "defaults" else f"recipe={value}"
            raise UserError(f"profile.{key}={value}: that is for a profile's file; on a command line write {spelling}")


def _select_profile(request: Request, words: list[str], config: DictConfig | None) -> tuple[str, DictConfig, bool]:
    """The profile's name and YAML, and whether the command or the environment chose it.

    A verb that goes by a run's own settings needs none to find a run whose whole place is given.
    """
    needs_run_alone = request.verb in VERB_SETTINGS and request.verb != "ask"  # which reads the cache of weights
    if needs_run_alone and request.run and request.runs:
        return "local", OmegaConf.create(), False
    requested_name, environment_name = last_value(words, "profile.name"), os.environ.get("LUMEN_PROFILE", "")
    if config is not None and not requested_name:
        return request.config, config.profile, True
    name = requested_name or environment_name or "local"
    origin = f"{'profile' if requested_name else 'LUMEN_PROFILE'}={name}"
    if name.endswith((".yaml", ".yml")):
        name = os.path.abspath(os.path.expanduser(name))
    try:
        return name, profiles.read(name, origin), bool(requested_name or environment_name)
    except UserError as error:
        hint = f"; {request.verb} does without a profile where run=NAME and runs=FOLDER are given" * needs_run_alone
        raise UserError(f"{error}{hint}") from None


def _find_record(request: Request, command_profile: DictConfig, profile_yaml: DictConfig) -> RunRecord | None:
    """The record of the run that a command goes on with; sets the request's name and folder of the run."""
    request.run = request.run or Path(request.recipe or _profile_text(profile_yaml, "recipe") or DEFAULT_RECIPE).stem
    if not re.fullmatch(r"\w[\w.-]*", request.run, re.ASCII):
        path = Path(request.run)
        hint = f", as in run={path.name} runs={path.parent}" if "/" in request.run and path.name else ""
        raise UserError(
            f"run={request.run}: a run's name is one folder's, of letters, digits, `.`, `_` and `-`; "
            f"choose another root with runs=FOLDER{hint}"
        )
    runs = request.runs or _profile_text(command_profile, "runs") or _profile_text(profile_yaml, "runs") or DEFAULT_RUNS
    folder = Path(os.path.expandvars(os.path.expanduser(runs))).absolute() / request.run
    record = run_record.read(folder) if request.verb in ("submit", "check") else None
    if record:
        request.runs = str(folder.parent)
    return record


def _profile_text(values: DictConfig, key: str) -> str:
    """A text of a profile, with references to other keys resolved (by their defaults where it lacks them)."""
    try:
        return str(values.get(key) or "")
    except OmegaConfBaseException:
        return str(getattr(merge(Profile, [("profile", values)]), key))


def _earlier_values(record: RunRecord) -> dict[str, Any]:
    """Settings of earlier command lines; where an older version kept no list, all that differ from the recipe."""
    return (
        _differences_from_base(record.recipe, record.profile, record.settings) if record.given is None else record.given
    )


def _differences_from_base(recipe: str, profile: str, settings: Any) -> dict[str, Any]:
    """The values in which whole settings differ from what a recipe and a profile make today."""
    try:
        base = merge(Settings, _base_sources(recipe, profile, profiles.read(profile))[0])
    except UserError:  # a recipe or profile that is not here: everything is kept
        base = Settings()
    base_values = dict(leaves(dataclasses.asdict(base)))
    return {
        key: value for key, value in leaves(_as_dict(settings)) if key not in base_values or base_values[key] != value
    }


def _base_sources(
    recipe: str, profile: str, profile_yaml: DictConfig
) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The sources of a new run's settings below its command line, and its recipe's limits on the profile."""
    recipe_values, site = _read_recipe(recipe)
    defaults = profile_yaml.get("defaults")
    if defaults and not site.get("defaults", True):  # a typo shows all the same: a smoke run comes first
        require_fits(Settings, defaults, f"profile {profile}, `defaults:`")
        defaults = None
    settings = [(f"recipe {recipe}", recipe_values), (f"profile {profile}, `defaults:`", defaults)]
    maxima, limits = site.get("at_most", {}), {}
    if maxima:
        for kind, resources in merge(Profile, [(f"profile {profile}", profile_yaml)]).resources.items():
            limits[kind] = {name: min(getattr(resources, name), value) for name, value in maxima.items()}
    limit_sources = [(f"recipe {recipe}, `at_most:`", OmegaConf.create({"resources": limits}))] if limits else []
    return settings, limit_sources


def _as_dict(values: Any) -> dict[str, Any]:
    return OmegaConf.to_container(values) if isinstance(values, DictConfig) else values


def _leaves(values: DictConfig) -> list[tuple[str, Any]]:
    return list(leaves(_as_dict(values)))


def _final_values(settings: Settings, command_settings: DictConfig, whole_mappings: Collection[str]) -> dict[str, Any]:
    """The keys of a command line with their final values: paths are absolute there. A server's are not kept.

    For a key of a mapping in `whole_mappings`, which was emptied, the whole mapping is kept.
    """
    final_values = {}
    for key, value in _leaves(command_settings):
        key = RENAMED.get(key, key)
        mapping = key.rpartition(".")[0]
        key = mapping if mapping in whole_mappings else key
        if key and not key.startswith("serve."):
            final_values[key] = run_record.value_at(settings, key, value)
    return final_values


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
        path = getattr(getattr(settings, section), name)
        if path:
            setattr(getattr(settings, section), name, os.path.abspath(os.path.expanduser(path)))
    judge = settings.judge  # its own second engine: `engines` gives a copy of one that is placed beside the first
    engines = [engine for engine in (settings.rewrite.engine, judge.engine, judge.second) if engine]
    for holder, name in ((settings.train, "base"), *((engine, "model") for engine in engines)):
        path = getattr(holder, name)  # a folder, or a hub name, which may look like a relative path
        if holder is settings.train and path == "tiny":
            continue  # what stage pretrain makes, and no folder of that name where the command starts
        if path.startswith((".", "~")) or os.path.isdir(path):
            absolute = os.path.abspath(os.path.expanduser(path))
            if path[0] not in "./~" and (owner := os.lstat(absolute).st_uid) not in (os.getuid(), 0):
                raise UserError(
                    f"{path} names a folder of {user_name(owner)} in the working directory, {absolute}; give its whole "
                    "path if that is what you mean, or start from another folder for the hub's model"
                )
            setattr(holder, name, absolute)
    if not all(settings.serve.images):  # the working directory, as a path
        raise UserError(
            "serve.images has an empty folder (a variable that is not set?): give its path, or leave it out"
        )
    settings.serve.images = [os.path.abspath(os.path.expanduser(folder)) for folder in settings.serve.images]


def _parse_dotlist(dotlist: list[str], of_profile: bool) -> DictConfig:
    """The settings of the command line, or its profile keys without their prefix; KEY= is the empty text."""
    values = OmegaConf.create()
    for pair in dotlist:
        if pair.startswith("profile.") != of_profile or pair.startswith("profile.name="):
            continue
        try:
            values.merge_with_dotlist([pair.removeprefix("profile.") + ('""' if pair.endswith("=") else "")])
            key, _, text = pair.removeprefix("profile.").partition("=")
            kind = type_at(Profile if of_profile else Settings, key)
            require_values("command line: " + "profile." * of_profile, text, values)
            if OTHER_BASE_NUMBER.search(text) or kind is not None:
                value = run_record.value_at(_as_dict(values), key, None)  # as it stands: references are read later
                if value is not None:
                    OmegaConf.update(values, key, restore_texts(value, yaml.load(text, TEXT_LOADER), kind), merge=False)
        except UserError:
            raise
        except Exception as error:  # whatever YAML or OmegaConf make of it
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"command line: {pair}: not readable as YAML: {problem}") from None
    return escape_shell_variables(values) if any(map(SHELL_VARIABLE.search, dotlist)) else values


def _read_config(request: Request) -> DictConfig | None:
    if not request.config:
        return None
    path = Path(request.config).expanduser()
    if not path.is_file():
        raise UserError(f"config={request.config}: there is no such file; runs keep theirs as runs/<run>/config.yaml")
    config = read_yaml(path, resolved=True)
    require_complete(f"config={request.config}", config)
    if request.recipe:
        raise UserError(f"recipe={request.recipe}: config={request.config} holds every setting; give one of the two")
    if not request.run:
        run_name = path.parent.name
        raise UserError(
            f"config={request.config}: say under which name: run=NEW repeats these settings as a new run; "
            f"run={run_name} without config= goes on with run {run_name} itself"
        )
    request.stage = request.stage or str(config.stage)
    request.recipe = str(config.recipe)
    return config


def _read_recipe(name: str) -> tuple[DictConfig, DictConfig]:
    """A recipe's settings, and its `site:`: how it limits the profile."""
    path = _recipe_file(name)
    if not path.is_file():
        recipes = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise UserError(
            f"recipe={name}: there is no {path}; the recipes here are {', '.join(recipes)}"
            f"{suggestion(path.stem, recipes)}"
        )
    values = read_yaml(path, Settings)
    site = values.pop("site", None) or OmegaConf.create()
    limits = site.get("at_most", {}) if isinstance(site, DictConfig) else None
    if (
        not isinstance(limits, dict | DictConfig)
        or not all(isinstance(limit, int) for limit in limits.values())
        or not isinstance(site.get("defaults", True), bool)
    ):
        raise UserError(f"{path}: site: takes `defaults: false`, and `at_most:` with numbers, as in {{tasks: 2}}")
    resource_keys = [item.name for item in dataclasses.fields(Resources) if isinstance(item.default, int)]
    if unknown_keys := [*(set(site) - {"defaults", "at_most"}), *(set(limits) - set(resource_keys))]:
        raise UserError(
            f"{path}: site: '{unknown_keys[0]}' is no key of it; it takes defaults, and at_most with some of "
            f"{', '.join(resource_keys)}"
        )
    return values, site


def _recipe_file(name: str) -> Path:
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
