"""Public datasets in their original layouts: parts, classes, counts, and damaged copies."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.standin import STANDINS, write_standin
from bgl.datasets import Splits, load_dataset, recall_at
from bgl.datasets.registry import SOURCES
from bgl.datasets.source import Figures

PUBLIC = {name: name for name in STANDINS if name not in ("folder", "table")}
PUBLIC |= {"cars-devkit": "cars", "inshop-flat": "inshop"}
HOMES = {
    "cub": "CUB_200_2011",
    "sop": "Stanford_Online_Products",
    "inshop": "In-shop Clothes Retrieval Benchmark",
    "vehicleid-small": "VehicleID_V1.0",
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stand-in of 6 classes and 4 images count as complete."""
    for name, source in SOURCES.items():
        images = {part: 24 for part in source.figures}
        if "gallery" in images:
            images |= {"test": 18, "gallery": 6}
        tiny = {part: (Figures(6, number, "test"),) for part, number in images.items()}
        monkeypatch.setitem(SOURCES, name, replace(source, figures=tiny))


def standin(name: str, root: Path) -> Path:
    """Write a stand-in; its home."""
    write_standin(name, root, classes=6, images=4, image_size=8)
    return root / HOMES.get(name, "")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def partial(name: str, root: str | Path, **options: object) -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(name, root, allow_partial=True, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("standin_name", PUBLIC)
def test_parts(standin_name: str, tmp_path: Path) -> None:
    standin(standin_name, tmp_path)
    name = PUBLIC[standin_name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_dataset(name, tmp_path)
    assert splits.name == ("vehicleid-medium" if name == "vehicleid" else name)
    assert (splits.train.num_classes, splits.val.num_classes) == (4, 2)
    assert splits.test.num_classes == 6
    has_gallery = name.startswith(("inshop", "vehicleid"))
    assert len(splits.test) == (18 if has_gallery else 24)
    assert (splits.gallery is not None) == has_gallery
    if splits.gallery is not None:
        assert splits.gallery.labels.tolist() == list(range(6))
        assert not set(splits.gallery.paths) & set(splits.test.paths)
    for part in splits.parts().values():
        for i in range(len(part)):
            image, label = part[i]
            assert image.shape == (3, 8, 8)
            assert label == part.labels[i]
    # Stand-ins paint each class in a colour of its own, which the labels must agree with.
    colours = torch.stack([splits.test.read(i).float().mean(dim=(1, 2)) for i in range(18)])
    labels = splits.test.labels[:18]
    distance = torch.cdist(colours, colours)
    same = labels[:, None] == labels
    assert distance[same].max() < distance[~same].min()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("name", HOMES)
def test_root_or_the_folder_in_it(name: str, tmp_path: Path) -> None:
    home = standin(name, tmp_path / "a")
    digest = load_dataset(name, tmp_path / "a").digest
    assert load_dataset(name, home).digest == digest
    shutil.move(home, tmp_path / "b")
    assert load_dataset(name, str(tmp_path / "b")).digest == digest


@pytest.mark.parametrize("name", HOMES)
def test_relative_root(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = standin(name, tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"expected .* found 6"):
        load_dataset(name, "..")
    digest = partial(name, "..").digest
    monkeypatch.chdir(home)
    assert partial(name, ".").digest == digest
    with pytest.raises(ValueError, match=r"`root` .* got None\. .*the root and needs"):
        load_dataset(name)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("name", "peer"), [("cub", "CUB"), ("sop", "StanfordOnlineProducts")])
def test_what_pytorch_metric_learning_reads(name: str, peer: str, tmp_path: Path) -> None:
    module = f"pytorch_metric_learning.datasets.{name}"
    peers = pytest.importorskip(module, reason="an older pytorch-metric-learning reads no datasets")
    standin(name, tmp_path)
    splits = load_dataset(name, tmp_path, val_fraction=0)
    for part, data in (("train", splits.train), ("test", splits.test)):
        oracle = getattr(peers, peer)(str(tmp_path), split=part)
        ours = {
            str(path): int(data.class_names[label].split(".")[0])
            for path, label in zip(data.images, data.labels.tolist(), strict=True)
        }
        assert ours == dict(zip(oracle.paths, oracle.labels, strict=True))


@pytest.mark.usefixtures("known")
def test_both_layouts_of_cars_hold_out_the_same_classes(tmp_path: Path) -> None:
    standin("cars", tmp_path / "one")
    standin("cars-devkit", tmp_path / "two")
    one, two = (load_dataset("cars", tmp_path / folder, seed=3) for folder in ("one", "two"))
    assert {part: data.class_names for part, data in one.parts().items()} == {
        part: data.class_names for part, data in two.parts().items()
    }
    assert one.test.class_names[0] == "099 Stand-in Car 99"
    # The labels of the test images were given out beside the devkit, too.
    (tmp_path / "two/devkit/cars_test_annos_withlabels.mat").rename(
        tmp_path / "two/cars_test_annos_withlabels.mat"
    )
    (tmp_path / "two/devkit/cars_meta.mat").unlink()
    bare = load_dataset("cars", tmp_path / "two", seed=3)
    assert bare.test.paths == two.test.paths
    assert bare.test.class_names[0] == "099"


@pytest.mark.parametrize("standin_name", PUBLIC)
def test_other_counts_are_an_error_or_one_warning(standin_name: str, tmp_path: Path) -> None:
    standin(standin_name, tmp_path)
    name = PUBLIC[standin_name]
    with pytest.raises(ValueError, match=r"train \(.*expected .* classes .*found 6 .*--allow-par"):
        load_dataset(name, tmp_path)
    with pytest.warns(UserWarning, match=r"found 6 .* 24 images; ") as caught:
        load_dataset(name, tmp_path, allow_partial=True)
    assert len(caught) == 1


@pytest.mark.parametrize("name", PUBLIC.values())
def test_nothing_there(name: str, tmp_path: Path) -> None:
    site = "CaltechDATA|ai.stanford.edu|cvgl.stanford.edu|mmlab.ie.cuhk.edu.hk|pkuml.org"
    with pytest.raises(FileNotFoundError, match=f"which is missing.*({site}).*the root and needs"):
        load_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("cub", "images.txt"),
        ("cub", "image_class_labels.txt"),
        ("cub", "images"),
        ("cars", "car_ims"),
        ("cars-devkit", "devkit/cars_test_annos_withlabels.mat"),
        ("cars-devkit", "cars_test"),
        ("sop", "Ebay_test.txt"),
        ("inshop", "Img"),
        ("vehicleid-small", "train_test_split/test_list_800.txt"),
        ("vehicleid-small", "image"),
    ],
)
def test_missing_files_are_named(name: str, gone: str, tmp_path: Path) -> None:
    home = standin(name, tmp_path)
    path = home / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"(?i){path.name}, which is missing"):
        load_dataset(PUBLIC[name], tmp_path, allow_partial=True)


