"""``attnbench export``: its files compute what the run evaluated, and say which run they come from."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import attnbench
from attnbench import create_model
from attnbench.base.errors import ConfigError, StorageError
from attnbench.cli import main
from attnbench.config.configuration import Config
from attnbench.models import factory
from attnbench.runs import export
from attnbench.runs.load import Trained, load_run
from attnbench.training.checkpoints import Checkpoints
from tests.conftest import refused

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed: pip install 'attnbench[onnx]'",
)


@pytest.fixture
def folder(trained: Config, tmp_path: Path) -> Path:
    """A copy of the run's folder, for a test to damage."""
    return shutil.copytree(trained.run_folder, tmp_path / "seed0")


def checkpoint(folder: Path, which: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{which}.pt", weights_only=True)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def top1(model: nn.Module, done: Config) -> float:
    """The accuracy in percent on the validation images, computed without the engine."""
    data = done.build("dataset")
    steps = [torch.arange(len(data.val))]
    ((images, targets),) = data.val.to("cpu").batches(steps, None, workers=0, timeout=60)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        predicted = model((images / 255 - mean) / std).argmax(1)
    return 100 * float((predicted == targets).float().mean())


def test_a_safetensors_file_rebuilds_the_network_that_the_run_evaluated(trained: Config, folder: Path) -> None:
    path = export.export(folder)
    assert path == folder / "export" / "last.safetensors"
    model = export.load_exported(path)
    average = {
        k.removeprefix("module."): v for k, v in checkpoint(folder, "last")["average"].items() if k != "n_averaged"
    }
    assert same(model.state_dict(), average)
    assert not same(model.state_dict(), checkpoint(folder, "last")["model"])
    assert not model.training
    assert top1(model, trained) == pytest.approx(json.loads((folder / "result.json").read_text())["top1"], abs=1e-3)


def test_safetensors_metadata_hold_configuration_result_and_version(folder: Path) -> None:
    about = metadata(export.export(folder))
    assert json.loads(about["config"]) == yaml.safe_load((folder / "config.yaml").read_text())
    assert json.loads(about["result"]) == json.loads((folder / "result.json").read_text())
    assert about["attnbench"] == attnbench.__version__
    sums = (folder / "checkpoints" / "SHA256SUMS").read_text()
    kept = json.loads(about["checkpoint"])
    assert (kept["which"], kept["epoch"], kept["finished"]) == ("last", 1, True)
    assert f"{kept['sha256']}  last.pt" in sums


def test_a_state_dict_is_tensors_only(folder: Path, tmp_path: Path) -> None:
    path = export.export(folder, "state_dict", tmp_path / "new" / "weights.pt")
    assert path == tmp_path / "new" / "weights.pt"
    assert same(torch.load(path, weights_only=True), load_run(folder).model.state_dict())


def test_best_is_the_best_epochs(trained: Config, folder: Path) -> None:
    weights = {key: value + 1 for key, value in checkpoint(folder, "best")["model"].items()}
    Checkpoints(folder / "checkpoints", trained.identity).save_best(weights, {"top1": 99.0, "epoch": 1})
    assert same(export.load_exported(export.export(folder, which="best")).state_dict(), weights)
    assert not same(export.load_exported(export.export(folder, which="last")).state_dict(), weights)


def test_an_unfinished_run_is_exported_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "result.json").unlink()
    with caplog.at_level(logging.WARNING, "attnbench"):
        path = export.export(folder)
    assert "not finished" in caplog.text
    assert "1 of 1 epochs" in caplog.text
    assert json.loads(metadata(path)["checkpoint"])["finished"] is False
    assert json.loads(metadata(path)["result"]) is None


def test_a_save_that_was_cut_short_leaves_its_checkpoint_exportable(folder: Path) -> None:
    expected = load_run(folder).model.state_dict()
    for name in ("next.pt", "previous.pt"):
        other = shutil.copytree(folder, folder.with_name(name))
        (other / "checkpoints" / "last.pt").rename(other / "checkpoints" / name)
        assert same(load_run(other).model.state_dict(), expected)


def test_a_folder_that_is_not_a_run_is_named(folder: Path, tmp_path: Path) -> None:
    refused(lambda: export.export(tmp_path / "nothing"), StorageError, "no config.yaml", str(tmp_path / "nothing"))
    refused(lambda: export.export(folder.parent), StorageError, f"did you mean {folder}?")


def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(folder: Path) -> None:
    path = folder / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(lambda: export.export(folder), StorageError, "last.pt is damaged", "SHA256SUMS", "--which best")
    assert not (folder / "export").exists()
    assert export.export(folder, which="best").exists()


def test_a_run_without_checkpoints_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    refused(lambda: export.export(folder), StorageError, "no last checkpoint")


def edited(folder: Path, group: str, key: str, value: object) -> Path:
    path = folder / "config.yaml"
    record = yaml.safe_load(path.read_text())
    record[group][key] = value
    path.write_text(yaml.safe_dump(record))
    return folder


@pytest.mark.parametrize(
    ("group", "key", "value", "named"),
    [
        ("attention", "kernel_size", 5, "attention.kernel_size: 5 here, 3 there"),
        ("schedule", "lr", 0.3, "schedule.lr: 0.3 here"),
        ("attention", "kernel_size", 4, "must be odd"),
        ("attention", "kernal_size", 3, "unknown key"),
        ("attention", "_target_", "os.system", "os.system is not a builder"),
        ("backbone", "_target_", "attnbench.base.files.make_folder", "is not a builder"),
    ],
)
def test_a_configuration_that_was_edited_is_refused(
    folder: Path, group: str, key: str, value: object, named: str
) -> None:
    refused(lambda: export.export(edited(folder, group, key, value)), StorageError, named, "config.yaml")


