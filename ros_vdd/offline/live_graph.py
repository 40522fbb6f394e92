# SPDX-License-Identifier: Apache-2.0
"""A robot file held against what its topics carry: the facts of `ros_vdd.nodes.graph_probe` become findings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ros_vdd.offline.finding import Finding
from ros_vdd.offline.live_urdf import judge_urdf
from ros_vdd.runtime.stamp_clock import span
from ros_vdd.streams.spec import CameraSpec, JointStateSpec, RobotSpec

FOREIGN_S = 5.0  # a stamp farther off isn't late but of another time: max_skew_s of policy_node
AHEAD_S = 0.05  # a clock so much ahead makes chunks that begin in the future
NOT_SEEN = "start it, or correct 'topic' in the robot file; same ROS_DOMAIN_ID, namespace (--namespace) and discovery range?"
Facts = Mapping[str, Any]


def judge(robot: RobotSpec, facts: Facts, seconds: float) -> Iterator[Finding]:
    """Yield what is wrong with each stream, or one line that says how it is.

    Args:
        robot: what was expected
        facts: what was seen, see `GraphProbe.facts`
        seconds: how long it was listened
    """
    yield from _judge_clock(facts)
    told: set[str] = set()  # topics whose publishers, rate and clock were judged: two streams may share one
    specs = {f"cameras.{n}": c for n, c in robot.cameras.items()} | {f"states.{n}": s for n, s in robot.states.items()}
    for key, spec in specs.items():
        stream = facts["streams"][key]
        found = list(_judge_sensor(key, spec, robot, stream, facts, seconds, stream["topic"] not in told))
        told.add(stream["topic"])
        yield from found or [Finding(key, "ok", _describe(spec, stream))]
    if robot.goal:
        yield from _judge_goal(facts["streams"]["goal"], facts)
    yield from _judge_command(facts["streams"]["action"], facts)
    if robot.action.source:
        yield from _judge_source(facts["streams"]["action.source"], facts)
    yield from judge_urdf(robot, facts.get("robot_description"))


def nearest(topic: str, topics: Mapping[str, list[str]], kind: str) -> str:
    """Return where the topic may have gone, as the end of a sentence: the nearest name of that type, or what there is."""
    alike = sorted(name for name, types in topics.items() if kind in types and name != topic)
    last = [name for name in alike if name.rsplit("/", 1)[-1] == topic.rsplit("/", 1)[-1]]
    close = last[:1] or difflib.get_close_matches(topic, alike, n=1, cutoff=0.4)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"topics of that type: {', '.join(alike) or 'none'}"


def _or_near(stream: Facts, topics: Mapping[str, list[str]]) -> str:
    return f"({stream['type']}); {nearest(stream['topic'], topics, stream['type'])}"


def _judge_clock(facts: Facts) -> Iterator[Finding]:
    if facts["use_sim_time"] and facts["clock_ns"] is None:
        remedy = "start the simulator, or ros2 bag play --clock; or leave --use-sim-time (use_sim_time) out"
        yield Finding("clock", "error", "simulated time is asked for, but nothing came on /clock", remedy)


def _judge_sensor(
    key: str, spec: CameraSpec | JointStateSpec, robot: RobotSpec, stream: Facts, facts: Facts, seconds: float, first: bool
) -> Iterator[Finding]:
    publishers = stream["publishers"]
    if not publishers:
        told = f"nobody publishes '{stream['topic']}' {_or_near(stream, facts['published'])}"
        yield Finding(key, "error", told, NOT_SEEN)
        return
    if wrong := list(_judge_endpoints(key, stream, publishers, "publishes", "offers")):
        yield from wrong if first else ()
        return
    if not stream["received"]:
        told = f"'{stream['topic']}' has {len(publishers)} publishers ({_nodes(publishers)}), but nothing came in {seconds:g} s"
        yield Finding(key, "error", told, _silence_remedy(spec))
        return
    if first:
        yield from _judge_publishers(key, spec, stream)
        yield from _judge_times(key, spec, robot, stream, facts)
    yield from _judge_content(key, spec, stream)


def _judge_endpoints(key: str, stream: Facts, endpoints: list[Facts], does: str, offers: str) -> Iterator[Finding]:
    """Yield other types and QoS that doesn't match ours."""
    for end in endpoints:
        if end["type"] != stream["type"]:
            told = f"{end['node']} {does} '{stream['topic']}' as {end['type']}; the robot file says {stream['type']}"
            yield Finding(key, "error", told, "correct 'type' or 'topic' in the robot file")
        elif not end["matches"]:
            told = f"'{stream['topic']}': {end['node']} {offers} {end['qos']}; ours is {stream['asked']}: no message gets through"
            yield Finding(key, "error", told, f"set the QoS of {end['node']} to {stream['asked']}")


