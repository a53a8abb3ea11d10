"""Losses and miners by name: all of them learn, and nothing unknown is swallowed."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn

from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.losses import LOSSES, MINERS, MinedLoss, create_loss, create_miner

HYPERBOLIC = ["pairwise-ce", "triplet"]
K, D = 4, 8


def batch(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes of four, not yet apart."""
    labels = torch.arange(K).repeat_interleave(4)
    centres = torch.randn(K, D)
    return scale * (centres[labels] + torch.randn(len(labels), D)), labels


def test_the_names_of_the_issue_are_there():
    wanted = "pairwise-ce multi-similarity contrastive triplet proxy-anchor soft-triple supcon"
    assert set(wanted.split()) <= set(LOSSES)


@pytest.mark.parametrize(
    ("name", "miner"),
    [
        (name, miner)
        for name in LOSSES
        for miner in ("default", "none", *MINERS)
        # two build their own pairs
        if name not in ("pairwise-ce", "contextual") or miner in ("default", "none")
    ],
)
def test_finite_loss_that_gradient_descent_lowers(name, miner):
    criterion = MinedLoss(create_loss(name, K, D), create_miner(miner, name))
    embeddings, labels = batch()
    embeddings.requires_grad_()
    values = []
    for _ in range(30):
        loss = criterion(embeddings, labels)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert torch.isfinite(gradient).all()
        values.append(loss.item())
        if not gradient.any():  # a miner that finds nothing more
            break
        embeddings = (embeddings - 0.05 * gradient / gradient.norm()).detach().requires_grad_()
    assert len(values) > 1
    if miner == "default" and name != "triplet":  # semihard mining changes what is counted
        assert values[-1] < values[0]


def test_pairwise_ce_refuses_pairs_of_a_miner():
    criterion = MinedLoss(create_loss("pairwise-ce", K, D), create_miner("batch-hard"))
    with pytest.raises(ValueError, match="indices_tuple"):
        criterion(*batch())


