"""Detectors around any backbone: they equal torchvision's, freeze the right parts and start from a classifier."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.mobilenetv2 import InvertedResidual

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.models import factory
from attnbench.models.detection.features import Features
from attnbench.models.detection.rcnn import FasterRCNN, MaskRCNN
from attnbench.models.detection.retinanet import RetinaNet
from attnbench.models.detection.ssd import SSD, Priors
from attnbench.models.insertion import Attended
from attnbench.runs import run
from attnbench.training import state


def scene(seed: int = 0, size: tuple[int, int] = (70, 90), count: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of noise with a few boxes and their masks."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.5
    boxes = torch.cat([corners, corners + 16 + torch.rand(count, 2, generator=generator) * 10], 1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(1, 6, (count,), generator=generator)
    return torch.rand(3, height, width, generator=generator), {"boxes": boxes, "labels": labels, "masks": masks}


SCENES = [scene(0), scene(1, (90, 64))]
IMAGES, TARGETS = [image for image, _ in SCENES], [target for _, target in SCENES]


def same(ours: nn.Module, theirs: nn.Module, targets: list[dict[str, Tensor]] = TARGETS) -> None:
    """Check that two networks give equal losses, with the same random samples, and equal detections.

    Args:
        targets: for the second network, if its labels begin at 0.
    """
    for network in (ours, theirs):
        network.train()
    losses = []
    for network, given in ((ours, TARGETS), (theirs, targets)):
        torch.manual_seed(5)
        losses.append(network(IMAGES, given))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[1].items():
        assert value > 0 and losses[0][name].item() == pytest.approx(value.item(), abs=1e-5), name
    with torch.no_grad():
        for one, other in zip(ours.eval()(IMAGES), theirs.eval()(IMAGES), strict=True):
            assert one.keys() == other.keys() and len(other["boxes"])
            if targets is not TARGETS:
                other["labels"] = other["labels"] + 1
            for name, value in other.items():
                assert torch.allclose(one[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize("masks", [False, True], ids=["faster_rcnn", "mask_rcnn"])
def test_an_rcnn_without_attention_equals_torchvisions(masks: bool) -> None:
    torch.manual_seed(0)
    kind, theirs_of = (MaskRCNN, maskrcnn_resnet50_fpn) if masks else (FasterRCNN, fasterrcnn_resnet50_fpn)
    options = kind(short_side=96, long_side=128, frozen_stages=0, norm="trained")
    ours: Any = options.network(resnet50(), 5)
    theirs = theirs_of(weights=None, weights_backbone=None, num_classes=6, min_size=96, max_size=128)
    options.settle(ours)
    nn.init.normal_(ours.roi_heads.box_predictor.cls_score.weight, std=0.3)  # otherwise nothing is detected
    theirs.load_state_dict(ours.state_dict())
    same(ours, theirs)


def test_a_retinanet_without_attention_equals_torchvisions() -> None:
    """With 6 outputs, torchvision's first one is for no label that a data set has."""
    torch.manual_seed(0)
    options = RetinaNet(short_side=96, long_side=128, frozen_stages=0, norm="trained")
    ours: Any = options.network(resnet50(), 6)
    sizes: dict[str, Any] = {"min_size": 96, "max_size": 128}
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=6, **sizes)
    options.settle(ours)
    nn.init.normal_(ours.head.classification_head.cls_logits.weight, std=3.0)  # otherwise nothing is detected
    theirs.load_state_dict(ours.state_dict())
    below = [{**target, "labels": target["labels"] - 1} for target in TARGETS]
    same(ours, theirs, below)


class Slices(nn.Module):
    """MobileNetV2 and the extra blocks, split by hand at their feature maps."""

    def __init__(self) -> None:
        super().__init__()
        features = mobilenet_v2().features
        block = features[14].conv
        self.first = nn.Sequential(*features[:14], block[0])
        self.second = nn.Sequential(*block[1:], *features[15:])
        extras = ((1280, 512, 0.2), (512, 256, 0.25), (256, 256, 0.5), (256, 64, 0.25))
        self.extra = nn.ModuleList(InvertedResidual(i, o, 2, e) for i, o, e in extras)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [self.first(x)]
        for part in (self.second, *self.extra):
            maps.append(part(maps[-1]))
        return {str(i): one for i, one in enumerate(maps)}