def _judge_publishers(key: str, spec: CameraSpec | JointStateSpec, stream: Facts) -> Iterator[Finding]:
    publishers, sets = stream["publishers"], stream["names"]
    if len(publishers) < 2:
        return
    told = f"'{stream['topic']}' has {len(publishers)} publishers ({_nodes(publishers)})"
    if isinstance(spec, CameraSpec):
        yield Finding(key, "error", f"{told}; their pictures would mix", "stop all but one, or give each a topic of its own")
        return
    shared = sorted({joint for joint in spec.joints if sum(joint in names for names in sets) > 1})
    if shared or len(sets) < len(publishers):
        which = f"more than one sends {', '.join(shared)}" if shared else "some send the same joints"
        remedy = "one joint needs one publisher: stop the other (a bag, joint_state_publisher_gui, a second broadcaster)"
        yield Finding(key, "warn", f"{told}, and {which}", remedy)


def _judge_times(
    key: str, spec: CameraSpec | JointStateSpec, robot: RobotSpec, stream: Facts, facts: Facts
) -> Iterator[Finding]:
    """Yield rates and gaps that the robot file doesn't allow, then stamps that are not of this time."""
    rate, gap, limit = stream["rate_hz"], stream["gap_s"], spec.max_age_s
    if rate is None:
        yield Finding(key, "error", f"'{stream['topic']}': one message only", "is the driver active, or stuck?")
    elif 1 / rate > limit:
        told = f"'{stream['topic']}' comes at {rate:.3g} Hz, {1 / rate:.3g} s apart; 'max_age_s' is {limit:g}"
        yield Finding(key, "error", told, "raise the driver's rate, or 'max_age_s' where the task bears it")
    elif gap > limit:
        told = f"'{stream['topic']}' comes at {rate:.3g} Hz, but once nothing for {gap:.3g} s; 'max_age_s' is {limit:g}"
        yield Finding(key, "warn", told, "look for a busy machine, USB or network; messages may be lost")
    elif isinstance(spec, CameraSpec) and rate < 0.9 * robot.rate_hz:
        told = f"'{stream['topic']}' comes at {rate:.3g} Hz; the policy runs at {robot.rate_hz:g}"
        yield Finding(key, "warn", told, "raise the camera's rate: demonstrations had a new picture at each tick")
    if stream["jumps"]:
        yield Finding(key, "warn", f"'{stream['topic']}': {stream['jump']}", "a looping bag, or two publishers with two clocks?")
    if spec.stamp == "header" and stream["age_s"] is not None:
        yield from _judge_age(key, spec, stream, facts)


def _judge_age(key: str, spec: CameraSpec | JointStateSpec, stream: Facts, facts: Facts) -> Iterator[Finding]:
    age, topic = stream["age_s"], stream["topic"]
    if -AHEAD_S <= age <= spec.max_age_s:
        return
    apart = f"stamps of '{topic}' are {span(round(age * 1e9))} {'behind' if age > 0 else 'ahead of'} this machine's clock"
    synchronise = "synchronise the clocks (chrony, PTP), or write stamp: receive for this stream"
    if abs(age) <= FOREIGN_S:
        late = age > 0
        told = f"{apart}; " + (f"'max_age_s' is {spec.max_age_s:g}" if late else "chunks would begin in the future")
        remedy = f"a slow driver or network; or {synchronise}" if late else synchronise
        yield Finding(key, "warn" if late else "error", told, remedy)
    elif facts["use_sim_time"] and facts["clock_ns"] is None:
        return  # told once, as the clock's
    elif facts["use_sim_time"]:
        wall = abs(facts["wall_ns"] - stream["stamp_ns"]) < FOREIGN_S * 1e9
        which = "wall time" if wall else "of another time than /clock"
        told = f"stamps of '{topic}' are {which}, and the nodes would run on /clock"
        yield Finding(key, "error", told, "set use_sim_time for the driver as well, or for none")
    elif facts["clock_ns"] is not None and abs(facts["clock_ns"] - stream["stamp_ns"]) < FOREIGN_S * 1e9:
        told = f"{apart}: they are simulated time, that of /clock"
        yield Finding(key, "error", told, "start our nodes with use_sim_time:=true, and check again with --use-sim-time")
    else:
        remedy = f"{synchronise}; a bag: ros2 bag play --clock and use_sim_time:=true"
        yield Finding(key, "error", f"{apart}: another clock", remedy)


