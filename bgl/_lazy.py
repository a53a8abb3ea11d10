"""Public names that are imported when they are asked for: the command line starts sooner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, homes: dict[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: Its name.
        homes: The names that it offers, by the module that has them.
    """
    found = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in found:
            return getattr(import_module(found[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
