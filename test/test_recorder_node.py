# SPDX-License-Identifier: Apache-2.0
"""The recorder over real ROS topics: what was published is in the bag."""

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from ros_peers import start  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from ros_vdd.data.bag import Bag  # noqa: E402
from ros_vdd.config import dump_yaml, to_plain  # noqa: E402
from ros_vdd.nodes import recorder_node  # noqa: E402
from ros_vdd.nodes.messages import LATCHED_QOS  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

TRIES = 400


class Robot:
    """The recorder, a second node that publishes what the pusht robot does, and an executor that both share."""

    def __init__(self, root, robot="pusht"):
        given = [f"robot:={robot}", f"root:={root}", "task:=push", "silent_after_s:=60.0"]
        rclpy.init(args=["--ros-args", *(word for p in given for word in ("-p", p))])
        self.recorder = recorder_node.make()
        self.node = rclpy.create_node("robot")
        self.publishers = {
            "image": self.node.create_publisher(Image, "camera/image_raw", 10),
            "state": self.node.create_publisher(JointState, "joint_states", 10),
            "command": self.node.create_publisher(JointTrajectory, "joint_trajectory_controller/joint_trajectory", 10),
        }
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.recorder)
        self.executor.add_node(self.node)

    def spin_until(self, condition):
        for _ in range(TRIES):
            if condition():
                return
            self.executor.spin_once(timeout_sec=0.05)
        raise AssertionError("it never came true")

    def call(self, service):
        client = self.node.create_client(Trigger, f"recorder_node/{service}")
        self.spin_until(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        self.spin_until(future.done)
        return future.result()

    def publish(self, number):
        state = JointState(name=["x", "y"], position=[float(number), 1.0])
        state.header.stamp.sec = number
        image = Image(width=2, height=1, step=6, encoding="rgb8", data=bytes([number] * 6))
        command = JointTrajectory(joint_names=["x", "y"], points=[JointTrajectoryPoint(positions=[1.0, 2.0])])
        messages = {"image": image, "state": state, "command": command}
        for name, message in messages.items():
            self.publishers[name].publish(message)
        return messages

    def received(self):
        take = self.recorder.work.recorder._take
        return sum(take.bag.counts.values()) if take is not None and take.bag is not None else 0

    def close(self):
        self.executor.shutdown()
        self.recorder.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown()


@pytest.fixture
def robot(tmp_path):
    robot = Robot(tmp_path)
    yield robot
    robot.close()


def hear(robot, topics=3):
    """Publish until every topic is heard: the first messages are lost while the nodes find each other."""
    for _ in range(TRIES):
        robot.publish(0)
        for _ in range(20):
            robot.executor.spin_once(timeout_sec=0.05)
        if len(robot.recorder.work.recorder.gate.heard()) == topics:
            return
    raise AssertionError(f"heard only {sorted(robot.recorder.work.recorder.gate.heard())}")


def test_every_message_between_start_and_stop_is_recorded_unchanged(robot, tmp_path):
    refused = robot.call("start_episode")
    assert not refused.success and "/camera/image_raw (sensor_msgs/msg/Image) never came" in refused.message
    hear(robot)
    assert robot.call("start_episode").success
    sent = []
    for number in range(1, 6):
        sent.append(robot.publish(number))
        robot.spin_until(lambda: robot.received() >= 3 * number)
    stopped = robot.call("stop_episode")
    assert stopped.success, stopped.message
    bag = Bag.open(tmp_path / "push" / "episode_000000")
    topics = {"/camera/image_raw": "image", "/joint_states": "state"}
    topics["/joint_trajectory_controller/joint_trajectory"] = "command"
    assert {name: bag.topics[name].count for name in topics} == dict.fromkeys(topics, 5)
    raw = {name: [] for name in topics}
    for message in bag.raw_messages(topics):
        raw[message.topic].append(message.data)
    for topic, kind in topics.items():
        # Decoded, because the padding between CDR fields isn't defined.
        assert [deserialize_message(data, type(sent[0][kind])) for data in raw[topic]] == [m[kind] for m in sent]


def test_closing_the_node_completes_the_episode(robot, tmp_path):
    hear(robot)
    assert robot.call("start_episode").success
    robot.publish(1)
    robot.spin_until(lambda: robot.received() == 3)
    robot.recorder.destroy_node()
    bag = Bag.open(tmp_path / "push" / "episode_000000")
    assert sorted(info.count for info in bag.topics.values()) == [1, 1, 1]


def test_deactivate_completes_the_episode_and_none_begins_before_activate(robot, tmp_path):
    hear(robot)
    assert robot.call("start_episode").success
    robot.publish(1)
    robot.spin_until(lambda: robot.received() == 3)
    robot.recorder.trigger_deactivate()
    assert len(Bag.open(tmp_path / "push" / "episode_000000").topics) == 3
    refused = robot.call("start_episode")
    assert not refused.success and "recorder_node is inactive" in refused.message
    robot.recorder.trigger_activate()
    assert robot.call("start_episode").success


def test_a_goal_published_before_the_recorder_came_is_in_every_bag(tmp_path):
    tasks = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull"]}
    path = tmp_path / "told.yaml"
    path.write_text(dump_yaml({**to_plain(load_robot("pusht")), "goal": tasks}))
    robot = Robot(tmp_path, path)
    try:
        robot.node.create_publisher(String, "goal", LATCHED_QOS).publish(String(data="pull"))
        robot.spin_until(lambda: "/goal" in robot.recorder.work.recorder.gate.heard())
        hear(robot, 4)
        assert robot.call("start_episode").success
        robot.publish(1)
        robot.spin_until(lambda: robot.received() == 4)
        assert robot.call("stop_episode").success
    finally:
        robot.close()
    ((first, _, message),) = Bag.open(tmp_path / "push" / "episode_000000").messages(["/goal"])
    assert message.data == "pull"


def test_no_robot_file_is_refused():
    recorder = start("recorder_node", "recorder")
    _, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 1
    assert "refused to start: recorder_node: parameter 'robot' is empty" in said
