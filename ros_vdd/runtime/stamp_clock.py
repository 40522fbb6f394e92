# SPDX-License-Identifier: Apache-2.0
"""The stamps of one stream beside the clock of the receiver: are they of one time, and was one of the clocks set.

Clocks are set by hand, by NTP, by a simulation that starts again and by a bag that loops.
"""

from __future__ import annotations

from ros_vdd.streams.resample import RESET_NS as JUMP_NS


class StampClock:
    """Compares each stamp with the time of its receipt, and both with those of the message before.

    Args:
        header: whether stamps are the sender's; the receiver's own can't differ from its clock
        lock_step: a simulator's stamps stand and leap as it pleases, and only going back means anything
        max_skew_s: [s] farther from the time of receipt no stamp is believed; 0 doesn't compare the two clocks
    """

    def __init__(self, header: bool, lock_step: bool = False, max_skew_s: float = 0.0):
        self._compared = header and not lock_step and max_skew_s > 0
        self._lock_step, self._max_skew_ns = lock_step, round(max_skew_s * 1e9)
        self.clear()

    def clear(self) -> None:
        """Forget the message before."""
        self._before: tuple[int, int, float | None] | None = None

    def skew(self, stamp_ns: int, receive_ns: int) -> str | None:
        """Return how far a stamp is from the time of its receipt where that is too far, or None."""
        apart_ns = stamp_ns - receive_ns
        if not self._compared or abs(apart_ns) <= self._max_skew_ns:
            return None
        if receive_ns == 0:
            return "this node runs on simulated time, and nothing has come on /clock yet"
        side = "ahead of" if apart_ns > 0 else "behind"
        return (
            f"the header's stamp is {span(apart_ns)} {side} this node's clock, limit {span(self._max_skew_ns)}; synchronise the "
            "clocks, set use_sim_time where stamps are of a simulation or a bag, or choose stamp: receive in the robot file"
        )

    def jump(self, stamp_ns: int, receive_ns: int, steady_s: float | None = None) -> str | None:
        """Return which clock was set since the message before, or None; this message is then the one before.

        Args:
            stamp_ns, receive_ns: [ns] of a message, on the sender's and on the receiver's clock
            steady_s: [s] of its receipt on a clock that nobody sets, if known
        """
        before, self._before = self._before, (stamp_ns, receive_ns, steady_s)
        if before is None:
            return None
        stamped_ns, passed_ns = stamp_ns - before[0], receive_ns - before[1]
        if passed_ns < -JUMP_NS:
            return f"this node's clock went back by {span(passed_ns)}"
        if stamped_ns < -JUMP_NS:
            return f"the stamps went back by {span(stamped_ns)}"
        if self._lock_step:
            return None
        if steady_s is not None and before[2] is not None:
            leapt_ns = passed_ns - round((steady_s - before[2]) * 1e9)
            if leapt_ns > JUMP_NS:  # the other way a simulation was merely paused
                return f"this node's clock went {span(leapt_ns)} ahead at once"
        if self._compared and abs(stamped_ns - passed_ns) > JUMP_NS:
            return f"the stamps went {span(stamped_ns)} on while {span(passed_ns)} passed on this node's clock"
        return None


def span(duration_ns: int) -> str:
    """Return the size of a time difference in words: "0.3 s", "2.5 h"."""
    seconds = abs(duration_ns) / 1e9
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
