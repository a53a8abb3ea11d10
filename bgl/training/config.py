"""Everything that defines a run, as one flat, typed record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgl._checks import check_choice, check_int, check_real
from bgl._registry import Registry, reserve
from bgl.augment import AUGMENTATIONS
from bgl.losses import LOSSES, MINERS
from bgl.models import BLOCKS
from bgl.models.config import POOLS
from bgl.readout import COVARIANCES
from bgl.samplers import SAMPLERS
from bgl.training.teachers import TEACHERS

# Where and how a run computes. With the same data these do not define its result, and may change
# when it is resumed; of the cache only its place.
CIRCUMSTANCES = (
    *("data_root", "table", "download", "skip_broken", "allow_partial"),
    *("device", "compile", "workers", "cache", "on_nonfinite", "checkpoint_minutes"),
)

# Parts whose options are groups of the command line.
WITH_OPTIONS: tuple[Registry[Any], ...] = (BLOCKS, AUGMENTATIONS, TEACHERS)

# What the values of fields have to be.
COUNTS = ("image_size", "head_dim", "epochs", "batch_size", "per_class", "eval_every")
POSITIVE = ("curvature", "clip_radius", "lr", "lr_head", "lr_proxies", "lr_blocks", "grad_clip")
SHARES = ("alpha", "warmup", "val_fraction")
POSITIVE_SHARES = ("crop_scale", "crop_ratio", "lr_decay", "layer_decay")
CHOICES = {
    "protocol": ("honest", "paper"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("linear", "constant", "step"),
    "distance": ("cosine", "hyperbolic"),
    "pool": POOLS,
    "head_init": ("orthogonal", "readout"),
    "select_embedding": ("backbone", "head"),
    "readout": ("none", *COVARIANCES),
    "on_nonfinite": ("stop", "skip"),
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
}
# Options of losses and miners that the pipeline fills.
PIPELINE_OPTIONS = {"distance", "embedding_dim", "loss", "name", "num_classes"}


@dataclass
class TrainConfig:
    """Everything that defines a run: data, model, method, optimisation.

    Args:
        dataset: Name of the dataset.
        data_root: Folder of the dataset (none for the packaged emoji).
        table: CSV file of the dataset "table".
        download: Fetch the dataset to data_root if it is public and not there yet.
        val_fraction: Share of the train classes held out for choosing the epoch, where the
            dataset has no validation part of its own.
        skip_broken: Leave out images that cannot be read, and list them.
        allow_partial: Train on an incomplete dataset, with a warning that says what is missing.
        resplit: Pool the images of all parts of a folder or table of your own, and split them
            anew by class.
        max_images: About how many images of each part to take at most, but of two classes or
            more, to look around in large data; by default all.
        protocol: "honest": the epoch is chosen on validation classes and the test classes are
            measured once. "paper": as most papers do it, all train classes are trained on
            (val_fraction does not count) and the epoch with the best Recall@1 on the test
            classes is reported. Such a figure is optimistic and labelled so.
        eval_every: Epochs between measurements of the test classes, with protocol "paper"; the
            last epoch is always measured. As many as epochs: the last epoch is taken.
        test_every_epoch: Measure the test classes after every epoch as well, with protocol
            "honest", to report what the last epoch and the best test epoch would have given.
            Nothing is chosen by it.
        method: Blocks that mix the batch, joined by "+" (for instance "dybgr",
            "dybgr+bgformer"), or "none".
        backbone: Encoder, a model name of timm or "torchvision:googlenet".
        weights: A file with weights, "auto" (packaged, else the hub of timm or torchvision) or
            "none" (random).
        pool: How the encoder pools its last feature map: "avg", "max", "avgmax" (the mean of
            both) or "default", as it was trained.
        freeze: Parts of the encoder that are not trained, by name (for instance "patch_embed").
        image_size: Side of the images in pixels when they are embedded.
        crop_ratio: Side of training crops relative to ``image_size``. A crop shows things larger
            than the whole image does: for the same time, smaller crops and larger images find more.
        resize: Shorter side of test images before the centre crop; by default 8/7 of image_size.
        crop_scale: Smallest share of an image that a training crop shows.
        head_dim: Dimension of the embedding.
        head_norm: Normalise the features by a LayerNorm before the head.
        head_init: What the head starts from: "orthogonal", a random map; or "readout", the readout
            of the pretrained encoder for the training images (see bgl.readout).
        distance: Geometry of the head and its loss: "cosine" or "hyperbolic".
        curvature: Curvature c of the Poincaré ball (hyperbolic only).
        clip_radius: Features are clipped to this norm before the ball (hyperbolic only).
        loss: Name of the loss.
        loss_options: Options of the loss, passed to its constructor.
        miner: Name of the miner; "default": the usual one of the loss.
        miner_options: Options of the miner, passed to its constructor.
        augmentation: "none", or "iaa": synthetic embeddings for the plain embeddings' loss.
        teacher: Teachers whose soft targets are learned besides, joined by "+" (for instance
            "wide+diffused"), or "none".
        memory: Samples of the latest batches that are further nodes of the blocks' graph.
        alpha: Weight of the plain embeddings' loss; the contextual ones' loss has 1 - alpha.
        epochs: Number of epochs.
        batch_size: Images in a batch.
        per_class: Images of each class in a batch.
        batches_per_epoch: Length of an epoch; by default as many batches as the images fill.
        sampler: Name of the sampler that draws the batches.
        class_neighbors: Similar classes that follow each class into a batch from the second epoch
            on, by a running mean of their unit features, in which the class's last batch counts
            for 0.8 or more; 0: classes at random.
        optimizer: "adamw", or "adam" (weight decay as a part of the gradient).
        lr: Learning rate of the encoder.
        layer_decay: What the encoder's learning rate is multiplied by from each of its layers to
            the one before it.
        lr_head: Learning rate of the head relative to lr.
        lr_proxies: Learning rate of the proxies of a loss (absolute).
        lr_blocks: Learning rate of the blocks (absolute).
        head_epochs: Epochs at the start in which the encoder's weights stay as they are.
        weight_decay: The optimiser's weight decay.
        schedule: What the learning rate does after the warm-up: "linear" (falls to 0),
            "constant" or "step" (see lr_decay_epochs).
        lr_decay_epochs: Epochs after which the learning rate falls, with schedule "step".
        lr_decay: What it is multiplied by each time.
        warmup: Share of the steps during which the learning rate rises.
        ema: Decay of a moving average of the weights: that model is then measured and stored, and
            is the older model of teachers. 0: none.
        grad_clip: Largest norm of the gradient.
        train_batch_norm: Let the encoder's batch-norm statistics follow the training data.
        checkpoint_activations: Encode so many images at a time, and again in the backward pass:
            their memory for any batch size, the same gradients, one more forward pass; 0: the
            whole batch at once. Not together with train_batch_norm.
        select_embedding: Embedding whose validation MAP@R chooses the epoch (with protocol
            "paper": whose Recall@1 on the test classes does): "backbone" or "head". Where there
            is no readout, it is also the model's embedding.
        readout: Linear map of the encoder's output that is fitted on the training images after
            training, and then is the model's embedding: "within" or "total", the covariance that
            it whitens (see bgl.readout), with the shrinkage of the best validation MAP@R (1.0
            where there are no validation classes); "none": no readout.
        readout_dim: Dimension of the readout; by default that of the encoder's output.
        on_nonfinite: What to do with a batch whose loss or gradient is not finite: "stop" the
            run, or "skip" the batch and count it; either way the batch is named.
        precision: Of a training step: "fp32", "tf32", "bf16" or "fp16" (whose loss is scaled);
            "auto": bf16 on a GPU that has it, else fp32. Everything measured is embedded in
            float32.
        deterministic: Use algorithms that give the same bits every time also on a GPU, and refuse
            operations that have none (slower; a CPU does so anyway).
        seed: Seed of everything random in a training; the division of the data does not follow it.
        device: "auto", "cpu" or "cuda".
        compile: Compile encoder, blocks and loss with torch.compile: minutes at the start, for
            faster steps on a GPU.
        workers: Processes that load images; -1: one for each core that the job may use, at most 16,
            and none for data in memory that a CPU trains on.
        cache: Folder in which each image file is kept decoded, its shorter side at most ``resize``
            pixels, for all processes and later runs. Measures the same; training crops are cut out
            of the smaller images.
        checkpoint_minutes: Write the checkpoint at the end of an epoch if the last one is older
            than this; 0: after every epoch. Always at the end and when the run is stopped.
        options: Options of the blocks, the augmentation and the teachers, by name:
            ``{"dybgr": {"k": 20}}``. What is missing has the default of the block's constructor.
    """

    dataset: str = "emoji"
    data_root: str | None = None
    table: str | None = None
    download: bool = False
    val_fraction: float = 0.25
    skip_broken: bool = False
    allow_partial: bool = False
    resplit: bool = False
    max_images: int | None = None
    protocol: str = "honest"
    eval_every: int = 1
    test_every_epoch: bool = False
    method: str = "none"
    backbone: str = "tf_efficientnet_lite0"
    weights: str = "auto"
    pool: str = "default"
    freeze: list[str] = field(default_factory=list)
    image_size: int = 224
    crop_ratio: float = 1.0
    resize: int | None = None
    crop_scale: float = 0.2
    head_dim: int = 128
    head_norm: bool = False
    head_init: str = "orthogonal"
    distance: str = "cosine"
    curvature: float = 0.1
    clip_radius: float = 2.3
    loss: str = "pairwise-ce"
    loss_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    miner: str = "default"
    miner_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    augmentation: str = "none"
    teacher: str = "none"
    memory: int = 0
    alpha: float = 0.3
    epochs: int = 5
    batch_size: int = 128
    per_class: int = 4
    batches_per_epoch: int | None = None
    sampler: str = "class-balanced"
    class_neighbors: int = 7
    optimizer: str = "adamw"
    lr: float = 1.5e-4
    layer_decay: float = 1.0
    lr_head: float = 3.0
    lr_proxies: float = 1e-2
    lr_blocks: float = 1e-3
    head_epochs: int = 0
    weight_decay: float = 1e-2
    schedule: str = "linear"
    lr_decay_epochs: list[int] = field(default_factory=list)
    lr_decay: float = 0.1
    warmup: float = 0.05
    ema: float = 0.99
    grad_clip: float = 3.0
    train_batch_norm: bool = False
    checkpoint_activations: int = 0
    select_embedding: str = "backbone"
    readout: str = "within"
    readout_dim: int | None = None
    on_nonfinite: str = "stop"
    precision: str = "auto"
    deterministic: bool = False
    seed: int = 0
    device: str = "auto"
    compile: bool = False
    workers: int = -1
    cache: str | None = None
    checkpoint_minutes: float = 5.0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            factory: Any = item.default_factory
            default = item.default if factory is dataclasses.MISSING else factory()
            value, number = getattr(self, item.name), type(default) in (int, float)
            if default is not None and not number and not isinstance(value, type(default)):
                raise ValueError(
                    f"Expected argument `{item.name}` to be a {type(default).__name__}, "
                    f"got {value!r}"
                )
        for name in COUNTS:
            check_int(getattr(self, name), name, 1)
        check_int(self.class_neighbors, "class_neighbors", 0)
        check_int(self.head_epochs, "head_epochs", 0)
        check_int(self.memory, "memory", 0)
        check_int(self.seed, "seed", 0)
        check_int(self.workers, "workers", -1)
        check_int(self.checkpoint_activations, "checkpoint_activations", 0)
        minima = dict.fromkeys(("batches_per_epoch", "readout_dim", "max_images"), 1)
        minima["resize"] = self.image_size
        for name, minimum in minima.items():
            if getattr(self, name) is not None:
                check_int(getattr(self, name), name, minimum)
        for epoch in self.lr_decay_epochs:
            check_int(epoch, "lr_decay_epochs", 1)
        for name in POSITIVE:
            check_real(getattr(self, name), name, 0.0, exclusive=True)
        for name in POSITIVE_SHARES:
            check_real(getattr(self, name), name, 0.0, 1.0, exclusive=True)
        for name in SHARES:
            check_real(getattr(self, name), name, 0.0, 1.0)
        check_real(self.weight_decay, "weight_decay", 0.0)
        check_real(self.ema, "ema", 0.0, 1 - 1e-6)
        check_real(self.checkpoint_minutes, "checkpoint_minutes", 0.0)
        for name, choices in CHOICES.items():
            check_choice(getattr(self, name), name, choices)
        if (self.schedule == "step") != bool(self.lr_decay_epochs):
            raise ValueError(
                "Expected argument `lr_decay_epochs` to name epochs with the schedule 'step', and "
                f"with no other, got {self.lr_decay_epochs!r} with {self.schedule!r}"
            )
        SAMPLERS.check(self.sampler, "sampler")
        LOSSES.check(self.loss, "loss")
        if self.miner not in ("default", "none"):
            MINERS.check(self.miner, "miner")
        for name in ("loss_options", "miner_options"):
            if taken := sorted(PIPELINE_OPTIONS & getattr(self, name).keys()):
                raise ValueError(
                    f"Expected argument `{name}` to leave {', '.join(taken)} to the options "
                    "`distance`, `loss`, `miner` and `head_dim`, and to the data"
                )
        self.options = self._resolve_options()
        if self.checkpoint_activations and self.train_batch_norm:
            raise ValueError(
                "Expected argument `checkpoint_activations` to be 0 with `train_batch_norm`: "
                "the running statistics would follow every batch twice"
            )
        if self.teacher != "none" and self.distance != "cosine":
            raise ValueError(
                "Expected argument `distance` to be 'cosine' with a `teacher`, whose targets are "
                f"cosines, got {self.distance!r}"
            )
        if self.memory > 0 and self.method == "none":
            raise ValueError(
                "Expected argument `memory` to be 0 with the method 'none', which has no graph, "
                f"got {self.memory}"
            )
        if self.batch_size % self.per_class:
            raise ValueError(
                f"Expected argument `batch_size` to be a multiple of `per_class` "
                f"({self.per_class}), got {self.batch_size}"
            )

    def _resolve_options(self) -> dict[str, dict[str, Any]]:
        """Complete the options of every part that is used; those of others are only checked."""
        used = [BLOCKS.check(name, "method") for name in self.block_names]
        if self.augmentation != "none":
            used.append(AUGMENTATIONS.check(self.augmentation, "augmentation"))
        used += [TEACHERS.check(name, "teacher") for name in self.teacher_names]
        complete = {
            name: parts(name).resolve(name, self.options.get(name, {}))
            for name in [*self.options, *used]
        }
        return {name: complete[name] for name in used}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.yaml holds them; the options of a part under its name."""
        values = dataclasses.asdict(self)
        options = values.pop("options")
        return {**values, **options}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make the configuration that :meth:`to_dict` described; what is missing has its default.

        Raises:
            ValueError: If a name is neither a field nor a part whose options are known.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"options"}
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own, options={n: v for n, v in values.items() if n not in names})

    def check_stored(self, stored: dict[str, Any], place: Path) -> None:
        """Refuse what was stored at ``place`` under another configuration.

        Args:
            stored: An earlier configuration as plain values; what it lacks is newer than it and
                had its default there.
            place: Where it was stored, for the message.

        Raises:
            ValueError: If a field that defines the result differs; the message names it.
        """
        now, then = self.to_dict(), TrainConfig.from_dict(stored).to_dict()
        for values in (now, then):
            values["cached"] = values["cache"] is not None
        check_unchanged(now, then, place)

    @property
    def block_names(self) -> list[str]:
        """Return the blocks in their order; none for "none"."""
        return [] if self.method == "none" else self.method.split("+")

    @property
    def teacher_names(self) -> list[str]:
        """Return the teachers in their order; none for "none"."""
        return [] if self.teacher == "none" else self.teacher.split("+")

    @property
    def head_curvature(self) -> float | None:
        """Return the curvature of the ball that the head maps into; None for a cosine head."""
        return self.curvature if self.distance == "hyperbolic" else None


def check_unchanged(now: Mapping[str, Any], then: Mapping[str, Any], place: Path) -> None:
    """Refuse what was stored at ``place`` with other options, but for :data:`CIRCUMSTANCES`."""
    defining = (now.keys() | then.keys()) - set(CIRCUMSTANCES)
    if changed := sorted(name for name in defining if then.get(name) != now.get(name)):
        raise ValueError(
            f"Expected {place} to belong to this configuration, but {', '.join(changed)} "
            "differ; use another --output-dir"
        )


reserve(["none", *(each.name for each in dataclasses.fields(TrainConfig))], "an option of a run")


def parts(name: str) -> Registry[Any]:
    """Return the registry that holds the options of a name; that of blocks for one not known."""
    return next((registry for registry in WITH_OPTIONS if name in registry), BLOCKS)
