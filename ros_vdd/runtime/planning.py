# SPDX-License-Identifier: Apache-2.0
"""From messages to checked chunks: when to plan anew, one observation in the works, and why nothing comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.inference import InferenceThread, PolicyRunner, Prediction
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.limits import SafetyGate
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.streams.spec import RobotSpec


class Plan(NamedTuple):
    """A chunk that passed the gate, what it was made of, and when the message that asked for it was received."""

    chunk: ActionChunk
    prediction: Prediction
    received_s: float
    observation: Mapping[str, np.ndarray]


class _Job(NamedTuple):
    """One observation on its way through the inference thread."""

    arrays: Mapping[str, np.ndarray]
    stamp_ns: int
    epoch: int  # how often reset() had been called
    received_s: float


class Planner:
    """An `Observer` before and a `PolicyRunner` behind a one-slot mailbox.

    Everything public is called from the thread that receives; `publish` is called from the inference thread.

    Args:
        robot: streams, action and limits
        observer: takes the messages
        runner: the policy; used by the inference thread only
        seed: of the first episode, which the runner has begun; each later one adds 1
        replan_steps: policy periods from one plan to the next
        settle_s: how long a plan waits for streams that have brought nothing from its tick or later, [s]. Of messages
            with one stamp the image may come first; without the wait its joint state would be that of the tick before,
            which no training window ever shows.
        publish: takes each plan, in the order of their stamps
        mailbox: the inference thread
        answer_s: an answer that takes longer is told by `problem`, [s]; 0 waits for ever
        clock: a clock that nobody sets, [s]
    """

    def __init__(
        self,
        robot: RobotSpec,
        observer: Observer,
        runner: PolicyRunner,
        seed: int,
        replan_steps: int,
        publish: Callable[[Plan], None],
        settle_s: float = 0.0,
        mailbox: type[InferenceThread] = InferenceThread,
        answer_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._robot, self._runner, self._seed, self._publish = robot, runner, seed, publish
        self._replan_ns = round((replan_steps - 0.25) * robot.dt_ns)  # stamps of cameras jitter
        self._settle_s = settle_s
        self._waiting_since_s: float | None = None  # when a plan became due for which streams hadn't settled
        self._not_ready: NotReady | None = None
        self._failure: Refusal | None = None  # why the newest prediction became no plan
        self._answer_s, self._clock = answer_s, clock
        self._begun_s: float | None = None  # when the prediction in hand was begun; written by the inference thread
        self._predicted_ns: int | None = None  # tick of the newest prediction; used by the inference thread only
        self._asked_ns: int | None = None  # tick of the newest observation handed over
        self._epoch, self._epoch_lock, self._reseed = 0, threading.Lock(), threading.Event()
        self._used = False  # whether the seed has served a prediction, so that the next episode takes another
        self.observer, self.gate = observer, SafetyGate(robot)
        self._mailbox = mailbox(self._predict, self._check, self._fail)

    @property
    def replaced(self) -> int:
        """How many observations gave way to a newer one before they were begun."""
        return self._mailbox.replaced

    @property
    def failure(self) -> Refusal | None:
        """Why the newest prediction became no plan, or None where it became one."""
        return self._failure

    def push_image(self, camera: str, message: Any, receive_ns: int, received_s: float) -> None:
        """Take an image, and plan if it is time; `received_s`, on a clock that nobody sets, is handed on to the plan."""
        if self.observer.push_image(camera, message, receive_ns, received_s):
            self._ask(received_s)

    def push_joint_state(self, stream: str, message: Any, receive_ns: int, received_s: float) -> None:
        """Take a joint state, and plan if it is time; `received_s`, on a clock that nobody sets, is handed on to the plan."""
        if self.observer.push_joint_state(stream, message, receive_ns, received_s):
            self._ask(received_s)

    def push_goal(self, message: Any, received_s: float) -> bool:
        """Take a goal for the next plan, and plan if one is due and waited for it; return whether it could be used."""
        if not self.observer.push_goal(message):
            return False
        self._ask(received_s)
        return True

    @property
    def waiting(self) -> bool:
        """Whether a plan is due and waits for streams; then `poll` must be called after `settle_s`."""
        return self._waiting_since_s is not None

    def poll(self, now_s: float) -> None:
        """Plan if it is time, though no message has come."""
        self._ask(now_s)

    def reset(self) -> None:
        """Begin an episode: forget the history, drop what is being predicted, take the next seed.

        The seed stays while nothing was predicted with it, so that the first episode has the first seed.
        """
        with self._epoch_lock:
            self._epoch += 1
        self.observer.reset()
        self._asked_ns = self._not_ready = self._failure = self._waiting_since_s = None
        self._seed, self._used = self._seed + self._used, False
        self._reseed.set()

    def problem(self, now_ns: int) -> NotReady | None:
        """Return why no plan can be made now, or why the newest one was refused; None while all is well."""
        missing = self.observer.silence(now_ns) or self._not_ready
        failure = self._hang() or self._failure
        return missing or (failure and NotReady(failure.code, "policy", failure.detail))

    def stop(self) -> None:
        """End the inference thread; nothing is published afterwards."""
        with self._epoch_lock:
            self._epoch += 1
        self._mailbox.stop()

    def _hang(self) -> Refusal | None:
        begun_s = self._begun_s
        if not self._answer_s or begun_s is None or self._clock() - begun_s <= self._answer_s:
            return None
        return Refusal(Reason.INFERENCE_HANGS, f"no answer within {self._answer_s:g} s; nothing can be planned before it comes")

    def _ask(self, received_s: float) -> None:
        tick_ns = self.observer.tick_ns
        if tick_ns is None or not self._due(tick_ns) or not self._settled(tick_ns, received_s):
            return
        observation = self.observer.snapshot(tick_ns)
        if isinstance(observation, NotReady):
            self._not_ready = observation
            return
        begun_s = received_s if self._waiting_since_s is None else self._waiting_since_s
        self._not_ready, self._asked_ns, self._waiting_since_s = None, tick_ns, None
        self._used = True
        self._mailbox.submit(_Job(observation.arrays, tick_ns, self._epoch, begun_s))

    def _settled(self, tick_ns: int, now_s: float) -> bool:
        """Whether nothing that belongs to the tick is still to come, or the wait for it is over."""
        if self.observer.settled(tick_ns):
            return True
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        return now_s - self._waiting_since_s >= self._settle_s

    def _due(self, tick_ns: int) -> bool:
        last_ns = self._asked_ns
        return last_ns is None or tick_ns < last_ns or tick_ns - last_ns >= self._replan_ns

    def _predict(self, job: _Job) -> Prediction:
        if self._reseed.is_set() and job.epoch == self._epoch:  # an older observation must not begin the new episode
            self._reseed.clear()
            self._runner.reset(self._seed)
            self._predicted_ns = None
        before = self._predicted_ns
        elapsed = None if before is None else round((job.stamp_ns - before) / self._robot.dt_ns)
        self._begun_s = self._clock()
        try:
            prediction = self._runner.act(job.arrays, elapsed)
        finally:
            self._begun_s = None
        self._predicted_ns = job.stamp_ns
        return prediction

    def _check(self, job: _Job, prediction: Prediction) -> None:
        """Publish a prediction, unless the gate refuses it or `reset` was called since the observation."""
        chunk = ActionChunk(job.stamp_ns, self._robot.dt_ns, self._robot.action.joints, prediction.actions)
        checked = self.gate.check(chunk)
        if isinstance(checked, Refusal):
            self._runner.disown()  # nobody executes it, so nothing may go on with it
        with self._epoch_lock:
            if job.epoch != self._epoch:
                return
            if isinstance(checked, Refusal):
                self._give_up(checked)
                return
            self._failure = None
            self._publish(Plan(checked, prediction, job.received_s, job.arrays))

    def _fail(self, job: _Job, error: Exception) -> None:
        """Tell why a prediction failed, unless `reset` was called since the observation."""
        with self._epoch_lock:
            if job.epoch == self._epoch:
                self._give_up(Refusal(Reason.INFERENCE_FAILED, f"{type(error).__name__}: {error}"))

    def _give_up(self, failure: Refusal) -> None:
        self._failure = failure
        self._asked_ns = None  # the next tick is tried, not only the one at which a plan would be due
