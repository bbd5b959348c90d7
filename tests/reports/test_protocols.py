"""Rows and experiments against the rules of their sources, each spelled out here a second time.

The sources are the papers and the public projects that they name: the authors' ECANet, PyTorch's ImageNet example,
pytorch-cifar, and the CBAM and GSoP projects.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from torchvision import transforms

from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.data import sampling
from attnbench.data.dataset import Batch
from attnbench.data.loader import Loader
from attnbench.models import factory
from attnbench.models.attention.eca import EfficientChannelAttention
from attnbench.models.insertion import Attended
from attnbench.reports import paper_tables
from attnbench.training.engine import pace
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process, Runtime
from tests.conftest import ROOT
from tests.data_fixtures import cifar_batches, image_folder, photo, tensors

PAPERS = Path(os.environ.get("ATTNBENCH_PAPERS", ROOT.parent / "shared" / "papers"))


@cache
def composed(*overrides: str) -> Config:
    return composition.compose(overrides)


def row(table: str, label: str) -> Config:
    """A table's row, composed."""
    (found,) = [row for row in paper_tables.load(table).rows if row.label == label]
    assert found.overrides is not None
    return composed(*found.overrides)


# The kernels of ECA

# By row: printed numbers, and k by stage, or one k for all. The names of the authors' files.
KERNELS: dict[tuple[str, str], tuple[str, int | list[int]]] = {
    ("eca/1", "ECA"): ("77.43", 3),  # "k = 3" is the row's own cell
    ("eca/2", "ECA-Net ResNet-50"): ("77.48", [3, 5, 5, 7]),
    ("eca/2", "ECA-Net ResNet-101"): ("78.65", [3, 3, 5, 7]),
    ("eca/2", "ECA-Net ResNet-152"): ("78.92", [3, 3, 5, 7]),
    ("eca/2", "ECA-Net MobileNetV2"): ("72.56", [1, 1, 1, 1, 3, 3, 3]),
    ("eca/3", "ECA-Net50"): ("77.48", [3, 5, 5, 7]),
    ("eca/3", "ECA-Net101"): ("78.65", [3, 3, 5, 7]),
    ("eca/4", "Faster R-CNN ResNet-50 + ECA"): ("38.0", 5),
    ("eca/4", "Faster R-CNN ResNet-101 + ECA"): ("40.3", [3, 3, 5, 7]),
    ("eca/4", "Mask R-CNN ResNet-50 + ECA"): ("39.0", [3, 3, 7, 7]),
    ("eca/4", "Mask R-CNN ResNet-101 + ECA"): ("41.3", [3, 3, 5, 7]),
    ("eca/5", "ResNet-50 + ECA"): ("35.6", [3, 3, 7, 7]),
    ("eca/5", "ResNet-101 + ECA"): ("37.4", [3, 3, 5, 7]),
    ("eca/later", "ECA-Net18"): ("70.92", [3, 5, 7, 7]),
    ("eca/later", "ECA-Net34"): ("74.21", [3, 3, 5, 7]),
    ("eca/later", "RetinaNet ResNet-50 + ECA"): ("37.3", [3, 3, 7, 7]),
    ("eca/later", "RetinaNet ResNet-101 + ECA"): ("39.1", [3, 3, 5, 7]),
}
every_row_of_eca = pytest.mark.parametrize(("table", "label"), KERNELS)


@every_row_of_eca
def test_a_row_of_eca_has_the_kernels_of_the_file_that_printed_it(table: str, label: str) -> None:
    printed, kernels = KERNELS[table, label]
    (found,) = [row for row in paper_tables.load(table).rows if row.label == label]
    config = row(table, label)
    assert printed in found.printed.values()
    assert (config.choices["attention"], config.tree["attention"]["kernel_size"]) == ("eca", kernels)


