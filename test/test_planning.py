# SPDX-License-Identifier: Apache-2.0
"""When a plan is made, and that no bad or outdated prediction becomes one; the inference thread is simulated."""

import numpy as np
from test_observer import DT, T0, image, joints, robot

from ros_vdd.runtime.inference import Prediction
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.planning import Planner
from ros_vdd.runtime.reasons import Reason

REPLAN = 4


class Runner:
    """Answers with fixed actions, or raises; keeps what it was asked."""

    def __init__(self):
        self.actions, self.error, self.seeds, self.asked = np.zeros((8, 2), np.float32), None, [], []

    def reset(self, seed):
        self.seeds.append(seed)

    def act(self, arrays):
        self.asked.append(arrays)
        if self.error:
            raise self.error
        return Prediction(self.actions, None, None, 0)


class Mailbox:
    """Keeps the newest request until the test lets it run."""

    def __init__(self, work, on_result, on_error):
        self.work, self.on_result, self.on_error, self.request, self.replaced = work, on_result, on_error, None, 0

    def submit(self, request):
        self.replaced += self.request is not None
        self.request = request

    def run(self):
        request, self.request = self.request, None
        try:
            result = self.work(request)
        except Exception as error:
            self.on_error(request, error)
        else:
            self.on_result(request, result)


class Robot:
    """A planner with its runner and mailbox, and the plans that came out."""

    def __init__(self):
        self.runner, self.plans, spec = Runner(), [], robot()
        self.planner = Planner(spec, Observer(spec, 2), self.runner, 7, REPLAN, self.plans.append, Mailbox)
        self.mailbox = self.planner._mailbox

    def observe(self, stamp_ns):
        """Show an image and a joint state; return whether an observation was handed over."""
        before = self.mailbox.request
        self.planner.push_joint_state("arm", joints(stamp_ns), stamp_ns, 0.0)
        self.planner.push_image("top", image(stamp_ns), stamp_ns, 0.0)
        return self.mailbox.request is not before


def test_a_plan_has_the_stamp_of_its_observation():
    robot = Robot()
    robot.observe(T0)
    robot.mailbox.run()
    assert robot.plans[0].chunk.stamp_ns == T0
    assert robot.plans[0].chunk.joints == ("a", "b")


def test_a_new_plan_is_due_after_the_steps_that_are_executed():
    robot = Robot()
    assert [robot.observe(T0 + step * DT) for step in range(9)] == [step % REPLAN == 0 for step in range(9)]


def test_a_stamp_that_jitters_early_still_counts_as_its_tick():
    robot = Robot()
    robot.observe(T0)
    assert not robot.observe(T0 + (REPLAN - 1) * DT)
    assert robot.observe(T0 + REPLAN * DT - DT // 5)


def test_the_newest_observation_wins():
    robot = Robot()
    for step in range(REPLAN + 1):
        robot.observe(T0 + step * DT)
    robot.mailbox.run()
    assert [plan.chunk.stamp_ns for plan in robot.plans] == [T0 + REPLAN * DT]
    assert robot.planner.replaced == 1


def test_a_prediction_begun_before_a_reset_is_dropped():
    robot = Robot()
    robot.observe(T0)
    robot.planner.reset()
    robot.mailbox.run()
    assert robot.plans == []


def test_a_reset_seeds_again_and_plans_at_once():
    robot = Robot()
    robot.observe(T0)
    robot.mailbox.run()
    robot.planner.reset()
    assert robot.observe(T0 + DT)
    robot.mailbox.run()
    assert robot.runner.seeds == [7]
    assert [plan.chunk.stamp_ns for plan in robot.plans] == [T0, T0 + DT]


def test_a_prediction_outside_the_limits_becomes_no_plan_and_is_named():
    robot = Robot()
    robot.runner.actions = np.full((8, 2), 5.0, np.float32)
    robot.observe(T0)
    robot.mailbox.run()
    assert robot.plans == []
    assert robot.planner.problem(T0).code is Reason.OUT_OF_LIMITS


def test_the_tick_after_a_failure_is_tried_at_once():
    robot = Robot()
    robot.runner.error = RuntimeError("out of memory")
    robot.observe(T0)
    robot.mailbox.run()
    assert robot.planner.problem(T0).code is Reason.INFERENCE_FAILED
    robot.runner.error = None
    assert robot.observe(T0 + DT)
    robot.mailbox.run()
    assert robot.planner.problem(T0 + DT) is None and len(robot.plans) == 1


def test_a_stopped_planner_publishes_nothing_more():
    robot = Robot()
    robot.mailbox.stop = lambda: None
    robot.observe(T0)
    robot.planner.stop()
    robot.mailbox.run()
    assert robot.plans == []
