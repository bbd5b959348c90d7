"""The loop stays a page, and trains what it says."""

from __future__ import annotations

import ast
import inspect

from attnbench.training import engine


def loop() -> ast.For:
    tree = ast.parse(inspect.getsource(engine.fit))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.For))


def test_the_loop_is_at_most_thirty_lines() -> None:
    node = loop()
    assert node.end_lineno is not None
    assert node.end_lineno - node.lineno < 30


def test_the_loop_branches_on_nothing_but_the_average() -> None:
    tests = [ast.unparse(node.test) for node in ast.walk(loop()) if isinstance(node, (ast.If, ast.IfExp))]
    assert tests == ["state.average is not None"]
