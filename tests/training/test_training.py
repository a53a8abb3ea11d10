"""train(): what it leaves behind, that it learns, repeats itself, resumes and stops in time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from safetensors.torch import load_file
from tiny_training import (
    DIM,
    SIDE,
    WIDTH,
    StopAfter,
    assert_same_files,
    make_splits,
    part,
    read_csv,
    tiny,
)
from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.data import Data

import bgl.training.loop as loop
from bgl.augment import ClassStatistics, IntraClassAugmentation
from bgl.datasets import ImageDataset, Splits
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.losses import LOSSES
from bgl.metrics import retrieval_metrics
from bgl.models import BatchGraphModel, BatchGraphOutput, load
from bgl.samplers import ClassBalancedSampler
from bgl.training import (
    Evaluator,
    Progress,
    TrainConfig,
    TrainResult,
    build_encoder,
    build_model,
    evaluate_encoder,
    train,
)
from bgl.training.build import (
    build_augmentation,
    build_teachers,
    make_optimizer,
    make_schedule,
)
from bgl.training.evaluation import evaluate
from bgl.training.history import chosen_epoch, graph_statistics
from bgl.training.trainer import Trainer


@pytest.fixture(scope="session")
def splits() -> Splits:
    return make_splits()


class Record(Progress):
    """Notes down everything it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.rows: list[dict[str, Any]] = []

    def start(self, what: str, total: int) -> None:
        self.stages.append((what, total))
        self.done.append(0)

    def advance(self, amount: int) -> None:
        self.done[-1] += amount

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


METHODS = ["none", "dybgr", "bgformer", "batchformer", "dybgr+bgformer"]