def test_ssd_without_attention_equals_torchvisions() -> None:
    torch.manual_seed(0)
    options = SSD(size=96, normalize="imagenet")
    ours = options.network(mobilenet_v2(), 5)
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.1]
    head = SSDLiteHead([576, 1280, 512, 256, 256, 64], [6] * 6, 6, nn.BatchNorm2d)
    for part, columns in ((head.classification_head, 36), (head.regression_head, 24)):
        part.module_list[-1] = nn.Conv2d(64, columns, 1)
    theirs = TorchvisionSSD(Slices(), DefaultBoxGenerator([[2, 3]] * 6, scales=scales), (96, 96), 6, head=head)
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    same(ours, theirs)


def test_priors_are_those_of_pytorch_ssd() -> None:
    """Against a copy of that project's generator."""
    expected = []
    specs = [(19, 16, 60, 105), (10, 32, 105, 150), (5, 64, 150, 195), (3, 100, 195, 240), (2, 150, 240, 285)]
    for side, shrinkage, least, most in [*specs, (1, 300, 285, 330)]:
        for j, i in itertools.product(range(side), repeat=2):
            x, y = (i + 0.5) / (300 / shrinkage), (j + 0.5) / (300 / shrinkage)
            squares = [least / 300, math.sqrt(least * most) / 300]
            expected += [[x, y, s, s] for s in squares]
            for ratio in (math.sqrt(2), math.sqrt(3)):
                expected += [
                    [x, y, squares[0] * ratio, squares[0] / ratio],
                    [x, y, squares[0] / ratio, squares[0] * ratio],
                ]
    centres = torch.tensor(expected).clamp(0, 1)
    corners = 300 * torch.cat([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1)
    maps = [torch.zeros(1, 1, side, side) for side in (19, 10, 5, 3, 2, 1)]
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (ours,) = Priors([16, 32], 300)(images, maps)
    assert ours.shape == (3000, 4)
    assert torch.allclose(ours, corners, atol=1e-3)


def small(*overrides: str) -> nn.Module:
    composed = composition.compose(["task=detection", *overrides])
    torch.manual_seed(0)
    return factory.network(composed, 10)[0]


MMDET = "detector.protocol=mmdet"
DETECTORS = ["ssd", "faster_rcnn_small", "mask_rcnn_small", "retinanet_small"]
DETECTORS += [f"mask_rcnn_small {MMDET}", f"retinanet_small {MMDET}"]


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("attention", ["se", "eca", "sb"])
def test_attention_is_inserted_only_in_the_backbone_and_gets_gradients(detector: str, attention: str) -> None:
    overrides = [*f"detector={detector}".split(), "backbone=mobilenetv2_cifar", "backbone.width=0.35"]
    composed = composition.compose(["task=detection", *overrides, f"attention={attention}"])
    torch.manual_seed(0)
    model, sites = factory.network(composed, 10)
    at = [path for path, module in model.named_modules() if isinstance(module, Attended)]
    assert sorted(at) == sorted(site.path for site in sites) and len(at) >= 17
    assert all(path.startswith("backbone.body.") for path in at)
    plain = small(*overrides)
    stock = {
        key.replace(".trunk.", "."): value for key, value in model.state_dict().items() if ".attention." not in key
    }
    assert all(torch.equal(stock[key], value) for key, value in plain.state_dict().items())  # same weights
    losses = model([image[:, :64, :64] for image in IMAGES], clipped(TARGETS))
    torch.stack([*losses.values()]).sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def clipped(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [t | {"boxes": t["boxes"].clamp(max=64), "masks": t["masks"][:, :64, :64]} for t in targets]


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_batch_without_any_box_trains(detector: str) -> None:
    model = small(*f"detector={detector}".split())
    nothing = [
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 64, 64).byte(),
        }
        for _ in IMAGES
    ]
    loss = torch.stack([*model([image[:, :64, :64] for image in IMAGES], nothing).values()]).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


FAMILIES = ["resnet18", "resnet20", "mobilenetv2", "mobilenetv2_cifar", "shufflenetv2", "mnasnet", "densenet264"]


