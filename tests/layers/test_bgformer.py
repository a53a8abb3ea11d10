"""BGFormer and BatchFormer: the released arrays, graphs and fused paths, symmetries, compile."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from torch import nn

from bgl.layers import (
    AttentionGraph,
    BatchFormerBlock,
    BatchGraphConv,
    BGFormerBlock,
    LabelGraph,
)
from bgl.layers.bgformer import ClassMean, GraphAttention
from bgl.layers.groups import group_numbers

CASES = [("N12_C16_h4_K3", 16, 4, 3, 0.5), ("N36_C24_h8_K10", 24, 8, 10, 0.3)]
CASES += [("K_gt_N", 8, 2, 10, 0.7)]
BLOCKS = {
    "bgformer": lambda **kw: BGFormerBlock(8, 2, 3, **kw),
    "bgformer-attention": lambda **kw: BGFormerBlock(8, 2, 3, semantic="attention", **kw),
    "batchformer": lambda **kw: BatchFormerBlock(8, 2, **kw),
}
blocks = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())


def ours(name: str) -> str:
    """The authors' parameter names in ours."""
    return name.replace("vg.", "visual.").replace("sg.qkv", "semantic.value").replace("sg.", "semantic.")  # fmt: skip # noqa: E501


def load(module: nn.Module, arrays: dict, rename=lambda name: name) -> nn.Module:
    module.double().load_state_dict(
        {rename(n[6:]): v for n, v in arrays.items() if n.startswith("param.")}
    )
    return module


def assert_gradients(module, x, g, rename=lambda name: name):
    assert_close(x.grad, g["grad_x"])
    parameters = dict(module.named_parameters())
    names = [n for n in g if n.startswith("grad.")]
    assert len(names) == len(parameters)
    for name in names:
        assert_close(parameters[rename(name[5:])].grad, g[name])


@pytest.mark.parametrize(("name", "c", "heads", "k", "lam"), CASES)
def test_visual_branch_equals_released_code(golden, name, c, heads, k, lam):
    g = golden(f"bgformer_vg__{name}")
    visual = load(GraphAttention(c, heads, k), g)
    x = g["x"].requires_grad_()
    out = visual(x)
    assert_close(out, g["out"])
    out.backward(g["cotangent"])
    assert_gradients(visual, x, g)
    assert visual.graph.k == k  # the reference overwrites its k


@pytest.mark.parametrize(("name", "c", "heads", "k", "lam"), CASES)
def test_semantic_branch_equals_released_code(golden, name, c, heads, k, lam):
    g = golden(f"bgformer_sg__{name}")
    rename = lambda n: n.replace("qkv", "value")  # noqa: E731
    semantic = load(ClassMean(c), g, rename)
    x = g["x"].requires_grad_()
    out = semantic(x, batch=group_numbers(g["labels"]))
    assert_close(out, g["out"])
    out.backward(g["cotangent"])
    assert_gradients(semantic, x, g, rename)


@pytest.mark.parametrize(("name", "c", "heads", "k", "lam"), CASES)
def test_block_equals_released_code(golden, name, c, heads, k, lam):
    g = golden(f"bgformer_block__{name}")
    block = load(BGFormerBlock(c, heads, k, lam, ffn_ratio=2.0), g, ours)
    x = g["x"].requires_grad_()
    out = block(x, y=g["labels"])
    assert_close(out, g["out"])
    out.backward(g["cotangent"])
    assert_gradients(block, x, g, ours)


@pytest.mark.parametrize("k", [1, 3, 9, 20, None])
def test_attention_graph_against_a_loop(k):
    query, key = torch.randn(2, 9, 2, 4).double().unbind(0)
    edge_index, weight = AttentionGraph(k)(query, key)
    dense = torch.zeros(9, 9, 2).double()
    dense[edge_index[1], edge_index[0]] = weight
    for h in range(2):
        for i in range(9):
            scores = key[:, h] @ query[i, h] / 2
            kept = scores.argsort(descending=True)[: k or 9]
            row = torch.zeros(9).double()
            row[kept] = scores[kept].softmax(0)
            assert_close(dense[i, :, h], row, 1e-12)
    assert (weight > 0).any(1).all()  # nothing but the union of the heads' edges
    assert edge_index.unique(dim=1).size(1) == edge_index.size(1)


def test_graph_and_messages_equal_the_fused_path():
    attention = GraphAttention(8, 2, k=3).double()
    x, batch = torch.randn(10, 8).double(), torch.tensor([0] * 6 + [1] * 4)
    edge_index, weight = attention.edges(x, batch=batch)
    value = attention.qkv(x).view(10, 3, 2, 4)[:, 2]
    expected = attention(x, batch=batch)
    out = BatchGraphConv(1.0)(value, edge_index, weight)
    assert_close(attention.proj(out.reshape(10, 8)), expected, 1e-12)


def test_attention_without_channels_is_even():
    heads = torch.zeros(3, 2, 0)
    assert torch.equal(AttentionGraph(3)(heads, heads)[1], torch.full((9, 2), 1 / 3))


@pytest.mark.parametrize("labels", ["sorted", "shuffled", "negative"])
def test_class_mean_is_message_passing_on_the_label_graph(labels):
    y = torch.tensor([0, 0, 0, 1, 1, 7, 7, 7, 7, 3])
    y = {"sorted": y, "shuffled": y[torch.randperm(10)], "negative": -y * 10**9}[labels]
    batch = torch.tensor([3, 1, 3, 1, 3, 1, 3, 1, 3, 1])
    layer = ClassMean(4).double()
    x = torch.randn(10, 4).double()
    for b in (None, batch):
        edge_index, weight = LabelGraph()(y, batch=b)
        out = BatchGraphConv(1.0)(layer.value(x)[:, None], edge_index, weight.double())
        classes = group_numbers(y) if b is None else group_numbers(y, b)
        assert_close(layer(x, batch=classes), layer.proj(out[:, 0]), 1e-7)  # label graph is float32


def test_semantic_attention_stays_in_the_class():
    block = BGFormerBlock(8, 2, 3, lam=0.0, semantic="attention").double()
    x = torch.randn(6, 8).double().requires_grad_()
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    (grad,) = torch.autograd.grad(block(x, y=y)[0].sum(), x)
    assert grad[:3].abs().min() > 0
    assert torch.equal(grad[3:], torch.zeros(3, 8).double())


@pytest.mark.parametrize("semantic", ["graph", "attention"])
def test_without_labels_the_visual_branch_has_full_weight(semantic):
    block = BGFormerBlock(8, 2, 3, lam=0.2, semantic=semantic)
    visual_only = BGFormerBlock(8, 2, 3, lam=1.0, semantic=semantic)
    visual_only.load_state_dict(block.state_dict())
    x = torch.randn(6, 8)
    torch.testing.assert_close(block(x), visual_only(x, y=torch.arange(6) // 2))


@blocks
def test_return_graph(make):
    block = make()
    x, y = torch.randn(8, 8), torch.arange(8) // 2
    out, graphs = block(x, y=y, return_graph=True)
    torch.testing.assert_close(out, block(x, y=y))
    assert len(graphs) == (1 if isinstance(block, BatchFormerBlock) else 2)
    for edge_index, weight in graphs:
        rows = torch.zeros(8, *weight.shape[1:]).index_add(0, edge_index[1], weight)
        torch.testing.assert_close(rows, torch.ones_like(rows))
    if len(graphs) == 2:
        semantic = graphs[1][0]
        assert (y[semantic[0]] == y[semantic[1]]).all()
