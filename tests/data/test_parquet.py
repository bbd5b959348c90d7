"""Hugging Face's parquet files as a data set: the same pictures in the same order as a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnbench.base.errors import ConfigError, DataError
from attnbench.cli import main
from attnbench.data.dataset import Batch, Dataset
from attnbench.data.image_folders import parquet
from attnbench.data.image_folders.datasets import folder, imagenet
from attnbench.data.images.files import Files
from attnbench.data.loader import Loader
from tests.data_fixtures import image_folder, same_batches
from tests.small_runs import ForkServer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PLACES = {"train": "data/train-00000-of-00001.parquet", "val": "data/validation-00000-of-00001.parquet"}


def write(
    path: Path,
    rows: list[tuple[bytes | None, str | None, Any]],
    names: list[str] | None,
    *,
    label: str = "label",
    image: str = "image",
    group: int = 3,
    **more: Any,
) -> None:
    """A file as the library datasets writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = pa.array([{"bytes": data, "path": name} for data, name, _ in rows], PICTURE)
    labels = pa.array([number for *_, number in rows])
    table = pa.table({image: pictures, label: labels, **more})
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group, write_page_checksum=True)


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Rows = list[tuple[bytes | None, str | None, Any]]


def rows_of(side: Path, classes: list[str]) -> Rows:
    files = sorted(side.rglob("*.jpg"))
    return [(path.read_bytes(), path.name, classes.index(path.parent.name)) for path in files]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures", classes=("cat", "dog", "größe"), per_class=5)


CLASSES = ["cat", "dog", "größe"]


@pytest.fixture
def table(pictures: Path, tmp_path: Path) -> Path:
    for side, place in PLACES.items():
        write(tmp_path / "table" / place, rows_of(pictures / side, CLASSES), CLASSES)
    return tmp_path / "table"


def stream(data: Dataset, workers: int = 0, train: bool = True) -> list[Batch]:
    split = data.train if train else data.val
    return list(Loader(split, batch_size=4, seed=5, train=train, workers=workers, timeout=60).epoch(2, 0))


def small(root: Path, **more: Any) -> Dataset:
    return folder(root=str(root), size=24, resize=32, **more)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_those_of_the_folder(pictures: Path, table: Path, workers: int, train: bool) -> None:
    there, here = small(pictures), small(table)
    assert here.classes == there.classes == ("cat", "dog", "größe")
    assert same_batches(stream(here, workers, train), stream(there, 0, train))
    assert here.contents() == there.contents() and here.source == "parquet files of 3 classes, 15 + 15 images"
    assert [here.val.name(k) for k in range(15)] == [there.val.name(k) for k in range(15)]  # type: ignore[attr-defined]
    assert imagenet(root=str(table), size=24, resize=32).fingerprint == here.fingerprint


def test_the_notes_say_what_was_read(table: Path) -> None:
    assert small(table).notes()[:3] == [
        "parquet: pictures of column image, labels of column label",
        "training: 15 pictures: cat 5, dog 5, größe 5",
        "validation: 15 pictures: cat 5, dog 5, größe 5",
    ]


@pytest.mark.parametrize("change", ["label", "name", "pictures", "rows"])
def test_the_fingerprint_tells_data_apart(change: str, table: Path, pictures: Path) -> None:
    before = small(table).fingerprint
    assert small(table).fingerprint == before
    rows = rows_of(pictures / "train", CLASSES)
    data, name, number = rows[4]
    assert data is not None
    rows[4] = {
        "label": (data, name, 2),
        "name": (data, "other.jpg", number),
        "pictures": (data + bytes(500), name, number),
        "rows": (data, name, number),
    }[change]
    write(table / PLACES["train"], rows[: 14 if change == "rows" else 15], CLASSES)
    assert small(table).fingerprint != before


def test_a_part_is_held_out(pictures: Path, table: Path) -> None:
    there, here = small(pictures, holdout=0.4), small(table, holdout=0.4)
    assert same_batches(stream(here), stream(there)) and same_batches(stream(here, 0, False), stream(there, 0, False))
    assert "val is not read: validation pictures are held out from train" in here.notes()
    other = small(table, holdout=0.4, division_seed=1)
    assert here.fingerprint != small(table).fingerprint and here.fingerprint != other.fingerprint


