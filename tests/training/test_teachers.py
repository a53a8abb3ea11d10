"""Teachers, the average of the weights, a memory: their formulas, and how a run has them."""

from __future__ import annotations

import copy
import itertools
import os
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import DIM, WIDTH, assert_same_files, make_splits, read_csv, tiny
from torch import Tensor, nn

import bgl.training.loop as loop
from bgl.datasets import Splits
from bgl.losses import SoftTargetLoss, create_loss
from bgl.models import BatchGraphModel, BatchGraphOutput, make_head
from bgl.refinement import refine
from bgl.training import TEACHERS, Interrupted, Lesson, Progress, Teacher, build_model, train
from bgl.training.average import WeightAverage
from bgl.training.build import build_criterion, make_optimizer, make_schedule
from bgl.training.teachers import DiffusedTeacher, RefinedTeacher, WideTeacher

N, C, D, K = 12, 7, 4, 3


@pytest.fixture(scope="session")
def splits() -> Splits:
    return make_splits()


def lesson(progress: float = 0.25, older: bool = True) -> Lesson:
    def output() -> BatchGraphOutput:
        embeddings = torch.randn(N, D, dtype=torch.float64)
        return BatchGraphOutput(embeddings, torch.randn(N, C, dtype=torch.float64))

    mine = output()
    mine.embeddings.requires_grad_()
    mine.features.requires_grad_()
    return Lesson(mine, torch.arange(N) // 3, range(N), progress, output() if older else None)


def learned(x: Tensor) -> Tensor:
    """a_ij = (c_(k+1) - c_ij)₊ / Σ_p (c_(k+1) - c_p), c the squared distances of unit rows."""
    a = torch.zeros(N, N, dtype=x.dtype)
    unit = x / x.norm(dim=1, keepdim=True)
    for i in range(N):
        others = [j for j in range(N) if j != i]
        cost = torch.stack([(unit[i] - unit[j]).square().sum() for j in others])
        order = cost.argsort()
        gap = cost[order[K]] - cost[order[:K]]
        for p, j in enumerate(order[:K]):
            a[i, others[j]] = gap[p] / gap.sum()
    return a


def nearest(x: Tensor) -> Tensor:
    a = torch.zeros(N, N, dtype=x.dtype)
    for i in range(N):
        cosine = torch.cosine_similarity(x[i : i + 1], x)
        cosine[i] = -2
        a[i, cosine.argsort(descending=True)[:K]] = 1 / K
    return a


@pytest.mark.parametrize("embedding", ["head", "backbone"])
@pytest.mark.parametrize(
    ("graph", "expected"),
    [("adaptive", learned), ("knn", nearest), ("none", lambda x: torch.eye(N, dtype=x.dtype))],
)
def test_diffused_teacher_is_its_formula(graph, expected, embedding):
    w, weight, tau = 0.6, 20.0, 0.5
    teacher = DiffusedTeacher(graph, K, w, embedding, weight, tau)
    batch = lesson()
    teaching = batch.older.embeddings if embedding == "head" else batch.older.features
    p_t = SoftTargetLoss(tau).targets(teaching)
    identity = torch.eye(N, dtype=torch.float64)
    q = (1 - w) * torch.linalg.inv(identity - w * expected(batch.older.features)) @ p_t
    p = SoftTargetLoss(tau).targets(batch.output.embeddings)
    value = 0.25 * weight * (q * (q / p).log()).sum() / N
    torch.testing.assert_close(teacher(batch), value, rtol=1e-9, atol=1e-12)


def test_random_graph_draws_anew_and_is_a_distribution():
    teacher = DiffusedTeacher("random", K)
    x = torch.randn(N, C)
    (first, weight), (second, _) = teacher.learn(x), teacher.learn(x)
    assert not torch.equal(first, second)
    assert torch.equal(first[1].bincount(), torch.full((N,), K))
    assert not (first[0] == first[1]).any()
    torch.testing.assert_close(weight, torch.full((N * K,), 1 / K))


def test_diffused_teacher_teaches_the_embeddings_alone():
    batch = lesson()
    teacher = DiffusedTeacher(k=K)
    older, labels, student = batch.older, batch.labels, batch.output.embeddings
    older.embeddings.requires_grad_()

    def loss(z: Tensor) -> Tensor:
        output = BatchGraphOutput(z, batch.output.features)
        return teacher(Lesson(output, labels, range(N), 0.5, older))

    assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert older.embeddings.grad is None


def test_without_an_older_model_nothing_is_taught():
    batch = lesson(progress=0.0, older=False)
    for kind in (DiffusedTeacher, RefinedTeacher):
        value = kind()(batch)
        assert value.dtype == torch.float64
        assert float(value) == 0


@pytest.mark.parametrize("features", [True, False])
def test_wide_teacher_is_its_formula(features):
    torch.set_default_dtype(torch.float64)
    try:
        teacher = WideTeacher(2, 6, features, weight=5.0)
        teacher.join(C, lambda d: create_loss("proxy-anchor", 4, d))
    finally:
        torch.set_default_dtype(torch.float32)
    batch = lesson()
    x, z = batch.output.features, batch.output.embeddings
    own, taught = [], []
    soft = SoftTargetLoss()
    for h in range(2):
        first, _, second = teacher.heads[h]
        assert second.out_features == 6 * (h + 1)
        wide = (x @ first.weight.t() + first.bias).relu() @ second.weight.t() + second.bias
        own.append(teacher.criteria[h](wide, batch.labels))
        taught.append(soft(z, soft.targets(wide)))
    value = sum(own) / 2 + 5.0 * (sum(taught) / 2)
    if features:
        value = value + 5.0 * soft(z, soft.targets(x))
    torch.testing.assert_close(teacher(batch), value)
    # the heads learn by their own loss alone, and teach the small one alone
    names, parameters = zip(*teacher.named_parameters(), strict=True)
    found = torch.autograd.grad(teacher(batch), [x, z, *parameters])
    alone = torch.autograd.grad(sum(own) / 2, [x, *parameters])
    torch.testing.assert_close(found[0], alone[0])
    torch.testing.assert_close(list(found[2:]), list(alone[1:]))
    assert "criteria.1.proxies" in names


def test_refined_teacher_is_its_formula():
    vectors = {"head": torch.randn(40, D), "backbone": torch.randn(40, C)}
    batch = lesson()
    batch.indices = torch.randperm(40)[:N].tolist()
    soft = SoftTargetLoss(0.5)
    for embedding, x in vectors.items():
        teacher = RefinedTeacher(4, 0.3, 0.2, embedding, 10.0, 0.5)
        teacher.begin_epoch(lambda: vectors)
        refined = refine(x, k=4, epsilon=0.3, shrinkage=0.2)[batch.indices]
        value = 0.25 * 10.0 * soft(batch.output.embeddings, soft.targets(refined))
        assert torch.equal(teacher(batch), value)
        other = RefinedTeacher(4, 0.3, 0.2, embedding, 10.0, 0.5)
        other.load_state_dict(teacher.state_dict())
        assert torch.equal(other(batch), value)


# --- the average of the weights -------------------------------------------------------------------


def small_model() -> BatchGraphModel:
    backbone = nn.Sequential(nn.Linear(5, C), nn.BatchNorm1d(C), nn.Dropout(0.5))
    return BatchGraphModel(backbone, [], make_head(C, D))


def change(model: BatchGraphModel) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), model.backbone[1].running_mean):
            tensor.add_(torch.randn_like(tensor))


