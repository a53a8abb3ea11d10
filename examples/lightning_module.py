"""Add a DyBGR block to a module of PyTorch Lightning.

    pip install lightning
    python examples/lightning_module.py [--short]

The block is a part of the module, so that Lightning moves, saves and optimises it with the rest;
``forward`` leaves it out, as at test time. The sampler makes whole batches, so Lightning must not
replace it (``use_distributed_sampler=False``).

Data: scikit-learn's digits, of which a tenth is used for training.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bgl.layers import DyBGRBlock
from bgl.metrics import retrieval_metrics
from bgl.samplers import ClassBalancedSampler


class MetricLearner(lightning.LightningModule):  # type: ignore[misc]
    """Embeds images; trained through the graph of the batch."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, channels))
        self.head = nn.Linear(channels, 32)
        self.block = DyBGRBlock(channels)  # --- added
        self.criterion = MultiSimilarityLoss()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        features = self.encoder(images)
        plain = self.criterion(self.head(features), labels)
        context = self.head(self.block(features, y=labels))  # --- added
        return 0.3 * plain + 0.7 * self.criterion(context, labels)

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.batch_sampler.set_epoch(self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="three epochs, a few seconds")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    chosen = torch.arange(len(labels)) % 10 == 0
    sampler = ClassBalancedSampler(
        labels[chosen], batch_size=60, per_class=6, seed=options.seed, batches_per_epoch=10
    )
    loader = DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_sampler=sampler)
    model = MetricLearner()

    @torch.no_grad()
    def recall() -> float:
        """Measure how often the training image nearest to a test image shows its digit (%)."""
        x = model.eval()(images.to(model.device)).cpu()
        found = retrieval_metrics(x[~chosen], labels[~chosen], x[chosen], labels[chosen], k=(1,))
        return 100 * found["recall@1"]

    print(f"before training: R@1 {recall():.1f}")
    trainer = lightning.Trainer(
        max_epochs=3 if options.short else options.epochs,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(model.train(), loader)
    print(f"after training: R@1 {recall():.1f}")


if __name__ == "__main__":
    main()
