"""Reads the options that a builder declares (names, types and ranges) from its source, without importing it.

An option file names its builder (``_target_``): a function decorated with ``checked``, or a dataclass. The options are
its keywords; a dataclass also has those of its bases. They are read with ``ast``, so that a typo is reported in a
fraction of a second, before torch is imported. A configuration can call such builders only, and only those of attnbench
or of a package named in ``ATTNBENCH_TRUST``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import typing
from collections.abc import Sequence
from dataclasses import astuple
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

from attnbench.base.errors import ConfigError
from attnbench.base.moved import present
from attnbench.config import options

# Arguments of builders that the caller supplies, not the configuration.
SUPPLIED = {"site", "num_classes", "class_names"}


def build(node: dict[str, Any], group: str, *args: Any, **supplied: Any) -> Any:
    """Call the builder that a node names, with the node's options and the values that the caller supplies.

    Raises:
        ConfigError: the target is not a declared builder of a trusted package.
    """
    target = present(node["_target_"])
    declaration(target, group)
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    return function(*args, **{k: v for k, v in node.items() if k != "_target_"}, **supplied)


def checked_node(node: dict[str, Any], group: str) -> dict[str, Any]:
    """A group's node with its options checked against its builder's declaration.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, with the dotted key.
    """
    target = present(str(node.get("_target_")))
    values = {k: v for k, v in node.items() if k not in ("_target_", "_revision_")}
    return {"_target_": target, **validated(values, declaration(target, group), group)}


def validated(values: dict[str, Any], declared: dict[str, Any], where: str) -> dict[str, Any]:
    """Values checked against declared types, numbers in the declared type."""
    checked = {}
    for key, value in values.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in declared:
            raise unknown(path, list(declared))
        try:
            checked[key] = TypeAdapter(declared[key], config=None).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"{key}={value}{_complaint(error)}", path, f"it is {describe(declared[key])}") from None
    return checked


def _complaint(error: ValidationError) -> str:
    """The problem with a value, without the value: ``: must be odd; use 3 or 5``."""
    phrase = options.explain(error)
    return phrase[phrase.index(": ") :]


SIGNS = {Ge: ">= {}", Gt: "> {}", Le: "<= {}", Lt: "< {}"}


def describe(annotation: Any) -> str:
    """A description of a declared type: ``a number > 0``, ``tanh | sigmoid``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(str(a) for a in args)
    if origin is typing.Annotated:
        limits = [SIGNS[type(m)].format(*astuple(m)) for m in args[1:] if type(m) in SIGNS]
        odd = ["odd"] if options.ODD in args else []
        return " ".join([describe(args[0]), " and ".join([*odd, *(w for w in limits if "inf" not in w)])]).strip()
    if origin is list:
        return f"a list of {describe(args[0])}"
    if args:
        return " or ".join(describe(a) for a in args)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, str(annotation))


@cache
def declaration(target: str, where: str) -> dict[str, Any]:
    """The options that a builder declares: name to type, read from its source.

    Raises:
        ConfigError: there is no such builder, or a configuration may not call it.
    """
    module, _, name = target.rpartition(".")
    node = _builder(module, name)
    if node is None:
        raise ConfigError(f"{target} is no builder that may be called", f"{where}._target_", "name one of attnbench's")
    space = vars(typing) | vars(options)
    return {
        field: eval(compile(ast.Expression(annotation), module, "eval"), space)  # our own source, parsed above
        for field, annotation in _fields(node, module).items()
        if field not in SUPPLIED
    }


def _trusted(module: str) -> bool:
    trusted = ["attnbench", *filter(None, os.environ.get("ATTNBENCH_TRUST", "").split(","))]
    return module.split(".")[0] in trusted


def _builder(module: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The definition of a builder at the top level of a trusted module; None if there is no such builder."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = (node for node in _source(module) if isinstance(node, kinds) and node.name == name)
    return next(filter(_is_builder, found), None)


def _source(module: str) -> list[ast.stmt]:
    """A trusted module's statements, read without importing it; none if there are none to read."""
    try:
        spec = importlib.util.find_spec(present(module)) if _trusted(module) else None
    except ImportError:
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return []
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body


def _is_builder(node: ast.FunctionDef | ast.ClassDef) -> bool:
    names = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    return bool(names & {"checked", "dataclass"})


def _fields(node: ast.FunctionDef | ast.ClassDef, module: str) -> dict[str, ast.expr]:
    """A builder's keywords and their annotations; a dataclass has those of its bases that are dataclasses as well."""
    if isinstance(node, ast.FunctionDef):
        args = (*node.args.args, *node.args.kwonlyargs)
        return {arg.arg: arg.annotation for arg in args if arg.annotation is not None}
    fields: dict[str, ast.expr] = {}
    for home, name in (_origin(ast.unparse(base), module) for base in reversed(node.bases)):
        if inherited := _builder(home, name):
            fields |= _fields(inherited, home)
    own = (line for line in node.body if isinstance(line, ast.AnnAssign))
    return fields | {line.target.id: line.annotation for line in own if isinstance(line.target, ast.Name)}


def _origin(name: str, module: str) -> tuple[str, str]:
    """The module that defines what a module calls by that name, and its name there."""
    for line in _source(module):
        if isinstance(line, ast.ImportFrom) and line.module:
            for alias in line.names:
                if name == (alias.asname or alias.name):
                    return line.module, alias.name
    return module, name


def unknown(key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that does not exist, with the most similar one that does."""
    parent, _, last = key.rpartition(".")
    close = get_close_matches(last, known, 1, 0.5) or get_close_matches(key, known, 1, 0.5)
    path = ".".join(filter(None, [parent, close[0]])) if close and "." not in close[0] else close and close[0]
    todo = f"did you mean {path}?" if path else f"it has {', '.join(known[:12])}" if known else ""
    return ConfigError("unknown key", key, todo)
