"""Every public name of bgl with wrong arguments: a result, or an error naming what was wrong."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import searched
from tiny_training import make_splits, tiny
from torch import Tensor, nn
from torch_geometric.data import Data

import bgl
from bgl import (
    augment,
    datasets,
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
pictures = mostly(uint8, tensors())
edges = mostly(
    st.sampled_from([torch.tensor([[0, 1, 2], [1, 2, 0]])]),
    st.sampled_from([torch.zeros(2, 0).long(), torch.zeros(3, 2).long()]),
)


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


@functools.cache
def graph() -> Data:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bgl.to_batch_graph(torch.randn(N, C), torch.arange(N) // 2)


def module(make: Callable[..., Any], *inputs: str) -> Callable[..., Any]:
    """Make with some of the arguments, call with the others."""

    def run(**arguments: Any) -> Any:
        given_in = {name: arguments.pop(name) for name in inputs}
        made = make(**arguments)
        repr(made)
        return made(**given_in)

    called = make.forward if hasattr(make, "forward") else make.__call__
    taken = inspect.signature(called).parameters
    assert taken.keys() >= set(inputs), f"{make}: {inputs}"
    parameters = [*inspect.signature(make).parameters.values(), *(taken[name] for name in inputs)]
    keywords = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in parameters}
    run.__signature__ = inspect.Signature(list(keywords.values()))  # type: ignore[attr-defined]
    return run


@dataclasses.dataclass
class Entry:
    call: Callable[..., Any]
    arguments: Mapping[str, Any]
    short: int = 25  # examples in CI
    long: int = 2000


def entry(call: Callable[..., Any], short: int = 25, long: int = 2000, **arguments: Any) -> Entry:
    return Entry(call, arguments, short, long)


def batch_input(x: Any = None) -> dict[str, Any]:
    batch = mostly(st.sampled_from([torch.zeros(N).long(), torch.arange(N) // 3]), tensors())
    return {"x": matrix() if x is None else x, "y": optional(labels()), "batch": optional(batch)}


def block(make: Callable[..., Any], **options: Any) -> Entry:
    return entry(
        module(make, "x", "y", "batch"),
        channels=mostly(st.just(C), st.integers(-1, 5)),
        ffn_ratio=real,
        norm=name("layer", "graph"),
        **options,
        **batch_input(),
    )


dybgr_options = {
    "k": k,
    "num_iterations": mostly(st.integers(0, 3), st.integers(-3, -1)),
    "lam": real,
    "beta": real,
    "epsilon": real,
    "formulation": name("released", "paper"),
}
heads = torch.randn(N, 2, 2)
per_head = mostly(st.just(heads), tensors(), st.just(torch.randn(N + 1, 2, 2)))


def image_dataset(**changes: Any) -> datasets.ImageDataset:
    right = {"images": torch.zeros(N, 3, 8, 8, dtype=torch.uint8), "labels": torch.arange(N) // 2}
    return datasets.ImageDataset(**{**right, "class_names": ["a", "b", "c"], **changes})


def train_config(**changes: Any) -> training.TrainConfig:
    return tiny(**changes)


def fields(cls: Any, *left_out: str) -> dict[str, Any]:
    """Its fields, one of them drawn at a time from anything."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in left_out]
    values = st.one_of(junk, st.integers(-2, 40), st.floats(-2, 2), st.text(max_size=5))
    return {"changes": st.dictionaries(st.sampled_from(names), values, max_size=2)}


