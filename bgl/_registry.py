"""Parts that a run can be pointed at by name, and how others add theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, TypeVar

T = TypeVar("T")

_TAKEN: dict[str, str] = {}  # what stands at the top of a configuration, and what it is


def reserve(names: Iterable[str], owner: str) -> None:
    """Keep names of a configuration for one owner, such as "the name of a block".

    Raises:
        ValueError: If one of them belongs to another.
    """
    for name in names:
        if _TAKEN.setdefault(name, owner) != owner:
            raise ValueError(
                f"Expected {owner} to be a new one, but {name!r} is {_TAKEN[name]}: choose another"
            )


class Registry(Mapping[str, T]):
    """Builders of one kind of part, by name.

    A builder is a class or a function. The pipeline fills its first parameters; the others are
    its options, each with a default, and become options of the command line.

    Args:
        kind: What the parts are, for messages, such as "block".
        leading: How many parameters the pipeline fills.
        members: Builders that are known from the start.
        grouped: Whether the options of a part are a group of its name, as in ``--dybgr.k``.

    Example:
        >>> shapes = Registry("shape", 1, {"square": lambda side: side**2})
        >>> @shapes.register("box")
        ... def box(side, height=1):
        ...     return side**2 * height
        >>> shapes["box"](2), list(shapes), shapes.resolve("box", {"height": 3})
        (4, ['square', 'box'], {'height': 3})
    """

    def __init__(
        self,
        kind: str,
        leading: int,
        members: Mapping[str, T] | None = None,
        grouped: bool = False,
    ) -> None:
        self.kind = kind
        self.leading = leading
        self.grouped = grouped
        self._members: dict[str, T] = dict(members or {})
        if grouped:
            reserve(self._members, f"the name of a {kind}")

    def register(self, name: str) -> Callable[[T], T]:
        """Make the decorated class or function known as ``name``, and return it as it is.

        Raises:
            ValueError: If the name is taken by another part or an option of a run, or is not
                lower-case letters and digits, joined by "-" where options have no group; or an
                option has no default.
        """
        allowed = "[a-z][a-z0-9]*" if self.grouped else "[a-z][a-z0-9]*(-[a-z0-9]+)*"
        if not isinstance(name, str) or not re.fullmatch(allowed, name):
            raise ValueError(
                f"Expected the name of a {self.kind} to be lower-case letters and digits"
                f"{'' if self.grouped else ', joined by -'}, beginning with a letter, but got "
                f"{name!r}"
            )

        def keep(part: T) -> T:
            known = self._members.get(name)
            if known is not None and _origin(known) != _origin(part):
                raise ValueError(
                    f"Expected argument `name` to be a new name for a {self.kind}, but {name!r} "
                    f"is {'.'.join(_origin(known))}: choose another one"
                )
            bare = [key for key, value in self._options(part).items() if value is Parameter.empty]
            if bare:
                raise ValueError(
                    f"Expected every option of the {self.kind} {name!r} to have a default, but "
                    f"{', '.join(bare)} has none: give it one"
                )
            if self.grouped:
                reserve([name], f"the name of a {self.kind}")
            self._members[name] = part  # anew where a module is imported once more
            return part

        return keep

    def check(self, name: str, argument: str) -> str:
        """Return ``name``.

        Raises:
            ValueError: If there is no part of that name; the message names the argument.
        """
        if name not in self._members:
            raise ValueError(self._unknown(name, argument))
        return name

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a part, with their defaults."""
        return self._options(self[name])

    def resolve(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the options of a part with their defaults.

        Raises:
            ValueError: If there is no such part, or it has no such option.
        """
        known = self.options(name)
        if not isinstance(given, Mapping):
            raise ValueError(
                f"Expected argument `{name}` to hold options by name, but got {given!r:.80}"
            )
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"Expected the options of the {self.kind} {name!r} to be among "
                f"{', '.join(known) or 'none'}, but got {', '.join(map(str, unknown))}"
            )
        return {**known, **given}

    def _options(self, part: Any) -> dict[str, Any]:
        several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        found = list(signature(part).parameters.values())[self.leading :]
        return {p.name: p.default for p in found if p.kind not in several}

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            raise ValueError(self._unknown(name, self.kind))
        return self._members[name]

    def _unknown(self, name: object, argument: str) -> str:
        close = get_close_matches(str(name), self._members, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return (
            f"Expected argument `{argument}` to be the name of a {self.kind} "
            f"({', '.join(self._members)}), but got {name!r}: {hint}"
            f"a {self.kind} of your own is known once its module is imported (--plugin MODULE)"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _origin(part: object) -> tuple[str, str]:
    """Return the module and name that a class or function was defined by."""
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", repr(part))
