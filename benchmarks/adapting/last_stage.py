"""The last stage alone adapts, to stored crops: minutes on a CPU, for EfficientNet-Lite0.

``python -m benchmarks.adapting.last_stage DATA``: halves, arms and table are those of
``python -m benchmarks.adapting``; the stages before the last one keep their ImageNet weights, and
see each image once whole and in a few random crops. Nothing is stopped early. With ``--labelled``
the last stage is first trained on the training classes with their labels, in the same way.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from benchmarks.adapting.run import (
    START,
    arms_of,
    compare,
    config_of,
    halves_of,
    load,
    make_parser,
)
from bgl.datasets import ImageDataset
from bgl.images import train_transform
from bgl.losses import RelatedNeighborsLoss, RelaxedContrastiveLoss
from bgl.models import Encoder
from bgl.samplers import ClassBalancedSampler
from bgl.training import TrainConfig, build_encoder
from bgl.training.adapting import AdaptConfig, Relations
from bgl.training.build import make_schedule
from bgl.training.loading import SeededCrops

CROPS = 5  # stored of each image
FROZEN = 6  # blocks
LOSSES = {"STML-like": RelaxedContrastiveLoss}  # others: RelatedNeighborsLoss


@torch.no_grad()
def maps(encoder: Encoder, images: list[Tensor]) -> Tensor:
    """What the stages before the last one make of uint8 images."""
    backbone, found = encoder.model.backbone, []
    for start in range(0, len(images), 64):
        x = encoder.transform.normalize(torch.stack(images[start : start + 64]))
        x = backbone.bn1(backbone.conv_stem(x))  # type: ignore[operator]
        for block in backbone.blocks[:FROZEN]:  # type: ignore[index]
            x = block(x)
        found.append(x.half())
    return torch.cat(found)


def whole(encoder: Encoder, data: ImageDataset) -> Tensor:
    """Maps of the images as they are measured."""
    crop = encoder.transform.crop
    return maps(encoder, [crop(data.read(i, crop.min_side)) for i in range(len(data))])


def crops(encoder: Encoder, data: ImageDataset, scale: float) -> Tensor:
    """Maps of random crops [CROPS, N, ...]."""
    size, mean, std = encoder.config.image_size, encoder.config.mean, encoder.config.std
    drawn = SeededCrops(data, train_transform(size, mean, std, (scale, 1.0)).crop)
    n = len(data)
    return torch.stack(
        [maps(encoder, [drawn[i, v * n + i] for i in range(n)]) for v in range(CROPS)]
    )


class LastStage(nn.Module):
    """Maps [N, ...] to features [N, C]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        parts = (*backbone.blocks[FROZEN:], backbone.conv_head, backbone.bn2, backbone.global_pool)  # type: ignore[index]
        self.parts = copy.deepcopy(nn.Sequential(*parts)).eval()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.parts(x.float())
        return features

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of many."""
        return torch.cat([self(part) for part in x.split(256)])


def adapt(
    stage: LastStage,
    clean: Tensor,
    cropped: Tensor,
    relations: Relations,
    loss: nn.Module,
    config: AdaptConfig,
) -> None:
    """Train the last stage on the relations of the images."""
    n, views = len(clean), relations.views
    sampler = ClassBalancedSampler(
        torch.arange(n), config.batch_size, views, config.seed, neighbors=config.group - 1
    )
    optimizer = torch.optim.AdamW(stage.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = make_schedule(config.as_training(), optimizer, config.epochs * len(sampler))
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        relations.learn(stage.embed(clean))
        if views == 1:
            sampler.set_positions(relations.refined)
        sampler.set_epoch(epoch)
        for numbers in sampler:
            batch = torch.tensor(numbers)
            view = torch.randint(CROPS, (len(batch),), generator=generator)
            if views == 2:  # next to each other: another crop of the same image
                view[1::2] = (view[::2] + 1 + view[1::2] % (CROPS - 1)) % CROPS
            optimizer.zero_grad()
            loss(relations.metric(stage(cropped[view, batch])), relations(batch)).backward()
            nn.utils.clip_grad_norm_(stage.parameters(), 3.0)
            optimizer.step()
            schedule.step()


def make_relations(arm: str, data: ImageDataset, channels: int, config: AdaptConfig) -> Relations:
    """The relations of an arm, of images with so many features."""
    return arms_of(data.labels)[arm](len(data), channels, config.k, config.shrinkage)


def main() -> None:
    parser = make_parser(__doc__, epochs=8, lr=2e-4, batch_size=64)
    parser.add_argument("--labelled", action="store_true", help="Train with labels first.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # an image is drawn twice for two views of it
    splits, size = load(options.data), options.image_size
    halves = halves_of(getattr(splits, options.part), options.per_class)
    encoder, info = build_encoder(TrainConfig(image_size=size, resize=size, method="none"))
    start = LastStage(encoder.model.backbone)
    if options.labelled:
        train, scale = splits.train, AdaptConfig.crop_scale
        torch.manual_seed(0)
        config = config_of(options, seed=0)
        relations = make_relations("labels", train, info.num_features, config)
        inputs = whole(encoder, train), crops(encoder, train, scale)
        adapt(start, *inputs, relations, RelatedNeighborsLoss(), config)
    clean = [whole(encoder, half) for half in halves]
    cropped = crops(encoder, halves[0], AdaptConfig.crop_scale)

    def embed(arm: str, config: AdaptConfig) -> list[Tensor]:
        stage = copy.deepcopy(start)
        if arm != START:
            torch.manual_seed(config.seed)
            relations = make_relations(arm, halves[0], info.num_features, config)
            loss = LOSSES.get(arm, RelatedNeighborsLoss)()
            adapt(stage, clean[0], cropped, relations, loss, config)
        return [stage.embed(part) for part in clean]

    compare(options, halves, embed)


if __name__ == "__main__":
    main()
