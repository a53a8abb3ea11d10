"""Write files so that nobody ever sees a half-written one, and read plain text data."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".bgl-tmp"  # ends the names of files that are being written
MAX_DEPTH = 50  # levels of nesting in a YAML file; ours have four


@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path next to ``path`` that is renamed to it when the block ends well.

    Whatever happens, ``path`` holds either its old content or the complete new one. A process
    that is killed may leave the temporary file (``.NAME.*.bgl-tmp``) behind. Without ``sync`` the
    new content may be cut off if the whole system goes down.

    Raises:
        OSError: If the file cannot be written, or ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "x.txt") as temporary:
        ...         _ = temporary.write_text("complete", encoding="utf-8")
        ...     (Path(folder) / "x.txt").read_text(encoding="utf-8")
        'complete'
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected {path} to be a file to write, but it is a folder: move the folder, or name "
            "another file"
        )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers put a file of their own in its place
        if sync:
            with temporary.open("r+b") as file:  # Windows syncs no file that is open to read alone
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # says which file
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Nobody else may be writing there.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it holds anything else; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected {path} to hold JSON, but {_reason(error)}") from error


def read_yaml(path: str | Path, load: Callable[[str], Any] | None = None) -> Any:
    """Read a YAML file of plain values.

    Args:
        path: The file.
        load: A reader of text that runs no code; default: PyYAML's.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it holds anything else; the message names the file.
    """
    import yaml  # an optional dependency

    try:
        text = Path(path).read_text(encoding="utf-8")
        check_yaml(text)
        return (load or yaml.safe_load)(text)
    except OSError:
        raise
    except Exception as error:  # the constructors of scalars raise errors of many kinds
        raise ValueError(f"Expected {path} to hold YAML, but {_reason(error)}") from error


def check_yaml(text: str) -> None:
    """Refuse YAML that grows when it is read: a few lines of aliases can stand for billions.

    Raises:
        yaml.YAMLError: If it has aliases, is nested too deeply, or is no YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not read: write out what *{event.anchor} stands for")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")


def _reason(error: Exception) -> str:
    """Describe an error in one line of reasonable length."""
    return " ".join(f"it cannot be read ({type(error).__name__}: {error})".split())[:300]


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
