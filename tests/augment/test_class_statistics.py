"""ClassStatistics against the reference arrays, direct formulas and two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import connected
from helpers import LargestResult, assert_close
from torch import Tensor

from bgl.augment import ClassStatistics
from bgl.augment.statistics import _Touched

Golden = Callable[[str], dict[str, Tensor]]


def batch(n: int = 40, classes: int = 5, channels: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    z = torch.randn(n, channels, generator=g, dtype=torch.float64) * (1 + y).unsqueeze(1)
    return z, y


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("N16_C4_A6_m.8", 0.8), ("N128_C100_A32_m.2", 0.2), ("absent_classes", 0.2), ("m0", 0.0)],
)
def test_update_equals_released(golden: Golden, name: str, momentum: float) -> None:
    case = golden(f"iaa_update_diag__{name}")
    classes, channels = case["mean"].shape[1:]
    statistics = ClassStatistics(classes, channels, momentum).double()
    for step, (z, y) in enumerate(zip(case["features"], case["labels"], strict=True)):
        statistics.update(z, y)
        assert_close(statistics.mean, case["mean"][step])
        assert_close(statistics.variance, case["covariance"][step])
        assert torch.equal(statistics.count.double(), case["amount"][step])


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("C12_small", 0.8), ("C12_two_calls", 0.2), ("C1001", 0.2), ("edge_neighbors_gt_valid", 0.8)],
)
def test_estimate_equals_released(golden: Golden, name: str, momentum: float) -> None:
    case = golden(f"iaa_update_each_class__{name}")
    y = case["labels"]
    classes, channels = case["mean"].shape[1:]
    size = y.bincount(minlength=classes)
    several = size > 1
    statistics = ClassStatistics(classes, channels, momentum).double()
    for call, z in enumerate(case["features"]):
        statistics.estimate(z, y)
        assert_close(statistics.mean, case["mean"][call])
        assert_close(statistics.variance, case["covariance"][call])
        assert torch.equal(statistics.count.double(), case["amount"][call])
        assert torch.equal(statistics.class_size, size)
    # A mean of 0 would make the classes around the origin the neighbours of a single sample.
    last = case["features"][-1]
    lone = torch.stack([last[y == k][0] for k in (~several).nonzero()])
    assert_close(statistics.center[~several], lone)
    assert_close(statistics.center[several], statistics.mean[several])


@pytest.mark.parametrize("method", ["update", "estimate"])
def test_momentum_one_gives_moments_of_everything_seen(method: str) -> None:
    z, y = batch(60)
    statistics = ClassStatistics(5, 4, momentum=1.0, covariance="full").double()
    for part, labels in zip(z.split(30), y.split(30), strict=True):
        getattr(statistics, method)(part, labels)
    for k in range(5):
        assert_close(statistics.mean[k], z[y == k].mean(0))
        assert_close(statistics.variance[k], z[y == k].T.cov(correction=0))


def test_full_covariance_has_the_diagonal_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgl.augment.statistics._CHUNK", 100)  # 6 samples at a time
    diagonal = ClassStatistics(5, 4).double()
    full = ClassStatistics(5, 4, covariance="full").double()
    for seed in range(3):
        diagonal.update(*batch(seed=seed))
        full.update(*batch(seed=seed))
    assert_close(full.variance.diagonal(dim1=1, dim2=2), diagonal.variance)
    assert_close(full.variance, full.variance.mT)
    assert_close(full.mean, diagonal.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_summed_in_the_dtype_of_the_buffers(dtype: torch.dtype) -> None:
    z, y = batch(400)
    z = (z + 30).to(dtype)
    statistics = ClassStatistics(5, 4)
    statistics.update(z, y)
    exact = ClassStatistics(5, 4).double()
    exact.update(z.double(), y)
    assert statistics.mean.dtype == torch.float32
    assert_close(statistics.variance.double(), exact.variance, tol=1e-5)


def test_far_from_the_origin_variance_survives_float32() -> None:
    z, y = batch(50)
    statistics = ClassStatistics(5, 4)
    statistics.estimate((z + 1e4).float(), y)
    expected = torch.stack([z[y == k].var(0, correction=0) for k in range(5)])
    # E[x²] − E[x]² would be off by some 10 here; the input itself is good to 1e-3.
    torch.testing.assert_close(statistics.variance.double(), expected, rtol=1e-2, atol=1e-2)


def test_any_integers_known_at_construction() -> None:
    z, y = batch()
    names = torch.tensor([17, -4, 900, 3, 0])
    plain, named = ClassStatistics(5, 4).double(), ClassStatistics(5, 4, labels=names).double()
    order = names.argsort().argsort()  # row of the k-th name
    plain.update(z, y)
    named.update(z, names[y])
    assert named.labels.tolist() == [-4, 0, 3, 17, 900]
    assert_close(named.mean[order], plain.mean, tol=0)
    assert torch.equal(named.count[order], plain.count)


@pytest.mark.parametrize("labels", [None, [2, 5, 9]], ids=["range", "named"])
@pytest.mark.parametrize("stranger", [-1, 3, 7, 10])
def test_unknown_labels_raise_and_change_nothing(labels: list[int] | None, stranger: int) -> None:
    statistics = ClassStatistics(3, 2, labels=labels)
    with pytest.raises(ValueError, match=rf"`y` to hold the 3 labels.*\[{stranger}\]"):
        statistics.update(torch.ones(2, 2), torch.tensor([2, stranger]))
    assert statistics.count.sum() == 0


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"channels": 0}, "channels"),
        ({"momentum": 1.5}, "momentum"),
        ({"covariance": "block"}, "covariance"),
        ({"labels": [1, 1, 2]}, "labels"),
        ({"labels": [1, 2]}, "labels"),
        ({"labels": [0.5, 1.0, 2.0]}, "labels"),
    ],
)
def test_constructor_names_the_bad_argument(kwargs: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        ClassStatistics(**({"num_classes": 3, "channels": 2} | kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("z", "y", "name"),
    [
        (torch.ones(4), torch.zeros(4).long(), "z"),
        (torch.ones(4, 3), torch.zeros(4).long(), "z"),
        (torch.ones(4, 2), torch.zeros(3).long(), "y"),
        (torch.ones(4, 2), torch.zeros(4), "y"),
    ],
    ids=["rank", "channels", "length", "dtype"],
)
def test_update_names_the_bad_argument(z: Tensor, y: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        ClassStatistics(3, 2).update(z, y)


def test_no_gradient_is_kept() -> None:
    z, y = batch()
    statistics = ClassStatistics(5, 4).double()
    statistics.update(z.requires_grad_(), y)
    assert not statistics.mean.requires_grad
    assert not statistics.variance.requires_grad


def test_state_dict_round_trip_goes_on_alike() -> None:
    first, second = ClassStatistics(5, 4).double(), ClassStatistics(5, 4).double()
    first.estimate(*batch(seed=1))
    first.update(*batch(seed=2))
    second.load_state_dict(first.state_dict())
    for statistics in (first, second):
        statistics.update(*batch(seed=3))
    assert torch.equal(first.variance, second.variance)
    assert torch.equal(first.class_size, second.class_size)


def test_class_size_is_that_of_the_latest_estimate() -> None:
    statistics = ClassStatistics(2, 1)
    z, y = torch.randn(3, 1), torch.tensor([0, 0, 1])
    statistics.update(z, y)
    assert statistics.class_size.tolist() == [2, 1]
    for _ in range(3):
        statistics.estimate(z, y)
        statistics.update(z, y)
    assert statistics.class_size.tolist() == [2, 1]
    assert statistics.count.tolist() == [14, 7]
    statistics.estimate(z[:2], y[:2])
    assert statistics.class_size.tolist() == [2, 0]


@pytest.mark.parametrize("method", ["update", "estimate"])
def test_a_class_that_has_grown_is_at_its_mean_again(method: str) -> None:
    statistics = ClassStatistics(2, 4).double()
    z, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 0, 1])
    statistics.estimate(z, y)
    assert_close(statistics.center[1], z[2])
    getattr(statistics, method)(torch.randn(2, 4), torch.tensor([1, 1]))
    assert torch.equal(statistics.center, statistics.mean)


@pytest.mark.parametrize("change", ["update", "estimate", "load", "cast"])
def test_version_follows_every_change(change: str) -> None:
    statistics = ClassStatistics(5, 4)
    other = ClassStatistics(5, 4)
    before = statistics.version
    assert before == statistics.version
    z, y = batch()
    match change:
        case "update":
            statistics.update(z, y)
        case "estimate":
            statistics.estimate(z, y)
        case "load":
            statistics.load_state_dict(other.state_dict())
        case "cast":
            statistics.double()
    assert statistics.version != before


@pytest.mark.parametrize("name", ["mean", "variance", "offset", "count", "estimated_size"])
def test_version_follows_edits_of_a_buffer(name: str) -> None:
    statistics = ClassStatistics(5, 4)
    before = statistics.version
    getattr(statistics, name)[0] = 1
    assert statistics.version != before


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("seen", [1, 3, 12])
def test_few_of_many_classes_are_absorbed_like_all(seen: int, covariance: str) -> None:
    """A batch with fewer samples than there are classes, class 0 among them or not."""
    few, all_rows = (ClassStatistics(40, 4, 0.5, covariance).double() for _ in range(2))
    every = slice(None)
    all_rows._touched = lambda _, rows, most: _Touched(every, rows, every)  # type: ignore[method-assign]
    for seed in range(6):
        z, y = batch(12, seen, seed=seed)
        y = 3 * y + seed % 2
        for statistics in (few, all_rows):
            (statistics.update if seed % 3 else statistics.estimate)(z, y)
        for name, expected in all_rows.state_dict().items():
            assert_close(few.state_dict()[name].double(), expected.double(), tol=1e-14)


def test_a_step_touches_the_classes_of_its_batch_only() -> None:
    statistics = ClassStatistics(1000, 16)
    with LargestResult() as largest:
        statistics.update(torch.randn(20, 16), torch.arange(20) * 7)
    assert largest.numel <= 1000


def test_no_tensor_of_samples_times_classes_times_channels() -> None:
    statistics = ClassStatistics(100, 16).double()
    z, y = batch(200, 100, 16)
    with LargestResult() as largest:
        statistics.update(z, y)
        statistics.estimate(z, y)
    assert largest.numel == 200 * 16


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    def absorb(*shares: slice) -> list[dict[str, Tensor]]:
        diagonal, many = ClassStatistics(5, 4).double(), ClassStatistics(60, 4).double()
        full = ClassStatistics(5, 4, covariance="full").double()
        for seed, share in enumerate(shares):
            z, y = batch(seed=seed)
            diagonal.update(z[share], y[share])
            many.update(z[share], 11 * y[share])
            full.estimate(z[share], y[share])
        return [statistics.state_dict() for statistics in (diagonal, many, full)]

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        share = slice(25) if rank == 0 else slice(25, None)  # of unequal size
        torch.save(absorb(share, share), tmp_path / f"{rank}.pt")
        dist.destroy_process_group()

    assert connected(work, tmp_path) == [0, 0], (tmp_path / "0.log").read_text()
    expected = absorb(slice(None), slice(None))
    for rank in range(2):
        for own, whole in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            for name, value in whole.items():
                assert_close(own[name].double(), value.double(), tol=1e-12)
