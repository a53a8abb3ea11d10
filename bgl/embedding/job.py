"""Embed very many images into shards, with as many processes as there are."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bgl._checks import check_choice, check_finite, check_int
from bgl._io import remove_leftovers, write_text
from bgl._records import read_record
from bgl.embedding.claims import Claim, claimed, remove_abandoned
from bgl.embedding.embedder import embed_readable, width
from bgl.embedding.shards import (
    DTYPES,
    MANIFEST_FILE,
    Block,
    Manifest,
    ShardFolder,
    shard_name,
    write_manifest,
    write_shard,
)
from bgl.embedding.sources import Container, listing_digest, open_containers
from bgl.models import load, model_digest
from bgl.models.files import address, locate
from bgl.models.storage import read_config

JOB_FILE = "job.json"
CLAIMS = "claims"
WAIT = 1.0  # seconds between looks at what other processes do
SHARD_SIZE = 10_000

Report = Callable[[int, int], None]


def embed(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    output: str = "default",
    dtype: str = "float32",
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "auto",
    data_root: str | Path | None = None,
    progress: Report = lambda done, total: None,
) -> ShardFolder:
    """Embed images into a folder of shards; repeat the call to continue after an interruption.

    Any number of processes, on any number of machines that share ``out``, may make the same call:
    each claims the shards that it writes, and all return when the last is there. Images that
    cannot be read are left out and listed.

    Args:
        run: The folder of a model, or its name on the Hugging Face hub (:func:`bgl.models.load`).
        images: Folders, files, tables, tars or Parquet files, as ``bgl embed`` takes them.
        out: Folder to write.
        output: Which of the model's embeddings, as :meth:`bgl.models.Encoder.embed` takes it.
        dtype: "float32", or "float16" for half the space.
        shard_size: Most images of a shard. A shard that is not finished is begun again.
        batch_size: Images at a time.
        workers: Processes that load the images; 0: this process does.
        device: Where to compute; "auto": on a GPU if there is one, under ``torchrun`` the process's
            own.
        data_root: What the paths of tables are relative to; None: the table's folder.
        progress: Called after each batch with the number of images done, by all processes as far
            as is known, and of all images.

    Raises:
        FileNotFoundError: If the model or an image is missing.
        ValueError: If ``out`` was begun with another model, output, type, shard size or other
            images, or the model gives values that are not finite.

    Example:
        >>> embed("runs/x/none-seed0", ["photos"], "embeddings")  # doctest: +SKIP
        ShardFolder(120053 x 128, float32, embeddings)
    """
    check_choice(dtype, "dtype", DTYPES)
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        check_int(value, name, 1)
    config, model = read_config(locate(run)), model_digest(run)
    output = config.embedding if output == "default" else output
    check_choice(output, "output", config.embeddings)
    curvature = config.curvature if output == "head" else None
    if curvature is not None and dtype == "float16":
        raise ValueError(
            "Expected argument `dtype` to be 'float32' for points of a hyperbolic ball, got "
            "'float16', which may move them out of it: pass float32, or another `output`"
        )
    containers = open_containers(images, data_root)
    wanted = _Job(model, output, dtype, shard_size, listing_digest(containers))
    out = Path(out)
    (out / CLAIMS).mkdir(parents=True, exist_ok=True)
    job = _begin(out, wanted, containers)
    todo = _Todo(out, job, progress)
    if not (out / MANIFEST_FILE).is_file():
        encoder = load(run, _own_device(device))
        with closing(todo.claimed()) as parts:
            for part in parts:
                container, start, stop = job.piece(part)
                with containers[container].piece(start, stop) as piece:
                    x, broken = embed_readable(
                        encoder, piece.images, output, batch_size, workers, todo.advance
                    )
                kept = [i for i in range(stop - start) if i not in broken]
                keys, labels = [piece.keys[i] for i in kept], [piece.labels[i] for i in kept]
                skipped = [(piece.keys[i], broken[i].reason) for i in sorted(broken)]
                write_shard(out, part, Block(keys, labels, _as_type(x, dtype)), skipped)
        about = Manifest(address(run), model, output, curvature, width(encoder, output), dtype)

        def finish(_: Claim) -> None:
            remove_leftovers(out)
            write_manifest(out, about, len(todo.sizes))

        _once(out, MANIFEST_FILE, finish)
    remove_abandoned(out / CLAIMS)
    return ShardFolder(out)


@dataclass(frozen=True)
class _Job:
    """What a folder of shards is made from: all that decides what is in which shard."""

    model: str
    output: str
    dtype: str
    shard_size: int
    listing: str
    counts: list[int] = dataclasses.field(default_factory=list)  # images of each container

    def sizes(self) -> list[int]:
        """Return the number of images of each shard; no shard has images of two containers."""
        return [
            min(self.shard_size, count - start)
            for count in self.counts
            for start in range(0, count, self.shard_size)
        ]

    def piece(self, part: int) -> tuple[int, int, int]:
        """Return the container of a shard, and where it begins and ends in it."""
        for container, count in enumerate(self.counts):
            shards = -(-count // self.shard_size)
            if part < shards:
                start = part * self.shard_size
                return container, start, min(start + self.shard_size, count)
            part -= shards
        raise IndexError(part)


def _begin(out: Path, wanted: _Job, containers: Sequence[Container]) -> _Job:
    """Read the job of a folder, or write it: counting the images of tars takes a while."""
    path = out / JOB_FILE

    def write(claim: Claim) -> None:
        counts = []
        for container in containers:
            counts.append(len(container))
            claim.beat()
        job = dataclasses.replace(wanted, counts=counts)
        write_text(path, json.dumps(dataclasses.asdict(job)) + "\n")

    _once(out, JOB_FILE, write)
    job = read_record(path, _Job, "write to a new folder")
    titles = {"listing": "images (their names, labels, number or order)", "model": "model"}
    differ = [
        titles.get(name, f"{name} ({then!r} then, {now!r} now)")
        for name, then in vars(job).items()
        if name != "counts" and then != (now := getattr(wanted, name))
    ]
    if differ:
        raise ValueError(
            "Expected argument `out` (--out) to be a new folder or one of the same job, but "
            f"{out} was begun with other {', '.join(differ)}: write to a new folder, or repeat the "
            "first command"
        )
    return job


def _once(out: Path, name: str, write: Callable[[Claim], None]) -> None:
    """Let one of the processes write a file that is not there yet; the others wait for it."""
    while not (out / name).is_file():
        with claimed(out / CLAIMS / name) as claim:
            if claim is None:
                time.sleep(WAIT)
            elif not (out / name).is_file():  # it may be there since a moment ago
                write(claim)


class _Todo:
    """The shards that are still to be written, by whichever process."""

    def __init__(self, out: Path, job: _Job, progress: Report) -> None:
        self.out, self.sizes, self.progress = out, job.sizes(), progress
        there = set(os.listdir(out))
        self.parts = {
            part: size for part, size in enumerate(self.sizes) if shard_name(part) not in there
        }
        self.claim: Claim | None = None
        self.current = 0  # images done of the shard that is being written

    def claimed(self) -> Generator[int, None, None]:
        """Yield one shard after the other to be written now, until all are there.

        Its claim is released when the next one is asked for.
        """
        self.advance(0)
        while self.parts:
            for part in list(self.parts):
                with self._claim(part) as self.claim:
                    if self.claim is not None:
                        self.current = 0
                        yield part
                        self.current = 0
                        del self.parts[part]
                        break  # others have finished theirs meanwhile, which come first
            else:
                time.sleep(WAIT if self.parts else 0)

    def advance(self, count: int) -> None:
        """Note that some images of the shard are done."""
        if self.claim is not None:
            self.claim.beat()
        self.current += count
        total = sum(self.sizes)
        self.progress(total - sum(self.parts.values()) + self.current, total)

    @contextmanager
    def _claim(self, part: int) -> Iterator[Claim | None]:
        """Claim a shard; None if it is there, or another process is at it."""
        path = self.out / shard_name(part)
        with claimed(self.out / CLAIMS / path.stem) as claim:
            if path.exists():  # perhaps since a moment ago
                del self.parts[part]
                claim = None
            yield claim


def _as_type(x: torch.Tensor, dtype: str) -> np.ndarray:
    check_finite(x, "the embeddings")
    small = x.to(getattr(torch, dtype))
    if not small.isfinite().all():
        raise ValueError(
            "Expected argument `dtype` to hold the embeddings, but they reach "
            f"{float(x.abs().max()):.3g}, above the range of float16: pass float32"
        )
    return small.numpy()


def _own_device(device: str | torch.device) -> str | torch.device:
    """Return the GPU of this process among those that ``torchrun`` has started, if there is one."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or str(device) not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"
