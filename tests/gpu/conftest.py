"""Tests that need a GPU; ``--device cpu --small`` tries them without one."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only where this folder is named on the command line: elsewhere the defaults count."""
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"))
    parser.addoption("--small", action="store_true", help="tiny sizes: does everything run?")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    found = torch.device(request.config.getoption("device", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if found.type == "cuda":
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # the CPU computes what is expected
    return found


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("small", False))
