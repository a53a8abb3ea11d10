"""AugmentedLoss: released losses, plain loops, and any loss and miner of the library."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import assert_close
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor, nn

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.losses import PairwiseCrossEntropyLoss

Golden = Callable[[str], dict[str, Tensor]]


class Replay(nn.Module):
    """Gives copies that are known beforehand."""

    def __init__(self, copies: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.copies, self.labels = copies, labels

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.copies, self.labels


def dot() -> DotProductSimilarity:
    # The released losses take inputs that are normalised already, and do not do it again.
    return DotProductSimilarity(normalize_embeddings=False)


def released_ms(distance: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5, distance=distance())
    return {"loss": loss, "miner": miners.MultiSimilarityMiner(0.1, distance=distance())}


def released_contrastive(distance: Callable[[], nn.Module]) -> losses.ContrastiveLoss:
    """The released sum over pairs; dividing by the batch size is left to the caller."""
    return losses.ContrastiveLoss(0.8, 0.5, distance=distance(), reducer=SumReducer())


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("n16", 16),
        ("n24_aug3", 24),
        ("n15_unequal_aug1", 15),
        ("n12_aug2_allanchor", 12),  # the released loss keeps to the originals even so
        ("edge_one_class", 8),
    ],
)
def test_multi_similarity_equals_released(golden: Golden, name: str, n: int) -> None:
    case = golden(f"iaa_ms_loss__{name}")
    x, y = case["x"].requires_grad_(), case["labels"]
    criterion = AugmentedLoss(augmentation=Replay(x[n:], y[n:]), **released_ms(dot))
    loss = criterion(x[:n], y[:n])
    (gradient,) = torch.autograd.grad(loss, x)
    assert_close(loss.detach(), case["loss"])
    assert_close(gradient, case["grad_x"])


def test_multi_similarity_of_duplicates_keeps_them_as_positives(golden: Golden) -> None:
    """The released loss drops positives of similarity above 1 − 1e-5; Eq. 20 has no such rule.

    Moved apart by 1e-4 rather than equal, the duplicates come in, and both agree again.
    """
    case = golden("iaa_ms_loss__edge_duplicates")
    x, y = case["x"], case["labels"]
    criterion = AugmentedLoss(augmentation=Replay(x[:0], y[:0]), **released_ms(dot))
    similarity = x @ x.T
    different = 0.0
    for i in range(8):
        same = (y == y[i]) & (torch.arange(8) != i)
        total = []
        for positive in (same, same & (similarity[i] < 1 - 1e-5)):
            pos, neg = similarity[i, positive], similarity[i, y != y[i]]
            if len(pos) and len(neg):
                keep = neg[neg + 0.1 > pos.min()]
                pos = pos[pos - 0.1 < neg.max()]
            if len(pos) == 0 or len(keep) == 0:
                total.append(0.0)
                continue
            left = torch.log(1 + torch.exp(-2 * (pos - 0.5)).sum()) / 2
            total.append(float(left + torch.log(1 + torch.exp(40 * (keep - 0.5)).sum()) / 40))
        different += (total[0] - total[1]) / 8
    assert_close(criterion(x, y), case["loss"] + different)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("n16", 16),
        ("n24_aug3", 24),
        ("n15_unequal_aug1", 15),
        ("edge_one_class", 8),
        ("edge_duplicates", 8),
    ],
)
def test_contrastive_equals_released(golden: Golden, name: str, n: int) -> None:
    case = golden(f"iaa_contrastive_loss__{name}")
    x, y = case["x"].requires_grad_(), case["labels"]
    criterion = AugmentedLoss(released_contrastive(dot), Replay(x[n:], y[n:]))
    loss = criterion(x[:n], y[:n]) / n
    (gradient,) = torch.autograd.grad(loss, x)
    assert_close(loss.detach(), case["loss"])
    assert_close(gradient, case["grad_x"])


def test_contrastive_anchors_are_originals(golden: Golden) -> None:
    """The released `all_anchor=True` also starts from copies, which is not Eq. 18."""
    case = golden("iaa_contrastive_loss__n12_aug2_allanchor")
    x, y, n = case["x"], case["labels"], 12
    rows = torch.arange(len(x))
    similarity = x @ x.T
    positive = (y[:, None] == y) & (rows[:, None] % n != rows % n)
    terms = torch.where(positive, (0.8 - similarity).relu(), 0)
    terms = torch.where(y[:, None] != y, (similarity - 0.5).relu(), terms)
    assert_close(terms.sum() / n, case["loss"])
    criterion = AugmentedLoss(released_contrastive(dot), Replay(x[n:], y[n:]))
    assert_close(criterion(x[:n], y[:n]), terms[:n].sum())


@pytest.mark.parametrize(
    ("name", "copies", "strength"), [("n16_aug3", 3, 0.8), ("n20_aug1", 1, 0.5)]
)
@pytest.mark.parametrize("kind", ["ms", "contrastive"])
def test_step_equals_released(
    golden: Golden, name: str, copies: int, strength: float, kind: str
) -> None:
    """From raw embeddings: copies first, normalised after, gradient through both."""
    case = golden(f"iaa_step__{name}")
    z, y = case["features"].requires_grad_(), case["labels"]
    variance = case["covariance"]
    statistics = ClassStatistics(*variance.shape).double()

    def augment(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        new = []
        for m, noise in enumerate(case["noise"]):
            # Eq. 17 for the first copy, the released root of a root for later ones.
            statistics.variance.copy_(variance ** (0.5**m))
            draw = IntraClassAugmentation(statistics, strength=strength, num_samples=1)
            new.append(draw(z, y, noise[None])[0])
        return torch.cat(new), y.repeat(copies)

    if kind == "ms":
        loss = AugmentedLoss(augmentation=augment, **released_ms(CosineSimilarity))(z, y)
    else:
        loss = AugmentedLoss(released_contrastive(CosineSimilarity), augment)(z, y) / len(z)
    (gradient,) = torch.autograd.grad(loss, z)
    assert_close(loss.detach(), case[f"loss_{kind}"])
    assert_close(gradient, case[f"grad_{kind}"])


def batch(n: int = 12, classes: int = 4, copies: int = 2) -> tuple[Tensor, Tensor, Replay]:
    z = torch.randn(n, 6, dtype=torch.float64, requires_grad=True)
    y = torch.arange(n) % classes
    new = (z.detach() + 0.3 * torch.randn(copies, n, 6)).flatten(0, 1)
    return z, y, Replay(new.requires_grad_(), y.repeat(copies))


@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
def test_triplets_in_a_plain_loop(swap: bool) -> None:
    z, y, replay = batch()
    criterion = AugmentedLoss(
        losses.TripletMarginLoss(0.2, swap=swap, reducer=SumReducer()), replay
    )
    every = nn.functional.normalize(torch.cat([z, replay.copies]))
    labels = torch.cat([y, replay.labels])
    distance, n, expected = torch.cdist(every, every), len(z), torch.tensor(0.0).double()
    for a in range(n):
        for p in range(len(every)):
            for q in range(len(every)):
                if labels[p] == y[a] and p % n != a and labels[q] != y[a]:
                    near = distance[a, q]
                    if swap:
                        near = torch.minimum(near, distance[p, q])
                    expected = expected + (distance[a, p] - near + 0.2).relu()
    assert_close(criterion(z, y).detach(), expected.detach(), tol=1e-6)


def test_supcon_in_a_plain_loop() -> None:
    z, y, replay = batch()
    every = nn.functional.normalize(torch.cat([z, replay.copies]))
    labels, n, terms = torch.cat([y, replay.labels]), len(z), []
    for i in range(n):
        others = torch.arange(len(every)) % n != i  # neither itself nor its own copies
        logits = every[i] @ every.T / 0.1
        log_prob = logits - logits[others].logsumexp(0)
        terms.append(-log_prob[others & (labels == y[i])].mean())
    criterion = AugmentedLoss(losses.SupConLoss(0.1), replay)
    assert_close(criterion(z, y).detach(), torch.stack(terms).mean().detach())


@pytest.mark.parametrize(
    "loss",
    [
        losses.ProxyAnchorLoss(4, 6),
        losses.ProxyNCALoss(4, 6),
        losses.SoftTripleLoss(4, 6),
        losses.ArcFaceLoss(4, 6),
        losses.FastAPLoss(),
        losses.NCALoss(),
        PairwiseCrossEntropyLoss(),  # wants as many of each class, and takes no pairs
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_over_a_whole_batch_take_copies_as_samples(loss: nn.Module) -> None:
    z, y, replay = batch()
    whole = loss(torch.cat([z, replay.copies]), torch.cat([y, replay.labels]))
    assert_close(AugmentedLoss(loss, replay)(z, y).detach(), whole.detach(), tol=0)


LOSSES = {
    "contrastive": lambda: losses.ContrastiveLoss(),
    "multi-similarity": lambda: losses.MultiSimilarityLoss(),
    "triplet": lambda: losses.TripletMarginLoss(),
    "triplet_random": lambda: losses.TripletMarginLoss(triplets_per_anchor=3),
    "margin": lambda: losses.MarginLoss(),
    "ntxent": lambda: losses.NTXentLoss(),
    "supcon": lambda: losses.SupConLoss(),
    "circle": lambda: losses.CircleLoss(),
    "angular": lambda: losses.AngularLoss(),
    "lifted": lambda: losses.GeneralizedLiftedStructureLoss(),
    "proxy-anchor": lambda: losses.ProxyAnchorLoss(4, 6),
    "soft-triple": lambda: losses.SoftTripleLoss(4, 6),
}
MINERS = {
    "none": lambda: None,
    "multi-similarity": lambda: miners.MultiSimilarityMiner(),
    "pair-margin": lambda: miners.PairMarginMiner(),
    "triplet-margin": lambda: miners.TripletMarginMiner(),
    "batch-hard": lambda: miners.BatchHardMiner(),
    "batch-easy": lambda: miners.BatchEasyHardMiner("easy", "hard"),
    "distance-weighted": lambda: miners.DistanceWeightedMiner(),
    "angular": lambda: miners.AngularMiner(),
}


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_with_any_miner(loss: str, miner: str) -> None:
    z, y, replay = batch()
    value = AugmentedLoss(LOSSES[loss](), replay, MINERS[miner]())(z, y)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0
    assert replay.copies.grad.abs().max() > 0


class Recorder(losses.ContrastiveLoss):
    """Keeps the pairs that it is given."""

    def forward(self, embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None):  # type: ignore[no-untyped-def]
        self.indices = indices_tuple
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)


@pytest.mark.parametrize("distance", [LpDistance, CosineSimilarity], ids=["lp", "cosine"])
@pytest.mark.parametrize("easy", [False, True], ids=["hardest", "easiest"])
def test_miner_chooses_among_others_copies(easy: bool, distance: type[nn.Module]) -> None:
    z, y, replay = batch()
    miner = miners.BatchEasyHardMiner("easy" if easy else "hard", "hard", distance=distance())
    loss = Recorder()
    AugmentedLoss(loss, replay, miner)(z, y)
    every = nn.functional.normalize(torch.cat([z, replay.copies]).detach())
    distances, rows = torch.cdist(every[: len(z)], every), torch.arange(len(every))
    other = (y[:, None] == torch.cat([y, replay.labels])) & (rows % len(z) != rows[: len(z), None])
    if easy:
        expected = distances.masked_fill(~other, torch.inf).argmin(1)
    else:
        expected = distances.masked_fill(~other, -torch.inf).argmax(1)
    assert torch.equal(loss.indices[0], rows[: len(z)])
    assert torch.equal(loss.indices[1], expected)


@pytest.mark.parametrize("miner", [name for name in MINERS if name != "none"])
def test_own_copies_are_no_positives(miner: str) -> None:
    z, y, replay = batch()
    loss = Recorder()
    AugmentedLoss(loss, replay, MINERS[miner]())(z, y)
    anchor, positive = loss.indices[:2]
    assert len(anchor) > 0
    assert (anchor < len(z)).all()
    assert (anchor != positive % len(z)).all()
    assert (positive >= len(z)).any()


EASY_HARD = [
    (positive, negative)
    for positive in ("hard", "semihard", "easy", "all")
    for negative in ("hard", "semihard", "easy", "all")
    if (positive, negative) != ("semihard", "semihard")
    and {positive, negative} != {"all", "semihard"}
]
PER_ANCHOR: dict[str, Callable[[nn.Module], miners.BaseMiner]] = {
    "batch-hard": lambda distance: miners.BatchHardMiner(distance=distance),
    "multi-similarity": lambda distance: miners.MultiSimilarityMiner(distance=distance),
    "pair-margin": lambda distance: miners.PairMarginMiner(0.5, 0.5, distance=distance),
    **{
        f"triplet-margin {kind}": lambda distance, kind=kind: miners.TripletMarginMiner(
            0.2, kind, distance=distance
        )
        for kind in ("all", "hard", "semihard", "easy")
    },
    **{
        f"{kinds[0]} positives, {kinds[1]} negatives": (
            lambda distance, kinds=kinds: miners.BatchEasyHardMiner(*kinds, distance=distance)
        )
        for kinds in EASY_HARD
    },
    "hard within a range": lambda distance: miners.BatchEasyHardMiner(
        "hard", "hard", allowed_pos_range=(0.3, 0.9), distance=distance
    ),
}


@pytest.mark.parametrize("distance", [LpDistance, CosineSimilarity], ids=["lp", "cosine"])
@pytest.mark.parametrize("labels", ["balanced", "alone", "two classes"])
@pytest.mark.parametrize("make", PER_ANCHOR)
def test_mined_as_if_own_copies_were_not_there(
    make: str, labels: str, distance: type[nn.Module]
) -> None:
    """Anchor by anchor, from candidates without itself and its copies."""
    z, _, replay = batch()
    many = {"balanced": torch.arange(12) % 4, "two classes": torch.arange(12) // 6}
    y = many.get(labels, torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7]))
    replay.labels = y.repeat(2)
    candidates, candidate_labels = torch.cat([z, replay.copies]), torch.cat([y, replay.labels])
    expected: tuple[set[tuple[int, int]], set[tuple[int, int]]] = (set(), set())
    for i in range(len(z)):
        others = (torch.arange(len(candidates)) % len(z) != i).nonzero().flatten()
        mined = PER_ANCHOR[make](distance())(
            z[i : i + 1], y[i : i + 1], candidates[others], candidate_labels[others]
        )
        for pairs, found in zip(expected, (mined[1], mined[-1]), strict=True):
            pairs.update((i, j) for j in others[found].tolist())
    loss = Recorder()
    AugmentedLoss(loss, replay, PER_ANCHOR[make](distance()))(z, y)
    anchor, positive, *others, negative = (index.tolist() for index in loss.indices)
    assert set(zip(anchor, positive, strict=True)) == expected[0]
    assert set(zip(others[0] if others else anchor, negative, strict=True)) == expected[1]


def test_a_class_alone_is_never_pulled_to_another() -> None:
    y = torch.tensor([0, 0, 1])
    z = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0]])
    replay = Replay(z + 0.1 * torch.randn(3, 3), y)
    loss = Recorder()
    AugmentedLoss(loss, replay, miners.BatchHardMiner())(z, y)
    assert loss.indices[0].unique().tolist() == [0, 1]


def test_share_of_all_pairs_is_one_of_pairs_without_own_copies() -> None:
    z, y, replay = batch(16)
    loss, share = Recorder(), 0.3
    AugmentedLoss(loss, replay, miners.HDCMiner(filter_percentage=share))(z, y)
    every = nn.functional.normalize(torch.cat([z, replay.copies]).detach())
    similarity = every[:16] @ every.T
    rows = torch.arange(len(every))
    same = y[:, None] == torch.cat([y, replay.labels])
    other = same & (rows % 16 != rows[:16, None])
    hardest = similarity[other].sort().values[: math.ceil(share * int(other.sum()))]
    found = similarity[loss.indices[0], loss.indices[1]].sort().values
    assert_close(found, hardest)
    hardest = (
        similarity[~same].sort(descending=True).values[: math.ceil(share * int((~same).sum()))]
    )
    assert_close(similarity[loss.indices[2], loss.indices[3]].sort(descending=True).values, hardest)


def test_called_as_losses_of_the_library_are() -> None:
    z, y, replay = batch()
    criterion = AugmentedLoss(losses.ContrastiveLoss(), replay)
    assert criterion(z, y, None, None, None) == criterion(z, y)
    pairs = miners.MultiSimilarityMiner()(z, y)
    for bad in ({"indices_tuple": pairs}, {"ref_emb": z}, {"ref_labels": y}):
        with pytest.raises(ValueError, match=rf"`{next(iter(bad))}`.*miner="):
            criterion(z, y, **bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "loss",
    [
        *(losses.ProxyAnchorLoss, losses.ProxyNCALoss, losses.SoftTripleLoss, losses.ArcFaceLoss),
        *(losses.CosFaceLoss, losses.SubCenterArcFaceLoss, losses.NormalizedSoftmaxLoss),
    ],
)
def test_no_call_changes_the_type_of_proxies(loss: type[nn.Module], dtype: torch.dtype) -> None:
    made = loss(num_classes=4, embedding_size=6)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    z, y = torch.randn(12, 6).to(dtype).requires_grad_(), torch.arange(12) % 4
    statistics = ClassStatistics(4, 6)
    statistics.update(z.detach(), y)
    value = AugmentedLoss(made, IntraClassAugmentation(statistics))(z, y)
    value.backward()
    assert value.isfinite()
    assert (z.grad.dtype, bool(z.grad.isfinite().all())) == (dtype, True)
    for name, parameter in made.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_miner_given_keeps_its_distance() -> None:
    z, y, replay = batch()
    miner = miners.MultiSimilarityMiner()
    before = miner.distance
    AugmentedLoss(losses.ContrastiveLoss(), replay, miner)(z, y)
    assert miner.distance is before


def test_miner_may_be_a_function() -> None:
    z, y, replay = batch()

    def first_pair(z: Tensor, y: Tensor, ref: Tensor, ref_y: Tensor) -> tuple[Tensor, ...]:
        one = torch.tensor
        # 12 copies 0; 1 is of another class, and no positive; 8 of the same, and no negative
        return one([0, 0, 0, 0]), one([4, 12, 0, 1]), one([0, 0]), one([1, 8])

    loss = Recorder()
    AugmentedLoss(loss, replay, first_pair)(z, y)
    assert [index.tolist() for index in loss.indices] == [[0], [4], [0], [1]]


def test_whole_iaa_step_trains_in_low_precision() -> None:
    statistics = ClassStatistics(4, 8)
    augmentation = IntraClassAugmentation(statistics, num_samples=3)
    criterion = AugmentedLoss(
        losses.MultiSimilarityLoss(), augmentation, miners.MultiSimilarityMiner()
    )
    layer, y = nn.Linear(5, 8), torch.arange(16) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(torch.randn(16, 5))
        statistics.update(z, y)
        loss = criterion(z, y)
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().max() > 0


def test_calls_name_the_bad_argument() -> None:
    _, y, replay = batch()
    criterion = AugmentedLoss(losses.ContrastiveLoss(), replay)
    with pytest.raises(ValueError, match="`embeddings`"):
        criterion(torch.randn(12), y)
    with pytest.raises(ValueError, match="`labels`"):
        criterion(torch.randn(12, 6), y[:3])


def test_constructor_names_the_bad_argument() -> None:
    loss, statistics = losses.ContrastiveLoss(), ClassStatistics(2, 2)
    augmentation = IntraClassAugmentation(statistics)
    for bad_loss, says in (
        (losses.ContrastiveLoss, "an instance, not a class, got ContrastiveLoss"),
        (6, "callable, got 6"),
        (augmentation, "a loss .* got IntraClassAugmentation"),
    ):
        with pytest.raises(ValueError, match=f"`loss` to be {says}"):
            AugmentedLoss(bad_loss, loss)  # type: ignore[arg-type]
    for bad, says in (
        (IntraClassAugmentation, "an instance, not a class"),
        (6, "callable, got 6"),
        (statistics, "what makes the copies.* got ClassStatistics"),
        (loss, "what makes the copies.* got ContrastiveLoss"),
    ):
        with pytest.raises(ValueError, match=f"`augmentation` to be {says}"):
            AugmentedLoss(loss, bad)  # type: ignore[arg-type]
