# SPDX-License-Identifier: Apache-2.0
"""Bad input from end to end: one clear error and a failed status from the command line, no command from the nodes."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny policy is made with onnx")
pytest.importorskip("mcap", reason="the bags are written with the mcap library")
pytest.importorskip("rosbags", reason="the bags are written with the rosbags library")

from make_bags import joint_state, write_bag, write_mcap  # noqa: E402
from tiny_policy import ROBOT, write_policy, write_robot  # noqa: E402

from ros_vdd import cli  # noqa: E402

MESSAGES = [("/joint_states", i * 10**8, joint_state(i)) for i in range(20)]


@pytest.fixture
def refused(capsys):
    """Run the command line, which must fail; return the one message it gave."""

    def run(*words):
        assert cli.main([str(word) for word in words]) == cli.USER_ERROR
        told = capsys.readouterr().err.strip()
        assert told.startswith("ros-vdd: ") and len(told.splitlines()) == 1
        return told

    return run


@pytest.fixture
def robot_file(tmp_path):
    return write_robot(tmp_path / "arm.yaml")


def converting(source, robot_file):
    return ["convert", source, "--robot", robot_file, "--out", robot_file.with_name("store"), "--no-progress"]


def test_a_sqlite_bag_without_metadata_says_how_to_write_it(refused, robot_file, tmp_path):
    bag = write_bag(tmp_path / "bag", MESSAGES, "sqlite3")
    (bag / "metadata.yaml").unlink()
    assert "ros2 bag reindex" in refused(*converting(bag, robot_file))
    assert not (tmp_path / "store").exists()


def test_a_truncated_mcap_says_what_is_left_and_how_to_take_it(refused, robot_file, tmp_path):
    bag = write_mcap(tmp_path / "cut.mcap", MESSAGES)
    bag.write_bytes(bag.read_bytes()[: bag.stat().st_size // 2])
    told = refused(*converting(bag, robot_file))
    assert "messages can be read" in told and "recover" in told
    assert not (tmp_path / "store").exists()


def test_an_unknown_key_of_a_robot_file_is_named_with_line_and_nearest(refused, robot_file, tmp_path):
    write_robot(robot_file, rate_hzz=10.0)
    line = robot_file.read_text().splitlines().index("rate_hzz: 10.0") + 1
    told = refused(*converting(tmp_path, robot_file))
    assert f"arm.yaml:{line}: unknown key 'rate_hzz'; available: " in told and "did you mean 'rate_hz'" in told


def test_an_unknown_key_of_a_training_configuration_is_named(refused, tmp_path):
    pytest.importorskip("torch", reason="the training stack needs torch")
    told = refused("train", "pusht_teacher", "--data", tmp_path, "loop.stps=3")
    assert "unknown key 'loop.stps'" in told and "did you mean 'steps'" in told


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("policies") / "tiny").path


@pytest.fixture
def flipped(tmp_path):
    """A policy folder with one byte flipped in the middle of its graph."""
    graph = write_policy(tmp_path / "flipped").path / "policy.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 0xFF
    graph.write_bytes(content)
    return graph.parent


@pytest.mark.parametrize(
    "words", [["inspect"], ["benchmark"], ["evaluate", "--env", "pusht"], ["demo", "--policy"]], ids=lambda words: words[0]
)
def test_one_flipped_byte_of_a_policy_is_refused_by_every_verb(words, flipped, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = refused(*words, flipped)
    assert "'policy.onnx' is damaged or was edited" in told and "Copy the folder again" in told


@pytest.fixture(scope="module")
def nodes(policy, tmp_path_factory):
    """The policy node and the executor, and a peer that hears every command to the robot."""
    pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
    from ros_peers import Peer, start, stop
    from trajectory_msgs.msg import JointTrajectory

    robot = write_robot(tmp_path_factory.mktemp("robots") / "tiny.yaml")
    started = [start("policy_node", "bad_input", policy=policy), start("chunk_executor_node", "bad_input", robot=robot)]
    peer = Peer("bad_input")
    peer.status, peer.executor_status = peer.hear_status("policy_node"), peer.hear_status("chunk_executor_node")
    peer.chunks, peer.commands = peer.hear(JointTrajectory, "action_chunk"), peer.hear(JointTrajectory, "command")
    peer.until(lambda: peer.status and peer.executor_status)
    yield peer
    peer.close()
    assert [stop(process)[0] for process in started] == [0, 0]


BAD = {  # topic, what its messages have or False for none, the reason that must be told, words of its detail
    "wrong encoding": ("image", {"encoding": "16UC1"}, "refused_message", ("16UC1", "rgb8")),
    "truncated image": ("image", {"data": bytes(7)}, "refused_message", ("7",)),
    "missing joint": ("joints", {"names": ["a"]}, "missing_joint", ("joint 'b'",)),
    "renamed joint": ("joints", {"names": ["a", "bb"]}, "missing_joint", ("joint 'b'", "'bb'")),
    "NaN in a joint state": ("joints", {"a": float("nan")}, "refused_message", ("nan",)),
    "no camera": ("image", False, "never_received", ("camera",)),
    "no joint states": ("joints", False, "never_received", ("joint_states",)),
}


@pytest.mark.parametrize("topic, content, code, words", BAD.values(), ids=BAD)
def test_a_bad_topic_commands_nothing_and_is_told(topic, content, code, words, nodes):
    from ros_peers import good_image, good_joints

    make = {"image": good_image, "joints": good_joints}[topic]
    for node in ("policy_node", "chunk_executor_node"):
        nodes.call(f"{node}/reset")
    nodes.until(lambda: nodes.status[-1]["code"] == "never_received" and nodes.executor_status[-1]["code"] == "no_chunk")
    del nodes.status[:-1], nodes.chunks[:], nodes.commands[:]
    told = lambda: any(s["code"] == code and all(word in s["detail"] for word in words) for s in nodes.status)  # noqa: E731
    published = []

    def publish():
        published.append(nodes.publish(**{topic: content if content is False else make(**content)}))

    nodes.until(lambda: told() and len(published) > 20, publish)
    assert nodes.chunks == [] and nodes.commands == []


def test_a_camera_that_goes_bad_stops_a_moving_robot_with_one_safe_action(nodes):
    from ros_peers import good_image

    measured = [0.1, 0.2]  # what good_joints tells
    position = lambda command: list(command.points[0].positions)  # noqa: E731
    spoiled = []

    def spoil():
        spoiled.append(nodes.publish(image=good_image(encoding="16UC1")))

    nodes.until(lambda: any(position(command) != measured for command in nodes.commands), nodes.publish)
    nodes.until(lambda: nodes.executor_status[-1]["code"] == "chunk_expired", spoil)
    nodes.until(lambda: np.allclose(position(nodes.commands[-1]), measured), spoil)
    del nodes.commands[:], spoiled[:]
    nodes.until(lambda: len(spoiled) > 20, spoil)
    assert nodes.commands == []


@pytest.mark.parametrize(
    "module, parameter", [("chunk_executor_node", "robot"), ("policy_node", "policy")], ids=["robot file", "policy folder"]
)
def test_a_node_refuses_to_start_with_one_error(module, parameter, flipped, tmp_path):
    pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
    from ros_peers import start

    wrong = {"robot": write_robot(tmp_path / "wrong.yaml", rate_hzz=ROBOT["rate_hz"]), "policy": flipped}[parameter]
    process = start(module, "bad_input_refused", **{parameter: wrong})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in said
    assert ("did you mean 'rate_hz'" if parameter == "robot" else "'policy.onnx' is damaged") in said
