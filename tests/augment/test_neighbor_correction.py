"""NeighborCorrection against a plain NumPy oracle of Eq. 9-16 and the released arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import augment_oracles as oracle
import numpy as np
import pytest
import torch
from helpers import LargestResult, assert_close
from torch import Tensor

from bgl.augment import ClassStatistics, NeighborCorrection
from bgl.augment.correction import class_weight, global_variance, mixed_variance, nearest_classes

Golden = Callable[[str], dict[str, Tensor]]

CASES = [
    pytest.param("C12_small", 4, 0.1, id="C12_small"),
    pytest.param("C12_two_calls", 3, 0.3, id="C12_two_calls"),
    pytest.param("C1001", 25, 0.1, id="C1001"),
    pytest.param("edge_neighbors_gt_valid", 4, 0.1, id="edge_neighbors_gt_valid"),
]


def filled(mean: Tensor, variance: Tensor, size: Tensor) -> ClassStatistics:
    statistics = ClassStatistics(
        len(size), mean.size(1), covariance="diagonal" if variance.dim() == 2 else "full"
    ).to(mean.dtype)
    statistics.mean.copy_(mean)
    statistics.variance.copy_(variance)
    statistics.count.copy_(size)
    return statistics


def random_statistics(
    size: list[int], channels: int = 3, full: bool = False, seed: int = 0
) -> ClassStatistics:
    g = torch.Generator().manual_seed(seed)
    k = len(size)
    mean = torch.randn(k, channels, generator=g, dtype=torch.float64)
    root = torch.rand(k, channels, channels, generator=g, dtype=torch.float64) / 2
    variance = root @ root.mT if full else root[:, 0]
    number = torch.tensor(size)
    variance[number < 2] = 0
    statistics = filled(mean, variance, number)
    single = number == 1  # off the mean of 0 that an estimate leaves them with
    statistics.offset[single] = torch.randn(k, channels, generator=g, dtype=torch.float64)[single]
    return statistics


def released(golden: Golden, name: str) -> tuple[dict[str, Tensor], ClassStatistics]:
    case = golden(f"iaa_update_each_class__{name}")
    size = case["labels"].bincount(minlength=case["mean"].size(1))
    return case, filled(case["mean"][-1], case["covariance"][-1], size)


def arrays(statistics: ClassStatistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return statistics.center.numpy(), statistics.variance.numpy(), statistics.class_size.numpy()


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_neighbors": 3},
        {"num_neighbors": 25},
        {"num_neighbors": 1, "gamma": 0.0},
        {"num_neighbors": 4, "sigma_mean": 3.0, "sigma_var": 0.2, "beta": 0.7, "gamma": 0.4},
        {"num_neighbors": 5, "max_count": 4, "beta": 0.0},
    ],
    ids=["k3", "k_beyond_classes", "k1", "sigmas", "max_count"],
)
@pytest.mark.filterwarnings("ignore:NeighborCorrection leaves")
def test_equals_oracle(options: dict[str, float], full: bool) -> None:
    statistics = random_statistics([2, 3, 50, 1, 7, 4, 0, 41, 40, 1, 2, 9], full=full)
    correction = NeighborCorrection(**options)  # type: ignore[arg-type]
    variance = correction(statistics)
    expected, effective = oracle.corrected_variance(*arrays(statistics), **options)  # type: ignore[arg-type]
    assert variance.shape == statistics.variance.shape
    assert_close(variance, torch.from_numpy(expected))
    assert_close(correction.effective_neighbors, torch.from_numpy(effective))


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = random_statistics([2, 3, 50, 1, 7, 4, 0, 41, 40, 1, 2, 9])
    whole = NeighborCorrection(3, sigma_mean=5.0)(statistics)
    monkeypatch.setattr("bgl.augment.correction._CHUNK", 60)  # five classes at a time
    assert_close(NeighborCorrection(3, sigma_mean=5.0)(statistics), whole, tol=1e-14)


@pytest.mark.parametrize(("name", "k", "gamma"), CASES)
def test_released_class_weight(golden: Golden, name: str, k: int, gamma: float) -> None:
    case, statistics = released(golden, name)
    size = statistics.class_size
    weight = class_weight(size.double(), beta=0.1, max_count=40)
    # The paper corrects up to and including τ = 40; the released code stops short of it.
    assert_close(weight[size != 40], case["class_weight"][size != 40])
    assert (case["class_weight"][size == 40] == 0).all()
    assert_close(class_weight(size.double(), beta=0.1, max_count=39), case["class_weight"])


@pytest.mark.parametrize(("name", "k", "gamma"), CASES)
def test_released_global_variance(golden: Golden, name: str, k: int, gamma: float) -> None:
    case, statistics = released(golden, name)
    overall = global_variance(statistics.variance, statistics.class_size)
    assert_close(overall, case["global_covariance"][-1])


@pytest.mark.parametrize(("name", "k", "gamma"), CASES)
def test_released_neighbors(golden: Golden, name: str, k: int, gamma: float) -> None:
    case, statistics = released(golden, name)
    size = statistics.class_size
    index, usable = nearest_classes(statistics.mean.square(), size, torch.arange(len(size)), k)
    assert torch.equal(index[usable], case["nbr_index"].long()[usable])
    # Where fewer than k classes can lend, the released code goes on to excluded ones; ours stops.
    lenders = (size > 1).sum() - (size > 1).long()
    assert torch.equal(usable.sum(1), lenders.clamp(max=k))


@pytest.mark.parametrize(("name", "k", "gamma"), CASES)
def test_released_neighbor_variance_is_that_of_masked_min_max_distances(
    golden: Golden, name: str, k: int, gamma: float
) -> None:
    """Why neighbour variances differ: Eq. 13 takes raw distances, the released code does not."""
    case, statistics = released(golden, name)
    rows = range(min(40, statistics.num_classes))
    expected = case["neighbor_covariance"][-1][: len(rows)]
    mine = [oracle.released_neighbor_variance(*arrays(statistics), row, k) for row in rows]
    assert_close(torch.from_numpy(np.stack(mine)), expected)
    raw = [oracle.neighbor_variance(*arrays(statistics), row, k, 1.0, 1.0)[0] for row in rows]
    assert (torch.from_numpy(np.stack(raw)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "k", "gamma"), CASES)
def test_released_calibration(golden: Golden, name: str, k: int, gamma: float) -> None:
    case = golden(f"iaa_distribution_calibration__{name}")
    y = case["labels"]  # the released function works on the rows of a batch
    out = mixed_variance(
        case["cv"],
        case["neighbor_covariance"][y],
        case["global_covariance"],
        case["class_weight"][y],
        gamma,
    )
    assert_close(out, case["out"])


@pytest.mark.filterwarnings("ignore:NeighborCorrection leaves")
def test_weights_survive_hundreds_of_channels() -> None:
    g = torch.Generator().manual_seed(0)
    mean, variance = 3 * torch.randn(6, 512, generator=g), torch.rand(6, 512, generator=g)
    statistics = filled(mean, variance, torch.full((6,), 5))
    correction = NeighborCorrection(num_neighbors=3)
    out = correction(statistics)  # exp(-D²/2) underflows even in float64
    assert out.isfinite().all()
    distance = torch.cdist(mean.square(), mean.square()).square() / 2
    assert distance[~torch.eye(6, dtype=torch.bool)].min() > 1000
    assert_close(correction.effective_neighbors, torch.ones(6), tol=1e-6)


def test_one_effective_neighbor_is_said_once() -> None:
    statistics = random_statistics([5] * 8)
    statistics.mean.mul_(100)
    correction = NeighborCorrection(num_neighbors=4)
    with pytest.warns(UserWarning, match="8 of 8 corrected classes with one effective neighbour"):
        correction(statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correction(statistics)
        NeighborCorrection(num_neighbors=4, sigma_mean=1e5)(statistics)
        NeighborCorrection(num_neighbors=1)(statistics)
        NeighborCorrection(num_neighbors=4, max_count=4)(statistics)  # nothing is corrected


@pytest.mark.parametrize(
    ("size", "expected"),
    [([1, 1, 1], "zero"), ([0, 0, 0], "zero"), ([1, 4, 1], "overall"), ([4], "overall")],
    ids=["all_single", "all_absent", "one_lender", "one_class"],
)
def test_classes_without_neighbors(size: list[int], expected: str) -> None:
    statistics = random_statistics(size)
    correction = NeighborCorrection()
    out = correction(statistics)
    if expected == "zero":
        assert (out == 0).all()
    else:  # Eq. 14 stands in, which here is the variance of the only class that has one
        lender = statistics.variance[statistics.class_size > 1]
        assert_close(out, lender.expand_as(out))
    assert correction.effective_neighbors.isfinite().all()


def test_identical_classes_stay_as_they_are() -> None:
    statistics = random_statistics([5, 5, 5, 5])
    statistics.mean.copy_(statistics.mean[:1].expand(4, -1).clone())
    statistics.variance.copy_(statistics.variance[:1].expand(4, -1).clone())
    correction = NeighborCorrection()
    assert_close(correction(statistics), statistics.variance)
    assert_close(correction.effective_neighbors, torch.full((4,), 3.0).double())


def test_class_size_counts_rather_than_passes() -> None:
    """Estimating again and again must not talk a small class out of its correction."""
    z, y = torch.randn(60, 2).double(), torch.arange(60) % 20
    statistics = ClassStatistics(20, 2).double()
    statistics.estimate(z, y)
    once = NeighborCorrection(sigma_mean=5.0)(statistics)
    for _ in range(20):
        statistics.estimate(z, y)
    assert statistics.count.min() > 40
    assert_close(NeighborCorrection(sigma_mean=5.0)(statistics), once)


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No K × K and no K × k × D tensor: at 13,000 × 512 that leaves a few hundred MB."""
    monkeypatch.setattr("bgl.augment.correction._CHUNK", 2**14)
    statistics = random_statistics([3] * 1000, channels=8)
    with LargestResult() as largest:
        NeighborCorrection(sigma_mean=5.0)(statistics)
    assert largest.numel <= 2**14


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_neighbors", 0),
        ("beta", -0.1),
        ("gamma", 1.1),
        ("max_count", -1),
        ("sigma_mean", 0.0),
        ("sigma_var", float("nan")),
    ],
)
def test_constructor_names_the_bad_argument(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{option}`"):
        NeighborCorrection(**{option: value})  # type: ignore[arg-type]
