"""Add DyBGR to a pytorch-metric-learning loop in five lines.

    python examples/metric_learning.py [--short]

This is a usual pytorch-metric-learning loop: an encoder, a sampler that draws several images of
each class, a miner, a loss and a tester. The lines marked "DyBGR 1" to "DyBGR 5" let the encoder
learn through the graph of its batch as well. At test time nothing changes: every image is embedded
alone.

Data: scikit-learn's 1,797 digits of 8 × 8 pixels, which need no download. Only a tenth of them is
used for training, so that the rest is not too easy. Needs ``pip install bgl[search]``, because
pytorch-metric-learning's tester searches with faiss.
"""

from __future__ import annotations

import argparse

import torch
from pytorch_metric_learning import distances, losses, miners, samplers, testers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bgl.layers import DyBGRBlock  # DyBGR 1: a block that learns a graph over the batch

CHANNELS, DIM = 64, 32


def make_encoder() -> tuple[nn.Module, nn.Module]:
    """Build images [N, 1, 8, 8] -> features [N, 64], and features -> embeddings [N, 32]."""
    backbone = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, CHANNELS, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * CHANNELS, CHANNELS),
    )
    return backbone, nn.Linear(CHANNELS, DIM)


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Load images for training, and images of the same digits for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    chosen = torch.arange(len(labels)) % 10 == 0
    return (
        TensorDataset(images[chosen], labels[chosen]),
        TensorDataset(images[~chosen], labels[~chosen]),
    )


def test(
    backbone: nn.Module, head: nn.Module, train_data: TensorDataset, test_data: TensorDataset
) -> float:
    """Measure how often the training image nearest to a test image shows its digit (%)."""
    calculator = AccuracyCalculator(include=("precision_at_1",), k="max_bin_count")
    tester = testers.GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0, accuracy_calculator=calculator, data_device=torch.device("cpu")
    )
    parts = {"train": train_data, "test": test_data}
    found = tester.test(parts, 0, backbone, head, splits_to_eval=[("test", ["train"])])
    return 100 * float(found["test"]["precision_at_1_level0"])


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="two epochs, a few seconds")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    train_data, test_data = load_data()
    sampler = samplers.MPerClassSampler(train_data.tensors[1], 6, 60, length_before_new_iter=600)
    loader = DataLoader(train_data, batch_size=60, sampler=sampler)

    backbone, head = make_encoder()
    loss_func = losses.MultiSimilarityLoss(distance=distances.CosineSimilarity())
    mining_func = miners.MultiSimilarityMiner()
    block = DyBGRBlock(CHANNELS)  # DyBGR 2
    parameters = [*backbone.parameters(), *head.parameters()]
    parameters += block.parameters()  # DyBGR 3
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    print(f"before training: R@1 {test(backbone, head, train_data, test_data):.1f}")
    for epoch in range(1, (2 if options.short else options.epochs) + 1):
        backbone.train()
        head.train()
        total = 0.0
        for images, labels in loader:
            features = backbone(images)
            embeddings = head(features)
            loss = loss_func(embeddings, labels, mining_func(embeddings, labels))
            context = head(block(features, y=labels))  # DyBGR 4: the same head, after the graph
            loss = 0.3 * loss + 0.7 * loss_func(context, labels)  # DyBGR 5
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        recall = test(backbone, head, train_data, test_data)
        print(f"epoch {epoch}: loss {total / len(loader):.3f}, R@1 {recall:.1f}")


if __name__ == "__main__":
    main()
