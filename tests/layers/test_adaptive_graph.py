"""AdaptiveGraph: the released arrays, optimality of the exact form, edge cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import assert_close
from torch_geometric.nn import GATv2Conv, GCNConv, TransformerConv

from bgl.layers import AdaptiveGraph, DyBGR
from bgl.layers.adaptive_graph import GAMMA_FLOOR, GAP_FLOOR

FORMULATIONS = ["released", "paper"]


def dense(graph, n):
    edge_index, edge_weight = graph
    return edge_weight.new_zeros(n, n).index_put((edge_index[1], edge_index[0]), edge_weight)


def features(n=20, c=8, per_class=4, dtype=torch.float64):
    return torch.randn(n, c, dtype=dtype), torch.arange(n) // per_class


@pytest.mark.parametrize(
    ("name", "k", "lam", "beta"),
    [
        ("B12_C8_K3_T1", 3, 0.3, 0.5),
        ("B36_C16_K10_T3", 10, 0.3, 0.5),
        ("B405_C64_K30_T3", 30, 0.3, 0.5),
        ("B24_lam.7_beta.25_eps.9_T5", 4, 0.7, 0.25),
        ("edge_K_eq_Bminus2", 10, 0.3, 0.5),
        ("edge_all_same_label", 4, 0.3, 0.5),
    ],
)
def test_first_iteration_equals_released_code(golden, name, k, lam, beta):
    g = golden(f"dybgr_graph_learning__{name}")
    learner = AdaptiveGraph(k, lam, beta)
    problem = learner.prepare(g["x"], y=g["labels"])
    neighbors = problem.solve(g["x"])
    assert torch.equal(neighbors.source, g["nbr_index"])
    assert_close(neighbors.weight, g["A"][0])
    assert_close(problem.scale, 2 * g["gamma"] + 1e-8)


def simplex_projection(v):
    """Euclidean projection of a vector on the probability simplex, by sorting."""
    u = np.sort(v)[::-1]
    css = np.cumsum(u) - 1
    rho = np.nonzero(u - css / np.arange(1, len(v) + 1) > 0)[0][-1]
    return np.maximum(v - css[rho] / (rho + 1), 0)


@pytest.mark.parametrize("beta", [0.5, 0.0, -0.25])
@pytest.mark.parametrize("k", [1, 3, 17])
def test_paper_rows_minimise_the_objective(k, beta):
    """argmin c·a + γ|a|² on the simplex is the projection of −c/2γ; γ makes k entries positive."""
    lam = 0.3
    x, y = features()
    context = torch.randn(20, 5, dtype=torch.float64)
    a = dense(AdaptiveGraph(k, lam, beta, "paper")(x, y=y, context=context), 20).numpy()
    h = (x / x.norm(dim=1, keepdim=True)).numpy()
    f = (context / context.norm(dim=1, keepdim=True)).numpy()
    same = (y[:, None] == y[None, :]).numpy()
    for i in range(20):
        others = [j for j in range(20) if j != i]
        c = np.array(
            [((h[i] - h[j]) ** 2).sum() - 2 * beta * same[i, j] - lam * f[i] @ f[j] for j in others]
        )
        ranked = np.sort(c)
        two_gamma = (ranked[k] - ranked[:k]).sum()
        np.testing.assert_allclose(a[i, others], simplex_projection(-c / two_gamma), atol=1e-10)
        assert (a[i] > 0).sum() == k
        assert a[i, i] == 0


def test_paper_support_follows_the_context():
    x, _ = features(40, 6)
    learner = AdaptiveGraph(5, lam=5.0, formulation="paper")
    first = learner(x)[0]
    second = learner(x, context=torch.randn_like(x))[0]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_candidates_of_everything_equal_no_candidates(formulation):
    x, y = features()
    learner = AdaptiveGraph(4, formulation=formulation)
    everyone = torch.stack([torch.randperm(20) for _ in range(20)])  # self among them: left out
    assert_close(dense(learner(x, y=y, candidates=everyone), 20), dense(learner(x, y=y), 20), 1e-12)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("graphs", [1, 2])
def test_samples_without_candidates_are_only_chosen(formulation, graphs):
    x, y = features()
    batch = None if graphs == 1 else torch.arange(20) % 2
    candidates = torch.stack([torch.randperm(20)[:9] for _ in range(20)])
    candidates[5:] = -1
    learner = AdaptiveGraph(3, formulation=formulation)
    few, weight = learner(x, y=y, batch=batch, candidates=candidates[:5])
    if formulation == "paper":  # the released γ is a mean over all rows
        all_rows = learner(x, y=y, batch=batch, candidates=candidates)
        assert_close(dense((few, weight), 20), dense(all_rows, 20), 1e-12)
    assert few[1].max() == 4
    x.requires_grad_()
    with_gradient = learner(x, y=y, batch=batch, candidates=candidates[:5])
    assert torch.equal(with_gradient[0], few)
    assert_close(with_gradient[1], weight, 1e-12)
    with_gradient[1].square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_candidates_restrict_the_neighbours(formulation):
    x, y = features()
    candidates = (torch.arange(20)[:, None] + torch.arange(1, 7)) % 20
    candidates[0, 2:] = -1  # two candidates left
    edge_index, edge_weight = AdaptiveGraph(3, formulation=formulation)(
        x, y=y, candidates=candidates
    )
    allowed = {(int(j), i) for i in range(20) for j in candidates[i] if j >= 0}
    assert {(int(j), int(i)) for j, i in edge_index.t()} <= allowed
    assert (edge_index[1] == 0).sum() == 1  # k + 1 of them are needed
    assert (edge_index[1] == 1).sum() == 3
    assert torch.isfinite(edge_weight).all()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_candidates_of_another_graph_do_not_count(formulation):
    x, y = features()
    batch = torch.arange(20) % 2
    candidates = torch.stack([torch.randperm(20)[:12] for _ in range(20)])
    own = candidates.where(batch[candidates] == batch[:, None], -1)
    learner = AdaptiveGraph(3, formulation=formulation)
    edge_index, weight = learner(x, y=y, batch=batch, candidates=candidates)
    expected = learner(x, y=y, batch=batch, candidates=own)
    assert torch.equal(batch[edge_index[0]], batch[edge_index[1]])
    assert torch.equal(edge_index, expected[0])
    assert torch.equal(weight, expected[1])


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no-labels"])
def test_batch_vector_equals_separate_calls(formulation, labels):
    x, y = features(30)
    batch = torch.tensor([2] * 11 + [0] * 2 + [5] * 1 + [1] * 16)[torch.randperm(30)]
    y = y if labels else None
    learner = AdaptiveGraph(8, formulation=formulation)
    together = learner(x, y=y, batch=batch)
    expected = torch.zeros(30, 30, dtype=torch.float64)
    edges = 0
    for b in batch.unique():
        rows = (batch == b).nonzero().flatten()
        if len(rows) < 10:
            with pytest.warns(UserWarning, match="k=8 needs at least 10 samples"):
                alone = learner(x[rows], y=None if y is None else y[rows])
        else:
            alone = learner(x[rows], y=None if y is None else y[rows])
        edges += alone[1].numel()
        expected[rows[:, None], rows[None, :]] = dense(alone, len(rows))
    assert_close(dense(together, 30), expected, 1e-12)
    assert together[1].numel() == edges


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_permutation_of_the_batch_permutes_the_graph(formulation):
    x, y = features()
    p = torch.randperm(20)
    learner = AdaptiveGraph(4, formulation=formulation)
    original = dense(learner(x, y=y), 20)
    assert_close(dense(learner(x[p], y=y[p]), 20), original[p][:, p], 1e-12)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradcheck(formulation):
    x, y = features(9, 4, 3)
    x.requires_grad_()
    context = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    learner = AdaptiveGraph(3, formulation=formulation)
    assert torch.autograd.gradcheck(lambda a, b: learner(a, y=y, context=b)[1], (x, context))


DEGENERATE = {
    "constant": lambda: (torch.ones(12, 8), torch.arange(12) // 3),
    "zeros": lambda: (torch.zeros(12, 8), torch.arange(12) // 3),
    "zero-row": lambda: (torch.randn(12, 8).index_fill(0, torch.tensor([4]), 0), None),
    "duplicates": lambda: (torch.randn(4, 8).repeat(3, 1), torch.arange(12) % 4),
    "collapsed-classes": lambda: (torch.randn(3, 8).repeat_interleave(4, 0), torch.arange(12) // 4),
    "one-class": lambda: (torch.randn(12, 8), torch.zeros(12).long()),
    "all-different": lambda: (torch.randn(12, 8), torch.arange(12)),
    "tiny": lambda: (torch.randn(12, 8) * 1e-8, None),
    "huge": lambda: (torch.randn(12, 8) * 1e8, None),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("k", [1, 2, 3, 10], ids=lambda k: f"k{k}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_stay_bounded(case, dtype, k, formulation):
    x, y = DEGENERATE[case]()
    x = x.to(dtype).requires_grad_()
    edge_index, weight = AdaptiveGraph(k, formulation=formulation)(x, y=y)
    assert weight.numel() == 12 * k
    assert (edge_index[0] != edge_index[1]).all()
    assert torch.isfinite(weight).all()
    (grad,) = torch.autograd.grad(weight.square().sum(), x)
    assert torch.isfinite(grad).all()
    if formulation == "paper":
        assert (weight >= 0).all()
        rows = weight.view(12, k).sum(1)
        torch.testing.assert_close(rows, torch.ones_like(rows))
        # chain rule: |∂loss/∂a| ≤ 2, |∂a/∂c| ≤ (k+1)/GAP_FLOOR, k+1 costs a row of 12 rows,
        # |∂c/∂h| ≤ (2+λ)·2/|h| with |h| ≥ 1e-6
        norm = x.detach().norm(dim=1).clamp(min=1e-6)
        bound = 2 * k * (k + 1) / GAP_FLOOR * (k + 1) * 12 * 5 / norm
        assert (grad.norm(dim=1) <= bound).all()
    else:
        assert (weight <= 1 / k + 1.3 / GAMMA_FLOOR).all()


def test_released_constant_features_give_equal_weights():
    """The authors' code gives NaN here."""
    _, weight = AdaptiveGraph(k=3)(torch.ones(12, 8))
    torch.testing.assert_close(weight, torch.full((36,), 1 / 3))


