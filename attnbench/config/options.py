"""The types that builders use to declare options.

A builder named by ``_target_`` in configs/ declares each of its options once, as a keyword with one of these types.
``builders.py`` reads this declaration to check the command line, without importing the builder (and so without torch).
``checked`` enforces the same declaration when the builder is called from Python.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ConfigDict, ValidationError, validate_call

from attnbench.base.errors import ConfigError

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _odd(k: int) -> int:
    if k % 2 == 0:
        raise ValueError(f"must be odd; use {max(1, k - 1)} or {k + 1}")
    return k


def _distinct(items: list[Any]) -> list[Any]:
    if len(set(items)) != len(items):
        raise ValueError("names something twice")
    return items


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, cuda or cuda:<n>")
    return name


def _data_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", name) or name.strip(". ") == "":
        raise ValueError("must be a file name of at most 100 characters, without slashes")
    return name


Count = Annotated[int, Ge(1)]  # 1, 2, 3, ...
Several = Annotated[int, Ge(2)]  # for numbers of samples: batch norm needs two
Index = Annotated[int, Ge(0)]  # 0, 1, 2, ...
ODD = AfterValidator(_odd)
OddInt = Annotated[int, Ge(1), ODD]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
NonNegative = Annotated[float, Ge(0), Lt(float("inf"))]
Fraction = Annotated[float, Ge(0), Lt(1)]  # dropout, momentum, smoothing, decay
Share = Annotated[float, Gt(0), Le(1)]  # a fraction of a whole, above 0
Part = Annotated[float, Gt(0), Lt(1)]  # a fraction of a whole that leaves some
Names = Annotated[list[str], AfterValidator(_distinct)]
Stages = Annotated[list[Count], AfterValidator(_distinct)]
KernelSize = Literal["adaptive"] | OddInt | list[OddInt]  # one for all stages, or one per stage

DataName = Annotated[str, AfterValidator(_data_name)]
Device = Annotated[str, AfterValidator(_device)]
Wrap = Literal["conv", "conv_norm", "conv_norm_act"]
Blocks = Literal["all", "first", "last", "even"]
Gate = Literal["tanh", "sigmoid", "softmax", "relu", "none"]
DropoutPlace = Literal["hidden", "linear", "input"]
Law = Literal["step", "exponential", "linear", "cosine"]
Precision = Literal["fp32", "bf16", "fp16"]
Tail = Literal["auto", "reference", "algebraic", "fused"]
Pace = Literal["epoch", "step"]
Toolkit = Literal["torchvision", "mmdet"]  # whose protocol a detector follows
BoxAugment = Literal["ssd", "pytorch_ssd", "mirror", "none"]
Workers = Literal["auto"] | Index
PackSize = Literal["auto"] | Count  # runs trained at once; auto: as many as possible

# Options that every option of a group has. configs/train.yaml declares them, and no builder sees them.
SHARED: dict[str, dict[str, Any]] = {"backbone": {"weights": str | None}}

F = TypeVar("F", bound=Callable[..., Any])


def checked(builder: F) -> F:
    """A decorator that checks a builder's arguments against its annotations at every call.

    Raises:
        ConfigError: by the decorated builder, for an argument that is unknown, of the wrong type or out of range.
    """
    validated = validate_call(config=STRICT)(builder)

    @functools.wraps(builder)
    def build(*args: Any, **kwargs: Any) -> Any:
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(explain(error), builder.__name__) from None

    return build  # type: ignore[return-value]


def explain(error: ValidationError) -> str:
    """The most specific part of a validation error, as one phrase: ``kernel_size=4: must be odd; use 3 or 5``."""
    complaints = error.errors(include_url=False)
    # A union gives an error for each of its members. An error about a range is more specific than one about a type.
    first = next((c for c in complaints if c["type"] not in _TYPE_ERRORS), complaints[0])
    name = next((str(part) for part in first["loc"] if isinstance(part, str)), "")
    message = first["msg"].removeprefix("Value error, ")
    choices = [c["msg"].removeprefix("Input should be ") for c in complaints]
    if first["type"] in _TYPE_ERRORS:
        message = "must be " + " or ".join(dict.fromkeys(choices))
    else:
        message = message.replace("Input should be", "must be")
    value = complaints[0]["input"]
    return f"{name}={value!r}: {message}" if name else f"{value!r}: {message}"


_TYPE_ERRORS = {"int_type", "float_type", "bool_type", "string_type", "list_type", "literal_error", "none_required"}
