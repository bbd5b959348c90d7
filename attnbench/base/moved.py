"""The present names of modules of earlier releases, so that users' own packages and option files keep working.

The public names are those of ``attnbench`` itself (``from attnbench import Attended, Site, checked``). Entries are
added and never changed or removed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Former module or package of ``attnbench`` -> present one. Release 0.1.0 had all of them at the root.
MOVED = {
    "attempt": "runs.attempt",
    "attention": "models.attention",
    "attention.a2": "models.attention.a2",
    "attention.aa": "models.attention.aa",
    "attention.branch": "models.attention.branch",
    "attention.cbam": "models.attention.cbam",
    "attention.condconv": "models.attention.condconv",
    "attention.convolution": "models.attention.convolution",
    "attention.dyconv": "models.attention.dyconv",
    "attention.eca": "models.attention.eca",
    "attention.eca_ns": "models.attention.eca_ns",
    "attention.gsop": "models.attention.gsop",
    "attention.mixing": "models.attention.mixing",
    "attention.none": "models.attention.none",
    "attention.sb": "models.attention.sb",
    "attention.se": "models.attention.se",
    "attention.se_gc": "models.attention.se_gc",
    "attention.se_layer": "models.attention.se_layer",
    "attention.se_var1": "models.attention.se_var1",
    "attention.se_var2": "models.attention.se_var2",
    "attention.se_var3": "models.attention.se_var3",
    "attention.squeeze": "models.attention.squeeze",
    "backbones": "models.backbones",
    "backbones.imagenet": "models.backbones.imagenet",
    "backbones.mobilenetv2_cifar": "models.backbones.mobilenetv2_cifar",
    "backbones.resnet_cifar": "models.backbones.resnet_cifar",
    "backbones.timm": "models.backbones.timm",
    "build": "models.factory",
    "compare": "reports.comparison_formats",
    "comparison": "reports.comparison",
    "complexity": "models.complexity",
    "curation": "cli.data",
    "data.annotated": "data.detection.annotated",
    "data.box_augment": "data.detection.box_augment",
    "data.checking": "data.images.checking",
    "data.cifar": "data.in_memory.cifar",
    "data.cifar_batches": "data.in_memory.cifar_batches",
    "data.coco": "data.detection.coco",
    "data.crops": "data.images.crops",
    "data.digits": "data.in_memory.digits",
    "data.digits_det": "data.detection.digits_det",
    "data.files": "data.images.files",
    "data.folder": "data.image_folders.folder",
    "data.imagenet": "data.image_folders.datasets",
    "data.jpeg": "data.images.jpeg",
    "data.resident": "data.in_memory.resident",
    "data.scenes": "data.detection.scenes",
    "data.sharding": "data.image_folders.sharding",
    "data.shards": "data.image_folders.shards",
    "data.synthetic": "data.in_memory.synthetic",
    "data.threads": "data.images.threads",
    "data.voc": "data.detection.voc",
    "declaration": "config.builders",
    "detection": "models.detection",
    "detection.coco_ap": "training.metrics.coco_ap",
    "detection.detector": "models.detection.detector",
    "detection.drawing": "base.draw_boxes",
    "detection.features": "models.detection.features",
    "detection.found": "training.metrics.detections",
    "detection.rcnn": "models.detection.rcnn",
    "detection.ssd": "models.detection.ssd",
    "detection.voc_ap": "training.metrics.voc_ap",
    "engine": "training.engine",
    "errors": "base.errors",
    "evaluation": "runs.evaluate",
    "export": "runs.export",
    "feed": "training.feed",
    "figures": "reports.figures",
    "figures.canvas": "reports.figures.canvas",
    "figures.channels": "reports.figures.channels",
    "figures.curves": "reports.figures.curves",
    "figures.data": "reports.figures.paper_figures",
    "figures.files": "reports.figures.saving",
    "figures.kinds": "reports.figures.drawing",
    "figures.lambdas": "reports.figures.lambdas",
    "figures.matching": "reports.figures.matching",
    "figures.notes": "reports.figures.notes",
    "figures.plane": "reports.figures.plane",
    "figures.signals": "reports.figures.hooks",
    "figures.sweep": "reports.figures.sweep",
    "figuring": "cli.figure",
    "folder": "runs.folder",
    "folding": "models.folding",
    "insertion": "models.insertion",
    "inspection": "models.inspection",
    "interleaved": "base.benchmark",
    "launcher": "launch.hydra_launchers",
    "measures": "training.metrics.titles",
    "members": "launch",
    "members.crew": "launch.executor",
    "members.job": "launch.submitit_job",
    "members.local": "launch.submitit_local",
    "members.packs": "launch.packing",
    "members.pool": "launch.pool",
    "members.process": "launch.process",
    "members.ray_cluster": "launch.ray_cluster",
    "members.slurm": "launch.submitit_slurm",
    "members.watch": "launch.progress",
    "ops": "models.ops",
    "ops.allocator": "base.allocator",
    "ops.cores": "base.cores",
    "ops.depthwise": "models.ops.depthwise",
    "ops.native": "base.compile_c",
    "ops.packed": "models.ops.packed",
    "ops.tail": "models.ops.fused_norm",
    "ops.tail_triton": "models.ops.fused_norm_triton",
    "optim": "training.optim",
    "options": "config.options",
    "pack": "runs.packed",
    "placement": "models.placement",
    "prediction": "runs.predict",
    "printing": "base.console",
    "probe": "runs.probe",
    "ranks": "runs.processes",
    "recorder": "training.recorder",
    "results": "runs.results",
    "run": "runs.run",
    "runtime": "training.runtime",
    "speed": "cli.speed",
    "stacking": "models.stacking",
    "state": "training.state",
    "storage": "base.files",
    "stored": "models.checkpoint",
    "sweep": "launch.sweep",
    "tables": "reports",
    "tables.counts": "reports.counts",
    "tables.data": "reports.paper_tables",
    "tables.layout": "reports.formats",
    "tables.plan": "reports.plan",
    "tables.report": "reports.report",
    "tables.runs": "reports.rows",
    "tables.statistics": "reports.statistics",
    "tabling": "cli.table",
    "tail": "models.fused",
    "tasks": "training.tasks",
    "tasks.classification": "training.tasks.classification",
    "tasks.detection": "training.tasks.detection",
    "trained": "runs.load",
    "update": "training.step",
    "weights": "models.weights",
    "words": "cli.parser",
}


def present(name: str) -> str:
    """The present name of a module or of a name in it (``attnbench.options.Count``); unchanged if it did not move."""
    first, _, rest = name.partition(".")
    parts = rest.split(".") if first == "attnbench" else []
    for length in range(len(parts), 0, -1):
        former = ".".join(parts[:length])
        if former in MOVED:
            return ".".join(["attnbench", MOVED[former], *parts[length:]])
    return name


class _Finder(MetaPathFinder, Loader):
    """Returns the present module when a module is imported by its former name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.removeprefix("attnbench.") in MOVED and present(name) != name else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(present(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        former = module.__spec__
        assert former is not None
        module.__spec__ = former.loader_state  # the import system replaced it with the spec of the former name


def install() -> None:
    """Make modules importable by their former names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
