"""load_released_checkpoint: the authors' names, our models, nothing run, everything named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Attack, assert_close
from torch import Tensor, nn

from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.layers import BGFormerBlock
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.models import Encoder, ModelConfig, create_backbone, load_released_checkpoint

State = dict[str, Tensor]
C, D = 12, 5


class Body(nn.Module):
    """A backbone with tensors of its own: [N, 3, 2, 2] -> [N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(12, C)
        self.norm = nn.BatchNorm1d(C)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.patch_embed(images.flatten(1)))
        return out


def named(module: nn.Module, prefix: str) -> State:
    """Random tensors by the module's names."""
    state = {}
    for name, tensor in module.state_dict().items():
        value = torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
        state[prefix + name] = value
    return state


def released(depth: int = 2, kind: str = "dybgr") -> State:
    """What the authors' model has as its state dict."""
    state = named(Body(), "body.") | named(nn.Linear(C, D), "head.0.")
    for i in range(depth):
        prefix = f"blocks.{i}."
        state |= named(nn.LayerNorm(C), prefix + "norm1.")
        state |= named(nn.LayerNorm(C), prefix + "norm2.")
        state |= named(nn.Linear(C, 3 * C), prefix + "mlp.fc1.")
        state |= named(nn.Linear(3 * C, C), prefix + "mlp.fc2.")
        if kind == "dybgr":
            state |= named(nn.LayerNorm(C), prefix + "glp.norm.")
        else:
            for name, width in (("vg.qkv", 3 * C), ("vg.proj", C), ("sg.qkv", C), ("sg.proj", C)):
                state |= named(nn.Linear(C, width), f"{prefix}{name}.")
    return state


def from_golden(g: State) -> State:
    """A golden's parameters by the names they have in a checkpoint."""
    state = {
        "head.0.weight": g.get("param.head.weight", torch.eye(g["x"].size(1)).double()),
        "head.0.bias": g.get("param.head.bias", torch.zeros(g["x"].size(1)).double()),
    }
    for name, tensor in g.items():
        if name.startswith("param.") and "head" not in name:
            inner = name.removeprefix("param.")
            state["blocks." + (inner if inner[0].isdecimal() else "0." + inner)] = tensor
    for i in {name.split(".")[1] for name in state if name.startswith("blocks.")}:
        state[f"blocks.{i}.glp.norm.weight"] = torch.ones(g["x"].size(1)).double()
    return state


@pytest.mark.parametrize(("case", "k"), [("c4_s5_d1", 6), ("c6_s9_d2", 12)])
def test_whole_model_equals_released_code(golden, case, k):
    g = golden(f"dybgr_head_switch__{case}")
    model = load_released_checkpoint({"params": from_golden(g)}, nn.Flatten(), k=k)
    images = g["x"][:, :, None, None].requires_grad_()
    assert_close(model(images).embeddings, g["out_eval"])
    assert_close(nn.functional.normalize(model(images).features), g["out_eval_skip"])
    output = model.train()(images, g["labels"])
    assert_close(torch.cat([output.embeddings, output.context_embeddings]), g["out_train"])
    criterion = PairwiseCrossEntropyLoss(0.2, HyperbolicDistance(c=0.1), reduction="sum")
    losses = [criterion(z, g["labels"]) for z in (output.embeddings, output.context_embeddings)]
    loss = 0.07 * losses[0] + 0.93 * losses[1]
    for value, key in zip((*losses, loss), ("loss1", "loss2", "loss"), strict=True):
        assert_close(value, g[key])
    loss.backward()
    assert_close(images.grad[:, :, 0, 0], g["grad_x"])
    assert_close(model.head[0].weight.grad, g["grad_head_weight"])
    for i, block in enumerate(model.blocks):
        for name, parameter in block.named_parameters():
            assert_close(parameter.grad, g[f"grad.{i}.{name}"])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("N12_C16_h4_K3", {"heads": 4, "k": 3}),  # λ = 0.5, the default
        ("N36_C24_h8_K10", {"k": 10, "lam": 0.3}),
        ("K_gt_N", {"heads": 2, "k": 10, "lam": 0.7}),
    ],
    ids=["N12_C16_h4_K3", "N36_C24_h8_K10", "K_gt_N"],
)
def test_bgformer_block_equals_released_code(golden, case, options):
    g = golden(f"bgformer_block__{case}")
    model = load_released_checkpoint(from_golden(g), nn.Flatten(), **options).train()
    assert [type(block) for block in model.blocks] == [BGFormerBlock]
    out = model(g["x"][:, :, None, None], g["labels"]).context_features
    assert_close(out, g["out"])


