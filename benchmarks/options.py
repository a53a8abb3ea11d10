"""The command line of the benchmarks: every field of TrainConfig, from YAML files and options."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

from bgl.training import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"


def make_parser(description: str | None = None) -> ArgumentParser:
    """One option per field of TrainConfig, beside those of a whole run."""
    parser = ArgumentParser(prog="run.py", description=description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any options.")
    parser.add_argument(
        "--method",
        default=["none", "dybgr"],
        type=list[str] | str,
        help='Methods to train, one after the other: "none", or blocks joined by "+".',
    )
    parser.add_argument("--seed", default=[0], type=list[int] | int, help="Seeds, one run each.")
    parser.add_argument(
        "--output-dir", default=None, type=str | None, help="Run folder; default: runs/<new name>."
    )
    parser.add_argument(
        "--log",
        default=[],
        type=list[str] | str,
        help='Trackers of accelerate to log to, for instance "tensorboard".',
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


def parse(argv: list[str], description: str | None = None) -> tuple[list[TrainConfig], Path]:
    """The configuration of every training, and the run folder.

    Later wins: the dataset's base.yaml, the YAML of the method, ``--config`` files, options.
    """
    parser = make_parser(description)
    argv = configs_first(lists([dashes(word) for word in argv]))
    options = parser.parse_args(argv)
    methods, seeds = (v if isinstance(v, list) else [v] for v in (options.method, options.seed))
    if not methods or not seeds:
        parser.error("expected at least one --method and one --seed")
    configs = []
    for method in methods:
        defaults = [CONFIGS / options.dataset / f"{n}.yaml" for n in ["base", *method.split("+")]]
        files = [w for path in defaults if path.is_file() for w in ("--config", str(path))]
        values = parser.parse_args([*files, *argv]).as_dict()
        for name in ("config", "method", "seed", "output_dir", "log"):
            values.pop(name, None)
        configs += [from_values({**values, "method": method, "seed": s}) for s in seeds]
    name = f"{options.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    return configs, Path(options.output_dir or Path("runs") / name)


def parse_trackers(argv: list[str]) -> list[str]:
    """The trackers of ``--log``, of a command line that :func:`parse` accepts."""
    names = make_parser().parse_args(configs_first(lists([dashes(word) for word in argv]))).log
    return [names] if isinstance(names, str) else list(names)


def from_values(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, as config.yaml holds them."""
    for name, hint in get_type_hints(TrainConfig).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values = {**values, name: hint(**values[name])}
    return TrainConfig(**values)


def dashes(word: str) -> str:
    """``--batch_size`` is accepted for ``--batch-size``, ``--dybgr.num-iterations`` likewise."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    first, dot, rest = name[2:].partition(".")
    return f"--{first.replace('_', '-')}{dot}{rest.replace('-', '_')}{equals}{value}"


def lists(argv: list[str]) -> list[str]:
    """``--method none dybgr`` as the one word ``--method=[none,dybgr]``; ``--seed``, ``--log``."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        values = []
        while word in ("--method", "--seed", "--log") and rest and not rest[0].startswith("--"):
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