def test_average_of_the_weights_is_its_recurrence():
    model = small_model()
    average = WeightAverage(model, 0.5)
    expected = [p.detach().clone() for p in model.parameters()]
    for t in range(1, 12):
        change(model)
        average.after_step(model)
        average.after_epoch(model)  # is of no effect
        d = min(0.5, (1 + t) / (10 + t))
        expected = [d * e + (1 - d) * p for e, p in zip(expected, model.parameters(), strict=True)]
        if t == 6:  # interrupted
            state = copy.deepcopy(average.state_dict())
            average = WeightAverage(small_model(), 0.5)
            average.load_state_dict(state)
    torch.testing.assert_close(list(average.model.parameters()), expected)
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_without_a_decay_it_is_the_model_of_the_last_epoch():
    model = small_model()
    average = WeightAverage(model, 0.0)
    before = copy.deepcopy(model.state_dict())
    change(model)
    average.after_step(model)
    torch.testing.assert_close(average.model.state_dict(), before, rtol=0, atol=0)
    average.after_epoch(model)
    torch.testing.assert_close(average.model.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_older_model_has_batch_norm_in_the_mode_of_the_newer(frozen):
    """And nothing else of training: what drops out for one model would not for the other."""
    model = small_model().train()
    change(model)
    if frozen:
        loop.freeze_batch_norm(model)
    average = WeightAverage(model, 0.9)
    x = 3 + torch.randn(N, 5)
    hidden = model.backbone[0](x)
    statistics = model.backbone[1].running_mean, model.backbone[1].running_var
    mean, variance = statistics if frozen else (hidden.mean(0), hidden.var(0, unbiased=False))
    expected = (hidden - mean) / (variance + 1e-5).sqrt()
    weight, bias = model.backbone[1].weight, model.backbone[1].bias
    output = average(x, model, [N])
    torch.testing.assert_close(output.features, (expected * weight + bias).detach())
    assert torch.equal(output.embeddings, average.model.head(output.features))
    assert not output.embeddings.requires_grad


# --- through a run --------------------------------------------------------------------------------

WIDE = {"options": {"wide": {"heads": 2, "dim": 6}, "refined": {"k": 3}, "diffused": {"k": 3}}}


class Stop(Progress):
    """A signal to stop after some steps of an epoch."""

    def __init__(self, epoch: int, steps: int) -> None:
        self.epoch_name, self.steps, self.done = f"epoch {epoch}/", steps, 0
        self.running = False

    def start(self, what: str, total: int) -> None:
        self.running = what.startswith(self.epoch_name)

    def advance(self, amount: int) -> None:
        self.done += amount if self.running else 0
        if self.running and amount and self.done == self.steps:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"teacher": "diffused", "method": "dybgr", "memory": 20}, 1),
        ({"teacher": "wide+diffused+refined", "ema": 0.9, "loss": "proxy-anchor"}, 1),
        ({"teacher": "diffused", "train_batch_norm": True, "ema": 0.9}, 2),
    ],
)
def test_interrupted_run_goes_on_bit_for_bit(splits, tmp_path, options, steps):
    config = tiny(**{**WIDE, **options}, epochs=3)
    train(config, splits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, splits, tmp_path / "parts", Stop(epoch=2, steps=steps))
    torch.manual_seed(99)
    train(config, splits, tmp_path / "parts")
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_every_teacher_has_a_loss_of_its_own(splits, tmp_path):
    train(tiny(**WIDE, teacher="wide+diffused+refined"), splits, tmp_path)
    for number, row in enumerate(read_csv(tmp_path)):
        taught = [float(row[f"loss_{name}"]) for name in ("wide", "diffused", "refined")]
        assert taught[0] > 0
        assert (min(taught[1:]) > 0) == (number > 0)
        total = float(row["loss_plain"]) + sum(taught)
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)


