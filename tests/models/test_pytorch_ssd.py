"""``protocol=pytorch_ssd`` against the rules of that project, spelled out again with NumPy and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.data import sampling
from attnbench.data.detection.voc import voc
from attnbench.models import factory
from attnbench.models.backbones.imagenet import mobilenetv2
from attnbench.models.detection.pytorch_ssd import BestBoxes
from attnbench.models.detection.ssd import SSD
from attnbench.training.feed import Feed
from attnbench.training.optim import Schedule
from attnbench.training.runtime import Runtime
from tests.data_fixtures import scenes, voc_scenes

CLASSES = 20


def detector(width: float = 0.35, init: str = "default", **options: Any) -> Any:
    torch.manual_seed(0)
    ssd = SSD(protocol="pytorch_ssd", init=init, **options)  # type: ignore[arg-type]
    return ssd.network(mobilenetv2(width=width, rounding=1), CLASSES)


@pytest.fixture(scope="module")
def network() -> Any:
    return detector()


# The network, layer by layer


def test_the_widths_are_whole_numbers_of_channels_cut_off() -> None:
    """int(width c) of 32, 16, 24, 32, 64, 96, 160 and 320; the last convolution keeps 1280."""
    expected = {
        0.35: [11, 5, 8, 11, 22, 33, 56, 112, 1280],
        0.5: [16, 8, 12, 16, 32, 48, 80, 160, 1280],
        0.75: [24, 12, 18, 24, 48, 72, 120, 240, 1280],
        0.3: [9, 4, 7, 9, 19, 28, 48, 96, 1280],
        1.0: [32, 16, 24, 32, 64, 96, 160, 320, 1280],
    }
    blocks = (1, 2, 4, 7, 11, 14, 17)  # the first one of each stage
    for width, channels in expected.items():
        features: Any = mobilenetv2(width=width, rounding=1).get_submodule("features")
        found = [features[0][0].out_channels, *(features[i].conv[-2].out_channels for i in blocks)]
        assert [*found, features[18][0].out_channels] == channels
    rounded: Any = mobilenetv2(width=0.35).get_submodule("features")
    assert [rounded[i].conv[-2].out_channels for i in blocks] == [8, 8, 16, 24, 32, 56, 112]


def test_at_width_1_nothing_is_cut_and_above_it_nothing_can_be() -> None:
    torch.manual_seed(3)
    cut = mobilenetv2(rounding=1, num_classes=7).state_dict()
    torch.manual_seed(3)
    stock = mobilenetv2(num_classes=7).state_dict()
    assert all(torch.equal(cut[key], value) for key, value in stock.items())
    with pytest.raises(ConfigError, match=r"width 1.4 \(backbone.rounding\); use 8"):
        mobilenetv2(width=1.4, rounding=1)


# Parameters of create_mobilenetv2_ssd_lite(21, width_mult=width) in pytorch-ssd, with its own 576 width channels in
# the first heads. At x0.35 it cannot run, as its heads are made for 202 channels.
@pytest.mark.parametrize(("width", "total"), [(0.5, 1_798_692), (0.75, 2_486_268), (1.0, 3_388_228)])
def test_the_network_has_as_many_parameters_as_pytorch_ssds(width: float, total: int) -> None:
    assert sum(p.numel() for p in detector(width).parameters()) == total


def convolutions(module: nn.Module) -> list[tuple[int, int, int, int, bool, bool]]:
    """Of each convolution: channels in and out, kernel, stride, whether it is depthwise, and whether it has a bias."""
    found = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.padding[0] == layer.kernel_size[0] // 2 for layer in found)
    return [
        (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups > 1, c.bias is not None) for c in found
    ]


def inverted(wide: int, hidden: int, out: int, stride: int) -> list[tuple[int, int, int, int, bool, bool]]:
    return [
        (wide, hidden, 1, 1, False, False),
        (hidden, hidden, 3, stride, True, False),
        (hidden, out, 1, 1, False, False),
    ]


def test_every_convolution_of_the_narrowest_network(network: Any) -> None:
    """x0.35: expansions are six times the cut channels; extra blocks do not depend on the width."""
    stem = [(3, 11, 3, 2, False, False), (11, 11, 3, 1, True, False), (11, 5, 1, 1, False, False)]
    stages = [
        *(inverted(5, 30, 8, 2) + inverted(8, 48, 8, 1)),
        *(inverted(8, 48, 11, 2) + inverted(11, 66, 11, 1) * 2),
        *(inverted(11, 66, 22, 2) + inverted(22, 132, 22, 1) * 3),
        *(inverted(22, 132, 33, 1) + inverted(33, 198, 33, 1) * 2),
        *(inverted(33, 198, 56, 2) + inverted(56, 336, 56, 1) * 2),
        *inverted(56, 336, 112, 1),
    ]
    assert convolutions(network.backbone.body) == [*stem, *stages, (112, 1280, 1, 1, False, False)]
    assert convolutions(network.backbone.extra) == [
        *(inverted(1280, 256, 512, 2) + inverted(512, 128, 256, 2)),
        *(inverted(256, 128, 256, 2) + inverted(256, 64, 64, 2)),
    ]
    maps = [198, 1280, 512, 256, 256]
    for part, columns in ((network.head.classification_head, 21), (network.head.regression_head, 4)):
        last = (64, 6 * columns, 1, 1, False, True)
        heads = (((c, c, 3, 1, True, True), (c, 6 * columns, 1, 1, False, True)) for c in maps)
        assert convolutions(part) == [*chain.from_iterable(heads), last]
    assert not any(isinstance(layer, (nn.ReLU, nn.Dropout)) for layer in network.modules())
    clipped = sum(isinstance(layer, nn.ReLU6) for layer in network.modules())
    assert clipped == 1 + 1 + 2 * 16 + 1 + 2 * 4 + 2 * 5  # stem, first block, other blocks, last, extra, heads
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_the_maps_have_the_sides_of_the_default_boxes(network: Any) -> None:
    with torch.no_grad():
        maps = network.eval().backbone(torch.zeros(1, 3, 300, 300))
    assert [tuple(one.shape[1:]) for one in maps.values()] == [
        *((198, 19, 19), (1280, 10, 10), (512, 5, 5), (256, 3, 3), (256, 2, 2), (64, 1, 1)),
    ]


# Initial weights


def uniform(values: Tensor, bound: float) -> None:
    """Check that values spread evenly between -bound and bound."""
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.5 if values.numel() < 200 else 0.1)


@pytest.mark.parametrize("init", ["default", "xavier"])
def test_every_kind_of_layer_begins_as_in_train_ssd(init: str) -> None:
    model = detector(init=init)
    seen = biases = 0
    for part in (model.backbone.extra, model.head):
        for layer in (layer for layer in part.modules() if isinstance(layer, nn.Conv2d)):
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
            out = layer.out_channels * layer.kernel_size[0] ** 2  # torch counts all outputs, grouped or not
            bound = 1 / math.sqrt(fan_in) if init == "default" else math.sqrt(6 / (fan_in + out))
            uniform(layer.weight, bound)
            if layer.bias is not None:
                assert layer.bias.std() > 0
                uniform(layer.bias, 1 / math.sqrt(fan_in))
                biases += 1
            seen += 1
    assert (seen, biases) == (12 + 22, 22)
    for layer in (layer for layer in model.backbone.body.modules() if isinstance(layer, nn.Conv2d)):
        out = layer.out_channels * layer.kernel_size[0] ** 2  # normal with variance 2 / (k k out)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / out), rel=0.35)
        assert layer.weight.abs().max() > 1.8 * math.sqrt(2 / out)
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize("init", ["default", "xavier"])
def test_by_torchvisions_protocol_xaviers_biases_are_zero(init: str) -> None:
    torch.manual_seed(0)
    model: Any = SSD(size=96, init=init).network(mobilenetv2(width=0.35), 5)  # type: ignore[arg-type]
    biases = [layer.bias for layer in model.head.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None]
    assert len(biases) == 12
    assert all((bias == 0).all() == (init == "xavier") for bias in biases)


# Assignment and losses


def assigned(overlaps: np.ndarray) -> list[int]:
    """assign_priors of pytorch-ssd, for overlaps (objects, boxes): the object of each box, -1 for background."""
    best_overlap = overlaps.max(0).copy()
    best_object = overlaps.argmax(0).copy()
    for number, box in enumerate(overlaps.argmax(1)):
        best_object[box] = number
    for box in overlaps.argmax(1):
        best_overlap[box] = 2
    return [int(o) if least >= 0.5 else -1 for o, least in zip(best_object, best_overlap, strict=True)]


def test_boxes_are_assigned_by_hand() -> None:
    overlaps = np.array(
        [
            [0.70, 0.50, 0.49, 0.10, 0.00, 0.00],
            [0.60, 0.20, 0.30, 0.40, 0.00, 0.00],  # its best box is the first one's
            [0.00, 0.00, 0.00, 0.00, 0.05, 0.00],  # gets a box that hardly overlaps it
        ]
    )
    assert assigned(overlaps) == [1, 0, -1, -1, 2, -1]
    assert BestBoxes()(torch.from_numpy(overlaps)).tolist() == [1, 0, -1, -1, 2, -1]
    random = np.random.default_rng(0)
    for _ in range(50):
        overlaps = random.uniform(0, 0.8, (6, 9))  # with more objects than that, some share a box
        assert BestBoxes()(torch.from_numpy(overlaps)).tolist() == assigned(overlaps)


def losses(
    logits: np.ndarray, offsets: np.ndarray, labels: np.ndarray, aims: np.ndarray, ratio: int = 3
) -> tuple[float, float]:
    """MultiboxLoss of pytorch-ssd: of boxes and of classes."""
    logs = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    used = labels > 0
    for image in range(len(labels)):
        positive = labels[image] > 0
        background = np.where(positive, -np.inf, -logs[image, :, 0])
        hardest = np.argsort(-background)[: ratio * positive.sum()]
        used[image][hardest] = True
    kinds = -np.take_along_axis(logs, labels[..., None], 2)[..., 0][used].sum()
    difference = np.abs(offsets - aims)[labels > 0]
    boxes = np.where(difference < 1, difference**2 / 2, difference - 0.5).sum()
    return boxes / (labels > 0).sum(), kinds / (labels > 0).sum()


@pytest.mark.parametrize("positives", [(1, 2), (3, 0), (5, 2)], ids=["few", "none in one image", "more than a quarter"])
def test_losses_are_sums_over_an_images_hardest_negatives(network: Any, positives: tuple[int, int]) -> None:
    """Twelve default boxes; with five positives an image has only seven negatives instead of fifteen."""
    random = np.random.default_rng(sum(positives))
    logits, offsets = random.normal(0, 2, (2, 12, 4)), random.normal(0, 1.5, (2, 12, 4))
    corners = random.uniform(0, 200, (12, 2))
    priors = np.concatenate([corners, corners + random.uniform(30, 90, (12, 2))], 1)
    corners = random.uniform(0, 200, (2, 3, 2))
    objects = np.concatenate([corners, corners + random.uniform(30, 90, (2, 3, 2))], 2)
    kinds = random.integers(1, 4, (2, 3))
    matches = np.full((2, 12), -1)
    for image, count in enumerate(positives):
        matches[image, random.choice(12, count, replace=False)] = random.integers(0, 3, count)
    labels = np.where(matches < 0, 0, np.take_along_axis(kinds, matches.clip(0), 1))
    boxes = np.take_along_axis(objects, matches.clip(0)[..., None], 1)
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    prior_centre, prior_side = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    aims = np.concatenate([(centre - prior_centre) / prior_side / 0.1, np.log(side / prior_side) / 0.2], 2)
    targets = [{"boxes": torch.tensor(b), "labels": torch.tensor(k)} for b, k in zip(objects, kinds, strict=True)]
    found = network.compute_loss(
        targets,
        {"cls_logits": torch.tensor(logits), "bbox_regression": torch.tensor(offsets)},
        [torch.tensor(priors)] * 2,
        list(torch.tensor(matches)),
    )
    expected = losses(logits, offsets, labels, aims)
    assert found["bbox_regression"].item() == pytest.approx(expected[0], rel=1e-6)
    assert found["classification"].item() == pytest.approx(expected[1], rel=1e-6)


def test_a_residual_of_one_tenth_and_one_certain_box_by_hand(network: Any) -> None:
    """Smooth L1 of 0.1 in one of four offsets is 0.005; five boxes without preference cost log 2 for each of four."""
    prior = torch.tensor([[100.0, 100.0, 160.0, 160.0]]).expand(5, 4)
    outputs = {"cls_logits": torch.zeros(1, 5, 2), "bbox_regression": torch.zeros(1, 5, 4)}
    outputs["bbox_regression"][0, 2, 0] = 0.1
    target = {"boxes": prior[:1], "labels": torch.tensor([1])}
    found = network.compute_loss([target], outputs, [prior], [torch.tensor([-1, -1, 0, -1, -1])])
    assert found["bbox_regression"].item() == pytest.approx(0.005)
    assert found["classification"].item() == pytest.approx(4 * math.log(2))


# Detections


def detections(network: Any, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """The detections among boxes (n, 4) with probabilities (n, classes), the background's first."""
    outputs = {"cls_logits": scores.log()[None], "bbox_regression": torch.zeros(1, len(boxes), 4)}
    (found,) = network.postprocess_detections(outputs, [boxes], [(300, 300)])
    return dict(found)


