"""Tables: the two forms of validation, labels, paths, and errors that name line and column."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from benchmarks.standin import write_standin
from bgl.datasets import Splits, load_dataset

HEADER = "path,label,split,is_query,is_gallery"


def load_table(table: str | Path, root: str | Path | None = None) -> Splits:
    return load_dataset("table", root, table=table)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_standin("table", tmp_path, classes=6, images=3, image_size=8) / "items.csv"


def test_one_test_set(table: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_table(table)
    assert splits.name == "table"
    assert splits.gallery is None
    assert (splits.train.num_classes, splits.val.num_classes, len(splits.test)) == (4, 2, 18)
    assert splits.test.class_names == [f"class {i}" for i in range(101, 107)]
    assert splits.test.paths[0] == "images/101/0.jpg"
    assert load_dataset("table", table=table).digest == splits.digest
    assert load_dataset("table", table.parent, table=str(table)).digest == splits.digest


def test_query_and_gallery(table: Path) -> None:
    lines = table.read_text().splitlines()
    for i, line in enumerate(lines):
        flags = ",1.0,FALSE" if "/0.jpg" in line else ",False,true"
        lines[i] = line.replace(",True,True", flags)
    table.write_text("\n".join(lines))
    splits = load_table(table)
    assert (len(splits.test), len(splits.gallery)) == (6, 12)
    assert splits.gallery.class_names == splits.test.class_names
    assert splits.gallery.labels.tolist() == [i // 2 for i in range(12)]


def test_distractors_and_lost_queries(table: Path) -> None:
    """Classes on one side only keep both sides' numbers the same; queries with no match warn."""
    lines = table.read_text().splitlines()
    for i, line in enumerate(lines):
        query = "/101/" in line or ("/0.jpg" in line and "/102/" not in line)
        lines[i] = line.replace(",True,True", f",{query},{not query}")
    table.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="1 classes .* nothing in the gallery.*class 101$"):
        splits = load_table(table)
    assert splits.test.num_classes == 6
    assert "class 102" in splits.test.class_names
    assert splits.gallery.class_names == splits.test.class_names


def test_root_and_absolute_paths(table: Path, tmp_path: Path) -> None:
    digest = load_table(table).digest
    elsewhere = tmp_path / "tables" / "items.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(table.read_text())
    with pytest.raises(FileNotFoundError, match="none of the 36"):
        load_table(elsewhere)
    assert load_table(elsewhere, tmp_path).digest == digest
    elsewhere.write_text(table.read_text().replace("images/", f"{tmp_path}/images/"))
    assert load_table(elsewhere, tmp_path).digest == digest
    with pytest.raises(ValueError, match=r"items.csv line 2: .*leads out"):
        load_table(elsewhere)
    with pytest.raises(FileNotFoundError, match="`root`"):
        load_table(table, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="`table`"):
        load_table(tmp_path / "nothing.csv")


def test_relative_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load_table(table).digest
    monkeypatch.chdir(table.parent / "images")
    assert load_table("../items.csv").digest == digest
    monkeypatch.chdir(table.parent)
    splits = load_table("items.csv", ".")
    assert splits.digest == digest
    monkeypatch.chdir("/")
    assert splits.test.read(0).shape == (3, 8, 8)  # still found from elsewhere


def test_byte_order_mark_quotes_blank_lines_and_more_columns(table: Path) -> None:
    lines = [f'{line},"a, b"' for line in table.read_text().splitlines()]
    lines[0] = HEADER + ",note"
    table.write_text("\ufeff" + "\r\n".join([*lines, "", ""]), encoding="utf-8")
    assert len(load_table(table).test) == 18


def test_boxes_and_sequences_are_not_used(table: Path) -> None:
    lines = [f"{line},1,2" for line in table.read_text().splitlines()]
    lines[0] = HEADER + ",x_1,sequence"
    table.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="x_1, sequence are not used") as caught:
        load_table(table)
    assert len(caught) == 1


