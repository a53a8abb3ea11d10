"""The Poincaré ball: reference arrays, identities, limits and low precision."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_close
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from bgl.hyperbolic import (
    HyperbolicDistance,
    ToPoincareBall,
    distance_matrix,
    from_poincare_ball,
    paired_distance,
    rank_factors,
    rank_matrix,
    to_poincare_ball,
)
from bgl.metrics import retrieval_metrics

F64 = torch.float64


def ball_points(n: int, channels: int, c: float, radius: float = 0.8) -> Tensor:
    """Random points with norms up to ``radius`` of the ball's radius."""
    direction = torch.nn.functional.normalize(torch.randn(n, channels, dtype=F64))
    return direction * torch.rand(n, 1, dtype=F64) * radius / math.sqrt(c)


def mobius_distance(x: Tensor, y: Tensor, c: float) -> Tensor:
    """The textbook formula, pair by pair, without offsets: an independent oracle."""
    rows = []
    for a in x:
        row = []
        for b in y:
            dot, aa, bb = -(a @ b), a @ a, b @ b
            numerator = (1 + 2 * c * dot + c * bb) * -a + (1 - c * aa) * b
            ratio = numerator / (1 + 2 * c * dot + c**2 * aa * bb)
            row.append(2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * ratio.norm()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


# --- the map into the ball ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "c", "clip_radius"), [("c.1_clip2.3", 0.1, 2.3), ("c1_noclip", 1.0, None)]
)
def test_map_equals_reference(golden, case, c, clip_radius):
    arrays = golden(f"to_poincare__{case}")
    x = arrays["x"].requires_grad_()
    z = ToPoincareBall(c=c, clip_radius=clip_radius)(x)
    assert_close(z, arrays["out"])
    (grad,) = torch.autograd.grad(z, x, arrays["cotangent"])
    assert_close(grad, arrays["grad_x"])


def test_riemannian_reference_has_the_same_values(golden):
    arrays = golden("to_poincare__c.1_riemannian")
    assert_close(to_poincare_ball(arrays["x"], c=0.1, clip_radius=2.3), arrays["out"])


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("clip_radius", [None, 2.3], ids=["noclip", "clip"])
def test_map_stays_inside_the_ball(dtype, size, clip_radius):
    x = (torch.randn(6, 5, dtype=dtype) * size).requires_grad_()
    z = to_poincare_ball(x, c=0.1, clip_radius=clip_radius)
    assert (0.1 * z.square().sum(1) < 1).all()
    z.sum().backward()
    assert x.grad.isfinite().all()


def test_distance_to_the_origin_undoes_the_map():
    # d(0, exp_0(x)) = 2 |x|, while neither the clipping nor the edge of the ball is in the way.
    x = torch.randn(8, 5, dtype=F64)
    origin = torch.zeros(1, 5, dtype=F64)
    z = to_poincare_ball(x, c=0.1)
    distance = distance_matrix(origin, z, c=0.1)[0]
    torch.testing.assert_close(distance, 2 * x.norm(dim=1), rtol=1e-4, atol=0)


def test_map_of_small_vectors_is_the_identity():
    x = torch.randn(8, 5, dtype=F64) * 1e-3
    torch.testing.assert_close(to_poincare_ball(x, c=0.1), x, rtol=1e-5, atol=0)


def test_map_takes_any_leading_shape():
    x = torch.randn(2, 3, 5)
    z = ToPoincareBall()(x)
    torch.testing.assert_close(z.flatten(0, 1), ToPoincareBall()(x.flatten(0, 1)))


# --- distances ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "c"), [("c.1", 0.1), ("c.1_self", 0.1), ("c1_boundary", 1.0)], ids=str
)
def test_distance_equals_reference(golden, case, c):
    # In the boundary case some pairs are beyond the artanh cap: the gradient passes there too.
    arrays = golden(f"dist_matrix__{case}")
    x, y = arrays["x"].requires_grad_(), arrays["y"].requires_grad_()
    distance = HyperbolicDistance(c=c)(x, y)
    assert_close(distance, arrays["out"])
    grads = torch.autograd.grad(distance, (x, y), arrays["cotangent"])
    assert_close(grads[0], arrays["grad_x"])
    assert_close(grads[1], arrays["grad_y"])


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("channels", [1, 3, 64])
def test_distance_equals_the_textbook_formula(c, channels):
    x, y = ball_points(7, channels, c), ball_points(5, channels, c)
    # 1e-3: the published denominator carries an extra 1e-5.
    expected = mobius_distance(x, y, c)
    torch.testing.assert_close(distance_matrix(x, y, c=c), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        paired_distance(x[:5], y, c=c), expected[:5].diagonal(), rtol=1e-3, atol=0
    )


