"""Modules of earlier releases are found under their former names."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from attnbench.base import moved


@pytest.mark.parametrize(("former", "present"), moved.MOVED.items(), ids=list(moved.MOVED))
def test_a_former_module_is_one_that_exists(former: str, present: str) -> None:
    assert former != present
    assert importlib.util.find_spec(f"attnbench.{present}") is not None


def test_an_import_by_a_former_name_gives_the_same_module() -> None:
    former, present = (importlib.import_module(f"attnbench.{name}") for name in ("options", "config.options"))
    assert former is present
    assert present.__spec__ is not None and present.__spec__.name == "attnbench.config.options"


def test_names_in_a_configuration_are_translated() -> None:
    assert moved.present("attnbench.attention.eca.eca") == "attnbench.models.attention.eca.eca"
    assert moved.present("attnbench.models.attention.eca.eca") == "attnbench.models.attention.eca.eca"
    assert moved.present("mylab.attention.eca") == "mylab.attention.eca"
