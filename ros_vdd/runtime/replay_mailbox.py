# SPDX-License-Identifier: Apache-2.0
"""The inference thread of a replay: one slot and the newest wins, as in `InferenceThread`, but by a clock that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class TimedMailbox:
    """Answers each request a fixed time after it was begun; one thread, the caller's.

    Args:
        work, on_result, on_error: as of `InferenceThread`.
        now_ns: the clock, [ns].
        delay_ns: how long the work takes on that clock, [ns]; 0 answers at the same instant.
        on_replaced: told of each request that gave way to a newer one before it was begun.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        on_result: Callable[[Any, Any], None],
        on_error: Callable[[Any, Exception], None],
        now_ns: Callable[[], int],
        delay_ns: int,
        on_replaced: Callable[[Any], None],
    ):
        self._work, self._on_result, self._on_error, self._on_replaced = work, on_result, on_error, on_replaced
        self._now_ns, self._delay_ns = now_ns, delay_ns
        self._request: Any = None
        self._answer: Callable[[], None] | None = None  # of the request in work
        self.replaced = 0
        self.due_ns: int | None = None
        """When the request in work is answered, [ns]; None while there is none."""

    def submit(self, request: Any) -> None:
        """Hand over a request; the newest wins."""
        if self._answer is None:
            self._begin(request)
            return
        if self._request is not None:
            self.replaced += 1
            self._on_replaced(self._request)
        self._request = request

    def wake(self) -> None:
        """Answer the request in work, which is due, and begin the one that waits."""
        answer, self._answer, self.due_ns = self._answer, None, None
        answer()
        request, self._request = self._request, None
        if request is not None:
            self._begin(request)

    def stop(self, timeout_s: float = 0.0) -> bool:
        """Drop everything."""
        self._request = self._answer = self.due_ns = None
        return True

    def _begin(self, request: Any) -> None:
        try:
            self._answer = partial(self._on_result, request, self._work(request))
        except Exception as error:  # as in InferenceThread: whatever an engine raises is told
            self._answer = partial(self._on_error, request, error)
        self.due_ns = self._now_ns() + self._delay_ns