def test_distance_tends_to_twice_the_euclidean_one():
    x, y = torch.randn(6, 4, dtype=F64), torch.randn(5, 4, dtype=F64)
    distance = distance_matrix(x, y, c=1e-6)
    torch.testing.assert_close(distance, 2 * torch.cdist(x, y), rtol=1e-4, atol=0)


def test_distance_is_a_metric():
    x = ball_points(12, 4, c=0.1)
    d = distance_matrix(x, x, c=0.1)
    torch.testing.assert_close(d, d.T)
    assert (d.diagonal() == 0).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-4).all()


def test_pairwise_distance_is_the_diagonal():
    distance = HyperbolicDistance(c=0.1)
    x, y = ball_points(6, 4, c=0.1), ball_points(6, 4, c=0.1)
    torch.testing.assert_close(distance.pairwise_distance(x, y), distance(x, y).diagonal())
    torch.testing.assert_close(distance(x), distance(x, x))


@pytest.mark.parametrize("function", [distance_matrix, paired_distance])
def test_distance_gradcheck(function):
    x, y = ball_points(4, 3, c=0.5).requires_grad_(), ball_points(4, 3, c=0.5).requires_grad_()
    distance = lambda a, b: function(a, b, c=0.5)  # noqa: E731
    assert torch.autograd.gradcheck(distance, (x, y))
    assert torch.autograd.gradgradcheck(distance, (x, y))


@pytest.mark.parametrize("function", [distance_matrix, paired_distance])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_coincident_points_have_no_distance_and_no_gradient(function, dtype):
    x = ball_points(1, 16, c=0.1).to(dtype).expand(5, 16).clone().requires_grad_()
    distance = function(x, x.detach().clone(), c=0.1)
    assert (distance == 0).all()
    distance.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("offset", [1e-4, 1e-2, 1.0])
def test_float32_keeps_points_apart_that_share_an_offset(offset):
    # A collapsed batch: all points near one place, far from the origin.
    place = torch.nn.functional.normalize(torch.randn(1, 64, dtype=F64)) * 1.5
    x = (place + offset * ball_points(20, 64, c=1.0)).float()
    exact = distance_matrix(x.double(), x.double(), c=0.1)
    torch.testing.assert_close(
        distance_matrix(x, x, c=0.1).double(), exact, rtol=2e-3, atol=4e-3 * offset
    )


