"""Tensors from files, read without running anything in them, and strictly into modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_WRAPPERS = ("params", "state_dict", "model")  # keys under which training scripts keep the weights


def read_state_dict(path: str | Path, argument: str = "weights") -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote.

    Pickled code is refused, never run, and so are values that are not finite.

    Args:
        path: The file.
        argument: What the caller's user knows it as, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as tensors only, or one holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected argument `{argument}` to be a file, but found none: {path}"
        )
    try:
        if path.suffix == ".safetensors":
            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise errors of many kinds
        raise ValueError(
            f"Expected argument `{argument}` to be a file with tensors only, but {path} cannot be "
            f"read: {type(error).__name__}"
        ) from error
    return unwrap_state_dict(saved, f"Expected argument `{argument}`", str(path))


def unwrap_state_dict(saved: Any, expected: str, source: str = "") -> dict[str, Tensor]:
    """Find the state dict in what a training script saved: under ``params``, ``state_dict`` or
    ``model``, with the ``module.`` that DistributedDataParallel puts before every name.

    Example:
        >>> unwrap_state_dict({"params": {"module.x": torch.ones(1)}, "epoch": 3}, "Expected")
        {'x': tensor([1.])}

    Raises:
        ValueError: If there is none, or a tensor of it is not finite; the message is
            ``expected``, the problem and ``source``.
    """
    for key in _WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise ValueError(f"{expected} to hold a state dict of tensors: {source or type(saved)}")
    for name, tensor in saved.items():
        if not isinstance(name, str):
            raise ValueError(f"{expected} to name its tensors by text, but got {name!r}: {source}")
        try:
            finite = bool(tensor.isfinite().all())
        except RuntimeError as error:  # sparse, quantised, on the meta device, of one byte
            raise ValueError(
                f"{expected} to hold plain tensors, but {name!r} is {tensor.dtype}, "
                f"{tensor.layout}, on {tensor.device}: convert it to float32 {source}"
            ) from error
        if not finite:
            raise ValueError(
                f"{expected} to be finite, but tensor {name!r} holds NaN or infinity: take an "
                f"earlier checkpoint {source}"
            )
    return {name.removeprefix("module."): tensor for name, tensor in saved.items()}


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], expected: str, prefix: str = ""
) -> None:
    """Copy ``state`` into ``module``, strictly: no tensor is missing or left over.

    Args:
        module: Where to.
        state: Tensors by the module's own names.
        expected: How the message begins.
        prefix: Put before every name in the message.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape; they are named.
    """
    wanted = module.state_dict()
    problems = {
        "missing": [prefix + n for n in wanted if n not in state],
        "unexpected": [prefix + n for n in state if n not in wanted],
        "of another shape": [
            f"{prefix}{n} {list(state[n].shape)} instead of {list(tensor.shape)}"
            for n, tensor in wanted.items()
            if n in state and state[n].shape != tensor.shape
        ],
    }
    found = [
        f"{len(names)} {problem} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"{expected}, but of its tensors {'; '.join(found)}")
    module.load_state_dict(state)
