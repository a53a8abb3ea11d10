"""Every public name of bgl with wrong arguments: a result, or an error naming what was wrong."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import profile
from pytorch_metric_learning.distances import CosineSimilarity
from tiny_training import make_splits, tiny
from torch import Tensor, nn
from torch_geometric.data import Data

import bgl
from bgl import (
    augment,
    datasets,
    embedding,
    hyperbolic,
    images,
    layers,
    losses,
    metrics,
    models,
    pipeline,
    readout,
    samplers,
    search,
    training,
    transforms,
    visualization,
)

N, C, CLASSES = 6, 4, 3  # samples, channels, classes of what is right
DOCUMENTED = (ValueError, OSError)  # and their kinds: BrokenImageError, FileNotFoundError, ...
# Python's own TypeError says the same of a thing that is no path, no sequence, no number at all

# --- arguments ------------------------------------------------------------------------------------

junk = st.sampled_from([None, "text", 3, -1, 2.5, float("nan"), True, [], [1, 2], {}, b"x", 1j])
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any rank up to 4, any type, sometimes empty, not finite, or on another device."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, C, N]), max_size=4))
    values = torch.randn(shape) * 10.0 ** draw(st.integers(-3, 3))
    if values.numel() and draw(st.booleans()):
        values.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    tensor = (
        values.nan_to_num(0, 0, 0).to(dtype)
        if not (dtype := draw(st.sampled_from(DTYPES))).is_floating_point
        else values.to(dtype)
    )
    return tensor.to("meta") if draw(st.integers(0, 9)) == 0 else tensor


def mostly(right: st.SearchStrategy[Any], *wrong: st.SearchStrategy[Any]) -> Any:
    """Right three times of four, so that wrong arguments meet right ones."""
    return st.integers(0, 3).flatmap(lambda i: right if i else st.one_of(*wrong, junk))


def matrix(rows: int = N, columns: int = C) -> Any:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    right = st.sampled_from([torch.randn(rows, columns).to(dtype) for dtype in dtypes])
    special = [torch.zeros(rows, columns), torch.full((rows, columns), torch.nan)]
    special += [torch.randn(n, columns) for n in (0, 1, 2)]
    return mostly(right, st.sampled_from(special), tensors())


def labels(n: int = N) -> Any:
    right = [torch.arange(n) // 2, torch.arange(n), torch.zeros(n, dtype=torch.int32)]
    odd = [torch.arange(n) - 10**12, torch.arange(n + 1), torch.zeros(0).long()]
    return mostly(st.sampled_from(right), st.sampled_from(odd), tensors())


def optional(strategy: Any) -> Any:
    return st.one_of(st.none(), strategy)


def name(*right: str) -> Any:
    return mostly(st.sampled_from(right), st.just("unheard of"))


def path(folder: str = "/no/such/folder") -> Any:
    return mostly(st.just(folder), st.sampled_from(["", "\0", Path("x/y"), "/dev/null", "/"]))


count = mostly(st.integers(1, 5), st.integers(-3, 0))
k = mostly(st.integers(1, 8), st.integers(-3, 0), st.just(10**30))
real = mostly(st.floats(0, 1), st.floats(-2, 3), st.sampled_from([float("inf"), 1e300]))
flag = mostly(st.booleans())
files = mostly(st.just(["/no/such.png"]), st.sampled_from([[], ["\0"], [Path("x")], ["/dev/null"]]))
uint8 = st.sampled_from([torch.zeros(N, 3, 8, 8, dtype=torch.uint8)])
image = torch.zeros(3, 8, 8, dtype=torch.uint8)
heads = torch.randn(N, 2, 2)
per_head = mostly(st.just(heads), tensors(), st.just(torch.randn(N + 1, 2, 2)))


@functools.cache
def statistics() -> augment.ClassStatistics:
    found = augment.ClassStatistics(CLASSES, C)
    found.estimate(torch.randn(N, C), torch.arange(N) // 2)
    return found


@functools.cache
def small_model() -> models.BatchGraphModel:
    return training.build_model(tiny(method="dybgr"))[0]


@functools.cache
def small_encoder() -> models.Encoder:
    return training.build_encoder(tiny(method="dybgr"))[0]


def lesson() -> training.Lesson:
    output, older = (models.BatchGraphOutput(torch.randn(N, 4), torch.randn(N, C)) for _ in "ab")
    return training.Lesson(output, torch.arange(N) // 2, range(N), 0.5, older)


@functools.cache
def graph() -> Data:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bgl.to_batch_graph(torch.randn(N, C), torch.arange(N) // 2)


def image_dataset(**changes: Any) -> datasets.ImageDataset:
    right = {"images": torch.zeros(N, 3, 8, 8, dtype=torch.uint8), "labels": torch.arange(N) // 2}
    return datasets.ImageDataset(**{**right, "class_names": ["a", "b", "c"], **changes})


MATRICES = ("x", "z", "gallery", "context", "embeddings", "val_x")
LABELS = ("y", "labels", "query_labels", "val_y")
REALS = (
    *("lam", "beta", "epsilon", "gamma", "momentum", "shrinkage", "temperature", "c", "curvature"),
    *("clip_radius", "sigma_mean", "sigma_var", "ffn_ratio", "val_fraction", "flip", "w", "eps"),
    *("weight", "strength", "mean_similarity", "pos_margin", "neg_margin"),
)
COUNTS = (
    *("num_samples", "chunk_size", "num_classes", "embedding_dim", "head_dim", "dim", "batch_size"),
    *("batches_per_epoch", "image_size", "seed", "bins", "max_edges", "max_images", "classes"),
    "size",
)
# What a parameter of this name is given, wherever an entry does not say otherwise. None is tried
# as well where it is the default.
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(MATRICES, matrix()),
    **dict.fromkeys(LABELS, labels()),
    **dict.fromkeys(REALS, real),
    **dict.fromkeys(COUNTS, count),
    **dict.fromkeys(("k", "candidates", "num_neighbors"), k),
    **dict.fromkeys(("num_iterations", "max_count"), mostly(st.integers(0, 3), st.just(-1))),
    **dict.fromkeys(("skip_broken", "allow_partial", "use_labels"), flag),
    **dict.fromkeys(("index", "indices_tuple"), junk),
    **dict.fromkeys(("folder", "root", "run", "model"), path()),
    **dict.fromkeys(("mean", "std"), mostly(st.sampled_from([[0.5] * 3, [0.5], [0.0] * 3]))),
    "batch": mostly(st.sampled_from([torch.zeros(N).long(), torch.arange(N) // 3]), tensors()),
    "edge_index": mostly(
        st.sampled_from([torch.tensor([[0, 1, 2], [1, 2, 0]])]),
        st.sampled_from([torch.zeros(2, 0).long(), torch.zeros(3, 2).long()]),
    ),
    "edge_weight": mostly(st.just(torch.rand(3)), tensors()),
    "channels": mostly(st.just(C), st.integers(-1, 5)),
    "heads": mostly(st.sampled_from([1, 2]), st.sampled_from([0, 3, -2])),
    "formulation": name("released", "paper"),
    "norm": name("layer", "graph"),
    "reduction": name("mean", "sum"),
    "output": name("head", "backbone"),
    "loss": name(*losses.LOSSES),
    "miner": name("default", *losses.MINERS),
    "distance": mostly(st.sampled_from(["cosine", hyperbolic.HyperbolicDistance()])),
    "backbone": name("test_resnet"),
    "images": mostly(uint8, tensors()),
    "path": path("/no/such.csv"),
    **dict.fromkeys(("relations", "targets"), matrix(N, N)),
    "embedding": name("head", "backbone"),
    "lesson": st.builds(lesson),
    "config": st.just(models.ModelConfig("x", 8, (0.5,) * 3, (0.5,) * 3, 4)),
    "dataset": st.builds(image_dataset),
    "statistics": st.builds(statistics),
    "data": st.builds(graph),
    "graph": mostly(st.builds(graph), matrix(N, N), tensors()),
}


@dataclasses.dataclass
class Entry:
    """A call and strategies for its arguments.

    Args:
        call: What is called.
        arguments: A strategy for each.
        short: Examples in CI.
        long: Examples behind the marker.
    """

    call: Callable[..., Any]
    arguments: dict[str, Any]
    short: int
    long: int


class JoinedTeacher(training.WideTeacher):
    @functools.wraps(training.WideTeacher.__init__)
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.join(C, lambda dim: losses.create_loss("supcon", CLASSES, dim))


def entry(call: Any, of: Any = None, short: int = 6, long: int = 2000, **own: Any) -> Entry:
    """Give every parameter that is known by its name, or must be given, a strategy.

    Args:
        call: A function, or a class; what it makes is called, too, if that is possible.
        of: What takes the ``**options`` of ``call``.
        own: Strategies for parameters that ARGUMENTS lacks, or means otherwise.
    """
    if isinstance(call, type) and (hasattr(call, "forward") or "__call__" in vars(call)):
        call = module(call)
    parameters = [p for c in (call, of) if c for p in inspect.signature(c).parameters.values()]
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    takes_more = len(named) < len(parameters) and of is None
    assert takes_more or own.keys() <= named.keys(), own.keys() - named.keys()
    known = {
        key: optional(ARGUMENTS[key]) if p.default is None else ARGUMENTS[key]
        for key, p in named.items()
        if key in ARGUMENTS
    }
    arguments = {**known, **own}
    bare = {key for key, p in named.items() if p.default is p.empty} - arguments.keys()
    assert not bare, f"{call.__name__}: {bare}"
    return Entry(call, arguments, short, long)


def module(make: Any) -> Callable[..., Any]:
    """Make with some of the arguments, call with the others."""
    inputs = [*inspect.signature(getattr(make, "forward", make.__call__)).parameters.values()][1:]
    names = {p.name for p in inputs}

    def run(**arguments: Any) -> Any:
        made = make(**{key: value for key, value in arguments.items() if key not in names})
        repr(made)
        return made(**{key: value for key, value in arguments.items() if key in names})

    own = [p for p in inspect.signature(make).parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [p for p in own if p.kind is not p.VAR_POSITIONAL]
    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *inputs)]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__name__ = make.__name__
    return run


def changes(make: Callable[..., Any], *left_out: str, **options: Any) -> Entry:
    """Change fields of a configuration, one or two at a time, to anything."""
    names = {field.name for field in dataclasses.fields(training.TrainConfig)} - set(left_out)
    values = st.one_of(junk, st.integers(-2, 40), st.floats(-2, 2), st.text(max_size=5))
    drawn = st.dictionaries(st.sampled_from(sorted(names)), values, max_size=2)
    return entry(
        lambda changes: make(dataclasses.replace(tiny(), **changes)), changes=drawn, **options
    )


def refined_gallery(queries: Any, items: Any, **options: Any) -> Tensor:
    gallery = bgl.RefinedGallery(**options)
    gallery.add(items)
    return gallery.refine(queries)


# Entries of names that need more than their parameters' names tell.
ENTRIES: dict[str, Entry] = {
    "refine": entry(bgl.refine, queries=optional(matrix(2))),
    "RefinedGallery": entry(
        refined_gallery, of=bgl.RefinedGallery, queries=matrix(2), items=matrix(2)
    ),
    "layers.AdaptiveGraph": entry(
        layers.AdaptiveGraph,
        candidates=optional(
            mostly(st.just(torch.arange(N).repeat(N, 1)), tensors(), st.just(torch.zeros(2, 2)))
        ),
    ),
    "layers.AttentionGraph": entry(layers.AttentionGraph, query=per_head, key=per_head),
    "layers.BGFormerBlock": entry(layers.BGFormerBlock, semantic=name("graph", "attention")),
    "transforms.LearnBatchGraph": entry(
        lambda use_labels, x, y=None, batch=None: transforms.LearnBatchGraph(use_labels=use_labels)(
            Data(x=x, y=y, batch=batch)
        ),
    ),
    "augment.ClassStatistics": entry(
        lambda z, y, **options: augment.ClassStatistics(**options).update(z, y),
        of=augment.ClassStatistics,
        num_classes=mostly(st.just(CLASSES), st.integers(-1, 8)),
        covariance=name("diagonal", "full"),
        labels=optional(mostly(st.just([0, 1, 2]), tensors(), st.just([1, 1, 2]))),
    ),
    "augment.IntraClassAugmentation": entry(
        augment.IntraClassAugmentation,
        strength=st.one_of(real, st.just("released")),
        noise=optional(mostly(st.just(torch.randn(2, N, C)), tensors())),
    ),
    "augment.AugmentedLoss": entry(
        lambda loss, embeddings, labels, indices_tuple=None: augment.AugmentedLoss(
            losses.create_loss(loss, CLASSES, C), augment.IntraClassAugmentation(statistics())
        )(embeddings, labels, indices_tuple),
    ),
    "augment.StrengthSchedule": entry(augment.StrengthSchedule, progress=mostly(st.floats(0, 1))),
    "losses.create_loss": entry(losses.create_loss, name=name(*losses.LOSSES)),
    "losses.create_miner": entry(
        losses.create_miner, name=name("default", *losses.MINERS), margin=optional(real)
    ),
    "losses.MinedLoss": entry(
        lambda loss, miner, embeddings, labels: losses.MinedLoss(
            losses.create_loss(loss, CLASSES, C), losses.create_miner(miner, loss)
        )(embeddings, labels),
    ),
    "losses.PairwiseCrossEntropyLoss": entry(
        losses.PairwiseCrossEntropyLoss,
        distance=st.sampled_from([CosineSimilarity(), hyperbolic.HyperbolicDistance()]),
    ),
    "training.DiffusedTeacher": entry(
        training.DiffusedTeacher, graph=name("adaptive", "knn", "random")
    ),
    "training.WideTeacher": entry(JoinedTeacher),
    "losses.ContextualSimilarityLoss": entry(
        losses.ContextualSimilarityLoss, distance=st.just(CosineSimilarity())
    ),
    **{
        f"hyperbolic.{function.__name__}": entry(function, y=matrix())
        for function in (
            hyperbolic.distance_matrix,
            hyperbolic.paired_distance,
            hyperbolic.rank_matrix,
        )
    },
    "hyperbolic.HyperbolicDistance": entry(
        hyperbolic.HyperbolicDistance, query_emb=matrix(), ref_emb=optional(matrix(3))
    ),
    "metrics.retrieval_metrics": entry(
        metrics.retrieval_metrics,
        query=matrix(),
        gallery=optional(matrix(5)),
        gallery_labels=optional(labels(5)),
        k=mostly(st.sampled_from([(1, 2), (10,)]), st.sampled_from([(0,), (1.5,), ("x",)])),
        distance=mostly(st.sampled_from(["cosine", "euclidean", hyperbolic.HyperbolicDistance()])),
    ),
    "readout.fit_readout": entry(readout.fit_readout, covariance=name("total", "within")),
    "readout.choose_readout": entry(
        readout.choose_readout,
        covariances=mostly(st.just(("total",)), st.just(("both",))),
        shrinkages=mostly(st.just((0.3,)), st.just((-1.0,))),
    ),
    "readout.LinearReadout": entry(
        readout.LinearReadout, mean=mostly(st.just(torch.zeros(C)), tensors()), weight=matrix(2)
    ),
    "samplers.ClassBalancedSampler": entry(
        lambda epoch, positions, **options: (
            made := samplers.ClassBalancedSampler(**options),
            made.set_epoch(epoch),
            positions is None or made.set_positions(positions),
            list(made),
        ),
        of=samplers.ClassBalancedSampler,
        batch_size=mostly(st.sampled_from([2, 4, 6]), st.integers(-2, 9)),
        per_class=mostly(st.sampled_from([1, 2]), st.integers(-2, 9)),
        neighbors=mostly(st.integers(0, 3), st.integers(-3, -1)),
        positions=optional(matrix(3)),
        epoch=mostly(st.integers(0, 3), st.integers(-3, -1)),
    ),
    "pipeline.published_rows": entry(
        pipeline.published_rows, system=optional(name("DyBGR")), dataset=optional(name("cub"))
    ),
    "datasets.ImageDataset": entry(
        lambda indices, **options: (
            made := datasets.ImageDataset(**options),
            made.subset(indices),
            made.select_classes(indices),
            made[0],
        ),
        of=datasets.ImageDataset,
        images=st.one_of(ARGUMENTS["images"], st.just(["/no/such.png"] * N)),
        class_names=mostly(st.sampled_from([["a", "b", "c"], [*"abcdef"]])),
        paths=optional(mostly(st.just([*"abcdef"]))),
        indices=mostly(st.sampled_from([[0, 1], torch.arange(2)]), st.just([99]), tensors()),
    ),
    "datasets.Splits": entry(
        datasets.Splits,
        name=st.just("x"),
        train=st.builds(image_dataset),
        val=st.none(),
        gallery=st.none(),
        test=st.builds(image_dataset, class_names=st.sampled_from([["d", "e", "f"], [*"abc"]])),
    ),
    "datasets.dataset_names": entry(datasets.dataset_names, short=1, long=1),
    "datasets.download": entry(datasets.download, name=name("emoji", "folder", "table")),
    "datasets.load_dataset": entry(
        datasets.load_dataset,
        name=name("folder", "table", "cub", "cars", "sop", "inshop", "vehicleid-small"),
        table=optional(path("/no/such.csv")),
    ),
    "datasets.split_by_class": entry(
        datasets.split_by_class, images=st.builds(image_dataset), name=st.just("x")
    ),
    "datasets.recall_at": entry(datasets.recall_at, dataset=st.sampled_from(["cub", "sop", "x"])),
    "images.eval_transform": entry(
        lambda **options: images.eval_transform(**options)(image),
        of=images.eval_transform,
        resize=optional(mostly(st.integers(5, 12), st.integers(-2, 3))),
    ),
    "images.train_transform": entry(
        lambda **options: images.train_transform(**options)(image),
        of=images.train_transform,
        crop_scale=mostly(st.just((0.5, 1.0)), st.just((1.0, 0.5)), st.just((0.0, 1.0))),
    ),
    "models.BatchGraphModel": entry(
        lambda images, labels=None: small_model().train()(images, labels),
        images=mostly(st.just(torch.randn(N, 3, 32, 32))),  # of the rest the encoder complains
        long=300,
    ),
    "models.BlockConfig": entry(
        models.BlockConfig,
        name=name("dybgr", "bgformer"),
        options=mostly(st.just({"k": 3}), st.just({"kk": 3})),
    ),
    "models.ModelConfig": entry(
        models.ModelConfig,
        mean=st.just((0.5,) * 3),
        std=st.just((0.5,) * 3),
        resize=optional(mostly(st.integers(5, 9))),
        pool=name("default", "avgmax"),
    ),
    "models.assemble_model": entry(
        models.assemble_model,
        backbone=st.just(nn.Identity()),
        channels=count,
    ),
    "models.create_backbone": entry(
        models.create_backbone,
        name=name("test_resnet"),
        weights=mostly(st.just("none"), path("/no/such.pth")),
        image_size=st.none(),
        pool=name("default", "avgmax"),
        long=200,
    ),
    "models.Encoder": entry(
        lambda images, batch_size, output: small_encoder().embed(images, batch_size, output),
        images=st.one_of(ARGUMENTS["images"], st.just(["/no/such.png"]), st.just([])),
        long=300,
    ),
    "models.export": entry(
        models.export,
        path=st.sampled_from(["/dev/null/x.onnx", "/dev/null/x.pt2", "\0"]),
        format=name("onnx", "torch"),
    ),
    "models.load_released_checkpoint": entry(
        models.load_released_checkpoint,
        checkpoint=st.one_of(path(), st.just({}), st.just({"params": {"x": torch.zeros(1)}})),
        backbone=name("test_vit"),
        long=300,
    ),
    "models.push_to_hub": entry(models.push_to_hub, repo_id=st.just("x/y")),
    "models.save": entry(
        models.save,
        model=st.builds(small_model),
        folder=st.sampled_from(["/dev/null/x", "\0"]),
    ),
    "search.SearchIndex": entry(search.SearchIndex.build, images=files, store=path()),
    "search.find_images": entry(search.find_images, places=files),
    "search.write_results": entry(
        search.write_results,
        results=st.just({}),
        path=st.just("/dev/null/x.html"),
        measure=st.just("cosine similarity"),
    ),
    "embed": entry(bgl.embed, images=files, out=st.just("/dev/null/x")),
    "Embedder": entry(lambda run, batch: bgl.Embedder(run)(batch), batch=st.just({"path": []})),
    "embedding.write_manifest": entry(
        embedding.write_manifest,
        folder=st.just("/dev/null/x"),
        about=st.just(embedding.Manifest("run", "digest", "head", None, C, "float32")),
        parts=st.integers(0, 3),
    ),
    "embedding.write_shard": entry(
        embedding.write_shard,
        folder=st.just("/dev/null/x"),
        part=st.integers(0, 3),
        rows=st.builds(
            lambda x: embedding.Block(["a"] * len(x), [None] * len(x), x),
            st.sampled_from([np.zeros((N, C), dtype) for dtype in ("float16", "float32", "int8")]),
        ),
    ),
    "training.TrainConfig": changes(lambda config: config, short=100, long=5000),
    "training.build_model": changes(training.build_model, "backbone", "epochs", long=300),
    "training.build_encoder": changes(training.build_encoder, "backbone", "seed", long=300),
    "training.train": entry(
        lambda splits, changes, folder: training.train(tiny(epochs=1, **changes), splits, folder),
        splits=st.builds(make_splits),
        changes=st.sampled_from(
            [
                {"batch_size": 64},
                {"batches_per_epoch": 1},
                {"loss_options": {"temprature": 1.0}},
                {"freeze": ["no such part"]},
                {"weights": "/no/such.pth"},
                {"options": {"dybgr": {"k": -1}}, "method": "dybgr"},
                {"options": {"iaa": {"momentum": 7.0}}, "augmentation": "iaa"},
            ]
        ),
        folder=st.sampled_from(["/dev/null/x", "\0"]),
        short=20,
        long=300,
    ),
    "training.Evaluator": entry(
        lambda batch_size, workers: training.Evaluator(
            small_encoder(), workers=workers, batch_size=batch_size
        ).measure(make_splits().test),
        workers=st.sampled_from([0, -1]),
        long=300,
    ),
    "training.evaluate": entry(
        lambda head, backbone, labels, k: training.evaluate(
            {"head": head, "backbone": backbone}, labels, k
        ),
        head=matrix(),
        backbone=matrix(),
        k=mostly(st.just((1, 2)), st.just((0,))),
    ),
    "training.evaluate_encoder": entry(
        lambda batch_size: training.evaluate_encoder(small_encoder(), make_splits(), batch_size),
        short=5,
        long=50,
    ),
    "training.make_accelerator": entry(
        training.make_accelerator, device=name("cpu", "auto"), deterministic=st.just(False)
    ),
    "visualization.draw_batch_graph": entry(
        visualization.draw_batch_graph,
        layout=name("spring"),
        labels=optional(mostly(st.just([*"abcdef"]))),
    ),
    "visualization.embedding_map": entry(visualization.embedding_map, method=name("auto", "pca")),
    "visualization.project": entry(visualization.project, method=name("pca")),
    "visualization.retrieval_grid": entry(
        visualization.retrieval_grid,
        queries=optional(mostly(st.just([0, 1]), st.just([99]))),
        k=count,
    ),
    "visualization.training_curves": entry(
        visualization.training_curves,
        history=st.one_of(
            st.just([{"epoch": 1.0, "loss": 2.0}]),
            st.sampled_from(["", "/no/such.csv", "/dev/null"]),
            st.just([{"x": "y"}]),
        ),
    ),
    "visualization.explore": entry(
        visualization.explore, path=st.just("/dev/null/x.html"), classes=st.none()
    ),
    "pipeline.explore_run": entry(pipeline.explore_run, path=st.just("/dev/null/x.html")),
}

# hold what they are given, and leave it to others to look at it; types, constants
RECORDS = {
    *("images.IMAGE_SUFFIXES", "images.BrokenImageError", "images.Transform"),
    *("images.ImageCache", "images.ImageTransform"),
    *("datasets.RECALL_AT", "readout.ReadoutChoice", "readout.ReadoutScore"),
    # what names are registered in, and what stands behind a name
    *("augment.AUGMENTATIONS", "datasets.READERS", "losses.LOSSES", "losses.MINERS"),
    *("augment.AugmentationPlan", "augment.iaa", "datasets.Listing", "layers.BatchBlock"),
    *("samplers.BatchSampler", "samplers.ClassPositions"),
    *("models.BLOCKS", "models.BackboneInfo", "models.BatchGraphOutput"),
    *("training.Interrupted", "training.Interruption", "training.Progress"),
    *("training.ProgressList", "training.TrainResult", "training.TrainingRun"),
    *("training.TEACHERS", "training.Lesson", "training.Teacher"),
    *("search.Hit", "embedding.Block", "embedding.Manifest"),
    *("forecasting.Estimate", "forecasting.Forecast", "forecasting.Setting"),
    # command lines and what they are made of
    *("cli.main", "pipeline.CONFIGS", "pipeline.TerminalProgress", "pipeline.as_csv"),
    *("pipeline.baseline_rows", "pipeline.check_folder", "pipeline.load_splits"),
    "pipeline.pixel_rows",
    *("pipeline.main", "pipeline.markdown", "pipeline.parse", "pipeline.print_table"),
    *("pipeline.trained_rows", "pipeline.Row", "pipeline.Trained", "pipeline.read_config"),
    *("pipeline.read_results", "pipeline.train", "train"),
    *("pipeline.Adapted", "pipeline.adapt", "adapt", "training.adapt_encoder"),
    "training.AdaptConfig",
    *("checking.Copies", "checking.Report", "checking.check_images", "checking.write_page"),
}


def public_names() -> dict[str, Any]:
    """What every package says is public, and what the modules beside them define."""
    found = {name: getattr(bgl, name) for name in bgl.__all__}
    for info in pkgutil.iter_modules(bgl.__path__):
        if info.name.startswith("_"):
            continue
        content = importlib.import_module(f"bgl.{info.name}")
        names = getattr(content, "__all__", None) or [
            name
            for name, value in vars(content).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == content.__name__
        ]
        found |= {f"{info.name}.{name}": getattr(content, name) for name in names}
    # what bgl itself gives is public under that name alone
    again = {
        f"{module}.{name}"
        for module in ("embedding", "forecasting", "graph", "refinement")
        for name in bgl.__all__
    }
    return {name: value for name, value in found.items() if name not in again}


PUBLIC = public_names()
FUZZ = {
    name: ENTRIES[name] if name in ENTRIES else entry(value)
    for name, value in PUBLIC.items()
    if name not in RECORDS
}


def test_there_is_no_entry_for_nothing():
    assert ENTRIES.keys() | RECORDS <= PUBLIC.keys()
    assert not ENTRIES.keys() & RECORDS


# --- outcomes -------------------------------------------------------------------------------------


def holds_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    """The error of a documented type that a call ends in, if it does; all others are raised."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except (*DOCUMENTED, TypeError) as error:
        return error
    except (RuntimeError, NotImplementedError):
        # PyTorch's own error for tensors on different devices
        if not any(holds_meta(value) for value in arguments.values()):
            raise
    finally:
        plt.close("all")
    return None


