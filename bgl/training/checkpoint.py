"""Checkpoints from which an interrupted run resumes bit for bit."""

from __future__ import annotations

import dataclasses
import io
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bgl import models
from bgl._io import write_pickle
from bgl.models import Encoder
from bgl.training.distributed import on_first_process, process_index

CHECKPOINT_FILE = "checkpoint.pt"
Row = dict[str, Any]


class Options(Protocol):
    """What a checkpoint asks of a configuration."""

    @property
    def checkpoint_minutes(self) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...

    def check_stored(self, stored: dict[str, Any], place: Path) -> None: ...


@dataclass
class Position:
    """How far a run has come."""

    history: list[Row] = field(default_factory=list)  # a row for every finished epoch
    step: int = 0  # steps done in the running epoch
    row: Row = field(default_factory=dict)  # of the running epoch, once it has begun
    sums: dict[str, float] = field(default_factory=dict)  # of its losses, over its good steps
    seconds: float = 0.0


class Checkpoint:
    """The file of a run folder from which an interrupted run resumes bit for bit.

    Args:
        folder: The run folder, which the first of several processes alone reads and writes.
        config: What is trained.
        digest: Of the data, :attr:`bgl.datasets.Splits.digest`.
        parts: What has a ``state_dict``, by name.
        encoder: The model that is measured.

    Attributes:
        weights: Those of the chosen epoch so far, in the first process. They are a part of the
            checkpoint, so that it never disagrees with them, whenever the run is killed.
    """

    def __init__(
        self,
        folder: Path,
        config: Options,
        digest: str,
        parts: dict[str, Any],
        encoder: Encoder,
    ) -> None:
        self.folder = folder
        self.path = folder / CHECKPOINT_FILE
        self.config = config
        self.digest = digest
        self.parts = parts
        self.encoder = encoder
        self.weights: dict[str, Tensor] = {}
        self._started = time.perf_counter()
        self._written = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has taken, in this process and in those that it resumes."""
        return time.perf_counter() - self._started

    @property
    def is_due(self) -> bool:
        """Whether the last one is as old as ``config.checkpoint_minutes``."""
        return time.monotonic() - self._written >= 60 * self.config.checkpoint_minutes

    def save(self, position: Position) -> None:
        """Write everything a run needs to resume bit for bit.

        Raises:
            OSError: If it cannot be written; an earlier checkpoint is left as it was.
        """
        position.seconds = self.seconds
        if process_index() == 0:
            state = {
                "config": self.config.to_dict(),
                "digest": self.digest,
                "position": dataclasses.asdict(position),
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "weights": self.weights,
                "random": random_state(self.encoder.device),
            }
            write_pickle(self.path, state)
            if self.weights:  # the best model so far, for whoever does not go on
                models.save(self.weights, self.folder, self.encoder.config)
        self._written = time.monotonic()

    def load(self) -> Position | None:
        """Restore it, and return how far the run has come; None if there is none.

        The first process reads it for all of them.

        Raises:
            ValueError: If it belongs to another configuration or to other data, or cannot be read.
        """
        path = self.path
        content = on_first_process(lambda: path.read_bytes() if path.exists() else None)
        if content is None:
            return None
        try:
            file = io.BytesIO(content)
            state = torch.load(file, map_location="cpu", weights_only=True)
            stored, stored_digest = dict(state["config"]), str(state["digest"])
            position = Position(**state["position"])
            self.weights = dict(state["weights"])
        except Exception as error:  # the reader raises errors of many kinds
            raise self._damaged(error) from error
        self.config.check_stored(stored, path)
        check_digest(self.digest, stored_digest, path)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            restore_random_state(state["random"], self.encoder.device)
        except Exception as error:  # as above: a part or a tensor is missing or damaged
            raise self._damaged(error) from error
        self._started = time.perf_counter() - position.seconds
        return position

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(
            f"Expected {self.path} to be a checkpoint of this version, but it cannot be read "
            f"({type(error).__name__}); remove it to train from the start"
        )


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
        "numpy": (torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all global generators to what :func:`random_state` found, that of ``device`` too."""
    random.setstate(state["python"])
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