@pytest.mark.parametrize(
    ("name", "cls", "defaults"),
    [
        ("multi-similarity", losses.MultiSimilarityLoss, {"alpha": 2.0, "beta": 40.0, "base": 0.5}),
        ("contrastive", losses.ContrastiveLoss, {"pos_margin": 0.8, "neg_margin": 0.5}),
        ("triplet", losses.TripletMarginLoss, {"margin": 0.1}),
        ("proxy-anchor", losses.ProxyAnchorLoss, {"margin": 0.1, "alpha": 32}),
        ("soft-triple", losses.SoftTripleLoss, {"centers_per_class": 10, "la": 20}),
        ("supcon", losses.SupConLoss, {"temperature": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_default_is_the_loss_of_pytorch_metric_learning(name, cls, defaults):
    """The value of the loss as a user would write it out."""
    torch.manual_seed(1)
    made = create_loss(name, K, D)
    proxies = {"num_classes": K, "embedding_size": D} if list(made.parameters()) else {}
    torch.manual_seed(1)
    written = cls(**defaults, **proxies, distance=CosineSimilarity())
    embeddings, labels = batch()
    assert type(made) is cls
    assert torch.equal(made(embeddings, labels), written(embeddings, labels))


def test_default_pairwise_ce():
    loss = create_loss("pairwise-ce", K, D)
    assert (loss.temperature, loss.reduction) == (0.1, "mean")
    assert isinstance(loss.distance, CosineSimilarity)


def test_default_miners():
    mined = {"multi-similarity": miners.MultiSimilarityMiner, "triplet": miners.TripletMarginMiner}
    for loss in LOSSES:
        assert type(create_miner("default", loss)) is mined.get(loss, type(None)), loss


def test_default_options_of_the_miners():
    assert create_miner("multi-similarity").epsilon == 0.1
    triplets = create_miner("triplet-margin")
    assert (triplets.margin, triplets.type_of_triplets) == (0.1, "semihard")
    assert isinstance(create_miner("batch-hard"), miners.BatchHardMiner)
    for name in MINERS:
        assert isinstance(create_miner(name).distance, CosineSimilarity)
    assert create_miner("none") is None


def test_options_win_over_defaults():
    assert create_loss("pairwise-ce", K, D, temperature=0.3, reduction="sum").reduction == "sum"
    assert create_loss("contrastive", K, D, neg_margin=0.2).neg_margin == 0.2
    assert create_loss("soft-triple", K, D, centers_per_class=3).fc.shape == (D, 3 * K)
    assert create_miner("triplet-margin", type_of_triplets="hard").type_of_triplets == "hard"


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_loss_option_is_named(name):
    with pytest.raises(ValueError, match=rf"`loss_options`.*'{name}'.*temprature"):
        create_loss(name, K, D, temprature=0.1)


@pytest.mark.parametrize("name", ["none", *MINERS])
def test_unknown_miner_option_is_named(name):
    with pytest.raises(ValueError, match=r"`miner_options`.*epsilom"):
        create_miner(name, epsilom=0.1)


@pytest.mark.parametrize("name", ["", "Triplet", "arcface"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"`loss`.*pairwise-ce"):
        create_loss(name, K, D)
    with pytest.raises(ValueError, match=r"`miner`.*batch-hard"):
        create_miner(name)
    with pytest.raises(ValueError, match=r"`loss`.*pairwise-ce"):
        create_miner("default", name)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in HYPERBOLIC])
def test_similarity_only_loss_refuses_the_hyperbolic_distance(name):
    with pytest.raises(ValueError, match=rf"hyperbolic.*pairwise-ce, triplet.*'{name}'"):
        create_loss(name, K, D, HyperbolicDistance(0.1))


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_hyperbolic_loss(name):
    distance = HyperbolicDistance(0.1)
    loss = create_loss(name, K, D, distance)
    assert loss.distance is distance
    criterion = MinedLoss(loss, create_miner("default", name, distance))
    embeddings, labels = batch()
    embeddings.requires_grad_()
    criterion(ToPoincareBall(0.1)(embeddings), labels).backward()
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.any()


@pytest.mark.parametrize("kind", ["semihard", "hard"])
def test_hyperbolic_triplets_are_mined_by_the_hyperbolic_distance(kind):
    """Every triplet is found that is so by the distance of the loss, and no other."""
    distance = HyperbolicDistance(1.0)
    embeddings, labels = batch(0.4)
    points = ToPoincareBall(1.0, None)(embeddings)
    miner = create_miner("default", "triplet", distance, type_of_triplets=kind)
    d = distance(points, points)
    low, high = {"semihard": (0.0, 0.1), "hard": (-torch.inf, 0.0)}[kind]
    n = range(len(labels))
    expected = {
        (a, p, q)
        for a in n
        for p in n
        for q in n
        if a != p and labels[a] == labels[p] != labels[q] and low < d[a, q] - d[a, p] <= high
    }
    found = set(zip(*(indices.tolist() for indices in miner(points, labels)), strict=True))
    assert found == expected != set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mined", [False, True], ids=["bare", "mined"])
@pytest.mark.parametrize("name", LOSSES)
def test_no_call_changes_the_type_of_parameters(name, mined, dtype):
    loss = create_loss(name, K, D)
    before = [parameter.clone() for parameter in loss.parameters()]
    embeddings, labels = batch()
    embeddings = embeddings.to(dtype).requires_grad_()
    call = MinedLoss(loss, create_miner("default", name)) if mined else loss
    value = call(embeddings, labels)
    value.backward()
    assert value.dtype == (
        torch.float64 if dtype == torch.float64 and not before else torch.float32
    )
    assert value.isfinite()
    assert embeddings.grad.dtype == dtype
    assert embeddings.grad.isfinite().all()
    for parameter, old in zip(loss.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, old)
    by_name = call(embeddings=embeddings, labels=labels)
    assert torch.equal(by_name, value)


@pytest.mark.parametrize("name", ["proxy-anchor", "soft-triple", "normalized-softmax"])
def test_float64_parameters_stay_so(name):
    loss = create_loss(name, K, D).double()
    embeddings, labels = batch()
    assert loss(embeddings, labels).dtype == torch.float64
    assert {parameter.dtype for parameter in loss.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["proxy-anchor", "soft-triple", "normalized-softmax"])
@pytest.mark.parametrize("label", [-1, K])
def test_label_without_a_proxy_is_named(name, label):
    embeddings, labels = batch()
    labels[3] = label
    with pytest.raises(ValueError, match=rf"`labels` .* from 0 to {K - 1}, .* {label}\b"):
        MinedLoss(create_loss(name, K, D))(embeddings, labels)


def test_distance_that_is_none():
    for distance in ("euclid", 3):
        with pytest.raises(ValueError, match="`distance`"):
            create_loss("triplet", K, D, distance)
        with pytest.raises(ValueError, match="`distance`"):
            create_miner("triplet-margin", "triplet", distance)


def test_mined_loss_is_the_loss_of_the_mined_pairs():
    embeddings, labels = batch()
    miner, loss = create_miner("default", "triplet"), create_loss("triplet", K, D)
    mined = miner(embeddings, labels)
    assert 0 < len(mined[0]) < K * 4 * 3 * 12  # some of all triplets
    assert torch.equal(MinedLoss(loss, miner)(embeddings, labels), loss(embeddings, labels, mined))
    assert torch.equal(MinedLoss(loss)(embeddings, labels), loss(embeddings, labels))


def test_proxies_are_parameters_of_the_mined_loss():
    criterion = MinedLoss(create_loss("proxy-anchor", 7, D))
    assert [p.shape for p in criterion.parameters()] == [(7, D)]
    assert isinstance(criterion.loss, nn.Module)
