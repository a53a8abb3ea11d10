"""Models on the hub, played by a local folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from bgl.models import (
    BlockConfig,
    ModelConfig,
    load,
    model_digest,
    push_to_hub,
    save,
)
from bgl.models.storage import empty_model

CONFIG = ModelConfig("test_resnet", 32, (0.5,) * 3, (0.5,) * 3, 4, (BlockConfig("dybgr"),))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(empty_model(CONFIG), tmp_path / "run", CONFIG)
    (tmp_path / "run" / "secret.txt").write_text("not for the hub")
    return tmp_path / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the hub: repositories by owner and name."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None, library_name: str) -> None:
            assert token == "key"
            assert library_name == "bgl"

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> Any:
            assert private
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, repo_id: str, filename: str, revision: str | None) -> bool:
            return (root / repo_id / filename).exists()

        def create_commit(self, repo_id: str, operations: Any, **options: Any) -> Any:
            assert options == {"commit_message": "Add model", "revision": None}
            for operation in operations:
                with operation.as_file() as file:
                    (root / repo_id / operation.path_in_repo).write_bytes(file.read())
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        if not (root / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository")
        copy = tmp_path / f"cache-{revision}"
        copy.mkdir(exist_ok=True)
        for name in allow_patterns:
            shutil.copy(root / repo_id / name, copy / name)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_push_and_load(run: Path, hub: Path, tmp_path: Path) -> None:
    assert push_to_hub(run, "ann/emoji", token="key", private=True).endswith("/ann/emoji/commit/1")
    sent = {file.name for file in (hub / "ann/emoji").iterdir()}
    assert sent == {"model.json", "model.safetensors", "README.md"}
    card = (hub / "ann/emoji/README.md").read_text()
    assert 'load("hf-hub:ann/emoji")' in card
    assert "dybgr" in card
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    for name in ("hf-hub:ann/emoji", "hf-hub:ann/emoji@v2"):
        assert torch.equal(load(name).embed(images), load(run).embed(images))
        assert model_digest(name) == model_digest(run)
    assert (tmp_path / "cache-v2").is_dir()
    assert (tmp_path / "cache-None").is_dir()


def test_a_card_that_is_there_stays(run: Path, hub: Path) -> None:
    (hub / "ann/emoji").mkdir(parents=True)
    (hub / "ann/emoji/README.md").write_text("mine")
    push_to_hub(run, "ann/emoji", token="key", private=True)
    assert (hub / "ann/emoji/README.md").read_text() == "mine"


def test_errors(run: Path, hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf-hub:ann/nothing.*no such repository"):
        load("hf-hub:ann/nothing")
    with pytest.raises(FileNotFoundError, match="holds models in run"):
        push_to_hub(run.parent, "ann/emoji", token="key")
    (run / "model.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model\.json"):
        push_to_hub(run, "ann/emoji", token="key")
    assert not hub.exists()


def test_a_hub_that_does_not_answer_is_named(
    run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", silent)
    with pytest.raises(OSError, match=r"hf-hub:ann/emoji.*Name or service.*the network"):
        push_to_hub(run, "ann/emoji", token="key", private=True)


def test_the_digest_follows_both_files(run: Path) -> None:
    before = model_digest(run)
    for name in ("model.json", "model.safetensors"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content + b" ")
        assert model_digest(run) != before
        (run / name).write_bytes(content)
    assert model_digest(run) == before
