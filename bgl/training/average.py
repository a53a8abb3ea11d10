"""An older model beside the one that is trained: what is measured, or what teaches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bgl.models import BatchGraphModel, BatchGraphOutput
from bgl.training.distributed import gather_rows


class WeightAverage(nn.Module):
    r"""The moving average of a model's weights, or its weights at the end of the last epoch.

    After step :math:`t` (counted from 1) of the training of :math:`\theta`,

    .. math::
        \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t) \theta_t, \qquad
        d_t = \min\Big(d, \frac{1 + t}{10 + t}\Big),

    so that the weights of the beginning are soon forgotten. Buffers, such as the statistics of
    batch normalisation, are the trained model's.

    Args:
        model: The model that is trained; it is copied.
        decay: d, in [0, 1); at 0 the copy is renewed after every epoch instead.
    """

    def __init__(self, model: BatchGraphModel, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    def after_step(self, model: BatchGraphModel) -> None:
        """Follow the model after a step of the optimiser."""
        if self.decay > 0:
            self.steps += 1
            self._follow(model, min(self.decay, (1 + self.steps) / (10 + self.steps)))

    def after_epoch(self, model: BatchGraphModel) -> None:
        """Follow the model after an epoch."""
        if self.decay == 0:
            self._follow(model, 0.0)

    @torch.no_grad()
    def _follow(self, model: BatchGraphModel, decay: float) -> None:
        move = get_ema_multi_avg_fn(decay)
        move(tuple(self.model.parameters()), tuple(model.parameters()), 0)
        mine, newer = list(self.model.buffers()), list(model.buffers())
        for dtype in {buffer.dtype for buffer in mine}:  # in one kernel, not one of each
            alike = [i for i, buffer in enumerate(mine) if buffer.dtype == dtype]
            torch._foreach_copy_([mine[i] for i in alike], [newer[i] for i in alike])

    @torch.no_grad()
    def forward(
        self, images: Tensor, model: BatchGraphModel, sizes: Sequence[int]
    ) -> BatchGraphOutput:
        """Embed a batch, with batch normalisation in the mode that it has in ``model``.

        Args:
            images: The images of this process [sizes[rank], ...].
            model: The model that is trained.
            sizes: Images of each process.
        """
        for mine, trained in zip(self.model.modules(), model.modules(), strict=True):
            if isinstance(trained, _BatchNorm):
                mine.training = trained.training
        return self.model.from_features(gather_rows(self.model.encode(images), sizes))

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state
