r"""The Poincaré ball of curvature :math:`-c`: free functions, and thin modules over them.

All of it is computed in float32 or wider, with autocast switched off: half-precision inputs are
converted first, and the results stay float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor, nn

from bgl._checks import check_floating, check_matrix, check_real, readable
from bgl._precision import at_least_float32, central_point, distance_factors, exact_matmul

# The constants of the published implementation, which the results follow to the last digits.
_NORM_EPS = 1e-5  # added to a norm before dividing by it
_BALL_EPS = 1e-3  # points stay this far (relatively) inside the ball
_RATIO_EPS = 1e-5  # distance of the artanh argument from 1, and offset of the Möbius denominator

# |x-y|² from inner products carries up to some 10 units of rounding of |x|² + |y|².
_ROUNDING = 16.0

_ANY_RANK = tuple(range(1, 65))  # as far as PyTorch goes


def to_poincare_ball(x: Tensor, *, c: float, clip_radius: float | None = None) -> Tensor:
    r"""Map rows of a Euclidean space into the Poincaré ball.

    Rows longer than ``clip_radius`` :math:`r` are shortened to it, and then follow the
    exponential map at the origin:

    .. math::
        x \leftarrow x \min(1, r / (|x| + 10^{-5})), \qquad
        z = \tanh(\sqrt{c}\,|x|) \frac{x}{\sqrt{c}\,|x|}, \qquad
        |z| \le (1 - 10^{-3}) / \sqrt{c}

    From `"Hyperbolic Vision Transformers: Combining Improvements in Metric Learning"
    <https://arxiv.org/abs/2203.10833>`_ (Ermolov et al., CVPR 2022), section 3.1 and the released
    code; the clipping from `"Clipped Hyperbolic Classifiers Are Super-Hyperbolic Classifiers"
    <https://arxiv.org/abs/2107.11472>`_ (Guo et al., CVPR 2022).

    Args:
        x: Points ``[..., C]``, any floating-point type.
        c: The ball has curvature :math:`-c` and radius :math:`1/\sqrt{c}`.
        clip_radius: The largest norm before the map; ``None`` leaves the norms as they are.

    Returns:
        Points of the same shape, at least float32. A zero row stays zero, with a finite gradient.

    Example:
        >>> to_poincare_ball(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), c=1.0, clip_radius=1.0)
        tensor([[0.4570, 0.6093],
                [0.0000, 0.0000]])
    """
    _check_positive(c)
    check_floating(x, "x", "[..., C]", _ANY_RANK)
    if clip_radius is not None:
        _check_positive(clip_radius, "clip_radius")
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        norm, shrink = _norm(x), None
        if clip_radius is not None:
            shrink = F.hardtanh(clip_radius / (norm + _NORM_EPS), 0.0, 1.0)
            norm = norm * shrink
        norm = F.threshold(norm, _NORM_EPS, _NORM_EPS)
        scaled = math.sqrt(c) * norm
        factor = scaled.tanh() / scaled
        if clip_radius is None or math.tanh(math.sqrt(c) * clip_radius) > 1 - _BALL_EPS:
            factor = torch.minimum(factor, (1 - _BALL_EPS) / math.sqrt(c) / norm)
        return x * (factor if shrink is None else shrink * factor)


def from_poincare_ball(z: Tensor, *, c: float) -> Tensor:
    r"""Map points of the Poincaré ball into the tangent space at its origin.

    The logarithmic map, by which :func:`to_poincare_ball` without clipping is undone:

    .. math::
        x = \operatorname{artanh}(\sqrt{c}\,|z|) \frac{z}{\sqrt{c}\,|z|}

    Args:
        z: Points ``[..., C]`` of the ball, any floating-point type. Those further out than
            :func:`to_poincare_ball` puts any are pulled in as far.
        c: The ball has curvature :math:`-c`.

    Returns:
        Vectors of the same shape, at least float32. A zero row stays zero.

    Example:
        >>> from_poincare_ball(torch.tensor([[0.5, 0.0]]), c=1.0)
        tensor([[0.5493, 0.0000]])
    """
    _check_positive(c)
    check_floating(z, "z", "[..., C]", _ANY_RANK)
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_float32(z)
        scaled = math.sqrt(c) * _norm(z).clamp_min(_NORM_EPS)
        return scaled.clamp_max(1 - _BALL_EPS).atanh() * z / scaled


def distance_matrix(x: Tensor, y: Tensor, *, c: float) -> Tensor:
    r"""Compute the hyperbolic distances between all rows of ``x`` and all rows of ``y``.

    .. math::
        d(x, y) = \frac{2}{\sqrt{c}} \operatorname{artanh}(\sqrt{c}\, |(-x) \oplus_c y|)

    (`"Hyperbolic Neural Networks" <https://arxiv.org/abs/1805.09112>`_, Ganea et al., NeurIPS 2018,
    section 2.4; Ermolov et al. 2022, equation 2), from inner products and norms alone, so that no
    ``[Q, R, C]`` tensor exists:

    .. math::
        |(-x) \oplus_c y| = \frac{\sqrt{\delta}\, |x - y|}{\delta + 10^{-5}}, \qquad
        \delta = c\,|x - y|^2 + (1 - c|x|^2)(1 - c|y|^2)

    :math:`\delta` is the Möbius denominator :math:`1 - 2c\langle x, y\rangle + c^2|x|^2|y|^2`
    without its cancellation; the :math:`10^{-5}` is the released code's.

    **Close points.** :math:`|x - y|^2` is exact to a few roundings of the squared spread of the
    points about the mean of ``y``. Pairs below that (in float32, closer than about 0.002 of their
    distance from the mean; in float64, 1e-7) count as coincident: distance and gradient are 0.

    **Far points.** The artanh argument stops at :math:`1 - 10^{-5}`, which caps the distance at
    :math:`12.2/\sqrt{c}`. As in the released code, the gradient passes that cap as if the
    argument had the capped value: pairs beyond it still attract and repel each other. Points on
    or outside the boundary :math:`c|x|^2 = 1` are no points of the ball; their distances are
    meaningless, but finite.

    Args:
        x: Points ``[Q, C]`` of the ball, any floating-point type.
        y: Points ``[R, C]`` of the ball.
        c: The ball has curvature :math:`-c`.

    Returns:
        Distances ``[Q, R]``, at least float32.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
        >>> distance_matrix(points, points, c=1.0)
        tensor([[0.0000, 1.0986],
                [1.0986, 0.0000]])
    """
    _check_pair(x, y, c)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _one_type(x, y)
        # A median would be too slow for every training step.
        squared, scale = _squared_distances(x, y, y.detach().mean(dim=0))
        rounding = _ROUNDING * torch.finfo(squared.dtype).eps * scale.detach()
        squared = squared.masked_fill(squared <= rounding, 0.0)
        x_inside = _inside(x, c)
        y_inside = x_inside if y is x else _inside(y, c)
        return _Distance.apply(squared, x_inside * y_inside.T, c)


def paired_distance(x: Tensor, y: Tensor, *, c: float) -> Tensor:
    """Compute the hyperbolic distances between each row of ``x`` and the same row of ``y``.

    The formula of :func:`distance_matrix`, from the differences themselves: close points keep
    all their digits.

    Args:
        x: Points ``[N, C]`` of the ball, any floating-point type.
        y: Points ``[N, C]`` of the ball.
        c: The ball has curvature ``-c``.

    Returns:
        Distances ``[N]``, at least float32.

    Example:
        >>> paired_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.0]]), c=1.0)
        tensor([1.0986])
    """
    _check_pair(x, y, c)
    if len(x) != len(y):
        raise ValueError(f"Expected argument `y` to have {len(x)} rows like `x`, but got {len(y)}")
    with torch.autocast(x.device.type, enabled=False):
        x, y = _one_type(x, y)
        return _Distance.apply(_squared_norm(x - y), _inside(x, c) * _inside(y, c), c).squeeze(-1)


@torch.no_grad()
def rank_matrix(x: Tensor, y: Tensor, *, c: float) -> Tensor:
    """Compute a cheap matrix that orders pairs as :func:`distance_matrix` does; no gradient.

    It is the square of the artanh argument before the cap, divided by ``c``, so it also orders
    the pairs beyond the cap. Pairs that are closer than the rounding of an inner product come out
    in any order: rank in float64 where that matters.

    Args:
        x: Points ``[Q, C]`` of the ball, any floating-point type.
        y: Points ``[R, C]`` of the ball.
        c: The ball has curvature ``-c``.

    Returns:
        Keys ``[Q, R]``, smaller for closer pairs.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, 0.8]])
        >>> rank_matrix(points[:1], points, c=1.0).argsort()
        tensor([[0, 1, 2]])
    """
    _check_pair(x, y, c)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _one_type(x, y)
        squared = _squared_distances(x, y, central_point(y))[0].clamp_min_(0)
        inside = _inside(x, c) * _inside(y, c).T
        delta = inside.add_(squared, alpha=c).clamp_min_(0)
        return squared * delta / (delta + _RATIO_EPS).square_()


@torch.no_grad()
def rank_factors(x: Tensor, *, c: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute factors whose inner products order pairs (almost) as :func:`rank_matrix` does.

    .. math::
        \langle l(x), r(y) \rangle = \frac{c\,|x - y|^2}{(1 - c|x|^2)(1 - c|y|^2)}

    The distance is a monotone function of it, were it not for the :math:`\varepsilon = 10^{-5}` in
    the Möbius denominator. With it the keys of ``y`` and ``z`` are in the order of their products
    if these differ by more than the share :math:`(1 + b_x \max(b_y, b_z))^2 - 1` of the smaller
    one, :math:`b_x = \sqrt\varepsilon / (1 - c|x|^2)`.

    Args:
        x: Points ``[N, C]`` of the ball, any floating-point type.
        c: The ball has curvature :math:`-c`.

    Returns:
        :math:`l(x)` and :math:`r(x)` ``[N, C + 2]``, of equal norms, and :math:`b_x` ``[N, 1]``
        (infinite where x is no point of the ball).

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.8]])
        >>> left, right, _ = rank_factors(points, c=1.0)
        >>> left[:1] @ right.T
        tensor([[0.0000, 0.3333, 1.7778]])
    """
    _check_positive(c)
    check_matrix(x)
    x = math.sqrt(c) * at_least_float32(x)
    inside = 1 - _squared_norm(x)
    left, right = (factor / inside for factor in distance_factors(x))
    return left, right, torch.where(inside > 0, math.sqrt(_RATIO_EPS) / inside, torch.inf)


