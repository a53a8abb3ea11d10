"""What is measured: layers, losses and augmentation; ``retrieval.py`` and ``data.py`` have more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from benchmarks.speed import peers
from benchmarks.speed.case import (
    Case,
    Peer,
    Scale,
    Sides,
    Values,
    Work,
    class_data,
    flop,
    train_step,
)
from benchmarks.speed.data import large_photos, photos
from benchmarks.speed.retrieval import recall, recall_hyperbolic, recall_small
from bgl.augment import AugmentedLoss, ClassStatistics, NeighborCorrection
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import AdaptiveGraph, BatchGraphConv, BGFormerBlock, DyBGR, DyBGRBlock
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.training import TrainConfig, build_model
from bgl.training.build import build_augmentation, build_criterion, make_optimizer
from bgl.training.loop import freeze_batch_norm
from bgl.transforms import LearnBatchGraph

Layer = Callable[..., Tensor]
MakeLayer = Callable[[Scale], Layer]

SUMS = "dense, `topk`, scatter"
FORMULA = "the authors' formula: full sort, sum over N × k × C"
TURN = 1e-2  # compiled code rounds otherwise, and a near tie may turn


def compiled(scale: Scale, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compile a function for one size, as a peer would be."""
    backend = "aot_eager" if scale.small else "inductor"
    return torch.compile(lambda x: function(x), fullgraph=True, dynamic=False, backend=backend)


def layer_sides(
    scale: Scale,
    ours: Callable[[Tensor], Tensor],
    dense: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    targets: tuple[float | None, float | None],
) -> tuple[dict[str, Work], list[Peer]]:
    """Give a layer and its dense form, both eager and compiled."""

    def step(function: Callable[[Tensor], Tensor]) -> Work:
        return lambda: train_step(function, x, parameters)

    sides = {"bgl": step(ours), "bgl, compiled": step(compiled(scale, ours))}
    with_compile = step(compiled(scale, dense))
    return sides, [
        Peer(SUMS, step(dense), target=targets[0]),
        Peer(f"{SUMS}, compiled", with_compile, "bgl, compiled", target=targets[1], tolerance=TURN),
    ]


def dybgr(scale: Scale, ffn: bool) -> Sides:
    """DyBGR, alone or in its block."""
    channels, k, rounds = scale(768, 16), scale(30, 5), 3
    x, y = class_data(scale, scale(45, 4), 9, channels)
    torch.manual_seed(0)
    block = DyBGRBlock(channels, k, num_iterations=rounds).to(scale.dtype)
    mixer = DyBGR(k, num_iterations=rounds)
    ours = partial(block if ffn else mixer, y=y)
    mix = partial(peers.dybgr, y=y, k=k, iterations=rounds)

    def dense(x: Tensor, formula: bool = False) -> Tensor:
        own = partial(mix, formula=formula)
        return peers.in_block(x, own, block) if ffn else own(x)

    parameters = list(block.parameters()) if ffn else []
    targets = (None, None) if ffn else (1.2, 1.0)
    sides, found = layer_sides(scale, ours, dense, x, parameters, targets)
    authors = partial(dense, formula=True)
    found.append(Peer(FORMULA, lambda: train_step(authors, x, parameters), formula=True))
    n = len(x)
    products = rounds * [(n, channels, n), (n, n, channels)]
    products += 2 * [(n, channels, 4 * channels)] if ffn else []
    return Sides(sides, found, flop(products))


def bgformer(scale: Scale) -> Sides:
    channels, k, heads = scale(768, 16), scale(30, 5), scale(8, 2)
    x, y = class_data(scale, scale(45, 4), 9, channels)
    torch.manual_seed(0)
    block = BGFormerBlock(channels, heads, k).to(scale.dtype)
    ours = partial(block, y=y)
    mix = partial(peers.bgformer, y=y, heads=heads, k=k, block=block)
    dense = partial(peers.in_block, mix=mix, block=block)
    n, width = len(x), channels // heads
    linear = 6 * [(n, channels, channels)] + 2 * [(n, channels, 4 * channels)]
    attention = heads * [(n, width, n), (n, n, width)]
    sides, found = layer_sides(scale, ours, dense, x, list(block.parameters()), (None, None))
    return Sides(sides, found, flop(linear + attention))


def convolution(scale: Scale, classes: int) -> Sides:
    """Weighted sums over k distinct neighbours of each node."""
    x, _ = class_data(scale, scale(classes, 4), 9, scale(768, 16))
    n, k = len(x), scale(30, 5)
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(n, n, generator=generator).topk(k, dim=1).indices.sort(dim=1).values
    edge_index = torch.stack([source.flatten(), torch.arange(n).repeat_interleave(k)])
    weight = torch.rand(n * k, generator=generator, dtype=torch.float64).to(scale.dtype)
    weight.requires_grad_()
    conv = BatchGraphConv(epsilon=1.0)
    ways = {
        "CSR product": peers.sparse_sum,
        "`scatter @ x`": peers.scatter_sum,
        "PyG's `SimpleConv`": peers.simple_sum,
        "PyG's `GCNConv` on `EdgeIndex`": peers.gcn_sum,
    }

    def step(function: Callable[..., Tensor]) -> Work:
        return lambda: train_step(lambda x: function(x, edge_index, weight), x, [weight])

    return Sides(
        {"bgl": step(conv)}, [Peer(name, step(way), target=1.0) for name, way in ways.items()]
    )


