# SPDX-License-Identifier: Apache-2.0
"""The live path without ROS: recorded messages through the code of policy_node and chunk_executor_node, by the clock of the log.

Time passes from message to message. What is due between two of them happens at its own time: the end of a wait for streams, an
answer of the policy, a command, a look at the streams. So the same messages give the same plans on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.execution import ExecutionConfig
from ros_vdd.runtime.inference import PolicyRunner
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.observer import Observation, Observer
from ros_vdd.runtime.planning import Plan, Planner
from ros_vdd.runtime.replay_execution import ReplayedExecution
from ros_vdd.runtime.replay_frames import REPLACED, Frame, MissedPlans
from ros_vdd.runtime.replay_mailbox import TimedMailbox
from ros_vdd.streams.spec import RobotSpec

PAUSE_NS = 60_000_000_000  # in a longer silence of all streams nothing more happens: every plan is over by then
LOOK_NS = 100_000_000  # how often policy_node looks whether a stream is silent
_ROUNDING_NS = 1_000  # a wait that is over must be so in floating-point seconds, too


class Event(NamedTuple):
    """A message as it came: when, on the clock of the log, [ns]; of which kind and name of stream."""

    time_ns: int
    kind: Literal["image", "joint_state", "goal"]
    stream: str
    message: Any


@dataclass(frozen=True)
class ReplayConfig:
    """The settings of a replay; those that a node has are called as there.

    Args:
        replan_steps: policy periods from one plan to the next; 0 for the policy's `n_action_steps`.
        settle_s: how long a plan waits for streams that have brought nothing from its tick yet, [s].
        max_skew_s: header stamps farther than this from the log's clock are refused, [s]; 0 compares nothing.
        lock_step: `equal_stamps` of policy_node and `trigger: joint_states` of chunk_executor_node.
        delay_s: how long the policy takes on the log's clock, [s].
        execution: the executor's settings.
    """

    replan_steps: int = 0
    settle_s: float = 0.02
    max_skew_s: float = 5.0
    lock_step: bool = False
    delay_s: float = 0.0
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self):
        for name in ("replan_steps", "settle_s", "max_skew_s", "delay_s"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ConfigError(f"'{name}' is {value}; expected 0 or more")
        if self.lock_step and self.delay_s:
            raise ConfigError(f"'delay_s' is {self.delay_s}; in lock-step the robot waits for the policy; leave it out")


class _WatchedObserver(Observer):
    """An observer that tells what came of each question for an observation."""

    def __init__(self, tell: Callable[[int, Observation | NotReady], None], *arguments: Any):
        super().__init__(*arguments)
        self._tell = tell

    def snapshot(self, tick_ns: int) -> Observation | NotReady:
        found = super().snapshot(tick_ns)
        self._tell(tick_ns, found)
        return found


class Replay:
    """One episode of messages on their way through policy and executor. One thread calls it.

    Args:
        robot: streams, action and limits.
        runner: the policy; it begins an episode with `seed`.
        config: see there.
        seed: of everything that is drawn.
        goal: the goal (G,) until one is recorded, or None.

    Attributes:
        frames: every plan that was due, by time, once `end` was called.
        observer: the streams with their counters.
    """

    def __init__(
        self,
        robot: RobotSpec,
        runner: PolicyRunner,
        config: ReplayConfig = ReplayConfig(),
        seed: int = 0,
        goal: np.ndarray | None = None,
    ):
        self._config = config
        steps = config.replan_steps or runner.bundle.n_action_steps
        self._now_ns, self._origin_ns = 0, None
        self._settled_ns: int | None = None  # when a wait for streams is over
        self._look_ns: int | None = None
        self._replan_ns, self._jumps = steps * robot.dt_ns, 0
        self._missed = MissedPlans(self._replan_ns)
        self.frames: list[Frame] = []
        runner.reset(seed)
        self.observer = _WatchedObserver(self._asked, robot, runner.bundle.n_obs_steps, config.lock_step, config.max_skew_s)
        if goal is not None:
            self.observer.goal.set(goal)
        self._planner = Planner(robot, self.observer, runner, seed, steps, self._publish, config.settle_s, self._make_mailbox)
        self._execution = ReplayedExecution(robot, config.execution, config.lock_step)

    def take(self, event: Event) -> None:
        """Let time pass until a message came, and take it; times never go back."""
        if self._origin_ns is None:
            self._begin(event.time_ns)
        elif event.time_ns - self._now_ns > PAUSE_NS:
            self._pass_until(self._now_ns + PAUSE_NS)
            self._set_timers(event.time_ns)
        self._pass_until(event.time_ns)
        received_s = self._seconds()
        if event.kind == "goal":
            self._planner.push_goal(event.message, received_s)
        elif event.kind == "image":
            self._planner.push_image(event.stream, event.message, self._now_ns, received_s)
        else:
            self._execution.take_joint_state(event.stream, event.message, self._now_ns)
            self._planner.push_joint_state(event.stream, event.message, self._now_ns, received_s)
        if self._planner.waiting and self._settled_ns is None:
            self._settled_ns = self._now_ns + round(self._config.settle_s * 1e9) + _ROUNDING_NS
        if self.observer.clock_jumps > self._jumps:
            self._jumps = self.observer.clock_jumps
            self._count_anew()
        self._pass_until(self._now_ns)

    def end(self) -> None:
        """Let the policy answer what it was asked; nothing more comes."""
        while self._mailbox.due_ns is not None:
            self._pass_until(self._mailbox.due_ns)
        self.frames += self._missed.end()
        self.frames.sort(key=lambda frame: frame.time_ns)

    @property
    def lock_step(self) -> bool:
        """Whether the messages are taken as of a simulation in lock-step."""
        return self._config.lock_step

    def execution(self) -> dict[str, Any]:
        """Return what the executor counted, see `ReplayedExecution.figures`."""
        return self._execution.figures()

    def _begin(self, time_ns: int) -> None:
        self._origin_ns = self._now_ns = time_ns
        self._set_timers(time_ns)
        self._count_anew()

    def _set_timers(self, time_ns: int) -> None:
        """Have commands given, and streams looked at, from a time on."""
        self._execution.begin(time_ns)
        self._look_ns = None if self._config.lock_step else time_ns + LOOK_NS

    def _count_anew(self) -> None:
        """Count missed plans from now on; in lock-step, where streams wait for the robot, from the first tick on."""
        self.frames += self._missed.end()
        self._missed = MissedPlans(self._replan_ns)
        if not self._config.lock_step:
            self._missed.begin(self._now_ns)

    def _pass_until(self, time_ns: int) -> None:
        """Let happen what is due until then, in the order of time."""
        while True:
            timers = (
                (self._mailbox.due_ns, self._mailbox.wake),
                (self._settled_ns, self._poll),
                (self._execution.due_ns, self._execution.wake),
                (self._look_ns, self._look),
            )
            set_ones = [timer for timer in timers if timer[0] is not None]
            due_ns, act = min(set_ones, key=lambda timer: timer[0], default=(None, None))
            if due_ns is None or due_ns > time_ns:
                break
            self._now_ns = max(self._now_ns, due_ns)
            act()
        self._now_ns = max(self._now_ns, time_ns)

    def _seconds(self) -> float:
        return (self._now_ns - self._origin_ns) / 1e9

    def _clock(self, tick_ns: int) -> int:
        """Return the time by which missed plans are counted."""
        return tick_ns if self._config.lock_step else self._now_ns

    def _poll(self) -> None:
        self._settled_ns = None
        self._planner.poll(self._seconds())

    def _look(self) -> None:
        """Note why nothing can be planned, as policy_node tells it on ~/status."""
        self._look_ns += LOOK_NS
        if problem := self.observer.silence(self._now_ns):
            self._missed.note(self._now_ns, problem)

    def _asked(self, tick_ns: int, found: Observation | NotReady) -> None:
        time_ns = self._clock(tick_ns)
        if isinstance(found, NotReady):
            self._missed.note(time_ns, found)
            return
        self.frames += self._missed.planned(time_ns)
        self._settled_ns = None

    def _make_mailbox(self, work: Callable, on_result: Callable, on_error: Callable) -> TimedMailbox:
        """Return the planner's mailbox; each answer becomes a frame, with what the gate said."""

        def answer(job: Any, prediction: Any) -> None:
            on_result(job, prediction)
            self._frame(job, prediction)

        def fail(job: Any, error: Exception) -> None:
            on_error(job, error)
            self._frame(job, None)

        now_ns, delay_ns = lambda: self._now_ns, round(self._config.delay_s * 1e9)  # noqa: E731
        self._mailbox = TimedMailbox(work, answer, fail, now_ns, delay_ns, partial(self._drop, REPLACED))
        return self._mailbox

    def _frame(self, job: Any, prediction: Any) -> None:
        refusal = self._planner.failure
        code, detail = (refusal.code.value, refusal.detail) if refusal else (None, "")
        self.frames.append(Frame(self._clock(job.stamp_ns), job.stamp_ns, prediction, code, detail))

    def _drop(self, reason: str, job: Any) -> None:
        why = "a newer observation came while the policy was busy"
        self.frames.append(Frame(self._clock(job.stamp_ns), job.stamp_ns, None, reason, why))

    def _publish(self, plan: Plan) -> None:
        self._execution.take_chunk(plan.chunk)
