"""DyBGR, its block and BatchGraphConv: the released arrays, symmetries, precision, compile."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from torch_geometric.utils import to_torch_csr_tensor

from bgl import _sizes
from bgl.layers import BatchGraphConv, DyBGR, DyBGRBlock
from bgl.layers.edge_sums import neighbor_products, neighbor_sums

FORMULATIONS = ["released", "paper"]


@pytest.mark.parametrize(
    ("name", "k", "t", "lam", "beta", "epsilon"),
    [
        ("B12_C8_K3_T1", 3, 1, 0.3, 0.5, 0.5),
        ("B36_C16_K10_T3", 10, 3, 0.3, 0.5, 0.5),
        ("B405_C64_K30_T3", 30, 3, 0.3, 0.5, 0.5),
        ("B24_lam.7_beta.25_eps.9_T5", 4, 5, 0.7, 0.25, 0.9),
        ("T0", 5, 0, 0.3, 0.5, 0.5),
        ("edge_K_eq_Bminus2", 10, 2, 0.3, 0.5, 0.5),
        ("edge_all_same_label", 4, 2, 0.3, 0.5, 0.5),
        ("eps0_lam0", 4, 3, 0.0, 0.5, 0.0),
    ],
)
def test_equals_released_code(golden, name, k, t, lam, beta, epsilon):
    g = golden(f"dybgr_graph_learning__{name}")
    x = g["x"].requires_grad_()
    out = DyBGR(k, t, lam, beta, epsilon)(x, y=g["labels"])
    assert_close(out, g["out"])
    (grad,) = torch.autograd.grad(out, x, g["cotangent"])
    assert_close(grad, g["grad_x"])


def test_equals_released_code_on_duplicates(golden):
    """Which of several equal rows is a neighbour is arbitrary; output and summed gradient not."""
    g = golden("dybgr_graph_learning__edge_duplicate_rows_beta.5")
    x = g["x"].requires_grad_()
    out = DyBGR(4, 2)(x, y=g["labels"])
    assert_close(out, g["out"])
    (grad,) = torch.autograd.grad(out, x, g["cotangent"])
    twins = torch.tensor([0, 1, 7])
    others = torch.tensor([i for i in range(12) if i not in twins])
    assert_close(grad[others], g["grad_x"][others])
    assert_close(grad[twins].sum(0), g["grad_x"][twins].sum(0))


@pytest.mark.parametrize(
    ("name", "k", "t", "depth", "ratio"),
    [
        ("B12_C8_d1", 3, 1, 1, 4.0),
        ("B36_C16_d2", 10, 3, 2, 4.0),
        ("B135_C32_d2", 30, 3, 2, 2.0),
    ],
)
def test_block_equals_released_code(golden, name, k, t, depth, ratio):
    g = golden(f"dybgr_block__{name}")
    x = g["x"].requires_grad_()
    out = x
    blocks = []
    for i in range(depth):
        block = DyBGRBlock(x.size(1), k, t, ffn_ratio=ratio).double()
        prefix = f"param.{i}."
        block.load_state_dict(
            {n.removeprefix(prefix): v for n, v in g.items() if n.startswith(prefix)}, strict=True
        )
        blocks.append(block)
        out = block(out, y=g["labels"])
    assert_close(out, g["out"])
    out.backward(g["cotangent"])
    assert_close(x.grad, g["grad_x"])
    for i, block in enumerate(blocks):
        for name_, parameter in block.named_parameters():
            assert_close(parameter.grad, g[f"grad.{i}.{name_}"])


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_float32_is_as_close_as_the_reference(golden, formulation):
    g = golden("dybgr_graph_learning__B36_C16_K10_T3")
    layer = DyBGR(10, 3, formulation=formulation)
    assert_close(
        layer(g["x"].float(), y=g["labels"]).double(), layer(g["x"], y=g["labels"]), tol=1e-3
    )


@pytest.mark.filterwarnings("ignore:k=15")
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_batches(n, formulation):
    x = torch.randn(n, 4, requires_grad=True)
    out, graphs = DyBGR(formulation=formulation)(x, y=torch.arange(n), return_graph=True)
    assert len(graphs) == 3
    assert torch.isfinite(out).all()
    assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()
    if n == 1:
        assert torch.equal(DyBGR(epsilon=0.0)(x), x)


def test_return_graph_gives_every_iteration():
    x, y = torch.randn(20, 8).double(), torch.arange(20) // 4
    out, graphs = DyBGRBlock(8, k=4, num_iterations=3).double()(x, y=y, return_graph=True)
    assert out.shape == x.shape
    assert [edge_index.shape for edge_index, _ in graphs] == [(2, 80)] * 3
    h = torch.randn(20, 8).double()
    mixed, graphs = DyBGR(4, 3)(h, y=y, return_graph=True)
    assert_close(BatchGraphConv()(h, *graphs[-1]), mixed, 1e-12)


def test_conv_paths_agree(monkeypatch):
    """Edges in any order, repeated, and PyG's sparse adjacency are forms of the same sum."""
    x = torch.randn(12, 5, dtype=torch.float64)
    edge_index = torch.randint(12, (2, 40)).unique(dim=1)
    weight = torch.rand(edge_index.size(1), dtype=torch.float64)
    conv = BatchGraphConv(0.7)
    expected = torch.stack(
        [
            0.3 * x[i]
            + 0.7 * sum((w * x[j] for (j, t), w in zip(edge_index.t(), weight, strict=True)
                         if t == i), torch.zeros(5).double())
            for i in range(12)
        ]
    )  # fmt: skip
    order = torch.randperm(edge_index.size(1))
    adjacency = to_torch_csr_tensor(edge_index.flip(0), weight, size=(12, 12))
    shuffled = conv(x, edge_index[:, order], weight[order])
    for out in (conv(x, edge_index, weight), shuffled, conv(x, adjacency)):
        assert_close(out, expected, 1e-12)
    twice = conv(x, edge_index.repeat(1, 2), weight.repeat(2) / 2)
    assert_close(twice, expected, 1e-12)
    assert_close(conv(x, edge_index[:, :0], weight[:0]), 0.3 * x, 1e-12)


