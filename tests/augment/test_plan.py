"""When a run draws synthetic embeddings, and when it looks at its classes anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bgl.augment import AUGMENTATIONS, AugmentationPlan, ClassStatistics, IntraClassAugmentation
from bgl.augment.intra_class import StrengthSchedule

STATISTICS = ClassStatistics(3, 4)


@pytest.mark.parametrize(
    ("start", "every", "active", "due"),
    [
        (0.0, 1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        (0.5, 2, [3, 4, 5], [3, 5]),
        (0.3, 3, [2, 3, 4, 5], [2, 5]),  # 1.8 epochs are two
        (1.0, 1, [], []),
    ],
)
def test_epochs_of_a_run_of_six(
    start: float, every: int, active: list[int], due: list[int]
) -> None:
    plan = AugmentationPlan(nn.Identity(), STATISTICS, start, every)
    assert [epoch for epoch in range(6) if plan.active(epoch, 6)] == active
    assert [epoch for epoch in range(6) if plan.statistics_due(epoch, 6) is STATISTICS] == due


def test_an_augmentation_without_statistics_or_schedule_needs_neither() -> None:
    plan = AugmentationPlan(nn.Identity())
    assert plan.statistics_due(0, 6) is None
    plan.set_epoch(1, 6)


@pytest.mark.parametrize(("name", "value"), [("start", 1.1), ("update_every", 0)])
def test_impossible_plans_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        AugmentationPlan(nn.Identity(), **{name: value})  # type: ignore[arg-type]


def test_iaa_is_planned_as_its_options_say() -> None:
    plan = AUGMENTATIONS["iaa"](
        3, 4, None, start=0.2, update_every=4, num_samples=2, schedule=True, covariance="full"
    )
    assert (plan.start, plan.update_every) == (0.2, 4)
    augmentation, statistics = plan.augmentation, plan.statistics
    assert isinstance(augmentation, IntraClassAugmentation)
    assert augmentation.statistics is statistics
    assert statistics.variance.shape == (3, 4, 4)
    z, y = torch.randn(6, 4), torch.arange(6) % 3
    statistics.update(z, y)
    drawn, labels = augmentation(z, y)
    assert drawn.shape == (12, 4)
    assert torch.equal(labels, y.repeat(2))


@pytest.mark.parametrize("correction", [False, True])
def test_its_strength_follows_the_schedule_and_its_variance_the_correction(
    correction: bool,
) -> None:
    plan = AUGMENTATIONS["iaa"](3, 4, None, schedule=True, correction=correction)
    schedule = StrengthSchedule(0.8)
    for epoch in (1, 5, 10):
        plan.set_epoch(epoch, 10)
        assert plan.augmentation.strength == schedule(epoch / 10)
    assert (plan.augmentation.correction is None) is not correction
