"""A step of training: its precision, the guarded update of the weights, values read late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bgl.layers import FeatureMemory
from bgl.models import BatchGraphModel, BatchGraphOutput
from bgl.training.average import WeightAverage
from bgl.training.config import TrainConfig
from bgl.training.distributed import average_gradients, fork_rng, gather_rows
from bgl.training.teachers import Lesson, Teachers

T = TypeVar("T")
Losses = Callable[
    [BatchGraphOutput, Tensor, nn.Module, nn.Module, float],
    dict[str, Tensor],
]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision that a name of ``TrainConfig.precision`` stands for on a device.

    Raises:
        ValueError: If the device does not have it.

    Example:
        >>> choose_precision("auto", torch.device("cpu"))
        'fp32'
    """
    cuda = device.type == "cuda"
    if name == "auto":
        native = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp32"
    if name == "tf32" and not cuda:
        raise ValueError(
            "Expected argument `precision` (--precision) to be one that the device has, got "
            f"'tf32' on {device}: TF32 needs CUDA; use auto, fp32, bf16 or fp16"
        )
    return name


class Precision:
    """What a step computes in. Everything outside of it is computed as it was before.

    So what is embedded to be measured does not depend on it.

    Args:
        name: That of ``TrainConfig.precision``; "auto" becomes one of the others.
        device: Where to compute.
        benchmark: Let cuDNN choose its algorithms by timing them.
    """

    def __init__(self, name: str, device: torch.device, benchmark: bool = False) -> None:
        self.name = choose_precision(name, device)
        self.device = device
        self.benchmark = benchmark

    @contextmanager
    def switches(self) -> Iterator[None]:
        """Set what cuBLAS and cuDNN may do, for the forward and the backward pass."""
        if self.device.type != "cuda":
            yield
            return
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.benchmark
        try:
            with _tf32(self.name == "tf32"):
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    def autocast(self) -> torch.autocast:
        """Compute in half precision inside, if it is one: for the forward pass alone."""
        dtype = AUTOCAST.get(self.name)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Compute float32 products and convolutions on CUDA in TF32, or in float32.

    By the old switches, which set the new ones (since PyTorch 2.9) too: where the two disagree,
    PyTorch refuses to tell, even to its own compiler.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places: list[tuple[Any, Any]] = [(matmul, matmul), (cudnn, getattr(cudnn, "conv", None))]
    before = [_tf32_of(*place) for place in places]
    try:
        for old, _ in places:
            old.allow_tf32 = allowed
        yield
    finally:
        for (old, new), (switch, precision) in zip(places, before, strict=True):
            old.allow_tf32 = switch
            if precision is not None:
                new.fp32_precision = precision


def _tf32_of(old: Any, new: Any) -> tuple[bool, str | None]:
    """Return what the old and the new switch say."""
    precision = getattr(new, "fp32_precision", None)
    try:
        return old.allow_tf32, precision
    except RuntimeError:  # they disagree
        return precision != "tf32", precision


@dataclass(frozen=True)
class Values:
    """What a step has found, as numbers: its losses by name, and the norm of its gradient."""

    losses: dict[str, float]
    norm: float
    scale: float  # of the loss in fp16, else 1

    @property
    def finite(self) -> bool:
        """Whether the batch is good.

        A gradient that overflows in fp16 while the loss is scaled up says nothing of the batch:
        the weights were left as they are, and the next step has a smaller scale.
        """
        overflow = self.scale > 1 and not math.isfinite(self.norm)
        return math.isfinite(self.losses["loss"]) and (overflow or math.isfinite(self.norm))


class Reading:
    """Values of a step on their way from the device, to be waited for when they are needed."""

    def __init__(self, losses: dict[str, Tensor], norm: Tensor, scale: Tensor) -> None:
        self.names = list(losses)
        values = torch.stack([value.detach() for value in losses.values()])
        values = torch.cat([values, torch.stack([norm, scale]).to(values.dtype)])
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> Values:
        """Wait for the values: the one place in a step where the device is waited for."""
        if self._event is not None:
            self._event.synchronize()
        *losses, norm, scale = self._values.tolist()
        return Values(dict(zip(self.names, losses, strict=True)), norm, scale)


