"""Ours against straightforward peers: ``python benchmarks/speed.py [--only NAME ...] [--list]``

Each case computes one result in two ways: with bgl, and plainly (``peers.py``) or with the library
one would take instead. First the two results are compared, in float64 where the peer allows it;
then they are timed in turn, in one process, on one thread, in float32, training steps forward and
backward. A ratio is the peer's CPU seconds over ours, the median of the repetitions; with one
thread these are the seconds of an idle machine, and they hold on a busy one too (wall-clock
seconds stand beside them).

Peak memory is how far the resident set of a process grows while it does the work once: in a child
process forked before anything else has run, after a warm-up at a tiny size (which loads code) and
after the inputs are made. It counts everything, whichever library allocates it, and is measured
from what is resident then (on Linux; elsewhere from the peak so far).

``--full`` takes SOP's 60,000 test images for retrieval (10,000 without) and more than an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor, nn

from bgl.augment import AugmentedLoss, ClassStatistics, NeighborCorrection
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import BGFormerBlock, DyBGRBlock
from bgl.layers.bgformer import ClassMean
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.metrics import retrieval_metrics
from bgl.training import TrainConfig, build_model
from bgl.training.build import build_augmentation, build_criterion, make_optimizer
from bgl.training.loop import freeze_batch_norm

Values = dict[str, Tensor]
Work = Callable[[], Values]
Product = tuple[int, int, int]  # [m, k] @ [k, n]

SHORTEST = 0.1  # seconds: shorter work is repeated within a measurement
RECALL_AT = (1, 2, 4, 8)


@dataclass(frozen=True)
class Scale:
    """The size of a case; data of training cases has the given dtype."""

    dtype: torch.dtype = torch.float32
    small: bool = False
    full: bool = False

    def __call__(self, paper: int, small: int) -> int:
        return small if self.small else paper


@dataclass(frozen=True)
class Comparison:
    """The two sides of a case at one size."""

    ours: Work
    peer: Work
    shared: Callable[[], object] | None = None  # work of both sides, timed once, added to both
    products: float = 0.0  # FLOP of the matrix products that nothing can avoid
    check: Callable[[], tuple[Values, Values]] | None = None  # instead of comparing the sides


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    work: str
    against: str
    build: Callable[[Scale], Comparison]
    time: float | None = None  # least ratio of CPU seconds
    memory: float | None = None  # least ratio of peak memory
    most_memory: float | None = None  # of ours, in MiB
    dtype: torch.dtype = torch.float64  # of the check
    tolerance: float = 1e-6  # of the check, relative to each array's largest magnitude

    @property
    def target(self) -> str:
        parts = []
        if self.time is not None:
            parts.append(f"≥ {self.time:.3g}×")
        if self.memory is not None:
            parts.append(f"memory ≤ 1/{self.memory:.3g}")
        if self.most_memory is not None:
            parts.append(f"≤ {self.most_memory:.0f} MiB")
        return ", ".join(parts) or "–"


# ---------------------------------------------------------------------------------------- cases


def train_step(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor] = ()
) -> Values:
    """Output of a function of ``x``, and the gradients of a weighted sum of it."""
    x = x.detach().requires_grad_()
    out = function(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    if out.dim() == 0:
        weight = torch.ones_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), [x, *parameters])
    return {"out": out.detach(), **{f"gradient {i}": g for i, g in enumerate(gradients)}}


def flop(products: Iterable[Product], train: bool = True) -> float:
    """Floating-point operations of matrix products; backward takes two more of each."""
    return (3 if train else 1) * sum(2.0 * m * k * n for m, k, n in products)


def class_data(scale: Scale, classes: int, per_class: int, channels: int) -> tuple[Tensor, Tensor]:
    """Clustered points, sorted by class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(per_class)
    center = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(y), channels, generator=generator, dtype=torch.float64)
    return (center[y] + 1.5 * noise).to(scale.dtype), y


