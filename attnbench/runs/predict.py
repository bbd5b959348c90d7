"""Pictures with what a run's detector finds in them, and the same as data."""

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
        images: JPEG or PNG files, grey or colour, of any size.
        output: the folder for the pictures, ``<image>.png`` each, and ``predictions.json``; None for
            ``RUN/predictions``.
        score: the least score of what is drawn; the data have all.
        which: ``last`` or ``best`` weights.

    Returns:
        The pictures' files.

    Raises:
        ConfigError: the run is of no detector, or two images have one name.
        DataError: a file is no image.
        StorageError: not a run's folder, or the pictures cannot be written.
    """
    trained = load_run(run, which)
    if "detector" not in trained.config.tree:
        what = f"a run of task={trained.config.choices['task']} finds no objects"
        raise ConfigError(what, run, "give a run of task=detection")
    folder = output or run / "predictions"
    paths = [folder / f"{image.stem}.png" for image in images]
    if len(set(paths)) < len(paths):
        raise ConfigError("two images have the same name", "command line", "rename one, or call this twice")
    classes = trained.classes
    files.make_folder(folder)
    told = []
    for image, path in zip(images, paths, strict=True):
        pixels = torch.from_numpy(np.array(load_rgb(image))).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            (answer,) = trained.model([pixels])
        picture = Image.fromarray(drawn(pixels, answer, classes, score))
        files.write(path, partial(picture.save, format="PNG"))
        told.append({"image": str(image), "objects": _objects(answer, classes)})
    files.write_json(folder / "predictions.json", told)
    return paths


def _objects(answer: dict[str, Tensor], classes: Sequence[str]) -> list[dict[str, Any]]:
    each = zip(answer["boxes"].tolist(), answer["labels"].tolist(), answer["scores"].tolist(), strict=True)
    return [
        {"class": classes[label - 1], "score": round(score, 4), "box": [round(at, 2) for at in box]}
        for box, label, score in each
    ]