LAYOUTS = {
    "beside each other": {"train": "train-0.parquet", "val": "valid-0.parquet"},
    "folders": {"train": "train/0000.parquet", "val": "val/0000.parquet"},
    "converted": {"train": "default/train/0000.parquet", "val": "default/test/0000.parquet"},
    "with a prefix": {"train": "train.parquet", "val": "dev.parquet"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_files(layout: str, pictures: Path, tmp_path: Path) -> None:
    for side, place in LAYOUTS[layout].items():
        write(tmp_path / "table" / place, rows_of(pictures / side, CLASSES), CLASSES)
    data = small(tmp_path / "table")
    assert same_batches(stream(data, 0, False), stream(small(pictures), 0, False))
    assert ("validation is test: there is no other" in data.notes()) == (layout == "converted")


def test_many_files_and_one_without_a_split(pictures: Path, tmp_path: Path) -> None:
    rows = rows_of(pictures / "train", CLASSES)
    for number in range(3):
        write(tmp_path / "table" / f"train-{number}.parquet", rows[5 * number : 5 * number + 5], CLASSES)
    assert same_batches(stream(small(tmp_path / "table", holdout=0.4)), stream(small(pictures, holdout=0.4)))
    with pytest.raises(DataError, match=r"no training and validation files here, but train .*dataset.holdout"):
        small(tmp_path / "table")
    write(tmp_path / "one" / "0000.parquet", rows, CLASSES)
    assert same_batches(stream(small(tmp_path / "one", fold=1)), stream(small(pictures, fold=1)))
    write(tmp_path / "table" / "0000.parquet", rows, CLASSES)
    with pytest.raises(DataError, match=r"this file tells no split: 0000.parquet"):
        small(tmp_path / "table")


def test_pictures_without_names_and_with_the_same_names(table: Path, pictures: Path) -> None:
    rows = rows_of(pictures / "train", CLASSES)
    rows = [(data, None if k % 2 else "same.jpg", number) for k, (data, _, number) in enumerate(rows)]
    write(table / PLACES["train"], rows, CLASSES)
    data = small(table)
    assert isinstance(data.train, Files)
    names = [data.train.name(k) for k in range(15)]
    assert len(set(names)) == 15 and names[:2] == ["cat/000000000-same.jpg", "cat/000000001"]
    assert same_batches(stream(data), stream(small(pictures)))


def test_labels_may_be_names_or_plain_numbers(table: Path, pictures: Path) -> None:
    expected = stream(small(pictures), 0, False)
    for names in (CLASSES, ["0", "1", "2"]):
        for side, place in PLACES.items():
            rows = rows_of(pictures / side, CLASSES)
            if names is CLASSES:
                rows = [(data, name, names[number]) for data, name, number in rows]
            write(table / place, rows, None)
        data = small(table)
        assert data.classes == tuple(names) and same_batches(stream(data, 0, False), expected)


def test_a_column_named_label_is_taken_before_others(table: Path, pictures: Path) -> None:
    for side, place in PLACES.items():
        write(
            table / place,
            rows_of(pictures / side, CLASSES),
            CLASSES,
            label="fine_label",
            image="img",
            coarse_label=[0] * 15,
        )
    data = small(table)
    assert data.notes()[0] == "parquet: pictures of column img, labels of column fine_label"
    assert same_batches(stream(data), stream(small(pictures)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "this parquet file cannot be read"),
        ("text", "this parquet file cannot be read"),
        ("other classes", "its columns or classes are not those of train-00000"),
        ("no pictures", r"no column of pictures .*it has label, text"),
        ("no labels", "no column of labels: it has image, kind"),
        ("unlabelled", "it has pictures without a label"),
        ("too many", "label 7, but there are 3 names of classes"),
        ("fractions", "column label holds double"),
        ("two folders", "parquet files are in several folders here: ., data"),
    ],
)
def test_other_files_are_refused(change: str, message: str, table: Path, pictures: Path) -> None:
    path = table / PLACES["val"]
    rows = rows_of(pictures / "val", CLASSES)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif change == "text":
        path.write_text("hello")
    elif change == "other classes":
        write(path, rows, ["cat", "dog", "bird"])
    elif change == "no pictures":
        pq.write_table(pa.table({"label": [1], "text": ["x"]}), path)
    elif change == "no labels":
        write(path, rows, None, label="kind")
    elif change == "unlabelled":
        write(path, [(data, name, -1) for data, name, _ in rows], CLASSES)
    elif change == "too many":
        write(path, [(data, name, 7) for data, name, _ in rows], CLASSES)
    elif change == "fractions":
        for place in PLACES.values():
            write(table / place, [(data, name, 0.5) for data, name, _ in rows], None)
    else:
        write(table / "train.parquet", rows, CLASSES)
    with pytest.raises(DataError, match=message) as raised:
        small(table)
    assert "\n" not in str(raised.value) and "Unexpected" not in str(raised.value)


def test_a_flipped_bit_is_found_where_pages_have_checksums(table: Path, pictures: Path) -> None:
    path = table / PLACES["val"]
    data = bytearray(path.read_bytes())
    picture = (pictures / "val" / "cat" / "0.jpg").read_bytes()
    data[data.index(picture[200:220])] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"this parquet file is damaged: .*validation-00000-of-00001.parquet, row 0: cat/"
    ):
        stream(small(table), 0, False)


