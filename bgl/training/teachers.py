"""Teachers: where the soft targets of a batch come from, and how others add theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bgl._checks import check_choice, check_int, check_real
from bgl._precision import at_least_float32, exact_matmul
from bgl._registry import Registry
from bgl.layers import AdaptiveGraph, RandomGraph
from bgl.layers.pairs import Graph, Neighbors
from bgl.losses import SoftTargetLoss, diffuse
from bgl.losses.soft_targets import LARGEST_W
from bgl.models import BatchGraphOutput
from bgl.refinement import refine

EMBEDDINGS = {"head": "embeddings", "backbone": "features"}  # fields of BatchGraphOutput


@dataclass
class Lesson:
    """A batch as a teacher sees it. Of several processes, each sees the whole batch."""

    output: BatchGraphOutput  # of the model that learns
    labels: Tensor
    indices: Sequence[int]  # of the samples in the training set
    progress: float  # share of the epochs that have ended: the ramp of a weight
    # of the average of the weights (``ema``) or, without one, of the last epoch's model, for
    # teachers whose ``looks_back`` is True; None in the first epoch
    older: BatchGraphOutput | None = None


class Teacher(nn.Module):
    """Base of teachers: called with a :class:`Lesson`, they return what is added to the loss.

    Parameters are trained along and, like everything in ``state_dict``, go into checkpoints.
    """

    looks_back = False  # whether it uses `Lesson.older`

    def join(self, channels: int, make_criterion: Callable[[int], nn.Module]) -> None:
        """Join a run, before its first step: make what depends on it.

        Args:
            channels: Dimension of the features.
            make_criterion: Makes the loss of the run for embeddings of a dimension.
        """

    def begin_epoch(self, embed: Callable[[], dict[str, Tensor]]) -> None:
        """Prepare for an epoch, from the second on.

        Args:
            embed: Embeds the training set by the model that is measured: "head" [M, D] and
                "backbone" [M, C].
        """


class DiffusedTeacher(Teacher):
    r"""An older model, whose similarities are diffused along a graph of the batch.

    The soft targets of `"Self-distillation with Online Diffusion on Batch Manifolds Improves Deep
    Metric Learning" <https://arxiv.org/abs/2211.07566>`_ (see :func:`bgl.losses.diffuse`), here
    along the learned graph :math:`A` of the older model's features,

    .. math::
        \mathcal L \mathrel{+}= \frac{\text{epochs ended}}{\text{epochs}}\,
            \lambda \operatorname{KL}(Q \,\|\, \operatorname{softmax}(S / \tau)), \qquad
        Q = (1 - w)(I - wA)^{-1} \operatorname{softmax}(S_T / \tau) .

    Args:
        graph: "adaptive": :class:`~bgl.layers.AdaptiveGraph` without labels; controls are "knn"
            (the nearest neighbours, of equal weight), "random" and "none" (no diffusion).
        k: Number of neighbours.
        w: Share w of the diffusion, in [0, 1).
        embedding: Whose similarities teach: "head" or "backbone".
        weight: λ.
        temperature: τ.
    """

    looks_back = True

    def __init__(
        self,
        graph: str = "adaptive",
        k: int = 7,
        w: float = 0.5,
        embedding: str = "head",
        weight: float = 100.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.graph = check_choice(graph, "graph", ("adaptive", "knn", "random", "none"))
        self.k = check_int(k, "k", 1)
        self.w = check_real(w, "w", 0.0, LARGEST_W)
        self.field = EMBEDDINGS[check_choice(embedding, "embedding", tuple(EMBEDDINGS))]
        self.weight = check_real(weight, "weight", 0.0)
        self.loss = SoftTargetLoss(temperature)

    def forward(self, lesson: Lesson) -> Tensor:
        """Compute the weighted loss."""
        if lesson.older is None:
            return _nothing(lesson)
        targets = self.loss.targets(getattr(lesson.older, self.field))
        if self.graph != "none":
            targets = diffuse(targets, *self.learn(lesson.older.features), self.w)
        return lesson.progress * self.weight * self.loss(lesson.output.embeddings, targets)

    @torch.no_grad()
    def learn(self, x: Tensor) -> Graph:
        """Learn the graph of features [N, C]; its weights sum to 1 for each target."""
        if self.graph == "adaptive":
            return AdaptiveGraph(self.k, lam=0.0, beta=0.0, formulation="paper")(x)
        if self.graph == "random":
            return RandomGraph(self.k).neighbors(x).edges(padded=True)
        unit = normalize(at_least_float32(x), dim=1)
        cosine = exact_matmul(unit, unit.t()).fill_diagonal_(-torch.inf)
        source = cosine.topk(min(self.k, len(x) - 1), dim=1).indices
        weight = torch.full_like(cosine[:, : source.size(1)], 1 / source.size(1))
        return Neighbors(source, weight, None).edges()


class WideTeacher(Teacher):
    r"""Wide heads, for training only, whose similarities teach the small head.

    `"S2SD: Simultaneous Similarity-based Self-Distillation for Deep Metric Learning"
    <https://arxiv.org/abs/2009.08348>`_ (ICML 2021). Head :math:`h`, a network of two layers, has
    the dimension :math:`h \cdot` ``dim`` and learns by the loss of the run itself,
    :math:`\mathcal L_h`; with :math:`S_h` its cosines and :math:`S_0` those of the features,

    .. math::
        \mathcal L \mathrel{+}= \frac 1H \sum_{h=1}^H \mathcal L_h + \lambda \Big(
            \frac 1H \sum_{h=1}^H \operatorname{KL}(P_h \,\|\, P) +
            \operatorname{KL}(P_0 \,\|\, P) \Big), \qquad
        P_h = \operatorname{softmax}(S_h / \tau) .

    The published loss is half of it, with 50 for λ, and lets the features join after the first
    thousand steps.

    Args:
        heads: Number H of heads.
        dim: Dimension of the first head.
        features: Whether the features themselves teach as well.
        weight: λ.
        temperature: τ.
    """

    def __init__(
        self,
        heads: int = 4,
        dim: int = 512,
        features: bool = True,
        weight: float = 100.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_int(dim, "dim", 1)
        self.dims = [dim * (h + 1) for h in range(check_int(heads, "heads", 1))]
        self.heads = nn.ModuleList()
        self.criteria = nn.ModuleList()
        self.features = features
        self.weight = check_real(weight, "weight", 0.0)
        self.loss = SoftTargetLoss(temperature)

    def join(self, channels: int, make_criterion: Callable[[int], nn.Module]) -> None:
        """Make the heads and their losses."""
        for d in self.dims:
            head = nn.Sequential(nn.Linear(channels, d), nn.ReLU(), nn.Linear(d, d))
            self.heads.append(head)
            self.criteria.append(make_criterion(d))

    def forward(self, lesson: Lesson) -> Tensor:
        """Compute the losses of the heads and the weighted loss of the small one."""
        x, student = at_least_float32(lesson.output.features), lesson.output.embeddings
        wide = [head(x) for head in self.heads]
        pairs = zip(self.criteria, wide, strict=True)
        own = torch.stack([criterion(z, lesson.labels) for criterion, z in pairs]).mean()
        taught = torch.stack([self.loss(student, self.loss.targets(z)) for z in wide]).mean()
        if self.features:
            taught = taught + self.loss(student, self.loss.targets(x))
        return own + self.weight * taught


class RefinedTeacher(Teacher):
    r"""The embeddings of the training set, refined once an epoch through their graph.

    Before every epoch but the first, the training set is embedded by the model that is measured,
    and its embeddings are refined by :func:`bgl.refine`, with the metric that it learns. Their
    cosines :math:`S_T` within a batch are the targets,

    .. math::
        \mathcal L \mathrel{+}= \frac{\text{epochs ended}}{\text{epochs}}\, \lambda
            \operatorname{KL}(\operatorname{softmax}(S_T / \tau) \,\|\,
            \operatorname{softmax}(S / \tau)) .

    Args:
        k: Number of neighbours.
        epsilon: Share ε of the neighbours in the mix; 0 for no edges.
        shrinkage: ρ of the learned metric; None: the cosine.
        embedding: What is refined: "head" or "backbone".
        weight: λ.
        temperature: τ.
    """

    def __init__(
        self,
        k: int = 7,
        epsilon: float = 0.5,
        shrinkage: float | None = 0.1,
        embedding: str = "head",
        weight: float = 100.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "k": check_int(k, "k", 1),
            "epsilon": check_real(epsilon, "epsilon", 0.0, 1.0),
            "shrinkage": shrinkage,
        }
        self.embedding = check_choice(embedding, "embedding", tuple(EMBEDDINGS))
        self.weight = check_real(weight, "weight", 0.0)
        self.loss = SoftTargetLoss(temperature)
        self.refined: Tensor | None = None  # [M, D], from the second epoch on

    def begin_epoch(self, embed: Callable[[], dict[str, Tensor]]) -> None:
        """Refine the training set."""
        self.refined = refine(embed()[self.embedding], **self.options)

    def forward(self, lesson: Lesson) -> Tensor:
        """Compute the weighted loss."""
        if self.refined is None:
            return _nothing(lesson)
        student = lesson.output.embeddings
        self.refined = self.refined.to(student.device)
        rows = torch.tensor(lesson.indices)
        if student.device.type == "cuda":
            rows = rows.pin_memory().to(student.device, non_blocking=True)
        targets = self.loss.targets(self.refined[rows])
        return lesson.progress * self.weight * self.loss(student, targets)

    def get_extra_state(self) -> Tensor | None:
        return self.refined

    def set_extra_state(self, state: Tensor | None) -> None:
        self.refined = state


def _nothing(lesson: Lesson) -> Tensor:
    """A loss of 0, in the precision of the others."""
    return at_least_float32(lesson.output.embeddings).new_zeros(())


class Teachers(nn.ModuleDict):
    """The teachers of a run, by name; there may be none."""

    @property
    def look_back(self) -> bool:
        """Whether one of them needs the older model."""
        return any(t.looks_back for t in self.values() if isinstance(t, Teacher))

    def begin_epoch(self, embed: Callable[[], dict[str, Tensor]]) -> None:
        """Prepare all teachers for an epoch."""
        for teacher in self.values():
            if isinstance(teacher, Teacher):
                teacher.begin_epoch(embed)

    def forward(self, losses: dict[str, Tensor], lesson: Lesson) -> dict[str, Tensor]:
        """Add what each teacher has to say to the losses of a batch, and to their total."""
        taught = {f"loss_{name}": teacher(lesson) for name, teacher in self.items()}
        total = torch.stack([losses["loss"], *taught.values()]).sum()
        return {**losses, **taught, "loss": total}


#: Teachers by name, built from their options.
TEACHERS: Registry[Callable[..., Teacher]] = Registry(
    "teacher",
    0,
    {"diffused": DiffusedTeacher, "wide": WideTeacher, "refined": RefinedTeacher},
    grouped=True,
)
