"""Reads the types of a builder's options from its source, without importing or running a user's code.

An annotation consists of names. Names from ``typing``, ``annotated_types``, pydantic and ``attnbench.config.options``
are used as they are. A name that the module assigns, or imports from a trusted package, is looked up in the sources. A
user's own validator is left out: the builder applies it when it is called.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import importlib.util
import math
import operator
import os
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import annotated_types
import pydantic
import typing_extensions
from pydantic import TypeAdapter

from attnbench.base.errors import ConfigError
from attnbench.base.moved import present
from attnbench.config import options

TYPES = ("int", "float", "bool", "str", "bytes", "complex", "object", "list", "tuple", "dict", "set", "frozenset")
SIGNED = ("Positive{}", "Negative{}", "NonPositive{}", "NonNegative{}", "Strict{}")
OF_PYDANTIC = (
    *(name.format(kind) for name in SIGNED for kind in ("Int", "Float")),
    *("StrictBool", "StrictStr", "FiniteFloat", "conint", "confloat", "constr", "conlist"),
    *("Field", "Strict", "StringConstraints"),
)

# The modules whose names are used as they are.
KNOWN: dict[str, dict[str, Any]] = {
    "builtins": {name: getattr(builtins, name) for name in TYPES},
    "typing": vars(typing),
    "typing_extensions": vars(typing_extensions),
    "collections.abc": vars(collections.abc),
    "annotated_types": vars(annotated_types),
    "pydantic": {name: getattr(pydantic, name) for name in OF_PYDANTIC},
    "math": {name: value for name, value in vars(math).items() if isinstance(value, float)},
    "attnbench.config.options": vars(options),
}
NAMING = (typing.NewType, typing_extensions.TypeAliasType)  # calls with a name and a type, which return the type
MAKING = (pydantic.conint, pydantic.confloat, pydantic.constr, pydantic.conlist)  # calls that return a type
LIMITING = (pydantic.Field, pydantic.Strict, pydantic.StringConstraints)  # calls that return a limit for a type

TODO = "write it with int, float, bool, str, list, Literal, Annotated and the types of attnbench.config.options"


class Unreadable(Exception):
    """The type of an annotation cannot be found in the sources; the message is the reason."""


class Written(NamedTuple):
    """An expression and the module that contains it."""

    node: ast.expr
    module: str


class Place(NamedTuple):
    """A name in a module, or the module itself if the name is empty."""

    module: str
    name: str = ""


def declared(option: str, annotation: Written) -> Any:
    """The type of an option; if it cannot be read, a ConfigError to raise when the option is set."""
    node, module = annotation
    try:
        meant = _meaning(node, module)
        if not module.startswith("attnbench."):
            TypeAdapter(meant)
    except RecursionError:
        reason = "it refers to itself"
    except Unreadable as error:
        reason = str(error)
    except Exception as error:  # pydantic and typing raise several kinds for invalid types
        reason = f"{type(error).__name__}: {error}"
    else:
        return meant
    what = f"the type of {option} cannot be read from the source: {ast.unparse(node)}, as {reason}"
    return ConfigError(what, f"{source(module).path}:{node.lineno}", TODO)


@dataclass(frozen=True)
class Source:
    """A module's file and its statements; without both if there is nothing to read."""

    module: str
    path: Path | None = None
    body: Sequence[ast.stmt] = ()

    @cached_property
    def names(self) -> dict[str, ast.AST | Place]:
        """The names at the top level, and their values: an expression, a definition, or a name in another module."""
        inside = self.path is not None and self.path.name == "__init__.py"
        return dict(_bindings(self.body, self.module if inside else self.module.rpartition(".")[0]))


def source(module: str) -> Source:
    """Read a module of attnbench, or of a package named in ``ATTNBENCH_TRUST``, without importing it.

    Raises:
        ConfigError: the file cannot be read, or it is not valid source for this version of Python.
    """
    if not is_trusted(module):
        return Source(module)
    _spec(module)  # may add the working folder to the path
    return _read(present(module), tuple(sys.path))


@cache
def _read(module: str, folders: tuple[str, ...]) -> Source:
    """A module's source, found in these folders."""
    spec = _spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return Source(module)
    path = Path(spec.origin)
    try:
        return Source(module, path, ast.parse(path.read_bytes()).body)
    except SyntaxError as error:
        this = "Python {}.{}".format(*sys.version_info)
        raise ConfigError(f"the source is not {this}: {error.msg}", f"{path}:{error.lineno}", "repair it") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the source cannot be read: {error}", path, "repair it") from error


_begun: list[tuple[str, ...]] = []  # what ATTNBENCH_TRUST named when a command began