def test_two_hundred_candidates_of_each_class_and_no_limit_over_classes(network: Any) -> None:
    """450 boxes that do not overlap: each of two classes keeps its best 200, and there are 400 detections."""
    at = torch.arange(450)
    corners = torch.stack([at % 30 * 10, at // 30 * 10], 1).float()
    boxes = torch.cat([corners, corners + 8], 1)
    first, second = 0.1 + at / 1000, 0.55 - at / 1000
    scores = torch.zeros(450, 4)
    scores[:, 1], scores[:, 2] = first * 0.6, second * 0.6
    scores[:, 3], scores[:, 0] = 0.005, 0.995 - scores[:, 1] - scores[:, 2]
    found = detections(network, boxes, scores)
    assert len(found["scores"]) == 400 and sorted(set(found["labels"].tolist())) == [1, 2]
    assert (found["scores"].diff() <= 0).all()
    for label, best in ((1, boxes[250:]), (2, boxes[:200])):
        kept = found["boxes"][found["labels"] == label]
        assert {tuple(box) for box in kept.tolist()} == {tuple(box) for box in best.tolist()}


def test_suppression_score_and_borders_by_hand(network: Any) -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 100.0, 100.0],
            [0.0, 0.0, 100.0, 46.0],  # overlaps the first by 0.46: suppressed
            [0.0, 56.0, 100.0, 100.0],  # by 0.44: kept
            [-50.0, 250.0, 40.0, 350.0],  # exceeds the image and stays as it is
            [200.0, 200.0, 210.0, 210.0],  # a score of exactly 0.01
            [220.0, 220.0, 230.0, 230.0],
        ]
    )
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.009999], [0.0101]])
    other = torch.tensor([[0.001], [0.1], [0.001], [0.001], [0.001], [0.001]])
    found = detections(network, boxes, torch.cat([1 - scores - other, scores, other], 1))
    where = [boxes.tolist().index(box) for box in found["boxes"].tolist()]
    assert list(zip(where, found["labels"].tolist(), strict=True)) == [(0, 1), (2, 1), (3, 1), (1, 2), (5, 1)]


