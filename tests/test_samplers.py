"""ClassBalancedSampler against its promises, counted by brute force."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bgl.samplers import ClassBalancedSampler, _GroupedShuffle

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


@pytest.fixture(params=[0, 1, 3, 7], ids=lambda n: f"{n} neighbors")
def sampler(
    case: tuple[list[int], int, int], request: pytest.FixtureRequest
) -> ClassBalancedSampler:
    labels, batch_size, per_class = case
    sampler = ClassBalancedSampler(labels, batch_size, per_class, neighbors=request.param)
    sampler.set_positions(torch.randn(len(set(labels)), 5))
    return sampler


def test_batches_are_balanced_and_every_class_comes_equally_often(
    case: tuple[list[int], int, int], sampler: ClassBalancedSampler
) -> None:
    labels, batch_size, per_class = case
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(set(batch)) == batch_size
            counts = Counter(labels[i] for i in batch)
            assert len(counts) == batch_size // per_class
            assert set(counts.values()) == {per_class}
        visits = Counter(labels[i] for batch in batches for i in batch)
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


@pytest.mark.parametrize("neighbors", [1, 2, 5])
def test_a_pass_consists_of_nearest_classes_that_are_left(neighbors: int) -> None:
    """Groups found in any order: each is its first class and, of all classes in no earlier group,
    those of the largest cosine around the mean."""
    classes, positions = 24, torch.randn(24, 4)
    centred = positions - positions.mean(dim=0)
    cosine = torch.cosine_similarity(centred[:, None], centred[None], dim=2)
    rng = np.random.default_rng(1)
    shuffle = _GroupedShuffle(positions, neighbors, rng)
    shuffle.one_pass()
    drawn = shuffle.one_pass()
    assert sorted(drawn) == list(range(classes))
    size = neighbors + 1
    groups = [drawn[i : i + size] for i in range(0, classes, size)]
    left, open_groups = set(range(classes)), list(groups)
    while open_groups:
        for group in open_groups:
            others = sorted(left - {group[0]}, key=lambda c: -float(cosine[group[0], c]))
            if group[0] in left and others[:neighbors] == group[1:]:
                break
        else:
            raise AssertionError(f"no group is the nearest of what is left: {open_groups}")
        left -= set(group)
        open_groups.remove(group)


def test_groups_of_what_was_left_come_at_any_place() -> None:
    """A group that begins in the pair leaves two of the four for the last group."""
    positions = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 2)
    shuffle = _GroupedShuffle(positions, 3, np.random.default_rng(0))
    passes = [shuffle.one_pass() for _ in range(60)]
    pair = {tuple(i for i, c in enumerate(drawn) if c >= 4) for drawn in passes}
    assert pair == {(0, 1), (2, 3), (4, 5)}


@pytest.mark.parametrize("neighbors", [1, 7])
def test_looking_ahead_deals_the_same(monkeypatch: pytest.MonkeyPatch, neighbors: int) -> None:
    """Tight clusters, whose classes take each other's nearest, and others."""
    positions = torch.cat([torch.randn(30, 6).repeat(10, 1) + 1e-3 * torch.randn(300, 6)] * 2)
    positions[300:] += torch.randn(300, 6)

    def passes() -> list[list[int]]:
        shuffle = _GroupedShuffle(positions.double(), neighbors, np.random.default_rng(0))
        return [shuffle.one_pass() for _ in range(3)]

    expected = passes()
    monkeypatch.setattr("bgl.samplers.SEARCHED_ALONE", 20)
    assert passes() == expected


def test_look_alikes_meet() -> None:
    """Four clusters of four classes: each batch of four classes is a cluster."""
    labels = torch.arange(16).repeat_interleave(4)
    centres = 10 * torch.eye(4).repeat(4, 1)  # cluster c % 4
    sampler = ClassBalancedSampler(labels, 16, 4, neighbors=3)
    sampler.set_positions(centres + 0.1 * torch.randn(16, 4))
    for batch in list(sampler)[:4]:
        assert len({int(labels[i]) % 4 for i in batch}) == 1
    # ... without positions, or neighbours, they lie at random
    for plain in (ClassBalancedSampler(labels, 16, 4, neighbors=3), sampler):
        plain.neighbors *= plain is not sampler
        assert any(len({int(labels[i]) % 4 for i in batch}) > 1 for batch in plain)


def test_positions_are_part_of_the_state() -> None:
    labels = torch.arange(12).repeat_interleave(4)
    one, other, plain = (ClassBalancedSampler(labels, 16, 4, neighbors=3) for _ in range(3))
    one.set_positions(torch.randn(12, 3))
    assert list(one) != list(plain)
    other.load_state_dict(one.state_dict())
    assert list(other) == list(one)
    other.load_state_dict(plain.state_dict())
    assert list(other) == list(plain)


@pytest.mark.parametrize(
    "positions", [torch.zeros(3, 2), torch.zeros(4), torch.full((4, 2), torch.nan)], ids=str
)
def test_bad_positions_are_named(positions: torch.Tensor) -> None:
    sampler = ClassBalancedSampler([0, 0, 1, 1, 2, 2, 3, 3], 4, 2, neighbors=1)
    with pytest.raises(ValueError, match="`positions`"):
        sampler.set_positions(positions)


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
    assert epoch(0, seed=1) != epoch(1, seed=0)
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
        (None, {}, "labels"),
        ([0, "b"], {}, "labels"),
        ([0, 0, 1, 1], {"seed": -1}, "seed"),
        ([0, 0, 1, 1], {"neighbors": -1}, "neighbors"),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], {"batches_per_epoch": 2}, "batches_per_epoch"),
        ([0, 0, 1, 1], {"batches_per_epoch": 0}, "batches_per_epoch"),
    ],
)
def test_bad_arguments_are_named(labels: Any, arguments: dict[str, int], name: str) -> None:
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