def dybgr(scale: Scale, ffn: bool, gather: bool) -> Comparison:
    classes, channels, k = scale(45, 4), scale(768, 16), scale(30, 5)
    x, y = class_data(scale, classes, 9, channels)
    torch.manual_seed(0)
    blocks = [DyBGRBlock(channels, k).to(scale.dtype) for _ in range(2)]
    mix = partial(
        peers.dybgr, y=y, k=k, iterations=3, lam=0.3, beta=0.5, epsilon=0.5, gather=gather
    )
    parameters = [p for b in blocks for n, p in b.named_parameters() if ffn or "norm1" in n]

    def ours(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, y) if ffn else x + block.mixer(block.norm1(x), y)
        return x

    def peer(x: Tensor) -> Tensor:
        for b in blocks:
            x = peers.block(x, mix, b.norm1, b.norm2, b.mlp) if ffn else x + mix(b.norm1(x))
        return x

    n = len(x)
    products = 2 * 3 * [(n, channels, n), (n, n, channels)]
    if ffn:
        products += 2 * 2 * [(n, channels, 4 * channels)]
    return Comparison(
        lambda: train_step(ours, x, parameters),
        lambda: train_step(peer, x, parameters),
        products=flop(products),
    )


def bgformer(scale: Scale) -> Comparison:
    classes, channels, k, heads = scale(45, 4), scale(768, 16), scale(30, 5), scale(8, 2)
    x, y = class_data(scale, classes, 9, channels)
    torch.manual_seed(0)
    block = BGFormerBlock(channels, heads, k).to(scale.dtype)
    visual, semantic = block.visual, block.semantic
    assert isinstance(semantic, ClassMean)
    parameters = list(block.parameters())

    def peer(x: Tensor) -> Tensor:
        mix = partial(
            peers.bgformer,
            y=y,
            heads=heads,
            k=k,
            lam=0.5,
            qkv=visual.qkv,
            visual_out=visual.proj,
            value=semantic.value,
            semantic_out=semantic.proj,
        )
        return peers.block(x, mix, block.norm1, block.norm2, block.mlp)

    n, width = len(x), channels // heads
    linear = 6 * [(n, channels, channels)] + 2 * [(n, channels, 4 * channels)]
    attention = heads * [(n, width, n), (n, n, width)]
    return Comparison(
        lambda: train_step(lambda x: block(x, y), x, parameters),
        lambda: train_step(peer, x, parameters),
        products=flop(linear + attention),
    )


def pairwise_loss(scale: Scale) -> Comparison:
    classes, per_class, channels = scale(45, 4), scale(9, 3), scale(384, 8)
    x, y = class_data(scale, classes, per_class, channels)
    plain = ToPoincareBall(c=0.1, clip_radius=2.3)(x)
    both = torch.stack([plain, plain.flip(1)])
    criterion = PairwiseCrossEntropyLoss(reduction="sum")

    def ours(z: Tensor) -> Tensor:
        total: Tensor = criterion(z[0], y) + criterion(z[1], y)
        return total

    def peer(z: Tensor) -> Tensor:
        return sum((peers.pairwise_loss(b, per_class, 0.1, 0.2) for b in z), z.new_zeros(()))

    n = len(x)
    return Comparison(
        lambda: train_step(ours, both),
        lambda: train_step(peer, both),
        products=flop(2 * [(n, channels, n)]),
    )


def make_statistics(
    scale: Scale, n: int, classes: int, channels: int
) -> tuple[ClassStatistics, Tensor, Tensor]:
    """Statistics that have seen one set, and the samples of another (two per class if it can)."""
    generator = torch.Generator().manual_seed(0)
    state = ClassStatistics(classes, channels, momentum=0.8).to(scale.dtype)
    center = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    for _ in range(2):
        pairs = torch.arange(2 * classes if n >= 2 * classes else 0) % classes
        rest = torch.randint(classes, (n - len(pairs),), generator=generator)
        y = torch.cat([pairs, rest])
        z = center[y] + torch.randn(n, channels, generator=generator, dtype=torch.float64)
        z = (z / channels**0.5).to(scale.dtype)
        if state.count.sum() == 0:
            state.update(z, y)
    return state, z, y


