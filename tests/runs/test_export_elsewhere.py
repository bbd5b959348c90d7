"""Exported networks in other programs: the scripts in README.md, timm, torchvision, and a folder for the Hub."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from attnbench.cli import main
from attnbench.config import composition
from attnbench.config.configuration import Config
from attnbench.runs import run
from attnbench.runs.export import load_exported
from attnbench.runs.load import load_run
from attnbench.runs.preprocessing import preprocessing
from tests.conftest import ROOT
from tests.runs.test_export import lively, needs_onnx

Command = Callable[..., subprocess.CompletedProcess[str]]

SCRIPT = re.compile(r"In (plain PyTorch|timm|onnxruntime):\n\n```python\n(.*?)```", re.S)


def pictures(root: Path) -> None:
    """Pictures of coloured noise, one colour a class."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("rose", "tulip", "weed, or so")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(draws.normal(90, 40, (56, 71, 3)) + 90 * (np.arange(3) == number), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.jpg")


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of runs on a folder of pictures, with ECA, and of others below."""
    root = tmp_path_factory.mktemp("flowers")
    pictures(root / "flowers")
    return root


def trained(root: Path, *words: str) -> Config:
    given = [f"dataset.root={root / 'flowers'}", f"paths.outputs={root / 'outputs'}", "runtime.device=cpu"]
    given += ["dataset=folder", "dataset.size=40", "dataset.resize=48", "batch_size=4", "schedule.epochs=1"]
    config = composition.compose([*given, *words])
    if not (config.run_folder / "result.json").exists():
        run.train(config)
    return config


@pytest.fixture(scope="module")
def done(flowers: Path) -> Config:
    return trained(flowers, "backbone=resnet18", "attention=eca", "runtime.workers=0")


def logits(done: Config, picture: Path) -> Tensor:
    """What the run's network says about a picture, by attnbench."""
    steps = preprocessing(done)
    with Image.open(picture) as image, torch.no_grad():
        return load_run(done.run_folder).model(steps.normalised(steps.cropped(image.convert("RGB"))[None]))


def exported(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["attnbench", "export", *map(str, words)])
    main.main()


@needs_onnx
def test_the_scripts_in_the_readme_give_the_runs_logits(
    done: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    attnbench export RUN (--\S+ .*?)  +#", page, re.M)
    assert [line.split()[-1] for line in lines] == ["flowers.pt2", "flowers.onnx", "flowers"]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        exported(monkeypatch, done.run_folder, *line.split())
    picture = done.tree["dataset"]["root"] + "/val/tulip/1.jpg"
    (tmp_path / "flower.jpg").write_bytes(Path(picture).read_bytes())
    expected = logits(done, tmp_path / "flower.jpg")
    scripts = dict(SCRIPT.findall(page))
    assert list(scripts) == ["plain PyTorch", "timm", "onnxruntime"]
    for name, script in scripts.items():
        assert len([line for line in script.splitlines() if line]) <= 10, name
        said: dict[str, Any] = {}
        capsys.readouterr()
        exec(script, said)
        got = torch.as_tensor(said["logits"])
        assert (got - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max())), name
        assert capsys.readouterr().out.strip() == load_run(done.run_folder).classes[int(expected.argmax())], name


