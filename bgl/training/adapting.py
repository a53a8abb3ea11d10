"""Adapt an encoder to images without labels, through the learned graph of all of them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import normalize

from bgl import models
from bgl._checks import check_int, check_real
from bgl._memory import out_of_memory
from bgl._neighbors import nearest
from bgl.datasets import ImageDataset
from bgl.losses import RelatedNeighborsLoss
from bgl.models import BatchGraphOutput, Encoder
from bgl.readout import LinearReadout
from bgl.refinement import RefinedGallery, gallery_readout
from bgl.samplers import ClassBalancedSampler
from bgl.training.average import WeightAverage
from bgl.training.build import make_accelerator, make_optimizer, make_schedule
from bgl.training.checkpoint import Checkpoint
from bgl.training.config import TrainConfig, check_unchanged
from bgl.training.distributed import (
    broadcast_module,
    gather_rows,
    num_processes,
    on_first_process,
    process_index,
    shares,
)
from bgl.training.evaluation import Evaluator
from bgl.training.interruption import Interruption
from bgl.training.loop import check_processes, freeze_batch_norm
from bgl.training.progress import Progress
from bgl.training.step import Step
from bgl.training.trainer import Trainer

VIEWS = (1, 2)  # seeds of the two augmented views whose neighbours are compared
VIEWED = 4096  # images at most whose neighbours are compared: enough for a third decimal


@dataclass(frozen=True)
class AdaptConfig:
    """Everything that defines an adaptation but model and images.

    Args:
        epochs: Number of epochs at most.
        patience: Epochs without a better agreement after which it ends.
        k: Neighbours of an image in the learned graph; about the size of a class is good.
        shrinkage: Of the gallery's metric, see :class:`bgl.RefinedGallery`.
        batch_size: Images in a batch.
        group: Images that enter a batch together: a seed and its nearest ones.
        crop_scale: Smallest share of an image that a training crop shows.
        lr: Learning rate of the encoder's last layer.
        layer_decay: What it is multiplied by from each layer to the one before. Early layers,
            which hold for all images, hardly move: few images would spoil them.
        ema: Decay of the older copy, a moving average of the weights; 0: the copy is renewed
            after every epoch.
        weight_decay: The optimiser's weight decay.
        seed: Seed of everything random.
        precision: As in a training, see :class:`bgl.training.TrainConfig`.
        device: "auto", "cpu" or "cuda".
        workers: Processes that load images; -1: one for each core.
        checkpoint_minutes: Write the checkpoint at the end of an epoch if the last one is older.
    """

    epochs: int = 10
    patience: int = 2
    k: int = 7
    shrinkage: float = 1.0
    batch_size: int = 128
    group: int = 4
    crop_scale: float = 0.5
    lr: float = 2e-4
    layer_decay: float = 0.5
    ema: float = 0.0
    weight_decay: float = 1e-2
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name, minimum in {"patience": 1, "k": 1, "batch_size": 2, "group": 2}.items():
            check_int(getattr(self, name), name, minimum)
        check_real(self.shrinkage, "shrinkage", 1e-6, 1e6)
        if self.group > self.batch_size:
            raise ValueError(
                f"Expected argument `group` to be at most `batch_size` ({self.batch_size}), got "
                f"{self.group}"
            )
        self.as_training()

    def as_training(self) -> TrainConfig:
        """Describe the optimisation to the parts of the training loop; the rest is checked."""
        shared = {field.name for field in dataclasses.fields(TrainConfig)}
        own = {name: value for name, value in self.to_dict().items() if name in shared}
        return TrainConfig(method="none", per_class=1, readout="none", **own)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values."""
        return dataclasses.asdict(self)

    def check_stored(self, stored: dict[str, Any], place: Path) -> None:
        """Refuse what was stored at ``place`` with other options.

        Raises:
            ValueError: If one that defines the result differs; the message names it.
        """
        check_unchanged(self.to_dict(), stored, place)


