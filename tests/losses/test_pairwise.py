"""PairwiseCrossEntropyLoss against the reference arrays and a plain loop over the pairs."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from pytorch_metric_learning.distances import (
    BaseDistance,
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
)
from torch import Tensor

from bgl.hyperbolic import HyperbolicDistance
from bgl.losses import PairwiseCrossEntropyLoss, pairwise
from bgl.losses.pairwise import pair_losses, positions

F64 = torch.float64
TEMPERATURE = 0.2


def reference_distance(c: float) -> BaseDistance:
    """The reference takes c = 0 for the plain dot product."""
    return HyperbolicDistance(c=c) if c else DotProductSimilarity(normalize_embeddings=False)


def similarity(distance: BaseDistance, x: Tensor, y: Tensor) -> Tensor:
    return distance(x, y) if distance.is_inverted else -distance(x, y)


def loop_loss(x: Tensor, labels: Tensor, distance: BaseDistance, temperature: float) -> Tensor:
    """The sum over ordered pairs, written out sample by sample."""
    classes = [x[labels == value] for value in labels.unique()]
    n, s = len(classes), len(classes[0])
    total = x.new_zeros(())
    for i in range(s):
        for j in range(s):
            if i == j:
                continue
            for a in range(n):
                terms = [(classes[a][i], classes[b][j]) for b in range(n)]
                terms += [(classes[a][i], classes[b][i]) for b in range(n) if b != a]
                logits = torch.stack(
                    [similarity(distance, p[None], q[None])[0, 0] / temperature for p, q in terms]
                )
                total = total + (logits.logsumexp(0) - logits[a]) / n
    return total


@pytest.mark.parametrize(
    ("case", "c"),
    [("hyp.1_n6_d16", 0.1), ("hyp.1_n45_d64", 0.1), ("edge_n1", 0.1), ("sphere_n8_d8", 0)],
    ids=lambda value: value if isinstance(value, str) else f"c={value}",
)
def test_one_ordered_pair_equals_reference(golden, case, c):
    arrays = golden(f"contrastive_loss__{case}")
    x0, x1 = arrays["x0"].requires_grad_(), arrays["x1"].requires_grad_()
    n = len(x0)
    x = torch.cat([x0, x1])
    logits = similarity(reference_distance(c), x, x) / TEMPERATURE
    labels = torch.arange(n).repeat(2)
    position, sizes = positions(labels)
    assert position.tolist() == [0] * n + [1] * n
    assert sizes.tolist() == [2] * (2 * n)
    losses = pair_losses(logits, labels, position)
    loss = losses[:n, n:].diagonal().mean()
    assert_close(loss, arrays["loss"])
    grads = torch.autograd.grad(loss, (x0, x1))
    assert_close(grads[0], arrays["grad_x0"])
    assert_close(grads[1], arrays["grad_x1"])


PAIR_CASES = [
    pytest.param("c5_s3_d16", 5, 3, 0.1, 0.01, id="c5_s3"),
    pytest.param("c4_s9_d32", 4, 9, 0.1, 0.07, id="c4_s9"),
    pytest.param("c45_s9_d48", 45, 9, 0.1, 0.01, id="c45_s9"),
    pytest.param("sphere_c6_s2", 6, 2, 0, 0.5, id="sphere_c6_s2"),
]


@pytest.mark.parametrize(("case", "n", "s", "c", "alpha"), PAIR_CASES)
def test_sum_equals_hypvit_reference(golden, case, n, s, c, alpha):
    arrays = golden(f"hypmetric_pair_loss__{case}")
    z = arrays["z"].requires_grad_()
    labels = torch.arange(n).repeat_interleave(s)
    loss = PairwiseCrossEntropyLoss(TEMPERATURE, reference_distance(c), "sum")(z, labels)
    assert_close(loss, arrays["loss"])
    assert_close(torch.autograd.grad(loss, z)[0], arrays["grad_z"])


@pytest.mark.parametrize(("case", "n", "s", "c", "alpha"), PAIR_CASES)
def test_two_branches_equal_dybgr_reference(golden, case, n, s, c, alpha):
    arrays = golden(f"dybgr_pair_losses__{case}")
    z = arrays["z"].requires_grad_()
    labels = torch.arange(n).repeat_interleave(s)
    loss = PairwiseCrossEntropyLoss(TEMPERATURE, reference_distance(c), "sum")
    plain, graph = (loss(branch, labels) for branch in z.chunk(2))
    assert_close(plain, arrays["loss1"])
    assert_close(graph, arrays["loss2"])
    total = alpha * plain + (1 - alpha) * graph
    assert_close(total, arrays["loss"])
    assert_close(torch.autograd.grad(total, z)[0], arrays["grad_z"])


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(
    "distance",
    [HyperbolicDistance(c=0.5), CosineSimilarity(), LpDistance(normalize_embeddings=False)],
    ids=["hyperbolic", "cosine", "euclidean"],
)
@pytest.mark.parametrize(("n", "s"), [(1, 2), (1, 4), (2, 2), (5, 3)])
def test_equals_a_loop_over_shuffled_rows(n, s, distance, temperature):
    x = torch.randn(n * s, 6, dtype=F64) * 0.3
    labels = torch.tensor([40, -7, 3, 0, 11])[:n].repeat_interleave(s)[torch.randperm(n * s)]
    expected = loop_loss(x, labels, distance, temperature)
    total = PairwiseCrossEntropyLoss(temperature, distance, reduction="sum")(x, labels)
    assert_close(total, expected)
    mean = PairwiseCrossEntropyLoss(temperature, distance)(x, labels)
    assert_close(mean, expected / (s * (s - 1)))


def test_does_not_depend_on_how_classes_are_interleaved():
    n, s = 4, 3
    x, labels = torch.randn(n * s, 5, dtype=F64) * 0.3, torch.arange(n).repeat_interleave(s)
    order = torch.randperm(n * s)
    # Put each class's samples back into their order of appearance; only the interleaving stays.
    for value in range(n):
        places = (labels[order] == value).nonzero().flatten()
        order[places] = order[places].sort().values
    loss = PairwiseCrossEntropyLoss()
    assert_close(loss(x[order], labels[order]), loss(x, labels))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction):
    x = (torch.randn(6, 4, dtype=F64) * 0.3).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 2, 2])
    loss = PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(), reduction)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), x)


@pytest.mark.parametrize("dense", [1, 30], ids=["rows", "blocks"])
@pytest.mark.parametrize(
    "distance", [HyperbolicDistance(), CosineSimilarity()], ids=["ball", "cosine"]
)
def test_blocks_of_anchors_give_the_same(monkeypatch, distance, dense):
    """Values and gradients, of the first and second order; also from sums by scattering."""
    x = (torch.randn(12, 4, dtype=F64) * 0.3).requires_grad_()
    labels = torch.arange(3).repeat(4)

    def results() -> list[Tensor]:
        loss = PairwiseCrossEntropyLoss(0.2, distance)(x, labels)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        return [loss, grad, second]

    expected = results()
    monkeypatch.setattr(pairwise, "DENSE_PAIRS", dense)
    monkeypatch.setattr(pairwise, "PRODUCT_ENTRIES", 0)
    for actual, value in zip(results(), expected, strict=True):
        torch.testing.assert_close(actual, value)


def test_blocks_bound_the_memory(monkeypatch):
    x, labels = torch.randn(96, 4, requires_grad=True), torch.arange(12).repeat(8)
    monkeypatch.setattr(pairwise, "DENSE_PAIRS", 96 * 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        loss = PairwiseCrossEntropyLoss()(x, labels)
    assert max(kept) <= 96 * 8
    loss.backward()
    assert x.grad.isfinite().all()


def test_groups_far_apart_do_not_underflow():
    # The third samples lie thousands above the first two, which share a denominator without them:
    # one scale for the whole row would leave that denominator 0.
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3e3, 0.0], [1.0, 2.0], [1.0, 3.0], [3e3, 1.0]])
    x.requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    distance = DotProductSimilarity(normalize_embeddings=False)
    loss = PairwiseCrossEntropyLoss(1.0, distance, "sum")(x, labels)
    expected = loop_loss(x.detach().double(), labels, distance, 1.0)
    torch.testing.assert_close(loss.double(), expected)
    loss.backward()
    assert x.grad.isfinite().all()


def test_one_class_passes_anomaly_detection():
    # With one class, a sample's own group is empty: no NaN may arise, not even one masked later.
    x = (torch.randn(3, 4) * 0.3).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss = PairwiseCrossEntropyLoss()(x, torch.zeros(3, dtype=torch.long))
        loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_identical_embeddings_give_the_uniform_loss():
    n, s = 4, 3
    x = torch.full((n * s, 8), 0.2, requires_grad=True)
    loss = PairwiseCrossEntropyLoss()(x, torch.arange(n).repeat_interleave(s))
    torch.testing.assert_close(loss, torch.tensor(2.0 * n - 1).log())
    loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1, 2], "between 1 and 2 samples"),
        ([0, 1, 2, 3], "between 1 and 1 samples"),
        ([0, 0, 0, 1], "between 1 and 3 samples"),
    ],
    ids=["unequal", "single", "one left over"],
)
def test_refuses_unbalanced_classes(labels, message):
    with pytest.raises(ValueError, match=f"`labels`.*{message}"):
        PairwiseCrossEntropyLoss()(torch.zeros(4, 2), torch.tensor(labels))


def test_repr_states_the_arguments():
    text = repr(PairwiseCrossEntropyLoss(0.1, reduction="sum"))
    assert "temperature=0.1, reduction='sum'" in text
    assert "CosineSimilarity" in text


def test_default_is_cosine_with_the_temperature_of_the_recipes():
    x, labels = torch.randn(12, 5, dtype=F64), torch.arange(4).repeat(3)
    written = PairwiseCrossEntropyLoss(0.1, CosineSimilarity(), "mean")
    assert_close(PairwiseCrossEntropyLoss()(x, labels), written(x, labels), tol=0)
    assert_close(PairwiseCrossEntropyLoss()(1000 * x, labels), written(x, labels))


def test_points_outside_the_ball_are_an_error():
    x, labels = 3 * torch.eye(4).float(), torch.tensor([0, 0, 1, 1])
    loss = PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(c=0.1))
    loss(x, labels)
    x[2] *= 1.1
    with pytest.raises(ValueError, match=r"`query_emb`.*below 3.162.*norm of 3.3.*ToPoincareBall"):
        loss(x, labels)
