"""One run, from a checked configuration to result.json."""

from __future__ import annotations

import errno
import logging
import resource
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from attnbench.base import files, secrets
from attnbench.base.errors import ConfigError, DataError, Failure, OutOfMemory, Stopped, StorageError
from attnbench.config import catalog
from attnbench.config.configuration import Config
from attnbench.config.stored import differences
from attnbench.data.dataset import Dataset
from attnbench.data.record import DataRecord
from attnbench.models import complexity, factory, freezing, fused, stock_attention
from attnbench.models.insertion import Site
from attnbench.runs import environment, extension, initial_weights, predictions
from attnbench.runs.data import kept, other_data, record
from attnbench.runs.folder import RunFolder
from attnbench.training import engine, setup
from attnbench.training.checkpoints import Checkpoints, Timer
from attnbench.training.feed import Feed
from attnbench.training.parts import Division
from attnbench.training.recorder import LONGEST, FolderRecorder, NullRecorder, gauges, read_metrics
from attnbench.training.runtime import Process, Runtime, rank
from attnbench.training.state import TrainState, load_weights, set_rng_state

log = logging.getLogger("attnbench")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


Opened = Callable[[Config, Runtime], AbstractContextManager[tuple[Dataset, Process]]]


@contextmanager
def alone(config: Config, runtime: Runtime) -> Iterator[tuple[Dataset, Process]]:
    """Open a data set and start a process for this run alone."""
    data: Dataset = config.build("dataset")
    with runtime.start() as process:
        yield data, process


def train(config: Config, opened: Opened = alone) -> dict[str, Any]:
    """Train, continue or repeat the run of a configuration and write its result.

    Args:
        opened: opens the data set and the process of the run; packed runs share both.

    Returns:
        The contents of result.json.

    Raises:
        Failure: its type gives the exit code; status.json in the run's folder records it.
    """
    runtime, sketch, division = refuse(config)
    folder, shorter = RunFolder(config.run_folder), extension.source(config)
    hint = "" if shorter else extension.hint(config)
    first = not (folder.path / "config.yaml").exists()
    try:
        with (
            _held(folder, config, shorter, hint),
            _reported(folder, division),
            opened(config, runtime) as (data, process),
        ):
            return _train(config, folder, data, process, sketch)
    except (ConfigError, DataError):
        if first and rank() == 0:
            folder.discard()
        raise


def refuse(config: Config) -> tuple[Runtime, Sketch, Division]:
    """Refuse a configuration that cannot run, before anything is written.

    Returns:
        The runtime, the network on the meta device, and how batches are divided, for use in the run.

    Raises:
        ConfigError: the placement is impossible, the device does not exist, or a batch cannot be split into so many
            parts.
    """
    sketch = Sketch.of(config, catalog.CLASSES.get(config.choices["dataset"], 10))
    factory.refuse_other_backbone(config)
    runtime: Runtime = config.build("runtime")
    runtime.check()
    division = setup.division(config, sketch.network, runtime.world_size)
    division.refuse()
    config.build("schedule").groups(sketch.network)
    return runtime, sketch, division


@dataclass(frozen=True)
class Sketch:
    """A network on the meta device, to count its parameters and operations."""

    network: torch.nn.Module
    classes: int

    @classmethod
    def of(cls, config: Config, classes: int) -> Sketch:
        """The network of a configuration, for a number of classes."""
        return cls(factory.sketch(config, classes)[0], classes)


