"""Who works on what: files that only one process can create, in a folder that all share."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # comes with accelerate

STALE = 900.0  # seconds without a sign of life; a loading process counts as stuck after 600


class Claim:
    """A claim that this process holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def beat(self) -> None:
        """Show that this process still works."""
        with suppress(FileNotFoundError):  # taken over: the work is done twice, which is no harm
            os.utime(self.path)


@contextmanager
def claimed(path: Path) -> Iterator[Claim | None]:
    """Claim a piece of work; None if another process is at it.

    A claim of a process that ended without releasing it is taken over: at once if it ran on this
    machine, else after ``STALE`` seconds without a sign of life, by the clock of the file system.
    In rare cases two processes may hold a claim; both then write the same file.
    """
    held = _create(path)
    if not held and _abandoned(path):
        path.unlink(missing_ok=True)
        held = _create(path)
    if not held:
        yield None
        return
    try:
        yield Claim(path)
    finally:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the claims of processes that have ended without releasing them."""
    for path in folder.iterdir():
        with claimed(path):
            pass


def _create(path: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    except FileExistsError:
        return False
    return True


def _abandoned(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:  # opened, which makes NFS ask for its time
            changed = os.fstat(file.fileno()).st_mtime
            text = file.read()
    except FileNotFoundError:
        return False  # released a moment ago
    with suppress(ValueError, KeyError, TypeError):  # being written, or cut off
        holder = json.loads(text)
        here = holder["host"] == socket.gethostname()
        # our own number is that of a container before this one: we hold one claim at a time
        if here and (holder["pid"] == os.getpid() or not psutil.pid_exists(holder["pid"])):
            return True
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - changed > STALE
