"""A run folder: made by one command, used by one at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bgl._io import remove_leftovers, write_text

LOCK_FILE = ".lock"
OWNER_FILE = ".owner"  # says who holds the lock


def new_folder(dataset: str, root: Path = Path("runs")) -> Path:
    """Make a run folder that nobody else has, named after the data and the time."""
    first = folder = root / f"{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        with suppress(FileExistsError):  # another run began in the same second
            folder.mkdir(parents=True)
            return folder
        number += 1
        folder = first.with_name(f"{first.name}-{number}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Use a folder alone, and rid it of what killed processes have left; it is made if needed.

    Raises:
        ValueError: If another process uses it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / OWNER_FILE
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise ValueError(
            f"Expected the folder {folder} to be used by one command at a time, but {who} is at "
            "work in it: wait until it has ended, or use another --output-dir"
        ) from None
    try:
        remove_leftovers(folder)
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
