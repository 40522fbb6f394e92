# SPDX-License-Identifier: Apache-2.0
"""The stamp of a serialized message, read without decoding the rest."""

from __future__ import annotations

import functools
import struct

from ros_vdd.data.cdr import definition_text

_STAMP = {0: struct.Struct(">iI"), 1: struct.Struct("<iI")}  # behind four bytes of encapsulation


@functools.cache
def has_header(type_name: str) -> bool:
    """Return whether messages of a standard type begin with a std_msgs/Header.

    Raises:
        DataError: no standard type has this name.
    """
    lines = definition_text(type_name)[0].splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    return first.split()[:1] == ["std_msgs/Header"] or first.split()[:1] == ["std_msgs/msg/Header"]


def header_stamp_ns(data: bytes) -> int | None:
    """Return the stamp [ns] of a message that begins with a header; None where it is zero or the bytes are too few."""
    if len(data) < 12 or data[1] not in _STAMP:
        return None
    seconds, nanoseconds = _STAMP[data[1]].unpack_from(data, 4)
    return seconds * 1_000_000_000 + nanoseconds or None
