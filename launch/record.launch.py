# SPDX-License-Identifier: Apache-2.0
"""Record demonstrations: recorder_node, and on request the buttons of a joystick.

    ros2 launch ros_vdd record.launch.py robot:=my_arm.yaml task:=push_t
    ros2 launch ros_vdd record.launch.py --show-args
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ros_vdd.resources import fast_dds_profile, share_dir

ARGUMENTS = (
    ("robot", None, "robot file, or the name of a shipped one"),
    ("root", "~/episodes", "folder of all recordings"),
    ("task", "demonstration", "what is demonstrated; a folder below root"),
    ("operator", "", "who demonstrates; written into each recording"),
    ("joystick", "false", "also start recorder_joystick, which listens to the topic joy"),
    ("namespace", "", "namespace of the nodes and of every relative topic of the robot file"),
    ("use_sim_time", "false", "take the time from /clock"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("recorder_params", str(share_dir() / "config" / "nodes" / "recorder.yaml"), "parameter file of both nodes"),
)
COMPLETE_S = "120"  # all that waits for a slow disk is written before the recorder ends
TEXTS = ("robot", "root", "task", "operator")


def node(executable, condition=None, sigterm_timeout="5", **parameters):
    """Return a node of this package with the parameter file, and the parameters that are said at launch on top."""
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return Node(
        package="ros_vdd",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("recorder_params"), {**parameters, "use_sim_time": sim_time}],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        condition=condition,
        sigterm_timeout=sigterm_timeout,
    )


def generate_launch_description():
    """Return the nodes and their arguments."""
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in TEXTS}
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=value, description=words) for name, value, words in ARGUMENTS),
            *(SetEnvironmentVariable(*pair) for pair in fast_dds_profile(os.environ).items()),
            node("recorder_node", sigterm_timeout=COMPLETE_S, **given),
            node("recorder_joystick", IfCondition(LaunchConfiguration("joystick"))),
        ]
    )
