"""Files of plain values as typed records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from bgl._io import read_json, read_yaml

Record = TypeVar("Record")


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """Read a JSON or YAML file that holds a record.

    Args:
        path: The file; its suffix says which of the two it is.
        kind: A TypedDict, or a dataclass, which is made of it.
        remedy: What to do if it holds anything else.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it does not hold such a record; the message names the file and the entry.
    """
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from error
    if fault := misfit(content, kind):
        raise ValueError(f"Expected {path} to be written by bgl, but {fault}: {remedy}")
    if not dataclasses.is_dataclass(kind):
        return content
    try:
        return kind(**content)
    except (TypeError, ValueError) as error:  # an entry that it does not have, or its own checks
        raise ValueError(f"Expected {path} to be written by bgl, but {error}: {remedy}") from error


def misfit(value: object, hint: Any, name: str = "it") -> str | None:
    """Say what of a plain value, as JSON and YAML give it, is not of an annotated type.

    Example:
        >>> misfit({"a": [1, "x"]}, dict[str, list[int]])
        "its a.1 is 'x'"
    """
    origin, arguments = get_origin(hint), get_args(hint)
    inside: list[tuple[str, object, Any]] = []
    if hint is Any:
        return None
    if origin in (Union, UnionType):
        faults = [misfit(value, kind, name) for kind in arguments]
        return None if None in faults else faults[0]
    needed = required(hint)
    if needed is not None and isinstance(value, dict):
        if missing := sorted(needed - value.keys()):
            return f"{name} has no {missing[0]}"
        hints = get_type_hints(hint)
        inside = [(key, value[key], kind) for key, kind in hints.items() if key in value]
    elif origin is dict and isinstance(value, dict):
        inside = [(str(key), item, arguments[1]) for key, item in value.items()]
        if odd := [key for key in value if not isinstance(key, arguments[0])]:
            return f"{name} has the key {odd[0]!r}"
    elif origin is list and isinstance(value, list):
        inside = [(str(place), item, arguments[0]) for place, item in enumerate(value)]
    else:
        plain = (int, float) if hint is float else hint
        fits = origin is None and needed is None and isinstance(value, plain)
        if not fits or (isinstance(value, bool) and hint is not bool):
            return f"{name} is {str(value)[:40]!r}"
    for key, item, kind in inside:
        below = f"its {key}" if name == "it" else f"{name}.{key}"
        if fault := misfit(item, kind, below):
            return fault
    return None


def required(kind: Any) -> set[str] | None:
    """Return the entries that a record must have; None if this is no record."""
    if is_typeddict(kind):
        return set(kind.__required_keys__)
    if not dataclasses.is_dataclass(kind):
        return None
    missing = dataclasses.MISSING
    defaults = {
        each.name: (each.default, each.default_factory) for each in dataclasses.fields(kind)
    }
    return {name for name, given in defaults.items() if given == (missing, missing)}
