"""Any pytorch-metric-learning loss and miner, with synthetic copies among the candidates."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import (
    AngularLoss,
    CrossBatchMemory,
    MarginLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.losses.generic_pair_loss import GenericPairLoss
from pytorch_metric_learning.miners import BaseMiner, BatchEasyHardMiner, HDCMiner
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.distributed import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
)
from torch import Tensor, nn

from bgl._checks import check_callable
from bgl._precision import in_precision_of
from bgl.augment.intra_class import IntraClassAugmentation
from bgl.augment.statistics import ClassStatistics
from bgl.losses.batch import WholeBatchLoss

Indices = tuple[Tensor, ...]


class AugmentedLoss(WholeBatchLoss):
    r"""A loss over a batch and its synthetic copies (Eq. 18-20 of IAA, 2022).

    How the copies enter depends on what the loss is made of:

    - Pairs: subclasses of pytorch-metric-learning's ``GenericPairLoss`` (contrastive,
      multi-similarity, SupCon, NT-Xent, circle, lifted structure, ...) and ``AngularLoss``.
      Originals are the anchors, originals and copies together the candidates
      (``ref_emb``, ``ref_labels``). Neither the anchor itself nor its own copies are its
      positives, as in the released code: they only say that noise is small.
    - Triplets: ``TripletMarginLoss`` and ``MarginLoss``. The same anchors and candidates.
    - Anything else that takes ``(embeddings, labels)``: proxy, softmax and average-precision
      losses, `bgl.losses.PairwiseCrossEntropyLoss`, your own. Originals and copies are given
      as one batch of (1 + M)·N. All of them may be anchors then, and a loss that pairs up
      samples by itself also pairs a sample with its own copies.

    A miner sees the same anchors and candidates. An anchor's own copies are held out of its
    choice: the miner's distance shows them closer than anything else (or further, where it
    looks for the easiest positive), and what it still returns of them is dropped.

    It is called as losses of pytorch-metric-learning are, by their trainers too; pairs come from
    ``miner`` alone, because those found outside know of no copies. Half-precision embeddings are
    taken in the precision of the loss's parameters, at least float32.

    A ``DistributedLossWrapper`` is looked through: what it wraps decides. With several processes
    pairs and triplets are those of each process; losses of the third kind see all embeddings.

    Copies are made from the embeddings as given; normalisation comes after, in the distance of
    the loss. Before the statistics hold anything, call ``.loss`` instead.

    Args:
        loss: The loss.
        augmentation: Maps (z [N, D], y [N]) to (copies [M·N, D], labels [M·N]), copy m of sample
            n in row m·N + n; usually :class:`IntraClassAugmentation`.
        miner: A pytorch-metric-learning miner, or any callable of its form. Copied, so that the
            one given keeps its distance. It looks at the batch of its own process.

    Raises:
        ValueError: If ``miner`` is a ``DistributedMinerWrapper``, ``loss`` or ``augmentation`` is
            a class or cannot be called, they are swapped, or ``loss`` has a ``CrossBatchMemory``,
            which would be filled with copies.

    Example:
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from bgl.augment import ClassStatistics, IntraClassAugmentation
        >>> z, y = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 4
        >>> statistics = ClassStatistics(num_classes=4, channels=4)
        >>> statistics.update(z, y)
        >>> loss = AugmentedLoss(ContrastiveLoss(), IntraClassAugmentation(statistics))
        >>> loss(z, y).backward()
        >>> z.grad.shape
        torch.Size([8, 4])
    """

    REASON = (
        "candidates are the batch and its copies, and pairs are found among them by "
        "AugmentedLoss(..., miner=...)"
    )

    def __init__(
        self,
        loss: nn.Module,
        augmentation: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        miner: Callable[..., Indices] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(miner, DistributedMinerWrapper):
            raise ValueError(
                "Expected argument `miner` to be the miner itself, which looks at the batch of its "
                "own process, but got a DistributedMinerWrapper"
            )
        check_callable(loss, "loss")
        if isinstance(loss, IntraClassAugmentation | ClassStatistics):
            raise ValueError(
                "Expected argument `loss` to be a loss of embeddings and labels, "
                f"got {type(loss).__name__}"
            )
        inner = loss.modules() if isinstance(loss, nn.Module) else ()
        if any(isinstance(part, CrossBatchMemory) for part in inner):
            raise ValueError(
                "Expected argument `loss` not to remember embeddings, because its memory would "
                "hold synthetic copies, but got CrossBatchMemory: add the two, "
                "AugmentedLoss(memory.loss, augmentation)(z, y) + memory(z, y)"
            )
        check_callable(augmentation, "augmentation")
        if isinstance(augmentation, ClassStatistics | BaseMetricLossFunction):
            raise ValueError(
                "Expected argument `augmentation` to be what makes the copies, as "
                f"IntraClassAugmentation(statistics) does, got {type(augmentation).__name__}"
            )
        self.loss = loss
        self.augmentation = augmentation
        self.miner = copy.deepcopy(miner)
        if isinstance(self.miner, BaseMiner):
            self.miner.distance = _HeldOutDistance(self.miner)

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        labels = labels.long()  # losses with proxies take nothing else
        embeddings = in_precision_of(self.loss, embeddings)
        copies, copy_labels = self.augmentation(embeddings, labels)
        candidates = torch.cat([embeddings, copies])
        candidate_labels = torch.cat([labels, copy_labels])
        n = len(labels)

        kind = self.loss.loss if isinstance(self.loss, DistributedLossWrapper) else self.loss
        if isinstance(kind, GenericPairLoss | AngularLoss):
            pairs = self._mine(n, embeddings, labels, candidates, candidate_labels)
            pairs = pairs or lmu.get_all_pairs_indices(labels, candidate_labels)
            pairs = _proper(pairs, candidate_labels, n)
            return self.loss(embeddings, labels, pairs, candidates, candidate_labels)
        if isinstance(kind, TripletMarginLoss | MarginLoss):
            mined = self._mine(n, embeddings, labels, candidates, candidate_labels)
            triplets = lmu.convert_to_triplets(
                mined, labels, candidate_labels, t_per_anchor=kind.triplets_per_anchor
            )
            # As one batch rather than as references: `swap` needs the distances of candidates
            # to each other. The anchors of the triplets are originals all the same.
            return self.loss(candidates, candidate_labels, _proper(triplets, candidate_labels, n))
        mined = self._mine(n, candidates, candidate_labels)
        if mined is None:
            return self.loss(candidates, candidate_labels)
        return self.loss(candidates, candidate_labels, mined)

    @torch.no_grad()
    def _mine(self, num_originals: int, *batch: Tensor) -> Indices | None:
        """Mine in ``batch``, the last of which are all labels; None without a miner."""
        if self.miner is None:
            return None
        if isinstance(self.miner, BaseMiner):
            self.miner.distance.num_originals = num_originals
        if isinstance(self.miner, HDCMiner):  # keeps a share of all pairs: own copies do not count
            pairs = lmu.get_all_pairs_indices(*batch[1::2])
            self.miner.set_idx_externally(_proper(pairs, batch[-1], num_originals), batch[-1])
        return _proper(self.miner(*batch), batch[-1], num_originals)


class _HeldOutDistance(BaseDistance):  # type: ignore[misc]
    """The distance of a miner, by which an anchor's own copies are the last positives to choose.

    They are nearer than all others (further, for a miner of the easiest positives): never hard,
    and nothing that negatives are measured against. By half the largest number: infinity and the
    largest one are how the miners mark what is no candidate at all.
    """

    def __init__(self, miner: BaseMiner) -> None:
        inner = miner.distance
        super().__init__(inner.normalize_embeddings, inner.p, inner.power, inner.is_inverted)
        self.inner = inner
        self.num_originals = 0
        easiest = getattr(miner, "pos_strategy", None) == BatchEasyHardMiner.EASY
        self.largest = inner.is_inverted != easiest

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        matrix = self.inner(query_emb, ref_emb)
        source = [torch.arange(n, device=matrix.device) % self.num_originals for n in matrix.shape]
        extreme = torch.finfo(matrix.dtype).max / 2
        own = source[0].unsqueeze(1) == source[1]
        return matrix.masked_fill(own, extreme if self.largest else -extreme)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return self.inner.pairwise_distance(query_emb, ref_emb)


def _proper(indices: Indices, labels: Tensor, num_originals: int) -> Indices:
    """Pairs or triplets without positives that are the anchor, its copies or of another class.

    Args:
        indices: (anchors, positives, negatives), or pairs (anchors, positives, anchors,
            negatives). Where both kinds of pairs share one tensor of anchors, they are triplets.
        labels: Of all candidates; the anchors are the first of them.
        num_originals: Row i is the sample i % num_originals or a copy of it.
    """
    anchor, positive, *others, negative = indices
    keep = (labels[anchor] == labels[positive]) & (
        anchor % num_originals != positive % num_originals
    )
    if not others or others[0] is anchor:
        keep = keep & (labels[anchor] != labels[negative])
        return tuple(index[keep] for index in indices)
    differ = labels[others[0]] != labels[negative]
    return anchor[keep], positive[keep], others[0][differ], negative[differ]
