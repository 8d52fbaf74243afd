"""The words of a command line: its verb, its own options, and settings as a dotlist."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import suggestion, type_at
from lumen_hpc.errors import UserError

VERBS = ("check", "status", "cancel", "logs", "ask", "compare")
VERB_OPTIONS = {
    "submit": ("stage", "recipe", "config", "dry_run", "confirm", "scripts"),
    "check": ("stage", "recipe", "config", "json"),
    "status": ("stage", "watch", "json"),
    "cancel": ("stage", "dry_run"),
    "logs": ("stage",),
    "ask": ("image", "reference", "days", "json"),
    "compare": (),
}
"""Options that a verb honours, beside run and runs (compare: runs alone); any other is refused."""
VERB_SETTINGS = {"ask": ("serve.model", "serve.weights"), "status": (), "cancel": (), "logs": (), "compare": ()}
"""Settings that a verb reads, where it does not read all; any other is refused, since it goes by the run's own."""
OTHER_STAGES = ("full", "fetch", "export", "export_text_llama", "prognose")
"""What `stage=` takes beside the names of settings' sections, and a model's step of them (train-lumen)."""
OTHER_VERBS = {
    **dict.fromkeys(("submit", "start"), "without a verb it submits"),
    **dict.fromkeys(("stop", "kill", "abort"), "did you mean cancel?"),
    **dict.fromkeys(("resume", "continue", "retry", "restart"), "a run goes on with stage=full run=NAME, as it began"),
}
"""Verbs of other programs → a hint at ours."""
SHORTHANDS = {
    "data": "data.source",
    "seeds": "train.seeds",
    "profile": "profile.name",
    "model": "serve.model",
    "weights": "serve.weights",
    "page": "serve.page",
}


@dataclass(kw_only=True)
class Request:
    """What one command line asks for."""

    verb: str = "submit"
    """check, status, cancel, logs, compare, or submit when no verb is given."""
    stage: str = ""
    """A stage's name, or `full`."""
    run: str = ""
    """Name of the run; its folder is `<runs>/<run>`."""
    runs: str = ""
    """Folder of runs, the profile's if empty; compare: the runs, as in runs=FIRST,OTHER (names or folders)."""
    recipe: str = ""
    """File in lumen_hpc/recipes (without .yaml) or a path; the profile's own if empty."""
    config: str = ""
    """A resolved config.yaml to repeat, instead of a recipe."""
    dry_run: bool = False
    """Print the plan and submit nothing; cancel: print what would be cancelled."""
    scripts: bool = False
    """dry_run: print every sbatch script too."""
    confirm: bool = False
    """Go on although settings given anew make finished work run again."""
    watch: bool = False
    """status: print again every few seconds until the run ends."""
    json: bool = False
    """status, check, ask: one JSON object on stdout, for scripts."""
    image: str = ""
    """ask: the radiograph that is asked about, a JPG, PNG or DICOM file."""
    reference: str = ""
    """ask: an earlier radiograph of the same patient."""
    days: str = ""
    """ask: days from the reference to the image; without, as the files' own dates say."""
    question: str = ""
    """ask: the words behind the verb."""
    settings: Settings = field(default_factory=Settings)
    profile: Profile = field(default_factory=Profile)
    compared_runs: tuple[str, ...] = ()
    """compare: names or folders of runs."""
    given: dict[str, Any] = field(default_factory=dict)
    """Settings that command lines gave this run so far, by dotted key; its config.yaml keeps them."""
    setting_keys: tuple[str, ...] = ()
    """Dotted keys of the settings on this command line."""
    site_keys: tuple[str, ...] = ()
    """Dotted keys of the profile on this command line, and those in its file that name something of Slurm's."""
    profile_named: bool = False
    """Whether the command, the environment or the run itself says which profile."""
    recorded_settings: dict[str, Any] | None = None
    """The settings in the run's config.yaml; None for a new run."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs or self.profile.runs).expanduser().absolute() / self.run


OPTIONS = {
    item.name: item.type
    for item in dataclasses.fields(Request)
    if item.name in {"run", "runs"}.union(*VERB_OPTIONS.values())
}
"""The fields of a request that a command line sets as KEY=VALUE, with their types."""


def read_words(arguments: list[str]) -> tuple[Request, list[str]]:
    """The request with its verb and options alone, and settings as a dotlist.

    Raises UserError for a word that is neither a verb nor KEY=VALUE, and for an option that the verb would ignore.
    """
    arguments, question = _split_question(arguments)
    words = [argument for argument in arguments if "=" not in argument]
    if unknown_words := [word for word in words if word not in VERBS]:
        hint = _hint(unknown_words[0], arguments)
        raise UserError(
            f"'{unknown_words[0]}' is neither a verb ({', '.join(VERBS)}) nor KEY=VALUE, such as stage=full{hint}"
        )
    if len(words) > 1:
        raise UserError(f"'{' '.join(words)}': one verb at a time ({', '.join(VERBS)})")
    options, dotlist = _split_pairs([argument for argument in arguments if "=" in argument])
    request = Request(verb=words[0] if words else "submit", question=question, **options)
    _require_accepted(request.verb, options, dotlist)
    if request.verb == "compare":
        names = request.runs.removeprefix("[").removesuffix("]").split(",")
        request.compared_runs, request.runs = tuple(name.strip() for name in names if name.strip()), ""
    for name in ("recipe", "config"):
        value = getattr(request, name)
        if value.startswith("["):
            raise UserError(f"{name}={value}: takes one; a list sweeps a setting, and each {name} is a run of its own")
        if value.endswith((".yaml", ".yml")):
            setattr(request, name, os.path.abspath(os.path.expanduser(value)))
    return request, dotlist


def _require_accepted(verb: str, options: dict[str, Any], dotlist: list[str]) -> None:
    """Raises UserError for an option or a setting that a verb would ignore."""
    options_taken = ("runs", *VERB_OPTIONS[verb]) if verb == "compare" else ("run", "runs", *VERB_OPTIONS[verb])
    without_run = verb == "ask" and last_value(dotlist, "serve.weights")  # a checkpoint, without settings of its own
    settings_read = VERB_SETTINGS.get(verb)
    ignored_pairs = [
        f"{name}={value}".replace("True", "true") for name, value in options.items() if name not in options_taken
    ]
    hint = ""
    for pair in dotlist if settings_read is not None else ():
        key, _, value = pair.partition("=")
        if without_run and not key.startswith("serve."):
            continue
        if not key.startswith("profile.") and key not in (settings_read or ()) and type_at(Settings, key) is not None:
            ignored_pairs.append(pair)
            if key == "serve.model" and "stage" in options_taken:
                hint = f"; stage=train-{value} or stage=predict-{value} is one model's step"
    if ignored_pairs:
        shorthands = {key: name for name, key in SHORTHANDS.items()}
        key, equals, value = ignored_pairs[0].partition("=")
        command = "a submission" if verb == "submit" else verb
        raise UserError(
            f"{shorthands.get(key, key)}{equals}{value}: {command} has no use for it; "
            f"it takes {', '.join(options_taken)}{hint}"
        )


def _hint(word: str, arguments: list[str]) -> str:
    """A hint for a bare word: a key without its value, a value behind a space, a run's name, or a verb with a typo."""
    name = word.lstrip("-").replace("-", "_")
    previous_words = arguments[: arguments.index(word)][-1:]
    if previous_words and previous_words[0].endswith("="):
        return f"; did you mean {previous_words[0]}{word}?"
    bare_words = [other for other in arguments if "=" not in other and other not in VERBS]
    if "compare" in arguments and not word.startswith("-"):
        return f"; did you mean runs={','.join(bare_words)}?"
    step = word.lstrip("-")
    if step in OTHER_STAGES or dataclasses.is_dataclass(type_at(Settings, step.split("-")[0])):
        return f"; did you mean stage={step}?"
    key, colon, value = name.partition(":")
    if key in OPTIONS or key in SHORTHANDS or type_at(Settings, key) is not None:
        next_words = bare_words[bare_words.index(word) + 1 :][:1] or ["VALUE"]
        value = value if colon and value else "true" if OPTIONS.get(key) == "bool" else next_words[0]
        return f"; write {key}={value}, without spaces"
    if name in OTHER_VERBS:
        return f"; {OTHER_VERBS[name]}"
    if "ask" in arguments and not word.startswith("-"):
        return '; a question stands behind its verb, as in ask "is there edema?"'
    if verb := suggestion(name, (*VERBS, "help"), likeness=0.6):
        return verb.replace("help", "--help")
    return f"; did you mean run={word}?" if set(VERBS) & set(arguments) and not word.startswith("-") else ""