def check_outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """A result, or an error that names the argument, the field or the file."""
    error = outcome(call, arguments)
    message = str(error)
    if error is None or isinstance(error, (OSError, images.BrokenImageError)):
        return  # these say which file
    if isinstance(error, TypeError):
        # These are mistakes of an entry, whose arguments would all be wrong.
        assert not re.search(r"unexpected keyword|multiple values|missing \d+ required", message), (
            message
        )
        said = r"NoneType|type|expected|must be|should be|not supported|iterable"
    else:
        words = {*arguments, *arguments.get("changes", {})}
        words |= {str(value) for value in arguments.values() if isinstance(value, (str, Path))}
        said = "|".join([r"`\w+`", "null", *(re.escape(word) for word in words if word)])
    assert re.search(said, message, re.IGNORECASE), message


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.reliability)])
@pytest.mark.parametrize("name", FUZZ)
def test_fuzz(name, length):
    case = FUZZ[name]
    short, long = (6, 200) if name.startswith("visualization.") else (case.short, case.long)
    search = profile(short, True) if length == "short" else profile(long, False)
    drawn = given(st.fixed_dictionaries(case.arguments))
    search(drawn(lambda arguments: check_outcome(case.call, arguments)))()


def test_misspelt_and_missing_arguments_are_found():
    """A renamed argument must not make an entry fuzz nothing but its own mistake."""
    with pytest.raises(AssertionError, match="neighbours"):
        entry(layers.AdaptiveGraph, neighbours=k)
    with pytest.raises(AssertionError, match=r"AttentionGraph.*query"):
        entry(layers.AttentionGraph, key=per_head)
    with pytest.raises(AssertionError, match="unexpected keyword"):
        check_outcome(layers.AdaptiveGraph, {"neighbours": 3})
