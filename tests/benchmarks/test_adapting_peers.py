"""Relations of the peers of ``bgl.adapt`` against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.adapting import peers, run


def test_self_taught_relations_agree_with_the_definition() -> None:
    x, k = torch.randn(20, 6), 4
    relations = peers.SelfTaught(20, 6, k, 1.0)
    relations.learn(x)
    assert torch.equal(relations.metric(x), x)
    unit = normalize(x)
    order = (unit @ unit.t()).argsort(descending=True).tolist()
    near = [[j for j in row if j != i][:k] for i, row in enumerate(order)]
    mutual = [{j for j in near[i] if i in near[j]} | {i} for i in range(20)]
    batch = [3, 17, 0, 4]
    found = relations(torch.tensor(batch))
    square = [[float((unit[i] - unit[j]).square().sum()) for j in batch] for i in batch]
    mean = sum(map(sum, square)) / 16
    for a, i in enumerate(batch):
        for b, j in enumerate(batch):
            shared = len(mutual[i] & mutual[j])
            overlap = (shared / len(mutual[i]) + shared / len(mutual[j])) / 2
            expected = (math.exp(-square[a][b] / mean) + overlap) / 2
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-5)


def test_clusters_and_views_are_classes() -> None:
    x = torch.eye(2, 6).repeat_interleave(20, 0) + 0.01 * torch.randn(40, 6)
    clusters = peers.PseudoLabels(40, 6, 9, 1.0)
    clusters.learn(x)
    batch = torch.tensor([0, 19, 20, 39])
    assert clusters(batch).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    views = peers.TwoViews(40, 6, 9, 1.0)
    assert views(torch.tensor([5, 5, 7])).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    labels = torch.arange(40) % 3
    known = peers.Labels(labels, 40, 6, 9, 1.0)
    known.learn(x)
    assert known(torch.tensor([0, 3, 4])).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert torch.equal(known.refined @ known.refined.t() > 0, labels[:, None] == labels)


def rows(
    arm: str, readout: str, seed: int | None, other: float | None, own: float
) -> list[run.Row]:
    """Rows of both halves, all of whose metrics are the same."""
    return [
        {"arm": arm, "seed": seed, "readout": readout, "half": half}
        | {"metrics": dict.fromkeys(run.SHOWN, value)}
        for half, value in (("other", other), ("own", own))
        if value is not None
    ]


def test_the_table_compares_with_the_best_readout_of_the_start_and_seed_by_seed() -> None:
    found = [
        *rows(run.START, "output", None, 0.30, 0.40),
        *rows(run.START, run.METRIC, None, 0.40, 0.30),
        *rows(run.START, "refined", None, None, 0.90),
    ]
    for seed in (0, 1):
        found += rows("graph", run.METRIC, seed, 0.50 + seed / 10, 0.50)
        found += rows("k-means", run.METRIC, seed, 0.45 + seed / 10, 0.60)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in run.table(found).splitlines()
    ]
    table = {line[0]: line[1:] for line in lines}
    assert table["start, output"][4:] == ["-10.0", "40.0", "40.0", "40.0", "+0.0"]
    assert table["start, refined"][1:] == [""] * 4 + ["90.0"] * 3 + ["+50.0"]
    assert table["graph"][0] == "2"
    assert table["graph"][4].startswith("+15.0 ± ")
    assert table["graph − k-means"][1] == "+5.0 ± 0.0"
    assert table["graph − k-means"][5] == "-10.0 ± 0.0"
