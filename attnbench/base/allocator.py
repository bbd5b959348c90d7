"""The CPU's memory allocator."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_large_blocks() -> bool:
    """Let this process reuse the memory of large tensors; True if the C library does.

    By default glibc maps each block over 32 MB afresh and the kernel fills it with zeros, which costs an elementwise
    operation up to four times its own time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
