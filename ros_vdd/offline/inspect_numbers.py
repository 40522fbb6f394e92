# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: few digits, a unit on each."""

from __future__ import annotations

import math


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Return a value with its unit, rounded to some significant digits; "–" for none."""
    if value is None:
        return "–"
    text = "0" if value == 0 else f"{value:.{digits}g}"
    if "e" in text and 1e-4 <= abs(value) < 1e7:
        text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.{digits + 3}f}".rstrip("0")
    return f"{text.replace('-', '−')}{_spaced(unit)}"


def share(value: float | None) -> str:
    """Return a share in percent; "–" for none."""
    if value is None:
        return "–"
    percent = 100 * value
    return "0 %" if percent == 0 else "<0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


def milliseconds(seconds: float | None) -> str:
    """Return a short time in ms, a long one in s; "–" for none."""
    if seconds is None:
        return "–"
    if abs(seconds) >= 10:
        return f"{seconds:.1f} s".replace("-", "−")
    return f"{round(seconds * 1e3, 1 if abs(seconds) < 0.01 else None):g} ms".replace("-", "−")


def size(count: float) -> str:
    """Return a number of bytes with kB, MB or GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def clock(seconds: float) -> str:
    """Return a duration as 12.3 s, 4 min 05 s or 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def ticks(low: float, high: float, count: int = 3) -> list[float]:
    """Return some round numbers inside [low, high], at most `count` + 1."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if (high - low) / (step * f) <= count)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _spaced(unit: str) -> str:
    return "" if not unit or unit == "1" else f" {unit}"
