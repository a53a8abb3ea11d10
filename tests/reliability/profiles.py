"""How long hypothesis searches: always the same few examples in CI, many more on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings

Test = TypeVar("Test", bound=Callable[..., Any])


def searched(short: int, long: int) -> list[Any]:
    """Parameters ``search`` of a test: ``short`` examples, and ``long`` behind the marker."""
    return [
        pytest.param(profile(short, True), id="short"),
        pytest.param(profile(long, False), id="long", marks=pytest.mark.reliability),
    ]


def profile(examples: int, fixed: bool) -> settings:
    """The same examples every time if ``fixed``, and no limit on time."""
    return settings(
        max_examples=examples,
        derandomize=fixed,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
