"""LabelGraph against the released arrays."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close

from bgl.layers import LabelGraph


@pytest.mark.parametrize("name", ["sizes_5_4_2_1", "shuffled_36", "all_same_7"])
def test_equals_released_code(golden, name):
    g = golden(f"dybgr_label_graph__{name}")
    n = g["labels"].numel()
    edge_index, weight = LabelGraph()(g["labels"])
    dense = torch.zeros(n, n).index_put((edge_index[1], edge_index[0]), weight)
    assert_close(dense.double(), g["L"], 1e-7)


def test_classes_of_different_graphs_are_apart():
    y, batch = torch.zeros(4).long(), torch.tensor([0, 0, 1, 1])
    edge_index, _ = LabelGraph()(y, batch=batch)
    assert (batch[edge_index[0]] == batch[edge_index[1]]).all()
    assert edge_index.size(1) == 8
