"""Lists of labels for pictures that are not in class folders, such as ImageNet's val/ as it is unpacked."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from attnbench.base.errors import DataError
from attnbench.data.image_folders.folder import Side, contents, list_images
from attnbench.data.images.suffixes import Formats

# Lists that are looked for below dataset.root: ours, Kaggle's, and those that come with ImageNet.
KNOWN = (
    "val_labels.txt",
    "val_labels.csv",
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
)
META = "meta.mat"  # beside ImageNet's list: the class of each number
CLASSES = "classes.txt"  # beside any list of numbers: the class of each number, counted from 1
HEADERS = ("imageid", "filename", "file", "image", "name", "path", "id")


def read_flat(folder: Path, classes: Sequence[str], listed: str | None, formats: Formats) -> tuple[Side, str]:
    """The pictures in a folder without class folders, in the order of classes and names, and the name of their list.

    They are the same data as those pictures in class folders.

    Args:
        listed: the list, below the folder that holds ``folder``; None for the known names.

    Raises:
        DataError: there is no list, it lacks a picture, or it names an unknown class.
    """
    images, left_out = list_images(folder, formats, empty=True)
    if not images:
        raise DataError(f"no class folder here: {contents(folder)}", folder, "put <class>/*.jpg into it")
    path = _find(folder.parent, listed, folder)
    labels = _labels(path, [name for name, _ in images], classes)
    order = sorted(range(len(images)), key=lambda k: (labels[k], images[k][0]))
    side = Side(folder, [], [], [], [], left_out=left_out)
    assert side.places is not None
    for k in order:
        name, size = images[k]
        side.files.append(f"{classes[labels[k]]}/{name}")
        side.places.append(name)
        side.labels.append(labels[k])
        side.bytes.append(size)
    return side, str(path.relative_to(folder.parent))


def _find(root: Path, listed: str | None, folder: Path) -> Path:
    for name in [listed] if listed else KNOWN:
        if (root / name).is_file():
            return root / name
    if listed:
        raise DataError("there is no such list", root / listed, "dataset.labels is a file below dataset.root")
    what = f"pictures without class folders, and no list of labels: {contents(root)}"
    todo = f"name it with dataset.labels, such as {KNOWN[0]} with lines of a file name and a class"
    raise DataError(what, folder, todo)


def _labels(path: Path, images: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The label of each picture."""
    rows = _rows(path)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(images):
            what = f"{len(rows)} labels for {len(images)} pictures"
            raise DataError(what, path, "a line for each picture, in the order of names")
        words = [row[0] for row in rows]
    else:
        words = _named(path, rows, images, classes)
    index = {name: label for label, name in enumerate(classes)}
    if not all(word in index for word in words) and all(word.isdecimal() for word in words):
        numbered = _numbered(path)
        words = [numbered.get(int(word), word) for word in words]
    for image, word in zip(images, words, strict=True):
        if word not in index:
            raise DataError(f"class {word} of {image} has no training images", path, "repair the list, or train/")
    return [index[word] for word in words]


def _rows(path: Path) -> list[list[str]]:
    """The words of each line that has some: separated by commas or tabs, or by the last space."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"this list cannot be read: {error}", path, "restore it, as UTF-8") from error
    mark = next((mark for mark in ",\t;" if lines and mark in lines[0]), "")
    split = csv.reader(lines, delimiter=mark) if mark else (line.rsplit(None, 1) for line in lines)
    rows = [[word.strip() for word in row] for row in split if any(map(str.strip, row))]
    if not rows:
        raise DataError("this list is empty", path, "restore it")
    return rows[1:] if mark and rows[0][0].lower().replace("_", "") in HEADERS else rows


def _named(path: Path, rows: Sequence[Sequence[str]], images: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The class of each picture in lines of a file name, with or without its suffix and folders, and a class.

    Behind the class there may be more, such as Kaggle's boxes.
    """
    named = ((Path(row[0].replace("\\", "/")).name, row[1]) for row in rows if len(row) > 1 and row[1])
    given = {name: word if word in classes else word.split()[0] for name, word in named}
    words = []
    for image in images:
        word = given.get(image) or given.get(Path(image).stem)
        if word is None:
            raise DataError(f"no label of {image}", path, "add a line for it, or remove the picture")
        words.append(word)
    return words


def _numbered(path: Path) -> dict[int, str]:
    """The class of each number; numbers alone do not say it, and ImageNet's are not in the order of its folders."""
    if (path.parent / META).is_file():
        from scipy.io import loadmat  # slow to import

        synsets = loadmat(path.parent / META, squeeze_me=True)["synsets"]
        return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
    if (path.parent / CLASSES).is_file():
        lines = (path.parent / CLASSES).read_text(encoding="utf-8-sig").splitlines()
        return {number: line.strip() for number, line in enumerate(lines, start=1)}
    todo = f"put {META} of ImageNet's development kit beside it, or {CLASSES} with the class of number 1, 2, ... a line"
    raise DataError("numbers without the classes that they mean", path, todo)
