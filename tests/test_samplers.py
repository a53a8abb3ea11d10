"""ClassBalancedSampler against its promises, counted by brute force."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bgl.samplers import ClassBalancedSampler

CASES = {
    "even": ([c for c in range(12) for _ in range(8)], 16, 4),
    "uneven": ([c for c in range(11) for _ in range(4 + 3 * c)], 12, 3),
    "classes run into each other": ([c for c in range(7) for _ in range(9)], 15, 3),
    "all classes in every batch": ([c for c in range(5) for _ in range(7)], 10, 2),
    "any integers as labels": ([c for c in (-5, 10**12, 3, 8) for _ in range(6)], 6, 2),
    "one a class": ([c for c in range(9) for _ in range(4)], 4, 1),
    "many classes, few samples": ([c for c in range(50) for _ in range(2)], 6, 2),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[list[int], int, int]:
    labels, batch_size, per_class = request.param
    order = np.random.default_rng(0).permutation(len(labels))
    return [labels[i] for i in order], batch_size, per_class


def test_batches_are_balanced(case: tuple[list[int], int, int]) -> None:
    labels, batch_size, per_class = case
    for epoch in range(3):
        sampler = ClassBalancedSampler(labels, batch_size, per_class)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(set(batch)) == batch_size
            counts = Counter(labels[i] for i in batch)
            assert len(counts) == batch_size // per_class
            assert set(counts.values()) == {per_class}


def test_every_class_in_every_epoch_and_equally_often(case: tuple[list[int], int, int]) -> None:
    labels, batch_size, per_class = case
    sampler = ClassBalancedSampler(labels, batch_size, per_class)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        visits = Counter(labels[i] for batch in sampler for i in batch)
        assert visits.keys() == set(labels)
        assert max(visits.values()) - min(visits.values()) <= per_class


def test_samples_are_all_used_before_one_repeats(case: tuple[list[int], int, int]) -> None:
    labels, batch_size, per_class = case
    sampler = ClassBalancedSampler(labels, batch_size, per_class, batches_per_epoch=60)
    uses: Counter[int] = Counter()
    for batch in sampler:
        uses.update(batch)
        for c in set(labels):
            counts = [uses[i] for i, label in enumerate(labels) if label == c]
            assert max(counts) - min(counts) <= 1 + (max(counts) > 1 and per_class > 1)
    for c in set(labels):
        counts = [uses[i] for i, label in enumerate(labels) if label == c]
        assert max(counts) - min(counts) <= 1


def test_order_inside_a_class_varies_even_if_all_of_it_is_drawn() -> None:
    sampler = ClassBalancedSampler([0, 0, 0, 1, 1, 1], 6, 3, batches_per_epoch=20)
    orders = {tuple(i for i in batch if i < 3) for batch in sampler}
    assert len(orders) == 6
    assert len({batch[0] < 3 for batch in sampler}) == 2


def test_default_length() -> None:
    assert len(ClassBalancedSampler([c for c in range(4) for _ in range(25)], 8, 2)) == 13
    # 100 samples fill 25 batches of 4, but it takes 50 to see 100 classes two at a time.
    with pytest.warns(UserWarning, match="100 of 100"):
        assert len(ClassBalancedSampler(list(range(100)), 4, 2)) == 50


def test_epochs_are_reproducible_and_differ() -> None:
    labels = torch.arange(10).repeat_interleave(8)

    def epoch(number: int, seed: int = 0) -> list[list[int]]:
        sampler = ClassBalancedSampler(labels, 8, 2, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    first = epoch(0)
    assert epoch(0) == first
    assert epoch(1) != first
    assert epoch(0, seed=1) != first
    # ... and don't depend on what was drawn before them.
    sampler = ClassBalancedSampler(labels, 8, 2)
    list(sampler)
    next(iter(sampler))
    sampler.set_epoch(1)
    assert list(sampler) == epoch(1)
    classes = [[int(labels[i]) for i in batch[::2]] for batch in first]
    assert classes != [[int(labels[i]) for i in batch[::2]] for batch in epoch(1)]


def test_global_generators_are_left_alone() -> None:
    def draw() -> tuple[float, float]:
        return float(torch.rand(1)), float(np.random.rand())  # noqa: NPY002

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    list(ClassBalancedSampler([0, 0, 1, 1], 4, 2))
    assert draw() == expected


def test_small_classes_repeat_evenly_with_one_warning() -> None:
    labels = [0] * 3 + [1] * 5 + [2] * 8 + [3]
    with pytest.warns(UserWarning, match="2 of 4 classes .* per_class = 4 .*class 0 with 3") as w:
        sampler = ClassBalancedSampler(labels, 8, 4, batches_per_epoch=30)
    assert len(w) == 1
    uses: Counter[int] = Counter()
    for batch in sampler:
        counts = Counter(batch)
        uses.update(batch)
        for c in {labels[i] for i in batch}:
            members = [counts[i] for i, label in enumerate(labels) if label == c]
            assert sum(members) == 4
            assert max(members) - min(members) <= 1
    for c in range(4):
        members = [uses[i] for i, label in enumerate(labels) if label == c]
        assert max(members) - min(members) <= 1


def test_no_warning_without_small_classes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClassBalancedSampler([0, 0, 1, 1], 4, 2)


@pytest.mark.parametrize(
    ("labels", "arguments", "name"),
    [
        ([0, 0, 1, 1], {"batch_size": 3}, "batch_size"),
        ([0, 0, 1, 1], {"batch_size": 0}, "batch_size"),
        ([0, 0, 1, 1], {"per_class": 0}, "per_class"),
        ([0, 0, 1, 1], {"batch_size": 6}, "labels"),
        ([], {}, "labels"),
        ([0.0, 0.0, 1.0, 1.0], {}, "labels"),
        (torch.zeros(2, 2).long(), {}, "labels"),
        ([0, 0, 1, 1], {"seed": -1}, "seed"),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], {"batches_per_epoch": 2}, "batches_per_epoch"),
        ([0, 0, 1, 1], {"batches_per_epoch": 0}, "batches_per_epoch"),
    ],
)
def test_bad_arguments_are_named(labels: list[int], arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`"):
        ClassBalancedSampler(labels, **{"batch_size": 4, "per_class": 2, **arguments})


def test_negative_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="`epoch`"):
        ClassBalancedSampler([0, 0, 1, 1], 4, 2).set_epoch(-1)


def test_in_a_data_loader() -> None:
    labels = torch.arange(6).repeat_interleave(5)
    sampler = ClassBalancedSampler(labels, 6, 3)
    loader = DataLoader(TensorDataset(torch.arange(30), labels), batch_sampler=sampler)
    assert len(loader) == len(sampler)
    assert [index.tolist() for index, _ in loader] == list(sampler)