class Relations(nn.Module):
    r"""Soft relations of a gallery's images, by its learned graph.

    With :math:`f_i` the embeddings refined without labels, in the gallery's metric (see
    :class:`bgl.RefinedGallery`), and :math:`\mathcal N_i` the ``k`` nearest of each,

    .. math::
        w_{ij} = \max(0, f_i^\top f_j) \text{ if } j \in \mathcal N_i \text{ or } i \in
        \mathcal N_j, \text{ else } 0, \qquad w_{ii} = 1 .

    Args:
        n: Number of images.
        channels: Dimension of their features.
        k: Number of neighbours.
        shrinkage: Of the metric.

    Attributes:
        metric: The gallery's metric, a readout of features.
        refined: :math:`f` [N, C].
        near: :math:`\mathcal N` [N, k].
    """

    refined: Tensor
    near: Tensor
    views = 1  # of an image in a batch

    def __init__(self, n: int, channels: int, k: int, shrinkage: float) -> None:
        super().__init__()
        self.k, self.shrinkage = k, shrinkage
        self.metric = LinearReadout(torch.zeros(channels), torch.zeros(channels, channels))
        self.register_buffer("refined", torch.zeros(n, channels))
        self.register_buffer("near", torch.zeros(n, k, dtype=torch.long))

    @torch.no_grad()
    def learn(self, features: Tensor) -> None:
        """Learn metric and graph of the gallery's features [N, C]; on all processes the same."""
        self.metric = gallery_readout(features, k=self.k, shrinkage=self.shrinkage)
        refined = RefinedGallery(self.metric(features), self.k, shrinkage=None).embeddings
        self.refined = refined
        self.near = nearest(refined, torch.arange(len(refined), device=refined.device), self.k)
        broadcast_module(self)

    def forward(self, batch: Tensor) -> Tensor:
        """Relations [B, B] of the images with these numbers [B]."""
        f, near = self.refined[batch], self.near[batch]
        neighbors = (near[:, :, None] == batch).any(1)
        neighbors = neighbors | neighbors.t() | (batch[:, None] == batch)
        return (f @ f.t()).clamp(0, 1) * neighbors


def agreement(one: Tensor, other: Tensor, k: int) -> float:
    r"""Compare the neighbours that images have in two views of them.

    .. math::
        \frac 1N \sum_i \frac{|\mathcal N_i \cap \mathcal N'_i|}{k},

    where :math:`\mathcal N_i` are the ``k`` nearest images of image i by cosine in one view of all,
    and :math:`\mathcal N'_i` those in the other.

    Example:
        >>> x = torch.eye(4)
        >>> agreement(x, x, k=1)
        1.0
    """
    rows = torch.arange(len(one), device=one.device)
    mine, theirs = nearest(one, rows, k), nearest(other, rows, k)
    return float((mine[:, :, None] == theirs[:, None, :]).any(2).float().mean())


def adapt_encoder(
    encoder: Encoder,
    data: ImageDataset,
    folder: str | Path,
    config: AdaptConfig,
    progress: Progress | None = None,
    make_relations: Callable[..., Relations] = Relations,
) -> tuple[Encoder, list[dict[str, Any]]]:
    """Adapt an encoder to images; their labels are not used.

    After every epoch, and before the first, an older copy of the encoder embeds all images, of
    which :class:`Relations` learns the gallery's metric and graph. Batches are groups of
    neighbours; the encoder's output learns their relations in that metric by
    :class:`bgl.losses.RelatedNeighborsLoss`, from augmented images. The older copy is what is
    measured: by the :func:`agreement` of its neighbours under two augmented views, in that metric.
    When that has not risen for ``config.patience`` epochs the run ends. The model of the best epoch
    is kept, which may be the one as it came (epoch 0), with the gallery's metric as its readout.

    The folder receives the model, ``metrics.csv`` and ``checkpoint.pt``, from which an interrupted
    run resumes as in :func:`bgl.training.train`. Several processes adapt as one.

    Args:
        encoder: The model; it is left as it is.
        data: The images.
        folder: Where files go; made if needed.
        config: How to adapt.
        progress: Told about stages, items and epochs.
        make_relations: Where relations come from, if not from the learned graph.

    Returns:
        The adapted model, and the rows of ``metrics.csv``, the first of which is epoch 0.

    Raises:
        ValueError: If there are too few different images, or ``checkpoint.pt`` is not of these
            options, images and weights.
        FloatingPointError, Interrupted, BrokenImageError, ChildProcessError, MemoryError, OSError:
            As :func:`bgl.training.train`.
    """
    if len(data) <= config.k:
        raise ValueError(
            f"Expected argument `images` to be more than the {config.k} neighbours of each (`k`), "
            f"got {len(data)}: pass more images, or a smaller `k` (--k)"
        )
    config = dataclasses.replace(config, batch_size=min(config.batch_size, len(data)))
    with (
        out_of_memory("use a smaller --batch-size; the last checkpoint is kept"),
        Interruption() as interruption,
    ):
        return _adapt(
            encoder,
            data,
            Path(folder),
            config,
            progress or Progress(),
            interruption,
            make_relations,
        )


