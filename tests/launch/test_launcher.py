"""Launchers on the command line: their option files, and their names in the help text."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from attnbench.config import composition
from attnbench.config.builders import declaration
from attnbench.launch import hydra_launchers


@pytest.mark.parametrize("name", hydra_launchers.names())
def test_every_launcher_declares_just_what_its_option_file_sets(name: str) -> None:
    node = composition.node("hydra.launcher", [f"hydra/launcher={name}"])
    builder = hydra_launchers.KINDS[node.pop("_target_")].builder
    assert set(node) == set(declaration(builder, "hydra.launcher"))


def test_help_names_all_launchers(attnbench: Callable[..., CompletedProcess[str]]) -> None:
    text = attnbench("--help").stdout
    assert f"hydra/launcher: basic, {', '.join(hydra_launchers.names())} " in text
    assert "attention: " in text and "schedule:" in text
