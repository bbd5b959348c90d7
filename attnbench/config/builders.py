"""Reads the options that a builder declares (names, types and ranges) from its source, without importing it.

An option file names its builder (``_target_``): a function decorated with ``checked``, or a dataclass. The options are
its keywords; a dataclass also has those of its bases. They are read with ``ast``, so that a typo is reported in a
fraction of a second, before torch is imported. A configuration can call such builders only, and only those of attnbench
or of a package named in ``ATTNBENCH_TRUST``.
"""

from __future__ import annotations

import ast
import importlib
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from difflib import get_close_matches
from functools import cache
from typing import Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from attnbench.base.errors import ConfigError, Failure, reason
from attnbench.base.moved import present
from attnbench.config import options
from attnbench.config.annotations import Place, Unreadable, Written, declared, home, is_trusted, source

# Arguments of builders that the caller supplies, not the configuration.
SUPPLIED = {"site", "num_classes", "class_names"}


def build(node: dict[str, Any], group: str, *args: Any, **supplied: Any) -> Any:
    """Call the builder that a node names, with the node's options and the values that the caller supplies.

    Raises:
        ConfigError: the target is not a declared builder of a trusted package.
    """
    target = present(node["_target_"])
    declaration(target, group)
    function = _imported(target, group)
    own = {k: v for k, v in node.items() if k != "_target_" and k not in options.SHARED.get(group, ())}
    try:
        return function(*args, **own, **supplied)
    except ValidationError as error:  # from a dataclass; ``checked`` translates its own errors
        raise ConfigError(options.explain(error), group) from error


