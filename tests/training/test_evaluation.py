"""Several processes measure what one does, each a share of the queries."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from forks import connected
from torch import Tensor

from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.training.evaluation import Metrics, evaluate

PROCESSES = 3
DISTANCE = HyperbolicDistance(c=0.5)


def measured() -> list[dict[str, Metrics]]:
    """Own gallery and another; then fewer queries than processes."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[dict[str, Tensor], Tensor]:
        labels = torch.randint(12, (n,), generator=generator)
        x = torch.randn(n, 6, generator=generator) + torch.eye(12, 6)[labels]
        return {"backbone": x, "head": ToPoincareBall(0.5)(x)}, labels

    tested, gallery = draw(151), draw(80)
    few = {name: x[:2] for name, x in tested[0].items()}
    return [
        evaluate(*tested, (1, 4, 100), DISTANCE),
        evaluate(*tested, (1, 4), DISTANCE, *gallery),
        evaluate(few, tested[1][:2], (1,), DISTANCE, *gallery),
    ]


def test_processes_measure_exactly_what_one_does(tmp_path: Path) -> None:
    def measure(rank: int) -> None:
        dist.init_process_group("gloo")
        (tmp_path / f"{rank}.json").write_text(json.dumps(measured()))
        dist.destroy_process_group()

    assert connected(measure, tmp_path, PROCESSES) == [0] * PROCESSES
    expected = measured()
    for rank in range(PROCESSES):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
