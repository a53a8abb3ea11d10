"""Encoders, the model that trains them through a batch graph, and models in files."""

from bgl._extras import extra

with extra("train"):
    from bgl.models.backbone import BackboneInfo, create_backbone
    from bgl.models.batch_graph_model import BatchGraphModel, BatchGraphOutput, make_head
    from bgl.models.config import BLOCKS, BlockConfig, ModelConfig, assemble_model
    from bgl.models.encoder import Encoder
    from bgl.models.exporting import export
    from bgl.models.files import model_digest
    from bgl.models.hub import push_to_hub
    from bgl.models.released import load_released_checkpoint
    from bgl.models.storage import load, save

__all__ = [
    "BLOCKS",
    "BackboneInfo",
    "BatchGraphModel",
    "BatchGraphOutput",
    "BlockConfig",
    "Encoder",
    "ModelConfig",
    "assemble_model",
    "create_backbone",
    "export",
    "load",
    "load_released_checkpoint",
    "make_head",
    "model_digest",
    "push_to_hub",
    "save",
]