def test_no_row_of_eca_is_without_kernels_in_the_list_above() -> None:
    tables = [paper_tables.load(name) for name in paper_tables.ids() if name.startswith("eca/")]
    rows = [(table.id, row.label) for table in tables for row in table.rows if "attention=eca" in (row.overrides or [])]
    assert set(rows) == set(KERNELS)


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@every_row_of_eca
def test_the_network_of_a_row_has_these_kernels_block_by_block(table: str, label: str) -> None:
    config = row(table, label)
    model, _ = factory.counting_sketch(config)
    found = [m.conv.weight.shape[-1] for m in model.modules() if isinstance(m, EfficientChannelAttention)]
    blocks = BLOCKS.get(config.tree["backbone"].get("depth"), (1, 2, 3, 4, 3, 3, 1))
    kernels = KERNELS[table, label][1]
    stages = kernels if isinstance(kernels, list) else [kernels] * len(blocks)
    assert found == [k for k, count in zip(stages, blocks, strict=True) for _ in range(count)]


def test_mobilenetv2_has_k_1_below_96_channels_and_else_3() -> None:
    model, _ = factory.counting_sketch(row("eca/2", "ECA-Net MobileNetV2"))
    sites: list[Any] = [module for module in model.modules() if isinstance(module, Attended)]
    assert len(sites) == 17
    for site in sites:
        assert site.attention.conv.weight.shape[-1] == (1 if site.trunk.num_features < 96 else 3)


def written(names: str, cell: str) -> list[tuple[str, list[int]]]:
    """A line of the protocols' table: texts with printed numbers, each with its kernels; one or two to a line."""
    if cell.startswith("1 below 96"):
        return [(names, [1, 1, 1, 1, 3, 3, 3])]
    kernels = [[int(k) for k in re.findall(r"\d+", part)] for part in re.split("[;/]", cell)]
    two = re.search(r"AP (\S+) / (\S+)", names)
    parts = list(two.groups()) if two else names.split(";")
    return list(zip(parts, kernels, strict=True)) if len(kernels) > 1 else [(names, kernels[0])]


