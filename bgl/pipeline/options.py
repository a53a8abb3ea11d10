"""The command line of a run: every field of TrainConfig, from YAML files and options."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import docstring_parser
import yaml
from jsonargparse import (
    ActionYesNo,
    ArgumentError,
    ArgumentParser,
    Namespace,
    get_loader,
    set_loader,
)

from bgl._checks import check_choice
from bgl._io import check_yaml, read_yaml, write_text
from bgl._records import read_record
from bgl._registry import reserve
from bgl._usage import RUN_OPTIONS, check_options, check_train_words, dashes, option
from bgl.pipeline.published import published_rows
from bgl.pipeline.results import COMMAND_FILE
from bgl.training import TrainConfig
from bgl.training.config import CIRCUMSTANCES, WITH_OPTIONS, parts

CONFIGS = Path(__file__).parents[1] / "configs"  # where bgl is installed
if not CONFIGS.is_dir():  # in a clone
    CONFIGS = Path(__file__).parents[2] / "configs"
PAPERS = "cub"  # the dataset that every system was published on
QUICK = CONFIGS / "quick.yaml"
PATHS = ("data_root", "table", "cache")
LISTS = ("--method", "--seed", "--seeds", "--log")  # take several words
OF_A_RUN = (
    *("config", "method", "seed", "output_dir", "log", "plugin", "resume", "refine", "pixels"),
    *("recipe", "quick"),
)

reserve(RUN_OPTIONS, "an option of a run")


def load_yaml(text: str) -> Any:
    """Read YAML that does not grow when it is read, with numbers such as ``1e-4``."""
    check_yaml(text)
    return get_loader("yaml")(text)


set_loader("bgl", load_yaml, exceptions=(yaml.YAMLError, ValueError))


def make_parser(description: str | None = None) -> ArgumentParser:
    """Make a parser with an option for each field of TrainConfig, besides those of a whole run."""
    parser = ArgumentParser(
        prog="bgl train", description=description, exit_on_error=False, parser_mode="bgl"
    )
    texts = RUN_OPTIONS
    parser.add_argument("--config", action="append", help=texts["config"])
    words = list[str] | str
    add_option(parser, "--recipe", str | None, None, texts["recipe"])
    add_option(parser, "--quick", bool, False, texts["quick"])
    add_option(parser, "--method", words, [TrainConfig.method], texts["method"])
    parser.add_argument("--seed", "--seeds", default=[0], type=list[int] | int, help=texts["seed"])
    add_option(parser, "--output-dir", str | None, None, texts["output_dir"])
    add_option(parser, "--log", words, [], texts["log"])
    text = (
        f"{texts['resume'][:-1]}; what does not define the result may be given anew: --log, "
        f"{', '.join(map(option, CIRCUMSTANCES))}."
    )
    add_option(parser, "--resume", str | None, None, text)
    parser.add_argument("--plugin", action="append", help=texts["plugin"])
    add_option(parser, "--refine", bool, False, texts["refine"])
    add_option(parser, "--pixels", bool, None, texts["pixels"])
    defaults = TrainConfig()
    help_of = argument_help(TrainConfig)
    for name, hint in get_type_hints(TrainConfig).items():
        if name in OF_A_RUN or name == "options":
            continue
        add_option(parser, option(name), hint, getattr(defaults, name), help_of[name])
    # One option for each parameter: an option for the whole part would also take the name of a
    # class, and import it.
    for part, make in [item for registry in WITH_OPTIONS for item in registry.items()]:
        known, help_of = signature(make, eval_str=True).parameters, argument_help(make)
        for key, default in parts(part).options(part).items():
            hint = known[key].annotation
            add_option(parser, f"--{part}.{key}", hint, default, help_of.get(key, ""))
    return parser


def add_option(parser: ArgumentParser, name: str, hint: Any, default: Any, text: str) -> None:
    kind = {"action": ActionYesNo(no_prefix="no-")} if hint is bool else {"type": hint}
    parser.add_argument(name, **kind, default=default, help=text)


def argument_help(kind: Callable[..., Any]) -> dict[str, str]:
    """Read the descriptions of arguments off the docstring."""
    documented = docstring_parser.parse(kind.__doc__ or "").params
    return {parameter.arg_name: parameter.description or "" for parameter in documented}


@dataclass(frozen=True)
class Command:
    """What a command line asks for: the configuration of every model, and the rest."""

    configs: list[TrainConfig]
    folder: Path | None  # None: a new one
    trackers: list[str]
    refine: bool = False
    pixels: bool | None = None  # None: where few images are tested
    quick: bool = False  # a tour: its figures say nothing
    free: tuple[frozenset[str], ...] = ()  # of each configuration: what may follow the data


class _StoredCommand(TypedDict):
    configs: list[dict[str, Any]]
    log: list[str]
    refine: bool
    pixels: bool | None


class StoredCommand(_StoredCommand, total=False):
    """What command.yaml holds."""

    quick: bool  # which earlier versions did not write


def parse(argv: Sequence[str], description: str | None = None) -> Command:
    """Parse a command line.

    Later wins: the dataset's base.yaml, the YAML of the method, ``--recipe``, ``--quick``,
    ``--config`` files, options.

    Raises:
        ValueError: If there is no such option, a value does not fit, or ``--resume`` names no
            run folder.
        SystemExit: After ``--help`` and ``--help-all``.
    """
    check_train_words(argv)
    parser = make_parser(description)
    if "--help-all" in argv:
        parser.print_help()
        raise SystemExit(0)
    words = join_lists([dashes(word) for word in argv])
    check_options(words, parser._option_string_actions, "bgl train")
    try:
        given = parser.parse_args(words, defaults=False)
        files = [Path(name) for name in given.get("config") or []]
        if given.get("resume") is not None:
            return resumed(Path(given.resume), layers(parser, files, words, Namespace()))
        dataset = layers(parser, files, words)["dataset"]
        words += ["--dataset", dataset]  # that of a recipe does not count
        quick = bool(given.get("quick"))
        recipe, tour = recipe_files(given.get("recipe"), dataset), [QUICK] if quick else []
        # the dataset's file, or that of the tour, names the methods that are compared by default
        options = layers(parser, [*packaged(dataset, "base"), *tour, *recipe, *files], words)
        methods, seeds, trackers = (as_list(options[name]) for name in ("method", "seed", "log"))
        if not methods or not seeds:
            raise ValueError("Expected at least one --method and one --seed, but got none")
        configs: list[TrainConfig] = []
        free: list[frozenset[str]] = []
        for method in methods:
            own = packaged(dataset, "base", *str(method).split("+"))
            values = layers(parser, [*own, *recipe, *tour, *files], words).as_dict()
            values = {name: value for name, value in values.items() if name not in OF_A_RUN}
            # the batch of a recipe still follows the data
            set_by_user = layers(parser, [*own, *files], words, Namespace()).as_dict()
            unset = frozenset({"batch_size", "per_class"} - set_by_user.keys())
            values |= matching_batch(values["batch_size"], values["per_class"], unset)
            # whole paths, for bgl eval and --resume in other folders
            values |= {name: str(Path(values[name]).absolute()) for name in PATHS if values[name]}
            free += [unset] * len(seeds)
            configs += [
                TrainConfig.from_dict({**values, "method": method, "seed": seed}) for seed in seeds
            ]
    except ArgumentError as error:
        raise ValueError(f"{_readable(error)}; bgl train --help lists the options") from error
    folder = None if options.output_dir is None else Path(options.output_dir)
    return Command(configs, folder, trackers, options.refine, options.pixels, quick, tuple(free))


def packaged(dataset: str, *names: str) -> list[Path]:
    """Return the files under configs/ that a dataset has of these names."""
    paths = [CONFIGS / dataset / f"{name}.yaml" for name in names]
    return [path for path in paths if path.is_file()]


def recipe_names() -> tuple[str, ...]:
    """Return what ``--recipe`` takes: the library's own recipes, then those of the papers."""
    own = sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml"))
    papers = sorted(path.stem for path in (CONFIGS / PAPERS).glob("*.yaml"))
    return (*own, *(name for name in papers if name != "base"))


