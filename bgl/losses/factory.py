"""Losses and miners by name, with the defaults of the papers that bgl compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor, nn

from bgl._checks import check_choice, check_index_vector, check_matrix, check_within
from bgl._precision import in_precision_of
from bgl._registry import Registry
from bgl.hyperbolic import HyperbolicDistance
from bgl.losses.contextual import ContextualSimilarityLoss
from bgl.losses.pairwise import PairwiseCrossEntropyLoss


@dataclass(frozen=True)
class _Loss:
    """Build a loss with the defaults that the papers use."""

    make: Callable[..., nn.Module]
    defaults: dict[str, Any] = field(default_factory=dict)
    default_miner: str = "none"
    any_distance: bool = False  # also one that is no similarity
    proxies: bool = False

    def __call__(
        self, num_classes: int, embedding_dim: int, distance: BaseDistance, **options: Any
    ) -> nn.Module:
        sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
        options = {"distance": distance, **self.defaults, **options}
        if not self.proxies:
            return self.make(**options)
        loss = self.make(**sizes, **options)
        loss.num_classes = num_classes  # type: ignore[assignment]  # NormalizedSoftmaxLoss has 0
        return loss


def _miner(make: Callable[..., nn.Module], distance: BaseDistance, **options: Any) -> nn.Module:
    """Build a miner that goes by a distance."""
    return make(distance=distance, **options)


#: Losses by name, built from the number of classes, the dimension of the embeddings, a distance
#: and options. Attributes: ``default_miner`` (else none), ``any_distance`` (False: similarities
#: only).
LOSSES: Registry[Callable[..., nn.Module]] = Registry(
    "loss",
    3,
    {
        "pairwise-ce": _Loss(PairwiseCrossEntropyLoss, {"temperature": 0.1}, any_distance=True),
        "multi-similarity": _Loss(
            losses.MultiSimilarityLoss,
            {"alpha": 2.0, "beta": 40.0, "base": 0.5},
            default_miner="multi-similarity",
        ),
        "contextual": _Loss(ContextualSimilarityLoss),
        "contrastive": _Loss(losses.ContrastiveLoss, {"pos_margin": 0.8, "neg_margin": 0.5}),
        "triplet": _Loss(
            losses.TripletMarginLoss,
            {"margin": 0.1},
            default_miner="triplet-margin",
            any_distance=True,
        ),
        "proxy-anchor": _Loss(losses.ProxyAnchorLoss, proxies=True),
        "normalized-softmax": _Loss(
            losses.NormalizedSoftmaxLoss, {"temperature": 0.05}, proxies=True
        ),
        "soft-triple": _Loss(losses.SoftTripleLoss, proxies=True),
        "supcon": _Loss(losses.SupConLoss, {"temperature": 0.1}),
    },
)

#: Miners by name, built from a distance and options.
MINERS: Registry[Callable[..., nn.Module]] = Registry(
    "miner",
    1,
    {
        "multi-similarity": partial(_miner, miners.MultiSimilarityMiner, epsilon=0.1),
        "triplet-margin": partial(
            _miner, miners.TripletMarginMiner, margin=0.1, type_of_triplets="semihard"
        ),
        "batch-hard": partial(_miner, miners.BatchHardMiner),
    },
)


def create_loss(
    name: str,
    num_classes: int,
    embedding_dim: int,
    distance: str | BaseDistance = "cosine",
    **options: Any,
) -> nn.Module:
    """Create a loss, called as ``loss(embeddings, labels)``.

    Embeddings are taken in the precision of its parameters, at least float32.

    Args:
        name: A name in ``LOSSES``.
        num_classes: Number of training classes (for losses with proxies).
        embedding_dim: Dimension of the embeddings (for losses with proxies).
        distance: ``"cosine"`` or a :class:`bgl.hyperbolic.HyperbolicDistance`.
        options: Passed to the loss's constructor, over its defaults.

    Raises:
        ValueError: If the name or an option is unknown, or the loss needs a similarity and
            ``distance`` is none of its kind.

    Example:
        >>> create_loss("triplet", num_classes=10, embedding_dim=8, margin=0.2).margin
        0.2
    """
    build = LOSSES[LOSSES.check(name, "loss")]
    if isinstance(distance, HyperbolicDistance) and not getattr(build, "any_distance", True):
        able = [other for other, entry in LOSSES.items() if getattr(entry, "any_distance", True)]
        raise ValueError(
            f"Expected argument `loss` to work with a hyperbolic distance ({', '.join(able)}), "
            f"got {name!r}"
        )
    loss = _construct(
        build, (num_classes, embedding_dim, _distance(distance)), options, "loss_options", name
    )
    loss.register_forward_pre_hook(_in_its_precision, with_kwargs=True)
    return loss


def create_miner(
    name: str, loss: str = "pairwise-ce", distance: str | BaseDistance = "cosine", **options: Any
) -> nn.Module | None:
    """Create a miner, called as ``miner(embeddings, labels)``; None for ``"none"``.

    Args:
        name: A name in ``MINERS``, "none", or "default": the one usual for the loss.
        loss: Name of the loss it is for.
        distance: That of the loss, as :func:`create_loss` takes it: what is hard for a loss is
            so by its own distance.
        options: Passed to the miner's constructor, over its defaults.

    Raises:
        ValueError: If the name or an option is unknown, or ``distance`` is no distance.

    Example:
        >>> create_miner("default", "multi-similarity").epsilon
        0.1
    """
    if name == "default":
        name = getattr(LOSSES[LOSSES.check(loss, "loss")], "default_miner", "none")
    if name == "none":
        if options:
            raise ValueError(f"Expected no `miner_options` without a miner, got {options!r}")
        return None
    build = MINERS[MINERS.check(name, "miner")]
    return _construct(build, (_distance(distance),), options, "miner_options", name)


class MinedLoss(nn.Module):
    """A loss over the pairs or triplets that a miner finds.

    Args:
        loss: Called as ``loss(embeddings, labels, indices_tuple)``.
        miner: Called as ``miner(embeddings, labels)``; None: the loss chooses by itself.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of ``embeddings`` [N, D] with ``labels`` [N]: a scalar."""
        check_matrix(embeddings, "embeddings")
        check_index_vector(labels, embeddings.size(0), "labels")
        known = getattr(self.loss, "num_classes", None)  # of a loss with proxies
        if known is not None and labels.device.type == "cpu":
            check_within(labels, "labels", 0, known - 1, "classes of the loss")
        labels = labels.long()  # losses with proxies take nothing else
        embeddings = in_precision_of(self.loss, embeddings)
        if self.miner is None:
            return self.loss(embeddings, labels)
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


def _in_its_precision(
    loss: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert the embeddings and references of a call to the loss's precision."""

    def convert(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return in_precision_of(loss, value) if real else value

    return tuple(map(convert, arguments)), {key: convert(v) for key, v in options.items()}


def _distance(distance: str | BaseDistance) -> BaseDistance:
    """Return the distance that a name stands for, or the one given."""
    if isinstance(distance, str):
        check_choice(distance, "distance", ("cosine",))
        return distances.CosineSimilarity()
    if not isinstance(distance, BaseDistance):
        raise ValueError(
            "Expected argument `distance` to be 'cosine' or a distance of "
            f"pytorch-metric-learning, got {distance!r}"
        )
    return distance


def _construct(
    build: Callable[..., nn.Module],
    leading: tuple[Any, ...],
    options: dict[str, Any],
    argument: str,
    name: str,
) -> nn.Module:
    try:
        return build(*leading, **options)
    except TypeError as error:
        raise ValueError(
            f"Expected argument `{argument}` to hold options of {name!r}: {error}"
        ) from error
