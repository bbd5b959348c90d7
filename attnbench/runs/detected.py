"""Draws what a run's detector finds in pictures, and writes it as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor, nn

from attnbench.base import files
from attnbench.base.draw_boxes import drawn
from attnbench.models.detection.pasting import Region, blank, regions, run_lengths, unpasted
from attnbench.runs.pictures import Outputs, Pictures, as_png

LEAST_CORNERS = 3  # of a polygon


class Drawn(NamedTuple):
    """A picture with its objects.

    Attributes:
        line: the file, and how many objects were drawn.
        entry: the picture's entry in predictions.json.
    """

    line: str
    entry: dict[str, Any]


def detect(
    network: nn.Module,
    classes: Sequence[str],
    pictures: Pictures,
    outputs: Outputs,
    *,
    score: float,
    polygons: bool,
    device: torch.device,
) -> Iterator[Drawn]:
    """Draw each picture, and write predictions.json at the end.

    Args:
        network: a detector in evaluation mode on ``device``.
        score: the least score of objects that are drawn; predictions.json has all objects.
        polygons: whether predictions.json has masks as polygons too.
    """
    entries = []
    index = outputs.path("predictions", ".json")
    for path, pixels in pictures.read(_pixels, ahead=False):
        with torch.no_grad(), unpasted(network):
            (found,) = network([pixels.to(device).permute(2, 0, 1).float().div_(255)])
        found = {key: value.cpu() for key, value in found.items()}
        height, width = pixels.shape[:2]
        objects = _objects(found, classes, height, width, polygons)
        picture = outputs.path(path.stem, ".png")
        image = pixels.permute(2, 0, 1).float().div_(255)
        mask = partial(_mask, objects) if objects and "mask" in objects[0] else None
        result = Image.fromarray(drawn(image, found, classes, score, mask=mask))
        files.write(picture, as_png(result))
        entry = {"image": str(path), "picture": picture.name, "width": width, "height": height, "objects": objects}
        entries.append(entry)
        yield Drawn(f"{picture}: {_counted(objects, score)}", entry)
    entries += [{"image": str(path), "error": error.what} for path, error in pictures.bad.items()]
    files.write_json(index, entries)


def _pixels(image: Any) -> Tensor:
    """An RGB image, uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(image))


def _objects(
    found: dict[str, Tensor], classes: Sequence[str], height: int, width: int, polygons: bool
) -> list[dict[str, Any]]:
    """All objects, as predictions.json has them; masks, if there are any, as run lengths."""
    canvas, objects = blank(height, width), []
    parts = regions(found, height, width)
    each = zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    for box, label, sure in each:
        one = {"class": classes[label - 1], "score": round(sure, 4), "box": [round(at, 2) for at in box]}
        part = next(parts, None)
        if part is not None:
            mask = run_lengths(part, canvas)
            one["mask"] = {"size": mask["size"], "counts": mask["counts"].decode()}
            if polygons:
                one["polygons"] = outlines(part)
        objects.append(one)
    return objects


def _mask(objects: Sequence[dict[str, Any]], number: int) -> Region:
    """The mask of an object, decoded when it is drawn: those of a photo would not all fit into memory."""
    mask = objects[number]["mask"]
    return Region(0, 0, rle.decode({**mask, "counts": mask["counts"].encode()}).astype(bool))


def outlines(part: Region) -> list[list[float]]:
    """The outlines of a region as COCO's polygons: x and y of each corner in turn, in pixels of the image.

    COCO's polygons have no holes, so a hole is left out.
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(part.inside.astype(np.float32), 1)
    filled: Any = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    for points, offsets in zip(*filled, strict=True):
        outer = points[offsets[0] : offsets[1] - 1]  # the first line is the outer one; its last point is its first
        if len(outer) >= LEAST_CORNERS:
            moved = outer + np.array([part.left - 0.5, part.top - 0.5])  # from centres of padded pixels to corners
            found.append([round(float(at), 2) for at in moved.clip(0).ravel()])
    return found


def _counted(objects: Sequence[dict[str, Any]], score: float) -> str:
    """``3 objects (2 dog, 1 cat)``, of those that are drawn."""
    kinds = Counter(one["class"] for one in objects if one["score"] >= score)
    count = sum(kinds.values())
    by_class = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
    return f"{count} object{'' if count == 1 else 's'}{f' ({by_class})' if by_class else ''} of score {score:g} or more"
