"""Trainings that are stopped, killed or cannot write: they go on, and end with the same bits."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import fork, forked, program
from safetensors.torch import load_file, save_file
from tiny_training import At, StopAfter, assert_same_files, make_splits, read_csv, tiny

import bgl._io as io
import bgl.training.interruption as interruption
import bgl.training.loop as loop
from benchmarks.standin import write_standin
from bgl.cli import main
from bgl.datasets import Splits
from bgl.training import Interrupted, Progress, TrainConfig, TrainResult, train
from bgl.training.checkpoint import random_state, restore_random_state

INT, TERM = signal.SIGINT, signal.SIGTERM


def config() -> TrainConfig:
    """Statistics are estimated before epochs 1 and 3; two steps each; graph, IAA and proxies;
    averaged weights; batches that depend on the features so far."""
    options = {"augmentation": "iaa", "loss": "proxy-anchor", "ema": 0.9}
    return tiny(method="dybgr", epochs=3, class_neighbors=1, **options)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits()


@pytest.fixture(scope="module")
def whole(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A training that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(config(), splits, folder)


def finish(whole: tuple[Path, TrainResult], folder: Path, splits: Splits) -> None:
    """Go on, and end as if nothing had happened."""
    torch.manual_seed(99)  # another process has other random numbers
    random.seed(99)
    result = train(config(), splits, folder)
    assert_same_files(whole[0], folder)
    assert result.metrics == whole[1].metrics
    assert result.chosen_epoch == whole[1].chosen_epoch
    assert not list(folder.glob(".*"))  # what killed processes left behind


def signal_at(at: int, number: int = TERM) -> At:
    return At(at, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize(("at", "number"), [(at, (INT, TERM)[at % 2]) for at in (1, 2, 4, 5)])
def test_signal_finishes_the_step_and_saves(splits, whole, tmp_path, number, at):
    """Batches: statistics, two steps, validation; two steps, ..."""
    listener = signal_at(at, number)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught:
        train(config(), splits, tmp_path, listener)
    assert listener.count == at  # no other step or batch was begun
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoint.pt").exists()
    finish(whole, tmp_path, splits)


def test_stopped_again_and_again(splits, whole, tmp_path):
    """After every third batch, until all epochs are done."""
    stops = 0
    while not (tmp_path / "metrics.csv").exists() or len(read_csv(tmp_path)) < 3:
        with pytest.raises(Interrupted):
            train(config(), splits, tmp_path, signal_at(3))
        stops += 1
        assert stops < 20
    assert stops > 3
    finish(whole, tmp_path, splits)


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("fork", signal.SIGINT),  # SIGTERM: the next test
        pytest.param("spawn", signal.SIGTERM, marks=pytest.mark.reliability),  # imports take long
        pytest.param("forkserver", signal.SIGTERM, marks=pytest.mark.reliability),
    ],
)
def test_signal_to_all_processes_finishes_the_step_and_saves(
    splits, whole, tmp_path, method, number
):
    """As ``timeout``, Slurm and systemd do it, with loading processes however they are started.

    It comes twice, once directly and once with the group, and again to each loading process.
    """

    def tell_all() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, number)
        os.killpg(0, number)
        os.kill(os.getpid(), number)

    def work() -> int:
        os.setpgrp()
        multiprocessing.set_start_method(method, force=True)
        listener = At(3, tell_all)  # the second step
        try:
            train(dataclasses.replace(config(), workers=1), splits, tmp_path, listener)
        except Interrupted as interrupted:
            return interrupted.status if listener.count == 3 else 1
        return 0

    assert forked(work) == 128 + number
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["position"]["step"] == 2
    state["config"]["workers"] = 0
    torch.save(state, tmp_path / "checkpoint.pt")
    finish(whole, tmp_path, splits)


def test_timeout_ends_the_whole_command_in_good_order(tmp_path):
    """As coreutils' ``timeout``: the command's whole group gets the signal, with its loaders."""
    write_standin("folder", tmp_path / "images", classes=8, images=4, image_size=32)
    words = [
        *("--dataset", "folder", "--data-root", str(tmp_path / "images"), "--method", "none"),
        *("--backbone", "test_resnet", "--weights", "none", "--image-size", "32"),
        *("--epochs", "100000", "--batch-size", "8", "--per-class", "2", "--device", "cpu"),
        *("--workers", "2", "--checkpoint-minutes", "0", "--output-dir", "run"),
    ]
    checkpoint = tmp_path / "run" / "none-seed0" / "checkpoint.pt"
    saved = []

    def time_is_up() -> None:
        while not checkpoint.exists():
            time.sleep(0.05)
        saved.append(checkpoint.stat().st_mtime_ns)
        os.killpg(0, signal.SIGTERM)

    def command(words: list[str]) -> int:
        os.setpgrp()
        threading.Thread(target=time_is_up, daemon=True).start()
        status = main(["train", *words])
        assert checkpoint.stat().st_mtime_ns > saved[0]
        return status

    done = program(command, tmp_path, *words)
    assert done.returncode == 143, done.stdout + done.stderr
    assert "to go on: bgl train --resume run" in done.stdout


def test_second_signal_ends_at_once(splits, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "GRACE", 0.0)  # it is not the first one passed on

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), INT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(config(), splits, tmp_path, At(6, twice))
    assert not isinstance(caught.value, Interrupted)
    finish(whole, tmp_path, splits)


def test_all_random_states_are_kept():
    device = torch.device("cpu")
    before = random_state(device)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    restore_random_state(before, device)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


class Generators:
    """The generators of several GPUs, as one process sees them, in place of torch.cuda's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
        self.all = [torch.Generator() for _ in range(devices)]
        of = lambda device: self.all[torch.device(device).index]  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda d: of(d).get_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, d: of(d).set_state(s))

    def draw(self, device: int) -> float:
        return torch.rand(1, generator=self.all[device]).item()


