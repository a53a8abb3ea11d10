"""Will refining help? Its effect on retrieval, estimated without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bgl._neighbors import exact_search, without_self
from bgl.refinement import RefinedGallery, directions

__all__ = ["Estimate", "Forecast", "Setting", "forecast", "signals"]

AXES = 128  # principal axes that are looked at; those behind hold little but noise
VANISHING = 1e-5  # of a unit vector: below it lies the rounding of float32
CLOSEST = 3  # neighbours of which reciprocity is asked
NAMES = {"recall@1": "R@1", "recall@8": "R@8", "map@r": "MAP@R"}

# Fitted by `python -m benchmarks.refinement.forecast FEATURES`, which prints this file.
FITTED = json.loads(Path(__file__).with_name("forecasting.json").read_text(encoding="utf-8"))
RULE: dict[str, dict[str, float]] = FITTED["RULE"]
ERROR: dict[str, float] = FITTED["ERROR"]
WARN_BELOW: dict[str, float] = FITTED["WARN_BELOW"]


class Setting(NamedTuple):
    """Options of :func:`bgl.refine`: ``refine(x, **setting._asdict())``."""

    k: int = 7
    epsilon: float = 0.5
    shrinkage: float | None = 0.1

    def lowered(self, n: int) -> Setting:
        """Take fewer neighbours where ``n`` images have no more."""
        return self._replace(k=min(self.k, max(1, n - 1)))


# From a few neighbours to many, and from the metric alone (ε = 0) to an even mix.
SETTINGS = (Setting(7, 0.0), Setting(7, 0.25), Setting(3), Setting(7), Setting(15))
#: Loss of Recall@8, as a fraction, that a recommended setting may be expected to bring.
TOLERANCE = 0.005


class Estimate(NamedTuple):
    """An estimated change of a metric, and the standard deviation of its error; fractions."""

    change: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.change:+.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True)
class Forecast:
    """What :func:`forecast` expects of refining; printed, it is a plain sentence or two.

    Args:
        setting: The options asked about.
        changes: The estimated change of each metric: "recall@1", "recall@8", "map@r".
        recommended: The best of several settings; None: better not refine.
        signals: What the estimate was made of.
    """

    setting: Setting
    changes: dict[str, Estimate]
    recommended: Setting | None
    signals: dict[str, float]

    @property
    def harmful(self) -> bool:
        """Is a loss of Recall@1 or MAP@R likely?"""
        return any(self.changes[name].change < below for name, below in WARN_BELOW.items())

    def __str__(self) -> str:
        parts = ", ".join(f"{NAMES[name]} by {found}" for name, found in self.changes.items())
        text = f"Refining ({_words(self.setting)}) is expected to change {parts} points."
        if self.harmful:
            text += " Warning: it is likely to do harm."
        if self.recommended is None:
            return f"{text} Recommended: do not refine."
        if self.recommended == self.setting:
            return f"{text} Recommended: this setting."
        return f"{text} Recommended: {_words(self.recommended)}."


@torch.no_grad()
def forecast(
    gallery: Tensor, *, k: int = 7, epsilon: float = 0.5, shrinkage: float | None = 0.1
) -> Forecast:
    r"""Estimate without labels how :func:`bgl.refine` will change the retrieval in a gallery.

    The principal axes of the embeddings are dealt out to two halves in turn, two *views* of each
    image. Where the images of a class look alike, both views find the same neighbours. Each view
    is refined by itself: if that helps, the two agree more often than before, because what they
    have in common is the class rather than the noise of their own axes.

    The change of each metric is a linear function of a few :func:`signals`. The coefficients,
    :data:`RULE`, were fitted to cases with known labels; the error
    stated is that of data sets and encoders that were left out of the fit. Recommended is, among
    :data:`SETTINGS` and the one asked about, the highest estimate of MAP@R of those that are
    neither harmful nor expected to lose more than half a point of Recall@8.

    Args:
        gallery: Embeddings, compared by cosine.
        k, epsilon, shrinkage: The setting to ask about, see :class:`bgl.RefinedGallery`.

    Shapes:
        - ``gallery`` [N, C], C ≥ 2

    Raises:
        ValueError: As :class:`bgl.RefinedGallery`, or if the embeddings hardly vary.

    Example:
        >>> found = forecast(torch.randn(100, 16), k=5)
        >>> sorted(found.changes)
        ['map@r', 'recall@1', 'recall@8']
    """
    views = _Views(gallery)
    asked = Setting(k, epsilon, shrinkage)
    estimates = {asked: views.signals(asked)}
    for setting in SETTINGS:
        if setting.k < len(views) and setting not in estimates:
            estimates[setting] = views.signals(setting)
    everything = [
        Forecast(setting, estimate(found), None, found) for setting, found in estimates.items()
    ]
    return Forecast(asked, everything[0].changes, recommended(everything), everything[0].signals)


def recommended(tried: Iterable[Forecast]) -> Setting | None:
    fit = [
        each
        for each in tried
        if not each.harmful
        and each.changes["map@r"].change > 0
        and each.changes["recall@8"].change >= -TOLERANCE
    ]
    return max(fit, key=lambda each: each.changes["map@r"].change).setting if fit else None


def signals(
    gallery: Tensor, *, k: int = 7, epsilon: float = 0.5, shrinkage: float | None = 0.1
) -> dict[str, float]:
    r"""Compute what :func:`forecast` looks at.

    - ``nearest_change``: how much more often the two views have the same nearest item after
      refining;
    - ``order``: mean average precision of a refined view's ``k`` nearest items, with those of the
      other one as the right answers, and ``order_change``: how much it rose by refining;
    - ``mixed_reciprocity``: ε times the share of the three nearest items that have the item among
      their own three;
    - ``hubs``: the skewness of how often an item is among the ``k`` nearest of others;
    - ``mean_cosine``: of all pairs; a metric takes out what all embeddings have in common;
    - ``log_k``.
    """
    return _Views(gallery).signals(Setting(k, epsilon, shrinkage))


class _Views:
    """Two views of a gallery, and what does not depend on the setting."""

    def __init__(self, gallery: Tensor) -> None:
        x = directions(gallery, "gallery")
        if x.size(1) < 2 or len(x) < 4:
            raise ValueError(
                "Expected argument `gallery` to have at least 4 rows and 2 columns, "
                f"but got {list(x.shape)}"
            )
        self.x = x
        centered = x - x.mean(0)
        axes = torch.linalg.eigh(centered.t() @ centered)[1].flip(1)[:, : min(AXES, len(x) - 1)]
        parts = centered @ axes
        halves = parts[:, 0::2], parts[:, 1::2]
        # what has no direction in a view cannot be compared there
        seen = (halves[0].norm(dim=1) > VANISHING) & (halves[1].norm(dim=1) > VANISHING)
        self.halves = tuple(half[seen] for half in halves)
        if len(self.halves[0]) < 4:
            raise ValueError(
                "Expected argument `gallery` to vary in at least two directions, but got "
                f"{len(x)} rows of which {len(self.halves[0])} do"
            )
        self.mean_cosine = float(x.mean(0).square().sum())
        near = _nearest(x, min(CLOSEST, len(x) - 1))
        mutual = (near[near] == torch.arange(len(x), device=x.device)[:, None, None]).any(2)
        self.reciprocity = float(mutual.double().mean())
        self._known: dict[int, tuple[list[Tensor], float, float]] = {}

    def plain(self, k: int) -> tuple[list[Tensor], float, float]:
        """The neighbours in both views as they are, their agreement, and how uneven they are."""
        if k not in self._known:
            near = [_nearest(half, k) for half in self.halves]
            self._known[k] = near, _order(*near), _skewness(_nearest(self.x, k))
        return self._known[k]

    def signals(self, setting: Setting) -> dict[str, float]:
        k, epsilon, shrinkage = setting
        refined = [RefinedGallery(x, k, epsilon, shrinkage=shrinkage) for x in self.halves]
        after = [_nearest(each.embeddings, k) for each in refined]
        before, plain, hubs = self.plain(k)
        order = _order(*after)
        return {
            "nearest_change": _same_nearest(*after) - _same_nearest(*before),
            "order": order,
            "order_change": order - plain,
            "mixed_reciprocity": epsilon * self.reciprocity,
            "hubs": hubs,
            "mean_cosine": self.mean_cosine,
            "log_k": math.log(k),
        }

    def __len__(self) -> int:
        return len(self.halves[0])


def _nearest(x: Tensor, k: int) -> Tensor:
    x = torch.nn.functional.normalize(x)
    return without_self(exact_search(x, x, k + 1))


def _same_nearest(one: Tensor, other: Tensor) -> float:
    return float((one[:, 0] == other[:, 0]).double().mean())


def _order(one: Tensor, other: Tensor) -> float:
    """Agreement of two views' rankings [N, k], each taken as the right answers of the other."""
    return (_precision(one, other) + _precision(other, one)) / 2


def _precision(found: Tensor, right: Tensor) -> float:
    """Mean average precision of rankings [N, k], with the items [N, k] as right answers."""
    k = found.size(1)
    hit = torch.stack([(column[:, None] == right).any(1) for column in found.t()], 1).double()
    rank = torch.arange(1, k + 1, device=found.device)
    return float((hit * hit.cumsum(1) / rank).sum(1).mean() / k)


def _skewness(near: Tensor) -> float:
    """Of the number of lists [N, k] that each item is in; 0 where all are in equally many."""
    count = near.flatten().bincount(minlength=len(near)).double()
    spread = count.std(correction=0)
    return 0.0 if spread == 0 else float(((count - count.mean()) / spread).pow(3).mean())


def estimate(found: dict[str, float]) -> dict[str, Estimate]:
    """Apply the rule to the signals of a setting."""
    return {
        metric: Estimate(sum(c * found.get(name, 1.0) for name, c in terms.items()), ERROR[metric])
        for metric, terms in RULE.items()
    }


def _words(setting: Setting) -> str:
    words = f"k = {setting.k}, epsilon = {setting.epsilon:g}"
    return words if setting.shrinkage == 0.1 else f"{words}, shrinkage = {setting.shrinkage}"
