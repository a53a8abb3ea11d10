"""Estimating without labels what refining changes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl import forecast, refine
from bgl.forecasting import ERROR, RULE, SETTINGS, WARN_BELOW, Setting, estimate, signals
from bgl.metrics import retrieval_metrics

clusters = partial(helpers.clusters, classes=20, channels=24)


def ranked(x: Tensor, k: int) -> list[list[int]]:
    """The k nearest others of every item, one item after the other."""
    x = normalize(x)
    lists = []
    for i, item in enumerate(x):
        order = sorted(range(len(x)), key=lambda j: -float(x[j] @ item))
        lists.append([j for j in order if j != i][:k])
    return lists


def precision(found: list[list[int]], right: list[list[int]]) -> float:
    total = 0.0
    for ranking, answers in zip(found, right, strict=True):
        hits = 0
        for rank, j in enumerate(ranking, 1):
            if j in answers:
                hits += 1
                total += hits / rank / len(ranking)
    return total / len(found)


def same_nearest(one: list[list[int]], other: list[list[int]]) -> float:
    return sum(a[0] == b[0] for a, b in zip(one, other, strict=True)) / len(one)


def test_signals_by_definition() -> None:
    x, k, epsilon = clusters(), 4, 0.4
    unit = normalize(x)
    _, _, axes = np.linalg.svd((unit - unit.mean(0)).numpy(), full_matrices=False)
    parts = (unit - unit.mean(0)) @ torch.from_numpy(axes).t()
    halves = parts[:, ::2], parts[:, 1::2]
    before = [ranked(half, k) for half in halves]
    after = [ranked(refine(half, k=k, epsilon=epsilon), k) for half in halves]
    order, plain = (
        (precision(one, other) + precision(other, one)) / 2 for one, other in (after, before)
    )
    nearest = ranked(x, 3)
    mutual = [i in nearest[j] for i, own in enumerate(nearest) for j in own]
    count = np.bincount(np.array(ranked(x, k)).flatten(), minlength=len(x))
    expected = {
        "nearest_change": same_nearest(*after) - same_nearest(*before),
        "order": order,
        "order_change": order - plain,
        "mixed_reciprocity": epsilon * sum(mutual) / len(mutual),
        "mean_cosine": float((unit @ unit.t()).mean()),
        "hubs": float((((count - count.mean()) / count.std()) ** 3).mean()),
        "log_k": math.log(k),
    }
    assert signals(x, k=k, epsilon=epsilon) == pytest.approx(expected)


def test_the_rule_is_linear_in_the_signals() -> None:
    found = signals(clusters())
    for metric, terms in RULE.items():
        change = terms["constant"] + sum(
            weight * found[name] for name, weight in terms.items() if name != "constant"
        )
        assert estimate(found)[metric] == (pytest.approx(change), ERROR[metric])


def test_order_rotation_and_length_do_not_matter() -> None:
    x = clusters()
    expected = signals(x)
    turn = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    length = torch.logspace(-3, 3, len(x), dtype=torch.float64)[:, None]
    for other in (x @ turn, x[torch.randperm(len(x))], x * length):
        assert signals(other) == pytest.approx(expected)


def nuisance(strength: float) -> tuple[Tensor, Tensor]:
    """Classes in a space with four strong directions that say nothing about them."""
    x = clusters(classes=60, size=8, channels=48, noise=0.7)
    x[:, :4] += strength * torch.randn(len(x), 4, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(60).repeat_interleave(8)


def test_a_gain_is_expected_where_there_is_one() -> None:
    x, y = nuisance(4.0)
    found = forecast(x)
    gain = retrieval_metrics(refine(x), y)["map@r"] - retrieval_metrics(x, y)["map@r"]
    assert gain > 0.05
    assert found.changes["map@r"].change > 0.02
    assert not found.harmful
    assert found.recommended is not None
    assert "Recommended" in str(found)
    assert "Warning" not in str(found)


def test_a_warning_where_classes_are_smaller_than_the_neighbourhood() -> None:
    x = clusters(classes=200, size=2, channels=24, noise=0.6)
    y = torch.arange(200).repeat_interleave(2)
    found = forecast(x, k=30, epsilon=1.0, shrinkage=None)
    after = retrieval_metrics(refine(x, k=30, epsilon=1.0, shrinkage=None), y)["map@r"]
    assert after < retrieval_metrics(x, y)["map@r"] - 0.05
    assert found.harmful
    assert "Warning" in str(found)
    assert found.recommended != found.setting


def test_noise_promises_nothing() -> None:
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    found = forecast(x)
    assert found.harmful
    assert found.recommended is None
    assert str(found).endswith("Recommended: do not refine.")


def test_the_recommended_setting_is_one_that_was_tried() -> None:
    found = forecast(nuisance(4.0)[0], k=5, epsilon=0.3)
    assert found.setting == Setting(5, 0.3, 0.1)
    assert found.recommended in (*SETTINGS, found.setting)
    refine(clusters(), **Setting()._asdict())  # the options of refine


def test_small_galleries_and_duplicates() -> None:
    assert forecast(clusters()[:9], k=3).setting.k == 3
    x = clusters().repeat(3, 1)
    assert all(math.isfinite(each.change) for each in forecast(x).changes.values())
    assert WARN_BELOW.keys() <= RULE.keys()


@pytest.mark.parametrize(
    ("gallery", "options", "message"),
    [
        (torch.ones(30, 8), {}, "`gallery` to vary in at least two directions"),
        (torch.eye(3)[:, :2] + 1, {"k": 1}, r"at least 4 rows and 2 columns, but got \[3, 2\]"),
        (torch.rand(30, 1) + 1, {}, r"at least 4 rows and 2 columns, but got \[30, 1\]"),
        (torch.zeros(30, 8), {}, "`gallery` to have a direction"),
        (torch.full((30, 8), math.nan), {}, "`gallery` to be finite"),
        (torch.ones(8), {}, "`gallery` to be a floating-point tensor"),
        (clusters()[:7], {}, "`k` to be smaller than the gallery, which has 7 rows, got 7"),
        (clusters(), {"k": 0}, "`k`"),
        (clusters(), {"epsilon": 2.0}, "`epsilon`"),
        (clusters(), {"shrinkage": 0.0}, "`shrinkage`"),
    ],
)
def test_bad_input(gallery: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forecast(gallery, **options)
