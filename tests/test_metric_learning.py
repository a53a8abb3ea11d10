"""Blocks and IAA among pytorch-metric-learning's losses, miners, samplers, wrappers, testers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses, miners, samplers, testers, trainers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bgl.augment import AugmentedLoss, ClassStatistics, IntraClassAugmentation
from bgl.layers import BatchFormerBlock, BGFormerBlock, DyBGRBlock
from bgl.metrics import retrieval_metrics
from bgl.models import BatchGraphModel, make_head

C, CLASSES = 16, 6

LOSSES = {
    "contrastive": losses.ContrastiveLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "triplet": losses.TripletMarginLoss,
    "supcon": losses.SupConLoss,
    "nt-xent": losses.NTXentLoss,
    "circle": losses.CircleLoss,
    "lifted": losses.GeneralizedLiftedStructureLoss,
    "proxy-anchor": lambda: losses.ProxyAnchorLoss(CLASSES, C),
    "arcface": lambda: losses.ArcFaceLoss(CLASSES, C),
    "memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), C, memory_size=64),
}
MINERS = {
    "none": lambda: None,
    "multi-similarity": miners.MultiSimilarityMiner,
    "batch hard": miners.BatchHardMiner,
    "triplets": lambda: miners.TripletMarginMiner(margin=0.2),
}
BLOCKS = {
    "dybgr": lambda: DyBGRBlock(C, k=4),
    "bgformer": lambda: BGFormerBlock(C, 4, k=4),
    "batchformer": lambda: BatchFormerBlock(C, 4),
}


def batch(n: int = 24) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % CLASSES
    centers = torch.randn(CLASSES, C, generator=torch.Generator().manual_seed(3))
    return centers[labels] + torch.randn(n, C), labels


def augmentation(z: Tensor, y: Tensor) -> IntraClassAugmentation:
    statistics = ClassStatistics(CLASSES, C)
    statistics.estimate(z, y)
    return IntraClassAugmentation(statistics, num_samples=2)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_miners_on_context(loss, miner):
    """The gradient of any loss goes through block and graph to the features."""
    x, y = batch()
    x.requires_grad_()
    block, loss_func, mine = DyBGRBlock(C, k=4), LOSSES[loss](), MINERS[miner]()
    context = block(x, y=y)
    loss_func(context, y, None if mine is None else mine(context, y)).backward()
    for grad in (x.grad, block.mlp.fc1.weight.grad):
        assert torch.isfinite(grad).all()
        assert float(grad.abs().sum()) > 0


@pytest.mark.parametrize("block", BLOCKS)
def test_training_with_a_sampler_a_miner_and_iaa(block):
    """MPerClassSampler, a block, an augmented loss with a miner: the loss falls."""
    x, y = batch(96)
    data = TensorDataset(x, y)
    sampler = samplers.MPerClassSampler(y, m=4, batch_size=24, length_before_new_iter=240)
    loader = DataLoader(data, batch_size=24, sampler=sampler)
    encoder, head, mixer = nn.Linear(C, C), make_head(C, C), BLOCKS[block]()
    loss_func = losses.MultiSimilarityLoss()
    iaa = augmentation(head(encoder(x)).detach(), y)
    augmented = AugmentedLoss(loss_func, iaa, miners.MultiSimilarityMiner())
    parameters = [*encoder.parameters(), *head.parameters(), *mixer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    course = []
    for _ in range(3):
        for images, labels in loader:
            assert labels.bincount().tolist() == [4] * CLASSES
            features = encoder(images)
            loss = augmented(head(features), labels)
            loss = loss + loss_func(head(mixer(features, y=labels)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(float(loss))
    assert sum(course[-5:]) < 0.9 * sum(course[:5])


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used")
@pytest.mark.parametrize("distributed", [False, True], ids=["alone", "group of one"])
@pytest.mark.parametrize("loss", ["contrastive", "triplet", "proxy-anchor", "supcon"])
def test_distributed_loss_wrapper(loss, distributed, request):
    """Wrapped or not, the loss is the same: on context, and with synthetic copies."""
    if distributed:
        request.getfixturevalue("process_group")
    x, y = batch()
    plain = LOSSES[loss]()
    wrapped = DistributedLossWrapper(plain)
    context = DyBGRBlock(C, k=4)(x, y=y)
    assert torch.equal(wrapped(context, y), plain(context, y))
    iaa = augmentation(x, y)
    values = []
    for one in (plain, wrapped):
        torch.manual_seed(5)
        values.append(AugmentedLoss(one, iaa, miners.MultiSimilarityMiner())(context, y))
    assert torch.equal(*values)


def test_distributed_miner_wrapper(process_group):
    x, y = batch()
    mine = miners.MultiSimilarityMiner()
    context = DyBGRBlock(C, k=4)(x, y=y)
    for one, other in zip(DistributedMinerWrapper(mine)(context, y), mine(context, y), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="`miner`"):
        AugmentedLoss(losses.ContrastiveLoss(), augmentation(x, y), DistributedMinerWrapper(mine))


def test_trainer():
    """Trainers give every loss `indices_tuple`, without a miner None."""
    x, y = batch(48)
    trunk = nn.Linear(C, C)
    before = trunk.weight.detach().clone()
    trainers.MetricLossOnly(
        {"trunk": trunk},
        {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=24,
        loss_funcs={"metric_loss": AugmentedLoss(losses.ContrastiveLoss(), augmentation(x, y))},
        dataset=TensorDataset(x, y),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    ).train(num_epochs=1)
    assert not torch.equal(trunk.weight, before)


def test_trainer_with_a_block():
    """As on the start page: a loss that has the block, whose parameters are trained as its own."""
    page = (Path(__file__).parent.parent / "docs/start.md").read_text(encoding="utf-8")
    found = re.search(r"^(class WithContext.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    names = {"torch": torch}
    exec(found[1], names)
    x, y = batch(48)
    trunk, block = nn.Linear(C, C), DyBGRBlock(C, k=4)
    before = [p.detach().clone() for p in (trunk.weight, block.mlp.fc1.weight)]
    trainers.MetricLossOnly(
        {"trunk": trunk},
        {
            "trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1),
            "metric_loss_optimizer": torch.optim.SGD(block.parameters(), lr=0.1),
        },
        batch_size=24,
        loss_funcs={"metric_loss": names["WithContext"](losses.ContrastiveLoss(), block)},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        dataset=TensorDataset(x, y),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    ).train(num_epochs=1)
    for old, new in zip(before, (trunk.weight, block.mlp.fc1.weight), strict=True):
        assert not torch.equal(old, new)


def test_a_memory_holds_the_encoders_embeddings_alone():
    """Context goes through the inner loss; synthetic copies are refused."""
    x, y = batch()
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), C, memory_size=64)
    context = DyBGRBlock(C, k=4)(x, y=y)
    assert (memory(x, y) + memory.loss(context, y)).isfinite()
    assert memory.queue_idx == len(x)
    assert torch.equal(memory.embedding_memory[: len(x)], x)
    iaa = augmentation(x, y)
    for loss in (memory, DistributedLossWrapper(memory)):
        with pytest.raises(ValueError, match=r"synthetic copies.*AugmentedLoss\(memory\.loss"):
            AugmentedLoss(loss, iaa)
    assert (AugmentedLoss(memory.loss, iaa)(x, y) + memory(x, y)).isfinite()
    assert memory.queue_idx == 2 * len(x)


def test_tester():
    """GlobalEmbeddingSpaceTester takes a model's backbone as trunk and its head as embedder, and
    measures what bgl.metrics does."""
    x, y = batch(60)
    images = x.view(-1, 1, 4, 4).expand(-1, 3, -1, -1)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, C))
    model = BatchGraphModel(backbone, [DyBGRBlock(C, k=4)], make_head(C, 8)).eval()
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    tester = testers.GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        accuracy_calculator=AccuracyCalculator(include=names, k="max_bin_count"),
    )
    data = {"test": TensorDataset(images, y)}
    found = tester.test(data, 0, model.backbone, model.head)["test"]
    expected = retrieval_metrics(model(images).embeddings.detach(), y)
    for theirs, ours in (
        ("precision_at_1", "recall@1"),
        ("r_precision", "r_precision"),
        ("mean_average_precision_at_r", "map@r"),
    ):
        assert found[f"{theirs}_level0"] == pytest.approx(expected[ours], abs=1e-6)