def _imported(target: str, group: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Failure:
        raise
    except Exception as error:
        what = f"{module} cannot be imported: {type(error).__name__}: {reason(error)}"
        raise ConfigError(what, f"{group}._target_", _repair(error)) from error
    return function


def _repair(error: Exception) -> str:
    """What to do about an exception in a user's module: where it is, or what is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install {error.name.split('.')[0]}, or correct the import"
    lines = traceback.extract_tb(error.__traceback__)
    place = f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""
    return f"repair it{place}; debug=true shows the traceback"


def checked_node(node: dict[str, Any], group: str) -> dict[str, Any]:
    """A group's node, with its options checked against the types that its builder declares.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, with the dotted key.
    """
    target = present(str(node.get("_target_")))
    values = {k: v for k, v in node.items() if k not in ("_target_", "_revision_")}
    return {"_target_": target, **validated(values, declaration(target, group) | options.SHARED.get(group, {}), group)}


def validated(values: dict[str, Any], known: dict[str, Any], where: str) -> dict[str, Any]:
    """Check values against declared types; numbers are converted to the declared type.

    Args:
        values: the values by key.
        known: the declared types by key; a ConfigError for a type that cannot be read.
        where: the dotted key of the group, for error messages.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.
    """
    checked = {}
    for key, value in values.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in known:
            raise unknown(path, list(known))
        if isinstance(known[key], ConfigError):
            raise known[key]
        try:
            checked[key] = TypeAdapter(known[key], config=None).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"{key}={value}{_complaint(error)}", path, f"it is {describe(known[key])}") from None
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
        limits = [SIGNS[type(m)].format(*astuple(m)) for m in _single(args[1:]) if type(m) in SIGNS]
        odd = ["odd"] if options.ODD in args else []
        return " ".join([describe(args[0]), " and ".join([*odd, *(w for w in limits if "inf" not in w)])]).strip()
    if origin is list:
        return f"a list of {describe(args[0])}"
    if origin is dict:
        return f"names with {describe(args[1])} each, such as {{name: 1}}"
    if args:
        return " or ".join(describe(a) for a in args)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, str(annotation))


def _single(limits: Iterable[Any]) -> Iterator[Any]:
    """The single limits, including those inside ``Interval`` and pydantic's ``Field``."""
    for limit in limits:
        grouped = limit.metadata if isinstance(limit, FieldInfo) else limit
        yield from grouped if isinstance(grouped, (list, GroupedMetadata)) else [limit]


@cache
def declaration(target: str, where: str) -> dict[str, Any]:
    """The options that a builder declares, read from its source.

    Returns:
        Types by option. If a type cannot be read, a ConfigError, which is raised only if that option is set.

    Raises:
        ConfigError: there is no such builder, or a configuration may not call it.
    """
    module, _, name = target.rpartition(".")
    node = _builder(module, name)
    if node is None:
        raise _no_builder(target, f"{where}._target_")
    fields = _fields(node, module)
    return {field: declared(field, annotation) for field, annotation in fields.items() if field not in SUPPLIED}


def _no_builder(target: str, where: str) -> ConfigError:
    """The error for a target that is no builder: it names the variable, the import or the decorator that is missing."""
    module, _, name = target.rpartition(".")
    package = module.split(".")[0]
    what = f"{target} is not a builder of attnbench or of a package that ATTNBENCH_TRUST names"
    if not package.isidentifier() or package == "attnbench":
        return ConfigError(what, where, "use a function decorated with @checked, or a dataclass")
    if not is_trusted(module):
        return ConfigError(what, where, f"if {package} is your own package, run with ATTNBENCH_TRUST={package}")
    found = source(module)
    if found.path is None:
        todo = f"run in the folder that contains {package}, or add that folder to PYTHONPATH, or install {package}"
        return ConfigError(f"{target}: there is no module {module}", where, todo)
    bound = found.names.get(name)
    if isinstance(bound, Place):
        there = ".".join(filter(None, bound))
        return ConfigError(f"{target}: {name} is only imported in {found.path}", where, f"write {there}")
    if isinstance(bound, (ast.FunctionDef, ast.ClassDef)):
        kind, todo = ("class", "@dataclass") if isinstance(bound, ast.ClassDef) else ("function", "@checked")
        home = "dataclasses import dataclass" if kind == "class" else "attnbench import checked"
        what = f"{target} is not a builder: this {kind} has no decorator"
        return ConfigError(what, f"{found.path}:{bound.lineno}", f"put {todo} above it (from {home})")
    own = [one for one in found.names if _builder(module, one)]
    close = get_close_matches(name, own, 1)
    todo = f"did you mean {module}.{close[0]}?" if close else f"it has {', '.join(own)}" if own else "write one there"
    return ConfigError(f"{target} is not a builder: {found.path} does not define {name}", where, todo)


def _builder(module: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The definition of a builder at the top level of a trusted module; None if there is no such builder."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = (node for node in source(module).body if isinstance(node, kinds) and node.name == name)
    return next((node for node in found if _is_builder(node, module)), None)


def _is_builder(node: ast.FunctionDef | ast.ClassDef, module: str) -> bool:
    decorators = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    return any(_name(decorator, module) in {"checked", "dataclass"} for decorator in decorators)


def _name(node: ast.expr, module: str) -> str:
    """The name under which something is defined, or "" if it cannot be read."""
    try:
        return home(node, module).name
    except Unreadable:
        return ""


def _fields(node: ast.FunctionDef | ast.ClassDef, module: str) -> dict[str, Written]:
    """A builder's keywords and their annotations; a dataclass also has those of its bases that are dataclasses."""
    if isinstance(node, ast.FunctionDef):
        args = (*node.args.args, *node.args.kwonlyargs)
        return {arg.arg: Written(arg.annotation, module) for arg in args if arg.annotation is not None}
    fields: dict[str, Written] = {}
    for base in reversed(node.bases):
        with suppress(Unreadable):
            there, name = home(base, module)
            if inherited := _builder(there, name):
                fields |= _fields(inherited, there)
    own = {
        line.target.id: Written(line.annotation, module)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return fields | {name: annotation for name, annotation in own.items() if not _is_of_the_class(annotation)}


def _is_of_the_class(annotation: Written) -> bool:
    """Whether an annotation is ``ClassVar[...]``, which does not declare a field."""
    node, module = annotation
    return _name(node.value if isinstance(node, ast.Subscript) else node, module) == "ClassVar"


def unknown(key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that does not exist, with the most similar one that does."""
    parent, _, last = key.rpartition(".")
    close = get_close_matches(last, known, 1, 0.5) or get_close_matches(key, known, 1, 0.5)
    path = ".".join(filter(None, [parent, close[0]])) if close and "." not in close[0] else close and close[0]
    todo = f"did you mean {path}?" if path else f"it has {', '.join(known[:12])}" if known else ""
    return ConfigError("unknown key", key, todo)
