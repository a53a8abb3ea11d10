"""Embedding into shards: the encoder's own embeddings, each image once, whatever happens."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import fork
from helpers import make_run
from make_images import jpeg, make_folder, make_tar

pytest.importorskip("pyarrow", reason="needs the extra scale")

import pyarrow as pa
import pyarrow.parquet as pq

import bgl.embedding.claims as claims
import bgl.embedding.job as job
from bgl import ShardFolder, embed
from bgl._memory import peak_memory_mb
from bgl.cli import main
from bgl.models import load

COUNT = 25
SIZES = {"shard_size": 8, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and 25 images in every kind of place."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("home")
    make_run(home / "run")
    folder = make_folder(home / "folder", COUNT)
    rows = [
        (path.relative_to(folder).as_posix(), f"label {path.stem}")
        for path in sorted(folder.rglob("*.jpg"))
    ]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    make_tar(home / "tar-000.tar", range(10))
    make_tar(home / "tar-001.tar", range(10, COUNT))
    images = [{"bytes": jpeg(number), "path": None} for number in range(COUNT)]
    table = pa.table({"label": [f"p{number}" for number in range(COUNT)], "image": images})
    pq.write_table(table, home / "rows.parquet", row_group_size=11)
    return home


def numbers(shards: ShardFolder) -> list[int]:
    """Which image each row is, by its key."""
    keys = [key for block in shards.blocks() for key in block.keys]
    return [int(Path(key).stem) for key in keys]


def check(shards: ShardFolder, home: Path, count: int = COUNT) -> list[int]:
    """Every image once, and with the embedding that the encoder gives, to the last bit."""
    found = numbers(shards)
    assert sorted(found) == list(range(count))
    expected = load(home / "run").embed([jpeg(number) for number in found], batch_size=4)
    torch.testing.assert_close(torch.from_numpy(shards.vectors()), expected, rtol=0, atol=1e-6)
    return found


@pytest.mark.parametrize("kind", ["folder", "table", "tars", "parquet", "saved"])
def test_every_source_gives_the_encoders_embeddings(kind: str, home: Path, tmp_path: Path) -> None:
    places = {
        "folder": "folder",
        "table": "folder/table.csv",
        "tars": "tar-{000..001}.tar",
        "parquet": "*.parquet",
        "saved": "saved",
    }
    if kind == "saved" and not (home / "saved").exists():
        datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        rows = {
            "image": [{"bytes": jpeg(number), "path": None} for number in range(COUNT)],
            "label": [number % 3 - 1 for number in range(COUNT)],  # -1: not known
        }
        made = datasets.Dataset.from_dict(rows, datasets.Features(features))
        made.save_to_disk(str(home / "saved"), num_shards=2)
    shards = embed(home / "run", [home / places[kind]], tmp_path, **SIZES)
    if kind == "saved":
        keys = [key for block in shards.blocks() for key in block.keys]
        assert [Path(key).name for key in keys] == [*map(str, range(13)), *map(str, range(12))]
        encoder = load(home / "run")
        expected = encoder.embed([jpeg(number) for number in range(COUNT)])
        found = list(range(COUNT))
        torch.testing.assert_close(torch.from_numpy(shards.vectors()), expected, rtol=0, atol=1e-6)
    else:
        found = check(shards, home)
    labels = [label for block in shards.blocks(columns=["labels"]) for label in block.labels]
    named = {
        "folder": lambda n: f"class{n % 3}",
        "table": lambda n: f"label {n:04d}",
        "tars": lambda n: str(n % 3),
        "parquet": lambda n: f"p{n}",
        "saved": lambda n: (None, "a", "b")[n % 3],
    }
    assert labels == [named[kind](number) for number in found]
    assert not list((tmp_path / "claims").iterdir())


def test_bits_are_the_encoders(home: Path, tmp_path: Path) -> None:
    shards = embed(home / "run", [home / "rows.parquet"], tmp_path, **SIZES)
    expected = load(home / "run").embed([jpeg(number) for number in range(COUNT)], batch_size=4)
    assert torch.equal(torch.from_numpy(shards.vectors()), expected)
    about = shards.manifest
    assert (about.count, about.dim, about.output, about.distance) == (COUNT, 6, "head", "cosine")
    assert list(about.shards.values()) == [8, 8, 8, 1]


def test_loading_processes_and_half_precision(home: Path, tmp_path: Path) -> None:
    words = [str(home / "folder"), "--out", str(tmp_path / "out"), "--workers", "2"]
    words += ["--dtype", "float16", "--output", "backbone", "--device", "cpu"]
    assert main(["embed", str(home / "run"), *words]) == 0
    shards = ShardFolder(tmp_path / "out")
    assert shards.vectors().dtype == np.float16
    encoder = load(home / "run")
    images = [jpeg(number) for number in numbers(shards)]
    expected = encoder.embed(images, output="backbone")
    torch.testing.assert_close(
        torch.from_numpy(shards.vectors()).float(), expected, rtol=1e-3, atol=1e-4
    )


def test_parts_of_a_folder_are_no_labels(home: Path, tmp_path: Path) -> None:
    for part in ("Train", "test"):
        make_folder(tmp_path / "photos" / part, 2)
    (tmp_path / "photos" / "loose.jpg").write_bytes(jpeg(2))
    shards = embed(home / "run", [tmp_path / "photos"], tmp_path / "out", **SIZES)
    labels = [label for block in shards.blocks() for label in block.labels]
    assert labels == ["class0", "class1", None, "class0", "class1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_and_listed(home: Path, tmp_path: Path, workers: int) -> None:
    """One of the first shard, and the whole second one."""
    folder = shutil.copytree(home / "folder", tmp_path / "photos")
    files = sorted(folder.rglob("*.jpg"))
    broken = [files[2], *files[8:16]]
    for file in broken:
        file.write_bytes(b"no image")
    shards = embed(home / "run", [folder], tmp_path / "out", workers=workers, **SIZES)
    assert len(shards) == COUNT - 9 == sum(len(block.keys) for block in shards.blocks())
    assert list(shards.manifest.shards.values()) == [7, 0, 8, 1]
    skipped = dict(shards.skipped())
    assert list(skipped) == [str(file) for file in broken]
    assert all("UnidentifiedImageError" in reason for reason in skipped.values())
    kept = [file for file in files if file not in broken]
    expected = load(home / "run").embed(kept)
    torch.testing.assert_close(torch.from_numpy(shards.vectors()), expected, rtol=0, atol=1e-6)


def test_broken_rows_of_a_parquet_file(home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jpg"
    kept.write_bytes(jpeg(1))
    images: list[Any] = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": str(kept)}]
    images += [None, {"bytes": None, "path": "nowhere.jpg"}]
    pq.write_table(pa.table({"image": images}), tmp_path / "rows.parquet")
    shards = embed(home / "run", [tmp_path / "rows.parquet"], tmp_path / "out", **SIZES)
    assert next(shards.blocks()).keys == [f"{tmp_path}/rows.parquet/1"]
    assert len(list(shards.skipped())) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output": "backbone"}, r"output \('head' then, 'backbone' now\)"),
        ({"dtype": "float16"}, "dtype"),
        ({"shard_size": 9}, "shard_size"),
        ({"images": "tar-000.tar"}, "images"),
        ({"run": "other"}, "model"),
    ],
    ids=str,
)
def test_another_job_is_refused(
    home: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    torch.manual_seed(1)
    if not (home / "other").exists():
        make_run(home / "other")
    embed(home / "run", [home / "folder"], tmp_path, **SIZES)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    run, images = home / change.pop("run", "run"), [home / change.pop("images", "folder")]
    with pytest.raises(ValueError, match=f"`out`.*{named}"):
        embed(run, images, tmp_path, **{**SIZES, **change})
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["photos.tar", "cut.tar", "empty.tar", "rows.parquet", "none.csv"])
def test_what_cannot_be_embedded_is_named(home: Path, tmp_path: Path, name: str) -> None:
    whole = (home / "tar-000.tar").read_bytes()
    (tmp_path / "photos.tar").write_bytes(b"\x1f\x8b no tar")
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    make_tar(tmp_path / "empty.tar", range(0))
    pq.write_table(pa.table({"text": ["no image"]}), tmp_path / "rows.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        embed(home / "run", [tmp_path / name], tmp_path / "out", **SIZES)


def test_points_of_a_ball_keep_their_precision(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", curvature=0.1)
    folder = make_folder(tmp_path / "photos", 2)
    with pytest.raises(ValueError, match="`dtype`"):
        embed(run, [folder], tmp_path / "out", dtype="float16", device="cpu")
    assert embed(run, [folder], tmp_path / "out", device="cpu").manifest.distance.c == 0.1


# --- interrupted, and together --------------------------------------------------------------------


def killed_at(moment: int, work: Callable[[], Any]) -> bool:
    """Run ``work`` in a process that is killed at some moment; return whether it got that far.

    Moments are each look at the progress, and before and after every file is renamed or removed.
    """

    def run() -> None:
        seen = 0

        def step() -> None:
            nonlocal seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                step()
                result = call(*args, **options)
                step()
                return result

            return wrapped

        for owner, name in ((Path, "replace"), (Path, "unlink"), (job._Todo, "advance")):
            setattr(owner, name, stepping(getattr(owner, name)))
        work()

    child = fork(run)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def kill_and_continue(home: Path, tmp_path: Path, moments: range) -> int:
    """Kill at each of the moments, go on, and compare with what nobody interrupted."""

    def work(out: Path) -> ShardFolder:
        return embed(home / "run", [home / "tar-{000..001}.tar"], out, **SIZES)

    work(tmp_path / "whole")
    expected, tried = content(tmp_path / "whole"), 0
    for moment in moments:
        out = tmp_path / str(moment)
        if not killed_at(moment, lambda out=out: work(out)):
            break
        tried += 1
        work(out)
        assert content(out) == expected, moment
        assert not list((out / "claims").iterdir())
    return tried


def test_killed_at_some_moments_it_continues(home: Path, tmp_path: Path) -> None:
    assert kill_and_continue(home, tmp_path, range(1, 90, 13)) >= 5


@pytest.mark.reliability
def test_killed_at_every_moment_it_continues(home: Path, tmp_path: Path) -> None:
    tried = kill_and_continue(home, tmp_path, range(1, 10_000))
    print(f"{tried} moments")
    assert tried > 50


def test_two_processes_share_the_work(home: Path, tmp_path: Path) -> None:
    """Both write shards; a third, killed by a signal that can be caught, leaves no claim."""
    out = tmp_path / "out"

    def work(name: str) -> None:
        written = []

        def slowly(done: int, total: int) -> None:
            time.sleep(0.02)

        real = job.write_shard
        job.write_shard = lambda out, part, *rest: (real(out, part, *rest), written.append(part))
        embed(home / "run", [home / "folder"], out, progress=slowly, **{**SIZES, "shard_size": 2})
        (tmp_path / name).write_text(json.dumps(written))

    children = [fork(lambda name=name: work(name)) for name in "ab"]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    mine, theirs = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert mine
    assert theirs
    assert sorted(mine + theirs) == list(range(13))
    check(ShardFolder(out), home)


def test_a_signal_releases_the_claim(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = job._Todo.advance

    def stop(todo: Any, count: int) -> None:
        real(todo, count)
        if count:
            assert list((tmp_path / "out" / "claims").iterdir())
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(job._Todo, "advance", stop)
    words = ["embed", str(home / "run"), str(home / "folder"), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "0", "--device", "cpu"]) == 143
    assert "the same command continues" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "claims").iterdir())


@pytest.mark.parametrize("held", ["alive", "lost"])
def test_claims_of_another_machine(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """A claim with signs of life is waited for, and taken over when they have ended."""
    claim = tmp_path / "claims" / "part-00001"
    claim.parent.mkdir()
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    leftover = tmp_path / ".part-00001.parquet.1234abcd.bgl-tmp"
    leftover.write_text("half a shard")
    waited = 0

    def sleep(seconds: float) -> None:
        nonlocal waited
        waited += 1
        if waited == 3:
            die()

    def die() -> None:
        then = time.time() - claims.STALE - 1
        os.utime(claim, (then, then))

    monkeypatch.setattr(job.time, "sleep", sleep)
    if held == "lost":
        die()
    shards = embed(home / "run", [home / "folder"], tmp_path, **SIZES)
    assert waited == (3 if held == "alive" else 0)
    check(shards, home)
    assert not leftover.exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(home: Path, tmp_path: Path) -> None:
    """400 MB in a single shard, from a Parquet file with one row group and from a tar."""

    def write() -> None:
        padding = os.urandom(1 << 20)
        images = [jpeg(number) + padding for number in range(400)]  # decoders stop at the end
        table = pa.table({"image": images})
        file = tmp_path / "rows.parquet"
        pq.write_table(table, file, row_group_size=400, write_batch_size=1)  # an image a page

    def work() -> None:
        embed(home / "run", [home / "folder"], tmp_path / "first", device="cpu")  # imports
        before = peak_memory_mb()
        embed(home / "run", [tmp_path / "rows.parquet"], tmp_path / "out", device="cpu")
        assert peak_memory_mb() - before < 150

    writer = fork(write)  # in a process of its own, whose memory is not counted
    writer.join()
    assert writer.exitcode == 0
    child = fork(work)
    child.join()
    assert child.exitcode == 0
