"""Loading processes: what goes wrong in them is named, nothing hangs, and seeds are their own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forks import fork
from PIL import Image
from tiny_training import assert_same_files, make_splits, tiny

import bgl.images.loading as loading
import bgl.training.loop as loop
from bgl.datasets import ImageDataset, Splits, load_dataset
from bgl.images import BrokenImageError
from bgl.samplers import ClassBalancedSampler
from bgl.training import Progress, train
from bgl.training.loading import seeded_batches


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Images as files: 8 train and 4 test classes of 4."""
    splits = make_splits()
    for name, part in (("train", splits.train), ("test", splits.test)):
        for i, label in enumerate(part.labels.tolist()):
            folder = tmp_path / "images" / name / part.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return tmp_path / "images"


def of_files(root: Path) -> Splits:
    return load_dataset("folder", root, val_fraction=0.0)


class When(Progress):
    """Does something when a stage has done so many batches."""

    def __init__(self, what: str, act: Callable[[], Any]) -> None:
        self.what, self.act, self.active = what, act, False

    def start(self, what: str, total: int) -> None:
        self.active = what.startswith(self.what)

    def advance(self, amount: int) -> None:
        if self.active and amount:
            self.active = False
            self.act()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["vanishes", "breaks"])
def test_file_that_vanishes_or_breaks_while_training(files, tmp_path, workers, how):
    splits = of_files(files)

    def spoil() -> None:
        for path in splits.train.images:
            path.unlink() if how == "vanishes" else path.write_bytes(path.read_bytes()[:60])

    config = tiny(workers=workers, epochs=3)
    with pytest.raises(BrokenImageError, match=r"but got \S+/train/train\d/\d+\.png: ") as caught:
        train(config, splits, tmp_path / "run", When("epoch 1", spoil))
    assert str(caught.value.path).startswith(str(files))


class Dies(ImageDataset):
    """Kills or stops the process that loads an image, unless it is the main one."""

    number = signal.SIGKILL

    def read(self, index: int, min_side: int | None = None) -> Any:
        if multiprocessing.parent_process() is not None and index % 5 == 0:
            os.kill(os.getpid(), self.number)
        return super().read(index, min_side)


@pytest.fixture
def dying() -> Splits:
    splits = make_splits()
    train_part = Dies(splits.train.images, splits.train.labels, splits.train.class_names)
    return Splits("dying", train_part, splits.val, splits.test)


