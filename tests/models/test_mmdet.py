"""Detectors with ``protocol=mmdet`` against the rules of MMDetection 1.x, written out in NumPy or by hand.

In that project a box ends with the last pixel inside it, so its widths have a "+ 1". Boxes here end where that pixel
ends. The rules below are spelled as in that project; ``inclusive`` converts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection.image_list import ImageList

from attnbench.config import composition
from attnbench.models import factory
from attnbench.models.complexity import COUNTERS
from attnbench.models.detection.mmdet import mask_targets
from attnbench.models.detection.rcnn import FasterRCNN, MaskRCNN
from attnbench.models.detection.retinanet import RetinaNet

PROTOCOLS = ["mmdet", "torchvision"]


def small(kind: Any = FasterRCNN, protocol: str = "mmdet", **options: Any) -> Any:
    """A narrow detector of five classes around a ResNet-18."""
    torch.manual_seed(0)
    narrow = {"channels": 16, "short_side": 96, "long_side": 128}
    narrow |= {} if kind is RetinaNet else {"hidden": 32}
    return kind(protocol=protocol, **narrow | options).network(resnet18(), 5)


def inclusive(boxes: Tensor) -> np.ndarray:
    """Boxes as MMDetection 1.x writes them."""
    return boxes.double().numpy() - np.array([0, 0, 1, 1])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of inclusive boxes, (len(boxes), len(others))."""
    first = np.maximum(boxes[:, None, :2], others[None, :, :2])
    last = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(last - first + 1, 0, None).prod(2)
    areas = [(some[:, 2:] - some[:, :2] + 1).prod(1) for some in (boxes, others)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def assigned(objects: np.ndarray, boxes: np.ndarray, positive: float, negative: float, least: float) -> list[int]:
    """The object of each box: 1, 2, ... or 0 (background) or -1 (unused); step by step."""
    table = overlaps(objects, boxes)
    found = [-1] * len(boxes)
    for number in range(len(boxes)):
        if table[:, number].max() < negative:
            found[number] = 0
        if table[:, number].max() >= positive:
            found[number] = int(table[:, number].argmax()) + 1
    for one in range(len(objects)):
        if table[one].max() >= least:
            for number in range(len(boxes)):
                if table[one, number] == table[one].max():
                    found[number] = one + 1
    return found


def deltas(boxes: np.ndarray, objects: np.ndarray, deviations: tuple[float, ...] = (1, 1, 1, 1)) -> np.ndarray:
    """The offsets from inclusive boxes to objects, divided by the standard deviations of targets."""
    sides, others = boxes[:, 2:] - boxes[:, :2] + 1, objects[:, 2:] - objects[:, :2] + 1
    moved = ((objects[:, :2] + objects[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) * 0.5 / sides
    return np.concatenate([moved, np.log(others / sides)], 1) / np.array(deviations)


def random_boxes(count: int, size: int, seed: int) -> Tensor:
    """Boxes with whole corners; some cross the border of an image of this size."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(-4, size - 8, (count, 2), generator=generator)
    return torch.cat([corners, corners + torch.randint(6, size // 2, (count, 2), generator=generator)], 1).float()


# Losses


@pytest.mark.parametrize(("protocol", "loss"), [("mmdet", 0.5 * 0.1**2), ("torchvision", 0.5 * 0.1**2 * 9)])
def test_the_loss_of_a_residual_of_a_tenth(protocol: str, loss: float) -> None:
    """One of four sampled regions shows an object. One of its offsets is off by 0.1, and the other three are right.

    The losses are 0.005 and 0.045: a tenth is below torchvision's beta of 1/9, too.
    """
    heads = small(protocol=protocol).roi_heads
    for parameter in heads.box_predictor.bbox_pred.parameters():
        nn.init.zeros_(parameter)
    regions = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).repeat(4, 1)
    labels, aims = torch.tensor([0, 2, 0, 0]), torch.full((4, 4), 7.0)
    aims[1] = torch.tensor([0.0, -0.1, 0.0, 0.0])
    heads.select_training_samples = lambda *_: ([regions], [torch.zeros(4).long()], [labels], [aims])
    maps = {str(level): torch.zeros(1, 16, 32 // 2**level, 32 // 2**level) for level in range(4)}
    targets = [{"boxes": regions[:1], "labels": labels[1:2]}]
    _, losses = heads.train()(maps, [regions], [(128, 128)], targets)
    assert losses["loss_box_reg"].item() == pytest.approx(loss / 4, rel=1e-5)


def test_the_proposal_networks_losses_are_means_over_the_samples_of_the_batch() -> None:
    """Two images, of which the second has no object: it counts one more sample (MMDetection's ``max(n, 1)``)."""
    rpn = small().rpn
    labels = [torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, -1.0])]
    logits = torch.tensor([0.5, -0.25, 9.0, 1.0, 0.0, 9.0])
    aims, predicted = torch.zeros(6, 4), torch.full((6, 4), 5.0)
    predicted[0] = torch.tensor([0.0, 0.1, 0.5, -1.0])
    objectness, boxes = rpn.compute_loss(logits, predicted, labels, list(aims.split(3)))
    samples = (1 + 1) + (1 + 2)
    entropies = [math.log1p(math.exp(-0.5)), *(math.log1p(math.exp(z)) for z in (-0.25, 1.0, 0.0))]
    assert float(objectness) == pytest.approx(sum(entropies) / samples, rel=1e-6)
    smooth = [0.5 * 0.1**2 * 9, 0.5 - 1 / 18, 1.0 - 1 / 18]  # beta = 1/9
    assert float(boxes) == pytest.approx(sum(smooth) / samples, rel=1e-6)


@pytest.mark.parametrize("weights", [(10, 10, 5, 5), (1, 1, 1, 1)])
def test_offsets_are_divided_by_the_standard_deviations_of_targets(weights: tuple[int, ...]) -> None:
    network = small()
    coder = network.roi_heads.box_coder if weights[0] == 10 else network.rpn.box_coder
    boxes, objects = random_boxes(20, 96, 1), random_boxes(20, 96, 2)
    expected = deltas(inclusive(boxes), inclusive(objects), tuple(1 / weight for weight in weights))
    np.testing.assert_allclose(coder.encode_single(objects, boxes).numpy(), expected, rtol=1e-4, atol=1e-5)


# Assignment


BORDER = {
    # anchor: label by each protocol; the object is [50, 50, 100, 100], in an image of 100 x 100
    (50, 50, 100, 99): (1, 1),
    (50, 50, 100, 100): (1, 1),
    (52, 52, 101, 100): (-1, 1),  # crosses the right border by a pixel, with an overlap of 0.9
    (51, 51, 100, 101): (-1, 1),
    (60, 60, 100, 100): (-1, -1),  # 0.64, between the thresholds
    (0, 0, 50, 50): (0, 0),
    (-1, 0, 50, 50): (-1, 0),
    (0, -1, 50, 50): (-1, 0),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_anchor_that_crosses_the_border_does_not_train(protocol: str) -> None:
    rpn = small(protocol=protocol).rpn
    target = {"boxes": torch.tensor([[50.0, 50.0, 100.0, 100.0]]), "size": torch.tensor([100, 100])}
    (labels,), _ = rpn.assign_targets_to_anchors([torch.tensor(list(BORDER)).float()], [target])
    assert labels.tolist() == [label[PROTOCOLS.index(protocol)] for label in BORDER.values()]


@pytest.mark.parametrize(("side", "label"), [(17, 1), (16, 0), (5, 0)])
def test_the_best_anchor_of_an_object_needs_an_overlap_of_three_tenths(side: int, label: int) -> None:
    """The object is inside an anchor of 30 x 30, so their overlap is side^2 / 900: 0.32, 0.28 and 0.03."""
    target = {"boxes": torch.tensor([[10.0, 10.0, 10.0 + side, 10.0 + side]]), "size": torch.tensor([64, 64])}
    anchors = torch.tensor([[0.0, 0.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]])
    for protocol, expected in (("mmdet", label), ("torchvision", 1)):
        (labels,), _ = small(protocol=protocol).rpn.assign_targets_to_anchors([anchors], [target])
        assert labels.tolist() == [expected, 0]


@pytest.mark.parametrize("seed", range(4))
def test_anchors_are_assigned_by_the_rule(seed: int) -> None:
    """With low overlaps, ties and anchors outside, for an image of 80 x 96 in a batch of 96 x 96."""
    rpn = small().rpn
    anchors, objects = random_boxes(400, 96, seed), random_boxes(6, 80, seed + 50).clamp(min=0)
    objects[5] = torch.tensor([2.0, 2.0, 6.0, 7.0])  # too small for any anchor
    (labels,), (aims,) = rpn.assign_targets_to_anchors([anchors], [{"boxes": objects, "size": torch.tensor([80, 96])}])
    mine = inclusive(anchors)
    inside = (mine[:, 0] >= 0) & (mine[:, 1] >= 0) & (mine[:, 2] < 96) & (mine[:, 3] < 80)
    expected = np.full(len(anchors), -1)
    expected[inside] = assigned(inclusive(objects), mine[inside], 0.7, 0.3, 0.3)
    assert labels.tolist() == np.minimum(expected, 1).tolist()
    assert {-1, 0, 1} <= set(labels.tolist()) and not inside.all()
    shows = np.flatnonzero(expected > 0)
    assert torch.equal(aims[shows], objects[expected[shows] - 1])


@pytest.mark.parametrize("seed", range(4))
def test_regions_are_assigned_by_the_rule(seed: int) -> None:
    """The objects join the regions after the assignment, each as a region of its own."""
    heads = small().roi_heads
    objects, kinds = random_boxes(8, 96, seed + 70), torch.arange(1, 9) % 5 + 1
    near = objects.repeat(20, 1) + torch.randint(-9, 9, (160, 4), generator=torch.Generator().manual_seed(seed))
    regions = torch.cat([near[(near[:, 2:] > near[:, :2] + 3).all(1)], objects])
    (found,), (labels,) = heads.assign_targets_to_proposals([regions], [objects], [kinds])
    expected = assigned(inclusive(objects), inclusive(regions[:-8]), 0.5, 0.5, 0.5) + list(range(1, 9))
    assert labels.tolist() == [int(kinds[one - 1]) if one else 0 for one in expected]
    assert [one for one, at in zip(found.tolist(), expected, strict=True) if at] == [at - 1 for at in expected if at]
    assert 0 in expected


def test_a_region_that_overlaps_one_object_most_may_belong_to_another() -> None:
    """It is the second object's best region, by 0.5 or more; torchvision leaves it with the first object."""
    objects = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 22.0]])
    regions = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 32.0]])  # overlaps: 1, 0.55 and 0.8, 0.69
    for protocol, label in (("mmdet", 2), ("torchvision", 1)):
        heads = small(protocol=protocol).roi_heads
        _, (labels,) = heads.assign_targets_to_proposals(
            [torch.cat([regions, objects])], [objects], [torch.tensor([1, 2])]
        )
        assert labels.tolist() == [1, label, 1, 2]


