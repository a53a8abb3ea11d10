"""Damaged and hostile files: a result, or an error that names the file; and no code is run."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Attack
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import profile, searched
from safetensors.torch import save_file
from tiny_training import make_splits, tiny

import bgl
from benchmarks import report
from benchmarks.standin import write_standin
from bgl.datasets import load_dataset
from bgl.datasets.downloading import unpack
from bgl.models import create_backbone, load, load_released_checkpoint
from bgl.pipeline import options, read_config
from bgl.pipeline.arrays import read_arrays
from bgl.pipeline.explorer import run_payload
from bgl.pipeline.recorder import Recorder
from bgl.pipeline.rows import read_result
from bgl.training import train
from bgl.visualization import read_history

ROOT = Path(__file__).parents[2]

DOCUMENTED = (ValueError, OSError)

LINES = [
    b"../../../../etc/passwd",
    b"/etc/passwd 1",
    b"a,b,c,d,e,f,g",
    b"1 2 3 4 5 6 7 8 9",
    b"\x00\x01\x02",
    b"\xff\xfe\xfa",
    b'"never closed',
    b"9" * 5000,
    b"-1 -1 -1 -1",
    b"nan inf 1e999 x",
    b"",
]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What may happen to a file."""
    kind = draw(st.sampled_from(["cut", "flip", "line", "swap", "empty", "binary", "huge"]))
    share = draw(st.floats(0, 1))
    line = draw(st.sampled_from(LINES))
    noise = draw(st.binary(min_size=1, max_size=40))

    def mutate(content: bytes) -> bytes:
        at = int(share * max(0, len(content) - 1))
        lines = content.split(b"\n")
        row = int(share * max(0, len(lines) - 1))
        if kind == "cut":
            return content[:at]
        if kind == "flip":
            return content[:at] + noise + content[at + len(noise) :]
        if kind == "line":
            return b"\n".join([*lines[:row], line, *lines[row:]])
        if kind == "swap":
            return b"\n".join([*lines[:row], line, *lines[row + 1 :]])
        return {"empty": b"", "binary": noise * 50, "huge": content * 20}[kind]

    return mutate


def run_quietly(read: Callable[[], Any], *named: str) -> None:
    """A result or an error of a documented type, whose message names the file or what is in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except DOCUMENTED as error:
        message = str(error)
        assert any(name in message for name in named), message


def damage(search: settings, file: Path, read: Callable[[], Any]) -> None:
    """Read while a file is damaged in every way that is tried; it is put back each time."""
    content = file.read_bytes()

    @search
    @given(mutations())
    def run(mutate: Callable[[bytes], bytes]) -> None:
        try:
            file.write_bytes(mutate(content))
            run_quietly(read, file.name, str(file.parent), "Expected")
        finally:
            file.write_bytes(content)

    run()


LISTS = {
    "table": ["items.csv"],
    "cub": ["images.txt", "image_class_labels.txt"],
    "cars": ["cars_train_annos.mat", "cars_meta.mat", "cars_test_annos_withlabels.mat"],
    "sop": ["Ebay_train.txt", "Ebay_test.txt"],
    "inshop": ["list_eval_partition.txt"],
    "vehicleid": ["train_list.txt", "test_list_800.txt"],
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every dataset in its own layout, small."""
    made: dict[str, Path] = {}

    def root(name: str) -> Path:
        if name not in made:
            made[name] = write_standin(
                name, tmp_path_factory.mktemp(name), classes=2, images=2, image_size=8
            )
        return made[name]

    return root


@pytest.mark.parametrize("search", searched(12, 1500))
@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in LISTS.items() for file in files]
)
def test_lists_of_datasets(roots, name, file, search):
    root = roots(name)
    found = next(iter(root.rglob(file)), None)
    if found is None:
        found = next(path for path in root.rglob("*") if path.suffix == Path(file).suffix)

    options = {"table": found} if name == "table" else {}
    damage(search, found, lambda: load_dataset(name, root, allow_partial=True, **options))


@pytest.mark.parametrize("search", searched(20, 1500))
def test_images(roots, search):
    root = roots("folder")
    file = next(root.rglob("*.jpg"))

    def read() -> None:
        for part in load_dataset("folder", root, val_fraction=0.0).parts().values():
            for i in range(len(part)):
                part.read(i)

    damage(search, file, read)


def make_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name * 50)


def make_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("search", searched(40, 3000))
def test_archives(tmp_path, make, search):
    archive, target = tmp_path / "archive", tmp_path / "in" / "data"
    target.parent.mkdir()
    make(archive, ["data/a.txt", "data/b/c.txt"])
    content = archive.read_bytes()

    @search
    @given(mutations())
    def run(mutate: Callable[[bytes], bytes]) -> None:
        archive.write_bytes(mutate(content))
        run_quietly(lambda: unpack(archive, target), str(archive), "archive")
        left = {path.name for path in target.parent.iterdir()}
        assert left <= {"data"}  # all or nothing, and no temporary folder
        shutil.rmtree(target, ignore_errors=True)

    run()


