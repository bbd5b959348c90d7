"""What initial weights are called in a run's name: a run by its folder, a file by its contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from attnbench.config import initial_weights, stored
from attnbench.config.composition import compose
from attnbench.config.configuration import Config

SOURCE = "digits/resnet20/eca-block-12345678"


@pytest.mark.parametrize("outputs", ["outputs", "/mnt/big/outputs", "~/outputs"])
@pytest.mark.parametrize("seed", ["", "/seed3"])
def test_a_run_is_called_as_its_folder_wherever_outputs_are(outputs: str, seed: str) -> None:
    assert initial_weights.name(f"{outputs}/runs/{SOURCE}{seed}") == SOURCE + seed
    assert initial_weights.name(SOURCE + seed) == SOURCE + seed


def test_a_file_is_called_by_its_contents(tmp_path: Path) -> None:
    first, copied, other = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    first.write_bytes(b"weights")
    copied.write_bytes(b"weights")
    other.write_bytes(b"others")
    names = [initial_weights.name(str(path)) for path in (first, copied, other)]
    assert names[0] == names[1] == "sha256:" + hashlib.sha256(b"weights").hexdigest()[:16] != names[2]
    first.write_bytes(b"changed, and longer")
    assert initial_weights.name(str(first)) != names[1]


def test_the_seeds_of_a_run_share_a_group_whose_name_has_its_weights() -> None:
    line = ["task=detection", "attention=eca", f"backbone.weights=outputs/runs/{SOURCE}"]
    configs = [compose([*line, f"seed={seed}"]) for seed in (0, 1)]
    assert configs[0].group_folder == configs[1].group_folder
    others = (compose(["task=detection", "attention=eca"]), compose([*line[:-1], f"{line[-1]}/seed0"]))
    assert len({configs[0].hash, *(other.hash for other in others)}) == 3


# What experiment=eca_coco was until it followed MMDetection.
BEFORE = [
    *("detector.protocol=torchvision", "schedule.warmup_epochs=0.034", "schedule.warmup_steps=null"),
    *("schedule.warmup_from=0.0", "schedule.clip_grad_norm=null"),
]


def test_a_run_under_the_former_name_of_the_option_is_found() -> None:
    """Folders that e761cab and the release after it gave ``detector.backbone_from=outputs/runs/…/seed0``."""
    config = compose(["experiment=eca_coco", *BEFORE, f"backbone.weights=outputs/runs/{SOURCE}/seed0"])
    assert [path.name for path in config.group_folders][1:] == ["none-none-bef4a30a", "none-none-ff516d63"]


def test_a_record_keeps_the_name_of_weights_that_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    config = compose([f"backbone.weights={path}"])
    path.unlink()
    read: Config = stored.from_record(config.record(), tmp_path)
    assert read.hash == config.hash and stored.checked(read, tmp_path).hash == config.hash


def test_a_checkpoint_of_a_former_release_has_the_same_weights() -> None:
    config = compose(["task=detection", f"backbone.weights=outputs/runs/{SOURCE}/seed0"])
    kept = {key: value for key, value in config.identity.items() if key != "backbone.weights"}
    assert not stored.differences(config, kept | {"detector.backbone_from": f"outputs/runs/{SOURCE}/seed0"})
    other = kept | {"detector.backbone_from": "outputs/runs/digits/resnet20/se-block-12345678/seed0"}
    assert list(stored.differences(config, other)) == ["backbone.weights"]
