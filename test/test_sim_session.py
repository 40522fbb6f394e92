# SPDX-License-Identifier: Apache-2.0
"""Episodes are paced as told: real time by the stamps of commands, lock-step by equal stamps; with a clock made here."""

from __future__ import annotations

import numpy as np
import pytest

from ros_vdd.errors import EnvError
from ros_vdd.runtime.sim_session import Command, LockStep, RealTime, run_episode

DT_NS = 100_000_000


class CountingEnv:
    """Ends after four steps; shows how many it has made, and scores the last action."""

    robot, max_steps, modes = "pusht", 4, None

    def reset(self, seed):
        self.steps, self.score, self.success = 0, 0.0, False
        return {"state": np.array([seed, 0.0])}

    def step(self, action):
        self.steps, self.score = self.steps + 1, float(action[0])
        return {"state": np.array([0.0, self.steps])}

    @property
    def done(self):
        return self.steps >= self.max_steps


class FakeLink:
    """A clock that moves when slept on, and commands that come `latency_ns` after each observation shown."""

    def __init__(self, latency_ns=0, answers=1000):
        self.time_ns, self.latency_ns, self.answers = 5_000_000_000, latency_ns, answers
        self.shown, self.commands = [], []

    def now_ns(self):
        return self.time_ns

    def sleep_until(self, time_ns):
        self.time_ns = max(self.time_ns, time_ns)

    def show(self, stamp_ns, observation):
        self.shown.append((stamp_ns, observation["state"].copy()))
        if len(self.commands) < self.answers:
            self.commands.append(Command(stamp_ns + self.latency_ns, np.array([float(len(self.commands)), 0.0])))

    def newest_command(self, after_ns, before_ns):
        inside = [c for c in self.commands if after_ns <= c.stamp_ns < before_ns]
        return inside[-1] if inside else None

    def await_command(self, stamp_ns, timeout_s):
        return next((c for c in self.commands if c.stamp_ns == stamp_ns), None)


def real_time(link):
    return RealTime(link, DT_NS, timeout_s=1.0, quiet_s=0.5)


def test_real_time_applies_the_command_stamped_in_the_period():
    link = FakeLink(latency_ns=DT_NS - 1)
    result = run_episode(CountingEnv(), 7, real_time(link), DT_NS)
    assert result.actions[:, 0].tolist() == [0, 1, 2, 3]
    assert result.held_steps == 0


def test_real_time_leaves_a_command_of_the_next_period_to_the_next_period():
    link = FakeLink(latency_ns=DT_NS)
    result = run_episode(CountingEnv(), 7, real_time(link), DT_NS)
    assert result.actions[:, 0].tolist() == [0, 1, 2, 3]
    assert result.frames_sent == 5  # the first observation twice: its command came a period later


def test_real_time_stands_still_until_the_first_command():
    link = FakeLink(latency_ns=5 * DT_NS, answers=1)
    result = run_episode(CountingEnv(), 7, real_time(link), DT_NS)
    repeats = [state.tolist() for _, state in link.shown[:6]]
    assert repeats == [[7.0, 0.0]] * 6
    assert result.stamps_ns[0] == link.shown[5][0]


def test_real_time_counts_steps_without_a_new_command():
    result = run_episode(CountingEnv(), 7, real_time(FakeLink(answers=2)), DT_NS)
    assert result.actions[:, 0].tolist() == [0, 1, 1, 1]
    assert result.held_steps == 2


def test_real_time_stamps_lie_on_a_grid():
    link = FakeLink()
    run_episode(CountingEnv(), 7, real_time(link), DT_NS)
    assert np.diff([stamp for stamp, _ in link.shown]).tolist() == [DT_NS] * 3


def test_a_new_episode_waits_until_old_commands_have_ended():
    link = FakeLink()
    link.commands.append(Command(link.time_ns - 1, np.array([99.0, 0.0])))
    result = run_episode(CountingEnv(), 7, real_time(link), DT_NS)
    assert link.shown[0][0] == 5_000_000_000 + 500_000_000
    assert 99.0 not in result.actions[:, 0]


def test_real_time_without_any_command_is_an_error():
    with pytest.raises(EnvError, match="no command within 1 s after 11 observation"):
        run_episode(CountingEnv(), 7, real_time(FakeLink(answers=0)), DT_NS)


def test_lock_step_takes_the_command_with_the_stamp_of_the_observation():
    link = FakeLink()
    result = run_episode(CountingEnv(), 7, LockStep(link, DT_NS, 1.0), DT_NS)
    assert result.actions[:, 0].tolist() == [0, 1, 2, 3]
    assert list(result.stamps_ns) == [stamp for stamp, _ in link.shown]
    assert result.frames_sent == 4 and link.time_ns == 5_000_000_000


def test_lock_step_without_the_command_is_an_error():
    with pytest.raises(EnvError, match="no command within 1 s after 3 observation"):
        run_episode(CountingEnv(), 7, LockStep(FakeLink(answers=2), DT_NS, 1.0), DT_NS)


def test_lock_step_clocks_of_two_episodes_are_a_minute_apart():
    link = FakeLink()
    pace = LockStep(link, DT_NS, 1.0)
    run_episode(CountingEnv(), 1, pace, DT_NS)
    run_episode(CountingEnv(), 2, pace, DT_NS)
    assert max(np.diff([stamp for stamp, _ in link.shown])) > 60_000_000_000
