"""The pairwise cross-entropy loss of Hyp-ViT and DyBGR."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bgl._checks import check_choice, check_real, readable
from bgl._precision import at_least_float32, exact_matmul, for_exact_products
from bgl.losses.batch import WholeBatchLoss

# Pairs whose losses are computed at once, and kept for the gradient: some 4 GB. Of more, blocks of
# anchors are computed, and computed again for the gradient.
DENSE_PAIRS = 2**26
# Entries of a matrix of samples and groups, up to which a product with it is cheap.
PRODUCT_ENTRIES = 2**20


class PairwiseCrossEntropyLoss(WholeBatchLoss):
    r"""Cross-entropy over the ordered pairs of samples of each class.

    The loss of `"Hyperbolic Vision Transformers: Combining Improvements in Metric Learning"
    <https://arxiv.org/abs/2203.10833>`_ (Ermolov et al., CVPR 2022), section 3.2, equation 6.

    A batch holds :math:`n` classes with :math:`s` samples each; :math:`z_a^{(i)}` is the
    :math:`i`-th sample of class :math:`a`, counted by appearance. With the similarity
    :math:`D(x, y)` (minus a distance) and temperature :math:`\tau`, every ordered pair
    :math:`(i, j)`, :math:`i \ne j`, has the loss

    .. math::
        \ell_{ij} = -\frac{1}{n} \sum_a \log
            \frac{\exp(D(z_a^{(i)}, z_a^{(j)}) / \tau)}
                 {\sum_b \exp(D(z_a^{(i)}, z_b^{(j)}) / \tau)
                  + \sum_{b \ne a} \exp(D(z_a^{(i)}, z_b^{(i)}) / \tau)}

    and the result is their sum (as in both papers' code) or mean over the :math:`s(s-1)` ordered
    pairs.

    Classes may be interleaved and labelled in any way. Which samples share a denominator follows
    from their order of appearance within the class, so the value can change when two samples of
    one class change places, but not when the classes are interleaved differently.

    All pairs are computed at once from a few ``[N, N]`` matrices, in float32 or wider with
    autocast switched off, whatever the embeddings' type. Of more than 8,192 samples a block of
    rows is computed at a time, and again for the gradient: memory stays below some 7 GB.

    The papers' form is ``PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(c=0.1), "sum")``, for
    embeddings of a head that ends in :class:`bgl.hyperbolic.ToPoincareBall`.

    Args:
        temperature: :math:`\tau` (> 0).
        distance: Any distance or similarity of pytorch-metric-learning; by default
            ``CosineSimilarity()``. Similarities (``is_inverted``) are used as they are.
        reduction: ``"mean"`` or ``"sum"`` over the ordered pairs.

    Shapes:
        - input: embeddings ``[N, C]``, labels ``[N]`` (any integers)
        - output: scalar

    Raises:
        ValueError: If an argument has the wrong type or shape; if ``indices_tuple``, ``ref_emb`` or
            ``ref_labels`` is given, as this loss builds its own pairs; or if classes have fewer
            than two samples or unequal numbers of them. That last check reads the labels, which
            on a GPU would wait for it: there, and in a compiled graph, such classes make the loss
            NaN.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [4.0, 3.0], [0.0, 1.0]])
        >>> PairwiseCrossEntropyLoss()(embeddings, torch.tensor([3, 7, 3, 7]))
        tensor(0.9668)
    """

    REASON = "PairwiseCrossEntropyLoss builds its own pairs from `embeddings` and `labels`"

    def __init__(
        self, temperature: float = 0.1, distance: nn.Module | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.temperature = check_real(temperature, "temperature", minimum=0, exclusive=True)
        self.distance = CosineSimilarity() if distance is None else distance
        self.reduction = check_choice(reduction, "reduction", ("mean", "sum"))

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(embeddings.device)
        position, sizes = positions(labels)
        if readable(labels):
            _check_balanced(sizes)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            n = labels.numel()
            if n * n <= DENSE_PAIRS or torch.compiler.is_compiling():
                total = self._sum(embeddings, labels, position, 0, n)
            else:
                height = max(1, DENSE_PAIRS // n)
                blocks = [
                    checkpoint(
                        *(self._sum, embeddings, labels, position, first, height),
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                    for first in range(0, n, height)
                ]
                total = torch.stack(blocks).sum()
            per_class = sizes[0]
            terms = n / per_class if self.reduction == "sum" else n * (per_class - 1)
            return (total / terms).masked_fill(~_balanced(sizes), torch.nan)

    def _sum(
        self, embeddings: Tensor, labels: Tensor, position: Tensor, first: int, height: int
    ) -> Tensor:
        """Sum the losses of the pairs of ``height`` anchors, from the ``first`` on."""
        wide = for_exact_products(embeddings)
        anchors = wide[first : first + height] if height < len(wide) else wide
        similarity = self.distance(anchors, wide).to(embeddings.dtype)
        scale = self.temperature if self.distance.is_inverted else -self.temperature
        return pair_losses(similarity / scale, labels, position, first).sum()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


def positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Count for each sample [N] the earlier samples of its class, and all of them."""
    same = labels[:, None] == labels
    return same.tril(-1).sum(dim=1), same.sum(dim=1)


