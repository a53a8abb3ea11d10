"""BatchGraphModel: both branches through one head, nothing but the image itself in eval."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn

from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock
from bgl.models import BatchGraphModel, create_backbone, make_head

N, C, D = 12, 16, 6


def tiny(*blocks: nn.Module, curvature: float | None = None) -> BatchGraphModel:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, C), nn.BatchNorm1d(C))
    return BatchGraphModel(backbone, blocks, make_head(C, D, curvature)).double()


def three() -> list[nn.Module]:
    return [
        DyBGRBlock(C, k=3, num_iterations=2),
        BGFormerBlock(C, heads=4, k=3),
        BatchFormerBlock(C, heads=2),
    ]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(N, 3, 4, 4, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(N) // 3


def test_training_embeds_both_branches_through_one_head(images, labels):
    model = tiny(*three())
    output = model(images, labels)
    assert output.features.shape == output.context_features.shape == (N, C)
    assert not torch.allclose(output.features, output.context_features)
    assert_close(output.embeddings, model.head(output.features), 1e-12)
    assert_close(output.context_embeddings, model.head(output.context_features), 1e-12)
    context = output.features
    for block in model.blocks:
        context = block(context, y=labels)
    assert_close(output.context_features, context, 1e-12)
    assert output.graph is None
    assert output.graphs == []


def test_gradients_reach_every_parameter(images, labels):
    model = tiny(*three(), curvature=0.1)
    output = model(images, labels)
    (output.embeddings.square().sum() + output.context_embeddings.square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("curvature", [None, 0.1], ids=["euclidean", "hyperbolic"])
def test_eval_result_does_not_depend_on_the_batch(images, labels, curvature):
    model = tiny(*three(), curvature=curvature)
    model(images, labels)  # moves the batch-norm statistics away from 0 and 1
    model.eval()
    whole = model(images, labels, return_graph=True)
    assert whole.context_embeddings is whole.context_features is whole.graph is None
    for i in range(N):
        alone = model(images[i : i + 1])
        assert_close(alone.embeddings, whole.embeddings[i : i + 1], 1e-12)
        assert_close(alone.features, whole.features[i : i + 1], 1e-12)
    among_others = model(torch.cat([images[:1], 100 * torch.randn_like(images)]))
    assert_close(among_others.embeddings[:1], whole.embeddings[:1], 1e-12)


def test_eval_ignores_labels(images, labels):
    model = tiny(*three()).eval()
    without = model(images)
    for y in (labels, labels.flip(0), torch.full_like(labels, -5)):
        assert torch.equal(model(images, y).embeddings, without.embeddings)


def test_eval_of_a_real_encoder_does_not_depend_on_the_batch():
    backbone, info = create_backbone("tf_efficientnet_lite0", "none")
    block = DyBGRBlock(info.num_features, k=2, ffn_ratio=0.1)
    model = BatchGraphModel(backbone, [block], make_head(info.num_features, D)).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        trained = model(images, torch.tensor([0, 0, 1, 1]))  # BN statistics are no identity now
        model.eval()
        whole = model(images)
        alone = model(images[2:3])
        crowd = model(torch.cat([images[2:3], 10 * torch.randn_like(images)]))
    assert whole.features.std(0).max() > 0.01  # the images do differ
    assert_close(alone.features, whole.features[2:3], 1e-12)
    assert_close(crowd.features[:1], whole.features[2:3], 1e-12)
    assert_close(crowd.embeddings[:1], whole.embeddings[2:3], 1e-12)
    assert not torch.allclose(trained.features, whole.features)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_without_blocks_there_is_no_context(images, labels, training):
    output = tiny().train(training)(images, labels, return_graph=True)
    assert output.embeddings.shape == (N, D)
    assert output.context_embeddings is output.context_features is output.graph is None


def test_return_graph_gives_every_block_and_iteration(images, labels):
    model = tiny(*three())
    output = model(images, labels, return_graph=True)
    # DyBGR: one a iteration; BGFormer: the visual and the label graph; BatchFormer: all pairs
    kinds = [(graph.block, graph.iteration) for graph in output.graphs]
    assert kinds == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert output.graph is output.graphs[-1]
    entered = output.features
    for number, block in enumerate(model.blocks):
        for graph in output.graphs:
            if graph.block == number:
                assert graph.validate()
                assert_close(graph.x, entered, 1e-12)
                assert torch.equal(graph.y, labels)
                assert graph.edge_weight.size(0) == graph.num_edges
        entered = block(entered, y=labels)
    first, second, visual, semantic, attention = output.graphs
    assert first.num_edges == second.num_edges == 3 * N
    assert visual.edge_weight.shape[1] == 4
    assert (labels[semantic.edge_index[0]] == labels[semantic.edge_index[1]]).all()
    assert attention.edge_weight.shape == (N * N, 2)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_return_graph_changes_no_result(images, labels, order):
    blocks = three() if order == "forward" else three()[::-1]
    model = tiny(*blocks)
    without, graphs = model(images, labels), model(images, labels, return_graph=True)
    assert_close(graphs.context_embeddings, without.context_embeddings, 1e-12)


def test_training_without_labels(images):
    output = tiny(*three())(images, return_graph=True)
    assert output.context_embeddings.shape == (N, D)
    assert [(graph.block, graph.y) for graph in output.graphs] == [
        (0, None),
        (0, None),
        (1, None),
        (2, None),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(N, 48), r"`images`.*\[12, 48\]"),
        (torch.zeros(N, 3, 4, 4, dtype=torch.uint8), "`images`.*uint8"),
        ("cat.png", r"`images`.*cat\.png"),
    ],
    ids=["rank", "dtype", "type"],
)
def test_wrong_images(labels, bad, message):
    with pytest.raises(ValueError, match=message):
        tiny()(bad, labels)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(N - 1).long(), rf"`labels`.*{N}.*{N - 1}"),
        (torch.zeros(N), "`labels`.*integer.*float32"),
        (torch.zeros(N, 1).long(), r"`labels`.*\[12, 1\]"),
    ],
    ids=["length", "dtype", "rank"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_wrong_labels(images, bad, message, training):
    with pytest.raises(ValueError, match=message):
        tiny().train(training)(images, bad)


def test_block_of_another_width(images, labels):
    with pytest.raises(ValueError, match=r"8 channels.*16"):
        tiny(DyBGRBlock(8, k=3))(images, labels)


def test_head_starts_orthogonal_and_unbiased():
    linear = make_head(C, D)[0]
    assert_close(linear.weight @ linear.weight.T, torch.eye(D), 1e-5)
    assert not linear.bias.any()


def test_hyperbolic_head_stays_in_the_ball():
    head = make_head(C, D, curvature=0.1, clip_radius=2.3).double()
    norms = head(1000 * torch.randn(N, C).double()).norm(dim=1)
    # clipping to 2.3, then the exponential map at 0: tanh(√c · r) / √c
    expected = math.tanh(math.sqrt(0.1) * 2.3) / math.sqrt(0.1)
    assert_close(norms, torch.full_like(norms, expected), 1e-6)
