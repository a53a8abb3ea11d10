"""Argument checks shared by the whole package.

They look at types, ranks, shapes and dtypes only, which costs nothing on any device and leaves
``torch.compile(fullgraph=True)`` whole. Values (NaN, unknown labels) are checked where data
enters: in datasets, samplers, metrics and once per step of the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Looking at a number takes six bytes more for a while: so many are looked at together (100 MB).
CHECKED_NUMBERS = 2**24


def describe(value: Any) -> str:
    """Describe an offending value in short, for an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} numpy array of shape {list(value.shape)}"
    return repr(value)


def check_floating(x: Tensor, name: str, dims: str, ranks: Container[int]) -> None:
    """Raise unless ``x`` is a floating-point tensor of one of the ranks, in words ``dims``."""
    if not isinstance(x, Tensor) or x.dim() not in ranks or not x.is_floating_point():
        raise ValueError(
            f"Expected argument `{name}` to be a floating-point tensor of shape {dims}, "
            f"but got {describe(x)}"
        )


def check_matrix(x: Tensor, name: str = "x", dims: str = "[N, C]") -> None:
    """Raise unless ``x`` is a 2-D floating-point tensor."""
    check_floating(x, name, dims, (2,))


def as_tensor(values: Any, name: str) -> Tensor:
    """Convert numbers to a tensor; unlike PyTorch's errors, that of others names the argument."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected argument `{name}` to be a tensor of integers, or a list of them, "
            f"but got {describe(values)}"
        ) from error


def check_index_vector(v: Tensor, n: int, name: str) -> None:
    """Raise unless ``v`` is a 1-D integer tensor with ``n`` entries (labels, batch vectors)."""
    if (
        not isinstance(v, Tensor)
        or v.dim() != 1
        or v.is_floating_point()
        or v.is_complex()
        or v.dtype == torch.bool
    ):
        raise ValueError(
            f"Expected argument `{name}` to be an integer tensor of shape [N], "
            f"but got {describe(v)}"
        )
    if v.size(0) != n:
        raise ValueError(
            f"Expected argument `{name}` to have one entry per row ({n}), but got {v.size(0)}"
        )


def check_index_vectors(n: int, **vectors: Tensor | None) -> None:
    """Raise unless each of the vectors that are given has an integer for each of ``n`` samples."""
    for name, vector in vectors.items():
        if vector is not None:
            check_index_vector(vector, n, name)


def check_within(values: Tensor, name: str, low: int, high: int, kind: str = "integers") -> None:
    """Raise unless integers are from ``low`` to ``high``. Waits for the device."""
    if values.numel() == 0:
        return
    least, most = (int(value) for value in values.aminmax())
    if least < low or most > high:
        raise ValueError(
            f"Expected argument `{name}` to hold {kind} from {low} to {high}, but got values "
            f"from {least} to {most}"
        )


def check_edge_index(edge_index: Tensor, n: int) -> None:
    """Raise unless ``edge_index`` is an edge list [2, E] between ``n`` nodes.

    Numbers out of range would address a wrong pair. They are looked at on the CPU only, where
    that waits for nothing.
    """
    if (
        not isinstance(edge_index, Tensor)
        or edge_index.dim() != 2
        or edge_index.size(0) != 2
        or edge_index.dtype not in (torch.int64, torch.int32)
    ):
        raise ValueError(
            "Expected argument `edge_index` to be an integer tensor of shape [2, E], "
            f"but got {describe(edge_index)}"
        )
    if readable(edge_index):
        check_within(edge_index, "edge_index", 0, n - 1, "nodes")


def check_int(value: int, name: str, minimum: int) -> int:
    """Raise unless ``value`` is an integer ≥ ``minimum``; return it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(
            f"Expected argument `{name}` to be an integer ≥ {minimum}, got {describe(value)}"
        )
    return value


def check_real(
    value: float,
    name: str,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: bool = False,
) -> float:
    """Raise unless ``value`` is finite and in [minimum, maximum]; return it as a float.

    ``exclusive=True`` leaves out the minimum itself.
    """
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or value < minimum or value > maximum or (exclusive and value == minimum):
        bounds = f"{'(' if exclusive else '['}{minimum}, {maximum}]"
        raise ValueError(
            f"Expected argument `{name}` to be a finite number in {bounds}, got {describe(value)}"
        )
    return float(value)


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """Raise unless ``value`` is one of ``choices``; return it."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"Expected argument `{name}` to be one of {choices}, got {describe(value)}"
        )
    return value


def check_callable(value: Any, name: str) -> None:
    """Raise unless ``value`` is a callable instance; a class would be constructed, not called."""
    if isinstance(value, type):
        raise ValueError(
            f"Expected argument `{name}` to be an instance, not a class, got {value.__name__}"
        )
    if not callable(value):
        raise ValueError(f"Expected argument `{name}` to be callable, got {describe(value)}")


def check_device(device: str | torch.device) -> torch.device:
    """Raise unless PyTorch can compute on ``device``, here and now; return it.

    "auto" is a GPU if there is one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "Expected argument `device` (--device) to be a device of this machine, but got "
            f"{device!r} ({reason}): pass 'cpu', or 'cuda' where there is one"
        ) from error


def check_finite(x: Tensor, name: str) -> None:
    """Raise if ``x`` holds NaN or infinite values, naming the first bad row. Waits for the device.

    Only for places where data enters; never inside a layer or a loss.
    """
    if x.numel() == 0:
        return
    rows = max(1, CHECKED_NUMBERS * len(x) // x.numel())
    finite = [torch.isfinite(part).reshape(len(part), -1).all(dim=1) for part in x.split(rows)]
    bad = ~torch.cat(finite)
    if bad.any():
        where = bad.nonzero().flatten()
        raise ValueError(
            f"Expected argument `{name}` to be finite, but got NaN or infinity in "
            f"{len(where)} row(s), the first at index {int(where[0])}"
        )


def readable(x: Tensor) -> bool:
    """Return whether a layer or loss may look at the values of ``x``.

    Not on an accelerator, where looking waits for the device, nor where there are no values: in a
    compiled graph and in fake tensors.
    """
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and not torch.compiler.is_compiling()
