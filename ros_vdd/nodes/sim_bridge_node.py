# SPDX-License-Identifier: Apache-2.0
"""A simulator as a robot on ROS topics: cameras, joint states and goals out, commands in, seeded episodes one after the other.

Ends when the last episode is over. `~/episode` and `~/result` are latched JSON: who joins late still gets them.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import asdict
from typing import Any

from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger

from ros_vdd import envs
from ros_vdd.errors import EnvError, RosVddError
from ros_vdd.nodes import process
from ros_vdd.nodes.managed import AUTOSTART, ManagedNode
from ros_vdd.nodes.messages import LATCHED_QOS, json_message
from ros_vdd.nodes.parameters import Parameter
from ros_vdd.nodes.sim_link import SessionEnd, SimLink
from ros_vdd.nodes.sim_pace import PausableLockStep, PausableRealTime
from ros_vdd.runtime.sim_session import EpisodeResult, Pace, run_episode
from ros_vdd.streams.spec import load_robot

PARAMETERS = (
    Parameter("autostart", True, AUTOSTART),
    Parameter("env", "pusht", "simulator: a file of ros_vdd/envs, or a dotted module name"),
    Parameter("robot", "", "robot file or name; empty for the one the simulator names"),
    Parameter("mode", "real_time", "what a step waits for", choices=("real_time", "lock_step")),
    Parameter("first_seed", 0, "seed of the first episode; each later one adds 1", 0, 2**31 - 1),
    Parameter("episodes", 5, "how many episodes", 1, 100000),
    Parameter("connect_timeout_s", 60.0, "how long to wait for readers and a command writer [s]", 0.1, 3600.0),
    Parameter("command_timeout_s", 30.0, "how long to wait for a command [s]", 0.1, 3600.0),
    Parameter("quiet_s", 0.5, "real time: pause of the commands before a new episode [s]", 0.0, 60.0),
    Parameter("await_result_reader", False, "begin only when somebody listens to ~/result"),
    Parameter("reset_service", "", "std_srvs/Trigger called before each episode, such as policy_node/reset; or none"),
)
GOODBYE = Duration(seconds=5)  # for readers to take a result before the process may end


class SimBridge:
    """Runs the session in a thread of its own, while the executor's thread receives commands: the work of a `ManagedNode`.

    Inactive the simulator stands still and shows nothing.
    """

    def __init__(self, node: ManagedNode, parameters: Any):
        self._node, self.settings = node, parameters
        self.env = envs.make(parameters.env)
        self.robot = load_robot(parameters.robot or self.env.robot)
        node.status.robot = self.robot.name
        lock_step = parameters.mode == "lock_step"
        self.link = SimLink(node, self.robot, publish_clock=lock_step)
        self.pace = self._pace(lock_step)
        self.error: Exception | None = None
        """What ended the session before its last episode."""
        self.result: EpisodeResult | None = None
        """Of the newest episode that is over."""
        self._episode = node.create_publisher(String, "~/episode", LATCHED_QOS)
        self._result = node.create_publisher(String, "~/result", _latched(parameters.episodes))
        reset = parameters.reset_service
        self._reset = node.create_client(Trigger, reset) if reset else None
        self._finished = node.create_guard_condition(self._leave)
        self.session = threading.Thread(target=self._run, name="session")

    def activate(self) -> None:
        """Begin the session, or go on with it."""
        self.link.resume()
        if self.session.ident is None:
            self.session.start()
            self._node.at_cleanup(self._end)
        self._node.status.set("running")

    def deactivate(self) -> None:
        """Let the simulator stand still after the step in hand."""
        self.link.pause()

    def _end(self) -> None:
        self.link.end()
        self.session.join()

    def _pace(self, lock_step: bool) -> Pace:
        timeout_s = self.settings.command_timeout_s
        if lock_step:
            return PausableLockStep(self.link, self.robot.dt_ns, timeout_s)
        return PausableRealTime(self.link, self.robot.dt_ns, timeout_s, self.settings.quiet_s)

    def _run(self) -> None:
        """Run all episodes; their end is the end of the process, and `error` keeps what ended them else."""
        try:
            observed = [self._result] if self.settings.await_result_reader else []
            self.link.await_peers(self.settings.connect_timeout_s, *observed)
            for number in range(self.settings.episodes):
                self._run_episode(number)
        except SessionEnd:
            return
        except Exception as error:  # kept for main(): the main thread tells it and ends the process
            self.error = error
        self._finished.trigger()

    def _leave(self) -> None:
        """Leave the executor's spin; in its thread, because shutting rclpy down destroys nodes."""
        raise ExternalShutdownException

    def _run_episode(self, number: int) -> None:
        seed = self.settings.first_seed + number
        self._call_reset()
        which = {"episode": number, "of": self.settings.episodes}
        with self.link.running():
            self._episode.publish(json_message({**which, "seed": seed}))
        self.result = result = run_episode(self.env, seed, self.pace, self.robot.dt_ns)
        with self.link.running():
            self._result.publish(json_message({**which, **_plain(result)}))
        outcome = f"score {result.score:.3f} in {len(result.actions)} steps"
        self._node.get_logger().info(f"episode {number} (seed {seed}): {outcome}")
        self._result.wait_for_all_acked(GOODBYE)

    def _call_reset(self) -> None:
        if self._reset is None:
            return
        timeout_s = self.settings.connect_timeout_s
        if not self._reset.wait_for_service(timeout_sec=timeout_s):
            raise EnvError(f"no service '{self._reset.srv_name}' within {timeout_s:g} s; is its node running?")
        answered, future = threading.Event(), self._reset.call_async(Trigger.Request())
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(timeout_s):
            raise EnvError(f"service '{self._reset.srv_name}' gave no answer within {timeout_s:g} s")
        if not future.result().success:
            raise EnvError(f"service '{self._reset.srv_name}' refused: {future.result().message}")


def _latched(depth: int) -> QoSProfile:
    """Return the QoS of a topic whose last `depth` messages a late reader still gets."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def _plain(result: EpisodeResult) -> dict:
    return {**asdict(result), "steps": len(result.actions), "actions": [a.tolist() for a in result.actions]}


def make(**options: Any) -> ManagedNode:
    """Return the node, of which `options` are rclpy's."""
    return ManagedNode("sim_bridge_node", "simulation", SimBridge, PARAMETERS, **options)


def main(args: list[str] | None = None) -> int:
    """Run the node; the exit status is 1 when a session couldn't be finished."""
    made: list[ManagedNode] = []

    def make_and_keep() -> ManagedNode:
        made.append(make())
        return made[0]

    status = process.run(make_and_keep, args)
    error = made[0].work.error if made and made[0].work else None
    if error is not None and not isinstance(error, RosVddError):
        raise error
    if error is not None:
        print(f"sim_bridge_node: {error}", file=sys.stderr, flush=True)
    return 1 if error is not None else status