@pytest.mark.parametrize("heads", [None, 3])
def test_derivatives_along_an_edge_list(heads):
    edge_index = torch.randint(6, (2, 17))
    shape = () if heads is None else (heads,)
    x = torch.randn(6, *shape, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, *shape, dtype=torch.float64, requires_grad=True)
    layer = BatchGraphConv()
    call = lambda x, w: layer(x, edge_index, w)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight), fast_mode=True)


@pytest.mark.parametrize("matrix", [False, True], ids=["list", "matrix"])
def test_derivatives_along_neighbours(monkeypatch, matrix):
    monkeypatch.setattr(_sizes, "_CPU_SPREAD", _sizes._CUDA_SPREAD if matrix else 0)
    source = torch.randint(6, (4, 3))
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    sums = lambda x, w: neighbor_sums(x, source, w)  # noqa: E731
    products = lambda a, x: neighbor_products(a, x, source)  # noqa: E731
    assert_close(sums(x, weight), torch.einsum("rp,rpc->rc", weight, x[source]), 1e-12)
    assert_close(products(a, x), torch.einsum("rc,rpc->rp", a, x[source]), 1e-12)
    for function, inputs in ((sums, (x, weight)), (products, (a, x))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_private_kernels_have_the_signatures_that_are_called():
    """The two halves of ``embedding_bag``'s backward pass, which torch may change unannounced."""
    aten = torch.ops.aten
    assert [
        [f"{a.type} {a.name}" for a in kernel.default._schema.arguments]
        for kernel in (
            aten._embedding_bag_per_sample_weights_backward,
            aten._embedding_bag_dense_backward,
        )
    ] == [
        [
            "Tensor grad",
            "Tensor weight",
            "Tensor indices",
            "Tensor offsets",
            "Tensor offset2bag",
            "int mode",
            "int padding_idx",
        ],
        [
            "Tensor grad",
            "Tensor indices",
            "Tensor offset2bag",
            "Tensor bag_size",
            "Tensor maximum_indices",
            "int num_weights",
            "bool scale_grad_by_freq",
            "int mode",
            "Optional[Tensor] per_sample_weights",
            "int padding_idx",
        ],
    ]
