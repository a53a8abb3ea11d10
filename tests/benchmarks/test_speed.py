"""benchmarks/speed at tiny sizes: all sides of every case agree, and the page is filled."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import program

from benchmarks.speed import run as speed
from benchmarks.speed import step
from benchmarks.speed.case import Case, Scale
from benchmarks.speed.cases import CASES
from benchmarks.speed.measure import disagreement, rows_of
from bgl.models import create_backbone

pytest.importorskip("faiss")

SMALL = Scale(small=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_sides_of_a_case_agree(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse CSR is in beta
        sides, exact = case.build(SMALL), case.build(replace(SMALL, dtype=torch.float64))
        for peer in (peer for peer in sides.peers if peer.installed):
            precise = exact if peer.tolerance <= 1e-6 else sides
            assert disagreement(precise, peer) <= peer.tolerance, peer.name


@pytest.mark.slow
def test_one_run_fills_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    names = ("machine", "peers", "formulas", "step", "growth")
    page.write_text("\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names))
    words = ["--small", "--repeats", "1", "--only", "conv", "update", "--page", str(page)]
    monkeypatch.setattr(speed, "STEPS", speed.STEPS[:1])  # the others are tested below
    done = program(speed.main, tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        table[tuple(cells[:2])] = cells
    line = table["sums along a graph, N=405, C=768, k=30", "CSR product"]
    assert float(line[2].rstrip("×")) > 0
    assert min(float(line[6]), float(line[7])) >= 0
    assert "results agree to" in line[-1]
    loop = ("class statistics, 512-d, N=128, 100 classes", "loop over classes")
    assert loop in table  # a formula: after the peers
    assert text.index("`index_add_`") < text.index("<!-- /peers -->") < text.index(loop[1])
    assert ("60 given candidates", "256") in table
    assert "default benchmark" in {cells[0] for cells in table.values()}
    assert "torch " in text
    assert (tmp_path / "performance_growth.png").stat().st_size > 0


@pytest.mark.slow
def test_flop_of_a_step_are_those_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision transformer's operations are known: two per weight and token, and attention."""
    monkeypatch.setattr(step, "seconds_of", lambda work, span: 1.0)
    found = step.measure_step(step.STEPS[1], small=True)
    n, c, k = found.images, create_backbone("test_vit", "none")[1].num_features, 27
    blocks = len(step.STEPS[1].config(small=True).block_names)
    mlp = 2 * 2 * n * c * 4 * c
    assert found.flop["graph"] >= 3 * blocks * mlp
    assert found.flop["graph"] < 3 * blocks * (mlp + k * n * n * c)
    assert found.flop["head"] == 3 * 2 * (2 * n) * c * 128
    assert found.flop["encoder"] > found.flop["graph"]


def test_a_wrong_result_is_reported_and_not_timed() -> None:
    (case,) = [case for case in CASES if case.name == "update"]

    def wrong(scale: Scale):
        sides = case.build(scale)
        right = sides.peers[0].run
        broken = lambda: {name: 1.001 * value for name, value in right().items()}  # noqa: E731
        return replace(sides, peers=[replace(sides.peers[0], run=broken), *sides.peers[1:]])

    rows, _, complaints = rows_of(replace(case, build=wrong), SMALL, 1, {})
    assert [row.peer.name for row in rows] == ["loop over classes"]
    assert complaints[0].startswith("update, `index_add_`: results differ by 1")


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_wrong_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        speed.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err