def changed(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda changes: make(**changes)


def training_call(splits: Any, changes: dict[str, Any], folder: Any) -> Any:
    return training.train(tiny(epochs=1, **changes), splits, folder)


refinement_options = {
    "k": k,
    "epsilon": real,
    "lam": real,
    "num_iterations": mostly(st.integers(0, 3), st.integers(-3, -1)),
    "shrinkage": optional(real),
    "candidates": optional(k),
    "index": optional(junk),
}


def refined_gallery(queries: Any, items: Any, **options: Any) -> Tensor:
    gallery = bgl.RefinedGallery(**options)
    gallery.add(items)
    return gallery.refine(queries)


nothing = nn.Identity()
FUZZ: dict[str, Entry] = {
    "to_batch_graph": entry(bgl.to_batch_graph, x=matrix(), y=optional(labels())),
    "refine": entry(
        bgl.refine, gallery=matrix(), queries=optional(matrix(2)), **refinement_options
    ),
    "RefinedGallery": entry(
        refined_gallery,
        gallery=matrix(),
        queries=matrix(2),
        items=matrix(2),
        **refinement_options,
    ),
    # layers
    "layers.AdaptiveGraph": entry(
        module(layers.AdaptiveGraph, "x", "y", "batch", "context", "candidates"),
        k=k,
        lam=real,
        beta=real,
        formulation=name("released", "paper"),
        context=optional(matrix()),
        candidates=optional(
            mostly(st.just(torch.arange(N).repeat(N, 1)), tensors(), st.just(torch.zeros(2, 2)))
        ),
        **batch_input(),
    ),
    "layers.AttentionGraph": entry(
        module(layers.AttentionGraph, "query", "key", "batch"),
        k=k,
        query=per_head,
        key=per_head,
        batch=batch_input()["batch"],
    ),
    "layers.LabelGraph": entry(
        module(layers.LabelGraph, "y", "batch"),
        y=labels(),
        batch=batch_input()["batch"],
    ),
    "layers.BatchGraphConv": entry(
        module(layers.BatchGraphConv, "x", "edge_index", "edge_weight"),
        epsilon=real,
        x=matrix(),
        edge_index=edges,
        edge_weight=optional(mostly(st.just(torch.rand(3)), tensors())),
    ),
    "layers.StructureConstrainedAttention": entry(
        module(layers.StructureConstrainedAttention, "value", "edge_index", "edge_weight"),
        value=per_head,
        edge_index=edges,
        edge_weight=mostly(st.sampled_from([torch.rand(3), torch.rand(3, 2)]), tensors()),
    ),
    "layers.DyBGR": entry(
        module(layers.DyBGR, "x", "y", "batch"), **dybgr_options, **batch_input()
    ),
    "layers.DyBGRBlock": block(layers.DyBGRBlock, **dybgr_options),
    "layers.BGFormerBlock": block(
        layers.BGFormerBlock,
        heads=mostly(st.sampled_from([1, 2]), st.sampled_from([0, 3, -2])),
        k=k,
        lam=real,
        semantic=name("graph", "attention"),
    ),
    "layers.BatchFormerBlock": block(
        layers.BatchFormerBlock, heads=mostly(st.sampled_from([1, 2]), st.sampled_from([0, 3]))
    ),
    "layers.RandomGraph": entry(
        module(layers.RandomGraph, "x", "batch"), k=k, x=matrix(), batch=batch_input()["batch"]
    ),
    "layers.RandomGraphBlock": block(layers.RandomGraphBlock, k=k, epsilon=real),
    "transforms.LearnBatchGraph": entry(
        lambda use_labels, **content: transforms.LearnBatchGraph(use_labels=use_labels)(
            Data(**content)
        ),
        use_labels=flag,
        **batch_input(),
    ),
    # augment
    "augment.ClassStatistics": entry(
        lambda z, y, labels, **options: augment.ClassStatistics(labels=labels, **options).update(
            z, y
        ),
        num_classes=mostly(st.just(CLASSES), st.integers(-1, 8)),
        channels=mostly(st.just(C), st.integers(-1, 5)),
        momentum=real,
        covariance=name("diagonal", "full"),
        labels=optional(mostly(st.just([0, 1, 2]), tensors(), st.just([1, 1, 2]))),
        curvature=optional(real),
        z=matrix(),
        y=labels(),
    ),
    "augment.NeighborCorrection": entry(
        module(augment.NeighborCorrection, "statistics"),
        num_neighbors=k,
        beta=real,
        gamma=real,
        max_count=mostly(st.integers(0, 50), st.integers(-3, -1)),
        sigma_mean=real,
        sigma_var=real,
        statistics=st.builds(statistics),
    ),
    "augment.IntraClassAugmentation": entry(
        module(augment.IntraClassAugmentation, "z", "y", "noise"),
        statistics=st.builds(statistics),
        correction=st.none(),
        strength=st.one_of(real, st.just("released")),
        num_samples=count,
        z=matrix(),
        y=labels(),
        noise=optional(mostly(st.just(torch.randn(2, N, C)), tensors())),
    ),
    "augment.AugmentedLoss": entry(
        lambda loss, embeddings, labels, indices_tuple: augment.AugmentedLoss(
            losses.create_loss(loss, CLASSES, C), augment.IntraClassAugmentation(statistics())
        )(embeddings, labels, indices_tuple),
        loss=name(*losses.LOSSES),
        embeddings=matrix(),
        labels=labels(),
        indices_tuple=optional(junk),
    ),
    "augment.StrengthSchedule": entry(
        module(augment.StrengthSchedule, "progress"),
        strength=real,
        progress=mostly(st.floats(0, 1)),
    ),
    # losses, distances
    "losses.create_loss": entry(
        losses.create_loss,
        name=name(*losses.LOSSES),
        num_classes=count,
        embedding_dim=count,
        distance=mostly(st.sampled_from(["cosine", hyperbolic.HyperbolicDistance()])),
    ),
    "losses.create_miner": entry(
        losses.create_miner,
        name=name("default", *losses.MINERS),
        loss=name(*losses.LOSSES),
        distance=mostly(st.sampled_from(["cosine", hyperbolic.HyperbolicDistance()])),
        margin=optional(real),
    ),
    "losses.MinedLoss": entry(
        lambda loss, miner, embeddings, labels: losses.MinedLoss(
            losses.create_loss(loss, CLASSES, C), losses.create_miner(miner, loss)
        )(embeddings, labels),
        loss=name(*losses.LOSSES),
        miner=name("default", *losses.MINERS),
        embeddings=matrix(),
        labels=labels(),
    ),
    "losses.PairwiseCrossEntropyLoss": entry(
        module(losses.PairwiseCrossEntropyLoss, "embeddings", "labels", "indices_tuple"),
        temperature=real,
        reduction=name("mean", "sum"),
        embeddings=matrix(),
        labels=labels(),
        indices_tuple=optional(junk),
    ),
    "hyperbolic.to_poincare_ball": entry(
        hyperbolic.to_poincare_ball, x=matrix(), c=real, clip_radius=optional(real)
    ),
    "hyperbolic.from_poincare_ball": entry(hyperbolic.from_poincare_ball, z=matrix(), c=real),
    "hyperbolic.rank_factors": entry(hyperbolic.rank_factors, x=matrix(), c=real),
    **{
        f"hyperbolic.{function.__name__}": entry(function, x=matrix(), y=matrix(), c=real)
        for function in (
            hyperbolic.distance_matrix,
            hyperbolic.paired_distance,
            hyperbolic.rank_matrix,
        )
    },
    "hyperbolic.ToPoincareBall": entry(
        module(hyperbolic.ToPoincareBall, "x"), c=real, clip_radius=optional(real), x=matrix()
    ),
    "hyperbolic.HyperbolicDistance": entry(
        module(hyperbolic.HyperbolicDistance, "query_emb", "ref_emb"),
        c=real,
        query_emb=matrix(),
        ref_emb=optional(matrix(3)),
    ),
    # metrics, samplers, published figures
    "metrics.retrieval_metrics": entry(
        metrics.retrieval_metrics,
        query=matrix(),
        query_labels=labels(),
        gallery=optional(matrix(5)),
        gallery_labels=optional(labels(5)),
        k=mostly(st.sampled_from([(1, 2), (10,)]), st.sampled_from([(0,), (1.5,), ("x",)])),
        distance=mostly(st.sampled_from(["cosine", "euclidean", hyperbolic.HyperbolicDistance()])),
        chunk_size=count,
    ),
    "readout.fit_readout": entry(
        readout.fit_readout,
        x=matrix(),
        y=optional(labels()),
        covariance=name("total", "within"),
        shrinkage=real,
        dim=optional(count),
    ),
    "readout.choose_readout": entry(
        readout.choose_readout,
        x=matrix(),
        y=labels(),
        val_x=matrix(),
        val_y=labels(),
        covariances=mostly(st.just(("total",)), st.just(("both",))),
        shrinkages=mostly(st.just((0.3,)), st.just((-1.0,))),
        dim=optional(count),
    ),
    "readout.LinearReadout": entry(
        module(readout.LinearReadout, "x"),
        mean=mostly(st.just(torch.zeros(C)), tensors()),
        weight=matrix(2),
        x=matrix(),
    ),
    "samplers.ClassBalancedSampler": entry(
        lambda epoch, positions, **options: (
            made := samplers.ClassBalancedSampler(**options),
            made.set_epoch(epoch),
            positions is None or made.set_positions(positions),
            list(made),
        ),
        labels=labels(),
        batch_size=mostly(st.sampled_from([2, 4, 6]), st.integers(-2, 9)),
        per_class=mostly(st.sampled_from([1, 2]), st.integers(-2, 9)),
        seed=mostly(st.integers(0, 3), st.integers(-3, -1)),
        batches_per_epoch=optional(count),
        neighbors=mostly(st.integers(0, 3), st.integers(-3, -1)),
        positions=optional(matrix(3)),
        epoch=mostly(st.integers(0, 3), st.integers(-3, -1)),
    ),
    "pipeline.published_rows": entry(
        pipeline.published_rows, system=optional(name("DyBGR")), dataset=optional(name("cub"))
    ),
    # datasets
    "datasets.ImageDataset": entry(
        lambda item, indices, **options: (
            made := datasets.ImageDataset(**options),
            made.subset(indices),
            made.select_classes(indices),
            made[0],
        )[:0],
        images=st.one_of(pictures, st.just(["/no/such.png"] * N)),
        labels=labels(),
        class_names=mostly(st.sampled_from([["a", "b", "c"], [*"abcdef"]])),
        paths=optional(mostly(st.just([*"abcdef"]))),
        indices=mostly(st.sampled_from([[0, 1], torch.arange(2)]), st.just([99]), tensors()),
        item=st.none(),
    ),
    "datasets.Splits": entry(
        datasets.Splits,
        name=st.just("x"),
        train=st.builds(image_dataset),
        val=st.none(),
        test=st.builds(image_dataset, class_names=st.sampled_from([["d", "e", "f"], [*"abc"]])),
    ),
    "datasets.dataset_names": entry(datasets.dataset_names, short=1, long=1),
    "datasets.standin_names": entry(datasets.standin_names, short=1, long=1),
    "datasets.download": entry(
        datasets.download, name=name("emoji", "folder", "table"), root=path("/no/such/folder")
    ),
    "datasets.load_dataset": entry(
        datasets.load_dataset,
        name=name("folder", "table", "cub", "cars", "sop", "inshop", "vehicleid-small"),
        root=path(),
        val_fraction=real,
        seed=count,
        skip_broken=flag,
        allow_partial=flag,
        table=optional(path("/no/such.csv")),
    ),
    "datasets.raw_pixels": entry(datasets.raw_pixels, dataset=st.builds(image_dataset)),
    "images.read_image": entry(images.read_image, path=path("/no/such.png")),
    "images.eval_transform": entry(
        lambda image, **options: images.eval_transform(**options)(image),
        image_size=mostly(st.integers(1, 9), st.integers(-2, 0)),
        mean=mostly(st.just([0.5] * 3), st.just([0.5])),
        std=mostly(st.just([0.5] * 3), st.just([0.0] * 3)),
        resize=optional(mostly(st.integers(9, 12), st.integers(-2, 3))),
        image=st.just(torch.zeros(3, 8, 8, dtype=torch.uint8)),
    ),
    "images.train_transform": entry(
        lambda image, **options: images.train_transform(**options)(image),
        image_size=mostly(st.integers(1, 9), st.integers(-2, 0)),
        mean=mostly(st.just([0.5] * 3), st.just([0.5])),
        std=mostly(st.just([0.5] * 3), st.just([0.0] * 3)),
        crop_scale=mostly(st.just((0.5, 1.0)), st.just((1.0, 0.5)), st.just((0.0, 1.0))),
        flip=real,
        image=st.just(torch.zeros(3, 8, 8, dtype=torch.uint8)),
    ),
    "datasets.write_standin": entry(
        datasets.write_standin,
        name=name("table"),
        root=st.just("/dev/null/x"),  # nothing can be written there
        classes=count,
        images=count,
        image_size=count,
        seed=count,
        short=10,
    ),
    # models
    "models.BatchGraphModel": entry(
        lambda images, labels: small_model().train()(images, labels),
        images=mostly(st.just(torch.randn(N, 3, 32, 32)), tensors()),
        labels=optional(labels()),
        short=10,
        long=300,
    ),
    "models.BlockConfig": entry(
        models.BlockConfig,
        name=name("dybgr", "bgformer"),
        options=mostly(st.just({"k": 3}), st.just({"kk": 3})),
    ),
    "models.ModelConfig": entry(
        models.ModelConfig,
        backbone=name("test_resnet"),
        image_size=count,
        mean=st.just((0.5,) * 3),
        std=st.just((0.5,) * 3),
        head_dim=count,
        curvature=optional(real),
        clip_radius=optional(real),
        resize=optional(mostly(st.integers(5, 9))),
    ),
    "models.assemble_model": entry(
        models.assemble_model,
        backbone=st.just(nothing),
        channels=count,
        config=st.just(models.ModelConfig("x", 8, (0.5,) * 3, (0.5,) * 3, 4)),
    ),
    "models.create_backbone": entry(
        models.create_backbone,
        name=name("test_resnet"),
        weights=mostly(st.just("none"), path("/no/such.pth")),
        short=10,
        long=200,
    ),
    "models.Encoder": entry(
        lambda images, batch_size, output: small_encoder().embed(images, batch_size, output),
        images=st.one_of(pictures, st.just(["/no/such.png"]), st.just([])),
        batch_size=count,
        output=name("head", "backbone"),
        short=10,
        long=300,
    ),
    "models.export": entry(
        models.export,
        folder=path(),
        path=st.sampled_from(["/dev/null/x.onnx", "/dev/null/x.pt2", "\0"]),
        format=name("onnx", "torch"),
    ),
    "models.load": entry(models.load, folder=path()),
    "models.model_digest": entry(models.model_digest, model=path()),
    "models.push_to_hub": entry(models.push_to_hub, folder=path(), repo_id=st.just("x/y")),
    "models.load_released_checkpoint": entry(
        models.load_released_checkpoint,
        checkpoint=st.one_of(path(), st.just({}), st.just({"params": {"x": torch.zeros(1)}})),
        backbone=name("test_vit"),
        k=k,
        heads=count,
        short=10,
        long=300,
    ),
    "models.make_head": entry(
        models.make_head,
        channels=count,
        dim=count,
        curvature=optional(real),
        clip_radius=optional(real),
    ),
    "models.save": entry(
        models.save,
        model=st.builds(small_model),
        folder=st.sampled_from(["/dev/null/x", "\0"]),
        config=st.just(models.ModelConfig("x", 8, (0.5,) * 3, (0.5,) * 3, 4)),
    ),
    # search
    "search.SearchIndex": entry(
        search.SearchIndex.build,
        run=path(),
        images=files,
        output=name("head", "backbone"),
        batch_size=count,
    ),
    "search.find_images": entry(search.find_images, places=files),
    "search.write_results": entry(
        search.write_results,
        results=st.just({}),
        path=st.just("/dev/null/x.html"),
        measure=st.just("cosine similarity"),
    ),
    # training
    "training.TrainConfig": entry(
        changed(train_config), **fields(training.TrainConfig), short=200, long=5000
    ),
    "training.build_model": entry(
        changed(lambda **options: training.build_model(train_config(**options))),
        **fields(training.TrainConfig, "backbone", "epochs"),
        short=20,
        long=300,
    ),
    "training.build_encoder": entry(
        changed(lambda **options: training.build_encoder(train_config(**options))),
        **fields(training.TrainConfig, "backbone", "seed"),
        short=10,
        long=300,
    ),
    "training.train": entry(
        training_call,
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
        batch_size=count,
        workers=st.sampled_from([0, -1]),
        short=10,
        long=300,
    ),
    "training.evaluate": entry(
        lambda head, backbone, labels, k: training.evaluate(
            {"head": head, "backbone": backbone}, labels, k
        ),
        head=matrix(),
        backbone=matrix(),
        labels=labels(),
        k=mostly(st.just((1, 2)), st.just((0,))),
    ),
    "training.evaluate_encoder": entry(
        lambda batch_size: training.evaluate_encoder(small_encoder(), make_splits(), batch_size),
        batch_size=count,
        short=5,
        long=50,
    ),
    "training.make_accelerator": entry(training.make_accelerator, device=name("cpu", "auto")),
    "datasets.recall_at": entry(datasets.recall_at, dataset=st.sampled_from(["cub", "sop", "x"])),
    # visualization
    "visualization.adjacency_heatmap": entry(
        visualization.adjacency_heatmap,
        graph=mostly(st.builds(graph), matrix(N, N), tensors()),
        y=optional(labels()),
        short=8,
        long=200,
    ),
    "visualization.edge_weight_histogram": entry(
        visualization.edge_weight_histogram,
        graph=mostly(st.builds(graph), matrix(N, N), tensors()),
        y=optional(labels()),
        bins=count,
        short=8,
        long=200,
    ),
    "visualization.draw_batch_graph": entry(
        visualization.draw_batch_graph,
        data=st.builds(graph),
        images=optional(pictures),
        max_edges=count,
        seed=count,
        layout=name("spring"),
        short=8,
        long=200,
    ),
    "visualization.embedding_map": entry(
        visualization.embedding_map,
        x=matrix(),
        y=optional(labels()),
        images=optional(pictures),
        method=name("auto", "pca"),
        max_images=count,
        short=8,
        long=200,
    ),
    "visualization.project": entry(
        visualization.project, x=matrix(), method=name("pca"), seed=count, short=8, long=200
    ),
    "visualization.retrieval_grid": entry(
        visualization.retrieval_grid,
        x=matrix(),
        y=labels(),
        images=pictures,
        queries=optional(mostly(st.just([0, 1]), st.just([99]))),
        k=count,
        short=8,
        long=200,
    ),
    "visualization.training_curves": entry(
        visualization.training_curves,
        history=st.one_of(
            st.just([{"epoch": 1.0, "loss": 2.0}]),
            st.sampled_from(["", "/no/such.csv", "/dev/null"]),
            st.just([{"x": "y"}]),
        ),
        short=8,
        long=200,
    ),
    "visualization.read_history": entry(visualization.read_history, path=path("/no/such.csv")),
    "visualization.explore": entry(
        visualization.explore,
        data=st.builds(graph),
        images=optional(pictures),
        path=st.just("/dev/null/x.html"),
        short=8,
        long=200,
    ),
    "pipeline.explore_run": entry(
        pipeline.explore_run, folder=path(), path=st.just("/dev/null/x.html"), short=8
    ),
}

# hold what they are given, and leave it to others to look at it; types, constants
RECORDS = {
    *("images.IMAGE_SUFFIXES", "images.BrokenImageError", "images.Transform"),
    *("datasets.RECALL_AT", "readout.ReadoutChoice"),
    # what names are registered in, and what stands behind a name
    *("augment.AUGMENTATIONS", "datasets.READERS", "losses.LOSSES", "losses.MINERS"),
    *("augment.AugmentationPlan", "augment.iaa", "datasets.Listing", "layers.BatchBlock"),
    *("samplers.BatchSampler", "samplers.ClassPositions"),
    *("models.BLOCKS", "models.BackboneInfo", "models.BatchGraphOutput"),
    *("training.Interrupted", "training.Interruption", "training.Progress"),
    *("training.ProgressList", "training.TrainResult", "training.TrainingRun"),
    "search.Hit",
    # command lines and what they are made of
    *("cli.main", "pipeline.CONFIGS", "pipeline.TerminalProgress", "pipeline.as_csv"),
    *("pipeline.baseline_rows", "pipeline.check_folder", "pipeline.load_splits"),
    *("pipeline.main", "pipeline.markdown", "pipeline.parse", "pipeline.print_table"),
    *("pipeline.trained_rows", "pipeline.Row", "pipeline.Trained", "pipeline.read_config"),
    *("pipeline.read_results", "pipeline.train", "train"),
}


def public_names() -> set[str]:
    """What every package says is public, and what the modules beside them define."""
    found = set(bgl.__all__)
    for info in pkgutil.iter_modules(bgl.__path__):
        if info.name.startswith("_"):
            continue
        content = importlib.import_module(f"bgl.{info.name}")
        names = getattr(content, "__all__", None) or [
            name
            for name, value in vars(content).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == content.__name__
        ]
        found |= {f"{info.name}.{name}" for name in names}
    # what bgl itself gives is public under that name alone
    found -= {f"{module}.{name}" for module in ("graph", "refinement") for name in bgl.__all__}
    return found


def test_every_public_name_has_an_entry():
    assert public_names() == FUZZ.keys() | RECORDS


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
    search = searched(case.short, case.long)[length == "long"].values[0]
    # arguments of the tests, not of pytest
    drawn = given(st.fixed_dictionaries(dict(case.arguments)))

    @search
    @drawn
    def run(arguments: dict[str, Any]) -> None:
        check_outcome(case.call, arguments)

    run()
    print(f"{name}: {getattr(case, length)} cases")


def test_entries_use_arguments_that_exist():
    """A renamed argument must not make an entry fuzz nothing but its own mistake."""
    for name_, case in FUZZ.items():
        parameters = inspect.signature(case.call).parameters.values()
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            assert case.arguments.keys() <= {p.name for p in parameters}, name_


def test_a_misspelt_argument_is_found():
    with pytest.raises(AssertionError, match="AdaptiveGraph"):
        module(layers.AdaptiveGraph, "x", "labels")
    misspelt = module(layers.AdaptiveGraph, "x")
    assert "neighbours" not in inspect.signature(misspelt).parameters
    with pytest.raises(AssertionError, match="unexpected keyword"):
        check_outcome(misspelt, {"neighbours": 3, "x": torch.randn(N, C)})