def class_statistics(scale: Scale, n: int, classes: int, whole_set: bool, loop: bool) -> Comparison:
    n, classes, channels = scale(n, 40), scale(classes, 10), scale(512, 8)
    state, z, y = make_statistics(scale, n, classes, channels)
    old = state.mean.clone(), state.variance.clone(), state.count.clone()

    def values(mean: Tensor, variance: Tensor, count: Tensor) -> Values:
        return {"mean": mean, "variance": variance, "count": count}

    def ours() -> Values:
        (state.estimate if whole_set else state.update)(z, y)
        return values(state.mean, state.variance, state.count)

    def peer() -> Values:
        if loop:
            return values(*peers.loop_statistics(old, z, y, state.momentum))
        at_once = classes if n < 1000 else 2  # all of them would take 10 GB, a tensor
        return values(*peers.one_hot_statistics(old, z, y, state.momentum, at_once))

    return Comparison(ours, peer)


def correction(scale: Scale) -> Comparison:
    classes, channels = scale(2000, 40), scale(512, 8)
    state, z, y = make_statistics(scale, 5 * classes, classes, channels)
    state.estimate(z, y)
    neighbor_correction = NeighborCorrection(25, beta=0.1, gamma=0.1, max_count=40)
    mean, variance, count = state.mean.numpy(), state.variance.numpy(), state.class_size.numpy()

    def peer() -> Values:
        corrected = peers.neighbor_correction(
            mean, variance, count, neighbors=25, beta=0.1, gamma=0.1, max_count=40, sigma=1.0
        )
        return {"variance": torch.from_numpy(corrected)}

    return Comparison(lambda: {"variance": neighbor_correction(state)}, peer)


