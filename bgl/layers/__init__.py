"""Layers that learn a graph over the samples of a batch and pass messages on it."""

from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.batch_graph_conv import BatchGraphConv
from bgl.layers.dybgr import DyBGR, DyBGRBlock
from bgl.layers.label_graph import LabelGraph

__all__ = ["AdaptiveGraph", "BatchGraphConv", "DyBGR", "DyBGRBlock", "LabelGraph"]
