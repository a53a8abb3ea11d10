"""The papers' protocol, and the options that their recipes need."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import bgl.training.loop as loop
from bgl.datasets import RECALL_AT, ImageDataset, Splits, recall_at
from bgl.models import create_backbone, load
from bgl.training import TrainConfig, build_encoder, build_model, train
from bgl.training.build import make_optimizer, make_schedule
from bgl.training.loop import chosen_epoch


def part(prefix: str, num_classes: int) -> ImageDataset:
    labels = torch.arange(num_classes).repeat_interleave(4)
    images = torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    return ImageDataset(images, labels, [f"{prefix}{c}" for c in range(num_classes)])


@pytest.fixture
def splits() -> Splits:
    return Splits("noise", part("train", 8), part("val", 4), part("test", 4))


def tiny(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "dataset": "folder",
        "method": "none",
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": 32,
        "head_dim": 8,
        "epochs": 5,
        "batch_size": 16,
        "device": "cpu",
        "workers": 0,
    }
    return TrainConfig(**{**defaults, **options})


# --- the protocol ---------------------------------------------------------------------------------


def history(**values: dict[int, float]) -> list[dict[str, Any]]:
    return [
        {"epoch": e, **{name: v[e] for name, v in values.items() if e in v}} for e in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [({2: 0.4, 4: 0.6, 5: 0.5}, 4), ({2: 0.6, 4: 0.6, 5: 0.5}, 2), ({5: 0.1}, 5), ({}, 5)],
    ids=["best", "first of equals", "last alone", "nothing measured"],
)
def test_paper_protocol_takes_the_best_test_recall(measured, expected):
    rows = history(**{"test_head_recall@1": measured, "val_head_map@r": {1: 1.0}})
    assert chosen_epoch(rows, tiny(protocol="paper", select_embedding="head")) == expected
    assert chosen_epoch(rows, tiny(select_embedding="head")) == 1  # the honest one


@pytest.mark.parametrize(
    ("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])]
)
def test_paper_protocol_looks_at_the_test_classes(splits, tmp_path, monkeypatch, every, epochs):
    """... and never at validation classes; what it reports are the weights it chose."""
    recalls = iter([0.2, 0.9, 0.4, 0.1, 0.3])
    datasets: list[ImageDataset] = []
    states: list[torch.Tensor] = []

    def measure(self: loop.Evaluator, queries: ImageDataset, gallery: Any = None) -> dict[str, Any]:
        datasets.append(queries)
        states.append(next(iter(self.encoder.model.parameters())).detach().clone())
        recall = next(recalls, 0.0)
        return {e: {"recall@1": recall, "map@r": 0.0} for e in ("backbone", "head")}

    monkeypatch.setattr(loop.Evaluator, "measure", measure)
    result = train(tiny(protocol="paper", eval_every=every), splits, tmp_path)
    measured = [row["epoch"] for row in result.history if "test_backbone_recall@1" in row]
    assert measured == epochs
    assert datasets == [splits.test] * (len(epochs) + 1)
    best = min(1, len(epochs) - 1)
    assert result.chosen_epoch == epochs[best]
    assert [torch.equal(state, states[-1]) for state in states[:-1]].index(True) == best


def test_honest_protocol_may_look_at_every_epoch_and_chooses_by_validation_alone(
    splits, tmp_path, monkeypatch
):
    scores = {"val": iter([0.2, 0.9, 0.4]), "test": iter([0.5, 0.1, 0.8, 0.1])}

    def measure(self: loop.Evaluator, queries: ImageDataset, gallery: Any = None) -> dict[str, Any]:
        score = next(scores["test" if queries is splits.test else "val"])
        return {e: {"recall@1": score, "map@r": score} for e in ("backbone", "head")}

    monkeypatch.setattr(loop.Evaluator, "measure", measure)
    result = train(tiny(epochs=3, test_every_epoch=True), splits, tmp_path)
    assert result.chosen_epoch == 2
    assert [row["test_head_map@r"] for row in result.history] == [0.5, 0.1, 0.8]


def test_paper_protocol_goes_on_where_it_stopped(splits, tmp_path):
    config = tiny(protocol="paper", eval_every=2, epochs=3)
    whole = train(config, splits, tmp_path / "whole")

    class Stop(loop.Progress):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path / "parts", Stop())
    parts = train(config, splits, tmp_path / "parts")
    assert (parts.metrics, parts.chosen_epoch) == (whole.metrics, whole.chosen_epoch)


def test_recall_at_is_the_datasets(splits, tmp_path):
    assert recall_at("sop") == (1, 10, 100, 1000)
    assert recall_at("inshop") == (1, 10, 20, 30)
    assert recall_at("vehicleid-small") == recall_at("vehicleid") == (1, 5)
    assert recall_at("cub") == recall_at("table") == RECALL_AT
    result = train(tiny(dataset="inshop", epochs=1), splits, tmp_path)
    found = [name for name in result.metrics["head"] if name.startswith("recall")]
    assert found == ["recall@1", "recall@10", "recall@20", "recall@30"]


# --- optimiser and schedule -----------------------------------------------------------------------


def rates(config: TrainConfig, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(config, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_constant_schedule():
    assert rates(tiny(schedule="constant", warmup=0.0), 7) == [1.0] * 7
    warm = rates(tiny(schedule="constant", warmup=0.4), 10)
    assert warm == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_step_schedule_is_torchs_multi_step(batches):
    config = tiny(epochs=9, schedule="step", lr_decay_epochs=[2, 5, 6], lr_decay=0.2, warmup=0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 6], gamma=0.2)
    expected = []
    for _ in range(9):
        expected += [oracle.get_last_lr()[0]] * batches
        optimizer.step()
        oracle.step()
    assert rates(config, 9 * batches) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer(name, kind):
    config = tiny(optimizer=name, weight_decay=0.3)
    model, _ = build_model(config)
    optimizer = make_optimizer(config, model, torch.nn.Identity())
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


def test_batches_per_epoch(splits, tmp_path):
    class Count(loop.Progress):
        steps = 0

        def start(self, what: str, total: int) -> None:
            self.steps += total if what.startswith("epoch") else 0

    count = Count()
    train(tiny(epochs=2, batches_per_epoch=5), splits, tmp_path, count)
    assert count.steps == 10


def test_frozen_parts_stay_as_they_are(splits, tmp_path):
    config = tiny(epochs=1, freeze=["conv1", "layer1"], checkpoint_activations=True)
    train(config, splits, tmp_path)
    torch.manual_seed(0)
    fresh = build_encoder(config)[0].model.state_dict()
    trained = load(tmp_path).model.state_dict()
    still = ("backbone.conv1.", "backbone.layer1.")
    for name, tensor in trained.items():
        if name.endswith("weight"):
            assert torch.equal(tensor, fresh[name]) == name.startswith(still), name


def test_part_that_is_not_there():
    with pytest.raises(ValueError, match=r"`freeze`.*layer1.*'patch_embed'"):
        build_model(tiny(freeze=["patch_embed"]))


def test_resize_is_stored_with_the_model(splits, tmp_path):
    train(tiny(epochs=1, resize=48), splits, tmp_path)
    image = splits.test.images[:2]
    whole = load(tmp_path)
    train(tiny(epochs=1), splits, tmp_path / "other")
    small = load(tmp_path / "other")
    assert whole.transform(image[0]).shape == (3, 32, 32)
    assert not torch.equal(whole.transform(image[0]), small.transform(image[0]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "optimistic"),
        ("eval_every", 0),
        ("optimizer", "sgd"),
        ("schedule", "cosine"),
        ("lr_decay", 0.0),
        ("lr_decay", math.nan),
        ("resize", 31),
        ("batches_per_epoch", 0),
        ("lr_decay_epochs", [3]),  # without the schedule "step"
        ("lr_decay_epochs", [0]),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"`{field}`"):
        tiny(**{field: value})


def test_step_schedule_needs_epochs():
    with pytest.raises(ValueError, match=r"`lr_decay_epochs`.*'step'"):
        tiny(schedule="step")


# --- torchvision's GoogLeNet ----------------------------------------------------------------------


def test_googlenet_from_torchvisions_file(tmp_path: Path):
    """The file has a classifier and auxiliary heads that the encoder does not."""
    import torchvision

    source = torchvision.models.googlenet(init_weights=False, transform_input=True)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")
    model, info = create_backbone("torchvision:googlenet", str(tmp_path / "googlenet.pth"))
    assert (info.num_features, info.weights) == (1024, str(tmp_path / "googlenet.pth"))
    assert info.mean == pytest.approx((0.485, 0.456, 0.406))
    source.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.eval()(images)
        torch.testing.assert_close(features, source.eval()(images))
    assert features.shape == (2, 1024)


def test_googlenet_without_a_network(monkeypatch):
    import torchvision

    def offline(name: str, **options: Any) -> torch.nn.Module:
        raise ConnectionError("no network here")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(FileNotFoundError, match=r"torchvision's hub.*no network here.*--weights"):
        create_backbone("torchvision:googlenet")


def test_unknown_name_mentions_torchvision():
    with pytest.raises(ValueError, match="torchvision:googlenet"):
        create_backbone("googlenet")
