# SPDX-License-Identifier: Apache-2.0
"""What an operator is told: the answer to a request, and what happened without one."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Literal, NamedTuple


class Reply(NamedTuple):
    """The answer to an operator's request."""

    success: bool
    message: str


class Note(NamedTuple):
    """Something that happened without a request."""

    level: Literal["info", "warning", "error"]
    text: str


def at_once(reply: Reply) -> Future[Reply]:
    """Return a reply that is known already as one that may take its time."""
    future: Future[Reply] = Future()
    future.set_result(reply)
    return future
