"""Names as tools on other systems write them, and the files that they mean."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cst_search.data.dataset import load_data
from cst_search.data.validation import file_names
from cst_search.data.validation.file_names import Located, locate_all
from cst_search.errors import DataError


def make(folder: Path, *files: str) -> Path:
    """train/ of a data set, with files that hold their own names."""
    for file in files:
        path = folder / "train" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    (folder / "train").mkdir(exist_ok=True, parents=True)
    return folder


def locate(folder: Path, name: str, *more: str) -> Located:
    return locate_all([name, *more], folder / "train", folder)[name]


NFC, NFD = (unicodedata.normalize(form, "Bär.jpg") for form in ("NFC", "NFD"))

# why, name in the annotation file, other names there, file, what is said
MEANT = [
    ("as it stands", "a.jpg", (), "a.jpg", ""),
    ("a sub-folder", "cam1/a.jpg", (), "cam1/a.jpg", ""),
    ("letter case of the ending", "a.JPG", (), "a.jpg", "a.jpg: other letter case"),
    ("letter case of a folder", "Cam1/a.jpg", (), "cam1/a.jpg", "cam1/a.jpg: other letter case"),
    ("Windows", "cam1\\a.jpg", (), "cam1/a.jpg", "cam1/a.jpg: with / for \\"),
    ("an archive of Windows, unpacked here", "cam1/a.jpg", (), "cam1\\a.jpg", "cam1\\a.jpg: "),
    ("encoded in the file", "my%20photo.jpg", (), "my photo.jpg", "my photo.jpg: percent-encoded"),
    ("encoded on the disk", "my photo.jpg", (), "my%20photo.jpg", "my%20photo.jpg: percent-encoded"),
    ("composed in the file", NFC, (), NFD, f"{NFD}: other Unicode form"),
    ("decomposed in the file, as macOS has it", NFD, (), NFC, f"{NFC}: other Unicode form"),
    ("both", NFD.upper(), (), NFC, f"{NFC}: other letter case, other Unicode form"),
    ("the folder itself", "train/a.jpg", (), "a.jpg", "a.jpg: without train/"),
    ("the folder in another case", "Train/a.jpg", (), "a.jpg", "a.jpg: without Train/"),
    ("dot", "./train/a.jpg", (), "a.jpg", "a.jpg: without train/"),
    ("the data set and the folder", "ds/train/a.jpg", (), "a.jpg", "a.jpg: without ds/train/"),
    ("a folder of all names", "project 3/a.jpg", ("project 3/b.jpg",), "a.jpg", "a.jpg: without project 3/"),
    ("another machine", "/home/ann/ds/train/a.jpg", (), "a.jpg", "a.jpg: without home/ann/ds/train/"),
    ("another machine, sub-folder", "/home/ann/ds/cam1/a.jpg", (), "cam1/a.jpg",
     "cam1/a.jpg: without home/ann/ds/"),
    ("another machine's Windows", "C:\\Users\\Ann\\a.jpg", (), "a.jpg",
     "a.jpg: without C:/Users/Ann/, with / for \\"),
    ("relative to a tool's folder", "../../label-studio/media/upload/1/a.jpg", (), "a.jpg",
     "a.jpg: without label-studio/media/upload/1/"),
    ("an address", "https://host:80/data/a%20b.jpg?token=1", (), "a b.jpg", "a b.jpg: without data/, percent-encoded"),
    ("Label Studio's local files", "/data/local-files/?d=ds%2Fa.jpg", (), "a.jpg", "a.jpg: without ds/"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "name", "more", "file", "said"), MEANT, ids=[row[0] for row in MEANT])
def test_a_name_means_one_file(
    tmp_path: Path, why: str, name: str, more: tuple[str, ...], file: str, said: str
) -> None:
    folder = make(tmp_path / "ds", file, "b.jpg")
    located = locate(folder, name, *more)
    assert (located.kind, located.path) == (None, str(folder / "train" / file))
    assert Path(located.path).read_text() == file
    assert located.stamp == (os.stat(located.path).st_size, os.stat(located.path).st_mtime_ns)
    assert located.said.startswith(said) and bool(located.said) == (name != file)


# why, name, files, kind, part of what is said
REFUSED = [
    ("two files that differ in case", "A.jpg", ("a.JPG", "a.jpg"), "file-name-ambiguous", "fits a.JPG, a.jpg"),
    ("another folder may be missing", "cam1/a.jpg", ("a.jpg",), "image-missing", "nearest is a.jpg"),
    ("another folder has it", "cam1/a.jpg", ("cam2/a.jpg",), "image-missing", "nearest is cam2/a.jpg"),
    ("a sub-folder has it", "a.jpg", ("cam2/a.jpg",), "image-missing", "nearest is cam2/a.jpg"),
    ("another ending", "photo_17.png", ("photo_17.jpg", "photo_2.jpg"), "image-missing", "nearest is photo_17.jpg"),
    ("nothing like it", "a.jpg", ("0123456789.dat",), "image-missing", "no file has a name like it"),
    ("an empty folder", "a.jpg", (), "image-missing", "no file"),
    ("nothing of another machine", "/home/ann/c.tif", ("b.jpg",), "path-outside", "no file"),
    ("no name", "/", ("b.jpg",), "path-outside", ""),
    ("dots", "..", ("b.jpg",), "path-outside", ""),
    ("no file can have this name", "a\0.jpg", ("b.jpg",), "image-missing", ""),
]


@pytest.mark.parametrize(("why", "name", "files", "kind", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_name_is_never_guessed(
    tmp_path: Path, why: str, name: str, files: tuple[str, ...], kind: str, said: str
) -> None:
    located = locate(make(tmp_path / "ds", *files), name, "b.jpg")
    assert located.kind == kind and said in located.said


def test_a_letter_case_that_fits_exactly_outweighs_others(tmp_path: Path) -> None:
    folder = make(tmp_path / "ds", "cam/A.jpg", "cam/a.jpg")
    located = locate(folder, "cam\\A.jpg")
    assert located.path.endswith("cam/A.jpg") and located.said == "cam/A.jpg: with / for \\"


def test_several_names_of_one_file_are_ambiguous(tmp_path: Path) -> None:
    """Of two cameras' images, only one may have been copied; the boxes of the other would lie on it."""
    folder = make(tmp_path / "ds", "1.jpg", "2.jpg")
    names = ["/mnt/cam1/1.jpg", "/mnt/cam2/1.jpg", "/mnt/cam1/2.jpg", "2.jpg"]
    found = locate_all(names, folder / "train", folder)
    assert [found[name].kind for name in names] == ["file-name-ambiguous"] * 3 + [None]
    assert found[names[0]].said == "other names mean 1.jpg too"


