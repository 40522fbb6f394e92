# SPDX-License-Identifier: Apache-2.0
"""The recorder over ROS: three cameras and joint states, each from a process of its own; published = recorded + reported lost?"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from recorder_robot import CAMERA_HZ, JOINT_HZ, number_of, robot

from ros_vdd.config import dump_yaml, parse_yaml
from ros_vdd.data.bag import Bag
from ros_vdd.errors import RosVddError
from ros_vdd.offline.processes import Processes, ros_environment

DOMAIN, ANSWER_S, SETTLE_S = 79, 60.0, 4.0


class Source:
    """One publishing process."""

    def __init__(self, topic: str, kind: str, environment: dict[str, str]):
        command = [sys.executable, str(Path(__file__).with_name("recorder_source.py")), topic, kind]
        self.topic, self.hz = topic, CAMERA_HZ if kind == "image" else JOINT_HZ
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def say(self, line: str) -> None:
        """Tell it what to do."""
        self._child.stdin.write(f"{line}\n")
        self._child.stdin.flush()

    def published(self) -> int:
        """Wait until it has done what it was told, and return how many messages it has published since it began."""
        return json.loads(self._child.stdout.readline())["published"]

    def close(self) -> None:
        """End the process, so that it takes its shared memory with it; kill it where it doesn't."""
        try:
            self._child.communicate("end\n", timeout=ANSWER_S)
        except (subprocess.TimeoutExpired, OSError):
            self._child.kill()
            self._child.wait()


class Operator:
    """Calls the services of the recorder."""

    def __init__(self):
        import rclpy
        from std_srvs.srv import Trigger

        rclpy.init(args=[])
        self._rclpy, self._kind, self._node = rclpy, Trigger, rclpy.create_node("bench_operator")

    def call(self, service: str) -> str:
        """Call a service and return what it said."""
        client = self._node.create_client(self._kind, f"recorder_node/{service}")
        if not client.wait_for_service(ANSWER_S):
            raise RosVddError(f"recorder_node/{service} isn't there after {ANSWER_S:g} s")
        future = client.call_async(self._kind.Request())
        self._rclpy.spin_until_future_complete(self._node, future, timeout_sec=ANSWER_S)
        if not future.done() or not future.result().success:
            raise RosVddError(f"{service}: {future.result().message if future.done() else 'no answer'}")
        return future.result().message

    def close(self) -> None:
        """Leave the graph."""
        self._node.destroy_node()
        self._rclpy.shutdown()


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Return for each run and topic what was published, recorded and reported lost."""
    environment = {**os.environ, **ros_environment(DOMAIN)}
    os.environ.update(environment)
    runs = [_run(args, environment) for _ in range(args.runs)]
    topics = [topic for run in runs for topic in run["topics"].values()]
    exact = all(t["published"] == t["recorded"] + t["lost"] and t["missing"] == t["lost"] for t in topics)
    return {"runs": runs, "exact": exact, "lost": sum(t["lost"] for t in topics)}


def _run(args: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    spec = robot(args.cameras)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary, Processes(Path(temporary), environment) as nodes:
        folder = Path(temporary)
        (folder / "bench.yaml").write_text(dump_yaml(spec))
        own = {"queue_mb": args.queue_mb, "min_free_gb": 0.5, "silent_after_s": 60.0}
        nodes.start_node("recorder_node", robot=folder / "bench.yaml", root=folder, task="bench", **own)
        sources = [Source(camera.topic, "image", environment) for camera in spec.cameras.values()]
        sources.append(Source("joint_states", "joints", environment))
        operator = Operator()
        try:
            result = _measure(args, operator, sources)
        finally:
            operator.close()
            for source in sources:
                source.close()
        bag = Bag.open(folder / "bench" / "episode_000000")
        return {**result, "topics": _topics(bag, result.pop("before"), result.pop("after")), "custom": _custom(bag)}


def _measure(args: argparse.Namespace, operator: Operator, sources: list[Source]) -> dict[str, Any]:
    for source in sources:
        source.published()  # it is ready
        source.say("warm")
    time.sleep(6.0)  # until they have found each other
    for source in sources:
        source.say("still")
    before = {s.topic: [s.published() for _ in range(2)][-1] for s in sources}
    time.sleep(SETTLE_S)  # nothing waits in the middleware at the start, nor at the end
    operator.call("start_episode")
    begun = time.monotonic()
    for source in sources:
        source.say(f"go {round(args.seconds * source.hz)}")
    for source in sources:
        source.published()
    seconds = time.monotonic() - begun
    after = {}
    for _ in range(3):
        time.sleep(0.5)
        for source in sources:
            source.say("mark")
            after[source.topic] = source.published()
    time.sleep(SETTLE_S)
    asked = time.monotonic()
    said = operator.call("stop_episode")
    return {"before": before, "after": after, "seconds": seconds, "stop_s": time.monotonic() - asked, "said": said}


def _topics(bag: Bag, before: dict[str, int], after: dict[str, int]) -> dict[str, dict[str, int]]:
    numbers: dict[str, Counter[int]] = {topic: Counter() for topic in before}
    for message in bag.raw_messages([f"/{topic}" for topic in before]):
        numbers[message.topic[1:]][number_of(message.data)] += 1
    lost = lost_of(bag)
    return {
        topic: {
            "published": after[topic] - before[topic],
            "recorded": numbers[topic].total(),
            "lost": lost.get(f"/{topic}", 0),
            "missing": sum(k not in numbers[topic] for k in range(before[topic], after[topic])),
            "twice": sum(count - 1 for count in numbers[topic].values()),
        }
        for topic in before
    }


def lost_of(bag: Bag) -> dict[str, int]:
    """Return what the recorder reported as lost, by topic."""
    return dict(parse_yaml(bag.custom_data["ros_vdd.lost"]))


def _custom(bag: Bag) -> dict[str, str]:
    return {key: bag.custom_data[key] for key in ("ros_vdd.verdict", "ros_vdd.reasons", "ros_vdd.lost_by_cause")}
