"""A plain PyTorch training loop, with a DyBGR block and IAA added to it.

    python examples/add_to_existing_training.py [--short]

Two things are added, each of them in the training alone. The *block* learns a graph over the
batch and passes messages on it; the loss of what comes out teaches the encoder as well. *IAA*
watches how each class spreads in the embedding space and adds synthetic embeddings drawn from
that spread to the loss. At test time every image is embedded by encoder and head alone.
Data: the packaged emoji, no download; the test classes are others than the training classes.
Needs ``pip install bgl[train]``.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.datasets import ImageDataset, eval_transform, load_emoji, train_transform
from bgl.layers import DyBGRBlock
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.metrics import retrieval_metrics
from bgl.samplers import ClassBalancedSampler

SIDE, CHANNELS, DIM = 32, 128, 64
MEAN = STD = (0.5, 0.5, 0.5)


def make_encoder() -> nn.Module:
    """Your encoder: images [N, 3, 32, 32] -> features [N, 128]."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, CHANNELS)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@torch.no_grad()
def embed(model: nn.Module, data: ImageDataset) -> Tensor:
    """Embeddings of all images, each by itself."""
    model.eval()
    seen = data.with_transform(eval_transform(SIDE, MEAN, STD))
    return torch.cat([model(images) for images, _ in DataLoader(seen, batch_size=256)])


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a few seconds: few classes, 3 epochs")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    splits = load_emoji()
    train_data, test_data = splits.train, splits.test
    if options.short:
        options.epochs = 3
        train_data = train_data.select_classes(range(24))
        test_data = test_data.select_classes(range(40))

    def recall() -> float:
        return 100 * retrieval_metrics(embed(model, test_data), test_data.labels)["recall@1"]

    encoder, head = make_encoder(), nn.Linear(CHANNELS, DIM)
    model = nn.Sequential(encoder, head)  # what is used in the end
    criterion = PairwiseCrossEntropyLoss(temperature=0.1)
    data = train_data.with_transform(train_transform(SIDE, MEAN, STD, crop_scale=(0.5, 1.0)))
    sampler = ClassBalancedSampler(data.labels, batch_size=64, per_class=4, seed=options.seed)
    loader = DataLoader(data, batch_sampler=sampler)

    # --- added: the block, which is trained with the rest and thrown away afterwards
    block = DyBGRBlock(CHANNELS, k=12)
    # --- added: IAA, which needs to know the classes and the dimension of the embeddings
    statistics = ClassStatistics(num_classes=data.num_classes, channels=DIM)
    augmented = AugmentedLoss(criterion, IntraClassAugmentation(statistics, strength=0.8))

    optimizer = torch.optim.AdamW([*model.parameters(), *block.parameters()], lr=1e-3)
    print(f"before training: R@1 {recall():.1f}")
    for epoch in range(1, options.epochs + 1):
        model.train()
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            features = encoder(images)
            embeddings = head(features)
            # --- added: synthetic embeddings, once the classes are known a little
            loss = (augmented if epoch > 2 else criterion)(embeddings, labels)
            # --- added: the same loss after the graph
            loss = 0.3 * loss + 0.7 * criterion(head(block(features, labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss)
        if epoch >= 2:  # --- added: how the classes spread now
            statistics.estimate(embed(model, train_data), train_data.labels)
        print(f"epoch {epoch}: loss {total / len(loader):.3f}, R@1 {recall():.1f}")


if __name__ == "__main__":
    main()
