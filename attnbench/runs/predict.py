"""Draws what a run's detector finds in images, and writes it as data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnbench.base import files
from attnbench.base.draw_boxes import drawn
from attnbench.base.errors import ConfigError
from attnbench.data.images.pillow import load_rgb
from attnbench.models.checkpoint import Which
from attnbench.runs.load import load_run

SCORE = 0.5


def predict(
    run: Path, images: Sequence[Path], *, output: Path | None = None, score: float = SCORE, which: Which = "last"
) -> list[Path]:
    """Draw what a run's detector finds in images.

    Args:
        run: the run's folder.
        images: JPEG or PNG files of any size, grey or in colour.
        output: the folder for the pictures, ``<image>.png`` each, and ``predictions.json``; None for
            ``RUN/predictions``.
        score: the least score of objects that are drawn; predictions.json has all objects.
        which: ``last`` or ``best`` weights.

    Returns:
        The files of the pictures.

    Raises:
        ConfigError: the run has no detector, or two images have the same name.
        DataError: a file is not an image.
        StorageError: the folder is not a run's, or the pictures cannot be written.
    """
    trained = load_run(run, which)
    if "detector" not in trained.config.tree:
        what = f"a run of task={trained.config.choices['task']} has no detector"
        raise ConfigError(what, run, "give a run of task=detection")
    folder = output or run / "predictions"
    paths = [folder / f"{image.stem}.png" for image in images]
    if len(set(paths)) < len(paths):
        raise ConfigError("two images have the same name", "command line", "rename one, or call this twice")
    classes = trained.classes
    files.make_folder(folder)
    predictions = []
    for image, path in zip(images, paths, strict=True):
        pixels = torch.from_numpy(np.array(load_rgb(image))).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            (detections,) = trained.model([pixels])
        picture = Image.fromarray(drawn(pixels, detections, classes, score))
        files.write(path, partial(picture.save, format="PNG"))
        predictions.append({"image": str(image), "objects": _objects(detections, classes)})
    files.write_json(folder / "predictions.json", predictions)
    return paths


def _objects(detections: dict[str, Tensor], classes: Sequence[str]) -> list[dict[str, Any]]:
    each = zip(*(detections[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    return [
        {"class": classes[label - 1], "score": round(score, 4), "box": [round(at, 2) for at in box]}
        for box, label, score in each
    ]