@pytest.mark.skipif(not (PAPERS / "protocols.md").is_file(), reason="no page of protocols beside the checkout")
def test_the_list_above_is_the_one_of_the_protocols() -> None:
    lines = (PAPERS / "protocols.md").read_text("utf-8").splitlines()
    start = lines.index("| printed | k by stage, by the file's name |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 :]]
    table = [entry for names, cell in cells[: cells.index([""])] for entry in written(names, cell)]
    assert len(table) == 12
    for key, (printed, kernels) in KERNELS.items():
        theirs = [k for names, k in table if re.search(rf"\b{re.escape(printed)}\b", names)]
        ours = kernels if isinstance(kernels, list) else [kernels]
        assert theirs == ([] if key == ("eca/1", "ECA") else [ours]), key


# Networks


def test_gsop_has_the_large_maps_of_its_authors_network() -> None:
    config = row("eca/2", "GSoP-Net1 ResNet-50")
    with torch.device("meta"):
        model = config.build("backbone", num_classes=1000)
    sizes: dict[str, tuple[int, ...]] = {}
    for name in ("layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: sizes.update({name: y.shape[2:]}))
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert sizes == {"layer3": (14, 14), "layer4": (14, 14)}
    assert all(module.dilation == (1, 1) for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("depth", [50, 101])
def test_cbam_is_its_authors_module(depth: int) -> None:
    config = row("eca/2", f"CBAM ResNet-{depth}")
    with torch.device("meta"):
        model, sites = factory.network(config, 1000)
    assert len(sites) == sum(BLOCKS[depth])
    for site in sites:
        gate: Any = model.get_submodule(f"{site.path}.attention")
        first, _, last = gate.channel.mlp
        assert first.bias is not None and last.bias is not None and first.out_features == site.out_channels // 16
        assert gate.spatial.norm.momentum == 0.01 and gate.spatial.conv.kernel_size == (7, 7)


def test_resnext_101_is_the_plain_network() -> None:
    config = row("eca/3", "ResNeXt-101")
    assert config.choices["attention"] == "none"
    assert (config.tree["backbone"]["groups"], config.tree["backbone"]["width_per_group"]) == (32, 4)


@pytest.mark.parametrize("label", ["MobileNetV2", "SENet MobileNetV2", "ECA-Net MobileNetV2"])
def test_mobilenetv2_has_the_dropout_and_the_classifier_of_the_authors_file(label: str) -> None:
    torch.manual_seed(0)
    model = row("eca/2", label).build("backbone", num_classes=1000)
    dropout, linear = model.classifier
    assert dropout.p == 0.25
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01) and not linear.bias.any()


# Learning rates

IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000}
RATES: dict[str, tuple[str, int, Callable[[int, int], float]]] = {  # data, batch, rate at step s of epoch e
    # the paper: 0.1, "decreased by a factor of 10 per 30 epochs"; main.py: lr * (0.1 ** (epoch // 30))
    "eca_imagenet": ("imagenet", 256, lambda e, s: 0.1 * 0.1 ** (e // 30)),
    # light_main.py: lr * (0.98 ** epoch)
    "eca_imagenet_mobilenetv2": ("imagenet", 96, lambda e, s: 0.045 * 0.98**e),
    # CosineAnnealingLR(T_max=200), one step of it an epoch
    "sb_cifar10": ("cifar10", 128, lambda e, s: 0.05 * (1 + math.cos(math.pi * e / 200))),
    # "300 epochs using linear-decay learning rate policy, decreased from 0.1 to 0": 5005 steps an epoch
    "sb_imagenet": ("imagenet", 256, lambda e, s: 0.1 * (1 - (5005 * e + s) / (300 * 5005))),
}
EPOCHS = {"eca_imagenet": 100, "eca_imagenet_mobilenetv2": 400, "sb_cifar10": 200, "sb_imagenet": 300}
every_experiment = pytest.mark.parametrize("name", RATES)


class Counted:
    """A split that has a number of images and nothing else."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images


def rates(name: str, at: Iterable[tuple[int, int]]) -> list[float]:
    """The rates that training sets at these epochs and steps, counted from 0."""
    config = composed(f"experiment={name}")
    schedule, batch = config.build("schedule"), config.tree["batch_size"]
    steps = len(Loader(Counted(IMAGES[RATES[name][0]]), batch_size=batch, seed=0, train=True))  # type: ignore[arg-type]
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=99.0)
    state: Any = type("State", (), {"optimizer": optimizer, "annealing": []})
    found = []
    for epoch, step in at:
        progress = epoch + step / steps
        pace(state, progress, schedule.rate(progress, batch, epoch * steps + step))
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]["lr"])
    return found


def steps_of(name: str) -> int:
    data, batch, _ = RATES[name]
    return math.ceil(IMAGES[data] / batch)


@every_experiment
def test_the_rates_of_the_first_600_steps_and_around_every_epoch_are_those_of_the_source(name: str) -> None:
    steps, rule = steps_of(name), RATES[name][2]
    assert composed(f"experiment={name}").tree["schedule"]["epochs"] == EPOCHS[name]
    first = [divmod(step, steps) for step in range(600)]
    ends = [(epoch, step) for epoch in range(EPOCHS[name]) for step in (0, 1, steps // 2, steps - 1)]
    found = rates(name, [*first, *ends])
    np.testing.assert_allclose(found, [rule(*at) for at in [*first, *ends]], rtol=1e-9)


def test_the_resnets_rate_drops_by_10_with_the_first_step_of_epochs_30_60_and_90() -> None:
    last = steps_of("eca_imagenet") - 1
    found = rates("eca_imagenet", [(29, last), (30, 0), (59, last), (60, 0), (89, last), (90, 0)])
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_there_are_as_many_steps_as_a_data_loader_that_drops_nothing_has() -> None:
    assert [steps_of(name) for name in RATES] == [5005, 13346, 391, 5005]


@every_experiment
def test_there_is_no_warm_up_clipping_average_or_label_smoothing(name: str) -> None:
    config = composed(f"experiment={name}")
    options = ("warmup_epochs", "warmup_steps", "clip_grad_norm", "ema_decay", "no_decay")
    assert not any(config.tree["schedule"][option] for option in options)
    logits, labels = torch.randn(7, 10, dtype=torch.float64), torch.arange(7)
    loss = config.build("task").loss(lambda _: logits, Batch(torch.zeros(7), labels, 1.0))
    chosen = np.exp(logits.numpy())[np.arange(7), labels.numpy()] / np.exp(logits.numpy()).sum(1)
    assert loss.item() == pytest.approx(-np.log(chosen).mean(), rel=1e-12)


# The optimizer, parameter by parameter

NAMES = """
conv1.weight bn1.weight bn1.bias
layer1.0.conv1.trunk.weight layer1.0.conv1.attention.lambda_ layer1.0.conv1.attention.branch.reduce.weight
layer1.0.conv1.attention.branch.norm1.weight layer1.0.conv1.attention.branch.norm1.bias
layer1.0.conv1.attention.branch.expand.weight layer1.0.conv1.attention.branch.norm2.weight
layer1.0.conv1.attention.branch.norm2.bias layer1.0.bn1.weight layer1.0.bn1.bias
layer1.0.conv2.weight layer1.0.bn2.weight layer1.0.bn2.bias
layer2.0.conv1.weight layer2.0.bn1.weight layer2.0.bn1.bias layer2.0.conv2.weight layer2.0.bn2.weight layer2.0.bn2.bias
layer3.0.conv1.weight layer3.0.bn1.weight layer3.0.bn1.bias layer3.0.conv2.weight layer3.0.bn2.weight layer3.0.bn2.bias
fc.weight fc.bias
"""
SMALL = ["backbone=resnet20", "backbone.depth=8", "attention=sb", "placement.roles=[conv1]", "placement.stages=[1]"]


def by_parameter(*overrides: str) -> dict[str, dict[str, Any]]:
    """The options with which the optimizer updates each parameter of a small network, by name."""
    config = composed(*overrides)
    model, _ = factory.network(config, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = config.build("schedule").optimizer(model).param_groups
    found = [
        (names[id(p)], {k: v for k, v in group.items() if k != "params"}) for group in groups for p in group["params"]
    ]
    assert len(found) == len(names) == len(dict(found))
    return dict(found)


DECAYS = {"eca_imagenet": 1e-4, "eca_imagenet_mobilenetv2": 4e-5, "sb_cifar10": 5e-4, "sb_imagenet": 4e-5}


@every_experiment
def test_every_parameter_has_the_experiments_decay_and_momentum(name: str) -> None:
    """SGD as in the sources' scripts: norms, biases and lambda decay, too."""
    lacking = ["~backbone.dropout"] if name == "eca_imagenet_mobilenetv2" else []  # the small network has none
    found = by_parameter(f"experiment={name}", *SMALL, *lacking)
    assert set(found) == set(NAMES.split())
    for options in found.values():
        wanted = {"weight_decay": DECAYS[name], "momentum": 0.9, "dampening": 0, "nesterov": False}
        assert {key: options[key] for key in wanted} == wanted


def test_no_decay_spares_lambda_alone() -> None:
    found = by_parameter("experiment=sb_cifar10", *SMALL, "schedule.no_decay=[lambda_]")
    spared = {name for name, options in found.items() if options["weight_decay"] == 0}
    assert spared == {"layer1.0.conv1.attention.lambda_"} and set(found) == set(NAMES.split())
    assert {o["weight_decay"] for name, o in found.items() if name not in spared} == {5e-4}
    assert {o["momentum"] for o in found.values()} == {0.9}


# Initialisation by kind of layer


def is_normal(weight: Tensor, std: float) -> bool:
    """Whether weights are as of a normal distribution around 0."""
    return is_drawn_from(weight, stats.norm(0, std))


def is_uniform(weight: Tensor, bound: float) -> bool:
    """Whether weights are as of a uniform distribution on [-bound, bound]."""
    return weight.abs().max().item() <= bound and is_drawn_from(weight, stats.uniform(-bound, 2 * bound))


def is_drawn_from(weight: Tensor, distribution: Any) -> bool:
    """By the deviation, and by Kolmogorov and Smirnov's test, which refuses what is right once in 100,000 times."""
    values = weight.detach().double().flatten().numpy()[:50_000]
    of_that_width = abs(values.std() / distribution.std() - 1) < 5 / np.sqrt(2 * len(values))
    return bool(of_that_width and stats.kstest(values, distribution.cdf).pvalue > 1e-5)


def test_the_test_of_distributions_tells_them_apart() -> None:
    torch.manual_seed(0)
    normal, uniform = torch.randn(2000), (2 * torch.rand(2000) - 1) * math.sqrt(3)  # of the same deviation
    assert is_normal(normal, 1) and is_uniform(uniform, math.sqrt(3))
    assert not is_normal(uniform, 1) and not is_uniform(normal, 4) and not is_normal(normal, 1.2)


def built(*overrides: str) -> nn.Module:
    torch.manual_seed(0)
    model, _ = factory.network(composed(*overrides), 10)
    return model


def kinds(model: nn.Module, kind: type[nn.Module], where: str = "") -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, kind) and where in name]


def fan_in(layer: Any) -> int:
    return int(layer.weight[0].numel())


NETWORKS = ["resnet50", "resnet18", "mobilenetv2", "mobilenetv2_cifar"]


@pytest.mark.parametrize("backbone", NETWORKS)
def test_convolutions_are_initialised_as_in_the_source(backbone: str) -> None:
    """torchvision and ECANet: normal with variance 2 / (k k C_out); pytorch-cifar: PyTorch's uniform default."""
    model = built(f"backbone={backbone}", "dataset=synthetic", "attention=none")
    convolutions = kinds(model, nn.Conv2d)
    assert len(convolutions) >= 20
    for name, conv in convolutions:
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        if backbone == "mobilenetv2_cifar":
            assert is_uniform(conv.weight, 1 / math.sqrt(fan_in(conv))), name
        else:
            assert is_normal(conv.weight, math.sqrt(2 / fan_out)), name


@pytest.mark.parametrize("backbone", NETWORKS)
def test_norms_start_at_1_and_0_and_the_classifier_as_in_the_source(backbone: str) -> None:
    """No norm starts at 0, not even a block's last one. MobileNetV2's classifier is N(0, 0.01), the others uniform."""
    model = built(f"backbone={backbone}", "dataset=synthetic", "attention=none")
    for _, norm in kinds(model, nn.BatchNorm2d):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)
    ((_, linear),) = kinds(model, nn.Linear)
    if backbone == "mobilenetv2":
        assert is_normal(linear.weight, 0.01) and not linear.bias.any()
    else:
        bound = 1 / math.sqrt(linear.in_features)
        assert is_uniform(linear.weight, bound) and linear.bias.any() and linear.bias.abs().max() <= bound