def _judge_content(key: str, spec: CameraSpec | JointStateSpec, stream: Facts) -> Iterator[Finding]:
    if stream["refused"]:
        told = f"{stream['refused']} of {stream['received']} messages are unusable; the newest: {stream['refusal']}"
        yield Finding(key, "error", told, "correct the driver or the robot file, whichever is wrong")
    if stream.get("frozen"):
        told = f"'{stream['topic']}' has sent the same picture for longer than 'frozen_after_s', {spec.frozen_after_s:g} s"
        yield Finding(key, "error", told, "restart the driver; for a simulator leave 'frozen_after_s' out")
    came = {name for names in stream["names"] for name in names}
    missing = [joint for joint in getattr(spec, "joints", ()) if joint not in came]
    if missing and not stream["refused"]:
        nearest_names = [m for joint in missing for m in difflib.get_close_matches(joint, came, n=1, cutoff=0.5)]
        hint = f"; did you mean {', '.join(sorted(set(nearest_names)))}?" if nearest_names else ""
        told = f"'{stream['topic']}' has no {', '.join(missing)}; it has {', '.join(sorted(came)) or 'none'}{hint}"
        yield Finding(key, "error", told, "correct 'joints' in the robot file, or start the publisher that sends them")
    elif stream["incomplete"]:
        remedy = "the publisher must send all 'fields' of all 'joints', within 'max_age_s'"
        yield Finding(key, "error", stream["incomplete"], remedy)


def _judge_goal(stream: Facts, facts: Facts) -> Iterator[Finding]:
    publishers = stream["publishers"]
    if not publishers:
        told = f"nobody publishes '{stream['topic']}' {_or_near(stream, facts['published'])}"
        yield Finding("goal", "warn", told, "publish one, latched, or set the parameter 'goal' of policy_node")
    else:
        wrong = list(_judge_endpoints("goal", stream, publishers, "publishes", "offers"))
        yield from wrong or [Finding("goal", "ok", f"'{stream['topic']}' from {_nodes(publishers)}")]


def _judge_command(stream: Facts, facts: Facts) -> Iterator[Finding]:
    listeners = stream["subscribers"]
    others = [p for p in stream["publishers"] if not p["node"].endswith("/chunk_executor_node")]
    if not listeners:
        told = f"nobody listens to '{stream['topic']}' {_or_near(stream, facts['subscribed'])}"
        yield Finding("action", "error", told, "start the controller (active?), or correct 'action.topic'")
        return
    wrong = list(_judge_endpoints("action", stream, listeners, "takes", "asks for"))
    if others:
        told = f"'{stream['topic']}' is commanded by {_nodes(others)} as well"
        wrong.append(Finding("action", "warn", told, "stop it before a policy runs: two would pull at one robot"))
    yield from wrong or [Finding("action", "ok", f"'{stream['topic']}' is taken by {_nodes(listeners)}")]


def _judge_source(stream: Facts, facts: Facts) -> Iterator[Finding]:
    if not stream["publishers"]:
        told = f"nobody publishes '{stream['topic']}' {_or_near(stream, facts['published'])}"
        yield Finding("action.source", "warn", told, "needed to record demonstrations only")
        return
    wrong = list(_judge_endpoints("action.source", stream, stream["publishers"], "publishes", "offers"))
    yield from wrong or [Finding("action.source", "ok", f"'{stream['topic']}' from {_nodes(stream['publishers'])}")]


def _silence_remedy(spec: CameraSpec | JointStateSpec) -> str:
    if getattr(spec, "type", "") == "sensor_msgs/msg/Image":
        return "a raw image may be too large for shared memory, see 'image transport'; the driver's shell needs the profile too"
    return "is the driver active? ros2 topic hz; a firewall between two machines?"


def _describe(spec: CameraSpec | JointStateSpec, stream: Facts) -> str:
    text = f"'{stream['topic']}' at {stream['rate_hz']:.3g} Hz from {_nodes(stream['publishers'])}"
    if spec.stamp == "header" and stream["age_s"] is not None:
        text += f", {1e3 * stream['age_s']:.0f} ms old"
    came = {name for names in stream["names"] for name in names}
    more = sorted(came - set(getattr(spec, "joints", came)))
    return text + (f"; not ours: {', '.join(more)}" if more else "")


def _nodes(endpoints: Iterable[Facts]) -> str:
    return ", ".join(sorted(end["node"] for end in endpoints))
