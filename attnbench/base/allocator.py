"""Settings of the CPU's memory allocator."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_large_blocks() -> bool:
    """Make this process reuse the memory of large tensors; returns whether the C library supports it.

    By default, glibc maps every block over 32 MB anew, and the kernel fills it with zeros. This can take up to four
    times as long as an elementwise operation itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
