"""save and load of our own models, the encoder that results, and activation checkpointing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from helpers import write_pngs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bgl.models.storage as storage
from bgl.datasets import ImageDataset, Splits
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.images import BrokenImageError
from bgl.models import (
    BatchGraphModel,
    BlockConfig,
    Encoder,
    ModelConfig,
    assemble_model,
    load,
    make_head,
    save,
)
from bgl.training import TrainConfig, build_model, train
from bgl.training.build import describe_model
from bgl.training.loop import freeze_batch_norm

SIDE, DIM = 32, 6
CONFIG = ModelConfig(
    "test_resnet",
    SIDE,
    (0.4, 0.5, 0.6),
    (0.2, 0.3, 0.1),
    DIM,
    (
        BlockConfig("dybgr", {"k": 3, "formulation": "paper", "epsilon": 0.25}),
        BlockConfig("bgformer", {"heads": 2, "k": 4}),
        BlockConfig("batchformer", {"heads": 2}),
    ),
    curvature=0.2,
    clip_radius=1.5,
)


def make(config: ModelConfig = CONFIG) -> BatchGraphModel:
    model = storage.empty_model(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    return model


def pictures(n: int, height: int = 40, width: int = 50) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[BatchGraphModel, Path]:
    model = make()
    save(model, tmp_path / "run" / "model", CONFIG)
    return model, tmp_path / "run" / "model"


def test_round_trip(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors"}
    assert storage.read_config(folder) == CONFIG
    encoder = load(str(folder))
    assert not any(module.training for module in encoder.model.modules())
    assert encoder.model.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in encoder.model.state_dict().items()
    )
    assert repr(encoder.model) == repr(model.eval())  # every option of every layer
    assert encoder.config == CONFIG
    assert isinstance(encoder.distance, HyperbolicDistance)
    assert encoder.distance.c == 0.2
    images = torch.stack([encoder.transform(image) for image in pictures(6)])
    labels = torch.arange(6) // 2
    freeze_batch_norm(encoder.model.train())
    freeze_batch_norm(model.train())
    one, other = (m(images, labels, return_graph=True) for m in (encoder.model, model))
    assert torch.equal(one.context_embeddings, other.context_embeddings)
    assert all(
        torch.equal(a.edge_index, b.edge_index)
        for a, b in zip(one.graphs, other.graphs, strict=True)
    )


@pytest.mark.parametrize("curvature", [None, 0.1], ids=["euclidean", "hyperbolic"])
@pytest.mark.parametrize("clip_radius", [None, 2.3], ids=["no clip", "clip"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_heads(tmp_path, norm, curvature, clip_radius):
    config = dataclasses.replace(
        CONFIG, curvature=curvature, clip_radius=clip_radius, blocks=(), head_norm=norm
    )
    save(make(config), tmp_path, config)
    encoder = load(tmp_path)
    assert len(encoder.model.blocks) == 0
    assert isinstance(encoder.model.head[0], torch.nn.LayerNorm) is norm
    if curvature is None:
        assert encoder.distance == "cosine"
        assert len(encoder.model.head) == 1 + norm
    else:
        assert isinstance(ball := encoder.model.head[1 + norm], ToPoincareBall)
        assert (ball.c, ball.clip_radius) == (0.1, clip_radius)


def test_loading_never_asks_for_pretrained_weights(saved, monkeypatch):
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: int) -> nn.Module:
        assert not pretrained
        model: nn.Module = create(name, pretrained=False, **options)
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    load(saved[1])
    # nor for those that ship in a package
    config = dataclasses.replace(CONFIG, backbone="tf_efficientnet_lite0", blocks=())
    save(make(config), saved[1], config)
    monkeypatch.setattr("bgl.models.backbone._packaged_file", lambda name: pytest.fail(name))
    load(saved[1])


def test_embed_is_what_the_model_gives(saved):
    model, folder = saved
    encoder = load(folder)
    images = pictures(7)
    data = torch.stack([encoder.transform(image) for image in images])
    with torch.no_grad():
        expected = model.eval()(data)
    for output, tensor in (("head", expected.embeddings), ("backbone", expected.features)):
        result = encoder.embed(images, output=output)
        assert result.dtype == torch.float32
        assert result.device.type == "cpu"
        torch.testing.assert_close(result, tensor, rtol=1e-5, atol=1e-5)
    nn.Linear(DIM, 1)(encoder.embed(images)).sum().backward()  # can be learned from


def test_embed_takes_paths_and_tensors_of_any_size(saved, tmp_path):
    encoder = load(saved[1])
    images = [pictures(1, 40 + 9 * i, 64)[0] for i in range(5)]
    paths = write_pngs(tmp_path, images)
    expected = encoder.embed(images)
    for mixed in (paths, [str(path) for path in paths], [*paths[:2], *images[2:]], tuple(paths)):
        assert torch.equal(encoder.embed(mixed), expected)
    for workers in (1, 2):
        assert torch.equal(encoder.embed(paths, workers=workers), expected)


def test_embed_does_not_depend_on_the_batch(saved):
    encoder = load(saved[1])
    images = pictures(7)
    expected = encoder.embed(images)
    for batch_size in (1, 3, 64):
        torch.testing.assert_close(
            encoder.embed(images, batch_size), expected, rtol=1e-5, atol=1e-5
        )
    encoder.model.train()
    torch.testing.assert_close(encoder.embed(images), expected)
    assert encoder.model.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cat.png", r"list.*'cat\.png'"),
        (Path("cat.png"), r"list.*cat\.png"),
        ([], "none"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "none"),
        (torch.zeros(2, 3, 8, 8), "float32 tensor.*index 0"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\[8, 8\] at index 0"),
        (["a.png", 3], "3 at index 1"),
        (["a.png", torch.zeros(2, 8, 8, dtype=torch.uint8)], r"\[2, 8, 8\] at index 1"),
    ],
    ids=["str", "path", "empty", "no rows", "float", "one image", "number", "two channels"],
)
def test_what_is_no_image(saved, images, message):
    with pytest.raises(ValueError, match=f"`images`.*{message}"):
        load(saved[1]).embed(images)


def test_broken_image_is_named(saved, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(BrokenImageError, match=name):
            load(saved[1]).embed([tmp_path / name])


def test_wrong_options_of_embed(saved):
    with pytest.raises(ValueError, match=r"`output`.*'both'"):
        load(saved[1]).embed(pictures(1), output="both")
    with pytest.raises(ValueError, match=r"`batch_size`.*0"):
        load(saved[1]).embed(pictures(1), batch_size=0)


def test_encoder_around_any_model():
    model = BatchGraphModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), [], make_head(8, 2))
    encoder = Encoder(model, ModelConfig("mine", 4, (0.5,) * 3, (0.5,) * 3, 2))
    assert (
        repr(encoder) == "Encoder(image_size=4, embedding='head', distance='cosine', device='cpu')"
    )
    assert encoder.embed(pictures(3), output="backbone").shape == (3, 8)


def test_missing_folder_and_files(saved, tmp_path):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match=r"`folder`.*model\.json.*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds models in model"):  # one level too high
        load(folder.parent)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"`folder`.*model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": []}, r"unexpected \(blocks\.0\."),
        ({"head_dim": 9}, r"head\.0\.weight \[6, 96\] instead of \[9, 96\]"),
        ({"backbone": "test_vit"}, "missing.*unexpected"),
        ({"backbone": "resnet81"}, "resnet81"),
        ({"blocks": [{"name": "gat"}]}, r"model\.json.*'gat'"),
        ({"blocks": [{"nam": "gat"}]}, r"model\.json.*'nam'"),
        ({"blocks": [{"name": "dybgr", "options": {"kk": 3}}]}, r"model\.json.*but got kk"),
        ({"image_size": 0}, r"model\.json.*image_size"),
        ({"curvature": -1}, r"model\.json.*curvature"),
        ({"colour": 1}, r"model\.json.*colour"),
        ({"std": None}, r"model\.json"),
        ({"head_dim": 10**12}, r"model\.json.*head_dim"),
        ({"image_size": 10**9}, r"model\.json.*image_size"),
        ({"resize": 10**6}, r"model\.json.*resize"),
    ],
)
def test_files_that_do_not_belong_together(saved, change, message):
    path = saved[1] / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load(saved[1])


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff[1", b"[1]"], ids=["empty", "junk", "list"])
def test_broken_files(saved, name, content):
    (saved[1] / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load(saved[1])


def test_nested_json_is_one_line(saved):
    (saved[1] / "model.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"model\.json to describe a model.*RecursionError"):
        load(saved[1])


def test_weights_that_are_not_finite_are_refused(saved):
    path = saved[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["head.0.bias"][1] = torch.nan
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"finite.*'head\.0\.bias'.*model\.safetensors"):
        load(saved[1])


@pytest.mark.parametrize("device", ["warp", "meta", "cuda:99", 3.5])
def test_devices_that_do_not_exist_are_named(saved, device):
    with pytest.raises(ValueError, match=f"`device`.*{device}"):
        load(saved[1], device)


def test_a_block_used_twice_is_saved_and_loaded(tmp_path):
    """In the file there are two blocks, with the same weights."""
    config = dataclasses.replace(CONFIG, blocks=(BlockConfig("dybgr", {"k": 2}),) * 2)
    plain = make(config)
    model = BatchGraphModel(plain.backbone, [plain.blocks[0]] * 2, plain.head)
    save(model, tmp_path, config)
    again = load(tmp_path).model
    x = torch.randn(6, 96)
    labels = torch.arange(6) // 2
    expected, _ = model.eval().contextualize(x, labels)
    assert torch.equal(again.contextualize(x, labels)[0], expected)


def test_missing_tensor_is_named(saved):
    path = saved[1] / "model.safetensors"
    tensors = load_file(path)
    del tensors["head.0.bias"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"model\.safetensors.*1 missing \(head\.0\.bias\)"):
        load(saved[1])


def test_a_failed_save_leaves_the_old_files(saved, monkeypatch):
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(model, folder, CONFIG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def tiny(**options: object) -> TrainConfig:
    values = {
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": SIDE,
        "head_dim": DIM,
        "epochs": 1,
        "batch_size": 8,
        "per_class": 2,
        "device": "cpu",
        "workers": 0,
        "options": {
            "dybgr": {"k": 3, "formulation": "paper"},
            "bgformer": {"heads": 2, "semantic": "attention"},
        },
    }
    return TrainConfig(**{**values, **options})


@pytest.mark.parametrize("distance", ["cosine", "hyperbolic"])
def test_a_trained_folder_loads(tmp_path, distance):
    """The same embeddings, bit for bit, and the blocks with their options."""

    def part(name: str) -> ImageDataset:
        names = [f"{name}{i}" for i in range(4)]
        return ImageDataset(pictures(8), torch.arange(8) // 2, names)

    splits = Splits("noise", part("a"), None, part("b"))
    options = {"readout": "none", "select_embedding": "head"}
    config = tiny(method="dybgr+bgformer", distance=distance, curvature=0.3, **options)
    train(config, splits, tmp_path)
    encoder = load(tmp_path)
    stored = load_file(tmp_path / "embeddings.safetensors")["embeddings"]
    assert torch.equal(encoder.embed(splits.train.images, batch_size=256), stored)
    fresh, info = build_model(config)
    assert repr(encoder.model) == repr(fresh.eval())
    assert storage.read_config(tmp_path) == describe_model(config, info)
    if distance == "hyperbolic":
        assert encoder.distance.c == 0.3
    else:
        assert encoder.distance == "cosine"


# -- activation checkpointing


class Stored:
    """Bytes that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def gradients(model: BatchGraphModel, side: int) -> tuple[dict[str, Tensor], int]:
    torch.manual_seed(1)
    images = torch.randn(6, 3, side, side).to(next(model.parameters()))
    freeze_batch_norm(model.train())
    stored = Stored()
    with torch.autograd.graph.saved_tensors_hooks(stored.pack, lambda tensor: tensor):
        output = model(images, torch.arange(6) // 2)
    (output.embeddings.square().sum() + output.context_embeddings.square().sum()).backward()
    return {n: p.grad for n, p in model.named_parameters()}, stored.total


@pytest.mark.parametrize(
    ("backbone", "side"), [("test_vit", 160), ("tf_efficientnet_lite0", 32), ("test_resnet", 32)]
)
def test_equal_gradients_with_less_memory(backbone, side):
    config = tiny(backbone=backbone, image_size=side, method="dybgr")
    plain, _ = build_model(config)
    lean, _ = build_model(dataclasses.replace(config, checkpoint_activations=4))
    lean.load_state_dict(plain.state_dict())
    (expected, much), (found, less) = (gradients(m.double(), side) for m in (plain, lean))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10, msg=name)
    assert less < much
    for name, tensor in lean.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name  # nor have statistics moved