def trusted() -> tuple[str, ...]:
    """The packages that ``ATTNBENCH_TRUST`` names; inside ``as_trusted_now``, those that it named at the beginning."""
    return _begun[-1] if _begun else _named()


def _named() -> tuple[str, ...]:
    return tuple(name.strip() for name in os.environ.get("ATTNBENCH_TRUST", "").split(",") if name.strip())


@contextmanager
def as_trusted_now() -> Iterator[None]:
    """Inside this context, a changed ``ATTNBENCH_TRUST`` has no effect: no configuration can add a package."""
    _begun.append(_named())
    try:
        yield
    finally:
        _begun.pop()


def is_trusted(module: str) -> bool:
    """Whether a module is of attnbench or of a package named in ``ATTNBENCH_TRUST``."""
    return module.split(".")[0] in ("attnbench", *trusted())


def folder_of(package: str) -> Path | None:
    """The folder of a package, or of a folder in it, without an import; None if there is no such package."""
    first, *rest = package.split(".")
    spec = _spec(first)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0], *rest) if places else None


def _spec(module: str) -> ModuleSpec | None:
    """The spec of a module. For a submodule, ``importlib.util.find_spec`` would import the packages around it.

    A trusted package is also found in the working folder, where the command of an installed attnbench does not look.
    """
    package, *rest = module.split(".")
    if not all(part.isidentifier() for part in (package, *rest)):
        return None
    try:
        spec = importlib.util.find_spec(package) or _here(package)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        package, folders = f"{package}.{part}", spec.submodule_search_locations
        specs = (finder.find_spec(package, folders, None) for finder in sys.meta_path)
        try:
            spec = next(filter(None, specs), None)
        except KeyError:  # a folder without __init__.py, in a package that is not imported
            return None
    return spec


def _here(package: str) -> ModuleSpec | None:
    """The spec of a trusted package in the working folder, which becomes the last folder that imports look in."""
    here = os.path.realpath(os.curdir)
    if here in sys.path or package not in trusted():
        return None
    if not ((Path(here) / package).is_dir() or (Path(here) / f"{package}.py").is_file()):
        return None
    sys.path.append(here)
    return importlib.util.find_spec(package)


def home(name: ast.expr, module: str) -> Place:
    """The place at which a name in a module, such as ``Rate`` or ``t.Literal``, is defined."""
    if isinstance(name, ast.Attribute):
        return _home(_module(name.value, module), name.attr)
    return _home(module, name.id if isinstance(name, ast.Name) else "")


def _home(module: str, name: str) -> Place:
    bound = source(module).names.get(name)
    return _home(*bound) if isinstance(bound, Place) and bound.name else Place(module, name)


def _module(name: ast.expr, module: str) -> str:
    """The module that a name refers to: ``typing`` for ``t`` after ``import typing as t``."""
    if isinstance(name, ast.Attribute):
        return f"{_module(name.value, module)}.{name.attr}"
    bound = source(module).names.get(name.id) if isinstance(name, ast.Name) else None
    if not isinstance(bound, Place):
        raise Unreadable(f"{ast.unparse(name)} is not an imported module")
    return ".".join(filter(None, bound))


def _bindings(body: Iterable[ast.stmt], package: str) -> Iterator[tuple[str, ast.AST | Place]]:
    """Names and the values that statements bind to them, in order; the last binding of a name counts."""
    for line in body:
        match line:
            case ast.If():
                yield from _bindings([*line.orelse, *line.body], package)
            case ast.Try():
                handled = [one for handler in line.handlers for one in handler.body]
                yield from _bindings([*handled, *line.body, *line.orelse, *line.finalbody], package)
            case ast.ImportFrom():
                yield from _imported_from(line, package)
            case _:
                yield from _simple_bindings(line)


