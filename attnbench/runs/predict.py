"""Asks a finished run about pictures: their classes, or the objects in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnbench.base import console
from attnbench.base.errors import ConfigError, OutOfMemory
from attnbench.models.checkpoint import Which
from attnbench.models.folding import folded
from attnbench.runs.classified import Told, classify
from attnbench.runs.detected import detect
from attnbench.runs.load import Trained, load_run
from attnbench.runs.pictures import Outputs, Pictures, find
from attnbench.runs.preprocessing import preprocessing

SCORE = 0.5
TOP = 5


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        output: the folder for what is written; None for ``RUN/predictions``.
        which: ``last`` or ``best`` weights.
        device: ``auto`` for a CUDA device if there is one, else the CPU.
        top: classes that are told, of a classifier.
        cam: whether to draw where a classifier looked.
        score: the least score of objects that are drawn, of a detector; predictions.json has all objects.
        polygons: whether predictions.json has a detector's masks as polygons too, besides run lengths.
    """

    output: Path | None = None
    which: Which = "last"
    device: str = "auto"
    top: int = TOP
    cam: bool = False
    score: float = SCORE
    polygons: bool = False


@dataclass(frozen=True)
class Predicted:
    """What a run says about pictures.

    Attributes:
        pictures: the pictures; ``bad`` are those that could not be read.
        told: the classes of each picture, of a classifier.
        lines: a line for each picture, of a detector.
        written: the files that were written.
    """

    pictures: Pictures
    told: list[Told] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)


def predict(run: Path, images: Sequence[Path], asked: Asked = Asked()) -> Predicted:
    """Ask a run about pictures.

    Args:
        run: the run's folder.
        images: files of any size, grey or in colour, and folders of such files.

    Raises:
        ConfigError: an option does not fit the run, or the device does not exist.
        DataError: there is no picture. Pictures that cannot be read are in the result instead.
        OutOfMemory: a picture is too large.
        StorageError: the folder is not a run's, or the files cannot be written.
    """
    trained = load_run(run, asked.which)
    detects = "detector" in trained.config.tree
    if asked.cam and detects:
        raise ConfigError("Grad-CAM is for classifiers", "--cam", "leave it out for a run of task=detection")
    if asked.polygons and not (detects and trained.config.build("detector").masks):
        raise ConfigError("this run has no masks", "--polygons", "leave it out, or give a run of Mask R-CNN")
    device = _device(asked.device)
    pictures = find(images)
    outputs = Outputs(asked.output or run / "predictions", pictures.paths)
    if detects:
        return _detected(trained, pictures, outputs, asked, device)
    with console.counting(len(pictures.paths), "pictures", "predicting") as advance:
        model = trained.model.to(device).eval()
        network = model if asked.cam else folded(model)
        told, written = classify(
            network,
            trained.classes,
            preprocessing(trained.config),
            pictures,
            outputs,
            top=asked.top,
            cam=asked.cam,
            device=device,
            seen=advance,
        )
    return Predicted(pictures, told=told, written=written)


def _detected(trained: Trained, pictures: Pictures, outputs: Outputs, asked: Asked, device: torch.device) -> Predicted:
    lines, written = [], []
    with console.counting(len(pictures.paths), "pictures", "predicting") as advance, _enough_memory():
        found = detect(
            trained.model.to(device).eval(),
            trained.classes,
            pictures,
            outputs,
            score=asked.score,
            polygons=asked.polygons,
            device=device,
        )
        for one in found:
            lines.append(one.line)
            written.append(outputs.folder / one.entry["picture"])
            advance(1)
    return Predicted(pictures, lines=lines, written=written)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name}", "--device", "use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device", "--device", "use cpu or auto")
    return device


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Report too little memory as such."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise OutOfMemory("out of memory", "predict", "give smaller pictures, or use --device cpu") from error
        raise
