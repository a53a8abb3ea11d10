"""Saved models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from bgl.models.config import ModelConfig
from bgl.models.files import CONFIG_FILE, HUB, WEIGHTS_FILE, check_files
from bgl.models.storage import read_config

_CARD = """---
library_name: bgl
pipeline_tag: image-feature-extraction
tags: [bgl, timm, image-retrieval, metric-learning]
---
# {name}

Embeds images so that those of the same thing lie close together: {backbone} at {size} px, its
{embedding}, compared by {distance}; trained with {blocks}.

```python
import bgl.models

encoder = bgl.models.load("{hub}{repo}")
embeddings = encoder.embed(["image.jpg"])
```
"""


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    commit_message: str = "Add model",
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Put a saved model on the Hugging Face hub; ``load("hf-hub:USER/NAME")`` reads it.

    One commit holds the model's two files and, where the repository has none, a short README.md.
    Nothing else in the folder is sent.

    Args:
        folder: Where :func:`bgl.models.save` or a run wrote the model.
        repo_id: ``"USER/NAME"``; the repository is made if needed.
        commit_message: Of the commit.
        token: Of the hub; default: the one that ``hf auth login`` stored.
        revision: Branch to commit to; default: the main one.
        private: Whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If ``model.json`` does not describe one.
        OSError: If the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # slow to import, rarely needed

    folder = Path(folder)
    check_files(folder)
    config = read_config(folder)
    files: dict[str, str | bytes] = {
        name: str(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)
    }
    try:
        api = HfApi(token=token, library_name="bgl")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md", revision=revision):
            files["README.md"] = _card(repo_id, config).encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo_id, operations, commit_message=commit_message, revision=revision
        )
    except Exception as error:  # the hub's client raises errors of many kinds
        raise OSError(
            f"Expected {HUB}{repo_id} to be a repository to write to, but cannot put {folder} "
            f"there ({type(error).__name__}: {error}): check the name, the token and the network"
        ) from error
    return str(commit.commit_url)


def _card(repo_id: str, config: ModelConfig) -> str:
    """Describe a model in the README.md of its repository."""
    embedding = {
        "backbone": "output",
        "head": f"head's output ({config.head_dim} dimensions)",
        "readout": f"readout ({config.readout_dim} dimensions)",
    }[config.embedding]
    return _CARD.format(
        name=repo_id.partition("/")[2] or repo_id,
        backbone=config.backbone,
        size=config.image_size,
        embedding=embedding,
        distance=config.distance,
        blocks=" + ".join(block.name for block in config.blocks) or "no block",
        hub=HUB,
        repo=repo_id,
    )
