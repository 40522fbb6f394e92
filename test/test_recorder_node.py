# SPDX-License-Identifier: Apache-2.0
"""The recorder over real ROS topics: what was published is in the bag."""

import subprocess
import sys

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import State  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from ros_peers import start  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402
from sensor_msgs.msg import Image, Joy, JointState  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from ros_vdd.config import dump_yaml, parse_yaml, to_plain  # noqa: E402
from ros_vdd.data.bag import Bag  # noqa: E402
from ros_vdd.data.cdr import definition_text  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.nodes import recorder_node  # noqa: E402
from ros_vdd.nodes.messages import LATCHED_QOS  # noqa: E402
from ros_vdd.runtime.recording_reply import Note  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

TRIES = 400


class Robot:
    """The recorder, a second node that publishes what the pusht robot does, and an executor that both share."""

    def __init__(self, root, robot="pusht", *more):
        given = [f"robot:={robot}", f"root:={root}", "task:=push", "silent_after_s:=60.0", *more]
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

    def call(self, service, kind=Trigger, **request):
        client = self.node.create_client(kind, f"recorder_node/{service}")
        self.spin_until(client.service_is_ready)
        future = client.call_async(kind.Request(**request))
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


def test_topics_by_pattern_are_recorded_as_their_publishers_offer_them(tmp_path):
    robot = Robot(tmp_path, "pusht", "extra_topics:=/tools/*, told")
    try:
        best_effort = QoSProfile(depth=7, reliability=ReliabilityPolicy.BEST_EFFORT)
        buttons = robot.node.create_publisher(Joy, "/tools/buttons", best_effort)
        robot.node.create_publisher(String, "told", LATCHED_QOS).publish(String(data="once"))
        robot.node.create_publisher(Joy, "/other/buttons", 10)
        recorder = robot.recorder.work.recorder
        robot.spin_until(lambda: {"/tools/buttons", "/told"} <= recorder.topics.keys())
        robot.spin_until(lambda: "/told" in recorder.gate.heard())
        for _ in range(TRIES):
            buttons.publish(Joy(buttons=[1]))
            robot.executor.spin_once(timeout_sec=0.05)
            if "/tools/buttons" in recorder.gate.heard():
                break
        hear(robot, 5)
        assert robot.call("start_episode").success
        buttons.publish(Joy(buttons=[1, 0]))
        robot.spin_until(lambda: robot.received() == 2)
        assert robot.call("stop_episode").success
    finally:
        robot.close()
    with AnyReader([tmp_path / "push" / "episode_000000"]) as reader:
        profiles = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
        offered = {topic: [(q.reliability.name, q.durability.name) for q in held] for topic, held in profiles.items()}
        assert offered["/tools/buttons"] == [("BEST_EFFORT", "VOLATILE")]
        assert offered["/told"] == [("RELIABLE", "TRANSIENT_LOCAL")]
        assert offered["/joint_states"] == [("RELIABLE", "VOLATILE")] and "/other/buttons" not in offered
        ((connection, _, raw),) = reader.messages([c for c in reader.connections if c.topic == "/tools/buttons"])
        assert list(reader.deserialize(raw, connection.msgtype).buttons) == [1, 0]
        ((connection, _, raw),) = reader.messages([c for c in reader.connections if c.topic == "/told"])
        assert reader.deserialize(raw, connection.msgtype).data == "once"  # before the start, and latched


def test_a_type_whose_definition_is_not_known_refuses_the_start_by_name(tmp_path, monkeypatch):
    def known(type_name):  # all message packages that come with rclpy are standard ones
        if type_name.startswith("lifecycle_msgs"):
            raise DataError("no definition")
        return definition_text(type_name)

    monkeypatch.setattr("ros_vdd.runtime.recording.definition_text", known)
    robot = Robot(tmp_path, "pusht", "extra_topics:=/lab/*")
    try:
        robot.node.create_publisher(State, "/lab/state", 10)
        hear(robot)
        robot.spin_until(lambda: robot.recorder.work.recorder.gate.refused)
        refused = robot.call("start_episode")
    finally:
        robot.close()
    assert not refused.success
    assert refused.message.startswith("not started: /lab/state is lifecycle_msgs/msg/State, whose definition isn't known")


