"""Adapting to images without labels: relations, resuming, stopping, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import connected
from helpers import write_noisy_classes
from safetensors.torch import load_file
from tiny_training import SIDE, part, tiny
from torch import Tensor
from torch.nn.functional import normalize

import bgl
from bgl.cli import main
from bgl.losses import RelatedNeighborsLoss
from bgl.models import Encoder
from bgl.training import Interrupted, Interruption, adapting, build_encoder
from bgl.training.adapting import AdaptConfig, Relations, adapt_encoder, agreement

TINY: dict[str, Any] = {
    **{"epochs": 2, "k": 3, "batch_size": 16, "group": 3, "lr": 1e-3, "patience": 9},
    **{"device": "cpu", "workers": 0, "checkpoint_minutes": 0.0},
}


def encoder() -> Encoder:
    return build_encoder(tiny())[0]


def clusters(classes: int = 6, size: int = 5) -> Tensor:
    centers = torch.randn(classes, 12).repeat_interleave(size, 0)
    return centers + 0.7 * torch.randn(classes * size, 12)


def test_relations_agree_with_the_definition() -> None:
    x = clusters()
    relations = Relations(len(x), 12, k=4, shrinkage=0.3)
    relations.learn(x)
    h = bgl.gallery_readout(x, k=4, shrinkage=0.3)(x)
    f = bgl.refine(h, k=4, shrinkage=None)
    cosine = f @ f.t()
    near = [set(row.argsort(descending=True).tolist()[1:5]) for row in cosine]
    batch = torch.tensor([3, 0, 29, 4, 1, 17, 28])
    found = relations(batch)
    for a, i in enumerate(batch.tolist()):
        for b, j in enumerate(batch.tolist()):
            related = i == j or j in near[i] or i in near[j]
            expected = max(0.0, float(cosine[i, j])) if related else 0.0
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-5)
    assert (found > 0).sum() > len(batch)  # some are neighbours


def test_agreement_is_the_share_of_shared_neighbours() -> None:
    one, other = views = clusters(), clusters()
    shared = 0.0
    for i in range(len(one)):
        orders = [(x @ x[i]).argsort(descending=True).tolist() for x in map(normalize, views)]
        first, second = ([j for j in order if j != i][:3] for order in orders)
        shared += len(set(first) & set(second)) / 3
    assert agreement(one, other, 3) == pytest.approx(shared / len(one))
    assert agreement(one, 2 * one, 3) == 1.0


def test_a_run_learns_and_its_model_is_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapting, "best_epoch", lambda history: history[-1]["epoch"])
    options = {**TINY, "lr": 1e-4}
    data, test, before = part("a", 8, 5, 60), part("t", 3, 4, 60), encoder()
    weights = {n: t.clone() for n, t in before.model.state_dict().items()}
    result = bgl.adapt(before, data, output_dir=tmp_path / "m", measure=test, quiet=True, **options)
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    features = [e.embed(data, output="backbone") for e in (before, result.encoder)]
    relations = Relations(len(data), features[0].size(1), k=3, shrinkage=1.0)
    relations.learn(features[0])
    target = relations(torch.arange(len(data)))
    first, last = (RelatedNeighborsLoss()(relations.metric(x), target) for x in features)
    assert last < first
    assert list(result.rows)[-1] == "adapted"
    assert str(result).count("\n") == 4
    for name, tensor in before.model.state_dict().items():  # the model given is left as it is
        assert torch.equal(tensor, weights[name])
    stored = torch.load(tmp_path / "m" / "checkpoint.pt", weights_only=True)
    assert "teachers" not in stored["parts"]  # as before there were any
    loaded = bgl.models.load(tmp_path / "m")
    assert loaded.config.embedding == "readout"
    torch.testing.assert_close(loaded.embed(test), result.encoder.embed(test))
    features = loaded.embed(data, output="backbone")
    expected = bgl.gallery_readout(features, k=3)(features)
    torch.testing.assert_close(loaded.embed(data), expected, rtol=1e-3, atol=1e-3)
    changed = loaded.model.backbone.state_dict()
    assert any(not torch.equal(t, weights[f"backbone.{n}"]) for n, t in changed.items())


def test_labels_are_not_used(tmp_path: Path) -> None:
    data = part("a", 8, 5, 60)
    other = bgl.datasets.ImageDataset(data.images, data.labels % 2, ["x", "y"], paths=data.paths)
    config, models = AdaptConfig(**{**TINY, "epochs": 1}), []
    for name, images in (("one", data), ("other", other)):
        adapt_encoder(encoder(), images, tmp_path / name, config)
        models.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


class _Stop(Interruption):
    """Interrupts at one of its checks."""

    left = 0

    def check(self) -> None:
        type(self).left -= 1
        if type(self).left == 0:
            raise Interrupted(15)


@pytest.mark.parametrize(
    ("after", "ema"),
    [
        pytest.param(1, 0.9, marks=pytest.mark.slow),
        (5, 0.0),
        pytest.param(9, 0.9, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_interrupted_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, ema: float
) -> None:
    data, config = part("a", 8, 5, 60), AdaptConfig(**{**TINY, "ema": ema})
    whole = adapt_encoder(encoder(), data, tmp_path / "whole", config)[1]
    with monkeypatch.context() as patch:
        patch.setattr(adapting, "Interruption", _Stop)
        _Stop.left = after
        with pytest.raises(Interrupted):
            adapt_encoder(encoder(), data, tmp_path / "parts", config)
    resumed = adapt_encoder(encoder(), data, tmp_path / "parts", config)[1]
    assert [{**row, "seconds": 0} for row in whole] == [{**row, "seconds": 0} for row in resumed]
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
    (tmp_path / "parts/model.safetensors").unlink()  # killed between checkpoint and model
    adapt_encoder(encoder(), data, tmp_path / "parts", config)
    again = load_file(tmp_path / "parts/model.safetensors")
    assert all(torch.equal(tensor, models[0][name]) for name, tensor in again.items())
    other = bgl.datasets.ImageDataset(
        data.images ^ 1, data.labels, data.class_names, paths=data.paths
    )
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        adapt_encoder(encoder(), other, tmp_path / "parts", config)


def test_it_ends_without_progress_and_keeps_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.6, 0.55, 0.6, 0.9])
    monkeypatch.setattr(adapting, "agreement", lambda *_: next(values))
    data, config = part("a", 8, 5, 60), AdaptConfig(**{**TINY, "epochs": 4, "patience": 2})
    kept: list[dict[str, Tensor]] = []

    class Weights(adapting.Progress):
        def begin(self, run: Any, epochs: int) -> None:
            self.model = run.encoder.model

        def epoch(self, row: dict[str, Any]) -> None:
            kept.append({n: t.clone() for n, t in self.model.state_dict().items()})

    found, history = adapt_encoder(encoder(), data, tmp_path / "m", config, Weights())
    assert [row["agreement"] for row in history] == [0.5, 0.6, 0.55, 0.6]
    for name, tensor in kept[0].items():
        assert torch.equal(tensor, found.model.state_dict()[name])


def test_the_command_from_a_pretrained_backbone_to_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_noisy_classes(tmp_path / "photos", {"test": 4}, per_class=4)
    (root / "test" / "broken.jpg").write_bytes(b"no image")
    words = ["adapt", "", str(root), "--output-dir", str(tmp_path / "m"), "--epochs", "1"]
    words += ["--k", "3", "--batch-size", "8", "--group", "2", "--device", "cpu", "--workers", "0"]
    words += ["--measure", str(root / "test")]
    start = encoder()
    bgl.models.save(start.model, tmp_path / "start", start.config)
    words[1] = str(tmp_path / "start")
    assert main(words) == 0
    output = capsys.readouterr()
    assert "broken.jpg" in output.out
    assert "transductive" in output.err
    assert "| adapted |" in output.out
    record = json.loads((tmp_path / "m" / "adapt.json").read_text())
    assert record["images"] == 16
    assert len(record["skipped"]) == 1
    assert main(words) == 0  # again: what is finished is taken as it is
    assert main(["adapt", "no_such_model", *words[2:]]) == 2
    assert "or a backbone of timm, got 'no_such_model'" in capsys.readouterr().err
    assert main([*words, "--k", "4"]) == 2
    assert "k differ; use another --output-dir" in capsys.readouterr().err
    words[words.index(str(tmp_path / "m"))] = str(tmp_path / "start")
    assert main(words) == 2
    assert "to be a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 3, SIDE, SIDE), {}, "more than the 3 neighbours of each .* got 3"),
        (torch.zeros(9, 3, SIDE, SIDE), {}, "got 9 images of which 1 differ"),
        (torch.zeros(0, 3, SIDE, SIDE), {}, "got 0"),
        (torch.zeros(9, 3, SIDE, SIDE), {"group": 20}, "`group` to be at most `batch_size`"),
        (torch.zeros(9, 3, SIDE, SIDE), {"nearby": 1}, "got 'nearby'"),
        (torch.zeros(9, 3, SIDE, SIDE), {"lr": 0.0}, "`lr`"),
        (torch.zeros(9, 3, SIDE, SIDE), {"shrinkage": 0.0}, "`shrinkage`"),
        (torch.zeros(9, 3, SIDE, SIDE), {"image_size": 64}, "`image_size` to be that of the model"),
        ("/no/such/folder", {}, "there is no /no/such/folder"),
    ],
)
def test_bad_input(tmp_path: Path, images: Any, options: dict[str, Any], message: str) -> None:
    images = images.to(torch.uint8) if isinstance(images, Tensor) else images
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        bgl.adapt(encoder(), images, output_dir=tmp_path / "m", quiet=True, **{**TINY, **options})


def test_copies_are_told_of(tmp_path: Path) -> None:
    data = part("a", 8, 2, 60)
    assert isinstance(data.images, Tensor)
    images = torch.cat([data.images, data.images[:4]])
    with pytest.warns(UserWarning, match="4 of 20 images look like another one"):
        bgl.adapt(encoder(), images, output_dir=tmp_path / "m", quiet=True, **{**TINY, "epochs": 1})


@pytest.mark.slow
def test_two_processes_adapt_as_one(tmp_path: Path) -> None:
    config = AdaptConfig(**{**TINY, "epochs": 1})

    def adapt_share(rank: int) -> None:
        torch.manual_seed(0)
        data = part("a", 3, 11, 60)  # of 33 images one process views more
        adapt_encoder(encoder(), data, tmp_path / "two", config)

    assert connected(adapt_share, tmp_path) == [0, 0]
    torch.manual_seed(0)
    data = part("a", 3, 11, 60)  # of 33 images one process views more
    adapt_encoder(encoder(), data, tmp_path / "one", config)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
