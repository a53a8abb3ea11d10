"""The explorer page without a browser: what is embedded of a graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from explorer_runs import numbers, payload
from torch_geometric.data import Data

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph
from bgl.visualization import explore
from bgl.visualization._encode import script_json, weights64
from bgl.visualization._frames import make_frame
from bgl.visualization._sample import sample_nodes


def graph(n: int = 12, k: int = 3) -> Data:
    return to_batch_graph(torch.randn(n, 4), torch.arange(n) // 3, AdaptiveGraph(k))


def test_graph_is_embedded_whole(tmp_path):
    data = graph()
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    page = payload(
        explore(data, images, tmp_path / "page.html", nodes=[f"n{i}" for i in range(12)])
    )
    (shown,) = page["graphs"]
    assert shown["labels"] == data.y.tolist()
    assert shown["classes"] == ["0", "1", "2", "3"]
    assert shown["nodes"][3] == "n3"
    (frame,) = shown["frames"]
    edges = torch.tensor(
        np.stack([numbers(frame[s], "u2") for s in ("source", "target")]).astype(int)
    )
    assert torch.equal(edges, data.edge_index)
    weight = numbers(frame["weight"], "u2") / 65535 * frame["largest"]
    np.testing.assert_allclose(weight, data.edge_weight, atol=frame["largest"] / 65000)
    assert numbers(shown["positions"][0], "f4").shape == (24,)
    assert page["atlases"]["batch"]["src"].startswith("data:image/webp;base64,UklGR")
    assert page["notes"] == []


def test_several_graphs_are_steps(tmp_path):
    page = payload(explore([graph(), graph()], path=tmp_path / "page.html"))
    assert [frame["epoch"] for frame in page["graphs"][0]["frames"]] == [0, 1]
    assert "No pictures" in page["notes"][0]


EVIL = (
    '</script><script>document.title="broken"</script>'
    '<img src=x onerror="document.title=1">&{{data}}'
)


def test_html_in_labels_stays_text(tmp_path):
    names = [EVIL, "b", "c", "d"]
    path = explore(
        graph(), path=tmp_path / "page.html", classes=names, nodes=[EVIL] * 12, title=EVIL
    )
    assert payload(path)["graphs"][0]["classes"] == names
    text = path.read_text(encoding="utf-8")
    assert '<script>document.title="broken"' not in text
    assert "<img src=x" not in text
    assert text.count("<script") == 3


def test_json_in_a_script():
    value = {"a": ["</script>", "<!--", float("nan"), np.float32(0.5), torch.tensor([1, 2])]}
    text = script_json(value)
    assert "<" not in text
    assert json.loads(text) == {"a": ["</script>", "<!--", None, 0.5, [1, 2]]}


def test_weights_in_sixteen_bits():
    made = weights64(np.array([0.25, 1.0, -1.0, np.nan]))
    assert numbers(made["weight"], "u2").tolist() == [16384, 65535, 0, 0]
    assert weights64(np.zeros(0))["largest"] == 1.0


@pytest.mark.parametrize(
    "data",
    [
        Data(edge_index=torch.zeros(2, 0).long(), num_nodes=3),
        Data(edge_index=torch.zeros(2, 1).long(), num_nodes=1),
        Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.zeros(2).long(), num_nodes=2),
        Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.zeros(1), num_nodes=2),
        Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.rand(1, 4), num_nodes=2),
    ],
    ids=["no edges", "one node", "one class", "zero weights", "heads"],
)
def test_odd_graphs(data, tmp_path):
    assert payload(explore(data, path=tmp_path / "p.html"))["graphs"][0]["n"] == data.num_nodes


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_ten_thousand_nodes_become_a_thousand(labelled, tmp_path):
    n = 10_000
    edge_index = torch.stack([torch.arange(n).repeat(5), torch.randint(0, n, (5 * n,))])
    y = torch.arange(n) % 100 if labelled else None
    page = payload(explore(Data(edge_index=edge_index, y=y, num_nodes=n), path=tmp_path / "p.html"))
    assert page["graphs"][0]["n"] == 1000
    assert page["notes"][0].startswith("The graph has 10,000 nodes; this page shows 1,000 of them")
    if labelled:
        assert np.bincount(page["graphs"][0]["labels"]).tolist() == [100] * 10


def test_surroundings_of_the_busiest_node():
    ring = torch.arange(50)
    edge_index = torch.stack([ring, (ring + 1) % 50])
    edge_index = torch.cat([edge_index, torch.tensor([[20] * 5, [0, 5, 10, 30, 40]])], dim=1)
    chosen = sample_nodes(Data(edge_index=edge_index, num_nodes=50), most=8)
    assert chosen.tolist() == [0, 5, 10, 19, 20, 21, 30, 40]


def test_dense_graphs_keep_their_strongest_edges():
    n = 60
    edge_index = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    data = Data(edge_index=edge_index, edge_weight=torch.rand(n * n), num_nodes=n)
    frame = make_frame(data, epoch=3)
    assert (frame.total, len(frame.source), frame.epoch) == (n * (n - 1), 30 * n, 3)
    others = data.edge_weight[edge_index[0] != edge_index[1]]
    assert frame.weight.min() == others.sort(descending=True).values[30 * n - 1]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="at least one graph"):
        explore([])
    with pytest.raises(ValueError, match="one size"):
        explore([graph(12), graph(9)])
    with pytest.raises(ValueError, match="`images`"):
        explore(graph(), torch.zeros(3, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`nodes`"):
        explore(graph(), nodes=["a"])
    with pytest.raises(ValueError, match="`classes`"):
        explore(graph(), classes=["a"])
