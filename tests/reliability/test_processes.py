"""Several gloo processes: they train what one process trains, and end when one of them does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from elastic_node import config
from forks import connected, free_port
from pytorch_metric_learning.losses import ContrastiveLoss, ProxyAnchorLoss
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from safetensors.torch import load_file
from tiny_training import At, assert_same_files, make_splits, tiny
from torch.nn.functional import normalize
from two_processes import CASES, FAST, train_case

import bgl.pipeline.rows as rows_of_a_run
import bgl.training.distributed as distributed
from benchmarks.standin import write_standin
from bgl.augment import AugmentedLoss
from bgl.datasets import raw_pixels
from bgl.pipeline import baseline_rows, run
from bgl.pipeline.options import Command
from bgl.pipeline.run import claimed
from bgl.training import Interrupted, Progress, build_encoder, train
from bgl.training.distributed import average_gradients, gather_rows, shares

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).with_name("elastic_node.py")
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


def torchrun(*words: str) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *(f"--master-port={free_port()}", *words),
    ]


def difference(one: Path, two: Path) -> float:
    """The largest difference of a parameter or buffer, relative to it where that is above 1."""
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys()
    assert any(tensor.dtype == torch.float64 for tensor in mine.values())
    return max(
        float((x.double() - theirs[n].double()).abs().max()) / max(1.0, float(x.abs().max()))
        for n, x in mine.items()
    )


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_two_processes_train_the_same_model_and_measure_the_same(case, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder, processes in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        statuses = connected(lambda _: train_case(case, folder), folder, processes)  # noqa: B023
        assert statuses == [0] * processes, (folder / "0.log").read_text()
    assert difference(*folders) < 1e-6
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["moved"] > 1e-4  # the comparison would be empty if nothing had been learned
    for embedding, metrics in one["metrics"].items():
        assert two["metrics"][embedding] == pytest.approx(metrics, abs=1e-9)
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        mine, theirs = ({**row, "seconds": 0.0} for row in (mine, theirs))
        assert theirs == pytest.approx(mine, rel=1e-6)
    embeddings = [load_file(folder / "embeddings.safetensors") for folder in folders]
    assert torch.equal(embeddings[0]["labels"], embeddings[1]["labels"])
    mine, theirs = (normalize(stored["embeddings"]) for stored in embeddings)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (1, 4)], ids=str)
def test_gather_has_the_gradient_of_one_process(sizes, tmp_path, monkeypatch):
    """Each process has some rows of x; the loss is a function of all of them. Gradients do not
    all fit into one bucket."""
    monkeypatch.setattr(distributed, "BUCKET", 18)
    total = sum(sizes)
    x = torch.randn(total, 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)
    mix = torch.randn(total, total, dtype=torch.float64)

    def gradient(rows: slice, sizes: tuple[int, ...]) -> Any:
        w = weight.clone().requires_grad_()
        head = torch.ones(4, dtype=torch.float64, requires_grad=True)
        features = gather_rows((x[rows] @ w).tanh(), sizes)
        ((mix @ features) ** 3 * head).sum().backward()
        average_gradients([w, head, torch.zeros(1)])
        return features.detach(), w.grad, head.grad

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        first = sum(sizes[:rank])
        torch.save(gradient(slice(first, first + sizes[rank]), sizes), tmp_path / f"{rank}.pt")

    expected = gradient(slice(None), (total,))
    assert connected(work, tmp_path) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for mine, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "loss", [ContrastiveLoss, lambda: ProxyAnchorLoss(3, 4)], ids=["pairs", "proxies"]
)
def test_wrapped_loss_with_copies_in_two_processes(loss, tmp_path):
    """Pairs are those of each process; a loss with proxies sees what both processes have."""
    z, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    torch.manual_seed(7)  # the proxies are drawn
    plain = loss().double()

    def copied(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return embeddings.roll(1, dims=1), labels

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        own = z[rank::2].clone().requires_grad_()
        value = AugmentedLoss(DistributedLossWrapper(plain), copied)(own, y[rank::2])
        value.backward()
        torch.save((value.detach(), own.grad), tmp_path / f"{rank}.pt")

    assert connected(work, tmp_path) == [0, 0]
    for rank in range(2):
        value, gradient = torch.load(tmp_path / f"{rank}.pt")
        own = z[rank::2].clone().requires_grad_()
        if isinstance(plain, ContrastiveLoss):
            expected = AugmentedLoss(plain, copied)(own, y[rank::2])
        else:
            parts = [(own, y[rank::2]), (z[1 - rank :: 2], y[1 - rank :: 2])]
            everything = [half for part in parts for half in (part, copied(*part))]
            expected = plain(*(torch.cat(tensors) for tensors in zip(*everything, strict=True)))
        expected = 2 * expected  # the wrapper multiplies by the number of processes
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, *torch.autograd.grad(expected, own))


@pytest.mark.parametrize(("total", "processes"), [(8, 2), (15, 4), (3, 3), (2, 3)])
def test_shares_cover_everything_once(total, processes):
    parts = shares(total, processes)
    assert [i for part in parts for i in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_the_first_process_writes(tmp_path):
    splits = make_splits()

    def work(rank: int) -> None:
        os.umask(0)
        if rank == 1:
            real = os.open

            def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
                if flags & (os.O_WRONLY | os.O_RDWR) and str(tmp_path / "run") in str(path):
                    raise AssertionError(f"the second process writes {path}")
                return real(path, flags, *rest, **options)

            os.open = refuse  # type: ignore[assignment]  # tempfile.mkstemp's
            os.mkdir = refuse  # type: ignore[assignment]
        train(tiny(method="dybgr", augmentation="iaa"), splits, tmp_path / "run")

    assert connected(work, tmp_path) == [0, 0], (tmp_path / "1.log").read_text()
    assert (tmp_path / "run" / "model.safetensors").exists()


class StopAfterAnEpoch(Progress):
    def epoch(self, row: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_no_process_but_the_first_needs_the_run_folder(tmp_path, monkeypatch):
    """As on two machines without a file system in common: begin, stop, resume, refine again."""
    splits, config = make_splits(), tiny(method="dybgr", loss="proxy-anchor", epochs=2)
    monkeypatch.setattr(rows_of_a_run, "FEW_IMAGES", 3)
    command = Command([config], Path("run"), [], refine=True)

    def work(rank: int) -> None:
        here = tmp_path / f"machine {rank}"
        here.mkdir()
        os.chdir(here)
        with claimed(command, splits) as run, pytest.raises(Interrupted):
            run.measure(StopAfterAnEpoch(), print)
        for _ in range(2):
            Path("run/dybgr-seed0/refined.json").unlink(missing_ok=True)
            with claimed(command, splits) as run:
                run.measure(Progress(), print)

    assert connected(work, tmp_path) == [0, 0], (tmp_path / "1.log").read_text()
    assert not list((tmp_path / "machine 1").iterdir())
    run = tmp_path / "machine 0" / "run"
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"untrained", "dybgr"}  # too many for pixels
    assert rows[-1]["transductive"]


def test_pixels_are_shared(tmp_path):
    """And are those of one process."""
    data = make_splits().test.subset(range(15))

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        torch.save(rows_of_a_run.shared_pixels(data), tmp_path / f"{rank}.pt")

    assert connected(work, tmp_path) == [0, 0]
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), raw_pixels(data))


@pytest.mark.reliability
def test_two_launchers_as_on_two_machines(tmp_path):
    """``torchrun --nnodes=2`` twice, each in a folder of its own."""
    write_standin("folder", tmp_path / "images", classes=8, images=4, image_size=32)
    words = [
        *("--dataset", "folder", "--data-root", str(tmp_path / "images"), "--method", "dybgr"),
        *("--backbone", "test_resnet", "--weights", "none", "--image-size", "32"),
        *("--epochs", "2", "--batch-size", "8", "--per-class", "2", "--device", "cpu"),
        *("--workers", "0", "--output-dir", "run"),
    ]
    port, nodes = free_port(), []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
            *("--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"),
            *(str(ROOT / "benchmarks" / "run.py"), *words),
        ]
        with (tmp_path / f"{rank}.log").open("w") as log:
            nodes.append(
                subprocess.Popen(
                    command, env=ENVIRONMENT, cwd=tmp_path / str(rank), stdout=log, stderr=log
                )
            )
    try:
        statuses = [node.wait(240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert statuses == [0, 0], "".join((tmp_path / f"{n}.log").read_text() for n in range(2))
    assert not list((tmp_path / "1").iterdir())
    about = json.loads((tmp_path / "0" / "run" / "results.json").read_text())
    assert about["processes"] == 2


@pytest.mark.reliability
def test_a_node_that_is_lost_comes_back(tmp_path):
    """Its launcher and process are killed in the second epoch and started again; the other node
    restarts its process, and both end as if nothing had happened."""
    splits = make_splits()
    uninterrupted = connected(lambda rank: train(config(), splits, tmp_path / "whole"), tmp_path)
    assert uninterrupted == [0, 0], (tmp_path / "0.log").read_text()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--max-restarts=3", "--rdzv-id=run", "--rdzv-backend=c10d"),
        *(f"--rdzv-endpoint=127.0.0.1:{free_port()}", str(NODE), str(tmp_path)),
    ]
    nodes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        hosts = f"--rdzv-conf=is_host={int(not nodes)}"  # the meeting point, which has to stay
        words = [*command[:3], hosts, *command[3:]]
        # else launchers that stay do not tell a new one where the first process is
        variables = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (tmp_path / f"node {len(nodes)}.log").open("w") as log:
            nodes.append(subprocess.Popen(words, env=variables, stdout=log, stderr=log))
        return nodes[-1]

    def logs() -> str:
        return "".join(log.read_text() for log in sorted(tmp_path.glob("node *.log")))

    try:
        kept, lost = start(), start()
        assert lost.wait(400) == -signal.SIGKILL, logs()
        assert (tmp_path / "run" / "checkpoint.pt").exists()
        again = start()
        assert [kept.wait(400), again.wait(400)] == [0, 0], logs()
    finally:
        for node in nodes:
            node.kill()
    assert (tmp_path / "lost").read_text() == "resumed after 1 epochs"
    assert_same_files(tmp_path / "whole", tmp_path / "run")


def test_processes_begin_with_equal_encoders_whatever_was_drawn_before(tmp_path):
    """Two runs of one command, and one by two processes, give the same untrained row."""
    splits, config = make_splits(), tiny(method="dybgr", seed=5)

    def rows(drawn: int) -> list[dict[str, Any]]:
        torch.manual_seed(drawn)
        return baseline_rows(config, splits, Progress())

    def work(rank: int) -> None:
        found = rows(rank)
        states = [build_encoder(config)[0].model.state_dict()]
        config.seed += rank  # as if the processes drew differently
        states.append(build_encoder(config)[0].model.state_dict())
        torch.save((found, states), tmp_path / f"{rank}.pt")

    expected = rows(1)
    assert expected == rows(2)
    assert connected(work, tmp_path) == [0, 0], (tmp_path / "0.log").read_text()
    (first, states), (nothing, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first, nothing) == (expected, [])
    for mine, theirs in zip(states, others, strict=True):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("victim", [0, 1], ids="process {}".format)
def test_process_that_dies_ends_the_other(tmp_path, victim):
    splits = make_splits()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work(rank: int) -> None:
        progress = At(3, die) if rank == victim else None
        train(tiny(method="dybgr"), splits, tmp_path / "run", progress)

    started = time.monotonic()
    statuses = connected(work, tmp_path)
    assert time.monotonic() - started < 60
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    assert "Error" in (tmp_path / f"{1 - victim}.log").read_text()


@pytest.mark.parametrize(
    "at", [pytest.param(2, id="step"), pytest.param(3, id="validation", marks=pytest.mark.slow)]
)
def test_signal_to_one_process_stops_both_at_the_same_step(tmp_path, at):
    """And they go on to the same end as if nothing had happened."""
    splits = make_splits()
    config = tiny(method="dybgr", augmentation="iaa")

    def work(rank: int) -> None:
        train(config, splits, tmp_path / "whole")
        stop = At(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config, splits, tmp_path / "parts", stop if rank == 1 else None)
        train(config, splits, tmp_path / "parts")

    assert connected(work, tmp_path) == [0, 0], (tmp_path / "0.log").read_text()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"batch_size": 1, "per_class": 1}, "batch_size"), ({"train_batch_norm": True}, "batch_norm")],
    ids=["batch_size", "train_batch_norm"],
)
def test_what_two_processes_cannot_train(tmp_path, options, named):
    splits = make_splits()

    def work(rank: int) -> None:
        with pytest.raises(ValueError, match=named):
            train(tiny(**options), splits, tmp_path / "run")
        dist.barrier()  # the other may still be connecting

    assert connected(work, tmp_path) == [0, 0], (tmp_path / "0.log").read_text()


@pytest.mark.slow
def test_torchrun_stops_when_a_process_is_killed_and_resumes(tmp_path):
    """The whole command: kill one process, see all end, go on with --resume."""
    folder = tmp_path / "run"
    write_standin("folder", tmp_path / "images", classes=8, images=4, image_size=32)
    words = [
        *("--dataset", "folder", "--data-root", str(tmp_path / "images"), "--method", "none"),
        *("--backbone", "test_resnet", "--weights", "none", "--image-size", "32"),
        *("--epochs", "12", "--batch-size", "8", "--per-class", "2", "--device", "cpu"),
        *("--workers", "0", "--checkpoint-minutes", "0"),
    ]
    script = str(ROOT / "benchmarks" / "run.py")
    command = torchrun(script, *words, "--output-dir", str(folder))
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            while not (folder / "none-seed0" / "checkpoint.pt").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            started = time.monotonic()
            workers[-1].kill()
            assert process.wait(60) != 0
            assert time.monotonic() - started < 60
        finally:
            process.kill()
    assert not (folder / "none-seed0" / "result.json").exists()
    statuses = connected(lambda _: run.main(["--resume", str(folder)]), tmp_path)
    said = (tmp_path / "0.log").read_text()
    assert statuses == [0, 0], said
    assert not re.search(r"epoch +1 ", said)  # it was not repeated
    assert re.search(r"epoch +12 ", said)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    found = ["pixels", "backbone", "readout", "backbone", "head", "readout"]
    assert [row["embedding"] for row in rows] == found