@pytest.mark.parametrize(
    ("method", "augmentation"), [*((method, "none") for method in METHODS), ("dybgr", "iaa")]
)
def test_every_method_leaves_its_files(splits, tmp_path, method, augmentation):
    config = tiny(method=method, augmentation=augmentation)
    result = train(config, splits, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    model = {"model.safetensors", "model.json"}
    assert files == model | {"metrics.csv", "embeddings.safetensors", "checkpoint.pt"}

    rows = read_csv(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert ("loss_graph" in row) == ("same_class_edges" in row) == (method != "none")
        if method != "none":
            mixed = 0.3 * float(row["loss_plain"]) + 0.7 * float(row["loss_graph"])
            assert float(row["loss"]) == pytest.approx(mixed, rel=1e-5)
            assert 0 < float(row["same_class_edges"]) <= 1
            assert 0 < float(row["same_class_weight"]) <= 1
    assert len(result.history) == 2

    model = load(tmp_path).model
    assert result.num_parameters == sum(p.numel() for p in model.parameters())
    assert result.dimensions == {"backbone": WIDTH, "head": DIM, "readout": WIDTH}
    stored = load_file(tmp_path / "embeddings.safetensors")
    assert stored["embeddings"].shape == (32, WIDTH)
    assert torch.equal(stored["labels"], splits.train.labels)

    assert result.metrics.keys() == {"backbone", "head", "readout"}
    for metrics in result.metrics.values():
        assert metrics["num_queries"] == 16
        assert 0 <= metrics["recall@1"] <= metrics["recall@8"] <= 1
        assert 0 <= metrics["map@r"] <= 1


def measure(folder: Path, dataset: ImageDataset) -> dict[str, Any]:
    """What the stored weights are worth on ``dataset``, without the loop's help."""
    return Evaluator(load(folder)).measure(dataset)


@pytest.mark.parametrize("select", ["backbone", "head"])
def test_the_best_validation_epoch_is_the_one_that_is_stored(tmp_path, select):
    # so hard that validation goes up and down
    torch.manual_seed(2)
    parts = [part(name, n, 4, 120, 8) for name, n in (("train", 8), ("val", 8), ("test", 4))]
    splits = Splits("noise", *parts)
    config = tiny(epochs=6, lr=3e-3, select_embedding=select)
    result = train(config, splits, tmp_path)
    values = [row[f"val_{select}_map@r"] for row in result.history]
    best = values.index(max(values))
    assert result.chosen_epoch == best + 1
    assert len(set(values)) > 1
    stored = measure(tmp_path, splits.val)
    for embedding in ("backbone", "head"):
        for name, value in stored[embedding].items():
            assert value == pytest.approx(result.history[best][f"val_{embedding}_{name}"], abs=1e-6)
    # and the test metrics are those of the same weights
    for embedding, metrics in measure(tmp_path, splits.test).items():
        assert metrics == pytest.approx(result.metrics[embedding], abs=1e-6)
    vectors = load_file(tmp_path / "embeddings.safetensors")["embeddings"]
    again = load(tmp_path).embed(splits.train, batch_size=5)
    torch.testing.assert_close(vectors, again, rtol=1e-4, atol=1e-4)  # whitened: of size 10


def test_test_images_meet_the_weights_of_the_best_epoch(splits, tmp_path, monkeypatch):
    """With made-up validation figures: the second of four epochs is best on the backbone."""
    figures = {"backbone": [0.2, 0.6, 0.6, 0.1], "head": [0.1, 0.2, 0.3, 0.4]}
    measured: list[dict[str, Tensor]] = []
    datasets: list[ImageDataset] = []

    def measure(self: loop.Evaluator, queries: ImageDataset, *_: Any, **__: Any) -> dict[str, Any]:
        measured.append({name: t.clone() for name, t in self.encoder.model.state_dict().items()})
        datasets.append(queries)
        i = len(measured) - 1
        return {e: {"map@r": [*v, 0.0][i], "recall@1": 0.0} for e, v in figures.items()}

    monkeypatch.setattr(loop.Evaluator, "measure", measure)
    result = train(tiny(epochs=4), splits, tmp_path)
    assert result.chosen_epoch == 2
    assert datasets == [splits.val] * 4 + [splits.test]  # the test images once, at the end
    stored = state_of(tmp_path)
    for i, state in enumerate(measured):
        equal = all(torch.equal(tensor, stored[name]) for name, tensor in state.items())
        assert equal == (i in (1, 4))


def test_chosen_epoch_is_the_first_of_equals_and_the_last_without_validation():
    def history(*values: float) -> list[dict[str, Any]]:
        return [{"epoch": i + 1, "val_backbone_map@r": v} for i, v in enumerate(values)]

    assert chosen_epoch(history(0.1, 0.4, 0.3, 0.4), tiny()) == 2
    assert chosen_epoch(history(0.4, 0.1), tiny()) == 1
    assert chosen_epoch([{"epoch": 1}, {"epoch": 2}], tiny()) == 2


def test_an_epoch_is_begun_once(splits, tmp_path, monkeypatch):
    """Though no image of it came: what it learned of the training set is not learned again."""
    config = tiny(
        augmentation="iaa",
        teacher="refined",
        ema=0.9,
        options={"iaa": {"start": 0.0, "update_every": 1, "num_neighbors": 3}},
    )
    whole = train(config, splits, tmp_path / "whole")
    load_images, epochs = Trainer.images, 0

    def lost(*args: Any) -> Any:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise ChildProcessError
        return load_images(*args)

    monkeypatch.setattr(Trainer, "images", lost)
    with pytest.raises(ChildProcessError):
        train(config, splits, tmp_path / "parts")
    assert train(config, splits, tmp_path / "parts").metrics == whole.metrics
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_without_validation_the_last_epoch_is_stored(splits, tmp_path):
    config = tiny()
    result = train(config, Splits("colours", splits.train, None, splits.test), tmp_path)
    assert result.chosen_epoch == 2
    assert not any(name.startswith("val_") for row in result.history for name in row)
    metrics = measure(tmp_path, splits.test)
    assert metrics["head"] == pytest.approx(result.metrics["head"], abs=1e-6)


def test_a_separate_gallery_is_searched(splits, tmp_path):
    """Colours are easy to find again; in a gallery with its labels mixed up, they are not."""
    queries, gallery = splits.test.subset(range(1, 16, 2)), splits.test.subset(range(0, 16, 2))
    mixed = ImageDataset(gallery.images, (gallery.labels + 1) % 4, gallery.class_names)
    right = train(tiny(), Splits("r", splits.train, None, queries, gallery), tmp_path / "right")
    wrong = train(tiny(), Splits("w", splits.train, None, queries, mixed), tmp_path / "wrong")
    for embedding in ("backbone", "head"):
        assert right.metrics[embedding]["num_queries"] == 8
        assert right.metrics[embedding]["recall@1"] > 0.8
        assert wrong.metrics[embedding]["recall@1"] < 0.2


@pytest.mark.parametrize("method", ["none", "dybgr"])
def test_learns_an_easy_problem(tmp_path, method):
    """Colours without noise: the loss falls, and unseen colours are told apart. Classes are drawn
    at random: after look-alikes have come together, losses are of harder batches."""
    torch.manual_seed(1)
    easy = Splits("easy", part("train", 8, 4, 5), part("val", 4, 4, 5), part("test", 6, 4, 5))
    result = train(tiny(method=method, epochs=8, lr=3e-3, class_neighbors=0), easy, tmp_path)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metrics["head"]["recall@1"] > 0.8


@pytest.mark.parametrize(
    ("distance", "loss", "method"),
    [("cosine", name, "none") for name in LOSSES]
    + [("hyperbolic", "pairwise-ce", "dybgr"), ("hyperbolic", "triplet", "none")],
)
def test_every_loss_trains_with_iaa(splits, tmp_path, distance, loss, method):
    config = tiny(epochs=1, loss=loss, distance=distance, method=method, augmentation="iaa")
    result = train(config, splits, tmp_path)
    assert math.isfinite(result.history[0]["loss"])
    assert math.isfinite(result.metrics["head"]["map@r"])


def state_of(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return state


def test_same_seed_same_bits_and_another_seed_another_model(splits, tmp_path):
    config = tiny(method="dybgr", augmentation="iaa")
    train(config, splits, tmp_path / "a")
    torch.manual_seed(99)  # what went before must not matter
    train(config, splits, tmp_path / "b")
    assert_same_files(tmp_path / "a", tmp_path / "b")
    train(tiny(method="dybgr", augmentation="iaa", seed=1), splits, tmp_path / "c")
    a, c = state_of(tmp_path / "a"), state_of(tmp_path / "c")
    assert not torch.equal(a["head.0.weight"], c["head.0.weight"])


@pytest.mark.parametrize(
    ("method", "augmentation", "loss", "after"),
    [
        ("dybgr", "none", "pairwise-ce", 1),
        ("none", "iaa", "multi-similarity", 2),
        ("bgformer", "none", "soft-triple", 2),
    ],
)
def test_interrupted_run_goes_on_bit_for_bit(splits, tmp_path, method, augmentation, loss, after):
    config = tiny(method=method, augmentation=augmentation, loss=loss, epochs=3)
    whole = train(config, splits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path / "parts", StopAfter(after))
    assert len(read_csv(tmp_path / "parts")) == after  # a readable state is left
    torch.manual_seed(99)  # another process has other random numbers
    record = Record()
    parts = train(config, splits, tmp_path / "parts", record)
    assert [row["epoch"] for row in record.rows] == list(range(after + 1, 4))
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    assert parts.metrics == whole.metrics
    assert parts.chosen_epoch == whole.chosen_epoch
    seconds = [row["seconds"] for row in parts.history]
    assert seconds == sorted(seconds)


def test_a_finished_training_is_not_trained_again(splits, tmp_path):
    config = tiny()
    first, record = train(config, splits, tmp_path), Record()
    before = (tmp_path / "model.safetensors").read_bytes()
    second = train(config, splits, tmp_path, record)
    assert record.rows == []
    assert second.metrics == first.metrics
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_checkpoint_of_another_configuration_is_refused_by_name(splits, tmp_path):
    train(tiny(epochs=1), splits, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    other = tiny(epochs=1, lr=0.5, seed=1)
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*but lr, seed differ.*--output-dir"):
        train(other, splits, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_every_epoch_deals_other_batches(splits, tmp_path, monkeypatch):
    """Those of the class-balanced sampler for the configuration's seed, epoch by epoch."""
    seen: list[Tensor] = []
    criterion = loop.build_criterion

    def build(config: TrainConfig, num_classes: int) -> torch.nn.Module:
        inner = criterion(config, num_classes)
        inner.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
        return inner

    monkeypatch.setattr(loop, "build_criterion", build)
    train(tiny(seed=4, class_neighbors=0), splits, tmp_path)
    sampler = ClassBalancedSampler(splits.train.labels, 16, 4, seed=4)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [splits.train.labels[batch].tolist() for batch in sampler]
    assert [labels.tolist() for labels in seen] == expected
    assert expected[:2] != expected[2:]


@pytest.mark.parametrize("moves", [False, True], ids=["frozen", "train_batch_norm"])
def test_batch_norm_statistics(splits, tmp_path, moves):
    config = tiny(epochs=1, train_batch_norm=moves)
    train(config, splits, tmp_path)
    torch.manual_seed(0)
    fresh = build_model(config)[0].state_dict()
    for name, tensor in state_of(tmp_path).items():
        if "running_" in name:
            assert torch.equal(tensor, fresh[name]) != moves, name
    affine = "backbone.bn1.weight" if "backbone.bn1.weight" in fresh else None
    assert affine is not None
    assert not torch.equal(state_of(tmp_path)[affine], torch.ones_like(fresh[affine]))


def test_progress_is_told_every_stage(splits, tmp_path):
    record = Record()
    result = train(tiny(augmentation="iaa"), splits, tmp_path, record)
    assert record.rows == result.history
    totals = [total for _, total in record.stages]
    assert record.done == totals
    assert [what for what, _ in record.stages] == [
        "embedding 32 images",  # the statistics of the augmentation
        "epoch 1/2",
        "embedding 16 images",
        "epoch 2/2",
        "embedding 16 images",
        "embedding 32 images",
        "embedding 16 images",
    ]


@pytest.mark.parametrize(
    ("start", "update_every", "estimates"),
    [(0.0, 1, [1, 2, 3, 4]), (0.0, 2, [1, 3]), (0.5, 1, [3, 4]), (0.5, 3, [3]), (1.0, 1, [])],
)
def test_when_the_augmentation_is_estimated(splits, tmp_path, start, update_every, estimates):
    record = Record()
    iaa = {"start": start, "update_every": update_every, "num_neighbors": 3}
    config = tiny(epochs=4, augmentation="iaa", options={"iaa": iaa}, weights="none")
    train(config, Splits("s", splits.train, None, splits.test), tmp_path, record)
    names = [what for what, _ in record.stages]
    before = [names.index(f"epoch {e}/4") - 1 for e in range(1, 5)]
    found = [e for e, i in zip(range(1, 5), before, strict=True) if i >= 0 and "32" in names[i]]
    assert found == estimates


def test_augmentation_changes_the_plain_loss_alone(splits, tmp_path):
    """Before the first step all is equal but the synthetic copies."""
    plain = train(tiny(method="dybgr", epochs=1, batch_size=32), splits, tmp_path / "plain")
    augmented = train(
        tiny(method="dybgr", epochs=1, batch_size=32, augmentation="iaa"), splits, tmp_path / "iaa"
    )
    one, other = plain.history[0], augmented.history[0]
    assert one["loss_plain"] != other["loss_plain"]
    assert one["loss_graph"] == other["loss_graph"]


def test_strength_of_the_augmentation_follows_the_epochs(splits, tmp_path, monkeypatch):
    """Epoch e of five is at e/5: the last has what the schedule ends with."""
    strengths: list[float] = []
    augment = IntraClassAugmentation.forward

    def watched(self: IntraClassAugmentation, *arguments: Any) -> Any:
        strengths.append(self.strength)
        return augment(self, *arguments)

    monkeypatch.setattr(IntraClassAugmentation, "forward", watched)
    iaa = {"start": 0.0, "strength": 1.0, "schedule": True, "correction": False}
    config = tiny(epochs=5, batch_size=32, augmentation="iaa", options={"iaa": iaa})
    train(config, splits, tmp_path)
    assert strengths == [1.0, 1.0, 0.9, 0.75, 0.6]


@pytest.mark.parametrize("distance", ["cosine", "hyperbolic"])
def test_augmentation_has_the_options_of_its_configuration(distance):
    options = {"num_neighbors": 7, "beta": 0.2, "gamma": 0.4, "max_count": 9}
    options |= {"sigma_mean": 2.0, "sigma_var": 3.0}
    iaa = {"momentum": 0.3, "covariance": "full", "strength": 0.6, "num_samples": 2, **options}
    config = tiny(augmentation="iaa", options={"iaa": iaa}, distance=distance, curvature=0.5)
    plan = build_augmentation(config, 8)
    assert plan is not None
    augmentation: Any = plan.augmentation
    statistics, correction = augmentation.statistics, augmentation.correction
    assert (statistics.num_classes, statistics.channels) == (8, DIM)
    assert (statistics.momentum, statistics.covariance) == (0.3, "full")
    assert statistics.curvature == (0.5 if distance == "hyperbolic" else None)
    assert (augmentation.strength, augmentation.num_samples) == (0.6, 2)
    assert {name: getattr(correction, name) for name in options} == options


def test_gradients_are_clipped(splits, tmp_path):
    """Adam does not see a gradient's length, unless it is far below its epsilon."""
    config = tiny(epochs=1, weight_decay=0.0, grad_clip=1e-14, readout="none")
    train(config, splits, tmp_path)
    fresh = build_encoder(config)[0].model.state_dict()
    for name, tensor in state_of(tmp_path).items():
        torch.testing.assert_close(tensor, fresh[name], rtol=0, atol=1e-7, msg=name)


def test_every_step_draws_random_numbers_of_its_own(splits, tmp_path, monkeypatch):
    """What an encoder's dropout draws."""
    drawn: list[float] = []
    encode = BatchGraphModel.encode

    def watched(self: BatchGraphModel, images: Tensor) -> Tensor:
        if self.training:
            drawn.append(torch.rand(1, dtype=torch.float64).item())
        return encode(self, images)

    monkeypatch.setattr(BatchGraphModel, "encode", watched)
    train(tiny(), splits, tmp_path)
    assert len(drawn) == len(set(drawn)) == 4


@pytest.mark.parametrize(("crop_ratio", "side"), [(1.0, 32), (0.8, 26), (0.01, 2)])
def test_crops_are_smaller_than_images(splits, tmp_path, monkeypatch, crop_ratio, side):
    sides: dict[bool, set[torch.Size]] = {True: set(), False: set()}
    encode = BatchGraphModel.encode

    def watched(self: BatchGraphModel, images: Tensor) -> Tensor:
        sides[self.training].add(images.shape[1:])
        return encode(self, images)

    monkeypatch.setattr(BatchGraphModel, "encode", watched)
    train(tiny(crop_ratio=crop_ratio, epochs=1), splits, tmp_path)
    assert sides == {True: {torch.Size((3, side, side))}, False: {torch.Size((3, SIDE, SIDE))}}
    assert load(tmp_path).config.image_size == SIDE


def test_look_alikes_are_found_by_the_mean_unit_features_so_far(splits, tmp_path, monkeypatch):
    batches: list[tuple[Tensor, Tensor]] = []
    positions: list[Tensor] = []
    compute_losses = loop.compute_losses

    def watched(output: BatchGraphOutput, labels: Tensor, *others: Any) -> Any:
        batches.append((normalize(output.features.detach(), dim=1), labels))
        return compute_losses(output, labels, *others)

    monkeypatch.setattr(loop, "compute_losses", watched)
    monkeypatch.setattr(
        ClassBalancedSampler, "set_positions", lambda _, mean: positions.append(mean.clone())
    )
    train(tiny(epochs=3, class_neighbors=3), splits, tmp_path)
    assert len(batches) == 6
    assert len(positions) == 2  # from the second epoch on
    statistics = ClassStatistics(8, WIDTH)
    for seen, found in zip((batches[:2], batches[2:4]), positions, strict=True):
        for features, labels in seen:
            statistics.update(features, labels)
        torch.testing.assert_close(found, statistics.mean)


def test_each_embedding_is_measured_by_its_own_distance():
    """The directions of two sets of points, and where they lie in the ball, rank differently."""
    points = ToPoincareBall(0.5)(3 * torch.randn(60, 3))
    labels = torch.arange(60) % 6
    found = evaluate({"backbone": points, "head": points}, labels, (1,), HyperbolicDistance(0.5))
    assert found["backbone"] == retrieval_metrics(points, labels, k=(1,))
    assert found["head"] == retrieval_metrics(
        points, labels, k=(1,), distance=HyperbolicDistance(0.5)
    )
    assert found["head"] != found["backbone"]


def schedule_of(config: TrainConfig, steps: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = make_schedule(config, optimizer, steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "expected"),
    [
        ("linear", 0.4, 5, [1.0, 2.0, 2.0, 4 / 3, 2 / 3, 0.0]),
        ("linear", 0.0, 4, [2.0, 2.0, 4 / 3, 2 / 3, 0.0]),
        ("linear", 1.0, 4, [0.5, 1.0, 1.5, 2.0, 0.0]),
        ("linear", 0.05, 1, [2.0, 0.0]),
        ("constant", 0.0, 7, [2.0] * 8),
        ("constant", 0.4, 10, [0.5, 1.0, 1.5] + [2.0] * 8),
    ],
)
def test_schedule(schedule, warmup, steps, expected):
    rates = schedule_of(tiny(schedule=schedule, warmup=warmup), steps)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_step_schedule_is_torchs_multi_step(batches):
    options = {"schedule": "step", "lr_decay_epochs": [2, 5, 6], "lr_decay": 0.2}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 6], gamma=0.2)
    expected = []
    for _ in range(9):
        expected += [oracle.get_last_lr()[0]] * batches
        optimizer.step()
        oracle.step()
    rates = schedule_of(tiny(epochs=9, warmup=0.0, **options), 9 * batches)
    assert rates[:-1] == pytest.approx(expected)


def test_every_step_moves_the_rate(splits, tmp_path):
    config = tiny(epochs=3, warmup=0.0)  # of two steps each
    history = train(config, splits, tmp_path).history
    expected = [config.lr / 2.0 * rate for rate in schedule_of(config, 6)[:6:2]]
    assert [row["lr"] for row in history] == pytest.approx(expected)


def test_loss_and_miner_go_by_the_distance_of_the_head():
    for distance, kind in (("cosine", CosineSimilarity), ("hyperbolic", HyperbolicDistance)):
        config = tiny(loss="triplet", distance=distance, curvature=0.5)
        criterion = loop.build_criterion(config, 8)
        assert isinstance(criterion.loss.distance, kind)
        assert isinstance(criterion.miner.distance, kind)
    assert criterion.miner.distance.c == criterion.loss.distance.c == 0.5


def test_optimizer_has_a_rate_for_each_part():
    rates = {"lr": 1e-3, "lr_head": 5.0, "lr_proxies": 0.3, "lr_blocks": 0.2}
    config = tiny(method="dybgr", loss="proxy-anchor", teacher="wide", **rates)
    model, info = build_model(config)
    criterion = loop.build_criterion(config, 8)
    teachers = build_teachers(config, 8, info.num_features)
    found = {
        id(p): group["lr"]
        for group in make_optimizer(config, model, criterion, teachers).param_groups
        for p in group["params"]
    }
    wide = teachers["wide"]
    for rate, modules in {
        1e-3: [model.backbone],
        5e-3: [model.head, wide.heads],
        0.3: [criterion, wide.criteria],  # proxies
        0.2: [model.blocks],
    }.items():
        of_part = {found.pop(id(p)) for module in modules for p in module.parameters()}
        assert list(of_part) == [pytest.approx(rate)]
    assert found == {}


def test_graph_statistics_of_a_hand_example():
    y = torch.tensor([0, 0, 1])
    one = Data(  # one of two edges, three of four parts of the weight within a class
        y=y, edge_index=torch.tensor([[0, 2], [1, 0]]), edge_weight=torch.tensor([0.75, 0.25])
    )
    heads = Data(  # one of three edges; mean over heads 0.5, 0.25, 0.25
        y=y,
        edge_index=torch.tensor([[1, 2, 0], [0, 1, 2]]),
        edge_weight=torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.5]]),
    )
    assert graph_statistics([one]) == pytest.approx(
        {
            "same_class_edges": 0.5,
            "same_class_weight": 0.75,
            "mean_degree": 2 / 3,
            "weight_entropy": 0.0,
        }
    )
    even = Data(
        y=y, edge_index=torch.tensor([[1, 2], [0, 0]]), edge_weight=torch.tensor([0.3, 0.3])
    )
    assert graph_statistics([even])["weight_entropy"] == pytest.approx(math.log(2) / 3)
    both = graph_statistics([one, heads])
    assert both["same_class_edges"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert both["same_class_weight"] == pytest.approx((0.75 + 0.5) / 2)
    assert graph_statistics([]) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("head_dim", 2.5),
        ("epochs", 0),
        ("batch_size", -4),
        ("per_class", True),
        ("seed", -1),
        ("workers", -2),
        ("curvature", 0.0),
        ("clip_radius", math.inf),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr_head", -1.0),
        ("lr_blocks", "fast"),
        ("grad_clip", 0.0),
        ("weight_decay", -1e-3),
        ("crop_scale", 0.0),
        ("crop_scale", 1.5),
        ("alpha", 1.1),
        ("warmup", -0.1),
        ("val_fraction", 2.0),
        ("distance", "euclidean"),
        ("select_embedding", "both"),
        ("loss", "arcface"),
        ("miner", "gold"),
        ("augmentation", "mixup"),
        ("device", "tpu"),
        ("method", "dybgr+gat"),
        ("method", ""),
        ("loss_options", {"distance": "l2"}),
        ("loss_options", {"num_classes": 3}),
        ("miner_options", {"name": "batch-hard"}),
        ("protocol", "optimistic"),
        ("eval_every", 0),
        ("optimizer", "sgd"),
        ("schedule", "cosine"),
        ("lr_decay", 0.0),
        ("lr_decay", math.nan),
        ("resize", 31),
        ("crop_ratio", 0.0),
        ("crop_ratio", 1.1),
        ("batches_per_epoch", 0),
        ("max_images", 0),
        ("lr_decay_epochs", [3]),  # without the schedule "step"
        ("lr_decay_epochs", [0]),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"`{field}`"):
        tiny(**{field: value})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"schedule": "step"}, r"`lr_decay_epochs`.* got \[\] with 'step'"),
        ({"per_class": 3}, r"`batch_size`.*`per_class` \(3\), got 16"),
        ({"options": {"dybgr": {"kk": 3}}}, "'dybgr' to be among k, num_iterations.* but got kk"),
        ({"options": {"gat": {"k": 3}}}, "`block`.*'gat'.*--plugin"),
        ({"options": {"iaa": 3}}, "`iaa` to hold options"),
    ],
)
def test_values_that_do_not_fit_together(options, named):
    with pytest.raises(ValueError, match=named):
        tiny(**options)