def graphs(scale: Scale, count: int, nodes: int) -> Sides:
    """Graphs on the nodes of a PyG batch, without gradients."""
    count, nodes, k = scale(count, 3), scale(nodes, 12), scale(15, 3)
    x, batch = batched(scale, count, nodes, scale(64, 8))
    learn = LearnBatchGraph(AdaptiveGraph(k))

    def ours() -> Values:
        with torch.no_grad():
            return {"edges": learn(Data(x=x, batch=batch)).edge_index}

    def nearest() -> Values:
        return {"edges": peers.nearest_by_graph(x, [nodes] * count, k)}

    def check(run: Work) -> tuple[Values, Values]:
        def length(values: Values) -> Values:
            source, target = values["edges"]
            lengths = (x[source] - x[target]).norm(dim=1)
            return {"length": x.new_zeros(len(x)).index_add(0, target, lengths)}

        return length(ours()), length(run())

    note = "neighbours without weights"
    peer = Peer("`cdist`, `topk`, graph by graph", nearest, tolerance=1e-3, note=note)
    return Sides({"bgl": ours}, [peer], check=check)


def apart(scale: Scale, make: MakeLayer, count: int, nodes: int, channels: int = 64) -> Sides:
    """A layer on the graphs of a batch, against a call for each graph."""
    nodes = scale(nodes, 12)
    x, batch = batched(scale, scale(count, 3), nodes, scale(channels, min(channels, 8)))
    layer = make(scale)

    def each(x: Tensor) -> Tensor:
        return torch.cat([layer(part) for part in x.split(nodes)])

    peer = Peer("a call for each graph", lambda: train_step(each, x), target=1 / 1.3)
    return Sides({"bgl": lambda: train_step(lambda x: layer(x, batch=batch), x)}, [peer])


def one_iteration(scale: Scale) -> Layer:
    """DyBGR with a single graph."""
    return DyBGR(scale(15, 3), num_iterations=1)


def drawn_anew(scale: Scale) -> Layer:
    """Sums along graphs of points, as DGCNN draws them anew in each layer."""
    learner, conv = AdaptiveGraph(scale(20, 3)), BatchGraphConv(epsilon=1.0)
    return lambda x, batch=None: conv(x, *learner(x, batch=batch))