hostile = st.lists(
    st.sampled_from(["..", "../x", "/etc/x", "data", "a", "data/../../x", "c:\\x", "\\x", "."]),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("search", searched(40, 3000))
def test_paths_in_archives_stay_inside(tmp_path, make, search):
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)

    @search
    @given(hostile)
    def run(name: str) -> None:
        make(tmp_path / "archive", ["data/a.txt", name])
        target = inside / "data"
        before = {path for path in tmp_path.rglob("*") if inside not in path.parents}
        run_quietly(lambda: unpack(tmp_path / "archive", target), "archive")
        assert {path for path in tmp_path.rglob("*") if inside not in path.parents} == before
        shutil.rmtree(target, ignore_errors=True)

    run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "none-seed0"
    splits = make_splits()
    recorder = Recorder(folder, splits)
    train(tiny(epochs=1), splits, folder, recorder)
    recorder.finish()
    rows = [{"method": "none", "seed": 0, "embedding": "head", "metrics": {"recall@1": 0.5}}]
    (folder.parent / "results.json").write_text(json.dumps({"rows": rows}))
    # no other data than these, which would be read anew each time
    config = "method: none\nseed: 0\ndataset: folder\ndata_root: /no/such/folder\n"
    (folder / "config.yaml").write_text(config)
    result = {"config": {}, "digest": "", "commit": None, "rows": rows}
    (folder / "result.json").write_text(json.dumps(result))
    command = options.Command([tiny()], folder.parent, ["tensorboard"])
    options.write_command(command, folder.parent)
    assert options.read_command(folder.parent) == command
    return folder


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "model.json": ("model.json", load),
    "model.safetensors": ("model.safetensors", load),
    "metrics.csv": ("metrics.csv", lambda folder: read_history(folder / "metrics.csv")),
    "checkpoint.pt": (
        "checkpoint.pt",
        lambda folder: train(tiny(epochs=1), make_splits(), folder),
    ),
    "command.yaml": ("../command.yaml", lambda folder: options.read_command(folder.parent)),
    "explorer.npz": ("explorer.npz", lambda folder: read_arrays(folder / "explorer.npz")),
    "result.json": ("result.json", read_result),
    "read config.yaml": ("config.yaml", read_config),
    "own options": (
        "config.yaml",
        lambda folder: options.parse(["--config", str(folder / "config.yaml")]),
    ),
    "explorer of results.json": (
        "../results.json",
        lambda folder: run_payload(folder.parent),
    ),
    "explorer of config.yaml": (
        "config.yaml",
        lambda folder: run_payload(folder.parent),
    ),
}


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.reliability)])
@pytest.mark.parametrize("name", READERS)
def test_files_of_a_run(finished, name, length):
    file, read = READERS[name]
    slow = name.startswith(("explorer", "checkpoint", "model", "own options"))
    short, long = (6, 300) if slow else (25, 1500)
    search = profile(short, True) if length == "short" else profile(long, False)
    damage(search, (finished / file).resolve(), lambda: read(finished))


@pytest.mark.parametrize("search", searched(15, 1500))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights(tmp_path, suffix, search):
    file = tmp_path / f"weights{suffix}"
    state = create_backbone("test_resnet", "none")[0].state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)

    damage(search, file, lambda: create_backbone("test_resnet", str(file)))


@pytest.mark.parametrize("wrap", ["torch", "pickle", "old torch"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: create_backbone("test_resnet", str(path)),
        lambda path: load_released_checkpoint(path, "test_vit"),
        lambda path: train(tiny(), make_splits(), path.parent),
    ],
    ids=["weights", "released checkpoint", "checkpoint"],
)
def test_pickled_code_is_not_run(tmp_path, read, wrap):
    path, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"
    content = {"params": {"x": Attack(ran)}, "config": Attack(ran), "position": {}}
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=wrap == "torch")
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        read(path)
    assert not ran.exists()


def test_code_in_yaml_is_not_run(tmp_path, capsys):
    code = f"!!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']"
    (tmp_path / "command.yaml").write_text(f"configs: {code}\nlog: []\n")
    with pytest.raises(ValueError, match=r"command\.yaml"):
        options.read_command(tmp_path)
    (tmp_path / "own.yaml").write_text(f"lr: {code}\n")
    with pytest.raises(ValueError, match=r"own\.yaml"):
        options.parse(["--config", str(tmp_path / "own.yaml")])
    assert not (tmp_path / "ran").exists()


UNSAFE = (
    r"torch\.load\((?![^)]*weights_only=True)",
    r"\bpickle\b(?!d)|\bdill\b|\bjoblib\b|\bshelve\b|\bmarshal\b",
    r"yaml\.(load|full_load|unsafe_load|load_all)\(",
    r"allow_pickle\s*=\s*True",
    r"(?<![.\w])(eval|exec)\(",
    r"extractall\((?!folder)",
    r"torch\.hub(?!\.load_state_dict_from_url\([^)]*weights_only=True)",
    r"torch\.package|os\.system|shell=True",
)


def test_sources_use_safe_loaders_only():
    rooms = (Path(bgl.__file__).parent, ROOT / "benchmarks", ROOT / "tools")
    files = [file for room in rooms for file in room.rglob("*.py")]
    assert len(files) > 60
    found = [
        f"{file}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for pattern in UNSAFE
        if re.search(pattern, line.partition("  #")[0]) and "write_pickle" not in line
    ]
    assert found == []


def test_report_of_a_folder_without_results(tmp_path):
    with pytest.raises((ValueError, OSError), match="results"):
        report.load_rows([tmp_path])
