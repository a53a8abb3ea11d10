"""What an interrupted training needs to go on bit by bit."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgl._io import write_pickle
from bgl.training.config import TrainConfig

CHECKPOINT_FILE = "checkpoint.pt"
Row = dict[str, Any]


@dataclass
class Position:
    """How far a training has come."""

    history: list[Row] = field(default_factory=list)  # a row for every finished epoch
    step: int = 0  # steps done in the running epoch
    row: Row = field(default_factory=dict)  # of the running epoch, as far as it is known
    sums: dict[str, float] = field(default_factory=dict)  # of its losses, over its good steps
    seconds: float = 0.0


def save_checkpoint(
    path: Path, config: TrainConfig, parts: dict[str, Any], position: Position
) -> None:
    """Everything a training needs to go on bit by bit.

    Raises:
        OSError: If it cannot be written; an earlier checkpoint is left as it was.
    """
    state = {
        "config": config.to_dict(),
        "position": dataclasses.asdict(position),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": random_state(),
    }
    write_pickle(path, state)


def load_checkpoint(path: Path, config: TrainConfig, parts: dict[str, Any]) -> Position:
    """Restore a checkpoint; returns how far it had come.

    Raises:
        ValueError: If it belongs to another configuration, or cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, position = state["config"], Position(**state["position"])
    except Exception as error:  # the reader raises errors of many kinds
        raise ValueError(
            f"Expected {path} to be a checkpoint of this version, but it cannot be read "
            f"({type(error).__name__}); remove it to train from the start"
        ) from error
    config.check_stored(stored, path)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    restore_random_state(state["random"])
    return position


def random_state() -> dict[str, Any]:
    """The states of all global generators, in types that load without running code."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - losses may draw from it
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(numpy_state[1].copy()), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all global generators to what :func:`random_state` found."""
    random.setstate(state["python"])
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