def recipe_files(name: str | None, dataset: str) -> list[Path]:
    """Return the files of a recipe: for this dataset, or else as published for CUB-200-2011.

    The library's own build on ``plain``.

    Raises:
        ValueError: If there is no such recipe.
    """
    if name is None:
        return []
    check_choice(name, "recipe", recipe_names())
    if packaged("recipes", name):
        return packaged("recipes", *dict.fromkeys(("plain", name)))
    if dataset in {row.dataset for row in published_rows()} and (here := packaged(dataset, name)):
        return here
    return packaged(PAPERS, "base", name)


def _readable(error: ArgumentError) -> str:
    """Say which option is wrong, in our words where jsonargparse shows a class."""
    pattern = r"Parser key \"(\w+)\": Expected an? <class '(\w+)'>\. Got value: (.*)"
    found = re.search(pattern, " ".join(str(error).split()))
    if found is None:
        return str(error)
    kind = {"int": "an integer", "float": "a number", "str": "text"}.get(found[2], found[2])
    return f"Expected {option(found[1])} to be {kind}, but got {found[3]}"


def matching_batch(batch_size: int, per_class: int, free: Collection[str]) -> dict[str, int]:
    """Make one of the two a divisor or multiple of the other where that one alone was given.

    Example:
        >>> matching_batch(128, 3, {"batch_size"}), matching_batch(90, 4, {"per_class"})
        ({'batch_size': 126, 'per_class': 3}, {'batch_size': 90, 'per_class': 3})
    """
    if free == {"batch_size"}:
        batch_size = max(1, batch_size // per_class) * per_class
    elif free == {"per_class"}:
        per_class = max(n for n in range(1, per_class + 1) if batch_size % n == 0)
    return {"batch_size": batch_size, "per_class": per_class}


def layers(
    parser: ArgumentParser, files: list[Path], words: list[str], start: Namespace | None = None
) -> Namespace:
    """Parse options on top of files, in their order, on top of the defaults (or ``start``)."""
    values = _defaults(parser).clone() if start is None else start
    for path in files:
        content = read_file(path)
        try:
            values.update(parser.parse_object(content, defaults=False))
        except ArgumentError as error:
            raise ValueError(f"{path}: {error}") from error
    values.update(parser.parse_args(words, defaults=False))
    return values


@lru_cache(maxsize=1)  # the parser of the command at hand
def _defaults(parser: ArgumentParser) -> Namespace:
    return parser.get_defaults()


def read_file(path: Path) -> dict[str, Any]:
    """Read a file of options.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it holds anything else; the message names the file.
    """
    content = read_yaml(path, get_loader("yaml"))
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected {path} to hold options in YAML (`name: value`), but it holds a "
            f"{type(content).__name__}"
        )
    if named := {"config", "resume", "plugin", "recipe", "quick"} & content.keys():
        raise ValueError(
            f"Expected {path} to leave `{min(named)}` to the command line, but it has it"
        )
    return content


