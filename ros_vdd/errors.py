# SPDX-License-Identifier: Apache-2.0
"""One base error and a few children: a user's mistake is told, never a traceback.

Every message says what was given, what was expected, what exists, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RosVddError(Exception):
    """Base of every error that a user of ros_vdd can cause or must know about."""


class ConfigError(RosVddError):
    """A configuration or robot file is wrong: key, type, value or range."""


class StreamError(RosVddError):
    """A message can't be turned into an array: encoding, size, names or non-finite values."""


class DataError(RosVddError):
    """A bag, replay buffer or episode store is missing, damaged or doesn't fit the robot file."""


class PolicyError(RosVddError):
    """A policy folder is missing, damaged, incomplete or doesn't fit the robot file."""


class EngineError(RosVddError):
    """An inference engine isn't installed, refuses a graph, or failed its parity check."""


class EnvError(RosVddError):
    """A simulator isn't installed or was asked for something it doesn't have."""


SHOWN = 24
"""Names that a message lists; a folder of downloads holds hundreds."""


def suggest(name: str, available: Iterable[str]) -> str:
    """Return "available: a, b; did you mean 'a'?", for the end of an error message; of many names the first `SHOWN`."""
    names = sorted(str(a) for a in available)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"available: {', '.join(names[:SHOWN]) or 'none'}{more}{hint}"