def _train(config: Config, folder: RunFolder, data: Dataset, process: Process, sketch: Sketch) -> dict[str, Any]:
    setup.refuse_unmasked(config, data)
    schedule = config.build("schedule")
    task: engine.Task = config.build("task", class_names=data.classes)
    made_of = record(config, data)
    _say(data, process)
    identity = config.identity | {"data": data.fingerprint}
    checkpoints = Checkpoints(folder.checkpoints, identity, partial(differences, config))
    torch.manual_seed(config.seed)
    model, sites = factory.network(config, len(data.classes))
    saved = checkpoints.load()
    if saved:
        _refuse_other_data(config, folder, made_of, saved["config"])
        load_weights(model, saved["model"])
    frozen = _freeze(config, model, process)
    model = process.place(model)
    fused.choose(model, config.tree["runtime"]["tail"])
    network = process.wrap(model)
    state = setup.train_state(model, schedule, process, frozen)
    torch.manual_seed(config.seed * 1000 + process.rank)
    feed, val = setup.feeds(config, data, process)
    if saved:
        _resume(state, saved, len(feed), process)
    weights = (initial_weights.kept(folder.path) if saved else {}) or initial_weights.record(config)
    about_weights = {"weights": weights} if weights else {}
    if process.main:
        folder.write("data.json", made_of.as_dict() | about_weights)
        files.write_json(folder.path / "classes.json", list(data.classes))
    recorder = _recorder(config, folder, state, task, feed, sites, process)
    saver = engine.Saver(checkpoints, Timer(*_checkpoint_pace(config)), process, task.metric)

    def evaluate() -> dict[str, float]:
        return engine.evaluation(state, task, val, process)

    with process.signals(), closing(recorder):
        try:
            engine.fit(
                state,
                network,
                task,
                feed,
                evaluate,
                schedule=schedule,
                batch_size=config.tree["batch_size"],
                process=process,
                recorder=recorder,
                saver=saver,
            )
        except Stopped:
            saver.save(state)
            raise
    answers = engine.last_answers(task, val, process, evaluate)
    if sketch.classes != len(data.classes):
        sketch = Sketch.of(config, len(data.classes))
    size = setup.counted_size(config, data)
    division = setup.division(config, sketch.network.train(), process.world_size)
    counted: dict[str, Any] = {
        "params": complexity.params(sketch.network),
        "frozen_params": freezing.params(model),
        "macs": complexity.macs(sketch.network, size),
        "norm_images": division.norm_images,
    }
    if isinstance(size, int) and process.packed == 1:
        images = torch.zeros(division.part, 3, size, size, device=process.device)  # as many as memory sufficed for
        counted["written_images_per_s"] = engine.speed_as_written(state.evaluated, images, process)
    result = _result(config, folder, made_of, counted, state, task, process) | about_weights
    if process.main:
        checkpoints.settle()  # completes a last save that was interrupted
        if answers is not None:
            names = predictions.image_names(data.val)
            predictions.write(folder.path, predictions.Predictions(names, list(data.classes), answers))
        folder.write("result.json", result)
        folder.status("done")
    return result


def _freeze(config: Config, model: torch.nn.Module, process: Process) -> list[str]:
    """Freeze the parts of a network that ``schedule.freeze`` names; returns their modules."""
    frozen = freezing.find(model, config.tree["schedule"].get("freeze") or [])
    freezing.freeze(model, frozen)
    if frozen and process.main:
        log.info("schedule.freeze: %s", freezing.summary(model))
        if not (config.weights or config.tree["backbone"].get("pretrained")):
            log.warning("schedule.freeze: the frozen parts have random weights; backbone.weights gives trained ones")
    return frozen


def _say(data: Dataset, process: Process) -> None:
    """Say what a data set says of itself, such as the number of pictures of each class."""
    for line in data.notes() if process.main else ():
        log.info("%s", line)


