"""One hash over the contents of pictures: names and sizes alone do not show that a picture was replaced."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

READERS = 16  # threads: on a network file system, reading is mostly waiting
WHOLE_BYTES, WHOLE_FILES = 2**28, 20_000  # all pictures are read if there are no more than this
SAMPLE = 1_000  # otherwise, the number of pictures in a fixed sample


def digest(
    sizes: Sequence[int], read: Callable[[int], bytes], about: Callable[[int, bytes], bytes] | None = None
) -> str:
    """SHA-256 in hex over the bytes of all pictures, or of a fixed sample if there are many.

    Args:
        sizes: the size of each picture in bytes.
        read: returns the bytes of a picture, given its number.
        about: returns further bytes to hash for a picture, given its number and its bytes; called in threads.

    Raises:
        DataError: a picture cannot be read.
    """
    numbers = range(len(sizes))
    if len(sizes) > WHOLE_FILES or sum(sizes) > WHOLE_BYTES:
        chosen: Sequence[int] = sorted(random.Random(0).sample(numbers, min(SAMPLE, len(sizes))))
    else:
        chosen = numbers
    whole = hashlib.sha256()

    def look(number: int) -> bytes:
        data = read(number)
        return hashlib.sha256(data).digest() + (about(number, data) if about else b"")

    with ThreadPoolExecutor(READERS) as pool:
        for one in pool.map(look, chosen):
            whole.update(one)
    return whole.hexdigest()