def batched(scale: Scale, count: int, nodes: int, channels: int) -> tuple[Tensor, Tensor]:
    """Nodes of some graphs of one size, and the graph of each."""
    x, _ = class_data(scale, count * nodes // 4, 4, channels)
    return x, torch.arange(count).repeat_interleave(nodes)


def pairwise_loss(scale: Scale) -> Sides:
    per_class, channels = scale(9, 3), scale(384, 8)
    x, y = class_data(scale, scale(45, 4), per_class, channels)
    z = ToPoincareBall(c=0.1, clip_radius=2.3)(x)
    criterion = PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(c=0.1), "sum")
    loop = partial(peers.pairwise_loss, per_class=per_class, c=0.1, temperature=0.2)
    at_once = partial(peers.pairwise_loss_at_once, per_class=per_class, c=0.1, temperature=0.2)
    return Sides(
        {"bgl": lambda: train_step(lambda z: criterion(z, y), z)},
        [
            Peer("all pairs at once", lambda: train_step(at_once, z), tolerance=1e-4),
            Peer(  # takes gigabytes in float32 as it is
                "the authors' loop over 72 pairs",
                lambda: train_step(loop, z),
                formula=True,
                tolerance=1e-4,
            ),
        ],
        flop([(len(x), channels, len(x))]),
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


def class_statistics(scale: Scale, n: int, classes: int, whole_set: bool) -> Sides:
    state, z, y = make_statistics(scale, scale(n, 40), scale(classes, 10), scale(512, 8))
    old = state.mean.clone(), state.variance.clone(), state.count.clone()
    take = state.estimate if whole_set else state.update

    def values(found: peers.Statistics) -> Values:
        return dict(zip(("mean", "variance", "count"), found, strict=True))

    def ours() -> Values:
        take(z, y)
        return values((state.mean, state.variance, state.count))

    def peer(way: Callable[..., peers.Statistics]) -> Work:
        return lambda: values(way(old, z, y, state.momentum))

    def check(run: Work) -> tuple[Values, Values]:
        for value, before in zip((state.mean, state.variance, state.count), old, strict=True):
            value.copy_(before)
        return ours(), run()

    return Sides(
        {"bgl": ours},
        [
            Peer("`index_add_`", peer(peers.index_add_statistics), note="checks no labels"),
            Peer("loop over classes", peer(peers.loop_statistics), formula=True),
        ],
        check=check,
    )


def correction(scale: Scale) -> Sides:
    classes, channels = scale(2000, 40), scale(512, 8)
    state, z, y = make_statistics(scale, 5 * classes, classes, channels)
    state.estimate(z, y)
    ours = NeighborCorrection(25, beta=0.1, gamma=0.1, max_count=40)
    given = state.mean.numpy(), state.variance.numpy(), state.class_size.numpy()

    def peer() -> Values:
        return {"variance": torch.from_numpy(peers.neighbor_correction(*given))}

    return Sides(
        {"bgl": lambda: {"variance": ours(state)}},
        [Peer("NumPy, loop over classes", peer, formula=True)],
    )


def augmentation(scale: Scale, estimates: bool) -> Sides:
    """The loss of a step with IAA and without; the step around it is shared."""
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
    synthetic = cast(Any, build_augmentation(config, 300)).augmentation.to(scale.dtype)
    known, known_labels = class_data(scale, 300, 7, config.head_dim)
    synthetic.statistics.estimate(known, known_labels)
    classes = config.batch_size // config.per_class
    z, y = class_data(scale, classes, config.per_class, config.head_dim)
    loss = AugmentedLoss(criterion.loss, synthetic, criterion.miner)

    def step() -> Values:
        embeddings = model(images).embeddings
        embeddings.backward(torch.full_like(embeddings, 1e-3))
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {}

    def ours() -> Values:
        if estimates:  # each image once in two epochs
            model.eval()
            with torch.no_grad():
                model(images[::2])
            freeze_batch_norm(model.train())
        return train_step(lambda z: loss(z, y), z)

    def check(_: Work) -> tuple[Values, Values]:
        noise = torch.randn(3, *z.shape, dtype=scale.dtype)
        given = AugmentedLoss(criterion.loss, partial(synthetic, noise=noise), criterion.miner)
        copies = y, synthetic.factor()[y], synthetic.strength, noise
        return (
            train_step(lambda z: given(z, y), z),
            train_step(lambda z: peers.augmented_multi_similarity(z, *copies), z),
        )

    plain = Peer(
        "a step without IAA",
        lambda: train_step(lambda z: criterion(z, y), z),
        target=None if estimates else 1 / 1.03,
        note="more work, so below 1: what IAA costs",
    )
    return Sides({"bgl": ours}, [plain], shared=step, check=check)


_STATISTICS = "class statistics, 512-d"
_update = partial(class_statistics, n=128, classes=100, whole_set=False)
_estimate = partial(class_statistics, n=5000, classes=1000, whole_set=True)
_iaa, _iaa_estimated = (partial(augmentation, estimates=each) for each in (False, True))
_steps = partial(apart, make=one_iteration)
_points = partial(apart, make=drawn_anew, count=32, nodes=1024)
_POINTS = "a graph on each of 32 × 1,024 points, k=20, with gradients"
_STEP = "EfficientNet-Lite0, 64 px, N=128"
CASES = (
    Case("dybgr", "DyBGR, N=405, C=768, k=30, T=3", partial(dybgr, ffn=False)),
    Case("dybgr-block", "the same in its block, with FFN", partial(dybgr, ffn=True)),
    Case("bgformer", "BGFormer block, N=405, C=768, 8 heads, k=30", bgformer),
    Case("conv", "sums along a graph, N=405, C=768, k=30", partial(convolution, classes=45)),
    Case("conv-large", "the same, N=4,500", partial(convolution, classes=500)),
    Case("batch-32", "a graph on each of 32 × 512 nodes", partial(graphs, count=32, nodes=512)),
    Case("batch-8", "a graph on each of 8 × 1,024 nodes", partial(graphs, count=8, nodes=1024)),
    Case("steps-32", "DyBGR, T=1, on 32 × 512 nodes", partial(_steps, count=32, nodes=512)),
    Case("steps-8", "DyBGR, T=1, on 8 × 1,024 nodes", partial(_steps, count=8, nodes=1024)),
    Case("points-3", f"{_POINTS}, positions", partial(_points, channels=3)),
    Case("points-64", f"{_POINTS}, 64 channels", partial(_points, channels=64)),
    Case("pairwise-loss", "pairwise loss, 45 classes × 9, 384-d, hyperbolic", pairwise_loss),
    Case("update", f"{_STATISTICS}, N=128, 100 classes", _update),
    Case("estimate", f"{_STATISTICS}, N=5,000, 1,000 classes", _estimate),
    Case("correction", "neighbor correction, 2,000 classes, 512-d", correction),
    Case("iaa", f"a step with IAA, {_STEP}", _iaa),
    Case("iaa-estimates", "the same, an estimate in two epochs", _iaa_estimated),
    Case("photos", "32 training images of 224 px from JPEG files of 500 × 375", photos),
    Case("photos-12mp", "2 training images from JPEG files of 4,000 × 3,000", large_photos),
    Case("recall", "Recall@K, MAP@R, 20,000 × 384, cosine", recall),
    Case("recall-small", "the same, 2,000 × 384", recall_small),
    Case("recall-hyperbolic", "Recall@K, MAP@R, 20,000 × 384, hyperbolic", recall_hyperbolic),
)
