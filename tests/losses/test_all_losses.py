"""What all losses have in common: half precision, and errors that name the argument."""

from __future__ import annotations

import pytest
import torch

from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.losses import (
    ContextualSimilarityLoss,
    PairwiseCrossEntropyLoss,
    RelatedNeighborsLoss,
    RelaxedContrastiveLoss,
    SoftTargetLoss,
    diffuse,
)

LABELS = torch.arange(12) // 3
RELATIONS = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
CALLS = {
    "pairwise": lambda x: PairwiseCrossEntropyLoss()(x, LABELS),
    "pairwise in the ball": lambda x: PairwiseCrossEntropyLoss(0.1, HyperbolicDistance())(
        x, LABELS
    ),
    "contextual": lambda x: ContextualSimilarityLoss()(x, LABELS),
    "soft targets": lambda x: SoftTargetLoss(0.1)(x, SoftTargetLoss(0.1).targets(x.flip(0))),
    "relaxed": lambda x: RelaxedContrastiveLoss(1.2)(x, RELATIONS),
    "related": lambda x: RelatedNeighborsLoss(0.5)(x, RELATIONS),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_half_precision_is_computed_in_float32(call, autocast, dtype):
    x = ToPoincareBall()(torch.randn(12, 32) * 10).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        value = call(x)
    assert value.dtype == torch.float32
    assert torch.equal(value, call(x.detach().float()))
    value.backward()
    assert x.grad.isfinite().all()


X, Y, P = torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), torch.eye(3)
EDGES, WEIGHT = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
PAIRS = [RelaxedContrastiveLoss(), RelatedNeighborsLoss(), SoftTargetLoss()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairwiseCrossEntropyLoss(temperature=0), "`temperature`"),
        (lambda: PairwiseCrossEntropyLoss(reduction="none"), "`reduction`"),
        (lambda: PairwiseCrossEntropyLoss()(X[:0], Y[:0]), "`labels`"),
        (lambda: ContextualSimilarityLoss(k=1), "`k`"),
        (lambda: ContextualSimilarityLoss(lam=0.8, gamma=0.3), "`gamma`"),
        (lambda: RelaxedContrastiveLoss(0.0), "`margin`"),
        (lambda: RelatedNeighborsLoss(0.0), "`temperature`"),
        (lambda: SoftTargetLoss(0.0), "`temperature`"),
        (lambda: SoftTargetLoss().targets(X.long()), "`embeddings`"),
        (lambda: diffuse(torch.ones(2, 3), EDGES, WEIGHT, 0.5), "`targets`"),
        (lambda: diffuse(torch.tensor(1.0), EDGES, WEIGHT, 0.5), "`targets`"),
        (lambda: diffuse(P, EDGES + 2, WEIGHT, 0.5), "`edge_index`"),
        (lambda: diffuse(P, EDGES, torch.ones(3), 0.5), "`edge_weight`.*2 edges"),
        (lambda: diffuse(P, EDGES, WEIGHT, 1.0), "`w`"),
        (lambda: diffuse(P, EDGES, WEIGHT, -0.1), "`w`"),
        *((lambda loss=loss: loss(X[0], P), "`embeddings` to be a floating") for loss in PAIRS),
        *((lambda loss=loss: loss(X, P), r"4 samples.*\[3, 3\]") for loss in PAIRS),
        *((lambda loss=loss: loss(X, P.long()), "to be a floating-point") for loss in PAIRS),
    ],
)
def test_the_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("loss", [PairwiseCrossEntropyLoss(), ContextualSimilarityLoss()])
def test_losses_of_a_batch_take_its_embeddings_and_labels_alone(loss):
    for name in ("indices_tuple", "ref_emb", "ref_labels"):
        with pytest.raises(ValueError, match=f"`{name}` to be None: {type(loss).__name__}"):
            loss(X, Y, **{name: ()})
    for x, y, name in ((X[0], Y, "embeddings"), (X, Y.float(), "labels"), (X, Y[:3], "labels")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            loss(x, y)
