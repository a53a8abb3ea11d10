"""Nothing in a layer or a loss waits for the device: no value is read on the way.

Fake tensors have shapes and no values, so whatever looks at one raises. A training step that gets
through with them never stops a GPU's queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import without_values
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch_geometric.nn import GATv2Conv

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import (
    AdaptiveGraph,
    BatchFormerBlock,
    BatchGraphConv,
    BGFormerBlock,
    DyBGR,
    DyBGRBlock,
    RandomGraphBlock,
)
from bgl.layers.bgformer import GraphAttention
from bgl.losses import PairwiseCrossEntropyLoss

N, C, K = 12, 8, 3
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "dybgr": lambda: DyBGRBlock(C, K),
    "dybgr-paper": lambda: DyBGRBlock(C, K, formulation="paper", norm="graph"),
    "dybgr-plain": lambda: DyBGR(K),
    "bgformer": lambda: BGFormerBlock(C, 2, K),
    "bgformer-graph-norm": lambda: BGFormerBlock(C, 2, K, norm="graph"),
    "bgformer-attention": lambda: BGFormerBlock(C, 2, K, semantic="attention"),
    "batchformer": lambda: BatchFormerBlock(C, 2),
    "random": lambda: RandomGraphBlock(C, K),
}
blocks = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(N, C, requires_grad=True), torch.arange(N) % 4


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@blocks
def test_blocks(fake, make, labels, graphs):
    x, y = batch()
    out = without_values(make())(x, y=y if labels else None, batch=y // 2 if graphs else None)
    out.sum().backward()
    assert x.grad.shape == x.shape


def test_convolution_and_attention_along_a_graph(fake):
    x, _ = batch()
    edges, weight = torch.randint(N, (2, 40)), torch.rand(40, requires_grad=True)
    BatchGraphConv()(x, edges, weight).sum().backward()
    without_values(GraphAttention(C, 2, K))(x).sum().backward()
    assert weight.grad.shape == weight.shape


def test_pairwise_loss(fake):
    x, y = batch()
    PairwiseCrossEntropyLoss()(x, y).backward()
    PairwiseCrossEntropyLoss(0.2, HyperbolicDistance())(ToPoincareBall()(x), y).backward()
    HyperbolicDistance()(x, x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_augmentation(covariance):
    statistics = ClassStatistics(4, C, covariance=covariance)
    with FakeTensorMode():
        x, y = batch()
        without_values(statistics).update(x, y)
        augmentation = IntraClassAugmentation(statistics)
        # Proxy and pair losses of pytorch-metric-learning look for their pairs with nonzero().
        loss = AugmentedLoss(lambda z, labels: z.square().sum(), augmentation)
        loss(x, y).backward()
        assert x.grad.shape == x.shape


def test_reading_a_value_is_noticed(fake):
    x, _ = batch()
    with pytest.raises(DataDependentOutputException):
        bool((x > 0).any())


# --- torch.compile -----------------------------------------------------------------------------


def assert_compiles_once(function: Callable[..., Tensor], sizes: tuple[int, ...]) -> None:
    """The same output and gradient as without, from one graph for all batch sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in sizes:
            y, results = torch.arange(n) // 4, []
            for call in (compiled, function):
                torch.manual_seed(n)
                x = (torch.randn(n, C, dtype=torch.float64) / 4).requires_grad_()
                out = call(x, y)
                results.append((out, *torch.autograd.grad(out.square().sum(), x)))
            torch.testing.assert_close(*results)


@pytest.mark.slow
@blocks
def test_blocks_compile_once_for_all_batch_sizes(make):
    block = make().double()
    assert_compiles_once(lambda x, y: block(x, y=y), (12, 20, 36))


@pytest.mark.slow
@pytest.mark.parametrize("formulation", ["released", "paper"])
def test_more_samples_than_a_block_compile_once(monkeypatch, formulation):
    """Blocks of rows are for eager calls: a compiled graph is the same on both sides."""
    monkeypatch.setattr("bgl._sizes._CPU_BLOCK", 30**2)
    monkeypatch.setattr("bgl._sizes._CPU_KEPT", 40**2)
    block = DyBGRBlock(C, K, num_iterations=2, formulation=formulation).double()
    assert_compiles_once(lambda x, y: block(x, y=y), (20, 84, 97, 201))


@pytest.mark.slow
def test_a_learned_graph_breaks_a_compiled_one_less_than_pyg():
    """The number of its edges depends on values, and so does that of GATv2Conv's self-loops."""
    x, batch = torch.randn(24, C), torch.arange(24) // 12
    learner, conv = AdaptiveGraph(K), GATv2Conv(C, 4, edge_dim=1)
    edge_index, weight = learner(x, batch=batch)

    def breaks(function: Callable[..., object], *args: Tensor) -> int:
        torch._dynamo.reset()
        return int(torch._dynamo.explain(function)(*args).graph_break_count)

    own = breaks(lambda x, batch: learner(x, batch=batch), x, batch)
    assert breaks(lambda x: learner(x), x) == 0
    assert 0 < own < breaks(conv, x, edge_index, weight[:, None])


@pytest.fixture(scope="module")
def _traced_distances() -> None:
    """The distances of pytorch-metric-learning, which PyTorch 2.7 cannot trace."""
    compiled = torch.compile(CosineSimilarity(), fullgraph=True, dynamic=True, backend="eager")
    try:
        compiled(torch.eye(3), torch.eye(3))
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this PyTorch cannot trace the distances of pytorch-metric-learning")


@pytest.mark.slow
@pytest.mark.usefixtures("_traced_distances")
def test_pairwise_loss_compiles_once_for_all_batch_sizes():
    assert_compiles_once(PairwiseCrossEntropyLoss(), (12, 20, 36))


@pytest.mark.slow
@pytest.mark.usefixtures("_traced_distances")
def test_hyperbolic_head_and_loss_compile_once_for_all_batch_sizes():
    ball, loss = ToPoincareBall(), PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(c=0.1))
    assert_compiles_once(lambda x, y: loss(ball(x), y), (12, 20, 36))


@pytest.mark.usefixtures("_traced_distances")
def test_compiled_pairwise_loss_of_unequal_classes_is_nan():
    torch._dynamo.reset()
    loss = torch.compile(PairwiseCrossEntropyLoss(), fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 4) / 4
    assert loss(x, torch.tensor([0, 0, 1, 1, 1, 0])).isfinite()
    for labels in ([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5]):
        assert loss(x, torch.tensor(labels)).isnan()