def test_ranges_are_held_relative_to_the_largest_entry():
    """⟨f_i, f_j⟩ of about 5e8 that differ in the eleventh digit are no similarities."""
    x, _ = features()
    context = 1e4 + 1e-7 * torch.randn(20, 5, dtype=torch.float64)
    _, weight = AdaptiveGraph(3, lam=0.3)(x, context=context)
    assert_close(weight, AdaptiveGraph(3, lam=0.0)(x)[1], 1e-3)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_too_few_samples(formulation):
    learner = AdaptiveGraph(5, formulation=formulation)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert learner(torch.randn(6, 3))[1].numel() == 24
        edge_index, weight = learner(torch.randn(2, 3))
        alone = learner(torch.randn(1, 3))
    text = "k=5 needs at least 7 samples; a smaller batch has fewer neighbours"
    assert [str(each.message) for each in shown] == 3 * [text]  # which Python shows once
    assert edge_index.tolist() == [[1, 0], [0, 1]]
    assert weight.tolist() == [1.0, 1.0]
    edge_index, weight = alone
    assert edge_index.shape == (2, 0)
    assert weight.shape == (0,)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast_and_half_precision_run_in_float32(formulation, dtype):
    x, y = features(dtype=torch.float32)
    learner = AdaptiveGraph(4, formulation=formulation)
    expected = learner(x, y=y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = learner(x, y=y)
    assert torch.equal(under_autocast[1], expected[1])
    half = learner(x.to(dtype), y=y)[1]
    assert half.dtype == torch.float32
    assert torch.equal(half, learner(x.to(dtype).float(), y=y)[1])


@pytest.mark.parametrize(
    "conv",
    [
        lambda: GCNConv(8, 4, add_self_loops=False),
        lambda: GATv2Conv(8, 4, edge_dim=1, add_self_loops=False),
        lambda: TransformerConv(8, 4, edge_dim=1),
    ],
    ids=["GCN", "GATv2", "Transformer"],
)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_edges_feed_pyg_convs(conv, formulation):
    """The gradient reaches x through edge_weight alone (the conv's input is a constant)."""
    x, y = features(dtype=torch.float32)
    x.requires_grad_()
    edge_index, edge_weight = AdaptiveGraph(4, formulation=formulation)(x, y=y)
    layer = conv()
    attribute = edge_weight if isinstance(layer, GCNConv) else edge_weight[:, None]
    layer(torch.randn(20, 8), edge_index, attribute).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("where", ["batch", "candidates"])
def test_float64_is_exact_everywhere(where, formulation):
    """Rows with integer counts of neighbours and classmates are divided in float64 too."""
    x, y = features(25, per_class=5)
    everyone = (torch.arange(25)[:, None] + torch.arange(1, 25)) % 25
    more = {"batch": torch.zeros(25).long()} if where == "batch" else {"candidates": everyone}
    learner = AdaptiveGraph(3, formulation=formulation)
    weight = learner(x, y=y, **more)[1]
    assert_close(dense(learner(x, y=y, **more), 25), dense(learner(x, y=y), 25), 1e-13)
    if formulation == "paper":
        assert_close(weight.view(25, 3).sum(1), torch.ones(25).double(), 1e-14)


def test_labels_are_divided_in_float64():
    """d − 2βL against the formula, for a class size whose inverse float32 cannot hold."""
    x, y = features(25, per_class=5)
    a = dense(AdaptiveGraph(3, lam=0.0, beta=2.0)(x, y=y), 25)
    dots, d = x @ x.t(), (x[:, None] - x).square().sum(2).clamp(min=1e-12).sqrt()
    same = (y[:, None] == y[None, :]).double()
    label = same * (1 + torch.eye(25).double()) / 6
    minmax = lambda m: (m - m.amin(1, True)) / (m.amax(1, True) - m.amin(1, True))  # noqa: E731
    cost = minmax(d - 4 * label - 1e-5 * minmax(dots)).fill_diagonal_(torch.inf)
    nearest = cost.topk(4, largest=False)
    near, chosen = nearest.values[:, :3], nearest.indices[:, :3]
    gamma2 = (3 * nearest.values[:, 3] - near.sum(1)).mean() + 1e-8
    weight = ((1 + near.sum(1, keepdim=True) / gamma2) / 3 - near / gamma2).relu()
    assert_close(a, torch.zeros(25, 25).double().scatter(1, chosen, weight), 1e-11)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("numbers", [[0, 2], [5, 900], [-3, 2**40]], ids=str)
def test_graph_numbers_are_any_integers(numbers, formulation):
    x, y = features(13)
    batch = torch.tensor([numbers[0]] * 6 + [numbers[1]] * 7)
    learner = AdaptiveGraph(3, formulation=formulation)
    expected = learner(x, y=y, batch=(batch == numbers[1]).long())
    actual = learner(x, y=y, batch=batch)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    two = learner(x[5:7], batch=batch[5:7])  # a point each
    assert two[0].shape == (2, 0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_repeated_candidates_count_once(formulation):
    x, y = features()
    candidates = torch.stack([torch.randperm(20)[:9] for _ in range(20)])
    repeated = torch.cat([candidates, candidates[:, :4]], dim=1)[:, torch.randperm(13)]
    learner = AdaptiveGraph(3, formulation=formulation)
    once = learner(x, y=y, candidates=candidates)
    twice = learner(x, y=y, candidates=repeated)
    assert torch.equal(once[0], twice[0])
    assert_close(twice[1], once[1], 1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", ["alone", "batch", "candidates"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_row_that_is_not_finite_damages_its_own_edges_alone(formulation, way, bad):
    x, _ = features()
    keep = torch.arange(20) != 6
    batch = torch.arange(20) // 10 if way == "batch" else None
    candidates = None
    if way == "candidates":
        candidates = (torch.arange(20)[:, None] + torch.arange(1, 20)) % 20
    learner = AdaptiveGraph(3, formulation=formulation)
    broken = x.clone()
    broken[6, 2] = bad
    (source, target), weight = learner(broken, batch=batch, candidates=candidates)
    others = target != 6
    assert not torch.isfinite(weight[~others]).any()
    assert 6 not in source[others].tolist()
    alone, expected = learner(x[keep], batch=None if batch is None else batch[keep])
    assert torch.equal(torch.stack([source, target])[:, others], torch.arange(20)[keep][alone])
    assert_close(weight[others], expected, 1e-12)
    out = DyBGR(3, formulation=formulation)(broken, batch=batch)
    assert torch.isfinite(out[keep]).all()


def test_labels_pull_and_push():
    x, y = features(24, 8, 4)

    def share(beta):
        edge_index, _ = AdaptiveGraph(3, beta=beta, formulation="paper")(x, y=y)
        return (y[edge_index[0]] == y[edge_index[1]]).double().mean().item()

    assert share(5.0) == 1.0
    assert share(-5.0) == 0.0
