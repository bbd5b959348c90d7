"""Threads that compute results before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

WAITING = 8  # finished or pending results per thread that have not been yielded yet


def in_order(call: Callable[[T], Result], items: Iterable[T], threads: int) -> Iterator[Result]:
    """The results of ``call`` for all items, in order; ``threads`` threads compute a limited number of them ahead."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > WAITING * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