def pair_losses(logits: Tensor, labels: Tensor, position: Tensor, first: int = 0) -> Tensor:
    """Compute the loss of every (anchor, positive) pair without a loop.

    The denominator of the pair (p, q) sums over the samples at q's position and those at p's own,
    except p. So each row needs one sum of exponentials per position; every such group is scaled by
    its own maximum, because a group may lie hundreds below another one.

    Args:
        logits: Similarities over temperature ``[R, N]`` of the anchors from the ``first`` on.
        labels: Class of each sample, ``[N]``.
        position: Its number of appearance within its class, :func:`positions`.
        first: Number of the first anchor.

    Returns:
        Losses ``[R, N]``, 0 where p and q are no pair.
    """
    rows, n = logits.shape
    anchors = slice(first, first + rows)
    number = torch.arange(n, device=labels.device)
    itself = number[anchors, None] == number
    no_pair = itself | (labels[anchors, None] != labels)
    own, group = position[anchors, None], position.expand(rows, n)

    others = logits.masked_fill(itself, -torch.inf)
    # as many groups as samples, where counting the groups would wait for the device
    groups = int(position.max()) + 1 if readable(position) else n
    lowest = torch.finfo(logits.dtype).min  # finite, so that an empty group's scale is no NaN
    peak = logits.new_full((rows, groups), lowest)
    peak = peak.scatter_reduce(1, group, others.detach(), "amax")
    peak_other = peak.gather(1, group)
    peak_own = peak_other.diagonal(first)[:, None]
    mass = _group_sums((others - peak_other).exp(), position, groups)

    scale = torch.maximum(peak_own, peak_other)
    denominator = mass.gather(1, own) * (peak_own - scale).exp()
    denominator = denominator + mass.gather(1, group) * (peak_other - scale).exp()
    # Masked before the log too: an entry that is no pair may hold 0, where its gradient is NaN.
    losses = denominator.masked_fill(no_pair, 1.0).log() + scale - logits
    return losses.masked_fill(no_pair, 0.0)


def _group_sums(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum the columns of each group: [R, N] to [R, groups]."""
    if group.numel() * groups > PRODUCT_ENTRIES:
        return x.new_zeros(len(x), groups).scatter_add(1, group.expand_as(x), x)
    # on a GPU, scatter_add would add in any order, and give other last digits every time
    return exact_matmul(x, (group[:, None] == torch.arange(groups, device=x.device)).to(x.dtype))


def _check_balanced(sizes: Tensor) -> None:
    """Raise unless all classes have the same number of samples, two or more."""
    if sizes.numel() == 0:
        raise ValueError("Expected argument `labels` to hold two samples per class or more, got 0")
    if not _balanced(sizes):
        fewest, most = sizes.aminmax()
        raise ValueError(
            "Expected argument `labels` to hold the same number of samples (≥ 2) of every class, "
            f"but got between {int(fewest)} and {int(most)} samples per class"
        )


def _balanced(sizes: Tensor) -> Tensor:
    """Whether the classes of all samples have equal sizes, two or more."""
    return (sizes == sizes[0].clamp(min=2)).all()
