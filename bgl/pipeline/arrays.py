"""The arrays that a run keeps for its page: explorer.npz and refined.npz."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from bgl._io import atomic_path

RECORD_FILE = "explorer.npz"
REFINED_FILE = "refined.npz"
Arrays = dict[str, np.ndarray]


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays atomically; where that fails, warn: only the page needs them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # read as its options
    except OSError as error:
        warnings.warn(f"The page lacks what {path} should hold: {error}", stacklevel=2)


def read_arrays(path: Path) -> Arrays:
    """Read an explorer.npz or a refined.npz; no arrays where there is no such file.

    Raises:
        ValueError: If it is damaged; the message names the file.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
        if path.name == REFINED_FILE:
            _check_refined(arrays)
        else:
            _check_recorded(arrays)
    except Exception as error:  # damage shows as errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{path.parent.name}/{path.name} cannot be read, and the page lacks what it held "
            f"({reason}); remove the file"
        ) from error
    return arrays


def read_or_note(path: Path, notes: list[str]) -> Arrays:
    """Read arrays, or leave a note where the file is damaged."""
    try:
        return read_arrays(path)
    except ValueError as error:
        notes.append(str(error))
        return {}


def _check_recorded(arrays: Arrays) -> None:
    """Raise a KeyError or ValueError unless the arrays are as a recorder writes them."""
    nodes, moments, edges = len(arrays["batch"]), len(arrays["edges"]), int(arrays["edges"].sum())
    if str(arrays["part"]) not in ("train", "val"):
        raise ValueError("part is neither train nor val")
    _check(arrays, "digest", "U", ())
    _check(arrays, "batch", "i", (nodes,), 0)
    _check(arrays, "moment", "i", (moments, 3) if moments else (0,), 0)
    _check(arrays, "edges", "i", (moments,), 0)
    _check(arrays, "total", "i", (moments,), 0)
    _check(arrays, "source", "u", (edges,), 0, nodes)
    _check(arrays, "target", "u", (edges,), 0, nodes)
    _check(arrays, "weight", "f", (edges,))
    _check_described(arrays, "batch", nodes)
    if "nearest" not in arrays:
        return
    tested, queries = len(arrays["test_labels"]), len(arrays["queries"])
    found = tested if arrays["own_gallery"].item() is True else len(arrays["gallery_labels"])
    _check(arrays, "own_gallery", "b", ())
    _check_described(arrays, "test", tested)
    if not arrays["own_gallery"]:
        _check_described(arrays, "gallery", found)
    _check(arrays, "queries", "i", (queries,), 0, tested)
    _check(arrays, "nearest", "i", (queries, None), 0, found)
    if "ranks" in arrays:  # not in runs of earlier versions
        _check(arrays, "ranks", "i", (queries,), 0)
        _check(arrays, "similarities", "i", (2, None), 0)
    _check(arrays, "map_items", "i", (len(arrays["map_items"]),), 0, tested)
    _check(arrays, "map_features", "f", (len(arrays["map_items"]), None))


def _check_refined(arrays: Arrays) -> None:
    queries = len(arrays["queries"])
    _check(arrays, "queries", "i", (queries,), 0)
    _check(arrays, "nearest", "i", (queries, None), 0)


def _check_described(arrays: Arrays, name: str, length: int) -> None:
    """Check the labels, class names and image names of some images."""
    classes = len(arrays[f"{name}_classes"])
    _check(arrays, f"{name}_classes", "U", (classes,))
    _check(arrays, f"{name}_labels", "i", (length,), 0, classes)
    _check(arrays, f"{name}_names", "U", (length,))


def _check(
    arrays: Arrays,
    name: str,
    kind: str,
    shape: tuple[int | None, ...],
    low: int | None = None,
    high: int | None = None,
) -> None:
    """Raise unless an array has a kind of dtype and a shape, and values in [low, high)."""
    array = arrays[name]
    sizes = zip(array.shape, shape, strict=False)
    fits = array.ndim == len(shape) and all(wanted in (None, size) for size, wanted in sizes)
    if not fits or array.dtype.kind != kind:
        raise ValueError(f"{name} is of kind {array.dtype} and shape {list(array.shape)}")
    if array.size and low is not None and int(array.min()) < low:
        raise ValueError(f"{name} has values below {low}")
    if array.size and high is not None and int(array.max()) >= high:
        raise ValueError(f"{name} has values of {high} and more")
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
