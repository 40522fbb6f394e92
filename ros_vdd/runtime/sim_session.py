# SPDX-License-Identifier: Apache-2.0
"""Seeded episodes of a simulator, paced by the wall clock or by the commands that come back. Our own.

An episode is the loop of Diffusion Policy's protocol: show the observation, take the action, step, until done. What
differs is where the action of a step comes from:

| pace      | the action of step k                                | a step without one          |
|-----------|-----------------------------------------------------|-----------------------------|
| real time | newest command stamped before the end of the period | last command again, counted |
| lock-step | the command with the stamp of observation k         | an error after a time-out   |

The link to the robot side is handed in, so the loop runs without ROS and without waiting in tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ros_vdd.envs import Env
from ros_vdd.errors import EnvError

FIRST_STAMP_NS = 1_000_000_000_000  # lock-step clocks start here: a zero stamp would mean "never set"


class Command(NamedTuple):
    """What the robot was told, and when."""

    stamp_ns: int
    action: np.ndarray


class Link(Protocol):
    """What an episode needs of the side that has the clock and the topics; called from the session's thread only."""

    def now_ns(self) -> int:
        """Return the time of the wall clock."""

    def sleep_until(self, time_ns: int) -> None:
        """Return at that time of the wall clock, or raise when the session is to end."""

    def show(self, stamp_ns: int, observation: Mapping[str, np.ndarray]) -> None:
        """Publish camera images and joint states with one stamp, before them the goal where it is a new one."""

    def newest_command(self, after_ns: int, before_ns: int) -> Command | None:
        """Return the newest command stamped within [after, before), if there is one."""

    def await_command(self, stamp_ns: int, timeout_s: float) -> Command | None:
        """Return the command with exactly this stamp, or None after the time-out."""


class Pace(Protocol):
    """Where the time of an episode comes from."""

    def begin(self, observation: Mapping[str, np.ndarray]) -> None:
        """Show the first observation of an episode."""

    def next_action(self) -> np.ndarray:
        """Return the action of the period that begins with the observation shown last; (A,)."""

    def show(self, observation: Mapping[str, np.ndarray]) -> None:
        """Show the observation at the end of that period."""


@dataclass(frozen=True)
class EpisodeResult:
    """What came of an episode.

    Args:
        seed: of the simulator.
        score, success: as the environment defines them.
        stamps_ns: of the observation before each step, [ns].
        actions: (steps, A) as applied; the episode can be simulated again from the seed and these.
        frames_sent: observations published, the repeats before the first command included.
        held_steps: steps in which no new command had come.
    """

    seed: int
    score: float
    success: bool
    stamps_ns: tuple[int, ...]
    actions: np.ndarray
    frames_sent: int
    held_steps: int


class RealTime:
    """Steps with the wall clock; before the first command the simulator stands still and shows its first observation.

    Stamps lie on the grid start + k*dt. A command counts for the period in which it was stamped, so that a jitter of
    this thread's waking shifts no action into the next period.

    Args:
        link: clock and topics.
        dt_ns: policy period, [ns].
        timeout_s: how long to wait for the first command of an episode, [s].
        quiet_s: a new episode begins when no command has come for so long: those of the last one are over, [s].
    """

    def __init__(self, link: Link, dt_ns: int, timeout_s: float, quiet_s: float):
        self._link, self._dt_ns = link, dt_ns
        self._timeout_ns, self._quiet_ns = round(timeout_s * 1e9), round(quiet_s * 1e9)
        self.frames_sent = self.held_steps = self.stamp_ns = 0

    def begin(self, observation: Mapping[str, np.ndarray]) -> None:
        """Wait until the commands of the last episode have ended, then show the first observation."""
        self.frames_sent = self.held_steps = 0
        self._await_quiet()
        self._begin_ns = self.stamp_ns = self._link.now_ns()
        self._command: Command | None = None
        self.show(observation)

    def next_action(self) -> np.ndarray:
        """Wait for the end of the period; return the newest command stamped in it, else the one before."""
        while True:
            end_ns = self.stamp_ns + self._dt_ns
            self._link.sleep_until(end_ns)
            new = self._link.newest_command(self._begin_ns if self._command is None else self.stamp_ns, end_ns)
            self.held_steps += new is None and self._command is not None
            self._command = new or self._command
            self.stamp_ns = end_ns
            if self._command is not None:
                return self._command.action
            if end_ns - self._begin_ns > self._timeout_ns:
                raise EnvError(_no_command(self.frames_sent, self._timeout_ns / 1e9))
            self.show(self._observation)

    def show(self, observation: Mapping[str, np.ndarray]) -> None:
        """Publish an observation with the stamp of the grid."""
        self._observation = observation
        self._link.show(self.stamp_ns, observation)
        self.frames_sent += 1

    def _await_quiet(self) -> None:
        limit_ns = self._link.now_ns() + self._timeout_ns
        while (now_ns := self._link.now_ns()) < limit_ns:
            newest = self._link.newest_command(now_ns - self._quiet_ns, now_ns + 1)
            if newest is None:
                return
            self._link.sleep_until(newest.stamp_ns + self._quiet_ns + 1)
        raise EnvError(
            f"commands went on for {self._timeout_ns / 1e9:g} s after the episode had ended; expected a pause of "
            f"{self._quiet_ns / 1e9:g} s once the last chunk has run out. Stop other publishers of the command topic"
        )


class LockStep:
    """Steps when the command for the observation has come; simulated time, as repeatable as the policy.

    Args:
        link: topics; its wall clock isn't used.
        dt_ns: policy period, [ns].
        timeout_s: how long to wait for a command, [s].
    """

    GAP_NS = 60_000_000_000  # between episodes: longer than any history or chunk, which therefore end with theirs

    def __init__(self, link: Link, dt_ns: int, timeout_s: float):
        self._link, self._dt_ns, self._timeout_s = link, dt_ns, timeout_s
        self.stamp_ns = FIRST_STAMP_NS
        self.frames_sent = self.held_steps = 0

    def begin(self, observation: Mapping[str, np.ndarray]) -> None:
        """Move the clock past everything that was planned, then show the first observation."""
        self.frames_sent = 0
        self.stamp_ns += self.GAP_NS
        self.show(observation)

    def next_action(self) -> np.ndarray:
        """Return the command with the stamp of the observation shown last."""
        command = self._link.await_command(self.stamp_ns, self._timeout_s)
        if command is None:
            raise EnvError(_no_command(self.frames_sent, self._timeout_s))
        self.stamp_ns += self._dt_ns
        return command.action

    def show(self, observation: Mapping[str, np.ndarray]) -> None:
        """Publish an observation with the simulated time."""
        self._link.show(self.stamp_ns, observation)
        self.frames_sent += 1


def run_episode(env: Env, seed: int, pace: Pace, dt_ns: int) -> EpisodeResult:
    """Run one episode to its end.

    Raises:
        EnvError: no command came within the time the pace allows.
    """
    observation = env.reset(seed)
    pace.begin(observation)
    stamps_ns, actions = [], []
    while not env.done:
        action = pace.next_action()
        stamps_ns.append(pace.stamp_ns - dt_ns)
        actions.append(action)
        observation = env.step(action)
        if not env.done:
            pace.show(observation)
    return EpisodeResult(
        seed, env.score, env.success, tuple(stamps_ns), np.array(actions), pace.frames_sent, pace.held_steps
    )


def _no_command(frames: int, timeout_s: float) -> str:
    return (
        f"no command within {timeout_s:g} s after {frames} observation(s). Expected policy_node and "
        "chunk_executor_node to run with the same robot file and domain; what each waits for is said on /diagnostics"
    )
