"""Check that a detector can overfit eight real images: AP50 of at least 50 from scratch, on a CPU.

    python scripts/checks/detection_overfit.py voc /data/voc ssd faster_rcnn_small
    python scripts/checks/detection_overfit.py coco /data/coco ssd faster_rcnn_small mask_rcnn_small

Any VOC or COCO folder will do. Eight images without small objects are copied to a small data set, on which an ordinary
run is trained. A detector takes two to five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.config import composition
from attnbench.data.detection import coco, voc
from attnbench.runs import run

IMAGES, REPEATS, BAR = 8, 20, 50.0

COMMON = [
    *("task=detection", "backbone=resnet18", "batch_size=8", "schedule=cosine", "schedule.per=step"),
    *("schedule.warmup_epochs=1.0", "schedule.weight_decay=1e-4", "dataset.augment=none", "runtime.workers=0"),
]
DETECTORS = {
    "ssd": ["detector=ssd", "detector.size=128", "schedule.lr=0.02", "schedule.epochs=8"],
    "faster_rcnn_small": ["detector=faster_rcnn_small", "schedule.lr=0.01", "schedule.epochs=8"],
    "mask_rcnn_small": ["detector=mask_rcnn_small", "schedule.lr=0.02", "schedule.epochs=8"],
}
SIDES = ["detector.short_side=128", "detector.long_side=192", "detector.anchor_size=16"]


def simple(source: Any) -> list[int]:
    """The indices of the images with the largest smallest object, without crowds and difficult objects."""
    sizes = {}
    for i, record in enumerate(source.records):
        objects = record.objects
        if len(objects) and not (objects.crowd | objects.difficult).any():
            sizes[i] = objects.areas.min() / (record.width * record.height)
    return sorted(sizes, key=lambda i: -sizes[i])[:IMAGES]


def eight_of_voc(root: Path, folder: Path) -> list[str]:
    """Make a VOC folder of eight images, each of which is in the training split many times; returns overrides."""
    split = ["VOC2007/trainval"]
    source = voc.voc(root=str(root), train=split, val=split).train.source  # type: ignore[attr-defined]
    chosen = [source.records[i].image for i in simple(source)]
    year = folder / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    for image in chosen:
        shutil.copy(image, year / "JPEGImages")
        shutil.copy(image.parents[1] / "Annotations" / f"{image.stem}.xml", year / "Annotations")
    lines = "".join(f"{image.stem}\n" for image in chosen)
    (year / "ImageSets/Main/many.txt").write_text(lines * REPEATS)
    (year / "ImageSets/Main/once.txt").write_text(lines)
    return ["dataset=voc", "dataset.train=[VOC2007/many]", "dataset.val=[VOC2007/once]"]


def eight_of_coco(root: Path, folder: Path) -> list[str]:
    """Make a COCO folder of eight images, each of which is in the training split many times; returns overrides."""
    name = "train2017" if (root / "train2017").is_dir() else "val2017"
    content = json.loads((root / "annotations" / f"instances_{name}.json").read_text())
    source = coco.coco(root=str(root), train=name, val=name, without_area="drop").train.source  # type: ignore[attr-defined]
    files = [source.records[i].image.name for i in simple(source)]
    images = [image for image in content["images"] if image["file_name"] in files]
    numbers = {image["id"] for image in images}
    annotations = [item for item in content["annotations"] if item["image_id"] in numbers]
    (folder / "annotations").mkdir()
    for split, repeats in (("many", REPEATS), ("once", 1)):
        (folder / split).mkdir()
        for file in files:
            shutil.copy(root / name / file, folder / split)
        copied: dict[str, Any] = {"categories": content["categories"], "images": [], "annotations": []}
        for turn in range(repeats):
            shift = turn * 10**9
            copied["images"] += [image | {"id": image["id"] + shift} for image in images]
            copied["annotations"] += [item | {"image_id": item["image_id"] + shift} for item in annotations]
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(copied))
    return ["dataset=coco", "dataset.train=many", "dataset.val=once"]


LAYOUTS = {"voc": eight_of_voc, "coco": eight_of_coco}


def main() -> None:
    """Train each detector on eight images; exit with code 1 if one does not overfit them."""
    parser = argparse.ArgumentParser(description="Check that detectors can overfit eight images.")
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("root", type=Path)
    parser.add_argument("detectors", nargs="+", choices=DETECTORS)
    parser.add_argument("overrides", nargs="*", default=[])
    options, overrides = parser.parse_known_args([argument for argument in sys.argv[1:] if "=" not in argument])
    overrides += [argument for argument in sys.argv[1:] if "=" in argument]
    failed = False
    for detector in options.detectors:
        with tempfile.TemporaryDirectory() as folder:
            where = [f"dataset.root={folder}/data", f"paths.outputs={folder}/outputs"]
            (Path(folder) / "data").mkdir()
            data = LAYOUTS[options.layout](options.root, Path(folder) / "data")
            sides = [] if detector == "ssd" else SIDES
            left = run.train(composition.compose([*COMMON, *DETECTORS[detector], *sides, *data, *where, *overrides]))
        measures = {key: round(value, 2) for key, value in left.items() if key in ("AP", "AP50", "mask_AP50")}
        failed |= min(value for key, value in measures.items() if key.endswith("50")) < BAR
        print(options.layout, detector, measures, f"{left['seconds']:.0f} s", flush=True)
    sys.exit(int(failed or not np.isfinite(left["AP"])))


if __name__ == "__main__":
    main()