FIRST = "images/1/0.jpg,class 1,train,,"
TEST = "images/101/0.jpg,class 101,validation,True,True"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (HEADER, "path,split,is_query", r"line 1: expected the columns .* is_query: name label in"),
        (HEADER, HEADER + ",path", r"line 1: .*\['path'\] is there twice"),
        (FIRST, FIRST + ",x", r"line 2: expected 5 columns .* got 6"),
        (FIRST, "images/1/0.jpg,class 1", r"line 2: expected 5 columns .* got 2"),
        (FIRST, ",class 1,train,,", r"line 2, column `path`: .*empty"),
        (FIRST, "images/1/0.jpg, ,train,,", r"line 2, column `label`: .*empty"),
        (FIRST, "images/1/0.jpg,class 1,dev,,", r"line 2, column `split`: .* 'dev'"),
        (FIRST, "images/1/0.jpg,class 1,train,True,", r"line 2, columns `is_query`.*train"),
        (FIRST, "images/1/0.jpg,class 1,train,maybe,", r"line 2, column `is_query`: .*'maybe'"),
        (FIRST, "../1/0.jpg,class 1,train,,", r"line 2: .*leads out"),
        (FIRST, "images/1/9.jpg,class 1,train,,", r"1 of 36 .*images/1/9.jpg.*--allow-partial"),
        (FIRST, "images/1/0.jpg,class 101,train,,", r"train and test of .*class 101; "),
        (FIRST, TEST + "\n" + FIRST, None),
        (FIRST, "images/1/1.jpg,class 2,train,,", r"line 3: .*'class 1' here .*'class 2' in .* 2"),
        (TEST, "images/101/0.jpg,class 101,validation,,True", r"line 20, column `is_query`: .*em"),
        (TEST, "images/101/0.jpg,class 101,validation,0,0", r"line 20, columns .*one of them"),
        (TEST, "images/101/0.jpg,class 101,validation,1,0", r"line 21, columns .*17 of 18 are bo"),
    ],
)
def test_bad_lines(table: Path, old: str, new: str, message: str | None) -> None:
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    if message is None:  # the same line twice
        with pytest.warns(UserWarning, match=r"1 lines repeat an image.*line 21\)"):
            assert len(load_table(table).test) == 18
        return
    with pytest.raises(ValueError, match=message):
        load_table(table)


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_path_and_label_are_enough(table: Path, separator: str) -> None:
    """The classes of validation and test are drawn, and named in one note."""
    rows = [line.split(",")[:2] for line in table.read_text().splitlines()]
    table.write_text("\n".join(separator.join(row) for row in rows))
    with pytest.warns(UserWarning, match="7 to train on, 2 for validation and 3 for test") as notes:
        splits = load_table(table)
    assert len(notes) == 1
    assert [part.num_classes for part in splits.parts().values()] == [7, 2, 3]
    assert sum(len(part) for part in splits.parts().values()) == 36


def test_test_is_accepted_besides_validation(table: Path) -> None:
    """Where there are lines of test, validation is what the epoch is chosen on."""
    digest = load_table(table).digest
    lines = [",".join(line.split(",")[:3]) for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines).replace(",validation", ",test"))
    assert load_table(table).digest == digest
    for number in ("5", "6"):
        lines = [
            line.replace("train", "val") if f"images/{number}/" in line else line for line in lines
        ]
    table.write_text("\n".join(lines).replace(",validation", ",test"))
    splits = load_table(table)
    assert splits.val is not None
    assert splits.val.class_names == ["class 5", "class 6"]
    assert (splits.train.num_classes, splits.test.num_classes) == (4, 6)
    table.write_text("\n".join(lines).replace(",validation", ",test") + "\nimages/5/0.jpg,a,test")
    with pytest.raises(ValueError, match="expected every image once"):
        load_table(table)


def test_no_text_and_no_lines(table: Path) -> None:
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"items.csv to be a CSV file in UTF-8"):
        load_table(table)
    table.write_text("")
    with pytest.raises(ValueError, match="line 1: expected the columns"):
        load_table(table)
    table.write_text(HEADER)
    with pytest.raises(ValueError, match="to have images for train, but got none"):
        load_table(table)
    table.write_text(f'{HEADER}\n"images/1/0.jpg,a,train,,\n')
    with pytest.raises(ValueError, match="CSV file in UTF-8, but unexpected end"):
        load_table(table)


def test_partial(table: Path) -> None:
    shutil.rmtree(table.parent / "images/1")
    with pytest.warns(UserWarning, match=r"3 of 36 .*images/1/0.jpg") as caught:
        splits = load_dataset("table", table=table, allow_partial=True, val_fraction=0)
    assert len(caught) == 1
    assert splits.train.num_classes == 5


def test_load_dataset_names_table(table: Path) -> None:
    with pytest.raises(ValueError, match=r"`table` .* got None"):
        load_dataset("table", table.parent)
    with pytest.raises(ValueError, match=r"`table` .* None .*'folder'"):
        load_dataset("folder", table.parent, table=table)
