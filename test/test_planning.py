# SPDX-License-Identifier: Apache-2.0
"""When a plan is made, and that no bad or outdated prediction becomes one; the inference thread is simulated."""

import numpy as np
from test_observer import DT, T0, TASKS, goal, image, joints, robot

from ros_vdd.runtime.inference import Prediction
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.planning import Planner
from ros_vdd.runtime.reasons import Reason
from ros_vdd.runtime.statistics import Rate

REPLAN = 4


class Runner:
    """Answers with fixed actions, or raises; keeps what it was asked."""

    def __init__(self):
        self.actions, self.error, self.seeds, self.asked, self.elapsed = np.zeros((8, 2), np.float32), None, [], [], []
        self.disowned = 0

    def reset(self, seed):
        self.seeds.append(seed)

    def disown(self):
        self.disowned += 1

    def act(self, arrays, elapsed=None):
        self.asked.append(arrays)
        self.elapsed.append(elapsed)
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

    def __init__(self, settle_s=0.0, goal=None):
        self.runner, self.plans, spec = Runner(), [], robot(goal=goal)
        observer = Observer(spec, 2)
        self.planner = Planner(spec, observer, self.runner, 7, REPLAN, self.plans.append, settle_s, Mailbox)
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


def test_the_policy_is_told_how_many_periods_have_passed_since_its_plan_before():
    robot = Robot()
    for step in (0, REPLAN, 2 * REPLAN + 1):
        robot.observe(T0 + step * DT)
        robot.mailbox.run()
    robot.planner.reset()
    robot.observe(T0 + 99 * DT)
    robot.mailbox.run()
    assert robot.runner.elapsed == [None, REPLAN, REPLAN + 1, None]


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


def test_an_observation_from_before_a_reset_uses_nothing_of_the_new_episode():
    """It would draw the episode's expert, or take the first of its numbers, for a robot that has been put elsewhere since."""
    robot = Robot()
    robot.observe(T0)
    robot.planner.reset()
    robot.mailbox.run()
    assert robot.runner.seeds == []
    robot.observe(T0 + 50 * DT)
    robot.mailbox.run()
    assert robot.runner.seeds == [8] and robot.runner.elapsed == [None, None]


def test_periods_are_counted_from_the_last_plan_that_was_made():
    robot = Robot()
    robot.observe(T0)
    robot.mailbox.run()
    robot.runner.error = RuntimeError("out of memory")
    robot.observe(T0 + REPLAN * DT)
    robot.mailbox.run()
    robot.runner.error = None
    robot.observe(T0 + (REPLAN + 1) * DT)  # its joint state comes first, and asks again about the tick that failed
    robot.mailbox.run()
    assert robot.runner.elapsed == [None, REPLAN, REPLAN]


def test_a_failure_begun_before_a_reset_is_no_failure_of_the_next_episode():
    robot = Robot()
    robot.runner.error = RuntimeError("out of memory")
    robot.observe(T0)
    robot.planner.reset()
    robot.mailbox.run()
    robot.planner.push_joint_state("arm", joints(T0), T0, 0.0)
    robot.planner.push_image("top", image(T0), T0, 0.0)
    assert robot.planner.problem(T0) is None


def test_a_reset_begins_the_next_episode_at_once():
    robot = Robot()
    robot.observe(T0)
    robot.mailbox.run()
    robot.planner.reset()
    assert robot.observe(T0 + DT)
    robot.mailbox.run()
    assert robot.runner.seeds == [8]
    assert [plan.chunk.stamp_ns for plan in robot.plans] == [T0, T0 + DT]


def test_each_episode_has_the_next_seed_and_the_first_the_first():
    """As `ros-vdd evaluate` and the simulator count, also when a reset comes before the first observation or twice."""
    robot = Robot()
    robot.planner.reset()
    for episode in range(3):
        assert robot.observe(T0 + episode * 10 * DT)
        robot.mailbox.run()
        robot.planner.reset()
        robot.planner.reset()
    assert robot.runner.seeds == [7, 8, 9]


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


def seen_position(robot):
    """Return joint a's newest position in the observation that is waiting for inference."""
    return float(robot.mailbox.request.arrays["state"][-1, 0])


def begun(settle_s):
    """Return a robot that has planned at T0 with joint a at 0, and is due again at T0 + REPLAN periods."""
    robot = Robot(settle_s)
    robot.observe(T0)
    robot.mailbox.run()
    robot.planner.push_joint_state("arm", joints(T0 + (REPLAN - 1) * DT, a=0.3), T0, 0.0)
    return robot


def test_an_image_that_overtakes_its_joint_state_waits_for_it():
    robot, tick = begun(settle_s=0.02), T0 + REPLAN * DT
    robot.planner.push_image("top", image(tick), tick, 1.000)
    assert robot.mailbox.request is None and robot.planner.waiting
    robot.planner.push_joint_state("arm", joints(tick, a=0.5), tick, 1.005)
    assert seen_position(robot) == 0.5 and not robot.planner.waiting
    assert robot.mailbox.request.received_s == 1.000


