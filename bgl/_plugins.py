"""Modules with parts of your own, imported because the command line asks for them by name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def import_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Import the modules that ``--plugin MODULE`` names, from the current folder as well.

    Returns:
        The words without these options, and the modules' names.

    Raises:
        ValueError: If there is no such module.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    try:
        options, words = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ValueError(f"Expected --plugin MODULE, but {error}") from error
    if options.plugin and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in options.plugin:
        _import(name)
    return words, options.plugin


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):
            raise  # what the module itself imports is missing
        raise ValueError(
            "Expected --plugin to name a Python module (my_module for my_module.py in this "
            f"folder), but got {name!r}: {error}"
        ) from error
