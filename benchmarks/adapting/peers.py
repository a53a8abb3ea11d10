"""Where relations of unlabelled images come from without a learned graph: peers of ``bgl.adapt``.

They share everything else with it: augmentation, optimiser, stopping and readout. Labels, which it
never has, say how much there is to gain.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from bgl._neighbors import nearest
from bgl.readout import LinearReadout
from bgl.training.adapting import Relations


class SelfTaught(Relations):
    """Similarities and shared mutual neighbours of an older copy's embeddings.

    The relations of Kim et al., *Self-Taught Metric Learning without Labels*, CVPR 2022: the mean
    of exp(−d²/σ), here with the mean square distance for σ, and of the overlap of mutual
    neighbours, here of the whole gallery instead of the batch. Its loss, of distances, takes the
    output itself: in the gallery's metric it drives the encoder away.
    """

    def learn(self, features: Tensor) -> None:
        channels = features.size(1)
        self.metric = LinearReadout(features.new_zeros(channels), torch.eye(channels).to(features))
        self.refined = normalize(features)
        rows = torch.arange(len(features), device=features.device)
        self.near = nearest(self.refined, rows, self.k)

    def forward(self, batch: Tensor) -> Tensor:
        f = self.refined[batch]
        square = (2 - 2 * f @ f.t()).clamp(min=0)
        context = self._mutual(batch)
        overlap = context @ context.t() / context.sum(1, keepdim=True)
        return ((-square / square.mean()).exp() + (overlap + overlap.t()) / 2) / 2

    def _mutual(self, batch: Tensor) -> Tensor:
        """Whether an image of the gallery is a mutual neighbour [B, N], or the image itself."""
        near = self.near[batch]
        back = (self.near[near] == batch[:, None, None]).any(2)
        found = torch.zeros(len(batch), len(self.near), device=near.device)
        found.scatter_(1, near, back.float())
        return found.scatter_(1, batch[:, None], 1.0)


class PseudoLabels(Relations):
    """Clusters of k-means count as classes (Caron et al., *Deep Clustering*, ECCV 2018).

    Of 2(k + 1) images each on average; batches are groups of neighbours too.
    """

    def learn(self, features: Tensor) -> None:
        super().learn(features)
        self.refined = normalize(features)
        clusters = max(2, len(features) // (2 * (self.k + 1)))
        found = KMeans(clusters, n_init=1, random_state=0).fit(self.refined.cpu().numpy()).labels_
        labels = torch.from_numpy(found).long().to(features.device)
        self.near = labels[:, None].expand_as(self.near).contiguous()

    def forward(self, batch: Tensor) -> Tensor:
        labels = self.near[batch, 0]
        return (labels[:, None] == labels).float()


class TwoViews(Relations):
    """Nothing is related but two views of an image (Chen et al., *SimCLR*, ICML 2020)."""

    views = 2

    def forward(self, batch: Tensor) -> Tensor:
        return (batch[:, None] == batch).float()


class Labels(Relations):
    """Images of a class are related, and meet in batches."""

    def __init__(self, labels: Tensor, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.labels = labels

    def learn(self, features: Tensor) -> None:
        super().learn(features)
        self.refined = one_hot(self.labels).float()

    def forward(self, batch: Tensor) -> Tensor:
        labels = self.labels[batch]
        return (labels[:, None] == labels).float()