def test_loading_process_that_is_killed(dying, tmp_path):
    with pytest.raises(ChildProcessError, match=r"worker \(pid \d+\) was killed.*--workers"):
        train(tiny(workers=2), dying, tmp_path)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_lost_loading_process_is_noticed_at_once_and_the_step_is_saved(
    tmp_path, method, monkeypatch
):
    """... however it was started; before it would count as stuck. Nothing that was done is lost."""
    monkeypatch.setattr(loading, "TIMEOUT", 120.0)
    splits, config = make_splits(), tiny(workers=2, epochs=3, batches_per_epoch=6)
    whole = train(dataclasses.replace(config, workers=0), splits, tmp_path / "whole")

    def kill() -> None:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()

    before = set(multiprocessing.active_children())
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        with pytest.raises(ChildProcessError, match=r"was killed by SIGKILL.*--workers"):
            train(config, splits, tmp_path / "parts", When("epoch 2", kill))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert set(multiprocessing.active_children()) <= before
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert len(state["position"]["history"]) == 1
    assert state["position"]["step"] >= 1
    state["config"]["workers"] = 0
    torch.save(state, tmp_path / "parts" / "checkpoint.pt")
    parts = train(dataclasses.replace(config, workers=0), splits, tmp_path / "parts")
    assert parts.metrics == whole.metrics
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_little_shared_memory_is_named(tmp_path):
    """In a container /dev/shm has 64 MB; here, one."""
    code = """
import torch
from bgl.images.loading import ImageLoader
images = {(i, 0): torch.zeros(3, 64, 64, dtype=torch.uint8) for i in range(64)}
loader = ImageLoader(images, image_size=64, batch_size=64, workers=2)
try:
    list(loader.load([list(images)] * 4))
except ChildProcessError as error:
    print(error)
"""
    script = "mount -t tmpfs -o size=1m none /dev/shm && exec " + shlex.join(
        [sys.executable, "-c", code]
    )
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a small /dev/shm")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    expected = r"Expected 2 MiB .*shared memory.* make /dev/shm larger .*--workers 0\n"
    assert re.fullmatch(expected, done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(8, 1, 8), (8, 4, 2), (2, 8, 1), (256, 8, 16)]
)
def test_default_number_of_loading_processes(monkeypatch, cores, processes, expected):
    """By the cores of this job and the processes of this machine, whatever OpenMP is told."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert loading.num_workers(-1) == expected
    assert loading.num_workers(-1, in_memory=True) == 0
    assert loading.num_workers(3) == 3


@pytest.mark.slow
def test_loading_process_that_is_stuck(dying, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "TIMEOUT", 2.0)
    monkeypatch.setattr(Dies, "number", signal.SIGSTOP)
    before = set(multiprocessing.active_children())
    with pytest.raises(ChildProcessError, match=r"timed out after 2"):
        train(tiny(workers=1), dying, tmp_path)
    # none is left that Python would wait for when it ends
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")),
        lambda: (_ for _ in ()).throw(MemoryError()),
    ],
    ids=["CPU", "CUDA", "Python"],
)
def test_out_of_memory_says_what_to_do(tmp_path, monkeypatch, fail):
    monkeypatch.setattr(loop, "compute_losses", lambda *_: fail())
    with pytest.raises(MemoryError, match=r"^Out of memory.*--batch-size.*checkpoint is kept$"):
        train(tiny(), make_splits(), tmp_path)


def test_other_errors_keep_their_name(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory in a layer")

    monkeypatch.setattr(loop, "build_criterion", fail)
    with pytest.raises(RuntimeError, match="out of memory in a layer"):
        train(tiny(), make_splits(), tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_loading_processes_change_no_bit(tmp_path, workers):
    splits = make_splits()
    for number in (0, workers):
        train(tiny(workers=number, epochs=1), splits, tmp_path / str(number))
    assert_same_files(tmp_path / "0", tmp_path / str(workers))


def test_images_have_seeds_of_their_own():
    """They differ within an epoch and between epochs and trainings, and can be had again."""

    def seeds(seed: int, epoch: int) -> list[int]:
        config, data = tiny(), make_splits().train
        sampler = ClassBalancedSampler(data.labels, config.batch_size, config.per_class, seed)
        return [s for batch in seeded_batches(sampler, seed, epoch) for _, s in batch]

    first = seeds(0, 0)
    assert len(set(first)) == len(first) == 32
    assert first == seeds(0, 0)
    assert not set(first) & (set(seeds(0, 1)) | set(seeds(1, 0)))


def test_deterministic_training_equals_itself_and_leaves_no_flag(tmp_path):
    splits = make_splits()
    config = tiny(method="dybgr+bgformer", augmentation="iaa", deterministic=True)
    for name in ("a", "b"):
        train(config, splits, tmp_path / name)
        assert not torch.are_deterministic_algorithms_enabled()
    assert_same_files(tmp_path / "a", tmp_path / "b")


class Sleepy:
    """Images that say who loads them, and take their time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, key: loading.Key) -> torch.Tensor:
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.05)
        return torch.zeros(3, 2, 2, dtype=torch.uint8)


@pytest.mark.slow
def test_loading_processes_end_when_the_main_one_is_killed(tmp_path):
    """Those of two loaders at once, of which the second inherits what is open in the first."""

    def work() -> None:
        options = {"image_size": 2, "batch_size": 16, "workers": 2}
        first, second = (loading.ImageLoader(Sleepy(tmp_path), **options) for _ in range(2))
        keys = [[(0, 0)] * 16] * 100
        for _ in zip(first.load(keys), second.load(keys), strict=True):
            if len(list(tmp_path.iterdir())) == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    child = fork(work)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 4
    ended = psutil.wait_procs([psutil.Process(i) for i in workers if psutil.pid_exists(i)], 60)
    assert not [p for p in ended[1] if p.status() != psutil.STATUS_ZOMBIE]
