"""What an interrupted training needs to go on bit by bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bgl._io import atomic_path
from bgl.training.config import TrainConfig


def save_checkpoint(
    path: Path, config: TrainConfig, parts: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """Everything a training needs to go on bit by bit."""
    state = {
        "config": dataclasses.asdict(config),
        "history": history,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": torch.get_rng_state(),  # the only generator that training draws from
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, config: TrainConfig, parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Restore a checkpoint; returns the history so far.

    Raises:
        ValueError: If it belongs to another configuration.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    config.check_stored(state["config"], path)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    history: list[dict[str, Any]] = state["history"]
    return history