def _simple_bindings(line: ast.stmt) -> Iterator[tuple[str, ast.AST | Place]]:
    match line:
        case ast.Import():
            yield from (_imported(alias) for alias in line.names)
        case ast.Assign():
            yield from ((target.id, line.value) for target in line.targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value
        case ast.ClassDef() | ast.FunctionDef():
            yield line.name, line
        case _ if isinstance(line, getattr(ast, "TypeAlias", ())):  # from Python 3.12 on
            yield line.name.id, line if line.type_params else line.value  # type: ignore[attr-defined]


def _imported(alias: ast.alias) -> tuple[str, Place]:
    first = alias.name.partition(".")[0]
    return (alias.asname, Place(alias.name)) if alias.asname else (first, Place(first))


def _imported_from(line: ast.ImportFrom, package: str) -> Iterator[tuple[str, ast.AST | Place]]:
    above = package.split(".")[: len(package.split(".")) - line.level + 1] if line.level else []
    module = ".".join([*above, *filter(None, [line.module])])
    for alias in line.names:
        if alias.name == "*":
            public = KNOWN.get(present(module)) or source(module).names
            yield from ((name, Place(module, name)) for name in public if not name.startswith("_"))
        else:
            yield alias.asname or alias.name, Place(module, alias.name)


def _found(name: ast.Name | ast.Attribute, module: str) -> Any:
    """The value of a name: a known object, or the expression that is assigned to it."""
    there, called = home(name, module)
    if (known := KNOWN.get(present(there))) is not None:
        if called.startswith("_") or called not in known:
            raise Unreadable(f"{there} has no type {called}")
        return known[called]
    if not is_trusted(there):
        raise Unreadable(f"{called} comes from {there}, which ATTNBENCH_TRUST does not name")
    bound = source(there).names.get(called)
    if isinstance(bound, ast.expr):
        return Written(bound, there)
    if bound is None and called in KNOWN["builtins"]:
        return KNOWN["builtins"][called]
    kind = "a class or a function" if bound else "neither assigned nor imported"
    raise Unreadable(f"{called} is {kind} in {source(there).path or there}")


def _meaning(node: ast.expr, module: str) -> Any:
    """The type that an annotation means."""
    match node:
        case ast.Constant(value=str() as text):
            return _meaning(_quoted(text), module)
        case ast.Constant(value=None | builtins.Ellipsis):
            return node.value
        case ast.Name() | ast.Attribute():
            found = _found(node, module)
            if not isinstance(found, FunctionType):
                return _meaning(*found) if isinstance(found, Written) else found
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return typing.Union[_meaning(left, module), _meaning(right, module)]  # noqa: UP007
        case ast.Subscript(value=generic, slice=inside):
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _subscripted(_meaning(generic, module), parts, module)
        case ast.Call():
            return _called(node, module)
    raise Unreadable(f"{ast.unparse(node)} is not a type")


def _quoted(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise Unreadable(f"{text!r} is not a type") from None


def _subscripted(generic: Any, parts: Sequence[ast.expr], module: str) -> Any:
    """``Literal[...]``, ``Annotated[...]``, ``list[...]`` and the like."""
    if generic is typing.Literal:
        return operator.getitem(generic, tuple(_value(part, module) for part in parts))
    if generic is typing.Annotated:
        kind, limits = _meaning(parts[0], module), tuple(_limits(parts[1:], module))
        return operator.getitem(generic, (kind, *limits)) if limits else kind
    meant = tuple(_meaning(part, module) for part in parts)
    return operator.getitem(generic, meant[0] if len(meant) == 1 else meant)


def _limits(nodes: Iterable[ast.expr], module: str) -> Iterator[Any]:
    """The arguments that ``Annotated`` adds to a type, without those that could be read only by running code."""
    for node in nodes:
        try:
            yield _limit(node, module)
        except Unreadable:
            continue


def _limit(node: ast.expr, module: str) -> Any:
    match node:
        case ast.Call(func=ast.Name() | ast.Attribute() as name):
            called = _found(name, module)
            if called not in LIMITING and getattr(called, "__module__", "") != "annotated_types":
                raise Unreadable(f"{ast.unparse(name)} does not limit a type")
            return called(*(_value(arg, module) for arg in node.args), **_keywords(node, module))
        case ast.Name() | ast.Attribute():
            found = _found(node, module)
            return _limit(*found) if isinstance(found, Written) else found
    return _value(node, module)


def _called(node: ast.Call, module: str) -> Any:
    """A type that a call returns, such as ``conint(gt=0)`` or ``NewType("Rate", float)``."""
    called = _found(node.func, module) if isinstance(node.func, (ast.Name, ast.Attribute)) else None
    if called in NAMING:
        return _meaning(node.args[1], module)
    if called not in MAKING:
        raise Unreadable(f"{ast.unparse(node)} is not a type")
    return called(*(_value(arg, module) for arg in node.args), **_keywords(node, module))


def _keywords(node: ast.Call, module: str) -> dict[str, Any]:
    return {keyword.arg: _value(keyword.value, module) for keyword in node.keywords if keyword.arg}


def _value(node: ast.expr, module: str) -> Any:
    """A constant or an equivalent: ``-1``, ``math.inf``, ``float("inf")``, a name of a constant, or a type."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, module)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() | int() as number)]):
            return float(number)
        case ast.Name() | ast.Attribute():
            found = _found(node, module)
            return _value(*found) if isinstance(found, Written) else found
    return _meaning(node, module)