@pytest.mark.parametrize("norm", [1 - 1e-7, 1.0, 1.5, 1e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_points_on_and_outside_the_boundary_stay_finite(norm, dtype):
    x = torch.nn.functional.normalize(torch.randn(6, 4, dtype=dtype)) * norm
    x[1], x[2] = -x[0], x[0]
    x[3] = x[0] / norm**2  # the inverse point, where the Möbius denominator is 0
    x.requires_grad_()
    distance = distance_matrix(x, x, c=1.0)
    assert distance.isfinite().all()
    assert (distance <= 2 * math.atanh(1 - 1e-5) * 1.01).all()
    distance.sum().backward()
    assert x.grad.isfinite().all()
    assert rank_matrix(x, x, c=1.0).isfinite().all()


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_rank_key_orders_like_the_distance(c):
    x, y = ball_points(9, 6, c, radius=0.7), ball_points(200, 6, c, radius=0.999)
    distance = HyperbolicDistance(c=c)
    capped = distance_matrix(x, y, c=c)
    assert (capped < 2 / math.sqrt(c) * math.atanh(1 - 1e-5)).all()
    assert torch.equal(distance.rank_key(x, y).argsort(), distance(x, y).argsort())
    argument = (math.sqrt(c) / 2 * capped).tanh()
    assert_close(c * distance.rank_key(x, y), argument.square())


def test_rank_key_tells_pairs_beyond_the_cap_apart():
    x = torch.tensor([[0.999, 0.0]], dtype=F64)
    y = torch.tensor([[-0.999, 0.0], [-0.998, 0.0]], dtype=F64)
    assert distance_matrix(x, y, c=1.0).unique().numel() == 1
    assert rank_matrix(x, y, c=1.0).unique().numel() == 2


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_tangent_space_is_where_the_ball_comes_from(c):
    x = 3 * torch.randn(20, 6, dtype=F64)
    x[0] = 0
    x.requires_grad_()
    there = from_poincare_ball(to_poincare_ball(x, c=c), c=c)
    inside = math.sqrt(c) * x.norm(dim=1) < math.atanh(1 - 1e-3)
    assert inside.any()
    assert_close(there[inside], x[inside])
    assert (there[~inside].norm(dim=1) * math.sqrt(c) <= math.atanh(1 - 1e-3) + 1e-9).all()
    there.sum().backward()
    assert x.grad.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda z: from_poincare_ball(z, c=c), ball_points(5, 4, c).requires_grad_()
    )
    # points further out than the map puts any are pulled in as far
    beyond = torch.nn.functional.normalize(x[1:].detach()) * (1 - 1e-4) / math.sqrt(c)
    length = math.sqrt(c) * from_poincare_ball(beyond, c=c).norm(dim=1)
    assert_close(length, torch.full_like(length, math.atanh(1 - 1e-3)))
    # the hyperbolic distance from the origin is twice the length in the tangent space
    z = ball_points(5, 4, c, radius=0.7)
    far = distance_matrix(torch.zeros(1, 4, dtype=F64), z, c=c)[0]
    assert_close(2 * from_poincare_ball(z, c=c).norm(dim=1), far, tol=1e-4)


# --- precision and interface -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_half_precision_is_computed_in_float32(dtype, autocast):
    x = torch.randn(12, 32).to(dtype)
    x[1] = x[0]
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        distance = HyperbolicDistance()(ToPoincareBall()(x))
    with torch.no_grad():
        expected = HyperbolicDistance()(ToPoincareBall()(x.float()))
    assert distance.dtype == torch.float32
    assert torch.equal(distance, expected)
    distance.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss", [TripletMarginLoss, ContrastiveLoss], ids=["triplet", "contrastive"]
)
def test_distance_works_in_pytorch_metric_learning(loss):
    z = ToPoincareBall()(torch.randn(12, 8, requires_grad=True))
    z.retain_grad()
    labels = torch.arange(4).repeat_interleave(3)
    distance = HyperbolicDistance()
    pairs = BatchHardMiner(distance=distance)(z, labels)
    loss(distance=distance)(z, labels, pairs).backward()
    assert z.grad.isfinite().all()


def test_repr_states_the_arguments():
    assert (
        repr(ToPoincareBall(c=0.2, clip_radius=None)) == "ToPoincareBall(c=0.2, clip_radius=None)"
    )
    assert repr(HyperbolicDistance(c=0.2)) == "HyperbolicDistance(c=0.2)"


X, Y = torch.eye(2), torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ToPoincareBall(c=0), "`c`"),
        (lambda: ToPoincareBall(clip_radius=-1.0), "`clip_radius`"),
        (lambda: HyperbolicDistance(c=-0.1), "`c`"),
        (lambda: HyperbolicDistance(c=math.nan), "`c`"),
        (lambda: ToPoincareBall()(torch.arange(3)), "`x`"),
        (lambda: HyperbolicDistance()(torch.zeros(3)), "`query_emb`"),
        (lambda: HyperbolicDistance()(torch.zeros(3, 2), torch.arange(3)), "`ref_emb`"),
        (lambda: HyperbolicDistance(1.0)(torch.eye(2)), "`query_emb`.*norms below 1 .*norm of 1"),
        (lambda: HyperbolicDistance()(X, 4 * X), "`ref_emb`.*norm of 4"),
        (lambda: retrieval_metrics(4 * X, Y, distance=HyperbolicDistance()), "norm of 4"),
        (lambda: to_poincare_ball(X, c=0), "`c`"),
        (lambda: to_poincare_ball(X, c=1, clip_radius=0), "`clip_radius`"),
        (lambda: distance_matrix(X, X, c=math.nan), "`c`"),
        (lambda: distance_matrix(X, X[:, :1], c=1), "`y` to have 2 columns"),
        (lambda: paired_distance(X, X[:1], c=1), "`y` to have 2 rows"),
        (lambda: rank_matrix(X, X[0], c=1), "`y`"),
        (lambda: rank_factors(X, c=-1), "`c`"),
        (lambda: rank_factors(X.long(), c=1), "`x`"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
