# SPDX-License-Identifier: Apache-2.0
"""Run a policy in a simulator over ROS topics, by the wall clock; ends when the last episode is over.

    ros2 launch ros_vdd demo.launch.py
    ros2 launch ros_vdd demo.launch.py policy:=/path/to/policy episodes:=20 first_seed:=100000

`ros-vdd demo` does the same without ros2 launch, in a ROS domain of its own, and draws the result.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ros_vdd.resources import share_dir

HERE = Path(__file__).resolve().parent
ARGUMENTS = (
    ("policy", "pusht_vdd", "policy folder, or the name of a shipped one"),
    ("env", "pusht", "simulator; its robot file is used by all three nodes"),
    ("robot", "pusht", "robot file of that simulator, or the name of a shipped one"),
    ("episodes", "5", "how many episodes"),
    ("first_seed", "0", "seed of the first episode; each later one adds 1"),
    ("namespace", "", "namespace of the nodes and of every relative topic of the robot file"),
    ("sim_params", str(share_dir() / "config" / "nodes" / "sim.yaml"), "parameter file of sim_bridge_node"),
)


def said_at_launch():
    """Return the parameters of the simulator that are launch arguments, with their types."""
    kinds = {"env": str, "robot": str, "episodes": int, "first_seed": int}
    return {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in kinds.items()}


def generate_launch_description():
    """Return policy.launch.py and the simulator, whose end is the end of all."""
    simulator = Node(
        package="ros_vdd",
        executable="sim_bridge_node",
        name="sim_bridge_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("sim_params"), said_at_launch()],
        output="screen",
        on_exit=Shutdown(reason="the last episode is over"),
    )
    policy = {name: LaunchConfiguration(name) for name in ("policy", "robot", "namespace")}
    source = PythonLaunchDescriptionSource(str(HERE / "policy.launch.py"))
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=value, description=words) for name, value, words in ARGUMENTS),
            IncludeLaunchDescription(source, launch_arguments=policy.items()),
            simulator,
        ]
    )
