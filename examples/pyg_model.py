"""Classify point clouds with learned edges: AdaptiveGraph and GATv2Conv.

    python examples/pyg_model.py [--short]

A point cloud has no edges. Instead of using a fixed k-nearest-neighbour graph, the model learns
one graph from the points and another from the output of its first layer; ``batch`` keeps the
clouds of a mini-batch apart. The edge weights are differentiable, so the layers before a graph are
trained through it.

Data: clouds of 256 points on spheres, cubes, cylinders and tori, generated here. Needs only
``pip install bgl``.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATv2Conv, global_max_pool

from bgl.layers import AdaptiveGraph
from bgl.transforms import LearnBatchGraph

SHAPES = ("sphere", "cube", "cylinder", "torus")


def make_cloud(shape: str, points: int) -> Data:
    """Draw noisy points on a surface of random size."""
    u, v = 2 * math.pi * torch.rand(2, points)
    if shape == "sphere":
        x = F.normalize(torch.randn(points, 3), dim=1)
    elif shape == "cube":
        x = 2 * torch.rand(points, 3) - 1
        face = torch.randint(3, (points, 1))
        x = x.scatter(1, face, torch.randint(2, (points, 1)) * 2.0 - 1)
    elif shape == "cylinder":
        x = torch.stack([u.cos(), u.sin(), v / math.pi - 1], dim=1)
    else:
        ring = 1 + 0.4 * v.cos()
        x = torch.stack([ring * u.cos(), ring * u.sin(), 0.4 * v.sin()], dim=1)
    x = x + 0.03 * torch.randn(points, 3)
    return Data(x=x * (0.7 + 0.6 * torch.rand(1)), y=torch.tensor(SHAPES.index(shape)))


class LearnedGraphNet(nn.Module):
    """Learn a graph and pass messages along it, twice, then pool each cloud into one vector."""

    def __init__(self, channels: int = 32, k: int = 8) -> None:
        super().__init__()
        # the exact solution, in which the weights of a node's neighbours sum to 1
        self.learner = AdaptiveGraph(k, formulation="paper")
        self.lift = nn.Sequential(nn.Linear(3, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.conv1 = GATv2Conv(channels, channels, heads=2, concat=False, edge_dim=1)
        self.conv2 = GATv2Conv(channels, channels, heads=2, concat=False, edge_dim=1)
        self.classify = nn.Linear(2 * channels, len(SHAPES))

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        first = self.lift(x)
        for conv in (self.conv1, self.conv2):
            # a learned graph is a plain edge_index with a weight for each edge
            edge_index, edge_weight = self.learner(first, batch=batch)
            first = first + F.relu(conv(first, edge_index, edge_weight[:, None]))
        largest = global_max_pool(first, batch)
        smallest = -global_max_pool(-first, batch)
        out: Tensor = self.classify(torch.cat([largest, smallest], dim=1))
        return out


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Measure the share of clouds that are classified correctly, in percent."""
    model.eval()
    right = [(model(data.x, data.batch).argmax(1) == data.y).float() for data in loader]
    return 100 * float(torch.cat(right).mean())


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--clouds", type=int, default=400, help="for training; as many for testing")
    parser.add_argument("--points", type=int, default=256, help="per cloud")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="few clouds, a few seconds")
    options = parser.parse_args()
    if options.short:
        options.epochs, options.clouds, options.points = 2, 32, 48
    torch.manual_seed(options.seed)
    parts = [
        [make_cloud(SHAPES[i % len(SHAPES)], options.points) for i in range(options.clouds)]
        for _ in range(2)
    ]
    train_loader = DataLoader(parts[0], batch_size=8, shuffle=True)
    test_loader = DataLoader(parts[1], batch_size=8)

    # the same learner as a transform, for models that read the graph from their data
    learned = LearnBatchGraph(AdaptiveGraph(k=8, formulation="paper"))(parts[0][0])
    print(f"a cloud with its learned graph: {learned}")

    model = LearnedGraphNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    print(f"before training: accuracy {accuracy(model, test_loader):.1f}")
    for epoch in range(1, options.epochs + 1):
        model.train()
        total = 0.0
        for data in train_loader:
            loss = F.cross_entropy(model(data.x, data.batch), data.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        test = accuracy(model, test_loader)
        print(f"epoch {epoch}: loss {total / len(train_loader):.3f}, accuracy {test:.1f}")


if __name__ == "__main__":
    main()
