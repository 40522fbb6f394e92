# SPDX-License-Identifier: Apache-2.0
"""At which times a bag is looked at: evenly, or whenever one stream gave a message."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence


def even_ticks(start_ns: int, end_ns: int, rate_hz: float) -> Iterator[tuple[int, int]]:
    """Yield (t_k, t_(k+1) - t_k) [ns], t_k = start + k / rate_hz, up to the end; rounding doesn't add up."""
    tick, k = start_ns, 0
    while tick <= end_ns:
        k += 1
        following = start_ns + round(k * 1e9 / rate_hz)
        yield tick, following - tick
        tick = following


def clock_ticks(stamps: Sequence[int], start_ns: int, end_ns: int, rate_hz: float) -> Iterator[tuple[int, int]]:
    """Yield (tick, time until the next) [ns], with ticks taken from a stream's stamps.

    The next tick is the stamp nearest to one period after the last one, within half a period. Where there is none, (time, 0)
    marks the gap, and the ticks begin again at the next stamp.

    Args:
        stamps: [ns] ascending.
        start_ns: one of them, the first tick.
        end_ns: no tick lies after it.
    """
    period = 1e9 / rate_hz
    tick = start_ns
    while tick <= end_ns:
        wanted = tick + period
        first, last = bisect_right(stamps, wanted - period / 2), bisect_right(stamps, wanted + period / 2)
        near = [s for s in stamps[first:last] if s > tick]
        following = min(near, key=lambda s: abs(s - wanted)) if near else None
        if following is not None and last == len(stamps) and wanted - following > period / 4:
            following = None  # the nearest only because the stream ends there
        yield tick, (following - tick if following is not None else round(period))
        if following is None:
            later = bisect_left(stamps, round(wanted + period / 2), lo=last)
            if later >= len(stamps):
                return
            if round(wanted) <= end_ns:
                yield round(wanted), 0
            following = stamps[later]
        tick = following
