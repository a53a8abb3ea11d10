"""Encoders, and the model that trains them through a batch graph."""

from bgl.models.backbone import BackboneInfo, create_backbone
from bgl.models.batch_graph_model import BatchGraphModel, BatchGraphOutput, make_head

__all__ = [
    "BackboneInfo",
    "BatchGraphModel",
    "BatchGraphOutput",
    "create_backbone",
    "make_head",
]
