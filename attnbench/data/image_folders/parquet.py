"""Pictures in Hugging Face's parquet files: a column of pictures, ``{bytes, path}``, and one of labels.

Splits are told by the names of files or folders (``train-00000-of-00002.parquet``, ``train/0000.parquet``). Class names
are those of the features in the file's schema. Pictures are read by position; a parquet file is read by row groups, of
which the last ones are kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.base.errors import ConfigError, DataError, reason
from attnbench.data.image_folders.folder import Side

BASES = (".", "data", "default")  # where Hugging Face puts them, below a folder
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])", re.I)
KEPT_BYTES = 2**27  # of row groups in memory, in each process
TODO = "transfer it again, or write it again"
READING = threading.Lock()  # threads share the row groups in memory


def are_here(root: Path) -> bool:
    """Whether a folder holds parquet files: itself, in ``data/`` or ``default/``, or in folders of splits in these."""
    return any(_listed(root / base) for base in BASES)


def _listed(base: Path) -> list[Path]:
    """The parquet files in a folder and in its folders of splits."""
    found: list[Path] = []
    for folder in (base, *(base / split for split in SPLITS)):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found += [Path(entry.path) for entry in entries if entry.name.endswith(".parquet")]
    return sorted(path for path in found if not path.name.startswith("."))


@dataclass(frozen=True)
class Columns:
    """The columns of a parquet file that are read.

    Attributes:
        image: the column of pictures.
        label: the column of labels.
        classes: the names of the classes; empty if the file does not list them.
    """

    image: str
    label: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The pictures of one split.

    Attributes:
        side: their names, labels and mean size in bytes; the bytes themselves are not read for it.
        files: the parquet files.
        groups: the file, the row group in it, and the number of the first picture of each row group.
        image: the column of pictures.
    """

    side: Side
    files: list[Path]
    groups: list[tuple[int, int, int]]
    image: str


@dataclass(frozen=True)
class Contents:
    """The pictures in a folder of parquet files.

    Attributes:
        tables: the splits that are there, by ``train``, ``val`` or ``test``; ``all`` if no name tells a split.
        notes: lines about what was read.
    """

    classes: tuple[str, ...]
    tables: dict[str, Table]
    notes: list[str]

    @property
    def held(self) -> Table | None:
        """The split for validation, if there is one; ``test`` only if there is no other."""
        return self.tables.get("val") or self.tables.get("test")

    def both(self, root: Path) -> tuple[Table, Table]:
        """The splits for training and validation.

        Raises:
            DataError: one is missing.
        """
        train, val = self.tables.get("train"), self.held
        if train is None or val is None:
            todo = "set dataset.holdout=0.2 or dataset.fold=0 of dataset=folder to hold pictures out"
            raise DataError(f"no training and validation files here, but {', '.join(self.tables)}", root, todo)
        return train, val


def open_parquet(root: Path) -> Contents:
    """Read the labels and names in all parquet files of a folder.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: a file is damaged, or has no pictures or labels, or files differ in their classes.
    """
    found = _files(root)
    columns = _same([(path, _columns(path)) for paths in found.values() for path in paths])
    rows = {split: [_rows(path, columns) for path in paths] for split, paths in found.items()}
    classes = columns.classes or _found([one for parts in rows.values() for part in parts for one in part.labels])
    tables = {split: _table(root, split, found[split], parts, columns, classes) for split, parts in rows.items()}
    return Contents(classes, tables, [f"parquet: pictures of column {columns.image}, labels of column {columns.label}"])


def _found(labels: Sequence[Any]) -> tuple[str, ...]:
    """The classes that labels without a list of names have: the names in order, or all numbers up to the largest."""
    if labels and isinstance(labels[0], int):
        return tuple(map(str, range(max(labels) + 1)))
    return tuple(sorted(set(map(str, labels))))


