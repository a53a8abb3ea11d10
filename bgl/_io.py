"""Writing files so that nobody ever sees a half-written one."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that is renamed to it when the block ends well.

    Whatever happens, ``path`` holds either its old content or the complete new one. A process
    that is killed may leave the temporary file (``.NAME.*.tmp``) behind.

    Example:
        >>> with atomic_path("/tmp/bgl-doctest.txt") as temporary:
        ...     _ = temporary.write_text("complete")
        >>> Path("/tmp/bgl-doctest.txt").read_text()
        'complete'
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are private
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # says which file
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically, in the plain memory layout that it stores.

    Raises:
        OSError: If it cannot be written.
    """
    from safetensors import SafetensorError  # an optional dependency
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    stored = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        # The format refuses shared memory (one block used twice): each name gets its own copy.
        plain[name] = tensor.clone() if memory in stored else tensor
        plain[name] = plain[name].contiguous()
        stored.add(memory)
    try:
        with atomic_path(path) as temporary:
            save_file(plain, temporary)
    except SafetensorError as error:  # its message has the system's
        raise OSError(f"Could not write {path}: {error}") from error


def write_pickle(path: str | Path, content: Any) -> None:
    """Write a file for ``torch.load(..., weights_only=True)`` atomically.

    Raises:
        OSError: If it cannot be written.
    """
    import torch

    buffer = io.BytesIO()  # torch.save hides the system's error where a file cannot be written
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
