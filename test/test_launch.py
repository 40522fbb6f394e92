# SPDX-License-Identifier: Apache-2.0
"""Launch files: every argument is described, and what they start runs with the parameters it was given."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")
launch = pytest.importorskip("launch", reason="ros2/launch is not installed; it comes with a ROS distribution")
pytest.importorskip("launch_ros", reason="ros2/launch_ros is not installed; it comes with a ROS distribution")

from launch.actions import DeclareLaunchArgument  # noqa: E402
from launch.launch_description_sources import get_launch_description_from_python_launch_file  # noqa: E402
from launch_ros.actions import Node  # noqa: E402
from ros_peers import Peer  # noqa: E402
from tiny_policy import write_policy, write_robot  # noqa: E402
from sensor_msgs.msg import Joy  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
INCLUDE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
path, *arguments = sys.argv[1:]
service = LaunchService(argv=arguments)
given = [tuple(argument.split(":=", 1)) for argument in arguments]
include = IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=given)
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make an ament prefix whose executables run this checkout."""
    prefix = tmp_path / "prefix"
    for folder in ("share/ament_index/resource_index/packages", "lib/ros_vdd"):
        (prefix / folder).mkdir(parents=True)
    (prefix / "share/ament_index/resource_index/packages/ros_vdd").touch()
    for name in ("policy_node", "chunk_executor_node", "recorder_node", "recorder_joystick"):
        script = prefix / "lib/ros_vdd" / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom ros_vdd.nodes.{name} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    for variable, value in (("AMENT_PREFIX_PATH", prefix), ("PYTHONPATH", ROOT)):
        monkeypatch.setenv(variable, os.pathsep.join(filter(None, [str(value), os.environ.get(variable)])))
    return prefix


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_launch_argument_is_described(path):
    description = get_launch_description_from_python_launch_file(str(path))
    arguments = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert arguments and all(argument.description for argument in arguments)


def test_launch_gives_the_recorder_two_minutes_to_complete_its_episode(monkeypatch):
    given = {}

    class Noted(Node):
        def __init__(self, **arguments):
            given[arguments["executable"]] = arguments
            super().__init__(**arguments)

    monkeypatch.setattr("launch_ros.actions.Node", Noted)
    get_launch_description_from_python_launch_file(str(ROOT / "launch" / "record.launch.py"))
    assert {name: arguments.get("sigterm_timeout") for name, arguments in given.items()} == {
        "recorder_node": "120",
        "recorder_joystick": "5",
    }


def test_policy_launch_drives_a_robot_in_its_namespace(installed, tmp_path):
    policy, robot = write_policy(tmp_path / "tiny").path, write_robot(tmp_path / "tiny.yaml")
    given = [f"policy:={policy}", f"robot:={robot}", "namespace:=launched"]
    command = [sys.executable, "-c", INCLUDE, str(ROOT / "launch" / "policy.launch.py"), *given]
    process = subprocess.Popen(command, start_new_session=True)
    peer = Peer("launched")
    try:
        commands = peer.hear(JointTrajectory, "command")
        peer.until(lambda: commands, peer.publish)
    finally:
        peer.close()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) == 0


def test_record_launch_records_what_a_button_asks_for(installed, tmp_path):
    robot = write_robot(tmp_path / "tiny.yaml")
    given = [f"robot:={robot}", f"root:={tmp_path / 'episodes'}", "task:=touch", "joystick:=true", "namespace:=launched"]
    command = [sys.executable, "-c", INCLUDE, str(ROOT / "launch" / "record.launch.py"), *given]
    process = subprocess.Popen(command, start_new_session=True)
    peer = Peer("launched")
    try:
        buttons = peer.node.create_publisher(Joy, "joy", 10)
        commands = peer.node.create_publisher(JointTrajectory, "command", 10)
        held = iter(range(10**6))

        def demonstrate():
            peer.publish()
            commands.publish(JointTrajectory())
            buttons.publish(Joy(buttons=[0] * 7 + [next(held) % 20 // 19]))  # start is pressed now and then

        peer.until((tmp_path / "episodes" / "touch" / "episode_000000.partial").exists, demonstrate)
    finally:
        peer.close()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "episodes" / "touch" / "episode_000000" / "metadata.yaml").is_file()


@pytest.mark.parametrize("given, precision", [((), "fp97"), (("backend:=onnxruntime:fp98",), "fp98")], ids=["file", "argument"])
def test_policy_launch_takes_the_engine_of_the_parameter_file_unless_one_is_said(given, precision, installed, tmp_path):
    policy, robot, file = write_policy(tmp_path / "tiny").path, write_robot(tmp_path / "tiny.yaml"), tmp_path / "policy.yaml"
    file.write_text("/**:\n  ros__parameters:\n    backend: onnxruntime:fp97\n")
    words = [f"policy:={policy}", f"robot:={robot}", "namespace:=engines", f"policy_params:={file}", *given]
    command = [sys.executable, "-c", INCLUDE, str(ROOT / "launch" / "policy.launch.py"), *words]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = next((line for line in process.stdout if "[policy_node-" in line and ("refused" in line or "configured" in line)), "")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert f"engine 'onnxruntime' has no precision '{precision}'" in said
