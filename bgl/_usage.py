"""What the command line says before anything slow is imported: help, and mistyped options."""

from __future__ import annotations

import argparse
import ast
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TextIO

#: Options of a whole run; those of its models are the fields of TrainConfig.
RUN_OPTIONS = {
    "config": "YAML file with any options; several: in turn.",
    "recipe": "Settings by name: plain (no graph, the default) or graph (one DyBGR block); or "
    "a system as published: dybgr, "
    "bgformer-128, bgformer-384, hyp-vit, hyp-dino, contrastive-googlenet, ms-googlenet, "
    "triplet-googlenet, iaa-contrastive-googlenet, iaa-ms-googlenet, iaa-ms-resnet50 or "
    "iaa-triplet-googlenet. Other options change it.",
    "quick": "A tour, not a measurement: two short epochs on some images of 48 px, table and page.",
    "method": 'Methods to train, one after the other: "none", or blocks joined by "+" '
    "(default: none; on the emoji none and dybgr).",
    "seed": "Seeds, one run each.",
    "seeds": "The same as --seed.",
    "output_dir": "Run folder; default: a new one in runs/. What is finished there is not trained "
    "again, and new rows are added.",
    "log": 'Trackers of accelerate to log to, for instance "tensorboard".',
    "resume": "Run folder to continue, as it was begun.",
    "plugin": "Module with blocks, losses, datasets … of your own, imported first.",
    "refine": "Add rows with embeddings refined without labels (transductive).",
    "pixels": "Measure raw pixels too, a row to compare with; "
    "default: where few images are tested.",
}

#: The options that people use most; --help-all has the others.
COMMON = {
    "data": ("dataset", "data_root", "table", "val_fraction", "resplit", "skip_broken"),
    "model": ("recipe", "method", "backbone", "image_size", "loss", "augmentation"),
    "training": ("epochs", "batch_size", "per_class", "lr", "seed"),
    "run": ("quick", "output_dir", "resume", "config", "log", "device", "workers"),
}

VALUES = {
    "data_root": "DIR",
    "output_dir": "DIR",
    "resume": "DIR",
    "table": "CSV",
    "config": "YAML",
}

DESCRIPTION = """\
Train an encoder, with or without a batch graph, and measure it on classes that it has not seen.

  bgl train --quick                                a tour on the packaged emoji, two minutes
  bgl train                                        the same, to measure: without and with a graph
  bgl train --dataset folder --data-root photos    your images: photos/CLASS/*.jpg
"""


def option(name: str) -> str:
    """Return the option of an argument.

    Example:
        >>> option("data_root")
        '--data-root'
    """
    return "--" + name.replace("_", "-")


def dashes(word: str) -> str:
    """Write ``--batch_size`` as ``--batch-size``, and ``--dybgr.num-iterations`` with a "_"."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    first, dot, rest = name[2:].partition(".")
    return f"--{first.replace('_', '-')}{dot}{rest.replace('-', '_')}{equals}{value}"


@cache
def train_fields() -> dict[str, tuple[str, str]]:
    """Read the fields of TrainConfig, their defaults and descriptions, off its source.

    To import it takes seconds, as it needs torch.
    """
    source = (Path(__file__).parent / "training" / "config.py").read_text(encoding="utf-8")
    (node,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainConfig"
    )
    text = (ast.get_docstring(node) or "").partition("Args:\n")[2]
    described = {
        match["name"]: " ".join(match["text"].split())
        for match in re.finditer(r"^    (?P<name>\w+): (?P<text>.*(?:\n {5,}.*)*)", text, re.M)
    }
    return {
        item.target.id: (ast.unparse(item.value), described[item.target.id])
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value
    }


def check_train_words(words: Sequence[str]) -> None:
    """Answer --help of ``bgl train``, and refuse options that it does not have.

    Options of blocks (``--dybgr.k``) are left to the parser, which knows the plugins' as well.

    Raises:
        SystemExit: After the help.
        ValueError: If there is no such option.
    """
    if {"--help", "-h"} & set(words):
        _train_help().print_help()
        raise SystemExit(0)
    names = [*RUN_OPTIONS, *train_fields()]
    known = [option(name) for name in [*names, "help", "help_all"]]
    known += [f"--no-{name[2:]}" for name in known]
    check_options([word for word in words if "." not in word.partition("=")[0]], known, "bgl train")


def _train_help() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bgl train",
        usage="bgl train [options]",
        description=DESCRIPTION,
        epilog="bgl train --help-all lists every option, those of each block among them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    fields = train_fields()
    for title, names in COMMON.items():
        group = parser.add_argument_group(title)
        for name in names:
            default, text = fields.get(name, ("None", RUN_OPTIONS.get(name, "")))
            text = RUN_OPTIONS.get(name, text)
            if name not in RUN_OPTIONS and default not in ("None", "False"):
                text = f"{text.rstrip('.')} (default: {ast.literal_eval(default)})."
            number = isinstance(ast.literal_eval(default), int | float) or name == "seed"
            flag: dict[str, Any] = {"metavar": VALUES.get(name, "N" if number else "NAME")}
            if default == "False" or name == "quick":
                flag = {"action": "store_true"}
            group.add_argument(option(name), **flag, help=text.replace("%", "%%"))
    return parser


def check_options(words: Iterable[str], known: Iterable[str], command: str) -> None:
    """Raise a ValueError for the first option that is not known, with the nearest that is."""
    names = list(known)
    for word in words:
        name = dashes(word).partition("=")[0]
        if not word.startswith("--") or word == "--" or name in names:
            continue
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"There is no option {name}: {hint}{command} --help lists the options")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option that was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        check_options(rest, self._option_string_actions, self.prog)
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help says what it takes")


def as_on_the_command_line(text: str) -> str:
    """Name options as they are typed, where a message of the library names arguments.

    Example:
        >>> as_on_the_command_line("Expected argument `batch_size` (--batch-size) to fit, got 3")
        'Expected --batch-size to fit, got 3'
        >>> as_on_the_command_line("Expected argument `lr` to be a number, got 'x'")
        "Expected --lr to be a number, got 'x'"
    """
    options = {*RUN_OPTIONS, *train_fields()}

    def typed(match: re.Match[str]) -> str:
        if match["option"]:
            return match["option"]
        return option(match["name"]) if match["name"] in options else f"`{match['name']}`"

    pattern = r"(?:argument )?`(?P<name>\w+)`(?: \((?P<option>--[\w-]+)\))?"
    return re.sub(pattern, typed, " ".join(text.split()))


@contextmanager
def notes() -> Iterator[None]:
    """Show what the library warns of as one line each, and nothing of what others warn of."""
    own = str(Path(__file__).parent)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        foreign = "site-packages" in filename and not filename.startswith(own)
        if foreign or issubclass(category, (FutureWarning, DeprecationWarning)):
            return
        print(" ".join(f"note: {message}".split()), file=sys.stderr if file is None else file)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