@pytest.mark.parametrize("wrap", ["plain", "params", "state_dict", "parallel", "safetensors"])
@pytest.mark.parametrize("kind", ["dybgr", "bgformer"])
def test_files(tmp_path, wrap, kind):
    state = released(kind=kind)
    file = tmp_path / "max_acc.pth"
    if wrap == "safetensors":
        from safetensors.torch import save_file

        file = tmp_path / "max_acc.safetensors"
        save_file(state, file)
    elif wrap == "parallel":
        torch.save({"params": {f"module.{n}": t for n, t in state.items()}, "epoch": 5}, file)
    else:
        torch.save(state if wrap == "plain" else {wrap: state}, file)
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = load_released_checkpoint(file, Body(), heads=3)
    assert not any(module.training for module in model.modules())
    for part, ours in (("body.", model.backbone), ("head.", model.head)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, state[part + name])
    blocks = {n: t for n, t in state.items() if "blocks." in n and ".glp.norm." not in n}
    assert sum(len(block.state_dict()) for block in model.blocks) == len(blocks)
    direct = load_released_checkpoint(str(file), Body(), heads=3).state_dict()
    assert all(torch.equal(tensor, direct[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_released_defaults():
    model = load_released_checkpoint(released(), Body())
    assert len(model.blocks) == 2
    mixer = model.blocks[0].mixer
    learner = mixer.learner
    assert (learner.k, learner.lam, learner.beta) == (30, 0.3, 0.5)
    assert (mixer.num_iterations, mixer.conv.epsilon) == (3, 0.5)
    assert isinstance(ball := model.head[1], ToPoincareBall)
    assert (ball.c, ball.clip_radius) == (0.1, 2.3)


def test_options_reach_blocks_and_head():
    model = load_released_checkpoint(
        released(), Body(), k=4, num_iterations=1, lam=0.1, beta=0.2, epsilon=0.9, curvature=None
    )
    mixer = model.blocks[1].mixer
    learner = mixer.learner
    assert (learner.k, learner.lam, learner.beta) == (4, 0.1, 0.2)
    assert (mixer.num_iterations, mixer.conv.epsilon) == (1, 0.9)
    assert len(model.head) == 1
    block = load_released_checkpoint(released(kind="bgformer"), Body(), heads=2, lam=0.1).blocks[0]
    assert (block.visual.heads, block.lam) == (2, 0.1)


def test_precision_is_that_of_the_file_and_float32_at_least():
    for given, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ):
        state = {n: t.to(given) if t.is_floating_point() else t for n, t in released().items()}
        model = load_released_checkpoint(state, Body())
        assert {p.dtype for p in model.parameters()} == {expected}


def test_without_blocks_it_is_a_hyp_vit_checkpoint():
    assert len(load_released_checkpoint(released(depth=0), Body()).blocks) == 0


@pytest.mark.parametrize("width", [1, 7, 49, 100, 1001])
def test_any_width_of_the_ffn(width):
    state = released(depth=1)
    state |= named(nn.Linear(C, width), "blocks.0.mlp.fc1.")
    state |= named(nn.Linear(width, C), "blocks.0.mlp.fc2.")
    assert load_released_checkpoint(state, Body()).blocks[0].mlp.fc1.out_features == width


def test_bgformer_without_biases_of_the_values():
    state = released(depth=1, kind="bgformer")
    zeros = {n: torch.zeros_like(t) for n, t in state.items() if n.endswith("g.qkv.bias")}
    fewer = {n: t for n, t in state.items() if n not in zeros}
    assert len(fewer) == len(state) - 2
    one = load_released_checkpoint(fewer, Body(), heads=3).state_dict()
    other = load_released_checkpoint(state | zeros, Body(), heads=3).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_backbone_by_name_needs_no_pretrained_weights(monkeypatch):
    vit, info = create_backbone("test_vit", "none")
    create = load_released_checkpoint.__globals__["create_backbone"]
    asked = []

    def record(name: str, weights: str) -> Any:
        asked.append(weights)
        return create(name, weights)

    monkeypatch.setitem(load_released_checkpoint.__globals__, "create_backbone", record)
    state = named(vit, "body.") | named(nn.Linear(info.num_features, D), "head.0.")
    model = load_released_checkpoint({"params": state}, "test_vit")
    assert asked == ["none"]
    assert torch.equal(model.backbone.pos_embed, state["body.pos_embed"])
    encoder = Encoder(
        model, ModelConfig("test_vit", 160, info.mean, info.std, head_dim=D, curvature=0.1)
    )
    images = torch.randint(0, 256, (2, 3, 180, 200), dtype=torch.uint8)
    assert encoder.embed(images).shape == (2, D)


def test_pickle_with_code_is_refused_and_not_run(tmp_path):
    file = tmp_path / "evil.pth"
    torch.save({"params": released(), "epoch": Attack(tmp_path / "pwned")}, file)
    with pytest.raises(ValueError, match=r"`checkpoint`.*evil\.pth.*UnpicklingError"):
        load_released_checkpoint(file, Body())
    assert not (tmp_path / "pwned").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`checkpoint`.*no\.pth"):
        load_released_checkpoint(tmp_path / "no.pth", Body())


def without(*names: str) -> State:
    return {n: t for n, t in released().items() if n not in names}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("body.norm.bias"), r"backbone.*1 missing \(body\.norm\.bias\)"),
        (
            released() | {"body.pre_logits.fc.weight": torch.zeros(1)},
            r"backbone.*1 unexpected \(body\.pre_logits\.fc\.weight\)",
        ),
        (
            released() | {"body.patch_embed.weight": torch.zeros(C, 7)},
            r"1 of another shape \(body\.patch_embed\.weight \[12, 7\] instead of \[12, 12\]\)",
        ),
        (without("head.0.weight"), r"matrix head\.0\.weight.*none"),
        (without("head.0.bias"), r"head.*missing \(head\.0\.bias\)"),
        (released() | {"head.1.c": torch.zeros(1)}, r"unexpected \(head\.1\.c\)"),
        (without("blocks.1.mlp.fc1.weight"), r"matrix blocks\.N\.mlp\.fc1\.weight.*none"),
        (without("blocks.1.norm2.bias"), r"DyBGRBlock.*missing \(blocks\.1\.norm2\.bias\)"),
        (
            released() | {"blocks.0.attn.qkv.weight": torch.zeros(1)},
            r"DyBGRBlock.*unexpected \(blocks\.0\.attn\.qkv\.weight\)",
        ),
        (
            {n.replace("blocks.0", "blocks.4"): t for n, t in released().items()},
            r"number its blocks from 0.*'1', '4'",
        ),
        (released() | {"blocks.x.y": torch.zeros(1)}, r"'blocks\.x\.y'"),
        (released() | {"backbone.x": torch.zeros(1)}, r"'backbone\.x'"),
        ({"params": {"epoch": 3}}, "state dict of tensors"),
        ({}, r"matrix head\.0\.weight"),
    ],
)
def test_what_does_not_fit_is_named(state, message):
    with pytest.raises(ValueError, match=f"`checkpoint`.*{message}"):
        load_released_checkpoint(state, Body())


def test_many_wrong_tensors_make_a_short_message():
    with pytest.raises(ValueError, match=r"14\d missing.*….*2 of another shape") as caught:
        load_released_checkpoint(released(), "vit_tiny_patch16_224")
    assert len(str(caught.value)) < 500