# Anchors


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        (FasterRCNN, [[-21, -9, 25, 13], [-14, -14, 18, 18], [-9, -21, 13, 25]]),  # 32 pixels, stride 4
        (RetinaNet, [[-19, -7, 27, 15], [-25, -10, 33, 18], [-32, -14, 40, 22]]),  # 32, 40 and 51 pixels, stride 8
    ],
)
def test_the_anchors_of_a_small_image_are_those_of_a_hand(kind: Any, cell: list[list[int]]) -> None:
    """The middle of a cell of stride s is (s - 1) / 2; first and last pixel are rounded; ratio by ratio."""
    network = small(kind)
    generator = network.anchor_generator if kind is RetinaNet else network.rpn.anchor_generator
    stride = generator.strides[0]
    maps = [torch.zeros(1, 16, -(-96 // s), -(-128 // s)) for s in generator.strides]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)]), maps)
    count = len(cell) * (3 if kind is RetinaNet else 1)
    assert anchors[:3].tolist() == cell
    assert anchors[count : count + 3].tolist() == [[a + stride, b, c + stride, d] for a, b, c, d in cell]
    below = count * maps[0].shape[-1]
    assert anchors[below : below + 3].tolist() == [[a, b + stride, c, d + stride] for a, b, c, d in cell]
    assert len(anchors) == sum(count * one.shape[-1] * one.shape[-2] for one in maps)
    assert generator.strides == ([8, 16, 32, 64, 128] if kind is RetinaNet else [4, 8, 16, 32, 64])
    # The last map has two rows for 96 pixels: its stride is 64, though 96 / 2 is 48.
    last = anchors[-count * maps[-1].shape[-1] * maps[-1].shape[-2] :]
    rows = last.view(maps[-1].shape[-2], maps[-1].shape[-1], count, 4)
    if len(rows) > 1:
        assert set((rows[1, :, :, 1] - rows[0, :, :, 1]).flatten().tolist()) == {float(generator.strides[-1])}


def test_retinanets_smallest_anchors_are_not_rounded_down_first() -> None:
    """Squares of 32, 40.3 and 50.8 pixels around 3.5: torchvision's have sides of 32, 40 and 50."""
    cell = small(RetinaNet).anchor_generator.cell_anchors[0]
    assert cell[3:6].tolist() == [[-12, -12, 20, 20], [-16, -16, 24, 24], [-21, -21, 29, 29]]


# Masks


def resized(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask resized bilinearly from pixel to pixel, and rounded."""
    out = np.zeros((side, side))
    height, width = mask.shape
    for i in range(side):
        for j in range(side):
            y = min(max((i + 0.5) * height / side - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / side - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = mask[top, left] * (1 - x + left) + mask[top, right] * (x - left)
            lower = mask[bottom, left] * (1 - x + left) + mask[bottom, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return (out.round(9) >= 0.5).astype(float)  # bytes: a half is rounded up


def test_mask_targets_are_crops_resized_and_rounded() -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(2, 60, 80, dtype=torch.uint8)
    masks[0, 10:40, 5:50] = 1
    masks[1, 20:60, 30:80] = torch.rand(40, 50, generator=generator).gt(0.5).byte()
    wide, whole = [3.7, 8.2, 51.9, 41.3], [30.0, 20.0, 80.0, 60.0]
    boxes = torch.tensor([wide, whole, [40.6, 25.1, 47.2, 29.9], [9.0, 9.0, 9.4, 9.4]])
    objects = torch.tensor([0, 1, 1, 0])
    ours = mask_targets(masks, boxes, objects, 28)
    assert set(ours.unique().tolist()) == {0.0, 1.0}
    for target, box, one in zip(ours, inclusive(boxes).astype(int), objects, strict=True):
        left, top, right, bottom = box
        crop = masks[one, top : max(bottom, top) + 1, left : max(right, left) + 1].numpy().astype(float)
        assert np.array_equal(target.numpy(), resized(crop, 28))


# Weights

NORMAL, UNIFORM = "normal", "uniform"
# layer: distribution and its standard deviation or bound, from (inputs, outputs) with the positions of a kernel
XAVIER = (UNIFORM, lambda inputs, outputs: math.sqrt(6 / (inputs + outputs)))
INITIAL = {
    "backbone.fpn.inner_blocks": XAVIER,
    "backbone.fpn.layer_blocks": XAVIER,
    "backbone.fpn.extra_blocks": XAVIER,
    "rpn.head": (NORMAL, lambda *_: 0.01),
    "roi_heads.box_head": XAVIER,
    "roi_heads.box_predictor.cls_score": (NORMAL, lambda *_: 0.01),
    "roi_heads.box_predictor.bbox_pred": (NORMAL, lambda *_: 0.001),
    "roi_heads.mask_head": (NORMAL, lambda inputs, outputs: math.sqrt(2 / outputs)),
    "roi_heads.mask_predictor": (NORMAL, lambda inputs, outputs: math.sqrt(2 / outputs)),
    "head.": (NORMAL, lambda *_: 0.01),
}


@pytest.mark.parametrize("kind", [MaskRCNN, RetinaNet])
def test_every_layer_of_the_heads_begins_as_in_mmdetection(kind: Any) -> None:
    hidden: dict[str, Any] = {} if kind is RetinaNet else {"hidden": 128}
    network = small(kind, channels=64, **hidden)
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "weight") and "body" not in name}
    assert sum(p.numel() for layer in layers.values() for p in layer.parameters()) == sum(
        p.numel() for name, p in network.named_parameters() if "body" not in name
    )
    for name, layer in layers.items():
        law, scale = next(rule for part, rule in INITIAL.items() if name.startswith(part))
        weight = layer.weight.detach()
        positions = weight[0, 0].numel()
        # A transposed convolution's weight is (inputs, outputs, ...); its fans are taken as if it was not transposed.
        expected = scale(weight.shape[1] * positions, weight.shape[0] * positions)
        deviation = expected / math.sqrt(3) if law == UNIFORM else expected
        few = 6 / math.sqrt(weight.numel())
        assert float(weight.std()) == pytest.approx(deviation, rel=few), name
        assert abs(float(weight.mean())) < few * deviation, name
        largest = float(weight.abs().max()) / expected
        assert largest <= 1 if law == UNIFORM else largest > 1.5, name
        prior = -math.log(99) if name == "head.classification_head.cls_logits" else 0.0
        assert layer.bias is not None and torch.all(layer.bias == prior), name


FROZEN = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_what_is_frozen_by_name_and_every_other_parameter_decays(detector: str) -> None:
    composed = composition.compose(["experiment=eca_coco", f"detector={detector}", "attention=se", "backbone=resnet50"])
    model: Any = factory.sketch(composed, 80)[0]
    parameters = dict(model.named_parameters())
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    assert frozen == {name for name in parameters if name.startswith(FROZEN)}
    assert any("attention" in name for name in frozen)
    norms = {name: module for name, module in model.train().named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 53 and not any(module.training for module in norms.values())
    (group,) = composed.build("schedule").optimizer(model).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for name, p in parameters.items() if name not in frozen}
    assert len(group["params"]) == len(parameters) - len(frozen)
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (1e-4, 0.9, False)


def test_a_step_of_training_leaves_what_is_frozen_as_it_was() -> None:
    torch.manual_seed(0)
    options = FasterRCNN(channels=16, hidden=32, short_side=64, long_side=64, protocol="mmdet")
    network: Any = options.network(resnet18(), 5)
    options.settle(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 44.0]]), "labels": torch.tensor([2])}]
    losses = network.train()([torch.rand(3, 64, 64)], targets)
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()
    after = {name: value for name, value in network.state_dict().items() if "body" in name}
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    expected = {name for name in before if name.startswith(FROZEN) or name.endswith(statistics)}
    assert same == expected


# Numbers of the configuration


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN])
def test_the_numbers_of_the_one_time_schedules_configuration(kind: Any) -> None:
    torch.manual_seed(0)
    network: Any = kind(protocol="mmdet").network(resnet18(), 80)
    rpn, heads = network.rpn, network.roi_heads
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert rpn._pre_nms_top_n == rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert (rpn.nms_thresh, rpn.score_thresh) == (0.7, 0.0)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    poolers = [heads.box_roi_pool, *([heads.mask_roi_pool] if kind is MaskRCNN else [])]
    assert [pool.output_size for pool in poolers] == [(7, 7), (14, 14)][: len(poolers)]
    assert all(pool.sampling_ratio == 2 for pool in poolers)


def test_a_regions_map_depends_on_its_area() -> None:
    """floor(log2(sqrt(area) / 56)) from 0 to 3."""
    pool = small().roi_heads.box_roi_pool
    maps = {str(level): torch.zeros(1, 16, 128 // 2**level, 128 // 2**level) for level in range(4)}
    pool(maps, [torch.tensor([[0.0, 0.0, 9.0, 9.0]])], [(512, 512)])
    sides = torch.tensor([10.0, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 511.0])
    boxes = torch.cat([torch.zeros(8, 2), sides[:, None].repeat(1, 2)], 1)
    assert pool.map_levels([boxes]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("size", "resized_to"), [((480, 640), (800, 1066)), ((300, 1000), (399, 1333))])
@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet])
def test_a_picture_is_equal_in_training_and_evaluation(
    kind: Any, size: tuple[int, int], resized_to: tuple[int, int]
) -> None:
    transform = small(kind, short_side=800, long_side=1333).transform
    torch.manual_seed(1)
    image = torch.rand(3, *size)
    (train, _), (evaluated, _) = transform.train()([image]), transform.eval()([image])
    assert torch.equal(train.tensors, evaluated.tensors) and train.image_sizes == [resized_to]
    height, width = train.tensors.shape[-2:]
    assert (height, width) == tuple(math.ceil(side / 32) * 32 for side in resized_to)
    assert not train.tensors[:, :, resized_to[0] :].any() and not train.tensors[..., resized_to[1] :].any()
    white = transform.normalize(torch.ones(3, 1, 1)).flatten() * torch.tensor([58.395, 57.12, 57.375])
    assert white.tolist() == pytest.approx([255 - 123.675, 255 - 116.28, 255 - 103.53], rel=1e-5)


# RetinaNet


def test_retinanets_losses_are_sums_over_the_batch_by_the_number_of_its_objects() -> None:
    """Two images of different sizes: the cells in the padding of the smaller one do not train."""
    network = small(RetinaNet)
    strides, sizes = network.anchor_generator.strides, [(96, 128), (60, 70)]
    maps = [torch.zeros(2, 16, -(-96 // stride), -(-128 // stride)) for stride in strides]
    anchors = network.anchor_generator(ImageList(torch.zeros(2, 3, 96, 128), sizes), maps)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, len(anchors[0]), 5, generator=generator)
    offsets = torch.randn(2, len(anchors[0]), 4, generator=generator) * 0.2
    objects = [torch.tensor([[8.0, 8.0, 50.0, 50.0], [60.0, 20.0, 120.0, 90.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([5, 1]), torch.zeros(0).long()]
    targets = [{"boxes": boxes, "labels": kinds} for boxes, kinds in zip(objects, labels, strict=True)]
    losses = network.compute_loss(targets, {"cls_logits": logits, "bbox_regression": offsets}, anchors)

    focal = smooth = 0.0
    number = 0
    for image, (height, width) in enumerate(sizes):
        mine, cells = inclusive(anchors[image]), []
        for stride in strides:
            for y in range(-(-96 // stride)):
                for x in range(-(-128 // stride)):
                    inside = y * stride < math.ceil(height / 32) * 32 and x * stride < math.ceil(width / 32) * 32
                    cells += [inside] * 9
        valid, found = np.array(cells), np.full(len(cells), -1)
        found[valid] = assigned(inclusive(objects[image]), mine[valid], 0.5, 0.4, 0.0) if len(objects[image]) else 0
        assert valid.all() == (image == 0)
        for at in np.flatnonzero(found >= 0):
            for kind in range(1, 6):
                shows = found[at] > 0 and int(labels[image][found[at] - 1]) == kind
                p = 1 / (1 + math.exp(-float(logits[image, at, kind - 1])))
                focal -= 0.25 * (1 - p) ** 2 * math.log(p) if shows else 0.75 * p**2 * math.log(1 - p)
        shows = np.flatnonzero(found > 0)
        if len(shows):
            aims = deltas(mine[shows], inclusive(objects[image])[found[shows] - 1])
            off = np.abs(offsets[image].numpy()[shows] - aims)
            smooth += np.where(off < 0.11, 0.5 * off**2 / 0.11, off - 0.055).sum()
        number += max(len(shows), 1)
    assert number > 10
    assert float(losses["classification"]) == pytest.approx(focal / number, rel=1e-4)
    assert float(losses["bbox_regression"]) == pytest.approx(smooth / number, rel=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_retinanet_decodes_the_anchors_with_the_highest_scores(protocol: str) -> None:
    """1001 anchors of one map. The last one has the lowest best score, and the highest sum of scores.

    MMDetection leaves that anchor out. torchvision takes the 1000 highest of 5005 scores, here all of class 2 first.
    """
    network = small(RetinaNet, protocol, short_side=4000, long_side=4000)
    logits = torch.full((1, 1001, 5), -9.0)
    logits[0, :, 0] = 2.0 - torch.arange(1001) / 1001
    logits[0, :500, 1] = 3.0
    logits[0, 1000, 2:] = 0.5
    corners = torch.arange(1001)[:, None] * torch.tensor([3.0, 3.0])
    anchors = torch.cat([corners, corners + 3], 1)
    network.detections_per_img = 3000
    head = {"cls_logits": [logits], "bbox_regression": [torch.zeros(1, 1001, 4)]}
    (found,) = network.postprocess_detections(head, [[anchors]], [(4000, 4000)])
    if protocol == "mmdet":
        assert len(found["boxes"]) == 1000 + 500 and not (found["boxes"][:, 0] == 3000).any()
    else:
        assert len(found["boxes"]) == 1000
    assert set(found["labels"].tolist()) == {1, 2}  # as data sets count classes


@pytest.mark.parametrize(("protocol", "relu"), [("mmdet", False), ("torchvision", True)])
def test_retinanets_coarsest_maps(protocol: str, relu: bool) -> None:
    """MMDetection: P6 from the backbone's last map, P7 from P6. torchvision: P6 from P5, and a ReLU before P7."""
    network = small(RetinaNet, protocol)
    last: list[Tensor] = []
    network.backbone.body.layer4.register_forward_hook(lambda *call: last.append(call[2]))
    maps = list(network.eval().backbone(torch.rand(1, 3, 128, 128)).values())
    extra = network.backbone.fpn.extra_blocks
    assert [one.shape[-1] for one in maps] == [16, 8, 4, 2, 1]
    torch.testing.assert_close(maps[3], extra.p6(maps[2] if relu else last[0]))
    torch.testing.assert_close(maps[4], extra.p7(maps[3].relu() if relu else maps[3]))


@pytest.mark.parametrize(
    ("depth", "kernels", "parameters", "operations"),
    [(50, "[3,3,7,7]", 37_743_423, 239_431_282_984), (101, "[3,3,5,7]", 56_735_624, 315_573_949_736)],
)
def test_retinanet_counts_as_the_authors_later_print(
    depth: int, kernels: str, parameters: int, operations: int
) -> None:
    """37.74 M and 239.43 G; 56.74 M and 315.57 G."""
    overrides = ["detector=retinanet", f"backbone=resnet{depth}", "attention=eca", f"attention.kernel_size={kernels}"]
    model, _ = factory.sketch(composition.compose(["experiment=eca_coco", *overrides]), 80)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters
    assert COUNTERS["detection"](model, (800, 1280)) == operations
