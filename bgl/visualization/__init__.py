"""Pictures of batch graphs; needs matplotlib and networkx (``pip install bgl[plot]``)."""

from bgl.visualization.batch_graph import draw_batch_graph

__all__ = ["draw_batch_graph"]