@pytest.mark.parametrize("devices", [1, 2])
def test_every_process_resumes_with_the_generator_of_its_own_device(monkeypatch, devices):
    """The second process draws on the second device, or on the only one that it sees."""
    first = Generators(monkeypatch, 2)  # of the process that writes
    for generator, seed in zip(first.all, (1, 2), strict=True):
        generator.manual_seed(seed)  # what it drew on a device that another one trains on
    first.draw(0)
    state = random_state(torch.device("cuda", 0))
    expected = first.draw(0)
    for own in range(devices):
        visible = Generators(monkeypatch, devices)
        restore_random_state(state, torch.device("cuda", own))
        assert visible.draw(own) == expected
    restore_random_state(state, torch.device("cpu"))  # a GPU's run, resumed without one


class Killer(Progress):
    """Counts the moments of a training, and kills the process at one of them.

    Moments are: every batch, every epoch; half of a checkpoint written; and for every file, just
    before and just after it gets its name.

    Args:
        at: The number of the moment; 0: none.
        only: The only kind of moment to count.
    """

    def __init__(self, at: int = 0, only: str | None = None) -> None:
        self.at, self.only, self.count = at, only, 0

    def moment(self, kind: str) -> None:
        self.count += self.only in (None, kind)
        if self.at and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def advance(self, amount: int) -> None:
        self.moment("batch")

    def epoch(self, row: dict[str, Any]) -> None:
        self.moment("epoch")

    def watch_files(self) -> None:
        """For a process of its own: nothing is put back."""
        write_bytes, replace = Path.write_bytes, Path.replace

        def in_halves(path: Path, content: Any) -> int:
            write_bytes(path, content[: len(content) // 2])
            self.moment("half")
            return write_bytes(path, content)

        def watched(path: Path, target: Path) -> Path:
            self.moment(f"before {target.name}")
            moved = replace(path, target)
            self.moment(f"after {target.name}")
            return moved

        Path.write_bytes, Path.replace = in_halves, watched  # type: ignore[method-assign,assignment]


def killed_at(at: int, splits: Splits, folder: Path, only: str | None = None) -> int:
    """Train in another process until a moment; exit status, or the moments there were."""

    def work() -> int:
        killer = Killer(at, only)
        killer.watch_files()
        train(config(), splits, folder, killer)
        return killer.count

    return forked(work)


@pytest.fixture(scope="module")
def moments(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> int:
    return killed_at(0, splits, tmp_path_factory.mktemp("count"))


def survive(at: int, splits: Splits, whole: tuple[Path, TrainResult], folder: Path) -> None:
    assert killed_at(at, splits, folder) == -signal.SIGKILL
    if (folder / "checkpoint.pt").exists():
        torch.load(folder / "checkpoint.pt", weights_only=True)  # whole, whatever happened
    finish(whole, folder, splits)


@pytest.mark.parametrize("part", range(3), ids="{}/3".format)
def test_killed_run_goes_on_bit_for_bit(splits, whole, moments, tmp_path, part):
    assert moments > 30
    survive(1 + part * (moments - 1) // 2, splits, whole, tmp_path)


@pytest.mark.parametrize("only", ["half", "before checkpoint.pt", "after checkpoint.pt"])
def test_killed_while_the_second_checkpoint_is_written(splits, whole, tmp_path, only):
    assert killed_at(2, splits, tmp_path, only) == -signal.SIGKILL
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    named = only.startswith("after")
    assert len(state["position"]["history"]) == (2 if named else 1)
    assert len(list(tmp_path.glob(".checkpoint.pt.*.bgl-tmp"))) == (0 if named else 1)
    finish(whole, tmp_path, splits)


@pytest.mark.reliability
def test_killed_at_every_moment(splits, whole, moments, tmp_path):
    for at in range(1, moments + 1):
        survive(at, splits, whole, tmp_path / str(at))
        shutil.rmtree(tmp_path / str(at))
    print(f"kill points tried and survived: {moments}")


@pytest.mark.reliability
def test_killed_many_times_at_any_time(splits, whole, tmp_path):
    """By a clock that knows nothing of the training, until it comes to its end."""
    clock = random.Random(0)
    kills = trainings = 0
    while kills < 100:
        folder = tmp_path / str(trainings)
        trainings += 1
        while True:
            child = fork(train, config(), splits, folder)
            child.join(clock.uniform(0, 3))
            if child.exitcode is not None:
                break
            child.kill()
            child.join()
            kills += 1
        finish(whole, folder, splits)
        shutil.rmtree(folder)
    print(f"killed {kills} times in {trainings} trainings")


def test_checkpoint_is_written_only_after_some_minutes(splits, tmp_path, monkeypatch):
    """Its model with it, though later epochs were better: they are trained again."""
    monkeypatch.setattr(loop, "chosen_epoch", lambda history, config: len(history))
    every, seldom = tiny(epochs=4), tiny(epochs=4, checkpoint_minutes=1e6)
    train(every, splits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(every, splits, tmp_path / "parts", StopAfter(1))
    files = [tmp_path / "parts" / name for name in ("checkpoint.pt", "model.safetensors")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(KeyboardInterrupt):
        train(seldom, splits, tmp_path / "parts", StopAfter(3))
    assert [file.read_bytes() for file in files] == before
    train(seldom, splits, tmp_path / "parts")
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    assert files[0].read_bytes() != before[0]


def test_weights_of_later_epochs_than_the_checkpoint_are_not_reported(
    splits, tmp_path, monkeypatch
):
    """A killed run may have stored them; trained again, those epochs may turn out otherwise."""
    monkeypatch.setattr(loop, "chosen_epoch", lambda history, config: 1)
    train(tiny(epochs=3), splits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(epochs=3), splits, tmp_path / "parts", StopAfter(1))
    stored = tmp_path / "parts" / "model.safetensors"
    save_file({n: t + 1 for n, t in load_file(stored).items()}, stored)
    train(tiny(epochs=3), splits, tmp_path / "parts")
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_full_disk_leaves_the_last_checkpoint(splits, whole, tmp_path, monkeypatch):
    write_bytes, written = Path.write_bytes, 0

    def full(path: Path, content: Any) -> int:
        nonlocal written
        written += 1
        if written == 2:
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint\.pt'"):
            train(config(), splits, tmp_path)
    assert not list(tmp_path.glob(".*"))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["position"]["history"]) == 1
    finish(whole, tmp_path, splits)


def test_file_size_limit(splits, tmp_path):
    """The system itself refuses to write on."""

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            train(config(), splits, tmp_path)
        except OSError as error:
            return 7 if "too large" in str(error) and "checkpoint.pt" in str(error) else 1
        return 0

    assert forked(work) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_really_full(small_disk):
    (small_disk / "checkpoint.pt").write_bytes(b"the last good one")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 20_000))
    with pytest.raises(OSError, match="No space left on device"):
        io.write_pickle(small_disk / "checkpoint.pt", {"x": torch.zeros(100_000)})
    with pytest.raises(OSError, match="No space left on device"):
        io.write_tensors(small_disk / "checkpoint.pt", {"x": torch.zeros(100_000)})
    assert (small_disk / "checkpoint.pt").read_bytes() == b"the last good one"
    assert {path.name for path in small_disk.iterdir()} == {"checkpoint.pt", "ballast"}


def test_read_only_folder(splits, whole):
    """A training that goes on finds that it may not write any more."""
    folder = Path(tempfile.mkdtemp())
    with pytest.raises(Interrupted):
        train(config(), splits, folder, signal_at(6))
    before = (folder / "checkpoint.pt").read_bytes()

    def work() -> int:
        folder.chmod(0o555)
        if os.getuid() == 0:
            os.setuid(65534)  # root may write everywhere
        try:
            train(config(), splits, folder)
        except PermissionError as error:
            return 7 if str(folder) in str(error) else 1
        return 0

    folder.chmod(0o755)
    (folder / "checkpoint.pt").chmod(0o644)
    assert forked(work) == 7
    folder.chmod(0o755)
    assert (folder / "checkpoint.pt").read_bytes() == before
    finish(whole, folder, splits)
    shutil.rmtree(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04"], ids=repr)
def test_checkpoint_that_cannot_be_read(splits, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt to be a checkpoint.*remove it"):
        train(config(), splits, tmp_path)