@pytest.mark.parametrize("backbone", [*FAMILIES, "timm/resnet18", "timm/mobilenetv2_050"])
def test_every_backbone_supports_a_detector(backbone: str) -> None:
    for detector in ("ssd", "faster_rcnn", "retinanet")[: 1 if backbone == "densenet264" else 3]:
        composed = composition.compose(["task=detection", f"detector={detector}", f"backbone={backbone}"])
        model: Any = factory.sketch(composed, 10)[0]
        model.eval()(torch.empty(1, 3, 128, 128, device="meta"))
        strides = model.backbone.strides
        assert strides == sorted(strides) and strides[-1] in (4, 8, 32)
        assert all(p.requires_grad for p in model.backbone.fpn.parameters()) if detector != "ssd" else True


def test_parts_that_no_level_depends_on_are_removed_and_the_rest_is_unchanged() -> None:
    torch.manual_seed(0)
    body = resnet50()
    before = copy.deepcopy(body.state_dict())
    features = Features(body)
    kept = body.state_dict()
    assert set(before) - set(kept) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(before[key], value) for key, value in kept.items())
    assert all(p.grad is None for p in features.parameters())
    with pytest.raises(ConfigError, match="feature maps of .* are not known"):
        Features(nn.Sequential(nn.Conv2d(3, 8, 3)))


def test_the_papers_recipe_freezes_the_stem_and_the_first_stage() -> None:
    overrides = ["detector=faster_rcnn", "backbone=resnet50", "attention=se"]
    model: Any = factory.sketch(composition.compose(["task=detection", *overrides]), 10)[0]
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert all(not p.requires_grad for name, p in model.named_parameters() if ".layer1." in name)
    norms = [m for m in model.train().backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53 and not any(m.training for m in norms)
    assert model.rpn.training and model.backbone.body.layer2[0].conv1.training
    with pytest.raises(ConfigError, match="no stage 5"):
        factory.sketch(composition.compose(["task=detection", *overrides, "detector.frozen_stages=5"]), 10)


def test_the_moving_average_of_a_detector_is_independent_of_it() -> None:
    model: Any = small("attention=eca")
    average: Any = state.moving_average(model.eval(), 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    features = average.module.backbone(torch.rand(1, 3, 64, 64))
    assert all(one.abs().sum() > 0 for one in features.values())
    assert all(one.abs().sum() == 0 for one in list(model.backbone(torch.rand(1, 3, 64, 64)).values())[:2])


SMALL = ["backbone=resnet20", "attention=eca", "dataset.size=4", "schedule.epochs=1", "runtime.device=cpu"]
DETECT = ["task=detection", "backbone=resnet20", "attention=eca"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    composed = composition.compose([*SMALL, f"paths.outputs={tmp_path_factory.mktemp('classifier')}"])
    run.train(composed)
    return composed.run_folder


def test_a_detector_starts_from_a_classification_run(classifier: Path, compose: Callable[..., Config]) -> None:
    composed = compose(*DETECT, f"backbone.weights={classifier}")
    model: Any = factory.network(composed, 10)[0]
    theirs = torch.load(classifier / "checkpoints/last.pt", weights_only=True)["model"]
    ours = model.backbone.body.state_dict()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"} and any("attention" in key for key in ours)
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["attention.kernel_size=5"], "attention.kernel_size: adaptive there, 5 here"),
        (["attention=se"], "attention: eca there, se here"),
        (["attention=none"], "attention: eca there, none here"),
        (["placement.stages=[3]"], "placement.stages: None there, [3] here"),
        (["backbone=resnet32"], "backbone.depth: 20 there, 32 here"),
    ],
    ids=str,
)
def test_the_error_for_a_different_backbone_names_the_difference(
    overrides: list[str], named: str, classifier: Path, compose: Callable[..., Config], tmp_path: Path
) -> None:
    changed = {override.split("=")[0] for override in overrides}
    kept = [override for override in DETECT if override.split("=")[0] not in changed]
    with pytest.raises(ConfigError) as refused:
        run.train(compose(*kept, *overrides, f"backbone.weights={classifier}"))
    assert named in str(refused.value) and refused.value.where == "backbone.weights"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_refused_as_the_start(compose: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such run"):
        run.train(compose(*DETECT, f"backbone.weights={tmp_path}"))


def test_dense_needs_no_boxes_and_counts_all_regions() -> None:
    composed = composition.compose(["experiment=eca_coco", "detector=mask_rcnn"])
    model, _ = factory.sketch(composed, 80)
    outputs: list[Any] = model.eval()(torch.empty(1, 3, 64, 64, device="meta"))
    assert [tuple(one.shape) for one in outputs[-3:]] == [(1000, 81), (1000, 324), (100, 81, 28, 28)]
