"""Checks whether a run started from the weights that its configuration would start from now."""

from __future__ import annotations

from pathlib import Path

from attnbench.base import files
from attnbench.base.errors import OtherData, StorageError
from attnbench.config import initial_weights
from attnbench.config.configuration import WEIGHTS, Config


def record(config: Config) -> dict[str, str]:
    """What a run keeps of its initial weights: their name, and SHA-256 of the file or of the run's last state.

    Empty for a run with random or stock weights.

    Raises:
        StorageError: there is no such file or checkpoint.
    """
    if not config.weights:
        return {}
    source = initial_weights.locate(config.tree["backbone"]["weights"], config.seed)
    return {"from": config.weights, "sha256": _digest(source)}


def kept(run: Path) -> dict[str, str]:
    """The record in the folder of a run, finished or not; empty if there is none."""
    for name in ("result.json", "data.json"):
        content = files.read_json(run / name)
        found = content.get("weights") if isinstance(content, dict) else None
        if isinstance(found, dict) and found.get("sha256"):
            return {key: str(value) for key, value in found.items()}
    return {}


def refuse_other(config: Config, run: Path) -> None:
    """Refuse weights other than those that a run started from.

    Raises:
        OtherData: the weights differ.
        StorageError: the present weights are not there, so they cannot be compared.
    """
    then = kept(run)
    if not then or not config.weights:
        return
    try:
        now = record(config)
    except StorageError as error:
        what = f"the weights that this run started from are not there to compare: {error.what}"
        raise StorageError(what, error.where) from error
    if then["sha256"] != now["sha256"]:
        what = f"a run of this name started from other weights: {then['sha256'][:8]} then, {now['sha256'][:8]} now"
        raise OtherData(what, WEIGHTS, "write runs from these weights to another folder: paths.outputs=DIR")


def _digest(source: Path) -> str:
    if source.is_file():
        return initial_weights.digest(source)
    result = files.read_json(source / "result.json")
    if isinstance(result, dict) and result.get("state_sha256"):
        return str(result["state_sha256"])
    if last := files.read_sums(source / "checkpoints").get("last.pt"):  # of a run that is not finished
        return last
    raise StorageError("no trained network: there is no such file, and no such run", source, "train it first")
