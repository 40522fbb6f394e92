# SPDX-License-Identifier: Apache-2.0
"""Managed nodes: every transition, what may be published in which state, and what an error leaves."""

import gc
import itertools
import os
import threading
import weakref

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.msg import Parameter as ParameterMessage  # noqa: E402
from rcl_interfaces.msg import ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from ros_peers import Peer, good_joints, start, stop  # noqa: E402
from std_msgs.msg import Bool, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from tiny_policy import ROBOT, actions, write_policy, write_robot  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.errors import ConfigError, RosVddError  # noqa: E402
from ros_vdd.nodes.managed import ManagedNode  # noqa: E402
from ros_vdd.nodes.messages import COMMAND_QOS, ChunkMessage, chunk_message  # noqa: E402
from ros_vdd.nodes.parameters import Parameter  # noqa: E402
from ros_vdd.runtime.chunking import ActionChunk  # noqa: E402

DT, PERIOD = 100_000_000, 20_000_000
MEASURED = [0.125, 0.25]
FASTEST = 4.0  # acceleration
SMOOTH = {**ROBOT["action"], "max_velocity": [1.0, 1.0], "max_acceleration": [FASTEST, FASTEST]}


class Life:
    """The lifecycle and parameter services of one node, as an operator calls them."""

    def __init__(self, peer, node):
        self.peer, self.node = peer, node
        self.status = peer.hear_status(node)

    def change(self, label):
        transition = Transition(label=label)
        return self.peer.call(f"{self.node}/change_state", ChangeState, transition=transition).success

    def state(self):
        return self.peer.call(f"{self.node}/get_state", GetState).current_state.label

    def set(self, name, text):
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(text))
        message = ParameterMessage(name=name, value=value)
        return self.peer.call(f"{self.node}/set_parameters", SetParameters, parameters=[message]).results[0]

    def said(self, state, code, word=""):
        self.peer.until(lambda: self.status and (self.status[-1]["state"], self.status[-1]["code"]) == (state, code))
        assert word in self.status[-1]["detail"]


def test_a_message_filled_again_is_the_one_made_anew():
    again, rng = ChunkMessage(), np.random.default_rng(0)
    for stamp_ns, steps, joints in ((5 * DT, 3, "ab"), (7 * DT, 3, "ab"), (8 * DT, 4, "ab"), (9 * DT, 4, "ba"), (9 * DT, 4, "ba")):
        chunk = ActionChunk(stamp_ns, DT, tuple(joints), rng.normal(size=(steps, 2)))
        assert again.fill(chunk) == chunk_message(chunk)


def test_the_executor_commands_only_while_it_is_active_and_ends_in_rest(tmp_path):
    process = start("chunk_executor_node", "life", robot="nowhere", autostart=False)
    peer = Peer("life")
    life, commands = Life(peer, "chunk_executor_node"), peer.hear(JointTrajectory, "command")
    chunks = peer.node.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)

    sent_ns = [0]

    def move(every_ns=6 * DT):
        plan = np.tile(MEASURED, (8, 1)) + np.linspace(0, 0.5, 8)[:, None]
        peer.publish(image=False, joints=good_joints(*MEASURED))
        if peer.now_ns() - sent_ns[0] >= every_ns:
            sent_ns[0] = peer.now_ns()
            chunks.publish(chunk_message(ActionChunk(sent_ns[0], DT, ("a", "b"), plan)))

    def still(spins=30):
        begun = len(commands)
        for _ in range(spins):
            move(every_ns=0)
            peer.executor.spin_once(timeout_sec=0.02)
        return len(commands) == begun

    def speed():
        return max(np.abs(command.points[0].velocities).max() for command in commands[-3:])

    life.said("unconfigured", "inactive")
    assert not life.change("activate") and life.state() == "unconfigured"
    assert not life.change("configure") and life.state() == "unconfigured"
    life.said("unconfigured", "not_configured", "'nowhere' is neither a path nor shipped")
    refused = life.set("splicing", "blended")
    assert not refused.successful and "did you mean 'blend'" in refused.reason
    assert life.set("robot", write_robot(tmp_path / "robot.yaml", action=SMOOTH)).successful
    assert life.change("configure") and life.state() == "inactive"
    life.said("inactive", "inactive")
    refused = life.set("splicing", "replace")
    assert not refused.successful and "clean up chunk_executor_node first" in refused.reason
    assert still()
    for _ in range(2):
        assert life.change("activate") and life.state() == "active"
        del commands[:]
        peer.until(lambda: commands and speed() > 0.2, move)
        assert life.change("deactivate") and life.state() == "inactive"
        peer.until(lambda: not np.any(commands[-1].points[0].velocities))  # the last one may still be on its way
        velocities = np.array([command.points[0].velocities for command in commands])
        stamps = np.array([command.header.stamp.sec * 10**9 + command.header.stamp.nanosec for command in commands])
        elapsed_s = (np.diff(stamps) + PERIOD) / 1e9  # a command may come late, and the next in time
        assert (np.abs(np.diff(velocities, axis=0)).max(axis=1) <= FASTEST * elapsed_s).all()
        life.said("inactive", "inactive")
        assert still()
    assert life.change("cleanup") and life.state() == "unconfigured"
    life.said("unconfigured", "inactive")
    assert life.change("configure") and life.change("activate")
    peer.until(lambda: commands and speed() > 0.2, move)
    assert life.change("shutdown") and life.state() == "finalized"
    peer.until(lambda: not np.any(commands[-1].points[0].velocities))
    life.said("finalized", "inactive")
    peer.close()
    code, said = stop(process)
    assert code == 0 and "Traceback" not in said
    assert "transition 'activate' isn't possible while unconfigured; possible: configure, shutdown" in said