@pytest.mark.parametrize("chunk", [2, 4, 64])
def test_the_encoder_sees_a_few_images_at_a_time(chunk):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 8), nn.GELU(), nn.Linear(8, 8))
        config = dataclasses.replace(CONFIG, blocks=(BlockConfig("dybgr", {"k": 2}),))
        models.append(assemble_model(backbone, 8, config))
    plain, lean = models
    lean.checkpoint_activations(chunk)
    sizes: list[int] = []
    lean.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    (expected, _), (found, _) = gradients(plain, 16), gradients(lean, 16)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert max(sizes) <= chunk
    assert sum(sizes) == 12  # 6 images, there and back
    with torch.no_grad():
        lean.eval()(torch.randn(3, 3, 16, 16))
    assert sizes[-1] == 3


def test_chunk_is_checked():
    with pytest.raises(ValueError, match="`images`"):
        BatchGraphModel(nn.Identity(), [], nn.Identity()).checkpoint_activations(0)


def test_training_with_checkpointed_activations_is_the_same(tmp_path):
    data = ImageDataset(pictures(8), torch.arange(8) // 2, list("abcd"))
    splits = Splits(
        "noise", data, None, ImageDataset(pictures(4), torch.arange(4) // 2, ["e", "f"])
    )
    embeddings = []
    for lean in (False, True):
        config = tiny(method="dybgr", checkpoint_activations=4 * lean)
        train(config, splits, tmp_path / str(lean))
        embeddings.append(load(tmp_path / str(lean)).embed(data.images))
    torch.testing.assert_close(*embeddings, rtol=1e-4, atol=1e-5)


def test_not_together_with_moving_statistics():
    with pytest.raises(ValueError, match=r"`checkpoint_activations`.*`train_batch_norm`"):
        tiny(checkpoint_activations=4, train_batch_norm=True)


def test_configurations_older_than_an_option_compare_by_its_default(tmp_path):
    config = tiny(method="dybgr")
    stored = config.to_dict()
    del stored["checkpoint_activations"]
    config.check_stored(stored, tmp_path)
    with pytest.raises(ValueError, match="but lr differ"):
        config.check_stored({**stored, "lr": 1.0}, tmp_path)
    with pytest.raises(ValueError, match="but checkpoint_activations differ"):
        dataclasses.replace(config, checkpoint_activations=4).check_stored(stored, tmp_path)


def test_a_dataset_is_embedded_as_its_images_are(saved, tmp_path):
    encoder = load(saved[1])
    paths = write_pngs(tmp_path, pictures(5))
    data = ImageDataset(paths, torch.zeros(5).long(), ["a"], transform=torch.flip)  # not used
    for workers in (0, 2):
        vectors = encoder.embed(data, output=None, workers=workers)
        assert list(vectors) == ["backbone", "head"]
        for output, x in vectors.items():
            assert torch.equal(x, encoder.embed(paths, output=output))


def test_embed_leaves_out_broken_images_if_it_may(saved, tmp_path):
    encoder = load(saved[1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [pictures(1)[0], tmp_path / "broken.png", pictures(1)[0], tmp_path / "missing.png"]
    for workers in (0, 2):
        broken: dict[int, BrokenImageError] = {}
        counts: list[int] = []
        x = encoder.embed(
            images, 2, workers=workers, on_batch=counts.append, on_broken=broken.__setitem__
        )
        assert torch.equal(x, encoder.embed([images[0], images[2]], 1))
        assert {i: error.path for i, error in broken.items()} == {1: images[1], 3: images[3]}
        assert counts == [2, 2]
    with pytest.raises(ValueError, match=r"none of 1 can; the first: .*broken\.png"):
        encoder.embed(images[1:2], on_broken=lambda *_: None)


def test_embeddings_are_float32_inside_autocast(saved):
    encoder, images = load(saved[1]), pictures(3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.embed(images)
    assert torch.equal(inside, encoder.embed(images))