def test_the_files_say_how_a_picture_becomes_the_input(
    done: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    exported(monkeypatch, done.run_folder, "--output", path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == ["rose", "tulip", "weed, or so"]
    assert (json.loads(about["size"]), json.loads(about["crop"])["resize"]) == (40, 48)
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406] and json.loads(about["std"]) == [0.229, 0.224, 0.225]


@needs_onnx
@pytest.mark.parametrize(("backbone", "size", "others"), [("resnet20", 32, [(40, 56)]), ("resnet20", 4, [])])
def test_a_program_takes_any_batch_and_any_size_that_the_network_allows(
    backbone: str, size: int, others: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """The last maps of a small ResNet are one pixel of a 4x4 image, which torch takes for a fact."""
    import io

    import onnxruntime

    from attnbench import create_model
    from attnbench.runs import programs

    torch.manual_seed(0)
    model = lively(create_model(backbone, "se", num_classes=3, backbone_kwargs={"depth": 8}), size)
    with caplog.at_level("WARNING", "attnbench"):
        session = onnxruntime.InferenceSession(programs.onnx(model, size, {}))
        program = torch.export.load(io.BytesIO(programs.pt2(model, size, {}))).module()
    (images,) = session.get_inputs()
    assert images.shape == ["batch", 3, *(["height", "width"] if others else [size, size])]
    assert (f"{size}x{size} images only" in caplog.text) == (not others)
    for batch, shape in ((1, (size, size)), (3, (size, size)), *((2, other) for other in others)):
        given = torch.randn(batch, 3, *shape)
        with torch.no_grad():
            expected = model(given)
        assert (program(given) - expected).abs().max() < 1e-4
        assert np.abs(session.run(None, {"images": given.numpy()})[0] - expected.numpy()).max() < 1e-4


def test_weights_for_timm_load_into_its_network(done: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timm.safetensors"
    exported(monkeypatch, done.run_folder, "--format", "timm", "--output", path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    name, arguments = json.loads(about["architecture"]), json.loads(about["model_args"])
    assert (name, arguments) == ("resnet18", {"block_args": {"attn_layer": "eca"}})
    theirs = timm.create_model(name, num_classes=3, **arguments).eval()
    theirs.load_state_dict(load_file(path))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load_run(done.run_folder).model(images), rtol=1e-4, atol=1e-4)


def test_weights_for_torchvision_are_those_of_a_network_without_attention(
    flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(flowers, "backbone=mobilenetv2", "backbone.width=0.35", "attention=none", "runtime.workers=0")
    exported(monkeypatch, plain.run_folder, "--format", "torchvision", "--output", tmp_path / "tv.safetensors")
    theirs = models.mobilenet_v2(num_classes=3, width_mult=0.35).eval()
    theirs.load_state_dict(load_file(tmp_path / "tv.safetensors"))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load_run(plain.run_folder).model(images))


@pytest.mark.parametrize(
    ("format", "words", "said"),
    [
        (
            "torchvision",
            ["backbone=resnet18", "attention=eca"],
            "torchvision's networks have no slot for attention=eca",
        ),
        ("timm", ["backbone=resnet20", "backbone.depth=8", "attention=eca"], "timm does not have resnet20"),
        (
            "torchvision",
            ["backbone=resnet20", "backbone.depth=8", "attention=eca"],
            "resnet20 is not one of torchvision's classification networks",
        ),
    ],
)
def test_a_network_without_a_slot_is_refused(
    format: str, words: list[str], said: str, flowers: Path, command: Command
) -> None:
    end = command("export", str(trained(flowers, *words, "runtime.workers=0").run_folder), "--format", format)
    assert end.returncode == 2 and said in end.stderr, end.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["attention=eca", "attention.kernel_size=9"],
            "timm's resnet18 cannot hold this network: the weights do not fit",
        ),
        (["attention=sb"], "other layouts have no slot for the attention at"),
        (["attention=eca", "backbone.last_stride=1"], "timm's resnet18 computes something else with these weights"),
    ],
)
def test_timm_refuses_what_it_would_compute_otherwise(
    words: list[str], said: str, flowers: Path, tmp_path: Path
) -> None:
    from attnbench.base.errors import ConfigError
    from attnbench.models import factory
    from attnbench.runs.load import Trained
    from attnbench.runs.stock_networks import timm_network

    config = composition.compose(["backbone=resnet18", *words])
    model, sites = factory.network(config, 3)
    with pytest.raises(ConfigError, match=re.escape(said)):
        timm_network(Trained(lively(model, 40), sites, ["a", "b", "c"], config, {}), 40)


def front_matter(folder: Path) -> dict[str, Any]:
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_the_card_has_the_results_of_the_record_and_says_how_they_came_about(
    done: Config, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "hub" / "flowers"
    end = command("export", str(done.run_folder), "--hub", str(folder))
    assert (end.returncode, end.stdout.strip()) == (0, str(folder)), end.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert not [path for path in folder.parent.iterdir() if path != folder]
    front, result = front_matter(folder), json.loads((done.run_folder / "result.json").read_text())
    assert front["library_name"] == "timm" and front["pipeline_tag"] == "image-classification"
    assert "license" not in front
    metrics = {one["name"]: one["value"] for one in front["model-index"][0]["results"][0]["metrics"]}
    chosen = "top-1, best epoch (chosen on the validation images, so it is too high)"
    assert metrics["top-1, last epoch"] == pytest.approx(result["top1"] / 100, abs=1e-6)
    assert metrics[chosen] == pytest.approx(result["best_top1"] / 100, abs=1e-6)
    text = (folder / "README.md").read_text()
    assert result["data"]["fingerprint"] in text and "One run, with seed 0." in text
    assert f"| top-1, last epoch | {result['top1']:.2f} % | yes |" in text
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406] and config["num_classes"] == 3
    assert not {"license", "hf_hub_id", "url", "test_input_size", "tag"} & config["pretrained_cfg"].keys()


def test_a_network_that_timm_does_not_have_is_a_folder_of_attnbenchs_own(
    flowers: Path, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = trained(flowers, "backbone=resnet20", "backbone.depth=8", "attention=eca", "runtime.workers=0")
    end = command("export", str(small.run_folder), "--hub", str(tmp_path / "hub"))
    assert end.returncode == 0, end.stderr
    assert "the folder is in attnbench's own form: timm does not have resnet20" in caplog.text
    assert front_matter(tmp_path / "hub")["library_name"] == "attnbench"
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        ours = load_exported(tmp_path / "hub" / "model.safetensors")(images)
        torch.testing.assert_close(ours, load_run(small.run_folder).model(images))
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["classes"][0] == "rose"
    again = command("export", str(small.run_folder), "--hub", str(tmp_path / "hub"))
    assert again.returncode == 5 and "there is something in this folder already" in again.stderr
    both = command("export", str(small.run_folder), "--hub", str(tmp_path / "new"), "--format", "onnx")
    assert both.returncode == 2 and "drop --format and --output" in both.stderr