def test_the_policy_plans_only_while_it_is_active_and_is_configured_again(tmp_path):
    policy, empty = write_policy(tmp_path / "tiny").path, tmp_path / "empty"
    empty.mkdir()
    process, peer = start("policy_node", "plans", policy=empty, autostart=False), Peer("plans")
    life, chunks = Life(peer, "policy_node"), peer.hear(JointTrajectory, "action_chunk")

    def silent(spins=30):
        begun = len(chunks)
        for _ in range(spins):
            peer.publish()
            peer.executor.spin_once(timeout_sec=0.02)
        return len(chunks) == begun

    assert not life.change("configure") and life.state() == "unconfigured"
    life.said("unconfigured", "not_configured", str(empty))
    assert life.set("policy", policy).successful
    for _ in range(2):
        assert life.change("configure") and silent()
        assert life.change("activate")
        peer.until(lambda: chunks, peer.publish)
        life.said("running", "")
        assert life.change("deactivate") and silent()
        life.said("inactive", "inactive")
        assert life.change("cleanup")
        del chunks[:]
    peer.close()
    code, said = stop(process)
    assert code == 0 and "Traceback" not in said


def test_two_robots_in_two_namespaces_never_hear_each_other(tmp_path):
    policy, robot = write_policy(tmp_path / "tiny").path, write_robot(tmp_path / "tiny.yaml")
    places = {"left": (0.1, 0.2), "right": (-0.4, -0.3)}
    processes = [start("policy_node", side, policy=policy) for side in places]
    processes += [start("chunk_executor_node", side, robot=robot) for side in places]
    peers = {side: Peer(side) for side in places}
    chunks = {side: peer.hear(JointTrajectory, "action_chunk") for side, peer in peers.items()}
    commands = {side: peer.hear(JointTrajectory, "command") for side, peer in peers.items()}

    def move(*sides):
        for side in sides:
            peers[side].publish(joints=good_joints(*places[side]))
        peers["right"].executor.spin_once(timeout_sec=0.01)

    peers["left"].until(lambda: len(commands["left"]) > 20, lambda: move("left"))
    assert not chunks["right"] and not commands["right"]
    peers["left"].until(lambda: len(commands["right"]) > 20 and len(chunks["left"]) > 4, lambda: move("left", "right"))
    for side, place in places.items():
        plan = actions(place)
        assert all(np.allclose([p.positions for p in chunk.points], plan, atol=1e-6) for chunk in chunks[side])
        positions = np.array([command.points[0].positions for command in commands[side]])
        assert np.abs(positions - place).max() <= np.abs(plan - place).max() + 1e-6
    for peer in peers.values():
        peer.close()
    assert [stop(process)[0] for process in processes] == [0, 0, 0, 0]


class Toy:
    """Work that fails where it is told to."""

    refuses = ""

    def __init__(self, node, parameters):
        self.node, self.did = node, []
        node.create_publisher(String, "first", 1)
        if self.refuses == "configure":
            raise ConfigError("no such toy")
        node.create_lifecycle_publisher(String, "second", 1)
        node.create_subscription(String, "third", lambda message: None, 1)
        node.create_service(Trigger, "fourth", lambda request, response: response)
        node.create_client(Trigger, "fourth")
        node.create_timer(1.0, lambda: None)
        node.create_guard_condition(lambda: None)
        node.at_cleanup(lambda: self.did.append("ended"))

    def activate(self):
        self._do("activate")

    def deactivate(self):
        self._do("deactivate")

    def _do(self, what):
        self.did.append(what)
        if self.refuses == what:
            raise RosVddError(f"refuses to {what}")


DOMAINS = itertools.count(os.getpid())


@pytest.fixture
def toys(monkeypatch):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=1 + next(DOMAINS) % 101)
    made = []

    def toy(refuses="", autostart=False):
        monkeypatch.setattr(Toy, "refuses", refuses)
        parameters = (Parameter("autostart", autostart, "whether to"),)
        made.append(ManagedNode("toy", "play", Toy, parameters, context=context))
        return made[-1]

    yield toy
    for node in made:
        node.destroy_node()
    rclpy.shutdown(context=context)


