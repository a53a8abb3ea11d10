"""Layers that learn a graph over the samples of a batch and pass messages on it."""

from bgl.layers.adaptive_graph import AdaptiveGraph
from bgl.layers.attention_graph import AttentionGraph
from bgl.layers.batch_graph_conv import BatchGraphConv
from bgl.layers.batchformer import BatchFormerBlock
from bgl.layers.bgformer import BGFormerBlock
from bgl.layers.block import BatchBlock
from bgl.layers.dybgr import DyBGR, DyBGRBlock
from bgl.layers.label_graph import LabelGraph
from bgl.layers.memory import FeatureMemory
from bgl.layers.random_graph import RandomGraph, RandomGraphBlock

__all__ = [
    "AdaptiveGraph",
    "AttentionGraph",
    "BGFormerBlock",
    "BatchBlock",
    "BatchFormerBlock",
    "BatchGraphConv",
    "DyBGR",
    "DyBGRBlock",
    "FeatureMemory",
    "LabelGraph",
    "RandomGraph",
    "RandomGraphBlock",
]
