"""Requests of many clients as one batch: while a thread works, others wait; what waits is taken at once.

There is no window of time: a request that finds the thread idle is begun at once, and under load the batches grow by
themselves. One thread runs everything, so what it runs needs no lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from personalization.errors import DataError, UnavailableError

Asked = TypeVar("Asked")
Given = TypeVar("Given")

MOST_WAITING = 4096
"""Things that may wait; more are refused."""


class _Waiting(NamedTuple):
    asked: list[object]
    size: int
    answer: asyncio.Future[list[object]]


class Batcher(Generic[Asked, Given]):
    """`run` on lists of at most about `budget` in size, in one thread. Use it from one event loop.

    `size`: of one thing, such as a bound of its tokens; what is larger than the budget is run alone. Where a batch
    fails with a DataError, each client's part is run alone: only whose question is wrong gets the error.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Asked]], Sequence[Given]],
        size: Callable[[Asked], int] = lambda _: 1,
        budget: int = 512,
    ) -> None:
        self._run, self._size, self._budget = run, size, budget
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[_Waiting] = deque()
        self._count = 0
        self._busy = False

    async def of(self, asked: Sequence[Asked]) -> list[Given]:
        """The results of `run` for these, in their order, from one batch; UnavailableError where too many wait."""
        if self._count + len(asked) > MOST_WAITING:
            raise UnavailableError(f"{self._count} questions wait; ask again in a second")
        answer: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(list(asked), sum(map(self._size, asked)), answer))
        self._count += len(asked)
        if not self._busy:
            self._begin()
        return await answer  # type: ignore[return-value]

    def _begin(self) -> None:
        batch, size = list[_Waiting](), 0
        while self._waiting and (not batch or size + self._waiting[0].size <= self._budget):
            one = self._waiting.popleft()
            self._count -= len(one.asked)
            if not one.answer.done():  # a client that has gone is not worked for
                batch.append(one)
                size += one.size
        if not batch:
            return
        self._busy = True
        parts = [one.asked for one in batch]
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._each, parts)  # type: ignore[arg-type]
        work.add_done_callback(lambda done: self._end(batch, done))

    def _each(self, parts: list[list[Asked]]) -> list[list[Given] | DataError]:
        """The results of each part, from one run; where that fails with a DataError, from a run of each alone."""
        try:
            found = self._run([thing for part in parts for thing in part])
        except DataError as error:
            return [error] if len(parts) == 1 else [self._each([part])[0] for part in parts]
        ends = list(accumulate(map(len, parts)))
        return [list(found[end - len(part) : end]) for part, end in zip(parts, ends, strict=True)]

    def _end(self, batch: list[_Waiting], done: asyncio.Future[list[list[Given] | DataError]]) -> None:
        self._busy = False
        self._begin()
        error = done.exception()
        for one, found in zip(batch, [error] * len(batch) if error is not None else done.result(), strict=True):
            if one.answer.done():
                continue
            if isinstance(found, BaseException):
                one.answer.set_exception(found)
            else:
                one.answer.set_result(list(found))

    async def soon(self, work: Callable[[], None]) -> None:
        """Run something else in the thread, between two batches."""
        await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()