def test_boxes_are_decoded_with_variances_and_scaled_to_the_image(network: Any) -> None:
    """The third column and second row of the map of side 3, whose boxes are 195 pixels wide and 100 apart."""
    image = torch.rand(3, 150, 600)
    heads = {"cls_logits": torch.zeros(1, 3000, CLASSES + 1), "bbox_regression": torch.zeros(1, 3000, 4)}
    at = (361 + 100 + 25) * 6 + (1 * 3 + 2) * 6  # the small square
    heads["cls_logits"][0, :, 0] = 20
    heads["cls_logits"][0, at, 7] = 30
    heads["bbox_regression"][0, at] = torch.tensor([1.0, -0.5, 0.0, 0.0])
    network.eval()
    network.head.forward = lambda maps: heads
    try:
        with torch.no_grad():
            (found,) = network([image])
    finally:
        del network.head.forward
    x, y = 250 + 0.1 * 195, 150 - 0.05 * 195
    corners = [(x - 97.5) * 2, (y - 97.5) / 2, (x + 97.5) * 2, (y + 97.5) / 2]
    assert found["labels"].tolist() == [7]
    assert found["boxes"][0].tolist() == pytest.approx(corners, abs=0.01)


# Pixels


class Scripted(Random):
    """Random numbers that leave an image as it is: six for the colours, one to expand, to crop and to mirror each."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter([0.9] * 6 + [0.9, 0.1, 0.1])

    def random(self) -> float:
        return next(self.numbers)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) resized by the rule of OpenCV's INTER_LINEAR: nothing but the two nearest pixels counts."""
    for axis in (0, 1):
        length = image.shape[axis]
        at = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low_pixels, high_pixels = (image.take(rows, axis) for rows in (low, np.minimum(low + 1, length - 1)))
        image = low_pixels * (1 - share) + high_pixels * share
    return image


