# SPDX-License-Identifier: Apache-2.0
"""Deadlines are absolute: lateness doesn't add up, missed slots are counted and left out."""

import gc
import os
import sys
import threading

import pytest

from ros_vdd.runtime.pacing import Pacer

T = 10_000_000


class Time:
    """A clock that stands still but for sleeping and working."""

    def __init__(self):
        self.now = 0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def paced(works, oversleep=0):
    """Return when a function that takes such times [ns] one after the other was called, and the pacer."""
    time, begun, work = Time(), [], iter(works)

    def act():
        begun.append(time.now)
        try:
            time.now += next(work)
        except StopIteration:
            made._running = False

    made = Pacer(T, act, lambda error: None, clock=time.clock, sleep=lambda s: time.sleep(s + oversleep / 1e9))
    made._running = True
    made.pace()
    return begun, made


@pytest.mark.parametrize("work", [0, T // 3, T - 1])
def test_work_shorter_than_a_period_shifts_nothing(work):
    begun, made = paced([work] * 50)
    assert begun == [T * (k + 1) for k in range(51)] and made.missed == 0


def test_late_wake_ups_do_not_add_up():
    begun, made = paced([0] * 50, oversleep=700_000)
    assert all(b - T * (k + 1) == 700_000 for k, b in enumerate(begun))
    assert made.late_us.percentile(50) == pytest.approx(700.0) and made.missed == 0


def test_a_slot_that_was_worked_through_is_counted_and_not_made_up_for():
    begun, made = paced([0, int(2.5 * T), 0, 0])
    assert begun == [T, 2 * T, int(4.5 * T), 5 * T, 6 * T]
    assert made.missed == 1 and made.slots == len(begun) + 1  # the slot at 3 T; that at 4 T was late


def test_what_the_work_raises_ends_the_thread_and_is_told():
    told, done = [], threading.Event()

    def fail():
        raise ValueError("no")

    made = Pacer(1_000_000, fail, lambda error: (told.append(error), done.set()))
    made.start()
    assert done.wait(5) and made.stop(5) and str(told[0]) == "no"


def test_the_garbage_collector_rests_meanwhile_and_works_again_afterwards():
    seen, enough = [], threading.Event()

    def act():
        seen.append(gc.isenabled())
        if len(seen) > 3:
            enough.set()

    made = Pacer(1_000_000, act, print)
    made.start()
    assert enough.wait(5) and made.stop(5)
    assert not any(seen) and gc.isenabled()


def test_a_priority_that_is_not_permitted_is_told_and_costs_nothing(monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    ran = threading.Event()
    made = Pacer(1_000_000, ran.set, print, priority=45)
    made.start()
    assert ran.wait(5) and made.stop(5)
    assert "isn't permitted" in made.realtime


def test_no_priority_is_told_as_none_asked_for():
    ran = threading.Event()
    made = Pacer(1_000_000, ran.set, print)
    made.start()
    assert ran.wait(5) and made.stop(5)
    assert made.realtime == "not asked for: priority 0"


def test_the_thread_that_starts_it_has_one_priority_less_until_it_ends(monkeypatch):
    said, ran = [], threading.Event()
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_OTHER)
    monkeypatch.setattr(os, "sched_setscheduler", lambda thread, policy, given: said.append((thread, policy, given.sched_priority)))
    made = Pacer(1_000_000, ran.set, print, priority=45)
    made.start()
    assert ran.wait(5) and made.stop(5)
    own, fifo = threading.get_native_id(), os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert [entry[1:] for entry in said] == [(fifo, 45), (fifo, 44), (os.SCHED_OTHER, 0)]
    assert [entry[0] == own for entry in said] == [False, True, True]


def test_two_pacers_share_what_they_need_of_the_process():
    before, ran = sys.getswitchinterval(), [threading.Event(), threading.Event()]
    made = [Pacer(1_000_000, event.set, print) for event in ran]
    for pacer, event in zip(made, ran):
        pacer.start()
        assert event.wait(5)
    assert made[0].stop(5) and not gc.isenabled() and sys.getswitchinterval() < before
    assert made[1].stop(5) and gc.isenabled() and sys.getswitchinterval() == before


def test_work_that_wants_to_end_the_process_ends_the_thread_and_is_told():
    told, done = [], threading.Event()

    def leave():
        raise SystemExit(3)

    made = Pacer(1_000_000, leave, lambda error: (told.append(error), done.set()))
    made.start()
    assert done.wait(5) and made.stop(5) and isinstance(told[0], SystemExit)


def test_a_thread_that_somebody_gave_another_scheduling_keeps_it(monkeypatch):
    said, ran = [], threading.Event()
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_RR)
    monkeypatch.setattr(os, "sched_setscheduler", lambda thread, policy, given: said.append(given.sched_priority))
    made = Pacer(1_000_000, ran.set, print, priority=45)
    made.start()
    assert ran.wait(5) and made.stop(5) and said == [45]
