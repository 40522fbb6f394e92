# SPDX-License-Identifier: Apache-2.0
"""Run a policy on a robot: policy_node and chunk_executor_node, each in its own process.

    ros2 launch ros_vdd policy.launch.py policy:=pusht_vdd robot:=pusht
    ros2 launch ros_vdd policy.launch.py --show-args
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ros_vdd.resources import fast_dds_profile, share_dir

CONFIG = share_dir() / "config"
ARGUMENTS = (
    ("policy", None, "policy folder, or the name of a shipped one"),
    ("robot", None, "robot file, or the name of a shipped one; must agree with the one the policy was trained with"),
    ("goal", "", "goal until one is published: a task's name or number, or numbers with commas between them; empty: that of policy_params"),
    ("backend", "", "engine that runs the policy; empty: that of policy_params"),
    ("namespace", "", "namespace of both nodes and of every relative topic of the robot file"),
    ("use_sim_time", "false", "take the time from /clock"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("policy_params", str(CONFIG / "nodes" / "policy.yaml"), "parameter file of policy_node"),
    ("executor_params", str(CONFIG / "nodes" / "executor.yaml"), "parameter file of chunk_executor_node"),
)
SAFE_ACTION_S = "65"  # the executor brings a moving robot to its safe action first; it gives that 60 s


def node(executable, parameter_file, sigterm_timeout="5", **parameters):
    """Return a node of this package with its parameter file, and the parameters that are said at launch on top."""
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return Node(
        package="ros_vdd",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration(parameter_file), {**parameters, "use_sim_time": sim_time}],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        sigterm_timeout=sigterm_timeout,
    )


def text(argument):
    """Return a launch argument as a text parameter, whatever it looks like."""
    return ParameterValue(LaunchConfiguration(argument), value_type=str)


def policy_node(context):
    """Return policy_node; an argument that was left empty leaves the parameter to the file."""
    given = {name: text(name) for name in ("goal", "backend") if LaunchConfiguration(name).perform(context)}
    return [node("policy_node", parameter_file="policy_params", policy=text("policy"), robot=text("robot"), **given)]


def generate_launch_description():
    """Return both nodes and their arguments."""
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=value, description=words) for name, value, words in ARGUMENTS),
            *(SetEnvironmentVariable(*pair) for pair in fast_dds_profile(os.environ).items()),
            OpaqueFunction(function=policy_node),
            node(
                "chunk_executor_node",
                parameter_file="executor_params",
                sigterm_timeout=SAFE_ACTION_S,
                robot=text("robot"),
            ),
        ]
    )
