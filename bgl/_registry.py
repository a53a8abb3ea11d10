"""Parts that a run can be pointed at by name, and how others add theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Parts of one kind by name.

    Args:
        kind: What the parts are, for messages, such as "block".
        members: Parts that are known from the start.

    Example:
        >>> shapes = Registry("shape", {"square": lambda side: side**2})
        >>> @shapes.register("cube")
        ... def cube(side):
        ...     return side**3
        >>> shapes["cube"](2), list(shapes)
        (8, ['square', 'cube'])
    """

    def __init__(self, kind: str, members: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._members: dict[str, T] = dict(members or {})

    def register(self, name: str) -> Callable[[T], T]:
        """Make the decorated class or function known as ``name``, and return it as it is.

        Raises:
            ValueError: If the name is taken by another part, or is not letters, digits, "-" and
                "_", beginning with a letter.
        """
        if not isinstance(name, str) or not _is_name(name):
            raise ValueError(
                f"Expected argument `name` of a {self.kind} to be letters, digits, '-' and '_', "
                f"beginning with a letter, but got {name!r}"
            )

        def keep(part: T) -> T:
            known = self._members.get(name)
            if known is not None and _origin(known) != _origin(part):
                raise ValueError(
                    f"Expected argument `name` to be a new name for a {self.kind}, but {name!r} "
                    f"is {'.'.join(_origin(known))}: choose another one"
                )
            self._members[name] = part  # anew where a module is imported once more
            return part

        return keep

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            close = get_close_matches(str(name), self._members, n=1)
            raise ValueError(
                f"Expected a {self.kind} by one of the names {', '.join(self._members)}, but got "
                f"{name!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
                + f" Your own {self.kind} is known once its module is imported (--plugin MODULE)"
            )
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def resolve_options(make: Callable[..., Any], given: Mapping[str, Any], skip: int) -> dict[str, Any]:
    """All options of a part: those given, and the defaults of its constructor.

    Args:
        make: The constructor, or a function that builds the part.
        given: Options by name.
        skip: How many leading parameters are no options, such as the number of channels.

    Raises:
        ValueError: If it has no such option, or one without a default is missing.
    """
    parameters = list(signature(make).parameters.values())[skip:]
    known = {p.name: p.default for p in parameters if p.kind is not Parameter.VAR_KEYWORD}
    unknown = sorted(given.keys() - known.keys())
    missing = [n for n, default in known.items() if default is Parameter.empty and n not in given]
    name = getattr(make, "__name__", repr(make))
    if unknown:
        raise ValueError(
            f"Expected the options of {name} to be among {', '.join(known) or 'none'}, but got "
            f"{', '.join(unknown)}"
        )
    if missing:
        raise ValueError(f"Expected the options of {name} to hold {', '.join(missing)}")
    return {**known, **given}


def _is_name(name: str) -> bool:
    return name[:1].isalpha() and all(c.isalnum() or c in "-_" for c in name) and name.isascii()


def _origin(part: object) -> tuple[str, str]:
    """The module and name that a class or function was defined by."""
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", repr(part))