def test_all_images_missing(tmp_path: Path) -> None:
    home = standin("sop", tmp_path)
    shutil.rmtree(home / "bicycle_final")
    with pytest.raises(FileNotFoundError, match=r"bicycle_final.*CVGL"):
        load_dataset("sop", tmp_path, allow_partial=True)


@pytest.mark.usefixtures("known")
def test_missing_images_are_listed_or_left_out(tmp_path: Path) -> None:
    home = standin("inshop", tmp_path)
    item = home / "Img/img/WOMEN/Dresses/id_00004001"
    (item / "02_1_front.jpg").unlink()
    shutil.rmtree(home / "Img/img/WOMEN/Dresses/id_00000003")
    with pytest.raises(ValueError, match=r"5 of 48 .*id_00004001.*query \(Eval/.*found 6 .* 17"):
        load_dataset("inshop", tmp_path)
    with pytest.warns(UserWarning, match=r"5 of 48 .*train \(Eval/.*found 5 .* 20") as caught:
        splits = load_dataset("inshop", tmp_path, allow_partial=True, val_fraction=0)
    assert len(caught) == 1
    assert (splits.train.num_classes, len(splits.test)) == (5, 17)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("cub", "images.txt", "9 003", "x 003", r"images.txt line 9: expected the image id .*'x'"),
        ("cub", "images.txt", "9 003", "8 003", r"images.txt line 9: expected one line an image"),
        ("cub", "images.txt", " 003.S", " 003 .S", r"images.txt line 9: expected 2 columns"),
        ("cub", "images.txt", "003.S", "../../003.S", r"images.txt line 9: .*leads out"),
        ("cub", "image_class_labels.txt", "9 3", "9 201", r"line 9: .*class id .*200.*'201'"),
        ("cub", "image_class_labels.txt", "9 3", "9 4", r"labels.txt line 9: .*got 4 for 003"),
        ("cub", "image_class_labels.txt", "9 3", "8 3", r"labels.txt line 9: expected one line"),
        ("cub", "image_class_labels.txt", "9 3\n", "", r"labels.txt has no line for 1 images"),
        ("sop", "Ebay_train.txt", "image_id", "id", r"Ebay_train.txt line 1: expected image_id"),
        ("sop", "Ebay_train.txt", "9 3 1", "9 3", r"train.txt line 10: expected 4 columns.*got 3"),
        ("sop", "Ebay_train.txt", "9 3 1", "9 -3 1", r"train.txt line 10: .*class id.*'-3'"),
        ("sop", "Ebay_train.txt", "9 3 1", "9 11320 1", r"no class name in common, but got 11320"),
        ("sop", "Ebay_train.txt", "bic", "/etc/bic", r"Ebay_train.txt line 2: .*leads out"),
        ("sop", "Ebay_train.txt", "bic", "a/../../bic", r"Ebay_train.txt line 2: .*leads out"),
        ("inshop", "Eval/list_eval_partition.txt", "48", "52", r"has 52 images, but lists 48"),
        ("inshop", "Eval/list_eval_partition.txt", "48", "", r"line 1: expected the number of im"),
        ("inshop", "Eval/list_eval_partition.txt", "item_id", "id", r"line 2: expected image_nam"),
        ("inshop", "Eval/list_eval_partition.txt", "train", "val", r"line 3: .*status .*'val'"),
        ("inshop", "Eval/list_eval_partition.txt", " train", "", r"line 3: expected 3 columns"),
        ("inshop", "Eval/list_eval_partition.txt", "query", "train", r"in common.*id_00004001"),
        (
            "vehicleid-small",
            "train_test_split/train_list.txt",
            "0000001 1",
            "1",
            r"line 1: exp.* 2",
        ),
        ("vehicleid-small", "train_test_split/train_list.txt", "01 1", "01 20002", r"got 20002"),
        (
            "vehicleid-small",
            "train_test_split/test_list_800.txt",
            "0000025 20001",
            "0000001 20001",
            r"800.txt line 1: .*01.jpg is in test.*'20001'.*in train.*'1' in .*list.txt line 1",
        ),
    ],
)
@pytest.mark.usefixtures("known")
def test_damaged_lists(
    name: str, file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    edit(standin(name, tmp_path) / file, old, new)
    with pytest.raises(ValueError, match=message):
        load_dataset(name, tmp_path)


@pytest.mark.usefixtures("known")
def test_cut_off_lists(tmp_path: Path) -> None:
    file = standin("cub", tmp_path) / "images.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:-3]))
    with pytest.raises(ValueError, match=r"images.txt has no line for 3 .*test \(images.txt\)"):
        load_dataset("cub", tmp_path)
    assert len(partial("cub", tmp_path).test) == 21
    file.write_text("")
    with pytest.raises(ValueError, match=r"Expected lines .*images.txt, but it has none"):
        load_dataset("cub", tmp_path)
    file.write_bytes(b"1 \xff\xfe.jpg")
    with pytest.raises(ValueError, match=r"images.txt to be a text file"):
        load_dataset("cub", tmp_path)


@pytest.mark.usefixtures("known")
def test_repeated_lines_count_once(tmp_path: Path) -> None:
    file = standin("sop", tmp_path) / "Ebay_train.txt"
    file.write_text(file.read_text() + "99 3 1 bicycle_final/111085122874_0.JPG\n")
    with pytest.warns(UserWarning, match=r"1 lines repeat .*train.txt line 26") as caught:
        splits = load_dataset("sop", tmp_path, val_fraction=0)
    assert len(caught) == 1
    assert len(splits.train) == 24


@pytest.mark.usefixtures("known")
def test_inshop_item_and_folder_disagree(tmp_path: Path) -> None:
    file = standin("inshop", tmp_path) / "Eval/list_eval_partition.txt"
    edit(file, "02_1_front.jpg id_00000001", "02_1_front.jpg id_00000002")
    with pytest.warns(UserWarning, match=r"1 images are in the folder of another item.*line 4"):
        load_dataset("inshop", tmp_path)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "to have `class_names`.*cut off"),
        (lambda path: path.write_bytes(b"not a MATLAB file" * 20), "to be a whole MATLAB file"),
        (lambda path: path.write_bytes(b""), "to be a whole MATLAB file"),
    ],
)
def test_damaged_mat_files(damage: object, message: str, tmp_path: Path) -> None:
    path = standin("cars", tmp_path) / "cars_annos.mat"
    damage(path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"cars_annos.mat {message}"):
        load_dataset("cars", tmp_path)


