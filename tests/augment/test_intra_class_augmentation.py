"""IntraClassAugmentation: Eq. 17 for every copy, gradients, schedules and the cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from bgl.augment import (
    ClassStatistics,
    IntraClassAugmentation,
    NeighborCorrection,
    StrengthSchedule,
)
from bgl.hyperbolic import ToPoincareBall

Golden = Callable[[str], dict[str, Tensor]]


def with_variance(variance: Tensor) -> ClassStatistics:
    covariance = "diagonal" if variance.dim() == 2 else "full"
    statistics = ClassStatistics(len(variance), variance.size(1), covariance=covariance)
    statistics = statistics.to(variance.dtype)
    statistics.variance.copy_(variance)
    statistics.count.fill_(5)
    return statistics


@pytest.mark.parametrize(
    ("name", "copies", "strength"), [("aug1", 1, 0.2), ("aug3", 3, 0.8), ("aug4_bigcov", 4, 0.6)]
)
def test_released_synthesis(golden: Golden, name: str, copies: int, strength: float) -> None:
    case = golden(f"iaa_intra_synthesis__{name}")
    z, y, noise = case["features"].requires_grad_(), case["labels"], case["noise"]
    augmentation = IntraClassAugmentation(
        with_variance(case["covariance"]), strength=strength, num_samples=copies
    )
    z_new, y_new = augmentation(z, y, noise)
    assert torch.equal(y_new, case["labels_out"])
    # Every copy has the square root of the variance; the released code takes the root of the
    # root for the second, and so on, so only its first copy is Eq. 17.
    n = len(z)
    assert_close(z_new[:n].detach(), case["out"][:n])
    root = case["covariance"][y].sqrt()
    for m in range(copies):
        expected = z.detach() + strength**0.5 * root * noise[m]
        assert_close(z_new[m * n : (m + 1) * n].detach(), expected)
        power = case["covariance"][y] ** (0.5 ** (m + 1))
        assert_close(
            case["out"][m * n : (m + 1) * n], z.detach() + strength**0.5 * power * noise[m]
        )
    (gradient,) = torch.autograd.grad(z_new, z, case["cotangent"])
    assert_close(gradient, case["grad_features"])


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])
def test_every_copy_has_the_whole_covariance(full: bool, corrected: bool) -> None:
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    variance = root @ root.mT / 4 if full else root[:, 0].square()
    statistics = with_variance(variance)
    correction = NeighborCorrection(sigma_mean=9.0, sigma_var=9.0) if corrected else None
    target = correction(statistics) if correction else variance
    augmentation = IntraClassAugmentation(statistics, correction, strength=0.7, num_samples=3)
    z = torch.randn(3, 4, dtype=torch.float64)
    y = torch.arange(3)
    draws = 20_000
    copies, _ = augmentation(z.repeat(draws, 1), y.repeat(draws))
    copies = copies.view(3, draws, 3, 4) - z
    for m in range(3):
        for k in range(3):
            sample = copies[m, :, k]
            wanted = 0.7 * (target[k] if full else target[k].diag())
            tolerance = 5 * 2**0.5 * float(wanted.diagonal().max()) / draws**0.5
            torch.testing.assert_close(sample.T.cov(), wanted, rtol=0, atol=tolerance)
            assert (sample.mean(0).abs() < 5 * (wanted.diagonal() / draws).sqrt()).all()
    # Copies are independent of each other, so that several say more than one.
    both = torch.cat([copies[0, :, 0], copies[1, :, 0]], dim=1).T.corrcoef()
    assert both[:4, 4:].abs().max() < 5 / draws**0.5


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_gradient_reaches_the_embeddings_only(full: bool) -> None:
    statistics = ClassStatistics(2, 3, covariance="full" if full else "diagonal").double()
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    statistics.update(z, y)
    augmentation = IntraClassAugmentation(statistics, NeighborCorrection(), num_samples=2)
    noise = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: augmentation(x, y, noise)[0], (z,))
    (gradient,) = torch.autograd.grad(augmentation(z, y)[0].sum(), z)
    assert torch.equal(gradient, torch.full_like(gradient, 2.0))


def test_singular_and_slightly_negative_covariances_are_cleaned_up() -> None:
    direction = torch.tensor([[1.0, 2.0, 2.0]]).double() / 3
    variance = torch.stack([direction.T @ direction, torch.zeros(3, 3).double()])
    variance[1, 0, 0] = -1e-18
    augmentation = IntraClassAugmentation(with_variance(variance), strength=1.0, num_samples=50)
    z = torch.zeros(2, 3).double()
    copies, _ = augmentation(z, torch.arange(2))
    assert copies.isfinite().all()
    along = copies[::2] @ direction.T
    assert_close(copies[::2], along @ direction, tol=1e-7)
    assert_close(copies[1::2], torch.zeros(50, 3).double())


def test_classes_without_spread_give_exact_copies() -> None:
    statistics = ClassStatistics(3, 2)
    statistics.update(torch.randn(1, 2), torch.tensor([1]))
    z, y = torch.randn(2, 2), torch.tensor([0, 1])
    copies, labels = IntraClassAugmentation(statistics, num_samples=2)(z, y)
    assert torch.equal(copies, z.repeat(2, 1))
    assert labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_copies_keep_the_dtype_of_the_embeddings(dtype: torch.dtype, full: bool) -> None:
    statistics = ClassStatistics(2, 3, covariance="full" if full else "diagonal")
    z, y = torch.randn(6, 3).to(dtype), torch.tensor([0, 1, 0, 1, 0, 1])
    statistics.update(z, y)
    augmentation = IntraClassAugmentation(statistics)
    assert augmentation(z, y)[0].dtype == dtype
    with torch.autocast("cpu"):
        assert augmentation(z, y)[0].dtype == dtype


def test_labels_by_name() -> None:
    statistics = ClassStatistics(2, 1, labels=[40, 7])
    statistics.estimate(torch.tensor([[0.0], [2.0], [0.0], [0.0]]), torch.tensor([40, 40, 7, 7]))
    augmentation = IntraClassAugmentation(statistics, strength=1.0, num_samples=1)
    copies, labels = augmentation(
        torch.zeros(2, 1), torch.tensor([7, 40]), noise=torch.ones(1, 2, 1)
    )
    assert copies.flatten().tolist() == [0.0, 1.0]
    assert labels.tolist() == [7, 40]


@pytest.mark.parametrize(("name", "strength"), [("e100", 0.8), ("e60", 0.6)])
def test_released_schedule(golden: Golden, name: str, strength: float) -> None:
    case = golden(f"iaa_lamda_epoch__{name}")
    augmentation = IntraClassAugmentation(
        ClassStatistics(2, 2), strength=StrengthSchedule(strength=strength)
    )
    seen = []
    for epoch in case["ep"].tolist():
        augmentation.set_epoch(epoch, len(case["ep"]))
        seen.append(augmentation.strength)
    assert_close(torch.tensor(seen, dtype=torch.float64), case["out"], tol=1e-15)


def test_released_schedule_by_name_and_constants() -> None:
    named = IntraClassAugmentation(ClassStatistics(2, 2), strength="released")
    constant = IntraClassAugmentation(ClassStatistics(2, 2), strength=0.3)
    own = IntraClassAugmentation(ClassStatistics(2, 2), strength=lambda progress: 1 - progress)
    assert (named.strength, own.strength) == (0.8, 1.0)
    for augmentation in (named, constant, own):
        augmentation.set_epoch(9, 10)
    assert named.strength == pytest.approx(0.48)
    assert constant.strength == 0.3
    assert own.strength == pytest.approx(0.1)


def test_factor_is_computed_when_the_statistics_change_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    forward = NeighborCorrection.forward

    def counted(self: NeighborCorrection, statistics: ClassStatistics) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(self, statistics)

    monkeypatch.setattr(NeighborCorrection, "forward", counted)
    statistics = ClassStatistics(2, 3)
    augmentation = IntraClassAugmentation(statistics, NeighborCorrection())
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    for _ in range(3):
        augmentation(z, y)
    assert calls == 1
    before = augmentation.factor()
    statistics.update(z, y)
    for _ in range(3):
        augmentation(z, y)
    assert calls == 2
    assert not torch.equal(before, augmentation.factor())
    augmentation.double()
    assert augmentation.factor().dtype == torch.float64


def test_state_dict_holds_the_statistics_and_nothing_else() -> None:
    augmentation = IntraClassAugmentation(ClassStatistics(2, 3), NeighborCorrection())
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    augmentation.statistics.update(z, y)
    augmentation(z, y)
    names = {f"statistics.{name}" for name in augmentation.statistics.state_dict()}
    assert augmentation.state_dict().keys() == names
    other = IntraClassAugmentation(ClassStatistics(2, 3), NeighborCorrection())
    other(z, y)
    other.load_state_dict(augmentation.state_dict())
    assert torch.equal(other.factor(), augmentation.factor())


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": "paper"}, "strength"),
        ({"strength": lambda progress: -1.0}, "strength"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_constructor_names_the_bad_argument(kwargs: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        IntraClassAugmentation(ClassStatistics(2, 2), **kwargs)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="`statistics` to be a ClassStatistics, got 6"):
        IntraClassAugmentation(6)  # type: ignore[arg-type]


def test_calls_name_the_bad_argument() -> None:
    augmentation = IntraClassAugmentation(ClassStatistics(2, 2), num_samples=3)
    z, y = torch.randn(4, 2), torch.zeros(4).long()
    with pytest.raises(ValueError, match=r"`noise` to have shape \[3, 4, 2\]"):
        augmentation(z, y, torch.randn(2, 4, 2))
    with pytest.raises(ValueError, match="`z`"):
        augmentation(z[0], y)
    with pytest.raises(ValueError, match="`z` to have 2 channels, but got 5"):
        augmentation(torch.randn(4, 5), y)
    with pytest.raises(ValueError, match="`y`"):
        augmentation(z, y[:3])
    with pytest.raises(ValueError, match="labels known"):
        augmentation(z, y + 2)
    with pytest.raises(ValueError, match="`num_epochs`"):
        augmentation.set_epoch(11, 10)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("c", [0.1, 1.0])
def test_copies_of_points_of_a_ball_are_drawn_in_the_tangent_space(
    c: float, covariance: str
) -> None:
    """As if the features before the ball were augmented, and the copies then mapped into it."""
    x, y = 2 * torch.randn(32, 5, dtype=torch.float64), torch.arange(32) % 4
    x = x.renorm(2, 0, 2.3).requires_grad_()
    noise = torch.randn(3, 32, 5, dtype=torch.float64)
    copies = {}
    for curvature in (None, c):
        z = x if curvature is None else ToPoincareBall(c, clip_radius=None)(x)
        statistics = ClassStatistics(4, 5, covariance=covariance, curvature=curvature).double()
        statistics.estimate(z, y)
        copies[curvature], _ = IntraClassAugmentation(statistics)(z, y, noise)
    assert (c * copies[c].square().sum(1) < 1).all()
    assert_close(copies[c], ToPoincareBall(c, clip_radius=None)(copies[None]))
    expected = torch.autograd.grad(ToPoincareBall(c, None)(copies[None]).square().sum(), x)[0]
    assert_close(torch.autograd.grad(copies[c].square().sum(), x)[0], expected)