def resumed(folder: Path, given: Namespace) -> Command:
    """Read the command that a run folder was made by, with what may change.

    Raises:
        ValueError: If the folder does not say, or anything is given that defines the result.
    """
    changes = {name: value for name, value in given.as_dict().items() if value is not None}
    for name in ("config", "plugin", "resume"):
        changes.pop(name, None)
    if fixed := sorted(changes.keys() - {"log", *CIRCUMSTANCES}):
        raise ValueError(
            f"Expected nothing with --resume that defines the result, but got "
            f"{', '.join(option(name) for name in fixed)}: leave it out, or train anew with "
            "another --output-dir"
        )
    command = read_command(folder)
    trackers = as_list(changes.pop("log", command.trackers))
    configs = [dataclasses.replace(config, **changes) for config in command.configs]
    return dataclasses.replace(command, configs=configs, trackers=trackers)


def write_command(command: Command, folder: Path) -> None:
    """Keep in the run folder what ``--resume`` needs."""
    content: StoredCommand = {
        "configs": [config.to_dict() for config in command.configs],
        "log": command.trackers,
        "refine": command.refine,
        "pixels": command.pixels,
        "quick": command.quick,
    }
    write_text(folder / COMMAND_FILE, yaml.safe_dump(content, sort_keys=False))


def read_command(folder: Path) -> Command:
    """Read the command that a run folder was made by.

    Raises:
        ValueError: If the folder does not say.
    """
    path = folder / COMMAND_FILE
    try:
        content = read_record(path, StoredCommand, "repeat the whole command with --output-dir")
        configs = [TrainConfig.from_dict(values) for values in content["configs"]]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Expected argument `--resume` to name a run folder, but {path} does not say what was "
            f"run ({' '.join(str(error).split())})"
        ) from error
    rest = (content["log"], content["refine"], content["pixels"])
    return Command(configs, folder, *rest, quick=content.get("quick", False))


def option_words(name: str, value: Any) -> list[str]:
    """Write an option as the words that :func:`parse` reads.

    Example:
        >>> option_words("iaa", {"strength": 0.5, "schedule": True})
        ['--iaa.strength', '0.5', '--iaa.schedule']
        >>> option_words("skip_broken", False)
        ['--no-skip_broken']
    """
    if any(name in registry for registry in WITH_OPTIONS):
        return [word for key, item in value.items() for word in option_words(f"{name}.{key}", item)]
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):  # in one word, or it would become a list in a list
        return [f"--{name}={as_word(value)}"]
    return [f"--{name}", as_word(value)]


def as_word(value: Any) -> str:
    """Write a value as an option takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def as_list(value: Any) -> list[Any]:
    """Return a list where a list or one value may be given."""
    return value if isinstance(value, list) else [value]


def join_lists(argv: list[str]) -> list[str]:
    """Turn ``--method none dybgr`` into the one word ``--method=[none,dybgr]``, for all LISTS."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        values = []
        while word in LISTS and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        words.append(f"{word}=[{','.join(values)}]" if values else word)
    return words