def augmentation(scale: Scale, estimates: bool) -> Comparison:
    config = TrainConfig(
        method="none",
        weights="none",
        image_size=scale(64, 32),
        batch_size=scale(128, 8),
        per_class=scale(4, 2),
        head_dim=scale(128, 16),
        loss="multi-similarity",
        augmentation="iaa",
    )
    torch.manual_seed(0)
    model, _ = build_model(config)
    freeze_batch_norm(model.train())
    criterion = build_criterion(config, 300)
    optimizer = make_optimizer(config, model, criterion)
    images = torch.randn(config.batch_size, 3, config.image_size, config.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    synthetic = build_augmentation(config, 300)
    assert synthetic is not None
    synthetic.to(scale.dtype)
    known, known_labels = class_data(scale, 300, 7, config.head_dim)
    synthetic.statistics.estimate(known, known_labels)
    z = class_data(scale, config.batch_size // config.per_class, config.per_class, config.head_dim)
    loss = AugmentedLoss(criterion.loss, synthetic, criterion.miner)

    def step() -> None:
        embeddings = model(images).embeddings
        embeddings.backward(torch.full_like(embeddings, 1e-3))
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ours() -> Values:
        if estimates:  # each image once in two epochs
            model.eval()
            with torch.no_grad():
                model(images[::2])
            freeze_batch_norm(model.train())
        return train_step(lambda x: loss(x, z[1]), z[0])

    def check() -> tuple[Values, Values]:
        noise = torch.randn(3, *z[0].shape, dtype=scale.dtype)
        given = AugmentedLoss(criterion.loss, partial(synthetic, noise=noise), criterion.miner)
        plainly = partial(
            peers.augmented_multi_similarity,
            y=z[1],
            deviation=synthetic.factor()[z[1]],
            strength=synthetic.strength,
            noise=noise,
        )
        return train_step(lambda x: given(x, z[1]), z[0]), train_step(plainly, z[0])

    return Comparison(
        ours, lambda: train_step(lambda x: criterion(x, z[1]), z[0]), shared=step, check=check
    )


def retrieval_set(scale: Scale, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings like those of SOP's test images: about five per class."""
    if n is None:
        n = 60_000 if scale.full else 10_000
    x, y = class_data(Scale(), scale(n, 100) // 5, 5, scale(384, 16))
    return x / x.size(1) ** 0.5, y


def measured(x: Tensor, y: Tensor, distance: Any = "cosine") -> Values:
    found = retrieval_metrics(x, y, k=RECALL_AT, distance=distance)
    return {name: torch.tensor(v) for name, v in found.items() if not name.startswith("num_")}


def search_flop(x: Tensor) -> float:
    return flop([(len(x), x.size(1), len(x))], train=False)


def recall_faiss(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale)
    return Comparison(
        lambda: measured(x, y),
        lambda: peers.faiss_metrics(x, y, RECALL_AT),
        products=search_flop(x),
    )


def recall_library(scale: Scale, k: str | None, n: int | None = None) -> Comparison:
    x, y = retrieval_set(scale, n)

    def ours() -> Values:
        found = measured(x, y)
        return {name: found[name] for name in ("recall@1", "map@r", "r_precision")}

    return Comparison(
        ours, lambda: peers.accuracy_calculator_metrics(x, y, k), products=search_flop(x)
    )


def recall_hyperbolic(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale)
    ball = ToPoincareBall()(3 * x)
    distance = HyperbolicDistance()

    def check() -> tuple[Values, Values]:
        rows = slice(0, 500)
        by_loop = peers.hyperbolic_row_loop(ball[rows].double(), y[rows], RECALL_AT, distance.c)
        return measured(ball[rows], y[rows], distance), by_loop

    return Comparison(
        lambda: measured(ball, y, distance),
        lambda: measured(x, y),
        check=check,
    )


def recall_rows(scale: Scale) -> Comparison:
    x, y = retrieval_set(scale, 2000)
    ball = ToPoincareBall()(3 * x)
    distance = HyperbolicDistance()
    return Comparison(
        lambda: measured(ball, y, distance),
        lambda: peers.hyperbolic_row_loop(ball, y, RECALL_AT, distance.c),
        products=search_flop(x),
    )


_update = partial(class_statistics, n=128, classes=100, whole_set=False)
_estimate = partial(class_statistics, n=5000, classes=1000, whole_set=True)
_BLOCKS = "two DyBGR blocks, N=405, C=768, k=30, T=3"
_DENSE = "dense, full sort, "
_STATISTICS = "class statistics, 512-d, "
_RETRIEVAL = "Recall@K, MAP@R, 384-d, "
# fmt: off
CASES = (
    Case("dybgr", _BLOCKS, _DENSE + "sum over N × k × C",
         partial(dybgr, ffn=True, gather=True), time=2, memory=2),
    Case("dybgr-scatter", _BLOCKS, _DENSE + "scatter to N × N",
         partial(dybgr, ffn=True, gather=False), time=2, memory=2),
    Case("dybgr-graph", "the same without the FFN", _DENSE + "sum over N × k × C",
         partial(dybgr, ffn=False, gather=True), time=4, memory=2),
    Case("dybgr-graph-scatter", "the same without the FFN", _DENSE + "scatter to N × N",
         partial(dybgr, ffn=False, gather=False), time=4, memory=2),
    Case("bgformer", "BGFormer block, N=405, C=768, 8 heads, k=30", "dense top-k, scatter",
         bgformer, time=1.5),
    Case("pairwise-loss", "both branches, 45 classes × 9, 384-d, hyperbolic",
         "loop over 72 pairs", pairwise_loss, time=15, memory=10, tolerance=1e-4,
         dtype=torch.float32),  # the peer takes 3.5 GB as it is
    Case("update", _STATISTICS + "N=128, 100 classes", "one-hot N × K × D",
         partial(_update, loop=False), time=10),
    Case("update-loop", _STATISTICS + "N=128, 100 classes", "loop over classes",
         partial(_update, loop=True)),
    Case("estimate", _STATISTICS + "N=5,000, 1,000 classes", "one-hot N × K × D",
         partial(_estimate, loop=False), time=20),
    Case("estimate-loop", _STATISTICS + "N=5,000, 1,000 classes", "loop over classes",
         partial(_estimate, loop=True), time=20),
    Case("correction", "neighbor correction, 2,000 classes, 512-d", "NumPy, loop over classes",
         correction),
    Case("iaa", "step with IAA, EfficientNet-Lite0, 64 px, N=128", "step without IAA",
         partial(augmentation, estimates=False), time=1 / 1.03),
    Case("iaa-estimates", "the same, with an estimate every two epochs", "step without IAA",
         partial(augmentation, estimates=True)),
    Case("recall-faiss", _RETRIEVAL + "cosine", "faiss exact search, NumPy",
         recall_faiss, time=1, most_memory=1024, tolerance=1e-3),  # faiss ranks in float32
    Case("recall-pml", _RETRIEVAL + "cosine", 'AccuracyCalculator(k="max_bin_count")',
         partial(recall_library, k="max_bin_count"), time=1, most_memory=1024, tolerance=1e-3),
    Case("recall-pml-default", _RETRIEVAL + "cosine, n=2,000", "AccuracyCalculator(k=None)",
         partial(recall_library, n=2000, k=None), time=1, tolerance=1e-3),
    Case("recall-hyperbolic", _RETRIEVAL + "hyperbolic", "ours with cosine",
         recall_hyperbolic, time=1 / 1.5, most_memory=1024),
    Case("recall-rows", _RETRIEVAL + "hyperbolic, n=2,000", "loop over rows",
         recall_rows, time=5, tolerance=1e-3),
)
# fmt: on


# --------------------------------------------------------------------------------- measurements


@dataclass(frozen=True)
class Seconds:
    """Medians over the repetitions, per call."""

    ours: float
    peer: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    case: Case
    cpu: Seconds
    wall: Seconds
    memory: tuple[float, float]  # MiB, ours and the peer's
    detail: str

    @property
    def met(self) -> bool | None:
        case, (ours, peer) = self.case, self.memory
        results = []
        if case.time is not None:
            results.append(self.cpu.ratio >= case.time)
        if case.memory is not None:
            results.append(peer >= case.memory * ours)
        if case.most_memory is not None:
            results.append(ours <= case.most_memory)
        return all(results) if results else None

    def cells(self) -> list[str]:
        ours, peer = self.memory
        return [
            self.case.name,
            self.case.work,
            self.case.against,
            f"{self.cpu.ratio:.2f}×",
            f"{self.wall.ratio:.2f}×",
            _seconds(self.cpu.ours),
            _seconds(self.cpu.peer),
            _seconds(self.wall.ours),
            _seconds(self.wall.peer),
            f"{ours:.0f}",
            f"{peer:.0f}",
            self.case.target,
            {True: "met", False: "NOT MET", None: "–"}[self.met],
            self.detail,
        ]


HEADER = [
    "case", "work", "against", "CPU ratio", "wall ratio", "CPU ours", "CPU peer", "wall ours",
    "wall peer", "MiB ours", "MiB peer", "target", "result", "notes",
]  # fmt: skip
WIDTHS = [19, 52, 37, 9, 10, 8, 8, 9, 9, 8, 8, 20, 7, 0]


def disagreement(case: Case, scale: Scale) -> float:
    """Largest difference between two results, relative to the largest magnitude of each array."""
    comparison = case.build(Scale(case.dtype, scale.small, scale.full))
    check = comparison.check or (lambda: (comparison.ours(), comparison.peer()))
    ours, peer = check()
    if ours.keys() != peer.keys():
        raise ValueError(f"{case.name}: results {sorted(ours)} and {sorted(peer)}")
    worst = 0.0
    for name, expected in peer.items():
        found, expected = ours[name].double(), expected.double()
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def timed(work: Callable[[], object], calls: int) -> tuple[float, float]:
    """CPU and wall-clock seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / calls, wall / calls


def compare_times(comparison: Comparison, repeats: int) -> tuple[Seconds, Seconds, str]:
    """Both sides in turn, first one first, then the other: CPU and wall-clock seconds."""
    works: list[Callable[[], object]] = [comparison.ours, comparison.peer]
    if comparison.shared is not None:
        works.append(comparison.shared)
    calls = []
    for work in works:
        seconds, _ = timed(work, 1)
        if seconds < SHORTEST:  # warm now
            seconds, _ = timed(work, 1)
        calls.append(math.ceil(min(1000, max(1, SHORTEST / max(1e-9, seconds)))))
    gc.collect()
    gc.disable()
    rounds, rates = [], []
    for repeat in range(repeats):
        order = range(len(works))
        found = {i: timed(works[i], calls[i]) for i in (reversed(order) if repeat % 2 else order)}
        rounds.append([found[i] for i in order])
        if comparison.products > 0:
            rates.append(product_rate())
    gc.enable()
    cpu, wall = ([[side[clock] for side in sides] for sides in rounds] for clock in (0, 1))
    return _medians(cpu), _medians(wall), _detail(comparison, cpu, rates)


def _medians(rounds: list[list[float]]) -> Seconds:
    shared = statistics.median(sum(sides[2:]) for sides in rounds)
    ours = [sides[0] + shared for sides in rounds]
    peer = [sides[1] + shared for sides in rounds]
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return Seconds(statistics.median(ours), statistics.median(peer), statistics.median(ratios))


def _detail(comparison: Comparison, rounds: list[list[float]], rates: list[float]) -> str:
    if comparison.shared is not None:
        overhead = statistics.median(ours - peer for ours, peer, _ in rounds)
        return f"overhead {overhead / statistics.median(r[1] + r[2] for r in rounds):.1%}"
    if comparison.products == 0:
        return ""
    seconds = comparison.products / statistics.median(rates)
    limit = statistics.median(sides[1] for sides in rounds) / seconds
    return f"matrix products alone {_seconds(seconds)}: at most {limit:.1f}×"


def product_rate() -> float:
    """FLOP per CPU second of a large float32 matrix product, here and now."""
    a, b = torch.rand(512, 768), torch.rand(768, 3072)
    work = partial(torch.mm, a, b)
    work()
    return flop([(512, 768, 3072)], train=False) / timed(work, 10)[0]


def peak_memory(case: Case, scale: Scale, side: str) -> float:
    """MiB by which a child process grows during the work of one side."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(case, scale, side, sender))
    process.start()
    sender.close()
    try:
        growth: float = receiver.recv()
    except EOFError:  # it did not live to tell
        growth = math.nan
    process.join()
    return growth


def _measure_peak(case: Case, scale: Scale, side: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    getattr(case.build(Scale(scale.dtype, small=True)), side)()
    work = getattr(case.build(scale), side)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # give back what the inputs took to make
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # lower the peak to what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = work()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    sender.send((after - before) / (2**20 if sys.platform == "darwin" else 2**10))


# ----------------------------------------------------------------------------------------- main


def environment() -> str:
    """The machine, threads and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    versions = [f"python {platform.python_version()}"]
    for name in ("torch", "torch-geometric", "numpy", "faiss-cpu", "pytorch-metric-learning"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    busy = os.getloadavg()[0]
    return (
        f"{model} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, load "
        f"{busy:.1f}; {torch.get_num_threads()} thread, float32\n{', '.join(versions)}"
    )


def one_thread() -> None:
    """Every library on one thread."""
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(1)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def line(cells: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(cells) + " |"
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, WIDTHS, strict=True)).rstrip()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these cases only")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--repeats", type=int, default=7, help="alternating repetitions (7)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--full", action="store_true", help="retrieval among 60,000 images")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print the table; 1 if two results disagree."""
    options = parse(argv)
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    if options.list:
        for case in cases:
            print(f"{case.name:20}{case.work}; against: {case.against}; target: {case.target}")
        return 0
    started = time.perf_counter()
    warnings.simplefilter("ignore")
    one_thread()
    scale = Scale(small=options.small, full=options.full)
    print(environment())
    sizes = "tiny sizes" if options.small else "SOP's 60,000" if options.full else "10,000"
    print(f"retrieval among {sizes}; medians of {options.repeats}; peak memory beside the inputs\n")

    # Before anything has run here: forked processes inherit no caches and no threads.
    memory = {}
    for case in cases:
        print(f"memory: {case.name}", file=sys.stderr, flush=True)
        memory[case.name] = (
            peak_memory(case, scale, "ours"),
            peak_memory(case, scale, "peer"),
        )
    print(line(HEADER, options.markdown))
    if options.markdown:
        print(line(["---"] * len(HEADER), True))
    rows, failed = [], []
    for case in cases:
        try:
            error = disagreement(case, scale)
            if not error <= case.tolerance:
                failed.append(f"{case.name}: results differ by {error:.1e} > {case.tolerance:.0e}")
                continue
            cpu, wall, detail = compare_times(case.build(scale), options.repeats)
        except ImportError as missing:
            failed.append(f"{case.name}: not measured, {missing}")
            continue
        detail = "; ".join(filter(None, [detail, f"results agree to {error:.0e}"]))
        rows.append(Row(case, cpu, wall, memory[case.name], detail))
        print(line(rows[-1].cells(), options.markdown), flush=True)
    missed = sum(row.met is False for row in rows)
    print(f"\n{len(rows)} cases, {missed} below target, {time.perf_counter() - started:.0f} s")
    for failure in failed:
        print(failure)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