def test_the_order_of_arrival_within_the_wait_changes_no_observation():
    observations = []
    for image_first in (True, False):
        robot, tick = begun(settle_s=0.02), T0 + REPLAN * DT
        pushes = [
            lambda: robot.planner.push_image("top", image(tick, value=9), tick, 1.0),
            lambda: robot.planner.push_joint_state("arm", joints(tick, a=0.5), tick, 1.0),
        ]
        for push in pushes if image_first else reversed(pushes):
            push()
        observations.append(robot.mailbox.request.arrays)
    for name, array in observations[0].items():
        np.testing.assert_array_equal(array, observations[1][name])


def test_a_stream_slower_than_the_policy_is_waited_for_no_longer_than_settle_s():
    robot, tick = begun(settle_s=0.02), T0 + REPLAN * DT
    robot.planner.push_image("top", image(tick), tick, 1.000)
    robot.planner.poll(1.019)
    assert robot.mailbox.request is None
    robot.planner.poll(1.020)
    assert seen_position(robot) == np.float32(0.3)


def test_images_faster_than_joint_states_do_not_begin_the_wait_anew():
    robot, tick = begun(settle_s=0.02), T0 + REPLAN * DT
    for late_ms in (0, 10, 20):
        stamp = tick + late_ms * 1_000_000
        robot.planner.push_image("top", image(stamp), stamp, 1.0 + late_ms / 1000)
    assert robot.mailbox.request.stamp_ns == tick + 20_000_000


def test_a_plan_that_waited_for_a_goal_is_made_when_it_comes():
    robot = Robot(goal=TASKS)
    assert not robot.observe(T0)
    assert robot.planner.problem(T0).code is Reason.NO_GOAL
    assert not robot.planner.push_goal(goal("sweep"), 0.0) and robot.mailbox.request is None
    assert robot.planner.push_goal(goal("pull"), 0.0)
    assert robot.mailbox.request.stamp_ns == T0 and robot.planner.problem(T0) is None


def test_another_goal_counts_from_the_next_plan_on():
    robot = Robot(goal=TASKS)
    robot.planner.push_goal(goal("push"), 0.0)
    assert robot.observe(T0)
    robot.mailbox.run()
    robot.planner.push_goal(goal("lift"), 0.0)
    assert robot.mailbox.request is None
    assert [robot.observe(T0 + step * DT) for step in (1, REPLAN)] == [False, True]
    robot.mailbox.run()
    assert [asked["goal"].tolist() for asked in robot.runner.asked] == [[1, 0, 0], [0, 0, 1]]


def test_the_goal_stays_after_a_reset():
    robot = Robot(goal=TASKS)
    robot.planner.push_goal(goal("pull"), 0.0)
    robot.planner.reset()
    assert robot.observe(T0)


def test_an_engine_that_does_not_answer_is_told_while_it_lasts_and_not_before():
    robot, now = Robot(), [100.0]
    told = []

    class Slow(Runner):
        def act(self, arrays, elapsed=None):
            for now[0] in (100.0, 101.0, 101.1):
                told.append(planner.problem(T0))
            return super().act(arrays, elapsed)

    spec, plans = robot.planner._robot, []
    planner = Planner(spec, Observer(spec, 2), Slow(), 0, REPLAN, plans.append, 0.0, Mailbox, answer_s=1.0, clock=lambda: now[0])
    planner.push_joint_state("arm", joints(T0), T0, 0.0)
    planner.push_image("top", image(T0), T0, 0.0)
    planner._mailbox.run()
    assert told[:2] == [None, None] and told[2].code is Reason.INFERENCE_HANGS and "no answer within 1 s" in told[2].detail
    assert planner.problem(T0) is None and len(plans) == 1


def test_an_engine_that_raises_after_a_hang_is_told_as_failed_and_hangs_no_more():
    robot, now = Robot(), [0.0]
    planner = Planner(robot.planner._robot, Observer(robot.planner._robot, 2), robot.runner, 0, REPLAN, print, 0.0, Mailbox, 1.0, lambda: now[0])
    robot.runner.error = RuntimeError("device lost")
    planner.push_joint_state("arm", joints(T0), T0, 0.0)
    planner.push_image("top", image(T0), T0, 0.0)
    planner._mailbox.run()
    now[0] = 60.0
    assert planner.problem(T0).code is Reason.INFERENCE_FAILED


def test_a_rate_is_that_since_the_question_before():
    rate = Rate()
    assert rate.of(10, 5.0) is None
    assert rate.of(40, 6.0) == 30.0 and rate.of(40, 8.0) == 0.0 and rate.of(50, 8.0) is None


def test_nothing_goes_on_with_a_plan_that_was_refused():
    robot = Robot()
    robot.runner.actions = np.full((8, 2), 1e3, np.float32)
    robot.observe(T0)
    robot.mailbox.run()
    assert robot.plans == [] and robot.runner.disowned == 1
    robot.runner.actions = np.zeros((8, 2), np.float32)
    robot.observe(T0 + DT)
    robot.mailbox.run()
    assert len(robot.plans) == 1 and robot.runner.disowned == 1