def _files(root: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, sorted by path."""
    bases = [(base, paths) for base in BASES if (paths := _listed(root / base))]
    if len(bases) > 1:
        where = ", ".join(base for base, _ in bases)
        raise DataError(f"parquet files are in several folders here: {where}", root, "set dataset.root to one of them")
    base, paths = bases[0]
    splits: dict[str, list[Path]] = {}
    for path in paths:
        parts = path.relative_to(root / base).with_suffix("").parts
        found = next(filter(None, map(SPLIT.match, reversed(parts))), None)
        splits.setdefault(SPLITS[found[1].lower()] if found else "all", []).append(path)
    if "all" in splits and len(splits) > 1:
        raise DataError(f"the name of this file tells no split: {splits['all'][0].name}", root, "rename or move it")
    return splits


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "parquet files need the package pyarrow", "dataset.root", "pip install 'attnbench[parquet]'"
        ) from error
    return pyarrow.parquet


def _opened(path: Path) -> Any:
    """A parquet file."""
    parquet = _pyarrow()
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except Exception as error:  # ArrowException and OSError, among others
        raise DataError(f"this parquet file cannot be read: {reason(error)}", path, TODO) from error


def _columns(path: Path) -> Columns:
    schema = _opened(path).schema_arrow
    features = _features(schema)
    images = [field.name for field in schema if _is_picture(field)]
    labels = [name for name, about in features.items() if about.get("_type") == "ClassLabel"]
    labels += [name for name in ("labels", "class", "fine_label") if name in schema.names]
    if not images or not ("label" in schema.names or labels):
        lacking = "labels" if images else "pictures (a struct of bytes and path)"
        raise DataError(f"no column of {lacking}: it has {', '.join(schema.names)}", path, "use another data set")
    image, label = images[0], "label" if "label" in schema.names else labels[0]
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # an earlier form: by number
        names = [names[key] for key in sorted(names, key=int)]
    kind = str(schema.field(label).type)
    if not kind.endswith("string") and not kind.startswith(("int", "uint")):
        raise DataError(f"column {label} holds {kind}, not one class for each picture", path, "use another data set")
    return Columns(image, label, tuple(map(str, names or ())))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's datasets wrote about the columns."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return {name: one for name, one in features.items() if isinstance(one, dict) and name in schema.names}
    except (ValueError, AttributeError):
        return {}


def _is_picture(field: Any) -> bool:
    names = (
        {field.type.field(k).name for k in range(field.type.num_fields)} if str(field.type).startswith("struct") else ()
    )
    return "bytes" in names and "path" in names


def _same(columns: Sequence[tuple[Path, Columns]]) -> Columns:
    first = columns[0][1]
    for path, one in columns:
        if one != first:
            raise DataError(f"its columns or classes are not those of {columns[0][0].name}", path, "use one data set")
    return first


@dataclass(frozen=True)
class _Rows:
    """What is known of a file without its pictures.

    Attributes:
        labels: numbers, or names of classes.
        paths: the names of the pictures, or None.
        sizes: for each row group, the number of rows and of bytes.
    """

    labels: list[Any]
    paths: list[str | None]
    sizes: list[tuple[int, int]]


def _rows(path: Path, columns: Columns) -> _Rows:
    file = _opened(path)
    try:
        table = file.read(columns=[columns.label, f"{columns.image}.path"], use_threads=False)
        labels = table[columns.label].to_pylist()
        paths = [one["path"] if one else None for one in table[columns.image].to_pylist()]
    except Exception as error:
        raise DataError(f"this parquet file is damaged: {reason(error)}", path, TODO) from error
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    if any(label is None or (isinstance(label, int) and label < 0) for label in labels):
        raise DataError("it has pictures without a label", path, "remove the file, or move it out of the folder")
    return _Rows(labels, paths, [(group.num_rows, group.total_byte_size) for group in groups])


def _table(
    root: Path, split: str, paths: list[Path], parts: list[_Rows], columns: Columns, classes: tuple[str, ...]
) -> Table:
    number = {name: label for label, name in enumerate(classes)}
    side, groups = Side(root, [], [], [], [], part=split), []
    for k, (path, part) in enumerate(zip(paths, parts, strict=True)):
        at = len(side.labels)
        for group, (rows, size) in enumerate(part.sizes):
            groups.append((k, group, at))
            side.bytes.extend([size // max(1, rows)] * rows)
            at += rows
        side.labels.extend(number[one] if isinstance(one, str) else int(one) for one in part.labels)
        if max(side.labels, default=0) >= len(classes):
            raise DataError(f"label {max(side.labels)}, but there are {len(classes)} names of classes", path, TODO)
    names = [os.path.basename(one) if one else "" for part in parts for one in part.paths]
    side.files.extend(_names([classes[label] for label in side.labels], names))
    assert side.places is not None
    side.places.extend(f"row {row}" for row in range(len(side.files)))
    return Table(side, paths, groups, columns.image)


def _names(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """``class/name`` of each picture; its row is the name if it has none, or begins it if others have the same."""
    whole = [f"{kind}/{name}" for kind, name in zip(classes, names, strict=True)]
    count = Counter(whole)
    return [
        f"{kind}/{row:09}{f'-{name}' if name else ''}" if not name or count[full] > 1 else full
        for row, (kind, name, full) in enumerate(zip(classes, names, whole, strict=True))
    ]


def fingerprint(tables: Sequence[Table], sides: Sequence[Side]) -> str:
    """SHA-256 in hex over what tells the data apart without reading the pictures.

    It covers the name and class of each picture in both splits, and the sizes of all row groups.
    """
    digest = hashlib.sha256(b"parquet\n")
    for table in tables:
        digest.update(f"{table.side.name} {len(table.files)}\n".encode())
        digest.update(np.array(table.side.bytes, "<i8").tobytes())
    for side in sides:
        digest.update(f"{side.name}\n".encode())
        for name, label in zip(side.files, side.labels, strict=True):
            digest.update(os.fsencode(f"{name}\0{label}\n"))
    return digest.hexdigest()


class Parquet:
    """Pictures of one split; see ``attnbench.data.images.files.Records``."""

    def __init__(self, table: Table) -> None:
        self.place = table.side.folder
        self.labels = np.array(table.side.labels)
        self.names = np.array([os.fsencode(name) for name in table.side.files])
        self.files, self.image = table.files, table.image
        self.groups = np.array(table.groups, np.int64).reshape(-1, 3)
        self.kept: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See ``Records.read``."""
        at = int(np.searchsorted(self.groups[:, 2], index, "right")) - 1
        with READING:
            column = self._group(at, index)
            value = column[index - int(self.groups[at, 2])].as_py()
        if not value:
            raise DataError(
                "this picture has no bytes, only a path", self.where(index), "write pictures with their bytes"
            )
        return bytes(value)

    def where(self, index: int) -> str:
        """The file of a picture, its row in it, and its name."""
        at = int(np.searchsorted(self.groups[:, 2], index, "right")) - 1
        file = int(self.groups[at, 0])
        first = int(self.groups[self.groups[:, 0] == file, 2].min())
        return f"{self.files[file]}, row {index - first}: {self.name(index)}"

    def name(self, index: int) -> str:
        """See ``Records.name``."""
        return os.fsdecode(self.names[index])

    def _group(self, at: int, index: int) -> Any:
        """The bytes of all pictures in a row group; the least recently used ones are dropped if there are too many."""
        if at in self.kept:
            self.kept.move_to_end(at)
            return self.kept[at]
        file, group, _ = (int(one) for one in self.groups[at])
        try:  # without threads: a worker is forked, and has none of those that its parent started
            opened = _opened(self.files[file])
            table = opened.read_row_group(group, columns=[f"{self.image}.bytes"], use_threads=False)
            column = table[self.image].combine_chunks().field("bytes")
        except DataError:
            raise
        except Exception as error:
            what = f"this parquet file is damaged: {reason(error)}"
            raise DataError(what, self.where(index), TODO) from error
        while self.kept and sum(one.nbytes for one in self.kept.values()) + column.nbytes > KEPT_BYTES:
            self.kept.popitem(last=False)
        self.kept[at] = column
        return column