def test_a_file_elsewhere_in_the_data_set_is_shown_and_not_used(tmp_path: Path) -> None:
    folder = make(tmp_path / "ds", "a.jpg")
    (folder / "val").mkdir()
    (folder / "val" / "b.jpg").write_text("b")
    located = locate(folder, "b.jpg")
    assert (located.kind, located.said) == ("image-missing", "nearest is ../val/b.jpg")
    assert locate(folder, "../val/b.jpg").kind == "path-outside"


def test_a_file_outside_that_exists_is_not_replaced_by_one_inside(tmp_path: Path) -> None:
    folder = make(tmp_path / "ds", "a.jpg")
    (tmp_path / "a.jpg").write_text("outside")
    for name in (str(tmp_path / "a.jpg"), "../../a.jpg"):
        assert locate(folder, name).kind == "path-outside"


def test_a_folder_whose_name_only_begins_alike_is_outside(tmp_path: Path) -> None:
    folder = make(tmp_path / "ds", "a.jpg")
    (folder / "train2").mkdir()
    (folder / "train2" / "x.jpg").write_text("x")
    assert locate(folder, "../train2/x.jpg").kind == "path-outside"


def test_links_may_lead_anywhere_in_the_data_set(tmp_path: Path) -> None:
    folder = make(tmp_path / "ds", "a.jpg")
    pool = folder / "pool"
    pool.mkdir()
    (pool / "p.jpg").write_text("p")
    (folder / "train" / "link.jpg").symlink_to("../pool/p.jpg")
    (folder / "train" / "linked").symlink_to("../pool")
    (folder / "train" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "secret.jpg").write_text("secret")
    for name in ("link.jpg", "linked/p.jpg", "LINK.jpg"):
        assert (locate(folder, name).kind, locate(folder, name).path) == (None, str(pool / "p.jpg"))
    for name in ("out.jpg", "OUT.jpg"):
        assert locate(folder, name).kind == "path-outside"


def test_the_image_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    store = make(tmp_path / "store", "a.jpg")
    folder = tmp_path / "ds"
    folder.mkdir()
    (folder / "train").symlink_to(store / "train")
    assert locate(folder, "a.jpg").path == str(store / "train" / "a.jpg")
    assert locate(folder, "A.jpg").path == str(store / "train" / "a.jpg")


def test_the_folder_is_indexed_only_for_names_that_do_not_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, walked = make(tmp_path / "ds", "a.jpg", "b.jpg"), []
    walk = os.walk
    monkeypatch.setattr(file_names.os, "walk", lambda place: walked.append(place) or walk(place))
    locate(folder, "a.jpg", "b.jpg")
    assert not walked
    locate(folder, "A.jpg", "B.jpg", "c.jpg")
    assert walked == [str(folder / "train"), str(folder)], "once each"


def test_the_report_says_which_file_was_used_and_which_is_near(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for seed, name in enumerate(("a.jpg", "b.jpg")):
            Image.new("RGB", (20, 10), (seed, len(split), 0)).save(folder / split / name)

    def write(split: str, *names: str) -> None:
        document: dict[str, Any] = {
            "images": [{"id": i, "file_name": name, "width": 20, "height": 10} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i, _ in enumerate(names)
            ],
            "categories": [{"id": 1, "name": "x"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(document))

    write("train", "train\\A.jpg", "b.jpg")
    write("val", "a.jpg", "b.jpg")
    data, report = load_data(folder)
    assert [entry.path.name for entry in data.splits["train"].images] == ["a.jpg", "b.jpg"]
    [note] = report.notes
    assert (note.kind, note.count) == ("file-name-resolved", 1)
    assert note.examples == ("train\\A.jpg -> a.jpg: without train/, with / for \\, other letter case",)
    write("val", "a.jpg", "bb.jpg")
    with pytest.raises(DataError, match=r"\[image-missing\]: bb.jpg \(nearest is b.jpg\)"):
        load_data(folder)
