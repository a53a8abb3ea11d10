"""Plots of batch graphs, embeddings and curves; the explorer page of a graph.

Needs ``pip install bgl[plot]``. The plots are matplotlib's and return Axes or a Figure;
:func:`explore` writes one HTML file that opens anywhere.
"""

from bgl._extras import extra

with extra("plot"):
    from bgl.visualization.adjacency import adjacency_heatmap, edge_weight_histogram
    from bgl.visualization.batch_graph import draw_batch_graph
    from bgl.visualization.curves import read_history, training_curves
    from bgl.visualization.embedding import embedding_map
    from bgl.visualization.explorer import explore
    from bgl.visualization.projection import project
    from bgl.visualization.retrieval import retrieval_grid

__all__ = [
    "adjacency_heatmap",
    "draw_batch_graph",
    "edge_weight_histogram",
    "embedding_map",
    "explore",
    "project",
    "read_history",
    "retrieval_grid",
    "training_curves",
]
