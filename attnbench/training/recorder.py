"""What a run records while it trains: metrics.jsonl, gauges.jsonl, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attnbench.base import console, files
from attnbench.base.errors import StorageError, reason
from attnbench.training.metrics.titles import TITLES

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("attnbench")

LONGEST = 120  # characters of a run's name in TensorBoard; file systems allow 255 bytes


class Progress(Protocol):
    """The part of the training state that a recorder reads; see ``attnbench.training.state.TrainState``."""

    step: int

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        ...

    def mean_loss(self) -> float:
        """The mean loss of the epoch so far; waits for the device."""
        ...


class Recorder(Protocol):
    """Receives the events of the training loop."""

    def begin(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Called when an epoch begins, or continues after ``step`` of its ``steps``."""
        ...

    def step(self, state: Progress) -> None:
        """Called after each step."""
        ...

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Called after each epoch and its evaluation."""
        ...

    def close(self) -> None:
        """Called once, when training has ended."""
        ...


class NullRecorder:
    """Writes nothing; for all processes but the main one."""

    def begin(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Write nothing."""

    def step(self, state: Progress) -> None:
        """Write nothing."""

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Write nothing."""


class FolderRecorder:
    """Writes to a run's folder and to the terminal.

    Args:
        folder: the run's folder.
        name: what TensorBoard's list of runs shows after the folder; may be empty.
        epoch, step: where the run continues; later records of an earlier start are dropped.
        steps: the number of steps per epoch.
        samples: the number of images per epoch, over all processes.
        hparams: the run's options, for TensorBoard's HParams tab.
        texts: named texts for TensorBoard: the composed configuration, the resolved sites.
        every: the loss is read once every so many steps.
        gauges: returns what the attention has learned; called after each epoch; see ``gauges``.
        pictures: returns images of the last evaluation, uint8 (H, W, 3), by name; called after each epoch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        epoch: int,
        step: int,
        steps: int,
        samples: int,
        hparams: Mapping[str, Any],
        texts: Mapping[str, str],
        every: int,
        gauges: Callable[[], Mapping[str, Any]],
        pictures: Callable[[], Mapping[str, np.ndarray]],
    ) -> None:
        self.path, self.gauges_path = folder / "metrics.jsonl", folder / "gauges.jsonl"
        self.every, self.steps, self.samples, self.gauges = every, steps, samples, gauges
        self.pictures = pictures
        _keep(self.path, epoch)
        if self.gauges_path.exists():
            _keep(self.gauges_path, epoch)
        self.writer = _writer(folder / "tb", name, epoch * steps + step, hparams, texts)
        self.progress = _Progress()
        self.done = 0

    def begin(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Start the progress display at ``step`` of an epoch's ``steps``."""
        self.done = epoch * steps
        self.progress.begin(epoch, epochs, step, steps, self.samples / steps)

    def step(self, state: Progress) -> None:
        """Update the progress display; every so many steps, write loss and learning rate to TensorBoard."""
        at = self.done + state.step
        if at % self.every == 0:
            loss = state.mean_loss()
            self.progress.loss = f"{loss:.3f}"
            self.writer.add_scalar("train/loss", loss, at)
            self.writer.add_scalar("train/lr", state.lr, at)
        self.progress.step(state.step)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write the epoch, counted from 1, to metrics.jsonl, gauges.jsonl and TensorBoard."""
        line = {"epoch": epoch + 1, **metrics}
        _append(self.path, line)
        if read := self.gauges():
            _append(self.gauges_path, {"epoch": epoch + 1, **read})
        for name, tag in TAGS.items():
            if name in metrics:
                self.writer.add_scalar(tag, metrics[name], epoch + 1)
        for name, picture in self.pictures().items():
            self.writer.add_image(f"val/{name}", picture, epoch + 1, dataformats="HWC")
        self.writer.flush()
        self.progress.epoch(line)

    def close(self) -> None:
        """Close the progress display and TensorBoard's file."""
        self.progress.close()
        self.writer.close()


TAGS = {
    **{name: f"val/{name}" for name in TITLES},
    "val_loss": "val/loss",
    "images_per_s": "perf/images_per_s",
    "data_time_share": "perf/data_time_share",
}


def log_to_stderr() -> None:
    """Print log messages on stderr, unformatted, and nowhere else."""
    handler = logging.StreamHandler()
    handler.setFormatter(console.SafeFormatter("%(message)s"))
    log.addHandler(handler)
    log.propagate = False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs in a metrics file, without lines that were cut off."""
    if not path.exists():
        return []
    try:
        lines = files.read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read: {reason(error)}", path, "restore or remove it") from error
    parsed = []
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            parsed.append(found)
        else:
            log.warning("dropped a line of metrics that was cut off (%s)", path)
    return parsed


def gauges(model: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
    """Statistics over the channels of what modules have learned, such as SB's lambda, by name and by module.

    A module takes part by having a method ``gauges()`` that returns tensors by name.
    """
    shown: dict[str, dict[str, dict[str, float]]] = {}
    for path, module in model.named_modules():
        for name, tensor in getattr(module, "gauges", dict)().items():
            shown.setdefault(name, {})[path] = _summary(tensor.detach().float())
    return shown


def _summary(values: Tensor) -> dict[str, float]:
    spread = values.std(correction=0)
    numbers = {"mean": values.mean(), "std": spread, "min": values.min(), "max": values.max()}
    return {name: round(number.item(), 6) for name, number in numbers.items()}


def _keep(path: Path, epochs: int) -> None:
    """Drop a file's lines of later epochs, and lines that were cut off."""
    kept = [line for line in read_metrics(path) if line["epoch"] <= epochs]
    files.write(path, lambda file: file.write("".join(map(_jsonl, kept)).encode()))


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with files.changing(path), open(files.appending(path), "a", encoding="utf-8") as file:
        file.write(_jsonl(line))


def _jsonl(line: Mapping[str, Any]) -> str:
    return json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n"


def _writer(folder: Path, name: str, step: int, hparams: Mapping[str, Any], texts: Mapping[str, str]) -> SummaryWriter:
    """An event file that contains the run's hparams.

    TensorBoard names a run after the folder of its events. It takes the columns of its HParams tab from the first run
    that declares columns, as ``add_hparams`` does. So no columns are declared here. TensorBoard then collects them from
    all runs, and finds out which of them differ.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams as hparams_summaries

    threading.excepthook = _excepthook
    if step == 0:  # the events of an earlier start do not belong to this run
        shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder / name[:LONGEST]), purge_step=step or None)
    plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in hparams.items()}
    _, *session = hparams_summaries(plain, {})
    for summary in session:
        writer._get_file_writer().add_summary(summary)
    for name, text in texts.items():
        writer.add_text(name, "```\n" + text + "\n```")
    return writer


def _excepthook(args: threading.ExceptHookArgs) -> None:
    """Hide the traceback of TensorBoard's thread on a full disk; our next call to TensorBoard raises the same error."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


class _Progress:
    """Shows how far a run is: its epoch, step and loss, its speed and the time left."""

    def __init__(self) -> None:
        self.loss = "-"  # not read yet
        self.display = console.Display(print_line=lambda line: log.info("%s", line))

    def begin(self, epoch: int, epochs: int, step: int, steps: int, batch: float) -> None:
        self.number, self.epochs, self.first, self.steps, self.batch = epoch, epochs, step, steps, batch
        self.began = time.monotonic()

    def step(self, step: int) -> None:
        self.display.update(lambda: self._bar(step), lambda: self._line(step))

    def _bar(self, step: int) -> RenderableType:
        done, total = self.number * self.steps + step, self.epochs * self.steps
        after = f"loss {self.loss}  {self._speed(step):.0f} images/s"
        return console.bar(f"epoch {self.number + 1}/{self.epochs}", done, total, after, self._seconds_left(step))

    def _line(self, step: int) -> str:
        where = f"epoch {self.number + 1}/{self.epochs} step {step}/{self.steps} loss {self.loss}"
        return f"{where} {self._speed(step):.0f} images/s {console.clock(self._seconds_left(step))} left"

    def _speed(self, step: int) -> float:
        return (step - self.first) * self.batch / max(1e-9, time.monotonic() - self.began)

    def _seconds_left(self, step: int) -> float:
        steps = self.steps * (self.epochs - self.number) - step
        return steps * self.batch / self._speed(step)

    def epoch(self, line: Mapping[str, Any]) -> None:
        self.display.print(f"epoch {line['epoch']}/{self.epochs} {describe(line)}")

    def close(self) -> None:
        self.display.close()


FORMS = {
    "train_loss": "loss {:.3f}",
    **{name: TITLES[name] + " {:.2f} %" for name in ("mAP", "AP", "AP50", "mask_AP", "top1", "top5")},
    "images_per_s": "{:.0f} images/s",
}


def describe(line: Mapping[str, Any]) -> str:
    """The metrics of an epoch as one line of text."""
    return "  ".join(form.format(line[key]) for key, form in FORMS.items() if key in line)
