"""Shared fixtures: one thread (as in CI) and the reference arrays in ``tests/goldens``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

if sys.platform == "win32":  # which has neither fork nor the signals of these
    names = ("test_interruptions.py", "test_loading.py", "test_processes.py")
    collect_ignore = [f"reliability/{name}" for name in names]

GOLDENS = Path(__file__).parent / "goldens"
Golden = dict[str, Tensor]

torch.set_num_threads(1)
# Autograd starts a thread for each device at its first use; with threads, no test could fork. Under
# FakeTensorMode it sees devices that are not there, so that must not be the first use.
torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Load the arrays of a reference case by name; a missing file fails the test."""

    def load(name: str) -> Golden:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load
