"""Losses and miners by name, with the defaults of the papers that bgl compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor, nn

from bgl._checks import check_choice, check_index_vector, check_matrix
from bgl._precision import in_precision_of
from bgl.hyperbolic import HyperbolicDistance
from bgl.losses.pairwise import PairwiseCrossEntropyLoss

# name -> (class, defaults, default miner, works with a distance that is no similarity)
_LOSSES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], str, bool]] = {
    "pairwise-ce": (PairwiseCrossEntropyLoss, {"temperature": 0.1}, "none", True),
    "multi-similarity": (
        losses.MultiSimilarityLoss,
        {"alpha": 2.0, "beta": 40.0, "base": 0.5},
        "multi-similarity",
        False,
    ),
    "contrastive": (losses.ContrastiveLoss, {"pos_margin": 0.8, "neg_margin": 0.5}, "none", False),
    "triplet": (losses.TripletMarginLoss, {"margin": 0.1}, "triplet-margin", True),
    "proxy-anchor": (losses.ProxyAnchorLoss, {}, "none", False),
    "soft-triple": (losses.SoftTripleLoss, {}, "none", False),
    "supcon": (losses.SupConLoss, {"temperature": 0.1}, "none", False),
}
_WITH_PROXIES = ("proxy-anchor", "soft-triple")

_MINERS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "multi-similarity": (miners.MultiSimilarityMiner, {"epsilon": 0.1}),
    "triplet-margin": (miners.TripletMarginMiner, {"margin": 0.1, "type_of_triplets": "semihard"}),
    "batch-hard": (miners.BatchHardMiner, {}),
}

LOSS_NAMES = tuple(_LOSSES)
MINER_NAMES = ("none", *_MINERS)


def create_loss(
    name: str,
    num_classes: int,
    embedding_dim: int,
    distance: str | BaseDistance = "cosine",
    **options: Any,
) -> nn.Module:
    """A loss called as ``loss(embeddings, labels)``.

    Embeddings are taken in the precision of its parameters, at least float32.

    Args:
        name: One of ``LOSS_NAMES``.
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
    check_choice(name, "loss", LOSS_NAMES)
    make, defaults, _, any_distance = _LOSSES[name]
    if isinstance(distance, HyperbolicDistance) and not any_distance:
        able = [other for other, entry in _LOSSES.items() if entry[3]]
        raise ValueError(
            f"Expected argument `loss` to work with a hyperbolic distance ({', '.join(able)}), "
            f"got {name!r}"
        )
    arguments = {"distance": _distance(distance), **defaults, **options}
    if name in _WITH_PROXIES:
        arguments = {"num_classes": num_classes, "embedding_size": embedding_dim, **arguments}
    loss = _construct(make, arguments, "loss_options", name)
    loss.register_forward_pre_hook(_in_its_precision, with_kwargs=True)
    return loss


def create_miner(
    name: str,
    loss: str = "pairwise-ce",
    distance: str | BaseDistance = "cosine",
    **options: Any,
) -> nn.Module | None:
    """A miner called as ``miner(embeddings, labels)``; None for ``"none"``.

    Args:
        name: One of ``MINER_NAMES``, or ``"default"``: the one usual for the loss.
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
    check_choice(loss, "loss", LOSS_NAMES)
    check_choice(name, "miner", ("default", *MINER_NAMES))
    if name == "default":
        name = _LOSSES[loss][2]
    if name == "none":
        if options:
            raise ValueError(f"Expected no `miner_options` without a miner, got {options!r}")
        return None
    make, defaults = _MINERS[name]
    arguments = {"distance": _distance(distance), **defaults, **options}
    return _construct(make, arguments, "miner_options", name)


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
        check_matrix(embeddings, "embeddings")
        check_index_vector(labels, embeddings.size(0), "labels")
        known = getattr(self.loss, "num_classes", None)  # of a loss with proxies
        if known is not None and labels.device.type == "cpu" and labels.numel():
            low, high = (int(v) for v in labels.aminmax())
            if low < 0 or high >= known:
                raise ValueError(
                    f"Expected argument `labels` to be below `num_classes` ({known}), but got "
                    f"values from {low} to {high}"
                )
        labels = labels.long()  # losses with proxies take nothing else
        embeddings = in_precision_of(self.loss, embeddings)
        mined = None if self.miner is None else self.miner(embeddings, labels)
        value: Tensor = self.loss(embeddings, labels, mined)
        return value


def _in_its_precision(
    loss: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with embeddings (and references) in the loss's precision."""

    def convert(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return in_precision_of(loss, value) if real else value

    return tuple(map(convert, arguments)), {key: convert(v) for key, v in options.items()}


def _distance(distance: str | BaseDistance) -> BaseDistance:
    """The distance that a name stands for, or the one given."""
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
    make: Callable[..., nn.Module], arguments: dict[str, Any], option: str, name: str
) -> nn.Module:
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(
            f"Expected argument `{option}` to hold options of {name!r}: {error}"
        ) from error
