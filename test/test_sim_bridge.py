# SPDX-License-Identifier: Apache-2.0
"""The simulator on ROS topics shows exactly what the simulator is, and says why when nobody drives it."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("gym_pusht", reason="needs the simulator")

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from ros_vdd import envs  # noqa: E402
from ros_vdd.config import dump_yaml, to_plain  # noqa: E402
from ros_vdd.envs import pusht  # noqa: E402
from ros_vdd.errors import ConfigError, EnvError  # noqa: E402
from ros_vdd.nodes import sim_bridge_node  # noqa: E402
from ros_vdd.nodes.managed import ManagedNode  # noqa: E402
from ros_vdd.nodes.messages import CLASSES, COMMAND_QOS, LATCHED_QOS  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

STEPS, SEED = 12, 100003
ROBOT = load_robot("pusht")
CAMERA, AGENT = ROBOT.cameras["top"], ROBOT.states["agent"]


DOMAINS = itertools.count(os.getpid())  # latched messages of one test must not reach the next


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setattr(pusht.Env, "max_steps", STEPS)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=1 + next(DOMAINS) % 101)
    yield context
    if context.ok():
        rclpy.shutdown(context=context)


def bridge(context, **parameters):
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    return sim_bridge_node.make(context=context, parameter_overrides=overrides)


def action_of(step: int) -> np.ndarray:
    return np.array([200.0 + 10 * step, 300.0 - 5 * step], np.float32)


class Driver:
    """Answers each joint state with a command of the same stamp, and keeps what it saw."""

    def __init__(self, context):
        self.node = rclpy.create_node("driver", context=context)
        self.images, self.states, self.clocks, self.results, self.episodes, self.resets = [], [], [], [], [], 0
        subscribe, self.goals = self.node.create_subscription, []  # how many frames it had seen, and the goal that came then
        subscribe(String, "goal", lambda m: self.goals.append((len(self.states), m.data)), LATCHED_QOS)
        subscribe(Image, CAMERA.topic, self.images.append, COMMAND_QOS)
        subscribe(JointState, AGENT.topic, self.answer, COMMAND_QOS)
        subscribe(Clock, "/clock", self.clocks.append, COMMAND_QOS)
        subscribe(String, "sim_bridge_node/result", lambda m: self.results.append(json.loads(m.data)), LATCHED_QOS)
        subscribe(String, "sim_bridge_node/episode", lambda m: self.episodes.append(json.loads(m.data)), LATCHED_QOS)
        self.commands = self.node.create_publisher(CLASSES[ROBOT.action.type], ROBOT.action.topic, COMMAND_QOS)
        self.node.create_service(Trigger, "driver/reset", self.reset)

    def answer(self, message):
        command = JointTrajectory(joint_names=list(ROBOT.action.joints))
        command.header.stamp = message.header.stamp
        command.points = [JointTrajectoryPoint(positions=action_of(len(self.states) % STEPS).astype(float).tolist())]
        self.states.append(message)
        self.commands.publish(command)

    def reset(self, request, response):
        self.resets += 1
        response.success = True
        return response


def drive(context, **parameters) -> tuple[ManagedNode, Driver]:
    """Run a bridge and a driver until the bridge leaves the executor."""
    driver = Driver(context)
    node = bridge(context, **parameters)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(driver.node)
    executor.add_node(node)
    with pytest.raises(ExternalShutdownException):
        executor.spin()
    executor.remove_node(node)
    for _ in range(100):  # what has arrived may still wait for its callback
        if len(driver.results) < parameters["episodes"]:
            executor.spin_once(timeout_sec=0.05)
    node.destroy_node()
    driver.node.destroy_node()
    return node, driver


def test_lock_step_frames_are_those_of_the_simulator_bit_by_bit(context):
    node, driver = drive(context, mode="lock_step", episodes=2, first_seed=SEED, reset_service="driver/reset")
    assert node.work.error is None
    env, expected = envs.make("pusht"), []
    for seed in (SEED, SEED + 1):
        expected.append(env.reset(seed))
        expected += [env.step(action_of(k)) for k in range(STEPS - 1)]
        env.step(action_of(STEPS - 1))
        assert driver.results.pop(0)["score"] == env.score
    assert len(driver.images) == len(driver.states) == 2 * STEPS
    for image, state, observation in zip(driver.images, driver.states, expected):
        pixels = np.frombuffer(image.data, np.uint8).reshape(96, 96, 3)
        assert image.encoding == "rgb8" and image.header.stamp == state.header.stamp
        np.testing.assert_array_equal(pixels, observation["images.top"])
        np.testing.assert_array_equal(np.float32(state.position), observation["state"])
    assert [clock.clock for clock in driver.clocks] == [image.header.stamp for image in driver.images]
    assert [e["seed"] for e in driver.episodes] == [SEED, SEED + 1]
    assert driver.resets == 2


def test_real_time_episode_is_that_of_its_seed_and_commands(context):
    node, driver = drive(context, episodes=1, first_seed=SEED)
    assert node.work.error is None
    result = driver.results[0]
    env = envs.make("pusht")
    env.reset(SEED)
    for action in result["actions"]:
        env.step(np.float32(action))
    assert (result["score"], result["steps"]) == (env.score, STEPS)
    assert result["frames_sent"] == len(driver.images)
    assert not driver.clocks


@pytest.mark.parametrize("mode", ["real_time", "lock_step"])
def test_an_inactive_simulator_stands_still_and_then_goes_on(context, mode):
    driver = Driver(context)
    node = bridge(context, mode=mode, episodes=1, first_seed=SEED, command_timeout_s=5.0)
    executor = SingleThreadedExecutor(context=context)
    for each in (driver.node, node):
        executor.add_node(each)
    while len(driver.states) < 4:
        executor.spin_once(timeout_sec=0.05)
    node.trigger_deactivate()
    for _ in range(10):  # what was shown before may still be on its way
        executor.spin_once(timeout_sec=0.05)
    shown = len(driver.states)
    for _ in range(20):
        executor.spin_once(timeout_sec=0.05)
    assert len(driver.states) == shown < STEPS
    node.trigger_activate()
    with pytest.raises(ExternalShutdownException):
        executor.spin()
    assert node.work.error is None
    env, result = envs.make("pusht"), node.work.result
    env.reset(SEED)
    for action in result.actions:
        env.step(np.float32(action))
    assert result.score == env.score and len(result.stamps_ns) == STEPS
    gaps = np.diff(result.stamps_ns)
    assert (gaps >= ROBOT.dt_ns).all() and (gaps > ROBOT.dt_ns).sum() == (mode == "real_time")
    node.destroy_node()
    driver.node.destroy_node()


def test_without_readers_the_lonely_topics_are_named(context):
    node = bridge(context, connect_timeout_s=0.1)
    node.work.session.join()
    node.destroy_node()
    assert isinstance(node.work.error, EnvError)
    for topic in (CAMERA.topic, AGENT.topic, ROBOT.action.topic):
        assert topic in str(node.work.error)


def test_unknown_simulator_is_refused_at_the_start(context):
    with pytest.raises(EnvError, match="did you mean 'pusht'"):
        bridge(context, env="push")


def test_unknown_mode_is_refused_at_the_start(context):
    with pytest.raises(ConfigError, match="available: lock_step, real_time"):
        bridge(context, mode="real-time")


@pytest.fixture
def told(monkeypatch, tmp_path):
    """PushT whose observations name a task: of episode seed s number s % 2, and the other one from step 5 on."""
    tasks = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull"]}
    path = tmp_path / "told.yaml"
    path.write_text(dump_yaml({**to_plain(ROBOT), "goal": tasks}), encoding="utf-8")

    class Told(pusht.Env):
        robot = str(path)

        def reset(self, seed):
            self.seed, self.count = seed, 0
            return {**super().reset(seed), "goal": np.eye(2, dtype=np.float32)[seed % 2]}

        def step(self, action):
            self.count += 1
            return {**super().step(action), "goal": np.eye(2, dtype=np.float32)[(self.seed + (self.count >= 5)) % 2]}

    monkeypatch.setattr(envs, "make", lambda name: Told())
    return Told


def test_goals_are_published_when_they_change_and_before_their_observation(told, context):
    node, driver = drive(context, mode="lock_step", episodes=2, first_seed=SEED + 1)
    assert node.work.error is None
    assert driver.goals == [(0, "push"), (5, "pull"), (STEPS + 5, "push")]  # the second episode begins as the first has ended


def test_a_simulator_that_shows_no_goal_is_refused(told, context):
    node = bridge(context, connect_timeout_s=0.1)
    node.work.session.join()
    with pytest.raises(EnvError, match="has a goal, but the simulator shows only images.top, state"):
        node.work.link.show(0, pusht.Env().reset(SEED))
    node.destroy_node()
