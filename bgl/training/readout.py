"""Readouts of a run: the one that its head starts from, and the one of the trained model."""

from __future__ import annotations

import warnings
from typing import TypedDict

import torch
from torch import Tensor, nn

from bgl.datasets import Splits
from bgl.readout import SHRINKAGE, choose_readout, fit_readout
from bgl.training.config import TrainConfig
from bgl.training.distributed import broadcast_module
from bgl.training.evaluation import Evaluator
from bgl.training.progress import Vectors


class Readout(TypedDict):
    """How the readout of a model was fitted, for the record."""

    covariance: str
    shrinkage: float
    chosen_by: str


@torch.no_grad()
def start_head(head: nn.Module, features: Tensor, y: Tensor) -> None:
    """Start a head from the readout of what the encoder gives for the training images.

    Before it is trained, its embeddings are then those of the readout, up to a common factor. A
    head that knows nothing would spoil the encoder's features until it has learned (`Kumar et al.,
    ICLR 2022 <https://arxiv.org/abs/2202.10054>`_, who train a linear head first).

    Processes that train together call this together, with the same features.

    Args:
        head: As :func:`bgl.models.make_head` makes it.
        features: What the encoder gives [N, C].
        y: Labels [N].

    Raises:
        ValueError: If no readout can be fitted.
    """
    parts = list(head.children())
    linear = next(part for part in parts if isinstance(part, nn.Linear))
    before = nn.Sequential(*parts[: parts.index(linear)])  # a LayerNorm, or nothing
    x = before(features.to(linear.weight.device))
    try:
        readout = fit_readout(x, y, dim=linear.out_features)
    except ValueError as error:  # of an encoder that gives the same for all images, for instance
        raise ValueError(
            "Expected argument `head_init` (--head-init) to be 'orthogonal', as no readout can be "
            f"fitted to what the encoder gives, got 'readout'. {error}"
        ) from error
    scale = readout.weight.norm(dim=1).mean()  # rows of a random map have the norm 1
    linear.weight.copy_(readout.weight / scale)
    linear.bias.copy_(-(readout.weight @ readout.mean) / scale)
    broadcast_module(head)


def add_readout(
    config: TrainConfig,
    evaluator: Evaluator,
    splits: Splits,
    features: Tensor,
    validation: Vectors | None = None,
) -> Readout | None:
    """Fit the readout that a configuration asks for, and give it to the evaluator's encoder.

    Processes that train together call this together, with the same features.

    Args:
        config: What is trained.
        evaluator: Embeds; its encoder is replaced by one that has the readout.
        splits: The data.
        features: What the encoder gives for the training images [N, C].
        validation: The validation images' embeddings; None: they are embedded here.

    Returns:
        How it was fitted; None if there is no readout, because none is asked for or because none
        can be fitted to the features. The latter is warned of: a run goes on without.
    """
    if config.readout == "none":
        return None
    device, dim, val = evaluator.encoder.device, config.readout_dim, splits.val
    if val is not None:
        validation = validation or evaluator.embed(val)
        val_features = validation["backbone"].to(device)
    x, y = features.to(device), splits.train.labels
    readout, shrinkage, chosen_by = None, SHRINKAGE, "default"
    try:
        if val is None:
            readout = fit_readout(x, y, covariance=config.readout, dim=dim)
        else:
            choice = choose_readout(
                x, y, val_features, val.labels, covariances=(config.readout,), dim=dim
            )
            readout, shrinkage = choice.readout, choice.best["shrinkage"]
            chosen_by = "validation MAP@R"
    except ValueError as error:  # of an encoder that gives the same for all images, for instance
        warnings.warn(f"There is no readout. {error}", stacklevel=2)
    if readout is None:
        return None
    broadcast_module(readout)
    evaluator.encoder = evaluator.encoder.with_readout(readout)
    return {"covariance": config.readout, "shrinkage": shrinkage, "chosen_by": chosen_by}
