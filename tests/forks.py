"""Work in forked processes: the imports of the tests take longer than a training."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

FORK: Any = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def fork(work: Callable[..., object], *args: object) -> Any:
    """Start a process that does the work."""
    if FORK is None:
        pytest.skip("this system cannot fork")
    child = FORK.Process(target=work, args=args)
    child.start()
    return child


def forked(work: Callable[[], int]) -> int:
    """The exit status of a fork that does the work; -9 if it was killed."""

    def run() -> None:
        os._exit(work())

    child = fork(run)
    child.join()
    return int(child.exitcode)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def connected(work: Callable[[int], object], folder: Path, processes: int = 2) -> list[int | None]:
    """Run ``work(rank)`` in connected processes, as torchrun starts them; their exit statuses.

    What they say is in ``folder/RANK.log``.
    """
    port = free_port()

    def run(rank: int) -> None:
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        if accelerate := sys.modules.get("accelerate.state"):  # the parent's, of one process
            accelerate.AcceleratorState._reset_state(reset_partial_state=True)
        sys.stdout = sys.stderr = (folder / f"{rank}.log").open("w", buffering=1)
        status = work(rank)
        sys.exit(status if isinstance(status, int) else 0)

    children = [fork(run, rank) for rank in range(processes)]
    for child in children:
        child.join(600)
    for child in children:
        child.kill()  # nothing, if it has ended
    return [child.exitcode for child in children]


def program(main: Callable[[list[str]], int], folder: Path, *words: str) -> CompletedProcess[str]:
    """Run ``main(words)`` as a program of its own, started in a folder."""
    files = [folder / ".stdout", folder / ".stderr"]

    def work() -> int:
        os.chdir(folder)
        sys.path.insert(0, "")  # as of python -m
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb"), encoding="utf-8") for number in (1, 2)
        )
        try:
            return main([*words])
        except SystemExit as ended:
            return int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    status = forked(work)
    said = [file.read_text(encoding="utf-8") for file in files]
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    return CompletedProcess([*words], status, *said)
