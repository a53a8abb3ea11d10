"""The explorer page: one HTML file to look at graphs, embeddings and retrieval in a browser.

The charts are plotly's: one well-kept library with node-link diagrams, heat maps and curves,
zooming and touch, whose Python package carries its JavaScript, so that the page needs no network
and no build step. A dedicated graph library would draw larger graphs, but not the other charts;
with an edge budget a batch graph of some hundred nodes is small. Everything else on the page is
plain HTML, so keyboards, screen readers and small screens work as usual.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from torch import Tensor
from torch_geometric.data import Data

from bgl._io import write_text
from bgl.visualization._encode import atlas, script_json
from bgl.visualization._frames import graph_payload, make_frame
from bgl.visualization._sample import induced, sample_nodes
from bgl.visualization._style import check_images, check_nodes

# each after those that it imports
SCRIPTS = (
    *("codec", "edges", "analysis", "address"),
    *("dom", "overview", "matrix", "card", "graph", "queries", "map", "errors", "training", "main"),
)


def explore(
    data: Data | Sequence[Data],
    images: Tensor | None = None,
    path: str | Path | None = None,
    classes: Sequence[str] | None = None,
    nodes: Sequence[str] | None = None,
    title: str = "Batch graph",
) -> Path:
    """Write the explorer page of a graph; :func:`bgl.pipeline.explore_run` writes that of a run.

    Args:
        data: A PyG graph with ``edge_index`` and, optionally, ``edge_weight`` and ``y``; or
            several graphs over the same nodes (steps of a slider).
        images: Thumbnails of the nodes, a uint8 tensor [N, 3, H, W].
        path: File to write; default: ``explorer.html``.
        classes: Names of the classes, by label from 0; default: the labels themselves.
        nodes: A text for each node; default: its number.
        title: Heading of the page.

    Returns:
        The file's path.

    Raises:
        ValueError: If an argument does not fit the graph.

    Example:
        >>> import tempfile, torch
        >>> from bgl import to_batch_graph
        >>> graph = to_batch_graph(torch.randn(12, 8), torch.arange(12) // 3)
        >>> explore(graph, path=tempfile.mkdtemp() + "/graph.html").name
        'graph.html'
    """
    graphs = [data] if isinstance(data, Data) else list(data)
    if not graphs:
        raise ValueError("Expected argument `data` to have at least one graph, but got none")
    notes: list[str] = []
    atlases: dict[str, Any] = {}
    sizes = [check_nodes(graph) for graph in graphs]
    n = sizes[0]
    if set(sizes) != {n}:
        raise ValueError(f"Expected argument `data` to have graphs of one size, got {sizes}")
    check_images(images, n)
    if nodes is not None and len(nodes) != n:
        raise ValueError(
            f"Expected argument `nodes` to have one entry per node ({n}), but got {len(nodes)}"
        )
    y = graphs[0].y
    labels, names = None, []
    if y is not None:
        present, labels = y.cpu().unique(return_inverse=True)
        if classes is not None and not 0 <= int(present.min()) <= int(present.max()) < len(classes):
            raise ValueError(
                f"Expected argument `classes` to name every label, but got {len(classes)} names "
                f"and labels from {int(present.min())} to {int(present.max())}"
            )
        names = [str(c) if classes is None else str(classes[c]) for c in present.tolist()]
    chosen = sample_nodes(graphs[0])
    if len(chosen) < n:
        notes.append(
            f"The graph has {n:,} nodes; this page shows {len(chosen):,} of them"
            + (", whole classes." if y is not None and len(names) > 1 else ".")
        )
        graphs = [induced(graph, chosen) for graph in graphs]
    if images is None:
        notes.append("No pictures were given: the nodes are dots.")
    else:
        atlases["batch"] = atlas(images[chosen], len(chosen))
    frames = [make_frame(graph) for graph in graphs]
    for step, frame in enumerate(frames):
        frame.epoch = step if len(frames) > 1 else None
    shown = [str(nodes[i]) if nodes is not None else str(i) for i in chosen.tolist()]
    picked = None if labels is None else labels[chosen].tolist()
    sheet = None if images is None else "batch"
    graph = graph_payload("graph", frames, picked, names, shown, sheet)
    run = {"name": title, "notes": notes, "atlases": atlases, "graphs": [graph], "steps": "step"}
    return write_page({"title": title, "kind": "graph", "runs": [run]}, path or "explorer.html")


def write_page(payload: dict[str, Any], path: str | Path) -> Path:
    """Put a payload into the page; everything in one file."""
    here = resources.files("bgl.visualization") / "page"

    def part(name: str) -> str:
        return (here / name).read_text(encoding="utf-8")

    own = "\n".join(_inlined(name, part(f"{name}.mjs")) for name in SCRIPTS)
    contents = {
        "title": html.escape(str(payload["title"])),
        "style": part("page.css"),
        "data": script_json(payload),
        "plotly": get_plotlyjs(),
        "script": f'(() => {{\n"use strict";\n{own}\n}})();',
    }
    # in one go: a mark inside a content stays what it is
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: contents[mark[1]], part("page.html"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _inlined(name: str, module: str) -> str:
    """Make a JavaScript module a part of one script: a scope that returns its exports."""
    module = re.sub(
        r'^import (\{[^}]*\}) from "\./(\w+)\.mjs";$', r"const \1 = \2Module;", module, flags=re.M
    )
    exports = re.findall(r"^export (?:async )?(?:const|function) ([\w$]+)", module, flags=re.M)
    module = re.sub(r"^export ", "", module, flags=re.M)
    return f"const {name}Module = (() => {{\n{module}\nreturn {{ {', '.join(exports)} }};\n}})();"
