"""macOS and Windows, played on this machine: what only Linux has is not needed."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from forks import program

import bgl
from bgl._memory import peak_memory_mb
from bgl._sizes import fits
from bgl.images import loading

POSIX_MODULES = ("resource", "fcntl", "grp", "pwd", "termios", "tty")
POSIX_FUNCTIONS = ("fork", "sched_getaffinity", "getuid", "mkfifo", "killpg", "getpgid")
POSIX_SIGNALS = ("SIGKILL", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGHUP", "pthread_sigmask")


def test_all_modules_import_without_what_windows_lacks(tmp_path: Path) -> None:
    def main(_: list[str]) -> int:
        names = [found.name for found in pkgutil.walk_packages(bgl.__path__, "bgl.")]
        for name in [name for name in sys.modules if name.partition(".")[0] == "bgl"]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(POSIX_MODULES))
        for module, missing in ((os, POSIX_FUNCTIONS), (signal, POSIX_SIGNALS)):
            for name in missing:
                vars(module).pop(name, None)
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        return 0

    done = program(main, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("system", "peak"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_memory_is_in_the_same_unit(
    monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=peak))
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_memory_mb() == 3


def test_memory_without_resource_is_what_psutil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    used = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: used)
    assert peak_memory_mb() == 3


def test_loading_processes_without_an_affinity_are_one_a_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert loading.num_workers(-1) == 6


def test_processes_start_without_a_signal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)
    with loading._signals_blocked():
        pass


def test_free_memory_that_no_file_tells_is_taken_to_be_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bgl._sizes._number_in", lambda *_: None)
    assert fits(torch.device("cpu"), 1000)
    assert not fits(torch.device("cpu"), 2**50)
