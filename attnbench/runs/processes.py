"""Trains a run in one process, or in several that torch.distributed starts and watches."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnbench.base.cores import cores
from attnbench.base.errors import Failure, Stopped
from attnbench.config.configuration import Config
from attnbench.runs import run
from attnbench.runs.folder import RunFolder
from attnbench.training import runtime
from attnbench.training.recorder import log_to_stderr

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

log = logging.getLogger("attnbench")


def train_in_processes(config: Config) -> dict[str, Any]:
    """Train, continue or repeat a run in ``runtime.processes`` processes, and start these unless torchrun has done so.

    Returns:
        The contents of result.json.

    Raises:
        Failure: the first failure in any process.
    """
    number = config.build("runtime").missing
    if not number:
        return run.train(config)
    run.refuse(config)
    with tempfile.TemporaryDirectory(prefix="attnbench-") as failures:
        return _train_in(number, config, Path(failures))


def _train_in(number: int, config: Config, failures: Path) -> dict[str, Any]:
    """Start the processes and wait for them; each writes its failure to the folder ``failures``."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we report failures in one line
    folder = RunFolder(config.run_folder)
    shares = [max(1, count // number) for count in (torch.get_num_threads(), cores())]
    try:
        elastic_launch(_standalone(number), _rank)(config, failures, *shares, bool(log.handlers))
    except SignalException as signal:
        raise Stopped("stopped by a signal", todo="run the same command to continue") from signal
    except ChildFailedError as error:
        rank, end = error.get_first_failure()
        raise _cause(folder, failures, rank, number, end.exitcode) from None
    result = folder.result()
    assert result is not None
    return result


def _standalone(number: int) -> LaunchConfig:
    """What ``torchrun --standalone --nproc-per-node=<number>`` means."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )


def _rank(config: Config, failures: Path, threads: int, share: int, shown: bool) -> None:
    """Train as one process of the run, with its share of the cores."""
    rank = runtime.rank()
    torch.set_num_threads(threads)
    os.environ["ATTNBENCH_CORES"] = str(share)
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    if shown:
        log_to_stderr()
    try:
        run.train(config)
    except Failure as failure:
        (failures / str(rank)).write_bytes(pickle.dumps(failure))
        raise SystemExit(failure.code) from None


def _cause(folder: RunFolder, failures: Path, rank: int, number: int, code: int) -> Failure:
    """The first failure; the process ``rank`` was the first one to end.

    The other processes fail as well, because that one is missing. The failure is recorded in status.json, unless the
    main process has already done so.
    """
    written = sorted(failures.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    if str(rank) in {path.name for path in written}:
        failure: Failure = pickle.loads(written[0].read_bytes())
        if written[0].name == "0":
            return failure
    else:
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        failure = Failure(f"process {rank} of {number} {how}", folder.path, "run the same command to continue it")
    folder.record_failure(failure, "")
    return failure
