"""Pictures of batch graphs, embeddings and trainings; the explorer page.

Needs ``pip install bgl[plot]``. The plots are matplotlib's and return Axes or a Figure;
:func:`explore` writes one HTML file that opens anywhere. What listens to a training is in
:mod:`bgl.visualization.recorder` and :mod:`bgl.visualization.tracking`, which need ``bgl[train]``.
"""

from bgl._extras import extra

with extra("plot"):
    # first, so that the name is the function's whatever is imported later
    import bgl.visualization.explore  # noqa: F401
    from bgl.visualization.adjacency import adjacency_heatmap, edge_weight_histogram
    from bgl.visualization.batch_graph import draw_batch_graph
    from bgl.visualization.curves import read_history, training_curves
    from bgl.visualization.embedding import embedding_map
    from bgl.visualization.explorer import explore, explore_run
    from bgl.visualization.projection import project
    from bgl.visualization.retrieval import retrieval_grid

__all__ = [
    "adjacency_heatmap",
    "draw_batch_graph",
    "edge_weight_histogram",
    "embedding_map",
    "explore",
    "explore_run",
    "project",
    "read_history",
    "retrieval_grid",
    "training_curves",
]