def test_ecas_convolutions_are_uniform_by_their_k() -> None:
    model = built("backbone=resnet50", "dataset=synthetic", "attention=eca", "attention.kernel_size=3")
    weights = torch.cat([conv.weight.flatten() for _, conv in kinds(model, nn.Conv1d)])
    assert len(weights) == 48 and weights.abs().max() <= 1 / math.sqrt(3) and weights.abs().max() > 0.9 / math.sqrt(3)
    assert is_uniform(weights, 1 / math.sqrt(3))


@pytest.mark.parametrize("attention", ["se", "sb", "se_layer"])
def test_the_layers_of_se_and_sb_are_uniform_without_biases_and_lambda_is_a_tenth(attention: str) -> None:
    model = built("backbone=mobilenetv2", "backbone.width=0.35", "dataset=synthetic", f"attention={attention}")
    layers = kinds(model, nn.Linear, "attention")
    assert len(layers) == 2 * (17 if attention == "se" else 50)
    for name, layer in layers:
        assert is_uniform(layer.weight, 1 / math.sqrt(layer.in_features)) and layer.bias is None, name
    for _, norm in kinds(model, nn.BatchNorm1d):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    lambdas = [p for name, p in model.named_parameters() if name.endswith("lambda_")]
    assert len(lambdas) == (50 if attention == "sb" else 0)
    assert all((value == 0.1).all() for value in lambdas)


