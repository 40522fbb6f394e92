# SPDX-License-Identifier: Apache-2.0
"""What a robot file's topics carry right now, as plain facts in JSON; `ros-vdd doctor --live` judges them.

Run as a process of its own, so that the doctor needs no ROS. It publishes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.utilities import get_rmw_implementation_identifier
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from ros_vdd.errors import RosVddError
from ros_vdd.nodes.messages import CAMERA_QOS, CLASSES, COMMAND_QOS, JOINT_STATE_QOS, LATCHED_QOS
from ros_vdd.nodes.robot_description import TOPIC
from ros_vdd.runtime.intake import CameraIntake, Intake, JointStateIntake, NotReady
from ros_vdd.streams.codecs import stamp_ns
from ros_vdd.streams.spec import RobotSpec, load_robot

DISCOVERY_S = 5.0  # at most, before the listening begins
ENDLESS_NS = 10**15  # eleven days; Fast DDS tells "for ever" as 292 years, others as 136 or more


@dataclass
class _Heard:
    """What came on one topic."""

    times_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    stamp_ns: int | None = None  # the newest
    names: set[tuple[str, ...]] = field(default_factory=set)
    intakes: list[Intake] = field(default_factory=list)


class GraphProbe(Node):
    """Subscribes to the observed topics of a robot as the policy node does, and looks at the others in the graph.

    Args:
        robot: whose topics
        namespace: the nodes'
        use_sim_time: whether the nodes will run on /clock
    """

    def __init__(self, robot: RobotSpec, namespace: str, use_sim_time: bool):
        simulated = [Parameter("use_sim_time", value=use_sim_time)]
        super().__init__("ros_vdd_doctor", namespace=namespace, parameter_overrides=simulated)
        self._robot, self._use_sim_time, self._clock_ns = robot, use_sim_time, None
        self._heard: dict[str, _Heard] = {}
        self._intakes: dict[str, Intake] = {}
        self._description: str | None = None
        self.create_subscription(Clock, "/clock", self._take_clock, CAMERA_QOS)
        self.create_subscription(String, TOPIC, self._take_description, LATCHED_QOS)
        for name, camera in robot.cameras.items():
            self._listen(f"cameras.{name}", camera.topic, camera.type, CAMERA_QOS, CameraIntake(camera, f"images.{name}"))
        for name, state in robot.states.items():
            intake = JointStateIntake(state, f"states.{name}")
            self._listen(f"states.{name}", state.topic, "sensor_msgs/msg/JointState", JOINT_STATE_QOS, intake)

    @property
    def published(self) -> bool:
        """Whether every observed topic has a publisher."""
        return all(self.count_publishers(topic) for topic in self._heard)

    def facts(self) -> dict[str, Any]:
        """Return everything that was seen, as plain values."""
        streams = [self._sensor(f"cameras.{n}", c.topic, c.type, CAMERA_QOS) for n, c in self._robot.cameras.items()]
        kind = "sensor_msgs/msg/JointState"
        streams += [self._sensor(f"states.{n}", s.topic, kind, JOINT_STATE_QOS) for n, s in self._robot.states.items()]
        action, source, goal = self._robot.action, self._robot.action.source, self._robot.goal
        if goal:
            streams.append(self._endpoints("goal", goal.topic, goal.type, LATCHED_QOS))
        streams.append(self._endpoints("action", action.topic, action.type, COMMAND_QOS))
        if source:
            streams.append(self._endpoints("action.source", source.topic, source.type, JOINT_STATE_QOS))
        published = {name: types for name, types in self.get_topic_names_and_types() if self.count_publishers(name)}
        subscribed = {name: types for name, types in self.get_topic_names_and_types() if self.count_subscribers(name)}
        return {
            "rmw": get_rmw_implementation_identifier(),
            "use_sim_time": self._use_sim_time,
            "now_ns": self.get_clock().now().nanoseconds,
            "wall_ns": time.time_ns(),
            "clock_ns": self._clock_ns,
            "robot_description": self._description,
            "published": published,
            "subscribed": subscribed,
            "streams": {stream.pop("key"): stream for stream in streams},
        }

    def _listen(self, key: str, topic: str, kind: str, qos: QoSProfile, intake: Intake) -> None:
        self._intakes[key] = intake
        full = self.resolve_topic_name(topic)
        if full not in self._heard:
            self._heard[full] = _Heard()
            self.create_subscription(CLASSES[kind], topic, partial(self._take, self._heard[full]), qos)
        self._heard[full].intakes.append(intake)

    def _take(self, heard: _Heard, message: Any) -> None:
        now_ns, now_s = self.get_clock().now().nanoseconds, time.monotonic()
        heard.times_s.append(now_s)
        if hasattr(message, "name"):
            heard.names.add(tuple(message.name))
        for intake in heard.intakes:
            intake.push(message, now_ns, now_s)
        stamp = _stamp(message)
        if stamp is not None:
            heard.stamp_ns = stamp
            heard.ages_s.append((now_ns - stamp) / 1e9)

    def _take_clock(self, message: Clock) -> None:
        self._clock_ns = message.clock.sec * 1_000_000_000 + message.clock.nanosec

    def _take_description(self, message: String) -> None:
        self._description = message.data

    def _sensor(self, key: str, topic: str, kind: str, qos: QoSProfile) -> dict[str, Any]:
        heard, intake = self._heard[self.resolve_topic_name(topic)], self._intakes[key]
        times = heard.times_s
        gaps = [later - earlier for earlier, later in zip(times, times[1:])]
        held = None if intake.newest_stamp_ns is None else intake.at(intake.newest_stamp_ns)
        return self._endpoints(key, topic, kind, qos) | {
            "received": intake.received,
            "refused": intake.refused,
            "refusal": intake.refusal,
            "incomplete": held.detail if isinstance(held, NotReady) and not intake.refusal else None,
            "frozen": getattr(intake, "frozen", 0),
            "jumps": intake.jumps,
            "jump": intake.jump,
            "rate_hz": len(gaps) / sum(gaps) if gaps and sum(gaps) else None,
            "gap_s": max(gaps, default=None),
            "age_s": statistics.median(heard.ages_s) if heard.ages_s else None,
            "stamp_ns": heard.stamp_ns,
            "names": sorted(map(list, heard.names)),
        }

    def _endpoints(self, key: str, topic: str, kind: str, qos: QoSProfile) -> dict[str, Any]:
        """Return who publishes and who subscribes, and whether their QoS goes with ours."""
        full = self.resolve_topic_name(topic)
        subscribers = [s for s in self.get_subscriptions_info_by_topic(full) if s.node_name != self.get_name()]
        return {
            "key": key,
            "topic": full,
            "type": kind,
            "asked": _words(qos),
            "publishers": [_endpoint(p, lambda theirs: (theirs, qos)) for p in self.get_publishers_info_by_topic(full)],
            "subscribers": [_endpoint(s, lambda theirs: (qos, theirs)) for s in subscribers],
        }


def _endpoint(info: TopicEndpointInfo, pair: Callable[[QoSProfile], tuple[QoSProfile, QoSProfile]]) -> dict[str, Any]:
    compatible, _ = qos_check_compatible(*pair(_asked(info.qos_profile)))
    return {
        "node": f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        "type": info.topic_type,
        "qos": _words(info.qos_profile),
        "matches": compatible != QoSCompatibility.ERROR,
    }


def _asked(qos: QoSProfile) -> QoSProfile:
    """Return what must match; the graph tells no deadline as an infinite one, which rclpy would take for a wish."""
    limits = {} if qos.deadline.nanoseconds > ENDLESS_NS else {"deadline": qos.deadline}
    return QoSProfile(depth=1, reliability=qos.reliability, durability=qos.durability, **limits)


def _words(qos: QoSProfile) -> str:
    words = [qos.reliability.name.lower(), qos.durability.name.lower()]
    if 0 < qos.deadline.nanoseconds <= ENDLESS_NS:
        words.append(f"deadline {qos.deadline.nanoseconds / 1e9:g} s")
    return ", ".join(words)


def _stamp(message: Any) -> int | None:
    try:
        return stamp_ns(message)
    except RosVddError:
        return None


def main(args: list[str] | None = None) -> int:
    """Listen for some seconds and print the facts as one line of JSON."""
    parser = argparse.ArgumentParser(prog="graph_probe")
    parser.add_argument("robot")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--namespace", default="")
    parser.add_argument("--use-sim-time", action="store_true")
    options = parser.parse_args(args)
    rclpy.init(args=[])
    probe = GraphProbe(load_robot(options.robot), options.namespace, options.use_sim_time)
    found_by = time.monotonic() + DISCOVERY_S
    while not probe.published and time.monotonic() < found_by:
        rclpy.spin_once(probe, timeout_sec=0.1)
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        rclpy.spin_once(probe, timeout_sec=0.1)
    print(json.dumps(probe.facts()), flush=True)
    probe.destroy_node()
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
