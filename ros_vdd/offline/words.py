# SPDX-License-Identifier: Apache-2.0
"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return "1 episode" and "2 episodes"."""
    return f"{count} {noun}" + "s" * (count != 1)
