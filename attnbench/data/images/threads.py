"""Work that threads do ahead of who wants it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

WAITING = 8  # results for each thread that may wait to be taken


def in_order(call: Callable[[T], Result], items: Iterable[T], threads: int) -> Iterator[Result]:
    """``call`` of every item, in the order of the items, by ``threads`` threads; few results wait at any time."""
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
