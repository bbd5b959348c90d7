"""Tells the classes of pictures with a run's classifier: as data, as a contact sheet, and where it looked."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnbench.base import escape, files
from attnbench.base.contact_sheet import Tile, sheet
from attnbench.base.errors import ConfigError
from attnbench.runs.pictures import COLUMNS, Outputs, Pictures, as_png
from attnbench.runs.preprocessing import Preprocessing

BATCH = 32
ON_SHEET = 60  # maximum number of pictures on the contact sheet


class Told(NamedTuple):
    """A picture and its most probable classes, with their probabilities."""

    path: Path
    classes: list[tuple[str, float]]


def classify(
    network: nn.Module,
    classes: Sequence[str],
    how: Preprocessing,
    pictures: Pictures,
    outputs: Outputs,
    *,
    top: int,
    cam: bool,
    device: torch.device,
    seen: Callable[[int], object] = int,
) -> tuple[list[Told], list[Path]]:
    """The most probable classes of each picture, and the files: predictions.json, predictions.csv, sheet.png.

    Args:
        network: a classifier in evaluation mode on ``device``.
        top: the number of classes.
        cam: whether to write, for each picture, where the network looked for its first class (Grad-CAM), and to show it
            on the sheet.
        seen: called with the number of pictures that have been done.

    Raises:
        ConfigError: ``cam`` needs the package grad-cam.
        StorageError: a file cannot be written.
    """
    if cam:
        need_cam()
    names = [outputs.path("predictions", suffix) for suffix in (".json", ".csv")]
    page = outputs.path("sheet", ".png")
    told: list[Told] = []
    tiles: list[Tile] = []
    entries: list[dict[str, Any]] = []
    with _looker(network, cam) as look:
        for path, crop, shares in _shares(network, how, pictures, device, seen):
            best = shares.topk(min(top, len(classes)))
            ranked = [(classes[n], float(p)) for n, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            told.append(Told(path, ranked))
            entry: dict[str, Any] = {"image": str(path), "classes": [_of_class(*one) for one in ranked]}
            image = Image.fromarray(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()))
            if look is not None:
                image = look(how.normalised(crop[None].to(device)), image, int(best.indices[0]))
                written = outputs.path(f"{path.stem}-cam", ".png")
                files.write(written, as_png(image))
                entry["picture"] = written.name
            if len(tiles) < ON_SHEET:
                tiles.append(Tile(image, (path.name, *(f"{100 * p:.1f} %  {name}" for name, p in ranked[:3]))))
            entries.append(entry)
    entries += [{"image": str(path), "error": error.what} for path, error in pictures.bad.items()]
    files.write_json(names[0], entries)
    files.write(names[1], lambda file: file.write(_csv(told)))
    if not tiles:
        return told, names
    files.write(page, as_png(sheet(tiles)))
    return told, [*names, page]


def need_cam() -> None:
    """Refuse Grad-CAM without its package.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise ConfigError("Grad-CAM needs the package grad-cam", "--cam", "pip install 'attnbench[cam]'")


def _of_class(name: str, probability: float) -> dict[str, Any]:
    return {"class": name, "probability": round(probability, 6)}


def _csv(told: Iterable[Told]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path, ranked in told:
        writer.writerows(
            (escape.csv(str(path)), n, escape.csv(name), f"{share:.6f}") for n, (name, share) in enumerate(ranked, 1)
        )
    return text.getvalue().encode()


def _shares(
    network: nn.Module, how: Preprocessing, pictures: Pictures, device: torch.device, seen: Callable[[int], object]
) -> Iterator[tuple[Path, Tensor, Tensor]]:
    """Each picture, its crop, uint8 (3, size, size), and the probability of each class."""
    waiting: list[tuple[Path, Tensor]] = []

    def computed() -> Iterator[tuple[Path, Tensor, Tensor]]:
        with torch.no_grad():
            images = how.normalised(torch.stack([crop for _, crop in waiting]).to(device))
            shares = network(images).float().softmax(1).cpu()
        for (path, crop), row in zip(waiting, shares, strict=True):
            yield path, crop, row
        seen(len(waiting))
        waiting.clear()

    for one in pictures.read(how.cropped, ahead=True):
        waiting.append(one)
        if len(waiting) == BATCH:
            yield from computed()
    if waiting:
        yield from computed()
    seen(len(pictures.bad))


Look = Callable[[Tensor, Image.Image, int], Image.Image]


@contextmanager
def _looker(network: nn.Module, cam: bool) -> Iterator[Look | None]:
    """A function that draws over a picture where the network looked for a class; None if none is asked for."""
    if not cam:
        yield None
        return
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explained: list[Any] = []  # made with the first picture, whose size tells the last map

    def look(images: Tensor, image: Image.Image, label: int) -> Image.Image:
        if not explained:
            explained.append(GradCAM(model=network, target_layers=[last_map(network, images)]))
        (heat,) = explained[0](input_tensor=images, targets=[ClassifierOutputTarget(label)])
        return Image.fromarray(show_cam_on_image(np.asarray(image, dtype=np.float32) / 255, heat, use_rgb=True))

    try:
        yield look
    finally:
        for one in explained:
            one.activations_and_grads.release()


def last_map(network: nn.Module, images: Tensor) -> nn.Module:
    """The module that gives the network's last map of more than one pixel; of nested modules, the outermost.

    Raises:
        ConfigError: there is no such map.
    """
    found: list[nn.Module] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            found.append(module)

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ConfigError("this network has no map of more than one pixel", "--cam", "leave --cam out")
    return found[-1]
