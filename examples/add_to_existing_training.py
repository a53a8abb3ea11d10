"""Add a DyBGR block and IAA to a plain PyTorch training loop.

    python examples/add_to_existing_training.py [--short]

Two things are added, both for training only. The *block* learns a graph over the batch and passes
messages along it; a loss on its output trains the encoder as well. *IAA* (intra-class adaptive
augmentation) tracks the spread of each class in the embedding space and adds synthetic embeddings
drawn from it to the loss. At test time, encoder and head embed every image alone.

Data: scikit-learn's 1,797 digits of 8 × 8 pixels, which need no download. Only a tenth of them is
used for training, so that the rest is not too easy. Needs ``pip install bgl[train]``.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.layers import DyBGRBlock
from bgl.losses import create_loss
from bgl.metrics import retrieval_metrics
from bgl.samplers import ClassBalancedSampler

CLASSES, CHANNELS, DIM = 10, 64, 32


def make_encoder() -> nn.Module:
    """Build your encoder: images [N, 1, 8, 8] -> features [N, 64]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, CHANNELS, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * CHANNELS, CHANNELS),
    )


def load_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load images and labels, for training and for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    chosen = torch.arange(len(labels)) % 10 == 0
    return (images[chosen], labels[chosen]), (images[~chosen], labels[~chosen])


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="three epochs, a few seconds")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    (train_images, train_labels), (test_images, test_labels) = load_data()

    @torch.no_grad()
    def recall() -> float:
        """Measure how often the training image nearest to a test image shows its digit (%)."""
        model.eval()
        found = retrieval_metrics(
            model(test_images), test_labels, model(train_images), train_labels, k=(1,)
        )
        return 100 * found["recall@1"]

    encoder, head = make_encoder(), nn.Linear(CHANNELS, DIM)
    model = nn.Sequential(encoder, head)  # all that is used after training
    criterion = create_loss("pairwise-ce", CLASSES, DIM)  # or your own, or any other
    sampler = ClassBalancedSampler(
        train_labels, batch_size=60, per_class=6, seed=options.seed, batches_per_epoch=10
    )
    loader = DataLoader(TensorDataset(train_images, train_labels), batch_sampler=sampler)

    # --- added: the block, which is trained with the rest and discarded afterwards
    block = DyBGRBlock(CHANNELS)
    # --- added: IAA, which needs to know the classes and the dimension of the embeddings
    statistics = ClassStatistics(num_classes=CLASSES, channels=DIM)
    augmented = AugmentedLoss(criterion, IntraClassAugmentation(statistics, strength=0.8))

    optimizer = torch.optim.AdamW([*model.parameters(), *block.parameters()], lr=1e-3)
    print(f"before training: R@1 {recall():.1f}")
    for epoch in range(1, (3 if options.short else options.epochs) + 1):
        model.train()
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            features = encoder(images)
            embeddings = head(features)
            # --- added: synthetic embeddings, as soon as the class statistics are estimated
            loss = (augmented if epoch > 2 else criterion)(embeddings, labels)
            # --- added: the same loss after the graph
            loss = 0.3 * loss + 0.7 * criterion(head(block(features, y=labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        if epoch >= 2:  # --- added: estimate the spread of the classes
            statistics.estimate(model(train_images).detach(), train_labels)
        print(f"epoch {epoch}: loss {total / len(loader):.3f}, R@1 {recall():.1f}")


if __name__ == "__main__":
    main()