@pytest.mark.usefixtures("known")
def test_mat_files_without_labels_or_with_wrong_ones(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    standin("cars-devkit", tmp_path)
    path = tmp_path / "devkit/cars_test_annos_withlabels.mat"

    def write(field: str, value: object) -> None:
        rows = np.array([[("00001.jpg", value)]], dtype=[("fname", object), (field, object)])
        savemat(path, {"annotations": rows})

    write("bbox_x1", 1)
    with pytest.raises(ValueError, match=r"to have `class`.*cars_test_annos_withlabels.mat"):
        load_dataset("cars", tmp_path)
    write("class", 197)
    with pytest.raises(ValueError, match=r"withlabels.mat entry 1: .* 197"):
        load_dataset("cars", tmp_path)
    write("class", 3)  # one entry, which MATLAB files don't tell from a list of them
    assert len(partial("cars", tmp_path, val_fraction=0).train) == 13
    savemat(path, {"something": 1})
    with pytest.raises(ValueError, match="to have `annotations`"):
        load_dataset("cars", tmp_path)
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": np.array(["a", "b"], object)})
    with pytest.raises(ValueError, match="196 `class_names`, but got 2"):
        load_dataset("cars", tmp_path)


@pytest.mark.usefixtures("known")
def test_vehicleid_gallery_is_drawn_by_seed_and_not_by_order(tmp_path: Path) -> None:
    home = standin("vehicleid-small", tmp_path)

    def gallery(seed: int) -> tuple[str, ...]:
        found = load_dataset("vehicleid-small", tmp_path, seed=seed).gallery
        return tuple(sorted(found.paths))

    first = gallery(0)
    assert len({gallery(seed) for seed in range(5)}) > 1
    file = home / "train_test_split/test_list_800.txt"
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert gallery(0) == first


@pytest.mark.usefixtures("known")
def test_vehicleid_broken_images_are_not_drawn(tmp_path: Path) -> None:
    home = standin("vehicleid-small", tmp_path)
    for number in range(26, 29):
        (home / "image" / f"{number:07d}.jpg").write_bytes(b"broken")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_dataset("vehicleid-small", tmp_path, skip_broken=True)
    first, second = (str(one.message) for one in caught)
    assert first.startswith("Left out 3 images")
    assert second.endswith("have one image only: 20001")
    assert "image/0000025.jpg" in splits.gallery.paths
    assert len(splits.skipped) == 3
    assert len(splits.test) == 15
    assert splits.test.class_names == splits.gallery.class_names


@pytest.mark.usefixtures("known")
def test_inshop_broken_images(tmp_path: Path) -> None:
    """A class whose gallery image is broken keeps its queries, and one warning says so."""
    home = standin("inshop-flat", tmp_path)
    item = home / "img/WOMEN/Dresses/id_00004001"
    (item / "01_1_front.jpg").write_bytes(b"broken")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_dataset("inshop", tmp_path, skip_broken=True)
    first, second = (str(one.message) for one in caught)
    assert first.startswith("Left out 1 images")
    assert "nothing in the gallery" in second
    assert second.endswith("id_00004001")
    assert (len(splits.test), len(splits.gallery)) == (18, 5)
    assert splits.gallery.class_names == splits.test.class_names


@pytest.mark.usefixtures("known")
def test_train_classes_with_one_image_are_listed(tmp_path: Path) -> None:
    home = standin("sop", tmp_path)
    for i in range(1, 4):
        (home / f"bicycle_final/111085122873_{i}.JPG").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_dataset("sop", tmp_path, allow_partial=True)
    first, second = (str(one.message) for one in caught)
    assert "3 of 48 listed images are missing" in first
    assert second.endswith("have one image only: 2")


@pytest.mark.usefixtures("known")
def test_grey_images_become_rgb(tmp_path: Path) -> None:
    home = standin("cub", tmp_path)
    path = next((home / "images/101.Stand_in_101").iterdir())
    Image.new("L", (8, 8), 90).save(path)
    test = load_dataset("cub", tmp_path).test
    assert test.read(list(test.images).index(path)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("name", "total"), [("cub", 11788), ("cars", 16185), ("sop", 120053), ("inshop", 52712)]
)
def test_published_figures_add_up(name: str, total: int) -> None:
    """To the totals that the datasets' authors give."""
    assert sum(known[0].images for known in SOURCES[name].figures.values()) == total


def test_recall_at_is_the_literatures() -> None:
    assert recall_at("vehicleid") == recall_at("vehicleid-small") == (1, 5)
    assert recall_at("folder") == recall_at("cub") == (1, 2, 4, 8)


ORDER = {
    "folder": "a18a21b56c2d 9a4c4c736e54",
    "table": "5700b38b1931 f7e78f765cea",
    "cub": "11f468840d3d 5e84faf4e899",
    "cars": "4a888905c9db ca8693a32f37",
    "cars-devkit": "fdb3e3eddcd5 b5f93817e7ff",
    "sop": "808a450bc386 15f988bc159f",
    "inshop": "0c005d1e2b4f 5c57bdb81366",
    "inshop-flat": "6cc54603650c 6d2a13156f53",
    "vehicleid": "fbe4ed467d42 f26ca79838e2",
}


@pytest.mark.parametrize("standin_name", ORDER)
def test_digest_and_order_stay(standin_name: str, tmp_path: Path) -> None:
    """What a dataset's digest is and in which order its images come never changes."""
    write_standin(standin_name, tmp_path, classes=6, images=4, image_size=8)
    table = {"table": tmp_path / "items.csv"} if standin_name == "table" else {}
    splits = partial(PUBLIC.get(standin_name, standin_name), tmp_path, seed=3, **table)
    order = "\n".join(
        f"{part} {path} {label}"
        for part, data in splits.parts().items()
        for path, label in zip(data.paths, data.labels.tolist(), strict=True)
    )
    digest = hashlib.sha256(order.encode()).hexdigest()[:12]
    assert f"{splits.digest} {digest}" == ORDER[standin_name]
