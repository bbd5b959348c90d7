"""Parsing command lines: overrides, ids and values of options."""

from __future__ import annotations

import sys

import pytest

from attnbench.cli.parser import CommandParser, find_ids_and_overrides, is_override


@pytest.mark.parametrize(
    "argument", ["epochs=2", "+hydra/launcher=pool", "hydra/launcher=pool", "~attention", "dataset.root=/a/b", "a=b=c"]
)
def test_an_override_is_known(argument: str) -> None:
    assert is_override(argument)


@pytest.mark.parametrize("argument", ["sb/5", "-m", "--output=DIR", "outputs/k=3", "/abs/k=3/seed0", "SB x0.35*"])
def test_other_arguments_are_not_overrides(argument: str) -> None:
    assert not is_override(argument)


def test_ids_and_overrides_are_moved_out_of_options_of_several_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "--runs out/k=3 a/1 epochs=2 debug=true --scale x=1 a/2 ~y --json z=3 a/1"
    monkeypatch.setattr(sys, "argv", ["attnbench test", *line.split()])
    parser = CommandParser()
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--json", action="store_true")
    for name in ("--runs", "--scale"):
        parser.add_argument(name, nargs="+")
    options = parser.parse()
    find_ids_and_overrides(options, ["a/1", "a/2"], ("runs", "scale"))
    assert (options.runs, options.scale) == (["out/k=3"], ["x=1", "~y"])
    assert (options.ids, options.overrides) == (["a/1", "a/2"], ["z=3", "epochs=2"])