class Step:
    """A step of training: the batch forward and back, and the weights moved by its gradient.

    Weights stay as they are where the loss or the gradient is not finite. On a GPU the fused
    optimiser looks at that flag itself, so that nothing waits for it.

    Args:
        config: What is trained.
        model: The model, in training mode when it is called.
        optimizer: Whose gradients are averaged over processes.
        device: Where to compute.
        losses: Losses by name of (output, labels, plain criterion, criterion, alpha), of which
            "loss" is minimised.
        teachers: What adds to these losses.
        average: The older model; it follows every step.
        memory: Further nodes of the graph.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: BatchGraphModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        losses: Losses,
        teachers: Teachers | None = None,
        average: WeightAverage | None = None,
        memory: FeatureMemory | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.losses = losses
        self.teachers = Teachers() if teachers is None else teachers
        self.average = average
        self.memory = memory
        self.alpha = config.alpha
        self.max_norm = config.grad_clip
        self.precision = Precision(config.precision, device, not config.deterministic)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.name == "fp16")
        self._encode, self._compare = model.encode, self._forward
        if config.compile:  # in training alone, with batches of one size
            self._encode = torch.compile(model.encode, dynamic=False)
            self._compare = torch.compile(self._forward, dynamic=False)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, by name."""
        names = ("model", "optimizer", "scaler", "teachers", "average", "memory")
        parts = {name: getattr(self, name) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        plain_criterion: nn.Module,
        criterion: nn.Module,
        *,
        seed: int,
        sizes: Sequence[int],
        indices: Sequence[int] = (),
        progress: float = 0.0,
        return_graph: bool = False,
    ) -> tuple[BatchGraphOutput, Reading]:
        """Train on a batch; its values can be read when the device has come so far.

        Args:
            images: The share of this process [n, 3, H, W].
            labels: Those of the whole batch [N].
            plain_criterion: Loss of the plain embeddings.
            criterion: Loss of the contextual ones.
            seed: Of what the encoder draws for its share.
            sizes: Images of each process.
            indices: Of the whole batch in the training set, for teachers.
            progress: Share of the epochs that have ended, for teachers.
            return_graph: Whether the output has the graphs.
        """
        with self.precision.switches():
            with self.precision.autocast(), fork_rng(seed, self.device):
                features = self._encode(images)
            # from here on, every process computes the same for the whole batch
            features = gather_rows(features, sizes)
            graphs = return_graph and len(self.model.blocks) > 0
            compare = self._forward if graphs else self._compare  # another graph to compile
            remembered = None if self.memory is None else self.memory.recall(features)
            output, losses = compare(
                features, labels, plain_criterion, criterion, graphs, remembered
            )
            if self.memory is not None:  # a batch that is not finite must not spoil later graphs
                self.memory.remember(features.nan_to_num(0.0, 0.0, 0.0), labels)
            if self.teachers:
                older = None
                if self.average is not None and self.teachers.look_back and progress > 0:
                    with self.precision.autocast():
                        older = self.average(images, self.model, sizes)
                lesson = Lesson(output, labels, indices, progress, older)
                losses = self.teachers(losses, lesson)
            reading = self._update(losses)
            if self.average is not None:
                self.average.after_step(self.model)
            return output, reading

    def _forward(
        self,
        features: Tensor,
        labels: Tensor,
        plain_criterion: nn.Module,
        criterion: nn.Module,
        return_graph: bool,
        remembered: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[BatchGraphOutput, dict[str, Tensor]]:
        with self.precision.autocast():
            output = self.model.from_features(features, labels, return_graph, remembered)
        return output, self.losses(output, labels, plain_criterion, criterion, self.alpha)

    def _update(self, losses: dict[str, Tensor]) -> Reading:
        optimizer, loss = self.optimizer, losses["loss"]
        optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.scale(torch.ones_like(loss.detach()))
        self.scaler.scale(loss).backward()
        average_gradients(p for group in optimizer.param_groups for p in group["params"])
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        finite = loss.detach().isfinite() & norm.isfinite()
        if optimizer.param_groups[0]["fused"]:
            optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            optimizer.step()
        self.scaler.update()
        return Reading(losses, norm, scale)


class Throughput:
    """How many images a second a run trains on, and how much of that time it waits for them."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.waiting = 0.0

    def watch(self, batches: Iterable[T], images: int) -> Iterator[T]:
        """Pass batches of so many images on, and note when they come."""
        iterator, started = iter(batches), time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            now = time.perf_counter()
            self.waiting += now - asked
            self.seconds += now - started
            started = now
            if batch is None:
                return
            yield batch
            self.images += images

    @property
    def images_per_second(self) -> float | None:
        """Images trained on per second; None if there were none."""
        return self.images / self.seconds if self.images else None

    @property
    def waiting_for_data(self) -> float | None:
        """Share of the time spent waiting for images; None if there were none."""
        return self.waiting / self.seconds if self.images else None