def _split_question(arguments: list[str]) -> tuple[list[str], str]:
    """The words without those of a question behind the verb `ask`, and the question."""
    start = arguments.index("ask") + 1 if "ask" in arguments else len(arguments)
    question_words = [word for word in arguments[start:] if _is_question_word(word)]
    return arguments[:start] + [word for word in arguments[start:] if word not in question_words], " ".join(
        question_words
    )


def _is_question_word(word: str) -> bool:
    """Whether a word behind `ask` belongs to the question: neither KEY=VALUE nor, in another program's way, --KEY."""
    if re.match(r"--?[A-Za-z]", word):
        return False
    key, equals, _ = word.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key):
        return True
    is_key = (
        key in ("question", *OPTIONS)
        or key in SHORTHANDS
        or key.startswith("profile.")
        or type_at(Settings, key) is not None
    )
    return not is_key and (" " in word or word.endswith("?"))


def _split_pairs(pairs: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Options of the command itself, and settings as a dotlist."""
    options: dict[str, Any] = {}
    dotlist = []
    values: dict[str, str] = {}
    for pair in pairs:
        key, value = pair.split("=", 1)
        if not key.strip("."):
            raise UserError(f"'{pair}' is not KEY=VALUE")
        if "[" in key:
            raise UserError(f"{pair}: a key has dots and no brackets, as in train.base=FOLDER; a list is given whole")
        if key == "question":
            raise UserError(
                f'{pair}: a question stands behind its verb without a key: ask "{value or "is there edema?"}"'
            )
        if not value and (key in OPTIONS or SHORTHANDS.get(key) == "profile.name"):
            raise UserError(f"{key}= is empty (a variable that is not set?): give a value, or leave it out")
        if values.setdefault(SHORTHANDS.get(key, key), value) != value:
            if key in OPTIONS:
                raise UserError(f"{key} is given twice, {values[key]} and {value}: give it once")
            print(f"lumen: {key} is given more than once: {key}={value}, the last, counts", file=sys.stderr)
        if key in OPTIONS:
            options[key] = _parse_boolean(key, value) if OPTIONS[key] == "bool" else value
        else:
            dotlist.append(f"{SHORTHANDS.get(key, key)}={value}")
    return options, dotlist


def _parse_boolean(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"{key}={value}: takes true or false")
    return value.lower() == "true"


def last_value(dotlist: list[str], key: str) -> str:
    """The last value of a key in a dotlist; empty if it is not there."""
    return next((pair.split("=", 1)[1] for pair in reversed(dotlist) if pair.startswith(key + "=")), "")