class ToPoincareBall(nn.Module):
    r"""Map embeddings into the Poincaré ball: :func:`to_poincare_ball` as the end of a head.

    Args:
        c: The ball has curvature :math:`-c` (> 0).
        clip_radius: The largest norm before the map (> 0), or ``None`` for no clipping. Ermolov
            et al. (CVPR 2022) take 2.3 with ``c = 0.1``.

    Shapes:
        - input: ``[..., C]``
        - output: ``[..., C]``, at least float32

    Raises:
        ValueError: If ``c`` or ``clip_radius`` is not positive, or the input not floating-point.

    Example:
        >>> ToPoincareBall()(torch.tensor([[30.0, 40.0]])).norm()
        tensor(1.9651)
    """

    def __init__(self, c: float = 0.1, clip_radius: float | None = 2.3) -> None:
        super().__init__()
        self.c = _check_positive(c)
        if clip_radius is not None:
            clip_radius = _check_positive(clip_radius, "clip_radius")
        self.clip_radius = clip_radius

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., C]`` into the ball."""
        return to_poincare_ball(x, c=self.c, clip_radius=self.clip_radius)

    def extra_repr(self) -> str:
        return f"c={self.c}, clip_radius={self.clip_radius}"


class HyperbolicDistance(BaseDistance):  # type: ignore[misc]
    r"""Distance in the Poincaré ball, for any loss or miner of pytorch-metric-learning.

    :func:`distance_matrix` (formula, accuracy and limits are stated there) behind the
    library's interface: ``distance(query, reference)`` gives all pairs,
    ``distance.pairwise_distance(query, reference)`` gives row by row.

    Args:
        c: The ball has curvature :math:`-c` (> 0).

    Shapes:
        - input: query ``[Q, C]``, reference ``[R, C]`` (the query itself by default): points
          of the ball, as :class:`ToPoincareBall` gives them
        - output: ``[Q, R]``, at least float32

    Raises:
        ValueError: If ``c`` is not positive, a point set not a floating-point matrix, or a point
            not in the ball. That last check reads the points, which on a GPU would wait for it:
            there, and in a compiled graph, distances from such points are meaningless but finite.

    Example:
        >>> distance = HyperbolicDistance(c=1.0)
        >>> distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.8]]))
        tensor([[1.0986, 2.1972]])
    """

    def __init__(self, c: float = 0.1) -> None:
        super().__init__(normalize_embeddings=False, is_inverted=False)
        self.c = _check_positive(c)

    def check_shapes(self, query_emb: Tensor, ref_emb: Tensor | None) -> None:
        """Raise unless both are sets of points of the ball (called by the library)."""
        _check_pair(
            query_emb, query_emb if ref_emb is None else ref_emb, self.c, ("query_emb", "ref_emb")
        )
        _check_in_ball(query_emb, "query_emb", self.c)
        if ref_emb is not None:
            _check_in_ball(ref_emb, "ref_emb", self.c)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Compute distances ``[Q, R]``."""
        return distance_matrix(query_emb, ref_emb, c=self.c)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Compute distances ``[N]`` between equal rows of two ``[N, C]`` matrices."""
        return paired_distance(query_emb, ref_emb, c=self.c)

    def rank_key(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Compute keys ``[Q, R]`` in the order of the distances, without their cost."""
        return rank_matrix(query_emb, ref_emb, c=self.c)

    def rank_factors(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute factors whose products order pairs as distances do (:func:`rank_factors`)."""
        _check_in_ball(points, "points", self.c)
        return rank_factors(points, c=self.c)

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _check_positive(value: float, name: str = "c") -> float:
    """Raise unless ``value`` is a positive number; return it."""
    if torch.compiler.is_compiling():  # it may be a symbol, which cannot be asked if it is finite
        return value
    return check_real(value, name, minimum=0, exclusive=True)


def _check_pair(x: Tensor, y: Tensor, c: float, names: tuple[str, str] = ("x", "y")) -> None:
    _check_positive(c)
    check_matrix(x, names[0], "[Q, C]")
    check_matrix(y, names[1], "[R, C]")
    if x.size(1) != y.size(1):
        raise ValueError(
            f"Expected argument `{names[1]}` to have {x.size(1)} columns like `{names[0]}`, "
            f"but got {y.size(1)}"
        )


def _check_in_ball(x: Tensor, name: str, c: float) -> None:
    """Raise if a point lies outside of the ball, where points may be looked at."""
    if readable(x) and len(x):
        longest = float(_norm(at_least_float32(x.detach())).max())
        if longest**2 * c >= 1:
            raise ValueError(
                f"Expected argument `{name}` to hold points of the Poincaré ball, of norms below "
                f"{1 / math.sqrt(c):.4g} (c = {c:g}), but got a norm of {longest:.4g}: end the "
                "head in bgl.hyperbolic.ToPoincareBall"
            )


def _one_type(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to the wider of their types, at least float32."""
    wider = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(wider), y.to(wider)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _squared_norm(x: Tensor) -> Tensor:
    return x.square().sum(dim=-1, keepdim=True)


def _inside(x: Tensor, c: float) -> Tensor:
    """1 - c|x|²."""
    return 1 - c * _squared_norm(x)


def _squared_distances(x: Tensor, y: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """|x-y|² of all pairs, and the size of the terms that it is the difference of.

    Distances do not change with the origin; a central one loses the fewest digits.
    """
    same = y is x
    x = x - centre
    y = x if same else y - centre
    x_norm = _squared_norm(x)
    scale = x_norm + (x_norm if same else _squared_norm(y)).T
    return torch.add(scale, exact_matmul(x, y.T), alpha=-2), scale


class _Distance(torch.autograd.Function):
    r"""Distance from :math:`s = |x - y|^2 \ge 0` and :math:`\delta - cs`, with few passes.

    At a fixed :math:`\delta` or :math:`s`, with :math:`r = \tanh(\sqrt c\, d / 2)`,
    :math:`w^{-1} = (1 - r^2) (\delta + \varepsilon)` and :math:`q = \sqrt{\delta / s}`,

    .. math::
        \frac{\partial d}{\partial s} = w q, \qquad
        \frac{\partial d}{\partial \delta}
            = \frac wq \cdot \frac{\varepsilon - \delta}{\varepsilon + \delta}.

    Beyond the cap the capped d is in w, and all of the rest as it is.
    """

    @staticmethod
    def forward(squared: Tensor, inside: Tensor, c: float) -> Tensor:
        delta = torch.add(inside, squared, alpha=c).clamp_(min=0)
        ratio = (delta * squared).sqrt_().div_(delta.add_(_RATIO_EPS)).mul_(math.sqrt(c))
        return ratio.clamp_(max=1 - _RATIO_EPS).atanh_().mul_(2 / math.sqrt(c))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        squared, inside, ctx.c = inputs
        ctx.save_for_backward(squared, inside, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # in differentiable operations, for derivatives of a higher order
        squared, inside, distance = ctx.saved_tensors
        delta = torch.add(inside, squared, alpha=ctx.c)
        flat = delta * squared <= 0  # coincident points, and those outside of the ball
        delta, squared = delta.masked_fill(flat, 1.0), squared.masked_fill(flat, 1.0)
        q = (delta / squared).sqrt()
        wide = delta + _RATIO_EPS
        ratio = (math.sqrt(ctx.c) / 2 * distance).tanh()
        w = grad / torch.addcmul(wide, wide, ratio.square(), value=-1)
        w = w.masked_fill(flat, 0.0)
        by_delta = w * (2 * _RATIO_EPS - wide) / (wide * q)
        return torch.add(w * q, by_delta, alpha=ctx.c), by_delta, None
