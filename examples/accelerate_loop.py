"""Add a DyBGR block to a loop of Hugging Face accelerate: CPU, one GPU, many GPUs, bf16.

    python examples/accelerate_loop.py [--short]
    accelerate launch --mixed_precision bf16 examples/accelerate_loop.py

Plain embeddings and the block's output share one module, so that ``prepare`` wraps both, and the
gradients of the block are averaged over the processes with the rest. The graph is that of the batch
of each process. Losses take float32, whatever the precision of the model.

Data: scikit-learn's digits, of which a tenth is for training. Needs ``pip install bgl[train]``.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pytorch_metric_learning.losses import MultiSimilarityLoss
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bgl.layers import DyBGRBlock
from bgl.metrics import retrieval_metrics
from bgl.samplers import ClassBalancedSampler


class WithBlock(nn.Module):
    """An encoder that also gives the embeddings after the graph of the batch, in training."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, channels))
        self.head = nn.Linear(channels, 32)
        self.block = DyBGRBlock(channels)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        features = self.encoder(images)
        embeddings = [self.head(features)]
        if labels is not None:  # --- added
            embeddings.append(self.head(self.block(features, y=labels)))
        return embeddings


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="three epochs, a few seconds")
    options = parser.parse_args()
    accelerator = Accelerator()
    set_seed(options.seed, device_specific=True)

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    chosen = torch.arange(len(labels)) % 10 == 0
    sampler = ClassBalancedSampler(
        labels[chosen],
        batch_size=60,
        per_class=6,
        seed=options.seed + accelerator.process_index,  # other batches in each process
        batches_per_epoch=10,
    )
    loader = DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_sampler=sampler)
    model = WithBlock()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = MultiSimilarityLoss()
    model, optimizer = accelerator.prepare(model, optimizer)

    @torch.no_grad()
    def recall() -> float:
        """Measure how often the training image nearest to a test image shows its digit (%)."""
        model.eval()
        (x,) = model(images.to(accelerator.device))
        x = x.float().cpu()
        found = retrieval_metrics(x[~chosen], labels[~chosen], x[chosen], labels[chosen], k=(1,))
        return 100 * found["recall@1"]

    accelerator.print(f"before training: R@1 {recall():.1f}")
    for epoch in range(1, (3 if options.short else options.epochs) + 1):
        model.train()
        sampler.set_epoch(epoch)
        for batch, y in loader:
            batch, y = batch.to(accelerator.device), y.to(accelerator.device)
            plain, context = model(batch, y)
            loss = 0.3 * criterion(plain.float(), y) + 0.7 * criterion(context.float(), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}: R@1 {recall():.1f}")


if __name__ == "__main__":
    main()
