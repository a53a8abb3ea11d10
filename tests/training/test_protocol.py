"""The papers' protocol, and the options that their recipes need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from tiny_training import StopAfter, make_splits

import bgl.training.loop as loop
from bgl.datasets import RECALL_AT, ImageDataset, Splits, recall_at
from bgl.models import create_backbone, load
from bgl.training import TrainConfig, build_encoder, build_model, train
from bgl.training.build import make_optimizer
from bgl.training.loop import chosen_epoch


@pytest.fixture
def splits() -> Splits:
    return make_splits()


def tiny(**options: Any) -> TrainConfig:
    return tiny_training.tiny(**{"epochs": 5, **options})


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

    def measure(self: loop.Evaluator, queries: ImageDataset, *_: Any, **__: Any) -> dict[str, Any]:
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

    def measure(self: loop.Evaluator, queries: ImageDataset, *_: Any, **__: Any) -> dict[str, Any]:
        score = next(scores["test" if queries is splits.test else "val"])
        return {e: {"recall@1": score, "map@r": score} for e in ("backbone", "head")}

    monkeypatch.setattr(loop.Evaluator, "measure", measure)
    result = train(tiny(epochs=3, test_every_epoch=True), splits, tmp_path)
    assert result.chosen_epoch == 2
    assert [row["test_head_map@r"] for row in result.history] == [0.5, 0.1, 0.8]


def test_paper_protocol_goes_on_where_it_stopped(splits, tmp_path):
    config = tiny(protocol="paper", eval_every=2, epochs=3)
    whole = train(config, splits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path / "parts", StopAfter(2))
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
    config = tiny(epochs=1, freeze=["conv1", "layer1"], checkpoint_activations=4, readout="none")
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
    def offline(url: str, **options: Any) -> Any:
        raise ConnectionError("no network here")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match=r"torchvision's hub.*no network here.*--weights"):
        create_backbone("torchvision:googlenet")


def test_unknown_name_mentions_torchvision():
    with pytest.raises(ValueError, match="torchvision:googlenet"):
        create_backbone("googlenet")
