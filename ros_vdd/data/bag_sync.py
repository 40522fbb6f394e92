# SPDX-License-Identifier: Apache-2.0
"""Syncs a file beside its writing: a slow disk must not keep chunks from the operating system, which outlives the process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Syncer:
    """Does one sync at a time.

    Args:
        beside: in a thread of its own; False: at once, in the calling thread.
    """

    def __init__(self, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder_sync") if beside else None
        self._running: Future[None] | None = None

    def request(self, sync: Callable[[], None]) -> None:
        """Begin a sync, unless one is still under way.

        Raises:
            OSError: this one failed, or the one before.
        """
        if self._pool is None:
            sync()
        elif self._running is None or self._running.done():
            self.wait()
            self._running = self._pool.submit(sync)

    def wait(self) -> None:
        """Wait for the one that is under way.

        Raises:
            OSError: it failed.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, whatever comes of it, and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()
