"""Every option file is valid, and a mistake on the command line gives one error line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.base.errors import ConfigError
from attnbench.config import builders, composition, hydra_state, option_files, options
from attnbench.config.configuration import BOXES, DETECTION, GROUPS, MASKS, Config
from attnbench.models import factory

OPTIONS = [(group, name) for group in (*GROUPS, *DETECTION) for name in option_files.names(group)]
EXPERIMENTS = option_files.names("experiment")


def with_backbone(attention: str) -> list[str]:
    """An attention in a backbone that fits every attention."""
    return ["backbone=resnet18", f"attention={attention}"]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_declares_just_what_its_builder_takes(group: str, name: str) -> None:
    attention = ["attention=eca"] if group == "placement" and name != "none" else []
    task = ["task=detection"] if group == "detector" or (group == "dataset" and name in BOXES) else []
    needed = {("dataset", "folder"): ["dataset.root=/pictures"], ("placement", "paths"): ["placement.paths=['*']"]}
    node = composition.compose([f"{group}={name}", *attention, *task, *needed.get((group, name), [])])
    values = set(node.tree[group]) - {"_target_"}
    declared = set(builders.declaration(node.tree[group]["_target_"], group))
    assert values == declared | options.SHARED.get(group, {}).keys()


@pytest.mark.parametrize("name", option_files.names("backbone"))
def test_every_backbone_is_built_and_runs(name: str) -> None:
    model, _ = factory.sketch(composition.compose([f"backbone={name}"]), 7)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", option_files.names("attention"))
def test_every_attention_is_inserted_at_its_default_placement(name: str) -> None:
    model, sites = factory.sketch(composition.compose(with_backbone(name)), 7)
    assert bool(sites) == (name != "none")
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("group", ["schedule", "task", "runtime"])
def test_every_other_option_is_built(group: str) -> None:
    for name in option_files.names(group):
        composition.compose([f"{group}={name}"]).build(group)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_the_papers_setting(name: str) -> None:
    composed = composition.compose([f"experiment={name}"])
    lines = (option_files.folder() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = " ".join(line for line in lines if line.startswith("#"))
    assert "paper" in header and f"experiment={name}" in header and "Printed" in header
    s, d = composed.tree["schedule"], composed.tree["dataset"]
    recipe = (composed.tree["batch_size"], s["epochs"], s["lr"], s["weight_decay"], s["momentum"], s["law"])
    assert recipe == PAPERS[name][:6]
    data = PAPERS[name][6]
    assert isinstance(data, dict) and {key: d[key] for key in data} == data
    detector, expected = composed.tree.get("detector", {}), DETECTORS.get(name, {})
    assert bool(detector) == bool(expected) and detector | expected == detector


# batch, epochs, lr, weight decay, momentum, law, data options: as the papers print them
PAPERS = {
    "eca_imagenet": (256, 100, 0.1, 1e-4, 0.9, "step", {"resize": 256, "size": 224, "resize_mode": "shorter"}),
    "eca_imagenet_mobilenetv2": (96, 400, 0.045, 4e-5, 0.9, "exponential", {"resize_mode": "shorter"}),
    "sb_imagenet": (256, 300, 0.1, 4e-5, 0.9, "linear", {"resize": 256, "resize_mode": "square"}),
    "sb_cifar10": (128, 200, 0.1, 5e-4, 0.9, "cosine", {"pad": 2}),
    "sb_voc": (32, 200, 0.01, 4e-5, 0.9, "cosine", {"augment": "pytorch_ssd", "crop": 300, "val": ["VOC2007/test"]}),
    "eca_coco": (8, 12, 0.01, 1e-4, 0.9, "step", {"augment": "mirror", "keep_empty": False}),
}

# The same for the options of detectors.
DETECTORS: dict[str, dict[str, object]] = {
    "sb_voc": {"size": 300, "frozen_stages": 0, "norm": "trained", "protocol": "pytorch_ssd", "init": "default"},
    "eca_coco": {"short_side": 800, "long_side": 1333, "frozen_stages": 1, "norm": "frozen", "protocol": "mmdet"},
}

REFUSED = [
    (["schedule.lrr=1"], "schedule.lrr", "schedule.lr"),
    (["seeed=1"], "seeed", "seed"),
    (["bakbone=resnet50"], "bakbone", "backbone"),
    (["bakbone.width=2"], "bakbone", "backbone"),
    (["attention.kernel_size=3"], "attention.kernel_size", "a key of attention=cbam, eca"),
    (["attention=se", "attention.kernel_size=3"], "attention.kernel_size", "a key of attention=cbam, eca"),
    (["detector.size=300"], "detector", "add task=detection"),
    (["+schedule.typo=1"], "schedule.typo", "law"),
    (["attention=eca", "attention.kernal_size=3"], "attention.kernal_size", "attention.kernel_size"),
    (["attention=ecaa"], "attention", "attention=eca"),
    (["backbone=resnet5"], "backbone", "resnet50"),
    (["experiment=sb_cifar"], "experiment", "sb_cifar10"),
    (["schedule.lr=abc"], "schedule.lr", "a number > 0"),
    (["schedule.lr=-1"], "schedule.lr", "> 0"),
    (["schedule.lr=null"], "schedule.lr", "a number"),
    (["schedule.lr=inf"], "schedule.lr", "a number"),
    (["schedule.epochs=-5"], "schedule.epochs", ">= 1"),
    (["schedule.epochs=3.7"], "schedule.epochs", "whole number"),
    (["schedule.law=sine"], "schedule.law", "cosine"),
    (["schedule.momentum=1.5"], "schedule.momentum", "< 1"),
    (["schedule.clip_grad_norm=0"], "schedule.clip_grad_norm", "> 0"),
    (["schedule.warmup_from=1"], "schedule.warmup_from", "< 1"),
    (["schedule.warmup_steps=500"], "schedule.warmup_steps", "schedule.warmup_epochs to 0"),
    (["task=detection", "detector=faster_rcnn", "detector.protocol=mmdetection"], "detector.protocol", "mmdet"),
    (["task=detection", "detector.protocol=mmdet"], "detector.protocol", "pytorch_ssd"),
    (["task=detection", "detector.init=zeros"], "detector.init", "default"),
    (["task=detection", "dataset.augment=mirror"], "dataset.augment", "pytorch_ssd"),
    (["backbone=mobilenetv2", "backbone.rounding=4"], "backbone.rounding", "8 or 1"),
    (["batch_size=1"], "batch_size", ">= 2"),
    (["seed=-1"], "seed", ">= 0"),
    (["debug=maybe"], "debug", "true or false"),
    (["resume=always"], "resume", "auto | never"),
    (["runtime.device=gpu"], "runtime.device", "cuda"),
    (["runtime.precision=fp8"], "runtime.precision", "bf16"),
    (["runtime.workers=-1"], "runtime.workers", ">= 0"),
    (["backbone=mobilenetv2", "backbone.width=0"], "backbone.width", "> 0"),
    (["backbone=mobilenetv2", "backbone.width=-1"], "backbone.width", "> 0"),
    (["attention=eca", "attention.kernel_size=4"], "attention.kernel_size", "3 or 5"),
    (["attention=eca", "attention.kernel_size=[3,5,6,7]"], "attention.kernel_size", "5 or 7"),
    (["attention=eca", "attention.kernel_size=auto"], "attention.kernel_size", "adaptive"),
    (["attention=se", "attention.reduction=0"], "attention.reduction", ">= 1"),
    (["attention=sb", "attention.lambda_init=-0.1"], "attention.lambda_init", ">= 0"),
    (["attention=sb", "attention.gate=gelu"], "attention.gate", "tanh"),
    (["attention=sb", "attention.dropout=1.0"], "attention.dropout", "< 1"),
    (["attention=eca", "placement=none"], "placement.roles", "block or layer"),
    (["attention=eca", "placement.roles=[block,block]"], "placement.roles", "twice"),
    (["attention=eca", "placement.wrap=norm"], "placement.wrap", "conv_norm"),
    (["attention=eca", "attention._target_=os.system"], "attention._target_", "builder"),
    (
        ["attention=eca", "attention._target_=attnbench.models.attention.eca.torch.load"],
        "attention._target_",
        "builder",
    ),
    (["attention=eca", "attention._target_=attnbench.base.files.write"], "attention._target_", "builder"),
    (["attention=eca,se"], "command line", "attention"),
    (["attention"], "command line", "key=value"),
    (["detector=ssd"], "detector", "add task=detection"),
    (["task=detection", "detector=sdd"], "detector", "detector=ssd"),
    (["task=detection", "dataset=cifar10"], "dataset", "digits_det"),
    (["dataset=voc"], "dataset", "imagenet"),
    (["task=detection", "detector=mask_rcnn", "dataset=voc"], "detector", "coco"),
    (["task=detection", "detector.sise=64"], "detector.sise", "detector.size"),
    (["task=detection", "detector.size=0"], "detector.size", ">= 1"),
    (["task=detection", "task.metric=AP50"], "task.metric", "AP | mAP"),
]


@pytest.mark.parametrize(
    ("overrides", "where", "hint"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_a_bad_value_is_refused_in_one_line_with_its_key_and_a_hint(
    overrides: list[str], where: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        composition.compose(overrides)
    line = str(refused.value)
    assert refused.value.where == where
    assert hint in line
    assert "\n" not in line


IMPOSSIBLE = [
    (["backbone=resnet18", "attention=sb", "placement.roles=[C1]"], "placement.roles", "conv1"),
    (["attention=eca", "placement.stages=[9]"], "placement.stages", "1 to 3"),
    (["attention=eca", "attention.kernel_size=[3,5]"], "attention.kernel_size", "3 odd numbers"),
    (["backbone=resnet18", "attention=sb", "placement.wrap=conv_norm_act"], "placement.wrap", "conv_norm"),
]


@pytest.mark.parametrize(
    ("overrides", "where", "hint"), IMPOSSIBLE, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_what_the_backbone_lacks_is_refused_before_anything_is_made(
    overrides: list[str], where: str, hint: str, compose: Callable[..., Config], tmp_path: Path
) -> None:
    from attnbench.runs import run

    with pytest.raises(ConfigError) as refused:
        run.train(compose(*overrides))
    assert refused.value.where == where
    assert hint in str(refused.value)
    assert list(tmp_path.iterdir()) == []


LINES = [  # the same options with and without values; each must be composed as Hydra alone composes it
    ["attention=eca", "attention.kernel_size=[3,5,7]", "seed=2"],
    ["attention=eca"],
    ["seed=3", "attention=eca", "attention.kernel_size=3", "attention.kernel_size=5"],
    ["attention=eca", "attention=se"],
    ["attention=eca", "~attention.b", "+attention.b=2.0"],
    ["experiment=sb_cifar10", "attention=sb", "placement.roles=[C1,C3]", "backbone.width=0.35"],
    ["experiment=sb_cifar10", "attention=none", "placement.roles=[C1]"],
    ["paths.outputs='a b'", "seed=${batch_size}", "schedule.period=[3,4]", "schedule.ema_decay=null"],
    ["task=detection", "detector=ssd", "detector.size=64", "runtime.device=cpu"],
]


def test_lines_with_the_same_options_are_what_hydra_composes_of_each() -> None:
    with hydra_state.prepared():
        alone = [composition.check(hydra_state.composed(line)) for line in LINES]
        assert [composition.compose(line) for line in LINES] == alone
        assert [composition.compose(line) for line in reversed(LINES)] == alone[::-1]


def test_the_command_line_refuses_without_torch_and_makes_nothing(tmp_path: Path) -> None:
    """In a process of its own: exit code 2, one line, no traceback, no torch, no folder."""
    program = (
        "import sys; sys.argv = ['train.py', *sys.argv[1:]]\n"
        "from attnbench.cli import main, train\n"
        "try: main.guarded(train.main)\n"
        "finally: print('torch' in sys.modules)"
    )
    overrides = ["schedule.lrr=1", f"paths.outputs={tmp_path}/outputs"]
    done = subprocess.run([sys.executable, "-c", program, *overrides], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "error: unknown key (schedule.lrr); did you mean schedule.lr?\n"
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 400), st.integers(-3, 12))
def test_values_are_taken_exactly_when_they_are_in_range(lr: float, epochs: int, k: int) -> None:
    overrides = [f"schedule.lr={lr!r}", f"schedule.epochs={epochs}", "attention=eca", f"attention.kernel_size={k}"]
    valid = lr > 0 and epochs >= 1 and k >= 1 and k % 2 == 1
    try:
        tree = composition.compose(overrides).tree
    except ConfigError:
        assert not valid
    else:
        assert valid
        assert (tree["schedule"]["lr"], tree["schedule"]["epochs"]) == (lr, epochs)


def test_an_attention_brings_its_placement_and_the_command_line_wins() -> None:
    assert composition.compose(["attention=sb"]).choices["placement"] == "layer"
    assert composition.compose(["attention=sb", "placement=block"]).choices["placement"] == "block"
    assert composition.compose(["experiment=sb_cifar10", "attention=eca"]).choices["placement"] == "block"


def test_the_task_brings_what_it_needs_and_an_experiment_wins() -> None:
    plain = composition.compose(["task=detection"])
    assert (plain.choices["dataset"], plain.choices["detector"]) == ("digits_det", "ssd")
    assert plain.tree["detector"]["size"] == plain.tree["dataset"]["size"]
    assert composition.compose(["task=detection", "dataset=coco"]).tree["detector"]["size"] == 300
    paper = composition.compose(["experiment=eca_coco", "detector=mask_rcnn"])
    assert (paper.choices["dataset"], paper.choices["detector"]) == ("coco", "mask_rcnn")
    assert paper.tree["schedule"]["period"] == [8, 11] and paper.tree["detector"]["short_side"] == 800
    assert MASKS <= BOXES and not BOXES - set(option_files.names("dataset"))


def test_without_attention_every_placement_is_the_same_run() -> None:
    plain = composition.compose(["attention=none"])
    assert composition.compose(["attention=none", "placement=layer"]).run_folder == plain.run_folder


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"attention": {"kernel_size": 4}}, r"attention\.kernel_size"),
        ({"attention": {"kernal_size": 3}}, r"attention\.kernal_size.*kernel_size"),
        ({"schedule": {"lr": -0.1}}, r"schedule\.lr"),
        ({"runtime": {"workers": "many"}}, r"runtime\.workers"),
        ({"placement": {"roles": []}}, r"placement\.roles"),
        ({"placement": {"roles": None}}, r"placement\.roles"),
    ],
)
def test_a_configuration_that_is_changed_is_checked_as_one_that_is_typed(
    values: dict[str, dict[str, object]], complaint: str
) -> None:
    config = composition.compose(["attention=eca"])
    with pytest.raises(ConfigError, match=complaint):
        config.updated(values)


def test_a_changed_configuration_is_the_one_that_is_composed_so() -> None:
    changed = composition.compose(["attention=eca"]).updated({"attention": {"kernel_size": 5}, "schedule": {"lr": 1}})
    composed = composition.compose(["attention=eca", "attention.kernel_size=5", "schedule.lr=1"])
    assert changed == composed and changed.run_folder == composed.run_folder
    assert isinstance(changed.tree["schedule"]["lr"], float)  # the type that its builder declares


NEUTRAL = ["seed=3", "resume=never", "debug=true", "paths.outputs=/x", "runtime.device=cpu", "runtime.workers=7"]
DECIDING = [
    "schedule.lr=0.2",
    "batch_size=32",
    "runtime.precision=bf16",
    "attention=eca",
    "dataset.pad=1",
    "backbone=resnet32",
]


@pytest.mark.parametrize("override", NEUTRAL)
def test_the_hash_leaves_out_what_does_not_change_a_result(override: str) -> None:
    assert composition.compose([override]).hash == composition.compose([]).hash


def test_the_hash_tells_everything_else_apart() -> None:
    hashes = [composition.compose([]).hash, *(composition.compose([o]).hash for o in DECIDING)]
    assert len(set(hashes)) == len(hashes)
    assert all(a != b for a, b in pairwise(hashes))


def test_a_data_folder_may_move() -> None:
    here, there = (composition.compose(["dataset=cifar10", f"dataset.root={root}"]) for root in ("/a", "/b"))
    assert here.hash == there.hash


def test_the_run_folder_is_the_documented_one(compose: Callable[..., Config], tmp_path: Path) -> None:
    c = compose("experiment=sb_cifar10", "attention=sb", "seed=3")
    expected = tmp_path / "outputs/runs/cifar10/mobilenetv2_cifar" / f"sb-layer-{c.hash}" / "seed3"
    assert c.run_folder == expected


@pytest.mark.parametrize(
    "head",
    [
        "from attnbench import checked\n@checked",
        "import attnbench\n@attnbench.checked",
        "from attnbench.config.options import checked\n@checked",
    ],
)
def test_a_package_is_trusted_only_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    (tmp_path / "mylab.py").write_text(f"{head}\ndef plain(site, *, k: int = 1):\n    return site.trunk\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mylab.plain", "k": 2}
    with pytest.raises(ConfigError, match="mylab.plain is not a builder of attnbench or of a package"):
        builders.build(node, "attention")
    monkeypatch.setenv("ATTNBENCH_TRUST", "mylab")
    builders.declaration.cache_clear()
    assert builders.declaration("mylab.plain", "attention") == {"k": int}
    builders.declaration.cache_clear()  # the next test has another mylab


def test_a_dataclass_declares_the_options_of_its_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a base imported from another module under another name, but not of a base that is not a dataclass."""
    head = "from pydantic.dataclasses import dataclass\n"
    (tmp_path / "labs_parts.py").write_text(head + "@dataclass\nclass Wide:\n    a: int = 1\n    b: int = 1\n")
    (tmp_path / "labs_nets.py").write_text(
        f"{head}from labs_parts import Wide as Base\nclass Plain:\n    c: int = 1\n"
        "@dataclass\nclass Middle(Base, Plain):\n    b: str = ''\n@dataclass\nclass Net(Middle):\n    d: bool = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ATTNBENCH_TRUST", "labs_nets,labs_parts")
    assert builders.declaration("labs_nets.Net", "detector") == {"a": int, "b": str, "d": bool}
    made = builders.build({"_target_": "labs_nets.Net", "a": 2, "b": "x", "d": True}, "detector")
    assert (made.a, made.b, made.d) == (2, "x", True)


def test_declarations_are_read_without_importing_their_builder() -> None:
    source = (
        "import sys; from attnbench.config import composition\n"
        "composition.compose(['attention=eca']).run_folder; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_resolved_tree_is_plain_data() -> None:
    tree = composition.compose(["attention=eca", "attention.kernel_size=[3,5,7]"]).tree
    assert json.loads(json.dumps(tree)) == tree
    assert ast.literal_eval(repr(tree)) == tree