def _refuse_other_data(config: Config, folder: RunFolder, now: DataRecord, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to continue with data other than those that a checkpoint was trained on.

    Raises:
        OtherData: says what differs, and how to give the present data another name.
    """
    then = kept(folder.path) or DataRecord(now.source, checkpoint.get("data", ""))
    if difference := then.difference(now):
        raise other_data(config, difference)


def _resume(state: TrainState, saved: dict[str, Any], steps: int, process: Process) -> None:
    state.load_state_dict(saved)
    engine.pace(state, state.epoch + max(0, state.step - 1) / steps, state.lr)  # as in the last step
    state.resumed_from_step = state.epoch * steps + state.step
    if len(saved["rng"]) == process.world_size:
        set_rng_state(saved["rng"][process.rank])
    else:
        log.warning(
            "the checkpoint is from %d processes and this run has %d: dropout does not continue exactly",
            len(saved["rng"]),
            process.world_size,
        )
    if process.main:
        log.info("resumed from step %d (epoch %d, step %d)", state.resumed_from_step, state.epoch + 1, state.step)


def _checkpoint_pace(config: Config) -> tuple[int | None, float]:
    runtime = config.tree["runtime"]
    return runtime["checkpoint_steps"], runtime["checkpoint_minutes"]


def _recorder(
    config: Config,
    folder: RunFolder,
    state: TrainState,
    task: engine.Task,
    feed: Feed,
    sites: list[Site],
    process: Process,
) -> FolderRecorder | NullRecorder:
    if not process.main:
        return NullRecorder()
    listing = describe_sites(state.model, sites)
    if remark := stock_attention.remark(state.model):
        log.warning("%s", remark)
    for line in listing:
        log.info("%s", line)
    return FolderRecorder(
        folder.path,
        name=_name(config),
        epoch=state.epoch,
        step=state.step,
        steps=len(feed),
        samples=feed.samples,
        hparams={**_options(config), "seed": config.seed},
        texts={"config": yaml.safe_dump(config.record(), sort_keys=False), "sites": "\n".join(listing)},
        every=1 if process.device.type == "cpu" else 50,  # each reading waits for the device
        gauges=lambda: gauges(state.model),
        pictures=task.pictures,
    )


def _name(config: Config) -> str:
    """The values that were changed from the options' defaults, for display: ``kernel_size=3,epochs=2``."""
    changes = secrets.redacted(config.changes)
    parts = [f"{key.rpartition('.')[2]}={_plain(value)}" for key, value in changes.items()]
    return ",".join(parts).replace("/", "_")


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _options(config: Config) -> dict[str, Any]:
    """The run's columns in the HParams tab: the chosen options, and the values that affect the result."""
    values = {k: v for k, v in config.values.items() if not k.endswith("_target_")}
    hidden: dict[str, Any] = secrets.redacted({**config.choices, **values})
    return hidden


def describe_sites(model: torch.nn.Module, sites: list[Site]) -> list[str]:
    """One line for each stage: the number of sites, their roles, and the attention there."""
    lines = []
    for stage in sorted({site.stage for site in sites}):
        here = [site for site in sites if site.stage == stage]
        roles = ", ".join(dict.fromkeys(site.role for site in here))
        details = dict.fromkeys(complexity.detail(model.get_submodule(site.path)) for site in here)
        lines.append(f"attention at stage {stage}: {len(here)} sites ({roles})  {'; '.join(details)}".rstrip())
    return lines


def _result(
    config: Config,
    folder: RunFolder,
    made_of: DataRecord,
    counted: Mapping[str, Any],
    state: TrainState,
    task: engine.Task,
    process: Process,
) -> dict[str, Any]:
    metrics = read_metrics(folder.path / "metrics.jsonl") if process.main else []
    last = metrics[-1] if metrics else {}
    speeds = {name: [line[name] for line in metrics if name in line] for name in ("images_per_s", "val_images_per_s")}
    return {
        "status": "done",
        **{key: last[key] for key in task.results if key in last},
        **{f"best_{key}": value for key, value in state.best.items()},
        "epochs": state.epoch,
        **counted,
        **{name: statistics.median(values) if values else None for name, values in speeds.items()},
        "seconds": state.seconds,
        "peak_memory_bytes": _peak_memory(process),
        "resumed_from_step": state.resumed_from_step,
        "seed": config.seed,
        "config_hash": config.hash,
        "choices": config.choices,
        "data": made_of.as_dict(),
        "world_size": process.world_size,
        "packed": process.packed,
        "state_sha256": state.digest(),
    }


def _peak_memory(process: Process) -> int:
    """The peak memory in bytes, of the device or, on the CPU, of this process."""
    if process.device.type == "cuda":
        return torch.cuda.max_memory_allocated(process.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _held(folder: RunFolder, config: Config, shorter: Path | None, hint: str) -> Iterator[None]:
    """Hold the folder and write the files that precede the first step; only the main process does so.

    Args:
        shorter: the run whose state this one takes over; None for none.
        hint: a line about a run that it could take over.
    """
    if rank() != 0:
        yield
        return
    with folder.hold():
        if config.tree["resume"] == "never":
            folder.clear()
        folder.status("running")
        text = yaml.safe_dump(config.record(), sort_keys=False)
        files.write(folder.path / "config.yaml", lambda file: file.write(text.encode()))
        goes_on = "last.pt" in files.read_sums(folder.checkpoints)
        now = environment.environment(config)
        about, changed = environment.continued(now, folder.path) if goes_on else (now, "")
        folder.write("env.json", about)
        with folder.logged():
            for line in filter(None, (hint, changed)):
                log.info("%s", line)
            if shorter:
                extension.adopt(config, shorter, f"tb/{_name(config)[:LONGEST]}")
            yield


@contextmanager
def _reported(folder: RunFolder, division: Division) -> Iterator[None]:
    """Turn exceptions into a Failure, and record it in status.json and train.log."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        failure = classify(error, division)
        if rank() == 0:
            trace = "".join(traceback.format_exception(error))
            status = "stopped" if isinstance(failure, Stopped) else "failed"
            with suppress(StorageError):  # the disk may be the cause
                folder.status(status, error=str(failure), code=failure.code, traceback=trace)
            for handler in log.handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, trace, (), None))
        raise failure from error


def classify(error: BaseException, division: Division) -> Failure:
    """The Failure that an exception becomes.

    Args:
        division: advises what to do if memory does not suffice.
    """
    if isinstance(error, Failure):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Stopped("stopped by a signal", todo="run the same command to continue")
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return OutOfMemory("out of memory", "batch_size", division.saving())
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = error.filename or "paths.outputs"
        return StorageError(f"cannot write: {error.strerror}", where, "make space or choose paths.outputs")
    first = text.splitlines()[0] if text else ""
    return Failure(f"unexpected {type(error).__name__}: {first}", "train.log", "debug=true shows the traceback")
