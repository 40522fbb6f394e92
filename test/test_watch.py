# SPDX-License-Identifier: Apache-2.0
"""A monitor beside the policy: it never keeps a plan waiting, tells every plan once and in order, and outlives its own errors."""

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

from ros_vdd.runtime.watch import PlanWatch

PATIENCE_S = 30.0
EMPTY = {"score": None, "anomaly": None}


class Monitor:
    """Answers when it is let; keeps what was done with it."""

    keys = ("score", "anomaly")

    def __init__(self):
        self.did, self.let, self.begun = [], threading.Semaphore(0), threading.Semaphore(0)

    def look(self, observation, chunk, prediction):
        self.begun.release()
        assert self.let.acquire(timeout=PATIENCE_S)
        if prediction == "bad":
            raise RuntimeError("no memory")
        self.did.append(("look", chunk))
        return {"score": float(chunk), "anomaly": False}

    def skip(self, chunk):
        self.did.append(("skip", chunk))

    def reset(self):
        self.did.append(("reset",))


class Watched:
    def __init__(self):
        self.monitor, self.told, self.said = Monitor(), [], threading.Semaphore(0)
        self.watch = PlanWatch(self.monitor, self._tell)

    def _tell(self, beside, figures, problem):
        self.told.append((beside, figures, problem and str(problem)))
        self.said.release()

    def submit(self, number, prediction="good"):
        self.watch.submit(SimpleNamespace(observation={}, chunk=number, prediction=prediction), f"plan {number}")

    def tells(self, count):
        for _ in range(count):
            assert self.said.acquire(timeout=PATIENCE_S)


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.monitor.let.release(100)
    assert made.watch.stop(PATIENCE_S)


def test_plans_that_come_while_the_monitor_looks_wait_for_nobody_and_all_but_the_newest_are_given_up(watched):
    for number in range(4):
        watched.submit(number)  # returns though the monitor stands
        if number == 0:
            assert watched.monitor.begun.acquire(timeout=PATIENCE_S)
    watched.monitor.let.release(2)
    watched.tells(4)
    assert [beside for beside, _, _ in watched.told] == [f"plan {k}" for k in range(4)]
    assert [figures["score"] for _, figures, _ in watched.told] == [0.0, None, None, 3.0]
    assert watched.monitor.did == [("look", 0), ("skip", 1), ("skip", 2), ("look", 3)] and watched.watch.given_up == 2


def test_an_error_is_told_with_empty_figures_and_the_next_plan_is_looked_at(watched):
    watched.monitor.let.release(2)
    watched.submit(1, "bad")
    watched.tells(1)
    watched.submit(2)
    watched.tells(1)
    assert watched.told == [("plan 1", EMPTY, "no memory"), ("plan 2", {"score": 2.0, "anomaly": False}, None)]


def test_a_reset_drops_what_waits_and_comes_before_the_next_plan(watched):
    watched.submit(1)
    assert watched.monitor.begun.acquire(timeout=PATIENCE_S)
    watched.submit(2)
    watched.watch.reset()
    watched.submit(3)
    watched.monitor.let.release(2)
    watched.tells(2)
    assert watched.monitor.did == [("look", 1), ("reset",), ("look", 3)]


def test_of_plans_that_wait_for_a_monitor_that_hangs_no_picture_is_kept(watched):
    class Observation(dict):
        """Something that a weak reference can be held to."""

    seen = [Observation() for _ in range(4)]
    kept = [weakref.ref(observation) for observation in seen]
    for number, observation in enumerate(seen):
        watched.watch.submit(SimpleNamespace(observation=observation, chunk=number, prediction="good"), f"plan {number}")
        if number == 0:
            assert watched.monitor.begun.acquire(timeout=PATIENCE_S)
    del seen[:], observation
    gc.collect()
    assert [reference() is not None for reference in kept] == [True, False, False, True] and watched.watch.waiting == 3
