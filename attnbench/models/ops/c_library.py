"""Kernels in C for maps on a CPU: compiled at first use, for maps in channels_last of float32, float64 or bfloat16."""

from __future__ import annotations

import ctypes
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnbench.base import compile_c

log = logging.getLogger("attnbench")

SUFFIX = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
Argument = Tensor | ctypes.Structure | float | None


class Library:
    """The functions of a C file.

    Args:
        name: the file's name, in the folder of this module.
        instead: what is done where there is no C compiler, for the log.
    """

    def __init__(self, name: str, instead: str) -> None:
        self.source, self.instead = Path(__file__).with_name(name), instead

    @cached_property
    def functions(self) -> ctypes.CDLL | None:
        """The compiled functions; None, with a log line, if there is no C compiler."""
        try:
            return compile_c.load(self.source, parallel=True)
        except compile_c.Unavailable as error:
            log.info(f"{self.instead}: {error}")
            return None

    def takes(self, x: Tensor) -> bool:
        """Whether the functions can be used for a map."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        # Not for tensors without memory of their own, such as those of FakeTensorMode and of vmap.
        stored = type(x) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        usable = x.is_cpu and x.dtype in SUFFIX and x.is_contiguous(memory_format=torch.channels_last)
        return stored and usable and self.functions is not None

    def call(self, name: str, dtype: torch.dtype, *given: Argument) -> None:
        """Call a function for maps of a dtype; numbers are passed as int64 or double, the last is torch's threads."""
        assert self.functions is not None
        function = getattr(self.functions, f"{name}_{SUFFIX[dtype]}")
        function(*map(_argument, (*given, torch.get_num_threads())))


def _argument(value: Argument) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return None if value is None else ctypes.c_int64(value)