@pytest.mark.parametrize(
    "text", ["", "choices: 3", "[1, 2]", "choices: {}\nseed: 0", "a: [", "a: !!python/name:os.system"]
)
def test_a_malformed_config_yaml_is_refused(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    refused(lambda: export.export(folder), StorageError, "config.yaml")


def with_metadata(path: Path, **changes: str) -> Path:
    """Rewrite a file with changed metadata."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        kept = file.metadata()
    save_file(tensors, path, kept | changes)
    return path


def test_a_safetensors_file_calls_no_builder_but_attnbenchs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("os.system", called.append)
    path = export.export(folder)
    record = json.loads(metadata(path)["config"])
    record["attention"] = {"_target_": "os.system", "command": "echo"}
    with_metadata(path, config=json.dumps(record))
    refused(lambda: export.load_exported(path), StorageError, "os.system is not a builder", str(path))
    assert not called


def test_files_that_are_not_exports_are_refused(folder: Path, tmp_path: Path) -> None:
    path, bare, text = export.export(folder), tmp_path / "bare.safetensors", tmp_path / "text.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    text.write_text("no tensors")
    record = json.loads(metadata(path)["config"])
    record["attention"]["kernel_size"] = 5
    with_metadata(path, config=json.dumps(record))
    for file, what in (
        (bare, "no configuration"),
        (text, "cannot be read as safetensors"),
        (tmp_path / "missing.safetensors", "cannot be read as safetensors"),
        (path, "wrong shape layer1.0.bn2.attention.conv.weight 1x1x3 for 1x1x5"),
    ):
        refused(functools.partial(export.load_exported, file), StorageError, what, str(file))


def test_the_number_of_classes_is_the_weights_and_stock_weights_are_not_fetched(
    compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = compose("backbone=resnet18", "backbone.pretrained=true", "attention=se")
    model = create_model("resnet18", "se", num_classes=7)
    path = tmp_path / "model.safetensors"
    path.write_bytes(export.safetensors(Trained(model, [], list("abcdefg"), done, {})))
    monkeypatch.setattr(
        "torchvision.models.get_model_weights", lambda name: pytest.fail("stock weights were looked for")
    )
    assert same(export.load_exported(path).state_dict(), model.state_dict())


def test_a_name_of_another_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    call = functools.partial(export.export, tmp_path, "safetensors", tmp_path / "model.onnx")
    refused(call, ConfigError, "model.onnx has the suffix of onnx, not of safetensors", "--format onnx")


def test_onnx_without_its_packages_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(lambda: export.export(folder, "onnx"), ConfigError, "onnx and onnxscript", "pip install 'attnbench[onnx]'")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["attnbench export", *arguments])
    main.command("export")()


def test_the_command_writes_and_prints_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, str(folder), "--format", "state_dict", "--which", "best")
    path = folder / "export" / "best.pt"
    assert capsys.readouterr().out == f"{path}\n"
    assert same(torch.load(path, weights_only=True), checkpoint(folder, "best")["model"])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "RUN"),
        (["RUN", "--format", "onx"], "onx"),
        (["RUN", "--wich", "best"], "--wich"),
        (["RUN", "attention=eca"], "attention=eca"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    refused(
        lambda: command(monkeypatch, *arguments),
        ConfigError,
        what,
        "(command line); attnbench export --help lists the options",
    )
    assert capsys.readouterr().err == ""


def onnx_logits(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert isinstance(logits, np.ndarray)
    return torch.from_numpy(logits)


def lively(model: nn.Module, size: int) -> nn.Module:
    """Give batch norms non-trivial statistics and shifts, as after training, so that logits differ between images."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None  # average over all batches that follow
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    with torch.no_grad():
        model.train()(torch.randn(32, 3, size, size, generator=generator))
    return model.eval()


@needs_onnx
@pytest.mark.parametrize(
    ("backbone", "attention", "size"),
    [
        ("resnet20 backbone.depth=8", "se", 16),
        ("resnet20 backbone.depth=8", "sb", 16),
        pytest.param("mobilenetv2_cifar", "eca", 32, marks=pytest.mark.slow),
        *(pytest.param("resnet18", attention, 64, marks=pytest.mark.slow) for attention in ("none", "se", "sb")),
    ],
)
def test_onnx_gives_the_same_logits_at_any_batch_size(
    compose: Callable[..., Config], tmp_path: Path, backbone: str, attention: str, size: int
) -> None:
    done = compose(*f"backbone={backbone}".split(), f"attention={attention}", f"dataset.size={size}")
    torch.manual_seed(0)
    model = lively(factory.network(done, 10)[0], size)
    path = tmp_path / "model.onnx"
    path.write_bytes(export._onnx(Trained(model, [], list("0123456789"), done, {})))
    for number in (1, 5):
        images = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected = model(images)
        assert 0.1 < expected.abs().max() < 100
        assert number == 1 or expected.std(0).mean() > 0.02  # the logits differ between images
        assert (onnx_logits(path, images) - expected).abs().max() < 1e-4


@needs_onnx
def test_a_runs_onnx_computes_its_logits_and_says_where_it_is_from(folder: Path) -> None:
    import onnx

    path = export.export(folder, "onnx")
    model = export.load_exported(export.export(folder))
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (onnx_logits(path, images) - model(images)).abs().max() < 1e-4
    about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(about["config"])["attention"]["kernel_size"] == 3
    assert about["attnbench"] == attnbench.__version__