def state(node):
    return node._state_machine.current_state[1]


def count(node):
    return [len(list(getattr(node, kind))) for kind in ("publishers", "subscriptions", "services", "clients", "timers", "guards")]


@pytest.mark.parametrize("refuses", ["", "configure", "activate"])
def test_what_configure_made_is_gone_after_cleanup(toys, refuses):
    node = toys(refuses)
    before = count(node)
    node.trigger_configure()
    if not refuses:
        assert count(node) == [n + more for n, more in zip(before, (2, 1, 1, 1, 1, 1))]
    if refuses != "configure":
        work, did = weakref.ref(node.work), node.work.did
        node.trigger_activate()
        assert state(node) == ("active" if not refuses else "inactive")
        if not refuses:
            node.trigger_deactivate()
        node.trigger_cleanup()
        gc.collect()
        assert did[-1] == "ended" and work() is None
    assert count(node) == before and state(node) == "unconfigured"


def test_with_autostart_the_refusal_is_raised(toys):
    with pytest.raises(ConfigError, match="no such toy"):
        toys("configure", autostart=True)
    with pytest.raises(RosVddError, match="refuses to activate"):
        toys("activate", autostart=True)


def test_an_error_in_deactivate_ends_the_work(toys):
    node = toys("deactivate", autostart=True)
    work = node.work
    node.trigger_deactivate()
    assert state(node) == "unconfigured" and work.did[-1] == "ended" and node.work is None
    node.trigger_configure()
    assert state(node) == "inactive"


def test_an_error_in_a_thread_ends_the_work_in_the_executors_thread(toys):
    node = toys(autostart=True)
    work = node.work
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    threading.Thread(target=lambda: node.fail(ValueError("broken"))).start()
    for _ in range(200):
        executor.spin_once(timeout_sec=0.05)
        if state(node) != "active":
            break
    executor.shutdown()
    assert state(node) == "unconfigured" and work.did == ["activate", "ended"]


def test_a_parameter_that_does_not_exist_is_warned_of_with_the_nearest_name(tmp_path):
    process, peer = start("chunk_executor_node", "misspelt", robot="pusht", enable=False, clamp_margn=0.0), Peer("misspelt")
    status = peer.hear_status("chunk_executor_node")
    peer.until(lambda: status)
    peer.close()
    code, said = stop(process)
    assert code == 0 and "parameter 'enable' was given, but chunk_executor_node has none of that name" in said
    assert "did you mean 'enabled'?" in said and "did you mean 'clamp_margin'?" in said and "'use_sim_time'" not in said


SAFE = {"kind": "position", "positions": [-1.0, -1.0], "stale_chunk_s": 0.8}
SLOW = {**ROBOT["action"], "max_velocity": [0.05, 0.05]}  # half a minute to the safe position


def moving(namespace, robot, **parameters):
    """Start an executor and move its robot; return the process, its peer, its life, its commands, and what moves it."""
    process, peer = start("chunk_executor_node", namespace, robot=robot, **parameters), Peer(namespace)
    commands, sent_ns = peer.hear(JointTrajectory, "command"), [0]
    chunks = peer.node.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)

    def move():
        peer.publish(image=False, joints=good_joints(*MEASURED))
        if peer.now_ns() - sent_ns[0] > 4 * DT:
            sent_ns[0] = peer.now_ns()
            plan = np.tile(MEASURED, (8, 1)) + np.linspace(0.01, 0.4, 8)[:, None]
            chunks.publish(chunk_message(ActionChunk(sent_ns[0], DT, ("a", "b"), plan)))

    return process, peer, Life(peer, "chunk_executor_node"), commands, move


def test_a_protective_stop_is_heard_on_the_way_to_the_safe_position(tmp_path):
    robot = write_robot(tmp_path / "robot.yaml", action=SLOW, safe_action=SAFE)
    process, peer, life, commands, move = moving("away", robot)
    stops = peer.node.create_publisher(Bool, "protective_stop", COMMAND_QOS)
    peer.until(lambda: len(commands) > 5 and stops.get_subscription_count(), move)
    client = peer.node.create_client(ChangeState, "chunk_executor_node/change_state")
    peer.until(client.service_is_ready)
    answer = client.call_async(ChangeState.Request(transition=Transition(label="deactivate")))
    begun = len(commands)
    peer.until(lambda: len(commands) > begun + 20, lambda: peer.publish(image=False, joints=good_joints(*MEASURED)))
    assert commands[-1].points[0].positions[0] < commands[begun].points[0].positions[0] and not answer.done()
    stops.publish(Bool(data=True))
    peer.until(answer.done)
    assert answer.result().success and commands[-1].points[0].positions[0] > -0.8
    life.said("inactive", "inactive")
    peer.close()
    status, said = stop(process)  # its log has every reason, a latched topic the newest
    assert status == 0 and 0 < said.find("stopped: protective_stop") < said.rfind("inactive")
