"""Optional packages: what to install when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages that only the extra ``bgl[name]`` installs.

    Example:
        >>> with extra("plot"):
        ...     import no_such_plotting_package
        Traceback (most recent call last):
        ImportError: no_such_plotting_package is not installed: pip install 'bgl[plot]'

    Raises:
        ImportError: If a package is missing; the message names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "bgl":
            raise  # our own mistake
        raise ImportError(
            f"{error.name} is not installed: pip install 'bgl[{name}]'", name=error.name
        ) from error
