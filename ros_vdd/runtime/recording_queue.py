# SPDX-License-Identifier: Apache-2.0
"""One thread that writes, so that no disk holds up the thread that receives; what waits for it is bounded, topic by topic."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class WriteQueue:
    """Does what it is given in that order, in a thread of its own. Jobs always find room; messages may not.

    A message is refused when those of its topic that wait would take more than `topic_bytes`: a camera can fill its own room,
    never that of the joint states.

    Args:
        topic_bytes: [bytes] room of one topic.
        idle: called in the thread every `period_s`, whether or not there is something to do.
        period_s: [s] see `idle`.
        threaded: False: no thread is started, and `submit` does all that waits before it returns.
    """

    def __init__(
        self, topic_bytes: float, idle: Callable[[], None] = lambda: None, period_s: float = 0.05, threaded: bool = True
    ) -> None:
        self.topic_bytes = topic_bytes
        """[bytes] room of one topic; a change holds for messages that come from now on."""
        self._idle, self._period_s = idle, period_s
        self._waiting: deque[tuple[str, int, Callable[[], Any]]] = deque()
        self._bytes: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False
        self.error: Exception | None = None
        """What a message or `idle` raised; the thread goes on."""
        self._thread = threading.Thread(target=self._run, name="recorder_writer", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()

    @property
    def bytes(self) -> int:
        """[bytes] of all messages that wait."""
        return self._bytes.total()

    def put(self, topic: str, size: int, action: Callable[[], Any]) -> bool:
        """Have a message written; return False, and forget it, where its topic has no room."""
        with self._changed:
            if self._bytes[topic] + size > self.topic_bytes and self._bytes[topic]:
                return False
            self._bytes[topic] += size
            self._waiting.append((topic, size, action))
            self._changed.notify()
        return True

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done after all that was given before; what it raises is in the future."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # told to whoever waits, as concurrent.futures does
                future.set_exception(error)

        with self._changed:
            self._waiting.append(("", 0, do))
            self._changed.notify()
        if self._thread is None or self._closed:
            self.drain()
        return future

    def post(self, job: Callable[[], Any], failed: Callable[[Exception], Any]) -> None:
        """Have a job done that nobody waits for; `failed` is told what it raises."""

        def do() -> None:
            try:
                job()
            except Exception as error:
                failed(error)

        self.submit(do)

    def drain(self, seconds: float = math.inf) -> None:
        """Do what waits, in the calling thread; begin nothing more after so many seconds."""
        end_s = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end_s:
            topic, size, action = self._waiting.popleft()
            self._try(action)
            with self._changed:
                self._bytes[topic] -= size

    def close(self) -> None:
        """Do what waits, then end the thread."""
        self._closed = True
        with self._changed:
            self._changed.notify()
        if self._thread:
            self._thread.join()
        self.drain()

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                if not self._waiting:
                    self._changed.wait(self._period_s)
            self.drain(self._period_s)  # where messages come faster than they are written, something always waits
            self._try(self._idle)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # to be told by whoever owns the queue: a thread that dies says nothing
            self.error = error