def test_a_picture_without_augmentation_is_equal_in_training_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are the resized picture with mean 127 and standard deviation 128, from the file to the network's input."""
    voc_scenes(tmp_path, images=8)
    data = voc(root=str(tmp_path), train=["VOC2007/trainval"], val=["VOC2007/test"], augment="pytorch_ssd", crop=64)
    monkeypatch.setattr(sampling, "stream", lambda *key: Scripted())
    transform = detector(size=64).transform
    with Runtime(device="cpu").start() as process:
        feed = Feed(None, process, data.mean, data.std)  # type: ignore[arg-type]
        for index in range(3):
            number = int(scenes(data.train).numbers[index])
            inputs, boxes = [], []
            for draw in ((0, 0), None):
                image, target = scenes(data.train).read(index, draw)
                images, targets = transform([feed.normalised(image[None])[0]], [target])
                inputs.append(images.tensors[0])
                boxes.append(targets[0]["boxes"][~target["difficult"]])
            plain = scenes(data.train).source.image(number).astype(np.float64)
            expected = (resized(plain, 64) - 127) / 128
            for one in inputs:
                assert one.permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)
            assert torch.allclose(boxes[0], boxes[1], atol=1e-4) and len(boxes[0]) <= index
            assert plain.shape[:2] != (64, 64)