# Images


@pytest.fixture(scope="module")
def process() -> Iterable[Process]:
    with Runtime(device="cpu").start() as started:
        yield started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures wide and tall, as PNG, which decodes to the same pixels everywhere."""
    root = image_folder(tmp_path_factory.mktemp("pictures"), per_class=2)
    for side in ("train", "val"):
        for k, (width, height) in enumerate([(500, 375), (333, 500)]):
            photo(k, width, height).save(root / side / "cat" / f"{k}.PNG")
            (root / side / "cat" / f"{k}.jpg").unlink()
    return root


IMAGENET = {"eca_imagenet": False, "eca_imagenet_mobilenetv2": False, "sb_imagenet": True}  # whether 256 is both sides
every_imagenet = pytest.mark.parametrize("name", IMAGENET)


@every_imagenet
def test_validation_images_are_those_of_the_sources_transforms(name: str, pictures: Path, process: Process) -> None:
    data = composed(f"experiment={name}", f"dataset.root={pictures}").build("dataset")
    feed = Feed(Loader(data.val, batch_size=2, seed=0, train=False), process, data.mean, data.std)
    images, _ = tensors(next(iter(feed.epoch(0))))
    theirs = transforms.Compose(
        [
            transforms.Resize((256, 256) if IMAGENET[name] else 256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    for k, image in enumerate(images):
        with Image.open(pictures / "val" / "cat" / f"{k}.PNG") as opened:
            torch.testing.assert_close(image, theirs(opened.convert("RGB")), rtol=0, atol=1e-5)


@every_imagenet
def test_training_crops_are_distributed_as_torchvisions(name: str, pictures: Path) -> None:
    """Over 2,000 draws: area, aspect, position and mirroring of RandomResizedCrop(224) and RandomHorizontalFlip()."""
    data = composed(f"experiment={name}", f"dataset.root={pictures}").build("dataset")
    crops, (width, height) = data.train.crops, (500, 375)
    views = [crops.train(width, height, sampling.stream("crop", 0, 0, k)) for k in range(2000)]
    assert {(view.resized, view.side, view.corner) for view in views} == {((224, 224), 224, (0, 0))}
    torch.manual_seed(0)
    picture = torch.zeros(3, height, width)
    drawn = [transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    ours = np.array([view.part for view in views], dtype=float)
    theirs = np.array([(left, top, w, h) for top, left, h, w in drawn], dtype=float)
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    assert abs(sum(view.mirrored for view in views) - 1000) < 4 * math.sqrt(500)
    smallest = (ours[:, 2] * ours[:, 3]).min() / (width * height)
    assert 0.075 < smallest < 0.1


def cropped(image: np.ndarray, pad: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of a zero-padded image, mirrored or not, with its top and left."""
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    places = [(top, left) for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
    return {
        np.ascontiguousarray(crop).tobytes(): (top, left, mirrored)
        for top, left in places
        for mirrored in (False, True)
        for crop in [padded[:, top : top + 32, left : left + 32][:, :, :: -1 if mirrored else 1]]
    }


CIFAR = ["experiment=sb_cifar10", "dataset.verify=false"]


@pytest.mark.parametrize(("extra", "side"), [([], 36), (["dataset.pad=4"], 40)])
def test_cifar_is_padded_to_36_as_in_the_text_or_to_40(extra: Sequence[str], side: int, tmp_path: Path) -> None:
    """Over 2,000 draws each of the (side - 31)^2 places is drawn alike, and half of the images are mirrored."""
    data = composed(*CIFAR, f"dataset.root={cifar_batches(tmp_path)}", *extra).build("dataset")
    originals, _ = tensors(next(iter(Loader(data.train, batch_size=100, seed=0, train=False).epoch(0))))
    pad = (side - 32) // 2
    known: dict[bytes, tuple[int, int, bool]] = {}
    for image in originals.numpy():
        known |= cropped(image, pad)
    loader = Loader(data.train, batch_size=100, seed=3, train=True)
    found = [
        known[np.ascontiguousarray(image).tobytes()]
        for epoch in range(20)
        for batch in loader.epoch(epoch)
        for image in tensors(batch)[0].numpy()
    ]
    places = np.array([top * (2 * pad + 1) + left for top, left, _ in found])
    assert len(found) == 2000 and stats.chisquare(np.bincount(places, minlength=(2 * pad + 1) ** 2)).pvalue > 1e-3
    assert abs(sum(mirrored for *_, mirrored in found) - 1000) < 4 * math.sqrt(500)


def test_cifars_test_images_are_whole_and_have_the_training_sets_mean_and_deviation(
    tmp_path: Path, process: Process
) -> None:
    """Mean and deviation of CIFAR-10's 50,000 training images: 0 mean and 1 std of each channel."""
    data = composed(*CIFAR, f"dataset.root={cifar_batches(tmp_path)}").build("dataset")
    loader = Loader(data.val, batch_size=20, seed=0, train=False)
    raw = tensors(next(iter(loader.epoch(0))))[0].double() / 255
    (images, _) = tensors(next(iter(Feed(loader, process, data.mean, data.std).epoch(0))))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    assert images.shape == (20, 3, 32, 32)
    torch.testing.assert_close(images.double(), (raw - mean) / std, rtol=0, atol=1e-5)