def test_cuda_that_is_not_there(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"`device`.*CUDA"):
        train(tiny(device="cuda"), splits, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "8 training classes .*up to 32 .*got 64"),
        ({"loss": "contrastive", "distance": "hyperbolic"}, "hyperbolic"),
        ({"loss_options": {"temprature": 1.0}}, "temprature"),
        ({"miner_options": {"margin": 1.0}}, "miner_options"),
        ({"method": "bgformer", "options": {"bgformer": {"heads": 7}}}, "heads"),
        ({"method": "dybgr", "options": {"dybgr": {"k": 0}}}, "`k`"),
        ({"augmentation": "iaa", "options": {"iaa": {"start": 2.0}}}, "`start`"),
        ({"augmentation": "iaa", "options": {"iaa": {"update_every": 0}}}, "`update_every`"),
        ({"backbone": "resnet81"}, "resnet81"),
        (
            {"backbone": "deit_tiny_patch16_224", "crop_ratio": 0.5},
            "`crop_ratio`.*none of 16 x 16",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_configuration_that_does_not_fit(splits, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tiny(**options), splits, tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reported_figures_are_those_of_the_stored_model(tmp_path, precision):
    """Bit for bit, although the model is trained in half precision, as on a GPU."""
    torch.manual_seed(3)
    parts = [part(name, n, 4, 120, 8) for name, n in (("train", 8), ("val", 4), ("test", 40))]
    splits = Splits("noise", *parts, gallery=part("test", 40, 4, 120, 8))
    found: dict[str, dict[str, Tensor]] = {}

    class Keep(Progress):
        def measured(self, data: ImageDataset, vectors: Any, gallery: Any = None) -> None:
            if data is splits.test:
                found.update(test=vectors, gallery=gallery)

    result = train(tiny(method="dybgr", epochs=1, precision=precision), splits, tmp_path, Keep())
    encoder = load(tmp_path)
    assert evaluate_encoder(encoder, splits) == result.metrics
    for name, vectors in found.items():
        for output, x in vectors.items():
            assert torch.equal(x, encoder.embed(splits.parts()[name], 256, output))
    stored = load_file(tmp_path / "embeddings.safetensors")["embeddings"]
    assert torch.equal(stored, encoder.embed(splits.train, 256))


def test_embedding_restores_the_mode_and_keeps_the_order(splits):
    encoder, _ = build_encoder(tiny(method="dybgr"))
    model, data = encoder.model, splits.test
    counts: list[int] = []
    model.train()
    first = encoder.embed(data, 6, output=None, on_batch=counts.append)
    assert model.training
    assert model.backbone.training
    assert counts == [6, 6, 4]
    model.eval()
    turned = encoder.embed(data.subset(range(15, -1, -1)), output=None)
    assert not model.training
    for name, width in (("backbone", WIDTH), ("head", DIM)):
        assert first[name].shape == (16, width)
        assert first[name].dtype == torch.float32
        torch.testing.assert_close(turned[name].flip(0), first[name], rtol=0, atol=1e-5)


def test_result_is_described(splits, tmp_path):
    result = train(tiny(epochs=1), splits, tmp_path)
    assert isinstance(result, TrainResult)
    assert result.backbone.name == "test_resnet"
    assert result.backbone.weights == "random"
    assert result.seconds > 0
    assert 50 < result.peak_memory_mb < 50_000
