# SPDX-License-Identifier: Apache-2.0
"""One line of the doctor's report."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """What was looked at, how it is, what was found and what to do; the names are stable keys of --json."""

    check: str
    level: Literal["ok", "warn", "error"]
    detail: str
    remedy: str = ""