def test_pictures_that_are_only_paths_are_refused(table: Path, pictures: Path) -> None:
    write(
        table / PLACES["val"], [(None, name, number) for _, name, number in rows_of(pictures / "val", CLASSES)], CLASSES
    )
    with pytest.raises(DataError, match=r"this picture has no bytes, only a path .*row 0: cat/0.jpg"):
        stream(small(table), 0, False)


def test_few_row_groups_are_kept(table: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "KEPT_BYTES", 10_000)
    data = small(table)
    assert same_batches(stream(data), stream(small(pictures)))
    assert isinstance(data.train, Files) and isinstance(data.train.records, parquet.Parquet)
    assert 1 <= len(data.train.records.kept) < 5


def test_the_extra_is_named_where_pyarrow_is_missing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"need the package pyarrow .*pip install 'attnbench\[parquet\]'"):
        small(table)


def test_a_run_and_a_check(table: Path, tmp_path: Path, forks: ForkServer, check: Callable[[Path], list[str]]) -> None:
    words = ["runtime.device=cpu", "runtime.workers=0", "backbone=resnet20", "backbone.depth=8", "batch_size=4"]
    words += ["schedule.epochs=1", "dataset=folder", "dataset.size=16", "dataset.resize=16", "dataset.name=table"]
    end = forks.train(tmp_path, *words, f"dataset.root={table}", f"paths.outputs={tmp_path}/outputs")
    assert end.code == 0, end.stderr
    run = next((tmp_path / "outputs").rglob("result.json"))
    assert json.loads(run.read_text())["data"]["source"] == "table: parquet files of 3 classes, 15 + 15 images"
    assert check(table)[-2:] == [
        "val: 15 pictures: cat 5, dog 5, größe 5",
        "Hugging Face parquet files: 30 images, 0 problems, 0 notes",
    ]
    again = forks.train(tmp_path, *words, f"dataset.root={table}", f"paths.outputs={tmp_path}/outputs")
    assert again.code == 0
    write(table / PLACES["train"], [(np.random.default_rng(0).bytes(90), "x.jpg", 1)] * 3, CLASSES)
    other = forks.train(tmp_path, *words, f"dataset.root={table}", f"paths.outputs={tmp_path}/outputs")
    assert other.code == 3 and "a run of this name was trained on other data" in other.stderr
    with pytest.raises(DataError, match="3 problems"):
        check(table)


def test_they_become_shards(table: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(data, None if number else name, number) for data, name, number in rows_of(pictures / "train", CLASSES)]
    write(table / PLACES["train"], rows, CLASSES)
    for _ in range(2):  # the second one finds them written
        monkeypatch.setattr(sys, "argv", ["attnbench data", "shard", str(table), str(tmp_path / "shards")])
        main.command("data")()
    there, here = small(table), small(tmp_path / "shards")
    assert same_batches(stream(here), stream(there)) and same_batches(stream(here, 0, False), stream(there, 0, False))
    assert here.classes == there.classes and here.contents() == there.contents()
    index = json.loads((tmp_path / "shards" / "train-000000.json").read_text())
    assert [name.rpartition(".")[2] for name in index["files"]] == ["jpg"] * 15
    assert len(imagenet(root=str(tmp_path / "shards"), size=24, resize=32).train) == 15


def test_a_split_to_evaluate_on_is_enough(table: Path) -> None:
    from attnbench.data.image_folders.alone import evaluation_only, has_training
    from attnbench.data.images.crops import Crops

    whole = small(table)
    assert has_training(table)
    (table / PLACES["train"]).unlink()
    assert not has_training(table)
    alone = evaluation_only(table, Crops(24, 32, "shorter", 0.08), whole.mean, whole.std, True)
    assert alone.source == "table, evaluation only: 3 classes, 15 images"
    assert same_batches(stream(alone, 0, False), stream(whole, 0, False))


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], list[str]]:
    """Runs ``attnbench data check`` in this process and returns the lines that it prints."""

    def call(root: Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["attnbench data", "check", str(root)])
        capsys.readouterr()
        main.command("data")()
        return capsys.readouterr().out.splitlines()

    return call
