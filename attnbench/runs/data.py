"""Checks whether a run was trained on the data that its configuration would open now."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.base import files
from attnbench.base.errors import DataError, OtherData
from attnbench.config.configuration import Config, name_of_folder
from attnbench.config.naming import TARGET, is_ours
from attnbench.data.record import DataRecord, from_dict, stamp

if TYPE_CHECKING:
    from attnbench.data.dataset import Dataset


def root_of(config: Config) -> Path | None:
    """The folder that a configuration reads its data from; None for data that come with attnbench."""
    root = config.tree["dataset"].get("root")
    return Path(root).expanduser() if root else None


def record(config: Config, data: Dataset) -> DataRecord:
    """The record that a run keeps of its data.

    Raises:
        DataError: an image cannot be read.
    """
    root = root_of(config)
    before = stamp(root) if root else ""
    place = str(root.resolve()) if root else ""
    images = f"{len(data.train)} + {len(data.val)}"
    return DataRecord(data.source, data.fingerprint, data.contents(), images, place, before, data.drawn())


def kept(run: Path) -> DataRecord | None:
    """The data record in the folder of a run, finished or not; None if there is no record."""
    result = files.read_json(run / "result.json")
    of_result = from_dict(result.get("data")) if isinstance(result, dict) else None
    return of_result or from_dict(files.read_json(run / "data.json"))


class DataCheck:
    """Compares the present data with the records of runs; data that many runs share are read only once."""

    def __init__(self) -> None:
        self.stamps: dict[Path, str] = {}
        self.records: dict[str, DataRecord | DataError] = {}

    def refuse_other(self, config: Config, run: Path) -> None:
        """Refuse data other than those that a run was trained on.

        Raises:
            OtherData: says what differs, and how to give the present data another name.
            DataError: the data cannot be opened, so they cannot be compared.
        """
        then = kept(run)
        if then is None or self._is_unchanged(config, then):
            return
        if difference := then.difference(self._now(config)):
            raise other_data(config, difference)

    def _is_unchanged(self, config: Config, then: DataRecord) -> bool:
        """Whether the data are known to be the same without opening them."""
        root = root_of(config)
        if root is None:
            return is_ours(config.tree["dataset"][TARGET])
        if not then.stamp or then.root != str(root.resolve()):
            return False
        if root not in self.stamps:
            self.stamps[root] = stamp(root)
        return self.stamps[root] == then.stamp

    def _now(self, config: Config) -> DataRecord:
        key = json.dumps(config.tree["dataset"], sort_keys=True)
        if key not in self.records:
            try:
                _refuse_missing(root_of(config))
                self.records[key] = record(config, config.build("dataset"))
            except DataError as error:
                self.records[key] = error
        found = self.records[key]
        if isinstance(found, DataError):
            raise found
        return found


def _refuse_missing(root: Path | None) -> None:
    """Report a missing folder without importing torch."""
    if root is not None and not root.exists():
        raise DataError("there is no such folder", root, "set dataset.root to the data set's folder")


def other_data(config: Config, difference: str) -> OtherData:
    """The error for a run that exists and was trained on other data."""
    node: dict[str, Any] = config.tree["dataset"]
    where = f"dataset.root={node['root']}" if node.get("root") else "dataset"
    if "name" in node:
        todo = f"give these data another name, such as dataset.name={_other_name(config)}"
    else:
        todo = "write runs of these data to another folder: paths.outputs=DIR"
    return OtherData(f"a run of this name was trained on other data: {difference}", where, todo)


def _other_name(config: Config) -> str:
    """A name that a command line takes without quotes: the folder's own, or with the next number if that is taken."""
    own = re.sub(r"[^\w.-]+", "_", name_of_folder(str(config.tree["dataset"].get("root", ""))))
    taken = config.dataset_name
    if taken == own:
        return f"{own}-2"
    number = taken.removeprefix(f"{own}-")
    return f"{own}-{int(number) + 1}" if number != taken and number.isdecimal() else own