def _adapt(
    encoder: Encoder,
    data: ImageDataset,
    folder: Path,
    config: AdaptConfig,
    progress: Progress,
    interruption: Interruption,
    make_relations: Callable[..., Relations],
) -> tuple[Encoder, list[dict[str, Any]]]:
    training = config.as_training()
    device = make_accelerator(config.device).device
    check_processes(training, num_processes())
    digest = _digest(encoder, data)
    set_seed(config.seed)
    model = copy.deepcopy(encoder.model).to(device).requires_grad_(True)
    model.readout = None  # the gallery's metric takes its place
    broadcast_module(model)
    average = WeightAverage(model, config.ema)
    describe = dataclasses.replace(encoder.config, embedding="backbone", readout_dim=None)
    older = Encoder(average.model, describe, device)
    evaluator = Evaluator(
        older, workers=config.workers, progress=progress, interruption=interruption
    )

    channels = older.embed(data.subset([0])).size(1)
    relations = make_relations(len(data), channels, config.k, config.shrinkage).to(device)
    numbers = torch.arange(len(data))
    sampler = ClassBalancedSampler(  # a group is a class, drawn with its nearest ones
        numbers,
        config.batch_size,
        relations.views,
        config.seed,
        neighbors=config.group - 1,
    )
    optimizer = make_optimizer(training, model)
    schedule = make_schedule(training, optimizer, steps=config.epochs * len(sampler))
    criterion = RelatedNeighborsLoss()

    def losses(output: BatchGraphOutput, batch: Tensor, *_: Any) -> dict[str, Tensor]:
        return {"loss": criterion(relations.metric(output.features), relations(batch))}

    step = Step(training, model, optimizer, device, losses, average=average)
    parts = {**step.parts, "schedule": schedule, "relations": relations}
    del parts["teachers"]  # there are none
    trainer = Trainer(
        training,
        data,
        numbers,
        older,
        sampler,
        step,
        schedule,
        Checkpoint(folder, config, digest, parts, older),
        choose_epoch=best_epoch,
        should_continue=partial(_should_continue, config=config),
        progress=progress,
        interruption=interruption,
    )
    broadcast_module(relations)

    def view(number: int) -> Tensor:
        """Features of an augmented view of the images, or of some of them where there are many."""
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(len(data), generator=generator)[:VIEWED].tolist()
        keys = [(i, number * len(data) + i) for i in chosen]
        parts = shares(len(keys), num_processes())
        part = parts[process_index()]
        keys = keys[part.start : part.stop]
        size = len(trainer.shares[process_index()])
        batches = [keys[i : i + size] for i in range(0, len(keys), size)]
        progress.start("comparing neighbours of two views", len(keys))
        # batches that every process has
        together = min(map(len, parts)) // max(map(len, trainer.shares))
        found: list[Tensor] = []
        with torch.no_grad():
            for batch, images in zip(batches, trainer.images(batches), strict=True):
                found.append(older.model.encode(images))
                progress.advance(len(batch))
                if len(found) <= together:
                    interruption.check()
        return gather_rows(torch.cat(found), [len(part) for part in parts])

    with trainer.running():
        while trainer.should_continue(trainer.history):
            if not trainer.history:
                trainer.position.row = {"epoch": 0}  # the model as it came
            else:
                if not trainer.position.row:
                    trainer.begin_epoch()
                sampler.set_positions(relations.refined)
                freeze_batch_norm(model.train().backbone)
                trainer.train_epoch(criterion, criterion)
            features = evaluator.embed(data)["backbone"].to(device)
            if not trainer.history:
                check_different(features, config.k)
            relations.learn(features)
            one, other = (relations.metric(view(number)) for number in VIEWS)
            found = on_first_process(partial(agreement, one, other, config.k))  # all stop together
            trainer.end_epoch({"agreement": found})
    trainer.load_chosen()
    features = evaluator.embed(data)["backbone"].to(device)
    readout = gallery_readout(features, k=config.k, shrinkage=config.shrinkage)
    broadcast_module(readout)
    adapted = older.with_readout(readout)
    if process_index() == 0:
        models.save(adapted.model, folder, adapted.config)
    return adapted, trainer.history


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch with the best agreement, the first of equals."""
    return int(max(history, key=lambda row: row["agreement"])["epoch"])


def _should_continue(history: list[dict[str, Any]], config: AdaptConfig) -> bool:
    done = len(history) - 1  # epochs
    return done < config.epochs and (done < 0 or done - best_epoch(history) < config.patience)


def check_different(features: Tensor, k: int) -> None:
    """Raise unless there are more different images than neighbours, and warn of copies."""
    rounded = (normalize(features) * 2**12).round()
    different, n = len(rounded.unique(dim=0)), len(features)
    if different <= k:
        raise ValueError(
            f"Expected argument `images` to be more different images than the {k} neighbours of "
            f"each (`k`), got {n} images of which {different} differ"
        )
    if different < n:
        warnings.warn(
            f"{n - different} of {n} images look like another one to the encoder: each counts, "
            "and copies are each other's neighbours",
            stacklevel=2,
        )


def _digest(encoder: Encoder, data: ImageDataset) -> str:
    """Stand for the images by their names, and for the model by its weights."""
    digest = hashlib.sha256("\n".join(data.paths).encode(errors="surrogatepass"))
    if isinstance(data.images, Tensor):  # whose names are only numbers
        digest.update(data.images.cpu().contiguous().numpy().tobytes())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
