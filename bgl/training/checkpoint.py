"""Checkpoints from which an interrupted run resumes bit for bit."""

from __future__ import annotations

import dataclasses
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgl._io import write_pickle
from bgl.training.config import TrainConfig
from bgl.training.distributed import on_first_process

CHECKPOINT_FILE = "checkpoint.pt"
Row = dict[str, Any]


@dataclass
class Position:
    """How far a run has come."""

    history: list[Row] = field(default_factory=list)  # a row for every finished epoch
    step: int = 0  # steps done in the running epoch
    row: Row = field(default_factory=dict)  # of the running epoch, as far as it is known
    sums: dict[str, float] = field(default_factory=dict)  # of its losses, over its good steps
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    config: TrainConfig,
    digest: str,
    parts: dict[str, Any],
    position: Position,
    device: torch.device,
) -> None:
    """Write everything a run needs to resume bit for bit.

    Args:
        path: File to write.
        config: What is trained.
        digest: Of the data, :attr:`bgl.datasets.Splits.digest`.
        parts: What has a ``state_dict``, by name.
        position: How far the run has come.
        device: Where this process trains.

    Raises:
        OSError: If it cannot be written; an earlier checkpoint is left as it was.
    """
    state = {
        "config": config.to_dict(),
        "digest": digest,
        "position": dataclasses.asdict(position),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": random_state(device),
    }
    write_pickle(path, state)


def load_checkpoint(
    path: Path, config: TrainConfig, digest: str, parts: dict[str, Any], device: torch.device
) -> Position | None:
    """Restore a checkpoint, and return how far the run has come; None if there is none.

    The first process reads it for all of them.

    Raises:
        ValueError: If it belongs to another configuration or to other data, or cannot be read.
    """

    def damaged(error: Exception) -> ValueError:
        return ValueError(
            f"Expected {path} to be a checkpoint of this version, but it cannot be read "
            f"({type(error).__name__}); remove it to train from the start"
        )

    content = on_first_process(lambda: path.read_bytes() if path.exists() else None)
    if content is None:
        return None
    try:
        file = io.BytesIO(content)
        state = torch.load(file, map_location="cpu", weights_only=True)
        stored, stored_digest = dict(state["config"]), str(state["digest"])
        position = Position(**state["position"])
    except Exception as error:  # the reader raises errors of many kinds
        raise damaged(error) from error
    config.check_stored(stored, path)
    check_digest(digest, stored_digest, path)
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        restore_random_state(state["random"], device)
    except Exception as error:  # as above: a part or a tensor is missing or damaged
        raise damaged(error) from error
    return position


def check_digest(digest: str, stored: str, place: Path) -> None:
    """Refuse what was stored at ``place`` for other data.

    Raises:
        ValueError: If the digests differ.
    """
    if digest != stored:
        raise ValueError(
            f"Expected the data that {place} was made from (digest {stored}), but got other data "
            f"({digest}): images or classes were added, removed or renamed. Restore them to go "
            "on, or train anew with another --output-dir"
        )


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators, in types that load without running code.

    Of GPUs, that of ``device`` alone: processes that train together draw the same there, each on
    its own, whatever its number.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - losses may draw from it
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(numpy_state[1].copy()), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all global generators to what :func:`random_state` found, that of ``device`` too."""
    random.setstate(state["python"])
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
