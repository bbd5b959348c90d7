"""What pictures contain, as one number: names and sizes do not tell a picture from another one of the same size."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

READERS = 16  # threads: on a network file system reading is mostly waiting
WHOLE_BYTES, WHOLE_FILES = 2**28, 20_000  # up to these, all pictures are read
SAMPLE = 1_000  # otherwise a fixed choice of so many


def digest(sizes: Sequence[int], read: Callable[[int], bytes]) -> str:
    """SHA-256 in hex over the bytes of pictures: of all, or of a fixed choice where they are many.

    Args:
        sizes: of each picture in bytes.
        read: gives the bytes of a picture by its number.

    Raises:
        DataError: one cannot be read.
    """
    numbers = range(len(sizes))
    if len(sizes) > WHOLE_FILES or sum(sizes) > WHOLE_BYTES:
        chosen: Sequence[int] = sorted(random.Random(0).sample(numbers, min(SAMPLE, len(sizes))))
    else:
        chosen = numbers
    whole = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for one in pool.map(lambda number: hashlib.sha256(read(number)).digest(), chosen):
            whole.update(one)
    return whole.hexdigest()
