# SPDX-License-Identifier: Apache-2.0
"""What the recorder listens to: the robot's topics and those that match a pattern, as their publishers offer them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import rclpy.subscription
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from ros_vdd.errors import RosVddError
from ros_vdd.runtime.recording import EpisodeRecorder

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

_TELLS_INFO = hasattr(rclpy.subscription, "MessageInfo")  # Jazzy and later
_GID = "publisher_gid"


@dataclass
class _Listened:
    """One subscription and what it asks for."""

    subscription: Subscription
    qos: QoSProfile


class RecordedTopics:
    """Keeps one raw subscription for each topic that is to be recorded, matched to its publishers.

    Reliable where all publishers are reliable, latched where they all are: then nothing is lost that they keep. Otherwise best
    effort and volatile, which takes from every publisher.

    Args:
        node: whose subscriptions they are.
        recorder: what gets the messages; its topics are those of the robot.
        latched: those of them that are listened to latched while they have no publisher.
        patterns: shell patterns of further topics; a relative one is of the node's namespace.
        depth: messages per topic that may wait in the middleware.
    """

    def __init__(self, node: Node, recorder: EpisodeRecorder, latched: Sequence[str], patterns: Sequence[str], depth: int):
        self._node, self._recorder, self._depth = node, recorder, depth
        self._latched = frozenset(latched)
        space = node.get_namespace().rstrip("/")
        self._patterns = [pattern if pattern.startswith("/") else f"{space}/{pattern}" for pattern in patterns]
        self._own = f"{node.get_fully_qualified_name()}/"
        self._listened: dict[str, _Listened] = {}
        self._numbered: set[str] = set()
        self.look()

    def look(self) -> None:
        """Look at the graph: take in new topics that match, follow what publishers offer. Call it about twice a second."""
        if self._patterns:
            self._find()
        for topic, type_name in self._recorder.topics.items():
            publishers = self._node.get_publishers_info_by_topic(topic)
            self._recorder.offer(topic, self._offered(topic))
            wanted = self._match(topic, publishers)
            held = self._listened.get(topic)
            if held is None or self._must_change(held.qos, wanted, publishers):
                self._listen(topic, type_name, wanted)

    def _find(self) -> None:
        refused: dict[str, str] = {}
        for topic, types in self._node.get_topic_names_and_types():
            if topic in self._recorder.topics or topic.startswith(self._own):
                continue
            if not any(fnmatchcase(topic, pattern) for pattern in self._patterns) or not self._node.count_publishers(topic):
                continue
            try:
                if len(types) > 1:
                    raise RosVddError(f"carries several types: {', '.join(types)}")
                message_class(types[0])
                self._recorder.offer(topic, self._offered(topic))
                self._recorder.add_topic(topic, types[0])
            except (RosVddError, ImportError, AttributeError) as error:
                refused[topic] = _why_not(types[0], error)
        for topic in refused.keys() - self._recorder.gate.refused.keys():
            self._node.get_logger().warning(f"{topic} {refused[topic]}")
        self._recorder.gate.refused = refused

    def _offered(self, topic: str) -> list[dict[str, Any]]:
        return [plain_qos(profile) for profile in _profiles(self._node.get_publishers_info_by_topic(topic))]

    def _match(self, topic: str, publishers: Sequence[TopicEndpointInfo]) -> QoSProfile:
        offered = _profiles(publishers)
        latched = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offered) if offered else topic in self._latched
        reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offered) if offered else topic in self._latched
        return QoSProfile(
            depth=self._depth,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched and reliable else DurabilityPolicy.VOLATILE,
        )

    def _must_change(self, held: QoSProfile, wanted: QoSProfile, publishers: Sequence[TopicEndpointInfo]) -> bool:
        """Return whether to subscribe anew; while an episode is recorded, only where a publisher isn't heard otherwise."""
        if (held.reliability, held.durability) == (wanted.reliability, wanted.durability) or not publishers:
            return False
        offers = [QoSProfile(depth=1, reliability=q.reliability, durability=q.durability) for q in _profiles(publishers)]
        deaf = any(qos_check_compatible(offer, held)[0] == QoSCompatibility.ERROR for offer in offers)
        return deaf or not self._recorder.recording

    def _listen(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        if topic in self._listened:
            self._node.destroy_subscription(self._listened.pop(topic).subscription)
        take: Callable[..., None] = partial(self._take_numbered if _TELLS_INFO else self._take, topic)
        events = SubscriptionEventCallbacks(message_lost=partial(self._lost, topic))
        subscription = self._node.create_subscription(
            message_class(type_name), topic, take, qos, raw=True, event_callbacks=events
        )
        self._listened[topic] = _Listened(subscription, qos)

    def _take(self, topic: str, data: bytes) -> None:
        self._recorder.receive(topic, self._node.get_clock().now().nanoseconds, data)

    def _take_numbered(self, topic: str, data: bytes, info: Mapping[str, Any]) -> None:
        # The middleware's time of arrival, where it is of our clock: also right for a message that had to wait for us.
        clock = self._node.get_clock()
        arrived_ns = 0 if clock.ros_time_is_active else info["received_timestamp"]  # Cyclone DDS tells 0
        now_ns = arrived_ns or clock.now().nanoseconds
        number, publisher = info.get("publication_sequence_number"), info.get(_GID)
        if number is None or publisher is None:
            self._recorder.receive(topic, now_ns, data)
            return
        self._numbered.add(topic)
        self._recorder.receive(topic, now_ns, data, number, bytes(publisher["data"]))

    def _lost(self, topic: str, event: Any) -> None:
        """Count what the middleware reports as lost; numbers tell it better, also what its own queue dropped."""
        if topic not in self._numbered:
            self._recorder.lose(topic, event.total_count_change)


def message_class(type_name: str) -> Any:
    """Return the class of a message type such as "sensor_msgs/msg/Image".

    Raises:
        ImportError, AttributeError: its package isn't installed, or has no such message.
    """
    package, _, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def plain_qos(qos: QoSProfile) -> dict[str, Any]:
    """Return a profile as rosbag2's metadata version 9 writes it."""
    words = {key: getattr(qos, key).name.lower() for key in ("history", "reliability", "durability", "liveliness")}
    times = {key: _split(getattr(qos, key).nanoseconds) for key in ("deadline", "lifespan", "liveliness_lease_duration")}
    return {
        "history": words["history"],
        "depth": qos.depth,
        "reliability": words["reliability"],
        "durability": words["durability"],
        "deadline": times["deadline"],
        "lifespan": times["lifespan"],
        "liveliness": words["liveliness"],
        "liveliness_lease_duration": times["liveliness_lease_duration"],
        "avoid_ros_namespace_conventions": bool(qos.avoid_ros_namespace_conventions),
    }


def _split(nanoseconds: int) -> dict[str, int]:
    return dict(zip(("sec", "nsec"), divmod(nanoseconds, 1_000_000_000)))


def _profiles(publishers: Sequence[TopicEndpointInfo]) -> list[QoSProfile]:
    return [publisher.qos_profile for publisher in publishers]


def _why_not(type_name: str, error: Exception) -> str:
    if isinstance(error, (ImportError, AttributeError)):
        package = type_name.partition("/")[0]
        return f"is {type_name}, and the messages of '{package}' aren't installed here; install them or narrow 'extra_topics'"
    if "several types" in str(error):
        return str(error)
    return (
        f"is {type_name}, whose definition isn't known: only standard types can be recorded; "
        "narrow the patterns of 'extra_topics'"
    )