def test_the_feed_keeps_floats_outside_of_bytes_and_leaves_the_batch_alone() -> None:
    image = torch.tensor([-48.5, 0.0, 127.25, 255.0, 430.0]).expand(3, 2, 5)
    before = image.clone()
    for channels_last in (False, True):
        with Runtime(device="cpu", channels_last=channels_last).start() as process:
            feed = Feed(None, process, (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
            given = image[None].to(memory_format=torch.channels_last) if channels_last else image[None].contiguous()
            assert torch.allclose(feed.normalised(given), before / 255)
            assert torch.equal(given[0], before)


# The experiment


def test_the_experiment_trains_everything_from_scratch_at_the_papers_rate() -> None:
    """The rate after 0, 50, 100, 150 and 199 of 200 epochs: 0.01 (1 + cos) / 2, by hand."""
    config: Config = composition.compose(["experiment=sb_voc", "backbone.width=0.35", "attention=sb"])
    assert config.tree["backbone"]["weights"] is None and config.tree["backbone"]["pretrained"] is False
    model: Any = factory.sketch(config, CLASSES)[0]
    assert type(model).__name__ == "SingleShotByPytorchSSD"
    assert model.backbone.body.get_submodule("features.0.0").out_channels == 11
    assert all(p.requires_grad for p in model.parameters())
    schedule: Schedule = config.build("schedule")
    rates = [schedule.rate(epoch, 32) for epoch in (0, 50, 100, 150, 199)]
    assert rates == pytest.approx([0.01, 0.0085355339, 0.005, 0.0014644661, 6.1683e-7], rel=1e-4)
    (group,) = schedule.optimizer(model).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 4e-5)
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("protocol", ["torchvision", "pytorch_ssd"])
def test_a_batch_with_and_without_boxes_trains_every_parameter(protocol: str, compose: Callable[..., Config]) -> None:
    config = compose("task=detection", f"detector.protocol={protocol}", "attention=eca")
    torch.manual_seed(0)
    model = factory.network(config, 10)[0]
    images = list(torch.rand(2, 3, 64, 64))
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    one = {"boxes": torch.tensor([[4.0, 6.0, 40.0, 30.0]]), "labels": torch.tensor([3])}
    for targets in ([nothing, nothing], [nothing, one]):
        model.zero_grad()
        found = model(images, targets)
        torch.stack([*found.values()]).sum().backward()
        assert all(value.isfinite() for value in found.values())
        grads = [p.grad for p in model.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
