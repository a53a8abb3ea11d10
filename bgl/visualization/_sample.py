"""A part of a graph that is too large to draw."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric.data import Data

MAX_NODES = 1000


def sample_nodes(data: Data, most: int = MAX_NODES) -> Tensor:
    """Choose nodes of a graph that is too large to draw.

    These are whole classes, the first ones, or without labels the surroundings of the node with
    the most edges.
    """
    n = int(data.num_nodes or 0)
    if n <= most:
        return torch.arange(n)
    assert data.edge_index is not None
    edge_index = data.edge_index.cpu()
    if data.y is not None and len(data.y.unique()) > 1:
        rank = data.y.cpu().unique(return_inverse=True)[1]
        return rank.argsort(stable=True)[:most].sort().values
    degree = edge_index.flatten().bincount(minlength=n)
    inside = torch.zeros(n, dtype=torch.bool)
    inside[degree.argmax()] = True
    while True:
        near = inside.clone()
        near[edge_index[1, inside[edge_index[0]]]] = True
        near[edge_index[0, inside[edge_index[1]]]] = True
        if int(near.sum()) >= most or torch.equal(near, inside):
            break
        inside = near
    others = (~inside).nonzero().flatten()
    first = others[near[others].long().argsort(descending=True, stable=True)]
    return torch.cat([inside.nonzero().flatten(), first])[:most].sort().values


def induced(data: Data, nodes: Tensor) -> Data:
    """Return the subgraph of some nodes."""
    part: Data = copy.copy(data).cpu().subgraph(nodes)
    part.num_nodes = len(nodes)
    return part
