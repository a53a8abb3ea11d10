"""What ``speed.py`` measures: each case does one piece of work with bgl and with a peer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed import peers
from benchmarks.speed.case import Case, Comparison, Scale, Values, class_data, flop, train_step
from benchmarks.speed.retrieval import (
    recall_faiss,
    recall_hyperbolic,
    recall_library,
    recall_oml,
    recall_rows,
)
from bgl.augment import AugmentedLoss, ClassStatistics, NeighborCorrection
from bgl.hyperbolic import ToPoincareBall
from bgl.layers import BatchGraphConv, BGFormerBlock, DyBGRBlock
from bgl.layers.bgformer import ClassMean
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.training import TrainConfig, build_model
from bgl.training.build import build_augmentation, build_criterion, make_optimizer
from bgl.training.loop import freeze_batch_norm


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
            x = block(x, y=y) if ffn else x + block.mixer(block.norm1(x), y=y)
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
        lambda: train_step(lambda x: block(x, y=y), x, parameters),
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


def convolution(scale: Scale, classes: int) -> Comparison:
    classes, channels, k = scale(classes, 4), scale(768, 16), scale(30, 5)
    x, _ = class_data(scale, classes, 9, channels)
    n = len(x)
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(n, (n * k,), generator=generator)
    edge_index = torch.stack([source, torch.arange(n).repeat_interleave(k)])
    weight = torch.rand(n * k, generator=generator, dtype=torch.float64).to(scale.dtype)
    weight.requires_grad_()
    conv = BatchGraphConv(epsilon=0.5)
    return Comparison(
        lambda: train_step(lambda x: conv(x, edge_index, weight), x, [weight]),
        lambda: train_step(lambda x: peers.simple_conv(x, edge_index, weight, 0.5), x, [weight]),
    )


def compiled(scale: Scale, name: str) -> Comparison:
    channels = scale(768, 16)
    classes = scale(45, 4)
    torch.manual_seed(0)
    modules: dict[str, Callable[[], nn.Module]] = {
        "dybgr": lambda: DyBGRBlock(channels, scale(30, 5)),
        "bgformer": lambda: BGFormerBlock(channels, scale(8, 2), scale(30, 5)),
        "pairwise-loss": lambda: PairwiseCrossEntropyLoss(),
    }
    module = modules[name]().to(scale.dtype)
    x, y = class_data(scale, classes, 9, scale(384, 8) if name == "pairwise-loss" else channels)
    if name == "pairwise-loss":
        x = ToPoincareBall(c=0.1, clip_radius=2.3)(x)
    backend = "aot_eager" if scale.small else "inductor"
    whole = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    parameters = list(module.parameters())
    labels = (y,) if name == "pairwise-loss" else ()
    options = {} if labels else {"y": y}
    return Comparison(
        lambda: train_step(lambda x: whole(x, *labels, **options), x, parameters),
        lambda: train_step(lambda x: module(x, *labels, **options), x, parameters),
    )


_update = partial(class_statistics, n=128, classes=100, whole_set=False)
_estimate = partial(class_statistics, n=5000, classes=1000, whole_set=True)
_BLOCKS = "two DyBGR blocks, N=405, C=768, k=30, T=3"
_DENSE = "dense, full sort, "
_STATISTICS = "class statistics, 512-d, "
_RETRIEVAL = "Recall@K, MAP@R, {images} × 384, "
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
    Case("conv", "convolution along a graph, N=405, C=768, k=30", "PyG's SimpleConv",
         partial(convolution, classes=45), time=1),
    Case("conv-large", "the same, N=4,500", "PyG's SimpleConv",
         partial(convolution, classes=500), time=1),
    Case("pairwise-loss", "both branches, 45 classes × 9, 384-d, hyperbolic",
         "loop over 72 pairs", pairwise_loss, time=15, memory=10, tolerance=1e-4,
         dtype=torch.float32),  # the peer takes 3.5 GB as it is
    *(Case(f"{name}-compiled", work, "the same, not compiled", partial(compiled, name=name),
           dtype=torch.float32, tolerance=1e-2, memory_measured=False)  # a near tie may turn
      for name, work in (
          ("dybgr", "DyBGR block, torch.compile"),
          ("bgformer", "BGFormer block, torch.compile"),
          ("pairwise-loss", "one branch of the loss, torch.compile"))),
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
    Case("recall-pml-default", "Recall@K, MAP@R, 2,000 × 384, cosine", "AccuracyCalculator(k=None)",
         partial(recall_library, n=2000, k=None), time=1, tolerance=1e-3),
    Case("recall-oml", _RETRIEVAL + "cosine", "open-metric-learning, Recall@K alone",
         recall_oml, time=1, tolerance=1e-3, library="oml"),
    Case("recall-hyperbolic", _RETRIEVAL + "hyperbolic", "ours with cosine",
         recall_hyperbolic, time=1 / 1.5, most_memory=1024),
    Case("recall-rows", "Recall@K, MAP@R, 2,000 × 384, hyperbolic", "loop over rows",
         recall_rows, time=5, tolerance=1e-3),
)
# fmt: on