def test_teachers_are_no_part_of_the_stored_model(splits, tmp_path):
    train(tiny(**WIDE, teacher="wide+diffused", readout="none"), splits, tmp_path)
    model, _ = build_model(tiny())
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))  # strict


def test_the_average_is_what_is_measured_and_stored(splits, tmp_path, monkeypatch):
    kept: list[Any] = []

    class Kept(WeightAverage):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept.append(self)

        def after_step(self, model: BatchGraphModel) -> None:
            super().after_step(model)
            self.trained = [copy.deepcopy(model.state_dict())]

    monkeypatch.setattr("bgl.training.build.WeightAverage", Kept)
    config = tiny(ema=0.9, epochs=2, select_embedding="head")
    chosen = train(config, splits, tmp_path).chosen_epoch
    stored = load_file(tmp_path / "model.safetensors")
    (average,) = kept
    averaged = average.model.state_dict()  # the chosen epoch's, loaded again
    assert all(torch.equal(stored[name], tensor) for name, tensor in averaged.items())
    if chosen == 2:
        assert not torch.equal(stored["head.0.weight"], average.trained[0]["head.0.weight"])


class Still(Teacher):
    """Sees the whole batch, and adds nothing."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.seen: list[tuple[Lesson, int]] = []
        self.epochs: list[int] = []

    def join(self, channels: int, make_criterion: Any) -> None:
        assert channels == WIDTH

    def begin_epoch(self, embed: Any) -> None:
        found = embed()
        assert [x.shape for x in found.values()] == [(32, WIDTH), (32, DIM)]
        self.epochs.append(len(self.seen))

    def forward(self, lesson: Lesson) -> Tensor:
        self.seen.append((lesson, int(torch.is_grad_enabled())))
        return lesson.output.embeddings.new_zeros(())


def test_a_teacher_of_ones_own_is_given_the_batch(splits, tmp_path, monkeypatch):
    made: list[Still] = []

    def still(weight: float = 0.0) -> Still:
        made.append(Still(weight))
        return made[-1]

    monkeypatch.setitem(TEACHERS._members, "still", still)
    train(tiny(), splits, tmp_path / "without")
    train(tiny(teacher="still"), splits, tmp_path / "with")
    (teacher,) = made
    assert teacher.epochs == [2]  # before the second epoch, of two batches each
    assert [seen.progress for seen, _ in teacher.seen] == [0, 0, 0.5, 0.5]
    for seen, _ in teacher.seen:
        assert torch.equal(splits.train.labels[list(seen.indices)], seen.labels)
        assert seen.older is None  # nobody asked
    stored = [load_file(tmp_path / name / "model.safetensors") for name in ("with", "without")]
    torch.testing.assert_close(*stored, rtol=0, atol=0)


def test_no_teacher_of_cosines_for_another_distance():
    with pytest.raises(ValueError, match=r"`distance`.*cosine.*hyperbolic"):
        tiny(teacher="wide", distance="hyperbolic")
    with pytest.raises(ValueError, match=r"`teacher`.*'diffuse'.*did you mean 'diffused'"):
        tiny(teacher="wide+diffuse")
    with pytest.raises(ValueError, match=r"teacher 'wide'.*depth"):
        tiny(teacher="wide", options={"wide": {"depth": 3}})


# --- memory --------------------------------------------------------------------------------------


def test_remembered_samples_are_nodes_of_the_graph(splits, tmp_path, monkeypatch):
    seen: list[tuple[Tensor, Tensor]] = []
    contextualize = BatchGraphModel.contextualize

    def looked_at(self: BatchGraphModel, x: Tensor, y: Tensor, return_graph: bool) -> Any:
        seen.append((x.detach().clone(), y.clone()))
        return contextualize(self, x, y, return_graph)

    monkeypatch.setattr(BatchGraphModel, "contextualize", looked_at)
    train(tiny(method="dybgr", memory=20, epochs=2), splits, tmp_path)  # of 16 in a batch
    assert [len(x) for x, _ in seen] == [16, 16, 36, 36]
    for now in (2, 3):
        for part in (0, 1):
            latest = torch.cat([seen[now - 1][part][:16], seen[now - 2][part][:16]])[:20]
            assert torch.equal(seen[now][part][16:], latest)


def test_a_batch_that_is_not_finite_does_not_spoil_the_graphs_after_it(
    splits, tmp_path, monkeypatch
):
    encode, calls = BatchGraphModel.encode, 0

    def fails_once(self: BatchGraphModel, images: Tensor) -> Tensor:
        nonlocal calls
        calls += self.training
        return encode(self, images) * (torch.nan if self.training and calls == 2 else 1.0)

    monkeypatch.setattr(BatchGraphModel, "encode", fails_once)
    config = tiny(method="dybgr", memory=20, epochs=2, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="Skipped a batch"):
        result = train(config, splits, tmp_path)
    assert [row["skipped_steps"] for row in result.history] == [1, 0]


def test_no_memory_without_a_graph():
    with pytest.raises(ValueError, match=r"`memory`.*'none'"):
        tiny(memory=16)


# --- rates ----------------------------------------------------------------------------------------


def test_layers_of_the_encoder_have_falling_rates():
    config = tiny(lr=1e-3, layer_decay=0.5, weight_decay=0.1)
    model, _ = build_model(config)
    groups = make_optimizer(config, model, build_criterion(config, 8)).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.1}
    rates = [rate[id(p)] for p in model.backbone.parameters()]
    assert rates == sorted(rates)
    steps = sorted(set(rates))
    assert len(steps) > 2
    assert steps[-1] == pytest.approx(1e-3)
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(steps))
    assert rate[id(model.head[0].weight)] == pytest.approx(3e-3)


def test_at_first_the_new_parameters_learn_alone(splits, tmp_path):
    config = tiny(head_epochs=1, epochs=3, warmup=0.0, schedule="constant", lr=1e-3)
    model, _ = build_model(config)
    optimizer = make_optimizer(config, model, build_criterion(config, 8))
    schedule = make_schedule(config, optimizer, steps=6)
    rates = []
    for _ in range(6):
        rates.append(tuple(schedule.get_last_lr()))
        optimizer.step()
        schedule.step()
    assert rates == [(0.0, pytest.approx(3e-3))] * 2 + [(1e-3, pytest.approx(3e-3))] * 4

    train(tiny(head_epochs=2, epochs=2), splits, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    started, _ = loop.build_encoder(tiny())
    for name, tensor in started.model.state_dict().items():
        assert torch.equal(stored[name], tensor) == name.startswith("backbone."), name