def test_what_the_middleware_drops_is_counted_exactly(tmp_path):
    robot = Robot(tmp_path, "pusht", "queue_depth:=3")
    try:
        hear(robot)
        assert robot.call("start_episode").success
        for number in range(1, 41):  # nobody listens meanwhile: three of them are kept
            robot.publish(number)
        robot.spin_until(lambda: robot.received() >= 9)
        robot.publish(41)
        robot.spin_until(lambda: robot.received() >= 12)
        stopped = robot.call("stop_episode")
    finally:
        robot.close()
    bag = Bag.open(tmp_path / "push" / "episode_000000")
    lost = parse_yaml(bag.custom_data["ros_vdd.lost"])
    assert {name: info.count + lost.get(name, 0) for name, info in bag.topics.items()} == dict.fromkeys(bag.topics, 41)
    assert all(lost[name] >= 30 for name in bag.topics) and "lost: " in stopped.message


def test_a_middleware_that_tells_no_time_of_arrival_leaves_it_to_the_clock(robot, monkeypatch):
    heard = []
    monkeypatch.setattr(robot.recorder.work.recorder, "receive", lambda topic, log_time_ns, *_: heard.append(log_time_ns))
    before_ns = robot.recorder.get_clock().now().nanoseconds
    for received_ns in (0, 7):
        robot.recorder.work._topics._take_numbered("/joint_states", b"", {"received_timestamp": received_ns})
    assert before_ns <= heard[0] <= robot.recorder.get_clock().now().nanoseconds and heard[1] == 7


def test_success_and_verdict_are_told_and_the_figures_are_in_the_diagnostics(robot, tmp_path):
    told = []
    robot.node.create_subscription(DiagnosticArray, "/diagnostics", told.append, 10)
    hear(robot)
    assert robot.call("start_episode").success
    robot.publish(1)
    robot.spin_until(lambda: robot.received() == 3)
    assert robot.call("mark_success", SetBool, data=True).success
    stopped = robot.call("stop_episode")
    assert "verdict: reject: lasted" in stopped.message
    assert robot.call("mark_success", SetBool, data=False).message == "episode_000000 is marked as a failure"
    robot.spin_until(lambda: told)
    status = told[-1].status[0]
    values = {value.key: value.value for value in status.values}
    assert status.name == "recorder_node: recording"
    assert {"recording", "queue_mb", "/joint_states.rate_hz", "/joint_states.lost", "/joint_states.age_s"} <= values.keys()
    custom = Bag.open(tmp_path / "push" / "episode_000000").custom_data
    assert (custom["ros_vdd.success"], custom["ros_vdd.verdict"]) == ("false", "reject") and custom["ros_vdd.revision"]


def test_notes_of_every_level_are_told(robot, capfd):
    robot.recorder.work.recorder.notes.extend(Note(level, f"a note of level {level}") for level in ("info", "warning", "error"))
    robot.recorder.work._tick()
    told = capfd.readouterr().err
    assert all(f"[{word}]" in told for word in ("INFO", "WARN", "ERROR")) and told.count("a note of level") == 3


def test_no_robot_file_is_refused():
    recorder = start("recorder_node", "recorder")
    _, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 1
    assert "refused to start: recorder_node: parameter 'robot' is empty" in said

def test_a_recorder_without_its_packages_says_which():
    program = "import sys; sys.modules['zstandard'] = sys.modules['mcap'] = None; import ros_vdd.nodes.recorder_node"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: the recorder needs mcap, zstandard: pip install mcap zstandard"
