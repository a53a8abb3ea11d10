"""The command line of a run: every field of TrainConfig, from YAML files and options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

from bgl._io import write_text
from bgl.training import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
COMMAND_FILE = "command.yaml"
LISTS = ("--method", "--seed", "--seeds", "--log")  # take several words


def make_parser(description: str | None = None) -> ArgumentParser:
    """One option per field of TrainConfig, beside those of a whole run."""
    parser = ArgumentParser(prog="bgl train", description=description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any options.")
    parser.add_argument(
        "--method",
        default=["none", "dybgr"],
        type=list[str] | str,
        help='Methods to train, one after the other: "none", or blocks joined by "+".',
    )
    parser.add_argument(
        "--seed", "--seeds", default=[0], type=list[int] | int, help="Seeds, one run each."
    )
    parser.add_argument(
        "--output-dir", default=None, type=str | None, help="Run folder; default: runs/<new name>."
    )
    parser.add_argument(
        "--log",
        default=[],
        type=list[str] | str,
        help='Trackers of accelerate to log to, for instance "tensorboard".',
    )
    parser.add_argument(
        "--resume",
        default=None,
        type=str | None,
        help="Run folder to go on with, as it was begun; no other options.",
    )
    parser.add_argument(
        "--refine",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="Add rows with embeddings refined without labels (transductive).",
    )
    documented = docstring_parser.parse(TrainConfig.__doc__ or "").params
    described = {parameter.arg_name: parameter.description for parameter in documented}
    defaults = TrainConfig()
    for name, hint in get_type_hints(TrainConfig).items():
        if name not in ("method", "seed"):
            kind = {"action": ActionYesNo(no_prefix="no-")} if hint is bool else {"type": hint}
            parser.add_argument(
                "--" + name.replace("_", "-"),
                **kind,
                default=getattr(defaults, name),
                help=described[name],
            )
    return parser


@dataclass(frozen=True)
class Command:
    """What a command line asks for: the configuration of every training, and the rest."""

    configs: list[TrainConfig]
    folder: Path
    trackers: list[str]
    refine: bool = False


def parse(argv: list[str], description: str | None = None) -> Command:
    """Understand a command line.

    Later wins: the dataset's base.yaml, the YAML of the method, ``--config`` files, options.

    Raises:
        ValueError: If ``--resume`` names no run folder, or comes with other options.
    """
    parser = make_parser(description)
    argv = configs_first(lists([dashes(word) for word in argv]))
    options = parser.parse_args(argv)
    if options.resume is not None:
        if len(argv) != 1 + (argv[0] == "--resume"):
            parser.error("expected no other options with --resume: the run folder has them")
        return read_command(Path(options.resume))
    methods, seeds, trackers = (
        v if isinstance(v, list) else [v] for v in (options.method, options.seed, options.log)
    )
    if not methods or not seeds:
        parser.error("expected at least one --method and one --seed")
    configs = []
    for method in methods:
        defaults = [CONFIGS / options.dataset / f"{n}.yaml" for n in ["base", *method.split("+")]]
        files = [w for path in defaults if path.is_file() for w in ("--config", str(path))]
        values = parser.parse_args([*files, *argv]).as_dict()
        for name in ("config", "method", "seed", "output_dir", "log", "resume", "refine"):
            values.pop(name, None)
        configs += [from_values({**values, "method": method, "seed": s}) for s in seeds]
    name = f"{options.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    return Command(
        configs, Path(options.output_dir or Path("runs") / name), trackers, options.refine
    )


def write_command(command: Command) -> None:
    """Keep in the run folder what ``--resume`` needs."""
    configs = [dataclasses.asdict(config) for config in command.configs]
    content = {"configs": configs, "log": command.trackers, "refine": command.refine}
    write_text(command.folder / COMMAND_FILE, yaml.safe_dump(content, sort_keys=False))


def read_command(folder: Path) -> Command:
    """The command that a run folder was made by.

    Raises:
        ValueError: If the folder does not say.
    """
    path = folder / COMMAND_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        configs = [from_values(values) for values in content["configs"]]
        return Command(configs, folder, list(content["log"]), bool(content.get("refine")))
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"Expected argument `--resume` to name a run folder, but {path} does not say what was "
            f"run ({reason})"
        ) from error


def from_values(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, as config.yaml holds them."""
    for name, hint in get_type_hints(TrainConfig).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values = {**values, name: hint(**values.get(name, {}))}
    return TrainConfig(**values)


def dashes(word: str) -> str:
    """``--batch_size`` is accepted for ``--batch-size``, ``--dybgr.num-iterations`` likewise."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    first, dot, rest = name[2:].partition(".")
    return f"--{first.replace('_', '-')}{dot}{rest.replace('-', '_')}{equals}{value}"


def lists(argv: list[str]) -> list[str]:
    """``--method none dybgr`` as the one word ``--method=[none,dybgr]``; so for all LISTS."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        values = []
        while word in LISTS and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        words.append(f"{word}=[{','.join(values)}]" if values else word)
    return words


def configs_first(argv: list[str]) -> list[str]:
    """Options on the command line win over ``--config`` files, wherever these stand."""
    files, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            files += [word, next(words, "")]
        elif word.startswith("--config="):
            files.append(word)
        else:
            rest.append(word)
    return files + rest
